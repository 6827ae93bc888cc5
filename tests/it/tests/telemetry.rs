//! What is measured, where it is shown, and that it is counted once.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wattmill_it::{
    Cluster, PATIENCE, Signal, cpus, digits, eventually, eventually_within, metric, run, turn,
};
use wattmill_protocol::v1;

/// Seconds of a step of the history.
const STEP: i64 = 10;
const FAST: &str = "[metering]\ninterval_ms = 200";

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Joules that an agent has counted since its state folder was made.
fn counted(cluster: &Cluster, agent: &str) -> f64 {
    metric(&cluster.agent_metrics(agent), "wattmill_node_energy_joules_total", &[]).unwrap()
}

fn joules(energy: &[v1::ScopedEnergy]) -> f64 {
    energy.iter().map(|e| e.microjoules as f64 / 1e6).sum()
}

/// The collector is away for at least `steps` whole steps while an agent goes on metering. Afterwards its
/// history covers the outage at the times when things were measured, and its counter has every joule of it,
/// once.
async fn outage(steps: i64) {
    let mut cluster = Cluster::start("").await;
    cluster.agent("one", &cpus()[0].to_string(), FAST).await;
    cluster.ready(1).await;
    let at_first = cluster.wait_for("energy", |v| (!v.energy.is_empty()).then(|| joules(&v.energy))).await;
    cluster.end_collector(Signal::TERM).await;
    let from = now().div_euclid(STEP) * STEP + STEP;
    let to = from + steps * STEP;
    let frames = steps * STEP * 5;
    let patience = PATIENCE + Duration::from_secs(((steps + 1) * STEP).unsigned_abs());
    eventually_within(patience, "the agent keeps what it measures", async || {
        let waiting = metric(&cluster.agent_metrics("one"), "wattmill_agent_spool_frames", &[])?;
        (now() > to && waiting >= frames as f64).then_some(())
    })
    .await;
    let after_outage = counted(&cluster, "one");
    cluster.start_collector().await;
    // Counters of the collector begin where it first heard of the node: what it lacks is what it lacked then.
    cluster
        .wait_for("every joule of the outage is counted", |view| {
            (joules(&view.energy) >= after_outage).then_some(())
        })
        .await;
    let view = cluster.wait_for("a view", |view| Some(view.clone())).await;
    let (total, counted) = (joules(&view.energy), counted(&cluster, "one"));
    assert!(total > at_first && total <= counted, "collector {total} J, agent {counted} J");

    let request = v1::GetHistoryRequest { node: String::new(), from_unix_seconds: from, to_unix_seconds: to };
    let history = cluster.control().await.get_history(request).await.unwrap().into_inner();
    assert_eq!(i64::from(history.step_seconds), STEP);
    let times: Vec<i64> = history.points.iter().map(|p| p.unix_seconds).collect();
    assert_eq!(times, (0..steps).map(|step| from + step * STEP).collect::<Vec<_>>());
    for point in &history.points {
        assert!(point.power_watts > Some(0.0) && point.nodes == 1, "{point:?}");
    }
    let dropped = metric(&cluster.agent_metrics("one"), "wattmill_agent_spool_dropped_total", &[]);
    assert_eq!(dropped, Some(0.0));
}

#[tokio::test]
async fn an_outage_leaves_no_gap() {
    let _turn = turn();
    outage(1).await;
}

/// A collector that is away for more than a minute: a gap that the collector would leave empty, were it not for
/// what the agent kept, and long enough for the agent's pauses between its tries to grow to their most.
#[tokio::test]
#[ignore = "takes a minute and a half: make test-full runs it"]
async fn a_long_outage_leaves_no_gap() {
    let _turn = turn();
    outage(7).await;
}

/// A peak that was measured on a busy host, as bad as can be: it is raised to what the device does, before that
/// work counts, and η is never above 1.
#[tokio::test]
async fn a_peak_below_what_was_done_is_raised() {
    let _turn = turn();
    let mut cluster = Cluster::start("").await;
    let cpu = cpus()[0].to_string();
    cluster.agent("one", &cpu, FAST).await;
    cluster.ready(1).await;
    let shown = |cluster: &Cluster| {
        let page = cluster.agent_metrics("one");
        metric(&page, "wattmill_device_peak_flops", &[("device", "cpu")])
    };
    let measured = eventually("a peak", async || shown(&cluster)).await;
    cluster.program("one").signal(Signal::TERM);
    cluster.program("one").ended().await;
    let file = cluster.home("one").join("state/peak.json");
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(same(&kept["flops_per_second"], measured), "{kept} {measured}");
    kept["flops_per_second"] = 1000.0.into();
    // As if all of its bursts were made: only work can raise it.
    kept["bursts"] = 5.into();
    std::fs::write(&file, kept.to_string()).unwrap();

    cluster.agent("one", &cpu, FAST).await;
    assert_eq!(eventually("the kept peak", async || shown(&cluster)).await, 1000.0);
    cluster.ready(1).await;
    let job = cluster.submit(&digits(cluster.folder()).replace("epochs = 20", "epochs = 100"), "job").await;
    let view = cluster
        .wait_for("the job ends", |view| {
            let job = view.jobs.iter().find(|j| j.id == job)?;
            let etas = [view.mfu_ratio, job.mfu_ratio];
            assert!(etas.iter().flatten().all(|eta| *eta <= 1.0), "{etas:?}");
            (job.ended && view.mfu_ratio > Some(0.0)).then(|| view.clone())
        })
        .await;
    let raised = eventually("the raised peak", async || shown(&cluster).filter(|peak| *peak > 1e6)).await;
    assert!(view.mfu_ratio.is_some_and(|eta| eta > 0.0 && eta <= 1.0), "{view:#?}");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(same(&kept["flops_per_second"], raised), "it is kept: {kept} {raised}");
    cluster.program("one").says("peak raised").await;
}

