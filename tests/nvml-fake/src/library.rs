//! Finding the built shared library and putting a copy of it where a test wants it.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use thiserror::Error;

use crate::machine::config::Config;
use crate::settings::CONFIG_FILE_BESIDE;
use crate::symbols::{self, SymbolError};

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
    /// A symbol that cannot be left out.
    #[error("{}", path.display())]
    Symbol {
        /// The library.
        path: PathBuf,
        /// Why.
        #[source]
        source: SymbolError,
    },
}

/// A copy of the library with its own state, configuration and control socket.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The library: what to give to `Nvml::builder().lib_path()` or to the agent's `nvml_library`.
    pub library: PathBuf,
    /// The control socket, there once the library is initialised.
    pub socket: PathBuf,
}

/// The library that cargo built, in `target/PROFILE/deps`, found from the running test (there too) or program
/// (in `target/PROFILE`). Cargo builds it for every package that has `nvml-fake` among its (dev-)dependencies.
///
/// # Errors
/// It is not there.
pub fn locate() -> Result<PathBuf, LibraryError> {
    let program = env::current_exe().map_err(|source| file(Path::new("current program"), source))?;
    let tried = candidates(&program);
    tried.iter().find(|path| path.is_file()).cloned().ok_or(LibraryError::NotBuilt { tried })
}

/// Where the library may be, seen from a program. `deps` goes before `target/PROFILE`: each build refreshes it,
/// while the copy outside is only that of the last `cargo build` of this very package and may be old.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let folders = program.ancestors().skip(1).take(2);
    folders.flat_map(|folder| [folder.join("deps").join(BUILT_NAME), folder.join(BUILT_NAME)]).collect()
}

/// Copies the library into `folder` under the name that programs load, with `config` beside it. The control
/// socket is in `folder` too, unless `config` names one.
///
/// # Errors
/// No library, or a file that cannot be written.
pub fn install(folder: &Path, config: &Config) -> Result<Installed, LibraryError> {
    install_without(folder, config, &[])
}

/// As [`install`], with some functions missing from the symbol table, as in an older driver
/// ([`symbols::newer_than`] lists them).
///
/// # Errors
/// As [`install`], or a symbol that the library does not have.
pub fn install_without(folder: &Path, config: &Config, symbols: &[&str]) -> Result<Installed, LibraryError> {
    let built = locate()?;
    let mut bytes = fs::read(&built).map_err(|source| file(&built, source))?;
    for symbol in symbols {
        symbols::hide(&mut bytes, symbol)
            .map_err(|source| LibraryError::Symbol { path: built.clone(), source })?;
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

fn file(path: &Path, source: io::Error) -> LibraryError {
    LibraryError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_that_each_build_refreshes_comes_first() {
        let place = |program: &str, path: &str| {
            candidates(Path::new(program)).iter().position(|tried| tried == Path::new(path)).unwrap()
        };
        for program in ["/t/debug/agent", "/t/debug/deps/agent-0123"] {
            let (fresh, copy) = ("/t/debug/deps/libnvidia_ml.so", "/t/debug/libnvidia_ml.so");
            assert!(place(program, fresh) < place(program, copy), "{program}");
        }
    }
}
