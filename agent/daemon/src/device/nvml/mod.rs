//! NVIDIA GPUs through NVML. With [`super`] the only place that talks to it.
//!
//! Invariant: a host without the library is a host without GPUs. GPUs are known by UUID, indices may
//! shift; one that is lost stays in the readings with `up` false.

mod gpu;
mod integrate;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::host::Usage;
use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::config::{Gpus, Metering};
use gpu::Gpu;

/// How often a library that cannot be used is tried again: drivers are installed and reloaded.
const RETRY: Duration = Duration::from_secs(30);
/// How often new GPUs are looked for.
const REDISCOVER: Duration = Duration::from_secs(10);
/// Power is integrated over this many missed readings at most.
const MAX_MISSED: u32 = 10;

/// A GPU at one time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GpuReading {
    /// Its identity.
    pub uuid: String,
    /// Its number now.
    pub index: String,
    /// What it is called.
    pub model: String,
    /// Version of the driver.
    pub driver: String,
    /// Where it sits.
    pub pci: String,
    /// Whether it answers.
    pub up: bool,
    /// Share of time in which a kernel ran.
    pub utilization: Option<f64>,
    /// Memory.
    pub memory: Option<Usage>,
    /// Temperature of the core.
    pub temperature_celsius: Option<f64>,
    /// Clock of the multiprocessors.
    pub sm_clock_hertz: Option<f64>,
    /// Power limit in force.
    pub power_limit_watts: Option<f64>,
    /// Processes that compute on it: others' use is not ours to disturb.
    pub processes: Option<Vec<u32>>,
}

/// The backend.
pub struct NvmlBackend {
    library: PathBuf,
    explicit: bool,
    wanted: Gpus,
    metering: Metering,
    /// Shut down and unloaded when dropped: a driver that was replaced comes with another library.
    nvml: Option<Nvml>,
    driver: String,
    gpus: Vec<Gpu>,
    tried_at: Option<Duration>,
    /// Why the last try came to nothing; `None` where that is normal.
    error: Option<ReadError>,
    discovered_at: Option<Duration>,
    full_window: Option<u128>,
}

impl NvmlBackend {
    /// NVML from `library`; `explicit` when its absence is a failure.
    pub fn new(library: &Path, explicit: bool, wanted: Gpus, metering: Metering) -> Self {
        // A GPU that was asked for and is not there is a lost one.
        let listed = match &wanted {
            Gpus::All => &[][..],
            Gpus::Listed(uuids) => uuids,
        };
        Self {
            library: library.to_owned(),
            explicit: explicit || !listed.is_empty(),
            gpus: listed.iter().map(|uuid| Gpu::new(uuid)).collect(),
            wanted,
            metering,
            nvml: None,
            driver: String::new(),
            tried_at: None,
            error: None,
            discovered_at: None,
            full_window: None,
        }
    }

    pub(super) fn read(&mut self, asked: bool) -> Answer {
        let now = clock::monotonic();
        let due = self.tried_at.is_none_or(|at| now.saturating_sub(at) >= RETRY);
        if self.nvml.is_none() && due {
            self.open(now);
        }
        let Some(nvml) = self.nvml.take() else {
            // Between two tries it stands as after the last one.
            return self.error.clone().map_or(Answer::Absent, Answer::Failed);
        };
        let mut failures = Vec::new();
        if self.discovered_at.is_none_or(|at| now.saturating_sub(at) >= REDISCOVER) {
            self.discovered_at = Some(now);
            if let Err(error) = self.discover(&nvml, &mut failures) {
                return Answer::Failed(self.close(nvml, now, &error));
            }
        }
        self.read_gpus(&nvml, asked, now, &mut failures);
        self.nvml = Some(nvml);
        Answer::Reading(self.reading(failures))
    }

    fn open(&mut self, now: Duration) {
        self.tried_at = Some(now);
        self.error = None;
        match Nvml::builder().lib_path(self.library.as_os_str()).init() {
            Ok(nvml) if nvml.lib().nvmlShutdown.is_err() => {
                // It cannot be let go of either.
                std::mem::forget(nvml);
                let message = format!("{} is not NVML: it lacks nvmlShutdown", self.library.display());
                self.error = Some(ReadError::new("library", message));
            }
            Ok(nvml) => {
                self.driver = nvml.sys_driver_version().unwrap_or_default();
                self.discovered_at = None;
                tracing::info!(library = %self.library.display(), driver = self.driver, "NVML loaded");
                self.nvml = Some(nvml);
            }
            // No library, no GPUs; unless there were some before.
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound)
                if !self.explicit && self.gpus.is_empty() => {}
            Err(error) => self.error = Some(self.failure(&error)),
        }
    }

    /// The driver is gone: it is let go of, and everything is found anew once it is back.
    fn close(&mut self, nvml: Nvml, now: Duration, error: &NvmlError) -> ReadError {
        drop(nvml);
        self.tried_at = Some(now);
        for gpu in &mut self.gpus {
            gpu.lose(reason(error));
        }
        let failure = self.failure(error);
        self.error = Some(failure.clone());
        failure
    }

    fn failure(&self, error: &NvmlError) -> ReadError {
        ReadError::new(reason(error), format!("NVML {}: {error}", self.library.display()))
    }

    fn discover(&mut self, nvml: &Nvml, failures: &mut Vec<&'static str>) -> Result<(), NvmlError> {
        for index in 0..nvml.device_count()? {
            let device = match nvml.device_by_index(index) {
                Ok(device) => device,
                Err(error) => {
                    failures.push(reason(&error));
                    continue;
                }
            };
            let Ok(uuid) = device.uuid() else { continue };
            if !self.wanted.includes(&uuid) {
                continue;
            }
            let known = self.gpus.iter().position(|gpu| gpu.reading.uuid == uuid);
            let at = known.unwrap_or_else(|| {
                self.gpus.push(Gpu::new(&uuid));
                self.gpus.len() - 1
            });
            self.gpus[at].describe(&device, &self.driver);
        }
        Ok(())
    }

    fn read_gpus(&mut self, nvml: &Nvml, asked: bool, now: Duration, failures: &mut Vec<&'static str>) {
        // Power is read at every turn, the rest once a window: each call costs the driver's lock.
        let window = now.as_nanos() / self.metering.interval.as_nanos().max(1);
        let full = asked || self.full_window != Some(window);
        self.full_window = Some(window);
        let max_span = (self.metering.gpu_interval * MAX_MISSED).max(Duration::from_secs(1));
        for gpu in &mut self.gpus {
            // A lost GPU is asked once a window: each call to it may write to the kernel's log.
            if !gpu.reading.up && !full {
                continue;
            }
            match nvml.device_by_uuid(gpu.reading.uuid.as_str()) {
                Ok(device) => gpu.read(&device, full, max_span, failures),
                Err(error) => {
                    failures.push(reason(&error));
                    gpu.lose(reason(&error));
                }
            }
        }
    }

    fn reading(&self, failures: Vec<&'static str>) -> Reading {
        Reading {
            energy: self.gpus.iter().flat_map(Gpu::energy).collect(),
            gpus: self.gpus.iter().map(|gpu| gpu.reading.clone()).collect(),
            host: None,
            failures,
        }
    }
}

/// The value of the `reason` label.
fn reason(error: &NvmlError) -> &'static str {
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
        NvmlError::Unknown => "unknown",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
