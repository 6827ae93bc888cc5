//! One run: takes the next event, lets the part that it concerns act, and judges the end.

use std::collections::BTreeSet;
use std::fmt;

use wattmill_protocol::{JobId, NodeId};
use wattmill_work::{JobRecord, Shard, ShardState};

use crate::blobs::Blobs;
use crate::checks::Checks;
use crate::collector::Collector;
use crate::context::{Broken, Call, Context, NodeTimer, Trace, What, hold};
use crate::judge;
use crate::network::{Envelope, Network};
use crate::node::{Node, State};
use crate::queue::Queue;
use crate::random::Random;
use crate::scenario::{Fault, Scenario};

/// After the faults' end everything is done within this time: three jobs of 90 shards take one slow node with
/// one slot less than an hour.
const LIVENESS_MS: u64 = 3_600_000;
/// Time between looks at whether everything is done.
const INSPECT_MS: u64 = 1_000;
/// Time between a user's calls until one is answered.
const PATIENCE_MS: u64 = 1_500;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Virtual time that it took.
    pub virtual_ms: u64,
    /// Events.
    pub events: u64,
    /// How often the state machine was checked.
    pub checked: u64,
    /// Depends on everything that happened.
    pub digest: u64,
}

/// A run in which something did not hold.
#[derive(Debug)]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// When, in virtual time.
    pub at_ms: u64,
    /// What did not hold.
    pub broken: Broken,
    /// What came before.
    pub trace: Trace,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.trace)?;
        writeln!(f, "seed {}, {} ms: {}", self.seed, self.at_ms, self.broken)?;
        write!(f, "replay it with: cargo run -p wattmill-sim -- --seed {}", self.seed)
    }
}

/// A user and what is still to be answered.
#[derive(Debug, Default)]
struct User {
    job: Option<JobId>,
    cancelled: bool,
    called_cancel: bool,
}

struct Simulation {
    context: Context,
    collector: Collector,
    network: Network,
    nodes: Vec<Node>,
    users: Vec<User>,
    heal_ms: u64,
    done: bool,
}

/// Runs what `seed` stands for; `echo` prints every line of its trace.
///
/// # Errors
/// [`Failure`] when something did not hold.
pub fn run(seed: u64, echo: bool) -> Result<Summary, Box<Failure>> {
    let mut simulation = Simulation::new(seed, echo);
    let mut events = 0;
    let outcome = loop {
        if simulation.done {
            break Ok(());
        }
        let Some((now, what)) = simulation.context.queue.pop() else {
            break Err(Broken("nothing is left to happen".to_owned()));
        };
        simulation.context.now = now;
        events += 1;
        if let Err(broken) = simulation.happen(what) {
            break Err(broken);
        }
    };
    let Context { now, trace, checks, .. } = simulation.context;
    match outcome {
        Ok(()) => Ok(Summary { virtual_ms: now, events, checked: checks.checked(), digest: trace.digest() }),
        Err(broken) => Err(Box::new(Failure { seed, at_ms: now, broken, trace })),
    }
}

impl Simulation {
    fn new(seed: u64, echo: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::draw(&mut random);
        let mut checks = Checks::default();
        checks.set_broken(scenario.jobs.iter().enumerate().filter(|(_, j)| j.broken).map(|(i, _)| i));
        let mut queue = Queue::default();
        queue.at(0, What::CollectorStart);
        for node in 0..scenario.nodes.len() {
            queue.at(random.range(0, 3_000), What::NodeStart(node));
        }
        for (user, job) in scenario.jobs.iter().enumerate() {
            queue.at(job.submit_ms, What::User(user));
        }
        queue.at(scenario.fault_every_ms, What::Fault);
        queue.at(scenario.heal_ms, What::Heal);
        let nodes = scenario.nodes.iter().cloned().enumerate().map(|(i, plan)| Node::new(i, plan)).collect();
        let users = scenario.jobs.iter().map(|_| User::default()).collect();
        let heal_ms = scenario.heal_ms;
        let trace = Trace::new(echo);
        let faults = !scenario.faults.is_empty();
        let blobs = Blobs::default();
        let mut context = Context { now: 0, queue, random, blobs, checks, trace, faults, scenario };
        let line = format!("seed {seed}: {:?}", context.scenario);
        context.note(line);
        let (collector, network) = (Collector::default(), Network::default());
        Self { context, collector, network, nodes, users, heal_ms, done: false }
    }

