//! The real path: the built library, loaded by `nvml-wrapper`, moved by its control socket.
//!
//! Each test has its own copy of the library, hence its own state, and owns its clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint's exception for tests misses")]

use std::path::Path;
use std::time::Duration;
use std::{env, fs, process, thread};

use nvidia_ml::client::{Client, ClientError};
use nvidia_ml::library::{self, Installed};
use nvidia_ml::machine::command::{Answer, Command, GpuRef, LossMode, Process, ThrottleReason};
use nvidia_ml::machine::config::{ClockKind, Config, GpuConfig, PowerUsage};
use nvidia_ml::machine::error::NvmlError as Code;
use nvidia_ml::machine::waveform::Waveform;
use nvidia_ml::{CONFIG_VARIABLE, SOCKET_VARIABLE};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::event::EventData;
use nvml_wrapper::structs::device::FieldId;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

struct Fake {
    nvml: Nvml,
    client: Client,
    installed: Installed,
    _folder: TempDir,
}

fn load(library: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.as_os_str()).init()
}

fn fake_with(config: &Config) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let installed = library::install(folder.path(), config).unwrap();
    let nvml = load(&installed.library).unwrap();
    let client = Client::connect(&installed.socket).unwrap();
    Fake { nvml, client, installed, _folder: folder }
}

fn manual(gpus: Vec<GpuConfig>) -> Config {
    Config { gpus, clock: ClockKind::Manual, ..Config::default() }
}

fn fake(waveform: Waveform) -> Fake {
    let gpu = GpuConfig { waveform: Some(waveform), ..GpuConfig::default() };
    fake_with(&manual(vec![gpu, GpuConfig::default()]))
}

fn constant(watts: f64) -> Waveform {
    Waveform::Constant { watts }
}

fn figure(value: &SampleValue) -> u64 {
    match value {
        SampleValue::U32(figure) => u64::from(*figure),
        SampleValue::U64(figure) => *figure,
        other => panic!("{other:?}"),
    }
}

fn field(nvml: &Nvml, id: u32) -> Result<u64, NvmlError> {
    let device = nvml.device_by_index(0)?;
    let sample = device.field_values_for(&[FieldId(id)])?.remove(0)?;
    sample.value.map(|value| figure(&value))
}

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

#[test]
fn the_energy_counter_is_the_truth_to_a_millijoule() {
    let mut fake = fake(Waveform::Sine { low_watts: 99.0, high_watts: 699.0, period_seconds: 1.7 });
    let device = fake.nvml.device_by_index(0).unwrap();
    for step in 0..200 {
        let now_ns = fake.client.advance(Duration::from_nanos(17_654_321 * step)).unwrap();
        let truth = &fake.client.truth(Some(now_ns)).unwrap()[0];
        assert_eq!(device.total_energy_consumption().unwrap(), truth.energy_microjoules / 1_000);
        assert_eq!(field(&fake.nvml, 83).unwrap(), truth.energy_microjoules / 1_000);
    }
}

#[test]
fn on_the_real_clock_the_counter_lies_between_the_truths_around_it() {
    let gpu = GpuConfig { waveform: Some(constant(650.0)), ..GpuConfig::default() };
    let mut fake = fake_with(&Config { gpus: vec![gpu], ..Config::default() });
    let device = fake.nvml.device_by_index(0).unwrap();
    for _ in 0..50 {
        let before = fake.client.truth(None).unwrap()[0].energy_microjoules / 1_000;
        let counter = device.total_energy_consumption().unwrap();
        let after = fake.client.truth(None).unwrap()[0].energy_microjoules / 1_000;
        assert!((before..=after).contains(&counter), "{before} <= {counter} <= {after}");
    }
}

#[test]
fn average_power_lags_instant_power() {
    let mut fake = fake(Waveform::Steps { steps: vec![(0.0, 100.0), (10.0, 500.0)] });
    fake.client.advance(Duration::from_millis(10_250)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.power_usage().unwrap(), 200_000, "a mean of one second");
    assert_eq!((field(&fake.nvml, 185).unwrap(), field(&fake.nvml, 186).unwrap()), (200_000, 500_000));
    fake.client.advance(Duration::from_secs(1)).unwrap();
    assert_eq!(device.power_usage().unwrap(), 500_000);
}

