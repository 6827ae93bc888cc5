//! Event sets. A set's handle is its number, which is never 0 and never dereferenced.

use std::ffi::{c_uint, c_ulonglong};
use std::ptr;
use std::time::Duration;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_t};

use super::{code, driver, gpu_figures, handle, on_device, out, whole};
use crate::machine::SUPPORTED_EVENTS;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;
use crate::machine::handle::Target;

gpu_figures! {
    /// Bitmask of the events that can be registered: Xid and double-bit ECC.
    nvmlDeviceGetSupportedEventTypes(kinds: c_ulonglong) = |_, _| Ok(SUPPORTED_EVENTS);
}

/// Creates a set.
///
/// # Safety
/// `set` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let number = driver::call("nvmlEventSetCreate", |machine, _| {
        if set.is_null() { Err(NvmlError::InvalidArgument) } else { Ok(machine.events.create()) }
    });
    // SAFETY: the caller's promise about the pointer.
    code(number.and_then(|number| unsafe { out::write(set, ptr::without_provenance_mut(number)) }))
}

/// Watches a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    kinds: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceRegisterEvents";
    code(on_device(NAME, device, |machine, target, _| {
        machine.events.register(set.addr(), whole(target)?, kinds)
    }))
}

/// Waits for an event on behalf of `function`.
///
/// # Safety
/// `data` is null or valid for a write.
pub(super) unsafe fn wait(
    function: &'static str,
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    let set = set.addr();
    let timeout = Duration::from_millis(u64::from(timeout_ms));
    let filled = driver::wait(function, timeout, |machine| {
        let event = machine.next_event(set, function)?;
        Ok(event.map(|event| nvmlEventData_t {
            device: handle(machine, Target::gpu(event.slot)),
            eventType: event.kind,
            eventData: event.data,
            gpuInstanceId: c_uint::MAX,
            computeInstanceId: c_uint::MAX,
        }))
    });
    // SAFETY: the caller's promise about the pointer.
    code(filled.and_then(|filled| unsafe { out::write(data, filled) }))
}

/// Waits for an event for at most `timeout_ms`. A lost GPU in the set is an error at once.
///
/// # Safety
/// `data` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise about the pointer.
    unsafe { wait("nvmlEventSetWait_v2", set, data, timeout_ms) }
}

/// Frees a set.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    code(driver::call("nvmlEventSetFree", |machine, _| machine.events.free(set.addr())))
}
