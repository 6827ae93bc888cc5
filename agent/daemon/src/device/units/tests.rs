use std::fs;

use proptest::prelude::*;

use super::*;

/// A tree of cgroups v2 in a folder.
struct Tree {
    sys: tempfile::TempDir,
    now: Duration,
    units: Units,
}

impl Tree {
    fn new(kinds: &[UnitKind]) -> Self {
        let sys = tempfile::tempdir().unwrap();
        let attribution = Attribution {
            kinds: kinds.iter().copied().collect(),
            top: 20,
            retention: Duration::from_secs(300),
        };
        let units = Units::new(sys.path(), &attribution);
        let tree = Self { sys, now: Duration::from_secs(1), units };
        fs::create_dir_all(tree.path("")).unwrap();
        fs::write(tree.path("cgroup.controllers"), "cpu\n").unwrap();
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.sys.path().join("fs/cgroup").join(path)
    }

    /// Sets what a cgroup and all below it have used, in milliseconds.
    fn used(&self, path: &str, millis: u64) {
        let folder = self.path(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cpu.stat"), format!("usage_usec {}\nuser_usec 1\n", millis * 1_000)).unwrap();
    }

    /// Reads, and what each unit has used so far in milliseconds; after a while new cgroups are looked for.
    fn read(&mut self, after: Duration) -> (BTreeMap<String, u64>, Vec<&'static str>) {
        self.now += after;
        match self.units.read_at(self.now) {
            Answer::Reading(reading) => {
                let units = reading.units.unwrap();
                let millis = units.nanos.iter().map(|(unit, nanos)| (unit.name.clone(), nanos / 1_000_000));
                (millis.collect(), reading.failures)
            }
            other => panic!("{other:?}"),
        }
    }

    fn walk(&mut self) -> BTreeMap<String, u64> {
        let (units, failures) = self.read(Duration::from_secs(60));
        assert_eq!(failures, Vec::<&str>::new());
        units
    }

    fn soon(&mut self) -> BTreeMap<String, u64> {
        self.read(Duration::from_millis(100)).0
    }
}

fn map(units: &[(&str, u64)]) -> BTreeMap<String, u64> {
    units.iter().map(|(name, millis)| ((*name).to_owned(), *millis)).collect()
}

#[test]
fn time_of_an_inner_unit_is_not_the_outer_ones() {
    let id = "a".repeat(64);
    let container = format!("user.slice/user@7.service/user.slice/libpod-{id}.scope");
    let mut tree = Tree::new(&UnitKind::ALL);
    for (path, millis) in [("user.slice", 100), ("user.slice/user@7.service", 90), (container.as_str(), 50)] {
        tree.used(path, millis);
    }
    fs::create_dir_all(tree.path(&format!("{container}/init.scope"))).unwrap();
    let none = map(&[("/user.slice", 0), ("user@7.service", 0), (&id, 0)]);
    assert_eq!(tree.walk(), none, "what was used before counts for nobody");
    tree.used("user.slice", 160);
    tree.used("user.slice/user@7.service", 140);
    tree.used(&container, 80);
    assert_eq!(tree.soon(), map(&[("/user.slice", 10), ("user@7.service", 20), (&id, 30)]));
}

#[test]
fn a_counter_that_goes_back_is_no_negative_time() {
    let mut tree = Tree::new(&[UnitKind::Systemd]);
    tree.used("a.service", 100);
    tree.walk();
    tree.used("a.service", 40);
    assert_eq!(tree.soon(), map(&[("a.service", 0)]));
    tree.used("a.service", 45);
    assert_eq!(tree.soon(), map(&[("a.service", 5)]));
}

#[test]
fn a_cgroup_of_an_old_name_is_a_new_one() {
    let mut tree = Tree::new(&[UnitKind::Systemd]);
    tree.used("system.slice/a.service", 100);
    tree.walk();
    tree.used("system.slice/a.service", 107);
    assert_eq!(tree.walk(), map(&[("a.service", 7)]));
    fs::remove_dir_all(tree.path("system.slice/a.service")).unwrap();
    tree.used("system.slice/a.service", 5_000);
    assert_eq!(tree.walk(), map(&[("a.service", 7)]), "what the new one used before is not counted");
    tree.used("system.slice/a.service", 5_001);
    assert_eq!(tree.soon(), map(&[("a.service", 8)]));
    fs::remove_dir_all(tree.path("system.slice/a.service")).unwrap();
    assert_eq!(tree.walk(), map(&[]));
}

#[test]
fn a_unit_may_have_several_cgroups() {
    let mut tree = Tree::new(&[UnitKind::Slurm]);
    let cgroups = ["slurm/uid_1/job_5", "system.slice/slurmstepd.scope/job_5"];
    cgroups.iter().for_each(|path| tree.used(path, 1));
    tree.walk();
    cgroups.iter().for_each(|path| tree.used(path, 4));
    assert_eq!(tree.soon(), map(&[("5", 6)]));
}

#[test]
fn what_cannot_be_read_is_counted_and_the_rest_goes_on() {
    let mut tree = Tree::new(&[UnitKind::Systemd]);
    tree.used("good.service", 1);
    for (name, bytes) in [("binary", &b"\xff\x00\xfe"[..]), ("empty", b""), ("huge", &[b'x'; 1 << 20])] {
        let folder = tree.path(&format!("{name}.service"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cpu.stat"), bytes).unwrap();
    }
    fs::create_dir_all(tree.path("bare.service")).unwrap();
    fs::create_dir_all(tree.path("folder.service/cpu.stat")).unwrap();
    std::os::unix::fs::symlink(tree.path(""), tree.path("loop.service")).unwrap();
    let (units, failures) = tree.read(Duration::ZERO);
    assert_eq!(units, map(&[("good.service", 0)]));
    assert_eq!(failures.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["invalid", "io"]));
    tree.used("good.service", 3);
    assert_eq!(tree.soon(), map(&[("good.service", 2)]));
    fs::write(tree.path("good.service/cpu.stat"), "").unwrap();
    let (units, failures) = tree.read(Duration::from_millis(100));
    assert_eq!((units, failures), (map(&[("good.service", 2)]), vec!["invalid"]));
    tree.used("good.service", 9);
    assert_eq!(tree.soon(), map(&[("good.service", 8)]), "nothing is lost by a reading that failed");
}

#[test]
fn a_walk_is_bounded() {
    let mut tree = Tree::new(&[UnitKind::Systemd]);
    fs::create_dir_all(tree.path(&"d/".repeat(40))).unwrap();
    for number in 0..tree::MAX_CGROUPS + 5 {
        tree.used(&format!("{number}.service"), 1);
    }
    let (units, failures) = tree.read(Duration::ZERO);
    assert_eq!((units.len(), failures), (tree::MAX_CGROUPS, vec!["too_many"]));
}

#[test]
fn no_cgroups_at_all_is_a_failure_that_mends_itself() {
    let mut tree = Tree::new(&[UnitKind::Systemd]);
    fs::remove_file(tree.path("cgroup.controllers")).unwrap();
    assert!(matches!(tree.units.read_at(tree.now), Answer::Failed(error) if error.reason == "missing"));
    fs::write(tree.path("cgroup.controllers"), "").unwrap();
    assert_eq!(tree.walk(), map(&[]));
}

#[test]
fn a_process_is_of_the_unit_of_its_cgroup() {
    let tree = Tree::new(&[UnitKind::Systemd]);
    let proc = tempfile::tempdir().unwrap();
    let attribution =
        Attribution { kinds: Kinds::from([UnitKind::Systemd]), top: 1, retention: Duration::ZERO };
    let places = Places::new(tree.sys.path(), proc.path(), &attribution);
    let process = |pid: u32, bytes: &[u8]| {
        let folder = proc.path().join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cgroup"), bytes).unwrap();
    };
    process(7, b"1:name=systemd:/x.service\n0::/system.slice/a.service/inner\n");
    process(8, b"0::/\n");
    process(9, &[b'0'; 1 << 20]);
    let name = |pid| places.unit_of(pid).map(|unit| unit.name);
    assert_eq!([7, 8, 9, 10].map(name), [Some("a.service".to_owned()), None, None, None]);
}

/// A step in the life of a tree.
#[derive(Clone, Debug)]
enum Step {
    Use(usize, u64),
    Garble(usize, Vec<u8>),
    Remove(usize),
    Read(bool),
}

/// One within the other, and beside each other.
const CGROUPS: [&str; 6] = [
    "a.service",
    "a.service/docker-0123456789ab.scope",
    "a.service/docker-0123456789ab.scope/b.service",
    "s.slice/job_1",
    "slurmstepd.scope/job_1",
    "kubepods/podx/y",
];

fn step() -> impl Strategy<Value = Step> {
    let cgroup = 0..CGROUPS.len();
    prop_oneof![
        4 => (cgroup.clone(), 0..10_000u64).prop_map(|(at, millis)| Step::Use(at, millis)),
        1 => (cgroup.clone(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, bytes)| Step::Garble(at, bytes)),
        1 => cgroup.prop_map(Step::Remove),
        4 => any::<bool>().prop_map(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_life_of_a_tree_is_read_without_panic_and_time_only_grows(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut tree = Tree::new(&UnitKind::ALL);
        let mut before = BTreeMap::new();
        for step in steps {
            match step {
                Step::Use(at, millis) => tree.used(CGROUPS[at], millis),
                Step::Garble(at, bytes) => {
                    fs::create_dir_all(tree.path(CGROUPS[at])).unwrap();
                    fs::write(tree.path(CGROUPS[at]).join("cpu.stat"), bytes).unwrap();
                }
                Step::Remove(at) => drop(fs::remove_dir_all(tree.path(CGROUPS[at]))),
                Step::Read(walk) => {
                    let after = if walk { Duration::from_secs(60) } else { Duration::from_millis(10) };
                    let (units, _) = tree.read(after);
                    for (unit, millis) in &units {
                        // One that left and came again begins anew.
                        prop_assert!(before.get(unit).is_none_or(|before| before <= millis), "{unit}");
                    }
                    before = units;
                }
            }
        }
    }
}
