//! The real programs as processes, for tests: started in folders of their own on free ports, read over HTTP,
//! killed when dropped.
//!
//! Invariant: nothing here waits for a time to pass. A test waits for a condition, and fails when it does not
//! come true within [`PATIENCE`] or what the test says.
//!
//! Everything panics with what went wrong: a test that goes on after that would only say less.

pub mod bmc;
pub mod http;
pub mod metrics;
pub mod process;
pub mod tools;

use std::time::{Duration, Instant};

/// Longest wait for anything that takes a moment on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until there is something.
///
/// # Panics
/// There is nothing after `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, look: impl FnMut() -> Option<T>) -> T {
    let found = look_until(Instant::now() + patience, look);
    found.unwrap_or_else(|| panic!("{what}: not so within {} s", patience.as_secs()))
}

/// Looks until there is something, or nothing at the deadline.
fn look_until<T>(deadline: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
