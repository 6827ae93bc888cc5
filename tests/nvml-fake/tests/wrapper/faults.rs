//! Lost GPUs, driver loads, and functions that hang, fail, crash, answer blanks or are not there.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;
use std::{env, fs, process, thread};

use nvidia_ml::client::Client;
use nvidia_ml::library;
use nvidia_ml::machine::command::{Command, GpuRef, LossMode};
use nvidia_ml::machine::config::{Config, GpuConfig};
use nvidia_ml::machine::error::NvmlError as Code;
use nvidia_ml::{CONFIG_VARIABLE, symbols};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use super::{Fake, PATIENCE, constant, fake, field, load, manual};

#[test]
fn a_lost_gpu_says_so_and_the_others_go_on() {
    let mut fake = fake(constant(300.0));
    let (lost, other) = (fake.nvml.device_by_index(0).unwrap(), fake.nvml.device_by_index(1).unwrap());
    let lose = |mode, functions| Command::Lose { gpu: GpuRef::from(0), mode, functions };
    fake.client.apply(&lose(LossMode::GpuIsLost, None)).unwrap();
    assert!(matches!(lost.power_usage(), Err(NvmlError::GpuLost)));
    assert!(matches!(lost.total_energy_consumption(), Err(NvmlError::GpuLost)));
    assert!(matches!(fake.nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert!(matches!(field(&fake.nvml, 186), Err(NvmlError::GpuLost)));
    assert_eq!(other.power_usage().unwrap(), 70_000);

    let only = vec!["nvmlDeviceGetPowerUsage".to_owned()];
    fake.client.apply(&lose(LossMode::GpuIsLost, Some(only))).unwrap();
    assert!(matches!(lost.power_usage(), Err(NvmlError::GpuLost)));
    assert!(lost.total_energy_consumption().is_ok(), "one call fails, another still answers");

    fake.client.apply(&lose(LossMode::NotFound, None)).unwrap();
    assert_eq!(fake.nvml.device_count().unwrap(), 1);
    assert_eq!(fake.nvml.device_by_index(0).unwrap().uuid().unwrap(), other.uuid().unwrap());
    assert_eq!(other.index().unwrap(), 0, "indices shift");
    assert!(matches!(
        fake.nvml.device_by_uuid("GPU-fa4e0000-0000-4000-8000-000000000000"),
        Err(NvmlError::NotFound)
    ));

    fake.client.advance(Duration::from_secs(1)).unwrap();
    fake.client.apply(&Command::Restore { gpu: GpuRef::from(0), restart_counters: false }).unwrap();
    assert_eq!(lost.total_energy_consumption().unwrap(), 300_000);
}

#[test]
fn a_hung_call_blocks_until_let_go() {
    const POWER: &str = "nvmlDeviceGetPowerUsage";
    let Fake { nvml, mut client, installed: _installed, _folder } = fake(constant(100.0));
    client.apply(&Command::Hang { function: POWER.to_owned() }).unwrap();
    thread::scope(|scope| {
        let hangs = scope.spawn(|| nvml.device_by_index(0).unwrap().power_usage().unwrap());
        client.wait_for_calls(POWER, PATIENCE, |calls| calls.waiting == 1).unwrap();
        assert_eq!(nvml.device_by_index(0).unwrap().total_energy_consumption().unwrap(), 0, "others answer");
        assert!(!hangs.is_finished());
        client.apply(&Command::Unhang { function: None }).unwrap();
        assert_eq!(hangs.join().unwrap(), 100_000);
    });
}

#[test]
fn functions_can_be_absent_or_fail() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = ["nvmlDeviceGetFieldValues", "nvmlDeviceGetCurrentClocksEventReasons"];
    let installed =
        library::install_without(folder.path(), &manual(vec![GpuConfig::default()]), &hidden).unwrap();
    let nvml = load(&installed.library).unwrap();
    assert!(matches!(field(&nvml, 186), Err(NvmlError::FailedToLoadSymbol(_))));
    assert!(nvml.device_by_index(0).unwrap().power_usage().is_ok());

    let mut client = Client::connect(&installed.socket).unwrap();
    let function = "nvmlDeviceSetPowerManagementLimit".to_owned();
    client.apply(&Command::Fail { function, error: Some(Code::NoPermission) }).unwrap();
    let mut device = nvml.device_by_index(0).unwrap();
    assert!(matches!(device.set_power_management_limit(300_000), Err(NvmlError::NoPermission)));

    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.fail.insert("nvmlInit_v2".to_owned(), Code::DriverNotLoaded);
    let installed = library::install(folder.path(), &config).unwrap();
    assert!(matches!(load(&installed.library), Err(NvmlError::DriverNotLoaded)));
}

#[test]
fn the_driver_outlives_the_library() {
    let Fake { nvml, mut client, installed, _folder } = fake(constant(100.0));
    client.advance(Duration::from_secs(3)).unwrap();
    nvml.shutdown().unwrap();
    let again = load(&installed.library).unwrap();
    assert_eq!(again.device_by_index(0).unwrap().total_energy_consumption().unwrap(), 300_000);
}

#[test]
fn a_driver_that_was_loaded_again_wants_a_new_initialisation() {
    let mut fake = fake(constant(100.0));
    fake.client.advance(Duration::from_secs(10)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    fake.client.apply(&Command::UnloadDriver).unwrap();
    assert!(matches!(device.total_energy_consumption(), Err(NvmlError::DriverNotLoaded)));
    assert!(matches!(load(&fake.installed.library), Err(NvmlError::DriverNotLoaded)));
    fake.client.apply(&Command::LoadDriver).unwrap();
    assert!(matches!(device.total_energy_consumption(), Err(NvmlError::Uninitialized)));
    let again = load(&fake.installed.library).unwrap();
    assert!(matches!(device.total_energy_consumption(), Err(NvmlError::InvalidArg)), "an old handle");
    fake.client.advance(Duration::from_secs(1)).unwrap();
    let device = again.device_by_index(0).unwrap();
    assert_eq!(device.total_energy_consumption().unwrap(), 100_000, "the counter began again");
}

#[test]
fn a_gpu_can_fail_a_few_calls_and_answer_blanks() {
    const POWER: &str = "nvmlDeviceGetPowerUsage";
    let mut fake = fake(constant(100.0));
    let (gpu, device) = (GpuRef::from(0), fake.nvml.device_by_index(0).unwrap());
    let (function, error) = (POWER.to_owned(), Some(Code::Unknown));
    let fail = Command::FailGpu { gpu: gpu.clone(), function, error, times: Some(1) };
    fake.client.apply(&fail).unwrap();
    assert!(matches!(device.power_usage(), Err(NvmlError::Unknown)));
    assert_eq!(device.power_usage().unwrap(), 100_000);

    for function in [POWER, "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature"] {
        let (gpu, function) = (gpu.clone(), function.to_owned());
        fake.client.apply(&Command::Blank { gpu, function, value: Some(u64::MAX >> 1) }).unwrap();
    }
    assert_eq!(device.power_usage().unwrap(), u32::MAX);
    assert_eq!(device.total_energy_consumption().unwrap(), 9_223_372_036_854_775_807);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), u32::MAX);
    let blank = Command::Field { gpu: gpu.clone(), field: 186, value: Some(4_294_967_295), error: None };
    fake.client.apply(&blank).unwrap();
    assert_eq!(field(&fake.nvml, 186).unwrap(), 4_294_967_295);
    let fails = Command::Field { gpu, field: 186, value: None, error: Some(Code::NoData) };
    fake.client.apply(&fails).unwrap();
    assert!(matches!(field(&fake.nvml, 186), Err(NvmlError::NoData)));
    assert!(field(&fake.nvml, 185).is_ok(), "each has its own return code");
}

