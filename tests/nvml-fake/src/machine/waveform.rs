//! What a GPU would draw if nothing limited it, as a test writes it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::profile::Profile;
use super::random;

/// Most that a waveform may draw, in watts: ten times a large GPU, and low enough that integrals cannot overflow.
pub const MAX_WATTS: f64 = 10_000.0;

/// Longest period, ramp or step, in seconds: one day (see [`MAX_WATTS`]).
pub const MAX_SECONDS: f64 = 86_400.0;

/// Least a sine may draw, in watts, and its longest period, in seconds. The cosine term is rounded by at most
/// 5 kW × 1 h / 2π × 2⁻⁵² < 1 nJ = 1 W × 1 ns, so that energy cannot run backwards between two nanoseconds.
const MIN_SINE_WATTS: f64 = 1.0;
const MAX_SINE_SECONDS: f64 = 3_600.0;

/// Levels of a random waveform before it repeats.
const RANDOM_LEVELS: u64 = 1024;

/// Demanded power over time, from the moment it is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Waveform {
    /// The same power for ever.
    Constant {
        /// Power, in watts.
        watts: f64,
    },
    /// `high` for `duty` of each period, then `low`.
    Square {
        /// Power of the low part, in watts.
        low_watts: f64,
        /// Power of the high part, in watts.
        high_watts: f64,
        /// Period, in seconds.
        period_seconds: f64,
        /// Share of the period that is high, 0 to 1.
        #[serde(default = "half")]
        duty: f64,
    },
    /// A sine that starts at its mean, rising; its period is at most an hour.
    Sine {
        /// Least power, in watts; at least 1.
        low_watts: f64,
        /// Most power, in watts.
        high_watts: f64,
        /// Period, in seconds.
        period_seconds: f64,
    },
    /// A straight line, whose end is then held.
    Ramp {
        /// Power at the start, in watts.
        from_watts: f64,
        /// Power at the end and after it, in watts.
        to_watts: f64,
        /// Length, in seconds.
        seconds: f64,
    },
    /// `[seconds, watts]` pairs: each power holds from its time until the next. The first time is 0.
    Steps {
        /// The pairs, in order of time.
        steps: Vec<(f64, f64)>,
    },
    /// `[seconds, watts]` points with straight lines between them. The first time is 0; after the last point its
    /// power is held, or all starts again.
    Trace {
        /// The points, in order of time.
        points: Vec<(f64, f64)>,
        /// Whether it starts again.
        #[serde(default)]
        repeat: bool,
    },
    /// A level drawn from a seed for each step, equally likely anywhere between the bounds. The 1024 levels of a
    /// seed repeat.
    Random {
        /// Least power, in watts.
        low_watts: f64,
        /// Most power, in watts.
        high_watts: f64,
        /// Length of a step, in seconds.
        step_seconds: f64,
        /// The seed.
        seed: u64,
    },
}

fn half() -> f64 {
    0.5
}

/// Why a waveform cannot be drawn.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum WaveformError {
    /// A power that is negative, too large or not a number.
    #[error("{watts} W is not between 0 and {MAX_WATTS} W")]
    Watts {
        /// The power, in watts.
        watts: f64,
    },
    /// A period, ramp or step that is too short, too long or not a number.
    #[error("{seconds} s is not a time of at least 1 µs and at most {MAX_SECONDS} s")]
    Seconds {
        /// The time, in seconds.
        seconds: f64,
    },
    /// A duty outside 0 to 1.
    #[error("duty {duty} is not between 0 and 1")]
    Duty {
        /// The duty.
        duty: f64,
    },
    /// A sine whose bounds are swapped or below 1 W, or whose period is too long.
    #[error("a sine needs {MIN_SINE_WATTS} W <= low_watts <= high_watts and at most {MAX_SINE_SECONDS} s")]
    Sine,
    /// Steps that do not start at 0 or go back in time.
    #[error("steps and traces need a first time of 0 s and increasing times after it")]
    Steps,
    /// Random bounds that are swapped.
    #[error("random power needs low_watts <= high_watts")]
    Random,
}

