//! The two phases of a step, and how the batch and the weights are cut.
//!
//! Invariant: where the cuts lie depends on the batch's rows and the layers' shapes alone. A block
//! writes only its own rows of the scratch, a tile only its own part of the gradient.

use crate::kernel::Outcome;
use crate::loss::softmax_cross_entropy;
use crate::model::{Activation, Dense, Model};
use crate::multiply::{View, multiply};

/// Rows of a block of a batch of `rows`: about a sixteenth, 32 to 128. Fewer than 32 leave the vector
/// units waiting for the weights; more than 128 gain nothing and feed fewer threads.
pub(crate) fn block_rows(rows: usize) -> usize {
    (rows / 16).next_power_of_two().clamp(32, 128)
}

/// Units of a tile: about a sixteenth of the layer, 16 to 64, for the same reasons.
fn tile_units(units: usize) -> usize {
    (units / 16).next_power_of_two().clamp(16, 64)
}

/// Scratch of a whole batch, layer by layer; it grows and never shrinks.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    layers: Vec<LayerScratch>,
}

/// Both `rows × units` at least.
#[derive(Debug, Default, Clone)]
struct LayerScratch {
    /// What the layer gave.
    activation: Vec<f32>,
    /// The loss's gradient with respect to the layer's sums, before its activation.
    delta: Vec<f32>,
}

/// One block's rows of everything.
pub(crate) struct Block<'a> {
    /// The row of the batch that is the block's first.
    first_row: usize,
    features: &'a [f32],
    labels: &'a [u32],
    layers: Vec<BlockLayer<'a>>,
}

struct BlockLayer<'a> {
    activation: &'a mut [f32],
    delta: &'a mut [f32],
}

/// A row of the batch whose loss is not finite.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadRow(pub(crate) usize);

impl Scratch {
    /// Cuts a batch into blocks, each with its rows of the scratch.
    pub(crate) fn blocks<'a>(
        &'a mut self,
        model: &Model,
        features: &'a [f32],
        labels: &'a [u32],
    ) -> Vec<Block<'a>> {
        let rows = block_rows(labels.len());
        let cut = labels.chunks(rows).zip(features.chunks(rows * model.inputs()));
        let mut blocks: Vec<_> = cut
            .enumerate()
            .map(|(index, (labels, features))| {
                let layers = Vec::with_capacity(model.layers().len());
                Block { first_row: index * rows, features, labels, layers }
            })
            .collect();
        self.layers.resize(model.layers().len(), LayerScratch::default());
        for (scratch, layer) in self.layers.iter_mut().zip(model.layers()) {
            let activations = grown(&mut scratch.activation, labels.len() * layer.units);
            let deltas = grown(&mut scratch.delta, labels.len() * layer.units);
            let size = rows * layer.units;
            let parts = activations.chunks_mut(size).zip(deltas.chunks_mut(size));
            for (block, (activation, delta)) in blocks.iter_mut().zip(parts) {
                block.layers.push(BlockLayer { activation, delta });
            }
        }
        blocks
    }

    fn layer(&self, index: usize, rows: usize, units: usize) -> (View<'_>, View<'_>) {
        let of = |buffer| View::row_major(first(buffer, rows * units), rows, units);
        let layer = &self.layers[index];
        (of(&layer.activation), of(&layer.delta))
    }
}

fn grown(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

fn first(buffer: &[f32], length: usize) -> &[f32] {
    &buffer[..length]
}

impl Block<'_> {
    /// Forward and loss, which leaves the gradient of the logits in the last layer's delta.
    pub(crate) fn forward(&mut self, model: &Model, parameters: &[f32]) -> Result<Outcome, BadRow> {
        let rows = self.labels.len();
        let mut input = View::row_major(self.features, rows, model.inputs());
        for (dense, layer) in model.layers().iter().zip(&mut self.layers) {
            let weight = View::row_major(&parameters[dense.weight.clone()], dense.units, dense.inputs);
            multiply(layer.activation, input, weight.transposed());
            add_bias_and_activate(layer.activation, &parameters[dense.bias.clone()], dense.activation);
            input = View::row_major(layer.activation, rows, dense.units);
        }
        self.loss(model)
    }

    fn loss(&mut self, model: &Model) -> Result<Outcome, BadRow> {
        let mut outcome = Outcome::default();
        let classes = model.classes();
        let Some(last) = self.layers.last_mut() else { return Ok(outcome) };
        let rows = last.activation.chunks(classes).zip(last.delta.chunks_mut(classes));
        for (row, ((logits, delta), &label)) in rows.zip(self.labels).enumerate() {
            let result = softmax_cross_entropy(logits, label as usize, delta);
            if !result.loss.is_finite() {
                return Err(BadRow(self.first_row + row));
            }
            outcome.add(&Outcome { loss_sum: result.loss, correct: u64::from(result.correct), samples: 1 });
        }
        Ok(outcome)
    }

    /// The gradients of every layer's sums, from the last layer's down to the first's.
    pub(crate) fn backward(&mut self, model: &Model, parameters: &[f32]) {
        let rows = self.labels.len();
        for index in (0..self.layers.len()).rev() {
            let dense = &model.layers()[index];
            let (below, above) = self.layers.split_at_mut(index);
            let layer = &mut above[0];
            mask(layer.delta, layer.activation, dense.activation);
            // The first layer's input needs no gradient.
            if let Some(below) = below.last_mut() {
                let weight = View::row_major(&parameters[dense.weight.clone()], dense.units, dense.inputs);
                multiply(below.delta, View::row_major(layer.delta, rows, dense.units), weight);
            }
        }
    }
}

