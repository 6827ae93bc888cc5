//! What is asked of the core.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use wattmill_protocol::job::Job;
use wattmill_protocol::{Hash, JobId, NodeId, v1};
use wattmill_work::{Event, Phase, Report};

use crate::reduce::{Outcome, Round};

/// Messages to a node that wait for its connection.
pub(crate) type ToNode = mpsc::Sender<Result<v1::ToNode, tonic::Status>>;

/// A job's identity, once its submission is durable.
pub(crate) type Submitted = oneshot::Sender<JobId>;

/// Something asked of the core.
pub(crate) enum Command {
    /// Something happened.
    Event(Event),
    /// A node wants a session; the answer is its number.
    Open {
        /// What it says of itself.
        hello: Box<v1::Hello>,
        /// Where it listens.
        sender: ToNode,
        /// The session's node and number, or why there is none.
        reply: oneshot::Sender<Result<(NodeId, u64), OpenRefused>>,
    },
    /// A session ended.
    Close {
        /// Whose.
        node: NodeId,
        /// Its number.
        session: u64,
    },
    /// A node reports a shard.
    Report {
        /// Who.
        node: NodeId,
        /// What.
        report: Box<Report>,
        /// What the state machine need not know.
        shard: Shard,
    },
    /// A round is to be reduced, once more: the disk failed.
    Reduce {
        /// Which job.
        job: JobId,
        /// Which round.
        round: u32,
        /// Of what.
        input: Arc<Round>,
    },
    /// The disk fails a round's reduction, which is tried again.
    Stalled {
        /// Which job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// A round is reduced and not written yet.
    Computed {
        /// Which job.
        job: JobId,
        /// Which round.
        round: u32,
        /// What came out.
        outcome: Outcome,
    },
    /// A user submits a job.
    Submit {
        /// The job.
        spec: Arc<Job>,
        /// The submission's key.
        key: String,
        /// Answered once it is durable.
        reply: Submitted,
    },
    /// A user cancels a job; the answer is where it stood, `None` when it is unknown.
    Cancel {
        /// Which.
        job: JobId,
        /// Answered once it is durable.
        reply: oneshot::Sender<Option<Phase>>,
    },
    /// A user has quarantined shards tried anew; the answer is which, `None` when the job is unknown.
    Waive {
        /// Whose.
        job: JobId,
        /// Which; all without it.
        shard: Option<u32>,
        /// Answered once it is durable.
        reply: oneshot::Sender<Option<Vec<u32>>>,
    },
    /// A user wants a job's energy report (JSON).
    EnergyReport {
        /// Which.
        job: JobId,
        /// `None` when it is unknown.
        reply: oneshot::Sender<Option<String>>,
    },
    /// Telemetry is durable up to these positions of the nodes' spools.
    Durable {
        /// By node.
        positions: Vec<(NodeId, u64)>,
    },
}

/// A reported shard, besides its result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shard {
    /// The blob that the result names.
    pub(crate) blob: Option<Hash>,
    /// Samples that it teaches the node's rate from.
    pub(crate) samples: u64,
    /// Seconds that they took.
    pub(crate) seconds: f64,
}

/// Why a node gets no session.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum OpenRefused {
    /// Its words are not what the contract says.
    #[error("{0}")]
    Malformed(String),
    /// It speaks another protocol.
    #[error("the node speaks protocol {node}, this collector {collector}: upgrade the older one")]
    Protocol {
        /// The node's.
        node: u32,
        /// Ours.
        collector: u32,
    },
    /// Its host's energy would count twice.
    #[error(
        "host {machine_id} is shared with node {other}: {conflict}; give each agent of a host disjoint \
         `cpus`, or a `host_fraction` that sum to 1 at most"
    )]
    Overlap {
        /// The host.
        machine_id: String,
        /// A node that is there already.
        other: String,
        /// What overlaps.
        conflict: String,
    },
}
