//! The meter: closes a window after the other, and knows what every shard used.
//!
//! [`Meter`] is the handle that the rest of the agent holds; it never waits for a device or a disk.
//! Invariant: a settlement is shown only once its ledger is on the medium, so that its number is never
//! given twice.

mod core;
mod engine;
mod own;
mod shards;
mod units;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use wattmill_protocol::{JobId, Token};

use crate::clock;
use crate::config::Config;
use crate::counter::GapReason;
use crate::device::thread::{BackendThread, Round};
use crate::device::units::Places;
use crate::export::spool::SpoolStats;
use crate::ledger::Ledger;
pub use crate::ledger::Settlement;
use crate::ledger::store::{Found, Store, StoreError};
use crate::snapshot::{NodeFacts, PRECISION, Snapshot, SpoolFigures};
use core::{Core, Settings};
use engine::{Command, Engine};

/// Commands that wait for the engine: one flush or stop at a time is the rule.
const COMMANDS: usize = 16;
pub use own::OwnCost;
use own::OwnMeter;
pub use shards::RunningShard;

/// What is called with each snapshot, on the thread that closes windows, after its ledger was written.
pub type Recorder = Box<dyn FnMut(&Snapshot) + Send>;

/// The meter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] StoreError),
    /// The host has no room for a thread.
    #[error("cannot start a metering thread")]
    Thread(#[source] std::io::Error),
}

/// A handle on the meter; clones are the same meter.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
    /// Wakes the engine for a command.
    round: Arc<Round>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

struct Shared {
    state: Mutex<State>,
    settlements: watch::Sender<u64>,
    spool: Arc<SpoolStats>,
    /// Peaks from the configuration go before a probe's.
    configured_peaks: BTreeMap<String, f64>,
    /// Tells units of processes; `None` where units are not told apart.
    places: Option<Places>,
}

struct State {
    core: Core,
    /// The last settlement that is on the medium.
    durable_sequence: u64,
    numerics: String,
    peak_flops: BTreeMap<(String, String), f64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a mistake that ends the engine; what there is may still be read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    /// Opens the ledger, starts the backends and the engine. Each snapshot is recorded before it is shown.
    ///
    /// # Errors
    /// When the ledger cannot be used or a thread not be started.
    pub fn start(
        config: &Config,
        node: NodeFacts,
        spool: Arc<SpoolStats>,
        recorder: Option<Recorder>,
    ) -> Result<Self, MeterError> {
        let (store, found) = Store::open(&config.state_dir)?;
        let core = open_ledger(found, &node, config);
        let round = Arc::<Round>::default();
        let mut threads = Vec::new();
        for (backends, interval) in crate::device::backends(config) {
            threads.extend(BackendThread::start(backends, interval, &round).map_err(MeterError::Thread)?);
        }
        Self::with_threads(config, node, (spool, recorder), store, core, (threads, round))
    }

