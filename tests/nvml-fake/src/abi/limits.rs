//! Power limits.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use super::{code, gpu_figures, on_device, on_gpu, out, whole};
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

gpu_figures! {
    /// The limit that was set, in milliwatts.
    nvmlDeviceGetPowerManagementLimit(limit: c_uint) = |gpu, _| Ok(gpu.limit_milliwatts());
    /// The limit after a driver load, in milliwatts.
    nvmlDeviceGetPowerManagementDefaultLimit(limit: c_uint) = |gpu, _| Ok(gpu.default_limit_milliwatts());
    /// The least of all limits, in milliwatts.
    nvmlDeviceGetEnforcedPowerLimit(limit: c_uint) = |gpu, _| Ok(gpu.enforced_milliwatts());
    /// Whether limits are obeyed: always.
    nvmlDeviceGetPowerManagementMode(mode: c_uint) = |_, _| Ok(1);
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

/// Sets the limit, in milliwatts. Only root may, as the configuration or a test says; the process's own user
/// does not count.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceSetPowerManagementLimit(device: nvmlDevice_t, limit: c_uint) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceSetPowerManagementLimit";
    code(on_device(NAME, device, |machine, target, now_ns| {
        machine.check_root()?;
        machine.gpu_mut(whole(target)?, NAME)?.set_limit(limit, now_ns)
    }))
}
