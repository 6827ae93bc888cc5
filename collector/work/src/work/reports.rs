//! Results that nodes report, and attempts that failed.

use wattmill_protocol::{JobId, NodeId, Token};

use super::Work;
use super::sessions::Standing;
use crate::Now;
use crate::event::{Failure, HeldLease, Message, Report, ReportOutcome, ShardResult};
use crate::record::{AccountOutcome, Phase, WasteReason};
use crate::round::{ShardState, Task};
use crate::step::Step;

impl Work {
    pub(super) fn reported(&mut self, node: &NodeId, report: Report, now: Now, out: &mut Step) {
        let token = report.token;
        let held = HeldLease { token, job: report.job.clone(), round: report.round, shard: report.shard };
        let outcome = match self.standing(node, &held) {
            Standing::Committed => ReportOutcome::Committed,
            Standing::Stale | Standing::Free => {
                // The work is waste: of a lease that ran out, or that a former collector gave and this one
                // never took up.
                let wasted = AccountOutcome::Wasted(WasteReason::CollectorRestarted);
                if !self.accounts.concluded(token) && report.token.generation() < self.generation {
                    self.accounts.conclude(token, wasted, now, &mut self.jobs, out);
                }
                ReportOutcome::Stale
            }
            Standing::Current => self.take(node, report, now, out),
        };
        out.send(node, Message::Reply { token, outcome });
    }

    /// A report under the shard's current token.
    fn take(&mut self, node: &NodeId, report: Report, now: Now, out: &mut Step) -> ReportOutcome {
        let Report { token, job, shard, result, useful_flops, .. } = report;
        let numerics = self.sessions.get(node).map(|s| s.capability.numerics.clone());
        let Some(state) = self.shard_mut(&job, shard) else { return ReportOutcome::Stale };
        if matches!(state.state, ShardState::Received { .. }) {
            return ReportOutcome::Received;
        }
        let failure = match result {
            Ok(result) if fits(&state.task, &result) => {
                let prepared = matches!(result, ShardResult::Prepared { .. });
                state.state = ShardState::Received { token, node: node.clone(), result, useful_flops };
                if let Some(record) = self.jobs.get_mut(&job).filter(|_| prepared) {
                    record.numerics = numerics;
                }
                self.reduce_when_received(&job, out);
                return ReportOutcome::Received;
            }
            Ok(_) => Failure { bad_input: false, message: "the result does not fit the task".to_owned() },
            Err(failure) => failure,
        };
        self.attempt_failed(&job, shard, token, (WasteReason::Failed, &failure), now, out);
        ReportOutcome::Failed
    }

    pub(super) fn attempt_failed(
        &mut self,
        job: &JobId,
        shard: u32,
        token: Token,
        (reason, failure): (WasteReason, &Failure),
        now: Now,
        out: &mut Step,
    ) {
        let max_failures = self.settings.max_failures;
        self.lose(reason, now, out, |l| l.token == token);
        let Some(state) = self.shard_mut(job, shard) else { return };
        state.failures += 1;
        state.error = Some(failure.message.clone());
        let prepares = state.task == Task::Prepare;
        if prepares && (failure.bad_input || state.failures >= max_failures) {
            let reason = Some(failure.message.clone());
            if let Some(record) = self.jobs.get_mut(job) {
                record.bad_input = failure.bad_input;
            }
            self.end_job(job, Phase::Failed, reason, now, out);
        } else if state.failures >= max_failures {
            let reason = format!(
                "shard {shard} is quarantined after {} failures: {}",
                state.failures, failure.message
            );
            state.state = ShardState::Quarantined;
            if let Some(record) = self.jobs.get_mut(job) {
                record.reason = Some(reason);
                out.changed.insert(job.clone());
            }
        }
    }
}

fn fits(task: &Task, result: &ShardResult) -> bool {
    match (task, result) {
        (Task::Prepare, ShardResult::Prepared { .. }) => true,
        (Task::Gradient { count, .. }, ShardResult::Gradient { samples, loss_sum, correct, .. })
        | (Task::Evaluate { count, .. }, ShardResult::Evaluated { samples, loss_sum, correct }) => {
            samples == count && correct <= samples && loss_sum.is_finite()
        }
        _ => false,
    }
}
