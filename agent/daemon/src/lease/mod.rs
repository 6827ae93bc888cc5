//! Leases: taken from the collector, run by the worker, reported, kept until committed.
//!
//! One task owns everything: the session with the collector, the worker process, the leases in hand.
//! Invariants: a result is kept until the collector says that its round is committed or its token stale;
//! a broken session loses nothing, since the next Hello lists what is held; the worker's death costs one
//! attempt and never the agent; every lease that computed is metered from begin to end.

mod blobs;
mod desk;
mod session;
mod traces;
mod worker;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use wattmill_protocol::{Energy, Token, exit, v1};

use crate::app::Services;
use desk::{Desk, Start};
use session::{Link, Session};
use traces::Traces;
use worker::{Worker, WorkerError};

/// How often running leases are renewed.
const RENEW: Duration = Duration::from_secs(1);
/// Pause before a worker that could not be started, or died, is started again.
const WORKER_RETRY: Duration = Duration::from_secs(2);
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
    let Some(worker) = first_worker(&services).await else {
        return "the agent stops".to_owned();
    };
    let mut leases = Leases {
        desk: Desk::default(),
        numerics: worker.numerics().to_owned(),
        worker: Some(worker),
        worker_retry: Instant::now(),
        session: Session::new(link.clone()),
        blobs: blobs::Transfers::new(&link),
        traces,
        services,
    };
    leases.run().await;
    "the agent stops".to_owned()
}

/// The first worker says how this node computes and how fast it can be; without one there is no session.
async fn first_worker(services: &Services) -> Option<Worker> {
    let config = &services.config;
    loop {
        let started = async {
            let mut worker = Worker::start(&config.worker_path, &config.cpus).await?;
            services.meter.set_numerics(worker.numerics());
            let peak = worker::peak(&mut worker, &config.state_dir, config.cpus.len()).await?;
            services.meter.set_peak_flops(worker::DEVICE, &peak.precision, peak.flops_per_second);
            Ok::<_, WorkerError>(worker)
        };
        let error = match services.stopping.run_until_cancelled(started).await? {
            Ok(worker) => return Some(worker),
            Err(error) => error,
        };
        tracing::error!(error = exit::describe(&error), "no worker: this node meters, but takes no work");
        services.stopping.run_until_cancelled(tokio::time::sleep(WORKER_RETRY)).await?;
    }
}

struct Leases {
    services: Services,
    desk: Desk,
    numerics: String,
    worker: Option<Worker>,
    worker_retry: Instant,
    session: Session,
    blobs: blobs::Transfers,
    traces: Traces,
}

