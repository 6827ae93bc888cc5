//! GPUs in trees as the drivers of AMD and Intel make them.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use wattmill_protocol::Source;

use super::*;
use crate::device::gpu::{GpuReading, MAX_GPU_WATTS};
use crate::device::hwmon::gpu_metrics::tests::table;
use crate::device::{Class, EnergyReading, Scope};
use crate::window::Windows;

const METERING: Metering =
    Metering { interval: Duration::from_secs(1), gpu_interval: Duration::from_millis(100) };
const SLOT: &str = "0000:c1:00.0";

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(crate::fuzz::folder())
    }

    fn device(&self, card: &str) -> PathBuf {
        self.0.path().join("class/drm").join(card).join("device")
    }

    /// A card's files by their paths below `device`; `hwmon/` is that of its sensors.
    fn card(&self, card: &str, driver: &str, id: &str, slot: &str, files: &[(&str, &str)]) -> &Self {
        let uevent = format!("DRIVER={driver}\nPCI_CLASS=38000\nPCI_ID={id}\nPCI_SLOT_NAME={slot}\n");
        self.set(card, "uevent", uevent);
        files.iter().for_each(|(file, text)| self.set(card, file, text));
        self
    }

    fn set(&self, card: &str, file: &str, content: impl AsRef<[u8]>) {
        let file = self.device(card).join(file.replace("hwmon/", "hwmon/hwmon5/"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }

    fn remove(&self, card: &str) {
        fs::remove_dir_all(self.device(card).parent().unwrap()).unwrap();
    }

    fn gpus(&self, wanted: Gpus) -> HwmonGpus {
        HwmonGpus::new(self.0.path(), wanted, METERING)
    }
}

/// A card for servers, as amdgpu shows it.
fn mi210(tree: &Tree, card: &str, slot: &str, id: &str, microwatts: &str) {
    tree.card(
        card,
        "amdgpu",
        "1002:740F",
        slot,
        &[
            ("unique_id", id),
            ("product_name", "AMD INSTINCT MI210\n"),
            ("gpu_busy_percent", "37\n"),
            ("mem_info_vram_used", "1000\n"),
            ("mem_info_vram_total", "68702699520\n"),
            ("power/runtime_status", "active\n"),
            ("hwmon/name", "amdgpu\n"),
            ("hwmon/power1_average", microwatts),
            ("hwmon/power1_cap", "300000000\n"),
            ("hwmon/power1_cap_default", "300000000\n"),
            ("hwmon/power1_cap_min", "0\n"),
            ("hwmon/power1_cap_max", "300000000\n"),
            ("hwmon/temp1_input", "41000\n"),
            ("hwmon/temp2_input", "44000\n"),
            ("hwmon/freq1_input", "1700000000\n"),
        ],
    );
}

fn xe(tree: &Tree, card: &str, microjoules: &str) {
    tree.card(
        card,
        "xe",
        "8086:56C0",
        SLOT,
        &[
            ("hwmon/name", "xe\n"),
            ("hwmon/energy1_input", microjoules),
            ("hwmon/energy2_input", "77\n"),
            ("hwmon/power1_max", "0\n"),
            ("hwmon/power1_rated_max", "150000000\n"),
            ("hwmon/temp2_input", "52000\n"),
            ("tile0/gt0/freq0/act_freq", "1950\n"),
        ],
    );
}

fn read(gpus: &mut HwmonGpus, ms: u64) -> Reading {
    match gpus.read_at(true, &|| Duration::from_millis(ms)) {
        Answer::Reading(reading) => reading,
        other => panic!("{other:?}"),
    }
}

fn energy(reading: &Reading, source: Source) -> Option<&EnergyReading> {
    reading.energy.iter().find(|energy| energy.meter.source == source)
}

/// Class, raw counter and scope of each energy.
fn energies(reading: &Reading) -> Vec<(Class, Source, u64, Option<Scope>)> {
    reading.energy.iter().map(|e| (e.meter.class, e.meter.source, e.raw, e.scope)).collect()
}

#[test]
fn an_amd_gpu_shows_its_figures_and_its_power_is_integrated() {
    let tree = Tree::new();
    mi210(&tree, "card1", SLOT, "43a21ba8fd2ce3b5\n", "100000000\n");
    let mut gpus = tree.gpus(Gpus::All);
    let reading = read(&mut gpus, 1_000);
    let gpu = &reading.gpus[0];
    let watts = |reading: &GpuReading| (reading.power.average.gpu, reading.power.instant.gpu);
    assert_eq!((gpu.uuid.as_str(), gpu.up, watts(gpu)), ("AMD-43a21ba8fd2ce3b5", true, (Some(100.0), None)));
    assert_eq!(
        (gpu.model.as_str(), gpu.index.as_str(), gpu.pci.as_str()),
        ("AMD INSTINCT MI210", "card1", SLOT)
    );
    assert!(gpu.driver.starts_with("amdgpu of Linux "), "{}", gpu.driver);
    assert_eq!((gpu.utilization, gpu.temperature_celsius), (Some(0.37), Some(41.0)));
    assert_eq!((gpu.sm_clock_hertz, gpu.memory.unwrap().used_bytes), (Some(1.7e9), 1_000));
    let limits = gpu.limits;
    assert_eq!((limits.enforced, limits.max, limits.min), (Some(300.0), Some(300.0), None), "0 is no limit");
    tree.set("card1", "hwmon/power1_average", "300000000\n");
    // Between windows power alone is read, and told with the window.
    assert_eq!(gpus.read_at(false, &|| Duration::from_millis(1_100)), Answer::Unchanged);
    let reading = read(&mut gpus, 2_000);
    let counted = [(Class::Gpu, Source::Integrated, 290_000_000, Some(Scope::Gpu))];
    assert_eq!(energies(&reading), counted, "200 W for 0.1 s, 300 W for 0.9 s");
    assert_eq!(reading.failures, [""; 0]);
}

#[test]
fn power_at_an_instant_serves_where_there_is_no_mean() {
    let tree = Tree::new();
    mi210(&tree, "card1", SLOT, "", "100000000\n");
    tree.set("card1", "hwmon/power1_input", "90000000\n");
    let mut gpus = tree.gpus(Gpus::All);
    let both = read(&mut gpus, 0).gpus[0].power;
    assert_eq!((both.average.gpu, both.instant.gpu), (Some(100.0), Some(90.0)));
    read(&mut gpus, 1_000);
    fs::remove_file(tree.device("card1").join("hwmon/hwmon5/power1_average")).unwrap();
    let reading = read(&mut gpus, 2_000);
    assert_eq!(energy(&reading, Source::Integrated).unwrap().raw, 195_000_000);
    assert_eq!(reading.gpus[0].uuid, "PCI-0000:c1:00.0", "without a number of its own");
}

#[test]
fn an_accelerators_energy_counter_counts_until_it_stands_still() {
    let tree = Tree::new();
    mi210(&tree, "card1", SLOT, "43a21ba8fd2ce3b5", "100000000");
    let count = |joules: u64| tree.set("card1", "gpu_metrics", table(1, 4, 24, joules << 16));
    count(5);
    let mut gpus = tree.gpus(Gpus::All);
    read(&mut gpus, 0);
    count(105);
    let reading = read(&mut gpus, 1_000);
    let counted = (Class::Gpu, Source::Counter, 105_000_000, Some(Scope::Gpu));
    assert_eq!(energies(&reading), [counted, (Class::Gpu, Source::Integrated, 100_000_000, None)]);
    let mut last = reading;
    for second in 2..=6 {
        assert_eq!(energy(&last, Source::Integrated).unwrap().scope, None, "{second}");
        last = read(&mut gpus, second * 1_000);
    }
    assert_eq!(last.failures, ["stuck"]);
    assert_eq!(energy(&last, Source::Integrated).unwrap().scope, Some(Scope::Gpu), "the integral counts");
    let at = energy(&last, Source::Counter).unwrap().at;
    assert_eq!(at, Duration::from_secs(1), "what stands still has not been read");
    count(700);
    let reading = read(&mut gpus, 7_000);
    assert_eq!((energy(&reading, Source::Integrated).unwrap().scope, reading.failures.len()), (None, 0));
}

#[test]
fn an_intel_card_counts_its_energy() {
    let tree = Tree::new();
    xe(&tree, "card2", "5000000\n");
    let mut gpus = tree.gpus(Gpus::All);
    let reading = read(&mut gpus, 1_000);
    assert_eq!(energies(&reading), [(Class::Gpu, Source::Counter, 5_000_000, Some(Scope::Gpu))]);
    let gpu = &reading.gpus[0];
    assert_eq!((gpu.uuid.as_str(), gpu.model.as_str()), ("PCI-0000:c1:00.0", "Intel 8086:56C0"));
    assert_eq!((gpu.limits.enforced, gpu.limits.default), (None, Some(150.0)), "0 is a limit turned off");
    assert_eq!((gpu.temperature_celsius, gpu.sm_clock_hertz), (Some(52.0), Some(1.95e9)));
    // A card without a counter of its own, but one of its package.
    fs::remove_file(tree.device("card2").join("hwmon/hwmon5/energy1_input")).unwrap();
    assert_eq!(energy(&read(&mut gpus, 2_000), Source::Counter).unwrap().raw, 77);
    let i915 = Tree::new();
    let files = [("hwmon/name", "i915"), ("hwmon/energy1_input", "9"), ("hwmon/power1_max", "120000000")];
    i915.card("card0", "i915", "8086:56A0", SLOT, &files);
    let reading = read(&mut i915.gpus(Gpus::All), 0);
    assert_eq!((reading.gpus[0].limits.enforced, reading.energy[0].raw), (Some(120.0), 9));
}

#[test]
fn what_is_metered_elsewhere_or_not_at_all_is_passed_over() {
    let tree = Tree::new();
    let power = [("hwmon/name", "nouveau"), ("hwmon/power1_input", "100000000")];
    tree.card("card0", "nouveau", "10DE:2330", "0000:01:00.0", &power)
        .card("card1", "nvidia", "10DE:2330", "0000:02:00.0", &power)
        .card("card2", "i915", "8086:A780", "0000:00:02.0", &[])
        .card(
            "card3",
            "i915",
            "8086:A780",
            "0000:00:03.0",
            &[("hwmon/name", "i915"), ("hwmon/in0_input", "9")],
        )
        .card("card4", "ast", "1A03:2000", "0000:03:00.0", &power)
        .card("card5", "amdgpu", "1002:740F", "0000:04:00.0", &[]);
    // A partition of a GPU is a platform device; connectors and render nodes are no cards.
    tree.set("card6", "uevent", "DRIVER=amdgpu\nMODALIAS=platform:amdgpu_xcp\n");
    tree.card("card7-DP-1", "amdgpu", "1002:740F", "0000:05:00.0", &[("hwmon/name", "amdgpu")]);
    let mut gpus = tree.gpus(Gpus::All);
    assert_eq!(gpus.read_at(true, &|| Duration::ZERO), Answer::Absent);
    let passed: Vec<_> = gpus.passed().iter().map(|p| (p.pci.as_str(), p.why)).collect();
    let nvml = "NVIDIA's: NVML meters it";
    assert_eq!(&passed[..2], [("0000:01:00.0", nvml), ("0000:02:00.0", nvml)]);
    let of = |pci| passed.iter().find(|(p, _)| *p == pci).unwrap().1;
    assert!(
        of("0000:00:02.0").contains("integrated") && of("0000:00:03.0").contains("neither power nor energy")
    );
    assert!(of("0000:04:00.0").contains("no sensors") && passed.len() == 5, "{passed:?}");
}

#[test]
fn the_power_of_an_apu_is_its_packages_and_counts_for_nothing() {
    let rail = |tree: &Tree| tree.set("card1", "hwmon/in1_label", "vddnb\n");
    let layout = |tree: &Tree| tree.set("card1", "gpu_metrics", table(2, 4, 24, 0));
    let mi300a = |tree: &Tree| {
        tree.set("card1", "uevent", format!("DRIVER=amdgpu\nPCI_ID=1002:74A0\nPCI_SLOT_NAME={SLOT}\n"));
    };
    for apu in [&rail as &dyn Fn(&Tree), &layout, &mi300a] {
        let tree = Tree::new();
        mi210(&tree, "card1", SLOT, "", "45000000");
        apu(&tree);
        let mut gpus = tree.gpus(Gpus::All);
        read(&mut gpus, 0);
        let reading = read(&mut gpus, 1_000);
        assert_eq!(energies(&reading), [(Class::Module, Source::Integrated, 45_000_000, None)]);
        let power = reading.gpus[0].power.average;
        assert_eq!((power.gpu, power.module), (None, Some(45.0)));
    }
}

#[test]
fn a_gpu_is_known_by_its_own_number_wherever_it_is() {
    let tree = Tree::new();
    mi210(&tree, "card0", "0000:01:00.0", "00000000000000aa", "100000000");
    mi210(&tree, "card1", "0000:02:00.0", "00000000000000bb", "200000000");
    let mut gpus = tree.gpus(Gpus::All);
    let powers = |reading: &Reading| {
        let gpus = reading.gpus.iter().map(|gpu| (gpu.uuid.clone(), gpu.power.average.gpu));
        gpus.collect::<Vec<_>>()
    };
    let known = [("AMD-00000000000000aa".into(), Some(100.0)), ("AMD-00000000000000bb".into(), Some(200.0))];
    assert_eq!(powers(&read(&mut gpus, 0)), known);
    // After the driver was loaded anew, numbers are others.
    mi210(&tree, "card1", "0000:01:00.0", "00000000000000aa", "100000000");
    mi210(&tree, "card0", "0000:02:00.0", "00000000000000bb", "200000000");
    assert_eq!(powers(&read(&mut gpus, 20_000)), known);
    for blank in ["0000000000000000", "ffffffffffffffff", "no number", "0x12"] {
        let tree = Tree::new();
        mi210(&tree, "card0", SLOT, blank, "100000000");
        assert_eq!(read(&mut tree.gpus(Gpus::All), 0).gpus[0].uuid, "PCI-0000:c1:00.0", "{blank}");
    }
}

#[test]
fn two_dies_of_one_number_stay_two() {
    let tree = Tree::new();
    mi210(&tree, "card0", "0000:01:00.0", "00000000000000aa", "400000000");
    // Only the first die of a module shows power, and its is the power of both.
    mi210(&tree, "card1", "0000:02:00.0", "00000000000000aa", "0");
    let mut gpus = tree.gpus(Gpus::All);
    let reading = read(&mut gpus, 0);
    let uuids: Vec<_> = reading.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    assert_eq!(uuids, ["AMD-00000000000000aa@0000:01:00.0", "AMD-00000000000000aa@0000:02:00.0"]);
    assert_eq!((reading.energy.len(), reading.failures.len()), (1, 0));
    tree.remove("card0");
    let reading = read(&mut gpus, 20_000);
    let up: Vec<_> = reading.gpus.iter().map(|gpu| (gpu.uuid.len(), gpu.up)).collect();
    assert_eq!(up, [(33, false), (33, true)], "the other does not take its name: {:?}", reading.gpus);
}

#[test]
fn a_lost_gpu_stays_with_its_counter_and_comes_back_without_inventing_joules() {
    let tree = Tree::new();
    mi210(&tree, "card1", SLOT, "43a21ba8fd2ce3b5", "100000000");
    let mut gpus = tree.gpus(Gpus::All);
    read(&mut gpus, 0);
    read(&mut gpus, 1_000);
    tree.remove("card1");
    let lost = read(&mut gpus, 1_400);
    let gpu = &lost.gpus[0];
    assert_eq!((gpu.up, gpu.lost, gpu.model.as_str()), (false, Some("not_found"), "AMD INSTINCT MI210"));
    assert_eq!((gpu.power.average.gpu, gpu.utilization), (None, None));
    assert_eq!(energies(&lost)[0].2, 100_000_000, "it stands still");
    // It is back at once when its card is, by another number.
    mi210(&tree, "card7", SLOT, "43a21ba8fd2ce3b5", "100000000");
    // Not longer than readings may fail for: that it was gone is what breaks the integral.
    let back = read(&mut gpus, 1_900);
    assert_eq!((back.gpus[0].up, back.gpus[0].lost, back.gpus[0].index.as_str()), (true, None, "card7"));
    let energy = energy(&back, Source::Integrated).unwrap();
    assert_eq!((energy.raw, energy.unread), (100_000_000, 1));
    assert_eq!(energies(&read(&mut gpus, 2_900))[0].2, 200_000_000);
}

#[test]
fn a_counter_that_begins_anew_is_a_gap() {
    let tree = Tree::new();
    xe(&tree, "card2", "5000000000\n");
    let mut gpus = tree.gpus(Gpus::All);
    let mut windows = Windows::default();
    let mut window = |gpus: &mut HwmonGpus, ms| {
        let slices = windows.close(&read(gpus, ms).energy).slices;
        (slices[0].microjoules, slices[0].gaps.len())
    };
    window(&mut gpus, 1_000);
    tree.set("card2", "hwmon/energy1_input", "5100000000");
    assert_eq!(window(&mut gpus, 2_000), (100_000_000, 0));
    tree.set("card2", "hwmon/energy1_input", "9000000");
    assert_eq!(window(&mut gpus, 3_000), (0, 1), "the driver was loaded anew");
    tree.set("card2", "hwmon/energy1_input", "10000000");
    assert_eq!(window(&mut gpus, 4_000), (1_000_000, 0));
}

#[test]
fn what_cannot_be_power_is_none_and_says_why() {
    for (text, reasons) in [
        ("0\n", &[][..]),
        ("-1\n", &["negative"]),
        ("65535000000\n", &["implausible"]),
        ("18446744073709551615\n", &["invalid"]),
        ("", &["invalid"]),
        ("full\n", &["invalid"]),
    ] {
        let tree = Tree::new();
        mi210(&tree, "card1", SLOT, "43a21ba8fd2ce3b5", text);
        let reading = read(&mut tree.gpus(Gpus::All), 0);
        assert_eq!((reading.failures.as_slice(), reading.gpus[0].up), (reasons, true), "{text:?}");
        assert_eq!((reading.gpus[0].power.average.gpu, reading.energy.len()), (None, 0), "{text:?}");
    }
    let tree = Tree::new();
    mi210(&tree, "card1", SLOT, "43a21ba8fd2ce3b5", "100000000");
    for (file, text) in [
        ("gpu_busy_percent", "101"),
        ("mem_info_vram_used", "99999999999999"),
        ("hwmon/temp1_input", "4294967295"),
        ("hwmon/freq1_input", "-5"),
    ] {
        tree.set("card1", file, text);
    }
    let gpu = &read(&mut tree.gpus(Gpus::All), 0).gpus[0];
    assert_eq!((gpu.utilization, gpu.memory), (None, None));
    assert_eq!((gpu.temperature_celsius, gpu.sm_clock_hertz), (None, None));
}

#[test]
fn a_gpu_that_sleeps_is_left_asleep() {
    let tree = Tree::new();
    mi210(&tree, "card1", SLOT, "43a21ba8fd2ce3b5", "100000000");
    let mut gpus = tree.gpus(Gpus::All);
    read(&mut gpus, 0);
    tree.set("card1", "power/runtime_status", "suspended\n");
    // Whoever looks finds this.
    tree.set("card1", "hwmon/power1_average", "broken");
    let asleep = read(&mut gpus, 1_000);
    assert_eq!((asleep.failures.len(), asleep.gpus[0].up, asleep.gpus[0].power.average.gpu), (0, true, None));
    tree.set("card1", "power/runtime_status", "active\n");
    tree.set("card1", "hwmon/power1_average", "100000000");
    let awake = read(&mut gpus, 1_900);
    let energy = energy(&awake, Source::Integrated).unwrap();
    assert_eq!((energy.raw, energy.unread), (0, 1), "what it drew asleep is unknown");
}

#[test]
fn only_gpus_that_are_wanted_are_read_and_those_must_be_there() {
    let tree = Tree::new();
    mi210(&tree, "card0", "0000:01:00.0", "00000000000000aa", "100000000");
    mi210(&tree, "card1", "0000:02:00.0", "00000000000000bb", "100000000");
    let listed = |uuids: &[&str]| Gpus::Listed(uuids.iter().map(|uuid| (*uuid).to_owned()).collect());
    let reading = read(&mut tree.gpus(listed(&["AMD-00000000000000bb", "PCI-0000:09:00.0"])), 0);
    let shown: Vec<_> = reading.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.lost)).collect();
    assert_eq!(shown, [("AMD-00000000000000bb", None), ("PCI-0000:09:00.0", Some("not_found"))]);
    assert_eq!(tree.gpus(listed(&[])).read_at(true, &|| Duration::ZERO), Answer::Absent);
}

