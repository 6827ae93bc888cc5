use std::path::Path;

use wattmill_protocol::{Energy, Source};

use super::*;
use crate::counter::Limits;
use crate::device::{Answer, Backend, BackendKind, Class, EnergyReading, Epoch, MeterId, Reading, Scope};

/// Windows close only when a test asks.
const NEVER: Duration = Duration::from_secs(86_400);

fn config(folder: &Path, text: &str) -> Config {
    let path = folder.join("agent.toml");
    let root = |name: &str| folder.join(name).display().to_string();
    let fixed = format!(
        "state_dir = {:?}\nsysfs_root = {:?}\nprocfs_root = {:?}\nnvml_library = \"\"\n",
        root("state"),
        root("sys"),
        root("proc"),
    );
    std::fs::create_dir_all(folder.join("state")).unwrap();
    std::fs::write(&path, fixed + text).unwrap();
    Config::load(Some(&path)).unwrap()
}

fn facts(config: &Config) -> NodeFacts {
    let state = &config.state_dir;
    let mut identity = crate::identity::load(state, &state.join("machine-id"), &config.procfs_root).unwrap();
    identity.boot_id = Some("boot".to_owned());
    NodeFacts::new(config, identity)
}

/// A meter over one CPU that counts a joule at each reading.
fn start(config: &Config) -> Meter {
    let mut raw = 0;
    let answer = move || {
        raw += 1_000_000;
        let energy = EnergyReading {
            meter: MeterId { class: Class::Zone, device: "package-0".to_owned(), source: Source::Counter },
            scope: Some(Scope::Cpu),
            raw,
            microjoules_per_count: 1,
            limits: Limits { modulus: None, max_per_second: 1e15 },
            epoch: Epoch::Process,
            at: clock::monotonic(),
            unread: 0,
        };
        Answer::Reading(Reading { energy: vec![energy], ..Reading::default() })
    };
    let backend = Backend::Scripted(BackendKind::Rapl, Box::new(answer));
    let round = Arc::<Round>::default();
    let threads = BackendThread::start(vec![backend], NEVER, &round).unwrap();
    // Up once it has answered for the first time.
    let now = clock::monotonic();
    threads[0].wait_since(Duration::ZERO, now + Duration::from_secs(10));
    let (store, found) = Store::open(&config.state_dir).unwrap();
    let node = facts(config);
    let core = open_ledger(found, &node, config);
    let config = Config {
        metering: crate::config::Metering { interval: NEVER, gpu_interval: NEVER },
        ..config.clone()
    };
    Meter::with_threads(&config, node, (Arc::default(), None), store, core, (threads, round)).unwrap()
}

fn job() -> JobId {
    "digits".parse().unwrap()
}

fn burn() {
    let pid = std::process::id();
    let until = clock::process_cpu_nanos(pid).unwrap() + 3_000_000;
    while clock::process_cpu_nanos(pid).unwrap() < until {
        std::hint::spin_loop();
    }
}

#[tokio::test]
async fn a_shard_computes_in_the_unit_of_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "[attribution]\nby = [\"systemd\"]\n");
    let pid = std::process::id();
    let process = folder.path().join("proc").join(pid.to_string());
    let cgroups = folder.path().join("sys/fs/cgroup");
    std::fs::create_dir_all(&process).unwrap();
    std::fs::create_dir_all(&cgroups).unwrap();
    std::fs::write(cgroups.join("cgroup.controllers"), "cpu\n").unwrap();
    std::fs::write(process.join("cgroup"), "0::/system.slice/wattmill-agent.service\n").unwrap();
    let meter = start(&config);
    meter.flush().await;
    meter.begin(Token(1), job(), pid);
    burn();
    meter.end(Token(1));
    let nanos = meter.shared.lock().core.shards.nanos_by_unit();
    let named: Vec<_> = nanos.iter().map(|(unit, nanos)| (unit.name.as_str(), *nanos > 0)).collect();
    assert_eq!(named, [("wattmill-agent.service", true)], "whose time it is then taken from");
}

