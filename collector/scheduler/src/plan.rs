//! Who gets which share of each job: in proportion to learned rates.

use std::collections::BTreeMap;

use wattmill_protocol::{JobId, NodeId};

/// What the planner sees of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every known node.
    pub nodes: Vec<NodeSnapshot>,
    /// Every job that has work to give.
    pub jobs: Vec<JobSnapshot>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeSnapshot {
    /// Which.
    pub id: NodeId,
    /// What it computes like, for jobs that pin it.
    pub numerics: String,
    /// Why it must get nothing, as one that only meters; `None` when it may.
    pub excluded: Option<String>,
    /// GPUs that it trains on; none where it trains on its CPUs.
    pub gpus: Vec<Gpu>,
    /// Whether its telemetry is fresh.
    pub fresh: bool,
    /// Learned samples per second, by job.
    pub rates: BTreeMap<JobId, f64>,
}

/// A GPU that a node trains on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its UUID.
    pub uuid: String,
    /// Whether it may be used.
    pub state: GpuState,
}

/// Whether a GPU may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuState {
    /// It may, as far as is known.
    Free,
    /// Others use it: it is not ours to lease.
    Busy {
        /// How many processes.
        processes: u32,
    },
    /// It does not answer.
    Lost,
}

/// A job.
#[derive(Clone, Debug)]
pub struct JobSnapshot {
    /// Which.
    pub id: JobId,
    /// Numerics that its nodes must have; `None` when any will do.
    pub numerics: Option<String>,
}

/// What is wanted of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A share is kept while the new one differs by less than this part of it.
    pub hysteresis: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { hysteresis: 0.05 }
    }
}

/// Who gets what, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// By job, then node.
    pub allocations: Vec<Allocation>,
}

/// A node's part in a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Whose work.
    pub job: JobId,
    /// Who gets it.
    pub node: NodeId,
    /// Share of the job's work, 0 to 1; a job's shares sum to 1, or to 0 where nobody may work on it.
    pub share: f64,
    /// Why, for the log, `wattmill nodes` and the status page.
    pub reason: String,
}

impl Plan {
    /// The nodes of each job, with their shares.
    pub fn by_job(&self) -> BTreeMap<&JobId, BTreeMap<&NodeId, &Allocation>> {
        let mut jobs: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for allocation in &self.allocations {
            jobs.entry(&allocation.job).or_default().insert(&allocation.node, allocation);
        }
        jobs
    }
}

/// Plans every job: share ∝ learned rate. A node without a rate is taken to be average. A node without
/// fresh telemetry is the last choice: it works only where no other may.
pub fn plan(snapshot: &Snapshot, policy: &Policy, previous: &Plan) -> Plan {
    let mut nodes: Vec<&NodeSnapshot> = snapshot.nodes.iter().collect();
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    let mut jobs: Vec<&JobSnapshot> = snapshot.jobs.iter().collect();
    jobs.sort_by(|a, b| a.id.cmp(&b.id));
    let previous = previous.by_job();
    let allocations = jobs.into_iter().flat_map(|job| {
        let allocations = plan_job(job, &nodes);
        match previous.get(&job.id).filter(|before| settled(&allocations, policy, before)) {
            Some(before) => before.values().map(|allocation| (*allocation).clone()).collect(),
            None => allocations,
        }
    });
    Plan { allocations: allocations.collect() }
}

/// Whether the previous shares will do: the same nodes work, each with nearly the same share.
fn settled(new: &[Allocation], policy: &Policy, before: &BTreeMap<&NodeId, &Allocation>) -> bool {
    let same = |a: &Allocation| {
        before.get(&a.node).map(|before| before.share).is_some_and(|old| {
            (a.share == 0.0) == (old == 0.0) && (a.share - old).abs() <= policy.hysteresis * old
        })
    };
    before.len() == new.len() && new.iter().all(same)
}

