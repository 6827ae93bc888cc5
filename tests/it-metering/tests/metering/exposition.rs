//! What `/metrics` shows on five kinds of hosts.
//!
//! Proves: names, help, types and labels of every family are what they were (values, and what a test's machine
//! decides, are masked), and Prometheus' own linter has nothing to say about them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use wattmill_it_metering::metrics::{Metrics, Series};
use wattmill_it_metering::process::Agent;
use wattmill_it_metering::{http, tools};

/// Families whose series depend on this machine's disks, interfaces, mounts and kernel.
const OF_THIS_MACHINE: [&str; 4] =
    ["wattmill_host_disk_", "wattmill_host_network_", "wattmill_host_filesystem_", "wattmill_host_pressure_"];
/// Labels whose values do.
const MASKED: [&str; 4] = ["node", "cpu_model", "numerics", "version"];

fn golden(keys: impl FnOnce(&Path) -> String, last: &[&str]) -> String {
    let agent = Agent::start("golden", |folder| keys(folder) + "[metering]\ninterval_ms = 100\n");
    agent.until("all series are there", |metrics| {
        let there = |name: &&str| metrics.all(name).next().is_some();
        last.iter().all(there) && there(&"wattmill_host_cpu_utilization_ratio")
    });
    let metrics = agent.windows(2);
    let answer = http::get(&agent.address, "/metrics");
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(lint(&metrics.text), "", "{}", metrics.text);
    families(&metrics)
}

/// Everything but the values.
fn families(metrics: &Metrics) -> String {
    let mut text = String::new();
    let ours = |name: &str| !OF_THIS_MACHINE.iter().any(|family| name.starts_with(family));
    for line in metrics.text.lines().filter_map(|line| line.strip_prefix("# ")) {
        let mut words = line.splitn(3, ' ');
        let (kind, name) = (words.next().unwrap(), words.next().unwrap());
        if !ours(name) {
            continue;
        }
        text.push_str(&format!("# {line}\n"));
        if kind == "TYPE" {
            text.extend(metrics.all(name).map(masked));
        }
    }
    text
}

fn masked(series: &Series) -> String {
    let label = |(name, value): (&String, &String)| {
        let value = if MASKED.contains(&name.as_str()) { "…" } else { value };
        format!("{name}={value:?}")
    };
    let labels: Vec<String> = series.labels.iter().map(label).collect();
    format!("{}{{{}}}\n", series.name, labels.join(","))
}

/// What Prometheus' linter has to say.
fn lint(text: &str) -> String {
    let Some(promtool) = tools::find("promtool", "prometheus") else { return String::new() };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn without_a_meter() {
    insta::assert_snapshot!(golden(|_| String::new(), &["wattmill_cpu_power_watts"]));
}

#[test]
fn with_rapl() {
    let keys = |folder: &Path| {
        super::check::powercap(&folder.join("sys"));
        String::new()
    };
    insta::assert_snapshot!(golden(keys, &["wattmill_cpu_power_watts"]));
}

#[test]
fn with_two_gpus() {
    let keys = |folder: &Path| super::nvml::install(folder, 100.0).1;
    let last = ["wattmill_gpu_energy_divergence_ratio", "wattmill_node_power_watts"];
    insta::assert_snapshot!(golden(keys, &last));
}

/// A card for servers without an energy counter, and the board's power meter.
#[test]
fn with_an_amd_gpu() {
    let keys = |folder: &Path| {
        let sysfs = folder.join("sys");
        super::hwmon::amd(&sysfs, "card1", 250);
        super::hwmon::power_meter(&sysfs, 480);
        String::new()
    };
    insta::assert_snapshot!(golden(keys, &["wattmill_gpu_power_watts", "wattmill_sensor_power_watts"]));
}

#[test]
fn with_an_intel_gpu() {
    let mut moving = None;
    let keys = |folder: &Path| {
        moving = Some(super::hwmon::Moving::start(&folder.join("sys"), "card0", 150));
        String::new()
    };
    insta::assert_snapshot!(golden(keys, &["wattmill_gpu_power_watts"]));
}

#[test]
fn the_linter_is_one() {
    if tools::find("promtool", "prometheus").is_some() {
        let said = lint("# TYPE seconds counter\nseconds 1\n");
        assert!(said.contains("_total") && said.contains("help"), "{said}");
    }
}
