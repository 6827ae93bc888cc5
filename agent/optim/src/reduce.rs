//! Reducing the gradients of a round's shards.
//!
//! Invariant: the caller adds parts in shard order; floating-point addition is not associative, so
//! the order is part of the result.

/// A slice has not the length that the others ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} has {actual} elements; expected are {expected}")]
pub struct LengthMismatch {
    /// Which argument.
    pub what: &'static str,
    /// Its length.
    pub actual: usize,
    /// The length it should have.
    pub expected: usize,
}

impl LengthMismatch {
    pub(crate) fn check(what: &'static str, actual: usize, expected: usize) -> Result<(), Self> {
        if actual == expected { Ok(()) } else { Err(Self { what, actual, expected }) }
    }
}

/// `sum += part`, element by element: one shard's summed gradient onto the round's.
///
/// Start from zeros and add the shards in order of their number.
///
/// # Errors
/// [`LengthMismatch`], with nothing written.
pub fn reduce(sum: &mut [f32], part: &[f32]) -> Result<(), LengthMismatch> {
    LengthMismatch::check("part", part.len(), sum.len())?;
    for (s, &p) in sum.iter_mut().zip(part) {
        *s += p;
    }
    Ok(())
}

/// Turns a sum over samples into their mean, which is what [`crate::Optimizer::step`] takes.
///
/// Divides by `samples` (rounded to `f32`, exact up to 2^24); a round without samples is left as it is.
pub fn mean(sum: &mut [f32], samples: u64) {
    if samples == 0 {
        return;
    }
    let samples = samples as f32;
    for s in sum {
        *s /= samples;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_in_order() {
        let mut sum = [1e8f32, 0.0];
        reduce(&mut sum, &[1.0, 2.0]).unwrap();
        reduce(&mut sum, &[-1e8, 3.0]).unwrap();
        // In this order the 1 is lost: the order is part of the result.
        assert_eq!(sum, [0.0, 5.0]);
    }

    #[test]
    fn lengths_are_checked() {
        let mut sum = [1.0, 2.0];
        let error = reduce(&mut sum, &[1.0]).unwrap_err();
        assert_eq!(error.to_string(), "part has 1 elements; expected are 2");
        assert_eq!(sum, [1.0, 2.0]);
    }

    #[test]
    fn mean_divides() {
        let mut sum = [3.0, -6.0];
        mean(&mut sum, 3);
        assert_eq!(sum, [1.0, -2.0]);
        mean(&mut sum, 0);
        assert_eq!(sum, [1.0, -2.0]);
    }
}
