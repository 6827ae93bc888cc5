//! What a test told functions to do instead of their work.

use std::collections::{BTreeMap, BTreeSet};

use super::config::Config;
use super::error::NvmlError;

/// What a field was fixed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixedField {
    /// A value.
    Value(u64),
    /// A return code.
    Error(NvmlError),
}

#[derive(Debug)]
struct GpuFailure {
    error: NvmlError,
    /// Calls left; for ever when `None`.
    left: Option<u32>,
}

/// Faults by function, and by GPU and function.
#[derive(Debug, Default)]
pub(super) struct Faults {
    hung: BTreeSet<String>,
    crashing: BTreeSet<String>,
    failing: BTreeMap<String, NvmlError>,
    gpu_failing: BTreeMap<(usize, String), GpuFailure>,
    blank: BTreeMap<(usize, String), u64>,
    fields: BTreeMap<(usize, u32), FixedField>,
}

impl Faults {
    /// Those of the configuration.
    pub(super) fn new(config: &Config) -> Faults {
        Faults {
            hung: config.hang.iter().cloned().collect(),
            crashing: config.crash.iter().cloned().collect(),
            failing: config.fail.clone(),
            ..Faults::default()
        }
    }

    pub(super) fn hang(&mut self, function: String) {
        self.hung.insert(function);
    }

    /// Lets one function go on, or all.
    pub(super) fn unhang(&mut self, function: Option<&str>) {
        self.hung.retain(|hung| function.is_some_and(|function| hung != function));
    }

    pub(super) fn is_hung(&self, function: &str) -> bool {
        self.hung.contains(function)
    }

    pub(super) fn crash(&mut self, function: String) {
        self.crashing.insert(function);
    }

    pub(super) fn is_crashing(&self, function: &str) -> bool {
        self.crashing.contains(function)
    }

    pub(super) fn fail(&mut self, function: String, error: Option<NvmlError>) {
        set(&mut self.failing, function, error);
    }

    /// Whether a function goes on, whichever GPU it is about.
    pub(super) fn check(&self, function: &str) -> Result<(), NvmlError> {
        self.failing.get(function).map_or(Ok(()), |error| Err(*error))
    }

    pub(super) fn fail_gpu(
        &mut self,
        slot: usize,
        function: String,
        error: Option<NvmlError>,
        times: Option<u32>,
    ) {
        let failure = error.filter(|_| times != Some(0)).map(|error| GpuFailure { error, left: times });
        set(&mut self.gpu_failing, (slot, function), failure);
    }

    /// Whether a call about a GPU goes on. One that does not is counted off.
    pub(super) fn check_gpu(&mut self, slot: usize, function: &str) -> Result<(), NvmlError> {
        let key = (slot, function.to_owned());
        let Some(failure) = self.gpu_failing.get_mut(&key) else { return Ok(()) };
        let error = failure.error;
        if let Some(left) = &mut failure.left {
            *left -= 1;
            if *left == 0 {
                self.gpu_failing.remove(&key);
            }
        }
        Err(error)
    }

    pub(super) fn set_blank(&mut self, slot: usize, function: String, value: Option<u64>) {
        set(&mut self.blank, (slot, function), value);
    }

    pub(super) fn blank(&self, slot: usize, function: &str) -> Option<u64> {
        self.blank.get(&(slot, function.to_owned())).copied()
    }

    pub(super) fn fix_field(&mut self, slot: usize, field: u32, fixed: Option<FixedField>) {
        set(&mut self.fields, (slot, field), fixed);
    }

    pub(super) fn fixed_field(&self, slot: usize, field: u32) -> Option<FixedField> {
        self.fields.get(&(slot, field)).copied()
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
