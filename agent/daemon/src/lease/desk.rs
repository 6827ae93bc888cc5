//! The leases in hand, from their arrival to their commit. Pure: no I/O, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use wattmill_protocol::{Energy, Hash, JobId, Token, v1};

use super::blobs::{Fetched, Moved};

/// Leases that a node takes at once: one computes while the next one's parameters arrive.
pub(super) const SLOTS: u32 = 2;

/// A lease and how far it is.
#[derive(Debug)]
struct Held {
    lease: v1::Lease,
    stage: Stage,
    /// Grows with the work on it; while it waits, with the work before it.
    progress: u64,
    /// What it took as far as is known.
    energy: Energy,
}

#[derive(Debug)]
enum Stage {
    /// Waits for its parameters or for the worker.
    Waiting,
    /// Computes.
    Running,
    /// Done; kept until committed.
    Finished { result: v1::TaskResult, blob: Bytes, delivery: Delivery },
}

/// How far a result is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Here alone: its blob is to be stored.
    Kept,
    /// Its blob is stored: it is to be reported.
    Stored,
    /// Received: its round is awaited.
    Received,
}

/// What a renewal says of a lease, power aside.
#[derive(Debug, PartialEq)]
pub(super) struct Standing {
    pub(super) token: Token,
    pub(super) progress: u64,
    pub(super) energy: Energy,
}

/// A task for the worker.
pub(super) struct Start {
    pub(super) token: Token,
    pub(super) job: JobId,
    pub(super) run: v1::RunTask,
}

/// All leases in hand.
#[derive(Debug, Default)]
pub(super) struct Desk {
    held: BTreeMap<Token, Held>,
    queue: VecDeque<Token>,
    running: Option<(Token, u64)>,
    parameters: BTreeMap<Hash, Option<Bytes>>,
    /// The first lease that this process took.
    first: Option<Token>,
}

impl Desk {
    /// Takes a lease; returns parameters that must be fetched for it.
    pub(super) fn take(&mut self, lease: v1::Lease) -> Option<Hash> {
        let token = Token(lease.token);
        let needs = parameters_of(&lease);
        self.first.get_or_insert(token);
        let held = Held { lease, stage: Stage::Waiting, progress: 0, energy: Energy::ZERO };
        if self.held.insert(token, held).is_none() {
            self.queue.push_back(token);
        }
        let hash = needs.filter(|hash| !self.parameters.contains_key(hash))?;
        // Only parameters that a waiting lease names are kept: a round's are those of the one before no more.
        let needed: Vec<Hash> = self.held.values().filter_map(|h| parameters_of(&h.lease)).collect();
        self.parameters.retain(|hash, _| needed.contains(hash));
        self.parameters.insert(hash, None);
        Some(hash)
    }

    /// Notes fetched parameters. Where they cannot be had, every lease that waits for them fails.
    pub(super) fn fetched(&mut self, fetched: Fetched) -> Vec<(Token, v1::TaskResult)> {
        match fetched.outcome {
            Ok(bytes) => {
                self.parameters.insert(fetched.hash, Some(bytes));
                Vec::new()
            }
            Err(status) => {
                self.parameters.remove(&fetched.hash);
                let waits = |h: &Held| {
                    matches!(h.stage, Stage::Waiting) && parameters_of(&h.lease) == Some(fetched.hash)
                };
                let waiting = self.held.iter().filter(|(_, held)| waits(held));
                let message = format!("the parameters cannot be fetched: {}", status.message());
                waiting.map(|(token, _)| (*token, failure(message.clone()))).collect()
            }
        }
    }

    /// The next task, when nothing runs and its parameters are here.
    pub(super) fn start(&mut self) -> Option<Start> {
        if self.running.is_some() {
            return None;
        }
        let position = self.queue.iter().position(|token| self.ready(*token).is_some())?;
        let token = self.queue.remove(position)?;
        let parameters = self.ready(token)?;
        let held = self.held.get_mut(&token)?;
        held.stage = Stage::Running;
        self.running = Some((token, 0));
        let lease = &held.lease;
        let run = v1::RunTask {
            token: token.0,
            job_json: lease.job_json.clone(),
            task: lease.task.clone(),
            threads: 0,
            parameters,
            data_hash: lease.data_hash.clone(),
        };
        // A job's identity was checked by the collector that gave the lease.
        let job = lease.job.parse().ok()?;
        Some(Start { token, job, run })
    }

    /// Leases that wait for nothing but the worker.
    pub(super) fn ready_to_start(&self) -> impl Iterator<Item = Token> {
        self.queue.iter().copied().filter(|token| self.ready(*token).is_some())
    }

    fn ready(&self, token: Token) -> Option<Bytes> {
        match parameters_of(&self.held.get(&token)?.lease) {
            None => Some(Bytes::new()),
            Some(hash) => self.parameters.get(&hash)?.clone(),
        }
    }

