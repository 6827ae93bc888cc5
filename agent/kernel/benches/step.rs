//! Time of one gradient, of a whole step with its optimizer, and of the probe, per number of threads.
//!
//! `cargo bench -p wattmill-kernel --profile dev` measures the code that the demo runs; without the
//! profile, the release build.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wattmill_kernel::probe::Probe;
use wattmill_kernel::{Activation, Batch, Kernel, Layer, Model};
use wattmill_optim::{Optimizer, mean};

/// Inputs, hidden units, rows; always 10 classes.
const SHAPES: [(usize, &[usize], usize); 3] =
    [(64, &[64], 144), (784, &[64], 128), (784, &[1024, 1024], 512)];

fn model(inputs: usize, hidden: &[usize]) -> Model {
    let relu = |&units| Layer { units, activation: Activation::Relu };
    let mut layers: Vec<_> = hidden.iter().map(relu).collect();
    layers.push(Layer { units: 10, activation: Activation::Linear });
    Model::new(inputs, &layers).expect("the shapes are within bounds")
}

fn steps(criterion: &mut Criterion) {
    for (inputs, hidden, rows) in SHAPES {
        let model = model(inputs, hidden);
        let mut group = criterion.benchmark_group(format!("{inputs}-{hidden:?}-10 b{rows}"));
        group.throughput(Throughput::Elements(model.flops_per_sample() * rows as u64));
        let features: Vec<f32> = (0..rows * inputs).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
        let labels: Vec<u32> = (0..rows as u32).map(|row| row * 7 % 10).collect();
        let batch = Batch { features: &features, labels: &labels };
        for threads in [1, 2] {
            let mut kernel = Kernel::new(model.clone(), threads).expect("the kernel starts");
            let parameters = model.initialise(1);
            let mut gradient = vec![0.0; parameters.len()];
            group.bench_function(format!("gradient, {threads} threads"), |bencher| {
                bencher.iter(|| kernel.gradient(&parameters, batch, &mut gradient, &|| ()));
            });
        }
        group.bench_function("gradient and AdamW, 1 thread", |bencher| train(bencher, &model, batch));
        group.finish();
    }
}

fn train(bencher: &mut criterion::Bencher<'_>, model: &Model, batch: Batch<'_>) {
    let optimizer =
        Optimizer::AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    let mut kernel = Kernel::new(model.clone(), 1).expect("the kernel starts");
    let mut parameters = model.initialise(1);
    let mut gradient = vec![0.0; parameters.len()];
    let mut state = vec![0.0; optimizer.slots() * parameters.len()];
    let mut step = 0;
    bencher.iter(|| {
        let outcome = kernel.gradient(&parameters, batch, &mut gradient, &|| ());
        mean(&mut gradient, outcome.map_or(0, |outcome| outcome.samples));
        step += 1;
        optimizer.step(step, 1.0, &mut parameters, &gradient, &mut state)
    });
}

fn probe(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("probe");
    group.sample_size(20);
    for threads in [1, 2] {
        let mut probe = Probe::new(threads).expect("the probe starts");
        group.throughput(Throughput::Elements(probe.run()));
        group.bench_function(format!("{threads} threads"), |bencher| bencher.iter(|| probe.run()));
    }
    group.finish();
}

criterion_group!(benches, steps, probe);
criterion_main!(benches);
