//! The built library against `nvml-wrapper-sys`: each exported function resolves, and has the signature under
//! which it is called. (Structures: `src/abi/layout.rs`.)

#![allow(clippy::unwrap_used, reason = "a test's helpers, which the lint's exception for tests misses")]

use std::ffi::{c_char, c_uint};
use std::fs;

use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlPciInfo_t, nvmlProcessInfo_v1_t,
    nvmlProcessInfo_v2_t, nvmlReturn_t,
};

use nvidia_ml::abi::{
    device::*, ecc::*, events::*, fields::*, gpm::*, legacy::*, limits::*, memory::*, mig::*, process::*,
    sensors::*, system::*,
};
use nvidia_ml::symbols::SymbolError;
use nvidia_ml::{library, symbols};

/// Fails to compile where a signature differs: both must be one function pointer type. `resolved` is what the
/// built library has under the name, as `nvml-wrapper-sys` finds it.
macro_rules! same_as_theirs {
    ($resolved:ident: $($name:ident)+) => {
        [$({
            let _both = |lib: &NvmlLib| lib.$name.as_ref().ok().map(|theirs| [*theirs, $name]);
            (stringify!($name), $resolved.$name.is_ok())
        }),+]
    };
}

/// The former names, which `nvml-wrapper-sys` has behind a feature: held against its types of them by hand.
macro_rules! former {
    ($($name:ident: fn($($argument:ty),*);)+) => {
        [$({
            let _ours: unsafe extern "C" fn($($argument),*) -> nvmlReturn_t = $name;
            stringify!($name)
        }),+]
    };
}

#[test]
#[allow(unsafe_code, reason = "loading a library")]
fn signatures_are_those_of_the_header() {
    let built = library::locate().unwrap();
    // SAFETY: loading runs no code but the initialisers of Rust's standard library, and so does unloading; no
    // function is called.
    let resolved = unsafe { NvmlLib::new(&built) }.unwrap();
    let checked = same_as_theirs!(resolved:
        nvmlInit_v2 nvmlInitWithFlags nvmlShutdown nvmlErrorString nvmlSystemGetDriverVersion
        nvmlSystemGetNVMLVersion nvmlSystemGetCudaDriverVersion nvmlSystemGetCudaDriverVersion_v2
        nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByUUID
        nvmlDeviceGetHandleByPciBusId_v2 nvmlDeviceGetUUID nvmlDeviceGetName nvmlDeviceGetIndex
        nvmlDeviceGetPciInfo_v3 nvmlDeviceGetMinorNumber nvmlDeviceGetTotalEnergyConsumption
        nvmlDeviceGetPowerUsage nvmlDeviceGetUtilizationRates nvmlDeviceGetMemoryInfo
        nvmlDeviceGetMemoryInfo_v2 nvmlDeviceGetTemperature nvmlDeviceGetClockInfo nvmlDeviceGetMaxClockInfo
        nvmlDeviceGetPowerManagementLimit nvmlDeviceGetPowerManagementDefaultLimit
        nvmlDeviceGetPowerManagementMode nvmlDeviceGetPowerManagementLimitConstraints
        nvmlDeviceGetEnforcedPowerLimit nvmlDeviceSetPowerManagementLimit
        nvmlDeviceGetCurrentClocksThrottleReasons nvmlDeviceGetCurrentClocksEventReasons
        nvmlDeviceGetSupportedClocksThrottleReasons nvmlDeviceGetSupportedClocksEventReasons
        nvmlDeviceGetFieldValues nvmlDeviceGetComputeRunningProcesses_v3
        nvmlDeviceGetGraphicsRunningProcesses_v3 nvmlDeviceGetProcessUtilization nvmlDeviceGetArchitecture
        nvmlDeviceGetEccMode nvmlDeviceGetTotalEccErrors nvmlDeviceGetMemoryErrorCounter
        nvmlDeviceGetMigMode nvmlDeviceIsMigDeviceHandle nvmlDeviceGetMaxMigDeviceCount
        nvmlDeviceGetMigDeviceHandleByIndex nvmlDeviceGetDeviceHandleFromMigDeviceHandle
        nvmlDeviceGetGpuInstanceId nvmlDeviceGetComputeInstanceId nvmlDeviceGetAttributes_v2
        nvmlGpmQueryDeviceSupport nvmlGpmSampleAlloc nvmlGpmSampleFree nvmlGpmSampleGet nvmlGpmMigSampleGet
        nvmlGpmMetricsGet nvmlDeviceGetSupportedEventTypes nvmlEventSetCreate nvmlDeviceRegisterEvents
        nvmlEventSetWait_v2 nvmlEventSetFree
    );
    let former = former! {
        nvmlInit: fn();
        nvmlDeviceGetCount: fn(*mut c_uint);
        nvmlDeviceGetHandleByIndex: fn(c_uint, *mut nvmlDevice_t);
        nvmlDeviceGetHandleByPciBusId: fn(*const c_char, *mut nvmlDevice_t);
        nvmlDeviceGetPciInfo_v2: fn(nvmlDevice_t, *mut nvmlPciInfo_t);
        nvmlEventSetWait: fn(nvmlEventSet_t, *mut nvmlEventData_t, c_uint);
        nvmlDeviceGetComputeRunningProcesses: fn(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_v1_t);
        nvmlDeviceGetComputeRunningProcesses_v2: fn(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_v2_t);
        nvmlDeviceGetGraphicsRunningProcesses: fn(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_v1_t);
        nvmlDeviceGetGraphicsRunningProcesses_v2: fn(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_v2_t);
    };
    let unresolved: Vec<&str> = checked.iter().filter(|(_, found)| !found).map(|(name, _)| *name).collect();
    assert_eq!(unresolved, [""; 0]);

    let mut expected: Vec<&str> = checked.iter().map(|(name, _)| *name).chain(former).collect();
    let exported = symbols::defined(&fs::read(&built).unwrap()).unwrap();
    let mut exported: Vec<&str> = exported.iter().map(String::as_str).collect();
    expected.sort_unstable();
    exported.sort_unstable();
    assert_eq!(exported, expected, "the library exports what is checked here and nothing else");
}

#[test]
fn a_hidden_symbol_is_gone_and_no_other() {
    let mut bytes = fs::read(library::locate().unwrap()).unwrap();
    let before = symbols::defined(&bytes).unwrap();
    symbols::hide(&mut bytes, "nvmlInit").unwrap();
    let renamed = |name: &String| if name == "nvmlInit" { "XvmlInit".to_owned() } else { name.clone() };
    assert_eq!(symbols::defined(&bytes).unwrap(), before.iter().map(renamed).collect::<Vec<_>>());
    let gone = Err(SymbolError::Missing("nvmlInit".to_owned()));
    assert_eq!(symbols::hide(&mut bytes, "nvmlInit"), gone);
    assert_eq!(symbols::hide(&mut [0; 99], "nvmlInit"), Err(SymbolError::NotElf));
}

#[test]
fn every_function_that_a_branch_lacks_is_one_of_ours() {
    let exported = symbols::defined(&fs::read(library::locate().unwrap()).unwrap()).unwrap();
    for name in symbols::newer_than(0) {
        assert!(exported.iter().any(|symbol| symbol == name), "{name}");
    }
    assert!(symbols::newer_than(470).contains(&"nvmlDeviceGetMemoryInfo_v2"));
    assert!(!symbols::newer_than(470).contains(&"nvmlDeviceGetMigMode"));
}
