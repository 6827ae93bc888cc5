//! `wattmill-agent check`: what was found on this host, what is missing, why, and how to mend it.
//!
//! Invariant: it looks and changes nothing, and may run beside an agent.

mod meters;
mod network;
mod report;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::config::Config;
use crate::device::estimate::Model;
use crate::device::nvml::NvmlBackend;
use crate::device::rapl::{self, Zone};
use crate::device::units::{self, Interface, Survey, UnitKind};
use crate::device::{Answer, Scope};
pub use report::{Finding, Status, configuration, json, passed, table};

/// How long a device or a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The udev rule that lets the group wattmill read RAPL, where `make install` and packages put it.
const RULE: &str = "/usr/lib/udev/rules.d/60-wattmill.rules";
/// What installs NVML.
const NVML_PACKAGES: &str = "install the driver's library: libnvidia-ml1 (Debian, non-free), libnvidia-compute-NNN of the \
                             driver's version (Ubuntu), libnvidia-ml (NVIDIA's repository for Fedora and RHEL)";

/// Looks at everything that the configuration names.
pub fn run(config: &Config) -> Vec<Finding> {
    let (zones, rapl_error) = rapl::discover(&config.sysfs_root.join("class/powercap"));
    let mut findings = vec![state_dir(&config.state_dir), cpus(config)];
    findings.push(rapl(&zones, rapl_error));
    findings.push(estimate(config, &zones));
    findings.push(nvml(config));
    findings.push(meters::hwmon_gpus(config));
    findings.push(meters::board(config));
    findings.push(meters::dcmi(config));
    findings.push(meters::redfish(config));
    findings.push(attribution(config));
    findings.push(network::listen(config));
    findings.push(network::collector(config));
    findings.push(worker(config));
    findings
}

fn state_dir(folder: &Path) -> Finding {
    // The agent makes the folder where it may.
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let probe = existing.join(format!(".wattmill-check-{}", std::process::id()));
    match std::fs::write(&probe, b"") {
        Ok(()) => {
            // What cannot be removed now is removed by nobody: say nothing of it.
            let _ = std::fs::remove_file(&probe);
            let what = if existing == folder { "is writable" } else { "can be made" };
            Finding::new("state", Status::Ok, format!("{} {what}", folder.display()), "")
        }
        Err(error) => {
            let mend = format!(
                "for the user that runs the agent (this is user {}): install -d -m 750 -o wattmill -g wattmill {}; \
                 as a service systemd makes it; or set state_dir",
                rustix::process::geteuid().as_raw(),
                folder.display()
            );
            Finding::new("state", Status::Failed, format!("{}: {error}", existing.display()), mend)
        }
    }
}

fn cpus(config: &Config) -> Finding {
    let detail =
        format!("{} of the host's, {:.1} % of its energy", config.cpus, config.host_fraction() * 100.0);
    Finding::new("cpus", Status::Ok, detail, "")
}

fn rapl(zones: &[Zone], error: Option<crate::device::ReadError>) -> Finding {
    let names: Vec<&str> = zones.iter().map(|zone| zone.name.as_str()).collect();
    match error {
        Some(error) if error.reason == "permission" => {
            let mend = if Path::new(RULE).exists() {
                format!(
                    "the udev rule is there ({RULE}): udevadm control --reload && udevadm trigger \
                     --subsystem-match=powercap --action=change, and run the agent and this command in the group \
                     wattmill (sudo -u wattmill wattmill-agent check); without udev give the service \
                     AmbientCapabilities=CAP_DAC_READ_SEARCH"
                )
            } else {
                format!(
                    "install the udev rule that lets the group wattmill read it (packaging/udev/60-wattmill.rules to \
                     {RULE}; make install does) and run the agent in that group; without udev give the service \
                     AmbientCapabilities=CAP_DAC_READ_SEARCH"
                )
            };
            Finding::new("rapl", Status::Failed, error.message, mend)
        }
        Some(error) => {
            let mend = "see the kernel's log (dmesg) for intel_rapl; modprobe -r intel_rapl_msr && modprobe \
                        intel_rapl_msr loads it anew";
            Finding::new("rapl", Status::Failed, error.message, mend)
        }
        None if zones.is_empty() => {
            let mend = "on bare metal: modprobe intel_rapl_msr; a VM has none";
            Finding::new("rapl", Status::Absent, "no CPU energy counters on this host", mend)
        }
        None => Finding::new("rapl", Status::Ok, format!("zones {}", names.join(", ")), ""),
    }
}

