//! Keeps a worker: starts it, learns how this node computes and how fast, and starts another when it ends.
//!
//! Invariant: there is one worker at most, and no storm of them. One that could not be started, or that ended
//! soon after its start, is followed by a pause, which grows; as long as it lasts this node takes no work.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wattmill_protocol::v1;

use super::desk::SLOTS;
use super::worker::{self, Peak, Worker, WorkerError};
use crate::config::Config;

/// First and longest pause before another worker is started.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// A worker that lived this long did not end because of how it was started.
const STEADY: Duration = Duration::from_secs(10);

type Start = Pin<Box<dyn Future<Output = Result<(Worker, Peak), WorkerError>> + Send>>;

/// What happened to the worker.
pub(super) enum Event {
    /// There is one.
    Ready(Peak),
    /// It said something.
    Said(v1::from_worker::Kind),
    /// It ended by itself.
    Died(WorkerError),
    /// None could be started.
    Failed(WorkerError),
}

enum State {
    /// There is none until then.
    Waiting(Instant),
    /// One is on its way.
    Starting(Start),
    /// It works since then.
    Working(Box<Worker>, Instant),
}

/// What a node tells the collector of its worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Capability {
    /// How it computes; empty before the first worker.
    pub(super) numerics: String,
    /// Leases that it takes at once: none without a worker.
    pub(super) slots: u32,
}

/// The worker, or the want of one.
pub(super) struct Keeper {
    config: Arc<Config>,
    state: State,
    pause: Pause,
    capability: Capability,
}

impl Keeper {
    pub(super) fn new(config: Arc<Config>) -> Self {
        let (pause, capability) = (Pause(PAUSES.0), Capability::default());
        Self { config, state: State::Waiting(Instant::now()), pause, capability }
    }

    pub(super) fn capability(&self) -> &Capability {
        &self.capability
    }

    pub(super) fn worker(&mut self) -> Option<&mut Worker> {
        match &mut self.state {
            State::Working(worker, _) => Some(worker),
            State::Waiting(_) | State::Starting(_) => None,
        }
    }

    /// Ends the worker, which only that stops from what it does; another is started at once.
    pub(super) fn end_worker(&mut self) {
        self.state = State::Waiting(Instant::now());
    }

    /// The next thing that happens; safe to drop and call again.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            match &mut self.state {
                State::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.state = State::Starting(Box::pin(start(Arc::clone(&self.config))));
                }
                State::Starting(start) => match start.as_mut().await {
                    Ok((worker, peak)) => {
                        self.capability = Capability { numerics: worker.numerics().to_owned(), slots: SLOTS };
                        self.state = State::Working(Box::new(worker), Instant::now());
                        return Event::Ready(peak);
                    }
                    Err(error) => {
                        let pause = self.pause.after(Duration::ZERO);
                        self.rest(pause);
                        return Event::Failed(error);
                    }
                },
                State::Working(worker, since) => match worker.next().await {
                    Ok(kind) => return Event::Said(kind),
                    Err(error) => {
                        let lived = since.elapsed();
                        return self.died(lived, error);
                    }
                },
            }
        }
    }

    /// The worker cannot be spoken to any more.
    pub(super) fn broke(&mut self, error: WorkerError) -> Event {
        let lived = match &self.state {
            State::Working(_, since) => since.elapsed(),
            State::Waiting(_) | State::Starting(_) => Duration::ZERO,
        };
        self.died(lived, error)
    }

    fn died(&mut self, lived: Duration, error: WorkerError) -> Event {
        let pause = self.pause.after(lived);
        self.rest(pause);
        Event::Died(error)
    }

    fn rest(&mut self, pause: Duration) {
        self.state = State::Waiting(Instant::now() + pause);
        if !pause.is_zero() {
            self.capability.slots = 0;
        }
    }
}

async fn start(config: Arc<Config>) -> Result<(Worker, Peak), WorkerError> {
    let mut worker = Worker::start(&config.worker_path, &config.cpus).await?;
    let peak = worker::peak(&mut worker, &config.state_dir, config.cpus.len()).await?;
    Ok((worker, peak))
}

