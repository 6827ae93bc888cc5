//! `wattmill energy`: what draws power on this node, as its agent knows it.

mod agent;
mod page;
mod picture;
mod sample;
mod screen;
mod since;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::Error;
use crate::show::say;
use crate::watch::colours;
use agent::Agent;
pub(crate) use agent::AgentError;
use picture::{Line, Style};
use sample::Sample;
use screen::Screen;
use since::Since;

/// Shortest and longest pause between two samples, in seconds: the agent's windows are no shorter.
const INTERVAL_SECONDS: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// Options of `energy`.
#[derive(Args)]
#[command(
    after_long_help = "WATTS are the mean of the agent's last window, WATCHED the joules since this command began, LEDGER \
                  those since the agent's ledger began (docs/ledger.md). SOURCE is how they are known: counter (a \
                  hardware counter), integrated (measured power over time), estimate (a model). Watts of those whose \
                  it is are the node's, split as its joules since the sample before; the first sample has none. What \
                  contains something else, or is contained in it, stands apart and is never summed. Units are told \
                  apart where the agent's [attribution] says so (docs/attribution.md).\n\n\
                  Examples:\n  \
                    wattmill energy\n  \
                    wattmill energy --agent node7:9766\n  \
                    wattmill energy --json | jq '.units[] | {id, watts}'\n  \
                    wattmill energy --count 60 --interval 1 > log\n\n\
                  Exit codes: 0 fine (also after q, Ctrl-C, or when the reader of a pipe leaves), 1 no agent answers \
                  there, or not as one does, 64 usage."
)]
pub(crate) struct Options {
    /// The node's agent: http://host:port, as `listen` in its configuration says.
    #[arg(long, value_name = "ADDRESS", env = "WATTMILL_AGENT", default_value = "http://127.0.0.1:9766")]
    agent: String,
    /// Seconds between two samples, 0.1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = interval)]
    interval: f64,
    /// Samples to take, 0 for as many as until interrupted [default: 0 on a terminal, else 1].
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let bounds = || format!("not within {} to {}", INTERVAL_SECONDS.start(), INTERVAL_SECONDS.end());
    INTERVAL_SECONDS.contains(&seconds).then_some(seconds).ok_or_else(bounds)
}

/// A node that is watched.
struct Watched {
    agent: Agent,
    since: Since,
    began: Instant,
}

impl Watched {
    async fn sample(&mut self) -> Result<Sample, Error> {
        let agent = self.agent.clone();
        let page = tokio::task::spawn_blocking(move || agent.page()).await;
        let page = page.map_err(|error| Error::Answer(error.to_string()))??;
        if self.since.is_empty() {
            self.began = Instant::now();
        }
        Ok(Sample::new(&page, &mut self.since))
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn picture(&self, sample: &Sample, height: usize) -> Vec<Line> {
        picture::lines(sample, self.agent.url(), self.seconds(), height)
    }
}

/// Shows what the agent says.
pub(crate) async fn run(options: &Options, json: bool) -> Result<(), Error> {
    let agent = Agent::new(&options.agent)?;
    let mut watched = Watched { agent, since: Since::default(), began: Instant::now() };
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(options.interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !json && options.count.is_none_or(|count| count == 0) && std::io::stdout().is_terminal() {
        return live(&mut watched, &mut ticks).await;
    }
    let count = options.count.unwrap_or(1);
    let mut taken = 0;
    while count == 0 || taken < count {
        let sample = tokio::select! {
            sample = async { ticks.tick().await; watched.sample().await } => sample?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        if json {
            say!("{}", as_json(&sample, &watched))?;
        } else {
            print(&watched.picture(&sample, usize::MAX), taken > 0)?;
        }
        taken += 1;
    }
    Ok(())
}

fn print(lines: &[Line], again: bool) -> Result<(), Error> {
    if again {
        say!("")?;
    }
    lines.iter().try_for_each(|line| say!("{}", line.text))
}

fn as_json(sample: &Sample, watched: &Watched) -> serde_json::Value {
    let mut object = json!(sample);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    object["unix_ms"] = json!(now.map_or(0, |now| now.as_millis() as u64));
    object["agent"] = json!(watched.agent.url());
    object["watched_seconds"] = json!(watched.seconds());
    object
}

/// Draws until q, Ctrl-C or SIGTERM. An agent that answered once is waited for when it goes away.
async fn live(watched: &mut Watched, ticks: &mut tokio::time::Interval) -> Result<(), Error> {
    let mut sample = watched.sample().await?;
    let mut lost: Option<String> = None;
    // What was just asked for is shown; the next is due in an interval.
    ticks.reset();
    let on = |kind| signal(kind).map_err(Error::Output);
    let (mut term, mut hup) = (on(SignalKind::terminate())?, on(SignalKind::hangup())?);
    let (mut resized, mut stop) = (on(SignalKind::window_change())?, on(STOP_KEY)?);
    let mut keys = screen::keys();
    let mut screen = Screen::enter(colours()).map_err(Error::Output)?;
    loop {
        let (_, height) = Screen::size();
        let mut lines = watched.picture(&sample, height.saturating_sub(1));
        lines.push(foot(lost.as_deref()));
        screen.draw(&lines).map_err(Error::Output)?;
        tokio::select! {
            next = async { ticks.tick().await; watched.sample().await } => match next {
                Ok(next) => (sample, lost) = (next, None),
                Err(error) => lost = Some(wattmill_protocol::exit::describe(&error)),
            },
            Some(key) = keys.recv() => if matches!(key, b'q' | b'Q') { return Ok(()) },
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = term.recv() => return Ok(()),
            _ = hup.recv() => return Ok(()),
            _ = resized.recv() => {}
            _ = stop.recv() => screen.suspend().map_err(Error::Output)?,
        }
    }
}

/// Ctrl-Z.
const STOP_KEY: SignalKind = SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw());

fn foot(lost: Option<&str>) -> Line {
    match lost {
        Some(error) => Line::new(Style::Bad, format!("{error}; waiting for it")),
        None => Line::new(Style::Dim, "q ends"),
    }
}
