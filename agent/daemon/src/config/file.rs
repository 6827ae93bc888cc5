//! The configuration file's keys, and the checks that turn them into a [`Config`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tonic::codegen::http::Uri;
use wattmill_protocol::config_file::{ConfigError, Origins};

use super::meters::{DcmiKeys, HwmonKeys, RedfishKeys};
use super::{Attribution, Bandwidth, Config, EstimateWatts, Gpus, LogFormat, MAX_INTERVAL, Metering};
use crate::attribution::WHOLE_HOST_PPM;
use crate::cpus::CpuSet;
use crate::device::units::UnitKind;

/// Longest name of a node in bytes.
const MAX_NAME_BYTES: usize = 253;
/// Least spool: a few segments, so that dropping the oldest leaves something.
const MIN_SPOOL_BYTES: u64 = 4 << 20;
/// Most units with series of their own: some series each, and each is written to the ledger every window.
const MAX_TOP: u64 = 200;
/// Longest that a unit that ended keeps its series: it holds a place that long.
const MAX_RETENTION_SECONDS: u64 = 24 * 3_600;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    name: Option<String>,
    state_dir: Option<PathBuf>,
    machine_id_file: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    collector: Option<String>,
    insecure: bool,
    cpus: Option<String>,
    host_fraction: Option<f64>,
    sysfs_root: Option<PathBuf>,
    procfs_root: Option<PathBuf>,
    nvml_library: Option<String>,
    gpus: Option<GpusKey>,
    metering: MeteringKeys,
    estimate: EstimateKeys,
    hwmon: HwmonKeys,
    dcmi: DcmiKeys,
    redfish: RedfishKeys,
    attribution: AttributionKeys,
    spool: SpoolKeys,
    peak: PeakKeys,
    bandwidth: BandwidthKeys,
    worker: WorkerKeys,
    log: LogKeys,
    traces: TracesKeys,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum GpusKey {
    Word(String),
    List(Vec<String>),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MeteringKeys {
    interval_ms: Option<u64>,
    gpu_interval_ms: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct EstimateKeys {
    idle_watts: Option<f64>,
    full_watts: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AttributionKeys {
    by: Vec<String>,
    top: Option<u64>,
    retention_s: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct SpoolKeys {
    max_bytes: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PeakKeys {
    flops: BTreeMap<String, f64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct BandwidthKeys {
    storage_read: Option<f64>,
    storage_write: Option<f64>,
    network: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WorkerKeys {
    path: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LogKeys {
    format: LogFormat,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TracesKeys {
    endpoint: Option<String>,
}

impl File {
    pub(super) fn checked(self, origins: &Origins) -> Result<Config, ConfigError> {
        let wrong = |key: &'static str, message: String| origins.error(key, message);
        let folder = |key: &'static str, value: Option<PathBuf>, default: &str| match value {
            Some(value) if value.as_os_str().is_empty() => Err(wrong(key, "is empty".to_owned())),
            value => Ok(value.unwrap_or_else(|| PathBuf::from(default))),
        };
        let sysfs_root = folder("sysfs_root", self.sysfs_root, "/sys")?;
        let online = CpuSet::online(&sysfs_root);
        let cpus = self.cpus.as_deref().map(|text| cpus(text, &online)).transpose();
        let cpus = cpus.map_err(|message| wrong("cpus", message))?;
        let host_fraction_ppm = host_fraction_ppm(self.host_fraction, cpus.as_ref(), &online)
            .map_err(|message| wrong("host_fraction", message))?;
        let collector = self.collector.map(|url| collector(url, self.insecure)).transpose();
        let traces = self.traces.endpoint.map(|url| collector_url(&url).map(|_| url)).transpose();
        let nvml_explicit = self.nvml_library.as_ref().is_some_and(|l| !l.is_empty());
        let nvml_library = self.nvml_library.unwrap_or_else(|| "libnvidia-ml.so.1".to_owned());
        Ok(Config {
            name: name(self.name).map_err(|message| wrong("name", message))?,
            state_dir: folder("state_dir", self.state_dir, "/var/lib/wattmill/agent")?,
            machine_id_file: folder("machine_id_file", self.machine_id_file, "/etc/machine-id")?,
            listen: listen(self.listen.as_deref()).map_err(|message| wrong("listen", message))?,
            advertise: self.advertise.map(advertise).transpose().map_err(|m| wrong("advertise", m))?,
            collector: collector.map_err(|message| wrong("collector", message))?,
            cpus: cpus.unwrap_or(online),
            host_fraction_ppm,
            sysfs_root,
            procfs_root: folder("procfs_root", self.procfs_root, "/proc")?,
            nvml_library: (!nvml_library.is_empty()).then(|| nvml_library.into()),
            nvml_explicit,
            gpus: gpus(self.gpus).map_err(|message| wrong("gpus", message))?,
            metering: self.metering.checked(origins)?,
            estimate: self.estimate.checked(origins)?,
            hwmon: self.hwmon.checked(origins)?,
            dcmi: self.dcmi.checked(origins)?,
            redfish: self.redfish.checked(origins)?,
            attribution: self.attribution.checked(origins)?,
            spool_max_bytes: within(self.spool.max_bytes, 64 << 20, MIN_SPOOL_BYTES, 1 << 40)
                .map_err(|message| wrong("spool.max_bytes", message))?,
            peak_flops: peak_flops(self.peak.flops).map_err(|message| wrong("peak.flops", message))?,
            bandwidth: self.bandwidth.checked(origins)?,
            worker_path: self.worker.path.unwrap_or_else(default_worker),
            log_format: self.log.format,
            traces_endpoint: traces.map_err(|message| wrong("traces.endpoint", message))?,
        })
    }
}

impl MeteringKeys {
    fn checked(self, origins: &Origins) -> Result<Metering, ConfigError> {
        let interval = within(self.interval_ms, 1_000, 100, MAX_INTERVAL.as_millis() as u64)
            .map_err(|message| origins.error("metering.interval_ms", message))?;
        let gpu = within(self.gpu_interval_ms, 100.min(interval), 10, interval)
            .map_err(|message| origins.error("metering.gpu_interval_ms", message))?;
        Ok(Metering { interval: Duration::from_millis(interval), gpu_interval: Duration::from_millis(gpu) })
    }
}

impl EstimateKeys {
    fn checked(self, origins: &Origins) -> Result<Option<EstimateWatts>, ConfigError> {
        let (idle_watts, full_watts) = match (self.idle_watts, self.full_watts) {
            (None, None) => return Ok(None),
            (Some(idle), Some(full)) => (idle, full),
            _ => {
                let message = "idle_watts and full_watts belong together: set both or neither";
                return Err(origins.error("estimate", message));
            }
        };
        if !(0.0..=1e6).contains(&idle_watts) {
            let message = format!("{idle_watts} is not between 0 and 1000000");
            return Err(origins.error("estimate.idle_watts", message));
        }
        if !(full_watts <= 1e6 && full_watts >= idle_watts) {
            let message = format!("{full_watts} is less than idle_watts, or more than 1000000");
            return Err(origins.error("estimate.full_watts", message));
        }
        Ok(Some(EstimateWatts { idle_watts, full_watts }))
    }
}

impl AttributionKeys {
    fn checked(self, origins: &Origins) -> Result<Option<Attribution>, ConfigError> {
        let top = within(self.top, 20, 1, MAX_TOP).map_err(|m| origins.error("attribution.top", m))?;
        let retention = within(self.retention_s, 300, 0, MAX_RETENTION_SECONDS)
            .map_err(|message| origins.error("attribution.retention_s", message))?;
        let kinds = self.by.iter().map(|word| unit_kind(word)).collect::<Result<_, _>>();
        let kinds = kinds.map_err(|message| origins.error("attribution.by", message))?;
        // At most MAX_TOP: it fits.
        let attribution = Attribution { kinds, top: top as usize, retention: Duration::from_secs(retention) };
        Ok(Some(attribution).filter(|attribution| !attribution.kinds.is_empty()))
    }
}

impl BandwidthKeys {
    fn checked(self, origins: &Origins) -> Result<Bandwidth, ConfigError> {
        let positive = |key: &'static str, value: Option<f64>| match value {
            Some(value) if !(value.is_finite() && value > 0.0) => {
                let message = format!("{value} is not a positive number of bytes per second");
                Err(origins.error(key, message))
            }
            value => Ok(value),
        };
        Ok(Bandwidth {
            storage_read: positive("bandwidth.storage_read", self.storage_read)?,
            storage_write: positive("bandwidth.storage_write", self.storage_write)?,
            network: positive("bandwidth.network", self.network)?,
        })
    }
}

pub(super) fn within(value: Option<u64>, default: u64, least: u64, most: u64) -> Result<u64, String> {
    let value = value.unwrap_or(default);
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{value} is not between {least} and {most}"))
    }
}

fn unit_kind(word: &str) -> Result<UnitKind, String> {
    UnitKind::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(|| {
        let words = UnitKind::ALL.map(UnitKind::as_str).join(", ");
        format!("{word:?} is none of {words}")
    })
}

fn name(given: Option<String>) -> Result<String, String> {
    let name = given.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(format!("{name:?} is not 1 to {MAX_NAME_BYTES} bytes without control characters"));
    }
    Ok(name)
}

fn listen(given: Option<&str>) -> Result<SocketAddr, String> {
    let text = given.unwrap_or("127.0.0.1:9766");
    text.parse().map_err(|_| format!("{text:?} is not an address like \"127.0.0.1:9766\" or \"[::]:9766\""))
}

fn advertise(text: String) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|p| p > 0)) {
        Ok(text)
    } else {
        Err(format!("{text:?} is not host:port"))
    }
}

fn cpus(text: &str, online: &CpuSet) -> Result<CpuSet, String> {
    let cpus: CpuSet = text.parse().map_err(|e: crate::cpus::InvalidCpuSet| e.to_string())?;
    let absent = cpus.difference(online);
    if absent.is_empty() { Ok(cpus) } else { Err(format!("CPU {absent} is not online ({online} are)")) }
}

fn host_fraction_ppm(given: Option<f64>, cpus: Option<&CpuSet>, online: &CpuSet) -> Result<u32, String> {
    let fraction = match (given, cpus) {
        (Some(fraction), _) => fraction,
        (None, Some(cpus)) => cpus.len() as f64 / online.len().max(1) as f64,
        (None, None) => 1.0,
    };
    if !(0.0..=1.0).contains(&fraction) {
        return Err(format!("{fraction} is not between 0 and 1"));
    }
    // At most a million: it fits.
    Ok((fraction * f64::from(WHOLE_HOST_PPM)).round() as u32)
}

fn collector_url(url: &str) -> Result<Uri, String> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some() && uri.port_u16().is_some());
    let uri = uri.ok_or_else(|| format!("{url:?} is not a URL like \"http://127.0.0.1:4317\""))?;
    match uri.scheme_str() {
        Some("http") => Ok(uri),
        Some("https") => Err("TLS is not supported yet: use http://".to_owned()),
        _ => Err(format!("{url:?} is not a URL like \"http://127.0.0.1:4317\"")),
    }
}

fn collector(url: String, insecure: bool) -> Result<String, String> {
    let uri = collector_url(&url)?;
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loopback || insecure {
        Ok(url)
    } else {
        Err(format!(
            "plain text to {host} may be read and forged on the way: set insecure = true to allow it"
        ))
    }
}

fn gpus(key: Option<GpusKey>) -> Result<Gpus, String> {
    match key {
        None => Ok(Gpus::All),
        Some(GpusKey::Word(word)) if word == "all" => Ok(Gpus::All),
        Some(GpusKey::Word(word)) => Err(format!("{word:?} is neither \"all\" nor a list of UUIDs")),
        Some(GpusKey::List(uuids)) => Ok(Gpus::Listed(uuids)),
    }
}

fn peak_flops(flops: BTreeMap<String, f64>) -> Result<BTreeMap<String, f64>, String> {
    match flops.iter().find(|(_, value)| !(value.is_finite() && **value > 0.0)) {
        Some((device, value)) => Err(format!("{device}: {value} is not a positive number of FLOP/s")),
        None => Ok(flops),
    }
}

/// Programs of one installation stand beside each other.
fn default_worker() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("wattmill-worker")
}
