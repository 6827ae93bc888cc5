//! Carrying commands out.

use std::collections::BTreeMap;

use super::command::{Answer, CallCount, Command, GpuRef};
use super::config::{ClockKind, MigConfig};
use super::error::NvmlError;
use super::events::{DOUBLE_BIT_ECC, Event, EventSets, XID_CRITICAL};
use super::gpm::Samples;
use super::gpu::{Gpu, Loss};
use super::{FixedField, Machine};

/// The Xid of a double-bit ECC error.
const XID_DOUBLE_BIT_ECC: u64 = 48;

impl Machine {
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
            Command::LastRead { gpu, function } => return self.last_read(&gpu, &function),
            Command::Advance { .. } if self.config.clock == ClockKind::Monotonic => {
                return Err("advance needs \"clock\": \"manual\" in the configuration".to_owned());
            }
            Command::Advance { .. } => {}
            Command::UnloadDriver => self.unload(),
            Command::LoadDriver if self.loaded => return Err("the driver is loaded".to_owned()),
            Command::LoadDriver => self.load(now_ns),
            Command::ReloadDriver => {
                self.unload();
                self.load(now_ns);
            }
            Command::Root { allowed } => self.root = allowed,
            Command::Hang { function } => self.faults.hang(function),
            Command::Unhang { function } => self.faults.unhang(function.as_deref()),
            Command::Crash { function } => self.faults.crash(function),
            Command::Fail { function, error } => self.faults.fail(function, error),
            Command::FailGpu { gpu, function, error, times } => {
                let slot = self.slot_of(&gpu)?;
                self.faults.fail_gpu(slot, function, error, times);
            }
            Command::Blank { gpu, function, value } => {
                let slot = self.slot_of(&gpu)?;
                self.faults.set_blank(slot, function, value);
            }
            Command::Field { gpu, field, value, error } => self.fix_field(&gpu, field, value, error)?,
            Command::Xid { gpu, xid, recovery_action } => self.xid(&gpu, xid, recovery_action)?,
            Command::Ecc { gpu, corrected, uncorrected } => self.ecc(&gpu, corrected, uncorrected)?,
            other => self.change_gpu(other, now_ns)?,
        }
        Ok(Answer::Done { at_monotonic_ns: now_ns })
    }

    /// The commands that change one GPU and nothing else.
    fn change_gpu(&mut self, command: Command, now_ns: u64) -> Result<(), String> {
        match command {
            Command::SetWaveform { gpu, waveform } => {
                self.named(&gpu)?.set_waveform(&waveform, now_ns).map_err(|error| error.to_string())?;
            }
            Command::Cap { gpu, watts } => {
                self.named(&gpu)?.set_cap(watts, now_ns).map_err(|error| error.to_string())?;
            }
            Command::Lose { gpu, mode, functions } => self.named(&gpu)?.loss = Some(Loss { mode, functions }),
            Command::Restore { gpu, restart_counters } => {
                let gpu = self.named(&gpu)?;
                gpu.loss = None;
                if restart_counters {
                    gpu.restart_counters(now_ns);
                }
            }
            Command::Mig { gpu, enabled, devices } => set_mig(self.named(&gpu)?, enabled, devices)?,
            Command::Processes { gpu, processes } => self.named(&gpu)?.processes = processes,
            Command::Utilization { gpu, gpu_percent, memory_percent } => {
                let gpu = self.named(&gpu)?;
                (gpu.gpu_percent, gpu.memory_percent) = (gpu_percent, memory_percent);
            }
            Command::Memory { gpu, used_bytes } => self.named(&gpu)?.used_bytes = used_bytes,
            Command::Throttle { gpu, reason, active } => {
                self.named(&gpu)?.set_throttle(reason, active, now_ns);
            }
            other => return Err(format!("{other:?} changes no GPU")),
        }
        Ok(())
    }

    fn unload(&mut self) {
        (self.loaded, self.initialised) = (false, 0);
        (self.events, self.samples) = (EventSets::default(), Samples::default());
    }

    fn load(&mut self, now_ns: u64) {
        self.loaded = true;
        self.loads += 1;
        self.gpus.iter_mut().for_each(|gpu| gpu.reload(now_ns));
    }

    fn slot_of(&self, wanted: &GpuRef) -> Result<usize, String> {
        let slot = match wanted {
            GpuRef::Slot(slot) => Some(*slot).filter(|slot| *slot < self.gpus.len()),
            GpuRef::Uuid(uuid) => self.gpus.iter().position(|gpu| gpu.uuid == *uuid),
        };
        slot.ok_or_else(|| format!("no GPU {wanted:?}"))
    }

    fn named(&mut self, wanted: &GpuRef) -> Result<&mut Gpu, String> {
        let slot = self.slot_of(wanted)?;
        Ok(&mut self.gpus[slot])
    }

    fn truth(&self, at_ns: u64) -> Result<Answer, String> {
        if let Some(gpu) = self.gpus.iter().find(|gpu| at_ns < gpu.known_from_ns()) {
            return Err(format!("{} is known from {} ns on", gpu.uuid, gpu.known_from_ns()));
        }
        Ok(Answer::Gpus(self.gpus.iter().map(|gpu| gpu.truth(at_ns)).collect()))
    }

    fn last_read(&self, gpu: &GpuRef, function: &str) -> Result<Answer, String> {
        let slot = self.slot_of(gpu)?;
        let read = self.last_reads.iter().find(|((of, name), _)| (*of, *name) == (slot, function));
        let (_, at_ns) = read.ok_or_else(|| format!("{function} was not called on GPU {slot}"))?;
        Ok(Answer::Read(self.gpus[slot].truth(*at_ns)))
    }

    fn calls(&self) -> BTreeMap<String, CallCount> {
        self.calls.iter().map(|(function, count)| ((*function).to_owned(), *count)).collect()
    }

    fn fix_field(
        &mut self,
        gpu: &GpuRef,
        field: u32,
        value: Option<u64>,
        error: Option<NvmlError>,
    ) -> Result<(), String> {
        let slot = self.slot_of(gpu)?;
        let fixed = match (value, error) {
            (Some(_), Some(_)) => return Err("a field has a value or an error, not both".to_owned()),
            (Some(value), None) => Some(FixedField::Value(value)),
            (None, error) => error.map(FixedField::Error),
        };
        self.faults.fix_field(slot, field, fixed);
        Ok(())
    }

    fn xid(&mut self, gpu: &GpuRef, xid: u64, recovery_action: Option<u32>) -> Result<(), String> {
        let slot = self.slot_of(gpu)?;
        if xid == XID_DOUBLE_BIT_ECC {
            self.ecc(gpu, 0, 1)?;
        }
        let gpu = &mut self.gpus[slot];
        gpu.recovery_action = recovery_action.unwrap_or(gpu.recovery_action);
        self.events.raise(Event { slot, kind: XID_CRITICAL, data: xid });
        Ok(())
    }

    fn ecc(&mut self, gpu: &GpuRef, corrected: u64, uncorrected: u64) -> Result<(), String> {
        let slot = self.slot_of(gpu)?;
        self.gpus[slot].add_memory_errors(corrected, uncorrected);
        if uncorrected > 0 {
            self.events.raise(Event { slot, kind: DOUBLE_BIT_ECC, data: 0 });
        }
        Ok(())
    }
}

fn set_mig(gpu: &mut Gpu, enabled: bool, devices: Vec<MigConfig>) -> Result<(), String> {
    let most = gpu.config.max_mig_devices as usize;
    if (enabled && most == 0) || devices.len() > most {
        return Err(format!("{} has at most {most} MIG devices", gpu.config.name));
    }
    (gpu.config.mig, gpu.config.mig_devices) = (enabled, devices);
    Ok(())
}
