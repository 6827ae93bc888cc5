//! Meters of the whole node: a program that prints what a BMC says by IPMI, and a BMC with a Redfish service.
//!
//! Proves: their energy is integrated, or counted, and is the node's for no scope; what goes wrong is told by its
//! reason, with what to do; the password is in no log, and an account that was refused is not tried again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wattmill_it_metering::bmc::{AUTHORIZATION, Bmc, PASSWORD, Page, USERNAME, fixture};
use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::{Agent, AgentFolder, program, run};

const ENERGY: &str = "wattmill_sensor_energy_joules_total";
const POWER: &str = "wattmill_sensor_power_watts";
const NODE: &str = "wattmill_node_energy_joules_total";
const METERING: &str = "[metering]\ninterval_ms = 200\n";

/// A program in place of ipmitool, which prints as that does what a file says.
fn ipmitool(folder: &Path) -> (PathBuf, String) {
    let (tool, watts) = (folder.join("ipmitool"), folder.join("watts"));
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = 'dcmi power reading' ] || exit 9\nwatts=$(cat {}) || exit 1\n\
         printf '\\n    Instantaneous power reading: %20s Watts\\n' \"$watts\"\n\
         printf '    Minimum during sampling period:  68 Watts\\n    Power reading state is:  activated\\n'\n",
        watts.display()
    );
    fs::write(&watts, "332").unwrap();
    fs::write(&tool, script).unwrap();
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let keys =
        format!("[dcmi]\ncommand = [{tool:?}, \"dcmi\", \"power\", \"reading\"]\ninterval_ms = 1000\n");
    (watts, keys)
}

fn energy(metrics: &Metrics, chip: &str, source: &str) -> Option<u64> {
    metrics.microjoules(ENERGY, &[("chip", chip), ("source", source)])
}

fn power(metrics: &Metrics, chip: &str) -> Option<f64> {
    metrics.value(POWER, &[("chip", chip)])
}

/// What counts for the node, which has an estimate alone.
fn scopes(metrics: &Metrics) -> Vec<(&str, &str)> {
    metrics.all(NODE).map(|series| (series.label("scope"), series.label("source"))).collect()
}

#[test]
fn dcmi_is_integrated_and_counts_for_no_scope() {
    let mut file = PathBuf::new();
    let agent = Agent::start("dcmi", |folder| {
        let (watts, keys) = ipmitool(folder);
        file = watts;
        keys + METERING
    });
    let up = |value: f64| {
        move |m: &Metrics| m.value("wattmill_agent_backend_up", &[("backend", "dcmi")]) == Some(value)
    };
    let metrics =
        agent.until("a second is integrated", |m| energy(m, "dcmi", "integrated") > Some(300_000_000));
    assert_eq!(power(&metrics, "dcmi"), Some(332.0));
    assert_eq!(scopes(&metrics), [("cpu", "estimate")], "{}", metrics.text);
    // A reading of a window's time takes no window with it: they close while the program runs once a second.
    assert!(agent.windows(3).value("wattmill_agent_backend_up", &[("backend", "host")]) == Some(1.0));

    fs::remove_file(&file).unwrap();
    agent.until("the program fails", up(0.0));
    let (before, after) = (agent.windows(1), agent.windows(2));
    assert_eq!(
        energy(&before, "dcmi", "integrated"),
        energy(&after, "dcmi", "integrated"),
        "it stands still"
    );
    assert_eq!(power(&after, "dcmi"), None, "unknown is not zero");
    let errors = [("backend", "dcmi"), ("reason", "missing")];
    assert!(after.value("wattmill_agent_sample_errors_total", &errors) > Some(0.0), "{}", after.text);
    fs::write(&file, "400").unwrap();
    agent.until("it answers again", |m| up(1.0)(m) && power(m, "dcmi") == Some(400.0));
    let gap = [("device", "dcmi/system"), ("reason", "unread")];
    agent.until("the gap is counted", |m| m.value("wattmill_agent_gaps_total", &gap) == Some(1.0));
}

/// Keys of an agent that asks `bmc`.
fn redfish(folder: &Path, bmc: &Bmc, password: &str, ca: &str) -> String {
    let file = folder.join("password");
    fs::write(&file, format!("{password}\nof the BMC in rack 4\n")).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    format!(
        "[redfish]\nurl = {:?}\nusername = {USERNAME:?}\npassword_file = {file:?}\nca_file = {:?}\ninterval_ms = 1000\n",
        bmc.url,
        fixture(ca),
    )
}