impl Waveform {
    /// The closed form of the waveform.
    ///
    /// # Errors
    /// A power, time or duty out of its range.
    pub fn profile(&self) -> Result<Profile, WaveformError> {
        match *self {
            Waveform::Constant { watts } => Ok(Profile::constant(microwatts(watts)?)),
            Waveform::Square { low_watts, high_watts, period_seconds, duty } => {
                if !(0.0..=1.0).contains(&duty) {
                    return Err(WaveformError::Duty { duty });
                }
                let (low, high, period) =
                    (microwatts(low_watts)?, microwatts(high_watts)?, nanoseconds(period_seconds)?);
                let on = ((period as f64 * duty).round() as u64).min(period);
                Ok(Profile::repeating(&[(high, high, on), (low, low, period - on)]))
            }
            Waveform::Sine { low_watts, high_watts, period_seconds } => {
                let (low, high) = (microwatts(low_watts)?, microwatts(high_watts)?);
                if low_watts < MIN_SINE_WATTS || low > high || period_seconds > MAX_SINE_SECONDS {
                    return Err(WaveformError::Sine);
                }
                Ok(Profile::sine(low, high, nanoseconds(period_seconds)?))
            }
            Waveform::Ramp { from_watts, to_watts, seconds } => {
                let (from, to) = (microwatts(from_watts)?, microwatts(to_watts)?);
                Ok(Profile::holding(&[(from, to, nanoseconds(seconds)?)], to))
            }
            Waveform::Steps { ref steps } => steps_profile(steps),
            Waveform::Trace { ref points, repeat } => trace_profile(points, repeat),
            Waveform::Random { low_watts, high_watts, step_seconds, seed } => {
                let (low, high) = (microwatts(low_watts)?, microwatts(high_watts)?);
                let (span, step) = (high.checked_sub(low), nanoseconds(step_seconds)?);
                let span = span.ok_or(WaveformError::Random)?;
                let level = |index| low + random::below(seed, index, span + 1);
                let lines: Vec<_> = (0..RANDOM_LEVELS).map(level).map(|level| (level, level, step)).collect();
                Ok(Profile::repeating(&lines))
            }
        }
    }
}

fn trace_profile(points: &[(f64, f64)], repeat: bool) -> Result<Profile, WaveformError> {
    let last = points.last().ok_or(WaveformError::Steps)?;
    if points[0].0 != 0.0 || (repeat && points.len() < 2) {
        return Err(WaveformError::Steps);
    }
    let mut lines = Vec::with_capacity(points.len());
    for pair in points.windows(2) {
        let ((start, from), (end, to)) = (pair[0], pair[1]);
        if end <= start {
            return Err(WaveformError::Steps);
        }
        lines.push((microwatts(from)?, microwatts(to)?, nanoseconds(end - start)?));
    }
    let hold = microwatts(last.1)?;
    Ok(if repeat { Profile::repeating(&lines) } else { Profile::holding(&lines, hold) })
}

fn steps_profile(steps: &[(f64, f64)]) -> Result<Profile, WaveformError> {
    let (first, last) =
        (steps.first().ok_or(WaveformError::Steps)?, steps.last().ok_or(WaveformError::Steps)?);
    if first.0 != 0.0 {
        return Err(WaveformError::Steps);
    }
    let mut lines = Vec::with_capacity(steps.len());
    for pair in steps.windows(2) {
        let (start, watts) = pair[0];
        let gap = pair[1].0 - start;
        if gap <= 0.0 {
            return Err(WaveformError::Steps);
        }
        let level = microwatts(watts)?;
        lines.push((level, level, nanoseconds(gap)?));
    }
    Ok(Profile::holding(&lines, microwatts(last.1)?))
}