    /// The lease that computes.
    pub(super) fn running(&self) -> Option<Token> {
        self.running.map(|(token, _)| token)
    }

    /// Notes how much of the running lease is done, in the worker's own count. What waits for its turn lives
    /// with it; where the worker hangs, all of them run out.
    pub(super) fn progress(&mut self, token: Token, done: u64) {
        let Some((_, before)) = self.running.as_mut().filter(|(running, _)| *running == token) else {
            return;
        };
        let more = done.saturating_sub(*before);
        *before += more;
        for held in self.held.values_mut().filter(|h| matches!(h.stage, Stage::Waiting | Stage::Running)) {
            held.progress += more;
        }
    }

    /// Notes bytes that were moved: parameters for those that wait, and results.
    pub(super) fn moved(&mut self, moved: &Moved) {
        for (token, held) in &mut self.held {
            held.progress += match held.stage {
                Stage::Waiting => moved.fetched,
                Stage::Running => 0,
                Stage::Finished { .. } => moved.stored.get(token).copied().unwrap_or(0),
            };
        }
    }

    /// Notes what a lease took so far.
    pub(super) fn took(&mut self, token: Token, energy: Energy) {
        if let Some(held) = self.held.get_mut(&token) {
            held.energy = energy;
        }
    }

    /// Leases that run out unless they are renewed: all whose results are not received.
    pub(super) fn standings(&self) -> impl Iterator<Item = Standing> {
        let received =
            |held: &Held| matches!(held.stage, Stage::Finished { delivery: Delivery::Received, .. });
        self.held.iter().filter(move |(_, held)| !received(held)).map(|(&token, held)| {
            let Held { progress, energy, .. } = *held;
            Standing { token, progress, energy }
        })
    }

    /// The shortest time that a lease in hand lasts without progress.
    pub(super) fn shortest(&self) -> Option<Duration> {
        self.held.values().map(|held| Duration::from_millis(held.lease.duration_ms)).min()
    }

    /// How far a finished lease's result is on its way.
    pub(super) fn delivery(&self, token: Token) -> Option<Delivery> {
        match self.held.get(&token)?.stage {
            Stage::Finished { delivery, .. } => Some(delivery),
            Stage::Waiting | Stage::Running => None,
        }
    }

    /// Notes how far a finished lease's result is on its way.
    pub(super) fn deliver(&mut self, token: Token, now: Delivery) {
        if let Some(Held { stage: Stage::Finished { delivery, .. }, .. }) = self.held.get_mut(&token) {
            *delivery = now;
        }
    }

    /// Another session, perhaps with another collector: results that were received must be reported again.
    pub(super) fn undeliver(&mut self) {
        for held in self.held.values_mut() {
            if let Stage::Finished { delivery: delivery @ Delivery::Received, .. } = &mut held.stage {
                *delivery = Delivery::Stored;
            }
        }
    }

    /// Parameters that are on their way for nobody any more; they are forgotten.
    pub(super) fn unneeded(&mut self) -> Vec<Hash> {
        let waits = |h: &Held| matches!(h.stage, Stage::Waiting).then(|| parameters_of(&h.lease)).flatten();
        let awaited: Vec<Hash> = self.held.values().filter_map(waits).collect();
        let unneeded = |(hash, bytes): (&Hash, &Option<Bytes>)| {
            (bytes.is_none() && !awaited.contains(hash)).then_some(*hash)
        };
        let unneeded: Vec<Hash> = self.parameters.iter().filter_map(unneeded).collect();
        unneeded.iter().for_each(|hash| drop(self.parameters.remove(hash)));
        unneeded
    }

    /// Notes a lease's result, which is kept from now on.
    pub(super) fn finish(&mut self, token: Token, result: v1::TaskResult, blob: Bytes) {
        self.running.take_if(|(running, _)| *running == token);
        self.queue.retain(|waiting| *waiting != token);
        if let Some(held) = self.held.get_mut(&token) {
            held.stage = Stage::Finished { result, blob, delivery: Delivery::Kept };
        }
    }

    /// Finished leases, oldest first.
    pub(super) fn finished(&self) -> Vec<Token> {
        let finished = |h: &Held| matches!(h.stage, Stage::Finished { .. });
        self.held.iter().filter(|(_, held)| finished(held)).map(|(token, _)| *token).collect()
    }

    /// Leases that are not finished.
    pub(super) fn unfinished(&self) -> Vec<Token> {
        let finished = |h: &Held| matches!(h.stage, Stage::Finished { .. });
        self.held.iter().filter(|(_, held)| !finished(held)).map(|(token, _)| *token).collect()
    }

    /// Leases whose results the collector does not have.
    pub(super) fn unreceived(&self) -> Vec<Token> {
        self.standings().map(|standing| standing.token).collect()
    }

