//! The choice of an optimizer, its hyperparameters' allowed ranges and the shape of its state.
//!
//! Invariant: [`Optimizer::step`] writes nothing unless every argument has been checked.

use crate::{LengthMismatch, adamw, sgd};

/// An optimizer with its hyperparameters, with PyTorch's semantics and defaults' meaning.
///
/// Hyperparameters are `f64`, as PyTorch's are Python floats; like PyTorch's they are rounded to
/// `f32` where they meet a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent, `torch.optim.SGD` with `dampening = 0`:
    /// `d = g + weight_decay·p`, `m = momentum·m + d`, `p -= lr·m`, or with Nesterov
    /// `p -= lr·(d + momentum·m)`.
    Sgd {
        /// Step size, at least 0.
        learning_rate: f64,
        /// Share of the former direction that is kept, 0 to less than 1; 0 needs no state.
        momentum: f64,
        /// Looks ahead by one momentum step; needs `momentum` above 0.
        nesterov: bool,
        /// L2 penalty added to the gradient, at least 0.
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay, `torch.optim.AdamW` without `amsgrad`
    /// (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2).
    AdamW {
        /// Step size, at least 0.
        learning_rate: f64,
        /// Decay of the gradient's running mean, 0 to less than 1.
        beta1: f64,
        /// Decay of the squared gradient's running mean, 0 to less than 1.
        beta2: f64,
        /// Added to the denominator, at least 0 (above 0 in practice: a parameter whose gradients
        /// were all 0 would else become 0/0).
        epsilon: f64,
        /// Share of the parameter that is removed per unit of step size, at least 0.
        weight_decay: f64,
    },
}

/// A hyperparameter lies outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} is {value}; allowed is {allowed}")]
pub struct InvalidHyperparameter {
    /// The field's name as in the job file.
    pub field: &'static str,
    /// What it was set to.
    pub value: String,
    /// The allowed range, in words.
    pub allowed: &'static str,
}

/// Why [`Optimizer::step`] refused; nothing was written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// The optimizer itself is not valid.
    #[error("invalid optimizer")]
    Hyperparameter(#[from] InvalidHyperparameter),
    /// Gradient or state do not fit the parameters.
    #[error("slices do not fit the parameters")]
    Length(#[from] LengthMismatch),
    /// Steps are counted from 1, because Adam's bias correction divides by `1 - beta^step`.
    #[error("step is 0; steps are counted from 1")]
    StepZero,
    /// The schedule's factor is negative or not finite.
    #[error("learning-rate scale is {0}; allowed is a finite number of at least 0")]
    Scale(f64),
}

impl Optimizer {
    /// Checks every hyperparameter.
    ///
    /// # Errors
    /// [`InvalidHyperparameter`] names the first field outside its range.
    pub fn validate(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::Sgd { learning_rate, momentum, nesterov, weight_decay } => {
                not_negative("learning_rate", learning_rate)?;
                fraction("momentum", momentum)?;
                not_negative("weight_decay", weight_decay)?;
                if nesterov && momentum == 0.0 {
                    return Err(invalid("nesterov", &nesterov, "false where momentum is 0"));
                }
                Ok(())
            }
            Self::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } => {
                not_negative("learning_rate", learning_rate)?;
                fraction("beta1", beta1)?;
                fraction("beta2", beta2)?;
                not_negative("epsilon", epsilon)?;
                not_negative("weight_decay", weight_decay)
            }
        }
    }

    /// State vectors per parameter: AdamW 2 (mean, mean of squares), SGD 1 with momentum, else 0.
    #[must_use]
    pub fn slots(&self) -> usize {
        match self {
            Self::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
            Self::AdamW { .. } => 2,
        }
    }

    /// Applies one step in place.
    ///
    /// `gradient` has the length of `parameters` and is the mean over the samples (see
    /// [`crate::mean`]). `state` has `slots() × parameters.len()` elements, slot after slot, all 0
    /// before step 1. `step` counts from 1. The step size is `learning_rate × learning_rate_scale`,
    /// the scale being [`crate::Schedule::scale`]'s or 1. Parameters may be split into partitions
    /// that are stepped apart: the result is the same to the bit.
    ///
    /// # Errors
    /// [`StepError`], with nothing written, if an argument is out of range or of the wrong length.
    pub fn step(
        &self,
        step: u64,
        learning_rate_scale: f64,
        parameters: &mut [f32],
        gradient: &[f32],
        state: &mut [f32],
    ) -> Result<(), StepError> {
        self.validate()?;
        if step == 0 {
            return Err(StepError::StepZero);
        }
        if !(learning_rate_scale.is_finite() && learning_rate_scale >= 0.0) {
            return Err(StepError::Scale(learning_rate_scale));
        }
        LengthMismatch::check("gradient", gradient.len(), parameters.len())?;
        LengthMismatch::check("state", state.len(), self.slots().saturating_mul(parameters.len()))?;
        match *self {
            Self::Sgd { learning_rate, momentum, nesterov, weight_decay } => {
                let rule =
                    sgd::Rule::new(learning_rate * learning_rate_scale, momentum, nesterov, weight_decay);
                rule.apply(parameters, gradient, state);
            }
            Self::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } => {
                let rate = learning_rate * learning_rate_scale;
                let rule = adamw::Rule::new(step, rate, [beta1, beta2], epsilon, weight_decay);
                rule.apply(parameters, gradient, state);
            }
        }
        Ok(())
    }
}

