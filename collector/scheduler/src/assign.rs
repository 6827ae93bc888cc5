//! From shares to shards: each shard goes where it is done first, by the plan's shares.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use wattmill_protocol::{JobId, NodeId};

use crate::plan::Plan;

/// What a node has in hand.
#[derive(Clone, Debug)]
pub struct NodeLoad {
    /// Which.
    pub node: NodeId,
    /// Leases that it holds.
    pub in_flight: u32,
    /// Leases that it takes at once.
    pub slots: u32,
}

/// Shards of a job that wait.
#[derive(Clone, Debug)]
pub struct JobQueue {
    /// Which job.
    pub job: JobId,
    /// Shards of its current round, in order.
    pub pending: Vec<Pending>,
}

/// A shard that waits.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// Its index in the current round.
    pub shard: u32,
    /// A node that failed with it: it gets the shard again only where no other node may.
    pub avoid: Option<NodeId>,
}

/// One shard for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Whose shard.
    pub job: JobId,
    /// Its index in the current round.
    pub shard: u32,
    /// Who gets it.
    pub node: NodeId,
}

/// Gives waiting shards to nodes. A shard's node is the one that would finish it first: the least
/// (leases in hand + 1) ÷ share. If that node has no free slot, the shard waits for it, since any other
/// would finish later; a node that leaves the plan is no longer waited for.
pub fn assign(plan: &Plan, queues: &[JobQueue], loads: &[NodeLoad]) -> Vec<Assignment> {
    let mut in_flight: HashMap<&NodeId, (u32, u32)> =
        loads.iter().map(|load| (&load.node, (load.in_flight, load.slots))).collect();
    let jobs = plan.by_job();
    let mut assignments = Vec::new();
    for queue in queues {
        let Some(allocations) = jobs.get(&queue.job) else { continue };
        let mut first: BinaryHeap<Reverse<Candidate<'_>>> = allocations
            .values()
            .filter(|a| a.share > 0.0)
            .filter_map(|a| Some(Reverse(Candidate::new(&a.node, a.share, in_flight.get(&a.node)?.0))))
            .collect();
        for Pending { shard, avoid } in &queue.pending {
            let Some(Reverse(mut best)) = first.pop() else { break };
            if avoid.as_ref() == Some(best.node)
                && let Some(Reverse(next)) = first.pop()
            {
                first.push(Reverse(std::mem::replace(&mut best, next)));
            }
            let Some((in_flight, slots)) = in_flight.get_mut(best.node) else { break };
            if *in_flight >= *slots {
                break;
            }
            *in_flight += 1;
            let node = best.node.clone();
            first.push(Reverse(Candidate::new(best.node, best.share, *in_flight)));
            assignments.push(Assignment { job: queue.job.clone(), shard: *shard, node });
        }
    }
    assignments
}

/// A node by when it would finish one more shard: the first is the least, and of equals the first in order.
struct Candidate<'a> {
    finish: f64,
    node: &'a NodeId,
    share: f64,
}

impl<'a> Candidate<'a> {
    fn new(node: &'a NodeId, share: f64, in_flight: u32) -> Self {
        Self { finish: (f64::from(in_flight) + 1.0) / share, node, share }
    }
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.finish.total_cmp(&other.finish).then_with(|| self.node.cmp(other.node))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Allocation;

    fn setup(shares: &[f64], slots: u32) -> (Plan, Vec<NodeLoad>) {
        let job: JobId = "j".parse().unwrap();
        let nodes: Vec<NodeId> = shares.iter().map(|_| NodeId::random()).collect();
        let allocations = nodes
            .iter()
            .zip(shares)
            .map(|(node, share)| Allocation {
                job: job.clone(),
                node: node.clone(),
                share: *share,
                reason: String::new(),
            })
            .collect();
        let loads = nodes.into_iter().map(|node| NodeLoad { node, in_flight: 0, slots }).collect();
        (Plan { allocations }, loads)
    }

    fn waiting(shards: std::ops::Range<u32>) -> Vec<Pending> {
        shards.map(|shard| Pending { shard, avoid: None }).collect()
    }

    fn counts(shares: &[f64], slots: u32, shards: u32) -> Vec<usize> {
        let (plan, loads) = setup(shares, slots);
        let queue = JobQueue { job: "j".parse().unwrap(), pending: waiting(0..shards) };
        let given = assign(&plan, &[queue], &loads);
        loads.iter().map(|l| given.iter().filter(|a| a.node == l.node).count()).collect()
    }

    #[test]
    fn shards_follow_shares() {
        assert_eq!(counts(&[0.5, 0.5], 8, 4), [2, 2]);
        assert_eq!(counts(&[0.75, 0.25], 8, 8), [6, 2]);
        assert_eq!(counts(&[1.0, 0.0], 8, 4), [4, 0]);
        assert_eq!(counts(&[], 8, 4), [0usize; 0]);
    }

    #[test]
    fn a_shard_goes_to_another_node_than_the_one_that_failed_with_it() {
        let given = |shares: &[f64], avoided: usize| {
            let (plan, loads) = setup(shares, 2);
            let avoid = Some(loads[avoided].node.clone());
            let pending = vec![Pending { shard: 0, avoid }, Pending { shard: 1, avoid: None }];
            let queue = JobQueue { job: "j".parse().unwrap(), pending };
            let given = assign(&plan, &[queue], &loads);
            given.iter().map(|a| loads.iter().position(|l| l.node == a.node).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(given(&[0.9, 0.1], 0), [1, 0], "however fast it is");
        assert_eq!(given(&[0.5, 0.5], 0), [1, 0]);
        assert_eq!(given(&[0.5, 0.5], 1), [0, 1]);
        assert_eq!(given(&[1.0, 0.0], 0), [0, 0], "unless there is no other");
    }

    #[test]
    fn a_fast_node_is_waited_for() {
        assert_eq!(counts(&[0.9, 0.1], 2, 4), [2, 0], "the slow node would finish later");
        assert_eq!(counts(&[0.5, 0.5], 1, 4), [1, 1]);
    }
}
