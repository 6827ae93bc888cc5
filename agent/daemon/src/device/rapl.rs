//! RAPL: CPU and DRAM energy counters of the kernel's powercap interface.
//!
//! Invariant: each zone is one counter of its own, never summed before its wraps are undone, and the
//! scopes of those that count for the node do not overlap: packages are `cpu`, memory is `dram`; cores,
//! uncores and the platform lie inside or around them and count for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wattmill_protocol::Source;

use super::sysfs::{number, text};
use super::{Answer, Class, EnergyReading, Epoch, MeterId, ReadError, Reading, Scope, io_reason};
use crate::clock;
use crate::counter::Limits;

/// What names of zone folders begin with, the better first: by registers (or TPMI), and by memory-mapped ones.
const INTERFACES: [&str; 2] = ["intel-rapl:", "intel-rapl-mmio:"];
/// How often zones are looked for again: drivers load after the agent, packages come and go.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Most zones that are read: a host of 16 packages has some 80.
const MAX_ZONES: usize = 512;
/// How far two views of one counter may lie apart: RAPL updates each millisecond, by the die's own clock.
const MIRROR_LAG: Duration = Duration::from_millis(10);
/// Most watts of a zone that states no limit, and of any zone: above every package sold, below what a
/// reset in the middle of the smallest range (65 kJ) would look like over a second or a few.
const MAX_ZONE_WATTS: f64 = 2_000.0;
/// What a zone may draw over its stated short-term limit for a window.
const OVERSHOOT: f64 = 2.0;
/// Least bound, so that a zone whose limit is set low on purpose is not doubted.
const MIN_ZONE_WATTS: f64 = 500.0;

/// Whether RAPL measures this host's packages; the estimate is silent then.
#[derive(Clone, Default, Debug)]
pub struct Measured(Arc<AtomicBool>);

impl Measured {
    /// Whether it does.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, measured: bool) {
        self.0.store(measured, Ordering::Relaxed);
    }
}

/// One zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    /// `package-0`, or `package-0/dram` for one inside another.
    pub name: String,
    /// The scope that it counts for.
    pub scope: Option<Scope>,
    /// Its counter.
    pub energy_file: PathBuf,
    /// The package of which it is one die among others.
    die_of: Option<String>,
    limits: Limits,
}

/// Names that folders have been given: one that is taken stays with its folder, or a counter would go on
/// as another when its neighbour disappears.
#[derive(Default)]
struct Names(BTreeMap<String, (String, String)>);

impl Names {
    fn give(&mut self, folder: &str, label: &str) -> String {
        match self.0.get(folder) {
            Some((of, name)) if of == label => name.clone(),
            _ => {
                let taken = self.0.values().any(|(_, name)| name == label);
                let name = if taken { format!("{label}@{folder}") } else { label.to_owned() };
                self.0.insert(folder.to_owned(), (label.to_owned(), name.clone()));
                name
            }
        }
    }
}

/// The backend.
pub struct Rapl {
    folder: PathBuf,
    measured: Measured,
    zones: Vec<Zone>,
    names: Names,
    looked_at: Duration,
    /// Why the newest look may have missed zones.
    error: Option<ReadError>,
    /// Zones that could not be read the last time.
    silent: BTreeSet<String>,
    /// Dies that were seen to count apart from their package's first.
    apart: BTreeSet<String>,
}

impl Rapl {
    /// RAPL under `sysfs_root`, read at once: the estimate must know from its first reading on.
    pub fn new(sysfs_root: &Path, measured: Measured, now: Duration) -> Self {
        let mut rapl = Self {
            folder: sysfs_root.join("class/powercap"),
            measured,
            zones: Vec::new(),
            names: Names::default(),
            looked_at: now,
            error: None,
            silent: BTreeSet::new(),
            apart: BTreeSet::new(),
        };
        rapl.look();
        rapl.read_zones(&|| now);
        rapl
    }

    pub(super) fn read(&mut self) -> Answer {
        self.read_at(&clock::monotonic)
    }

    fn read_at(&mut self, clock: &dyn Fn() -> Duration) -> Answer {
        let now = clock();
        if now.saturating_sub(self.looked_at) >= LOOK_AGAIN {
            self.looked_at = now;
            self.look();
        }
        self.read_zones(clock)
    }

