//! Through the true FFI path, against the fake library.

use std::collections::BTreeMap;

use nvidia_ml::client::Client;
use nvidia_ml::library::{self, Installed};
use nvidia_ml::machine::command::{CallCount, Command, GpuRef, LossMode, Process, ThrottleReason};
use nvidia_ml::machine::config::{ClockKind, Config, GpuConfig, Preset};
use nvidia_ml::machine::error::NvmlError as Code;
use nvidia_ml::machine::waveform::Waveform;
use wattmill_protocol::Source;

mod accuracy;
mod counters;
mod events;
mod figures;
mod fuzz;
mod lost;
mod power;
mod uncertainty;

use super::*;
use crate::device::gpu::{GpuReading, Power, PowerLimits};
use crate::device::thread::BackendThread;
use crate::device::{Backend, EnergyReading, Scope};

const FIRST: &str = "GPU-fa4e0000-0000-4000-8000-000000000000";
const SECOND: &str = "GPU-fa4e0000-0000-4000-8000-000000000001";
/// For what other threads do.
const PATIENCE: Duration = Duration::from_secs(20);
const METERING: Metering =
    Metering { interval: Duration::from_secs(3_600), gpu_interval: Duration::from_secs(3_600) };

struct Bench {
    backend: NvmlBackend,
    client: Client,
    _folder: tempfile::TempDir,
}

fn install(config: &Config) -> (Installed, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (library::install(folder.path(), config).unwrap(), folder)
}

fn backend(installed: &Installed, wanted: Gpus) -> NvmlBackend {
    NvmlBackend::new(&installed.library, true, wanted, METERING)
}

fn bench(gpus: Vec<GpuConfig>) -> Bench {
    bench_of(&Config { gpus, ..Config::default() })
}

fn bench_of(config: &Config) -> Bench {
    let (installed, folder) = install(config);
    let mut backend = backend(&installed, Gpus::All);
    read(&mut backend);
    let client = Client::connect(&installed.socket).unwrap();
    Bench { backend, client, _folder: folder }
}

fn drawing(watts: f64) -> GpuConfig {
    GpuConfig { waveform: Some(Waveform::Constant { watts }), ..GpuConfig::default() }
}

fn read(backend: &mut NvmlBackend) -> Reading {
    match backend.read(true) {
        Answer::Reading(reading) => reading,
        other => panic!("{other:?}"),
    }
}

fn gpu<'a>(reading: &'a Reading, uuid: &str) -> &'a GpuReading {
    reading.gpus.iter().find(|gpu| gpu.uuid == uuid).unwrap()
}

fn energy<'a>(reading: &'a Reading, uuid: &str, source: Source) -> Option<&'a EnergyReading> {
    reading.energy.iter().find(|e| e.meter.device == uuid && e.meter.source == source)
}

fn apply(bench: &mut Bench, command: &Command) {
    bench.client.apply(command).unwrap();
}

fn fail(bench: &mut Bench, function: &str, error: Option<Code>) {
    apply(bench, &Command::Fail { function: function.to_owned(), error });
}

/// Calls of a function so far.
fn calls(bench: &mut Bench, function: &str) -> u64 {
    bench.client.calls().unwrap().get(function).map_or(0, |calls| calls.begun)
}

fn lose(bench: &mut Bench, mode: LossMode) {
    apply(bench, &Command::Lose { gpu: GpuRef::Slot(0), mode, functions: None });
}

#[test]
fn counters_tell_the_truth_and_power_is_integrated() {
    let mut bench = bench(vec![drawing(650.0), drawing(100.0)]);
    let truth = |client: &mut Client| client.truth(None).unwrap()[0].energy_microjoules;
    let before = truth(&mut bench.client) / 1_000;
    let first = read(&mut bench.backend);
    let after = truth(&mut bench.client) / 1_000;
    let counter = energy(&first, FIRST, Source::Counter).unwrap();
    assert!((before..=after).contains(&counter.raw), "{before} {} {after}", counter.raw);
    assert_eq!((counter.scope, counter.microjoules_per_count), (Some(Scope::Gpu), 1_000));
    let integrated = energy(&first, FIRST, Source::Integrated).unwrap();
    assert_eq!(integrated.scope, None, "it measures the same joules");
    let second = read(&mut bench.backend);
    let next = energy(&second, FIRST, Source::Integrated).unwrap();
    let seconds = (next.at - integrated.at).as_secs_f64();
    let watts = (next.raw - integrated.raw) as f64 / 1e6 / seconds;
    // The driver shows the mean of the last second, which may reach back to before the fake began.
    assert!((0.0..=650.1).contains(&watts), "{watts}");
}

#[test]
fn a_gpu_is_described() {
    let mut bench = bench(vec![drawing(650.0)]);
    let processes = vec![Process { pid: 4_711, ..Process::default() }];
    apply(&mut bench, &Command::Processes { gpu: GpuRef::Slot(0), processes });
    apply(
        &mut bench,
        &Command::Utilization { gpu: GpuRef::Slot(0), gpu_percent: Some(40), memory_percent: None },
    );
    let reading = read(&mut bench.backend);
    let gpu = gpu(&reading, FIRST);
    assert_eq!((gpu.index.as_str(), gpu.model.as_str(), gpu.up), ("0", "NVIDIA H100 80GB HBM3", true));
    assert_eq!((gpu.driver.as_str(), gpu.pci.as_str()), ("580.95.05", "00000000:18:00.0"));
    assert_eq!(gpu.utilization, Some(0.4));
    assert_eq!(gpu.limits.enforced, Some(700.0));
    assert_eq!(gpu.processes, Some(vec![4_711]));
    assert!(gpu.memory.is_some() && gpu.temperature_celsius.is_some() && gpu.sm_clock_hertz > Some(1e8));
    assert_eq!(reading.failures, Vec::<&str>::new());
}

