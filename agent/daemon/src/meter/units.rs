//! Units in a window: what each used, and which of them have series of their own.
//!
//! Pure. Invariant: what units are given is in [`UnitSums`] at once, under the unit where it has a place and in the
//! rest where it has none; places are given and taken between windows, so that a window's joules go one way. CPU time
//! of a shard is never its unit's as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wattmill_protocol::Source;

use super::core::Window;
use crate::config::Attribution;
use crate::device::Scope;
use crate::device::gpu::GpuReading;
use crate::device::units::{Unit, UnitsReading};
use crate::ledger::units::{Sums, UnitEntry, UnitSums};

/// Time constant of what a unit used of late, by which places are given.
const RECENT_SECONDS: f64 = 60.0;
/// A unit that is there keeps its place this long at least: Prometheus must see a series to take a rate of it.
const MIN_STAY: Duration = Duration::from_secs(60);
/// A unit takes another's place where it used more than this many times as much of late.
const CHALLENGE: f64 = 2.0;
/// Less used of late is nothing, in microjoules.
const NOTHING: f64 = 1.0;

/// Those that used the node in a window, in the order of the weights.
#[derive(Default)]
pub(super) struct Users {
    units: Vec<Arc<Unit>>,
    nanos: Vec<u64>,
}

impl Users {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    /// CPU nanoseconds of each on the whole host, shards' time taken out.
    pub(super) fn nanos(&self) -> &[u64] {
        &self.nanos
    }

    /// How much each used a GPU, as far as NVML tells, and how much others did. Where it tells no process's use, all
    /// is of the one unit that is on the GPU, or of others.
    pub(super) fn of_gpu(&self, gpu: &GpuReading, places: &BTreeMap<u32, Arc<Unit>>) -> (Vec<u64>, u64) {
        let mut weights = vec![0; self.units.len()];
        let mut others = 0;
        let place = |pid: &u32| places.get(pid).and_then(|unit| self.units.binary_search(unit).ok());
        for (pid, percent) in &gpu.use_percent {
            match place(pid) {
                Some(at) => weights[at] += u64::from(*percent),
                None => others += u64::from(*percent),
            }
        }
        if gpu.use_percent.is_empty() {
            let mut there = gpu.processes.iter().flatten().map(place);
            if let Some(Some(first)) = there.next().filter(|first| there.all(|other| other == *first)) {
                weights[first] = 1;
            }
        }
        (weights, others)
    }
}

/// A unit of late.
#[derive(Default)]
struct Recent {
    /// What it used, older windows the less.
    microjoules: f64,
    /// In the open window.
    window: u64,
    placed_for: Duration,
}

/// Mean watts by scope and source.
type Watts = BTreeMap<(Scope, Source), f64>;

/// A figure of each placed unit, and of all that have no place.
#[derive(Default)]
struct Drawn<T> {
    placed: BTreeMap<Arc<Unit>, T>,
    rest: T,
}

/// What is kept of units from window to window, beside the ledger.
pub(super) struct Units {
    /// `None` where units are not told apart.
    attribution: Option<Attribution>,
    before: Option<Arc<UnitsReading>>,
    /// CPU time of shards that is still to be taken out of their units: the two are not read at the same instant.
    owed: BTreeMap<Arc<Unit>, u64>,
    recent: BTreeMap<Arc<Unit>, Recent>,
    /// What was used in the open window.
    window: Drawn<Sums>,
    /// Mean watts of the last one.
    powers: Drawn<Watts>,
}

impl Units {
    /// Goes on with the places of a former run, as far as there are as many now.
    pub(super) fn new(attribution: Option<Attribution>, sums: &mut UnitSums) -> Self {
        let top = attribution.as_ref().map_or(0, |attribution| attribution.top);
        let mut placed: Vec<(u64, Unit)> =
            sums.placed.iter().map(|(unit, entry)| (entry.sums.total(), unit.clone())).collect();
        placed.sort_unstable();
        let excess = placed.len().saturating_sub(top);
        placed.iter().take(excess).for_each(|(_, unit)| sums.retire(unit));
        Self {
            attribution,
            before: None,
            owed: BTreeMap::new(),
            recent: BTreeMap::new(),
            window: Drawn::default(),
            powers: Drawn::default(),
        }
    }

    /// Whether units are told apart.
    pub(super) fn is_on(&self) -> bool {
        self.attribution.is_some()
    }

