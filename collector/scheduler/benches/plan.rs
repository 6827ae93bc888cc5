//! A plan and the assignment of a cluster of 3,000 nodes: what the collector does every second, and whenever a
//! round's shards are to be given out.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use wattmill_protocol::{JobId, NodeId};
use wattmill_scheduler::{
    JobQueue, JobSnapshot, NodeLoad, NodeSnapshot, Pending, Plan, Policy, Snapshot, assign, plan,
};

const NODES: u32 = 3_000;
const SHARDS: u32 = 4_096;

fn node(index: u32) -> NodeId {
    format!("00000000-0000-4000-8000-{index:012}").parse().expect("a valid identity")
}

fn bench(c: &mut Criterion) {
    let job: JobId = "digits-1".parse().expect("a valid identity");
    let snapshot = |change: f64| {
        let node = |index| NodeSnapshot {
            gpus: Vec::new(),
            id: node(index),
            numerics: "n".into(),
            excluded: None,
            fresh: true,
            rates: BTreeMap::from([(job.clone(), 100.0 + f64::from(index % 7) * change)]),
        };
        let jobs = vec![JobSnapshot { id: job.clone(), numerics: None }];
        Snapshot { nodes: (0..NODES).map(node).collect(), jobs }
    };
    let first = plan(&snapshot(1.0), &Policy::default(), &Plan::default());
    let next = snapshot(1.001);
    c.bench_function("plan", |b| b.iter(|| plan(black_box(&next), &Policy::default(), black_box(&first))));

    let loads: Vec<NodeLoad> =
        (0..NODES).map(|i| NodeLoad { node: node(i), in_flight: 0, slots: 2 }).collect();
    let pending = (0..SHARDS).map(|shard| Pending { shard, avoid: None }).collect();
    let queues = [JobQueue { job, pending }];
    c.bench_function("assign", |b| b.iter(|| assign(black_box(&first), black_box(&queues), &loads)));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = bench
}
criterion_main!(benches);
