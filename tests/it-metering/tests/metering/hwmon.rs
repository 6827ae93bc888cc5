//! GPUs of AMD and Intel and sensors of boards, in a sysfs as the kernel makes it: devices in their places on the
//! bus, and links to them.
//!
//! Proves: such a GPU is one of the node's like NVIDIA's, loses no joules but those that nobody saw, and invents
//! none when it comes back; what is inside a CPU package or around the whole node counts for no scope.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::Agent;

const AMD: &str = "AMD-43a21ba8fd2ce3b5";
const INTEL: &str = "PCI-0000:03:00.0";
const ENERGY: &str = "wattmill_gpu_energy_joules_total";
const NODE: &str = "wattmill_node_energy_joules_total";
const SENSOR: &str = "wattmill_sensor_energy_joules_total";

/// A new content. Renamed into its place: a reader sees the old one or the new one, as with the kernel's.
fn set(file: &Path, text: &str) {
    try_set(file, text).unwrap();
}

fn try_set(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, format!("{text}\n"))?;
    fs::rename(&new, file)
}

/// A PCI device with its DRM device and sensors; the folder of the sensors.
fn device(
    sysfs: &Path,
    card: &str,
    address: &str,
    files: &[(&str, &str)],
    sensors: &[(&str, &str)],
) -> PathBuf {
    let device = sysfs.join("devices/pci0000:00").join(address);
    let hwmon = device.join("hwmon/hwmon4");
    for folder in
        [&hwmon, &device.join("drm").join(card), &sysfs.join("class/drm"), &device.join("driver/module")]
    {
        fs::create_dir_all(folder).unwrap();
    }
    files.iter().for_each(|(file, text)| set(&device.join(file), text));
    sensors.iter().for_each(|(file, text)| set(&hwmon.join(file), text));
    set(&device.join("driver/module/version"), "6.10.5");
    symlink(&device, device.join("drm").join(card).join("device")).unwrap();
    symlink(device.join("drm").join(card), sysfs.join("class/drm").join(card)).unwrap();
    hwmon
}

/// A card of AMD's for servers; the folder of its sensors.
pub(crate) fn amd(sysfs: &Path, card: &str, watts: u32) -> PathBuf {
    let address = "0000:c1:00.0";
    let uevent = format!("DRIVER=amdgpu\nPCI_CLASS=38000\nPCI_ID=1002:740F\nPCI_SLOT_NAME={address}");
    device(
        sysfs,
        card,
        address,
        &[
            ("uevent", &uevent),
            ("unique_id", "43a21ba8fd2ce3b5"),
            ("product_name", "AMD INSTINCT MI210"),
            ("gpu_busy_percent", "37"),
            ("mem_info_vram_used", "10800000"),
            ("mem_info_vram_total", "68702699520"),
        ],
        &[
            ("name", "amdgpu"),
            ("power1_average", &format!("{watts}000000")),
            ("power1_cap", "300000000"),
            ("power1_cap_default", "300000000"),
            ("power1_cap_max", "300000000"),
            ("temp1_input", "41000"),
            ("freq1_input", "1700000000"),
        ],
    )
}

/// The board's own meter, which contains all of the host.
pub(crate) fn power_meter(sysfs: &Path, watts: u32) -> PathBuf {
    let acpi = sysfs.join("devices/LNXSYSTM:00/ACPI000D:00");
    let hwmon = acpi.join("hwmon/hwmon1");
    for folder in [&hwmon, &sysfs.join("class/hwmon")] {
        fs::create_dir_all(folder).unwrap();
    }
    set(&hwmon.join("name"), "power_meter");
    set(&hwmon.join("power1_average"), &format!("{watts}000000"));
    symlink(&acpi, hwmon.join("device")).unwrap();
    symlink(&hwmon, sysfs.join("class/hwmon/hwmon1")).unwrap();
    hwmon.join("power1_average")
}

