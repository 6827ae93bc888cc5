//! What is known at the end of a window: immutable, the one thing that exporters read.
//!
//! Invariant: a snapshot is published only after its ledger was written, so that no exporter ever shows
//! a sum that a restart would take back; and after it was synced, while the disk keeps up and can be
//! written, so that a power cut takes none back either.

mod gpus;
mod sensors;
pub mod series;
pub mod units;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wattmill_protocol::catalogue as cat;
use wattmill_protocol::{Energy, Source};

use crate::config::Config;
use crate::counter::GapReason;
use crate::device::gpu::GpuReading;
use crate::device::host::HostReading;
use crate::device::host::capacity::CapacityReading;
use crate::device::host::stat::MODES;
use crate::device::sensor::SensorReading;
use crate::device::{BackendKind, Class, MeterId, Scope};
use crate::identity::Identity;
use crate::ledger::Consumer;
use crate::meter::OwnCost;

/// Precision of the useful FLOPs: what the kernel computes in.
pub const PRECISION: &str = "f32";

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Who it is.
    pub identity: Identity,
    /// Its name for people.
    pub name: String,
    /// Model of the host's CPU.
    pub cpu_model: String,
    /// The host's share that it accounts for, in parts per million.
    pub host_fraction_ppm: u32,
    /// When this process began, wall clock.
    pub process_started_unix_nanos: u64,
}

impl NodeFacts {
    /// The facts of the node that a configuration describes.
    pub fn new(config: &Config, identity: Identity) -> Self {
        Self {
            identity,
            name: config.name.clone(),
            cpu_model: crate::device::estimate::CpuModel::read(&config.procfs_root).name,
            host_fraction_ppm: config.host_fraction_ppm,
            process_started_unix_nanos: crate::clock::unix_nanos(),
        }
    }
}

/// An energy sum, and its mean power over the last window where that is known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sum {
    /// Energy so far.
    pub microjoules: u64,
    /// Mean power over the last window.
    pub watts: Option<f64>,
}

/// A backend's state.
#[derive(Clone, PartialEq, Debug)]
pub struct BackendState {
    /// Which one.
    pub kind: BackendKind,
    /// Whether it answers in time.
    pub up: bool,
    /// How long its newest answer took.
    pub duration: Duration,
    /// Failed readings by reason.
    pub errors: BTreeMap<&'static str, u64>,
}

/// Telemetry that waits for the collector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpoolFigures {
    /// Frames that wait.
    pub frames: u64,
    /// Frames that were dropped.
    pub dropped: u64,
}

/// What is known at the end of a window.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The node.
    pub node: Arc<NodeFacts>,
    /// When the window ended, wall clock.
    pub unix_nanos: u64,
    /// Since when the ledger counts, wall clock.
    pub started_unix_nanos: u64,
    /// Windows closed by this process.
    pub windows: u64,
    /// Sums by meter.
    pub meters: BTreeMap<MeterId, Sum>,
    /// Sums by scope and source.
    pub scopes: BTreeMap<(Scope, Source), Sum>,
    /// Sums by consumer.
    pub attributed: BTreeMap<Consumer, Energy>,
    /// Sums of units; empty where none was ever told apart.
    pub units: Vec<units::UnitSum>,
    /// GPUs; those that are lost are not `up`.
    pub gpus: Vec<GpuReading>,
    /// (Integrated - counter) / counter, by GPU.
    pub divergence: BTreeMap<String, f64>,
    /// Sensors that count for no scope.
    pub sensors: Vec<SensorReading>,
    /// The host's figures.
    pub host: Option<Arc<HostReading>>,
    /// What its storage and network can hold and move.
    pub capacity: Option<Arc<CapacityReading>>,
    /// Share of the host's CPU time that was not idle, over the window.
    pub cpu_utilization: Option<f64>,
    /// What the node's results must agree in with others'; empty until a worker said so.
    pub numerics: String,
    /// Model FLOPs of committed work.
    pub useful_flops: u64,
    /// Peak FLOP/s by device and precision.
    pub peak_flops: BTreeMap<(String, String), f64>,
    /// Backends that have something to read, or should.
    pub backends: Vec<BackendState>,
    /// Gaps by device and reason.
    pub gaps: BTreeMap<(String, GapReason), u64>,
    /// Failed writes of the ledger by reason.
    pub ledger_errors: BTreeMap<&'static str, u64>,
    /// Telemetry that waits.
    pub spool: SpoolFigures,
    /// What the agent itself costs.
    pub own: OwnCost,
}

