//! Pushes as agents and strangers send them.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1 as otlp;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Raw;
use opentelemetry_proto::tonic::resource::v1::Resource;
use proptest::prelude::*;
use prost::Message;
use wattmill_protocol::catalogue::{self as metrics, Exporter, Kind, Metric};

use super::decode::MAX_ATTRIBUTE_BYTES;
use super::*;
use crate::state::testing::{at, frame, gauge, node, node_energy};
use crate::state::{NodeFrame, Sample, Value};

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(super) fn text_attribute(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.into()))
}

fn resource(frame: &NodeFrame) -> Resource {
    Resource {
        attributes: vec![
            text_attribute("service.name", "wattmill-agent"),
            text_attribute("service.instance.id", frame.node.as_str()),
            text_attribute("host.id", &frame.machine_id),
            text_attribute("wattmill.node.name", &frame.name),
            attribute("wattmill.host_fraction", any_value::Value::DoubleValue(frame.host_fraction)),
        ],
        ..Resource::default()
    }
}

fn metric(sample: &Sample, time_unix_nano: u64) -> otlp::Metric {
    let form = sample.metric.otlp.as_ref().unwrap();
    let fixed = form.fixed.iter().map(|(name, value)| text_attribute(name, value));
    let labels = form.attributes.iter().zip(&sample.labels).map(|(name, value)| text_attribute(name, value));
    let value = match sample.value {
        Value::Microjoules(amount) => Raw::AsDouble(amount as f64 / 1e6),
        Value::Number(number) => Raw::AsDouble(number),
    };
    let point = otlp::NumberDataPoint {
        attributes: fixed.chain(labels).collect(),
        start_time_unix_nano: sample.start_unix_nanos,
        time_unix_nano,
        value: Some(value),
        ..Default::default()
    };
    let data_points = vec![point];
    let data = match sample.metric.kind {
        Kind::Gauge => Data::Gauge(otlp::Gauge { data_points }),
        Kind::Counter => Data::Sum(otlp::Sum { data_points, aggregation_temporality: 2, is_monotonic: true }),
    };
    otlp::Metric { name: form.name.into(), unit: form.unit.into(), data: Some(data), ..Default::default() }
}

/// A push of `frames`, as an agent makes it.
pub(super) fn push(frames: &[NodeFrame]) -> ExportMetricsServiceRequest {
    let resource_metrics = frames.iter().map(|frame| otlp::ResourceMetrics {
        resource: Some(resource(frame)),
        scope_metrics: vec![otlp::ScopeMetrics {
            metrics: frame.samples.iter().map(|sample| metric(sample, frame.time_unix_nanos)).collect(),
            ..Default::default()
        }],
        schema_url: metrics::SEMANTIC_CONVENTIONS.into(),
    });
    ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }
}

/// A sample of each metric that agents push.
fn one_of_each() -> Vec<Sample> {
    let pushed = metrics::ALL.iter().filter(|m| m.exporter == Exporter::Agent && m.otlp.is_some());
    pushed.map(|metric| one_of(metric)).collect()
}

fn one_of(metric: &'static Metric) -> Sample {
    let label = |name: &&str| Box::from(if *name == "source" { "counter" } else { *name });
    let counter = metric.kind == Kind::Counter;
    let value =
        if counter && metric.unit == "J" { Value::Microjoules(1_234_567) } else { Value::Number(0.5) };
    let labels = metric.labels.iter().map(label).collect();
    Sample { metric, labels, value, start_unix_nanos: if counter { at(-5.0) } else { 0 } }
}

fn decode(push: &ExportMetricsServiceRequest) -> decode::Decoded {
    Decoder::new().decode(&push.encode_to_vec()).unwrap()
}

fn points(push: &mut ExportMetricsServiceRequest) -> &mut Vec<otlp::NumberDataPoint> {
    match &mut push.resource_metrics[0].scope_metrics[0].metrics[0].data {
        Some(Data::Gauge(data)) => &mut data.data_points,
        Some(Data::Sum(data)) => &mut data.data_points,
        _ => unreachable!(),
    }
}

