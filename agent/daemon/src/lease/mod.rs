//! Leases: taken from the collector, run by the worker, reported, kept until committed.
//!
//! One task owns everything: the session with the collector, the worker process, the leases in hand.
//! Invariants: a result is kept until the collector says that its round is committed or its token stale;
//! a broken session loses nothing, since the next Hello lists what is held; the worker's death costs one
//! attempt and never the agent; every lease that computed is metered from begin to end.

mod blobs;
mod computing;
mod desk;
mod keeper;
mod peak;
mod session;
mod stop;
mod traces;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wattmill_protocol::{Token, v1};

use crate::app::Services;
use desk::{Delivery, Desk, Standing};
use keeper::{Capability, Keeper};
use peak::Peak;
use session::{Link, Session};
use traces::Traces;

/// How often leases are renewed at least.
const RENEW: Duration = Duration::from_secs(1);
/// Renewals while a lease runs that makes no progress, at least.
const RENEWALS: u32 = 3;

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
            // An agent without work is not woken for it.
            let renew_at = (!self.desk.is_empty()).then(|| self.renewed + self.renew_every());
            let burst = self.next_burst();
            tokio::select! {
                biased;
                // First of all: whatever ends with the agent is handed back, and no failure.
                () = stopping.cancelled() => break,
                () = until(renew_at) => self.renew(),
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
            if renew_at.is_none() {
                self.renewed = Instant::now();
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
}

/// Waits for a time; for ever, where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
