use proptest::prelude::*;
use wattmill_protocol::{JobId, Token};

use super::super::core::{Core, Settings};
use super::*;
use crate::counter::Limits;
use crate::device::host::HostReading;
use crate::device::host::stat::CpuTime;
use crate::device::thread::View;
use crate::device::units::UnitKind;
use crate::device::{BackendKind, Class, EnergyReading, Epoch, MeterId, Reading};
use crate::ledger::{Consumer, Ledger};

const SECOND: Duration = Duration::from_secs(1);
const NANOS: u64 = 1_000_000_000;

fn unit(name: &(impl ToString + ?Sized)) -> Arc<Unit> {
    Arc::new(Unit { kind: UnitKind::Systemd, name: name.to_string() })
}

/// A host of four CPUs, of which the node has all or two, on the test's clock.
struct Bench {
    now: Duration,
    unix_nanos: u64,
    node: CpuTime,
    host: CpuTime,
    units: BTreeMap<Arc<Unit>, u64>,
    /// When units were last read; `None` while they cannot be.
    units_at: Option<Duration>,
    package: u64,
    gpu: u64,
    gpu_reading: GpuReading,
    places: BTreeMap<u32, Arc<Unit>>,
}

impl Bench {
    fn new() -> Self {
        Self {
            now: SECOND,
            unix_nanos: NANOS,
            node: CpuTime::default(),
            host: CpuTime::default(),
            units: BTreeMap::new(),
            units_at: Some(SECOND),
            package: 0,
            gpu: 0,
            gpu_reading: GpuReading { uuid: "GPU-1".to_owned(), up: true, ..GpuReading::default() },
            places: BTreeMap::new(),
        }
    }

    fn core(top: usize, ledger: Ledger) -> Core {
        let kinds = [UnitKind::Systemd].into();
        let attribution = (top > 0).then(|| Attribution { kinds, top, retention: 10 * SECOND });
        let settings = Settings { host_fraction_ppm: 370_001, cpu_count: 4, attribution };
        Core::new(ledger, Some("boot"), settings)
    }

    /// Busy and idle time of a window of the whole host, all of it this node's.
    fn ran(&mut self, busy: u64, idle: u64) {
        for time in [&mut self.node, &mut self.host] {
            time.busy_nanos += busy;
            time.idle_nanos += idle;
        }
    }

    fn used(&mut self, name: &(impl ToString + ?Sized), nanos: u64) {
        *self.units.entry(unit(name)).or_default() += nanos;
    }

    fn close(&mut self, core: &mut Core) {
        self.now += SECOND;
        self.unix_nanos += NANOS;
        if let Some(at) = &mut self.units_at {
            *at = self.now;
        }
        self.close_now(core);
    }

    /// Closes a window of a second with the readings as they are.
    fn close_now(&mut self, core: &mut Core) {
        let energy = |class, device: &str, scope, raw| EnergyReading {
            meter: MeterId { class, device: device.to_owned(), source: Source::Counter },
            scope: Some(scope),
            raw,
            microjoules_per_count: 1,
            limits: Limits { modulus: None, max_per_second: 1e12 },
            epoch: Epoch::Hardware,
            at: self.now,
            unread: 0,
        };
        let units = UnitsReading { at: self.units_at.unwrap_or_default(), nanos: self.units.clone() };
        let reading = Reading {
            energy: vec![
                energy(Class::Zone, "package-0", Scope::Cpu, self.package),
                energy(Class::Gpu, "GPU-1", Scope::Gpu, self.gpu),
            ],
            gpus: vec![self.gpu_reading.clone()],
            host: Some(Arc::new(HostReading {
                node_cpu: self.node,
                host_cpu: self.host,
                ..HostReading::default()
            })),
            units: self.units_at.map(|_| Arc::new(units)),
            ..Reading::default()
        };
        let view = View {
            kind: BackendKind::Units,
            present: true,
            up: true,
            starting: false,
            duration: Duration::ZERO,
            errors: BTreeMap::new(),
            reading: Some(Arc::new(reading)),
        };
        let window =
            Window { elapsed: SECOND, unix_nanos: self.unix_nanos, views: &[view], places: &self.places };
        core.close(&window);
        identity(&core.ledger);
    }
}

