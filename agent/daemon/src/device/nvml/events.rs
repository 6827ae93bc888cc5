//! Errors that GPUs raise: Xids and double-bit memory errors, waited for in a thread of its own.
//!
//! Invariant: what was counted stays, whatever becomes of readings, driver or GPU. The thread waits for a second
//! at a time, holds its library no longer than that after it was told to stop, and nobody waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::struct_wrappers::event::EventData;

use super::ffi::{Handle, has_events};
use crate::device::gpu::GpuEvents;

/// How long one wait lasts.
const WAIT: Duration = Duration::from_secs(1);
/// After how long GPUs are watched anew when waiting failed and nothing else changed.
const RETRY: Duration = Duration::from_secs(10);
/// Most Xids of one GPU that are told apart; there are some two hundred.
const MAX_XIDS: usize = 256;
/// The number of an Xid that the driver does not tell, and of those that are too many.
const UNKNOWN_XID: u64 = 999;

/// What was counted, by GPU. Clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct EventLog(Arc<Mutex<BTreeMap<String, GpuEvents>>>);

impl PartialEq for EventLog {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl EventLog {
    /// A GPU's errors so far.
    pub fn of(&self, uuid: &str) -> GpuEvents {
        self.lock().get(uuid).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, GpuEvents>> {
        // Each change is a single one: what a panic leaves is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_mut(&self, uuid: &str, change: impl FnOnce(&mut GpuEvents)) {
        change(self.lock().entry(uuid.to_owned()).or_default());
    }

    /// A GPU is back: its next loss is for another reason.
    pub(super) fn came_back(&self, uuid: &str) {
        if let Some(events) = self.lock().get_mut(uuid) {
            events.last_xid = None;
        }
    }

    fn note(&self, uuid: &str, event: &EventData<'_>) {
        if event.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) {
            tracing::error!(gpu = uuid, "double-bit memory error");
            self.of_mut(uuid, |events| *events.double_bit_ecc.get_or_insert(0) += 1);
        }
        if event.event_type.contains(EventTypes::CRITICAL_XID_ERROR) {
            let xid = match event.event_data {
                Some(XidError::Value(xid)) => xid,
                Some(XidError::Unknown) | None => UNKNOWN_XID,
            };
            self.of_mut(uuid, |events| note_xid(uuid, events, xid));
        }
    }
}

fn note_xid(uuid: &str, events: &mut GpuEvents, xid: u64) {
    let is_new = !events.xid.contains_key(&xid);
    let counted = if is_new && events.xid.len() >= MAX_XIDS { UNKNOWN_XID } else { xid };
    *events.xid.entry(counted).or_default() += 1;
    events.last_xid = Some(xid);
    if is_new {
        // The first of each: they come in storms.
        tracing::error!(gpu = uuid, xid, "Xid: see the kernel's log");
    }
}

/// The thread of one loaded library.
pub(super) struct Watch(Arc<Shared>);

/// A thread that was told to stop.
pub(super) struct Leaving(Arc<Shared>);

impl Leaving {
    /// Whether it holds the library no more.
    pub(super) fn has_ended(&self) -> bool {
        self.0.lock().ended
    }
}

#[derive(Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    stop: bool,
    /// The thread holds the library no more.
    ended: bool,
    /// Counts the changes of `gpus`.
    generation: u64,
    gpus: Vec<(String, Handle)>,
}

