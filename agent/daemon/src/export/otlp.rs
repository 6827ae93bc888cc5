//! Snapshots as OTLP: what the collector, or any other OTLP receiver, is sent.
//!
//! Invariant: counters are cumulative and monotonic, with the start time of whatever counts: the ledger,
//! the host's boot or this process. Names and attributes come from the catalogue alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use wattmill_protocol::catalogue::{self as cat, Kind, Otlp, SEMANTIC_CONVENTIONS};

use crate::snapshot::series::{Flatten, Shape};
use crate::snapshot::{NodeFacts, Snapshot};

/// Encodes snapshots as requests.
///
/// Of snapshots that have the same series the requests differ in times and values alone, which have the same
/// length in each: so a request is encoded once, and then those are put into its bytes.
#[derive(Default)]
pub struct Encoder {
    flatten: Flatten,
    template: Option<Template>,
}

struct Template {
    /// What it is the request of.
    shape: Arc<Shape>,
    node: Arc<NodeFacts>,
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a data point's numbers stand.
struct Place {
    /// Which of the snapshot's series it is.
    series: usize,
    /// Of the first byte of the data point.
    at: usize,
    /// Since when it counts; `None` for a gauge.
    start: Option<Start>,
}

impl Encoder {
    /// The snapshot as an encoded `ExportMetricsServiceRequest`.
    pub fn frame(&mut self, snapshot: &Snapshot) -> Bytes {
        let (shape, values) = self.flatten.series(snapshot);
        let known = self
            .template
            .take()
            .filter(|known| Arc::ptr_eq(&known.shape, &shape) && Arc::ptr_eq(&known.node, &snapshot.node));
        let template = self.template.insert(known.unwrap_or_else(|| Template::new(shape, &snapshot.node)));
        template.fill(snapshot, &values);
        Bytes::copy_from_slice(&template.bytes)
    }
}

impl Template {
    fn new(shape: Arc<Shape>, node: &Arc<NodeFacts>) -> Self {
        let (metrics, places) = metrics(&shape);
        let scope = InstrumentationScope {
            name: "wattmill-agent".to_owned(),
            version: crate::VERSION.to_owned(),
            ..InstrumentationScope::default()
        };
        // The fields that stand before and behind the metrics, as messages without them.
        let before = ScopeMetrics { scope: Some(scope), ..ScopeMetrics::default() }.encode_to_vec();
        let schema_url = SEMANTIC_CONVENTIONS.to_owned();
        let after =
            ScopeMetrics { schema_url: schema_url.clone(), ..ScopeMetrics::default() }.encode_to_vec();
        let resource = Some(resource(node));
        let outer_before = ResourceMetrics { resource, ..ResourceMetrics::default() }.encode_to_vec();
        let outer_after = ResourceMetrics { schema_url, ..ResourceMetrics::default() }.encode_to_vec();
        let mut bytes = Vec::new();
        let scope_length = before.len() + metrics.len() + after.len();
        let field = key_length(SCOPE_METRICS, scope_length) + scope_length;
        open(&mut bytes, RESOURCE_METRICS, outer_before.len() + field + outer_after.len());
        bytes.extend(outer_before);
        open(&mut bytes, SCOPE_METRICS, scope_length);
        bytes.extend(before);
        let offset = bytes.len();
        let places = places.into_iter().map(|place| Place { at: place.at + offset, ..place }).collect();
        bytes.extend(metrics);
        bytes.extend(after);
        bytes.extend(outer_after);
        Self { shape, node: Arc::clone(node), bytes, places }
    }

    fn fill(&mut self, snapshot: &Snapshot, values: &[f64]) {
        let Self { bytes, places, .. } = self;
        for Place { series, at, start } in places {
            let mut at = *at;
            // Fields of 64 bits, each behind a key of one byte, in the order of their numbers.
            let mut put = |number: [u8; 8]| {
                bytes[at + 1..at + 9].copy_from_slice(&number);
                at += 9;
            };
            if let Some(start) = start {
                // Later than now, by a clock that went back: unknown. One that moved along would be a reset each time.
                let start = Some(start.of(snapshot)).filter(|start| *start <= snapshot.unix_nanos);
                put(start.unwrap_or(0).to_le_bytes());
            }
            put(snapshot.unix_nanos.to_le_bytes());
            put(values[*series].to_le_bytes());
        }
    }
}

/// Numbers of the fields that are written here rather than by `prost`, as
/// `opentelemetry/proto/metrics/v1/metrics.proto` and the service's own have them.
const RESOURCE_METRICS: u32 = 1;
const SCOPE_METRICS: u32 = 2;
const METRICS: u32 = 2;
const DATA_POINTS: u32 = 1;
const METRIC_GAUGE: u32 = 5;
const METRIC_SUM: u32 = 7;

/// Begins a field that is a message of so many bytes.
fn open(bytes: &mut Vec<u8>, field: u32, length: usize) {
    encode_key(field, WireType::LengthDelimited, bytes);
    encode_varint(length as u64, bytes);
}

fn key_length(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64)
}

