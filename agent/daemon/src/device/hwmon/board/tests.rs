//! Boards and power supplies in trees as their drivers make them.

use std::os::unix::fs::symlink;

use proptest::prelude::*;
use wattmill_protocol::Source;

use super::*;
use crate::device::EnergyReading;
use crate::window::Windows;

const INTERVAL: Duration = Duration::from_secs(1);

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(crate::fuzz::folder())
    }

    fn hwmon(&self, number: &str) -> PathBuf {
        self.0.path().join("class/hwmon").join(number)
    }

    /// A chip that sits at `device`, a path below `devices`; none for a virtual one.
    fn chip(&self, number: &str, name: &str, device: Option<&str>, files: &[(&str, &str)]) -> &Self {
        let folder = self.hwmon(number);
        fs::create_dir_all(&folder).unwrap();
        if let Some(device) = device {
            let device = self.0.path().join("devices").join(device);
            fs::create_dir_all(&device).unwrap();
            symlink(device, folder.join("device")).unwrap();
        }
        self.set(number, "name", name);
        files.iter().for_each(|(file, text)| self.set(number, file, text));
        self
    }

    fn set(&self, number: &str, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.hwmon(number).join(file), content).unwrap();
    }

    fn board(&self) -> Board {
        Board::new(self.0.path(), INTERVAL)
    }
}

fn read(board: &mut Board, s: u64) -> Reading {
    match board.read_at(&|| Duration::from_secs(s)) {
        Answer::Reading(reading) => reading,
        other => panic!("{other:?}"),
    }
}

fn watts(reading: &Reading) -> Vec<(String, Option<f64>)> {
    reading.sensors.iter().map(|sensor| (sensor.id.device(), sensor.watts)).collect()
}

fn shown(name: &str, watts: f64) -> (String, Option<f64>) {
    (name.to_owned(), Some(watts))
}

fn energy(reading: &Reading, source: Source) -> Vec<&EnergyReading> {
    reading.energy.iter().filter(|energy| energy.meter.source == source).collect()
}

#[test]
fn each_channel_is_known_by_chip_place_and_label() {
    let tree = Tree::new();
    tree.chip(
        "hwmon0",
        "power_meter\n",
        Some("LNXSYSTM:00/ACPI000D:00"),
        &[("power1_average", "412000000\n")],
    )
    .chip(
        "hwmon3",
        "pmbus\n",
        Some("i2c-4/4-0058"),
        &[
            ("power1_label", "pin\n"),
            ("power1_input", "230000000\n"),
            ("power2_label", "pout1\n"),
            ("power2_input", "210000000\n"),
            ("power3_label", "pout1\n"),
            ("power3_input", "5000000\n"),
            ("temp1_input", "40000\n"),
        ],
    )
    .chip(
        "hwmon5",
        "corsairpsu\n",
        Some("usb1/1-4/1-4:1.0/0003:1B1C:1C0A.0004"),
        &[("power1_label", "power total\n"), ("power1_input", "95000000\n")],
    )
    .chip("hwmon7", "ina226\n", None, &[("power1_average", "7000000\n"), ("power1_input", "9000000\n")])
    .chip("hwmon8", "k10temp\n", Some("pci/0000:00:18.3"), &[("temp1_input", "40000\n")]);
    let reading = read(&mut tree.board(), 1);
    assert_eq!(
        watts(&reading),
        [
            shown("corsairpsu@1-4:1.0/power total", 95.0),
            shown("ina226/power1", 7.0),
            shown("pmbus@4-0058/pin", 230.0),
            shown("pmbus@4-0058/pout1", 210.0),
            shown("pmbus@4-0058/pout1@power3", 5.0),
            shown("power_meter@ACPI000D:00/power1", 412.0),
        ]
    );
    assert!(reading.energy.iter().all(|energy| energy.scope.is_none()), "they contain what else is measured");
    assert_eq!(reading.failures, [""; 0]);
}

