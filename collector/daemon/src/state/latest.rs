//! A node's gauges as it last pushed them.
//!
//! Invariant: all values are of one instant. A newer frame replaces everything, so a series that its node
//! no longer exports is gone; a further frame of the same instant is merged.

use std::collections::BTreeMap;

use wattmill_protocol::Source;
use wattmill_protocol::catalogue as metrics;

use super::frame::Sample;

/// Most GPUs that are kept of a node: four times the largest machines of today.
pub(crate) const MAX_GPUS: usize = 64;

/// Most series that are kept of a node beside those of GPUs.
pub(crate) const MAX_SERIES: usize = 1024;

/// Gauges of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct GpuGauges {
    /// Whether it answers; absent where its node does not say.
    pub(crate) up: Option<bool>,
    /// Mean power over the last metering window.
    pub(crate) power_watts: Option<f64>,
    /// Share of time in which a kernel ran.
    pub(crate) utilization_ratio: Option<f64>,
    /// Processes on it that are not the node's; absent where that is not known.
    pub(crate) foreign_processes: Option<f64>,
}

/// A filesystem of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Filesystem {
    /// Bytes used.
    pub(crate) used_bytes: Option<f64>,
    /// Bytes there are.
    pub(crate) size_bytes: Option<f64>,
}

/// A node's gauges of one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Latest {
    /// GPUs by UUID.
    pub(crate) gpus: BTreeMap<Box<str>, GpuGauges>,
    /// Mean watts by scope and source. Scopes do not overlap.
    pub(crate) power_watts: BTreeMap<(Box<str>, Source), f64>,
    /// Dense peak FLOP/s by device and precision.
    pub(crate) peak_flops: BTreeMap<(Box<str>, Box<str>), f64>,
    /// The host's filesystems by mount point.
    pub(crate) filesystems: BTreeMap<Box<str>, Filesystem>,
    /// Bytes per second that the host's storage can move, by `op`.
    pub(crate) storage_bandwidth: BTreeMap<Box<str>, f64>,
    /// Bytes per second that the host's network can move.
    pub(crate) network_bandwidth: Option<f64>,
    /// Share of the host's CPU time that was not idle.
    pub(crate) cpu_utilization_ratio: Option<f64>,
}

impl Latest {
    /// Takes a gauge in, and notes the GPU of a GPU's energy. Other samples are left alone. `false` where
    /// there is no room for another series.
    pub(crate) fn take(&mut self, mut sample: Sample) -> bool {
        let of_gpu = sample.metric.labels.first() == Some(&"uuid");
        let others = [self.power_watts.len(), self.peak_flops.len(), self.filesystems.len()];
        let others = others.into_iter().sum::<usize>() + self.storage_bandwidth.len();
        let room = if of_gpu {
            self.gpus.len() < MAX_GPUS || self.gpus.contains_key(sample.label(0))
        } else {
            others < MAX_SERIES
        };
        if !room {
            return false;
        }
        let value = sample.number();
        if sample.is(&metrics::GPU_UP) {
            self.gpu(&mut sample).up = Some(value > 0.0);
        } else if sample.is(&metrics::GPU_POWER_WATTS) {
            self.gpu(&mut sample).power_watts = Some(value);
        } else if sample.is(&metrics::GPU_UTILIZATION) {
            self.gpu(&mut sample).utilization_ratio = Some(value);
        } else if sample.is(&metrics::GPU_FOREIGN_PROCESSES) {
            self.gpu(&mut sample).foreign_processes = Some(value);
        } else if sample.is(&metrics::NODE_POWER_WATTS) {
            if let Some(source) = Source::from_label(sample.label(1)) {
                self.power_watts.insert((sample.take_label(0), source), value);
            }
        } else if sample.is(&metrics::DEVICE_PEAK_FLOPS) {
            self.peak_flops.insert((sample.take_label(0), sample.take_label(1)), value);
        } else if sample.is(&metrics::HOST_FILESYSTEM_USED) {
            self.filesystem(&mut sample).used_bytes = Some(value);
        } else if sample.is(&metrics::HOST_FILESYSTEM_SIZE) {
            self.filesystem(&mut sample).size_bytes = Some(value);
        } else if sample.is(&metrics::HOST_STORAGE_BANDWIDTH) {
            self.storage_bandwidth.insert(sample.take_label(0), value);
        } else if sample.is(&metrics::HOST_NETWORK_BANDWIDTH) {
            self.network_bandwidth = Some(value);
        } else if sample.is(&metrics::HOST_CPU_UTILIZATION) {
            self.cpu_utilization_ratio = Some(value);
        } else if sample.is(&metrics::GPU_ENERGY_JOULES) {
            self.gpu(&mut sample);
        }
        true
    }

