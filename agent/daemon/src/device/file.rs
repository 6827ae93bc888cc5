//! Small files of procfs and sysfs, read whole.
//!
//! Invariant: what a file holds is bounded, be the tree hostile. They tell no size, so that `fs::read_to_string`
//! begins with 32 bytes and doubles: a system call each time, which is most of what reading them costs.

use std::borrow::Cow;
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
        std::str::from_utf8(self.bytes_of(path)?).map_err(|_| invalid("is no text"))
    }

    /// The text of a file whose names may be any bytes: those that are no text as `\NNN`, by which the kernel
    /// writes others that would not be told from what parts names.
    ///
    /// # Errors
    /// When it cannot be read or is too long.
    pub fn escaped(&mut self, path: &Path) -> Result<Cow<'_, str>, ReadError> {
        let bytes = self.bytes_of(path).map_err(|error| ReadError::io(path, &error))?;
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Ok(Cow::Borrowed(text));
        }
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|byte| format!("\\{byte:03o}")));
        }
        Ok(Cow::Owned(text))
    }

    fn bytes_of(&mut self, path: &Path) -> io::Result<&[u8]> {
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
        Ok(&self.bytes[..filled])
    }
}

/// The bytes that a text with `\NNN` stands for.
pub fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut reader = Reader::default();
        std::fs::write(&path, b"/mnt/a\\040b\\134\xff\xfe c").unwrap();
        let text = reader.escaped(&path).unwrap();
        assert_eq!(text, r"/mnt/a\040b\134\377\376 c");
        assert_eq!(unescaped(&text), b"/mnt/a b\\\xff\xfe c");
        assert_eq!(unescaped(r"\04 \999 \"), br"\04 \999 \", "what is no escape stays");
        assert_eq!(reader.text(&path).unwrap_err().reason, "invalid");
    }

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
