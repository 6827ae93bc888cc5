//! GPUs through the real FFI path: a library that the agent loads as it loads NVIDIA's, whose GPUs' true energy
//! is known.
//!
//! Proves: metered joules are the true ones, from a counter to the millijoule and integrated within 0.5 %; a
//! lost GPU stays in sight and keeps its counter, and neither its return nor a counter that starts again makes
//! joules up; what consumers are told sums to what the node used, in every scrape.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvidia_ml::client::Client;
use nvidia_ml::library::{self, Installed};
use nvidia_ml::machine::command::{Command, LossMode, Truth};
use nvidia_ml::machine::config::{Config, GpuConfig};
use nvidia_ml::machine::waveform::Waveform;
use wattmill_it_metering::PATIENCE;
use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::Agent;

const COUNTED: &str = "GPU-fa4e0000-0000-4000-8000-000000000000";
const INTEGRATED: &str = "GPU-fa4e0000-0000-4000-8000-000000000001";
const ENERGY: &str = "wattmill_gpu_energy_joules_total";
const ATTRIBUTED: &str = "wattmill_node_attributed_energy_joules_total";
const NODE: &str = "wattmill_node_energy_joules_total";
/// The most that integrated energy may differ from the truth.
const TOLERANCE: f64 = 0.005;
/// Time that NVML's power is a mean of, and a bit.
const POWER_MEAN: Duration = Duration::from_millis(1_050);

/// Two GPUs at rest: one with an energy counter, one without. Beside them the CPU's energy is estimated, which
/// always grows.
pub(crate) fn install(folder: &Path, watts: f64) -> (Installed, String) {
    let gpu = GpuConfig { waveform: Some(constant(watts)), ..GpuConfig::default() };
    let gpus = vec![gpu.clone(), GpuConfig { energy_counter: false, ..gpu }];
    let installed = library::install(folder, &Config { gpus, ..Config::default() }).unwrap();
    let keys = format!("nvml_library = {:?}\n", installed.library.display().to_string());
    (installed, keys)
}

fn constant(watts: f64) -> Waveform {
    Waveform::Constant { watts }
}

fn square(low_watts: f64, high_watts: f64, period_seconds: f64, duty: f64) -> Waveform {
    Waveform::Square { low_watts, high_watts, period_seconds, duty }
}

fn sine(low_watts: f64, high_watts: f64, period_seconds: f64) -> Waveform {
    Waveform::Sine { low_watts, high_watts, period_seconds }
}

/// An agent with two GPUs that the test moves.
struct Rig {
    agent: Agent,
    fake: Client,
}

impl Rig {
    fn start(name: &str, more: &str) -> Self {
        let mut socket = None;
        let agent = Agent::start(name, |folder| {
            let (installed, keys) = install(folder, 0.0);
            socket = Some(installed.socket);
            keys + more
        });
        let fake = Client::connect_within(&socket.unwrap(), PATIENCE).unwrap();
        let rig = Self { agent, fake };
        // A first reading has no energy: both are followed from zero on, where power is still zero.
        rig.agent.until("both GPUs are metered", |metrics| {
            energy(metrics, COUNTED) == Some(0) && energy(metrics, INTEGRATED) == Some(0)
        });
        // Until it is loaded for a second, the library's mean of a second is one of less.
        rig.settled();
        rig
    }

    /// A scrape after everything of now is in: what NVML calls power is the mean of the last second, so a
    /// second and two windows later.
    fn settled(&self) -> Metrics {
        let since = Instant::now();
        while since.elapsed() < POWER_MEAN {
            self.agent.windows(1);
        }
        self.agent.windows(2)
    }

    fn draw(&mut self, gpu: usize, waveform: Waveform) {
        self.fake.apply(&Command::SetWaveform { gpu: gpu.into(), waveform }).unwrap();
    }

    /// Both draw nothing any more, and everything that they drew is shown.
    ///
    /// A scrape shows the last window, which ended some time ago: under power, its energy and the truth are of
    /// different times. At zero watts both stand still, and can be compared exactly.
    fn rest(&mut self) -> (Metrics, Vec<Truth>) {
        self.draw(0, constant(0.0));
        self.draw(1, constant(0.0));
        let metrics = self.settled();
        let again = self.agent.windows(1);
        for uuid in [COUNTED, INTEGRATED] {
            assert_eq!(energy(&metrics, uuid), energy(&again, uuid), "at rest nothing is added to {uuid}");
        }
        (again, self.fake.truth(None).unwrap())
    }

    fn lose(&mut self, gpu: usize, mode: LossMode) -> u64 {
        self.fake.apply(&Command::Lose { gpu: gpu.into(), mode, functions: None }).unwrap()
    }

    fn restore(&mut self, gpu: usize, restart_counters: bool) -> u64 {
        self.fake.apply(&Command::Restore { gpu: gpu.into(), restart_counters }).unwrap()
    }

    fn until_up(&self, uuid: &str, up: f64) {
        self.agent
            .until(&format!("{uuid} up {up}"), |m| m.value("wattmill_gpu_up", &[("uuid", uuid)]) == Some(up));
    }

