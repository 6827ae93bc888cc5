//! The real programs as processes, in a temporary folder, on free ports.
//!
//! Invariants: nothing sleeps for a fixed time, every wait is for a condition and has a deadline; whatever
//! a test started is killed when it ends; a test that fails prints the logs of its programs.

#![allow(clippy::missing_panics_doc, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod program;

pub use cluster::{AgentConfig, Cluster, cpus, model};
pub use program::{Output, Program, Signal, binary, children, run, signal};

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Waits for this test's turn: tests that train would otherwise share the CPUs, and time each other out.
#[must_use]
pub fn turn() -> File {
    let lock = binary("wattmill").with_file_name("it.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&lock).unwrap();
    file.lock().unwrap();
    file
}

/// Tries until there is an answer, or panics with what was waited for.
pub async fn eventually<T>(what: &str, attempt: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, attempt).await
}

/// As [`eventually`], for what is known to take longer.
pub async fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", patience.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The body of `http://{address}{path}`; `None` where nobody answers with 200.
#[must_use]
pub fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// Sum of a metric's samples whose labels hold all of `labels`; `None` where there is none.
#[must_use]
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, rest) = series.split_once('{').unwrap_or((series, ""));
        let matches = found == name && labels.iter().all(|(k, v)| rest.contains(&format!("{k}=\"{v}\"")));
        matches.then(|| value.parse::<f64>().unwrap())
    });
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// The repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The shipped job with its data in `folder`.
#[must_use]
pub fn digits(folder: &Path) -> String {
    let data = folder.join("digits.csv.gz");
    std::fs::copy(repository().join("tests/fixtures/digits.csv.gz"), &data).unwrap();
    let job = std::fs::read_to_string(repository().join("jobs/digits.toml")).unwrap();
    let shipped = "file:///usr/share/wattmill/digits.csv.gz";
    assert!(job.contains(shipped));
    job.replace(shipped, &format!("file://{}", data.display()))
}

/// Whether this machine has an energy meter that may be read.
#[must_use]
pub fn has_meter() -> bool {
    let zones = std::fs::read_dir("/sys/class/powercap").into_iter().flatten().flatten();
    zones.map(|zone| zone.path().join("energy_uj")).any(|file| std::fs::read(file).is_ok())
}
