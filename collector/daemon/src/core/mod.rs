//! The core loop: one task owns the state machine, and nothing else touches it.
//!
//! Commands come in, are applied, their writes are committed in one transaction, and only then are the
//! effects carried out. A store that refuses is tried again; effects wait, nothing is forgotten. What it will
//! never take ends the program: the next start recovers from what is stored.
//! Invariant: what a node or a user was told is durable.

mod command;
mod effects;
mod literal;
mod planner;
mod points;
mod report;
mod sessions;
mod traces;
pub(crate) mod view;
mod waits;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use wattmill_protocol::catalogue as metrics;
use wattmill_protocol::exposition::Point;
use wattmill_protocol::{Energy, JobId, NodeId, Token, exit, v1};
use wattmill_scheduler::{Plan, Profiles};
use wattmill_work::store::Store;
use wattmill_work::{Effect, Event, Failure, Now, Report, ShardState, WasteReason, Work, Write};

use crate::blobs::Blobs;
use crate::reduce;
use crate::state::{Rollup, Telemetry};
use crate::store::{Sqlite, StoreError};

pub(crate) use command::{Command, OpenRefused, Shard};
use literal::Literal;
pub(crate) use planner::round_bytes;
use sessions::Sessions;
pub(crate) use traces::Traces;
use view::View;

/// Commands that wait for the core.
const COMMANDS: usize = 1024;
/// Commands that share one transaction.
const BATCH: usize = 256;
/// How often time passes for the state machine.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at the whole cluster by the planner.
const TICKS_PER_PLAN: u32 = 10;
/// Ticks between two pictures of a cluster in which nothing happens: its power changes all the same.
const TICKS_PER_PICTURE: u32 = 5;
/// Pause before a refused transaction is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Pause before a reduction that the disk failed is tried again.
const REDUCE_RETRY: Duration = Duration::from_secs(2);

/// What is carried out once the writes of the commands before it are durable.
enum Then {
    /// The state machine asks for it.
    Effect(Effect),
    /// A node's session opens with it.
    Welcome {
        /// Whose.
        node: NodeId,
        /// Which one: a newer one has its own.
        session: u64,
        /// What it says.
        welcome: v1::Welcome,
    },
}

/// Tokens under which blobs may be stored now.
pub(crate) type LiveTokens = Arc<RwLock<BTreeSet<Token>>>;

/// What others use of the core.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) live: LiveTokens,
}

/// The state machine and all that it needs.
pub(crate) struct Core {
    work: Work,
    store: Sqlite,
    blobs: Arc<Blobs>,
    telemetry: Arc<Telemetry>,
    rollups: watch::Receiver<Arc<Rollup>>,
    started: Instant,
    cluster: String,
    sessions: Sessions,
    traces: Traces,
    profiles: Profiles,
    plan: Plan,
    /// Nodes or jobs came or went since the last plan.
    plan_due: bool,
    /// Something happened since the last picture.
    news: bool,
    ticks: u32,
    /// Joules of the cluster when each job was submitted, while this collector runs.
    energy_at_submission: BTreeMap<JobId, Energy>,
    energy_at_end: BTreeMap<JobId, Energy>,
    /// The cluster's joules that were shared out among jobs, or came when none ran.
    shared_microjoules: u64,
    literal: Literal,
    reduce_retry: Duration,
    /// Jobs whose rounds the disk does not take, and why.
    stalled: BTreeMap<JobId, String>,
    /// Positions of the nodes' spools that survive a crash.
    durable: BTreeMap<NodeId, u64>,
    /// As exposed: an estimate that a ledger corrects downwards must not take a counter back.
    wasted_joules: BTreeMap<WasteReason, f64>,
    commits: u64,
    store_errors: u64,
    plan_seconds: f64,
    pending_writes: Vec<Write>,
    pending_effects: Vec<Then>,
    commands: mpsc::Receiver<Command>,
    to_self: mpsc::WeakSender<Command>,
    views: watch::Sender<Arc<View>>,
    live: LiveTokens,
}

impl Core {
    /// Recovers the state from the store and takes a new generation.
    pub(crate) async fn recover(
        mut store: Sqlite,
        blobs: Arc<Blobs>,
        telemetry: Arc<Telemetry>,
        rollups: watch::Receiver<Arc<Rollup>>,
        durable: Vec<(NodeId, u64)>,
        settings: wattmill_work::Settings,
        traces: Traces,
    ) -> Result<(Self, Handle), StoreError> {
        let started = Instant::now();
        let cluster = store.cluster().await?;
        let stored = store.load().await?;
        let (work, writes) = Work::recover(stored, settings, now(started));
        store.commit(&writes).await?;
        blobs.keep_recent(work.blobs_in_training());
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (views, view) = watch::channel(Arc::new(View::default()));
        let live = LiveTokens::default();
        let shared_microjoules = rollups.borrow().energy.values().copied().sum::<Energy>().total();
        let handle = Handle { commands: sender.clone(), views: view, live: Arc::clone(&live) };
        let core = Self {
            work,
            store,
            blobs,
            telemetry,
            rollups,
            started,
            cluster,
            sessions: Sessions::default(),
            traces,
            profiles: Profiles::default(),
            plan: Plan::default(),
            plan_due: true,
            news: true,
            ticks: 0,
            energy_at_submission: BTreeMap::new(),
            energy_at_end: BTreeMap::new(),
            shared_microjoules,
            literal: Literal::default(),
            reduce_retry: REDUCE_RETRY,
            stalled: BTreeMap::new(),
            durable: durable.into_iter().collect(),
            wasted_joules: BTreeMap::new(),
            commits: 0,
            store_errors: 0,
            plan_seconds: 0.0,
            pending_writes: Vec::new(),
            pending_effects: Vec::new(),
            commands,
            to_self: sender.downgrade(),
            views,
            live,
        };
        Ok((core, handle))
    }

