use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::counter::{Counter, GapReason, Step};
use crate::window::Windows;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(crate::fuzz::folder());
        fs::create_dir_all(tree.0.path().join("class/powercap")).unwrap();
        tree
    }

    fn path(&self, zone: &str) -> PathBuf {
        self.0.path().join("class/powercap").join(zone)
    }

    fn zone(&self, zone: &str, name: &str, energy: &str, range: Option<&str>) -> &Self {
        fs::create_dir_all(self.path(zone)).unwrap();
        fs::write(self.path(zone).join("name"), format!("{name}\n")).unwrap();
        fs::write(self.path(zone).join("energy_uj"), energy).unwrap();
        if let Some(range) = range {
            fs::write(self.path(zone).join("max_energy_range_uj"), range).unwrap();
        }
        self
    }

    fn discover(&self) -> (Vec<Zone>, Option<ReadError>) {
        discover(&self.0.path().join("class/powercap"))
    }
}

const RANGE: Option<&str> = Some("262143328850\n");

#[test]
fn scopes_do_not_overlap() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE)
        .zone("intel-rapl:0:0", "core", "10\n", RANGE)
        .zone("intel-rapl:0:1", "dram", "20\n", RANGE)
        .zone("intel-rapl:1", "psys", "400\n", RANGE)
        .zone("intel-rapl:a", "package-10", "5\n", RANGE)
        .zone("intel-rapl:a/intel-rapl:a:0", "dram", "6\n", RANGE)
        .zone("intel-rapl-mmio:0", "package-0", "100\n", RANGE);
    let (zones, error) = tree.discover();
    assert_eq!(error, None);
    let found: Vec<_> = zones.iter().map(|z| (z.name.as_str(), z.scope)).collect();
    assert_eq!(
        found,
        [
            ("package-0", Some(Scope::Cpu)),
            ("package-0/core", None),
            ("package-0/dram", Some(Scope::Dram)),
            ("package-10", Some(Scope::Cpu)),
            ("package-10/dram", Some(Scope::Dram)),
            ("psys", None),
        ]
    );
}

#[test]
fn memory_mapped_zones_are_read_where_there_are_no_others() {
    let tree = Tree::new();
    tree.zone("intel-rapl-mmio:0", "package-0", "100\n", RANGE).zone(
        "intel-rapl-mmio:0:0",
        "dram",
        "20\n",
        RANGE,
    );
    let found = || {
        let (zones, error) = tree.discover();
        assert_eq!(error, None);
        zones.into_iter().map(|zone| (zone.name, zone.scope, zone.energy_file)).collect::<Vec<_>>()
    };
    let zone =
        |folder: &str, name: &str, scope| (name.to_owned(), Some(scope), tree.path(folder).join("energy_uj"));
    let mapped = [
        zone("intel-rapl-mmio:0", "package-0", Scope::Cpu),
        zone("intel-rapl-mmio:0:0", "package-0/dram", Scope::Dram),
    ];
    assert_eq!(found(), mapped);
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE);
    assert_eq!(found(), [zone("intel-rapl:0", "package-0", Scope::Cpu)], "the same package once");
}

#[test]
fn subzones_listed_twice_count_once() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0-die-0", "100\n", RANGE)
        .zone("intel-rapl:0:0", "dram", "20\n", RANGE)
        .zone("intel-rapl:0/intel-rapl:0:0", "dram", "20\n", RANGE);
    let (zones, _) = tree.discover();
    assert_eq!(zones.len(), 2);
    assert_eq!(zones[0].scope, Some(Scope::Cpu));
}

#[test]
fn a_range_of_zero_or_none_is_a_counter_that_cannot_wrap() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "100\n", Some("0\n"))
        .zone("intel-rapl:1", "package-1", "100\n", None)
        .zone("intel-rapl:2", "package-2", "100\n", Some("\n"))
        .zone("intel-rapl:3", "package-3", "100\n", Some("18446744073709551615\n"));
    let (zones, _) = tree.discover();
    assert_eq!(zones.len(), 4);
    for zone in zones {
        let mut counter = Counter::resumed(100, Duration::ZERO);
        let step = counter.advance(1, Duration::from_secs(1), &zone.limits);
        assert_eq!(step, Step::Gap(GapReason::Reset), "{}", zone.name);
    }
}