    fn with_threads(
        config: &Config,
        node: NodeFacts,
        (spool, recorder): (Arc<SpoolStats>, Option<Recorder>),
        store: Store,
        core: Core,
        (threads, round): (Vec<BackendThread>, Arc<Round>),
    ) -> Result<Self, MeterError> {
        let node = Arc::new(node);
        let precision = || PRECISION.to_owned();
        let peaks = config.peak_flops.iter().map(|(device, flops)| ((device.clone(), precision()), *flops));
        // Nothing of this run's is on the medium yet; a former run's settlements are.
        let durable_sequence = 0;
        let first = Arc::new(empty_snapshot(&core.ledger, &node));
        let state = State { core, durable_sequence, numerics: String::new(), peak_flops: peaks.collect() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            settlements: watch::Sender::new(0),
            spool,
            configured_peaks: config.peak_flops.clone(),
            places: config
                .attribution
                .as_ref()
                .map(|attribution| Places::new(&config.sysfs_root, &config.procfs_root, attribution)),
        });
        let (snapshots, receiver) = watch::channel(first);
        let (commands, inbox) = mpsc::sync_channel(COMMANDS);
        let now = clock::monotonic();
        let engine = Engine {
            shared: Arc::clone(&shared),
            threads,
            round: Arc::clone(&round),
            store,
            node,
            wanted: config.wanted_gpus(),
            interval: config.metering.interval,
            own: OwnMeter::new(&config.procfs_root),
            cpu_count: config.cpus.len(),
            recorder,
            snapshots,
            closed_at: now,
            synced: (now, Duration::ZERO),
            windows: 0,
            ledger_errors: BTreeMap::new(),
            failing: None,
        };
        let thread = std::thread::Builder::new().name("meter".to_owned());
        thread.spawn(move || engine.run(&inbox)).map_err(MeterError::Thread)?;
        Ok(Self { shared, commands, round, snapshots: receiver })
    }

    /// A shard starts computing in the process `pid`.
    pub fn begin(&self, token: Token, job: JobId, pid: u32) {
        let unit = self.shared.places.as_ref().and_then(|places| places.unit_of(pid)).map(Arc::new);
        let shards = &mut self.shared.lock().core.shards;
        shards.begin(token, job, pid, &clock::process_cpu_nanos);
        shards.place(token, unit);
    }

    /// A shard's lease ended before its work began: it settles with no joules, or its estimate would stand.
    pub fn never_began(&self, token: Token, job: JobId) {
        self.shared.lock().core.shards.never_began(token, job);
    }

    /// The collector misses a lease's joules. Where it neither runs nor is settled here, it settles with none:
    /// every shard that a closed window saw is in the ledger. `unrecorded` says that it may have begun all the
    /// same, in the last window of an agent that was killed; what it took then is another process's.
    pub fn account_for(&self, token: Token, job: JobId, unrecorded: bool) {
        self.shared.lock().core.account_for(token, job, unrecorded);
    }

    /// A shard has ended: call it while its process still lives. Its energy settles with
    /// the window in which it ends.
    pub fn end(&self, token: Token) {
        self.shared.lock().core.end(token, &clock::process_cpu_nanos);
    }

    /// Shards that run, with their energy as of the last window.
    pub fn running(&self) -> Vec<RunningShard> {
        self.shared.lock().core.shards.running()
    }

    /// Settlements that the collector has not applied, oldest first; only those that a crash cannot undo.
    pub fn pending_settlements(&self) -> Vec<Settlement> {
        let state = self.shared.lock();
        let pending = state.core.ledger.pending.iter();
        pending.filter(|s| s.sequence <= state.durable_sequence).cloned().collect()
    }

    /// Number of the newest settlement that [`Self::pending_settlements`] may show; changes with it.
    pub fn settlements_changed(&self) -> watch::Receiver<u64> {
        self.shared.settlements.subscribe()
    }

    /// The newest settlement that the collector has applied, as far as is known here.
    pub fn settled(&self) -> u64 {
        let state = self.shared.lock();
        let ledger = &state.core.ledger;
        ledger.pending.first().map_or(ledger.last_sequence, |first| first.sequence - 1)
    }

    /// The collector has applied settlements up to `sequence`.
    pub fn settled_through(&self, sequence: u64) {
        self.shared.lock().core.ledger.settled_through(sequence);
    }

    /// Counts model FLOPs of committed work.
    pub fn add_useful_flops(&self, flops: u64) {
        let mut state = self.shared.lock();
        let sum = &mut state.core.ledger.useful_flops;
        *sum = sum.saturating_add(flops);
    }

    /// Notes a device's dense peak FLOP/s, which it was seen to do. One that is configured goes before it,
    /// unless the device does more: η would exceed 1.
    pub fn set_peak_flops(&self, device: &str, precision: &str, flops: f64) {
        let configured = self.shared.configured_peaks.get(device).copied();
        if let Some(configured) = configured.filter(|configured| *configured < flops) {
            tracing::warn!(
                device,
                configured,
                measured = flops,
                "peak.flops is less than the device was measured to do; going by the measurement"
            );
        }
        let flops = configured.map_or(flops, |configured| configured.max(flops));
        self.shared.lock().peak_flops.insert((device.to_owned(), precision.to_owned()), flops);
    }

    /// Notes what this node's results must agree in with others' (`avx2/f32/1`).
    pub fn set_numerics(&self, numerics: &str) {
        numerics.clone_into(&mut self.shared.lock().numerics);
    }

    /// Snapshots as they come. The channel closes when the engine ends, which it only does when asked.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Closes the window early and puts the ledger on the medium, so that shards that ended settle.
    pub async fn flush(&self) {
        self.ask(Command::Flush).await;
    }

    /// Closes the last window and ends the engine.
    pub async fn stop(&self) {
        self.ask(Command::Stop).await;
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, answer) = oneshot::channel();
        // An engine that has ended has nothing left to close.
        if self.commands.send(command(done)).is_ok() {
            self.round.ring();
            let _ = answer.await;
        }
    }
}

fn open_ledger(found: Found, node: &NodeFacts, config: &Config) -> Core {
    let identity = &node.identity;
    let boot_id = identity.boot_id.as_deref();
    let lost = matches!(found, Found::Lost);
    let ledger = match found {
        Found::Ledger(ledger) => *ledger,
        Found::Nothing | Found::Lost => Ledger::new(&identity.machine_id, boot_id, clock::unix_nanos()),
    };
    let mut ledger = ledger;
    if ledger.machine_id != identity.machine_id {
        tracing::warn!(
            ledger = ledger.machine_id,
            host = identity.machine_id,
            "the ledger was kept on another host; going on with it. If this host is a clone, give it an empty state_dir"
        );
        ledger.machine_id.clone_from(&identity.machine_id);
        ledger.void_readings(GapReason::OtherHost);
        ledger.boot_id = None;
    }
    let settings = Settings {
        host_fraction_ppm: config.host_fraction_ppm,
        cpu_count: config.cpus.len(),
        attribution: config.attribution.clone(),
    };
    let mut core = Core::new(ledger, boot_id, settings);
    if lost {
        tracing::error!("no ledger file is valid: energy sums begin anew");
        core.lost_ledger();
    }
    core
}

/// What is known before the first window: the former run's sums, which are on disk.
fn empty_snapshot(ledger: &Ledger, node: &Arc<NodeFacts>) -> Snapshot {
    let sum = |microjoules| crate::snapshot::Sum { microjoules, watts: None };
    Snapshot {
        node: Arc::clone(node),
        unix_nanos: node.process_started_unix_nanos,
        started_unix_nanos: ledger.started_unix_nanos,
        windows: 0,
        meters: ledger.meters.iter().map(|(meter, e)| (meter.clone(), sum(e.microjoules))).collect(),
        scopes: ledger.scopes.iter().map(|(key, e)| (*key, sum(e.microjoules))).collect(),
        attributed: ledger.attributed.clone(),
        units: crate::snapshot::units::sums(&ledger.units, false, |_, _| None),
        gpus: Vec::new(),
        divergence: BTreeMap::new(),
        sensors: Vec::new(),
        host: None,
        capacity: None,
        cpu_utilization: None,
        numerics: String::new(),
        useful_flops: ledger.useful_flops,
        peak_flops: BTreeMap::new(),
        backends: Vec::new(),
        gaps: ledger.gaps.clone(),
        ledger_errors: BTreeMap::new(),
        spool: SpoolFigures::default(),
        own: OwnCost::default(),
    }
}

#[cfg(test)]
mod tests;
