//! The agent's configuration: what may be written, and what it means once checked.
//!
//! Invariant: a [`Config`] holds only values that can work; everything that is wrong is found before a
//! port is bound, and the error names the file and the key.

mod file;
mod meters;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wattmill_protocol::config_file::{self, ConfigError};

use crate::attribution::WHOLE_HOST_PPM;
use crate::cpus::CpuSet;
use crate::device::hwmon;
use crate::device::units::classify::Kinds;
use file::File;
pub use meters::{Account, CommandLine, Dcmi, Hwmon, Redfish};

/// Where the configuration stands unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/wattmill/agent.toml";

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node for people.
    pub name: String,
    /// Folder of the identity, the ledger and the spool.
    pub state_dir: PathBuf,
    /// File of the host's identity.
    pub machine_id_file: PathBuf,
    /// Address of `/metrics`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` where Prometheus reaches `/metrics`; `None` when it is not to be scraped from afar.
    pub advertise: Option<String>,
    /// The collector, `http://host:port`; without one the agent only meters.
    pub collector: Option<String>,
    /// CPUs that are the node's.
    pub cpus: CpuSet,
    /// The host's share that the node accounts for, in parts per million.
    pub host_fraction_ppm: u32,
    /// The kernel's `/sys`.
    pub sysfs_root: PathBuf,
    /// The kernel's `/proc`.
    pub procfs_root: PathBuf,
    /// Which NVML to load; `None` for no GPUs.
    pub nvml_library: Option<PathBuf>,
    /// Whether the library was named, so that its absence is a failure.
    pub nvml_explicit: bool,
    /// Which GPUs are the node's.
    pub gpus: Gpus,
    /// How often energy is accounted for, and GPU power read.
    pub metering: Metering,
    /// Measured watts of the host, for where no meter is.
    pub estimate: Option<EstimateWatts>,
    /// What is read of the kernel's hwmon.
    pub hwmon: Hwmon,
    /// The whole node's power by IPMI.
    pub dcmi: Option<Dcmi>,
    /// The whole node's power by Redfish.
    pub redfish: Option<Redfish>,
    /// Which programs' energy is told apart; `None` for none.
    pub attribution: Option<Attribution>,
    /// Bound of the telemetry that waits on disk.
    pub spool_max_bytes: u64,
    /// Peak FLOP/s by device, over what a probe finds.
    pub peak_flops: BTreeMap<String, f64>,
    /// What the host's storage and network can move.
    pub bandwidth: Bandwidth,
    /// The program that trains.
    pub worker_path: PathBuf,
    /// How to log.
    pub log_format: LogFormat,
    /// Where Wattmill's own traces go.
    pub traces_endpoint: Option<String>,
}

/// Which GPUs are the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// Every one of the host.
    All,
    /// Those with these UUIDs.
    Listed(Vec<String>),
}

impl Gpus {
    /// Whether the GPU is the node's.
    pub fn includes(&self, uuid: &str) -> bool {
        match self {
            Self::All => true,
            Self::Listed(uuids) => uuids.iter().any(|u| u == uuid),
        }
    }
}

/// GPUs of the node, by who reads them; none where that is turned off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedGpus {
    /// NVIDIA's.
    pub nvml: Gpus,
    /// AMD's and Intel's.
    pub hwmon: Gpus,
}

impl WantedGpus {
    /// Whether the GPU is the node's.
    pub fn includes(&self, uuid: &str) -> bool {
        if hwmon::gpus::is_one(uuid) { self.hwmon.includes(uuid) } else { self.nvml.includes(uuid) }
    }
}

/// Longest metering window. Energy counters are read once a window and must not go round unseen: the
/// smallest range sold is 65.5 kJ (AMD), which 2 kW, the most that is believed of a zone, fill in 33 s; so one
/// reading may fail and its window end late. It also lets a watchdog of 30 s see three windows.
pub const MAX_INTERVAL: Duration = Duration::from_secs(10);

/// How often things are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metering {
    /// Length of a metering window.
    pub interval: Duration,
    /// How often GPU power is read to integrate it.
    pub gpu_interval: Duration,
}

/// Which programs' energy is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// What is a unit of its own; not empty.
    pub kinds: Kinds,
    /// Most units that have series of their own.
    pub top: usize,
    /// How long a unit that ended keeps its series.
    pub retention: Duration,
}

/// Measured power of a host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EstimateWatts {
    /// With nothing to do.
    pub idle_watts: f64,
    /// With every CPU busy.
    pub full_watts: f64,
}

/// What a host can move, in bytes per second; `None` where nobody said.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Bandwidth {
    /// Read from its storage.
    pub storage_read: Option<f64>,
    /// Written to its storage.
    pub storage_write: Option<f64>,
    /// Over its network, one way.
    pub network: Option<f64>,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

