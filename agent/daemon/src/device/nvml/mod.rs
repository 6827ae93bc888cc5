//! NVIDIA GPUs through NVML. With [`super`] the only place that talks to it.
//!
//! Invariant: a host without the library is a host without GPUs. GPUs are known by UUID, indices may
//! shift; one that is lost stays in the readings with `up` false. Power is read at every turn, in one call; what
//! changes slowly once a window; what does not change once for each loaded driver.

mod calls;
mod events;
mod ffi;
mod fields;
mod figures;
mod gpm;
mod gpu;
mod mig;
mod power;
mod sentinel;
mod tally;
mod throttle;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::{Answer, ReadError, Reading};
use crate::clock;
use crate::config::{Gpus, Metering};
use calls::reason;
pub use events::EventLog;
use events::{Leaving, Watch};
use gpu::{Gpu, Pace};

/// How often a library that cannot be used is tried again: drivers are installed and reloaded.
const RETRY: Duration = Duration::from_secs(30);
/// How often new GPUs are looked for.
const REDISCOVER: Duration = Duration::from_secs(10);
/// How often the library is let go of and loaded anew while a GPU is lost: a driver shows one that came back on
/// the bus only to those that initialise after that.
const REOPEN: Duration = Duration::from_secs(300);
/// Power at instants is integrated over this many missed readings at most, and over a second in any case.
const MAX_MISSED: u32 = 10;
/// What a mean power is the mean of.
const MEAN_SPAN: Duration = Duration::from_secs(1);

/// The backend.
pub struct NvmlBackend {
    library: PathBuf,
    explicit: bool,
    wanted: Gpus,
    metering: Metering,
    /// Tells the time; a test may have its own.
    clock: fn() -> Duration,
    session: Option<Session>,
    gpus: Vec<Gpu>,
    /// Lives on when the driver goes.
    log: EventLog,
    /// When the library was last tried; `None` where it is due.
    tried_at: Option<Duration>,
    /// Who may still hold the last library, and since when it was let go of: another initialisation before the
    /// last one has ended would show what that showed.
    leaving: Option<(Leaving, Duration)>,
    /// Why the last try came to nothing; `None` where that is normal.
    error: Option<ReadError>,
    discovered_at: Option<Duration>,
    full_window: Option<u128>,
    reopen_after: Duration,
}

/// A loaded library.
struct Session {
    /// First, so that its thread lets go of the library.
    watch: Option<Watch>,
    /// Shut down and unloaded with the last that holds it: a driver that was replaced comes with another library.
    nvml: Arc<Nvml>,
    driver: String,
}

impl NvmlBackend {
    /// NVML from `library`; `explicit` when its absence is a failure.
    pub fn new(library: &Path, explicit: bool, wanted: Gpus, metering: Metering) -> Self {
        // A GPU that was asked for and is not there is a lost one.
        let listed = match &wanted {
            Gpus::All => &[][..],
            Gpus::Listed(uuids) => uuids,
        };
        Self {
            library: library.to_owned(),
            explicit: explicit || !listed.is_empty(),
            gpus: listed.iter().map(|uuid| Gpu::new(uuid)).collect(),
            wanted,
            metering,
            clock: clock::monotonic,
            session: None,
            log: EventLog::default(),
            tried_at: None,
            leaving: None,
            error: None,
            discovered_at: None,
            full_window: None,
            reopen_after: REOPEN,
        }
    }

    /// `interval`, while a GPU's energy has to be added up from instants of power; else once in the span of its
    /// means, which miss nothing in between. Each reading costs the driver's lock, and wakes a processor.
    pub(super) fn pace(&self, interval: Duration) -> Duration {
        if self.gpus.iter().any(Gpu::wants_power_often) {
            return interval;
        }
        interval.max(MEAN_SPAN).min(self.metering.interval)
    }

    pub(crate) fn read(&mut self, asked: bool) -> Answer {
        let now = (self.clock)();
        let since = |at: Duration| now.saturating_sub(at);
        if self.gpus.iter().any(Gpu::is_lost)
            && self.tried_at.is_some_and(|at| since(at) >= self.reopen_after)
        {
            self.gpus.iter_mut().for_each(Gpu::detach);
            self.let_go(now);
        }
        self.leaving.take_if(|(leaving, at)| leaving.has_ended() || since(*at) >= RETRY);
        let due = self.leaving.is_none() && self.tried_at.is_none_or(|at| since(at) >= RETRY);
        if self.session.is_none() && due {
            self.open(now);
        }
        let Some(session) = self.session.take() else {
            return match &self.error {
                // Between two tries it stands as after the last one.
                Some(error) => Answer::Failed(error.clone()),
                None if self.leaving.is_some() => Answer::Unchanged,
                None => Answer::Absent,
            };
        };
        let mut failures = Vec::new();
        if self.discovered_at.is_none_or(|at| now.saturating_sub(at) >= REDISCOVER) {
            self.discovered_at = Some(now);
            if let Err(error) = self.discover(&session.nvml, &mut failures) {
                self.session = Some(session);
                return Answer::Failed(self.close(now, &error));
            }
        }
        let full = self.read_gpus(&session, asked, now, &mut failures);
        self.watch(&session);
        self.session = Some(session);
        if full && self.gpus.iter().any(|gpu| gpu.reading.lost.is_some_and(is_of_driver)) {
            // It is gone or another: that is found out next time.
            self.discovered_at = None;
        }
        if full || !failures.is_empty() {
            Answer::Reading(self.reading(failures))
        } else {
            // Power alone was added up: it is told with the window.
            Answer::Unchanged
        }
    }

