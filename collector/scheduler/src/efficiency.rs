//! η, σ, the objective and the lower bounds, in both of their readings.
//!
//! The *sound* reading is what the design defines and what Wattmill plans with. The *literal* reading
//! ([`seed_eta_literal`], [`seed_sigma_literal`]) computes the founding document's formulas exactly as
//! they stand there, so that its figures can be compared with ours; nothing is planned with them.
//!
//! Invariant: an input that is unknown (a peak, a bandwidth), is not finite, or would be divided by while
//! it is zero makes the figure absent. No figure is ever guessed, infinite or not a number.

/// What sums of floating-point numbers may be off by, relative: a day of ticks at 1e-16 each.
const ROUNDING: f64 = 1e-9;

/// A figure that can be shown: finite and not negative.
fn shown(value: f64) -> Option<f64> {
    (value.is_finite() && value >= 0.0).then_some(value)
}

/// `amount / capacity`, absent where there is no capacity to relate to.
fn ratio(amount: f64, capacity: f64) -> Option<f64> {
    if capacity > 0.0 { shown(amount / capacity) } else { None }
}

/// η, model FLOPs utilisation (ratio): `useful_flops` ÷ Σ over all compute devices, idle ones too, of
/// dense peak FLOP/s at the precision × time.
///
/// `peak_flop_seconds` is that sum: for each device its peak (FLOP/s) times the seconds in which it was
/// there, `None` where any device's peak is unknown. Absent above 1: no device does more than its peak, so a
/// peak in the sum is not known yet as it is, or the work took longer than the time it is held against.
/// Source: design, "η, σ and the objective".
pub fn mfu_ratio(useful_flops: f64, peak_flop_seconds: Option<f64>) -> Option<f64> {
    ratio(useful_flops, peak_flop_seconds?)
        .filter(|ratio| *ratio <= 1.0 + ROUNDING)
        .map(|ratio| ratio.min(1.0))
}

/// σ, storage capacity utilisation (ratio): bytes used ÷ bytes there are.
///
/// Source: design, "η, σ and the objective". Each host's filesystems count once.
pub fn storage_capacity_ratio(used_bytes: f64, size_bytes: f64) -> Option<f64> {
    ratio(used_bytes, size_bytes)
}

/// Storage bandwidth utilisation (ratio): bytes moved ÷ (bandwidth × time).
///
/// `able_bytes` is the sum over storage nodes of that product: what each could have moved while it was
/// watched, `None` where no bandwidth is configured. Source: design, "η, σ and the objective".
pub fn storage_bandwidth_ratio(moved_bytes: f64, able_bytes: Option<f64>) -> Option<f64> {
    ratio(moved_bytes, able_bytes?)
}

/// The objective that is reported (ratio): η·σ. Source: design, "η, σ and the objective".
pub fn objective_ratio(mfu_ratio: Option<f64>, storage_capacity_ratio: Option<f64>) -> Option<f64> {
    shown(mfu_ratio? * storage_capacity_ratio?)
}

/// Efficiency (FLOP/J): committed model FLOPs ÷ every joule, idle and wasted ones too.
///
/// Source: design, "η, σ and the objective".
pub fn flops_per_joule(useful_flops: f64, joules: f64) -> Option<f64> {
    ratio(useful_flops, joules)
}

/// Efficiency (samples/J): committed samples ÷ every joule of the job: its shards', wasted ones too, and its
/// share of what the cluster idled away while it ran.
///
/// Source: design, "η, σ and the objective".
pub fn samples_per_joule(samples: f64, joules: f64) -> Option<f64> {
    ratio(samples, joules)
}

/// No schedule computes what is left faster than this (seconds): work (FLOPs) ÷ Σ peaks (FLOP/s).
///
/// `peaks_flops` is the sum over the devices that may do the work, `None` where a peak is unknown: the
/// rest of the sum would not be a lower bound. Source: design, "η, σ and the objective".
pub fn compute_lower_bound_seconds(work_flops: f64, peaks_flops: Option<f64>) -> Option<f64> {
    ratio(work_flops, peaks_flops?)
}

