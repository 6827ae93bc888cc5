//! The property that the ledger stands on, over random lives of a host: whatever is read, fails, wraps, starts
//! anew, crashes and restarts, ledger ≤ truth, and truth − ledger ≤ the energy of the gaps that were counted.
//!
//! The model knows the truth. It reads a package as RAPL does, an estimate that steps in where that fails, and a
//! GPU with a counter and an integral of its power, and gives the readings to the accounting.

use std::sync::Arc;

use proptest::prelude::*;
use wattmill_protocol::Source;

use super::*;
use crate::counter::Limits;
use crate::device::{BackendKind, EnergyReading, Epoch, Reading};

const PACKAGE: &str = "package-0";
const GPU: &str = "GPU-1";
/// AMD's range: 65.5 kJ.
const MODULUS: u64 = 65_532_610_988;
const MILLISECOND: Duration = Duration::from_millis(1);
/// What a package draws between the readings of its counter and of the estimate: 100 W for a millisecond.
const BETWEEN: u64 = 100_000;
/// Readings without the GPU's counter after which the model's integral counts.
const MISSES: u32 = 2;

#[derive(Clone, Debug)]
enum Op {
    /// Time passes at a power of each.
    Draw { millis: u64, package_watts: u64, gpu_watts: u64 },
    /// A window: what can be read, whether the estimate is late to fall silent, and whether the disk took it.
    Close { rapl: bool, late: Option<bool>, counter: bool, power: bool, written: bool },
    /// The agent is killed and started again.
    Kill,
    /// The host loses power and boots.
    PowerCut,
    /// The GPU's driver is loaded anew.
    Reload,
}

fn op() -> impl Strategy<Value = Op> {
    let draw = |millis: std::ops::Range<u64>| {
        (millis, 0u64..=400, 0u64..=700).prop_map(|(millis, package_watts, gpu_watts)| Op::Draw {
            millis,
            package_watts,
            gpu_watts,
        })
    };
    let often = |probability| proptest::bool::weighted(probability);
    let close =
        (often(0.7), proptest::option::weighted(0.2, any::<bool>()), often(0.7), often(0.8), often(0.9));
    prop_oneof![
        8 => draw(1..3_000),
        1 => draw(3_000..600_000),
        12 => close.prop_map(|(rapl, late, counter, power, written)| Op::Close { rapl, late, counter, power, written }),
        2 => Just(Op::Kill),
        1 => Just(Op::PowerCut),
        1 => Just(Op::Reload),
    ]
}

/// What is known of a scope as of a ledger: goes back with the ledger when that does.
#[derive(Clone, Copy, Default)]
struct Account {
    /// The truth when the scope was first seen.
    base: Option<u64>,
    anchor: Option<Anchor>,
}

/// A reading that a counter goes on from: up to here all is counted, or in a gap that was counted.
#[derive(Clone, Copy)]
struct Anchor {
    truth: u64,
    missing: u64,
    gaps: u64,
}

#[derive(Default)]
struct Process {
    estimate: u64,
    estimated_to: Option<u64>,
    integral: u64,
    integrated_to: Option<u64>,
    unread: u64,
    misses: u32,
    counter: Option<(u64, Duration)>,
}

struct World {
    now: Duration,
    boot: u64,
    package: u64,
    gpu: u64,
    /// Counter at truth 0.
    package_base: u64,
    gpu_base: i128,
    gpu_shown: u64,
    /// The truth when the driver was loaded anew, until the counter is read.
    reloaded: Option<u64>,
    /// Whether the kept ledger knows of the counter before it began anew.
    kept_is_older: bool,
    process: Process,
    core: Core,
    accounts: [Account; 2],
    kept: (Ledger, [Account; 2]),
}

fn started(ledger: Ledger, boot: u64) -> Core {
    let settings =
        Settings { host_fraction_ppm: attribution::WHOLE_HOST_PPM, cpu_count: 2, attribution: None };
    Core::new(ledger, Some(&format!("boot {boot}")), settings)
}

