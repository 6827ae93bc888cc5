//! What the agent itself costs its host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::device::file::Reader;

/// What the agent itself has used, its worker not included.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct OwnCost {
    /// CPU nanoseconds since it began; `None` where the kernel does not tell.
    pub cpu_nanos: Option<u64>,
    /// Resident memory, pages that it shares with other programs included.
    pub resident_bytes: Option<u64>,
    /// Its share of the node's CPU power over the last window, by CPU time: an estimate, be that power measured.
    pub power_watts: Option<f64>,
}

/// Reads it.
pub(super) struct OwnMeter {
    statm: PathBuf,
    page_bytes: u64,
    reader: Reader,
    last: Option<u64>,
}

impl OwnMeter {
    pub(super) fn new(procfs_root: &Path) -> Self {
        Self {
            statm: procfs_root.join("self/statm"),
            page_bytes: rustix::param::page_size() as u64,
            reader: Reader::default(),
            last: None,
        }
    }

    /// At the end of a window in which `cpus` CPUs drew `watts`.
    pub(super) fn read(&mut self, window: Duration, cpus: usize, watts: Option<f64>) -> OwnCost {
        let cpu_nanos = clock::process_cpu_nanos(std::process::id());
        let before = std::mem::replace(&mut self.last, cpu_nanos);
        let used = cpu_nanos.zip(before).map(|(now, before)| now.saturating_sub(before));
        let power_watts = used.zip(watts).and_then(|(used, watts)| share(used, window, cpus, watts));
        OwnCost { cpu_nanos, resident_bytes: self.resident_bytes(), power_watts }
    }

    fn resident_bytes(&mut self) -> Option<u64> {
        let text = self.reader.read(&self.statm).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.trim().parse().ok()?;
        pages.checked_mul(self.page_bytes)
    }
}

fn share(used_nanos: u64, window: Duration, cpus: usize, watts: f64) -> Option<f64> {
    let whole = window.as_nanos() as f64 * cpus as f64;
    (whole > 0.0).then(|| watts * (used_nanos as f64 / whole).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watts_follow_cpu_time() {
        let second = Duration::from_secs(1);
        assert_eq!(share(10_000_000, second, 2, 100.0), Some(0.5), "10 ms of two seconds");
        assert_eq!(share(9_000_000_000, second, 2, 100.0), Some(100.0), "never more than there is");
        assert_eq!(share(1, Duration::ZERO, 2, 100.0), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let mut own = OwnMeter::new(Path::new("/proc"));
        let window = Duration::from_secs(1);
        let first = own.read(window, 1, Some(50.0));
        assert_eq!(first.power_watts, None, "nothing is known of the time before");
        let resident = first.resident_bytes.unwrap();
        assert!((1 << 20..1 << 36).contains(&resident), "{resident}");
        let second = own.read(window, 1, Some(50.0));
        assert!(second.cpu_nanos > first.cpu_nanos && second.power_watts > Some(0.0), "{second:?}");
        assert_eq!(own.read(window, 1, None).power_watts, None);
        let missing = OwnMeter::new(Path::new("/nonexistent")).read(window, 1, None);
        assert_eq!(missing.resident_bytes, None);
    }
}
