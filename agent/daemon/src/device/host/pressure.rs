//! `/proc/pressure`: time in which tasks waited for a resource (pressure stall information, Linux 4.20).

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use super::super::ReadError;
use super::super::file::Reader;

/// What tasks may wait for.
const RESOURCES: [&str; 3] = ["cpu", "io", "memory"];

/// Microseconds in which tasks stalled, by resource and by share of the tasks: `some` of them, or all (`full`).
pub type Pressure = BTreeMap<(&'static str, &'static str), u64>;

/// Reads `pressure` under `procfs_root`. Nothing where the kernel keeps none: it was built or started without.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read(procfs_root: &Path, reader: &mut Reader) -> Result<Pressure, ReadError> {
    let mut pressure = Pressure::new();
    for resource in RESOURCES {
        let path = procfs_root.join("pressure").join(resource);
        match reader.read(&path) {
            Ok(text) => pressure.extend(parse(text).map(|(share, micros)| ((resource, share), micros))),
            // Started with `psi=0` the files are there, and reading them is not supported.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {}
            Err(error) => return Err(ReadError::io(&path, &error)),
        }
    }
    Ok(pressure)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=MICROSECONDS`, and the same of `full`.
fn parse(text: &str) -> impl Iterator<Item = (&'static str, u64)> {
    text.lines().filter_map(|line| {
        let (share, rest) = line.split_once(' ')?;
        let share = ["some", "full"].into_iter().find(|known| *known == share)?;
        let total = rest.split(' ').find_map(|field| field.strip_prefix("total="))?;
        Some((share, total.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn totals_are_read_and_a_kernel_without_pressure_has_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path(), &mut Reader::default()), Ok(Pressure::new()));
        fs::create_dir(root.path().join("pressure")).unwrap();
        let lines =
            "some avg10=1.53 avg60=0.87 avg300=0.73 total=55937\nfull avg10=0.00 total=12\nmost total=9\n";
        fs::write(root.path().join("pressure/io"), lines).unwrap();
        fs::write(root.path().join("pressure/cpu"), "some total=-1\nfull\n").unwrap();
        let expected = Pressure::from([(("io", "some"), 55_937), (("io", "full"), 12)]);
        assert_eq!(read(root.path(), &mut Reader::default()), Ok(expected));
    }
}
