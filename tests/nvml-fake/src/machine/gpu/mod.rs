//! One GPU: its power over time and everything that is read from it.

mod activity;
mod health;
mod limits;
mod power;

use std::cell::Cell;
use std::collections::BTreeMap;

use super::command::{LossMode, Process, ThrottleReason, Truth};
use super::config::{GpuConfig, PciAddress};
use super::profile::{FEMTOJOULES_PER_MICROJOULE, Femtojoules, Integral, Profile};
use super::timeline::Timeline;
use super::waveform::{Waveform, WaveformError, microwatts};

pub use health::{EccCounts, MemoryErrors};
use limits::PendingLimit;
pub use power::AVERAGE_WINDOW_NS;

const NS_PER_MS: u64 = 1_000_000;

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
    /// Memory errors.
    pub memory_errors: MemoryErrors,
    pub(super) loss: Option<Loss>,
    pub(super) used_bytes: u64,
    pub(super) gpu_percent: Option<u32>,
    pub(super) memory_percent: Option<u32>,
    waveform: Profile,
    waveform_origin_ns: u64,
    demand: Timeline,
    drawn: Timeline,
    /// The limit that was set.
    limit_microwatts: u64,
    /// A limit that somebody else holds, as a board controller does.
    cap_microwatts: Option<u64>,
    pending: Option<PendingLimit>,
    /// When the counters last restarted, and what had been drawn by then.
    counters_from_ns: u64,
    counted_from: Integral,
    /// The last update that a counter of samples has added up, and what it had by then: the past stays as it is.
    looked: Cell<(u64, Femtojoules)>,
    throttles: BTreeMap<ThrottleReason, Throttle>,
}

impl Gpu {
    /// A GPU whose driver is loaded at `now_ns`.
    ///
    /// # Errors
    /// Why the configuration cannot be, in words.
    pub fn new(config: GpuConfig, index: usize, now_ns: u64) -> Result<Gpu, String> {
        let uuid = config.uuid_at(index);
        check(&config).map_err(|error| format!("gpu {index} ({uuid}): {error}"))?;
        let wrong =
            |what: &str, error: &dyn std::fmt::Display| format!("gpu {index} ({uuid}): {what}: {error}");
        let limit =
            microwatts(config.default_limit_watts).map_err(|error| wrong("default_limit_watts", &error))?;
        let idle = microwatts(config.idle_watts).map_err(|error| wrong("idle_watts", &error))?;
        let pci = config.pci_at(index).ok_or_else(|| wrong("pci", &"not domain:bus:device.function"))?;
        let demand = config.waveform.as_ref().map_or_else(|| Ok(Profile::constant(idle)), Waveform::profile);
        let demand = demand.map_err(|error| wrong("waveform", &error))?;
        let window_ns = config.limit_window_ms.saturating_mul(NS_PER_MS);
        Ok(Gpu {
            uuid,
            pci,
            processes: Vec::new(),
            recovery_action: 0,
            memory_errors: MemoryErrors::default(),
            loss: None,
            used_bytes: 0,
            gpu_percent: None,
            memory_percent: None,
            waveform_origin_ns: now_ns,
            drawn: Timeline::new(demand.limited(limit, window_ns), now_ns),
            demand: Timeline::new(demand.clone(), now_ns),
            waveform: demand,
            limit_microwatts: limit,
            cap_microwatts: None,
            pending: None,
            counters_from_ns: now_ns,
            counted_from: Integral::default(),
            looked: Cell::new((now_ns, 0)),
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
        self.redraw(now_ns);
        Ok(())
    }

    /// Restarts every counter, as a driver load or a reset of the GPU does.
    pub fn restart_counters(&mut self, now_ns: u64) {
        self.counted_from = self.drawn.integral_at(now_ns);
        self.counters_from_ns = now_ns;
        self.looked.set((now_ns, 0));
        self.memory_errors.volatile = EccCounts::default();
        for throttle in self.throttles.values_mut() {
            *throttle = Throttle { ended_ns: 0, since_ns: throttle.since_ns.map(|_| now_ns) };
        }
    }

    /// What a driver load does: counters restart and the limit goes back to the default at once.
    pub fn reload(&mut self, now_ns: u64) {
        self.restore_default_limit(now_ns);
        self.recovery_action = 0;
        self.restart_counters(now_ns);
    }

    /// The truth at an instant.
    #[must_use]
    pub fn truth(&self, at_ns: u64) -> Truth {
        let energy = self.drawn.integral_at(at_ns).energy;
        let microjoules = |energy| u64::try_from(energy / FEMTOJOULES_PER_MICROJOULE).unwrap_or(u64::MAX);
        Truth {
            uuid: self.uuid.clone(),
            energy_microjoules: microjoules(energy),
            counted_microjoules: microjoules(energy.saturating_sub(self.counted_from.energy)),
            at_monotonic_ns: at_ns,
            power_watts: self.drawn.power_at(at_ns).0 as f64 / 1e6,
        }
    }

    /// First instant whose truth is still known.
    #[must_use]
    pub fn known_from_ns(&self) -> u64 {
        self.drawn.start_ns()
    }
}

/// Why the configuration cannot be, in words.
fn check(config: &GpuConfig) -> Result<(), String> {
    for (key, watts) in [
        ("min_limit_watts", config.min_limit_watts),
        ("max_limit_watts", config.max_limit_watts),
        ("full_watts", config.full_watts),
        ("module_extra_watts", config.module_extra_watts.unwrap_or(0.0)),
        ("memory_watts", config.memory_watts.unwrap_or(0.0)),
        ("sampling.noise_watts", config.sampling.noise_watts),
    ] {
        microwatts(watts).map_err(|error| format!("{key}: {error}"))?;
    }
    for (key, gain) in [
        ("sampling.gain", config.sampling.gain),
        ("sampling.power_gain", config.sampling.power_gain),
        ("sampling.energy_gain", config.sampling.energy_gain),
    ] {
        if !(0.0..=10.0).contains(&gain) {
            return Err(format!("{key}: {gain} is not between 0 and 10"));
        }
    }
    if !(1..=64).contains(&config.pcie_counter_bits) {
        return Err("pcie_counter_bits: not between 1 and 64".to_owned());
    }
    if config.sampling.energy_step_millijoules == 0 {
        return Err("sampling.energy_step_millijoules: 0".to_owned());
    }
    if config.sampling.energy_sample_ms > config.sampling.energy_update_ms {
        return Err("sampling.energy_sample_ms: more than energy_update_ms".to_owned());
    }
    if config.mig && config.max_mig_devices == 0 {
        return Err("mig: max_mig_devices is 0".to_owned());
    }
    if config.mig_devices.len() > config.max_mig_devices as usize {
        return Err("mig_devices: more than max_mig_devices".to_owned());
    }
    Ok(())
}

fn watts_to_milliwatts(watts: f64) -> u32 {
    (watts * 1e3).round() as u32
}
