//! `collector.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tonic::codegen::http::Uri;
use wattmill_protocol::config_file::{self, ConfigError, Origins};

/// Where the configuration lies unless `--config` says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/wattmill/collector.toml";

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Database and blobs.
    pub(crate) state_dir: PathBuf,
    /// gRPC: OTLP, control, parameters.
    pub(crate) listen_grpc: SocketAddr,
    /// HTTP: `/metrics` and the rest.
    pub(crate) listen_http: SocketAddr,
    /// Allows clear text on addresses that others reach.
    pub(crate) insecure: bool,
    /// How patient the collector is.
    pub(crate) leases: Leases,
    /// Limits.
    pub(crate) limits: Limits,
    /// Logs.
    pub(crate) log: Log,
    /// Wattmill's own traces.
    pub(crate) traces: TracesTo,
}

/// Where Wattmill's own traces go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TracesTo {
    /// An OTLP receiver (gRPC), such as `http://127.0.0.1:4317`; none without it.
    pub(crate) endpoint: Option<String>,
}

/// How patient the collector is.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Leases {
    /// A lease runs this long without progress.
    pub(crate) duration_ms: u64,
    /// A closed session may come back this long before its shards are given to others.
    pub(crate) grace_ms: u64,
    /// An ended job waits this long for its last joules.
    pub(crate) settle_ms: u64,
    /// A shard that fails this often is quarantined.
    pub(crate) max_failures: u32,
}

/// Limits on what is kept.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Most bytes of shards' results that wait in memory for their rounds.
    pub(crate) staged_bytes: u64,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// `text` or `json`.
    pub(crate) format: LogFormat,
}

/// A log's form.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/wattmill/collector".into(),
            listen_grpc: ([127, 0, 0, 1], 4317).into(),
            listen_http: ([127, 0, 0, 1], 9767).into(),
            insecure: false,
            leases: Leases::default(),
            limits: Limits::default(),
            log: Log::default(),
            traces: TracesTo::default(),
        }
    }
}

impl Default for Leases {
    fn default() -> Self {
        let wattmill_work::Settings { lease_ms, grace_ms, settle_ms, max_failures } =
            wattmill_work::Settings::default();
        Self { duration_ms: lease_ms, grace_ms, settle_ms, max_failures }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { staged_bytes: 2 << 30 }
    }
}

impl Config {
    /// Reads and checks the configuration. Without a file at the default place the defaults hold.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (config, origins) = config_file::load::<Self>(path, Path::new(DEFAULT_PATH))?;
        config.check(&origins)?;
        Ok(config)
    }

    fn check(&self, origins: &Origins) -> Result<(), ConfigError> {
        for (key, address) in [("listen_grpc", self.listen_grpc), ("listen_http", self.listen_http)] {
            if !address.ip().is_loopback() && !self.insecure {
                let message = format!(
                    "{address} is reached by others, in clear text; listen on 127.0.0.1, or set `insecure = true`"
                );
                return Err(origins.error(key, message));
            }
        }
        if let Some(endpoint) = &self.traces.endpoint {
            let plain = |uri: &Uri| {
                uri.scheme_str() == Some("http") && uri.host().is_some() && uri.port_u16().is_some()
            };
            if !endpoint.parse::<Uri>().as_ref().is_ok_and(plain) {
                let message =
                    format!("{endpoint:?} is not a URL like \"http://127.0.0.1:4317\" (without TLS)");
                return Err(origins.error("traces.endpoint", message));
            }
        }
        let positive = [
            ("leases.duration_ms", self.leases.duration_ms),
            ("leases.max_failures", u64::from(self.leases.max_failures)),
            ("limits.staged_bytes", self.limits.staged_bytes),
        ];
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(origins.error(key, "must be at least 1")),
            None => Ok(()),
        }
    }
}

impl From<Leases> for wattmill_work::Settings {
    fn from(leases: Leases) -> Self {
        Self {
            lease_ms: leases.duration_ms,
            grace_ms: leases.grace_ms,
            settle_ms: leases.settle_ms,
            max_failures: leases.max_failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_names_file_line_and_key() {
        let table = [
            ("state_dri = \"x\"", "collector.toml:1: unknown field `state_dri`"),
            ("listen_grpc = \"localhost\"", "collector.toml:1: invalid socket address"),
            (
                "listen_http = \"0.0.0.0:9767\"",
                "collector.toml: listen_http: 0.0.0.0:9767 is reached by others",
            ),
            ("[leases]\nduration_ms = 0", "collector.toml: leases.duration_ms: must be at least 1"),
            ("[leases]\ngrace_ms = -1", "collector.toml:2: invalid value"),
            (
                "[traces]\nendpoint = \"localhost\"",
                "collector.toml: traces.endpoint: \"localhost\" is not a URL like",
            ),
            (
                "[traces]\nendpoint = \"https://x:1\"",
                "collector.toml: traces.endpoint: \"https://x:1\" is not",
            ),
            ("[log]\nformat = \"xml\"", "collector.toml:2: unknown variant `xml`"),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("collector.toml");
        for (text, expected) in table {
            std::fs::write(&path, text).unwrap();
            let error = Config::load(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        std::fs::write(&path, "insecure = true\nlisten_http = \"0.0.0.0:9767\"").unwrap();
        Config::load(Some(&path)).unwrap();
    }
}