    /// The job of a lease whose work has not begun.
    pub(super) fn waiting(&self, token: Token) -> Option<JobId> {
        let held = self.held.get(&token).filter(|held| !matches!(held.stage, Stage::Finished { .. }))?;
        if self.running() == Some(token) { None } else { held.lease.job.parse().ok() }
    }

    /// Whether a lease is in hand, finished ones included.
    pub(super) fn holds(&self, token: Token) -> bool {
        self.held.contains_key(&token)
    }

    /// Whether this process knows if a lease began. Tokens grow: one above the first that was taken here was
    /// given while this process ran, and no process before it can have begun it.
    pub(super) fn knows_begun(&self, token: Token) -> bool {
        self.first.is_some_and(|first| token >= first)
    }

    /// A finished lease's blob and its name, where it has one.
    pub(super) fn blob(&self, token: Token) -> Option<(Hash, Bytes)> {
        let Stage::Finished { result, blob, .. } = &self.held.get(&token)?.stage else { return None };
        let hash = match result.kind.as_ref()? {
            v1::task_result::Kind::Prepare(prepare) => &prepare.parameters_hash,
            v1::task_result::Kind::Gradient(gradient) => &gradient.gradient_hash,
            _ => return None,
        };
        Some((Hash::try_from(&hash[..]).ok()?, blob.clone()))
    }

    /// A finished lease's report.
    pub(super) fn report(&self, token: Token) -> Option<v1::Report> {
        let held = self.held.get(&token)?;
        let Stage::Finished { result, .. } = &held.stage else { return None };
        Some(v1::Report {
            token: token.0,
            job: held.lease.job.clone(),
            round: held.lease.round,
            shard: held.lease.shard,
            result: Some(result.clone()),
        })
    }

    /// Lets a committed result go; returns the model FLOPs that it was worth.
    pub(super) fn committed(&mut self, token: Token) -> Option<u64> {
        match self.held.remove(&token)?.stage {
            Stage::Finished { result, .. } => Some(result.useful_flops),
            Stage::Waiting | Stage::Running => None,
        }
    }

    /// Lets a lease go; returns whether it was computing.
    pub(super) fn remove(&mut self, token: Token) -> bool {
        self.held.remove(&token);
        self.queue.retain(|waiting| *waiting != token);
        self.running.take_if(|(running, _)| *running == token).is_some()
    }

    /// What a Hello says of the leases in hand.
    pub(super) fn held(&self) -> Vec<v1::HeldLease> {
        let held = self.held.iter().map(|(token, held)| v1::HeldLease {
            token: token.0,
            job: held.lease.job.clone(),
            round: held.lease.round,
            shard: held.lease.shard,
        });
        held.collect()
    }
}

/// The result of an attempt that failed by itself.
pub(super) fn failure(message: String) -> v1::TaskResult {
    let failure = v1::Failure { kind: v1::FailureKind::Attempt.into(), message };
    v1::TaskResult { kind: Some(v1::task_result::Kind::Failure(failure)), ..v1::TaskResult::default() }
}

