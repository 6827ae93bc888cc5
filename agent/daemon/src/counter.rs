//! Raw cumulative counters into amounts that were really counted.
//!
//! Pure. Invariant: an amount comes out only where the counter shows it. A first reading has none; a
//! wrap is added up; anything that no device could have drawn in the time is a reset, a gap without
//! joules.

use std::time::Duration;

/// Time that a counter may lag behind its reading: RAPL updates each millisecond, NVML every 20 to 100.
const COUNTER_LAG: Duration = Duration::from_millis(200);

/// What a counter may go back by without having gone round: RAPL updates each millisecond.
const COUNTER_UPDATE: Duration = Duration::from_millis(1);

/// Why energy went unseen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The counter went back and cannot have wrapped.
    Reset,
    /// The counter ran ahead faster than the device can draw.
    Implausible,
    /// So long without a reading that the counter may have wrapped more than once.
    MissedWraps,
    /// The agent did not run, and the counter was its own.
    Restart,
    /// The host was booted, and the counters began anew.
    Reboot,
    /// The ledger came from another host, whose counters were others.
    OtherHost,
    /// Another source counted meanwhile: what the counter says of that time is counted already.
    Substituted,
    /// Readings failed for longer than power may be integrated over.
    Unread,
    /// The ledger was lost.
    LedgerLost,
}

impl GapReason {
    /// The value of the `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Implausible => "implausible",
            Self::MissedWraps => "missed_wraps",
            Self::Restart => "restart",
            Self::Reboot => "reboot",
            Self::OtherHost => "other_host",
            Self::Substituted => "substituted",
            Self::Unread => "unread",
            Self::LedgerLost => "ledger_lost",
        }
    }
}

/// What is known of a counter.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// The counter counts modulo this; `None` where it does not wrap.
    pub modulus: Option<u64>,
    /// Most counts per second that the device can cause.
    pub max_per_second: f64,
}

/// What a reading says beside the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing to compare with yet.
    First,
    /// That much was counted; with a reason where some may be missing.
    Counted(u64, Option<GapReason>),
    /// Nothing can be said of the time since the last reading.
    Gap(GapReason),
}

/// The last reading of one counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    last: Option<(u64, Duration)>,
}

impl Counter {
    /// A counter that was last read as `raw` at the time `at`.
    pub fn resumed(raw: u64, at: Duration) -> Self {
        Self { last: Some((raw, at)) }
    }

    /// The last reading and its time.
    pub fn last(&self) -> Option<(u64, Duration)> {
        self.last
    }

    /// Takes a reading at the time `at` and tells what was counted since the one before.
    pub fn advance(&mut self, raw: u64, at: Duration, limits: &Limits) -> Step {
        let Some((last, last_at)) = self.last else {
            self.last = Some((raw, at));
            return Step::First;
        };
        // Back by a hair it is a glitch of the hardware rather than a round less a hair: what lies between was
        // counted, and is not again. It may have begun anew all the same: hence a gap.
        let back = last.saturating_sub(raw) as f64;
        let hair = limits.max_per_second * COUNTER_UPDATE.as_secs_f64();
        if back > 0.0 && back <= hair && hair.is_finite() {
            return Step::Gap(GapReason::Reset);
        }
        self.last = Some((raw, at));
        let elapsed = at.saturating_sub(last_at) + COUNTER_LAG;
        let possible = limits.max_per_second * elapsed.as_secs_f64();
        // A range of 0, or a reading beyond the range, says that the range is not to be believed.
        let modulus = limits.modulus.filter(|modulus| *modulus > raw.max(last));
        if raw >= last {
            return forward(raw - last, possible, modulus);
        }
        let Some(modulus) = modulus else { return Step::Gap(GapReason::Reset) };
        let delta = modulus - last + raw;
        if delta as f64 <= possible {
            Step::Counted(delta, missed(delta, possible, Some(modulus)))
        } else {
            Step::Gap(GapReason::Reset)
        }
    }
}

fn forward(delta: u64, possible: f64, modulus: Option<u64>) -> Step {
    if delta as f64 <= possible {
        Step::Counted(delta, missed(delta, possible, modulus))
    } else {
        Step::Gap(GapReason::Implausible)
    }
}

