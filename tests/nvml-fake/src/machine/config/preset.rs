//! GPUs as `nvidia-smi -q -x` showed real ones, at rest.
//!
//! The figures, and what is `N/A` among them, are those of captures of real machines that NVIDIA publishes in
//! github.com/NVIDIA/k8s-test-infra (`tests/e2e/go/assertions/nvidiasmi/testdata/hardware`). How sensors sample
//! is that of "Part-time Power Measurements" (arXiv 2312.02741), except what the paper does not have: the
//! L40S samples as other Ada GPUs there.

use serde::{Deserialize, Serialize};

use super::gpu::{GpuConfig, PowerUsage, Sampling};

const MIB: u64 = 1 << 20;

/// Field of the average power, which GA100 and older do not have.
const POWER_AVERAGE: u32 = 185;

/// A product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// H100 SXM5, 80 GB.
    H100,
    /// A100 SXM4, 40 GB.
    A100,
    /// L40S.
    L40s,
    /// T4.
    T4,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 4] = [Preset::H100, Preset::A100, Preset::L40s, Preset::T4];

    /// The product as a GPU of the configuration.
    #[must_use]
    pub fn gpu(self) -> GpuConfig {
        match self {
            Preset::H100 => h100(),
            Preset::A100 => a100(),
            Preset::L40s => l40s(),
            Preset::T4 => t4(),
        }
    }
}

/// A sensor that looks at the last `sample_ms` of each `update_ms`. The energy counter moves with it.
fn sampling(update_ms: u64, sample_ms: u64) -> Sampling {
    Sampling {
        power_update_ms: update_ms,
        power_sample_ms: sample_ms,
        energy_update_ms: update_ms,
        ..Sampling::default()
    }
}

fn h100() -> GpuConfig {
    GpuConfig {
        memory_bytes: 81_559 * MIB,
        memory_reserved_bytes: 480 * MIB,
        limit_window_ms: 100,
        idle_watts: 68.9,
        memory_watts: Some(32.98),
        sampling: sampling(100, 25),
        celsius: (29.0, 75.0),
        ..GpuConfig::default()
    }
}

fn a100() -> GpuConfig {
    GpuConfig {
        name: "NVIDIA A100-SXM4-40GB".to_owned(),
        pci_device_id: 0x20b0_10de,
        pci_subsystem_id: 0x134f_10de,
        memory_bytes: 40_960 * MIB,
        memory_reserved_bytes: 518 * MIB,
        min_limit_watts: 100.0,
        max_limit_watts: 400.0,
        default_limit_watts: 400.0,
        limit_window_ms: 100,
        idle_watts: 49.7,
        full_watts: 400.0,
        power_usage: PowerUsage::Instant,
        sampling: sampling(100, 25),
        unsupported_fields: vec![POWER_AVERAGE],
        architecture: 7,
        sm_clock_mhz: (210, 1_410),
        video_clock_mhz: (585, 1_290),
        memory_clock_mhz: 1_215,
        celsius: (33.0, 75.0),
        gpm: false,
        ..GpuConfig::default()
    }
}

fn l40s() -> GpuConfig {
    GpuConfig {
        name: "NVIDIA L40S".to_owned(),
        pci_device_id: 0x26b9_10de,
        pci_subsystem_id: 0x1851_10de,
        memory_bytes: 46_068 * MIB,
        memory_reserved_bytes: 609 * MIB,
        min_limit_watts: 100.0,
        max_limit_watts: 350.0,
        default_limit_watts: 350.0,
        limit_window_ms: 100,
        idle_watts: 66.2,
        full_watts: 350.0,
        sampling: sampling(100, 100),
        architecture: 8,
        sm_clock_mhz: (210, 2_520),
        video_clock_mhz: (1_110, 1_965),
        memory_clock_mhz: 9_001,
        celsius: (29.0, 80.0),
        gpm: false,
        max_mig_devices: 0,
        ..GpuConfig::default()
    }
}

fn t4() -> GpuConfig {
    GpuConfig {
        name: "Tesla T4".to_owned(),
        pci_device_id: 0x1eb8_10de,
        pci_subsystem_id: 0x12a2_10de,
        memory_bytes: 15_360 * MIB,
        memory_reserved_bytes: 448 * MIB,
        min_limit_watts: 60.0,
        max_limit_watts: 70.0,
        default_limit_watts: 70.0,
        limit_window_ms: 100,
        idle_watts: 33.5,
        full_watts: 70.0,
        power_usage: PowerUsage::Instant,
        sampling: sampling(100, 100),
        unsupported_fields: vec![POWER_AVERAGE],
        architecture: 6,
        sm_clock_mhz: (300, 1_590),
        video_clock_mhz: (540, 1_470),
        memory_clock_mhz: 5_001,
        celsius: (33.0, 80.0),
        gpm: false,
        max_mig_devices: 0,
        ..GpuConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_is_changed_by_the_other_keys() {
        let gpu: GpuConfig = serde_json::from_str(r#"{"preset":"a100","idle_watts":55}"#).unwrap();
        assert_eq!(gpu, GpuConfig { idle_watts: 55.0, ..Preset::A100.gpu() });
        assert!(serde_json::from_str::<GpuConfig>(r#"{"preset":"a100","watts":55}"#).is_err());
        assert!(serde_json::from_str::<GpuConfig>(r#"{"preset":"k80"}"#).is_err());
    }

    #[test]
    fn every_preset_survives_a_file() {
        for preset in Preset::ALL {
            let gpu = preset.gpu();
            let text = serde_json::to_string(&gpu).unwrap();
            assert_eq!(serde_json::from_str::<GpuConfig>(&text).unwrap(), gpu, "{preset:?}");
        }
    }
}
