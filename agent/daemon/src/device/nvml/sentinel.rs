//! Numbers with which NVML says "absent".
//!
//! Invariant: a blank never becomes a figure: not in 32 bits, not in 64, and not a 32-bit one widened to 64.

use crate::device::gpu::MAX_GPU_WATTS;

/// From here on a 64-bit figure is a blank: 9.22e18 and its like. No counter gets here.
const WIDE: u64 = 1 << 62;

/// Whether a 64-bit figure is one.
pub(super) fn is_figure(value: u64) -> bool {
    value < WIDE && value != u64::from(u32::MAX)
}

/// A power in watts, unless it is a blank or more than any module draws.
pub(super) fn watts(milliwatts: u64) -> Option<f64> {
    let watts = milliwatts as f64 / 1e3;
    (is_figure(milliwatts) && watts <= MAX_GPU_WATTS).then_some(watts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_absent() {
        for blank in [u64::MAX, i64::MAX as u64, 9_220_000_000_000_000_000, 4_294_967_295] {
            assert!(!is_figure(blank), "{blank}");
            assert_eq!(watts(blank), None);
        }
        assert!(is_figure(0) && is_figure(5_000_000_000_000), "158 years at 1 kW in millijoules");
        assert_eq!((watts(0), watts(632_000), watts(6_000_000)), (Some(0.0), Some(632.0), None));
    }
}
