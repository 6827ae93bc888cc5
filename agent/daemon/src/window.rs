//! Cumulative readings in, joules of a window out.
//!
//! Pure. Invariant: each meter is followed on its own, wraps undone before anything is summed; the
//! joules of a window are what its meter counted between two readings, and nothing where it cannot tell.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::counter::{Counter, GapReason, Step};
use crate::device::{EnergyReading, Epoch, MeterId, Scope};

/// One meter's part of a window.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    /// Whose.
    pub meter: MeterId,
    /// The scope that it counts for.
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
}

/// What a former run knew of a meter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The last reading.
    pub last: Option<(u64, Duration)>,
    /// Whether that was in this boot, so that the counter counted on.
    pub same_boot: bool,
}

#[derive(Clone, Debug)]
struct Tracked {
    counter: Counter,
    unread: u64,
}

/// Every meter that was seen.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    tracked: BTreeMap<MeterId, Tracked>,
    known: BTreeMap<MeterId, Known>,
}

impl Windows {
    /// Goes on where a former run ended.
    pub fn resumed(known: BTreeMap<MeterId, Known>) -> Self {
        Self { tracked: BTreeMap::new(), known }
    }

    /// Closes a window: what each meter with a new reading counted.
    pub fn close<'a>(&mut self, readings: impl IntoIterator<Item = &'a EnergyReading>) -> Vec<Slice> {
        readings.into_iter().filter_map(|reading| self.slice(reading)).collect()
    }

    fn slice(&mut self, reading: &EnergyReading) -> Option<Slice> {
        let mut slice = Slice {
            meter: reading.meter.clone(),
            scope: reading.scope,
            microjoules: 0,
            mean_watts: None,
            recovered: false,
            gaps: Vec::new(),
            resume: (reading.epoch == Epoch::Hardware).then_some((reading.raw, reading.at)),
        };
        let tracked = match self.tracked.get_mut(&reading.meter) {
            Some(tracked) => tracked,
            None => {
                let known = self.known.remove(&reading.meter);
                let (counter, gap) = first_seen(known, reading);
                slice.recovered = counter.last().is_some();
                slice.gaps.extend(gap);
                self.tracked.entry(reading.meter.clone()).or_insert(Tracked { counter, unread: 0 })
            }
        };
        let last_at = tracked.counter.last().map(|(_, at)| at);
        if last_at.is_some_and(|at| at >= reading.at) {
            return None;
        }
        let unread = reading.unread.saturating_sub(std::mem::replace(&mut tracked.unread, reading.unread));
        slice.gaps.extend((0..unread).map(|_| GapReason::Unread));
        match tracked.counter.advance(reading.raw, reading.at, &reading.limits) {
            Step::First => {}
            Step::Gap(reason) => slice.gaps.push(reason),
            Step::Counted(counts, reason) => {
                slice.gaps.extend(reason);
                slice.microjoules = counts.saturating_mul(reading.microjoules_per_count);
                slice.mean_watts = last_at.and_then(|at| mean_watts(slice.microjoules, reading.at - at));
            }
        }
        Some(slice)
    }
}

/// A meter that this run has not seen yet: goes on from the former run's reading where the counter did.
fn first_seen(known: Option<Known>, reading: &EnergyReading) -> (Counter, Option<GapReason>) {
    match (reading.epoch, known) {
        (_, None) => (Counter::default(), None),
        (Epoch::Hardware, Some(Known { last: Some((raw, at)), same_boot: true })) if at < reading.at => {
            (Counter::resumed(raw, at), None)
        }
        (_, Some(Known { same_boot: true, .. })) => (Counter::default(), Some(GapReason::Restart)),
        (_, Some(Known { same_boot: false, .. })) => (Counter::default(), Some(GapReason::Reboot)),
    }
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

    #[test]
    fn a_window_is_what_lies_between_two_readings() {
        let mut windows = Windows::default();
        let first = windows.close(&[reading("a", 900_000_000, 1_000)]);
        assert_eq!((first[0].microjoules, first[0].mean_watts), (0, None));
        let wrapped = windows.close(&[reading("a", 50_000_000, 3_000)]);
        assert_eq!((wrapped[0].microjoules, wrapped[0].mean_watts), (150_000_000, Some(75.0)));
        assert!(
            windows.close(&[reading("a", 50_000_000, 3_000)]).is_empty(),
            "an old reading says nothing new"
        );
        let late = windows.close(&[reading("a", 60_000_000, 8_000)]);
        assert_eq!((late[0].microjoules, late[0].mean_watts), (10_000_000, Some(2.0)));
    }

    #[test]
    fn each_zone_wraps_on_its_own() {
        let mut windows = Windows::default();
        windows.close(&[reading("a", 999_999_000, 1_000), reading("b", 400_000_000, 1_000)]);
        let slices = windows.close(&[reading("a", 1_000, 2_000), reading("b", 100_000_000, 2_000)]);
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
            (Epoch::Hardware, None, true, 0, false, Some(GapReason::Restart)),
            (Epoch::Process, last, true, 0, false, Some(GapReason::Restart)),
        ];
        for (epoch, last, same_boot, microjoules, recovered, gap) in table {
            let mut windows = Windows::resumed(BTreeMap::from([(meter.clone(), Known { last, same_boot })]));
            // Ten seconds at 50 W cannot wrap it.
            let limits = Limits { modulus: Some(1_000_000_000), max_per_second: 5e7 };
            let slice = &windows.close(&[EnergyReading { epoch, limits, ..reading("a", 800, 20_000) }])[0];
            assert_eq!(
                (slice.microjoules, slice.recovered),
                (microjoules, recovered),
                "{epoch:?} {same_boot}"
            );
            assert_eq!(slice.gaps, gap.into_iter().collect::<Vec<_>>());
            let next = &windows.close(&[EnergyReading { epoch, ..reading("a", 900, 21_000) }])[0];
            assert_eq!((next.microjoules, next.recovered), (100, false));
        }
    }

    #[test]
    fn times_that_the_backend_could_not_see_are_gaps() {
        let mut windows = Windows::default();
        windows.close(&[reading("a", 0, 1_000)]);
        let slices = windows.close(&[EnergyReading { unread: 2, ..reading("a", 10, 2_000) }]);
        assert_eq!(slices[0].gaps, [GapReason::Unread, GapReason::Unread]);
        let slices = windows.close(&[EnergyReading { unread: 2, ..reading("a", 20, 3_000) }]);
        assert_eq!(slices[0].gaps, []);
    }

    proptest! {
        #[test]
        fn windows_add_up_to_what_was_drawn_however_they_are_cut(
            draws in proptest::collection::vec((0u64..100_000_000, any::<bool>()), 1..100),
        ) {
            let mut windows = Windows::default();
            windows.close(&[reading("a", 0, 0)]);
            let (mut drawn, mut counted, mut read) = (0u64, 0u64, 0u64);
            for (i, (draw, is_read)) in draws.iter().enumerate() {
                drawn += draw;
                // At most every fifth window is missed in a row, so that wraps stay tellable.
                if *is_read || i % 5 == 4 {
                    let slices = windows.close(&[reading("a", drawn % 1_000_000_000, (i as u64 + 1) * 1_000)]);
                    counted += slices[0].microjoules;
                    read = drawn;
                }
            }
            prop_assert_eq!(counted, read);
        }
    }
}
