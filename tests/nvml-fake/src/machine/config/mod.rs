//! The configuration file: which GPUs there are and how the library answers.

mod gpu;
mod pci;
mod preset;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::NvmlError;

pub use gpu::{GpuConfig, MigConfig, PowerUsage, Sampling};
pub use pci::PciAddress;
pub use preset::Preset;

/// Most GPUs of a machine.
pub const MAX_GPUS: usize = 16;

/// The whole of the configuration file. Every key is optional; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The GPUs in the order of their indices, at most [`MAX_GPUS`]; two H100-like ones by default.
    pub gpus: Vec<GpuConfig>,
    /// Driver version. From 580.82 on, the thermal throttle counters have field ids 269 to 271, before 251 to
    /// 253, as in NVIDIA's driver.
    pub driver_version: String,
    /// NVML version.
    pub nvml_version: String,
    /// CUDA driver version, as `1000 × major + 10 × minor`.
    pub cuda_version: i32,
    /// Who moves time.
    pub clock: ClockKind,
    /// Path of the control socket, where the environment does not name one.
    pub socket: Option<PathBuf>,
    /// Whether callers count as root. Others may not set power limits, nor read a GPU's memory and processes
    /// across its MIG instances: `NO_PERMISSION`.
    pub root: bool,
    /// A file through which processes share power limits, as they share a driver: a limit outlives the process
    /// that set it, and a driver load in one of them ends it for all.
    pub limits_file: Option<PathBuf>,
    /// Functions that fail from the start, by name, e.g. `{"nvmlInit_v2": "driver_not_loaded"}`.
    pub fail: BTreeMap<String, NvmlError>,
    /// Functions that block from the start.
    pub hang: Vec<String>,
    /// Functions whose call aborts the process.
    pub crash: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            gpus: vec![GpuConfig::default(), GpuConfig::default()],
            driver_version: "580.95.05".to_owned(),
            nvml_version: "13.580.95.05".to_owned(),
            cuda_version: 13_000,
            clock: ClockKind::Monotonic,
            socket: None,
            root: false,
            limits_file: None,
            fail: BTreeMap::new(),
            hang: Vec::new(),
            crash: Vec::new(),
        }
    }
}

/// Who moves time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockKind {
    /// The kernel's `CLOCK_MONOTONIC`.
    Monotonic,
    /// The `advance` command alone: a test owns time.
    Manual,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_two_h100s() {
        let config: Config = serde_json::from_str("{}").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.gpus[1].uuid_at(1), "GPU-fa4e0000-0000-4000-8000-000000000001");
        assert!(serde_json::from_str::<Config>(r#"{"gpu":[]}"#).is_err());
    }
}
