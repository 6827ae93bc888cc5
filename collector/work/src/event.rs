//! What happens to the state machine, and what it asks to be done.

use std::sync::Arc;

use wattmill_protocol::job::Job;
use wattmill_protocol::{Energy, Hash, JobId, NodeId, Token};

use crate::record::{Prepared, WasteReason};
use crate::round::Task;

/// Leases of one [`Message::Unsettled`]: some 80 bytes each, far below the limit of a control message.
pub const MAX_UNSETTLED: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A user submitted a job.
    Submitted {
        /// Its new identity.
        job: JobId,
        /// What is to be trained.
        spec: Arc<Job>,
        /// A repeated submission with this key is the same job.
        key: String,
    },
    /// A user cancelled a job; one that is trained or has ended is left as it is.
    Cancelled {
        /// Which.
        job: JobId,
    },
    /// A user has quarantined shards tried anew.
    Waived {
        /// Whose.
        job: JobId,
        /// Which; all of the current round without it.
        shard: Option<u32>,
    },
    /// A node opened a session; it replaces an older one of the node.
    Opened {
        /// Who.
        node: NodeId,
        /// Numbers sessions in the order of their acceptance: an older one changes nothing.
        session: u64,
        /// What the node can do.
        capability: Capability,
        /// Leases that it still holds.
        held: Vec<HeldLease>,
        /// Last settlement of its own that it knows to be applied, here or by another collector.
        settled: u64,
    },
    /// A session ended.
    Closed {
        /// Whose.
        node: NodeId,
        /// Which one.
        session: u64,
    },
    /// A node says how its leases fare.
    Renewed {
        /// Who.
        node: NodeId,
        /// One for each lease whose result is not received.
        renewals: Vec<Renewal>,
    },
    /// A node reports the result of a lease; the blob that it names is here.
    Reported {
        /// Who.
        node: NodeId,
        /// What.
        report: Report,
    },
    /// A node gives a lease back unfinished.
    HandedBack {
        /// Who.
        node: NodeId,
        /// Which lease.
        token: Token,
    },
    /// A node settles the joules of ended leases.
    Settled {
        /// Who.
        node: NodeId,
        /// In order of their sequence.
        settlements: Vec<Settlement>,
    },
    /// The planner gives a pending shard to a node.
    Granted {
        /// The shard's job.
        job: JobId,
        /// Index in the current round.
        shard: u32,
        /// To whom.
        node: NodeId,
        /// Power that its leases drew of late, each: what a lease that is lost unsaid is estimated by.
        power_watts: f64,
    },
    /// The blobs of a round were reduced; what came out is not written yet. From now on it is in use, so that
    /// no other job's [`Effect::Retire`] removes what is being written.
    Computed {
        /// Which job.
        job: JobId,
        /// Which round.
        round: u32,
        /// What came out. Write it only if [`Round::outcome`](crate::Round::outcome) is that now: else nobody
        /// waits for it any more.
        reduction: Reduction,
    },
    /// What came of a round is durable.
    Reduced {
        /// Which job.
        job: JobId,
        /// Which round.
        round: u32,
        /// What came out, or why it cannot be.
        reduction: Result<Reduction, String>,
    },
    /// Time passed.
    Tick {
        /// Σ dense peak FLOP/s of the compute devices, where known.
        peak_flops: Option<f64>,
        /// What the whole cluster took since the last tick that knew more, idle joules too.
        cluster_microjoules: u64,
    },
}

/// What a node can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Nodes with equal numerics compute alike to the bit.
    pub numerics: String,
    /// Leases that it takes at once.
    pub slots: u32,
}

/// A lease that a node says it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// Its token.
    pub token: Token,
    /// Its job.
    pub job: JobId,
    /// Its round.
    pub round: u32,
    /// Its shard.
    pub shard: u32,
}

/// How a running lease fares.
#[derive(Clone, Debug, PartialEq)]
pub struct Renewal {
    /// Which.
    pub token: Token,
    /// Grows with the work on the lease: a renewal that does not raise it does not extend the lease.
    pub progress: u64,
    /// Joules so far.
    pub energy: Energy,
    /// Power of late.
    pub power_watts: f64,
}

/// The result of a lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The lease.
    pub token: Token,
    /// Its job.
    pub job: JobId,
    /// Its round.
    pub round: u32,
    /// Its shard.
    pub shard: u32,
    /// What came out.
    pub result: Result<ShardResult, Failure>,
    /// Model FLOPs that it is worth once committed.
    pub useful_flops: u64,
}

