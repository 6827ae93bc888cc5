//! How far a GPU's energy of the last minute may be off, judged by what its sensor showed in that time.
//!
//! Pure. Invariant: what is not known is not stated. Of a sensor's gain there is a bound and no more; what the ends
//! of the time and the gaps between samples may hide is taken from the power that was seen, so that a constant load
//! has next to none of it. What the sensor cannot have seen at all (a load that repeats in step with its samples,
//! bursts that are shorter than they are apart) shows in no reading, and is outside the statement.

use std::collections::VecDeque;
use std::time::Duration;

/// The time that is stated of.
pub(crate) const HORIZON: Duration = Duration::from_secs(60);
/// Its parts are at least this long, however short windows are: they are few then, and so are the sums.
const MIN_PART: Duration = Duration::from_millis(900);

/// By how much of the true power a board's readings are off, at most, as long as it lives: ±5 %. NVML's header says so
/// of Fermi and Kepler (`nvmlDeviceGetPowerUsage`), and of newer boards nothing; measurements of more than 70 boards
/// of all generations found an error in proportion to power, of each board's own, within ±5 % ("Part-time Power
/// Measurements", arXiv 2312.02741).
const MAX_GAIN_ERROR: f64 = 0.05;
/// The same as a share of what is shown: a board that shows 95 W draws 100 W.
const GAIN_RATIO: f64 = MAX_GAIN_ERROR / (1.0 - MAX_GAIN_ERROR);

/// Longest time between two updates of a reading or of the counter, in seconds: 20 to 100 ms by generation (the same
/// paper). What is read is as old, at most.
const UPDATE_SECONDS: f64 = 0.1;
/// Time that a mean power is the mean of, in seconds (NVML's header).
const MEAN_SECONDS: f64 = 1.0;
/// What a power is told in: all of a time may be off by as much.
const STEP_WATTS: f64 = 1e-3;
/// Variance of the energy of the time that one reading stands for, in squares of what it changed by since the last,
/// times that time. Where power is another at each look, the squares of its changes are twice its variance, and a
/// trapezoid's two halves leave three quarters of that to each look; where it seldom changes, it is less (1/12).
const STEP_VARIANCE: f64 = 3.0 / 8.0;
/// Standard deviations to each side. Two and a half would hold 99 % of a normal distribution; few steps are none.
const DEVIATIONS: f64 = 3.0;

/// Half of an interval around a meter's energy that holds the true one, as shares of that energy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HalfWidth {
    /// What the sensor's gain is off by, at most: always in the same direction, so that no mean over time removes it.
    pub gain: f64,
    /// What the ends of the time and the gaps between samples hide: independent of that, and of other times.
    pub random: f64,
}

impl HalfWidth {
    /// Both: a bound and a deviation do not add up in quadrature. What is hidden has the gain too.
    pub fn ratio(self) -> f64 {
        self.gain + self.random * (1.0 + self.gain)
    }
}

/// How well a GPU's energy of the last minute is known, by source.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct EnergyUncertainty {
    /// By the GPU's counter.
    pub counter: Option<HalfWidth>,
    /// By integration of its power.
    pub integrated: Option<HalfWidth>,
}

/// How a sensor looks at power.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Attention {
    /// All the time.
    Full,
    /// For a part of each update, or nobody has published that it looks all the time. Its counter may be made of
    /// the same looks.
    Part,
}

/// One reading of power.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// What is integrated, in watts.
    pub(super) watts: f64,
    /// Whether that is the mean of the last second.
    pub(super) is_mean: bool,
    /// Power at the newest sample in watts, where it is told too.
    pub(super) instant_watts: Option<f64>,
}

/// The last minute of a GPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Horizon {
    parts: VecDeque<Part>,
    open: Part,
    /// What the meters said when the last part ended.
    since: Option<Meters>,
    last: Option<(Seen, Duration)>,
    unread: u64,
}

/// A GPU's two energies at one time, in microjoules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meters {
    /// When.
    pub(super) at: Duration,
    /// Its counter.
    pub(super) counter: Option<u64>,
    /// The integral.
    pub(super) integrated: u64,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    elapsed: Duration,
    counter: Option<u64>,
    integrated: u64,
    /// Times within it over which nothing was integrated.
    gaps: u32,
    low_watts: f64,
    high_watts: f64,
    /// Σ (change of power × time that the integral takes on trust)², in J².
    steps: f64,
    /// The same for a counter that is made of looks, whoever reads how often.
    looks: f64,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            elapsed: Duration::ZERO,
            counter: None,
            integrated: 0,
            gaps: 0,
            low_watts: f64::INFINITY,
            high_watts: 0.0,
            steps: 0.0,
            looks: 0.0,
        }
    }
}

impl Part {
    fn see(&mut self, seen: Seen) {
        for watts in [Some(seen.watts), seen.instant_watts].into_iter().flatten() {
            self.low_watts = self.low_watts.min(watts);
            self.high_watts = self.high_watts.max(watts);
        }
    }

    fn plus(mut self, other: &Self) -> Self {
        self.elapsed += other.elapsed;
        self.counter = self.counter.zip(other.counter).map(|(a, b)| a + b);
        self.integrated += other.integrated;
        self.gaps += other.gaps;
        self.low_watts = self.low_watts.min(other.low_watts);
        self.high_watts = self.high_watts.max(other.high_watts);
        self.steps += other.steps;
        self.looks += other.looks;
        self
    }
}

