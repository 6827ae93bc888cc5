//! Every structure that crosses the interface has the layout of NVIDIA's header on x86-64 and AArch64 Linux,
//! whose figures stand here: a binding that was generated for something else would move them.

use std::mem::{align_of, offset_of, size_of};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlDeviceAttributes_t, nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t, nvmlGpmMetric_t,
    nvmlGpmMetric_t__bindgen_ty_1, nvmlGpmMetricsGet_t, nvmlGpmSample_t, nvmlGpmSupport_t, nvmlMemory_t,
    nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t,
    nvmlProcessUtilizationSample_t, nvmlReturn_t, nvmlUtilization_t, nvmlValue_t,
};

/// `type: size, align, { field: offset, … }`.
macro_rules! laid_out {
    ($($type:ty: $size:literal, $align:literal, { $($field:ident: $offset:literal),* };)+) => {$(
        assert_eq!((size_of::<$type>(), align_of::<$type>()), ($size, $align), stringify!($type));
        $(assert_eq!(offset_of!($type, $field), $offset, concat!(stringify!($type), ".", stringify!($field)));)*
    )+};
}

#[test]
fn structures_are_those_of_the_header() {
    laid_out! {
        nvmlReturn_t: 4, 4, {};
        nvmlDevice_t: 8, 8, {};
        nvmlEventSet_t: 8, 8, {};
        nvmlGpmSample_t: 8, 8, {};
        nvmlPciInfo_t: 68, 4, {
            busIdLegacy: 0, domain: 16, bus: 20, device: 24, pciDeviceId: 28, pciSubSystemId: 32, busId: 36
        };
        nvmlUtilization_t: 8, 4, { gpu: 0, memory: 4 };
        nvmlMemory_t: 24, 8, { total: 0, free: 8, used: 16 };
        nvmlMemory_v2_t: 40, 8, { version: 0, total: 8, reserved: 16, free: 24, used: 32 };
        nvmlValue_t: 8, 8, {};
        nvmlFieldValue_t: 40, 8, {
            fieldId: 0, scopeId: 4, timestamp: 8, latencyUsec: 16, valueType: 24, nvmlReturn: 28, value: 32
        };
        nvmlProcessInfo_v1_t: 16, 8, { pid: 0, usedGpuMemory: 8 };
        nvmlProcessInfo_v2_t: 24, 8, { pid: 0, usedGpuMemory: 8, gpuInstanceId: 16, computeInstanceId: 20 };
        nvmlProcessInfo_t: 24, 8, { pid: 0, usedGpuMemory: 8, gpuInstanceId: 16, computeInstanceId: 20 };
        nvmlProcessUtilizationSample_t: 32, 8, {
            pid: 0, timeStamp: 8, smUtil: 16, memUtil: 20, encUtil: 24, decUtil: 28
        };
        nvmlEventData_t: 32, 8, {
            device: 0, eventType: 8, eventData: 16, gpuInstanceId: 24, computeInstanceId: 28
        };
        nvmlDeviceAttributes_t: 40, 8, {
            multiprocessorCount: 0, sharedCopyEngineCount: 4, sharedDecoderCount: 8, sharedEncoderCount: 12,
            sharedJpegCount: 16, sharedOfaCount: 20, gpuInstanceSliceCount: 24, computeInstanceSliceCount: 28,
            memorySizeMB: 32
        };
        nvmlGpmSupport_t: 8, 4, { version: 0, isSupportedDevice: 4 };
        nvmlGpmMetric_t: 40, 8, { metricId: 0, nvmlReturn: 4, value: 8, metricInfo: 16 };
        nvmlGpmMetric_t__bindgen_ty_1: 24, 8, { shortName: 0, longName: 8, unit: 16 };
        nvmlGpmMetricsGet_t: 8_424, 8, { version: 0, numMetrics: 4, sample1: 8, sample2: 16, metrics: 24 };
    }
}
