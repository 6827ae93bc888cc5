//! Keys of the meters beside RAPL and NVML: `[hwmon]`, `[dcmi]` and `[redfish]`.
//!
//! Invariant: what may be a secret (a command's arguments, a password) is in no error and no debug output.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tonic::codegen::http::Uri;
use wattmill_protocol::config_file::{ConfigError, Origins};

use super::file::within;

/// Least time between two readings of a sensor that counts for no scope: BMCs and supplies measure once a second.
const MIN_INTERVAL_MS: u64 = 1_000;
/// Most: an integral over longer steps says little.
const MAX_INTERVAL_MS: u64 = 60_000;
/// How often board sensors are read.
const DEFAULT_SENSORS_MS: u64 = 1_000;
/// How often a BMC is asked: it is a slow computer with work of its own.
const DEFAULT_BMC_MS: u64 = 10_000;

/// Sensors of the kernel's hwmon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hwmon {
    /// Whether AMD and Intel GPUs are read.
    pub gpus: bool,
    /// How often sensors of boards and power supplies are read; `None` where they are not.
    pub sensors_interval: Option<Duration>,
}

/// The whole node's power by IPMI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dcmi {
    /// What prints the power.
    pub command: CommandLine,
    /// How often it is run.
    pub interval: Duration,
}

/// A program and its arguments, which may hold a password: neither `Debug` nor `Display` shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

impl CommandLine {
    /// Of words; `None` without a program.
    pub fn new(words: Vec<String>) -> Option<Self> {
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty())?;
        Some(Self { program, arguments: words.collect() })
    }

    /// The program.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Its arguments.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)
    }
}

impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} arguments", self.program, self.arguments.len())
    }
}

/// The whole node's power by Redfish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redfish {
    /// The BMC, `https://host[:port]` without a path.
    pub url: String,
    /// Account; `None` asks without one.
    pub account: Option<Account>,
    /// Whom the BMC's certificate is trusted by; `None` where it is not checked.
    pub ca_file: Option<PathBuf>,
    /// How often it is asked.
    pub interval: Duration,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Name.
    pub username: String,
    /// Where the password lies, on the first line.
    pub password_file: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HwmonKeys {
    gpus: Option<bool>,
    sensors: Option<bool>,
    interval_ms: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DcmiKeys {
    command: Option<Vec<String>>,
    interval_ms: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RedfishKeys {
    url: Option<String>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    insecure: bool,
    interval_ms: Option<u64>,
}

impl HwmonKeys {
    pub(super) fn checked(self, origins: &Origins) -> Result<Hwmon, ConfigError> {
        let interval = interval(self.interval_ms, DEFAULT_SENSORS_MS)
            .map_err(|message| origins.error("hwmon.interval_ms", message))?;
        let sensors_interval = self.sensors.unwrap_or(true).then_some(interval);
        Ok(Hwmon { gpus: self.gpus.unwrap_or(true), sensors_interval })
    }
}

impl DcmiKeys {
    pub(super) fn checked(self, origins: &Origins) -> Result<Option<Dcmi>, ConfigError> {
        let interval = interval(self.interval_ms, DEFAULT_BMC_MS)
            .map_err(|message| origins.error("dcmi.interval_ms", message))?;
        let Some(words) = self.command else { return Ok(None) };
        let command = CommandLine::new(words).ok_or_else(|| {
            origins.error("dcmi.command", "is no list like [\"ipmitool\", \"dcmi\", \"power\", \"reading\"]")
        })?;
        Ok(Some(Dcmi { command, interval }))
    }
}

impl RedfishKeys {
    pub(super) fn checked(self, origins: &Origins) -> Result<Option<Redfish>, ConfigError> {
        let interval = interval(self.interval_ms, DEFAULT_BMC_MS)
            .map_err(|message| origins.error("redfish.interval_ms", message))?;
        let Some(url) = self.url else {
            return match self.username.is_some() || self.password_file.is_some() || self.ca_file.is_some() {
                true => Err(origins.error("redfish", "nothing is asked without url")),
                false => Ok(None),
            };
        };
        let url = bmc_url(&url).map_err(|message| origins.error("redfish.url", message))?;
        let account = match (self.username, self.password_file) {
            (None, None) => None,
            (Some(username), Some(password_file)) if is_name(&username) => {
                Some(Account { username, password_file })
            }
            (Some(_), Some(_)) => {
                return Err(
                    origins.error("redfish.username", "is empty, or has a colon or control characters")
                );
            }
            _ => {
                let message = "username and password_file belong together: set both or neither";
                return Err(origins.error("redfish", message));
            }
        };
        let ca_file = match (self.ca_file, self.insecure) {
            (Some(file), false) => Some(file),
            (None, true) => None,
            (Some(_), true) => {
                let message = "insecure = true checks no certificate: remove it, or ca_file";
                return Err(origins.error("redfish.insecure", message));
            }
            (None, false) => {
                let message = "name the file that the BMC's certificate is checked by, or set insecure = true: \
                               whoever is between then reads the password";
                return Err(origins.error("redfish.ca_file", message));
            }
        };
        Ok(Some(Redfish { url, account, ca_file, interval }))
    }
}

fn interval(given: Option<u64>, default: u64) -> Result<Duration, String> {
    within(given, default, MIN_INTERVAL_MS, MAX_INTERVAL_MS).map(Duration::from_millis)
}

/// Basic authentication parts name and password by a colon.
fn is_name(username: &str) -> bool {
    !username.is_empty() && !username.contains(':') && !username.chars().any(char::is_control)
}

/// A URL may carry a password: what is wrong is told without it.
fn bmc_url(url: &str) -> Result<String, String> {
    let wrong = || "is not a URL like \"https://bmc.example.org\"".to_owned();
    let uri = url.parse::<Uri>().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if authority.as_str().contains('@') {
        return Err("has an account in it: use username and password_file".to_owned());
    }
    if uri.scheme_str() != Some("https") {
        return Err("is not https://".to_owned());
    }
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
        return Err("has a path: what is read is found below /redfish/v1".to_owned());
    }
    Ok(format!("https://{authority}"))
}