    /// Mean watts in the last window, of a placed unit or (`None`) of those without a place.
    pub(super) fn watts(&self, unit: Option<&Unit>, key: (Scope, Source)) -> Option<f64> {
        let watts = match unit {
            Some(unit) => self.powers.placed.get(unit)?,
            None => &self.powers.rest,
        };
        // Those that used nothing draw nothing.
        Some(watts.get(&key).copied().unwrap_or(0.0))
    }

    /// Those that used the node in the window; `shards` is CPU time of shards by the unit that they run in.
    pub(super) fn users(&mut self, window: &Window<'_>, shards: &BTreeMap<Arc<Unit>, u64>) -> Users {
        if !self.is_on() {
            return Users::default();
        }
        let mut used = self.cpu_nanos(window, shards);
        let gpus = window.views.iter().filter_map(|view| view.reading.as_deref()).flat_map(|r| &r.gpus);
        for pid in gpus.flat_map(|gpu| gpu.processes.iter().flatten()) {
            if let Some(unit) = window.places.get(pid) {
                used.entry(Arc::clone(unit)).or_default();
            }
        }
        let (units, nanos) = used.into_iter().unzip();
        Users { units, nanos }
    }

    fn cpu_nanos(
        &mut self,
        window: &Window<'_>,
        shards: &BTreeMap<Arc<Unit>, u64>,
    ) -> BTreeMap<Arc<Unit>, u64> {
        for (unit, nanos) in shards {
            *self.owed.entry(Arc::clone(unit)).or_default() += nanos;
        }
        let mut readings = window.views.iter().filter(|view| view.up).filter_map(|v| v.reading.as_deref());
        let Some(now) = readings.find_map(|reading| reading.units.clone()) else {
            // What is used while nobody looks is others'.
            (self.before, self.owed) = (None, BTreeMap::new());
            return BTreeMap::new();
        };
        let Some(before) = self.before.replace(Arc::clone(&now)) else {
            self.owed.clear();
            return BTreeMap::new();
        };
        // A reading that is late is told with the next one, of which the part counts that is this window's.
        let span = now.at.saturating_sub(before.at);
        let mut used = BTreeMap::new();
        for (unit, nanos) in &now.nanos {
            let grown = nanos.saturating_sub(before.nanos.get(unit).copied().unwrap_or(0));
            let owed = self.owed.get(unit).copied().unwrap_or(0);
            let own = of_window(grown.saturating_sub(owed), window.elapsed, span);
            if own > 0 {
                used.insert(Arc::clone(unit), own);
            }
            // No more than this window's: a process that has left the unit would be owed for ever.
            let left = owed.saturating_sub(grown).min(shards.get(unit).copied().unwrap_or(0));
            if span > Duration::ZERO {
                self.owed.insert(Arc::clone(unit), left);
            }
        }
        self.owed.retain(|unit, nanos| *nanos > 0 && now.nanos.contains_key(unit));
        used
    }

    /// Gives users their parts of one meter's energy, in order.
    pub(super) fn add(
        &mut self,
        sums: &mut UnitSums,
        users: &Users,
        (scope, source): (Scope, Source),
        parts: &[u64],
    ) {
        for (unit, part) in users.units.iter().zip(parts).filter(|(_, part)| **part > 0) {
            self.recent.entry(Arc::clone(unit)).or_default().window += part;
            let (sums, window) = match sums.placed.get_mut(unit.as_ref()) {
                Some(entry) => (&mut entry.sums, self.window.placed.entry(Arc::clone(unit)).or_default()),
                None => (&mut sums.rest, &mut self.window.rest),
            };
            sums.add(scope, source, *part);
            window.add(scope, source, *part);
        }
    }