    /// Finds what zones there are now. One that cannot be read is a zone too, and read again each time.
    fn look(&mut self) {
        let (zones, error) = list(&self.folder, &mut self.names);
        let has = |zones: &[Zone], name: &str| zones.iter().any(|zone| zone.name == name);
        for zone in zones.iter().filter(|zone| !has(&self.zones, &zone.name)) {
            tracing::info!(zone = zone.name, scope = zone.scope.map(Scope::as_str), "RAPL zone found");
        }
        for zone in self.zones.iter().filter(|zone| !has(&zones, &zone.name)) {
            tracing::warn!(zone = zone.name, "RAPL zone gone: its energy stands still");
        }
        (self.zones, self.error) = (zones, error);
    }

    fn read_zones(&mut self, clock: &dyn Fn() -> Duration) -> Answer {
        let mut reading = Reading::default();
        let mut failed = BTreeMap::new();
        for zone in &self.zones {
            match number(&zone.energy_file) {
                Ok(raw) => reading.energy.push(zone.reading(raw, clock())),
                Err(error) => {
                    failed.insert(zone.name.clone(), unreadable(&zone.energy_file, &error));
                }
            }
        }
        self.drop_mirrors(&mut reading.energy);
        // Without a package the estimate counts, which stands for memory too.
        let measured = reading.energy.iter().any(|energy| energy.scope == Some(Scope::Cpu));
        if !measured {
            reading.energy.iter_mut().for_each(|energy| energy.scope = None);
        }
        self.measured.set(measured);
        let errors: Vec<ReadError> = failed.values().cloned().chain(self.error.clone()).collect();
        if reading.energy.is_empty() {
            self.silent = failed.into_keys().collect();
            return errors.into_iter().next().map_or(Answer::Absent, Answer::Failed);
        }
        self.note(&failed);
        reading.failures = errors.iter().map(|error| error.reason).collect();
        Answer::Reading(reading)
    }

    /// Says once which zones fall silent beside others that can be read, and which are back.
    fn note(&mut self, failed: &BTreeMap<String, ReadError>) {
        for (zone, error) in failed.iter().filter(|(zone, _)| !self.silent.contains(*zone)) {
            tracing::warn!(zone, reason = error.reason, "RAPL zone cannot be read: {error}");
        }
        for zone in self.silent.iter().filter(|zone| !failed.contains_key(*zone)) {
            tracing::info!(zone, "RAPL zone can be read again");
        }
        self.silent = failed.keys().cloned().collect();
    }

    /// The dies of some packages (Threadripper) show one counter several times: it counts once. Dies count
    /// on their own from the moment when they were seen apart, which two views of one counter never are.
    fn drop_mirrors(&mut self, energies: &mut [EnergyReading]) {
        let mut first: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for zone in &self.zones {
            let Some(package) = zone.die_of.as_deref() else { continue };
            let Some(energy) = energies.iter_mut().find(|energy| energy.meter.device == zone.name) else {
                continue;
            };
            let Some((before, after)) = first.get(package).copied() else {
                // Read again after the other dies, so that their readings lie between two of this one.
                if let Ok(after) = number(&zone.energy_file) {
                    first.insert(package, (energy.raw, after));
                }
                continue;
            };
            if self.apart.contains(&zone.name) {
                continue;
            }
            if lies_between(before, energy.raw, after, &zone.limits) {
                energy.scope = None;
            } else {
                self.apart.insert(zone.name.clone());
            }
        }
    }
}

/// Whether a counter may have shown `raw` between showing `before` and `after`, give or take its updates.
fn lies_between(before: u64, raw: u64, after: u64, limits: &Limits) -> bool {
    // At most 5 kW for 10 ms: it fits.
    let slack = (limits.max_per_second * MIRROR_LAG.as_secs_f64()) as i128;
    let (before, raw, after) = (i128::from(before), i128::from(raw), i128::from(after));
    let around = |counts: i128| match limits.modulus {
        Some(modulus) => counts.rem_euclid(i128::from(modulus)),
        None => counts,
    };
    let (from, span) = (around(raw - before + slack), around(after - before));
    (0..=span + 2 * slack).contains(&from)
}

impl Zone {
    fn reading(&self, raw: u64, at: Duration) -> EnergyReading {
        EnergyReading {
            meter: MeterId { class: Class::Zone, device: self.name.clone(), source: Source::Counter },
            scope: self.scope,
            raw,
            microjoules_per_count: 1,
            limits: self.limits,
            epoch: Epoch::Hardware,
            at,
            unread: 0,
        }
    }
}

/// Zones under a powercap folder that can be read, in order of their names, and why others cannot.
pub fn discover(folder: &Path) -> (Vec<Zone>, Option<ReadError>) {
    let (zones, mut error) = list(folder, &mut Names::default());
    let readable = |zone: &Zone| match number(&zone.energy_file) {
        Ok(_) => true,
        Err(e) => {
            error.get_or_insert_with(|| unreadable(&zone.energy_file, &e));
            false
        }
    };
    let zones = zones.into_iter().filter(readable).collect();
    (zones, error)
}

