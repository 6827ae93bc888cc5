//! Why a task failed, and whose fault it is.

use wattmill_kernel::order::TooManyRows;
use wattmill_kernel::{KernelError, ModelError, SetupError};
use wattmill_protocol::Hash;
use wattmill_protocol::ids::InvalidId;
use wattmill_protocol::job::JobError;
use wattmill_protocol::v1::FailureKind;

use crate::data::DataError;
use crate::parameters::ParametersError;

/// A task has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// The job cannot be understood.
    #[error("the job is refused")]
    Job(#[source] JobError),
    /// The kernel does not take the job's model.
    #[error("the job's model is refused")]
    Model(#[source] ModelError),
    /// The kernel cannot run here.
    #[error("the kernel cannot be set up on this node")]
    Setup(#[source] SetupError),
    /// The data is at fault.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The parameters are no parameters of the job's model.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// The parameters were damaged on their way.
    #[error("the parameters that came have SHA-256 {actual}; the task names {expected}")]
    ParametersHash {
        /// Of what came.
        actual: Hash,
        /// What should have come.
        expected: Hash,
    },
    /// A field of the request that should be a hash is none.
    #[error("the request's {field} is wrong")]
    InvalidHash {
        /// The field.
        field: &'static str,
        /// What it is.
        #[source]
        source: InvalidId,
    },
    /// A shard reaches past the rows that there are.
    #[error("the task wants {count} {what} from {first}; the data has {rows}")]
    Range {
        /// Which rows.
        what: &'static str,
        /// The first one.
        first: u64,
        /// How many.
        count: u64,
        /// How many there are.
        rows: u64,
    },
    /// The data has more rows than can be ordered.
    #[error("the epoch's order cannot be made")]
    Order(#[source] TooManyRows),
    /// Numbers grew past all bounds.
    #[error(
        "training diverged (lower training.optimizer.learning_rate, or data.scale so that features lie \
         between -1 and 1)"
    )]
    Diverged(#[source] KernelError),
    /// The shard's activations do not fit.
    #[error("the shard does not fit in memory (lower training.shard_size)")]
    ShardTooLarge(#[source] KernelError),
    /// The kernel refuses its arguments, which were checked: a bug.
    #[error("the kernel refuses the task")]
    Kernel(#[source] KernelError),
    /// The task is of a kind that did not exist when this worker was built.
    #[error("the task is of no kind that worker {} knows: update this node", env!("CARGO_PKG_VERSION"))]
    UnknownTask,
}

impl TaskError {
    /// Whether another attempt, on another node perhaps, could fare better.
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Data(error) => error.kind(),
            Self::Setup(_)
            | Self::ParametersHash { .. }
            | Self::InvalidHash { .. }
            | Self::Kernel(_)
            | Self::UnknownTask => FailureKind::Attempt,
            Self::Job(_)
            | Self::Model(_)
            | Self::Parameters(_)
            | Self::Range { .. }
            | Self::Order(_)
            | Self::Diverged(_)
            | Self::ShardTooLarge(_) => FailureKind::BadInput,
        }
    }
}

impl From<KernelError> for TaskError {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Loss { .. } | KernelError::Gradient { .. } => Self::Diverged(error),
            KernelError::Rows { .. } => Self::ShardTooLarge(error),
            KernelError::Length { .. } | KernelError::Label { .. } => Self::Kernel(error),
        }
    }
}
