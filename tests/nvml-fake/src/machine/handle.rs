//! Device handles: numbers that say which device of which driver load.

use super::error::NvmlError;

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The GPU's place in the configuration.
    pub slot: usize,
    /// The MIG device's place in the GPU's list, or the whole GPU.
    pub mig: Option<usize>,
}

impl Target {
    /// A whole GPU.
    #[must_use]
    pub fn gpu(slot: usize) -> Target {
        Target { slot, mig: None }
    }
}

/// Bits of the slot plus one, of the MIG device plus one, and what is left for the driver load.
const SLOT_BITS: u32 = 8;
const MIG_BITS: u32 = 8;
const LOW: usize = 0xff;

/// The number of a device of a driver load; never 0.
pub(super) fn encode(target: Target, load: usize) -> usize {
    let mig = target.mig.map_or(0, |mig| mig + 1);
    (load << (SLOT_BITS + MIG_BITS)) | (mig << SLOT_BITS) | (target.slot + 1)
}

/// The device of a number.
///
/// # Errors
/// A number of another driver load, or none.
pub(super) fn decode(number: usize, load: usize) -> Result<Target, NvmlError> {
    if number >> (SLOT_BITS + MIG_BITS) != load {
        return Err(NvmlError::InvalidArgument);
    }
    let slot = (number & LOW).checked_sub(1).ok_or(NvmlError::InvalidArgument)?;
    Ok(Target { slot, mig: ((number >> SLOT_BITS) & LOW).checked_sub(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_one_device_of_one_load() {
        for target in [Target::gpu(0), Target::gpu(15), Target { slot: 3, mig: Some(6) }] {
            let number = encode(target, 2);
            assert_ne!(number, 0);
            assert_eq!(decode(number, 2), Ok(target));
            assert_eq!(decode(number, 3), Err(NvmlError::InvalidArgument));
        }
        assert_eq!(decode(0, 0), Err(NvmlError::InvalidArgument));
    }
}
