//! A GPU's values in the catalogue's terms.
//!
//! Invariant: a lost GPU keeps its counters, which stand still, and has no gauge but that it is lost, and why.

use wattmill_protocol::Source;
use wattmill_protocol::catalogue as cat;

use super::{Points, Snapshot};
use crate::device::gpu::{GpuReading, MigInstance, Scoped};
use crate::device::uncertainty::{EnergyUncertainty, HalfWidth};
use crate::device::{Class, MeterId};

/// What a label says where there is nothing to say.
const NONE: &str = "none";

pub(super) fn add(points: &mut Points<'_>, gpu: &GpuReading, snapshot: &Snapshot) {
    let uuid = gpu.uuid.as_str();
    points.add(&cat::GPU_UP, &[uuid], f64::from(u8::from(gpu.up)));
    if !gpu.model.is_empty() {
        points.add(&cat::GPU_INFO, &[uuid, &gpu.index, &gpu.model, &gpu.driver, &gpu.pci], 1.0);
    }
    counters(points, gpu);
    if gpu.up {
        gauges(points, gpu, snapshot);
        descriptions(points, gpu);
    } else {
        let xid = gpu.events.last_xid.map_or_else(|| NONE.to_owned(), |xid| xid.to_string());
        points.add(&cat::GPU_LOST_INFO, &[uuid, gpu.lost.unwrap_or("unknown"), &xid], 1.0);
    }
}

fn counters(points: &mut Points<'_>, gpu: &GpuReading) {
    let uuid = gpu.uuid.as_str();
    for (reason, seconds) in &gpu.throttle_seconds {
        points.add(&cat::GPU_THROTTLE_SECONDS, &[uuid, reason], *seconds);
    }
    points.add_some(&cat::GPU_PCIE_RECEIVE, &[uuid], gpu.pcie.received.map(|bytes| bytes as f64));
    points.add_some(&cat::GPU_PCIE_TRANSMIT, &[uuid], gpu.pcie.transmitted.map(|bytes| bytes as f64));
    for (xid, count) in &gpu.events.xid {
        points.add(&cat::GPU_XID_ERRORS, &[uuid, &xid.to_string()], *count as f64);
    }
    points.add_some(&cat::GPU_ECC_ERRORS, &[uuid], gpu.events.double_bit_ecc.map(|count| count as f64));
}

fn gauges(points: &mut Points<'_>, gpu: &GpuReading, snapshot: &Snapshot) {
    let uuid = gpu.uuid.as_str();
    let mean = |source| {
        let meter = MeterId { class: Class::Gpu, device: uuid.to_owned(), source };
        snapshot.meters.get(&meter).and_then(|sum| sum.watts)
    };
    let mean = mean(Source::Counter).or_else(|| mean(Source::Integrated));
    points.add_some(&cat::GPU_POWER_WATTS, &[uuid], mean);
    scoped(points, &cat::GPU_POWER_INSTANT, uuid, &gpu.power.instant);
    scoped(points, &cat::GPU_POWER_AVERAGE, uuid, &gpu.power.average);
    points.add_some(&cat::GPU_ENERGY_DIVERGENCE, &[uuid], snapshot.divergence.get(uuid).copied());
    let EnergyUncertainty { counter, integrated } = gpu.energy_uncertainty;
    for (source, half_width) in [(Source::Counter, counter), (Source::Integrated, integrated)] {
        let labels = [uuid, source.as_str()];
        points.add_some(&cat::GPU_ENERGY_UNCERTAINTY, &labels, half_width.map(HalfWidth::ratio));
    }
    points.add_some(&cat::GPU_UTILIZATION, &[uuid], gpu.utilization);
    points.add_some(&cat::GPU_MEMORY_USED, &[uuid], gpu.memory.map(|m| m.used_bytes as f64));
    points.add_some(&cat::GPU_MEMORY_SIZE, &[uuid], gpu.memory.map(|m| m.size_bytes as f64));
    points.add_some(&cat::GPU_TEMPERATURE, &[uuid], gpu.temperature_celsius);
    points.add_some(&cat::GPU_SM_CLOCK, &[uuid], gpu.sm_clock_hertz);
    points.add_some(&cat::GPU_POWER_LIMIT, &[uuid], gpu.limits.enforced);
    points.add_some(&cat::GPU_POWER_LIMIT_DEFAULT, &[uuid], gpu.limits.default);
    points.add_some(&cat::GPU_POWER_LIMIT_MIN, &[uuid], gpu.limits.min);
    points.add_some(&cat::GPU_POWER_LIMIT_MAX, &[uuid], gpu.limits.max);
    let foreign = gpu.foreign_processes.map(|count| count as f64);
    points.add_some(&cat::GPU_FOREIGN_PROCESSES, &[uuid], foreign);
}