#[test]
fn redfish_is_integrated_and_counted_and_its_password_is_in_no_log() {
    let bmc = Bmc::start();
    bmc.environment(374.0, 12.5);
    // Both resources show one meter.
    bmc.power(374.0);
    let folder = AgentFolder::new("redfish", |folder| redfish(folder, &bmc, PASSWORD, "ca.pem") + METERING);
    let agent = Agent::start_with("redfish", folder, &[("RUST_LOG", "trace")]);
    agent.until("a second is integrated", |m| energy(m, "redfish", "integrated") > Some(350_000_000));
    bmc.environment(380.0, 12.501);
    let metrics =
        agent.until("its own counter is read", |m| energy(m, "redfish", "counter") == Some(3_600_000_000));
    assert_eq!(metrics.all(ENERGY).map(|series| series.label("sensor")).collect::<Vec<_>>(), ["1", "1"]);
    assert_eq!(scopes(&metrics), [("cpu", "estimate")], "{}", metrics.text);
    agent.until("its power is shown", |m| power(m, "redfish") == Some(380.0));
    assert_eq!(bmc.asked("/redfish/v1/Chassis/1/Power"), 0, "the newer resource tells");

    let log = agent.process.log().join("\n");
    assert!(
        log.contains("Redfish: power is measured") && log.contains("HEADERS ARE REDACTED"),
        "requests are logged"
    );
    for secret in [PASSWORD, AUTHORIZATION, AUTHORIZATION.trim_start_matches("Basic ")] {
        assert!(!log.contains(secret), "{secret:?} is in the log");
    }
    assert_eq!(bmc.refused(), 0);
}

#[test]
fn an_account_that_was_refused_is_not_tried_again_until_its_password_changes() {
    let bmc = Bmc::start();
    bmc.power(200.0);
    let mut file = PathBuf::new();
    let agent = Agent::start("redfish", |folder| {
        file = folder.join("password");
        redfish(folder, &bmc, "a guess", "ca.pem") + METERING
    });
    let refused = [("backend", "redfish"), ("reason", "credentials")];
    agent.until("three readings fail", |m| {
        m.value("wattmill_agent_sample_errors_total", &refused) >= Some(3.0)
    });
    assert_eq!(bmc.refused(), 1, "BMCs lock accounts that fail too often");
    let new = file.with_extension("new");
    fs::write(&new, PASSWORD).unwrap();
    fs::rename(new, &file).unwrap();
    agent.until("the new password is taken", |m| power(m, "redfish") == Some(200.0));
    assert_eq!(bmc.refused(), 1);
}

/// The finding on `what`: status, detail, what to do.
fn finding(keys: impl FnOnce(&Path) -> String, what: &str) -> (String, String, String) {
    let folder = AgentFolder::new("checked", keys);
    let mut command = Command::new(program("wattmill-agent"));
    let output = run(command.args(["check", "--json", "--config"]).arg(&folder.config));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = json["findings"].as_array().unwrap().iter().find(|f| f["what"] == what).unwrap();
    assert!(!finding.to_string().contains(PASSWORD), "{finding}");
    let text = |key: &str| finding[key].as_str().unwrap().to_owned();
    (text("status"), text("detail"), text("mend"))
}

