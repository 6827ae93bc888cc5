//! How every program reads its configuration: one TOML file and the drop-ins beside it.
//!
//! `NAME.toml` is read first, then `conf.d/*.toml` in the order of their names; a later file overrides
//! single keys of an earlier one. Unknown keys are errors, and every error names the file, and the line
//! where it is known.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Largest configuration file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any configuration is.
    #[error("{} has {bytes} bytes; a configuration file has at most {MAX_FILE_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not TOML, or a key is unknown or of the wrong type.
    #[error("{}{}: {message}", path.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
    Parse {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: Option<usize>,
        /// What is wrong, with the key.
        message: String,
    },
    /// A value is well-formed but cannot be right.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl ConfigError {
    /// An error about a well-formed value of `key`.
    pub fn value(path: &Path, key: &'static str, message: impl Into<String>) -> Self {
        Self::Value { path: path.to_owned(), key, message: message.into() }
    }
}

/// Reads `path` and the drop-ins `conf.d/*.toml` beside it into `T`.
///
/// # Errors
/// When a file cannot be read, is not TOML, or holds a key that `T` does not know.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let mut files = vec![path.to_owned()];
    files.extend(drop_ins(path)?);
    let mut merged = toml::Table::new();
    for file in &files {
        let text = read(file)?;
        // Each file alone must fit T's keys, so that the error names the file and its line. Keys that
        // another file supplies may be missing here, which only the merged whole is checked for.
        let table = text.parse::<toml::Table>().map_err(|error| parse_error(file, &text, &error))?;
        merge(&mut merged, table);
    }
    if let [only] = files.as_slice() {
        let text = read(only)?;
        return toml::from_str(&text).map_err(|error| parse_error(only, &text, &error));
    }
    merged.try_into().map_err(|error: toml::de::Error| blame(&files, &error))
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = path.with_file_name("conf.d");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: folder, source }),
    };
    // Drop-ins of one folder serve two programs on a host that runs both: `agent.d-…` is told apart by
    // its prefix, the program's own file name.
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|file| file.extension().is_some_and(|e| e == "toml"))
        .filter(|file| file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&stem)))
        .collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), bytes });
    }
    fs::read_to_string(path).map_err(failed)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| line_of(text, span.start));
    ConfigError::Parse { path: path.to_owned(), line, message: error.message().to_owned() }
}

/// 1-based line of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}

/// An error of the merged whole: named after the last file that holds the key, which is the one in force.
fn blame(files: &[PathBuf], error: &toml::de::Error) -> ConfigError {
    let message = error.message().to_owned();
    let key = message.split('`').nth(1).unwrap_or_default().to_owned();
    let found = files.iter().rev().find_map(|file| {
        let text = read(file).ok()?;
        let line = text.lines().position(|line| {
            line.trim_start().trim_start_matches('[').starts_with(&key) && !key.is_empty()
        })?;
        Some((file.clone(), line + 1))
    });
    match found {
        Some((path, line)) => ConfigError::Parse { path, line: Some(line), message },
        None => ConfigError::Parse { path: files[0].clone(), line: None, message: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        listen: String,
        #[serde(default)]
        inner: Inner,
    }

    #[derive(serde::Deserialize, Debug, PartialEq, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        watts: u32,
        name: String,
    }

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("wattmill-config-{}-{name}", std::process::id()));
        fs::create_dir_all(folder.join("conf.d")).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), text).unwrap();
        }
        folder
    }

    #[test]
    fn drop_ins_override_single_keys() {
        let folder = folder(
            "merge",
            &[
                ("agent.toml", "listen = \"a\"\n[inner]\nwatts = 1\nname = \"n\"\n"),
                ("conf.d/agent-10.toml", "[inner]\nwatts = 2\n"),
                ("conf.d/collector-10.toml", "other = 1\n"),
            ],
        );
        let sample: Sample = load(&folder.join("agent.toml")).unwrap();
        assert_eq!(sample, Sample { listen: "a".into(), inner: Inner { watts: 2, name: "n".into() } });
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn errors_name_file_line_and_key() {
        type Files = &'static [(&'static str, &'static str)];
        let table: &[(&str, Files, &str)] = &[
            (
                "unknown",
                &[("agent.toml", "\nlisten_on = \"x\"\n")],
                "agent.toml:2: unknown field `listen_on`",
            ),
            ("type", &[("agent.toml", "[inner]\nwatts = \"x\"\n")], "agent.toml:2: invalid type"),
            ("syntax", &[("agent.toml", "listen = \n")], "agent.toml:1: "),
            (
                "dropin",
                &[("agent.toml", ""), ("conf.d/agent.toml", "[inner]\nwats = 1\n")],
                "conf.d/agent.toml:2: unknown field `wats`",
            ),
        ];
        for (name, files, expected) in table {
            let folder = folder(name, files);
            let error = load::<Sample>(&folder.join("agent.toml")).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
            fs::remove_dir_all(folder).unwrap();
        }
        let error = load::<Sample>(Path::new("/nonexistent/agent.toml")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/agent.toml");
    }
}
