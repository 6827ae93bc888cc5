//! The kernel's tree of cgroups: where it is, what hangs in it, and what a cgroup has used.
//!
//! Invariant: a walk is bounded in depth and number and follows no link; what vanishes meanwhile is not there. A
//! cgroup's time contains that of all below it, in both versions of the interface.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::classify::{Kinds, classify};
use super::{Unit, UnitKind};
use crate::device::{ReadError, io_reason};

/// Deepest cgroup that is looked at: a pod in a container in a user's service has nine.
const MAX_DEPTH: usize = 16;
/// Most cgroups that a walk looks at.
const MAX_VISITED: usize = 16_384;
/// Most units' cgroups that are read each window. Each is an open file, of the 1024 that services may have.
pub(super) const MAX_CGROUPS: usize = 512;
/// What is read of a file: `usage_usec` is the first line of `cpu.stat`.
const MAX_BYTES: usize = 4096;
/// Longest line of a process's cgroups and their number: a path has 4096 bytes at most.
const MAX_PROCESS_BYTES: u64 = 64 << 10;
/// Links of a folder without folders: its own, and its parent's.
const LINKS_WITHOUT_FOLDERS: u64 = 2;

/// How the kernel tells the CPU time of a cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interface {
    /// `usage_usec` of `cpu.stat`, which every cgroup of version 2 has, whichever controllers are on.
    Unified,
    /// `cpuacct.usage` of version 1, in nanoseconds.
    Legacy,
}

/// The hierarchy that tells CPU time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// How it tells.
    pub interface: Interface,
}

/// A unit's cgroup, as a walk finds it.
pub(super) struct Found {
    pub(super) unit: Unit,
    /// Below the root.
    pub(super) path: PathBuf,
    /// Tells it from one that had its name before.
    pub(super) inode: u64,
    /// The innermost unit's cgroup around it, by its place among those found.
    pub(super) parent: Option<usize>,
}

/// What a walk found, outer ones first.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) found: Vec<Found>,
    pub(super) failures: Vec<&'static str>,
    visited: usize,
}

impl Walk {
    fn fail(&mut self, reason: &'static str) {
        if !self.failures.contains(&reason) {
            self.failures.push(reason);
        }
    }

    fn note(&mut self, error: &io::Error) {
        // A cgroup that ended meanwhile is not a failure.
        if !is_gone(error) {
            self.fail(io_reason(error));
        }
    }
}

impl Hierarchy {
    /// The hierarchy under `sysfs_root`: version 2 where it is whole; where both are mounted the one with the CPU
    /// accounting, which is version 1's.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(sysfs_root: &Path) -> Result<Self, ReadError> {
        let base = sysfs_root.join("fs/cgroup");
        let unified = |root: &Path| root.join("cgroup.controllers").exists();
        if unified(&base) {
            return Ok(Self { root: base, interface: Interface::Unified });
        }
        for name in ["cpu,cpuacct", "cpuacct,cpu", "cpuacct"] {
            let root = base.join(name);
            if root.join("cpuacct.usage").exists() {
                return Ok(Self { root, interface: Interface::Legacy });
            }
        }
        let hybrid = base.join("unified");
        if unified(&hybrid) {
            return Ok(Self { root: hybrid, interface: Interface::Unified });
        }
        let message = format!("{}: neither cgroup v2 nor v1 with cpuacct is mounted there", base.display());
        Err(ReadError::new("missing", message))
    }

    /// Units' cgroups, as far as the bounds allow.
    pub(super) fn walk(&self, kinds: &Kinds) -> Walk {
        let mut walk = Walk::default();
        self.descend(Path::new(""), 0, None, kinds, &mut walk);
        walk
    }

    fn descend(&self, path: &Path, depth: usize, parent: Option<usize>, kinds: &Kinds, walk: &mut Walk) {
        let entries = match fs::read_dir(self.root.join(path)) {
            Ok(entries) => entries,
            Err(error) => return walk.note(&error),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return walk.note(&error),
            };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if walk.visited >= MAX_VISITED || depth >= MAX_DEPTH {
                return walk.fail("too_many");
            }
            walk.visited += 1;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    walk.note(&error);
                    continue;
                }
            };
            let path = path.join(entry.file_name());
            let unit = classify(path.as_os_str().as_bytes(), kinds);
            // Nothing inside a job, pod or container is another unit.
            let closed = unit.as_ref().is_some_and(|(unit, _)| unit.kind.is_workload());
            let own = unit.filter(|(_, parts)| *parts == depth + 1).map(|(unit, _)| unit);
            let mut around = parent;
            if let Some(unit) = own {
                if walk.found.len() >= MAX_CGROUPS {
                    walk.fail("too_many");
                } else {
                    around = Some(walk.found.len());
                    walk.found.push(Found { unit, path: path.clone(), inode: metadata.ino(), parent });
                }
            }
            if !closed && metadata.nlink() != LINKS_WITHOUT_FOLDERS {
                self.descend(&path, depth + 1, around, kinds, walk);
            }
        }
    }

    /// Opens what tells the time of the cgroup at `path`.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        let name = match self.interface {
            Interface::Unified => "cpu.stat",
            Interface::Legacy => "cpuacct.usage",
        };
        File::open(self.root.join(path).join(name))
    }

    /// CPU nanoseconds that a cgroup has used.
    pub(super) fn read(&self, file: &File) -> io::Result<u64> {
        let mut bytes = [0; MAX_BYTES];
        let length = file.read_at(&mut bytes, 0)?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "no CPU time");
        nanos(self.interface, &bytes[..length]).ok_or_else(invalid)
    }

    /// Path of a process's cgroup in this hierarchy. `None` where that cannot be told: it has ended.
    pub(super) fn cgroup_of(&self, procfs_root: &Path, pid: u32) -> Option<Vec<u8>> {
        use std::io::Read;
        let file = File::open(procfs_root.join(pid.to_string()).join("cgroup")).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_PROCESS_BYTES).read_to_end(&mut bytes).ok()?;
        path_in(self.interface, &bytes).map(<[u8]>::to_vec)
    }
}

