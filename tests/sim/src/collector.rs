//! The collector around the real state machine and the real memory store: events in, writes committed,
//! effects carried out after. It dies at any point between, and recovers from the store.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context as Waiting, Poll, Waker};

use wattmill_protocol::{Hash, JobId, NodeId, Token};
use wattmill_work::memory::{Memory, MemoryError};
use wattmill_work::store::Store;
use wattmill_work::{
    Effect, Event, Message, Now, Phase, Reduction, Report, ShardResult, ShardState, Stored, Work, Write,
};

use crate::assign;
use crate::blobs;
use crate::context::{Broken, Call, CollectorTimer, Context, What, hold};
use crate::network::{Envelope, FromNode, Network, ToNode};
use crate::reduction::{self, Trouble};
use crate::words;

/// Time between ticks.
const TICK_MS: u64 = 500;
/// Time between grants.
const GRANT_MS: u64 = 200;
/// Time between attempts to commit while the store is out of order.
const RETRY_MS: u64 = 250;
/// Virtual time zero, in Unix milliseconds.
const EPOCH_UNIX_MS: i64 = 1_700_000_000_000;

/// Something that waits until the writes before it are durable.
#[derive(Debug)]
enum Then {
    Effect(Effect),
    Answer { user: usize, call: Call, job: JobId },
}

/// A process: everything in it is gone when it dies.
#[derive(Debug)]
struct Process {
    number: u64,
    /// Its monotonic clock began here.
    clock_ms: u64,
    work: Work,
    routes: BTreeMap<NodeId, u64>,
    writes: Vec<Write>,
    then: Vec<Then>,
    retrying: bool,
}

/// The store, and the process while one runs.
#[derive(Debug, Default)]
pub struct Collector {
    store: Memory,
    process: Option<Process>,
    processes: u64,
    submissions: u64,
}

impl Collector {
    /// Number of the process that runs.
    pub fn process(&self) -> Option<u64> {
        self.process.as_ref().map(|p| p.number)
    }

    /// The state machine of the process that runs.
    pub fn work(&self) -> Option<&Work> {
        self.process.as_ref().map(|p| &p.work)
    }

    /// Whether everything that was taken in is durable and carried out.
    pub fn idle(&self) -> bool {
        self.process.as_ref().is_some_and(|p| p.writes.is_empty() && p.then.is_empty())
    }

    /// What the store holds.
    pub fn stored(&mut self) -> Result<Stored, Broken> {
        at_once(self.store.load()).map_err(|e| Broken(format!("the store cannot be read: {e}")))
    }

    /// Makes the store refuse commits, or work again.
    pub fn set_out_of_order(&mut self, out_of_order: bool) {
        self.store.set_out_of_order(out_of_order);
    }

    /// Whether `token` is a live lease at this moment.
    pub fn is_live(&self, token: Token) -> bool {
        self.work().is_some_and(|work| work.leases().any(|(_, lease)| lease.token == token))
    }

    /// The process dies.
    pub fn crash(&mut self, context: &mut Context, network: &mut Network, point: &str) {
        let Some(process) = self.process.take() else { return };
        context.note(format!("collector {} dies {point}", process.number));
        context.checks.collector_died();
        network.sever_process(context, process.number);
        let most_ms = if context.faults { 10_000 } else { 500 };
        context.between(100, most_ms, What::CollectorStart);
    }

    /// A process starts and recovers from the store.
    pub fn start(&mut self, context: &mut Context) -> Result<(), Broken> {
        if self.process.is_some() {
            return Ok(());
        }
        let clock_ms = context.random.below(1_000_000);
        let now = clock(context, clock_ms);
        let (work, writes) = Work::recover(self.stored()?, context.scenario.settings, now);
        match at_once(self.store.commit(&writes)) {
            Ok(()) => {}
            Err(MemoryError::OutOfOrder) => {
                context.after(RETRY_MS, What::CollectorStart);
                return Ok(());
            }
            Err(error) => return Err(Broken(format!("the store refuses to recover: {error}"))),
        }
        self.processes += 1;
        let number = self.processes;
        context.note(format!("collector {number} starts"));
        let (routes, writes, then) = (BTreeMap::new(), Vec::new(), Vec::new());
        self.process = Some(Process { number, clock_ms, work, routes, writes, then, retrying: false });
        for timer in [CollectorTimer::Tick, CollectorTimer::Grant] {
            context.after(1, What::Collector { process: number, timer });
        }
        Ok(())
    }

