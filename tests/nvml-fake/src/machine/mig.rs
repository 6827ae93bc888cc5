//! MIG devices of a GPU.

use super::config::MigConfig;
use super::error::NvmlError;
use super::gpu::Gpu;

impl Gpu {
    /// Its MIG devices.
    ///
    /// # Errors
    /// MIG is off.
    pub fn mig_devices(&self) -> Result<&[MigConfig], NvmlError> {
        if self.config.mig { Ok(&self.config.mig_devices) } else { Err(NvmlError::NotSupported) }
    }

    /// One of them.
    ///
    /// # Errors
    /// MIG is off, or there is none at this place.
    pub fn mig_device(&self, place: usize) -> Result<&MigConfig, NvmlError> {
        self.mig_devices()?.get(place).ok_or(NvmlError::NotFound)
    }

    /// UUID of a MIG device.
    ///
    /// # Errors
    /// As [`Self::mig_device`].
    pub fn mig_uuid(&self, place: usize) -> Result<String, NvmlError> {
        let device = self.mig_device(place)?;
        let default = || format!("MIG-{}-{place}", self.uuid.trim_start_matches("GPU-"));
        Ok(device.uuid.clone().unwrap_or_else(default))
    }

    /// Name of a MIG device, e.g. `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
    ///
    /// # Errors
    /// As [`Self::mig_device`].
    pub fn mig_name(&self, place: usize) -> Result<String, NvmlError> {
        let device = self.mig_device(place)?;
        let gigabytes = device.memory_bytes.div_ceil(1 << 30);
        Ok(format!("{} MIG {}g.{gigabytes}gb", self.config.name, device.slices))
    }

    /// GPU instance and compute instance of a MIG device.
    ///
    /// # Errors
    /// As [`Self::mig_device`].
    pub fn mig_instances(&self, place: usize) -> Result<(u32, u32), NvmlError> {
        let device = self.mig_device(place)?;
        let gpu_instance = device.gpu_instance.unwrap_or_else(|| u32::try_from(place + 1).unwrap_or(0));
        Ok((gpu_instance, device.compute_instance))
    }

    /// Memory that the processes on a MIG device hold, in bytes.
    #[must_use]
    pub fn mig_used_bytes(&self, place: usize) -> u64 {
        let on_it = self.processes.iter().filter(|process| process.mig_device == Some(place));
        on_it.filter_map(|process| process.memory_bytes).sum()
    }
}