fn plan_job(job: &JobSnapshot, nodes: &[&NodeSnapshot]) -> Vec<Allocation> {
    let refusals: Vec<Option<String>> = nodes.iter().map(|node| refusal(job, node)).collect();
    let any_fresh = nodes.iter().zip(&refusals).any(|(node, refused)| refused.is_none() && node.fresh);
    let works =
        |node: &NodeSnapshot, refused: &Option<String>| refused.is_none() && (node.fresh || !any_fresh);
    let known: Vec<f64> = nodes
        .iter()
        .zip(&refusals)
        .filter(|(node, refused)| works(node, refused))
        .filter_map(|(node, _)| node.rates.get(&job.id).copied())
        .collect();
    let prior = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    let rate = |node: &NodeSnapshot| node.rates.get(&job.id).copied().unwrap_or(prior);
    let sum: f64 = nodes.iter().zip(&refusals).filter(|(n, r)| works(n, r)).map(|(node, _)| rate(node)).sum();
    nodes
        .iter()
        .zip(refusals)
        .map(|(node, refused)| {
            let share = if works(node, &refused) { rate(node) / sum } else { 0.0 };
            let reason = match refused {
                Some(reason) => reason,
                None if !node.fresh && any_fresh => "its telemetry is stale".to_owned(),
                None => {
                    let stale = if node.fresh { "" } else { "; its telemetry is stale, but no other may" };
                    match node.rates.get(&job.id) {
                        Some(rate) => format!("{rate:.0} samples/s of {sum:.0}{stale}"),
                        None => format!("no shard reported yet: taken to be average{stale}"),
                    }
                }
            };
            Allocation { job: job.id.clone(), node: node.id.clone(), share, reason }
        })
        .collect()
}

fn refusal(job: &JobSnapshot, node: &NodeSnapshot) -> Option<String> {
    if let Some(reason) = &node.excluded {
        return Some(reason.clone());
    }
    if let Some(reason) = no_free_gpu(&node.gpus) {
        return Some(reason);
    }
    let pinned = job.numerics.as_ref().filter(|pinned| **pinned != node.numerics)?;
    Some(format!("computes as {}, the job is pinned to {pinned}", node.numerics))
}

/// How many leases a node may have at once, of the `slots` that it takes, which trains on these GPUs or on none:
/// a GPU that others use gets none.
pub fn usable_slots(slots: u32, gpus: &[Gpu]) -> u32 {
    if gpus.is_empty() {
        return slots;
    }
    let free = gpus.iter().filter(|gpu| gpu.state == GpuState::Free).count();
    slots.min(u32::try_from(free).unwrap_or(u32::MAX))
}