/// Tells every value of a snapshot, in the catalogue's terms: the metric, a value for each of its labels, its value.
pub fn visit(snapshot: &Snapshot, mut each: impl FnMut(&'static cat::Metric, &[&str], f64)) {
    let mut points = Points(&mut each);
    node(&mut points, snapshot);
    energy(&mut points, snapshot);
    units::add(&mut points, snapshot);
    for gpu in &snapshot.gpus {
        gpus::add(&mut points, gpu, snapshot);
    }
    sensors::add(&mut points, snapshot);
    if let Some(host) = &snapshot.host {
        self::host(&mut points, host);
    }
    if let Some(capacity) = &snapshot.capacity {
        self::capacity(&mut points, capacity);
    }
    agent(&mut points, snapshot);
}

struct Points<'a>(&'a mut dyn FnMut(&'static cat::Metric, &[&str], f64));

impl Points<'_> {
    fn add(&mut self, metric: &'static cat::Metric, labels: &[&str], value: f64) {
        (self.0)(metric, labels, value);
    }

    fn add_some(&mut self, metric: &'static cat::Metric, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.add(metric, labels, value);
        }
    }
}

fn joules(microjoules: u64) -> f64 {
    microjoules as f64 / 1e6
}

fn node(points: &mut Points<'_>, snapshot: &Snapshot) {
    let NodeFacts { identity, name, cpu_model, .. } = &*snapshot.node;
    let labels =
        [identity.node.as_str(), name, &identity.machine_id, cpu_model, &snapshot.numerics, crate::VERSION];
    points.add(&cat::NODE_INFO, &labels, 1.0);
    points.add(&cat::USEFUL_FLOPS, &[PRECISION], snapshot.useful_flops as f64);
    for ((device, precision), flops) in &snapshot.peak_flops {
        points.add(&cat::DEVICE_PEAK_FLOPS, &[device, precision], *flops);
    }
}

fn energy(points: &mut Points<'_>, snapshot: &Snapshot) {
    for (meter, sum) in &snapshot.meters {
        let labels = [meter.device.as_str(), meter.source.as_str()];
        match meter.class {
            Class::Zone => {
                points.add(&cat::CPU_ENERGY_JOULES, &labels, joules(sum.microjoules));
                points.add_some(&cat::CPU_POWER_WATTS, &labels, sum.watts);
            }
            Class::Gpu => points.add(&cat::GPU_ENERGY_JOULES, &labels, joules(sum.microjoules)),
            Class::Module => points.add(&cat::GPU_MODULE_ENERGY_JOULES, &labels, joules(sum.microjoules)),
            // Under labels of their own: see `sensors`.
            Class::Sensor => {}
        }
    }
    for ((scope, source), sum) in &snapshot.scopes {
        let labels = [scope.as_str(), source.as_str()];
        points.add(&cat::NODE_ENERGY_JOULES, &labels, joules(sum.microjoules));
        points.add_some(&cat::NODE_POWER_WATTS, &labels, sum.watts);
    }
    for (consumer, energy) in &snapshot.attributed {
        // Each source that the node has, so that a consumer's series begins at zero.
        for source in Source::ALL {
            if snapshot.scopes.keys().any(|(_, s)| *s == source) {
                let labels = [consumer.as_str(), source.as_str()];
                points.add(&cat::NODE_ATTRIBUTED_ENERGY_JOULES, &labels, joules(energy.get(source)));
            }
        }
    }
}