fn estimate(config: &Config, zones: &[Zone]) -> Finding {
    if zones.iter().any(|zone| zone.scope == Some(Scope::Cpu)) {
        return Finding::new("estimate", Status::Absent, "not needed: the CPU is measured", "");
    }
    let Model { power, origin } = Model::new(config.estimate, &config.procfs_root);
    let (idle, full) = (power.idle_watts, power.full_watts);
    let detail = format!("CPU energy is estimated: {idle:.1} W idle, {full:.1} W busy ({origin})");
    let mend = if config.estimate.is_some() {
        ""
    } else {
        "measure both at the wall and set [estimate] idle_watts and full_watts"
    };
    Finding::new("estimate", Status::Ok, detail, mend)
}

fn nvml(config: &Config) -> Finding {
    let Some(library) = config.nvml_library.clone() else {
        return Finding::new("nvml", Status::Absent, "turned off by nvml_library = \"\"", "");
    };
    let name = library.display().to_string();
    let wanted = config.wanted_gpus().nvml;
    let mut backend = NvmlBackend::new(&library, config.nvml_explicit, wanted, config.metering);
    match in_time(PATIENCE, move || backend.read(true)) {
        None => {
            let detail = format!("{name} does not answer within {} s", PATIENCE.as_secs());
            Finding::new(
                "nvml",
                Status::Failed,
                detail,
                "the driver hangs: see the kernel's log for Xid errors",
            )
        }
        Some(Answer::Absent | Answer::Unchanged) => {
            if meters::has_nvidia_gpu(&config.sysfs_root) {
                let detail = format!("no {name}, and the host has NVIDIA GPUs: they are not metered");
                let mend =
                    format!("{NVML_PACKAGES}; or nvml_library = \"\" where they are not to be metered");
                return Finding::new("nvml", Status::Warning, detail, mend);
            }
            Finding::new(
                "nvml",
                Status::Absent,
                format!("no {name}, and no NVIDIA GPUs on this host's PCI"),
                "",
            )
        }
        Some(Answer::Failed(error)) => {
            let mend = match error.reason {
                "library" => {
                    let otherwise = "set nvml_library to its path; without GPUs remove nvml_library and gpus";
                    return Finding::new(
                        "nvml",
                        Status::Failed,
                        error.message,
                        format!("{NVML_PACKAGES}; or {otherwise}"),
                    );
                }
                "driver_not_loaded" => "modprobe nvidia",
                "permission" => "let the agent's user open /dev/nvidia* (ls -l shows their group)",
                "version_mismatch" => "the driver was updated under a running kernel module: reboot",
                _ => "nvidia-smi and the kernel's log (dmesg) say more",
            };
            Finding::new("nvml", Status::Failed, error.message, mend)
        }
        Some(Answer::Reading(reading)) => {
            let lost = reading.gpus.iter().filter(|gpu| !gpu.up).count();
            let gpus = reading.gpus.iter();
            let state =
                |lost: Option<&str>| lost.map_or_else(String::new, |reason| format!(" LOST ({reason})"));
            let shown: Vec<String> =
                gpus.map(|g| format!("{} {}{}", g.model, g.uuid, state(g.lost))).collect();
            let mut detail = format!("{} GPUs: {}", shown.len(), shown.join(", "));
            let mut failures = reading.failures;
            failures.sort_unstable();
            failures.dedup();
            if !failures.is_empty() {
                detail = format!("{detail}; not all could be read ({})", failures.join(", "));
            }
            let unmetered = shown.is_empty() && meters::has_nvidia_gpu(&config.sysfs_root);
            let (status, mend) = match (lost > 0 || !failures.is_empty(), unmetered) {
                (true, _) => (Status::Failed, "see the kernel's log for Xid errors, or correct `gpus`"),
                (false, true) => {
                    (Status::Warning, "the driver shows none of this host's GPUs: nvidia-smi says more")
                }
                (false, false) => (Status::Ok, ""),
            };
            Finding::new("nvml", status, detail, mend)
        }
    }
}

