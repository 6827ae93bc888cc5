//! Durable state: SQLite, behind the [`Store`](wattmill_work::store::Store) trait of the state machine.
//!
//! Invariant: what a commit acknowledged survives any crash (`synchronous = FULL` on a write-ahead log).

mod sqlite;

pub(crate) use sqlite::{Sqlite, StoreError};
