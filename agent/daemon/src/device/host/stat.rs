//! `/proc/stat`: CPU time by CPU.
//!
//! Parsed here: the `procfs` crate numbers CPUs by their line, which is wrong as soon as one is offline,
//! and attribution needs the CPUs that are the node's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::ReadError;
use super::super::file::Reader;
use crate::cpus::CpuSet;

/// Nanoseconds of a tick: Linux shows user space 100 ticks a second on every architecture that has GPUs
/// or RAPL.
const TICK_NANOS: u64 = 10_000_000;

/// What CPUs spend time on, as `/proc/stat` orders it. Time of guests stands in `user` and `nice` already.
pub const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

/// Cumulative CPU time of one or several CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuTime {
    /// Nanoseconds in which something ran.
    pub busy_nanos: u64,
    /// Nanoseconds in which nothing ran, waits for I/O included.
    pub idle_nanos: u64,
}

impl CpuTime {
    /// Busy and idle among the modes. Stolen time is neither: it was somebody else's, on somebody else's
    /// joules.
    fn of([user, nice, system, idle, iowait, irq, softirq, _steal]: [u64; MODES.len()]) -> Self {
        let sum = |parts: &[u64]| parts.iter().fold(0u64, |sum, part| sum.saturating_add(*part));
        Self { busy_nanos: sum(&[user, nice, system, irq, softirq]), idle_nanos: sum(&[idle, iowait]) }
    }

    /// Time since `earlier`. Idle time may go back by a tick (waits for I/O do): never below zero.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy_nanos: self.busy_nanos.saturating_sub(earlier.busy_nanos),
            idle_nanos: self.idle_nanos.saturating_sub(earlier.idle_nanos),
        }
    }

    /// Share of time that was not idle; `None` when no time passed.
    pub fn utilization(self) -> Option<f64> {
        let total = self.busy_nanos + self.idle_nanos;
        (total > 0).then(|| self.busy_nanos as f64 / total as f64)
    }
}

impl std::iter::Sum for CpuTime {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |sum, time| Self {
            busy_nanos: sum.busy_nanos + time.busy_nanos,
            idle_nanos: sum.idle_nanos + time.idle_nanos,
        })
    }
}

/// CPU time of the host's newest reading, for one that comes after it in the same thread: the file is dear on hosts
/// of many CPUs. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct SharedCpuTime(Arc<Mutex<Option<CpuTime>>>);

impl SharedCpuTime {
    /// Takes it away, so that none is taken for a newer one.
    pub fn take(&self) -> Option<CpuTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn put(&self, time: CpuTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }
}

/// What `/proc/stat` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    cpus: BTreeMap<u32, CpuTime>,
    /// Nanoseconds of all CPUs by [`MODES`].
    pub modes: [u64; MODES.len()],
    /// When the host was booted, Unix seconds.
    pub boot_unix_seconds: u64,
}

impl Stat {
    /// Reads `stat` under `procfs_root`.
    ///
    /// # Errors
    /// When it cannot be read, or shows no CPU.
    pub fn read(procfs_root: &Path, reader: &mut Reader) -> Result<Self, ReadError> {
        let path = procfs_root.join("stat");
        let stat = Self::parse(reader.text(&path)?);
        if stat.cpus.is_empty() {
            return Err(ReadError::new("invalid", format!("{} shows no CPU", path.display())));
        }
        Ok(stat)
    }

    fn parse(text: &str) -> Self {
        let mut stat = Self::default();
        for line in text.lines() {
            if let Some(seconds) = line.strip_prefix("btime ") {
                stat.boot_unix_seconds = seconds.trim().parse().unwrap_or(0);
            } else if let Some((cpu, modes)) = line.strip_prefix("cpu").and_then(cpu_line) {
                stat.cpus.insert(cpu, CpuTime::of(modes));
                let sums = stat.modes.iter_mut().zip(modes);
                sums.for_each(|(sum, nanos)| *sum = sum.saturating_add(nanos));
            }
        }
        stat
    }

    /// Time of all CPUs.
    pub fn host(&self) -> CpuTime {
        self.cpus.values().copied().sum()
    }

    /// Time of some CPUs.
    pub fn of(&self, cpus: &CpuSet) -> CpuTime {
        self.cpus.iter().filter(|(cpu, _)| cpus.contains(**cpu)).map(|(_, time)| *time).sum()
    }

    /// How many CPUs there are.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }
}

/// `N user nice system idle iowait irq softirq steal guest guest_nice`, in nanoseconds by [`MODES`]. Older
/// kernels end earlier.
fn cpu_line(line: &str) -> Option<(u32, [u64; MODES.len()])> {
    // The sum of all CPUs has a blank in place of a number.
    let (cpu, rest) = line.split_once(' ')?;
    let cpu = cpu.parse().ok()?;
    let mut nanos = [0u64; MODES.len()];
    for (nanos, field) in nanos.iter_mut().zip(rest.split_ascii_whitespace()) {
        *nanos = field.parse::<u64>().ok()?.saturating_mul(TICK_NANOS);
    }
    Some((cpu, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  30 0 0 70 0 0 0 0 0 0\ncpu0 10 1 2 50 3 1 1 9 5 5\ncpu3 20 0 0 10 0 0 0 0 0 0\nintr 1\nctxt 5\nbtime 1700000000\n";

    #[test]
    fn cpus_keep_their_numbers() {
        let stat = Stat::parse(STAT);
        assert_eq!(stat.cpu_count(), 2);
        assert_eq!(stat.boot_unix_seconds, 1_700_000_000);
        let of = |cpus: &str| stat.of(&cpus.parse().unwrap());
        assert_eq!(of("0"), CpuTime { busy_nanos: 150_000_000, idle_nanos: 530_000_000 });
        assert_eq!(of("3"), CpuTime { busy_nanos: 200_000_000, idle_nanos: 100_000_000 });
        assert_eq!(of("1-2"), CpuTime::default());
        assert_eq!(stat.host().busy_nanos, 350_000_000);
        assert_eq!(stat.modes.map(|nanos| nanos / TICK_NANOS), [30, 1, 2, 60, 3, 1, 1, 9]);
    }

    #[test]
    fn time_that_goes_back_is_none() {
        let later = CpuTime { busy_nanos: 10, idle_nanos: 5 };
        let earlier = CpuTime { busy_nanos: 4, idle_nanos: 6 };
        assert_eq!(later.since(earlier), CpuTime { busy_nanos: 6, idle_nanos: 0 });
        assert_eq!(CpuTime::default().utilization(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(cpu[0-9 -]{0,40}\n|btime .{0,20}\n|.{0,20}\n){0,8}") {
            Stat::parse(&text);
        }
    }
}
