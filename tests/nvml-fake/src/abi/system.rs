//! Start, end, versions and error texts.

use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::sync::LazyLock;

use nvml_wrapper_sys::bindings::nvmlReturn_t;

use super::{code, driver, out};
use crate::machine::error::NvmlError;

/// Loads the driver at the first call and counts one more user.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    code(driver::init("nvmlInit_v2"))
}

/// As [`nvmlInit_v2`]; the flags change nothing here.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    code(driver::init("nvmlInitWithFlags"))
}

/// One user fewer.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    code(driver::call("nvmlShutdown", |machine, _| machine.shutdown()))
}

static ERROR_TEXTS: LazyLock<Vec<(u32, CString)>> = LazyLock::new(|| {
    // No text holds a NUL, which is all that `CString::new` refuses.
    let text = |error: NvmlError| CString::new(error.to_string()).unwrap_or_default();
    NvmlError::ALL.iter().map(|error| (error.code(), text(*error))).collect()
});

const SUCCESS_TEXT: &CStr = c"Success";
const OTHER_TEXT: &CStr = c"Unknown Error";

/// The text of a return code, which lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    if result == 0 {
        return SUCCESS_TEXT.as_ptr();
    }
    let text = ERROR_TEXTS.iter().find(|(code, _)| *code == result);
    text.map_or(OTHER_TEXT, |(_, text)| text.as_c_str()).as_ptr()
}

/// Driver version.
///
/// # Safety
/// `version` is null or valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let text =
        driver::call("nvmlSystemGetDriverVersion", |machine, _| Ok(machine.config().driver_version.clone()));
    // SAFETY: the caller's promise about the buffer.
    code(text.and_then(|text| unsafe { out::write_text(version, length, &text) }))
}

/// NVML version.
///
/// # Safety
/// `version` is null or valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let text =
        driver::call("nvmlSystemGetNVMLVersion", |machine, _| Ok(machine.config().nvml_version.clone()));
    // SAFETY: the caller's promise about the buffer.
    code(text.and_then(|text| unsafe { out::write_text(version, length, &text) }))
}

/// CUDA driver version, as `1000 × major + 10 × minor`.
///
/// # Safety
/// `version` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    let number =
        driver::call("nvmlSystemGetCudaDriverVersion", |machine, _| Ok(machine.config().cuda_version));
    // SAFETY: the caller's promise about the pointer.
    code(number.and_then(|number| unsafe { out::write(version, number) }))
}

/// CUDA driver version, as `1000 × major + 10 × minor`.
///
/// # Safety
/// `version` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    let number =
        driver::call("nvmlSystemGetCudaDriverVersion_v2", |machine, _| Ok(machine.config().cuda_version));
    // SAFETY: the caller's promise about the pointer.
    code(number.and_then(|number| unsafe { out::write(version, number) }))
}
