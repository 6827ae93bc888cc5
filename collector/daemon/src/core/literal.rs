//! What a live cluster has for the symbols of the founding document's formulas, as
//! [`LiteralInputs`] reads them.

use std::collections::VecDeque;

use wattmill_scheduler::efficiency::LiteralInputs;
use wattmill_work::{JobRecord, ShardState};

use super::Core;
use super::points::row_bytes;

/// Newest reported shards that T is the mean of.
const NEWEST_SHARDS: usize = 256;

/// What is kept for the formulas beside the state itself.
#[derive(Default)]
pub(crate) struct Literal {
    /// Compute seconds of the newest reported shards.
    seconds: VecDeque<f64>,
}

impl Literal {
    /// A node reported a shard that took so long to compute.
    pub(crate) fn observe(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds >= 0.0 {
            self.seconds.truncate(NEWEST_SHARDS - 1);
            self.seconds.push_front(seconds);
        }
    }

    fn mean_seconds(&self) -> Option<f64> {
        let sum: f64 = self.seconds.iter().sum();
        (!self.seconds.is_empty()).then(|| sum / self.seconds.len() as f64)
    }
}

/// The inputs as of now.
pub(crate) fn inputs(core: &Core) -> LiteralInputs {
    let storage = core.rollups.borrow().storage;
    let running: Vec<&JobRecord> = core.work.jobs().filter(|job| !job.phase.ended()).collect();
    let open = |job: &&JobRecord| {
        let shards = core.work.round(&job.id).map(|round| round.shards.as_slice()).unwrap_or_default();
        let open = |state: &ShardState| matches!(state, ShardState::Pending | ShardState::Leased(_));
        shards.iter().filter(|shard| open(&shard.state)).count() as u64
    };
    let data_shards: u64 = running.iter().map(|job| data_shards(job)).sum();
    let data_bytes: f64 = running.iter().map(|job| training_rows(job) as f64 * row_bytes(job)).sum();
    LiteralInputs {
        open_shards: running.iter().map(open).sum(),
        seconds_per_shard: core.literal.mean_seconds(),
        // T is the mean over the whole fleet.
        relative_speed: Some(1.0),
        nodes: core.sessions.iter().count() as u64,
        data_shards,
        storage_nodes: storage.hosts,
        bytes_per_shard: (data_shards > 0).then(|| data_bytes / data_shards as f64),
        bytes_per_storage_node: (storage.hosts > 0).then(|| storage.size_bytes / storage.hosts as f64),
    }
}

fn training_rows(job: &JobRecord) -> u64 {
    job.prepared.map_or(0, |prepared| prepared.training_rows)
}

/// Shards that a job's data are cut into.
fn data_shards(job: &JobRecord) -> u64 {
    training_rows(job).div_ceil(u64::from(job.spec.training.shard_size))
}
