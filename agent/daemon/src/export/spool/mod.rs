//! Telemetry that waits for the collector: a bounded queue on disk that survives restarts.
//!
//! Invariant: positions are given once and without gaps, and frames come out in their order, as they
//! went in. When there is no room the oldest go first, and are counted. Frames on disk are older than
//! those in memory, which only hold while the disk cannot be written.

mod recover;
mod segment;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::snapshot::SpoolFigures;
pub(super) use segment::MAX_POSITION;
use segment::{MAX_FRAME_BYTES, SEGMENT_BYTES, Segment, read_frame};

/// Frames in memory while the disk cannot be written: ten minutes of windows.
const MEMORY_FRAMES: usize = 600;

/// Figures of the spool that others may read at any time.
#[derive(Debug, Default)]
pub struct SpoolStats {
    frames: AtomicU64,
    dropped: AtomicU64,
}

impl SpoolStats {
    /// The figures now.
    pub fn figures(&self) -> SpoolFigures {
        SpoolFigures {
            frames: self.frames.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// A frame: an encoded request and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its position, from 1.
    pub position: u64,
    /// The encoded request.
    pub payload: Bytes,
}

/// The queue.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    stats: Arc<SpoolStats>,
    /// Oldest first; the last one is appended to.
    segments: VecDeque<Segment>,
    active: Option<File>,
    memory: VecDeque<Frame>,
    /// The last one that was appended here.
    newest: Option<Frame>,
    /// Position of the next frame.
    next: u64,
    /// Frames up to here are not waited for any more.
    acknowledged: u64,
    reader: Option<Reader>,
    failing: bool,
}

#[derive(Debug)]
struct Reader {
    file: File,
    /// First position of the segment that is read.
    segment: u64,
    position: u64,
}

impl Spool {
    /// Opens the spool in `folder`. A folder that cannot be used means a spool in memory, until it can.
    pub fn open(folder: &Path, max_bytes: u64, stats: Arc<SpoolStats>) -> Self {
        let mut spool = Self {
            folder: folder.to_owned(),
            max_bytes,
            stats,
            segments: VecDeque::new(),
            active: None,
            memory: VecDeque::new(),
            newest: None,
            next: 1,
            acknowledged: 0,
            reader: None,
            failing: false,
        };
        if let Err(error) = spool.recover() {
            spool.fail(&error);
        }
        spool.acknowledged = spool.first_kept().saturating_sub(1);
        spool.publish();
        spool
    }

    /// Appends an encoded request and returns its position. Never fails: without a disk it is kept in
    /// memory, and without room the oldest goes.
    pub fn append(&mut self, payload: Bytes) -> u64 {
        let position = self.next;
        self.next += 1;
        if payload.len() > MAX_FRAME_BYTES as usize {
            // Nothing that a node says is that long; the position stays without a frame.
            self.drop_frames(1);
            return position;
        }
        let frame = Frame { position, payload };
        self.newest = Some(frame.clone());
        self.memory.push_back(frame);
        match self.write_memory() {
            Ok(()) => self.recovered(),
            Err(error) => self.fail(&error),
        }
        self.bound();
        self.publish();
        position
    }

    /// The newest frame, if one was appended since the spool was opened.
    pub fn newest(&self) -> Option<&Frame> {
        self.newest.as_ref()
    }

    /// The oldest frame at `position` or after it.
    pub fn read_from(&mut self, position: u64) -> Option<Frame> {
        // An empty one is not corrupt, however far off its number is.
        let holds = |s: &&Segment| s.end > position && s.end > s.first;
        if let Some(segment) = self.segments.iter().find(holds).cloned() {
            let position = position.max(segment.first);
            match self.read_segment(&segment, position) {
                Ok(Some(payload)) => return Some(Frame { position, payload }),
                Ok(None) => self.abandon(&segment, "a frame is not whole"),
                Err(error) => self.abandon(&segment, &error.to_string()),
            }
            return self.read_from(segment.end);
        }
        self.memory.iter().find(|frame| frame.position >= position).cloned()
    }

    /// Frames up to `position` are durable elsewhere: whole segments of them are deleted.
    pub fn acknowledge(&mut self, position: u64) {
        if position <= self.acknowledged {
            return;
        }
        if position >= self.next {
            self.lost_positions(position);
        }
        self.acknowledged = self.acknowledged.max(position);
        self.memory.retain(|frame| frame.position > position);
        // The last segment stays: its name keeps the count.
        while self.segments.len() > 1 && self.segments[0].end <= position + 1 {
            self.remove_oldest();
        }
        self.publish();
    }

