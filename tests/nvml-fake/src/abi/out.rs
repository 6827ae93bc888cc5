//! Writing through pointers of the caller.

use std::ffi::{CStr, c_char, c_uint};

use nvml_wrapper_sys::bindings::{nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlUtilization_t};

use crate::machine::error::NvmlError;

/// What a driver writes where it has no value: the same number in every place.
pub(super) trait Blank {
    /// The structure full of `value`; 32-bit numbers take its low half.
    fn blank(value: u64) -> Self;
}

impl Blank for u32 {
    fn blank(value: u64) -> u32 {
        value as u32
    }
}

impl Blank for u64 {
    fn blank(value: u64) -> u64 {
        value
    }
}

impl Blank for nvmlUtilization_t {
    fn blank(value: u64) -> nvmlUtilization_t {
        nvmlUtilization_t { gpu: value as c_uint, memory: value as c_uint }
    }
}

impl Blank for nvmlMemory_t {
    fn blank(value: u64) -> nvmlMemory_t {
        nvmlMemory_t { total: value, free: value, used: value }
    }
}

impl Blank for nvmlMemory_v2_t {
    fn blank(value: u64) -> nvmlMemory_v2_t {
        nvmlMemory_v2_t { version: MEMORY_V2, total: value, reserved: value, free: value, used: value }
    }
}

impl Blank for nvmlPciInfo_t {
    fn blank(value: u64) -> nvmlPciInfo_t {
        let number = value as c_uint;
        nvmlPciInfo_t {
            busIdLegacy: text_array(""),
            domain: number,
            bus: number,
            device: number,
            pciDeviceId: number,
            pciSubSystemId: number,
            busId: text_array(""),
        }
    }
}

/// `NVML_STRUCT_VERSION(Memory, 2)`.
pub(super) const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | (2 << 24);

/// Writes one value.
///
/// # Safety
/// `target` is null or valid for a write of `T`.
pub(super) unsafe fn write<T>(target: *mut T, value: T) -> Result<(), NvmlError> {
    if target.is_null() {
        return Err(NvmlError::InvalidArgument);
    }
    // SAFETY: not null, hence valid by the caller's promise; the old value needs no drop (C memory).
    unsafe { target.write(value) };
    Ok(())
}

/// Writes `text` and a NUL into a buffer of `length` bytes.
///
/// # Safety
/// `target` is null or valid for writes of `length` bytes.
pub(super) unsafe fn write_text(target: *mut c_char, length: c_uint, text: &str) -> Result<(), NvmlError> {
    if target.is_null() {
        return Err(NvmlError::InvalidArgument);
    }
    if text.len() >= length as usize {
        return Err(NvmlError::InsufficientSize);
    }
    // SAFETY: not null, hence valid for `length` bytes, of which the text and its NUL take at most all; a
    // string slice of ours does not overlap a buffer that the caller may write to.
    unsafe {
        target.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        target.add(text.len()).write(0);
    }
    Ok(())
}

/// Writes `values` to an array by NVML's protocol: `count` is its capacity and becomes the number there is; too
/// small a capacity (0 and a null array to ask for the number) is `InsufficientSize`.
///
/// # Safety
/// `count` is null or valid for reads and writes; `array` is null or valid for writes of `*count` elements.
pub(super) unsafe fn write_array<T>(count: *mut c_uint, array: *mut T, values: &[T]) -> Result<(), NvmlError>
where
    T: Copy,
{
    if count.is_null() {
        return Err(NvmlError::InvalidArgument);
    }
    // SAFETY: not null, hence valid by the caller's promise.
    let capacity = unsafe { count.replace(c_uint::try_from(values.len()).unwrap_or(c_uint::MAX)) };
    if values.is_empty() {
        return Ok(());
    }
    if (capacity as usize) < values.len() {
        return Err(NvmlError::InsufficientSize);
    }
    if array.is_null() {
        return Err(NvmlError::InvalidArgument);
    }
    // SAFETY: the array is not null and holds `capacity >= values.len()` elements by the caller's promise, and
    // a slice of ours does not overlap memory that the caller may write to.
    unsafe { array.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    Ok(())
}

/// Reads a C string.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that nobody changes meanwhile.
pub(super) unsafe fn read_text(text: *const c_char) -> Result<String, NvmlError> {
    if text.is_null() {
        return Err(NvmlError::InvalidArgument);
    }
    // SAFETY: not null, hence a NUL-terminated string by the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(str::to_owned).map_err(|_| NvmlError::InvalidArgument)
}

/// Copies `text` into a C array, cut so that a NUL ends it.
pub(super) fn text_array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (target, byte) in array.iter_mut().take(N - 1).zip(text.bytes()) {
        *target = byte.cast_signed();
    }
    array
}
