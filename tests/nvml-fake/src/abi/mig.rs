//! MIG: its mode, the devices of a GPU, and what identifies each.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlDeviceAttributes_t, nvmlReturn_t};

use super::{code, handle, on_device, on_gpu, out, whole};
use crate::machine::error::NvmlError;
use crate::machine::handle::Target;

const BYTES_PER_MIB: u64 = 1 << 20;

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
        if gpu.config.max_mig_devices == 0 {
            return Err(NvmlError::NotSupported);
        }
        Ok(c_uint::from(gpu.config.mig))
    });
    // SAFETY: the caller's promise about the pointers.
    code(mode.and_then(|mode| unsafe { out::write(current, mode).and(out::write(pending, mode)) }))
}

/// Whether the handle is that of a MIG device.
///
/// # Safety
/// `is_mig` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(
    device: nvmlDevice_t,
    is_mig: *mut c_uint,
) -> nvmlReturn_t {
    let answer = on_device("nvmlDeviceIsMigDeviceHandle", device, |_, target, _| {
        Ok(c_uint::from(target.mig.is_some()))
    });
    // SAFETY: the caller's promise about the pointer.
    code(answer.and_then(|answer| unsafe { out::write(is_mig, answer) }))
}

/// Most MIG devices that there can be: 0 where MIG is off or not there.
///
/// # Safety
/// `count` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    count: *mut c_uint,
) -> nvmlReturn_t {
    let most = on_gpu("nvmlDeviceGetMaxMigDeviceCount", device, |gpu, _| {
        Ok(if gpu.config.mig { gpu.config.max_mig_devices } else { 0 })
    });
    // SAFETY: the caller's promise about the pointer.
    code(most.and_then(|most| unsafe { out::write(count, most) }))
}

/// Handle of a MIG device by its place on the GPU.
///
/// # Safety
/// `mig` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    mig: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetMigDeviceHandleByIndex";
    let found = on_device(NAME, device, |machine, target, _| {
        let (slot, place) = (whole(target)?, index as usize);
        let gpu = machine.gpu(slot, NAME)?;
        gpu.mig_devices()?;
        if index >= gpu.config.max_mig_devices {
            return Err(NvmlError::InvalidArgument);
        }
        gpu.mig_device(place)?;
        Ok(handle(machine, Target { slot, mig: Some(place) }))
    });
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|found| unsafe { out::write(mig, found) }))
}

/// Handle of a MIG device's GPU.
///
/// # Safety
/// `device` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    mig: nvmlDevice_t,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let found = on_device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", mig, |machine, target, _| {
        target.mig.ok_or(NvmlError::InvalidArgument)?;
        Ok(handle(machine, Target::gpu(target.slot)))
    });
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|found| unsafe { out::write(device, found) }))
}

/// GPU instance and compute instance of a MIG device, on behalf of `function`.
fn instances(function: &'static str, device: nvmlDevice_t) -> Result<(u32, u32), NvmlError> {
    on_device(function, device, |machine, target, _| {
        let place = target.mig.ok_or(NvmlError::NotSupported)?;
        machine.gpu(target.slot, function)?.mig_instances(place)
    })
}

/// Number of a MIG device's GPU instance.
///
/// # Safety
/// `id` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    let found = instances("nvmlDeviceGetGpuInstanceId", device);
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|(gpu, _)| unsafe { out::write(id, gpu) }))
}

/// Number of a MIG device's compute instance.
///
/// # Safety
/// `id` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: nvmlDevice_t,
    id: *mut c_uint,
) -> nvmlReturn_t {
    let found = instances("nvmlDeviceGetComputeInstanceId", device);
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|(_, compute)| unsafe { out::write(id, compute) }))
}

/// What a MIG device consists of.
///
/// # Safety
/// `attributes` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    attributes: *mut nvmlDeviceAttributes_t,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetAttributes_v2";
    let found = on_device(NAME, device, |machine, target, _| {
        let place = target.mig.ok_or(NvmlError::NotSupported)?;
        let mig = machine.gpu(target.slot, NAME)?.mig_device(place)?;
        Ok(nvmlDeviceAttributes_t {
            multiprocessorCount: mig.multiprocessors,
            sharedCopyEngineCount: mig.slices,
            sharedDecoderCount: mig.slices,
            sharedEncoderCount: 0,
            sharedJpegCount: mig.slices,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: mig.slices,
            computeInstanceSliceCount: mig.slices,
            memorySizeMB: mig.memory_bytes / BYTES_PER_MIB,
        })
    });
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|found| unsafe { out::write(attributes, found) }))
}
