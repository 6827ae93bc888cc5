//! `wattmill demo`: a cluster of real processes on this machine trains a real job, and is stopped again.

mod cluster;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::Signal;
use serde_json::json;
use tokio_stream::StreamExt as _;
use wattmill_protocol::{Hash, v1};

use crate::client::{Client, Error};
use crate::show::say;
use crate::watch::Progress;
use crate::{Outputs, jobs, show};
use cluster::Cluster;

/// The handwritten digits, so that the demo needs no file beside the program. Attribution stands in
/// tests/fixtures/README.md.
const DIGITS: &[u8] = include_bytes!("../../../../tests/fixtures/digits.csv.gz");
/// The shipped job file.
const JOB: &str = include_str!("../../../../jobs/digits.toml");
/// The address of the data in it.
const JOB_DATA_URI: &str = "file:///usr/share/wattmill/digits.csv.gz";
/// The first dashboard.
const DASHBOARD: &str = include_str!("../../../../dashboards/cluster.json");
/// How often the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the cluster may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Rounds that `--kill-one` lets pass first, so that there is something to lose.
const ROUNDS_BEFORE_KILL: u32 = 10;

/// Options of `demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// Kill one agent (SIGKILL) while it holds a lease: the model stays the same to the bit.
    #[arg(long)]
    kill_one: bool,
    /// Seed of the first parameters and of the order of the samples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Agents to start [default: 2, or 3 from 3 CPUs on].
    #[arg(long, value_name = "N")]
    agents: Option<usize>,
    /// Where the model, the report, the dashboard and the logs go [default: a new temporary folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) async fn run(options: &Options, as_json: bool) -> Result<(), Error> {
    let begun = Instant::now();
    let folder = options.out.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("wattmill-demo-{}", uuid::Uuid::new_v4().simple()))
    });
    fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
    let progress = Progress::new(as_json);
    let (cluster, mut watch) = Cluster::start(&folder, options.agents, &progress).await?;
    let outcome = tokio::select! {
        outcome = train(&cluster, &folder, options, progress, as_json) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Error::Demo("interrupted".to_owned())),
        failed = watch.failed() => Err(Error::Demo(failed)),
    };
    cluster.stop().await;
    let report = outcome?;
    print(&report, begun, as_json)
}

/// What is said at the end.
struct Finished {
    view: v1::JobView,
    sigma: Option<f64>,
    outputs: Outputs,
    dashboard: PathBuf,
    report: serde_json::Value,
}

async fn train(
    cluster: &Cluster,
    folder: &Path,
    options: &Options,
    mut progress: Progress,
    as_json: bool,
) -> Result<Finished, Error> {
    let data = write(folder, "digits.csv.gz", DIGITS)?;
    let dashboard = write(folder, "cluster-dashboard.json", DASHBOARD.as_bytes())?;
    let job = job_file(&data, options.seed)?;
    write(folder, "job.toml", job.as_bytes())?;
    let mut client = Client::connect(&cluster.url).await?;
    ready(&mut client, cluster.agents()).await?;
    let id = client.submit(job).await?;
    if options.kill_one
        && let Some(killed) = kill_one(&mut client, cluster, &id).await?
    {
        progress.say(&format!("{killed} was killed (SIGKILL) with a live lease"));
    }
    let view = jobs::follow(&client, &id, &mut progress).await?;
    jobs::check_ended(&view)?;
    let (view, report) = client.job(&id).await?;
    let outputs =
        Outputs { model: Some(folder.join("model.safetensors")), report: Some(folder.join("energy.json")) };
    jobs::save(&mut client, &view, &report, &outputs).await?;
    let cluster_view = client.watch(LOOK_EVERY).await?.next().await.transpose()?;
    let sigma = cluster_view.and_then(|v| v.storage_capacity_ratio);
    let report = serde_json::from_str(&report).map_err(|e| Error::Answer(e.to_string()))?;
    if !as_json {
        progress.say("");
    }
    Ok(Finished { view, sigma, outputs, dashboard, report })
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(Error::file("write", &path))?;
    fs::canonicalize(&path).map_err(Error::file("find", &path))
}

/// The shipped job file with the data's place and the seed of this run.
fn job_file(data: &Path, seed: u64) -> Result<String, Error> {
    // A URI's path has its odd bytes percent-encoded.
    let encode = |b: &u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
            (*b as char).to_string()
        }
        other => format!("%{other:02X}"),
    };
    let path: String = data.as_os_str().as_encoded_bytes().iter().map(encode).collect();
    let text = JOB
        .replace(JOB_DATA_URI, &format!("file://{path}"))
        .replace("seed = 1\n", &format!("seed = {seed}\n"));
    let parsed = wattmill_protocol::job::Job::from_toml(&text);
    let fits = parsed.is_ok_and(|job| job.training.seed == seed && job.data.uri.ends_with(&path));
    fits.then_some(text).ok_or_else(|| Error::Demo("the shipped job file was changed beyond use".to_owned()))
}