#[test]
fn wraps_are_undone_at_the_zones_range() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "65532610987\n", Some("65532610987\n"));
    let limits = tree.discover().0[0].limits;
    let mut counter = Counter::resumed(65_532_610_987, Duration::ZERO);
    assert_eq!(counter.advance(0, Duration::from_secs(1), &limits), Step::Counted(1, None));
}

/// At the longest interval, with a reading that failed, no range that is sold goes round unseen.
#[test]
fn at_the_longest_interval_the_smallest_range_does_not_go_round_unseen() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "65532610980\n", Some("65532610987\n"));
    let limits = tree.discover().0[0].limits;
    let interval = crate::config::MAX_INTERVAL;
    let mut counter = Counter::resumed(65_532_610_980, Duration::ZERO);
    assert_eq!(counter.advance(3, interval, &limits), Step::Counted(11, None));
    assert_eq!(counter.advance(9, interval * 3, &limits), Step::Counted(6, None));
}

#[test]
fn stated_limits_bound_the_zone() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "1\n", RANGE);
    let zone = tree.path("intel-rapl:0");
    assert!((max_watts(&zone) - MAX_ZONE_WATTS).abs() < 1e-9);
    fs::write(zone.join("constraint_0_power_limit_uw"), "\n").unwrap();
    fs::write(zone.join("constraint_1_max_power_uw"), "350000000\n").unwrap();
    assert!((max_watts(&zone) - 700.0).abs() < 1e-9);
    fs::write(zone.join("constraint_0_power_limit_uw"), "4095875000\n").unwrap();
    assert!((max_watts(&zone) - MAX_ZONE_WATTS).abs() < 1e-9);
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Reads at a time, in seconds.
fn read_at(rapl: &mut Rapl, s: u64) -> Answer {
    rapl.read_at(&|| seconds(s))
}

fn read(rapl: &mut Rapl, s: u64) -> Reading {
    match read_at(rapl, s) {
        Answer::Reading(reading) => reading,
        other => panic!("{other:?}"),
    }
}

fn scopes(reading: &Reading) -> Vec<(&str, Option<Scope>)> {
    reading.energy.iter().map(|e| (e.meter.device.as_str(), e.scope)).collect()
}

#[test]
fn a_host_without_rapl_is_normal_and_looked_at_again() {
    let tree = Tree::new();
    let measured = Measured::default();
    let mut rapl = Rapl::new(tree.0.path(), measured.clone(), seconds(1));
    assert_eq!(read_at(&mut rapl, 1), Answer::Absent);
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE);
    assert_eq!(read_at(&mut rapl, 2), Answer::Absent);
    assert_eq!(read(&mut rapl, 31).energy[0].raw, 100);
    assert!(measured.get());
    fs::remove_dir_all(tree.path("intel-rapl:0")).unwrap();
    for s in 32..60 {
        assert!(matches!(read_at(&mut rapl, s), Answer::Failed(e) if e.reason == "missing"), "each time");
    }
    assert!(!measured.get(), "the estimate steps in");
    assert_eq!(read_at(&mut rapl, 61), Answer::Absent, "the driver was unloaded");
}

/// No permission at start: a failure at every reading, until a rule opens the file.
#[test]
fn a_zone_that_cannot_be_read_fails_each_time_and_is_read_as_soon_as_it_can() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "", RANGE);
    let measured = Measured::default();
    let mut rapl = Rapl::new(tree.0.path(), measured.clone(), seconds(0));
    for s in 1..5 {
        assert!(matches!(read_at(&mut rapl, s), Answer::Failed(e) if e.reason == "invalid"));
    }
    tree.zone("intel-rapl:0", "package-0", "7\n", RANGE);
    assert_eq!(read(&mut rapl, 5).energy[0].raw, 7);
    assert!(measured.get());
}

#[test]
fn one_broken_zone_does_not_take_the_others() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE).zone("intel-rapl:0:0", "dram", "7\n", RANGE);
    let mut rapl = Rapl::new(tree.0.path(), Measured::default(), Duration::ZERO);
    for (content, reason) in [
        (&b"garbage"[..], "invalid"),
        (b"", "invalid"),
        (b"\xff\x00\xfe", "invalid"),
        (b"-5\n", "invalid"),
        (b"18446744073709551616\n", "invalid"),
        (&[b'1'; 100_000], "invalid"),
    ] {
        fs::write(tree.path("intel-rapl:0:0").join("energy_uj"), content).unwrap();
        let reading = read(&mut rapl, 1);
        assert_eq!((reading.energy.len(), reading.failures), (1, vec![reason]));
    }
    fs::remove_file(tree.path("intel-rapl:0:0").join("energy_uj")).unwrap();
    assert_eq!(read(&mut rapl, 1).failures, ["missing"]);
}

