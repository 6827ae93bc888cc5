//! A collector and its agents.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::Channel;
use wattmill_protocol::v1::control_client::ControlClient;
use wattmill_protocol::{Hash, v1};

use crate::program::{self, Program, Signal, binary, children};
use crate::{PATIENCE, eventually, get};

/// What an agent is told beside its place.
#[derive(Clone, Debug, Default)]
pub struct AgentConfig {
    /// CPUs, as the key takes them.
    pub cpus: String,
    /// Further keys and tables.
    pub extra: String,
}

/// What has not moved for this long waits for something: a round takes some 20 ms.
const STILL: Duration = Duration::from_millis(500);

/// A collector and its agents; killed when dropped.
pub struct Cluster {
    folder: TempDir,
    collector: Option<Program>,
    collector_extra: String,
    /// gRPC and HTTP, once known.
    addresses: (String, String),
    agents: BTreeMap<String, Program>,
    metrics: BTreeMap<String, String>,
}

/// CPUs that this process may use.
#[must_use]
pub fn cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

impl Cluster {
    /// A running collector with further keys and tables in its configuration.
    pub async fn start(extra: &str) -> Self {
        let none = "127.0.0.1:0".to_owned();
        let mut cluster = Self {
            folder: tempfile::Builder::new().prefix("wattmill-it-").tempdir().unwrap(),
            collector: None,
            collector_extra: extra.to_owned(),
            addresses: (none.clone(), none),
            agents: BTreeMap::new(),
            metrics: BTreeMap::new(),
        };
        cluster.start_collector().await;
        cluster
    }

    /// A cluster of two agents, `one` and `two`, ready to train.
    pub async fn of_two(extra: &str) -> Self {
        let mut cluster = Self::start(extra).await;
        let cpus = cpus();
        assert!(cpus.len() >= 2, "two agents need two CPUs");
        cluster.agent("one", &cpus[0].to_string(), "").await;
        cluster.agent("two", &cpus[1].to_string(), "").await;
        cluster.ready(2).await;
        cluster
    }

    /// Starts the collector; from the second time on, on the ports and the state that it had.
    pub async fn start_collector(&mut self) {
        let home = self.home("collector");
        let config = home.join("collector.toml");
        let text = format!(
            "state_dir = {:?}\nlisten_grpc = {:?}\nlisten_http = {:?}\n{}\n[log]\nformat = \"json\"\n",
            home.join("state"),
            self.addresses.0,
            self.addresses.1,
            self.collector_extra
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(binary("wattmill-collector"));
        let mut program = Program::start("collector", command.args(["run", "--config"]).arg(&config));
        self.addresses = (program.field("grpc_address").await, program.field("http_address").await);
        self.collector = Some(program);
    }

    /// Ends the collector with a signal.
    pub async fn end_collector(&mut self, signal: Signal) {
        let mut program = self.collector.take().unwrap();
        program.signal(signal);
        program.ended().await;
    }

    /// Starts an agent on some CPUs, and waits until it listens.
    pub async fn agent(&mut self, name: &str, cpus: &str, extra: &str) {
        let config = AgentConfig { cpus: cpus.to_owned(), extra: extra.to_owned() };
        let mut program = Program::start(name, &mut self.agent_command(name, &config));
        let address = program.field("address").await;
        self.metrics.insert(name.to_owned(), address);
        self.agents.insert(name.to_owned(), program);
    }

    /// The command that runs an agent; its configuration is written.
    pub fn agent_command(&self, name: &str, config: &AgentConfig) -> Command {
        let home = self.home(name);
        let file = home.join("agent.toml");
        let mut text = format!("state_dir = {:?}\nname = {name:?}\n", home.join("state"));
        let keys = [
            ("listen", "listen = \"127.0.0.1:0\"\n".to_owned()),
            ("collector", format!("collector = {:?}\n", self.url())),
            ("cpus", format!("cpus = {:?}\n", config.cpus)),
            ("nvml_library", "nvml_library = \"\"\n".to_owned()),
        ];
        for (key, line) in keys {
            if !config.extra.starts_with(&format!("{key} = ")) {
                text.push_str(&line);
            }
        }
        text.push_str(&config.extra);
        text.push_str("\n[log]\nformat = \"json\"\n");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(binary("wattmill-agent"));
        command.args(["run", "--config"]).arg(file);
        command
    }

    /// The folder of everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program's folder; `state` in it is its state.
    #[must_use]
    pub fn home(&self, name: &str) -> PathBuf {
        let home = self.folder.path().join(name);
        fs::create_dir_all(&home).unwrap();
        home
    }

    /// The collector's gRPC address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addresses.0)
    }

    /// The collector.
    pub fn collector(&mut self) -> &mut Program {
        self.collector.as_mut().unwrap()
    }

