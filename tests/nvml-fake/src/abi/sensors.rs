//! Energy, power, utilisation, temperature and clocks.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlClockType_enum_NVML_CLOCK_MEM as CLOCK_MEMORY, nvmlClockType_enum_NVML_CLOCK_VIDEO as CLOCK_VIDEO,
    nvmlClockType_t, nvmlDevice_t, nvmlReturn_t,
    nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU as SENSOR_GPU, nvmlTemperatureSensors_t,
    nvmlUtilization_t,
};

use super::{code, figure, gpu_figures, out};
use crate::machine::command::ThrottleReason;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// Event reasons: bits of `nvmlDeviceGetCurrentClocksEventReasons`.
const REASON_IDLE: c_ulonglong = 0x1;
const REASON_POWER_CAP: c_ulonglong = 0x4;
const SUPPORTED_REASONS: c_ulonglong = 0xff & !0x2;

fn between((low, high): (f64, f64), share: f64) -> c_uint {
    (low + (high - low) * share).round() as c_uint
}

fn reason_bit(reason: ThrottleReason) -> c_ulonglong {
    match reason {
        ThrottleReason::SyncBoost => 0x10,
        ThrottleReason::SwThermal => 0x20,
        ThrottleReason::HwThermal => 0x40,
        ThrottleReason::HwPowerBrake => 0x80,
    }
}

/// `HwSlowdown`, which is set beside either of its causes.
const HW_SLOWDOWN: c_ulonglong = 0x8;
const HW_SLOWDOWN_CAUSES: c_ulonglong = 0x40 | 0x80;

fn reasons(gpu: &Gpu, now_ns: u64) -> c_ulonglong {
    let raised = [
        ThrottleReason::SyncBoost,
        ThrottleReason::SwThermal,
        ThrottleReason::HwThermal,
        ThrottleReason::HwPowerBrake,
    ];
    let mut bits: c_ulonglong =
        raised.into_iter().filter(|reason| gpu.is_throttled(*reason)).map(reason_bit).sum();
    if bits & HW_SLOWDOWN_CAUSES != 0 {
        bits |= HW_SLOWDOWN;
    }
    if gpu.is_power_capped(now_ns) {
        bits |= REASON_POWER_CAP;
    }
    if gpu.utilization(now_ns) == Ok((0, 0)) {
        bits |= REASON_IDLE;
    }
    bits
}

gpu_figures! {
    /// Energy since the driver was loaded, in millijoules.
    nvmlDeviceGetTotalEnergyConsumption(energy: c_ulonglong) = |gpu, now_ns| gpu.energy_millijoules(now_ns);
    /// Power in milliwatts: a mean of one second or instantaneous, as configured.
    nvmlDeviceGetPowerUsage(power: c_uint) = |gpu, now_ns| Ok(gpu.power_usage_milliwatts(now_ns));
    /// Utilisation in percent.
    nvmlDeviceGetUtilizationRates(utilization: nvmlUtilization_t) = |gpu, now_ns| {
        gpu.utilization(now_ns).map(|(gpu, memory)| nvmlUtilization_t { gpu, memory })
    };
    /// Bitmask of what holds clocks down.
    nvmlDeviceGetCurrentClocksThrottleReasons(bits: c_ulonglong) = |gpu, now_ns| Ok(reasons(gpu, now_ns));
    /// The reasons that can be.
    nvmlDeviceGetSupportedClocksEventReasons(bits: c_ulonglong) = |_, _| Ok(SUPPORTED_REASONS);
    /// The older name of [`nvmlDeviceGetSupportedClocksEventReasons`].
    nvmlDeviceGetSupportedClocksThrottleReasons(bits: c_ulonglong) = |_, _| Ok(SUPPORTED_REASONS);
    /// The newer name of [`nvmlDeviceGetCurrentClocksThrottleReasons`].
    nvmlDeviceGetCurrentClocksEventReasons(bits: c_ulonglong) = |gpu, now_ns| Ok(reasons(gpu, now_ns));
}

/// Temperature of the GPU in °C: follows power.
///
/// # Safety
/// `temperature` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    sensor: nvmlTemperatureSensors_t,
    temperature: *mut c_uint,
) -> nvmlReturn_t {
    let figure = figure("nvmlDeviceGetTemperature", device, |gpu, now_ns| match sensor {
        SENSOR_GPU => Ok(between(gpu.config.celsius, gpu.load(now_ns))),
        _ => Err(NvmlError::InvalidArgument),
    });
    // SAFETY: the caller's promise about the pointer.
    code(figure.and_then(|figure| unsafe { out::write(temperature, figure) }))
}

/// A clock in MHz: those of the SMs and of video follow power.
///
/// # Safety
/// `clock` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    kind: nvmlClockType_t,
    clock: *mut c_uint,
) -> nvmlReturn_t {
    let figure = figure("nvmlDeviceGetClockInfo", device, |gpu, now_ns| {
        let (idle, full) = clocks(gpu, kind)?;
        Ok(between((f64::from(idle), f64::from(full)), gpu.load(now_ns)))
    });
    // SAFETY: the caller's promise about the pointer.
    code(figure.and_then(|figure| unsafe { out::write(clock, figure) }))
}

/// The largest clock, in MHz.
///
/// # Safety
/// `clock` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: nvmlDevice_t,
    kind: nvmlClockType_t,
    clock: *mut c_uint,
) -> nvmlReturn_t {
    let figure = figure("nvmlDeviceGetMaxClockInfo", device, |gpu, _| Ok(clocks(gpu, kind)?.1));
    // SAFETY: the caller's promise about the pointer.
    code(figure.and_then(|figure| unsafe { out::write(clock, figure) }))
}

/// A clock at no and at full power, in MHz.
fn clocks(gpu: &Gpu, kind: nvmlClockType_t) -> Result<(u32, u32), NvmlError> {
    match kind {
        CLOCK_MEMORY => Ok((gpu.config.memory_clock_mhz, gpu.config.memory_clock_mhz)),
        CLOCK_VIDEO => Ok(gpu.config.video_clock_mhz),
        0..CLOCK_VIDEO => Ok(gpu.config.sm_clock_mhz),
        _ => Err(NvmlError::InvalidArgument),
    }
}
