//! Files of sysfs: one name or one number each.
//!
//! Invariant: whatever lies in a file, no more of it is read than a bound, and what is not a number is an
//! error, never a zero.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

/// Longest text of a name or a number, with its line's end.
const MAX_TEXT_BYTES: usize = 128;
/// Longest `uevent`: a dozen lines.
const MAX_UEVENT_BYTES: usize = 4096;

/// What a file holds, which is a name or a number: one that is longer is neither.
pub(super) fn text(file: &Path) -> io::Result<String> {
    bounded(file, MAX_TEXT_BYTES)
}

/// An unsigned number.
pub(super) fn number(file: &Path) -> io::Result<u64> {
    parsed(file)
}

/// A number of either sign, as hwmon's are.
pub(super) fn signed(file: &Path) -> io::Result<i64> {
    parsed(file)
}

/// Bytes of a file, which has at most `most`.
pub(super) fn bytes(file: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(MAX_TEXT_BYTES);
    File::open(file)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    Ok(bytes)
}

/// A device's `uevent`: what the kernel says of it.
pub(super) struct Uevent(String);

impl Uevent {
    /// Reads that of the device in `folder`.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        bounded(&folder.join("uevent"), MAX_UEVENT_BYTES).map(Self)
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.0.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(k, _)| *k == key).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }
}

fn bounded(file: &Path, most: usize) -> io::Result<String> {
    let bytes = bytes(file, most)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a text"))
}

fn parsed<T: FromStr>(file: &Path) -> io::Result<T> {
    text(file)?.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
}
