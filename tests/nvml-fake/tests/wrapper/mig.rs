//! MIG devices, and GPM.

use std::time::Duration;

use nvidia_ml::machine::command::{Command, GpuRef, Process};
use nvidia_ml::machine::config::{GpuConfig, MigConfig, Preset};
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::gpm_metrics_get;

use super::{constant, fake, fake_with, manual};

#[test]
fn under_mig_utilisation_is_unsupported() {
    let fake = fake_with(&manual(vec![GpuConfig { mig: true, ..GpuConfig::default() }]));
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.mig_mode().unwrap().current, 1);
    assert!(matches!(device.utilization_rates(), Err(NvmlError::NotSupported)));
    assert!(matches!(device.process_utilization_stats(None), Err(NvmlError::NotSupported)));
    assert!(device.power_usage().is_ok(), "power is of the whole GPU");
}

#[test]
fn mig_devices_have_identities_memory_and_processes_of_their_own() {
    let large = MigConfig { slices: 3, memory_bytes: 40 << 30, ..MigConfig::default() };
    let gpu = GpuConfig { mig: true, mig_devices: vec![MigConfig::default(), large], ..GpuConfig::default() };
    let mut fake = fake_with(&manual(vec![gpu]));
    let process = |pid, mig_device| Process {
        pid,
        memory_bytes: Some(1 << 30),
        mig_device: Some(mig_device),
        ..Process::default()
    };
    let processes = vec![process(71, 0), process(72, 1)];
    fake.client.apply(&Command::Processes { gpu: GpuRef::from(0), processes }).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.mig_device_count().unwrap(), 7, "as many as there can be");
    assert!(matches!(device.mig_device_by_index(2), Err(NvmlError::NotFound)));
    let mig = device.mig_device_by_index(1).unwrap();
    assert!(mig.mig_is_mig_device_handle().unwrap() && !device.mig_is_mig_device_handle().unwrap());
    let uuid = mig.uuid().unwrap();
    assert_eq!(uuid, "MIG-fa4e0000-0000-4000-8000-000000000000-1");
    assert_eq!(mig.name().unwrap(), "NVIDIA H100 80GB HBM3 MIG 3g.40gb");
    assert_eq!(fake.nvml.device_by_uuid(uuid).unwrap().index().unwrap(), 1);
    assert_eq!(mig.mig_parent_device().unwrap().uuid().unwrap(), device.uuid().unwrap());
    assert_eq!(mig.attributes().unwrap().gpu_instance_slice_count, 3);
    assert_eq!(mig.memory_info().unwrap().used, 1 << 30);
    let found = &mig.running_compute_processes().unwrap()[0];
    assert_eq!((found.pid, found.gpu_instance_id), (72, Some(2)));
    assert!(matches!(mig.utilization_rates(), Err(NvmlError::NotSupported)));
    assert!(matches!(mig.power_usage(), Err(NvmlError::NotSupported)), "power is of the whole GPU");
    assert!(matches!(device.running_compute_processes(), Err(NvmlError::NoPermission)));
    fake.client.apply(&Command::Root { allowed: true }).unwrap();
    assert_eq!(device.running_compute_processes().unwrap().len(), 2);
}

#[test]
fn gpm_means_are_those_between_two_samples() {
    let mut fake = fake(constant(385.0));
    let device = fake.nvml.device_by_index(0).unwrap();
    assert!(device.gpm_support().unwrap());
    let first = device.gpm_sample().unwrap();
    fake.client.advance(Duration::from_secs(1)).unwrap();
    let second = device.gpm_sample().unwrap();
    let wanted = [GpmMetricId::SmUtil, GpmMetricId::DramBwUtil, GpmMetricId::Fp64Util];
    let metrics = gpm_metrics_get(&fake.nvml, &first, &second, &wanted).unwrap();
    let sm = metrics[0].as_ref().unwrap();
    assert_eq!((sm.value, sm.metric_info.unit.as_str()), (50.0, "%"), "half way from 70 W to 700 W");
    assert_eq!(metrics[1].as_ref().unwrap().value, 25.0);
    assert!(matches!(metrics[2], Err(NvmlError::NotSupported)), "each has its own answer");
    assert!(matches!(gpm_metrics_get(&fake.nvml, &second, &first, &wanted), Err(NvmlError::InvalidArg)));
    let ada = fake_with(&manual(vec![Preset::L40s.gpu()]));
    let device = ada.nvml.device_by_index(0).unwrap();
    assert!(!device.gpm_support().unwrap());
    assert!(matches!(device.gpm_sample(), Err(NvmlError::NotSupported)));
}