    /// Closes the window: notes who is there, and gives and takes places.
    pub(super) fn close(&mut self, sums: &mut UnitSums, elapsed: Duration, unix_nanos: u64) {
        let Some(attribution) = self.attribution.clone() else { return };
        self.note_powers(sums, elapsed);
        let decay = (-elapsed.as_secs_f64() / RECENT_SECONDS).exp();
        let there = self.before.clone();
        let is_there = |unit: &Unit, recent: Option<&Recent>| {
            recent.is_some_and(|recent| recent.window > 0)
                // While nobody can look, nobody has left.
                || there.as_ref().is_none_or(|reading| reading.nanos.contains_key(unit))
        };
        for (unit, entry) in &mut sums.placed {
            if is_there(unit, self.recent.get(unit)) {
                entry.seen_unix_nanos = unix_nanos;
            }
        }
        for (unit, recent) in &mut self.recent {
            recent.microjoules = recent.microjoules * decay + std::mem::take(&mut recent.window) as f64;
            let placed = sums.placed.contains_key(unit.as_ref());
            recent.placed_for = if placed { recent.placed_for + elapsed } else { Duration::ZERO };
        }
        self.retire(sums, &attribution, unix_nanos);
        self.place(sums, attribution.top, unix_nanos);
        self.recent
            .retain(|unit, recent| recent.microjoules >= NOTHING || sums.placed.contains_key(unit.as_ref()));
    }

    fn note_powers(&mut self, sums: &UnitSums, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let mut window = std::mem::take(&mut self.window);
        if seconds <= 0.0 {
            return;
        }
        let watts = |sums: Sums| -> Watts {
            sums.0.into_iter().map(|(key, uj)| (key, uj as f64 / 1e6 / seconds)).collect()
        };
        let drawn = |unit: &Unit| {
            let drew = window.placed.remove_entry(unit);
            let (unit, sums) = drew.unwrap_or_else(|| (Arc::new(unit.clone()), Sums::default()));
            (unit, watts(sums))
        };
        let placed = sums.placed.keys().map(drawn).collect();
        self.powers = Drawn { placed, rest: watts(window.rest) };
    }

    /// Takes the places of those that were not there for long.
    fn retire(&mut self, sums: &mut UnitSums, attribution: &Attribution, unix_nanos: u64) {
        let retention = attribution.retention.as_nanos();
        let left = |entry: &UnitEntry| {
            let absent = unix_nanos.saturating_sub(entry.seen_unix_nanos);
            absent > 0 && u128::from(absent) >= retention
        };
        let gone: Vec<Unit> =
            sums.placed.iter().filter(|(_, entry)| left(entry)).map(|(unit, _)| unit.clone()).collect();
        for unit in gone {
            tracing::debug!(kind = unit.kind.as_str(), name = unit.name, "a unit ended: its series ends");
            sums.retire(&unit);
            self.recent.remove(&unit);
        }
    }

    /// Gives free places to those that used most; where none is free, the weakest may be challenged.
    fn place(&mut self, sums: &mut UnitSums, top: usize, unix_nanos: u64) {
        let mut waiting: Vec<(f64, Arc<Unit>)> = self
            .recent
            .iter()
            .filter(|(unit, recent)| {
                recent.microjoules >= NOTHING && !sums.placed.contains_key(unit.as_ref())
            })
            .map(|(unit, recent)| (recent.microjoules, Arc::clone(unit)))
            .collect();
        waiting.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut waiting = waiting.into_iter();
        while sums.placed.len() < top {
            let Some((_, unit)) = waiting.next() else { return };
            enter(sums, &unit, unix_nanos);
        }
        let Some((challenger, unit)) = waiting.next() else { return };
        if let Some((weakest, least)) = self.weakest(sums, unix_nanos)
            && challenger > CHALLENGE * least
        {
            sums.retire(&weakest);
            enter(sums, &unit, unix_nanos);
        }
    }

    /// Of those that are there and have had their place for a while, the one that used least.
    fn weakest(&self, sums: &UnitSums, unix_nanos: u64) -> Option<(Unit, f64)> {
        let there = sums.placed.iter().filter(|(_, entry)| entry.seen_unix_nanos == unix_nanos);
        there
            .filter_map(|(unit, _)| {
                let recent = self.recent.get(unit)?;
                (recent.placed_for >= MIN_STAY).then(|| (unit.clone(), recent.microjoules))
            })
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

fn enter(sums: &mut UnitSums, unit: &Unit, unix_nanos: u64) {
    let entry = UnitEntry { seen_unix_nanos: unix_nanos, ..UnitEntry::default() };
    sums.placed.insert(unit.clone(), entry);
}

/// The part of `nanos` of a span that is the window's, which may be shorter.
fn of_window(nanos: u64, window: Duration, span: Duration) -> u64 {
    if span <= window {
        return nanos;
    }
    // Less than `nanos`, so it fits.
    (u128::from(nanos) * window.as_nanos() / span.as_nanos()) as u64
}

#[cfg(test)]
mod tests;
