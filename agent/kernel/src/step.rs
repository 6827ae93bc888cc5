//! The two phases of a step, and how the batch and the weights are cut.
//!
//! Invariant: where the cuts lie depends on the batch's rows and the layers' shapes alone. A block
//! writes only its own rows of the scratch, a tile only its own part of the gradient.

use crate::kernel::Outcome;
use crate::loss::softmax_cross_entropy;
use crate::model::{Activation, Dense, Model};
use crate::multiply::{View, multiply};

/// Most rows of a block. `gemm` packs a layer's weights once per block, so that few rows spend their time
/// packing (one Zen 4 core, 784-1024-1024-10: 40 GFLOP/s at 32 rows, 52 at 64, 70 at 128); many rows
/// leave few blocks for the threads, which matters less as layers grow.
const BLOCK_ROWS: usize = 64;
const BLOCK_ROWS_WIDE: usize = 128;
/// Weights of a wide layer: 2^18, 1 MiB, which fill a core's second-level cache.
const WIDE_WEIGHTS: usize = 1 << 18;
/// Rows that the vector kernels take at a time are 4 to 8: blocks are multiples, but for the last.
const ROW_MULTIPLE: usize = 8;

/// Units of a tile: enough of them to reuse the batch's rows, few enough to give every thread some.
const TILE_UNITS: usize = 32;

/// Rows of each block but the last: as few blocks as the bounds allow, and even ones.
fn block_rows(model: &Model, rows: usize) -> usize {
    let wide = model.layers().iter().any(|layer| layer.weight.len() >= WIDE_WEIGHTS);
    let most = if wide { BLOCK_ROWS_WIDE } else { BLOCK_ROWS };
    let blocks = rows.div_ceil(most).max(1);
    rows.div_ceil(blocks).next_multiple_of(ROW_MULTIPLE).max(ROW_MULTIPLE)
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
        let rows = block_rows(model, labels.len());
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

    /// A layer's activations and deltas.
    fn layer<'a>(&'a self, index: usize, rows: usize, units: usize) -> (View<'a>, View<'a>) {
        let of = |buffer: &'a [f32]| View::row_major(&buffer[..rows * units], rows, units);
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
        let parts = weights.chunks_mut(TILE_UNITS * dense.inputs).zip(biases.chunks_mut(TILE_UNITS));
        tiles.extend(parts.enumerate().map(|(index, (weight, bias))| Tile {
            layer,
            first_unit: index * TILE_UNITS,
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

/// Whether no element is infinite or NaN: these have every bit of the exponent set. Without a branch, so
/// that it vectorises.
fn all_finite(values: &[f32]) -> bool {
    const INFINITE: u32 = 0x7f80_0000;
    values.iter().fold(true, |fine, value| fine & (value.to_bits() & INFINITE != INFINITE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layer;

    fn model(inputs: usize, units: usize) -> Model {
        Model::new(inputs, &[Layer { units, activation: Activation::Linear }]).unwrap()
    }

    #[test]
    fn blocks_are_even_and_bounded() {
        for (model, most) in [(model(64, 64), BLOCK_ROWS), (model(1024, 1024), BLOCK_ROWS_WIDE)] {
            for rows in 1..2_000 {
                let block = block_rows(&model, rows);
                assert!(block <= most && block.is_multiple_of(ROW_MULTIPLE), "{rows}: {block}");
                assert!(rows.div_ceil(block) <= rows.div_ceil(most), "{rows}: {block}");
            }
        }
        assert_eq!([36, 144].map(|rows| block_rows(&model(64, 64), rows)), [40, 48]);
    }

    #[test]
    fn tiles_cover_the_gradient() {
        let model = model(3, 70);
        let mut gradient = vec![0.0; model.parameters()];
        let tiles = tiles(&model, &mut gradient);
        let cut: Vec<_> = tiles.iter().map(|t| (t.first_unit, t.weight.len(), t.bias.len())).collect();
        assert_eq!(cut, [(0, 96, 32), (32, 96, 32), (64, 18, 6)]);
    }

    #[test]
    fn a_relu_keeps_nan() {
        assert_eq!([relu(-1.0), relu(0.0), relu(2.0)], [0.0, 0.0, 2.0]);
        assert!(relu(f32::NAN).is_nan());
    }

    #[test]
    fn finiteness_is_found_anywhere() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..9 {
                let mut values = [f32::MAX; 9];
                assert!(all_finite(&values));
                values[place] = bad;
                assert!(!all_finite(&values));
            }
        }
    }
}
