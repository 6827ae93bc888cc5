//! GPUs and drivers that go, and come back.

use super::*;
use crate::window::Windows;

#[test]
fn a_lost_gpu_keeps_its_place_and_its_counter() {
    for (mode, reason) in [(LossMode::GpuIsLost, "gpu_lost"), (LossMode::NotFound, "not_found")] {
        let mut bench = bench(vec![drawing(300.0), drawing(100.0)]);
        let before = read(&mut bench.backend);
        lose(&mut bench, mode);
        // New GPUs are looked for while it is lost, and indices have shifted.
        bench.backend.discovered_at = None;
        let lost = read(&mut bench.backend);
        assert!(lost.failures.contains(&reason), "{:?}", lost.failures);
        assert_eq!((lost.gpus.len(), gpu(&lost, FIRST).up, gpu(&lost, SECOND).up), (2, false, true));
        assert_eq!(gpu(&lost, FIRST).utilization, None);
        assert_eq!(gpu(&lost, FIRST).model, "NVIDIA H100 80GB HBM3");
        let counter = |reading: &Reading, uuid| energy(reading, uuid, Source::Counter).unwrap().clone();
        assert_eq!(counter(&lost, FIRST), counter(&before, FIRST), "it stands still");
        assert!(counter(&lost, SECOND).at > counter(&before, SECOND).at, "the other goes on");
        apply(&mut bench, &Command::Restore { gpu: GpuRef::Slot(0), restart_counters: false });
        bench.backend.discovered_at = None;
        let back = read(&mut bench.backend);
        assert!(gpu(&back, FIRST).up);
        let integrated = energy(&back, FIRST, Source::Integrated).unwrap();
        let unseen = energy(&before, FIRST, Source::Integrated).unwrap();
        assert_eq!(
            (integrated.raw, integrated.unread),
            (unseen.raw, 1),
            "no joules for the time it was lost"
        );
    }
}

#[test]
fn a_gpu_that_fails_some_calls_only_is_not_believed_in_the_others() {
    let mut bench = bench(vec![drawing(300.0)]);
    let functions = Some(vec!["nvmlDeviceGetTotalEnergyConsumption".to_owned()]);
    apply(&mut bench, &Command::Lose { gpu: GpuRef::Slot(0), mode: LossMode::GpuIsLost, functions });
    let reading = read(&mut bench.backend);
    assert!(!gpu(&reading, FIRST).up);
}

/// The driver is taken away under the agent, and comes back.
#[test]
fn a_driver_that_is_gone_fails_each_time_and_is_let_go_of() {
    let mut bench = bench(vec![drawing(300.0)]);
    let before = read(&mut bench.backend);
    let function = "nvmlDeviceGetCount_v2".to_owned();
    apply(&mut bench, &Command::Fail { function: function.clone(), error: Some(Code::DriverNotLoaded) });
    bench.backend.discovered_at = None;
    for _ in 0..5 {
        let answer = bench.backend.read(false);
        assert!(matches!(answer, Answer::Failed(e) if e.reason == "driver_not_loaded"), "between tries too");
    }
    // The thread that waits for events lets go of it within a second.
    let shut = |bench: &mut Bench, times| {
        bench.client.wait_for_calls("nvmlShutdown", PATIENCE, |calls| calls.begun == times).unwrap();
    };
    shut(&mut bench, 1);
    apply(&mut bench, &Command::Fail { function, error: None });
    bench.backend.tried_at = None;
    let back = read(&mut bench.backend);
    assert!(gpu(&back, FIRST).up && back.gpus.len() == 1);
    let raw = |reading: &Reading| energy(reading, FIRST, Source::Counter).unwrap().raw;
    assert!(raw(&back) >= raw(&before));
    assert_eq!(bench.client.calls().unwrap()["nvmlInit_v2"].begun, 2);
    let nothing = NvmlBackend::new(Path::new("/nonexistent"), false, Gpus::All, METERING);
    drop(std::mem::replace(&mut bench.backend, nothing));
    shut(&mut bench, 2);
}

/// Reads until the driver was initialised anew: the thread that waits for events lets go of the last within a
/// second, in which nothing is asked of it.
fn read_after_reload(bench: &mut Bench) -> Reading {
    let (mut shut, mut answer) = (false, bench.backend.read(true));
    while !matches!(&answer, Answer::Reading(reading) if reading.gpus.iter().all(|gpu| gpu.up)) {
        if bench.backend.session.is_none() && !std::mem::replace(&mut shut, true) {
            bench.client.wait_for_calls("nvmlShutdown", PATIENCE, |calls| calls.begun > 0).unwrap();
        }
        answer = bench.backend.read(true);
    }
    let Answer::Reading(reading) = answer else { unreachable!("it is what was waited for") };
    reading
}

