//! The host's figures: CPU time, memory, disks, network.
//!
//! Invariant: each thing once. Disks are whole physical devices, interfaces physical ones where there
//! are any. Names may be any bytes: they are shown printable and bounded. Nothing is read here that asks a device:
//! energy is shared out by CPU time, which must not wait for a disk ([`capacity`]).

pub mod capacity;
pub mod pressure;
pub mod stat;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use procfs::DiskStats;
use procfs::FromBufRead;
use procfs::net::InterfaceDeviceStatus;

use super::file::Reader;
use super::units::classify::printable;
use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::cpus::CpuSet;
pub use capacity::Usage;
use pressure::Pressure;
use stat::{CpuModes, CpuTime, SharedCpuTime, Stat};

/// `/proc/diskstats` counts sectors of this size whatever the device's own.
const SECTOR_BYTES: u64 = 512;
/// Most disks, interfaces and filesystems that become series.
const MAX_SERIES: usize = 128;

/// How often it is looked up which disks and interfaces are devices.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// The host's figures at one time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct HostReading {
    /// CPU time of all CPUs.
    pub host_cpu: CpuTime,
    /// CPU time of the node's CPUs.
    pub node_cpu: CpuTime,
    /// CPU nanoseconds of all CPUs by [`MODES`](stat::MODES).
    pub cpu_modes: [u64; stat::MODES.len()],
    /// Time in which tasks waited for a resource.
    pub pressure: Pressure,
    /// When the host was booted, Unix seconds.
    pub boot_unix_seconds: u64,
    /// Memory that is not available to new programs, and memory there is.
    pub memory: Option<Usage>,
    /// Bytes read and written, by disk.
    pub disks: BTreeMap<String, (u64, u64)>,
    /// Bytes received and sent, by interface.
    pub interfaces: BTreeMap<String, (u64, u64)>,
}

/// The backend.
pub struct Host {
    procfs_root: PathBuf,
    cpus: CpuSet,
    cpu_time: SharedCpuTime,
    reader: Reader,
    disks: Devices,
    interfaces: Devices,
    looked_at: Duration,
    /// CPU time as it is shown, which never falls.
    cpu_modes: CpuModes,
    /// As it was first said: the kernel derives it from a clock that may be set.
    boot_unix_seconds: Option<u64>,
}

/// Names of a class of devices, and whether there is a device behind each: looked up once in [`LOOK_INTERVAL`].
struct Devices {
    class: PathBuf,
    known: BTreeMap<String, bool>,
}

impl Devices {
    fn new(class: PathBuf) -> Self {
        Self { class, known: BTreeMap::new() }
    }

    fn is_physical(&mut self, name: &str) -> bool {
        if let Some(physical) = self.known.get(name) {
            return *physical;
        }
        let physical = self.class.join(name).join("device").exists();
        self.known.insert(name.to_owned(), physical);
        physical
    }
}

impl Host {
    /// The host that the configuration names; whoever reads after it finds its CPU time in `cpu_time`.
    pub fn new(config: &crate::config::Config, cpu_time: SharedCpuTime) -> Self {
        Self {
            procfs_root: config.procfs_root.clone(),
            cpus: config.cpus.clone(),
            cpu_time,
            reader: Reader::default(),
            disks: Devices::new(config.sysfs_root.join("block")),
            interfaces: Devices::new(config.sysfs_root.join("class/net")),
            looked_at: Duration::ZERO,
            cpu_modes: CpuModes::default(),
            boot_unix_seconds: None,
        }
    }

    pub(super) fn read(&mut self) -> Answer {
        self.read_at(clock::monotonic())
    }