fn invalid(field: &'static str, value: &dyn ToString, allowed: &'static str) -> InvalidHyperparameter {
    InvalidHyperparameter { field, value: value.to_string(), allowed }
}

fn not_negative(field: &'static str, value: f64) -> Result<(), InvalidHyperparameter> {
    // The bound is f32's: a larger value becomes infinite where it meets a tensor.
    if (0.0..=f64::from(f32::MAX)).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, &value, "a finite number of at least 0 that fits f32"))
}

fn fraction(field: &'static str, value: f64) -> Result<(), InvalidHyperparameter> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, &value, "0 to less than 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SGD: Optimizer =
        Optimizer::Sgd { learning_rate: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.0 };
    const ADAMW: Optimizer =
        Optimizer::AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };

    #[test]
    fn errors_name_field_value_and_range() {
        let optimizer =
            Optimizer::Sgd { learning_rate: 0.1, momentum: 1.5, nesterov: false, weight_decay: 0.0 };
        let error = optimizer.validate().unwrap_err();
        assert_eq!(error.to_string(), "momentum is 1.5; allowed is 0 to less than 1");
    }

    #[test]
    fn every_field_is_checked() {
        let adamw = |learning_rate, beta1, beta2, epsilon, weight_decay| {
            Optimizer::AdamW { learning_rate, beta1, beta2, epsilon, weight_decay }.validate()
        };
        assert_eq!(adamw(0.1, 0.9, 0.99, 1e-8, 0.0), Ok(()));
        assert_eq!(adamw(f64::NAN, 0.9, 0.99, 1e-8, 0.0).unwrap_err().field, "learning_rate");
        assert_eq!(adamw(0.1, 1.0, 0.99, 1e-8, 0.0).unwrap_err().field, "beta1");
        assert_eq!(adamw(0.1, 0.9, -0.1, 1e-8, 0.0).unwrap_err().field, "beta2");
        assert_eq!(adamw(0.1, 0.9, 0.99, f64::INFINITY, 0.0).unwrap_err().field, "epsilon");
        assert_eq!(adamw(0.1, 0.9, 0.99, 1e-8, -1.0).unwrap_err().field, "weight_decay");
        let nesterov =
            Optimizer::Sgd { learning_rate: 0.1, momentum: 0.0, nesterov: true, weight_decay: 0.0 };
        assert_eq!(nesterov.validate().unwrap_err().field, "nesterov");
    }

    #[test]
    fn slots_follow_the_rule() {
        assert_eq!([SGD.slots(), ADAMW.slots()], [1, 2]);
        let plain = Optimizer::Sgd { learning_rate: 0.1, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        assert_eq!(plain.slots(), 0);
    }

    #[test]
    fn a_refused_step_writes_nothing() {
        let mut parameters = [1.0, 2.0];
        let mut state = [0.5; 4];
        let gradient = [1.0, 1.0];
        let mut run = |step, scale, gradient: &[f32], slots: usize| {
            ADAMW.step(step, scale, &mut parameters, gradient, &mut state[..slots]).unwrap_err()
        };
        assert_eq!(run(0, 1.0, &gradient, 4), StepError::StepZero);
        assert_eq!(run(1, -1.0, &gradient, 4), StepError::Scale(-1.0));
        assert!(matches!(run(1, f64::NAN, &gradient, 4), StepError::Scale(_)));
        let wrong = |what, actual, expected| StepError::Length(LengthMismatch { what, actual, expected });
        assert_eq!(run(1, 1.0, &gradient[..1], 4), wrong("gradient", 1, 2));
        assert_eq!(run(1, 1.0, &gradient, 3), wrong("state", 3, 4));
        assert_eq!((parameters, state), ([1.0, 2.0], [0.5; 4]));
    }
}
