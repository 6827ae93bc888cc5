//! Power limits and MIG.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use super::{code, driver, gpu_figures, on_gpu, out, slot};
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// First architecture with MIG: Ampere.
const FIRST_MIG_ARCHITECTURE: u32 = 7;

gpu_figures! {
    /// The limit that was set, in milliwatts.
    nvmlDeviceGetPowerManagementLimit(limit: c_uint) = |gpu, _| Ok(gpu.limit_milliwatts());
    /// The limit after a driver load, in milliwatts.
    nvmlDeviceGetPowerManagementDefaultLimit(limit: c_uint) = |gpu, _| Ok(gpu.default_limit_milliwatts());
    /// The limit in force, in milliwatts: here always that which was set.
    nvmlDeviceGetEnforcedPowerLimit(limit: c_uint) = |gpu, _| Ok(gpu.limit_milliwatts());
}

/// Least and largest limit, in milliwatts.
///
/// # Safety
/// Both pointers are null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerManagementLimitConstraints(
    device: nvmlDevice_t,
    min: *mut c_uint,
    max: *mut c_uint,
) -> nvmlReturn_t {
    let limits =
        on_gpu("nvmlDeviceGetPowerManagementLimitConstraints", device, |gpu, _| Ok(gpu.limit_constraints()));
    // SAFETY: the caller's promise about the pointers.
    code(limits.and_then(|(least, most)| unsafe { out::write(min, least).and(out::write(max, most)) }))
}

/// Sets the limit, in milliwatts. The fake does not ask who calls: `fail` it with `no_permission` for that.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceSetPowerManagementLimit(device: nvmlDevice_t, limit: c_uint) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceSetPowerManagementLimit";
    code(driver::call(NAME, |machine, now_ns| machine.gpu_mut(slot(device)?, NAME)?.set_limit(limit, now_ns)))
}

/// Whether MIG is on now, and after the next reset.
///
/// # Safety
/// Both pointers are null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    let mode = on_gpu("nvmlDeviceGetMigMode", device, |gpu, _| {
        if gpu.config.architecture < FIRST_MIG_ARCHITECTURE {
            return Err(NvmlError::NotSupported);
        }
        Ok(c_uint::from(gpu.config.mig))
    });
    // SAFETY: the caller's promise about the pointers.
    code(mode.and_then(|mode| unsafe { out::write(current, mode).and(out::write(pending, mode)) }))
}
