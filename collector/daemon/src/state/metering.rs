//! How a node's cumulative counters become its exact totals and its ring.
//!
//! Invariants: a counter that is seen for the first time adds nothing (what it counted before is not
//! known to belong here), unless it began to count after its node's last frame; and the joules of a GPU
//! that an earlier node meters are taken out of what the scope of GPUs counts, source by source.

use std::collections::BTreeMap;

use wattmill_protocol::Source;
use wattmill_protocol::catalogue as metrics;

use super::counter::{Cumulative, Step};
use super::counts::{Counts, Reason};
use super::frame::{Sample, Value};
use super::latest::MAX_GPUS;
use super::nodes::{BySource, EnergyTotal, FlopsTotal, GPU_SCOPE, Node};

/// Most scopes and most precisions that are kept of a node; there are four and five.
const MAX_KINDS: usize = 16;

/// The circumstances of a frame's samples.
pub(crate) struct Reading {
    /// When they were taken.
    pub(crate) time_unix_nanos: u64,
    /// Time of the node's frame before; 0 where this is the first.
    pub(crate) before_unix_nanos: u64,
    /// Whether the node's clock or spool went back since.
    pub(crate) stepped_back: bool,
    /// The state's sequence.
    pub(crate) sequence: u64,
}

impl Reading {
    fn cumulative<T>(&self, sample: &Sample, value: T) -> Cumulative<T> {
        let start_unix_nanos = sample.start_unix_nanos;
        Cumulative { start_unix_nanos, time_unix_nanos: self.time_unix_nanos, value }
    }

    /// What the first sample of a series adds, and since when.
    fn first<T>(&self, sample: &Cumulative<T>, zero: T) -> Step<T>
    where
        T: Copy,
    {
        let began_since = self.before_unix_nanos > 0 && sample.start_unix_nanos >= self.before_unix_nanos;
        let by = if began_since && !self.stepped_back { sample.value } else { zero };
        Step::Grew { by, since_unix_nanos: sample.start_unix_nanos.max(self.before_unix_nanos) }
    }

    /// What `step` adds, and since when; its anomaly is counted.
    fn growth<T>(&self, step: Step<T>, counts: &mut Counts) -> Option<(T, u64)> {
        match step {
            Step::Grew { by, since_unix_nanos } => return Some((by, since_unix_nanos)),
            Step::Backwards => counts.reject(Reason::Backwards),
            Step::Late => counts.reject(Reason::Late),
        }
        None
    }
}

impl Node {
    /// Advances all counters. GPUs come first: what the scope of GPUs counts depends on them.
    pub(super) fn meter(&mut self, reading: &Reading, samples: &[Sample], counts: &mut Counts) {
        let mut foreign: BTreeMap<&str, BySource<u64>> = BTreeMap::new();
        for sample in samples.iter().filter(|s| is_gpu_energy(s)) {
            let Some((source, grown)) = self.meter_gpu(reading, sample, samples, counts) else { continue };
            if self.verdict.foreign_gpus.contains(sample.label(0)) {
                foreign.entry(sample.label(0)).or_default()[source as usize] = Some(grown);
            }
        }
        let mut excluded = [0; Source::ALL.len()];
        for by_source in foreign.values() {
            // A node meters a GPU by the best source that it has: the first one.
            if let Some((source, grown)) = by_source.iter().enumerate().find_map(|(s, g)| Some((s, (*g)?))) {
                let sum: &mut u64 = &mut excluded[source];
                *sum = sum.saturating_add(grown);
            }
        }
        for sample in samples {
            if sample.is(&metrics::NODE_ENERGY_JOULES) {
                self.meter_scope(reading, sample, &mut excluded, counts);
            } else if sample.is(&metrics::USEFUL_FLOPS) {
                self.meter_flops(reading, sample, counts);
            }
        }
    }

