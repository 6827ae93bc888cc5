//! What the worker does for the leases in hand, and what becomes of it when it says something or dies.

use std::time::Duration;

use tokio::time::Instant;
use wattmill_protocol::{Token, exit, v1};

use super::desk::{self, Start};
use super::peak::{self, Peak};
use super::worker::WorkerError;
use super::{Leases, keeper};

impl Leases {
    pub(super) async fn start_next(&mut self) {
        self.traces.fetched(self.desk.ready_to_start());
        let Some(worker) = self.keeper.worker().filter(|_| self.probing.is_none()) else { return };
        let Some(Start { token, job, run }) = self.desk.start() else { return };
        self.traces.train(token);
        self.services.meter.begin(token, job, worker.pid());
        let threads = self.services.config.cpus.len() as u32;
        let run = v1::RunTask { threads, ..run };
        if let Err(error) = worker.send(v1::to_worker::Kind::Run(run)).await {
            let died = self.keeper.broke(error);
            self.worker_did(died);
        }
    }

    pub(super) fn worker_did(&mut self, event: keeper::Event) {
        match event {
            keeper::Event::Said(kind) => return self.worker_said(kind),
            keeper::Event::Died(error) => self.worker_died(&error),
            keeper::Event::Ready(peak) => {
                self.services.meter.set_numerics(&self.keeper.capability().numerics);
                self.peak = Some(peak);
                self.probing = None;
                self.show_peak();
                self.said = None;
            }
            keeper::Event::Failed(error) => {
                let reason = exit::describe(&error);
                if self.said.as_ref() != Some(&reason) {
                    tracing::error!(error = reason, "no worker: this node meters, but takes no work");
                    self.said = Some(reason);
                }
            }
        }
        self.announce();
    }

    /// Tells the collector what this node can do now, if that changed: with a session of its own, since
    /// what was given to it before is for what it was.
    fn announce(&mut self) {
        let now = self.keeper.capability().clone();
        let Some(before) = self.announced.replace(now.clone()) else { return };
        // An agent that stops needs its session to hand back what it has.
        if before == now || self.services.stopping.is_cancelled() {
            return;
        }
        tracing::info!(numerics = now.numerics, slots = now.slots, "this node's capability changed");
        // What computed otherwise may not stand beside what this worker computes; without a worker nothing
        // that waits is ever begun. The next Hello does not name it, and the collector gives it to others.
        let given_up = match (before.numerics == now.numerics, now.slots) {
            (false, _) => self.desk.unreceived(),
            (true, 0) => self.desk.unfinished(),
            (true, _) => Vec::new(),
        };
        given_up.into_iter().for_each(|token| self.drop_lease(token));
        self.session.reopen();
    }

    /// When the peak is to be measured again: while there is nothing else to do.
    pub(super) fn next_burst(&mut self) -> Option<Instant> {
        let idle = self.keeper.worker().is_some() && self.probing.is_none() && self.desk.is_empty();
        self.peak.as_ref()?.next_burst().filter(|_| idle)
    }

    pub(super) async fn probe(&mut self) {
        let Some(worker) = self.keeper.worker() else { return };
        let Some(turn) = self.peak.as_mut().and_then(Peak::begin_burst) else { return };
        self.probing = Some(turn);
        if let Err(error) = worker.send(peak::request(self.services.config.cpus.len())).await {
            let died = self.keeper.broke(error);
            self.worker_did(died);
        }
    }

    fn show_peak(&self) {
        if let Some((flops_per_second, precision)) = self.peak.as_ref().map(Peak::figure) {
            self.services.meter.set_peak_flops(peak::DEVICE, precision, flops_per_second);
        }
    }

    fn worker_said(&mut self, kind: v1::from_worker::Kind) {
        use v1::from_worker::Kind;
        match kind {
            Kind::Progress(progress) => self.desk.progress(Token(progress.token), progress.done),
            Kind::Done(done) => {
                let token = Token(done.token);
                if self.desk.running() == Some(token) {
                    self.services.meter.end(token);
                    let result = done.result.unwrap_or_default();
                    let time = Duration::from_nanos(result.compute_nanoseconds);
                    let peak = self.peak.as_mut();
                    if peak.is_some_and(|peak| peak.worked(result.useful_flops, time)) {
                        self.show_peak();
                    }
                    self.finish(token, result, done.blob);
                }
            }
            Kind::Probe(reply) => {
                let burst = self.probing.take().and(self.peak.as_mut());
                if burst.is_some_and(|peak| peak.end_burst(reply.flops_per_second)) {
                    self.show_peak();
                }
            }
            Kind::Hello(_) => {}
        }
    }

    fn worker_died(&mut self, error: &WorkerError) {
        let reason = exit::describe(error);
        tracing::error!(error = reason, "the worker died");
        self.probing = None;
        // Who stops the agent may stop its worker as well: that is handed back.
        if let Some(token) = self.desk.running().filter(|_| !self.services.stopping.is_cancelled()) {
            self.services.meter.end(token);
            let failure = desk::failure(format!("the worker died: {reason}"));
            self.finish(token, failure, bytes::Bytes::new());
        }
    }

    pub(super) fn finish(&mut self, token: Token, result: v1::TaskResult, blob: bytes::Bytes) {
        let failure = match &result.kind {
            Some(v1::task_result::Kind::Failure(failure)) => Some(failure.message.as_str()),
            _ => None,
        };
        self.traces.finished(token, failure);
        self.desk.finish(token, result, blob);
        self.report(token);
    }
}
