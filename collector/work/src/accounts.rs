//! The joules of leases: each amount is counted once, as committed or as waste.
//!
//! An account is opened with its lease and folded into its job's totals once outcome and amount are both
//! final. Until then it is a row of its own, so that a crash forgets neither; waste stays one until its round
//! is over, so that its token is never taken up again.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::{Energy, JobId, NodeId, Token};

use crate::Now;
use crate::event::{Settlement, UnsettledLease};
use crate::record::{AccountOutcome, AccountRecord, JobRecord, Write};
use crate::step::Step;

/// Highest settlement that a node may say is applied: with room for all that it will ever make.
const MAX_SEQUENCE: u64 = 1 << 62;

/// An account, and what its estimate rests on.
#[derive(Clone, Debug)]
struct Account {
    record: AccountRecord,
    power_watts: f64,
    known_ms: u64,
}

/// All accounts that are not closed, and how far each node's settlements are applied.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    open: BTreeMap<Token, Account>,
    settled: BTreeMap<NodeId, u64>,
}

impl Accounts {
    pub(crate) fn recover(accounts: Vec<(Token, AccountRecord)>, settled: Vec<(NodeId, u64)>) -> Self {
        let account = |record| Account { record, power_watts: 0.0, known_ms: 0 };
        Self {
            open: accounts.into_iter().map(|(token, record)| (token, account(record))).collect(),
            settled: settled.into_iter().collect(),
        }
    }

    /// A lease begins: nothing is durable yet, since a lost lease costs nothing that is known.
    pub(crate) fn open(&mut self, token: Token, job: JobId, node: NodeId, power_watts: f64, now: Now) {
        let record =
            AccountRecord { job, node, outcome: AccountOutcome::Open, energy: Energy::ZERO, settled: false };
        let account = Account { record, power_watts: power_watts.max(0.0), known_ms: now.monotonic_ms };
        self.open.entry(token).or_insert(account);
    }

    /// The node says what a lease took so far.
    pub(crate) fn progress(&mut self, token: Token, energy: Energy, power_watts: f64, now: Now) {
        if let Some(account) = self.open.get_mut(&token).filter(|a| !a.record.settled) {
            account.record.energy = energy;
            account.power_watts = power_watts.max(0.0);
            account.known_ms = now.monotonic_ms;
        }
    }

    /// A lease's outcome is known. A waste that nobody settled is estimated: what the node last said, and
    /// its last power since then.
    pub(crate) fn conclude(
        &mut self,
        token: Token,
        outcome: AccountOutcome,
        now: Now,
        jobs: &mut BTreeMap<JobId, JobRecord>,
        out: &mut Step,
    ) {
        let Some(account) = self.open.get_mut(&token) else { return };
        account.record.outcome = outcome;
        if matches!(outcome, AccountOutcome::Wasted(_)) && !account.record.settled {
            let seconds = now.monotonic_ms.saturating_sub(account.known_ms) as f64 / 1e3;
            let microjoules = (account.power_watts * seconds * 1e6) as u64;
            account.record.energy += Energy::of(wattmill_protocol::Source::Estimate, microjoules);
        }
        self.put(token, jobs, out);
    }

    /// A node settles a lease. Repetitions change nothing; returns whether it was the next in sequence. One of a
    /// lease above `last_token`, which no collector of this store gave, uses its number up and is of nobody here:
    /// its token may be given yet.
    pub(crate) fn settle(
        &mut self,
        node: &NodeId,
        settlement: Settlement,
        last_token: Token,
        jobs: &mut BTreeMap<JobId, JobRecord>,
        out: &mut Step,
    ) -> bool {
        let Settlement { sequence, token, job, energy, unrecorded } = settlement;
        if sequence != self.settled_through(node) + 1 {
            return false;
        }
        self.settled.insert(node.clone(), sequence);
        out.writes.push(Write::NodeSettled(node.clone(), sequence));
        if token > last_token {
            return true;
        }
        // A token that nobody knows was given by a former collector and lost with it: its work is waste.
        let account = self.open.entry(token).or_insert_with(|| Account {
            record: AccountRecord {
                job: job.clone(),
                node: node.clone(),
                outcome: AccountOutcome::Wasted(crate::WasteReason::CollectorRestarted),
                energy: Energy::ZERO,
                settled: false,
            },
            power_watts: 0.0,
            known_ms: 0,
        });
        if account.record.node == *node && account.record.job == job {
            account.record.energy = energy;
            account.record.settled = true;
            if let Some(job) = jobs.get_mut(&account.record.job).filter(|_| unrecorded) {
                job.unrecorded += 1;
                out.changed.insert(job.id.clone());
            }
            self.put(token, jobs, out);
        }
        true
    }

