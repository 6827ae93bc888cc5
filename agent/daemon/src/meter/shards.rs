//! Shards that run in this window, and what they used of it.
//!
//! Pure. Invariant: a shard's CPU time is taken when it begins, at each window and when it ends, so that
//! it gets its part of every window that it lived in, however short. What a process used and can no
//! longer tell because it is gone stays as it was last known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wattmill_protocol::{Energy, JobId, Token};

use crate::device::units::Unit;
use crate::ledger::OpenShard;

/// CPU nanoseconds of a process; `None` once it is gone.
pub(super) type CpuClock<'a> = &'a dyn Fn(u32) -> Option<u64>;

/// A running shard's energy, as of the last closed window.
#[derive(Clone, PartialEq, Debug)]
pub struct RunningShard {
    /// Its lease.
    pub token: Token,
    /// Its energy so far.
    pub energy: Energy,
    /// Its mean power over the last window.
    pub power_watts: f64,
}

#[derive(Debug)]
struct Shard {
    job: JobId,
    energy: Energy,
    pid: u32,
    /// The unit that the process is part of: its time there is the shard's.
    unit: Option<Arc<Unit>>,
    /// CPU time of the process when last read.
    read_nanos: Option<u64>,
    /// CPU time used in the open window.
    window_nanos: u64,
    /// Energy of the closing window.
    window_microjoules: u64,
    power_watts: f64,
    ended: bool,
}

impl Shard {
    fn new(job: JobId, pid: u32, ended: bool) -> Self {
        Self {
            job,
            energy: Energy::ZERO,
            pid,
            unit: None,
            read_nanos: None,
            window_nanos: 0,
            window_microjoules: 0,
            power_watts: 0.0,
            ended,
        }
    }

    fn read(&mut self, clock: CpuClock<'_>) {
        let Some(nanos) = clock(self.pid) else { return };
        if let Some(before) = self.read_nanos.replace(nanos) {
            self.window_nanos += nanos.saturating_sub(before);
        }
    }
}

/// Shards by token, in order: the order of the weights.
#[derive(Debug, Default)]
pub(super) struct Shards {
    shards: BTreeMap<Token, Shard>,
    /// Processes that computed and have not ended: what they hold between two shards is still ours.
    workers: BTreeSet<u32>,
}

impl Shards {
    /// A shard begins to compute in the process `pid`. Beginning again (a new worker) keeps its energy.
    pub(super) fn begin(&mut self, token: Token, job: JobId, pid: u32, clock: CpuClock<'_>) {
        let shard = self.shards.entry(token).or_insert_with(|| Shard::new(job, pid, false));
        (shard.pid, shard.read_nanos, shard.ended) = (pid, clock(pid), false);
        self.workers.insert(pid);
    }

    /// The process of a shard is part of `unit`.
    pub(super) fn place(&mut self, token: Token, unit: Option<Arc<Unit>>) {
        if let Some(shard) = self.shards.get_mut(&token) {
            shard.unit = unit;
        }
    }

    /// A shard never began; it settles with nothing.
    pub(super) fn never_began(&mut self, token: Token, job: JobId) {
        self.shards.entry(token).or_insert_with(|| Shard::new(job, 0, true));
    }

    /// Whether a shard runs, or settles with this window.
    pub(super) fn has(&self, token: Token) -> bool {
        self.shards.contains_key(&token)
    }

    /// A shard has ended; it settles with the window.
    pub(super) fn end(&mut self, token: Token, clock: CpuClock<'_>) {
        if let Some(shard) = self.shards.get_mut(&token).filter(|shard| !shard.ended) {
            shard.read(clock);
            shard.ended = true;
        }
    }

    /// Reads the CPU time of those that run.
    pub(super) fn read(&mut self, clock: CpuClock<'_>) {
        for shard in self.shards.values_mut().filter(|shard| !shard.ended) {
            shard.read(clock);
        }
        self.workers.retain(|pid| clock(*pid).is_some());
    }

    /// Whether one of them computes in the process `pid`, or did since it was started.
    pub(super) fn is_of_ours(&self, pid: u32) -> bool {
        self.workers.contains(&pid) || self.shards.values().any(|shard| shard.pid == pid)
    }

    /// How many there are, ended ones included.
    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    /// CPU time of each in the open window, in order.
    pub(super) fn window_nanos(&self) -> Vec<u64> {
        self.shards.values().map(|shard| shard.window_nanos).collect()
    }

    /// CPU time of the open window by the unit that it was used in.
    pub(super) fn nanos_by_unit(&self) -> BTreeMap<Arc<Unit>, u64> {
        let mut nanos = BTreeMap::new();
        for shard in self.shards.values() {
            if let Some(unit) = &shard.unit {
                *nanos.entry(Arc::clone(unit)).or_default() += shard.window_nanos;
            }
        }
        nanos
    }