    /// The collector knows positions that were never given here: the spool was lost and began anew. Its
    /// frames would be taken for those, so they go, and counting goes on above.
    fn lost_positions(&mut self, position: u64) {
        tracing::warn!(
            collector = position,
            here = self.next - 1,
            "the collector knows later telemetry frames than this spool gave: the spool was lost; going on above them"
        );
        self.drop_frames((self.next - 1).saturating_sub(self.acknowledged));
        self.memory.clear();
        self.newest = None;
        while !self.segments.is_empty() {
            self.remove_oldest();
        }
        self.active = None;
        self.next = position + 1;
    }

    /// Moves frames from memory to disk, oldest first.
    fn write_memory(&mut self) -> io::Result<()> {
        while let Some(frame) = self.memory.front() {
            let position = frame.position;
            let payload = frame.payload.clone();
            self.roll(position)?;
            let (Some(segment), Some(file)) = (self.segments.back_mut(), self.active.as_mut()) else {
                return Err(io::Error::other("no segment to write to"));
            };
            if let Err(error) = segment.append(file, &payload) {
                // Whatever state the file is in, it is opened and cut anew.
                self.active = None;
                return Err(error);
            }
            self.memory.pop_front();
        }
        Ok(())
    }

    /// Makes sure that the last segment takes the frame `position`.
    fn roll(&mut self, position: u64) -> io::Result<()> {
        let fits = self.segments.back().is_some_and(|s| s.bytes < SEGMENT_BYTES && s.end == position);
        if fits {
            if self.active.is_none() {
                self.active = self.segments.back().map(Segment::open).transpose()?;
            }
            return Ok(());
        }
        if let Some(full) = self.active.take() {
            full.sync_data()?;
        }
        fs::create_dir_all(&self.folder)?;
        let segment = Segment::new(&self.folder, position);
        self.active = Some(segment.open()?);
        self.segments.push_back(segment);
        File::open(&self.folder)?.sync_all()
    }

    fn read_segment(&mut self, segment: &Segment, position: u64) -> io::Result<Option<Bytes>> {
        let mut reader = match self.reader.take() {
            Some(reader) if reader.segment == segment.first && reader.position <= position => reader,
            _ => Reader { file: File::open(&segment.path)?, segment: segment.first, position: segment.first },
        };
        loop {
            let Some(payload) = read_frame(&mut reader.file, reader.position)? else { return Ok(None) };
            reader.position += 1;
            if reader.position > position {
                self.reader = Some(reader);
                return Ok(Some(payload));
            }
        }
    }

    /// Drops the oldest until everything fits.
    fn bound(&mut self) {
        while self.segments.len() > 1 && self.segments.iter().map(|s| s.bytes).sum::<u64>() > self.max_bytes {
            let oldest = &self.segments[0];
            let unsent = oldest.end - oldest.first.max(self.acknowledged + 1).min(oldest.end);
            self.drop_frames(unsent);
            self.remove_oldest();
        }
        while self.memory.len() > MEMORY_FRAMES {
            self.memory.pop_front();
            self.drop_frames(1);
        }
    }

    fn remove_oldest(&mut self) {
        let Some(oldest) = self.segments.pop_front() else { return };
        if self.reader.as_ref().is_some_and(|reader| reader.segment == oldest.first) {
            self.reader = None;
        }
        if let Err(error) = fs::remove_file(&oldest.path) {
            tracing::warn!(file = %oldest.path.display(), %error, "a spool segment cannot be removed");
        }
    }

    fn first_kept(&self) -> u64 {
        let in_memory = self.memory.front().map(|frame| frame.position);
        self.segments.front().map(|s| s.first).or(in_memory).unwrap_or(self.next)
    }

    /// A frame is refused where it is sent to, for good.
    pub fn refused(&mut self) {
        self.drop_frames(1);
    }

    fn drop_frames(&self, frames: u64) {
        self.stats.dropped.fetch_add(frames, Ordering::Relaxed);
    }

    fn publish(&self) {
        let on_disk = self.segments.iter();
        let waiting = on_disk.map(|s| s.end - s.first.max(self.acknowledged + 1).min(s.end)).sum::<u64>();
        self.stats.frames.store(waiting + self.memory.len() as u64, Ordering::Relaxed);
    }

    fn fail(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(
                folder = %self.folder.display(), %error,
                "the spool cannot be written; keeping the last {MEMORY_FRAMES} frames in memory"
            );
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(folder = %self.folder.display(), "the spool can be written again");
        }
    }
}

#[cfg(test)]
mod tests;
