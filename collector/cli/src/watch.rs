//! `wattmill watch`, and the live progress of a job.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::Streaming;
use wattmill_protocol::v1;

use crate::client::{Client, Error};
use crate::{Common, jobs, nodes, show};

/// How often a view is asked for.
const INTERVAL_MS: u32 = 200;
/// How often a plain line is printed: a log is not flooded.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Options of `watch`.
#[derive(Args)]
pub(crate) struct Options {
    /// Show the cluster once and return.
    #[arg(long)]
    once: bool,
}

/// The cluster as it changes.
pub(crate) async fn stream(client: &mut Client) -> Result<Streaming<v1::ClusterView>, Error> {
    Ok(client.control.watch(v1::WatchRequest { interval_ms: INTERVAL_MS }).await?.into_inner())
}

/// Follows the cluster until interrupted or until the collector stops.
pub(crate) async fn run(common: &Common, options: &Options) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let mut views = stream(&mut client).await?;
    let mut progress = Progress::new(common.json);
    loop {
        let view = tokio::select! {
            view = views.message() => view?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(view) = view else { break };
        if options.once {
            once(&view, common.json);
            break;
        }
        progress.show(&view, None);
    }
    progress.finish();
    Ok(())
}

fn once(view: &v1::ClusterView, json: bool) {
    if json {
        println!("{}", cluster_json(view));
        return;
    }
    println!("{}\n", headline(view));
    println!("{}\n", nodes::table(&view.nodes));
    println!("{}", jobs::table(&view.jobs));
}

fn cluster_json(view: &v1::ClusterView) -> serde_json::Value {
    serde_json::json!({
        "unix_ms": view.unix_ms,
        "cluster": view.cluster,
        "power_watts": view.power_watts,
        "eta": view.mfu_ratio,
        "sigma": view.storage_capacity_ratio,
        "objective": view.objective_ratio,
        "telemetry_coverage_ratio": view.telemetry_coverage_ratio,
        "flops_per_joule": view.flops_per_joule,
        "nodes": view.nodes.len(),
        "jobs": view.jobs.iter().map(|job| jobs::as_json(job, &crate::Outputs::default())).collect::<Vec<_>>(),
    })
}

/// The cluster in a line.
fn headline(view: &v1::ClusterView) -> String {
    format!(
        "cluster  {}  η {}  σ {}  η·σ {}  {}  telemetry {}",
        show::maybe(view.power_watts, |w| show::scaled(w, "W")),
        show::maybe(view.mfu_ratio, show::percent),
        show::maybe(view.storage_capacity_ratio, show::percent),
        show::maybe(view.objective_ratio, show::percent),
        show::maybe(view.flops_per_joule, |f| show::scaled(f, "FLOP/J")),
        show::maybe(view.telemetry_coverage_ratio, show::percent),
    )
}

/// A node in a line.
fn node_line(node: &v1::NodeView) -> String {
    let state = match (node.connected, node.running) {
        (false, _) => "lost".to_owned(),
        (true, leases) => format!("{leases} leases"),
    };
    format!(
        "  {:<12} {:>9}  {:>12}  {:>16}  {state}",
        show::text(&node.name),
        show::maybe(node.power_watts, |w| show::scaled(w, "W")),
        show::joules(Some(nodes::energy(node).into())),
        show::maybe(node.samples_per_second, |r| show::scaled(r, "samples/s")),
    )
}

/// A job in a line.
fn job_line(job: &v1::JobView) -> String {
    format!(
        "{} {} round {}/{}  loss {}  accuracy {}  η {}  {}  {}",
        job.id,
        show::state(job),
        job.round,
        job.rounds,
        show::maybe(job.loss, |l| format!("{l:.4}")),
        show::maybe(job.accuracy, |a| format!("{a:.4}")),
        show::maybe(job.mfu_ratio, show::percent),
        show::maybe(job.samples_per_joule, |s| show::scaled(s, "samples/J")),
        show::joules(job.committed_energy),
    )
}

/// Live progress: a few lines that redraw on a terminal, plain lines elsewhere.
pub(crate) struct Progress {
    /// `None` without a terminal.
    screen: Option<Screen>,
    json: bool,
    printed: Option<Instant>,
}

struct Screen {
    bars: MultiProgress,
    head: ProgressBar,
    nodes: Vec<ProgressBar>,
    job: ProgressBar,
}

impl Progress {
    /// With `json`, plain lines go to standard error, so that standard output holds JSON alone.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal() && !json;
        Self { screen: terminal.then(Screen::new), json, printed: None }
    }

    /// Shows the cluster and, where one is named, one job alone.
    pub(crate) fn show(&mut self, view: &v1::ClusterView, job: Option<&str>) {
        let shown = |j: &&v1::JobView| job.map_or(!j.ended, |job| j.id == job);
        let jobs: Vec<&v1::JobView> = view.jobs.iter().filter(shown).collect();
        if let Some(screen) = &mut self.screen {
            screen.draw(view, &jobs);
            return;
        }
        let ended = jobs.iter().any(|job| job.ended);
        if !ended && self.printed.is_some_and(|printed| printed.elapsed() < PLAIN_EVERY) {
            return;
        }
        self.printed = Some(Instant::now());
        self.say(&headline(view));
        for node in &view.nodes {
            self.say(&node_line(node));
        }
        for job in jobs {
            self.say(&format!("  {}", job_line(job)));
        }
    }

    /// Says a line between the others.
    pub(crate) fn say(&self, line: &str) {
        match &self.screen {
            // A terminal that went away is not ours to mend.
            Some(screen) => drop(screen.bars.println(line)),
            None if self.json => eprintln!("{line}"),
            None => println!("{line}"),
        }
    }

    /// Leaves the last picture where it is.
    pub(crate) fn finish(&mut self) {
        if let Some(screen) = self.screen.take() {
            let all = screen.nodes.iter().chain([&screen.head, &screen.job]);
            all.for_each(ProgressBar::abandon);
        }
    }
}

impl Screen {
    fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(5));
        let head = bars.add(line_bar());
        let job = bars.add(ProgressBar::new(1));
        let colour = if std::env::var_os("NO_COLOR").is_none() { ".green" } else { "" };
        let template = format!("[{{bar:24{colour}}}] {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            job.set_style(style.progress_chars("=> "));
        }
        Self { bars, head, nodes: Vec::new(), job }
    }

    fn draw(&mut self, view: &v1::ClusterView, jobs: &[&v1::JobView]) {
        self.head.set_message(headline(view));
        while self.nodes.len() < view.nodes.len() {
            self.nodes.push(self.bars.insert_before(&self.job, line_bar()));
        }
        for (bar, node) in self.nodes.iter().zip(&view.nodes) {
            bar.set_message(node_line(node));
        }
        if let Some(job) = jobs.first() {
            self.job.set_length(u64::from(job.rounds.max(1)));
            self.job.set_position(u64::from(job.round));
            self.job.set_message(job_line(job));
        } else {
            self.job.set_message("no job runs");
        }
    }
}

fn line_bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    bar
}
