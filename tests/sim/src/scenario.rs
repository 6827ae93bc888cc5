//! What a seed stands for: which jobs, which nodes, which faults and how often.
//!
//! Faults are drawn per run and not per event ("swarm testing", Groce et al., 2012): a run in which one kind
//! of fault is frequent and others are absent reaches states that an even mixture never does.

use std::sync::Arc;

use wattmill_protocol::job::{
    Activation, Data, HeldOut, Job, Layer, Mode, Model, NumericsPolicy, Optimizer, Schedule, Training,
};
use wattmill_protocol::{NodeId, Source};
use wattmill_work::Settings;

use crate::random::Random;
use crate::train::NUMERICS;

/// Most nodes of a run.
const MAX_NODES: u64 = 5;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A session breaks and loses what was on its way.
    Break,
    /// A node's process dies and comes back.
    NodeCrash,
    /// A node stops in order and comes back.
    NodeStop,
    /// A node hangs as with SIGSTOP, and goes on later.
    Pause,
    /// A node is gone for good.
    Death,
    /// The store refuses commits for a while.
    StoreOut,
    /// The collector's process dies and comes back.
    CollectorCrash,
}

const FAULTS: [Fault; 7] = [
    Fault::Break,
    Fault::NodeCrash,
    Fault::NodeStop,
    Fault::Pause,
    Fault::Death,
    Fault::StoreOut,
    Fault::CollectorCrash,
];

/// Who decides what is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// Pending shards in order, nodes in turn.
    RoundRobin,
    /// Anything to anyone, often what must be refused.
    Random,
}

/// A node as it is installed.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// Its identity.
    pub id: NodeId,
    /// Which nodes compute as it does.
    pub numerics: &'static str,
    /// Leases at once.
    pub slots: u32,
    /// Time of one of a lease's steps.
    pub step_ms: u64,
    /// How its joules become known.
    pub source: Source,
    /// Attempts of a thousand that take far longer than a lease lasts without progress.
    pub long_per_mille: u64,
    /// Attempts of a thousand that fail.
    pub failures_per_mille: u64,
    /// Attempts of a thousand whose worker stops making progress for ever.
    pub hangs_per_mille: u64,
}

/// A job and what its user does.
#[derive(Clone, Debug)]
pub struct JobPlan {
    /// What is trained.
    pub spec: Arc<Job>,
    /// Its data cannot be read.
    pub broken: bool,
    /// When it is submitted.
    pub submit_ms: u64,
    /// When the user loses interest.
    pub cancel_ms: Option<u64>,
}

/// Everything that a seed decides before the run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Nodes.
    pub nodes: Vec<NodePlan>,
    /// Jobs.
    pub jobs: Vec<JobPlan>,
    /// How patient the collector is.
    pub settings: Settings,
    /// Who grants.
    pub assignment: Assignment,
    /// Each fault as often as it is frequent; empty in a quiet run.
    pub faults: Vec<Fault>,
    /// Mean time between faults.
    pub fault_every_ms: u64,
    /// When faults end.
    pub heal_ms: u64,
    /// Steps of a thousand at which the collector dies: before a commit, after it, or between effects.
    pub collector_crashes_per_mille: u64,
}

impl Scenario {
    /// What `random` says.
    pub fn draw(random: &mut Random) -> Self {
        let mut faults = Vec::new();
        if random.chance(950) {
            for fault in FAULTS {
                let weight = random.below(4);
                faults.extend((0..weight).map(|_| fault));
            }
        }
        let quiet = faults.is_empty();
        let mixed = random.chance(300);
        let count = random.range(2, MAX_NODES);
        let nodes = (0..count).map(|index| draw_node(index, quiet, mixed, random)).collect();
        let mut jobs: Vec<JobPlan> = Vec::new();
        for index in 0..*random.pick(&[1, 1, 2, 3]) {
            // Twins share every blob: what one no longer needs the other may.
            let twin = jobs.first().filter(|_| random.chance(300)).map(|first| Arc::clone(&first.spec));
            jobs.push(draw_job(index, twin, random));
        }
        let crashes = *random.pick(&[0, 0, 3, 10, 30]);
        Self {
            nodes,
            jobs,
            settings: Settings {
                lease_ms: *random.pick(&[3_000, 8_000, 15_000, 30_000]),
                grace_ms: *random.pick(&[500, 3_000, 3_000]),
                ..Settings::default()
            },
            assignment: *random.pick(&[Assignment::RoundRobin, Assignment::RoundRobin, Assignment::Random]),
            faults,
            fault_every_ms: *random.pick(&[150, 400, 1_000, 3_000, 8_000]),
            heal_ms: random.range(15_000, 90_000),
            collector_crashes_per_mille: if quiet { 0 } else { crashes },
        }
    }
}

fn draw_node(index: u64, quiet: bool, mixed: bool, random: &mut Random) -> NodePlan {
    let id = format!("00000000-0000-4000-8000-{index:012}");
    let (bad, hangs) = (random.chance(150), random.chance(150));
    NodePlan {
        id: id.parse().expect("a UUID in lower case"),
        numerics: NUMERICS[usize::from(mixed && random.chance(500))],
        slots: random.range(1, 2) as u32,
        step_ms: *random.pick(&[50, 200, 500, 1_500]),
        source: *random.pick(&Source::ALL),
        long_per_mille: *random.pick(&[0, 0, 100]),
        failures_per_mille: if quiet || !bad { 0 } else { *random.pick(&[50, 300, 900]) },
        hangs_per_mille: if quiet || !hangs { 0 } else { *random.pick(&[10, 100]) },
    }
}

fn draw_job(index: u64, twin: Option<Arc<Job>>, random: &mut Random) -> JobPlan {
    let spec = twin.unwrap_or_else(|| Arc::new(draw_spec(index, random)));
    JobPlan {
        broken: random.chance(40),
        submit_ms: random.range(0, 10_000),
        cancel_ms: random.chance(150).then(|| random.range(100, 60_000)),
        spec,
    }
}

fn draw_spec(index: u64, random: &mut Random) -> Job {
    let rows = random.range(6, 60);
    // More than 4096 rows are two evaluation shards.
    let held_out = *random.pick(&[0, 0, 5, 5_000]);
    let numerics = if random.chance(150) { NumericsPolicy::Any } else { NumericsPolicy::Pinned };
    let optimizer = if random.chance(500) {
        Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.0 }
    } else {
        Optimizer::AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    };
    Job {
        name: format!("job {index}"),
        model: Model { layers: vec![Layer { units: 2, activation: Activation::Softmax }] },
        data: Data {
            uri: format!("sim://{rows}/{held_out}"),
            features: 3,
            classes: 2,
            scale: 1.0,
            held_out: (held_out > 0).then_some(HeldOut { every: 5, remainder: 0 }),
        },
        training: Training {
            mode: Mode::Sync,
            epochs: random.range(1, 3) as u32,
            // The last shard and the last round of an epoch are smaller more often than not.
            shard_size: random.range(2, 8) as u32,
            shards_per_round: random.range(1, 5) as u32,
            seed: random.bits(),
            optimizer,
            schedule: *random.pick(&[Schedule::Constant, Schedule::Cosine { final_ratio: 0.1 }]),
            numerics,
        },
    }
}
