//! `wattmill-agent`: a host's daemon. Only wires: command line, configuration, logging, exit codes.

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use wattmill_agent::config::{Config, LogFormat};
use wattmill_agent::{app, check};
use wattmill_protocol::exit;

/// Meters this host's energy, pushes it to a collector, and trains what the collector gives.
#[derive(Parser)]
#[command(
    name = "wattmill-agent",
    version,
    after_help = "Without a configuration it meters this host and serves http://127.0.0.1:9766/metrics. With \
                  `collector = \"http://…:4317\"` in /etc/wattmill/agent.toml it pushes what it meters there, and \
                  trains. Begin with `wattmill-agent check`; docs/configuration.md lists every key. \
                  RUST_LOG=debug logs more.\n\n\
                  Exit codes: 0 fine, 1 failure while running (check: something is missing), 64 usage, 78 bad \
                  configuration."
)]
struct Cli {
    /// Configuration file; drop-ins are read from conf.d/agent*.toml beside it [default:
    /// /etc/wattmill/agent.toml where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or SIGINT; it logs to standard error
    Run,
    /// Show what was found on this host, what is missing, why, and how to mend it
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason to fail differently.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let config = match Config::load(cli.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error, exit::CONFIG),
    };
    match cli.command {
        Command::Run => {
            log(config.log_format);
            match app::run(config) {
                Ok(()) => ExitCode::from(exit::OK),
                Err(error) => fail(&error, error.exit_code()),
            }
        }
        Command::Check { json } => {
            let findings = check::run(&config);
            if json {
                println!("{}", check::json(&findings));
            } else {
                print!("{}", check::table(&findings));
            }
            ExitCode::from(if check::passed(&findings) { exit::OK } else { exit::FAILURE })
        }
    }
}

fn fail(error: &dyn Error, code: u8) -> ExitCode {
    eprintln!("wattmill-agent: {}", exit::describe(error));
    ExitCode::from(code)
}

/// One line an event on standard error, which a service manager keeps.
fn log(format: LogFormat) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colour);
    let log = tracing_subscriber::registry().with(filter());
    match format {
        LogFormat::Text => log.with(lines).init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).init(),
    }
}

fn filter() -> Targets {
    let info = Targets::new().with_default(Level::INFO);
    let Ok(text) = std::env::var("RUST_LOG") else { return info };
    text.parse().unwrap_or_else(|error| {
        eprintln!("wattmill-agent: RUST_LOG={text}: {error}; logging at level info");
        info
    })
}
