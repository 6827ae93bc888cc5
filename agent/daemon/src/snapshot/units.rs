//! Units' values in the catalogue's terms.
//!
//! Invariant: for each source all series of [`cat::UNIT_ENERGY_JOULES`] together are the consumer `units`: those
//! of units, of the rest, and of what departed.

use wattmill_protocol::Source;
use wattmill_protocol::catalogue as cat;

use super::{Points, Snapshot, Sum, joules};
use crate::device::Scope;
use crate::device::units::Unit;
use crate::ledger::units::{Sums, UnitSums};

/// `kind` of what units without a series of their own used.
const REST: &str = "rest";
/// `kind` of what units had counted whose series ended.
const DEPARTED: &str = "departed";

/// A unit's sums, or those of several.
#[derive(Clone, PartialEq, Debug)]
pub struct UnitSum {
    /// The value of the `kind` label.
    pub kind: &'static str,
    /// The value of the `name` label; empty for several.
    pub name: String,
    /// By scope and source.
    pub sums: Vec<((Scope, Source), Sum)>,
}

/// The sums of a ledger, with mean watts where `watts` knows them (of the rest, for `None`). Nothing where units are
/// not told apart (`on`), and never were.
pub fn sums(
    ledger: &UnitSums,
    on: bool,
    watts: impl Fn(Option<&Unit>, (Scope, Source)) -> Option<f64>,
) -> Vec<UnitSum> {
    let of = |sums: &Sums, watts: &dyn Fn((Scope, Source)) -> Option<f64>| {
        let sums = sums.0.iter().map(|(key, uj)| (*key, Sum { microjoules: *uj, watts: watts(*key) }));
        sums.collect()
    };
    if !on && *ledger == UnitSums::default() {
        return Vec::new();
    }
    let placed = ledger.placed.iter().map(|(unit, entry)| UnitSum {
        kind: unit.kind.as_str(),
        name: unit.name.clone(),
        sums: of(&entry.sums, &|key| watts(Some(unit), key)),
    });
    let rest = UnitSum { kind: REST, name: String::new(), sums: of(&ledger.rest, &|key| watts(None, key)) };
    let departed = UnitSum { kind: DEPARTED, name: String::new(), sums: of(&ledger.departed, &|_| None) };
    placed.chain([rest, departed]).collect()
}

pub(super) fn add(points: &mut Points<'_>, snapshot: &Snapshot) {
    for UnitSum { kind, name, sums } in &snapshot.units {
        // Each scope and source that the node has, so that series begin at zero.
        for (scope, source) in snapshot.scopes.keys() {
            let labels = [*kind, name.as_str(), scope.as_str(), source.as_str()];
            let sum = sums.iter().find(|(key, _)| *key == (*scope, *source)).map(|(_, sum)| *sum);
            points.add(&cat::UNIT_ENERGY_JOULES, &labels, joules(sum.map_or(0, |sum| sum.microjoules)));
            points.add_some(&cat::UNIT_POWER_WATTS, &labels, sum.and_then(|sum| sum.watts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::units::UnitKind;
    use crate::snapshot::tests::{sample, shown};

    #[test]
    fn every_unit_has_every_scope_of_the_node_and_the_rest_is_shown() {
        let mut ledger = UnitSums::default();
        assert!(sums(&ledger, false, |_, _| None).is_empty(), "nothing where units are not told apart");
        assert_eq!(sums(&ledger, true, |_, _| None).len(), 2, "series begin at zero");
        let name = "a\"b".to_owned();
        let unit = Unit { kind: UnitKind::Slurm, name };
        ledger.placed.entry(unit).or_default().sums.add(Scope::Cpu, Source::Counter, 1_500_000);
        ledger.rest.add(Scope::Gpu, Source::Counter, 7);
        let watts = |unit: Option<&Unit>, _| unit.map(|_| 2.5);
        let snapshot = Snapshot { units: sums(&ledger, true, watts), ..sample() };
        insta::assert_snapshot!(shown(|points| add(points, &snapshot)));
    }
}
