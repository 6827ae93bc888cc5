//! How much random tests try, and where.

/// `WATTMILL_FUZZ` times, else `usual`, which is what fits into every build.
pub(crate) fn times(usual: u32) -> u32 {
    let asked = std::env::var("WATTMILL_FUZZ").ok();
    asked.map_or(usual, |times| times.parse().expect("WATTMILL_FUZZ is how often to try, a number"))
}

/// A folder for a tree of files, in memory where Linux has that: on a disk a test of many trees takes four to seven
/// times as long.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder for temporary files")
}
