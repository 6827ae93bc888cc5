//! `wattmill-worker`: runs tasks on one device, in a process of its own, for the agent that started it.
//!
//! The agent hands it one stream as standard input and output and sends [`wire`] messages; the worker
//! measures the device ([`probe`]), reads data ([`data`]), drives the kernel ([`train`]) and answers
//! ([`report`]). One request at a time, on one thread beside the kernel's own; there is no async runtime.
//!
//! Invariants: a mistake in a job or its data is an answer, never the end of the process; a panic or the
//! kernel's OOM killer ends the process, which the agent sees; a worker never outlives its agent
//! ([`lifetime`]).

mod data;
mod lifetime;
mod parameters;
mod probe;
mod report;
mod serve;
mod train;
mod wire;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use wattmill_protocol::exit;

/// Runs Wattmill's training tasks on one device.
///
/// wattmill-agent starts this program and talks to it over its standard input and output; there is nothing
/// to run by hand. It reads a job's data, computes gradients, and ends when the agent does.
///
/// Exit codes: 0 the agent closed the stream, 1 the stream broke the protocol or the processor cannot run
/// the kernel, 64 usage.
#[derive(Parser)]
#[command(name = "wattmill-worker", version)]
struct Cli {}

fn main() -> ExitCode {
    if let Err(error) = Cli::try_parse() {
        // Without a terminal to print to, the exit code is all there is to say.
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
    }
    if io::stdin().is_terminal() {
        eprintln!("wattmill-worker: standard input is a terminal; wattmill-agent starts this program");
        return ExitCode::from(exit::USAGE);
    }
    match run() {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            eprintln!("wattmill-worker: {}", report::chain(&error));
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn run() -> Result<(), serve::ServeError> {
    lifetime::end_with_the_agent().map_err(serve::ServeError::Lifetime)?;
    serve::serve(&mut io::stdin().lock(), &mut io::stdout())
}
