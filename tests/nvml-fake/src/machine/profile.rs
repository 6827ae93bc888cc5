//! Power over time as a list of pieces whose integral is known in closed form.
//!
//! Power is held in whole microwatts and time in whole nanoseconds, so energy comes out in whole femtojoules
//! (µW·ns) and sums are exact however long a run lasts. Only a sine's cosine term is floating point; it is
//! rounded once per evaluation and never accumulates, because whole periods are multiples of one value.
//!
//! Invariant: `energy_to` never decreases, so a counter read from it never runs backwards.

use super::limiter::{Limiter, Part, above_at_end, split};
use super::shape::{Piece, Shape};

/// Femtojoules: microwatts × nanoseconds. 128 bits hold a 10 kW device for 10¹¹ years.
pub type Femtojoules = u128;

/// Femtojoules in one microjoule.
pub const FEMTOJOULES_PER_MICROJOULE: Femtojoules = 1_000_000_000;

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
    /// When each piece starts, and the integral up to there.
    starts: Vec<(u64, Integral)>,
    length_ns: u64,
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
    fn new(pieces: Vec<Piece>, tail: Tail) -> Profile {
        let mut starts = Vec::with_capacity(pieces.len());
        let (mut length_ns, mut sum) = (0, Integral::default());
        for piece in &pieces {
            starts.push((length_ns, sum));
            sum = sum.plus(part_of(*piece, piece.duration_ns));
            length_ns += piece.duration_ns;
        }
        Profile { pieces, starts, length_ns, tail }
    }

    /// Constant power, in microwatts.
    #[must_use]
    pub fn constant(microwatts: u64) -> Profile {
        Profile::new(Vec::new(), Tail::Hold { microwatts, clipped: false })
    }

    /// Lines of `(from, to, duration)` in microwatts and nanoseconds, repeated for ever.
    #[must_use]
    pub fn repeating(lines: &[(u64, u64, u64)]) -> Profile {
        Profile::new(lines.iter().filter_map(|&line| line_piece(line)).collect(), Tail::Repeat)
    }

    /// Lines of `(from, to, duration)` in microwatts and nanoseconds, then `hold_microwatts` for ever.
    #[must_use]
    pub fn holding(lines: &[(u64, u64, u64)], hold_microwatts: u64) -> Profile {
        let pieces = lines.iter().filter_map(|&line| line_piece(line)).collect();
        Profile::new(pieces, Tail::Hold { microwatts: hold_microwatts, clipped: false })
    }

    /// A sine between `low` and `high` microwatts that starts at its mean, rising.
    #[must_use]
    pub fn sine(low: u64, high: u64, period_ns: u64) -> Profile {
        let shape = Shape::Arc { low, high, period_ns, offset_ns: 0 };
        Profile::new(vec![Piece { shape, duration_ns: period_ns, clipped: false }], Tail::Repeat)
    }

    /// The same profile held at or below `limit` microwatts. Cuts fall on whole nanoseconds.
    #[must_use]
    pub fn clipped(&self, limit: u64) -> Profile {
        self.limited(limit, 0)
    }

    /// The same profile under a limiter that lets power exceed `limit` for `window_ns` each time that demand
    /// rises above it, and then holds it at the limit until demand falls below. A repeated profile is limited as
    /// if it had gone on for ever.
    #[must_use]
    pub fn limited(&self, limit: u64, window_ns: u64) -> Profile {
        let parts: Vec<Part> = self.pieces.iter().flat_map(|piece| split(*piece, limit)).collect();
        let repeats = self.tail == Tail::Repeat;
        let mut limiter = Limiter::new(limit, window_ns, if repeats { above_at_end(&parts) } else { 0 });
        let mut pieces: Vec<Piece> = parts.into_iter().flat_map(|part| limiter.pass(part)).collect();
        let tail = match self.tail {
            Tail::Hold { microwatts, .. } if microwatts > limit => {
                let duration_ns = limiter.left_ns();
                pieces.extend(line_piece((microwatts, microwatts, duration_ns)));
                Tail::Hold { microwatts: limit, clipped: true }
            }
            other => other,
        };
        Profile::new(pieces, tail)
    }

    /// Energy and clipped time between the origin and `elapsed_ns` after it.
    #[must_use]
    pub fn integral_to(&self, elapsed_ns: u64) -> Integral {
        let length = self.length_ns;
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
        let at_ns = match self.tail {
            Tail::Repeat if self.length_ns > 0 => elapsed_ns % self.length_ns,
            _ => elapsed_ns,
        };
        match self.tail {
            Tail::Hold { microwatts, clipped } if at_ns >= self.length_ns => (microwatts, clipped),
            _ => self.piece_at(at_ns).map_or((0, false), |(piece, start_ns, _)| {
                (piece.shape.power(at_ns - start_ns, piece.duration_ns), piece.clipped)
            }),
        }
    }

    /// The integral over the pieces alone, `elapsed_ns` being at most their length.
    fn within(&self, elapsed_ns: u64) -> Integral {
        let found = self.piece_at(elapsed_ns);
        found.map_or_else(Integral::default, |(piece, start_ns, before)| {
            before.plus(part_of(piece, (elapsed_ns - start_ns).min(piece.duration_ns)))
        })
    }

    /// The last piece that starts at or before an instant, its start and the integral up to there.
    fn piece_at(&self, elapsed_ns: u64) -> Option<(Piece, u64, Integral)> {
        let index = self.starts.partition_point(|(start_ns, _)| *start_ns <= elapsed_ns).checked_sub(1)?;
        let (start_ns, before) = self.starts[index];
        Some((self.pieces[index], start_ns, before))
    }
}

