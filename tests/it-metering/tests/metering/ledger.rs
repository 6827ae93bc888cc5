//! What is shown once the agent was restarted, the host booted, a GPU swapped, or the state folder lost or copied to
//! another host.
//!
//! Proves: sums go on; a counter is gone on from only where it is the very one that was read, however well its
//! number would fit; each time that it is not is one gap, by its reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nvidia_ml::client::Client;
use nvidia_ml::library;
use nvidia_ml::machine::command::Command;
use nvidia_ml::machine::config::{Config, GpuConfig};
use nvidia_ml::machine::waveform::Waveform;
use wattmill_it_metering::PATIENCE;
use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::{Agent, AgentFolder};

const ZONE: &str = "wattmill_cpu_energy_joules_total";
const GPU: &str = "wattmill_gpu_energy_joules_total";
const NODE: &str = "wattmill_node_energy_joules_total";
const ATTRIBUTED: &str = "wattmill_node_attributed_energy_joules_total";
const LOST: &str = "wattmill_gpu_lost_info";
const JOULE: u64 = 1_000_000;
const OTHER_MACHINE: &str = "fedcba9876543210fedcba9876543210";
const COPIED: &str = "the ledger was kept on another host; going on with it. If this host is a clone, give it an empty state_dir";

/// A host with one package, whose counter, boot and machine-id are the test's.
struct Host {
    root: PathBuf,
    energy: PathBuf,
    raw: u64,
}

impl Host {
    fn new() -> (Self, AgentFolder) {
        let mut energy = PathBuf::new();
        let folder = AgentFolder::new("ledger", |folder| {
            energy = super::check::powercap(&folder.join("sys"));
            fs::create_dir_all(folder.join("proc/sys/kernel/random")).unwrap();
            let procfs = folder.join("proc").display().to_string();
            format!("procfs_root = {procfs:?}\n[metering]\ninterval_ms = 100\n")
        });
        let mut host = Self { root: folder.folder.path().to_owned(), energy, raw: 0 };
        host.boot("6d2a48ad-0000-4000-8000-000000000001");
        host.draws(1_000);
        (host, folder)
    }

    fn boot(&self, id: &str) {
        fs::write(self.root.join("proc/sys/kernel/random/boot_id"), id).unwrap();
    }

    /// Renamed into its place: a reader sees the old number or the new one, as with the kernel's.
    fn draws(&mut self, joules: u64) {
        self.raw += joules * JOULE;
        let new = self.energy.with_extension("new");
        fs::write(&new, format!("{}\n", self.raw)).unwrap();
        fs::rename(new, &self.energy).unwrap();
    }
}

fn started(folder: AgentFolder) -> Agent {
    let agent = Agent::start_in("ledger", folder);
    agent.until("the package is read", |metrics| {
        metrics.value("wattmill_agent_backend_up", &[("backend", "rapl")]) == Some(1.0)
    });
    agent
}

/// The agent is killed, as by a crash; its folder stays.
fn killed(mut agent: Agent) -> AgentFolder {
    agent.process.kill();
    agent.folder
}

/// A scrape that shows so many joules of the package, once more could be shown.
fn shown(agent: &Agent, joules: u64) -> Metrics {
    let of_package = |metrics: &Metrics| metrics.microjoules(ZONE, &[("zone", "package-0")]);
    agent.until(&format!("{joules} J are shown"), |metrics| of_package(metrics) == Some(joules * JOULE));
    let later = agent.windows(3);
    assert_eq!(of_package(&later), Some(joules * JOULE), "and no more than that: {}", later.text);
    let node = [("scope", "cpu"), ("source", "counter")];
    assert_eq!(later.microjoules(NODE, &node), Some(joules * JOULE), "they are the node's: {}", later.text);
    later
}

/// Gaps by device and reason.
fn gaps(metrics: &Metrics) -> BTreeMap<(&str, &str), f64> {
    metrics
        .all("wattmill_agent_gaps_total")
        .map(|gap| ((gap.label("device"), gap.label("reason")), gap.value))
        .collect()
}

/// One gap of each zone, by this reason.
fn one_each(reason: &str) -> BTreeMap<(&str, &str), f64> {
    BTreeMap::from([(("package-0", reason), 1.0), (("package-0/dram", reason), 1.0)])
}

fn info(metrics: &Metrics) -> [String; 2] {
    let info = metrics.find("wattmill_node_info", &[]).unwrap();
    ["node", "machine_id"].map(|label| info.label(label).to_owned())
}

