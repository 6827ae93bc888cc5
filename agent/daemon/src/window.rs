//! Cumulative readings in, joules of a window out.
//!
//! Pure. Invariant: each meter is followed on its own, wraps undone before anything is summed; the
//! joules of a window are what its meter counted between two readings, and nothing where it cannot tell.
//! No time counts twice for a scope: where a substitute (an estimate, an integral of power) has counted,
//! the counters that it stands for lose their last reading and begin anew after it.

use std::collections::BTreeMap;
use std::time::Duration;

use wattmill_protocol::Source;

use crate::counter::{Counter, GapReason, Step};
use crate::device::{EnergyReading, Epoch, MeterId, Scope};

/// One meter's part of a window.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    /// Whose.
    pub meter: MeterId,
    /// The scope that these joules count for.
    pub scope: Option<Scope>,
    /// Energy between the last reading and this one.
    pub microjoules: u64,
    /// Mean power in that time; `None` where that is not known.
    pub mean_watts: Option<f64>,
    /// Whether the energy was drawn while no agent ran.
    pub recovered: bool,
    /// Why energy is missing.
    pub gaps: Vec<GapReason>,
    /// The counter and when it was read, for a later run in this boot; `None` for the process's own.
    pub resume: Option<(u64, Duration)>,
    /// The scope that the meter counts for from this reading on.
    pub counts_for: Option<Scope>,
}

/// What a window came to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Closed {
    /// What each meter with a new reading counted.
    pub slices: Vec<Slice>,
    /// Counters whose last reading is void, because a substitute counted past it.
    pub substituted: Vec<MeterId>,
}

/// What a former run knew of a meter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The last reading.
    pub last: Option<(u64, Duration)>,
    /// The scope that it counted for then.
    pub scope: Option<Scope>,
    /// Whether that was in this boot, so that the counter counted on.
    pub same_boot: bool,
}

#[derive(Clone, Debug, Default)]
struct Tracked {
    /// Without a last reading where that is void.
    counter: Counter,
    /// When the newest reading was taken, void or not: an older one is no news.
    read_at: Option<Duration>,
    scope: Option<Scope>,
    unread: u64,
}

/// Every meter that was seen.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    tracked: BTreeMap<MeterId, Tracked>,
    known: BTreeMap<MeterId, Known>,
    /// Until when each substitute has counted.
    covered: BTreeMap<MeterId, Duration>,
}

impl Windows {
    /// Goes on where a former run ended.
    pub fn resumed(known: BTreeMap<MeterId, Known>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Closes a window: what each meter with a new reading counted.
    pub fn close<'a>(&mut self, readings: impl IntoIterator<Item = &'a EnergyReading>) -> Closed {
        let (substitutes, counters): (Vec<_>, Vec<_>) =
            readings.into_iter().partition(|reading| is_substitute(&reading.meter));
        let mut closed = Closed::default();
        // First, so that no counter counts what a substitute has counted in this very window.
        for reading in substitutes {
            let Some(slice) = self.slice(reading) else { continue };
            if slice.scope.is_some() && slice.microjoules > 0 {
                self.covered.insert(slice.meter.clone(), reading.at);
                self.void(&slice.meter, reading.at, &mut closed.substituted);
            }
            closed.slices.push(slice);
        }
        closed.slices.extend(counters.into_iter().filter_map(|reading| self.slice(reading)));
        closed
    }

    /// Voids the last readings of the counters that `substitute`, which counted until `at`, stands for.
    fn void(&mut self, substitute: &MeterId, at: Duration, voided: &mut Vec<MeterId>) {
        let counting = self.tracked.iter_mut().filter(|(meter, tracked)| {
            stands_for(substitute, meter)
                && tracked.scope.is_some()
                && tracked.counter.last().is_some_and(|(_, last_at)| last_at < at)
        });
        for (meter, tracked) in counting {
            tracked.counter = Counter::default();
            voided.push(meter.clone());
        }
        let known = self.known.iter_mut().filter(|(meter, known)| {
            stands_for(substitute, meter) && known.scope.is_some() && known.last.is_some()
        });
        for (meter, known) in known {
            known.last = None;
            voided.push(meter.clone());
        }
    }