    /// A timer of a process went off.
    pub fn timer(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        process: u64,
        timer: CollectorTimer,
    ) -> Result<(), Broken> {
        let Some(current) = self.process.as_mut().filter(|p| p.number == process) else { return Ok(()) };
        match timer {
            CollectorTimer::Tick => {
                context.after(TICK_MS, What::Collector { process, timer: CollectorTimer::Tick });
                self.apply(context, network, Event::Tick { peak_flops: Some(1e9), cluster_microjoules: 0 })
            }
            CollectorTimer::Grant => {
                context.after(GRANT_MS, What::Collector { process, timer: CollectorTimer::Grant });
                let now = clock(context, current.clock_ms);
                let assign = assign::of(context.scenario.assignment);
                let grants = assign(&current.work, now, &mut context.random);
                for event in grants {
                    self.apply(context, network, event)?;
                }
                Ok(())
            }
            CollectorTimer::Retry => {
                current.retrying = false;
                self.flush(context, network)
            }
            CollectorTimer::Reduce(effect) => self.reduce(context, network, &effect),
            CollectorTimer::Reduced { job, round, reduction } => {
                self.apply(context, network, Event::Reduced { job, round, reduction: Ok(reduction) })
            }
        }
    }

    /// A message of a node arrives on session `number`.
    pub fn receive(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        (node, number): (&NodeId, u64),
        message: FromNode,
    ) -> Result<(), Broken> {
        let Some(process) = self.process.as_mut().filter(|_| network.reads(number, &message)) else {
            return Ok(());
        };
        let node = node.clone();
        let event = match message {
            FromNode::Hello { capability, held, settled } => {
                // The store is never lost here.
                hold(settled <= process.work.settled_through(&node), || {
                    format!("{node} was told {settled}, which is not applied")
                })?;
                let route = process.routes.entry(node.clone()).or_insert(number);
                *route = number.max(*route);
                Event::Opened { node, session: number, capability, held, settled }
            }
            FromNode::Renew(renewals) => Event::Renewed { node, renewals },
            FromNode::Report(report) => {
                let live = process.work.leases().any(|(_, lease)| lease.token == report.token);
                if live && blob_of(&report).is_some_and(|blob| context.blobs.get(blob).is_none()) {
                    if let Some(route) = process.routes.get(&node) {
                        let missing = Envelope::Down(ToNode::BlobMissing(report.token));
                        network.send(context, *route, missing);
                    }
                    return Ok(());
                }
                Event::Reported { node, report }
            }
            FromNode::HandBack(token) => Event::HandedBack { node, token },
            FromNode::Settle(settlements) => Event::Settled { node, settlements },
        };
        self.apply(context, network, event)
    }

    /// The collector notices that a session is gone.
    pub fn closed(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        node: &NodeId,
        number: u64,
    ) -> Result<(), Broken> {
        network.mark_closed(number);
        let Some(process) = &mut self.process else { return Ok(()) };
        if process.routes.get(node) == Some(&number) {
            process.routes.remove(node);
        }
        self.apply(context, network, Event::Closed { node: node.clone(), session: number })
    }

