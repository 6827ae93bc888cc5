//! GPM: means between two samples that a caller takes, on Hopper and newer.

use std::collections::BTreeMap;

use super::error::NvmlError;
use super::gpu::Gpu;
use super::handle::Target;

const GRAPHICS_UTIL: u32 = 1;
const SM_UTIL: u32 = 2;
const SM_OCCUPANCY: u32 = 3;
const ANY_TENSOR_UTIL: u32 = 5;
const HMMA_TENSOR_UTIL: u32 = 7;
const DRAM_BW_UTIL: u32 = 10;
const FP32_UTIL: u32 = 12;
const PCIE_TX_PER_SEC: u32 = 20;
const PCIE_RX_PER_SEC: u32 = 21;

const BYTES_PER_MIB: f64 = (1_u64 << 20) as f64;

/// What a metric is called, with NULs for C, and its unit.
#[derive(Debug, Clone, Copy)]
pub struct MetricInfo {
    /// Name of the metric.
    pub name: &'static std::ffi::CStr,
    /// Unit.
    pub unit: &'static std::ffi::CStr,
}

/// What was sampled, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    target: Target,
    at_ns: u64,
}

/// The samples that callers hold, by number.
#[derive(Debug, Default)]
pub struct Samples {
    held: BTreeMap<usize, Option<Sample>>,
    allocated: usize,
}

impl Samples {
    /// A new, empty sample; its number is never 0 and never used again.
    pub fn allocate(&mut self) -> usize {
        self.allocated += 1;
        self.held.insert(self.allocated, None);
        self.allocated
    }

    /// Frees a sample.
    ///
    /// # Errors
    /// No such sample.
    pub fn free(&mut self, number: usize) -> Result<(), NvmlError> {
        self.held.remove(&number).map(|_| ()).ok_or(NvmlError::InvalidArgument)
    }

    /// Fills a sample.
    ///
    /// # Errors
    /// No such sample.
    pub fn fill(&mut self, number: usize, target: Target, at_ns: u64) -> Result<(), NvmlError> {
        *self.held.get_mut(&number).ok_or(NvmlError::InvalidArgument)? = Some(Sample { target, at_ns });
        Ok(())
    }

    /// Two filled samples of one device, in the order of time.
    ///
    /// # Errors
    /// Samples that are not there, empty, of two devices or in the wrong order.
    pub fn pair(&self, first: usize, second: usize) -> Result<(Sample, Sample), NvmlError> {
        let filled = |number| self.held.get(&number).copied().flatten().ok_or(NvmlError::InvalidArgument);
        let (first, second): (Sample, Sample) = (filled(first)?, filled(second)?);
        let ordered = first.target == second.target && first.at_ns <= second.at_ns;
        if ordered { Ok((first, second)) } else { Err(NvmlError::InvalidArgument) }
    }
}

impl Sample {
    /// The GPU that was sampled: its place in the configuration.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.target.slot
    }
}

/// A metric between two samples of `gpu`, in percent or MiB/s. A MIG device is as busy as its GPU.
///
/// # Errors
/// An unknown metric, or no time between the samples.
pub fn metric(gpu: &Gpu, metric: u32, from: &Sample, to: &Sample) -> Result<f64, NvmlError> {
    if from.at_ns == to.at_ns {
        return Err(NvmlError::NoData);
    }
    let (busy, memory) = gpu.busy_percent(from.at_ns, to.at_ns);
    match metric {
        GRAPHICS_UTIL | SM_UTIL => Ok(busy),
        // What a large matrix product looks like.
        SM_OCCUPANCY | FP32_UTIL => Ok(busy * 0.25),
        ANY_TENSOR_UTIL | HMMA_TENSOR_UTIL => Ok(busy * 0.5),
        DRAM_BW_UTIL => Ok(memory),
        PCIE_TX_PER_SEC => Ok(gpu.config.pcie_transmit_bytes_per_second as f64 / BYTES_PER_MIB),
        PCIE_RX_PER_SEC => Ok(gpu.config.pcie_receive_bytes_per_second as f64 / BYTES_PER_MIB),
        _ => Err(NvmlError::NotSupported),
    }
}

/// Name and unit of a metric that [`metric`] has.
#[must_use]
pub fn info(metric: u32) -> Option<MetricInfo> {
    let percent = |name| Some(MetricInfo { name, unit: c"%" });
    match metric {
        GRAPHICS_UTIL => percent(c"Graphics Util"),
        SM_UTIL => percent(c"SM Util"),
        SM_OCCUPANCY => percent(c"SM Occupancy"),
        ANY_TENSOR_UTIL => percent(c"Any Tensor Util"),
        HMMA_TENSOR_UTIL => percent(c"HMMA Tensor Util"),
        DRAM_BW_UTIL => percent(c"DRAM BW Util"),
        FP32_UTIL => percent(c"FP32 Util"),
        PCIE_TX_PER_SEC => Some(MetricInfo { name: c"PCIe TX", unit: c"MiB/s" }),
        PCIE_RX_PER_SEC => Some(MetricInfo { name: c"PCIe RX", unit: c"MiB/s" }),
        _ => None,
    }
}
