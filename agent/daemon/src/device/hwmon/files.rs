//! A GPU's files, read with what their errors say of it.
//!
//! Invariant: a file that is not there, or that the driver does not support, is absent and no failure.

use std::io;
use std::path::Path;

use crate::device::{io_reason, sysfs};

/// Reads files of one device, and keeps what came of it.
pub(super) struct Files<'a> {
    failures: &'a mut Vec<&'static str>,
    /// Files that held what they should.
    answered: u32,
    /// The newest failure.
    failed: Option<&'static str>,
    /// Whether the device is gone.
    gone: bool,
}

impl<'a> Files<'a> {
    pub(super) fn new(failures: &'a mut Vec<&'static str>) -> Self {
        Self { failures, answered: 0, failed: None, gone: false }
    }

    /// A number, unless it is absent or cannot be read.
    pub(super) fn number(&mut self, file: &Path) -> Option<i64> {
        self.take(sysfs::signed(file))
    }

    /// A counter.
    pub(super) fn counter(&mut self, file: &Path) -> Option<u64> {
        self.take(sysfs::number(file))
    }

    /// A table of at most `most` bytes.
    pub(super) fn bytes(&mut self, file: &Path, most: usize) -> Option<Vec<u8>> {
        self.take(sysfs::bytes(file, most))
    }

    /// Counts a value that cannot be.
    pub(super) fn reject(&mut self, reason: &'static str) {
        self.failures.push(reason);
    }

    /// Why the device does not answer at all; `None` where it does.
    pub(super) fn lost(&self) -> Option<&'static str> {
        if self.gone { Some("not_found") } else { self.failed.filter(|_| self.answered == 0) }
    }

    fn take<T>(&mut self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.answered += 1;
                Some(value)
            }
            Err(error) => {
                self.note(&error);
                None
            }
        }
    }

    fn note(&mut self, error: &io::Error) {
        let reason = match error.raw_os_error() {
            // Files differ by driver and chip; EINVAL, EOPNOTSUPP and ENODATA are how amdgpu says "not here".
            Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::ENODATA) => return,
            Some(libc::ENODEV | libc::ENXIO) => {
                self.gone = true;
                "not_found"
            }
            // Not a permission of files (EACCES): the driver refuses while it resets or suspends the device.
            Some(libc::EPERM | libc::EBUSY) => "busy",
            _ => io_reason(error),
        };
        self.failed = Some(reason);
        self.failures.push(reason);
    }
}
