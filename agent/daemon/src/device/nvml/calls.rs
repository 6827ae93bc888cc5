//! What calls to a GPU met with.
//!
//! Invariant: what is not supported is absent and no failure; a failure is counted by reason; after some of
//! them none of the GPU's other answers is to be believed.

use nvml_wrapper::error::NvmlError;

/// A round of calls to one GPU.
pub(super) struct Calls<'a> {
    failures: &'a mut Vec<&'static str>,
    lost: Option<&'static str>,
}

impl<'a> Calls<'a> {
    /// Nothing has failed yet; what fails is added to `failures`.
    pub(super) fn new(failures: &'a mut Vec<&'static str>) -> Self {
        Self { failures, lost: None }
    }

    /// The value of a call; what is not supported is absent and no failure.
    pub(super) fn take<T>(&mut self, result: Result<T, NvmlError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if is_unsupported(&error) => None,
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// A call failed. One reason counts once a round: a batch fails as one.
    pub(super) fn fail(&mut self, error: &NvmlError) {
        let reason = reason(error);
        if is_lost(error) {
            self.lost.get_or_insert(reason);
        }
        if !self.failures.contains(&reason) {
            self.failures.push(reason);
        }
    }

    /// Why the GPU is lost, if it is.
    pub(super) fn lost(&self) -> Option<&'static str> {
        self.lost
    }
}

pub(super) fn is_unsupported(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NoData
    )
}

/// Errors after which none of the GPU's other answers is to be believed.
pub(super) fn is_lost(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::NotFound
            | NvmlError::ResetRequired
            | NvmlError::DriverNotLoaded
            | NvmlError::Uninitialized
    )
}

/// The value of the `reason` label.
pub(super) fn reason(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => "library",
        NvmlError::DriverNotLoaded => "driver_not_loaded",
        NvmlError::LibRmVersionMismatch => "version_mismatch",
        NvmlError::GpuLost => "gpu_lost",
        NvmlError::ResetRequired => "reset_required",
        NvmlError::NotFound => "not_found",
        NvmlError::NoPermission => "permission",
        NvmlError::Timeout => "timeout",
        NvmlError::Uninitialized => "uninitialized",
        NvmlError::InsufficientPower => "insufficient_power",
        NvmlError::IrqIssue => "irq_issue",
        NvmlError::OperatingSystem => "operating_system",
        NvmlError::InvalidArg => "invalid_argument",
        NvmlError::Unknown => "unknown",
        _ => "other",
    }
}
