//! `wattmill` beside a collector that goes away, and jobs that are over.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use wattmill_it::{Cluster, Signal, digits, eventually, run, turn};

/// `wattmill submit` waits for a collector that is killed and comes back, says so, and saves the model.
#[tokio::test]
async fn a_submission_outlives_the_collector() {
    let _turn = turn();
    let mut cluster = Cluster::of_two("[leases]\nsettle_ms = 10000").await;
    let file = cluster.folder().join("job.toml");
    fs::write(&file, digits(cluster.folder())).unwrap();
    let model = cluster.folder().join("model.safetensors");
    let mut command = cluster.tool(&["submit", "--json", file.to_str().unwrap(), "--model"]);
    command.arg(&model);
    let submit = std::thread::spawn(move || run(&mut command));
    let id = cluster.wait_for("the job", |view| view.jobs.first().map(|job| job.id.clone())).await;
    cluster.in_the_middle(&id, 20).await;
    cluster.end_collector(Signal::KILL).await;
    cluster.start_collector().await;
    let output = submit.join().unwrap();
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    for words in ["lost the collector", "waiting for it", "the collector answers again"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
    let view: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((view["job"].as_str(), view["state"].as_str()), (Some(&id as &str), Some("finished")));
    assert!(model.exists());

    // It is over: there is nothing to cancel, and nothing to waive.
    let output = run(&mut cluster.tool(&["cancel", &id]));
    assert_eq!(output.code, Some(1), "{}", output.stdout);
    assert!(output.stderr.contains("is finished already"), "{}", output.stderr);
    let output = run(&mut cluster.tool(&["waive", &id]));
    assert_eq!(output.code, Some(1), "{}", output.stdout);
    assert!(output.stderr.contains("is quarantined"), "{}", output.stderr);
}

/// `wattmill watch --json` writes an object a line, and ends when its reader leaves, as `head` does.
#[tokio::test]
async fn a_watch_in_json_is_an_object_a_line() {
    let _turn = turn();
    let cluster = Cluster::start("").await;
    let mut command = cluster.tool(&["watch", "--json"]);
    let mut watch = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(line["unix_ms"].as_i64() > Some(0) && line["jobs"].is_array() && line["nodes"].is_array());
    }
    drop(lines);
    let status = eventually("the watch ends", async || watch.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
}

/// A collector that is there and does not answer, as behind a partition: the watch notices, says so, and goes on
/// once it answers; a single question is given up.
#[tokio::test]
async fn a_collector_that_hangs_is_noticed() {
    let _turn = turn();
    let mut cluster = Cluster::start("").await;
    let mut command = cluster.tool(&["watch"]);
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watch = pipes.spawn().unwrap();
    let mut views = BufReader::new(watch.stdout.take().unwrap()).lines();
    views.next().unwrap().unwrap();
    // Read on, so that the pipe is never full.
    std::thread::spawn(move || views.count());
    let said = Arc::<Mutex<Vec<String>>>::default();
    let (warnings, sink) = (BufReader::new(watch.stderr.take().unwrap()).lines(), Arc::clone(&said));
    std::thread::spawn(move || {
        warnings.map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line));
    });
    let says = async |words: &str| {
        eventually(words, async || {
            said.lock().unwrap().iter().any(|line| line.contains(words)).then_some(())
        })
        .await;
    };
    cluster.collector().signal(Signal::STOP);
    let output = run(&mut cluster.tool(&["jobs"]));
    assert_eq!(output.code, Some(1), "{}", output.stdout);
    assert!(output.stderr.contains("the collector at"), "{}", output.stderr);
    says("waiting for it").await;
    cluster.collector().signal(Signal::CONT);
    says("the collector answers again").await;
    wattmill_it::signal(watch.id(), Signal::INT);
    let status = eventually("the watch ends", async || watch.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0), "interrupted, it ends in order");
}
