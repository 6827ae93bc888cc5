//! The three clocks: since boot, wall, and CPU time of a process.
//!
//! Invariant: everything that is pure takes its time as an argument; this module is the one place where
//! time comes from. Monotonic readings count from boot, so that they compare across restarts of the
//! agent within one boot.

#![allow(unsafe_code, reason = "no safe wrapper reads another process's CPU clock")]

use std::time::{Duration, SystemTime};

/// Time since boot without suspends (`CLOCK_MONOTONIC`): no machine draws metered power while suspended.
pub fn monotonic() -> Duration {
    read(libc::CLOCK_MONOTONIC).unwrap_or_default()
}

/// Wall-clock nanoseconds since 1970; 0 when the clock stands before.
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU nanoseconds that the threads of `pid` have used, ended ones included; `None` once it is gone.
/// The scheduler's own sum: `/proc/PID/stat` counts in ticks of 10 ms, too coarse for short shards.
pub fn process_cpu_nanos(pid: u32) -> Option<u64> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for the one value that the call writes.
    let status = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if status != 0 {
        return None;
    }
    u64::try_from(read(clock)?.as_nanos()).ok()
}

fn read(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the one value that the call writes.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if status != 0 {
        return None;
    }
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_cpu_time_and_a_missing_one_has_none() {
        let pid = std::process::id();
        let before = process_cpu_nanos(pid).unwrap();
        let mut sum = 0u64;
        while process_cpu_nanos(pid).unwrap() < before + 1_000_000 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert_eq!(process_cpu_nanos(0), None, "0 would mean the caller");
        assert_eq!(process_cpu_nanos(u32::MAX), None);
        assert_eq!(process_cpu_nanos(4_194_305), None, "above the kernel's largest pid");
        assert!(monotonic() > Duration::ZERO && unix_nanos() > 0);
    }
}
