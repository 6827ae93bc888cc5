//! Power and its limits: which figure there is, and what it means.

use super::*;
use crate::device::Class;

#[test]
fn a_failed_power_reading_is_a_failure_and_no_zero() {
    let mut bench = bench(vec![drawing(300.0)]);
    let before = read(&mut bench.backend);
    for function in ["nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"] {
        fail(&mut bench, function, Some(Code::NoPermission));
    }
    let failed = read(&mut bench.backend);
    assert_eq!((failed.failures.as_slice(), gpu(&failed, FIRST).up), (&["permission"][..], true));
    assert_eq!(gpu(&failed, FIRST).power, Power::default());
    for function in ["nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"] {
        fail(&mut bench, function, None);
    }
    let after = read(&mut bench.backend);
    let integrated = |reading: &Reading| energy(reading, FIRST, Source::Integrated).unwrap().clone();
    assert_eq!(integrated(&after).raw, integrated(&before).raw);
    assert_eq!(integrated(&after).unread, 1);
}

fn preset(preset: Preset) -> GpuConfig {
    GpuConfig { waveform: Some(Waveform::Constant { watts: 60.0 }), ..preset.gpu() }
}

#[test]
fn one_call_reads_all_of_a_gpus_power_and_a_tick_makes_no_other() {
    let mut bench = bench(vec![drawing(300.0)]);
    let before = bench.client.calls().unwrap();
    for _ in 0..10 {
        assert_eq!(bench.backend.read(false), Answer::Unchanged);
    }
    let after = bench.client.calls().unwrap();
    // The thread that waits for events calls on its own.
    let called = |name: &&String| !name.contains("Event") && after.get(*name) != before.get(*name);
    assert_eq!(after.keys().filter(called).collect::<Vec<_>>(), ["nvmlDeviceGetFieldValues"]);
    let begun = |calls: &BTreeMap<String, CallCount>| calls["nvmlDeviceGetFieldValues"].begun;
    assert_eq!(begun(&after) - begun(&before), 10);
}

#[test]
fn instant_and_average_power_are_those_of_real_gpus() {
    for (model, average, memory) in [
        (Preset::H100, true, true),
        (Preset::A100, false, false),
        (Preset::L40s, true, false),
        (Preset::T4, false, false),
    ] {
        let mut bench = bench(vec![preset(model)]);
        let power = gpu(&read(&mut bench.backend), FIRST).power;
        assert!(power.instant.gpu.is_some(), "{model:?}");
        assert_eq!(
            (power.average.gpu.is_some(), power.average.memory.is_some()),
            (average, memory),
            "{model:?}"
        );
        assert_eq!((power.instant.module, power.average.module, power.instant.memory), (None, None, None));
        assert_eq!(calls(&mut bench, "nvmlDeviceGetPowerUsage"), 0, "{model:?}");
    }
}

#[test]
fn the_older_call_is_shown_as_what_it_means() {
    for (model, instant) in
        [(Preset::H100, false), (Preset::A100, true), (Preset::L40s, false), (Preset::T4, true)]
    {
        let mut bench = bench(vec![GpuConfig { power_fields: false, ..preset(model) }]);
        let reading = read(&mut bench.backend);
        let power = gpu(&reading, FIRST).power;
        assert_eq!(
            (power.instant.gpu.is_some(), power.average.gpu.is_some()),
            (instant, !instant),
            "{model:?}"
        );
        assert!(energy(&reading, FIRST, Source::Integrated).is_some());
        assert_eq!(reading.failures, Vec::<&str>::new());
    }
}