/// A card of Intel's whose counter moves as time passes.
pub(crate) struct Moving {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Moving {
    pub(crate) fn start(sysfs: &Path, card: &str, watts: u64) -> Self {
        let address = INTEL.trim_start_matches("PCI-");
        let uevent = format!("DRIVER=xe\nPCI_ID=8086:56C0\nPCI_SLOT_NAME={address}");
        let hwmon = device(
            sysfs,
            card,
            address,
            &[("uevent", &uevent)],
            &[
                ("name", "xe"),
                ("energy1_input", "1000000"),
                ("energy2_input", "500000"),
                ("power1_max", "150000000"),
                ("power1_rated_max", "150000000"),
                ("temp2_input", "52000"),
            ],
        );
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                let drawn = watts * u64::try_from(began.elapsed().as_micros()).unwrap();
                // The test's folder may have gone before this.
                if try_set(&hwmon.join("energy1_input"), &(1_000_000 + drawn).to_string()).is_err() {
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}

fn energy(metrics: &Metrics, uuid: &str, source: &str) -> Option<u64> {
    metrics.microjoules(ENERGY, &[("uuid", uuid), ("source", source)])
}

fn node(metrics: &Metrics, scope: &str, source: &str) -> Option<u64> {
    metrics.microjoules(NODE, &[("scope", scope), ("source", source)])
}

#[test]
fn an_amd_gpu_is_a_gpu_of_the_node_and_comes_back_without_inventing_joules() {
    let mut sysfs = PathBuf::new();
    let agent = Agent::start("amd", |folder| {
        sysfs = folder.join("sys");
        amd(&sysfs, "card1", 250);
        // Ten readings of it may fail, and it is lost for less: that it was is what breaks the integral.
        format!("gpus = [{AMD:?}]\n[metering]\ninterval_ms = 200\ngpu_interval_ms = 200\n")
    });
    let watts = |metrics: &Metrics| metrics.value("wattmill_gpu_power_watts", &[("uuid", AMD)]);
    let metrics = agent.until("a second's energy is integrated", |metrics| {
        energy(metrics, AMD, "integrated").is_some_and(|energy| energy > 250_000_000)
    });
    assert!(watts(&metrics).is_some_and(|watts| (watts - 250.0).abs() < 1e-3), "{}", metrics.text);
    assert_eq!(node(&metrics, "gpu", "integrated"), energy(&metrics, AMD, "integrated"), "its joules count");
    assert_eq!(metrics.all("wattmill_gpu_up").count(), 1);

    fs::remove_dir_all(sysfs.join("devices")).unwrap();
    fs::remove_file(sysfs.join("class/drm/card1")).unwrap();
    let up = |value: f64| move |m: &Metrics| m.value("wattmill_gpu_up", &[("uuid", AMD)]) == Some(value);
    agent.until("it is lost", up(0.0));
    let (before, after) = (agent.windows(1), agent.windows(2));
    assert_eq!(energy(&before, AMD, "integrated"), energy(&after, AMD, "integrated"), "it stands still");
    assert_eq!(watts(&after), None, "unknown is not zero");
    let lost = [("uuid", AMD), ("reason", "not_found")];
    assert_eq!(after.value("wattmill_gpu_lost_info", &lost), Some(1.0), "{}", after.text);

    // Back under another number, at twice the power: the time between is nobody's.
    amd(&sysfs, "card0", 500);
    agent.until("it is back", up(1.0));
    let gap = [("device", AMD), ("reason", "unread")];
    let back = agent.until("the gap is counted", |m| m.value("wattmill_agent_gaps_total", &gap) == Some(1.0));
    let grown = |from: &Metrics, to: &Metrics| {
        energy(to, AMD, "integrated").unwrap() - energy(from, AMD, "integrated").unwrap()
    };
    assert!(grown(&after, &back) < 500_000_000, "no more than a second of it");
    agent.until("it is integrated on", |metrics| grown(&back, metrics) > 100_000_000);
}

#[test]
fn an_intel_gpu_counts_by_its_counter_over_a_restart_of_the_agent() {
    let mut moving = None;
    let mut agent = Agent::start("intel", |folder| {
        moving = Some(Moving::start(&folder.join("sys"), "card0", 150));
        "[metering]\ninterval_ms = 200\n".to_owned()
    });
    let counted = |metrics: &Metrics| energy(metrics, INTEL, "counter");
    let first = agent.until("energy is counted", |metrics| counted(metrics) > Some(50_000_000));
    assert_eq!(node(&first, "gpu", "counter"), counted(&first), "its joules count");
    let limit = [("uuid", INTEL)];
    assert_eq!(first.value("wattmill_gpu_power_limit_watts", &limit), Some(150.0));
    agent.process.kill();
    let again = Agent::start_in("intel again", agent.folder);
    let second = again.until("the counter goes on", |metrics| {
        counted(metrics) > counted(&first) && metrics.value("wattmill_gpu_up", &limit) == Some(1.0)
    });
    let gaps = second.all("wattmill_agent_gaps_total").filter(|gap| gap.label("device") == INTEL);
    assert_eq!(gaps.count(), 0, "{}", second.text);
}

#[test]
fn what_is_inside_a_package_or_around_the_node_counts_for_no_scope() {
    let agent = Agent::start("apu", |folder| {
        let sysfs = folder.join("sys");
        super::check::powercap(&sysfs);
        let hwmon = amd(&sysfs, "card0", 45);
        set(&hwmon.join("in1_label"), "vddnb");
        power_meter(&sysfs, 480);
        "[metering]\ninterval_ms = 200\n".to_owned()
    });
    let module = |metrics: &Metrics| {
        metrics.microjoules(
            "wattmill_gpu_module_energy_joules_total",
            &[("uuid", AMD), ("source", "integrated")],
        )
    };
    let sensor = [("chip", "power_meter@ACPI000D:00"), ("sensor", "power1"), ("source", "integrated")];
    let metrics = agent.until("both are integrated", |metrics| {
        module(metrics) > Some(1_000_000) && metrics.microjoules(SENSOR, &sensor) > Some(480_000_000)
    });
    let scopes: Vec<&str> = metrics.all(NODE).map(|series| series.label("scope")).collect();
    assert_eq!(scopes, ["cpu", "dram"], "{}", metrics.text);
    assert_eq!(metrics.all(ENERGY).count(), 0, "nothing that could be summed with other GPUs' energy");
    let power = metrics.value("wattmill_sensor_power_watts", &sensor[..2]);
    assert_eq!(power, Some(480.0));
}
