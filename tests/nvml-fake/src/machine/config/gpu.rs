//! One GPU of the configuration.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{PciAddress, Preset};
use crate::machine::waveform::Waveform;

/// What `nvmlDeviceGetPowerUsage` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerUsage {
    /// Mean of the last second, as on Ampere and newer (except GA100).
    Average,
    /// Power at this instant, as on GA100 and older.
    Instant,
}

/// How the sensor sees the true power. By default it is perfect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Power readings change this often, in milliseconds; 0: always.
    pub power_update_ms: u64,
    /// An instant power is the mean over this time before an update, in milliseconds; 0: the power at it. Less
    /// than `power_update_ms`, it is part-time sampling: A100 and H100 look at 25 of each 100 ms.
    pub power_sample_ms: u64,
    /// The energy counter changes this often, in milliseconds; 0: always.
    pub energy_update_ms: u64,
    /// The energy counter is a multiple of this, in millijoules.
    pub energy_step_millijoules: u64,
    /// The energy counter adds up the mean over this time before each of its updates, as if power had been that
    /// since the last one, in milliseconds; 0: it misses nothing.
    pub energy_sample_ms: u64,
    /// Power readings and the energy counter are this times the truth: a board's shunt and amplifier, which both
    /// go through.
    pub gain: f64,
    /// Power readings are this times more.
    pub power_gain: f64,
    /// The energy counter is this times more.
    pub energy_gain: f64,
    /// Power readings are off by up to this, in watts: one value for each update.
    pub noise_watts: f64,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            power_update_ms: 0,
            power_sample_ms: 0,
            energy_update_ms: 0,
            energy_step_millijoules: 1,
            energy_sample_ms: 0,
            gain: 1.0,
            power_gain: 1.0,
            energy_gain: 1.0,
            noise_watts: 0.0,
            seed: 0,
        }
    }
}

/// One MIG device: a compute instance of a GPU instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigConfig {
    /// UUID; by default `MIG-`, that of the GPU and the place in the list.
    pub uuid: Option<String>,
    /// Number of the GPU instance; by default the place in the list plus one.
    pub gpu_instance: Option<u32>,
    /// Number of the compute instance.
    pub compute_instance: u32,
    /// Slices of the GPU, 1 to 7.
    pub slices: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

impl Default for MigConfig {
    fn default() -> MigConfig {
        MigConfig {
            uuid: None,
            gpu_instance: None,
            compute_instance: 0,
            slices: 1,
            multiprocessors: 16,
            memory_bytes: 10_200_547_328,
        }
    }
}

/// One GPU. In JSON, `"preset"` names the [`Preset`] that the other keys change; without it they change the
/// default, which is an H100 with a perfect sensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct GpuConfig {
    /// UUID; by default `GPU-fa4e0000-0000-4000-8000-` and the index in twelve hexadecimal digits.
    pub uuid: Option<String>,
    /// Product name.
    pub name: String,
    /// PCI bus id such as `00000000:18:00.0`; by default bus `0x18 + index`.
    pub pci: Option<String>,
    /// PCI device and vendor.
    pub pci_device_id: u32,
    /// PCI subsystem.
    pub pci_subsystem_id: u32,
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
    /// The limiter looks at this time, in milliseconds: power may exceed the limit for as long after demand
    /// rises above it, and a limit that is set holds as much later.
    pub limit_window_ms: u64,
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
    /// Power of the memory, in watts: gives power scope 2, of the average alone, as on an H100.
    pub memory_watts: Option<f64>,
    /// What `nvmlDeviceGetPowerUsage` means.
    pub power_usage: PowerUsage,
    /// How the sensor sees the true power.
    pub sampling: Sampling,
    /// Functions that this GPU does not support.
    pub unsupported: Vec<String>,
    /// Fields of `nvmlDeviceGetFieldValues` that this GPU does not support.
    pub unsupported_fields: Vec<u32>,
    /// Architecture number of NVML: 6 Turing, 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell.
    pub architecture: u32,
    /// SM clock at no and at full power, in MHz.
    pub sm_clock_mhz: (u32, u32),
    /// Video clock at no and at full power, in MHz.
    pub video_clock_mhz: (u32, u32),
    /// Memory clock, in MHz.
    pub memory_clock_mhz: u32,
    /// Temperature at no and at full power, in °C.
    pub celsius: (f64, f64),
    /// Whether memory is protected by ECC.
    pub ecc: bool,
    /// Whether there are GPM samples: Hopper and newer.
    pub gpm: bool,
    /// Most MIG devices; 0 where the GPU cannot be partitioned.
    pub max_mig_devices: u32,
    /// Whether MIG is on: utilisation is then unsupported.
    pub mig: bool,
    /// The MIG devices, where MIG is on.
    pub mig_devices: Vec<MigConfig>,
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
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            pci: None,
            pci_device_id: 0x2330_10de,
            pci_subsystem_id: 0x16c1_10de,
            memory_bytes: 85_520_809_984,
            memory_reserved_bytes: 512 << 20,
            min_limit_watts: 200.0,
            max_limit_watts: 700.0,
            default_limit_watts: 700.0,
            limit_window_ms: 0,
            idle_watts: 70.0,
            full_watts: 700.0,
            energy_counter: true,
            power_fields: true,
            module_extra_watts: None,
            memory_watts: None,
            power_usage: PowerUsage::Average,
            sampling: Sampling::default(),
            unsupported: Vec::new(),
            unsupported_fields: Vec::new(),
            architecture: 9,
            sm_clock_mhz: (345, 1_980),
            video_clock_mhz: (765, 1_545),
            memory_clock_mhz: 2_619,
            celsius: (30.0, 75.0),
            ecc: true,
            gpm: true,
            max_mig_devices: 7,
            mig: false,
            mig_devices: Vec::new(),
            pcie_receive_bytes_per_second: 0,
            pcie_transmit_bytes_per_second: 0,
            pcie_counter_bits: 32,
            waveform: None,
        }
    }
}

impl<'de> Deserialize<'de> for GpuConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GpuConfig, D::Error> {
        let mut given = Map::deserialize(deserializer)?;
        let base = match given.remove("preset") {
            Some(preset) => Preset::deserialize(preset).map_err(D::Error::custom)?.gpu(),
            None => GpuConfig::default(),
        };
        let Value::Object(mut whole) = serde_json::to_value(base).map_err(D::Error::custom)? else {
            return Err(D::Error::custom("a GPU is an object"));
        };
        whole.extend(given);
        // The derived, inherent function of the `remote` attribute, not this one.
        GpuConfig::deserialize(Value::Object(whole)).map_err(D::Error::custom)
    }
}

impl Serialize for GpuConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        GpuConfig::serialize(self, serializer)
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
