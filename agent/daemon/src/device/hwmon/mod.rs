//! Sensors that the kernel shows under hwmon: GPUs of AMD and Intel ([`gpus`]), boards and power supplies
//! ([`board`]).
//!
//! Invariant: nothing is known by its number (`hwmon3`, `card1`), which another boot gives to another device. A
//! chip that shows what another backend meters is left to that one.

pub mod board;
mod card;
mod files;
mod gpu;
mod gpu_metrics;
pub mod gpus;

/// Chips that show what another backend meters, and which: they would be there twice.
pub const METERED_ELSEWHERE: [(&str, &str); 9] = [
    ("amdgpu", "a GPU"),
    ("i915", "a GPU"),
    ("xe", "a GPU"),
    // NVML's: it tells more, and what both show is one board.
    ("nouveau", "NVML's"),
    ("nvidia", "NVML's"),
    // The counters behind RAPL, once for each core.
    ("amd_energy", "RAPL's"),
    // What the CPU believes to draw.
    ("fam15h_power", "RAPL's"),
    ("zenpower", "RAPL's"),
    ("zenergy", "RAPL's"),
];
