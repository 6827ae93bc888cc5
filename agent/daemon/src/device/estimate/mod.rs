//! Modelled energy, for hosts that nothing measures: a VM, or counters that may not be read.
//!
//! Invariant: silent while RAPL measures this host; never called anything but an estimate. It stands for all
//! of the host but its GPUs, and counts under the scope `cpu`, which it has to itself.

pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wattmill_protocol::Source;

use super::file::Reader;
use super::host::stat::{CpuTime, SharedCpuTime, Stat};
use super::rapl::Measured;
use super::{Answer, Class, EnergyReading, Epoch, MeterId, Reading, Scope};
use crate::clock;
use crate::config::{Config, EstimateWatts, MAX_INTERVAL};
use crate::counter::Limits;
use table::PowerModel;

/// Name of the zone that the model stands for.
pub const ZONE: &str = "host";
/// Longest time between two readings that the model speaks for: several of the longest windows, so that some
/// readings may fail. The model is a line, so that a span's mean utilisation gives its joules exactly; what bounds
/// it is that a host that was not read for longer was stopped or starved, and what it drew then is not known.
const MAX_SPAN: Duration = Duration::from_secs(60);
const _: () = assert!(MAX_SPAN.as_secs() > 5 * MAX_INTERVAL.as_secs());

/// Watts as a function of CPU utilisation.
#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    /// The two ends.
    pub power: PowerModel,
    /// Where they come from, for people.
    pub origin: String,
}

impl Model {
    /// The configured watts, or else those of measured servers with this class of CPU.
    pub fn new(configured: Option<EstimateWatts>, procfs_root: &Path) -> Self {
        match configured {
            Some(watts) => Self { power: power(watts), origin: "configured".to_owned() },
            None => Self::assumed(&CpuModel::read(procfs_root)),
        }
    }

    fn assumed(cpu: &CpuModel) -> Self {
        let power = table::lookup(&cpu.name, &cpu.vendor, cpu.threads.max(1));
        let servers = match power.servers {
            0 => "of which none was measured".to_owned(),
            servers => format!("from {servers} measured servers"),
        };
        let origin = format!(
            "{} threads of {}, as class {}, {servers}, give or take {:.0} %",
            cpu.threads,
            cpu.name,
            power.class,
            power.relative_uncertainty * 100.0
        );
        Self { power, origin }
    }

    fn watts(&self, utilization: f64) -> f64 {
        table::watts(&self.power, utilization)
    }
}

/// Somebody measured this very host.
fn power(EstimateWatts { idle_watts, full_watts }: EstimateWatts) -> PowerModel {
    PowerModel { idle_watts, full_watts, class: "configured", servers: 1, relative_uncertainty: 0.0 }
}

/// What `/proc/cpuinfo` says of the CPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuModel {
    /// `model name`, or `unknown CPU`.
    pub name: String,
    /// `vendor_id`.
    pub vendor: String,
    /// Hardware threads.
    pub threads: u32,
}

impl CpuModel {
    /// Reads `cpuinfo` under `procfs_root`; what it does not tell stays unknown.
    pub fn read(procfs_root: &Path) -> Self {
        let text = fs::read_to_string(procfs_root.join("cpuinfo")).unwrap_or_default();
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(k, _)| k.trim() == key).map(|(_, value)| value.trim().to_owned())
        };
        let threads = text.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            name: value("model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            vendor: value("vendor_id").unwrap_or_default(),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
        }
    }
}

/// The backend.
pub struct Estimate {
    procfs_root: PathBuf,
    measured: Measured,
    cpu_time: SharedCpuTime,
    model: Model,
    accumulated: Accumulated,
    announced: bool,
    reader: Reader,
}

/// Joules so far. Apart from the backend, so that its time is an argument.
#[derive(Default)]
struct Accumulated {
    last: Option<(CpuTime, Duration)>,
    microjoules: u64,
    fraction: f64,
    unread: u64,
}

impl Accumulated {
    fn add(&mut self, model: &Model, cpu: CpuTime, now: Duration) {
        let Some((last_cpu, last)) = self.last.replace((cpu, now)) else { return };
        let elapsed = now.saturating_sub(last);
        if elapsed > MAX_SPAN {
            self.unread += 1;
            return;
        }
        // Between two ticks of the kernel's clock nothing is known to have run.
        let utilization = cpu.since(last_cpu).utilization().unwrap_or(0.0);
        let exact = model.watts(utilization) * elapsed.as_secs_f64() * 1e6 + self.fraction;
        let whole = exact.floor().max(0.0);
        self.fraction = exact - whole;
        // 1 MW over a minute is 6e13 µJ: it fits.
        self.microjoules += whole as u64;
    }
}

