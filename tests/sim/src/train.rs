//! Training in small: a model of a few parameters whose gradients depend, to the bit, on the parameters, the
//! samples and the numerics of the node. The optimizer is the real one.
//!
//! [`undisturbed`] trains a job in one straight loop, without shards' leases, nodes or a collector: what
//! every disturbed run must arrive at.

use wattmill_optim::{Optimizer, Schedule, mean, reduce};
use wattmill_protocol::Hash;
use wattmill_protocol::job::{self, Job};
use wattmill_work::{Prepared, ShardResult, Task};

use crate::blobs::name;
use crate::random::mix;

/// Numerics of nodes that compute alike.
pub const NUMERICS: [&str; 2] = ["even/f32/1", "odd/f32/1"];

/// Rows to train on and rows held out, as `sim://ROWS/HELD` says.
pub fn prepared(spec: &Job) -> Prepared {
    let path = spec.data.uri.strip_prefix("sim://").unwrap_or_default();
    let mut rows = path.split('/').map(|part| part.parse().unwrap_or(0));
    Prepared {
        training_rows: rows.next().unwrap_or(0),
        held_out_rows: rows.next().unwrap_or(0),
        data_hash: Hash::of(path.as_bytes()),
    }
}

/// The parameters before the first step.
pub fn first_parameters(spec: &Job) -> Vec<f32> {
    (0..spec.parameters()).map(|k| unit(spec.training.seed, [u64::MAX, k])).collect()
}

/// What a task yields on a node of `numerics`, and the blob to be stored.
pub fn compute(
    spec: &Job,
    task: Task,
    parameters: &[f32],
    numerics: &str,
) -> (ShardResult, Option<Vec<f32>>) {
    match task {
        Task::Prepare => {
            let first = first_parameters(spec);
            let result = ShardResult::Prepared { prepared: prepared(spec), parameters: name(&first) };
            (result, Some(first))
        }
        Task::Gradient { epoch, first, count, .. } => {
            let sum = gradient(spec, parameters, epoch, first..first + count, numerics);
            let loss_sum = sum.iter().map(|g| f64::from(g * g)).sum();
            let gradient = name(&sum);
            (ShardResult::Gradient { gradient, loss_sum, correct: count / 2, samples: count }, Some(sum))
        }
        Task::Evaluate { count, .. } => {
            let loss_sum = parameters.iter().map(|p| f64::from(p * p)).sum();
            (ShardResult::Evaluated { loss_sum, correct: count / 3, samples: count }, None)
        }
    }
}

/// One optimizer step over the summed gradients of the shards, in their order. Step 0 changes nothing.
pub fn step<'a>(
    spec: &Job,
    parameters: &[f32],
    state: Option<&[f32]>,
    gradients: impl Iterator<Item = &'a [f32]>,
    samples: u64,
    (step, steps): (u64, u64),
) -> Result<(Vec<f32>, Option<Vec<f32>>), String> {
    let mut next = parameters.to_vec();
    if step == 0 {
        return Ok((next, state.map(<[f32]>::to_vec)));
    }
    let optimizer = optimizer(&spec.training.optimizer);
    let mut sum = vec![0.0; next.len()];
    for part in gradients {
        reduce(&mut sum, part).map_err(|e| e.to_string())?;
    }
    mean(&mut sum, samples);
    let mut state = state.map_or_else(|| vec![0.0; optimizer.slots() * next.len()], <[f32]>::to_vec);
    let scale = schedule(&spec.training.schedule).scale(step, steps);
    optimizer.step(step, scale, &mut next, &sum, &mut state).map_err(|e| e.to_string())?;
    Ok((next, (optimizer.slots() > 0).then_some(state)))
}

/// Name of the parameters that the job ends with when nothing goes wrong.
pub fn undisturbed(spec: &Job, numerics: &str) -> Result<Hash, String> {
    let rows = prepared(spec).training_rows;
    let (size, shards) = (u64::from(spec.training.shard_size), u64::from(spec.training.shards_per_round));
    let rounds = rows.div_ceil(size * shards);
    let steps = rounds * u64::from(spec.training.epochs);
    let (mut parameters, mut state) = (first_parameters(spec), None);
    for number in 1..=steps {
        let epoch = ((number - 1) / rounds) as u32;
        let from = (number - 1) % rounds * size * shards;
        let to = rows.min(from + size * shards);
        let parts: Vec<Vec<f32>> = (from..to)
            .step_by(size as usize)
            .map(|first| gradient(spec, &parameters, epoch, first..to.min(first + size), numerics))
            .collect();
        let parts = parts.iter().map(Vec::as_slice);
        (parameters, state) = step(spec, &parameters, state.as_deref(), parts, to - from, (number, steps))?;
    }
    Ok(name(&parameters))
}

fn gradient(
    spec: &Job,
    parameters: &[f32],
    epoch: u32,
    at: std::ops::Range<u64>,
    numerics: &str,
) -> Vec<f32> {
    // Another instruction set rounds otherwise: as little as that must already show.
    let skew = if numerics == NUMERICS[0] { 1.0 } else { 1.0 + 8.0 * f32::EPSILON };
    let mut sum = vec![0.0f32; parameters.len()];
    for position in at {
        for (k, (g, p)) in sum.iter_mut().zip(parameters).enumerate() {
            let target = unit(spec.training.seed, [u64::from(epoch) << 32 | position, k as u64]);
            *g += (p - target) * skew;
        }
    }
    sum
}

/// A number from -1 to 1 that depends on all of `at`.
fn unit(seed: u64, at: [u64; 2]) -> f32 {
    let bits = at.into_iter().fold(mix(seed), |sum, part| mix(sum ^ part)) >> 40;
    bits as f32 / (1u32 << 23) as f32 - 1.0
}

fn optimizer(of_job: &job::Optimizer) -> Optimizer {
    match *of_job {
        job::Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay } => {
            Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay }
        }
        job::Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } => {
            Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay }
        }
    }
}

fn schedule(of_job: &job::Schedule) -> Schedule {
    match *of_job {
        job::Schedule::Constant => Schedule::Constant,
        job::Schedule::Linear { final_ratio } => Schedule::Linear { final_ratio },
        job::Schedule::Cosine { final_ratio } => Schedule::Cosine { final_ratio },
    }
}
