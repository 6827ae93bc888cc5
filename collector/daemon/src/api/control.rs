//! `wattmill.v1.Control`: sessions of nodes, and the users' calls.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use wattmill_protocol::job::Job;
use wattmill_protocol::{Energy, Hash, InvalidId, JobId, NodeId, Token, v1};
use wattmill_work::{Event, Failure, Prepared, Renewal, Report, Settlement, ShardResult};

use crate::core::view::state;
use crate::core::{Command, Handle, OpenRefused, Shard, round_bytes};
use crate::state::Telemetry;

/// Messages to a node that wait for its connection: more means that it does not read. A job that ends revokes, and
/// a new session answers, each result of a round: 4096 at most.
const TO_NODE: usize = 8192;
/// Longest failure message that is kept, in bytes.
const MAX_FAILURE_BYTES: usize = 4096;
/// Quickest pace of a watch.
const MIN_WATCH: Duration = Duration::from_millis(100);

/// The service.
pub(crate) struct Control {
    core: Handle,
    telemetry: Arc<Telemetry>,
    /// Bytes of results that may wait for their rounds.
    staged_bytes: u64,
    cancelled: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Control {
    pub(crate) fn new(
        core: Handle,
        telemetry: Arc<Telemetry>,
        staged_bytes: u64,
        cancelled: CancellationToken,
    ) -> Self {
        Self { core, telemetry, staged_bytes, cancelled }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = |_| Status::unavailable("the collector is stopping");
        self.core.commands.send(command(reply)).await.map_err(|_| stopping(()))?;
        answer.await.map_err(|_| stopping(()))
    }
}

#[tonic::async_trait]
impl v1::control_server::Control for Control {
    type SessionStream = Answers<v1::ToNode>;
    type WatchStream = Answers<v1::ClusterView>;

