//! The state machine's promises, one by one, over the memory store.

mod cluster;
mod joules;
mod leases;
mod recovery;
mod rounds;
