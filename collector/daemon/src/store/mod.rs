//! Durable state: SQLite, behind the [`Store`](wattmill_work::store::Store) trait of the state machine, and
//! telemetry in a second file.
//!
//! Invariant: what a commit acknowledged survives any crash (`synchronous = FULL` on a write-ahead log).

mod sqlite;
mod telemetry;

pub(crate) use sqlite::{Sqlite, StoreError};
pub(crate) use telemetry::TelemetryStore;
