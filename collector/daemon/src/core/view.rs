//! What users see: an immutable picture of the whole, published a few times a second and only read.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::catalogue as metrics;
use wattmill_protocol::exposition::Point;
use wattmill_protocol::{Energy, JobId, NodeId, Source, v1};
use wattmill_scheduler::efficiency;
use wattmill_work::{AccountOutcome, JobRecord, NodeShare, Phase, ShardState, WasteReason};

use super::{Core, literal, waits};
use crate::state::{NodeRollup, Target};

/// How long an ended job stays in `/metrics`: long enough for any scrape to see its last values.
const EXPOSED_AFTER_END_MS: i64 = 3_600_000;

/// The published picture.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Nodes, jobs and the cluster's figures.
    pub(crate) cluster: v1::ClusterView,
    /// Metrics of jobs and of the core itself.
    pub(crate) points: Vec<Point>,
    /// Agents that Prometheus may scrape.
    pub(crate) targets: Vec<Target>,
}

/// Pictures the core.
pub(crate) fn build(core: &Core) -> View {
    let rollup = core.rollups.borrow().clone();
    let now = core.now();
    let jobs: Vec<v1::JobView> = core.work.jobs().map(|job| job_view(core, job)).collect();
    let nodes = node_views(core, &rollup.nodes);
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
    let mut points = core_points(core, &cluster);
    for (record, view) in core.work.jobs().zip(&cluster.jobs) {
        if record.ended_unix_ms.is_none_or(|ended| now.unix_ms - ended < EXPOSED_AFTER_END_MS) {
            job_points(&mut points, core, record, view);
        }
    }
    let targets = core.sessions.iter().filter_map(|(node, connected)| {
        let address = connected.hello.advertised_metrics.clone();
        let labels = [("node", node.to_string()), ("name", connected.hello.name.clone())];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).to_vec();
        (!address.is_empty()).then_some(Target { address, labels })
    });
    View { points, targets: targets.collect(), cluster }
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

fn node_views(core: &Core, figures: &[NodeRollup]) -> Vec<v1::NodeView> {
    let by_id: BTreeMap<&NodeId, &NodeRollup> = figures.iter().map(|node| (&node.id, node)).collect();
    let mut ids: Vec<&NodeId> = by_id.keys().copied().chain(core.sessions.iter().map(|(n, _)| n)).collect();
    ids.sort();
    ids.dedup();
    ids.into_iter().map(|id| node_view(core, id, by_id.get(id).copied())).collect()
}

fn node_view(core: &Core, id: &NodeId, figures: Option<&NodeRollup>) -> v1::NodeView {
    let connected = core.sessions.get(id);
    let hello = connected.map(|c| &c.hello);
    let rates = core.work.jobs().filter(|j| !j.phase.ended()).filter_map(|j| core.profiles.rate(&j.id, id));
    let rate = rates.fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |b| b.max(rate))));
    let allocation = core.plan.allocations.iter().find(|a| a.node == *id);
    let excluded = match (connected, allocation) {
        (None, _) => "not connected".to_owned(),
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
        samples_per_second: rate,
        running: core.work.leases().filter(|(_, l)| l.node == *id).count() as u32,
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
            })
            .collect(),
    }
}

