//! The one driver of the process: the machine behind a lock, its clock, and what waits for a change.

use std::process;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::limits_file::LimitsFile;
use crate::machine::Machine;
use crate::machine::command::{Answer, Command};
use crate::machine::config::ClockKind;
use crate::machine::error::NvmlError;
use crate::{server, settings};

/// Once loaded, it stays loaded until the process ends: as a kernel's driver does, it outlives
/// `nvmlShutdown` and `dlclose`.
static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Signalled after every command.
static CHANGED: Condvar = Condvar::new();

struct Driver {
    machine: Machine,
    clock: Clock,
    /// Where processes share power limits.
    limits: Option<LimitsFile>,
    /// From the fake's clock to the wall clock, in nanoseconds: 0 where a test owns time.
    wall_offset_ns: u64,
}

impl Driver {
    /// Does something to the machine, between taking over what other processes set and letting them know.
    fn with_shared_limits<T>(
        &mut self,
        now_ns: u64,
        body: impl FnOnce(&mut Machine) -> T,
    ) -> Result<T, String> {
        if let Some(limits) = &mut self.limits {
            limits.adopt(&mut self.machine, now_ns)?;
        }
        let result = body(&mut self.machine);
        if let Some(limits) = &mut self.limits {
            limits.publish(&self.machine)?;
        }
        Ok(result)
    }
}

#[derive(Debug, Clone, Copy)]
enum Clock {
    Monotonic,
    Manual(u64),
}

impl Clock {
    fn now_ns(self) -> u64 {
        match self {
            Clock::Monotonic => monotonic_ns(),
            Clock::Manual(now_ns) => now_ns,
        }
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn lock() -> MutexGuard<'static, Option<Driver>> {
    // A panic under the lock aborts at the C boundary or ends the control thread; the state is whole either way.
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads the driver unless it is loaded, then counts one more user on behalf of `function`.
pub(super) fn init(function: &'static str) -> Result<(), NvmlError> {
    let mut guard = lock();
    if guard.is_none() {
        let driver = load().map_err(|message| {
            // There is no other way out of a C library for the reason.
            eprintln!("nvml-fake: {message}");
            NvmlError::Unknown
        })?;
        *guard = Some(driver);
    }
    drop(guard);
    let_in(function, |machine, _| machine.init())
}

fn load() -> Result<Driver, String> {
    let config = settings::read()?;
    let socket = settings::socket(&config);
    let clock = match config.clock {
        ClockKind::Monotonic => Clock::Monotonic,
        ClockKind::Manual => Clock::Manual(0),
    };
    let wall_offset_ns = match config.clock {
        ClockKind::Monotonic => {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            u64::try_from(wall.as_nanos()).unwrap_or(0).saturating_sub(monotonic_ns())
        }
        ClockKind::Manual => 0,
    };
    let limits = config.limits_file.clone().map(LimitsFile::new);
    let machine = Machine::new(config, clock.now_ns())?;
    if let Some(path) = socket {
        server::start(&path)?;
    }
    Ok(Driver { machine, clock, limits, wall_offset_ns })
}

/// A call of `function` of an initialised library: blocks while the function hangs, then fails or goes on.
pub(super) fn call<T>(
    function: &'static str,
    body: impl FnOnce(&mut Machine, u64) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    let_in(function, |machine, now_ns| {
        machine.check_initialised()?;
        body(machine, now_ns)
    })
}

fn let_in<T>(
    function: &'static str,
    body: impl FnOnce(&mut Machine, u64) -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    let mut guard = lock();
    let machine = &mut guard.as_mut().ok_or(NvmlError::Uninitialized)?.machine;
    machine.begin(function);
    if machine.is_crashing(function) {
        eprintln!("nvml-fake: {function} crashes, as it was told to");
        process::abort();
    }
    if is_hung(&guard, function) {
        set_waiting(&mut guard, function, true);
        while is_hung(&guard, function) {
            guard = CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        set_waiting(&mut guard, function, false);
    }
    let driver = guard.as_mut().ok_or(NvmlError::Uninitialized)?;
    driver.machine.check(function)?;
    let now_ns = driver.clock.now_ns();
    driver.with_shared_limits(now_ns, |machine| body(machine, now_ns)).map_err(|message| {
        eprintln!("nvml-fake: {message}");
        NvmlError::Unknown
    })?
}

fn is_hung(driver: &Option<Driver>, function: &str) -> bool {
    driver.as_ref().is_some_and(|driver| driver.machine.is_hung(function))
}

fn set_waiting(driver: &mut Option<Driver>, function: &'static str, waiting: bool) {
    if let Some(driver) = driver {
        driver.machine.set_waiting(function, waiting);
    }
}

/// Polls `ready` after every command, on behalf of `function`, until it gives something or `timeout` passes on
/// the fake's clock: with a manual clock, only `advance` ends the wait.
pub(super) fn wait<T>(
    function: &'static str,
    timeout: Duration,
    mut ready: impl FnMut(&mut Machine) -> Result<Option<T>, NvmlError>,
) -> Result<T, NvmlError> {
    let started_ns = call(function, |_, now_ns| Ok(now_ns))?;
    let deadline_ns = started_ns.saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    let mut guard = lock();
    set_waiting(&mut guard, function, true);
    let outcome = loop {
        let Some(driver) = guard.as_mut() else { break Err(NvmlError::Uninitialized) };
        match ready(&mut driver.machine) {
            Ok(Some(value)) => break Ok(value),
            Ok(None) => {}
            Err(error) => break Err(error),
        }
        let (clock, now_ns) = (driver.clock, driver.clock.now_ns());
        if now_ns >= deadline_ns {
            break Err(NvmlError::Timeout);
        }
        guard = match clock {
            Clock::Manual(_) => CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Clock::Monotonic => {
                let left = Duration::from_nanos(deadline_ns - now_ns);
                CHANGED.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    };
    set_waiting(&mut guard, function, false);
    outcome
}

/// Carries a command out. Whoever waits for it sleeps until [`wake`].
pub(crate) fn apply(command: Command) -> Answer {
    let mut guard = lock();
    let Some(driver) = guard.as_mut() else { return Answer::Error("no driver is loaded".to_owned()) };
    if let (Command::Advance { nanoseconds }, Clock::Manual(now_ns)) = (&command, &mut driver.clock) {
        *now_ns = now_ns.saturating_add(*nanoseconds);
    }
    let now_ns = driver.clock.now_ns();
    driver.with_shared_limits(now_ns, |machine| machine.apply(command, now_ns)).unwrap_or_else(Answer::Error)
}

/// Wakes whoever waits for a command. After its answer is sent: the process may end of what wakes.
pub(crate) fn wake() {
    CHANGED.notify_all();
}

/// The wall clock at an instant of the fake's clock, in microseconds since 1970 (since the start of a manual
/// clock).
pub(super) fn wall_microseconds(now_ns: u64) -> u64 {
    let offset_ns = lock().as_ref().map_or(0, |driver| driver.wall_offset_ns);
    now_ns.saturating_add(offset_ns) / 1_000
}