#[test]
fn zones_that_appear_are_found_and_those_that_disappear_are_let_go() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE).zone("intel-rapl:1", "package-1", "5\n", RANGE);
    fs::write(tree.path("intel-rapl:1").join("name"), "\u{1}\n").unwrap();
    let mut rapl = Rapl::new(tree.0.path(), Measured::default(), Duration::ZERO);
    let partial = read(&mut rapl, 1);
    assert_eq!((partial.energy.len(), partial.failures), (1, vec!["invalid"]), "one is known to be missing");
    tree.zone("intel-rapl:1", "package-1", "5\n", RANGE).zone("intel-rapl:0:0", "dram", "7\n", RANGE);
    let whole = read(&mut rapl, 30);
    assert_eq!((whole.energy.len(), whole.failures.len()), (3, 0));
    fs::remove_dir_all(tree.path("intel-rapl:1")).unwrap();
    assert_eq!(read(&mut rapl, 31).failures, ["missing"]);
    let without = read(&mut rapl, 60);
    assert_eq!((without.energy.len(), without.failures.len()), (2, 0));
}

#[test]
fn a_name_stays_with_its_folder() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE).zone("intel-rapl:1", "package-0", "900\n", RANGE);
    let mut rapl = Rapl::new(tree.0.path(), Measured::default(), Duration::ZERO);
    let both = read(&mut rapl, 1);
    assert_eq!(both.energy.iter().map(|e| e.raw).collect::<Vec<_>>(), [100, 900]);
    fs::remove_dir_all(tree.path("intel-rapl:0")).unwrap();
    let one = read(&mut rapl, 31);
    assert_eq!(scopes(&one), [("package-0@intel-rapl:1", Some(Scope::Cpu))], "no counter goes on as another");
}

#[test]
fn dies_that_mirror_one_counter_count_once() {
    let tree = Tree::new();
    let dies = |first: &str, second: &str| {
        tree.zone("intel-rapl:0", "package-0-die-0", first, RANGE);
        tree.zone("intel-rapl:1", "package-0-die-1", second, RANGE);
    };
    dies("5000000\n", "5000900\n");
    let mut rapl = Rapl::new(tree.0.path(), Measured::default(), Duration::ZERO);
    let cpu = Some(Scope::Cpu);
    let mirrored = [("package-0-die-0", cpu), ("package-0-die-1", None)];
    assert_eq!(scopes(&read(&mut rapl, 1)), mirrored);
    // Around a wrap too, and whichever of the two is ahead.
    dies("262143328850\n", "500\n");
    assert_eq!(scopes(&read(&mut rapl, 2)), mirrored);
    dies("500\n", "262143328850\n");
    assert_eq!(scopes(&read(&mut rapl, 3)), mirrored);
    // Dies with counters of their own, which meet again by chance.
    dies("5000000\n", "900000000\n");
    let apart = [("package-0-die-0", cpu), ("package-0-die-1", cpu)];
    assert_eq!(scopes(&read(&mut rapl, 4)), apart);
    dies("900000000\n", "900000000\n");
    assert_eq!(scopes(&read(&mut rapl, 5)), apart);
}

#[test]
fn without_a_package_memory_counts_for_nothing() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "x", RANGE).zone("intel-rapl:0:0", "dram", "7\n", RANGE);
    let measured = Measured::default();
    let mut rapl = Rapl::new(tree.0.path(), measured.clone(), Duration::ZERO);
    assert_eq!(scopes(&read(&mut rapl, 1)), [("package-0/dram", None)]);
    assert!(!measured.get(), "the estimate is of the whole host");
    tree.zone("intel-rapl:0", "package-0", "9\n", RANGE);
    let both = [("package-0", Some(Scope::Cpu)), ("package-0/dram", Some(Scope::Dram))];
    assert_eq!(scopes(&read(&mut rapl, 2)), both);
}

#[test]
fn a_missing_permission_is_named() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", "100\n", RANGE);
    let file = tree.path("intel-rapl:0").join("energy_uj");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&file).is_ok() {
        // Root reads everything: the words alone are checked then.
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = unreadable(&file, &denied);
        assert!(error.reason == "permission" && error.message.contains("CAP_DAC_READ_SEARCH"));
        return;
    }
    let (zones, error) = tree.discover();
    assert!(zones.is_empty());
    assert_eq!(error.unwrap().reason, "permission");
}

