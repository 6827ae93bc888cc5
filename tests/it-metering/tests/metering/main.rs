//! Metering through the real programs. One test program, so that all of it runs at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint's exception for tests misses")]

mod busy;
mod check;
mod disk;
mod energy;
mod exposition;
mod hostile;
mod hwmon;
mod ledger;
mod node_meters;
mod nvml;
mod otlp;
mod prometheus;
mod rapl;
mod scrape;
mod units;
