//! A job's energy report.

use std::collections::BTreeMap;

use serde::Serialize;
use wattmill_protocol::{Energy, JobId, Source};

use super::Core;
use super::view::{all_joules, job_energy, job_mfu};

/// The report as it is written: every amount in joules by source, since measured and estimated joules
/// are never summed silently.
#[derive(Serialize)]
struct EnergyReport {
    job: String,
    name: String,
    state: String,
    reason: Option<String>,
    numerics: Option<String>,
    samples: u64,
    rounds: u32,
    requeues: BTreeMap<&'static str, u32>,
    /// Leases whose node's ledger does not know them, as of an agent that was killed: their joules are among
    /// the node's other ones.
    unrecorded_leases: u32,
    useful_flops: u64,
    elapsed_seconds: f64,
    mfu_ratio: Option<f64>,
    /// Over committed, wasted and idle joules.
    samples_per_joule: Option<f64>,
    /// Likewise.
    flops_per_joule: Option<f64>,
    loss: Option<f64>,
    held_out_loss: Option<f64>,
    accuracy: Option<f64>,
    model_sha256: Option<String>,
    energy_joules: Joules,
    nodes: Vec<NodeReport>,
}

#[derive(Serialize)]
struct Joules {
    /// Of shards that count.
    committed: BTreeMap<&'static str, f64>,
    /// Of work that was thrown away.
    wasted: BTreeMap<&'static str, f64>,
    /// The waste's reasons, as far as nodes have settled it.
    wasted_by_reason: BTreeMap<&'static str, f64>,
    /// Waste that no node has confirmed: an estimate.
    wasted_unconfirmed: f64,
    /// What the whole cluster took from submission to end, idle joules too; absent when the collector
    /// was restarted in between.
    cluster: Option<BTreeMap<&'static str, f64>>,
    /// The job's share of what the cluster took while it ran and no job's shard used: idle, other programs.
    /// Jobs that run at once share it equally.
    idle_and_other: f64,
}

#[derive(Serialize)]
struct NodeReport {
    node: String,
    name: String,
    samples: u64,
    shards: u64,
    committed_joules: BTreeMap<&'static str, f64>,
    wasted_joules: BTreeMap<&'static str, f64>,
}

impl Core {
    /// The energy report of a job as JSON.
    pub(crate) fn energy_report(&self, id: &JobId) -> Option<String> {
        let job = self.work.job(id)?;
        let (committed, wasted) = job_energy(self, job);
        let all = all_joules(job, committed + wasted);
        let confirmed: Energy = job.wasted.values().copied().sum();
        let cluster = self.cluster_share(id);
        let nodes = job.nodes.iter().map(|(node, share)| NodeReport {
            node: node.to_string(),
            name: self.sessions.get(node).map(|c| c.hello.name.clone()).unwrap_or_default(),
            samples: share.samples,
            shards: share.shards,
            committed_joules: joules(share.committed),
            wasted_joules: joules(share.wasted),
        });
        let report = EnergyReport {
            job: id.to_string(),
            name: job.spec.name.clone(),
            state: format!("{:?}", job.phase).to_lowercase(),
            reason: job.reason.clone(),
            numerics: job.numerics.clone(),
            samples: job.samples,
            rounds: job.round,
            requeues: job.requeues.iter().map(|(reason, n)| (reason.as_str(), *n)).collect(),
            unrecorded_leases: job.unrecorded,
            useful_flops: job.useful_flops,
            elapsed_seconds: job.elapsed_ms as f64 / 1e3,
            mfu_ratio: job_mfu(job),
            samples_per_joule: (all > 0.0).then(|| job.samples as f64 / all),
            flops_per_joule: (all > 0.0).then(|| job.useful_flops as f64 / all),
            loss: job.loss,
            held_out_loss: job.held_out_loss,
            accuracy: job.accuracy,
            model_sha256: job.parameters.map(|hash| hash.to_string()),
            energy_joules: Joules {
                committed: joules(committed),
                wasted: joules(wasted),
                wasted_by_reason: job.wasted.iter().map(|(r, e)| (r.as_str(), e.total_joules())).collect(),
                wasted_unconfirmed: wasted.saturating_sub(confirmed).total_joules(),
                idle_and_other: job.idle_microjoules(committed + wasted) as f64 / 1e6,
                cluster: cluster.map(joules),
            },
            nodes: nodes.collect(),
        };
        serde_json::to_string_pretty(&report).ok()
    }

    fn cluster_share(&self, job: &JobId) -> Option<Energy> {
        let from = self.energy_at_submission.get(job)?;
        let to = self.energy_at_end.get(job).copied().unwrap_or_else(|| self.cluster_energy());
        Some(to.saturating_sub(*from))
    }
}

/// Joules by source, for reports.
fn joules(energy: Energy) -> BTreeMap<&'static str, f64> {
    Source::ALL
        .into_iter()
        .filter(|s| energy.get(*s) > 0)
        .map(|s| (s.as_str(), energy.get(s) as f64 / 1e6))
        .collect()
}
