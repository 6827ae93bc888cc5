use std::io::Write;

use proptest::prelude::*;

use super::*;

const MAX: u64 = 8 << 20;

fn open(folder: &Path) -> Spool {
    Spool::open(folder, MAX, Arc::default())
}

fn payload(i: u64) -> Bytes {
    Bytes::from(format!("frame {i}"))
}

/// Everything that a reader gets who begins at `position`.
fn drain(spool: &mut Spool, mut position: u64) -> Vec<u64> {
    let mut positions = Vec::new();
    while let Some(frame) = spool.read_from(position) {
        if frame.payload.len() < 100 {
            assert_eq!(frame.payload, payload(frame.position));
        }
        positions.push(frame.position);
        position = frame.position + 1;
    }
    positions
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn positions_go_on_across_restarts() {
    let folder = tempfile::tempdir().unwrap();
    for run in 0..3u64 {
        let mut spool = open(folder.path());
        for i in 1..=4 {
            assert_eq!(spool.append(payload(run * 4 + i)), run * 4 + i);
        }
    }
    let mut spool = open(folder.path());
    assert_eq!(drain(&mut spool, 0), (1..=12).collect::<Vec<_>>());
    assert_eq!(drain(&mut spool, 7), (7..=12).collect::<Vec<_>>());
    assert_eq!(spool.stats.figures(), SpoolFigures { frames: 12, dropped: 0 });
    assert_eq!(spool.read_from(13), None);
    assert_eq!(spool.append(payload(13)), 13);
    assert_eq!(drain(&mut spool, 13), [13]);
}

#[test]
fn whole_acknowledged_segments_go_and_the_count_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    let large = Bytes::from(vec![7; 400 << 10]);
    for _ in 0..7 {
        spool.append(large.clone());
    }
    assert_eq!(files(folder.path()).len(), 3, "three frames a segment");
    spool.acknowledge(2);
    assert_eq!(files(folder.path()).len(), 3);
    assert_eq!(spool.stats.figures().frames, 5);
    spool.acknowledge(7);
    assert_eq!(files(folder.path()).len(), 1);
    assert_eq!(spool.stats.figures().frames, 0);
    drop(spool);
    assert_eq!(open(folder.path()).append(payload(8)), 8);
}

#[test]
fn the_oldest_goes_when_there_is_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), 3 << 20, Arc::default());
    let large = Bytes::from(vec![7; 512 << 10]);
    for _ in 0..20 {
        spool.append(large.clone());
    }
    let kept = drain(&mut spool, 0);
    let figures = spool.stats.figures();
    assert_eq!(figures.dropped + kept.len() as u64, 20);
    assert_eq!((figures.frames, kept.last()), (kept.len() as u64, Some(&20)));
    let bytes: u64 = files(folder.path()).iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(bytes <= 3 << 20, "{bytes}");
}

#[test]
fn half_a_frame_at_the_end_is_cut_off_at_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    (1..=3).for_each(|i| assert_eq!(spool.append(payload(i)), i));
    drop(spool);
    let file = files(folder.path())[0].clone();
    let whole = fs::read(&file).unwrap();
    let frame = whole.len() / 3;
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let mut spool = open(folder.path());
        let kept = (length / frame) as u64;
        assert_eq!(drain(&mut spool, 0), (1..=kept).collect::<Vec<_>>(), "{length} bytes");
        assert_eq!(spool.append(payload(kept + 1)), kept + 1);
        assert_eq!(drain(&mut spool, 0).len() as u64, kept + 1);
    }
}

/// What a file of three frames may have become, and what is made of it.
struct Fault {
    name: &'static str,
    damage: fn(&mut Vec<u8>),
    /// Frames that stay.
    kept: u64,
    /// Whether the file is kept under another name.
    aside: bool,
    /// Position of the next frame.
    next: u64,
}

/// Bytes of each of the three frames.
const FRAME: usize = 20 + "frame 1".len();

