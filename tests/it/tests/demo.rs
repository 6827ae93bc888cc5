//! `wattmill demo`, as whoever tries Wattmill first runs it.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use serde_json::Value;
use wattmill_it::{Output, binary, has_meter, run, turn};
use wattmill_protocol::Hash;

/// Rounds of the shipped job: one that prepares, 200 that train, one that evaluates.
const ROUNDS: u64 = 202;

fn demo(out: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(binary("wattmill"));
    let output = run(command.arg("demo").args(arguments).arg("--out").arg(out));
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    output
}

fn report(output: &Output) -> Value {
    serde_json::from_str(output.stdout.lines().last().unwrap()).unwrap()
}

/// A cluster of real processes trains a model that is good, whose every figure is possible and agrees with
/// the others, and whose file is the one that the report names. Then the same with an agent that is killed
/// while it holds a lease: the model is the same to the bit, and the loss stands in the bill.
#[test]
fn the_demo_trains_the_same_model_whatever_is_killed() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let whole = report(&demo(&folder.path().join("whole"), &["--json"]));
    let figure = |name: &str| whole[name].as_f64().unwrap_or_else(|| panic!("no {name}: {whole:#}"));
    assert!(figure("accuracy") >= 0.96, "{whole:#}");
    assert_eq!(whole["state"], "finished");
    assert_eq!((whole["rounds"].as_u64(), whole["rounds_total"].as_u64()), (Some(ROUNDS), Some(ROUNDS)));
    assert_eq!((figure("requeues"), figure("wasted_joules"), figure("unconfirmed_joules")), (0.0, 0.0, 0.0));
    let (eta, sigma) = (figure("eta"), figure("sigma"));
    assert!(eta > 0.0 && eta < 1.0 && sigma > 0.0 && sigma < 1.0, "{whole:#}");
    assert!((figure("objective") - eta * sigma).abs() <= 1e-12, "{whole:#}");

    // The bill: nodes' joules are the job's, and on a machine without meters all of them are estimates.
    let energy = whole["energy_joules"].as_object().unwrap();
    let joules: f64 = energy.values().map(|j| j.as_f64().unwrap()).sum();
    assert!(joules > 0.0 && (joules - figure("committed_joules")).abs() < 1e-6, "{whole:#}");
    let nodes = whole["nodes"].as_array().unwrap();
    let of_nodes: f64 = nodes.iter().map(|n| n["committed_joules"].as_f64().unwrap()).sum();
    assert!((of_nodes - joules).abs() < 1e-6, "{whole:#}");
    assert!(nodes.len() >= 2 && nodes.iter().all(|n| n["shards"].as_u64() > Some(0)), "{whole:#}");
    if !has_meter() {
        assert_eq!(energy.keys().collect::<Vec<_>>(), ["estimate"]);
    }

    // Efficiency is over every joule, idle ones too, and the bill says the same.
    let idle = figure("idle_joules");
    let efficiency = figure("samples") / (joules + idle);
    assert!(idle > 0.0 && (figure("samples_per_joule") / efficiency - 1.0).abs() < 1e-9, "{whole:#}");
    let bill = std::fs::read(whole["report"].as_str().unwrap()).unwrap();
    let bill: Value = serde_json::from_slice(&bill).unwrap();
    assert_eq!(bill["energy_joules"]["idle_and_other"].as_f64(), Some(idle), "{bill:#}");
    assert_eq!(bill["samples_per_joule"], whole["samples_per_joule"]);

    // The file is what the report says, and PyTorch's format: a length, a JSON header, four tensors.
    let bytes = std::fs::read(whole["model"].as_str().unwrap()).unwrap();
    assert_eq!(Hash::of(&bytes).to_string(), whole["model_sha256"]);
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut shapes: Vec<String> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(_, tensor)| format!("{} {}", tensor["dtype"].as_str().unwrap(), tensor["shape"]))
        .collect();
    shapes.sort();
    assert_eq!(shapes, ["F32 [10,64]", "F32 [10]", "F32 [64,64]", "F32 [64]"]);

    let killed = report(&demo(&folder.path().join("killed"), &["--json", "--kill-one"]));
    assert_eq!(killed["model_sha256"], whole["model_sha256"]);
    assert!(
        killed["requeues"].as_u64() >= Some(1) && killed["wasted_joules"].as_f64() > Some(0.0),
        "{killed:#}"
    );
    assert_eq!(killed["rounds"].as_u64(), Some(ROUNDS));
}

/// Into a pipe goes plain text: no escape sequence, no redrawn line, and the report at its end. Another
/// seed is another model.
#[test]
fn into_a_pipe_the_demo_writes_plain_lines() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let output = demo(&folder.path().join("out"), &["--seed", "2"]);
    for text in [&output.stdout, &output.stderr] {
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
    assert!(output.stdout.contains("Energy report of job"), "{}", output.stdout);
    assert!(output.stdout.contains("accuracy on held-out rows"), "{}", output.stdout);
    // Its state is gone, its logs and what it made are there.
    let left = |name: &str| folder.path().join("out").join(name).exists();
    assert!(!left("state") && left("collector.log") && left("model.safetensors") && left("energy.json"));
}
