//! Bytes that a host's disks moved in the last minute.
//!
//! Invariants: kept in memory only, since a minute's worth is soon there again; bytes and the time in which
//! they were moved are counted together, so that their ratio holds however little of the minute is known.

use std::collections::BTreeMap;

use wattmill_protocol::catalogue as metrics;

use super::counter::{Cumulative, Step};
use super::frame::{NANOS_PER_SECOND, Sample};
use super::ring::{SLOT_SECONDS, slot_of};

/// Slots that are kept: the one under way and five before it, 50 to 60 s.
pub(crate) const MOVED_SLOTS: u64 = 6;

/// Most disks that are kept of a host; an agent sends at most 128.
const MAX_DISKS: usize = 256;

/// Which way bytes were moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    /// From storage.
    Read,
    /// To storage.
    Write,
}

impl Op {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The value of the `op` label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn of(sample: &Sample) -> Option<Self> {
        if sample.is(&metrics::HOST_DISK_READ) {
            Some(Self::Read)
        } else if sample.is(&metrics::HOST_DISK_WRITTEN) {
            Some(Self::Write)
        } else {
            None
        }
    }
}

/// What was moved in a slot, or in several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MovedSlot {
    number: u64,
    /// Bytes by [`Op`].
    pub(crate) bytes: [f64; Op::ALL.len()],
    /// Seconds in which disks were watched.
    pub(crate) seconds: f64,
}

/// A host's disks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moved {
    disks: BTreeMap<(Op, Box<str>), Cumulative<f64>>,
    slots: [MovedSlot; MOVED_SLOTS as usize],
}

impl Moved {
    /// Takes in a frame's samples, `stepped_back` where the node's clock is known to have gone back. A disk
    /// that is seen for the first time adds nothing. `false` where there is no room for another disk.
    pub(crate) fn take(
        &mut self,
        samples: &[Sample],
        before_unix_nanos: u64,
        time_unix_nanos: u64,
        stepped_back: bool,
    ) -> bool {
        let (mut bytes, mut watched, mut room) = ([0.0; Op::ALL.len()], false, true);
        for (op, sample) in samples.iter().filter_map(|sample| Some((Op::of(sample)?, sample))) {
            let start_unix_nanos = sample.start_unix_nanos;
            let new = Cumulative { start_unix_nanos, time_unix_nanos, value: sample.number() };
            let key = (op, Box::from(sample.label(0)));
            if let Some(newest) = self.disks.get_mut(&key) {
                watched = true;
                if let Step::Grew { by, .. } = newest.advance(new, stepped_back) {
                    bytes[op as usize] += by;
                }
            } else if self.disks.len() < MAX_DISKS {
                self.disks.insert(key, new);
            } else {
                room = false;
            }
        }
        // After an outage the newest slot would hold what took many: it starts anew.
        let nanos = time_unix_nanos.saturating_sub(before_unix_nanos);
        if watched && nanos <= MOVED_SLOTS * SLOT_SECONDS * NANOS_PER_SECOND {
            let number = slot_of(time_unix_nanos);
            let slot = &mut self.slots[(number % MOVED_SLOTS) as usize];
            if slot.number != number {
                *slot = MovedSlot { number, ..MovedSlot::default() };
            }
            slot.seconds += nanos as f64 / NANOS_PER_SECOND as f64;
            for (sum, bytes) in slot.bytes.iter_mut().zip(bytes) {
                *sum += bytes;
            }
        }
        room
    }

    /// What was moved in the minute that ends at `unix_nanos`.
    pub(crate) fn last_minute(&self, unix_nanos: u64) -> MovedSlot {
        let last = slot_of(unix_nanos);
        let recent = |slot: &&MovedSlot| slot.number <= last && last - slot.number < MOVED_SLOTS;
        let none = MovedSlot { number: last, ..MovedSlot::default() };
        self.slots.iter().filter(recent).fold(none, |mut sum, slot| {
            sum.seconds += slot.seconds;
            sum.bytes.iter_mut().zip(slot.bytes).for_each(|(sum, bytes)| *sum += bytes);
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, counter};
    use super::*;

    fn frame(disk: &str, read: f64, written: f64) -> [Sample; 2] {
        [
            counter(&metrics::HOST_DISK_READ, &[disk], read),
            counter(&metrics::HOST_DISK_WRITTEN, &[disk], written),
        ]
    }

    fn minute(moved: &Moved, seconds: f64) -> ([f64; 2], f64) {
        let sum = moved.last_minute(at(seconds));
        (sum.bytes, sum.seconds)
    }

    #[test]
    fn bytes_and_their_time_are_counted_together() {
        let mut moved = Moved::default();
        for second in 0..=120 {
            let bytes = f64::from(second);
            let before = at((bytes - 1.0).max(0.0));
            assert!(moved.take(&frame("sda", 1e9 + 100.0 * bytes, 7.0 * bytes), before, at(bytes), false));
        }
        let ([read, written], seconds) = minute(&moved, 120.0);
        assert!((50.0..=60.0).contains(&seconds), "{seconds}");
        assert_eq!(
            (read / seconds, written / seconds),
            (100.0, 7.0),
            "what it had read before is not counted"
        );
        assert_eq!(minute(&moved, 300.0), ([0.0; 2], 0.0), "old slots are not of the last minute");
    }

    #[test]
    fn an_outage_and_a_new_disk_add_nothing() {
        let mut moved = Moved::default();
        moved.take(&frame("sda", 10.0, 0.0), 0, at(0.0), false);
        moved.take(&frame("sda", 1e12, 0.0), at(0.0), at(600.0), false);
        assert_eq!(minute(&moved, 600.0), ([0.0; 2], 0.0));
        let both = [frame("sda", 1e12 + 5.0, 0.0), frame("sdb", 1e15, 1e15)].concat();
        moved.take(&both, at(600.0), at(601.0), false);
        assert_eq!(minute(&moved, 601.0), ([5.0, 0.0], 1.0));
        moved.take(&frame("sda", 3.0, 0.0), at(601.0), at(602.0), false);
        assert_eq!(minute(&moved, 602.0).0, [5.0, 0.0], "a counter that went back adds nothing");
    }

    #[test]
    fn disks_are_bounded() {
        let mut moved = Moved::default();
        let take =
            |moved: &mut Moved, disk: usize| moved.take(&frame(&disk.to_string(), 1.0, 1.0), 0, 1, false);
        assert!((0..MAX_DISKS / 2).all(|disk| take(&mut moved, disk)));
        assert!(!take(&mut moved, MAX_DISKS) && take(&mut moved, 0));
    }
}
