//! What users see: an immutable picture of the whole, published a few times a second and only read.

use std::collections::BTreeMap;

use wattmill_protocol::exposition::Point;
use wattmill_protocol::{Energy, JobId, NodeId, v1};
use wattmill_scheduler::{Allocation, efficiency};
use wattmill_work::{AccountOutcome, JobRecord, NodeShare, Phase, ShardState};

use super::{Core, points, waits};
use crate::state::{NodeRollup, Target};

/// The published picture.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Nodes, jobs and the cluster's figures.
    pub(crate) cluster: v1::ClusterView,
    /// Metrics of jobs and of the core itself.
    pub(crate) points: Vec<Point>,
    /// Agents that Prometheus may scrape.
    pub(crate) targets: Vec<Target>,
    /// Why the store takes nothing now: the rest is as of before.
    pub(crate) store_refusal: Option<String>,
}

/// What is looked up for every node and job, gathered by one pass over each.
struct Index<'a> {
    rates: BTreeMap<&'a NodeId, f64>,
    allocations: BTreeMap<&'a NodeId, &'a Allocation>,
    leases: BTreeMap<&'a NodeId, u32>,
    accounts: BTreeMap<&'a JobId, Unsettled>,
}

/// Joules of a job's leases that are not settled.
#[derive(Clone, Copy, Default)]
struct Unsettled {
    open: Energy,
    wasted: Energy,
    unconfirmed: Energy,
}

impl<'a> Index<'a> {
    fn of(core: &'a Core) -> Self {
        let mut index = Self {
            rates: BTreeMap::new(),
            allocations: BTreeMap::new(),
            leases: BTreeMap::new(),
            accounts: BTreeMap::new(),
        };
        for (job, node, rate) in core.profiles.rates() {
            if core.work.job(job).is_some_and(|job| !job.phase.ended()) {
                let best = index.rates.entry(node).or_insert(rate);
                *best = best.max(rate);
            }
        }
        for allocation in &core.plan.allocations {
            index.allocations.entry(&allocation.node).or_insert(allocation);
        }
        for (_, lease) in core.work.leases() {
            *index.leases.entry(&lease.node).or_default() += 1;
        }
        for (_, account) in core.work.accounts() {
            let sums = index.accounts.entry(&account.job).or_default();
            match account.outcome {
                AccountOutcome::Wasted(_) => {
                    sums.wasted += account.energy;
                    if !account.settled {
                        sums.unconfirmed += account.energy;
                    }
                }
                _ => sums.open += account.energy,
            }
        }
        index
    }
}

/// Pictures the core.
pub(crate) fn build(core: &Core) -> View {
    let index = Index::of(core);
    let rollup = core.rollups.borrow().clone();
    let now = core.now();
    let jobs: Vec<v1::JobView> = core.work.jobs().map(|job| job_view(core, job, &index)).collect();
    let nodes = node_views(core, &rollup.nodes, &index);
    let cluster = v1::ClusterView {
        unix_ms: now.unix_ms,
        cluster: core.cluster.clone(),
        nodes,
        power_watts: rollup.power_watts,
        mfu_ratio: rollup.mfu_ratio,
        storage_capacity_ratio: rollup.storage_capacity_ratio,
        objective_ratio: rollup.objective_ratio,
        telemetry_coverage_ratio: rollup.coverage_ratio,
        energy: scoped(&rollup.energy),
        flops_per_joule: rollup.flops_per_joule,
        jobs,
    };
    let targets = core.sessions.iter().filter_map(|(node, connected)| {
        let address = connected.hello.advertised_metrics.clone();
        let labels = [("node", node.to_string()), ("name", connected.hello.name.clone())];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).to_vec();
        (!address.is_empty()).then_some(Target { address, labels })
    });
    View { points: points::build(core, &cluster), targets: targets.collect(), cluster, store_refusal: None }
}

