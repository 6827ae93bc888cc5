//! One GPU of AMD's or Intel's: its newest figures, its energy, and whether it still answers.
//!
//! Invariant: known by its identity. A lost GPU keeps its place and its counters; what cannot be, such as no
//! power at all, is absent. One that sleeps is left asleep: reading its sensors would wake it.

use std::path::Path;
use std::time::Duration;

use wattmill_protocol::Source;

use super::card::{Card, Driver};
use super::files::Files;
use super::gpu_metrics::{MAX_TABLE_BYTES, Table};
use crate::counter::Limits;
use crate::device::gpu::{GpuReading, MAX_GPU_WATTS, Power, PowerLimits, Scoped};
use crate::device::host::Usage;
use crate::device::integrate::Integrator;
use crate::device::{Class, EnergyReading, Epoch, MeterId, Scope, sysfs};

/// Full readings in a row in which the energy counter told nothing new, after which the integral of power counts
/// instead: it moves every few milliseconds, since no GPU draws nothing.
const MAX_COUNTER_MISSES: u32 = 5;
/// Above this a temperature is a sentinel.
const MAX_MILLICELSIUS: i64 = 200_000;
/// Above this a clock is a sentinel.
const MAX_HERTZ: i64 = 20_000_000_000;

pub(super) struct Gpu {
    pub(super) reading: GpuReading,
    /// Where it is read, while it is there.
    card: Option<Card>,
    /// Whether its power is that of a package with a CPU in it.
    is_package: bool,
    /// Full readings since the energy counter last told something.
    counter_misses: u32,
    /// Microjoules of its counter, and when they were read.
    energy: Option<(u64, Duration)>,
    integrator: Integrator,
}

impl Gpu {
    pub(super) fn new(uuid: &str) -> Self {
        Self {
            reading: GpuReading { uuid: uuid.to_owned(), lost: Some("not_found"), ..GpuReading::default() },
            card: None,
            is_package: false,
            // It has told nothing yet.
            counter_misses: MAX_COUNTER_MISSES,
            energy: None,
            integrator: Integrator::default(),
        }
    }

    /// Whether it is there.
    pub(super) fn is_attached(&self) -> bool {
        self.card.is_some()
    }

    /// It is found at `card`, which may be another place than before.
    pub(super) fn attach(&mut self, card: &Card) {
        if self.card.as_ref() == Some(card) {
            return;
        }
        let reading = &mut self.reading;
        reading.index.clone_from(&card.index);
        reading.model.clone_from(&card.model);
        reading.driver.clone_from(&card.driver_version);
        reading.pci.clone_from(&card.pci);
        self.is_package = card.is_package;
        self.card = Some(card.clone());
    }

    /// It is not there any more, or does not answer.
    pub(super) fn lose(&mut self, reason: &'static str) {
        if self.reading.up {
            tracing::error!(
                gpu = self.reading.uuid,
                reason,
                "GPU lost: its counters stand still until it is back"
            );
        }
        if reason == "not_found" {
            self.card = None;
        }
        self.integrator.fail();
        self.reading = GpuReading { lost: Some(reason), ..self.described() };
    }

    /// Its reading without figures.
    fn described(&self) -> GpuReading {
        let GpuReading { uuid, index, model, driver, pci, .. } = self.reading.clone();
        GpuReading { uuid, index, model, driver, pci, ..GpuReading::default() }
    }

