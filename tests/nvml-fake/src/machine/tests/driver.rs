//! Loading and unloading, handles, privileges, faults and MIG.

use super::handle::Target;
use super::*;

const POWER: &str = "nvmlDeviceGetPowerUsage";

#[test]
fn an_unloaded_driver_is_there_again_after_loading_and_initialising() {
    let mut machine = machine(r#"{"gpus":[{"waveform":{"kind":"constant","watts":500}}]}"#);
    let old = machine.handle(Target::gpu(0));
    let set = machine.events.create();
    done(&mut machine, r#"{"cmd":"unload_driver"}"#, 10 * SECOND);
    assert_eq!(machine.check_initialised(), Err(NvmlError::DriverNotLoaded));
    assert_eq!(machine.init(), Err(NvmlError::DriverNotLoaded));
    assert_eq!(machine.next_event(set, ""), Err(NvmlError::DriverNotLoaded), "who waits is told");
    done(&mut machine, r#"{"cmd":"load_driver"}"#, 20 * SECOND);
    assert_eq!(machine.check_initialised(), Err(NvmlError::Uninitialized));
    machine.init().unwrap();
    assert_eq!(machine.enter(old, POWER, 0), Err(NvmlError::InvalidArgument), "handles are void");
    let new = machine.handle(Target::gpu(0));
    assert_eq!(machine.enter(new, POWER, 0), Ok(Target::gpu(0)));
    assert_eq!(machine.next_event(set, ""), Err(NvmlError::InvalidArgument));
    assert_eq!(machine.gpu(0, "").unwrap().energy_millijoules(21 * SECOND), Ok(500_000));
    let truth = truth(&mut machine, 21 * SECOND);
    assert_eq!((truth.energy_microjoules, truth.counted_microjoules), (10_500_000_000, 500_000_000));
    assert!(matches!(command(&mut machine, r#"{"cmd":"load_driver"}"#, 0), Answer::Error(_)));
}

#[test]
fn users_are_counted() {
    let mut machine = machine("{}");
    machine.init().unwrap();
    let set = machine.events.create();
    machine.shutdown().unwrap();
    assert_eq!(machine.next_event(set, ""), Ok(None), "one is left");
    machine.shutdown().unwrap();
    assert_eq!(machine.shutdown(), Err(NvmlError::Uninitialized));
    machine.init().unwrap();
    assert_eq!(machine.next_event(set, ""), Err(NvmlError::InvalidArgument));
}

#[test]
fn a_gpu_fails_so_often_and_no_more() {
    let mut machine = machine("{}");
    let twice = format!(r#"{{"cmd":"fail_gpu","gpu":1,"function":"{POWER}","error":"unknown","times":2}}"#);
    done(&mut machine, &twice, 0);
    let handle = machine.handle(Target::gpu(1));
    let mut call = || machine.enter(handle, POWER, 0).map(|_| ());
    assert_eq!([call(), call(), call()], [Err(NvmlError::Unknown), Err(NvmlError::Unknown), Ok(())]);
    let other = machine.handle(Target::gpu(0));
    assert!(machine.enter(other, POWER, 0).is_ok());
}

#[test]
fn the_truth_of_a_read_is_that_of_its_instant() {
    let mut machine = machine(r#"{"gpus":[{"waveform":{"kind":"constant","watts":500}}]}"#);
    let handle = machine.handle(Target::gpu(0));
    let ask = format!(r#"{{"cmd":"last_read","gpu":0,"function":"{POWER}"}}"#);
    assert!(matches!(command(&mut machine, &ask, 0), Answer::Error(_)), "not yet called");
    machine.enter(handle, POWER, 3 * SECOND).unwrap();
    let Answer::Read(truth) = command(&mut machine, &ask, 9 * SECOND) else { panic!("no truth") };
    assert_eq!((truth.at_monotonic_ns, truth.energy_microjoules), (3 * SECOND, 1_500_000_000));
}

#[test]
fn there_are_at_most_sixteen_gpus() {
    let config = |number: usize| Config { gpus: vec![Default::default(); number], ..Config::default() };
    assert_eq!(Machine::new(config(16), 0).unwrap().present().count(), 16);
    assert!(Machine::new(config(17), 0).is_err());
}

#[test]
fn mig_devices_are_found_while_mig_is_on() {
    let mut machine = machine(r#"{"gpus":[{},{"preset":"t4"}]}"#);
    let uuid = "MIG-fa4e0000-0000-4000-8000-000000000000-1";
    assert_eq!(machine.find_uuid(uuid), Err(NvmlError::NotFound));
    let enable =
        |gpu: u32| format!(r#"{{"cmd":"mig","gpu":{gpu},"enabled":true,"devices":[{{}},{{"slices":3}}]}}"#);
    done(&mut machine, &enable(0), 0);
    assert!(matches!(command(&mut machine, &enable(1), 0), Answer::Error(_)), "a T4 has no MIG");
    let found = machine.find_uuid(uuid).unwrap();
    assert_eq!(found, Target { slot: 0, mig: Some(1) });
    let gpu = machine.gpu(0, "").unwrap();
    assert_eq!(gpu.mig_name(0).unwrap(), "NVIDIA H100 80GB HBM3 MIG 1g.10gb");
    assert_eq!(gpu.mig_instances(1), Ok((2, 0)));
    assert_eq!(gpu.utilization(SECOND), Err(NvmlError::NotSupported));
    let handle = machine.handle(found);
    done(&mut machine, r#"{"cmd":"mig","gpu":0,"enabled":false}"#, 0);
    assert_eq!(machine.enter(handle, POWER, 0), Err(NvmlError::InvalidArgument));
}

#[test]
fn memory_errors_are_counted_for_the_driver_and_for_life() {
    let mut machine = machine("{}");
    done(&mut machine, r#"{"cmd":"ecc","gpu":0,"corrected":3}"#, 0);
    done(&mut machine, r#"{"cmd":"xid","gpu":0,"xid":48}"#, 0);
    let errors = |machine: &Machine| {
        let found = machine.gpu(0, "").unwrap().ecc().unwrap();
        [found.volatile, found.aggregate].map(|counts| (counts.corrected, counts.uncorrected))
    };
    assert_eq!(errors(&machine), [(3, 1), (3, 1)]);
    done(&mut machine, r#"{"cmd":"reload_driver"}"#, 0);
    assert_eq!(errors(&machine), [(0, 0), (3, 1)]);
}
