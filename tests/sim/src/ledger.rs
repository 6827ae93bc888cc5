//! A node's ledger: what each lease took, and the settlements that follow from it. What a closed metering
//! window saw survives a crash of the node, and is the ground truth of every joule; what came after is lost.

use std::collections::BTreeMap;

use wattmill_protocol::{Energy, JobId, Token};
use wattmill_work::Settlement;

/// Leases that take joules, now and as the last window saw them, and settlements numbered without gaps.
#[derive(Debug, Default)]
pub struct Ledger {
    open: BTreeMap<Token, (JobId, Energy)>,
    on_disk: BTreeMap<Token, (JobId, Energy)>,
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

    /// A metering window closes: it is on disk.
    pub fn close_window(&mut self) {
        self.on_disk.clone_from(&self.open);
    }

    /// The process dies: what no window saw is forgotten.
    pub fn crash(&mut self) {
        self.open.clone_from(&self.on_disk);
    }

    /// The metering window after a lease's end closes: its amount is final. `None` if it was before.
    pub fn settle(&mut self, token: Token) -> Option<Settlement> {
        let (job, energy) = self.open.remove(&token)?;
        self.close_window();
        Some(self.log(token, job, energy, false))
    }

    /// A lease's joules are asked for. One of which nothing is known took none that could be told.
    pub fn account_for(&mut self, token: Token, job: JobId) -> Option<Settlement> {
        let known = self.open.contains_key(&token) || self.unapplied().iter().any(|s| s.token == token);
        (!known).then(|| self.log(token, job, Energy::ZERO, true))
    }

    fn log(&mut self, token: Token, job: JobId, energy: Energy, unrecorded: bool) -> Settlement {
        let sequence = self.log.len() as u64 + 1;
        let settlement = Settlement { sequence, token, job, energy, unrecorded };
        self.log.push(settlement.clone());
        settlement
    }

    /// Settlements up to `sequence` are applied.
    pub fn acknowledge(&mut self, sequence: u64) {
        self.applied = self.applied.max(sequence);
    }

    /// How many settlements there are.
    pub fn settled(&self) -> u64 {
        self.log.len() as u64
    }

    /// Last settlement that is known to be applied.
    pub fn applied(&self) -> u64 {
        self.applied
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
