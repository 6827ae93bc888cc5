//! Utilisation, memory, temperature, clocks, processes and memory errors.

use std::time::Duration;

use nvidia_ml::machine::command::{Command, GpuRef, Process};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::{constant, fake};

#[test]
fn utilisation_memory_temperature_and_clocks() {
    let mut fake = fake(constant(385.0));
    fake.client.advance(Duration::from_secs(2)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    let rates = device.utilization_rates().unwrap();
    assert_eq!((rates.gpu, rates.memory), (50, 25), "half way from 70 W to 700 W");
    let fixed = Command::Utilization { gpu: GpuRef::from(0), gpu_percent: Some(97), memory_percent: Some(3) };
    fake.client.apply(&fixed).unwrap();
    let rates = device.utilization_rates().unwrap();
    assert_eq!((rates.gpu, rates.memory), (97, 3));

    fake.client.apply(&Command::Memory { gpu: GpuRef::from(0), used_bytes: 5 << 30 }).unwrap();
    let memory = device.memory_info().unwrap();
    assert_eq!(memory.used, 5 << 30);
    assert_eq!(memory.total, memory.used + memory.free + memory.reserved);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 55);
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 1_244);
    assert_eq!(device.clock_info(Clock::Memory).unwrap(), 2_619);
    let idle = fake.nvml.device_by_index(1).unwrap();
    assert!(idle.current_throttle_reasons().unwrap().contains(ThrottleReasons::GPU_IDLE));
}

#[test]
fn processes_and_their_use() {
    let mut fake = fake(constant(300.0));
    fake.client.advance(Duration::from_secs(1)).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert!(device.running_compute_processes().unwrap().is_empty());
    assert!(matches!(device.process_utilization_stats(None), Err(NvmlError::NotFound)));
    let process = |pid, graphics: bool| Process {
        pid,
        memory_bytes: (!graphics).then_some(1 << 30),
        sm_percent: (!graphics).then_some(40),
        memory_percent: 10,
        graphics,
        ..Process::default()
    };
    let processes = vec![process(71, false), process(72, false), process(73, true)];
    fake.client.apply(&Command::Processes { gpu: GpuRef::from(0), processes }).unwrap();
    let pids: Vec<u32> = device.running_compute_processes().unwrap().iter().map(|found| found.pid).collect();
    assert_eq!(pids, [71, 72]);
    assert_eq!(device.running_graphics_processes().unwrap()[0].pid, 73);
    let samples = device.process_utilization_stats(None).unwrap();
    assert_eq!((samples.len(), samples[0].sm_util, samples[0].timestamp), (2, 40, 1_000_000));
    assert!(matches!(device.process_utilization_stats(1_000_000), Err(NvmlError::NotFound)), "none since");
}

#[test]
fn memory_errors_are_counted() {
    let mut fake = fake(constant(100.0));
    fake.client.apply(&Command::Ecc { gpu: GpuRef::from(0), corrected: 4, uncorrected: 1 }).unwrap();
    let device = fake.nvml.device_by_index(0).unwrap();
    assert!(device.is_ecc_enabled().unwrap().currently_enabled);
    let errors = |error, counter| device.total_ecc_errors(error, counter).unwrap();
    assert_eq!(errors(MemoryError::Corrected, EccCounter::Volatile), 4);
    assert_eq!(errors(MemoryError::Uncorrected, EccCounter::Aggregate), 1);
}
