use std::sync::Arc;

use proptest::prelude::*;
use wattmill_protocol::JobId;

use super::*;
use crate::counter::Limits;
use crate::device::gpu::GpuReading;
use crate::device::host::HostReading;
use crate::device::{BackendKind, EnergyReading, Epoch, MeterId, Reading};

fn job() -> JobId {
    "digits".parse().unwrap()
}

fn meter(class: Class, device: &str, source: Source) -> MeterId {
    MeterId { class, device: device.to_owned(), source }
}

fn energy(meter: MeterId, scope: Option<Scope>, raw: u64, at: Duration) -> EnergyReading {
    let epoch = if meter.source == Source::Counter { Epoch::Hardware } else { Epoch::Process };
    EnergyReading {
        meter,
        scope,
        raw,
        microjoules_per_count: 1,
        limits: Limits { modulus: None, max_per_second: 1e12 },
        epoch,
        at,
        unread: 0,
    }
}

/// A host on the test's clock.
#[derive(Default)]
struct Bench {
    now: Duration,
    busy: u64,
    idle: u64,
    package: u64,
    dram: u64,
    gpu: u64,
    gpu_integrated: u64,
    utilization: f64,
}

impl Bench {
    fn views(&self) -> Vec<View> {
        let node_cpu = CpuTime { busy_nanos: self.busy, idle_nanos: self.idle };
        let host = HostReading { node_cpu, host_cpu: node_cpu, ..HostReading::default() };
        let zone = |device: &str| meter(Class::Zone, device, Source::Counter);
        let gpu = |source: Source| meter(Class::Gpu, "GPU-1", source);
        let energies = vec![
            energy(zone("package-0"), Some(Scope::Cpu), self.package, self.now),
            energy(zone("package-0/core"), None, self.package / 2, self.now),
            energy(zone("package-0/dram"), Some(Scope::Dram), self.dram, self.now),
            energy(gpu(Source::Counter), Some(Scope::Gpu), self.gpu, self.now),
            energy(gpu(Source::Integrated), None, self.gpu_integrated, self.now),
        ];
        let gpus = vec![GpuReading {
            uuid: "GPU-1".to_owned(),
            utilization: Some(self.utilization),
            ..GpuReading::default()
        }];
        let reading = Reading { energy: energies, gpus, host: Some(host.into()), ..Reading::default() };
        vec![View {
            kind: BackendKind::Host,
            present: true,
            up: true,
            starting: false,
            duration: Duration::ZERO,
            errors: BTreeMap::new(),
            reading: Some(Arc::new(reading)),
        }]
    }

    fn close(&mut self, core: &mut Core) {
        self.close_after(core, Duration::from_secs(1));
    }

    fn close_after(&mut self, core: &mut Core, elapsed: Duration) {
        self.now += elapsed;
        let views = self.views();
        core.close(&Window { elapsed, unix_nanos: 7, views: &views, places: &BTreeMap::new() });
        check(&core.ledger);
    }
}

/// The identity that everything stands on.
fn check(ledger: &Ledger) {
    for source in Source::ALL {
        let scopes: u64 =
            ledger.scopes.iter().filter(|((_, s), _)| *s == source).map(|(_, e)| e.microjoules).sum();
        let consumed: u64 = ledger.attributed.values().map(|e| e.get(source)).sum();
        assert_eq!(scopes, consumed, "{source:?}");
    }
}

fn core(ppm: u32) -> Core {
    let settings = Settings { host_fraction_ppm: ppm, cpu_count: 2, attribution: None };
    Core::new(Ledger::new("machine", Some("boot"), 1), Some("boot"), settings)
}

fn consumed(core: &Core, consumer: Consumer) -> u64 {
    core.ledger.attributed.get(&consumer).map_or(0, |e| e.total())
}

#[test]
fn energy_follows_cpu_time() {
    let (mut bench, mut core) = (Bench::default(), core(1_000_000));
    bench.close(&mut core);
    core.shards.begin(Token(1), job(), 5, &|_| Some(0));
    (bench.busy, bench.idle, bench.package, bench.dram) = (1_000, 1_000, 800, 80);
    core.read_shards(&|_| Some(500));
    bench.close(&mut core);
    let shard = &core.shards.running()[0];
    assert_eq!(shard.energy, Energy::of(Source::Counter, 220));
    assert!((shard.power_watts - 220e-6).abs() < 1e-12);
    assert_eq!((consumed(&core, Consumer::Other), consumed(&core, Consumer::Idle)), (220, 440));
    assert_eq!(core.cpu_utilization, Some(0.5));
    assert_eq!(core.ledger.meters[&meter(Class::Zone, "package-0/core", Source::Counter)].microjoules, 400);
}