    fn read_at(&mut self, now: Duration) -> Answer {
        // CPU time is what attribution stands on: without it there is no reading. The rest may fail.
        let stat = match Stat::read(&self.procfs_root, &mut self.reader) {
            Ok(stat) => stat,
            Err(error) => return Answer::Failed(error),
        };
        self.cpu_modes.take(&stat);
        self.cpu_time.put(self.cpu_modes.host());
        let mut failures = Vec::new();
        if now.saturating_sub(self.looked_at) >= LOOK_INTERVAL {
            self.looked_at = now;
            self.disks.known.clear();
            self.interfaces.known.clear();
        }
        let interfaces = kept(self.interfaces(), &mut failures).unwrap_or_default();
        let memory = kept(self.memory(), &mut failures);
        let disks = kept(self.disks(), &mut failures).unwrap_or_default();
        let pressure = kept(pressure::read(&self.procfs_root, &mut self.reader), &mut failures);
        let host = HostReading {
            host_cpu: self.cpu_modes.host(),
            node_cpu: self.cpu_modes.of(&self.cpus),
            cpu_modes: self.cpu_modes.sums(),
            pressure: pressure.unwrap_or_default(),
            boot_unix_seconds: *self.boot_unix_seconds.get_or_insert(stat.boot_unix_seconds),
            memory,
            disks,
            interfaces,
        };
        Answer::Reading(Reading { host: Some(Arc::new(host)), failures, ..Reading::default() })
    }

    fn memory(&mut self) -> Result<Usage, ReadError> {
        let path = self.procfs_root.join("meminfo");
        let text = self.reader.text(&path)?;
        let bytes = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1_024)
        };
        // Before Linux 3.14 what is available is not told.
        let size_and_rest = bytes("MemTotal").zip(bytes("MemAvailable").or(bytes("MemFree")));
        let Some((size_bytes, available)) = size_and_rest else {
            return Err(ReadError::new("invalid", format!("{} tells no memory", path.display())));
        };
        Ok(Usage { used_bytes: size_bytes.saturating_sub(available), size_bytes })
    }

    fn disks(&mut self) -> Result<BTreeMap<String, (u64, u64)>, ReadError> {
        let DiskStats(disks) = parse(&mut self.reader, &self.procfs_root.join("diskstats"))?;
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        let disks = disks.into_iter().filter(|disk| self.disks.is_physical(&disk.name));
        Ok(disks
            .map(|d| (printable(d.name.as_bytes()), (bytes(d.sectors_read), bytes(d.sectors_written))))
            .take(MAX_SERIES)
            .collect())
    }

    fn interfaces(&mut self) -> Result<BTreeMap<String, (u64, u64)>, ReadError> {
        let path = self.procfs_root.join("net/dev");
        let InterfaceDeviceStatus(all) = parse(&mut self.reader, &path)?;
        let mut physical = |name: &str| self.interfaces.is_physical(name);
        // Bridges and bonds carry again what physical interfaces carried. A container has virtual ones
        // only: those are its network then.
        let any_physical = all.keys().any(|name| physical(name));
        let mut interfaces: BTreeMap<_, _> = all
            .into_iter()
            .filter(|(name, _)| if any_physical { physical(name) } else { name != "lo" })
            .map(|(name, status)| (printable(name.as_bytes()), (status.recv_bytes, status.sent_bytes)))
            .collect();
        while interfaces.len() > MAX_SERIES {
            interfaces.pop_last();
        }
        Ok(interfaces)
    }
}

fn kept<T>(result: Result<T, ReadError>, failures: &mut Vec<&'static str>) -> Option<T> {
    result
        .map_err(|error| {
            tracing::debug!(%error, "a figure of the host cannot be read");
            failures.push(error.reason);
        })
        .ok()
}

