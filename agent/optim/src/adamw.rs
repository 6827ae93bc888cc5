//! Adam with decoupled weight decay, as `torch.optim.AdamW` computes it.
//!
//! Invariant: one pass, element by element, in the order of PyTorch's `_single_tensor_adam`: decay,
//! mean (`lerp_`), mean of squares, `p += -step_size · m / (sqrt(v) / correction + epsilon)`. Bias
//! corrections are computed in `f64` and rounded once, as PyTorch's Python scalars are.

/// One step's constants, rounded to `f32` as PyTorch rounds its Python scalars.
pub(crate) struct Rule {
    keep: f32,
    beta2: f32,
    mean_weight: f32,
    square_weight: f32,
    negative_step_size: f32,
    correction_root: f32,
    epsilon: f32,
}

impl Rule {
    pub(crate) fn new(step: u64, rate: f64, betas: [f64; 2], epsilon: f64, weight_decay: f64) -> Self {
        let [beta1, beta2] = betas;
        let step_size = rate / (1.0 - power(beta1, step));
        Self {
            keep: (1.0 - rate * weight_decay) as f32,
            beta2: beta2 as f32,
            mean_weight: (1.0 - beta1) as f32,
            square_weight: (1.0 - beta2) as f32,
            negative_step_size: -step_size as f32,
            correction_root: (1.0 - power(beta2, step)).sqrt() as f32,
            epsilon: epsilon as f32,
        }
    }

    /// `state` is twice as long as the others: means, then means of squares.
    pub(crate) fn apply(&self, parameters: &mut [f32], gradient: &[f32], state: &mut [f32]) {
        let (means, squares) = state.split_at_mut(parameters.len());
        for (((p, &g), m), v) in parameters.iter_mut().zip(gradient).zip(means).zip(squares) {
            let decayed = *p * self.keep;
            *m = lerp(*m, g, self.mean_weight);
            *v = *v * self.beta2 + self.square_weight * g * g;
            let denominator = v.sqrt() / self.correction_root + self.epsilon;
            *p = decayed + self.negative_step_size * (*m / denominator);
        }
    }
}

/// PyTorch's `lerp`: from the nearer end, so that weight 1 gives exactly `to`.
fn lerp(from: f32, to: f32, weight: f32) -> f32 {
    if weight < 0.5 { from + weight * (to - from) } else { to - (to - from) * (1.0 - weight) }
}

/// `base^exponent` by squaring: `f64::powi` and `powf` may differ between machines.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut left) = (1.0, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result *= square;
        }
        square *= square;
        left >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::power;
    use crate::Optimizer;

    #[test]
    fn power_by_squaring() {
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert_eq!(power(0.0, 1), 0.0);
        assert_eq!(power(0.9, 0), 1.0);
        assert!((power(0.999, 1_000) - 0.367_695_424_770_963_7).abs() < 1e-13);
        assert_eq!(power(0.999, u64::MAX), 0.0);
    }

    #[test]
    fn first_step_by_hand() {
        // m = 0.5·2, v = 0.5·4, both corrected by 1/(1 - 0.5): m/sqrt(v) = 2/2 = 1, so the step is the
        // rate; before it the decay takes 0.25·0.5 of the parameter.
        let optimizer =
            Optimizer::AdamW { learning_rate: 0.25, beta1: 0.5, beta2: 0.5, epsilon: 0.0, weight_decay: 0.5 };
        let (mut p, mut state) = ([4.0], [0.0; 2]);
        optimizer.step(1, 1.0, &mut p, &[2.0], &mut state).unwrap();
        assert_eq!(state, [1.0, 2.0]);
        assert!((p[0] - 3.25).abs() < 1e-6, "{p:?}");
    }

    #[test]
    fn second_step_by_hand() {
        let optimizer = Optimizer::AdamW {
            learning_rate: 0.25,
            beta1: 0.5,
            beta2: 0.75,
            epsilon: 1.0,
            weight_decay: 0.0,
        };
        let (mut p, mut state) = ([4.0], [1.0, 4.0]);
        optimizer.step(2, 2.0, &mut p, &[3.0], &mut state).unwrap();
        // m = 1 + 0.5·(3-1) = 2, v = 3 + 0.25·9 = 5.25; corrections 0.75 and 0.4375.
        assert_eq!(state, [2.0, 5.25]);
        let expected = 4.0 - 0.5 / 0.75 * 2.0 / ((5.25f64 / 0.4375).sqrt() + 1.0);
        assert!((f64::from(p[0]) - expected).abs() < 1e-6, "{p:?} {expected}");
    }
}
