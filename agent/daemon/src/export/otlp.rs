//! Snapshots as OTLP: what the collector, or any other OTLP receiver, is sent.
//!
//! Invariant: counters are cumulative and monotonic, with the start time of whatever counts: the ledger,
//! the host's boot or this process. Names and attributes come from the catalogue alone.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use wattmill_protocol::catalogue::{self as cat, Kind, Otlp, SEMANTIC_CONVENTIONS};

use crate::snapshot::{Snapshot, visit};

/// A snapshot as a request.
pub fn request(snapshot: &Snapshot) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope {
        name: "wattmill-agent".to_owned(),
        version: crate::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_metrics = ScopeMetrics {
        scope: Some(scope),
        metrics: metrics(snapshot),
        schema_url: SEMANTIC_CONVENTIONS.to_owned(),
    };
    let resource_metrics = ResourceMetrics {
        resource: Some(resource(snapshot)),
        scope_metrics: vec![scope_metrics],
        schema_url: SEMANTIC_CONVENTIONS.to_owned(),
    };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }
}

fn resource(snapshot: &Snapshot) -> Resource {
    let node = &snapshot.node;
    let fraction = f64::from(node.host_fraction_ppm) / f64::from(crate::attribution::WHOLE_HOST_PPM);
    let attributes = vec![
        text("service.name", "wattmill-agent"),
        text("service.version", crate::VERSION),
        text("service.instance.id", node.identity.node.as_str()),
        text("host.id", &node.identity.machine_id),
        text("host.name", &node.name),
        text("wattmill.node.name", &node.name),
        attribute("wattmill.host_fraction", Value::DoubleValue(fraction)),
    ];
    Resource { attributes, ..Resource::default() }
}

/// Without descriptions: they are the catalogue's, and would be half of each frame in the spool.
///
/// Metrics of one OTLP name are one metric: a GPU's `hw.energy` and a CPU's differ in attributes.
fn metrics(snapshot: &Snapshot) -> Vec<Metric> {
    let mut families: BTreeMap<&'static str, (&'static cat::Metric, &'static Otlp, Vec<NumberDataPoint>)> =
        BTreeMap::new();
    visit(snapshot, |metric, labels, value| {
        // A description with a part that is not known yet is not pushed: the collector takes whole ones.
        if let Some(otlp) = metric.otlp.as_ref().filter(|_| labels.iter().all(|label| !label.is_empty())) {
            let family = families.entry(otlp.name).or_insert((metric, otlp, Vec::new()));
            family.2.push(data_point((metric, otlp), labels, value, snapshot));
        }
    });
    families.into_values().map(|(metric, otlp, points)| family(metric, otlp, points)).collect()
}

fn family(metric: &'static cat::Metric, otlp: &'static Otlp, data_points: Vec<NumberDataPoint>) -> Metric {
    let data = match metric.kind {
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points }),
        Kind::Counter => metric::Data::Sum(Sum {
            data_points,
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        }),
    };
    Metric { name: otlp.name.to_owned(), unit: otlp.unit.to_owned(), data: Some(data), ..Metric::default() }
}

