//! The bytes of a data file: hashed as they lie on disk, decompressed where they are compressed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use wattmill_protocol::Hash;

use super::DataError;
use super::location::{Compression, Location};

/// Bytes asked of the file, and of the decoder, at a time.
const BUFFER_BYTES: usize = 128 << 10;

/// An open data file.
pub(crate) struct Source {
    path: PathBuf,
    reader: BufReader<Decoder>,
}

/// A file that hashes what is read of it.
struct HashedFile {
    file: File,
    hash: Sha256,
    failed: bool,
}

enum Decoder {
    Plain(HashedFile),
    Gzip(Box<MultiGzDecoder<BufReader<HashedFile>>>),
}

impl Source {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DataError`] if there is none, it may not be read, or is not a regular file.
    pub(crate) fn open(location: &Location) -> Result<Self, DataError> {
        let path = location.path.clone();
        let failed = |source| DataError::Open { path: path.clone(), source };
        // Asked before opening: to open a pipe would wait for its writer.
        let kind = fs::metadata(&path).map_err(failed)?;
        if !kind.is_file() {
            let what = if kind.is_dir() { "a folder" } else { "a device, pipe or socket" };
            return Err(DataError::NotAFile { path, what });
        }
        let file = File::open(&path).map_err(failed)?;
        let file = HashedFile { file, hash: Sha256::new(), failed: false };
        let decoder = match location.compression {
            Compression::None => Decoder::Plain(file),
            Compression::Gzip => {
                let file = BufReader::with_capacity(BUFFER_BYTES, file);
                Decoder::Gzip(Box::new(MultiGzDecoder::new(file)))
            }
        };
        Ok(Self { path, reader: BufReader::with_capacity(BUFFER_BYTES, decoder) })
    }

    /// Reads into `line` what is left of the current line, its end included, but at most `limit` bytes;
    /// the bytes read, 0 at the end of the file.
    ///
    /// # Errors
    /// [`DataError`] if the file cannot be read or is not a whole gzip file.
    pub(crate) fn read_line(&mut self, line: &mut Vec<u8>, limit: usize) -> Result<usize, DataError> {
        let result = self.reader.by_ref().take(limit as u64).read_until(b'\n', line);
        result.map_err(|source| {
            let path = self.path.clone();
            match self.reader.get_ref() {
                Decoder::Gzip(decoder) if !decoder.get_ref().get_ref().failed => {
                    DataError::Gzip { path, source }
                }
                _ => DataError::Read { path, source },
            }
        })
    }

    /// The hash of the bytes that were read, which are all of the file once a line of 0 bytes was.
    pub(crate) fn into_hash(self) -> Hash {
        let file = match self.reader.into_inner() {
            Decoder::Plain(file) => file,
            Decoder::Gzip(decoder) => decoder.into_inner().into_inner(),
        };
        Hash(file.hash.finalize().into())
    }
}

impl Read for HashedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.file.read(buffer);
        match &result {
            Ok(count) => self.hash.update(&buffer[..*count]),
            Err(error) => self.failed = error.kind() != io::ErrorKind::Interrupted,
        }
        result
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}
