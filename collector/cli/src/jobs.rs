//! `wattmill submit`, `jobs`, `job` and `cancel`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use wattmill_protocol::job::Job;
use wattmill_protocol::{Energy, Hash, v1};

use crate::client::{Client, Error, Seen, Watch};
use crate::show::say;
use crate::watch::{self, Progress};
use crate::{Common, Outputs, show};

/// Largest job file in bytes.
const MAX_JOB_FILE_BYTES: u64 = 1 << 20;
/// How often a followed job is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// How long a collector that went away is waited for: a restart takes seconds, a reboot minutes.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// Options of `submit`.
#[derive(Args)]
pub(crate) struct Submit {
    /// The job file; docs/job-file.md describes it.
    file: PathBuf,
    /// Print the job's identity and return at once.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// Options of `job`.
#[derive(Args)]
pub(crate) struct Show {
    /// The job, as `wattmill jobs` lists it.
    job: String,
    #[command(flatten)]
    outputs: Outputs,
}

/// Options of `waive`.
#[derive(Args)]
pub(crate) struct Waive {
    /// The job, as `wattmill jobs` lists it.
    job: String,
    /// One shard of the current round alone, as the job's reason names it.
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
}

/// Submits a job file.
pub(crate) async fn submit(common: &Common, options: &Submit) -> Result<(), Error> {
    let toml = read(&options.file)?;
    // Checked here too: a mistake is named with its file before anything is asked of a collector.
    Job::from_toml(&toml).map_err(|error| Error::Job { path: options.file.clone(), error })?;
    let mut client = Client::connect(&common.collector).await?;
    let job = client.submit(toml).await?;
    if options.no_wait {
        if common.json {
            say!("{}", json!({ "job": job }))?;
        } else {
            say!("{job}")?;
        }
        return Ok(());
    }
    if !common.json {
        say!("job {job} submitted")?;
    }
    let view = follow(&client, &job, &mut Progress::new(common.json)).await?;
    finish(&mut client, view, &options.outputs, common.json).await
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = fs::metadata(path).map_err(Error::file("read", path))?.len();
    if bytes > MAX_JOB_FILE_BYTES {
        let source =
            std::io::Error::other(format!("{bytes} bytes; a job file has at most {MAX_JOB_FILE_BYTES}"));
        return Err(Error::file("read", path)(source));
    }
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Shows a job until it ends. A collector that goes away is waited for: the job outlives it.
pub(crate) async fn follow(
    client: &Client,
    job: &str,
    progress: &mut Progress,
) -> Result<v1::JobView, Error> {
    let next = || format!("the job goes on without this command: `wattmill job {job}` shows how it stands");
    let mut watch = Watch::open(client, FOLLOW_EVERY, Some(GIVE_UP_AFTER)).await?;
    loop {
        match watch.next().await.map_err(|error| error.with_next(next))? {
            Seen::View(view) => {
                progress.show(&view, Some(job));
                if let Some(view) = view.jobs.into_iter().find(|j| j.id == job && j.ended) {
                    progress.finish();
                    return Ok(view);
                }
            }
            Seen::Lost(error) => progress.warn(&watch::lost(&error)),
            Seen::Back => progress.warn("the collector answers again"),
        }
    }
}

/// A job that did not finish is an error.
pub(crate) fn check_ended(view: &v1::JobView) -> Result<(), Error> {
    let ended = |state, bad_input| Error::JobEnded {
        job: view.id.clone(),
        state,
        reason: show::text(&view.reason),
        bad_input,
    };
    match view.state() {
        v1::JobState::Failed => Err(ended("failed", view.bad_input)),
        v1::JobState::Cancelled => Err(ended("was cancelled", false)),
        _ => Ok(()),
    }
}

async fn finish(
    client: &mut Client,
    view: v1::JobView,
    outputs: &Outputs,
    as_json: bool,
) -> Result<(), Error> {
    let (view, report) = client.job(&view.id).await?;
    let ended = check_ended(&view);
    // A job that did not finish has no model worth the name, but a bill.
    let model = outputs.model.clone().filter(|_| ended.is_ok());
    let outputs = Outputs { model, report: outputs.report.clone() };
    save(client, &view, &report, &outputs).await?;
    print(&view, &outputs, as_json)?;
    ended
}

/// Saves what was asked for.
pub(crate) async fn save(
    client: &mut Client,
    view: &v1::JobView,
    report: &str,
    outputs: &Outputs,
) -> Result<(), Error> {
    if let Some(path) = &outputs.model {
        let hash = Hash::try_from(&view.model_hash[..])
            .map_err(|_| Error::Answer(format!("job {} has no model yet", view.id)))?;
        let bytes = client.blob(hash).await?;
        fs::write(path, bytes).map_err(Error::file("write", path))?;
    }
    if let Some(path) = &outputs.report {
        fs::write(path, report).map_err(Error::file("write", path))?;
    }
    Ok(())
}

/// Lists the jobs.
pub(crate) async fn list(common: &Common) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let jobs = client.ask(async |control| control.list_jobs(v1::ListJobsRequest {}).await).await?.jobs;
    if common.json {
        let jobs: Vec<Value> = jobs.iter().map(|job| as_json(job, &Outputs::default())).collect();
        say!("{:#}", Value::Array(jobs))?;
    } else if jobs.is_empty() {
        say!("no jobs: `wattmill submit job.toml` submits one")?;
    } else {
        say!("{}", table(&jobs))?;
    }
    Ok(())
}

/// Shows one job.
pub(crate) async fn show(common: &Common, options: &Show) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let (view, report) = client.job(&options.job).await?;
    save(&mut client, &view, &report, &options.outputs).await?;
    print(&view, &options.outputs, common.json)?;
    Ok(())
}