const FAULTS: [Fault; 11] = [
    Fault { name: "nothing", damage: |_| (), kept: 3, aside: false, next: 4 },
    Fault { name: "half a header", damage: |b| b.truncate(2 * FRAME + 9), kept: 2, aside: false, next: 3 },
    Fault { name: "half a payload", damage: |b| b.truncate(3 * FRAME - 1), kept: 2, aside: false, next: 3 },
    Fault { name: "no frame yet", damage: |b| b.truncate(3), kept: 0, aside: false, next: 1 },
    Fault {
        name: "a bit of the last frame",
        damage: |b| b[3 * FRAME - 1] ^= 1,
        kept: 2,
        aside: true,
        next: 4,
    },
    Fault { name: "a bit in the middle", damage: |b| b[2 * FRAME - 1] ^= 1, kept: 1, aside: true, next: 4 },
    // It seems to be longer than the file; the frame after it says otherwise.
    Fault { name: "a length", damage: |b| b[FRAME + 13] ^= 1, kept: 1, aside: true, next: 4 },
    Fault { name: "a bit of the first frame", damage: |b| b[0] ^= 1, kept: 0, aside: true, next: 4 },
    Fault { name: "foreign bytes", damage: |b| *b = b"not ours".repeat(40), kept: 0, aside: true, next: 2 },
    Fault {
        name: "foreign bytes after it",
        damage: |b| b.extend(b"not ours"),
        kept: 3,
        aside: true,
        next: 5,
    },
    // As file systems leave it where the length was written before the bytes were.
    Fault { name: "zeros at the end", damage: |b| b[2 * FRAME..].fill(0), kept: 2, aside: true, next: 4 },
];

/// Each fault in the only segment, in the newest with one before it, and in the oldest with one after it that
/// goes on where the three frames end.
#[test]
fn a_torn_end_is_cut_off_and_what_is_corrupt_is_set_aside() {
    for (before, after) in [(false, false), (true, false), (false, true)] {
        for Fault { name, damage, kept, aside, next } in &FAULTS {
            let name = format!("{name}, before {before}, after {after}");
            let folder = tempfile::tempdir().unwrap();
            let write = |first: u64, frames: u64| {
                let mut segment = Segment::new(folder.path(), first);
                let mut file = segment.open().unwrap();
                (first..first + frames).for_each(|i| segment.append(&mut file, &payload(i)).unwrap());
                segment.path
            };
            // Positions of one digit, so that all frames are of one length.
            let first = if before { 4 } else { 1 };
            if before {
                write(1, 3);
            }
            let path = write(first, 3);
            if after {
                write(4, 2);
            }
            let mut bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 3 * FRAME);
            damage(&mut bytes);
            fs::write(&path, &bytes).unwrap();

            let next = if after { 6.max(*next) } else { next + first - 1 };
            let mut expected: Vec<u64> = (1..first + kept).collect();
            expected.extend(if after { 4..6 } else { 0..0 });
            for opened in 1..=2 {
                let mut spool = open(folder.path());
                assert_eq!(drain(&mut spool, 0), expected, "{name}, opened {opened} times");
                assert_eq!(spool.next, next, "{name}, opened {opened} times");
            }
            let asides: Vec<PathBuf> = files(folder.path())
                .into_iter()
                .filter(|path| path.to_string_lossy().contains(".corrupt-"))
                .collect();
            assert_eq!(asides.len(), usize::from(*aside), "{name}: {asides:?}");
            if let Some(kept) = asides.first() {
                assert!(kept.to_string_lossy().starts_with(&*path.to_string_lossy()), "{name}: {kept:?}");
                assert_eq!(fs::read(kept).unwrap(), bytes, "{name}");
            }
            let mut spool = open(folder.path());
            assert_eq!(spool.append(payload(next)), next, "{name}");
            expected.push(next);
            assert_eq!(drain(&mut open(folder.path()), 0), expected, "{name}");
        }
    }
}