#[test]
fn an_older_gpu_reports_instant_power_and_lacks_the_rest() {
    let waveform = Some(Waveform::Steps { steps: vec![(0.0, 100.0), (10.0, 500.0)] });
    let gpu = GpuConfig {
        power_usage: PowerUsage::Instant,
        energy_counter: false,
        power_fields: false,
        waveform,
        ..GpuConfig::default()
    };
    let mut fake = fake_with(&manual(vec![gpu]));
    fake.client.advance(Duration::from_millis(10_250)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.power_usage().unwrap(), 500_000);
    assert!(matches!(device.total_energy_consumption(), Err(NvmlError::NotSupported)));
    assert!(matches!(field(&fake.nvml, 83), Err(NvmlError::NotSupported)));
    assert!(matches!(field(&fake.nvml, 186), Err(NvmlError::NotSupported)));
}

#[test]
fn a_power_limit_clips_the_truth_and_says_so() {
    let mut fake = fake(constant(600.0));
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
    assert_eq!(device.enforced_power_limit().unwrap(), 700_000, "a limit does not survive a reload");
    assert_eq!(device.total_energy_consumption().unwrap(), 0);
    assert_eq!(fake.client.truth(None).unwrap()[0].energy_microjoules, 600_000_000, "the truth does");
}

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
fn utilisation_memory_temperature_and_clocks() {
    let mut fake = fake(constant(385.0));
    fake.client.advance(Duration::from_secs(2)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    let rates = device.utilization_rates().unwrap();
    assert_eq!((rates.gpu, rates.memory), (50, 25), "half way from 70 W to 700 W");
    let fixed = Command::Utilization { gpu: GpuRef::from(0), gpu_percent: Some(97), memory_percent: Some(3) };
    fake.client.apply(&fixed).unwrap();
    let rates = device.utilization_rates().unwrap();
    assert_eq!((rates.gpu, rates.memory), (97, 3));

    fake.client.apply(&Command::Memory { gpu: GpuRef::from(0), used_bytes: 5 << 30 }).unwrap();
    let memory = device.memory_info().unwrap();
    assert_eq!(memory.used, 5 << 30);
    assert_eq!(memory.total, memory.used + memory.free + memory.reserved);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 55);
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 1_244);
    assert_eq!(device.clock_info(Clock::Memory).unwrap(), 2_619);
    let idle = fake.nvml.device_by_index(1).unwrap();
    assert!(idle.current_throttle_reasons().unwrap().contains(ThrottleReasons::GPU_IDLE));
}

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
fn processes_and_their_use() {
    let mut fake = fake(constant(300.0));
    fake.client.advance(Duration::from_secs(1)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert!(device.running_compute_processes().unwrap().is_empty());
    assert!(matches!(device.process_utilization_stats(None), Err(NvmlError::NotFound)));
    let process = |pid, graphics: bool| Process {
        pid,
        memory_bytes: (!graphics).then_some(1 << 30),
        sm_percent: (!graphics).then_some(40),
        memory_percent: 10,
        graphics,
    };
    let processes = vec![process(71, false), process(72, false), process(73, true)];
    fake.client.apply(&Command::Processes { gpu: GpuRef::from(0), processes }).unwrap();
    let pids: Vec<u32> = device.running_compute_processes().unwrap().iter().map(|found| found.pid).collect();
    assert_eq!(pids, [71, 72]);
    assert_eq!(device.running_graphics_processes().unwrap()[0].pid, 73);
    let samples = device.process_utilization_stats(None).unwrap();
    assert_eq!((samples.len(), samples[0].sm_util, samples[0].timestamp), (2, 40, 1_000_000));
    assert!(matches!(device.process_utilization_stats(1_000_000), Err(NvmlError::NotFound)), "none since");
}

#[test]
fn counters_by_field() {
    let gpu = GpuConfig { pcie_receive_bytes_per_second: 3_000_000_000, ..GpuConfig::default() };
    let mut fake = fake_with(&manual(vec![gpu]));
    let throttle =
        Command::Throttle { gpu: GpuRef::from(0), reason: ThrottleReason::SwThermal, active: true };
    fake.client.apply(&throttle).unwrap();
    fake.client.advance(Duration::from_secs(2)).unwrap();
    assert_eq!(field(&fake.nvml, 198).unwrap(), 6_000_000_000 - (1 << 32), "byte counters wrap");
    // nvml-wrapper takes the numbers of older drivers and translates them for this one: 251 becomes 269.
    assert_eq!(field(&fake.nvml, 251).unwrap(), 2_000_000_000);
    let device = fake.nvml.device_by_index(0).unwrap();
    assert!(device.current_throttle_reasons().unwrap().contains(ThrottleReasons::SW_THERMAL_SLOWDOWN));
    let several = device.field_values_for(&[FieldId(83), FieldId(9_999)]).unwrap();
    assert!(several[0].as_ref().is_ok_and(|sample| sample.value.is_ok()));
    assert!(several[1].as_ref().is_ok_and(|sample| sample.value.is_err()), "each has its own answer");
}

#[test]
fn an_event_wakes_the_thread_that_waits_for_it() {
    let Fake { nvml, mut client, installed: _installed, _folder } = fake(constant(100.0));
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let set = nvml.create_event_set().unwrap();
            let device = nvml.device_by_index(0).unwrap();
            let set =
                device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|error| error.error);
            let event: EventData<'_> = set.unwrap().wait(600_000).unwrap();
            (event.device.index().unwrap(), event.event_data)
        });
        client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
        client.apply(&Command::Xid { gpu: GpuRef::from(0), xid: 79, recovery_action: Some(2) }).unwrap();
        let (index, data) = waits.join().unwrap();
        assert_eq!(index, 0);
        assert!(matches!(data, Some(XidError::Value(79))), "{data:?}");
    });
    assert_eq!(field(&nvml, 230).unwrap(), 2);
}

