//! The order in which an epoch visits the rows of its data.
//!
//! Invariant: a permutation of all rows that depends on seed and epoch alone, the same on every
//! machine and at every attempt of a shard.

use crate::random::SplitMix64;

/// A data set has more rows than the order can name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the data has {0} rows; an order names at most 4294967295")]
pub struct TooManyRows(pub u64);

/// The rows `0..rows` in the order of epoch `epoch` (from 0).
///
/// Fisher–Yates from the back: for `i` from `rows − 1` to 1, exchange `i` and a uniform `j ≤ i`
/// (Lemire's unbiased bounded draw) from SplitMix64, whose state starts as
/// `first output of SplitMix64(seed) XOR epoch`. Takes 4 bytes per row.
///
/// # Errors
/// [`TooManyRows`] if a row's index would not fit `u32`.
pub fn permutation(rows: u64, seed: u64, epoch: u32) -> Result<Vec<u32>, TooManyRows> {
    let count = u32::try_from(rows).map_err(|_| TooManyRows(rows))?;
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = SplitMix64::keyed(seed, u64::from(epoch));
    for last in (1..order.len()).rev() {
        let other = random.below(last as u64 + 1) as usize;
        order.swap(last, other);
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once() {
        for rows in [0, 1, 2, 3, 36, 1_437] {
            let mut order = permutation(rows, 1, 0).unwrap();
            order.sort_unstable();
            assert_eq!(order, (0..rows as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seed_and_epoch_change_the_order() {
        let order = |seed, epoch| permutation(100, seed, epoch).unwrap();
        assert_eq!(order(1, 2), order(1, 2));
        assert_ne!(order(1, 2), order(2, 1));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(0, 0), order(1, 0));
    }

    #[test]
    fn the_order_never_changes_between_versions() {
        // Also computed by tests/fixtures/pytorch/make.py; a resumed job must see the same rows.
        assert_eq!(permutation(10, 1, 0).unwrap(), [6, 4, 7, 2, 9, 1, 5, 0, 8, 3]);
    }

    #[test]
    fn all_orders_of_three_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..6_000 {
            *counts.entry(permutation(3, 9, epoch).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    #[test]
    fn too_many_rows_are_refused() {
        assert_eq!(permutation(1 << 32, 1, 0), Err(TooManyRows(1 << 32)));
    }
}
