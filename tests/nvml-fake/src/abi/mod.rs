//! The C interface: the functions that `dlsym` finds, and nothing that decides.
//!
//! A function checks its pointers, asks the [`crate::machine`] under the [`driver`]'s lock and clock, and
//! writes the answer out. Types and constants come from `nvml-wrapper-sys`, which is generated from NVIDIA's
//! header, so layouts are right by construction; the test in `signatures` holds each signature against the same source.

#![allow(unsafe_code, reason = "a C interface: pointers come from the caller")]
#![allow(non_snake_case, reason = "NVML's names")]

pub mod device;
pub(crate) mod driver;
pub mod events;
pub mod fields;
pub mod limits;
mod out;
pub mod process;
pub mod sensors;
#[cfg(test)]
mod signatures;
pub mod system;

use std::ptr;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;

/// A handle is its GPU's place in the configuration, plus one so that it is never null. It is never
/// dereferenced.
fn handle(slot: usize) -> nvmlDevice_t {
    ptr::without_provenance_mut(slot + 1)
}

fn slot(device: nvmlDevice_t) -> Result<usize, NvmlError> {
    device.addr().checked_sub(1).ok_or(NvmlError::InvalidArgument)
}

/// Reads something of a GPU on behalf of `function`.
fn on_gpu<T>(
    function: &'static str,
    device: nvmlDevice_t,
    read: impl FnOnce(&Gpu, u64) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    driver::call(function, |machine, now_ns| read(machine.gpu(slot(device)?, function)?, now_ns))
}

fn code(result: Result<(), NvmlError>) -> nvmlReturn_t {
    result.map_or_else(NvmlError::code, |()| 0)
}

/// Functions that write one figure of a GPU, given as `name(out: type) = |gpu, now_ns| figure`.
macro_rules! gpu_figures {
    ($($(#[$doc:meta])* $name:ident($out:ident: $type:ty) = $read:expr;)+) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The out pointer is null or valid for a write.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, $out: *mut $type) -> nvmlReturn_t {
            let read: fn(&Gpu, u64) -> Result<$type, NvmlError> = $read;
            let figure = super::on_gpu(stringify!($name), device, read);
            // SAFETY: the caller's promise about the out pointer is the one that `write` asks for.
            super::code(figure.and_then(|figure| unsafe { super::out::write($out, figure) }))
        }
    )+};
}
use gpu_figures;
