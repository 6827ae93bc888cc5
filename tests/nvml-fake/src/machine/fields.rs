//! `nvmlDeviceGetFieldValues`: figures by number.

use super::command::ThrottleReason;
use super::error::NvmlError;
use super::gpu::Gpu;

/// A field's value, in the type that it has in NVML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValue {
    /// `unsigned int`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
}

const POWER_POLICY_NS: u32 = 74;
const SYNC_BOOST_NS: u32 = 76;
const TOTAL_ENERGY: u32 = 83;
const POWER_AVERAGE: u32 = 185;
const POWER_INSTANT: u32 = 186;
const POWER_MIN_LIMIT: u32 = 187;
const POWER_MAX_LIMIT: u32 = 188;
const POWER_DEFAULT_LIMIT: u32 = 189;
const POWER_CURRENT_LIMIT: u32 = 190;
const ENERGY: u32 = 191;
const POWER_REQUESTED_LIMIT: u32 = 192;
const PCIE_TRANSMIT_BYTES: u32 = 197;
const PCIE_RECEIVE_BYTES: u32 = 198;
const RECOVERY_ACTION: u32 = 230;

const SCOPE_GPU: u32 = 0;
const SCOPE_MODULE: u32 = 1;
const SCOPE_MEMORY: u32 = 2;

/// First field of the thermal counters (software, hardware, power brake) of a driver: NVIDIA moved them with
/// 580.82.
fn first_thermal_field(driver_version: &str) -> u32 {
    let mut parts = driver_version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (580, 82) { 269 } else { 251 }
}

/// One field of a GPU. Power in milliwatts, energy in millijoules, counters of time in nanoseconds.
///
/// # Errors
/// `NotSupported` for an unknown field or a scope that the GPU lacks.
pub fn read(
    gpu: &Gpu,
    driver_version: &str,
    field: u32,
    scope: u32,
    now_ns: u64,
) -> Result<FieldValue, NvmlError> {
    if gpu.config.unsupported_fields.contains(&field) {
        return Err(NvmlError::NotSupported);
    }
    let config = &gpu.config;
    let value = match field {
        POWER_AVERAGE => FieldValue::U32(average_power(gpu, scope, now_ns)?),
        POWER_INSTANT => FieldValue::U32(instant_power(gpu, scope, now_ns)?),
        POWER_MIN_LIMIT..=POWER_CURRENT_LIMIT | POWER_REQUESTED_LIMIT => {
            FieldValue::U32(power_limit(gpu, field, scope)?)
        }
        TOTAL_ENERGY | ENERGY => FieldValue::U64(gpu.energy_millijoules(now_ns)?),
        POWER_POLICY_NS => FieldValue::U64(gpu.power_capped_ns(now_ns)),
        SYNC_BOOST_NS => FieldValue::U64(gpu.throttled_ns(ThrottleReason::SyncBoost, now_ns)),
        PCIE_TRANSMIT_BYTES => FieldValue::U64(gpu.pcie_bytes(config.pcie_transmit_bytes_per_second, now_ns)),
        PCIE_RECEIVE_BYTES => FieldValue::U64(gpu.pcie_bytes(config.pcie_receive_bytes_per_second, now_ns)),
        RECOVERY_ACTION => FieldValue::U32(gpu.recovery_action),
        thermal => {
            let reason = match thermal.wrapping_sub(first_thermal_field(driver_version)) {
                0 => ThrottleReason::SwThermal,
                1 => ThrottleReason::HwThermal,
                2 => ThrottleReason::HwPowerBrake,
                _ => return Err(NvmlError::NotSupported),
            };
            FieldValue::U64(gpu.throttled_ns(reason, now_ns))
        }
    };
    Ok(value)
}

/// A value of the type that a field has.
#[must_use]
pub fn typed(field: u32, value: u64) -> FieldValue {
    match field {
        POWER_AVERAGE..=POWER_CURRENT_LIMIT | POWER_REQUESTED_LIMIT | RECOVERY_ACTION => {
            FieldValue::U32(value as u32)
        }
        _ => FieldValue::U64(value),
    }
}

fn average_power(gpu: &Gpu, scope: u32, now_ns: u64) -> Result<u32, NvmlError> {
    match scope {
        SCOPE_MEMORY if gpu.config.power_fields => {
            gpu.config.memory_watts.map(milliwatts).ok_or(NvmlError::NotSupported)
        }
        _ => power(gpu, scope, gpu.average_milliwatts(now_ns)),
    }
}

fn instant_power(gpu: &Gpu, scope: u32, now_ns: u64) -> Result<u32, NvmlError> {
    power(gpu, scope, gpu.instant_milliwatts(now_ns))
}

/// Power of a scope, given that of the GPU, in milliwatts.
fn power(gpu: &Gpu, scope: u32, gpu_milliwatts: u32) -> Result<u32, NvmlError> {
    if !gpu.config.power_fields {
        return Err(NvmlError::NotSupported);
    }
    match scope {
        SCOPE_GPU => Ok(gpu_milliwatts),
        SCOPE_MODULE => {
            let extra = gpu.config.module_extra_watts.ok_or(NvmlError::NotSupported)?;
            Ok(gpu_milliwatts.saturating_add(milliwatts(extra)))
        }
        SCOPE_MEMORY => Err(NvmlError::NotSupported),
        _ => Err(NvmlError::InvalidArgument),
    }
}

/// A limit of the GPU, in milliwatts. The module has none here.
fn power_limit(gpu: &Gpu, field: u32, scope: u32) -> Result<u32, NvmlError> {
    let (min, max) = gpu.limit_constraints();
    match (scope, field) {
        (SCOPE_GPU, POWER_MIN_LIMIT) => Ok(min),
        (SCOPE_GPU, POWER_MAX_LIMIT) => Ok(max),
        (SCOPE_GPU, POWER_DEFAULT_LIMIT) => Ok(gpu.default_limit_milliwatts()),
        (SCOPE_GPU, POWER_CURRENT_LIMIT) => Ok(gpu.enforced_milliwatts()),
        (SCOPE_GPU, POWER_REQUESTED_LIMIT) => Ok(gpu.limit_milliwatts()),
        (SCOPE_MODULE | SCOPE_MEMORY, _) => Err(NvmlError::NotSupported),
        _ => Err(NvmlError::InvalidArgument),
    }
}

fn milliwatts(watts: f64) -> u32 {
    (watts * 1e3).round() as u32
}