    async fn session(
        &self,
        request: Request<Streaming<v1::FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.kind);
        let Some(v1::from_node::Kind::Hello(hello)) = first else {
            return Err(Status::invalid_argument("a session begins with a Hello"));
        };
        let (sender, receiver) = mpsc::channel(TO_NODE);
        let opened = self.ask(|reply| Command::Open { hello: Box::new(hello), sender, reply }).await?;
        let (node, session) = opened.map_err(|refused| {
            tracing::warn!(reason = %refused, "a node was refused a session");
            match refused {
                OpenRefused::Malformed(_) => Status::invalid_argument(refused.to_string()),
                _ => Status::failed_precondition(refused.to_string()),
            }
        })?;
        tokio::spawn(read_session(incoming, self.core.clone(), node, session, self.cancelled.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobReply>, Status> {
        let request = request.into_inner();
        if request.idempotency_key.len() > 128 {
            return Err(Status::invalid_argument("idempotency_key: at most 128 bytes"));
        }
        let spec = Job::from_toml(&request.job_toml).map_err(|e| Status::invalid_argument(e.to_string()))?;
        check_room(&spec, self.staged_bytes).map_err(Status::invalid_argument)?;
        let (spec, key) = (Arc::new(spec), request.idempotency_key);
        let job = self.ask(|reply| Command::Submit { spec, key, reply }).await?;
        Ok(Response::new(v1::SubmitJobReply { job: job.to_string() }))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobReply>, Status> {
        let job = job_id(&request.into_inner().job)?;
        let id = job.clone();
        let stood = self.ask(|reply| Command::Cancel { job, reply }).await?;
        let stood = stood.ok_or_else(|| unknown_job(&id))?;
        Ok(Response::new(v1::CancelJobReply { state: state(stood).into() }))
    }

    async fn waive_shards(
        &self,
        request: Request<v1::WaiveShardsRequest>,
    ) -> Result<Response<v1::WaiveShardsReply>, Status> {
        let v1::WaiveShardsRequest { job, shard } = request.into_inner();
        let job = job_id(&job)?;
        let id = job.clone();
        let waived = self.ask(|reply| Command::Waive { job, shard, reply }).await?;
        let shards = waived.ok_or_else(|| unknown_job(&id))?;
        if shards.is_empty() {
            let which =
                shard.map_or("no shard".to_owned(), |shard| format!("shard {shard} is not, or no shard"));
            return Err(Status::failed_precondition(format!("{which} of job {id} is quarantined")));
        }
        Ok(Response::new(v1::WaiveShardsReply { shards }))
    }

    async fn list_jobs(
        &self,
        _: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        let jobs = self.core.views.borrow().cluster.jobs.clone();
        Ok(Response::new(v1::ListJobsReply { jobs }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobReply>, Status> {
        let id = job_id(&request.into_inner().job)?;
        let job = id.clone();
        let report = self.ask(|reply| Command::EnergyReport { job, reply }).await?;
        let view = self.core.views.borrow().cluster.jobs.iter().find(|j| j.id == id.as_str()).cloned();
        match (view, report) {
            (Some(view), Some(report_json)) => {
                Ok(Response::new(v1::GetJobReply { job: Some(view), report_json }))
            }
            _ => Err(unknown_job(&id)),
        }
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        let nodes = self.core.views.borrow().cluster.nodes.clone();
        Ok(Response::new(v1::ListNodesReply { nodes }))
    }

    async fn retire_node(
        &self,
        request: Request<v1::RetireNodeRequest>,
    ) -> Result<Response<v1::RetireNodeReply>, Status> {
        let node = node_id(&request.into_inner().node)?;
        let nodes = &self.core.views.borrow().cluster.nodes;
        if nodes.iter().any(|n| n.connected && n.id == node.as_str()) {
            return Err(Status::failed_precondition(format!(
                "node {node} is connected: stop its agent first"
            )));
        }
        if !self.telemetry.retire(&node) {
            return Err(Status::not_found(format!("there is no node {node}; `wattmill nodes` lists them")));
        }
        tracing::info!(%node, "node retired");
        Ok(Response::new(v1::RetireNodeReply {}))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let interval = Duration::from_millis(u64::from(request.into_inner().interval_ms)).max(MIN_WATCH);
        let views = WatchStream::new(self.core.views.clone()).map(|view| Ok(view.cluster.clone()));
        // A watch must not hold the server back when it stops.
        let stopped = self.cancelled.clone().cancelled_owned();
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(views.throttle(interval), stopped))))
    }

    async fn get_history(
        &self,
        request: Request<v1::GetHistoryRequest>,
    ) -> Result<Response<v1::GetHistoryReply>, Status> {
        let request = request.into_inner();
        let node: Option<NodeId> = if request.node.is_empty() { None } else { Some(node_id(&request.node)?) };
        let history =
            self.telemetry.history(node.as_ref(), request.from_unix_seconds, request.to_unix_seconds);
        let points = history.into_iter().map(|p| v1::HistoryPoint {
            unix_seconds: p.unix_seconds,
            power_watts: p.power_watts,
            mfu_ratio: p.mfu_ratio,
            nodes: p.nodes,
        });
        Ok(Response::new(v1::GetHistoryReply { step_seconds: 10, points: points.collect() }))
    }
}

fn job_id(text: &str) -> Result<JobId, Status> {
    text.parse().map_err(|e: InvalidId| Status::invalid_argument(e.to_string()))
}

fn node_id(text: &str) -> Result<NodeId, Status> {
    text.parse().map_err(|e: InvalidId| Status::invalid_argument(e.to_string()))
}

/// A round's results wait together: a job of which they never could is refused.
fn check_room(spec: &Job, staged_bytes: u64) -> Result<(), String> {
    let needed = round_bytes(spec);
    if needed <= staged_bytes {
        return Ok(());
    }
    Err(format!(
        "training.shards_per_round: the results of {} shards of {} parameters are {needed} bytes, this collector \
         keeps limits.staged_bytes = {staged_bytes} at most: lower the one, or have its operator raise the other",
        spec.training.shards_per_round,
        spec.parameters()
    ))
}

fn unknown_job(job: &JobId) -> Status {
    Status::not_found(format!("there is no job {job}; `wattmill jobs` lists them"))
}

/// Hands a session's messages to the core until the stream ends.
async fn read_session(
    mut incoming: Streaming<v1::FromNode>,
    core: Handle,
    node: NodeId,
    session: u64,
    cancelled: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = cancelled.cancelled() => break,
        };
        let kind = match message {
            Ok(Some(message)) => message.kind,
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(%node, session, reason = status.message(), "a session broke");
                break;
            }
        };
        match kind.map(|kind| command(&node, kind)) {
            Some(Ok(command)) => {
                if core.commands.send(command).await.is_err() {
                    return;
                }
            }
            Some(Err(reason)) => {
                tracing::warn!(%node, session, reason, "a node sent a message that cannot be: session closed");
                break;
            }
            None => {
                tracing::debug!(%node, session, "a message of a newer version was passed over");
            }
        }
    }
    // The core is gone only when the program ends.
    drop(core.commands.send(Command::Close { node, session }).await);
}

fn command(node: &NodeId, kind: v1::from_node::Kind) -> Result<Command, String> {
    use v1::from_node::Kind;
    let node = node.clone();
    match kind {
        Kind::Hello(_) => Err("a second Hello".to_owned()),
        Kind::Renew(renew) => {
            let renewals = renew.renewals.into_iter().map(renewal).collect();
            Ok(Command::Event(Event::Renewed { node, renewals }))
        }
        Kind::HandBack(back) => Ok(Command::Event(Event::HandedBack { node, token: Token(back.token) })),
        Kind::Settle(settle) => {
            let settlements = settle.settlements.iter().map(settlement).collect::<Result<_, _>>()?;
            Ok(Command::Event(Event::Settled { node, settlements }))
        }
        Kind::Report(wire) => {
            let (report, shard) = report(wire)?;
            Ok(Command::Report { node, report: Box::new(report), shard })
        }
    }
}

fn renewal(wire: v1::Renewal) -> Renewal {
    Renewal {
        token: Token(wire.token),
        progress: wire.progress,
        energy: wire.energy.map(Energy::from).unwrap_or_default(),
        power_watts: if wire.power_watts.is_finite() { wire.power_watts.max(0.0) } else { 0.0 },
    }
}

fn settlement(wire: &v1::Settlement) -> Result<Settlement, String> {
    Ok(Settlement {
        sequence: wire.sequence,
        token: Token(wire.token),
        job: wire.job.parse().map_err(|e: InvalidId| e.to_string())?,
        energy: wire.energy.map(Energy::from).unwrap_or_default(),
        unrecorded: wire.unrecorded,
    })
}

fn report(wire: v1::Report) -> Result<(Report, Shard), String> {
    let result = wire.result.ok_or("a report without a result")?;
    let hash = |bytes: &[u8]| Hash::try_from(bytes).map_err(|e| e.to_string());
    let mut shard = Shard { blob: None, samples: 0, seconds: result.compute_nanoseconds as f64 / 1e9 };
    let outcome = match result.kind.ok_or("a result of no kind")? {
        v1::task_result::Kind::Prepare(prepare) => {
            let parameters = hash(&prepare.parameters_hash)?;
            shard.blob = Some(parameters);
            let prepared = Prepared {
                training_rows: prepare.training_rows,
                held_out_rows: prepare.held_out_rows,
                data_hash: hash(&prepare.data_hash)?,
            };
            Ok(ShardResult::Prepared { prepared, parameters })
        }
        v1::task_result::Kind::Gradient(gradient) => {
            let blob = hash(&gradient.gradient_hash)?;
            (shard.blob, shard.samples) = (Some(blob), gradient.samples);
            Ok(ShardResult::Gradient {
                gradient: blob,
                loss_sum: gradient.loss_sum,
                correct: gradient.correct,
                samples: gradient.samples,
            })
        }
        v1::task_result::Kind::Evaluate(evaluate) => Ok(ShardResult::Evaluated {
            loss_sum: evaluate.loss_sum,
            correct: evaluate.correct,
            samples: evaluate.samples,
        }),
        v1::task_result::Kind::Failure(failure) => {
            let bad_input = failure.kind() == v1::FailureKind::BadInput;
            let mut message = failure.message;
            message.truncate(message.floor_char_boundary(MAX_FAILURE_BYTES));
            Err(Failure { bad_input, message })
        }
    };
    let report = Report {
        token: Token(wire.token),
        job: wire.job.parse().map_err(|e: InvalidId| e.to_string())?,
        round: wire.round,
        shard: wire.shard,
        result: outcome,
        useful_flops: result.useful_flops,
    };
    Ok((report, shard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_whose_round_cannot_wait_is_refused_with_both_numbers() {
        let text = r#"
name = "large"
[model]
layers = [{ units = 10, activation = "softmax" }]
[data]
uri = "file:///data.csv"
features = 99
classes = 10
[training]
epochs = 1
shard_size = 4
shards_per_round = 5
optimizer = { name = "sgd", learning_rate = 0.1 }
"#;
        let spec = Job::from_toml(text).unwrap();
        assert_eq!(check_room(&spec, 20_000), Ok(()));
        let refused = check_room(&spec, 19_999).unwrap_err();
        for words in ["5 shards of 1000 parameters are 20000 bytes", "limits.staged_bytes = 19999"] {
            assert!(refused.contains(words), "{refused}");
        }
    }
}
