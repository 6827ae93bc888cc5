//! The program: its tasks, its start and its orderly end.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use wattmill_protocol::{MAX_CONTROL_MESSAGE_BYTES, exit, v1};

use crate::api::control::Control;
use crate::api::http::{self, Pages};
use crate::api::parameters::Parameters;
use crate::blobs::{BlobError, Blobs};
use crate::config::Config;
use crate::core::{Command, Core, Handle, Traces};
use crate::ingest::{Ingest, MetricsService};
use crate::state::{PersistError, Rollup, Telemetry};
use crate::store::{Sqlite, StoreError, TelemetryStore};
use crate::tasks::Tasks;

/// How often telemetry is made durable.
const CHECKPOINT: Duration = Duration::from_secs(10);
/// How often the cluster's figures are computed.
const ROLLUP: Duration = Duration::from_secs(1);
/// How long the end may take.
const GRACE: Duration = Duration::from_secs(5);
/// Longest HTTP/2 frame that is taken: a node's telemetry of one window in one piece rather than in 16 KiB.
const MAX_HTTP2_FRAME_BYTES: u32 = 256 << 10;

/// A collector that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// The state folder cannot be made or written.
    #[error("cannot use the state folder {}; set `state_dir`, or give this user the right", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another collector has the state folder.
    #[error("another wattmill-collector uses {}: stop it, or give each its own `state_dir`", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on {address} ({key}); is another collector running? `{key}` sets another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The key that sets it.
        key: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs cannot be used.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// Stored telemetry cannot be read back.
    #[error("the stored telemetry cannot be read back")]
    Telemetry(#[from] PersistError),
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Grpc(#[from] tonic::transport::Error),
    /// Traces cannot be sent.
    #[error("traces cannot be sent; see `traces.endpoint`")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The operating system refused.
    #[error("the operating system refused")]
    Os(#[from] std::io::Error),
    /// A task ended before its time.
    #[error("task {0} ended unexpectedly")]
    Task(&'static str),
    /// A task panicked.
    #[error("task {task} panicked, which is a bug: {message}")]
    Panicked {
        /// Which.
        task: &'static str,
        /// What it said.
        message: String,
    },
}

/// The content of a state folder, which is this process's alone while this lives.
pub(crate) struct State {
    store: Sqlite,
    telemetry: TelemetryStore,
    blobs: Blobs,
    _lock: File,
}

/// The database of a state folder.
pub(crate) fn database(config: &Config) -> PathBuf {
    config.state_dir.join("collector.db")
}

/// Opens the store and the blobs of a state folder, making them where they are absent.
pub(crate) async fn open(config: &Config) -> Result<State, AppError> {
    let path = &config.state_dir;
    let failed = |source| AppError::StateDir { path: path.clone(), source };
    std::fs::create_dir_all(path).map_err(failed)?;
    let lock = lock(path, File::options().create(true).truncate(false))?;
    let blobs = Blobs::open(&path.join("blobs"), config.limits.staged_bytes)?;
    let telemetry = TelemetryStore::open(&path.join("telemetry.db")).await?;
    Ok(State { store: Sqlite::open(&database(config)).await?, telemetry, blobs, _lock: lock })
}

/// Takes the folder, where a collector was there before; nothing is made.
pub(crate) fn lock_existing(folder: &Path) -> Result<File, AppError> {
    lock(folder, &mut File::options())
}

/// Two collectors on one folder would commit the same rounds twice.
fn lock(folder: &Path, options: &mut std::fs::OpenOptions) -> Result<File, AppError> {
    let failed = |source| AppError::StateDir { path: folder.to_owned(), source };
    let lock = options.write(true).open(folder.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(AppError::Locked { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Runs until a signal or a failure.
pub(crate) async fn run(config: Config) -> Result<(), AppError> {
    // Ports first: a second collector ends before it touches the first one's state.
    let grpc = listen(config.listen_grpc, "listen_grpc").await?;
    let web = listen(config.listen_http, "listen_http").await?;
    if config.insecure {
        tracing::warn!("insecure = true: everything is served in clear text");
    }
    let State { store, telemetry: telemetry_store, blobs, _lock } = open(&config).await?;
    let telemetry = Arc::new(restore(&telemetry_store).await?);
    let durable = telemetry.checkpoint(None);
    let (rollup, rollups) = watch::channel(Arc::new(telemetry.rollup(unix_nanos())));
    let blobs = Arc::new(blobs);
    let (core, handle) = Core::recover(
        store.share(),
        Arc::clone(&blobs),
        Arc::clone(&telemetry),
        rollups.clone(),
        durable.positions,
        config.leases.into(),
        Traces::start(config.traces.endpoint.as_deref())?,
    )
    .await?;
    let orphans = blobs.collect_orphans(&core.blobs_in_use())?;
    let (grpc_address, http_address) = (grpc.local_addr()?, web.local_addr()?);
    tracing::info!(%grpc_address, %http_address, state_dir = %config.state_dir.display(), orphans, "collector started");

    let stop = CancellationToken::new();
    let ingest = Arc::new(Ingest::new(Arc::clone(&telemetry)));
    let pages = Pages { core: handle.clone(), telemetry: Arc::clone(&telemetry), rollups };
    let mut tasks = Tasks::default();
    tasks.spawn("core", {
        let stop = stop.clone();
        async move { core.run(stop).await.map_err(AppError::from) }
    });
    tasks.spawn("roll-up", roll_up(Arc::clone(&telemetry), rollup, stop.clone()));
    tasks.spawn(
        "checkpoint",
        checkpoint(Arc::clone(&telemetry), telemetry_store, durable.sequence, handle.clone(), stop.clone()),
    );
    tasks.spawn("http", {
        let (router, stop) = (http::router(pages, Arc::clone(&ingest)), stop.clone());
        async move { Ok(axum::serve(web, router).with_graceful_shutdown(stop.cancelled_owned()).await?) }
    });
    let control = Control::new(handle.clone(), Arc::clone(&telemetry), blobs.staged_limit(), stop.clone());
    tasks.spawn("grpc", {
        let parameters = Parameters::new(blobs, handle.live);
        serve_grpc(grpc, ingest, control, parameters, stop.clone())
    });
    notify(&[sd_notify::NotifyState::Ready]);
    let outcome = supervise(&mut tasks, &stop).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    let drained = tokio::time::timeout(GRACE, drain(&mut tasks)).await.unwrap_or_else(|_| {
        tracing::warn!("some tasks did not end in time");
        Ok(())
    });
    store.close().await;
    tracing::info!("collector stopped");
    // What could not be made durable at the end is a failure too.
    outcome.and(drained)
}

/// Waits for the tasks that still run; the last failure is returned, all are logged.
async fn drain(tasks: &mut Tasks) -> Result<(), AppError> {
    let mut outcome = Ok(());
    while let Some((task, ended)) = tasks.next_end().await {
        if let Err(error) = &ended {
            tracing::error!(task, error = exit::describe(error), "a task failed while the collector stopped");
            outcome = ended;
        }
    }
    outcome
}

/// The telemetry of the store; records that cannot be read are set aside and said.
async fn restore(store: &TelemetryStore) -> Result<Telemetry, AppError> {
    let (telemetry, damaged) = Telemetry::restore(store.load().await?)?;
    for damaged in &damaged {
        tracing::error!(error = %damaged.error, "set aside in the table set_aside of telemetry.db");
    }
    if !damaged.is_empty() {
        store.set_aside(&damaged, i64::try_from(unix_nanos() / 1_000_000).unwrap_or(i64::MAX)).await?;
    }
    Ok(telemetry)
}

pub(crate) async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, key, source })
}

/// Waits for a signal, or for a task that ends before its time.
async fn supervise(tasks: &mut Tasks, stop: &CancellationToken) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = tasks.next_end() => {
            stop.cancel();
            match ended {
                Some((_, Err(error))) => Err(error),
                Some((name, Ok(()))) => Err(AppError::Task(name)),
                None => Err(AppError::Task("(none)")),
            }
        }
    }
}

async fn serve_grpc(
    listener: TcpListener,
    ingest: Arc<Ingest>,
    control: Control,
    parameters: Parameters,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let control =
        v1::control_server::ControlServer::new(control).max_decoding_message_size(MAX_CONTROL_MESSAGE_BYTES);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_frame_size(Some(MAX_HTTP2_FRAME_BYTES))
        .add_service(MetricsService::new(ingest))
        .add_service(control)
        .add_service(v1::parameters_server::ParametersServer::new(parameters))
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    // Sessions are long streams that a graceful end would wait for: agents open new ones by themselves.
    tokio::select! {
        served = served => Ok(served?),
        () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_millis(500)).await } => Ok(()),
    }
}

