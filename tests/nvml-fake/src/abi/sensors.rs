//! Energy, power, utilisation, memory, temperature and clocks.

use std::ffi::{c_uint, c_ulonglong};
use std::ptr;

use nvml_wrapper_sys::bindings::{
    nvmlClockType_enum_NVML_CLOCK_MEM as CLOCK_MEMORY, nvmlClockType_enum_NVML_CLOCK_VIDEO as CLOCK_VIDEO,
    nvmlClockType_t, nvmlDevice_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlReturn_t,
    nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU as SENSOR_GPU, nvmlTemperatureSensors_t,
    nvmlUtilization_t,
};

use super::{code, gpu_figures, on_gpu, out};
use crate::machine::command::ThrottleReason;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// Temperature at no and at full power, in °C.
const TEMPERATURE_CELSIUS: (f64, f64) = (30.0, 75.0);
/// SM clock at no and at full power, and the memory clock, in MHz: those of an H100 SXM.
const SM_CLOCK_MHZ: (f64, f64) = (345.0, 1_980.0);
const MEMORY_CLOCK_MHZ: c_uint = 2_619;

/// Event reasons: bits of `nvmlDeviceGetCurrentClocksEventReasons`.
const REASON_IDLE: c_ulonglong = 0x1;
const REASON_POWER_CAP: c_ulonglong = 0x4;

/// `NVML_STRUCT_VERSION(Memory, 2)`.
const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | (2 << 24);

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

fn reasons(gpu: &Gpu, now_ns: u64) -> c_ulonglong {
    let raised = [
        ThrottleReason::SyncBoost,
        ThrottleReason::SwThermal,
        ThrottleReason::HwThermal,
        ThrottleReason::HwPowerBrake,
    ];
    let mut bits = raised.into_iter().filter(|reason| gpu.is_throttled(*reason)).map(reason_bit).sum();
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
    /// Memory in bytes; reserved memory counts as used.
    nvmlDeviceGetMemoryInfo(memory: nvmlMemory_t) = |gpu, _| {
        let (total, used) = (gpu.config.memory_bytes, gpu.used_bytes() + gpu.config.memory_reserved_bytes);
        Ok(nvmlMemory_t { total, free: total.saturating_sub(used), used })
    };
    /// Bitmask of what holds clocks down.
    nvmlDeviceGetCurrentClocksThrottleReasons(bits: c_ulonglong) = |gpu, now_ns| Ok(reasons(gpu, now_ns));
    /// The newer name of [`nvmlDeviceGetCurrentClocksThrottleReasons`].
    nvmlDeviceGetCurrentClocksEventReasons(bits: c_ulonglong) = |gpu, now_ns| Ok(reasons(gpu, now_ns));
}

/// Memory in bytes, the driver's reserve apart. The caller sets `version`.
///
/// # Safety
/// `memory` is null or valid for reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    // SAFETY: not null where it is read, hence valid by the caller's promise; the field alone is read because
    // the caller need not have initialised the others.
    let version = (!memory.is_null()).then(|| unsafe { ptr::addr_of!((*memory).version).read() });
    let figures = on_gpu("nvmlDeviceGetMemoryInfo_v2", device, |gpu, _| match version {
        None => Err(NvmlError::InvalidArgument),
        Some(MEMORY_V2) => {
            let (total, reserved) = (gpu.config.memory_bytes, gpu.config.memory_reserved_bytes);
            let used = gpu.used_bytes();
            let free = total.saturating_sub(reserved + used);
            Ok(nvmlMemory_v2_t { version: MEMORY_V2, total, reserved, free, used })
        }
        Some(_) => Err(NvmlError::ArgumentVersionMismatch),
    });
    // SAFETY: the caller's promise about the pointer.
    code(figures.and_then(|figures| unsafe { out::write(memory, figures) }))
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
    let figure = on_gpu("nvmlDeviceGetTemperature", device, |gpu, now_ns| match sensor {
        SENSOR_GPU => Ok(between(TEMPERATURE_CELSIUS, gpu.load(now_ns))),
        _ => Err(NvmlError::InvalidArgument),
    });
    // SAFETY: the caller's promise about the pointer.
    code(figure.and_then(|figure| unsafe { out::write(temperature, figure) }))
}

/// A clock in MHz: those of the SMs follow power.
///
/// # Safety
/// `clock` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    kind: nvmlClockType_t,
    clock: *mut c_uint,
) -> nvmlReturn_t {
    let figure = on_gpu("nvmlDeviceGetClockInfo", device, |gpu, now_ns| match kind {
        CLOCK_MEMORY => Ok(MEMORY_CLOCK_MHZ),
        0..=CLOCK_VIDEO => Ok(between(SM_CLOCK_MHZ, gpu.load(now_ns))),
        _ => Err(NvmlError::InvalidArgument),
    });
    // SAFETY: the caller's promise about the pointer.
    code(figure.and_then(|figure| unsafe { out::write(clock, figure) }))
}
