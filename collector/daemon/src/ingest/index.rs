//! Which metric of the catalogue a data point is of.
//!
//! Invariant: an OTLP name and a point's attributes select at most one metric: the one whose fixed
//! attributes the point has, the most specific first.

use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use wattmill_protocol::catalogue::{ALL, Exporter, Metric, Otlp};

/// The pushed metrics by their OTLP names.
#[derive(Debug)]
pub(super) struct Index(HashMap<&'static str, Vec<(&'static Metric, &'static Otlp)>>);

impl Index {
    /// The index of the catalogue.
    pub(super) fn new() -> Self {
        let mut names: HashMap<_, Vec<_>> = HashMap::new();
        for metric in ALL.iter().copied().filter(|metric| metric.exporter == Exporter::Agent) {
            if let Some(otlp) = &metric.otlp {
                names.entry(otlp.name).or_default().push((metric, otlp));
            }
        }
        for metrics in names.values_mut() {
            metrics.sort_by_key(|(_, otlp)| std::cmp::Reverse(otlp.fixed.len()));
        }
        Self(names)
    }

    /// The metrics of that OTLP name; none where the catalogue does not know it.
    pub(super) fn named(&self, name: &str) -> &[(&'static Metric, &'static Otlp)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The one of `metrics` that a point with these attributes is of.
pub(super) fn select(
    metrics: &[(&'static Metric, &'static Otlp)],
    attributes: &[KeyValue],
) -> Option<(&'static Metric, &'static Otlp)> {
    let has = |(name, value): &(&str, &str)| text(attributes, name) == Some(*value);
    metrics.iter().copied().find(|(_, otlp)| otlp.fixed.iter().all(has))
}

/// The value of an attribute, where it is a string.
pub(super) fn text<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
    match value(attributes, name)? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The value of an attribute.
pub(super) fn value<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a any_value::Value> {
    attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.as_ref()
}

#[cfg(test)]
mod tests {
    use super::super::tests::text_attribute;
    use super::*;

    #[test]
    fn every_pushed_metric_is_found_by_its_own_form() {
        let index = Index::new();
        for metric in ALL {
            let Some(otlp) = &metric.otlp else { continue };
            let fixed: Vec<_> = otlp.fixed.iter().map(|(name, value)| text_attribute(name, value)).collect();
            let found = select(index.named(otlp.name), &fixed).map(|(metric, _)| metric.name);
            assert_eq!(found, Some(metric.name));
        }
        assert!(select(index.named("hw.power"), &[text_attribute("hw.type", "fan")]).is_none());
        assert!(select(index.named("hw.power"), &[]).is_none());
        assert!(index.named("http.server.request.duration").is_empty());
    }
}
