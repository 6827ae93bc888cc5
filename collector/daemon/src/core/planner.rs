//! What the planner sees, and how its plan becomes leases.

use std::collections::BTreeMap;
use std::time::Instant;

use wattmill_protocol::NodeId;
use wattmill_protocol::job::{Job, NumericsPolicy};
use wattmill_scheduler::{
    Assignment, Gpu, GpuState, JobQueue, JobSnapshot, NodeLoad, NodeSnapshot, Pending, Policy, Snapshot,
    assign, plan, usable_slots,
};
use wattmill_work::{Event, JobRecord, Round, ShardState, Task};

use super::Core;
use crate::state::{GpuRollup, NodeRollup};

/// Why a node without slots gets no work.
pub(crate) const NO_WORKER: &str = "it has no worker";

impl Core {
    /// Looks at the whole cluster and plans anew.
    pub(crate) fn replan(&mut self) {
        self.plan_due = false;
        let begun = Instant::now();
        let snapshot = self.snapshot();
        let next = plan(&snapshot, &Policy::default(), &self.plan);
        self.plan_seconds = begun.elapsed().as_secs_f64();
        let plan = self.plan.by_job();
        for allocation in &next.allocations {
            let before = plan.get(&allocation.job).and_then(|nodes| nodes.get(&allocation.node));
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
                excluded: (capability.slots == 0).then(|| NO_WORKER.to_owned()),
                gpus: figures.map(|figures| training_gpus(figures)).unwrap_or_default(),
                fresh: figures.is_some_and(|f| f.fresh),
                rates: rates.collect(),
            }
        };
        let job = |job: &&JobRecord| JobSnapshot {
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
        let watts = rollup.node(node).and_then(|n| n.power_watts);
        let slots = self.sessions.get(node).map_or(1, |connected| connected.hello.slots.max(1));
        watts.unwrap_or(0.0) / f64::from(slots)
    }

    fn queues(&self) -> Vec<JobQueue> {
        let pending = |shards: &[wattmill_work::Shard]| -> Vec<Pending> {
            let waits = |(i, s): (usize, &wattmill_work::Shard)| {
                let shard = u32::try_from(i).unwrap_or(u32::MAX);
                (s.state == ShardState::Pending).then(|| Pending { shard, avoid: s.avoid.clone() })
            };
            shards.iter().enumerate().filter_map(waits).collect()
        };
        let running = self.work.jobs().filter_map(|job| Some((job, self.work.round(&job.id)?)));
        let mut rounds: Vec<_> = running.collect();
        rounds.sort_by_key(|(job, _)| (job.submitted_unix_ms, &job.id));
        let needs: Vec<Need> = rounds.iter().map(|(job, round)| Need::of(job, round)).collect();
        rounds
            .into_iter()
            .zip(admitted(&needs, self.blobs.staged_limit()))
            .filter(|(_, admitted)| *admitted)
            .map(|((job, round), _)| JobQueue { job: job.id.clone(), pending: pending(&round.shards) })
            .filter(|queue| !queue.pending.is_empty())
            .collect()
    }

    fn loads(&self) -> Vec<NodeLoad> {
        let mut in_flight: BTreeMap<&NodeId, u32> = BTreeMap::new();
        for (_, lease) in self.work.leases() {
            *in_flight.entry(&lease.node).or_default() += 1;
        }
        let rollup = self.rollups.borrow();
        let load = |(node, capability): (&NodeId, &wattmill_work::Capability)| {
            let gpus = rollup.node(node).map(training_gpus).unwrap_or_default();
            NodeLoad {
                node: node.clone(),
                in_flight: in_flight.get(node).copied().unwrap_or(0),
                slots: usable_slots(capability.slots, &gpus),
            }
        };
        self.work.connected().map(load).collect()
    }
}

/// GPUs that a node trains on, and whether they may be used.
fn training_gpus(node: &NodeRollup) -> Vec<Gpu> {
    let state = |gpu: &GpuRollup| match gpu.foreign_processes {
        _ if !gpu.up => GpuState::Lost,
        Some(processes) if processes > 0 => GpuState::Busy { processes },
        // Where a driver does not tell, nothing says that it is not free.
        _ => GpuState::Free,
    };
    let own = node.gpus.iter().filter(|gpu| gpu.trains);
    own.map(|gpu| Gpu { uuid: gpu.uuid.to_string(), state: state(gpu) }).collect()
}

/// Room that a round's results take while they wait for each other.
#[derive(Clone, Copy, Debug)]
struct Need {
    bytes: u64,
    /// Some of its shards are given out, or here.
    begun: bool,
}

impl Need {
    fn of(job: &JobRecord, round: &Round) -> Self {
        let blobs = round.shards.iter().filter(|shard| !matches!(shard.task, Task::Evaluate { .. })).count();
        let begun = round
            .shards
            .iter()
            .any(|shard| matches!(shard.state, ShardState::Leased(_) | ShardState::Received { .. }));
        Self { bytes: result_bytes(&job.spec).saturating_mul(blobs as u64), begun }
    }
}

/// Bytes of one shard's result: an `f32` for each parameter.
fn result_bytes(spec: &Job) -> u64 {
    spec.parameters().saturating_mul(4)
}

/// Most bytes of one round's results.
pub(crate) fn round_bytes(spec: &Job) -> u64 {
    result_bytes(spec).saturating_mul(u64::from(spec.training.shards_per_round))
}

/// Which rounds may be given out, oldest job first: those that are begun, and those for whose results there is
/// room beside theirs. Two rounds that were half done in a memory that holds one would wait for each other for
/// ever. A round that waits for room holds up those behind it, or it might never get any.
fn admitted(rounds: &[Need], limit: u64) -> Vec<bool> {
    let begun = rounds.iter().filter(|round| round.begun).map(|round| round.bytes);
    let mut taken = begun.fold(0u64, u64::saturating_add);
    let mut held_up = false;
    let admit = |round: &Need| {
        if round.begun {
            return true;
        }
        let after = taken.saturating_add(round.bytes);
        // Alone it may always try: no job is larger than the limit but where that was lowered since.
        held_up |= taken > 0 && after > limit;
        if !held_up {
            taken = after;
        }
        !held_up
    };
    rounds.iter().map(admit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_begin_as_far_as_there_is_room_for_their_results() {
        let begun = |bytes| Need { bytes, begun: true };
        let waits = |bytes| Need { bytes, begun: false };
        let table: [(&[Need], &[bool]); 6] = [
            (&[waits(4), waits(6)], &[true, true]),
            (&[waits(4), waits(7)], &[true, false]),
            (&[waits(7), begun(4)], &[false, true]),
            (&[begun(4), waits(7), waits(1)], &[true, false, false]),
            (&[waits(11)], &[true]),
            (&[begun(8), begun(8)], &[true, true]),
        ];
        for (rounds, expected) in table {
            assert_eq!(admitted(rounds, 10), expected, "{rounds:?}");
        }
    }
}
