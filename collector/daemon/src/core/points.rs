//! Metrics of jobs and of the core itself.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::catalogue as metrics;
use wattmill_protocol::exposition::Point;
use wattmill_protocol::{Energy, Source, v1};
use wattmill_scheduler::efficiency;
use wattmill_work::{AccountOutcome, JobRecord, NodeShare, WasteReason};

use super::view::shard_states;
use super::{Core, literal};

/// How long an ended job stays in `/metrics`: long enough for any scrape to see its last values.
const EXPOSED_AFTER_END_MS: i64 = 3_600_000;

/// All of them, beside the picture that was made of the same state.
pub(super) fn build(core: &Core, cluster: &v1::ClusterView) -> Vec<Point> {
    let mut points = core_points(core, cluster);
    for (record, view) in core.work.jobs().zip(&cluster.jobs) {
        if record.ended_unix_ms.is_none_or(|ended| cluster.unix_ms - ended < EXPOSED_AFTER_END_MS) {
            job_points(&mut points, core, record, view);
        }
    }
    points
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
pub(super) fn row_bytes(job: &JobRecord) -> f64 {
    (f64::from(job.spec.data.features) + 1.0) * 4.0
}

/// Bytes of a job's training data that nobody had to read yet. Later epochs may find theirs in a cache, so
/// that only the first is bound to move it.
fn unread_bytes(job: &JobRecord) -> f64 {
    let rows = job.prepared.map_or(0, |p| p.training_rows).saturating_sub(job.samples);
    rows as f64 * row_bytes(job)
}

/// Joules wasted so far, by reason, settled or as far as they are known.
pub(super) fn wasted_joules(core: &Core) -> BTreeMap<WasteReason, f64> {
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
