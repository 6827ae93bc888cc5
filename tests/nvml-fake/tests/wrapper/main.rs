//! The real path: the built library, loaded by `nvml-wrapper`, moved by its control socket.
//!
//! Each test has its own copy of the library, hence its own state, and owns its clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which the lint's exception for tests misses")]

mod control;
mod energy;
mod events;
mod faults;
mod identity;
mod limits;
mod mig;
mod state;

use std::path::Path;
use std::time::Duration;

use nvidia_ml::client::Client;
use nvidia_ml::library::{self, Installed};
use nvidia_ml::machine::config::{ClockKind, Config, GpuConfig};
use nvidia_ml::machine::waveform::Waveform;
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

struct Fake {
    nvml: Nvml,
    client: Client,
    installed: Installed,
    _folder: TempDir,
}

fn load(library: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.as_os_str()).init()
}

fn fake_with(config: &Config) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let installed = library::install(folder.path(), config).unwrap();
    let nvml = load(&installed.library).unwrap();
    let client = Client::connect(&installed.socket).unwrap();
    Fake { nvml, client, installed, _folder: folder }
}

fn manual(gpus: Vec<GpuConfig>) -> Config {
    Config { gpus, clock: ClockKind::Manual, ..Config::default() }
}

fn fake(waveform: Waveform) -> Fake {
    let gpu = GpuConfig { waveform: Some(waveform), ..GpuConfig::default() };
    fake_with(&manual(vec![gpu, GpuConfig::default()]))
}

fn constant(watts: f64) -> Waveform {
    Waveform::Constant { watts }
}

fn figure(value: &SampleValue) -> u64 {
    match value {
        SampleValue::U32(figure) => u64::from(*figure),
        SampleValue::U64(figure) => *figure,
        other => panic!("{other:?}"),
    }
}

fn field(nvml: &Nvml, id: u32) -> Result<u64, NvmlError> {
    let device = nvml.device_by_index(0)?;
    let sample = device.field_values_for(&[FieldId(id)])?.remove(0)?;
    sample.value.map(|value| figure(&value))
}
