//! What the host's storage and network can hold and move: filesystems, and the speeds of links.
//!
//! Invariant: a filesystem is one mount of each device, and nothing that only exists in memory. These readings ask
//! devices: a disk that fails or an interface whose firmware hangs may not answer for ever. So they are a backend
//! of their own, that no window waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use procfs::process::MountInfos;

use super::super::file::{Reader, unescaped};
use super::super::units::classify::printable;
use super::super::{Answer, ReadError, Reading};
use super::{MAX_SERIES, kept, parse};
use crate::config::Config;

/// How often it is read: a mount costs a system call, and there may be hundreds.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Bytes used of bytes there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// There are.
    pub size_bytes: u64,
}

/// What there is to hold and move bytes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CapacityReading {
    /// Filesystems by mount point.
    pub filesystems: BTreeMap<String, Usage>,
    /// What links can move, by their speeds; `None` where none says.
    pub link_bandwidth: Option<f64>,
}

/// The backend.
pub struct Capacity {
    procfs_root: PathBuf,
    links: PathBuf,
    reader: Reader,
}

impl Capacity {
    /// That of the host that the configuration names.
    pub fn new(config: &Config) -> Self {
        Self {
            procfs_root: config.procfs_root.clone(),
            links: config.sysfs_root.join("class/net"),
            reader: Reader::default(),
        }
    }

    pub(in super::super) fn read(&mut self) -> Answer {
        let mut failures = Vec::new();
        let filesystems = kept(self.filesystems(), &mut failures).unwrap_or_default();
        let link_bandwidth = self.link_bandwidth();
        let capacity = Some(Arc::new(CapacityReading { filesystems, link_bandwidth }));
        Answer::Reading(Reading { capacity, failures, ..Reading::default() })
    }

    /// Sum of the speeds of the physical links that are up, in bytes per second one way; `None` where none says
    /// (a virtual one has no speed, and one that is down says -1).
    fn link_bandwidth(&mut self) -> Option<f64> {
        let links = std::fs::read_dir(&self.links).ok()?.filter_map(Result::ok).map(|link| link.path());
        // Bridges and bonds carry again what physical links carry, and so do a link's virtual functions. Of
        // containers' ends there may be hundreds.
        let (physical, others): (Vec<_>, Vec<_>) = links.partition(|link| link.join("device").exists());
        let functions = |link: &PathBuf| link.join("device/physfn").exists();
        let counted = if physical.is_empty() { others } else { physical };
        let counted = counted.iter().filter(|link| !functions(link)).take(MAX_SERIES);
        let megabits =
            counted.filter_map(|link| self.reader.text(&link.join("speed")).ok()?.trim().parse::<u32>().ok());
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::tests::write;
    use super::*;

    fn fixture(root: &Path) -> Capacity {
        let mount = |id: u32, source: &str, kind: &str| {
            format!("{id} 1 8:{id} / {} rw,relatime shared:1 - {kind} {source} rw\n", root.display())
        };
        let mounts = [mount(1, "/dev/sda1", "ext4"), mount(2, "/dev/sda1", "ext4"), mount(3, "proc", "proc")];
        write(root, "proc/self/mountinfo", &mounts.concat());
        Capacity {
            procfs_root: root.join("proc"),
            links: root.join("sys/class/net"),
            reader: Reader::default(),
        }
    }

    fn reading(capacity: &mut Capacity) -> Arc<CapacityReading> {
        match capacity.read() {
            Answer::Reading(reading) if reading.failures.is_empty() => reading.capacity.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_device_that_is_mounted_twice_is_one_filesystem() {
        let root = tempfile::tempdir().unwrap();
        let filesystems = &reading(&mut fixture(root.path())).filesystems;
        assert_eq!(filesystems.len(), 1);
        assert!(filesystems.values().all(|f| f.size_bytes >= f.used_bytes));
    }

    #[test]
    fn without_a_list_of_mounts_links_are_told_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let mut capacity = fixture(root.path());
        write(root.path(), "sys/class/net/eth0/speed", "10000\n");
        fs::remove_file(root.path().join("proc/self/mountinfo")).unwrap();
        let Answer::Reading(reading) = capacity.read() else { panic!("no reading") };
        assert_eq!(reading.failures, ["missing"]);
        assert_eq!(reading.capacity.unwrap().link_bandwidth, Some(1.25e9));
    }

    #[test]
    fn links_say_what_they_can_move() {
        let root = tempfile::tempdir().unwrap();
        let mut capacity = fixture(root.path());
        assert_eq!(reading(&mut capacity).link_bandwidth, None, "no link says");
        write(root.path(), "sys/class/net/eth0/speed", "10000\n");
        write(root.path(), "sys/class/net/docker0/speed", "-1\n");
        assert_eq!(reading(&mut capacity).link_bandwidth, Some(1.25e9));
        // A bridge carries what the physical link carries, and a function of it a part.
        fs::create_dir_all(root.path().join("sys/class/net/eth0/device")).unwrap();
        fs::create_dir_all(root.path().join("sys/class/net/vf0/device/physfn")).unwrap();
        write(root.path(), "sys/class/net/vf0/speed", "10000\n");
        for number in 0..2 * MAX_SERIES {
            write(root.path(), &format!("sys/class/net/veth{number}/speed"), "10000\n");
        }
        write(root.path(), "sys/class/net/docker0/speed", "20000\n");
        assert_eq!(reading(&mut capacity).link_bandwidth, Some(1.25e9));
    }
}