#[test]
fn what_is_metered_elsewhere_is_left_out() {
    let tree = Tree::new();
    for (number, (name, _)) in METERED_ELSEWHERE.iter().enumerate() {
        let files =
            [("power1_average", "1000000"), ("power1_input", "1000000"), ("energy1_input", "1000000")];
        tree.chip(&format!("hwmon{number}"), name, None, &files);
    }
    assert_eq!(tree.board().read_at(&|| Duration::ZERO), Answer::Absent);
}

#[test]
fn power_is_integrated_and_a_counter_of_the_same_label_stands_beside_it() {
    let tree = Tree::new();
    let files = [
        ("power1_label", "vin"),
        ("power1_input", "50000000"),
        ("energy1_label", "vin"),
        ("energy1_input", "1000"),
    ];
    tree.chip("hwmon1", "ltc2946", None, &files);
    let mut board = tree.board();
    read(&mut board, 1);
    tree.set("hwmon1", "energy1_input", "49001000");
    let reading = read(&mut board, 2);
    assert_eq!(watts(&reading), [shown("ltc2946/vin", 50.0)]);
    assert_eq!(energy(&reading, Source::Counter)[0].raw, 49_001_000);
    assert_eq!(energy(&reading, Source::Integrated)[0].raw, 50_000_000);
}

#[test]
fn what_cannot_be_power_is_none_and_says_why() {
    let tree = Tree::new();
    tree.chip("hwmon1", "ina226", None, &[("power1_input", "50000000")]);
    let mut board = tree.board();
    read(&mut board, 1);
    for (second, (text, reason)) in (2..).zip([
        ("-5", Some("negative")),
        ("4294967295000000", Some("implausible")),
        ("", Some("invalid")),
        ("18446744073709551616", Some("invalid")),
        ("0", None),
    ]) {
        tree.set("hwmon1", "power1_input", text);
        let reading = read(&mut board, second);
        assert_eq!(reading.failures, reason.into_iter().collect::<Vec<_>>(), "{text}");
        assert_eq!((watts(&reading)[0].1, energy(&reading, Source::Integrated)[0].raw), (None, 0), "{text}");
    }
    tree.set("hwmon1", "power1_input", "50000000");
    let unread = |reading: &Reading| {
        let energy = energy(reading, Source::Integrated);
        (energy[0].raw, energy[0].unread)
    };
    assert_eq!(unread(&read(&mut board, 7)), (0, 1), "one gap, without joules");
    assert_eq!(unread(&read(&mut board, 8)), (50_000_000, 1));
}

#[test]
fn one_broken_sensor_does_not_take_the_others() {
    let tree = Tree::new();
    tree.chip("hwmon1", "a", None, &[("power1_input", "garbage"), ("power2_input", "50000000")]);
    tree.chip("hwmon2", "b", None, &[("power1_input", "60000000")]);
    let reading = read(&mut tree.board(), 1);
    assert_eq!(
        watts(&reading),
        [("a/power1".to_owned(), None), shown("a/power2", 50.0), shown("b/power1", 60.0)]
    );
    assert_eq!(reading.failures, ["invalid"]);
}

#[test]
fn a_supply_that_is_pulled_keeps_its_energy_and_comes_back_under_another_number() {
    let tree = Tree::new();
    let files = [("power1_label", "pin"), ("power1_input", "100000000")];
    tree.chip("hwmon1", "pmbus", Some("4-0058"), &files).chip("hwmon2", "pmbus", Some("4-0059"), &files);
    let mut board = tree.board();
    (1..=29).for_each(|s| drop(read(&mut board, s)));
    fs::remove_dir_all(tree.hwmon("hwmon1")).unwrap();
    assert_eq!(read(&mut board, 30).failures, ["missing"]);
    let raw =
        |reading: &Reading| energy(reading, Source::Integrated).iter().map(|e| e.raw).collect::<Vec<_>>();
    let without = read(&mut board, 31);
    assert_eq!(watts(&without), [("pmbus@4-0058/pin".to_owned(), None), shown("pmbus@4-0059/pin", 100.0)]);
    assert_eq!((raw(&without), without.failures.len()), (vec![2_800_000_000, 3_000_000_000], 0));
    tree.chip("hwmon9", "pmbus", Some("4-0058"), &files);
    (32..=61).for_each(|s| drop(read(&mut board, s)));
    assert_eq!(raw(&read(&mut board, 62)), [2_900_000_000, 6_100_000_000], "its sum goes on");
}