fn host(points: &mut Points<'_>, host: &HostReading) {
    if let Some(memory) = host.memory {
        points.add(&cat::HOST_MEMORY_USED, &[], memory.used_bytes as f64);
        points.add(&cat::HOST_MEMORY_SIZE, &[], memory.size_bytes as f64);
    }
    for (mode, nanos) in MODES.iter().zip(host.cpu_modes) {
        points.add(&cat::HOST_CPU_SECONDS, &[mode], nanos as f64 / 1e9);
    }
    for ((resource, share), micros) in &host.pressure {
        points.add(&cat::HOST_PRESSURE_SECONDS, &[resource, share], *micros as f64 / 1e6);
    }
    for (disk, (read, written)) in &host.disks {
        points.add(&cat::HOST_DISK_READ, &[disk], *read as f64);
        points.add(&cat::HOST_DISK_WRITTEN, &[disk], *written as f64);
    }
    for (interface, (received, sent)) in &host.interfaces {
        points.add(&cat::HOST_NETWORK_RECEIVE, &[interface], *received as f64);
        points.add(&cat::HOST_NETWORK_TRANSMIT, &[interface], *sent as f64);
    }
}

fn capacity(points: &mut Points<'_>, capacity: &CapacityReading) {
    let CapacityReading { filesystems, bandwidth } = capacity;
    points.add_some(&cat::HOST_STORAGE_BANDWIDTH, &["read"], bandwidth.storage_read);
    points.add_some(&cat::HOST_STORAGE_BANDWIDTH, &["write"], bandwidth.storage_write);
    points.add_some(&cat::HOST_NETWORK_BANDWIDTH, &[], bandwidth.network);
    for (mount, usage) in filesystems {
        points.add(&cat::HOST_FILESYSTEM_USED, &[mount], usage.used_bytes as f64);
        points.add(&cat::HOST_FILESYSTEM_SIZE, &[mount], usage.size_bytes as f64);
    }
}

fn agent(points: &mut Points<'_>, snapshot: &Snapshot) {
    points.add_some(&cat::HOST_CPU_UTILIZATION, &[], snapshot.cpu_utilization);
    for backend in &snapshot.backends {
        let name = backend.kind.as_str();
        points.add(&cat::AGENT_BACKEND_UP, &[name], f64::from(u8::from(backend.up)));
        points.add(&cat::AGENT_SAMPLE_DURATION, &[name], backend.duration.as_secs_f64());
        for (reason, count) in &backend.errors {
            points.add(&cat::AGENT_SAMPLE_ERRORS, &[name, reason], *count as f64);
        }
    }
    for ((device, reason), count) in &snapshot.gaps {
        points.add(&cat::AGENT_GAPS, &[device, reason.as_str()], *count as f64);
    }
    for (reason, count) in &snapshot.ledger_errors {
        points.add(&cat::AGENT_LEDGER_ERRORS, &[reason], *count as f64);
    }
    points.add(&cat::AGENT_SPOOL_FRAMES, &[], snapshot.spool.frames as f64);
    points.add(&cat::AGENT_SPOOL_DROPPED, &[], snapshot.spool.dropped as f64);
    let OwnCost { cpu_nanos, resident_bytes, power_watts } = snapshot.own;
    points.add_some(&cat::AGENT_CPU_SECONDS, &[], cpu_nanos.map(|nanos| nanos as f64 / 1e9));
    points.add_some(&cat::AGENT_RESIDENT_MEMORY, &[], resident_bytes.map(|bytes| bytes as f64));
    points.add_some(&cat::AGENT_POWER_WATTS, &[], power_watts);
    points.add(&cat::AGENT_BUILD_INFO, &[crate::VERSION], 1.0);
}

