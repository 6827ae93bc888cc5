//! The state machine: what GPUs there are, what they draw and how they fail.
//!
//! Safe and pure: no clock, no I/O, no FFI. Every method takes `now_ns`, nanoseconds of whichever clock the
//! caller owns; instants must not go backwards between changes.

pub mod command;
pub mod config;
pub mod error;
mod events;
pub mod fields;
pub mod gpu;
pub mod profile;
pub mod timeline;
pub mod waveform;

use std::collections::{BTreeMap, BTreeSet};

pub use events::{Event, EventSets, SUPPORTED_EVENTS};

use command::{Answer, CallCount, Command, GpuRef, LossMode};
use config::{ClockKind, Config};
use error::NvmlError;
use gpu::{Gpu, Loss};

/// The Xid of a double-bit ECC error.
const XID_DOUBLE_BIT_ECC: u64 = 48;

/// All state behind the library.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    gpus: Vec<Gpu>,
    initialised: u32,
    hung: BTreeSet<String>,
    failing: BTreeMap<String, NvmlError>,
    calls: BTreeMap<&'static str, CallCount>,
    /// Event sets, for the calls that wait on them.
    pub events: EventSets,
}

impl Machine {
    /// A driver that is loaded at `now_ns`.
    ///
    /// # Errors
    /// What in the configuration cannot be, in words.
    pub fn new(config: Config, now_ns: u64) -> Result<Machine, String> {
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
        let failing = config.fail.clone();
        let (hung, calls, events) = (BTreeSet::new(), BTreeMap::new(), EventSets::default());
        Ok(Machine { config, gpus, initialised: 0, hung, failing, calls, events })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One more user. NVML counts them.
    pub fn init(&mut self) {
        self.initialised += 1;
    }

    /// One user fewer.
    ///
    /// # Errors
    /// There was none.
    pub fn shutdown(&mut self) -> Result<(), NvmlError> {
        self.initialised = self.initialised.checked_sub(1).ok_or(NvmlError::Uninitialized)?;
        Ok(())
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
        self.hung.contains(function)
    }

    /// Whether `function` may go on: it was not told to fail.
    ///
    /// # Errors
    /// The error that it was told to give.
    pub fn check(&self, function: &str) -> Result<(), NvmlError> {
        self.failing.get(function).map_or(Ok(()), |error| Err(*error))
    }

    /// Whether there is a user.
    ///
    /// # Errors
    /// There is none.
    pub fn check_initialised(&self) -> Result<(), NvmlError> {
        if self.initialised == 0 { Err(NvmlError::Uninitialized) } else { Ok(()) }
    }

    /// The GPU at a slot of the configuration, for a call of `function` upon it.
    ///
    /// # Errors
    /// No such slot, or a GPU that is lost to this function.
    pub fn gpu(&self, slot: usize, function: &str) -> Result<&Gpu, NvmlError> {
        let gpu = self.gpus.get(slot).ok_or(NvmlError::InvalidArgument)?;
        match &gpu.loss {
            Some(loss)
                if loss.functions.as_ref().is_none_or(|only| only.iter().any(|name| name == function)) =>
            {
                Err(match loss.mode {
                    LossMode::GpuIsLost => NvmlError::GpuIsLost,
                    LossMode::NotFound => NvmlError::NotFound,
                })
            }
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

    /// Carries a command out. `Advance` is the business of whoever owns the clock: `now_ns` is then the time
    /// after it.
    pub fn apply(&mut self, command: Command, now_ns: u64) -> Answer {
        match self.carry_out(command, now_ns) {
            Ok(answer) => answer,
            Err(message) => Answer::Error(message),
        }
    }

    fn carry_out(&mut self, command: Command, now_ns: u64) -> Result<Answer, String> {
        match command {
            Command::Truth { at_monotonic_ns } => return self.truth(at_monotonic_ns.unwrap_or(now_ns)),
            Command::Calls => return Ok(Answer::Calls(self.calls())),
            Command::SetWaveform { gpu, waveform } => {
                self.named(&gpu)?.set_waveform(&waveform, now_ns).map_err(|error| error.to_string())?;
            }
            Command::Lose { gpu, mode, functions } => self.named(&gpu)?.loss = Some(Loss { mode, functions }),
            Command::Restore { gpu, restart_counters } => {
                let gpu = self.named(&gpu)?;
                gpu.loss = None;
                if restart_counters {
                    gpu.restart_counters(now_ns);
                }
            }
            Command::ReloadDriver => self.gpus.iter_mut().for_each(|gpu| gpu.reload(now_ns)),
            Command::Xid { gpu, xid, recovery_action } => self.xid(&gpu, xid, recovery_action)?,
            Command::Hang { function } => {
                self.hung.insert(function);
            }
            Command::Unhang { function: Some(function) } => {
                self.hung.remove(&function);
            }
            Command::Unhang { function: None } => self.hung.clear(),
            Command::Fail { function, error: Some(error) } => {
                self.failing.insert(function, error);
            }
            Command::Fail { function, error: None } => {
                self.failing.remove(&function);
            }
            Command::Processes { gpu, processes } => self.named(&gpu)?.processes = processes,
            Command::Utilization { gpu, gpu_percent, memory_percent } => {
                let gpu = self.named(&gpu)?;
                (gpu.gpu_percent, gpu.memory_percent) = (gpu_percent, memory_percent);
            }
            Command::Memory { gpu, used_bytes } => self.named(&gpu)?.used_bytes = used_bytes,
            Command::Throttle { gpu, reason, active } => {
                self.named(&gpu)?.set_throttle(reason, active, now_ns);
            }
            Command::Advance { .. } if self.config.clock == ClockKind::Monotonic => {
                return Err("advance needs \"clock\": \"manual\" in the configuration".to_owned());
            }
            Command::Advance { .. } => {}
        }
        Ok(Answer::Done { at_monotonic_ns: now_ns })
    }

    fn named(&mut self, wanted: &GpuRef) -> Result<&mut Gpu, String> {
        let gpu = match wanted {
            GpuRef::Slot(slot) => self.gpus.get_mut(*slot),
            GpuRef::Uuid(uuid) => self.gpus.iter_mut().find(|gpu| gpu.uuid == *uuid),
        };
        gpu.ok_or_else(|| format!("no GPU {wanted:?}"))
    }

    fn truth(&self, at_ns: u64) -> Result<Answer, String> {
        if let Some(gpu) = self.gpus.iter().find(|gpu| at_ns < gpu.known_from_ns()) {
            return Err(format!("{} is known from {} ns on", gpu.uuid, gpu.known_from_ns()));
        }
        Ok(Answer::Gpus(self.gpus.iter().map(|gpu| gpu.truth(at_ns)).collect()))
    }

    fn calls(&self) -> BTreeMap<String, CallCount> {
        self.calls.iter().map(|(function, count)| ((*function).to_owned(), *count)).collect()
    }

    fn xid(&mut self, gpu: &GpuRef, xid: u64, recovery_action: Option<u32>) -> Result<(), String> {
        let gpu = self.named(gpu)?;
        gpu.recovery_action = recovery_action.unwrap_or(gpu.recovery_action);
        let uuid = gpu.uuid.clone();
        let slot = self.gpus.iter().position(|gpu| gpu.uuid == uuid).unwrap_or_default();
        if xid == XID_DOUBLE_BIT_ECC {
            self.events.raise(Event { slot, kind: events::DOUBLE_BIT_ECC, data: 0 });
        }
        self.events.raise(Event { slot, kind: events::XID_CRITICAL, data: xid });
        Ok(())
    }

    /// The next event of a set, or the loss of a GPU that it watches, or nothing yet.
    ///
    /// # Errors
    /// No such set, or a lost GPU once its events are read.
    pub fn next_event(&mut self, set: usize, function: &str) -> Result<Option<Event>, NvmlError> {
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

fn is_gone(gpu: &Gpu) -> bool {
    // A GPU that fails only some functions is still on the bus.
    gpu.loss.as_ref().is_some_and(|loss| loss.mode == LossMode::NotFound && loss.functions.is_none())
}

#[cfg(test)]
mod tests;
