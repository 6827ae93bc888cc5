//! What a test can ask of a running fake, one JSON object a line.

use serde::{Deserialize, Serialize};

use super::config::MigConfig;
use super::error::NvmlError;
use super::waveform::Waveform;

pub use super::answer::{Answer, CallCount, Truth};

/// A GPU by its UUID or by its place in the configuration. That place never shifts, unlike an NVML index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GpuRef {
    /// Place in the configuration, from 0.
    Slot(usize),
    /// UUID.
    Uuid(String),
}

impl From<usize> for GpuRef {
    fn from(slot: usize) -> GpuRef {
        GpuRef::Slot(slot)
    }
}

impl From<&str> for GpuRef {
    fn from(uuid: &str) -> GpuRef {
        GpuRef::Uuid(uuid.to_owned())
    }
}

/// How a lost GPU answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossMode {
    /// Still counted; every call upon it says `GPU_IS_LOST`.
    GpuIsLost,
    /// Gone from the count, so that later indices shift; every call upon it says `NOT_FOUND`.
    NotFound,
}

/// A reason for lower clocks that a test can raise. The power cap raises itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleReason {
    /// Clocks kept equal to another GPU's.
    SyncBoost,
    /// Thermal slowdown by software.
    SwThermal,
    /// Thermal slowdown by hardware.
    HwThermal,
    /// The external power brake.
    HwPowerBrake,
}

/// A process on a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Memory that it holds, in bytes; absent where the driver does not know.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Its use of the multiprocessors, in percent; absent where there is no sample.
    #[serde(default)]
    pub sm_percent: Option<u32>,
    /// Its use of the memory, in percent.
    #[serde(default)]
    pub memory_percent: u32,
    /// Whether it is a graphics process instead of a compute one.
    #[serde(default)]
    pub graphics: bool,
    /// The MIG device that it runs on: its place in the configuration's list.
    #[serde(default)]
    pub mig_device: Option<usize>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// True energy and power of every GPU, now or at an instant. The past is kept for 4096 changes; the
    /// future is what the waveform will draw if nothing changes.
    Truth {
        /// The instant, in nanoseconds of the fake's clock.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_monotonic_ns: Option<u64>,
    },
    /// A new demand from now on.
    SetWaveform {
        /// Which GPU.
        gpu: GpuRef,
        /// What it demands.
        waveform: Waveform,
    },
    /// A GPU stops answering. Its true power goes on.
    Lose {
        /// Which GPU.
        gpu: GpuRef,
        /// How.
        mode: LossMode,
        /// The only functions that fail; all of them when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        functions: Option<Vec<String>>,
    },
    /// A lost GPU answers again.
    Restore {
        /// Which GPU.
        gpu: GpuRef,
        /// Whether its counters restart, as after a reset of the GPU.
        #[serde(default)]
        restart_counters: bool,
    },
    /// The driver's module is unloaded: every call answers `DRIVER_NOT_LOADED`. Users, handles and event sets
    /// are gone, and so are power limits.
    UnloadDriver,
    /// It is loaded again: counters restart, and calls answer `UNINITIALIZED` until `nvmlInit`.
    LoadDriver,
    /// Both at once, between two calls of the program.
    ReloadDriver,
    /// An Xid event.
    Xid {
        /// Which GPU.
        gpu: GpuRef,
        /// The Xid. 48 also raises a double-bit ECC event.
        xid: u64,
        /// New value of field 230 (recovery action), when given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recovery_action: Option<u32>,
    },
    /// Memory errors.
    Ecc {
        /// Which GPU.
        gpu: GpuRef,
        /// Single-bit errors more.
        #[serde(default)]
        corrected: u64,
        /// Double-bit errors more; they raise one double-bit ECC event.
        #[serde(default)]
        uncorrected: u64,
    },
    /// Somebody else, as a board controller, holds power at or below this.
    Cap {
        /// Which GPU.
        gpu: GpuRef,
        /// Most power, in watts; none ends it.
        #[serde(default)]
        watts: Option<f64>,
    },
    /// Whether callers count as root from now on.
    Root {
        /// Whether they do.
        allowed: bool,
    },
    /// MIG from now on. No counter restarts.
    Mig {
        /// Which GPU.
        gpu: GpuRef,
        /// Whether it is on.
        enabled: bool,
        /// The MIG devices.
        #[serde(default)]
        devices: Vec<MigConfig>,
    },
    /// Calls of a function block until `unhang`.
    Hang {
        /// Name of the function, e.g. `nvmlDeviceGetPowerUsage`.
        function: String,
    },
    /// Blocked calls go on.
    Unhang {
        /// Name of the function; every one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        function: Option<String>,
    },
    /// A function fails, on every GPU, until told otherwise.
    Fail {
        /// Name of the function.
        function: String,
        /// The error; none ends it.
        error: Option<NvmlError>,
    },
    /// A function fails on one GPU.
    FailGpu {
        /// Which GPU.
        gpu: GpuRef,
        /// Name of the function.
        function: String,
        /// The error; none ends it.
        error: Option<NvmlError>,
        /// For so many calls; until told otherwise when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        times: Option<u32>,
    },
    /// The next call of a function aborts the process.
    Crash {
        /// Name of the function.
        function: String,
    },
    /// A function answers with a value that is none, such as `u64::MAX`, in every number that it writes; 32-bit
    /// numbers take the low half.
    Blank {
        /// Which GPU.
        gpu: GpuRef,
        /// Name of the function.
        function: String,
        /// The value; none ends it.
        value: Option<u64>,
    },
    /// One field of `nvmlDeviceGetFieldValues` is fixed to a value or an error; neither ends it.
    Field {
        /// Which GPU.
        gpu: GpuRef,
        /// The field.
        field: u32,
        /// Its value, in the field's own type.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<u64>,
        /// Its return code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<NvmlError>,
    },
    /// The processes on a GPU.
    Processes {
        /// Which GPU.
        gpu: GpuRef,
        /// All of them.
        processes: Vec<Process>,
    },
    /// Utilisation, in percent, or following the waveform when absent.
    Utilization {
        /// Which GPU.
        gpu: GpuRef,
        /// Use of the GPU, in percent.
        #[serde(default)]
        gpu_percent: Option<u32>,
        /// Use of the memory, in percent.
        #[serde(default)]
        memory_percent: Option<u32>,
    },
    /// Used memory.
    Memory {
        /// Which GPU.
        gpu: GpuRef,
        /// Used memory, in bytes.
        used_bytes: u64,
    },
    /// Raises or ends a throttle reason.
    Throttle {
        /// Which GPU.
        gpu: GpuRef,
        /// The reason.
        reason: ThrottleReason,
        /// Whether it holds from now on.
        active: bool,
    },
    /// Moves the clock; only with `"clock": "manual"`.
    Advance {
        /// By how much, in nanoseconds.
        nanoseconds: u64,
    },
    /// How often each function was called, and how many calls are blocked in it.
    Calls,
    /// The truth about a GPU at the instant of a function's newest answer about it.
    LastRead {
        /// Which GPU.
        gpu: GpuRef,
        /// Name of the function.
        function: String,
    },
}
