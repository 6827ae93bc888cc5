//! Stochastic gradient descent with momentum, as `torch.optim.SGD` computes it.
//!
//! Invariant: one pass, element by element, in the order of PyTorch's `_single_tensor_sgd`:
//! decay, momentum, look-ahead, update.

/// One step's constants, rounded to `f32` as PyTorch rounds its Python scalars.
pub(crate) struct Rule {
    rate: f32,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
}

impl Rule {
    pub(crate) fn new(rate: f64, momentum: f64, nesterov: bool, weight_decay: f64) -> Self {
        Self { rate: rate as f32, momentum: momentum as f32, nesterov, weight_decay: weight_decay as f32 }
    }

    /// The three slices have one length, or `velocity` is empty where there is no momentum.
    pub(crate) fn apply(&self, parameters: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        if velocity.is_empty() {
            return self.without_momentum(parameters, gradient);
        }
        // Before step 1 the velocity is 0, which makes it the gradient: PyTorch's clone.
        for ((p, &g), v) in parameters.iter_mut().zip(gradient).zip(velocity) {
            let direction = g + self.weight_decay * *p;
            *v = self.momentum * *v + direction;
            let ahead = if self.nesterov { direction + self.momentum * *v } else { *v };
            *p -= self.rate * ahead;
        }
    }

    fn without_momentum(&self, parameters: &mut [f32], gradient: &[f32]) {
        for (p, &g) in parameters.iter_mut().zip(gradient) {
            *p -= self.rate * (g + self.weight_decay * *p);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Optimizer;

    /// All values are dyadic, so that the hand computation is exact.
    fn two_steps(nesterov: bool) -> ([f32; 1], [f32; 1]) {
        let optimizer = Optimizer::Sgd { learning_rate: 0.25, momentum: 0.5, nesterov, weight_decay: 0.5 };
        let (mut p, mut v) = ([2.0], [0.0]);
        optimizer.step(1, 1.0, &mut p, &[1.0], &mut v).unwrap();
        optimizer.step(2, 0.5, &mut p, &[1.0], &mut v).unwrap();
        (p, v)
    }

    #[test]
    fn momentum_by_hand() {
        // d = 1 + 0.5·2 = 2, v = 2, p = 2 - 0.25·2 = 1.5; d = 1.75, v = 2.75, p = 1.5 - 0.125·2.75.
        assert_eq!(two_steps(false), ([1.15625], [2.75]));
    }

    #[test]
    fn nesterov_by_hand() {
        // d = 2, v = 2, p = 2 - 0.25·3 = 1.25; d = 1.625, v = 2.625, p = 1.25 - 0.125·2.9375.
        assert_eq!(two_steps(true), ([0.882_812_5], [2.625]));
    }

    #[test]
    fn plain_by_hand() {
        let optimizer =
            Optimizer::Sgd { learning_rate: 0.25, momentum: 0.0, nesterov: false, weight_decay: 0.5 };
        let mut p = [2.0, -4.0];
        optimizer.step(1, 1.0, &mut p, &[1.0, 0.0], &mut []).unwrap();
        assert_eq!(p, [1.5, -3.5]);
    }
}
