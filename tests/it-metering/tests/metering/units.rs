//! Whose the joules are: services, containers and jobs, through their cgroups and the processes on GPUs.
//!
//! Proves: in every scrape shards, units, others and idle time are exactly what the node used, and the units' own
//! series exactly their part of it; joules follow CPU time; no sum falls, also over a kill; a real cgroup of this
//! kernel's is seen.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nvidia_ml::client::Client;
use nvidia_ml::library;
use nvidia_ml::machine::command::{Command as Tell, Process};
use nvidia_ml::machine::config::{Config, GpuConfig};
use nvidia_ml::machine::waveform::Waveform;
use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::{Agent, AgentFolder};
use wattmill_it_metering::{PATIENCE, wait_for};

const ATTRIBUTED: &str = "wattmill_node_attributed_energy_joules_total";
const NODE: &str = "wattmill_node_energy_joules_total";
const UNIT: &str = "wattmill_unit_energy_joules_total";
/// Nanoseconds of a tick of `/proc/stat`.
const TICK_NANOS: u64 = 10_000_000;
/// Process on the GPU; above what the kernel gives.
const PID: u32 = 4_194_400;
const CONTAINER: &str = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d";

/// A host in a folder: its CPU time, cgroups and a package's energy, all moved by the test.
struct Host {
    root: PathBuf,
    /// CPU microseconds by cgroup.
    used: BTreeMap<&'static str, u64>,
    busy_ticks: u64,
    idle_ticks: u64,
    package: u64,
    energy: PathBuf,
}

impl Host {
    const BUSY: &'static str = "system.slice/busy.service";
    const QUIET: &'static str = "system.slice/quiet.service";
    const CONTAINER: &'static str = "user.slice/user-7.slice/user@7.service/user.slice/libpod-ID.scope";
    const USER: &'static str = "user.slice/user-7.slice/user@7.service";
    const JOB: &'static str = "system.slice/slurmstepd.scope/job_7";

    fn new(root: &Path) -> Self {
        let energy = super::check::powercap(&root.join("sys"));
        fs::write(energy.with_file_name("intel-rapl:0:0").join("energy_uj"), "1").unwrap();
        let process = root.join("proc").join(PID.to_string());
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("cgroup"), format!("0::/{}/step_0/user/task_0\n", Self::JOB)).unwrap();
        let used =
            [Self::BUSY, Self::QUIET, Self::CONTAINER, Self::USER, Self::JOB].map(|path| (path, 5_000));
        let host = Self {
            root: root.to_owned(),
            used: used.into(),
            busy_ticks: 100,
            idle_ticks: 100,
            package: 1_000,
            energy,
        };
        for path in host.used.keys() {
            fs::create_dir_all(host.cgroup(path)).unwrap();
            fs::write(host.cgroup(path).join("cpu.stat"), "").unwrap();
        }
        fs::write(root.join("sys/fs/cgroup/cgroup.controllers"), "cpu\n").unwrap();
        host.write();
        host
    }

    fn cgroup(&self, path: &str) -> PathBuf {
        self.root.join("sys/fs/cgroup").join(path.replace("ID", CONTAINER))
    }

    /// Shows everything. A reader sees whole numbers: files are renamed into their places, and those of cgroups,
    /// which stay open, overwritten by as many digits.
    fn write(&self) {
        for (path, used) in &self.used {
            let file = File::options().write(true).open(self.cgroup(path).join("cpu.stat")).unwrap();
            file.write_all_at(format!("usage_usec {used:015}\nuser_usec 0\n").as_bytes(), 0).unwrap();
        }
        let stat = format!("cpu0 {} 0 0 {} 0 0 0 0 0 0\nbtime 5\n", self.busy_ticks, self.idle_ticks);
        for (file, text) in
            [(self.root.join("proc/stat"), stat), (self.energy.clone(), self.package.to_string())]
        {
            let new = file.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &file).unwrap();
        }
    }

    /// A tenth of a second: four tenths of it the busy one, one tenth each the quiet one, the container and others,
    /// and the rest idle.
    fn run(&mut self) {
        for (path, micros) in [
            (Self::BUSY, 40_000),
            (Self::QUIET, 10_000),
            (Self::CONTAINER, 10_000),
            // It contains the container, and uses nothing itself.
            (Self::USER, 10_000),
        ] {
            *self.used.get_mut(path).unwrap() += micros;
        }
        self.busy_ticks += 70_000_000 / TICK_NANOS;
        self.idle_ticks += 30_000_000 / TICK_NANOS;
        self.package += 1_000_003;
        self.write();
    }
}