    /// A user's call arrives.
    pub fn call(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        user: usize,
        call: Call,
        job: Option<JobId>,
    ) -> Result<(), Broken> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let key = format!("key-{user}");
        let known = process.work.job_of_key(&key).map(|job| job.id.clone());
        match (call, known, job) {
            (Call::Submit, Some(job), _) => {
                process.then.push(Then::Answer { user, call, job });
                self.flush(context, network)
            }
            (Call::Submit, None, _) => {
                self.submissions += 1;
                let id = format!("job-{user}-{}", self.submissions);
                let job: JobId = id.parse().map_err(|e| Broken(format!("{e}")))?;
                let spec = context.scenario.jobs[user].spec.clone();
                context.checks.submitted(&job, user);
                let answer = Then::Answer { user, call, job: job.clone() };
                self.step(context, network, Event::Submitted { job, spec, key }, Some(answer))
            }
            (Call::Cancel, _, Some(job)) => {
                let answer = Then::Answer { user, call, job: job.clone() };
                self.step(context, network, Event::Cancelled { job }, Some(answer))
            }
            (Call::Cancel, _, None) => Ok(()),
        }
    }

    fn apply(&mut self, context: &mut Context, network: &mut Network, event: Event) -> Result<(), Broken> {
        self.step(context, network, event, None)
    }

    /// One event: state, then writes, then effects.
    fn step(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        event: Event,
        answer: Option<Then>,
    ) -> Result<(), Broken> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let quiet = matches!(event, Event::Tick { .. });
        let line = if quiet { String::new() } else { words::event(&event) };
        let (writes, effects) = process.work.apply(event, clock(context, process.clock_ms));
        if !quiet || !writes.is_empty() || !effects.is_empty() {
            context.note(format!("{line} → {} writes, {} effects", writes.len(), effects.len()));
        }
        context.checks.applied(&process.work, context.now, &context.scenario.settings)?;
        process.writes.extend(writes);
        process.then.extend(effects.into_iter().map(Then::Effect));
        process.then.extend(answer);
        self.flush(context, network)
    }

    /// Commits what waits, then carries out what waits for that. The process may die between any two.
    fn flush(&mut self, context: &mut Context, network: &mut Network) -> Result<(), Broken> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if process.writes.is_empty() && process.then.is_empty() {
            return Ok(());
        }
        if dies(context) {
            self.crash(context, network, "before the commit");
            return Ok(());
        }
        match at_once(self.store.commit(&process.writes)) {
            Ok(()) => {}
            Err(MemoryError::OutOfOrder) => {
                if !std::mem::replace(&mut process.retrying, true) {
                    let what = What::Collector { process: process.number, timer: CollectorTimer::Retry };
                    context.after(RETRY_MS, what);
                }
                return Ok(());
            }
            Err(error) => return Err(Broken(format!("the store refuses a commit: {error}"))),
        }
        let writes = std::mem::take(&mut process.writes);
        let then = std::mem::take(&mut process.then);
        if !writes.is_empty() {
            let stored = self.stored()?;
            context.checks.committed(&writes, &stored, &context.blobs)?;
        }
        if let Some(process) = &self.process {
            context.checks.durable(&process.work)?;
        }
        for next in then {
            if dies(context) {
                self.crash(context, network, "between effects");
                return Ok(());
            }
            match next {
                Then::Effect(effect) => self.perform(context, network, effect)?,
                Then::Answer { user, call, job } => self.answer(context, user, call, job)?,
            }
        }
        Ok(())
    }

    fn perform(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        effect: Effect,
    ) -> Result<(), Broken> {
        let Some(process) = &self.process else { return Ok(()) };
        match effect {
            Effect::Send { node, message } => {
                context.checks.said(&message)?;
                if !matches!(message, Message::Settled { .. }) {
                    context.note(format!("  tells {} {}", words::name(&node), words::message(&message)));
                }
                if let Some(number) = process.routes.get(&node) {
                    network.send(context, *number, Envelope::Down(ToNode::Work(message)));
                }
            }
            Effect::Reduce { .. } => {
                let timer = CollectorTimer::Reduce(Box::new(effect));
                let most_ms = if context.random.chance(150) { 4_000 } else { 300 };
                context.between(5, most_ms, What::Collector { process: process.number, timer });
            }
            Effect::Retire { blobs } => {
                // Another job may need a blob of the same content.
                let used = process.work.blobs_in_use();
                blobs.into_iter().filter(|b| !used.contains(b)).for_each(|b| context.blobs.remove(b));
                let stored = self.stored()?;
                context.checks.blobs(&stored, &context.blobs)?;
            }
            Effect::Ended { .. } => {}
        }
        Ok(())
    }

    /// Reduces a round, names the outcome, stores it, and says so some time after. The process may die between
    /// any two.
    fn reduce(
        &mut self,
        context: &mut Context,
        network: &mut Network,
        effect: &Effect,
    ) -> Result<(), Broken> {
        let Effect::Reduce { job, round, .. } = effect else { return Ok(()) };
        let (job, round) = (job.clone(), *round);
        let awaited = self.work().and_then(|w| w.round(&job)).is_some_and(|r| r.number == round);
        let (parameters, state) = match reduction::reduce(&context.blobs, effect) {
            Ok(outcome) => outcome,
            Err(trouble) => {
                let reason = match trouble {
                    Trouble::Missing(blob) => {
                        hold(!awaited, || format!("round {round} of {job} lacks blob {blob}"))?;
                        format!("blob {blob} is missing")
                    }
                    Trouble::Refused(reason) => reason,
                };
                return self.apply(context, network, Event::Reduced { job, round, reduction: Err(reason) });
            }
        };
        let optimizer = state.as_deref().map(blobs::name);
        let reduction = Reduction { parameters: blobs::name(&parameters), optimizer };
        self.apply(context, network, Event::Computed { job: job.clone(), round, reduction })?;
        let Some(process) = &self.process else { return Ok(()) };
        let named = process.work.round(&job).filter(|r| r.number == round).and_then(|r| r.outcome);
        if named != Some(reduction) {
            return Ok(());
        }
        let process = process.number;
        context.blobs.put(parameters);
        if dies(context) {
            self.crash(context, network, "between two blobs");
            return Ok(());
        }
        state.into_iter().for_each(|state| {
            context.blobs.put(state);
        });
        let times = if context.random.chance(50) { 2 } else { 1 };
        for _ in 0..times {
            let timer = CollectorTimer::Reduced { job: job.clone(), round, reduction };
            let most_ms = if context.random.chance(150) { 2_000 } else { 100 };
            context.between(0, most_ms, What::Collector { process, timer });
        }
        Ok(())
    }

    fn answer(&mut self, context: &mut Context, user: usize, call: Call, job: JobId) -> Result<(), Broken> {
        let stored = self.stored()?;
        let record = stored.jobs.iter().find(|record| record.id == job);
        hold(record.is_some(), || format!("{job} is acknowledged and not stored"))?;
        // One that is trained is not cancelled: it ends by itself.
        let over = record.is_some_and(|record| record.phase.ended() || record.phase == Phase::Settling);
        hold(call == Call::Submit || over, || format!("{job} is cancelled and not ended"))?;
        if !(context.faults && context.random.chance(200)) {
            context.between(1, 100, What::Answer { user, call, job });
        }
        Ok(())
    }

    /// Whether a shard waits that nothing but a restart gives out again.
    pub fn quarantined(&self) -> bool {
        let Some(work) = self.work() else { return false };
        work.jobs()
            .filter_map(|job| work.round(&job.id))
            .flat_map(|round| &round.shards)
            .any(|shard| shard.state == ShardState::Quarantined)
    }
}

fn dies(context: &mut Context) -> bool {
    context.faults && context.random.chance(context.scenario.collector_crashes_per_mille)
}

fn clock(context: &Context, offset_ms: u64) -> Now {
    Now { monotonic_ms: context.now + offset_ms, unix_ms: EPOCH_UNIX_MS + context.now as i64 }
}

/// The outcome of a future of the memory store, which never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Waiting::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => unreachable!("the memory store never waits"),
    }
}

fn blob_of(report: &Report) -> Option<Hash> {
    match &report.result {
        Ok(ShardResult::Prepared { parameters, .. }) => Some(*parameters),
        Ok(ShardResult::Gradient { gradient, .. }) => Some(*gradient),
        _ => None,
    }
}