fn scoped(energy: &BTreeMap<Box<str>, Energy>) -> Vec<v1::ScopedEnergy> {
    let parts = energy.iter().flat_map(|(scope, energy)| {
        energy.parts().map(|(source, microjoules)| v1::ScopedEnergy {
            scope: scope.to_string(),
            source: source.as_str().to_owned(),
            microjoules,
        })
    });
    parts.collect()
}

fn node_views(core: &Core, figures: &[NodeRollup], index: &Index<'_>) -> Vec<v1::NodeView> {
    let by_id: BTreeMap<&NodeId, &NodeRollup> = figures.iter().map(|node| (&node.id, node)).collect();
    let mut ids: Vec<&NodeId> = by_id.keys().copied().chain(core.sessions.iter().map(|(n, _)| n)).collect();
    ids.sort();
    ids.dedup();
    ids.into_iter().map(|id| node_view(core, id, by_id.get(id).copied(), index)).collect()
}

fn node_view(core: &Core, id: &NodeId, figures: Option<&NodeRollup>, index: &Index<'_>) -> v1::NodeView {
    let connected = core.sessions.get(id);
    let hello = connected.map(|c| &c.hello);
    let allocation = index.allocations.get(id);
    let excluded = match (connected, allocation) {
        (None, _) => "not connected".to_owned(),
        (Some(connected), _) if connected.hello.slots == 0 => super::planner::NO_WORKER.to_owned(),
        (Some(_), Some(allocation)) if allocation.share == 0.0 => allocation.reason.clone(),
        _ => String::new(),
    };
    let gpus = figures.map(|f| f.gpus.as_slice()).unwrap_or_default();
    v1::NodeView {
        id: id.to_string(),
        name: hello.map(|h| h.name.clone()).or(figures.map(|f| f.name.to_string())).unwrap_or_default(),
        machine_id: figures.map(|f| f.machine_id.to_string()).unwrap_or_default(),
        connected: connected.is_some(),
        excluded,
        power_watts: figures.filter(|f| f.fresh).and_then(|f| f.power_watts),
        energy: figures.map(|f| scoped(&f.energy)).unwrap_or_default(),
        samples_per_second: index.rates.get(id).copied(),
        running: index.leases.get(id).copied().unwrap_or(0),
        useful_flops: figures.map_or(0.0, |f| f.useful_flops),
        peak_flops: figures.and_then(|f| f.peak_flops),
        numerics: hello.map(|h| h.numerics.clone()).unwrap_or_default(),
        cpus: hello.map(|h| h.cpus.clone()).unwrap_or_default(),
        telemetry_age_seconds: figures.and_then(|f| f.age_seconds),
        version: hello.map(|h| h.version.clone()).unwrap_or_default(),
        host_fraction_ppm: hello.map_or(0, |h| h.host_fraction_ppm),
        decision: allocation.map(|a| a.reason.clone()).unwrap_or_default(),
        gpus: gpus
            .iter()
            .map(|gpu| v1::GpuView {
                uuid: gpu.uuid.to_string(),
                up: gpu.up,
                power_watts: gpu.power_watts,
                energy_joules: gpu.energy_joules,
                utilization_ratio: gpu.utilization_ratio,
                foreign_processes: gpu.foreign_processes,
            })
            .collect(),
    }
}

/// Joules of a job: (committed or under way, wasted), settled or as far as they are known.
pub(crate) fn job_energy(core: &Core, job: &JobRecord) -> (Energy, Energy) {
    let (open, wasted) = core.work.unsettled_energy(&job.id);
    with_settled(job, open, wasted)
}

fn with_settled(job: &JobRecord, open: Energy, wasted: Energy) -> (Energy, Energy) {
    let sum = |of: fn(&NodeShare) -> Energy| job.nodes.values().map(of).sum::<Energy>();
    (sum(|n| n.committed) + open, sum(|n| n.wasted) + wasted)
}

/// η of a job: its useful FLOPs ÷ what the cluster's devices could have done while it ran.
pub(crate) fn job_mfu(job: &JobRecord) -> Option<f64> {
    efficiency::mfu_ratio(job.useful_flops as f64, job.able_flops().filter(|able| *able > 0.0))
}