#[test]
fn a_restart_counts_on_and_a_boot_is_a_gap() {
    let (mut host, folder) = Host::new();
    let agent = started(folder);
    host.draws(5);
    shown(&agent, 5);

    let folder = killed(agent);
    host.draws(7);
    let agent = started(folder);
    let metrics = shown(&agent, 12);
    let others = [("consumer", "other"), ("source", "counter")];
    assert_eq!(metrics.microjoules(ATTRIBUTED, &others), Some(7 * JOULE), "nobody watched who used them");
    assert_eq!(gaps(&metrics), BTreeMap::new());

    let folder = killed(agent);
    host.boot("6d2a48ad-0000-4000-8000-000000000002");
    // Within what it could have counted had it gone on.
    host.draws(20);
    let agent = started(folder);
    assert_eq!(gaps(&shown(&agent, 12)), one_each("reboot"));
    host.draws(3);
    assert_eq!(gaps(&shown(&agent, 15)), one_each("reboot"), "once");
}

/// The copy takes the node's identity along: hosts are told apart by their machine-id.
#[test]
fn a_copy_on_another_host_goes_on_without_that_ones_joules() {
    let (mut host, folder) = Host::new();
    let agent = started(folder);
    host.draws(5);
    let [node, machine] = info(&shown(&agent, 5));
    let original = killed(agent);

    let (mut other, folder) = Host::new();
    let state = other.root.join("state");
    fs::create_dir(&state).unwrap();
    for file in fs::read_dir(host.root.join("state")).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), state.join(file.file_name())).unwrap();
    }
    fs::write(other.root.join("machine-id"), OTHER_MACHINE).unwrap();
    // Even the boot's identity is the same, and the counter is where the other one's could be by now.
    other.draws(25);
    let mut agent = started(folder);
    agent.process.event(COPIED);
    let metrics = shown(&agent, 5);
    assert_eq!(gaps(&metrics), one_each("other_host"));
    assert_eq!(info(&metrics), [node.clone(), OTHER_MACHINE.to_owned()]);
    other.draws(3);
    shown(&agent, 8);
    let agent = started(killed(agent));
    assert_eq!(gaps(&shown(&agent, 8)), one_each("other_host"), "once: by now it is this host's");

    // Where it came from nothing has changed.
    host.draws(2);
    let agent = started(original);
    let metrics = shown(&agent, 7);
    assert_eq!((gaps(&metrics), info(&metrics)), (BTreeMap::new(), [node, machine]));
}

#[test]
fn a_ledger_that_is_lost_begins_anew_and_says_so() {
    let (mut host, folder) = Host::new();
    let agent = started(folder);
    host.draws(5);
    shown(&agent, 5);
    let folder = killed(agent);
    let state = host.root.join("state");
    for name in ["ledger.a", "ledger.b", "ledger.c"] {
        fs::write(state.join(name), "garbage").unwrap();
    }
    host.draws(7);
    let agent = started(folder);
    let lost = BTreeMap::from([(("ledger", "ledger_lost"), 1.0)]);
    assert_eq!(gaps(&shown(&agent, 0)), lost);
    host.draws(3);
    assert_eq!(gaps(&shown(&agent, 3)), lost);
    let names = fs::read_dir(&state).unwrap().map(|file| file.unwrap().file_name());
    let kept = names.filter(|name| name.to_string_lossy().contains(".corrupt-"));
    assert_eq!(kept.count(), 3, "they are set aside");
}

/// What a GPU's own counter has counted.
fn counted(metrics: &Metrics, uuid: &str) -> Option<u64> {
    metrics.microjoules(GPU, &[("uuid", uuid), ("source", "counter")])
}

/// A library with one GPU in the first slot, and its socket.
fn gpu(folder: &Path, uuid: &str, watts: f64) -> (PathBuf, PathBuf) {
    let gpu = GpuConfig {
        uuid: Some(uuid.to_owned()),
        pci: Some("00000000:18:00.0".to_owned()),
        waveform: Some(Waveform::Constant { watts }),
        ..GpuConfig::default()
    };
    let installed = library::install(folder, &Config { gpus: vec![gpu], ..Config::default() }).unwrap();
    (installed.library, installed.socket)
}