    /// Reads power, and with `full` everything; over more than `max_span` without power nothing is assumed.
    pub(super) fn read(
        &mut self,
        full: bool,
        max_span: Duration,
        clock: &dyn Fn() -> Duration,
        failures: &mut Vec<&'static str>,
    ) {
        let Some(card) = self.card.take() else { return };
        if sleeps(&card) {
            self.integrator.fail();
            if full {
                self.reading = GpuReading { up: true, ..self.described() };
            }
            self.card = Some(card);
            return;
        }
        let mut files = Files::new(failures);
        // Energy first: the integral, where it takes over, begins where the counter has ended, or later.
        let energy = full.then(|| energy(&card, &mut files)).flatten().map(|raw| (raw, clock()));
        let power = power(&card, full, &mut files);
        let shown = power.average.gpu.or(power.average.module).or(power.instant.gpu).or(power.instant.module);
        // In milliwatts; at most 5 kW.
        self.integrator.note(shown.map(|watts| (watts * 1e3).round() as u64), clock(), max_span);
        if full {
            let reading = GpuReading { power, ..figures(&card, &mut files, self.described()) };
            self.note_counter(energy, &mut files);
            if !self.reading.up {
                tracing::info!(gpu = reading.uuid, model = reading.model, "GPU answers");
            }
            self.reading = reading;
            let there = card.device.join("uevent").exists();
            let lost = if there { files.lost() } else { Some("not_found") };
            self.card = Some(card);
            if let Some(reason) = lost {
                self.lose(reason);
            }
            return;
        }
        self.card = Some(card);
    }

    /// A counter that stands still is none: a GPU that is awake draws power.
    fn note_counter(&mut self, energy: Option<(u64, Duration)>, files: &mut Files<'_>) {
        let counted = self.counter_counts();
        let moved = energy.filter(|(raw, _)| self.energy.is_none_or(|(last, _)| last != *raw));
        self.counter_misses = if moved.is_some() { 0 } else { self.counter_misses.saturating_add(1) };
        if energy.is_some() && !self.counter_counts() {
            files.reject("stuck");
        }
        self.energy = moved.or(self.energy);
        if counted && !self.counter_counts() {
            tracing::warn!(gpu = self.reading.uuid, "the GPU's energy counter tells nothing");
        }
    }

    /// Whether the GPU's own counter counts for the node, rather than the integral.
    fn counter_counts(&self) -> bool {
        self.counter_misses < MAX_COUNTER_MISSES
    }

    /// Whether its energy is known by its power alone.
    pub(super) fn hangs_on_power(&self) -> bool {
        let has_power = self.card.as_ref().is_some_and(|card| card.driver == Driver::Amdgpu);
        has_power && !self.counter_counts()
    }

    /// Its energy as it is known now: the GPU's own counter, and the integral of its power. What is a package's
    /// counts for nothing: RAPL meters that, or the estimate stands for it.
    pub(super) fn energy(&self) -> impl Iterator<Item = EnergyReading> {
        let class = if self.is_package { Class::Module } else { Class::Gpu };
        let reading = |source, scope: Option<Scope>, raw, at, epoch| EnergyReading {
            meter: MeterId { class, device: self.reading.uuid.clone(), source },
            scope: scope.filter(|_| !self.is_package),
            raw,
            microjoules_per_count: 1,
            limits: Limits { modulus: None, max_per_second: f64::INFINITY },
            epoch,
            at,
            unread: 0,
        };
        let counter = self.energy.map(|(raw, at)| EnergyReading {
            limits: Limits { modulus: None, max_per_second: MAX_GPU_WATTS * 1e6 },
            ..reading(Source::Counter, Some(Scope::Gpu), raw, at, Epoch::Hardware)
        });
        let scope = (!self.counter_counts()).then_some(Scope::Gpu);
        let integrated = self.integrator.last_at().map(|at| EnergyReading {
            unread: self.integrator.unread(),
            ..reading(Source::Integrated, scope, self.integrator.microjoules(), at, Epoch::Process)
        });
        [counter, integrated].into_iter().flatten()
    }
}

/// Whether the kernel has switched it off for want of work.
fn sleeps(card: &Card) -> bool {
    let status = sysfs::text(&card.device.join("power/runtime_status"));
    status.is_ok_and(|status| matches!(status.trim(), "suspended" | "suspending"))
}

/// Its energy counter, in microjoules.
fn energy(card: &Card, files: &mut Files<'_>) -> Option<u64> {
    let raw = match card.driver {
        Driver::Amdgpu => {
            let bytes = files.bytes(&card.device.join("gpu_metrics"), MAX_TABLE_BYTES)?;
            return Table::new(&bytes)?.energy_microjoules();
        }
        // The card's, which contains the package's.
        Driver::I915 | Driver::Xe => files
            .counter(&card.hwmon.join("energy1_input"))
            .or_else(|| files.counter(&card.hwmon.join("energy2_input"))),
    };
    raw.filter(|raw| *raw != u64::MAX)
}

