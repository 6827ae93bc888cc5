//! The machine itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wattmill_protocol::job::NumericsPolicy;
use wattmill_protocol::{Energy, Hash, JobId, NodeId, Token};

use crate::Now;
use crate::accounts::Accounts;
use crate::event::{
    Capability, Effect, Event, Failure, HeldLease, Message, Reduction, Renewal, Report, ReportOutcome,
    Settlement, ShardResult,
};
use crate::record::{
    AccountOutcome, AccountRecord, JobRecord, Phase, RoundRecord, ShardCommit, Stored, WasteReason, Write,
};
use crate::round::{Kind, Lease, Round, ShardState, Task, total_rounds, total_steps};
use crate::step::Step;

/// Most rounds of a job: what a 32-bit round number holds, with room for the first and the last.
const MAX_ROUNDS: u64 = u32::MAX as u64 - 2;
/// Most held-out rows: bounds the evaluation shards of a round.
const MAX_HELD_OUT_ROWS: u64 = 4096 * 4096;

/// How patient the machine is.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A lease runs this long without progress.
    pub lease_ms: u64,
    /// A closed session may come back this long before its leases are given to others.
    pub grace_ms: u64,
    /// An ended job waits this long for its last joules.
    pub settle_ms: u64,
    /// A shard that fails this often is quarantined.
    pub max_failures: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease_ms: 30_000, grace_ms: 3_000, settle_ms: 5_000, max_failures: 3 }
    }
}

#[derive(Debug)]
struct Session {
    number: u64,
    capability: Capability,
    /// When the grace of a closed session ends; `None` while it is open.
    grace_ends_ms: Option<u64>,
    /// The node gave work back: it stops or is drained, and takes none until its next session.
    leaving: bool,
}

impl Session {
    fn takes_work(&self) -> bool {
        self.grace_ends_ms.is_none() && !self.leaving
    }
}

#[derive(Debug)]
struct Running {
    round: Option<Round>,
    /// Leases of collectors before this one are not taken up.
    since_generation: u32,
    /// When settling gives up; `None` before.
    settle_ends_ms: Option<u64>,
    /// What the job's shards had taken when the cluster's joules were last shared out.
    spent_microjoules: i64,
}

/// The state of all jobs and leases.
#[derive(Debug)]
pub struct Work {
    settings: Settings,
    generation: u32,
    last_token: Token,
    /// Until then only leases that nodes still hold are taken up: no node may have come back yet.
    recovering_until_ms: u64,
    last_tick: Option<Now>,
    jobs: BTreeMap<JobId, JobRecord>,
    running: BTreeMap<JobId, Running>,
    sessions: BTreeMap<NodeId, Session>,
    accounts: Accounts,
}

