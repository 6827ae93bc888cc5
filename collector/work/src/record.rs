//! What lies in the store: everything that must outlive the process, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wattmill_protocol::job::Job;
use wattmill_protocol::{Energy, Hash, JobId, NodeId, Token};

/// Longest gap of Σ peaks that is bridged by the last known: telemetry that restarts is back by then.
const MAX_PEAK_GAP_MS: u64 = 30_000;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Round 0: the data is read for the first time, the first parameters are made.
    Preparing,
    /// Rounds run.
    Training,
    /// All rounds are committed; the last joules are awaited.
    Settling,
    /// Done.
    Finished,
    /// It cannot be done; the reason is in the record.
    Failed,
    /// A user ended it.
    Cancelled,
}

impl Phase {
    /// Whether the job takes no more work.
    pub fn ended(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

/// Why joules were wasted, and why a shard was given anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WasteReason {
    /// The node's session closed and did not come back in time.
    NodeLost,
    /// The node came back without the lease.
    NodeRestarted,
    /// The lease ran out without progress.
    LeaseExpired,
    /// The node gave the lease back.
    HandedBack,
    /// The attempt failed.
    Failed,
    /// The job ended before the work counted.
    JobEnded,
    /// The collector restarted and the result was not adopted.
    CollectorRestarted,
}

impl WasteReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::NodeLost,
        Self::NodeRestarted,
        Self::LeaseExpired,
        Self::HandedBack,
        Self::Failed,
        Self::JobEnded,
        Self::CollectorRestarted,
    ];

    /// The value of the `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeLost => "node_lost",
            Self::NodeRestarted => "node_restarted",
            Self::LeaseExpired => "lease_expired",
            Self::HandedBack => "handed_back",
            Self::Failed => "failed",
            Self::JobEnded => "job_ended",
            Self::CollectorRestarted => "collector_restarted",
        }
    }
}

/// What the preparing round learned of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Rows to train on.
    pub training_rows: u64,
    /// Rows to judge by.
    pub held_out_rows: u64,
    /// What every later read must hash to.
    pub data_hash: Hash,
}

/// A node's part in a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeShare {
    /// Samples of committed shards.
    pub samples: u64,
    /// Committed shards.
    pub shards: u64,
    /// Settled joules of committed shards.
    pub committed: Energy,
    /// Settled joules of wasted work.
    pub wasted: Energy,
}

/// A job, as it stands after its last committed round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its identity.
    pub id: JobId,
    /// What is trained.
    pub spec: Arc<Job>,
    /// Key of its submission.
    pub key: String,
    /// When it was submitted.
    pub submitted_unix_ms: i64,
    /// When it ended.
    pub ended_unix_ms: Option<i64>,
    /// Where it stands.
    pub phase: Phase,
    /// Why it failed or is blocked.
    pub reason: Option<String>,
    /// What the data is.
    pub prepared: Option<Prepared>,
    /// Numerics that the preparing node pinned.
    pub numerics: Option<String>,
    /// The round that runs: all before it are committed.
    pub round: u32,
    /// Newest collector that gave a lease of that round: those of older ones are void after a restart, since
    /// a greater token of their shard may have been given.
    pub generation: u32,
    /// Newest committed parameters.
    pub parameters: Option<Hash>,
    /// Newest committed state of the optimizer.
    pub optimizer: Option<Hash>,
    /// Tokens of the newest committed round, to answer a late repetition as the first.
    pub last_tokens: Vec<Token>,
    /// Samples of committed shards.
    pub samples: u64,
    /// Model FLOPs of committed shards.
    pub useful_flops: u64,
    /// Mean training loss of the newest training round.
    pub loss: Option<f64>,
    /// Accuracy on the training rows of that round.
    pub training_accuracy: Option<f64>,
    /// Mean loss on held-out rows at the newest evaluation.
    pub held_out_loss: Option<f64>,
    /// Accuracy on held-out rows at the newest evaluation.
    pub accuracy: Option<f64>,
    /// Who did what.
    pub nodes: BTreeMap<NodeId, NodeShare>,
    /// Settled waste by reason.
    pub wasted: BTreeMap<WasteReason, Energy>,
    /// Leases that ended without a commit, by reason.
    pub requeues: BTreeMap<WasteReason, u32>,
    /// Leases that were settled with nothing, since their node's ledger does not know them: what they took is
    /// among the node's other joules.
    #[serde(default)]
    pub unrecorded: u32,
    /// Time in which it ran.
    pub elapsed_ms: u64,
    /// ∫ Σ peak FLOP/s dt while it ran, over the time for which Σ is known.
    pub peak_flop_seconds: Option<f64>,
    /// Σ peak FLOP/s as it was last known while it ran.
    #[serde(default)]
    pub last_peak_flops: Option<f64>,
    /// Time in which it ran since Σ was last known.
    #[serde(default)]
    pub unpeaked_ms: u64,
    /// What it answers for of the cluster's joules while it ran: its own, as they were known then, and its
    /// share of what no job's shard took.
    #[serde(default)]
    pub cluster_microjoules: i64,
    /// It failed since its data or its file is bad.
    #[serde(default)]
    pub bad_input: bool,
}

