//! OTLP over HTTP, as any OpenTelemetry SDK or collector sends it.
//!
//! Proves: a node that only pushes appears with its exact energy; what is no OTLP is refused by the status that
//! keeps senders from trying again.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use wattmill_it_metering::http::post;
use wattmill_it_metering::process::Collector;
use wattmill_it_metering::{PATIENCE, wait_for};

const PATH: &str = "/v1/metrics";
const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");
const GZIP: (&str, &str) = ("Content-Encoding", "gzip");

/// Counters here began at the last multiple of this: a day.
const STARTED_NANOS: u64 = 86_400_000_000_000;

fn unix_nanos() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// What an agent pushes, with one counter.
fn push(node: &str, name: &str, joules: f64) -> Vec<u8> {
    let now = unix_nanos();
    let point = NumberDataPoint {
        attributes: vec![text("wattmill.scope", "cpu"), text("wattmill.source", "counter")],
        start_time_unix_nano: now - now % STARTED_NANOS,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(joules)),
        ..NumberDataPoint::default()
    };
    let sum = Sum {
        data_points: vec![point],
        aggregation_temporality: AggregationTemporality::Cumulative.into(),
        is_monotonic: true,
    };
    let metric = Metric {
        name: "hw.host.energy".to_owned(),
        unit: "J".to_owned(),
        data: Some(metric::Data::Sum(sum)),
        ..Metric::default()
    };
    let resource = Resource {
        attributes: vec![
            text("service.name", "wattmill-agent"),
            text("service.instance.id", node),
            text("host.id", "0123456789abcdef0123456789abcdef"),
            text("wattmill.node.name", name),
            attribute("wattmill.host_fraction", Value::DoubleValue(1.0)),
        ],
        ..Resource::default()
    };
    let scope = ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() };
    let resource_metrics = ResourceMetrics {
        resource: Some(resource),
        scope_metrics: vec![scope],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }.encode_to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn pushes_over_http_reach_the_list_of_nodes() {
    let collector = Collector::start();
    let plain = "11111111-1111-4111-8111-111111111111";
    let zipped = "22222222-2222-4222-8222-222222222222";
    // The first sight of a counter is a baseline: what it counted before is not this cluster's.
    for (first, second) in [(1_000.0, 3.0), (1_012.345_678, 6.25)] {
        for (headers, body) in [
            (&[PROTOBUF][..], push(plain, "plain", first)),
            (&[PROTOBUF, GZIP][..], gzip(&push(zipped, "zipped", second))),
        ] {
            let answer = post(&collector.http, PATH, headers, &body);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("content-type"), "application/x-protobuf");
            let response = ExportMetricsServiceResponse::decode(answer.body.as_bytes()).unwrap();
            assert_eq!(response.partial_success, None, "all was taken");
        }
    }
    let nodes = wait_for("both nodes are listed", PATIENCE, || {
        let nodes = collector.ask(&["nodes"]);
        let counted = |node: &serde_json::Value| node["energy"][0]["joules"].as_f64() > Some(0.0);
        nodes.as_array().is_some_and(|nodes| nodes.len() == 2 && nodes.iter().all(counted)).then_some(nodes)
    });
    for (index, id, name, joules) in [(0, plain, "plain", 12.345_678), (1, zipped, "zipped", 3.25)] {
        let node = &nodes[index];
        assert!(node["id"] == id && node["name"] == name, "{node}");
        assert_eq!(node["connected"], false, "it pushes, and takes no work");
        let energy = &node["energy"][0];
        assert!(energy["scope"] == "cpu" && energy["source"] == "counter", "{energy}");
        assert_eq!(energy["joules"].as_f64(), Some(joules));
    }
}

#[test]
fn what_is_no_otlp_is_refused_for_good() {
    let collector = Collector::start();
    let good = push("11111111-1111-4111-8111-111111111111", "plain", 1.0);
    let json = ("Content-Type", "application/json");
    let zstd = ("Content-Encoding", "zstd");
    for (what, headers, body, status) in [
        ("JSON", &[json][..], &b"{}"[..], 415),
        ("no content type", &[], &good, 415),
        ("another compression", &[PROTOBUF, zstd], &good, 415),
        ("garbage", &[PROTOBUF], b"\xff\xff garbage", 400),
        ("half a push", &[PROTOBUF], &good[..good.len() / 2], 400),
        ("garbage for gzip", &[PROTOBUF, GZIP], b"garbage", 400),
    ] {
        let answer = post(&collector.http, PATH, headers, body);
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(!answer.body.is_empty(), "{what}: says why");
    }
    assert_eq!(collector.ask(&["nodes"]), serde_json::json!([]), "nothing of it counts");
}
