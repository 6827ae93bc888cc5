//! CPU time by unit: services, containers, pods, jobs, by the cgroup that each runs in.
//!
//! Invariant: a nanosecond is one unit's. A cgroup's time contains that of the cgroups below it, so what an inner
//! unit has used is taken from the one around it. Times only grow; a cgroup that was made anew under an old name is
//! another one, and its first reading counts for nothing.

pub mod classify;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::config::Attribution;
use classify::{Kinds, classify};
use tree::{Found, is_gone};
pub use tree::{Hierarchy, Interface};

/// New cgroups are looked for this often. What one used before it was found is the one's around it, or others'.
const WALK_INTERVAL: Duration = Duration::from_secs(2);
/// Between two walks there is this many times what one took: they take a hundredth of the time at most.
const WALK_SHARE: u32 = 100;

/// What kind of thing a unit is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// A job of Slurm's.
    Slurm,
    /// A job of OpenPBS's or Torque's.
    Pbs,
    /// A pod of Kubernetes'.
    Pod,
    /// A container, or a machine that is registered with systemd.
    Container,
    /// A service or scope of systemd's.
    Systemd,
    /// An outermost cgroup that is none of the others.
    Cgroup,
}

impl UnitKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Slurm, Self::Pbs, Self::Pod, Self::Container, Self::Systemd, Self::Cgroup];

    /// The value of the `kind` label, and the word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slurm => "slurm",
            Self::Pbs => "pbs",
            Self::Pod => "pod",
            Self::Container => "container",
            Self::Systemd => "systemd",
            Self::Cgroup => "cgroup",
        }
    }
}

/// What joules can be told apart by: a service, a container, a job.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub struct Unit {
    /// Its kind.
    pub kind: UnitKind,
    /// Its name or identity; printable, [`classify::MAX_NAME_BYTES`] at most.
    pub name: String,
}

/// CPU time of units at one time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct UnitsReading {
    /// When it was read, since boot.
    pub at: Duration,
    /// CPU nanoseconds of each unit that is there, since it was first seen.
    pub nanos: BTreeMap<Arc<Unit>, u64>,
}

/// The backend.
pub struct Units {
    sysfs_root: PathBuf,
    kinds: Kinds,
    hierarchy: Option<Hierarchy>,
    cgroups: Vec<Cgroup>,
    nanos: BTreeMap<Arc<Unit>, u64>,
    /// When the last walk began, and how long it took.
    walked: Option<(Duration, Duration)>,
}

/// A cgroup that is read; outer ones stand first.
struct Cgroup {
    unit: Arc<Unit>,
    path: PathBuf,
    inode: u64,
    parent: Option<usize>,
    file: File,
    last_nanos: u64,
    gone: bool,
}

impl Units {
    /// Units of the host that the configuration names.
    pub fn new(sysfs_root: &Path, attribution: &Attribution) -> Self {
        Self {
            sysfs_root: sysfs_root.to_owned(),
            kinds: attribution.kinds.clone(),
            hierarchy: None,
            cgroups: Vec::new(),
            nanos: BTreeMap::new(),
            walked: None,
        }
    }

    pub(super) fn read(&mut self) -> Answer {
        self.read_at(clock::monotonic())
    }

    fn read_at(&mut self, now: Duration) -> Answer {
        let hierarchy = match self.hierarchy.take().map_or_else(|| Hierarchy::find(&self.sysfs_root), Ok) {
            Ok(hierarchy) => hierarchy,
            Err(error) => return Answer::Failed(error),
        };
        let mut failures = Vec::new();
        self.count(&hierarchy, &mut failures);
        let at = now;
        let due = |(began, took): (Duration, Duration)| {
            now.saturating_sub(began) >= (took * WALK_SHARE).max(WALK_INTERVAL)
        };
        if self.walked.is_none_or(due) {
            let began = clock::monotonic();
            self.walk(&hierarchy, &mut failures);
            self.walked = Some((now, clock::monotonic().saturating_sub(began)));
        }
        self.hierarchy = Some(hierarchy);
        let units = UnitsReading { at, nanos: self.nanos.clone() };
        Answer::Reading(Reading { units: Some(Arc::new(units)), failures, ..Reading::default() })
    }

    /// Adds what each cgroup used since it was last read to its unit.
    fn count(&mut self, hierarchy: &Hierarchy, failures: &mut Vec<&'static str>) {
        let mut used: Vec<u64> = Vec::with_capacity(self.cgroups.len());
        for cgroup in &mut self.cgroups {
            let read = if cgroup.gone { Ok(cgroup.last_nanos) } else { hierarchy.read(&cgroup.file) };
            let nanos = read.unwrap_or_else(|error| {
                cgroup.gone = is_gone(&error);
                if !cgroup.gone {
                    fail(failures, super::io_reason(&error));
                }
                cgroup.last_nanos
            });
            // Going back is no negative time: from there on it counts anew.
            used.push(nanos.saturating_sub(std::mem::replace(&mut cgroup.last_nanos, nanos)));
        }
        let mut own = used.clone();
        for (cgroup, used) in self.cgroups.iter().zip(used) {
            if let Some(around) = cgroup.parent {
                own[around] = own[around].saturating_sub(used);
            }
        }
        for (cgroup, own) in self.cgroups.iter().zip(own) {
            let sum = self.nanos.entry(Arc::clone(&cgroup.unit)).or_default();
            *sum = sum.saturating_add(own);
        }
    }