#[test]
fn a_shard_settles_with_the_window_it_ends_in_and_sequences_have_no_gaps() {
    let (mut bench, mut core) = (Bench::default(), core(1_000_000));
    bench.close(&mut core);
    core.shards.begin(Token(1), job(), 5, &|_| Some(0));
    core.end(Token(1), &|_| Some(250));
    core.shards.begin(Token(2), job(), 5, &|_| Some(250));
    core.end(Token(2), &|_| Some(1_000));
    (bench.busy, bench.package) = (1_000, 4_000);
    bench.close(&mut core);
    let pending: Vec<_> =
        core.ledger.pending.iter().map(|s| (s.sequence, s.token.0, s.energy.total())).collect();
    assert_eq!(pending, [(1, 1, 1_000), (2, 2, 3_000)]);
    assert!(core.ledger.open.is_empty());
}

#[test]
fn a_share_of_the_host_counts_its_part_and_gpus_whole() {
    let (mut bench, mut core) = (Bench::default(), core(250_000));
    bench.close(&mut core);
    (bench.package, bench.gpu, bench.utilization) = (1_001, 999, 0.5);
    bench.close(&mut core);
    let scope = |scope| core.ledger.scopes[&(scope, Source::Counter)].microjoules;
    assert_eq!((scope(Scope::Cpu), scope(Scope::Gpu)), (250, 999));
    assert_eq!(core.ledger.meters[&meter(Class::Zone, "package-0", Source::Counter)].microjoules, 1_001);
    assert_eq!(consumed(&core, Consumer::Other), 500, "half of the GPU, by largest remainder");
    assert!((core.powers.scopes[&(Scope::Cpu, Source::Counter)] - 0.250_25e-3).abs() < 1e-9);
}

#[test]
fn without_host_figures_shards_get_no_more_than_their_time() {
    let (mut bench, mut core) = (Bench::default(), core(1_000_000));
    bench.close(&mut core);
    core.shards.begin(Token(1), job(), 5, &|_| Some(0));
    core.read_shards(&|_| Some(500_000_000));
    bench.package = 4_000;
    let mut views = {
        bench.now += Duration::from_secs(1);
        bench.views()
    };
    views[0].up = false;
    core.close(&Window {
        elapsed: Duration::from_secs(1),
        unix_nanos: 7,
        views: &views,
        places: &BTreeMap::new(),
    });
    check(&core.ledger);
    assert_eq!(core.shards.running()[0].energy.total(), 1_000, "half a second of two CPU seconds");
}

#[test]
fn a_killed_run_is_settled_and_its_energy_recovered() {
    let (mut bench, mut first) = (Bench::default(), core(1_000_000));
    bench.close(&mut first);
    first.shards.begin(Token(9), job(), 5, &|_| Some(0));
    (bench.busy, bench.package) = (100, 1_000);
    first.read_shards(&|_| Some(100));
    bench.close(&mut first);
    let settings = Settings { host_fraction_ppm: 1_000_000, cpu_count: 2, attribution: None };
    let mut second = Core::new(first.ledger, Some("boot"), settings);
    assert_eq!(second.ledger.pending.len(), 1);
    assert_eq!(second.ledger.pending[0].energy.total(), 1_000);
    second.shards.begin(Token(10), job(), 6, &|_| Some(0));
    bench.package = 6_000;
    bench.close(&mut second);
    assert_eq!(second.shards.running()[0].energy, Energy::ZERO, "drawn before it began");
    assert_eq!(consumed(&second, Consumer::Other), 5_000);
    assert_eq!(second.ledger.gaps.len(), 0);
}

#[test]
fn a_gap_is_counted_where_energy_went_unseen() {
    let (mut bench, mut core) = (Bench::default(), core(1_000_000));
    (bench.package, bench.gpu_integrated) = (1_000, 1_000);
    bench.close(&mut core);
    (bench.package, bench.gpu_integrated) = (1, 1);
    bench.close(&mut core);
    let gaps: Vec<_> = core.ledger.gaps.iter().map(|((d, r), n)| (d.as_str(), *r, *n)).collect();
    let reset = GapReason::Reset;
    assert_eq!(gaps, [("package-0", reset, 1), ("package-0/core", reset, 1)], "the GPU's counter went on");
}

/// RAPL cannot be read for a while, and the agent is killed meanwhile: the outage is the estimate's alone.
#[test]
fn an_outage_that_was_estimated_is_not_counted_again_after_a_restart() {
    let close = |core: &mut Core, seconds: u64, package: u64, estimate: Option<u64>| {
        let at = Duration::from_secs(seconds);
        let zone = meter(Class::Zone, "package-0", Source::Counter);
        let mut energies = vec![energy(zone, Some(Scope::Cpu), package, at)];
        if let Some(raw) = estimate {
            let host = meter(Class::Zone, "host", Source::Estimate);
            energies = vec![energy(host, Some(Scope::Cpu), raw, at)];
        }
        let reading = Reading { energy: energies, ..Reading::default() };
        let view = View { reading: Some(Arc::new(reading)), ..Bench::default().views().remove(0) };
        core.close(&Window {
            elapsed: Duration::from_secs(1),
            unix_nanos: 7,
            views: &[view],
            places: &BTreeMap::new(),
        });
        check(&core.ledger);
    };
    let mut first = core(1_000_000);
    close(&mut first, 1, 1_000, None);
    close(&mut first, 2, 0, Some(0));
    close(&mut first, 3, 0, Some(500));
    let settings = Settings { host_fraction_ppm: 1_000_000, cpu_count: 2, attribution: None };
    let mut second = Core::new(first.ledger, Some("boot"), settings);
    close(&mut second, 9, 9_000, None);
    close(&mut second, 10, 9_010, None);
    let scope = |source| second.ledger.scopes[&(Scope::Cpu, source)].microjoules;
    assert_eq!((scope(Source::Estimate), scope(Source::Counter)), (500, 10));
    assert_eq!(second.ledger.gaps, BTreeMap::from([(("package-0".to_owned(), GapReason::Substituted), 1)]));
}

