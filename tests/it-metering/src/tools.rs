//! Programs that are not ours.

use std::path::PathBuf;

/// A program on the PATH. Without it a test is skipped on somebody's machine and fails in CI, where the
/// variable `CI` is set.
///
/// # Panics
/// It is missing in CI.
pub fn find(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        let message = format!("{name} is not on the PATH (Debian and Ubuntu: the package {package})");
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("skipped: {message}");
    }
    found
}
