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
/// Size at which a segment is closed: what is dropped or acknowledged at once.
pub(super) const SEGMENT_BYTES: u64 = 1 << 20;
/// Bytes after a fault in which frames are looked for: as many as a segment can have.
const REST_BYTES: u64 = SEGMENT_BYTES + (HEADER_BYTES + MAX_FRAME_BYTES as usize) as u64;
/// Largest position that is believed: at a thousand frames a second nobody gets there in a hundred million
/// years, and counting on from it does not overflow.
pub(in crate::export) const MAX_POSITION: u64 = 1 << 62;

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

/// What follows a segment's last whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing.
    Nothing,
    /// The beginning of the next frame, and then the file ends.
    Torn,
    /// Anything else. `end` is the position after the last whole frame in it, or after the one frame that
    /// must have stood there at least.
    Corrupt { end: u64 },
}

impl Segment {
    /// A new, empty one.
    pub(super) fn new(folder: &Path, first: u64) -> Self {
        Self { path: folder.join(format!("{first:020}{ENDING}")), first, end: first, bytes: 0 }
    }

    /// The one that a file is by its name; its frames are not read yet. `None` for a name that no segment
    /// is given.
    pub(super) fn of_file(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let first = name.strip_suffix(ENDING)?.parse().ok().filter(|first| *first <= MAX_POSITION)?;
        let segment = Self::new(path.parent()?, first);
        (segment.path == path).then_some(segment)
    }

    /// Reads through the frames of its file, and says what follows them.
    pub(super) fn scan(&mut self) -> io::Result<Rest> {
        (self.end, self.bytes) = (self.first, 0);
        let mut file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        while let Some(payload) = read_frame(&mut file, self.end)? {
            self.end += 1;
            self.bytes += frame_bytes(payload.len());
        }
        if self.bytes == length {
            return Ok(Rest::Nothing);
        }
        file.seek(SeekFrom::Start(self.bytes))?;
        let mut rest = Vec::new();
        file.take(REST_BYTES).read_to_end(&mut rest)?;
        let whole = length - self.bytes <= REST_BYTES;
        let last = last_frame(&rest, self.end);
        Ok(match last {
            None if whole && is_torn(&rest, self.end) => Rest::Torn,
            last => Rest::Corrupt { end: last.unwrap_or(self.end) + 1 },
        })
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
pub(super) fn read_frame(file: &mut impl Read, position: u64) -> io::Result<Option<Bytes>> {
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

/// Whether these last bytes of a file are the beginning of the frame `position`.
fn is_torn(bytes: &[u8], position: u64) -> bool {
    let mut begin = [0; 12];
    begin[..4].copy_from_slice(&MAGIC.to_le_bytes());
    begin[4..].copy_from_slice(&position.to_le_bytes());
    let known = bytes.len().min(begin.len());
    if bytes[..known] != begin[..known] {
        return false;
    }
    let Some(header) = bytes.get(..HEADER_BYTES) else { return true };
    let length = word(header, 12);
    length <= MAX_FRAME_BYTES && (bytes.len() as u64) < frame_bytes(length as usize)
}

/// Position of the last whole frame among bytes where the frame `position` should begin. Only one that can
/// stand there by its number is believed: every frame before it takes room.
fn last_frame(bytes: &[u8], position: u64) -> Option<u64> {
    let at = (0..(bytes.len() + 1).saturating_sub(HEADER_BYTES)).rev();
    at.filter(|at| bytes[*at..].starts_with(&MAGIC.to_le_bytes())).find_map(|at| {
        let found = long(bytes, at + 4);
        let most = position + (at / HEADER_BYTES) as u64;
        let frame = &mut &bytes[at..];
        ((position..=most).contains(&found) && matches!(read_frame(frame, found), Ok(Some(_))))
            .then_some(found)
    })
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
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
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
