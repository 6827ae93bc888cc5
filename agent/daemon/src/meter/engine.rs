//! The thread that closes windows: readings → accounting → ledger on disk → snapshot.
//!
//! Invariant: in that order, always; and on the medium before it is shown, so that a power cut takes back no
//! sum that was exported (Prometheus would take the fall for a reset and count the whole sum again). Where the
//! disk is too slow to sync each window, windows go before: then a power cut may take back what was drawn
//! since the last sync, [`MAX_SYNC_INTERVAL`] at most. The lock on the accounting is never held over a wait for a device
//! or a disk, so that shards may begin and end at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::core::Window;
use super::{OwnCost, OwnMeter, Recorder, Shared, State};
use crate::clock;
use crate::config::{Gpus, WantedGpus};
use crate::device::Class;
use crate::device::gpu::GpuReading;
use crate::device::sensor::SensorReading;
use crate::device::thread::{BackendThread, Round, View, Woken, next_tick};
use crate::device::units::Unit;
use crate::ledger::Ledger;
use crate::ledger::store::Store;
use crate::snapshot::{BackendState, NodeFacts, Snapshot, Sum, units};

/// A sync is due once this many times its duration has passed: syncing takes at most a fifth of the time.
const SYNC_SHARE: u32 = 4;
/// A sync is due after this time, however slow the disk.
const MAX_SYNC_INTERVAL: Duration = Duration::from_secs(30);
/// How long a window waits for backends that answer late: a quarter of the interval, at most.
const MAX_GRACE: Duration = Duration::from_millis(250);
/// How long a GPU that is gone is still shown as lost. After that it was taken out.
const LOST_GPU_NANOS: u64 = 7 * 24 * 3_600 * 1_000_000_000;

/// What the engine is asked to do.
pub(super) enum Command {
    /// Close the window now, sync, and say so.
    Flush(oneshot::Sender<()>),
    /// Close the last window and end.
    Stop(oneshot::Sender<()>),
}

pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Vec<BackendThread>,
    /// Where their answers are waited for.
    pub(super) round: Arc<Round>,
    pub(super) store: Store,
    pub(super) node: Arc<NodeFacts>,
    /// GPUs of this node; none where they are turned off.
    pub(super) wanted: WantedGpus,
    pub(super) interval: Duration,
    pub(super) own: OwnMeter,
    /// CPUs of this node.
    pub(super) cpu_count: usize,
    pub(super) recorder: Option<Recorder>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) closed_at: Duration,
    /// When the last sync ended, and how long it took.
    pub(super) synced: (Duration, Duration),
    pub(super) windows: u64,
    pub(super) ledger_errors: BTreeMap<&'static str, u64>,
    pub(super) failing: Option<&'static str>,
}