fn descriptions(points: &mut Points<'_>, gpu: &GpuReading) {
    let uuid = gpu.uuid.as_str();
    if let Some(action) = gpu.recovery_action {
        points.add(&cat::GPU_RECOVERY_ACTION_INFO, &[uuid, action], 1.0);
    }
    for MigInstance { uuid: mig, gpu_instance, compute_instance, slices, memory_bytes } in &gpu.mig {
        let number = |number: &Option<u32>| number.map_or_else(|| NONE.to_owned(), |n| n.to_string());
        let labels = [uuid, mig, &number(gpu_instance), &number(compute_instance), &number(slices)];
        points.add(&cat::GPU_MIG_INFO, &labels, 1.0);
        points.add_some(&cat::GPU_MIG_MEMORY_SIZE, &[uuid, mig], memory_bytes.map(|bytes| bytes as f64));
    }
}

fn scoped(points: &mut Points<'_>, metric: &'static cat::Metric, uuid: &str, watts: &Scoped) {
    for (scope, watts) in watts.labelled() {
        points.add_some(metric, &[uuid, scope], watts);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::device::gpu::{GpuEvents, PcieBytes, Power, PowerLimits};
    use crate::device::host::Usage;
    use crate::snapshot::tests::{sample, shown};

    fn gpu() -> GpuReading {
        let power = |gpu, module, memory| Scoped { gpu, module, memory };
        GpuReading {
            uuid: "GPU-1".to_owned(),
            up: true,
            memory: Some(Usage { used_bytes: 1, size_bytes: 2 }),
            power: Power {
                instant: power(Some(632.0), Some(800.0), None),
                average: power(Some(626.0), None, Some(33.0)),
            },
            energy_uncertainty: EnergyUncertainty {
                counter: Some(HalfWidth { gain: 0.0625, random: 0.03125 }),
                integrated: Some(HalfWidth { gain: 0.0625, random: 0.0625 }),
            },
            limits: PowerLimits {
                enforced: Some(650.0),
                default: Some(700.0),
                min: Some(200.0),
                max: Some(700.0),
            },
            throttle_seconds: vec![("sw_power_cap", 1.5)],
            pcie: PcieBytes { received: Some(10), transmitted: Some(20) },
            recovery_action: Some("none"),
            foreign_processes: Some(3),
            mig: vec![MigInstance {
                uuid: "MIG-1".to_owned(),
                gpu_instance: Some(1),
                slices: Some(3),
                memory_bytes: Some(4),
                ..MigInstance::default()
            }],
            events: GpuEvents { xid: BTreeMap::from([(79, 2)]), double_bit_ecc: Some(0), last_xid: Some(79) },
            ..GpuReading::default()
        }
    }

    fn text(gpu: &GpuReading) -> String {
        shown(|points| add(points, gpu, &sample()))
    }

    #[test]
    fn everything_is_shown() {
        insta::assert_snapshot!(text(&gpu()));
    }

    #[test]
    fn a_lost_gpu_shows_why_and_its_counters() {
        insta::assert_snapshot!(text(&GpuReading { up: false, lost: Some("gpu_lost"), ..gpu() }));
    }
}
