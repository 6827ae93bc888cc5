//! Rounds: which shards a round has, and how each stands.

use wattmill_protocol::job::Job;
use wattmill_protocol::{Hash, NodeId, Token};

use crate::event::{Reduction, ShardResult};
use crate::record::JobRecord;

/// Held-out rows of one evaluation shard: enough that its fixed cost vanishes, few enough to spread.
const EVALUATION_SHARD_ROWS: u64 = 4096;

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Round 0.
    Prepare,
    /// An optimizer step.
    Train {
        /// From 0.
        epoch: u32,
        /// Round within its epoch, from 0.
        index: u32,
    },
    /// The last round judges the final parameters.
    Evaluate,
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Read the data for the first time and make the first parameters.
    Prepare,
    /// Gradient at positions `first .. first + count` of the epoch's order.
    Gradient {
        /// Parameters to compute against.
        parameters: Hash,
        /// From 0.
        epoch: u32,
        /// First position.
        first: u64,
        /// Samples.
        count: u64,
    },
    /// Loss and accuracy on held-out rows `first .. first + count`.
    Evaluate {
        /// Parameters to judge.
        parameters: Hash,
        /// First row.
        first: u64,
        /// Rows.
        count: u64,
    },
}

impl Task {
    /// Samples that the task passes through the model.
    pub fn samples(&self) -> u64 {
        match *self {
            Self::Prepare => 0,
            Self::Gradient { count, .. } | Self::Evaluate { count, .. } => count,
        }
    }
}

/// A live lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Fencing token.
    pub token: Token,
    /// Who holds it.
    pub node: NodeId,
    /// When it runs out unless renewed with progress, monotonic ms.
    pub deadline_ms: u64,
    /// Progress when it was last renewed.
    pub progress: u64,
}

/// How a shard stands.
#[derive(Clone, Debug, PartialEq)]
pub enum ShardState {
    /// Waits to be given out.
    Pending,
    /// Being worked on.
    Leased(Lease),
    /// Its result is here; it counts once the round is committed.
    Received {
        /// Under which lease.
        token: Token,
        /// By whom.
        node: NodeId,
        /// What.
        result: ShardResult,
        /// Model FLOPs.
        useful_flops: u64,
    },
    /// It failed too often: visible, and blocks the round.
    Quarantined,
}

/// One shard of the current round.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// What is to be done.
    pub task: Task,
    /// How it stands.
    pub state: ShardState,
    /// Greatest token that was live: none that is not above it will be.
    pub newest: Option<Token>,
    /// Leases given so far.
    pub attempts: u32,
    /// Attempts that failed by themselves, or made no progress.
    pub failures: u32,
    /// Why the last of them did.
    pub error: Option<String>,
    /// Whose attempt failed last: another node is tried where there is one.
    pub avoid: Option<NodeId>,
}

/// The current round of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Its number; 0 prepares.
    pub number: u32,
    /// What it is for.
    pub kind: Kind,
    /// Gradient shards first, in the order in which they are reduced, then evaluations.
    pub shards: Vec<Shard>,
    /// Whether its blobs are being reduced.
    pub reducing: bool,
    /// What the reduction came to, once that is known: named before it is written.
    pub outcome: Option<Reduction>,
}

/// Optimizer steps of one epoch.
fn rounds_per_epoch(spec: &Job, training_rows: u64) -> u64 {
    training_rows.div_ceil(samples_per_round(spec))
}

fn samples_per_round(spec: &Job) -> u64 {
    u64::from(spec.training.shard_size) * u64::from(spec.training.shards_per_round)
}

/// Optimizer steps of the whole job, once its data is known.
pub(crate) fn total_steps(job: &JobRecord) -> u64 {
    job.prepared.map_or(0, |p| {
        rounds_per_epoch(&job.spec, p.training_rows).saturating_mul(u64::from(job.spec.training.epochs))
    })
}

/// Rounds of the whole job: preparing, steps, and judging where rows are held out.
pub(crate) fn total_rounds(job: &JobRecord) -> u32 {
    let evaluates = u64::from(job.prepared.is_some_and(|p| p.held_out_rows > 0));
    u32::try_from(total_steps(job).saturating_add(1 + evaluates)).unwrap_or(u32::MAX)
}

impl Round {
    /// The job's next round, all shards pending; `None` when every round is committed.
    pub(crate) fn next(job: &JobRecord) -> Option<Self> {
        let kind = kind_of(job)?;
        let tasks = match (kind, job.prepared, job.parameters) {
            (Kind::Train { epoch, index }, Some(prepared), Some(parameters)) => {
                let mut tasks = gradients(&job.spec, prepared.training_rows, parameters, epoch, index);
                if index == 0 && epoch > 0 {
                    tasks.extend(evaluations(prepared.held_out_rows, parameters));
                }
                tasks
            }
            (Kind::Evaluate, Some(prepared), Some(parameters)) => {
                evaluations(prepared.held_out_rows, parameters).collect()
            }
            _ => vec![Task::Prepare],
        };
        let shard = |task| Shard {
            task,
            state: ShardState::Pending,
            newest: None,
            attempts: 0,
            failures: 0,
            error: None,
            avoid: None,
        };
        Some(Self {
            number: job.round,
            kind,
            shards: tasks.into_iter().map(shard).collect(),
            reducing: false,
            outcome: None,
        })
    }

    /// The shard whose live lease has `token`.
    pub(crate) fn leased(&mut self, token: Token) -> Option<(u32, &mut Shard)> {
        self.shards
            .iter_mut()
            .enumerate()
            .find(|(_, s)| matches!(&s.state, ShardState::Leased(l) if l.token == token))
            .map(|(i, s)| (i as u32, s))
    }

    /// Tokens that are live or whose result is here.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.shards.iter().filter_map(|shard| match &shard.state {
            ShardState::Leased(lease) => Some(lease.token),
            ShardState::Received { token, .. } => Some(*token),
            ShardState::Pending | ShardState::Quarantined => None,
        })
    }

    /// Whether every shard's result is here.
    pub(crate) fn received(&self) -> bool {
        self.shards.iter().all(|s| matches!(s.state, ShardState::Received { .. }))
    }
}

fn kind_of(job: &JobRecord) -> Option<Kind> {
    let Some(prepared) = job.prepared.filter(|_| job.round > 0) else {
        return Some(Kind::Prepare);
    };
    let step = u64::from(job.round) - 1;
    let steps = total_steps(job);
    if step < steps {
        let per_epoch = rounds_per_epoch(&job.spec, prepared.training_rows);
        let epoch = (step / per_epoch) as u32;
        Some(Kind::Train { epoch, index: (step % per_epoch) as u32 })
    } else {
        (step == steps && prepared.held_out_rows > 0).then_some(Kind::Evaluate)
    }
}

fn gradients(spec: &Job, rows: u64, parameters: Hash, epoch: u32, index: u32) -> Vec<Task> {
    let from = u64::from(index) * samples_per_round(spec);
    let to = rows.min(from + samples_per_round(spec));
    let size = u64::from(spec.training.shard_size);
    (from..to)
        .step_by(size as usize)
        .map(|first| Task::Gradient { parameters, epoch, first, count: size.min(to - first) })
        .collect()
}

fn evaluations(rows: u64, parameters: Hash) -> impl Iterator<Item = Task> {
    (0..rows).step_by(EVALUATION_SHARD_ROWS as usize).map(move |first| Task::Evaluate {
        parameters,
        first,
        count: EVALUATION_SHARD_ROWS.min(rows - first),
    })
}
