//! Utilisation from two samples of what the GPU counts: Hopper and newer, also when partitioned.

use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::calls::is_lost;
use super::ffi::{Handle, Sample, has_gpm};

/// Samples must lie this far apart to tell something.
const MIN_SPAN: Duration = Duration::from_millis(100);

/// What GPM has said of a GPU.
#[derive(Default)]
pub(super) struct Gpm {
    usable: bool,
    earlier: Option<(Sample, Duration)>,
    newest: Option<f64>,
}

impl Gpm {
    /// Finds out whether there is any. Where it is not allowed (`NVreg_RestrictProfilingToAdminUsers`) there is
    /// none.
    pub(super) fn of(handle: &Handle, nvml: &Nvml) -> Self {
        let usable = has_gpm(nvml) && handle.device().gpm_support().unwrap_or(false);
        Self { usable, ..Self::default() }
    }

    /// Share of the time since the last sample in which the GPU was in use; `None` where GPM does not tell.
    pub(super) fn utilization(&mut self, handle: &Handle, at: Duration) -> Result<Option<f64>, NvmlError> {
        if !self.usable {
            return Ok(None);
        }
        if self.earlier.as_ref().is_some_and(|(_, taken)| at.saturating_sub(*taken) < MIN_SPAN) {
            return Ok(self.newest);
        }
        match self.sample(handle, at) {
            Ok(utilization) => self.newest = utilization,
            Err(error) if is_lost(&error) => return Err(error),
            // It said that it could: another tool may have taken the counters. The plain figure serves on.
            Err(error) => {
                tracing::info!(%error, "GPM does not tell utilisation; going on without");
                *self = Self::default();
            }
        }
        Ok(self.newest)
    }

    fn sample(&mut self, handle: &Handle, at: Duration) -> Result<Option<f64>, NvmlError> {
        let sample = handle.gpm_sample()?;
        let utilization = self.earlier.as_ref().map(|(earlier, _)| sample.utilization_since(earlier));
        self.earlier = Some((sample, at));
        match utilization {
            None | Some(Err(NvmlError::NoData)) => Ok(None),
            // Rounding may go past the whole.
            Some(Ok(share)) => Ok((0.0..1.05).contains(&share).then_some(share.min(1.0))),
            Some(Err(error)) => Err(error),
        }
    }
}
