//! Pure planning: what the cluster's figures mean, and who gets which share of the work.
//!
//! No I/O, clock or randomness: a snapshot, a policy and the previous plan come in, a [`Plan`] comes out,
//! and the same input gives the same plan whatever the order of its nodes. [`assign`](mod@assign) turns a plan into
//! single shards without choosing anew.

pub mod assign;
pub mod efficiency;
pub mod plan;
pub mod profile;

pub use assign::{Assignment, JobQueue, NodeLoad, Pending, assign};
pub use plan::{
    Allocation, Gpu, GpuState, JobSnapshot, NodeSnapshot, Plan, Policy, Snapshot, plan, usable_slots,
};
pub use profile::Profiles;