/// A file with a number far off the others' is taken for what it is: it costs neither the segment that was
/// written last nor the count.
#[test]
fn a_far_off_segment_harms_no_other() {
    let huge = MAX_POSITION + 1;
    let most = MAX_POSITION;
    let foreign = b"not ours".as_slice();
    for (number, content, aside, next) in [
        (1_000_000, b"".as_slice(), false, 1_000_000),
        (1_000_000, foreign, true, 1_000_001),
        (most, b"".as_slice(), false, most),
        // No number that a spool gives: a file of somebody else's.
        (huge, foreign, false, 3),
        (u64::MAX, b"".as_slice(), false, 3),
        // Its frames stand in the live one.
        (2, foreign, true, 3),
        (2, b"".as_slice(), true, 3),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = open(folder.path());
        (1..=3).for_each(|i| assert_eq!(spool.append(payload(i)), i));
        let live = files(folder.path())[0].clone();
        // The agent was killed while it wrote the third.
        let bytes = fs::read(&live).unwrap();
        fs::write(&live, &bytes[..bytes.len() - 2]).unwrap();
        let far = folder.path().join(format!("{number:020}.spool"));
        fs::write(&far, content).unwrap();
        for _ in 0..2 {
            let mut spool = open(folder.path());
            assert_eq!(drain(&mut spool, 0), [1, 2], "{number}");
            assert_eq!(spool.next, next, "{number}");
            assert!(live.exists(), "{number}");
        }
        let asides = files(folder.path());
        let asides: Vec<_> = asides.iter().filter(|p| p.to_string_lossy().contains(".corrupt-")).collect();
        assert_eq!(asides.len(), usize::from(aside), "{number}: {asides:?}");
        asides.iter().for_each(|path| assert_eq!(fs::read(path).unwrap(), content, "{number}"));
        let mut spool = open(folder.path());
        assert_eq!(spool.append(payload(next)), next);
        assert_eq!(drain(&mut spool, 0), [1, 2, next]);
    }
}

#[test]
fn a_segment_that_proves_corrupt_while_it_is_read_keeps_its_first_frames() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    let large = Bytes::from(vec![7; 600 << 10]);
    (1..=5).for_each(|i| assert_eq!(spool.append(large.clone()), i));
    let segments = files(folder.path());
    for (path, left) in [(&segments[0], vec![1, 3, 4, 5]), (&segments[2], vec![1, 3, 4])] {
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
        assert_eq!(drain(&mut spool, 0), left);
        assert_eq!(drain(&mut open(folder.path()), 0), left);
    }
    assert_eq!(spool.stats.figures(), SpoolFigures { frames: 3, dropped: 2 });
    assert_eq!(spool.append(payload(6)), 6, "what was given is not given again");
    assert_eq!(drain(&mut open(folder.path()), 4), [4, 6]);
}

#[test]
fn without_a_disk_frames_wait_in_memory_and_are_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("spool");
    File::create(&blocked).unwrap().write_all(b"not a folder").unwrap();
    let mut spool = open(&blocked);
    for i in 1..=MEMORY_FRAMES as u64 + 5 {
        spool.append(payload(i));
    }
    assert_eq!(spool.stats.figures(), SpoolFigures { frames: MEMORY_FRAMES as u64, dropped: 5 });
    assert_eq!(spool.read_from(0).unwrap().position, 6);
    fs::remove_file(&blocked).unwrap();
    spool.append(payload(MEMORY_FRAMES as u64 + 6));
    assert!(spool.memory.is_empty());
    assert_eq!(drain(&mut open(&blocked), 0), (6..=MEMORY_FRAMES as u64 + 6).collect::<Vec<_>>());
}

#[test]
fn a_spool_that_was_lost_goes_on_above_what_the_collector_knows() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    spool.append(payload(1));
    spool.acknowledge(500);
    assert_eq!(spool.stats.figures(), SpoolFigures { frames: 0, dropped: 1 });
    assert_eq!(spool.append(payload(501)), 501);
    assert_eq!(drain(&mut spool, 0), [501]);
    assert_eq!(open(folder.path()).append(payload(502)), 502);
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    Acknowledge(u64),
    Reopen,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn frames_come_out_in_order_and_none_is_missing(ops in proptest::collection::vec(prop_oneof![
        4 => (0usize..300_000).prop_map(Op::Append),
        1 => (0u64..30).prop_map(Op::Acknowledge),
        1 => Just(Op::Reopen),
    ], 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = open(folder.path());
        let (mut last, mut acknowledged) = (0, 0);
        for op in ops {
            match op {
                Op::Append(size) => {
                    let position = spool.append(Bytes::from(vec![0; size + 100]));
                    prop_assert_eq!(position, last + 1);
                    last = position;
                }
                Op::Acknowledge(position) => {
                    acknowledged = acknowledged.max(position.min(last));
                    spool.acknowledge(position.min(last));
                }
                Op::Reopen => spool = open(folder.path()),
            }
            let waiting = drain(&mut spool, acknowledged + 1);
            prop_assert_eq!(waiting, (acknowledged + 1..=last).collect::<Vec<_>>());
        }
        prop_assert_eq!(spool.stats.figures().dropped, 0);
    }
}
