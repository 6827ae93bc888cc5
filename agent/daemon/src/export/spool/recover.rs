//! What a former run left: segments that are whole, torn at their end, or corrupt.
//!
//! Invariants: nothing that the spool did not write itself is deleted; a frame that is whole and stands
//! before a fault is kept; a position is never given twice, whatever became of its frame.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Spool;
use super::segment::{Rest, Segment};
use crate::clock;

impl Spool {
    /// Takes up the segments of the folder, and puts right what is wrong with them.
    pub(super) fn recover(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let entries = fs::read_dir(&self.folder)?.filter_map(Result::ok);
        let mut found: Vec<Segment> = entries.filter_map(|entry| Segment::of_file(&entry.path())).collect();
        found.sort_by_key(|segment| segment.first);
        for segment in found {
            self.take_up(segment);
        }
        self.keep_count()
    }

    fn take_up(&mut self, mut segment: Segment) {
        let rest = segment.scan();
        self.next = self.next.max(segment.end);
        let taken = self.segments.back().map_or(0, |before| before.end);
        match rest {
            // It holds positions that another segment holds: one of the two is foreign. The earlier one stays,
            // since its frames are the ones that come next.
            _ if segment.first < taken => {
                self.drop_frames(segment.end.saturating_sub(taken));
                set_aside(&segment, "its frames stand in another segment too");
            }
            Ok(Rest::Nothing) => self.segments.push_back(segment),
            // It was being written when the host or the agent stopped.
            Ok(Rest::Torn) => {
                tracing::warn!(file = %segment.path.display(), "a spool segment ends in half a frame; cut off");
                if let Err(error) = segment.open() {
                    self.fail(&error);
                }
                self.segments.push_back(segment);
            }
            Ok(Rest::Corrupt { end }) => {
                self.next = self.next.max(end);
                let kept = salvage(&segment, "bytes in it are no frame");
                self.drop_frames(end - kept.as_ref().map_or(segment.first, |kept| kept.end));
                self.segments.extend(kept);
            }
            Err(error) => {
                self.drop_frames(segment.end - segment.first);
                set_aside(&segment, &error.to_string());
            }
        }
    }

    /// The newest segment's name keeps the count: where none stands for the next frame, an empty one does.
    /// Frames that wait in memory come first, and make a segment of their own.
    fn keep_count(&mut self) -> io::Result<()> {
        let counted = self.segments.back().map_or(1, |last| last.end);
        if counted < self.next && self.memory.is_empty() { self.roll(self.next) } else { Ok(()) }
    }

    /// A segment proves corrupt while it is read: what follows the fault is lost, and the rest goes on.
    pub(super) fn abandon(&mut self, segment: &Segment, why: &str) {
        self.reader = None;
        let mut whole = segment.clone();
        let kept = match whole.scan() {
            Ok(Rest::Torn | Rest::Corrupt { .. }) => salvage(&whole, why),
            // It cannot be read, or only now and then.
            Ok(Rest::Nothing) | Err(_) => {
                set_aside(segment, why);
                None
            }
        };
        let lost_from = kept.as_ref().map_or(segment.first, |kept| kept.end);
        let lost_from = lost_from.max(self.acknowledged + 1);
        self.drop_frames(segment.end.saturating_sub(lost_from));
        if let Some(index) = self.segments.iter().position(|s| s.first == segment.first) {
            if index + 1 == self.segments.len() {
                self.active = None;
            }
            self.segments.remove(index);
            if let Some(kept) = kept {
                self.segments.insert(index, kept);
            }
        }
        if let Err(error) = self.keep_count() {
            self.fail(&error);
        }
        self.publish();
    }
}

/// Sets a corrupt file aside, and keeps the whole frames before its fault under its name. `None` where there
/// is none, or no room for them.
fn salvage(segment: &Segment, why: &str) -> Option<Segment> {
    if segment.end == segment.first {
        set_aside(segment, why);
        return None;
    }
    let aside = aside(&segment.path);
    let error = match copy_whole(segment, &aside) {
        Ok(()) => {
            say_aside(segment, &aside, why, None);
            return Some(segment.clone());
        }
        Err(error) => error,
    };
    // It may have both names by now.
    let moved =
        if aside.exists() { fs::remove_file(&segment.path) } else { fs::rename(&segment.path, &aside) };
    say_aside(segment, &aside, why, Some(moved.err().unwrap_or(error)));
    None
}

fn set_aside(segment: &Segment, why: &str) {
    let aside = aside(&segment.path);
    let moved = fs::rename(&segment.path, &aside);
    say_aside(segment, &aside, why, moved.err());
}

/// A name that no file has yet.
fn aside(path: &Path) -> PathBuf {
    let seconds = clock::unix_nanos() / 1_000_000_000;
    let name = |ending: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".corrupt-{seconds}{ending}"));
        PathBuf::from(name)
    };
    let mut names = std::iter::once(String::new()).chain((1u64..).map(|n| format!("-{n}"))).map(name);
    names.find(|path| !path.exists()).unwrap_or_else(|| name("-".to_owned()))
}

/// The file gets a second name before its frames are copied and take the first one: whenever this stops,
/// both are there.
fn copy_whole(segment: &Segment, aside: &Path) -> io::Result<()> {
    fs::hard_link(&segment.path, aside)?;
    let part = segment.path.with_extension("part");
    let mut copy = File::create(&part)?;
    io::copy(&mut File::open(aside)?.take(segment.bytes), &mut copy)?;
    copy.sync_all()?;
    fs::rename(&part, &segment.path)
}

fn say_aside(segment: &Segment, aside: &Path, why: &str, error: Option<io::Error>) {
    tracing::error!(
        file = %segment.path.display(), kept_as = %aside.display(), why,
        error = error.map(|error| error.to_string()),
        "a spool segment is corrupt; set aside"
    );
}
