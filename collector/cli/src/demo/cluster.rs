//! The demo's processes: one collector, a few agents, each with its own CPUs and folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use crate::client::Error;
use crate::watch::Progress;

/// How long a program may take to say where it listens.
const START_WITHIN: Duration = Duration::from_secs(20);
/// How long programs may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// A running demo cluster. Dropping it kills what still runs.
pub(crate) struct Cluster {
    /// The collector's gRPC address.
    pub(crate) url: String,
    collector: Program,
    agents: Vec<Program>,
    expected: Expected,
    state: PathBuf,
}

struct Program {
    name: String,
    pid: u32,
    /// Asks for the program's end; answered when it ended.
    ended: Option<oneshot::Receiver<()>>,
}

/// Programs whose end is meant.
type Expected = Arc<Mutex<BTreeSet<String>>>;

/// Hears of programs that end.
pub(crate) struct Watch {
    ends: mpsc::Receiver<(String, String)>,
    expected: Expected,
}

impl Watch {
    /// Waits for an end that was not meant.
    pub(crate) async fn failed(&mut self) -> String {
        while let Some((name, how)) = self.ends.recv().await {
            let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner).contains(&name);
            if !expected {
                return format!("{name} ended before its time ({how}); its log says why");
            }
        }
        std::future::pending().await
    }
}

impl Cluster {
    /// Starts a collector and agents in `folder`.
    pub(crate) async fn start(
        folder: &Path,
        agents: Option<usize>,
        progress: &Progress,
    ) -> Result<(Self, Watch), Error> {
        let state = folder.join("state");
        let programs = programs()?;
        let shares = cpu_shares(agents)?;
        let (report, ends) = mpsc::channel(16);
        progress.say(&format!("starting a collector and {} agents in {}", shares.len(), folder.display()));
        let config = "listen_grpc = \"127.0.0.1:0\"\nlisten_http = \"127.0.0.1:0\"\n\
                      [leases]\nsettle_ms = 4000\n[log]\nformat = \"json\"\n";
        let path = programs.join("wattmill-collector");
        let mut collector = spawn(&path, "collector", folder, &state, config, report.clone())?;
        let address = field(&mut collector, "grpc_address").await?;
        let url = format!("http://{address}");
        let mut cluster = Self {
            url,
            collector: collector.program,
            agents: Vec::new(),
            expected: Expected::default(),
            state,
        };
        for (index, cpus) in shares.iter().enumerate() {
            let name = format!("demo-{}", index + 1);
            let config = agent_config(&name, &cluster.url, cpus, index == 0);
            let path = programs.join("wattmill-agent");
            let mut agent = spawn(&path, &name, folder, &cluster.state, &config, report.clone())?;
            field(&mut agent, "address").await?;
            cluster.agents.push(agent.program);
        }
        let watch = Watch { ends, expected: Arc::clone(&cluster.expected) };
        Ok((cluster, watch))
    }

    pub(crate) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Name of the agent that was started last.
    pub(crate) fn last_agent(&self) -> String {
        self.agents.last().map(|a| a.name.clone()).unwrap_or_default()
    }

    /// Sends a signal to an agent; its end is meant from then on.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<(), Error> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        let agent = self.agents.iter().find(|a| a.name == name);
        agent.map_or(Ok(()), |agent| agent.signal(signal))
    }

    /// Stops agents first, so that they hand back and settle, then the collector.
    pub(crate) async fn stop(mut self) {
        let mut programs = std::mem::take(&mut self.agents);
        stop(&mut programs).await;
        stop(std::slice::from_mut(&mut self.collector)).await;
        // What is left are the outputs and the logs.
        if let Err(error) = fs::remove_dir_all(&self.state) {
            eprintln!("wattmill: cannot remove {}: {error}", self.state.display());
        }
    }
}

async fn stop(programs: &mut [Program]) {
    for program in programs.iter() {
        if let Err(error) = program.signal(Signal::TERM) {
            eprintln!("wattmill: {error}");
        }
    }
    for program in programs {
        let Some(ended) = program.ended.take() else { continue };
        if tokio::time::timeout(STOP_WITHIN, ended).await.is_err() {
            eprintln!("wattmill: {} does not stop: killed", program.name);
            // It is gone, or the kernel ends it: there is nothing else to do.
            let _ = program.signal(Signal::KILL);
        }
    }
}

/// A demo that fails half-way leaves no process behind.
impl Drop for Program {
    fn drop(&mut self) {
        if self.ended.is_some() {
            // What it was is gone already, or is killed now: there is nobody left to tell.
            let _ = self.signal(Signal::KILL);
        }
    }
}

impl Program {
    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        match rustix::process::kill_process(pid, signal) {
            // It is gone already.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::Demo(format!("cannot signal {}: {errno}", self.name))),
        }
    }
}

