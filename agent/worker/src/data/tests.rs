//! Reading files: what is well-formed, and every mistake there is a message for.

use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use wattmill_protocol::job::HeldOut;
use wattmill_protocol::v1::FailureKind;

use super::*;

/// A folder whose files are data.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Two features and three classes, in `name`; the file is written where `content` is given.
    fn data(&self, name: &str, content: Option<&[u8]>) -> Data {
        let path = self.path(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let uri = format!("file://{}", path.display());
        Data { uri, features: 2, classes: 3, scale: 1.0, held_out: None }
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn read(data: &Data) -> Result<DataSet, DataError> {
    load(data, || {})
}

#[test]
fn rows_are_read_scaled_and_split() {
    let folder = Folder::new();
    let content = b"1,2,0\n3,4,1\n5,6,2\n7,8,0\n9,10,1\n";
    let mut data = folder.data("a.csv", Some(content));
    data.scale = 0.5;
    data.held_out = Some(HeldOut { every: 3, remainder: 1 });
    let mut ticks = 0;
    let set = load(&data, || ticks += 1).unwrap();
    assert_eq!(set.training, Rows { features: vec![0.5, 1.0, 2.5, 3.0, 3.5, 4.0], labels: vec![0, 2, 0] });
    assert_eq!(set.held_out, Rows { features: vec![1.5, 2.0, 4.5, 5.0], labels: vec![1, 1] });
    assert_eq!(set.hash, Hash::of(content));
    assert_eq!(ticks, 5);
}

#[test]
fn every_spelling_of_a_row_is_read() {
    let folder = Folder::new();
    for content in [
        "1,2,0\n",
        "1,2,0",
        "1,2,0\r\n",
        "\u{feff}1,2,0\n",
        "\n\r\n1,2,0\n\n",
        " 1 , 2.0 , 0 \n",
        "\"1\",\"2\",\"0\"\n",
        "1e0,0.2e1,0.0\n",
        "+1,2,-0\n",
    ] {
        let set = read(&folder.data("a.csv", Some(content.as_bytes()))).expect(content);
        assert_eq!(set.training, Rows { features: vec![1.0, 2.0], labels: vec![0] }, "{content:?}");
    }
}

#[test]
fn gzip_is_read_in_one_member_or_several_and_hashed_as_it_lies() {
    let folder = Folder::new();
    let one = gzip(b"1,2,0\n3,4,1\n");
    // The border between members falls into a line.
    let two = [gzip(b"1,2,0\n3,"), gzip(b"4,1\n")].concat();
    for content in [one, two] {
        let set = read(&folder.data("a.csv.gz", Some(&content))).unwrap();
        assert_eq!(set.training, Rows { features: vec![1.0, 2.0, 3.0, 4.0], labels: vec![0, 1] });
        assert_eq!(set.hash, Hash::of(&content));
    }
}

#[test]
fn every_mistake_in_a_file_is_named_with_its_place() {
    let long_line = format!("1,2,0\n1,{}2,0\n", " ".repeat(200));
    let table: &[(&str, &str)] = &[
        ("", "a.csv has no rows"),
        ("\n \n", "a.csv has no rows"),
        ("1,2,0\n1,0\n", "a.csv, line 2: 2 columns; expected are 3: data.features and the label"),
        ("1,2,0\r\n\r\n1,2,3,0\r\n", "a.csv, line 3: 4 columns; expected are 3"),
        ("1,2,0\n1,two,0\n", "a.csv, line 2, column 2: \"two\" is not a finite number"),
        ("1,2,0\n1,,0\n", "line 2, column 2: \"\" is not a finite number"),
        ("1,2,0\n1,2 3,0\n", "line 2, column 2: \"2 3\" is not a finite number"),
        ("1,2,0\nNaN,2,0\n", "line 2, column 1: \"NaN\" is not a finite number"),
        ("1,2,0\n1,-inf,0\n", "line 2, column 2: \"-inf\" is not a finite number"),
        ("1,2,0\n1,1e39,0\n", "line 2, column 2: \"1e39\" is not a finite number"),
        ("1,2,0\n1,2,3\n", "line 2, column 3: \"3\" is not a label: a whole number from 0 to 2"),
        ("1,2,0\n1,2,-1\n", "line 2, column 3: \"-1\" is not a label: a whole number from 0 to 2"),
        ("1,2,0\n1,2,0.5\n", "line 2, column 3: \"0.5\" is not a label"),
        ("1,2,0\n1,2,cat\n", "line 2, column 3: \"cat\" is not a label"),
        ("1,2,0\n1,2,nan\n", "line 2, column 3: \"nan\" is not a label"),
        ("1,2,0\n1,2,\u{fffd}\n", "line 2, column 3: \"\u{fffd}\" is not a label"),
        (
            "x,y,class\n1,2,0\n",
            "line 1, column 1: \"x\" is not a finite number (if this line names the columns, remove it)",
        ),
        (&long_line, "a.csv, line 2: longer than the 192 bytes that its columns could take"),
    ];
    let folder = Folder::new();
    for (content, expected) in table {
        let error = read(&folder.data("a.csv", Some(content.as_bytes()))).expect_err(content);
        assert_eq!(error.kind(), FailureKind::BadInput, "{content:?}");
        let text = crate::report::chain(&error);
        assert!(text.contains(expected), "{content:?}: {text}");
        let hinted = text.contains("names the columns");
        assert_eq!(hinted, content.starts_with('x'), "a header is the first row: {text}");
    }
}

#[test]
fn scaling_must_not_overflow() {
    let folder = Folder::new();
    let data = Data { scale: 1e38, ..folder.data("a.csv", Some(b"1,100,0\n")) };
    let error = read(&data).unwrap_err().to_string();
    assert!(
        error.ends_with("\"100\" is not a number that stays finite when multiplied by data.scale"),
        "{error}"
    );
}

#[test]
fn long_values_are_shortened() {
    let folder = Folder::new();
    let error =
        read(&folder.data("a.csv", Some(b"1,2,0\n1,xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx,0\n")));
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("\"{}\" is not", "x".repeat(40))), "{error}");
}

