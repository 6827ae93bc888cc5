//! What changes slowly, read once a window: memory, clocks, temperature, limits, processes, utilisation.
//!
//! Invariant: a sentinel or an impossible value is absent.

use std::collections::BTreeMap;
use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::calls::Calls;
use super::ffi::Handle;
use super::gpm::Gpm;
use super::mig::Mig;
use super::sentinel::{is_figure, watts};
use crate::clock;
use crate::device::gpu::{GpuReading, PowerLimits};
use crate::device::host::Usage;

/// Above this a temperature is a sentinel.
const MAX_CELSIUS: u32 = 200;
/// More is a sentinel.
const MAX_PERCENT: u32 = 100;

/// The slow figures of one GPU, and what is kept from window to window to read them.
pub(super) struct Figures {
    gpm: Gpm,
    mig: Mig,
    /// Limits that do not change while the driver is loaded.
    limits: PowerLimits,
    /// Until when processes' use was read, by the driver's clock: microseconds since 1970.
    used_until: u64,
}

impl Figures {
    /// Reads what does not change.
    pub(super) fn of(handle: &Handle, nvml: &Nvml, calls: &mut Calls<'_>) -> Self {
        let device = handle.device();
        let constraints = calls.take(device.power_management_limit_constraints());
        let default = calls.take(device.power_management_limit_default());
        let limits = PowerLimits {
            enforced: None,
            default: default.and_then(|milliwatts| watts(milliwatts.into())),
            min: constraints.as_ref().and_then(|c| watts(c.min_limit.into())),
            max: constraints.as_ref().and_then(|c| watts(c.max_limit.into())),
        };
        Self {
            gpm: Gpm::of(handle, nvml),
            mig: Mig::default(),
            limits,
            // Who used the GPU before the agent looked does not use it now.
            used_until: clock::unix_nanos() / 1_000,
        }
    }

    /// Reads them into `reading`.
    pub(super) fn read(
        &mut self,
        reading: &mut GpuReading,
        (nvml, handle): (&Nvml, &Handle),
        at: Duration,
        calls: &mut Calls<'_>,
    ) {
        let device = handle.device();
        let mut pids = Vec::new();
        self.mig.read(nvml, &device, calls, &mut pids);
        let mut use_percent = BTreeMap::new();
        let whole =
            if self.mig.is_on() { Some(pids) } else { self.processes(&device, calls, &mut use_percent) };
        let gpm = calls.take(self.gpm.utilization(handle, at)).flatten();
        reading.utilization = gpm.or_else(|| self.plain_utilization(&device, calls));
        reading.memory = memory(handle, &device, self.mig.is_on(), calls);
        reading.temperature_celsius = calls
            .take(device.temperature(TemperatureSensor::Gpu))
            .filter(|celsius| *celsius <= MAX_CELSIUS)
            .map(f64::from);
        reading.sm_clock_hertz = calls
            .take(device.clock_info(Clock::SM))
            .filter(|mhz| *mhz < u32::MAX)
            .map(|mhz| f64::from(mhz) * 1e6);
        let enforced = calls.take(device.enforced_power_limit());
        let enforced = enforced.and_then(|milliwatts| watts(milliwatts.into()));
        reading.limits = PowerLimits { enforced, ..self.limits };
        reading.processes = whole;
        reading.use_percent = use_percent;
        reading.mig = self.mig.instances().to_vec();
    }

    /// The plain figure, which a partitioned GPU does not have.
    fn plain_utilization(&self, device: &Device<'_>, calls: &mut Calls<'_>) -> Option<f64> {
        if self.mig.is_on() {
            return None;
        }
        let rates = calls.take(device.utilization_rates());
        rates.filter(|rates| rates.gpu <= 100).map(|rates| f64::from(rates.gpu) / 100.0)
    }

    /// Who computes on the GPU and how much, those that came and went since the last window included.
    fn processes(
        &mut self,
        device: &Device<'_>,
        calls: &mut Calls<'_>,
        use_percent: &mut BTreeMap<u32, u32>,
    ) -> Option<Vec<u32>> {
        let running = calls.take(device.running_compute_processes());
        let used = match device.process_utilization_stats(self.used_until) {
            // Nobody used it since.
            Err(NvmlError::NotFound) => Some(Vec::new()),
            result => calls.take(result),
        };
        if running.is_none() && used.is_none() {
            return None;
        }
        let mut pids: Vec<u32> = running.unwrap_or_default().iter().map(|process| process.pid).collect();
        for sample in used.unwrap_or_default() {
            self.used_until = self.used_until.max(sample.timestamp);
            if sample.sm_util > 0 {
                pids.push(sample.pid);
                // Several samples of a window are of equal times.
                let percent = use_percent.entry(sample.pid).or_default();
                *percent = percent.saturating_add(sample.sm_util.min(MAX_PERCENT));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Some(pids)
    }
}

fn memory(handle: &Handle, device: &Device<'_>, partitioned: bool, calls: &mut Calls<'_>) -> Option<Usage> {
    let (used_bytes, size_bytes) = match device.memory_info() {
        Ok(memory) => (memory.used, memory.total),
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound) => calls.take(handle.memory())?,
        // Across its parts that is for root alone.
        Err(NvmlError::NoPermission) if partitioned => return None,
        Err(error) => calls.take(Err(error))?,
    };
    let sound = is_figure(size_bytes) && is_figure(used_bytes) && used_bytes <= size_bytes;
    sound.then_some(Usage { used_bytes, size_bytes })
}
