//! RAPL, from a powercap tree that the test moves.
//!
//! Proves: what a zone counted is shown to the microjoule, over wraps of ranges that differ; the node's energy
//! is packages and memory alone; a counter that starts again is a gap of its own and no energy.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::Agent;

/// Zones as the kernel names them: folder, name, range, first reading, watts.
///
/// Ranges are small, so that packages wrap several times in a test, and more than what the agent believes
/// that a zone can draw in seconds (500 W at least), so that a slow machine does not hide a wrap.
const ZONES: [(&str, &str, u64, u64, u64); 8] = [
    ("intel-rapl:0", "package-0", 1_999_999_999, 1_999_000_000, 400),
    ("intel-rapl:0:0", "core", 65_532_610_987, 7, 311),
    ("intel-rapl:0:1", "dram", 262_143_328_850, 262_143_300_000, 31),
    ("intel-rapl:1", "package-1", 2_499_999_999, 1_234_567_890, 350),
    ("intel-rapl:1:0", "core", 65_532_610_987, 65_532_610_000, 211),
    ("intel-rapl:1:1", "dram", 3_000_000_000, 2_999_999_999, 23),
    ("intel-rapl:2", "psys", 65_532_610_987, 0, 499),
    ("intel-rapl-mmio:0", "package-0", 1_999_999_999, 1_999_000_000, 400),
];
/// Zone's folder → the name that the agent gives it. Whatever is not here must not be shown.
const SHOWN: [(&str, &str); 7] = [
    ("intel-rapl:0", "package-0"),
    ("intel-rapl:0:0", "package-0/core"),
    ("intel-rapl:0:1", "package-0/dram"),
    ("intel-rapl:1", "package-1"),
    ("intel-rapl:1:0", "package-1/core"),
    ("intel-rapl:1:1", "package-1/dram"),
    ("intel-rapl:2", "psys"),
];
/// How often counters move.
const STEP: Duration = Duration::from_millis(10);
const ZONE: &str = "wattmill_cpu_energy_joules_total";
const NODE: &str = "wattmill_node_energy_joules_total";

/// The powercap tree, and how much each zone has drawn.
struct Powercap {
    files: BTreeMap<&'static str, PathBuf>,
    raw: BTreeMap<&'static str, u64>,
    drawn: BTreeMap<&'static str, u64>,
    wraps: u32,
}

impl Powercap {
    /// As the kernel shows it: subzones inside their packages, and a link to each in `class/powercap`.
    fn new(sysfs: &Path) -> Self {
        let class = sysfs.join("class/powercap");
        fs::create_dir_all(&class).unwrap();
        let mut powercap =
            Self { files: BTreeMap::new(), raw: BTreeMap::new(), drawn: BTreeMap::new(), wraps: 0 };
        for (folder, name, range, first, _) in ZONES {
            let kind = folder.split(':').next().unwrap();
            let mut device = sysfs.join("devices/virtual/powercap").join(kind);
            if folder.matches(':').count() == 2 {
                device.push(folder.rsplit_once(':').unwrap().0);
            }
            device.push(folder);
            fs::create_dir_all(&device).unwrap();
            symlink(&device, class.join(folder)).unwrap();
            for (file, text) in [
                ("name", name.to_owned()),
                ("max_energy_range_uj", range.to_string()),
                ("constraint_0_name", "long_term".to_owned()),
                ("constraint_0_power_limit_uw", "100000000".to_owned()),
                ("constraint_1_power_limit_uw", String::new()),
            ] {
                fs::write(device.join(file), text + "\n").unwrap();
            }
            powercap.files.insert(folder, device.join("energy_uj"));
            powercap.drawn.insert(folder, 0);
            powercap.set(folder, first);
        }
        powercap
    }

    /// A new reading. Renamed into its place: a reader sees the old one or the new one, as with the kernel's.
    fn set(&mut self, folder: &'static str, raw: u64) {
        let file = &self.files[folder];
        let new = file.with_extension("new");
        fs::write(&new, format!("{raw}\n")).unwrap();
        fs::rename(&new, file).unwrap();
        self.raw.insert(folder, raw);
    }

