//! Equality with PyTorch: the figures of `tests/fixtures/pytorch/make.py`.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

use serde::Deserialize;
use wattmill_kernel::{Activation, Batch, Kernel, Layer, Model, order};
use wattmill_optim::{Optimizer, Schedule, mean};

#[derive(Deserialize)]
struct Expected {
    permutation: Vec<u32>,
    initial: Vec<f32>,
    batch: OneBatch,
    steps: std::collections::BTreeMap<String, Vec<Step>>,
}

#[derive(Deserialize)]
struct OneBatch {
    loss_sum: f64,
    correct: u64,
    gradient: Vec<f32>,
}

#[derive(Deserialize)]
struct Step {
    features: Vec<f32>,
    labels: Vec<u32>,
    loss: f64,
    gradient: Vec<f32>,
    parameters: Vec<f32>,
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("../../../tests/fixtures/pytorch/expected.json")).unwrap()
}

fn model(inputs: usize, hidden: usize, classes: usize) -> Model {
    let layers = [
        Layer { units: hidden, activation: Activation::Relu },
        Layer { units: classes, activation: Activation::Linear },
    ];
    Model::new(inputs, &layers).unwrap()
}

/// Within 1e-5 of each value; of the root mean square of all where a value is smaller, since a sum that
/// nearly cancels keeps the rounding of its terms.
fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let square = theirs.iter().map(|&t| f64::from(t).powi(2)).sum::<f64>() / theirs.len() as f64;
    for (index, (&a, &b)) in ours.iter().zip(theirs).enumerate() {
        let (a, b) = (f64::from(a), f64::from(b));
        assert!((a - b).abs() <= 1e-5 * b.abs().max(square.sqrt()), "{what}[{index}]: {a} {b}");
    }
}

fn digits(rows: usize) -> (Vec<f32>, Vec<u32>) {
    let file = include_bytes!("../../../tests/fixtures/digits.csv.gz");
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(flate2::read::GzDecoder::new(file.as_slice()));
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for row in reader.deserialize::<Vec<u32>>().take(rows) {
        let row = row.unwrap();
        features.extend(row[..64].iter().map(|&pixel| pixel as f32 / 16.0));
        labels.push(row[64]);
    }
    (features, labels)
}

#[test]
fn documented_streams_are_reproduced() {
    let expected = expected();
    assert_eq!(order::permutation(10, 1, 0).unwrap(), expected.permutation);
    // To the bit: the fixture names each float32 with nine digits.
    assert_eq!(model(64, 64, 10).initialise(1)[..100], expected.initial);
}

#[test]
fn loss_and_gradient_of_a_batch() {
    let expected = expected().batch;
    let model = model(64, 64, 10);
    let parameters = model.initialise(1);
    let mut gradient = vec![f32::NAN; model.parameters()];
    let (features, labels) = digits(36);
    let batch = Batch { features: &features, labels: &labels };
    let outcome = Kernel::new(model, 2).unwrap().gradient(&parameters, batch, &mut gradient, &|| ()).unwrap();
    assert!((outcome.loss_sum / expected.loss_sum - 1.0).abs() < 1e-6, "{outcome:?} {}", expected.loss_sum);
    assert_eq!((outcome.correct, outcome.samples), (expected.correct, 36));
    assert_close("gradient", &gradient, &expected.gradient);
}

fn optimizer(name: &str) -> Optimizer {
    let sgd =
        |momentum, nesterov| Optimizer::Sgd { learning_rate: 0.1, momentum, nesterov, weight_decay: 0.01 };
    match name {
        "sgd" => sgd(0.0, false),
        "momentum" => sgd(0.9, false),
        "nesterov" => sgd(0.9, true),
        "adamw" => Optimizer::AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
        },
        other => panic!("the fixture has an optimizer {other}"),
    }
}

#[test]
fn five_steps_of_each_optimizer() {
    let expected = expected().steps;
    assert_eq!(expected.len(), 4);
    for (name, steps) in &expected {
        let optimizer = optimizer(name);
        let model = model(8, 6, 3);
        let mut parameters = model.initialise(3);
        let mut gradient = vec![0.0; model.parameters()];
        let mut state = vec![0.0; optimizer.slots() * model.parameters()];
        let mut kernel = Kernel::new(model, 1).unwrap();
        for (step, expected) in (1..).zip(steps) {
            let batch = Batch { features: &expected.features, labels: &expected.labels };
            let outcome = kernel.gradient(&parameters, batch, &mut gradient, &|| ()).unwrap();
            mean(&mut gradient, outcome.samples);
            let loss = outcome.loss_sum / outcome.samples as f64;
            assert!((loss - expected.loss).abs() < 1e-5, "{name} {step}: {loss} {}", expected.loss);
            assert_close(&format!("{name} gradient {step}"), &gradient, &expected.gradient);
            let scale = Schedule::Cosine { final_ratio: 0.1 }.scale(step, 5);
            optimizer.step(step, scale, &mut parameters, &gradient, &mut state).unwrap();
            assert_close(&format!("{name} {step}"), &parameters, &expected.parameters);
        }
    }
}

/// The optimizer alone, fed PyTorch's own gradients: no error of the kernel can hide in it.
#[test]
fn five_steps_on_their_gradients() {
    for (name, steps) in &expected().steps {
        let optimizer = optimizer(name);
        let mut parameters = model(8, 6, 3).initialise(3);
        let mut state = vec![0.0; optimizer.slots() * parameters.len()];
        for (step, expected) in (1..).zip(steps) {
            let scale = Schedule::Cosine { final_ratio: 0.1 }.scale(step, 5);
            optimizer.step(step, scale, &mut parameters, &expected.gradient, &mut state).unwrap();
            for (ours, theirs) in parameters.iter().zip(&expected.parameters) {
                assert!(
                    (ours - theirs).abs() <= 1e-6 * theirs.abs().max(0.01),
                    "{name} {step}: {ours} {theirs}"
                );
            }
        }
    }
}
