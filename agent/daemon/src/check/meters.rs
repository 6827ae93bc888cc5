//! Findings on the meters beside RAPL and NVML: other GPUs, board sensors, the whole node's.

use std::path::Path;
use std::time::Duration;

use super::{Finding, PATIENCE, Status, in_time};
use crate::config::Config;
use crate::device::dcmi::Dcmi;
use crate::device::hwmon::{board, gpus::HwmonGpus, gpus::Passed};
use crate::device::redfish::Redfish;
use crate::device::{Answer, Class, ReadError, Reading};

/// How long a BMC may take: it is a slow computer, and answers several requests.
const BMC_PATIENCE: Duration = Duration::from_secs(20);
/// Readings in which a slow BMC's chassis are found.
const BMC_READINGS: usize = 8;

pub(super) fn hwmon_gpus(config: &Config) -> Finding {
    const WHAT: &str = "hwmon_gpus";
    if !config.hwmon.gpus {
        return Finding::new(WHAT, Status::Absent, "turned off by hwmon.gpus = false", "");
    }
    let mut backend = HwmonGpus::new(&config.sysfs_root, config.wanted_gpus().hwmon, config.metering);
    let answer = in_time(PATIENCE, move || {
        let answer = backend.read(true);
        (answer, backend.passed().to_vec())
    });
    let hung = "a GPU's driver hangs: see the kernel's log";
    let Some((answer, passed)) = answer else {
        return Finding::new(
            WHAT,
            Status::Failed,
            format!("no answer within {} s", PATIENCE.as_secs()),
            hung,
        );
    };
    let passed: Vec<String> = passed.iter().map(|Passed { pci, why }| format!("; {pci}: {why}")).collect();
    let passed = passed.concat();
    match answer {
        Answer::Absent | Answer::Unchanged => {
            Finding::new(WHAT, Status::Absent, format!("no AMD or Intel GPUs that are metered{passed}"), "")
        }
        Answer::Failed(error) => {
            let mend = "see the kernel's log (dmesg) for amdgpu, i915 or xe, or set hwmon.gpus = false";
            Finding::new(WHAT, Status::Failed, error.message, mend)
        }
        Answer::Reading(reading) => {
            let gpus: Vec<String> =
                reading.gpus.iter().map(|gpu| describe(gpu.uuid.as_str(), &reading)).collect();
            let errors = errors(&reading);
            let detail = format!("{} GPUs: {}{errors}{passed}", gpus.len(), gpus.join(", "));
            let failed = !reading.failures.is_empty() || reading.gpus.iter().any(|gpu| !gpu.up);
            let mend = if failed { "see the kernel's log for its driver, or correct `gpus`" } else { "" };
            Finding::new(WHAT, if failed { Status::Failed } else { Status::Ok }, detail, mend)
        }
    }
}

fn errors(reading: &Reading) -> String {
    if reading.failures.is_empty() {
        String::new()
    } else {
        format!("; errors: {}", reading.failures.join(", "))
    }
}

fn describe(uuid: &str, reading: &Reading) -> String {
    let gpu = reading.gpus.iter().find(|gpu| gpu.uuid == uuid);
    let (model, lost) = gpu.map_or(("", None), |gpu| (gpu.model.as_str(), gpu.lost));
    let energy = reading.energy.iter().find(|energy| energy.meter.device == uuid);
    let how = match (lost, energy) {
        (Some(reason), _) => return format!("{model} {uuid} LOST ({reason})"),
        (None, None) => "no power".to_owned(),
        (None, Some(energy)) if energy.meter.class == Class::Module => {
            "power of the package, which counts for nothing".to_owned()
        }
        (None, Some(energy)) => energy.meter.source.as_str().to_owned(),
    };
    format!("{model} {uuid} ({how})")
}

pub(super) fn board(config: &Config) -> Finding {
    const WHAT: &str = "hwmon";
    if config.hwmon.sensors_interval.is_none() {
        return Finding::new(WHAT, Status::Absent, "turned off by hwmon.sensors = false", "");
    }
    let root = config.sysfs_root.clone();
    let Some((names, errors)) = in_time(PATIENCE, move || board::discover(&root)) else {
        let detail = format!("a sensor does not answer within {} s", PATIENCE.as_secs());
        return Finding::new(WHAT, Status::Failed, detail, "set hwmon.sensors = false");
    };
    let said: Vec<String> = errors.iter().map(|error| format!("; {error}")).collect();
    let denied = errors.iter().any(|error| error.reason == "permission");
    let mend = match (denied, errors.is_empty()) {
        (true, _) => {
            "let the group wattmill read the file, by a udev rule such as the second one of \
             packaging/udev/60-wattmill.rules"
        }
        (false, false) => {
            "see the kernel's log (dmesg) for the sensor's driver, or set hwmon.sensors = false"
        }
        (false, true) => "",
    };
    match (names.is_empty(), errors.is_empty()) {
        (true, true) => Finding::new(WHAT, Status::Absent, "no power sensors of boards or supplies", ""),
        (true, false) => Finding::new(WHAT, Status::Failed, said.concat().trim_start_matches("; "), mend),
        (false, whole) => {
            let status = if whole { Status::Ok } else { Status::Warning };
            Finding::new(WHAT, status, format!("{}{}", names.join(", "), said.concat()), mend)
        }
    }
}

pub(super) fn dcmi(config: &Config) -> Finding {
    const WHAT: &str = "dcmi";
    let Some(dcmi) = &config.dcmi else {
        return Finding::new(WHAT, Status::Absent, "not configured", "");
    };
    let mut backend = Dcmi::new(dcmi);
    node_meter(WHAT, in_time(BMC_PATIENCE, move || backend.read()), "", dcmi_mend)
}