#[test]
fn an_old_driver_lacks_what_came_later() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { driver_version: "470.256.02".to_owned(), ..Config::default() };
    let lacks = symbols::newer_than(470);
    let installed = library::install_without(folder.path(), &config, &lacks).unwrap();
    let nvml = load(&installed.library).unwrap();
    let device = nvml.device_by_index(0).unwrap();
    assert!(matches!(device.memory_info(), Err(NvmlError::FailedToLoadSymbol(_))));
    assert!(matches!(device.running_compute_processes(), Err(NvmlError::FailedToLoadSymbol(_))));
    assert!(matches!(device.gpm_support(), Err(NvmlError::FailedToLoadSymbol(_))));
    assert!(device.total_energy_consumption().is_ok() && device.mig_mode().is_ok());
}

/// Runs in a process of its own, below.
#[test]
#[ignore = "the other half of a_crash_takes_the_process_along"]
fn in_a_process_that_crashes() {
    let nvml = load(&library::locate().unwrap()).unwrap();
    let device = nvml.device_by_index(0).unwrap();
    assert!(device.name().is_ok());
    device.power_usage().unwrap();
}

#[test]
fn a_crash_takes_the_process_along() {
    const SIGABRT: i32 = 6;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    fs::write(&config, r#"{"crash":["nvmlDeviceGetPowerUsage"]}"#).unwrap();
    let child = process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "faults::in_a_process_that_crashes", "--ignored"])
        .env(CONFIG_VARIABLE, &config)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
}
