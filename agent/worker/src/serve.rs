//! The loop: one request after the other until the stream ends.

use std::io::{self, Read, Write};

use wattmill_kernel::{Numerics, SetupError};
use wattmill_protocol::v1::{self, FromWorker, ProbeReply, RunTask, WorkerHello, from_worker, to_worker};

use crate::probe;
use crate::report::Reporter;
use crate::train::Trainer;
use crate::wire::{self, WireError};

/// Why the worker ends although its agent did not end it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The worker could outlive its agent.
    #[error("cannot be told of the agent's end")]
    Lifetime(#[source] io::Error),
    /// The stream is broken.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The agent is newer than this worker, or no agent.
    #[error("a request is of no kind that version {} knows: install the same version of agent and worker", env!("CARGO_PKG_VERSION"))]
    UnknownRequest,
    /// The device cannot be measured, so nothing could be trained on it either.
    #[error("cannot measure the device")]
    Probe(#[source] SetupError),
}

/// Says hello and answers requests until the stream ends.
///
/// # Errors
/// [`ServeError`], after which the process has nothing left to do.
pub(crate) fn serve(input: &mut impl Read, output: &mut (impl Write + Send)) -> Result<(), ServeError> {
    match answer_all(input, output) {
        Err(ServeError::Wire(WireError::Closed)) => Ok(()),
        result => result,
    }
}

fn answer_all(input: &mut impl Read, output: &mut (impl Write + Send)) -> Result<(), ServeError> {
    send(output, from_worker::Kind::Hello(hello()))?;
    let mut trainer = Trainer::default();
    while let Some(request) = wire::read(input)? {
        match request.kind.ok_or(ServeError::UnknownRequest)? {
            to_worker::Kind::Probe(request) => {
                let rate = probe::flops_per_second(request.threads as usize).map_err(ServeError::Probe)?;
                let reply = ProbeReply { flops_per_second: rate, precision: Numerics::detect().precision };
                send(output, from_worker::Kind::Probe(reply))?;
            }
            to_worker::Kind::Run(task) => run(&mut trainer, &task, output)?,
        }
    }
    Ok(())
}

fn run(trainer: &mut Trainer, task: &RunTask, output: &mut (impl Write + Send)) -> Result<(), WireError> {
    let reporter = Reporter::new(output, task.token);
    let outcome = trainer.run(task, &reporter);
    reporter.finish(outcome)
}

fn hello() -> WorkerHello {
    let numerics = v1::Numerics { value: Numerics::detect().to_string() };
    WorkerHello { version: env!("CARGO_PKG_VERSION").to_owned(), numerics: Some(numerics) }
}

fn send(output: &mut impl Write, kind: from_worker::Kind) -> Result<(), WireError> {
    wire::write(output, &FromWorker { kind: Some(kind) })
}