/// What everything stands on: consumers are the scopes, and units are their consumer, to the microjoule.
fn identity(ledger: &Ledger) {
    for source in Source::ALL {
        let scopes = ledger.scopes.iter().filter(|((_, s), _)| *s == source);
        let scopes: u64 = scopes.map(|(_, entry)| entry.microjoules).sum();
        let consumed: u64 = ledger.attributed.values().map(|energy| energy.get(source)).sum();
        assert_eq!(scopes, consumed, "{source:?}");
        let of =
            |sums: &Sums| sums.0.iter().filter(|((_, s), _)| *s == source).map(|(_, uj)| uj).sum::<u64>();
        let units = &ledger.units;
        let series = units.placed.values().map(|entry| &entry.sums).chain([&units.rest, &units.departed]);
        let units = ledger.attributed.get(&Consumer::Units).map_or(0, |energy| energy.get(source));
        assert_eq!(series.map(of).sum::<u64>(), units, "{source:?}");
    }
}

fn of(core: &Core, name: &(impl ToString + ?Sized)) -> Option<u64> {
    core.ledger.units.placed.get(unit(name).as_ref()).map(|entry| entry.sums.total())
}

fn consumed(core: &Core, consumer: Consumer) -> u64 {
    core.ledger.attributed.get(&consumer).map_or(0, |energy| energy.total())
}

fn job() -> JobId {
    "digits".parse().unwrap()
}

/// A core whose node is the whole host, with `names` placed.
fn placed(bench: &mut Bench, top: usize, names: &[&str]) -> Core {
    let mut core = Bench::core(top, Ledger::new("machine", Some("boot"), 1));
    bench.close(&mut core);
    names.iter().for_each(|name| bench.used(name, 0));
    bench.close(&mut core);
    for name in names {
        bench.used(name, NANOS);
    }
    bench.ran(names.len() as u64 * NANOS, NANOS);
    bench.package += 1_000_000;
    bench.close(&mut core);
    assert_eq!(core.ledger.units.placed.len(), top.min(names.len()));
    core
}

#[test]
fn joules_follow_cpu_time_from_when_a_unit_has_a_place() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 5, &["a", "b"]);
    assert_eq!((of(&core, "a"), of(&core, "b")), (Some(0), Some(0)), "what was before is the rest's");
    let before = (consumed(&core, Consumer::Other), consumed(&core, Consumer::Idle));
    bench.used("a", NANOS);
    bench.used("b", 2 * NANOS);
    bench.ran(4 * NANOS, 4 * NANOS);
    bench.package += 8_000_000;
    bench.close(&mut core);
    // 37.0001 % of the host's joules are this node's: of 8 J in all 2.960008 J.
    assert_eq!((of(&core, "a"), of(&core, "b")), (Some(370_001), Some(740_002)));
    let after = (consumed(&core, Consumer::Other), consumed(&core, Consumer::Idle));
    assert_eq!((after.0 - before.0, after.1 - before.1), (370_001, 1_480_004));
    let watts = core.units.watts(Some(&unit("b")), (Scope::Cpu, Source::Counter));
    assert!(watts.is_some_and(|watts| (watts - 0.740_002).abs() < 1e-9), "{watts:?}");
}

#[test]
fn a_shards_time_is_not_its_units_as_well() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 5, &["agent", "b"]);
    core.shards.begin(Token(1), job(), 5, &|_| Some(0));
    core.shards.place(Token(1), Some(unit("agent")));
    let mut clock = 0;
    let before = consumed(&core, Consumer::Shards);
    // Shards are read a bit ahead of units, then a bit behind: over time the unit has what is left.
    for (shard, agent) in [(110, 100), (90, 100), (100, 130), (100, 100)] {
        clock += shard * NANOS / 100;
        bench.used("agent", agent * NANOS / 100);
        bench.ran(2 * NANOS, 0);
        bench.package += 2_000_000;
        core.read_shards(&|_| Some(clock));
        bench.close(&mut core);
    }
    let shards = consumed(&core, Consumer::Shards) - before;
    assert!((1_470_000..=1_490_000).contains(&shards), "half of 8 J, of which 37 % count: {shards}");
    let agent = of(&core, "agent").unwrap();
    assert!((110_000..=112_000).contains(&agent), "0.3 s of 8 s: {agent}");
}

#[test]
fn on_a_part_of_the_host_units_have_a_part_of_their_time() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 5, &["a"]);
    bench.used("a", 3 * NANOS);
    bench.node.busy_nanos += NANOS;
    bench.node.idle_nanos += NANOS;
    bench.host.busy_nanos += 4 * NANOS;
    bench.package += 2_000_000;
    bench.close(&mut core);
    // Three quarters of what was busy on this node's CPUs: 0.75 of 2 s.
    assert_eq!(of(&core, "a"), Some(277_501));
}

