//! Each exported function has the signature under which `nvml-wrapper-sys` calls it.

use nvml_wrapper_sys::bindings::NvmlLib;

use super::{device::*, events::*, fields::*, limits::*, process::*, sensors::*, system::*};

/// Fails to compile where a signature differs: both must be one function pointer type.
macro_rules! same_as_theirs {
    ($($name:ident)+) => {
        [$({
            let _both = |lib: &NvmlLib| lib.$name.as_ref().ok().map(|theirs| [*theirs, $name]);
            stringify!($name)
        }),+]
    };
}

#[test]
fn signatures_are_those_of_the_header() {
    let checked = same_as_theirs!(
        nvmlInit_v2 nvmlInitWithFlags nvmlShutdown nvmlErrorString nvmlSystemGetDriverVersion
        nvmlSystemGetNVMLVersion nvmlSystemGetCudaDriverVersion nvmlSystemGetCudaDriverVersion_v2
        nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByUUID
        nvmlDeviceGetHandleByPciBusId_v2 nvmlDeviceGetUUID nvmlDeviceGetName nvmlDeviceGetIndex
        nvmlDeviceGetPciInfo_v3 nvmlDeviceGetMinorNumber nvmlDeviceGetTotalEnergyConsumption
        nvmlDeviceGetPowerUsage nvmlDeviceGetUtilizationRates nvmlDeviceGetMemoryInfo
        nvmlDeviceGetMemoryInfo_v2 nvmlDeviceGetTemperature nvmlDeviceGetClockInfo
        nvmlDeviceGetPowerManagementLimit nvmlDeviceGetPowerManagementDefaultLimit
        nvmlDeviceGetPowerManagementLimitConstraints nvmlDeviceGetEnforcedPowerLimit
        nvmlDeviceSetPowerManagementLimit nvmlDeviceGetCurrentClocksThrottleReasons
        nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetFieldValues
        nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v3
        nvmlDeviceGetProcessUtilization nvmlDeviceGetMigMode nvmlDeviceGetArchitecture
        nvmlDeviceGetSupportedEventTypes nvmlEventSetCreate nvmlDeviceRegisterEvents nvmlEventSetWait_v2
        nvmlEventSetFree
    );
    assert_eq!(checked.len(), 42);
}