impl World {
    fn new() -> Self {
        let ledger = Ledger::new("machine", None, 1);
        Self {
            now: Duration::from_secs(1),
            boot: 0,
            package: 0,
            gpu: 0,
            package_base: MODULUS - 1_000_000,
            gpu_base: 1_000_000_000,
            gpu_shown: 0,
            reloaded: None,
            kept_is_older: false,
            process: Process { misses: MISSES, ..Process::default() },
            core: started(ledger.clone(), 0),
            accounts: [Account::default(); 2],
            kept: (ledger, [Account::default(); 2]),
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Draw { millis, package_watts, gpu_watts } => {
                self.now += Duration::from_millis(millis);
                self.package += millis * package_watts * 1_000;
                self.gpu += millis * gpu_watts * 1_000;
            }
            Op::Close { rapl, late, counter, power, written } => {
                self.close(rapl, late, counter, power);
                if written {
                    self.kept = (self.core.ledger.clone(), self.accounts);
                    self.kept_is_older = false;
                }
            }
            Op::Kill => {
                // As for a counter that passes what is known: what a ledger has forgotten cannot be told either.
                self.reloaded = self.reloaded.or(self.kept_is_older.then_some(self.gpu));
                self.start();
            }
            Op::PowerCut => {
                self.boot += 1;
                self.now = Duration::from_secs(5);
                self.package_base = MODULUS - self.package % MODULUS;
                self.gpu_base = -i128::from(self.gpu / 1_000);
                self.reloaded = None;
                self.start();
            }
            Op::Reload => self.reloaded = Some(self.gpu),
        }
    }

    fn start(&mut self) {
        let (ledger, accounts) = self.kept.clone();
        self.core = started(ledger, self.boot);
        self.accounts = accounts;
        self.process = Process { misses: MISSES, ..Process::default() };
    }

    fn close(&mut self, rapl: bool, late: Option<bool>, counter: bool, power: bool) {
        self.now += MILLISECOND * 2;
        let mut energy = Vec::new();
        let begun = self.package;
        // Between the two readings of the package a little is drawn: it must count once.
        let early = if late == Some(true) { self.estimate(rapl, late) } else { None };
        self.package += u64::from(early.is_some()) * BETWEEN;
        let read = self.package;
        let package = rapl.then(|| (self.package_base + read) % MODULUS);
        energy.extend(package.map(|raw| self.package_reading(raw)));
        self.package += u64::from(early.is_none()) * BETWEEN;
        energy.extend(if early.is_some() { early } else { self.estimate(rapl, late) });
        energy.extend(self.gpu_readings(counter, power));
        let read_counter = counter.then_some(self.gpu_shown);
        let reading = Reading { energy, ..Reading::default() };
        let view = View {
            kind: BackendKind::Rapl,
            present: true,
            up: true,
            starting: false,
            duration: Duration::ZERO,
            errors: BTreeMap::new(),
            reading: Some(Arc::new(reading)),
        };
        let before: Vec<u64> = self.core.ledger.meters.values().map(|entry| entry.microjoules).collect();
        self.core.close(&Window {
            elapsed: Duration::from_secs(1),
            unix_nanos: 7,
            views: &[view],
            places: &BTreeMap::new(),
        });
        let after: Vec<u64> = self.core.ledger.meters.values().map(|entry| entry.microjoules).collect();
        // New meters begin at zero; whatever was there has not gone down.
        assert!(before.iter().sum::<u64>() <= after.iter().sum::<u64>());
        self.check(0, Scope::Cpu, PACKAGE, [begun, read, self.package], package);
        self.check(1, Scope::Gpu, GPU, [self.gpu; 3], read_counter);
    }

    fn reading(&self, class: Class, device: &str, source: Source, raw: u64) -> EnergyReading {
        EnergyReading {
            meter: MeterId { class, device: device.to_owned(), source },
            scope: Some(if class == Class::Gpu { Scope::Gpu } else { Scope::Cpu }),
            raw,
            microjoules_per_count: 1,
            limits: Limits { modulus: None, max_per_second: f64::INFINITY },
            epoch: if source == Source::Counter { Epoch::Hardware } else { Epoch::Process },
            at: self.now,
            unread: 0,
        }
    }

    fn package_reading(&self, raw: u64) -> EnergyReading {
        let limits = Limits { modulus: Some(MODULUS), max_per_second: 5e8 };
        EnergyReading { limits, ..self.reading(Class::Zone, PACKAGE, Source::Counter, raw) }
    }

    /// Steps in where RAPL fails; `late` to notice that it is back, before or after RAPL's reading.
    fn estimate(&mut self, rapl: bool, late: Option<bool>) -> Option<EnergyReading> {
        if rapl && late.is_none() {
            self.process.estimated_to = None;
            return None;
        }
        if let Some(since) = self.process.estimated_to.replace(self.package) {
            self.process.estimate += self.package - since;
        }
        let at = if late == Some(true) { self.now - MILLISECOND } else { self.now + MILLISECOND };
        let reading = self.reading(Class::Zone, "host", Source::Estimate, self.process.estimate);
        Some(EnergyReading { at, ..reading })
    }