#[test]
fn a_reloaded_driver_is_a_reset_and_no_joules() {
    let mut bench =
        bench_of(&Config { gpus: vec![drawing(650.0)], clock: ClockKind::Manual, ..Config::default() });
    bench.client.advance(Duration::from_secs(100)).unwrap();
    let before = read(&mut bench.backend);
    let mut windows = Windows::default();
    windows.close(&before.energy);
    apply(&mut bench, &Command::ReloadDriver);
    let lost = read(&mut bench.backend);
    assert_eq!((gpu(&lost, FIRST).up, gpu(&lost, FIRST).lost), (false, Some("uninitialized")));
    let after = read_after_reload(&mut bench);
    let raw = |reading: &Reading| energy(reading, FIRST, Source::Counter).unwrap().raw;
    assert!(raw(&before) >= 60_000_000 && raw(&after) < 1_000_000, "{} {}", raw(&before), raw(&after));
    let closed = windows.close(&after.energy);
    let counter = closed.slices.iter().find(|slice| slice.meter.source == Source::Counter).unwrap();
    assert_eq!((counter.microjoules, counter.gaps.as_slice()), (0, &[crate::counter::GapReason::Reset][..]));
}

#[test]
fn what_was_unsupported_is_asked_for_again_after_a_reload() {
    let mut bench = bench(vec![drawing(300.0)]);
    let field = |error| Command::Field { gpu: GpuRef::Slot(0), field: 186, value: None, error };
    apply(&mut bench, &field(Some(Code::NotSupported)));
    let power = |reading: &Reading| gpu(reading, FIRST).power.instant.gpu;
    assert_eq!(power(&read(&mut bench.backend)), None);
    apply(&mut bench, &field(None));
    assert_eq!(power(&read(&mut bench.backend)), None, "it is known not to be there");
    apply(&mut bench, &Command::ReloadDriver);
    assert_eq!(power(&read_after_reload(&mut bench)), Some(300.0));
}

#[test]
fn counters_of_a_lost_gpu_stand_still_and_what_it_did_meanwhile_is_left_out() {
    let busy = GpuConfig { pcie_receive_bytes_per_second: 1_000, ..drawing(300.0) };
    let mut bench = bench_of(&Config { clock: ClockKind::Manual, gpus: vec![busy], ..Config::default() });
    let step = Duration::from_millis(100);
    let throttle =
        Command::Throttle { gpu: GpuRef::Slot(0), reason: ThrottleReason::SyncBoost, active: true };
    apply(&mut bench, &throttle);
    read(&mut bench.backend);
    bench.client.advance(step).unwrap();
    let before = gpu(&read(&mut bench.backend), FIRST).clone();
    assert!(before.throttle_seconds.contains(&("sync_boost", 0.1)) && before.pcie.received > Some(0));
    lose(&mut bench, LossMode::GpuIsLost);
    bench.client.advance(step).unwrap();
    let lost = gpu(&read(&mut bench.backend), FIRST).clone();
    assert_eq!((lost.throttle_seconds, lost.pcie), (before.throttle_seconds.clone(), before.pcie));
    assert_eq!(
        (lost.lost, lost.power, lost.limits),
        (Some("gpu_lost"), Power::default(), PowerLimits::default())
    );
    apply(&mut bench, &Command::Restore { gpu: GpuRef::Slot(0), restart_counters: false });
    let back = gpu(&read(&mut bench.backend), FIRST).clone();
    assert_eq!((back.up, back.lost, back.pcie), (true, None, before.pcie));
    bench.client.advance(step).unwrap();
    let next = gpu(&read(&mut bench.backend), FIRST).clone();
    assert!(next.throttle_seconds.contains(&("sync_boost", 0.2)), "{:?}", next.throttle_seconds);
}

#[test]
fn while_a_gpu_is_lost_the_library_is_loaded_anew_now_and_then() {
    let mut bench = bench(vec![drawing(300.0), drawing(100.0)]);
    lose(&mut bench, LossMode::GpuIsLost);
    read(&mut bench.backend);
    bench.backend.reopen_after = Duration::ZERO;
    assert_eq!(bench.backend.read(false), Answer::Unchanged, "the others' figures stand");
    bench.backend.reopen_after = REOPEN;
    bench.client.wait_for_calls("nvmlShutdown", PATIENCE, |calls| calls.begun == 1).unwrap();
    let mut answer = bench.backend.read(false);
    while answer == Answer::Unchanged {
        answer = bench.backend.read(false);
    }
    let Answer::Reading(reading) = answer else { panic!("{answer:?}") };
    assert_eq!((gpu(&reading, FIRST).up, gpu(&reading, SECOND).up), (false, true));
    assert_eq!(calls(&mut bench, "nvmlInit_v2"), 2);
}
