//! Energy, power and counters against the truth.

use std::time::Duration;

use nvidia_ml::machine::command::{Command, GpuRef, ThrottleReason};
use nvidia_ml::machine::config::{Config, GpuConfig, PowerUsage, Preset};
use nvidia_ml::machine::waveform::Waveform;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;

use super::{constant, fake, fake_with, field, manual};

#[test]
fn the_energy_counter_is_the_truth_to_a_millijoule() {
    let mut fake = fake(Waveform::Sine { low_watts: 99.0, high_watts: 699.0, period_seconds: 1.7 });
    let device = fake.nvml.device_by_index(0).unwrap();
    for step in 0..200 {
        let now_ns = fake.client.advance(Duration::from_nanos(17_654_321 * step)).unwrap();
        let truth = &fake.client.truth(Some(now_ns)).unwrap()[0];
        assert_eq!(device.total_energy_consumption().unwrap(), truth.energy_microjoules / 1_000);
        assert_eq!(field(&fake.nvml, 83).unwrap(), truth.energy_microjoules / 1_000);
    }
}

#[test]
fn on_the_real_clock_the_counter_lies_between_the_truths_around_it() {
    let gpu = GpuConfig { waveform: Some(constant(650.0)), ..GpuConfig::default() };
    let mut fake = fake_with(&Config { gpus: vec![gpu], ..Config::default() });
    let device = fake.nvml.device_by_index(0).unwrap();
    for _ in 0..50 {
        let before = fake.client.truth(None).unwrap()[0].energy_microjoules / 1_000;
        let counter = device.total_energy_consumption().unwrap();
        let after = fake.client.truth(None).unwrap()[0].energy_microjoules / 1_000;
        assert!((before..=after).contains(&counter), "{before} <= {counter} <= {after}");
    }
}

#[test]
fn average_power_lags_instant_power() {
    let mut fake = fake(Waveform::Steps { steps: vec![(0.0, 100.0), (10.0, 500.0)] });
    fake.client.advance(Duration::from_millis(10_250)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.power_usage().unwrap(), 200_000, "a mean of one second");
    assert_eq!((field(&fake.nvml, 185).unwrap(), field(&fake.nvml, 186).unwrap()), (200_000, 500_000));
    fake.client.advance(Duration::from_secs(1)).unwrap();
    assert_eq!(device.power_usage().unwrap(), 500_000);
}

#[test]
fn an_older_gpu_reports_instant_power_and_lacks_the_rest() {
    let waveform = Some(Waveform::Steps { steps: vec![(0.0, 100.0), (10.0, 500.0)] });
    let gpu = GpuConfig {
        power_usage: PowerUsage::Instant,
        energy_counter: false,
        power_fields: false,
        waveform,
        ..GpuConfig::default()
    };
    let mut fake = fake_with(&manual(vec![gpu]));
    fake.client.advance(Duration::from_millis(10_250)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.power_usage().unwrap(), 500_000);
    assert!(matches!(device.total_energy_consumption(), Err(NvmlError::NotSupported)));
    assert!(matches!(field(&fake.nvml, 83), Err(NvmlError::NotSupported)));
    assert!(matches!(field(&fake.nvml, 186), Err(NvmlError::NotSupported)));
}

#[test]
fn counters_by_field() {
    let gpu = GpuConfig { pcie_receive_bytes_per_second: 3_000_000_000, ..GpuConfig::default() };
    let mut fake = fake_with(&manual(vec![gpu]));
    let throttle =
        Command::Throttle { gpu: GpuRef::from(0), reason: ThrottleReason::SwThermal, active: true };
    fake.client.apply(&throttle).unwrap();
    fake.client.advance(Duration::from_secs(2)).unwrap();
    assert_eq!(field(&fake.nvml, 198).unwrap(), 6_000_000_000 - (1 << 32), "byte counters wrap");
    // nvml-wrapper takes the numbers of older drivers and translates them for this one: 251 becomes 269.
    assert_eq!(field(&fake.nvml, 251).unwrap(), 2_000_000_000);
    let device = fake.nvml.device_by_index(0).unwrap();
    assert!(device.current_throttle_reasons().unwrap().contains(ThrottleReasons::SW_THERMAL_SLOWDOWN));
    let several = device.field_values_for(&[FieldId(83), FieldId(9_999)]).unwrap();
    assert!(several[0].as_ref().is_ok_and(|sample| sample.value.is_ok()));
    assert!(several[1].as_ref().is_ok_and(|sample| sample.value.is_err()), "each has its own answer");
}

#[test]
fn a_read_on_the_real_clock_is_compared_with_the_truth_of_its_instant() {
    let (low_watts, high_watts) = (70.0, 690.0);
    let waveform = Waveform::Random { low_watts, high_watts, step_seconds: 0.003, seed: 5 };
    let gpu = GpuConfig { waveform: Some(waveform), ..GpuConfig::default() };
    let mut fake = fake_with(&Config { gpus: vec![gpu], ..Config::default() });
    let device = fake.nvml.device_by_index(0).unwrap();
    for _ in 0..50 {
        let counter = device.total_energy_consumption().unwrap();
        let truth = fake.client.last_read(0, "nvmlDeviceGetTotalEnergyConsumption").unwrap();
        assert_eq!(counter, truth.counted_microjoules / 1_000);
    }
}

#[test]
fn an_a100_shows_a_quarter_of_the_time() {
    let (low_watts, high_watts) = (100.0, 400.0);
    let peaks = Waveform::Square { low_watts, high_watts, period_seconds: 0.1, duty: 0.5 };
    let gpu = GpuConfig { waveform: Some(peaks), ..Preset::A100.gpu() };
    let mut fake = fake_with(&manual(vec![gpu]));
    fake.client.advance(Duration::from_secs(5)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert_eq!(device.name().unwrap(), "NVIDIA A100-SXM4-40GB");
    assert_eq!(device.power_usage().unwrap(), 100_000, "the sensor looks at the idle quarter alone");
    assert_eq!(device.total_energy_consumption().unwrap(), 1_250_000);
    let values = device.field_values_for(&[FieldId(185), FieldId(186)]).unwrap();
    let codes: Vec<bool> = values.into_iter().map(|value| value.unwrap().value.is_ok()).collect();
    assert_eq!(codes, [false, true], "GA100 has no average");
}
