//! Wattmill's own traces: a span from each lease to its end, under which its node puts fetch, train and
//! report, and the collector the commit.
//!
//! Without a configured endpoint nothing is kept. Invariants: every span that is opened ends, since every
//! lease is committed or revoked; nothing here waits for the receiver but [`Traces::stop`], and that not
//! for long; spans that it does not take are dropped, never queued without bound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter};
use wattmill_protocol::{JobId, NodeId, Token};

/// How long the last spans may take on their way when the collector stops.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Spans of leases, and where they go.
#[derive(Default)]
pub(crate) struct Traces {
    provider: Option<SdkTracerProvider>,
    leases: BTreeMap<Token, Lease>,
    reducing: BTreeMap<(JobId, u32), SystemTime>,
}

struct Lease {
    span: Span,
    round: (JobId, u32),
    /// Of the span, and of the parts under it.
    attributes: Vec<KeyValue>,
}

impl Traces {
    /// Traces that go to an OTLP endpoint over gRPC; none without one.
    pub(crate) fn start(endpoint: Option<&str>) -> Result<Self, ExporterBuildError> {
        let Some(endpoint) = endpoint else { return Ok(Self::default()) };
        let inner =
            opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let exporter = Exporter { inner, failing: AtomicBool::new(false) };
        let resource = Resource::builder().with_service_name("wattmill-collector").build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { provider: Some(provider), ..Self::default() })
    }

    fn tracer(&self) -> Option<SdkTracer> {
        Some(self.provider.as_ref()?.tracer("wattmill"))
    }

    /// A lease goes out; returns its trace context for the node (W3C), empty without traces.
    pub(crate) fn lease(&mut self, token: Token, job: &JobId, place: (u32, u32), node: &NodeId) -> String {
        let Some(tracer) = self.tracer() else { return String::new() };
        let attributes = vec![
            KeyValue::new("wattmill.token", token.to_string()),
            KeyValue::new("wattmill.job", job.to_string()),
            KeyValue::new("wattmill.round", i64::from(place.0)),
            KeyValue::new("wattmill.shard", i64::from(place.1)),
            KeyValue::new("wattmill.node.id", node.to_string()),
        ];
        let builder = tracer.span_builder("lease").with_kind(SpanKind::Producer);
        let builder = builder.with_attributes(attributes.iter().cloned());
        let span = tracer.build_with_context(builder, &Context::new());
        let context = span.span_context();
        let flags = context.trace_flags().to_u8();
        let parent = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
        self.leases.insert(token, Lease { span, round: (job.clone(), place.0), attributes });
        parent
    }

    /// A round's blobs are being reduced.
    pub(crate) fn reducing(&mut self, job: &JobId, round: u32) {
        if self.provider.is_some() {
            self.reducing.insert((job.clone(), round), SystemTime::now());
            // Only the newest rounds are still to be committed.
            self.reducing.retain(|(j, r), _| j != job || *r == round);
        }
    }

    /// A lease is committed: its span ends, with the commit as its last part.
    pub(crate) fn committed(&mut self, token: Token) {
        let lease = self.leases.remove(&token);
        let Some((tracer, Lease { mut span, round, attributes })) = self.tracer().zip(lease) else { return };
        let begun = self.reducing.get(&round).copied().unwrap_or_else(SystemTime::now);
        let parent = Context::new().with_remote_span_context(span.span_context().clone());
        let builder = tracer.span_builder("commit").with_start_time(begun).with_attributes(attributes);
        tracer.build_with_context(builder, &parent).end();
        span.set_attribute(KeyValue::new("wattmill.outcome", "committed"));
        span.end();
    }

    /// A lease was taken away: its span ends.
    pub(crate) fn revoked(&mut self, token: Token, reason: &'static str) {
        if let Some(Lease { mut span, .. }) = self.leases.remove(&token) {
            span.set_attribute(KeyValue::new("wattmill.outcome", reason));
            span.set_status(Status::error(reason));
            span.end();
        }
    }

    /// A job has ended: none of its rounds is committed any more.
    pub(crate) fn ended(&mut self, job: &JobId) {
        self.reducing.retain(|(reducing, _), _| reducing != job);
    }

    /// Sends what waits; blocks for a while, at most. Leases that go on without this collector end here
    /// without an outcome.
    pub(crate) fn stop(&mut self) {
        self.leases.clear();
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(STOP_WITHIN)
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Sends spans, and says once when that begins to fail, and once when it works again: the SDK is silent.
#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    failing: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.inner.export(batch).await;
        match (&sent, self.failing.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(%error, spans, "traces cannot be sent and are dropped; see traces.endpoint");
            }
            (Ok(()), true) => tracing::info!("traces flow again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
