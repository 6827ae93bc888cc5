//! The state machine: what GPUs there are, what they draw and how they fail.
//!
//! Safe and pure: no clock, no I/O, no FFI. Every method takes `now_ns`, nanoseconds of whichever clock the
//! caller owns; instants must not go backwards between changes.

pub mod answer;
pub mod command;
pub mod config;
mod control;
pub mod error;
mod events;
mod faults;
pub mod fields;
pub mod gpm;
pub mod gpu;
pub mod handle;
mod limiter;
mod mig;
pub mod profile;
mod random;
mod shape;
pub mod timeline;
pub mod waveform;

use std::collections::{BTreeMap, BTreeSet};

pub use events::{Event, EventSets, SUPPORTED_EVENTS};
pub use faults::FixedField;

use command::{CallCount, LossMode};
use config::{Config, MAX_GPUS};
use error::NvmlError;
use faults::Faults;
use gpm::Samples;
use gpu::Gpu;
use handle::Target;

/// All state behind the library.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    gpus: Vec<Gpu>,
    loaded: bool,
    /// How often the driver was loaded again: handles of before are void.
    loads: usize,
    initialised: u32,
    root: bool,
    faults: Faults,
    calls: BTreeMap<&'static str, CallCount>,
    /// When each function last answered about each GPU.
    last_reads: BTreeMap<(usize, &'static str), u64>,
    /// Event sets, for the calls that wait on them.
    pub events: EventSets,
    /// GPM samples.
    pub samples: Samples,
}

