//! Numbers from a seed: the same in every run.

/// SplitMix64, whose output for a counter passes BigCrush.
fn mixed(seed: u64, index: u64) -> u64 {
    let mut bits = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The number of a seed at `index`, below `bound`.
pub(super) fn below(seed: u64, index: u64, bound: u64) -> u64 {
    ((u128::from(mixed(seed, index)) * u128::from(bound)) >> 64) as u64
}
