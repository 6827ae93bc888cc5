//! The device's peak: the kernel's fixed work, timed here, where the clock is.

use std::time::{Duration, Instant};

use wattmill_kernel::SetupError;
use wattmill_kernel::probe::Probe;

/// No run starts after this: a hundred runs or so of 2 to 5 ms, long enough for the clock to rise.
const BUDGET: Duration = Duration::from_millis(350);
/// Runs on a machine so slow that one exceeds the budget; the first warms caches and clock.
const LEAST_RUNS: u32 = 2;

/// FLOP/s of the best of several runs on `threads` threads. The best, because whatever else runs on the
/// machine can only make a run slower.
///
/// # Errors
/// [`SetupError`] if the number of threads is out of bounds or the processor lacks what the kernel needs.
pub(crate) fn flops_per_second(threads: usize) -> Result<f64, SetupError> {
    let mut probe = Probe::new(threads)?;
    let start = Instant::now();
    let mut best = 0.0f64;
    let mut runs = 0;
    while runs < LEAST_RUNS || start.elapsed() < BUDGET {
        let begin = Instant::now();
        let flops = probe.run();
        best = best.max(flops as f64 / begin.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}
