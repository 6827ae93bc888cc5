//! From shares to shards: each shard goes where it is done first, by the plan's shares.

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
    let mut loads = loads.to_vec();
    let mut assignments = Vec::new();
    for queue in queues {
        let shares: Vec<(usize, f64)> = plan
            .of_job(&queue.job)
            .filter(|a| a.share > 0.0)
            .filter_map(|a| Some((loads.iter().position(|l| l.node == a.node)?, a.share)))
            .collect();
        for Pending { shard, avoid } in &queue.pending {
            let finish = |&(index, share): &(usize, f64)| f64::from(loads[index].in_flight + 1) / share;
            let avoided = |&(index, _): &(usize, f64)| avoid.as_ref() == Some(&loads[index].node);
            let only = shares.iter().all(avoided);
            let others = shares.iter().filter(|share| only || !avoided(share));
            let first = others.min_by(|a, b| finish(a).total_cmp(&finish(b)));
            let Some(&(index, _)) = first else { break };
            let load = &mut loads[index];
            if load.in_flight >= load.slots {
                break;
            }
            load.in_flight += 1;
            assignments.push(Assignment { job: queue.job.clone(), shard: *shard, node: load.node.clone() });
        }
    }
    assignments
}

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
