//! Cumulative counters of which some samples are lost, repeated or late.
//!
//! Invariant: every increase is reported once. What a sample adds depends only on the newest sample
//! before it, so lost samples lose nothing and repeated ones add nothing.

use std::ops::Sub;

/// The newest sample of a cumulative series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cumulative<T> {
    /// Since when it counts; 0 where unknown.
    pub(crate) start_unix_nanos: u64,
    /// When it was read.
    pub(crate) time_unix_nanos: u64,
    /// What it had counted by then.
    pub(crate) value: T,
}

/// What a sample means against the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step<T> {
    /// It grew by `by` since `since_unix_nanos`: since the newest sample, or since a later start.
    Grew {
        /// The increase.
        by: T,
        /// From when on.
        since_unix_nanos: u64,
    },
    /// It went down without a new start. It counts on from its new value; nothing is added.
    Backwards,
    /// It is not newer than the newest sample.
    Late,
}

impl<T: Copy + PartialOrd + Sub<Output = T>> Cumulative<T> {
    /// Takes `sample` in as the newest one.
    ///
    /// A start after the sample before is a reset: the counter counts from zero of that start. One that is missing,
    /// or that moved to before that sample, says nothing: a host derives when it was booted from a clock that is
    /// set now and then. `stepped_back` says that the node's clock is known to have gone back, so that
    /// an earlier time is not a late one.
    pub(crate) fn advance(&mut self, sample: Self, stepped_back: bool) -> Step<T> {
        if sample.time_unix_nanos <= self.time_unix_nanos && !stepped_back {
            return Step::Late;
        }
        let before = std::mem::replace(self, sample);
        let is_new = sample.start_unix_nanos > before.start_unix_nanos
            && (stepped_back
                || sample.start_unix_nanos >= before.time_unix_nanos
                || sample.value < before.value);
        if before.start_unix_nanos > 0 && is_new {
            let since_unix_nanos = sample.start_unix_nanos.max(before.time_unix_nanos);
            Step::Grew { by: sample.value, since_unix_nanos }
        } else {
            self.start_unix_nanos = before.start_unix_nanos.max(sample.start_unix_nanos);
            if sample.value >= before.value {
                Step::Grew { by: sample.value - before.value, since_unix_nanos: before.time_unix_nanos }
            } else {
                Step::Backwards
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(start: u64, time: u64, value: u64) -> Cumulative<u64> {
        Cumulative { start_unix_nanos: start, time_unix_nanos: time, value }
    }

    #[test]
    fn steps() {
        let mut counter = at(10, 100, 5);
        assert_eq!(counter.advance(at(10, 200, 8), false), Step::Grew { by: 3, since_unix_nanos: 100 });
        assert_eq!(counter.advance(at(10, 200, 9), false), Step::Late);
        assert_eq!(counter.advance(at(10, 150, 9), false), Step::Late);
        assert_eq!(counter.advance(at(10, 300, 7), false), Step::Backwards);
        assert_eq!(counter.advance(at(10, 400, 9), false), Step::Grew { by: 2, since_unix_nanos: 300 });
        assert_eq!(counter.advance(at(450, 500, 4), false), Step::Grew { by: 4, since_unix_nanos: 450 });
        assert_eq!(counter.advance(at(0, 600, 3), false), Step::Backwards, "no start is no new start");
        assert_eq!(counter.advance(at(0, 700, 4), false), Step::Grew { by: 1, since_unix_nanos: 600 });
        assert_eq!(counter.advance(at(450, 650, 9), true), Step::Grew { by: 5, since_unix_nanos: 700 });
    }

    #[test]
    fn a_start_that_is_moved_by_a_clock_is_no_reset() {
        let mut counter = at(10, 100, 50);
        assert_eq!(counter.advance(at(12, 200, 60), false), Step::Grew { by: 10, since_unix_nanos: 100 });
        assert_eq!(counter.advance(at(11, 300, 61), false), Step::Grew { by: 1, since_unix_nanos: 200 });
        assert_eq!(counter.advance(at(250, 400, 5), false), Step::Grew { by: 5, since_unix_nanos: 300 });
    }

    #[test]
    fn a_counter_that_gains_a_start_is_not_reset() {
        let mut counter = at(0, 100, 50);
        assert_eq!(counter.advance(at(10, 200, 60), false), Step::Grew { by: 10, since_unix_nanos: 100 });
        assert_eq!(counter.start_unix_nanos, 10);
    }

    proptest! {
        /// Whichever samples of a series are lost or repeated, the increases sum to the same.
        #[test]
        fn losses_lose_nothing(deltas in prop::collection::vec(0u64..1000, 1..50), kept in prop::collection::vec(0u8..3, 50)) {
            let mut counter = at(1, 1, 0);
            let (mut value, mut sum) = (0, 0);
            for (index, delta) in deltas.iter().enumerate() {
                value += delta;
                let copies = if index + 1 == deltas.len() { 1 } else { kept[index] };
                for _ in 0..copies {
                    match counter.advance(at(1, index as u64 + 2, value), false) {
                        Step::Grew { by, .. } => sum += by,
                        Step::Late => {}
                        Step::Backwards => prop_assert!(false),
                    }
                }
            }
            prop_assert_eq!(sum, value);
        }
    }
}