/// The integral of the first `elapsed_ns` of a piece.
fn part_of(piece: Piece, elapsed_ns: u64) -> Integral {
    Integral {
        energy: piece.shape.energy(elapsed_ns, piece.duration_ns),
        clipped_ns: if piece.clipped { elapsed_ns } else { 0 },
    }
}

fn line_piece((from, to, duration_ns): (u64, u64, u64)) -> Option<Piece> {
    (duration_ns > 0).then_some(Piece { shape: Shape::Line { from, to }, duration_ns, clipped: false })
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

    #[test]
    fn a_limiter_with_a_window_lets_bursts_through() {
        let square =
            Profile::repeating(&[(300 * WATT, 300 * WATT, SECOND), (100 * WATT, 100 * WATT, SECOND)]);
        let limited = square.limited(200 * WATT, SECOND / 4);
        assert_eq!(limited.power_at(SECOND / 8), (300 * WATT, false));
        assert_eq!(limited.power_at(SECOND / 2), (200 * WATT, true));
        assert_eq!(joules(&limited, 4 * SECOND), 2.0 * (75.0 + 150.0 + 100.0));
        assert_eq!(square.limited(200 * WATT, SECOND), square, "bursts that are shorter pass whole");
        let held = Profile::constant(300 * WATT).limited(200 * WATT, SECOND);
        assert_eq!(joules(&held, 3 * SECOND), 300.0 + 400.0);
    }

    #[test]
    fn a_burst_over_the_end_of_a_period_is_one_burst() {
        let lines = [(300 * WATT, 300 * WATT, SECOND), (0, 0, SECOND), (300 * WATT, 300 * WATT, SECOND)];
        let limited = Profile::repeating(&lines).limited(200 * WATT, SECOND);
        assert_eq!(limited.power_at(SECOND / 2), (200 * WATT, true), "the burst began in the period before");
        assert_eq!(limited.power_at(2 * SECOND + SECOND / 2), (300 * WATT, false));
        let above = Profile::repeating(&[(300 * WATT, 400 * WATT, SECOND)]).limited(200 * WATT, SECOND);
        assert_eq!(joules(&above, 10 * SECOND), 2_000.0, "always above: no burst begins");
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
            for profile in [profile.clone(), profile.clipped(limit), profile.limited(limit, SECOND / 3)] {
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
            let bursts = profile.limited(limit, SECOND / 3);
            prop_assert!(bursts.integral_to(at).energy <= bursts.integral_to(at + step).energy);
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
