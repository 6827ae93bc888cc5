//! Flushing denormal numbers to zero while a thread works.
//!
//! Denormals cost a microcode assist of about 150 cycles each; late in training activations and
//! Adam's moments are full of them (a small step slowed 3.2 times). On x86-64 the MXCSR register's
//! FTZ (results) and DAZ (operands) bits turn them off per thread. Elsewhere this does nothing.
//!
//! Invariant: the caller's MXCSR is restored, also when the work panics.
#![allow(unsafe_code, reason = "MXCSR is reached by two instructions only; each block proves itself")]

/// Runs `work` on this thread with denormals flushed.
///
/// Rust assumes the default floating-point environment, so the compiler might fold or move an
/// operation as if denormals were kept. The assembly blocks clobber memory and `work` is called
/// behind a call that is never inlined, so no load, store or operation on loaded values crosses
/// them; what is folded at compile time has no denormal (constants of `maths` and `loss`).
pub(crate) fn flushed<R>(work: impl FnOnce() -> R) -> R {
    let _restore = Flush::set();
    isolated(work)
}

#[inline(never)]
fn isolated<R>(work: impl FnOnce() -> R) -> R {
    work()
}

struct Flush {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

#[cfg(target_arch = "x86_64")]
impl Flush {
    /// Bit 15: results that would be denormal become 0. Bit 6: denormal operands count as 0.
    const FTZ_AND_DAZ: u32 = 1 << 15 | 1 << 6;

    fn set() -> Self {
        let before = read();
        write(before | Self::FTZ_AND_DAZ);
        Self { before }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Flush {
    fn drop(&mut self) {
        write(self.before);
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> u32 {
    let mut value = 0u32;
    // SAFETY: `stmxcsr` stores 32 bits to the address it is given, that of a live, aligned `u32`.
    // SSE is part of every x86-64.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

#[cfg(target_arch = "x86_64")]
fn write(value: u32) {
    // SAFETY: `ldmxcsr` loads 32 bits from the address of a live, aligned `u32`. It faults on reserved
    // bits: `value` is what `stmxcsr` gave, plus FTZ (all of SSE) and DAZ (all of x86-64).
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags)) };
}

#[cfg(not(target_arch = "x86_64"))]
impl Flush {
    fn set() -> Self {
        Self {}
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::hint::black_box;

    fn half_of_the_smallest_normal() -> f32 {
        black_box(f32::MIN_POSITIVE) * black_box(0.5)
    }

    #[test]
    fn denormals_vanish_inside_only() {
        assert!(half_of_the_smallest_normal() > 0.0);
        assert_eq!(flushed(half_of_the_smallest_normal), 0.0);
        let denormal = f32::from_bits(1);
        assert_eq!(flushed(|| black_box(denormal) * black_box(f32::MAX)), 0.0);
        assert!(half_of_the_smallest_normal() > 0.0);
    }

    #[test]
    fn a_panic_restores_the_register() {
        let before = read();
        let result = std::panic::catch_unwind(|| flushed(|| panic!("inside")));
        assert!(result.is_err());
        // The exception flags (bits 0 to 5) are sticky and not ours.
        assert_eq!(read() & !0x3f, before & !0x3f);
    }
}