fn parse<T: FromBufRead>(reader: &mut Reader, path: &Path) -> Result<T, ReadError> {
    T::from_buf_read(reader.escaped(path)?.as_bytes())
        .map_err(|error| ReadError::new("invalid", format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    pub(super) fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn fixture(root: &Path) -> Host {
        write(root, "proc/stat", "cpu0 10 0 0 90 0 0 0 0 0 0\ncpu1 50 0 0 50 0 0 0 0 0 0\nbtime 5\n");
        write(
            root,
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 0 kB\nCached: 0 kB\nSwapCached: 0 kB\nActive: 0 kB\nInactive: 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\nMapped: 0 kB\nSlab: 0 kB\nCommitted_AS: 0 kB\nVmallocTotal: 0 kB\nVmallocUsed: 0 kB\nVmallocChunk: 0 kB\n",
        );
        write(
            root,
            "proc/diskstats",
            "8 0 sda 1 0 100 0 2 0 200 0 0 0 0\n8 1 sda1 1 0 90 0 2 0 190 0 0 0 0\n253 0 dm-0 1 0 9 0 2 0 9 0 0 0 0\n",
        );
        write(
            root,
            "proc/net/dev",
            "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:   1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n  eth0: 700 0 0 0 0 0 0 0 800 0 0 0 0 0 0 0\n docker0: 5 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0\n",
        );
        fs::create_dir_all(root.join("sys/block/sda/device")).unwrap();
        fs::create_dir_all(root.join("sys/block/dm-0")).unwrap();
        Host {
            procfs_root: root.join("proc"),
            cpus: "1".parse().unwrap(),
            cpu_time: SharedCpuTime::default(),
            reader: Reader::default(),
            disks: Devices::new(root.join("sys/block")),
            interfaces: Devices::new(root.join("sys/class/net")),
            looked_at: Duration::ZERO,
            cpu_modes: CpuModes::default(),
            boot_unix_seconds: None,
        }
    }

    fn reading(host: &mut Host) -> (Arc<HostReading>, Vec<&'static str>) {
        match host.read_at(host.looked_at + LOOK_INTERVAL) {
            Answer::Reading(reading) => (reading.host.unwrap(), reading.failures),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_thing_is_read_once() {
        let root = tempfile::tempdir().unwrap();
        let mut host = fixture(root.path());
        let (figures, failures) = reading(&mut host);
        assert_eq!(failures, Vec::<&str>::new());
        assert_eq!(figures.memory, Some(Usage { used_bytes: 600 << 10, size_bytes: 1000 << 10 }));
        assert_eq!(figures.disks, BTreeMap::from([("sda".to_owned(), (51_200, 102_400))]));
        assert_eq!(figures.node_cpu.utilization(), Some(0.5));
        assert_eq!(figures.host_cpu.utilization(), Some(0.3));
        assert_eq!(host.cpu_time.take(), Some(figures.host_cpu));
        assert_eq!(host.cpu_time.take(), None, "each is used once");
        let names: Vec<&str> = figures.interfaces.keys().map(String::as_str).collect();
        assert_eq!(names, ["docker0", "eth0"], "none is physical: all but the loopback");
        fs::create_dir_all(root.path().join("sys/class/net/eth0/device")).unwrap();
        assert_eq!(reading(&mut host).0.interfaces, BTreeMap::from([("eth0".to_owned(), (700, 800))]));
    }

    #[test]
    fn cpu_time_never_falls_and_a_clock_that_is_set_moves_no_boot() {
        let root = tempfile::tempdir().unwrap();
        let mut host = fixture(root.path());
        let first = reading(&mut host).0;
        // CPU 1 is gone, CPU 0 waited less for I/O than was said before, and the clock was set.
        write(root.path(), "proc/stat", "cpu0 20 0 0 80 0 0 0 0 0 0\nbtime 900\n");
        let second = reading(&mut host).0;
        assert_eq!(second.host_cpu.since(first.host_cpu), CpuTime { busy_nanos: 100_000_000, idle_nanos: 0 });
        assert_eq!(second.node_cpu, first.node_cpu);
        assert!(second.cpu_modes.iter().zip(first.cpu_modes).all(|(now, before)| *now >= before));
        assert_eq!(second.boot_unix_seconds, 5);
        // It comes back: what it did before is no news.
        write(
            root.path(),
            "proc/stat",
            "cpu0 20 0 0 95 0 0 0 0 0 0\ncpu1 51 0 0 50 0 0 0 0 0 0\nbtime 900\n",
        );
        let third = reading(&mut host).0;
        let since = third.host_cpu.since(second.host_cpu);
        assert_eq!(since, CpuTime { busy_nanos: 10_000_000, idle_nanos: 50_000_000 });
    }

    #[test]
    fn what_is_missing_is_counted_and_the_rest_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let mut host = fixture(root.path());
        fs::remove_file(root.path().join("proc/meminfo")).unwrap();
        fs::write(root.path().join("proc/diskstats"), "nonsense\n").unwrap();
        let (reading, failures) = reading(&mut host);
        assert_eq!((reading.memory, failures), (None, vec!["missing", "invalid"]));
        fs::remove_file(root.path().join("proc/stat")).unwrap();
        assert!(matches!(host.read(), Answer::Failed(e) if e.reason == "missing"));
    }
}
