use super::command::{Answer, Command, GpuRef};
use super::command::{Process, ThrottleReason, Truth};
use super::fields::{FieldValue, read};
use super::waveform::Waveform;
use super::*;

mod driver;
mod sensor;

const SECOND: u64 = 1_000_000_000;
const ENERGY: &str = "nvmlDeviceGetTotalEnergyConsumption";

fn machine(json: &str) -> Machine {
    let mut machine = Machine::new(serde_json::from_str(json).unwrap(), 0).unwrap();
    machine.init().unwrap();
    machine
}

fn command(machine: &mut Machine, json: &str, now_ns: u64) -> Answer {
    machine.apply(serde_json::from_str(json).unwrap(), now_ns)
}

fn done(machine: &mut Machine, json: &str, now_ns: u64) {
    assert_eq!(command(machine, json, now_ns), Answer::Done { at_monotonic_ns: now_ns });
}

fn truth(machine: &mut Machine, at_ns: u64) -> Truth {
    match command(machine, r#"{"cmd":"truth"}"#, at_ns) {
        Answer::Gpus(gpus) => gpus[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_counter_is_the_truth_rounded_down_to_millijoules() {
    let mut machine = machine(
        r#"{"gpus":[{"waveform":{"kind":"sine","low_watts":99,"high_watts":699,"period_seconds":7}}]}"#,
    );
    for step in 0..1_000 {
        let at_ns = step * 12_345_678;
        let counter = machine.gpu(0, ENERGY).unwrap().energy_millijoules(at_ns).unwrap();
        assert_eq!(counter, truth(&mut machine, at_ns).energy_microjoules / 1_000);
    }
}

#[test]
fn a_limit_clips_the_truth_from_the_moment_it_is_set() {
    let mut machine = machine(r#"{"gpus":[{"waveform":{"kind":"constant","watts":500}}]}"#);
    machine.gpu_mut(0, "").unwrap().set_limit(300_000, 2 * SECOND).unwrap();
    assert_eq!(truth(&mut machine, 4 * SECOND).energy_microjoules, 1_600_000_000);
    let gpu = machine.gpu(0, "").unwrap();
    assert!(gpu.is_power_capped(3 * SECOND) && !gpu.is_power_capped(SECOND));
    assert_eq!(read(gpu, "580.95.05", 74, 0, 4 * SECOND), Ok(FieldValue::U64(2 * SECOND)));
    assert_eq!(gpu.utilization(4 * SECOND), Ok((68, 34)), "a limited GPU is as busy as its demand");
    assert_eq!(machine.gpu_mut(0, "").unwrap().set_limit(100_000, 0), Err(NvmlError::InvalidArgument));
}

#[test]
fn average_lags_instant_by_its_window() {
    let machine = machine(r#"{"gpus":[{"waveform":{"kind":"steps","steps":[[0,100],[10,500]]}}]}"#);
    let gpu = machine.gpu(0, "").unwrap();
    let at_ns = 10 * SECOND + SECOND / 4;
    assert_eq!(read(gpu, "", 186, 0, at_ns), Ok(FieldValue::U32(500_000)));
    assert_eq!(read(gpu, "", 185, 0, at_ns), Ok(FieldValue::U32(200_000)));
    assert_eq!(gpu.power_usage_milliwatts(at_ns), 200_000);
    assert_eq!(read(gpu, "", 186, 1, at_ns), Err(NvmlError::NotSupported), "no module scope");
}

#[test]
fn a_reload_restarts_counters_and_limits_but_not_the_truth() {
    let mut machine = machine(r#"{"gpus":[{"waveform":{"kind":"constant","watts":500}}]}"#);
    machine.gpu_mut(0, "").unwrap().set_limit(300_000, 0).unwrap();
    done(&mut machine, r#"{"cmd":"reload_driver"}"#, 10 * SECOND);
    let gpu = machine.gpu(0, ENERGY).unwrap();
    assert_eq!(gpu.energy_millijoules(11 * SECOND), Ok(500_000));
    assert_eq!(gpu.limit_milliwatts(), 700_000);
    assert_eq!(gpu.power_capped_ns(11 * SECOND), 0);
    assert_eq!(truth(&mut machine, 11 * SECOND).energy_microjoules, 3_500_000_000);
}

#[test]
fn a_lost_gpu_fails_as_told() {
    let mut machine = machine("{}");
    done(&mut machine, r#"{"cmd":"lose","gpu":0,"mode":"gpu_is_lost"}"#, 0);
    assert_eq!(machine.gpu(0, ENERGY).unwrap_err(), NvmlError::GpuIsLost);
    assert_eq!(machine.present().count(), 2);
    done(&mut machine, r#"{"cmd":"lose","gpu":0,"mode":"not_found"}"#, 0);
    assert_eq!(machine.present().collect::<Vec<_>>(), [1], "indices shift");
    let one = format!(r#"{{"cmd":"lose","gpu":0,"mode":"gpu_is_lost","functions":["{ENERGY}"]}}"#);
    done(&mut machine, &one, 0);
    assert!(machine.gpu(0, ENERGY).is_err() && machine.gpu(0, "nvmlDeviceGetPowerUsage").is_ok());
    done(&mut machine, r#"{"cmd":"restore","gpu":0,"restart_counters":true}"#, SECOND);
    assert_eq!(machine.gpu(0, ENERGY).unwrap().energy_millijoules(SECOND), Ok(0));
}

#[test]
fn events_reach_the_sets_that_watch_for_them() {
    let mut machine = machine("{}");
    let (all, ecc) = (machine.events.create(), machine.events.create());
    machine.events.register(all, 0, 10).unwrap();
    machine.events.register(ecc, 0, 2).unwrap();
    assert_eq!(machine.events.register(ecc, 0, 4), Err(NvmlError::NotSupported));
    done(&mut machine, r#"{"cmd":"xid","gpu":1,"xid":79}"#, 0);
    done(&mut machine, r#"{"cmd":"xid","gpu":0,"xid":48,"recovery_action":1}"#, 0);
    assert_eq!(machine.next_event(all, ""), Ok(Some(Event { slot: 0, kind: 2, data: 0 })));
    assert_eq!(machine.next_event(all, ""), Ok(Some(Event { slot: 0, kind: 8, data: 48 })));
    assert_eq!(machine.next_event(all, ""), Ok(None));
    assert_eq!(machine.next_event(ecc, "").unwrap().unwrap().kind, 2);
    assert_eq!(read(machine.gpu(0, "").unwrap(), "", 230, 0, 0), Ok(FieldValue::U32(1)));
    done(&mut machine, r#"{"cmd":"lose","gpu":0,"mode":"gpu_is_lost"}"#, 0);
    assert_eq!(machine.next_event(all, ""), Err(NvmlError::GpuIsLost));
    machine.events.free(all).unwrap();
    assert_eq!(machine.next_event(all, ""), Err(NvmlError::InvalidArgument));
}

#[test]
fn throttle_counters_move_with_the_driver_version() {
    let mut machine = machine("{}");
    done(&mut machine, r#"{"cmd":"throttle","gpu":0,"reason":"hw_thermal","active":true}"#, SECOND);
    done(&mut machine, r#"{"cmd":"throttle","gpu":0,"reason":"hw_thermal","active":false}"#, 3 * SECOND);
    let gpu = machine.gpu(0, "").unwrap();
    let expected = Ok(FieldValue::U64(2 * SECOND));
    assert_eq!(gpu.throttled_ns(ThrottleReason::HwThermal, 9 * SECOND), 2 * SECOND);
    assert_eq!(read(gpu, "580.95.05", 270, 0, 9 * SECOND), expected);
    assert_eq!(read(gpu, "570.133.20", 252, 0, 9 * SECOND), expected);
    assert_eq!(read(gpu, "570.133.20", 270, 0, 9 * SECOND), Err(NvmlError::NotSupported));
}

#[test]
fn pcie_counters_wrap() {
    let machine = machine(r#"{"gpus":[{"pcie_transmit_bytes_per_second":3000000000}]}"#);
    let gpu = machine.gpu(0, "").unwrap();
    assert_eq!(read(gpu, "", 197, 0, SECOND), Ok(FieldValue::U64(3_000_000_000)));
    assert_eq!(read(gpu, "", 197, 0, 2 * SECOND), Ok(FieldValue::U64(6_000_000_000 - (1 << 32))));
}

#[test]
fn a_command_that_cannot_be_changes_nothing() {
    let mut machine = machine("{}");
    let before = truth(&mut machine, SECOND);
    let refused = [
        r#"{"cmd":"set_waveform","gpu":0,"waveform":{"kind":"constant","watts":-1}}"#,
        r#"{"cmd":"memory","gpu":"GPU-none","used_bytes":1}"#,
        r#"{"cmd":"advance","nanoseconds":1}"#,
    ];
    for json in refused {
        assert!(matches!(command(&mut machine, json, SECOND), Answer::Error(_)), "{json}");
    }
    assert_eq!(truth(&mut machine, SECOND), before);
}

#[test]
fn memory_is_what_was_set_or_held() {
    let mut machine = machine("{}");
    let process = Process { pid: 7, memory_bytes: Some(5 << 30), ..Process::default() };
    machine.apply(Command::Processes { gpu: GpuRef::from(0), processes: vec![process] }, 0);
    assert_eq!(machine.gpu(0, "").unwrap().used_bytes(), 5 << 30);
    done(&mut machine, r#"{"cmd":"memory","gpu":0,"used_bytes":9000000000}"#, 0);
    assert_eq!(machine.gpu(0, "").unwrap().used_bytes(), 9_000_000_000);
}

#[test]
fn configurations_that_cannot_be_are_named() {
    let refused = |json: &str| Machine::new(serde_json::from_str(json).unwrap(), 0).unwrap_err();
    assert!(refused(r#"{"gpus":[{"idle_watts":-5}]}"#).contains("idle_watts"));
    assert!(refused(r#"{"gpus":[{"pci":"x"}]}"#).contains("pci"));
    assert!(refused(r#"{"gpus":[{"uuid":"a"},{"uuid":"a"}]}"#).contains("one uuid"));
}

#[test]
fn commands_read_and_write_the_same() {
    let command =
        Command::SetWaveform { gpu: GpuRef::from("GPU-a"), waveform: Waveform::Constant { watts: 5.0 } };
    let json = serde_json::to_string(&command).unwrap();
    assert_eq!(json, r#"{"cmd":"set_waveform","gpu":"GPU-a","waveform":{"kind":"constant","watts":5.0}}"#);
    assert_eq!(serde_json::from_str::<Command>(&json).unwrap(), command);
    assert!(serde_json::from_str::<Command>(r#"{"cmd":"truth","when":1}"#).is_err());
}
