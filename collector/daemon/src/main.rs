//! `wattmill-collector`: the cluster's daemon.
//!
//! `ingest` → `state` → `core` (state machine, planner) → sessions of nodes; `store` and `blobs` are
//! durable, `api` is the edge. `main` only wires.

mod api;
mod app;
mod blobs;
mod check;
mod config;
mod core;
mod ingest;
mod reduce;
mod state;
mod store;
mod tasks;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use wattmill_protocol::exit;

use crate::config::{Config, LogFormat};

/// The cluster's daemon: takes in telemetry, plans, and trains jobs on the agents that connect.
#[derive(Parser)]
#[command(
    version,
    after_help = "Users and agents reach it by gRPC (127.0.0.1:4317), Prometheus and browsers by HTTP \
                  (127.0.0.1:9767: /metrics, /sd, a status page). Agents need `collector = \"http://…:4317\"`; \
                  docs/configuration.md lists every key. RUST_LOG=debug logs more.\n\n\
                  Exit codes: 0 fine, 1 failure while running (a port or the state folder is taken, say), \
                  64 usage, 78 bad configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file; drop-ins are read from conf.d/collector*.toml beside it
    /// [default: /etc/wattmill/collector.toml where it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground until SIGTERM or SIGINT. It logs to standard error.
    Run,
    /// Say whether the daemon could start: configuration, state folder, ports. Makes and changes nothing.
    ///
    /// The ports are bound for a moment. Where a collector runs on the state folder already, they are left
    /// alone. Ends with 1 when something is wrong, with 78 when it is the configuration.
    Check,
    /// Create the database, or bring it to this version; `run` does so too.
    Migrate,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no mistakes; printing to a closed terminal is none of ours.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(exit::CONFIG, &error),
    };
    start_log(config.log.format);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(exit::FAILURE, &error),
    };
    let outcome = match arguments.command {
        Command::Run => runtime.block_on(app::run(config)),
        Command::Check if runtime.block_on(check::run(&config)) => Ok(()),
        Command::Check => return ExitCode::from(exit::FAILURE),
        Command::Migrate => runtime.block_on(async { app::open(&config).await.map(drop) }),
    };
    match outcome {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => fail(exit::FAILURE, &error),
    }
}

fn fail(code: u8, error: &dyn Error) -> ExitCode {
    eprintln!("wattmill-collector: {}", exit::describe(error));
    ExitCode::from(code)
}

fn start_log(format: LogFormat) {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let log = tracing_subscriber::registry().with(log_filter());
    match format {
        LogFormat::Text => log.with(lines.with_target(false)).init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).init(),
    }
}

fn log_filter() -> Targets {
    let info = Targets::new().with_default(Level::INFO);
    let Ok(text) = std::env::var("RUST_LOG") else { return info };
    text.parse().unwrap_or_else(|error| {
        eprintln!("wattmill-collector: RUST_LOG={text}: {error}; logging at level info");
        info
    })
}
