//! What the pages before said, so that joules since watching began, and since the page before, are known.
//!
//! Invariant: a sum that fell, as after a ledger that was removed, begins anew: joules are never negative, nor made
//! up. What is not on a page any more is forgotten with it, so that memory is bounded by a page.

use std::collections::BTreeMap;

/// What is remembered of a sum.
#[derive(Clone, Copy, Debug)]
struct Sum {
    /// Joules when it was first seen.
    first: f64,
    /// Joules on the newest page.
    now: f64,
    /// Whether it is on this page.
    seen: bool,
    /// Pages since it last grew.
    still: u64,
}

/// The sums of the pages so far.
#[derive(Debug, Default)]
pub(crate) struct Since {
    sums: BTreeMap<String, Sum>,
    pages: u64,
}

impl Since {
    /// The name of a sum.
    pub(super) fn key(kind: &str, id: &str, source: &str) -> String {
        format!("{kind}\n{id}\n{source}")
    }

    /// Joules since the sum is watched.
    pub(super) fn joules(&mut self, key: &str, now: f64) -> f64 {
        let first = now;
        self.see(key, now, first)
    }

    /// Joules since the sum of a unit is watched: one that appears later began at zero.
    pub(super) fn unit_joules(&mut self, key: &str, now: f64) -> f64 {
        let first = if self.pages == 0 { now } else { 0.0 };
        self.see(key, now, first)
    }

    /// Joules since the page before; to be asked before [`Self::joules`] of the same sum.
    pub(super) fn step(&self, key: &str, now: f64) -> Option<f64> {
        self.sums.get(key).map(|sum| now - sum.now).filter(|step| *step >= 0.0)
    }

    /// Pages up to this one on which a sum has not grown; to be asked as [`Self::step`].
    pub(super) fn still(&self, key: &str, now: f64) -> u64 {
        self.sums.get(key).map_or(0, |sum| if now > sum.now { 0 } else { sum.still + 1 })
    }

    fn see(&mut self, key: &str, now: f64, first: f64) -> f64 {
        let still = self.still(key, now);
        let sum = self.sums.entry(key.to_owned()).or_insert(Sum { first, now, seen: true, still });
        sum.still = still;
        if now < sum.now {
            sum.first = first;
        }
        (sum.now, sum.seen) = (now, true);
        now - sum.first
    }

    /// Whether no page was read yet.
    pub(super) fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// A page is read.
    pub(super) fn turn(&mut self) {
        self.pages += 1;
        self.sums.retain(|_, sum| std::mem::take(&mut sum.seen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joules_count_from_the_first_page() {
        let mut since = Since::default();
        assert_eq!((since.step("a", 5.0), since.joules("a", 5.0)), (None, 0.0));
        since.turn();
        assert_eq!((since.step("a", 7.5), since.joules("a", 7.5)), (Some(2.5), 2.5));
        // A device that comes later brings old joules with it; a unit does not.
        assert_eq!((since.joules("later", 9.0), since.unit_joules("unit", 9.0)), (0.0, 9.0));
        since.turn();
        assert_eq!((since.step("a", 1.0), since.joules("a", 1.0)), (None, 0.0), "it fell: it counts anew");
        assert_eq!(since.unit_joules("unit", 1.0), 1.0, "a place that was given anew began at zero");
        since.turn();
        assert_eq!(since.joules("a", 4.0), 3.0);
    }

    #[test]
    fn what_left_the_page_is_forgotten() {
        let mut since = Since::default();
        for page in 0..100 {
            since.joules(&format!("unit-{page}"), 1.0);
            since.turn();
            assert_eq!(since.sums.len(), 1);
        }
    }
}
