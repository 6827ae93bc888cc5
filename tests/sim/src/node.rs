//! A node as the contract says the agent behaves: it works on leases, keeps results until their round is
//! committed, renews with progress, and settles joules from a ledger that survives it.

use std::collections::BTreeMap;
use std::sync::Arc;

use wattmill_protocol::job::Job;
use wattmill_protocol::{Energy, Hash, NodeId, Source, Token};
use wattmill_work::{
    Capability, HeldLease, Message, Renewal, Report, ReportOutcome, Settlement, Task, UnsettledLease,
};

use crate::attempt::Attempt;
use crate::context::{Broken, Context, NodeTimer, What, hold};
use crate::ledger::Ledger;
use crate::network::{Envelope, FromNode, Network, ToNode};
use crate::random::Random;
use crate::scenario::NodePlan;
use crate::train;

/// Longest time between renewals.
const RENEW_MS: u64 = 2_500;
/// Renewals while a lease runs that makes no progress, at least.
const RENEWALS: u64 = 3;
/// Steps while a lease runs that makes no progress, at least: a worker says often that it goes on.
const STEPS: u64 = 6;
/// Longest until a lease's last metering window closes.
const WINDOW_MS: u64 = 1_500;
/// Sessions of a thousand that break as soon as they stand.
const FLAKY_PER_MILLE: u64 = 60;
/// Time between attempts to reach the collector.
const RETRY_MS: u64 = 300;

/// Whether a node's process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Up,
    /// It will start again.
    Down,
    /// It never will.
    Dead,
}

/// A result that is kept.
#[derive(Debug)]
struct Kept {
    report: Report,
    blob: Option<Vec<f32>>,
    /// Parts of the blob that are still to be stored; then the report may be sent.
    parts_left: u64,
    /// What renewals say of it.
    progress: u64,
    /// What it took, as far as it was known when it ended.
    energy: Energy,
}

impl Kept {
    fn stored(&self) -> bool {
        self.parts_left == 0
    }
}

/// A node: the process's memory, and the ledger that outlives it.
#[derive(Debug)]
pub struct Node {
    plan: NodePlan,
    index: usize,
    state: State,
    epoch: u32,
    paused_until_ms: u64,
    connection: Option<u64>,
    attempts: BTreeMap<Token, Attempt>,
    /// The worker does one after the other.
    running: Option<Token>,
    results: BTreeMap<Token, Kept>,
    ledger: Ledger,
}

impl Node {
    /// A node that was never started.
    pub fn new(index: usize, plan: NodePlan) -> Self {
        Self {
            plan,
            index,
            state: State::Down,
            epoch: 0,
            paused_until_ms: 0,
            connection: None,
            attempts: BTreeMap::new(),
            running: None,
            results: BTreeMap::new(),
            ledger: Ledger::default(),
        }
    }

    /// Its identity.
    pub fn id(&self) -> &NodeId {
        &self.plan.id
    }

    /// Whether its process runs.
    pub fn state(&self) -> State {
        self.state
    }