/// What a shard yields.
#[derive(Clone, Debug, PartialEq)]
pub enum ShardResult {
    /// First parameters, and what there is to know of the data.
    Prepared {
        /// Of the data.
        prepared: Prepared,
        /// First parameters.
        parameters: Hash,
    },
    /// A gradient.
    Gradient {
        /// Its blob.
        gradient: Hash,
        /// Σ loss over the samples.
        loss_sum: f64,
        /// Samples that were classified right.
        correct: u64,
        /// Samples.
        samples: u64,
    },
    /// An evaluation.
    Evaluated {
        /// Σ loss over the samples.
        loss_sum: f64,
        /// Samples that were classified right.
        correct: u64,
        /// Samples.
        samples: u64,
    },
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The job or its data is at fault: other attempts would fail alike.
    pub bad_input: bool,
    /// In words, naming the file, row or device.
    pub message: String,
}

/// The final joules of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Gap-free number, by node.
    pub sequence: u64,
    /// The lease.
    pub token: Token,
    /// Its job.
    pub job: JobId,
    /// All it took.
    pub energy: Energy,
    /// The node's ledger does not know the lease: what it took, if it began, is not known as its own.
    pub unrecorded: bool,
}

/// A lease whose joules are not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsettledLease {
    /// Its token.
    pub token: Token,
    /// Its job.
    pub job: JobId,
}

/// What a round's blobs became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// The next parameters.
    pub parameters: Hash,
    /// The next state of the optimizer, where it has one.
    pub optimizer: Option<Hash>,
}

impl Reduction {
    /// The blobs that it names.
    pub fn blobs(self) -> impl Iterator<Item = Hash> {
        [Some(self.parameters), self.optimizer].into_iter().flatten()
    }
}

/// How a report was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportOutcome {
    /// Taken: keep the result until its round is committed.
    Received,
    /// Its round is committed.
    Committed,
    /// Its token is not the current one.
    Stale,
    /// The failure was noted.
    Failed,
}

/// Something to be done, after the writes of the same step are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell a node something; lost if it has no session, which its next Hello makes good.
    Send {
        /// Whom.
        node: NodeId,
        /// What.
        message: Message,
    },
    /// Reduce the blobs of a received round, say [`Event::Computed`], then store the outcome durably and say
    /// [`Event::Reduced`].
    Reduce {
        /// Which job.
        job: JobId,
        /// Which round.
        round: u32,
        /// The job.
        spec: Arc<Job>,
        /// Parameters that the round computed against; `None` in the preparing round.
        parameters: Option<Hash>,
        /// State of the optimizer before the round.
        optimizer: Option<Hash>,
        /// Blobs of the shards that count, in shard order.
        blobs: Vec<Hash>,
        /// Samples behind the gradients.
        samples: u64,
        /// Optimizer step (from 1) and how many the job has; zero when nothing is to be optimized.
        step: (u64, u64),
    },
    /// A round was committed or a job ended, and no longer needs these blobs. Another job may: equal blobs
    /// have one name. Remove those that [`crate::Work::blobs_in_use`] does not name at that moment, before any
    /// further event: a reduction names what it writes before it does.
    Retire {
        /// Blobs that the job does not name any more.
        blobs: Vec<Hash>,
    },
    /// A job ended.
    Ended {
        /// Which.
        job: JobId,
    },
}

/// What a node is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Do this.
    Lease {
        /// Fencing token.
        token: Token,
        /// The job.
        job: JobId,
        /// The job's file.
        spec: Arc<Job>,
        /// The round.
        round: u32,
        /// The shard.
        shard: u32,
        /// From 1.
        attempt: u32,
        /// How long without progress.
        duration_ms: u64,
        /// What to do.
        task: Task,
        /// What the data must hash to.
        data_hash: Option<Hash>,
    },
    /// Stop that.
    Revoke {
        /// Which lease.
        token: Token,
        /// Why.
        reason: WasteReason,
    },
    /// An answer to a report.
    Reply {
        /// Which lease.
        token: Token,
        /// How it was taken.
        outcome: ReportOutcome,
    },
    /// Settlements up to this one are applied.
    Settled {
        /// The last.
        sequence: u64,
    },
    /// These leases of the node are not settled, and it did not say that it holds them: settle each that does
    /// not run, with nothing where the ledger does not know it.
    Unsettled {
        /// At most [`MAX_UNSETTLED`] of them; several messages follow each other.
        leases: Vec<UnsettledLease>,
    },
    /// These leases' rounds are committed.
    Committed {
        /// Which.
        tokens: Vec<Token>,
    },
}
