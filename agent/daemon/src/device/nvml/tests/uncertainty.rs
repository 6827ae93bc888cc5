//! Whether the uncertainty that is stated of a GPU's energy holds the truth: random loads on sensors as captures show
//! them, through the library, in a time of the test's own.

use std::cell::Cell;
use std::collections::VecDeque;

use nvidia_ml::machine::config::Sampling;

use super::accuracy::shares;
use super::*;
use crate::device::uncertainty::{HORIZON, HalfWidth};

const GPUS: u64 = 16;
/// Libraries, each with boards of its own, and loads of each board.
const LIBRARIES: u64 = 4;
const LOADS: u64 = 16;
const WINDOW: Duration = Duration::from_secs(1);
const GPU_INTERVAL: Duration = Duration::from_millis(100);
/// How late a thread may be that wakes up to read, in seconds.
const LATE_SECONDS: f64 = 0.005;

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn now() -> Duration {
    NOW.get()
}

/// A node whose time is the test's.
struct Node {
    backend: NvmlBackend,
    client: Client,
    /// What each full reading of the last minute told: when, and (counter, integrated) of each GPU in microjoules.
    told: VecDeque<(Duration, Vec<[u64; 2]>)>,
    newest: Reading,
    _folder: tempfile::TempDir,
}

impl Node {
    fn new(gpus: Vec<GpuConfig>) -> Self {
        NOW.set(Duration::ZERO);
        let (installed, folder) = install(&Config { gpus, clock: ClockKind::Manual, ..Config::default() });
        let metering = Metering { interval: WINDOW, gpu_interval: GPU_INTERVAL };
        let mut backend = NvmlBackend::new(&installed.library, true, Gpus::All, metering);
        backend.clock = now;
        let newest = read(&mut backend);
        let client = Client::connect(&installed.socket).unwrap();
        Self { backend, client, told: VecDeque::new(), newest, _folder: folder }
    }

    fn go_on(&mut self, until: Duration) {
        self.client.advance(until.saturating_sub(now())).unwrap();
        NOW.set(until.max(now()));
    }

    /// Reads as the agent's thread does, at its pace and a little late, until a time is over.
    fn read_until(&mut self, until: Duration, phase: Duration, share: &mut impl FnMut() -> f64) {
        while now() < until {
            let pace = self.backend.pace(GPU_INTERVAL);
            let ticks = (now() - phase).as_nanos() / pace.as_nanos() + 1;
            let tick = phase + pace * u32::try_from(ticks).unwrap();
            self.go_on(tick + Duration::from_secs_f64(LATE_SECONDS * share()));
            if let Answer::Reading(reading) = self.backend.read(false) {
                self.newest = reading;
                let energy = self.newest.gpus.iter().map(|gpu| self.microjoules(&gpu.uuid)).collect();
                self.told.push_back((now(), energy));
                while self.told.len() > 2 && now() - self.told[1].0 >= HORIZON + WINDOW {
                    self.told.pop_front();
                }
            }
        }
    }

    fn microjoules(&self, uuid: &str) -> [u64; 2] {
        let raw = |source| energy(&self.newest, uuid, source).map_or(0, |e| e.raw * e.microjoules_per_count);
        [raw(Source::Counter), raw(Source::Integrated)]
    }

    /// What each GPU says of its last minute by each source that it has, and the truth.
    fn judge(&mut self) -> Vec<[Option<Case>; 2]> {
        let (to, ends) = self.told.back().unwrap().clone();
        let minute = |at: &Duration| (to - *at).abs_diff(HORIZON);
        let (from, begins) = self.told.iter().min_by_key(|(at, _)| minute(at)).unwrap().clone();
        let mut truth = |at: Duration| -> Vec<u64> {
            let truths = self.client.truth(Some(u64::try_from(at.as_nanos()).unwrap())).unwrap();
            truths.iter().map(|truth| truth.energy_microjoules).collect()
        };
        let (before, after) = (truth(from), truth(to));
        let case = |gpu: usize, source: usize, stated: Option<HalfWidth>| {
            let metered = (ends[gpu][source] - begins[gpu][source]) as f64;
            let drawn = (after[gpu] - before[gpu]) as f64;
            stated.map(|stated| Case { off: (metered - drawn).abs() / metered, stated })
        };
        let stated = self.newest.gpus.iter().map(|gpu| gpu.energy_uncertainty);
        let cases = stated.enumerate().map(|(gpu, s)| [case(gpu, 0, s.counter), case(gpu, 1, s.integrated)]);
        cases.collect()
    }
}

