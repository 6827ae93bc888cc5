//! A client of the control socket, for tests.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::machine::command::{Answer, CallCount, Command, GpuRef, Truth};

/// Pause between two looks at a condition that cannot be waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Longest wait for an answer: the fake answers at once or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request had no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection to the socket.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection failed, or no answer came within ten seconds.
    #[error("the control connection failed")]
    Connection(#[from] io::Error),
    /// An answer that is not one.
    #[error("the answer is not understood")]
    Answer(#[from] serde_json::Error),
    /// The fake refused the request.
    #[error("refused: {0}")]
    Refused(String),
    /// An answer to another question.
    #[error("an answer to another question: {0:?}")]
    Unexpected(Answer),
    /// A condition did not come true in time.
    #[error("{function} did not get there in time: {last:?}")]
    Timeout {
        /// The function that was watched.
        function: String,
        /// Its calls at the end.
        last: CallCount,
    },
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a fake that is initialised.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let wrong = |source| ClientError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(wrong)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Connects as soon as the program under test has initialised the fake.
    ///
    /// # Errors
    /// Nobody listens after `patience`.
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            match Client::connect(path) {
                Err(_) if Instant::now() < deadline => thread::sleep(POLL_INTERVAL),
                outcome => return outcome,
            }
        }
    }

    /// Sends one command and reads its answer, a refusal included.
    ///
    /// # Errors
    /// The connection or the answer.
    pub fn ask(&mut self, command: &Command) -> Result<Answer, ClientError> {
        self.ask_raw(&serde_json::to_string(command)?)
    }

    /// Sends one line as it is and reads its answer, a refusal included.
    ///
    /// # Errors
    /// The connection or the answer.
    pub fn ask_raw(&mut self, line: &str) -> Result<Answer, ClientError> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_str(&answer)?)
    }

    /// Sends one command that changes something; the instant at which it took effect, in nanoseconds of the
    /// fake's clock.
    ///
    /// # Errors
    /// The connection, or a refusal.
    pub fn apply(&mut self, command: &Command) -> Result<u64, ClientError> {
        match self.ask(command)? {
            Answer::Done { at_monotonic_ns } => Ok(at_monotonic_ns),
            Answer::Error(message) => Err(ClientError::Refused(message)),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// Moves a manual clock.
    ///
    /// # Errors
    /// The connection, or a clock that is not manual.
    pub fn advance(&mut self, by: Duration) -> Result<u64, ClientError> {
        self.apply(&Command::Advance { nanoseconds: u64::try_from(by.as_nanos()).unwrap_or(u64::MAX) })
    }

    /// The truth about every GPU, now or at an instant of the fake's clock in nanoseconds.
    ///
    /// # Errors
    /// The connection, or an instant that is no longer known.
    pub fn truth(&mut self, at_monotonic_ns: Option<u64>) -> Result<Vec<Truth>, ClientError> {
        match self.ask(&Command::Truth { at_monotonic_ns })? {
            Answer::Gpus(gpus) => Ok(gpus),
            Answer::Error(message) => Err(ClientError::Refused(message)),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// The truth about a GPU at the instant of a function's newest answer about it: what the figure that the
    /// function gave then can be compared with.
    ///
    /// # Errors
    /// The connection, or a function that was not called.
    pub fn last_read(&mut self, gpu: impl Into<GpuRef>, function: &str) -> Result<Truth, ClientError> {
        match self.ask(&Command::LastRead { gpu: gpu.into(), function: function.to_owned() })? {
            Answer::Read(truth) => Ok(truth),
            Answer::Error(message) => Err(ClientError::Refused(message)),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// Calls of each function so far.
    ///
    /// # Errors
    /// The connection.
    pub fn calls(&mut self) -> Result<BTreeMap<String, CallCount>, ClientError> {
        match self.ask(&Command::Calls)? {
            Answer::Calls(calls) => Ok(calls),
            Answer::Error(message) => Err(ClientError::Refused(message)),
            other => Err(ClientError::Unexpected(other)),
        }
    }

    /// Waits until the calls of `function` are as wanted, e.g. one blocked by a hang.
    ///
    /// # Errors
    /// The connection, or not so after `patience`.
    pub fn wait_for_calls(
        &mut self,
        function: &str,
        patience: Duration,
        wanted: impl Fn(CallCount) -> bool,
    ) -> Result<CallCount, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            let last = self.calls()?.get(function).copied().unwrap_or_default();
            if wanted(last) {
                return Ok(last);
            }
            if Instant::now() >= deadline {
                return Err(ClientError::Timeout { function: function.to_owned(), last });
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}
