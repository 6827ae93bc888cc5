//! The joules of leases: each amount is counted once, as committed or as waste.
//!
//! An account is opened with its lease and folded into its job's totals once outcome and amount are both
//! final. Until then it is a row of its own, so that a crash forgets neither.

use std::collections::BTreeMap;

use wattmill_protocol::{Energy, JobId, NodeId, Token};

use crate::Now;
use crate::record::{AccountOutcome, AccountRecord, JobRecord, Write};
use crate::step::Step;

/// An account, and what its estimate rests on.
#[derive(Clone, Debug)]
struct Account {
    record: AccountRecord,
    power_watts: f64,
    known_ms: u64,
}

/// All accounts that are not folded yet, and how far each node's settlements are applied.
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
    pub(crate) fn open(&mut self, token: Token, job: JobId, node: NodeId, now: Now) {
        let record =
            AccountRecord { job, node, outcome: AccountOutcome::Open, energy: Energy::ZERO, settled: false };
        self.open.entry(token).or_insert(Account { record, power_watts: 0.0, known_ms: now.monotonic_ms });
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
        if !self.fold(token, jobs, out)
            && let Some(account) = self.open.get(&token)
        {
            out.writes.push(Write::Account(token, account.record.clone()));
        }
    }

    /// A node settles a lease. Repetitions change nothing; returns whether it was the next in sequence.
    pub(crate) fn settle(
        &mut self,
        node: &NodeId,
        settlement: crate::Settlement,
        jobs: &mut BTreeMap<JobId, JobRecord>,
        out: &mut Step,
    ) -> bool {
        let crate::Settlement { sequence, token, job, energy } = settlement;
        if sequence != self.settled_through(node) + 1 {
            return false;
        }
        self.settled.insert(node.clone(), sequence);
        // A token that nobody knows was given by a former collector and lost with it: its work is waste.
        let account = self.open.entry(token).or_insert_with(|| Account {
            record: AccountRecord {
                job,
                node: node.clone(),
                outcome: AccountOutcome::Wasted(crate::WasteReason::CollectorRestarted),
                energy: Energy::ZERO,
                settled: false,
            },
            power_watts: 0.0,
            known_ms: 0,
        });
        if account.record.node == *node {
            account.record.energy = energy;
            account.record.settled = true;
        }
        if !self.fold(token, jobs, out)
            && let Some(account) = self.open.get(&token)
        {
            out.writes.push(Write::Account(token, account.record.clone()));
        }
        out.writes.push(Write::NodeSettled(node.clone(), sequence));
        true
    }

    /// Last settlement of `node` that is applied.
    pub(crate) fn settled_through(&self, node: &NodeId) -> u64 {
        self.settled.get(node).copied().unwrap_or(0)
    }

    fn fold(&mut self, token: Token, jobs: &mut BTreeMap<JobId, JobRecord>, out: &mut Step) -> bool {
        let Some(account) = self.open.get(&token).filter(|a| a.record.settled) else { return false };
        let AccountRecord { job, node, outcome, energy, .. } = &account.record;
        if *outcome == AccountOutcome::Open {
            return false;
        }
        if let Some(record) = jobs.get_mut(job) {
            out.changed.insert(job.clone());
            let share = record.nodes.entry(node.clone()).or_default();
            match *outcome {
                AccountOutcome::Wasted(reason) => {
                    share.wasted += *energy;
                    *record.wasted.entry(reason).or_default() += *energy;
                }
                _ => share.committed += *energy,
            }
        }
        self.open.remove(&token);
        out.writes.push(Write::AccountClosed(token));
        true
    }

    /// Accounts of a job that are not folded yet.
    pub(crate) fn of_job<'a>(
        &'a self,
        job: &'a JobId,
    ) -> impl Iterator<Item = (Token, &'a AccountRecord)> + 'a {
        self.open.iter().filter(move |(_, a)| a.record.job == *job).map(|(t, a)| (*t, &a.record))
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

    /// Whether a token's outcome is known already.
    pub(crate) fn concluded(&self, token: Token) -> bool {
        self.open.get(&token).is_some_and(|a| a.record.outcome != AccountOutcome::Open)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Token, &AccountRecord)> {
        self.open.iter().map(|(t, a)| (*t, &a.record))
    }
}
