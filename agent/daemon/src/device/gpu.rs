//! What is known of a GPU at one time.
//!
//! Invariant: a figure that the GPU does not give is `None`; counters stand still while it is lost.

use std::collections::BTreeMap;

use crate::device::host::Usage;
use crate::device::uncertainty::EnergyUncertainty;

/// Most watts that a module may draw: several times the largest sold.
pub(super) const MAX_GPU_WATTS: f64 = 5_000.0;

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
    /// Why it does not answer.
    pub lost: Option<&'static str>,
    /// Share of time in which it was in use.
    pub utilization: Option<f64>,
    /// Memory.
    pub memory: Option<Usage>,
    /// Temperature of the core.
    pub temperature_celsius: Option<f64>,
    /// Clock of the multiprocessors.
    pub sm_clock_hertz: Option<f64>,
    /// What its power sensors said last.
    pub power: Power,
    /// How well its energy of the last minute is known.
    pub energy_uncertainty: EnergyUncertainty,
    /// Its power limits.
    pub limits: PowerLimits,
    /// Seconds in which its clocks were lowered, by reason.
    pub throttle_seconds: Vec<(&'static str, f64)>,
    /// Bytes over PCIe.
    pub pcie: PcieBytes,
    /// What the driver says must be done to have a sound GPU again.
    pub recovery_action: Option<&'static str>,
    /// Processes that compute on it, or did since the last window.
    pub processes: Option<Vec<u32>>,
    /// How much each of them used its multiprocessors of late, in percent; empty where that is not told.
    pub use_percent: BTreeMap<u32, u32>,
    /// How many of them are not ours: a GPU that others use is not ours to disturb.
    pub foreign_processes: Option<usize>,
    /// What it is partitioned into.
    pub mig: Vec<MigInstance>,
    /// Errors that it raised.
    pub events: GpuEvents,
}

/// Power in watts, by how it is taken and of what. Scopes contain each other: a module contains its GPU, a GPU
/// its memory.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Power {
    /// At the newest sample.
    pub instant: Scoped,
    /// Mean of the last second.
    pub average: Scoped,
}

/// A figure by scope.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Scoped {
    /// The GPU, its memory included.
    pub gpu: Option<f64>,
    /// The module of a GPU and a Grace CPU.
    pub module: Option<f64>,
    /// The GPU's memory.
    pub memory: Option<f64>,
}

impl Scoped {
    /// Each scope with its label.
    pub fn labelled(&self) -> [(&'static str, Option<f64>); 3] {
        [("gpu", self.gpu), ("module", self.module), ("memory", self.memory)]
    }
}

/// Power limits in watts.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PowerLimits {
    /// In force: the least of all that limit it.
    pub enforced: Option<f64>,
    /// After a driver load.
    pub default: Option<f64>,
    /// The least that may be set.
    pub min: Option<f64>,
    /// The most that may be set.
    pub max: Option<f64>,
}

/// Bytes since the agent began to watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PcieBytes {
    /// Received by the GPU.
    pub received: Option<u64>,
    /// Sent by the GPU.
    pub transmitted: Option<u64>,
}

/// A part of a partitioned GPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MigInstance {
    /// Its identity.
    pub uuid: String,
    /// Number of its GPU instance.
    pub gpu_instance: Option<u32>,
    /// Number of its compute instance.
    pub compute_instance: Option<u32>,
    /// Slices of the GPU.
    pub slices: Option<u32>,
    /// Its memory.
    pub memory_bytes: Option<u64>,
}

/// Errors that a GPU raised since the agent began to watch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GpuEvents {
    /// By number.
    pub xid: BTreeMap<u64, u64>,
    /// Double-bit memory errors; `None` where the GPU raises none.
    pub double_bit_ecc: Option<u64>,
    /// The newest Xid since it last came back.
    pub last_xid: Option<u64>,
}
