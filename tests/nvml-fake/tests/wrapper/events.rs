//! Event sets.

use std::thread;
use std::time::Duration;

use nvidia_ml::machine::command::{CallCount, Command, GpuRef};
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::event::EventData;

use super::{Fake, PATIENCE, constant, fake, field};

const MS: Duration = Duration::from_millis(1);

#[test]
fn an_event_wakes_the_thread_that_waits_for_it() {
    let Fake { nvml, mut client, installed: _installed, _folder } = fake(constant(100.0));
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let set = nvml.create_event_set().unwrap();
            let device = nvml.device_by_index(0).unwrap();
            let set =
                device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|error| error.error);
            let event: EventData<'_> = set.unwrap().wait(600_000).unwrap();
            (event.device.index().unwrap(), event.event_data)
        });
        client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
        client.apply(&Command::Xid { gpu: GpuRef::from(0), xid: 79, recovery_action: Some(2) }).unwrap();
        let (index, data) = waits.join().unwrap();
        assert_eq!(index, 0);
        assert!(matches!(data, Some(XidError::Value(79))), "{data:?}");
    });
    assert_eq!(field(&nvml, 230).unwrap(), 2);
}

#[test]
fn an_event_wait_ends_at_its_timeout() {
    let Fake { nvml, mut client, installed: _installed, _folder } = fake(constant(100.0));
    thread::scope(|scope| {
        let waits = scope.spawn(|| nvml.create_event_set().unwrap().wait(500).unwrap_err());
        client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
        client.advance(499 * MS).unwrap();
        assert_eq!(client.calls().unwrap()["nvmlEventSetWait_v2"].waiting, 1);
        client.advance(MS).unwrap();
        assert!(matches!(waits.join().unwrap(), NvmlError::Timeout));
    });
}

#[test]
fn a_double_bit_error_is_an_event_and_an_unloaded_driver_ends_the_wait() {
    let Fake { nvml, mut client, installed: _installed, _folder } = fake(constant(100.0));
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let set = nvml.create_event_set().unwrap();
            let device = nvml.device_by_index(0).unwrap();
            let set = device.register_events(EventTypes::DOUBLE_BIT_ECC_ERROR, set);
            let set = set.map_err(|error| error.error).unwrap();
            let event = set.wait(600_000).unwrap();
            assert!(event.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR));
            set.wait(600_000).unwrap_err()
        });
        client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
        client.apply(&Command::Ecc { gpu: GpuRef::from(0), corrected: 0, uncorrected: 1 }).unwrap();
        let again = |calls: CallCount| calls.begun == 2 && calls.waiting == 1;
        client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, again).unwrap();
        client.apply(&Command::UnloadDriver).unwrap();
        assert!(matches!(waits.join().unwrap(), NvmlError::DriverNotLoaded));
    });
}