    /// Every blob that the recovered jobs need.
    pub(crate) fn blobs_in_use(&self) -> BTreeSet<wattmill_protocol::Hash> {
        self.work.blobs_in_use()
    }

    /// Runs until cancelled; the last writes are committed then.
    pub(crate) async fn run(mut self, cancelled: CancellationToken) -> Result<(), StoreError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.publish();
        loop {
            let mut ticked = false;
            tokio::select! {
                biased;
                () = cancelled.cancelled() => break,
                _ = ticks.tick() => {
                    ticked = true;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => break,
                },
            }
            // Before time passes, all is heard that nodes said by now: this loop may have been held up by the store,
            // and no lease runs out for that.
            for _ in 1..if ticked { COMMANDS } else { BATCH } {
                let Ok(command) = self.commands.try_recv() else { break };
                self.take(command);
            }
            if ticked {
                self.pass_time();
                self.ticks += 1;
            }
            // Once for all that came: a cluster whose nodes come back at once says so many Hellos.
            if self.plan_due || (ticked && self.ticks.is_multiple_of(TICKS_PER_PLAN)) {
                self.replan();
            }
            self.grant();
            self.commit(&cancelled).await?;
            self.perform();
            let due = ticked && (self.news || self.ticks.is_multiple_of(TICKS_PER_PICTURE));
            if due || !self.sessions.waiting.is_empty() {
                self.publish();
            }
            self.sessions.answer();
        }
        let committed = self.commit(&cancelled).await;
        let traces = &mut self.traces;
        // Sending the last spans blocks.
        tokio::task::block_in_place(|| traces.stop());
        committed
    }

    fn now(&self) -> Now {
        now(self.started)
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        let (writes, effects) = self.work.apply(event, now);
        self.news |= !writes.is_empty() || !effects.is_empty();
        self.pending_writes.extend(writes);
        self.pending_effects.extend(effects.into_iter().map(Then::Effect));
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Event(event) => {
                if let Event::Reduced { job, .. } = &event {
                    self.stalled.remove(job);
                }
                self.apply(event);
            }
            Command::Close { node, session } => {
                self.sessions.close(&node, session);
                self.news = true;
                self.apply(Event::Closed { node, session });
            }
            Command::Open { hello, sender, reply } => self.open(*hello, sender, reply),
            Command::Reduce { job, round, input } => self.reduce_again(job, round, input),
            Command::Stalled { job, reason } => {
                self.stalled.insert(job, reason);
                self.news = true;
            }
            Command::Computed { job, round, outcome } => self.computed(job, round, outcome),
            Command::Report { node, report, shard } => self.report(node, *report, &shard),
            Command::Submit { spec, key, reply } => {
                let id = match self.work.job_of_key(&key) {
                    Some(job) => job.id.clone(),
                    None => self.submit(spec, key),
                };
                // The answer waits for the commit; a user who left does not read it.
                self.sessions.waiting.push(Box::new(move || {
                    let _ = reply.send(id);
                }));
            }
            Command::Cancel { job, reply } => {
                let stood = self.work.job(&job).map(|record| record.phase);
                self.apply(Event::Cancelled { job });
                self.sessions.waiting.push(Box::new(move || {
                    // A user who left does not read it.
                    let _ = reply.send(stood);
                }));
            }
            Command::Waive { job, shard, reply } => {
                let waived = self.work.job(&job).map(|_| waits::quarantined(&self.work, &job, shard));
                tracing::info!(%job, shards = ?waived, "quarantined shards are tried anew");
                self.apply(Event::Waived { job, shard });
                self.sessions.waiting.push(Box::new(move || {
                    // A user who left does not read it.
                    let _ = reply.send(waived);
                }));
            }
            Command::EnergyReport { job, reply } => {
                let report = self.energy_report(&job);
                self.sessions.waiting.push(Box::new(move || {
                    // A user who left does not read it.
                    let _ = reply.send(report);
                }));
            }
            Command::Durable { positions } => {
                for (node, position) in positions {
                    self.durable.insert(node.clone(), position);
                    let durable = v1::to_node::Kind::SpoolDurable(v1::SpoolDurable { position });
                    self.sessions.send(&node, durable);
                }
            }
        }
    }

    fn submit(&mut self, spec: Arc<wattmill_protocol::job::Job>, key: String) -> JobId {
        let id = self.new_id(&spec.name);
        tracing::info!(job = %id, name = %spec.name, parameters = spec.parameters(), "job submitted");
        self.energy_at_submission.insert(id.clone(), self.cluster_energy());
        self.apply(Event::Submitted { job: id.clone(), spec, key });
        self.plan_due = true;
        id
    }

    /// A free identity that reads like the job's name.
    fn new_id(&self, name: &str) -> JobId {
        let mut slug: String = name
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(48)
            .collect();
        slug = slug.trim_matches('-').to_owned();
        if slug.is_empty() {
            slug.push_str("job");
        }
        let mut numbers = 1u64..;
        loop {
            let number = numbers.next().unwrap_or(u64::MAX);
            if let Ok(id) = format!("{slug}-{number}").parse()
                && self.work.job(&id).is_none()
            {
                return id;
            }
        }
    }

    fn report(&mut self, node: NodeId, report: Report, shard: &Shard) {
        // A lease that is not live is answered as what it is: its blob may be gone for good, or never came.
        let live = self.work.leases().any(|(_, lease)| lease.token == report.token);
        if let Some(blob) = shard.blob
            && live
            && !self.blobs.has(blob)
        {
            let outcome = v1::ReportOutcome::BlobMissing;
            self.sessions.send(&node, sessions::reply(report.token, outcome));
            return;
        }
        let report = if live { self.fitting(report) } else { report };
        let (job, index, token) = (report.job.clone(), report.shard as usize, report.token);
        self.apply(Event::Reported { node: node.clone(), report });
        // Only what is taken teaches: a stale or ill-fitting report says what it likes.
        let taken = |shard: &wattmill_work::Shard| matches!(&shard.state, ShardState::Received { token: taken, .. } if *taken == token);
        let round = self.work.round(&job);
        if live && round.and_then(|round| round.shards.get(index)).is_some_and(taken) {
            self.profiles.observe(&job, &node, shard.samples, shard.seconds);
            self.literal.observe(shard.seconds);
        }
    }

    /// The report, as a failed attempt where its blob is not what such a shard yields: in its round it would end
    /// the job.
    fn fitting(&self, report: Report) -> Report {
        let job = self.work.job(&report.job);
        let result = report.result.as_ref().ok();
        match job.zip(result).and_then(|(job, result)| reduce::misfit(&self.blobs, result, &job.spec)) {
            Some(message) => Report { result: Err(Failure { bad_input: false, message }), ..report },
            None => report,
        }
    }

    async fn commit(&mut self, cancelled: &CancellationToken) -> Result<(), StoreError> {
        let errors = self.store_errors;
        while !self.pending_writes.is_empty() {
            let Err(error) = self.store.commit(&self.pending_writes).await else {
                self.commits += 1;
                self.pending_writes.clear();
                break;
            };
            self.store_errors += 1;
            if cancelled.is_cancelled() || !error.may_pass() {
                return Err(error);
            }
            let reason = exit::describe(&error);
            tracing::error!(
                error = reason,
                writes = self.pending_writes.len(),
                "the store refused a transaction; nothing goes on until it takes it"
            );
            self.publish_refusal(reason);
            // One more try where this ends it.
            cancelled.run_until_cancelled(tokio::time::sleep(STORE_RETRY)).await;
        }
        if self.store_errors > errors {
            tracing::info!("the store takes transactions again");
            self.publish();
        }
        Ok(())
    }

    /// The last picture again, for what came after it is not durable; only that the store refuses is new.
    fn publish_refusal(&mut self, reason: String) {
        let mut view = View::clone(&self.views.borrow());
        view.store_refusal = Some(reason);
        let errors = |point: &&mut Point| point.metric.name == metrics::COLLECTOR_STORE_ERRORS.name;
        view.points.iter_mut().filter(errors).for_each(|point| point.value = self.store_errors as f64);
        self.views.send_replace(Arc::new(view));
    }

    /// A tick of the state machine, with what the roll-up says of the time since the last one.
    fn pass_time(&mut self) {
        let peak_flops = self.rollups.borrow().peak_flops;
        let total = self.cluster_energy().total();
        let cluster_microjoules = total.saturating_sub(self.shared_microjoules);
        self.shared_microjoules = self.shared_microjoules.max(total);
        self.apply(Event::Tick { peak_flops, cluster_microjoules });
    }

    fn cluster_energy(&self) -> Energy {
        self.rollups.borrow().energy.values().copied().sum()
    }

    fn publish(&mut self) {
        self.news = false;
        for (reason, joules) in points::wasted_joules(self) {
            let shown = self.wasted_joules.entry(reason).or_default();
            *shown = shown.max(joules);
        }
        self.views.send_replace(Arc::new(view::build(self)));
    }
}

fn now(started: Instant) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        unix_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX),
    }
}