    /// Gives each its part, in order.
    pub(super) fn add(&mut self, parts: &[Energy]) {
        for (shard, part) in self.shards.values_mut().zip(parts) {
            shard.energy += *part;
            shard.window_microjoules += part.total();
        }
    }

    /// Closes the window of `seconds`, and takes out those that have ended.
    pub(super) fn close(&mut self, seconds: f64) -> Vec<OpenShard> {
        let mut settled = Vec::new();
        self.shards.retain(|token, shard| {
            let microjoules = std::mem::take(&mut shard.window_microjoules);
            shard.window_nanos = 0;
            if seconds > 0.0 {
                shard.power_watts = microjoules as f64 / 1e6 / seconds;
            }
            if shard.ended {
                settled.push(open(*token, shard));
            }
            !shard.ended
        });
        settled
    }

    /// Those that run, for the ledger.
    pub(super) fn open(&self) -> Vec<OpenShard> {
        self.shards.iter().map(|(token, shard)| open(*token, shard)).collect()
    }

    /// Those that run, for renewals.
    pub(super) fn running(&self) -> Vec<RunningShard> {
        let running = self.shards.iter().filter(|(_, shard)| !shard.ended);
        running
            .map(|(token, shard)| RunningShard {
                token: *token,
                energy: shard.energy,
                power_watts: shard.power_watts,
            })
            .collect()
    }
}

fn open(token: Token, shard: &Shard) -> OpenShard {
    OpenShard { token, job: shard.job.clone(), energy: shard.energy }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use wattmill_protocol::Source;

    use super::*;

    fn job() -> JobId {
        "digits".parse().unwrap()
    }

    #[test]
    fn several_shards_share_a_window_of_one_process() {
        let now = Cell::new(1_000u64);
        let clock = |_: u32| Some(now.get());
        let mut shards = Shards::default();
        shards.begin(Token(1), job(), 7, &clock);
        now.set(1_300);
        shards.end(Token(1), &clock);
        shards.begin(Token(2), job(), 7, &clock);
        now.set(1_400);
        shards.end(Token(2), &clock);
        shards.end(Token(2), &clock);
        now.set(5_000);
        shards.begin(Token(3), job(), 7, &clock);
        now.set(5_050);
        shards.read(&clock);
        assert_eq!(shards.window_nanos(), [300, 100, 50]);
        let parts = [3, 1, 5].map(|uj| Energy::of(Source::Counter, uj));
        shards.add(&parts);
        let settled = shards.close(1.0);
        let settled: Vec<_> = settled.iter().map(|s| (s.token.0, s.energy.total())).collect();
        assert_eq!(settled, [(1, 3), (2, 1)]);
        assert_eq!(shards.running().len(), 1);
        assert_eq!(shards.window_nanos(), [0]);
        now.set(5_080);
        shards.read(&clock);
        assert_eq!(shards.window_nanos(), [30]);
    }

    #[test]
    fn a_process_that_died_keeps_what_was_known() {
        let now = Cell::new(Some(100u64));
        let clock = |_: u32| now.get();
        let mut shards = Shards::default();
        shards.begin(Token(1), job(), 7, &clock);
        now.set(Some(160));
        shards.read(&clock);
        now.set(None);
        shards.read(&clock);
        shards.end(Token(1), &clock);
        assert_eq!(shards.window_nanos(), [60]);
        assert_eq!(shards.close(1.0).len(), 1);
    }

    #[test]
    fn a_worker_is_ours_between_two_shards_and_until_it_ends() {
        let now = Cell::new(Some(100u64));
        let clock = |_: u32| now.get();
        let mut shards = Shards::default();
        shards.begin(Token(1), job(), 7, &clock);
        shards.end(Token(1), &clock);
        shards.close(1.0);
        shards.read(&clock);
        assert!(shards.is_of_ours(7) && !shards.is_of_ours(8));
        now.set(None);
        shards.read(&clock);
        assert!(!shards.is_of_ours(7), "the next process of that number is somebody else's");
    }

    #[test]
    fn time_is_known_by_unit() {
        let now = Cell::new(100u64);
        let clock = |_: u32| Some(now.get());
        let agent = Arc::new(Unit { kind: crate::device::units::UnitKind::Systemd, name: "a".to_owned() });
        let mut shards = Shards::default();
        for token in 1..=3 {
            shards.begin(Token(token), job(), 7, &clock);
            now.set(now.get() + 10);
            shards.end(Token(token), &clock);
        }
        shards.place(Token(1), Some(Arc::clone(&agent)));
        shards.place(Token(3), Some(Arc::clone(&agent)));
        shards.place(Token(9), Some(Arc::clone(&agent)));
        assert_eq!(shards.nanos_by_unit(), BTreeMap::from([(agent, 20)]));
    }
}
