//! A node as it stands in the store.
//!
//! Invariant: field numbers are never given another meaning; what is added is optional, so that this
//! version's records are read by the next and the last one's by this.

use std::collections::BTreeMap;

use prost::Message;
use wattmill_protocol::{NodeId, Source};

use super::counter::Cumulative;
use super::latest::GpuGauges;
use super::nodes::{BySource, EnergyTotal, FlopsTotal, Node, Verdict};

/// A node without its ring. Gauges are not kept (the next push brings them), but for the GPUs and peaks
/// that say who counts what and relate FLOPs to time.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StoredNode {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    machine_id: String,
    #[prost(double, tag = "3")]
    host_fraction: f64,
    #[prost(uint64, tag = "4")]
    joined_unix_nanos: u64,
    #[prost(uint64, tag = "5")]
    newest_unix_nanos: u64,
    #[prost(uint64, optional, tag = "6")]
    pub(super) position: Option<u64>,
    #[prost(bool, tag = "7")]
    retired: bool,
    #[prost(bool, tag = "8")]
    host_excluded: bool,
    #[prost(string, repeated, tag = "9")]
    foreign_gpus: Vec<String>,
    #[prost(message, repeated, tag = "10")]
    energy: Vec<StoredCounter>,
    #[prost(message, repeated, tag = "11")]
    gpu_energy: Vec<StoredCounter>,
    #[prost(message, repeated, tag = "12")]
    flops: Vec<StoredFlops>,
    #[prost(string, optional, tag = "13")]
    precision: Option<String>,
    #[prost(string, repeated, tag = "14")]
    gpus: Vec<String>,
    #[prost(message, repeated, tag = "15")]
    peaks: Vec<StoredPeak>,
    #[prost(uint64, tag = "16")]
    furthest_unix_nanos: u64,
    #[prost(uint64, tag = "17")]
    window_nanos: u64,
}