impl Work {
    /// Rebuilds the state from the store's content. The writes take a new generation: commit them before
    /// anything else.
    pub fn recover(stored: Stored, settings: Settings, now: Now) -> (Self, Vec<Write>) {
        let generation = stored.generation + 1;
        let mut work = Self {
            settings,
            generation,
            last_token: Token::before_generation(generation),
            recovering_until_ms: now.monotonic_ms,
            last_tick: None,
            jobs: stored.jobs.into_iter().map(|job| (job.id.clone(), job)).collect(),
            running: BTreeMap::new(),
            sessions: BTreeMap::new(),
            accounts: Accounts::recover(stored.accounts, stored.settled),
        };
        for job in work.jobs.values().filter(|j| !j.phase.ended()) {
            let settling = job.phase == Phase::Settling;
            let running = Running {
                round: if settling { None } else { Round::next(job) },
                since_generation: job.generation,
                settle_ends_ms: settling.then_some(now.monotonic_ms + settings.settle_ms),
                spent_microjoules: work.spent_microjoules(&job.id),
            };
            work.running.insert(job.id.clone(), running);
            work.recovering_until_ms = now.monotonic_ms + settings.grace_ms;
        }
        (work, vec![Write::Generation(generation)])
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event, now: Now) -> (Vec<Write>, Vec<Effect>) {
        let mut out = Step::default();
        match event {
            Event::Submitted { job, spec, key } => self.submitted(job, spec, key, now, &mut out),
            Event::Cancelled { job } => self.cancelled(&job, now, &mut out),
            Event::Waived { job, shard } => self.waived(&job, shard, &mut out),
            Event::Opened { node, session, capability, held } => {
                self.opened(&node, session, capability, &held, now, &mut out);
            }
            Event::Closed { node, session } => self.closed(&node, session, now),
            Event::Renewed { node, renewals } => self.renewed(&node, &renewals, now),
            Event::Reported { node, report } => self.reported(&node, report, now, &mut out),
            Event::HandedBack { node, token } => {
                if let Some(session) = self.sessions.get_mut(&node) {
                    session.leaving = true;
                }
                self.lose(WasteReason::HandedBack, now, &mut out, |l| l.token == token && l.node == node);
            }
            Event::Settled { node, settlements } => self.settled(&node, settlements, now, &mut out),
            Event::Granted { job, shard, node, power_watts } => {
                self.granted(&job, shard, &node, power_watts, now, &mut out);
            }
            Event::Computed { job, round, reduction } => self.computed(&job, round, reduction),
            Event::Reduced { job, round, reduction } => self.reduced(&job, round, reduction, now, &mut out),
            Event::Tick { peak_flops, cluster_microjoules } => {
                self.share(cluster_microjoules);
                self.tick(peak_flops, now, &mut out);
            }
        }
        let Step { mut writes, effects, changed } = out;
        let records = changed.iter().filter_map(|id| self.jobs.get(id));
        writes.extend(records.map(|record| Write::Job(Box::new(record.clone()))));
        (writes, effects)
    }

    // What others read.

    /// All jobs, by identity.
    pub fn jobs(&self) -> impl Iterator<Item = &JobRecord> {
        self.jobs.values()
    }

    /// One job.
    pub fn job(&self, job: &JobId) -> Option<&JobRecord> {
        self.jobs.get(job)
    }

    /// The job that was submitted with `key`.
    pub fn job_of_key(&self, key: &str) -> Option<&JobRecord> {
        self.jobs.values().find(|job| !key.is_empty() && job.key == key)
    }

    /// The current round of a job that runs.
    pub fn round(&self, job: &JobId) -> Option<&Round> {
        self.running.get(job)?.round.as_ref()
    }

    /// Rounds of a job, preparing and judging included; 1 before its data is known.
    pub fn total_rounds(&self, job: &JobRecord) -> u32 {
        total_rounds(job)
    }

    /// Nodes with an open session that take work.
    pub fn connected(&self) -> impl Iterator<Item = (&NodeId, &Capability)> {
        self.sessions.iter().filter(|(_, s)| s.takes_work()).map(|(n, s)| (n, &s.capability))
    }

    /// Live leases, with their job.
    pub fn leases(&self) -> impl Iterator<Item = (&JobId, &Lease)> {
        self.running.iter().flat_map(|(id, running)| {
            running.round.iter().flat_map(|r| &r.shards).filter_map(move |shard| match &shard.state {
                ShardState::Leased(lease) => Some((id, lease)),
                _ => None,
            })
        })
    }

    /// Whether new leases may be given: shortly after a restart nodes first say what they hold.
    pub fn may_grant(&self, now: Now) -> bool {
        now.monotonic_ms >= self.recovering_until_ms
    }

    /// Whether a node of `numerics` may work on `job`. They are pinned by the commit of the preparing round:
    /// before it, any node may have to prepare anew.
    pub fn eligible(&self, job: &JobRecord, numerics: &str) -> bool {
        job.spec.training.numerics == NumericsPolicy::Any
            || job.round == 0
            || job.numerics.as_deref().is_none_or(|pinned| pinned == numerics)
    }

