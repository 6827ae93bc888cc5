//! The end: work is handed back, and its joules are settled.

use std::time::Duration;

use wattmill_protocol::{Token, v1};

use super::{Leases, session};

/// How long the end waits for the last joules to be applied.
const SETTLE_WITHIN: Duration = Duration::from_millis(1500);

impl Leases {
    /// Gives unfinished leases back and sees their joules settled, so that nothing waits for this node.
    pub(super) async fn hand_back(&mut self) {
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
        self.traces.stop().await;
        tracing::info!(handed_back = unfinished.len(), "leases handed back");
    }

    /// Gives back a lease that came too late to be begun.
    pub(super) fn refuse(&mut self, lease: &v1::Lease) {
        if let Ok(job) = lease.job.parse() {
            self.services.meter.never_began(Token(lease.token), job);
        }
        self.give_back(Token(lease.token));
    }

    pub(super) fn give_back(&mut self, token: Token) {
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
