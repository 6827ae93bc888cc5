//! The gradient is right: against finite differences of a plain `f64` implementation, at every
//! parameter, and what is refused is refused by name.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

use proptest::prelude::*;
use wattmill_kernel::{Activation, Batch, Kernel, KernelError, Layer, Model};

use Activation::{Linear, Relu};

fn model(inputs: usize, layers: &[(usize, Activation)]) -> Model {
    let layers: Vec<_> = layers.iter().map(|&(units, activation)| Layer { units, activation }).collect();
    Model::new(inputs, &layers).unwrap()
}

fn features(rows: usize, inputs: usize) -> Vec<f32> {
    (0..rows * inputs).map(|i| ((i * 37 + i / 5 * 11) % 101) as f32 / 50.0 - 1.0).collect()
}

fn labels(rows: usize, classes: usize) -> Vec<u32> {
    (0..rows).map(|row| (row * 7 % classes) as u32).collect()
}

type Layers<'a> = &'a [(usize, Activation)];

/// The summed loss, as a textbook has it, and the least distance of any ReLU's sum to its kink at 0.
fn reference(layers: Layers<'_>, parameters: &[f64], features: &[f32], labels: &[u32]) -> (f64, f64) {
    let inputs = features.len() / labels.len();
    let (mut loss, mut kink) = (0.0, f64::INFINITY);
    for (row, &label) in features.chunks(inputs).zip(labels) {
        let mut values: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        let mut rest = parameters;
        for &(units, activation) in layers {
            let (weight, after) = rest.split_at(units * values.len());
            let (bias, after) = after.split_at(units);
            rest = after;
            let sum = |(w, b): (&[f64], &f64)| b + w.iter().zip(&values).map(|(w, x)| w * x).sum::<f64>();
            let mut sums: Vec<f64> = weight.chunks(values.len()).zip(bias).map(sum).collect();
            if activation == Relu {
                kink = sums.iter().fold(kink, |least, sum| least.min(sum.abs()));
                sums.iter_mut().for_each(|sum| *sum = sum.max(0.0));
            }
            values = sums;
        }
        loss += values.iter().map(|z| z.exp()).sum::<f64>().ln() - values[label as usize];
    }
    (loss, kink)
}

/// Fresh parameters with biases that are not 0.
fn parameters(model: &Model, seed: u64) -> Vec<f32> {
    let fresh = model.initialise(seed).into_iter().enumerate();
    fresh.map(|(index, parameter)| parameter + 0.05 + (index % 7) as f32 * 0.01).collect()
}

/// Finite differences mean nothing across a kink: they move a sum by about 1e-6.
const LEAST_KINK: f64 = 1e-5;

fn distance_to_kink(inputs: usize, layers: Layers<'_>, rows: usize, seed: u64) -> f64 {
    let model = model(inputs, layers);
    let exact: Vec<f64> = parameters(&model, seed).into_iter().map(f64::from).collect();
    reference(layers, &exact, &features(rows, inputs), &labels(rows, model.classes())).1
}

fn check(inputs: usize, layers: Layers<'_>, rows: usize, seed: u64) {
    assert!(distance_to_kink(inputs, layers, rows, seed) > LEAST_KINK, "choose another seed");
    let model = model(inputs, layers);
    let parameters = parameters(&model, seed);
    let (features, labels) = (features(rows, inputs), labels(rows, model.classes()));
    let mut gradient = vec![f32::NAN; model.parameters()];
    let batch = Batch { features: &features, labels: &labels };
    let outcome = Kernel::new(model, 1).unwrap().gradient(&parameters, batch, &mut gradient, &|| ()).unwrap();

    let mut exact: Vec<f64> = parameters.iter().map(|&p| f64::from(p)).collect();
    let loss = reference(layers, &exact, &features, &labels).0;
    assert!((outcome.loss_sum - loss).abs() < 1e-5 * loss.abs().max(1.0), "{outcome:?} {loss}");
    assert_eq!(outcome.samples, rows as u64);
    for (index, &ours) in gradient.iter().enumerate() {
        let step = 1e-6;
        let centre = exact[index];
        let mut at = |value| {
            exact[index] = value;
            reference(layers, &exact, &features, &labels).0
        };
        let slope = (at(centre + step) - at(centre - step)) / (2.0 * step);
        exact[index] = centre;
        let error = (f64::from(ours) - slope).abs();
        assert!(error < 1e-4 * slope.abs().max(1.0), "parameter {index}: {ours} {slope}");
    }
}

#[test]
fn two_layers() {
    check(5, &[(7, Relu), (4, Linear)], 9, 1);
}

#[test]
fn three_layers() {
    check(3, &[(6, Relu), (5, Relu), (3, Linear)], 40, 2);
}

#[test]
fn a_linear_layer_within_and_a_relu_at_the_end() {
    check(4, &[(3, Linear), (5, Relu)], 11, 3);
}

#[test]
fn one_layer_and_one_class() {
    check(4, &[(3, Linear)], 1, 4);
    check(1, &[(1, Linear)], 3, 5);
}