/// Adds the bias to each row and applies the activation, in one pass.
fn add_bias_and_activate(sums: &mut [f32], bias: &[f32], activation: Activation) {
    for row in sums.chunks_mut(bias.len()) {
        match activation {
            Activation::Linear => row.iter_mut().zip(bias).for_each(|(sum, &b)| *sum += b),
            Activation::Relu => row.iter_mut().zip(bias).for_each(|(sum, &b)| *sum = relu(*sum + b)),
        }
    }
}

/// NaN stays NaN, where `f32::max` would hide it.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Turns the gradient of activations into that of the sums below them.
fn mask(delta: &mut [f32], activation: &[f32], kind: Activation) {
    if kind == Activation::Relu {
        for (d, &a) in delta.iter_mut().zip(activation) {
            *d = if a > 0.0 { *d } else { 0.0 };
        }
    }
}

/// One tile of a layer's gradient: some units' weights and biases.
pub(crate) struct Tile<'a> {
    layer: usize,
    first_unit: usize,
    weight: &'a mut [f32],
    bias: &'a mut [f32],
}

/// Cuts a gradient into tiles, layer by layer.
pub(crate) fn tiles<'a>(model: &Model, gradient: &'a mut [f32]) -> Vec<Tile<'a>> {
    let mut tiles = Vec::new();
    let mut rest = gradient;
    for (layer, dense) in model.layers().iter().enumerate() {
        let (weights, after) = rest.split_at_mut(dense.weight.len());
        let (biases, after) = after.split_at_mut(dense.bias.len());
        rest = after;
        let units = tile_units(dense.units);
        let parts = weights.chunks_mut(units * dense.inputs).zip(biases.chunks_mut(units));
        tiles.extend(parts.enumerate().map(|(index, (weight, bias))| Tile {
            layer,
            first_unit: index * units,
            weight,
            bias,
        }));
    }
    tiles
}

/// A tensor whose gradient is not finite: its layer, and whether it is the weight.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadTensor {
    pub(crate) layer: usize,
    pub(crate) weight: bool,
}

impl Tile<'_> {
    /// The sum over the batch of the tile's gradients: `deltaᵀ · input` and the column sums of `delta`.
    pub(crate) fn compute(self, model: &Model, scratch: &Scratch, features: &[f32]) -> Result<(), BadTensor> {
        let Dense { inputs, units, .. } = model.layers()[self.layer];
        let rows = features.len() / model.inputs();
        let (_, delta) = scratch.layer(self.layer, rows, units);
        let input = match self.layer.checked_sub(1) {
            None => View::row_major(features, rows, inputs),
            Some(below) => scratch.layer(below, rows, inputs).0,
        };
        let mine = delta.transposed().rows(self.first_unit, self.bias.len());
        multiply(self.weight, mine, input);
        mine.sum_rows(self.bias);
        for (weight, values) in [(true, self.weight), (false, self.bias)] {
            if !all_finite(values) {
                return Err(BadTensor { layer: self.layer, weight });
            }
        }
        Ok(())
    }
}

/// Whether no element is infinite or NaN. Branchless, so that it vectorises: an infinity or NaN times 0
/// is NaN, which then stays.
fn all_finite(values: &[f32]) -> bool {
    const INFINITE: u32 = 0x7f80_0000;
    values.iter().fold(true, |fine, value| fine & (value.to_bits() & INFINITE != INFINITE))
}
