//! What must hold, checked after every event, after every commit and at every word to a node.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::{Energy, Hash, JobId, NodeId, Token};
use wattmill_work::{
    AccountOutcome, AccountRecord, JobRecord, Message, RoundRecord, Settings, ShardState, Stored, Work, Write,
};

use crate::blobs::Blobs;
use crate::context::{Broken, hold};

/// How much longer than `lease_ms` a lease may live without progress: a renewal that was on its way for
/// long, the time between ticks, and an outage of the store before the lease was sent.
const STALL_SLACK_MS: u64 = 30_000;

/// A shard of a round, whatever the collector's process.
type Place = (JobId, u32, u32);

/// A node's settlements, and their sum by job up to each.
#[derive(Debug, Default)]
struct Truth {
    tokens: Vec<(Token, JobId, Energy)>,
    sums: Vec<BTreeMap<JobId, Energy>>,
}

/// What is known to be true, and what was said.
#[derive(Debug, Default)]
pub struct Checks {
    truth: BTreeMap<NodeId, Truth>,
    /// Users' numbers by job, and which of them have unreadable data.
    jobs: BTreeMap<JobId, usize>,
    broken: BTreeSet<usize>,
    /// Newest token by shard that was given for all to see, and that this process gave.
    given: BTreeMap<Place, Token>,
    local: BTreeMap<Place, Token>,
    last_given: Option<Token>,
    rounds: BTreeMap<JobId, Vec<RoundRecord>>,
    committed: BTreeMap<Token, (JobId, u32)>,
    refused: BTreeSet<Token>,
    /// When each live lease was first seen by this process, and when its node last made progress.
    seen_ms: BTreeMap<Token, u64>,
    progress_ms: BTreeMap<Token, u64>,
    checked: u64,
}

impl Checks {
    /// Jobs of these users have data that cannot be read.
    pub fn set_broken(&mut self, users: impl Iterator<Item = usize>) {
        self.broken = users.collect();
    }

    /// Whether a job's data cannot be read.
    pub fn is_broken(&self, job: &JobId) -> bool {
        self.jobs.get(job).is_some_and(|user| self.broken.contains(user))
    }

    /// How many times something was checked.
    pub fn checked(&self) -> u64 {
        self.checked
    }

    // What is told by those who know.

    /// A user's job has an identity.
    pub fn submitted(&mut self, job: &JobId, user: usize) {
        self.jobs.insert(job.clone(), user);
    }

    /// The collector's process died with all it had not committed.
    pub fn collector_died(&mut self) {
        self.local.clear();
        self.seen_ms.clear();
    }

    /// A node made progress with a lease.
    pub fn progressed(&mut self, token: Token, now: u64) {
        self.progress_ms.insert(token, now);
    }

    /// A node's ledger knows what a lease took, once and for all.
    pub fn settled(&mut self, node: &NodeId, settlement: wattmill_work::Settlement) {
        let truth = self.truth.entry(node.clone()).or_default();
        let mut sums = truth.sums.last().cloned().unwrap_or_default();
        *sums.entry(settlement.job.clone()).or_default() += settlement.energy;
        truth.sums.push(sums);
        truth.tokens.push((settlement.token, settlement.job, settlement.energy));
    }

    // What must hold.

    /// After an event, of the state in memory.
    pub fn applied(&mut self, work: &Work, now: u64, settings: &Settings) -> Result<(), Broken> {
        self.checked += 1;
        let mut live = BTreeSet::new();
        for job in work.jobs() {
            let Some(round) = work.round(&job.id) else { continue };
            for (index, shard) in round.shards.iter().enumerate() {
                let place = (job.id.clone(), round.number, index as u32);
                let newest = self.local.get(&place).max(self.given.get(&place)).copied();
                match &shard.state {
                    ShardState::Leased(lease) => {
                        hold(live.insert(lease.token), || format!("{} is live twice", lease.token))?;
                        hold(newest.is_none_or(|newest| lease.token >= newest), || {
                            format!("{} is live at {place:?}, {newest:?} was before it", lease.token)
                        })?;
                        self.local.insert(place, lease.token);
                        self.check_progress(lease.token, now, settings)?;
                    }
                    ShardState::Received { token, .. } => {
                        hold(newest == Some(*token), || {
                            format!("{token} was taken at {place:?}, live was {newest:?}")
                        })?;
                    }
                    ShardState::Pending | ShardState::Quarantined => {}
                }
            }
        }
        self.conserved(work.jobs(), work.accounts(), |node| work.settled_through(node))
    }

