//! A push's bytes to typed frames.
//!
//! The reference decoder: prost, behind the bounds of [`shape`]. A faster walk over the
//! raw bytes can take its place behind [`Decoder::decode`], and is then compared with it.
//!
//! Invariants: never panics; allocates no more than the bounds allow; each point becomes a sample or is
//! counted under one reason; frames come out by time.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{self as otlp, AggregationTemporality, NumberDataPoint};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use wattmill_protocol::catalogue::{Kind, Metric, Otlp};
use wattmill_protocol::{NodeId, Source};

use super::MAX_PUSH_BYTES;
use super::index::{Index, select, text, value as attribute};
use super::shape::{self, MAX_MESSAGES, MAX_POINTS, Misshapen};
use super::value::value;
use crate::state::{Counts, NodeFrame, Reason, Sample};

/// Longest value of a label, of a name or of a host's identity, in bytes.
pub(super) const MAX_ATTRIBUTE_BYTES: usize = 256;

/// Most attributes of a point or a resource that are looked at: the catalogue's metrics have at most six.
const MAX_ATTRIBUTES: usize = 64;

/// A push that cannot be decoded at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It is larger than a push may be.
    #[error("a push of more than {MAX_PUSH_BYTES} bytes; push less at once")]
    TooLarge,
    /// It has more parts than a push may have.
    #[error("a push of more than {MAX_POINTS} points or {MAX_MESSAGES} messages; push less at once")]
    TooMany,
    /// It is not protobuf.
    #[error("not a protobuf message")]
    Malformed,
    /// It is protobuf, but no OTLP export request.
    #[error("not an OTLP ExportMetricsServiceRequest")]
    NotOtlp(#[source] prost::DecodeError),
}

impl DecodeError {
    /// Under which it is counted.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::TooLarge => Reason::TooLarge,
            Self::TooMany => Reason::TooMany,
            Self::Malformed | Self::NotOtlp(_) => Reason::Malformed,
        }
    }
}

/// What a push holds.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    /// Its frames, by time: one for each node and instant.
    pub(super) frames: Vec<NodeFrame>,
    /// What it holds that was not taken.
    pub(super) counts: Counts,
}

impl Decoded {
    /// Points that were refused. Points of metrics that the catalogue does not have are ignored: they
    /// are not the sender's mistake.
    pub(super) fn rejected_points(&self) -> u64 {
        self.refusals().map(|(_, number)| number).sum()
    }

    /// What was refused, for people.
    pub(super) fn message(&self) -> String {
        let parts: Vec<String> =
            self.refusals().map(|(reason, number)| format!("{}: {number}", reason.as_str())).collect();
        parts.join(", ")
    }

    fn refusals(&self) -> impl Iterator<Item = (Reason, u64)> {
        let reasons = Reason::ALL.into_iter().filter(|reason| *reason != Reason::UnknownMetric);
        reasons.map(|reason| (reason, self.counts.rejected(reason))).filter(|(_, number)| *number > 0)
    }
}

/// Decodes pushes by the catalogue.
#[derive(Debug)]
pub(crate) struct Decoder {
    index: Index,
}

/// A resource's identity.
struct Identity<'a> {
    node: NodeId,
    name: &'a str,
    machine_id: &'a str,
    host_fraction: f64,
}

impl Decoder {
    /// A decoder with the index of the catalogue.
    pub(crate) fn new() -> Self {
        Self { index: Index::new() }
    }

    /// Decodes a push (an `ExportMetricsServiceRequest`).
    ///
    /// # Errors
    /// When it is too large or no such request. Points and resources that cannot be taken are counted.
    pub(crate) fn decode(&self, push: &[u8]) -> Result<Decoded, DecodeError> {
        if push.len() > MAX_PUSH_BYTES {
            return Err(DecodeError::TooLarge);
        }
        shape::check(push).map_err(|misshapen| match misshapen {
            Misshapen::Malformed => DecodeError::Malformed,
            Misshapen::TooMany => DecodeError::TooMany,
        })?;
        let request = ExportMetricsServiceRequest::decode(push).map_err(DecodeError::NotOtlp)?;
        let mut decoded = Decoded::default();
        for resource in request.resource_metrics {
            self.resource(&resource, &mut decoded);
        }
        decoded.frames.sort_by_key(|frame| frame.time_unix_nanos);
        Ok(decoded)
    }

    fn resource(&self, resource: &otlp::ResourceMetrics, decoded: &mut Decoded) {
        let metrics = || resource.scope_metrics.iter().flat_map(|scope| &scope.metrics);
        let Some(identity) = resource.resource.as_ref().and_then(Identity::of) else {
            // A resource without points is refused as one.
            let points = metrics().map(number_of_points).sum::<usize>().max(1);
            return decoded.counts.reject_many(Reason::BadIdentity, points as u64);
        };
        let mut instants: BTreeMap<u64, Vec<Sample>> = BTreeMap::new();
        for metric in metrics() {
            self.metric(metric, &mut instants, &mut decoded.counts);
        }
        decoded.frames.extend(instants.into_iter().map(|(time, samples)| identity.frame(time, samples)));
    }