/// Joules of a job: (committed or under way, wasted), settled or as far as they are known.
pub(crate) fn job_energy(core: &Core, job: &JobRecord) -> (Energy, Energy) {
    let (open, wasted) = core.work.unsettled_energy(&job.id);
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

fn job_view(core: &Core, job: &JobRecord) -> v1::JobView {
    let (committed, wasted) = job_energy(core, job);
    let unconfirmed = core.work.accounts().filter(|(_, account)| {
        account.job == job.id && !account.settled && matches!(account.outcome, AccountOutcome::Wasted(_))
    });
    let name = |id: &NodeId| core.sessions.get(id).map(|c| c.hello.name.clone()).unwrap_or_default();
    let rounds = core.work.total_rounds(job);
    let epochs = job.spec.training.epochs;
    let progress = f64::from(job.round) / f64::from(rounds.max(1));
    v1::JobView {
        id: job.id.to_string(),
        name: job.spec.name.clone(),
        state: state(job.phase).into(),
        reason: waits::reason(&core.work, job).unwrap_or_default(),
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
        unconfirmed_microjoules: unconfirmed.map(|(_, account)| account.energy.total()).sum(),
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

fn shard_states(core: &Core, job: &JobId) -> BTreeMap<&'static str, u32> {
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

fn job_points(points: &mut Vec<Point>, core: &Core, job: &JobRecord, view: &v1::JobView) {
    let id = job.id.as_str();
    let progress = f64::from(view.round) / f64::from(view.rounds.max(1));
    points.push(Point::new(&metrics::JOB_PROGRESS, &[id], progress.min(1.0)));
    points.extend(view.loss.map(|loss| Point::new(&metrics::JOB_LOSS, &[id], loss)));
    points.extend(view.accuracy.map(|a| Point::new(&metrics::JOB_ACCURACY, &[id], a)));
    points.push(Point::new(&metrics::JOB_SAMPLES, &[id], view.samples as f64));
    points.extend(view.samples_per_joule.map(|s| Point::new(&metrics::JOB_SAMPLES_PER_JOULE, &[id], s)));
    // Settled joules alone: they only grow, as a counter must.
    let settled = |of: fn(&NodeShare) -> Energy| job.nodes.values().map(of).sum::<Energy>();
    let outcomes = [("committed", settled(|n| n.committed)), ("wasted", settled(|n| n.wasted))];
    // Zeros from the start, for each source that the cluster has: `increase` would miss the first value.
    let metered: BTreeSet<Source> = core.rollups.borrow().metered.iter().map(|(_, source)| *source).collect();
    for (outcome, energy) in outcomes {
        for source in Source::ALL.into_iter().filter(|s| metered.contains(s) || energy.get(*s) > 0) {
            let joules = energy.get(source) as f64 / 1e6;
            points.push(Point::new(&metrics::JOB_ENERGY, &[id, outcome, source.as_str()], joules));
        }
    }
    if !job.phase.ended() {
        for (name, count) in shard_states(core, &job.id) {
            points.push(Point::new(&metrics::SHARDS, &[id, name], f64::from(count)));
        }
    }
}

fn core_points(core: &Core, cluster: &v1::ClusterView) -> Vec<Point> {
    let connected = cluster.nodes.iter().filter(|n| n.connected).count();
    let gone = cluster.nodes.len() - connected;
    let mut points = vec![
        Point::new(&metrics::CLUSTER_NODES, &["connected"], connected as f64),
        Point::new(&metrics::CLUSTER_NODES, &["disconnected"], gone as f64),
        Point::new(&metrics::COLLECTOR_BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0),
        Point::new(&metrics::COLLECTOR_SESSIONS, &[], core.sessions.iter().count() as f64),
        Point::new(&metrics::COLLECTOR_STORE_COMMITS, &[], core.commits as f64),
        Point::new(&metrics::COLLECTOR_STORE_ERRORS, &[], core.store_errors as f64),
        Point::new(&metrics::COLLECTOR_PLAN_DURATION, &[], core.plan_seconds),
    ];
    // Every reason from the start: a counter that appears with its first event hides it from `increase`.
    for reason in WasteReason::ALL {
        // A job that ended wastes joules, but nothing of it is given anew.
        if reason != WasteReason::JobEnded {
            let requeues: u32 = core.work.jobs().filter_map(|job| job.requeues.get(&reason)).sum();
            points.push(Point::new(&metrics::RESCHEDULES, &[reason.as_str()], f64::from(requeues)));
        }
        let wasted = core.wasted_joules.get(&reason).copied().unwrap_or(0.0);
        points.push(Point::new(&metrics::CLUSTER_WASTED, &[reason.as_str()], wasted));
    }
    bounds(core, &mut points);
    points
}

/// The lower bound of the work that is left, and the founding document's figures as written.
fn bounds(core: &Core, points: &mut Vec<Point>) {
    let rollup = core.rollups.borrow();
    let running: Vec<&JobRecord> = core.work.jobs().filter(|job| !job.phase.ended()).collect();
    let left_flops: f64 = running
        .iter()
        .filter(|job| job.round > 1)
        .map(|job| {
            let done = f64::from(job.round);
            job.useful_flops as f64 / done * (f64::from(core.work.total_rounds(job)) - done).max(0.0)
        })
        .sum();
    let bound = efficiency::compute_lower_bound_seconds(left_flops, rollup.peak_flops);
    points.extend(bound.map(|s| Point::new(&metrics::CLUSTER_COMPUTE_BOUND, &[], s)));
    let bound = efficiency::transfer_lower_bound_seconds(
        running.iter().map(|job| unread_bytes(job)).sum(),
        rollup.storage.read_bytes_per_second,
        rollup.storage.network_bytes_per_second,
    );
    points.extend(bound.map(|s| Point::new(&metrics::CLUSTER_TRANSFER_BOUND, &[], s)));
    let literal = literal::inputs(core);
    points.extend(literal.seed_eta_literal().map(|v| Point::new(&metrics::CLUSTER_SEED_ETA, &[], v)));
    points.extend(literal.seed_sigma_literal().map(|v| Point::new(&metrics::CLUSTER_SEED_SIGMA, &[], v)));
}

/// Bytes of a row: f32 features and a label.
pub(crate) fn row_bytes(job: &JobRecord) -> f64 {
    (f64::from(job.spec.data.features) + 1.0) * 4.0
}

/// Bytes of a job's training data that nobody had to read yet. Later epochs may find theirs in a cache, so
/// that only the first is bound to move it.
fn unread_bytes(job: &JobRecord) -> f64 {
    let rows = job.prepared.map_or(0, |p| p.training_rows).saturating_sub(job.samples);
    rows as f64 * row_bytes(job)
}

/// Joules wasted so far, by reason, settled or as far as they are known.
pub(crate) fn wasted_joules(core: &Core) -> BTreeMap<WasteReason, f64> {
    let mut sums: BTreeMap<WasteReason, f64> = BTreeMap::new();
    for (reason, energy) in core.work.jobs().flat_map(|job| &job.wasted) {
        *sums.entry(*reason).or_default() += energy.total_joules();
    }
    for (_, account) in core.work.accounts() {
        if let AccountOutcome::Wasted(reason) = account.outcome {
            *sums.entry(reason).or_default() += account.energy.total_joules();
        }
    }
    sums
}

/// Joules by source, for reports.
pub(crate) fn joules(energy: Energy) -> BTreeMap<&'static str, f64> {
    Source::ALL
        .into_iter()
        .filter(|s| energy.get(*s) > 0)
        .map(|s| (s.as_str(), energy.get(s) as f64 / 1e6))
        .collect()
}