/// No schedule moves the data faster than this (seconds): D·b ÷ min(Σ storage bandwidth, Σ node
/// bandwidth), bandwidths in bytes per second. `bytes` is D·b: what all shards that are still to be read
/// have.
///
/// Both bandwidths must be known: the missing one could be the narrow one. Source: design, "η, σ and the
/// objective".
pub fn transfer_lower_bound_seconds(
    bytes: f64,
    storage_bytes_per_second: Option<f64>,
    nodes_bytes_per_second: Option<f64>,
) -> Option<f64> {
    ratio(bytes, storage_bytes_per_second?.min(nodes_bytes_per_second?))
}

/// The founding document's η as written: P·T/(v·N).
///
/// With P processes (units of work), T seconds each at speed 1, v relative speed and N nodes, this is in
/// seconds: it equals the document's own compute time. For N=10, v=1, T=10, P=100 it gives 100, not the
/// 10 that the document prints.
pub fn seed_eta_literal(
    processes: f64,
    seconds_per_process: f64,
    relative_speed: f64,
    nodes: f64,
) -> Option<f64> {
    ratio(processes * seconds_per_process, relative_speed * nodes)
}

/// The founding document's σ as written: D·M·s/(M·S), in which M cancels.
///
/// With D data shards, M storage nodes, s the size of a shard and S the capacity of a storage node in one
/// unit. For D=10, M=8, s=1, S=2 it gives 5, not the 1 that the document prints. M = 0 makes it absent,
/// as the formula is written.
pub fn seed_sigma_literal(
    data_shards: f64,
    storage_nodes: f64,
    shard_size: f64,
    node_capacity: f64,
) -> Option<f64> {
    ratio(data_shards * storage_nodes * shard_size, storage_nodes * node_capacity)
}

/// A live cluster's values for the symbols of the founding document's formulas.
///
/// The document does not say how its symbols are measured; this is Wattmill's reading, chosen so that
/// each symbol is a plain figure of the live cluster. What is not known yet stays `None`, and with it the
/// figure that needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LiteralInputs {
    /// P, units of work that are open: shards pending and running in the current rounds of all jobs.
    pub open_shards: u64,
    /// T, mean seconds that a shard took, over the newest reported shards of all nodes.
    pub seconds_per_shard: Option<f64>,
    /// v, mean speed of the nodes relative to the node for which T holds. As T is itself a mean over the
    /// fleet, this is 1 unless T was measured on a part of it; `None` before any node's rate is known.
    pub relative_speed: Option<f64>,
    /// N, nodes with an open session, drained and cordoned ones too.
    pub nodes: u64,
    /// D, data shards of all jobs that have not ended.
    pub data_shards: u64,
    /// M, hosts that report a filesystem; each host counts once.
    pub storage_nodes: u64,
    /// s, mean bytes of a data shard.
    pub bytes_per_shard: Option<f64>,
    /// S, mean filesystem bytes of a host among M.
    pub bytes_per_storage_node: Option<f64>,
}

impl LiteralInputs {
    /// [`seed_eta_literal`] of these values, for `wattmill_cluster_seed_eta_literal`.
    pub fn seed_eta_literal(&self) -> Option<f64> {
        seed_eta_literal(
            self.open_shards as f64,
            self.seconds_per_shard?,
            self.relative_speed?,
            self.nodes as f64,
        )
    }