#[test]
fn every_metric_comes_through_as_it_was() {
    let sent = [frame(1, 1.0, one_of_each()), frame(2, 2.0, one_of_each())];
    let decoded = decode(&push(&sent));
    assert_eq!(decoded.frames, sent);
    assert_eq!((decoded.rejected_points(), decoded.message()), (0, String::new()));
}

#[test]
fn instants_of_a_batch_become_frames_in_order() {
    let sent = [2.0, 0.0, 1.0].map(|seconds| frame(1, seconds, [node_energy("cpu", seconds as u64)]));
    let mut batch = push(&sent);
    let metrics: Vec<_> =
        batch.resource_metrics.iter().flat_map(|r| r.scope_metrics[0].metrics.clone()).collect();
    batch.resource_metrics.truncate(1);
    batch.resource_metrics[0].scope_metrics[0].metrics = metrics;
    let times: Vec<_> = decode(&batch).frames.iter().map(|frame| frame.time_unix_nanos).collect();
    assert_eq!(times, [at(0.0), at(1.0), at(2.0)]);
}

#[test]
fn a_resource_without_a_right_identity_is_refused() {
    let sent = frame(1, 0.0, [node_energy("cpu", 1), node_energy("dram", 1)]);
    let change = |change: &dyn Fn(&mut Vec<KeyValue>)| {
        let mut push = push(std::slice::from_ref(&sent));
        change(&mut push.resource_metrics[0].resource.as_mut().unwrap().attributes);
        let decoded = decode(&push);
        (decoded.frames.len(), decoded.counts.rejected(Reason::BadIdentity))
    };
    assert_eq!(change(&|_| {}), (1, 0));
    for index in 1..5 {
        assert_eq!(change(&|attributes| drop(attributes.remove(index))), (0, 2), "{index}");
    }
    let long = "x".repeat(MAX_ATTRIBUTE_BYTES + 1);
    for (index, value) in [
        (1, any_value::Value::StringValue("node-1".into())),
        (1, any_value::Value::IntValue(1)),
        (2, any_value::Value::StringValue(String::new())),
        (3, any_value::Value::StringValue(long)),
        (4, any_value::Value::DoubleValue(0.0)),
        (4, any_value::Value::DoubleValue(1.5)),
        (4, any_value::Value::DoubleValue(f64::NAN)),
        (4, any_value::Value::StringValue("half".into())),
    ] {
        let set = |attributes: &mut Vec<KeyValue>| {
            attributes[index].value = Some(AnyValue { value: Some(value.clone()) });
        };
        assert_eq!(change(&set), (0, 2), "{value:?}");
    }
    let mut none = push(&[sent]);
    none.resource_metrics[0].resource = None;
    assert_eq!(decode(&none).rejected_points(), 2);
}