#[test]
fn sensors_are_bounded() {
    let tree = Tree::new();
    for number in 0..40 {
        let files = [("power1_input", "1000000"), ("power2_input", "1000000"), ("energy1_input", "1")];
        tree.chip(&format!("hwmon{number}"), "psu", None, &files);
    }
    let reading = read(&mut tree.board(), 1);
    assert_eq!((reading.sensors.len(), reading.failures.as_slice()), (MAX_SENSORS, &["too_many"][..]));
}

#[test]
fn a_missing_permission_names_its_remedy() {
    let denied = unreadable(Path::new("power1_average"), &io::Error::from(io::ErrorKind::PermissionDenied));
    assert!(denied.reason == "permission" && denied.message.contains("udev"), "{denied}");
}

fn content() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        6 => (0u64..400_000_000).prop_map(|n| Some(format!("{n}\n").into_bytes())),
        1 => Just(None),
        1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Some),
        1 => any::<i64>().prop_map(|n| Some(n.to_string().into_bytes())),
        1 => "(pin|pout|power1|energy1|\\PC{0,200})".prop_map(|text| Some(text.into_bytes())),
    ]
}

const FILES: [&str; 8] = [
    "name",
    "power1_input",
    "power1_average",
    "power1_label",
    "power2_input",
    "power2_label",
    "energy1_input",
    "energy1_label",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::fuzz::times(500), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Trees that change under the reader: no panic, no power below zero or beyond the bound, one series for each
    /// sensor and source, no energy for a scope, and sums that only grow.
    #[test]
    fn whatever_lies_in_sysfs_nothing_is_invented(
        rounds in proptest::collection::vec(
            (proptest::collection::vec((0u8..4, proptest::collection::vec(content(), 8)), 0..4), any::<bool>(), 1u64..40),
            1..6,
        ),
    ) {
        let tree = Tree::new();
        let mut board = tree.board();
        let mut windows = Windows::default();
        let mut now = 0;
        for (chips, swept, elapsed) in rounds {
            if swept {
                // There may be none yet.
                drop(fs::remove_dir_all(tree.0.path().join("class/hwmon")));
            }
            for (number, files) in &chips {
                let folder = tree.hwmon(&format!("hwmon{number}"));
                fs::create_dir_all(&folder).unwrap();
                for (file, content) in FILES.iter().zip(files) {
                    match content {
                        Some(content) => fs::write(folder.join(file), content).unwrap(),
                        None => drop(fs::remove_file(folder.join(file))),
                    }
                }
            }
            now += elapsed;
            let Answer::Reading(reading) = board.read_at(&|| Duration::from_secs(now)) else { continue };
            let mut meters: Vec<_> = reading.energy.iter().map(|energy| &energy.meter).collect();
            meters.sort_unstable();
            meters.dedup();
            prop_assert_eq!(meters.len(), reading.energy.len());
            for sensor in &reading.sensors {
                prop_assert!(sensor.watts.is_none_or(|watts| watts > 0.0 && watts <= MAX_SENSOR_WATTS));
            }
            for slice in windows.close(&reading.energy).slices {
                prop_assert_eq!(slice.scope, None);
                let watts = slice.mean_watts.unwrap_or(0.0);
                prop_assert!((0.0..=MAX_SENSOR_WATTS * 1.2 + 1e-6).contains(&watts), "{} W", watts);
            }
        }
    }
}
