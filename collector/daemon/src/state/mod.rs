//! The cluster's telemetry in memory: latest state, exact totals and a day's ring of each node.
//!
//! [`Telemetry`] is the one door: it owns the [`State`] behind a lock of its own with short critical
//! sections, so that telemetry is never in the way of control. Below it everything is plain data and
//! time is an argument.
//!
//! ```text
//! ingest ──NodeFrame──▶ Telemetry ─▶ hosts (who counts what) ─▶ nodes ─▶ metering ─▶ ring
//!                           └──▶ rollup, history (views)   └──▶ persist (records for the store)
//! ```
//!
//! Invariant: after a crash, the state of the newest checkpoint plus the frames that each node's spool
//! holds from its durable position on give the same totals and rings as if nothing had happened.

mod counter;
mod counts;
mod frame;
mod history;
mod hosts;
mod latest;
mod metering;
mod moved;
mod nodes;
mod persist;
mod ring;
mod rollup;
mod sd;
mod stored;
mod telemetry;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;

use wattmill_protocol::NodeId;

pub(crate) use counts::{Counts, Reason};
pub(crate) use frame::{NANOS_PER_SECOND, NodeFrame, Sample, Value};
pub(crate) use history::HistoryPoint;
pub(crate) use persist::{Checkpoint, Damaged, PersistError, Record};
pub(crate) use rollup::{GpuRollup, NodeRollup, Rollup, points};
pub(crate) use sd::{SD_CONTENT_TYPE, Target, service_discovery};
pub(crate) use telemetry::Telemetry;

use hosts::Hosts;
use nodes::Node;

/// Most nodes that are kept. Their rings bound the memory: 8 192 × 108 kB are 0.9 GB, for a full day of
/// each; past that, regions have collectors of their own.
pub(crate) const MAX_NODES: usize = 8192;

/// How far ahead of the collector's clock a sample's time may be.
pub(crate) const FUTURE_SECONDS: u64 = 300;

/// What is known of all nodes.
#[derive(Debug, Default)]
pub(crate) struct State {
    nodes: BTreeMap<NodeId, Node>,
    /// Derived from `nodes`.
    hosts: Hosts,
    /// Grows by one with each change; what changed since a checkpoint is told by it.
    sequence: u64,
    /// Since the collector started; not stored.
    counts: Counts,
}

impl State {
    /// Takes `frame` in, which lies at `position` in its node's spool (absent from senders that have
    /// none). Whatever comes of it, the position is received.
    pub(crate) fn apply(&mut self, frame: NodeFrame, position: Option<u64>, now_unix_nanos: u64) {
        self.sequence += 1;
        if frame.time_unix_nanos > now_unix_nanos.saturating_add(FUTURE_SECONDS * NANOS_PER_SECOND) {
            self.counts.reject(Reason::Future);
            if let Some(node) = self.nodes.get_mut(&frame.node) {
                node.receive(position, self.sequence);
            }
            return;
        }
        if !self.has_room_for(&frame.node) {
            return self.counts.reject(Reason::TooManyNodes);
        }
        let verdict = self.hosts.verdict(&self.nodes, &frame);
        let known = self.nodes.contains_key(&frame.node);
        let node = self.nodes.entry(frame.node.clone()).or_insert_with_key(|id| Node::new(id.clone()));
        let machine_id = (known && node.machine_id != frame.machine_id).then(|| node.machine_id.clone());
        node.apply(frame, position, verdict, self.sequence, &mut self.counts);
        if !known || machine_id.is_some() {
            self.hosts.place(node, machine_id.as_deref());
        }
        self.hosts.note_gpus(node);
        self.hosts.clean(&self.nodes);
    }

    /// Notes that a push was received of which nothing could be taken.
    pub(crate) fn receive(&mut self, id: &NodeId, position: u64) {
        self.sequence += 1;
        if let Some(node) = self.nodes.get_mut(id) {
            node.receive(Some(position), self.sequence);
        }
    }

    /// Notes a node that opened a session: it is known, and expected to send telemetry.
    pub(crate) fn introduce(&mut self, id: &NodeId, name: &str, machine_id: &str, host_fraction: f64) {
        if !self.has_room_for(id) {
            return self.counts.reject(Reason::TooManyNodes);
        }
        self.sequence += 1;
        let known = self.nodes.contains_key(id);
        let node = self.nodes.entry(id.clone()).or_insert_with_key(|id| Node::new(id.clone()));
        let before = known.then(|| std::mem::replace(&mut node.machine_id, machine_id.into()));
        node.machine_id = machine_id.into();
        node.name = name.into();
        node.host_fraction = host_fraction;
        node.retired = false;
        node.changed = self.sequence;
        self.hosts.place(node, before.as_deref());
    }

    /// Notes that a node is gone for good: its joules go on to count, it is no longer expected, and it
    /// claims nothing of its host. Whether it is known.
    pub(crate) fn retire(&mut self, id: &NodeId) -> bool {
        self.sequence += 1;
        let Some(node) = self.nodes.get_mut(id) else { return false };
        node.retired = true;
        node.changed = self.sequence;
        true
    }

    fn has_room_for(&self, id: &NodeId) -> bool {
        self.nodes.len() < MAX_NODES || self.nodes.contains_key(id)
    }
}

#[cfg(test)]
mod tests;
