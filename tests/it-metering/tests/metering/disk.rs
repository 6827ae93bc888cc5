//! A ledger on a disk that fails, under the real agent.
//!
//! Proves: whether the disk is full, read-only, gone or answers with errors, metering goes on from memory, says so
//! once and counts why; once it can be written it is, and a restart takes nothing back of what was shown.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use wattmill_it_metering::metrics::Metrics;
use wattmill_it_metering::process::Agent;

use super::scrape::assert_grown;

const ERRORS: &str = "wattmill_agent_ledger_errors_total";
const FILES: [&str; 3] = ["ledger.a", "ledger.b", "ledger.c"];
const KEYS: &str = "[metering]\ninterval_ms = 100\n";

/// A small filesystem of its own, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Where mounting is not allowed there is none, and it says so.
    fn new(folder: &Path, how: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let options = ["-t", "tmpfs", "-o", how, "tmpfs"];
        let output = Command::new("mount").args(options).arg(folder).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(folder.to_owned())),
            other => {
                eprintln!("skipped: no filesystem can be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: an agent may still have a file open.
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn said(agent: &Agent, message: &str) -> usize {
    agent.process.log().iter().filter(|line| line.contains(message)).count()
}

fn node(metrics: &Metrics) -> u64 {
    metrics.microjoules_by("wattmill_node_energy_joules_total", "source").values().sum()
}

/// The disk fails for `reason` while `fail` makes it so, until `mend`.
fn survives(mut agent: Agent, reason: &str, mut fail: impl FnMut(), mend: impl FnOnce()) {
    let labels = [("reason", reason)];
    let before = agent.windows(1);
    let failing = agent.until("failed writes are counted", |metrics| {
        fail();
        metrics.value(ERRORS, &labels).is_some()
    });
    assert_grown(&before, &failing);
    let later = agent.windows(5);
    assert_grown(&failing, &later);
    assert!(node(&later) > node(&failing), "metering goes on");
    assert!(later.value(ERRORS, &labels) > failing.value(ERRORS, &labels), "each one is counted");
    assert_eq!(said(&agent, "metering goes on from memory"), 1, "it is said once");
    mend();
    agent.process.event("the ledger can be written again");
    let mended = agent.windows(2);
    let shown = agent.windows(2);
    assert_eq!(shown.value(ERRORS, &labels), mended.value(ERRORS, &labels), "and fails no more");
    assert_grown(&later, &shown);
    agent.process.kill();
    let again = Agent::start_in("disk", agent.folder);
    let first = again.metrics();
    assert!(node(&first) >= node(&shown), "what was shown was written: {} {}", node(&first), node(&shown));
}

fn state(agent: &Agent) -> PathBuf {
    agent.folder.folder.path().join("state")
}

#[test]
fn a_full_disk() {
    let mut mounted = None;
    let agent = Agent::start("disk", |folder| {
        mounted = Mounted::new(&folder.join("state"), "size=256k");
        KEYS.to_owned()
    });
    let Some(_mounted) = mounted else { return };
    let state = state(&agent);
    let filler = state.join("filler");
    let fill = || {
        // What is in place can be written on a full disk: it has to be new.
        FILES.iter().for_each(|name| drop(fs::remove_file(state.join(name))));
        let mut file = File::options().create(true).append(true).open(&filler).unwrap();
        while file.write_all(&[0; 4_096]).is_ok() {}
    };
    survives(agent, "disk_full", fill, || fs::remove_file(&filler).unwrap());
}

/// One that is read-only comes to lie over it: the agent's lock keeps its own from being made so.
#[test]
fn a_disk_that_turns_read_only() {
    let agent = Agent::start("disk", |_| KEYS.to_owned());
    let state = state(&agent);
    let Some(first) = Mounted::new(&state, "ro") else { return };
    let over = RefCell::new(Some(first));
    let fail = || assert!(over.borrow().is_some());
    survives(agent, "read_only", fail, || drop(over.take()));
}

#[test]
fn a_folder_that_vanishes() {
    let agent = Agent::start("disk", |_| KEYS.to_owned());
    let (state, away) = (state(&agent), agent.folder.folder.path().join("away"));
    let vanish = || drop(fs::rename(&state, &away));
    survives(agent, "missing", vanish, || fs::rename(&away, &state).unwrap());
}

/// Writing to the address 0 of one's own memory is what the kernel answers with EIO.
#[test]
fn a_disk_that_answers_with_errors() {
    let agent = Agent::start("disk", |_| KEYS.to_owned());
    let state = state(&agent);
    let fail = || {
        for name in FILES {
            let link = state.join("link");
            symlink("/proc/self/mem", &link).unwrap();
            fs::rename(&link, state.join(name)).unwrap();
        }
    };
    let mend = || FILES.iter().for_each(|name| fs::remove_file(state.join(name)).unwrap());
    survives(agent, "io", fail, mend);
}
