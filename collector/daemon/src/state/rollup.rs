//! The cluster's figures at one instant, by a plain scan over the nodes.
//!
//! Nothing is aggregated incrementally: a scan over thousands of nodes takes a millisecond, and cannot
//! drift from what the nodes said.
//!
//! Invariants: power, utilisation and MFU are of nodes with fresh telemetry only, and `coverage_ratio`
//! says what share of the known ones that is; energy is of all nodes and never goes down; what a host
//! shares counts once; a figure with an unknown input is absent.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::catalogue as metrics;
use wattmill_protocol::exposition::Point;
use wattmill_protocol::{Energy, NodeId, Source};
use wattmill_scheduler::efficiency;

use super::State;
use super::frame::NANOS_PER_SECOND;
use super::moved::Op;
use super::nodes::{GPU_SCOPE, Node};
use super::ring::slot_of;

/// Telemetry is fresh while the newest sample is at most as old as so many of its node's windows.
const FRESH_WINDOWS: u64 = 5;
/// Nor does it get stale sooner or later than that: what a node with the shortest windows may be late, and how long
/// one is believed that came back after a pause.
const FRESH_NANOS: std::ops::RangeInclusive<u64> = 5 * NANOS_PER_SECOND..=60 * NANOS_PER_SECOND;

/// Slots that MFU and FLOP/J are taken over: the one under way and five before it, 50 to 60 s.
const WINDOW_SLOTS: u64 = 6;

/// The precision of a device that never did useful work, where nobody else did either.
const DEFAULT_PRECISION: &str = "f32";

/// The cluster's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rollup {
    /// When.
    pub(crate) unix_nanos: u64,
    /// Nodes that are known and not retired.
    pub(crate) known_nodes: usize,
    /// Those with fresh telemetry.
    pub(crate) fresh_nodes: usize,
    /// Fresh ÷ known.
    pub(crate) coverage_ratio: Option<f64>,
    /// Power of the fresh nodes.
    pub(crate) power_watts: Option<f64>,
    /// Energy of all nodes since each joined, by scope; scopes do not overlap.
    pub(crate) energy: BTreeMap<Box<str>, Energy>,
    /// Scopes and sources that any node meters, be it zero joules so far.
    pub(crate) metered: BTreeSet<(Box<str>, Source)>,
    /// η of the last minute.
    pub(crate) mfu_ratio: Option<f64>,
    /// Mean utilisation that the compute devices report.
    pub(crate) device_utilization_ratio: Option<f64>,
    /// The hosts' filesystems.
    pub(crate) storage: Storage,
    /// σ.
    pub(crate) storage_capacity_ratio: Option<f64>,
    /// η·σ.
    pub(crate) objective_ratio: Option<f64>,
    /// Useful FLOPs ÷ joules of the last minute.
    pub(crate) flops_per_joule: Option<f64>,
    /// Σ peaks of the fresh nodes; absent where one is unknown.
    pub(crate) peak_flops: Option<f64>,
    /// The nodes, by identity.
    pub(crate) nodes: Vec<NodeRollup>,
}

/// Storage of all hosts with fresh telemetry, each host's once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Storage {
    /// Hosts with a filesystem.
    pub(crate) hosts: u64,
    /// Bytes used.
    pub(crate) used_bytes: f64,
    /// Bytes there are.
    pub(crate) size_bytes: f64,
    /// Bytes that storage nodes moved in the last minute ÷ what they could have, by [`Op`].
    pub(crate) bandwidth_ratio: [Option<f64>; Op::ALL.len()],
    /// Bytes per second that can be read from all storage nodes; absent where there is none.
    pub(crate) read_bytes_per_second: Option<f64>,
    /// Bytes per second that all hosts' networks can move; absent where one does not say.
    pub(crate) network_bytes_per_second: Option<f64>,
}

/// A node's figures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeRollup {
    /// Its identity.
    pub(crate) id: NodeId,
    /// Its name.
    pub(crate) name: Box<str>,
    /// Its host.
    pub(crate) machine_id: Box<str>,
    /// Its share of its host.
    pub(crate) host_fraction: f64,
    /// Retired nodes are listed, but not expected.
    pub(crate) retired: bool,
    /// Whether its telemetry is fresh.
    pub(crate) fresh: bool,
    /// Age of its newest sample; absent before the first.
    pub(crate) age_seconds: Option<f64>,
    /// Its power as it last pushed it, everything that it meters included.
    pub(crate) power_watts: Option<f64>,
    /// Its energy by scope, everything that it meters included.
    pub(crate) energy: BTreeMap<Box<str>, Energy>,
    /// Useful FLOPs since it joined.
    pub(crate) useful_flops: f64,
    /// Σ peaks of its devices; absent where one is unknown.
    pub(crate) peak_flops: Option<f64>,
    /// Its GPUs.
    pub(crate) gpus: Vec<GpuRollup>,
    /// Its host's scopes are left out of the cluster's figures: earlier nodes have the whole host.
    pub(crate) host_excluded: bool,
    /// GPUs that are left out of the cluster's figures: an earlier node meters them.
    pub(crate) foreign_gpus: Vec<Box<str>>,
}

