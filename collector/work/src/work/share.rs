//! The cluster's joules: which of them each job answers for.

use wattmill_protocol::JobId;

use super::Work;
use crate::record::JobRecord;

impl Work {
    /// Splits what the cluster took since the last time among the jobs that run: to each what its shards
    /// took in it, as far as that is known yet, and an equal part of the rest.
    pub(super) fn share(&mut self, cluster_microjoules: u64) {
        if cluster_microjoules == 0 || self.running.is_empty() {
            return;
        }
        let spent: Vec<(JobId, i64)> =
            self.running.keys().map(|id| (id.clone(), self.spent_microjoules(id))).collect();
        let before = |id: &JobId| self.running.get(id).map_or(0, |r| r.spent_microjoules);
        let own =
            spent.iter().fold(0i64, |own, (id, now)| own.saturating_add(now.saturating_sub(before(id))));
        let rest = i64::try_from(cluster_microjoules).unwrap_or(i64::MAX).saturating_sub(own);
        let jobs = i64::try_from(spent.len()).unwrap_or(i64::MAX);
        for (index, (id, now)) in (0..).zip(spent) {
            let (Some(running), Some(job)) = (self.running.get_mut(&id), self.jobs.get_mut(&id)) else {
                continue;
            };
            // Whole microjoules: the first jobs take the remainder.
            let part = rest.div_euclid(jobs) + i64::from(index < rest.rem_euclid(jobs));
            let own = now.saturating_sub(running.spent_microjoules);
            job.cluster_microjoules = job.cluster_microjoules.saturating_add(own).saturating_add(part);
            running.spent_microjoules = now;
        }
    }

    /// What the shards of a job took, settled or as far as it is known.
    pub(super) fn spent_microjoules(&self, job: &JobId) -> i64 {
        let (open, wasted) = self.unsettled_energy(job);
        let settled = self.jobs.get(job).map(JobRecord::settled_energy).unwrap_or_default();
        i64::try_from((settled + open + wasted).total()).unwrap_or(i64::MAX)
    }
}