fn dcmi_mend(error: &ReadError) -> &'static str {
    match error.reason {
        "missing" => {
            "install ipmitool or freeipmi-tools, and load ipmi_si and ipmi_devintf; or ask over the network \
             (ipmitool -I lanplus -H BMC -L USER -U NAME -f FILE dcmi power reading)"
        }
        "permission" => {
            "the agent may not open /dev/ipmi0, which lets whoever may do anything to the machine: better ask over \
             the network (-I lanplus -L USER), or use the udev rule that packaging/udev shows"
        }
        "credentials" => "correct the account in dcmi.command; the privilege USER is enough (-L USER)",
        "unreachable" | "timeout" => "is IPMI over LAN turned on in the BMC, and let through by firewalls?",
        "unsupported" => "this BMC has no DCMI power reading: try [redfish]",
        "inactive" | "blank" => "turn on power measurement in the BMC's settings",
        _ => "run the command by hand, as the agent's user",
    }
}

pub(super) fn redfish(config: &Config) -> Finding {
    const WHAT: &str = "redfish";
    let Some(redfish) = &config.redfish else {
        return Finding::new(WHAT, Status::Absent, "not configured", "");
    };
    let mut backend = Redfish::new(redfish);
    let answer = in_time(BMC_PATIENCE, move || {
        let mut answer = backend.read();
        for _ in 1..BMC_READINGS {
            if matches!(&answer, Answer::Reading(reading) if reading.sensors.is_empty()) {
                answer = backend.read();
            }
        }
        answer
    });
    let public = Redfish::password_is_public(redfish);
    let warning = match (redfish.ca_file.is_none(), public) {
        (true, _) => "; its certificate is not checked (insecure)",
        (false, true) => "; every user of this host may read the password file",
        (false, false) => "",
    };
    let mut finding = node_meter(WHAT, answer, warning, redfish_mend);
    if finding.status == Status::Ok && !warning.is_empty() {
        finding.status = Status::Warning;
    }
    if finding.mend.is_empty() {
        let chmod = "chgrp wattmill, chmod 640 the file redfish.password_file";
        let ca = "set redfish.ca_file to the CA of the BMC's certificate in place of insecure";
        finding.mend = match (redfish.ca_file.is_none(), public) {
            (true, true) => format!("{ca}; {chmod}"),
            (true, false) => ca.to_owned(),
            (false, true) => chmod.to_owned(),
            (false, false) => String::new(),
        };
    }
    finding
}

fn redfish_mend(error: &ReadError) -> &'static str {
    match error.reason {
        "certificate" => {
            "redfish.ca_file must hold the CA that signed the BMC's certificate, in PEM, and the certificate must \
             name the host of redfish.url"
        }
        "credentials" => {
            "correct redfish.username and the password in redfish.password_file; the role ReadOnly is enough"
        }
        "permission" => "let the agent read its files: chgrp wattmill, chmod 640",
        "missing" => "is there such a file, and a Redfish service at redfish.url?",
        "unreachable" => "is redfish.url right, and the BMC let through by firewalls?",
        "timeout" => "the BMC is slow: set redfish.interval_ms higher",
        "unsupported" => "this BMC shows no power by Redfish: try [dcmi]",
        _ => "ask redfish.url/redfish/v1/ by curl: does the BMC answer as Redfish says?",
    }
}

/// A meter of the whole node, by what it answered.
fn node_meter(
    what: &'static str,
    answer: Option<Answer>,
    warning: &str,
    mend: impl Fn(&ReadError) -> &'static str,
) -> Finding {
    match answer {
        None => {
            let detail = format!("no answer within {} s", BMC_PATIENCE.as_secs());
            Finding::new(what, Status::Failed, detail, "is the BMC alive?")
        }
        Some(Answer::Failed(error)) => {
            let mend = mend(&error);
            Finding::new(what, Status::Failed, format!("{}{warning}", error.message), mend)
        }
        Some(Answer::Absent | Answer::Unchanged) => Finding::new(what, Status::Absent, "nothing to read", ""),
        Some(Answer::Reading(reading)) => {
            let shown =
                |watts: Option<f64>| watts.map_or("no power".to_owned(), |watts| format!("{watts:.0} W"));
            let sensors = reading.sensors.iter().map(|s| format!("{} {}", s.id.sensor, shown(s.watts)));
            let errors = errors(&reading);
            let detail = format!("{}{errors}{warning}", sensors.collect::<Vec<_>>().join(", "));
            if reading.failures.is_empty() {
                Finding::new(what, Status::Ok, detail, "")
            } else {
                Finding::new(
                    what,
                    Status::Warning,
                    detail,
                    "some of it does not answer: is it in the BMC's own log?",
                )
            }
        }
    }
}

/// NVIDIA's number on PCI, and the class of display and 3D controllers.
const NVIDIA: &str = "0x10de";
const DISPLAY_CLASS: &str = "0x03";

/// Whether a GPU of NVIDIA's sits on PCI, with a driver or without.
pub(super) fn has_nvidia_gpu(sysfs_root: &Path) -> bool {
    let is_gpu = |folder: &Path| {
        let is = |file: &str, prefix: &str| {
            std::fs::read_to_string(folder.join(file)).is_ok_and(|text| text.starts_with(prefix))
        };
        is("vendor", NVIDIA) && is("class", DISPLAY_CLASS)
    };
    // Without PCI there are none.
    let devices = std::fs::read_dir(sysfs_root.join("bus/pci/devices")).into_iter().flatten().flatten();
    devices.into_iter().any(|device| is_gpu(&device.path()))
}