    fn happen(&mut self, what: What) -> Result<(), Broken> {
        let Self { context, collector, network, nodes, .. } = self;
        match what {
            What::Deliver { connection, down } => self.deliver(connection, down),
            What::Late { connection, message } => match network.ends(connection) {
                Some((node, process)) if collector.process() == Some(process) => {
                    context.note(format!("late, of session {connection}:"));
                    collector.receive(context, network, (nodes[node].id(), connection), message)
                }
                _ => Ok(()),
            },
            What::Sever { connection } => {
                network.sever(context, connection);
                Ok(())
            }
            What::NodeSees { connection } => {
                if let Some((node, _)) = network.ends(connection) {
                    let node = &mut nodes[node];
                    if let Some(until_ms) = node.paused_until_ms(context.now) {
                        context.queue.at(until_ms, What::NodeSees { connection });
                    } else {
                        node.disconnected(context, connection);
                    }
                }
                Ok(())
            }
            What::CollectorSees { connection } => match network.ends(connection) {
                Some((node, process)) if collector.process() == Some(process) => {
                    collector.closed(context, network, nodes[node].id(), connection)
                }
                _ => Ok(()),
            },
            What::NodeStart(node) => {
                nodes[node].start(context);
                Ok(())
            }
            What::Node { node, epoch, timer } => self.node_timer(node, epoch, timer),
            What::CollectorStart => collector.start(context),
            What::Collector { process, timer } => collector.timer(context, network, process, timer),
            What::User(user) => {
                self.user(user);
                Ok(())
            }
            What::Call { user, call } => {
                let job = self.users[user].job.clone();
                collector.call(context, network, user, call, job)
            }
            What::Answer { user, call, job } => self.answered(user, call, job),
            What::Fault => {
                self.fault();
                Ok(())
            }
            What::StoreBack => {
                context.note("the store works".to_owned());
                collector.set_out_of_order(false);
                Ok(())
            }
            What::Heal => {
                self.heal();
                Ok(())
            }
            What::Inspect => self.inspect(),
        }
    }

    fn deliver(&mut self, connection: u64, down: bool) -> Result<(), Broken> {
        let Self { context, collector, network, nodes, .. } = self;
        let Some((index, _)) = network.ends(connection) else { return Ok(()) };
        let node = &mut nodes[index];
        if let Some(until_ms) = node.paused_until_ms(context.now)
            && down
        {
            context.queue.at(until_ms, What::Deliver { connection, down });
            return Ok(());
        }
        match network.arrive(connection, down) {
            Some((_, process, Envelope::Up(message))) if collector.process() == Some(process) => {
                collector.receive(context, network, (node.id(), connection), message)
            }
            Some((_, _, Envelope::Down(message))) if node.connection() == Some(connection) => {
                node.hear(context, network, message)
            }
            _ => Ok(()),
        }
    }

    fn node_timer(&mut self, index: usize, epoch: u32, timer: NodeTimer) -> Result<(), Broken> {
        let Self { context, collector, network, nodes, .. } = self;
        let node = &mut nodes[index];
        if node.epoch() != epoch || node.state() != State::Up {
            return Ok(());
        }
        if let Some(until_ms) = node.paused_until_ms(context.now) {
            context.queue.at(until_ms, What::Node { node: index, epoch, timer });
            return Ok(());
        }
        let live = matches!(timer, NodeTimer::Fetch(token) if collector.is_live(token));
        node.timer(context, network, timer, collector.process(), live)
    }

    /// A user calls until answered; calls may be lost or doubled.
    fn user(&mut self, index: usize) {
        let (user, context) = (&mut self.users[index], &mut self.context);
        let cancel_ms = context.scenario.jobs[index].cancel_ms;
        let call = match (&user.job, cancel_ms) {
            (None, _) => Call::Submit,
            (Some(_), Some(cancel_ms)) if !user.cancelled && context.now >= cancel_ms => {
                user.called_cancel = true;
                Call::Cancel
            }
            (Some(_), Some(cancel_ms)) if !user.cancelled => {
                context.queue.at(cancel_ms, What::User(index));
                return;
            }
            _ => return,
        };
        let copies = if context.faults { *context.random.pick(&[0, 1, 1, 1, 2]) } else { 1 };
        for _ in 0..copies {
            context.between(1, 400, What::Call { user: index, call });
        }
        context.after(PATIENCE_MS, What::User(index));
    }

    fn answered(&mut self, index: usize, call: Call, job: JobId) -> Result<(), Broken> {
        let user = &mut self.users[index];
        hold(user.job.as_ref().is_none_or(|first| *first == job), || {
            format!("user {index} submitted one job and has {:?} and {job}", user.job)
        })?;
        user.job = Some(job);
        user.cancelled |= call == Call::Cancel;
        Ok(())
    }

