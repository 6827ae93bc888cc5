//! How the learning rate falls over a job's steps.
//!
//! Invariant: the scale depends on the step and the number of steps alone, to the bit on every
//! machine: cosine is evaluated here, since libm's differs between platforms.

use std::f64::consts::PI;

/// The factor by which the learning rate is multiplied at each step, 1 at the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Always 1.
    Constant,
    /// Half a cosine from 1 to `final_ratio`, as `CosineAnnealingLR` with `T_max = total_steps`
    /// and `eta_min = final_ratio × learning_rate`.
    Cosine {
        /// Last learning rate ÷ first; at least 0.
        final_ratio: f64,
    },
    /// A line from 1 to `final_ratio`, as `LinearLR` with `start_factor = 1`.
    Linear {
        /// Last learning rate ÷ first; at least 0.
        final_ratio: f64,
    },
}

impl Schedule {
    /// Scale of step `step` (from 1) of `total_steps`: step 1 has scale 1, step `total_steps + 1`
    /// and every later one `final_ratio`, as PyTorch's schedulers that are stepped after each
    /// optimizer step.
    #[must_use]
    pub fn scale(&self, step: u64, total_steps: u64) -> f64 {
        let done = step.saturating_sub(1).min(total_steps);
        let progress = if total_steps == 0 { 0.0 } else { done as f64 / total_steps as f64 };
        match *self {
            Self::Constant => 1.0,
            Self::Cosine { final_ratio } => {
                let share = 0.5 * (1.0 + cosine_of_half_turns(progress));
                final_ratio + (1.0 - final_ratio) * share
            }
            Self::Linear { final_ratio } => 1.0 + (final_ratio - 1.0) * progress,
        }
    }
}

/// `cos(π·x)` for `x` in 0 to 1, within 1e-15: folded into an eighth of a turn, where the Taylor
/// series of sine or cosine converges fast.
fn cosine_of_half_turns(x: f64) -> f64 {
    if x > 0.5 {
        return -cosine_of_half_turns(1.0 - x);
    }
    if x <= 0.25 {
        return series(PI * x, 0.0);
    }
    let angle = PI * (0.5 - x);
    angle * series(angle, 1.0)
}

/// `Σ (-1)^i · angle^2i / Π (2i + offset)…`: cosine for offset 0, sine ÷ angle for offset 1. Nine
/// terms leave less than 1e-18 at π/4.
fn series(angle: f64, offset: f64) -> f64 {
    let square = angle * angle;
    let (mut sum, mut term) = (1.0, 1.0);
    for i in 1..=9u32 {
        let n = f64::from(2 * i) + offset;
        term = -term * square / (n * (n - 1.0));
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_agrees_with_libm() {
        for i in 0..=1_000 {
            let x = f64::from(i) / 1_000.0;
            let (ours, libm) = (cosine_of_half_turns(x), (PI * x).cos());
            assert!((ours - libm).abs() < 1e-15, "{x}: {ours} {libm}");
        }
    }

    #[test]
    fn ends_and_middle() {
        let cosine = Schedule::Cosine { final_ratio: 0.1 };
        let scales = [1, 6, 11, 99].map(|step| cosine.scale(step, 10));
        for (scale, expected) in scales.into_iter().zip([1.0, 0.55, 0.1, 0.1]) {
            assert!((scale - expected).abs() < 1e-15, "{scales:?}");
        }
        let linear = Schedule::Linear { final_ratio: 0.0 };
        assert_eq!([1, 6, 11, 99].map(|step| linear.scale(step, 10)), [1.0, 0.5, 0.0, 0.0]);
        assert_eq!(Schedule::Constant.scale(7, 10), 1.0);
    }

    #[test]
    fn degenerate_arguments_stay_finite() {
        for schedule in [Schedule::Cosine { final_ratio: 0.0 }, Schedule::Linear { final_ratio: 0.0 }] {
            assert_eq!(schedule.scale(0, 0), 1.0);
            assert!(schedule.scale(u64::MAX, u64::MAX).abs() < 1e-9);
        }
    }
}
