//! Small files of procfs and sysfs, read whole.
//!
//! Invariant: what a file holds is bounded, be the tree hostile. They tell no size, so that `fs::read_to_string`
//! begins with 32 bytes and doubles: a system call each time, which is most of what reading them costs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::ReadError;

/// Most bytes of a file: `/proc/stat` of a host with thousands of CPUs and interrupts has a megabyte.
const MAX_BYTES: usize = 16 << 20;
/// Room to begin with: most files fit, and a read that has room to spare is the last but one.
const FIRST_BYTES: usize = 8 << 10;

/// A buffer that one file after the other is read into.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// The text of a file.
    ///
    /// # Errors
    /// When it cannot be read, is no text or too long.
    pub fn text(&mut self, path: &Path) -> Result<&str, ReadError> {
        self.read(path).map_err(|error| ReadError::io(path, &error))
    }

    /// As [`Self::text`], with the error of the system.
    ///
    /// # Errors
    /// As [`Self::text`]; `InvalidData` where it is no text or too long.
    pub fn read(&mut self, path: &Path) -> io::Result<&str> {
        let mut file = File::open(path)?;
        let mut filled = 0;
        loop {
            if self.bytes.len() - filled < FIRST_BYTES / 2 {
                let room = (self.bytes.len() * 2).clamp(FIRST_BYTES, MAX_BYTES);
                self.bytes.resize(room, 0);
            }
            let room = &mut self.bytes[filled..];
            if room.is_empty() {
                return Err(invalid("is too long"));
            }
            match file.read(room) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        std::str::from_utf8(&self.bytes[..filled]).map_err(|_| invalid("is no text"))
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_whole_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut reader = Reader::default();
        for length in [100_000, 0, 10, FIRST_BYTES, 3 * FIRST_BYTES + 1] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).unwrap();
            assert!(reader.text(&path) == Ok(&text), "{length}");
        }
        assert!(reader.text(Path::new("/proc/stat")).unwrap().starts_with("cpu"));
    }

    #[test]
    fn what_is_no_text_too_long_or_missing_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut reader = Reader::default();
        let mut reason = |path: &Path| reader.text(path).map(str::len).map_err(|error| error.reason);
        assert_eq!(reason(&path), Err("missing"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(reason(&path), Err("invalid"));
        assert_eq!(reason(Path::new("/dev/zero")), Err("invalid"), "without an end");
        assert_eq!(reason(folder.path()), Err("io"), "a folder");
    }
}
