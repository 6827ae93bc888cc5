//! Throttling and PCIe: counters that are added up here.

use super::*;

fn step(bench: &mut Bench) -> GpuReading {
    bench.client.advance(Duration::from_millis(100)).unwrap();
    gpu(&read(&mut bench.backend), FIRST).clone()
}

fn throttled(reading: &GpuReading) -> Vec<(&'static str, f64)> {
    reading.throttle_seconds.iter().copied().filter(|(_, seconds)| *seconds > 0.0).collect()
}

#[test]
fn throttling_is_counted_by_reason_on_drivers_before_and_after_the_fields_moved() {
    for driver_version in ["580.95.05", "570.86.15"] {
        let driver_version = driver_version.to_owned();
        let mut bench = bench_of(&Config { clock: ClockKind::Manual, driver_version, ..Config::default() });
        let reasons = [
            (ThrottleReason::SyncBoost, "sync_boost"),
            (ThrottleReason::SwThermal, "sw_thermal_slowdown"),
            (ThrottleReason::HwThermal, "hw_thermal_slowdown"),
            (ThrottleReason::HwPowerBrake, "hw_power_brake_slowdown"),
        ];
        for (reason, label) in reasons {
            let throttle = |active| Command::Throttle { gpu: GpuRef::Slot(0), reason, active };
            let before = step(&mut bench);
            apply(&mut bench, &throttle(true));
            let after = step(&mut bench);
            apply(&mut bench, &throttle(false));
            let time = |reading: &GpuReading| {
                throttled(reading).iter().find(|(l, _)| *l == label).map_or(0.0, |t| t.1)
            };
            assert!((time(&after) - time(&before) - 0.1).abs() < 1e-9, "{label}: {after:?}");
        }
        assert_eq!(calls(&mut bench, "nvmlDeviceGetCurrentClocksEventReasons"), 0, "counters say it");
    }
}

#[test]
fn the_power_cap_is_a_reason_too() {
    let gpu = GpuConfig { default_limit_watts: 300.0, ..drawing(650.0) };
    let mut bench = bench_of(&Config { clock: ClockKind::Manual, gpus: vec![gpu], ..Config::default() });
    let (before, after) = (step(&mut bench), step(&mut bench));
    let time = |reading: &GpuReading| reading.throttle_seconds[0];
    assert_eq!(time(&after).0, "sw_power_cap");
    assert!((time(&after).1 - time(&before).1 - 0.1).abs() < 1e-9);
}

#[test]
fn without_counters_throttling_is_watched_by_its_bits() {
    let gpu = GpuConfig { unsupported_fields: vec![74, 76, 269, 270, 271], ..drawing(300.0) };
    let mut bench = bench_of(&Config { clock: ClockKind::Manual, gpus: vec![gpu], ..Config::default() });
    let reason = ThrottleReason::HwThermal;
    apply(&mut bench, &Command::Throttle { gpu: GpuRef::Slot(0), reason, active: true });
    step(&mut bench);
    let reading = step(&mut bench);
    let labels: Vec<_> = throttled(&reading).into_iter().map(|(label, _)| label).collect();
    assert!(labels.contains(&"hw_thermal_slowdown"), "{labels:?}");
    assert_eq!(reading.throttle_seconds.len(), 6, "each begins at zero");
}

#[test]
fn bytes_are_added_up_across_wraps() {
    // 32 bits are full after a tenth of a second, near enough.
    let gpu = GpuConfig {
        pcie_receive_bytes_per_second: 40_000_000_000,
        pcie_transmit_bytes_per_second: 7_000_000_000,
        ..drawing(300.0)
    };
    let mut bench = bench_of(&Config { clock: ClockKind::Manual, gpus: vec![gpu], ..Config::default() });
    let first = step(&mut bench).pcie;
    for _ in 0..9 {
        step(&mut bench);
    }
    let last = step(&mut bench).pcie;
    assert_eq!(last.received.unwrap() - first.received.unwrap(), 40_000_000_000);
    assert_eq!(last.transmitted.unwrap() - first.transmitted.unwrap(), 7_000_000_000);
    assert_eq!(calls(&mut bench, "nvmlDeviceGetPcieThroughput"), 0, "it would block");
}

#[test]
fn what_the_driver_wants_done_has_a_name() {
    let mut bench = bench(vec![drawing(300.0)]);
    assert_eq!(gpu(&read(&mut bench.backend), FIRST).recovery_action, Some("none"));
    apply(&mut bench, &Command::Xid { gpu: GpuRef::Slot(0), xid: 95, recovery_action: Some(1) });
    assert_eq!(gpu(&read(&mut bench.backend), FIRST).recovery_action, Some("gpu_reset"));
}