fn parameters_of(lease: &v1::Lease) -> Option<Hash> {
    let hash = match lease.task.as_ref()?.kind.as_ref()? {
        v1::task::Kind::Prepare(_) => return None,
        v1::task::Kind::Gradient(gradient) => &gradient.parameters_hash,
        v1::task::Kind::Evaluate(evaluate) => &evaluate.parameters_hash,
    };
    Hash::try_from(&hash[..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(token: u64, parameters: Option<Hash>) -> v1::Lease {
        let kind = match parameters {
            None => v1::task::Kind::Prepare(v1::PrepareTask {}),
            Some(hash) => v1::task::Kind::Evaluate(v1::EvaluateTask {
                parameters_hash: hash.to_bytes(),
                first: 0,
                count: 1,
            }),
        };
        let task = Some(v1::Task { kind: Some(kind) });
        v1::Lease { token, job: "j".into(), task, ..v1::Lease::default() }
    }

    #[test]
    fn a_lease_waits_for_its_parameters_and_is_kept_until_committed() {
        let mut desk = Desk::default();
        let hash = Hash::of(b"p");
        assert_eq!(desk.take(lease(1, Some(hash))), Some(hash));
        assert_eq!(desk.take(lease(2, Some(hash))), None, "fetched once");
        assert!(desk.start().is_none() && desk.ready_to_start().next().is_none());
        assert!(desk.fetched(Fetched { hash, outcome: Ok(Bytes::from_static(b"p")) }).is_empty());
        assert_eq!(desk.ready_to_start().collect::<Vec<_>>(), [Token(1), Token(2)]);
        assert_eq!(desk.start().unwrap().run.parameters, Bytes::from_static(b"p"));
        assert!(desk.start().is_none(), "one at a time");
        let result = v1::TaskResult { useful_flops: 7, ..failure(String::new()) };
        desk.finish(Token(1), result, Bytes::new());
        assert_eq!(desk.start().unwrap().token, Token(2));
        assert_eq!(desk.held().len(), 2);
        assert_eq!(desk.finished(), [Token(1)]);
        assert_eq!(desk.unfinished(), [Token(2)]);
        assert_eq!(desk.committed(Token(1)), Some(7));
        assert_eq!(desk.committed(Token(1)), None, "counted once");
        assert!(desk.remove(Token(2)), "it was computing");
        assert!(desk.held().is_empty());
    }

    fn progress(desk: &Desk) -> Vec<(u64, u64)> {
        desk.standings().map(|standing| (standing.token.0, standing.progress)).collect()
    }

    #[test]
    fn a_lease_that_waits_lives_with_the_one_before_it_and_a_result_with_its_bytes() {
        let mut desk = Desk::default();
        let hash = Hash::of(b"p");
        for token in [1, 2] {
            desk.take(v1::Lease { duration_ms: 100 * token, ..lease(token, Some(hash)) });
        }
        assert_eq!(desk.shortest(), Some(Duration::from_millis(100)));
        desk.moved(&Moved { fetched: 7, ..Moved::default() });
        assert_eq!(progress(&desk), [(1, 7), (2, 7)], "both wait for the parameters");
        desk.fetched(Fetched { hash, outcome: Ok(Bytes::new()) });
        desk.start();
        desk.progress(Token(1), 5);
        desk.progress(Token(1), 5);
        desk.progress(Token(2), 9);
        assert_eq!(progress(&desk), [(1, 12), (2, 12)], "what does not run has no progress of its own");
        desk.moved(&Moved { fetched: 1, stored: BTreeMap::from([(Token(1), 1)]) });
        assert_eq!(progress(&desk), [(1, 12), (2, 13)], "a worker that hangs is not saved by bytes");

        desk.took(Token(1), Energy::of(wattmill_protocol::Source::Counter, 3));
        desk.finish(Token(1), failure(String::new()), Bytes::new());
        desk.start();
        desk.moved(&Moved { fetched: 0, stored: BTreeMap::from([(Token(1), 100)]) });
        assert_eq!(progress(&desk), [(1, 112), (2, 13)]);
        let kept = desk.standings().next().unwrap();
        assert_eq!(kept.energy.total(), 3, "what it took is not forgotten while its result is on its way");
        desk.progress(Token(2), 1);
        desk.deliver(Token(1), Delivery::Received);
        assert_eq!(progress(&desk), [(2, 14)], "a result that was received needs no lease");
        desk.undeliver();
        assert_eq!(progress(&desk).len(), 2, "until it has to be reported again");
        assert_eq!(desk.delivery(Token(1)), Some(Delivery::Stored));
        assert_eq!(desk.delivery(Token(2)), None);
    }

    #[test]
    fn it_knows_of_every_lease_since_the_first_whether_it_began() {
        let mut desk = Desk::default();
        assert!(!desk.knows_begun(Token(9)), "a process before may have begun any");
        desk.take(lease(5, None));
        desk.take(lease(7, None));
        assert!(!desk.knows_begun(Token(4)));
        assert!(desk.knows_begun(Token(5)) && desk.knows_begun(Token(6)) && desk.knows_begun(Token(8)));
        assert!(desk.holds(Token(7)) && !desk.holds(Token(6)));
        desk.remove(Token(5));
        assert!(!desk.holds(Token(5)) && desk.knows_begun(Token(6)));
    }

    #[test]
    fn parameters_that_cannot_be_had_fail_each_waiting_lease() {
        let mut desk = Desk::default();
        let hash = Hash::of(b"p");
        desk.take(lease(1, Some(hash)));
        desk.take(lease(2, Some(hash)));
        let outcome = Err(tonic::Status::not_found("gone"));
        let failed = desk.fetched(Fetched { hash, outcome });
        assert_eq!(failed.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [Token(1), Token(2)]);
        for (token, result) in failed {
            assert_eq!(desk.waiting(token), Some("j".parse().unwrap()), "it never began");
            desk.finish(token, result, Bytes::new());
        }
        desk.remove(Token(2));
        assert!(desk.report(Token(1)).is_some());
        assert!(desk.blob(Token(1)).is_none());
        assert_eq!(desk.take(lease(2, Some(hash))), Some(hash), "asked for again");
        assert!(desk.take(lease(3, None)).is_none());
        assert_eq!(desk.start().unwrap().token, Token(3), "it needs none");
        assert_eq!(desk.unneeded(), []);
        desk.remove(Token(2));
        assert_eq!(desk.unneeded(), [hash], "on their way for nobody");
        assert_eq!(desk.take(lease(4, Some(hash))), Some(hash), "and asked for again when somebody is there");
    }
}