/// Cancels a job, where there is anything left to cancel.
pub(crate) async fn cancel(common: &Common, job: String) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let request = v1::CancelJobRequest { job: job.clone() };
    let reply = client.ask(async |control| control.cancel_job(request).await).await?;
    let stood = match reply.state() {
        // An older collector does not say where the job stood.
        v1::JobState::Unspecified | v1::JobState::Preparing | v1::JobState::Training => None,
        v1::JobState::Settling => Some("trained"),
        v1::JobState::Finished => Some("finished"),
        v1::JobState::Failed => Some("failed"),
        v1::JobState::Cancelled => Some("cancelled"),
    };
    match stood {
        Some(state) if state != "cancelled" => return Err(Error::NotCancelled { job, state }),
        _ if common.json => say!("{}", json!({ "job": job, "cancelled": true }))?,
        Some(_) => say!("job {job} was cancelled already")?,
        None => say!("job {job} cancelled")?,
    }
    Ok(())
}

/// Has quarantined shards tried anew.
pub(crate) async fn waive(common: &Common, options: Waive) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let request = v1::WaiveShardsRequest { job: options.job.clone(), shard: options.shard };
    let shards = client.ask(async |control| control.waive_shards(request).await).await?.shards;
    if common.json {
        say!("{}", json!({ "job": options.job, "shards": shards }))?;
        return Ok(());
    }
    let shards: Vec<String> = shards.iter().map(u32::to_string).collect();
    say!("job {}: tried anew: shard {}", options.job, shards.join(", "))?;
    Ok(())
}

/// The jobs as a table.
pub(crate) fn table(jobs: &[v1::JobView]) -> String {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            vec![
                job.id.clone(),
                show::state(job).to_owned(),
                format!("{}/{}", job.round, job.rounds),
                show::maybe(job.loss, |l| format!("{l:.4}")),
                show::maybe(job.accuracy, |a| format!("{a:.4}")),
                show::joules(job.committed_energy),
                show::joules(job.wasted_energy),
                show::maybe(job.samples_per_joule, |s| show::scaled(s, "samples/J")),
                show::maybe(job.mfu_ratio, show::percent),
                show::text(&job.reason),
            ]
        })
        .collect();
    let head =
        ["JOB", "STATE", "ROUNDS", "LOSS", "ACCURACY", "ENERGY", "WASTED", "EFFICIENCY", "η", "REASON"];
    show::table(&head, &rows)
}

