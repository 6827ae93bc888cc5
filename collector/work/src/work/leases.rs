//! Leases: given, renewed, and taken away.

use std::sync::Arc;

use wattmill_protocol::{JobId, NodeId, Token};

use super::Work;
use crate::Now;
use crate::event::{Failure, Message, Renewal};
use crate::record::{AccountOutcome, WasteReason, Write};
use crate::round::{Lease, Shard, ShardState};
use crate::step::Step;

impl Work {
    pub(super) fn renewed(&mut self, node: &NodeId, renewals: &[Renewal], now: Now) {
        let deadline_ms = now.monotonic_ms + self.settings.lease_ms;
        for renewal in renewals {
            let lease = self.running.values_mut().filter_map(|r| r.round.as_mut()).find_map(|round| {
                match round.leased(renewal.token)?.1.state {
                    ShardState::Leased(ref mut lease) if lease.node == *node => Some(lease),
                    _ => None,
                }
            });
            let Some(lease) = lease else { continue };
            if renewal.progress > lease.progress {
                lease.progress = renewal.progress;
                lease.deadline_ms = deadline_ms;
            }
            self.accounts.progress(renewal.token, renewal.energy, renewal.power_watts, now);
        }
    }

    pub(super) fn granted(
        &mut self,
        job: &JobId,
        shard: u32,
        node: &NodeId,
        power_watts: f64,
        now: Now,
        out: &mut Step,
    ) {
        let session = self.sessions.get(node).filter(|s| s.takes_work());
        let (Some(record), Some(session)) = (self.jobs.get(job), session) else { return };
        let held = self.leases().filter(|(_, l)| l.node == *node).count();
        if !self.may_grant(now)
            || held >= session.capability.slots as usize
            || !self.eligible(record, &session.capability.numerics)
        {
            return;
        }
        let (spec, data_hash, number) =
            (Arc::clone(&record.spec), record.prepared.map(|p| p.data_hash), record.round);
        // A generation has four billion tokens: a collector that gave them all takes the next, as one that restarts.
        let next = self.last_token.next();
        let generation = if next.is_some() { self.generation } else { self.generation + 1 };
        let Some(token) = next.or_else(|| Token::before_generation(generation).next()) else { return };
        let lease = self.new_lease(token, node, now);
        let duration_ms = self.settings.lease_ms;
        let Some(shard_state) = self.shard_mut(job, shard).filter(|s| s.state == ShardState::Pending) else {
            return;
        };
        shard_state.state = ShardState::Leased(lease);
        shard_state.newest = Some(token);
        shard_state.attempts += 1;
        let (task, attempt) = (shard_state.task, shard_state.attempts);
        self.last_token = token;
        if generation != self.generation {
            self.generation = generation;
            out.writes.push(Write::Generation(generation));
        }
        if let Some(record) = self.jobs.get_mut(job).filter(|record| record.generation < generation) {
            record.generation = generation;
            out.changed.insert(job.clone());
        }
        self.accounts.open(token, job.clone(), node.clone(), power_watts, now);
        let job = job.clone();
        let round = number;
        out.send(
            node,
            Message::Lease { token, job, spec, round, shard, attempt, duration_ms, task, data_hash },
        );
    }

    pub(super) fn new_lease(&self, token: Token, node: &NodeId, now: Now) -> Lease {
        let deadline_ms = now.monotonic_ms + self.settings.lease_ms;
        Lease { token, node: node.clone(), deadline_ms, progress: 0 }
    }

    pub(super) fn shard_mut(&mut self, job: &JobId, shard: u32) -> Option<&mut Shard> {
        self.running.get_mut(job)?.round.as_mut()?.shards.get_mut(shard as usize)
    }

