//! The connection to the collector, and every error of the tool.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_stream::Stream;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use wattmill_protocol::job::JobError;
use wattmill_protocol::{Hash, MAX_BLOB_BYTES, exit, v1};

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long an answer may take to begin; streams go on after that.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A connection on which nothing comes for so long is asked whether it lives,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// and is given up where no answer comes for so long.
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two tries to reach a collector that went away.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// How long a submission is tried again: a collector that restarts is back by then.
const RESUBMIT_WITHIN: Duration = Duration::from_secs(10);
/// Largest answer: a view of a whole cluster.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The address is none.
    #[error("{url:?} is not an address such as http://127.0.0.1:4317; see --collector")]
    Address {
        /// What was given.
        url: String,
    },
    /// Nobody answers.
    #[error("cannot reach the collector at {url}; is it running there? (--collector sets another address)")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// It answered before, and does not any more.
    #[error("lost the collector at {url} ({reason}); {next}")]
    Lost {
        /// Its address.
        url: String,
        /// What broke.
        reason: String,
        /// What to do.
        next: String,
    },
    /// The collector refused.
    #[error("the collector refused: {}", .0.message())]
    Refused(Status),
    /// A job is not there any more to be cancelled.
    #[error("job {job} is {state} already: there is nothing to cancel")]
    NotCancelled {
        /// Which.
        job: String,
        /// Where it stands.
        state: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// Read or write.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The job file is wrong.
    #[error("{}: {error}", path.display())]
    Job {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: JobError,
    },
    /// The job did not finish.
    #[error("job {job} {state}: {reason}")]
    JobEnded {
        /// Which.
        job: String,
        /// How.
        state: &'static str,
        /// Why.
        reason: String,
        /// Whether its data or file is at fault.
        bad_input: bool,
    },
    /// The collector's answer is not what the contract says.
    #[error("the collector's answer cannot be used: {0}")]
    Answer(String),
    /// What is said cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The node's agent does not answer as it should.
    #[error(transparent)]
    Agent(#[from] crate::energy::AgentError),
    /// A part of the demo failed.
    #[error("{0}")]
    Demo(String),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Address { .. } | Self::Agent(crate::energy::AgentError::Address { .. }) => exit::USAGE,
            Self::Job { .. } | Self::JobEnded { bad_input: true, .. } => exit::DATA,
            Self::Refused(status) if status.code() == Code::InvalidArgument => exit::DATA,
            _ => exit::FAILURE,
        }
    }

    /// Whether the reader left, as `head` does once it has its lines: the end, and no failure.
    pub(crate) fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    /// Whether the connection is at fault, so that the same may be asked again.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Unreachable { .. })
    }

    /// Says what to do next where the connection was lost.
    pub(crate) fn with_next(self, next: impl FnOnce() -> String) -> Self {
        match self {
            Self::Lost { url, reason, .. } => Self::Lost { url, reason, next: next() },
            other => other,
        }
    }
}

/// Whether a status was made on this side, or by a collector that stops: the connection is at fault, and not
/// what was asked.
fn is_loss(status: &Status) -> bool {
    let code = status.code();
    // The collector cancels nothing and sets no deadlines: these are this side's own.
    let codes = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded, Code::Aborted];
    status.source().is_some() || codes.contains(&code)
}

/// What broke, as the innermost cause says it.
fn broke(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = status.source();
    let mut words = status.message().to_owned();
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    words
}

type Control = v1::control_client::ControlClient<Channel>;

