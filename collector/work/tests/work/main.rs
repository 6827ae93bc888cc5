//! The state machine's promises, one by one, over the memory store.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod cluster;
mod joules;
mod leases;
mod recovery;
mod rounds;
