//! Memory errors that ECC found.

use super::Gpu;
use crate::machine::error::NvmlError;

/// Errors of one period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EccCounts {
    /// Single-bit errors, which ECC mended.
    pub corrected: u64,
    /// Double-bit errors, which it could not mend.
    pub uncorrected: u64,
}

/// Errors since the driver was loaded, and in the GPU's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryErrors {
    /// Since the driver was loaded.
    pub volatile: EccCounts,
    /// In the GPU's life.
    pub aggregate: EccCounts,
}

impl Gpu {
    /// Counts errors of the memory.
    pub fn add_memory_errors(&mut self, corrected: u64, uncorrected: u64) {
        for counts in [&mut self.memory_errors.volatile, &mut self.memory_errors.aggregate] {
            counts.corrected = counts.corrected.saturating_add(corrected);
            counts.uncorrected = counts.uncorrected.saturating_add(uncorrected);
        }
    }

    /// Memory errors.
    ///
    /// # Errors
    /// No ECC.
    pub fn ecc(&self) -> Result<MemoryErrors, NvmlError> {
        if self.config.ecc { Ok(self.memory_errors) } else { Err(NvmlError::NotSupported) }
    }
}
