//! Power limits.

use std::time::Duration;

use nvidia_ml::machine::command::{Command, GpuRef};
use nvidia_ml::machine::config::{Config, GpuConfig};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::error::NvmlError;

use super::{constant, fake, fake_with, field, load, manual};

#[test]
fn a_power_limit_clips_the_truth_and_says_so() {
    let gpu = GpuConfig { waveform: Some(constant(600.0)), ..GpuConfig::default() };
    let mut fake = fake_with(&Config { root: true, ..manual(vec![gpu]) });
    let mut device = fake.nvml.device_by_index(0).unwrap();
    let limits = device.power_management_limit_constraints().unwrap();
    assert_eq!((limits.min_limit, limits.max_limit), (200_000, 700_000));
    assert_eq!(device.power_management_limit_default().unwrap(), 700_000);
    assert!(matches!(device.set_power_management_limit(199_999), Err(NvmlError::InvalidArg)));
    device.set_power_management_limit(300_000).unwrap();
    fake.client.advance(Duration::from_secs(2)).unwrap();
    assert_eq!(device.enforced_power_limit().unwrap(), 300_000);
    assert_eq!(device.power_management_limit().unwrap(), 300_000);
    assert_eq!(device.total_energy_consumption().unwrap(), 600_000);
    assert!(device.current_throttle_reasons().unwrap().contains(ThrottleReasons::SW_POWER_CAP));
    assert_eq!(field(&fake.nvml, 74).unwrap(), 2_000_000_000);
    fake.client.apply(&Command::ReloadDriver).unwrap();
    let again = load(&fake.installed.library).unwrap();
    let device = again.device_by_index(0).unwrap();
    assert_eq!(device.enforced_power_limit().unwrap(), 700_000, "a limit does not survive a reload");
    assert_eq!(device.total_energy_consumption().unwrap(), 0);
    assert_eq!(fake.client.truth(None).unwrap()[0].energy_microjoules, 600_000_000, "the truth does");
}

#[test]
fn only_root_sets_limits() {
    let mut fake = fake(constant(600.0));
    let mut device = fake.nvml.device_by_index(0).unwrap();
    assert!(matches!(device.set_power_management_limit(300_000), Err(NvmlError::NoPermission)));
    fake.client.apply(&Command::Root { allowed: true }).unwrap();
    device.set_power_management_limit(300_000).unwrap();
    fake.client.apply(&Command::Cap { gpu: GpuRef::from(0), watts: Some(250.0) }).unwrap();
    assert_eq!(device.power_management_limit().unwrap(), 300_000);
    assert_eq!(device.enforced_power_limit().unwrap(), 250_000, "somebody else holds less");
}

#[test]
fn processes_share_limits_as_they_share_a_driver() {
    let folder = tempfile::tempdir().unwrap();
    let limits_file = Some(folder.path().join("limits.json"));
    let gpu = GpuConfig { waveform: Some(constant(600.0)), ..GpuConfig::default() };
    let config = Config { root: true, limits_file, ..manual(vec![gpu]) };
    // A copy of the library has its own state, as if it were in its own process.
    let (setter, mut reader) = (fake_with(&config), fake_with(&config));
    let mut device = setter.nvml.device_by_index(0).unwrap();
    device.set_power_management_limit(300_000).unwrap();
    drop(setter);
    let device = reader.nvml.device_by_index(0).unwrap();
    assert_eq!(device.enforced_power_limit().unwrap(), 300_000);
    reader.client.advance(Duration::from_secs(2)).unwrap();
    assert_eq!(device.total_energy_consumption().unwrap(), 600_000, "and obeyed");
    let late = fake_with(&config);
    assert_eq!(late.nvml.device_by_index(0).unwrap().power_management_limit().unwrap(), 300_000);
    reader.client.apply(&Command::ReloadDriver).unwrap();
    assert_eq!(late.nvml.device_by_index(0).unwrap().power_management_limit().unwrap(), 700_000);
}
