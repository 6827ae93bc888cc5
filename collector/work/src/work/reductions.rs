//! From a round whose results are all there to its manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use wattmill_protocol::{Hash, JobId, NodeId, Token};

use super::jobs::impossible;
use super::{Running, Work};
use crate::Now;
use crate::event::{Effect, Message, Reduction, ShardResult};
use crate::record::{AccountOutcome, JobRecord, Phase, RoundRecord, ShardCommit, Write};
use crate::round::{Kind, Round, ShardState, Task, total_steps};
use crate::step::Step;

impl Work {
    pub(super) fn reduce_when_received(&mut self, job: &JobId, out: &mut Step) {
        let Some(record) = self.jobs.get(job) else { return };
        let Some(round) = self.running.get_mut(job).and_then(|r| r.round.as_mut()) else { return };
        if !round.received() || std::mem::replace(&mut round.reducing, true) {
            return;
        }
        let steps = total_steps(record);
        let step = match round.kind {
            Kind::Train { .. } => (u64::from(round.number), steps),
            Kind::Prepare | Kind::Evaluate => (0, steps),
        };
        out.effects.push(Effect::Reduce {
            job: job.clone(),
            round: round.number,
            spec: Arc::clone(&record.spec),
            parameters: record.parameters,
            optimizer: record.optimizer,
            blobs: received_blobs(round).collect(),
            samples: gradient_samples(round),
            step,
        });
    }

    pub(super) fn computed(&mut self, job: &JobId, number: u32, reduction: Reduction) {
        let round = self.running.get_mut(job).and_then(|r| r.round.as_mut());
        if let Some(round) = round.filter(|r| r.number == number && r.reducing) {
            round.outcome = Some(reduction);
        }
    }

    pub(super) fn reduced(
        &mut self,
        job: &JobId,
        number: u32,
        reduction: Result<Reduction, String>,
        now: Now,
        out: &mut Step,
    ) {
        let round = self.running.get_mut(job).and_then(|r| r.round.take_if(|r| r.number == number));
        let (Some(round), Some(record)) = (round, self.jobs.get_mut(job)) else {
            // The job ended meanwhile, or this is said twice.
            let blobs = reduction.into_iter().flat_map(Reduction::blobs).collect();
            return out.effects.push(Effect::Retire { blobs });
        };
        let reduction = match reduction {
            Ok(reduction) => reduction,
            Err(reason) => {
                // The round's shards are waste with the job.
                if let Some(running) = self.running.get_mut(job) {
                    running.round = Some(round);
                }
                return self.end_job(job, Phase::Failed, Some(reason), now, out);
            }
        };
        let retired: Vec<Hash> = blobs_of(&round)
            .chain([record.parameters, record.optimizer].into_iter().flatten())
            .filter(|blob| !reduction.blobs().any(|kept| kept == *blob))
            .collect();
        let manifest = commit_round(record, &round, reduction, now);
        record.generation = self.generation;
        // One message for each node: it may have done all of a round's shards.
        let mut done: BTreeMap<&NodeId, Vec<Token>> = BTreeMap::new();
        for commit in &manifest.shards {
            done.entry(&commit.node).or_default().push(commit.token);
        }
        for (node, tokens) in done {
            out.send(node, Message::Committed { tokens });
        }
        let tokens = record.last_tokens.clone();
        // Before the next round is laid out: its shards are as many as a node says that there are rows.
        let refused = impossible(record);
        record.bad_input = refused.is_some();
        let next = if refused.is_some() { None } else { Round::next(record) };
        if next.is_none() {
            record.phase = Phase::Settling;
        }
        let settle_ends_ms = next.is_none().then_some(now.monotonic_ms + self.settings.settle_ms);
        let since_generation = self.generation;
        let spent_microjoules = self.running.get(job).map_or(0, |r| r.spent_microjoules);
        self.running.insert(
            job.clone(),
            Running { round: next, since_generation, settle_ends_ms, spent_microjoules },
        );
        self.accounts.close_folded(job, out);
        for token in tokens {
            self.accounts.conclude(token, AccountOutcome::Committed, now, &mut self.jobs, out);
        }
        out.writes.push(Write::Round(Box::new(manifest)));
        out.changed.insert(job.clone());
        out.effects.push(Effect::Retire { blobs: retired });
        if let Some(reason) = refused {
            self.end_job(job, Phase::Failed, Some(reason), now, out);
        }
        self.finish_when_settled(job, now, out);
    }
}

