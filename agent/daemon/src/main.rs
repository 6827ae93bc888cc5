//! `wattmill-agent`: a host's daemon. Only wires: command line, configuration, logging, exit codes.

use std::error::Error;
use std::io::{IsTerminal, Write as _};
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
                  Exit codes: 0 fine, 1 failure while running (check: something that should work does not), 64 usage, 78 bad \
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
    ///
    /// It changes nothing, and may run beside an agent; run it as the agent's user, who may read less than you:
    /// `sudo -u wattmill wattmill-agent check`. Each thing is
    ///
    /// ok (it works), - (absent: not there, and nobody asked for it), WARN (warning: it works, and something is left
    /// out or open to others) or FAILED (failed: it should work, and does not). What to do stands under it.
    ///
    /// Exit codes: 0 nothing failed (warnings pass), 1 something failed, 64 usage, 78 bad configuration.
    Check {
        /// Print JSON: {"passed", "worst", "version", "findings": [{"what", "status", "detail", "mend"}]}
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
        Err(error) => {
            if matches!(cli.command, Command::Check { json: true }) {
                let findings = [check::configuration(exit::describe(&error))];
                say(&format!("{}\n", check::json(&findings)));
            }
            return fail(&error, exit::CONFIG);
        }
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
            say(&if json { check::json(&findings) + "\n" } else { check::table(&findings) });
            ExitCode::from(if check::passed(&findings) { exit::OK } else { exit::FAILURE })
        }
    }
}

/// Writes to standard output, where a reader that left, as `head` does, is the end and no failure.
fn say(text: &str) {
    // The exit code still tells.
    if let Err(error) = std::io::stdout().write_all(text.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("wattmill-agent: cannot write to standard output: {error}");
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
    // What libraries trace by `log` shows whole requests, passwords included (ureq): never logged.
    log::set_max_level(log::max_level().min(log::LevelFilter::Debug));
}

fn filter() -> Targets {
    let info = Targets::new().with_default(Level::INFO);
    let Ok(text) = std::env::var("RUST_LOG") else { return info };
    text.parse().unwrap_or_else(|error| {
        eprintln!("wattmill-agent: RUST_LOG={text}: {error}; logging at level info");
        info
    })
}
