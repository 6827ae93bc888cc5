//! A thread for each backend: reads on its schedule, publishes the newest answer.
//!
//! Invariant: nobody ever waits for a device. Whoever wants readings gets the newest there is and
//! whether the backend still answers; a thread that hangs is left behind, also at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Answer, Backend, BackendKind, Reading};
use crate::clock;

/// Least time that a reading may take before the backend counts as hung.
const MIN_DEADLINE: Duration = Duration::from_secs(1);

/// What is known of a backend now.
#[derive(Clone, Debug)]
pub struct View {
    /// Which one.
    pub kind: BackendKind,
    /// Whether there is anything to read on this host, or something keeps the backend from telling.
    pub present: bool,
    /// Whether it answers in time.
    pub up: bool,
    /// Whether its first answer is still to come, in time.
    pub starting: bool,
    /// How long its newest answer took.
    pub duration: Duration,
    /// Failed readings by reason, since this process began.
    pub errors: BTreeMap<&'static str, u64>,
    /// Its newest readings; those of a backend that failed since are older than the failure.
    pub reading: Option<Arc<Reading>>,
}

/// A backend's thread, as others see it.
#[derive(Clone)]
pub struct BackendThread {
    kind: BackendKind,
    slot: Arc<Slot>,
}

struct Slot {
    state: Mutex<State>,
    changed: Condvar,
    deadline: Duration,
}