/// Every joule of a job, for its efficiency: its shards', wasted ones too, and its share of what idled.
pub(crate) fn all_joules(job: &JobRecord, own: Energy) -> f64 {
    own.total_joules() + job.idle_microjoules(own) as f64 / 1e6
}

fn job_view(core: &Core, job: &JobRecord, index: &Index<'_>) -> v1::JobView {
    let unsettled = index.accounts.get(&job.id).copied().unwrap_or_default();
    let (committed, wasted) = with_settled(job, unsettled.open, unsettled.wasted);
    let name = |id: &NodeId| core.sessions.get(id).map(|c| c.hello.name.clone()).unwrap_or_default();
    let rounds = core.work.total_rounds(job);
    let epochs = job.spec.training.epochs;
    let progress = f64::from(job.round) / f64::from(rounds.max(1));
    v1::JobView {
        id: job.id.to_string(),
        name: job.spec.name.clone(),
        state: state(job.phase).into(),
        reason: reason(core, job),
        round: job.round,
        rounds,
        epoch: epochs.min((progress * f64::from(epochs)) as u32 + u32::from(job.round > 0)),
        epochs,
        loss: job.loss,
        accuracy: job.accuracy,
        training_accuracy: job.training_accuracy,
        samples: job.samples,
        committed_energy: Some(committed.into()),
        wasted_energy: Some(wasted.into()),
        unconfirmed_microjoules: unsettled.unconfirmed.total(),
        requeues: job.requeues.values().sum(),
        mfu_ratio: job_mfu(job),
        samples_per_joule: efficiency::samples_per_joule(
            job.samples as f64,
            all_joules(job, committed + wasted),
        ),
        useful_flops: job.useful_flops,
        model_hash: job.parameters.map(wattmill_protocol::Hash::to_bytes).unwrap_or_default(),
        shards: shard_states(core, &job.id).into_iter().map(|(s, n)| (s.to_owned(), n)).collect(),
        elapsed_seconds: job.elapsed_ms as f64 / 1e3,
        numerics: job.numerics.clone().unwrap_or_default(),
        ended: job.phase.ended(),
        nodes: job
            .nodes
            .iter()
            .map(|(id, share)| v1::NodeShare {
                node: id.to_string(),
                name: name(id),
                samples: share.samples,
                shards: share.shards,
                committed_energy: Some(share.committed.into()),
                wasted_energy: Some(share.wasted.into()),
            })
            .collect(),
        submitted_unix_ms: job.submitted_unix_ms,
        ended_unix_ms: job.ended_unix_ms.unwrap_or(0),
        bad_input: job.bad_input,
        idle_microjoules: job.idle_microjoules(committed + wasted),
    }
}

fn reason(core: &Core, job: &JobRecord) -> String {
    match core.stalled.get(&job.id) {
        Some(reason) => format!("waits for the collector's disk: {reason}"),
        None => waits::reason(&core.work, job).unwrap_or_default(),
    }
}

/// A phase in the words of the wire.
pub(crate) fn state(phase: Phase) -> v1::JobState {
    match phase {
        Phase::Preparing => v1::JobState::Preparing,
        Phase::Training => v1::JobState::Training,
        Phase::Settling => v1::JobState::Settling,
        Phase::Finished => v1::JobState::Finished,
        Phase::Failed => v1::JobState::Failed,
        Phase::Cancelled => v1::JobState::Cancelled,
    }
}

pub(super) fn shard_states(core: &Core, job: &JobId) -> BTreeMap<&'static str, u32> {
    let mut counts = BTreeMap::from([("pending", 0), ("leased", 0), ("received", 0), ("quarantined", 0)]);
    for shard in core.work.round(job).map(|r| r.shards.as_slice()).unwrap_or_default() {
        let name = match shard.state {
            ShardState::Pending => "pending",
            ShardState::Leased(_) => "leased",
            ShardState::Received { .. } => "received",
            ShardState::Quarantined => "quarantined",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}