#[test]
fn an_event_wait_ends_at_its_timeout() {
    let Fake { nvml, mut client, installed: _installed, _folder } = fake(constant(100.0));
    thread::scope(|scope| {
        let waits = scope.spawn(|| nvml.create_event_set().unwrap().wait(500).unwrap_err());
        client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
        client.advance(499 * MS).unwrap();
        assert_eq!(client.calls().unwrap()["nvmlEventSetWait_v2"].waiting, 1);
        client.advance(MS).unwrap();
        assert!(matches!(waits.join().unwrap(), NvmlError::Timeout));
    });
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
fn bad_requests_get_an_error_answer() {
    let mut fake = fake(constant(100.0));
    for line in ["", "nonsense", r#"{"cmd":"explode"}"#, r#"{"cmd":"truth","extra":1}"#, "[]"] {
        assert!(matches!(fake.client.ask_raw(line), Ok(Answer::Error(_))), "{line:?}");
    }
    let unknown = Command::Memory { gpu: GpuRef::from("GPU-none"), used_bytes: 1 };
    assert!(matches!(fake.client.apply(&unknown), Err(ClientError::Refused(_))));
    let padded = |bytes: usize| format!(r#"{{"cmd":"truth"{}}}"#, " ".repeat(bytes - 15));
    assert!(matches!(fake.client.ask_raw(&padded(nvidia_ml::MAX_REQUEST_BYTES)), Ok(Answer::Gpus(_))));
    let oversized = padded(nvidia_ml::MAX_REQUEST_BYTES + 1);
    assert!(matches!(fake.client.ask_raw(&oversized), Ok(Answer::Error(_))));
    let mut other = Client::connect(&fake.installed.socket).unwrap();
    assert!(other.truth(None).is_ok(), "the fake goes on");
}

/// Runs in a process of its own, below, with the environment that it needs.
#[test]
#[ignore = "the other half of the_environment_names_configuration_and_socket"]
fn in_a_process_with_the_environment_set() {
    let nvml = load(&library::locate().unwrap()).unwrap();
    assert_eq!(nvml.device_count().unwrap(), 1);
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.name().unwrap(), "From the environment");
    let set = nvml.create_event_set().unwrap();
    let set =
        device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|error| error.error).unwrap();
    assert!(set.wait(60_000).is_ok());
}

#[test]
fn the_environment_names_configuration_and_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (config, socket) = (folder.path().join("config.json"), folder.path().join("socket"));
    fs::write(&config, r#"{"gpus":[{"name":"From the environment"}],"socket":"/nowhere/unused"}"#).unwrap();
    let mut child = process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "in_a_process_with_the_environment_set", "--ignored"])
        .env(CONFIG_VARIABLE, &config)
        .env(SOCKET_VARIABLE, &socket)
        .stdout(process::Stdio::null())
        .spawn()
        .unwrap();
    let mut client = Client::connect_within(&socket, PATIENCE).unwrap();
    client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
    client.apply(&Command::Xid { gpu: GpuRef::from(0), xid: 79, recovery_action: None }).unwrap();
    assert!(child.wait().unwrap().success());
}