#[test]
fn without_training_rows_there_is_nothing_to_do() {
    let folder = Folder::new();
    let mut data = folder.data("a.csv", Some(b"1,2,0\n"));
    data.held_out = Some(HeldOut { every: 5, remainder: 0 });
    let error = read(&data).unwrap_err();
    assert_eq!(error.kind(), FailureKind::BadInput);
    assert!(
        error.to_string().ends_with("all of its 1 rows are held out, none is left to train on"),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_opened_are_named() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("folder.csv")).unwrap();
    std::fs::write(folder.path("file"), b"").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path("pipe.csv"), rustix::fs::Mode::RUSR).unwrap();
    std::os::unix::fs::symlink("loop.csv", folder.path("loop.csv")).unwrap();
    let table = [
        ("absent.csv", "absent.csv: No such file or directory"),
        ("folder.csv", "folder.csv is a folder; expected is a file"),
        ("pipe.csv", "pipe.csv is a device, pipe or socket; expected is a file"),
        ("file/a.csv", "a.csv: Not a directory"),
        ("loop.csv", "loop.csv: Too many levels of symbolic links"),
        ("nul%00.csv", "cannot open "),
        (&format!("{}.csv", "x".repeat(300)), ": File name too long"),
    ];
    for (name, expected) in table {
        let error = read(&folder.data(name, None)).expect_err(name);
        assert_eq!(error.kind(), FailureKind::BadInput, "{name}");
        let text = crate::report::chain(&error);
        assert!(text.contains(expected), "{name}: {text}");
    }
}

#[test]
fn broken_gzip_files_are_told_from_files_that_cannot_be_read() {
    let folder = Folder::new();
    let whole = gzip("1,2,0\n".repeat(1000).as_bytes());
    let mut flipped = whole.clone();
    let last = flipped.len() - 5;
    flipped[last] ^= 1; // in the checksum of the content
    for (what, content) in [
        ("no gzip", b"1,2,0\n".as_slice()),
        ("truncated", &whole[..whole.len() / 2]),
        ("without its checksum", &whole[..whole.len() - 1]),
        ("corrupt", &flipped),
        ("empty", b""),
        ("with more behind it", &[&whole[..], b"garbage that is no member"].concat()),
    ] {
        let error = read(&folder.data("a.csv.gz", Some(content))).expect_err(what);
        assert_eq!(error.kind(), FailureKind::BadInput, "{what}");
        assert!(error.to_string().ends_with("a.csv.gz is not a whole gzip file"), "{what}: {error}");
    }
}

#[test]
fn a_line_without_end_does_not_fill_memory() {
    // 1 GiB of blanks in 1 MiB of gzip; it is given up after the first 192 bytes.
    let folder = Folder::new();
    let blanks = gzip(&vec![b' '; 16 << 20]);
    let content = blanks.repeat(64);
    let error = read(&folder.data("a.csv.gz", Some(&content))).unwrap_err().to_string();
    assert!(error.contains("line 1: longer than the 192 bytes"), "{error}");
}

#[test]
fn changed_data_is_refused_with_both_hashes() {
    let folder = Folder::new();
    let data = folder.data("a.csv", Some(b"1,2,0\n"));
    let set = read(&data).unwrap();
    set.expect(&data.uri, Hash::of(b"1,2,0\n")).unwrap();
    let error = set.expect(&data.uri, Hash::of(b"1,2,1\n")).unwrap_err();
    assert_eq!(error.kind(), FailureKind::BadInput);
    let (actual, expected) = (Hash::of(b"1,2,0\n"), Hash::of(b"1,2,1\n"));
    let text =
        format!("{} changed: its SHA-256 is {actual}, but the job was prepared with {expected}", data.uri);
    assert_eq!(error.to_string(), text);
}
