//! One GPU: its identity, its newest figures, and whether it still answers.
//!
//! Invariant: known by its UUID. A lost GPU keeps its place and its counters; a failed reading is a
//! failure, never a zero.

use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use wattmill_protocol::Source;

use super::calls::{Calls, reason};
use super::ffi::Handle;
use super::fields::{Fields, Figure};
use super::figures::Figures;
use super::power::{self, Usage};
use super::sentinel::is_figure;
use super::tally::{PCIE_BYTES, Tally};
use super::throttle::Throttle;
use crate::counter::Limits;
use crate::device::gpu::MAX_GPU_WATTS;
use crate::device::gpu::{GpuReading, PcieBytes};
use crate::device::integrate::Integrator;
use crate::device::uncertainty::{Attention, EnergyUncertainty, Horizon, Meters};
use crate::device::{Class, EnergyReading, Epoch, MeterId, Scope};

/// Microjoules of a count of NVML's energy counter.
const MICROJOULES_PER_MILLIJOULE: u64 = 1_000;
/// Full readings in a row without the energy counter after which the integral of power counts instead. A
/// few may fail for nothing: the counter then tells of their time too, and nothing is lost.
const MAX_COUNTER_MISSES: u32 = 5;

pub(super) struct Gpu {
    pub(super) reading: GpuReading,
    /// What it is asked through, while it answers.
    attached: Option<Attached>,
    /// Whether it came or went since that was last asked.
    moved: bool,
    /// Whether its energy, or its module's, hangs on power at instants.
    wants_power_often: bool,
    /// Full readings since the energy counter last told something.
    counter_misses: u32,
    energy: Option<(u64, Duration)>,
    integrator: Integrator,
    /// How well its energy is known.
    horizon: Horizon,
    /// Power of the module that contains it, where there is one.
    module: Integrator,
    throttle: Throttle,
    received: Tally,
    transmitted: Tally,
}

/// What lasts from when a GPU is found until it is lost.
struct Attached {
    handle: Handle,
    fields: Fields,
    usage: Usage,
    attention: Attention,
    figures: Figures,
}

/// How often a GPU is read.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Over more than this between two readings no power is assumed.
    pub(super) max_span: Duration,
    /// The same of a GPU that tells its mean power and is read as seldom as that allows.
    pub(super) max_mean_span: Duration,
    /// Time between two full readings.
    pub(super) window: Duration,
    /// Tells the time.
    pub(super) clock: fn() -> Duration,
}

impl Gpu {
    pub(super) fn new(uuid: &str) -> Self {
        Self {
            reading: GpuReading { uuid: uuid.to_owned(), lost: Some("not_found"), ..GpuReading::default() },
            attached: None,
            moved: false,
            wants_power_often: false,
            // It has told nothing yet.
            counter_misses: MAX_COUNTER_MISSES,
            energy: None,
            integrator: Integrator::default(),
            horizon: Horizon::default(),
            module: Integrator::default(),
            throttle: Throttle::default(),
            received: Tally::new(PCIE_BYTES),
            transmitted: Tally::new(PCIE_BYTES),
        }
    }

    /// What the GPU is asked through, while it answers.
    pub(super) fn handle(&self) -> Option<&Handle> {
        self.attached.as_ref().map(|attached| &attached.handle)
    }

    /// Whether it was there and does not answer.
    pub(super) fn is_lost(&self) -> bool {
        !self.reading.up && !self.reading.model.is_empty()
    }

    /// Whether power has to be read as often as may be: no counter tells its energy, or its power is told at
    /// instants alone.
    pub(super) fn wants_power_often(&self) -> bool {
        self.wants_power_often && self.attached.is_some()
    }

    /// Whether it came or went since that was last asked.
    pub(super) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// The library is let go of: the GPU answers, but is to be found anew.
    pub(super) fn detach(&mut self) {
        self.moved |= self.attached.take().is_some();
        self.throttle.forget();
        self.received.forget();
        self.transmitted.forget();
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
        self.detach();
        self.integrator.fail();
        self.horizon.forget();
        self.module.fail();
        let GpuReading { uuid, index, model, driver, pci, throttle_seconds, pcie, .. } =
            std::mem::take(&mut self.reading);
        self.reading = GpuReading {
            uuid,
            index,
            model,
            driver,
            pci,
            throttle_seconds,
            pcie,
            lost: Some(reason),
            ..GpuReading::default()
        };
    }

    /// Reads power, and with `full` everything.
    pub(super) fn read(
        &mut self,
        (nvml, driver): (&Arc<Nvml>, &str),
        full: bool,
        pace: Pace,
        failures: &mut Vec<&'static str>,
    ) {
        let mut calls = Calls::new(failures);
        let attached = match self.attached.take() {
            Some(attached) => attached,
            None => match self.attach(nvml, driver, &mut calls) {
                Ok(attached) => attached,
                Err(error) => {
                    calls.fail(&error);
                    return self.lose(reason(&error));
                }
            },
        };
        let attached = self.attached.insert(attached);
        let handle = &attached.handle;
        // Energy first: the integral, where it takes over, begins where the counter has ended, or later.
        let energy = if full { read_energy(handle, pace.clock, &mut calls) } else { None };
        attached.fields.read(handle, full, &mut calls);
        let power = power::read(handle, &attached.fields, attached.usage, &mut calls);
        let at = (pace.clock)();
        if full {
            self.throttle.read(handle, &attached.fields, at, pace.window, &mut calls);
            attached.figures.read(&mut self.reading, (nvml, handle), at, &mut calls);
        }
        if let Some(reason) = calls.lost() {
            return self.lose(reason);
        }
        let (fields, attention) = (&attached.fields, attached.attention);
        self.received.add(fields.get(Figure::PcieReceive), at);
        self.transmitted.add(fields.get(Figure::PcieTransmit), at);
        let max_span = if self.wants_power_often { pace.max_span } else { pace.max_mean_span };
        self.integrator.note(power.to_integrate(), at, max_span);
        if let Some(seen) = power.seen() {
            self.horizon.note(seen, self.integrator.unread(), at);
        }
        let module = [Figure::AverageModule, Figure::InstantModule].into_iter().find(|m| fields.has(*m));
        if let Some(module) = module {
            self.module.note(fields.get(module), at, max_span);
        }
        let means = power.is_mean() && module != Some(Figure::InstantModule);
        self.wants_power_often = !(means && self.counter_misses == 0);
        if full {
            let recovery = fields.get(Figure::RecoveryAction).and_then(recovery_action);
            self.note_counter(energy);
            self.note_up();
            self.reading.energy_uncertainty = match power.seen() {
                Some(_) => self.uncertainty(energy, attention),
                None => EnergyUncertainty::default(),
            };
            self.reading.power = power.shown();
            self.reading.recovery_action = recovery;
            self.reading.throttle_seconds = self.throttle.seconds();
            let (received, transmitted) = (self.received.total(), self.transmitted.total());
            self.reading.pcie = PcieBytes { received, transmitted };
        }
    }