fn content() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        6 => (1_000_000u64..400_000_000).prop_map(|n| Some(format!("{n}\n").into_bytes())),
        1 => Just(None),
        1 => Just(Some(Vec::new())),
        1 => proptest::collection::vec(any::<u8>(), 1..300).prop_map(Some),
        1 => any::<i64>().prop_map(|n| Some(n.to_string().into_bytes())),
        1 => any::<u64>().prop_map(|n| Some(n.to_string().into_bytes())),
        2 => (0u8..4, 0u8..10, 16usize..100, any::<u64>()).prop_map(|(f, c, at, n)| Some(table(f, c, at, n >> 8))),
    ]
}

/// A card's own number: its own, the other die's, or anything.
fn number() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        2 => "00000000000000(aa|bb)\n".prop_map(|number| Some(number.into_bytes())),
        1 => content(),
    ]
}

const FILES: [&str; 10] = [
    "unique_id",
    "gpu_busy_percent",
    "gpu_metrics",
    "mem_info_vram_used",
    "mem_info_vram_total",
    "hwmon/power1_average",
    "hwmon/power1_input",
    "hwmon/energy1_input",
    "hwmon/energy2_input",
    "hwmon/temp1_input",
];

type Card = (u8, String, u8, Option<Vec<u8>>, Vec<Option<Vec<u8>>>);

