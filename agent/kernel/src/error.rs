//! Why a model, a kernel or a step is refused.
//!
//! Invariant: each error names the offending value and what would be allowed; `Display` never
//! repeats its source.

use crate::{MAX_LAYERS, MAX_PARAMETERS, MAX_THREADS, MAX_WIDTH};

/// A model that a job file describes is not one that the kernel takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The number of inputs is 0 or too large.
    #[error("the model has {0} inputs; allowed are 1 to {MAX_WIDTH}")]
    Inputs(usize),
    /// There is no layer or there are too many.
    #[error("the model has {0} layers; allowed are 1 to {MAX_LAYERS}")]
    Layers(usize),
    /// A layer's number of units is 0 or too large.
    #[error("layer {layer} has {units} units; allowed are 1 to {MAX_WIDTH}")]
    Units {
        /// Index of the layer, from 0.
        layer: usize,
        /// Its units.
        units: usize,
    },
    /// The parameters are too many.
    #[error("the model has {0} parameters or more; allowed are {MAX_PARAMETERS}")]
    Parameters(usize),
}

/// A kernel or a probe cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The number of threads is 0 or too large.
    #[error("{0} threads were asked for; allowed are 1 to {MAX_THREADS}")]
    Threads(usize),
    /// The processor has part of an instruction set: `gemm` would choose it and then panic.
    #[error("the processor has {chosen} but not {missing}, which the matrix kernels for it need")]
    Processor {
        /// The instruction set that would be chosen.
        chosen: &'static str,
        /// The first feature that is absent.
        missing: &'static str,
    },
    /// The operating system gave no threads.
    #[error("could not start the kernel's threads")]
    Pool(#[source] rayon::ThreadPoolBuildError),
}

/// A batch cannot be computed. What was written to the gradient is then without meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A slice does not fit the model or the batch.
    #[error("{what} has {actual} elements; expected are {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        actual: usize,
        /// The length it should have.
        expected: usize,
    },
    /// A label names no class.
    #[error("row {row} has label {label}; the model has {classes} classes, from 0")]
    Label {
        /// Row of the batch, from 0.
        row: usize,
        /// The label there.
        label: u32,
        /// Units of the last layer.
        classes: usize,
    },
    /// The batch needs more scratch than [`crate::MAX_SCRATCH`].
    #[error("the batch has {rows} rows; this model allows {limit}")]
    Rows {
        /// Rows of the batch.
        rows: usize,
        /// The largest batch of this model.
        limit: usize,
    },
    /// A loss is infinite or not a number: the features or the parameters are, or training diverged.
    #[error("the loss of row {row} is not finite")]
    Loss {
        /// The first such row of the batch, from 0.
        row: usize,
    },
    /// A gradient overflowed although every loss is finite.
    #[error("the gradient of {tensor} is not finite")]
    Gradient {
        /// Name of the first such tensor, as in [`crate::Model::tensors`].
        tensor: String,
    },
}

impl KernelError {
    pub(crate) fn check_length(what: &'static str, actual: usize, expected: usize) -> Result<(), Self> {
        if actual == expected { Ok(()) } else { Err(Self::Length { what, actual, expected }) }
    }
}
