//! A node's ledger: what each lease took, and the settlements that follow from it. It survives a crash of
//! the node, and is the ground truth of every joule.

use std::collections::BTreeMap;

use wattmill_protocol::{Energy, JobId, Token};
use wattmill_work::Settlement;

/// On disk: leases that take joules, and settlements numbered without gaps.
#[derive(Debug, Default)]
pub struct Ledger {
    open: BTreeMap<Token, (JobId, Energy)>,
    log: Vec<Settlement>,
    applied: u64,
}

impl Ledger {
    /// A lease begins.
    pub fn open(&mut self, token: Token, job: JobId) {
        self.open.entry(token).or_insert((job, Energy::ZERO));
    }

    /// A lease took joules.
    pub fn add(&mut self, token: Token, energy: Energy) {
        if let Some((_, sum)) = self.open.get_mut(&token) {
            *sum += energy;
        }
    }

    /// What an open lease took so far.
    pub fn so_far(&self, token: Token) -> Energy {
        self.open.get(&token).map_or(Energy::ZERO, |(_, energy)| *energy)
    }

    /// Leases that are not settled.
    pub fn opened(&self) -> impl Iterator<Item = Token> + '_ {
        self.open.keys().copied()
    }

    /// The metering window after a lease's end closed: its amount is final. `None` if it was before.
    pub fn settle(&mut self, token: Token) -> Option<Settlement> {
        let (job, energy) = self.open.remove(&token)?;
        let settlement = Settlement { sequence: self.log.len() as u64 + 1, token, job, energy };
        self.log.push(settlement.clone());
        Some(settlement)
    }

    /// Settlements up to `sequence` are applied.
    pub fn acknowledge(&mut self, sequence: u64) {
        self.applied = self.applied.max(sequence);
    }

    /// How many settlements there are.
    pub fn settled(&self) -> u64 {
        self.log.len() as u64
    }

    /// Settlements that are not known to be applied.
    pub fn unapplied(&self) -> &[Settlement] {
        self.log.get(self.applied as usize..).unwrap_or_default()
    }

    /// Nothing is open, nothing is unapplied.
    pub fn at_rest(&self) -> bool {
        self.open.is_empty() && self.unapplied().is_empty()
    }
}
