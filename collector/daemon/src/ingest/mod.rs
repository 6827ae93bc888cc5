//! OTLP in, frames out: the only place that knows OpenTelemetry's types.
//!
//! [`grpc`] and [`http`] receive pushes, [`shape`] bounds them before anything is allocated for them,
//! [`decode`] turns them into frames by the [`index`] of the catalogue, and [`Ingest`] hands those to the
//! [`Telemetry`], which has a lock of its own: no push ever waits for the core loop, or the other way
//! round.
//!
//! Invariants: bytes of strangers never make this panic or allocate without bound; what is not taken is
//! counted by reason; success means received (in memory), and durable is what `Control` acknowledges.

mod decode;
mod grpc;
mod http;
mod index;
mod shape;
#[cfg(test)]
mod tests;
mod value;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wattmill_protocol::NodeId;

use crate::state::{Counts, Reason, Telemetry};
use decode::{DecodeError, Decoder};

pub(crate) use grpc::MetricsService;
pub(crate) use http::router;

/// Largest push, decompressed. An agent's push of 120 series has 14 kB; 4 MiB is what OTLP senders and
/// gRPC libraries assume.
pub(crate) const MAX_PUSH_BYTES: usize = 4 << 20;

/// Metadata or header with the identity of the node that pushes.
pub(crate) const NODE_HEADER: &str = "wattmill-node";

/// Metadata or header with the push's position in the node's spool, a decimal number that grows with
/// each push; absent from senders without a spool.
pub(crate) const POSITION_HEADER: &str = "wattmill-spool-position";

/// Why a whole push was refused. Sending it again would not help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The push cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A header is not what it should be.
    #[error("header {header} is not {expected}")]
    Header {
        /// Which.
        header: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A node reports only as itself.
    #[error("node {sender} pushed telemetry of node {subject}; a node reports only as itself")]
    Identity {
        /// Who pushed.
        sender: NodeId,
        /// Whom it is about.
        subject: NodeId,
    },
}

impl ReceiveError {
    fn reason(&self) -> Reason {
        match self {
            Self::Decode(error) => error.reason(),
            Self::Header { .. } => Reason::Malformed,
            Self::Identity { .. } => Reason::IdentityMismatch,
        }
    }
}

/// Who pushed, and from where in its spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    node: Option<NodeId>,
    position: Option<u64>,
}

impl Origin {
    /// Reads the two headers; `header` gives the bytes of one.
    fn read<'a>(header: impl Fn(&'static str) -> Option<&'a [u8]>) -> Result<Self, ReceiveError> {
        fn parse<T: std::str::FromStr>(
            value: Option<&[u8]>,
            header: &'static str,
            expected: &'static str,
        ) -> Result<Option<T>, ReceiveError> {
            let Some(value) = value else { return Ok(None) };
            let parsed = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            parsed.map(Some).ok_or(ReceiveError::Header { header, expected })
        }
        Ok(Self {
            node: parse(header(NODE_HEADER), NODE_HEADER, "a UUID in lower case")?,
            position: parse(header(POSITION_HEADER), POSITION_HEADER, "a number of 64 bits")?,
        })
    }
}

/// What became of a push that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// Points that were refused; those of unknown metrics are not.
    rejected_points: u64,
    /// Why, for people; blank when none was.
    message: String,
}

/// The way of pushes into the telemetry, shared by both protocols.
#[derive(Debug)]
pub(crate) struct Ingest {
    telemetry: Arc<Telemetry>,
    decoder: Decoder,
}

impl Ingest {
    /// Receives for `telemetry`.
    pub(crate) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, decoder: Decoder::new() }
    }

    /// Takes a push in as of `now`.
    fn receive(&self, push: &[u8], origin: &Origin, now_unix_nanos: u64) -> Result<Receipt, ReceiveError> {
        let decoded = self.decoder.decode(push).map_err(ReceiveError::from).and_then(|decoded| {
            let stranger = decoded.frames.iter().find(|f| origin.node.as_ref().is_some_and(|n| f.node != *n));
            match (&origin.node, stranger) {
                (Some(sender), Some(frame)) => {
                    Err(ReceiveError::Identity { sender: sender.clone(), subject: frame.node.clone() })
                }
                _ => Ok(decoded),
            }
        });
        let decoded = decoded.inspect_err(|error| self.refuse(error.reason()))?;
        let receipt = Receipt { rejected_points: decoded.rejected_points(), message: decoded.message() };
        // A position is a place in one node's spool.
        let node = origin.node.clone().or_else(|| decoded.frames.first().map(|frame| frame.node.clone()));
        let alone = decoded.frames.iter().all(|frame| Some(&frame.node) == node.as_ref());
        let position = origin.position.filter(|_| alone);
        if decoded.frames.is_empty()
            && let (Some(node), Some(position)) = (&node, position)
        {
            self.telemetry.receive(node, position);
        }
        self.telemetry.apply(decoded.frames, position, &decoded.counts, now_unix_nanos);
        Ok(receipt)
    }

    /// Counts a push that was refused as a whole.
    fn refuse(&self, reason: Reason) {
        let mut counts = Counts::default();
        counts.reject(reason);
        self.telemetry.count(&counts);
    }
}

/// The collector's clock, read by the handlers only.
fn now_unix_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
