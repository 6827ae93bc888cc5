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

#[test]
fn a_corrupt_segment_is_set_aside_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    let large = Bytes::from(vec![7; 600 << 10]);
    (1..=6).for_each(|i| assert_eq!(spool.append(large.clone()), i));
    let first = files(folder.path())[0].clone();
    let mut bytes = fs::read(&first).unwrap();
    bytes[700 << 10] ^= 1;
    fs::write(&first, bytes).unwrap();
    // Seen while reading, and seen when opening.
    for mut spool in [spool, open(folder.path())] {
        assert_eq!(drain(&mut spool, 2), [3, 4, 5, 6]);
    }
    assert!(files(folder.path())[0].to_string_lossy().contains(".corrupt-"));
    assert_eq!(open(folder.path()).append(payload(7)), 7);
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
