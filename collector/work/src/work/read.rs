//! What others read of the state.

use std::collections::BTreeSet;

use wattmill_protocol::job::NumericsPolicy;
use wattmill_protocol::{Energy, Hash, JobId, NodeId, Token};

use super::Work;
use super::reductions::blobs_of;
use crate::Now;
use crate::event::Capability;
use crate::record::{AccountOutcome, AccountRecord, JobRecord};
use crate::round::{Lease, Round, ShardState, total_rounds};

impl Work {
    /// All jobs, by identity.
    pub fn jobs(&self) -> impl Iterator<Item = &JobRecord> {
        self.jobs.values()
    }

    /// One job.
    pub fn job(&self, job: &JobId) -> Option<&JobRecord> {
        self.jobs.get(job)
    }

    /// The job that was submitted with `key`.
    pub fn job_of_key(&self, key: &str) -> Option<&JobRecord> {
        self.jobs.values().find(|job| !key.is_empty() && job.key == key)
    }

    /// The current round of a job that runs.
    pub fn round(&self, job: &JobId) -> Option<&Round> {
        self.running.get(job)?.round.as_ref()
    }

    /// Rounds of a job, preparing and judging included; 1 before its data is known.
    pub fn total_rounds(&self, job: &JobRecord) -> u32 {
        total_rounds(job)
    }

    /// Nodes with an open session that take work.
    pub fn connected(&self) -> impl Iterator<Item = (&NodeId, &Capability)> {
        self.sessions.iter().filter(|(_, s)| s.takes_work()).map(|(n, s)| (n, &s.capability))
    }

    /// Live leases, with their job.
    pub fn leases(&self) -> impl Iterator<Item = (&JobId, &Lease)> {
        self.running.iter().flat_map(|(id, running)| {
            running.round.iter().flat_map(|r| &r.shards).filter_map(move |shard| match &shard.state {
                ShardState::Leased(lease) => Some((id, lease)),
                _ => None,
            })
        })
    }

    /// Tokens of leases that are live or whose results are here.
    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        self.running.values().filter_map(|r| r.round.as_ref()).flat_map(Round::tokens)
    }

    /// Whether new leases may be given: shortly after a restart nodes first say what they hold.
    pub fn may_grant(&self, now: Now) -> bool {
        now.monotonic_ms >= self.recovering_until_ms
    }

    /// Whether a node of `numerics` may work on `job`. They are pinned by the commit of the preparing round:
    /// before it, any node may have to prepare anew.
    pub fn eligible(&self, job: &JobRecord, numerics: &str) -> bool {
        job.spec.training.numerics == NumericsPolicy::Any
            || job.round == 0
            || job.numerics.as_deref().is_none_or(|pinned| pinned == numerics)
    }

    /// Joules of a job that are not folded into its totals: (committed or open, wasted).
    pub fn unsettled_energy(&self, job: &JobId) -> (Energy, Energy) {
        let mut sums = (Energy::ZERO, Energy::ZERO);
        for (_, account) in self.accounts.of_job(job) {
            match account.outcome {
                AccountOutcome::Wasted(_) => sums.1 += account.energy,
                _ => sums.0 += account.energy,
            }
        }
        sums
    }

    /// All accounts that are not folded yet.
    pub fn accounts(&self) -> impl Iterator<Item = (Token, &AccountRecord)> {
        self.accounts.all()
    }

    /// Last settlement of `node` that is applied.
    pub fn settled_through(&self, node: &NodeId) -> u64 {
        self.accounts.settled_through(node)
    }

    /// Every blob that a job still needs: the models of those that ended too.
    pub fn blobs_in_use(&self) -> BTreeSet<Hash> {
        let models = self.jobs.values().filter_map(|job| job.parameters);
        self.blobs_in_training().into_iter().chain(models).collect()
    }

    /// Every blob that a job needs which runs.
    pub fn blobs_in_training(&self) -> BTreeSet<Hash> {
        let running = self.running.keys().filter_map(|id| self.jobs.get(id));
        let of_jobs = running.flat_map(|job| [job.parameters, job.optimizer]).flatten();
        let of_rounds = self.running.values().filter_map(|r| r.round.as_ref()).flat_map(blobs_of);
        of_jobs.chain(of_rounds).collect()
    }
}