/// What its power sensors say: the mean, and with `both`, or where there is none, power at an instant. Intel's
/// drivers show energy alone.
fn power(card: &Card, both: bool, files: &mut Files<'_>) -> Power {
    if card.driver != Driver::Amdgpu {
        return Power::default();
    }
    let mut scoped = |name: &str| {
        let watts = watts(files, &card.hwmon.join(name));
        if card.is_package {
            Scoped { module: watts, ..Scoped::default() }
        } else {
            Scoped { gpu: watts, ..Scoped::default() }
        }
    };
    let average = scoped("power1_average");
    let instant =
        if both || average == Scoped::default() { scoped("power1_input") } else { Scoped::default() };
    Power { average, instant }
}

/// Power in watts. No GPU that is awake draws none: 0 is how the second die of an MI200 says that the first
/// one's power is of both, and other chips that they cannot tell.
fn watts(files: &mut Files<'_>, file: &Path) -> Option<f64> {
    let microwatts = files.number(file)?;
    let watts = microwatts as f64 / 1e6;
    match microwatts {
        0 => None,
        ..0 => {
            files.reject("negative");
            None
        }
        _ if watts > MAX_GPU_WATTS => {
            files.reject("implausible");
            None
        }
        _ => Some(watts),
    }
}

/// What changes slowly.
fn figures(card: &Card, files: &mut Files<'_>, reading: GpuReading) -> GpuReading {
    let hwmon = |name: &str| card.hwmon.join(name);
    let device = |name: &str| card.device.join(name);
    let mut limit = |name: &str| watts(files, &hwmon(name));
    let limits = match card.driver {
        Driver::Amdgpu => PowerLimits {
            enforced: limit("power1_cap"),
            default: limit("power1_cap_default"),
            min: limit("power1_cap_min"),
            max: limit("power1_cap_max"),
        },
        // A limit of 0 is one that is turned off.
        Driver::I915 | Driver::Xe => PowerLimits {
            enforced: limit("power1_max").or_else(|| limit("power2_max")),
            default: limit("power1_rated_max").or_else(|| limit("power2_rated_max")),
            ..PowerLimits::default()
        },
    };
    let hertz = |mhz: i64| mhz.saturating_mul(1_000_000);
    let clock = match card.driver {
        Driver::Amdgpu => files.number(&hwmon("freq1_input")),
        Driver::I915 => files.number(&card.drm.join("gt_act_freq_mhz")).map(hertz),
        Driver::Xe => files.number(&device("tile0/gt0/freq0/act_freq")).map(hertz),
    };
    // AMD's edge, or where there is none its hottest place; xe's package, i915's only one.
    let temperatures = match card.driver {
        Driver::Amdgpu => ["temp1_input", "temp2_input"],
        Driver::I915 | Driver::Xe => ["temp2_input", "temp1_input"],
    };
    let celsius = temperatures.iter().find_map(|name| files.number(&hwmon(name)));
    let percent = files.number(&device("gpu_busy_percent"));
    let memory =
        (files.counter(&device("mem_info_vram_used")), files.counter(&device("mem_info_vram_total")));
    GpuReading {
        up: true,
        limits,
        utilization: percent.filter(|p| (0..=100).contains(p)).map(|percent| percent as f64 / 100.0),
        memory: match memory {
            (Some(used_bytes), Some(size_bytes)) if used_bytes <= size_bytes && size_bytes > 0 => {
                Some(Usage { used_bytes, size_bytes })
            }
            _ => None,
        },
        temperature_celsius: celsius.filter(|m| (1..=MAX_MILLICELSIUS).contains(m)).map(|m| m as f64 / 1e3),
        sm_clock_hertz: clock.filter(|hertz| (0..=MAX_HERTZ).contains(hertz)).map(|hertz| hertz as f64),
        ..reading
    }
}
