//! Processes that are killed while they train. What "the same model" means is learned from a run on the same
//! cluster that nobody disturbed: results depend on the instruction set, and on nothing else.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::time::{Duration, Instant};

use wattmill_it::{Cluster, Signal, cpus, digits, metric, model, signal, turn};

/// Settles at once where it can, so that a test that hangs is not mistaken for one that waits.
const PATIENT: &str = "[leases]\nduration_ms = 120000\ngrace_ms = 120000\nsettle_ms = 10000";

fn requeues(cluster: &Cluster, reason: &str) -> f64 {
    metric(&cluster.collector_metrics(), "wattmill_reschedules_total", &[("reason", reason)]).unwrap_or(0.0)
}

/// What the collector acknowledged survives its SIGKILL; agents come back by themselves, and the model is the
/// one of a run that nothing happened to.
#[tokio::test]
async fn a_killed_collector_goes_on_where_it_was() {
    let _turn = turn();
    let mut cluster = Cluster::of_two("[leases]\nsettle_ms = 10000").await;
    let job = digits(cluster.folder());
    let whole = cluster.train(&job).await;

    let id = cluster.submit(&job, "disturbed").await;
    cluster.in_the_middle(&id, 20).await;
    let pids = ["one", "two"].map(|name| cluster.program(name).pid());
    cluster.end_collector(Signal::KILL).await;
    cluster.start_collector().await;
    // Submitted again with the same key after the crash, it is the same job.
    assert_eq!(cluster.submit(&job, "disturbed").await, id);
    let view = cluster.finished(&id).await;
    assert_eq!(model(&view), model(&whole));
    assert_eq!((view.round, view.samples), (whole.round, whole.samples));
    assert_eq!(view.unconfirmed_microjoules, 0);
    // The job that had ended before stands there as it was.
    let jobs = cluster.wait_for("both jobs", |view| (view.jobs.len() == 2).then(|| view.jobs.clone())).await;
    assert!(jobs.iter().any(|j| j.id == whole.id && j.model_hash == whole.model_hash && j.ended));
    for (name, pid) in ["one", "two"].into_iter().zip(pids) {
        assert!(cluster.program(name).is_alive() && cluster.program(name).pid() == pid);
    }
}

/// A worker's death costs one attempt, never the agent, the job, or a bit of the model.
#[tokio::test]
async fn a_killed_worker_costs_one_attempt() {
    let _turn = turn();
    let mut cluster = Cluster::of_two(PATIENT).await;
    let job = digits(cluster.folder());
    let whole = cluster.train(&job).await;

    let id = cluster.submit(&job, "disturbed").await;
    cluster.in_the_middle(&id, 20).await;
    let worker = cluster.hold_a_lease("one").await;
    signal(worker, Signal::KILL);
    let view = cluster.finished(&id).await;
    assert_eq!(model(&view), model(&whole));
    assert!(view.requeues >= 1 && requeues(&cluster, "failed") >= 1.0, "{view:?}");
    assert_eq!(view.unconfirmed_microjoules, 0);
    assert!(cluster.program("one").is_alive());
    assert_ne!(cluster.worker("one"), worker, "another worker runs");
}

/// An agent that is told to stop hands its leases back at once: with leases and grace of two minutes nothing
/// else could give them to another node in time. It exits 0 within 5 s, and its joules are settled.
#[tokio::test]
async fn an_agent_that_stops_hands_its_work_back() {
    let _turn = turn();
    let mut cluster = Cluster::of_two(PATIENT).await;
    let job = digits(cluster.folder());
    let whole = cluster.train(&job).await;

    let id = cluster.submit(&job, "disturbed").await;
    cluster.in_the_middle(&id, 20).await;
    cluster.hold_a_lease("two").await;
    let asked = Instant::now();
    cluster.program("two").signal(Signal::TERM);
    cluster
        .wait_for("the lease is requeued", |view| {
            let job = view.jobs.iter().find(|j| j.id == id)?;
            (job.requeues >= 1).then_some(())
        })
        .await;
    let requeued = asked.elapsed();
    let status = cluster.program("two").ended().await;
    let stopped = asked.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(requeued < Duration::from_secs(2), "requeued after {requeued:?}");
    assert!(stopped < Duration::from_secs(5), "stopped after {stopped:?}");
    let view = cluster.finished(&id).await;
    assert_eq!(model(&view), model(&whole));
    assert!(requeues(&cluster, "handed_back") >= 1.0);
    assert_eq!(view.unconfirmed_microjoules, 0, "{view:?}");
    assert!(cluster.program("two").log().contains("leases handed back"));
}

/// An agent that is killed and comes back accounts for every lease that it had, also for those that no closed
/// window saw: nothing of the job's bill stays an estimate.
#[tokio::test]
async fn a_killed_agent_accounts_for_all_its_leases() {
    let _turn = turn();
    let mut cluster = Cluster::of_two(PATIENT).await;
    let job = digits(cluster.folder());
    let whole = cluster.train(&job).await;

    let id = cluster.submit(&job, "disturbed").await;
    cluster.in_the_middle(&id, 20).await;
    let worker = cluster.hold_a_lease("two").await;
    cluster.program("two").signal(Signal::KILL);
    cluster.program("two").ended().await;
    signal(worker, Signal::KILL);
    let cpu = cpus()[1].to_string();
    cluster.agent("two", &cpu, "").await;
    let view = cluster.finished(&id).await;
    assert_eq!(model(&view), model(&whole));
    assert!(requeues(&cluster, "node_restarted") >= 1.0, "{view:?}");
    assert_eq!(view.unconfirmed_microjoules, 0, "{view:?}");
}

/// Shards that take far longer than a lease lasts without progress, on one node that holds two of them at once:
/// reading the data, one gradient and the wait for the one before each outlast it. None runs out.
#[tokio::test]
async fn leases_outlast_shards_that_take_longer_than_they_do() {
    let _turn = turn();
    let mut cluster = Cluster::start("[leases]\nduration_ms = 1500\nmax_failures = 1").await;
    cluster.agent("one", &cpus()[0].to_string(), "").await;
    cluster.ready(1).await;
    let data = cluster.folder().join("long.csv");
    std::fs::write(&data, "0,0\n1,1\n".repeat(2_000_000)).unwrap();
    // 200 GFLOP a shard.
    let job = format!(
        r#"
name = "long"
model.layers = [
    {{ units = 2048, activation = "relu" }},
    {{ units = 2048, activation = "relu" }},
    {{ units = 2, activation = "softmax" }},
]
data = {{ uri = "file://{}", features = 1, classes = 2, held_out = {{ every = 500, remainder = 1 }} }}
[training]
epochs = 1
shard_size = 8000
shards_per_round = 2
optimizer = {{ name = "sgd", learning_rate = 0.01 }}
"#,
        data.display()
    );
    let id = cluster.submit(&job, "long").await;
    let view = cluster
        .wait_for("two rounds", |view| view.jobs.iter().find(|j| j.id == id && j.round >= 2).cloned())
        .await;
    assert_eq!((view.requeues, view.reason.as_str()), (0, ""), "{view:?}");
}
