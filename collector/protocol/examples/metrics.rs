//! Prints `docs/metrics.md`, as the catalogue has it: `make docs`.

use std::fmt::Write;

use wattmill_protocol::catalogue::{ALL, Exporter, Kind, Metric, SEMANTIC_CONVENTIONS};

fn main() {
    print!("{}", page());
}

/// The page, also for the test that compares it.
pub(crate) fn page() -> String {
    let mut page = String::from(HEAD);
    table(&mut page, "wattmill-agent", Exporter::Agent);
    table(&mut page, "wattmill-collector", Exporter::Collector);
    otlp(&mut page);
    page
}

const HEAD: &str = "\
# Metrics

Made from `collector/protocol/src/catalogue.rs` by `make docs`; a test keeps the two alike. Units are base units
and ratios run from 0 to 1. A figure with an unknown input is absent rather than guessed.

`source` says how energy is known: `counter` (a hardware counter), `integrated` (measured power over time) or
`estimate` (a model: nobody measured it). `scope` is `cpu`, `dram` or `gpu`; scopes do not overlap.
";

fn table(page: &mut String, program: &str, exporter: Exporter) {
    // Writing to a string cannot fail, here and below.
    let _ = write!(page, "\n## {program}\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    for metric in ALL.iter().filter(|m| m.exporter == exporter) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let _ = writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, code(metric.labels), metric.help);
    }
}

fn otlp(page: &mut String) {
    let _ = write!(
        page,
        "\n## OTLP\n\nWhat the agent pushes, by the name that OpenTelemetry has for it \
         (semantic conventions `{SEMANTIC_CONVENTIONS}`;\n`wattmill.` where they have no word). See \
         [otlp.md](otlp.md) for how it is pushed.\n\n\
         | OTLP | Unit | Fixed attributes | Attributes | Prometheus |\n|---|---|---|---|---|\n"
    );
    let mut pushed: Vec<&Metric> = ALL.iter().copied().filter(|m| m.otlp.is_some()).collect();
    pushed.sort_by_key(|m| m.otlp.as_ref().map(|o| (o.name, o.fixed)));
    for (metric, otlp) in pushed.into_iter().filter_map(|m| Some((m, m.otlp.as_ref()?))) {
        let fixed: Vec<String> = otlp.fixed.iter().map(|(key, value)| format!("`{key}={value}`")).collect();
        let (fixed, attributes) = (fixed.join(", "), code(otlp.attributes));
        let _ = writeln!(
            page,
            "| `{}` | `{}` | {fixed} | {attributes} | `{}` |",
            otlp.name, otlp.unit, metric.name
        );
    }
}

fn code(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