#[test]
fn a_blank_is_no_power_and_no_energy() {
    let mut bench = bench(vec![drawing(300.0)]);
    let before = read(&mut bench.backend);
    for blank in [u64::from(u32::MAX), u64::MAX, i64::MAX as u64, 9_220_000_000_000_000_000] {
        let field = |field, value| Command::Field { gpu: GpuRef::Slot(0), field, value, error: None };
        for number in [185, 186, 74, 197, 198] {
            apply(&mut bench, &field(number, Some(blank | u64::from(u32::MAX))));
        }
        for function in [
            "nvmlDeviceGetPowerUsage",
            "nvmlDeviceGetTotalEnergyConsumption",
            "nvmlDeviceGetEnforcedPowerLimit",
        ] {
            let function = function.to_owned();
            apply(&mut bench, &Command::Blank { gpu: GpuRef::Slot(0), function, value: Some(blank) });
        }
        let reading = read(&mut bench.backend);
        let now = gpu(&reading, FIRST);
        assert_eq!((now.power.instant.gpu, now.power.average.gpu), (None, None), "{blank}");
        let raw = |reading: &Reading| energy(reading, FIRST, Source::Counter).unwrap().raw;
        assert_eq!(raw(&reading), raw(&before), "{blank}");
        assert_eq!(now.throttle_seconds, gpu(&before, FIRST).throttle_seconds);
    }
}

#[test]
fn a_modules_energy_is_its_own_and_counts_for_nothing() {
    let mut bench = bench(vec![GpuConfig { module_extra_watts: Some(200.0), ..drawing(400.0) }]);
    let reading = read(&mut bench.backend);
    let power = gpu(&reading, FIRST).power;
    assert_eq!((power.instant.gpu, power.instant.module), (Some(400.0), Some(600.0)));
    assert_eq!(power.average.module.is_some(), power.average.gpu.is_some());
    let module: Vec<_> = reading.energy.iter().filter(|e| e.meter.class == Class::Module).collect();
    assert_eq!((module.len(), module[0].scope, module[0].meter.source), (1, None, Source::Integrated));
    let counts = reading.energy.iter().filter(|e| e.scope.is_some()).count();
    assert_eq!(counts, 1, "the GPU's counter alone");
}

#[test]
fn limits_and_their_constraints_are_read_the_fixed_ones_once() {
    let mut bench = bench(vec![drawing(300.0)]);
    let cap = Command::Cap { gpu: GpuRef::Slot(0), watts: Some(450.0) };
    apply(&mut bench, &cap);
    let limits = gpu(&read(&mut bench.backend), FIRST).limits;
    let (default, min, max) = (Some(700.0), Some(200.0), Some(700.0));
    assert_eq!(limits, PowerLimits { enforced: Some(450.0), default, min, max });
    assert_eq!(calls(&mut bench, "nvmlDeviceGetPowerManagementLimitConstraints"), 1);
    assert_eq!(calls(&mut bench, "nvmlDeviceGetPowerManagementDefaultLimit"), 1);
    assert!(calls(&mut bench, "nvmlDeviceGetEnforcedPowerLimit") > 1);
}

#[test]
fn power_is_read_as_often_as_its_energy_hangs_on_it() {
    let (often, seldom) = (Duration::from_millis(100), Duration::from_secs(1));
    let without_counter = GpuConfig { energy_counter: false, ..preset(Preset::H100) };
    for (name, gpus, pace) in [
        ("means beside a counter miss nothing", vec![preset(Preset::H100), preset(Preset::L40s)], seldom),
        ("instants", vec![preset(Preset::A100)], often),
        ("instants of one", vec![preset(Preset::H100), preset(Preset::T4)], often),
        ("no counter", vec![without_counter], often),
        ("no GPU", vec![], seldom),
    ] {
        let mut bench = bench(gpus);
        bench.backend.metering = Metering { interval: 10 * seldom, gpu_interval: often };
        read(&mut bench.backend);
        assert_eq!(bench.backend.pace(often), pace, "{name}");
        bench.backend.metering.interval = often;
        assert_eq!(bench.backend.pace(often), often, "{name}: windows are as short");
    }
    let mut bench = bench(vec![preset(Preset::H100)]);
    bench.backend.metering = Metering { interval: seldom, gpu_interval: often };
    for (counter, pace) in [(Some(Code::NoPermission), often), (None, seldom)] {
        fail(&mut bench, "nvmlDeviceGetTotalEnergyConsumption", counter);
        // The counter of this reading decides on the next one.
        read(&mut bench.backend);
        read(&mut bench.backend);
        assert_eq!(bench.backend.pace(often), pace, "{counter:?}");
    }
}
