//! The ledger: what this node has counted so far, and what it owes the collector.
//!
//! Invariant: amounts only grow. Every sum of energy is whole microjoules, and the attributed ones sum
//! exactly to the scopes. [`store`] keeps it on disk; a window is written before it is published.

pub mod store;
pub mod units;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wattmill_protocol::{Energy, JobId, Source, Token};

use crate::counter::GapReason;
use crate::device::{MeterId, Scope};
use crate::window::Known;
use units::UnitSums;

/// Most settlements that are owed. A lease is given only by a collector that answers, so that few are owed but
/// to one that never applies any; the whole ledger is written every window.
const MAX_PENDING: usize = 4096;

/// Whom energy was used by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consumer {
    /// Shards that this node trained.
    Shards,
    /// Services, containers, pods and jobs, where they are told apart.
    Units,
    /// Other processes.
    Other,
    /// Nobody.
    Idle,
}

impl Consumer {
    /// The value of the `consumer` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shards => "shards",
            Self::Units => "units",
            Self::Other => "other",
            Self::Idle => "idle",
        }
    }
}

/// A meter's sum.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MeterEntry {
    /// Energy since this node first saw it.
    pub microjoules: u64,
    /// The raw counter and when it was read, nanoseconds since boot.
    pub last: Option<(u64, u64)>,
    /// The scope that it counted for then.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// When it was last read, wall clock.
    pub seen_unix_nanos: u64,
}

/// A scope's sum: what this node accounts for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScopeEntry {
    /// Energy so far.
    pub microjoules: u64,
    /// What is less than a microjoule of the host's share, in millionths of one.
    pub carry: u32,
}

/// A shard that runs, or ran when the agent stopped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenShard {
    /// Its lease.
    pub token: Token,
    /// Its job.
    pub job: JobId,
    /// Its energy in closed windows.
    pub energy: Energy,
}

/// The final energy of a lease, owed to the collector until it says that it was applied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settlement {
    /// Numbered without gaps from 1.
    pub sequence: u64,
    /// The lease.
    pub token: Token,
    /// Its job.
    pub job: JobId,
    /// Its energy.
    pub energy: Energy,
    /// Nothing is recorded of the lease, yet it may have begun: see [`Ledger::settle`].
    #[serde(default)]
    pub unrecorded: bool,
}

/// Everything that outlives the process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// The host that counted.
    pub machine_id: String,
    /// The boot in which every `last` reading was taken.
    pub boot_id: Option<String>,
    /// Since when it counts, wall clock: the start time of every sum.
    pub started_unix_nanos: u64,
    /// Sums by meter.
    #[serde(with = "pairs")]
    pub meters: BTreeMap<MeterId, MeterEntry>,
    /// Sums by scope and source.
    #[serde(with = "pairs")]
    pub scopes: BTreeMap<(Scope, Source), ScopeEntry>,
    /// The scopes' sums again, by who used them.
    #[serde(with = "pairs")]
    pub attributed: BTreeMap<Consumer, Energy>,
    /// The units' part of that, by unit.
    pub units: UnitSums,
    /// Model FLOPs of committed work.
    pub useful_flops: u64,
    /// Gaps by device and reason.
    #[serde(with = "pairs")]
    pub gaps: BTreeMap<(String, GapReason), u64>,
    /// Shards that run.
    pub open: Vec<OpenShard>,
    /// What is owed.
    pub pending: Vec<Settlement>,
    /// Number of the last settlement that was made.
    pub last_sequence: u64,
}

impl Ledger {
    /// A ledger that begins now.
    pub fn new(machine_id: &str, boot_id: Option<&str>, unix_nanos: u64) -> Self {
        Self {
            machine_id: machine_id.to_owned(),
            boot_id: boot_id.map(str::to_owned),
            started_unix_nanos: unix_nanos,
            ..Self::default()
        }
    }

    /// Counts a gap.
    pub fn add_gap(&mut self, device: &str, reason: GapReason) {
        *self.gaps.entry((device.to_owned(), reason)).or_default() += 1;
    }

    /// Whether its readings are of the boot `boot_id`. An unknown boot is no boot.
    pub fn is_of_boot(&self, boot_id: Option<&str>) -> bool {
        boot_id.is_some() && boot_id == self.boot_id.as_deref()
    }

    /// The counters are others than those that were read: whatever they said last is void, each a gap.
    pub fn void_readings(&mut self, reason: GapReason) {
        let mut voided = Vec::new();
        for (meter, entry) in &mut self.meters {
            if entry.last.take().is_some() {
                voided.push(meter.device.clone());
            }
        }
        for device in voided {
            self.add_gap(&device, reason);
        }
    }

    /// What the meters said last, for a run in the boot `boot_id`.
    pub fn known(&self, boot_id: Option<&str>) -> BTreeMap<MeterId, Known> {
        let same_boot = self.is_of_boot(boot_id);
        let known = |entry: &MeterEntry| Known {
            last: entry.last.map(|(raw, at)| (raw, Duration::from_nanos(at))),
            scope: entry.scope,
            same_boot,
        };
        self.meters.iter().map(|(meter, entry)| (meter.clone(), known(entry))).collect()
    }

