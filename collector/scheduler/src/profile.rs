//! What reported shards teach about a node: its rate, by job.

use std::collections::BTreeMap;

use wattmill_protocol::{JobId, NodeId};

/// Weight of the newest shard in a rate: the last ten or so shards count, so that a node that begins to
/// throttle is seen within a second of short shards and one slow shard alone changes little.
const NEWEST_WEIGHT: f64 = 0.2;

/// Rates learned from reported shards.
#[derive(Clone, Debug, Default)]
pub struct Profiles {
    samples_per_second: BTreeMap<(JobId, NodeId), f64>,
}

impl Profiles {
    /// A node did `samples` of a job in `seconds`. Shards without samples or time teach nothing.
    pub fn observe(&mut self, job: &JobId, node: &NodeId, samples: u64, seconds: f64) {
        if samples == 0 || !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let newest = samples as f64 / seconds;
        self.samples_per_second
            .entry((job.clone(), node.clone()))
            .and_modify(|rate| *rate += NEWEST_WEIGHT * (newest - *rate))
            .or_insert(newest);
    }

    /// Samples per second of `node` on `job`, where it did a shard of it.
    pub fn rate(&self, job: &JobId, node: &NodeId) -> Option<f64> {
        self.samples_per_second.get(&(job.clone(), node.clone())).copied()
    }

    /// Every rate that is known, by job and node.
    pub fn rates(&self) -> impl Iterator<Item = (&JobId, &NodeId, f64)> {
        self.samples_per_second.iter().map(|((job, node), rate)| (job, node, *rate))
    }

    /// Forgets a job that ended.
    pub fn forget(&mut self, job: &JobId) {
        self.samples_per_second.retain(|(j, _), _| j != job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_the_newest_shards_and_ignores_nonsense() {
        let (job, node): (JobId, NodeId) = ("j".parse().unwrap(), NodeId::random());
        let mut profiles = Profiles::default();
        assert_eq!(profiles.rate(&job, &node), None);
        profiles.observe(&job, &node, 100, 1.0);
        profiles.observe(&job, &node, 0, 1.0);
        profiles.observe(&job, &node, 100, 0.0);
        profiles.observe(&job, &node, 100, f64::NAN);
        assert_eq!(profiles.rate(&job, &node), Some(100.0));
        for _ in 0..50 {
            profiles.observe(&job, &node, 50, 1.0);
        }
        assert!((profiles.rate(&job, &node).unwrap() - 50.0).abs() < 0.01);
        profiles.forget(&job);
        assert_eq!(profiles.rate(&job, &node), None);
    }
}
