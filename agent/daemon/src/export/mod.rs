//! How snapshots leave the agent: [`http`] for Prometheus; [`otlp`] through the [`spool`] by [`push`] for
//! the collector. The only place that knows OTLP.
//!
//! Invariant: exporters read snapshots and nothing else; none of them can hold up a window.

pub mod http;
pub mod otlp;
pub mod push;
pub mod spool;