    /// Makes a settlement of a shard that has ended; `unrecorded` where it may have begun and no window saw it.
    ///
    /// Where [`MAX_PENDING`] are owed already the oldest is given up: its joules stay in this node's sums. The
    /// next Hello says from where on the rest is numbered.
    pub fn settle(&mut self, shard: OpenShard, unrecorded: bool) {
        self.last_sequence += 1;
        let OpenShard { token, job, energy } = shard;
        self.pending.push(Settlement { sequence: self.last_sequence, token, job, energy, unrecorded });
        if self.pending.len() > MAX_PENDING {
            let Settlement { token, job, energy, .. } = self.pending.remove(0);
            tracing::error!(
                %token, %job, %energy,
                "the collector applies no settlements: one is given up, its joules are of no job"
            );
        }
    }

    /// Whether a settlement of `token` is not known to be applied.
    pub fn owes(&self, token: Token) -> bool {
        self.pending.iter().any(|settlement| settlement.token == token)
    }

    /// The collector has applied settlements up to `sequence`.
    ///
    /// If it knows of more than were ever made here, this ledger was lost and began anew: what it owes
    /// is something else and takes the numbers that follow.
    pub fn settled_through(&mut self, sequence: u64) {
        if sequence > self.last_sequence {
            for (settlement, number) in self.pending.iter_mut().zip(sequence + 1..) {
                settlement.sequence = number;
            }
            self.last_sequence = sequence + self.pending.len() as u64;
        } else {
            self.pending.retain(|settlement| settlement.sequence > sequence);
        }
    }
}

/// Maps whose keys are no strings, as lists of pairs.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(token: u64) -> OpenShard {
        OpenShard {
            token: Token(token),
            job: "digits".parse().unwrap(),
            energy: Energy::of(Source::Counter, token),
        }
    }

    fn sequences(ledger: &Ledger) -> Vec<u64> {
        ledger.pending.iter().map(|s| s.sequence).collect()
    }

    #[test]
    fn settlements_are_numbered_without_gaps_and_kept_until_applied() {
        let mut ledger = Ledger::new("m", None, 0);
        for token in 1..=3 {
            ledger.settle(shard(token), false);
        }
        ledger.settled_through(2);
        assert_eq!(sequences(&ledger), [3]);
        ledger.settled_through(3);
        ledger.settled_through(1);
        ledger.settle(shard(9), false);
        assert_eq!(sequences(&ledger), [4]);
    }

    #[test]
    fn a_ledger_that_was_lost_goes_on_above_what_the_collector_knows() {
        let mut ledger = Ledger::new("m", None, 0);
        ledger.settle(shard(1), false);
        ledger.settle(shard(2), false);
        ledger.settled_through(70);
        assert_eq!(sequences(&ledger), [71, 72], "not applied: the collector's 1 to 70 were others");
        ledger.settle(shard(3), false);
        assert_eq!(sequences(&ledger), [71, 72, 73]);
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let mut ledger = Ledger::new("m", None, 0);
        for token in 1..=MAX_PENDING as u64 + 2 {
            ledger.settle(shard(token), false);
        }
        assert_eq!(ledger.pending.len(), MAX_PENDING);
        assert_eq!(ledger.pending[0].sequence, 3, "the oldest are given up");
    }

    #[test]
    fn json_round_trips() {
        let mut ledger = Ledger::new("m", Some("b"), 5);
        ledger.add_gap("package-0", GapReason::Reset);
        ledger.attributed.insert(Consumer::Idle, Energy::of(Source::Estimate, 7));
        ledger.scopes.insert((Scope::Cpu, Source::Estimate), ScopeEntry { microjoules: 7, carry: 3 });
        ledger.open.push(shard(8));
        let text = serde_json::to_string(&ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
    }

    #[test]
    fn void_readings_are_a_gap_each_once() {
        let mut ledger = Ledger::new("m", Some("b"), 5);
        let meter = |device: &str, source| MeterId {
            class: crate::device::Class::Zone,
            device: device.into(),
            source,
        };
        let read = MeterEntry { microjoules: 9, last: Some((1, 2)), ..MeterEntry::default() };
        ledger.meters.insert(meter("a", Source::Counter), read);
        ledger.meters.insert(meter("host", Source::Estimate), MeterEntry::default());
        ledger.void_readings(GapReason::Reboot);
        ledger.void_readings(GapReason::OtherHost);
        assert_eq!(ledger.gaps, BTreeMap::from([(("a".to_owned(), GapReason::Reboot), 1)]));
        assert_eq!(ledger.meters[&meter("a", Source::Counter)].microjoules, 9);
    }

    #[test]
    fn no_boot_equals_an_unknown_one() {
        let mut ledger = Ledger::new("m", None, 5);
        let meter =
            MeterId { class: crate::device::Class::Zone, device: "a".into(), source: Source::Counter };
        ledger.meters.insert(meter.clone(), MeterEntry { last: Some((1, 2)), ..MeterEntry::default() });
        assert!(!ledger.known(None)[&meter].same_boot);
        ledger.boot_id = Some("b".into());
        assert!(ledger.known(Some("b"))[&meter].same_boot);
        assert!(!ledger.known(Some("c"))[&meter].same_boot);
    }
}
