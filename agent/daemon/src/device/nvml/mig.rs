//! What a GPU is partitioned into, and who computes on the parts.
//!
//! Invariant: power and energy are the whole GPU's; a part has none of its own. A place without an instance is
//! not a lost GPU.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::calls::{Calls, is_unsupported};
use super::ffi;
use crate::device::gpu::MigInstance;

/// Most instances of a GPU, by what the hardware has.
const MAX_INSTANCES: u32 = 16;
const BYTES_PER_MIB: u64 = 1 << 20;
/// NVML's word for on.
const ENABLED: u32 = 1;

/// The partitioning of one GPU.
pub(super) struct Mig {
    possible: bool,
    on: bool,
    instances: Vec<MigInstance>,
}

impl Default for Mig {
    fn default() -> Self {
        Self { possible: true, on: false, instances: Vec::new() }
    }
}

impl Mig {
    /// Whether the GPU is partitioned: its own utilisation and processes are then not to be had.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// The parts.
    pub(super) fn instances(&self) -> &[MigInstance] {
        &self.instances
    }

    /// Looks whether the GPU is partitioned, and into what; adds who computes on the parts to `pids`.
    pub(super) fn read(
        &mut self,
        nvml: &Nvml,
        device: &Device<'_>,
        calls: &mut Calls<'_>,
        pids: &mut Vec<u32>,
    ) {
        if !self.possible {
            return;
        }
        match device.mig_mode() {
            Ok(mode) => self.on = mode.current == ENABLED,
            Err(error) if is_unsupported(&error) => self.possible = false,
            Err(error) => calls.fail(&error),
        }
        let known = std::mem::take(&mut self.instances);
        if self.on {
            let places = calls.take(device.mig_device_count()).unwrap_or(0);
            for place in 0..places.min(MAX_INSTANCES) {
                self.instances.extend(instance(nvml, device, place, &known, calls, pids));
            }
        }
    }
}

/// The instance at a place; what does not change is asked for once.
fn instance(
    nvml: &Nvml,
    gpu: &Device<'_>,
    place: u32,
    known: &[MigInstance],
    calls: &mut Calls<'_>,
    pids: &mut Vec<u32>,
) -> Option<MigInstance> {
    let device = present(gpu.mig_device_by_index(place), calls)?;
    let uuid = present(device.uuid(), calls)?;
    let processes = present(device.running_compute_processes(), calls).unwrap_or_default();
    pids.extend(processes.iter().map(|process| process.pid));
    if let Some(known) = known.iter().find(|known| known.uuid == uuid) {
        return Some(known.clone());
    }
    let instances = present(ffi::mig_instances(nvml, &device), calls);
    let attributes = present(device.attributes(), calls);
    Some(MigInstance {
        uuid,
        gpu_instance: instances.map(|(gpu, _)| gpu),
        compute_instance: instances.map(|(_, compute)| compute),
        slices: attributes.as_ref().map(|a| a.gpu_instance_slice_count),
        memory_bytes: attributes.and_then(|a| a.memory_size_mb.checked_mul(BYTES_PER_MIB)),
    })
}

/// What a call upon an instance says; one that is not there, or gone since, says nothing.
fn present<T>(result: Result<T, NvmlError>, calls: &mut Calls<'_>) -> Option<T> {
    match result {
        Err(NvmlError::NotFound | NvmlError::InvalidArg) => None,
        result => calls.take(result),
    }
}