#[test]
fn a_gpu_in_the_place_of_another_begins_a_series_of_its_own() {
    const OLD: &str = "GPU-01d00000-0000-4000-8000-000000000000";
    const NEW: &str = "GPU-4e300000-0000-4000-8000-000000000000";
    let counted =
        |metrics: &Metrics, uuid| metrics.microjoules(GPU, &[("uuid", uuid), ("source", "counter")]);
    let up = |metrics: &Metrics, uuid| metrics.value("wattmill_gpu_up", &[("uuid", uuid)]);
    let node = |metrics: &Metrics| metrics.microjoules(NODE, &[("scope", "gpu"), ("source", "counter")]);
    let mut socket = PathBuf::new();
    let agent = Agent::start("swap", |folder| {
        let (library, control) = gpu(folder, OLD, 40.0);
        socket = control;
        let library = library.display().to_string();
        format!("nvml_library = {library:?}\n[metering]\ninterval_ms = 100\ngpu_interval_ms = 50\n")
    });
    // At rest nothing can be counted after it was shown.
    let rest = |agent: &Agent, uuid, joules| {
        let mut fake = Client::connect_within(&socket, PATIENCE).unwrap();
        agent.until("joules are counted", |metrics| counted(metrics, uuid) > Some(joules * JOULE));
        let none = Waveform::Constant { watts: 0.0 };
        fake.apply(&Command::SetWaveform { gpu: 0.into(), waveform: none }).unwrap();
        (agent.windows(3), fake.truth(None).unwrap()[0].energy_microjoules)
    };
    let (last, _) = rest(&agent, OLD, 2);
    let before = counted(&last, OLD).unwrap();

    let folder = killed(agent);
    // It draws so much that its counter soon is where the old one's could be by now.
    gpu(folder.folder.path(), NEW, 700.0);
    let agent = Agent::start_in("swap", folder);
    let (metrics, truth) = rest(&agent, NEW, 100);
    let new = counted(&metrics, NEW).unwrap();
    assert!(new <= truth, "{new} of {truth}");
    assert_eq!(counted(&metrics, OLD), Some(before), "it stands still: {}", metrics.text);
    assert_eq!(node(&metrics), Some(before + new));
    assert_eq!((up(&metrics, OLD), up(&metrics, NEW)), (Some(0.0), Some(1.0)), "{}", metrics.text);
    let lost = [("uuid", OLD), ("reason", "not_found")];
    assert_eq!(metrics.value(LOST, &lost), Some(1.0), "{}", metrics.text);
    let of_gpus = gaps(&metrics).into_keys().filter(|(device, _)| device.starts_with("GPU-"));
    assert_eq!(of_gpus.count(), 0, "{:?}", gaps(&metrics));
}

/// A table of an accelerator of AMD's as its driver makes it: size, version, and at byte 24 a count of 2^-16 J.
fn table(joules: u64) -> [u8; 288] {
    let mut bytes = [0; 288];
    bytes[..4].copy_from_slice(&[32, 1, 1, 4]);
    bytes[24..32].copy_from_slice(&(joules << 16).to_le_bytes());
    bytes
}

/// With a counter that is the test's, to the joule.
#[test]
fn a_counter_in_the_place_of_another_is_not_gone_on_from() {
    const OLD: &str = "AMD-43a21ba8fd2ce3b5";
    const NEW: &str = "AMD-000000000000004e";
    let mut device = PathBuf::new();
    let folder = AgentFolder::new("swap", |folder| {
        let hwmon = super::hwmon::amd(&folder.join("sys"), "card1", 0);
        device = hwmon.ancestors().nth(2).unwrap().to_owned();
        "[metering]\ninterval_ms = 100\n".to_owned()
    });
    let shows = |joules| {
        let (file, new) = (device.join("gpu_metrics"), device.join("gpu_metrics.new"));
        fs::write(&new, table(joules)).unwrap();
        fs::rename(new, file).unwrap();
    };
    let shown = |agent: &Agent, uuid, joules| {
        let wanted = Some(joules * JOULE);
        agent.until("joules are counted", |metrics| counted(metrics, uuid) == wanted);
        let later = agent.windows(3);
        assert_eq!(counted(&later, uuid), wanted, "and no more: {}", later.text);
        later
    };
    shows(1_000);
    let agent = Agent::start_in("swap", folder);
    shown(&agent, OLD, 0);
    shows(1_005);
    shown(&agent, OLD, 5);

    let folder = killed(agent);
    fs::write(device.join("unique_id"), "000000000000004e\n").unwrap();
    // Where the old one's counter could well be by now.
    shows(1_025);
    let agent = Agent::start_in("swap", folder);
    shown(&agent, NEW, 0);
    shows(1_028);
    let metrics = shown(&agent, NEW, 3);
    assert_eq!(counted(&metrics, OLD), Some(5 * JOULE), "it stands still");
    let node = metrics.microjoules(NODE, &[("scope", "gpu"), ("source", "counter")]);
    assert_eq!(node, Some(8 * JOULE), "{}", metrics.text);
    let lost = [("uuid", OLD), ("reason", "not_found")];
    assert_eq!(metrics.value(LOST, &lost), Some(1.0), "{}", metrics.text);
    let of_gpus = gaps(&metrics).into_keys().filter(|(device, _)| device.starts_with("AMD-"));
    assert_eq!(of_gpus.count(), 0, "{:?}", gaps(&metrics));
}