#[test]
fn points_that_are_not_the_catalogues_are_counted_by_reason() {
    type Change = fn(&mut ExportMetricsServiceRequest);
    fn first(push: &mut ExportMetricsServiceRequest) -> &mut otlp::Metric {
        &mut push.resource_metrics[0].scope_metrics[0].metrics[0]
    }
    let cases: [(Change, Reason); 12] = [
        (|p| first(p).name = "http.server.duration".into(), Reason::UnknownMetric),
        (|p| first(p).unit = "kJ".into(), Reason::WrongForm),
        (
            |p| {
                first(p).data = Some(Data::Histogram(otlp::Histogram {
                    data_points: vec![otlp::HistogramDataPoint::default()],
                    ..Default::default()
                }));
            },
            Reason::WrongForm,
        ),
        (
            |p| first(p).data = Some(Data::Gauge(otlp::Gauge { data_points: points(p).clone() })),
            Reason::WrongForm,
        ),
        (
            |p| match &mut first(p).data {
                Some(Data::Sum(sum)) => sum.aggregation_temporality = 1,
                _ => unreachable!(),
            },
            Reason::WrongForm,
        ),
        (|p| points(p)[0].time_unix_nano = 0, Reason::NoTime),
        (|p| points(p)[0].value = Some(Raw::AsDouble(f64::NAN)), Reason::NotFinite),
        (|p| points(p)[0].value = Some(Raw::AsInt(-1)), Reason::Negative),
        (|p| points(p)[0].value = Some(Raw::AsInt(i64::MAX)), Reason::Sentinel),
        (|p| drop(points(p)[0].attributes.pop()), Reason::BadAttribute),
        (|p| points(p)[0].attributes[1] = text_attribute("wattmill.source", "guess"), Reason::BadAttribute),
        (
            |p| points(p)[0].attributes[0] = text_attribute("wattmill.scope", &"x".repeat(257)),
            Reason::BadAttribute,
        ),
    ];
    for (index, (change, reason)) in cases.into_iter().enumerate() {
        let mut push = push(&[frame(1, 0.0, [node_energy("cpu", 1), node_energy("dram", 1)])]);
        change(&mut push);
        let decoded = decode(&push);
        assert_eq!(decoded.counts.rejected(reason), 1, "case {index}: {:?}", decoded.counts);
        assert_eq!(decoded.frames[0].samples, [node_energy("dram", 1)], "the rest is taken");
        assert_eq!(decoded.rejected_points(), u64::from(reason != Reason::UnknownMetric));
    }
}

#[test]
fn a_push_that_is_too_large_is_refused_as_a_whole() {
    let decoder = Decoder::new();
    let large = vec![0; MAX_PUSH_BYTES + 1];
    assert!(matches!(decoder.decode(&large), Err(DecodeError::TooLarge)));
    let many = frame(1, 0.0, vec![gauge(&metrics::GPU_UP, &["a"], 1.0); shape::MAX_POINTS + 1]);
    assert!(matches!(decoder.decode(&push(&[many]).encode_to_vec()), Err(DecodeError::TooMany)));
    assert!(matches!(decoder.decode(&[0xff]), Err(DecodeError::Malformed)));
    assert!(decoder.decode(&[10, 4, 10, 2, 10, 0, 0]).is_err());
}

fn headers(node: u32, position: u64) -> Origin {
    Origin { node: Some(self::node(node)), position: Some(position) }
}

#[test]
fn a_node_reports_only_as_itself() {
    let telemetry = Arc::new(Telemetry::new());
    let ingest = Ingest::new(Arc::clone(&telemetry));
    let bytes = |numbers: &[u32]| {
        let frames: Vec<_> = numbers.iter().map(|n| frame(*n, 0.0, [node_energy("cpu", 1)])).collect();
        push(&frames).encode_to_vec()
    };
    let refused = ingest.receive(&bytes(&[1, 2]), &headers(1, 1), at(0.0));
    assert!(matches!(refused, Err(ReceiveError::Identity { .. })));
    assert_eq!(telemetry.received(&node(1)), None, "nothing of it was taken");
    assert_eq!(telemetry.counts().rejected(Reason::IdentityMismatch), 1);
    // A gateway without a node's identity may push for many; it has no place in anybody's spool.
    let gateway = Origin { node: None, position: Some(9) };
    ingest.receive(&bytes(&[1, 2]), &gateway, at(0.0)).unwrap();
    assert_eq!(telemetry.rollup(at(0.0)).known_nodes, 2);
    assert_eq!(telemetry.received(&node(1)), None);
}

