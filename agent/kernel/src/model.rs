//! What a network is: its layers, and where each tensor lies in the flat parameter vector.
//!
//! Invariant: a [`Model`] is within the bounds of [`crate::MAX_PARAMETERS`], [`crate::MAX_LAYERS`] and
//! [`crate::MAX_WIDTH`], whatever a job file asked for; its tensors are contiguous and in order.

use std::ops::Range;

use crate::random::SplitMix64;
use crate::{MAX_LAYERS, MAX_PARAMETERS, MAX_WIDTH, ModelError};

/// What a dense layer does to its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(0, x)`; NaN stays NaN, as in PyTorch.
    Relu,
    /// Nothing.
    Linear,
}

/// One dense layer of a job's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// Outputs of the layer; the last layer's are the classes.
    pub units: usize,
    /// Applied to each output.
    pub activation: Activation,
}

/// One tensor of the flat parameter vector, as `torch.nn.Sequential` would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// `"0.weight"`, `"0.bias"`, `"2.weight"`…: the number counts the modules, of which a ReLU is one.
    pub name: String,
    /// `[units, inputs]` of a weight, row-major; `[units]` of a bias.
    pub shape: Vec<usize>,
    /// Index of its first element.
    pub offset: usize,
}

/// A dense network, checked. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    layers: Vec<Dense>,
}

/// A layer with its place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) units: usize,
    pub(crate) activation: Activation,
    /// Elements of the weight, `[units, inputs]`; the bias, `[units]`, follows.
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Range<usize>,
}

impl Model {
    /// A network of `inputs` features and the given layers, the last of which gives the logits of the
    /// classes.
    ///
    /// # Errors
    /// [`ModelError`] if a size is 0 or past its bound.
    pub fn new(inputs: usize, layers: &[Layer]) -> Result<Self, ModelError> {
        if !(1..=MAX_WIDTH).contains(&inputs) {
            return Err(ModelError::Inputs(inputs));
        }
        if !(1..=MAX_LAYERS).contains(&layers.len()) {
            return Err(ModelError::Layers(layers.len()));
        }
        let mut dense: Vec<Dense> = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            if !(1..=MAX_WIDTH).contains(&layer.units) {
                return Err(ModelError::Units { layer: index, units: layer.units });
            }
            let (inputs, start) = dense.last().map_or((inputs, 0), |last| (last.units, last.bias.end));
            let next = Dense::new(inputs, layer, start);
            if next.bias.end > MAX_PARAMETERS {
                return Err(ModelError::Parameters(next.bias.end));
            }
            dense.push(next);
        }
        Ok(Self { layers: dense })
    }

    /// Features per sample.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.inputs)
    }

    /// Classes: units of the last layer.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.units)
    }

    /// Length of the flat parameter vector.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.bias.end)
    }

    /// Every tensor in the order of the flat vector, without gaps.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::with_capacity(2 * self.layers.len());
        let mut module = 0;
        for layer in &self.layers {
            tensors.push(TensorSpec {
                name: format!("{module}.weight"),
                shape: vec![layer.units, layer.inputs],
                offset: layer.weight.start,
            });
            tensors.push(TensorSpec {
                name: format!("{module}.bias"),
                shape: vec![layer.units],
                offset: layer.bias.start,
            });
            module += if layer.activation == Activation::Relu { 2 } else { 1 };
        }
        tensors
    }

    /// FLOPs of training on one sample: the matrix products of forward and of both gradients, 2 per
    /// multiplication and addition; that is 6 per weight, and 4 in the first layer, whose input needs
    /// no gradient. Biases, activations, loss and optimizer are not counted, as is usual for model
    /// FLOPs utilisation (Chowdhery et al., "PaLM", 2022, appendix B).
    #[must_use]
    pub fn flops_per_sample(&self) -> u64 {
        let first = self.layers.first().map_or(0, |layer| 2 * layer.weight.len() as u64);
        3 * self.flops_per_sample_forward() - first
    }

    /// FLOPs of evaluating one sample: 2 per weight, counted as in [`Model::flops_per_sample`].
    #[must_use]
    pub fn flops_per_sample_forward(&self) -> u64 {
        self.layers.iter().map(|layer| 2 * layer.weight.len() as u64).sum()
    }

    /// Fresh parameters in tensor order, the same on every machine for the same seed.
    ///
    /// Weights are uniform in ±√(6 / inputs) before a ReLU and ±√(3 / inputs) else (He et al., "Delving
    /// Deep into Rectifiers", 2015: variance 2/inputs and 1/inputs keeps that of the activations);
    /// biases are 0. Each weight takes one output of SplitMix64 from `seed`: its upper 24 bits `u` give
    /// `(2·u/2^24 − 1) · bound`, the bound rounded to `f32`.
    #[must_use]
    pub fn initialise(&self, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64::new(seed);
        let mut parameters = vec![0.0; self.parameters()];
        for layer in &self.layers {
            let gain = if layer.activation == Activation::Relu { 6.0 } else { 3.0 };
            let bound = (gain / layer.inputs as f64).sqrt() as f32;
            for weight in &mut parameters[layer.weight.clone()] {
                *weight = (2.0 * random.unit() - 1.0) * bound;
            }
        }
        parameters
    }

    pub(crate) fn layers(&self) -> &[Dense] {
        &self.layers
    }

    /// `f32` of scratch per row: activations and their gradients of every layer.
    pub(crate) fn scratch_per_row(&self) -> usize {
        2 * self.layers.iter().map(|layer| layer.units).sum::<usize>()
    }
}

