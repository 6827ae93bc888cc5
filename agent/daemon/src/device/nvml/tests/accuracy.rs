//! How near the truth: random loads on sensors as captures show them, in a time of the test's own.

use nvidia_ml::machine::gpu::Gpu;

use super::*;
use crate::device::integrate::Integrator;

const TICK_NS: u64 = 100_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// What a run's counter and integrals are off by, as shares of what was drawn.
struct Off {
    counter: f64,
    of_means: f64,
    of_instants: f64,
}

/// Reads a GPU ten times a second for a minute, and compares from the end of the first mean on.
fn run(preset: Preset, waveform: Waveform) -> Off {
    let gpu = Gpu::new(GpuConfig { waveform: Some(waveform), ..preset.gpu() }, 0, 0).unwrap();
    let (mut means, mut instants) = (Integrator::default(), Integrator::default());
    // Not when the sensor updates, which is on the tenth.
    let from = 2 * SECOND_NS + TICK_NS / 7;
    let to = from + 60 * SECOND_NS;
    for now in (from..=to).step_by(TICK_NS as usize) {
        let at = Duration::from_nanos(now);
        means.add(u64::from(gpu.average_milliwatts(now)), at, Duration::from_secs(1));
        instants.add(u64::from(gpu.instant_milliwatts(now)), at, Duration::from_secs(1));
    }
    let energy = |at| gpu.truth(at).energy_microjoules;
    let truth = (energy(to) - energy(from)) as f64;
    let counted = gpu.energy_millijoules(to).unwrap() - gpu.energy_millijoules(from).unwrap();
    let off = |microjoules: u64| (microjoules as f64 - truth).abs() / truth;
    Off {
        counter: off(counted * 1_000),
        of_means: off(means.microjoules()),
        of_instants: off(instants.microjoules()),
    }
}

/// Numbers from 0 to 1 that a seed decides.
pub(super) fn shares(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn square(share: &mut impl FnMut() -> f64, shortest_seconds: f64) -> Waveform {
    let low_watts = 70.0 + 100.0 * share();
    Waveform::Square {
        low_watts,
        high_watts: low_watts + 20.0 + 350.0 * share(),
        period_seconds: shortest_seconds + 4.0 * share(),
        duty: 0.2 + 0.6 * share(),
    }
}

#[test]
fn a_counter_is_right_within_half_a_percent_on_any_load() {
    let mut worst: f64 = 0.0;
    for seed in 0..1_000 {
        let mut share = shares(seed);
        let waveform = match seed % 3 {
            0 => square(&mut share, 0.01),
            1 => Waveform::Sine { low_watts: 70.0, high_watts: 650.0, period_seconds: 0.01 + 3.0 * share() },
            _ => {
                let step_seconds = 0.01 + share();
                Waveform::Random { low_watts: 70.0, high_watts: 690.0, step_seconds, seed }
            }
        };
        for preset in [Preset::H100, Preset::L40s] {
            worst = worst.max(run(preset, waveform.clone()).counter);
        }
    }
    println!("counter: off by {:.3} % at most", worst * 100.0);
    assert!(worst <= 0.005, "{worst}");
}

#[test]
fn integrated_it_is_right_within_two_percent_on_squares_of_a_second_and_longer() {
    let (mut of_means, mut of_instants) = (0f64, 0f64);
    for seed in 0..1_000 {
        let waveform = square(&mut shares(seed), 1.0);
        let off = run(Preset::H100, waveform);
        (of_means, of_instants) = (of_means.max(off.of_means), of_instants.max(off.of_instants));
    }
    println!("of means: off by {:.2} % at most; of instants: {:.2} %", of_means * 100.0, of_instants * 100.0);
    assert!(of_means <= 0.02, "means: {of_means}");
    assert!(of_instants <= 0.05, "instants, which a part-time sensor takes: {of_instants}");
}
