//! What changes slowly: utilisation, memory, processes, partitions; and libraries that lack some of it.

use nvidia_ml::machine::config::MigConfig;
use nvidia_ml::symbols;

use super::*;
use crate::device::nvml::ffi::Handle;
use crate::device::nvml::gpm::Gpm;

fn processes(bench: &mut Bench, processes: Vec<Process>) -> Option<Vec<u32>> {
    apply(bench, &Command::Processes { gpu: GpuRef::Slot(0), processes });
    let reading = read(&mut bench.backend);
    assert_eq!(reading.failures, Vec::<&str>::new());
    gpu(&reading, FIRST).processes.clone()
}

#[test]
fn who_computes_on_a_gpu_is_known_those_that_came_and_went_too() {
    let mut bench = bench(vec![drawing(300.0)]);
    let process = |pid, graphics, sm_percent| Process { pid, graphics, sm_percent, ..Process::default() };
    assert_eq!(processes(&mut bench, vec![]), Some(vec![]), "NOT_FOUND is nobody, and no lost GPU");
    assert_eq!(
        processes(&mut bench, vec![process(9, false, None), process(4, false, Some(50))]),
        Some(vec![4, 9])
    );
    // A desktop that draws nothing does not compute; one that does is seen by what it used.
    let seen = processes(
        &mut bench,
        vec![process(1, true, None), process(2, true, Some(0)), process(3, true, Some(7))],
    );
    assert_eq!(seen, Some(vec![3]));
}

#[test]
fn memory_that_is_a_blank_is_absent() {
    let mut bench = bench(vec![drawing(300.0)]);
    for blank in [u64::MAX, u64::from(u32::MAX), i64::MAX as u64] {
        let function = "nvmlDeviceGetMemoryInfo_v2".to_owned();
        apply(&mut bench, &Command::Blank { gpu: GpuRef::Slot(0), function, value: Some(blank) });
        assert_eq!(gpu(&read(&mut bench.backend), FIRST).memory, None, "{blank}");
    }
}

#[test]
fn utilisation_is_the_mean_between_two_samples_where_gpm_is() {
    let (installed, _folder) =
        install(&Config { clock: ClockKind::Manual, gpus: vec![drawing(385.0)], ..Config::default() });
    let nvml = Arc::new(Nvml::builder().lib_path(installed.library.as_os_str()).init().unwrap());
    let mut client = Client::connect(&installed.socket).unwrap();
    let handle = Handle::by_uuid(&nvml, FIRST).unwrap();
    let mut gpm = Gpm::of(&handle, &nvml);
    let mut utilization = |seconds| gpm.utilization(&handle, Duration::from_secs(seconds)).unwrap();
    assert_eq!(utilization(1), None, "one sample says nothing");
    client.advance(Duration::from_secs(1)).unwrap();
    assert_eq!(utilization(2), Some(0.5));
    assert_eq!(utilization(2), Some(0.5), "too soon for another");
    client.advance(Duration::from_secs(1)).unwrap();
    client
        .apply(&Command::Fail { function: "nvmlGpmSampleGet".to_owned(), error: Some(Code::NoPermission) })
        .unwrap();
    assert_eq!(utilization(3), None, "the plain figure serves from now on");
    drop(gpm);
    let calls = client.calls().unwrap();
    assert_eq!(calls["nvmlGpmSampleAlloc"].begun, calls["nvmlGpmSampleFree"].begun, "nothing is leaked");
}

#[test]
fn a_partitioned_gpu_shows_its_parts_and_no_utilisation_that_it_lacks() {
    let part = |slices| MigConfig { slices, ..MigConfig::default() };
    let mig = |gpm| GpuConfig { mig: true, gpm, mig_devices: vec![part(1), part(3)], ..drawing(300.0) };
    let mut bench = bench(vec![mig(false)]);
    let on = |pid, place| Process { pid, mig_device: Some(place), ..Process::default() };
    assert_eq!(processes(&mut bench, vec![on(5, 1), on(6, 0)]), Some(vec![6, 5]), "without being root");
    let reading = read(&mut bench.backend);
    let now = gpu(&reading, FIRST);
    assert_eq!((now.up, now.utilization, now.power.instant.gpu), (true, None, Some(300.0)));
    let parts: Vec<_> = now.mig.iter().map(|i| (i.gpu_instance, i.compute_instance, i.slices)).collect();
    assert_eq!(parts, [(Some(1), Some(0), Some(1)), (Some(2), Some(0), Some(3))]);
    assert!(now.mig.iter().all(|i| i.uuid.starts_with("MIG-") && i.memory_bytes > Some(1 << 30)));
    assert_eq!(calls(&mut bench, "nvmlDeviceGetUtilizationRates"), 0);
    let off = Command::Mig { gpu: GpuRef::Slot(0), enabled: false, devices: vec![] };
    apply(&mut bench, &off);
    let reading = read(&mut bench.backend);
    assert!(gpu(&reading, FIRST).mig.is_empty() && gpu(&reading, FIRST).utilization.is_some());
}

#[test]
fn an_old_driver_shows_what_it_has() {
    for branch in [390, 418, 450, 470, 510, 535, 550] {
        let folder = tempfile::tempdir().unwrap();
        let hidden = symbols::newer_than(branch);
        let installed = library::install_without(folder.path(), &Config::default(), &hidden).unwrap();
        let reading = read(&mut backend(&installed, Gpus::All));
        let first = gpu(&reading, FIRST);
        assert!(first.up && first.memory.is_some() && !reading.energy.is_empty(), "{branch}: {first:?}");
        assert_eq!(reading.failures, Vec::<&str>::new(), "{branch}");
    }
}

/// What cannot be done without: the way in and the way to a GPU.
const NEEDED: [&str; 5] = [
    "nvmlInit_v2",
    "nvmlShutdown",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetUUID",
];

#[test]
fn each_other_symbol_may_lack() {
    let mut bench = bench(vec![drawing(300.0)]);
    read(&mut bench.backend);
    let called: Vec<String> = bench.client.calls().unwrap().into_keys().collect();
    for symbol in called.iter().filter(|symbol| !NEEDED.contains(&symbol.as_str())) {
        // A handle by UUID is how a GPU is known.
        if symbol == "nvmlDeviceGetHandleByUUID" {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let installed =
            library::install_without(folder.path(), &Config::default(), &[symbol.as_str()]).unwrap();
        let mut backend = backend(&installed, Gpus::All);
        read(&mut backend);
        let reading = read(&mut backend);
        assert!(gpu(&reading, FIRST).up && !reading.energy.is_empty(), "without {symbol}");
        assert_eq!(reading.failures, Vec::<&str>::new(), "without {symbol}");
    }
}
