//! Pure planning: no I/O, no clock, no randomness of its own.
//!
//! [`efficiency`] says how well a cluster uses its devices, its storage and its joules.

pub mod efficiency;
