//! Handles that outlive a call, and the calls that the safe wrapper lacks.
//!
//! Invariant: whatever came from a library holds that library. Unsafe code of this backend stands here alone.

#![allow(
    unsafe_code,
    reason = "the wrapper has no scopes, no shared event sets and no handles that are kept"
)]

use std::mem::ManuallyDrop;
use std::sync::Arc;

use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::event::EventSet;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_t, nvmlGpmSample_t, nvmlMemory_t,
    nvmlReturn_enum_NVML_ERROR_UNKNOWN as UNKNOWN, nvmlValue_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE as DOUBLE,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT as SIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG as SIGNED_LONG_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG as UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT as UNSIGNED_SHORT,
};

use super::sentinel::is_figure;

/// A device that is asked again and again: looking it up by UUID each time would cost as much as a reading.
#[derive(Clone)]
pub(super) struct Handle {
    raw: nvmlDevice_t,
    nvml: Arc<Nvml>,
}

// SAFETY: NVML is thread-safe, and a device's handle is a name that any thread of the process may use; the
// wrapper's `Device`, which is the same pair, is `Send` for that reason.
unsafe impl Send for Handle {}

impl Handle {
    /// The device of `nvml` with a UUID.
    pub(super) fn by_uuid(nvml: &Arc<Nvml>, uuid: &str) -> Result<Self, NvmlError> {
        let device = nvml.device_by_uuid(uuid)?;
        // SAFETY: the handle is only used through `device`, which holds the library that it came from.
        let raw = unsafe { device.handle() };
        Ok(Self { raw, nvml: Arc::clone(nvml) })
    }

    /// The device, for the wrapper's calls.
    pub(super) fn device(&self) -> Device<'_> {
        // SAFETY: `raw` came from `self.nvml`, which lives as long as `self` and was not shut down before.
        unsafe { Device::new(self.raw, &self.nvml) }
    }

    /// Whether `device` is this one.
    pub(super) fn is(&self, device: &Device<'_>) -> bool {
        // SAFETY: handles are compared and not used.
        unsafe { device.handle() == self.raw }
    }

    /// Asks for every field of `values` at once; each has its own return code afterwards.
    pub(super) fn field_values(&self, values: &mut [nvmlFieldValue_t]) -> Result<(), NvmlError> {
        let function = symbol(&self.nvml.lib().nvmlDeviceGetFieldValues)?;
        let count = i32::try_from(values.len()).map_err(|_| NvmlError::InvalidArg)?;
        for value in &mut *values {
            // What the driver leaves alone must not pass for an answer.
            value.nvmlReturn = UNKNOWN;
        }
        // SAFETY: the function is the library's of that name; the handle is its own; `values` is valid for reads
        // and writes of `count` initialised elements.
        nvml_try(unsafe { function(self.raw, count, values.as_mut_ptr()) })
    }

    /// Memory by the first version of the call, which older drivers have: (used, all), in bytes.
    pub(super) fn memory(&self) -> Result<(u64, u64), NvmlError> {
        let function = symbol(&self.nvml.lib().nvmlDeviceGetMemoryInfo)?;
        let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
        // SAFETY: as above, and `memory` is valid for a write.
        nvml_try(unsafe { function(self.raw, &raw mut memory) })?;
        Ok((memory.used, memory.total))
    }

    /// Why clocks are lowered, as bits, by the call's present or its former name.
    pub(super) fn event_reasons(&self) -> Result<u64, NvmlError> {
        let lib = self.nvml.lib();
        let mut bits = 0;
        let code = match (
            &lib.nvmlDeviceGetCurrentClocksEventReasons,
            &lib.nvmlDeviceGetCurrentClocksThrottleReasons,
        ) {
            // SAFETY: as above, and `bits` is valid for a write.
            (Ok(function), _) => unsafe { function(self.raw, &raw mut bits) },
            // SAFETY: the same: both names have one signature.
            (Err(_), Ok(function)) => unsafe { function(self.raw, &raw mut bits) },
            (Err(error), Err(_)) => return Err(NvmlError::FailedToLoadSymbol(error.to_string())),
        };
        nvml_try(code).map(|()| bits)
    }

    /// Watches the device for `kinds` of events, besides what `set` watches already. The wrapper would free the
    /// set with a GPU that cannot be watched, and stop watching the others.
    pub(super) fn register(&self, kinds: u64, set: &EventSet<'_>) -> Result<(), NvmlError> {
        let function = symbol(&self.nvml.lib().nvmlDeviceRegisterEvents)?;
        // SAFETY: as above; `set` is of the same library, is not freed while borrowed, and is not shared.
        nvml_try(unsafe { function(self.raw, kinds, set.handle()) })
    }

    /// A GPM sample of now; needs [`has_gpm`].
    pub(super) fn gpm_sample(&self) -> Result<Sample, NvmlError> {
        let raw = self.device().gpm_sample()?.into_handle();
        Ok(Sample { raw, nvml: Arc::clone(&self.nvml) })
    }
}

