//! A [`Store`] in memory with the semantics of a crash: what was committed stays, all else is gone.

use std::collections::BTreeMap;
use std::future::{Future, ready};

use wattmill_protocol::{JobId, NodeId, Token};

use crate::record::{AccountRecord, JobRecord, RoundRecord, Stored, Write};
use crate::store::Store;

/// What a [`Memory`] store refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The store was told to fail, as a full disk does.
    #[error("the store is out of order")]
    OutOfOrder,
    /// A round was committed a second time.
    #[error("round {round} of job {job} is committed already")]
    RoundTwice {
        /// Its job.
        job: JobId,
        /// Its number.
        round: u32,
    },
    /// A generation was taken that is not above the last.
    #[error("generation {0} is not above the last")]
    Generation(u32),
}

/// Committed writes, in memory. Dropping the state machine and loading anew is a crash.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    generation: u32,
    jobs: BTreeMap<JobId, JobRecord>,
    rounds: BTreeMap<(JobId, u32), RoundRecord>,
    accounts: BTreeMap<Token, AccountRecord>,
    settled: BTreeMap<NodeId, u64>,
    out_of_order: bool,
}

impl Memory {
    /// Makes every commit fail, or work again.
    pub fn set_out_of_order(&mut self, out_of_order: bool) {
        self.out_of_order = out_of_order;
    }

    /// Committed rounds in order.
    pub fn rounds(&self) -> impl Iterator<Item = &RoundRecord> {
        self.rounds.values()
    }

    fn check(&self, writes: &[Write]) -> Result<(), MemoryError> {
        if self.out_of_order {
            return Err(MemoryError::OutOfOrder);
        }
        for write in writes {
            match write {
                Write::Round(r) if self.rounds.contains_key(&(r.job.clone(), r.round)) => {
                    return Err(MemoryError::RoundTwice { job: r.job.clone(), round: r.round });
                }
                Write::Generation(g) if *g <= self.generation => return Err(MemoryError::Generation(*g)),
                _ => {}
            }
        }
        Ok(())
    }

    fn put(&mut self, write: Write) {
        match write {
            Write::Generation(generation) => self.generation = generation,
            Write::Job(job) => {
                self.jobs.insert(job.id.clone(), *job);
            }
            Write::Round(round) => {
                self.rounds.insert((round.job.clone(), round.round), *round);
            }
            Write::Account(token, account) => {
                self.accounts.insert(token, account);
            }
            Write::AccountClosed(token) => {
                self.accounts.remove(&token);
            }
            Write::NodeSettled(node, sequence) => {
                self.settled.insert(node, sequence);
            }
        }
    }
}

impl Store for Memory {
    type Error = MemoryError;

    fn commit(&mut self, writes: &[Write]) -> impl Future<Output = Result<(), MemoryError>> + Send {
        let checked = self.check(writes);
        if checked.is_ok() {
            writes.iter().cloned().for_each(|write| self.put(write));
        }
        ready(checked)
    }

    fn load(&mut self) -> impl Future<Output = Result<Stored, MemoryError>> + Send {
        ready(Ok(Stored {
            generation: self.generation,
            jobs: self.jobs.values().cloned().collect(),
            accounts: self.accounts.iter().map(|(t, a)| (*t, a.clone())).collect(),
            settled: self.settled.iter().map(|(n, s)| (n.clone(), *s)).collect(),
        }))
    }
}
