//! The host's figures: CPU time, memory, disks, network, filesystems.
//!
//! Invariant: each thing once. Disks are whole physical devices, interfaces physical ones where there
//! are any, filesystems one mount of each device, and nothing that only exists in memory. Names may be any bytes:
//! they are shown printable and bounded.

pub mod pressure;
pub mod stat;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use procfs::DiskStats;
use procfs::FromBufRead;
use procfs::net::InterfaceDeviceStatus;
use procfs::process::MountInfos;

use super::file::{Reader, unescaped};
use super::units::classify::printable;
use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::config::Bandwidth;
use crate::cpus::CpuSet;
use pressure::Pressure;
use stat::{CpuTime, Stat};

/// `/proc/diskstats` counts sectors of this size whatever the device's own.
const SECTOR_BYTES: u64 = 512;
/// Most disks, interfaces and filesystems that become series.
const MAX_SERIES: usize = 128;

/// How often filesystems and links are looked at.
const SLOW_INTERVAL: Duration = Duration::from_secs(10);

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
    /// Filesystems by mount point.
    pub filesystems: BTreeMap<String, Usage>,
    /// What its storage and network can move: as configured, or by the links' speeds.
    pub bandwidth: Bandwidth,
}

/// Bytes used of bytes there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// There are.
    pub size_bytes: u64,
}

/// The backend.
pub struct Host {
    procfs_root: PathBuf,
    cpus: CpuSet,
    bandwidth: Bandwidth,
    reader: Reader,
    slow: Option<Slow>,
    disks: Devices,
    interfaces: Devices,
}

/// Names of a class of devices, and whether there is a device behind each: looked up once in [`SLOW_INTERVAL`].
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

/// What changes slowly and is dear to read: a mount costs a system call, and there may be hundreds.
struct Slow {
    at: Duration,
    filesystems: Result<BTreeMap<String, Usage>, ReadError>,
    link_bandwidth: Option<f64>,
}

