//! The device's dense peak FLOP/s: measured in bursts, kept on disk, raised when the device is seen to do more.
//!
//! Whatever else runs on a host makes a burst slower, and nothing makes it faster than the device is. So the
//! peak is the highest rate that was ever seen, be it a burst's or a shard's, and a peak below that would be
//! provably wrong. Invariants: it never falls as long as the device is the same; agents of one host probe one
//! after the other, as far as the lock can be had; after the first one, a burst waits until no lease was in
//! hand for a while.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use wattmill_protocol::v1;

use super::worker::{Worker, WorkerError};
use crate::config::Config;
use crate::device::estimate::CpuModel;

/// The compute device of a worker without GPUs.
pub(super) const DEVICE: &str = "cpu";
/// Where the peak is kept.
const PEAK_FILE: &str = "peak.json";
/// How long one burst may take: it is meant to take 0.4 s.
const BURST_WITHIN: Duration = Duration::from_secs(60);
/// Bursts that a peak is taken from. Spread over minutes, one of them meets a quiet moment of a shared host.
const BURSTS: u32 = 5;
/// Time without a lease before a burst, and the pause before the second one; it doubles. With no work at all
/// they come after 10, 20, 40 and 80 s: two and a half minutes.
const PAUSE: Duration = Duration::from_secs(10);
/// How long the first burst waits for those of the host's other agents: seven of them.
const LOCK_WITHIN: Duration = Duration::from_secs(3);
/// Pause between two looks at the lock: the lock of a file cannot be waited for with a deadline.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Shortest work whose rate is believed: clocks tick in nanoseconds, but reading them takes some. Shards that are
/// shorter are taken together.
const MIN_WORK: Duration = Duration::from_millis(1);

/// A device's peak.
#[derive(Debug)]
pub(super) struct Peak {
    path: PathBuf,
    lock: PathBuf,
    kept: Kept,
    /// When the next burst may begin.
    next: Instant,
    pause: Duration,
    /// What was worked in which time since a rate was last taken: less than [`MIN_WORK`].
    short: (u64, Duration),
}

/// The right to probe: no other agent of this host does as long as it lives.
#[derive(Debug)]
pub(super) struct Turn {
    /// None where there is no file to lock: nobody else of this host has one either.
    _file: Option<File>,
}

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Kept {
    flops_per_second: f64,
    precision: String,
    device: Device,
    /// How many bursts it comes from. One that others may have disturbed does not count.
    bursts: u32,
}

/// What a peak holds for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Device {
    numerics: String,
    model: String,
    cpus: String,
}

impl Peak {
    /// The peak of the worker's device: of former runs, or of a first burst.
    pub(super) async fn find(worker: &mut Worker, config: &Config) -> Result<Self, WorkerError> {
        let device = Device {
            numerics: worker.numerics().to_owned(),
            model: CpuModel::read(&config.procfs_root).name,
            cpus: config.cpus.to_string(),
        };
        let (path, lock) = (config.state_dir.join(PEAK_FILE), config.machine_id_file.clone());
        if let Some(kept) = load(&path, &device) {
            return Ok(Self::new(path, lock, kept));
        }
        let turn = wait_for_turn(&lock, LOCK_WITHIN).await;
        worker.send(request(config.cpus.len())).await?;
        let reply = tokio::time::timeout(BURST_WITHIN, worker.next()).await;
        let v1::from_worker::Kind::Probe(reply) = reply.map_err(|_| WorkerError::Silent("probe"))?? else {
            return Err(WorkerError::Silent("answer the probe"));
        };
        let bursts = u32::from(turn.is_some());
        let v1::ProbeReply { flops_per_second, precision } = reply;
        let peak = Self::new(path, lock, Kept { flops_per_second, precision, device, bursts });
        tracing::info!(gflops = flops_per_second / 1e9, alone = bursts == 1, "peak measured");
        peak.save();
        Ok(peak)
    }

    fn new(path: PathBuf, lock: PathBuf, kept: Kept) -> Self {
        Self { path, lock, kept, next: Instant::now() + PAUSE, pause: PAUSE, short: (0, Duration::ZERO) }
    }

    /// FLOP/s, and of which numbers.
    pub(super) fn figure(&self) -> (f64, &str) {
        (self.kept.flops_per_second, &self.kept.precision)
    }

    /// When the next burst may begin, while one is wanted.
    pub(super) fn next_burst(&self) -> Option<Instant> {
        (self.kept.bursts < BURSTS).then_some(self.next)
    }

    /// A lease is in hand: no burst for a while.
    pub(super) fn busy(&mut self) {
        self.next = self.next.max(Instant::now() + PAUSE);
    }

    /// A burst is about to begin; `None` while another agent of the host has its own.
    pub(super) fn begin_burst(&mut self) -> Option<Turn> {
        let turn = take_turn(&self.lock);
        self.next = Instant::now() + self.pause;
        turn
    }

    /// A burst has ended that had the host's turn. Returns whether it raised the peak.
    pub(super) fn end_burst(&mut self, flops_per_second: f64) -> bool {
        self.kept.bursts += 1;
        self.pause *= 2;
        self.next = Instant::now() + self.pause;
        let raised = self.raise(flops_per_second, "a burst");
        self.save();
        raised
    }

    /// A shard's work took so long. Returns whether it raised the peak; of shorter shards than a clock can tell,
    /// the last of several does.
    pub(super) fn worked(&mut self, flops: u64, time: Duration) -> bool {
        let (flops, time) = (self.short.0.saturating_add(flops), self.short.1.saturating_add(time));
        if time < MIN_WORK {
            self.short = (flops, time);
            return false;
        }
        self.short = (0, Duration::ZERO);
        let raised = self.raise(flops as f64 / time.as_secs_f64(), "shards");
        if raised {
            self.save();
        }
        raised
    }