    /// An agent.
    pub fn program(&mut self, name: &str) -> &mut Program {
        self.agents.get_mut(name).unwrap()
    }

    /// The process identity of an agent's worker.
    #[must_use]
    pub fn worker(&self, name: &str) -> u32 {
        let workers = children(self.agents[name].pid());
        assert_eq!(workers.len(), 1, "workers of {name}");
        workers[0]
    }

    /// Where an agent's `/metrics` is.
    #[must_use]
    pub fn metrics_address(&self, name: &str) -> &str {
        &self.metrics[name]
    }

    /// An agent's `/metrics`.
    #[must_use]
    pub fn agent_metrics(&self, name: &str) -> String {
        get(&self.metrics[name], "/metrics").unwrap()
    }

    /// The collector's `/metrics`.
    #[must_use]
    pub fn collector_metrics(&self) -> String {
        get(&self.addresses.1, "/metrics").unwrap()
    }

    /// The user's tool, asking this collector.
    #[must_use]
    pub fn tool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("wattmill"));
        command.args(arguments).env("WATTMILL_COLLECTOR", self.url());
        command
    }

    /// A connection to the collector.
    pub async fn control(&self) -> ControlClient<Channel> {
        eventually("the collector answers", async || ControlClient::connect(self.url()).await.ok()).await
    }

    /// Watches the cluster until `found` finds something; opened anew where the collector goes away.
    pub async fn wait_for<T>(&self, what: &str, mut found: impl FnMut(&v1::ClusterView) -> Option<T>) -> T {
        let mut last = None;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let watch = async {
                let mut client = self.control().await;
                let request = v1::WatchRequest { interval_ms: 20 };
                let mut views = client.watch(request).await.ok()?.into_inner();
                while let Ok(Some(view)) = views.message().await {
                    if let Some(found) = found(&view) {
                        return Some(found);
                    }
                    last = Some(view);
                }
                None
            };
            if let Ok(Some(found)) = tokio::time::timeout(left, watch).await {
                return found;
            }
        }
        panic!("not within {} s: {what}; last seen: {last:#?}", PATIENCE.as_secs());
    }

    /// Waits until so many agents take work, and their peaks and powers are known.
    pub async fn ready(&self, agents: usize) {
        let ready = |n: &&v1::NodeView| n.connected && n.peak_flops.is_some() && n.power_watts.is_some();
        self.wait_for("the agents are ready", |view| {
            (view.nodes.iter().filter(ready).count() == agents).then_some(())
        })
        .await;
    }

    /// Submits a job.
    pub async fn submit(&self, job_toml: &str, key: &str) -> String {
        let request = v1::SubmitJobRequest { job_toml: job_toml.to_owned(), idempotency_key: key.to_owned() };
        self.control().await.submit_job(request).await.unwrap().into_inner().job
    }

    /// Waits until a job has made so many rounds, and has not ended.
    pub async fn in_the_middle(&self, job: &str, rounds: u32) {
        self.wait_for("the job is in its middle", |view| {
            let job = view.jobs.iter().find(|j| j.id == job)?;
            assert!(!job.ended, "the job ended before anything could happen: {job:?}");
            (job.round >= rounds).then_some(())
        })
        .await;
    }

    /// Waits until a job has ended, and asserts that it finished.
    pub async fn finished(&self, job: &str) -> v1::JobView {
        let view = self
            .wait_for("the job ends", |view| view.jobs.iter().find(|j| j.id == job && j.ended).cloned())
            .await;
        assert_eq!(view.state(), v1::JobState::Finished, "{}", view.reason);
        view
    }

    /// Trains a job undisturbed.
    pub async fn train(&self, job_toml: &str) -> v1::JobView {
        let job = self.submit(job_toml, "undisturbed").await;
        self.finished(&job).await
    }

    /// Stops a node's worker once the node is sure to hold a lease that the worker has not finished.
    pub async fn hold_a_lease(&self, name: &str) -> u32 {
        let worker = self.worker(name);
        program::signal(worker, Signal::STOP);
        // What the worker said before may still be on its way: the lease is held once nothing moves.
        let mut before = (0, Instant::now());
        self.wait_for("the stopped worker's node holds a lease", |view| {
            let running = view.nodes.iter().find(|n| n.name == name)?.running;
            let round = view.jobs.iter().map(|j| j.round).sum();
            if running == 0 || round != before.0 {
                before = (round, Instant::now());
            }
            (before.1.elapsed() > STILL).then_some(())
        })
        .await;
        worker
    }
}

/// The model's hash as users see it.
#[must_use]
pub fn model(view: &v1::JobView) -> Hash {
    Hash::try_from(&view.model_hash[..]).unwrap()
}
