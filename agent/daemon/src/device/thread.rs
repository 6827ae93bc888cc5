//! Threads that read backends, each on its schedule, and publish the newest answers.
//!
//! Backends that cannot hang, because they read what the kernel has in memory, share a thread: to wake one costs
//! more than most of their readings. Any other has its own. Invariant: nobody ever waits for a device. Whoever
//! wants readings gets the newest there is and whether the backend still answers; a thread that hangs is left
//! behind, also at the end.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
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

/// A backend, as others see it; the thread that reads it may read others too.
#[derive(Clone)]
pub struct BackendThread {
    kind: BackendKind,
    slot: Arc<Slot>,
    thread: Arc<Shared>,
}

/// What a thread and those who ask it share.
struct Shared {
    turn: Mutex<Turn>,
    changed: Condvar,
    deadline: Duration,
    round: Arc<Round>,
}

#[derive(Default)]
struct Turn {
    /// A reading began then and has not ended.
    reading_since: Option<Duration>,
    asked: bool,
    stop: bool,
}

#[derive(Default)]
struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    /// When the newest answer was asked for.
    answered: Option<Duration>,
    duration: Duration,
    present: bool,
    failed: bool,
    ended: bool,
    overdue_counted: bool,
    errors: BTreeMap<&'static str, u64>,
    reading: Option<Arc<Reading>>,
    last_message: Option<String>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever panics holds no lock; the state is whole in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, change: impl FnOnce(&mut Turn)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// Where whoever closes windows waits for all backends of a window at once: it is woken once, not for each.
#[derive(Default)]
pub struct Round {
    state: Mutex<RoundState>,
    changed: Condvar,
}

#[derive(Default)]
struct RoundState {
    /// Readings begun before are not those that are waited for.
    at: Duration,
    pending: Vec<BackendKind>,
    complete: bool,
    rung: bool,
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// All answered that were expected.
    Complete,
    /// It was time.
    Due,
    /// [`Round::ring`] was called; the round goes on.
    Rung,
}

impl Round {
    fn lock(&self) -> MutexGuard<'_, RoundState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a round: it is complete once each of these has answered to a reading begun at `at` or later.
    /// One of none is never complete.
    pub fn expect<'a>(&self, at: Duration, backends: impl Iterator<Item = &'a BackendThread> + Clone) {
        self.begin(at, backends.clone().map(|backend| backend.kind));
        // Looked at afterwards, so that none answers unseen in between.
        for backend in backends {
            if let Some(began) = backend.slot.lock().answered {
                self.answered(backend.kind, began);
            }
        }
    }

    fn begin(&self, at: Duration, backends: impl Iterator<Item = BackendKind>) {
        let mut state = self.lock();
        state.at = at;
        state.complete = false;
        state.pending.clear();
        state.pending.extend(backends);
    }

    /// Waits until the round is complete, but not past `until`.
    pub fn wait(&self, until: Duration) -> Woken {
        let mut state = self.lock();
        loop {
            if std::mem::take(&mut state.rung) {
                return Woken::Rung;
            }
            if state.complete {
                return Woken::Complete;
            }
            let left = until.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return Woken::Due;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wakes whoever waits, or is about to.
    pub fn ring(&self) {
        self.lock().rung = true;
        self.changed.notify_all();
    }

    fn answered(&self, backend: BackendKind, began: Duration) {
        let mut state = self.lock();
        if began < state.at {
            return;
        }
        let Some(index) = state.pending.iter().position(|pending| *pending == backend) else { return };
        state.pending.swap_remove(index);
        if state.pending.is_empty() {
            state.complete = true;
            drop(state);
            self.changed.notify_all();
        }
    }
}

impl BackendThread {
    /// Starts a thread that reads `backends`, one after the other, at each multiple of `interval` since boot:
    /// windows and backends share that grid, so that a window's readings are of one time.
    ///
    /// # Errors
    /// When the host has no room for a thread.
    pub fn start(
        backends: Vec<Backend>,
        interval: Duration,
        round: &Arc<Round>,
    ) -> std::io::Result<Vec<Self>> {
        let shared = Arc::new(Shared {
            turn: Mutex::default(),
            changed: Condvar::new(),
            deadline: (interval * 2).max(MIN_DEADLINE),
            round: Arc::clone(round),
        });
        let lane: Vec<Lane> = backends
            .into_iter()
            .map(|backend| Lane { kind: backend.kind(), backend, slot: Arc::default() })
            .collect();
        let seen = lane.iter().map(|lane| Self {
            kind: lane.kind,
            slot: Arc::clone(&lane.slot),
            thread: Arc::clone(&shared),
        });
        let seen: Vec<Self> = seen.collect();
        let name = match &lane[..] {
            [alone] => alone.kind.as_str(),
            _ => "kernel",
        };
        std::thread::Builder::new()
            .name(format!("device-{name}"))
            .spawn(move || run(lane, interval, &shared))?;
        Ok(seen)
    }

    /// Which backend.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// What is known at the time `now`.
    pub fn view(&self, now: Duration) -> View {
        let reading_since = self.thread.lock().reading_since;
        let overdue = reading_since.is_some_and(|since| now.saturating_sub(since) > self.thread.deadline);
        let mut state = self.slot.lock();
        let overdue = overdue && !state.ended;
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

    /// Whether a window that is about to be closed waits for its readings.
    pub fn is_awaited(&self, now: Duration) -> bool {
        let view = self.view(now);
        self.kind.is_of_windows() && (view.up && view.present || view.starting)
    }

    /// Waits until the backend answered to a reading begun at `since` or later, but not past `until`.
    #[cfg(test)]
    pub fn wait_since(&self, since: Duration, until: Duration) {
        self.thread.round.expect(since, std::iter::once(self));
        self.thread.round.wait(until);
    }

    /// Asks for a reading ahead of the schedule; one whose schedule is a bound is not asked.
    pub fn ask(&self) {
        if self.kind.is_of_windows() {
            self.thread.ask(|turn| turn.asked = true);
        }
    }

    /// Ends the thread after its reading, without waiting for it.
    pub fn stop(&self) {
        self.thread.ask(|turn| turn.stop = true);
    }
}

/// The next multiple of `interval` after `now`.
pub fn next_tick(now: Duration, interval: Duration) -> Duration {
    let interval = interval.as_nanos().max(1);
    let next = (now.as_nanos() / interval + 1) * interval;
    Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX))
}