    fn gpu(&mut self, sample: &mut Sample) -> &mut GpuGauges {
        self.gpus.entry(sample.take_label(0)).or_default()
    }

    fn filesystem(&mut self, sample: &mut Sample) -> &mut Filesystem {
        self.filesystems.entry(sample.take_label(0)).or_default()
    }

    /// Whether the node trains on this GPU: it says how fast it is.
    pub(crate) fn trains_on(&self, uuid: &str) -> bool {
        self.peak_flops.keys().any(|(device, _)| **device == *uuid)
    }

    /// Sum of watts over the scopes that `counted` lets through; absent where there is none.
    pub(crate) fn watts(&self, counted: impl Fn(&str) -> bool) -> Option<f64> {
        let watts = self.power_watts.iter().filter(|((scope, _), _)| counted(scope)).map(|(_, watts)| *watts);
        watts.fold(None, |sum, watts| Some(sum.unwrap_or(0.0) + watts))
    }

    /// Peaks at `precision` by device: of the GPUs where a GPU's peak is known at all, else of the rest.
    /// Never both: a node trains on one kind.
    pub(crate) fn peaks(&self, precision: &str) -> impl Iterator<Item = (&str, bool, f64)> {
        let on_gpus = self.peak_flops.keys().any(|(device, _)| self.gpus.contains_key(device));
        self.peak_flops.iter().filter_map(move |((device, of), peak)| {
            let gpu = self.gpus.contains_key(device);
            (**of == *precision && gpu == on_gpus).then_some((&**device, gpu, *peak))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gauge, latest};
    use super::*;

    #[test]
    fn gauges_find_their_places() {
        let latest = latest([
            gauge(&metrics::GPU_UP, &["gpu-a"], 1.0),
            gauge(&metrics::GPU_POWER_WATTS, &["gpu-a"], 250.0),
            gauge(&metrics::GPU_FOREIGN_PROCESSES, &["gpu-a"], 2.0),
            gauge(&metrics::NODE_POWER_WATTS, &["gpu", "counter"], 250.0),
            gauge(&metrics::NODE_POWER_WATTS, &["cpu", "estimate"], 50.0),
            gauge(&metrics::NODE_POWER_WATTS, &["cpu", "guess"], 1e9),
            gauge(&metrics::HOST_FILESYSTEM_SIZE, &["/"], 100.0),
            gauge(&metrics::HOST_FILESYSTEM_USED, &["/"], 25.0),
            gauge(&metrics::GPU_TEMPERATURE, &["gpu-b"], 60.0),
        ]);
        assert_eq!(
            latest.gpus["gpu-a"],
            GpuGauges {
                up: Some(true),
                power_watts: Some(250.0),
                utilization_ratio: None,
                foreign_processes: Some(2.0)
            }
        );
        assert_eq!(latest.watts(|_| true), Some(300.0));
        assert_eq!(latest.watts(|scope| scope == "gpu"), Some(250.0));
        assert_eq!(latest.watts(|_| false), None);
        assert_eq!(latest.filesystems["/"], Filesystem { used_bytes: Some(25.0), size_bytes: Some(100.0) });
    }

    #[test]
    fn room_is_bounded() {
        let mut latest = Latest::default();
        let up = |index: usize| gauge(&metrics::GPU_UP, &[&index.to_string()], 1.0);
        assert!((0..MAX_GPUS).all(|index| latest.take(up(index))));
        assert!(!latest.take(up(MAX_GPUS)) && latest.take(up(0)), "GPUs that are known go on");
        let size = |index: usize| gauge(&metrics::HOST_FILESYSTEM_SIZE, &[&index.to_string()], 1.0);
        assert_eq!((0..2 * MAX_SERIES).filter(|index| latest.take(size(*index))).count(), MAX_SERIES);
    }

    #[test]
    fn peaks_are_of_gpus_or_of_the_rest_never_of_both() {
        let cpu = [
            gauge(&metrics::DEVICE_PEAK_FLOPS, &["cpu", "f32"], 1e11),
            gauge(&metrics::DEVICE_PEAK_FLOPS, &["cpu", "bf16"], 2e11),
        ];
        let gpu = [
            gauge(&metrics::GPU_UP, &["gpu-a"], 1.0),
            gauge(&metrics::DEVICE_PEAK_FLOPS, &["gpu-a", "f32"], 5e13),
        ];
        let alone = latest(cpu.clone());
        assert_eq!(alone.peaks("f32").collect::<Vec<_>>(), [("cpu", false, 1e11)]);
        let both = latest(cpu.into_iter().chain(gpu));
        assert_eq!(both.peaks("f32").collect::<Vec<_>>(), [("gpu-a", true, 5e13)]);
        assert_eq!(both.peaks("bf16").count(), 0, "an unknown peak is not replaced by another device's");
    }
}
