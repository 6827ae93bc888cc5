//! `exp` and `ln` from IEEE operations alone, so that a loss has the same bits everywhere.
//!
//! Invariant: no libm, no fused operation, no table; loops over `exp` vectorise.

/// `e^x` for `x ≤ 0`, within 2 units in the last place; 0 below −87, NaN stays NaN.
///
/// Cephes `expf` (Moshier): `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, the series' first two terms and a
/// polynomial of degree 5 for the rest, and `n` put into the exponent.
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first with trailing zeros so that `n · HIGH` is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x < LEAST { LEAST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let p = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_5e-1)
        * r
        + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let scale = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { mantissa * scale }
}

/// `e^-87` is 1.6e-38, the last power of ten above the smallest normal number.
const LEAST: f32 = -87.0;

/// `ln x` for finite `x ≥ 1`, within 1e-15 absolute at small values and 2 units in the last place.
///
/// `x = 2^e · m` with `m` in √½ to √2, and `ln m = 2·artanh(s)`, `s = (m − 1)/(m + 1)`, `|s| ≤ 0.172`:
/// eleven terms of the series leave less than 1e-17.
pub(crate) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits(bits & MANTISSA | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for i in (0..11u32).rev() {
        series = series * square + 1.0 / f64::from(2 * i + 1);
    }
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            assert!((f64::from(exp(x)) - exact).abs() <= 2.0 * unit, "{x}: {} {exact}", exp(x));
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_agrees_with_libm() {
        for i in 0..200_000 {
            let x = 1.0 + f64::from(i) * 7.3e-3;
            assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().max(1.0), "{x}: {} {}", ln(x), x.ln());
        }
        assert_eq!(ln(1.0), 0.0);
    }
}