/// What an operator can check by `/metrics` alone.
fn identity(metrics: &Metrics) {
    let text = &metrics.text;
    assert_eq!(
        metrics.microjoules_by(ATTRIBUTED, "source"),
        metrics.microjoules_by(NODE, "source"),
        "{text}"
    );
    for (source, units) in metrics.microjoules_by(UNIT, "source") {
        let labels = [("consumer", "units"), ("source", source.as_str())];
        assert_eq!(metrics.microjoules(ATTRIBUTED, &labels).unwrap_or(0), units, "{source}: {text}");
    }
}

fn unit(metrics: &Metrics, kind: &str, name: &str, scope: &str) -> Option<u64> {
    metrics.microjoules(UNIT, &[("kind", kind), ("name", name), ("scope", scope)])
}

#[test]
fn joules_are_their_users_to_the_microjoule() {
    let mut host = None;
    let mut socket = None;
    let folder = AgentFolder::new("units", |folder| {
        host = Some(Host::new(folder));
        let gpu = GpuConfig { waveform: Some(Waveform::Constant { watts: 300.0 }), ..GpuConfig::default() };
        let installed = library::install(folder, &Config { gpus: vec![gpu], ..Config::default() }).unwrap();
        socket = Some(installed.socket);
        format!(
            "procfs_root = {:?}\nnvml_library = {:?}\n\
             [attribution]\nby = [\"systemd\", \"container\", \"slurm\"]\ntop = 4\n\
             [metering]\ninterval_ms = 100\ngpu_interval_ms = 50\n",
            folder.join("proc").display().to_string(),
            installed.library.display().to_string()
        )
    });
    let mut host = host.unwrap();
    let mut agent = Agent::start_in("units", folder);
    let mut fake = Client::connect_within(&socket.unwrap(), PATIENCE).unwrap();
    let process = Process { pid: PID, sm_percent: Some(40), ..Process::default() };
    fake.apply(&Tell::Processes { gpu: 0.into(), processes: vec![process] }).unwrap();
    fake.apply(&Tell::Utilization { gpu: 0.into(), gpu_percent: Some(50), memory_percent: None }).unwrap();
    let placed =
        [("systemd", "busy.service"), ("systemd", "quiet.service"), ("container", CONTAINER), ("slurm", "7")];
    let mut windows = 0;
    let first = agent.until("every unit has its series", |metrics| {
        windows += 1;
        identity(metrics);
        host.run();
        placed.iter().all(|(kind, name)| unit(metrics, kind, name, "cpu").is_some())
    });
    assert!(windows > 1, "a unit has used something before it has a place");
    let mut last = first.clone();
    for _ in 0..30 {
        host.run();
        let next = agent.windows(1);
        identity(&next);
        for series in last.all(UNIT) {
            let labels: Vec<(&str, &str)> =
                series.labels.iter().map(|(l, v)| (l.as_str(), v.as_str())).collect();
            assert!(next.value(UNIT, &labels) >= Some(series.value), "{series:?} fell:\n{}", next.text);
        }
        last = next;
    }
    let grown = |kind: &str, name: &str, scope: &str| {
        let [before, after] = [&first, &last].map(|metrics| unit(metrics, kind, name, scope).unwrap());
        (after - before) as f64
    };
    let busy = grown("systemd", "busy.service", "cpu");
    assert!(busy > 5e6, "{busy} µJ of some 30 J");
    for (kind, name) in [("systemd", "quiet.service"), ("container", CONTAINER)] {
        let ratio = busy / grown(kind, name, "cpu");
        // The windows' ends and the test's steps are apart, so that a step may stand in two windows.
        assert!((3.6..4.4).contains(&ratio), "{name} used a quarter: {ratio}");
    }
    assert_eq!(unit(&last, "systemd", "user@7.service", "cpu"), None, "all of it is its container's");
    assert!(grown("slurm", "7", "gpu") > 1e6, "the job has the GPU:\n{}", last.text);
    assert_eq!(grown("slurm", "7", "cpu"), 0.0);
    let consumers = last.microjoules_by(ATTRIBUTED, "consumer");
    assert!(["units", "other", "idle"].iter().all(|name| consumers[*name] > 0), "{consumers:?}");

    agent.process.kill();
    let mut agent = Agent::start_in("units", agent.folder);
    let again = agent.until("sums go on after a kill", |metrics| {
        identity(metrics);
        unit(metrics, "systemd", "busy.service", "cpu").is_some()
    });
    for (kind, name) in placed {
        for scope in ["cpu", "gpu"] {
            let [before, after] = [&last, &again].map(|metrics| unit(metrics, kind, name, scope).unwrap());
            assert!(before <= after && after < before + 20_000_000, "{name} {scope}: {before}, then {after}");
        }
    }
    let check = wattmill_it_metering::process::run(
        Command::new(wattmill_it_metering::process::program("wattmill-agent"))
            .args(["check", "--config"])
            .arg(&agent.folder.config),
    );
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let line = check.lines().find(|line| line.starts_with("attribution ")).unwrap_or_default();
    assert!(
        line.contains("ok ")
            && line.contains("cgroup v2 at ")
            && line.contains("1 slurm, 1 container, 3 systemd"),
        "{check}"
    );
    agent.process.kill();
}

