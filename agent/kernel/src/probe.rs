//! How fast this machine multiplies matrices: the peak against which utilisation is measured.
//!
//! Invariant: no clock. [`Probe::run`] does a fixed amount of work and says how much; the caller times
//! it, takes the best of a few, and divides.

use crate::SetupError;
use crate::multiply::{View, multiply};
use crate::pool::Pool;
use crate::random::SplitMix64;

/// Rows, columns and depth of each product. Three such matrices are 768 KiB: they fit the second-level
/// cache of a server's core, and the sum is not cut, so that the product runs at the best rate.
const SIZE: usize = 256;
/// Products per thread and run: 0.54 GFLOP, 2 to 5 ms at 100 to 240 GFLOP/s. Short enough to fit between two
/// turns of whatever else wants the CPU (schedulers give some 3 ms or more at a time), so that the best of many
/// runs is one that nothing interrupted; a hundred times as long as it takes to wake the threads.
const PRODUCTS: usize = 16;

/// A dense `f32` workload on all threads at once.
pub struct Probe {
    pool: Pool,
    left: Vec<f32>,
    right: Vec<f32>,
}

impl Probe {
    /// A probe of `threads` threads: as many as the kernel will have.
    ///
    /// # Errors
    /// [`SetupError`] as for [`crate::Kernel::new`].
    pub fn new(threads: usize) -> Result<Self, SetupError> {
        let mut random = SplitMix64::new(1);
        // Random and not 0: zeros draw less power and so clock higher than real work.
        let mut matrix = || (0..SIZE * SIZE).map(|_| random.unit() - 0.5).collect();
        Ok(Self { pool: Pool::new(threads)?, left: matrix(), right: matrix() })
    }

    /// Does the work once on each thread at the same time and returns the FLOPs of all.
    pub fn run(&mut self) -> u64 {
        let done = self.pool.on_each(|| self.products());
        done.into_iter().sum()
    }

    fn products(&self) -> u64 {
        let mut product = vec![0.0; SIZE * SIZE];
        let left = View::row_major(&self.left, SIZE, SIZE);
        let right = View::row_major(&self.right, SIZE, SIZE);
        for _ in 0..PRODUCTS {
            multiply(&mut product, left, right);
        }
        std::hint::black_box(&product);
        (PRODUCTS * 2 * SIZE * SIZE * SIZE) as u64
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_does_the_same_work() {
        let one = Probe::new(1).unwrap().run();
        assert_eq!(one, 2 * 256u64.pow(3) * PRODUCTS as u64);
        assert_eq!(Probe::new(3).unwrap().run(), 3 * one);
    }
}