async fn roll_up(
    telemetry: Arc<Telemetry>,
    rollup: watch::Sender<Arc<Rollup>>,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let mut ticks = tokio::time::interval(ROLLUP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        rollup.send_replace(Arc::new(telemetry.rollup(unix_nanos())));
    }
    Ok(())
}

/// Makes telemetry durable, tells nodes how far, and does it once more at the end.
async fn checkpoint(
    telemetry: Arc<Telemetry>,
    store: TelemetryStore,
    mut sequence: u64,
    core: Handle,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let mut ticks = tokio::time::interval(CHECKPOINT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let going_on = stop.run_until_cancelled(ticks.tick()).await.is_some();
        let checkpoint = telemetry.checkpoint(Some(sequence));
        match store.put(&checkpoint.records).await {
            Ok(()) => {
                sequence = checkpoint.sequence;
                // The core is gone only when the program ends.
                drop(core.commands.send(Command::Durable { positions: checkpoint.positions }).await);
            }
            Err(error) => {
                tracing::error!(
                    error = exit::describe(&error),
                    "telemetry is not durable; tried again in 10 s"
                );
            }
        }
        if !going_on {
            store.close().await;
            return Ok(());
        }
    }
}

/// Tells systemd how it stands, where there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not told");
    }
}

fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
