//! Power over time as a list of pieces whose integral is known in closed form.
//!
//! Power is held in whole microwatts and time in whole nanoseconds, so energy comes out in whole femtojoules
//! (µW·ns) and sums are exact however long a run lasts. Only a sine's cosine term is floating point; it is
//! rounded once per evaluation and never accumulates, because whole periods are multiples of one value.
//!
//! Invariant: `energy_to` never decreases, so a counter read from it never runs backwards.

use std::f64::consts::TAU;

/// Femtojoules: microwatts × nanoseconds. 128 bits hold a 10 kW device for 10¹¹ years.
pub type Femtojoules = u128;

/// Femtojoules in one microjoule.
pub const FEMTOJOULES_PER_MICROJOULE: Femtojoules = 1_000_000_000;

/// How power moves within one piece.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// A straight line from one power to another, in microwatts.
    Line { from: u64, to: u64 },
    /// Part of `(low + high)/2 + (high − low)/2 · sin(2π·t/period)`, entered `offset_ns` into the period.
    Arc { low: u64, high: u64, period_ns: u64, offset_ns: u64 },
}

impl Shape {
    /// Energy of the first `elapsed` of a piece that lasts `duration`, in femtojoules.
    fn energy(self, elapsed: u64, duration: u64) -> Femtojoules {
        match self {
            Shape::Line { from, to } => {
                let (t, slope) = (i128::from(elapsed), i128::from(to) - i128::from(from));
                let bend = (slope * t * t).div_euclid(2 * i128::from(duration.max(1)));
                (i128::from(from) * t + bend).max(0).unsigned_abs()
            }
            Shape::Arc { low, high, period_ns, offset_ns } => {
                let level = i128::from(low + high) * i128::from(elapsed) / 2;
                let (start, end) = (angle(offset_ns, period_ns), angle(offset_ns + elapsed, period_ns));
                let scale = (high - low) as f64 / 2.0 * period_ns as f64 / TAU;
                let swing = (scale * (start.cos() - end.cos())).round() as i128;
                (level + swing).max(0).unsigned_abs()
            }
        }
    }

    /// Power at `elapsed` into a piece that lasts `duration`, in microwatts.
    fn power(self, elapsed: u64, duration: u64) -> u64 {
        match self {
            Shape::Line { from, to } => {
                let slope = i128::from(to) - i128::from(from);
                let moved = slope * i128::from(elapsed) / i128::from(duration.max(1));
                u64::try_from(i128::from(from) + moved).unwrap_or(0)
            }
            Shape::Arc { low, high, period_ns, offset_ns } => {
                let (mean, amplitude) = ((low + high) as f64 / 2.0, (high - low) as f64 / 2.0);
                (mean + amplitude * angle(offset_ns + elapsed, period_ns).sin()).round() as u64
            }
        }
    }
}

fn angle(offset_ns: u64, period_ns: u64) -> f64 {
    TAU * offset_ns as f64 / period_ns as f64
}

/// A shape, how long it lasts, and whether a power limit cut it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Piece {
    shape: Shape,
    duration_ns: u64,
    clipped: bool,
}

/// What follows the last piece.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tail {
    Repeat,
    Hold { microwatts: u64, clipped: bool },
}

/// Power as a function of the time since an origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pieces: Vec<Piece>,
    tail: Tail,
}

/// Energy and clipped time since the origin of a [`Profile`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Integral {
    /// Energy, in femtojoules.
    pub energy: Femtojoules,
    /// Time during which the limit held power down, in nanoseconds.
    pub clipped_ns: u64,
}

impl Integral {
    fn plus(self, other: Integral) -> Integral {
        Integral { energy: self.energy + other.energy, clipped_ns: self.clipped_ns + other.clipped_ns }
    }

    fn times(self, count: u64) -> Integral {
        Integral { energy: self.energy * Femtojoules::from(count), clipped_ns: self.clipped_ns * count }
    }
}

impl Profile {
    /// Constant power, in microwatts.
    #[must_use]
    pub fn constant(microwatts: u64) -> Profile {
        Profile { pieces: Vec::new(), tail: Tail::Hold { microwatts, clipped: false } }
    }

    /// Lines of `(from, to, duration)` in microwatts and nanoseconds, repeated for ever.
    #[must_use]
    pub fn repeating(lines: &[(u64, u64, u64)]) -> Profile {
        Profile { pieces: lines.iter().filter_map(|&line| line_piece(line)).collect(), tail: Tail::Repeat }
    }

    /// Lines of `(from, to, duration)` in microwatts and nanoseconds, then `hold_microwatts` for ever.
    #[must_use]
    pub fn holding(lines: &[(u64, u64, u64)], hold_microwatts: u64) -> Profile {
        let pieces = lines.iter().filter_map(|&line| line_piece(line)).collect();
        Profile { pieces, tail: Tail::Hold { microwatts: hold_microwatts, clipped: false } }
    }

    /// A sine between `low` and `high` microwatts that starts at its mean, rising.
    #[must_use]
    pub fn sine(low: u64, high: u64, period_ns: u64) -> Profile {
        let shape = Shape::Arc { low, high, period_ns, offset_ns: 0 };
        Profile { pieces: vec![Piece { shape, duration_ns: period_ns, clipped: false }], tail: Tail::Repeat }
    }