    /// True energy of a GPU between two instants.
    fn true_energy(&mut self, gpu: usize, from_ns: u64, to_ns: u64) -> u64 {
        let mut at = |ns| self.fake.truth(Some(ns)).unwrap()[gpu].energy_microjoules;
        at(to_ns) - at(from_ns)
    }
}

/// What a GPU has used, by its one series that counts for the node.
fn energy(metrics: &Metrics, uuid: &str) -> Option<u64> {
    let source = if uuid == COUNTED { "counter" } else { "integrated" };
    metrics.microjoules(ENERGY, &[("uuid", uuid), ("source", source)])
}

fn gaps(metrics: &Metrics, uuid: &str) -> BTreeMap<String, f64> {
    let gaps = metrics.all("wattmill_agent_gaps_total").filter(|series| series.label("device") == uuid);
    gaps.map(|series| (series.label("reason").to_owned(), series.value)).collect()
}

fn deviation(metered: u64, truth: u64) -> f64 {
    (metered as f64 - truth as f64) / truth as f64
}

#[test]
fn metered_joules_are_the_true_ones() {
    let mut rig = Rig::start("gpus", "[metering]\ninterval_ms = 500\ngpu_interval_ms = 100\n");
    // More than ten seconds: each phase is seven windows of half a second.
    for (first, second) in [
        (square(80.0, 690.0, 1.7, 0.3), sine(90.0, 650.0, 2.3)),
        (square(100.0, 400.0, 0.37, 0.5), sine(200.0, 300.0, 0.9)),
        (sine(75.0, 500.0, 3.1), square(60.0, 600.0, 1.3, 0.6)),
    ] {
        rig.draw(0, first);
        rig.draw(1, second);
        rig.agent.windows(7);
    }
    let (metrics, truth) = rig.rest();
    let metered = [energy(&metrics, COUNTED).unwrap(), energy(&metrics, INTEGRATED).unwrap()];
    let shadow = [("uuid", COUNTED), ("source", "integrated")];
    let shadow = metrics.microjoules(ENERGY, &shadow).unwrap();
    let truth = [truth[0].energy_microjoules, truth[1].energy_microjoules];
    println!(
        "true {truth:?} µJ, metered {metered:?} µJ; counter {:+.6} %, integrated {:+.4} %, integrated beside the counter {:+.4} %",
        deviation(metered[0], truth[0]) * 100.0,
        deviation(metered[1], truth[1]) * 100.0,
        deviation(shadow, truth[0]) * 100.0,
    );
    assert!(truth.iter().all(|t| *t > 1_000_000_000), "a kilojoule each: {truth:?}");
    assert!(metered[0].abs_diff(truth[0]) <= 1_000, "the counter counts in millijoules");
    assert!(deviation(metered[1], truth[1]).abs() < TOLERANCE);
    assert!(deviation(shadow, truth[0]).abs() < TOLERANCE);
    let node = |source| metrics.microjoules(NODE, &[("scope", "gpu"), ("source", source)]);
    assert_eq!(node("counter"), Some(metered[0]), "the counter stands for its GPU, and only it");
    assert_eq!(node("integrated"), Some(metered[1]));
    assert!(gaps(&metrics, COUNTED).is_empty() && gaps(&metrics, INTEGRATED).is_empty(), "{}", metrics.text);
    let divergence = metrics.value("wattmill_gpu_energy_divergence_ratio", &[("uuid", COUNTED)]);
    assert!(divergence.is_some_and(|ratio| ratio.abs() < TOLERANCE), "{divergence:?}");
}

