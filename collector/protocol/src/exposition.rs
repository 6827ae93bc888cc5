//! Points of the [`catalogue`](crate::catalogue) as Prometheus' text format.

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric as PrometheusMetric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::catalogue::{Kind, Metric};

/// `Content-Type` of [`text`]: Prometheus 3 refuses a blank one.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One value of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What is measured.
    pub metric: &'static Metric,
    /// A value for each label of the metric, in order.
    pub labels: Vec<String>,
    /// In the metric's base unit.
    pub value: f64,
}

impl Point {
    /// A point of `metric`.
    ///
    /// # Panics
    /// When the number of label values is not the metric's: a mistake in the program.
    pub fn new(metric: &'static Metric, labels: &[&str], value: f64) -> Self {
        assert_eq!(labels.len(), metric.labels.len(), "labels of {}", metric.name);
        Self { metric, labels: labels.iter().map(|&l| l.to_owned()).collect(), value }
    }
}

/// Points in the text format, families by name, series by labels.
///
/// # Errors
/// When the encoder refuses a family, which is a mistake in the catalogue.
pub fn text(points: &[Point]) -> Result<String, prometheus::Error> {
    let mut families: BTreeMap<&'static str, (&'static Metric, Vec<&Point>)> = BTreeMap::new();
    for point in points {
        families.entry(point.metric.name).or_insert((point.metric, Vec::new())).1.push(point);
    }
    let families: Vec<MetricFamily> = families
        .into_values()
        .map(|(metric, mut points)| {
            points.sort_by(|a, b| a.labels.cmp(&b.labels));
            family(metric, &points)
        })
        .collect();
    let mut out = Vec::new();
    TextEncoder::new().encode(&families, &mut out)?;
    String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

fn family(metric: &'static Metric, points: &[&Point]) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(match metric.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
    });
    family.set_metric(points.iter().map(|point| series(point)).collect());
    family
}

fn series(point: &Point) -> PrometheusMetric {
    let labels = point.metric.labels.iter().zip(&point.labels).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.clone());
        pair
    });
    let mut series = PrometheusMetric::from_label(labels.collect());
    match point.metric.kind {
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(point.value);
            series.set_counter(counter);
        }
        Kind::Gauge => {
            let mut gauge = Gauge::default();
            gauge.set_value(point.value);
            series.set_gauge(gauge);
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn text_is_sorted_and_escaped() {
        let points = [
            Point::new(&catalogue::GPU_UP, &["b\"\\\n"], 0.0),
            Point::new(&catalogue::GPU_UP, &["a"], 1.0),
            Point::new(&catalogue::GPU_ENERGY_JOULES, &["a", "counter"], 1234567.890123),
        ];
        let text = text(&points).unwrap();
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "wattmill_gpu_energy_joules_total{uuid=\"a\",source=\"counter\"} 1234567.890123",
                "wattmill_gpu_up{uuid=\"a\"} 1",
                "wattmill_gpu_up{uuid=\"b\\\"\\\\\\n\"} 0",
            ]
        );
    }
}
