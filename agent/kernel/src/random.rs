//! SplitMix64: the only source of pseudo-randomness, chosen because a seed gives the same stream in
//! three lines of any language.
//!
//! Invariant: integer operations alone, hence the same stream on every machine.

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014: a Weyl sequence
/// through Stafford's 13th mix. As in Java's `SplittableRandom` and the reference C by Vigna.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64 {
    state: u64,
}

/// 2^64 ÷ the golden ratio, rounded to odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A stream for each pair: the second key perturbs a mixed first, so that (1, 2) and (2, 1),
    /// or neighbouring seeds and epochs, share nothing.
    pub(crate) fn keyed(seed: u64, key: u64) -> Self {
        let mixed = Self::new(seed).next();
        Self::new(mixed ^ key)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), a multiple of 2^-24: exact in `f32`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in 0..bound, unbiased: Lemire, "Fast Random Integer Generation in an Interval", 2019.
    /// The high word of `random × bound` is the result; the low word tells the few products that
    /// would favour some results, and these are drawn again. `bound` is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_that_of_the_reference() {
        // Vigna's splitmix64.c from seed 1234567.
        let mut random = SplitMix64::new(1_234_567);
        let stream = [random.next(), random.next(), random.next()];
        assert_eq!(stream, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn below_is_in_range_and_even() {
        let mut random = SplitMix64::new(3);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(random.below(1), 0);
    }

    #[test]
    fn units_lie_in_the_half_open_interval() {
        let mut random = SplitMix64::new(5);
        let mean = (0..10_000).map(|_| f64::from(random.unit())).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01);
        assert!((0..10_000).all(|_| (0.0..1.0).contains(&random.unit())));
    }
}
