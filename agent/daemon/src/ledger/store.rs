//! The ledger on disk: three files, each with a header and a checksum, rewritten in turn.
//!
//! Invariant: a write never touches the newest file nor the newest one known to be on the medium, so
//! that a process killed in the middle of a write loses nothing and a power cut at most what was written
//! since the last sync. What cannot be read is set aside, never deleted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Ledger;
use crate::clock;

const FILES: [&str; 3] = ["ledger.a", "ledger.b", "ledger.c"];
const MAGIC: &[u8; 8] = b"WMLEDGER";
/// Version of the format. A newer one is refused: reading it as this one could lose joules.
const VERSION: u32 = 1;
/// Magic, version, sequence, length, checksum.
const HEADER_BYTES: usize = 8 + 4 + 8 + 4 + 4;
/// Largest ledger that is believed.
const MAX_BYTES: u64 = 256 << 20;

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer version of the agent wrote it.
    #[error(
        "{} was written by a newer wattmill-agent (ledger version {found}, this one knows {VERSION}): \
         install that version again, or set state_dir to another folder",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A file cannot be read.
    #[error("cannot read the ledger {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was found on disk.
#[derive(Debug)]
pub enum Found {
    /// Nothing: the first run.
    Nothing,
    /// The newest valid ledger.
    Ledger(Box<Ledger>),
    /// Files, none of them valid: they were set aside.
    Lost,
}

/// The files.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    sequence: u64,
    newest: Option<usize>,
    synced: Option<usize>,
    /// Whether the file's name is on the medium.
    named: [bool; FILES.len()],
}

#[derive(Debug)]
enum Content {
    Absent,
    Valid { sequence: u64, ledger: Box<Ledger> },
    Corrupt(&'static str),
    Newer(u32),
}

impl Store {
    /// Opens the ledger in `folder` and reads the newest valid one.
    ///
    /// # Errors
    /// When a file cannot be read, or was written by a newer version.
    pub fn open(folder: &Path) -> Result<(Self, Found), StoreError> {
        let folder = folder.to_owned();
        let named = [false; FILES.len()];
        let mut store = Self { folder, sequence: 0, newest: None, synced: None, named };
        let mut best: Option<Box<Ledger>> = None;
        let mut corrupt = Vec::new();
        for (slot, name) in FILES.iter().enumerate() {
            let path = store.folder.join(name);
            match read(&path)? {
                Content::Absent => {}
                Content::Newer(found) => return Err(StoreError::Newer { path, found }),
                Content::Corrupt(why) => corrupt.push((path, why)),
                Content::Valid { sequence, ledger } if best.is_none() || sequence > store.sequence => {
                    (store.sequence, store.newest, best) = (sequence, Some(slot), Some(ledger));
                }
                Content::Valid { .. } => {}
            }
        }
        let lost = best.is_none() && !corrupt.is_empty();
        for (path, why) in &corrupt {
            set_aside(path, why);
        }
        store.sync_newest();
        Ok((store, best.map_or(if lost { Found::Lost } else { Found::Nothing }, Found::Ledger)))
    }

    /// Writes the ledger; with `sync` it is on the medium when this returns.
    ///
    /// # Errors
    /// When the file cannot be written. The newest one stands, and the next write tries again.
    pub fn write(&mut self, ledger: &Ledger, sync: bool) -> io::Result<()> {
        let payload = serde_json::to_vec(ledger)?;
        let bytes = encode(self.sequence + 1, &payload)?;
        let free = (0..FILES.len()).find(|slot| Some(*slot) != self.newest && Some(*slot) != self.synced);
        // Two are taken at most.
        let slot = free.unwrap_or(0);
        let path = self.folder.join(FILES[slot]);
        // In place: a full disk has room for what is already there.
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        file.write_all(&bytes)?;
        self.sequence += 1;
        self.newest = Some(slot);
        if sync {
            file.sync_data()?;
            if !self.named[slot] {
                File::open(&self.folder)?.sync_all()?;
                self.named[slot] = true;
            }
            self.synced = Some(slot);
        }
        Ok(())
    }

    /// What a former run wrote last may not be on the medium yet.
    fn sync_newest(&mut self) {
        let synced = self.newest.filter(|slot| {
            File::open(self.folder.join(FILES[*slot])).and_then(|file| file.sync_data()).is_ok()
        });
        self.synced = synced;
    }
}

fn encode(sequence: u64, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).map_err(|_| io::Error::other("the ledger is too large"))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    let checksum = checksum(&bytes, payload);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

fn read(path: &Path) -> Result<Content, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let bytes = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => return Ok(Content::Corrupt("it is too large")),
        Ok(_) => fs::read(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Absent),
        Err(error) => return Err(failed(error)),
    };
    Ok(decode(&bytes))
}

fn decode(bytes: &[u8]) -> Content {
    if bytes.is_empty() {
        // Created and not written yet.
        return Content::Absent;
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Content::Corrupt("it is cut off in its header");
    };
    if &header[..8] != MAGIC {
        return Content::Corrupt("it does not begin as a ledger");
    }
    let version = u32::from_le_bytes(field(header, 8));
    // The version stands before the checksum, which another version may compute otherwise.
    if version > VERSION {
        return Content::Newer(version);
    }
    let length = u32::from_le_bytes(field(header, 20)) as usize;
    // A file may hold the end of a longer ledger before it.
    let Some(payload) = rest.get(..length) else { return Content::Corrupt("it is cut off") };
    if checksum(&header[..24], payload) != u32::from_le_bytes(field(header, 24)) {
        return Content::Corrupt("its checksum is wrong");
    }
    match serde_json::from_slice(payload) {
        Ok(ledger) => Content::Valid { sequence: u64::from_le_bytes(field(header, 12)), ledger },
        Err(_) => Content::Corrupt("its content is not understood"),
    }
}

