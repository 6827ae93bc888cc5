//! Processes on a GPU.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlProcessInfo_t, nvmlProcessUtilizationSample_t, nvmlReturn_t,
};

use super::{code, driver, on_device, on_gpu, out};
use crate::machine::command::Process;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// `NVML_VALUE_NOT_AVAILABLE` of a memory figure.
const MEMORY_UNKNOWN: c_ulonglong = c_ulonglong::MAX;
/// No MIG instance.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// Processes of a kind on a device. Those of a GPU's MIG devices together are for root alone.
pub(super) fn infos(
    function: &'static str,
    device: nvmlDevice_t,
    graphics: bool,
) -> Result<Vec<nvmlProcessInfo_t>, NvmlError> {
    on_device(function, device, |machine, target, _| {
        let gpu = machine.gpu(target.slot, function)?;
        if gpu.config.mig && target.mig.is_none() {
            machine.check_root()?;
        }
        let is_meant = |process: &&Process| {
            process.graphics == graphics && (target.mig.is_none() || process.mig_device == target.mig)
        };
        Ok(gpu.processes.iter().filter(is_meant).map(|process| info(gpu, process)).collect())
    })
}

fn info(gpu: &Gpu, process: &Process) -> nvmlProcessInfo_t {
    let place = process.mig_device.and_then(|place| gpu.mig_instances(place).ok());
    let (gpu_instance, compute_instance) = place.unwrap_or((NO_INSTANCE, NO_INSTANCE));
    nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes.unwrap_or(MEMORY_UNKNOWN),
        gpuInstanceId: gpu_instance,
        computeInstanceId: compute_instance,
    }
}

/// Compute processes.
///
/// # Safety
/// `count` is null or valid for reads and writes; `infos` is null or valid for writes of `*count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let found = self::infos("nvmlDeviceGetComputeRunningProcesses_v3", device, false);
    // SAFETY: the caller's promise about the pointers.
    code(found.and_then(|found| unsafe { out::write_array(count, infos, &found) }))
}

/// Graphics processes.
///
/// # Safety
/// `count` is null or valid for reads and writes; `infos` is null or valid for writes of `*count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let found = self::infos("nvmlDeviceGetGraphicsRunningProcesses_v3", device, true);
    // SAFETY: the caller's promise about the pointers.
    code(found.and_then(|found| unsafe { out::write_array(count, infos, &found) }))
}

/// One sample for each process with a known use, taken now. `NOT_FOUND` where there is none since
/// `last_seen_us` (microseconds since 1970); unsupported under MIG.
///
/// # Safety
/// `count` is null or valid for reads and writes; `samples` is null or valid for writes of `*count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    samples: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    last_seen_us: c_ulonglong,
) -> nvmlReturn_t {
    let found = on_gpu("nvmlDeviceGetProcessUtilization", device, |gpu, now_ns| {
        if gpu.config.mig {
            return Err(NvmlError::NotSupported);
        }
        Ok((now_ns, gpu.processes.clone()))
    });
    let taken = found.and_then(|(now_ns, processes)| {
        let now_us = driver::wall_microseconds(now_ns);
        let sample = |process: Process| {
            process.sm_percent.map(|sm_percent| nvmlProcessUtilizationSample_t {
                pid: process.pid,
                timeStamp: now_us,
                smUtil: sm_percent,
                memUtil: process.memory_percent,
                encUtil: 0,
                decUtil: 0,
            })
        };
        let taken: Vec<_> = processes.into_iter().filter_map(sample).collect();
        if taken.is_empty() || now_us <= last_seen_us { Err(NvmlError::NotFound) } else { Ok(taken) }
    });
    // SAFETY: the caller's promise about the pointers.
    code(taken.and_then(|taken| unsafe { out::write_array(count, samples, &taken) }))
}
