//! RAPL: CPU and DRAM energy counters of the kernel's powercap interface.
//!
//! Invariant: each zone is one counter of its own, never summed before its wraps are undone, and the
//! scopes of those that count for the node do not overlap: packages are `cpu`, memory is `dram`; cores,
//! uncores and the platform lie inside or around them and count for nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wattmill_protocol::Source;

use super::{Answer, Class, EnergyReading, Epoch, MeterId, ReadError, Reading, Scope, io_reason};
use crate::clock;
use crate::counter::Limits;

/// How often a host without zones is looked at again: the driver may load after the agent.
const REDISCOVER: Duration = Duration::from_secs(30);
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
    limits: Limits,
}

/// The backend.
pub struct Rapl {
    folder: PathBuf,
    measured: Measured,
    zones: Vec<Zone>,
    looked_at: Duration,
    last_error: Option<ReadError>,
}

impl Rapl {
    /// RAPL under `sysfs_root`, looked for at once: the estimate must know from its first reading on.
    pub fn new(sysfs_root: &Path, measured: Measured, now: Duration) -> Self {
        let folder = sysfs_root.join("class/powercap");
        let mut rapl = Self { folder, measured, zones: Vec::new(), looked_at: now, last_error: None };
        rapl.discover();
        rapl
    }

    pub(super) fn read(&mut self) -> Answer {
        self.read_at(clock::monotonic())
    }

    fn read_at(&mut self, now: Duration) -> Answer {
        let due = now.saturating_sub(self.looked_at) >= REDISCOVER;
        if self.zones.is_empty() && due {
            self.looked_at = now;
            self.discover();
        }
        if self.zones.is_empty() {
            return self.last_error.take().map_or(Answer::Absent, Answer::Failed);
        }
        self.read_zones()
    }

    fn discover(&mut self) {
        let (zones, error) = discover(&self.folder);
        self.last_error = error;
        self.measured.set(zones.iter().any(|zone| zone.scope == Some(Scope::Cpu)));
        for zone in &zones {
            tracing::info!(zone = zone.name, scope = zone.scope.map(Scope::as_str), "RAPL zone found");
        }
        self.zones = zones;
    }

    fn read_zones(&mut self) -> Answer {
        let mut reading = Reading::default();
        let mut error = None;
        for zone in &self.zones {
            match number(&zone.energy_file) {
                Ok(raw) => reading.energy.push(zone.reading(raw)),
                Err(e) => {
                    reading.failures.push(io_reason(&e));
                    error = Some(ReadError::io(&zone.energy_file, &e));
                }
            }
        }
        match error {
            // All of them gone: the driver was unloaded, or the permission taken away. Look again.
            Some(error) if reading.energy.is_empty() => {
                self.zones.clear();
                self.measured.set(false);
                Answer::Failed(error)
            }
            _ => Answer::Reading(reading),
        }
    }
}

impl Zone {
    fn reading(&self, raw: u64) -> EnergyReading {
        EnergyReading {
            meter: MeterId { class: Class::Zone, device: self.name.clone(), source: Source::Counter },
            scope: self.scope,
            raw,
            microjoules_per_count: 1,
            limits: self.limits,
            epoch: Epoch::Hardware,
            at: clock::monotonic(),
            unread: 0,
        }
    }
}

/// Zones under a powercap folder that can be read, in order of their names, and why others cannot.
/// MMIO interfaces (`intel-rapl-mmio`) show the same packages again and are left out.
pub fn discover(folder: &Path) -> (Vec<Zone>, Option<ReadError>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), None),
        Err(error) => return (Vec::new(), Some(ReadError::io(folder, &error))),
    };
    // Zone folders are `intel-rapl:N` and `intel-rapl:N:M`, N and M in hex on some kernels; a sysfs lists
    // subzones beside their parents and inside them alike: take each once, by its name.
    let mut names = BTreeSet::new();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("intel-rapl:") {
            names.extend(subfolders(&entry.path(), &format!("{name}:")));
            names.insert(name);
        }
    }
    let mut zones: Vec<Zone> = Vec::new();
    let mut error = None;
    for name in &names {
        match zone(folder, name, &zones) {
            Ok(zone) => zones.push(zone),
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

fn zone(folder: &Path, folder_name: &str, known: &[Zone]) -> Result<Zone, ReadError> {
    let parent = folder_name.rsplit_once(':').map(|(parent, _)| parent).filter(|p| p.contains(':'));
    let beside = folder.join(folder_name);
    let path = match parent {
        Some(parent) if !beside.exists() => folder.join(parent).join(folder_name),
        _ => beside,
    };
    let own = label(&path)?;
    let name = match parent {
        Some(parent) => format!("{}/{own}", label(&folder.join(parent))?),
        None => own.clone(),
    };
    // Two zones of one name would be one series: keep both apart by the folder's name.
    let name =
        if known.iter().any(|zone| zone.name == name) { format!("{name}@{folder_name}") } else { name };
    let energy_file = path.join("energy_uj");
    number(&energy_file).map_err(|e| unreadable(&energy_file, &e))?;
    let modulus = modulus(&path);
    let max_per_second = max_watts(&path) * 1e6;
    Ok(Zone { name, scope: scope(&own), energy_file, limits: Limits { modulus, max_per_second } })
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
    let text = fs::read_to_string(&file).map_err(|e| ReadError::io(&file, &e))?;
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

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
}

#[cfg(test)]
mod tests;