    /// Its process's number.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Its numerics.
    pub fn numerics(&self) -> &'static str {
        self.plan.numerics
    }

    /// Its session, as far as it knows.
    pub fn connection(&self) -> Option<u64> {
        self.connection
    }

    /// When it goes on, if it hangs now.
    pub fn paused_until_ms(&self, now: u64) -> Option<u64> {
        (self.paused_until_ms > now).then_some(self.paused_until_ms)
    }

    /// It has nothing to do, nothing to say and nothing that it waits for.
    pub fn at_rest(&self) -> bool {
        self.attempts.is_empty() && self.results.is_empty() && self.ledger.at_rest()
    }

    /// Starts its process: running leases and results are forgotten, the ledger is not.
    pub fn start(&mut self, context: &mut Context) {
        if self.state != State::Down {
            return;
        }
        self.state = State::Up;
        self.epoch += 1;
        context.note(format!("node {} starts", self.index));
        let open: Vec<Token> = self.ledger.opened().collect();
        for token in open {
            self.settle(context, token);
        }
        self.after(context, 1, NodeTimer::Dial);
        self.after(context, renew_ms(context), NodeTimer::Renew);
    }

    /// Its process dies, or is dead for good.
    pub fn die(&mut self, context: &mut Context, network: &mut Network, state: State) {
        if self.state != State::Up {
            return;
        }
        context.note(format!("node {} dies: {state:?}", self.index));
        if let Some(connection) = self.connection.take() {
            network.sever(context, connection);
        }
        self.forget(context, state);
    }

    /// Its process stops in order: leases are handed back, the session is closed.
    pub fn stop(&mut self, context: &mut Context, network: &mut Network) {
        if self.state != State::Up {
            return;
        }
        context.note(format!("node {} stops", self.index));
        let tokens: Vec<Token> = self.attempts.keys().copied().collect();
        for token in tokens {
            self.say(context, network, FromNode::HandBack(token));
            self.settle(context, token);
        }
        self.ledger.close_window();
        let unapplied = self.ledger.unapplied().to_vec();
        self.say(context, network, FromNode::Settle(unapplied));
        if let Some(connection) = self.connection.take() {
            network.close(context, connection);
        }
        self.forget(context, State::Down);
    }

    /// Hangs: nothing is done and nothing heard until then.
    pub fn pause(&mut self, context: &mut Context, duration_ms: u64) {
        context.note(format!("node {} hangs for {duration_ms} ms", self.index));
        self.paused_until_ms = context.now + duration_ms;
    }

    /// Goes on.
    pub fn resume(&mut self) {
        self.paused_until_ms = 0;
    }

    fn forget(&mut self, context: &mut Context, state: State) {
        self.state = state;
        self.attempts.clear();
        self.running = None;
        self.results.clear();
        self.ledger.crash();
        self.paused_until_ms = 0;
        if state == State::Down {
            let most_ms = if context.faults { 15_000 } else { 500 };
            context.between(100, most_ms, What::NodeStart(self.index));
        }
    }

    /// It notices that a session is gone.
    pub fn disconnected(&mut self, context: &mut Context, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.after(context, 1, NodeTimer::Dial);
        }
    }

    /// A timer went off. `process` is the collector's that runs, `live` whether the timer's lease is its
    /// shard's live one at this moment.
    pub fn timer(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        timer: NodeTimer,
        process: Option<u64>,
        live: bool,
    ) -> Result<(), Broken> {
        match timer {
            NodeTimer::Dial => self.dial(context, network, process),
            NodeTimer::Fetch(token) if process.is_none() => {
                self.after(context, RETRY_MS, NodeTimer::Fetch(token));
            }
            NodeTimer::Fetch(token) => self.fetch(context, token, live)?,
            NodeTimer::Step(token) => self.step(context, token),
            NodeTimer::Upload(token) if process.is_none() => {
                self.after(context, RETRY_MS, NodeTimer::Upload(token));
            }
            NodeTimer::Upload(token) => self.upload(context, network, token),
            NodeTimer::Renew => self.renew(context, network),
            NodeTimer::Window(token) => {
                if let Some(settlement) = self.settle(context, token) {
                    self.say(context, network, FromNode::Settle(vec![settlement]));
                }
            }
        }
        Ok(())
    }

    fn dial(&mut self, context: &mut Context, network: &mut Network, process: Option<u64>) {
        let Some(process) = process.filter(|_| self.connection.is_none()) else {
            if self.connection.is_none() {
                self.after(context, RETRY_MS, NodeTimer::Dial);
            }
            return;
        };
        let number = network.connect(self.index, process);
        self.connection = Some(number);
        if context.faults && context.random.chance(FLAKY_PER_MILLE) {
            // A session that breaks while its Hello is on its way: it may arrive after the next one's.
            context.between(1, 100, What::Sever { connection: number });
        }
        let kept = self.results.values().map(|kept| HeldLease {
            token: kept.report.token,
            job: kept.report.job.clone(),
            round: kept.report.round,
            shard: kept.report.shard,
        });
        let held = self.attempts.values().map(|a| a.lease.clone()).chain(kept).collect();
        let capability = Capability { numerics: self.plan.numerics.to_owned(), slots: self.plan.slots };
        self.say(context, network, FromNode::Hello { capability, held, settled: self.ledger.applied() });
        let stored = self.results.values().filter(|kept| kept.stored());
        let reports: Vec<Report> = stored.map(|kept| kept.report.clone()).collect();
        for report in reports {
            self.say(context, network, FromNode::Report(report));
        }
        let unapplied = self.ledger.unapplied().to_vec();
        if !unapplied.is_empty() {
            self.say(context, network, FromNode::Settle(unapplied));
        }
    }

    /// It is told something.
    pub fn hear(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        message: ToNode,
    ) -> Result<(), Broken> {
        match message {
            ToNode::BlobMissing(token) => {
                if let Some(kept) = self.results.get_mut(&token) {
                    kept.parts_left = parts(&mut context.random);
                    self.after(context, 1, NodeTimer::Upload(token));
                }
            }
            ToNode::Work(Message::Lease { token, job, spec, round, shard, task, data_hash, .. }) => {
                let lease = HeldLease { token, job, round, shard };
                self.begin(context, lease, spec, task, data_hash);
            }
            ToNode::Work(Message::Revoke { token, .. }) => self.drop_lease(context, token),
            ToNode::Work(Message::Reply { token, outcome }) => match outcome {
                ReportOutcome::Received => {}
                ReportOutcome::Committed => {
                    context.checks.told_committed(token)?;
                    self.drop_lease(context, token);
                }
                ReportOutcome::Stale | ReportOutcome::Failed => self.drop_lease(context, token),
            },
            ToNode::Work(Message::Committed { tokens }) => {
                for token in tokens {
                    context.checks.told_committed(token)?;
                    self.drop_lease(context, token);
                }
            }
            ToNode::Work(Message::Settled { sequence }) => {
                hold(sequence <= self.ledger.settled(), || {
                    format!("node {} never settled {sequence}", self.index)
                })?;
                self.ledger.acknowledge(sequence);
            }
            ToNode::Work(Message::Unsettled { leases }) => {
                let mine = |lease: &UnsettledLease| !self.attempts.contains_key(&lease.token);
                let asked: Vec<UnsettledLease> = leases.into_iter().filter(mine).collect();
                let settle = |lease: UnsettledLease| self.ledger.account_for(lease.token, lease.job);
                let settlements: Vec<Settlement> = asked.into_iter().filter_map(settle).collect();
                settlements.iter().for_each(|s| context.checks.settled(&self.plan.id, s.clone()));
                self.say(context, network, FromNode::Settle(settlements));
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        context: &mut Context,
        lease: HeldLease,
        spec: Arc<Job>,
        task: Task,
        data_hash: Option<Hash>,
    ) {
        let token = lease.token;
        if self.attempts.contains_key(&token) || self.results.contains_key(&token) {
            return;
        }
        self.ledger.open(token, lease.job.clone());
        let long = context.random.chance(self.plan.long_per_mille);
        let steps = if long { context.random.range(15, 40) } else { context.random.range(2, 5) };
        let healthy = !context.faults;
        let hangs = !healthy && context.random.chance(self.plan.hangs_per_mille);
        let hangs_at = hangs.then(|| context.random.below(steps));
        let fails = !healthy && context.random.chance(self.plan.failures_per_mille);
        let parameters = Vec::new();
        let parts_left = if task == Task::Prepare { 0 } else { parts(&mut context.random) };
        let (done, progress) = (0, 0);
        let attempt = Attempt {
            lease,
            spec,
            task,
            data_hash,
            parameters,
            parts_left,
            progress,
            done,
            steps,
            hangs_at,
            fails,
        };
        self.attempts.insert(token, attempt);
        let delay_ms = part_ms(context);
        self.after(context, delay_ms, NodeTimer::Fetch(token));
    }

    fn fetch(&mut self, context: &mut Context, token: Token, live: bool) -> Result<(), Broken> {
        let Some(attempt) = self.attempts.get_mut(&token) else { return Ok(()) };
        if attempt.parts_left > 1 {
            attempt.parts_left -= 1;
            attempt.progress += 1;
            context.checks.progressed(token, context.now);
            let delay_ms = part_ms(context);
            self.after(context, delay_ms, NodeTimer::Fetch(token));
            return Ok(());
        }
        attempt.parts_left = 0;
        let needed = match attempt.task {
            Task::Prepare => None,
            Task::Gradient { parameters, .. } | Task::Evaluate { parameters, .. } => Some(parameters),
        };
        if let Some(needed) = needed {
            let found = context.blobs.get(needed);
            hold(found.is_some() || !live, || format!("parameters {needed} of live lease {token} are gone"))?;
            match found {
                Some(found) => attempt.parameters = found.to_vec(),
                None => attempt.fails = true,
            }
            let hash = Some(train::prepared(&attempt.spec).data_hash);
            hold(attempt.data_hash == hash, || format!("lease {token} names other data"))?;
        }
        self.start_next(context);
        Ok(())
    }

    /// Starts the next lease whose parameters are here, when none runs.
    fn start_next(&mut self, context: &mut Context) {
        if self.running.is_none()
            && let Some((token, _)) = self.attempts.iter().find(|(_, attempt)| attempt.parts_left == 0)
        {
            self.running = Some(*token);
            self.after(context, 1, NodeTimer::Step(*token));
        }
    }

    fn step(&mut self, context: &mut Context, token: Token) {
        let joules = self.joules(context);
        self.ledger.add(token, joules);
        let Some(attempt) = self.attempts.get_mut(&token) else { return };
        if attempt.hangs_at == Some(attempt.done) {
            return;
        }
        attempt.done += 1;
        let done = attempt.done == attempt.steps;
        // Those that wait live with the one that runs.
        for (token, attempt) in &mut self.attempts {
            attempt.progress += 1;
            context.checks.progressed(*token, context.now);
        }
        if !done {
            let slow = context.faults && context.random.chance(10);
            let step_ms = self.plan.step_ms.min(context.scenario.settings.lease_ms / STEPS);
            let step_ms = if slow { 6_000 } else { step_ms };
            let delay_ms = context.random.range(step_ms / 2, step_ms * 3 / 2);
            self.after(context, delay_ms, NodeTimer::Step(token));
            return;
        }
        let Some(attempt) = self.attempts.remove(&token) else { return };
        self.running = None;
        self.finish(context, token, attempt);
        self.start_next(context);
    }

    fn finish(&mut self, context: &mut Context, token: Token, attempt: Attempt) {
        let broken = context.checks.is_broken(&attempt.lease.job);
        let (progress, energy) = (attempt.progress, self.ledger.so_far(token));
        let (report, blob) = attempt.report(&mut context.random, self.plan.numerics, broken);
        let parts_left = parts(&mut context.random);
        self.results.insert(token, Kept { report, blob, parts_left, progress, energy });
        let upload_ms = part_ms(context);
        self.after(context, upload_ms, NodeTimer::Upload(token));
        self.ended(context, token);
    }

    fn upload(&mut self, context: &mut Context, network: &mut Network, token: Token) {
        let Some(kept) = self.results.get_mut(&token) else { return };
        if kept.parts_left > 1 {
            kept.parts_left -= 1;
            kept.progress += 1;
            context.checks.progressed(token, context.now);
            let delay_ms = part_ms(context);
            self.after(context, delay_ms, NodeTimer::Upload(token));
            return;
        }
        if let Some(blob) = &kept.blob {
            context.blobs.put(blob.clone());
        }
        kept.parts_left = 0;
        let report = kept.report.clone();
        self.say(context, network, FromNode::Report(report));
    }

    fn renew(&mut self, context: &mut Context, network: &mut Network) {
        self.after(context, renew_ms(context), NodeTimer::Renew);
        if let Some(token) = self.running {
            let joules = self.joules(context);
            self.ledger.add(token, joules);
        }
        if !self.attempts.is_empty() {
            self.ledger.close_window();
        }
        let mut renewals = Vec::new();
        for (token, attempt) in &self.attempts {
            let watts = if self.running == Some(*token) { context.random.range(5, 500) } else { 0 };
            let (energy, power_watts) = (self.ledger.so_far(*token), watts as f64);
            renewals.push(Renewal { token: *token, progress: attempt.progress, energy, power_watts });
        }
        let unsent = self.results.iter().filter(|(_, kept)| !kept.stored());
        renewals.extend(unsent.map(|(token, kept)| Renewal {
            token: *token,
            progress: kept.progress,
            energy: kept.energy,
            power_watts: 0.0,
        }));
        if !renewals.is_empty() {
            self.say(context, network, FromNode::Renew(renewals));
        }
    }

    /// The result is not needed, or the work is not wanted.
    fn drop_lease(&mut self, context: &mut Context, token: Token) {
        self.results.remove(&token);
        if self.attempts.remove(&token).is_some() {
            self.ended(context, token);
        }
        // Only the worker's end stops what it does.
        if self.running.take_if(|running| *running == token).is_some() {
            self.start_next(context);
        }
    }

    /// A lease ended: its joules are known when the metering window closes.
    fn ended(&mut self, context: &mut Context, token: Token) {
        let delay_ms = context.random.range(1, WINDOW_MS);
        self.after(context, delay_ms, NodeTimer::Window(token));
    }

    fn settle(&mut self, context: &mut Context, token: Token) -> Option<Settlement> {
        let settlement = self.ledger.settle(token)?;
        context.checks.settled(&self.plan.id, settlement.clone());
        Some(settlement)
    }

    fn joules(&self, context: &mut Context) -> Energy {
        let measured = Energy::of(self.plan.source, context.random.range(1, 5_000_000));
        // A backend that was silent for a moment: part of the amount is a model's.
        let modelled = if context.random.chance(100) { context.random.below(1_000) } else { 0 };
        measured + Energy::of(Source::Estimate, modelled)
    }

    fn say(&self, context: &mut Context, network: &mut Network, message: FromNode) {
        if let Some(connection) = self.connection {
            network.send(context, connection, Envelope::Up(message));
        }
    }

    fn after(&self, context: &mut Context, delay_ms: u64, timer: NodeTimer) {
        context.after(delay_ms, What::Node { node: self.index, epoch: self.epoch, timer });
    }
}

fn renew_ms(context: &Context) -> u64 {
    RENEW_MS.min(context.scenario.settings.lease_ms / RENEWALS)
}

/// Parts in which a blob moves: mostly at once, sometimes for longer than a lease lasts without progress.
fn parts(random: &mut Random) -> u64 {
    if random.chance(20) { random.range(10, 30) } else { 1 }
}

/// Time of one part of a blob.
fn part_ms(context: &mut Context) -> u64 {
    let most_ms = if context.random.chance(50) { context.scenario.settings.lease_ms / STEPS } else { 60 };
    context.random.range(1, most_ms)
}
