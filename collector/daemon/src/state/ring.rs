//! A node's last 24 hours in slots of 10 seconds, by the original times of its samples.
//!
//! Each slot has three `f32` columns: joules, useful FLOPs, and seconds covered by telemetry. What a
//! counter grew by between two samples is spread over the slots between them in proportion to time, so a
//! spool that is replayed after an outage fills the gap as if nothing had happened.
//!
//! Invariants:
//! - A slot's content depends on the sequence of accepted samples alone, not on when they arrived.
//! - Memory is bounded: [`CHUNKS`] chunks of an hour, 4 320 bytes each, allocated when first written: at
//!   most 108 kB a node, 4.3 kB for a node of the last hour.
//! - A gap of more than [`GAP_SECONDS`] between samples is not covered. Its joules and FLOPs are still
//!   spread over its slots (the counters saw them), but a slot inside it has no seconds and therefore no
//!   point in [`history`](super::history): mean power over an hour is no telemetry of its slots. In the
//!   two slots at the edges of a gap, which have telemetry on one side, the gap's part is covered too,
//!   so that their watts stay joules ÷ seconds.

use super::frame::NANOS_PER_SECOND;

/// Seconds of a slot.
pub(crate) const SLOT_SECONDS: u64 = 10;

/// Slots of a chunk: an hour.
pub(crate) const CHUNK_SLOTS: usize = 360;

/// Chunks of a ring: 24 whole hours and the one under way.
pub(crate) const CHUNKS: usize = 25;

/// Slots that are kept: 24 hours.
pub(crate) const RING_SLOTS: u64 = 24 * 3600 / SLOT_SECONDS;

/// Longest time between two samples that still counts as covered: six slots, and far more than any push
/// interval.
pub(crate) const GAP_SECONDS: u64 = 60;

const SLOT_NANOS: u64 = SLOT_SECONDS * NANOS_PER_SECOND;

/// The slot of a time: slots are numbered from the Unix epoch.
pub(crate) fn slot_of(unix_nanos: u64) -> u64 {
    unix_nanos / SLOT_NANOS
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Slot {
    /// Joules of the slot.
    pub(crate) joules: f32,
    /// Useful FLOPs of the slot.
    pub(crate) flops: f32,
    /// Seconds of the slot that telemetry covers. More than a slot's length where a clock went back.
    pub(crate) seconds: f32,
}

/// An hour of slots, in columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Hours since the Unix epoch.
    pub(crate) number: u64,
    /// The state's sequence at which it last changed.
    pub(crate) changed: u64,
    /// Joules by slot.
    pub(crate) joules: [f32; CHUNK_SLOTS],
    /// Useful FLOPs by slot.
    pub(crate) flops: [f32; CHUNK_SLOTS],
    /// Seconds covered by slot.
    pub(crate) seconds: [f32; CHUNK_SLOTS],
}

impl Chunk {
    /// An hour without anything.
    pub(crate) fn empty(number: u64) -> Self {
        let none = [0.0; CHUNK_SLOTS];
        Self { number, changed: 0, joules: none, flops: none, seconds: none }
    }

    fn slot(&self, index: usize) -> Slot {
        Slot { joules: self.joules[index], flops: self.flops[index], seconds: self.seconds[index] }
    }
}

/// A node's slots.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ring {
    /// The chunk of hour `n` stands at `n % CHUNKS`.
    chunks: Vec<Option<Box<Chunk>>>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { chunks: vec![None; CHUNKS] }
    }
}

impl Ring {
    /// Adds `joules` that were used evenly between two times.
    pub(crate) fn add_joules(&mut self, since_nanos: u64, until_nanos: u64, joules: f64, sequence: u64) {
        if joules > 0.0 {
            spread(since_nanos, until_nanos, |slot, share| {
                self.change(slot, sequence, |chunk, index| chunk.joules[index] += (joules * share) as f32);
            });
        }
    }

    /// Adds useful `flops` that were done evenly between two times.
    pub(crate) fn add_flops(&mut self, since_nanos: u64, until_nanos: u64, flops: f64, sequence: u64) {
        if flops > 0.0 {
            spread(since_nanos, until_nanos, |slot, share| {
                self.change(slot, sequence, |chunk, index| chunk.flops[index] += (flops * share) as f32);
            });
        }
    }

    /// Notes that telemetry covers the time between two consecutive samples of the node, but for the
    /// inside of a gap. A clock that went back covers nothing.
    pub(crate) fn cover(&mut self, since_nanos: u64, until_nanos: u64, sequence: u64) {
        if since_nanos >= until_nanos {
            return;
        }
        let seconds = (until_nanos - since_nanos) as f64 / NANOS_PER_SECOND as f64;
        let gap = seconds > GAP_SECONDS as f64;
        let edges = [slot_of(since_nanos), slot_of(until_nanos)];
        spread(since_nanos, until_nanos, |slot, share| {
            if !gap || edges.contains(&slot) {
                self.change(slot, sequence, |chunk, index| chunk.seconds[index] += (seconds * share) as f32);
            }
        });
    }

