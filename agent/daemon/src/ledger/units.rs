//! Sums of units: those that have series of their own, and what is left of the others.
//!
//! Invariant: the sums of all three parts together are what units were given, to the microjoule: a unit that loses
//! its place loses its series, and its sum moves to [`UnitSums::departed`] in the same step. No sum ever falls.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattmill_protocol::Source;

use super::pairs;
use crate::device::Scope;
use crate::device::units::Unit;

/// Microjoules by scope and source.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sums(#[serde(with = "pairs")] pub BTreeMap<(Scope, Source), u64>);

impl Sums {
    /// Adds to one of them.
    pub fn add(&mut self, scope: Scope, source: Source, microjoules: u64) {
        let sum = self.0.entry((scope, source)).or_default();
        *sum = sum.saturating_add(microjoules);
    }

    /// Adds all of another's.
    pub fn absorb(&mut self, other: &Self) {
        for ((scope, source), microjoules) in &other.0 {
            self.add(*scope, *source, *microjoules);
        }
    }

    /// One of them; zero where there is none.
    pub fn get(&self, scope: Scope, source: Source) -> u64 {
        self.0.get(&(scope, source)).copied().unwrap_or(0)
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |sum, part| sum.saturating_add(*part))
    }
}

/// A unit that has a place.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UnitEntry {
    /// Its energy since it has its place.
    pub sums: Sums,
    /// When it was last there, wall clock.
    pub seen_unix_nanos: u64,
}

/// All units' energy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitSums {
    /// Those that have a place.
    #[serde(with = "pairs")]
    pub placed: BTreeMap<Unit, UnitEntry>,
    /// What units without a place used, as they used it.
    pub rest: Sums,
    /// What units had counted that lost their place.
    pub departed: Sums,
}

impl UnitSums {
    /// Takes a unit's place; its sum is kept among the departed.
    pub fn retire(&mut self, unit: &Unit) {
        if let Some(entry) = self.placed.remove(unit) {
            self.departed.absorb(&entry.sums);
        }
    }
}
