//! Amounts of energy: integer microjoules, kept apart by how they became known.

use std::fmt;
use std::ops::{Add, AddAssign};

use crate::v1;

/// How an amount of energy became known. Orders and indexes [`Energy`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Read from a hardware counter.
    Counter,
    /// Integrated from measured power.
    Integrated,
    /// Modelled; nobody measured it.
    Estimate,
}

impl Source {
    /// Every source, in order.
    pub const ALL: [Self; 3] = [Self::Counter, Self::Integrated, Self::Estimate];

    /// The value of the `source` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Integrated => "integrated",
            Self::Estimate => "estimate",
        }
    }

    /// The source with that label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == label)
    }
}

/// Microjoules by [`Source`]. Measured and estimated joules travel together and are never mixed up.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Energy([u64; 3]);

impl Energy {
    /// No energy.
    pub const ZERO: Self = Self([0; 3]);

    /// `microjoules` of one source.
    pub fn of(source: Source, microjoules: u64) -> Self {
        let mut energy = Self::ZERO;
        energy.0[source as usize] = microjoules;
        energy
    }

    /// Microjoules of one source.
    pub fn get(self, source: Source) -> u64 {
        self.0[source as usize]
    }

    /// Microjoules of all sources, for figures that say that they mix them (waste, samples per joule).
    pub fn total(self) -> u64 {
        self.0.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }

    /// Joules of all sources.
    pub fn total_joules(self) -> f64 {
        self.total() as f64 / 1e6
    }

    /// What is left after taking `other` away, never below zero, by source.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(other.0[i])))
    }

    /// Each source with its microjoules, zeros left out.
    pub fn parts(self) -> impl Iterator<Item = (Source, u64)> {
        Source::ALL.into_iter().map(move |s| (s, self.get(s))).filter(|(_, amount)| *amount > 0)
    }
}

impl Add for Energy {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        // 1.8e19 µJ are 580 MW for a thousand years: saturation cannot be reached by honest meters,
        // and hostile ones must not wrap a total.
        Self(std::array::from_fn(|i| self.0[i].saturating_add(other.0[i])))
    }
}

impl AddAssign for Energy {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Energy {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Energy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} J", self.total_joules())?;
        if self.get(Source::Estimate) > 0 { f.write_str(" (estimate)") } else { Ok(()) }
    }
}

impl From<v1::Energy> for Energy {
    fn from(wire: v1::Energy) -> Self {
        Self([wire.counter_microjoules, wire.integrated_microjoules, wire.estimate_microjoules])
    }
}

impl From<Energy> for v1::Energy {
    fn from(energy: Energy) -> Self {
        let [counter_microjoules, integrated_microjoules, estimate_microjoules] = energy.0;
        Self { counter_microjoules, integrated_microjoules, estimate_microjoules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_stay_apart() {
        let energy = Energy::of(Source::Counter, 2_000_000) + Energy::of(Source::Estimate, 500_000);
        assert_eq!(energy.get(Source::Counter), 2_000_000);
        assert_eq!(energy.get(Source::Integrated), 0);
        assert_eq!(energy.total(), 2_500_000);
        assert_eq!(energy.to_string(), "2.500 J (estimate)");
        assert_eq!(Energy::from(v1::Energy::from(energy)), energy);
        assert_eq!(energy.parts().count(), 2);
    }

    #[test]
    fn hostile_amounts_saturate() {
        let most = Energy::of(Source::Counter, u64::MAX);
        assert_eq!((most + most).total(), u64::MAX);
        assert_eq!(Energy::ZERO.saturating_sub(most), Energy::ZERO);
    }

    #[test]
    fn labels_round_trip() {
        for source in Source::ALL {
            assert_eq!(Source::from_label(source.as_str()), Some(source));
        }
        assert_eq!(Source::from_label("guess"), None);
    }
}