#[test]
fn without_a_counter_the_integral_counts() {
    let mut bench = bench(vec![GpuConfig { energy_counter: false, ..drawing(300.0) }]);
    let reading = read(&mut bench.backend);
    assert_eq!(energy(&reading, FIRST, Source::Counter), None);
    assert_eq!(energy(&reading, FIRST, Source::Integrated).unwrap().scope, Some(Scope::Gpu));
    assert_eq!(reading.failures, Vec::<&str>::new(), "what is not supported is no failure");
}

#[test]
fn where_the_counter_tells_nothing_any_more_the_integral_counts_until_it_is_back() {
    let mut bench = bench(vec![drawing(300.0)]);
    let function = "nvmlDeviceGetTotalEnergyConsumption".to_owned();
    let scope = |reading: &Reading| energy(reading, FIRST, Source::Integrated).unwrap().scope;
    let before = read(&mut bench.backend);
    apply(&mut bench, &Command::Fail { function: function.clone(), error: Some(Code::Unknown) });
    let scopes: Vec<_> = (0..6).map(|_| scope(&read(&mut bench.backend))).collect();
    assert_eq!(scopes, [None, None, None, None, Some(Scope::Gpu), Some(Scope::Gpu)], "a few may fail");
    let failing = read(&mut bench.backend);
    assert!(gpu(&failing, FIRST).up && failing.failures == ["unknown"]);
    let counter = |reading: &Reading| energy(reading, FIRST, Source::Counter).unwrap().clone();
    assert_eq!(counter(&failing), counter(&before), "it stands still");
    apply(&mut bench, &Command::Fail { function, error: None });
    let back = read(&mut bench.backend);
    assert_eq!((scope(&back), counter(&back).scope), (None, Some(Scope::Gpu)));
    assert!(counter(&back).at <= energy(&back, FIRST, Source::Integrated).unwrap().at);
}

#[test]
fn a_counter_that_fails_from_the_start_leaves_the_integral_to_count() {
    let fail = [("nvmlDeviceGetTotalEnergyConsumption".to_owned(), Code::Unknown)].into();
    let (installed, _folder) = install(&Config { fail, ..Config::default() });
    let reading = read(&mut backend(&installed, Gpus::All));
    assert_eq!(energy(&reading, FIRST, Source::Counter), None);
    assert_eq!(energy(&reading, FIRST, Source::Integrated).unwrap().scope, Some(Scope::Gpu));
}

#[test]
fn an_old_driver_without_the_symbol_counts_by_integration() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetMemoryInfo_v2"];
    let installed = library::install_without(folder.path(), &Config::default(), &hidden).unwrap();
    let reading = read(&mut backend(&installed, Gpus::All));
    assert_eq!(energy(&reading, FIRST, Source::Integrated).unwrap().scope, Some(Scope::Gpu));
    assert!(gpu(&reading, FIRST).up && gpu(&reading, FIRST).memory.is_some(), "by the older call");
}

#[test]
fn only_the_nodes_gpus_are_read_and_a_missing_one_is_lost() {
    let (installed, _folder) = install(&Config::default());
    let wanted = Gpus::Listed(vec![SECOND.to_owned(), "GPU-none".to_owned()]);
    let reading = read(&mut backend(&installed, wanted));
    let seen: Vec<_> = reading.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.up)).collect();
    assert_eq!(seen, [(SECOND, true), ("GPU-none", false)]);
}

#[test]
fn no_library_is_a_normal_host_unless_it_was_named() {
    let nowhere = Path::new("/nonexistent/libnvidia-ml.so.1");
    let mut normal = NvmlBackend::new(nowhere, false, Gpus::All, METERING);
    assert_eq!(normal.read(false), Answer::Absent);
    assert_eq!(normal.read(false), Answer::Absent);
    for (explicit, wanted) in [(true, Gpus::All), (false, Gpus::Listed(vec![FIRST.to_owned()]))] {
        let mut named = NvmlBackend::new(nowhere, explicit, wanted, METERING);
        for _ in 0..3 {
            assert!(matches!(named.read(false), Answer::Failed(e) if e.reason == "library"), "each time");
        }
    }
    let fail = [("nvmlInit_v2".to_owned(), Code::DriverNotLoaded)].into();
    let (installed, _folder) = install(&Config { fail, ..Config::default() });
    let mut backend = backend(&installed, Gpus::All);
    for _ in 0..3 {
        assert!(matches!(backend.read(false), Answer::Failed(e) if e.reason == "driver_not_loaded"));
    }
}

#[test]
fn a_driver_that_hangs_takes_nobody_along() {
    let (installed, _folder) = install(&Config::default());
    let backend = Backend::Nvml(Box::new(backend(&installed, Gpus::All)));
    let thread =
        BackendThread::start(vec![backend], Duration::from_secs(3_600), &Arc::default()).unwrap().remove(0);
    thread.wait_since(Duration::ZERO, clock::monotonic() + PATIENCE);
    assert!(thread.view(clock::monotonic()).up);
    let mut client = Client::connect(&installed.socket).unwrap();
    let function = "nvmlDeviceGetFieldValues";
    client.apply(&Command::Hang { function: function.to_owned() }).unwrap();
    thread.ask();
    client.wait_for_calls(function, PATIENCE, |calls| calls.waiting > 0).unwrap();
    let view = thread.view(clock::monotonic() + Duration::from_secs(3 * 3_600));
    assert!(!view.up && view.reading.is_some() && view.errors.contains_key("timeout"));
    thread.stop();
    client.apply(&Command::Unhang { function: None }).unwrap();
}
