//! Xids and memory errors, in their own thread.

use super::*;

const WAIT: &str = "nvmlEventSetWait_v2";

/// Until the thread waits for events in its set of that number.
fn until_it_waits(bench: &mut Bench, sets: u64) {
    bench.client.wait_for_calls("nvmlEventSetCreate", PATIENCE, |calls| calls.begun >= sets).unwrap();
    bench.client.wait_for_calls(WAIT, PATIENCE, |calls| calls.waiting > 0).unwrap();
}

/// Raises an Xid and waits until it is counted.
fn raise(bench: &mut Bench, slot: usize, xid: u64) {
    let (log, uuid) = (bench.backend.log.clone(), [FIRST, SECOND][slot]);
    let counted = |log: &EventLog| {
        let events = log.of(uuid);
        // 48 is a double-bit error too.
        (events.xid.get(&xid).copied().unwrap_or(0), if xid == 48 { events.double_bit_ecc } else { None })
    };
    let before = counted(&log);
    apply(bench, &Command::Xid { gpu: GpuRef::Slot(slot), xid, recovery_action: None });
    let is_counted = |_| {
        let now = counted(&log);
        now.0 > before.0 && (xid != 48 || now.1 > before.1)
    };
    bench.client.wait_for_calls(WAIT, PATIENCE, is_counted).unwrap();
}

fn xids(bench: &Bench, uuid: &str) -> Vec<(u64, u64)> {
    bench.backend.log.of(uuid).xid.into_iter().collect()
}

#[test]
fn xids_and_memory_errors_are_counted_by_gpu() {
    let mut bench = bench(vec![drawing(300.0), drawing(100.0)]);
    until_it_waits(&mut bench, 1);
    for (slot, xid) in [(0, 79), (1, 48), (0, 79), (0, 13)] {
        raise(&mut bench, slot, xid);
    }
    assert_eq!((xids(&bench, FIRST), xids(&bench, SECOND)), (vec![(13, 1), (79, 2)], vec![(48, 1)]));
    let ecc = |uuid| bench.backend.log.of(uuid).double_bit_ecc;
    assert_eq!((ecc(FIRST), ecc(SECOND)), (Some(0), Some(1)));
    assert_eq!(read(&mut bench.backend).gpu_events.of(FIRST).last_xid, Some(13));
}

#[test]
fn events_are_counted_while_readings_fail_or_hang() {
    let mut bench = bench(vec![drawing(300.0)]);
    let reading = read(&mut bench.backend);
    until_it_waits(&mut bench, 1);
    fail(&mut bench, "nvmlDeviceGetFieldValues", Some(Code::Unknown));
    read(&mut bench.backend);
    raise(&mut bench, 0, 31);
    assert_eq!(reading.gpu_events.of(FIRST).xid[&31], 1, "an old reading shows it too");
}

#[test]
fn a_gpu_that_is_back_is_watched_again_and_so_are_the_others_meanwhile() {
    let mut bench = bench(vec![drawing(300.0), drawing(100.0)]);
    until_it_waits(&mut bench, 1);
    raise(&mut bench, 0, 79);
    lose(&mut bench, LossMode::GpuIsLost);
    let lost = read(&mut bench.backend);
    assert_eq!((gpu(&lost, FIRST).lost, lost.gpu_events.of(FIRST).last_xid), (Some("gpu_lost"), Some(79)));
    until_it_waits(&mut bench, 2);
    raise(&mut bench, 1, 43);
    apply(&mut bench, &Command::Restore { gpu: GpuRef::Slot(0), restart_counters: false });
    let back = read(&mut bench.backend);
    assert_eq!(back.gpu_events.of(FIRST).last_xid, None, "its next loss is another");
    until_it_waits(&mut bench, 3);
    raise(&mut bench, 0, 79);
    assert_eq!((xids(&bench, FIRST), xids(&bench, SECOND)), (vec![(79, 2)], vec![(43, 1)]));
}

#[test]
fn after_a_driver_reload_counts_stand_and_go_on() {
    let mut bench = bench(vec![drawing(300.0)]);
    until_it_waits(&mut bench, 1);
    raise(&mut bench, 0, 13);
    apply(&mut bench, &Command::ReloadDriver);
    read(&mut bench.backend);
    assert!(matches!(bench.backend.read(true), Answer::Failed(_)));
    assert_eq!(xids(&bench, FIRST), [(13, 1)], "they outlive the driver");
    bench.client.wait_for_calls("nvmlShutdown", PATIENCE, |calls| calls.begun > 0).unwrap();
    while !matches!(bench.backend.read(true), Answer::Reading(_)) {}
    until_it_waits(&mut bench, 2);
    raise(&mut bench, 0, 13);
    assert_eq!(xids(&bench, FIRST), [(13, 2)]);
}

#[test]
fn a_wait_that_hangs_takes_nobody_along() {
    let mut bench = bench(vec![drawing(300.0)]);
    until_it_waits(&mut bench, 1);
    apply(&mut bench, &Command::Hang { function: WAIT.to_owned() });
    assert!(gpu(&read(&mut bench.backend), FIRST).up);
    let nothing = NvmlBackend::new(Path::new("/nonexistent"), false, Gpus::All, METERING);
    drop(std::mem::replace(&mut bench.backend, nothing));
    apply(&mut bench, &Command::Unhang { function: None });
    bench.client.wait_for_calls("nvmlShutdown", PATIENCE, |calls| calls.begun == 1).unwrap();
}
