//! One GPU: its power over time and everything that is read from it.

use std::collections::BTreeMap;

use super::command::{LossMode, Process, ThrottleReason, Truth};
use super::config::{GpuConfig, PciAddress, PowerUsage};
use super::error::NvmlError;
use super::profile::{FEMTOJOULES_PER_MICROJOULE, Femtojoules, Integral, Profile};
use super::timeline::Timeline;
use super::waveform::{Waveform, WaveformError, microwatts};

/// The window of an average power, in nanoseconds.
pub const AVERAGE_WINDOW_NS: u64 = 1_000_000_000;

const FEMTOJOULES_PER_MILLIJOULE: Femtojoules = 1_000 * FEMTOJOULES_PER_MICROJOULE;
const MILLIWATT: u64 = 1_000;

/// A GPU that does not answer.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    pub(super) mode: LossMode,
    /// The only functions that fail; all when `None`.
    pub(super) functions: Option<Vec<String>>,
}

/// How long a raised throttle reason has held.
#[derive(Debug, Clone, Copy, Default)]
struct Throttle {
    ended_ns: u64,
    since_ns: Option<u64>,
}

/// State of one GPU. Times are nanoseconds of the machine's clock.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// Its configuration.
    pub config: GpuConfig,
    /// UUID.
    pub uuid: String,
    /// PCI address.
    pub pci: PciAddress,
    /// Processes on it.
    pub processes: Vec<Process>,
    /// Value of field 230.
    pub recovery_action: u32,
    pub(super) loss: Option<Loss>,
    pub(super) used_bytes: u64,
    pub(super) gpu_percent: Option<u32>,
    pub(super) memory_percent: Option<u32>,
    waveform: Profile,
    waveform_origin_ns: u64,
    demand: Timeline,
    drawn: Timeline,
    limit_microwatts: u64,
    /// When the counters last restarted, and what had been drawn by then.
    counters_from_ns: u64,
    counted_from: Integral,
    throttles: BTreeMap<ThrottleReason, Throttle>,
}

impl Gpu {
    /// A GPU whose driver is loaded at `now_ns`.
    ///
    /// # Errors
    /// Why the configuration cannot be, in words.
    pub fn new(config: GpuConfig, index: usize, now_ns: u64) -> Result<Gpu, String> {
        let uuid = config.uuid_at(index);
        let wrong =
            |what: &str, error: &dyn std::fmt::Display| format!("gpu {index} ({uuid}): {what}: {error}");
        for (key, watts) in [
            ("min_limit_watts", config.min_limit_watts),
            ("max_limit_watts", config.max_limit_watts),
            ("full_watts", config.full_watts),
            ("module_extra_watts", config.module_extra_watts.unwrap_or(0.0)),
            ("memory_watts", config.memory_watts.unwrap_or(0.0)),
        ] {
            microwatts(watts).map_err(|error| wrong(key, &error))?;
        }
        if !(1..=64).contains(&config.pcie_counter_bits) {
            return Err(wrong("pcie_counter_bits", &"not between 1 and 64"));
        }
        let limit =
            microwatts(config.default_limit_watts).map_err(|error| wrong("default_limit_watts", &error))?;
        let idle = microwatts(config.idle_watts).map_err(|error| wrong("idle_watts", &error))?;
        let pci = config.pci_at(index).ok_or_else(|| wrong("pci", &"not domain:bus:device.function"))?;
        let demand = config.waveform.as_ref().map_or_else(|| Ok(Profile::constant(idle)), Waveform::profile);
        let demand = demand.map_err(|error| wrong("waveform", &error))?;
        Ok(Gpu {
            uuid,
            pci,
            processes: Vec::new(),
            recovery_action: 0,
            loss: None,
            used_bytes: 0,
            gpu_percent: None,
            memory_percent: None,
            waveform_origin_ns: now_ns,
            drawn: Timeline::new(demand.clipped(limit), now_ns),
            demand: Timeline::new(demand.clone(), now_ns),
            waveform: demand,
            limit_microwatts: limit,
            counters_from_ns: now_ns,
            counted_from: Integral::default(),
            throttles: BTreeMap::new(),
            config,
        })
    }

