//! What can be read of this host: the backends, and the readings that they give.
//!
//! Each backend that asks a device runs in a thread of its own ([`thread`]), so that one that hangs costs its own
//! readings and nothing else. Invariant: a reading is what a sensor said, with the time it was said; nothing is
//! accumulated here but what only the backend can see (power integrated between windows, modelled energy).

mod command;
pub mod dcmi;
pub mod estimate;
pub mod file;
pub mod gpu;
pub mod host;
pub mod hwmon;
mod integrate;
pub mod nvml;
pub mod rapl;
pub mod redfish;
pub mod sensor;
mod sysfs;
pub mod thread;
pub mod uncertainty;
pub mod units;

use std::sync::Arc;
use std::time::Duration;

use wattmill_protocol::Source;

use crate::counter::Limits;
use gpu::GpuReading;
use host::HostReading;
use host::capacity::{self, Capacity, CapacityReading};
use host::stat::SharedCpuTime;
use nvml::EventLog;
use sensor::SensorReading;
use units::UnitsReading;

/// Which backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum BackendKind {
    /// CPU and DRAM energy counters (powercap).
    Rapl,
    /// Modelled energy, where nothing is measured.
    Estimate,
    /// NVIDIA GPUs.
    Nvml,
    /// AMD and Intel GPUs.
    HwmonGpus,
    /// Sensors of boards and power supplies.
    Board,
    /// Power of the whole node, by IPMI.
    Dcmi,
    /// Power of the whole node, by Redfish.
    Redfish,
    /// CPU time, memory, disks, network.
    Host,
    /// Filesystems, speeds of links.
    Capacity,
    /// CPU time of services, containers, pods and jobs.
    Units,
}

impl BackendKind {
    /// The value of the `backend` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rapl => "rapl",
            Self::Estimate => "estimate",
            Self::Nvml => "nvml",
            Self::HwmonGpus => "hwmon_gpus",
            Self::Board => "hwmon",
            Self::Dcmi => "dcmi",
            Self::Redfish => "redfish",
            Self::Host => "host",
            Self::Capacity => "capacity",
            Self::Units => "units",
        }
    }

    /// Whether windows wait for its readings and may ask for one ahead of the schedule. What counts for no scope
    /// is slow (a BMC answers within seconds) and read no more often than its schedule says.
    pub(crate) fn is_of_windows(self) -> bool {
        !matches!(self, Self::Board | Self::Dcmi | Self::Redfish | Self::Capacity)
    }
}

/// A part of a node's energy that overlaps no other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// CPU packages.
    Cpu,
    /// Memory.
    Dram,
    /// GPUs.
    Gpu,
}

impl Scope {
    /// The value of the `scope` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Dram => "dram",
            Self::Gpu => "gpu",
        }
    }

    /// Whether the scope is the host's, of which a node may account for a part only. GPUs are whole.
    pub fn is_host(self) -> bool {
        self != Self::Gpu
    }
}

/// What kind of device a meter belongs to: decides the metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A CPU or DRAM zone, by name.
    Zone,
    /// A GPU, by UUID.
    Gpu,
    /// The module of a GPU and a CPU, by the GPU's UUID: it contains both, and counts for nothing.
    Module,
    /// A board, a power supply or the whole node: it contains or overlaps others, and counts for nothing.
    Sensor,
}

/// Since when a raw counter counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Epoch {
    /// Since boot or the driver's load: it counts on while no agent runs.
    Hardware,
    /// Since this process began, from zero: the backend counts itself.
    Process,
}

/// One meter: a device, and how its energy is known.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, serde::Serialize, serde::Deserialize)]
pub struct MeterId {
    /// Kind of device.
    pub class: Class,
    /// Zone name, GPU UUID or [`sensor::SensorId::device`].
    pub device: String,
    /// How its energy is known.
    pub source: Source,
}

/// A reading of one cumulative energy counter.
#[derive(Clone, PartialEq, Debug)]
pub struct EnergyReading {
    /// Whose.
    pub meter: MeterId,
    /// The scope that this meter counts for; `None` for one that overlaps another.
    pub scope: Option<Scope>,
    /// The counter.
    pub raw: u64,
    /// Microjoules of one count.
    pub microjoules_per_count: u64,
    /// What is known of the counter, in counts.
    pub limits: Limits,
    /// Since when it counts.
    pub epoch: Epoch,
    /// When it was read, since boot.
    pub at: Duration,
    /// Times when the backend could not see the energy, since this process began.
    pub unread: u64,
}

/// What a backend said at one time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reading {
    /// Energy counters.
    pub energy: Vec<EnergyReading>,
    /// GPUs, lost ones included.
    pub gpus: Vec<GpuReading>,
    /// Sensors that count for no scope.
    pub sensors: Vec<SensorReading>,
    /// Errors that GPUs raised, counted also while they cannot be read.
    pub gpu_events: EventLog,
    /// The host's figures.
    pub host: Option<Arc<HostReading>>,
    /// What its storage and network can hold and move.
    pub capacity: Option<Arc<CapacityReading>>,
    /// CPU time by unit.
    pub units: Option<Arc<UnitsReading>>,
    /// Single readings that failed, by reason; the backend as a whole answers.
    pub failures: Vec<&'static str>,
}

/// What came of asking a backend.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// It has readings.
    Reading(Reading),
    /// It was read, and what it said last stands: a backend may look more often than it has something to tell.
    Unchanged,
    /// There is nothing to read on this host, which is normal: no counters, no GPUs.
    Absent,
    /// It should answer and does not.
    Failed(ReadError),
}

/// A backend cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ReadError {
    /// The value of the `reason` label.
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
}

