//! The running agent: starts its parts, watches over them, stops them in order.
//!
//! Invariant: one set of tasks and one token. A task that ends by itself is a failure and stops the
//! agent in order. The only place that knows systemd.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use wattmill_protocol::exit;

use crate::config::Config;
use crate::export::http::{self, ListenError};
use crate::export::otlp::Encoder;
use crate::export::push::{self, Push, SharedSpool};
use crate::export::spool::{Spool, SpoolStats};
use crate::identity::{self, Identity, IdentityError};
use crate::ledger::store::StoreError;
use crate::meter::{Meter, MeterError, Recorder};
use crate::snapshot::{NodeFacts, Snapshot};

/// How long stopping may take: the service manager kills after its own, longer, time.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// What of it those may take that hand work back.
const HAND_BACK_WITHIN: Duration = Duration::from_secs(3);

/// The agent cannot run, or failed while it ran.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The state folder cannot be used.
    #[error(
        "cannot use the state folder {}: create it for the user that runs the agent, or set state_dir",
        path.display()
    )]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent uses the state folder.
    #[error("another wattmill-agent uses {}: give each agent of a host its own state_dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The node's identity cannot be read or kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The meter cannot start.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// The address of `/metrics` cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The runtime or its signal handlers cannot start.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// A task ended that runs as long as the agent.
    #[error("{task} ended unexpectedly: {reason}")]
    Task {
        /// Which one.
        task: &'static str,
        /// Why.
        reason: String,
    },
}

impl AppError {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Meter(MeterError::Ledger(StoreError::Newer { .. })) => exit::CONFIG,
            _ => exit::FAILURE,
        }
    }
}

/// What a part of the agent is given to work with.
#[derive(Clone)]
pub struct Services {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who this node is.
    pub identity: Identity,
    /// Energy of shards, and what is owed.
    pub meter: Meter,
    /// To be told what the collector has kept.
    pub push: Push,
    /// Cancelled when the agent stops: hand work back, flush the meter, say what it settled, return.
    pub stopping: CancellationToken,
}

/// Runs the agent until a signal, or a failure.
///
/// # Errors
/// When something that it needs cannot be used, or a part of it fails.
pub fn run(config: Config) -> Result<(), AppError> {
    // One thread for connections and timers: devices, the meter and what touches a disk have their own, and each
    // thread that is woken for a few microseconds of work costs ten times as many.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AppError::Runtime)?;
    let result = runtime.block_on(App::start(config));
    let result = match result {
        Ok(app) => runtime.block_on(app.run()),
        Err(error) => Err(error),
    };
    // A device or disk that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

struct App {
    services: Services,
    tasks: Tasks,
    /// Held as long as the agent runs.
    _lock: File,
}

impl App {
    async fn start(config: Config) -> Result<Self, AppError> {
        let lock = lock_state_dir(&config.state_dir)?;
        let listener = http::bind(config.listen).await?;
        let identity = identity::load(&config.state_dir, &config.machine_id_file, &config.procfs_root)?;
        let stats = Arc::<SpoolStats>::default();
        let push = Push::new();
        let to_push = to_push(&config, &stats, &push);
        let recorder = to_push.as_ref().map(|(_, spool)| recorder(spool.clone()));
        let facts = NodeFacts::new(&config, identity.clone());
        let meter = Meter::start(&config, facts, stats, recorder)?;
        let services =
            Services { config: Arc::new(config), identity, meter, push, stopping: CancellationToken::new() };
        let mut tasks = Tasks::default();
        tasks.spawn("the meter", meter_ends(services.meter.snapshots()));
        let address = listener.local_addr().map_err(AppError::Runtime)?;
        let interval = services.config.metering.interval;
        let server = http::serve(listener, services.meter.snapshots(), interval, services.stopping.clone());
        tasks.spawn("the /metrics server", async {
            server.await.map_or_else(|e| e.to_string(), |()| ended())
        });
        if let Some((endpoint, spool)) = to_push {
            let send = push::send(endpoint, services.identity.node.clone(), spool);
            tasks.spawn("the telemetry sender", async {
                send.await;
                ended()
            });
        }
        tasks.spawn("the watchdog", watchdog(services.meter.snapshots(), services.stopping.clone()));
        tasks.spawn_work("the leases", crate::lease::run(services.clone()));
        tracing::info!(
            %address, node = %services.identity.node, name = services.config.name,
            collector = services.config.collector, version = crate::VERSION, "listening"
        );
        Ok(Self { services, tasks, _lock: lock })
    }

    async fn run(mut self) -> Result<(), AppError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Runtime)?;
        notify(&[NotifyState::Ready]);
        let result = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            error = self.tasks.first_end() => Err(error),
        };
        notify(&[NotifyState::Stopping]);
        match &result {
            Ok(()) => tracing::info!("stopping"),
            Err(error) => tracing::error!(%error, "stopping"),
        }
        if tokio::time::timeout(STOP_WITHIN, self.stop()).await.is_err() {
            tracing::warn!("stopping took longer than {} s; leaving", STOP_WITHIN.as_secs());
        }
        result
    }

    /// Work is handed back first, so that its shards settle with the meter's last window.
    async fn stop(&mut self) {
        self.services.stopping.cancel();
        let work: Vec<&'static str> = self.tasks.work.iter().copied().collect();
        if tokio::time::timeout(HAND_BACK_WITHIN, self.tasks.ended(&work)).await.is_err() {
            tracing::warn!("work could not be handed back in time; its leases run out");
        }
        self.services.meter.stop().await;
        self.tasks.set.shutdown().await;
    }
}