    fn metric(&self, metric: &otlp::Metric, instants: &mut BTreeMap<u64, Vec<Sample>>, counts: &mut Counts) {
        let named = self.index.named(&metric.name);
        if named.is_empty() {
            return counts.reject_many(Reason::UnknownMetric, number_of_points(metric) as u64);
        }
        let (form, points) = match &metric.data {
            Some(Data::Gauge(gauge)) => (Some(Kind::Gauge), &gauge.data_points[..]),
            Some(Data::Sum(sum)) => (kind_of(sum), &sum.data_points[..]),
            _ => return counts.reject_many(Reason::WrongForm, number_of_points(metric) as u64),
        };
        for point in points {
            match sample(named, form, &metric.unit, point) {
                Ok(sample) => instants.entry(point.time_unix_nano).or_default().push(sample),
                Err(reason) => counts.reject(reason),
            }
        }
    }
}

/// A sum's kind: one that also goes down is a gauge. One of increases has none that is taken.
fn kind_of(sum: &otlp::Sum) -> Option<Kind> {
    let cumulative = sum.aggregation_temporality == AggregationTemporality::Cumulative as i32;
    cumulative.then_some(if sum.is_monotonic { Kind::Counter } else { Kind::Gauge })
}

fn number_of_points(metric: &otlp::Metric) -> usize {
    match &metric.data {
        Some(Data::Gauge(data)) => data.data_points.len(),
        Some(Data::Sum(data)) => data.data_points.len(),
        Some(Data::Histogram(data)) => data.data_points.len(),
        Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
        Some(Data::Summary(data)) => data.data_points.len(),
        None => 0,
    }
}

fn sample(
    named: &[(&'static Metric, &'static Otlp)],
    form: Option<Kind>,
    unit: &str,
    point: &NumberDataPoint,
) -> Result<Sample, Reason> {
    if point.attributes.len() > MAX_ATTRIBUTES {
        return Err(Reason::BadAttribute);
    }
    let (metric, otlp) = select(named, &point.attributes).ok_or(Reason::UnknownMetric)?;
    if form != Some(metric.kind) {
        return Err(Reason::WrongForm);
    }
    if point.time_unix_nano == 0 {
        return Err(Reason::NoTime);
    }
    let value = value(metric, unit, point)?;
    let labels: Option<Vec<_>> = otlp.attributes.iter().map(|name| label(&point.attributes, name)).collect();
    let labels = labels.ok_or(Reason::BadAttribute)?;
    let mut known = metric.labels.iter().zip(&labels);
    if known.any(|(name, label)| *name == "source" && Source::from_label(label).is_none()) {
        return Err(Reason::BadAttribute);
    }
    let start_unix_nanos = if metric.kind == Kind::Counter { point.start_time_unix_nano } else { 0 };
    Ok(Sample { metric, labels, value, start_unix_nanos })
}

/// An attribute as a label: text, or what has one plain spelling.
fn label(attributes: &[KeyValue], name: &str) -> Option<Box<str>> {
    match attribute(attributes, name)? {
        any_value::Value::StringValue(text) if text.len() <= MAX_ATTRIBUTE_BYTES => {
            Some(text.as_str().into())
        }
        any_value::Value::IntValue(integer) => Some(integer.to_string().into()),
        any_value::Value::BoolValue(truth) => Some(truth.to_string().into()),
        _ => None,
    }
}

impl<'a> Identity<'a> {
    /// The identity of a resource; `None` where a part is missing or wrong.
    fn of(resource: &'a Resource) -> Option<Self> {
        let attributes = resource.attributes.get(..resource.attributes.len().min(MAX_ATTRIBUTES))?;
        let name = |name| {
            let text = text(attributes, name)?;
            (!text.is_empty() && text.len() <= MAX_ATTRIBUTE_BYTES).then_some(text)
        };
        let host_fraction = match attribute(attributes, "wattmill.host_fraction")? {
            any_value::Value::DoubleValue(fraction) => *fraction,
            any_value::Value::IntValue(1) => 1.0,
            any_value::Value::StringValue(text) => text.parse().ok()?,
            _ => return None,
        };
        (host_fraction > 0.0 && host_fraction <= 1.0).then_some(())?;
        Some(Self {
            node: name("service.instance.id")?.parse().ok()?,
            name: name("wattmill.node.name")?,
            machine_id: name("host.id")?,
            host_fraction,
        })
    }

    fn frame(&self, time_unix_nanos: u64, samples: Vec<Sample>) -> NodeFrame {
        NodeFrame {
            node: self.node.clone(),
            name: self.name.into(),
            machine_id: self.machine_id.into(),
            host_fraction: self.host_fraction,
            time_unix_nanos,
            samples,
        }
    }
}
