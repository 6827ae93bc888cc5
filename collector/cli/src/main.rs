//! `wattmill`: the user's tool. It asks the collector and shows what it says; it decides nothing.

#![deny(clippy::print_stdout, reason = "`say!` ends quietly where the reader left; `println!` panics")]

mod client;
mod demo;
mod energy;
mod jobs;
mod nodes;
mod show;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use wattmill_protocol::exit;

use client::Error;

/// Submit training jobs to a Wattmill cluster, watch them, and get the model and its energy bill.
#[derive(Parser)]
#[command(
    version,
    after_help = "Commands ask the collector at --collector or WATTMILL_COLLECTOR.\n\
                  Try `wattmill demo` first: it needs no cluster and no configuration. Then:\n\n  \
                    wattmill nodes                          what the cluster has\n  \
                    wattmill submit job.toml --model m.safetensors\n  \
                    wattmill job ID --report energy.json    its bill\n  \
                    wattmill energy                         what draws power on this host, by device and program\n\n\
                  Exit codes: 0 fine, 1 failure while running, 64 usage, 65 bad job or data."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// Options of every command.
#[derive(Args, Clone)]
struct Common {
    /// The collector's gRPC address.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "WATTMILL_COLLECTOR",
        default_value = "http://127.0.0.1:4317"
    )]
    collector: String,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Train a real model on this machine: a collector and agents are started, and stopped at the end.
    Demo(demo::Options),
    /// Submit a job file (TOML), and wait for its end unless told otherwise.
    ///
    /// The job goes on when this command ends: `wattmill job ID` shows it, `wattmill cancel ID` ends it.
    /// Ends with 65 where the job's file or data is bad, and with 1 where it failed otherwise.
    Submit(jobs::Submit),
    /// List jobs.
    Jobs,
    /// Show one job; fetch its model and energy report.
    Job(jobs::Show),
    /// Have the quarantined shards of a job tried anew, once what made them fail is mended.
    Waive(jobs::Waive),
    /// Cancel a job. One that is trained or has ended is left as it is, and said so (exit code 1).
    Cancel {
        /// The job, as `wattmill jobs` lists it.
        job: String,
    },
    /// List nodes with their power, energy and rate.
    Nodes,
    /// Say that a node is gone for good: its joules still count, its telemetry is no longer expected.
    Retire {
        /// The node's identity (`wattmill nodes --json` shows it).
        node: String,
    },
    /// Follow the whole cluster until interrupted: redrawn on a terminal, a line a second elsewhere.
    ///
    /// With --json, one JSON object a line for each update. A collector that goes away is waited for.
    Watch(watch::Options),
    /// Show what draws power on this node, live: devices, and services, containers, pods and jobs.
    ///
    /// It asks the node's agent, and needs no collector. On a terminal it is redrawn until q or Ctrl-C; elsewhere,
    /// and with --json, it prints one sample and ends (--count N: so many, 0: until interrupted).
    Energy(energy::Options),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no mistakes; a closed terminal is not ours to mend.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("wattmill: cannot start the runtime: {error}");
            return ExitCode::from(exit::FAILURE);
        }
    };
    let outcome = runtime.block_on(run(arguments));
    // A child or connection that hangs must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) if error.is_reader_gone() => ExitCode::from(exit::OK),
        Err(error) => {
            eprintln!("wattmill: {}", exit::describe(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(Arguments { command, common }: Arguments) -> Result<(), Error> {
    match command {
        Command::Demo(options) => demo::run(&options, common.json).await,
        Command::Submit(options) => jobs::submit(&common, &options).await,
        Command::Jobs => jobs::list(&common).await,
        Command::Job(options) => jobs::show(&common, &options).await,
        Command::Waive(options) => jobs::waive(&common, options).await,
        Command::Cancel { job } => jobs::cancel(&common, job).await,
        Command::Nodes => nodes::list(&common).await,
        Command::Retire { node } => nodes::retire(&common, node).await,
        Command::Watch(options) => watch::run(&common, &options).await,
        Command::Energy(options) => energy::run(&options, common.json).await,
    }
}

/// Files that a finished job is saved to.
#[derive(Args, Clone, Default)]
struct Outputs {
    /// Save the model here (safetensors; PyTorch loads it).
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Save the energy report here (JSON).
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}