    /// `node` knows settlements up to `sequence` to be applied, by a collector whose store this one does not
    /// have: it does not keep them any more, and what it owes follows.
    pub(crate) fn settled_elsewhere(&mut self, node: &NodeId, sequence: u64, out: &mut Step) {
        if sequence > self.settled_through(node) && sequence <= MAX_SEQUENCE {
            self.settled.insert(node.clone(), sequence);
            out.writes.push(Write::NodeSettled(node.clone(), sequence));
        }
    }

    /// Last settlement of `node` that is applied, here or before this store was.
    pub(crate) fn settled_through(&self, node: &NodeId) -> u64 {
        self.settled.get(node).copied().unwrap_or(0)
    }

    /// Writes an account. Once its outcome and its amount are final it is folded into its job's totals; a
    /// waste of a job that runs stays known until the round is over, so that its token is not taken up
    /// again.
    fn put(&mut self, token: Token, jobs: &mut BTreeMap<JobId, JobRecord>, out: &mut Step) {
        let Some(record) = self.open.get(&token).map(|account| &account.record) else { return };
        let mut keep = !record.folded();
        if let Some(job) = jobs.get_mut(&record.job).filter(|_| record.folded()) {
            out.changed.insert(record.job.clone());
            let share = job.nodes.entry(record.node.clone()).or_default();
            match record.outcome {
                AccountOutcome::Wasted(reason) => {
                    share.wasted += record.energy;
                    *job.wasted.entry(reason).or_default() += record.energy;
                    keep = !job.phase.ended();
                }
                _ => share.committed += record.energy,
            }
        }
        if keep {
            out.writes.push(Write::Account(token, record.clone()));
        } else {
            self.close(token, out);
        }
    }

    fn close(&mut self, token: Token, out: &mut Step) {
        self.open.remove(&token);
        out.writes.push(Write::AccountClosed(token));
    }

    /// The job's round is over: no token of it can be taken up again.
    pub(crate) fn close_folded(&mut self, job: &JobId, out: &mut Step) {
        let folded = self.open.iter().filter(|(_, a)| a.record.folded() && a.record.job == *job);
        let tokens: Vec<Token> = folded.map(|(token, _)| *token).collect();
        tokens.into_iter().for_each(|token| self.close(token, out));
    }

    /// Accounts of a job that are not folded yet.
    pub(crate) fn of_job<'a>(
        &'a self,
        job: &'a JobId,
    ) -> impl Iterator<Item = (Token, &'a AccountRecord)> + 'a {
        self.all().filter(move |(_, account)| account.job == *job)
    }

    /// Accounts without an outcome whose node is `node` and that a former collector opened.
    pub(crate) fn orphans(&self, node: &NodeId, generation: u32) -> Vec<Token> {
        self.open
            .iter()
            .filter(|(t, a)| {
                t.generation() < generation
                    && a.record.outcome == AccountOutcome::Open
                    && a.record.node == *node
            })
            .map(|(t, _)| *t)
            .collect()
    }

    /// Leases of `node` that it has not settled, `kept` ones apart.
    pub(crate) fn unsettled(&self, node: &NodeId, kept: &BTreeSet<Token>) -> Vec<UnsettledLease> {
        let open = self.open.iter().filter(|(token, _)| !kept.contains(token));
        let open = open.filter(|(_, a)| a.record.node == *node && !a.record.settled);
        open.map(|(token, a)| UnsettledLease { token: *token, job: a.record.job.clone() }).collect()
    }

    /// Whether a token's outcome is known already.
    pub(crate) fn concluded(&self, token: Token) -> bool {
        self.open.get(&token).is_some_and(|a| a.record.outcome != AccountOutcome::Open)
    }

    /// Whether a token's round is known to be committed with it.
    pub(crate) fn committed(&self, token: Token) -> bool {
        self.open.get(&token).is_some_and(|a| a.record.outcome == AccountOutcome::Committed)
    }

    /// Accounts that are not folded yet.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Token, &AccountRecord)> {
        self.open.iter().filter(|(_, a)| !a.record.folded()).map(|(t, a)| (*t, &a.record))
    }
}
