//! What is kept between tasks, one of each kind, so that memory is bounded by one job's needs.
//!
//! Invariant: what is kept is what would be made anew; the former goes before the next one comes.

use std::time::{Duration, Instant};

use wattmill_kernel::{Kernel, Model, order};
use wattmill_protocol::{Hash, job};

use super::TaskError;
use crate::data::{self, DataSet};

/// The last kernel: its threads sleep between tasks, its scratch is used again.
#[derive(Default)]
pub(super) struct KernelCache(Option<(usize, Kernel)>);

impl KernelCache {
    /// A kernel of `model` on `threads` threads.
    pub(super) fn get(&mut self, model: Model, threads: usize) -> Result<&mut Kernel, TaskError> {
        let slot = &mut self.0;
        if slot.as_ref().is_some_and(|(kept, kernel)| *kept != threads || *kernel.model() != model) {
            *slot = None;
        }
        match slot {
            Some((_, kernel)) => Ok(kernel),
            None => {
                let kernel = Kernel::new(model, threads).map_err(TaskError::Setup)?;
                Ok(&mut slot.insert((threads, kernel)).1)
            }
        }
    }
}

/// The last data set.
#[derive(Default)]
pub(super) struct DataCache(Option<(job::Data, DataSet)>);

impl DataCache {
    /// The job's data, which must have the hash `expected`, and the time spent reading it. What is kept
    /// serves again only where a hash is named: a job that is being prepared takes the file as it is now.
    pub(super) fn get(
        &mut self,
        data: &job::Data,
        expected: Option<Hash>,
        tick: impl FnMut(),
    ) -> Result<(&DataSet, Duration), TaskError> {
        let slot = &mut self.0;
        if slot.as_ref().is_some_and(|(key, set)| key != data || Some(set.hash) != expected) {
            *slot = None;
        }
        match slot {
            Some((_, set)) => Ok((set, Duration::ZERO)),
            None => {
                let begin = Instant::now();
                let set = data::load(data, tick)?;
                let fetch = begin.elapsed();
                if let Some(expected) = expected {
                    set.expect(&data.uri, expected)?;
                }
                Ok((&slot.insert((data.clone(), set)).1, fetch))
            }
        }
    }
}

/// The order of the last epoch, with what it follows from.
#[derive(Default)]
pub(super) struct OrderCache(Option<((u64, u64, u32), Vec<u32>)>);

impl OrderCache {
    /// Rows `0..rows` in the order of an epoch.
    pub(super) fn get(&mut self, rows: u64, seed: u64, epoch: u32) -> Result<&[u32], TaskError> {
        let key = (rows, seed, epoch);
        let slot = &mut self.0;
        if slot.as_ref().is_some_and(|(kept, _)| *kept != key) {
            *slot = None;
        }
        match slot {
            Some((_, order)) => Ok(order),
            None => {
                let order = order::permutation(rows, seed, epoch).map_err(TaskError::Order)?;
                Ok(&slot.insert((key, order)).1)
            }
        }
    }
}
