//! What the agent hears of a task: that it goes on, and how it ended.

use std::error::Error;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wattmill_protocol::v1::{Done, Failure, FromWorker, Progress, TaskResult, from_worker, task_result};

use crate::train::TaskError;
use crate::wire::{self, WireError};

/// Shortest time between two reports of progress: a lease lives by them, so that the shortest lease that
/// makes sense is a few of these.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

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

/// Reports on one task; the threads that work on it share it.
pub(crate) struct Reporter<'a> {
    token: u64,
    /// Pieces of work that are done.
    done: AtomicU64,
    line: Mutex<Line<'a>>,
}

/// The way to the agent.
struct Line<'a> {
    output: &'a mut (dyn Write + Send),
    last: Instant,
    broken: Option<WireError>,
}

impl<'a> Reporter<'a> {
    /// Reports under `token`, first of all not before the interval has passed.
    pub(crate) fn new(output: &'a mut (dyn Write + Send), token: u64) -> Self {
        let line = Mutex::new(Line { output, last: Instant::now(), broken: None });
        Self { token, done: AtomicU64::new(0), line }
    }

    /// Another piece of work is done: a row that was read, a block that was computed. Call it for no less: the
    /// lease lives as long as the count grows. A stream that fails here is reported by [`Reporter::finish`].
    pub(crate) fn tick(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever holds the line reports; nobody's work waits for that.
        let Ok(mut line) = self.line.try_lock() else { return };
        if line.broken.is_some() || line.last.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        line.last = Instant::now();
        let progress = from_worker::Kind::Progress(Progress { token: self.token, done });
        line.broken = line.send(progress).err();
    }

    /// Says how the task ended.
    ///
    /// # Errors
    /// [`WireError`] of this or of an earlier report.
    pub(crate) fn finish(self, outcome: Result<Finished, TaskError>) -> Result<(), WireError> {
        let mut line = self.line.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = line.broken.take() {
            return Err(error);
        }
        let (result, blob) = match outcome {
            Ok(finished) => finished.into_result(),
            Err(error) => (failure(&error), Bytes::new()),
        };
        let done = Done { token: self.token, result: Some(result), blob };
        line.send(from_worker::Kind::Done(done))
    }
}

impl Line<'_> {
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
        reporter.tick();
        reporter.line.get_mut().unwrap().last = Instant::now().checked_sub(PROGRESS_INTERVAL).unwrap();
        reporter.tick();
        reporter.tick();
        // One frame: field 3 of 4 bytes, in it token 7 and 2 done.
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
        reporter.line.get_mut().unwrap().last = Instant::now().checked_sub(PROGRESS_INTERVAL).unwrap();
        reporter.tick();
        let error = reporter.finish(Err(TaskError::UnknownTask)).unwrap_err();
        assert!(matches!(error, WireError::Closed), "{error}");
    }
}
