//! Processes, ours in particular.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::{PATIENCE, http, look_until, wait_for};

/// A program of this workspace, built for the profile of the running test.
///
/// # Panics
/// It is not built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.ancestors().nth(2).map(|folder| folder.join(name)).unwrap_or_default();
    assert!(
        path.is_file(),
        "{} is missing: build the programs first, by `make build` or `cargo build --workspace --bins`",
        path.display()
    );
    path
}

/// A running program; its standard error is kept, and shown where the test fails.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name}: {command:?}: {e}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || keep(stderr, &log));
        }
        Self { name: name.to_owned(), child, log }
    }

    /// What it wrote so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the JSON line with this message.
    ///
    /// # Panics
    /// It ends before, or takes too long.
    pub fn event(&mut self, message: &str) -> Value {
        wait_for(&format!("{} says {message:?}", self.name), PATIENCE, || {
            let lines = self.log();
            let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found = events.into_iter().find(|event| event["message"] == message);
            let ended = self.child.try_wait().expect("a child can be asked");
            assert!(
                found.is_some() || ended.is_none(),
                "{} ended: {ended:?}\n{}",
                self.name,
                lines.join("\n")
            );
            found
        })
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it is: its connections stay open, and it does nothing.
    ///
    /// # Panics
    /// It ended before.
    pub fn freeze(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it runs");
    }

    /// Kills it without a warning, as a crash does.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}\n---", self.name, self.log().join("\n"));
        }
    }
}

fn keep(from: impl Read, log: &Mutex<Vec<String>>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// A text field of an event.
fn field(event: &Value, name: &str) -> String {
    event[name].as_str().unwrap_or_else(|| panic!("no {name} in {event}")).to_owned()
}

/// Identity of the machine that every agent here believes to run on.
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

/// An agent's folder with its configuration, of a host with neither sensors nor GPUs unless `keys` (TOML) say
/// otherwise. Keys that are given replace those that stand here.
pub struct AgentFolder {
    /// The folder; what else lies in it is the test's.
    pub folder: TempDir,
    /// The configuration.
    pub config: PathBuf,
}

impl AgentFolder {
    /// Makes the folder. `keys` are given its path.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn new(name: &str, keys: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = keys(folder.path());
        let given =
            |key: &str| keys.lines().any(|line| line.split('=').next().is_some_and(|k| k.trim() == key));
        let path = |file: &str| format!("{:?}", folder.path().join(file).display().to_string());
        let mut text = String::new();
        for (key, value) in [
            ("name", format!("{name:?}")),
            ("state_dir", path("state")),
            ("machine_id_file", path("machine-id")),
            ("sysfs_root", path("sys")),
            ("listen", "\"127.0.0.1:0\"".to_owned()),
            ("nvml_library", "\"\"".to_owned()),
        ] {
            if !given(key) {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text.push_str(&keys);
        text.push_str("\n[log]\nformat = \"json\"\n");
        fs::create_dir_all(folder.path().join("sys")).expect("a folder can be made");
        fs::write(folder.path().join("machine-id"), MACHINE_ID).expect("a file can be written");
        let config = folder.path().join("agent.toml");
        fs::write(&config, text).expect("a file can be written");
        Self { folder, config }
    }
}

/// A running agent.
pub struct Agent {
    /// The process.
    pub process: Process,
    /// Where its `/metrics` are.
    pub address: String,
    /// Its folder.
    pub folder: AgentFolder,
}

impl Agent {
    /// Starts an agent, and waits until it listens.
    pub fn start(name: &str, keys: impl FnOnce(&Path) -> String) -> Self {
        Self::start_in(name, AgentFolder::new(name, keys))
    }

    /// Starts an agent in its folder.
    pub fn start_in(name: &str, folder: AgentFolder) -> Self {
        Self::start_with(name, folder, &[])
    }

    /// Starts an agent in its folder, with more in its environment.
    pub fn start_with(name: &str, folder: AgentFolder, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program("wattmill-agent"));
        command.args(["run", "--config"]).arg(&folder.config).envs(environment.iter().copied());
        let mut process = Process::start(name, &mut command);
        let address = field(&process.event("listening"), "address");
        Self { process, address, folder }
    }

    /// One scrape.
    ///
    /// # Panics
    /// It is not answered.
    pub fn metrics(&self) -> Metrics {
        let answer = http::get(&self.address, "/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// Scrapes until it shows what is wanted.
    pub fn until(&self, what: &str, mut wanted: impl FnMut(&Metrics) -> bool) -> Metrics {
        let mut last = None;
        let found = look_until(Instant::now() + PATIENCE, || {
            let metrics = self.metrics();
            last = Some(metrics.text.clone());
            wanted(&metrics).then_some(metrics)
        });
        found.unwrap_or_else(|| {
            panic!("{what}: not so within {} s:\n{}", PATIENCE.as_secs(), last.unwrap_or_default())
        })
    }

    /// Waits until `number` further windows have closed. Each measures the time of its readings in
    /// nanoseconds, so no two look the same.
    pub fn windows(&self, number: usize) -> Metrics {
        let mut last = self.metrics();
        for _ in 0..number {
            last = self.until("another window closes", |metrics| metrics.text != last.text);
        }
        last
    }
}

/// A running collector.
pub struct Collector {
    /// The process.
    pub process: Process,
    /// Address of its gRPC.
    pub grpc: String,
    /// Address of its HTTP.
    pub http: String,
    _folder: TempDir,
}

impl Collector {
    /// Starts a collector, and waits until it serves.
    ///
    /// # Panics
    /// It does not.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("collector.toml");
        let text = format!(
            "state_dir = {:?}\nlisten_grpc = \"127.0.0.1:0\"\nlisten_http = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n",
            folder.path().join("state").display().to_string()
        );
        fs::write(&config, text).expect("a file can be written");
        let mut command = Command::new(program("wattmill-collector"));
        let mut process = Process::start("collector", command.args(["run", "--config"]).arg(&config));
        let event = process.event("collector started");
        let (grpc, http) = (field(&event, "grpc_address"), field(&event, "http_address"));
        wait_for("the collector is ready", PATIENCE, || {
            http::try_get(&http, "/readyz").filter(|answer| answer.status == 200)
        });
        Self { process, grpc, http, _folder: folder }
    }

    /// Asks it by the command-line tool, whose JSON comes back.
    ///
    /// # Panics
    /// The tool fails.
    pub fn ask(&self, arguments: &[&str]) -> Value {
        let url = format!("http://{}", self.grpc);
        let mut command = Command::new(program("wattmill"));
        let output = run(command.args(arguments).args(["--json", "--collector", &url]));
        assert!(output.status.success(), "wattmill {arguments:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("wattmill {arguments:?}: {e}: {text}"))
    }
}

/// Runs a command to its end.
///
/// # Panics
/// It cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}
