//! A GPU that somebody else uses, from NVML through the agent and the collector to the planner.
//!
//! Proves: a node that trains on it gets no work while it is used, and says why; once it is free the job trains.

use std::fs;

use nvidia_ml::client::Client;
use nvidia_ml::library;
use nvidia_ml::machine::command::{Command, Process};
use nvidia_ml::machine::config::{Config, GpuConfig};
use serde_json::Value;
use wattmill_it_metering::process::{Agent, Collector};
use wattmill_it_metering::{PATIENCE, wait_for};

const GPU: &str = "GPU-fa4e0000-0000-4000-8000-000000000000";
/// Not a process of this machine: above what the kernel gives.
const FOREIGN: u32 = 4_194_401;

/// A job of two rounds over sixteen rows.
fn job(folder: &std::path::Path) -> String {
    let rows: String = (0..16).map(|row| format!("{row},{}\n", row % 2)).collect();
    let data = folder.join("data.csv");
    fs::write(&data, rows).unwrap();
    let text = format!(
        "name = \"small\"\n[model]\nlayers = [{{ units = 2, activation = \"softmax\" }}]\n\
         [data]\nuri = \"file://{}\"\nfeatures = 1\nclasses = 2\n\
         [training]\nepochs = 1\nshard_size = 8\nshards_per_round = 1\n\
         optimizer = {{ name = \"sgd\", learning_rate = 0.1 }}\n",
        data.display()
    );
    let file = folder.join("job.toml");
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn a_gpu_in_use_by_others_is_left_alone() {
    let collector = Collector::start();
    let mut socket = None;
    let agent = Agent::start("busy", |folder| {
        let config = Config { gpus: vec![GpuConfig::default()], ..Config::default() };
        let installed = library::install(folder, &config).unwrap();
        socket = Some(installed.socket);
        // A node that knows how fast its GPU is trains on it.
        format!(
            "collector = \"http://{}\"\nnvml_library = {:?}\n[peak]\nflops = {{ \"{GPU}\" = 1e13 }}\n\
             [metering]\ninterval_ms = 100\n",
            collector.grpc,
            installed.library.display().to_string()
        )
    });
    let mut fake = Client::connect_within(&socket.unwrap(), PATIENCE).unwrap();
    let mut uses = |pids: &[u32]| {
        let processes = pids.iter().map(|pid| Process { pid: *pid, ..Process::default() }).collect();
        fake.apply(&Command::Processes { gpu: 0.into(), processes }).unwrap();
    };
    uses(&[FOREIGN]);
    let foreign = [("uuid", GPU)];
    agent.until("the GPU is reported as busy", |metrics| {
        metrics.value("wattmill_gpu_foreign_processes", &foreign) == Some(1.0)
    });
    let node = |what: &str, is: &dyn Fn(&Value) -> bool| {
        wait_for(what, PATIENCE, || {
            let nodes = collector.ask(&["nodes"]);
            nodes.as_array().and_then(|nodes| nodes.first().cloned()).filter(|node| is(node))
        })
    };
    node("the collector knows, and the node could train", &|node| {
        node["gpus"][0]["foreign_processes"] == 1 && node["numerics"] != ""
    });
    let submitted = collector.ask(&["submit", "--no-wait", &job(agent.folder.folder.path())]);
    let id = submitted["job"].as_str().unwrap().to_owned();
    let excluded = format!("its GPU {GPU} is used by another program");
    node("the planner says why the node gets nothing", &|node| node["excluded"] == excluded.as_str());
    // It goes on looking: the next windows and plans give nothing either.
    agent.windows(20);
    let jobs = collector.ask(&["jobs"]);
    assert_eq!(jobs[0]["samples"], 0, "{jobs}");
    let waits = node("and still does", &|node| node["excluded"] == excluded.as_str());
    assert_eq!(waits["running"], 0, "{waits}");

    uses(&[]);
    wait_for("the job trains once the GPU is free", PATIENCE, || {
        let jobs = collector.ask(&["jobs"]);
        (jobs[0]["job"] == id.as_str() && jobs[0]["state"] == "finished").then_some(())
    });
}