#[test]
fn several_blocks_and_tiles() {
    check(6, &[(70, Relu), (3, Linear)], 150, 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape(inputs in 1usize..9, hidden in 1usize..40, classes in 1usize..5, rows in 1usize..71, seed: u64) {
        let layers = [(hidden, Relu), (classes, Linear)];
        prop_assume!(distance_to_kink(inputs, &layers, rows, seed) > LEAST_KINK);
        check(inputs, &layers, rows, seed);
    }
}

/// A batch's gradient is the sum of its samples' and its evaluation the sum of theirs.
#[test]
fn batches_add_up() {
    let model = model(13, &[(17, Relu), (5, Linear)]);
    let parameters = model.initialise(1);
    let (all, classes) = (features(70, 13), labels(70, 5));
    let mut kernel = Kernel::new(model, 2).unwrap();
    let mut one = vec![0.0; parameters.len()];
    let mut sum = vec![0.0f64; parameters.len()];
    let (mut loss, mut correct) = (0.0, 0);
    for rows in 1..=70 {
        let row = Batch { features: &all[(rows - 1) * 13..rows * 13], labels: &classes[rows - 1..rows] };
        let outcome = kernel.gradient(&parameters, row, &mut one, &|| ()).unwrap();
        loss += outcome.loss_sum;
        correct += outcome.correct;
        sum.iter_mut().zip(&one).for_each(|(s, &g)| *s += f64::from(g));

        let batch = Batch { features: &all[..rows * 13], labels: &classes[..rows] };
        let whole = kernel.gradient(&parameters, batch, &mut one, &|| ()).unwrap();
        assert_eq!((whole.samples, whole.correct), (rows as u64, correct));
        assert!((whole.loss_sum - loss).abs() < 1e-5 * loss);
        for (s, &g) in sum.iter().zip(&one) {
            assert!((s - f64::from(g)).abs() < 1e-4 * s.abs().max(1.0), "{rows} rows: {s} {g}");
        }
        assert_eq!(kernel.evaluate(&parameters, batch, &|| ()).unwrap(), whole);
    }
}

#[test]
fn an_empty_batch_gives_zeros() {
    let model = model(2, &[(3, Linear)]);
    let parameters = model.initialise(1);
    let mut gradient = vec![f32::NAN; parameters.len()];
    let mut kernel = Kernel::new(model, 1).unwrap();
    let batch = Batch { features: &[], labels: &[] };
    assert_eq!(kernel.gradient(&parameters, batch, &mut gradient, &|| ()).unwrap().samples, 0);
    assert!(gradient.iter().all(|&g| g == 0.0));
    assert_eq!(kernel.evaluate(&parameters, batch, &|| ()).unwrap().samples, 0);
}

#[test]
fn errors_name_what_is_wrong() {
    let model = model(2, &[(3, Linear)]);
    let parameters = model.initialise(1);
    let mut gradient = vec![0.0; parameters.len()];
    let mut kernel = Kernel::new(model, 2).unwrap();
    let mut run = |parameters: &[f32], features: &[f32], labels: &[u32], length: usize| {
        let batch = Batch { features, labels };
        kernel.gradient(parameters, batch, &mut gradient[..length], &|| ()).unwrap_err().to_string()
    };
    let length = parameters.len();
    let short = &parameters[1..];
    assert_eq!(run(short, &[0.0; 4], &[0, 1], length), "parameters has 8 elements; expected are 9");
    assert_eq!(run(&parameters, &[0.0; 3], &[0, 1], length), "features has 3 elements; expected are 4");
    assert_eq!(run(&parameters, &[0.0; 4], &[0, 1], 8), "gradient has 8 elements; expected are 9");
    let label = "row 1 has label 3; the model has 3 classes, from 0";
    assert_eq!(run(&parameters, &[0.0; 4], &[0, 3], length), label);
    let mut features = features(70, 2);
    features[2 * 66] = f32::NAN;
    features[2 * 41 + 1] = f32::INFINITY;
    assert_eq!(run(&parameters, &features, &labels(70, 3), length), "the loss of row 41 is not finite");
}

#[test]
fn evaluation_names_the_row_of_the_whole_batch() {
    let model = model(1, &[(2, Linear)]);
    let parameters = model.initialise(1);
    let mut features = features(5_000, 1);
    features[4_321] = f32::NAN;
    let batch = Batch { features: &features, labels: &labels(5_000, 2) };
    let error = Kernel::new(model, 1).unwrap().evaluate(&parameters, batch, &|| ()).unwrap_err();
    assert_eq!(error, KernelError::Loss { row: 4_321 });
}

#[test]
fn an_overflowing_gradient_is_refused() {
    let model = model(1, &[(2, Linear)]);
    let parameters = vec![0.0; model.parameters()];
    // Zero weights: the losses are ln 2, and the weights' gradient sums 0.5 × 3e38 eight times.
    let batch = Batch { features: &[3e38; 8], labels: &[0; 8] };
    let mut gradient = vec![0.0; 4];
    let error =
        Kernel::new(model, 1).unwrap().gradient(&parameters, batch, &mut gradient, &|| ()).unwrap_err();
    assert_eq!(error.to_string(), "the gradient of 0.weight is not finite");
}

#[test]
fn a_batch_past_the_scratch_is_refused() {
    // 2^20 + 1 units per row, twice: 127 rows fit 2^28 floats.
    let model = model(1, &[(1 << 20, Relu), (1, Linear)]);
    let parameters = model.initialise(1);
    let mut gradient = vec![0.0; parameters.len()];
    let batch = Batch { features: &[0.0; 128], labels: &[0; 128] };
    let error =
        Kernel::new(model, 1).unwrap().gradient(&parameters, batch, &mut gradient, &|| ()).unwrap_err();
    assert_eq!(error, KernelError::Rows { rows: 128, limit: 127 });
}