/// Fills snapshots for the tests of exporters.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::sensor::SensorId;
    use wattmill_protocol::exposition::{self, Point};

    pub(crate) fn sample() -> Snapshot {
        let identity = Identity {
            node: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".parse().unwrap(),
            machine_id: "3d1219c7c4c5404aaa1f6d2a48adfda4".to_owned(),
            boot_id: None,
        };
        let meter = |class, device: &str, source| MeterId { class, device: device.to_owned(), source };
        let sum = |microjoules, watts| Sum { microjoules, watts };
        let lost = GpuReading { uuid: "GPU-lost".to_owned(), ..GpuReading::default() };
        let gpu = GpuReading {
            uuid: "GPU-1".to_owned(),
            index: "0".to_owned(),
            model: "NVIDIA H100".to_owned(),
            up: true,
            utilization: Some(0.5),
            ..GpuReading::default()
        };
        Snapshot {
            node: Arc::new(NodeFacts {
                identity,
                name: "node-a".to_owned(),
                cpu_model: "AMD EPYC".to_owned(),
                host_fraction_ppm: 500_000,
                process_started_unix_nanos: 2_000,
            }),
            unix_nanos: 5_000,
            started_unix_nanos: 1_000,
            windows: 3,
            meters: BTreeMap::from([
                (meter(Class::Zone, "package-0", Source::Counter), sum(2_500_000, Some(2.5))),
                (meter(Class::Gpu, "GPU-1", Source::Counter), sum(7_000_000, Some(70.0))),
                (meter(Class::Gpu, "GPU-1", Source::Integrated), sum(7_100_000, Some(71.0))),
                (meter(Class::Gpu, "GPU-lost", Source::Counter), sum(9_000_000, None)),
                (meter(Class::Sensor, "dcmi/system", Source::Integrated), sum(41_200_000, None)),
                (meter(Class::Sensor, "ltc2946@1-006a/energy1", Source::Counter), sum(3_000_000, Some(3.0))),
            ]),
            scopes: BTreeMap::from([
                ((Scope::Cpu, Source::Counter), sum(1_250_000, Some(1.25))),
                ((Scope::Gpu, Source::Counter), sum(16_000_000, Some(70.0))),
            ]),
            attributed: BTreeMap::from([(Consumer::Idle, Energy::of(Source::Counter, 17_250_000))]),
            units: Vec::new(),
            gpus: vec![gpu, lost],
            divergence: BTreeMap::from([("GPU-1".to_owned(), 0.01)]),
            sensors: vec![SensorReading { id: SensorId::of_device("dcmi/system"), watts: Some(412.0) }],
            host: Some(Arc::new(HostReading {
                boot_unix_seconds: 1,
                disks: BTreeMap::from([("sda".to_owned(), (512, 1_024))]),
                ..HostReading::default()
            })),
            capacity: None,
            cpu_utilization: Some(0.25),
            numerics: String::new(),
            useful_flops: 12,
            peak_flops: BTreeMap::from([(("cpu".to_owned(), PRECISION.to_owned()), 1e12)]),
            backends: vec![BackendState {
                kind: BackendKind::Rapl,
                up: true,
                duration: Duration::from_micros(250),
                errors: BTreeMap::from([("permission", 1)]),
            }],
            gaps: BTreeMap::from([(("package-0".to_owned(), GapReason::Reset), 2)]),
            ledger_errors: BTreeMap::new(),
            spool: SpoolFigures { frames: 4, dropped: 0 },
            own: OwnCost {
                cpu_nanos: Some(1_500_000_000),
                resident_bytes: Some(9 << 20),
                power_watts: Some(0.125),
            },
        }
    }

    /// Series and values as on the page, without headers.
    pub(super) fn shown(add: impl FnOnce(&mut Points<'_>)) -> String {
        let mut shown = Vec::new();
        add(&mut Points(&mut |metric, labels, value| shown.push(Point::new(metric, labels, value))));
        let text = exposition::text(&shown);
        text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_text_shows_everything_once() {
        let text =
            shown(|points| visit(&sample(), |metric, labels, value| points.add(metric, labels, value)));
        insta::assert_snapshot!(text);
        let values: Vec<&str> = text.lines().collect();
        let mut series: Vec<&str> =
            values.iter().filter_map(|v| v.rsplit_once(' ')).map(|(s, _)| s).collect();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), values.len());
    }

    #[test]
    fn a_lost_gpu_keeps_its_energy_and_shows_no_other_value() {
        let mut shown = Vec::new();
        visit(&sample(), |metric, labels, value| {
            if labels.contains(&"GPU-lost") {
                shown.push((metric.name, value));
            }
        });
        let lost = ("wattmill_gpu_lost_info", 1.0);
        assert_eq!(shown, [("wattmill_gpu_energy_joules_total", 9.0), ("wattmill_gpu_up", 0.0), lost]);
    }
}
