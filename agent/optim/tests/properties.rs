//! What must hold of every optimizer: partitions do not matter, and steps stay finite.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not tests to clippy")]

use proptest::prelude::*;
use wattmill_optim::{Optimizer, Schedule, reduce};

fn optimizers() -> impl Strategy<Value = Optimizer> {
    let sgd =
        (0.0..1.0, prop_oneof![Just(0.0), 0.1..0.99], any::<bool>(), 0.0..0.1).prop_map(|(lr, m, n, wd)| {
            Optimizer::Sgd { learning_rate: lr, momentum: m, nesterov: n && m > 0.0, weight_decay: wd }
        });
    let adamw = (0.0..0.1, 0.0..0.99, 0.5..0.9999, 0.0..0.1).prop_map(|(lr, b1, b2, wd)| Optimizer::AdamW {
        learning_rate: lr,
        beta1: b1,
        beta2: b2,
        epsilon: 1e-8,
        weight_decay: wd,
    });
    prop_oneof![sgd, adamw]
}

/// Steps `values` over the partition `from..to` alone, its state slot-major.
fn partition(optimizer: &Optimizer, values: &[(f32, f32)], scale: f64) -> Vec<f32> {
    let (mut parameters, gradient): (Vec<f32>, Vec<f32>) = values.iter().copied().unzip();
    let mut state = vec![0.0; optimizer.slots() * parameters.len()];
    for step in 1..=3 {
        optimizer.step(step, scale, &mut parameters, &gradient, &mut state).unwrap();
    }
    parameters
}

proptest! {
    #[test]
    fn partitions_give_the_bits_of_the_whole(
        optimizer in optimizers(),
        values in prop::collection::vec((-10.0f32..10.0, -10.0f32..10.0), 0..67),
        cut in 0usize..67,
        scale in 0.0f64..2.0,
    ) {
        let (left, right) = values.split_at(cut.min(values.len()));
        let mut parts = partition(&optimizer, left, scale);
        parts.extend(partition(&optimizer, right, scale));
        let whole = partition(&optimizer, &values, scale);
        prop_assert!(whole.iter().all(|value| value.is_finite()));
        prop_assert_eq!(parts.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                        whole.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    }

    #[test]
    fn a_scale_of_zero_changes_no_parameter(optimizer in optimizers(), p in -10.0f32..10.0, g in -10.0f32..10.0) {
        prop_assert_eq!(partition(&optimizer, &[(p, g)], 0.0), vec![p]);
    }

    #[test]
    fn schedules_fall_from_one_to_the_final_ratio(ratio in 0.0f64..1.0, total in 1u64..500, step in 1u64..600) {
        for schedule in [Schedule::Cosine { final_ratio: ratio }, Schedule::Linear { final_ratio: ratio }] {
            let scale = schedule.scale(step, total);
            prop_assert!(scale <= 1.0 + 1e-12 && scale >= ratio - 1e-12);
            prop_assert!(schedule.scale(step + 1, total) <= scale + 1e-15);
        }
    }

    #[test]
    fn reduce_adds(values in prop::collection::vec((-1e3f32..1e3, -1e3f32..1e3), 0..50)) {
        let (mut sum, part): (Vec<f32>, Vec<f32>) = values.iter().copied().unzip();
        reduce(&mut sum, &part).unwrap();
        prop_assert_eq!(sum, values.iter().map(|(a, b)| a + b).collect::<Vec<_>>());
    }
}
