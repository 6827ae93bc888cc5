//! Power limits: what was set, what holds, and from when on.

use super::{Gpu, NS_PER_MS, watts_to_milliwatts};
use crate::machine::error::NvmlError;
use crate::machine::waveform::{WaveformError, microwatts};

const MICROWATTS_PER_MILLIWATT: u64 = 1_000;

/// A limit that was set and does not hold yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingLimit {
    from_ns: u64,
    /// What holds until then.
    until_then_microwatts: u64,
}

impl Gpu {
    /// Sets the power limit, in milliwatts. It holds after the limiter's window.
    ///
    /// # Errors
    /// A limit outside the constraints.
    pub fn set_limit(&mut self, milliwatts: u32, now_ns: u64) -> Result<(), NvmlError> {
        let (min, max) = self.limit_constraints();
        if milliwatts < min || milliwatts > max {
            return Err(NvmlError::InvalidArgument);
        }
        self.hold_limit(milliwatts, now_ns);
        Ok(())
    }

    /// The same for a limit that somebody else set. One that is set already changes nothing.
    pub fn hold_limit(&mut self, milliwatts: u32, now_ns: u64) {
        let microwatts = u64::from(milliwatts) * MICROWATTS_PER_MILLIWATT;
        if self.limit_microwatts != microwatts {
            let until_then_microwatts = self.limit_in_force(now_ns);
            self.limit_microwatts = microwatts;
            self.hold_later(until_then_microwatts, now_ns);
        }
    }

    /// Holds or ends a limit beside the one that is set.
    ///
    /// # Errors
    /// A power that cannot be.
    pub fn set_cap(&mut self, watts: Option<f64>, now_ns: u64) -> Result<(), WaveformError> {
        let until_then_microwatts = self.limit_in_force(now_ns);
        self.cap_microwatts = watts.map(microwatts).transpose()?;
        self.hold_later(until_then_microwatts, now_ns);
        Ok(())
    }

    fn hold_later(&mut self, until_then_microwatts: u64, now_ns: u64) {
        let window_ns = self.window_ns();
        self.pending = (window_ns > 0)
            .then(|| PendingLimit { from_ns: now_ns.saturating_add(window_ns), until_then_microwatts });
        self.redraw(now_ns);
    }

    pub(super) fn restore_default_limit(&mut self, now_ns: u64) {
        self.limit_microwatts = u64::from(self.default_limit_milliwatts()) * MICROWATTS_PER_MILLIWATT;
        self.pending = None;
        self.redraw(now_ns);
    }

    /// Draws the waveform under the limits from `now_ns` on. Its first burst started with it, so a limit that is
    /// set in its middle holds from its own time on.
    pub(super) fn redraw(&mut self, now_ns: u64) {
        let (origin_ns, window_ns) = (self.waveform_origin_ns, self.window_ns());
        self.drawn.cut(now_ns);
        let limited = self.waveform.limited(self.limit_in_force(now_ns), window_ns);
        self.drawn.change(limited, origin_ns, now_ns);
        if let Some(pending) = self.pending.filter(|pending| pending.from_ns > now_ns) {
            let limited = self.waveform.limited(self.enforced_microwatts(), window_ns);
            self.drawn.change(limited, origin_ns, pending.from_ns);
        }
    }

    fn window_ns(&self) -> u64 {
        self.config.limit_window_ms.saturating_mul(NS_PER_MS)
    }

    fn limit_in_force(&self, now_ns: u64) -> u64 {
        let pending = self.pending.filter(|pending| pending.from_ns > now_ns);
        pending.map_or_else(|| self.enforced_microwatts(), |pending| pending.until_then_microwatts)
    }

    fn enforced_microwatts(&self) -> u64 {
        self.cap_microwatts.map_or(self.limit_microwatts, |cap| cap.min(self.limit_microwatts))
    }

    /// The limit that was set, in milliwatts.
    #[must_use]
    pub fn limit_milliwatts(&self) -> u32 {
        milliwatts(self.limit_microwatts)
    }

    /// The least of all limits, in milliwatts.
    #[must_use]
    pub fn enforced_milliwatts(&self) -> u32 {
        milliwatts(self.enforced_microwatts())
    }

    /// The limit after a driver load, in milliwatts.
    #[must_use]
    pub fn default_limit_milliwatts(&self) -> u32 {
        watts_to_milliwatts(self.config.default_limit_watts)
    }

    /// Least and largest limit that can be set, in milliwatts.
    #[must_use]
    pub fn limit_constraints(&self) -> (u32, u32) {
        (watts_to_milliwatts(self.config.min_limit_watts), watts_to_milliwatts(self.config.max_limit_watts))
    }

    /// Whether a limit holds power down at this instant.
    #[must_use]
    pub fn is_power_capped(&self, now_ns: u64) -> bool {
        self.drawn.power_at(now_ns).1
    }

    /// Time under the power cap since the counters restarted, in nanoseconds.
    #[must_use]
    pub fn power_capped_ns(&self, now_ns: u64) -> u64 {
        self.drawn.integral_at(now_ns).clipped_ns - self.counted_from.clipped_ns
    }
}

pub(super) fn milliwatts(microwatts: u64) -> u32 {
    u32::try_from(microwatts / MICROWATTS_PER_MILLIWATT).unwrap_or(u32::MAX)
}
