//! Carries out tasks: the job's data and parameters in, gradients and figures out.
//!
//! Invariant: a result depends on the task, the data and the kernel's numerics alone. What is kept between
//! tasks ([`cache`]) saves time and changes no bit. An evaluation is cut into blocks of a fixed number of rows;
//! a gradient is never cut, since its sum would be another.

mod cache;
mod error;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use wattmill_kernel::{Activation, Batch, Kernel, Layer, Model, Outcome};
use wattmill_protocol::Hash;
use wattmill_protocol::job::{self, Job};
use wattmill_protocol::v1::{
    EvaluateResult, EvaluateTask, GradientResult, GradientTask, PrepareResult, RunTask, task, task_result,
};

use self::cache::{DataCache, KernelCache, OrderCache};
pub(crate) use self::error::TaskError;
use crate::data::{DataSet, Rows};
use crate::parameters;
use crate::report::{Finished, Reporter};

/// Rows that are evaluated in one call of the kernel: what it takes at a time by itself (fewer where a row's
/// activations are so many that 2048 rows exceed its scratch). Part of the result, as sums of losses depend on
/// their order.
const EVALUATION_ROWS: usize = 2048;

/// Runs tasks and keeps what the next one is likely to need.
#[derive(Default)]
pub(crate) struct Trainer {
    kernels: KernelCache,
    data: DataCache,
    orders: OrderCache,
    shard: Rows,
}

impl Trainer {
    /// Runs one task to its end.
    ///
    /// # Errors
    /// [`TaskError`], which says whether the job or this attempt is at fault.
    pub(crate) fn run(&mut self, run: &RunTask, reporter: &Reporter<'_>) -> Result<Finished, TaskError> {
        let job = Job::from_json(&run.job_json).map_err(TaskError::Job)?;
        let kind = run.task.as_ref().and_then(|task| task.kind.as_ref()).ok_or(TaskError::UnknownTask)?;
        let kernel = self.kernels.get(model(&job)?, run.threads as usize)?;
        let parameters = match kind {
            task::Kind::Prepare(_) => Vec::new(),
            task::Kind::Gradient(GradientTask { parameters_hash, .. })
            | task::Kind::Evaluate(EvaluateTask { parameters_hash, .. }) => {
                parameters_of(run, parameters_hash, kernel.model())?
            }
        };
        let expected = match &run.data_hash[..] {
            [] => None,
            bytes => Some(hash("data_hash", bytes)?),
        };
        let (set, fetch) = self.data.get(&job.data, expected, || reporter.tick())?;
        let mut finished = match kind {
            task::Kind::Prepare(_) => prepare(&job, kernel, set)?,
            task::Kind::Gradient(task) => {
                let order = self.orders.get(set.training.len() as u64, job.training.seed, task.epoch)?;
                let positions = range("training rows", task.first, task.count, order.len())?;
                gather(&mut self.shard, &set.training, &order[positions], kernel.model().inputs());
                gradient(kernel, &parameters, &self.shard, reporter)?
            }
            task::Kind::Evaluate(task) => {
                let rows = range("held-out rows", task.first, task.count, set.held_out.len())?;
                evaluate(kernel, &parameters, &set.held_out, rows, reporter)?
            }
        };
        finished.fetch = fetch;
        Ok(finished)
    }
}

/// The kernel's form of a job's model. Softmax belongs to the loss there, so the last layer is linear.
fn model(job: &Job) -> Result<Model, TaskError> {
    let layer = |layer: &job::Layer| Layer {
        units: layer.units as usize,
        activation: match layer.activation {
            job::Activation::Relu => Activation::Relu,
            job::Activation::Softmax => Activation::Linear,
        },
    };
    let layers: Vec<_> = job.model.layers.iter().map(layer).collect();
    Model::new(job.data.features as usize, &layers).map_err(TaskError::Model)
}

/// The parameters that came with a task, if they are those that it names.
fn parameters_of(run: &RunTask, expected: &[u8], model: &Model) -> Result<Vec<f32>, TaskError> {
    let expected = hash("parameters_hash", expected)?;
    let actual = Hash::of(&run.parameters);
    if actual != expected {
        return Err(TaskError::ParametersHash { actual, expected });
    }
    Ok(parameters::decode(model, &run.parameters)?)
}

