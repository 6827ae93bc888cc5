//! What the planner sees, and how its plan becomes leases.

use std::collections::BTreeMap;
use std::time::Instant;

use wattmill_protocol::job::NumericsPolicy;
use wattmill_protocol::{JobId, NodeId};
use wattmill_scheduler::{
    Assignment, JobQueue, JobSnapshot, NodeLoad, NodeSnapshot, Policy, Snapshot, assign, plan,
};
use wattmill_work::{Event, ShardState};

use super::Core;

impl Core {
    /// Looks at the whole cluster and plans anew.
    pub(crate) fn replan(&mut self) {
        let begun = Instant::now();
        let snapshot = self.snapshot();
        let next = plan(&snapshot, &Policy::default(), &self.plan);
        self.plan_seconds = begun.elapsed().as_secs_f64();
        for allocation in &next.allocations {
            let before = self.plan.of_job(&allocation.job).find(|a| a.node == allocation.node);
            if before.is_none_or(|b| b.share != allocation.share) {
                tracing::debug!(
                    job = %allocation.job,
                    node = %allocation.node,
                    share = allocation.share,
                    reason = allocation.reason,
                    "share planned"
                );
            }
        }
        self.plan = next;
    }

    fn snapshot(&self) -> Snapshot {
        let rollup = self.rollups.borrow().clone();
        let telemetry: BTreeMap<&NodeId, _> = rollup.nodes.iter().map(|n| (&n.id, n)).collect();
        let running: Vec<_> = self.work.jobs().filter(|job| !job.phase.ended()).collect();
        let node = |(id, capability): (&NodeId, &wattmill_work::Capability)| {
            let figures = telemetry.get(id);
            let rates = running.iter().filter_map(|j| Some((j.id.clone(), self.profiles.rate(&j.id, id)?)));
            NodeSnapshot {
                id: id.clone(),
                numerics: capability.numerics.clone(),
                fresh: figures.is_some_and(|f| f.fresh),
                rates: rates.collect(),
            }
        };
        let job = |job: &&wattmill_work::JobRecord| JobSnapshot {
            id: job.id.clone(),
            numerics: job.numerics.clone().filter(|_| job.spec.training.numerics == NumericsPolicy::Pinned),
        };
        Snapshot { nodes: self.work.connected().map(node).collect(), jobs: running.iter().map(job).collect() }
    }

    /// Gives waiting shards to nodes by the plan.
    pub(crate) fn grant(&mut self) {
        if !self.work.may_grant(self.now()) {
            return;
        }
        let queues = self.queues();
        if queues.is_empty() {
            return;
        }
        for Assignment { job, shard, node } in assign(&self.plan, &queues, &self.loads()) {
            let power_watts = self.lease_watts(&node);
            self.apply(Event::Granted { job, shard, node, power_watts });
        }
    }

    /// A node's power of late, shared by the leases that it takes at once.
    fn lease_watts(&self, node: &NodeId) -> f64 {
        let rollup = self.rollups.borrow();
        let watts = rollup.nodes.iter().find(|n| n.id == *node).and_then(|n| n.power_watts);
        let slots = self.sessions.get(node).map_or(1, |connected| connected.hello.slots.max(1));
        watts.unwrap_or(0.0) / f64::from(slots)
    }

    fn queues(&self) -> Vec<JobQueue> {
        let pending = |job: &JobId| -> Vec<u32> {
            let shards = self.work.round(job).map(|r| r.shards.as_slice()).unwrap_or_default();
            let waits = |(i, s): (usize, &wattmill_work::Shard)| {
                (s.state == ShardState::Pending).then_some(u32::try_from(i).unwrap_or(u32::MAX))
            };
            shards.iter().enumerate().filter_map(waits).collect()
        };
        self.work
            .jobs()
            .filter(|job| !job.phase.ended())
            .map(|job| JobQueue { job: job.id.clone(), pending: pending(&job.id) })
            .filter(|queue| !queue.pending.is_empty())
            .collect()
    }

    fn loads(&self) -> Vec<NodeLoad> {
        let mut in_flight: BTreeMap<&NodeId, u32> = BTreeMap::new();
        for (_, lease) in self.work.leases() {
            *in_flight.entry(&lease.node).or_default() += 1;
        }
        let load = |(node, capability): (&NodeId, &wattmill_work::Capability)| NodeLoad {
            node: node.clone(),
            in_flight: in_flight.get(node).copied().unwrap_or(0),
            slots: capability.slots,
        };
        self.work.connected().map(load).collect()
    }
}
