//! A fake `libnvidia-ml.so.1`: GPUs whose true energy is known exactly.
//!
//! Programs under test load it as they load NVIDIA's library, so their own FFI path is what is tested.
//!
//! - [`machine`] is the state: safe, pure, with time as an argument. Power follows a waveform whose integral is
//!   known in closed form; the energy counter is that integral, rounded down to millijoules.
//! - [`abi`] is the C interface and owns the clock.
//! - The control socket (one JSON [`machine::command::Command`] a line, one [`machine::command::Answer`] back)
//!   changes a running fake and tells the truth; [`client`] speaks it.
//! - [`library`] finds the built library and installs a copy.
//!
//! The library reads its configuration ([`machine::config::Config`], JSON) when it is first initialised: from
//! the file that `NVML_FAKE_CONFIG` names, else from `nvml-fake.json` beside the library, else it is two
//! H100-like GPUs. `NVML_FAKE_SOCKET`, or else the configuration's `socket`, is where the control socket is.
//!
//! # What it does not have
//! Only the functions of [`abi`] resolve; any other is a missing symbol, as in a driver older than the
//! function. [`library::install_without`] hides more; the configuration's `fail` answers
//! `FUNCTION_NOT_FOUND`, as NVML does where library and kernel module differ. Each process has a state of its
//! own; with the configuration's `limits_file` it shares power limits with others.
//!
//! Where NVIDIA's behaviour is not documented, it does the simplest thing that an agent must survive: a handle
//! of a `not_found` GPU answers `NOT_FOUND`, a handle of before a driver load answers `INVALID_ARGUMENT`, a MIG
//! device answers `NOT_SUPPORTED` to what only a whole GPU has, and every Xid event keeps its own Xid.

pub mod abi;
pub mod client;
pub mod library;
mod limits_file;
pub mod machine;
mod server;
mod settings;
pub mod symbols;

pub use server::MAX_REQUEST_BYTES;
pub use settings::{CONFIG_FILE_BESIDE, CONFIG_VARIABLE, SOCKET_VARIABLE};
