//! A shard's work on a node, and what is reported of it.

use std::sync::Arc;

use wattmill_protocol::Hash;
use wattmill_protocol::job::Job;
use wattmill_work::{Failure, HeldLease, Report, ShardResult, Task};

use crate::random::Random;
use crate::train;

/// A lease that is being worked on.
#[derive(Debug)]
pub struct Attempt {
    /// The lease.
    pub lease: HeldLease,
    /// Its job.
    pub spec: Arc<Job>,
    /// What is to be done.
    pub task: Task,
    /// What the data must hash to.
    pub data_hash: Option<Hash>,
    /// What was fetched.
    pub parameters: Vec<f32>,
    /// Parts of the parameters that are still to come.
    pub parts_left: u64,
    /// What renewals say of it.
    pub progress: u64,
    /// Steps done.
    pub done: u64,
    /// Steps that there are.
    pub steps: u64,
    /// The worker hangs there.
    pub hangs_at: Option<u64>,
    /// It comes to nothing.
    pub fails: bool,
}

impl Attempt {
    /// The work is done: what is reported, and the blob to be stored before. `broken` data cannot be read.
    pub fn report(self, random: &mut Random, numerics: &str, broken: bool) -> (Report, Option<Vec<f32>>) {
        let Self { lease, spec, task, parameters, fails, .. } = self;
        let (mut result, mut blob) = train::compute(&spec, task, &parameters, numerics);
        if fails && let ShardResult::Gradient { samples, .. } = &mut result {
            // Some workers fail without noticing: the result does not fit the task.
            *samples += 1;
        }
        let broken = broken && task == Task::Prepare;
        let noticed = fails && (random.chance(500) || matches!(task, Task::Prepare));
        let result = if broken || noticed {
            blob = None;
            let message = if broken { "the data cannot be read" } else { "the worker ran out of memory" };
            Err(Failure { bad_input: broken, message: message.to_owned() })
        } else {
            Ok(result)
        };
        let HeldLease { token, job, round, shard, .. } = lease;
        let useful_flops = 100 * task.samples();
        let report = Report { token, job, round, shard, result, useful_flops };
        (report, blob)
    }
}