struct Lane {
    kind: BackendKind,
    backend: Backend,
    slot: Arc<Slot>,
}

fn run(mut lane: Vec<Lane>, interval: Duration, shared: &Shared) {
    let mut asked = false;
    while !lane.is_empty() {
        let began = clock::monotonic();
        shared.lock().reading_since = Some(began);
        lane.retain_mut(|lane| {
            let goes_on = lane.read(began, asked);
            shared.round.answered(lane.kind, began);
            goes_on
        });
        shared.lock().reading_since = None;
        let pace = lane.iter().map(|lane| lane.backend.pace(interval)).min().unwrap_or(interval);
        match wait_for_turn(shared, next_tick(clock::monotonic(), pace)) {
            Due::Now => asked = false,
            Due::Asked => asked = true,
            Due::Never => return,
        }
    }
}

enum Due {
    Now,
    Asked,
    Never,
}

fn wait_for_turn(shared: &Shared, next: Duration) -> Due {
    let mut turn = shared.lock();
    loop {
        if turn.stop {
            return Due::Never;
        }
        if std::mem::take(&mut turn.asked) {
            return Due::Asked;
        }
        let now = clock::monotonic();
        if now >= next {
            return Due::Now;
        }
        turn = shared.changed.wait_timeout(turn, next - now).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Lane {
    /// Reads the backend and notes its answer; returns whether it can be read again.
    fn read(&mut self, began: Duration, asked: bool) -> bool {
        let since = clock::monotonic();
        // A panic in a backend is one more way to be gone. Its insides are not looked at again.
        let answer = catch_unwind(AssertUnwindSafe(|| self.backend.read(asked)));
        let mut state = self.slot.lock();
        let Ok(answer) = answer else {
            *state.errors.entry("panic").or_default() += 1;
            state.ended = true;
            return false;
        };
        state.answered = Some(began);
        state.duration = clock::monotonic().saturating_sub(since);
        state.note(self.kind, answer);
        true
    }
}

impl State {
    fn note(&mut self, kind: BackendKind, answer: Answer) {
        self.present = answer != Answer::Absent;
        if std::mem::take(&mut self.overdue_counted) {
            tracing::info!(backend = kind.as_str(), "the backend answers again");
        }
        match answer {
            Answer::Reading(reading) => {
                for reason in &reading.failures {
                    *self.errors.entry(reason).or_default() += 1;
                }
                if self.last_message.take().is_some() {
                    tracing::info!(backend = kind.as_str(), "the backend can be read again");
                }
                self.failed = false;
                self.reading = Some(Arc::new(reading));
            }
            Answer::Unchanged => self.failed = false,
            Answer::Absent => {
                self.failed = false;
                self.reading = None;
            }
            Answer::Failed(error) => {
                *self.errors.entry(error.reason).or_default() += 1;
                // Once per change: a host without permissions would fill its log.
                if self.last_message.as_deref() != Some(error.message.as_str()) {
                    tracing::warn!(backend = kind.as_str(), reason = error.reason, "{error}");
                    self.last_message = Some(error.message);
                }
                self.failed = true;
            }
        }
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
        (alone(Backend::Scripted(BackendKind::Nvml, answer), interval), sender)
    }

    fn alone(backend: Backend, interval: Duration) -> BackendThread {
        BackendThread::start(vec![backend], interval, &Arc::default()).unwrap().remove(0)
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
        wait_until(&thread, |_| thread.thread.lock().reading_since.is_some());
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
        wait_until(&thread, |_| thread.thread.lock().reading_since.is_some());
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

    /// A BMC is asked as often as its schedule says, however often windows are closed early.
    #[test]
    fn a_backend_whose_schedule_is_a_bound_is_not_asked_ahead_of_it() {
        let (sender, receiver) = mpsc::channel::<Answer>();
        let answer = Box::new(move || receiver.recv().unwrap());
        let backend = Backend::Scripted(BackendKind::Redfish, answer);
        let thread = alone(backend, HOUR);
        sender.send(Answer::Unchanged).unwrap();
        wait_until(&thread, |view| view.up && thread.thread.lock().reading_since.is_none());
        thread.ask();
        let turn = thread.thread.lock();
        assert!(!turn.asked && turn.reading_since.is_none(), "no reading is due");
    }

    /// Those that share a thread share its hangs, and nothing else.
    #[test]
    fn backends_of_one_thread_hang_together_and_fail_apart() {
        let (sender, receiver) = mpsc::channel::<Answer>();
        let second = Box::new(move || receiver.recv().unwrap());
        let first = Box::new(|| Answer::Reading(Reading::default()));
        let third = Box::new(|| Answer::Failed(ReadError::new("permission", "no")));
        let lane = vec![
            Backend::Scripted(BackendKind::Rapl, first),
            Backend::Scripted(BackendKind::Host, second),
            Backend::Scripted(BackendKind::Estimate, third),
        ];
        let round = Arc::<Round>::default();
        let threads = BackendThread::start(lane, HOUR, &round).unwrap();
        let ups = |now| threads.iter().map(|thread| thread.view(now).up).collect::<Vec<_>>();
        sender.send(Answer::Reading(Reading::default())).unwrap();
        wait_until(&threads[2], |view| view.errors.contains_key("permission"));
        assert_eq!(ups(clock::monotonic()), [true, true, false]);
        threads[0].ask();
        wait_until(&threads[0], |_| threads[0].thread.lock().reading_since.is_some());
        assert_eq!(ups(clock::monotonic() + 3 * HOUR), [false, false, false]);
        drop(sender);
        wait_until(&threads[1], |view| view.errors.contains_key("panic"));
        let now = clock::monotonic();
        let others = || [&threads[0], &threads[2]].into_iter();
        round.expect(now, others());
        threads[0].ask();
        assert_eq!(round.wait(now + HOUR), Woken::Complete, "the others are read on");
        round.expect(now, others());
        assert_eq!(round.wait(now), Woken::Complete, "they have answered to that already");
        assert_eq!(ups(clock::monotonic()), [true, false, false]);
    }

    #[test]
    fn a_round_is_complete_when_all_have_answered_to_it() {
        let round = Round::default();
        let at = clock::monotonic();
        round.begin(at, [BackendKind::Host, BackendKind::Nvml].into_iter());
        round.answered(BackendKind::Host, at);
        round.answered(BackendKind::Nvml, at - Duration::from_nanos(1));
        round.answered(BackendKind::Rapl, at);
        assert_eq!(round.wait(at), Woken::Due, "one answered to an older reading, one was not asked");
        round.ring();
        assert_eq!(round.wait(at + HOUR), Woken::Rung);
        round.answered(BackendKind::Nvml, at + HOUR);
        assert_eq!(round.wait(at + HOUR), Woken::Complete);
        round.begin(at, std::iter::empty());
        assert_eq!(round.wait(at), Woken::Due, "nobody is waited for");
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