/// `N` bytes of a header at `offset`; zeros beyond its end.
fn field<const N: usize>(header: &[u8], offset: usize) -> [u8; N] {
    std::array::from_fn(|i| header.get(offset + i).copied().unwrap_or(0))
}

fn set_aside(path: &Path, why: &str) {
    let seconds = clock::unix_nanos() / 1_000_000_000;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".corrupt-{seconds}"));
    let aside = PathBuf::from(name);
    match fs::rename(path, &aside) {
        Ok(()) => tracing::error!(
            file = %path.display(), kept_as = %aside.display(), why, "a ledger file is corrupt; set aside"
        ),
        Err(error) => tracing::error!(
            file = %path.display(), %error, why, "a ledger file is corrupt and cannot be set aside; it is overwritten"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(flops: u64) -> Ledger {
        Ledger { useful_flops: flops, ..Ledger::new("machine", Some("boot"), 1) }
    }

    fn found(folder: &Path) -> Option<u64> {
        match Store::open(folder).unwrap().1 {
            Found::Ledger(ledger) => Some(ledger.useful_flops),
            _ => None,
        }
    }

    fn kept_aside(folder: &Path) -> usize {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains(".corrupt-")).count()
    }

    #[test]
    fn the_newest_write_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Store::open(folder.path()).unwrap().1, Found::Nothing));
        for run in 0..4u64 {
            let (mut store, _) = Store::open(folder.path()).unwrap();
            for i in 0..5 {
                store.write(&ledger(run * 10 + i), i == 2).unwrap();
            }
            assert_eq!(found(folder.path()), Some(run * 10 + 4));
        }
    }

    #[test]
    fn a_write_spares_the_newest_and_the_synced_file() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        for (i, sync) in [true, false, false, false, true, false, false, true].into_iter().enumerate() {
            let (newest, synced) = (store.newest, store.synced);
            store.write(&ledger(i as u64), sync).unwrap();
            assert!(store.newest != newest && store.newest != synced, "write {i}");
        }
    }

    #[test]
    fn cut_off_at_every_byte_the_one_before_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        store.write(&ledger(1), true).unwrap();
        store.write(&ledger(2), false).unwrap();
        let path = folder.path().join(FILES[store.newest.unwrap()]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(found(folder.path()), Some(1), "{length} bytes");
            assert_eq!(path.exists(), length == 0, "set aside");
        }
        assert!(kept_aside(folder.path()) >= 1);
    }

    /// A crash of the machine may leave anything in any one file, from any byte on.
    #[test]
    fn garbage_from_any_byte_of_any_file_costs_one_write_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        (1..=3).for_each(|i| store.write(&ledger(i), i == 1).unwrap());
        let path = |name| folder.path().join(name);
        let whole = FILES.map(|name| fs::read(path(name)).unwrap());
        for (name, bytes) in FILES.iter().zip(&whole) {
            for offset in 0..bytes.len() {
                let garbage: Vec<u8> = bytes[offset..].iter().map(|byte| byte ^ 0xa5).collect();
                for damaged in [bytes[..offset].to_vec(), [&bytes[..offset], &garbage].concat()] {
                    // A version that is not known yet is refused, so that it is not overwritten.
                    if matches!(decode(&damaged), Content::Newer(_)) {
                        continue;
                    }
                    fs::write(path(name), &damaged).unwrap();
                    let newest = found(folder.path());
                    assert!(newest >= Some(2), "{name} from byte {offset}: {newest:?}");
                    assert_eq!(newest == Some(3), *name != FILES[2], "{name} from byte {offset}");
                }
            }
            fs::write(path(name), bytes).unwrap();
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let bytes = encode(3, &serde_json::to_vec(&ledger(5)).unwrap()).unwrap();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x10;
            assert!(!matches!(decode(&flipped), Content::Valid { .. }), "byte {position}");
        }
        let mut longer = bytes;
        longer.extend_from_slice(b"the end of a longer one");
        assert!(matches!(decode(&longer), Content::Valid { sequence: 3, .. }));
    }

    #[test]
    fn all_corrupt_is_lost_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        for i in 0..3 {
            store.write(&ledger(i), false).unwrap();
        }
        for name in FILES {
            fs::write(folder.path().join(name), "garbage that is longer than a header is").unwrap();
        }
        assert!(matches!(Store::open(folder.path()).unwrap().1, Found::Lost));
        assert_eq!(kept_aside(folder.path()), 3);
        assert!(matches!(Store::open(folder.path()).unwrap().1, Found::Nothing));
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = encode(1, b"{}").unwrap();
        bytes[8] = 9;
        fs::write(folder.path().join("ledger.b"), bytes).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("ledger.b") && error.contains("version 9"), "{error}");
        assert_eq!(kept_aside(folder.path()), 0);
    }

    #[test]
    fn a_write_that_fails_leaves_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        store.write(&ledger(1), true).unwrap();
        let other = folder.path().join(FILES[1]);
        fs::create_dir(&other).unwrap();
        assert!(store.write(&ledger(2), false).is_err());
        fs::remove_dir(&other).unwrap();
        assert_eq!(found(folder.path()), Some(1));
        store.write(&ledger(3), false).unwrap();
        assert_eq!(found(folder.path()), Some(3));
    }
}
