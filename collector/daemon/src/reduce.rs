//! From a round's gradients to the next parameters: reduced in shard order, so that the bits do not
//! depend on who computed them or when they came.
//!
//! Invariant: what comes out is written only once the core has named it, or another job that has the same
//! blob could retire it in between.

use std::sync::Arc;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use wattmill_optim::{Optimizer, Schedule};
use wattmill_protocol::job::{self, Job};
use wattmill_protocol::{Hash, exit};
use wattmill_work::{Reduction, ShardResult};

use crate::blobs::{Blob, BlobError, Blobs};

/// A round that cannot be reduced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReduceError {
    /// A blob is missing or cannot be kept.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The parameters are not a safetensors file.
    #[error("the parameters are not a safetensors file")]
    Parameters(#[from] safetensors::SafeTensorError),
    /// The parameters are not the job's.
    #[error("the parameters have {found} bytes of f32; the job's model has {expected}")]
    Size {
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        expected: u64,
    },
    /// Two vectors that belong together differ in length.
    #[error(transparent)]
    Length(#[from] wattmill_optim::LengthMismatch),
    /// The optimizer refused.
    #[error(transparent)]
    Optimizer(#[from] wattmill_optim::StepError),
    /// The reduction panicked.
    #[error("the reduction panicked, which is a bug: {0}")]
    Panicked(String),
    /// The preparing round had not one blob.
    #[error("a round without gradients has {0} blobs")]
    Blobs(usize),
}

impl ReduceError {
    /// Whether the same reduction may succeed later: the disk is full or away.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Blob(BlobError::Io { .. }))
    }
}

/// What is to be reduced: the fields of [`Effect::Reduce`](wattmill_work::Effect::Reduce).
pub(crate) struct Round {
    pub(crate) spec: Arc<Job>,
    pub(crate) parameters: Option<Hash>,
    pub(crate) optimizer: Option<Hash>,
    pub(crate) blobs: Vec<Hash>,
    pub(crate) samples: u64,
    pub(crate) step: (u64, u64),
}

/// What a round came to, not written yet.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) reduction: Reduction,
    new: Vec<Blob>,
}

impl Outcome {
    /// Makes it durable.
    pub(crate) fn persist(&self, blobs: &Blobs) -> Result<Reduction, ReduceError> {
        self.new.iter().try_for_each(|blob| blobs.persist(blob.clone()))?;
        Ok(self.reduction)
    }
}

/// Why a result's blob is not what the job's shards yield; `None` where it is.
pub(crate) fn misfit(blobs: &Blobs, result: &ShardResult, spec: &Job) -> Option<String> {
    match result {
        ShardResult::Gradient { gradient, .. } => {
            let (found, expected) = (blobs.size(*gradient)?, spec.parameters() * 4);
            (found != expected)
                .then(|| format!("the gradient has {found} bytes, the job's model asks for {expected}"))
        }
        ShardResult::Prepared { parameters, .. } => {
            let error = payload_of(&blobs.read(*parameters).ok()?, spec).err()?;
            Some(exit::describe(&error))
        }
        ShardResult::Evaluated { .. } => None,
    }
}

/// Reduces a round.
pub(crate) fn reduce(blobs: &Blobs, round: &Round) -> Result<Outcome, ReduceError> {
    match (round.parameters, round.step) {
        // The preparing round: the shard's blob is the first parameters.
        (None, _) => {
            let [only] = round.blobs[..] else { return Err(ReduceError::Blobs(round.blobs.len())) };
            let bytes = blobs.read(only)?;
            payload_of(&bytes, &round.spec)?;
            Ok(outcome(bytes, None))
        }
        // The judging round changes nothing.
        (Some(parameters), (0, _)) => {
            let reduction = Reduction { parameters, optimizer: round.optimizer };
            Ok(Outcome { reduction, new: Vec::new() })
        }
        (Some(parameters), (step, steps)) => train(blobs, round, parameters, step, steps),
    }
}

fn train(
    blobs: &Blobs,
    round: &Round,
    parameters: Hash,
    step: u64,
    steps: u64,
) -> Result<Outcome, ReduceError> {
    let file = blobs.read(parameters)?;
    let payload = payload_of(&file, &round.spec)?;
    let mut values = floats(&file[payload..]);
    let mut gradient = vec![0.0; values.len()];
    for &blob in &round.blobs {
        wattmill_optim::reduce(&mut gradient, &floats(&blobs.read(blob)?))?;
    }
    wattmill_optim::mean(&mut gradient, round.samples);
    let optimizer = optimizer(&round.spec.training.optimizer);
    let mut state = match round.optimizer {
        Some(hash) => floats(&blobs.read(hash)?),
        None => vec![0.0; optimizer.slots() * values.len()],
    };
    let scale = schedule(round.spec.training.schedule).scale(step, steps);
    optimizer.step(step, scale, &mut values, &gradient, &mut state)?;

    let mut next = file[..payload].to_vec();
    next.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let state: Vec<u8> = state.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(outcome(next.into(), (!state.is_empty()).then(|| state.into())))
}

fn outcome(parameters: Bytes, optimizer: Option<Bytes>) -> Outcome {
    let (parameters, optimizer) = (Blob::new(parameters), optimizer.map(Blob::new));
    let reduction =
        Reduction { parameters: parameters.name(), optimizer: optimizer.as_ref().map(Blob::name) };
    Outcome { reduction, new: optimizer.into_iter().chain([parameters]).collect() }
}

/// Where the values begin in a safetensors file that holds the model's f32 parameters and nothing else.
fn payload_of(file: &Bytes, spec: &Job) -> Result<usize, ReduceError> {
    let (header, metadata) = SafeTensors::read_metadata(file)?;
    let payload = header + 8;
    let tensors = metadata.tensors();
    let floats = tensors.values().filter(|t| t.dtype == Dtype::F32);
    let found: u64 = floats.map(|t| (t.data_offsets.1 - t.data_offsets.0) as u64).sum();
    let expected = spec.parameters() * 4;
    if found != expected || (file.len() - payload) as u64 != expected {
        return Err(ReduceError::Size { found, expected });
    }
    Ok(payload)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn optimizer(spec: &job::Optimizer) -> Optimizer {
    match *spec {
        job::Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay } => {
            Optimizer::Sgd { learning_rate, momentum, nesterov, weight_decay }
        }
        job::Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } => {
            Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay }
        }
    }
}

fn schedule(spec: job::Schedule) -> Schedule {
    match spec {
        job::Schedule::Constant => Schedule::Constant,
        job::Schedule::Linear { final_ratio } => Schedule::Linear { final_ratio },
        job::Schedule::Cosine { final_ratio } => Schedule::Cosine { final_ratio },
    }
}
