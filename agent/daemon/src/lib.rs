//! The host's daemon: meters energy, keeps the ledger, pushes telemetry, runs leases.
//!
//! Energy flows one way: [`device`] threads read counters, [`window`] turns readings into joules of a
//! window, [`attribution`] splits them, the [`ledger`] keeps the sums on disk, [`meter`] drives that and
//! publishes a [`snapshot`], and [`export`] hands snapshots to Prometheus and the collector.
//!
//! Invariant: no joule is counted twice, none is invented, and what was exported never goes back when
//! the daemon restarts, nor after a power cut while the disk syncs each window. Only [`device`] talks to NVML, only [`export`] knows OTLP, only [`app`] systemd.

pub mod app;
pub mod attribution;
pub mod check;
pub mod clock;
pub mod config;
pub mod counter;
pub mod cpus;
pub mod device;
pub mod export;
#[cfg(test)]
mod fuzz;
pub mod identity;
mod lease;
pub mod ledger;
pub mod meter;
pub mod snapshot;
pub mod window;

/// Version of the agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
