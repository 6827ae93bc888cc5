//! Bits depend on the arguments alone: not on threads, scheduling or former calls; and never change
//! without a new `VERSION`.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use wattmill_kernel::{Activation, Batch, Kernel, Layer, Model, Numerics, Outcome};

fn model(inputs: usize, hidden: &[usize], classes: usize) -> Model {
    let relu = |&units| Layer { units, activation: Activation::Relu };
    let mut layers: Vec<_> = hidden.iter().map(relu).collect();
    layers.push(Layer { units: classes, activation: Activation::Linear });
    Model::new(inputs, &layers).unwrap()
}

struct Data {
    features: Vec<f32>,
    labels: Vec<u32>,
}

impl Data {
    fn new(rows: usize, model: &Model) -> Self {
        let feature = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0 - 0.5;
        let label = |row: usize| ((row as u32).wrapping_mul(2_654_435_761) >> 16) % model.classes() as u32;
        Self {
            features: (0..rows * model.inputs()).map(feature).collect(),
            labels: (0..rows).map(label).collect(),
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch { features: &self.features, labels: &self.labels }
    }
}

fn bits(kernel: &mut Kernel, data: &Data) -> (Vec<u32>, u64, u64) {
    let parameters = kernel.model().initialise(1);
    let mut gradient = vec![f32::NAN; parameters.len()];
    let outcome = kernel.gradient(&parameters, data.batch(), &mut gradient, &|| ()).unwrap();
    let Outcome { loss_sum, correct, .. } = outcome;
    (gradient.iter().map(|g| g.to_bits()).collect(), loss_sum.to_bits(), correct)
}

fn assert_same_on_any_threads(model: &Model, rows: usize) {
    let data = Data::new(rows, model);
    let one = bits(&mut Kernel::new(model.clone(), 1).unwrap(), &data);
    for threads in 2..=4 {
        let mut kernel = Kernel::new(model.clone(), threads).unwrap();
        for _ in 0..3 {
            assert!(bits(&mut kernel, &data) == one, "{threads} threads, {rows} rows");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for rows in [1, 31, 32, 33, 36, 144, 513] {
        assert_same_on_any_threads(&model(64, &[64], 10), rows);
    }
    assert_same_on_any_threads(&model(784, &[130, 70], 10), 200);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn threads_change_no_bit_of_any_shape(
        inputs in 1usize..90, hidden in 1usize..90, classes in 1usize..40, rows in 1usize..150,
    ) {
        assert_same_on_any_threads(&model(inputs, &[hidden], classes), rows);
    }
}

#[test]
fn former_calls_change_no_bit() {
    let model = model(64, &[48], 10);
    let mut used = Kernel::new(model.clone(), 2).unwrap();
    for rows in (1..=70).rev() {
        let data = Data::new(rows, &model);
        let fresh = bits(&mut Kernel::new(model.clone(), 1).unwrap(), &data);
        assert!(bits(&mut used, &data) == fresh, "{rows} rows");
    }
}

/// Whoever counts the ticks can tell a step that goes on from one that hangs: they come from all of it, on any
/// number of threads, and change no bit.
#[test]
fn ticks_tell_that_a_step_goes_on_and_change_no_bit() {
    let model = model(64, &[96], 10);
    // 9 blocks of rows; 3 tiles of the first layer and 1 of the last.
    let data = Data::new(513, &model);
    let silent = bits(&mut Kernel::new(model.clone(), 1).unwrap(), &data);
    for threads in [1, 3] {
        let mut kernel = Kernel::new(model.clone(), threads).unwrap();
        let ticks = AtomicUsize::new(0);
        let tick = || {
            ticks.fetch_add(1, Ordering::Relaxed);
        };
        let parameters = model.initialise(1);
        let mut gradient = vec![0.0; parameters.len()];
        kernel.gradient(&parameters, data.batch(), &mut gradient, &tick).unwrap();
        assert_eq!(ticks.swap(0, Ordering::Relaxed), 9 + 4);
        assert!(gradient.iter().map(|g| g.to_bits()).eq(silent.0.iter().copied()));
        kernel.evaluate(&parameters, data.batch(), &tick).unwrap();
        assert_eq!(ticks.into_inner(), 9);
    }
}

/// FNV-1a, 64 bit.
fn hash(words: impl IntoIterator<Item = u32>) -> u64 {
    let bytes = words.into_iter().flat_map(u32::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The bits of version 1, which a resumed job or another node must meet. A difference is a new
/// [`wattmill_kernel::VERSION`], not a new constant alone. Other instruction sets have other bits.
#[test]
fn the_bits_of_this_version() {
    let numerics = Numerics::detect();
    let model = model(784, &[64], 10);
    let data = Data::new(144, &model);
    let (gradient, loss, correct) = bits(&mut Kernel::new(model, 2).unwrap(), &data);
    let found = (hash(gradient), loss, correct);
    match numerics.to_string().as_str() {
        "avx512f/f32/1" => assert_eq!(
            found,
            (5_235_305_109_440_146_756, 4_644_682_275_080_955_208, 12),
            "the bits of {numerics} changed"
        ),
        other => eprintln!("no golden bits are known for {other}: {found:?}"),
    }
}