impl Machine {
    /// A driver that is loaded at `now_ns`.
    ///
    /// # Errors
    /// What in the configuration cannot be, in words.
    pub fn new(config: Config, now_ns: u64) -> Result<Machine, String> {
        if config.gpus.len() > MAX_GPUS {
            return Err(format!("more than {MAX_GPUS} GPUs"));
        }
        let gpus: Vec<Gpu> = config
            .gpus
            .iter()
            .enumerate()
            .map(|(index, gpu)| Gpu::new(gpu.clone(), index, now_ns))
            .collect::<Result<_, _>>()?;
        let distinct: BTreeSet<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        if distinct.len() < gpus.len() {
            return Err("two GPUs have one uuid".to_owned());
        }
        Ok(Machine {
            gpus,
            loaded: true,
            loads: 0,
            initialised: 0,
            root: config.root,
            faults: Faults::new(&config),
            calls: BTreeMap::new(),
            last_reads: BTreeMap::new(),
            events: EventSets::default(),
            samples: Samples::default(),
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One more user. NVML counts them.
    ///
    /// # Errors
    /// The driver is not loaded.
    pub fn init(&mut self) -> Result<(), NvmlError> {
        if !self.loaded {
            return Err(NvmlError::DriverNotLoaded);
        }
        self.initialised += 1;
        Ok(())
    }

    /// One user fewer. The last one takes event sets and samples along.
    ///
    /// # Errors
    /// There was none.
    pub fn shutdown(&mut self) -> Result<(), NvmlError> {
        self.initialised = self.initialised.checked_sub(1).ok_or(NvmlError::Uninitialized)?;
        if self.initialised == 0 {
            (self.events, self.samples) = (EventSets::default(), Samples::default());
        }
        Ok(())
    }

    /// Whether there is a driver, and a user.
    ///
    /// # Errors
    /// There is none.
    pub fn check_initialised(&self) -> Result<(), NvmlError> {
        match (self.loaded, self.initialised) {
            (false, _) => Err(NvmlError::DriverNotLoaded),
            (true, 0) => Err(NvmlError::Uninitialized),
            _ => Ok(()),
        }
    }

    /// Whether the caller is root.
    ///
    /// # Errors
    /// It is not.
    pub fn check_root(&self) -> Result<(), NvmlError> {
        if self.root { Ok(()) } else { Err(NvmlError::NoPermission) }
    }

    /// Notes that a call begins.
    pub fn begin(&mut self, function: &'static str) {
        self.calls.entry(function).or_default().begun += 1;
    }

    /// Notes that a call begins (`true`) or ends (`false`) to wait.
    pub fn set_waiting(&mut self, function: &'static str, waiting: bool) {
        let count = &mut self.calls.entry(function).or_default().waiting;
        *count = if waiting { *count + 1 } else { count.saturating_sub(1) };
    }

    /// Whether calls of `function` block.
    #[must_use]
    pub fn is_hung(&self, function: &str) -> bool {
        self.faults.is_hung(function)
    }

    /// Whether a call of `function` aborts the process.
    #[must_use]
    pub fn is_crashing(&self, function: &str) -> bool {
        self.faults.is_crashing(function)
    }

    /// Whether `function` may go on: it was not told to fail.
    ///
    /// # Errors
    /// The error that it was told to give.
    pub fn check(&self, function: &str) -> Result<(), NvmlError> {
        self.faults.check(function)
    }

    /// The GPU at a slot of the configuration, for a call of `function` upon it.
    ///
    /// # Errors
    /// No such slot, or a GPU that is lost to this function or does not support it.
    pub fn gpu(&self, slot: usize, function: &str) -> Result<&Gpu, NvmlError> {
        let gpu = self.gpus.get(slot).ok_or(NvmlError::InvalidArgument)?;
        match &gpu.loss {
            Some(loss) if loss.functions.as_ref().is_none_or(|only| names(only, function)) => {
                Err(match loss.mode {
                    LossMode::GpuIsLost => NvmlError::GpuIsLost,
                    LossMode::NotFound => NvmlError::NotFound,
                })
            }
            _ if names(&gpu.config.unsupported, function) => Err(NvmlError::NotSupported),
            _ => Ok(gpu),
        }
    }

    /// The same, to change it.
    ///
    /// # Errors
    /// As [`Self::gpu`].
    pub fn gpu_mut(&mut self, slot: usize, function: &str) -> Result<&mut Gpu, NvmlError> {
        self.gpu(slot, function)?;
        Ok(&mut self.gpus[slot])
    }

    /// Begins a call of `function` upon what a handle stands for: afterwards [`Self::gpu`] has the GPU.
    ///
    /// # Errors
    /// As [`Self::gpu`], a handle of another driver load, or the error that a test wants.
    pub fn enter(&mut self, handle: usize, function: &'static str, now_ns: u64) -> Result<Target, NvmlError> {
        let target = handle::decode(handle, self.loads)?;
        self.gpu(target.slot, function)?;
        self.faults.check_gpu(target.slot, function)?;
        if let Some(place) = target.mig {
            self.gpus[target.slot].mig_device(place).map_err(|_| NvmlError::InvalidArgument)?;
        }
        self.last_reads.insert((target.slot, function), now_ns);
        Ok(target)
    }

    /// The value that a function writes instead of its own, where a test wants one.
    #[must_use]
    pub fn blank(&self, slot: usize, function: &str) -> Option<u64> {
        self.faults.blank(slot, function)
    }

    /// What a field was fixed to.
    #[must_use]
    pub fn fixed_field(&self, slot: usize, field: u32) -> Option<FixedField> {
        self.faults.fixed_field(slot, field)
    }

    /// The handle of a device, void after the next driver load.
    #[must_use]
    pub fn handle(&self, target: Target) -> usize {
        handle::encode(target, self.loads)
    }

    /// Slots of the GPUs that are counted, in the order of their NVML indices.
    pub fn present(&self) -> impl Iterator<Item = usize> {
        self.gpus.iter().enumerate().filter(|(_, gpu)| !is_gone(gpu)).map(|(slot, _)| slot)
    }

    /// The slot of the first counted GPU that `is` accepts.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, is: impl Fn(&Gpu) -> bool) -> Result<usize, NvmlError> {
        self.present().find(|slot| is(&self.gpus[*slot])).ok_or(NvmlError::NotFound)
    }

    /// The counted GPU, or MIG device of one, with a UUID.
    ///
    /// # Errors
    /// There is none.
    pub fn find_uuid(&self, uuid: &str) -> Result<Target, NvmlError> {
        if let Ok(slot) = self.find(|gpu| gpu.uuid == uuid) {
            return Ok(Target::gpu(slot));
        }
        let migs = self.present().flat_map(|slot| {
            let gpu = &self.gpus[slot];
            let places = 0..gpu.mig_devices().map_or(0, <[_]>::len);
            places
                .filter(|place| gpu.mig_uuid(*place).is_ok_and(|found| found == uuid))
                .map(move |place| (slot, place))
        });
        let found = { migs }.next().ok_or(NvmlError::NotFound)?;
        Ok(Target { slot: found.0, mig: Some(found.1) })
    }

    /// The power limits that are not the default, in milliwatts, by UUID.
    #[must_use]
    pub fn limits(&self) -> BTreeMap<String, u32> {
        let changed = self.gpus.iter().filter(|gpu| gpu.limit_milliwatts() != gpu.default_limit_milliwatts());
        changed.map(|gpu| (gpu.uuid.clone(), gpu.limit_milliwatts())).collect()
    }

    /// Takes limits over that somebody else set; a GPU without one has its default.
    pub fn adopt_limits(&mut self, limits: &BTreeMap<String, u32>, now_ns: u64) {
        for gpu in &mut self.gpus {
            let limit = limits.get(&gpu.uuid).copied().unwrap_or_else(|| gpu.default_limit_milliwatts());
            gpu.hold_limit(limit, now_ns);
        }
    }

    /// The next event of a set, or the loss of a GPU that it watches, or nothing yet.
    ///
    /// # Errors
    /// No driver or set any more, or a lost GPU once its events are read.
    pub fn next_event(&mut self, set: usize, function: &str) -> Result<Option<Event>, NvmlError> {
        self.check_initialised()?;
        if let Some(event) = self.events.take(set)? {
            return Ok(Some(event));
        }
        for slot in self.events.watched(set)? {
            // Only a loss counts: a slot of a set was valid when it was registered.
            self.gpu(slot, function).map_err(|_| NvmlError::GpuIsLost)?;
        }
        Ok(None)
    }
}

fn names(functions: &[String], function: &str) -> bool {
    functions.iter().any(|name| name == function)
}

fn is_gone(gpu: &Gpu) -> bool {
    // A GPU that fails only some functions is still on the bus.
    gpu.loss.as_ref().is_some_and(|loss| loss.mode == LossMode::NotFound && loss.functions.is_none())
}

#[cfg(test)]
mod tests;
