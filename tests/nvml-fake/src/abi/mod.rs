//! The C interface: the functions that `dlsym` finds, and nothing that decides.
//!
//! A function checks its pointers, asks the [`crate::machine`] under the [`driver`]'s lock and clock, and
//! writes the answer out. Types and constants come from `nvml-wrapper-sys`, which is generated from NVIDIA's
//! header; `tests/abi.rs` holds each function against the same source, and `layout` each structure against the
//! sizes and offsets of the header.

#![allow(unsafe_code, reason = "a C interface: pointers come from the caller")]
#![allow(non_snake_case, reason = "NVML's names")]

pub mod device;
pub(crate) mod driver;
pub mod ecc;
pub mod events;
pub mod fields;
pub mod gpm;
#[cfg(test)]
mod layout;
pub mod legacy;
pub mod limits;
pub mod memory;
pub mod mig;
mod out;
pub mod process;
pub mod sensors;
pub mod system;

use std::ptr;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use crate::machine::Machine;
use crate::machine::error::NvmlError;
use crate::machine::gpu::Gpu;
use crate::machine::handle::Target;
use out::Blank;

/// A handle is a number that is never 0 and never dereferenced.
fn handle(machine: &Machine, target: Target) -> nvmlDevice_t {
    ptr::without_provenance_mut(machine.handle(target))
}

/// Does something about a GPU or a MIG device on behalf of `function`.
fn on_device<T>(
    function: &'static str,
    device: nvmlDevice_t,
    body: impl FnOnce(&mut Machine, Target, u64) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    driver::call(function, |machine, now_ns| {
        let target = machine.enter(device.addr(), function, now_ns)?;
        body(machine, target, now_ns)
    })
}

/// Reads something of a whole GPU on behalf of `function`. A MIG device does not support it.
fn on_gpu<T>(
    function: &'static str,
    device: nvmlDevice_t,
    read: impl FnOnce(&Gpu, u64) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    on_device(function, device, |machine, target, now_ns| {
        read(machine.gpu(whole(target)?, function)?, now_ns)
    })
}

/// The same, unless a test wants a blank value.
fn figure<T: Blank>(
    function: &'static str,
    device: nvmlDevice_t,
    read: impl FnOnce(&Gpu, u64) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    on_device(function, device, |machine, target, now_ns| {
        let slot = whole(target)?;
        match machine.blank(slot, function) {
            Some(value) => Ok(T::blank(value)),
            None => read(machine.gpu(slot, function)?, now_ns),
        }
    })
}

/// The slot of a whole GPU.
fn whole(target: Target) -> Result<usize, NvmlError> {
    if target.mig.is_some() { Err(NvmlError::NotSupported) } else { Ok(target.slot) }
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
            let figure = super::figure(stringify!($name), device, read);
            // SAFETY: the caller's promise about the out pointer is the one that `write` asks for.
            super::code(figure.and_then(|figure| unsafe { super::out::write($out, figure) }))
        }
    )+};
}
use gpu_figures;