impl Dense {
    /// The bounds on widths keep the product far from overflow.
    fn new(inputs: usize, layer: &Layer, start: usize) -> Self {
        let weight = start..start + inputs * layer.units;
        let bias = weight.end..weight.end + layer.units;
        Self { inputs, units: layer.units, activation: layer.activation, weight, bias }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(units: usize, activation: Activation) -> Layer {
        Layer { units, activation }
    }

    fn digits() -> Model {
        Model::new(64, &[layer(64, Activation::Relu), layer(10, Activation::Linear)]).unwrap()
    }

    #[test]
    fn tensors_are_named_as_sequential_names_them() {
        let tensors = digits().tensors();
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["0.weight", "0.bias", "2.weight", "2.bias"]);
        assert_eq!(tensors[2].shape, [10, 64]);
        assert_eq!(tensors[2].offset, 64 * 64 + 64);
        let linear = Model::new(3, &[layer(2, Activation::Linear), layer(2, Activation::Linear)]).unwrap();
        assert_eq!(linear.tensors()[2].name, "1.weight");
    }

    #[test]
    fn tensors_leave_no_gap() {
        let model = digits();
        let mut end = 0;
        for tensor in model.tensors() {
            assert_eq!(tensor.offset, end);
            end += tensor.shape.iter().product::<usize>();
        }
        assert_eq!(end, model.parameters());
    }

    #[test]
    fn flops_by_hand() {
        let model = digits();
        assert_eq!(model.flops_per_sample_forward(), 2 * (64 * 64 + 64 * 10));
        assert_eq!(model.flops_per_sample(), 4 * 64 * 64 + 6 * 64 * 10);
    }

    #[test]
    fn foreign_sizes_are_bounded() {
        let relu = |units| layer(units, Activation::Relu);
        assert_eq!(Model::new(0, &[relu(1)]), Err(ModelError::Inputs(0)));
        assert_eq!(Model::new(usize::MAX, &[relu(1)]), Err(ModelError::Inputs(usize::MAX)));
        assert_eq!(Model::new(1, &[]), Err(ModelError::Layers(0)));
        assert_eq!(Model::new(1, &[relu(1); 65]), Err(ModelError::Layers(65)));
        assert_eq!(Model::new(1, &[relu(1), relu(0)]), Err(ModelError::Units { layer: 1, units: 0 }));
        let huge = Model::new(MAX_WIDTH, &[relu(MAX_WIDTH)]).unwrap_err();
        assert_eq!(huge, ModelError::Parameters(MAX_WIDTH * MAX_WIDTH + MAX_WIDTH));
    }

    #[test]
    fn fresh_parameters_fill_their_range() {
        let model = digits();
        let parameters = model.initialise(7);
        assert_eq!(parameters, model.initialise(7));
        assert_ne!(parameters, model.initialise(8));
        let bound = (6.0f32 / 64.0).sqrt();
        let largest = parameters[..64 * 64].iter().fold(0.0f32, |most, w| most.max(w.abs()));
        assert!(largest <= bound && largest > 0.99 * bound, "{largest} {bound}");
        assert!(parameters[64 * 64..64 * 65].iter().all(|&bias| bias == 0.0));
    }
}