/// Waits until every agent takes work and its peak and power are known.
async fn ready(client: &mut Client, agents: usize) -> Result<(), Error> {
    let all = |nodes: &[v1::NodeView]| {
        let ready = |n: &&v1::NodeView| n.connected && n.peak_flops.is_some() && n.power_watts.is_some();
        nodes.iter().filter(ready).count() == agents
    };
    let wait = async {
        let mut views = client.watch(LOOK_EVERY).await?;
        while let Some(view) = views.next().await.transpose()? {
            if all(&view.nodes) {
                return Ok(());
            }
        }
        Err(client.ended())
    };
    tokio::time::timeout(READY_WITHIN, wait).await.unwrap_or_else(|_| {
        Err(Error::Demo(format!(
            "the agents were not ready within {} s; their logs say why",
            READY_WITHIN.as_secs()
        )))
    })
}

/// Stops an agent, waits until it is sure to hold a lease, and kills it; `None` where the job ended before
/// there was one.
async fn kill_one(client: &mut Client, cluster: &Cluster, job: &str) -> Result<Option<String>, Error> {
    let mut views = client.watch(LOOK_EVERY).await?;
    let mut stopped: Option<String> = None;
    while let Some(view) = views.next().await.transpose()? {
        let job = view.jobs.iter().find(|j| j.id == job);
        if job.is_some_and(|job| job.ended) {
            return Ok(None);
        }
        let round = job.map_or(0, |job| job.round);
        match &stopped {
            None if round >= ROUNDS_BEFORE_KILL => {
                let victim = cluster.last_agent();
                cluster.signal(&victim, Signal::STOP)?;
                stopped = Some(victim);
            }
            Some(victim) if view.nodes.iter().any(|n| n.name == *victim && n.running > 0) => {
                cluster.signal(victim, Signal::KILL)?;
                return Ok(Some(victim.clone()));
            }
            _ => {}
        }
    }
    Err(client.ended())
}

fn print(finished: &Finished, begun: Instant, as_json: bool) -> Result<(), Error> {
    let Finished { view, sigma, outputs, dashboard, report } = finished;
    let objective = view.mfu_ratio.zip(*sigma).map(|(eta, sigma)| eta * sigma);
    if as_json {
        let mut object = jobs::as_json(view, outputs);
        object["sigma"] = json!(sigma);
        object["objective"] = json!(objective);
        object["dashboard"] = json!(dashboard);
        object["cluster_energy_joules"] = report["energy_joules"]["cluster"].clone();
        object["wall_seconds"] = json!(begun.elapsed().as_secs_f64());
        return say!("{object}");
    }
    let (committed, wasted) = jobs::energies(view);
    let model = Hash::try_from(&view.model_hash[..]).map(|h| h.to_string()).unwrap_or_default();
    say!("Energy report of job {}", view.id)?;
    say!("{}\n", jobs::shares(view))?;
    let rows = [
        ("accuracy on held-out rows", show::maybe(view.accuracy, |a| format!("{a:.4}"))),
        ("training loss", show::maybe(view.loss, |l| format!("{l:.4}"))),
        ("committed work", committed.to_string()),
        ("wasted work", format!("{wasted}, {} requeues", view.requeues)),
        ("idle while it ran, whole cluster", show::scaled(view.idle_microjoules as f64 / 1e6, "J")),
        ("η, compute utilisation", show::maybe(view.mfu_ratio, show::percent)),
        ("σ, storage utilisation", show::maybe(*sigma, show::percent)),
        ("η·σ", show::maybe(objective, show::percent)),
        (
            "efficiency, idle joules too",
            show::maybe(view.samples_per_joule, |s| show::scaled(s, "samples/J")),
        ),
        (
            "time",
            format!(
                "{:.1} s of training, {:.1} s in all",
                view.elapsed_seconds,
                begun.elapsed().as_secs_f64()
            ),
        ),
    ];
    for (what, figure) in rows {
        say!("{what:<33} {figure}")?;
    }
    say!("")?;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    say!("model      {} (SHA-256 {model})", path(&outputs.model))?;
    say!("report     {}", path(&outputs.report))?;
    say!("dashboard  {} (import it into Grafana)", dashboard.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_job_takes_any_path_and_seed() {
        let text = job_file(Path::new("/tmp/a b%/ü/digits.csv.gz"), 7).unwrap();
        let job = wattmill_protocol::job::Job::from_toml(&text).unwrap();
        assert_eq!(job.data.uri, "file:///tmp/a%20b%25/%C3%BC/digits.csv.gz");
        assert_eq!(job.training.seed, 7);
    }
}
