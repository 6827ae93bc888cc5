//! Processes on a GPU.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlProcessInfo_t, nvmlProcessUtilizationSample_t, nvmlReturn_t,
};

use super::{code, driver, on_gpu, out};
use crate::machine::command::Process;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// `NVML_VALUE_NOT_AVAILABLE` of a memory figure.
const MEMORY_UNKNOWN: c_ulonglong = c_ulonglong::MAX;
/// No MIG instance.
const NO_INSTANCE: c_uint = c_uint::MAX;

fn infos(gpu: &Gpu, graphics: bool) -> Vec<nvmlProcessInfo_t> {
    let info = |process: &Process| nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes.unwrap_or(MEMORY_UNKNOWN),
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    };
    gpu.processes.iter().filter(|process| process.graphics == graphics).map(info).collect()
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
    let found =
        on_gpu("nvmlDeviceGetComputeRunningProcesses_v3", device, |gpu, _| Ok(self::infos(gpu, false)));
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
    let found =
        on_gpu("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |gpu, _| Ok(self::infos(gpu, true)));
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