/// How far a GPU's energy of a minute was off, and what was stated.
struct Case {
    off: f64,
    stated: HalfWidth,
}

/// A load that a board can draw.
fn load(gpu: &GpuConfig, seed: u64, share: &mut impl FnMut() -> f64) -> Waveform {
    let range = gpu.full_watts - gpu.idle_watts;
    let (a, b) = (gpu.idle_watts + range * share(), gpu.idle_watts + range * share());
    let (low_watts, high_watts) = (a.min(b), a.max(b));
    // Evenly by magnitude.
    let mut seconds = |from: f64, to: f64| from * (to / from).powf(share());
    match seed % 7 {
        0 => {
            let period_seconds = seconds(0.02, 60.0);
            Waveform::Square { low_watts, high_watts, period_seconds, duty: seconds(0.05, 0.95) }
        }
        1 => Waveform::Sine { low_watts, high_watts, period_seconds: seconds(0.02, 60.0) },
        2 => Waveform::Random { low_watts, high_watts, step_seconds: seconds(0.02, 10.0), seed },
        3 => {
            let mut at = 0.0;
            let mut points = vec![(0.0, a)];
            for place in 1..8 {
                at += seconds(0.1, 10.0);
                points.push((at, if place % 2 == 0 { low_watts } else { high_watts }));
            }
            Waveform::Trace { points, repeat: true }
        }
        4 => {
            // Bursts above rest.
            let (burst, rest) = (seconds(0.02, 2.0), seconds(0.2, 20.0));
            let (period_seconds, duty) = (burst + rest, burst / (burst + rest));
            Waveform::Square { low_watts: gpu.idle_watts, high_watts, period_seconds, duty }
        }
        5 => {
            let (begins, lasts) = (seconds(0.5, 60.0), seconds(0.5, 60.0));
            let rest = gpu.idle_watts;
            Waveform::Steps { steps: vec![(0.0, rest), (begins, high_watts), (begins + lasts, rest)] }
        }
        _ => Waveform::Constant { watts: a },
    }
}

/// Random loads of 30 to 90 s, one after the other, on boards of a kind.
fn cases(board: &GpuConfig, gain: impl Fn(f64) -> f64) -> Vec<[Option<Case>; 2]> {
    let mut cases = Vec::new();
    for library in 0..LIBRARIES {
        let mut share = shares(library);
        let sampling = |gain| Sampling { gain, ..board.sampling.clone() };
        let boards = (0..GPUS).map(|_| GpuConfig { sampling: sampling(gain(share())), ..board.clone() });
        let mut node = Node::new(boards.collect());
        for round in 0..LOADS {
            for slot in 0..GPUS {
                let waveform = load(board, (library * LOADS + round) * GPUS + slot, &mut share);
                let gpu = GpuRef::Slot(usize::try_from(slot).unwrap());
                node.client.apply(&Command::SetWaveform { gpu, waveform }).unwrap();
                // Not all at one place of the sensor's period.
                node.go_on(now() + Duration::from_secs_f64(0.01 * share()));
            }
            let lasts = Duration::from_secs_f64(30.0 + 60.0 * share());
            let phase = GPU_INTERVAL.mul_f64(share());
            node.read_until(now() + lasts, phase, &mut share);
            cases.extend(node.judge());
        }
    }
    cases
}

/// Boards, with the most that the median of what is stated beside the gain may be, by counter and by integration.
fn boards() -> Vec<(&'static str, GpuConfig, [Option<f64>; 2])> {
    let sampled = |preset: Preset| {
        let board = preset.gpu();
        let sampling =
            Sampling { energy_sample_ms: board.sampling.power_sample_ms, ..board.sampling.clone() };
        GpuConfig { sampling, ..board }
    };
    let uncounted = GpuConfig { energy_counter: false, ..Preset::H100.gpu() };
    vec![
        ("H100", Preset::H100.gpu(), [Some(0.02), Some(0.015)]),
        ("H100, its counter made of samples", sampled(Preset::H100), [Some(0.02), Some(0.015)]),
        ("H100 without a counter", uncounted, [None, Some(0.015)]),
        ("A100", Preset::A100.gpu(), [Some(0.01), Some(0.01)]),
        ("A100, its counter made of samples", sampled(Preset::A100), [Some(0.01), Some(0.01)]),
        ("L40S", Preset::L40s.gpu(), [Some(0.003), Some(0.01)]),
        ("T4", Preset::T4.gpu(), [Some(0.003), Some(0.003)]),
    ]
}

const SOURCES: [Source; 2] = [Source::Counter, Source::Integrated];

