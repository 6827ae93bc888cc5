//! What a GPU would draw if nothing limited it, as a test writes it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::profile::Profile;

/// Most that a waveform may draw, in watts: ten times a large GPU, and low enough that integrals cannot overflow.
pub const MAX_WATTS: f64 = 10_000.0;

/// Longest period, ramp or step, in seconds: one day (see [`MAX_WATTS`]).
pub const MAX_SECONDS: f64 = 86_400.0;

/// Least a sine may draw, in watts, and its longest period, in seconds. The cosine term is rounded by at most
/// 5 kW × 1 h / 2π × 2⁻⁵² < 1 nJ = 1 W × 1 ns, so that energy cannot run backwards between two nanoseconds.
const MIN_SINE_WATTS: f64 = 1.0;
const MAX_SINE_SECONDS: f64 = 3_600.0;

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
    #[error("steps need a first time of 0 s and increasing times after it")]
    Steps,
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
        }
    }
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
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let refused = |waveform: Waveform| waveform.profile().unwrap_err();
        assert_eq!(refused(Waveform::Constant { watts: -1.0 }), WaveformError::Watts { watts: -1.0 });
        assert!(matches!(refused(Waveform::Constant { watts: f64::NAN }), WaveformError::Watts { .. }));
        assert_eq!(refused(Waveform::Steps { steps: vec![(1.0, 5.0)] }), WaveformError::Steps);
        assert_eq!(refused(Waveform::Steps { steps: vec![(0.0, 5.0), (0.0, 6.0)] }), WaveformError::Steps);
        let swapped = Waveform::Sine { low_watts: 9.0, high_watts: 5.0, period_seconds: 1.0 };
        assert_eq!(refused(swapped), WaveformError::Sine);
    }
}
