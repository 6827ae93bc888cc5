//! A power limit over the pieces of a profile: where demand is above it, and what is then drawn.

use std::f64::consts::TAU;

use super::shape::{Piece, Shape};

/// A piece that is above the limit from its start to its end, or never.
pub(super) struct Part {
    piece: Piece,
    above: bool,
}

/// What the limiter remembers: for how long demand has been above the limit.
pub(super) struct Limiter {
    limit: u64,
    window_ns: u64,
    above_ns: u64,
}

impl Limiter {
    /// A limiter at the start of a profile before which demand was above the limit for `above_ns`.
    pub(super) fn new(limit: u64, window_ns: u64, above_ns: u64) -> Limiter {
        Limiter { limit, window_ns, above_ns }
    }

    /// How long demand may still exceed the limit, in nanoseconds.
    pub(super) fn left_ns(&self) -> u64 {
        self.window_ns.saturating_sub(self.above_ns)
    }

    /// What is drawn of a part.
    pub(super) fn pass(&mut self, Part { piece, above }: Part) -> Vec<Piece> {
        if !above {
            self.above_ns = 0;
            return vec![piece];
        }
        let (burst, rest) = piece.cut(self.left_ns());
        self.above_ns = self.above_ns.saturating_add(piece.duration_ns);
        let (from, to) = (self.limit, self.limit);
        let held = Piece { shape: Shape::Line { from, to }, duration_ns: rest.duration_ns, clipped: true };
        [burst, held].into_iter().filter(|piece| piece.duration_ns > 0).collect()
    }
}

/// For how long the last parts are above the limit, in nanoseconds: for ever where all are.
pub(super) fn above_at_end(parts: &[Part]) -> u64 {
    if parts.iter().all(|part| part.above) {
        return u64::MAX;
    }
    parts.iter().rev().take_while(|part| part.above).map(|part| part.piece.duration_ns).sum()
}

/// Cuts one piece where it crosses `limit`.
pub(super) fn split(piece: Piece, limit: u64) -> Vec<Part> {
    let parts = match piece.shape {
        Shape::Line { from, to } => split_line(piece, from, to, limit),
        Shape::Arc { low, high, period_ns, .. } => split_sine(piece, low, high, period_ns, limit),
    };
    parts.into_iter().filter(|part| part.piece.duration_ns > 0).collect()
}

fn split_line(piece: Piece, from: u64, to: u64, limit: u64) -> Vec<Part> {
    if from.max(to) <= limit || from.min(to) >= limit {
        return vec![Part { piece, above: from.max(to) > limit }];
    }
    let part = |reach: u64, whole: u64| {
        let scaled = u128::from(piece.duration_ns) * u128::from(reach) / u128::from(whole);
        u64::try_from(scaled).unwrap_or(piece.duration_ns)
    };
    let line = |from, to, duration_ns| Piece { shape: Shape::Line { from, to }, duration_ns, ..piece };
    if from < to {
        let rise = part(limit - from, to - from);
        vec![
            Part { piece: line(from, limit, rise), above: false },
            Part { piece: line(limit, to, piece.duration_ns - rise), above: true },
        ]
    } else {
        let fall = part(limit - to, from - to);
        vec![
            Part { piece: line(from, limit, piece.duration_ns - fall), above: true },
            Part { piece: line(limit, to, fall), above: false },
        ]
    }
}

/// A sine is one whole period here: it is only cut by a limit, which always starts from the uncut demand.
fn split_sine(piece: Piece, low: u64, high: u64, period_ns: u64, limit: u64) -> Vec<Part> {
    if high <= limit || low >= limit {
        return vec![Part { piece, above: high > limit }];
    }
    let (mean, amplitude) = ((low + high) as f64 / 2.0, (high - low) as f64 / 2.0);
    let to_ns = |radians: f64| (radians / TAU * period_ns as f64).round() as u64;
    let crossing = ((limit as f64 - mean) / amplitude).asin();
    let arc = |start: u64, end: u64, above: bool| {
        let shape = Shape::Arc { low, high, period_ns, offset_ns: start };
        Part { piece: Piece { shape, duration_ns: end - start, ..piece }, above }
    };
    let leaves = to_ns(TAU / 2.0 - crossing).min(period_ns);
    if crossing >= 0.0 {
        // Above the limit around the crest only.
        let enters = to_ns(crossing).min(leaves);
        vec![arc(0, enters, false), arc(enters, leaves, true), arc(leaves, period_ns, false)]
    } else {
        // The mean is above the limit: only the trough is below, and the period starts and ends above.
        let enters = to_ns(TAU + crossing).clamp(leaves, period_ns);
        vec![arc(0, leaves, true), arc(leaves, enters, false), arc(enters, period_ns, true)]
    }
}
