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

/// Which file each key was read from, so that an error about a value names the file that holds it.
#[derive(Clone, Debug)]
pub struct Origins {
    main: PathBuf,
    /// Dotted keys, in the order in which they were read: the last one is in force.
    keys: Vec<(String, PathBuf)>,
}

impl Origins {
    /// The last file that sets `key` (dotted) or a key below it; the main file where none does.
    pub fn of(&self, key: &str) -> &Path {
        let sets = |set: &str| set.strip_prefix(key).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        self.keys.iter().rev().find(|(set, _)| sets(set)).map_or(&self.main, |(_, file)| file)
    }

    /// An error about a well-formed value of `key`.
    pub fn error(&self, key: &'static str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value { path: self.of(key).to_owned(), key, message: message.into() }
    }

    fn note(&mut self, file: &Path, prefix: &str, table: &toml::Table) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                toml::Value::Table(inner) if !inner.is_empty() => self.note(file, &key, inner),
                _ => self.keys.push((key, file.to_owned())),
            }
        }
    }
}

/// Reads a configuration into `T`: the file `named`, which must be there, or else the one at `default`,
/// which need not; then the drop-ins `conf.d/*.toml` beside it, whether or not it is there.
///
/// # Errors
/// When a file cannot be read, is not TOML, or holds a key that `T` does not know.
pub fn load<T: DeserializeOwned>(named: Option<&Path>, default: &Path) -> Result<(T, Origins), ConfigError> {
    let path = named.unwrap_or(default);
    let mut files = Vec::new();
    match read(path) {
        Ok(text) => files.push((path.to_owned(), text)),
        // Nothing else counts as missing: a file that may not be read is there.
        Err(ConfigError::Read { source, .. })
            if named.is_none() && source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for file in drop_ins(path)? {
        let text = read(&file)?;
        files.push((file, text));
    }
    let mut merged = toml::Table::new();
    let mut origins = Origins { main: path.to_owned(), keys: Vec::new() };
    for (file, text) in &files {
        let table = text.parse::<toml::Table>().map_err(|error| parse_error(file, text, &error))?;
        origins.note(file, "", &table);
        merge(&mut merged, table);
        // What does not fit any more does not fit because of this file, and its own text says where.
        if let Err(error) = merged.clone().try_into::<T>() {
            let alone = toml::from_str::<T>(text).err();
            return Err(parse_error(file, text, alone.as_ref().unwrap_or(&error)));
        }
    }
    let value = merged.try_into().map_err(|error| parse_error(path, "", &error))?;
    Ok((value, origins))
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
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|source| ConfigError::Read { path: folder.clone(), source })?.path();
        let named = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&stem));
        if named && file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
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
        let (sample, _) = load::<Sample>(Some(&folder.join("agent.toml")), Path::new("unused")).unwrap();
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
            (
                "dropin-type",
                &[("agent.toml", "listen = \"a\"\n"), ("conf.d/agent.toml", "\n[inner]\nwatts = \"x\"\n")],
                "conf.d/agent.toml:3: invalid type",
            ),
        ];
        for (name, files, expected) in table {
            let folder = folder(name, files);
            let error = load::<Sample>(Some(&folder.join("agent.toml")), Path::new("unused"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{name}: {error}");
            fs::remove_dir_all(folder).unwrap();
        }
        let nowhere = Path::new("/nonexistent/agent.toml");
        let error = load::<Sample>(Some(nowhere), nowhere).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nonexistent/agent.toml");
        assert!(load::<Sample>(None, nowhere).is_ok(), "a default file may be missing");
    }

    #[test]
    fn drop_ins_are_read_without_a_main_file() {
        let folder = folder("alone", &[("conf.d/agent-10.toml", "[inner]\nwatts = 2\n")]);
        let path = folder.join("agent.toml");
        let (sample, origins) = load::<Sample>(None, &path).unwrap();
        assert_eq!(sample.inner.watts, 2);
        assert_eq!(origins.of("inner.watts"), folder.join("conf.d/agent-10.toml"));
        assert_eq!(origins.of("inner"), folder.join("conf.d/agent-10.toml"));
        assert_eq!(origins.of("inn"), path);
        assert_eq!(origins.of("listen"), path);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_not_missing() {
        // A file where a folder should be: not even root can read what is under it.
        let folder = folder("unreadable", &[("etc", "")]);
        let path = folder.join("etc/agent.toml");
        let error = load::<Sample>(None, &path).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read {}", path.display()));
        fs::remove_dir_all(folder).unwrap();
    }
}