impl Config {
    /// Reads the configuration. A missing default file means defaults; a file that was asked for must be.
    ///
    /// # Errors
    /// When a file cannot be read, or a key or value is wrong.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        let (file, origins) = config_file::load::<File>(explicit, Path::new(DEFAULT_PATH))?;
        file.checked(&origins)
    }

    /// GPUs of the node, by who reads them.
    pub fn wanted_gpus(&self) -> WantedGpus {
        let (nvml, hwmon) = match &self.gpus {
            Gpus::All => (Gpus::All, Gpus::All),
            Gpus::Listed(uuids) => {
                let (hwmon, nvml) = uuids.iter().cloned().partition(|uuid| hwmon::gpus::is_one(uuid));
                (Gpus::Listed(nvml), Gpus::Listed(hwmon))
            }
        };
        let none = || Gpus::Listed(Vec::new());
        WantedGpus {
            nvml: if self.nvml_library.is_some() { nvml } else { none() },
            hwmon: if self.hwmon.gpus { hwmon } else { none() },
        }
    }

    /// Folder of the spool.
    pub fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// The host's share as a ratio.
    pub fn host_fraction(&self) -> f64 {
        f64::from(self.host_fraction_ppm) / f64::from(WHOLE_HOST_PPM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::units::UnitKind;

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = folder.path().join("sys/devices/system/cpu");
        std::fs::create_dir_all(&sysfs).unwrap();
        std::fs::write(sysfs.join("online"), "0-7\n").unwrap();
        let path = folder.path().join("agent.toml");
        let root = folder.path().join("sys");
        std::fs::write(&path, format!("sysfs_root = {root:?}\n{text}")).unwrap();
        Config::load(Some(&path)).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_meter_the_whole_host() {
        let config = load("").unwrap();
        assert_eq!(config.cpus.to_string(), "0-7");
        assert_eq!(config.host_fraction_ppm, 1_000_000);
        assert_eq!(config.listen.to_string(), "127.0.0.1:9766");
        assert_eq!(config.gpus, Gpus::All);
        assert_eq!(config.nvml_library.as_deref(), Some(Path::new("libnvidia-ml.so.1")));
        assert!(config.collector.is_none() && !config.name.is_empty());
        assert_eq!(config.metering.interval, Duration::from_secs(1));
    }

    #[test]
    fn a_share_of_the_cpus_is_a_share_of_the_host() {
        assert_eq!(load("cpus = \"0-1\"").unwrap().host_fraction_ppm, 250_000);
        assert_eq!(load("cpus = \"0-2\"").unwrap().host_fraction_ppm, 375_000);
        assert_eq!(load("cpus = \"0-1\"\nhost_fraction = 0.5").unwrap().host_fraction_ppm, 500_000);
        assert_eq!(load("nvml_library = \"\"").unwrap().nvml_library, None);
        assert_eq!(load("gpus = []").unwrap().gpus, Gpus::Listed(vec![]));
    }

    #[test]
    fn node_meters_are_off_until_asked_for_and_show_no_secret() {
        let config = load("").unwrap();
        assert_eq!((&config.dcmi, &config.redfish), (&None, &None));
        let text = "[dcmi]\ncommand = [\"ipmitool\", \"-P\", \"secret\"]\n[redfish]\nurl = \"https://bmc:8443/\"\n\
                    username = \"monitor\"\npassword_file = \"/etc/p\"\nca_file = \"/etc/ca.pem\"\n";
        let config = load(text).unwrap();
        assert!(!format!("{config:?}").contains("secret"), "{config:?}");
        let redfish = config.redfish.unwrap();
        assert_eq!((redfish.url.as_str(), redfish.interval), ("https://bmc:8443", Duration::from_secs(10)));
        assert_eq!(config.dcmi.unwrap().command.arguments(), ["-P", "secret"]);
    }

    #[test]
    fn listed_gpus_are_parted_by_who_reads_them() {
        let listed = |uuids: &[&str]| Gpus::Listed(uuids.iter().map(|uuid| (*uuid).to_owned()).collect());
        let text = "gpus = [\"GPU-1\", \"AMD-2\", \"PCI-0000:03:00.0\"]";
        let wanted = load(text).unwrap().wanted_gpus();
        assert_eq!(wanted.nvml, listed(&["GPU-1"]));
        assert_eq!(wanted.hwmon, listed(&["AMD-2", "PCI-0000:03:00.0"]));
        assert!(wanted.includes("AMD-2") && !wanted.includes("AMD-3") && !wanted.includes("GPU-2"));
        let off = load("nvml_library = \"\"").unwrap().wanted_gpus();
        assert!(off.includes("AMD-3") && !off.includes("GPU-2"));
        let off = load("[hwmon]\ngpus = false").unwrap().wanted_gpus();
        assert!(!off.includes("AMD-3") && off.includes("GPU-2"));
    }

    #[test]
    fn programs_are_told_apart_where_that_is_asked_for() {
        assert_eq!(load("").unwrap().attribution, None);
        assert_eq!(load("[attribution]\nby = []\ntop = 5").unwrap().attribution, None);
        let attribution = load("[attribution]\nby = [\"pod\", \"slurm\", \"pod\"]").unwrap().attribution;
        let kinds = Kinds::from([UnitKind::Slurm, UnitKind::Pod]);
        let expected = Attribution { kinds, top: 20, retention: Duration::from_secs(300) };
        assert_eq!(attribution, Some(expected));
    }

    #[test]
    fn a_wrong_value_is_named_by_the_drop_in_that_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let drop_in = folder.path().join("conf.d/agent-10.toml");
        std::fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
        std::fs::write(&path, "[metering]\ninterval_ms = 500\n").unwrap();
        std::fs::write(&drop_in, "[metering]\ninterval_ms = 50\n").unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        let expected = format!("{}: metering.interval_ms: 50 is not between", drop_in.display());
        assert!(error.starts_with(&expected), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("listen = \"9766\"", "listen: \"9766\" is not an address like"),
            ("cpus = \"0-9\"", "cpus: CPU 8-9 is not online (0-7 are)"),
            ("cpus = \"x\"", "cpus: \"x\" is not a list of CPUs"),
            ("host_fraction = 1.5", "host_fraction: 1.5 is not between 0 and 1"),
            ("[metering]\ninterval_ms = 50", "metering.interval_ms: 50 is not between 100 and 10000"),
            ("[metering]\ninterval_ms = 60000", "metering.interval_ms: 60000 is not between 100 and 10000"),
            ("[estimate]\nidle_watts = 5.0", "estimate: idle_watts and full_watts"),
            ("[estimate]\nidle_watts = 50.0\nfull_watts = 5.0", "estimate.full_watts: 5 is less than"),
            ("collector = \"10.0.0.1:4317\"", "collector: \"10.0.0.1:4317\" is not a URL like"),
            ("collector = \"http://10.0.0.1:4317\"", "collector: plain text to 10.0.0.1"),
            ("collector = \"https://10.0.0.1:4317\"", "collector: TLS"),
            ("advertise = \"host\"", "advertise: \"host\" is not host:port"),
            ("gpus = \"some\"", "gpus: \"some\" is neither \"all\" nor a list"),
            ("[peak]\nflops = { cpu = -1.0 }", "peak.flops: cpu"),
            ("[spool]\nmax_bytes = 5", "spool.max_bytes: 5 is not"),
            ("state_dir = \"\"", "state_dir: is empty"),
            ("[hwmon]\ninterval_ms = 100", "hwmon.interval_ms: 100 is not between 1000 and 60000"),
            ("[dcmi]\ncommand = []", "dcmi.command: is no list like"),
            ("[dcmi]\ninterval_ms = 1", "dcmi.interval_ms: 1 is not between"),
            ("[redfish]\nusername = \"u\"", "redfish: nothing is asked without url"),
            ("[redfish]\nurl = \"http://bmc\"", "redfish.url: is not https://"),
            ("[redfish]\nurl = \"https://bmc/redfish\"", "redfish.url: has a path"),
            ("[redfish]\nurl = \"https://u:secret@bmc\"", "redfish.url: has an account in it"),
            ("[redfish]\nurl = \"https://bmc\"", "redfish.ca_file: name the file"),
            (
                "[redfish]\nurl = \"https://bmc\"\nca_file = \"a\"\ninsecure = true",
                "redfish.insecure: insecure",
            ),
            ("[redfish]\nurl = \"https://bmc\"\ninsecure = true\nusername = \"u\"", "redfish: username and"),
            ("name = \"a\\nb\"", "name: "),
            ("lisen = 1", "agent.toml:2: unknown field `lisen`"),
            ("[attribution]\nby = [\"unit\"]", "attribution.by: \"unit\" is none of slurm, pbs, pod"),
            ("[attribution]\nby = [\"pod\"]\ntop = 0", "attribution.top: 0 is not between 1 and 200"),
            ("[attribution]\nretention_s = 86401", "attribution.retention_s: 86401 is not between"),
            ("[attribution]\nunits = true", "unknown field `units`"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{text}: {error}");
        }
        assert!(load("collector = \"http://10.0.0.1:4317\"\ninsecure = true").is_ok());
        assert!(load("collector = \"http://[::1]:4317\"").is_ok());
        assert!(load("collector = \"http://localhost:4317\"").is_ok());
        assert!(Config::load(Some(Path::new("/nonexistent/agent.toml"))).is_err());
    }
}