/// A GPU that is not read in the first run after a reboot: its reading stays one of the boot before.
#[test]
fn a_reading_of_an_older_boot_is_never_taken_for_one_of_this() {
    let settings = || Settings { host_fraction_ppm: 1_000_000, cpu_count: 2, attribution: None };
    let (mut bench, mut first) = (Bench::default(), core(1_000_000));
    (bench.gpu, bench.package) = (5_000, 5_000);
    bench.close(&mut first);
    let ran_without_readings = Core::new(first.ledger, Some("boot 2"), settings());
    let mut third = Core::new(ran_without_readings.ledger, Some("boot 2"), settings());
    (bench.gpu, bench.package) = (9_000, 9_000);
    bench.close(&mut third);
    assert!(third.ledger.meters.values().all(|entry| entry.microjoules == 0), "{:?}", third.ledger.meters);
    let reboots = third.ledger.gaps.iter().filter(|((_, reason), _)| *reason == GapReason::Reboot);
    let devices: Vec<_> = reboots.map(|((device, _), times)| (device.as_str(), *times)).collect();
    let once = ["GPU-1", "package-0", "package-0/core", "package-0/dram"].map(|device| (device, 1));
    assert_eq!(devices, once);
}

#[test]
fn divergence_is_of_the_last_minute_whatever_the_interval() {
    for (millis, windows) in [(100, 600), (1_000, 60), (10_000, 6)] {
        let elapsed = Duration::from_millis(millis);
        let (mut bench, mut core) = (Bench::default(), core(1_000_000));
        bench.close_after(&mut core, elapsed);
        assert!(core.divergence().is_empty());
        for window in 0..2 * windows {
            bench.gpu += 1_000;
            bench.gpu_integrated += if window < windows { 2_000 } else { 1_100 };
            bench.close_after(&mut core, elapsed);
        }
        assert!((core.divergence()["GPU-1"] - 0.1).abs() < 1e-9);
        assert_eq!(core.divergence["GPU-1"].len(), windows, "{millis} ms");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Begin(u64),
    End(u64),
    Work(u64),
    Close { busy: u64, idle: u64, package: u64, dram: u64, gpu: u64 },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (1u64..6).prop_map(Op::Begin),
        (1u64..6).prop_map(Op::End),
        (0u64..1_000_000).prop_map(Op::Work),
        (0u64..1 << 32, 0u64..1 << 32, 0u64..1 << 30, 0u64..1 << 20, 0u64..1 << 30)
            .prop_map(|(busy, idle, package, dram, gpu)| Op::Close { busy, idle, package, dram, gpu }),
        Just(Op::Restart),
    ]
}

proptest! {
    #[test]
    fn every_microjoule_is_accounted_for_once(
        ops in proptest::collection::vec(op(), 1..80), ppm in 0u32..=1_000_000,
    ) {
        let (mut bench, mut core) = (Bench::default(), core(ppm));
        let mut cpu = 0u64;
        for op in ops {
            match op {
                Op::Begin(token) => core.shards.begin(Token(token), job(), 1, &|_| Some(cpu)),
                Op::End(token) => core.end(Token(token), &|_| Some(cpu)),
                Op::Work(nanos) => cpu += nanos,
                Op::Close { busy, idle, package, dram, gpu } => {
                    bench.busy += busy;
                    bench.idle += idle;
                    bench.package += package;
                    bench.dram += dram;
                    bench.gpu += gpu;
                    core.read_shards(&|_| Some(cpu));
                    bench.close(&mut core);
                }
                Op::Restart => {
                    let settings = Settings { host_fraction_ppm: ppm, cpu_count: 2, attribution: None };
                    core = Core::new(core.ledger, Some("boot"), settings);
                }
            }
            // Settled and open shards together are exactly what shards were given.
            let shards: u64 = core.ledger.pending.iter().map(|s| s.energy.total()).sum::<u64>()
                + core.shards.open().iter().map(|s| s.energy.total()).sum::<u64>();
            prop_assert_eq!(shards, consumed(&core, Consumer::Shards));
            let sequences: Vec<u64> = core.ledger.pending.iter().map(|s| s.sequence).collect();
            prop_assert_eq!(sequences, (1..=core.ledger.pending.len() as u64).collect::<Vec<_>>());
        }
    }
}
