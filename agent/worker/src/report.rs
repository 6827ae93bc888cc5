//! What the agent hears of a task: that it goes on, and how it ended.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wattmill_protocol::v1::{Done, Failure, FromWorker, Progress, TaskResult, from_worker, task_result};

use crate::train::TaskError;
use crate::wire::{self, WireError};

/// Shortest time between two reports of progress: at least one a second reaches the agent as long as blocks
/// of work take less than half a second.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What a task gave.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The figures.
    pub(crate) kind: task_result::Kind,
    /// What the figures' hash names; empty where they name none.
    pub(crate) blob: Bytes,
    /// Model FLOPs of the job's mathematics.
    pub(crate) useful_flops: u64,
    /// Time in the kernel.
    pub(crate) compute: Duration,
    /// Time spent reading data.
    pub(crate) fetch: Duration,
}

/// Reports on one task.
pub(crate) struct Reporter<'a> {
    output: &'a mut dyn Write,
    token: u64,
    last: Instant,
    broken: Option<WireError>,
}

impl<'a> Reporter<'a> {
    /// Reports under `token`, first of all not before the interval has passed.
    pub(crate) fn new(output: &'a mut dyn Write, token: u64) -> Self {
        Self { output, token, last: Instant::now(), broken: None }
    }

    /// Says that the task goes on and that `samples` went through the model; call it after each block of
    /// work. A stream that fails here is reported by [`Reporter::finish`].
    pub(crate) fn progress(&mut self, samples: u64) {
        if self.broken.is_some() || self.last.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.last = Instant::now();
        let progress = from_worker::Kind::Progress(Progress { token: self.token, samples });
        self.broken = self.send(progress).err();
    }

    /// Says how the task ended.
    ///
    /// # Errors
    /// [`WireError`] of this or of an earlier report.
    pub(crate) fn finish(mut self, outcome: Result<Finished, TaskError>) -> Result<(), WireError> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        let (result, blob) = match outcome {
            Ok(finished) => finished.into_result(),
            Err(error) => (failure(&error), Bytes::new()),
        };
        let done = Done { token: self.token, result: Some(result), blob };
        self.send(from_worker::Kind::Done(done))
    }

    fn send(&mut self, kind: from_worker::Kind) -> Result<(), WireError> {
        wire::write(self.output, &FromWorker { kind: Some(kind) })
    }
}

impl Finished {
    /// A result that cost and gave nothing but its figures.
    pub(crate) fn of(kind: task_result::Kind) -> Self {
        let (compute, fetch) = (Duration::ZERO, Duration::ZERO);
        Self { kind, blob: Bytes::new(), useful_flops: 0, compute, fetch }
    }

    fn into_result(self) -> (TaskResult, Bytes) {
        let result = TaskResult {
            kind: Some(self.kind),
            useful_flops: self.useful_flops,
            compute_nanoseconds: nanoseconds(self.compute),
            fetch_nanoseconds: nanoseconds(self.fetch),
        };
        (result, self.blob)
    }
}

fn failure(error: &TaskError) -> TaskResult {
    let failure = Failure { kind: error.kind().into(), message: chain(error) };
    TaskResult { kind: Some(task_result::Kind::Failure(failure)), ..TaskResult::default() }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// An error and all its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_sent_at_most_every_interval() {
        let mut stream = Vec::new();
        let mut reporter = Reporter::new(&mut stream, 7);
        reporter.progress(1);
        reporter.last = Instant::now().checked_sub(PROGRESS_INTERVAL).unwrap();
        reporter.progress(2);
        reporter.progress(3);
        // One frame: field 3 of 4 bytes, in it token 7 and samples 2.
        assert_eq!(stream, [0, 0, 0, 6, 0x1a, 4, 0x08, 7, 0x10, 2]);
    }

    #[test]
    fn a_stream_that_failed_during_the_task_is_told_at_its_end() {
        /// A pipe without a reader.
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut output = Broken;
        let mut reporter = Reporter::new(&mut output, 7);
        reporter.last = Instant::now().checked_sub(PROGRESS_INTERVAL).unwrap();
        reporter.progress(1);
        let error = reporter.finish(Err(TaskError::UnknownTask)).unwrap_err();
        assert!(matches!(error, WireError::Closed), "{error}");
    }
}
