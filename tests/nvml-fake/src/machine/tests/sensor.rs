//! What the sensor makes of the truth, and what a limit makes of the demand.

use super::*;

const MS: u64 = 1_000_000;

fn field(machine: &Machine, field: u32, scope: u32, at_ns: u64) -> Result<u64, NvmlError> {
    read(machine.gpu(0, "").unwrap(), "580.95.05", field, scope, at_ns).map(|value| match value {
        FieldValue::U32(value) => u64::from(value),
        FieldValue::U64(value) => value,
    })
}

#[test]
fn part_time_sampling_misses_what_happens_between() {
    // Half of each 100 ms at 400 W, just where the sensor looks away: the last quarter is at 100 W.
    let machine = machine(
        r#"{"gpus":[{"sampling":{"power_update_ms":100,"power_sample_ms":25},
            "waveform":{"kind":"square","low_watts":100,"high_watts":400,"period_seconds":0.1}}]}"#,
    );
    assert_eq!(field(&machine, 186, 0, 10 * SECOND), Ok(100_000), "it never sees the peak");
    assert_eq!(field(&machine, 186, 0, 10 * SECOND + 60 * MS), Ok(100_000), "until the next update");
    assert_eq!(field(&machine, 185, 0, 10 * SECOND), Ok(250_000), "the mean of a second does");
    assert_eq!(machine.gpu(0, "").unwrap().energy_millijoules(10 * SECOND), Ok(2_500_000));
}

#[test]
fn a_counter_moves_in_its_own_steps() {
    let machine = machine(
        r#"{"gpus":[{"sampling":{"energy_update_ms":100,"energy_step_millijoules":7,"energy_gain":1.05},
            "waveform":{"kind":"constant","watts":200}}]}"#,
    );
    let counter = |at_ns| machine.gpu(0, "").unwrap().energy_millijoules(at_ns).unwrap();
    let expected = 10 * 200 * 1_050;
    assert_eq!(counter(10 * SECOND), expected - expected % 7);
    assert_eq!(counter(10 * SECOND + 99 * MS), counter(10 * SECOND));
    assert!(counter(10 * SECOND + 100 * MS) > counter(10 * SECOND));
}

#[test]
fn a_counter_of_samples_misses_what_they_miss() {
    let machine = machine(
        r#"{"gpus":[{"sampling":{"power_update_ms":100,"power_sample_ms":25,"energy_update_ms":100,
            "energy_sample_ms":25},
            "waveform":{"kind":"square","low_watts":100,"high_watts":400,"period_seconds":0.1}}]}"#,
    );
    let counter = |at_ns| machine.gpu(0, "").unwrap().energy_millijoules(at_ns).unwrap();
    for seconds in [3, 10, 4] {
        assert_eq!(counter(seconds * SECOND), seconds * 100_000, "whatever was asked before");
    }
}

#[test]
fn one_gain_is_of_power_and_energy_and_leaves_the_truth() {
    let mut machine =
        machine(r#"{"gpus":[{"sampling":{"gain":0.96},"waveform":{"kind":"constant","watts":200}}]}"#);
    let gpu = machine.gpu(0, "").unwrap();
    assert_eq!(gpu.energy_millijoules(10 * SECOND), Ok(1_920_000));
    assert_eq!((gpu.instant_milliwatts(SECOND), gpu.average_milliwatts(SECOND)), (192_000, 192_000));
    assert_eq!(truth(&mut machine, 10 * SECOND).energy_microjoules, 2_000_000_000);
}

#[test]
fn noise_is_that_of_the_seed_and_bounded() {
    let watts = |seed: u64, at_ns: u64| {
        let json = format!(
            r#"{{"gpus":[{{"sampling":{{"power_update_ms":20,"noise_watts":3,"seed":{seed}}},
                "waveform":{{"kind":"constant","watts":200}}}}]}}"#
        );
        machine(&json).gpu(0, "").unwrap().instant_milliwatts(at_ns)
    };
    let of = |seed| (0..100).map(|k| watts(seed, k * 20 * MS)).collect::<Vec<u32>>();
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert!(of(1).iter().all(|mw| (197_000..=203_000).contains(mw)));
    assert!(of(1).iter().any(|mw| *mw < 199_000) && of(1).iter().any(|mw| *mw > 201_000));
}

