//! How much random tests try.

/// `WATTMILL_FUZZ` times, else `usual`, which is what fits into every build.
pub(crate) fn times(usual: u32) -> u32 {
    let asked = std::env::var("WATTMILL_FUZZ").ok();
    asked.map_or(usual, |times| times.parse().expect("WATTMILL_FUZZ is how often to try, a number"))
}
