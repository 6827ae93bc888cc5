//! Counters of the driver's that are not energy, added up here.
//!
//! Pure. Invariant: a sum never goes down and holds only what a counter showed between two readings; where the
//! counter began anew, or may have, that time has nothing.

use std::time::Duration;

use crate::counter::{Counter, Limits, Step};

/// Nanoseconds of throttling: not more than pass.
pub(super) const NANOSECONDS: Limits = Limits { modulus: None, max_per_second: 1e9 };

/// Bytes over PCIe. The counters wrap, and their width is not documented: while one shows less than 32 bits
/// hold, going back is a wrap of 32. What lies above is wider and does not wrap in practice. 256 GB/s is twice
/// what 16 lanes of PCIe 6.0 carry one way.
pub(super) const PCIE_BYTES: Limits = Limits { modulus: Some(1 << 32), max_per_second: 256e9 };

/// A counter that takes longer to go round is read once a second without a doubt.
const SAFE_SECONDS: f64 = 16.0;

/// A sum.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    limits: Limits,
    counter: Counter,
    total: Option<u64>,
    /// Counts per second between the last two readings.
    rate: f64,
    /// Whether it showed more than its modulus: it is wider than was assumed.
    wide: bool,
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, counter: Counter::default(), total: None, rate: 0.0, wide: false }
    }

    /// Takes a reading at the time `at`; one that failed changes nothing.
    pub(super) fn add(&mut self, raw: Option<u64>, at: Duration) {
        let Some(raw) = raw else { return };
        let total = self.total.get_or_insert(0);
        self.wide |= self.limits.modulus.is_some_and(|modulus| raw >= modulus);
        let before = self.counter.last();
        if let Step::Counted(counts, _) = self.counter.advance(raw, at, &self.limits) {
            *total = total.saturating_add(counts);
            let elapsed = before.map_or(0.0, |(_, before)| at.saturating_sub(before).as_secs_f64());
            self.rate = if elapsed > 0.0 { counts as f64 / elapsed } else { 0.0 };
        }
    }

    /// Whether it may go round unseen where it is read once a second: it goes round within [`SAFE_SECONDS`] at the
    /// rate that was seen last. A rate that is too high for that looks like any other, so most often like one of these.
    pub(super) fn may_go_round(&self) -> bool {
        let modulus = self.limits.modulus.filter(|_| !self.wide);
        modulus.is_some_and(|modulus| self.rate * SAFE_SECONDS > modulus as f64)
    }

    /// The counter may begin anew: what it showed last is void.
    pub(super) fn forget(&mut self) {
        self.counter = Counter::default();
    }

    /// The sum; `None` where there never was a counter.
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(limits: Limits, readings: &[(u64, u64)]) -> Option<u64> {
        let mut tally = Tally::new(limits);
        for (ms, raw) in readings {
            tally.add(Some(*raw), Duration::from_millis(*ms));
        }
        tally.total()
    }

    #[test]
    fn bytes_wrap_at_32_bits_unless_the_counter_is_wider() {
        let full = 1 << 32;
        assert_eq!(sum(PCIE_BYTES, &[(0, full - 1_000), (100, 500)]), Some(1_500));
        assert_eq!(sum(PCIE_BYTES, &[(0, full + 5), (100, full + 900)]), Some(895), "wider");
        assert_eq!(sum(PCIE_BYTES, &[(0, full + 5), (100, 7), (200, 9)]), Some(2), "began anew");
        assert_eq!(sum(PCIE_BYTES, &[(0, 3_000_000_000), (100, 2_999_999_999)]), Some(0), "back by a hair");
        assert_eq!(sum(PCIE_BYTES, &[]), None);
    }

    #[test]
    fn a_counter_that_goes_round_soon_is_read_more_often_unless_it_is_wide() {
        let mut tally = Tally::new(PCIE_BYTES);
        let mut add = |ms, raw: u64| {
            tally.add(Some(raw), Duration::from_millis(ms));
            tally.may_go_round()
        };
        assert!(!add(0, 0) && !add(1_000, 200_000_000));
        assert!(add(2_000, 1_200_000_000), "a GB in a second");
        assert!(add(2_100, 1_300_000_000), "as often as it is read");
        assert!(!add(2_200, 1_300_000_000), "it has calmed down");
        assert!(add(3_200, 4_000_000_000));
        assert!(!add(4_200, (1 << 32) + 2_000_000_000), "64 bits");
        assert!(!Tally::new(NANOSECONDS).may_go_round());
    }

    #[test]
    fn no_more_time_is_throttled_than_passed() {
        let second = 1_000_000_000;
        assert_eq!(sum(NANOSECONDS, &[(0, 5), (1_000, second + 5)]), Some(second));
        assert_eq!(sum(NANOSECONDS, &[(0, 5), (1_000, 60 * second)]), Some(0), "implausible");
        assert_eq!(sum(NANOSECONDS, &[(0, 9 * second), (1_000, 0), (2_000, 3)]), Some(3), "a reload");
    }

    #[test]
    fn what_was_counted_while_nobody_could_look_is_left_out() {
        let mut tally = Tally::new(NANOSECONDS);
        tally.add(Some(10), Duration::from_secs(1));
        tally.add(Some(20), Duration::from_secs(2));
        tally.forget();
        tally.add(Some(900), Duration::from_secs(3));
        tally.add(None, Duration::from_secs(4));
        tally.add(Some(901), Duration::from_secs(5));
        assert_eq!(tally.total(), Some(11));
    }
}