fn prepare(job: &Job, kernel: &Kernel, set: &DataSet) -> Result<Finished, TaskError> {
    let begin = Instant::now();
    let first = kernel.model().initialise(job.training.seed);
    let compute = begin.elapsed();
    let blob = parameters::encode(kernel.model(), &first)?;
    let kind = task_result::Kind::Prepare(PrepareResult {
        training_rows: set.training.len() as u64,
        held_out_rows: set.held_out.len() as u64,
        features: job.data.features,
        classes: job.data.classes,
        data_hash: set.hash.to_bytes(),
        parameters_hash: Hash::of(&blob).to_bytes(),
        parameters: first.len() as u64,
    });
    Ok(Finished { blob, compute, ..Finished::of(kind) })
}

fn gradient(
    kernel: &mut Kernel,
    parameters: &[f32],
    shard: &Rows,
    reporter: &Reporter<'_>,
) -> Result<Finished, TaskError> {
    let mut gradient = vec![0.0; parameters.len()];
    let batch = Batch { features: &shard.features, labels: &shard.labels };
    let begin = Instant::now();
    let Outcome { loss_sum, correct, samples } =
        kernel.gradient(parameters, batch, &mut gradient, &|| reporter.tick())?;
    let compute = begin.elapsed();

    let blob: Bytes = gradient.iter().flat_map(|value| value.to_le_bytes()).collect();
    let gradient_hash = Hash::of(&blob).to_bytes();
    let kind = task_result::Kind::Gradient(GradientResult { gradient_hash, loss_sum, correct, samples });
    let useful_flops = samples * kernel.model().flops_per_sample();
    Ok(Finished { blob, compute, useful_flops, ..Finished::of(kind) })
}

/// Evaluation counts as useful: the job's mathematics asks for it, once per row. What a job does not ask for
/// (a shard that is done again) is what model FLOPs leave out.
fn evaluate(
    kernel: &mut Kernel,
    parameters: &[f32],
    held_out: &Rows,
    rows: Range<usize>,
    reporter: &Reporter<'_>,
) -> Result<Finished, TaskError> {
    let inputs = kernel.model().inputs();
    let features = &held_out.features[rows.start * inputs..rows.end * inputs];
    let blocks = held_out.labels[rows].chunks(EVALUATION_ROWS).zip(features.chunks(EVALUATION_ROWS * inputs));
    let mut total = Outcome::default();
    let begin = Instant::now();
    for (labels, features) in blocks {
        total.add(&kernel.evaluate(parameters, Batch { features, labels }, &|| reporter.tick())?);
    }
    let compute = begin.elapsed();
    let Outcome { loss_sum, correct, samples } = total;
    let kind = task_result::Kind::Evaluate(EvaluateResult { loss_sum, correct, samples });
    let useful_flops = samples * kernel.model().flops_per_sample_forward();
    Ok(Finished { compute, useful_flops, ..Finished::of(kind) })
}

/// Copies the rows of a shard together, in its order.
fn gather(shard: &mut Rows, from: &Rows, order: &[u32], features: usize) {
    shard.features.clear();
    shard.labels.clear();
    for row in order.iter().map(|&row| row as usize) {
        shard.features.extend_from_slice(&from.features[row * features..][..features]);
        shard.labels.push(from.labels[row]);
    }
}

/// The rows `first .. first + count`, if there are as many.
fn range(what: &'static str, first: u64, count: u64, rows: usize) -> Result<Range<usize>, TaskError> {
    let end = first.checked_add(count).filter(|&end| end <= rows as u64);
    let end = end.ok_or(TaskError::Range { what, first, count, rows: rows as u64 })?;
    Ok(first as usize..end as usize)
}

fn hash(field: &'static str, bytes: &[u8]) -> Result<Hash, TaskError> {
    Hash::try_from(bytes).map_err(|source| TaskError::InvalidHash { field, source })
}