/// A checked power in microwatts.
pub(crate) fn microwatts(watts: f64) -> Result<u64, WaveformError> {
    if (0.0..=MAX_WATTS).contains(&watts) {
        Ok((watts * 1e6).round() as u64)
    } else {
        Err(WaveformError::Watts { watts })
    }
}

fn nanoseconds(seconds: f64) -> Result<u64, WaveformError> {
    if (1e-6..=MAX_SECONDS).contains(&seconds) {
        Ok((seconds * 1e9).round() as u64)
    } else {
        Err(WaveformError::Seconds { seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joules(json: &str, seconds: u64) -> f64 {
        let waveform: Waveform = serde_json::from_str(json).unwrap();
        waveform.profile().unwrap().integral_to(seconds * 1_000_000_000).energy as f64 / 1e15
    }

    #[test]
    fn each_kind_has_the_energy_of_its_figure() {
        assert_eq!(joules(r#"{"kind":"constant","watts":250}"#, 4), 1_000.0);
        let square = r#"{"kind":"square","low_watts":100,"high_watts":300,"period_seconds":2,"duty":0.25}"#;
        assert_eq!(joules(square, 2), 300.0);
        assert_eq!(
            joules(r#"{"kind":"sine","low_watts":100,"high_watts":300,"period_seconds":2}"#, 2),
            400.0
        );
        assert_eq!(joules(r#"{"kind":"ramp","from_watts":0,"to_watts":100,"seconds":10}"#, 20), 1_500.0);
        assert_eq!(joules(r#"{"kind":"steps","steps":[[0,100],[5,300]]}"#, 7), 1_100.0);
        assert_eq!(joules(r#"{"kind":"trace","points":[[0,0],[2,100],[3,200]]}"#, 5), 100.0 + 150.0 + 400.0);
        assert_eq!(joules(r#"{"kind":"trace","points":[[0,0],[2,100]],"repeat":true}"#, 6), 300.0);
    }

    #[test]
    fn random_levels_are_those_of_the_seed() {
        let watts = |seed: u64, second: u64| {
            let waveform = Waveform::Random { low_watts: 100.0, high_watts: 300.0, step_seconds: 1.0, seed };
            waveform.profile().unwrap().power_at(second * 1_000_000_000).0 as f64 / 1e6
        };
        let levels: Vec<f64> = (0..1_000).map(|second| watts(7, second)).collect();
        assert!(levels.iter().all(|watts| (100.0..=300.0).contains(watts)));
        let mean = levels.iter().sum::<f64>() / 1e3;
        assert!((mean - 200.0).abs() < 10.0, "a thousand levels: σ of the mean is 1.8 W, not {mean}");
        assert_eq!(levels[5], watts(7, 5), "again");
        assert_ne!(levels[5], watts(8, 5));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let refused = |waveform: Waveform| waveform.profile().unwrap_err();
        assert_eq!(refused(Waveform::Constant { watts: -1.0 }), WaveformError::Watts { watts: -1.0 });
        assert!(matches!(refused(Waveform::Constant { watts: f64::NAN }), WaveformError::Watts { .. }));
        assert_eq!(refused(Waveform::Steps { steps: vec![(1.0, 5.0)] }), WaveformError::Steps);
        assert_eq!(refused(Waveform::Steps { steps: vec![(0.0, 5.0), (0.0, 6.0)] }), WaveformError::Steps);
        let backwards = Waveform::Trace { points: vec![(0.0, 5.0), (0.0, 6.0)], repeat: false };
        assert_eq!(refused(backwards), WaveformError::Steps);
        let swapped = Waveform::Random { low_watts: 2.0, high_watts: 1.0, step_seconds: 1.0, seed: 0 };
        assert_eq!(refused(swapped), WaveformError::Random);
        let swapped = Waveform::Sine { low_watts: 9.0, high_watts: 5.0, period_seconds: 1.0 };
        assert_eq!(refused(swapped), WaveformError::Sine);
    }
}