    /// Finds what came and lets go of what went.
    fn walk(&mut self, hierarchy: &Hierarchy, failures: &mut Vec<&'static str>) {
        let walk = hierarchy.walk(&self.kinds);
        walk.failures.into_iter().for_each(|reason| fail(failures, reason));
        let before = std::mem::take(&mut self.cgroups);
        let mut known: BTreeMap<PathBuf, Cgroup> =
            before.into_iter().map(|cgroup| (cgroup.path.clone(), cgroup)).collect();
        // Where each one that was found stands among those that can be read; else the one around it.
        let mut places: Vec<Option<usize>> = Vec::with_capacity(walk.found.len());
        for found in walk.found {
            let parent = found.parent.and_then(|parent| places[parent]);
            let same = known.remove(&found.path).filter(|cgroup| cgroup.is(&found));
            let cgroup = match same {
                Some(cgroup) => Ok(Cgroup { parent, ..cgroup }),
                None => self.begin(hierarchy, found, parent),
            };
            match cgroup {
                Ok(cgroup) => {
                    self.nanos.entry(Arc::clone(&cgroup.unit)).or_default();
                    places.push(Some(self.cgroups.len()));
                    self.cgroups.push(cgroup);
                }
                Err(reason) => {
                    places.push(parent);
                    reason.into_iter().for_each(|reason| fail(failures, reason));
                }
            }
        }
        let there: BTreeSet<&Arc<Unit>> = self.cgroups.iter().map(|cgroup| &cgroup.unit).collect();
        self.nanos.retain(|unit, _| there.contains(unit));
    }

    /// Begins to read a cgroup. What it has used so far was before its time here.
    fn begin(
        &self,
        hierarchy: &Hierarchy,
        found: Found,
        parent: Option<usize>,
    ) -> Result<Cgroup, Option<&'static str>> {
        let Found { unit, path, inode, .. } = found;
        let read = hierarchy.open(&path).and_then(|file| Ok((hierarchy.read(&file)?, file)));
        let (last_nanos, file) = read.map_err(|e| (!is_gone(&e)).then(|| super::io_reason(&e)))?;
        let known = self.nanos.get_key_value(&unit).map(|(unit, _)| Arc::clone(unit));
        let unit = known.unwrap_or_else(|| Arc::new(unit));
        Ok(Cgroup { unit, path, inode, parent, file, last_nanos, gone: false })
    }
}

impl Cgroup {
    /// Whether it is the one that was found, and not one before it of the same name.
    fn is(&self, found: &Found) -> bool {
        // A file system other than the kernel's gives numbers anew: what is open was then removed.
        let linked = || self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        !self.gone && self.inode == found.inode && *self.unit == found.unit && linked()
    }
}

/// One reason counts once a round.
fn fail(failures: &mut Vec<&'static str>, reason: &'static str) {
    if !failures.contains(&reason) {
        failures.push(reason);
    }
}

/// Tells which unit a process is part of.
#[derive(Debug)]
pub struct Places {
    sysfs_root: PathBuf,
    procfs_root: PathBuf,
    kinds: Kinds,
    /// Once it is there.
    hierarchy: OnceLock<Hierarchy>,
}

impl Places {
    /// As the configuration says.
    pub fn new(sysfs_root: &Path, procfs_root: &Path, attribution: &Attribution) -> Self {
        Self {
            sysfs_root: sysfs_root.to_owned(),
            procfs_root: procfs_root.to_owned(),
            kinds: attribution.kinds.clone(),
            hierarchy: OnceLock::new(),
        }
    }

    /// The unit of the process `pid`; `None` where it is of none, or has ended.
    pub fn unit_of(&self, pid: u32) -> Option<Unit> {
        let hierarchy = match self.hierarchy.get() {
            Some(hierarchy) => hierarchy,
            // That there is none is the backend's to say.
            None => {
                let found = Hierarchy::find(&self.sysfs_root).ok()?;
                self.hierarchy.get_or_init(|| found)
            }
        };
        let path = hierarchy.cgroup_of(&self.procfs_root, pid)?;
        classify(&path, &self.kinds).map(|(unit, _)| unit)
    }
}

/// What can be told apart on a host, for `check`.
#[derive(Debug)]
pub struct Survey {
    /// Where CPU time is read.
    pub hierarchy: Hierarchy,
    /// Units by kind.
    pub units: BTreeMap<UnitKind, usize>,
    /// What could not be read, by reason.
    pub failures: Vec<&'static str>,
}

/// Looks once at everything.
///
/// # Errors
/// When there is no hierarchy of cgroups.
pub fn survey(sysfs_root: &Path, attribution: &Attribution) -> Result<Survey, ReadError> {
    let hierarchy = Hierarchy::find(sysfs_root)?;
    let mut backend = Units::new(sysfs_root, attribution);
    let mut failures = Vec::new();
    backend.walk(&hierarchy, &mut failures);
    let mut units = BTreeMap::new();
    let there: BTreeSet<&Arc<Unit>> = backend.cgroups.iter().map(|cgroup| &cgroup.unit).collect();
    there.into_iter().for_each(|unit| *units.entry(unit.kind).or_default() += 1);
    Ok(Survey { hierarchy, units, failures })
}

#[cfg(test)]
mod tests;