/// What may lie in a file of sysfs; `None` where there is none.
fn content(numbers: BoxedStrategy<u64>) -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        8 => numbers.prop_map(|number| Some(format!("{number}\n").into_bytes())),
        1 => Just(None),
        1 => Just(Some(Vec::new())),
        1 => proptest::collection::vec(any::<u8>(), 1..300).prop_map(Some),
        1 => any::<i64>().prop_map(|number| Some(number.to_string().into_bytes())),
        1 => any::<u128>().prop_map(|number| Some(number.to_string().into_bytes())),
    ]
}

type Files = [Option<Vec<u8>>; 4];

/// A zone's folder and files: any of a few, or something wild.
fn folder() -> impl Strategy<Value = (String, Files)> {
    let path = prop_oneof![
        // Often the same ones again: it takes two readings of a zone to count anything.
        6 => "intel-rapl:[01]",
        2 => "intel-rapl:[23a]",
        4 => "intel-rapl:[0-3a]:[0-2]",
        2 => "intel-rapl:[0-3a]".prop_map(|parent| format!("{parent}/{parent}:0")),
        1 => "intel-rapl(-mmio)?:{0,3}[a-z0-9:]{0,4}",
    ];
    let name = prop_oneof![
        6 => "package-[01](-die-[01])?\n",
        4 => "(core|uncore|dram|psys)\n",
        1 => ".{0,70}",
    ];
    let name = proptest::option::weighted(0.9, name.prop_map(String::into_bytes));
    let near = prop_oneof![0u64..100_000_000, 262_143_000_000u64..262_143_328_851, any::<u64>()].boxed();
    let range = prop_oneof![Just(262_143_328_850u64), Just(65_532_610_987), Just(0), any::<u64>()].boxed();
    let limit = prop_oneof![Just(0u64), 1_000_000u64..400_000_000, any::<u64>()].boxed();
    (path, name, content(near), content(range), content(limit))
        .prop_map(|(path, name, energy, range, limit)| (path, [name, energy, range, limit]))
}

fn write(root: &Path, (path, files): &(String, Files)) {
    let folder = root.join("class/powercap").join(path);
    // A wild name may be no folder's; then there is nothing to read.
    if fs::create_dir_all(&folder).is_err() {
        return;
    }
    let names = ["name", "energy_uj", "max_energy_range_uj", "constraint_0_max_power_uw"];
    for (name, content) in names.iter().zip(files) {
        let file = folder.join(name);
        match content {
            Some(content) => fs::write(file, content).unwrap(),
            None => drop(fs::remove_file(file)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::fuzz::times(500), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Trees that change under the reader: no panic, no power below zero or beyond what a zone may draw, and
    /// sums that only grow.
    #[test]
    fn whatever_lies_in_sysfs_nothing_is_invented(
        rounds in proptest::collection::vec((proptest::collection::vec(folder(), 0..7), any::<bool>(), 1u64..40), 1..5),
    ) {
        let root = crate::fuzz::folder();
        let measured = Measured::default();
        let mut rapl = Rapl::new(root.path(), measured.clone(), Duration::ZERO);
        let mut windows = Windows::default();
        let mut now = 0;
        for (folders, swept, elapsed) in rounds {
            if swept {
                // There may be none yet.
                drop(fs::remove_dir_all(root.path().join("class/powercap")));
            }
            folders.iter().for_each(|folder| write(root.path(), folder));
            now += elapsed;
            let Answer::Reading(reading) = read_at(&mut rapl, now) else {
                prop_assert!(!measured.get());
                continue;
            };
            let counts = |scope| reading.energy.iter().any(|energy| energy.scope == Some(scope));
            prop_assert_eq!(measured.get(), counts(Scope::Cpu));
            prop_assert!(counts(Scope::Cpu) || !counts(Scope::Dram), "an estimate beside memory");
            let mut names: Vec<&str> = reading.energy.iter().map(|e| e.meter.device.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), reading.energy.len(), "one series for each zone");
            for slice in windows.close(&reading.energy).slices {
                let watts = slice.mean_watts.unwrap_or(0.0);
                prop_assert!((0.0..=MAX_ZONE_WATTS * 1.2 + 1e-6).contains(&watts), "{watts} W");
                prop_assert!(slice.microjoules == 0 || slice.mean_watts.is_some());
            }
        }
    }
}