    fn raise(&mut self, flops_per_second: f64, by: &'static str) -> bool {
        let before = self.kept.flops_per_second;
        let raised = flops_per_second > before;
        if raised {
            tracing::info!(gflops = flops_per_second / 1e9, before = before / 1e9, by, "peak raised");
            self.kept.flops_per_second = flops_per_second;
        }
        raised
    }

    fn save(&self) {
        let text = serde_json::to_string(&self.kept).unwrap_or_default();
        if let Err(error) = fs::write(&self.path, text) {
            tracing::warn!(
                file = %self.path.display(), %error,
                "the peak is not kept: it is measured again at the next start"
            );
        }
    }
}

/// Measures on so many CPUs.
pub(super) fn request(cpus: usize) -> v1::to_worker::Kind {
    v1::to_worker::Kind::Probe(v1::ProbeRequest { threads: cpus as u32 })
}

fn load(path: &Path, device: &Device) -> Option<Kept> {
    let text = fs::read_to_string(path).ok()?;
    let kept: Kept = serde_json::from_str(&text).ok()?;
    (kept.device == *device && kept.flops_per_second > 0.0).then_some(kept)
}

async fn wait_for_turn(lock: &Path, patience: Duration) -> Option<Turn> {
    let deadline = Instant::now() + patience;
    loop {
        let turn = take_turn(lock);
        if turn.is_some() || Instant::now() >= deadline {
            return turn;
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// The lock is advisory and on the machine-id file: agents of one host are those that share it, whatever their
/// users and state folders are, and for reading it every one of them has it open anyway.
fn take_turn(lock: &Path) -> Option<Turn> {
    let Ok(file) = File::open(lock) else { return Some(Turn { _file: None }) };
    match file.try_lock() {
        Ok(()) => Some(Turn { _file: Some(file) }),
        Err(fs::TryLockError::WouldBlock) => None,
        Err(fs::TryLockError::Error(error)) => {
            tracing::debug!(file = %lock.display(), %error, "cannot be locked: probing without");
            Some(Turn { _file: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(cpus: &str) -> Device {
        Device { numerics: "avx2/f32/1".to_owned(), model: "AMD EPYC".to_owned(), cpus: cpus.to_owned() }
    }

    fn peak(folder: &Path) -> Peak {
        let kept =
            Kept { flops_per_second: 1e9, precision: "f32".to_owned(), device: device("0-1"), bursts: 1 };
        let lock = folder.join("machine-id");
        fs::write(&lock, "4bf92f3577b34da6a3ce929d0e0e4736").unwrap();
        Peak::new(folder.join(PEAK_FILE), lock, kept)
    }

    #[test]
    fn the_peak_is_the_highest_rate_that_was_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut peak = peak(folder.path());
        let second = Duration::from_secs(1);
        assert!(!peak.worked(500_000_000, second), "slower work says nothing");
        assert!(!peak.worked(0, Duration::ZERO));
        assert!(peak.worked(2_000_000_000, second));
        assert_eq!(peak.figure(), (2e9, "f32"));
        assert!(!peak.end_burst(1.5e9), "never lowered");
        assert!(peak.end_burst(2.5e9));
        let kept = load(&peak.path, &device("0-1")).unwrap();
        assert_eq!((kept.flops_per_second, kept.bursts), (2.5e9, 3), "kept across restarts");
        assert_eq!(load(&peak.path, &device("0-2")), None, "of other CPUs");
        fs::write(&peak.path, "{\"flops_per_second\":").unwrap();
        assert_eq!(load(&peak.path, &device("0-1")), None);
    }

    #[test]
    fn shards_of_less_than_a_millisecond_raise_the_peak_together() {
        let folder = tempfile::tempdir().unwrap();
        let mut peak = peak(folder.path());
        let short = Duration::from_micros(250);
        for round in 1..=2 {
            let flops = round * 1_000_000;
            assert!((0..3).all(|_| !peak.worked(flops, short)), "too short to be believed");
            assert!(peak.worked(flops, short));
            assert_eq!(peak.figure().0, flops as f64 / 250e-6);
        }
    }

    #[tokio::test]
    async fn bursts_are_spread_out_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut peak = peak(folder.path());
        let mut before = peak.next_burst().unwrap();
        for burst in 2..BURSTS {
            assert!(peak.begin_burst().is_some());
            peak.end_burst(1e9);
            let next = peak.next_burst().unwrap();
            assert!(next >= before + PAUSE, "burst {burst}");
            before = next;
        }
        peak.end_burst(1e9);
        assert_eq!(peak.next_burst(), None);
    }

    #[tokio::test]
    async fn agents_of_a_host_probe_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (peak(folder.path()), peak(folder.path()));
        let turn = one.begin_burst().unwrap();
        assert!(two.begin_burst().is_none());
        assert!(wait_for_turn(&two.lock, Duration::ZERO).await.is_none(), "it does not wait for ever");
        let waiting = wait_for_turn(&two.lock, Duration::from_secs(3_600));
        let (waited, ()) = tokio::join!(waiting, async { drop(turn) });
        assert!(waited.is_some() && one.begin_burst().is_none());
        drop(waited);
        fs::remove_file(&two.lock).unwrap();
        assert!(two.begin_burst().is_some(), "no file, no lock");
    }
}
