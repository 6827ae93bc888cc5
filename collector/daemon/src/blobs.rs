//! Content-addressed blobs: gradients wait in memory for their round, parameters and optimizer state lie
//! in files.
//!
//! Invariants: a blob's name is its SHA-256 and is checked whenever it enters or is read from disk; a
//! file appears under its name whole or not at all, and is durable when [`Blobs::persist`] returns; what
//! waits in memory is bounded.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use wattmill_protocol::{Hash, Token};

/// Extension of a file that is being written.
const PARTIAL: &str = "partial";

/// Bytes and their name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Blob {
    name: Hash,
    bytes: Bytes,
}

impl Blob {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { name: Hash::of(&bytes), bytes }
    }

    pub(crate) fn name(&self) -> Hash {
        self.name
    }
}

/// A blob that cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// The bytes are not what their name says.
    #[error("the bytes hash to {found}, not to {named}")]
    Mismatch {
        /// The name.
        named: Hash,
        /// The bytes' hash.
        found: Hash,
    },
    /// Too many bytes wait already.
    #[error("{waiting} bytes of results wait for their rounds; at most {limit} may")]
    Full {
        /// Bytes that wait.
        waiting: u64,
        /// How many may.
        limit: u64,
    },
    /// Nobody has it.
    #[error("blob {0} is not here")]
    Missing(Hash),
    /// The disk refused.
    #[error("{}: {doing} failed", path.display())]
    Io {
        /// What was done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A shard's blob that waits for its round.
struct Staged {
    bytes: Bytes,
    /// Leases under which it was stored: equal blobs have one name.
    tokens: BTreeSet<Token>,
}

#[derive(Default)]
struct Memory {
    staged: HashMap<Hash, Staged>,
    staged_bytes: u64,
    /// Durable blobs that jobs use now: every shard of a round fetches the same parameters.
    recent: HashMap<Hash, Bytes>,
    /// What jobs that run use: only that is kept in memory when it is read.
    used: BTreeSet<Hash>,
}

/// All blobs of a collector.
pub(crate) struct Blobs {
    folder: PathBuf,
    staged_limit: u64,
    memory: Mutex<Memory>,
    /// Numbers the files that are being written.
    partials: AtomicU64,
}

impl Blobs {
    /// Opens the folder, making it where it is absent.
    pub(crate) fn open(folder: &Path, staged_limit: u64) -> Result<Self, BlobError> {
        fs::create_dir_all(folder).map_err(failed("making the folder", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            staged_limit,
            memory: Mutex::default(),
            partials: AtomicU64::default(),
        })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // A panic while the lock is held leaves maps that are still maps.
        self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps a shard's blob, which was stored under the lease `token`, in memory until its round is committed.
    pub(crate) fn stage(&self, named: Hash, bytes: Bytes, token: Token) -> Result<(), BlobError> {
        let found = Hash::of(&bytes);
        if found != named {
            return Err(BlobError::Mismatch { named, found });
        }
        let mut memory = self.memory();
        if let Some(staged) = memory.staged.get_mut(&named) {
            staged.tokens.insert(token);
            return Ok(());
        }
        let waiting = memory.staged_bytes;
        if waiting + bytes.len() as u64 > self.staged_limit {
            return Err(BlobError::Full { waiting, limit: self.staged_limit });
        }
        memory.staged_bytes += bytes.len() as u64;
        memory.staged.insert(named, Staged { bytes, tokens: BTreeSet::from([token]) });
        Ok(())
    }

    /// Drops what was stored under other leases than these: no round awaits it any more.
    pub(crate) fn keep_staged(&self, tokens: &BTreeSet<Token>) {
        let mut memory = self.memory();
        let Memory { staged, staged_bytes, .. } = &mut *memory;
        staged.retain(|_, blob| {
            let awaited = !blob.tokens.is_disjoint(tokens);
            if !awaited {
                *staged_bytes -= blob.bytes.len() as u64;
            }
            awaited
        });
    }

    /// How many bytes of results may wait for their rounds.
    pub(crate) fn staged_limit(&self) -> u64 {
        self.staged_limit
    }

    /// Whether a blob is here, in memory or on disk.
    pub(crate) fn has(&self, hash: Hash) -> bool {
        let memory = self.memory();
        memory.staged.contains_key(&hash) || memory.recent.contains_key(&hash) || self.path(hash).exists()
    }

    /// A blob's bytes, in memory or on disk; `None` where it is not here.
    pub(crate) fn size(&self, hash: Hash) -> Option<u64> {
        let memory = self.memory();
        let staged = memory.staged.get(&hash).map(|staged| &staged.bytes);
        let bytes = staged.or_else(|| memory.recent.get(&hash));
        bytes.map(|bytes| bytes.len() as u64).or_else(|| Some(fs::metadata(self.path(hash)).ok()?.len()))
    }

    /// Makes a blob durable.
    pub(crate) fn persist(&self, blob: Blob) -> Result<(), BlobError> {
        let path = self.path(blob.name);
        if !path.exists() {
            // Two reductions may write the same blob at once: each has a file of its own until it is whole.
            let number = self.partials.fetch_add(1, Ordering::Relaxed);
            let partial = path.with_extension(format!("{number}.{PARTIAL}"));
            write(&partial, &path, &blob.bytes).inspect_err(|_| {
                // A full disk must not be filled further by what is tried again. Where it is gone already, well.
                let _ = fs::remove_file(&partial);
            })?;
        }
        // Even where the file was there: whoever gave it its name may not have come this far.
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("syncing", &self.folder))?;
        self.memory().recent.insert(blob.name, blob.bytes);
        Ok(())
    }

    /// A blob's bytes.
    pub(crate) fn read(&self, hash: Hash) -> Result<Bytes, BlobError> {
        {
            let memory = self.memory();
            let staged = memory.staged.get(&hash).map(|staged| &staged.bytes);
            if let Some(bytes) = staged.or_else(|| memory.recent.get(&hash)) {
                return Ok(bytes.clone());
            }
        }
        let path = self.path(hash);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BlobError::Missing(hash)),
            Err(source) => return Err(failed("reading", &path)(source)),
        };
        let found = Hash::of(&bytes);
        if found != hash {
            let aside = path.with_extension("corrupt");
            tracing::error!(file = %path.display(), kept = %aside.display(), "a blob is corrupt: set aside");
            fs::rename(&path, &aside).map_err(failed("setting aside", &path))?;
            return Err(BlobError::Mismatch { named: hash, found });
        }
        let mut memory = self.memory();
        if memory.used.contains(&hash) {
            memory.recent.insert(hash, bytes.clone());
        }
        drop(memory);
        Ok(bytes)
    }

    /// Keeps durable blobs in memory that jobs use which run, and drops the others: they lie in files.
    pub(crate) fn keep_recent(&self, used: BTreeSet<Hash>) {
        let mut memory = self.memory();
        memory.recent.retain(|hash, _| used.contains(hash));
        memory.used = used;
    }

    /// Drops blobs that nothing names any more.
    pub(crate) fn retire(&self, hashes: &[Hash]) {
        for &hash in hashes {
            {
                let mut memory = self.memory();
                if let Some(staged) = memory.staged.remove(&hash) {
                    memory.staged_bytes -= staged.bytes.len() as u64;
                }
                memory.recent.remove(&hash);
            }
            let path = self.path(hash);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(file = %path.display(), %error, "cannot remove a retired blob");
                }
                _ => {}
            }
        }
    }

    /// Removes files that no job uses: what a crash between blob and manifest left behind.
    pub(crate) fn collect_orphans(&self, in_use: &BTreeSet<Hash>) -> Result<usize, BlobError> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.folder).map_err(failed("listing", &self.folder))? {
            let path = entry.map_err(failed("listing", &self.folder))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let orphan = match name.parse::<Hash>() {
                Ok(hash) => !in_use.contains(&hash),
                Err(_) => path.extension().is_some_and(|extension| extension == PARTIAL),
            };
            if orphan {
                fs::remove_file(&path).map_err(failed("removing", &path))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn path(&self, hash: Hash) -> PathBuf {
        self.folder.join(hash.to_string())
    }
}

/// Writes a file whole under `partial`, then gives it its name.
fn write(partial: &Path, path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
    let mut file = File::create(partial).map_err(failed("creating", partial))?;
    file.write_all(bytes).map_err(failed("writing", partial))?;
    file.sync_data().map_err(failed("syncing", partial))?;
    fs::rename(partial, path).map_err(failed("renaming", partial))
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| BlobError::Io { doing, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_checked_bounded_and_collected() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), 10).unwrap();
        let bytes = Bytes::from_static(b"12345678");
        let hash = Hash::of(&bytes);
        let [one, two, three] = [1, 2, 3].map(Token);
        assert!(matches!(blobs.stage(Hash::of(b"x"), bytes.clone(), one), Err(BlobError::Mismatch { .. })));
        blobs.stage(hash, bytes.clone(), one).unwrap();
        blobs.stage(hash, bytes.clone(), one).unwrap();
        let other = Bytes::from_static(b"abc");
        assert!(matches!(blobs.stage(Hash::of(&other), other.clone(), two), Err(BlobError::Full { .. })));
        blobs.retire(&[hash]);
        blobs.stage(Hash::of(&other), other, two).unwrap();
        assert!(matches!(blobs.read(hash), Err(BlobError::Missing(_))));

        blobs.stage(hash, bytes.clone(), one).unwrap_err();
        blobs.keep_staged(&BTreeSet::from([one]));
        blobs.stage(hash, bytes.clone(), one).expect("what no lease awaits makes room");
        blobs.stage(hash, bytes.clone(), three).unwrap();
        blobs.keep_staged(&BTreeSet::from([three]));
        assert_eq!(blobs.read(hash).unwrap(), bytes, "another lease has the same bytes");
        blobs.keep_staged(&BTreeSet::new());
        assert_eq!(blobs.memory().staged_bytes, 0);

        let orphan = Blob::new(Bytes::from_static(b"orphan"));
        blobs.persist(Blob::new(bytes.clone())).unwrap();
        blobs.persist(orphan.clone()).unwrap();
        fs::write(folder.path().join(format!("{hash}.7.partial")), b"123").unwrap();
        let again = Blobs::open(folder.path(), 10).unwrap();
        assert_eq!(again.collect_orphans(&BTreeSet::from([hash])).unwrap(), 2);
        assert_eq!(again.read(hash).unwrap(), bytes);
        assert!(!again.has(orphan.name()));
    }

    #[test]
    fn one_blob_may_be_written_by_several_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), 0).unwrap();
        let blob = Blob::new(vec![7; 1 << 20].into());
        for _ in 0..8 {
            std::thread::scope(|scope| {
                let write = || scope.spawn(|| blobs.persist(blob.clone()).unwrap());
                let writers: Vec<_> = (0..4).map(|_| write()).collect();
                writers.into_iter().for_each(|writer| writer.join().unwrap());
            });
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing partial is left");
            let fresh = Blobs::open(folder.path(), 0).unwrap();
            assert_eq!(fresh.read(blob.name()).unwrap(), blob.bytes, "whole");
            blobs.retire(&[blob.name()]);
        }
    }

    #[test]
    fn models_that_nobody_trains_are_not_kept_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), 0).unwrap();
        let [old, new] = ["old", "new"].map(|bytes| Blob::new(bytes.into()));
        blobs.persist(old.clone()).unwrap();
        blobs.persist(new.clone()).unwrap();
        blobs.keep_recent(BTreeSet::from([new.name]));
        let kept = || blobs.memory().recent.keys().copied().collect::<Vec<_>>();
        assert_eq!(kept(), [new.name]);
        assert_eq!(blobs.read(old.name).unwrap(), old.bytes, "its file is there");
        assert_eq!(kept(), [new.name]);
        let again = Blobs::open(folder.path(), 0).unwrap();
        again.keep_recent(BTreeSet::from([old.name]));
        again.read(old.name).unwrap();
        assert!(again.memory().recent.contains_key(&old.name), "each node of a round fetches it");
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let good = Blob::new(Bytes::from_static(b"good"));
        let hash = good.name();
        Blobs::open(folder.path(), 10).unwrap().persist(good).unwrap();
        fs::write(folder.path().join(hash.to_string()), b"evil").unwrap();
        let blobs = Blobs::open(folder.path(), 10).unwrap();
        assert!(matches!(blobs.read(hash), Err(BlobError::Mismatch { .. })));
        assert_eq!(fs::read(folder.path().join(format!("{hash}.corrupt"))).unwrap(), b"evil");
    }
}
