//! `wattmill watch`, and the live progress of a job.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_stream::StreamExt as _;
use wattmill_protocol::v1;

use crate::client::{Client, Error, Seen, Watch};
use crate::show::say;
use crate::{Common, jobs, nodes, show};

/// How often a terminal is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How often a line is printed elsewhere: a log is not flooded.
const PRINT_EVERY: Duration = Duration::from_secs(1);

/// Options of `watch`.
#[derive(Args)]
pub(crate) struct Options {
    /// Show the cluster once and return.
    #[arg(long)]
    once: bool,
}

/// Follows the cluster until interrupted. A collector that goes away is waited for.
pub(crate) async fn run(common: &Common, options: &Options) -> Result<(), Error> {
    let mut client = Client::connect(&common.collector).await?;
    let mut progress = Progress::new(common.json);
    if options.once {
        let view = client.watch(DRAW_EVERY).await?.next().await.unwrap_or_else(|| Err(client.ended()))?;
        return once(&view, common.json);
    }
    let mut watch = Watch::open(&client, progress.interval(), None).await?;
    loop {
        let seen = tokio::select! {
            seen = watch.next() => seen?,
            _ = tokio::signal::ctrl_c() => break,
        };
        match seen {
            // A reader that left, as `head` does, has seen enough.
            Seen::View(view) if common.json => {
                if writeln!(std::io::stdout(), "{}", cluster_json(&view)).is_err() {
                    break;
                }
            }
            Seen::View(view) => progress.show(&view, None),
            Seen::Lost(error) => progress.warn(&lost(&error)),
            Seen::Back => progress.warn("the collector answers again"),
        }
    }
    progress.finish();
    Ok(())
}

/// A loss in words.
pub(crate) fn lost(error: &Error) -> String {
    let what = error.to_string();
    format!("{}; waiting for it", what.split(';').next().unwrap_or_default())
}

fn once(view: &v1::ClusterView, json: bool) -> Result<(), Error> {
    if json {
        return say!("{}", cluster_json(view));
    }
    say!("{}\n", headline(view))?;
    say!("{}\n", nodes::table(&view.nodes))?;
    say!("{}", jobs::table(&view.jobs))
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
        "nodes": view.nodes.iter().map(nodes::as_json).collect::<Vec<_>>(),
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
    let reason =
        if job.reason.is_empty() { String::new() } else { format!("  ({})", show::text(&job.reason)) };
    format!(
        "{} {} round {}/{}  loss {}  accuracy {}  η {}  {}  {}{reason}",
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
    /// A bar for each job that is shown.
    jobs: BTreeMap<String, ProgressBar>,
    /// Stands where no job runs.
    none: ProgressBar,
    style: ProgressStyle,
}

impl Progress {
    /// With `json`, plain lines go to standard error, so that standard output holds JSON alone.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal() && !json;
        let screen = || Screen::new(ProgressDrawTarget::stdout_with_hz(5), colours());
        Self { screen: terminal.then(screen), json, printed: None }
    }

    /// How often there is something to show.
    pub(crate) fn interval(&self) -> Duration {
        if self.screen.is_some() { DRAW_EVERY } else { PRINT_EVERY }
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
        // A view comes a little early now and then: nearly a second is one.
        let soon = |printed: Instant| printed.elapsed() < PRINT_EVERY.mul_f64(0.9);
        if !ended && self.printed.is_some_and(soon) {
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
            // A terminal or reader that went away is not ours to mend.
            Some(screen) => drop(screen.bars.println(line)),
            None if self.json => eprintln!("{line}"),
            None => drop(writeln!(std::io::stdout(), "{line}")),
        }
    }

    /// Says what is amiss, on standard error where nothing is redrawn.
    pub(crate) fn warn(&self, line: &str) {
        match &self.screen {
            Some(_) => self.say(line),
            None => eprintln!("wattmill: {line}"),
        }
    }

    /// Leaves the last picture where it is.
    pub(crate) fn finish(&mut self) {
        if let Some(screen) = self.screen.take() {
            let all = screen.nodes.iter().chain(screen.jobs.values()).chain([&screen.head, &screen.none]);
            all.for_each(ProgressBar::abandon);
        }
    }
}

/// Whether colours are wanted (no-color.org).
pub(crate) fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Screen {
    fn new(target: ProgressDrawTarget, colours: bool) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        let head = bars.add(line_bar());
        let none = bars.add(line_bar());
        let colour = if colours { ".green" } else { "" };
        let template = format!("[{{bar:24{colour}}}] {{msg}}");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style.progress_chars("=> ");
        Self { bars, head, nodes: Vec::new(), jobs: BTreeMap::new(), none, style }
    }

    fn draw(&mut self, view: &v1::ClusterView, jobs: &[&v1::JobView]) {
        self.head.set_message(headline(view));
        while self.nodes.len() < view.nodes.len() {
            let above = self.nodes.last().unwrap_or(&self.head);
            self.nodes.push(self.bars.insert_after(above, line_bar()));
        }
        for (bar, node) in self.nodes.iter().zip(&view.nodes) {
            bar.set_message(node_line(node));
        }
        let gone = self.jobs.extract_if(.., |id, _| jobs.iter().all(|job| job.id != *id));
        for (_, bar) in gone {
            self.bars.remove(&bar);
        }
        for job in jobs {
            let bar = self.jobs.entry(job.id.clone()).or_insert_with(|| {
                self.bars.insert_before(&self.none, ProgressBar::new(1).with_style(self.style.clone()))
            });
            bar.set_length(u64::from(job.rounds.max(1)));
            bar.set_position(u64::from(job.round));
            bar.set_message(job_line(job));
        }
        self.none.set_message(if jobs.is_empty() { "no job runs" } else { "" });
    }
}

fn line_bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_running_job_has_a_bar() {
        let job = |id: &str, round| v1::JobView { id: id.to_owned(), round, rounds: 8, ..Default::default() };
        let view = v1::ClusterView { nodes: vec![v1::NodeView::default(); 2], ..Default::default() };
        let mut screen = Screen::new(ProgressDrawTarget::hidden(), false);
        let (a, b) = (job("a-1", 2), job("b-1", 5));
        screen.draw(&view, &[&a, &b]);
        let at: Vec<(&str, u64)> =
            screen.jobs.iter().map(|(id, bar)| (id.as_str(), bar.position())).collect();
        assert_eq!(at, [("a-1", 2), ("b-1", 5)]);
        assert_eq!((screen.nodes.len(), screen.none.message()), (2, String::new()));
        screen.draw(&view, &[&b]);
        assert_eq!(screen.jobs.keys().collect::<Vec<_>>(), ["b-1"]);
        screen.draw(&view, &[]);
        assert_eq!(screen.none.message(), "no job runs");
    }
}