#[test]
fn check_tells_what_a_bmc_answers_and_how_to_mend_it() {
    let bmc = Bmc::start();
    let (status, detail, mend) = finding(|folder| redfish(folder, &bmc, PASSWORD, "ca.pem"), "redfish");
    assert!(
        status == "failed" && detail.contains("no chassis tells of its power") && mend.contains("[dcmi]")
    );
    bmc.power(344.0);
    let found = finding(|folder| redfish(folder, &bmc, PASSWORD, "ca.pem"), "redfish");
    assert_eq!(found, ("ok".to_owned(), "1/0 344 W".to_owned(), String::new()));

    let wrong = |keys: &dyn Fn(&Path) -> String, said: &str, remedy: &str| {
        let (status, detail, mend) = finding(keys, "redfish");
        assert_eq!(status, "failed", "{detail}");
        assert!(detail.contains(said) && mend.contains(remedy), "{detail:?} -> {mend:?}");
    };
    wrong(&|folder| redfish(folder, &bmc, "wrong", "ca.pem"), "401", "redfish.password_file");
    let before = bmc.refused();
    wrong(&|folder| redfish(folder, &bmc, PASSWORD, "other-ca.pem"), "UnknownIssuer", "redfish.ca_file");
    wrong(
        &|folder| redfish(folder, &bmc, PASSWORD, "none.pem"),
        "none.pem: No such file",
        "is there such a file",
    );
    let other = Bmc::start_at("127.0.0.2");
    let elsewhere = |folder: &Path| redfish(folder, &other, PASSWORD, "ca.pem");
    wrong(&elsewhere, "not valid for", "must name the host of redfish.url");
    assert_eq!((bmc.refused(), other.refused()), (before, 0), "who is not trusted is sent no request");

    bmc.put(
        "/redfish/v1/Chassis/1/Power",
        Page::Status(307, format!("Location: {}/redfish/v1/Other\r\n", bmc.url)),
    );
    bmc.json("/redfish/v1/Other", r#"{"PowerControl":[{"PowerConsumedWatts":1}]}"#);
    wrong(&|folder| redfish(folder, &bmc, PASSWORD, "ca.pem"), "307", "");
    assert_eq!(bmc.asked("/redfish/v1/Other"), 0, "no redirect is followed");
    bmc.json("/redfish/v1/Chassis/1/Power", &format!("{{\"a\":\"{}\"}}", "a".repeat(2 << 20)));
    wrong(&|folder| redfish(folder, &bmc, PASSWORD, "ca.pem"), "limit", "");
    bmc.json("/redfish/v1/Chassis/1/Power", "<html>");
    wrong(&|folder| redfish(folder, &bmc, PASSWORD, "ca.pem"), "not JSON", "");
}

#[test]
fn check_warns_of_what_others_may_read() {
    let bmc = Bmc::start();
    bmc.power(344.0);
    let (status, detail, mend) = finding(
        |folder| {
            let keys = redfish(folder, &bmc, PASSWORD, "other-ca.pem");
            fs::set_permissions(folder.join("password"), Permissions::from_mode(0o644)).unwrap();
            let kept: Vec<&str> = keys.lines().filter(|line| !line.starts_with("ca_file")).collect();
            kept.join("\n") + "\ninsecure = true\n"
        },
        "redfish",
    );
    assert_eq!(status, "warning");
    assert!(detail.contains("not checked (insecure)") && mend.contains("chmod 640"), "{detail} -> {mend}");
}

#[test]
fn check_tells_what_the_program_says() {
    let (status, detail, _) = finding(|folder| ipmitool(folder).1, "dcmi");
    assert_eq!((status.as_str(), detail.as_str()), ("ok", "system 332 W"));
    let missing = |_: &Path| "[dcmi]\ncommand = [\"/nonexistent/ipmitool\", \"dcmi\"]\n".to_owned();
    let (status, detail, mend) = finding(missing, "dcmi");
    assert_eq!(status, "failed");
    assert!(
        detail.contains("/nonexistent/ipmitool") && mend.contains("install ipmitool"),
        "{detail} -> {mend}"
    );
    let (status, detail, _) = finding(|_| String::new(), "dcmi");
    assert_eq!((status.as_str(), detail.as_str()), ("absent", "not configured"));
}

#[test]
fn check_names_other_gpus_and_sensors() {
    let keys = |folder: &Path| {
        let sysfs = folder.join("sys");
        super::hwmon::amd(&sysfs, "card1", 250);
        super::hwmon::power_meter(&sysfs, 480);
        String::new()
    };
    let (status, detail, _) = finding(keys, "hwmon_gpus");
    let gpu = "1 GPUs: AMD INSTINCT MI210 AMD-43a21ba8fd2ce3b5 (integrated)";
    assert_eq!((status.as_str(), detail.as_str()), ("ok", gpu));
    let (status, detail, _) = finding(keys, "hwmon");
    assert_eq!((status.as_str(), detail.as_str()), ("ok", "power_meter@ACPI000D:00/power1"));
    let (status, detail, _) = finding(|_| "[hwmon]\ngpus = false\n".to_owned(), "hwmon_gpus");
    assert!(status == "absent" && detail.contains("hwmon.gpus"));
}
