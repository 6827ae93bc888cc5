//! Training learns: the demo's job on the UCI digits reaches its accuracy for every seed.
//!
//! Rows are the fixture's; every fifth (index mod 5 = 4) is held out. A round takes four shards of 36
//! rows, sums their gradients in shard order and steps once, as `sync` mode does.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

use wattmill_kernel::{Activation, Batch, Kernel, Layer, Model, Numerics, order};
use wattmill_optim::{Optimizer, Schedule, mean, reduce};

const INPUTS: usize = 64;
const SHARD_ROWS: usize = 36;
const SHARDS_PER_ROUND: usize = 4;

#[derive(Default)]
struct Data {
    features: Vec<f32>,
    labels: Vec<u32>,
}

impl Data {
    fn batch(&self) -> Batch<'_> {
        Batch { features: &self.features, labels: &self.labels }
    }

    fn select(&self, rows: &[u32]) -> Self {
        let rows = || rows.iter().map(|&row| row as usize);
        Self {
            features: rows().flat_map(|row| &self.features[row * INPUTS..][..INPUTS]).copied().collect(),
            labels: rows().map(|row| self.labels[row]).collect(),
        }
    }
}

/// Training rows and held-out rows.
fn digits() -> [Data; 2] {
    let file = include_bytes!("../../../tests/fixtures/digits.csv.gz");
    let reader = flate2::read::GzDecoder::new(file.as_slice());
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(reader);
    let mut data = [Data::default(), Data::default()];
    for (index, row) in reader.deserialize::<Vec<u32>>().enumerate() {
        let row = row.unwrap();
        let part = &mut data[usize::from(index % 5 == 4)];
        part.features.extend(row[..INPUTS].iter().map(|&pixel| pixel as f32 / 16.0));
        part.labels.push(row[INPUTS]);
    }
    data
}

fn model() -> Model {
    let layers = [
        Layer { units: 64, activation: Activation::Relu },
        Layer { units: 10, activation: Activation::Linear },
    ];
    Model::new(INPUTS, &layers).unwrap()
}

/// A job's recipe.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    optimizer: Optimizer,
    schedule: Schedule,
    epochs: u32,
}

/// Shares of the held-out rows that are classified rightly, and the rounds it took.
fn train(recipe: &Recipe, seed: u64, [training, held_out]: &[Data; 2]) -> (f64, u64) {
    let mut kernel = Kernel::new(model(), 1).unwrap();
    let mut parameters = kernel.model().initialise(seed);
    let mut part = vec![0.0; parameters.len()];
    let mut state = vec![0.0; recipe.optimizer.slots() * parameters.len()];
    let rows = training.labels.len();
    let rounds = rows.div_ceil(SHARD_ROWS * SHARDS_PER_ROUND) as u64 * u64::from(recipe.epochs);
    let mut round = 0;
    for epoch in 0..recipe.epochs {
        let order = order::permutation(rows as u64, seed, epoch).unwrap();
        for rows in order.chunks(SHARD_ROWS * SHARDS_PER_ROUND) {
            let (mut sum, mut samples) = (vec![0.0; parameters.len()], 0);
            for shard in rows.chunks(SHARD_ROWS) {
                let shard = training.select(shard);
                samples += kernel.gradient(&parameters, shard.batch(), &mut part, &|| ()).unwrap().samples;
                reduce(&mut sum, &part).unwrap();
            }
            mean(&mut sum, samples);
            round += 1;
            let scale = recipe.schedule.scale(round, rounds);
            recipe.optimizer.step(round, scale, &mut parameters, &sum, &mut state).unwrap();
        }
    }
    let outcome = kernel.evaluate(&parameters, held_out.batch(), &|| ()).unwrap();
    (outcome.correct as f64 / outcome.samples as f64, round)
}

/// The shortest recipe: 100 rounds.
const SHORT: Recipe = Recipe {
    optimizer: Optimizer::Sgd { learning_rate: 0.7, momentum: 0.9, nesterov: true, weight_decay: 1e-3 },
    schedule: Schedule::Linear { final_ratio: 0.0 },
    epochs: 10,
};

/// The steadiest recipe: 200 rounds.
const STEADY: Recipe = Recipe {
    optimizer: Optimizer::AdamW {
        learning_rate: 0.04,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    },
    schedule: Schedule::Linear { final_ratio: 0.0 },
    epochs: 20,
};

fn check(recipe: &Recipe, rounds: u64) {
    let data = digits();
    let runs: Vec<_> = (1..=10).map(|seed| train(recipe, seed, &data)).collect();
    let accuracies: Vec<_> = runs.iter().map(|run| run.0).collect();
    let text: Vec<_> = accuracies.iter().map(|accuracy| format!("{accuracy:.4}")).collect();
    println!("{rounds} rounds, seeds 1 to 10: {}", text.join(" "));
    assert!(runs.iter().all(|run| run.1 == rounds), "{runs:?}");
    assert!(accuracies.iter().all(|&accuracy| accuracy >= 0.95), "{text:?}");
    // Other instruction sets round otherwise, which acts like other seeds. Of 40 seeds here the worst
    // gave 0.958; one held-out row is 0.003.
    if Numerics::detect().to_string() == "avx512f/f32/1" {
        assert!(accuracies.iter().all(|&accuracy| accuracy >= 0.96), "{text:?}");
        assert!(accuracies[0] >= 0.97, "{text:?}");
    }
}

#[test]
fn the_short_recipe_learns_from_every_seed() {
    check(&SHORT, 100);
}

#[test]
fn the_steady_recipe_learns_from_every_seed() {
    check(&STEADY, 200);
}
