//! The worker process: a child on the node's CPUs, spoken to over its standard input and output.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use prost::Message;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use wattmill_protocol::{MAX_WORKER_MESSAGE_BYTES, v1};

use crate::cpus::CpuSet;

/// The compute device of a worker without GPUs.
pub(super) const DEVICE: &str = "cpu";
/// How long a worker may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long the peak probe may take.
const PROBE_WITHIN: Duration = Duration::from_secs(60);
/// Where the probe's outcome is kept.
const PEAK_FILE: &str = "peak.json";

/// A worker that cannot be started, or died.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// The program cannot be started.
    #[error("cannot start {}; install it beside the agent, or set worker.path", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be tied to its CPUs.
    #[error("cannot bind the worker to its CPUs")]
    Affinity(#[source] io::Error),
    /// It broke off.
    #[error("the worker's stream ended{0}")]
    Ended(String),
    /// The stream broke.
    #[error("the worker's stream broke")]
    Stream(#[from] io::Error),
    /// It said something else than a message.
    #[error("the worker sent bytes that are no message")]
    Malformed(#[from] prost::DecodeError),
    /// It was expected to say something else, or sooner.
    #[error("the worker did not {0} in time")]
    Silent(&'static str),
}

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    pid: u32,
    input: FramedWrite<ChildStdin, LengthDelimitedCodec>,
    output: FramedRead<ChildStdout, LengthDelimitedCodec>,
    numerics: String,
}

/// A device's dense peak.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Peak {
    /// FLOP/s.
    pub(super) flops_per_second: f64,
    /// Of which numbers.
    pub(super) precision: String,
    /// What it was measured with.
    numerics: String,
    /// On how many CPUs.
    cpus: usize,
}

impl Worker {
    /// Starts the program on `cpus` and waits for its hello. It has a process group of its own: a signal that
    /// stops the agent must not end a shard that the agent hands back.
    pub(super) async fn start(path: &Path, cpus: &CpuSet) -> Result<Self, WorkerError> {
        let started = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = started.map_err(|source| WorkerError::Start { path: path.to_owned(), source })?;
        let pid = child.id().ok_or_else(|| WorkerError::Ended(String::new()))?;
        bind(pid, cpus)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or_else(|| WorkerError::Ended(String::new()))?;
        let mut codec = LengthDelimitedCodec::builder();
        codec.max_frame_length(MAX_WORKER_MESSAGE_BYTES);
        let mut worker = Self {
            child,
            pid,
            input: codec.new_write(stdin),
            output: codec.new_read(stdout),
            numerics: String::new(),
        };
        let hello = tokio::time::timeout(HELLO_WITHIN, worker.next()).await;
        match hello.map_err(|_| WorkerError::Silent("say hello"))?? {
            v1::from_worker::Kind::Hello(hello) => {
                worker.numerics = hello.numerics.unwrap_or_default().value;
                tracing::debug!(pid, version = hello.version, numerics = worker.numerics, "worker started");
                Ok(worker)
            }
            _ => Err(WorkerError::Silent("say hello first")),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn numerics(&self) -> &str {
        &self.numerics
    }

    pub(super) async fn send(&mut self, kind: v1::to_worker::Kind) -> Result<(), WorkerError> {
        let message = v1::ToWorker { kind: Some(kind) };
        Ok(self.input.send(Bytes::from(message.encode_to_vec())).await?)
    }

    /// The next message; safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<v1::from_worker::Kind, WorkerError> {
        loop {
            let Some(frame) = self.output.next().await else {
                let status = self.child.try_wait().ok().flatten();
                return Err(WorkerError::Ended(status.map(|s| format!(" ({s})")).unwrap_or_default()));
            };
            // A kind of a newer version is passed over.
            if let Some(kind) = v1::FromWorker::decode(frame?)?.kind {
                return Ok(kind);
            }
        }
    }
}

/// The worker's threads inherit what its first thread is bound to.
fn bind(pid: u32, cpus: &CpuSet) -> Result<(), WorkerError> {
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus.iter().map(|cpu| cpu as usize).filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    rustix::thread::sched_setaffinity(pid, &set).map_err(|errno| WorkerError::Affinity(errno.into()))
}

/// The peak of the worker's device: from a former probe with the same numerics and CPUs, or a new one.
pub(super) async fn peak(worker: &mut Worker, state_dir: &Path, cpus: usize) -> Result<Peak, WorkerError> {
    let path = state_dir.join(PEAK_FILE);
    let kept = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Peak>(&text).ok());
    if let Some(peak) = kept.filter(|p| p.numerics == worker.numerics && p.cpus == cpus) {
        return Ok(peak);
    }
    worker.send(v1::to_worker::Kind::Probe(v1::ProbeRequest { threads: cpus as u32 })).await?;
    let reply = tokio::time::timeout(PROBE_WITHIN, worker.next()).await;
    let v1::from_worker::Kind::Probe(reply) = reply.map_err(|_| WorkerError::Silent("probe"))?? else {
        return Err(WorkerError::Silent("answer the probe"));
    };
    let peak = Peak {
        flops_per_second: reply.flops_per_second,
        precision: reply.precision,
        numerics: worker.numerics.clone(),
        cpus,
    };
    tracing::info!(gflops = peak.flops_per_second / 1e9, cpus, numerics = peak.numerics, "peak measured");
    let text = serde_json::to_string(&peak).unwrap_or_default();
    if let Err(error) = fs::write(&path, text) {
        tracing::warn!(file = %path.display(), %error, "the peak is not kept: it is measured again at the next start");
    }
    Ok(peak)
}