    fn check_progress(&mut self, token: Token, now: u64, settings: &Settings) -> Result<(), Broken> {
        let seen_ms = *self.seen_ms.entry(token).or_insert(now);
        let last_ms = self.progress_ms.get(&token).map_or(seen_ms, |at| seen_ms.max(*at));
        hold(now <= last_ms + settings.lease_ms + STALL_SLACK_MS, || {
            format!("{token} is live and made no progress since {last_ms} ms")
        })
    }

    /// Nothing waits for the store: what is live now is live for all to see.
    pub fn durable(&mut self, work: &Work) -> Result<(), Broken> {
        for job in work.jobs() {
            let Some(round) = work.round(&job.id) else { continue };
            for (index, shard) in round.shards.iter().enumerate() {
                if let ShardState::Leased(lease) = &shard.state {
                    let place = (job.id.clone(), round.number, index as u32);
                    let before = self.given.insert(place, lease.token);
                    hold(before.is_none_or(|before| before <= lease.token), || {
                        format!("{} was given after {before:?}", lease.token)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// After a commit, of the store.
    pub fn committed(&mut self, writes: &[Write], stored: &Stored, blobs: &Blobs) -> Result<(), Broken> {
        for write in writes {
            if let Write::Round(round) = write {
                self.round_committed(round, blobs)?;
            }
        }
        for job in &stored.jobs {
            let rounds = self.rounds.get(&job.id).map_or(0, Vec::len);
            hold(job.round as usize == rounds, || {
                format!("{} is at round {}, {rounds} are committed", job.id, job.round)
            })?;
        }
        self.blobs(stored, blobs)?;
        let settled: BTreeMap<&NodeId, u64> = stored.settled.iter().map(|(n, s)| (n, *s)).collect();
        let through = |node: &NodeId| settled.get(node).copied().unwrap_or(0);
        self.conserved(stored.jobs.iter(), stored.accounts.iter().map(|(t, a)| (*t, a)), through)?;
        self.classified(stored, through)
    }

    fn round_committed(&mut self, round: &RoundRecord, blobs: &Blobs) -> Result<(), Broken> {
        let before = self.rounds.entry(round.job.clone()).or_default();
        hold(before.len() == round.round as usize, || {
            format!("round {} of {} follows {}", round.round, round.job, before.len())
        })?;
        let missing = [Some(round.parameters), round.optimizer].into_iter().flatten();
        let missing: Vec<Hash> = missing.filter(|blob| blobs.get(*blob).is_none()).collect();
        hold(missing.is_empty(), || format!("round {} names {missing:?}, not stored", round.round))?;
        for (index, shard) in round.shards.iter().enumerate() {
            let place = (round.job.clone(), round.round, index as u32);
            let newest = self.local.get(&place).max(self.given.get(&place)).copied();
            hold(newest == Some(shard.token), || {
                format!("{} is committed at {place:?}, newest was {newest:?}", shard.token)
            })?;
            hold(!self.refused.contains(&shard.token), || {
                format!("{} was refused and is committed", shard.token)
            })?;
            let twice = self.committed.insert(shard.token, (round.job.clone(), round.round));
            hold(twice.is_none(), || format!("{} is committed twice", shard.token))?;
        }
        before.push(round.clone());
        Ok(())
    }

    /// Blobs that jobs in the store need are there.
    pub fn blobs(&self, stored: &Stored, blobs: &Blobs) -> Result<(), Broken> {
        for job in &stored.jobs {
            for blob in [job.parameters, job.optimizer].into_iter().flatten() {
                hold(blobs.get(blob).is_some(), || format!("{} needs {blob}, which is gone", job.id))?;
            }
        }
        Ok(())
    }

    /// Each joule of an applied settlement is in one place: a job's totals or an account that awaits its
    /// outcome. Exact, by source, at any time.
    fn conserved<'a>(
        &self,
        jobs: impl Iterator<Item = &'a JobRecord>,
        accounts: impl Iterator<Item = (Token, &'a AccountRecord)>,
        through: impl Fn(&NodeId) -> u64,
    ) -> Result<(), Broken> {
        let mut found: BTreeMap<&JobId, Energy> = BTreeMap::new();
        for job in jobs {
            let shares = job.nodes.values();
            let wasted: Energy = shares.clone().map(|share| share.wasted).sum();
            let by_reason: Energy = job.wasted.values().copied().sum();
            hold(wasted == by_reason, || {
                format!("{}: waste {wasted} by node, {by_reason} by reason", job.id)
            })?;
            found.insert(&job.id, wasted + shares.map(|share| share.committed).sum());
        }
        for (_, account) in accounts {
            if account.settled && !account.folded() {
                *found.entry(&account.job).or_default() += account.energy;
            }
        }
        let mut applied: BTreeMap<&JobId, Energy> = BTreeMap::new();
        for (node, truth) in &self.truth {
            let sums = through(node).checked_sub(1).and_then(|last| truth.sums.get(last as usize));
            for (job, energy) in sums.into_iter().flatten() {
                *applied.entry(job).or_default() += *energy;
            }
        }
        for (job, found) in found {
            let applied = applied.remove(job).unwrap_or_default();
            hold(found == applied, || format!("{job} has {found:?} of {applied:?} settled µJ"))?;
        }
        hold(applied.is_empty(), || format!("joules of unknown jobs: {applied:?}"))
    }

    /// Committed joules are those of the tokens in the manifests, no more and no fewer.
    fn classified(&self, stored: &Stored, through: impl Fn(&NodeId) -> u64) -> Result<(), Broken> {
        let mut committed: BTreeMap<(&JobId, &NodeId), Energy> = BTreeMap::new();
        for (node, truth) in &self.truth {
            for (token, job, energy) in truth.tokens.iter().take(through(node) as usize) {
                if self.committed.contains_key(token) {
                    *committed.entry((job, node)).or_default() += *energy;
                }
            }
        }
        for job in &stored.jobs {
            for (node, share) in &job.nodes {
                let truth = committed.remove(&(&job.id, node)).unwrap_or_default();
                hold(share.committed == truth, || {
                    format!(
                        "{}: {:?} of node {node} are committed, true is {truth:?}",
                        job.id, share.committed
                    )
                })?;
            }
        }
        hold(committed.is_empty(), || format!("committed joules of nobody: {committed:?}"))
    }

    /// A node is being told something.
    pub fn said(&mut self, message: &Message) -> Result<(), Broken> {
        match message {
            Message::Lease { token, .. } => {
                let before = self.last_given.replace(*token);
                hold(before.is_none_or(|before| before < *token), || {
                    format!("{token} is given after {before:?}")
                })
            }
            Message::Revoke { token, .. }
            | Message::Reply { token, outcome: wattmill_work::ReportOutcome::Stale } => {
                self.refused.insert(*token);
                // Which tokens older rounds committed is forgotten once their joules are folded.
                let unsettled = !self.truth.values().any(|t| t.tokens.iter().any(|(t, ..)| t == token));
                let newest = self.committed.get(token).is_some_and(|(job, round)| {
                    self.rounds.get(job).is_some_and(|rounds| unsettled || rounds.len() as u32 == round + 1)
                });
                hold(!newest, || format!("{token} is committed and refused"))
            }
            Message::Reply { token, outcome: wattmill_work::ReportOutcome::Committed } => {
                self.told_committed(*token)
            }
            _ => Ok(()),
        }
    }

    /// A node hears that a lease's round is committed, and lets its result go.
    pub fn told_committed(&self, token: Token) -> Result<(), Broken> {
        hold(self.committed.contains_key(&token), || format!("{token} is not committed, as was said"))
    }

    /// All is done: nothing of a node that lives is open.
    pub fn at_rest(&self, stored: &Stored, dead: &BTreeSet<NodeId>) -> Result<(), Broken> {
        for (token, account) in &stored.accounts {
            let excused = dead.contains(&account.node);
            hold(excused, || format!("the account of {token} stays open: {account:?}"))?;
            hold(
                account.outcome != AccountOutcome::Committed || account.energy == Energy::ZERO || excused,
                || format!("the joules of {token} are counted nowhere"),
            )?;
        }
        let settled: BTreeMap<&NodeId, u64> = stored.settled.iter().map(|(n, s)| (n, *s)).collect();
        for (node, truth) in self.truth.iter().filter(|(node, _)| !dead.contains(node)) {
            let through = settled.get(node).copied().unwrap_or(0);
            hold(through as usize == truth.tokens.len(), || {
                format!("{through} of {} settlements of {node} are applied", truth.tokens.len())
            })?;
            let tokens: BTreeSet<Token> = truth.tokens.iter().map(|(token, _, _)| *token).collect();
            hold(tokens.len() == truth.tokens.len(), || format!("node {node} settled a lease twice"))?;
        }
        Ok(())
    }

    /// Manifests of a job, in order.
    pub fn rounds(&self, job: &JobId) -> &[RoundRecord] {
        self.rounds.get(job).map_or(&[], Vec::as_slice)
    }
}