#[test]
fn a_late_reading_counts_for_its_window_alone() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 5, &["a"]);
    let at = bench.units_at;
    bench.used("a", NANOS);
    bench.ran(NANOS, NANOS);
    bench.package += 2_000_000;
    bench.now += SECOND;
    let units = std::mem::take(&mut bench.units);
    bench.units = BTreeMap::from([(unit("a"), NANOS)]);
    bench.close_now(&mut core);
    assert_eq!((of(&core, "a"), bench.units_at), (Some(0), at), "what is not told is others'");
    bench.units = units;
    bench.used("a", NANOS);
    bench.ran(NANOS, NANOS);
    bench.package += 2_000_000;
    bench.close(&mut core);
    assert_eq!(of(&core, "a"), Some(370_001), "a second of two, not two");
    bench.units_at = None;
    bench.used("a", NANOS);
    bench.ran(NANOS, NANOS);
    bench.package += 2_000_000;
    bench.close(&mut core);
    bench.units_at = Some(bench.now);
    bench.close(&mut core);
    assert_eq!(of(&core, "a"), Some(370_001), "nor what nobody saw");
}

#[test]
fn a_gpu_is_of_those_that_are_known_to_use_it() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 5, &["a", "b"]);
    bench.places = BTreeMap::from([(7, unit("a")), (8, unit("b")), (9, unit("a"))]);
    let mut draw = |processes: &[u32], percent: &[(u32, u32)], utilization| {
        bench.gpu_reading.processes = Some(processes.to_vec());
        bench.gpu_reading.use_percent = percent.iter().copied().collect();
        bench.gpu_reading.utilization = utilization;
        bench.gpu += 1_000;
        let before = (of(&core, "a"), of(&core, "b"), consumed(&core, Consumer::Other));
        bench.close(&mut core);
        let grown = |after: Option<u64>, before: Option<u64>| after.unwrap() - before.unwrap();
        let other = consumed(&core, Consumer::Other) - before.2;
        (grown(of(&core, "a"), before.0), grown(of(&core, "b"), before.1), other)
    };
    assert_eq!(draw(&[7, 8, 9], &[(7, 20), (8, 20), (9, 10)], Some(0.5)), (300, 200, 0));
    assert_eq!(draw(&[7, 6], &[(7, 20), (6, 60)], Some(0.8)), (200, 0, 600), "one in no unit");
    assert_eq!(draw(&[7, 9], &[], Some(0.8)), (800, 0, 0), "all of one unit");
    assert_eq!(draw(&[7, 8], &[], Some(0.8)), (0, 0, 800), "of which one, nobody knows");
    assert_eq!(draw(&[7], &[], None), (0, 0, 0), "in use or not, nobody knows");
    assert_eq!(draw(&[], &[], Some(1.0)), (0, 0, 1_000));
}

#[test]
fn places_go_to_those_that_use_most_and_are_kept_for_a_while() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 2, &["a", "b", "c"]);
    let names = |core: &Core| core.ledger.units.placed.keys().map(|u| u.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&core), ["a", "b"], "of equals the first in order");
    let mut windows = |core: &mut Core, windows: usize, used: &[(&str, u64)], gone: &[&str]| {
        for name in gone {
            bench.units.remove(&unit(name));
        }
        for _ in 0..windows {
            used.iter().for_each(|(name, percent)| bench.used(name, percent * NANOS / 100));
            bench.ran(NANOS, 0);
            bench.package += 1_000_000;
            bench.close(core);
        }
    };
    windows(&mut core, 30, &[("a", 10), ("b", 5), ("c", 80)], &[]);
    assert_eq!(names(&core), ["a", "b"], "nobody is turned out at once");
    let sums = (of(&core, "a"), of(&core, "b"));
    windows(&mut core, 40, &[("a", 10), ("b", 5), ("c", 80)], &[]);
    assert_eq!(names(&core), ["a", "c"], "the weakest gives way");
    let departed = core.ledger.units.departed.total();
    assert!(sums.1 <= Some(departed) && of(&core, "a") > sums.0);
    windows(&mut core, 5, &[("c", 80), ("b", 90)], &["a"]);
    assert_eq!(names(&core), ["a", "c"], "one that ended keeps its series");
    windows(&mut core, 10, &[("c", 80), ("b", 90)], &["a"]);
    assert_eq!(names(&core), ["b", "c"], "for a while");
    assert!(core.ledger.units.departed.total() > departed);
}

