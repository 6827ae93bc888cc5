//! Who is given which shard. The real scheduler comes here when it is there: anything with this signature.

use std::collections::BTreeMap;

use wattmill_protocol::{JobId, NodeId};
use wattmill_work::{Event, Now, ShardState, Work};

use crate::random::Random;
use crate::scenario::Assignment;

/// Proposes grants.
pub type Assigner = fn(&Work, Now, &mut Random) -> Vec<Event>;

/// The assigner that the scenario names.
pub fn of(assignment: Assignment) -> Assigner {
    match assignment {
        Assignment::RoundRobin => round_robin,
        Assignment::Random => random,
    }
}

/// Every pending shard to the next eligible node that has a slot.
fn round_robin(work: &Work, now: Now, random: &mut Random) -> Vec<Event> {
    if !work.may_grant(now) {
        return Vec::new();
    }
    let mut free: BTreeMap<&NodeId, u32> = work.connected().map(|(n, c)| (n, c.slots)).collect();
    for (_, lease) in work.leases() {
        if let Some(slots) = free.get_mut(&lease.node) {
            *slots = slots.saturating_sub(1);
        }
    }
    let nodes: Vec<_> = work.connected().collect();
    let mut grants = Vec::new();
    let mut turn = random.bits() as usize;
    for (job, shard) in pending(work) {
        let Some(record) = work.job(&job) else { continue };
        let mut in_turn = (0..nodes.len()).map(|i| nodes[(turn + i) % nodes.len()]);
        let taker = in_turn.find(|(node, capability)| {
            free.get(node).is_some_and(|slots| *slots > 0) && work.eligible(record, &capability.numerics)
        });
        if let Some((node, _)) = taker {
            *free.entry(node).or_default() -= 1;
            grants.push(Event::Granted { job, shard, node: node.clone() });
            turn = turn.wrapping_add(1);
        }
    }
    grants
}

/// A few grants of anything to anyone: what cannot be is the state machine's to refuse.
fn random(work: &Work, _: Now, random: &mut Random) -> Vec<Event> {
    let nodes: Vec<&NodeId> = work.connected().map(|(node, _)| node).collect();
    let mut shards = pending(work);
    shards.extend(work.leases().map(|(job, _)| (job.clone(), random.below(6) as u32)));
    if nodes.is_empty() || shards.is_empty() {
        return Vec::new();
    }
    (0..random.range(1, 4))
        .map(|_| {
            let (job, shard) = random.pick(&shards).clone();
            Event::Granted { job, shard, node: (*random.pick(&nodes)).clone() }
        })
        .collect()
}

fn pending(work: &Work) -> Vec<(JobId, u32)> {
    let mut pending = Vec::new();
    for job in work.jobs() {
        let shards = work.round(&job.id).into_iter().flat_map(|round| round.shards.iter().enumerate());
        let waiting = shards.filter(|(_, shard)| shard.state == ShardState::Pending);
        pending.extend(waiting.map(|(index, _)| (job.id.clone(), index as u32)));
    }
    pending
}