    /// [`seed_sigma_literal`] of these values, for `wattmill_cluster_seed_sigma_literal`.
    pub fn seed_sigma_literal(&self) -> Option<f64> {
        seed_sigma_literal(
            self.data_shards as f64,
            self.storage_nodes as f64,
            self.bytes_per_shard?,
            self.bytes_per_storage_node?,
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The founding document's example: N=10, v=1, M=8, S=2, s=1, T=10, P=100, D=10.
    const EXAMPLE: LiteralInputs = LiteralInputs {
        open_shards: 100,
        seconds_per_shard: Some(10.0),
        relative_speed: Some(1.0),
        nodes: 10,
        data_shards: 10,
        storage_nodes: 8,
        bytes_per_shard: Some(1.0),
        bytes_per_storage_node: Some(2.0),
    };

    #[test]
    fn the_founding_example_as_written_gives_100_and_5() {
        assert_eq!(seed_eta_literal(100.0, 10.0, 1.0, 10.0), Some(100.0));
        assert_eq!(seed_sigma_literal(10.0, 8.0, 1.0, 2.0), Some(5.0));
        assert_eq!(EXAMPLE.seed_eta_literal(), Some(100.0));
        assert_eq!(EXAMPLE.seed_sigma_literal(), Some(5.0));
    }

    #[test]
    fn what_is_unknown_is_absent() {
        assert_eq!(mfu_ratio(1e12, None), None);
        assert_eq!(mfu_ratio(0.0, Some(0.0)), None, "no devices");
        assert_eq!(mfu_ratio(0.0, Some(1e12)), Some(0.0), "idle is a figure");
        assert_eq!(mfu_ratio(1.5e12, Some(1e12)), None, "no device does more than its peak");
        assert_eq!(mfu_ratio(1e12 + 1.0, Some(1e12)), Some(1.0), "rounding");
        assert_eq!(storage_bandwidth_ratio(1.0, None), None);
        assert_eq!(objective_ratio(Some(0.5), None), None);
        assert_eq!(flops_per_joule(1.0, 0.0), None);
        assert_eq!(compute_lower_bound_seconds(1.0, None), None);
        assert_eq!(transfer_lower_bound_seconds(1.0, Some(1.0), None), None);
        assert_eq!(LiteralInputs { seconds_per_shard: None, ..EXAMPLE }.seed_eta_literal(), None);
        assert_eq!(LiteralInputs { nodes: 0, ..EXAMPLE }.seed_eta_literal(), None);
        assert_eq!(LiteralInputs { storage_nodes: 0, ..EXAMPLE }.seed_sigma_literal(), None);
    }

    #[test]
    fn figures_follow_their_formulas() {
        assert_eq!(mfu_ratio(30e12, Some(2.0 * 1e12 * 60.0)), Some(0.25));
        assert_eq!(storage_capacity_ratio(30.0, 120.0), Some(0.25));
        assert_eq!(storage_bandwidth_ratio(600.0, Some(100.0 * 60.0)), Some(0.1));
        assert_eq!(objective_ratio(Some(0.5), Some(0.25)), Some(0.125));
        assert_eq!(flops_per_joule(1e12, 100.0), Some(1e10));
        assert_eq!(samples_per_joule(100.0, 50.0), Some(2.0));
        assert_eq!(compute_lower_bound_seconds(4e12, Some(2e12)), Some(2.0));
        assert_eq!(
            transfer_lower_bound_seconds(10.0 * 8.0, Some(4.0), Some(2.0)),
            Some(40.0),
            "narrower side"
        );
    }

    proptest! {
        #[test]
        fn no_figure_is_infinite_or_negative(a: f64, b: f64, c: f64, d: f64) {
            for figure in [
                mfu_ratio(a, Some(b)),
                storage_bandwidth_ratio(a, Some(b)),
                objective_ratio(Some(a), Some(b)),
                transfer_lower_bound_seconds(a, Some(b), Some(c)),
                seed_eta_literal(a, b, c, d),
                seed_sigma_literal(a, b, c, d),
            ].into_iter().flatten() {
                prop_assert!(figure.is_finite() && figure >= 0.0);
            }
            prop_assert!(mfu_ratio(a, Some(b)).is_none_or(|eta| eta <= 1.0));
        }
    }
}