#[derive(Default)]
struct State {
    /// A reading began then and has not ended.
    reading_since: Option<Duration>,
    /// When the newest answer was asked for.
    answered: Option<Duration>,
    duration: Duration,
    present: bool,
    failed: bool,
    ended: bool,
    stop: bool,
    asked: bool,
    overdue_counted: bool,
    errors: BTreeMap<&'static str, u64>,
    reading: Option<Arc<Reading>>,
    last_message: Option<String>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked inside a reading holds no lock; the state is whole in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendThread {
    /// Starts a thread that reads `backend` at each multiple of `interval` since boot: windows and
    /// backends share that grid, so that a window's readings are of one time.
    ///
    /// # Errors
    /// When the host has no room for a thread.
    pub fn start(backend: Backend, interval: Duration) -> std::io::Result<Self> {
        let kind = backend.kind();
        let slot = Arc::new(Slot {
            state: Mutex::default(),
            changed: Condvar::new(),
            deadline: (interval * 2).max(MIN_DEADLINE),
        });
        let shared = Arc::clone(&slot);
        std::thread::Builder::new()
            .name(format!("device-{}", kind.as_str()))
            .spawn(move || run(backend, interval, &shared))?;
        Ok(Self { kind, slot })
    }

    /// What is known at the time `now`.
    pub fn view(&self, now: Duration) -> View {
        let mut state = self.slot.lock();
        let overdue = state.reading_since.is_some_and(|since| now.saturating_sub(since) > self.slot.deadline);
        if overdue && !state.overdue_counted {
            state.overdue_counted = true;
            *state.errors.entry("timeout").or_default() += 1;
            tracing::error!(
                backend = self.kind.as_str(),
                "a reading hangs; going on without this backend until it answers"
            );
        }
        View {
            kind: self.kind,
            present: state.present || state.failed || state.ended || overdue,
            up: !overdue && !state.failed && !state.ended && state.answered.is_some(),
            starting: !overdue && !state.ended && state.answered.is_none(),
            duration: state.duration,
            errors: state.errors.clone(),
            reading: state.reading.clone(),
        }
    }

    /// Waits until the backend answered to a reading begun at `since` or later, but not past `until`.
    pub fn wait_since(&self, since: Duration, until: Duration) {
        let mut state = self.slot.lock();
        loop {
            let answered = state.answered.is_some_and(|at| at >= since);
            let now = clock::monotonic();
            if answered || state.ended || now >= until {
                return;
            }
            let result = self.slot.changed.wait_timeout(state, until - now);
            state = result.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks for a reading ahead of the schedule.
    pub fn ask(&self) {
        self.slot.lock().asked = true;
        self.slot.changed.notify_all();
    }

    /// Ends the thread after its reading, without waiting for it.
    pub fn stop(&self) {
        self.slot.lock().stop = true;
        self.slot.changed.notify_all();
    }
}

/// The next multiple of `interval` after `now`.
pub fn next_tick(now: Duration, interval: Duration) -> Duration {
    let interval = interval.as_nanos().max(1);
    let next = (now.as_nanos() / interval + 1) * interval;
    Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX))
}

fn run(mut backend: Backend, interval: Duration, slot: &Slot) {
    // A panic in a backend is one more way to be gone.
    let _ended = Ended(slot);
    let mut asked = false;
    loop {
        let began = clock::monotonic();
        slot.lock().reading_since = Some(began);
        let answer = backend.read(asked);
        finish(slot, backend.kind(), began, answer);
        match wait_for_turn(slot, next_tick(clock::monotonic(), backend.pace(interval))) {
            Turn::Due => asked = false,
            Turn::Asked => asked = true,
            Turn::Stop => return,
        }
    }
}

enum Turn {
    Due,
    Asked,
    Stop,
}

fn wait_for_turn(slot: &Slot, next: Duration) -> Turn {
    let mut state = slot.lock();
    loop {
        if state.stop {
            return Turn::Stop;
        }
        if std::mem::take(&mut state.asked) {
            return Turn::Asked;
        }
        let now = clock::monotonic();
        if now >= next {
            return Turn::Due;
        }
        state = slot.changed.wait_timeout(state, next - now).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn finish(slot: &Slot, kind: BackendKind, began: Duration, answer: Answer) {
    let mut state = slot.lock();
    state.reading_since = None;
    state.answered = Some(began);
    state.duration = clock::monotonic().saturating_sub(began);
    state.present = answer != Answer::Absent;
    if std::mem::take(&mut state.overdue_counted) {
        tracing::info!(backend = kind.as_str(), "the backend answers again");
    }
    match answer {
        Answer::Reading(reading) => {
            for reason in &reading.failures {
                *state.errors.entry(reason).or_default() += 1;
            }
            if state.last_message.take().is_some() {
                tracing::info!(backend = kind.as_str(), "the backend can be read again");
            }
            state.failed = false;
            state.reading = Some(Arc::new(reading));
        }
        Answer::Unchanged => state.failed = false,
        Answer::Absent => {
            state.failed = false;
            state.reading = None;
        }
        Answer::Failed(error) => {
            *state.errors.entry(error.reason).or_default() += 1;
            // Once per change: a host without permissions would fill its log.
            if state.last_message.as_deref() != Some(error.message.as_str()) {
                tracing::warn!(backend = kind.as_str(), reason = error.reason, "{error}");
                state.last_message = Some(error.message);
            }
            state.failed = true;
        }
    }
    drop(state);
    slot.changed.notify_all();
}

struct Ended<'a>(&'a Slot);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if std::thread::panicking() {
            *state.errors.entry("panic").or_default() += 1;
        }
        state.ended = true;
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::ReadError;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// A backend that answers what the test sends, and hangs until then.
    fn scripted(interval: Duration) -> (BackendThread, mpsc::Sender<Answer>) {
        let (sender, receiver) = mpsc::channel::<Answer>();
        let answer = Box::new(move || receiver.recv().unwrap());
        (BackendThread::start(Backend::Scripted(BackendKind::Nvml, answer), interval).unwrap(), sender)
    }

    fn wait_until(thread: &BackendThread, done: impl Fn(&View) -> bool) -> View {
        for _ in 0..5_000 {
            let view = thread.view(clock::monotonic());
            if done(&view) {
                return view;
            }
            let now = clock::monotonic();
            thread.wait_since(now, now + Duration::from_millis(2));
        }
        panic!("{:?}", thread.view(clock::monotonic()));
    }

    #[test]
    fn a_hung_backend_is_down_until_it_answers() {
        let (thread, answers) = scripted(HOUR);
        let now = clock::monotonic();
        assert!(!thread.view(now).up, "nothing read yet");
        answers.send(Answer::Reading(Reading::default())).unwrap();
        wait_until(&thread, |view| view.up && view.present);
        thread.ask();
        wait_until(&thread, |_| thread.slot.lock().reading_since.is_some());
        // Two intervals later, on the test's clock, the reading still has not come back.
        let view = thread.view(clock::monotonic() + 3 * HOUR);
        assert!(!view.up && view.reading.is_some());
        assert_eq!(view.errors.get("timeout"), Some(&1));
        assert_eq!(thread.view(clock::monotonic() + 4 * HOUR).errors["timeout"], 1, "one hang counts once");
        answers.send(Answer::Reading(Reading::default())).unwrap();
        wait_until(&thread, |view| view.up);
    }

    #[test]
    fn a_backend_that_hangs_in_its_first_reading_is_there_and_down() {
        let (thread, answers) = scripted(HOUR);
        wait_until(&thread, |_| thread.slot.lock().reading_since.is_some());
        let view = thread.view(clock::monotonic());
        assert_eq!((view.present, view.starting), (false, true), "it may still say that there is nothing");
        let view = thread.view(clock::monotonic() + 3 * HOUR);
        assert_eq!((view.present, view.up, view.errors.get("timeout")), (true, false, Some(&1)));
        answers.send(Answer::Absent).unwrap();
        wait_until(&thread, |view| !view.present && view.up);
    }

    #[test]
    fn failures_are_counted_by_reason_and_end() {
        let (thread, answers) = scripted(Duration::from_millis(1));
        answers.send(Answer::Failed(ReadError::new("permission", "no"))).unwrap();
        answers.send(Answer::Failed(ReadError::new("permission", "no"))).unwrap();
        let view = wait_until(&thread, |view| view.errors.get("permission") == Some(&2));
        assert!(!view.up && view.present);
        let failures = vec!["gpu_lost"];
        answers.send(Answer::Reading(Reading { failures, ..Reading::default() })).unwrap();
        let view = wait_until(&thread, |view| view.up);
        assert_eq!(view.errors["gpu_lost"], 1);
        answers.send(Answer::Absent).unwrap();
        wait_until(&thread, |view| !view.present && view.reading.is_none());
    }

    #[test]
    fn a_reading_with_nothing_new_leaves_the_last_one() {
        let (thread, answers) = scripted(HOUR);
        let failures = vec!["gpu_lost"];
        answers.send(Answer::Reading(Reading { failures, ..Reading::default() })).unwrap();
        wait_until(&thread, |view| view.up);
        let asked_at = clock::monotonic();
        thread.ask();
        answers.send(Answer::Unchanged).unwrap();
        thread.wait_since(asked_at, asked_at + HOUR);
        let view = thread.view(clock::monotonic());
        assert!(view.up && view.present && view.reading.is_some());
        assert_eq!(view.errors["gpu_lost"], 1, "a failure counts once");
    }

    #[test]
    fn a_panic_is_a_backend_gone() {
        let (thread, answers) = scripted(HOUR);
        drop(answers);
        let view = wait_until(&thread, |view| view.errors.contains_key("panic"));
        assert!(!view.up && view.present);
    }

    #[test]
    fn ticks_lie_on_one_grid() {
        let ms = Duration::from_millis;
        assert_eq!(next_tick(ms(1_000), ms(1_000)), ms(2_000));
        assert_eq!(next_tick(ms(1_999), ms(1_000)), ms(2_000));
        assert_eq!(next_tick(ms(1_950), ms(100)), ms(2_000));
    }
}