/// Zones under a powercap folder, in order of their names, and why some may be missing.
/// MMIO interfaces show the same packages again: they are read where there are no others.
fn list(folder: &Path, given: &mut Names) -> (Vec<Zone>, Option<ReadError>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), None),
        Err(error) => return (Vec::new(), Some(ReadError::io(folder, &error))),
    };
    // Zone folders are `intel-rapl:N` and `intel-rapl:N:M`, N and M in hex on some kernels; a sysfs lists
    // subzones beside their parents and inside them alike: take each once, by its name.
    let entries =
        entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    let entries: Vec<String> = entries.collect();
    let of = |interface: &str| {
        let mut names = BTreeSet::new();
        for name in entries.iter().filter(|name| name.starts_with(interface)) {
            names.extend(subfolders(&folder.join(name), &format!("{name}:")));
            names.insert(name.clone());
        }
        names
    };
    let names = INTERFACES.iter().map(|interface| of(interface)).find(|names| !names.is_empty());
    let names = names.unwrap_or_default();
    let mut zones: Vec<Zone> = Vec::new();
    let mut error = None;
    for name in names.iter().take(MAX_ZONES) {
        match zone(folder, name, given) {
            Ok(zone) => zones.push(zone),
            // It disappeared while it was looked at.
            Err(e) if e.reason == "missing" && !path(folder, name).exists() => {}
            Err(e) => error = Some(e),
        }
    }
    zones.sort_by(|a, b| a.name.cmp(&b.name));
    (zones, error)
}

fn subfolders(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// The zone that a subzone lies in, by their folders' names.
fn parent(name: &str) -> Option<&str> {
    name.rsplit_once(':').map(|(parent, _)| parent).filter(|parent| parent.contains(':'))
}

fn path(folder: &Path, name: &str) -> PathBuf {
    let beside = folder.join(name);
    match parent(name) {
        Some(parent) if !beside.exists() => folder.join(parent).join(name),
        _ => beside,
    }
}

fn zone(folder: &Path, folder_name: &str, given: &mut Names) -> Result<Zone, ReadError> {
    let path = path(folder, folder_name);
    let own = label(&path)?;
    let full = match parent(folder_name) {
        Some(parent) => format!("{}/{own}", label(&folder.join(parent))?),
        None => own.clone(),
    };
    let limits = Limits { modulus: modulus(&path), max_per_second: max_watts(&path) * 1e6 };
    Ok(Zone {
        name: given.give(folder_name, &full),
        scope: scope(&own),
        energy_file: path.join("energy_uj"),
        die_of: own.rsplit_once("-die-").map(|(package, _)| package.to_owned()),
        limits,
    })
}

fn unreadable(file: &Path, error: &io::Error) -> ReadError {
    let what = if error.kind() == io::ErrorKind::PermissionDenied {
        "; let the agent's group read it (the package's udev rule does), or give the service CAP_DAC_READ_SEARCH as an ambient capability"
    } else {
        ""
    };
    ReadError::new(io_reason(error), format!("{}: {error}{what}", file.display()))
}

fn label(folder: &Path) -> Result<String, ReadError> {
    let file = folder.join("name");
    let text = text(&file).map_err(|e| ReadError::io(&file, &e))?;
    let name = text.trim();
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(ReadError::new("invalid", format!("{}: {name:?} is no zone name", file.display())));
    }
    Ok(name.to_owned())
}

fn scope(name: &str) -> Option<Scope> {
    match name {
        "dram" => Some(Scope::Dram),
        name if name.starts_with("package-") => Some(Scope::Cpu),
        _ => None,
    }
}

/// The counter runs through 0 ..= the range, so it counts modulo one more.
fn modulus(folder: &Path) -> Option<u64> {
    number(&folder.join("max_energy_range_uj")).ok().filter(|range| *range > 0)?.checked_add(1)
}

fn max_watts(folder: &Path) -> f64 {
    let constraints = (0..4).flat_map(|i| {
        ["max_power_uw", "power_limit_uw"].map(|what| folder.join(format!("constraint_{i}_{what}")))
    });
    // Constraint files may be empty or refuse to be read: those say nothing.
    let stated = constraints.filter_map(|file| number(&file).ok()).max().unwrap_or(0) as f64 / 1e6;
    if stated > 0.0 { (stated * OVERSHOOT).clamp(MIN_ZONE_WATTS, MAX_ZONE_WATTS) } else { MAX_ZONE_WATTS }
}

#[cfg(test)]
mod tests;
