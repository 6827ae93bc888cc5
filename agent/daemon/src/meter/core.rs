//! The accounting: one window's readings into the ledger, the shards and a snapshot.
//!
//! Pure: readings, process clocks and times are arguments. Invariant, checked after every window in the
//! tests: for each source, shards + other + idle = Σ scopes, to the microjoule.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use wattmill_protocol::{Energy, JobId, Source, Token};

use super::shards::{CpuClock, Shards};
use super::units::{Units, Users};
use crate::attribution;
use crate::config::Attribution;
use crate::counter::GapReason;
use crate::device::host::stat::CpuTime;
use crate::device::thread::View;
use crate::device::uncertainty::HORIZON;
use crate::device::units::Unit;
use crate::device::{Class, MeterId, Scope};
use crate::ledger::{Consumer, Ledger, OpenShard};
use crate::window::{Closed, Slice, Windows};

/// Device of the gap that a lost ledger is.
const LEDGER_DEVICE: &str = "ledger";

/// What the pure core is told of the node.
pub(super) struct Settings {
    pub(super) host_fraction_ppm: u32,
    pub(super) cpu_count: usize,
    /// Whose energy is told apart; `None` for none.
    pub(super) attribution: Option<Attribution>,
}

/// One window's inputs.
pub(super) struct Window<'a> {
    /// Since the last one.
    pub(super) elapsed: Duration,
    /// Wall clock at its end.
    pub(super) unix_nanos: u64,
    /// What the backends say.
    pub(super) views: &'a [View],
    /// Units of the processes that are on GPUs.
    pub(super) places: &'a BTreeMap<u32, Arc<Unit>>,
}

/// Mean watts of the last window.
#[derive(Default)]
pub(super) struct Powers {
    pub(super) meters: BTreeMap<MeterId, f64>,
    pub(super) scopes: BTreeMap<(Scope, Source), f64>,
}

/// A GPU's two energies over one window.
struct Compared {
    elapsed: Duration,
    counter: u64,
    integrated: u64,
}

pub(super) struct Core {
    pub(super) ledger: Ledger,
    pub(super) shards: Shards,
    pub(super) units: Units,
    pub(super) powers: Powers,
    pub(super) cpu_utilization: Option<f64>,
    settings: Settings,
    windows: Windows,
    cpu: Option<(CpuTime, CpuTime)>,
    divergence: BTreeMap<String, VecDeque<Compared>>,
}

impl Core {
    /// Goes on with the ledger of a former run, whose open shards are settled now: it was killed.
    pub(super) fn new(mut ledger: Ledger, boot_id: Option<&str>, settings: Settings) -> Self {
        if !ledger.is_of_boot(boot_id) {
            // All of them now: the next run of this boot would take an older boot's reading for one of its own.
            ledger.void_readings(GapReason::Reboot);
        }
        let windows = Windows::resumed(ledger.known(boot_id));
        ledger.boot_id = boot_id.map(str::to_owned);
        for shard in std::mem::take(&mut ledger.open) {
            ledger.settle(shard, false);
        }
        let units = Units::new(settings.attribution.clone(), &mut ledger.units);
        Self {
            ledger,
            shards: Shards::default(),
            units,
            powers: Powers::default(),
            cpu_utilization: None,
            settings,
            windows,
            cpu: None,
            divergence: BTreeMap::new(),
        }
    }

    /// The ledger was lost: a gap of its own.
    pub(super) fn lost_ledger(&mut self) {
        self.ledger.add_gap(LEDGER_DEVICE, GapReason::LedgerLost);
    }

    /// Reads the CPU time of running shards at the end of a window.
    pub(super) fn read_shards(&mut self, clock: CpuClock<'_>) {
        self.shards.read(clock);
    }

    /// Ends a shard; its energy settles with the window.
    pub(super) fn end(&mut self, token: Token, clock: CpuClock<'_>) {
        self.shards.end(token, clock);
    }

    /// Settles a lease that is not known with nothing.
    pub(super) fn account_for(&mut self, token: Token, job: JobId, unrecorded: bool) {
        if !self.shards.has(token) && !self.ledger.owes(token) {
            tracing::info!(%token, %job, unrecorded, "a lease without a record is settled with no joules");
            self.ledger.settle(OpenShard { token, job, energy: Energy::ZERO }, unrecorded);
        }
    }

