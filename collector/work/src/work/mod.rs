//! The machine itself. A module for each subject that events are about; each event goes through one of them.

mod jobs;
mod leases;
mod read;
mod reductions;
mod reports;
mod sessions;
mod share;

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::{JobId, NodeId, Token};

use crate::Now;
use crate::accounts::Accounts;
use crate::event::{Effect, Event};
use crate::record::{JobRecord, Phase, Stored, WasteReason, Write};
use crate::round::Round;
use crate::step::Step;
use sessions::Session;

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
            Event::Opened { node, session, capability, held, settled } => {
                self.opened(&node, session, capability, (&held, settled), now, &mut out);
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
        self.run_out(now, out);
        let jobs: Vec<JobId> = self.running.keys().cloned().collect();
        for job in jobs {
            self.finish_when_settled(&job, now, out);
        }
    }
}
