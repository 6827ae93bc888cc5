//! A GPU's power: which figure there is, and what it means.
//!
//! Invariant: what is integrated is the mean of the last second where the GPU tells it; it is never shown as
//! power at an instant.

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::DeviceArchitecture;

use super::calls::{Calls, is_unsupported};
use super::ffi::Handle;
use super::fields::{Fields, Figure};
use super::sentinel::watts;
use crate::device::gpu::{Power, Scoped};
use crate::device::uncertainty::{Attention, Seen};

/// PCI device numbers of GA100 boards (A100, A30, A800), by NVIDIA's allotment of a range to each chip.
const GA100: std::ops::RangeInclusive<u32> = 0x2080..=0x20ff;

/// What `nvmlDeviceGetPowerUsage` means on a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Usage {
    /// Power at an instant: GA100 and what is older than Ampere.
    Instant,
    /// Mean of the last second: Ampere and newer.
    Average,
}

impl Attention {
    /// How the sensor of `device` looks, by "Part-time Power Measurements" (arXiv 2312.02741): for 100 of 100 ms on
    /// Turing and Ada, for 25 on GA100 and Hopper. Others are taken for no better than these.
    pub(super) fn of(device: &Device<'_>) -> Self {
        match device.architecture() {
            Ok(DeviceArchitecture::Turing | DeviceArchitecture::Ada) => Self::Full,
            Ok(_) | Err(_) => Self::Part,
        }
    }
}

impl Usage {
    /// What it means on `device`.
    pub(super) fn of(device: &Device<'_>) -> Self {
        let pci = device.pci_info().map(|pci| pci.pci_device_id >> 16);
        if pci.is_ok_and(|number| GA100.contains(&number)) {
            return Self::Instant;
        }
        match device.architecture() {
            Ok(
                DeviceArchitecture::Kepler
                | DeviceArchitecture::Maxwell
                | DeviceArchitecture::Pascal
                | DeviceArchitecture::Volta
                | DeviceArchitecture::Turing,
            ) => Self::Instant,
            // The call came with the driver that knows Ampere: without it there is none.
            Err(error) if is_unsupported(&error) => Self::Instant,
            // What is newer than the wrapper is an error, too.
            Ok(_) | Err(_) => Self::Average,
        }
    }
}

/// Power of one reading, in milliwatts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Reading {
    fields: Power,
    /// What `nvmlDeviceGetPowerUsage` said, where no field tells the power at an instant.
    usage: Option<(Usage, u64)>,
    average: Option<u64>,
    instant: Option<u64>,
}

/// Takes power from fields that were read, or from the older call.
pub(super) fn read(handle: &Handle, fields: &Fields, usage: Usage, calls: &mut Calls<'_>) -> Reading {
    let scoped = |gpu, module, memory| {
        let field = |figure| fields.get(figure).and_then(watts);
        Scoped { gpu: field(gpu), module: field(module), memory: field(memory) }
    };
    let instant = scoped(Figure::InstantGpu, Figure::InstantModule, Figure::InstantMemory);
    let average = scoped(Figure::AverageGpu, Figure::AverageModule, Figure::AverageMemory);
    let older = if instant.gpu.is_none() { calls.take(handle.device().power_usage()) } else { None };
    let older = older.map(u64::from).filter(|milliwatts| watts(*milliwatts).is_some());
    let milliwatts = |figure| fields.get(figure).filter(|milliwatts| watts(*milliwatts).is_some());
    Reading {
        fields: Power { instant, average },
        usage: older.map(|milliwatts| (usage, milliwatts)),
        average: milliwatts(Figure::AverageGpu),
        instant: milliwatts(Figure::InstantGpu),
    }
}

impl Reading {
    /// Milliwatts to integrate. Means of a second miss nothing between two readings, and integrate to the true
    /// energy half a second late; instants ten times a second miss what is faster than they are: 0.6 % over
    /// 12 s of square waves of 0.37 and 1.3 s (`tests/it-metering`), where means are within 0.1 %.
    pub(super) fn to_integrate(self) -> Option<u64> {
        self.average.or(self.usage.map(|(_, milliwatts)| milliwatts)).or(self.instant)
    }

    /// What it tells of how power changes; `None` where there is none.
    pub(super) fn seen(self) -> Option<Seen> {
        let seen = |milliwatts| Seen {
            watts: milliwatts as f64 / 1e3,
            is_mean: self.is_mean(),
            instant_watts: self.fields.instant.gpu,
        };
        self.to_integrate().map(seen)
    }

    /// Whether what is integrated is a mean.
    pub(super) fn is_mean(self) -> bool {
        self.average.is_some() || matches!(self.usage, Some((Usage::Average, _)))
    }

    /// Watts to show, the older call's by what it means.
    pub(super) fn shown(self) -> Power {
        let mut shown = self.fields;
        if let Some((usage, milliwatts)) = self.usage {
            let place = match usage {
                Usage::Instant => &mut shown.instant.gpu,
                Usage::Average => &mut shown.average.gpu,
            };
            *place = place.or(watts(milliwatts));
        }
        shown
    }
}