/// A GPU's figures as they were last pushed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GpuRollup {
    /// Its UUID.
    pub(crate) uuid: Box<str>,
    /// Whether it answers; a GPU whose node does not say does where it shows power.
    pub(crate) up: bool,
    /// Mean power.
    pub(crate) power_watts: Option<f64>,
    /// Its counter, by the best source.
    pub(crate) energy_joules: Option<f64>,
    /// Share of time in which a kernel ran.
    pub(crate) utilization_ratio: Option<f64>,
    /// Processes on it that are not the node's; absent where that is not known.
    pub(crate) foreign_processes: Option<u32>,
    /// Whether its node trains on it.
    pub(crate) trains: bool,
}

impl Rollup {
    /// A node's figures: they are in the order of identities.
    pub(crate) fn node(&self, id: &NodeId) -> Option<&NodeRollup> {
        self.nodes.binary_search_by(|node| node.id.cmp(id)).ok().map(|index| &self.nodes[index])
    }
}

/// Joules, FLOPs and covered seconds of a node's last minute.
struct Window {
    joules: f64,
    flops: f64,
    seconds: f64,
}

impl State {
    /// See [`Telemetry::rollup`](super::Telemetry::rollup).
    pub(crate) fn rollup(&self, now_unix_nanos: u64) -> Rollup {
        let known = self.nodes.values().filter(|node| !node.retired);
        let fresh: Vec<&Node> = self.nodes.values().filter(|node| node.is_fresh(now_unix_nanos)).collect();
        let known_nodes = known.count();
        let mut rollup = Rollup { unix_nanos: now_unix_nanos, known_nodes, ..Rollup::default() };
        rollup.fresh_nodes = fresh.len();
        rollup.coverage_ratio = (known_nodes > 0).then(|| fresh.len() as f64 / known_nodes as f64);

        let watts = fresh.iter().filter_map(|node| node.counted_watts());
        rollup.power_watts = watts.fold(None, |sum, watts| Some(sum.unwrap_or(0.0) + watts));
        for node in self.nodes.values() {
            for (scope, by_source) in &node.energy {
                let there = Source::ALL.into_iter().zip(by_source).filter(|(_, total)| total.is_some());
                rollup.metered.extend(there.map(|(source, _)| (scope.clone(), source)));
                let energy = node.counted_energy_of(scope);
                *rollup.energy.entry(scope.clone()).or_insert(Energy::ZERO) += energy;
            }
        }

        let dominant = self.dominant_precision();
        add_compute(&mut rollup, &fresh, dominant);
        rollup.device_utilization_ratio = device_utilization(&fresh);
        rollup.storage = storage(&fresh);
        let Storage { used_bytes, size_bytes, .. } = rollup.storage;
        rollup.storage_capacity_ratio = efficiency::storage_capacity_ratio(used_bytes, size_bytes);
        rollup.objective_ratio = efficiency::objective_ratio(rollup.mfu_ratio, rollup.storage_capacity_ratio);
        rollup.nodes = self.nodes.values().map(|node| node.rollup(now_unix_nanos, dominant)).collect();
        rollup
    }

    /// The precision that most nodes last worked in: idle nodes are measured against their peak at it.
    pub(super) fn dominant_precision(&self) -> &str {
        let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
        for precision in self.nodes.values().filter(|n| !n.retired).filter_map(|n| n.precision.as_deref()) {
            *nodes.entry(precision).or_default() += 1;
        }
        nodes
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map_or(DEFAULT_PRECISION, |(precision, _)| precision)
    }
}

impl Node {
    fn is_fresh(&self, now_unix_nanos: u64) -> bool {
        let windows = self.window_nanos.saturating_mul(FRESH_WINDOWS);
        let fresh = |age| age <= windows.clamp(*FRESH_NANOS.start(), *FRESH_NANOS.end());
        !self.retired && self.age_nanos(now_unix_nanos).is_some_and(fresh)
    }

    fn window(&self) -> Window {
        let last = slot_of(self.newest_unix_nanos);
        let (joules, flops, seconds) = self.ring.sum(last.saturating_sub(WINDOW_SLOTS - 1), last);
        Window { joules, flops, seconds }
    }

