//! Why a job does not get on, and what its user can do about it.

use std::collections::{BTreeMap, BTreeSet};

use wattmill_protocol::{JobId, NodeId};
use wattmill_work::{Capability, JobRecord, Phase, ShardState, Work};

/// Why the job stands where it stands; `None` when nothing is to be said.
pub(crate) fn reason(work: &Work, job: &JobRecord) -> Option<String> {
    if job.phase.ended() || job.phase == Phase::Settling {
        return job.reason.clone();
    }
    blocked(work, job).or_else(|| no_node(work, job))
}

/// Quarantined shards of the current round, or the one that is meant if it is quarantined.
pub(crate) fn quarantined(work: &Work, job: &JobId, shard: Option<u32>) -> Vec<u32> {
    let shards = work.round(job).map(|round| round.shards.as_slice()).unwrap_or_default();
    let bad = (0..).zip(shards).filter(|(_, shard)| shard.state == ShardState::Quarantined);
    bad.map(|(index, _)| index).filter(|index| shard.is_none_or(|shard| shard == *index)).collect()
}

fn blocked(work: &Work, job: &JobRecord) -> Option<String> {
    let round = work.round(&job.id)?;
    let bad = quarantined(work, &job.id, None);
    let (index, others) = (*bad.first()?, bad.len() - 1);
    let shard = round.shards.get(index as usize)?;
    let others = if others > 0 { format!(" (and {others} more)") } else { String::new() };
    Some(format!(
        "shard {index}{others} of round {} is quarantined after {} failures: {}; the round waits for it: mend \
         the cause, then `wattmill waive {}`",
        round.number,
        shard.failures,
        shard.error.as_deref().unwrap_or("not said why"),
        job.id
    ))
}

/// A job of which nothing runs, though it has work to give.
fn no_node(work: &Work, job: &JobRecord) -> Option<String> {
    let round = work.round(&job.id)?;
    let idle = round.shards.iter().all(|s| !matches!(s.state, ShardState::Leased(_)));
    if !idle || round.shards.iter().all(|s| s.state != ShardState::Pending) {
        return None;
    }
    let mut nodes: Vec<_> = work.connected().collect();
    if nodes.is_empty() {
        let next =
            "start wattmill-agent on one with `collector` set; `wattmill nodes` lists those that are known";
        return Some(format!("waits for a node: none is connected; {next}"));
    }
    nodes.retain(|(_, capability)| capability.slots > 0);
    if nodes.is_empty() {
        let next = "`wattmill-agent check` on one says why";
        return Some(format!(
            "waits for a node that trains: those that are connected have no worker; {next}"
        ));
    }
    let eligible: Vec<_> = nodes.iter().filter(|(_, c)| work.eligible(job, &c.numerics)).collect();
    if eligible.is_empty() {
        let there: BTreeSet<&str> = nodes.iter().map(|(_, c)| c.numerics.as_str()).collect();
        let there: Vec<&str> = there.into_iter().collect();
        return Some(format!(
            "waits for a node that computes as {}, which the job is pinned to: those that are connected compute as {}",
            job.numerics.as_deref().unwrap_or_default(),
            there.join(", ")
        ));
    }
    let mut held: BTreeMap<&NodeId, usize> = BTreeMap::new();
    work.leases().for_each(|(_, lease)| *held.entry(&lease.node).or_default() += 1);
    let busy = |(node, capability): &&(&NodeId, &Capability)| {
        held.get(node).copied().unwrap_or(0) >= capability.slots as usize
    };
    eligible.iter().all(busy).then(|| "waits for its turn: every node works for other jobs".to_owned())
}