    /// Advances a GPU's counter; gives its source and the microjoules that it grew by.
    fn meter_gpu(
        &mut self,
        reading: &Reading,
        sample: &Sample,
        samples: &[Sample],
        counts: &mut Counts,
    ) -> Option<(Source, u64)> {
        let (source, microjoules) = energy_of(sample)?;
        let uuid = sample.label(0);
        if !self.gpu_energy.contains_key(uuid) {
            if self.gpu_energy.len() >= MAX_GPUS {
                let is_there = |uuid: &str| samples.iter().any(|s| is_gpu_energy(s) && s.label(0) == uuid);
                self.gpu_energy.retain(|uuid, _| is_there(uuid));
            }
            if self.gpu_energy.len() >= MAX_GPUS {
                counts.reject(Reason::TooManySeries);
                return None;
            }
            self.gpu_energy.insert(uuid.into(), BySource::default());
        }
        let new = reading.cumulative(sample, microjoules);
        let place = &mut self.gpu_energy.get_mut(uuid)?[source as usize];
        let step = match place {
            Some(newest) => newest.advance(new, reading.stepped_back),
            None => reading.first(place.insert(new), 0),
        };
        reading.growth(step, counts).map(|(by, _)| (source, by))
    }

    /// Advances the counter of a scope, adds to its totals and to the ring.
    fn meter_scope(
        &mut self,
        reading: &Reading,
        sample: &Sample,
        excluded: &mut [u64; Source::ALL.len()],
        counts: &mut Counts,
    ) -> Option<()> {
        let (source, microjoules) = energy_of(sample)?;
        let scope = sample.label(0);
        if !self.energy.contains_key(scope) {
            if self.energy.len() >= MAX_KINDS {
                counts.reject(Reason::TooManySeries);
                return None;
            }
            self.energy.insert(scope.into(), BySource::default());
        }
        let new = reading.cumulative(sample, microjoules);
        let place = &mut self.energy.get_mut(scope)?[source as usize];
        let (total, step) = match place {
            Some(total) => {
                let step = total.newest.advance(new, reading.stepped_back);
                (total, step)
            }
            None => {
                let total = EnergyTotal { newest: new, total_microjoules: 0, counted_microjoules: 0 };
                (place.insert(total), reading.first(&new, 0))
            }
        };
        let (grown, since) = reading.growth(step, counts)?;
        let counted = if scope == GPU_SCOPE {
            let foreign = grown.min(excluded[source as usize]);
            excluded[source as usize] -= foreign;
            grown - foreign
        } else if self.verdict.host_excluded {
            0
        } else {
            grown
        };
        // Saturating: honest meters cannot reach the end, and hostile ones must not wrap a total.
        total.total_microjoules = total.total_microjoules.saturating_add(grown);
        total.counted_microjoules = total.counted_microjoules.saturating_add(counted);
        self.ring.add_joules(since, reading.time_unix_nanos, counted as f64 / 1e6, reading.sequence);
        Some(())
    }

    /// Advances the counter of useful FLOPs of a precision, adds to its total and to the ring.
    fn meter_flops(&mut self, reading: &Reading, sample: &Sample, counts: &mut Counts) -> Option<()> {
        let precision = sample.label(0);
        if !self.flops.contains_key(precision) && self.flops.len() >= MAX_KINDS {
            counts.reject(Reason::TooManySeries);
            return None;
        }
        let new = reading.cumulative(sample, sample.number());
        let step = match self.flops.get_mut(precision) {
            Some(flops) => flops.newest.advance(new, reading.stepped_back),
            None => {
                self.flops.insert(precision.into(), FlopsTotal { newest: new, total: 0.0 });
                reading.first(&new, 0.0)
            }
        };
        let (grown, since) = reading.growth(step, counts)?;
        if grown > 0.0 {
            self.flops.get_mut(precision)?.total += grown;
            if self.precision.as_deref() != Some(precision) {
                self.precision = Some(precision.into());
            }
            self.ring.add_flops(since, reading.time_unix_nanos, grown, reading.sequence);
        }
        Some(())
    }
}

