//! What `/metrics` shows on eight kinds of hosts.
//!
//! Proves: names, help, types and labels of every family are what they were (values, and what a test's machine
//! decides, are masked), and Prometheus' own linter has nothing to say about them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nvidia_ml::client::Client;
use nvidia_ml::library::{self, Installed};
use nvidia_ml::machine::command::{Command as Tell, LossMode};
use nvidia_ml::machine::config::{Config, GpuConfig, MigConfig, Preset};
use nvidia_ml::machine::waveform::Waveform;
use wattmill_it_metering::PATIENCE;
use wattmill_it_metering::metrics::{Metrics, Series};
use wattmill_it_metering::process::Agent;
use wattmill_it_metering::tools;

/// Families whose series depend on this machine's disks, interfaces, mounts and kernel.
const OF_THIS_MACHINE: [&str; 4] =
    ["wattmill_host_disk_", "wattmill_host_network_", "wattmill_host_filesystem_", "wattmill_host_pressure_"];
/// Labels whose values do.
const MASKED: [&str; 4] = ["node", "cpu_model", "numerics", "version"];

fn golden(keys: impl FnOnce(&Path) -> String, last: &[&str]) -> String {
    golden_after(keys, last, |agent| agent.windows(2))
}

/// As the scrape that `then` comes back with, once all series are there.
fn golden_after(
    keys: impl FnOnce(&Path) -> String,
    last: &[&str],
    then: impl FnOnce(&Agent) -> Metrics,
) -> String {
    let agent = Agent::start("golden", |folder| keys(folder) + "[metering]\ninterval_ms = 100\n");
    agent.until("all series are there", |metrics| {
        let there = |name: &&str| metrics.all(name).next().is_some();
        last.iter().all(there) && there(&"wattmill_host_cpu_utilization_ratio")
    });
    let metrics = then(&agent);
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
pub(crate) fn lint(text: &str) -> String {
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
    let last = [
        "wattmill_gpu_energy_divergence_ratio",
        "wattmill_gpu_energy_uncertainty_ratio",
        "wattmill_node_power_watts",
    ];
    insta::assert_snapshot!(golden(keys, &last));
}

/// GPUs of the fake library.
fn gpus(folder: &Path, gpus: Vec<GpuConfig>) -> (Installed, String) {
    let installed = library::install(folder, &Config { gpus, ..Config::default() }).unwrap();
    let keys = format!("nvml_library = {:?}\n", installed.library.display().to_string());
    (installed, keys)
}

/// An H100 as captures show it, at work.
fn h100() -> GpuConfig {
    GpuConfig { waveform: Some(Waveform::Constant { watts: 650.0 }), ..Preset::H100.gpu() }
}

const LAST_OF_GPUS: [&str; 4] = [
    "wattmill_gpu_energy_divergence_ratio",
    "wattmill_gpu_energy_uncertainty_ratio",
    "wattmill_node_power_watts",
    "wattmill_gpu_utilization_ratio",
];

#[test]
fn with_eight_h100() {
    insta::assert_snapshot!(golden(|folder| gpus(folder, vec![h100(); 8]).1, &LAST_OF_GPUS));
}

/// One GPU in parts, of which NVML tells neither power nor utilisation.
#[test]
fn with_mig() {
    let part = |slices, memory_bytes| MigConfig { slices, memory_bytes, ..MigConfig::default() };
    let mig_devices = vec![part(4, 42_144_366_592), part(2, 20_937_965_568), part(1, 10_200_547_328)];
    let gpu = GpuConfig { mig: true, mig_devices, ..h100() };
    insta::assert_snapshot!(golden(|folder| gpus(folder, vec![gpu]).1, &LAST_OF_GPUS));
}

/// The first of two falls off the bus after an Xid: what it counted stays, and nothing else but that it is lost.
#[test]
fn with_a_lost_gpu() {
    const LOST: &str = "GPU-fa4e0000-0000-4000-8000-000000000000";
    let socket = std::cell::OnceCell::new();
    let keys = |folder: &Path| {
        let (installed, keys) = gpus(folder, vec![h100(); 2]);
        socket.set(installed.socket).unwrap();
        keys
    };
    let energy = |metrics: &Metrics, source| {
        let labels = [("uuid", LOST), ("source", source)];
        metrics.microjoules("wattmill_gpu_energy_joules_total", &labels).unwrap()
    };
    let lose = |agent: &Agent| {
        let mut fake = Client::connect_within(socket.get().unwrap(), PATIENCE).unwrap();
        fake.apply(&Tell::Xid { gpu: 0.into(), xid: 79, recovery_action: None }).unwrap();
        agent.until("the Xid is counted", |m| m.all("wattmill_gpu_xid_errors_total").next().is_some());
        fake.apply(&Tell::Lose { gpu: 0.into(), mode: LossMode::GpuIsLost, functions: None }).unwrap();
        let up = |metrics: &Metrics| metrics.value("wattmill_gpu_up", &[("uuid", LOST)]);
        let lost = agent.until("it is lost", |metrics| up(metrics) == Some(0.0));
        let later = agent.windows(5);
        for source in ["counter", "integrated"] {
            let before = energy(&lost, source);
            assert!(before > 0 && energy(&later, source) == before, "it stands still: {}", later.text);
        }
        later
    };
    insta::assert_snapshot!(golden_after(keys, &LAST_OF_GPUS, lose));
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
