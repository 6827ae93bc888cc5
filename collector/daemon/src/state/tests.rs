//! The state as a whole: hosts that are shared, figures, crashes.

use std::collections::HashMap;

use proptest::prelude::*;
use wattmill_protocol::Source;
use wattmill_protocol::catalogue as metrics;
use wattmill_protocol::exposition::text;

use super::rollup::Storage;
use super::testing::{T0, at, counter, energy, frame, gauge, node, node_energy, useful_flops};
use super::*;

const PEAK: f64 = 1e12;

/// A second of a node's life: `watts` of CPU, half of its peak put to use.
fn second(number: u32, second: u32, watts: u64) -> NodeFrame {
    let seconds = f64::from(second);
    let samples = [
        node_energy("cpu", u64::from(second) * watts * 1_000_000),
        gauge(&metrics::NODE_POWER_WATTS, &["cpu", "counter"], watts as f64),
        gauge(&metrics::DEVICE_PEAK_FLOPS, &["cpu", "f32"], PEAK),
        gauge(&metrics::HOST_CPU_UTILIZATION, &[], 0.5),
        gauge(&metrics::HOST_FILESYSTEM_USED, &["/"], 25.0),
        gauge(&metrics::HOST_FILESYSTEM_SIZE, &["/"], 100.0),
        useful_flops(seconds * PEAK / 2.0),
    ];
    frame(number, seconds, samples)
}

fn on_host(machine_id: &str, host_fraction: f64, frame: NodeFrame) -> NodeFrame {
    NodeFrame { machine_id: machine_id.into(), host_fraction, ..frame }
}

fn close(figure: Option<f64>, expected: f64) -> bool {
    figure.is_some_and(|figure| (figure - expected).abs() <= 1e-6 * expected.abs())
}

#[test]
fn storage_nodes_are_those_that_declare_a_bandwidth() {
    let mut state = State::default();
    for s in 0..=100 {
        let moved = f64::from(s) * 500.0;
        let storage = [
            counter(&metrics::HOST_DISK_READ, &["sda"], moved),
            counter(&metrics::HOST_DISK_WRITTEN, &["sda"], moved),
            gauge(&metrics::HOST_STORAGE_BANDWIDTH, &["read"], 2000.0),
            gauge(&metrics::HOST_NETWORK_BANDWIDTH, &[], 1e6),
        ];
        let mut first = on_host("storage", 0.5, second(1, s, 100));
        first.samples.extend(storage.clone());
        let mut same_host = on_host("storage", 0.5, second(2, s, 100));
        same_host.samples.extend(storage);
        let mut other = second(3, s, 50);
        other.samples.push(counter(&metrics::HOST_DISK_READ, &["sda"], moved * 1e6));
        if s > 50 {
            other.samples.push(gauge(&metrics::HOST_NETWORK_BANDWIDTH, &[], 1e6));
        }
        for frame in [first, same_host, other] {
            state.apply(frame, None, at(f64::from(s)));
        }
        if s == 50 {
            let storage = state.rollup(at(50.0)).storage;
            assert_eq!(storage.network_bytes_per_second, None, "a host does not say");
        }
    }
    let storage = state.rollup(at(100.0)).storage;
    assert!(close(storage.bandwidth_ratio[0], 0.25), "the host counts once: {storage:?}");
    assert_eq!(storage.bandwidth_ratio[1], None, "nobody declared what can be written");
    assert_eq!(storage.read_bytes_per_second, Some(2000.0));
    assert_eq!(storage.network_bytes_per_second, Some(2e6));
}

fn history(state: &State, node: Option<&NodeId>, from: i64, to: i64) -> Vec<HistoryPoint> {
    let (mut history, nodes) = state.begin_history(node, from, to);
    nodes.iter().for_each(|node| state.add_history(&mut history, node));
    history.points()
}