/// How often what was stated held, and the median and 90th percentile of it; says so, with the median of the error's share of it.
fn held(name: &str, of: &[Option<Case>], width: impl Fn(HalfWidth) -> f64) -> (f64, [f64; 2]) {
    let cases: Vec<(f64, f64)> = of.iter().flatten().map(|case| (case.off, width(case.stated))).collect();
    assert!(cases.len() >= 1_000, "{name}: {}", cases.len());
    let share = cases.iter().filter(|(off, stated)| off <= stated).count() as f64 / cases.len() as f64;
    let percentile = |percent: usize, of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = cases.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() * percent / 100]
    };
    let stated = [50, 90].map(|percent| percentile(percent, &|(_, stated)| *stated));
    let of_it = percentile(50, &|(off, stated)| off / stated);
    let ([median, ninth], share_percent) = (stated.map(|share| share * 100.0), share * 100.0);
    println!(
        "{name}: {share_percent:.1} % of {} held; stated {median:.2} % ({ninth:.2} %), of which {of_it:.2} was off",
        cases.len()
    );
    (share, stated)
}

fn by_source(cases: Vec<[Option<Case>; 2]>) -> [Vec<Option<Case>>; 2] {
    let (counters, integrals) = cases.into_iter().map(|[counter, integral]| (counter, integral)).unzip();
    [counters, integrals]
}

/// A gain of a board: a quarter of them at each bound.
fn gain(share: f64) -> f64 {
    (0.9 + 0.2 * share).clamp(0.95, 1.05)
}

#[test]
fn what_is_stated_holds_the_truth_in_99_of_100_minutes() {
    for (name, board, sources) in boards() {
        let cases = by_source(cases(&board, gain));
        for ((source, cases), _) in SOURCES.iter().zip(&cases).zip(sources).filter(|(_, has)| has.is_some()) {
            let (share, _) = held(&format!("{name}, {}", source.as_str()), cases, HalfWidth::ratio);
            assert!(share >= 0.99, "{name}, {source:?}: {share}");
        }
    }
}

/// The gain's part is wide enough to hide that the rest says nothing.
#[test]
fn of_a_board_without_a_gain_the_rest_alone_does_and_is_narrow() {
    for (name, board, sources) in boards() {
        let cases = by_source(cases(&board, |_| 1.0));
        for ((source, cases), most) in SOURCES.iter().zip(&cases).zip(sources) {
            let Some(most) = most else {
                assert!(cases.iter().all(Option::is_none), "{name} has no {source:?}");
                continue;
            };
            let (share, [median, _]) = held(&format!("{name}, {}", source.as_str()), cases, |s| s.random);
            assert!(share >= 0.99, "{name}, {source:?}: {share}");
            assert!(median <= most, "{name}, {source:?}: {median}");
        }
    }
}

#[test]
fn nothing_is_stated_of_a_gpu_whose_power_cannot_be_read_or_that_was_lost() {
    let mut node = Node::new(vec![drawing(300.0)]);
    let known = |node: &Node| {
        let stated = gpu(&node.newest, FIRST).energy_uncertainty;
        (stated.counter.is_some(), stated.integrated.is_some())
    };
    let (mut share, second) = (shares(0), Duration::from_secs(1));
    assert_eq!(known(&node), (false, false), "one reading is no energy");
    node.read_until(5 * second, Duration::ZERO, &mut share);
    assert_eq!(known(&node), (true, true));
    let power = |node: &mut Node, error| {
        for function in ["nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"] {
            node.client.apply(&Command::Fail { function: function.to_owned(), error }).unwrap();
        }
    };
    power(&mut node, Some(Code::NoPermission));
    node.read_until(7 * second, Duration::ZERO, &mut share);
    assert_eq!(known(&node), (false, false));
    power(&mut node, None);
    node.read_until(9 * second, Duration::ZERO, &mut share);
    assert_eq!(known(&node), (false, true), "the counter's time has a gap of the means that are its measure");
    node.read_until(75 * second, Duration::ZERO, &mut share);
    assert_eq!(known(&node), (true, true));
    let lose = Command::Lose { gpu: GpuRef::Slot(0), mode: LossMode::GpuIsLost, functions: None };
    node.client.apply(&lose).unwrap();
    node.read_until(77 * second, Duration::ZERO, &mut share);
    assert_eq!(known(&node), (false, false));
    node.client.apply(&Command::Restore { gpu: GpuRef::Slot(0), restart_counters: true }).unwrap();
    node.read_until(85 * second, Duration::ZERO, &mut share);
    assert_eq!(known(&node), (true, true), "since it is back");
}
