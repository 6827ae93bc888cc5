//! A worker as its agent sees it: a process and a stream. The framing is written here once more, from its
//! description, as an agent would.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "helpers of several tests")]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use wattmill_protocol::v1::{Done, FromWorker, RunTask, ToWorker, WorkerHello, from_worker, to_worker};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_wattmill-worker");

/// Longer than any answer or end takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running worker. It is killed when this is dropped.
pub struct Worker {
    /// The process, or its parent.
    pub child: Child,
    /// The agent's end of the stream.
    pub stream: UnixStream,
}

impl Worker {
    /// Starts a worker and takes its hello.
    pub fn start() -> (Self, WorkerHello) {
        let mut worker = Self::start_as(&mut Command::new(PROGRAM));
        let Some(from_worker::Kind::Hello(hello)) = worker.receive().unwrap().kind else {
            panic!("the first message is no hello")
        };
        (worker, hello)
    }

    /// Starts `command` with a stream as standard input and output; standard error can be read later.
    pub fn start_as(command: &mut Command) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let input = OwnedFd::from(theirs.try_clone().unwrap());
        command.stdin(input).stdout(OwnedFd::from(theirs)).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // The command holds the worker's end: let go, so that the stream ends with the worker.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self { child, stream: ours }
    }

    /// Sends a request.
    pub fn send(&mut self, kind: to_worker::Kind) {
        let message = ToWorker { kind: Some(kind) }.encode_to_vec();
        self.stream.write_all(&(message.len() as u32).to_be_bytes()).unwrap();
        self.stream.write_all(&message).unwrap();
    }

    /// The next message; `None` once the stream has ended.
    pub fn receive(&mut self) -> Option<FromWorker> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return None;
            }
            result => result.unwrap(),
        }
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut message).unwrap();
        Some(FromWorker::decode(message.as_slice()).unwrap())
    }

    /// Runs a task to its end.
    pub fn run(&mut self, task: RunTask) -> Done {
        let token = task.token;
        self.send(to_worker::Kind::Run(task));
        loop {
            match self.receive().expect("the worker lives").kind {
                Some(from_worker::Kind::Progress(progress)) => assert_eq!(progress.token, token),
                Some(from_worker::Kind::Done(done)) => {
                    assert_eq!(done.token, token);
                    return done;
                }
                other => panic!("{other:?} in answer to a task"),
            }
        }
    }

    /// Waits for the end; how it ended and what it said.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut said = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                return (status, said);
            }
            assert!(start.elapsed() < PATIENCE, "the worker does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail if it has ended, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