fn data_point(
    (metric, otlp): (&cat::Metric, &Otlp),
    labels: &[&str],
    value: f64,
    snapshot: &Snapshot,
) -> NumberDataPoint {
    let fixed = otlp.fixed.iter().map(|(key, value)| text(key, value));
    let labels = otlp.attributes.iter().zip(labels);
    NumberDataPoint {
        attributes: fixed.chain(labels.map(|(key, value)| text(key, value))).collect(),
        start_time_unix_nano: match metric.kind {
            Kind::Counter => started(metric, snapshot).min(snapshot.unix_nanos),
            Kind::Gauge => 0,
        },
        time_unix_nano: snapshot.unix_nanos,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

/// Since when a counter counts.
fn started(metric: &cat::Metric, snapshot: &Snapshot) -> u64 {
    const KEPT_IN_LEDGER: [&cat::Metric; 7] = [
        &cat::CPU_ENERGY_JOULES,
        &cat::GPU_ENERGY_JOULES,
        &cat::GPU_MODULE_ENERGY_JOULES,
        &cat::NODE_ENERGY_JOULES,
        &cat::NODE_ATTRIBUTED_ENERGY_JOULES,
        &cat::USEFUL_FLOPS,
        &cat::AGENT_GAPS,
    ];
    const SINCE_BOOT: [&cat::Metric; 6] = [
        &cat::HOST_CPU_SECONDS,
        &cat::HOST_PRESSURE_SECONDS,
        &cat::HOST_DISK_READ,
        &cat::HOST_DISK_WRITTEN,
        &cat::HOST_NETWORK_RECEIVE,
        &cat::HOST_NETWORK_TRANSMIT,
    ];
    let is = |among: &[&cat::Metric]| among.iter().any(|m| m.name == metric.name);
    if is(&KEPT_IN_LEDGER) {
        snapshot.started_unix_nanos
    } else if is(&SINCE_BOOT) {
        let seconds = snapshot.host.as_ref().map_or(0, |host| host.boot_unix_seconds);
        seconds.saturating_mul(1_000_000_000)
    } else {
        snapshot.node.process_started_unix_nanos
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::sample;

    fn shown(value: &KeyValue) -> String {
        match value.value.as_ref().and_then(|v| v.value.as_ref()) {
            Some(Value::StringValue(text)) => format!("{}={text}", value.key),
            other => format!("{}={other:?}", value.key),
        }
    }

    fn find(request: &ExportMetricsServiceRequest, name: &str) -> (Metric, Vec<NumberDataPoint>) {
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let found: Vec<_> = metrics.iter().filter(|m| m.name == name).collect();
        assert_eq!(found.len(), 1, "{name}");
        let points = match found[0].data.clone().unwrap() {
            metric::Data::Sum(sum) => {
                assert!(sum.is_monotonic);
                assert_eq!(sum.aggregation_temporality, AggregationTemporality::Cumulative as i32);
                sum.data_points
            }
            metric::Data::Gauge(gauge) => gauge.data_points,
            other => panic!("{other:?}"),
        };
        (found[0].clone(), points)
    }

    #[test]
    fn energy_of_all_hardware_is_one_metric_since_the_ledger_began() {
        let request = request(&sample());
        let (metric, points) = find(&request, "hw.energy");
        assert_eq!(metric.unit, "J");
        assert_eq!(points.len(), 4);
        for point in &points {
            assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1_000, 5_000));
        }
        let attributes: Vec<String> = points[0].attributes.iter().map(shown).collect();
        assert_eq!(attributes, ["hw.type=cpu", "hw.id=package-0", "wattmill.source=counter"]);
        assert_eq!(points[0].value, Some(number_data_point::Value::AsDouble(2.5)));
    }

    #[test]
    fn start_times_are_of_what_counts() {
        let mut snapshot = sample();
        let start = |snapshot: &Snapshot, name| find(&request(snapshot), name).1[0].start_time_unix_nano;
        assert_eq!(start(&snapshot, "wattmill.agent.sample.errors"), 2_000);
        assert_eq!(start(&snapshot, "hw.power"), 0);
        snapshot.unix_nanos = 3_000_000_000;
        assert_eq!(start(&snapshot, "system.disk.io"), 1_000_000_000);
        snapshot.unix_nanos = 500;
        assert_eq!(start(&snapshot, "hw.energy"), 500, "a clock that went back: never a start after the end");
    }

    #[test]
    fn the_resource_says_who_it_is() {
        let request = request(&sample());
        let metrics = &request.resource_metrics[0];
        assert_eq!(metrics.schema_url, SEMANTIC_CONVENTIONS);
        let shown: Vec<String> = metrics.resource.iter().flat_map(|r| &r.attributes).map(shown).collect();
        let version = format!("service.version={}", crate::VERSION);
        assert_eq!(
            shown,
            [
                "service.name=wattmill-agent",
                version.as_str(),
                "service.instance.id=6ba7b810-9dad-41d1-80b4-00c04fd430c8",
                "host.id=3d1219c7c4c5404aaa1f6d2a48adfda4",
                "host.name=node-a",
                "wattmill.node.name=node-a",
                "wattmill.host_fraction=Some(DoubleValue(0.5))",
            ]
        );
    }

    #[test]
    fn only_scraped_metrics_are_not_pushed() {
        let request = request(&sample());
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        assert!(metrics.iter().all(|m| !m.name.contains("build_info")));
        assert!(metrics.iter().all(|m| m.name != "wattmill.node.info"), "its numerics are not known yet");
    }
}