/// Whether an error says that a cgroup has ended: its files then answer `ENODEV`.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn nanos(interface: Interface, bytes: &[u8]) -> Option<u64> {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.trim().parse::<u64>().ok();
    match interface {
        Interface::Unified => {
            let mut lines = bytes.split(|byte| *byte == b'\n');
            let usage = lines.find_map(|line| line.strip_prefix(b"usage_usec "))?;
            number(usage)?.checked_mul(1_000)
        }
        Interface::Legacy => number(bytes),
    }
}

/// The path in `/proc/PID/cgroup`: of the line `0::PATH`, or of the one that names `cpuacct`.
fn path_in(interface: Interface, text: &[u8]) -> Option<&[u8]> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match interface {
            Interface::Unified => number == b"0" && controllers.is_empty(),
            Interface::Legacy => controllers.split(|byte| *byte == b',').any(|name| name == b"cpuacct"),
        };
        fits.then_some(path)
    })
}

impl UnitKind {
    /// Whether it is what somebody submitted, and not what the host is made of.
    pub(super) fn is_workload(self) -> bool {
        !matches!(self, Self::Systemd | Self::Cgroup)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_nanoseconds_in_both_versions() {
        let stat = b"usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n";
        assert_eq!(nanos(Interface::Unified, stat), Some(1_500_000));
        assert_eq!(nanos(Interface::Legacy, b"1500\n"), Some(1_500));
        for bad in [&b""[..], b"\xff\xfe", b"usage_usec -1\n", b"usage_usec 99999999999999999999\n", b"x\n"] {
            assert_eq!((nanos(Interface::Unified, bad), nanos(Interface::Legacy, bad)), (None, None));
        }
    }

    #[test]
    fn the_line_of_the_hierarchy_counts() {
        let hybrid = b"9:name=systemd:/a\n4:cpu,cpuacct:/docker/x:y\n0::/b\n";
        assert_eq!(path_in(Interface::Legacy, hybrid), Some(&b"/docker/x:y"[..]));
        assert_eq!(path_in(Interface::Unified, hybrid), Some(&b"/b"[..]));
        assert_eq!(path_in(Interface::Legacy, b"0::/b\n"), None);
    }

    #[test]
    fn the_hierarchy_is_the_one_that_tells_cpu_time() {
        let sys = tempfile::tempdir().unwrap();
        let base = sys.path().join("fs/cgroup");
        let error = Hierarchy::find(sys.path()).unwrap_err();
        assert_eq!(error.reason, "missing");
        let make = |file: &str| {
            let path = base.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "1\n").unwrap();
        };
        let found = || Hierarchy::find(sys.path()).unwrap();
        make("unified/cgroup.controllers");
        assert_eq!(found(), Hierarchy { root: base.join("unified"), interface: Interface::Unified });
        make("cpu,cpuacct/cpuacct.usage");
        assert_eq!(found(), Hierarchy { root: base.join("cpu,cpuacct"), interface: Interface::Legacy });
        make("cgroup.controllers");
        assert_eq!(found(), Hierarchy { root: base.clone(), interface: Interface::Unified });
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for interface in [Interface::Unified, Interface::Legacy] {
                nanos(interface, &bytes);
                path_in(interface, &bytes);
            }
        }
    }
}