/// A counter of microjoules: of a scope or of a GPU.
#[derive(Clone, PartialEq, Message)]
struct StoredCounter {
    #[prost(string, tag = "1")]
    of: String,
    #[prost(uint32, tag = "2")]
    source: u32,
    #[prost(fixed64, tag = "3")]
    start_unix_nanos: u64,
    #[prost(fixed64, tag = "4")]
    time_unix_nanos: u64,
    #[prost(uint64, tag = "5")]
    value: u64,
    #[prost(uint64, tag = "6")]
    total_microjoules: u64,
    #[prost(uint64, tag = "7")]
    counted_microjoules: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredFlops {
    #[prost(string, tag = "1")]
    precision: String,
    #[prost(fixed64, tag = "2")]
    start_unix_nanos: u64,
    #[prost(fixed64, tag = "3")]
    time_unix_nanos: u64,
    #[prost(double, tag = "4")]
    value: f64,
    #[prost(double, tag = "5")]
    total: f64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredPeak {
    #[prost(string, tag = "1")]
    device: String,
    #[prost(string, tag = "2")]
    precision: String,
    #[prost(double, tag = "3")]
    flops: f64,
}

impl StoredNode {
    /// What is stored of `node`.
    pub(super) fn of(node: &Node) -> Self {
        let strings =
            |texts: &mut dyn Iterator<Item = &Box<str>>| texts.map(|text| (**text).into()).collect();
        let energy = each(&node.energy).map(|(scope, source, total)| StoredCounter {
            total_microjoules: total.total_microjoules,
            counted_microjoules: total.counted_microjoules,
            ..StoredCounter::of(scope, source, total.newest)
        });
        let gpu_energy =
            each(&node.gpu_energy).map(|(uuid, source, newest)| StoredCounter::of(uuid, source, *newest));
        let flops = node.flops.iter().map(|(precision, flops)| StoredFlops {
            precision: (**precision).into(),
            start_unix_nanos: flops.newest.start_unix_nanos,
            time_unix_nanos: flops.newest.time_unix_nanos,
            value: flops.newest.value,
            total: flops.total,
        });
        let peaks = node.latest.peak_flops.iter().map(|((device, precision), flops)| StoredPeak {
            device: (**device).into(),
            precision: (**precision).into(),
            flops: *flops,
        });
        Self {
            name: (*node.name).into(),
            machine_id: (*node.machine_id).into(),
            host_fraction: node.host_fraction,
            joined_unix_nanos: node.joined_unix_nanos,
            newest_unix_nanos: node.newest_unix_nanos,
            position: node.position,
            retired: node.retired,
            host_excluded: node.verdict.host_excluded,
            foreign_gpus: strings(&mut node.verdict.foreign_gpus.iter()),
            energy: energy.collect(),
            gpu_energy: gpu_energy.collect(),
            flops: flops.collect(),
            precision: node.precision.as_deref().map(String::from),
            gpus: strings(&mut node.latest.gpus.keys()),
            peaks: peaks.collect(),
            furthest_unix_nanos: node.furthest_unix_nanos,
            window_nanos: node.window_nanos,
        }
    }

    /// The node that was stored, without its ring. `None` where a source is unknown.
    pub(super) fn node(self, id: NodeId) -> Option<Node> {
        let mut node = Node::new(id);
        node.name = self.name.into();
        node.machine_id = self.machine_id.into();
        node.host_fraction = self.host_fraction;
        node.joined_unix_nanos = self.joined_unix_nanos;
        node.newest_unix_nanos = self.newest_unix_nanos;
        node.furthest_unix_nanos = self.furthest_unix_nanos;
        node.window_nanos = self.window_nanos;
        node.position = self.position;
        node.retired = self.retired;
        let foreign_gpus = self.foreign_gpus.into_iter().map(Box::from).collect();
        node.verdict = Verdict { host_excluded: self.host_excluded, foreign_gpus };
        for stored in &self.energy {
            *stored.place(&mut node.energy)? = Some(EnergyTotal {
                newest: stored.newest(),
                total_microjoules: stored.total_microjoules,
                counted_microjoules: stored.counted_microjoules,
            });
        }
        for stored in &self.gpu_energy {
            *stored.place(&mut node.gpu_energy)? = Some(stored.newest());
        }
        for stored in self.flops {
            let StoredFlops { start_unix_nanos, time_unix_nanos, value, total, .. } = stored;
            let newest = Cumulative { start_unix_nanos, time_unix_nanos, value };
            node.flops.insert(stored.precision.into(), FlopsTotal { newest, total });
        }
        node.precision = self.precision.map(Box::from);
        node.latest.gpus.extend(self.gpus.into_iter().map(|uuid| (uuid.into(), GpuGauges::default())));
        for peak in self.peaks {
            node.latest.peak_flops.insert((peak.device.into(), peak.precision.into()), peak.flops);
        }
        Some(node)
    }
}

impl StoredCounter {
    fn of(name: &str, source: Source, newest: Cumulative<u64>) -> Self {
        Self {
            of: name.into(),
            source: source as u32,
            start_unix_nanos: newest.start_unix_nanos,
            time_unix_nanos: newest.time_unix_nanos,
            value: newest.value,
            total_microjoules: 0,
            counted_microjoules: 0,
        }
    }

    fn newest(&self) -> Cumulative<u64> {
        Cumulative {
            start_unix_nanos: self.start_unix_nanos,
            time_unix_nanos: self.time_unix_nanos,
            value: self.value,
        }
    }

    fn place<'a, T: Copy>(&self, map: &'a mut BTreeMap<Box<str>, BySource<T>>) -> Option<&'a mut Option<T>> {
        map.entry(self.of.as_str().into()).or_default().get_mut(self.source as usize)
    }
}

/// Every value that there is, by name and source.
fn each<T>(map: &BTreeMap<Box<str>, BySource<T>>) -> impl Iterator<Item = (&str, Source, &T)> {
    map.iter().flat_map(|(name, by_source)| {
        let there = Source::ALL.into_iter().zip(by_source);
        there.filter_map(move |(source, value)| Some((&**name, source, value.as_ref()?)))
    })
}