impl Horizon {
    /// Takes a reading that was integrated; `unread` is how many times were not, so far.
    pub(super) fn note(&mut self, seen: Seen, unread: u64, at: Duration) {
        let last = self.last.replace((seen, at));
        let gaps = unread.saturating_sub(std::mem::replace(&mut self.unread, unread));
        if last.is_some_and(|(last, _)| last.is_mean != seen.is_mean) {
            // Another sensor, as far as it matters here.
            self.forget();
            self.last = Some((seen, at));
        }
        self.open.see(seen);
        self.open.gaps += u32::try_from(gaps).unwrap_or(u32::MAX);
        let Some((last, last_at)) = last.filter(|_| gaps == 0) else { return };
        let seconds = at.saturating_sub(last_at).as_secs_f64();
        let window = if seen.is_mean { MEAN_SECONDS } else { UPDATE_SECONDS };
        let change = (seen.watts - last.watts).powi(2);
        // What lies between two readings, and what one update more or less between them shows twice or never.
        let unseen = (seconds - window).max(0.0) + UPDATE_SECONDS;
        self.open.steps += change * unseen.powi(2);
        // The counter looks at each update: its looks are more than the readings that tell how power changes.
        self.open.looks += change * UPDATE_SECONDS * seconds.max(UPDATE_SECONDS);
    }

    /// Ends a part of the minute, if it is long enough, with what the meters say.
    pub(super) fn close(&mut self, meters: Meters) {
        if let Some(since) = self.since {
            let elapsed = meters.at.saturating_sub(since.at);
            if elapsed < MIN_PART {
                return;
            }
            let counted = meters.counter.zip(since.counter).and_then(|(now, then)| now.checked_sub(then));
            let integrated = meters.integrated.saturating_sub(since.integrated);
            self.parts.push_back(Part { elapsed, counter: counted, integrated, ..self.open });
            let mut span: Duration = self.parts.iter().map(|part| part.elapsed).sum();
            // Readings are a little late now and then: to the nearest part.
            while let Some(oldest) = self.parts.front().filter(|oldest| span > HORIZON + oldest.elapsed / 2) {
                span -= oldest.elapsed;
                self.parts.pop_front();
            }
        }
        self.since = Some(meters);
        self.open = Part::default();
        if let Some((seen, _)) = self.last {
            // The reading at its beginning is one of the part's too.
            self.open.see(seen);
        }
    }

    /// The GPU was lost: what it drew since is of another time.
    pub(super) fn forget(&mut self) {
        *self = Self { unread: self.unread, ..Self::default() };
    }

    /// How well the energy of the minute is known. A source that has told none in it has no uncertainty.
    pub(super) fn state(&self, attention: Attention) -> EnergyUncertainty {
        let Some((Seen { is_mean, .. }, _)) = self.last else { return EnergyUncertainty::default() };
        let mut parts = self.parts.iter();
        let Some(first) = parts.next() else { return EnergyUncertainty::default() };
        let minute = parts.fold(*first, Part::plus);
        let of_integral = integral_joules(&minute, is_mean);
        let of_counter = match (attention, is_mean) {
            (Attention::Full, _) => Some(counter_edge_joules(&minute)),
            (Attention::Part, false) => Some(counter_edge_joules(&minute).hypot(deviation(minute.looks))),
            // Means miss nothing: the counter is as far from the truth as from them, and they from it. Over a gap
            // of theirs that cannot be told.
            (Attention::Part, true) => {
                let apart = minute.counter.map(|counter| joules(counter.abs_diff(minute.integrated)));
                apart.filter(|_| minute.gaps == 0).map(|apart| apart + of_integral)
            }
        };
        let half_width = |microjoules: u64, random: f64| {
            let random = random / joules(microjoules);
            (microjoules > 0).then_some(HalfWidth { gain: GAIN_RATIO, random })
        };
        EnergyUncertainty {
            counter: minute.counter.zip(of_counter).and_then(|(counter, off)| half_width(counter, off)),
            integrated: half_width(minute.integrated, of_integral),
        }
    }
}

/// What the integral of a minute may be off by. At its ends, and at those of gaps, it is late by half of what a
/// reading is the mean of, and by the reading's age: what power was before counts for what it was then.
fn integral_joules(minute: &Part, is_mean: bool) -> f64 {
    let window = if is_mean { MEAN_SECONDS } else { UPDATE_SECONDS };
    let late_seconds = window / 2.0 + UPDATE_SECONDS;
    let range_watts = minute.high_watts - minute.low_watts;
    let edges = late_seconds * range_watts * (1.0 + f64::from(minute.gaps)).sqrt();
    edges.hypot(deviation(minute.steps)) + STEP_WATTS * minute.elapsed.as_secs_f64()
}

/// What a counter lacks that was last updated a while before it was read, less what it lacked at the first reading.
fn counter_edge_joules(minute: &Part) -> f64 {
    UPDATE_SECONDS * minute.high_watts
}

/// From squares of changes to joules.
fn deviation(squares: f64) -> f64 {
    DEVIATIONS * (STEP_VARIANCE * squares).sqrt()
}

fn joules(microjoules: u64) -> f64 {
    microjoules as f64 / 1e6
}

#[cfg(test)]
mod tests;