#[test]
fn a_push_of_which_nothing_is_taken_is_received() {
    let telemetry = Arc::new(Telemetry::new());
    let ingest = Ingest::new(Arc::clone(&telemetry));
    let good = push(&[frame(1, 0.0, [node_energy("cpu", 1)])]).encode_to_vec();
    ingest.receive(&good, &headers(1, 1), at(0.0)).unwrap();
    let mut bad = push(&[frame(1, 1.0, [node_energy("cpu", 1)])]);
    points(&mut bad)[0].value = None;
    let receipt = ingest.receive(&bad.encode_to_vec(), &headers(1, 2), at(1.0)).unwrap();
    assert_eq!(receipt, Receipt { rejected_points: 1, message: "not_finite: 1".into() });
    assert_eq!(telemetry.received(&node(1)), Some(2));
    let origin =
        |position: &'static [u8]| Origin::read(move |name| (name == POSITION_HEADER).then_some(position));
    assert_eq!(origin(b"18446744073709551615").unwrap().position, Some(u64::MAX));
    for wrong in [&b"-1"[..], b"", b"one", b"\xff"] {
        assert!(origin(wrong).is_err());
    }
}

/// Serves `telemetry` over gRPC; gives the address.
async fn serve(telemetry: Arc<Telemetry>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = MetricsService::new(Arc::new(Ingest::new(telemetry)));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    address
}