    fn fault(&mut self) {
        if !self.context.faults {
            return;
        }
        let every_ms = self.context.scenario.fault_every_ms;
        self.context.between(1, 2 * every_ms, What::Fault);
        let index = self.context.random.below(self.nodes.len() as u64) as usize;
        let may_die = self.context.random.chance(300) && self.may_die(index);
        let Self { context, collector, network, nodes, .. } = self;
        let fault = *context.random.pick(&context.scenario.faults);
        match fault {
            Fault::Break => {
                if let Some(connection) = network.any_open(context) {
                    context.note(format!("session {connection} breaks"));
                    network.sever(context, connection);
                }
            }
            Fault::NodeCrash => nodes[index].die(context, network, State::Down),
            Fault::NodeStop => nodes[index].stop(context, network),
            Fault::Pause => {
                let duration_ms = context.random.range(500, 45_000);
                nodes[index].pause(context, duration_ms);
            }
            Fault::Death if may_die => nodes[index].die(context, network, State::Dead),
            Fault::Death => {}
            Fault::StoreOut => {
                context.note("the store is out of order".to_owned());
                collector.set_out_of_order(true);
                context.between(200, 8_000, What::StoreBack);
            }
            Fault::CollectorCrash => collector.crash(context, network, "when idle"),
        }
    }

    /// A death leaves nodes for every job: one at least, and one of the numerics that a job
    /// is pinned to.
    fn may_die(&self, index: usize) -> bool {
        let alike = |node: &&Node| node.numerics() == self.nodes[index].numerics();
        let living = || self.nodes.iter().filter(|node| node.state() != State::Dead);
        let last_alike = living().filter(alike).count() <= 1;
        // A preparing shard that was given out may yet pin its job to this node.
        let given =
            |shard: &Shard| matches!(shard.state, ShardState::Leased(_) | ShardState::Received { .. });
        let needed = self.collector.work().is_none_or(|work| {
            work.jobs().any(|job| match work.round(&job.id) {
                Some(round) if round.number == 0 => round.shards.iter().any(given),
                _ => job.numerics.as_deref() == Some(self.nodes[index].numerics()),
            })
        });
        living().count() > 1 && !(last_alike && needed)
    }

    fn heal(&mut self) {
        let Self { context, collector, nodes, .. } = self;
        context.note("faults end".to_owned());
        context.faults = false;
        collector.set_out_of_order(false);
        for (index, node) in nodes.iter_mut().enumerate() {
            node.resume();
            context.between(1, 500, What::NodeStart(index));
        }
        context.after(1, What::CollectorStart);
        context.after(INSPECT_MS, What::Inspect);
    }

    fn inspect(&mut self) -> Result<(), Broken> {
        let Self { context, collector, network, nodes, .. } = self;
        let since_ms = context.now - self.heal_ms;
        let living = || nodes.iter().filter(|node| node.state() != State::Dead);
        let answered = self
            .users
            .iter()
            .zip(&context.scenario.jobs)
            .all(|(user, plan)| user.job.is_some() && (plan.cancel_ms.is_none() || user.cancelled));
        let ended = collector.work().is_some_and(|work| work.jobs().all(|job| job.phase.ended()));
        let connected = |node: &Node| {
            collector.work().is_some_and(|work| work.connected().any(|(id, _)| id == node.id()))
        };
        let rest = living().all(|node| node.at_rest() && connected(node));
        let dead = |id: &NodeId| !living().any(|node| node.id() == id);
        let settled = collector
            .work()
            .is_some_and(|work| work.accounts().all(|(_, account)| account.settled || dead(&account.node)));
        if answered && ended && settled && collector.idle() && rest {
            self.done = true;
            return self.judge();
        }
        hold(since_ms < LIVENESS_MS, || {
            let jobs: Vec<&JobRecord> = collector.work().iter().flat_map(|work| work.jobs()).collect();
            let busy: Vec<&Node> = living().filter(|node| !node.at_rest()).collect();
            let open: Vec<_> = collector.work().iter().flat_map(|work| work.accounts()).collect();
            format!("not done {since_ms} ms after the last fault: {jobs:?} {busy:?} {open:?}")
        })?;
        // An operator waives quarantined shards by a restart: attempts that failed are not remembered.
        if since_ms % 30_000 < INSPECT_MS && collector.quarantined() {
            collector.crash(context, network, "to waive quarantined shards");
        }
        context.after(INSPECT_MS, What::Inspect);
        Ok(())
    }

    fn judge(&mut self) -> Result<(), Broken> {
        let stored = self.collector.stored()?;
        let dead = self.nodes.iter().filter(|node| node.state() == State::Dead);
        let dead: BTreeSet<_> = dead.map(|node| node.id().clone()).collect();
        self.context.checks.at_rest(&stored, &dead)?;
        let quiet = self.context.scenario.faults.is_empty();
        for (index, user) in self.users.iter().enumerate() {
            let key = format!("key-{index}");
            let of_user: Vec<&JobRecord> = stored.jobs.iter().filter(|job| job.key == key).collect();
            let [job] = of_user[..] else {
                return Err(Broken(format!("user {index} submitted once and has {} jobs", of_user.len())));
            };
            hold(user.job.as_ref() == Some(&job.id), || format!("{} was not acknowledged", job.id))?;
            judge::job(&self.context.checks, job, user.called_cancel, quiet)?;
        }
        Ok(())
    }
}