/// The collector's services.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    control: Control,
    parameters: v1::parameters_client::ParametersClient<Channel>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Result<Self, Error> {
        let endpoint =
            Endpoint::from_shared(url.to_owned()).map_err(|_| Error::Address { url: url.to_owned() })?;
        let channel = endpoint
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_WITHIN)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|source| Error::Unreachable { url: url.to_owned(), source })?;
        Ok(Self {
            url: url.to_owned(),
            control: v1::control_client::ControlClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            parameters: v1::parameters_client::ParametersClient::new(channel),
        })
    }

    fn error(&self, status: Status) -> Error {
        if is_loss(&status) {
            let next = "it may be back soon: try again".to_owned();
            Error::Lost { url: self.url.clone(), reason: broke(&status), next }
        } else {
            Error::Refused(status)
        }
    }

    /// Asks the collector something. The connection is made anew where it was lost.
    pub(crate) async fn ask<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Control) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let answer = call(&mut self.control).await;
        answer.map(Response::into_inner).map_err(|status| self.error(status))
    }

    /// Submits a job. What is lost is sent again under the same key, so that it is one job whatever the
    /// collector heard of it.
    pub(crate) async fn submit(&mut self, job_toml: String) -> Result<String, Error> {
        let key = uuid::Uuid::new_v4().to_string();
        let request = v1::SubmitJobRequest { job_toml, idempotency_key: key };
        let begun = Instant::now();
        loop {
            let request = request.clone();
            match self.ask(async |control| control.submit_job(request).await).await {
                Err(error) if error.is_loss() && begun.elapsed() < RESUBMIT_WITHIN => {
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => {
                    return Err(error.with_next(|| {
                        "whether it took the job is not known: see `wattmill jobs` before you submit it again"
                            .to_owned()
                    }));
                }
                Ok(reply) => return Ok(reply.job),
            }
        }
    }

    /// A job and its energy report.
    pub(crate) async fn job(&mut self, job: &str) -> Result<(v1::JobView, String), Error> {
        let request = v1::GetJobRequest { job: job.to_owned() };
        let reply = self.ask(async |control| control.get_job(request).await).await?;
        let view = reply.job.ok_or_else(|| Error::Answer("no job in it".to_owned()))?;
        Ok((view, reply.report_json))
    }

    /// The cluster as it changes, at most every `interval`, until the connection is lost.
    pub(crate) async fn watch(&mut self, interval: Duration) -> Result<Views, Error> {
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        let request = v1::WatchRequest { interval_ms };
        let views = self.ask(async |control| control.watch(request).await).await?;
        let client = self.clone();
        Ok(Box::pin(views.map(move |view| view.map_err(|status| client.error(status)))))
    }

    /// Says that a stream which should go on has ended: the collector stops.
    pub(crate) fn ended(&self) -> Error {
        let next = "it may be back soon: try again".to_owned();
        Error::Lost { url: self.url.clone(), reason: "it ended the watch".to_owned(), next }
    }

    /// A blob, checked against its name.
    pub(crate) async fn blob(&mut self, hash: Hash) -> Result<Vec<u8>, Error> {
        let request = v1::FetchRequest { hash: hash.to_bytes() };
        let chunks = self.parameters.fetch(request).await.map_err(|status| self.error(status))?;
        let mut chunks = chunks.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await.map_err(|status| self.error(status))? {
            if (bytes.len() + chunk.data.len()) as u64 > MAX_BLOB_BYTES {
                return Err(Error::Answer(format!("blob {hash} has over {MAX_BLOB_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk.data);
        }
        if Hash::of(&bytes) == hash {
            Ok(bytes)
        } else {
            Err(Error::Answer(format!("the bytes of blob {hash} do not hash to its name")))
        }
    }
}

/// Views of the cluster.
pub(crate) type Views = std::pin::Pin<Box<dyn Stream<Item = Result<v1::ClusterView, Error>> + Send>>;

/// A watch that outlives its connection: what is lost is opened anew.
pub(crate) struct Watch {
    client: Client,
    interval: Duration,
    views: Option<Views>,
    /// Since when the collector does not answer.
    lost: Option<Instant>,
    give_up_after: Option<Duration>,
}

/// What a watch has to say.
pub(crate) enum Seen {
    /// The cluster.
    View(Box<v1::ClusterView>),
    /// The collector does not answer; why. Said once for each loss.
    Lost(Error),
    /// It answers again.
    Back,
}

impl Watch {
    /// A watch that gives up where the collector does not come back in time, if a time is given.
    pub(crate) async fn open(
        client: &Client,
        interval: Duration,
        give_up_after: Option<Duration>,
    ) -> Result<Self, Error> {
        let mut client = client.clone();
        let views = Some(client.watch(interval).await?);
        Ok(Self { client, interval, views, lost: None, give_up_after })
    }

    /// What is next to be said; an error where the watch gives up.
    pub(crate) async fn next(&mut self) -> Result<Seen, Error> {
        loop {
            let error = match &mut self.views {
                Some(views) => match views.next().await {
                    Some(Ok(view)) => return Ok(Seen::View(Box::new(view))),
                    Some(Err(error)) => error,
                    None => self.client.ended(),
                },
                None => match self.client.watch(self.interval).await {
                    Ok(views) => {
                        self.views = Some(views);
                        self.lost = None;
                        return Ok(Seen::Back);
                    }
                    Err(error) => error,
                },
            };
            self.views = None;
            if !error.is_loss() {
                return Err(error);
            }
            match self.lost {
                None => {
                    self.lost = Some(Instant::now());
                    return Ok(Seen::Lost(error));
                }
                Some(since) if self.give_up_after.is_some_and(|most| since.elapsed() >= most) => {
                    return Err(error);
                }
                Some(_) => tokio::time::sleep(RETRY_EVERY).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_no_refusal() {
        let lost = [
            Status::unavailable("the collector is stopping"),
            Status::unknown("transport error"),
            Status::cancelled("Timeout expired"),
            Status::from_error(Box::new(io::Error::other("broken pipe"))),
        ];
        for status in &lost {
            assert!(is_loss(status), "{status:?}");
        }
        for status in [Status::not_found("no job"), Status::invalid_argument("no"), Status::internal("?")] {
            assert!(!is_loss(&status), "{status:?}");
        }
        assert_eq!(broke(&lost[3]), "broken pipe", "the innermost cause is the telling one");
    }
}
