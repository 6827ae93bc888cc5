//! Event sets: which GPUs and kinds each watches, and what waits to be read.

use std::collections::{BTreeMap, VecDeque};

use super::error::NvmlError;

/// `nvmlEventTypeDoubleBitEccError`.
pub(super) const DOUBLE_BIT_ECC: u64 = 2;
/// `nvmlEventTypeXidCriticalError`.
pub(super) const XID_CRITICAL: u64 = 8;

/// Kinds that can be registered: exactly those that the fake can raise.
pub const SUPPORTED_EVENTS: u64 = DOUBLE_BIT_ECC | XID_CRITICAL;

/// Unread events that a set keeps; the oldest go first, as in the driver's ring.
const MAX_UNREAD: usize = 1024;

/// Something that happened to a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The GPU's place in the configuration.
    pub slot: usize,
    /// One bit of the event types.
    pub kind: u64,
    /// The Xid for a critical error, else 0.
    pub data: u64,
}

#[derive(Debug, Default)]
struct EventSet {
    masks: BTreeMap<usize, u64>,
    unread: VecDeque<Event>,
}

/// All event sets, by number.
#[derive(Debug, Default)]
pub struct EventSets {
    sets: BTreeMap<usize, EventSet>,
    created: usize,
}

impl EventSets {
    /// A new, empty set; its number is never 0 and never used again.
    pub fn create(&mut self) -> usize {
        self.created += 1;
        self.sets.insert(self.created, EventSet::default());
        self.created
    }

    /// Frees a set.
    ///
    /// # Errors
    /// No such set.
    pub fn free(&mut self, set: usize) -> Result<(), NvmlError> {
        self.sets.remove(&set).map(|_| ()).ok_or(NvmlError::InvalidArgument)
    }

    /// Watches a GPU for `kinds` of events, besides those that it is already watched for.
    ///
    /// # Errors
    /// No such set, or kinds that are not supported.
    pub fn register(&mut self, set: usize, slot: usize, kinds: u64) -> Result<(), NvmlError> {
        if kinds & !SUPPORTED_EVENTS != 0 {
            return Err(NvmlError::NotSupported);
        }
        let set = self.sets.get_mut(&set).ok_or(NvmlError::InvalidArgument)?;
        *set.masks.entry(slot).or_default() |= kinds;
        Ok(())
    }

    /// The oldest unread event.
    ///
    /// # Errors
    /// No such set.
    pub fn take(&mut self, set: usize) -> Result<Option<Event>, NvmlError> {
        Ok(self.sets.get_mut(&set).ok_or(NvmlError::InvalidArgument)?.unread.pop_front())
    }

    pub(super) fn watched(&self, set: usize) -> Result<Vec<usize>, NvmlError> {
        let set = self.sets.get(&set).ok_or(NvmlError::InvalidArgument)?;
        Ok(set.masks.keys().copied().collect())
    }

    pub(super) fn raise(&mut self, event: Event) {
        for set in self.sets.values_mut() {
            if set.masks.get(&event.slot).is_some_and(|kinds| kinds & event.kind != 0) {
                if set.unread.len() == MAX_UNREAD {
                    set.unread.pop_front();
                }
                set.unread.push_back(event);
            }
        }
    }
}
