//! Power over absolute time: profiles one after the other, with the energy before each.

use super::profile::{Integral, Profile};

/// Profiles kept. Older ones fold into the first; only instants before it can then no longer be asked about.
const MAX_SEGMENTS: usize = 4096;

#[derive(Debug, Clone)]
struct Segment {
    start_ns: u64,
    /// Where the profile has its time 0: before `start_ns` when a limit changed in the middle of a waveform.
    origin_ns: u64,
    profile: Profile,
    before: Integral,
}

impl Segment {
    fn integral_at(&self, at_ns: u64) -> Integral {
        let start = self.profile.integral_to(self.start_ns - self.origin_ns);
        let end = self.profile.integral_to(at_ns - self.origin_ns);
        Integral {
            energy: self.before.energy + (end.energy - start.energy),
            clipped_ns: self.before.clipped_ns + (end.clipped_ns - start.clipped_ns),
        }
    }
}

/// Power from a first instant on, and its exact integral.
#[derive(Debug, Clone)]
pub struct Timeline {
    segments: Vec<Segment>,
}

impl Timeline {
    /// Starts with `profile` at `start_ns` (monotonic nanoseconds).
    #[must_use]
    pub fn new(profile: Profile, start_ns: u64) -> Timeline {
        Timeline {
            segments: vec![Segment { start_ns, origin_ns: start_ns, profile, before: Integral::default() }],
        }
    }

    /// Draws `profile`, whose time 0 is `origin_ns`, from `at_ns` on. A time before the last change counts as
    /// that change's.
    pub fn change(&mut self, profile: Profile, origin_ns: u64, at_ns: u64) {
        let start_ns = at_ns.max(self.segment_at(u64::MAX).start_ns);
        let before = self.integral_at(start_ns);
        let origin_ns = origin_ns.min(start_ns);
        self.segments.push(Segment { start_ns, origin_ns, profile, before });
        if self.segments.len() > MAX_SEGMENTS {
            self.segments.remove(0);
        }
    }

    /// Forgets the changes after `at_ns`.
    pub fn cut(&mut self, at_ns: u64) {
        let kept = self.segments.partition_point(|segment| segment.start_ns <= at_ns).max(1);
        self.segments.truncate(kept);
    }

    /// First instant that can be asked about, in monotonic nanoseconds.
    #[must_use]
    pub fn start_ns(&self) -> u64 {
        self.segments[0].start_ns
    }

    /// Energy and clipped time since the start. An instant before [`Self::start_ns`] counts as it.
    #[must_use]
    pub fn integral_at(&self, at_ns: u64) -> Integral {
        let at_ns = at_ns.max(self.start_ns());
        self.segment_at(at_ns).integral_at(at_ns)
    }

    /// Power in microwatts, and whether a limit holds it down.
    #[must_use]
    pub fn power_at(&self, at_ns: u64) -> (u64, bool) {
        let at_ns = at_ns.max(self.start_ns());
        let segment = self.segment_at(at_ns);
        segment.profile.power_at(at_ns - segment.origin_ns)
    }

    /// Mean power over the `window_ns` before `at_ns`, in microwatts: less than the window where it starts
    /// before the timeline does.
    #[must_use]
    pub fn mean_power_at(&self, at_ns: u64, window_ns: u64) -> u64 {
        let from_ns = at_ns.saturating_sub(window_ns).max(self.start_ns());
        if at_ns <= from_ns {
            return self.power_at(at_ns).0;
        }
        let energy = self.integral_at(at_ns).energy - self.integral_at(from_ns).energy;
        u64::try_from(energy / u128::from(at_ns - from_ns)).unwrap_or(u64::MAX)
    }

    fn segment_at(&self, at_ns: u64) -> &Segment {
        let later = self.segments.partition_point(|segment| segment.start_ns <= at_ns);
        &self.segments[later.saturating_sub(1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const WATT: u64 = 1_000_000;
    const JOULE: u128 = 1_000_000_000_000_000;

    #[test]
    fn a_change_counts_from_its_instant() {
        let mut timeline = Timeline::new(Profile::constant(100 * WATT), 10 * SECOND);
        timeline.change(Profile::constant(200 * WATT), 12 * SECOND, 12 * SECOND);
        assert_eq!(timeline.integral_at(13 * SECOND).energy, 400 * JOULE);
        assert_eq!(timeline.integral_at(11 * SECOND).energy, 100 * JOULE, "the past stays as it was");
        assert_eq!(timeline.integral_at(0).energy, 0);
        assert_eq!(timeline.mean_power_at(12 * SECOND + SECOND / 2, SECOND), 150 * WATT);
    }

    #[test]
    fn a_change_in_the_past_cannot_undo_energy() {
        let mut timeline = Timeline::new(Profile::constant(100 * WATT), 0);
        timeline.change(Profile::constant(0), 5 * SECOND, 5 * SECOND);
        timeline.change(Profile::constant(200 * WATT), 2 * SECOND, 2 * SECOND);
        assert_eq!(timeline.integral_at(6 * SECOND).energy, 700 * JOULE);
    }

    #[test]
    fn a_change_that_has_not_come_can_be_forgotten() {
        let mut timeline = Timeline::new(Profile::constant(100 * WATT), 0);
        timeline.change(Profile::constant(200 * WATT), 0, 5 * SECOND);
        timeline.cut(4 * SECOND);
        assert_eq!(timeline.integral_at(6 * SECOND).energy, 600 * JOULE);
    }

    #[test]
    fn old_changes_fold_without_losing_energy() {
        let mut timeline = Timeline::new(Profile::constant(WATT), 0);
        for second in 1..=5_000 {
            timeline.change(Profile::constant(WATT), second * SECOND, second * SECOND);
        }
        assert_eq!(timeline.integral_at(5_000 * SECOND).energy, 5_000 * JOULE);
        assert!(timeline.start_ns() > 0);
    }
}
