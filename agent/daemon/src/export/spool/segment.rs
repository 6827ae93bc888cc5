//! One file of the spool: frames one after the other, each with its position and checksum.
//!
//! Invariant: positions in a segment follow each other without a gap, beginning with the one in its
//! name; what does not is not a frame.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Ending of a segment's file name.
const ENDING: &str = ".spool";
const MAGIC: u32 = u32::from_le_bytes(*b"WMSF");
/// Magic, position, length, checksum.
const HEADER_BYTES: usize = 4 + 8 + 4 + 4;
/// Largest frame that is believed.
pub(super) const MAX_FRAME_BYTES: u32 = 16 << 20;

/// A segment that stands on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Position of its first frame, or of the one that will be.
    pub(super) first: u64,
    /// Position after its last frame.
    pub(super) end: u64,
    /// Bytes of its frames.
    pub(super) bytes: u64,
}

/// A segment, and whether bytes after its last frame are none.
pub(super) struct Scanned {
    pub(super) segment: Segment,
    pub(super) torn: bool,
}

impl Segment {
    /// A new, empty one.
    pub(super) fn new(folder: &Path, first: u64) -> Self {
        Self { path: folder.join(format!("{first:020}{ENDING}")), first, end: first, bytes: 0 }
    }

    /// Reads through the frames of the file `path`; `None` when it is no segment by its name.
    pub(super) fn scan(path: &Path) -> io::Result<Option<Scanned>> {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(first) = name.strip_suffix(ENDING).and_then(|digits| digits.parse().ok()) else {
            return Ok(None);
        };
        let mut segment = Self { path: path.to_owned(), first, end: first, bytes: 0 };
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        while let Some(payload) = read_frame(&mut file, segment.end)? {
            segment.end += 1;
            segment.bytes += frame_bytes(payload.len());
        }
        let torn = segment.bytes < length;
        Ok(Some(Scanned { segment, torn }))
    }

    /// Opens it for appending, cut off after its last frame.
    pub(super) fn open(&self) -> io::Result<File> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        file.set_len(self.bytes)?;
        file.seek(SeekFrom::Start(self.bytes))?;
        Ok(file)
    }

    /// Appends a frame; when that fails the file is as it was.
    pub(super) fn append(&mut self, file: &mut File, payload: &[u8]) -> io::Result<()> {
        let frame = encode(self.end, payload);
        if let Err(error) = file.write_all(&frame) {
            file.set_len(self.bytes)?;
            file.seek(SeekFrom::Start(self.bytes))?;
            return Err(error);
        }
        self.end += 1;
        self.bytes += frame.len() as u64;
        Ok(())
    }
}

/// Bytes that a payload takes in a segment.
pub(super) fn frame_bytes(payload: usize) -> u64 {
    (HEADER_BYTES + payload) as u64
}

/// The frame that begins here, if it is whole and has that position.
pub(super) fn read_frame(file: &mut File, position: u64) -> io::Result<Option<Bytes>> {
    let mut header = [0; HEADER_BYTES];
    if !fill(file, &mut header)? {
        return Ok(None);
    }
    let (length, checksum) = (word(&header, 12), word(&header, 16));
    let fits = word(&header, 0) == MAGIC && long(&header, 4) == position && length <= MAX_FRAME_BYTES;
    if !fits {
        return Ok(None);
    }
    let mut payload = vec![0; length as usize];
    let whole = fill(file, &mut payload)? && self::checksum(&header[..16], &payload) == checksum;
    Ok(whole.then(|| Bytes::from(payload)))
}

fn encode(position: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.extend_from_slice(&position.to_le_bytes());
    // The spool takes nothing larger than a frame may be.
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let checksum = checksum(&frame, payload);
    frame.extend_from_slice(&checksum.to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// Fills the buffer; false at the end of the file.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[offset + i]))
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[offset + i]))
}