/// A program that was started, and its log lines.
struct Started {
    program: Program,
    lines: mpsc::Receiver<String>,
}

fn spawn(
    path: &Path,
    name: &str,
    folder: &Path,
    state: &Path,
    config: &str,
    report: mpsc::Sender<(String, String)>,
) -> Result<Started, Error> {
    let home = state.join(name);
    fs::create_dir_all(&home).map_err(Error::file("make", &home))?;
    let kind = if name == "collector" { "collector.toml" } else { "agent.toml" };
    let file = home.join(kind);
    let config = format!("state_dir = {:?}\n{config}", home.join("state").display().to_string());
    fs::write(&file, config).map_err(Error::file("write", &file))?;
    let mut child = Command::new(path)
        .args(["run", "--config"])
        .arg(&file)
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::file("start", path))?;
    let log = folder.join(format!("{name}.log"));
    let file = fs::File::create(&log).map_err(Error::file("write", &log))?;
    let (sender, lines) = mpsc::channel(64);
    let (ended, receiver) = oneshot::channel();
    let pid = child.id().unwrap_or_default();
    let stderr = child.stderr.take();
    let program_name = name.to_owned();
    tokio::spawn(async move {
        if let Some(stderr) = stderr {
            tee(BufReader::new(stderr), tokio::fs::File::from_std(file), sender).await;
        }
        let how = wait(&mut child).await;
        // Nobody listens once the demo is over.
        let _ = ended.send(());
        let _ = report.send((program_name, how)).await;
    });
    Ok(Started { program: Program { name: name.to_owned(), pid, ended: Some(receiver) }, lines })
}

async fn wait(child: &mut Child) -> String {
    match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Writes a program's log to its file, and hands its first lines on while somebody reads them.
async fn tee(
    mut from: BufReader<tokio::process::ChildStderr>,
    mut to: tokio::fs::File,
    lines: mpsc::Sender<String>,
) {
    let mut line = String::new();
    while from.read_line(&mut line).await.is_ok_and(|bytes| bytes > 0) {
        if to.write_all(line.as_bytes()).await.is_err() {
            eprintln!("wattmill: a log cannot be written");
        }
        // Nobody reads lines once the address is known.
        let _ = lines.try_send(std::mem::take(&mut line));
        line.clear();
    }
    let _ = to.flush().await;
}

/// Waits for the log line that has `field`.
async fn field(started: &mut Started, field: &str) -> Result<String, Error> {
    let mut last = String::new();
    let wait = async {
        while let Some(line) = started.lines.recv().await {
            let parsed: Option<serde_json::Value> = serde_json::from_str(&line).ok();
            let value = parsed.as_ref().and_then(|v| v.get(field)?.as_str());
            if let Some(value) = value {
                return Some(value.to_owned());
            }
            last = line;
        }
        None
    };
    let found = tokio::time::timeout(START_WITHIN, wait).await.ok().flatten();
    found.ok_or_else(|| Error::Demo(format!("{} did not start: {}", started.program.name, last.trim_end())))
}

fn agent_config(name: &str, url: &str, cpus: &[usize], gpus: bool) -> String {
    let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    // One agent meters the GPUs: they would count twice otherwise.
    let gpus = if gpus { "" } else { "gpus = []\n" };
    format!(
        "name = {name:?}\nlisten = \"127.0.0.1:0\"\ncollector = {url:?}\ncpus = {:?}\n{gpus}[log]\nformat = \"json\"\n",
        cpus.join(",")
    )
}

/// The folder of the programs: the one of this one.
fn programs() -> Result<PathBuf, Error> {
    let me = std::env::current_exe().map_err(|e| Error::Demo(format!("cannot find this program: {e}")))?;
    let folder = me.parent().map(Path::to_owned).unwrap_or_default();
    for name in ["wattmill-collector", "wattmill-agent", "wattmill-worker"] {
        if !folder.join(name).exists() {
            return Err(Error::Demo(format!(
                "{name} is not in {}; `make build` builds all programs",
                folder.display()
            )));
        }
    }
    Ok(folder)
}

/// Disjoint shares of the CPUs that this process may use.
fn cpu_shares(agents: Option<usize>) -> Result<Vec<Vec<usize>>, Error> {
    let set = rustix::thread::sched_getaffinity(None)
        .map_err(|errno| Error::Demo(format!("cannot tell this process's CPUs: {errno}")))?;
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    let wanted = agents.unwrap_or(if cpus.len() >= 3 { 3 } else { 2 });
    if wanted == 0 || wanted > cpus.len() {
        return Err(Error::Demo(format!(
            "{wanted} agents need a CPU each; this process may use {}: give --agents",
            cpus.len()
        )));
    }
    Ok((0..wanted).map(|i| cpus[i * cpus.len() / wanted..(i + 1) * cpus.len() / wanted].to_vec()).collect())
}