impl Host {
    /// The host that the configuration names.
    pub fn new(config: &crate::config::Config) -> Self {
        Self {
            procfs_root: config.procfs_root.clone(),
            cpus: config.cpus.clone(),
            bandwidth: config.bandwidth,
            reader: Reader::default(),
            slow: None,
            disks: Devices::new(config.sysfs_root.join("block")),
            interfaces: Devices::new(config.sysfs_root.join("class/net")),
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
        let mut failures = Vec::new();
        let due = self.slow.as_ref().is_none_or(|slow| now.saturating_sub(slow.at) >= SLOW_INTERVAL);
        if due {
            self.disks.known.clear();
            self.interfaces.known.clear();
        }
        let interfaces = kept(self.interfaces(), &mut failures).unwrap_or_default();
        if due {
            self.slow = Some(Slow {
                at: now,
                filesystems: self.filesystems(),
                link_bandwidth: self.link_bandwidth(interfaces.keys()),
            });
        }
        let memory = kept(self.memory(), &mut failures);
        let disks = kept(self.disks(), &mut failures).unwrap_or_default();
        let pressure = kept(pressure::read(&self.procfs_root, &mut self.reader), &mut failures);
        let slow = self.slow.as_ref();
        let filesystems = slow.map_or(Ok(BTreeMap::new()), |slow| slow.filesystems.clone());
        let host = HostReading {
            host_cpu: stat.host(),
            node_cpu: stat.of(&self.cpus),
            cpu_modes: stat.modes,
            pressure: pressure.unwrap_or_default(),
            boot_unix_seconds: stat.boot_unix_seconds,
            memory,
            disks,
            interfaces,
            filesystems: kept(filesystems, &mut failures).unwrap_or_default(),
            bandwidth: Bandwidth {
                network: self.bandwidth.network.or(slow.and_then(|slow| slow.link_bandwidth)),
                ..self.bandwidth
            },
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

    /// Sum of the speeds of the links that are up, in bytes per second one way; `None` where no link says
    /// (a virtual one has no speed, and one that is down says -1).
    fn link_bandwidth<'a>(&mut self, interfaces: impl Iterator<Item = &'a String>) -> Option<f64> {
        let megabits = interfaces.filter_map(|name| {
            let speed = self.interfaces.class.join(name).join("speed");
            self.reader.text(&speed).ok()?.trim().parse::<u32>().ok()
        });
        let sum: f64 = megabits.map(|speed| f64::from(speed) * 1e6 / 8.0).sum();
        (sum > 0.0).then_some(sum)
    }

    fn filesystems(&mut self) -> Result<BTreeMap<String, Usage>, ReadError> {
        let MountInfos(mounts) = parse(&mut self.reader, &self.procfs_root.join("self/mountinfo"))?;
        let mut seen = BTreeSet::new();
        let mut filesystems = BTreeMap::new();
        for mount in mounts {
            // Block devices and pools only: pseudo filesystems hold nothing, and asking a dead network
            // filesystem would hang. The source is the device, also where each subvolume has a number
            // of its own.
            let source = mount.mount_source.unwrap_or_default();
            let stored = source.starts_with("/dev/") || mount.fs_type == "zfs";
            let loops = source.starts_with("/dev/loop") || source.starts_with("/dev/zram");
            if !stored || loops || filesystems.len() == MAX_SERIES || !seen.insert(source) {
                continue;
            }
            let point = unescaped(&mount.mount_point.to_string_lossy());
            let Ok(figures) = rustix::fs::statvfs(OsStr::from_bytes(&point)) else { continue };
            let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
            if figures.f_blocks > 0 {
                let used_bytes = bytes(figures.f_blocks.saturating_sub(figures.f_bfree));
                let usage = Usage { used_bytes, size_bytes: bytes(figures.f_blocks) };
                filesystems.insert(printable(&point), usage);
            }
        }
        Ok(filesystems)
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

    fn write(root: &Path, file: &str, text: &str) {
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
        let mount = |id: u32, source: &str, kind: &str| {
            format!("{id} 1 8:{id} / {} rw,relatime shared:1 - {kind} {source} rw\n", root.display())
        };
        let mounts = [mount(1, "/dev/sda1", "ext4"), mount(2, "/dev/sda1", "ext4"), mount(3, "proc", "proc")];
        write(root, "proc/self/mountinfo", &mounts.concat());
        fs::create_dir_all(root.join("sys/block/sda/device")).unwrap();
        fs::create_dir_all(root.join("sys/block/dm-0")).unwrap();
        Host {
            procfs_root: root.join("proc"),
            cpus: "1".parse().unwrap(),
            bandwidth: Bandwidth::default(),
            reader: Reader::default(),
            slow: None,
            disks: Devices::new(root.join("sys/block")),
            interfaces: Devices::new(root.join("sys/class/net")),
        }
    }

    fn reading(host: &mut Host) -> (Arc<HostReading>, Vec<&'static str>) {
        host.slow = None;
        match host.read_at(Duration::ZERO) {
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
        assert_eq!(figures.filesystems.len(), 1);
        assert!(figures.filesystems.values().all(|f| f.size_bytes >= f.used_bytes));
        let names: Vec<&str> = figures.interfaces.keys().map(String::as_str).collect();
        assert_eq!(names, ["docker0", "eth0"], "none is physical: all but the loopback");
        fs::create_dir_all(root.path().join("sys/class/net/eth0/device")).unwrap();
        assert_eq!(reading(&mut host).0.interfaces, BTreeMap::from([("eth0".to_owned(), (700, 800))]));
    }

    #[test]
    fn links_say_what_they_can_move_unless_told_otherwise() {
        let root = tempfile::tempdir().unwrap();
        let mut host = fixture(root.path());
        assert_eq!(reading(&mut host).0.bandwidth, Bandwidth::default(), "no link says");
        write(root.path(), "sys/class/net/eth0/speed", "10000\n");
        write(root.path(), "sys/class/net/docker0/speed", "-1\n");
        assert_eq!(reading(&mut host).0.bandwidth.network, Some(1.25e9));
        host.bandwidth = Bandwidth { storage_read: Some(2e9), network: Some(5e8), ..Bandwidth::default() };
        assert_eq!(reading(&mut host).0.bandwidth, host.bandwidth);
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
