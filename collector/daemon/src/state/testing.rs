//! Frames for tests, made by hand.

use wattmill_protocol::NodeId;
use wattmill_protocol::catalogue::{self as metrics, Metric};

use super::frame::{NANOS_PER_SECOND, NodeFrame, Sample, Value};
use super::latest::Latest;

/// The start of the tests' time, in Unix seconds: a whole hour.
pub(crate) const T0: u64 = 1_700_000_000 / 3600 * 3600;

/// Nanoseconds of `seconds` after the start of the tests' time.
pub(crate) fn at(seconds: f64) -> u64 {
    T0 * NANOS_PER_SECOND + (seconds * 1e9) as u64
}

/// A node by number.
pub(crate) fn node(number: u32) -> NodeId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}

fn sample(metric: &'static Metric, labels: &[&str], value: Value, start_unix_nanos: u64) -> Sample {
    assert_eq!(labels.len(), metric.labels.len());
    Sample { metric, labels: labels.iter().map(|&l| l.into()).collect(), value, start_unix_nanos }
}

/// A sample of a gauge.
pub(crate) fn gauge(metric: &'static Metric, labels: &[&str], value: f64) -> Sample {
    sample(metric, labels, Value::Number(value), 0)
}

/// A sample of a counter that began before the tests' time.
pub(crate) fn counter(metric: &'static Metric, labels: &[&str], value: f64) -> Sample {
    sample(metric, labels, Value::Number(value), at(-100.0))
}

/// A sample of an energy counter that counts since `start` seconds.
pub(crate) fn energy(metric: &'static Metric, labels: &[&str], microjoules: u64, start: f64) -> Sample {
    sample(metric, labels, Value::Microjoules(microjoules), at(start))
}

/// `wattmill_node_energy_joules_total` of a scope, by the hardware's counter.
pub(crate) fn node_energy(scope: &str, microjoules: u64) -> Sample {
    energy(&metrics::NODE_ENERGY_JOULES, &[scope, "counter"], microjoules, -100.0)
}

/// `wattmill_useful_flops_total` of f32.
pub(crate) fn useful_flops(flops: f64) -> Sample {
    sample(&metrics::USEFUL_FLOPS, &["f32"], Value::Number(flops), at(-100.0))
}

/// A frame of node `number`, alone on its host, at `seconds`.
pub(crate) fn frame(number: u32, seconds: f64, samples: impl Into<Vec<Sample>>) -> NodeFrame {
    NodeFrame {
        node: node(number),
        name: format!("n{number}").into(),
        machine_id: format!("machine-{number}").into(),
        host_fraction: 1.0,
        time_unix_nanos: at(seconds),
        samples: samples.into(),
    }
}

/// Gauges as one instant.
pub(crate) fn latest(samples: impl IntoIterator<Item = Sample>) -> Latest {
    let mut latest = Latest::default();
    for sample in samples {
        assert!(latest.take(sample));
    }
    latest
}
