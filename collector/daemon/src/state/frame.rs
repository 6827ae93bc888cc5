//! What a node said at one instant: the input of the state, free of any wire format.
//!
//! Invariant: a frame's values are finite and plausible in sign, its labels are bounded, and each sample
//! has the labels of its metric, in order. `ingest::decode` makes frames so; tests make them by hand.

use wattmill_protocol::NodeId;
use wattmill_protocol::catalogue::Metric;

/// Nanoseconds of a second.
pub(crate) const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A node's samples of one instant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeFrame {
    /// The node that it is about (`service.instance.id`).
    pub(crate) node: NodeId,
    /// The node's name, for people (`wattmill.node.name`).
    pub(crate) name: Box<str>,
    /// The host, shared by all its agents (`host.id`).
    pub(crate) machine_id: Box<str>,
    /// The host's share that this node accounts for (`wattmill.host_fraction`), above 0 and at most 1.
    pub(crate) host_fraction: f64,
    /// When the samples were taken, by the node's clock: the original time, however late they arrive.
    pub(crate) time_unix_nanos: u64,
    /// The samples, in no particular order.
    pub(crate) samples: Vec<Sample>,
}

/// One value of one series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// What is measured.
    pub(crate) metric: &'static Metric,
    /// A value for each label of the metric, in order.
    pub(crate) labels: Vec<Box<str>>,
    /// In the metric's base unit, but for energy counters.
    pub(crate) value: Value,
    /// Since when a counter counts; 0 where unknown, and for gauges.
    pub(crate) start_unix_nanos: u64,
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    /// A cumulative sum of joules, as exact integer microjoules.
    Microjoules(u64),
    /// Anything else, in the metric's base unit.
    Number(f64),
}

impl Sample {
    /// Whether this is a sample of `metric`.
    pub(crate) fn is(&self, metric: &'static Metric) -> bool {
        std::ptr::eq(self.metric, metric)
    }

    /// The label at `index`, blank where there is none.
    pub(crate) fn label(&self, index: usize) -> &str {
        self.labels.get(index).map_or("", |label| label)
    }

    /// The label at `index`, taken out.
    pub(crate) fn take_label(&mut self, index: usize) -> Box<str> {
        self.labels.get_mut(index).map(std::mem::take).unwrap_or_default()
    }

    /// The value in the metric's base unit.
    pub(crate) fn number(&self) -> f64 {
        match self.value {
            Value::Microjoules(amount) => amount as f64 / 1e6,
            Value::Number(number) => number,
        }
    }
}
