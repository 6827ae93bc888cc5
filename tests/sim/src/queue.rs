//! Virtual time: events in order of their time, and of their scheduling where times are equal.

use std::collections::BTreeMap;

/// What is to happen, and when.
#[derive(Debug)]
pub struct Queue<T> {
    events: BTreeMap<(u64, u64), T>,
    scheduled: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { events: BTreeMap::new(), scheduled: 0 }
    }
}

impl<T> Queue<T> {
    /// Has `event` happen at `at_ms`, after all that was scheduled for then before.
    pub fn at(&mut self, at_ms: u64, event: T) {
        self.scheduled += 1;
        self.events.insert((at_ms, self.scheduled), event);
    }

    /// The next event and its time.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.events.pop_first().map(|((at_ms, _), event)| (at_ms, event))
    }
}