fn write(tree: &Tree, (card, driver, slot, number, files): &Card) {
    let card = format!("card{card}");
    tree.card(&card, driver, "1002:740F", &format!("0000:0{slot}:00.0"), &[("hwmon/name", driver)]);
    let device = tree.device(&card);
    for (file, content) in FILES.iter().zip(std::iter::once(number).chain(files)) {
        let file = device.join(file.replace("hwmon/", "hwmon/hwmon5/"));
        match content {
            // Its folders are there.
            Some(content) => fs::write(file, content).unwrap(),
            None => drop(fs::remove_file(file)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::fuzz::times(500), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Trees that change under the reader: no panic, no power below zero or beyond what a GPU may draw, one series
    /// for each, and sums that only grow.
    #[test]
    fn whatever_lies_in_sysfs_nothing_is_invented(
        rounds in proptest::collection::vec(
            (
                proptest::collection::vec(
                    (
                        0u8..3,
                        "amdgpu|xe|i915|nvidia|[a-z]{1,5}",
                        0u8..3,
                        number(),
                        proptest::collection::vec(content(), FILES.len() - 1),
                    ),
                    0..4,
                ),
                any::<bool>(),
                1u64..20_000,
            ),
            1..6,
        ),
    ) {
        let tree = Tree::new();
        let mut gpus = tree.gpus(Gpus::All);
        let mut windows = Windows::default();
        let mut now = 0;
        for (cards, swept, elapsed) in rounds {
            if swept {
                // There may be none yet.
                drop(fs::remove_dir_all(tree.0.path().join("class/drm")));
            }
            cards.iter().for_each(|card| write(&tree, card));
            now += elapsed;
            let Answer::Reading(reading) = gpus.read_at(true, &|| Duration::from_millis(now)) else { continue };
            let mut names: Vec<_> = reading.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), reading.gpus.len());
            for gpu in &reading.gpus {
                let powers = [gpu.power.average.gpu, gpu.power.instant.gpu, gpu.power.average.module];
                prop_assert!(powers.iter().flatten().all(|watts| (0.0..=MAX_GPU_WATTS).contains(watts)));
                prop_assert!(gpu.up != gpu.lost.is_some());
            }
            for slice in windows.close(&reading.energy).slices {
                let most = MAX_GPU_WATTS * 1.3 * (elapsed as f64 * 6.0 / 1e3 + 1.0) * 1e6;
                prop_assert!((slice.microjoules as f64) <= most.max(MAX_GPU_WATTS * 1.3e6 * now as f64));
                prop_assert!(slice.mean_watts.unwrap_or(0.0) >= 0.0);
            }
        }
    }
}

#[test]
fn power_is_read_as_often_as_energy_hangs_on_it() {
    let often = METERING.gpu_interval;
    let none = Tree::new();
    let intel = Tree::new();
    xe(&intel, "card0", "5");
    let amd = Tree::new();
    mi210(&amd, "card0", SLOT, "", "100000000");
    let counts = Tree::new();
    mi210(&counts, "card0", SLOT, "", "100000000");
    counts.set("card0", "gpu_metrics", table(1, 4, 24, 1 << 20));
    for (name, tree, pace) in [
        ("no GPU", &none, LOOK_AGAIN / 2),
        ("a counter alone", &intel, METERING.interval),
        ("power alone", &amd, often),
        ("a counter beside power", &counts, METERING.interval),
    ] {
        let mut gpus = tree.gpus(Gpus::All);
        let _ = gpus.read_at(true, &|| Duration::ZERO);
        assert_eq!(gpus.pace(often), pace, "{name}");
    }
}

/// The tree itself need not be there.
#[test]
fn a_host_without_drm_is_normal() {
    let mut gpus = HwmonGpus::new(Path::new("/nonexistent"), Gpus::All, METERING);
    assert_eq!(gpus.read_at(true, &|| Duration::ZERO), Answer::Absent);
}
