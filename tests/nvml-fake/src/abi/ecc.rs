//! Memory errors.

use std::ffi::c_ulonglong;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEccCounterType_enum_NVML_AGGREGATE_ECC as AGGREGATE,
    nvmlEccCounterType_enum_NVML_VOLATILE_ECC as VOLATILE, nvmlEccCounterType_t, nvmlEnableState_t,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED as CORRECTED,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED as UNCORRECTED, nvmlMemoryErrorType_t,
    nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_COUNT as LOCATIONS,
    nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_DEVICE_MEMORY as DEVICE_MEMORY, nvmlMemoryLocation_t,
    nvmlReturn_t,
};

use super::{code, figure, on_gpu, out};
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// Whether ECC is on now, and after the next reset.
///
/// # Safety
/// Both pointers are null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEccMode(
    device: nvmlDevice_t,
    current: *mut nvmlEnableState_t,
    pending: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    let mode = on_gpu("nvmlDeviceGetEccMode", device, |gpu, _| gpu.ecc().map(|_| 1));
    // SAFETY: the caller's promise about the pointers.
    code(mode.and_then(|mode| unsafe { out::write(current, mode).and(out::write(pending, mode)) }))
}

fn errors(
    gpu: &Gpu,
    error: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
) -> Result<c_ulonglong, NvmlError> {
    let counts = match counter {
        VOLATILE => gpu.ecc()?.volatile,
        AGGREGATE => gpu.ecc()?.aggregate,
        _ => return Err(NvmlError::InvalidArgument),
    };
    match error {
        CORRECTED => Ok(counts.corrected),
        UNCORRECTED => Ok(counts.uncorrected),
        _ => Err(NvmlError::InvalidArgument),
    }
}

/// Errors of all memories.
///
/// # Safety
/// `count` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    error: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    let found = figure("nvmlDeviceGetTotalEccErrors", device, |gpu, _| errors(gpu, error, counter));
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|found| unsafe { out::write(count, found) }))
}

/// Errors of one memory: all of them are of the device memory.
///
/// # Safety
/// `count` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryErrorCounter(
    device: nvmlDevice_t,
    error: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    location: nvmlMemoryLocation_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    let found = figure("nvmlDeviceGetMemoryErrorCounter", device, |gpu, _| match location {
        DEVICE_MEMORY => errors(gpu, error, counter),
        0..LOCATIONS => errors(gpu, error, counter).map(|_| 0),
        _ => Err(NvmlError::InvalidArgument),
    });
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|found| unsafe { out::write(count, found) }))
}