/// Two agents that claim one CPU would bill it twice: the second is refused by name, on both sides, and the
/// cluster's joules are the first one's alone.
#[tokio::test]
async fn an_agent_that_claims_anothers_cpus_is_refused() {
    let _turn = turn();
    let mut cluster = Cluster::start("").await;
    let all = cpus().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    cluster.agent("one", &all, FAST).await;
    cluster.ready(1).await;
    cluster.agent("two", &all, FAST).await;
    let reason = format!("both use CPU {}", cpus()[0]);
    cluster.program("two").says(&reason).await;
    cluster.collector().says(&reason).await;
    // Its telemetry may come in: it is shown as a node, and not counted.
    let view = cluster
        .wait_for("telemetry of both", |view| {
            let heard = view.nodes.iter().filter(|n| n.telemetry_age_seconds.is_some()).count();
            (heard == 2 && view.power_watts.is_some()).then(|| view.clone())
        })
        .await;
    let before = joules(&view.energy);
    let view = cluster
        .wait_for("more joules", |view| (joules(&view.energy) > before + 5.0).then(|| view.clone()))
        .await;
    let (first, total) = (counted(&cluster, "one"), joules(&view.energy));
    assert!(total <= first, "the cluster counts {total} J, its only node {first} J");
    let node = |name: &str| view.nodes.iter().find(|n| n.name == name);
    assert!(node("one").unwrap().connected && node("two").is_none_or(|n| !n.connected), "{view:#?}");
}

/// `wattmill nodes` and `/metrics` show the same figures, and both pages are what promtool calls good, while
/// a job runs.
#[tokio::test]
async fn the_tool_and_the_metrics_agree() {
    let _turn = turn();
    let mut cluster = Cluster::of_two("").await;
    let job = digits(cluster.folder()).replace("epochs = 20", "epochs = 2000");
    let id = cluster.submit(&job, "long").await;
    cluster.in_the_middle(&id, 20).await;

    // Figures move with every window: tool and page are read until no window closed between them.
    let nodes = eventually("the same figures from both", async || {
        let before = cluster.collector_metrics();
        let output = run(&mut cluster.tool(&["nodes", "--json"]));
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let nodes: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
        let watts = |text: &str| {
            let watts = |node: &serde_json::Value| {
                metric(text, "wattmill_collector_node_power_watts", &[("node", node["id"].as_str()?)])
            };
            nodes.iter().map(watts).collect::<Option<Vec<f64>>>()
        };
        let told: Option<Vec<f64>> = nodes.iter().map(|n| n["power_watts"].as_f64()).collect();
        let (told, shown, after) = (told?, watts(&before)?, watts(&cluster.collector_metrics())?);
        let equal = told.iter().zip(&shown).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
        (shown == after && equal).then_some(nodes)
    })
    .await;
    assert_eq!(nodes.len(), 2);
    let mut names: Vec<&str> = nodes.iter().map(|n| n["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["one", "two"]);

    eventually("agent one's committed work is in its metrics", async || {
        metric(&cluster.agent_metrics("one"), "wattmill_useful_flops_total", &[]).filter(|flops| *flops > 0.0)
    })
    .await;
    let pages = [
        ("the collector", cluster.collector_metrics(), "wattmill_job_samples_total"),
        ("agent one", cluster.agent_metrics("one"), "wattmill_useful_flops_total"),
        ("agent two", cluster.agent_metrics("two"), "wattmill_node_energy_joules_total"),
    ];
    for (whose, page, holds) in pages {
        assert!(metric(&page, holds, &[]).is_some_and(|value| value > 0.0), "{holds} of {whose}:\n{page}");
        promtool(whose, page);
    }
    let output = run(&mut cluster.tool(&["cancel", &id]));
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let ended = cluster.wait_for("the end", |v| v.jobs.iter().find(|j| j.id == id && j.ended).cloned()).await;
    assert_eq!(ended.state(), v1::JobState::Cancelled);
    cluster.program("one").signal(Signal::TERM);
    assert_eq!(cluster.program("one").ended().await.code(), Some(0));
}

fn promtool(whose: &str, page: String) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("NOT CHECKED: promtool cannot be run ({error}); `make test` installs it");
            return;
        }
        Err(error) => panic!("promtool cannot be run ({error}); `make test` installs it"),
    };
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, page.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{whose}: {said}");
}

/// Whether a number in JSON is this one, but for the last bit that reading it may cost.
fn same(json: &serde_json::Value, number: f64) -> bool {
    json.as_f64().is_some_and(|read| (read - number).abs() <= number.abs() * 2.0 * f64::EPSILON)
}