/// Where to push, and the spool of what is pushed; `None` where there is no collector.
fn to_push(config: &Config, stats: &Arc<SpoolStats>, push: &Push) -> Option<(Endpoint, SharedSpool)> {
    // The configuration was checked; a URL that this crate takes otherwise would mean no push at all.
    let endpoint = config.collector.clone().map(Endpoint::from_shared).transpose();
    let endpoint = endpoint.unwrap_or_else(|error| {
        tracing::error!(%error, "the collector's URL cannot be used; nothing is pushed");
        None
    });
    let spool = |endpoint| {
        let spool = Spool::open(&config.spool_dir(), config.spool_max_bytes, Arc::clone(stats));
        (endpoint, SharedSpool::new(spool, push.clone()))
    };
    endpoint.map(spool)
}

fn recorder(spool: SharedSpool) -> Recorder {
    let mut encoder = Encoder::default();
    Box::new(move |snapshot| spool.record(encoder.frame(snapshot)))
}

fn ended() -> String {
    "it returned".to_owned()
}

async fn meter_ends(mut snapshots: watch::Receiver<Arc<Snapshot>>) -> String {
    while snapshots.changed().await.is_ok() {}
    "its thread ended".to_owned()
}

/// Tells systemd that the agent lives as long as windows close.
async fn watchdog(mut snapshots: watch::Receiver<Arc<Snapshot>>, stopping: CancellationToken) -> String {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        stopping.cancelled().await;
        return ended();
    };
    let mut pings = tokio::time::interval(patience / 2);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return ended(),
            _ = pings.tick() => {}
        }
        if snapshots.has_changed().unwrap_or(false) {
            snapshots.mark_unchanged();
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Makes the folder and takes it for this process alone: two agents would write one ledger.
fn lock_state_dir(folder: &Path) -> Result<File, AppError> {
    let failed = |source| AppError::StateDir { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let options = File::options().create(true).truncate(false).write(true).open(folder.join("lock"));
    let lock = options.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(AppError::Locked { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Tasks that run as long as the agent, by name.
#[derive(Default)]
struct Tasks {
    set: JoinSet<(&'static str, String)>,
    running: BTreeSet<&'static str>,
    /// Those that hand work back when the agent stops.
    work: BTreeSet<&'static str>,
}

impl Tasks {
    /// Starts a task; it returns why it ended.
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = String> + Send + 'static) {
        self.running.insert(name);
        self.set.spawn(async move { (name, task.await) });
    }

    /// Starts a task that hands work back when the agent stops, and is waited for.
    fn spawn_work(&mut self, name: &'static str, task: impl Future<Output = String> + Send + 'static) {
        self.work.insert(name);
        self.spawn(name, task);
    }

    /// The first end of any of them, which is a failure.
    async fn first_end(&mut self) -> AppError {
        match self.set.join_next().await {
            Some(Ok((task, reason))) => {
                self.running.remove(task);
                AppError::Task { task, reason }
            }
            Some(Err(error)) => AppError::Task { task: "a task", reason: panic_text(error) },
            None => AppError::Task { task: "everything", reason: ended() },
        }
    }

    /// Waits until none of `names` runs any more.
    async fn ended(&mut self, names: &[&'static str]) {
        while names.iter().any(|name| self.running.contains(name)) {
            match self.set.join_next().await {
                Some(Ok((task, _))) => {
                    self.running.remove(task);
                }
                // One that panicked cannot be told by name; the caller waits for it in vain, for a while.
                Some(Err(_)) => {}
                None => return,
            }
        }
    }
}

fn panic_text(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic.downcast_ref::<&str>().map_or_else(
            || panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".to_owned()),
            |text| (*text).to_owned(),
        ),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_serves_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let held = lock_state_dir(&state).unwrap();
        assert!(matches!(lock_state_dir(&state), Err(AppError::Locked { .. })));
        drop(held);
        assert!(lock_state_dir(&state).is_ok());
        fs::write(folder.path().join("file"), "").unwrap();
        let error = lock_state_dir(&folder.path().join("file")).unwrap_err();
        assert!(error.to_string().contains("state_dir"), "{error}");
    }

    #[tokio::test]
    async fn a_task_that_ends_is_a_failure_with_its_reason() {
        let mut tasks = Tasks::default();
        tasks.spawn("the meter", async { "its thread ended".to_owned() });
        let error = tasks.first_end().await;
        assert_eq!(error.to_string(), "the meter ended unexpectedly: its thread ended");
        assert_eq!(error.exit_code(), exit::FAILURE);
        tasks.spawn("x", async { panic!("boom {}", 1) });
        assert!(tasks.first_end().await.to_string().contains("boom 1"));
    }

    #[tokio::test]
    async fn work_is_waited_for_and_the_rest_is_not() {
        let mut tasks = Tasks::default();
        tasks.spawn("forever", std::future::pending());
        tasks.spawn_work("leases", async { "handed back".to_owned() });
        tasks.ended(&["leases"]).await;
        assert_eq!(tasks.running, BTreeSet::from(["forever"]));
    }

    #[test]
    fn a_newer_ledger_is_a_matter_of_configuration() {
        let newer = StoreError::Newer { path: "ledger.a".into(), found: 9 };
        assert_eq!(AppError::from(MeterError::from(newer)).exit_code(), exit::CONFIG);
    }
}