    /// The same profile held at or below `limit` microwatts. Cuts fall on whole nanoseconds.
    #[must_use]
    pub fn clipped(&self, limit: u64) -> Profile {
        let pieces = self.pieces.iter().flat_map(|piece| clip(*piece, limit)).collect();
        let tail = match self.tail {
            Tail::Hold { microwatts, .. } if microwatts > limit => {
                Tail::Hold { microwatts: limit, clipped: true }
            }
            other => other,
        };
        Profile { pieces, tail }
    }

    /// Energy and clipped time between the origin and `elapsed_ns` after it.
    #[must_use]
    pub fn integral_to(&self, elapsed_ns: u64) -> Integral {
        let length = self.length_ns();
        match self.tail {
            Tail::Repeat if length == 0 => Integral::default(),
            Tail::Repeat => {
                self.within(length).times(elapsed_ns / length).plus(self.within(elapsed_ns % length))
            }
            Tail::Hold { microwatts, clipped } => {
                let held = elapsed_ns.saturating_sub(length);
                self.within(elapsed_ns.min(length)).plus(Integral {
                    energy: Femtojoules::from(microwatts) * Femtojoules::from(held),
                    clipped_ns: if clipped { held } else { 0 },
                })
            }
        }
    }

    /// Power and whether the limit holds it down, `elapsed_ns` after the origin.
    #[must_use]
    pub fn power_at(&self, elapsed_ns: u64) -> (u64, bool) {
        let length = self.length_ns();
        let mut left = match self.tail {
            Tail::Repeat if length > 0 => elapsed_ns % length,
            _ => elapsed_ns,
        };
        for piece in &self.pieces {
            if left < piece.duration_ns {
                return (piece.shape.power(left, piece.duration_ns), piece.clipped);
            }
            left -= piece.duration_ns;
        }
        match self.tail {
            Tail::Hold { microwatts, clipped } => (microwatts, clipped),
            Tail::Repeat => (0, false),
        }
    }

    fn length_ns(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.duration_ns).sum()
    }

    /// The integral over the pieces alone, `elapsed_ns` being at most their length.
    fn within(&self, elapsed_ns: u64) -> Integral {
        let mut left = elapsed_ns;
        let mut sum = Integral::default();
        for piece in &self.pieces {
            let taken = left.min(piece.duration_ns);
            sum = sum.plus(Integral {
                energy: piece.shape.energy(taken, piece.duration_ns),
                clipped_ns: if piece.clipped { taken } else { 0 },
            });
            left -= taken;
            if left == 0 {
                break;
            }
        }
        sum
    }
}

fn line_piece((from, to, duration_ns): (u64, u64, u64)) -> Option<Piece> {
    (duration_ns > 0).then_some(Piece { shape: Shape::Line { from, to }, duration_ns, clipped: false })
}

fn flat(limit: u64, duration_ns: u64) -> Piece {
    Piece { shape: Shape::Line { from: limit, to: limit }, duration_ns, clipped: true }
}

/// Cuts one piece where it crosses `limit`.
fn clip(piece: Piece, limit: u64) -> Vec<Piece> {
    let cut = match piece.shape {
        Shape::Line { from, to } => clip_line(from, to, piece.duration_ns, limit),
        Shape::Arc { low, high, period_ns, .. } => clip_sine(low, high, period_ns, limit),
    };
    cut.map_or_else(
        || vec![piece],
        |pieces| pieces.into_iter().filter(|piece| piece.duration_ns > 0).collect(),
    )
}

/// The parts of a line under a limit, or `None` where it stays at or below it.
fn clip_line(from: u64, to: u64, duration_ns: u64, limit: u64) -> Option<Vec<Piece>> {
    if from.max(to) <= limit {
        return None;
    }
    if from.min(to) >= limit {
        return Some(vec![flat(limit, duration_ns)]);
    }
    let part = |reach: u64, whole: u64| {
        let scaled = u128::from(duration_ns) * u128::from(reach) / u128::from(whole);
        u64::try_from(scaled).unwrap_or(duration_ns)
    };
    let below = |shape, duration_ns| Piece { shape, duration_ns, clipped: false };
    if from < to {
        let rise = part(limit - from, to - from);
        let under = below(Shape::Line { from, to: limit }, rise);
        Some(vec![under, flat(limit, duration_ns - rise)])
    } else {
        let fall = part(limit - to, from - to);
        let under = below(Shape::Line { from: limit, to }, fall);
        Some(vec![flat(limit, duration_ns - fall), under])
    }
}

