//! Which GPUs there are, and what identifies each.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlDeviceArchitecture_t, nvmlPciInfo_t, nvmlReturn_t};

use super::{code, driver, gpu_figures, handle, on_device, out};
use crate::machine::Machine;
use crate::machine::config::PciAddress;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;
use crate::machine::handle::Target;

/// Number of GPUs on the bus.
///
/// # Safety
/// `count` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    let number = driver::call("nvmlDeviceGetCount_v2", |machine, _| Ok(machine.present().count()));
    // SAFETY: the caller's promise about the pointer.
    code(
        number
            .and_then(|number| unsafe { out::write(count, c_uint::try_from(number).unwrap_or(c_uint::MAX)) }),
    )
}

/// Finds a device on behalf of `function` and writes its handle.
///
/// # Safety
/// `device` is null or valid for a write.
unsafe fn write_handle(
    function: &'static str,
    device: *mut nvmlDevice_t,
    find: impl FnOnce(&Machine) -> Result<Target, NvmlError>,
) -> nvmlReturn_t {
    let found = driver::call(function, |machine, now_ns| {
        let number = machine.handle(find(machine)?);
        machine.enter(number, function, now_ns).map(|target| handle(machine, target))
    });
    // SAFETY: the caller's promise about the pointer.
    code(found.and_then(|found| unsafe { out::write(device, found) }))
}

/// Handle of a GPU by its NVML index, which shifts when a GPU is gone.
///
/// # Safety
/// `device` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let find = |machine: &Machine| {
        let slot = machine.present().nth(index as usize);
        slot.map(Target::gpu).ok_or(NvmlError::InvalidArgument)
    };
    // SAFETY: the caller's promise about the pointer.
    unsafe { write_handle("nvmlDeviceGetHandleByIndex_v2", device, find) }
}

/// Handle of a GPU or a MIG device by UUID.
///
/// # Safety
/// `uuid` is null or a NUL-terminated string; `device` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise about the string.
    let uuid = unsafe { out::read_text(uuid) };
    let find = |machine: &Machine| machine.find_uuid(&uuid?);
    // SAFETY: the caller's promise about the pointer.
    unsafe { write_handle("nvmlDeviceGetHandleByUUID", device, find) }
}

/// Handle of a GPU by PCI bus id, with or without a domain.
///
/// # Safety
/// `bus_id` is null or a NUL-terminated string; `device` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    bus_id: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise about the string.
    let bus_id = unsafe { out::read_text(bus_id) };
    let find = |machine: &Machine| {
        let address = PciAddress::parse(&bus_id?).ok_or(NvmlError::InvalidArgument)?;
        machine.find(|gpu| gpu.pci == address).map(Target::gpu)
    };
    // SAFETY: the caller's promise about the pointer.
    unsafe { write_handle("nvmlDeviceGetHandleByPciBusId_v2", device, find) }
}

/// UUID.
///
/// # Safety
/// `uuid` is null or valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetUUID";
    let text = on_device(NAME, device, |machine, target, _| {
        let gpu = machine.gpu(target.slot, NAME)?;
        target.mig.map_or_else(|| Ok(gpu.uuid.clone()), |place| gpu.mig_uuid(place))
    });
    // SAFETY: the caller's promise about the buffer.
    code(text.and_then(|text| unsafe { out::write_text(uuid, length, &text) }))
}

/// Product name.
///
/// # Safety
/// `name` is null or valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetName";
    let text = on_device(NAME, device, |machine, target, _| {
        let gpu = machine.gpu(target.slot, NAME)?;
        target.mig.map_or_else(|| Ok(gpu.config.name.clone()), |place| gpu.mig_name(place))
    });
    // SAFETY: the caller's promise about the buffer.
    code(text.and_then(|text| unsafe { out::write_text(name, length, &text) }))
}

/// NVML index: the number of counted GPUs before this one, or a MIG device's place on its GPU.
///
/// # Safety
/// `index` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetIndex";
    let place = on_device(NAME, device, |machine, target, _| {
        let counted = || machine.present().position(|other| other == target.slot);
        target.mig.or_else(counted).ok_or(NvmlError::NotFound)
    });
    // SAFETY: the caller's promise about the pointer.
    code(place.and_then(|place| unsafe { out::write(index, c_uint::try_from(place).unwrap_or(c_uint::MAX)) }))
}

/// Minor number of the device file: the place in the configuration, which does not shift.
///
/// # Safety
/// `minor` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetMinorNumber";
    let place = on_device(NAME, device, |_, target, _| super::whole(target));
    // SAFETY: the caller's promise about the pointer.
    code(place.and_then(|place| unsafe { out::write(minor, c_uint::try_from(place).unwrap_or(c_uint::MAX)) }))
}

gpu_figures! {
    /// PCI address and ids.
    nvmlDeviceGetPciInfo_v3(pci: nvmlPciInfo_t) = |gpu, _| Ok(nvmlPciInfo_t {
        busIdLegacy: out::text_array(&gpu.pci.legacy_bus_id()),
        domain: gpu.pci.domain,
        bus: gpu.pci.bus,
        device: gpu.pci.device,
        pciDeviceId: gpu.config.pci_device_id,
        pciSubSystemId: gpu.config.pci_subsystem_id,
        busId: out::text_array(&gpu.pci.bus_id()),
    });
    /// Architecture number.
    nvmlDeviceGetArchitecture(architecture: nvmlDeviceArchitecture_t) = |gpu, _| Ok(gpu.config.architecture);
}
