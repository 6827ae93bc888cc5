//! This node's part of a lease's trace: fetch, train, report, under the span that the collector opened.
//!
//! Without a configured endpoint nothing is kept. Invariant: nothing here waits for the receiver but
//! [`Traces::stop`], and that not for long; spans that it does not take are dropped, never queued without
//! bound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use wattmill_protocol::{NodeId, Token, v1};

/// How long the last spans may take on their way: a part of what handing work back may take.
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// Traces of the leases in hand.
#[derive(Default)]
pub(super) struct Traces {
    provider: Option<SdkTracerProvider>,
    node: String,
    leases: BTreeMap<Token, Lease>,
}

struct Lease {
    parent: Context,
    attributes: Vec<KeyValue>,
    part: Part,
    /// When the part under way began.
    since: SystemTime,
}

/// What a lease goes through here. Waiting for the worker, or for the commit, is nobody's work: no span.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Fetch,
    Wait,
    Train,
    Report,
    Kept,
}

impl Part {
    fn span(self) -> Option<&'static str> {
        match self {
            Self::Fetch => Some("fetch"),
            Self::Train => Some("train"),
            Self::Report => Some("report"),
            Self::Wait | Self::Kept => None,
        }
    }
}

impl Traces {
    /// Traces that go to an OTLP endpoint over gRPC; none without one.
    pub(super) fn start(endpoint: Option<&str>, node: &NodeId) -> Result<Self, ExporterBuildError> {
        let Some(endpoint) = endpoint else { return Ok(Self::default()) };
        let inner =
            opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let exporter = Exporter { inner, failing: AtomicBool::new(false) };
        let instance = KeyValue::new("service.instance.id", node.to_string());
        let resource =
            Resource::builder().with_service_name("wattmill-agent").with_attribute(instance).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { provider: Some(provider), node: node.to_string(), leases: BTreeMap::new() })
    }

    /// A lease came in, with the collector's trace context: its fetch begins.
    pub(super) fn begin(&mut self, lease: &v1::Lease) {
        let Some(parent) = self.provider.as_ref().and_then(|_| parse(&lease.traceparent)) else { return };
        let token = Token(lease.token);
        let attributes = vec![
            KeyValue::new("wattmill.token", token.to_string()),
            KeyValue::new("wattmill.job", lease.job.clone()),
            KeyValue::new("wattmill.node.id", self.node.clone()),
        ];
        let parent = Context::new().with_remote_span_context(parent);
        let since = SystemTime::now();
        self.leases.insert(token, Lease { parent, attributes, part: Part::Fetch, since });
    }

    /// What these leases need is here; one of which that was said before goes on as it is.
    pub(super) fn fetched(&mut self, tokens: impl Iterator<Item = Token>) {
        for token in tokens {
            if self.leases.get(&token).is_some_and(|lease| lease.part == Part::Fetch) {
                self.enter(token, Part::Wait, None);
            }
        }
    }

    /// A lease's work begins.
    pub(super) fn train(&mut self, token: Token) {
        self.enter(token, Part::Train, None);
    }

    /// A lease's result is here: of its work, or of a fetch that failed.
    pub(super) fn finished(&mut self, token: Token, failure: Option<&str>) {
        self.enter(token, Part::Report, failure);
    }

    /// The collector has a lease's result.
    pub(super) fn reported(&mut self, token: Token) {
        self.enter(token, Part::Kept, None);
    }

    /// A lease is no longer in hand; why, where it was taken away.
    pub(super) fn end(&mut self, token: Token, taken: Option<&str>) {
        self.enter(token, Part::Kept, taken);
        self.leases.remove(&token);
    }

    /// The part under way ends, and the next one begins.
    fn enter(&mut self, token: Token, next: Part, failure: Option<&str>) {
        let Some(provider) = &self.provider else { return };
        let Some(lease) = self.leases.get_mut(&token) else { return };
        let (part, since, now) = (lease.part, lease.since, SystemTime::now());
        (lease.part, lease.since) = (next, now);
        let Some(name) = part.span() else { return };
        let tracer = provider.tracer("wattmill");
        let attributes = lease.attributes.iter().cloned();
        let builder = tracer.span_builder(name).with_start_time(since).with_attributes(attributes);
        let mut span = tracer.build_with_context(builder, &lease.parent);
        if let Some(failure) = failure {
            span.set_status(Status::error(failure.to_owned()));
        }
        span.end_with_timestamp(now);
    }

    /// Sends what waits, within a while.
    pub(super) async fn stop(&mut self) {
        let Some(provider) = self.provider.take() else { return };
        // It blocks its thread until they are sent, which this one does.
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(STOP_WITHIN)).await;
        if let Ok(Err(error)) = sent {
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

/// A W3C `traceparent` of version 00.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    (version == "00" && context.is_valid()).then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(good).unwrap();
        assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled() && context.is_remote());
        for bad in
            ["", "00", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-0-0-0", "00-x-y-01"]
        {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