    /// Finds the GPU and takes down what describes it; a restarted driver may number it anew.
    fn attach(
        &mut self,
        nvml: &Arc<Nvml>,
        driver: &str,
        calls: &mut Calls<'_>,
    ) -> Result<Attached, NvmlError> {
        let handle = Handle::by_uuid(nvml, &self.reading.uuid)?;
        self.moved = true;
        self.describe(&handle, driver);
        let (usage, attention) = (Usage::of(&handle.device()), Attention::of(&handle.device()));
        let figures = Figures::of(&handle, nvml, calls);
        Ok(Attached { handle, fields: Fields::new(nvml.field_id_scheme()), usage, attention, figures })
    }

    fn describe(&mut self, handle: &Handle, driver: &str) {
        let (device, reading) = (handle.device(), &mut self.reading);
        reading.index = device.index().map(|i| i.to_string()).unwrap_or_default();
        reading.model = device.name().unwrap_or_default();
        reading.pci = device.pci_info().map(|pci| pci.bus_id).unwrap_or_default();
        driver.clone_into(&mut reading.driver);
    }

    /// Its number now: those of others shift when one falls off the bus.
    pub(super) fn note_index(&mut self, index: u32) {
        if self.reading.index.parse() != Ok(index) {
            self.reading.index = index.to_string();
        }
    }

    fn note_up(&mut self) {
        if !self.reading.up {
            tracing::info!(gpu = self.reading.uuid, model = self.reading.model, "GPU answers");
        }
        self.reading.up = true;
        self.reading.lost = None;
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

    /// How well its energy is known after a full reading.
    fn uncertainty(&mut self, energy: Option<(u64, Duration)>, attention: Attention) -> EnergyUncertainty {
        // A counter that told nothing this time tells of this time too when it is back.
        if let Some(at) = self.integrator.last_at().filter(|_| energy.is_some() || !self.counter_counts()) {
            let counter = energy.map(|(raw, _)| raw.saturating_mul(MICROJOULES_PER_MILLIJOULE));
            self.horizon.close(Meters { at, counter, integrated: self.integrator.microjoules() });
        }
        self.horizon.state(attention)
    }

    /// Whether the GPU's own counter counts for the node, rather than the integral.
    fn counter_counts(&self) -> bool {
        self.counter_misses < MAX_COUNTER_MISSES
    }

    /// Its energy counters as they are known now: the GPU's own, the integrated one, and the module's, which
    /// contains the GPU and counts for nothing.
    pub(super) fn energy(&self) -> impl Iterator<Item = EnergyReading> {
        let counter = self.energy.map(|(raw, at)| EnergyReading {
            meter: self.meter(Class::Gpu, Source::Counter),
            scope: Some(Scope::Gpu),
            raw,
            microjoules_per_count: MICROJOULES_PER_MILLIJOULE,
            limits: Limits { modulus: None, max_per_second: MAX_GPU_WATTS * 1e3 },
            epoch: Epoch::Hardware,
            at,
            unread: 0,
        });
        let scope = (!self.counter_counts()).then_some(Scope::Gpu);
        let integrated = self.integrated(Class::Gpu, &self.integrator, scope);
        let module = self.integrated(Class::Module, &self.module, None);
        [counter, integrated, module].into_iter().flatten()
    }

    fn integrated(
        &self,
        class: Class,
        integrator: &Integrator,
        scope: Option<Scope>,
    ) -> Option<EnergyReading> {
        Some(EnergyReading {
            meter: self.meter(class, Source::Integrated),
            scope,
            raw: integrator.microjoules(),
            microjoules_per_count: 1,
            limits: Limits { modulus: None, max_per_second: f64::INFINITY },
            epoch: Epoch::Process,
            at: integrator.last_at()?,
            unread: integrator.unread(),
        })
    }

    fn meter(&self, class: Class, source: Source) -> MeterId {
        MeterId { class, device: self.reading.uuid.clone(), source }
    }
}

fn read_energy(handle: &Handle, clock: fn() -> Duration, calls: &mut Calls<'_>) -> Option<(u64, Duration)> {
    let millijoules = calls.take(handle.device().total_energy_consumption()).filter(|mj| is_figure(*mj))?;
    Some((millijoules, clock()))
}

/// The value of the `action` label.
fn recovery_action(action: u64) -> Option<&'static str> {
    ["none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset"]
        .get(usize::try_from(action).ok()?)
        .copied()
}