impl JobRecord {
    /// Settled joules, committed and wasted.
    pub fn settled_energy(&self) -> Energy {
        self.nodes.values().map(|share| share.committed + share.wasted).sum()
    }

    /// Its share of what the cluster took while it ran and no job's shard used, when `own` is what its own
    /// shards took.
    pub fn idle_microjoules(&self, own: Energy) -> u64 {
        u64::try_from(self.cluster_microjoules).unwrap_or(0).saturating_sub(own.total())
    }

    /// What the cluster's devices could have done while it ran: the denominator of its η. A gap in Σ peaks
    /// counts with what was last known; a longer one, or one from the beginning on, leaves the figure absent
    /// until Σ is known again.
    pub fn able_flops(&self) -> Option<f64> {
        let gap = match self.last_peak_flops {
            Some(peak) if self.unpeaked_ms <= MAX_PEAK_GAP_MS => peak * self.unpeaked_ms as f64 / 1e3,
            _ => return None,
        };
        Some(self.peak_flop_seconds? + gap)
    }

    /// It ran on, and Σ peaks is known or not. Time without one counts with the next that is known.
    pub(crate) fn add_peaks(&mut self, peak_flops: Option<f64>, passed_ms: u64) {
        self.unpeaked_ms += passed_ms;
        if let Some(peak) = peak_flops {
            let seconds = std::mem::take(&mut self.unpeaked_ms) as f64 / 1e3;
            self.peak_flop_seconds = Some(self.peak_flop_seconds.unwrap_or(0.0) + peak * seconds);
            self.last_peak_flops = Some(peak);
        }
    }
}

/// The manifest of a round: with this row the round is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Its job.
    pub job: JobId,
    /// Its number; 0 prepares.
    pub round: u32,
    /// Parameters after it.
    pub parameters: Hash,
    /// State of the optimizer after it.
    pub optimizer: Option<Hash>,
    /// Mean training loss, where it trained.
    pub loss: Option<f64>,
    /// Held-out accuracy of the parameters before it, where it evaluated.
    pub accuracy: Option<f64>,
    /// Who did each shard, in order.
    pub shards: Vec<ShardCommit>,
    /// When.
    pub unix_ms: i64,
}

/// One shard's line in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCommit {
    /// Under which lease.
    pub token: Token,
    /// By whom.
    pub node: NodeId,
    /// The blob that was reduced.
    pub blob: Option<Hash>,
}

/// What became of a lease whose joules are not all settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountOutcome {
    /// It runs, or its result awaits the round.
    Open,
    /// Its round is committed.
    Committed,
    /// It was thrown away.
    Wasted(WasteReason),
}

/// The joules of a lease until outcome and amount are both final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// The lease's job.
    pub job: JobId,
    /// The lease's node.
    pub node: NodeId,
    /// What became of it.
    pub outcome: AccountOutcome,
    /// Joules known so far; an estimate until settled.
    pub energy: Energy,
    /// Whether the node has said the final amount.
    pub settled: bool,
}

impl AccountRecord {
    /// Whether outcome and amount are final: its joules are in its job's totals.
    pub fn folded(&self) -> bool {
        self.settled && self.outcome != AccountOutcome::Open
    }
}

/// One change of the store. The writes of a step are committed together or not at all.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The collector's generation, one above the last: no token of it was given before.
    Generation(u32),
    /// Inserts or replaces a job.
    Job(Box<JobRecord>),
    /// Inserts a round; a second one of the same number is an error.
    Round(Box<RoundRecord>),
    /// Inserts or replaces an account.
    Account(Token, AccountRecord),
    /// An account is folded into its job's totals, and its token can never count again.
    AccountClosed(Token),
    /// Settlements of a node up to this one are applied.
    NodeSettled(NodeId, u64),
}

/// Everything in the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Generation of the last collector.
    pub generation: u32,
    /// All jobs within retention.
    pub jobs: Vec<JobRecord>,
    /// Accounts that are not closed.
    pub accounts: Vec<(Token, AccountRecord)>,
    /// Last applied settlement of each node.
    pub settled: Vec<(NodeId, u64)>,
}
