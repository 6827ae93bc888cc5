//! The configuration file: which GPUs there are and how the library answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::NvmlError;
use super::waveform::Waveform;

/// Name, memory and power of an H100 SXM.
const H100_NAME: &str = "NVIDIA H100 80GB HBM3";
const H100_MEMORY_BYTES: u64 = 85_520_809_984;

/// The whole of the configuration file. Every key is optional; unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The GPUs in the order of their indices; two H100-like ones by default.
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
    /// Functions that fail from the start, by name, e.g. `{"nvmlInit_v2": "driver_not_loaded"}`.
    pub fail: BTreeMap<String, NvmlError>,
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
            fail: BTreeMap::new(),
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

/// What `nvmlDeviceGetPowerUsage` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerUsage {
    /// Mean of the last second, as on Ampere and newer (except GA100).
    Average,
    /// Power at this instant, as on GA100 and older.
    Instant,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuConfig {
    /// UUID; by default `GPU-fa4e0000-0000-4000-8000-` and the index in twelve hexadecimal digits.
    pub uuid: Option<String>,
    /// Product name.
    pub name: String,
    /// PCI bus id such as `00000000:18:00.0`; by default bus `0x18 + index`.
    pub pci: Option<String>,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Memory that the driver keeps, in bytes.
    pub memory_reserved_bytes: u64,
    /// Least power limit that can be set, in watts.
    pub min_limit_watts: f64,
    /// Largest power limit that can be set, in watts.
    pub max_limit_watts: f64,
    /// Power limit after a driver load, in watts.
    pub default_limit_watts: f64,
    /// Power at utilisation 0, in watts.
    pub idle_watts: f64,
    /// Power at utilisation 1, in watts.
    pub full_watts: f64,
    /// Whether there is a total-energy counter.
    pub energy_counter: bool,
    /// Whether fields 185 and 186 (average and instant power) exist.
    pub power_fields: bool,
    /// Power of the module beyond the GPU, in watts, as on Grace-Hopper: gives power scope 1.
    pub module_extra_watts: Option<f64>,
    /// Power of the memory, in watts: gives power scope 2.
    pub memory_watts: Option<f64>,
    /// What `nvmlDeviceGetPowerUsage` means.
    pub power_usage: PowerUsage,
    /// Architecture number of NVML: 7 Ampere, 9 Hopper, 10 Blackwell.
    pub architecture: u32,
    /// Whether MIG is on: utilisation is then unsupported.
    pub mig: bool,
    /// PCIe bytes received each second, all the time.
    pub pcie_receive_bytes_per_second: u64,
    /// PCIe bytes sent each second, all the time.
    pub pcie_transmit_bytes_per_second: u64,
    /// Width of the PCIe byte counters, in bits: they wrap.
    pub pcie_counter_bits: u32,
    /// Demand from the first initialisation on; by default constant at `idle_watts`.
    pub waveform: Option<Waveform>,
}

impl Default for GpuConfig {
    fn default() -> GpuConfig {
        GpuConfig {
            uuid: None,
            name: H100_NAME.to_owned(),
            pci: None,
            memory_bytes: H100_MEMORY_BYTES,
            memory_reserved_bytes: 512 << 20,
            min_limit_watts: 200.0,
            max_limit_watts: 700.0,
            default_limit_watts: 700.0,
            idle_watts: 70.0,
            full_watts: 700.0,
            energy_counter: true,
            power_fields: true,
            module_extra_watts: None,
            memory_watts: None,
            power_usage: PowerUsage::Average,
            architecture: 9,
            mig: false,
            pcie_receive_bytes_per_second: 0,
            pcie_transmit_bytes_per_second: 0,
            pcie_counter_bits: 32,
            waveform: None,
        }
    }
}

impl GpuConfig {
    /// UUID of the GPU at `index`.
    #[must_use]
    pub fn uuid_at(&self, index: usize) -> String {
        self.uuid.clone().unwrap_or_else(|| format!("GPU-fa4e0000-0000-4000-8000-{index:012x}"))
    }

    /// PCI address of the GPU at `index`, or `None` where `pci` does not read as one.
    #[must_use]
    pub fn pci_at(&self, index: usize) -> Option<PciAddress> {
        match &self.pci {
            Some(text) => PciAddress::parse(text),
            None => Some(PciAddress { domain: 0, bus: 0x18 + u32::try_from(index).ok()?, device: 0 }),
        }
    }
}

/// Where a GPU sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    /// PCI domain.
    pub domain: u32,
    /// PCI bus.
    pub bus: u32,
    /// PCI device.
    pub device: u32,
}

impl PciAddress {
    /// Reads `domain:bus:device.function` or `bus:device.function`, in hexadecimal, as NVML does.
    #[must_use]
    pub fn parse(text: &str) -> Option<PciAddress> {
        let (place, function) = text.rsplit_once('.')?;
        u32::from_str_radix(function, 16).ok()?;
        let (rest, device) = place.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
        Some(PciAddress { domain: hex(domain)?, bus: hex(bus)?, device: hex(device)? })
    }

    /// `00000000:18:00.0`.
    #[must_use]
    pub fn bus_id(self) -> String {
        format!("{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }

    /// `0000:18:00.0`, the form of the first 16 bytes of `nvmlPciInfo_t`.
    #[must_use]
    pub fn legacy_bus_id(self) -> String {
        format!("{:04X}:{:02X}:{:02X}.0", self.domain & 0xffff, self.bus, self.device)
    }
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

    #[test]
    fn bus_ids_are_read_in_both_forms() {
        let address = PciAddress { domain: 1, bus: 0xaf, device: 2 };
        assert_eq!(PciAddress::parse(&address.bus_id()), Some(address));
        assert_eq!(PciAddress::parse("0001:af:02.0"), Some(address));
        assert_eq!(PciAddress::parse("18:00.0").unwrap().bus, 0x18);
        assert_eq!(PciAddress::parse("nowhere"), None);
    }
}