    fn gpu_readings(&mut self, counter: bool, power: bool) -> Vec<EnergyReading> {
        if counter {
            self.restart_counter();
            let raw = i128::from(self.gpu / 1_000) + self.gpu_base;
            self.gpu_shown = u64::try_from(raw).unwrap();
            self.process.counter = Some((self.gpu_shown, self.now));
        }
        let process = &mut self.process;
        process.misses = if counter { 0 } else { process.misses + 1 };
        if power {
            match process.integrated_to.replace(self.gpu) {
                Some(since) => process.integral += self.gpu - since,
                None => process.unread += 1,
            }
        } else {
            process.integrated_to = None;
        }
        let counts = self.process.misses >= MISSES;
        let counter = self.process.counter.map(|(raw, at)| {
            let limits = Limits { modulus: None, max_per_second: 5e6 };
            let reading = self.reading(Class::Gpu, GPU, Source::Counter, raw);
            EnergyReading { at, limits, microjoules_per_count: 1_000, ..reading }
        });
        let integral = power.then(|| {
            let reading = self.reading(Class::Gpu, GPU, Source::Integrated, self.process.integral);
            EnergyReading { scope: reading.scope.filter(|_| counts), unread: self.process.unread, ..reading }
        });
        counter.into_iter().chain(integral).collect()
    }

    /// A counter that began anew and has passed what a ledger knows of it looks like one that went on: that
    /// cannot be told, and the model's does not do so.
    fn restart_counter(&mut self) {
        let Some(truth) = self.reloaded.take() else { return };
        self.kept_is_older = true;
        let counter = |(meter, _): &(&MeterId, _)| meter.device == GPU && meter.source == Source::Counter;
        let ledgers = [&self.core.ledger, &self.kept.0];
        let known = ledgers.into_iter().flat_map(|ledger| ledger.meters.iter().filter(counter));
        let least = known.filter_map(|(_, entry)| entry.last).map(|(raw, _)| raw).min();
        if let Some(most) = least.unwrap_or(u64::MAX).checked_sub(1) {
            let raw = ((self.gpu - truth) / 1_000).min(most);
            self.gpu_base = i128::from(raw) - i128::from(self.gpu / 1_000);
        }
    }

    /// `truth` is that before the window was read, when the counter was read, and now.
    fn check(&mut self, account: usize, scope: Scope, device: &str, truth: [u64; 3], raw: Option<u64>) {
        let ledger = &self.core.ledger;
        let sums = ledger.scopes.iter().filter(|((s, _), _)| *s == scope);
        if ledger.scopes.keys().all(|(s, _)| *s != scope) {
            return;
        }
        let sum: u64 = sums.map(|(_, entry)| entry.microjoules).sum();
        let account = &mut self.accounts[account];
        let base = *account.base.get_or_insert(truth[0]);
        assert!(sum <= truth[2] - base, "{device}: {sum} µJ of {} were counted", truth[2] - base);
        let hardware = |meter: &MeterId| meter.device == device && meter.source == Source::Counter;
        let last = ledger.meters.iter().find(|(meter, _)| hardware(meter)).and_then(|(_, entry)| entry.last);
        // The counter goes on from what was read just now, and not from an older reading or from nothing.
        let Some(raw) = raw.filter(|raw| last == Some((*raw, self.now.as_nanos() as u64))) else { return };
        let gaps = ledger.gaps.iter().filter(|((d, _), _)| d == device).map(|(_, times)| times).sum();
        let truth = truth[1];
        assert!(sum <= truth - base, "{device}: {sum} µJ of {} were counted", truth - base);
        let now = Anchor { truth, missing: truth - base - sum, gaps };
        if let Some(before) = account.anchor.replace(now) {
            let gap = if gaps > before.gaps { truth - before.truth } else { 0 };
            let bound = before.missing + gap;
            assert!(now.missing <= bound, "{device} at {raw}: {} µJ miss, gaps explain {bound}", now.missing);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::fuzz::times(1_000), ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_is_the_truth_less_the_gaps(ops in proptest::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for op in ops {
            world.apply(&op);
        }
    }
}
