//! Softmax cross-entropy of one row, fused with its gradient.
//!
//! Invariant: the loss is `ln Σ exp(z − max) + max − z[label]` in `f64` over `f32` exponentials; it is
//! finite or the caller reports it.

use crate::maths::{exp, ln};

/// What one row gave.
pub(crate) struct RowLoss {
    /// Natural logarithm of 1 ÷ the probability of the label; NaN or infinite if a logit is.
    pub(crate) loss: f64,
    /// Whether the label has the largest logit; of equal ones the first counts, as in PyTorch.
    pub(crate) correct: bool,
}

/// The loss of `logits` and, in `delta`, its gradient with respect to them: the probabilities, less 1
/// at the label. Both slices have one element per class; `label` is one of them.
pub(crate) fn softmax_cross_entropy(logits: &[f32], label: usize, delta: &mut [f32]) -> RowLoss {
    let (best, max) = largest(logits);
    for (e, &z) in delta.iter_mut().zip(logits) {
        *e = exp(z - max);
    }
    let sum = delta.iter().map(|&e| f64::from(e)).sum::<f64>();
    if !sum.is_finite() {
        return RowLoss { loss: f64::NAN, correct: false };
    }
    // The largest logit gives exp(0) = 1, so the sum is at least 1.
    let inverse = (1.0 / sum) as f32;
    for e in delta.iter_mut() {
        *e *= inverse;
    }
    delta[label] -= 1.0;
    RowLoss { loss: ln(sum) + (f64::from(max) - f64::from(logits[label])), correct: best == label }
}

/// Index and value of the first largest element; NaN is never larger.
fn largest(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &z) in logits.iter().enumerate() {
        if z > best.1 {
            best = (index, z);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(logits: &[f32], label: usize) -> (RowLoss, Vec<f32>) {
        let mut delta = vec![0.0; logits.len()];
        (softmax_cross_entropy(logits, label, &mut delta), delta)
    }

    #[test]
    fn even_logits() {
        let (row, delta) = run(&[3.0; 4], 1);
        assert!((row.loss - 4f64.ln()).abs() < 1e-15);
        assert_eq!(delta, [0.25, -0.75, 0.25, 0.25]);
        assert!(!row.correct, "of equal logits the first counts");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let (row, delta) = run(&[1e30, 0.0], 0);
        assert_eq!((row.loss, row.correct), (0.0, true));
        assert_eq!(delta, [0.0, 0.0]);
        let (row, delta) = run(&[1e4, 0.0], 1);
        assert_eq!((row.loss, row.correct), (1e4, false));
        assert_eq!(delta, [1.0, -1.0]);
    }

    #[test]
    fn a_bad_logit_is_never_a_good_loss() {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in 0..3 {
                let mut logits = [0.0; 3];
                logits[place] = bad;
                assert!(!run(&logits, 1).0.loss.is_finite(), "{bad} at {place}");
            }
        }
        assert!(!run(&[f32::NEG_INFINITY, 0.0], 0).0.loss.is_finite());
        assert!(!run(&[f32::NEG_INFINITY; 2], 0).0.loss.is_finite());
    }
}