    fn slice(&mut self, reading: &EnergyReading) -> Option<Slice> {
        let mut slice = Slice {
            meter: reading.meter.clone(),
            scope: None,
            microjoules: 0,
            mean_watts: None,
            recovered: false,
            gaps: Vec::new(),
            resume: None,
            counts_for: reading.scope,
        };
        if !self.tracked.contains_key(&reading.meter) {
            let known = self.known.remove(&reading.meter);
            let (tracked, gap) = first_seen(known, reading);
            slice.recovered = tracked.counter.last().is_some();
            slice.gaps.extend(gap);
            self.tracked.insert(reading.meter.clone(), tracked);
        }
        let overlaps = self.overlaps(&reading.meter);
        let covered = self.covered_until(&reading.meter);
        let tracked = self.tracked.get_mut(&reading.meter)?;
        if tracked.read_at.is_some_and(|at| at >= reading.at) {
            return None;
        }
        tracked.read_at = Some(reading.at);
        if reading.scope.is_some() && covered.is_some_and(|until| until >= reading.at) {
            return None;
        }
        let last = tracked.counter.last();
        // Joules count for a scope that the meter counted for at both ends of their time.
        let before = std::mem::replace(&mut tracked.scope, reading.scope);
        if last.is_none() || before == reading.scope {
            slice.scope = reading.scope.filter(|_| !overlaps);
        } else if reading.scope.is_some() {
            slice.gaps.push(GapReason::Substituted);
        }
        let unread = reading.unread.saturating_sub(std::mem::replace(&mut tracked.unread, reading.unread));
        slice.gaps.extend((0..unread).map(|_| GapReason::Unread));
        match tracked.counter.advance(reading.raw, reading.at, &reading.limits) {
            Step::First => {}
            Step::Gap(reason) => slice.gaps.push(reason),
            Step::Counted(counts, reason) => {
                slice.gaps.extend(reason);
                slice.microjoules = counts.saturating_mul(reading.microjoules_per_count);
                slice.mean_watts =
                    last.and_then(|(_, at)| mean_watts(slice.microjoules, reading.at.saturating_sub(at)));
            }
        }
        // Not the reading itself: one that went back by a hair is none to go on from.
        slice.resume = tracked.counter.last().filter(|_| reading.epoch == Epoch::Hardware);
        Some(slice)
    }

    /// Until when substitutes have counted for `meter`.
    fn covered_until(&self, meter: &MeterId) -> Option<Duration> {
        self.covered.iter().filter(|(s, _)| stands_for(s, meter)).map(|(_, until)| *until).max()
    }

    /// Whether a counter that `substitute` stands for has counted past the substitute's last reading.
    fn overlaps(&self, substitute: &MeterId) -> bool {
        let last = |tracked: &Tracked| tracked.counter.last().map(|(_, at)| at);
        let Some(since) = self.tracked.get(substitute).and_then(last) else { return false };
        self.tracked.iter().any(|(meter, tracked)| {
            stands_for(substitute, meter)
                && tracked.scope.is_some()
                && last(tracked).is_some_and(|at| at > since)
        })
    }
}

fn is_substitute(meter: &MeterId) -> bool {
    meter.source != Source::Counter
}

/// Whether the joules of `substitute` are those of `meter`, known in another way: the estimate is of the
/// whole host but its GPUs, an integral is of one device.
fn stands_for(substitute: &MeterId, meter: &MeterId) -> bool {
    let of_it = match substitute.source {
        Source::Counter => false,
        Source::Integrated => meter.device == substitute.device,
        Source::Estimate => true,
    };
    of_it && meter.source == Source::Counter && meter.class == substitute.class
}

