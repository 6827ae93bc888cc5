//! Memory of a GPU or a MIG device.

use std::ffi::c_uint;
use std::ptr;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlReturn_t};

use super::out::{self, Blank, MEMORY_V2};
use super::{code, on_device};
use crate::machine::Machine;
use crate::machine::error::NvmlError;
use crate::machine::handle::Target;

/// Memory in bytes.
struct Figures {
    total: u64,
    reserved: u64,
    used: u64,
}

/// Memory of a device. That of a GPU across its MIG devices is for root alone.
fn read(machine: &Machine, target: Target, function: &str) -> Result<Figures, NvmlError> {
    let gpu = machine.gpu(target.slot, function)?;
    match target.mig {
        Some(place) => {
            let total = gpu.mig_device(place)?.memory_bytes;
            Ok(Figures { total, reserved: 0, used: gpu.mig_used_bytes(place).min(total) })
        }
        None if gpu.config.mig && machine.check_root().is_err() => Err(NvmlError::NoPermission),
        None => Ok(Figures {
            total: gpu.config.memory_bytes,
            reserved: gpu.config.memory_reserved_bytes,
            used: gpu.used_bytes(),
        }),
    }
}

/// Something made of a device's memory on behalf of `function`, unless a test wants a blank value.
fn on_memory<T: Blank>(
    function: &'static str,
    device: nvmlDevice_t,
    make: impl FnOnce(Figures) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    on_device(function, device, |machine, target, _| match machine.blank(target.slot, function) {
        Some(value) => Ok(T::blank(value)),
        None => make(read(machine, target, function)?),
    })
}

/// Memory in bytes; reserved memory counts as used.
///
/// # Safety
/// `memory` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_t,
) -> nvmlReturn_t {
    let figures = on_memory("nvmlDeviceGetMemoryInfo", device, |memory| {
        let used = memory.used + memory.reserved;
        Ok(nvmlMemory_t { total: memory.total, free: memory.total.saturating_sub(used), used })
    });
    // SAFETY: the caller's promise about the pointer.
    code(figures.and_then(|figures| unsafe { out::write(memory, figures) }))
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
    let version: Option<c_uint> =
        (!memory.is_null()).then(|| unsafe { ptr::addr_of!((*memory).version).read() });
    let figures = on_memory("nvmlDeviceGetMemoryInfo_v2", device, |memory| match version {
        None => Err(NvmlError::InvalidArgument),
        Some(MEMORY_V2) => {
            let Figures { total, reserved, used } = memory;
            let free = total.saturating_sub(reserved + used);
            Ok(nvmlMemory_v2_t { version: MEMORY_V2, total, reserved, free, used })
        }
        Some(_) => Err(NvmlError::ArgumentVersionMismatch),
    });
    // SAFETY: the caller's promise about the pointer.
    code(figures.and_then(|figures| unsafe { out::write(memory, figures) }))
}
