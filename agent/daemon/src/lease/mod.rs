//! Leases: taken from the collector, run by the worker, reported, kept until committed.
//!
//! One task owns everything: the session with the collector, the worker process, the leases in hand.
//! Invariants: a result is kept until the collector says that its round is committed or its token stale;
//! a broken session loses nothing, since the next Hello lists what is held; the worker's death costs one
//! attempt and never the agent; every lease that computed is metered from begin to end.

mod blobs;
mod desk;
mod keeper;
mod peak;
mod session;
mod traces;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wattmill_protocol::{Token, exit, v1};

use crate::app::Services;
use desk::{Delivery, Desk, Standing, Start};
use keeper::{Capability, Keeper};
use peak::Peak;
use session::{Link, Session};
use traces::Traces;
use worker::WorkerError;

/// How often leases are renewed at least.
const RENEW: Duration = Duration::from_secs(1);
/// Renewals while a lease runs that makes no progress, at least.
const RENEWALS: u32 = 3;
/// How long the end waits for the last joules to be applied.
const SETTLE_WITHIN: Duration = Duration::from_millis(1500);

/// Runs until the agent stops; work is handed back then. Returns why it ended.
pub(crate) async fn run(services: Services) -> String {
    let Some(url) = services.config.collector.clone() else {
        services.stopping.cancelled().await;
        return "the agent stops".to_owned();
    };
    let link = match Link::new(&url) {
        Ok(link) => link,
        Err(error) => return format!("the collector's address {url} cannot be used: {error}"),
    };
    let endpoint = services.config.traces_endpoint.as_deref();
    let traces = match Traces::start(endpoint, &services.identity.node) {
        Ok(traces) => traces,
        Err(error) => return format!("traces.endpoint cannot be used: {error}"),
    };
    let mut leases = Leases {
        desk: Desk::default(),
        keeper: Keeper::new(Arc::clone(&services.config)),
        announced: None,
        said: None,
        peak: None,
        probing: None,
        session: Session::new(link.clone()),
        blobs: blobs::Transfers::new(&link),
        traces,
        renewed: Instant::now(),
        services,
    };
    leases.run().await;
    "the agent stops".to_owned()
}

struct Leases {
    services: Services,
    desk: Desk,
    keeper: Keeper,
    /// What the collector is told of the worker; nothing before the first was tried.
    announced: Option<Capability>,
    /// Why there is no worker, as it was logged last.
    said: Option<String>,
    /// How fast the device can be; nothing before the first worker.
    peak: Option<Peak>,
    /// While the worker measures the peak again.
    probing: Option<peak::Turn>,
    session: Session,
    blobs: blobs::Transfers,
    traces: Traces,
    /// When leases were last renewed.
    renewed: Instant,
}

impl Leases {
    async fn run(&mut self) {
        let stopping = self.services.stopping.clone();
        let mut settlements = self.services.meter.settlements_changed();
        loop {
            let renew_at = self.renewed + self.renew_every();
            let burst = self.next_burst();
            tokio::select! {
                biased;
                // First of all: whatever ends with the agent is handed back, and no failure.
                () = stopping.cancelled() => break,
                () = tokio::time::sleep_until(renew_at) => self.renew(),
                event = self.keeper.next() => self.worker_did(event),
                message = self.session.next(), if self.announced.is_some() => match message {
                    session::Event::Connected => self.hello(),
                    session::Event::Message(kind) => self.hear(kind),
                },
                () = until(burst) => self.probe().await,
                ended = self.blobs.next() => self.transferred(ended),
                // The sender lives as long as the meter, which outlives this task.
                Ok(()) = settlements.changed() => self.settle(),
            }
            for hash in self.desk.unneeded() {
                self.blobs.give_up_fetch(hash);
            }
            self.start_next().await;
            if let Some(peak) = self.peak.as_mut().filter(|_| !self.desk.is_empty()) {
                peak.busy();
            }
        }
        self.hand_back().await;
    }

    fn hello(&mut self) {
        let (config, identity) = (&self.services.config, &self.services.identity);
        let Capability { numerics, slots } = self.announced.clone().unwrap_or_default();
        let hello = v1::Hello {
            protocol: wattmill_protocol::PROTOCOL_VERSION,
            version: crate::VERSION.to_owned(),
            node: identity.node.to_string(),
            name: config.name.clone(),
            machine_id: identity.machine_id.clone(),
            host_fraction_ppm: config.host_fraction_ppm,
            cpus: config.cpus.iter().collect(),
            numerics,
            held: self.desk.held(),
            advertised_metrics: config.advertise.clone().unwrap_or_default(),
            slots,
            settled: self.services.meter.settled(),
        };
        self.session.send(v1::from_node::Kind::Hello(hello));
    }