impl Engine {
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            match commands.try_recv() {
                Ok(Command::Flush(done)) => {
                    self.close_now();
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                Ok(Command::Stop(done)) => {
                    self.close_now();
                    self.threads.iter().for_each(BackendThread::stop);
                    let _ = done.send(());
                    return;
                }
                Err(TryRecvError::Empty) => self.window(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Waits for the end of the window and closes it, or returns when there is a command.
    fn window(&mut self) {
        let now = clock::monotonic();
        let tick = next_tick(self.closed_at.max(now.saturating_sub(self.interval)), self.interval);
        if self.wait(tick, (self.interval / 4).min(MAX_GRACE)) != Woken::Rung {
            self.close(tick, false);
        }
    }

    fn close_now(&mut self) {
        let now = clock::monotonic();
        self.threads.iter().for_each(BackendThread::ask);
        // A command that comes meanwhile has its turn afterwards.
        while self.wait(now, MAX_GRACE) == Woken::Rung {}
        self.close(now, true);
    }

    /// Waits until `at` for the readings of the window that ends then, and for `grace` after it for those that
    /// are late.
    fn wait(&self, at: Duration, grace: Duration) -> Woken {
        let now = clock::monotonic();
        let awaited: Vec<&BackendThread> =
            self.threads.iter().filter(|thread| thread.is_awaited(now)).collect();
        self.round.expect(at, awaited.iter().copied());
        self.round.wait(if awaited.is_empty() { at } else { at + grace })
    }

    /// Closes the window that ends at `at`, with the readings that are there.
    fn close(&mut self, at: Duration, sync: bool) {
        self.shared.lock().core.read_shards(&clock::process_cpu_nanos);
        let now = clock::monotonic();
        let views: Vec<View> = self.threads.iter().map(|thread| thread.view(now)).collect();
        let elapsed = at.saturating_sub(self.closed_at);
        self.closed_at = at;
        let unix_nanos = clock::unix_nanos();
        let places = self.places(&views);
        let (ledger, owes) = {
            let mut state = self.shared.lock();
            state.core.close(&Window { elapsed, unix_nanos, views: &views, places: &places });
            let ledger = state.core.ledger.clone();
            let owes = ledger.last_sequence > state.durable_sequence;
            (ledger, owes)
        };
        let began = clock::monotonic();
        // What is owed must not be forgotten once it was said: its number would be given twice.
        let sync = sync || owes || sync_is_due(began, self.synced);
        let written = self.store.write(&ledger, sync);
        let written = self.note(written);
        if sync {
            let ended = clock::monotonic();
            self.synced = (ended, ended.saturating_sub(began));
        }
        self.windows += 1;
        let mut state = self.shared.lock();
        if written && sync {
            state.durable_sequence = ledger.last_sequence;
        }
        // From what was written: what came in since must not show before it is.
        let cpu_watts = state.core.cpu_watts();
        let own = self.own.read(elapsed, self.cpu_count, cpu_watts);
        let snapshot = self.snapshot(&state, &ledger, &views, unix_nanos, own);
        let durable = state.durable_sequence;
        drop(state);
        if let Some(record) = &mut self.recorder {
            record(&snapshot);
        }
        self.snapshots.send_replace(Arc::new(snapshot));
        self.shared.settlements.send_if_modified(|known| std::mem::replace(known, durable) != durable);
    }

    /// Units of the processes that are on GPUs; none where units are not told apart.
    fn places(&self, views: &[View]) -> BTreeMap<u32, Arc<Unit>> {
        let Some(places) = &self.shared.places else { return BTreeMap::new() };
        let gpus = views.iter().filter_map(|view| view.reading.as_deref()).flat_map(|r| &r.gpus);
        let pids: BTreeSet<u32> = gpus.flat_map(|gpu| gpu.processes.iter().flatten().copied()).collect();
        pids.into_iter().filter_map(|pid| Some((pid, Arc::new(places.unit_of(pid)?)))).collect()
    }

    /// Counts a failed write, and says so once per change.
    fn note(&mut self, written: io::Result<()>) -> bool {
        match written {
            Ok(()) => {
                if self.failing.take().is_some() {
                    tracing::info!("the ledger can be written again");
                }
                true
            }
            Err(error) => {
                let reason = write_reason(&error);
                *self.ledger_errors.entry(reason).or_default() += 1;
                if self.failing.replace(reason) != Some(reason) {
                    tracing::error!(reason, %error, "the ledger cannot be written; metering goes on from memory");
                }
                false
            }
        }
    }

    fn snapshot(
        &self,
        state: &State,
        ledger: &Ledger,
        views: &[View],
        unix_nanos: u64,
        own: OwnCost,
    ) -> Snapshot {
        let core = &state.core;
        let meters = ledger.meters.iter().map(|(meter, entry)| {
            let watts = core.powers.meters.get(meter).copied();
            (meter.clone(), Sum { microjoules: entry.microjoules, watts })
        });
        let scopes = ledger.scopes.iter().map(|(key, entry)| {
            let watts = core.powers.scopes.get(key).copied();
            (*key, Sum { microjoules: entry.microjoules, watts })
        });
        let present = views.iter().filter(|view| view.present);
        let backends = present.map(|view| BackendState {
            kind: view.kind,
            up: view.up,
            duration: view.duration,
            errors: view.errors.clone(),
        });
        let mut up = views.iter().filter(|view| view.up).filter_map(|view| view.reading.as_deref());
        Snapshot {
            node: Arc::clone(&self.node),
            unix_nanos,
            started_unix_nanos: ledger.started_unix_nanos,
            windows: self.windows,
            meters: meters.collect(),
            scopes: scopes.collect(),
            attributed: ledger.attributed.clone(),
            units: units::sums(&ledger.units, core.units.is_on(), |unit, key| core.units.watts(unit, key)),
            gpus: gpus(ledger, views, &self.wanted, unix_nanos, |pid| core.shards.is_of_ours(pid)),
            divergence: core.divergence(),
            sensors: sensors(views),
            host: up.clone().find_map(|reading| reading.host.clone()),
            capacity: up.find_map(|reading| reading.capacity.clone()),
            cpu_utilization: core.cpu_utilization,
            numerics: state.numerics.clone(),
            useful_flops: ledger.useful_flops,
            peak_flops: state.peak_flops.clone(),
            backends: backends.collect(),
            gaps: ledger.gaps.clone(),
            ledger_errors: self.ledger_errors.clone(),
            spool: self.shared.spool.figures(),
            own,
        }
    }
}

/// Whether it is time to sync, when the last one ended at a time and took so long.
fn sync_is_due(now: Duration, (ended, took): (Duration, Duration)) -> bool {
    now.saturating_sub(ended) >= (took * SYNC_SHARE).min(MAX_SYNC_INTERVAL)
}

/// GPUs that are read, those that are asked for by name, and those that the ledger remembers from not long
/// ago: a GPU that was lost while no agent ran is a lost one. One that is not this node's any more is none.
fn gpus(
    ledger: &Ledger,
    views: &[View],
    wanted: &WantedGpus,
    unix_nanos: u64,
    is_of_ours: impl Fn(u32) -> bool,
) -> Vec<GpuReading> {
    let mut gpus = Vec::new();
    for view in views {
        let Some(reading) = view.reading.as_deref() else { continue };
        gpus.extend(reading.gpus.iter().map(|gpu| GpuReading {
            up: gpu.up && view.up,
            lost: if view.up { gpu.lost } else { gpu.lost.or(Some("no_answer")) },
            foreign_processes:
                (gpu.processes.as_ref()).map(|pids| pids.iter().filter(|pid| !is_of_ours(**pid)).count()),
            // As they are by now: they are counted also where readings hang or fail.
            events: reading.gpu_events.of(&gpu.uuid),
            ..gpu.clone()
        }));
    }
    let read: BTreeSet<String> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    let recent = |seen: u64| unix_nanos.saturating_sub(seen) < LOST_GPU_NANOS;
    let remembered = (ledger.meters.iter())
        .filter(|(meter, entry)| meter.class == Class::Gpu && recent(entry.seen_unix_nanos))
        .map(|(meter, _)| &meter.device)
        .filter(|uuid| wanted.includes(uuid));
    let listed = [&wanted.nvml, &wanted.hwmon].into_iter().flat_map(|wanted| match wanted {
        Gpus::All => &[][..],
        Gpus::Listed(uuids) => uuids,
    });
    let missing: BTreeSet<&String> = remembered.chain(listed).filter(|uuid| !read.contains(*uuid)).collect();
    gpus.extend(missing.into_iter().map(|uuid| GpuReading {
        uuid: uuid.clone(),
        lost: Some("not_found"),
        ..GpuReading::default()
    }));
    gpus
}

/// What the sensors of backends that answer said last.
fn sensors(views: &[View]) -> Vec<SensorReading> {
    let readings = views.iter().filter(|view| view.up).filter_map(|view| view.reading.as_deref());
    readings.flat_map(|reading| &reading.sensors).cloned().collect()
}

/// The value of the `reason` label.
fn write_reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
        io::ErrorKind::PermissionDenied => "permission",
        io::ErrorKind::ReadOnlyFilesystem => "read_only",
        io::ErrorKind::NotFound => "missing",
        _ => "io",
    }
}

#[cfg(test)]
mod tests {
    use wattmill_protocol::Source;