fn resource(node: &NodeFacts) -> Resource {
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

/// All metrics, encoded one after the other as fields of their scope, and where their numbers stand in that.
///
/// Without descriptions: they are the catalogue's, and would be half of each frame in the spool. Metrics of one
/// OTLP name are one metric: a GPU's `hw.energy` and a CPU's differ in attributes.
fn metrics(shape: &Shape) -> (Vec<u8>, Vec<Place>) {
    let mut families: BTreeMap<&'static str, Family> = BTreeMap::new();
    for (series, (metric, labels)) in shape.series().enumerate() {
        // A description with a part that is not known yet is not pushed: the collector takes whole ones.
        if let Some(otlp) = metric.otlp.as_ref().filter(|_| labels.iter().all(|label| !label.is_empty())) {
            let family = families.entry(otlp.name).or_insert_with(|| Family::new(metric, otlp));
            family.add(series, metric, otlp, labels);
        }
    }
    let (mut bytes, mut places) = (Vec::new(), Vec::new());
    for family in families.into_values() {
        family.write(&mut bytes, &mut places);
    }
    (bytes, places)
}

struct Family {
    metric: &'static cat::Metric,
    otlp: &'static Otlp,
    /// Its data points, encoded as fields of a sum or gauge.
    points: Vec<u8>,
    places: Vec<Place>,
}

impl Family {
    fn new(metric: &'static cat::Metric, otlp: &'static Otlp) -> Self {
        Self { metric, otlp, points: Vec::new(), places: Vec::new() }
    }

    fn add(&mut self, series: usize, metric: &'static cat::Metric, otlp: &Otlp, labels: &[Box<str>]) {
        let start = match metric.kind {
            Kind::Counter => Some(Start::of_metric(metric)),
            Kind::Gauge => None,
        };
        let fixed = otlp.fixed.iter().map(|(key, value)| text(key, value));
        let labels = otlp.attributes.iter().zip(labels);
        // What is zero is left out of a message: numbers that are put in later are not zero now.
        let point = NumberDataPoint {
            attributes: fixed.chain(labels.map(|(key, value)| text(key, value))).collect(),
            start_time_unix_nano: u64::from(start.is_some()),
            time_unix_nano: 1,
            value: Some(number_data_point::Value::AsDouble(1.0)),
            ..NumberDataPoint::default()
        };
        open(&mut self.points, DATA_POINTS, point.encoded_len());
        self.places.push(Place { series, at: self.points.len(), start });
        self.points.extend(point.encode_to_vec());
    }

    fn write(self, bytes: &mut Vec<u8>, places: &mut Vec<Place>) {
        let name = self.otlp.name.to_owned();
        let described = Metric { name, unit: self.otlp.unit.to_owned(), ..Metric::default() }.encode_to_vec();
        let (field, properties) = match self.metric.kind {
            Kind::Gauge => (METRIC_GAUGE, Vec::new()),
            Kind::Counter => {
                let aggregation_temporality = AggregationTemporality::Cumulative.into();
                let sum = Sum { aggregation_temporality, is_monotonic: true, ..Sum::default() };
                (METRIC_SUM, sum.encode_to_vec())
            }
        };
        let data = self.points.len() + properties.len();
        open(bytes, METRICS, described.len() + key_length(field, data) + data);
        bytes.extend(described);
        open(bytes, field, data);
        let offset = bytes.len();
        places.extend(self.places.into_iter().map(|place| Place { at: place.at + offset, ..place }));
        bytes.extend(self.points);
        bytes.extend(properties);
    }
}

/// Since when a counter counts.
#[derive(Clone, Copy)]
enum Start {
    Ledger,
    Boot,
    Process,
}

impl Start {
    fn of_metric(metric: &'static cat::Metric) -> Self {
        const KEPT_IN_LEDGER: [&cat::Metric; 8] = [
            &cat::CPU_ENERGY_JOULES,
            &cat::GPU_ENERGY_JOULES,
            &cat::GPU_MODULE_ENERGY_JOULES,
            &cat::SENSOR_ENERGY_JOULES,
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
        let is = |among: &[&cat::Metric]| among.iter().any(|m| std::ptr::eq(*m, metric));
        if is(&KEPT_IN_LEDGER) {
            Self::Ledger
        } else if is(&SINCE_BOOT) {
            Self::Boot
        } else {
            Self::Process
        }
    }

    /// Unix nanoseconds.
    fn of(self, snapshot: &Snapshot) -> u64 {
        match self {
            Self::Ledger => snapshot.started_unix_nanos,
            Self::Boot => {
                let seconds = snapshot.host.as_ref().map_or(0, |host| host.boot_unix_seconds);
                seconds.saturating_mul(1_000_000_000)
            }
            Self::Process => snapshot.node.process_started_unix_nanos,
        }
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
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::metrics::v1::metric;

    use super::*;
    use crate::snapshot::tests::sample;

    fn request(snapshot: &Snapshot) -> ExportMetricsServiceRequest {
        ExportMetricsServiceRequest::decode(Encoder::default().frame(snapshot)).unwrap()
    }

    #[test]
    fn numbers_are_put_into_the_frame_of_their_series() {
        let mut encoder = Encoder::default();
        // After the boot, so that no start is unknown: `prost` leaves zeros out.
        let mut snapshot = Snapshot { unix_nanos: 5_000_000_000, ..sample() };
        let mut same = |snapshot: &Snapshot| {
            let frame = encoder.frame(snapshot);
            let request = ExportMetricsServiceRequest::decode(&frame[..]).unwrap();
            assert!(
                request.encode_to_vec() == frame,
                "each byte where prost has it, and none without meaning"
            );
            assert!(frame == Encoder::default().frame(snapshot), "as if it were the first");
        };
        same(&snapshot);
        snapshot.unix_nanos += 1_000;
        snapshot.useful_flops += 1;
        snapshot.own.power_watts = Some(0.0);
        same(&snapshot);
        snapshot.gpus[0].temperature_celsius = Some(40.0);
        same(&snapshot);
        snapshot.gpus.swap(0, 1);
        same(&snapshot);
        snapshot.meters.clear();
        same(&snapshot);
        snapshot.node = Arc::new(NodeFacts { name: "other".to_owned(), ..(*snapshot.node).clone() });
        same(&snapshot);
    }

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
        assert_eq!(
            start(&snapshot, "hw.energy"),
            0,
            "a clock that went back: no start is after the end, nor moves with it"
        );
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