fn received_blobs(round: &Round) -> impl Iterator<Item = Hash> + '_ {
    round.shards.iter().filter_map(|shard| match &shard.state {
        ShardState::Received { result: ShardResult::Gradient { gradient, .. }, .. } => Some(*gradient),
        ShardState::Received { result: ShardResult::Prepared { parameters, .. }, .. } => Some(*parameters),
        _ => None,
    })
}

/// Blobs that a round which is not committed needs.
pub(super) fn blobs_of(round: &Round) -> impl Iterator<Item = Hash> + '_ {
    received_blobs(round).chain(round.outcome.into_iter().flat_map(Reduction::blobs))
}

fn gradient_samples(round: &Round) -> u64 {
    round
        .shards
        .iter()
        .filter(|shard| matches!(shard.task, Task::Gradient { .. }))
        .map(|shard| shard.task.samples())
        .sum()
}

/// Moves `job` past `round` and returns the manifest.
fn commit_round(job: &mut JobRecord, round: &Round, reduction: Reduction, now: Now) -> RoundRecord {
    let mut shards = Vec::with_capacity(round.shards.len());
    let (mut training, mut held_out) = (Tally::default(), Tally::default());
    for shard in &round.shards {
        let ShardState::Received { token, node, result, useful_flops } = &shard.state else { continue };
        job.useful_flops = job.useful_flops.saturating_add(*useful_flops);
        let share = job.nodes.entry(node.clone()).or_default();
        share.shards += 1;
        let blob = match result {
            ShardResult::Prepared { prepared, parameters } => {
                job.prepared = Some(*prepared);
                Some(*parameters)
            }
            ShardResult::Gradient { gradient, loss_sum, correct, samples } => {
                training.add(*loss_sum, *correct, *samples);
                share.samples = share.samples.saturating_add(*samples);
                job.samples = job.samples.saturating_add(*samples);
                Some(*gradient)
            }
            ShardResult::Evaluated { loss_sum, correct, samples } => {
                held_out.add(*loss_sum, *correct, *samples);
                None
            }
        };
        shards.push(ShardCommit { token: *token, node: node.clone(), blob });
    }
    job.loss = training.mean_loss().or(job.loss);
    job.training_accuracy = training.accuracy().or(job.training_accuracy);
    job.held_out_loss = held_out.mean_loss().or(job.held_out_loss);
    job.accuracy = held_out.accuracy().or(job.accuracy);
    job.last_tokens = shards.iter().map(|s| s.token).collect();
    job.parameters = Some(reduction.parameters);
    job.optimizer = reduction.optimizer;
    job.round = round.number + 1;
    job.reason = None;
    if job.phase == Phase::Preparing {
        job.phase = Phase::Training;
    }
    RoundRecord {
        job: job.id.clone(),
        round: round.number,
        parameters: reduction.parameters,
        optimizer: reduction.optimizer,
        loss: training.mean_loss(),
        accuracy: held_out.accuracy(),
        shards,
        unix_ms: now.unix_ms,
    }
}

/// Sums of results, in shard order, so that the same shards give the same bits.
#[derive(Default)]
struct Tally {
    loss: f64,
    correct: u64,
    samples: u64,
}

impl Tally {
    fn add(&mut self, loss: f64, correct: u64, samples: u64) {
        self.loss += loss;
        self.correct += correct;
        self.samples += samples;
    }

    fn mean_loss(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.loss / self.samples as f64)
    }

    fn accuracy(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.correct as f64 / self.samples as f64)
    }
}