/// The parts of a whole period of a sine under a limit, or `None` where it stays at or below it.
fn clip_sine(low: u64, high: u64, period_ns: u64, limit: u64) -> Option<Vec<Piece>> {
    if high <= limit {
        return None;
    }
    if low >= limit {
        return Some(vec![flat(limit, period_ns)]);
    }
    let (mean, amplitude) = ((low + high) as f64 / 2.0, (high - low) as f64 / 2.0);
    let to_ns = |radians: f64| (radians / TAU * period_ns as f64).round() as u64;
    let crossing = ((limit as f64 - mean) / amplitude).asin();
    let arc = |start: u64, end: u64| Piece {
        shape: Shape::Arc { low, high, period_ns, offset_ns: start },
        duration_ns: end - start,
        clipped: false,
    };
    let leaves = to_ns(TAU / 2.0 - crossing).min(period_ns);
    if crossing >= 0.0 {
        // Above the limit around the crest only.
        let enters = to_ns(crossing).min(leaves);
        Some(vec![arc(0, enters), flat(limit, leaves - enters), arc(leaves, period_ns)])
    } else {
        // The mean is above the limit: only the trough is left, and the period starts and ends cut.
        let enters = to_ns(TAU + crossing).clamp(leaves, period_ns);
        Some(vec![flat(limit, leaves), arc(leaves, enters), flat(limit, period_ns - enters)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const WATT: u64 = 1_000_000;

    fn joules(profile: &Profile, elapsed_ns: u64) -> f64 {
        profile.integral_to(elapsed_ns).energy as f64 / 1e15
    }

    /// Midpoint rule over `steps`: an independent estimate of the integral of `power_at`.
    fn integrated(profile: &Profile, elapsed_ns: u64, steps: u64) -> f64 {
        let width = elapsed_ns as f64 / steps as f64;
        (0..steps)
            .map(|step| profile.power_at(((step as f64 + 0.5) * width) as u64).0 as f64 * width / 1e15)
            .sum()
    }

    #[test]
    fn a_square_wave_is_exact() {
        let square =
            Profile::repeating(&[(300 * WATT, 300 * WATT, SECOND), (100 * WATT, 100 * WATT, SECOND)]);
        assert_eq!(square.integral_to(5 * SECOND).energy, 1_100 * 1_000_000_000_000_000);
        assert_eq!(square.power_at(SECOND).0, 100 * WATT);
        assert_eq!(square.clipped(200 * WATT).integral_to(5 * SECOND).clipped_ns, 3 * SECOND);
    }

    #[test]
    fn whole_periods_of_a_sine_are_exact() {
        let sine = Profile::sine(100 * WATT, 500 * WATT, 3 * SECOND);
        assert_eq!(sine.integral_to(3_000_000 * SECOND).energy, 900_000_000 * 1_000_000_000_000_000);
    }

    #[test]
    fn a_ramp_holds_its_end() {
        let ramp = Profile::holding(&[(0, 100 * WATT, 10 * SECOND)], 100 * WATT);
        assert_eq!(joules(&ramp, 10 * SECOND), 500.0);
        assert_eq!(joules(&ramp, 20 * SECOND), 1_500.0);
        let clipped = ramp.clipped(50 * WATT);
        assert_eq!(joules(&clipped, 20 * SECOND), 125.0 + 750.0);
        assert_eq!(clipped.integral_to(20 * SECOND).clipped_ns, 15 * SECOND);
    }

    fn any_profile() -> impl Strategy<Value = Profile> {
        let watts = WATT..1_000 * WATT;
        let lines = prop::collection::vec((watts.clone(), watts.clone(), 1..20 * SECOND), 1..5);
        prop_oneof![
            lines.clone().prop_map(|lines| Profile::repeating(&lines)),
            (lines, watts.clone()).prop_map(|(lines, hold)| Profile::holding(&lines, hold)),
            (watts, 1..500 * WATT, SECOND / 10..20 * SECOND).prop_map(|(low, swing, period)| Profile::sine(
                low,
                low + swing,
                period
            )),
        ]
    }

    proptest! {
        #[test]
        fn the_integral_is_that_of_the_power(
            profile in any_profile(), limit in WATT..1_200 * WATT, elapsed in SECOND..60 * SECOND,
        ) {
            for profile in [profile.clone(), profile.clipped(limit)] {
                let (exact, estimate) = (joules(&profile, elapsed), integrated(&profile, elapsed, 20_000));
                // The midpoint rule misplaces each jump by up to half a step: at most 1 kW over 3 ms, for each
                // of some hundred jumps at worst; a wrong formula is off by far more.
                prop_assert!((exact - estimate).abs() <= 0.01 * exact + 5.0, "{exact} J, not {estimate} J");
            }
        }

        #[test]
        fn energy_never_decreases_and_a_limit_never_adds(
            profile in any_profile(), limit in WATT..1_200 * WATT, at in 0..100 * SECOND, step in 1u64..1_000,
        ) {
            let clipped = profile.clipped(limit);
            let (before, after) = (clipped.integral_to(at), clipped.integral_to(at + step));
            prop_assert!(before.energy <= after.energy && before.clipped_ns <= after.clipped_ns);
            prop_assert!(clipped.power_at(at).0 <= limit.saturating_add(1_000));
            // A cut rounded to a nanosecond moves at most 1 kW × 1 ns = 1 µJ per piece.
            let slack = 500 * FEMTOJOULES_PER_MICROJOULE * 1_000;
            prop_assert!(after.energy <= profile.integral_to(at + step).energy + slack);
        }
    }
}
