//! Jobs: submitted, settled and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wattmill_protocol::job::Job;
use wattmill_protocol::{Hash, JobId, NodeId, Token};

use super::reductions::blobs_of;
use super::{Running, Work};
use crate::Now;
use crate::event::{Effect, Message, Settlement};
use crate::record::{AccountOutcome, JobRecord, Phase, WasteReason};
use crate::round::{Round, ShardState, total_steps};
use crate::step::Step;

/// Most rounds of a job: what a 32-bit round number holds, with room for the first and the last.
const MAX_ROUNDS: u64 = u32::MAX as u64 - 2;
/// Most rows to train on: their sums over epochs fit 64 bits, and no table is as large.
const MAX_TRAINING_ROWS: u64 = 1 << 40;
/// Most held-out rows: bounds the evaluation shards of a round.
const MAX_HELD_OUT_ROWS: u64 = 4096 * 4096;

impl Work {
    pub(super) fn submitted(&mut self, id: JobId, spec: Arc<Job>, key: String, now: Now, out: &mut Step) {
        if self.jobs.contains_key(&id) {
            return;
        }
        let job = JobRecord {
            id: id.clone(),
            spec,
            key,
            submitted_unix_ms: now.unix_ms,
            ended_unix_ms: None,
            phase: Phase::Preparing,
            reason: None,
            prepared: None,
            numerics: None,
            round: 0,
            generation: self.generation,
            parameters: None,
            optimizer: None,
            last_tokens: Vec::new(),
            samples: 0,
            useful_flops: 0,
            loss: None,
            training_accuracy: None,
            held_out_loss: None,
            accuracy: None,
            nodes: BTreeMap::new(),
            wasted: BTreeMap::new(),
            requeues: BTreeMap::new(),
            unrecorded: 0,
            elapsed_ms: 0,
            peak_flop_seconds: Some(0.0),
            last_peak_flops: None,
            unpeaked_ms: 0,
            cluster_microjoules: 0,
            bad_input: false,
        };
        let round = Round::next(&job);
        let since_generation = self.generation;
        self.running.insert(
            id.clone(),
            Running { round, since_generation, settle_ends_ms: None, spent_microjoules: 0 },
        );
        out.changed.insert(id.clone());
        self.jobs.insert(id, job);
    }

    pub(super) fn settled(&mut self, node: &NodeId, settlements: Vec<Settlement>, now: Now, out: &mut Step) {
        let mut touched = BTreeSet::new();
        for settlement in settlements {
            let job = settlement.job.clone();
            if self.accounts.settle(node, settlement, self.last_token, &mut self.jobs, out) {
                touched.insert(job);
            }
        }
        for job in touched {
            self.finish_when_settled(&job, now, out);
        }
        out.send(node, Message::Settled { sequence: self.accounts.settled_through(node) });
    }

    /// A job that is trained stays so: only its last joules are awaited.
    pub(super) fn cancelled(&mut self, job: &JobId, now: Now, out: &mut Step) {
        if self.jobs.get(job).is_some_and(|record| record.phase != Phase::Settling) {
            self.end_job(job, Phase::Cancelled, None, now, out);
        }
    }

    /// Quarantined shards are tried anew, with as many attempts as at first.
    pub(super) fn waived(&mut self, job: &JobId, shard: Option<u32>, out: &mut Step) {
        let Some(round) = self.running.get_mut(job).and_then(|r| r.round.as_mut()) else { return };
        let meant = |index: usize| shard.is_none_or(|shard| shard as usize == index);
        for (index, state) in round.shards.iter_mut().enumerate() {
            if state.state == ShardState::Quarantined && meant(index) {
                state.state = ShardState::Pending;
                state.failures = 0;
            }
        }
        let blocked = round.shards.iter().any(|s| s.state == ShardState::Quarantined);
        if let Some(record) = self.jobs.get_mut(job).filter(|_| !blocked) {
            record.reason = None;
            out.changed.insert(job.clone());
        }
    }

    pub(super) fn end_job(
        &mut self,
        job: &JobId,
        phase: Phase,
        reason: Option<String>,
        now: Now,
        out: &mut Step,
    ) {
        if !self.running.contains_key(job) {
            return;
        }
        let mine: BTreeSet<Token> =
            self.leases().filter(|(id, _)| *id == job).map(|(_, lease)| lease.token).collect();
        self.lose(WasteReason::JobEnded, now, out, |l| mine.contains(&l.token));
        let round = self.running.remove(job).and_then(|r| r.round);
        for shard in round.iter().flat_map(|r| &r.shards) {
            if let ShardState::Received { token, node, .. } = &shard.state {
                let reason = WasteReason::JobEnded;
                let outcome = AccountOutcome::Wasted(reason);
                self.accounts.conclude(*token, outcome, now, &mut self.jobs, out);
                out.send(node, Message::Revoke { token: *token, reason });
            }
        }
        let blobs = round.iter().flat_map(blobs_of).collect();
        out.effects.push(Effect::Retire { blobs });
        self.close(job, phase, reason, now, out);
    }

    pub(super) fn finish_when_settled(&mut self, job: &JobId, now: Now, out: &mut Step) {
        let Some(ends_ms) = self.running.get(job).and_then(|r| r.settle_ends_ms) else { return };
        if self.accounts.of_job(job).next().is_none() || now.monotonic_ms >= ends_ms {
            self.running.remove(job);
            self.close(job, Phase::Finished, None, now, out);
        }
    }

    fn close(&mut self, job: &JobId, phase: Phase, reason: Option<String>, now: Now, out: &mut Step) {
        let Some(record) = self.jobs.get_mut(job) else { return };
        record.phase = phase;
        record.ended_unix_ms = Some(now.unix_ms);
        record.reason = reason;
        // The model stays; nobody trains it further.
        let blobs: Vec<Hash> = record.optimizer.take().into_iter().collect();
        out.changed.insert(job.clone());
        self.accounts.close_folded(job, out);
        out.effects.push(Effect::Retire { blobs });
        out.effects.push(Effect::Ended { job: job.clone() });
    }
}

/// Why the prepared job cannot be trained.
pub(super) fn impossible(job: &JobRecord) -> Option<String> {
    let prepared = job.prepared?;
    if prepared.training_rows == 0 {
        Some(format!("{} has no rows to train on", job.spec.data.uri))
    } else if prepared.training_rows > MAX_TRAINING_ROWS {
        Some(format!(
            "{} rows are there to train on; at most {MAX_TRAINING_ROWS} can be",
            prepared.training_rows
        ))
    } else if prepared.held_out_rows > MAX_HELD_OUT_ROWS {
        Some(format!("{} rows are held out; at most {MAX_HELD_OUT_ROWS} can be", prepared.held_out_rows))
    } else {
        (total_steps(job) > MAX_ROUNDS).then(|| "the job has more rounds than can be counted".to_owned())
    }
}
