//! What the state machine asks to be done, after its writes are durable.

use std::sync::Arc;

use wattmill_protocol::{JobId, NodeId, exit, v1};
use wattmill_work::{Effect, Event, Message, Reduction};

use super::{Command, Core, Then, sessions};
use crate::blobs::Blobs;
use crate::reduce::{self, ReduceError};

impl Core {
    pub(super) fn perform(&mut self) {
        self.refresh_live();
        for then in std::mem::take(&mut self.pending_effects) {
            let effect = match then {
                Then::Effect(effect) => effect,
                Then::Welcome { node, session, welcome } => {
                    if self.sessions.get(&node).is_some_and(|open| open.session == session) {
                        self.sessions.send(&node, v1::to_node::Kind::Welcome(welcome));
                    }
                    continue;
                }
            };
            match effect {
                Effect::Send { node, message } => self.tell(&node, message),
                Effect::Reduce { job, round, spec, parameters, optimizer, blobs, samples, step } => {
                    self.traces.reducing(&job, round);
                    let input = reduce::Round { spec, parameters, optimizer, blobs, samples, step };
                    self.reduce(job, round, input);
                }
                Effect::Retire { blobs } => {
                    let in_use = self.work.blobs_in_use();
                    let free: Vec<_> = blobs.into_iter().filter(|b| !in_use.contains(b)).collect();
                    self.blobs.retire(&free);
                }
                Effect::Ended { job } => self.ended(&job),
            }
        }
    }

    fn tell(&mut self, node: &NodeId, message: Message) {
        let mut traceparent = String::new();
        match &message {
            Message::Lease { token, job, round, shard, .. } => {
                traceparent = self.traces.lease(*token, job, (*round, *shard), node);
            }
            Message::Committed { tokens } => tokens.iter().for_each(|token| self.traces.committed(*token)),
            Message::Revoke { token, reason } => self.traces.revoked(*token, reason.as_str()),
            Message::Reply { .. } | Message::Settled { .. } | Message::Unsettled { .. } => {}
        }
        self.sessions.send(node, sessions::message(message, traceparent));
    }

    fn refresh_live(&self) {
        self.blobs.keep_staged(&self.work.tokens().collect());
        let tokens = self.work.leases().map(|(_, lease)| lease.token).collect();
        *self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner) = tokens;
    }

    fn reduce(&self, job: JobId, round: u32, input: reduce::Round) {
        self.work_aside(move |blobs| match reduce::reduce(blobs, &input) {
            Ok(outcome) => Command::Computed { job, round, outcome },
            Err(error) => reduced(job, round, Err(error)),
        });
    }

    /// A round is reduced: its outcome is named, then written.
    pub(super) fn computed(&mut self, job: JobId, round: u32, outcome: reduce::Outcome) {
        let reduction = outcome.reduction;
        self.apply(Event::Computed { job: job.clone(), round, reduction });
        let named = self.work.round(&job).filter(|r| r.number == round).and_then(|r| r.outcome);
        if named == Some(reduction) {
            self.work_aside(move |blobs| reduced(job, round, outcome.persist(blobs)));
        }
    }

    /// Has `work` done beside the core, and takes what it comes to.
    fn work_aside(&self, work: impl FnOnce(&Blobs) -> Command + Send + 'static) {
        let (blobs, to_self) = (Arc::clone(&self.blobs), self.to_self.clone());
        tokio::task::spawn_blocking(move || {
            let command = work(&blobs);
            if let Some(core) = to_self.upgrade() {
                // The core is gone only when the program ends; the round is then reduced anew.
                drop(core.blocking_send(command));
            }
        });
    }

    fn ended(&mut self, job: &JobId) {
        self.traces.ended(job);
        self.profiles.forget(job);
        self.energy_at_end.insert(job.clone(), self.cluster_energy());
        let Some(record) = self.work.job(job) else { return };
        tracing::info!(
            %job,
            state = ?record.phase,
            reason = record.reason.as_deref().unwrap_or_default(),
            samples = record.samples,
            accuracy = record.accuracy,
            seconds = record.elapsed_ms as f64 / 1e3,
            "job ended"
        );
        self.replan();
    }
}

/// A round's reduction is durable, or cannot be.
fn reduced(job: JobId, round: u32, reduction: Result<Reduction, ReduceError>) -> Command {
    let reduction = reduction.map_err(|error| exit::describe(&error));
    if let Err(reason) = &reduction {
        tracing::error!(%job, round, reason, "a round cannot be reduced");
    }
    Command::Event(Event::Reduced { job, round, reduction })
}
