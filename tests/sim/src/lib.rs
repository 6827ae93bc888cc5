//! Deterministic simulation of Wattmill's work: the real state machine, the real memory store and the real
//! optimizers, between simulated nodes, network, users, crashes and virtual time.
//!
//! A seed decides everything, so that every failure replays. No clock, thread or hash order takes part.
//! What must hold stands in [`Checks`](checks::Checks) and is checked after every event.

pub mod assign;
pub mod attempt;
pub mod blobs;
pub mod checks;
pub mod collector;
pub mod context;
pub mod judge;
pub mod ledger;
pub mod network;
pub mod node;
pub mod queue;
pub mod random;
pub mod reduction;
pub mod scenario;
mod simulation;
pub mod train;
pub mod words;

pub use simulation::{Failure, Summary, run};
