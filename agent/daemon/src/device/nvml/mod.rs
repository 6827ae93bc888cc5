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
    nvml: Option<&'static Nvml>,
    driver: String,
    gpus: Vec<Gpu>,
    tried_at: Option<Duration>,
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
            explicit,
            gpus: listed.iter().map(|uuid| Gpu::new(uuid)).collect(),
            wanted,
            metering,
            nvml: None,
            driver: String::new(),
            tried_at: None,
            discovered_at: None,
            full_window: None,
        }
    }

    pub(super) fn read(&mut self, asked: bool) -> Answer {
        let now = clock::monotonic();
        let nvml = match self.nvml {
            Some(nvml) => nvml,
            None => {
                let due = self.tried_at.is_none_or(|at| now.saturating_sub(at) >= RETRY);
                match if due { self.open(now) } else { Ok(None) } {
                    Ok(Some(nvml)) => nvml,
                    // Between two tries GPUs that were there before are lost, not absent.
                    Ok(None) if self.gpus.is_empty() => return Answer::Absent,
                    Ok(None) => return Answer::Reading(self.reading(Vec::new())),
                    Err(error) => return Answer::Failed(error),
                }
            }
        };
        let mut failures = Vec::new();
        if self.discovered_at.is_none_or(|at| now.saturating_sub(at) >= REDISCOVER) {
            self.discovered_at = Some(now);
            if let Err(error) = self.discover(nvml, &mut failures) {
                self.close(&error);
                return Answer::Failed(ReadError::new(reason(&error), format!("NVML: {error}")));
            }
        }
        self.read_gpus(nvml, asked, now, &mut failures);
        Answer::Reading(self.reading(failures))
    }

    fn open(&mut self, now: Duration) -> Result<Option<&'static Nvml>, ReadError> {
        self.tried_at = Some(now);
        match Nvml::builder().lib_path(self.library.as_os_str()).init() {
            Ok(nvml) => {
                self.driver = nvml.sys_driver_version().unwrap_or_default();
                // The library stays loaded as long as the process: a hung driver could not be shut down
                // anyway, and handles may then be held without a lifetime.
                let nvml: &'static Nvml = Box::leak(Box::new(nvml));
                self.nvml = Some(nvml);
                self.discovered_at = None;
                tracing::info!(library = %self.library.display(), driver = self.driver, "NVML loaded");
                Ok(Some(nvml))
            }
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) if !self.explicit => Ok(None),
            Err(error) => {
                Err(ReadError::new(reason(&error), format!("NVML {}: {error}", self.library.display())))
            }
        }
    }

    /// The driver is gone: everything is found anew once it is back.
    fn close(&mut self, error: &NvmlError) {
        self.nvml = None;
        self.tried_at = Some(clock::monotonic());
        for gpu in &mut self.gpus {
            gpu.lose(reason(error));
        }
    }

    fn discover(&mut self, nvml: &'static Nvml, failures: &mut Vec<&'static str>) -> Result<(), NvmlError> {
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
