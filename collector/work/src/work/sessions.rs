//! Sessions of nodes, and what becomes of the leases that a node says it holds.

use std::collections::BTreeSet;

use wattmill_protocol::{NodeId, Token};

use super::Work;
use crate::Now;
use crate::event::{Capability, HeldLease, MAX_UNSETTLED, Message};
use crate::record::{AccountOutcome, WasteReason};
use crate::round::ShardState;
use crate::step::Step;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) capability: Capability,
    /// When the grace of a closed session ends; `None` while it is open.
    pub(super) grace_ends_ms: Option<u64>,
    /// The node gave work back: it stops or is drained, and takes none until its next session.
    pub(super) leaving: bool,
}

impl Session {
    pub(super) fn takes_work(&self) -> bool {
        self.grace_ends_ms.is_none() && !self.leaving
    }
}

/// How a token stands that a node names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is its shard's live token, or the one whose result was received.
    Current,
    /// Its round is committed with it.
    Committed,
    /// A former collector gave it and its shard waits: it may be taken up.
    Free,
    /// Neither: it is refused.
    Stale,
}

impl Work {
    pub(super) fn opened(
        &mut self,
        node: &NodeId,
        number: u64,
        capability: Capability,
        (held, settled): (&[HeldLease], u64),
        now: Now,
        out: &mut Step,
    ) {
        if self.sessions.get(node).is_some_and(|session| session.number > number) {
            return;
        }
        self.sessions
            .insert(node.clone(), Session { number, capability, grace_ends_ms: None, leaving: false });
        self.accounts.settled_elsewhere(node, settled, out);
        let kept: BTreeSet<Token> = held.iter().map(|h| h.token).collect();
        // A node that came back without a lease will never report it.
        self.lose(WasteReason::NodeRestarted, now, out, |l| l.node == *node && !kept.contains(&l.token));
        for lease in held {
            self.take_up(node, lease, now, out);
        }
        let counts: BTreeSet<Token> = self.tokens().collect();
        for token in self.accounts.orphans(node, self.generation) {
            if !kept.contains(&token) && !counts.contains(&token) {
                let outcome = AccountOutcome::Wasted(WasteReason::CollectorRestarted);
                self.accounts.conclude(token, outcome, now, &mut self.jobs, out);
            }
        }
        out.send(node, Message::Settled { sequence: self.accounts.settled_through(node) });
        // Lost on their way to the node, or with its memory: it settles them only when asked.
        for leases in self.accounts.unsettled(node, &kept).chunks(MAX_UNSETTLED) {
            out.send(node, Message::Unsettled { leases: leases.to_vec() });
        }
    }

    /// A node says that it holds a lease: it goes on, is taken up from a former collector, or is revoked.
    fn take_up(&mut self, node: &NodeId, held: &HeldLease, now: Now, out: &mut Step) {
        match self.standing(node, held) {
            Standing::Current => {}
            Standing::Committed => out.send(node, Message::Committed { tokens: vec![held.token] }),
            Standing::Free => {
                let lease = self.new_lease(held.token, node, now);
                if let Some(shard) = self.shard_mut(&held.job, held.shard) {
                    shard.state = ShardState::Leased(lease);
                    shard.newest = Some(held.token);
                    shard.attempts += 1;
                    // What it drew is not known here; its node renews it within a second.
                    self.accounts.open(held.token, held.job.clone(), node.clone(), 0.0, now);
                }
            }
            Standing::Stale => {
                let reason = WasteReason::CollectorRestarted;
                let outcome = AccountOutcome::Wasted(reason);
                if !self.accounts.concluded(held.token) {
                    self.accounts.conclude(held.token, outcome, now, &mut self.jobs, out);
                }
                out.send(node, Message::Revoke { token: held.token, reason });
            }
        }
    }

    pub(super) fn standing(&self, node: &NodeId, held: &HeldLease) -> Standing {
        let Some(job) = self.jobs.get(&held.job) else { return Standing::Stale };
        if job.last_tokens.contains(&held.token) || self.accounts.committed(held.token) {
            return Standing::Committed;
        }
        let Some(running) = self.running.get(&held.job) else { return Standing::Stale };
        let round = running.round.as_ref().filter(|round| round.number == held.round);
        let Some(shard) = round.and_then(|r| r.shards.get(held.shard as usize)) else {
            return Standing::Stale;
        };
        let generations = running.since_generation..self.generation;
        match &shard.state {
            ShardState::Leased(l) if l.token == held.token && l.node == *node => Standing::Current,
            ShardState::Received { token, .. } if *token == held.token => Standing::Current,
            ShardState::Pending
                if generations.contains(&held.token.generation())
                    && shard.newest < Some(held.token)
                    && !self.accounts.concluded(held.token) =>
            {
                Standing::Free
            }
            _ => Standing::Stale,
        }
    }

    pub(super) fn closed(&mut self, node: &NodeId, number: u64, now: Now) {
        let ends = now.monotonic_ms + self.settings.grace_ms;
        if let Some(session) = self.sessions.get_mut(node).filter(|s| s.number == number) {
            session.grace_ends_ms.get_or_insert(ends);
        }
    }
}
