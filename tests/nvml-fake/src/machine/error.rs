//! The errors that NVML calls answer with.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An NVML return code other than success. The text is that of `nvmlErrorString`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum NvmlError {
    /// NVML was not initialised.
    #[error("Uninitialized")]
    Uninitialized = 1,
    /// A bad argument.
    #[error("Invalid Argument")]
    InvalidArgument = 2,
    /// The device cannot do this.
    #[error("Not Supported")]
    NotSupported = 3,
    /// The caller may not do this.
    #[error("Insufficient Permissions")]
    NoPermission = 4,
    /// Nothing of that name.
    #[error("Not Found")]
    NotFound = 6,
    /// The caller's buffer is too small.
    #[error("Insufficient Size")]
    InsufficientSize = 7,
    /// No driver.
    #[error("Driver Not Loaded")]
    DriverNotLoaded = 9,
    /// Nothing happened in time.
    #[error("Timeout")]
    Timeout = 10,
    /// The driver lacks the function.
    #[error("Function Not Found")]
    FunctionNotFound = 13,
    /// The GPU fell off the bus.
    #[error("GPU is lost")]
    GpuIsLost = 15,
    /// The GPU needs a reset.
    #[error("GPU requires restart")]
    ResetRequired = 16,
    /// The library and the kernel module differ in version, as after an upgrade without a reload.
    #[error("Driver/library version mismatch")]
    LibRmVersionMismatch = 18,
    /// No data.
    #[error("No data")]
    NoData = 21,
    /// A structure of an unknown version.
    #[error("Argument version mismatch")]
    ArgumentVersionMismatch = 25,
    /// Anything else.
    #[error("Unknown Error")]
    Unknown = 999,
}

impl NvmlError {
    /// Every error, for lookups by code.
    pub const ALL: [NvmlError; 15] = [
        NvmlError::Uninitialized,
        NvmlError::InvalidArgument,
        NvmlError::NotSupported,
        NvmlError::NoPermission,
        NvmlError::NotFound,
        NvmlError::InsufficientSize,
        NvmlError::DriverNotLoaded,
        NvmlError::Timeout,
        NvmlError::FunctionNotFound,
        NvmlError::GpuIsLost,
        NvmlError::ResetRequired,
        NvmlError::LibRmVersionMismatch,
        NvmlError::NoData,
        NvmlError::ArgumentVersionMismatch,
        NvmlError::Unknown,
    ];

    /// The code of the C interface.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }
}
