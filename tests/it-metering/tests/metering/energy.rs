//! `wattmill energy` beside a real agent.
//!
//! Proves: the tool shows the GPUs that the agent meters, by one sample and by several, as a table and as JSON; a
//! lost GPU with its reason; and it ends quietly where its reader leaves.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nvidia_ml::client::Client;
use nvidia_ml::machine::command::{Command as Fake, LossMode};
use serde_json::Value;
use wattmill_it_metering::process::{Agent, program, run};
use wattmill_it_metering::{PATIENCE, wait_for};

const LOST: &str = "GPU-fa4e0000-0000-4000-8000-000000000001";

/// An agent whose first window has closed, and the GPUs' driver.
fn agent() -> (Agent, Client) {
    let mut socket = None;
    let agent = Agent::start("energy", |folder| {
        let (installed, keys) = super::nvml::install(folder, 120.0);
        socket = Some(installed.socket);
        keys + "[metering]\ninterval_ms = 100\n"
    });
    let fake = Client::connect_within(&socket.unwrap(), PATIENCE).unwrap();
    agent.until("GPUs draw power", |metrics| metrics.all("wattmill_gpu_power_watts").count() == 2);
    (agent, fake)
}

fn tool(agent: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("wattmill"));
    command.args(["energy", "--agent", agent]).args(arguments).env_remove("WATTMILL_AGENT");
    command
}

fn samples(agent: &Agent, arguments: &[&str]) -> Vec<Value> {
    let output = run(tool(&agent.address, arguments).arg("--json"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn gpu<'a>(sample: &'a Value, uuid: &str) -> &'a Value {
    sample["devices"].as_array().unwrap().iter().find(|device| device["id"] == uuid).unwrap()
}

#[test]
fn a_node_is_shown_as_it_is_metered() {
    let (agent, mut fake) = agent();
    let first = &samples(&agent, &[])[0];
    let watts = gpu(first, LOST)["watts"].as_f64().unwrap();
    assert!((watts - 120.0).abs() < 12.0, "a first sample has watts: {first}");
    let [begin, _, end] = &samples(&agent, &["--count", "3", "--interval", "0.3"])[..] else {
        panic!("three samples were asked for");
    };
    let joules = |sample| gpu(sample, LOST)["watched_joules"].as_f64().unwrap();
    assert!(joules(begin) == 0.0 && joules(end) > 1.0, "{end}");
    let consumers = end["consumers"].as_array().unwrap();
    assert!(consumers.iter().any(|consumer| consumer["watts"].as_f64().is_some()), "{end}");

    fake.apply(&Fake::Lose { gpu: 1.into(), mode: LossMode::GpuIsLost, functions: None }).unwrap();
    agent.until("it is lost", |metrics| metrics.all("wattmill_gpu_lost_info").count() == 1);
    let lost = samples(&agent, &[]);
    let lost = gpu(&lost[0], LOST);
    assert_eq!((&lost["gpu"]["up"], &lost["gpu"]["lost_reason"]), (&false.into(), &"gpu_lost".into()));
    let output = run(&mut tool(&agent.address, &[]));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("NVIDIA H100") && table.contains("LOST: gpu_lost"), "{table}");
    assert!(!table.contains('\u{1b}'), "no terminal, no codes: {table}");
}

#[test]
fn a_reader_that_leaves_is_the_end_and_no_agent_is_a_failure() {
    let (agent, _fake) = agent();
    let mut command = tool(&agent.address, &["--json", "--count", "0", "--interval", "0.1"]);
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    let status = wait_for("the tool ends", PATIENCE, || watch.try_wait().unwrap());
    let said: Vec<String> =
        BufReader::new(watch.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
    assert_eq!((status.code(), said), (Some(0), Vec::new()));

    let address = agent.address.clone();
    drop(agent);
    let output = run(&mut tool(&address, &[]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("wattmill-agent run"), "{said}");
    assert_eq!(run(&mut tool("https://a", &[])).status.code(), Some(64));
}
