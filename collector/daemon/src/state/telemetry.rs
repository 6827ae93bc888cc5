//! The state behind its lock.
//!
//! Invariant: no critical section does I/O, decodes or encodes anything, so that pushes, the core loop
//! and scrapes never wait for more than a scan of memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wattmill_protocol::NodeId;

use super::{Checkpoint, Counts, Damaged, HistoryPoint, NodeFrame, PersistError, Record, Rollup, State};

/// The cluster's telemetry, shared by ingest, the core loop and the API.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    state: Mutex<State>,
}

impl Telemetry {
    #[cfg(test)]
    /// No telemetry yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The telemetry of a checkpoint's records, in any order, and the records that cannot be read.
    ///
    /// # Errors
    /// When a record is of a version that this program does not know.
    pub(crate) fn restore(
        records: impl IntoIterator<Item = Record>,
    ) -> Result<(Self, Vec<Damaged>), PersistError> {
        let (state, damaged) = State::from_records(records)?;
        Ok((Self { state: Mutex::new(state) }, damaged))
    }

    /// Takes a push in: its frames, the position that it has in its node's spool, and what decoding
    /// counted. Takes them all under one lock, so that no checkpoint has half a push.
    pub(crate) fn apply(
        &self,
        frames: Vec<NodeFrame>,
        position: Option<u64>,
        counts: &Counts,
        now_unix_nanos: u64,
    ) {
        let mut state = self.lock();
        state.counts.merge(counts);
        for frame in frames {
            state.apply(frame, position, now_unix_nanos);
        }
    }

    /// Notes that the push at `position` of a node's spool was received, though nothing of it could be
    /// taken: the node need not send it again.
    pub(crate) fn receive(&self, id: &NodeId, position: u64) {
        self.lock().receive(id, position);
    }

    /// Counts what was refused before it became frames.
    pub(crate) fn count(&self, counts: &Counts) {
        self.lock().counts.merge(counts);
    }

    /// Notes a node that opened a session: it is known, and expected to send telemetry.
    pub(crate) fn introduce(&self, id: &NodeId, name: &str, machine_id: &str, host_fraction: f64) {
        self.lock().introduce(id, name, machine_id, host_fraction);
    }

    /// Notes that a node is gone for good; its joules go on to count. Whether it is known.
    pub(crate) fn retire(&self, id: &NodeId) -> bool {
        self.lock().retire(id)
    }

    #[cfg(test)]
    /// Position of the newest frame of a node's spool that was received. Not durable before the
    /// checkpoint that has it.
    pub(crate) fn received(&self, id: &NodeId) -> Option<u64> {
        self.lock().nodes.get(id).and_then(|node| node.position)
    }

    /// All figures as of `now`.
    pub(crate) fn rollup(&self, now_unix_nanos: u64) -> Rollup {
        self.lock().rollup(now_unix_nanos)
    }

    /// The last day in steps of 10 s, of one node or of the cluster: steps that begin at `from` or later
    /// and before `to`. A step without telemetry has no point.
    pub(crate) fn history(
        &self,
        node: Option<&NodeId>,
        from_unix_seconds: i64,
        to_unix_seconds: i64,
    ) -> Vec<HistoryPoint> {
        let (mut history, nodes) = self.lock().begin_history(node, from_unix_seconds, to_unix_seconds);
        // The lock is taken anew for each node: a day of thousands of them takes long.
        for node in &nodes {
            self.lock().add_history(&mut history, node);
        }
        history.points()
    }

    /// What was taken in and what was not since the collector started.
    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// What changed since the checkpoint with the sequence `since`, for one transaction of the store;
    /// everything where there is none yet in this process.
    pub(crate) fn checkpoint(&self, since: Option<u64>) -> Checkpoint {
        let changes = self.lock().changes_since(since);
        changes.encode()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a critical section is a bug, but no reason to lose the cluster's telemetry: every
        // change of the state leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
