//! Splits energy among those that used it, in whole microjoules.
//!
//! Pure. Invariant: the parts sum exactly to what was split, always; a share of the host carries its
//! remainder, so that no microjoule is lost over time.

/// Parts per million of the whole host.
pub const WHOLE_HOST_PPM: u32 = 1_000_000;

/// Splits `total` in proportion to `weights` by the largest remainder; ties go to the earlier one.
/// Weights that are all zero say nothing: the last one takes everything.
pub fn split(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    if sum == 0 {
        let mut parts = vec![0; weights.len()];
        if let Some(last) = parts.last_mut() {
            *last = total;
        }
        return parts;
    }
    let exact = |weight: u64| u128::from(total) * u128::from(weight);
    // A quotient is at most `total`, so it fits.
    let mut parts: Vec<u64> = weights.iter().map(|w| (exact(*w) / sum) as u64).collect();
    let mut left = total - parts.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|i| (std::cmp::Reverse(exact(weights[*i]) % sum), *i));
    for i in by_remainder {
        if left == 0 {
            break;
        }
        parts[i] += 1;
        left -= 1;
    }
    parts
}

/// The node's share of the host's `microjoules`; `carry` keeps what is less than a microjoule, in
/// millionths of one.
pub fn share(microjoules: u64, ppm: u32, carry: &mut u32) -> u64 {
    let exact = u128::from(microjoules) * u128::from(ppm) + u128::from(*carry);
    let million = u128::from(WHOLE_HOST_PPM);
    // A remainder of a million fits, and so does a share of at most the whole and one.
    *carry = (exact % million) as u32;
    u64::try_from(exact / million).unwrap_or(u64::MAX)
}

/// Weights by CPU nanoseconds of a window: each user's (shards, then units), then other processes', then idle
/// time's.
///
/// `busy` and `idle` count in ticks of 10 ms and users in nanoseconds, so users may be ahead by a
/// tick: others then used nothing, and idle keeps what is left of the whole.
pub fn cpu_weights(user_nanos: &[u64], busy: u64, idle: u64) -> Vec<u64> {
    let users = user_nanos.iter().fold(0u64, |sum, nanos| sum.saturating_add(*nanos));
    let other = busy.saturating_sub(users);
    let idle = busy.saturating_add(idle).saturating_sub(users.saturating_add(other));
    let mut weights = user_nanos.to_vec();
    weights.extend([other, idle]);
    weights
}

/// Weights of a GPU: the share of time it was in use is split in proportion to `users` and to `others`, of whom
/// only that is known; where neither is known, it is others'. The rest is idle.
pub fn gpu_weights(users: &[u64], others: u64, utilization: f64) -> Vec<u64> {
    let used = (utilization.clamp(0.0, 1.0) * 1e6) as u64;
    let mut weights = split(used, &[users, &[others]].concat());
    weights.push(1_000_000 - used);
    weights
}

/// Of a unit's CPU time on the whole host, the part on this node's CPUs. Where that was, no cgroup tells: it is taken
/// to lie as all time of the host does that is not a shard's, `host` nanoseconds, of which `node` on these CPUs.
pub fn node_nanos(nanos: u64, node: u64, host: u64) -> u64 {
    if node >= host {
        return nanos;
    }
    // Less than `nanos`, so it fits.
    (u128::from(nanos) * u128::from(node) / u128::from(host)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn largest_remainder_and_ties() {
        assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(split(7, &[2, 1, 1]), [3, 2, 2], "3.5, 1.75, 1.75: the greater remainders first");
        assert_eq!(split(5, &[0, 0]), [0, 5], "weightless energy is idle energy");
        assert_eq!(split(5, &[]), Vec::<u64>::new());
        assert_eq!(split(u64::MAX, &[u64::MAX, u64::MAX]), [u64::MAX / 2 + 1, u64::MAX / 2]);
    }

    #[test]
    fn shards_ahead_of_the_tick_leave_nothing_for_others() {
        assert_eq!(cpu_weights(&[6, 6], 10, 10), [6, 6, 0, 8]);
        assert_eq!(cpu_weights(&[3], 10, 10), [3, 7, 10]);
        assert_eq!(cpu_weights(&[30], 10, 10), [30, 0, 0]);
    }

    #[test]
    fn a_gpu_in_use_is_its_users_or_others() {
        assert_eq!(gpu_weights(&[0], 0, 0.25), [0, 250_000, 750_000]);
        assert_eq!(gpu_weights(&[], 0, f64::NAN), [0, 1_000_000]);
        assert_eq!(gpu_weights(&[0, 30, 10], 0, 0.5), [0, 375_000, 125_000, 0, 500_000]);
        assert_eq!(gpu_weights(&[30], 60, 0.9), [300_000, 600_000, 100_000]);
        assert_eq!(gpu_weights(&[7], 0, 0.0), [0, 0, 1_000_000], "in nobody's use");
    }

    #[test]
    fn time_on_a_part_of_the_host_is_taken_to_lie_evenly() {
        assert_eq!(node_nanos(100, 30, 90), 33);
        assert_eq!(node_nanos(100, 90, 90), 100);
        assert_eq!(node_nanos(100, 91, 90), 100, "a tick ahead");
        assert_eq!(node_nanos(100, 0, 0), 100);
        assert_eq!(node_nanos(u64::MAX, u64::MAX - 1, u64::MAX), u64::MAX - 1);
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_whole(total in any::<u64>(), weights in proptest::collection::vec(any::<u64>(), 1..20)) {
            let parts = split(total, &weights);
            prop_assert_eq!(parts.iter().map(|p| u128::from(*p)).sum::<u128>(), u128::from(total));
            let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                if let Some(exact) = (u128::from(total) * u128::from(*weight)).checked_div(sum) {
                    prop_assert!(u128::from(*part) == exact || u128::from(*part) == exact + 1);
                }
            }
        }

        #[test]
        fn shares_of_a_host_lose_nothing(
            windows in proptest::collection::vec(0u64..1_000_000_000_000, 1..100),
            ppm in 0..=WHOLE_HOST_PPM,
        ) {
            let (mut a, mut b) = (0, 0);
            let (mut ours, mut theirs, mut total) = (0u64, 0u64, 0u64);
            for window in windows {
                ours += share(window, ppm, &mut a);
                theirs += share(window, WHOLE_HOST_PPM - ppm, &mut b);
                total += window;
            }
            // Two agents that share a host: what both have not counted yet is less than one µJ.
            prop_assert_eq!(total - ours - theirs, u64::from(a + b) / u64::from(WHOLE_HOST_PPM));
            prop_assert!(total - ours - theirs <= 1);
        }

        #[test]
        fn cpu_time_is_neither_lost_nor_doubled(
            shards in proptest::collection::vec(0u64..1 << 40, 0..10), busy in 0u64..1 << 44, idle in 0u64..1 << 44,
        ) {
            let used: u64 = shards.iter().sum();
            let weights: u64 = cpu_weights(&shards, busy, idle).iter().sum();
            prop_assert_eq!(weights, (busy + idle).max(used));
        }
    }
}