impl ReadError {
    /// An error with its reason for the metric and its message for people.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// An error of a file.
    pub fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(io_reason(error), format!("{}: {error}", path.display()))
    }
}

/// The value of the `reason` label for an I/O error.
pub fn io_reason(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "permission",
        std::io::ErrorKind::NotFound => "missing",
        std::io::ErrorKind::InvalidData => "invalid",
        _ => "io",
    }
}

/// A backend. An enum: they are few, and all known.
pub enum Backend {
    /// CPU and DRAM energy counters.
    Rapl(rapl::Rapl),
    /// Modelled energy.
    Estimate(Box<estimate::Estimate>),
    /// NVIDIA GPUs.
    Nvml(Box<nvml::NvmlBackend>),
    /// AMD and Intel GPUs.
    HwmonGpus(Box<hwmon::gpus::HwmonGpus>),
    /// Sensors of boards and power supplies.
    Board(Box<hwmon::board::Board>),
    /// Power of the whole node, by IPMI.
    Dcmi(Box<dcmi::Dcmi>),
    /// Power of the whole node, by Redfish.
    Redfish(Box<redfish::Redfish>),
    /// The host's figures.
    Host(host::Host),
    /// What its storage and network can hold and move.
    Capacity(Capacity),
    /// CPU time by unit.
    Units(units::Units),
    /// Answers what a test says.
    #[cfg(test)]
    Scripted(BackendKind, Box<dyn FnMut() -> Answer + Send>),
}

impl Backend {
    /// Which one.
    pub fn kind(&self) -> BackendKind {
        match self {
            Self::Rapl(_) => BackendKind::Rapl,
            Self::Estimate(_) => BackendKind::Estimate,
            Self::Nvml(_) => BackendKind::Nvml,
            Self::HwmonGpus(_) => BackendKind::HwmonGpus,
            Self::Board(_) => BackendKind::Board,
            Self::Dcmi(_) => BackendKind::Dcmi,
            Self::Redfish(_) => BackendKind::Redfish,
            Self::Host(_) => BackendKind::Host,
            Self::Capacity(_) => BackendKind::Capacity,
            Self::Units(_) => BackendKind::Units,
            #[cfg(test)]
            Self::Scripted(kind, _) => *kind,
        }
    }

    /// How often it wants to be read; `interval` is the shortest that the configuration allows it.
    fn pace(&self, interval: Duration) -> Duration {
        match self {
            Self::Nvml(nvml) => nvml.pace(interval),
            Self::HwmonGpus(gpus) => gpus.pace(interval),
            Self::Board(board) => board.pace(interval),
            _ => interval,
        }
    }

    /// Reads it; may take as long as the device does. `asked` when somebody wants it ahead of the schedule.
    pub fn read(&mut self, asked: bool) -> Answer {
        match self {
            Self::Rapl(rapl) => rapl.read(),
            Self::Estimate(estimate) => estimate.read(),
            Self::Nvml(nvml) => nvml.read(asked),
            Self::HwmonGpus(gpus) => gpus.read(asked),
            Self::Board(board) => board.read(),
            Self::Dcmi(dcmi) => dcmi.read(),
            Self::Redfish(redfish) => redfish.read(),
            Self::Host(host) => host.read(),
            Self::Capacity(capacity) => capacity.read(),
            Self::Units(units) => units.read(),
            #[cfg(test)]
            Self::Scripted(_, answer) => answer(),
        }
    }
}

/// The backends of a configuration: those that share a thread, and how often they are read.
pub fn backends(config: &crate::config::Config) -> Vec<(Vec<Backend>, Duration)> {
    let metering = config.metering;
    let (measured, cpu_time) = (rapl::Measured::default(), SharedCpuTime::default());
    let rapl = rapl::Rapl::new(&config.sysfs_root, measured.clone(), crate::clock::monotonic());
    // What the kernel has in memory, or asks the CPU itself. The estimate goes by what the others found.
    let mut kernel = vec![
        Backend::Rapl(rapl),
        Backend::Host(host::Host::new(config, cpu_time.clone())),
        Backend::Estimate(Box::new(estimate::Estimate::new(config, measured, cpu_time))),
    ];
    if let Some(attribution) = &config.attribution {
        kernel.push(Backend::Units(units::Units::new(&config.sysfs_root, attribution)));
    }
    let capacity = Backend::Capacity(Capacity::new(config));
    let mut backends = vec![(kernel, metering.interval), (vec![capacity], capacity::INTERVAL)];
    let mut alone = |backend, interval| backends.push((vec![backend], interval));
    if let Some(library) = &config.nvml_library {
        let wanted = config.wanted_gpus().nvml;
        let nvml = nvml::NvmlBackend::new(library, config.nvml_explicit, wanted, metering);
        alone(Backend::Nvml(Box::new(nvml)), metering.gpu_interval);
    }
    if config.hwmon.gpus {
        let gpus = hwmon::gpus::HwmonGpus::new(&config.sysfs_root, config.wanted_gpus().hwmon, metering);
        alone(Backend::HwmonGpus(Box::new(gpus)), metering.gpu_interval);
    }
    if let Some(interval) = config.hwmon.sensors_interval {
        alone(Backend::Board(Box::new(hwmon::board::Board::new(&config.sysfs_root, interval))), interval);
    }
    if let Some(config) = &config.dcmi {
        alone(Backend::Dcmi(Box::new(dcmi::Dcmi::new(config))), config.interval);
    }
    if let Some(config) = &config.redfish {
        alone(Backend::Redfish(Box::new(redfish::Redfish::new(config))), config.interval);
    }
    backends
}
