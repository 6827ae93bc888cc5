//! The connection to the collector, and every error of the tool.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use wattmill_protocol::job::JobError;
use wattmill_protocol::{Hash, MAX_BLOB_BYTES, exit, v1};

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
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
    /// The collector refused.
    #[error("the collector refused: {}", .0.message())]
    Refused(Status),
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
    /// A part of the demo failed.
    #[error("{0}")]
    Demo(String),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Address { .. } => exit::USAGE,
            Self::Job { .. } | Self::JobEnded { bad_input: true, .. } => exit::DATA,
            Self::Refused(status) if status.code() == tonic::Code::InvalidArgument => exit::DATA,
            _ => exit::FAILURE,
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// The collector's services.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) control: v1::control_client::ControlClient<Channel>,
    parameters: v1::parameters_client::ParametersClient<Channel>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Result<Self, Error> {
        let endpoint =
            Endpoint::from_shared(url.to_owned()).map_err(|_| Error::Address { url: url.to_owned() })?;
        let channel = endpoint
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|source| Error::Unreachable { url: url.to_owned(), source })?;
        Ok(Self {
            control: v1::control_client::ControlClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES),
            parameters: v1::parameters_client::ParametersClient::new(channel),
        })
    }

    /// A job and its energy report.
    pub(crate) async fn job(&mut self, job: &str) -> Result<(v1::JobView, String), Error> {
        let reply = self.control.get_job(v1::GetJobRequest { job: job.to_owned() }).await?.into_inner();
        let view = reply.job.ok_or_else(|| Error::Answer("no job in it".to_owned()))?;
        Ok((view, reply.report_json))
    }

    /// A blob, checked against its name.
    pub(crate) async fn blob(&mut self, hash: Hash) -> Result<Vec<u8>, Error> {
        let request = v1::FetchRequest { hash: hash.to_bytes() };
        let mut chunks = self.parameters.fetch(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
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
