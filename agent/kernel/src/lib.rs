//! The training step of dense networks in `f32`: forward, softmax cross-entropy, backward.
//!
//! Pure computation: no I/O, clock or async runtime, and no randomness but what a seed gives. The
//! worker owns a [`Kernel`], hands it the parameters and a batch, and gets the *sum* of the samples'
//! gradients, which the collector reduces in shard order.
//!
//! Invariant: bits depend on the arguments and on [`Numerics`] alone. They do not depend on the
//! number of threads, on scheduling, on the processor's caches or on calls made before:
//! - rows are cut into blocks by the batch's size and the layers' shapes alone; each block runs forward and backward-data
//!   serially;
//! - after one join, the weights' gradients are cut into tiles by the layers' shapes alone; each tile
//!   sums serially over the whole batch;
//! - losses are summed in block order;
//! - `exp` and `ln` are computed here, never by libm; `unsafe` is confined to `multiply` (the GEMM
//!   call) and `denormals` (the MXCSR register).
//!
//! ```
//! use wattmill_kernel::{Activation, Batch, Kernel, Layer, Model};
//!
//! let layers = [
//!     Layer { units: 8, activation: Activation::Relu },
//!     Layer { units: 2, activation: Activation::Linear },
//! ];
//! let model = Model::new(3, &layers)?;
//! let parameters = model.initialise(1);
//! let mut gradient = vec![0.0; model.parameters()];
//! let mut kernel = Kernel::new(model, 1)?;
//! let batch = Batch { features: &[0.0, 1.0, 2.0, 2.0, 1.0, 0.0], labels: &[0, 1] };
//! let outcome = kernel.gradient(&parameters, batch, &mut gradient, &|| ())?;
//! assert_eq!(outcome.samples, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod denormals;
mod error;
mod kernel;
mod loss;
mod maths;
mod model;
mod multiply;
mod numerics;
mod pool;
mod random;
mod step;

pub mod order;
pub mod probe;

pub use error::{KernelError, ModelError, SetupError};
pub use kernel::{Batch, Kernel, Outcome, Tick};
pub use model::{Activation, Layer, Model, TensorSpec};
pub use numerics::{Numerics, NumericsParseError};

/// The largest number of parameters of a model: 2^27, 512 MiB in `f32`. A worker holds about four
/// such vectors; a model past this belongs to a gang of a framework, not to parameter shards.
pub const MAX_PARAMETERS: usize = 1 << 27;
/// The largest number of layers of a model.
pub const MAX_LAYERS: usize = 64;
/// The largest number of inputs, and of units of a layer: far past any dense layer in use, and small
/// enough that products of two cannot overflow.
pub const MAX_WIDTH: usize = 1 << 20;
/// The largest number of `f32` of scratch for one batch: 2^28, 1 GiB.
pub const MAX_SCRATCH: usize = 1 << 28;
/// The largest number of threads of a [`Kernel`].
pub const MAX_THREADS: usize = 1024;

/// The version of the arithmetic, part of [`Numerics`].
///
/// Raise it with any change that may alter a bit of a gradient or of a loss: the blocks and tiles,
/// `exp` and `ln`, the version of the `gemm` crate. `tests/determinism.rs` fails when one did.
pub const VERSION: u32 = 1;