    /// Its watts as far as they count in the cluster's roll-up.
    fn counted_watts(&self) -> Option<f64> {
        let counted = |scope: &str| scope == GPU_SCOPE || !self.verdict.host_excluded;
        let foreign = self.verdict.foreign_gpus.iter();
        let foreign: f64 = foreign.filter_map(|uuid| self.latest.gpus.get(uuid)?.power_watts).sum();
        let gpus = self.latest.watts(|scope| scope == GPU_SCOPE).map(|watts| (watts - foreign).max(0.0));
        let host = self.latest.watts(|scope| scope != GPU_SCOPE && counted(scope));
        match (gpus, host) {
            (None, None) => None,
            (gpus, host) => Some(gpus.unwrap_or(0.0) + host.unwrap_or(0.0)),
        }
    }

    /// Σ dense peak FLOP/s of its devices that count, at the precision that it works in, or else at
    /// `dominant`. Absent where a device's peak is unknown.
    pub(super) fn peak_flops(&self, dominant: &str) -> Option<f64> {
        let precision = self.precision.as_deref().unwrap_or(dominant);
        let (mut known, mut gpus_known, mut sum) = (false, 0, 0.0);
        for (device, gpu, peak) in self.latest.peaks(precision) {
            known = true;
            gpus_known += usize::from(gpu);
            let counts =
                if gpu { !self.verdict.foreign_gpus.contains(device) } else { !self.verdict.host_excluded };
            sum += if counts { peak } else { 0.0 };
        }
        let complete = gpus_known == 0 || gpus_known == self.latest.gpus.len();
        (known && complete).then_some(sum)
    }

    fn rollup(&self, now_unix_nanos: u64, dominant: &str) -> NodeRollup {
        let energy = self.energy.keys().map(|scope| (scope.clone(), self.energy_of(scope)));
        NodeRollup {
            id: self.id.clone(),
            name: self.name.clone(),
            machine_id: self.machine_id.clone(),
            host_fraction: self.host_fraction,
            retired: self.retired,
            fresh: self.is_fresh(now_unix_nanos),
            age_seconds: self.age_nanos(now_unix_nanos).map(|age| age as f64 / NANOS_PER_SECOND as f64),
            power_watts: self.latest.watts(|_| true),
            energy: energy.collect(),
            useful_flops: self.useful_flops(),
            peak_flops: self.peak_flops(dominant),
            gpus: self.gpus(),
            host_excluded: self.verdict.host_excluded,
            foreign_gpus: self.verdict.foreign_gpus.iter().cloned().collect(),
        }
    }

    fn gpus(&self) -> Vec<GpuRollup> {
        let gpus = self.latest.gpus.iter().map(|(uuid, gpu)| {
            let energy = self.gpu_energy.get(uuid).and_then(|by_source| by_source.iter().flatten().next());
            GpuRollup {
                uuid: uuid.clone(),
                up: gpu.up.unwrap_or(gpu.power_watts.is_some()),
                power_watts: gpu.power_watts,
                energy_joules: energy.map(|newest| newest.value as f64 / 1e6),
                utilization_ratio: gpu.utilization_ratio,
                // What is no count is none: it comes from outside.
                foreign_processes: gpu
                    .foreign_processes
                    .map(|count| count.clamp(0.0, f64::from(u32::MAX)) as u32),
                trains: self.latest.trains_on(uuid),
            }
        });
        gpus.collect()
    }
}

/// MFU, peaks and FLOP/J of the last minute.
fn add_compute(rollup: &mut Rollup, fresh: &[&Node], dominant: &str) {
    let mut all = Window { joules: 0.0, flops: 0.0, seconds: 0.0 };
    let mut peak_flop_seconds = Some(0.0);
    let mut peak_flops = (!fresh.is_empty()).then_some(0.0);
    for node in fresh {
        let window = node.window();
        let peak = node.peak_flops(dominant);
        all.joules += window.joules;
        all.flops += window.flops;
        peak_flops = peak_flops.zip(peak).map(|(sum, peak)| sum + peak);
        peak_flop_seconds = peak_flop_seconds.zip(peak).map(|(sum, peak)| sum + peak * window.seconds);
    }
    rollup.peak_flops = peak_flops;
    rollup.mfu_ratio = efficiency::mfu_ratio(all.flops, peak_flop_seconds);
    rollup.flops_per_joule = efficiency::flops_per_joule(all.flops, all.joules);
}