fn attribution(config: &Config) -> Finding {
    const WHAT: &str = "attribution";
    let Some(attribution) = &config.attribution else {
        let mend = "to tell services, containers, pods and jobs apart: [attribution] by = [\"systemd\", \"container\"]";
        return Finding::new(WHAT, Status::Absent, "energy is not split by program", mend);
    };
    let Survey { hierarchy, units, failures } = match units::survey(&config.sysfs_root, attribution) {
        Ok(survey) => survey,
        Err(error) => {
            let mend = "mount cgroup2 at /sys/fs/cgroup; in a container pass the host's in, with sysfs_root set to \
                        where its /sys is; or remove [attribution]";
            return Finding::new(WHAT, Status::Failed, error.message, mend);
        }
    };
    let interface = match hierarchy.interface {
        Interface::Unified => "cgroup v2",
        Interface::Legacy => "cgroup v1 (cpuacct)",
    };
    let count = |kind: &UnitKind| format!("{} {}", units.get(kind).unwrap_or(&0), kind.as_str());
    let counts: Vec<String> = attribution.kinds.iter().map(count).collect();
    let place = hierarchy.root.display();
    let detail = format!("{interface} at {place}: {}; top {}", counts.join(", "), attribution.top);
    let (status, mend) = match failures.first() {
        Some(&"permission") => (
            Status::Warning,
            "some cgroups cannot be read: their joules go to what holds them; let the agent's user read them",
        ),
        Some(&"too_many") => (
            Status::Warning,
            "more cgroups than are read: name fewer kinds in attribution.by, the outer ones",
        ),
        Some(_) => (
            Status::Warning,
            "some cgroups tell no CPU time, and their joules go to what holds them: see the kernel's log (dmesg)",
        ),
        None if units.is_empty() && hierarchy.interface == Interface::Legacy => (
            Status::Warning,
            "no unit has a cgroup of its own: with cgroup v1 systemd makes them where DefaultCPUAccounting=yes is \
             set in system.conf; cgroup v2 has them always",
        ),
        None if units.is_empty() => (
            Status::Ok,
            "nothing that runs is of these kinds; where there should be: does the agent see the host's cgroups, \
             or those of its container alone?",
        ),
        None => (Status::Ok, ""),
    };
    Finding::new(WHAT, status, detail, mend)
}

/// What comes of `look` within `patience`; a thread that hangs is left behind.
fn in_time<T: Send + 'static>(patience: Duration, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        // Nobody listens any more after the time is up.
        let _ = sender.send(look());
    });
    receiver.recv_timeout(patience).ok()
}

fn worker(config: &Config) -> Finding {
    let path = &config.worker_path;
    let detail = format!("{}", path.display());
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file);
    if metadata.as_ref().is_some_and(|file| file.permissions().mode() & 0o111 != 0) {
        Finding::new("worker", Status::Ok, detail, "")
    } else if metadata.is_some() && config.collector.is_some() {
        let mend = format!("chmod 755 {detail}");
        Finding::new(
            "worker",
            Status::Failed,
            format!("{detail} is no program: this node cannot train"),
            mend,
        )
    } else if config.collector.is_some() {
        let mend = "install wattmill-worker beside wattmill-agent, or set [worker] path";
        Finding::new("worker", Status::Failed, format!("{detail} is missing: this node cannot train"), mend)
    } else {
        Finding::new(
            "worker",
            Status::Absent,
            format!("{detail} is missing; not needed without a collector"),
            "",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let fixed = format!(
            "state_dir = {0:?}\nsysfs_root = {0:?}\nprocfs_root = {0:?}\nlisten = \"127.0.0.1:0\"\n",
            folder.path()
        );
        std::fs::write(&path, fixed + text).unwrap();
        let config = Config::load(Some(&path)).unwrap();
        (folder, config)
    }

    fn find<'a>(findings: &'a [Finding], what: &str) -> &'a Finding {
        findings.iter().find(|f| f.what == what).unwrap()
    }

    #[test]
    fn a_bare_vm_passes_on_an_estimate() {
        let (folder, config) = config("");
        let findings = run(&config);
        assert!(passed(&findings), "{findings:?}");
        assert_eq!(find(&findings, "rapl").status, Status::Absent);
        assert!(find(&findings, "estimate").mend.contains("idle_watts"));
        assert!(table(&findings).contains("-> measure both"));
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "nothing but the configuration is left behind");
        let json: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
        assert_eq!(
            (json["passed"].as_bool(), json["findings"][2]["status"].as_str()),
            (Some(true), Some("absent"))
        );
    }

    #[test]
    fn what_was_asked_for_and_fails_fails() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let (_folder, config) = config(&format!(
            "collector = \"http://127.0.0.1:{port}\"\nnvml_library = \"/nonexistent/libnvidia-ml.so.1\"\n[worker]\npath = \"/nonexistent/worker\"\n"
        ));
        let findings = run(&config);
        assert!(!passed(&findings));
        for what in ["collector", "nvml", "worker"] {
            let finding = find(&findings, what);
            assert!(finding.status == Status::Failed && !finding.mend.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn a_permission_names_its_remedy() {
        let error = crate::device::ReadError::new("permission", "energy_uj: Permission denied");
        let finding = rapl(&[], Some(error));
        assert_eq!(finding.status, Status::Failed);
        assert!(finding.mend.contains("CAP_DAC_READ_SEARCH") && finding.mend.contains("udev"));
    }
}