    use super::*;
    use crate::device::{BackendKind, MeterId, Reading};
    use crate::ledger::MeterEntry;

    #[test]
    fn a_sync_takes_a_fifth_of_the_time_at_most_and_is_never_put_off_for_long() {
        let ms = Duration::from_millis;
        for (window, took, every) in
            [(1_000, 5, 1), (1_000, 250, 1), (1_000, 400, 2), (100, 5, 1), (100, 60, 3)]
        {
            let (mut now, mut last, mut syncs) = (ms(0), (ms(0), ms(took)), 0);
            for _ in 0..60 {
                now += ms(window);
                if sync_is_due(now, last) {
                    last = (now, ms(took));
                    syncs += 1;
                }
            }
            assert_eq!(60 / every, syncs, "windows of {window} ms, syncs of {took} ms");
        }
        assert!(sync_is_due(ms(31_000), (ms(1_000), ms(60_000))));
    }

    #[test]
    fn a_gpu_that_was_taken_out_is_not_lost() {
        let mut ledger = Ledger::new("m", None, 0);
        for uuid in ["GPU-read", "GPU-lost", "GPU-out"] {
            let meter = MeterId { class: Class::Gpu, device: uuid.to_owned(), source: Source::Counter };
            ledger.meters.insert(meter, MeterEntry { seen_unix_nanos: 5, ..MeterEntry::default() });
        }
        let gpu = GpuReading { uuid: "GPU-read".to_owned(), up: true, ..GpuReading::default() };
        let reading = Reading { gpus: vec![gpu], ..Reading::default() };
        let view = |up| View {
            kind: BackendKind::Nvml,
            present: true,
            up,
            starting: false,
            duration: Duration::ZERO,
            errors: BTreeMap::new(),
            reading: Some(Arc::new(reading.clone())),
        };
        let listed = |uuids: &[&str]| Gpus::Listed(uuids.iter().map(|uuid| (*uuid).to_owned()).collect());
        let shown = |wanted: &Gpus, views: &[View], at| {
            let wanted = WantedGpus { nvml: wanted.clone(), hwmon: Gpus::Listed(Vec::new()) };
            let gpus = gpus(&ledger, views, &wanted, at, |_| false);
            gpus.into_iter().map(|gpu| (gpu.uuid, gpu.up)).collect::<Vec<_>>()
        };
        let named =
            |gpus: &[(&str, bool)]| gpus.iter().map(|(u, up)| ((*u).to_owned(), *up)).collect::<Vec<_>>();
        let (read, lost, out) = (("GPU-read", true), ("GPU-lost", false), ("GPU-out", false));
        assert_eq!(shown(&Gpus::All, &[view(true)], 9), named(&[read, lost, out]));
        assert_eq!(shown(&listed(&["GPU-read", "GPU-lost"]), &[view(true)], 9), named(&[read, lost]));
        assert_eq!(shown(&Gpus::All, &[view(true)], LOST_GPU_NANOS + 5), named(&[read]), "after a week");
        assert_eq!(shown(&listed(&[]), &[], 9), [], "turned off");
        assert_eq!(
            shown(&listed(&["GPU-new"]), &[], 9),
            named(&[("GPU-new", false)]),
            "asked for, never seen"
        );
        assert_eq!(shown(&Gpus::All, &[view(false)], LOST_GPU_NANOS + 5), named(&[("GPU-read", false)]));
    }

