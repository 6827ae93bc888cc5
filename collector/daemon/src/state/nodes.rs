//! What is known of one node: its newest figures, its exact totals, its ring.
//!
//! Invariants:
//! - Totals are integer microjoules and only grow. Each increase of a node's cumulative counters is added
//!   once, whatever is lost, repeated or late on the way.
//! - `counted` never exceeds `total`: it leaves out what another node of the host counts already.
//! - What a frame does depends on the node's earlier frames and on the [`Verdict`] alone, not on when it
//!   arrives.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::{Energy, NodeId, Source};

use super::counter::Cumulative;
use super::counts::{Counts, Reason};
use super::frame::NodeFrame;
use super::latest::Latest;
use super::metering::Reading;
use super::moved::Moved;
use super::ring::Ring;

/// The scope of a node's GPUs. Every other scope (CPU, DRAM, a whole board) is the host's.
pub(crate) const GPU_SCOPE: &str = "gpu";

/// One value for each [`Source`], where there is one.
pub(crate) type BySource<T> = [Option<T>; Source::ALL.len()];

/// Energy of a scope by one source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct EnergyTotal {
    /// The newest sample of the node's counter, in microjoules.
    pub(crate) newest: Cumulative<u64>,
    /// Microjoules since the node was first seen.
    pub(crate) total_microjoules: u64,
    /// Those among them that count in the cluster's roll-up.
    pub(crate) counted_microjoules: u64,
}

/// Useful FLOPs of a precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FlopsTotal {
    /// The newest sample of the node's counter.
    pub(crate) newest: Cumulative<f64>,
    /// FLOPs since the node was first seen.
    pub(crate) total: f64,
}

/// What others of the host count already, and this node therefore does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The host's scopes: earlier nodes account for so much of it that this node's share has no room.
    pub(crate) host_excluded: bool,
    /// GPUs, by UUID, that an earlier node meters.
    pub(crate) foreign_gpus: BTreeSet<Box<str>>,
}

/// How a frame stands to what its node said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Newer,
    SameInstant,
    SteppedBack,
    Late,
}

/// All that is known of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Its identity.
    pub(crate) id: NodeId,
    /// Its name, for people.
    pub(crate) name: Box<str>,
    /// Its host.
    pub(crate) machine_id: Box<str>,
    /// Its share of its host.
    pub(crate) host_fraction: f64,
    /// Time of its first sample; 0 before.
    pub(crate) joined_unix_nanos: u64,
    /// Time of its newest sample; 0 before the first.
    pub(crate) newest_unix_nanos: u64,
    /// The latest time of all its samples: later than the newest one's after its clock went back.
    pub(crate) furthest_unix_nanos: u64,
    /// Time between its two newest samples: how long its windows are. 0 before the second one.
    pub(crate) window_nanos: u64,
    /// Position of the newest frame of its spool that was received.
    pub(crate) position: Option<u64>,
    /// Gone for good: its joules count, it is no longer expected.
    pub(crate) retired: bool,
    /// What others of its host count already.
    pub(crate) verdict: Verdict,
    /// Energy by scope.
    pub(crate) energy: BTreeMap<Box<str>, BySource<EnergyTotal>>,
    /// Newest energy counters of its GPUs by UUID. The sources measure the same joules.
    pub(crate) gpu_energy: BTreeMap<Box<str>, BySource<Cumulative<u64>>>,
    /// Useful FLOPs by precision.
    pub(crate) flops: BTreeMap<Box<str>, FlopsTotal>,
    /// The precision that it last did useful work in.
    pub(crate) precision: Option<Box<str>>,
    /// Its newest gauges.
    pub(crate) latest: Latest,
    /// What its host's disks moved in the last minute.
    pub(crate) moved: Moved,
    /// Its last 24 hours.
    pub(crate) ring: Ring,
    /// The state's sequence at which anything but the ring last changed.
    pub(crate) changed: u64,
}