impl Leases {
    async fn run(&mut self) {
        let stopping = self.services.stopping.clone();
        let mut renewals = tokio::time::interval(RENEW);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut settlements = self.services.meter.settlements_changed();
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                message = self.session.next() => match message {
                    session::Event::Connected => self.hello(),
                    session::Event::Message(kind) => self.hear(kind),
                },
                message = worker::next(&mut self.worker) => self.worker_said(message).await,
                () = tokio::time::sleep_until(self.worker_retry), if self.worker.is_none() => {
                    self.restart_worker().await;
                }
                ended = self.blobs.next() => self.transferred(ended),
                _ = renewals.tick() => self.renew(),
                // The sender lives as long as the meter, which outlives this task.
                Ok(()) = settlements.changed() => self.settle(),
            }
            self.start_next().await;
        }
        self.hand_back().await;
    }

    fn hello(&mut self) {
        let (config, identity) = (&self.services.config, &self.services.identity);
        let hello = v1::Hello {
            protocol: wattmill_protocol::PROTOCOL_VERSION,
            version: crate::VERSION.to_owned(),
            node: identity.node.to_string(),
            name: config.name.clone(),
            machine_id: identity.machine_id.clone(),
            host_fraction_ppm: config.host_fraction_ppm,
            cpus: config.cpus.iter().collect(),
            numerics: self.numerics.clone(),
            held: self.desk.held(),
            advertised_metrics: config.advertise.clone().unwrap_or_default(),
            slots: desk::SLOTS,
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
                for token in self.desk.finished() {
                    self.report(token);
                }
            }
            // Given before the collector heard that this node stops.
            Kind::Lease(lease) if self.services.stopping.is_cancelled() => self.refuse(&lease),
            Kind::Lease(lease) => {
                self.traces.begin(Token(lease.token), &lease.traceparent);
                if let Some(hash) = self.desk.take(lease) {
                    self.blobs.fetch(hash);
                }
            }
            Kind::Revoke(revoke) => {
                tracing::info!(token = %Token(revoke.token), reason = revoke.reason, "lease revoked");
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
            ReportOutcome::Received => self.traces.part(token, "report"),
            ReportOutcome::Committed => self.committed(token),
            ReportOutcome::BlobMissing => self.report(token),
            ReportOutcome::Stale | ReportOutcome::Failed => self.drop_lease(token),
            ReportOutcome::Unspecified => {
                tracing::warn!(%token, "the collector answered a report in words that this version does not know");
            }
        }
    }

    /// A result counts: its model FLOPs were useful, and it may go.
    fn committed(&mut self, token: Token) {
        self.traces.end(token);
        if let Some(flops) = self.desk.committed(token) {
            self.services.meter.add_useful_flops(flops);
        }
    }

    /// A lease is no longer this node's. Where it computes, only ending the worker stops it.
    fn drop_lease(&mut self, token: Token) {
        self.traces.end(token);
        self.settle_if_waiting(token);
        if self.desk.remove(token) {
            self.services.meter.end(token);
            self.worker = None;
            self.worker_retry = Instant::now();
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
        let Some(worker) = &mut self.worker else { return };
        let Some(Start { token, job, run }) = self.desk.start() else { return };
        self.traces.part(token, "fetch");
        self.services.meter.begin(token, job, worker.pid());
        let threads = self.services.config.cpus.len() as u32;
        let run = v1::RunTask { threads, ..run };
        if let Err(error) = worker.send(v1::to_worker::Kind::Run(run)).await {
            self.worker_died(&error);
        }
    }

    async fn worker_said(&mut self, message: Result<v1::from_worker::Kind, WorkerError>) {
        use v1::from_worker::Kind;
        match message {
            Ok(Kind::Progress(progress)) => self.desk.progress(Token(progress.token), progress.samples),
            Ok(Kind::Done(done)) => {
                let token = Token(done.token);
                if self.desk.running() == Some(token) {
                    self.services.meter.end(token);
                    self.finish(token, done.result.unwrap_or_default(), done.blob);
                }
            }
            Ok(Kind::Hello(_) | Kind::Probe(_)) => {}
            Err(error) => self.worker_died(&error),
        }
    }

    fn worker_died(&mut self, error: &WorkerError) {
        let reason = exit::describe(error);
        tracing::error!(error = reason, "the worker died: its attempt failed, another worker is started");
        self.worker = None;
        self.worker_retry = Instant::now();
        if let Some(token) = self.desk.running() {
            self.services.meter.end(token);
            let failure = desk::failure(format!("the worker died: {reason}"));
            self.finish(token, failure, bytes::Bytes::new());
        }
    }

    async fn restart_worker(&mut self) {
        let config = &self.services.config;
        match Worker::start(&config.worker_path, &config.cpus).await {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => {
                tracing::error!(error = exit::describe(&error), "the worker cannot be started");
                self.worker_retry = Instant::now() + WORKER_RETRY;
            }
        }
    }

    fn finish(&mut self, token: Token, result: v1::TaskResult, blob: bytes::Bytes) {
        self.traces.part(token, "train");
        self.desk.finish(token, result, blob);
        self.report(token);
    }

    /// Stores a result's blob, then reports it. Without a session it waits for the next one.
    fn report(&mut self, token: Token) {
        if !self.session.is_open() {
            return;
        }
        match self.desk.blob(token) {
            Some((hash, blob)) => self.blobs.store(token, hash, blob),
            None => self.send_report(token),
        }
    }

    fn transferred(&mut self, ended: blobs::Ended) {
        match ended {
            blobs::Ended::Fetched(fetched) => {
                if let Some((token, failure)) = self.desk.fetched(fetched) {
                    self.settle_if_waiting(token);
                    self.finish(token, failure, bytes::Bytes::new());
                }
            }
            blobs::Ended::Stored(stored) => self.stored(stored),
        }
    }

    fn stored(&mut self, stored: blobs::Stored) {
        match stored.outcome {
            Ok(()) => self.send_report(stored.token),
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                tracing::debug!(token = %stored.token, "the collector takes no blob of this lease any more");
                self.send_report(stored.token);
            }
            Err(status) => {
                tracing::warn!(token = %stored.token, reason = status.message(), "a result could not be stored");
                // Tried again with the next session, which a collector in trouble soon brings.
                self.session.close();
            }
        }
    }

    fn send_report(&mut self, token: Token) {
        if let Some(report) = self.desk.report(token) {
            self.session.send(v1::from_node::Kind::Report(report));
        }
    }

    fn renew(&mut self) {
        let Some(token) = self.desk.running() else { return };
        let metered = self.services.meter.running().into_iter().find(|shard| shard.token == token);
        let (energy, power_watts) =
            metered.map_or((Energy::ZERO, 0.0), |shard| (shard.energy, shard.power_watts));
        let samples = self.desk.samples_done();
        let renewal = v1::Renewal { token: token.0, samples, energy: Some(energy.into()), power_watts };
        self.session.send(v1::from_node::Kind::Renew(v1::Renew { renewals: vec![renewal] }));
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
            self.services.meter.end(*token);
            self.settle_if_waiting(*token);
            self.give_back(*token);
        }
        self.worker = None;
        self.services.meter.flush().await;
        // A window later the shards that ended are settled; the second flush closes that window.
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