impl Estimate {
    /// A model for the host of this configuration, from the CPU time that the host's backend read before.
    pub fn new(config: &Config, measured: Measured, cpu_time: SharedCpuTime) -> Self {
        let model = Model::new(config.estimate, &config.procfs_root);
        let accumulated = Accumulated::default();
        let reader = Reader::default();
        Self {
            procfs_root: config.procfs_root.clone(),
            measured,
            cpu_time,
            model,
            accumulated,
            announced: false,
            reader,
        }
    }

    pub(super) fn read(&mut self) -> Answer {
        if self.measured.get() {
            self.accumulated.last = None;
            return Answer::Absent;
        }
        let read = || Stat::read(&self.procfs_root, &mut self.reader).map(|stat| stat.host());
        match self.cpu_time.take().map_or_else(read, Ok) {
            Ok(cpu_time) => self.reading(cpu_time, clock::monotonic()),
            Err(error) => Answer::Failed(error),
        }
    }

    fn reading(&mut self, cpu_time: CpuTime, now: Duration) -> Answer {
        if !std::mem::replace(&mut self.announced, true) {
            tracing::info!(
                idle_watts = self.model.power.idle_watts,
                full_watts = self.model.power.full_watts,
                origin = self.model.origin,
                "nothing measures this host's CPU: its energy is an estimate"
            );
        }
        self.accumulated.add(&self.model, cpu_time, now);
        let energy = EnergyReading {
            meter: MeterId { class: Class::Zone, device: ZONE.to_owned(), source: Source::Estimate },
            scope: Some(Scope::Cpu),
            raw: self.accumulated.microjoules,
            microjoules_per_count: 1,
            limits: Limits { modulus: None, max_per_second: f64::INFINITY },
            epoch: Epoch::Process,
            at: now,
            unread: self.accumulated.unread,
        };
        Answer::Reading(Reading { energy: vec![energy], ..Reading::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        of(10.0, 30.0)
    }

    fn of(idle_watts: f64, full_watts: f64) -> Model {
        Model { power: power(EstimateWatts { idle_watts, full_watts }), origin: String::new() }
    }

    fn cpu(busy: u64, idle: u64) -> CpuTime {
        CpuTime { busy_nanos: busy, idle_nanos: idle }
    }

    #[test]
    fn joules_follow_utilisation() {
        let mut sum = Accumulated::default();
        let seconds = Duration::from_secs;
        sum.add(&model(), cpu(0, 0), seconds(5));
        assert_eq!(sum.microjoules, 0, "the first reading has no joules");
        sum.add(&model(), cpu(50, 50), seconds(6));
        assert_eq!(sum.microjoules, 20_000_000);
        sum.add(&model(), cpu(50, 150), seconds(8));
        assert_eq!(sum.microjoules, 40_000_000);
        // The longest window, and a bit, as windows come.
        let longest = MAX_INTERVAL + Duration::from_millis(125);
        sum.add(&model(), cpu(50, 250), seconds(8) + longest);
        assert_eq!((sum.microjoules, sum.unread), (141_250_000, 0));
        sum.add(&model(), cpu(99, 299), seconds(500));
        assert_eq!((sum.microjoules, sum.unread), (141_250_000, 1), "a long silence is a gap");
    }

    #[test]
    fn fractions_of_a_microjoule_are_kept() {
        let mut sum = Accumulated::default();
        let tiny = of(0.1, 0.1);
        for i in 0..=1_000u64 {
            sum.add(&tiny, CpuTime::default(), Duration::from_micros(i * 3));
        }
        assert!((299..=300).contains(&sum.microjoules), "{}", sum.microjoules);
    }

    #[test]
    fn a_host_that_nobody_measured_gets_its_class() {
        let root = tempfile::tempdir().unwrap();
        let text =
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763 64-Core Processor\n";
        fs::write(root.path().join("cpuinfo"), text).unwrap();
        let model = Model::new(None, root.path());
        assert!(model.origin.contains("amd-epyc-milan"), "{}", model.origin);
        assert!(0.0 < model.watts(0.0) && model.watts(0.0) < model.watts(1.0));
    }

    #[test]
    fn the_cpu_is_read_from_cpuinfo() {
        let root = tempfile::tempdir().unwrap();
        let text =
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763\n\nprocessor\t: 1\n";
        fs::write(root.path().join("cpuinfo"), text).unwrap();
        let cpu = CpuModel::read(root.path());
        assert_eq!(
            (cpu.name.as_str(), cpu.vendor.as_str(), cpu.threads),
            ("AMD EPYC 7763", "AuthenticAMD", 2)
        );
        assert_eq!(CpuModel::read(Path::new("/nonexistent")).name, "unknown CPU");
    }
}
