//! `sim`: runs seeds and says which failed.
//!
//! `--seed N` replays one run and prints all of it; `--seeds N --first S` runs N seeds from S on.

use std::process::ExitCode;

use wattmill_protocol::exit;
use wattmill_sim::run;

const USAGE: &str = "usage: sim --seed N | --seeds N [--first S]";

/// What the command line asks for.
struct Ask {
    first: u64,
    seeds: u64,
    echo: bool,
}

fn main() -> ExitCode {
    let Some(ask) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(exit::USAGE);
    };
    let mut failed = Vec::new();
    for seed in ask.first..ask.first.saturating_add(ask.seeds) {
        match std::panic::catch_unwind(|| run(seed, ask.echo)) {
            Ok(Ok(summary)) if ask.echo => println!("{summary:?}"),
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => {
                eprintln!("{failure}");
                failed.push(seed);
            }
            Err(_) => {
                eprintln!("seed {seed} panicked; replay it with: cargo run -p wattmill-sim -- --seed {seed}");
                failed.push(seed);
            }
        }
    }
    println!("ran {}, failed {}, failing seeds {failed:?}", ask.seeds, failed.len());
    ExitCode::from(if failed.is_empty() { exit::OK } else { exit::FAILURE })
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Ask> {
    let mut ask = Ask { first: 0, seeds: 200, echo: false };
    while let Some(name) = arguments.next() {
        let value = arguments.next()?.parse().ok()?;
        match name.as_str() {
            "--seed" => ask = Ask { first: value, seeds: 1, echo: true },
            "--seeds" => ask.seeds = value,
            "--first" => ask.first = value,
            _ => return None,
        }
    }
    Some(ask)
}