/// The source and the microjoules of an energy counter's sample: the source is its second label.
fn energy_of(sample: &Sample) -> Option<(Source, u64)> {
    match sample.value {
        Value::Microjoules(amount) => Some((Source::from_label(sample.label(1))?, amount)),
        Value::Number(_) => None,
    }
}

/// Whether a sample is of one GPU's energy.
fn is_gpu_energy(sample: &Sample) -> bool {
    sample.is(&metrics::GPU_ENERGY_JOULES)
}

#[cfg(test)]
mod tests {
    use super::super::frame::NodeFrame;
    use super::super::nodes::Verdict;
    use super::super::ring::slot_of;
    use super::super::testing::{at, energy, frame, node, node_energy, useful_flops};
    use super::*;

    fn apply(node: &mut Node, frame: NodeFrame) -> Counts {
        let mut counts = Counts::default();
        node.apply(frame, None, Verdict::default(), 1, &mut counts);
        counts
    }

    fn cpu(node: &Node) -> u64 {
        node.energy_of("cpu").get(Source::Counter)
    }

    #[test]
    fn the_first_sight_is_a_baseline() {
        let mut n = Node::new(node(1));
        apply(&mut n, frame(1, 0.0, [node_energy("cpu", 5_000_000), useful_flops(1e9)]));
        assert_eq!((cpu(&n), n.useful_flops()), (0, 0.0));
        apply(&mut n, frame(1, 1.0, [node_energy("cpu", 5_000_007), useful_flops(3e9)]));
        assert_eq!((cpu(&n), n.useful_flops()), (7, 2e9));
        assert_eq!(n.precision.as_deref(), Some("f32"));
        apply(&mut n, frame(1, 2.0, [node_energy("cpu", 5_000_007), node_energy("dram", 9)]));
        assert_eq!(n.energy_of("dram").total(), 0, "it counted before this node's last frame");
        let began = energy(&metrics::NODE_ENERGY_JOULES, &["gpu", "counter"], 30, 2.5);
        apply(&mut n, frame(1, 3.0, [began]));
        assert_eq!(n.energy_of("gpu").total(), 30, "it began after this node's last frame");
    }

    #[test]
    fn a_later_start_counts_from_zero() {
        let mut n = Node::new(node(1));
        let sample = |amount, start| energy(&metrics::NODE_ENERGY_JOULES, &["cpu", "counter"], amount, start);
        apply(&mut n, frame(1, 0.0, [sample(100, -50.0)]));
        apply(&mut n, frame(1, 10.0, [sample(150, -50.0)]));
        apply(&mut n, frame(1, 20.0, [sample(30, 15.0)]));
        assert_eq!(cpu(&n), 80);
        let counts = apply(&mut n, frame(1, 30.0, [sample(20, 15.0)]));
        assert_eq!((cpu(&n), counts.rejected(Reason::Backwards)), (80, 1));
    }

    #[test]
    fn lost_and_repeated_frames_change_nothing() {
        let mut n = Node::new(node(1));
        apply(&mut n, frame(1, 0.0, [node_energy("cpu", 0)]));
        apply(&mut n, frame(1, 30.0, [node_energy("cpu", 30)]));
        let before = n.clone();
        let counts = apply(&mut n, frame(1, 15.0, [node_energy("cpu", 15)]));
        assert_eq!(counts.rejected(Reason::Late), 1);
        let counts = apply(&mut n, frame(1, 30.0, [node_energy("cpu", 30)]));
        assert_eq!(counts.rejected(Reason::Late), 1);
        assert_eq!(n, before);
    }

