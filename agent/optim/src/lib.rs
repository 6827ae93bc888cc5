//! Optimizers, learning-rate schedules and reductions over flat `f32` tensors.
//!
//! Pure and element-wise: no allocation, I/O, clock, thread or randomness. The collector applies
//! [`Optimizer::step`] to the reduced gradient of a `sync` round; the worker applies the same code in
//! `local` mode.
//!
//! Invariant: equal arguments give equal bits on every machine. Each result is a fixed sequence of
//! IEEE 754 additions, subtractions, multiplications, divisions and square roots. Rust never
//! contracts `a * b + c` into a fused operation nor reorders a sum, and nothing here calls the
//! platform's libm. The loops still vectorise, because no element depends on another.

mod adamw;
mod optimizer;
mod reduce;
mod schedule;
mod sgd;

pub use optimizer::{InvalidHyperparameter, Optimizer, StepError};
pub use reduce::{LengthMismatch, mean, reduce};
pub use schedule::Schedule;
