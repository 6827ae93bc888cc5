//! The state machine's promises, one by one, over the memory store.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod joules;
mod leases;
mod recovery;
mod rounds;