    #[test]
    fn a_clock_that_steps_back_goes_on_counting() {
        let mut n = Node::new(node(1));
        let mut counts = Counts::default();
        for (position, seconds, amount) in [(7, 1000.0, 10), (8, 100.0, 15), (9, 101.0, 20)] {
            let frame = frame(1, seconds, [node_energy("cpu", amount)]);
            n.apply(frame, Some(position), Verdict::default(), 1, &mut counts);
        }
        assert_eq!((cpu(&n), n.position, n.newest_unix_nanos), (10, Some(9), at(101.0)));
        assert_eq!(counts.rejected(Reason::SteppedBack), 1);
        // What was said before the clock went back, said again, is not news.
        n.apply(frame(1, 1000.0, [node_energy("cpu", 10)]), Some(7), Verdict::default(), 1, &mut counts);
        assert_eq!((cpu(&n), n.position), (10, Some(9)));
        // A spool that begins anew is followed.
        n.apply(frame(1, 1001.0, [node_energy("cpu", 21)]), Some(1), Verdict::default(), 1, &mut counts);
        assert_eq!((cpu(&n), n.position), (11, Some(1)));
    }

    #[test]
    fn what_others_count_is_metered_but_not_counted() {
        let mut n = Node::new(node(1));
        let foreign_gpus = [Box::from("gpu-a")].into();
        let verdict = Verdict { host_excluded: true, foreign_gpus };
        let mut counts = Counts::default();
        for second in 0..=10 {
            let gpu = |uuid, source, watts: u64| {
                let labels = [uuid, source];
                energy(&metrics::GPU_ENERGY_JOULES, &labels, second * watts * 1_000_000, -100.0)
            };
            let samples = [
                gpu("gpu-a", "counter", 100),
                gpu("gpu-a", "integrated", 99),
                gpu("gpu-b", "counter", 30),
                node_energy("cpu", second * 50_000_000),
                node_energy("gpu", second * 130_000_000),
            ];
            n.apply(frame(1, second as f64, samples), None, verdict.clone(), 1, &mut counts);
        }
        assert_eq!(n.energy_of("gpu").total(), 1_300_000_000);
        assert_eq!(n.counted_energy_of("gpu").total(), 300_000_000);
        assert_eq!(n.energy_of("cpu").total(), 500_000_000);
        assert_eq!(n.counted_energy_of("cpu").total(), 0);
        assert_eq!(n.ring.sum(slot_of(at(0.0)), slot_of(at(10.0))).0, 300.0);
        assert_eq!(counts.rejected(Reason::HostOverlap), 1, "once, not for each frame");
        assert_eq!(counts.rejected(Reason::GpuOverlap), 1);
    }

    #[test]
    fn counters_of_strangers_do_not_overflow() {
        let mut n = Node::new(node(1));
        let verdict = Verdict { host_excluded: false, foreign_gpus: ["a".into(), "b".into()].into() };
        let mut counts = Counts::default();
        for (second, amount) in [(0.0, 0), (1.0, u64::MAX)] {
            let gpu = |uuid| energy(&metrics::GPU_ENERGY_JOULES, &[uuid, "counter"], amount, -100.0);
            let samples = [gpu("a"), gpu("b"), node_energy("gpu", amount)];
            n.apply(frame(1, second, samples), None, verdict.clone(), 1, &mut counts);
        }
        assert_eq!(n.counted_energy_of("gpu").total(), 0, "others meter both");
    }

    #[test]
    fn strangers_cannot_make_a_node_grow_without_bound() {
        let mut n = Node::new(node(1));
        let mut counts = Counts::default();
        for second in 0..200 {
            let label = second.to_string();
            let gpu = energy(&metrics::GPU_ENERGY_JOULES, &[&label, "counter"], 1, 0.0);
            let samples = [gpu, node_energy(&label, 1)];
            n.apply(frame(1, f64::from(second), samples), None, Verdict::default(), 1, &mut counts);
        }
        assert!(n.gpu_energy.len() <= MAX_GPUS && n.energy.len() <= MAX_KINDS);
        assert!(counts.rejected(Reason::TooManySeries) > 100);
    }
}
