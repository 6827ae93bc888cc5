//! Figures by number, all of a GPU's in one call.
//!
//! Invariant: one call a reading. A field that the GPU does not have is not asked for again until its driver
//! was loaded anew or it was lost: asking for what is unsupported costs as much as asking for what is there.

use nvml_wrapper::FieldIdScheme;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id as id;
use nvml_wrapper_sys::bindings::{
    NVML_POWER_SCOPE_GPU as GPU, NVML_POWER_SCOPE_MEMORY as MEMORY, NVML_POWER_SCOPE_MODULE as MODULE,
    nvmlFieldValue_t,
};

use super::calls::{Calls, is_unsupported};
use super::ffi::{self, Handle};

/// A figure that is read by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Figure {
    InstantGpu,
    AverageGpu,
    InstantModule,
    PcieTransmit,
    PcieReceive,
    // From here on only once a window.
    InstantMemory,
    AverageModule,
    AverageMemory,
    SwPowerCap,
    SyncBoost,
    SwThermal,
    HwThermal,
    HwPowerBrake,
    RecoveryAction,
}

/// Each figure, those of every reading first, with its field and scope by the numbers of before 580.82.
const ASKED: [(Figure, u32, u32); 14] = [
    (Figure::InstantGpu, id::NVML_FI_DEV_POWER_INSTANT, GPU),
    (Figure::AverageGpu, id::NVML_FI_DEV_POWER_AVERAGE, GPU),
    (Figure::InstantModule, id::NVML_FI_DEV_POWER_INSTANT, MODULE),
    (Figure::PcieTransmit, id::NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 0),
    (Figure::PcieReceive, id::NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 0),
    (Figure::InstantMemory, id::NVML_FI_DEV_POWER_INSTANT, MEMORY),
    (Figure::AverageModule, id::NVML_FI_DEV_POWER_AVERAGE, MODULE),
    (Figure::AverageMemory, id::NVML_FI_DEV_POWER_AVERAGE, MEMORY),
    (Figure::SwPowerCap, id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, 0),
    (Figure::SyncBoost, id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST, 0),
    (Figure::SwThermal, id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, 0),
    (Figure::HwThermal, id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, 0),
    (Figure::HwPowerBrake, id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, 0),
    (Figure::RecoveryAction, id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0),
];

/// Figures of every reading: power, to integrate it; bytes, because they wrap.
const EVERY_TIME: usize = 5;

/// What 580.82 added to the numbers 251 to 255, and in other headers stays as it was.
const MOVED_BY: u32 = 18;

/// The fields of one GPU.
pub(super) struct Fields {
    /// In the order of [`ASKED`], less those that are not there.
    figures: Vec<Figure>,
    values: Vec<nvmlFieldValue_t>,
    every_time: usize,
    newest: [Option<u64>; ASKED.len()],
}

impl Fields {
    /// All of them, by the numbers of a driver.
    pub(super) fn new(scheme: FieldIdScheme) -> Self {
        let number = |field: u32| match scheme {
            FieldIdScheme::V13Update1 if (251..=255).contains(&field) => field + MOVED_BY,
            _ => field,
        };
        Self {
            figures: ASKED.iter().map(|(figure, ..)| *figure).collect(),
            values: ASKED.iter().map(|(_, field, scope)| ffi::field(number(*field), *scope)).collect(),
            every_time: EVERY_TIME,
            newest: [None; ASKED.len()],
        }
    }

    /// Reads those of every reading, and with `full` all.
    pub(super) fn read(&mut self, handle: &Handle, full: bool, calls: &mut Calls<'_>) {
        self.newest = [None; ASKED.len()];
        let asked = if full { self.values.len() } else { self.every_time };
        if asked == 0 {
            return;
        }
        match handle.field_values(&mut self.values[..asked]) {
            Ok(()) => self.take(asked, calls),
            Err(error) if is_unsupported(&error) => self.drop_all(),
            Err(error) => calls.fail(&error),
        }
    }

    /// The newest reading's figure.
    pub(super) fn get(&self, figure: Figure) -> Option<u64> {
        self.newest[figure as usize]
    }

    /// Whether the GPU has a figure, as far as is known.
    pub(super) fn has(&self, figure: Figure) -> bool {
        self.figures.contains(&figure)
    }

    fn take(&mut self, asked: usize, calls: &mut Calls<'_>) {
        let mut lacking = false;
        for (figure, value) in self.figures[..asked].iter().zip(&self.values) {
            match ffi::figure(value) {
                Ok(figure_value) => self.newest[*figure as usize] = figure_value,
                Err(error) if is_lacking(&error) => lacking = true,
                Err(error) => calls.fail(&error),
            }
        }
        if lacking {
            self.drop_lacking(asked);
        }
    }

    fn drop_lacking(&mut self, asked: usize) {
        for place in (0..asked).rev() {
            if ffi::figure(&self.values[place]).is_err_and(|error| is_lacking(&error)) {
                self.figures.remove(place);
                self.values.remove(place);
                self.every_time -= usize::from(place < self.every_time);
            }
        }
    }

    fn drop_all(&mut self) {
        self.figures.clear();
        self.values.clear();
        self.every_time = 0;
    }
}

/// Whether a field is not there at all: an older driver takes a number that it does not know for a wrong argument.
fn is_lacking(error: &NvmlError) -> bool {
    is_unsupported(error) || matches!(error, NvmlError::InvalidArg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_in_the_order_of_their_numbers() {
        for (place, (figure, ..)) in ASKED.iter().enumerate() {
            assert_eq!(*figure as usize, place, "{figure:?}");
        }
        assert_eq!(ASKED[EVERY_TIME].0, Figure::InstantMemory);
    }

    #[test]
    fn thermal_counters_have_the_drivers_numbers() {
        let numbers = |scheme| {
            let fields = Fields::new(scheme);
            let moved = [Figure::SwThermal, Figure::HwThermal, Figure::HwPowerBrake];
            moved.map(|figure| fields.values[figure as usize].fieldId)
        };
        assert_eq!(numbers(FieldIdScheme::V12), [251, 252, 253]);
        assert_eq!(numbers(FieldIdScheme::V13Update1), [269, 270, 271]);
    }
}