    /// Every zone draws its power for `millis`, and a bit that is no round number.
    fn draw(&mut self, millis: u64) {
        for (folder, _, range, _, watts) in ZONES {
            let microjoules = watts * millis * 1_000 + 13;
            let next = self.raw[folder] + microjoules;
            // The counter runs through 0 ..= range.
            self.wraps += u32::from(next > range);
            self.set(folder, next % (range + 1));
            *self.drawn.get_mut(folder).unwrap() += microjoules;
        }
    }

    /// Draws for `millis` at the zones' powers, and never faster: where the machine is busy elsewhere, later.
    fn load(&mut self, millis: u64) {
        let mut left = millis;
        let mut last = Instant::now();
        while left > 0 {
            std::thread::sleep(STEP);
            let passed = last.elapsed().min(4 * STEP);
            last = Instant::now();
            let step = u64::try_from(passed.as_millis()).unwrap().min(left);
            self.draw(step);
            left -= step;
        }
    }

    /// Whether a scrape shows exactly what was drawn.
    fn shown(&self, metrics: &Metrics) -> bool {
        SHOWN.iter().all(|(folder, zone)| {
            metrics.microjoules(ZONE, &[("zone", zone), ("source", "counter")]) == Some(self.drawn[folder])
        })
    }

    fn sum(&self, folders: &[&'static str]) -> Option<u64> {
        Some(folders.iter().map(|folder| self.drawn[folder]).sum())
    }
}

#[test]
fn energy_is_exact_over_wraps_and_a_reset_invents_nothing() {
    let mut powercap = None;
    let agent = Agent::start("rapl", |folder| {
        powercap = Some(Powercap::new(&folder.join("sys")));
        "[metering]\ninterval_ms = 100\n".to_owned()
    });
    let mut powercap = powercap.unwrap();
    agent.until("every zone begins at zero", |metrics| powercap.shown(metrics));

    powercap.load(8_000);
    assert!(powercap.wraps >= 7, "packages twice, memory and a core: {}", powercap.wraps);
    agent.until("all that was drawn is shown", |metrics| powercap.shown(metrics));
    let metrics = agent.windows(2);
    assert!(powercap.shown(&metrics), "and no more than that: {}", metrics.text);
    assert_eq!(metrics.all(ZONE).count(), SHOWN.len(), "no MMIO duplicate: {}", metrics.text);
    assert_eq!(metrics.all("wattmill_agent_gaps_total").count(), 0, "a wrap is no gap: {}", metrics.text);
    nodes_energy(&powercap, &metrics);

    // Both packages stand where a counter that goes back to 0 cannot have wrapped.
    let lost = powercap.raw["intel-rapl:0"];
    assert!((500_000_000..1_500_000_000).contains(&lost), "{lost}");
    let reset = [("device", "package-0"), ("reason", "reset")];
    powercap.set("intel-rapl:0", 0);
    agent.until("the reset is counted", |m| m.value("wattmill_agent_gaps_total", &reset) == Some(1.0));
    powercap.load(500);
    agent.until("energy after the reset is shown, and none for it", |metrics| powercap.shown(metrics));
    let metrics = agent.windows(2);
    assert!(powercap.shown(&metrics), "{}", metrics.text);
    assert_eq!(metrics.value("wattmill_agent_gaps_total", &reset), Some(1.0), "it is counted once");
    nodes_energy(&powercap, &metrics);
}

/// Packages are `cpu`, memory is `dram`, and nothing else counts: not cores, not the platform, not duplicates.
fn nodes_energy(powercap: &Powercap, metrics: &Metrics) {
    let node = |scope| metrics.microjoules(NODE, &[("scope", scope), ("source", "counter")]);
    assert_eq!(node("cpu"), powercap.sum(&["intel-rapl:0", "intel-rapl:1"]));
    assert_eq!(node("dram"), powercap.sum(&["intel-rapl:0:1", "intel-rapl:1:1"]));
    assert_eq!(metrics.all(NODE).count(), 2, "{}", metrics.text);
}
