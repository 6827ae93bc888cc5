//! Rows of numbers from the lines of a CSV file without header: features, then the label.
//!
//! A line is a row: numbers need no quotes that could hide a line's end (a pair around a whole field is
//! taken off). That keeps line numbers exact and memory bounded by the columns that the job names, which a
//! reader of general CSV does not; blank lines are no rows.

use std::path::Path;

use wattmill_protocol::job::Data;

use super::source::Source;
use super::{DataError, MAX_VALUES, Rows};

/// Most bytes of a column with its comma: far more than the longest spelling of an `f64` takes.
const MAX_COLUMN_BYTES: usize = 64;
/// Characters of a wrong value that an error repeats.
const MAX_SHOWN: usize = 40;
/// What some programs put before the first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The rows read so far.
pub(crate) struct Table<'a> {
    path: &'a Path,
    data: &'a Data,
    features: usize,
    line: Vec<u8>,
    number: u64,
    rows: u64,
    training: Rows,
    held_out: Rows,
}

impl<'a> Table<'a> {
    /// An empty table of the columns that `data` names; `path` is for errors.
    pub(crate) fn new(path: &'a Path, data: &'a Data) -> Self {
        Self {
            path,
            data,
            features: data.features as usize,
            line: Vec::new(),
            number: 0,
            rows: 0,
            training: Rows::default(),
            held_out: Rows::default(),
        }
    }

    /// Takes the next line; false at the end of the file.
    ///
    /// # Errors
    /// [`DataError`] with the place of the mistake.
    pub(crate) fn read_line(&mut self, source: &mut Source) -> Result<bool, DataError> {
        let limit = self.features.saturating_add(1).saturating_mul(MAX_COLUMN_BYTES);
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        if source.read_line(&mut line, limit)? == 0 {
            return Ok(false);
        }
        self.number += 1;
        if line.len() == limit && line.last() != Some(&b'\n') {
            return Err(DataError::LongLine { path: self.path.to_owned(), line: self.number, limit });
        }
        let text = line.as_slice();
        let text = if self.number == 1 { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) } else { text };
        let text = text.trim_ascii();
        if !text.is_empty() {
            self.row(text)?;
        }
        self.line = line;
        Ok(true)
    }

    /// Rows to train on and rows held out.
    ///
    /// # Errors
    /// [`DataError`] if there is nothing to train on.
    pub(crate) fn finish(self) -> Result<(Rows, Rows), DataError> {
        let path = || self.path.to_owned();
        if self.rows == 0 {
            return Err(DataError::Empty { path: path() });
        }
        if self.training.len() == 0 {
            return Err(DataError::NoTrainingRows { path: path(), rows: self.rows });
        }
        Ok((self.training, self.held_out))
    }

    fn row(&mut self, text: &[u8]) -> Result<(), DataError> {
        let expected = self.features + 1;
        let actual = text.iter().filter(|&&byte| byte == b',').count() + 1;
        if actual != expected {
            let path = self.path.to_owned();
            return Err(DataError::Columns { path, line: self.number, actual, expected });
        }
        if self.training.features.len() + self.held_out.features.len() + self.features > MAX_VALUES {
            return Err(DataError::TooLarge { path: self.path.to_owned(), line: self.number });
        }
        let held_out =
            self.data.held_out.is_some_and(|h| self.rows % u64::from(h.every) == u64::from(h.remainder));
        // Taken out while the row's columns are read; an error gives the whole table up.
        let part = if held_out { &mut self.held_out } else { &mut self.training };
        let mut part = std::mem::take(part);
        for (index, field) in text.split(|&byte| byte == b',').enumerate() {
            if index < self.features {
                part.features.push(self.feature(field, index + 1)?);
            } else {
                part.labels.push(self.label(field, index + 1)?);
            }
        }
        *(if held_out { &mut self.held_out } else { &mut self.training }) = part;
        self.rows += 1;
        Ok(())
    }

    fn feature(&self, field: &[u8], column: usize) -> Result<f32, DataError> {
        let number = parse::<f32>(field).filter(|number| number.is_finite());
        let wrong = |what: &str| self.wrong(field, column, what.to_owned());
        let scaled = number.ok_or_else(|| wrong("a finite number"))? * self.data.scale;
        if scaled.is_finite() {
            Ok(scaled)
        } else {
            Err(wrong("a number that stays finite when multiplied by data.scale"))
        }
    }

    /// Takes `3`, and `3.0` as well: many programs write all columns alike.
    fn label(&self, field: &[u8], column: usize) -> Result<u32, DataError> {
        let label = parse::<f64>(field)
            .filter(|label| label.fract() == 0.0 && *label >= 0.0 && *label < f64::from(self.data.classes));
        let expected = || format!("a label: a whole number from 0 to {}", self.data.classes - 1);
        label.map(|label| label as u32).ok_or_else(|| self.wrong(field, column, expected()))
    }

    fn wrong(&self, field: &[u8], column: usize, expected: String) -> DataError {
        let header = self.rows == 0 && parse::<f64>(field).is_none();
        DataError::Value {
            path: self.path.to_owned(),
            line: self.number,
            column,
            value: String::from_utf8_lossy(field).chars().take(MAX_SHOWN).collect(),
            expected,
            hint: if header { " (if this line names the columns, remove it)" } else { "" },
        }
    }
}

/// A number, with space or quotes around it or without.
fn parse<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    let field = field.trim_ascii();
    let unquoted = field.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    std::str::from_utf8(unquoted.unwrap_or(field)).ok()?.parse().ok()
}
