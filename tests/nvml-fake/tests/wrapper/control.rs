//! The control socket and the environment.

use std::{env, fs, process};

use nvidia_ml::client::{Client, ClientError};
use nvidia_ml::library;
use nvidia_ml::machine::command::{Answer, Command, GpuRef};
use nvidia_ml::{CONFIG_VARIABLE, SOCKET_VARIABLE};
use nvml_wrapper::bitmasks::event::EventTypes;

use super::{PATIENCE, constant, fake, load};

#[test]
fn bad_requests_get_an_error_answer() {
    let mut fake = fake(constant(100.0));
    for line in ["", "nonsense", r#"{"cmd":"explode"}"#, r#"{"cmd":"truth","extra":1}"#, "[]"] {
        assert!(matches!(fake.client.ask_raw(line), Ok(Answer::Error(_))), "{line:?}");
    }
    let unknown = Command::Memory { gpu: GpuRef::from("GPU-none"), used_bytes: 1 };
    assert!(matches!(fake.client.apply(&unknown), Err(ClientError::Refused(_))));
    let padded = |bytes: usize| format!(r#"{{"cmd":"truth"{}}}"#, " ".repeat(bytes - 15));
    assert!(matches!(fake.client.ask_raw(&padded(nvidia_ml::MAX_REQUEST_BYTES)), Ok(Answer::Gpus(_))));
    let oversized = padded(nvidia_ml::MAX_REQUEST_BYTES + 1);
    assert!(matches!(fake.client.ask_raw(&oversized), Ok(Answer::Error(_))));
    let mut other = Client::connect(&fake.installed.socket).unwrap();
    assert!(other.truth(None).is_ok(), "the fake goes on");
}

/// Runs in a process of its own, below, with the environment that it needs.
#[test]
#[ignore = "the other half of the_environment_names_configuration_and_socket"]
fn in_a_process_with_the_environment_set() {
    let nvml = load(&library::locate().unwrap()).unwrap();
    assert_eq!(nvml.device_count().unwrap(), 1);
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.name().unwrap(), "From the environment");
    let set = nvml.create_event_set().unwrap();
    let set =
        device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|error| error.error).unwrap();
    assert!(set.wait(60_000).is_ok());
}

#[test]
fn the_environment_names_configuration_and_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (config, socket) = (folder.path().join("config.json"), folder.path().join("socket"));
    fs::write(&config, r#"{"gpus":[{"name":"From the environment"}],"socket":"/nowhere/unused"}"#).unwrap();
    let mut child = process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "control::in_a_process_with_the_environment_set", "--ignored"])
        .env(CONFIG_VARIABLE, &config)
        .env(SOCKET_VARIABLE, &socket)
        .stdout(process::Stdio::null())
        .spawn()
        .unwrap();
    let mut client = Client::connect_within(&socket, PATIENCE).unwrap();
    client.wait_for_calls("nvmlEventSetWait_v2", PATIENCE, |calls| calls.waiting == 1).unwrap();
    client.apply(&Command::Xid { gpu: GpuRef::from(0), xid: 79, recovery_action: None }).unwrap();
    assert!(child.wait().unwrap().success());
}
