//! Where the configuration and the control socket come from.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::machine::config::Config;

/// Environment variable with the path of the configuration file.
pub const CONFIG_VARIABLE: &str = "NVML_FAKE_CONFIG";

/// Environment variable with the path of the control socket; goes before the configuration's `socket`.
pub const SOCKET_VARIABLE: &str = "NVML_FAKE_SOCKET";

/// Configuration beside the library, read where the environment names none: so one process can load several
/// fakes, each its own copy of the file, and none depends on the environment of a test runner.
pub const CONFIG_FILE_BESIDE: &str = "nvml-fake.json";

/// Reads the configuration; the default one where none is named.
pub(crate) fn read() -> Result<Config, String> {
    let named = env::var_os(CONFIG_VARIABLE).map(PathBuf::from);
    let beside = || {
        let path = own_path()?.with_file_name(CONFIG_FILE_BESIDE);
        path.exists().then_some(path)
    };
    let Some(path) = named.or_else(beside) else { return Ok(Config::default()) };
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Path of the control socket, if there is to be one.
pub(crate) fn socket(config: &Config) -> Option<PathBuf> {
    env::var_os(SOCKET_VARIABLE).map(PathBuf::from).or_else(|| config.socket.clone())
}

/// The file that this code was loaded from: the mapping that holds this function.
fn own_path() -> Option<PathBuf> {
    let address = own_path as fn() -> Option<PathBuf> as usize;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let path = &rest[rest.find('/')?..];
        (start..end).contains(&address).then(|| Path::new(path).to_owned())
    })
}