    fn open(&mut self, now: Duration) {
        self.tried_at = Some(now);
        self.error = None;
        match Nvml::builder().lib_path(self.library.as_os_str()).init() {
            Ok(nvml) if nvml.lib().nvmlShutdown.is_err() => {
                // It cannot be let go of either.
                std::mem::forget(nvml);
                let message = format!("{} is not NVML: it lacks nvmlShutdown", self.library.display());
                self.error = Some(ReadError::new("library", message));
            }
            Ok(nvml) => {
                let driver = nvml.sys_driver_version().unwrap_or_default();
                (self.discovered_at, self.full_window) = (None, None);
                tracing::info!(library = %self.library.display(), driver, "NVML loaded");
                let nvml = Arc::new(nvml);
                self.session = Some(Session { watch: Watch::start(&nvml, &self.log), nvml, driver });
            }
            // No library, no GPUs; unless there were some before.
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound)
                if !self.explicit && self.gpus.is_empty() => {}
            Err(error) => self.error = Some(self.failure(&error)),
        }
    }

    /// The driver is gone: it is let go of, and everything is found anew once it is back.
    fn close(&mut self, now: Duration, error: &NvmlError) -> ReadError {
        for gpu in &mut self.gpus {
            gpu.lose(reason(error));
        }
        self.let_go(now);
        // A driver that was loaded anew wants to be initialised, and is there.
        self.tried_at = (!matches!(error, NvmlError::Uninitialized)).then_some(now);
        let failure = self.failure(error);
        self.error = Some(failure.clone());
        failure
    }

    fn let_go(&mut self, now: Duration) {
        let Some(session) = self.session.take() else { return };
        self.leaving = session.watch.as_ref().map(|watch| (watch.leaving(), now));
        self.tried_at = None;
    }

    fn failure(&self, error: &NvmlError) -> ReadError {
        ReadError::new(reason(error), format!("NVML {}: {error}", self.library.display()))
    }

    fn discover(&mut self, nvml: &Nvml, failures: &mut Vec<&'static str>) -> Result<(), NvmlError> {
        for index in 0..nvml.device_count()? {
            let device = match nvml.device_by_index(index) {
                Ok(device) => device,
                Err(error) => {
                    failures.push(reason(&error));
                    continue;
                }
            };
            let Ok(uuid) = device.uuid() else { continue };
            if !self.wanted.includes(&uuid) {
                continue;
            }
            match self.gpus.iter_mut().find(|gpu| gpu.reading.uuid == uuid) {
                Some(gpu) => gpu.note_index(index),
                None => self.gpus.push(Gpu::new(&uuid)),
            }
        }
        Ok(())
    }

    /// Reads the GPUs; whether in full.
    fn read_gpus(
        &mut self,
        session: &Session,
        asked: bool,
        now: Duration,
        failures: &mut Vec<&'static str>,
    ) -> bool {
        // Power is read at every turn, the rest once a window: each call costs the driver's lock.
        let window = now.as_nanos() / self.metering.interval.as_nanos().max(1);
        let full = asked || self.full_window != Some(window);
        self.full_window = Some(window);
        let pace = Pace {
            max_span: (self.metering.gpu_interval * MAX_MISSED).max(MEAN_SPAN),
            // One that is missed, at most.
            max_mean_span: MEAN_SPAN.saturating_mul(5) / 2,
            window: self.metering.interval,
            clock: self.clock,
        };
        for gpu in &mut self.gpus {
            // A lost GPU is asked once a window: each call to it may write to the kernel's log.
            if !gpu.reading.up && !full {
                continue;
            }
            let was_up = gpu.reading.up;
            gpu.read((&session.nvml, &session.driver), full, pace, failures);
            if gpu.reading.up && !was_up {
                self.log.came_back(&gpu.reading.uuid);
            }
        }
        full
    }

    /// Has the GPUs that answer watched for events, where they are others than before.
    fn watch(&mut self, session: &Session) {
        let moved = self.gpus.iter_mut().fold(false, |moved, gpu| gpu.has_moved() | moved);
        if let Some(watch) = session.watch.as_ref().filter(|_| moved) {
            let handle = |gpu: &Gpu| Some((gpu.reading.uuid.clone(), gpu.handle()?.clone()));
            watch.set(self.gpus.iter().filter_map(handle).collect());
        }
    }

    fn reading(&self, failures: Vec<&'static str>) -> Reading {
        Reading {
            energy: self.gpus.iter().flat_map(Gpu::energy).collect(),
            gpus: self.gpus.iter().map(|gpu| gpu.reading.clone()).collect(),
            gpu_events: self.log.clone(),
            failures,
            ..Reading::default()
        }
    }
}

/// Whether a GPU is lost because its driver is.
fn is_of_driver(lost: &str) -> bool {
    [&NvmlError::DriverNotLoaded, &NvmlError::Uninitialized].into_iter().any(|error| reason(error) == lost)
}

#[cfg(test)]
mod tests;
