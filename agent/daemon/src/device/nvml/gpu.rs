//! One GPU: its identity, its newest figures, and whether it still answers.
//!
//! Invariant: known by its UUID. A lost GPU keeps its place and its counters; a failed reading is a
//! failure, never a zero.

use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use wattmill_protocol::Source;

use super::integrate::Integrator;
use super::{GpuReading, reason};
use crate::clock;
use crate::counter::Limits;
use crate::device::host::Usage;
use crate::device::{Class, EnergyReading, Epoch, MeterId, Scope};

/// Most watts that a module may draw: several times the largest sold.
const MAX_GPU_WATTS: f64 = 5_000.0;
/// Microjoules of a count of NVML's energy counter.
const MICROJOULES_PER_MILLIJOULE: u64 = 1_000;
/// From here on an energy counter is a sentinel for "absent", no energy.
const ENERGY_SENTINEL: u64 = 1 << 62;
/// Full readings in a row without the energy counter after which the integral of power counts instead. A
/// few may fail for nothing: the counter then tells of their time too, and nothing is lost.
const MAX_COUNTER_MISSES: u32 = 5;
/// Above this a temperature is a sentinel.
const MAX_CELSIUS: u32 = 200;

pub(super) struct Gpu {
    pub(super) reading: GpuReading,
    /// Full readings since the energy counter last told something.
    counter_misses: u32,
    energy: Option<(u64, Duration)>,
    integrator: Integrator,
    has_power: bool,
}

/// What a round of calls to a GPU met with.
struct Calls<'a> {
    failures: &'a mut Vec<&'static str>,
    lost: bool,
}

impl Calls<'_> {
    /// The value of a call; what is not supported is absent and no failure.
    fn take<T>(&mut self, result: Result<T, NvmlError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if is_unsupported(&error) => None,
            Err(error) => {
                self.lost |= is_lost(&error);
                self.failures.push(reason(&error));
                None
            }
        }
    }
}

impl Gpu {
    pub(super) fn new(uuid: &str) -> Self {
        Self {
            reading: GpuReading { uuid: uuid.to_owned(), ..GpuReading::default() },
            // It has told nothing yet.
            counter_misses: MAX_COUNTER_MISSES,
            energy: None,
            integrator: Integrator::default(),
            has_power: false,
        }
    }

    /// Takes down what describes the GPU. A restarted driver may number it anew.
    pub(super) fn describe(&mut self, device: &Device<'_>, driver: &str) {
        let reading = &mut self.reading;
        reading.index = device.index().map(|i| i.to_string()).unwrap_or_default();
        reading.model = device.name().unwrap_or_default();
        reading.pci = device.pci_info().map(|pci| pci.bus_id).unwrap_or_default();
        driver.clone_into(&mut reading.driver);
    }

    /// The GPU cannot be reached at all.
    pub(super) fn lose(&mut self, reason: &'static str) {
        if self.reading.up {
            tracing::error!(
                gpu = self.reading.uuid,
                reason,
                "GPU lost: its counters stand still until it is back"
            );
        }
        self.integrator.fail();
        let GpuReading { uuid, index, model, driver, pci, .. } = std::mem::take(&mut self.reading);
        self.reading = GpuReading { uuid, index, model, driver, pci, ..GpuReading::default() };
    }

    /// Reads power, and with `full` everything.
    pub(super) fn read(
        &mut self,
        device: &Device<'_>,
        full: bool,
        max_span: Duration,
        failures: &mut Vec<&'static str>,
    ) {
        let mut calls = Calls { failures, lost: false };
        // Energy first: the integral, where it takes over, begins where the counter has ended, or later.
        let energy = if full { read_energy(device, &mut calls) } else { None };
        let power = calls.take(device.power_usage()).filter(|mw| f64::from(*mw) <= MAX_GPU_WATTS * 1e3);
        let at = clock::monotonic();
        let figures = full.then(|| self.read_figures(device, &mut calls));
        if calls.lost {
            let reason = calls.failures.last().copied().unwrap_or("lost");
            self.lose(reason);
            return;
        }
        if let Some(milliwatts) = power {
            self.has_power = true;
            self.integrator.add(u64::from(milliwatts), at, max_span);
        } else {
            self.integrator.fail();
        }
        if full {
            self.note_counter(energy);
        }
        if let Some(figures) = figures {
            if !self.reading.up {
                tracing::info!(gpu = self.reading.uuid, model = self.reading.model, "GPU answers");
            }
            self.reading = figures;
        }
    }

