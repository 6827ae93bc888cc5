//! `wattmill-agent check`.
//!
//! Proves: what is missing is told from what is broken, by words, JSON and exit code; what is broken names the
//! file and what to do.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wattmill_it_metering::process::{AgentFolder, program, run};

/// What two calls, as a table and as JSON, said.
struct Checked {
    code: i32,
    table: String,
    json: Value,
}

impl Checked {
    fn finding(&self, what: &str) -> (&str, &str, &str) {
        let findings = self.json["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["what"] == what).unwrap();
        let text = |key: &str| finding[key].as_str().unwrap();
        // The table says the same.
        for text in [text("detail"), text("mend")] {
            assert!(self.table.contains(text), "{text:?} is not in:\n{}", self.table);
        }
        (text("status"), text("detail"), text("mend"))
    }
}

fn check(folder: &AgentFolder, agent: &Path, user: Option<u32>) -> Checked {
    let call = |more: &[&str]| {
        let mut command = Command::new(agent);
        command.args(["check", "--config"]).arg(&folder.config).args(more);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let output = run(&mut command);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let ((code, table), (json_code, json)) = (call(&[]), call(&["--json"]));
    assert_eq!(code, json_code);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["passed"].as_bool(), Some(code == 0), "{table}");
    for finding in json["findings"].as_array().unwrap() {
        let amiss = ["warning", "failed"].contains(&finding["status"].as_str().unwrap());
        assert!(!amiss || finding["mend"] != "", "what is amiss says what to do: {finding}");
    }
    Checked { code, table, json }
}

fn checked(keys: impl FnOnce(&Path) -> String) -> Checked {
    check(&AgentFolder::new("checked", keys), &program("wattmill-agent"), None)
}

/// One package with memory; its energy file.
pub(crate) fn powercap(sysfs: &Path) -> PathBuf {
    for (zone, name) in [("intel-rapl:0", "package-0"), ("intel-rapl:0/intel-rapl:0:0", "dram")] {
        let folder = sysfs.join("class/powercap").join(zone);
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in [("name", name), ("energy_uj", "1000"), ("max_energy_range_uj", "262143328850")] {
            fs::write(folder.join(file), text).unwrap();
        }
    }
    sysfs.join("class/powercap/intel-rapl:0/energy_uj")
}

#[test]
fn a_host_without_meters_passes_on_an_estimate() {
    let checked = checked(|_| String::new());
    assert_eq!(checked.code, 0, "{}", checked.table);
    assert_eq!(checked.finding("rapl").0, "absent");
    let (status, detail, mend) = checked.finding("estimate");
    assert!(status == "ok" && detail.contains(" W idle") && mend.contains("idle_watts"), "{}", checked.table);
    assert_eq!(checked.finding("nvml").0, "absent");
    assert_eq!(checked.json["worst"], "ok", "what is absent is no worse");
    assert!(checked.table.contains(" 0 to look at, 0 failed"), "{}", checked.table);
}

#[test]
fn a_gpu_that_is_left_out_is_a_warning_and_passes() {
    let folder = AgentFolder::new("checked", |folder| {
        let device = folder.join("sys/bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("vendor"), "0x10de\n").unwrap();
        fs::write(device.join("class"), "0x030200\n").unwrap();
        String::new()
    });
    // The library by its default: nobody asked for it by name.
    let keys = fs::read_to_string(&folder.config).unwrap();
    fs::write(&folder.config, keys.replace("nvml_library = \"\"\n", "")).unwrap();
    let checked = check(&folder, &program("wattmill-agent"), None);
    let (status, detail, mend) = checked.finding("nvml");
    if !detail.starts_with("no libnvidia-ml.so.1") {
        eprintln!("skipped: this host has NVIDIA's library");
        return;
    }
    assert!(status == "warning" && mend.contains("libnvidia-ml1"), "{}", checked.table);
    assert!(checked.table.contains("WARN"), "{}", checked.table);
    assert_eq!((checked.code, &checked.json["worst"]), (0, &"warning".into()), "a warning passes");
}

#[test]
fn a_port_in_use_is_an_agents_or_a_failure() {
    let agent = wattmill_it_metering::process::Agent::start("listening", |_| String::new());
    let beside = checked(|_| format!("listen = {:?}\n", agent.address));
    let (status, detail, _) = beside.finding("listen");
    assert!(status == "ok" && detail.contains("an agent that runs already"), "{}", beside.table);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    // It listens, and is no agent: it closes whatever comes.
    std::thread::spawn(move || other.incoming().for_each(drop));
    let taken = checked(|_| format!("listen = \"{address}\"\n"));
    let (status, _, mend) = taken.finding("listen");
    assert!(status == "failed" && mend.contains(&format!(":{}", address.port())), "{}", taken.table);
    assert_eq!((taken.code, &taken.json["worst"]), (1, &"failed".into()));
}

#[test]
fn rapl_that_can_be_read_makes_the_estimate_needless() {
    let checked = checked(|folder| {
        powercap(&folder.join("sys"));
        String::new()
    });
    assert_eq!(checked.code, 0, "{}", checked.table);
    assert_eq!(checked.finding("rapl"), ("ok", "zones package-0, package-0/dram", ""));
    assert_eq!(checked.finding("estimate").0, "absent");
}

#[test]
fn rapl_that_may_not_be_read_names_the_file_and_the_remedy() {
    let mut energy = PathBuf::new();
    let folder = AgentFolder::new("checked", |folder| {
        energy = powercap(&folder.join("sys"));
        String::new()
    });
    fs::set_permissions(&energy, Permissions::from_mode(0o000)).unwrap();
    // Root may read everything: be nobody then, with a copy of the program where nobody may run it.
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut agent = program("wattmill-agent");
    if root {
        let copy = folder.folder.path().join("wattmill-agent");
        fs::copy(&agent, &copy).unwrap();
        agent = copy;
        fs::set_permissions(folder.folder.path(), Permissions::from_mode(0o777)).unwrap();
    }
    let checked = check(&folder, &agent, root.then_some(65_534));
    assert_eq!(checked.code, 1, "{}", checked.table);
    let (status, detail, mend) = checked.finding("rapl");
    assert_eq!(status, "failed");
    assert!(detail.contains(&*energy.to_string_lossy()) && detail.contains("ermission"), "{detail}");
    for remedy in ["udev", "group", "CAP_DAC_READ_SEARCH"] {
        assert!(mend.contains(remedy), "{mend}");
    }
}

#[test]
fn a_library_that_was_asked_for_and_is_missing_fails() {
    let mut path = String::new();
    let checked = checked(|folder| {
        path = folder.join("none/libnvidia-ml.so.1").display().to_string();
        format!("nvml_library = {path:?}\n")
    });
    assert_eq!(checked.code, 1, "{}", checked.table);
    let (status, detail, mend) = checked.finding("nvml");
    assert!(
        status == "failed" && detail.contains(&path) && mend.contains("nvml_library"),
        "{}",
        checked.table
    );
}

#[test]
fn a_library_that_is_there_names_its_gpus() {
    let checked = checked(|folder| super::nvml::install(folder, 100.0).1);
    assert_eq!(checked.code, 0, "{}", checked.table);
    let (status, detail, _) = checked.finding("nvml");
    assert!(status == "ok" && detail.starts_with("2 GPUs: NVIDIA H100"), "{}", checked.table);
}

#[test]
fn a_mistake_in_the_configuration_is_78_and_in_the_call_64() {
    let folder = AgentFolder::new("checked", |_| "intervall = 3\n".to_owned());
    let agent = program("wattmill-agent");
    let output = run(Command::new(&agent).args(["check", "--config"]).arg(&folder.config));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(78) && text.contains("`intervall`"), "{output:?}");
    let output = run(Command::new(&agent).args(["check", "--json", "--config"]).arg(&folder.config));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), json["passed"].as_bool()), (Some(78), Some(false)));
    assert!(
        json["findings"][0]["what"] == "configuration" && json.to_string().contains("intervall"),
        "{json}"
    );
    assert_eq!(run(Command::new(&agent).arg("chekc")).status.code(), Some(64));
}
