//! Finding the built shared library and putting a copy of it where a test wants it.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use thiserror::Error;

use crate::machine::config::Config;
use crate::settings::CONFIG_FILE_BESIDE;

/// What cargo calls the library.
const BUILT_NAME: &str = "libnvidia_ml.so";

/// What programs load.
pub const INSTALLED_NAME: &str = "libnvidia-ml.so.1";

/// Name of the control socket beside an installed library.
const SOCKET_NAME: &str = "nvml-fake.sock";

/// Why there is no library.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// Cargo has not built it, or not beside this program.
    #[error("no {BUILT_NAME} among {tried:?}: build the package nvml-fake for this profile")]
    NotBuilt {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A symbol to leave out that the library does not have.
    #[error("the library has no symbol {0}")]
    NoSymbol(String),
}

/// A copy of the library with its own state, configuration and control socket.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The library: what to give to `Nvml::builder().lib_path()` or to the agent's `nvml_library`.
    pub library: PathBuf,
    /// The control socket, there once the library is initialised.
    pub socket: PathBuf,
}

/// The library that cargo built: beside the running test (`target/PROFILE/deps`) or program (`target/PROFILE`).
/// Cargo builds it for every package that has `nvml-fake` among its (dev-)dependencies.
///
/// # Errors
/// It is not there.
pub fn locate() -> Result<PathBuf, LibraryError> {
    let program = env::current_exe().map_err(|source| file(Path::new("current program"), source))?;
    let mut tried = Vec::new();
    for folder in program.ancestors().skip(1).take(2) {
        for path in [folder.join(BUILT_NAME), folder.join("deps").join(BUILT_NAME)] {
            if path.is_file() {
                return Ok(path);
            }
            tried.push(path);
        }
    }
    Err(LibraryError::NotBuilt { tried })
}

/// Copies the library into `folder` under the name that programs load, with `config` beside it. The control
/// socket is in `folder` too, unless `config` names one.
///
/// # Errors
/// No library, or a file that cannot be written.
pub fn install(folder: &Path, config: &Config) -> Result<Installed, LibraryError> {
    install_without(folder, config, &[])
}

/// As [`install`], with some functions missing from the symbol table, as in an older driver.
///
/// # Errors
/// As [`install`], or a symbol that the library does not have.
pub fn install_without(folder: &Path, config: &Config, symbols: &[&str]) -> Result<Installed, LibraryError> {
    let built = locate()?;
    let mut bytes = fs::read(&built).map_err(|source| file(&built, source))?;
    for symbol in symbols {
        hide_symbol(&mut bytes, symbol)?;
    }
    let library = folder.join(INSTALLED_NAME);
    fs::write(&library, bytes).map_err(|source| file(&library, source))?;
    let socket = config.socket.clone().unwrap_or_else(|| folder.join(SOCKET_NAME));
    let config = Config { socket: Some(socket.clone()), ..config.clone() };
    let beside = folder.join(CONFIG_FILE_BESIDE);
    let text = serde_json::to_string_pretty(&config).map_err(|error| file(&beside, error.into()))?;
    fs::write(&beside, text).map_err(|source| file(&beside, source))?;
    Ok(Installed { library, socket })
}

/// Renames a symbol in the string tables. The hash table still leads a lookup of the old name to the entry,
/// where the loader compares names and finds another one.
fn hide_symbol(bytes: &mut [u8], symbol: &str) -> Result<(), LibraryError> {
    let wanted: Vec<u8> = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let mut from = 0;
    let mut found = false;
    while let Some(place) = bytes[from..].windows(wanted.len()).position(|window| window == wanted) {
        bytes[from + place + 1] = b'X';
        from += place + 1;
        found = true;
    }
    if found { Ok(()) } else { Err(LibraryError::NoSymbol(symbol.to_owned())) }
}

fn file(path: &Path, source: io::Error) -> LibraryError {
    LibraryError::File { path: path.to_owned(), source }
}
