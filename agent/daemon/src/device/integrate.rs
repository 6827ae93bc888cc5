//! Energy from power: trapezoids between readings.
//!
//! Pure. Invariant: no energy over a time in which power was not read; such a time is counted instead.

use std::time::Duration;

/// Energy integrated so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Integrator {
    last: Option<(u64, Duration)>,
    broken: bool,
    /// Numerator of what is less than a microjoule: milliwatt-nanoseconds.
    remainder: u128,
    microjoules: u64,
    unread: u64,
}

/// A milliwatt-nanosecond is 1e-6 µJ; twice that, since a trapezoid halves.
const DOUBLE_MW_NS_PER_MICROJOULE: u128 = 2_000_000;

impl Integrator {
    /// Takes a reading that may have failed.
    pub(super) fn note(&mut self, milliwatts: Option<u64>, at: Duration, max_span: Duration) {
        match milliwatts {
            Some(milliwatts) => self.add(milliwatts, at, max_span),
            None => self.fail(),
        }
    }

    /// Takes a reading of `milliwatts` at the time `at`; over more than `max_span` nothing is assumed.
    pub(super) fn add(&mut self, milliwatts: u64, at: Duration, max_span: Duration) {
        let last = self.last.replace((milliwatts, at));
        let broken = std::mem::take(&mut self.broken);
        let Some((last_milliwatts, last_at)) = last else { return };
        let elapsed = at.saturating_sub(last_at);
        if broken || elapsed > max_span {
            self.unread += 1;
            return;
        }
        let double = (u128::from(milliwatts) + u128::from(last_milliwatts)) * elapsed.as_nanos();
        let exact = double + self.remainder;
        self.remainder = exact % DOUBLE_MW_NS_PER_MICROJOULE;
        let whole = u64::try_from(exact / DOUBLE_MW_NS_PER_MICROJOULE).unwrap_or(0);
        self.microjoules = self.microjoules.saturating_add(whole);
    }

    /// A reading failed: what was drawn until the next one is unknown.
    pub(super) fn fail(&mut self) {
        self.broken = true;
    }

    /// Energy so far.
    pub(super) fn microjoules(&self) -> u64 {
        self.microjoules
    }

    /// When power was last read.
    pub(super) fn last_at(&self) -> Option<Duration> {
        self.last.map(|(_, at)| at)
    }

    /// Times in which power was not read.
    pub(super) fn unread(&self) -> u64 {
        self.unread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(1);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_ramp_is_integrated_exactly() {
        let mut sum = Integrator::default();
        for i in 0..=10u64 {
            sum.add(i * 100_000, ms(i * 100), SPAN);
        }
        assert_eq!(sum.microjoules(), 500_000_000, "0 to 1 kW in a second: 500 J");
        assert_eq!(sum.unread(), 0);
    }

    #[test]
    fn failures_and_silences_are_gaps_without_joules() {
        let mut sum = Integrator::default();
        sum.fail();
        sum.add(100_000, ms(0), SPAN);
        assert_eq!((sum.microjoules(), sum.unread()), (0, 0), "nothing was known before");
        sum.add(100_000, ms(100), SPAN);
        sum.fail();
        sum.fail();
        sum.add(900_000, ms(300), SPAN);
        assert_eq!((sum.microjoules(), sum.unread()), (10_000_000, 1));
        sum.add(100_000, ms(5_000), SPAN);
        sum.add(100_000, ms(5_100), SPAN);
        assert_eq!((sum.microjoules(), sum.unread()), (20_000_000, 2));
    }

    #[test]
    fn fractions_are_kept() {
        let mut sum = Integrator::default();
        for i in 0..=1_000_000u64 {
            sum.add(1, Duration::from_nanos(i * 1_500), SPAN);
        }
        assert_eq!(sum.microjoules(), 1_500, "1 mW over 1.5 s");
    }
}