    #[test]
    fn a_gpu_in_use_by_others_is_busy_and_one_that_does_not_answer_says_why() {
        let gpu = |uuid: &str, processes, lost: Option<&'static str>| GpuReading {
            uuid: uuid.to_owned(),
            up: lost.is_none(),
            processes,
            lost,
            ..GpuReading::default()
        };
        let read = vec![
            gpu("GPU-busy", Some(vec![4, 5, 6]), None),
            gpu("GPU-ours", Some(vec![5]), None),
            gpu("GPU-old", None, None),
            gpu("GPU-lost", None, Some("gpu_lost")),
        ];
        let reading = Arc::new(Reading { gpus: read, ..Reading::default() });
        let mut view = View {
            kind: BackendKind::Nvml,
            present: true,
            up: true,
            starting: false,
            duration: Duration::ZERO,
            errors: BTreeMap::new(),
            reading: Some(reading),
        };
        let ledger = Ledger::new("m", None, 0);
        let wanted = WantedGpus { nvml: Gpus::All, hwmon: Gpus::All };
        let shown = |view: &View| gpus(&ledger, std::slice::from_ref(view), &wanted, 9, |pid| pid == 5);
        let foreign: Vec<_> = shown(&view).into_iter().map(|gpu| gpu.foreign_processes).collect();
        assert_eq!(foreign, [Some(2), Some(0), None, None]);
        let lost = |view: &View| shown(view).into_iter().map(|gpu| gpu.lost).collect::<Vec<_>>();
        assert_eq!(lost(&view), [None, None, None, Some("gpu_lost")]);
        view.up = false;
        let silent = Some("no_answer");
        assert_eq!(lost(&view), [silent, silent, silent, Some("gpu_lost")]);
    }
}
