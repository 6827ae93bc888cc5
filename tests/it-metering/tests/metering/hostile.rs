//! Names that others chose.
//!
//! Proves: whatever a chip, a zone, a cgroup, an interface or a mount is called, the page is one that Prometheus
//! takes, each name is on it and told from others, and none is longer than a bound.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::{Agent, AgentFolder};

/// Longest value of a label that foreign hands may have written: a unit's name, and a checksum.
const MAX_LABEL_BYTES: usize = 160;
const UNIT: &str = "wattmill_unit_energy_joules_total";
/// What units are called by their cgroups. One whose name is no text is no unit: systemd makes none.
const UNITS: [&str; 3] = ["qu\"ote.service", "back\\slash.service", "line\\x0aend.service"];
/// Names of a line that a kernel may show.
const NAMES: [&[u8]; 4] = [b"qu\"ote", b"back\\slash", b"not\xff\xfetext", b"plain"];

fn write(file: &Path, text: &[u8]) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// Everything whose name can be any: names of [`NAMES`], one with a line's end, and one of 10 kB.
fn host(root: &Path) {
    let sys = root.join("sys");
    let names: Vec<Vec<u8>> = (NAMES.iter().map(|name| name.to_vec()))
        .chain([b"line\nend".to_vec(), b"long".repeat(2_500)])
        .collect();
    for (number, name) in names.iter().enumerate() {
        let zone = sys.join(format!("class/powercap/intel-rapl:{number}"));
        write(&zone.join("name"), name);
        write(&zone.join("energy_uj"), b"1000");
        let chip = sys.join(format!("class/hwmon/hwmon{number}"));
        write(&chip.join("name"), format!("chip{number}").as_bytes());
        write(&chip.join("power1_average"), b"30000000");
        write(&chip.join("power1_label"), name);
        let other = sys.join(format!("class/hwmon/hwmon1{number}"));
        write(&other.join("name"), name);
        write(&other.join("power1_average"), b"30000000");
        // As long as a file's name may be.
        let name: Vec<u8> = name.iter().copied().take(240).collect();
        let cgroup = OsStr::from_bytes(&[&name[..], b".service"].concat()).to_owned();
        write(&sys.join("fs/cgroup/system.slice").join(cgroup).join("cpu.stat"), b"usage_usec 5\n");
    }
    write(&sys.join("fs/cgroup/cgroup.controllers"), b"cpu\n");
    let package = sys.join("class/powercap/intel-rapl:9");
    write(&package.join("name"), b"package-0");
    write(&package.join("energy_uj"), b"1000");
    proc(root, &names);
}

fn proc(root: &Path, names: &[Vec<u8>]) {
    write(&root.join("proc/stat"), b"cpu0 1 0 0 9 0 0 0 0 0 0\nbtime 5\n");
    let mut interfaces = b"Inter-|\n face |\n".to_vec();
    let mut mounts = Vec::new();
    for (number, name) in names.iter().enumerate() {
        if !name.contains(&b'\n') {
            interfaces.extend([&name[..], b": 7 0 0 0 0 0 0 0 8 0 0 0 0 0 0 0\n"].concat());
        }
        let name: Vec<u8> = name.iter().copied().take(240).collect();
        let folder = root.join("mnt").join(OsStr::from_bytes(&name));
        fs::create_dir_all(&folder).unwrap();
        // As the kernel writes a path: what parts fields and lines, and the backslash itself, in octal.
        let path = folder.as_os_str().as_bytes().iter().flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            other => vec![*other],
        });
        mounts.extend(format!("{number} 1 8:{number} / ").into_bytes());
        mounts.extend(path);
        mounts.extend(format!(" rw,relatime - ext4 /dev/sd{number} rw\n").into_bytes());
    }
    write(&root.join("proc/net/dev"), &interfaces);
    write(&root.join("proc/self/mountinfo"), &mounts);
}

/// Every cgroup computes, and the package draws for it.
fn compute(root: &Path, step: u64) {
    for entry in fs::read_dir(root.join("sys/fs/cgroup/system.slice")).unwrap() {
        let usage = format!("usage_usec {:09}\n", 1_000 + step * 10_000);
        fs::write(entry.unwrap().path().join("cpu.stat"), usage).unwrap();
    }
    let stat = format!("cpu0 {} 0 0 {} 0 0 0 0 0 0\nbtime 5\n", 1 + step * 8, 9 + step * 2);
    let energy = (1_000 + step * 1_000_000).to_string();
    for (file, text) in [("proc/stat", stat), ("sys/class/powercap/intel-rapl:9/energy_uj", energy)] {
        let new = root.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, root.join(file)).unwrap();
    }
}

/// Values of a label that end with `end`.
fn ending(metrics: &Metrics, name: &str, label: &str, end: &str) -> usize {
    metrics.all(name).filter(|series| series.label(label).ends_with(end)).count()
}

#[test]
fn whatever_things_are_called_the_page_is_one_and_bounded() {
    let folder = AgentFolder::new("hostile", |folder| {
        host(folder);
        format!(
            "procfs_root = {:?}\n[attribution]\nby = [\"systemd\"]\n\
             [metering]\ninterval_ms = 100\n",
            folder.join("proc").display().to_string()
        )
    });
    let agent = Agent::start_in("hostile", folder);
    let root = agent.folder.folder.path().to_owned();
    let mut step = 0;
    let metrics = agent.until("everything is shown", |metrics| {
        step += 1;
        compute(&root, step);
        let shown = |name| metrics.all(name).next().is_some();
        shown("wattmill_sensor_power_watts")
            && shown("wattmill_cpu_power_watts")
            && shown("wattmill_host_filesystem_size_bytes")
            && UNITS.iter().all(|end| ending(metrics, UNIT, "name", end) == 1)
    });
    assert_eq!(super::exposition::lint(&metrics.text), "", "{}", metrics.text);
    for series in &metrics.series {
        for (label, value) in &series.labels {
            assert!(value.len() <= MAX_LABEL_BYTES, "{}: {label} has {} bytes", series.name, value.len());
            assert!(!value.contains(char::is_control), "{}: {label}={value:?}", series.name);
        }
    }
    for (name, label) in [
        ("wattmill_host_filesystem_size_bytes", "mountpoint"),
        ("wattmill_host_network_receive_bytes_total", "interface"),
        ("wattmill_sensor_power_watts", "sensor"),
        ("wattmill_cpu_energy_joules_total", "zone"),
    ] {
        for end in ["qu\"ote", "back\\slash"] {
            assert_eq!(ending(&metrics, name, label, end), 1, "{name}: {end}\n{}", metrics.text);
        }
    }
    let filesystems = metrics.all("wattmill_host_filesystem_size_bytes").count();
    assert_eq!(filesystems, 6, "none hides another: {}", metrics.text);
    let interfaces = metrics.all("wattmill_host_network_receive_bytes_total").count();
    assert_eq!(interfaces, 5, "none hides another: {}", metrics.text);
}
