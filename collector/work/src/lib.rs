//! The state machine of work.