fn print(view: &v1::JobView, outputs: &Outputs, json: bool) -> Result<(), Error> {
    if json {
        return say!("{}", as_json(view, outputs));
    }
    say!("{}", table(std::slice::from_ref(view)))?;
    if !view.nodes.is_empty() {
        say!("\n{}", shares(view))?;
    }
    for (what, path) in [("model", &outputs.model), ("energy report", &outputs.report)] {
        if let Some(path) = path {
            say!("{what}: {}", path.display())?;
        }
    }
    Ok(())
}

/// Who did what, as a table.
pub(crate) fn shares(view: &v1::JobView) -> String {
    let rows: Vec<Vec<String>> = view
        .nodes
        .iter()
        .map(|share| {
            let name = if share.name.is_empty() { &share.node } else { &share.name };
            vec![
                show::text(name),
                share.shards.to_string(),
                share.samples.to_string(),
                show::joules(share.committed_energy),
                show::joules(share.wasted_energy),
            ]
        })
        .collect();
    show::table(&["NODE", "SHARDS", "SAMPLES", "ENERGY", "WASTED"], &rows)
}

/// Joules by source; amounts are not rounded.
pub(crate) fn joules_by_source(energy: Energy) -> Value {
    energy
        .parts()
        .map(|(source, microjoules)| (source.as_str().to_owned(), json!(microjoules as f64 / 1e6)))
        .collect()
}

/// Committed and wasted joules of a job.
pub(crate) fn energies(view: &v1::JobView) -> (Energy, Energy) {
    (
        Energy::from(view.committed_energy.unwrap_or_default()),
        Energy::from(view.wasted_energy.unwrap_or_default()),
    )
}

/// A job as JSON shows it.
pub(crate) fn as_json(view: &v1::JobView, outputs: &Outputs) -> Value {
    let (committed, wasted) = energies(view);
    json!({
        "job": view.id,
        "name": view.name,
        "state": show::state(view),
        "reason": view.reason,
        "bad_input": view.bad_input,
        "rounds": view.round,
        "rounds_total": view.rounds,
        "epochs": view.epochs,
        "loss": view.loss,
        "accuracy": view.accuracy,
        "training_accuracy": view.training_accuracy,
        "samples": view.samples,
        "eta": view.mfu_ratio,
        "samples_per_joule": view.samples_per_joule,
        "energy_joules": joules_by_source(committed + wasted),
        "committed_joules": committed.total_joules(),
        "wasted_joules": wasted.total_joules(),
        "idle_joules": view.idle_microjoules as f64 / 1e6,
        "unconfirmed_joules": view.unconfirmed_microjoules as f64 / 1e6,
        "requeues": view.requeues,
        "useful_flops": view.useful_flops,
        "elapsed_seconds": view.elapsed_seconds,
        "numerics": view.numerics,
        "model_sha256": Hash::try_from(&view.model_hash[..]).ok().map(|hash| hash.to_string()),
        "model": outputs.model,
        "report": outputs.report,
        "nodes": view.nodes.iter().map(|share| json!({
            "node": share.node,
            "name": share.name,
            "shards": share.shards,
            "samples": share.samples,
            "committed_joules": Energy::from(share.committed_energy.unwrap_or_default()).total_joules(),
            "wasted_joules": Energy::from(share.wasted_energy.unwrap_or_default()).total_joules(),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use wattmill_protocol::exit;

    use super::*;

    #[test]
    fn only_bad_input_ends_with_65() {
        let code = |state: v1::JobState, bad_input| {
            let view = v1::JobView { state: state.into(), bad_input, ended: true, ..Default::default() };
            check_ended(&view).map_or_else(|error| error.exit_code(), |()| exit::OK)
        };
        assert_eq!(code(v1::JobState::Failed, true), exit::DATA);
        assert_eq!(code(v1::JobState::Failed, false), exit::FAILURE);
        assert_eq!(code(v1::JobState::Cancelled, false), exit::FAILURE);
        assert_eq!(code(v1::JobState::Finished, false), exit::OK);
    }
}