/// The GPU instance and the compute instance of a MIG device.
pub(super) fn mig_instances(nvml: &Nvml, device: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let (gpu, compute) = (&nvml.lib().nvmlDeviceGetGpuInstanceId, &nvml.lib().nvmlDeviceGetComputeInstanceId);
    let (gpu, compute) = (symbol(gpu)?, symbol(compute)?);
    let (mut gpu_instance, mut compute_instance) = (0, 0);
    // SAFETY: the functions are the library's of those names, the device is of a library that it borrows, and
    // both places are valid for a write.
    unsafe {
        nvml_try(gpu(device.handle(), &raw mut gpu_instance))?;
        nvml_try(compute(device.handle(), &raw mut compute_instance))?;
    }
    Ok((gpu_instance, compute_instance))
}

/// Whether a library has all that GPM takes: a wrapper's sample could not be freed otherwise.
pub(super) fn has_gpm(nvml: &Nvml) -> bool {
    let lib = nvml.lib();
    lib.nvmlGpmSampleAlloc.is_ok()
        && lib.nvmlGpmSampleGet.is_ok()
        && lib.nvmlGpmSampleFree.is_ok()
        && lib.nvmlGpmMetricsGet.is_ok()
}

/// Whether a library has all that events take: a wrapper's set could not be freed otherwise.
pub(super) fn has_events(nvml: &Nvml) -> bool {
    let lib = nvml.lib();
    lib.nvmlEventSetCreate.is_ok()
        && lib.nvmlEventSetFree.is_ok()
        && lib.nvmlEventSetWait_v2.is_ok()
        && lib.nvmlDeviceRegisterEvents.is_ok()
}

/// What a GPU had counted at one time.
pub(super) struct Sample {
    raw: nvmlGpmSample_t,
    nvml: Arc<Nvml>,
}

// SAFETY: a sample is memory of the library's that no thread is tied to; it is owned here alone. The wrapper's
// `GpmSample`, which is the same pair, is `Send` too.
unsafe impl Send for Sample {}

impl Sample {
    /// Share of the time since `earlier` in which the GPU was in use.
    pub(super) fn utilization_since(&self, earlier: &Self) -> Result<f64, NvmlError> {
        let (from, to) = (earlier.borrowed(), self.borrowed());
        let metrics = gpm_metrics_get(&self.nvml, &from, &to, &[GpmMetricId::GraphicsUtil])?;
        let metric = metrics.into_iter().next().unwrap_or(Err(NvmlError::NoData))?;
        Ok(metric.value / 100.0)
    }

    /// The wrapper's sample, which would free it.
    fn borrowed(&self) -> ManuallyDrop<GpmSample<'_>> {
        // SAFETY: `raw` was allocated by `self.nvml` and is freed with `self` alone: what is made here is not
        // dropped.
        ManuallyDrop::new(unsafe { GpmSample::from_handle(&self.nvml, self.raw) })
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // SAFETY: `raw` was allocated by `self.nvml`, and nobody else frees it.
        drop(unsafe { GpmSample::from_handle(&self.nvml, self.raw) });
    }
}

/// A field to ask for.
pub(super) fn field(id: u32, scope: u32) -> nvmlFieldValue_t {
    nvmlFieldValue_t {
        fieldId: id,
        scopeId: scope,
        timestamp: 0,
        latencyUsec: 0,
        valueType: UNSIGNED_INT,
        nvmlReturn: UNKNOWN,
        value: nvmlValue_t { ullVal: 0 },
    }
}

/// What a field says; `None` where it says "absent" with a number.
pub(super) fn figure(field: &nvmlFieldValue_t) -> Result<Option<u64>, NvmlError> {
    nvml_try(field.nvmlReturn)?;
    let value = field.value;
    // SAFETY: every variant is a number of at most 64 bits, any bits of which are valid, and all 64 were
    // initialised by `field()`.
    let (wide, int, short, real) = unsafe { (value.ullVal, value.uiVal, value.usVal, value.dVal) };
    Ok(match field.valueType {
        UNSIGNED_INT => Some(u64::from(int)).filter(|int| is_figure(*int)),
        SIGNED_INT => Some(u64::from(int)).filter(|int| *int <= i32::MAX as u64),
        UNSIGNED_LONG | UNSIGNED_LONG_LONG | SIGNED_LONG_LONG => Some(wide).filter(|wide| is_figure(*wide)),
        UNSIGNED_SHORT => Some(u64::from(short)),
        DOUBLE => (real >= 0.0 && real < i64::MAX as f64).then_some(real as u64),
        _ => None,
    })
}

/// A function, unless the library lacks it.
fn symbol<T, E: std::fmt::Display>(symbol: &Result<T, E>) -> Result<&T, NvmlError> {
    symbol.as_ref().map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))
}
