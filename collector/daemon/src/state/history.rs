//! The rings as a series of points, of one node or of the cluster.
//!
//! Invariant: a slot without telemetry has no point. It is absent, never zero.

use std::collections::BTreeMap;
use std::ops::Range;

use wattmill_protocol::NodeId;
use wattmill_scheduler::efficiency;

use super::State;
use super::nodes::Node;
use super::ring::{RING_SLOTS, SLOT_SECONDS, slot_of};

/// A step of 10 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HistoryPoint {
    /// Where the step begins.
    pub(crate) unix_seconds: i64,
    /// Mean power: sum over the nodes of joules ÷ seconds covered. Absent where no node meters.
    pub(crate) power_watts: Option<f64>,
    /// Useful FLOPs ÷ (peaks of today × seconds covered). Absent where a node's peak is unknown.
    pub(crate) mfu_ratio: Option<f64>,
    /// Nodes whose telemetry covers the step, or a part of it.
    pub(crate) nodes: u32,
}

/// Sums of a step over nodes.
#[derive(Debug)]
struct Step {
    watts: Option<f64>,
    flops: f64,
    peak_flop_seconds: Option<f64>,
    nodes: u32,
}

/// A history that is gathered a node at a time.
#[derive(Debug)]
pub(super) struct History {
    slots: Range<u64>,
    /// The precision that idle nodes are measured at.
    dominant: Box<str>,
    steps: BTreeMap<u64, Step>,
}

impl State {
    /// Begins the history of steps that begin at `from` or later and before `to`, of one node or of all;
    /// with the nodes to add.
    pub(super) fn begin_history(
        &self,
        node: Option<&NodeId>,
        from_unix_seconds: i64,
        to_unix_seconds: i64,
    ) -> (History, Vec<NodeId>) {
        let nodes: Vec<&Node> = match node {
            Some(id) => self.nodes.get(id).into_iter().collect(),
            None => self.nodes.values().collect(),
        };
        let newest = nodes.iter().map(|node| node.newest_unix_nanos).max().unwrap_or(0);
        let oldest = slot_of(newest).saturating_sub(RING_SLOTS);
        let first = u64::try_from(from_unix_seconds).unwrap_or(0).div_ceil(SLOT_SECONDS).max(oldest);
        let end = u64::try_from(to_unix_seconds).unwrap_or(0).div_ceil(SLOT_SECONDS);
        let slots = first..end.min(slot_of(newest) + 1);
        let history = History { slots, dominant: self.dominant_precision().into(), steps: BTreeMap::new() };
        (history, nodes.into_iter().map(|node| node.id.clone()).collect())
    }

    /// Adds a node to a history; one that is gone meanwhile adds nothing.
    pub(super) fn add_history(&self, history: &mut History, id: &NodeId) {
        if let Some(node) = self.nodes.get(id) {
            let peak = node.peak_flops(&history.dominant);
            add_node(&mut history.steps, node, peak, history.slots.clone());
        }
    }
}

impl History {
    /// A point for each step with telemetry, in order.
    pub(super) fn points(self) -> Vec<HistoryPoint> {
        self.steps.into_iter().map(|(slot, step)| step.point(slot)).collect()
    }
}

fn add_node(steps: &mut BTreeMap<u64, Step>, node: &Node, peak: Option<f64>, slots: Range<u64>) {
    for number in slots {
        let Some(slot) = node.ring.slot(number).filter(|slot| slot.seconds > 0.0) else { continue };
        let none = Step { watts: None, flops: 0.0, peak_flop_seconds: Some(0.0), nodes: 0 };
        let step = steps.entry(number).or_insert(none);
        let seconds = f64::from(slot.seconds);
        if node.is_metered() {
            step.watts = Some(step.watts.unwrap_or(0.0) + f64::from(slot.joules) / seconds);
        }
        step.flops += f64::from(slot.flops);
        step.peak_flop_seconds = step.peak_flop_seconds.zip(peak).map(|(sum, peak)| sum + peak * seconds);
        step.nodes += 1;
    }
}

impl Step {
    fn point(self, slot: u64) -> HistoryPoint {
        HistoryPoint {
            unix_seconds: (slot * SLOT_SECONDS) as i64,
            power_watts: self.watts,
            mfu_ratio: efficiency::mfu_ratio(self.flops, self.peak_flop_seconds),
            nodes: self.nodes,
        }
    }
}