/// Why a node that trains on these GPUs can get nothing; `None` where it trains on none, or one is free.
fn no_free_gpu(gpus: &[Gpu]) -> Option<String> {
    if gpus.iter().any(|gpu| gpu.state == GpuState::Free) {
        return None;
    }
    let first = gpus.first()?;
    let why = match first.state {
        GpuState::Busy { processes: 1 } => "is used by another program".to_owned(),
        GpuState::Busy { processes } => format!("is used by {processes} other programs"),
        GpuState::Free | GpuState::Lost => "does not answer".to_owned(),
    };
    Some(match gpus.len() {
        1 => format!("its GPU {} {why}", first.uuid),
        count => format!("none of its {count} GPUs is free: {} {why}", first.uuid),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(index: u8, rate: Option<f64>, fresh: bool) -> NodeSnapshot {
        NodeSnapshot {
            id: format!("00000000-0000-4000-8000-0000000000{index:02x}").parse().unwrap(),
            numerics: "n".into(),
            excluded: None,
            gpus: Vec::new(),
            fresh,
            rates: rate.map(|r| (job().id, r)).into_iter().collect(),
        }
    }

    fn job() -> JobSnapshot {
        JobSnapshot { id: "j".parse().unwrap(), numerics: None }
    }

    fn shares(nodes: Vec<NodeSnapshot>) -> Vec<f64> {
        let snapshot = Snapshot { nodes, jobs: vec![job()] };
        plan(&snapshot, &Policy::default(), &Plan::default()).allocations.iter().map(|a| a.share).collect()
    }

    #[test]
    fn shares_follow_rates_and_the_unknown_is_average() {
        assert_eq!(shares(vec![node(1, Some(300.0), true), node(2, Some(100.0), true)]), [0.75, 0.25]);
        assert_eq!(shares(vec![node(1, Some(2.0), true), node(2, None, true)]), [0.5, 0.5]);
        assert_eq!(shares(vec![node(1, None, true)]), [1.0]);
        assert!(shares(vec![]).is_empty());
    }

    #[test]
    fn stale_nodes_are_the_last_choice() {
        assert_eq!(shares(vec![node(1, Some(9.0), false), node(2, Some(1.0), true)]), [0.0, 1.0]);
        assert_eq!(shares(vec![node(1, Some(9.0), false)]), [1.0], "better than nothing");
    }

    #[test]
    fn pinned_numerics_and_exclusions_are_said() {
        let mut other = node(2, Some(1.0), true);
        other.numerics = "m".into();
        let mut meter = node(3, Some(1.0), true);
        meter.excluded = Some("it has no worker".into());
        let jobs = vec![JobSnapshot { numerics: Some("n".into()), ..job() }];
        let nodes = vec![node(1, Some(1.0), true), other, meter];
        let plan = plan(&Snapshot { nodes, jobs }, &Policy::default(), &Plan::default());
        let shares: Vec<f64> = plan.allocations.iter().map(|a| a.share).collect();
        assert_eq!(shares, [1.0, 0.0, 0.0]);
        assert_eq!(plan.allocations[1].reason, "computes as m, the job is pinned to n");
        assert_eq!(plan.allocations[2].reason, "it has no worker");
    }

    #[test]
    fn a_gpu_in_use_by_others_is_left_alone() {
        let gpu = |uuid: &str, state| Gpu { uuid: uuid.to_owned(), state };
        let with = |gpus: &[Gpu]| NodeSnapshot { gpus: gpus.to_vec(), ..node(1, Some(9.0), true) };
        let busy = |processes| GpuState::Busy { processes };
        let (free, lost) = (GpuState::Free, GpuState::Lost);
        for (gpus, share, slots, reason) in [
            (&[gpu("a", free)][..], 0.9, 1, "9 samples/s of 10"),
            (&[gpu("a", busy(1))], 0.0, 0, "its GPU a is used by another program"),
            (&[gpu("a", busy(2))], 0.0, 0, "its GPU a is used by 2 other programs"),
            (&[gpu("a", lost)], 0.0, 0, "its GPU a does not answer"),
            (
                &[gpu("a", busy(3)), gpu("b", lost)],
                0.0,
                0,
                "none of its 2 GPUs is free: a is used by 3 other programs",
            ),
            (&[gpu("a", busy(3)), gpu("b", free), gpu("c", free)], 0.9, 2, "9 samples/s of 10"),
            (&[], 0.9, 4, "9 samples/s of 10"),
        ] {
            let nodes = vec![with(gpus), node(2, Some(1.0), true)];
            assert_eq!(usable_slots(4, gpus), slots, "{gpus:?}");
            let snapshot = Snapshot { nodes, jobs: vec![job()] };
            let planned = plan(&snapshot, &Policy::default(), &Plan::default());
            assert_eq!(
                (planned.allocations[0].share, planned.allocations[0].reason.as_str()),
                (share, reason)
            );
        }
        assert_eq!(shares(vec![with(&[gpu("a", busy(1))])]), [0.0], "also where there is no other node");
    }

    #[test]
    fn small_changes_move_nothing() {
        let at = |rate| Snapshot {
            nodes: vec![node(1, Some(rate), true), node(2, Some(100.0), true)],
            jobs: vec![job()],
        };
        let first = plan(&at(100.0), &Policy::default(), &Plan::default());
        assert_eq!(plan(&at(102.0), &Policy::default(), &first), first);
        assert_ne!(plan(&at(150.0), &Policy::default(), &first), first);
    }

    proptest! {
        #[test]
        fn shares_sum_to_one_whatever_the_order(
            spec in prop::collection::vec((prop::option::of(0.1f64..1e6), any::<bool>()), 1..20),
            swap in any::<prop::sample::Index>(),
        ) {
            let mut nodes: Vec<_> =
                spec.iter().enumerate().map(|(i, (rate, fresh))| node(i as u8, *rate, *fresh)).collect();
            let of = |nodes: Vec<_>| {
                plan(&Snapshot { nodes, jobs: vec![job()] }, &Policy::default(), &Plan::default())
            };
            let planned = of(nodes.clone());
            let sum: f64 = planned.allocations.iter().map(|a| a.share).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            nodes.rotate_left(swap.index(spec.len()));
            prop_assert_eq!(&of(nodes.clone()), &planned);
            let again =
                plan(&Snapshot { nodes, jobs: vec![job()] }, &Policy::default(), &planned);
            prop_assert_eq!(again, planned);
        }
    }
}