#[test]
fn a_limit_holds_after_the_limiters_window() {
    let mut machine =
        machine(r#"{"gpus":[{"limit_window_ms":500,"waveform":{"kind":"constant","watts":600}}]}"#);
    let set = |machine: &mut Machine, mw, at| machine.gpu_mut(0, "").unwrap().set_limit(mw, at).unwrap();
    set(&mut machine, 300_000, 2 * SECOND);
    assert_eq!(machine.gpu(0, "").unwrap().enforced_milliwatts(), 300_000, "what is said");
    assert_eq!(truth(&mut machine, 2 * SECOND + 499 * MS).power_watts, 600.0, "and what is drawn");
    assert_eq!(truth(&mut machine, 3 * SECOND).energy_microjoules, 1_650_000_000);

    let burst = r#"{"cmd":"set_waveform","gpu":0,"waveform":{"kind":"constant","watts":400}}"#;
    done(&mut machine, burst, 3 * SECOND);
    assert_eq!(truth(&mut machine, 4 * SECOND).energy_microjoules, 1_650_000_000 + 350_000_000);

    // A limit that is taken back before it holds was never there.
    set(&mut machine, 200_000, 5 * SECOND);
    set(&mut machine, 300_000, 5 * SECOND + 100 * MS);
    assert_eq!(truth(&mut machine, 6 * SECOND).power_watts, 300.0);
    assert_eq!(field(&machine, 74, 0, 6 * SECOND), Ok(3_000 * MS), "since 2.5 s, less the burst");
}

#[test]
fn a_cap_of_others_is_enforced_and_not_set() {
    let mut machine = machine(r#"{"gpus":[{"waveform":{"kind":"constant","watts":600}}]}"#);
    done(&mut machine, r#"{"cmd":"cap","gpu":0,"watts":250}"#, 0);
    let gpu = machine.gpu(0, "").unwrap();
    assert_eq!((gpu.limit_milliwatts(), gpu.enforced_milliwatts()), (700_000, 250_000));
    assert_eq!(field(&machine, 190, 0, SECOND), Ok(250_000));
    assert_eq!(field(&machine, 192, 0, SECOND), Ok(700_000));
    assert_eq!(truth(&mut machine, SECOND).energy_microjoules, 250_000_000);
    done(&mut machine, r#"{"cmd":"cap","gpu":0}"#, SECOND);
    assert_eq!(truth(&mut machine, 2 * SECOND).power_watts, 600.0);
}

#[test]
fn presets_have_what_was_captured() {
    let preset = |name: &str| machine(&format!(r#"{{"gpus":[{{"preset":"{name}"}}]}}"#));
    let at_ns = 5 * SECOND;
    let fields = |name: &str| {
        let machine = preset(name);
        [(185, 0), (186, 0), (185, 2), (186, 2), (185, 1)]
            .map(|(id, scope)| field(&machine, id, scope, at_ns).ok())
    };
    assert_eq!(fields("h100"), [Some(68_900), Some(68_900), Some(32_980), None, None]);
    assert_eq!(fields("a100"), [None, Some(49_700), None, None, None]);
    assert_eq!(fields("l40s"), [Some(66_200), Some(66_200), None, None, None]);
    assert_eq!(fields("t4"), [None, Some(33_500), None, None, None]);
    for name in ["h100", "a100", "l40s", "t4"] {
        let machine = preset(name);
        assert!(machine.gpu(0, "").unwrap().energy_millijoules(at_ns).is_ok(), "Volta and newer count");
    }
}