/// A meter that this run has not seen yet: goes on from the former run's reading where the counter did.
fn first_seen(known: Option<Known>, reading: &EnergyReading) -> (Tracked, Option<GapReason>) {
    let gap = match (reading.epoch, known) {
        // A counter without a last reading has had its gap when that became void.
        (_, None) | (Epoch::Hardware, Some(Known { last: None, .. })) => None,
        (_, Some(Known { same_boot: false, .. })) => Some(GapReason::Reboot),
        (Epoch::Hardware, Some(Known { last: Some((raw, at)), scope, .. })) if at < reading.at => {
            let counter = Counter::resumed(raw, at);
            return (Tracked { counter, read_at: Some(at), scope, unread: 0 }, None);
        }
        (_, Some(_)) => Some(GapReason::Restart),
    };
    (Tracked::default(), gap)
}

fn mean_watts(microjoules: u64, elapsed: Duration) -> Option<f64> {
    let seconds = elapsed.as_secs_f64();
    (seconds > 0.0).then(|| microjoules as f64 / 1e6 / seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wattmill_protocol::Source;

    use super::*;
    use crate::counter::Limits;
    use crate::device::Class;

    fn reading(device: &str, raw: u64, at_ms: u64) -> EnergyReading {
        EnergyReading {
            meter: MeterId { class: Class::Zone, device: device.to_owned(), source: Source::Counter },
            scope: Some(Scope::Cpu),
            raw,
            microjoules_per_count: 1,
            limits: Limits { modulus: Some(1_000_000_000), max_per_second: 5e8 },
            epoch: Epoch::Hardware,
            at: Duration::from_millis(at_ms),
            unread: 0,
        }
    }

    fn close(windows: &mut Windows, readings: &[EnergyReading]) -> Vec<Slice> {
        windows.close(readings).slices
    }

    #[test]
    fn a_window_is_what_lies_between_two_readings() {
        let mut windows = Windows::default();
        let first = close(&mut windows, &[reading("a", 900_000_000, 1_000)]);
        assert_eq!((first[0].microjoules, first[0].mean_watts), (0, None));
        let wrapped = close(&mut windows, &[reading("a", 50_000_000, 3_000)]);
        assert_eq!((wrapped[0].microjoules, wrapped[0].mean_watts), (150_000_000, Some(75.0)));
        assert!(
            close(&mut windows, &[reading("a", 50_000_000, 3_000)]).is_empty(),
            "an old reading says nothing new"
        );
        let late = close(&mut windows, &[reading("a", 60_000_000, 8_000)]);
        assert_eq!((late[0].microjoules, late[0].mean_watts), (10_000_000, Some(2.0)));
    }

    #[test]
    fn each_zone_wraps_on_its_own() {
        let mut windows = Windows::default();
        close(&mut windows, &[reading("a", 999_999_000, 1_000), reading("b", 400_000_000, 1_000)]);
        let slices = close(&mut windows, &[reading("a", 1_000, 2_000), reading("b", 100_000_000, 2_000)]);
        assert_eq!(slices[0].microjoules, 2_000);
        assert_eq!((slices[1].microjoules, slices[1].gaps.as_slice()), (0, &[GapReason::Reset][..]));
    }

    #[test]
    fn a_restart_within_a_boot_recovers_what_was_drawn_meanwhile() {
        let meter = reading("a", 0, 0).meter;
        let last = Some((100, Duration::from_secs(10)));
        let table = [
            (Epoch::Hardware, last, true, 700, true, None),
            (Epoch::Hardware, last, false, 0, false, Some(GapReason::Reboot)),
            (Epoch::Hardware, None, true, 0, false, None),
            (Epoch::Process, last, true, 0, false, Some(GapReason::Restart)),
        ];
        for (epoch, last, same_boot, microjoules, recovered, gap) in table {
            let mut windows = Windows::resumed(BTreeMap::from([(
                meter.clone(),
                Known { last, scope: Some(Scope::Cpu), same_boot },
            )]));
            // Ten seconds at 50 W cannot wrap it.
            let limits = Limits { modulus: Some(1_000_000_000), max_per_second: 5e7 };
            let slice =
                &close(&mut windows, &[EnergyReading { epoch, limits, ..reading("a", 800, 20_000) }])[0];
            assert_eq!(
                (slice.microjoules, slice.recovered),
                (microjoules, recovered),
                "{epoch:?} {same_boot}"
            );
            assert_eq!(slice.gaps, gap.into_iter().collect::<Vec<_>>());
            let next = &close(&mut windows, &[EnergyReading { epoch, ..reading("a", 900, 21_000) }])[0];
            assert_eq!((next.microjoules, next.recovered), (100, false));
        }
    }

    fn estimate(raw: u64, at_ms: u64) -> EnergyReading {
        let meter = MeterId { class: Class::Zone, device: "host".to_owned(), source: Source::Estimate };
        let limits = Limits { modulus: None, max_per_second: f64::INFINITY };
        EnergyReading { meter, limits, epoch: Epoch::Process, ..reading("", raw, at_ms) }
    }

    /// Joules that count for the CPU.
    fn counted(closed: &Closed) -> u64 {
        closed.slices.iter().filter(|s| s.scope == Some(Scope::Cpu)).map(|s| s.microjoules).sum()
    }

    #[test]
    fn what_an_estimate_counted_no_counter_counts_again() {
        let mut windows = Windows::default();
        windows.close(&[reading("a", 0, 1_000)]);
        // The counter cannot be read; its last reading is shown on.
        windows.close(&[reading("a", 0, 1_000), estimate(0, 2_000)]);
        let outage = windows.close(&[reading("a", 0, 1_000), estimate(50, 3_000)]);
        assert_eq!((counted(&outage), outage.substituted.len()), (50, 1));
        let outage = windows.close(&[reading("a", 0, 1_000), estimate(90, 4_000)]);
        assert_eq!((counted(&outage), outage.substituted.len()), (40, 0), "one outage is one gap");
        let back = windows.close(&[reading("a", 400, 5_000)]);
        assert_eq!((counted(&back), back.slices[0].gaps.len()), (0, 0), "of that time the estimate has told");
        assert_eq!(counted(&windows.close(&[reading("a", 430, 6_000)])), 30);
    }

    #[test]
    fn an_outage_that_nobody_estimated_is_recovered_whole() {
        let mut windows = Windows::default();
        windows.close(&[reading("a", 0, 1_000)]);
        windows.close(&[reading("a", 0, 1_000), estimate(0, 2_000)]);
        let back = windows.close(&[reading("a", 400, 3_000)]);
        assert_eq!((counted(&back), back.substituted.len()), (400, 0));
    }

    #[test]
    fn a_counter_back_in_the_window_that_was_estimated_begins_after_it() {
        for (back_at, next) in [(2_990, 0), (3_010, 30)] {
            let mut windows = Windows::default();
            windows.close(&[reading("a", 0, 1_000), estimate(0, 2_000)]);
            let both = windows.close(&[reading("a", 400, back_at), estimate(50, 3_000)]);
            assert_eq!((counted(&both), both.substituted.len()), (50, 1), "at {back_at}");
            // Read before the estimate's end it is no beginning: what follows overlaps.
            let after = windows.close(&[reading("a", 430, 4_000)]);
            assert_eq!(counted(&after), next, "at {back_at}");
            assert_eq!(counted(&windows.close(&[reading("a", 440, 5_000)])), 10);
        }
    }

    #[test]
    fn across_a_restart_too_what_was_estimated_is_not_recovered() {
        let meter = reading("a", 0, 0).meter;
        let last = Some((100, Duration::from_secs(1)));
        let known = Known { last, scope: Some(Scope::Cpu), same_boot: true };
        let mut windows = Windows::resumed(BTreeMap::from([(meter.clone(), known)]));
        windows.close(&[estimate(0, 2_000)]);
        assert_eq!(windows.close(&[estimate(5, 3_000)]).substituted, [meter]);
        let back = windows.close(&[reading("a", 800, 4_000)]);
        assert_eq!((counted(&back), back.slices[0].gaps.as_slice()), (0, &[][..]));
    }

    #[test]
    fn joules_count_for_a_scope_that_was_counted_for_at_both_ends() {
        let mut windows = Windows::default();
        let without = |raw, at| EnergyReading { scope: None, ..reading("dram", raw, at) };
        windows.close(&[without(0, 1_000)]);
        let begins = windows.close(&[reading("dram", 10, 2_000)]);
        assert_eq!((counted(&begins), begins.slices[0].microjoules), (0, 10));
        assert_eq!(begins.slices[0].gaps, [GapReason::Substituted]);
        assert_eq!(counted(&windows.close(&[reading("dram", 30, 3_000)])), 20);
        assert_eq!(counted(&windows.close(&[without(60, 4_000)])), 0);
    }

    #[test]
    fn an_integral_stands_for_its_own_device_alone() {
        let gpu = |device: &str, source, raw, at| {
            let meter = MeterId { class: Class::Gpu, device: device.to_owned(), source };
            EnergyReading { meter, ..reading("", raw, at) }
        };
        let counter = |device, raw, at| gpu(device, Source::Counter, raw, at);
        let integral = |raw, at| gpu("x", Source::Integrated, raw, at);
        let mut windows = Windows::default();
        windows.close(&[counter("x", 0, 1_000), counter("y", 0, 1_000), integral(0, 1_001)]);
        let closed = windows.close(&[counter("y", 7, 2_000), integral(50, 2_001)]);
        assert_eq!((counted(&closed), closed.substituted.len()), (57, 1));
        let closed = windows.close(&[counter("x", 90, 3_000), counter("y", 9, 3_000)]);
        assert_eq!(counted(&closed), 2);
    }

    #[test]
    fn a_substitute_whose_last_reading_lies_before_what_was_counted_counts_for_nothing() {
        let mut windows = Windows::default();
        windows.close(&[reading("a", 0, 1_000), estimate(0, 1_000)]);
        assert_eq!(counted(&windows.close(&[reading("a", 100, 5_000)])), 100);
        let overlapping = windows.close(&[estimate(70, 6_000)]);
        assert_eq!((counted(&overlapping), overlapping.substituted.len()), (0, 0));
        assert_eq!(counted(&windows.close(&[estimate(80, 7_000)])), 10);
    }

    #[test]
    fn times_that_the_backend_could_not_see_are_gaps() {
        let mut windows = Windows::default();
        close(&mut windows, &[reading("a", 0, 1_000)]);
        let slices = close(&mut windows, &[EnergyReading { unread: 2, ..reading("a", 10, 2_000) }]);
        assert_eq!(slices[0].gaps, [GapReason::Unread, GapReason::Unread]);
        let slices = close(&mut windows, &[EnergyReading { unread: 2, ..reading("a", 20, 3_000) }]);
        assert_eq!(slices[0].gaps, []);
    }

    proptest! {
        #[test]
        fn windows_add_up_to_what_was_drawn_however_they_are_cut(
            draws in proptest::collection::vec((0u64..100_000_000, any::<bool>()), 1..100),
        ) {
            let mut windows = Windows::default();
            close(&mut windows, &[reading("a", 0, 0)]);
            let (mut drawn, mut counted, mut read) = (0u64, 0u64, 0u64);
            for (i, (draw, is_read)) in draws.iter().enumerate() {
                drawn += draw;
                // At most every fifth window is missed in a row, so that wraps stay tellable.
                if *is_read || i % 5 == 4 {
                    let slices = close(&mut windows, &[reading("a", drawn % 1_000_000_000, (i as u64 + 1) * 1_000)]);
                    counted += slices[0].microjoules;
                    read = drawn;
                }
            }
            prop_assert_eq!(counted, read);
        }
    }
}