#[test]
fn sums_outlive_a_restart_and_being_turned_off() {
    let mut bench = Bench::new();
    let mut core = placed(&mut bench, 5, &["a", "b"]);
    bench.used("a", NANOS);
    bench.used("b", NANOS / 2);
    bench.ran(NANOS, NANOS);
    bench.package += 2_000_000;
    bench.close(&mut core);
    let sums = (of(&core, "a"), of(&core, "b"));
    assert!(sums.0 > sums.1 && sums.1 > Some(0));
    let text = serde_json::to_string(&core.ledger).unwrap();
    let ledger: Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!(ledger, core.ledger, "on disk it is the same");
    let core = Bench::core(5, ledger.clone());
    assert_eq!((of(&core, "a"), of(&core, "b")), sums);
    identity(&core.ledger);
    let core = Bench::core(1, ledger.clone());
    assert_eq!((of(&core, "a"), of(&core, "b")), (sums.0, None), "a place less");
    identity(&core.ledger);
    let mut core = Bench::core(0, ledger);
    assert_eq!(Some(core.ledger.units.departed.total()), sums.0.zip(sums.1).map(|(a, b)| a + b));
    bench.close(&mut core);
}

/// What happens to a host.
#[derive(Clone, Debug)]
enum Op {
    /// A window: CPU time by unit, of a shard, busy and idle; joules; how the GPU is used.
    Window {
        units: Vec<u64>,
        shard: u64,
        busy: u64,
        idle: u64,
        package: u64,
        gpu: u64,
        percent: Vec<u32>,
        lag: bool,
    },
    /// A unit ends, or begins anew.
    End(usize),
    /// Units cannot be read any more, or can again.
    Blind,
    /// A shard begins in a unit, or ends.
    Shard(usize),
    /// The agent is killed and started again, with so many places.
    Kill(usize),
}

const UNITS: usize = 6;

fn op() -> impl Strategy<Value = Op> {
    let nanos = || 0..4 * NANOS;
    let window = (
        proptest::collection::vec(nanos(), UNITS),
        nanos(),
        nanos(),
        nanos(),
        0u64..1 << 30,
        0u64..1 << 30,
        proptest::collection::vec(0u32..200, 0..UNITS + 2),
        proptest::bool::weighted(0.1),
    );
    prop_oneof![
        12 => window.prop_map(|(units, shard, busy, idle, package, gpu, percent, lag)|
            Op::Window { units, shard, busy, idle, package, gpu, percent, lag }),
        2 => (0..UNITS).prop_map(Op::End),
        1 => Just(Op::Blind),
        2 => (0..UNITS + 1).prop_map(Op::Shard),
        1 => (0usize..5).prop_map(Op::Kill),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_no_microjoule_is_lost_or_doubled(ops in proptest::collection::vec(op(), 1..80)) {
        let mut bench = Bench::new();
        let (mut top, mut token, mut clock) = (3, 1, 0u64);
        let mut core = Bench::core(top, Ledger::new("machine", Some("boot"), 1));
        bench.places = (0..UNITS).map(|at| (at as u32, unit(&at))).collect();
        for op in ops {
            let before = core.ledger.units.clone();
            match op {
                Op::Window { units, shard, busy, idle, package, gpu, percent, lag } => {
                    units.iter().enumerate().for_each(|(at, nanos)| bench.used(&at, *nanos));
                    bench.ran(busy, idle);
                    bench.host.busy_nanos += shard;
                    bench.package += package;
                    bench.gpu += gpu;
                    bench.gpu_reading.utilization = percent.first().map(|p| f64::from(*p) / 100.0);
                    bench.gpu_reading.processes = Some((0..percent.len() as u32).collect());
                    bench.gpu_reading.use_percent = (0..).zip(percent).filter(|(_, p)| *p > 50).collect();
                    clock += shard;
                    core.read_shards(&|_| Some(clock));
                    if lag {
                        bench.now += SECOND;
                        bench.unix_nanos += NANOS;
                        bench.close_now(&mut core);
                    } else {
                        bench.close(&mut core);
                    }
                }
                Op::End(at) => {
                    bench.units.remove(&unit(&at));
                }
                Op::Blind => bench.units_at = if bench.units_at.is_some() { None } else { Some(bench.now) },
                Op::Shard(at) => {
                    core.shards.end(Token(token), &|_| Some(clock));
                    token += 1;
                    core.shards.begin(Token(token), job(), 5, &|_| Some(clock));
                    core.shards.place(Token(token), bench.places.get(&(at as u32)).cloned());
                }
                Op::Kill(places) => {
                    top = places;
                    core = Bench::core(top, core.ledger.clone());
                    identity(&core.ledger);
                }
            }
            let after = &core.ledger.units;
            prop_assert!(after.placed.len() <= top);
            prop_assert!(before.rest.total() <= after.rest.total());
            prop_assert!(before.departed.total() <= after.departed.total());
            for (unit, entry) in &before.placed {
                // A series grows or ends; one that was placed anew was departed first.
                let now = after.placed.get(unit).map(|entry| entry.sums.total());
                prop_assert!(now.is_none_or(|now| now >= entry.sums.total()), "{unit:?}");
            }
        }
    }
}