#[test]
fn a_lost_gpu_stays_in_sight_and_invents_no_joules() {
    let mut rig = Rig::start("lossy", "[metering]\ninterval_ms = 300\ngpu_interval_ms = 100\n");
    rig.draw(0, constant(500.0));
    rig.draw(1, constant(500.0));
    rig.settled();

    let lost_at = [rig.lose(0, LossMode::GpuIsLost), rig.lose(1, LossMode::NotFound)];
    rig.until_up(COUNTED, 0.0);
    rig.until_up(INTEGRATED, 0.0);
    let before = rig.agent.windows(1);
    let after = rig.agent.windows(3);
    for uuid in [COUNTED, INTEGRATED] {
        assert!(energy(&before, uuid).is_some_and(|energy| energy > 0), "{}", before.text);
        assert_eq!(energy(&before, uuid), energy(&after, uuid), "a counter that is not read stands still");
        assert_eq!(after.value("wattmill_gpu_up", &[("uuid", uuid)]), Some(0.0));
        assert_eq!(after.value("wattmill_gpu_power_watts", &[("uuid", uuid)]), None, "unknown is not zero");
    }

    // The counter went on while nobody could read it: all of its energy was really drawn.
    let back_at = [rig.restore(0, false), rig.restore(1, false)];
    rig.until_up(COUNTED, 1.0);
    rig.until_up(INTEGRATED, 1.0);
    rig.agent.windows(1);
    let (metrics, truth) = rig.rest();
    let counted = energy(&metrics, COUNTED).unwrap();
    assert!(counted.abs_diff(truth[0].energy_microjoules) <= 1_000, "{counted} of {truth:?}");
    assert!(gaps(&metrics, COUNTED).is_empty(), "{}", metrics.text);
    // Nobody integrated meanwhile: what was drawn then is missing, and said to be.
    let unseen = rig.true_energy(1, lost_at[1], back_at[1]);
    let seen = truth[1].energy_microjoules - unseen;
    let integrated = energy(&metrics, INTEGRATED).unwrap();
    println!("integrated {integrated} of {seen} µJ, and {unseen} µJ that nobody saw");
    assert!(unseen > 100_000_000, "{unseen}");
    assert!(deviation(integrated, seen) < TOLERANCE, "{integrated} of {seen}");
    assert_eq!(gaps(&metrics, INTEGRATED), BTreeMap::from([("unread".to_owned(), 1.0)]));

    // Lost again, and back after a reset of the GPU: its counter starts again from zero.
    rig.draw(0, constant(500.0));
    rig.agent.windows(2);
    let lost_at = rig.lose(0, LossMode::GpuIsLost);
    rig.until_up(COUNTED, 0.0);
    rig.agent.windows(2);
    let back_at = rig.restore(0, true);
    rig.until_up(COUNTED, 1.0);
    rig.agent
        .until("the reset is counted", |m| gaps(m, COUNTED) == BTreeMap::from([("reset".to_owned(), 1.0)]));
    let reset = energy(&rig.agent.metrics(), COUNTED).unwrap();
    rig.agent.windows(2);
    let (metrics, truth) = rig.rest();
    let unseen = rig.true_energy(0, lost_at, back_at);
    let counted = energy(&metrics, COUNTED).unwrap();
    assert!(counted + unseen <= truth[0].energy_microjoules + 1_000, "{counted}, {unseen} of {truth:?}");
    assert!(counted > reset, "metering goes on after it");
    assert_eq!(gaps(&metrics, COUNTED), BTreeMap::from([("reset".to_owned(), 1.0)]), "once");
}

/// At rest, so that nothing is drawn unseen: every joule is counted before it or after.
#[test]
fn a_reloaded_driver_is_a_gap_and_neither_makes_nor_loses_joules() {
    let mut rig = Rig::start("reload", "[metering]\ninterval_ms = 300\ngpu_interval_ms = 100\n");
    let drawn = |rig: &mut Rig| {
        rig.draw(0, constant(500.0));
        rig.draw(1, constant(500.0));
        rig.agent.windows(3);
        let (metrics, truth) = rig.rest();
        let counted = energy(&metrics, COUNTED).unwrap();
        // The counter is in millijoules, and began twice.
        assert!(counted.abs_diff(truth[0].energy_microjoules) <= 2_000, "{counted} of {truth:?}");
        let integrated = energy(&metrics, INTEGRATED).unwrap();
        assert!(
            deviation(integrated, truth[1].energy_microjoules).abs() < TOLERANCE,
            "{integrated} of {truth:?}"
        );
        metrics
    };
    assert!(gaps(&drawn(&mut rig), COUNTED).is_empty());
    rig.fake.apply(&Command::ReloadDriver).unwrap();
    let reset = BTreeMap::from([("reset".to_owned(), 1.0)]);
    rig.agent.until("the reset is counted", |metrics| gaps(metrics, COUNTED) == reset);
    rig.until_up(INTEGRATED, 1.0);
    let metrics = drawn(&mut rig);
    assert_eq!(gaps(&metrics, COUNTED), reset, "once");
    assert_eq!(gaps(&metrics, INTEGRATED), BTreeMap::from([("unread".to_owned(), 1.0)]));
}

#[test]
fn consumers_sum_to_what_the_node_used_in_every_scrape() {
    // A third of the host and a bit: what is less than a microjoule has to be carried.
    let keys = "host_fraction = 0.370001\n[metering]\ninterval_ms = 100\ngpu_interval_ms = 50\n";
    let mut rig = Rig::start("identity", keys);
    rig.draw(0, square(83.0, 611.0, 0.31, 0.4));
    rig.draw(1, sine(71.0, 433.0, 0.7));
    let done = Arc::new(AtomicBool::new(false));
    let busy = Arc::clone(&done);
    let load = std::thread::spawn(move || {
        while !busy.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let mut last = rig.agent.windows(1);
    for scrape in 0..25 {
        let used = last.microjoules_by(NODE, "source");
        assert_eq!(last.microjoules_by(ATTRIBUTED, "source"), used, "scrape {scrape}:\n{}", last.text);
        last = rig.agent.windows(1);
    }
    done.store(true, Ordering::Relaxed);
    load.join().unwrap();
    let used = last.microjoules_by(NODE, "source");
    let sources: Vec<&str> =
        used.iter().filter(|(_, sum)| **sum > 0).map(|(source, _)| source.as_str()).collect();
    assert_eq!(sources, ["counter", "estimate", "integrated"], "each had something to split");
    let consumers = last.microjoules_by(ATTRIBUTED, "consumer");
    let other = consumers.get("other").copied().unwrap_or_default();
    assert!(other > 0 && consumers.len() >= 2, "the busy test is a consumer: {consumers:?}");
}