#[tokio::test]
async fn a_short_shard_settles_at_the_flush_and_survives_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let meter = start(&config);
    meter.flush().await;
    let changed = meter.settlements_changed();
    meter.begin(Token(1), job(), std::process::id());
    burn();
    meter.end(Token(1));
    assert_eq!(meter.pending_settlements(), [], "not before its window is on disk");
    meter.begin(Token(2), job(), std::process::id());
    burn();
    meter.flush().await;
    let pending = meter.pending_settlements();
    assert_eq!((pending.len(), pending[0].sequence, pending[0].token), (1, 1, Token(1)));
    assert!(pending[0].energy.get(Source::Counter) > 0);
    assert_eq!((*changed.borrow(), meter.settled()), (1, 0));
    let running = meter.running();
    assert_eq!((running.len(), running[0].token), (1, Token(2)));
    assert!(running[0].energy > Energy::ZERO && running[0].power_watts > 0.0);
    let shown = meter.snapshots().borrow().meters.clone();

    // The agent is killed: nothing is closed, nothing flushed.
    std::mem::forget(meter);
    let meter = start(&config);
    assert_eq!(meter.snapshots().borrow().meters.keys().len(), 1);
    meter.flush().await;
    let pending = meter.pending_settlements();
    let numbers: Vec<_> = pending.iter().map(|s| (s.sequence, s.token.0)).collect();
    assert_eq!(numbers, [(1, 1), (2, 2)], "the shard that ran is settled with what was known");
    assert_eq!(pending[1].energy, running[0].energy);
    let after = meter.snapshots().borrow().meters.clone();
    for (meter, sum) in shown {
        assert!(after[&meter].microjoules >= sum.microjoules, "an exported sum never goes back");
    }
    meter.settled_through(1);
    assert_eq!((meter.pending_settlements().len(), meter.settled()), (1, 1));
    meter.stop().await;
    let mut snapshots = meter.snapshots();
    let ended = async { while snapshots.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the engine has ended");
}

#[tokio::test]
async fn a_lease_that_never_began_settles_with_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let meter = start(&config);
    meter.flush().await;
    meter.never_began(Token(1), job());
    meter.begin(Token(2), job(), std::process::id());
    meter.never_began(Token(2), job());
    burn();
    meter.end(Token(2));
    meter.flush().await;
    let pending = meter.pending_settlements();
    let settled: Vec<_> = pending.iter().map(|s| (s.token.0, s.energy > Energy::ZERO)).collect();
    assert_eq!(settled, [(1, false), (2, true)], "one that did begin keeps its joules");
    assert!(pending.iter().all(|s| !s.unrecorded));
    meter.stop().await;
}

#[tokio::test]
async fn only_a_lease_without_a_record_is_settled_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let meter = start(&config);
    meter.flush().await;
    meter.begin(Token(1), job(), std::process::id());
    burn();
    meter.flush().await;
    // Begun after the last window: nothing on disk knows of it.
    meter.begin(Token(2), job(), std::process::id());
    burn();
    std::mem::forget(meter);

    let meter = start(&config);
    meter.begin(Token(5), job(), std::process::id());
    for (token, unrecorded) in [(1, true), (2, true), (2, true), (5, false), (4, false)] {
        meter.account_for(Token(token), job(), unrecorded);
    }
    assert_eq!(meter.pending_settlements(), [], "not before it is on disk");
    meter.flush().await;
    for token in [1, 2, 4, 5] {
        meter.account_for(Token(token), job(), true);
    }
    meter.flush().await;
    let pending = meter.pending_settlements();
    let settled: Vec<_> =
        pending.iter().map(|s| (s.sequence, s.token.0, s.energy > Energy::ZERO, s.unrecorded)).collect();
    assert_eq!(settled, [(1, 1, true, false), (2, 2, false, true), (3, 4, false, false)]);
    assert_eq!(meter.running().len(), 1, "what runs goes on");
    meter.stop().await;
}

#[tokio::test]
async fn without_a_disk_metering_goes_on_and_nothing_is_owed_yet() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let meter = start(&config);
    meter.flush().await;
    std::fs::remove_dir_all(&config.state_dir).unwrap();
    meter.begin(Token(1), job(), std::process::id());
    burn();
    meter.end(Token(1));
    meter.flush().await;
    let snapshot = meter.snapshots().borrow().clone();
    assert_eq!(snapshot.ledger_errors, BTreeMap::from([("missing", 1)]));
    assert!(snapshot.attributed.values().any(|e| e.total() > 0));
    assert_eq!(meter.pending_settlements(), []);
    std::fs::create_dir_all(&config.state_dir).unwrap();
    meter.flush().await;
    assert_eq!(meter.pending_settlements().len(), 1);
    meter.stop().await;
}

