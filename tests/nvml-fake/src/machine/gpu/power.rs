//! Power and energy as the sensor shows them: the truth, seen as often and as exactly as configured.

use super::limits::milliwatts;
use super::{Gpu, NS_PER_MS};
use crate::machine::config::PowerUsage;
use crate::machine::error::NvmlError;
use crate::machine::profile::{FEMTOJOULES_PER_MICROJOULE, Femtojoules};
use crate::machine::random;

/// The window of an average power, in nanoseconds.
pub const AVERAGE_WINDOW_NS: u64 = 1_000_000_000;

const FEMTOJOULES_PER_MILLIJOULE: Femtojoules = 1_000 * FEMTOJOULES_PER_MICROJOULE;

/// A gain is held in millionths, so that the counter stays an integer that never runs backwards.
const MILLIONTHS: f64 = 1e6;

impl Gpu {
    /// Energy since the driver was loaded, in millijoules, rounded down to what the counter can show.
    ///
    /// # Errors
    /// No such counter.
    pub fn energy_millijoules(&self, now_ns: u64) -> Result<u64, NvmlError> {
        if !self.config.energy_counter {
            return Err(NvmlError::NotSupported);
        }
        let sampling = &self.config.sampling;
        let at_ns = self.last_update(now_ns, sampling.energy_update_ms);
        let drawn = match sampling.energy_sample_ms {
            0 => self.drawn.integral_at(at_ns).energy.saturating_sub(self.counted_from.energy),
            sample_ms => self.added_up(at_ns, sample_ms.saturating_mul(NS_PER_MS)),
        };
        let gain = (sampling.gain * sampling.energy_gain * MILLIONTHS).round() as Femtojoules;
        let seen = drawn * gain / MILLIONTHS as Femtojoules;
        let millijoules = u64::try_from(seen / FEMTOJOULES_PER_MILLIJOULE).unwrap_or(u64::MAX);
        Ok(millijoules - millijoules % sampling.energy_step_millijoules)
    }

    /// What a counter has that looks at the last `sample_ns` before each of its updates alone.
    fn added_up(&self, until_ns: u64, sample_ns: u64) -> Femtojoules {
        let every_ns = self.config.sampling.energy_update_ms.saturating_mul(NS_PER_MS).max(1);
        let (mut at_ns, mut sum) = self.looked.get();
        if until_ns < at_ns {
            (at_ns, sum) = (self.counters_from_ns, 0);
        }
        while at_ns + every_ns <= until_ns {
            at_ns += every_ns;
            let microwatts = self.drawn.mean_power_at(at_ns, sample_ns);
            sum += Femtojoules::from(microwatts) * Femtojoules::from(every_ns);
        }
        self.looked.set((at_ns, sum));
        sum
    }

    /// Power of the newest sample, in milliwatts.
    #[must_use]
    pub fn instant_milliwatts(&self, now_ns: u64) -> u32 {
        let sampling = &self.config.sampling;
        let at_ns = self.last_update(now_ns, sampling.power_update_ms);
        let window_ns = sampling.power_sample_ms.saturating_mul(NS_PER_MS);
        // Without a window the mean is the power at the instant.
        self.seen(self.drawn.mean_power_at(at_ns, window_ns), at_ns)
    }

    /// Mean power over the last second, in milliwatts.
    #[must_use]
    pub fn average_milliwatts(&self, now_ns: u64) -> u32 {
        let at_ns = self.last_update(now_ns, self.config.sampling.power_update_ms);
        self.seen(self.drawn.mean_power_at(at_ns, AVERAGE_WINDOW_NS), at_ns)
    }

    /// What `nvmlDeviceGetPowerUsage` says, in milliwatts.
    #[must_use]
    pub fn power_usage_milliwatts(&self, now_ns: u64) -> u32 {
        match self.config.power_usage {
            PowerUsage::Average => self.average_milliwatts(now_ns),
            PowerUsage::Instant => self.instant_milliwatts(now_ns),
        }
    }

    /// The last instant of a grid that starts with the GPU's time.
    fn last_update(&self, now_ns: u64, every_ms: u64) -> u64 {
        let start_ns = self.counters_from_ns.min(now_ns);
        match every_ms.saturating_mul(NS_PER_MS) {
            0 => now_ns,
            every_ns => now_ns - (now_ns - start_ns) % every_ns,
        }
    }

    /// A true power at an update, in microwatts, as the sensor shows it, in milliwatts.
    fn seen(&self, microwatts: u64, at_ns: u64) -> u32 {
        let sampling = &self.config.sampling;
        let gain = (sampling.gain * sampling.power_gain * MILLIONTHS).round() as u128;
        let gained = u128::from(microwatts) * gain / MILLIONTHS as u128;
        let noise = (sampling.noise_watts * 1e6).round() as u64;
        let offset = random::below(sampling.seed, at_ns, 2 * noise + 1);
        let noisy = u64::try_from(gained).unwrap_or(u64::MAX).saturating_add(offset).saturating_sub(noise);
        milliwatts(noisy)
    }
}
