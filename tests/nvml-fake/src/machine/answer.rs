//! What a running fake answers to a command.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The truth about a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// UUID.
    pub uuid: String,
    /// Energy since the first initialisation, in microjoules (rounded down).
    pub energy_microjoules: u64,
    /// The part of it that a perfect counter shows: since the driver was loaded or the GPU reset.
    pub counted_microjoules: u64,
    /// The instant, in nanoseconds of the fake's clock (`CLOCK_MONOTONIC` unless manual).
    pub at_monotonic_ns: u64,
    /// Power at that instant, in watts.
    pub power_watts: f64,
}

/// Calls of one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// Calls that began.
    pub begun: u64,
    /// Calls that are blocked by a hang, or in an event wait.
    pub waiting: u64,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done, at this instant.
    Done {
        /// Nanoseconds of the fake's clock.
        at_monotonic_ns: u64,
    },
    /// To `truth`: one entry for each GPU, lost ones too, in the order of the configuration.
    Gpus(Vec<Truth>),
    /// To `last_read`.
    Read(Truth),
    /// To `calls`: by function.
    Calls(BTreeMap<String, CallCount>),
    /// The request was refused; nothing changed.
    Error(String),
}
