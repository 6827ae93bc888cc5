//! Sets of CPUs by number, in the kernel's list format (`0-3,8`).

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Largest CPU number that is believed: bounds what a list may expand to.
const MAX_CPU: u32 = 65_535;

/// CPU numbers, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuSet(BTreeSet<u32>);

/// A text is not a list of CPUs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of CPUs like \"0-3,8\"")]
pub struct InvalidCpuSet(String);

impl CpuSet {
    /// CPUs that the host has online, by sysfs, or else as many as this process may use.
    pub fn online(sysfs_root: &Path) -> Self {
        let listed = std::fs::read_to_string(sysfs_root.join("devices/system/cpu/online"));
        listed.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
            let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            Self((0..u32::try_from(count).unwrap_or(1)).collect())
        })
    }

    /// Whether `cpu` is one of them.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// Those that `other` lacks.
    pub fn difference(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromStr for CpuSet {
    type Err = InvalidCpuSet;

    fn from_str(text: &str) -> Result<Self, InvalidCpuSet> {
        let invalid = || InvalidCpuSet(text.chars().take(80).collect());
        let number = |part: &str| part.trim().parse::<u32>().ok().filter(|n| *n <= MAX_CPU);
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(invalid)?;
            if first > last {
                return Err(invalid());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut rest = self.iter().peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip_in_the_kernels_format() {
        for (text, canonical, count) in
            [("0-3,8", "0-3,8", 5), ("8, 0-1,2", "0-2,8", 4), ("7", "7", 1), ("0,2,4", "0,2,4", 3)]
        {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!((set.to_string().as_str(), set.len()), (canonical, count));
        }
        for bad in ["", "a", "3-1", "1-", "0,,1", "-1", "0-4294967295"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn online_comes_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("devices/system/cpu");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("online"), "0-1,4\n").unwrap();
        assert_eq!(CpuSet::online(root.path()).to_string(), "0-1,4");
        assert!(!CpuSet::online(Path::new("/nonexistent")).is_empty());
    }
}
