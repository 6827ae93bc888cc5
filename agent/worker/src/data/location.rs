//! Where data lies and in which format, from its URI.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Formats by the ending of the path. `.csv.gz` stands before what it does not end in.
const FORMATS: [(&str, Compression); 2] = [(".csv", Compression::None), (".csv.gz", Compression::Gzip)];

/// How a CSV file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// It is not.
    None,
    /// By gzip, in one member or several.
    Gzip,
}

/// A file that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// From its ending.
    pub(crate) compression: Compression,
}

/// A URI that this worker cannot read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LocationError {
    /// Not a URI.
    #[error("data.uri {0:?} has no scheme; expected is one such as file:///data/digits.csv.gz")]
    NoScheme(String),
    /// A URI of another kind.
    #[error("unknown URI scheme {0:?}: this worker reads file://")]
    Scheme(String),
    /// A file on another machine, or a relative path: its first part is then taken for a host.
    #[error(
        "data.uri {uri:?} names the host {host:?}: this worker reads files of its own machine, by absolute \
         path, as in file:///data/digits.csv.gz (three slashes)"
    )]
    Host {
        /// The URI.
        uri: String,
        /// What stands where a host would.
        host: String,
    },
    /// A query or a fragment, which files do not have.
    #[error(
        "data.uri {uri:?} has a {mark:?}, which a file URI has not: write {encoded} where it is part of a name"
    )]
    Mark {
        /// The URI.
        uri: String,
        /// `?` or `#`.
        mark: char,
        /// How it is written in a path.
        encoded: &'static str,
    },
    /// A path of another format.
    #[error("data.uri {0:?} ends in no format that this worker reads: .csv, .csv.gz")]
    Format(String),
}

impl Location {
    /// Takes a URI apart. Schemes are case-insensitive, `localhost` is this machine, `%41` is `A`.
    ///
    /// # Errors
    /// [`LocationError`] naming what cannot be read and what could.
    pub(crate) fn parse(uri: &str) -> Result<Self, LocationError> {
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| LocationError::NoScheme(uri.to_owned()))?;
        if !scheme.eq_ignore_ascii_case("file") {
            return Err(LocationError::Scheme(scheme.to_owned()));
        }
        for (mark, encoded) in [('?', "%3F"), ('#', "%23")] {
            if rest.contains(mark) {
                return Err(LocationError::Mark { uri: uri.to_owned(), mark, encoded });
            }
        }
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if path.is_empty() || !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
            return Err(LocationError::Host { uri: uri.to_owned(), host: host.to_owned() });
        }
        let path: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
        let format = FORMATS.iter().find(|(ending, _)| path.ends_with(ending.as_bytes()));
        let (_, compression) = format.ok_or_else(|| LocationError::Format(uri.to_owned()))?;
        Ok(Self { path: OsString::from_vec(path).into(), compression: *compression })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_uris_are_read() {
        for (uri, path, compression) in [
            ("file:///a/b.csv", "/a/b.csv", Compression::None),
            ("file:///a/b.csv.gz", "/a/b.csv.gz", Compression::Gzip),
            ("FILE://localhost/a.csv", "/a.csv", Compression::None),
            ("file:///a%20b/%C3%A9%3F.csv", "/a b/é?.csv", Compression::None),
            ("file:///a%2Ecsv", "/a.csv", Compression::None),
        ] {
            assert_eq!(Location::parse(uri), Ok(Location { path: path.into(), compression }), "{uri}");
        }
    }

    #[test]
    fn other_uris_are_refused_by_name() {
        for (uri, expected) in [
            ("s3://bucket/a.csv", "unknown URI scheme \"s3\": this worker reads file://"),
            ("/a.csv", "has no scheme"),
            ("file:/a.csv", "has no scheme"),
            ("file://a.csv", "names the host \"a.csv\""),
            ("file://data/a.csv", "names the host \"data\""),
            ("file://./a.csv", "by absolute path"),
            ("file://", "by absolute path"),
            ("file:///a.csv?version=1", "has a '?'"),
            ("file:///a.csv#b", "write %23"),
            ("file:///a.parquet", "ends in no format that this worker reads: .csv, .csv.gz"),
            ("file:///a.csv/", "ends in no format"),
        ] {
            let error = Location::parse(uri).expect_err(uri).to_string();
            assert!(error.contains(expected), "{uri}: {error}");
        }
    }
}
