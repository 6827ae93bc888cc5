//! A job's data: from its URI to rows in memory.
//!
//! [`location`] says where it lies, [`source`] reads and hashes its bytes, [`table`] makes numbers of them.
//! These are bytes of strangers: every buffer is bounded, every mistake is an error that names its place,
//! and none of it can panic.

mod error;
mod location;
mod source;
mod table;
#[cfg(test)]
mod tests;

use wattmill_protocol::Hash;
use wattmill_protocol::job::Data;

pub(crate) use error::DataError;
use location::Location;
use source::Source;
use table::Table;

/// Most numbers in memory, features of all rows: 2^28, 1 GiB. Larger data belongs into several files.
const MAX_VALUES: usize = 1 << 28;

/// Rows of a data set.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rows {
    /// `rows × features`, scaled.
    pub(crate) features: Vec<f32>,
    /// The class of each row.
    pub(crate) labels: Vec<u32>,
}

impl Rows {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }
}

/// Data that was read whole and is well-formed.
#[derive(Debug)]
pub(crate) struct DataSet {
    /// Rows to train on, in file order.
    pub(crate) training: Rows,
    /// Rows to evaluate on, in file order.
    pub(crate) held_out: Rows,
    /// SHA-256 of the file as it lies on disk, compressed if it is.
    pub(crate) hash: Hash,
}

/// Reads all of `data`, calling `tick` after each row.
///
/// # Errors
/// [`DataError`] if the data cannot be read, is not well-formed, or leaves nothing to train on.
pub(crate) fn load(data: &Data, mut tick: impl FnMut()) -> Result<DataSet, DataError> {
    let location = Location::parse(&data.uri)?;
    let mut table = Table::new(&location.path, data);
    let mut reader = Source::open(&location)?;
    while table.read_line(&mut reader)? {
        tick();
    }
    let (training, held_out) = table.finish()?;
    Ok(DataSet { training, held_out, hash: reader.into_hash() })
}

impl DataSet {
    /// Checks that these are the data that the job was prepared with.
    ///
    /// # Errors
    /// [`DataError::Changed`] with both hashes.
    pub(crate) fn expect(&self, uri: &str, expected: Hash) -> Result<(), DataError> {
        if self.hash == expected {
            return Ok(());
        }
        Err(DataError::Changed { uri: uri.to_owned(), actual: self.hash, expected })
    }
}