    fn change(&mut self, slot: u64, sequence: u64, change: impl FnOnce(&mut Chunk, usize)) {
        let number = slot / CHUNK_SLOTS as u64;
        let place = &mut self.chunks[(number % CHUNKS as u64) as usize];
        if place.as_ref().is_some_and(|chunk| chunk.number > number) {
            return; // More than a day older than what stands here.
        }
        if place.as_ref().is_none_or(|chunk| chunk.number < number) {
            *place = Some(Box::new(Chunk::empty(number)));
        }
        if let Some(chunk) = place {
            chunk.changed = sequence;
            change(chunk, (slot % CHUNK_SLOTS as u64) as usize);
        }
    }

    /// What a slot holds; nothing where nothing was ever written.
    pub(crate) fn slot(&self, slot: u64) -> Option<Slot> {
        let number = slot / CHUNK_SLOTS as u64;
        let chunk = self.chunks[(number % CHUNKS as u64) as usize].as_ref()?;
        (chunk.number == number).then(|| chunk.slot((slot % CHUNK_SLOTS as u64) as usize))
    }

    /// Sums of the slots from `first` to `last`, both included: joules, FLOPs, seconds.
    pub(crate) fn sum(&self, first: u64, last: u64) -> (f64, f64, f64) {
        (first..=last).filter_map(|slot| self.slot(slot)).fold((0.0, 0.0, 0.0), |(j, f, s), slot| {
            (j + f64::from(slot.joules), f + f64::from(slot.flops), s + f64::from(slot.seconds))
        })
    }

    /// The chunks that there are.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().filter_map(|chunk| chunk.as_deref())
    }

    /// Puts a stored chunk in its place.
    pub(crate) fn restore(&mut self, chunk: Chunk) {
        let place = (chunk.number % CHUNKS as u64) as usize;
        self.chunks[place] = Some(Box::new(chunk));
    }
}

/// Calls `put` with each slot between two times and its share of the time between them. What lies more
/// than the ring's length before the end is left out; an interval without length goes to its end's slot.
fn spread(since_nanos: u64, until_nanos: u64, mut put: impl FnMut(u64, f64)) {
    let last = slot_of(until_nanos);
    if since_nanos >= until_nanos {
        return put(last, 1.0);
    }
    let length = (until_nanos - since_nanos) as f64;
    let first = slot_of(since_nanos).max(last.saturating_sub(RING_SLOTS));
    for slot in first..=last {
        let from = (slot * SLOT_NANOS).max(since_nanos);
        let to = (slot.saturating_add(1)).saturating_mul(SLOT_NANOS).min(until_nanos);
        if to > from {
            put(slot, (to - from) as f64 / length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = NANOS_PER_SECOND;

    #[test]
    fn joules_are_spread_by_time() {
        let mut ring = Ring::default();
        ring.add_joules(105 * S, 125 * S, 200.0, 1);
        ring.cover(105 * S, 125 * S, 1);
        let joules: Vec<f32> = (10..=13).map(|s| ring.slot(s).unwrap_or_default().joules).collect();
        assert_eq!(joules, [50.0, 100.0, 50.0, 0.0]);
        assert_eq!(ring.slot(11).unwrap().seconds, 10.0);
        assert_eq!(ring.sum(10, 12), (200.0, 0.0, 20.0));
        assert_eq!(ring.slot(360), None, "an hour that nobody wrote to");
    }

    #[test]
    fn a_gap_has_joules_but_only_its_edges_are_covered() {
        let mut ring = Ring::default();
        ring.add_joules(105 * S, 205 * S, 1000.0, 1);
        ring.cover(105 * S, 205 * S, 1);
        assert_eq!(ring.sum(0, 30), (1000.0, 0.0, 10.0));
        assert_eq!(ring.slot(15), Some(Slot { joules: 100.0, flops: 0.0, seconds: 0.0 }));
        assert_eq!(ring.slot(10), Some(Slot { joules: 50.0, flops: 0.0, seconds: 5.0 }));
        let mut short = Ring::default();
        short.cover(105 * S, 165 * S, 1);
        assert_eq!(short.sum(0, 30).2, 60.0);
    }

    #[test]
    fn a_clock_that_went_back_loses_no_joules() {
        let mut ring = Ring::default();
        ring.add_joules(205 * S, 105 * S, 7.0, 1);
        ring.cover(205 * S, 105 * S, 1);
        assert_eq!(ring.slot(10), Some(Slot { joules: 7.0, flops: 0.0, seconds: 0.0 }));
    }

    #[test]
    fn memory_is_bounded_and_the_newest_day_stays() {
        let mut ring = Ring::default();
        for hour in 0..100 {
            ring.add_joules(hour * 3600 * S, (hour + 1) * 3600 * S, 3600.0, hour);
        }
        assert_eq!(ring.chunks().count(), CHUNKS);
        let last = slot_of(99 * 3600 * S);
        assert!(ring.sum(last - RING_SLOTS, last).0 >= 86_400.0);
        ring.add_joules(0, S, 1.0, 101);
        assert!(ring.chunks().all(|chunk| chunk.changed < 101), "an older day does not replace a newer one");
        ring.add_joules(1, u64::MAX, 1.0, 102);
        assert_eq!(ring.chunks().count(), CHUNKS, "no interval is too long");
    }

    proptest! {
        #[test]
        fn shares_sum_to_one(since in 0u64..100_000, length in 1u64..80_000) {
            let mut sum = 0.0;
            spread(since * S + 17, (since + length) * S, |_, share| sum += share);
            prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
        }
    }
}
