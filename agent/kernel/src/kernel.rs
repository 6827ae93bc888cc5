//! The kernel as its owner sees it: a model, threads and scratch.
//!
//! Invariant: every argument is checked against the model before any work begins.

use std::fmt;

use crate::pool::Pool;
use crate::step::{BadRow, BadTensor, Block, Scratch, tiles};
use crate::{KernelError, MAX_SCRATCH, Model, SetupError};

/// Samples to train on or to evaluate.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `rows × inputs`, row-major.
    pub features: &'a [f32],
    /// The class of each row, from 0.
    pub labels: &'a [u32],
}

/// What a batch gave.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Sum over the samples of the cross-entropy, in nats.
    pub loss_sum: f64,
    /// Samples whose label has the largest logit.
    pub correct: u64,
    /// Samples of the batch.
    pub samples: u64,
}

impl Outcome {
    /// Adds another's sums. Floating-point sums depend on the order: add batches in theirs.
    pub fn add(&mut self, other: &Self) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.samples += other.samples;
    }
}

/// Called after each piece of a step, on whichever thread did it.
pub type Tick<'a> = &'a (dyn Fn() + Sync);

/// A model's training step on threads of its own, with scratch that calls reuse.
pub struct Kernel {
    model: Model,
    pool: Pool,
    scratch: Scratch,
}

/// Rows that [`Kernel::evaluate`] takes at a time, which bounds its scratch.
const EVALUATION_ROWS: usize = 2048;

impl Kernel {
    /// A kernel of `threads` threads; with 1 the caller's own does the work.
    ///
    /// # Errors
    /// [`SetupError`] if the number of threads is out of bounds, the processor lacks what the matrix
    /// kernels need, or the threads cannot be started.
    pub fn new(model: Model, threads: usize) -> Result<Self, SetupError> {
        Ok(Self { model, pool: Pool::new(threads)?, scratch: Scratch::default() })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The *sum* over the batch's samples of the loss's gradient, written to `gradient`, and the sum of
    /// the losses. `parameters` and `gradient` are flat, in the order of [`Model::tensors`].
    ///
    /// Sums, because a round's shards may differ in size: the collector adds them and divides once. An
    /// empty batch gives zeros.
    ///
    /// `tick` is called on any of the kernel's threads after each piece of the work: a block of rows, or a
    /// tile of the gradient, each a second's work at most. It learns that work goes on and changes no bit.
    ///
    /// # Errors
    /// [`KernelError`]; `gradient` is then without meaning.
    pub fn gradient(
        &mut self,
        parameters: &[f32],
        batch: Batch<'_>,
        gradient: &mut [f32],
        tick: Tick<'_>,
    ) -> Result<Outcome, KernelError> {
        self.check(parameters, &batch)?;
        KernelError::check_length("gradient", gradient.len(), self.model.parameters())?;
        self.check_rows(batch.labels.len())?;
        if batch.labels.is_empty() {
            gradient.fill(0.0);
            return Ok(Outcome::default());
        }
        let model = &self.model;
        let outcome = run_blocks(&self.pool, &mut self.scratch, model, batch, |block| {
            let outcome = block.forward(model, parameters)?;
            block.backward(model, parameters);
            tick();
            Ok(outcome)
        })?;
        let scratch = &self.scratch;
        let done = self.pool.map(tiles(model, gradient), |tile| {
            let done = tile.compute(model, scratch, batch.features);
            tick();
            done
        });
        done.into_iter().collect::<Result<(), _>>().map_err(|bad| self.bad_tensor(&bad))?;
        Ok(outcome)
    }

    /// Losses and hits of the batch, of any size, without a gradient; `tick` is called after each block of
    /// rows.
    ///
    /// # Errors
    /// [`KernelError`] as for [`Kernel::gradient`].
    pub fn evaluate(
        &mut self,
        parameters: &[f32],
        batch: Batch<'_>,
        tick: Tick<'_>,
    ) -> Result<Outcome, KernelError> {
        self.check(parameters, &batch)?;
        let limit = self.row_limit().clamp(1, EVALUATION_ROWS);
        let parts = batch.labels.chunks(limit).zip(batch.features.chunks(limit * self.model.inputs()));
        let mut total = Outcome::default();
        for (index, (labels, features)) in parts.enumerate() {
            let part = Batch { features, labels };
            let model = &self.model;
            let forward = |block: &mut Block<'_>| {
                let outcome = block.forward(model, parameters);
                tick();
                outcome
            };
            let outcome = run_blocks(&self.pool, &mut self.scratch, model, part, forward);
            total.add(&outcome.map_err(|BadRow(row)| BadRow(index * limit + row))?);
        }
        Ok(total)
    }

    fn check(&self, parameters: &[f32], batch: &Batch<'_>) -> Result<(), KernelError> {
        KernelError::check_length("parameters", parameters.len(), self.model.parameters())?;
        let features = batch.labels.len().saturating_mul(self.model.inputs());
        KernelError::check_length("features", batch.features.len(), features)?;
        let classes = self.model.classes();
        match batch.labels.iter().position(|&label| label as usize >= classes) {
            Some(row) => Err(KernelError::Label { row, label: batch.labels[row], classes }),
            None => Ok(()),
        }
    }

    fn check_rows(&self, rows: usize) -> Result<(), KernelError> {
        let limit = self.row_limit();
        if rows <= limit { Ok(()) } else { Err(KernelError::Rows { rows, limit }) }
    }

    /// At least 2, since a model has at most 2^26 units.
    fn row_limit(&self) -> usize {
        MAX_SCRATCH / self.model.scratch_per_row().max(1)
    }

    fn bad_tensor(&self, bad: &BadTensor) -> KernelError {
        let index = 2 * bad.layer + usize::from(!bad.weight);
        let tensor = self.model.tensors().into_iter().nth(index).map(|spec| spec.name).unwrap_or_default();
        KernelError::Gradient { tensor }
    }
}

/// Runs `work` on every block of the batch and adds up their outcomes in order.
fn run_blocks(
    pool: &Pool,
    scratch: &mut Scratch,
    model: &Model,
    batch: Batch<'_>,
    work: impl Fn(&mut Block<'_>) -> Result<Outcome, BadRow> + Sync,
) -> Result<Outcome, BadRow> {
    let blocks = scratch.blocks(model, batch.features, batch.labels);
    let mut total = Outcome::default();
    for outcome in pool.map(blocks, |mut block| work(&mut block)) {
        total.add(&outcome?);
    }
    Ok(total)
}

impl From<BadRow> for KernelError {
    fn from(BadRow(row): BadRow) -> Self {
        Self::Loss { row }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("model", &self.model).finish_non_exhaustive()
    }
}