/// The next pause.
struct Pause(Duration);

impl Pause {
    /// How long to wait after a worker that lived so long. One that was steady is replaced at once.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= STEADY {
            self.0 = PAUSES.0;
            return Duration::ZERO;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSES.1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    #[test]
    fn pauses_grow_until_a_worker_is_steady() {
        let mut pause = Pause(PAUSES.0);
        let pauses: Vec<Duration> = (0..10).map(|_| pause.after(Duration::from_secs(1))).collect();
        assert!(
            pauses.is_sorted_by(|a, b| a <= b) && pauses[0] == PAUSES.0 && pauses[9] == PAUSES.1,
            "{pauses:?}"
        );
        assert_eq!(pause.after(STEADY), Duration::ZERO, "that was an accident of its work");
        assert_eq!(pause.after(Duration::ZERO), PAUSES.0);
    }

    fn keeper(folder: &Path, script: &str) -> Keeper {
        let worker = folder.join("worker");
        write_script(&worker, script);
        let file = folder.join("agent.toml");
        fs::write(&file, format!("state_dir = {folder:?}\n[worker]\npath = {worker:?}\n")).unwrap();
        Keeper::new(Arc::new(Config::load(Some(&file)).unwrap()))
    }

    /// Replaced whole: a program that runs cannot be written to.
    fn write_script(path: &Path, script: &str) {
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Says hello with one letter for its numerics, answers the probe with 1 FLOP/s of `f32`, and goes on with
    /// `then`.
    fn says(letter: char, then: &str) -> String {
        let hello = format!(r"printf '\000\000\000\007\012\005\022\003\012\001{letter}'");
        let probe = r"printf '\000\000\000\020\022\016\011\000\000\000\000\000\000\360\077\022\003f32'";
        format!("{hello}; {probe}; {then}")
    }

    /// The next worker: a script that was just written may be busy for a moment.
    async fn ready(keeper: &mut Keeper) -> Peak {
        loop {
            if let Event::Ready(peak) = keeper.next().await {
                return peak;
            }
        }
    }

    #[tokio::test]
    async fn without_a_program_a_node_has_no_slots_and_with_one_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = keeper(folder.path(), "exit 1");
        let first = keeper.next().await;
        assert!(matches!(first, Event::Failed(_)));
        assert_eq!(keeper.capability(), &Capability::default());
        assert!(keeper.worker().is_none());
        write_script(&folder.path().join("worker"), &says('a', "cat >/dev/null"));
        let peak = ready(&mut keeper).await;
        assert_eq!((peak.flops_per_second, peak.precision.as_str()), (1.0, "f32"));
        assert_eq!(keeper.capability(), &Capability { numerics: "a".to_owned(), slots: SLOTS });
    }

    /// As after an upgrade of the package.
    #[tokio::test]
    async fn another_workers_numerics_are_learned_and_its_peak_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = keeper(folder.path(), &says('a', "cat >/dev/null"));
        ready(&mut keeper).await;
        write_script(&folder.path().join("worker"), &says('b', "cat >/dev/null"));
        keeper.end_worker();
        assert_eq!(keeper.capability().slots, SLOTS, "it is replaced at once");
        ready(&mut keeper).await;
        assert_eq!(keeper.capability().numerics, "b");
        let kept = fs::read_to_string(folder.path().join("peak.json")).unwrap();
        assert!(kept.contains(r#""numerics":"b""#), "{kept}");
    }

    #[tokio::test]
    async fn a_worker_that_ends_at_once_is_not_replaced_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = keeper(folder.path(), &says('a', "head -c 8 >/dev/null; exit 1"));
        ready(&mut keeper).await;
        assert!(matches!(keeper.next().await, Event::Died(_)));
        assert!(matches!(keeper.state, State::Waiting(until) if until > Instant::now()));
        assert_eq!(keeper.capability(), &Capability { numerics: "a".to_owned(), slots: 0 });
    }
}
