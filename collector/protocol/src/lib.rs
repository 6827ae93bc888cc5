//! Wattmill's contract: what goes over wires, into files and out of `/metrics`.
//!
//! Protobuf services ([`v1`]), identities and amounts that cannot be confused ([`ids`], [`energy`]), the
//! [`job`] file, the rules of [`config_file`]s, and the [`catalogue`] of metrics with its Prometheus
//! [`exposition`]. Nothing here acts: no I/O but reading configuration, no clock, no workspace crate.

pub mod catalogue;
pub mod config_file;
pub mod energy;
pub mod exit;
pub mod exposition;
pub mod ids;
pub mod job;

/// Generated protobuf messages and services of `wattmill.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("wattmill.v1");
}

pub use energy::{Energy, Source};
pub use ids::{Hash, InvalidId, JobId, NodeId, Token};

/// Version of the contract between agents and collectors. N and N−1 work together.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest control message in bytes. Bulk bytes go through `Parameters`.
pub const MAX_CONTROL_MESSAGE_BYTES: usize = 1 << 20;

/// Bytes of one chunk of a blob on the wire.
pub const BLOB_CHUNK_BYTES: usize = 256 << 10;

/// Most parameters that a model may have: bounds every buffer made on a stranger's word.
pub const MAX_PARAMETERS: u64 = 32 << 20;

/// Largest blob: optimizer state of the largest model (two f32 a parameter) and room for a header.
pub const MAX_BLOB_BYTES: u64 = MAX_PARAMETERS * 8 + (1 << 20);

/// Largest message between an agent and its worker: the largest parameters and room for the rest.
pub const MAX_WORKER_MESSAGE_BYTES: usize = (MAX_PARAMETERS * 4) as usize + (2 << 20);