#[tokio::test]
async fn flops_and_peaks_are_kept_and_configured_ones_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "[peak]\nflops = { cpu = 2.0e12, fast = 5.0 }\n");
    let meter = start(&config);
    meter.add_useful_flops(40);
    meter.set_peak_flops("cpu", "f32", 1.0);
    meter.set_peak_flops("fast", "f32", 7.0);
    meter.set_peak_flops("other", "f32", 3.0);
    meter.set_numerics("avx2/f32/1");
    meter.flush().await;
    let snapshot = meter.snapshots().borrow().clone();
    let peak = |device: &str| snapshot.peak_flops[&(device.to_owned(), "f32".to_owned())];
    assert!((peak("cpu") - 2.0e12).abs() < 1.0 && (peak("other") - 3.0).abs() < 1e-9);
    assert!((peak("fast") - 7.0).abs() < 1e-9, "what the device was seen to do is no less than its peak");
    assert_eq!((snapshot.useful_flops, snapshot.numerics.as_str()), (40, "avx2/f32/1"));
    std::mem::forget(meter);
    let meter = start(&config);
    assert_eq!(meter.snapshots().borrow().useful_flops, 40);
    meter.stop().await;
}

/// The whole path over a fixture tree: two packages, one of which wraps, an estimate that keeps silent.
#[tokio::test]
async fn a_fixture_host_is_metered_through_real_files() {
    let folder = tempfile::tempdir().unwrap();
    let zone = |zone: &str, file: &str, text: &str| {
        let path = folder.path().join("sys/class/powercap").join(zone);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(file), text).unwrap();
    };
    for (folder, name, energy) in [
        ("intel-rapl:0", "package-0", "65532000000"),
        ("intel-rapl:0:0", "dram", "5"),
        ("intel-rapl:1", "package-1", "7"),
        ("intel-rapl:2", "psys", "900"),
    ] {
        zone(folder, "name", name);
        zone(folder, "energy_uj", energy);
        zone(folder, "max_energy_range_uj", "65532610987");
    }
    std::fs::create_dir_all(folder.path().join("proc")).unwrap();
    std::fs::write(folder.path().join("proc/stat"), "cpu0 1 0 0 9 0 0 0 0 0 0\nbtime 9\n").unwrap();
    let config = config(folder.path(), "host_fraction = 0.5\n");
    let meter = Meter::start(&config, facts(&config), Arc::default(), None).unwrap();
    let mut snapshots = meter.snapshots();
    while snapshots.borrow().scopes.is_empty() {
        meter.flush().await;
        snapshots.borrow_and_update();
    }
    zone("intel-rapl:0", "energy_uj", "389013");
    zone("intel-rapl:0:0", "energy_uj", "105");
    zone("intel-rapl:1", "energy_uj", "1000007");
    std::fs::write(folder.path().join("proc/stat"), "cpu0 2 0 0 10 0 0 0 0 0 0\nbtime 9\n").unwrap();
    meter.flush().await;
    let snapshot = snapshots.borrow().clone();
    let scope = |scope| snapshot.scopes[&(scope, Source::Counter)].microjoules;
    assert_eq!(
        (scope(Scope::Cpu), scope(Scope::Dram)),
        (1_000_000, 50),
        "the wrap, both packages, half the host"
    );
    let devices: Vec<&str> = snapshot.meters.keys().map(|m| m.device.as_str()).collect();
    assert_eq!(devices, ["package-0", "package-0/dram", "package-1", "psys"]);
    let backends = snapshot.backends.iter().filter(|backend| backend.kind != BackendKind::Capacity);
    let backends: Vec<_> = backends.map(|b| (b.kind.as_str(), b.up)).collect();
    assert_eq!(backends, [("rapl", true), ("host", true)], "no estimate beside a meter");
    meter.stop().await;
}
