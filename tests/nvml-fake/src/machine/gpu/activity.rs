//! How busy the GPU is: utilisation, memory, throttling and PCIe traffic.

use super::power::AVERAGE_WINDOW_NS;
use super::{Gpu, Throttle};
use crate::machine::command::ThrottleReason;
use crate::machine::error::NvmlError;

impl Gpu {
    /// Use of the GPU and of its memory, in percent: the mean demand of the last second between idle and full
    /// power, unless a test set it. A limited GPU is as busy as its demand.
    ///
    /// # Errors
    /// Unsupported under MIG.
    pub fn utilization(&self, now_ns: u64) -> Result<(u32, u32), NvmlError> {
        if self.config.mig {
            return Err(NvmlError::NotSupported);
        }
        let from_ns = now_ns.saturating_sub(AVERAGE_WINDOW_NS);
        let (gpu, memory) = self.busy_percent(from_ns, now_ns);
        Ok((gpu.round() as u32, memory.round() as u32))
    }

    /// Mean use of the GPU and of its memory between two instants, in percent.
    #[must_use]
    pub fn busy_percent(&self, from_ns: u64, to_ns: u64) -> (f64, f64) {
        let demand = self.demand.mean_power_at(to_ns, to_ns.saturating_sub(from_ns)) as f64 / 1e6;
        let span = (self.config.full_watts - self.config.idle_watts).max(f64::MIN_POSITIVE);
        let follows = ((demand - self.config.idle_watts) / span * 100.0).clamp(0.0, 100.0);
        let gpu = self.gpu_percent.map_or(follows, f64::from);
        (gpu, self.memory_percent.map_or((gpu / 2.0).floor(), f64::from))
    }

    /// Share of full power that is drawn now, 0 to 1: what clocks and temperature follow.
    #[must_use]
    pub fn load(&self, now_ns: u64) -> f64 {
        let watts = self.drawn.power_at(now_ns).0 as f64 / 1e6;
        (watts / self.config.full_watts.max(1.0)).clamp(0.0, 1.0)
    }

    /// Raises or ends a throttle reason.
    pub fn set_throttle(&mut self, reason: ThrottleReason, active: bool, now_ns: u64) {
        let ended_ns = self.throttled_ns(reason, now_ns);
        self.throttles.insert(reason, Throttle { ended_ns, since_ns: active.then_some(now_ns) });
    }

    /// Whether a raised reason holds.
    #[must_use]
    pub fn is_throttled(&self, reason: ThrottleReason) -> bool {
        self.throttles.get(&reason).is_some_and(|throttle| throttle.since_ns.is_some())
    }

    /// How long a raised reason has held since the counters restarted, in nanoseconds.
    #[must_use]
    pub fn throttled_ns(&self, reason: ThrottleReason, now_ns: u64) -> u64 {
        let throttle = self.throttles.get(&reason).copied().unwrap_or_default();
        throttle.ended_ns + throttle.since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
    }

    /// A PCIe byte counter at `bytes_per_second`, wrapped to its width.
    #[must_use]
    pub fn pcie_bytes(&self, bytes_per_second: u64, now_ns: u64) -> u64 {
        let elapsed = u128::from(now_ns.saturating_sub(self.counters_from_ns));
        let bytes = u128::from(bytes_per_second) * elapsed / 1_000_000_000;
        (bytes % (1 << self.config.pcie_counter_bits)) as u64
    }

    /// Used memory, in bytes: what was set or what the processes hold, whichever is more.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let held: u64 = self.processes.iter().filter_map(|process| process.memory_bytes).sum();
        let free = self.config.memory_bytes.saturating_sub(self.config.memory_reserved_bytes);
        self.used_bytes.max(held).min(free)
    }
}