    /// Joules of a job that are not folded into its totals: (committed or open, wasted).
    pub fn unsettled_energy(&self, job: &JobId) -> (Energy, Energy) {
        let mut sums = (Energy::ZERO, Energy::ZERO);
        for (_, account) in self.accounts.of_job(job) {
            match account.outcome {
                AccountOutcome::Wasted(_) => sums.1 += account.energy,
                _ => sums.0 += account.energy,
            }
        }
        sums
    }

    /// All accounts that are not folded yet.
    pub fn accounts(&self) -> impl Iterator<Item = (Token, &AccountRecord)> {
        self.accounts.all()
    }

    /// Last settlement of `node` that is applied.
    pub fn settled_through(&self, node: &NodeId) -> u64 {
        self.accounts.settled_through(node)
    }

    /// Every blob that a job still needs.
    pub fn blobs_in_use(&self) -> BTreeSet<Hash> {
        let of_jobs = self.jobs.values().flat_map(|j| [j.parameters, j.optimizer]).flatten();
        let of_rounds = self.running.values().filter_map(|r| r.round.as_ref()).flat_map(blobs_of);
        of_jobs.chain(of_rounds).collect()
    }

    // What happens.

    fn submitted(
        &mut self,
        id: JobId,
        spec: Arc<wattmill_protocol::job::Job>,
        key: String,
        now: Now,
        out: &mut Step,
    ) {
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

    fn opened(
        &mut self,
        node: &NodeId,
        number: u64,
        capability: Capability,
        held: &[HeldLease],
        now: Now,
        out: &mut Step,
    ) {
        if self.sessions.get(node).is_some_and(|session| session.number > number) {
            return;
        }
        self.sessions
            .insert(node.clone(), Session { number, capability, grace_ends_ms: None, leaving: false });
        let kept: BTreeSet<Token> = held.iter().map(|h| h.token).collect();
        // A node that came back without a lease will never report it.
        self.lose(WasteReason::NodeRestarted, now, out, |l| l.node == *node && !kept.contains(&l.token));
        for lease in held {
            self.take_up(node, lease, now, out);
        }
        let counts: BTreeSet<Token> =
            self.running.values().filter_map(|r| r.round.as_ref()).flat_map(Round::tokens).collect();
        for token in self.accounts.orphans(node, self.generation) {
            if !kept.contains(&token) && !counts.contains(&token) {
                let outcome = AccountOutcome::Wasted(WasteReason::CollectorRestarted);
                self.accounts.conclude(token, outcome, now, &mut self.jobs, out);
            }
        }
        out.send(node, Message::Settled { sequence: self.accounts.settled_through(node) });
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

    fn standing(&self, node: &NodeId, held: &HeldLease) -> Standing {
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

    fn closed(&mut self, node: &NodeId, number: u64, now: Now) {
        let ends = now.monotonic_ms + self.settings.grace_ms;
        if let Some(session) = self.sessions.get_mut(node).filter(|s| s.number == number) {
            session.grace_ends_ms.get_or_insert(ends);
        }
    }

    fn renewed(&mut self, node: &NodeId, renewals: &[Renewal], now: Now) {
        let deadline_ms = now.monotonic_ms + self.settings.lease_ms;
        for renewal in renewals {
            let lease = self.running.values_mut().filter_map(|r| r.round.as_mut()).find_map(|round| {
                match round.leased(renewal.token)?.1.state {
                    ShardState::Leased(ref mut lease) if lease.node == *node => Some(lease),
                    _ => None,
                }
            });
            let Some(lease) = lease else { continue };
            if renewal.samples > lease.samples {
                lease.samples = renewal.samples;
                lease.deadline_ms = deadline_ms;
            }
            self.accounts.progress(renewal.token, renewal.energy, renewal.power_watts, now);
        }
    }

    fn granted(
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
        let token = self.last_token.next();
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
        let generation = self.generation;
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

    fn new_lease(&self, token: Token, node: &NodeId, now: Now) -> Lease {
        let deadline_ms = now.monotonic_ms + self.settings.lease_ms;
        Lease { token, node: node.clone(), deadline_ms, samples: 0 }
    }

    fn shard_mut(&mut self, job: &JobId, shard: u32) -> Option<&mut crate::Shard> {
        self.running.get_mut(job)?.round.as_mut()?.shards.get_mut(shard as usize)
    }

    fn reported(&mut self, node: &NodeId, report: Report, now: Now, out: &mut Step) {
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
        self.attempt_failed(&job, shard, token, &failure, now, out);
        ReportOutcome::Failed
    }

    fn attempt_failed(
        &mut self,
        job: &JobId,
        shard: u32,
        token: Token,
        failure: &Failure,
        now: Now,
        out: &mut Step,
    ) {
        let max_failures = self.settings.max_failures;
        self.lose(WasteReason::Failed, now, out, |l| l.token == token);
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

    fn reduce_when_received(&mut self, job: &JobId, out: &mut Step) {
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

    fn computed(&mut self, job: &JobId, number: u32, reduction: Reduction) {
        let round = self.running.get_mut(job).and_then(|r| r.round.as_mut());
        if let Some(round) = round.filter(|r| r.number == number && r.reducing) {
            round.outcome = Some(reduction);
        }
    }

    fn reduced(
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
        for commit in &manifest.shards {
            out.send(&commit.node, Message::Committed { tokens: vec![commit.token] });
        }
        let tokens = record.last_tokens.clone();
        let next = Round::next(record);
        let refused = impossible(record);
        record.bad_input = refused.is_some();
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

    fn settled(&mut self, node: &NodeId, settlements: Vec<Settlement>, now: Now, out: &mut Step) {
        let mut touched = BTreeSet::new();
        for settlement in settlements {
            let job = settlement.job.clone();
            if self.accounts.settle(node, settlement, &mut self.jobs, out) {
                touched.insert(job);
            }
        }
        for job in touched {
            self.finish_when_settled(&job, now, out);
        }
        out.send(node, Message::Settled { sequence: self.accounts.settled_through(node) });
    }

    fn tick(&mut self, peak_flops: Option<f64>, now: Now, out: &mut Step) {
        let passed_ms = self.last_tick.map_or(0, |last| now.monotonic_ms.saturating_sub(last.monotonic_ms));
        self.last_tick = Some(now);
        for id in self.running.keys() {
            let Some(job) = self.jobs.get_mut(id).filter(|j| j.phase == Phase::Training) else { continue };
            job.elapsed_ms += passed_ms;
            job.add_peaks(peak_flops, passed_ms);
        }
        let lost: BTreeSet<NodeId> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.grace_ends_ms.is_some_and(|ends| now.monotonic_ms >= ends))
            .map(|(node, _)| node.clone())
            .collect();
        self.sessions.retain(|node, _| !lost.contains(node));
        self.lose(WasteReason::NodeLost, now, out, |l| lost.contains(&l.node));
        self.lose(WasteReason::LeaseExpired, now, out, |l| now.monotonic_ms >= l.deadline_ms);
        let jobs: Vec<JobId> = self.running.keys().cloned().collect();
        for job in jobs {
            self.finish_when_settled(&job, now, out);
        }
    }

    /// Takes live leases away: their shards wait again, their joules are waste.
    fn lose(&mut self, reason: WasteReason, now: Now, out: &mut Step, which: impl Fn(&Lease) -> bool) {
        let mut lost = Vec::new();
        for (id, running) in &mut self.running {
            for shard in running.round.iter_mut().flat_map(|r| &mut r.shards) {
                if let ShardState::Leased(lease) = &shard.state
                    && which(lease)
                {
                    lost.push((id.clone(), lease.clone()));
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

    /// A job that is trained stays so: only its last joules are awaited.
    fn cancelled(&mut self, job: &JobId, now: Now, out: &mut Step) {
        if self.jobs.get(job).is_some_and(|record| record.phase != Phase::Settling) {
            self.end_job(job, Phase::Cancelled, None, now, out);
        }
    }

    /// Quarantined shards are tried anew, with as many attempts as at first.
    fn waived(&mut self, job: &JobId, shard: Option<u32>, out: &mut Step) {
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

    /// Splits what the cluster took since the last time among the jobs that run: to each what its shards
    /// took in it, as far as that is known yet, and an equal part of the rest.
    fn share(&mut self, cluster_microjoules: u64) {
        if cluster_microjoules == 0 || self.running.is_empty() {
            return;
        }
        let spent: Vec<(JobId, i64)> =
            self.running.keys().map(|id| (id.clone(), self.spent_microjoules(id))).collect();
        let before = |id: &JobId| self.running.get(id).map_or(0, |r| r.spent_microjoules);
        let own: i64 = spent.iter().map(|(id, now)| now - before(id)).sum();
        let rest = i64::try_from(cluster_microjoules).unwrap_or(i64::MAX) - own;
        let jobs = i64::try_from(spent.len()).unwrap_or(i64::MAX);
        for (index, (id, now)) in (0..).zip(spent) {
            let (Some(running), Some(job)) = (self.running.get_mut(&id), self.jobs.get_mut(&id)) else {
                continue;
            };
            // Whole microjoules: the first jobs take the remainder.
            let part = rest.div_euclid(jobs) + i64::from(index < rest.rem_euclid(jobs));
            job.cluster_microjoules += now - running.spent_microjoules + part;
            running.spent_microjoules = now;
        }
    }

    /// What the shards of a job took, settled or as far as it is known.
    fn spent_microjoules(&self, job: &JobId) -> i64 {
        let (open, wasted) = self.unsettled_energy(job);
        let settled = self.jobs.get(job).map(JobRecord::settled_energy).unwrap_or_default();
        i64::try_from((settled + open + wasted).total()).unwrap_or(i64::MAX)
    }

    fn end_job(&mut self, job: &JobId, phase: Phase, reason: Option<String>, now: Now, out: &mut Step) {
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

    fn finish_when_settled(&mut self, job: &JobId, now: Now, out: &mut Step) {
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
        out.changed.insert(job.clone());
        self.accounts.close_folded(job, out);
        out.effects.push(Effect::Ended { job: job.clone() });
    }
}

/// How a token stands that a node names.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It is its shard's live token, or the one whose result was received.
    Current,
    /// Its round is committed with it.
    Committed,
    /// A former collector gave it and its shard waits: it may be taken up.
    Free,
    /// Neither: it is refused.
    Stale,
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

fn received_blobs(round: &Round) -> impl Iterator<Item = Hash> + '_ {
    round.shards.iter().filter_map(|shard| match &shard.state {
        ShardState::Received { result: ShardResult::Gradient { gradient, .. }, .. } => Some(*gradient),
        ShardState::Received { result: ShardResult::Prepared { parameters, .. }, .. } => Some(*parameters),
        _ => None,
    })
}

/// Blobs that a round which is not committed needs.
fn blobs_of(round: &Round) -> impl Iterator<Item = Hash> + '_ {
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

/// Why the prepared job cannot be trained.
fn impossible(job: &JobRecord) -> Option<String> {
    let prepared = job.prepared?;
    if prepared.training_rows == 0 {
        Some(format!("{} has no rows to train on", job.spec.data.uri))
    } else if prepared.held_out_rows > MAX_HELD_OUT_ROWS {
        Some(format!("{} rows are held out; at most {MAX_HELD_OUT_ROWS} can be", prepared.held_out_rows))
    } else {
        (total_steps(job) > MAX_ROUNDS).then(|| "the job has more rounds than can be counted".to_owned())
    }
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
                share.samples += samples;
                job.samples += samples;
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
