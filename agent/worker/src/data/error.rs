//! Why data cannot be used.
//!
//! Invariant: each error names the file and, where there is one, line, column, value and what was expected.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use wattmill_protocol::Hash;
use wattmill_protocol::v1::FailureKind;

use super::MAX_VALUES;
use super::location::LocationError;

/// Data cannot be read or is not well-formed. Lines and columns count from 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    /// The URI leads nowhere.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder, a socket, a pipe.
    #[error("{} is {what}; expected is a file", path.display())]
    NotAFile {
        /// What was to be opened.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The operating system failed to read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is called `.gz` and is none, or only a part of one.
    #[error("{} is not a whole gzip file", path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// There is no row.
    #[error("{} has no rows", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Every row is held out.
    #[error("{}: all of its {rows} rows are held out, none is left to train on", path.display())]
    NoTrainingRows {
        /// The file.
        path: PathBuf,
        /// Rows of the file.
        rows: u64,
    },
    /// No row is this long.
    #[error("{}, line {line}: longer than the {limit} bytes that its columns could take", path.display())]
    LongLine {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// Most bytes of a line.
        limit: usize,
    },
    /// A row has too few or too many columns.
    #[error(
        "{}, line {line}: {actual} columns; expected are {expected}: data.features and the label",
        path.display()
    )]
    Columns {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// Columns of the line.
        actual: usize,
        /// Columns of the job.
        expected: usize,
    },
    /// A value is not what its column holds.
    #[error("{}, line {line}, column {column}: {value:?} is not {expected}{hint}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The column.
        column: usize,
        /// What is there, shortened.
        value: String,
        /// What would be right.
        expected: String,
        /// What may have gone wrong.
        hint: &'static str,
    },
    /// The data does not fit in memory.
    #[error(
        "{}, line {line}: rows up to here have {MAX_VALUES} features in all, and no more fit: split the file",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The first line that does not fit.
        line: u64,
    },
    /// Other data than the job was prepared with.
    #[error("{uri} changed: its SHA-256 is {actual}, but the job was prepared with {expected}")]
    Changed {
        /// Where it lies.
        uri: String,
        /// The hash of what was read.
        actual: Hash,
        /// The hash of what should have been read.
        expected: Hash,
    },
}

impl DataError {
    /// Whether another attempt could fare better.
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Read { .. } => FailureKind::Attempt,
            Self::Open { source, .. } if !is_of_the_path(source) => FailureKind::Attempt,
            _ => FailureKind::BadInput,
        }
    }
}

/// Whether an error at opening is the path's fault and not the machine's (files exhausted, a disk failing).
fn is_of_the_path(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
    ) || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_at_fault_costs_an_attempt_and_not_the_job() {
        let error = |errno: Errno| io::Error::from(errno);
        use rustix::io::Errno;
        for (errno, expected) in [
            (Errno::NOENT, FailureKind::BadInput),
            (Errno::ACCESS, FailureKind::BadInput),
            (Errno::LOOP, FailureKind::BadInput),
            (Errno::MFILE, FailureKind::Attempt),
            (Errno::IO, FailureKind::Attempt),
            (Errno::STALE, FailureKind::Attempt),
        ] {
            let opened = DataError::Open { path: "/x".into(), source: error(errno) };
            assert_eq!(opened.kind(), expected, "{errno}");
        }
        let read = DataError::Read { path: "/x".into(), source: error(Errno::NOENT) };
        assert_eq!(read.kind(), FailureKind::Attempt);
    }
}
