//! The collector's edges: gRPC for nodes and users, HTTP for Prometheus and people.
//!
//! Invariant: nothing here decides anything; it checks what comes in, asks the core, and shows views.

pub(crate) mod control;
pub(crate) mod http;
pub(crate) mod parameters;