    /// Closes a window.
    pub(super) fn close(&mut self, window: &Window<'_>) {
        let users = self.units.users(window, &self.shards.nanos_by_unit());
        let cpu_weights = self.cpu_weights(window, &users);
        let readings = window.views.iter().filter_map(|view| view.reading.as_deref());
        let Closed { slices, substituted } = self.windows.close(readings.flat_map(|reading| &reading.energy));
        self.powers = Powers::default();
        for meter in &substituted {
            self.void(meter);
        }
        for slice in &slices {
            self.enter(slice, window.unix_nanos);
            if let Some(scope) = slice.scope {
                let weights = match scope {
                    Scope::Cpu | Scope::Dram => cpu_weights.clone(),
                    Scope::Gpu => self.gpu_weights(&slice.meter.device, window, &users),
                };
                self.account(scope, slice, &users, &weights);
            }
        }
        self.units.close(&mut self.ledger.units, window.elapsed, window.unix_nanos);
        self.compare(&slices, window.elapsed);
        for shard in self.shards.close(window.elapsed.as_secs_f64()) {
            self.settle(shard);
        }
        self.ledger.open = self.shards.open();
    }

    fn settle(&mut self, shard: OpenShard) {
        tracing::debug!(token = %shard.token, job = %shard.job, energy = %shard.energy, "shard settled");
        self.ledger.settle(shard, false);
    }

    /// The counter's last reading is void, for later runs too: a substitute has counted past it.
    fn void(&mut self, meter: &MeterId) {
        if let Some(entry) = self.ledger.meters.get_mut(meter) {
            entry.last = None;
        }
        self.gap(&meter.device, GapReason::Substituted);
    }

    fn gap(&mut self, device: &str, reason: GapReason) {
        tracing::warn!(device, reason = reason.as_str(), "energy went unseen");
        self.ledger.add_gap(device, reason);
    }