#[test]
fn figures_of_a_healthy_cluster() {
    let mut state = State::default();
    for s in 0..=100 {
        state.apply(second(1, s, 100), None, at(100.0));
        state.apply(second(2, s, 50), None, at(100.0));
    }
    let rollup = state.rollup(at(101.0));
    assert_eq!((rollup.known_nodes, rollup.fresh_nodes, rollup.coverage_ratio), (2, 2, Some(1.0)));
    assert_eq!(rollup.power_watts, Some(150.0));
    assert_eq!(rollup.energy["cpu"].get(Source::Counter), 15_000_000_000);
    assert!(close(rollup.mfu_ratio, 0.5), "{:?}", rollup.mfu_ratio);
    assert_eq!(rollup.peak_flops, Some(2.0 * PEAK));
    assert_eq!(rollup.device_utilization_ratio, Some(0.5));
    assert_eq!(
        rollup.storage,
        Storage { hosts: 2, used_bytes: 50.0, size_bytes: 200.0, ..Storage::default() }
    );
    assert!(close(rollup.objective_ratio, 0.125));
    assert!(close(rollup.flops_per_joule, PEAK / 150.0));
    let text = text(&points(&rollup));
    for line in [
        "wattmill_cluster_power_watts 150",
        "wattmill_cluster_energy_joules_total{scope=\"cpu\",source=\"counter\"} 15000",
        "wattmill_cluster_telemetry_coverage_ratio 1",
        "wattmill_cluster_storage_capacity_ratio 0.25",
        "wattmill_collector_node_power_watts{node=\"00000000-0000-4000-8000-000000000002\",name=\"n2\"} 50",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

/// Windows may be ten seconds long; five seconds after the last of them nothing is amiss.
#[test]
fn freshness_follows_a_nodes_windows() {
    let mut state = State::default();
    for s in (0..=100).step_by(10) {
        state.apply(second(1, s, 100), None, at(100.0));
    }
    (0..=100).for_each(|s| state.apply(second(2, s, 100), None, at(100.0)));
    for s in [0, 99, 100] {
        state.apply(second(3, s, 100), None, at(100.0));
    }
    // It came back after a long pause, and is gone again.
    state.apply(second(4, 0, 100), None, at(100.0));
    state.apply(second(4, 100, 100), None, at(100.0));
    let fresh = |seconds: f64| {
        let rollup = state.rollup(at(100.0 + seconds));
        let fresh = |number| rollup.node(&node(number)).unwrap().fresh;
        [1, 2, 3, 4].map(fresh)
    };
    assert_eq!(fresh(5.0), [true; 4]);
    assert_eq!(fresh(6.0), [true, false, false, true], "five windows of a second each");
    assert_eq!(fresh(50.0), [true, false, false, true]);
    assert_eq!(fresh(51.0), [false, false, false, true]);
    assert_eq!(fresh(61.0), [false; 4], "nobody is believed for longer than a minute");
}

#[test]
fn a_silent_node_counts_as_known_but_not_as_idle() {
    let mut state = State::default();
    for s in 0..=100 {
        state.apply(second(1, s, 100), None, at(100.0));
        if s <= 90 {
            state.apply(second(2, s, 50), None, at(100.0));
        }
    }
    state.introduce(&node(3), "n3", "machine-3", 1.0);
    let rollup = state.rollup(at(100.0));
    assert_eq!(rollup.coverage_ratio, Some(1.0 / 3.0));
    assert_eq!(rollup.power_watts, Some(100.0));
    assert_eq!(rollup.energy["cpu"].total(), 14_500_000_000, "its joules stay");
    assert!(close(rollup.mfu_ratio, 0.5));
    assert!(state.retire(&node(2)) && state.retire(&node(3)));
    let rollup = state.rollup(at(100.0));
    assert_eq!(rollup.coverage_ratio, Some(1.0));
    assert_eq!(rollup.energy["cpu"].total(), 14_500_000_000);
    assert_eq!(State::default().rollup(at(0.0)).coverage_ratio, None);
    assert_eq!(points(&State::default().rollup(at(0.0))), []);
}

#[test]
fn an_unknown_peak_makes_mfu_absent() {
    let mut state = State::default();
    for s in 0..=10 {
        state.apply(second(1, s, 100), None, at(10.0));
        state.apply(frame(2, f64::from(s), [node_energy("cpu", 1)]), None, at(10.0));
    }
    let rollup = state.rollup(at(10.0));
    assert_eq!((rollup.mfu_ratio, rollup.objective_ratio, rollup.peak_flops), (None, None, None));
    assert!(rollup.storage_capacity_ratio.is_some());
}

#[test]
fn a_host_counts_once() {
    let mut state = State::default();
    for s in 0..=20 {
        for (number, share) in [(1, 0.5), (2, 0.5), (3, 0.5)] {
            if s >= number {
                state.apply(on_host("host", share, second(number, s, 100)), None, at(20.0));
            }
        }
    }
    let rollup = state.rollup(at(20.0));
    assert_eq!(rollup.power_watts, Some(200.0));
    assert_eq!(rollup.energy["cpu"].total(), (19 + 18) * 100_000_000, "the third joined last");
    assert_eq!(rollup.nodes.iter().map(|n| n.host_excluded).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(rollup.nodes[2].energy["cpu"].total(), 17 * 100_000_000, "it still shows what it meters");
    assert_eq!(rollup.storage.hosts, 1);
    assert_eq!(rollup.storage.size_bytes, 100.0);
    assert_eq!(rollup.peak_flops, Some(2.0 * PEAK));
    assert_eq!(state.counts.rejected(Reason::HostOverlap), 1);
    let thirds = [1, 2, 3].map(|number| on_host("h", 1.0 / 3.0 + 1e-7, second(number, 0, 1)));
    let mut state = State::default();
    thirds.into_iter().for_each(|frame| state.apply(frame, None, at(0.0)));
    assert!(state.nodes.values().all(|node| !node.verdict.host_excluded), "rounding is no overlap");
}

#[test]
fn an_agent_that_was_installed_anew_is_counted_once_the_old_one_is_silent() {
    let mut state = State::default();
    for s in 0..=10 {
        state.apply(on_host("host", 1.0, second(1, s, 100)), None, at(1e4));
    }
    for s in 20..=400 {
        state.apply(on_host("host", 1.0, second(2, s, 100)), None, at(1e4));
    }
    let rollup = state.rollup(at(400.0));
    assert!(!rollup.nodes[1].host_excluded);
    assert_eq!(rollup.energy["cpu"].total(), (10 + 400 - 310) * 100_000_000);
}

#[test]
fn a_gpu_counts_once() {
    let mut state = State::default();
    for s in 0..=20u32 {
        for number in [1, 2] {
            let joules = u64::from(s) * 300_000_000;
            let samples = [
                gauge(&metrics::GPU_UP, &["gpu-a"], 1.0),
                gauge(&metrics::GPU_POWER_WATTS, &["gpu-a"], 300.0),
                gauge(&metrics::GPU_UTILIZATION, &["gpu-a"], 0.25),
                gauge(&metrics::NODE_POWER_WATTS, &["gpu", "counter"], 300.0),
                gauge(&metrics::DEVICE_PEAK_FLOPS, &["gpu-a", "f32"], PEAK),
                energy(&metrics::GPU_ENERGY_JOULES, &["gpu-a", "counter"], joules, -9.0),
                node_energy("gpu", joules),
            ];
            let frame = frame(number, f64::from(s) + f64::from(number) / 10.0, samples);
            state.apply(on_host("host", 0.5, frame), None, at(30.0));
        }
    }
    let rollup = state.rollup(at(21.0));
    assert_eq!(rollup.power_watts, Some(300.0));
    assert_eq!(rollup.energy["gpu"].total(), 6_000_000_000);
    assert_eq!((rollup.peak_flops, rollup.device_utilization_ratio), (Some(PEAK), Some(0.25)));
    assert_eq!(rollup.nodes[1].foreign_gpus, [Box::from("gpu-a")]);
    assert!(rollup.nodes.iter().all(|n| n.gpus[0].up && n.gpus[0].energy_joules == Some(6000.0)));
    assert_eq!(state.counts.rejected(Reason::GpuOverlap), 1);
}

#[test]
fn the_future_is_refused_and_its_position_received() {
    let mut state = State::default();
    state.apply(second(1, 0, 100), Some(1), at(0.0));
    state.apply(second(1, 301, 100), Some(2), at(0.0));
    assert_eq!(state.counts.rejected(Reason::Future), 1);
    assert_eq!((state.nodes[&node(1)].position, state.nodes[&node(1)].newest_unix_nanos), (Some(2), at(0.0)));
    state.apply(second(1, 300, 100), Some(3), at(0.0));
    assert_eq!(state.nodes[&node(1)].newest_unix_nanos, at(300.0));
}

#[test]
fn history_has_no_point_where_there_was_no_telemetry() {
    let mut state = State::default();
    for s in (0..=40).chain(200..=230) {
        state.apply(second(1, s, 100), None, at(230.0));
        if s < 30 {
            state.apply(second(2, s, 50), None, at(230.0));
        }
    }
    let t0 = T0 as i64;
    let points = history(&state, None, t0, t0 + 1000);
    let seconds: Vec<i64> = points.iter().map(|p| p.unix_seconds - t0).collect();
    assert_eq!(seconds, [0, 10, 20, 30, 40, 200, 210, 220], "from 50 to 200 nobody said anything");
    assert!(points[..2].iter().all(|p| close(p.power_watts, 150.0) && close(p.mfu_ratio, 0.5)));
    assert_eq!(points.iter().map(|p| p.nodes).collect::<Vec<_>>(), [2, 2, 2, 1, 1, 1, 1, 1]);
    let alone = history(&state, Some(&node(2)), t0 + 5, t0 + 25);
    assert_eq!(alone.iter().map(|p| p.unix_seconds - t0).collect::<Vec<_>>(), [10, 20]);
    assert!(close(alone[1].power_watts, 50.0), "a part of a slot has its own mean");
    assert_eq!(history(&state, Some(&node(9)), 0, i64::MAX), []);
    assert_eq!(history(&state, None, i64::MIN, i64::MAX).len(), 8);
}

#[test]
fn an_index_of_gpus_does_not_grow_with_their_names() {
    let mut state = State::default();
    for s in 0..5000u32 {
        let up = gauge(&metrics::GPU_UP, &[&format!("gpu-{s}")], 1.0);
        state.apply(frame(1, f64::from(s), [up]), None, at(5000.0));
    }
    assert!(state.hosts.gpus_noted() <= 1025);
}

/// A store that keeps the newest value of each key.
#[derive(Default)]
struct Store(HashMap<String, Vec<u8>>);

impl Store {
    fn commit(&mut self, checkpoint: Checkpoint) -> u64 {
        self.0.extend(checkpoint.records.into_iter().map(|record| (record.key, record.value)));
        checkpoint.sequence
    }

    fn restore(&self) -> State {
        let records = self.0.iter().map(|(key, value)| Record { key: key.clone(), value: value.clone() });
        let (state, damaged) = State::from_records(records).unwrap();
        assert!(damaged.is_empty());
        state
    }
}

fn damaged(records: Vec<Record>) -> Vec<(String, PersistError)> {
    let (_, damaged) = State::from_records(records).unwrap();
    damaged.into_iter().map(|damaged| (damaged.record.key, damaged.error)).collect()
}

fn whole(state: &State) -> Vec<Record> {
    state.changes_since(None).encode().records
}

/// One push of a node: what happens before it.
#[derive(Clone, Debug)]
struct Push {
    node: u32,
    millis: u32,
    microjoules: [u32; 2],
    flops: u32,
    restarted: bool,
    stepped_back: bool,
    peak: u8,
}

fn pushes() -> impl Strategy<Value = Vec<Push>> {
    let millis = prop_oneof![8 => 100u32..3000, 1 => 3000u32..500_000];
    let rarely = || prop::bool::weighted(0.05);
    let push = (1u32..=4, millis, any::<[u32; 2]>(), any::<u32>(), rarely(), rarely(), 1u8..3);
    let push = push.prop_map(|(node, millis, microjoules, flops, restarted, stepped_back, peak)| Push {
        node,
        millis,
        microjoules,
        flops,
        restarted,
        stepped_back,
        peak,
    });
    prop::collection::vec(push, 1..80)
}

/// The frames of `pushes` with their spool positions, in the order in which they are made.
fn frames(pushes: &[Push]) -> Vec<(NodeFrame, u64)> {
    #[derive(Default)]
    struct Agent {
        seconds: f64,
        started: f64,
        joules: [u64; 2],
        flops: f64,
        position: u64,
    }
    let mut agents: HashMap<u32, Agent> = HashMap::new();
    let make = |push: &Push| {
        let agent = agents.entry(push.node).or_insert_with(|| Agent { started: -50.0, ..Agent::default() });
        let elapsed = f64::from(push.millis) / 1e3;
        agent.seconds = if push.stepped_back && agent.seconds > 2.0 * elapsed {
            agent.seconds - elapsed
        } else {
            agent.seconds + elapsed
        };
        agent.position += 1;
        if push.restarted {
            agent.joules = [0; 2];
            agent.started = agent.seconds - f64::from(push.millis) / 2e3;
        }
        agent.joules[0] += u64::from(push.microjoules[0]);
        agent.joules[1] += u64::from(push.microjoules[1]);
        agent.flops += f64::from(push.flops) * 1e3;
        let scope =
            |scope, amount| energy(&metrics::NODE_ENERGY_JOULES, &[scope, "counter"], amount, agent.started);
        let samples = [
            scope("cpu", agent.joules[0]),
            scope("gpu", agent.joules[1]),
            energy(&metrics::GPU_ENERGY_JOULES, &["gpu-a", "counter"], agent.joules[1], agent.started),
            useful_flops(agent.flops),
            gauge(&metrics::DEVICE_PEAK_FLOPS, &["cpu", "f32"], f64::from(push.peak)),
        ];
        let frame = frame(push.node, agent.seconds, samples);
        // Nodes 3 and 4 share a host, as they should.
        let frame = if push.node >= 3 { on_host("shared", 0.5, frame) } else { frame };
        let mut frame = frame;
        frame.samples.iter_mut().filter(|s| s.is(&metrics::GPU_ENERGY_JOULES)).for_each(|s| {
            s.labels[0] = format!("gpu-{}", push.node).into();
        });
        (frame, agent.position)
    };
    pushes.iter().map(make).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A crash at any point, then a replay of each node's spool from its durable position (and from a bit
    /// before it, as the acknowledgement may be lost), gives the totals and rings of an undisturbed run.
    #[test]
    fn a_crash_changes_nothing(
        pushes in pushes(),
        first in any::<prop::sample::Index>(),
        second in any::<prop::sample::Index>(),
        crash in any::<prop::sample::Index>(),
        again in 0u64..5,
        twice in any::<bool>(),
    ) {
        let now = at(1e6);
        let frames = frames(&pushes);
        let mut undisturbed = State::default();
        for (frame, position) in &frames {
            undisturbed.apply(frame.clone(), Some(*position), now);
        }

        let mut points = [first.index(frames.len() + 1), second.index(frames.len() + 1), crash.index(frames.len() + 1)];
        points.sort_unstable();
        let (mut state, mut store, mut sequence) = (State::default(), Store::default(), None);
        for (index, (frame, position)) in frames[..points[2]].iter().enumerate() {
            if points[..2].contains(&index) {
                sequence = Some(store.commit(state.changes_since(sequence).encode()));
            }
            state.apply(frame.clone(), Some(*position), now);
        }

        let mut restored = store.restore();
        for number in 1..=4 {
            let durable = restored.nodes.get(&node(number)).and_then(|node| node.position).unwrap_or(0);
            let spool = || frames.iter().filter(|(frame, position)| {
                frame.node == node(number) && position + again > durable
            });
            let replay: Vec<_> = if twice { spool().flat_map(|f| [f, f]).collect() } else { spool().collect() };
            for (frame, position) in replay {
                restored.apply(frame.clone(), Some(*position), now);
            }
        }
        prop_assert_eq!(whole(&restored), whole(&undisturbed));
        prop_assert_eq!(restored.rollup(now).energy, undisturbed.rollup(now).energy);
    }

    /// Whatever is stored, reading it gives a state and names what is damaged.
    #[test]
    fn damaged_records_are_told_apart(pushes in pushes(), record in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut state = State::default();
        for (frame, position) in frames(&pushes) {
            state.apply(frame, Some(position), at(1e6));
        }
        let mut records = whole(&state);
        let index = record.index(records.len());
        let value = &mut records[index].value;
        let place = byte.index(value.len());
        value[place] ^= 1 << bit;
        let damaged = |records: Vec<Record>| damaged(records).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        prop_assert_eq!(damaged(records.clone()), [records[index].key.clone()]);
        records[index].value.truncate(place);
        prop_assert_eq!(damaged(records.clone()), [records[index].key.clone()]);
    }
}

#[test]
fn records_under_foreign_keys_are_damaged_and_other_versions_are_refused() {
    let mut state = State::default();
    state.apply(second(1, 0, 1), None, at(0.0));
    state.apply(second(1, 1, 1), None, at(1.0));
    let records = whole(&state);
    assert_eq!(records.len(), 2);
    let mut foreign = records.clone();
    foreign[0].key = "node/../etc".into();
    assert!(matches!(&damaged(foreign)[..], [(key, PersistError::Content { .. })] if key == "node/../etc"));
    let mut swapped = records.clone();
    swapped[1].key = swapped[0].key.replace("node", "ring");
    swapped[1].value = swapped[0].value.clone();
    assert!(matches!(&damaged(swapped)[..], [(_, PersistError::Content { .. })]));
    let mut newer = records;
    let content = newer[0].value.split_off(5);
    newer[0].value =
        [&[9], &crc32fast::hash(&[&[9], &content[..]].concat()).to_le_bytes()[..], &content].concat();
    assert!(matches!(State::from_records(newer), Err(PersistError::Version { version: 9, .. })));
}

#[test]
fn a_checkpoint_has_what_changed_and_its_positions() {
    let telemetry = Telemetry::new();
    let push = |number, s| {
        telemetry.apply(vec![second(number, s, 1)], Some(u64::from(s)), &Counts::default(), at(10.0));
    };
    push(1, 1);
    push(1, 2);
    push(2, 1);
    let all = telemetry.checkpoint(None);
    assert_eq!(all.positions, [(node(1), 2), (node(2), 1)]);
    assert_eq!(all.records.len(), 3, "node 2 has no ring yet");
    push(2, 2);
    let some = telemetry.checkpoint(Some(all.sequence));
    assert_eq!(some.positions, [(node(2), 2)]);
    assert_eq!(some.records.len(), 2);
    assert_eq!(telemetry.checkpoint(Some(some.sequence)).records, []);
    let both = all.records.into_iter().filter(|r| !r.key.contains(node(2).as_str())).chain(some.records);
    let (restored, _) = Telemetry::restore(both).unwrap();
    assert_eq!(restored.received(&node(2)), Some(2));
    assert_eq!(restored.checkpoint(None).records, telemetry.checkpoint(None).records);
}
