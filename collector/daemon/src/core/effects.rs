//! What the state machine asks to be done, after its writes are durable.

use std::sync::Arc;

use wattmill_protocol::{JobId, NodeId, exit, v1};
use wattmill_work::{Effect, Event, Message};

use super::{Command, Core, Then, sessions};
use crate::blobs::Blobs;
use crate::reduce::{self, ReduceError};
use crate::tasks;

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
                    self.reduce(job, round, Arc::new(input));
                }
                Effect::Retire { blobs } => {
                    let in_use = self.work.blobs_in_use();
                    let free: Vec<_> = blobs.into_iter().filter(|b| !in_use.contains(b)).collect();
                    self.blobs.retire(&free);
                    self.blobs.keep_recent(self.work.blobs_in_training());
                }
                Effect::Ended { job } => self.ended(&job),
            }
        }
        // Nothing is to be granted to a node that is not told of it, and its leases run out their grace.
        for (node, session) in std::mem::take(&mut self.sessions.broken) {
            self.apply(Event::Closed { node, session });
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

    fn reduce(&self, job: JobId, round: u32, input: Arc<reduce::Round>) {
        let of = (job.clone(), round);
        self.work_aside(of, move |blobs| match reduce::reduce(blobs, &input) {
            Ok(outcome) => Ok(Command::Computed { job, round, outcome }),
            Err(error) => Err((error, Command::Reduce { job, round, input })),
        });
    }

    /// The disk failed a reduction a while ago.
    pub(super) fn reduce_again(&self, job: JobId, round: u32, input: Arc<reduce::Round>) {
        if self.work.round(&job).is_some_and(|r| r.number == round && r.reducing && r.outcome.is_none()) {
            self.reduce(job, round, input);
        }
    }

    /// A round is reduced: its outcome is named, then written.
    pub(super) fn computed(&mut self, job: JobId, round: u32, outcome: reduce::Outcome) {
        let reduction = outcome.reduction;
        self.apply(Event::Computed { job: job.clone(), round, reduction });
        let named = self.work.round(&job).filter(|r| r.number == round).and_then(|r| r.outcome);
        if named == Some(reduction) {
            let of = (job.clone(), round);
            self.work_aside(of, move |blobs| match outcome.persist(blobs) {
                Ok(reduction) => Ok(Command::Event(Event::Reduced { job, round, reduction: Ok(reduction) })),
                Err(error) => Err((error, Command::Computed { job, round, outcome })),
            });
        }
    }

    /// Has a part of a round's reduction done beside the core, and takes what it comes to. Where the disk failed
    /// it, the core hears so, and after a pause what has it done again.
    pub(super) fn work_aside(
        &self,
        (job, round): (JobId, u32),
        work: impl FnOnce(&Blobs) -> Result<Command, (ReduceError, Command)> + Send + 'static,
    ) {
        let (blobs, to_self, pause) = (Arc::clone(&self.blobs), self.to_self.clone(), self.reduce_retry);
        let work = tokio::task::spawn_blocking(move || work(&blobs));
        tokio::spawn(async move {
            // The core is gone only when the program ends; the round is then reduced anew.
            let say = async |command| match to_self.upgrade() {
                Some(core) => drop(core.send(command).await),
                None => {}
            };
            match work.await {
                Ok(Ok(command)) => say(command).await,
                Ok(Err((error, again))) if error.may_pass() => {
                    let reason = exit::describe(&error);
                    tracing::error!(%job, round, reason, "a round's reduction is tried again");
                    say(Command::Stalled { job, reason }).await;
                    tokio::time::sleep(pause).await;
                    say(again).await;
                }
                Ok(Err((error, _))) => say(impossible(job, round, &error)).await,
                Err(died) => {
                    say(impossible(job, round, &ReduceError::Panicked(tasks::panic_text(died)))).await;
                }
            }
        });
    }

    fn ended(&mut self, job: &JobId) {
        self.traces.ended(job);
        self.profiles.forget(job);
        self.stalled.remove(job);
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
        self.plan_due = true;
    }
}

/// A round cannot be reduced.
fn impossible(job: JobId, round: u32, error: &ReduceError) -> Command {
    let reason = exit::describe(error);
    tracing::error!(%job, round, reason, "a round cannot be reduced");
    Command::Event(Event::Reduced { job, round, reduction: Err(reason) })
}
