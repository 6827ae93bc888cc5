//! The state machine of jobs, rounds, shards and leases.
//!
//! [`Work::apply`] is pure: (state, event, now) → ([`Write`]s, [`Effect`]s). The caller makes the writes
//! durable first and carries out the effects after, so nothing that was said to anyone can be forgotten.
//! [`Work::recover`] rebuilds the state from what a [`store::Store`] holds.
//!
//! What always holds, and what the simulation checks after every event:
//! - a shard has at most one live token, and a token greater than every one before it;
//! - a round is committed once, by one [`RoundRecord`], written after its blobs;
//! - each joule that a node settles is counted once, as committed or as waste.

mod accounts;
mod event;
pub mod memory;
mod record;
mod round;
mod step;
pub mod store;
mod work;

pub use event::{
    Capability, Effect, Event, Failure, HeldLease, MAX_UNSETTLED, Message, Reduction, Renewal, Report,
    ReportOutcome, Settlement, ShardResult, UnsettledLease,
};
pub use record::{
    AccountOutcome, AccountRecord, JobRecord, NodeShare, Phase, Prepared, RoundRecord, ShardCommit, Stored,
    WasteReason, Write,
};
pub use round::{Kind, Lease, Round, Shard, ShardState, Task};
pub use work::{Settings, Work};

/// The caller's clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never steps: deadlines are kept by it.
    pub monotonic_ms: u64,
    /// Milliseconds since the Unix epoch: what people and records are told.
    pub unix_ms: i64,
}