    fn hear(&mut self, kind: v1::to_node::Kind) {
        use v1::to_node::Kind;
        match kind {
            Kind::Welcome(welcome) => {
                tracing::info!(cluster = welcome.cluster, "session opened");
                self.services.push.session_opened(welcome.spool_durable);
                self.services.meter.settled_through(welcome.settled);
                self.settle();
                self.desk.undeliver();
                for token in self.desk.finished() {
                    self.report(token);
                }
            }
            // Given before the collector heard that this node stops.
            Kind::Lease(lease) if self.services.stopping.is_cancelled() => self.refuse(&lease),
            Kind::Lease(lease) => {
                self.traces.begin(&lease);
                if let Some(hash) = self.desk.take(lease) {
                    self.blobs.fetch(hash);
                }
            }
            Kind::Revoke(revoke) => {
                tracing::info!(token = %Token(revoke.token), reason = revoke.reason, "lease revoked");
                self.traces.end(Token(revoke.token), Some(&revoke.reason));
                self.drop_lease(Token(revoke.token));
            }
            Kind::ReportReply(reply) => self.replied(Token(reply.token), reply.outcome()),
            Kind::Settled(settled) => self.services.meter.settled_through(settled.sequence),
            Kind::Unsettled(unsettled) => unsettled.leases.iter().for_each(|lease| self.account_for(lease)),
            Kind::SpoolDurable(durable) => self.services.push.durable(durable.position),
            Kind::Committed(committed) => {
                committed.tokens.into_iter().for_each(|token| self.committed(Token(token)));
            }
        }
    }

    fn replied(&mut self, token: Token, outcome: v1::ReportOutcome) {
        use v1::ReportOutcome;
        match outcome {
            ReportOutcome::Received => {
                self.desk.deliver(token, Delivery::Received);
                self.traces.reported(token);
            }
            ReportOutcome::Committed => {
                self.traces.reported(token);
                self.committed(token);
            }
            ReportOutcome::BlobMissing => {
                self.desk.deliver(token, Delivery::Kept);
                self.report(token);
            }
            ReportOutcome::Stale | ReportOutcome::Failed => self.drop_lease(token),
            ReportOutcome::Unspecified => {
                tracing::warn!(%token, "the collector answered a report in words that this version does not know");
            }
        }
    }

    /// A result counts: its model FLOPs were useful, and it may go.
    fn committed(&mut self, token: Token) {
        self.traces.end(token, None);
        if let Some(flops) = self.desk.committed(token) {
            self.services.meter.add_useful_flops(flops);
        }
    }

    /// A lease is no longer this node's. Where it computes, only ending the worker stops it.
    fn drop_lease(&mut self, token: Token) {
        self.traces.end(token, Some("the collector does not take it"));
        self.blobs.give_up_store(token);
        self.settle_if_waiting(token);
        if self.desk.remove(token) {
            self.services.meter.end(token);
            self.keeper.end_worker();
        }
    }

    /// A lease whose work has not begun never will: it settles with nothing.
    fn settle_if_waiting(&mut self, token: Token) {
        if let Some(job) = self.desk.waiting(token) {
            self.services.meter.never_began(token, job);
        }
    }

    /// The collector misses the joules of a lease that this node did not say it holds.
    fn account_for(&mut self, lease: &v1::UnsettledLease) {
        let (token, Ok(job)) = (Token(lease.token), lease.job.parse()) else { return };
        if !self.desk.holds(token) {
            let unrecorded = !self.desk.knows_begun(token);
            self.services.meter.account_for(token, job, unrecorded);
        }
    }