    /// Demands `waveform` from `now_ns` on.
    ///
    /// # Errors
    /// A waveform that cannot be drawn; nothing changes then.
    pub fn set_waveform(&mut self, waveform: &Waveform, now_ns: u64) -> Result<(), WaveformError> {
        self.waveform = waveform.profile()?;
        self.waveform_origin_ns = now_ns;
        self.demand.change(self.waveform.clone(), now_ns, now_ns);
        self.drawn.change(self.waveform.clipped(self.limit_microwatts), now_ns, now_ns);
        Ok(())
    }

    /// Sets the power limit, in milliwatts, from `now_ns` on.
    ///
    /// # Errors
    /// A limit outside the constraints.
    pub fn set_limit(&mut self, milliwatts: u32, now_ns: u64) -> Result<(), NvmlError> {
        let (min, max) = self.limit_constraints();
        if milliwatts < min || milliwatts > max {
            return Err(NvmlError::InvalidArgument);
        }
        self.limit(u64::from(milliwatts) * MILLIWATT, now_ns);
        Ok(())
    }

    fn limit(&mut self, microwatts: u64, now_ns: u64) {
        self.limit_microwatts = microwatts;
        self.drawn.change(self.waveform.clipped(microwatts), self.waveform_origin_ns, now_ns);
    }

    /// The power limit in force, in milliwatts.
    #[must_use]
    pub fn limit_milliwatts(&self) -> u32 {
        milliwatts(self.limit_microwatts)
    }

    /// The limit after a driver load, in milliwatts.
    #[must_use]
    pub fn default_limit_milliwatts(&self) -> u32 {
        watts_to_milliwatts(self.config.default_limit_watts)
    }

    /// Least and largest limit that can be set, in milliwatts.
    #[must_use]
    pub fn limit_constraints(&self) -> (u32, u32) {
        (watts_to_milliwatts(self.config.min_limit_watts), watts_to_milliwatts(self.config.max_limit_watts))
    }

    /// Restarts every counter, as a driver load or a reset of the GPU does.
    pub fn restart_counters(&mut self, now_ns: u64) {
        self.counted_from = self.drawn.integral_at(now_ns);
        self.counters_from_ns = now_ns;
        for throttle in self.throttles.values_mut() {
            *throttle = Throttle { ended_ns: 0, since_ns: throttle.since_ns.map(|_| now_ns) };
        }
    }

    /// What a driver load does: counters restart and the limit goes back to the default.
    pub fn reload(&mut self, now_ns: u64) {
        self.limit(u64::from(self.default_limit_milliwatts()) * MILLIWATT, now_ns);
        self.recovery_action = 0;
        self.restart_counters(now_ns);
    }

    /// The truth at an instant.
    #[must_use]
    pub fn truth(&self, at_ns: u64) -> Truth {
        let energy = self.drawn.integral_at(at_ns).energy / FEMTOJOULES_PER_MICROJOULE;
        Truth {
            uuid: self.uuid.clone(),
            energy_microjoules: u64::try_from(energy).unwrap_or(u64::MAX),
            at_monotonic_ns: at_ns,
            power_watts: self.drawn.power_at(at_ns).0 as f64 / 1e6,
        }
    }

    /// First instant whose truth is still known.
    #[must_use]
    pub fn known_from_ns(&self) -> u64 {
        self.drawn.start_ns()
    }

    /// Energy since the driver was loaded, in millijoules, rounded down.
    ///
    /// # Errors
    /// No such counter.
    pub fn energy_millijoules(&self, now_ns: u64) -> Result<u64, NvmlError> {
        if !self.config.energy_counter {
            return Err(NvmlError::NotSupported);
        }
        let energy = self.drawn.integral_at(now_ns).energy - self.counted_from.energy;
        Ok(u64::try_from(energy / FEMTOJOULES_PER_MILLIJOULE).unwrap_or(u64::MAX))
    }

    /// Power at this instant, in milliwatts.
    #[must_use]
    pub fn instant_milliwatts(&self, now_ns: u64) -> u32 {
        milliwatts(self.drawn.power_at(now_ns).0)
    }