    /// Leases that made no progress for too long are failures of their attempts.
    pub(super) fn run_out(&mut self, now: Now, out: &mut Step) {
        let expired = |(_, lease): &(&JobId, &Lease)| now.monotonic_ms >= lease.deadline_ms;
        let expired: Vec<(JobId, Lease)> =
            self.leases().filter(expired).map(|(job, lease)| (job.clone(), lease.clone())).collect();
        for (job, lease) in expired {
            let round = self.running.get_mut(&job).and_then(|running| running.round.as_mut());
            let Some((shard, _)) = round.and_then(|round| round.leased(lease.token)) else { continue };
            let message = format!(
                "the lease ran out: node {} made no progress for {} ms",
                lease.node, self.settings.lease_ms
            );
            let failure = Failure { bad_input: false, message };
            self.attempt_failed(&job, shard, lease.token, (WasteReason::LeaseExpired, &failure), now, out);
        }
    }

    /// Takes live leases away: their shards wait again, their joules are waste.
    pub(super) fn lose(
        &mut self,
        reason: WasteReason,
        now: Now,
        out: &mut Step,
        which: impl Fn(&Lease) -> bool,
    ) {
        let mut lost = Vec::new();
        for (id, running) in &mut self.running {
            for shard in running.round.iter_mut().flat_map(|r| &mut r.shards) {
                if let ShardState::Leased(lease) = &shard.state
                    && which(lease)
                {
                    lost.push((id.clone(), lease.clone()));
                    if matches!(reason, WasteReason::Failed | WasteReason::LeaseExpired) {
                        shard.avoid = Some(lease.node.clone());
                    }
                    shard.state = ShardState::Pending;
                }
            }
        }
        for (id, lease) in lost {
            // The shards of a job that ended are not given anew.
            if let Some(job) = self.jobs.get_mut(&id).filter(|_| reason != WasteReason::JobEnded) {
                *job.requeues.entry(reason).or_default() += 1;
            }
            let outcome = AccountOutcome::Wasted(reason);
            self.accounts.conclude(lease.token, outcome, now, &mut self.jobs, out);
            out.send(&lease.node, Message::Revoke { token: lease.token, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::Settings;
    use crate::{Capability, Effect, Event, Stored};

    const JOB: &str = r#"
name = "small"
[model]
layers = [{ units = 2, activation = "softmax" }]
[data]
uri = "sim://10/1"
features = 1
classes = 2
[training]
epochs = 1
shard_size = 4
shards_per_round = 2
optimizer = { name = "sgd", learning_rate = 0.1 }
"#;

    #[test]
    fn a_generation_that_is_spent_is_followed_by_the_next() {
        let now = Now { monotonic_ms: 0, unix_ms: 0 };
        let (mut work, _) = Work::recover(Stored::default(), Settings::default(), now);
        work.last_token = Token(Token::before_generation(1).0 + 0xffff_fffe);
        let job: JobId = "small-1".parse().unwrap();
        let spec = Arc::new(wattmill_protocol::job::Job::from_toml(JOB).unwrap());
        work.apply(Event::Submitted { job: job.clone(), spec, key: String::new() }, now);
        let node = NodeId::random();
        let capability = Capability { numerics: "n".into(), slots: 1 };
        let opened =
            Event::Opened { node: node.clone(), session: 1, capability, held: Vec::new(), settled: 0 };
        work.apply(opened, now);
        let mut grant = || {
            let granted = Event::Granted { job: job.clone(), shard: 0, node: node.clone(), power_watts: 0.0 };
            let (writes, effects) = work.apply(granted, now);
            let Some(Effect::Send { message: Message::Lease { token, .. }, .. }) = effects.first() else {
                panic!("{effects:?}")
            };
            work.lose(WasteReason::HandedBack, now, &mut Step::default(), |_| true);
            (*token, writes)
        };
        let (last, writes) = grant();
        assert_eq!((last.generation(), last.next()), (1, None));
        assert!(!writes.contains(&Write::Generation(2)));
        let (first, writes) = grant();
        assert!(first > last && first.generation() == 2);
        assert!(writes.contains(&Write::Generation(2)), "with the lease, or a restart would give it twice");
        assert!(!grant().1.contains(&Write::Generation(2)), "once");
        assert_eq!(work.generation, 2);
    }
}
