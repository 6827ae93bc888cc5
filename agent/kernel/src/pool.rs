//! Threads that share out a list of tasks.
//!
//! Invariant: results come back in the order of the tasks, each computed with denormals flushed;
//! which thread ran which task leaves no trace.

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::denormals::flushed;
use crate::numerics::check_processor;
use crate::{MAX_THREADS, SetupError};

/// The kernel's own threads, so that it neither crowds nor waits for those of its process. They
/// sleep when there is no work: rayon's yield a few times and then wait on a condition variable.
pub(crate) struct Pool {
    /// `None` for one thread: the caller's then does the work, without a hand-over.
    threads: Option<rayon::ThreadPool>,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> Result<Self, SetupError> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(SetupError::Threads(threads));
        }
        check_processor()?;
        if threads == 1 {
            return Ok(Self { threads: None });
        }
        let builder = ThreadPoolBuilder::new().num_threads(threads);
        let pool = builder.thread_name(|index| format!("kernel-{index}")).build();
        Ok(Self { threads: Some(pool.map_err(SetupError::Pool)?) })
    }

    /// `work` of every task, in the order of the tasks.
    pub(crate) fn map<T: Send, R: Send>(&self, tasks: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        let Some(pool) = &self.threads else {
            return flushed(|| tasks.into_iter().map(work).collect());
        };
        let run = |task| flushed(|| work(task));
        pool.install(|| tasks.into_par_iter().with_max_len(1).map(run).collect())
    }

    /// `work` once on every thread at the same time.
    pub(crate) fn on_each<R: Send>(&self, work: impl Fn() -> R + Sync) -> Vec<R> {
        match &self.threads {
            None => vec![flushed(work)],
            Some(pool) => pool.broadcast(|_| flushed(&work)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_tasks() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let squares = pool.map((0..100).collect(), |x: u32| x * x);
            assert_eq!(squares, (0..100).map(|x| x * x).collect::<Vec<_>>());
            assert_eq!(pool.on_each(|| ()).len(), threads);
        }
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        for threads in [0, MAX_THREADS + 1] {
            assert!(matches!(Pool::new(threads), Err(SetupError::Threads(n)) if n == threads));
        }
    }
}