    /// Mean power over the last second, in milliwatts.
    #[must_use]
    pub fn average_milliwatts(&self, now_ns: u64) -> u32 {
        milliwatts(self.drawn.mean_power_at(now_ns, AVERAGE_WINDOW_NS))
    }

    /// What `nvmlDeviceGetPowerUsage` says, in milliwatts.
    #[must_use]
    pub fn power_usage_milliwatts(&self, now_ns: u64) -> u32 {
        match self.config.power_usage {
            PowerUsage::Average => self.average_milliwatts(now_ns),
            PowerUsage::Instant => self.instant_milliwatts(now_ns),
        }
    }

    /// Use of the GPU and of its memory, in percent: the mean demand of the last second between idle and full
    /// power, unless a test set it. A limited GPU is as busy as its demand.
    ///
    /// # Errors
    /// Unsupported under MIG.
    pub fn utilization(&self, now_ns: u64) -> Result<(u32, u32), NvmlError> {
        if self.config.mig {
            return Err(NvmlError::NotSupported);
        }
        let demand = self.demand.mean_power_at(now_ns, AVERAGE_WINDOW_NS) as f64 / 1e6;
        let span = (self.config.full_watts - self.config.idle_watts).max(f64::MIN_POSITIVE);
        let follows = ((demand - self.config.idle_watts) / span * 100.0).clamp(0.0, 100.0).round() as u32;
        let gpu = self.gpu_percent.unwrap_or(follows);
        Ok((gpu, self.memory_percent.unwrap_or(gpu / 2)))
    }

    /// Share of full power that is drawn now, 0 to 1: what clocks and temperature follow.
    #[must_use]
    pub fn load(&self, now_ns: u64) -> f64 {
        (f64::from(self.instant_milliwatts(now_ns)) / 1e3 / self.config.full_watts.max(1.0)).clamp(0.0, 1.0)
    }

    /// Whether the power limit holds power down at this instant.
    #[must_use]
    pub fn is_power_capped(&self, now_ns: u64) -> bool {
        self.drawn.power_at(now_ns).1
    }

    /// Time under the power cap since the counters restarted, in nanoseconds.
    #[must_use]
    pub fn power_capped_ns(&self, now_ns: u64) -> u64 {
        self.drawn.integral_at(now_ns).clipped_ns - self.counted_from.clipped_ns
    }

    /// Raises or ends a throttle reason.
    pub fn set_throttle(&mut self, reason: ThrottleReason, active: bool, now_ns: u64) {
        let ended_ns = self.throttled_ns(reason, now_ns);
        self.throttles.insert(reason, Throttle { ended_ns, since_ns: active.then_some(now_ns) });
    }

    /// Whether a raised reason holds.
    #[must_use]
    pub fn is_throttled(&self, reason: ThrottleReason) -> bool {
        self.throttles.get(&reason).is_some_and(|throttle| throttle.since_ns.is_some())
    }

    /// How long a raised reason has held since the counters restarted, in nanoseconds.
    #[must_use]
    pub fn throttled_ns(&self, reason: ThrottleReason, now_ns: u64) -> u64 {
        let throttle = self.throttles.get(&reason).copied().unwrap_or_default();
        throttle.ended_ns + throttle.since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
    }

    /// A PCIe byte counter at `bytes_per_second`, wrapped to its width.
    #[must_use]
    pub fn pcie_bytes(&self, bytes_per_second: u64, now_ns: u64) -> u64 {
        let elapsed = u128::from(now_ns.saturating_sub(self.counters_from_ns));
        let bytes = u128::from(bytes_per_second) * elapsed / 1_000_000_000;
        (bytes % (1 << self.config.pcie_counter_bits)) as u64
    }

    /// Used memory, in bytes: what was set or what the processes hold, whichever is more.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let held: u64 = self.processes.iter().filter_map(|process| process.memory_bytes).sum();
        let free = self.config.memory_bytes.saturating_sub(self.config.memory_reserved_bytes);
        self.used_bytes.max(held).min(free)
    }
}

fn milliwatts(microwatts: u64) -> u32 {
    u32::try_from(microwatts / MILLIWATT).unwrap_or(u32::MAX)
}

fn watts_to_milliwatts(watts: f64) -> u32 {
    (watts * 1e3).round() as u32
}