    fn note_counter(&mut self, energy: Option<(u64, Duration)>) {
        let counted = self.counter_counts();
        self.counter_misses = if energy.is_some() { 0 } else { self.counter_misses.saturating_add(1) };
        self.energy = energy.or(self.energy);
        if counted && !self.counter_counts() {
            tracing::warn!(
                gpu = self.reading.uuid,
                "the GPU's energy counter tells nothing: integrated power counts"
            );
        }
    }

    /// Whether the GPU's own counter counts for the node, rather than the integral.
    fn counter_counts(&self) -> bool {
        self.counter_misses < MAX_COUNTER_MISSES
    }

    fn read_figures(&self, device: &Device<'_>, calls: &mut Calls<'_>) -> GpuReading {
        let memory = calls.take(device.memory_info());
        let processes = calls.take(device.running_compute_processes());
        GpuReading {
            up: true,
            utilization: calls
                .take(device.utilization_rates())
                .filter(|u| u.gpu <= 100)
                .map(|u| f64::from(u.gpu) / 100.0),
            memory: memory.map(|m| Usage { used_bytes: m.used, size_bytes: m.total }),
            temperature_celsius: calls
                .take(device.temperature(TemperatureSensor::Gpu))
                .filter(|celsius| *celsius <= MAX_CELSIUS)
                .map(f64::from),
            sm_clock_hertz: calls
                .take(device.clock_info(Clock::SM))
                .filter(|mhz| *mhz < u32::MAX)
                .map(|mhz| f64::from(mhz) * 1e6),
            power_limit_watts: calls
                .take(device.enforced_power_limit())
                .filter(|mw| f64::from(*mw) <= MAX_GPU_WATTS * 1e3)
                .map(|mw| f64::from(mw) / 1e3),
            processes: processes.map(|list| list.iter().map(|p| p.pid).collect()),
            ..self.reading.clone()
        }
    }

    /// Its energy counters as they are known now: the GPU's own and the integrated one.
    pub(super) fn energy(&self) -> impl Iterator<Item = EnergyReading> {
        let counter = self.energy.map(|(raw, at)| EnergyReading {
            meter: self.meter(Source::Counter),
            scope: Some(Scope::Gpu),
            raw,
            microjoules_per_count: MICROJOULES_PER_MILLIJOULE,
            limits: Limits { modulus: None, max_per_second: MAX_GPU_WATTS * 1e3 },
            epoch: Epoch::Hardware,
            at,
            unread: 0,
        });
        let integrated =
            self.has_power.then(|| self.integrator.last_at()).flatten().map(|at| EnergyReading {
                meter: self.meter(Source::Integrated),
                scope: (!self.counter_counts()).then_some(Scope::Gpu),
                raw: self.integrator.microjoules(),
                microjoules_per_count: 1,
                limits: Limits { modulus: None, max_per_second: f64::INFINITY },
                epoch: Epoch::Process,
                at,
                unread: self.integrator.unread(),
            });
        counter.into_iter().chain(integrated)
    }

    fn meter(&self, source: Source) -> MeterId {
        MeterId { class: Class::Gpu, device: self.reading.uuid.clone(), source }
    }
}

fn read_energy(device: &Device<'_>, calls: &mut Calls<'_>) -> Option<(u64, Duration)> {
    let millijoules = calls.take(device.total_energy_consumption()).filter(|mj| is_energy(*mj))?;
    Some((millijoules, clock::monotonic()))
}

/// Whether an energy counter shows energy, and no sentinel of 32 or 64 bits.
pub(super) fn is_energy(millijoules: u64) -> bool {
    millijoules < ENERGY_SENTINEL && millijoules != u64::from(u32::MAX)
}

fn is_unsupported(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NoData
    )
}

/// Errors after which none of the GPU's other answers is to be believed.
pub(super) fn is_lost(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::NotFound
            | NvmlError::ResetRequired
            | NvmlError::DriverNotLoaded
            | NvmlError::Uninitialized
    )
}
