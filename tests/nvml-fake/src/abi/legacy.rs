//! Former names and forms, which drivers keep beside the newer ones: all that an old driver has.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlProcessInfo_v1_t,
    nvmlProcessInfo_v2_t, nvmlReturn_t,
};

use super::device::{
    nvmlDeviceGetCount_v2, nvmlDeviceGetHandleByIndex_v2, nvmlDeviceGetHandleByPciBusId_v2,
    nvmlDeviceGetPciInfo_v3,
};
use super::process::infos;
use super::{code, driver, events, out};

/// As `nvmlInit_v2`.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit() -> nvmlReturn_t {
    code(driver::init("nvmlInit"))
}

/// As `nvmlDeviceGetCount_v2`, in whose name it counts.
///
/// # Safety
/// `count` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount(count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: the caller's promise is the one that is asked for.
    unsafe { nvmlDeviceGetCount_v2(count) }
}

/// As `nvmlDeviceGetHandleByIndex_v2`, in whose name it counts.
///
/// # Safety
/// `device` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise is the one that is asked for.
    unsafe { nvmlDeviceGetHandleByIndex_v2(index, device) }
}

/// As `nvmlDeviceGetHandleByPciBusId_v2`, in whose name it counts.
///
/// # Safety
/// `bus_id` is null or a NUL-terminated string; `device` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId(
    bus_id: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise is the one that is asked for.
    unsafe { nvmlDeviceGetHandleByPciBusId_v2(bus_id, device) }
}

/// As `nvmlDeviceGetPciInfo_v3`, in whose name it counts.
///
/// # Safety
/// `pci` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v2(
    device: nvmlDevice_t,
    pci: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise is the one that is asked for.
    unsafe { nvmlDeviceGetPciInfo_v3(device, pci) }
}

/// As `nvmlEventSetWait_v2`, whose instances were not yet there: the fake has none for an event either way.
///
/// # Safety
/// `data` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise about the pointer.
    unsafe { events::wait("nvmlEventSetWait", set, data, timeout_ms) }
}

/// Functions that list processes in a former form, given as `name(element) = graphics, form`.
macro_rules! process_lists {
    ($($(#[$doc:meta])* $name:ident($type:ty) = $graphics:expr, $form:expr;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `count` is null or valid for reads and writes; `infos` is null or valid for writes of `*count`
        /// elements.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            device: nvmlDevice_t,
            count: *mut c_uint,
            infos: *mut $type,
        ) -> nvmlReturn_t {
            let found = self::infos(stringify!($name), device, $graphics);
            let found = found.map(|found| found.into_iter().map($form).collect::<Vec<$type>>());
            // SAFETY: the caller's promise about the pointers.
            code(found.and_then(|found| unsafe { out::write_array(count, infos, &found) }))
        }
    )+};
}

process_lists! {
    /// Compute processes, without instances.
    nvmlDeviceGetComputeRunningProcesses(nvmlProcessInfo_v1_t) = false, first_form;
    /// Compute processes.
    nvmlDeviceGetComputeRunningProcesses_v2(nvmlProcessInfo_v2_t) = false, |info| info;
    /// Graphics processes, without instances.
    nvmlDeviceGetGraphicsRunningProcesses(nvmlProcessInfo_v1_t) = true, first_form;
    /// Graphics processes.
    nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlProcessInfo_v2_t) = true, |info| info;
}

fn first_form(info: nvmlProcessInfo_t) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t { pid: info.pid, usedGpuMemory: info.usedGpuMemory }
}
