//! One piece of a profile: a line or part of a sine, and the energy under it.

use std::f64::consts::TAU;

use super::profile::Femtojoules;

/// How power moves within one piece.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// A straight line from one power to another, in microwatts.
    Line { from: u64, to: u64 },
    /// Part of `(low + high)/2 + (high − low)/2 · sin(2π·t/period)`, entered `offset_ns` into the period.
    Arc { low: u64, high: u64, period_ns: u64, offset_ns: u64 },
}

impl Shape {
    /// Energy of the first `elapsed` of a piece that lasts `duration`, in femtojoules.
    pub(super) fn energy(self, elapsed: u64, duration: u64) -> Femtojoules {
        match self {
            Shape::Line { from, to } => {
                let (t, slope) = (i128::from(elapsed), i128::from(to) - i128::from(from));
                let bend = (slope * t * t).div_euclid(2 * i128::from(duration.max(1)));
                (i128::from(from) * t + bend).max(0).unsigned_abs()
            }
            Shape::Arc { low, high, period_ns, offset_ns } => {
                let level = i128::from(low + high) * i128::from(elapsed) / 2;
                let (start, end) = (angle(offset_ns, period_ns), angle(offset_ns + elapsed, period_ns));
                let scale = (high - low) as f64 / 2.0 * period_ns as f64 / TAU;
                let swing = (scale * (start.cos() - end.cos())).round() as i128;
                (level + swing).max(0).unsigned_abs()
            }
        }
    }

    /// Power at `elapsed` into a piece that lasts `duration`, in microwatts.
    pub(super) fn power(self, elapsed: u64, duration: u64) -> u64 {
        match self {
            Shape::Line { from, to } => {
                let slope = i128::from(to) - i128::from(from);
                let moved = slope * i128::from(elapsed) / i128::from(duration.max(1));
                u64::try_from(i128::from(from) + moved).unwrap_or(0)
            }
            Shape::Arc { low, high, period_ns, offset_ns } => {
                let (mean, amplitude) = ((low + high) as f64 / 2.0, (high - low) as f64 / 2.0);
                (mean + amplitude * angle(offset_ns + elapsed, period_ns).sin()).round() as u64
            }
        }
    }
}

fn angle(offset_ns: u64, period_ns: u64) -> f64 {
    TAU * offset_ns as f64 / period_ns as f64
}

/// A shape, how long it lasts, and whether a power limit cut it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece {
    pub(super) shape: Shape,
    pub(super) duration_ns: u64,
    pub(super) clipped: bool,
}

impl Piece {
    /// The first `at_ns` of the piece and the rest of it.
    pub(super) fn cut(self, at_ns: u64) -> (Piece, Piece) {
        let at_ns = at_ns.min(self.duration_ns);
        let (first, rest) = match self.shape {
            Shape::Line { from, to } => {
                let middle = self.shape.power(at_ns, self.duration_ns);
                (Shape::Line { from, to: middle }, Shape::Line { from: middle, to })
            }
            Shape::Arc { low, high, period_ns, offset_ns } => {
                (self.shape, Shape::Arc { low, high, period_ns, offset_ns: offset_ns + at_ns })
            }
        };
        let piece = |shape, duration_ns| Piece { shape, duration_ns, clipped: self.clipped };
        (piece(first, at_ns), piece(rest, self.duration_ns - at_ns))
    }
}
