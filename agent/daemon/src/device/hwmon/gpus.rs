//! GPUs of AMD and Intel, by their drivers' hwmon sensors.
//!
//! Invariant: a host without such GPUs is normal, and costs a look at a folder every ten seconds. Power is read at
//! every turn, the rest once a window. A GPU that was there stays in the readings, with `up` false while it is
//! lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::card::{self, Found};
pub use super::card::{AMD_PREFIX, PCI_PREFIX, Passed};
use super::gpu::Gpu;
use crate::clock;
use crate::config::{Gpus, Metering};
use crate::device::{Answer, ReadError, Reading};

/// How often cards are looked for: drivers load after the agent.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Power is integrated over this many missed readings at most.
const MAX_MISSED: u32 = 10;

/// Whether a GPU of this identity is one of those that are read here, rather than NVML's.
pub fn is_one(uuid: &str) -> bool {
    uuid.starts_with(AMD_PREFIX) || uuid.starts_with(PCI_PREFIX)
}

/// The backend.
pub struct HwmonGpus {
    sysfs_root: PathBuf,
    wanted: Gpus,
    metering: Metering,
    gpus: Vec<Gpu>,
    shared: BTreeSet<String>,
    looked_at: Option<Duration>,
    full_window: Option<u128>,
    /// Cards that are not metered here.
    passed: Vec<Passed>,
    /// Why the newest look may have missed cards.
    error: Option<ReadError>,
}

impl HwmonGpus {
    /// GPUs under `sysfs_root`; those that are listed must be there.
    pub fn new(sysfs_root: &Path, wanted: Gpus, metering: Metering) -> Self {
        let listed = match &wanted {
            Gpus::All => &[][..],
            Gpus::Listed(uuids) => uuids,
        };
        Self {
            sysfs_root: sysfs_root.to_owned(),
            gpus: listed.iter().map(|uuid| Gpu::new(uuid)).collect(),
            wanted,
            metering,
            shared: BTreeSet::new(),
            looked_at: None,
            full_window: None,
            passed: Vec::new(),
            error: None,
        }
    }

    /// Cards that the newest look passed over.
    pub fn passed(&self) -> &[Passed] {
        &self.passed
    }

    /// `interval`, while a GPU's energy has to be added up from its power; else once a window. Without any, a
    /// look is never late by more than half of its time.
    pub(in crate::device) fn pace(&self, interval: Duration) -> Duration {
        if self.gpus.is_empty() {
            LOOK_AGAIN / 2
        } else if self.gpus.iter().any(Gpu::hangs_on_power) {
            interval
        } else {
            interval.max(self.metering.interval)
        }
    }

    pub(crate) fn read(&mut self, asked: bool) -> Answer {
        self.read_at(asked, &clock::monotonic)
    }

    pub(super) fn read_at(&mut self, asked: bool, clock: &dyn Fn() -> Duration) -> Answer {
        let now = clock();
        let window = now.as_nanos() / self.metering.interval.as_nanos().max(1);
        let full = asked || self.full_window != Some(window);
        self.full_window = Some(window);
        // One that is lost is looked for once a window.
        let missing = full && self.gpus.iter().any(|gpu| !gpu.is_attached());
        if missing || self.looked_at.is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN) {
            self.looked_at = Some(now);
            self.look();
        }
        let mut failures = Vec::new();
        let often = (self.metering.gpu_interval * MAX_MISSED).max(Duration::from_secs(1));
        // One that is missed, at most.
        let seldom = self.metering.interval.saturating_mul(5) / 2;
        for gpu in self.gpus.iter_mut().filter(|gpu| full || gpu.reading.up) {
            let max_span = if gpu.hangs_on_power() { often } else { often.max(seldom) };
            gpu.read(full, max_span, clock, &mut failures);
        }
        match &self.error {
            Some(error) if self.gpus.is_empty() => Answer::Failed(error.clone()),
            _ if self.gpus.is_empty() => Answer::Absent,
            // Power alone was added up: it is told with the window.
            _ if !full && failures.is_empty() => Answer::Unchanged,
            error => {
                failures.extend(error.iter().map(|error| error.reason).filter(|_| full));
                Answer::Reading(self.reading(failures))
            }
        }
    }

    /// Finds what cards there are now.
    fn look(&mut self) {
        let Found { cards, passed, error } = card::list(&self.sysfs_root, &mut self.shared);
        for card in cards.iter().filter(|card| self.wanted.includes(&card.uuid)) {
            let known = self.gpus.iter().position(|gpu| gpu.reading.uuid == card.uuid);
            let at = known.unwrap_or_else(|| {
                self.gpus.push(Gpu::new(&card.uuid));
                self.gpus.len() - 1
            });
            self.gpus[at].attach(card);
        }
        for gpu in self.gpus.iter_mut().filter(|gpu| gpu.is_attached()) {
            if !cards.iter().any(|card| card.uuid == gpu.reading.uuid) {
                gpu.lose("not_found");
            }
        }
        (self.passed, self.error) = (passed, error);
    }

    fn reading(&self, failures: Vec<&'static str>) -> Reading {
        Reading {
            energy: self.gpus.iter().flat_map(Gpu::energy).collect(),
            gpus: self.gpus.iter().map(|gpu| gpu.reading.clone()).collect(),
            failures,
            ..Reading::default()
        }
    }
}

#[cfg(test)]
mod tests;