impl Node {
    /// A node that has not said anything yet.
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            name: "".into(),
            machine_id: "".into(),
            host_fraction: 1.0,
            joined_unix_nanos: 0,
            newest_unix_nanos: 0,
            furthest_unix_nanos: 0,
            window_nanos: 0,
            position: None,
            retired: false,
            verdict: Verdict::default(),
            energy: BTreeMap::new(),
            gpu_energy: BTreeMap::new(),
            flops: BTreeMap::new(),
            precision: None,
            latest: Latest::default(),
            moved: Moved::default(),
            ring: Ring::default(),
            changed: 0,
        }
    }

    /// Nanoseconds since the newest sample, 0 where it is ahead of `now`; absent before the first sample.
    pub(crate) fn age_nanos(&self, now_unix_nanos: u64) -> Option<u64> {
        (self.newest_unix_nanos > 0).then(|| now_unix_nanos.saturating_sub(self.newest_unix_nanos))
    }

    /// Its energy by scope, as it metered it; what others of its host count as well is in it.
    pub(crate) fn energy_of(&self, scope: &str) -> Energy {
        self.energy.get(scope).map_or(Energy::ZERO, |by_source| sum(by_source, |e| e.total_microjoules))
    }

    /// Its energy by scope, as far as it counts in the cluster's roll-up.
    pub(crate) fn counted_energy_of(&self, scope: &str) -> Energy {
        self.energy.get(scope).map_or(Energy::ZERO, |by_source| sum(by_source, |e| e.counted_microjoules))
    }

    /// Useful FLOPs of all precisions since it was first seen.
    pub(crate) fn useful_flops(&self) -> f64 {
        self.flops.values().map(|flops| flops.total).sum()
    }

    /// Whether it ever metered energy.
    pub(crate) fn is_metered(&self) -> bool {
        !self.energy.is_empty()
    }

    /// Notes that the frame at `position` of its spool was received.
    pub(crate) fn receive(&mut self, position: Option<u64>, sequence: u64) {
        if position > self.position {
            self.position = position;
            self.changed = sequence;
        }
    }

    /// Takes `frame` in, and the position that it has in the node's spool. Counts what it does not use.
    pub(crate) fn apply(
        &mut self,
        frame: NodeFrame,
        position: Option<u64>,
        verdict: Verdict,
        sequence: u64,
        counts: &mut Counts,
    ) {
        let order = self.order(&frame, position);
        match order {
            Order::Late => {
                counts.reject(Reason::Late);
                return self.receive(position, sequence);
            }
            Order::SteppedBack => counts.reject(Reason::SteppedBack),
            Order::Newer | Order::SameInstant => {}
        }
        counts.ingest(frame.samples.len());
        self.changed = sequence;
        match order {
            Order::SameInstant => self.receive(position, sequence),
            _ => self.position = position.or(self.position),
        }
        self.describe(&frame, verdict, counts);

        let before = std::mem::replace(&mut self.newest_unix_nanos, frame.time_unix_nanos);
        self.furthest_unix_nanos = self.furthest_unix_nanos.max(frame.time_unix_nanos);
        if before > 0 && order == Order::Newer {
            self.window_nanos = frame.time_unix_nanos - before;
        }
        if before == 0 {
            self.joined_unix_nanos = frame.time_unix_nanos;
        } else {
            self.ring.cover(before, frame.time_unix_nanos, sequence);
        }
        if order != Order::SameInstant {
            self.latest = Latest::default();
        }
        let reading = Reading {
            time_unix_nanos: frame.time_unix_nanos,
            before_unix_nanos: before,
            stepped_back: order == Order::SteppedBack,
            sequence,
        };
        self.meter(&reading, &frame.samples, counts);
        if !self.moved.take(&frame.samples, before, frame.time_unix_nanos, reading.stepped_back) {
            counts.reject(Reason::TooManySeries);
        }
        for sample in frame.samples {
            if !self.latest.take(sample) {
                counts.reject(Reason::TooManySeries);
            }
        }
    }

    /// Frames are ordered by time. A frame with a later place in the spool than all before it, but an
    /// earlier time, is the word of a clock that went back. One with an earlier place comes from a spool
    /// that began anew if it is later than anything that was ever said; else it is a repetition from
    /// before the clock went back.
    fn order(&self, frame: &NodeFrame, position: Option<u64>) -> Order {
        let behind = matches!((position, self.position), (Some(new), Some(newest)) if new < newest);
        let ahead = matches!((position, self.position), (Some(new), Some(newest)) if new > newest);
        match frame.time_unix_nanos.cmp(&self.newest_unix_nanos) {
            std::cmp::Ordering::Greater if behind && frame.time_unix_nanos <= self.furthest_unix_nanos => {
                Order::Late
            }
            std::cmp::Ordering::Greater if behind => Order::SteppedBack,
            std::cmp::Ordering::Greater => Order::Newer,
            std::cmp::Ordering::Equal => Order::SameInstant,
            std::cmp::Ordering::Less if ahead => Order::SteppedBack,
            std::cmp::Ordering::Less => Order::Late,
        }
    }

    fn describe(&mut self, frame: &NodeFrame, verdict: Verdict, counts: &mut Counts) {
        self.retired = false;
        if self.name != frame.name {
            self.name.clone_from(&frame.name);
        }
        if self.machine_id != frame.machine_id {
            self.machine_id.clone_from(&frame.machine_id);
        }
        self.host_fraction = frame.host_fraction;
        if verdict.host_excluded && !self.verdict.host_excluded {
            counts.reject(Reason::HostOverlap);
        }
        for _ in verdict.foreign_gpus.difference(&self.verdict.foreign_gpus) {
            counts.reject(Reason::GpuOverlap);
        }
        self.verdict = verdict;
    }
}

/// The parts of a scope's energy that `part` picks.
fn sum(by_source: &BySource<EnergyTotal>, part: impl Fn(&EnergyTotal) -> u64) -> Energy {
    let parts = Source::ALL.into_iter().zip(by_source);
    parts.filter_map(|(source, total)| Some(Energy::of(source, part(total.as_ref()?)))).sum()
}