/// Mean over the compute devices: a node's own GPUs, or else its host's CPU, each host's once.
fn device_utilization(fresh: &[&Node]) -> Option<f64> {
    let mut hosts: BTreeMap<&str, &Node> = BTreeMap::new();
    let (mut sum, mut devices) = (0.0, 0u32);
    for node in fresh {
        if node.latest.gpus.is_empty() {
            freshest(&mut hosts, node);
        }
        let own = node.latest.gpus.iter().filter(|(uuid, _)| !node.verdict.foreign_gpus.contains(*uuid));
        for utilization in own.filter_map(|(_, gpu)| gpu.utilization_ratio) {
            sum += utilization;
            devices += 1;
        }
    }
    for utilization in hosts.values().filter_map(|node| node.latest.cpu_utilization_ratio) {
        sum += utilization;
        devices += 1;
    }
    (devices > 0).then(|| sum / f64::from(devices))
}

/// Filesystems, disks and networks of each host, as its freshest node sees them.
fn storage(fresh: &[&Node]) -> Storage {
    let mut hosts: BTreeMap<&str, &Node> = BTreeMap::new();
    for node in fresh {
        freshest(&mut hosts, node);
    }
    let mut storage = Storage::default();
    let latest = hosts.values().map(|node| &node.latest).filter(|latest| !latest.filesystems.is_empty());
    for latest in latest {
        storage.hosts += 1;
        for (used, size) in latest.filesystems.values().filter_map(|f| f.used_bytes.zip(f.size_bytes)) {
            storage.used_bytes += used;
            storage.size_bytes += size;
        }
    }
    storage.bandwidth_ratio = Op::ALL.map(|op| bandwidth_ratio(&hosts, op));
    let read = hosts.values().filter_map(|node| node.latest.storage_bandwidth.get(Op::Read.as_str()));
    storage.read_bytes_per_second = read.copied().reduce(|sum, bandwidth| sum + bandwidth);
    let networks = hosts.values().map(|node| node.latest.network_bandwidth);
    storage.network_bytes_per_second = networks.reduce(|sum, bandwidth| Some(sum? + bandwidth?)).flatten();
    storage
}

/// Over the hosts that declare a bandwidth: they are the storage nodes.
fn bandwidth_ratio(hosts: &BTreeMap<&str, &Node>, op: Op) -> Option<f64> {
    let (mut moved_bytes, mut able_bytes) = (0.0, None);
    for node in hosts.values() {
        if let Some(bandwidth) = node.latest.storage_bandwidth.get(op.as_str()) {
            let minute = node.moved.last_minute(node.newest_unix_nanos);
            moved_bytes += minute.bytes[op as usize];
            able_bytes = Some(able_bytes.unwrap_or(0.0) + bandwidth * minute.seconds);
        }
    }
    efficiency::storage_bandwidth_ratio(moved_bytes, able_bytes)
}

/// Keeps the node with the newest sample of each host.
fn freshest<'a>(hosts: &mut BTreeMap<&'a str, &'a Node>, node: &'a Node) {
    let host = hosts.entry(&node.machine_id).or_insert(node);
    if node.newest_unix_nanos > host.newest_unix_nanos {
        *host = node;
    }
}

/// The roll-up for `/metrics`. What is absent has no point.
pub(crate) fn points(rollup: &Rollup) -> Vec<Point> {
    let figures = [
        (&metrics::CLUSTER_MFU, rollup.mfu_ratio),
        (&metrics::CLUSTER_DEVICE_UTILIZATION, rollup.device_utilization_ratio),
        (&metrics::CLUSTER_STORAGE_CAPACITY, rollup.storage_capacity_ratio),
        (&metrics::CLUSTER_OBJECTIVE, rollup.objective_ratio),
        (&metrics::CLUSTER_POWER, rollup.power_watts),
        (&metrics::CLUSTER_FLOPS_PER_JOULE, rollup.flops_per_joule),
        (&metrics::CLUSTER_COVERAGE, rollup.coverage_ratio),
    ];
    let mut points: Vec<Point> =
        figures.into_iter().filter_map(|(metric, value)| Some(Point::new(metric, &[], value?))).collect();
    for (op, ratio) in Op::ALL.into_iter().zip(rollup.storage.bandwidth_ratio) {
        points.extend(ratio.map(|r| Point::new(&metrics::CLUSTER_STORAGE_BANDWIDTH, &[op.as_str()], r)));
    }
    // Zeros too: a counter that appears with its first joules hides them from `increase`.
    for (scope, source) in &rollup.metered {
        let joules = rollup.energy.get(scope).map_or(0, |energy| energy.get(*source)) as f64 / 1e6;
        points.push(Point::new(&metrics::CLUSTER_ENERGY, &[scope, source.as_str()], joules));
    }
    for node in rollup.nodes.iter().filter(|node| node.fresh) {
        if let Some(watts) = node.power_watts {
            let labels = [node.id.as_str(), &node.name];
            points.push(Point::new(&metrics::COLLECTOR_NODE_POWER, &labels, watts));
        }
    }
    points
}
