//! GPM samples. A sample's handle is its number, which is never 0 and never dereferenced.

use std::ffi::{CStr, c_char, c_uint};
use std::ptr;

use nvml_wrapper_sys::bindings::{
    NVML_GPM_METRICS_GET_VERSION, nvmlDevice_t, nvmlGpmMetric_t, nvmlGpmMetric_t__bindgen_ty_1,
    nvmlGpmMetricId_t_NVML_GPM_METRIC_MAX, nvmlGpmMetricsGet_t, nvmlGpmSample_t, nvmlGpmSupport_t,
    nvmlReturn_t,
};

use super::{code, driver, on_device, on_gpu, out};
use crate::machine::error::NvmlError;
use crate::machine::gpm::{info, metric};
use crate::machine::handle::Target;

/// `NVML_GPM_SUPPORT_VERSION`.
const SUPPORT_VERSION: c_uint = 1;

/// Whether the GPU has GPM. The caller sets `version`.
///
/// # Safety
/// `support` is null or valid for reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmQueryDeviceSupport(
    device: nvmlDevice_t,
    support: *mut nvmlGpmSupport_t,
) -> nvmlReturn_t {
    // SAFETY: not null where it is read, hence valid by the caller's promise; the field alone is read because
    // the caller need not have initialised the other.
    let version = (!support.is_null()).then(|| unsafe { ptr::addr_of!((*support).version).read() });
    let answer = on_gpu("nvmlGpmQueryDeviceSupport", device, |gpu, _| match version {
        None => Err(NvmlError::InvalidArgument),
        Some(SUPPORT_VERSION) => Ok(c_uint::from(gpu.config.gpm)),
        Some(_) => Err(NvmlError::ArgumentVersionMismatch),
    });
    let answer =
        answer.map(|isSupportedDevice| nvmlGpmSupport_t { version: SUPPORT_VERSION, isSupportedDevice });
    // SAFETY: the caller's promise about the pointer.
    code(answer.and_then(|answer| unsafe { out::write(support, answer) }))
}

/// Makes an empty sample.
///
/// # Safety
/// `sample` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) -> nvmlReturn_t {
    let number = driver::call("nvmlGpmSampleAlloc", |machine, _| {
        if sample.is_null() { Err(NvmlError::InvalidArgument) } else { Ok(machine.samples.allocate()) }
    });
    // SAFETY: the caller's promise about the pointer.
    code(number.and_then(|number| unsafe { out::write(sample, ptr::without_provenance_mut(number)) }))
}

/// Frees a sample.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> nvmlReturn_t {
    code(driver::call("nvmlGpmSampleFree", |machine, _| machine.samples.free(sample.addr())))
}

/// Fills a sample with what a GPU counts, or one of its GPU instances, on behalf of `function`.
fn fill(
    function: &'static str,
    device: nvmlDevice_t,
    gpu_instance: Option<c_uint>,
    sample: nvmlGpmSample_t,
) -> Result<(), NvmlError> {
    on_device(function, device, |machine, target, now_ns| {
        let slot = super::whole(target)?;
        let gpu = machine.gpu(slot, function)?;
        if !gpu.config.gpm {
            return Err(NvmlError::NotSupported);
        }
        let mig = match gpu_instance {
            None => None,
            Some(wanted) => {
                let mut places = 0..gpu.mig_devices()?.len();
                let is_it = |place: &usize| gpu.mig_instances(*place).is_ok_and(|(id, _)| id == wanted);
                Some(places.find(is_it).ok_or(NvmlError::NotFound)?)
            }
        };
        machine.samples.fill(sample.addr(), Target { slot, mig }, now_ns)
    })
}

/// Fills a sample with what the GPU counts.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmSampleGet(device: nvmlDevice_t, sample: nvmlGpmSample_t) -> nvmlReturn_t {
    code(fill("nvmlGpmSampleGet", device, None, sample))
}

/// Fills a sample with what a GPU instance of a GPU counts.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpmMigSampleGet(
    device: nvmlDevice_t,
    gpu_instance: c_uint,
    sample: nvmlGpmSample_t,
) -> nvmlReturn_t {
    code(fill("nvmlGpmMigSampleGet", device, Some(gpu_instance), sample))
}

/// Means between two samples: the call succeeds, and each metric has its own return code. Only the `numMetrics`
/// metrics are touched, since older headers have a shorter array.
///
/// # Safety
/// `request` is null or valid for reads and writes up to its metric `numMetrics`, all of whose ids are
/// initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t {
    if request.is_null() {
        return NvmlError::InvalidArgument.code();
    }
    // SAFETY: not null, hence valid by the caller's promise. Places are taken and read one by one, so that no
    // reference spans a part of the array that a caller's shorter structure lacks.
    let (version, count, from, to, metrics) = unsafe {
        (
            ptr::addr_of!((*request).version).read(),
            ptr::addr_of!((*request).numMetrics).read(),
            ptr::addr_of!((*request).sample1).read(),
            ptr::addr_of!((*request).sample2).read(),
            ptr::addr_of_mut!((*request).metrics).cast::<nvmlGpmMetric_t>(),
        )
    };
    code(driver::call("nvmlGpmMetricsGet", |machine, _| {
        if version != NVML_GPM_METRICS_GET_VERSION {
            return Err(NvmlError::ArgumentVersionMismatch);
        }
        if !(1..=nvmlGpmMetricId_t_NVML_GPM_METRIC_MAX).contains(&count) {
            return Err(NvmlError::InvalidArgument);
        }
        let (from, to) = machine.samples.pair(from.addr(), to.addr())?;
        let gpu = machine.gpu(from.slot(), "nvmlGpmMetricsGet")?;
        for index in 0..count as usize {
            // SAFETY: `index` is below `numMetrics`, so the metric is valid and its id initialised by the
            // caller's promise.
            let id = unsafe { ptr::addr_of!((*metrics.add(index)).metricId).read() };
            let filled = filled(id, metric(gpu, id, &from, &to));
            // SAFETY: as above.
            unsafe { metrics.add(index).write(filled) };
        }
        Ok(())
    }))
}

fn filled(id: c_uint, value: Result<f64, NvmlError>) -> nvmlGpmMetric_t {
    // C declares them without `const` and does not write.
    let text =
        |text: Option<&'static CStr>| text.map_or(ptr::null_mut::<c_char>(), |text| text.as_ptr().cast_mut());
    let info = info(id);
    let name = text(info.map(|info| info.name));
    nvmlGpmMetric_t {
        metricId: id,
        nvmlReturn: code(value.map(|_| ())),
        value: value.unwrap_or(0.0),
        metricInfo: nvmlGpmMetric_t__bindgen_ty_1 {
            shortName: name,
            longName: name,
            unit: text(info.map(|info| info.unit)),
        },
    }
}