    async fn start_next(&mut self) {
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

    fn worker_did(&mut self, event: keeper::Event) {
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
    fn next_burst(&mut self) -> Option<Instant> {
        let idle = self.keeper.worker().is_some() && self.probing.is_none() && self.desk.is_empty();
        self.peak.as_ref()?.next_burst().filter(|_| idle)
    }

    async fn probe(&mut self) {
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

    fn finish(&mut self, token: Token, result: v1::TaskResult, blob: bytes::Bytes) {
        let failure = match &result.kind {
            Some(v1::task_result::Kind::Failure(failure)) => Some(failure.message.as_str()),
            _ => None,
        };
        self.traces.finished(token, failure);
        self.desk.finish(token, result, blob);
        self.report(token);
    }

    /// Stores a result's blob, then reports it. Without a session it waits for the next one.
    fn report(&mut self, token: Token) {
        if !self.session.is_open() {
            return;
        }
        match self.desk.blob(token).filter(|_| self.desk.delivery(token) == Some(Delivery::Kept)) {
            Some((hash, blob)) => self.blobs.store(token, hash, blob),
            None => self.send_report(token),
        }
    }

    fn transferred(&mut self, ended: blobs::Ended) {
        match ended {
            blobs::Ended::Fetched(fetched) => {
                for (token, failure) in self.desk.fetched(fetched) {
                    self.settle_if_waiting(token);
                    self.finish(token, failure, bytes::Bytes::new());
                }
            }
            blobs::Ended::Stored(stored) => self.stored(stored),
        }
    }

    fn stored(&mut self, stored: blobs::Stored) {
        match stored.outcome {
            Ok(()) => {
                self.desk.deliver(stored.token, Delivery::Stored);
                self.send_report(stored.token);
            }
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                tracing::debug!(token = %stored.token, "the collector takes no blob of this lease any more");
                self.send_report(stored.token);
            }
            Err(status) => {
                let reason = format!("its result cannot be stored: {}", status.message());
                tracing::error!(token = %stored.token, reason, "an attempt failed");
                self.desk.finish(stored.token, desk::failure(reason), bytes::Bytes::new());
                self.send_report(stored.token);
            }
        }
    }

    fn send_report(&mut self, token: Token) {
        if let Some(report) = self.desk.report(token) {
            self.session.send(v1::from_node::Kind::Report(report));
        }
    }

    /// Often enough for the shortest lease in hand.
    fn renew_every(&self) -> Duration {
        self.desk.shortest().map_or(RENEW, |lease| RENEW.min(lease / RENEWALS))
    }

    /// Says how far all leases are whose results the collector does not have.
    fn renew(&mut self) {
        self.renewed = Instant::now();
        self.desk.moved(&self.blobs.moved());
        let metered = self.services.meter.running();
        metered.iter().for_each(|shard| self.desk.took(shard.token, shard.energy));
        let watts = |token| metered.iter().find(|s| s.token == token).map_or(0.0, |s| s.power_watts);
        let renewal = |Standing { token, progress, energy }| v1::Renewal {
            token: token.0,
            progress,
            energy: Some(energy.into()),
            power_watts: watts(token),
        };
        let renewals: Vec<v1::Renewal> = self.desk.standings().map(renewal).collect();
        if !renewals.is_empty() {
            self.session.send(v1::from_node::Kind::Renew(v1::Renew { renewals }));
        }
    }

    fn settle(&mut self) {
        let pending = self.services.meter.pending_settlements();
        if pending.is_empty() || !self.session.is_open() {
            return;
        }
        let settlements = pending.into_iter().map(|s| v1::Settlement {
            sequence: s.sequence,
            token: s.token.0,
            job: s.job.to_string(),
            energy: Some(s.energy.into()),
            unrecorded: s.unrecorded,
        });
        for chunk in session::chunks(settlements) {
            self.session.send(v1::from_node::Kind::Settle(v1::Settle { settlements: chunk }));
        }
    }

    /// Gives unfinished leases back and sees their joules settled, so that nothing waits for this node.
    async fn hand_back(&mut self) {
        let unfinished = self.desk.unfinished();
        for token in &unfinished {
            self.traces.end(*token, Some("handed back"));
            self.services.meter.end(*token);
            self.settle_if_waiting(*token);
            self.give_back(*token);
        }
        self.keeper.end_worker();
        self.services.meter.flush().await;
        self.settle();
        if self.session.is_open() && tokio::time::timeout(SETTLE_WITHIN, self.settled()).await.is_err() {
            tracing::info!(
                "the last joules are not settled yet: they are kept and settled at the next start"
            );
        }
        let traces = &mut self.traces;
        // Sending the last spans blocks.
        tokio::task::block_in_place(|| traces.stop());
        tracing::info!(handed_back = unfinished.len(), "leases handed back");
    }

    /// Gives back a lease that came too late to be begun.
    fn refuse(&mut self, lease: &v1::Lease) {
        if let Ok(job) = lease.job.parse() {
            self.services.meter.never_began(Token(lease.token), job);
        }
        self.give_back(Token(lease.token));
    }

    fn give_back(&mut self, token: Token) {
        let reason = "the agent stops".to_owned();
        self.session.send(v1::from_node::Kind::HandBack(v1::HandBack { token: token.0, reason }));
    }

    /// Waits until the collector has applied every settlement.
    async fn settled(&mut self) {
        while !self.services.meter.pending_settlements().is_empty() {
            if let session::Event::Message(kind) = self.session.next().await {
                self.hear(kind);
            }
        }
    }
}

/// Waits for a time; for ever, where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