    /// Enters a slice into its meter's sum.
    fn enter(&mut self, slice: &Slice, unix_nanos: u64) {
        let entry = self.ledger.meters.entry(slice.meter.clone()).or_default();
        entry.microjoules = entry.microjoules.saturating_add(slice.microjoules);
        entry.last = slice.resume.map(|(raw, at)| (raw, u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)));
        entry.scope = slice.counts_for;
        entry.seen_unix_nanos = unix_nanos;
        if let Some(watts) = slice.mean_watts {
            self.powers.meters.insert(slice.meter.clone(), watts);
        }
        // The integral beside a GPU's counter lacks energy that the counter has: nothing went unseen. A module
        // counts for nothing.
        let shadow = matches!(slice.meter.class, Class::Gpu | Class::Module) && slice.counts_for.is_none();
        for reason in slice.gaps.iter().filter(|_| !shadow) {
            self.gap(&slice.meter.device, *reason);
        }
    }

    /// Enters the node's part of a slice into its scope, and splits it among those that used it.
    fn account(&mut self, scope: Scope, slice: &Slice, users: &Users, weights: &[u64]) {
        let source = slice.meter.source;
        let ppm = if scope.is_host() { self.settings.host_fraction_ppm } else { attribution::WHOLE_HOST_PPM };
        let entry = self.ledger.scopes.entry((scope, source)).or_default();
        let microjoules = attribution::share(slice.microjoules, ppm, &mut entry.carry);
        entry.microjoules = entry.microjoules.saturating_add(microjoules);
        if let Some(watts) = slice.mean_watts {
            let fraction = f64::from(ppm) / f64::from(attribution::WHOLE_HOST_PPM);
            *self.powers.scopes.entry((scope, source)).or_default() += watts * fraction;
        }
        if slice.recovered {
            // Nobody watched who used it; no shard of ours ran unwatched.
            self.consume(Consumer::Other, Energy::of(source, microjoules));
            return;
        }
        let parts = attribution::split(microjoules, weights);
        let (shards, rest) = parts.split_at(self.shards.len());
        let (units, rest) = rest.split_at(users.len());
        let shards: Vec<Energy> = shards.iter().map(|part| Energy::of(source, *part)).collect();
        self.shards.add(&shards);
        self.consume(Consumer::Shards, shards.into_iter().sum());
        if self.units.is_on() {
            self.units.add(&mut self.ledger.units, users, (scope, source), units);
            self.consume(Consumer::Units, Energy::of(source, units.iter().sum()));
        }
        self.consume(Consumer::Other, Energy::of(source, rest[0]));
        self.consume(Consumer::Idle, Energy::of(source, rest[1]));
    }

    fn consume(&mut self, consumer: Consumer, energy: Energy) {
        *self.ledger.attributed.entry(consumer).or_default() += energy;
    }

    fn cpu_weights(&mut self, window: &Window<'_>, users: &Users) -> Vec<u64> {
        let mut nanos = self.shards.window_nanos();
        let of_shards: u64 = nanos.iter().sum();
        let mut hosts = window.views.iter().filter(|view| view.up).filter_map(|view| view.reading.as_deref());
        let now = hosts.find_map(|r| r.host.as_ref()).map(|host| (host.node_cpu, host.host_cpu));
        let before = std::mem::replace(&mut self.cpu, now);
        self.cpu_utilization = None;
        if let (Some((node, host)), Some((node_before, host_before))) = (now, before) {
            self.cpu_utilization = host.since(host_before).utilization();
            let time = node.since(node_before);
            if time != CpuTime::default() {
                let others = |busy: u64| busy.saturating_sub(of_shards);
                let (here, all) = (others(time.busy_nanos), others(host.since(host_before).busy_nanos));
                nanos.extend(users.nanos().iter().map(|unit| attribution::node_nanos(*unit, here, all)));
                return attribution::cpu_weights(&nanos, time.busy_nanos, time.idle_nanos);
            }
        }
        // What others used is unknown: the node's CPUs had that much time, of which shards took theirs.
        let whole = window.elapsed.as_nanos() * self.settings.cpu_count as u128;
        nanos.extend(users.nanos().iter().map(|_| 0));
        attribution::cpu_weights(&nanos, 0, u64::try_from(whole).unwrap_or(u64::MAX))
    }

    fn gpu_weights(&self, uuid: &str, window: &Window<'_>, users: &Users) -> Vec<u64> {
        let readings = window.views.iter().filter_map(|view| view.reading.as_deref());
        let gpu = readings.flat_map(|reading| &reading.gpus).find(|gpu| gpu.uuid == uuid);
        let utilization = gpu.and_then(|gpu| gpu.utilization).unwrap_or(0.0);
        let (units, others) =
            gpu.map_or_else(|| (vec![0; users.len()], 0), |gpu| users.of_gpu(gpu, window.places));
        // No kernel of ours computes on a GPU yet.
        let shards = vec![0; self.shards.len()];
        attribution::gpu_weights(&[shards, units].concat(), others, utilization)
    }

    /// Remembers what a GPU's counter and the integral of its power said of the same window.
    fn compare(&mut self, slices: &[Slice], elapsed: Duration) {
        let of = |uuid: &str, source: Source| {
            slices
                .iter()
                .find(|s| s.meter.device == uuid && s.meter.source == source && s.mean_watts.is_some())
        };
        for counter in slices.iter().filter(|s| s.meter.class == Class::Gpu) {
            let uuid = &counter.meter.device;
            let (Some(counter), Some(integrated)) = (of(uuid, Source::Counter), of(uuid, Source::Integrated))
            else {
                continue;
            };
            if counter.recovered || counter.meter.source != Source::Counter {
                continue;
            }
            let ring = self.divergence.entry(uuid.clone()).or_default();
            let (counter, integrated) = (counter.microjoules, integrated.microjoules);
            ring.push_back(Compared { elapsed, counter, integrated });
            let mut span: Duration = ring.iter().map(|compared| compared.elapsed).sum();
            while span > HORIZON {
                span -= ring.pop_front().map_or(span, |oldest| oldest.elapsed);
            }
        }
    }

    /// What the node's CPUs and memory drew in the last window, whoever says so; `None` where nobody does.
    pub(super) fn cpu_watts(&self) -> Option<f64> {
        let scopes = self.powers.scopes.iter().filter(|((scope, _), _)| scope.is_host());
        scopes.map(|(_, watts)| *watts).reduce(|sum, watts| sum + watts)
    }

    /// (Integrated - counter) / counter over the last minute, by GPU.
    pub(super) fn divergence(&self) -> BTreeMap<String, f64> {
        let ratio = |ring: &VecDeque<Compared>| {
            let counter: u64 = ring.iter().map(|compared| compared.counter).sum();
            let integrated: u64 = ring.iter().map(|compared| compared.integrated).sum();
            (counter > 0).then(|| (integrated as f64 - counter as f64) / counter as f64)
        };
        self.divergence.iter().filter_map(|(uuid, ring)| Some((uuid.clone(), ratio(ring)?))).collect()
    }
}

#[cfg(test)]
mod conservation;
#[cfg(test)]
mod tests;