/// A cgroup of this kernel's with a process that computes; both go with it.
struct Real {
    folder: PathBuf,
    child: std::process::Child,
}

impl Real {
    /// `None`, and why, where cgroups cannot be made here.
    fn start(name: &str) -> Result<Self, String> {
        let base = Path::new("/sys/fs/cgroup");
        let root = if base.join("cgroup.controllers").exists() {
            base.to_owned()
        } else {
            let mut legacy = ["cpu,cpuacct", "cpuacct"].map(|name| base.join(name)).into_iter();
            let mounted = legacy.find(|root| root.join("cpuacct.usage").exists());
            mounted.ok_or("neither cgroup v2 nor cpuacct is mounted at /sys/fs/cgroup")?
        };
        let folder = root.join(name);
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut command = Command::new("sh");
        let command = command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
        let child = command.spawn().map_err(|error| error.to_string())?;
        let real = Self { folder, child };
        fs::write(real.folder.join("cgroup.procs"), real.child.id().to_string())
            .map_err(|error| format!("no process may be put into {}: {error}", real.folder.display()))?;
        Ok(real)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // It may have ended; and an empty cgroup that is left behind harms nobody.
        let _ = self.child.kill();
        let _ = self.child.wait();
        wait_for("the cgroup is empty", PATIENCE, || fs::remove_dir(&self.folder).ok());
    }
}

#[test]
fn a_real_cgroup_is_a_unit() {
    let name = format!("wattmill-it-{}.service", std::process::id());
    let real = match Real::start(&name) {
        Ok(real) => real,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let agent = Agent::start("real", |_| {
        "sysfs_root = \"/sys\"\n[attribution]\nby = [\"systemd\"]\n[metering]\ninterval_ms = 100\n".to_owned()
    });
    let first = agent.until("the cgroup has its series", |metrics| {
        identity(metrics);
        unit(metrics, "systemd", &name, "cpu").is_some()
    });
    let last = agent.until("it uses energy", |metrics| {
        identity(metrics);
        unit(metrics, "systemd", &name, "cpu") > unit(&first, "systemd", &name, "cpu").map(|uj| uj + 100_000)
    });
    let watts = last.all("wattmill_unit_power_watts").find(|series| series.label("name") == name);
    assert!(watts.is_some_and(|series| series.value > 0.0), "{}", last.text);
    drop(real);
    let gone = agent.windows(3);
    assert!(
        unit(&gone, "systemd", &name, "cpu") >= unit(&last, "systemd", &name, "cpu"),
        "it keeps its series"
    );
    identity(&gone);
}
