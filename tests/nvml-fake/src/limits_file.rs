//! Power limits that processes share, as they share a driver: in a file, by UUID, in milliwatts.
//!
//! Only limits that are not the default stand in it; without the file there are none. A limit that two
//! processes set at the same instant is that of one of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io, process};

use crate::machine::Machine;

/// The file, and the limits that this process knows of.
#[derive(Debug)]
pub(crate) struct LimitsFile {
    path: PathBuf,
    known: BTreeMap<String, u32>,
}

impl LimitsFile {
    pub(crate) fn new(path: PathBuf) -> LimitsFile {
        LimitsFile { path, known: BTreeMap::new() }
    }

    /// Takes the limits of the file over where others changed it.
    pub(crate) fn adopt(&mut self, machine: &mut Machine, now_ns: u64) -> Result<(), String> {
        let limits = match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| self.wrong(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(self.wrong(&error)),
        };
        if limits != self.known {
            machine.adopt_limits(&limits, now_ns);
            self.known = limits;
        }
        Ok(())
    }

    /// Writes the limits where this process changed them, in one step for whoever reads.
    pub(crate) fn publish(&mut self, machine: &Machine) -> Result<(), String> {
        let limits = machine.limits();
        if limits == self.known {
            return Ok(());
        }
        let text = serde_json::to_vec(&limits).map_err(|error| self.wrong(&error))?;
        let written = self.path.with_extension(format!("{}.tmp", process::id()));
        let replaced = fs::write(&written, text).and_then(|()| fs::rename(&written, &self.path));
        replaced.map_err(|error| self.wrong(&error))?;
        self.known = limits;
        Ok(())
    }

    fn wrong(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.path.display())
    }
}
