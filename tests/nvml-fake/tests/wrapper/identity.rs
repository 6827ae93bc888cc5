//! Which GPUs there are.

use nvml_wrapper::error::NvmlError;

use super::{constant, fake};

#[test]
fn what_identifies_a_gpu() {
    let fake = fake(constant(100.0));
    let nvml = &fake.nvml;
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "13.580.95.05");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    assert_eq!(nvml.device_count().unwrap(), 2);
    let device = nvml.device_by_index(1).unwrap();
    let uuid = device.uuid().unwrap();
    assert_eq!(uuid, "GPU-fa4e0000-0000-4000-8000-000000000001");
    assert_eq!(device.name().unwrap(), "NVIDIA H100 80GB HBM3");
    assert_eq!((device.index().unwrap(), device.minor_number().unwrap()), (1, 1));
    let pci = device.pci_info().unwrap();
    assert_eq!((pci.bus_id.as_str(), pci.bus), ("00000000:19:00.0", 0x19));
    assert_eq!(nvml.device_by_uuid(uuid).unwrap().index().unwrap(), 1);
    assert_eq!(nvml.device_by_pci_bus_id("0000:19:00.0").unwrap().index().unwrap(), 1);
    assert_eq!(device.architecture().unwrap().to_string(), "Hopper");
    assert!(!device.mig_mode().map(|mode| mode.current != 0).unwrap());
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-none"), Err(NvmlError::NotFound)));
}