impl Watch {
    /// Starts to wait for what the GPUs of `nvml` raise; `None` where it has no events.
    pub(super) fn start(nvml: &Arc<Nvml>, log: &EventLog) -> Option<Self> {
        if !has_events(nvml) {
            tracing::info!("this driver tells no Xids: its library lacks events");
            return None;
        }
        let shared = Arc::new(Shared::default());
        let (nvml, log, theirs) = (Arc::clone(nvml), log.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("device-nvml-events".to_owned());
        let body = move || {
            run(&nvml, &theirs, &log);
            drop(nvml);
            theirs.lock().ended = true;
        };
        match thread.spawn(body) {
            Ok(_) => Some(Self(shared)),
            Err(error) => {
                tracing::error!(%error, "no thread for the GPUs' events: Xids are not counted");
                None
            }
        }
    }

    /// To know when the thread has let go of the library, once this is dropped.
    pub(super) fn leaving(&self) -> Leaving {
        Leaving(Arc::clone(&self.0))
    }

    /// These are the GPUs that answer.
    pub(super) fn set(&self, gpus: Vec<(String, Handle)>) {
        let mut wanted = self.0.lock();
        wanted.gpus = gpus;
        wanted.generation += 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut wanted = self.0.lock();
        wanted.stop = true;
        wanted.gpus.clear();
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The GPUs to watch once they are others than those of generation `seen`, or after a while; `None` when it
    /// is time to stop.
    fn next(&self, seen: u64) -> Option<(u64, Vec<(String, Handle)>)> {
        let same = |wanted: &mut Wanted| !wanted.stop && wanted.generation == seen;
        let waited = self.changed.wait_timeout_while(self.lock(), RETRY, same);
        let wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
        (!wanted.stop).then(|| (wanted.generation, wanted.gpus.clone()))
    }

    fn is_current(&self, generation: u64) -> bool {
        let wanted = self.lock();
        !wanted.stop && wanted.generation == generation
    }
}

fn run(nvml: &Nvml, shared: &Shared, log: &EventLog) {
    let mut seen = 0;
    while let Some((generation, gpus)) = shared.next(seen) {
        seen = generation;
        if gpus.is_empty() {
            continue;
        }
        match nvml.create_event_set() {
            Ok(set) => watch(&set, &gpus, log, || shared.is_current(generation)),
            Err(error) => tracing::debug!(%error, "no event set"),
        }
    }
}

/// Waits for events of `gpus` while they are the ones to watch, or until waiting fails: a GPU was lost.
fn watch(set: &EventSet<'_>, gpus: &[(String, Handle)], log: &EventLog, is_current: impl Fn() -> bool) {
    let watched = gpus.iter().filter(|(uuid, handle)| register(uuid, handle, set, log)).count();
    if watched == 0 {
        return;
    }
    let millis = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
    while is_current() {
        match set.wait(millis) {
            Ok(event) => note(&event, gpus, log),
            Err(NvmlError::Timeout) => {}
            Err(error) => {
                tracing::debug!(%error, "waiting for events failed");
                return;
            }
        }
    }
    // The set goes, and what it holds with it.
    while let Ok(event) = set.wait(0) {
        note(&event, gpus, log);
    }
}

/// Watches a GPU for those of the events that it can raise.
fn register(uuid: &str, handle: &Handle, set: &EventSet<'_>, log: &EventLog) -> bool {
    let meant = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    // Where it does not tell which, those that every one of them has.
    let kinds =
        handle.device().supported_event_types().map_or(EventTypes::CRITICAL_XID_ERROR, |all| all & meant);
    match handle.register(kinds.bits(), set) {
        Ok(()) => {
            if kinds.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) {
                // So that the series begins at zero.
                log.of_mut(uuid, |events| _ = events.double_bit_ecc.get_or_insert(0));
            }
            true
        }
        Err(error) => {
            tracing::debug!(gpu = uuid, %error, "no events");
            false
        }
    }
}

fn note(event: &EventData<'_>, gpus: &[(String, Handle)], log: &EventLog) {
    match gpus.iter().find(|(_, handle)| handle.is(&event.device)) {
        Some((uuid, _)) => log.note(uuid, event),
        // Another handle of the same GPU, as a MIG instance's.
        None => match event.device.uuid() {
            Ok(uuid) => log.note(&uuid, event),
            Err(error) => tracing::warn!(%error, "an event of a GPU that does not say which"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_strange_xids_is_bounded() {
        let mut events = GpuEvents::default();
        (0..10_000).for_each(|xid| note_xid("GPU-1", &mut events, xid));
        assert!(events.xid.len() <= MAX_XIDS + 1);
        assert_eq!(events.xid.values().sum::<u64>(), 10_000, "none is forgotten");
        assert_eq!(events.last_xid, Some(9_999));
    }
}