#[tokio::test]
async fn over_grpc() {
    use tonic::codec::CompressionEncoding::{Gzip, Zstd};
    let telemetry = Arc::new(Telemetry::new());
    let client = MetricsServiceClient::connect(serve(Arc::clone(&telemetry)).await).await.unwrap();
    let clients =
        [client.clone(), client.clone().send_compressed(Gzip), client.clone().send_compressed(Zstd)];
    for (index, mut client) in clients.into_iter().enumerate() {
        let seconds = index as f64;
        let mut request = tonic::Request::new(push(&[frame(1, seconds, [node_energy("cpu", index as u64)])]));
        request.metadata_mut().insert(NODE_HEADER, node(1).as_str().parse().unwrap());
        request.metadata_mut().insert(POSITION_HEADER, (index + 7).to_string().parse().unwrap());
        assert_eq!(
            client.export(request).await.unwrap().into_inner(),
            ExportMetricsServiceResponse::default()
        );
        assert_eq!(telemetry.received(&node(1)), Some(index as u64 + 7));
    }
    assert_eq!(telemetry.rollup(at(2.0)).energy["cpu"].total(), 2);

    let mut client = client.max_encoding_message_size(usize::MAX);
    let mut partial = push(&[frame(1, 3.0, [node_energy("cpu", 3)])]);
    points(&mut partial)[0].value = None;
    let success = client.export(partial).await.unwrap().into_inner().partial_success.unwrap();
    assert_eq!((success.rejected_data_points, &*success.error_message), (1, "not_finite: 1"));

    let mut request = tonic::Request::new(push(&[frame(1, 4.0, [node_energy("cpu", 4)])]));
    request.metadata_mut().insert(NODE_HEADER, node(2).as_str().parse().unwrap());
    assert_eq!(client.export(request).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let many = frame(1, 5.0, vec![gauge(&metrics::GPU_UP, &["a"], 1.0); shape::MAX_POINTS + 1]);
    assert_eq!(client.export(push(&[many])).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let mut bomb = push(&[frame(1, 5.0, [])]);
    bomb.resource_metrics[0].schema_url = "x".repeat(MAX_PUSH_BYTES);
    let error = client.send_compressed(Zstd).export(bomb).await.unwrap_err();
    assert!(error.message().contains("limit"), "{error}");
}

#[tokio::test]
async fn over_http() {
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use std::io::Write;
    use tonic::codegen::Service;

    let telemetry = Arc::new(Telemetry::new());
    let mut router = router(Arc::new(Ingest::new(Arc::clone(&telemetry))));
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let good = push(&[frame(1, 0.0, [node_energy("cpu", 1)])]).encode_to_vec();
    let mut partial = push(&[frame(1, 1.0, [node_energy("cpu", 3)])]);
    points(&mut partial)[0].value = None;
    let partial = partial.encode_to_vec();
    let protobuf = "application/x-protobuf";
    let too_large = vec![0; MAX_PUSH_BYTES + 1];
    for (content_type, encoding, body, status) in [
        (protobuf, "", good.clone(), StatusCode::OK),
        ("Application/X-Protobuf; charset=x", "gzip", gzip(&good), StatusCode::OK),
        ("application/json", "", b"{}".to_vec(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("", "", good.clone(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (protobuf, "br", good.clone(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (protobuf, "gzip", good.clone(), StatusCode::BAD_REQUEST),
        (protobuf, "", vec![0xff], StatusCode::BAD_REQUEST),
        (protobuf, "", too_large.clone(), StatusCode::PAYLOAD_TOO_LARGE),
        (protobuf, "gzip", gzip(&too_large), StatusCode::PAYLOAD_TOO_LARGE),
        (protobuf, "", partial, StatusCode::OK),
    ] {
        let mut request = Request::post("/v1/metrics");
        for (name, value) in [("content-type", content_type), ("content-encoding", encoding)] {
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        let response = router.call(request.body(Body::from(body)).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{content_type} {encoding}");
        assert_eq!(response.headers()["content-type"], protobuf);
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        if status == StatusCode::OK {
            ExportMetricsServiceResponse::decode(body).unwrap();
        } else {
            assert!(!body.is_empty());
        }
    }
    let request = Request::post("/v1/metrics").header("content-type", protobuf);
    let request = request.header(NODE_HEADER, node(2).as_str()).body(Body::from(good)).unwrap();
    assert_eq!(router.call(request).await.unwrap().status(), StatusCode::FORBIDDEN);
    let get = Request::get("/v1/metrics").body(Body::empty()).unwrap();
    assert_eq!(router.call(get).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(telemetry.counts().rejected(Reason::TooLarge), 2);
    assert_eq!(telemetry.counts().rejected(Reason::Malformed), 5);
    assert_eq!(telemetry.counts().rejected(Reason::NotFinite), 1);
}

/// What every frame that is decoded holds to, whatever it was decoded from.
fn holds_to_the_rules(decoded: &decode::Decoded) -> Result<(), TestCaseError> {
    for frame in &decoded.frames {
        prop_assert!(frame.time_unix_nanos > 0 && !frame.samples.is_empty());
        prop_assert!(frame.host_fraction > 0.0 && frame.host_fraction <= 1.0);
        prop_assert!(!frame.name.is_empty() && !frame.machine_id.is_empty());
        for sample in &frame.samples {
            prop_assert_eq!(sample.labels.len(), sample.metric.labels.len());
            prop_assert!(sample.labels.iter().all(|label| label.len() <= MAX_ATTRIBUTE_BYTES));
            let energy = sample.metric.kind == Kind::Counter && sample.metric.unit == "J";
            match sample.value {
                Value::Microjoules(_) => prop_assert!(energy),
                Value::Number(number) => prop_assert!(!energy && number.is_finite()),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(decoded) = Decoder::new().decode(&bytes) {
            holds_to_the_rules(&decoded)?;
        }
    }

    #[test]
    fn mutated_pushes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6)) {
        let mut bytes = push(&[frame(1, 1.0, one_of_each()), frame(2, 2.0, one_of_each())]).encode_to_vec();
        for (index, byte, way) in changes {
            let index = index.index(bytes.len());
            match way {
                0 => bytes[index] = byte,
                1 => drop(bytes.remove(index)),
                _ => bytes.insert(index, byte),
            }
        }
        let telemetry = Arc::new(Telemetry::new());
        if let Ok(decoded) = Decoder::new().decode(&bytes) {
            holds_to_the_rules(&decoded)?;
            let _ = Ingest::new(Arc::clone(&telemetry)).receive(&bytes, &Origin::default(), at(10.0));
            let _ = telemetry.rollup(at(10.0));
            let _ = telemetry.history(None, i64::MIN, i64::MAX);
            let records = telemetry.checkpoint(None).records;
            prop_assert!(Telemetry::restore(records).is_ok());
        }
    }
}