/// What is counted is a lower bound when a whole further round was possible too.
fn missed(delta: u64, possible: f64, modulus: Option<u64>) -> Option<GapReason> {
    let modulus = modulus?;
    (possible >= delta as f64 + modulus as f64).then_some(GapReason::MissedWraps)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: u64 = 262_143_328_850;
    /// 1 kW in µJ per second.
    const LIMITS: Limits = Limits { modulus: Some(RANGE), max_per_second: 1e9 };

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn table() {
        let unbounded = Limits { modulus: None, max_per_second: 5e6 };
        let zero = Limits { modulus: Some(0), max_per_second: 1e9 };
        for (what, limits, last, raw, expected) in [
            ("plain", LIMITS, 100, 150_000_100, Step::Counted(150_000_000, None)),
            ("stands still", LIMITS, 100, 100, Step::Counted(0, None)),
            ("wrap", LIMITS, RANGE - 10, 20, Step::Counted(30, None)),
            ("reset at half range", LIMITS, RANGE / 2, 20, Step::Gap(GapReason::Reset)),
            ("9 kW CPU", LIMITS, 0, 9_000_000_000, Step::Gap(GapReason::Implausible)),
            ("no wrap known", unbounded, 10_000, 10, Step::Gap(GapReason::Reset)),
            ("driver reload", unbounded, u64::MAX, 0, Step::Gap(GapReason::Reset)),
            ("range 0", zero, 2_000_000, 10, Step::Gap(GapReason::Reset)),
            ("back by a hair", LIMITS, 1_000_000, 1, Step::Gap(GapReason::Reset)),
            ("beyond its range", LIMITS, RANGE + 5, 10, Step::Gap(GapReason::Reset)),
        ] {
            let mut counter = Counter::default();
            assert_eq!(counter.advance(last, seconds(10), &limits), Step::First, "{what}");
            assert_eq!(counter.advance(raw, seconds(11), &limits), expected, "{what}");
        }
    }

    #[test]
    fn back_by_one_is_never_a_round_and_nothing_is_counted_twice() {
        for (modulus, elapsed) in [(Some(RANGE), 1), (Some(RANGE), 3_600), (None, 3_600), (Some(1 << 20), 1)]
        {
            let limits = Limits { modulus, ..LIMITS };
            let mut counter = Counter::resumed(1_000_000, seconds(1));
            let step = counter.advance(999_999, seconds(1 + elapsed), &limits);
            assert_eq!(step, Step::Gap(GapReason::Reset), "{modulus:?} after {elapsed} s");
            assert_eq!(counter.last(), Some((1_000_000, seconds(1))), "a restart goes on from there");
            let next = counter.advance(1_000_010, seconds(2 + elapsed), &limits);
            assert!(matches!(next, Step::Counted(10, _)), "{next:?}");
        }
    }

    #[test]
    fn a_range_that_readings_exceed_is_no_range() {
        let limits = Limits { modulus: Some(1), max_per_second: 1e9 };
        let mut counter = Counter::resumed(5, seconds(1));
        assert_eq!(counter.advance(9_000_000, seconds(2), &limits), Step::Counted(8_999_995, None));
        assert_eq!(counter.advance(2, seconds(3), &limits), Step::Gap(GapReason::Reset));
    }

    #[test]
    fn after_a_reset_counting_goes_on() {
        let mut counter = Counter::resumed(RANGE / 2, seconds(1));
        assert_eq!(counter.advance(0, seconds(2), &LIMITS), Step::Gap(GapReason::Reset));
        assert_eq!(counter.advance(7, seconds(3), &LIMITS), Step::Counted(7, None));
    }

    #[test]
    fn a_long_silence_is_a_lower_bound_and_says_so() {
        let mut counter = Counter::resumed(100, seconds(0));
        let step = counter.advance(1_100, seconds(3_600), &LIMITS);
        assert_eq!(step, Step::Counted(1_000, Some(GapReason::MissedWraps)));
    }

    proptest! {
        #[test]
        fn a_wrapping_counter_adds_up_to_what_was_drawn(
            start in 0..RANGE,
            draws in proptest::collection::vec(0u64..1_000_000_000, 1..200),
        ) {
            let mut counter = Counter::default();
            counter.advance(start, seconds(0), &LIMITS);
            let (mut drawn, mut counted) = (0u64, 0u64);
            for (i, draw) in draws.iter().enumerate() {
                drawn += draw;
                let raw = (start + drawn) % RANGE;
                match counter.advance(raw, seconds(i as u64 + 1), &LIMITS) {
                    Step::Counted(delta, None) => counted += delta,
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert_eq!(counted, drawn);
        }

        #[test]
        fn nothing_implausible_ever_comes_out(
            readings in proptest::collection::vec((any::<u64>(), 0u64..10_000), 1..50),
            modulus in proptest::option::of(any::<u64>()),
        ) {
            let limits = Limits { modulus, max_per_second: 1e9 };
            let mut counter = Counter::default();
            let mut now = Duration::ZERO;
            for (raw, millis) in readings {
                now += Duration::from_millis(millis);
                if let Step::Counted(delta, _) = counter.advance(raw, now, &limits) {
                    let most = 1e9 * (Duration::from_millis(millis) + COUNTER_LAG).as_secs_f64();
                    prop_assert!(delta as f64 <= most);
                }
            }
        }
    }
}
