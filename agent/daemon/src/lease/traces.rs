//! This node's part of a lease's trace: fetch, train, report, under the span that the collector opened.

use std::collections::BTreeMap;
use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use wattmill_protocol::{NodeId, Token};

/// Traces of the leases in hand; nothing is kept without an endpoint.
#[derive(Default)]
pub(super) struct Traces {
    provider: Option<SdkTracerProvider>,
    leases: BTreeMap<Token, Lease>,
}

struct Lease {
    parent: Context,
    /// When its last part ended.
    at: SystemTime,
}

impl Traces {
    /// Traces that go to an OTLP endpoint over gRPC; none without one.
    pub(super) fn start(endpoint: Option<&str>, node: &NodeId) -> Result<Self, ExporterBuildError> {
        let Some(endpoint) = endpoint else { return Ok(Self::default()) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let instance = KeyValue::new("service.instance.id", node.to_string());
        let resource =
            Resource::builder().with_service_name("wattmill-agent").with_attribute(instance).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { provider: Some(provider), leases: BTreeMap::new() })
    }

    /// A lease came in, with the collector's trace context.
    pub(super) fn begin(&mut self, token: Token, traceparent: &str) {
        if let Some(parent) = self.provider.as_ref().and_then(|_| parse(traceparent)) {
            let parent = Context::new().with_remote_span_context(parent);
            self.leases.insert(token, Lease { parent, at: SystemTime::now() });
        }
    }

    /// The next part of a lease ended: it ran since the one before.
    pub(super) fn part(&mut self, token: Token, name: &'static str) {
        let Some(provider) = &self.provider else { return };
        let Some(lease) = self.leases.get_mut(&token) else { return };
        let tracer = provider.tracer("wattmill");
        let builder = tracer.span_builder(name).with_start_time(lease.at);
        tracer.build_with_context(builder, &lease.parent).end();
        lease.at = SystemTime::now();
    }

    /// A lease is no longer in hand.
    pub(super) fn end(&mut self, token: Token) {
        self.leases.remove(&token);
    }

    /// Sends what waits.
    pub(super) fn stop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
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
