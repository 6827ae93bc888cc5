//! For how long a GPU's clocks were lowered, and why.
//!
//! Invariant: by the driver's own counters where it has them; else by the reasons that hold at two readings,
//! each of which answers for half of the time between. Idle clocks and clocks that a user set are no throttling.

use std::time::Duration;

use super::MAX_MISSED;
use super::calls::Calls;
use super::ffi::Handle;
use super::fields::{Fields, Figure};
use super::tally::{NANOSECONDS, Tally};

/// A reason: its label, its bit, and the counter that some drivers have for it.
struct Reason {
    label: &'static str,
    bit: u64,
    counter: Option<Figure>,
}

const REASONS: [Reason; 6] = [
    Reason { label: "sw_power_cap", bit: 0x04, counter: Some(Figure::SwPowerCap) },
    Reason { label: "hw_slowdown", bit: 0x08, counter: None },
    Reason { label: "sync_boost", bit: 0x10, counter: Some(Figure::SyncBoost) },
    Reason { label: "sw_thermal_slowdown", bit: 0x20, counter: Some(Figure::SwThermal) },
    Reason { label: "hw_thermal_slowdown", bit: 0x40, counter: Some(Figure::HwThermal) },
    Reason { label: "hw_power_brake_slowdown", bit: 0x80, counter: Some(Figure::HwPowerBrake) },
];

/// Times by reason.
pub(super) struct Throttle {
    counted: [Tally; REASONS.len()],
    watched: [Duration; REASONS.len()],
    /// The reasons that held last, and when.
    held: Option<(u64, Duration)>,
    /// Whether they could be read at all.
    readable: bool,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            counted: std::array::from_fn(|_| Tally::new(NANOSECONDS)),
            watched: [Duration::ZERO; REASONS.len()],
            held: None,
            readable: false,
        }
    }
}

impl Throttle {
    /// Takes what was read at the time `at`, and reads what has no counter; `window` is the time between two
    /// readings.
    pub(super) fn read(
        &mut self,
        handle: &Handle,
        fields: &Fields,
        at: Duration,
        window: Duration,
        calls: &mut Calls<'_>,
    ) {
        for (reason, tally) in REASONS.iter().zip(&mut self.counted) {
            tally.add(reason.counter.and_then(|figure| fields.get(figure)), at);
        }
        // With its counters there, the call would be for a reason alone that the others name more exactly.
        let counters = REASONS.iter().filter_map(|reason| reason.counter);
        let lacking = counters.into_iter().any(|figure| !fields.has(figure));
        let bits = if lacking { calls.take(handle.event_reasons()) } else { None };
        self.readable |= bits.is_some();
        self.watch(bits, at, window * MAX_MISSED);
    }

    /// The GPU or its driver was gone.
    pub(super) fn forget(&mut self) {
        self.counted.iter_mut().for_each(Tally::forget);
        self.held = None;
    }

    fn watch(&mut self, bits: Option<u64>, at: Duration, max_span: Duration) {
        let held = std::mem::replace(&mut self.held, bits.map(|bits| (bits, at)));
        let (Some(bits), Some((before, since))) = (bits, held) else { return };
        let elapsed = at.saturating_sub(since);
        if elapsed > max_span {
            return;
        }
        for (reason, watched) in REASONS.iter().zip(&mut self.watched) {
            let ends = u32::from(before & reason.bit != 0) + u32::from(bits & reason.bit != 0);
            *watched += elapsed * ends / 2;
        }
    }

    /// Seconds of each reason that is known of.
    pub(super) fn seconds(&self) -> Vec<(&'static str, f64)> {
        let each = REASONS.iter().zip(&self.counted).zip(&self.watched);
        each.filter_map(|((reason, counted), watched)| {
            let nanoseconds = counted.total().map(|nanoseconds| nanoseconds as f64 / 1e9);
            let watched = self.readable.then_some(watched.as_secs_f64());
            Some((reason.label, nanoseconds.or(watched)?))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reading_answers_for_half_of_the_time_to_the_next() {
        let mut throttle = Throttle { readable: true, ..Throttle::default() };
        let seconds = Duration::from_secs;
        for (at, bits) in [(0, 0), (2, 0x44), (3, 0x44), (4, 0x01), (100, 0x04), (101, 0x04)] {
            throttle.watch(Some(bits), seconds(at), seconds(10));
        }
        throttle.watch(None, seconds(102), seconds(10));
        throttle.watch(Some(0x04), seconds(103), seconds(10));
        let found: Vec<_> = throttle.seconds().into_iter().filter(|(_, seconds)| *seconds > 0.0).collect();
        assert_eq!(found, [("sw_power_cap", 3.5), ("hw_thermal_slowdown", 2.5)]);
        throttle.forget();
        throttle.watch(Some(0x04), seconds(104), seconds(10));
        assert_eq!(throttle.seconds()[0], ("sw_power_cap", 3.5), "nobody saw what was between");
    }
}
