//! Messages on the stream between agent and worker.
//!
//! The framing, which the agent implements from its side: each message is its length in bytes as an unsigned
//! 32-bit **big-endian** integer, then that many bytes of its protobuf encoding, [`ToWorker`] towards the
//! worker and [`FromWorker`] from it. A length above [`MAX_WORKER_MESSAGE_BYTES`] breaks the protocol. There
//! is no other byte on the stream.
//!
//! Invariant: memory follows the bytes that arrived, not the length that a stranger announced.

use std::io::{self, ErrorKind, Read, Write};

use prost::Message;
use wattmill_protocol::MAX_WORKER_MESSAGE_BYTES;
use wattmill_protocol::v1::{FromWorker, ToWorker};

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;
/// Room made before the first byte of a message arrives: most messages fit.
const FIRST_BUFFER_BYTES: usize = 64 << 10;

/// The stream does not follow the protocol, or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The other side is gone; not a fault.
    #[error("the agent closed the stream")]
    Closed,
    /// A message is announced, or about to be sent, that no one may send.
    #[error("a message of {0} bytes is above the limit of {MAX_WORKER_MESSAGE_BYTES}")]
    TooLong(usize),
    /// The stream ended before its message did.
    #[error("the stream ended after {received} of {expected} bytes of a message")]
    Truncated {
        /// Bytes that came.
        received: usize,
        /// Bytes that were announced.
        expected: usize,
    },
    /// The bytes are no message.
    #[error("a message cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    /// The operating system failed to read or to write.
    #[error("the stream to the agent failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A socket whose peer closed it with answers unread is reset.
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// The next message, or `None` where the stream ends between two.
///
/// # Errors
/// [`WireError`]; the stream is then of no further use.
pub(crate) fn read(stream: &mut impl Read) -> Result<Option<ToWorker>, WireError> {
    let mut length = [0; LENGTH_BYTES];
    match fill(stream, &mut length)? {
        0 => return Ok(None),
        LENGTH_BYTES => {}
        received => return Err(WireError::Truncated { received, expected: LENGTH_BYTES }),
    }
    let expected = u32::from_be_bytes(length) as usize;
    if expected > MAX_WORKER_MESSAGE_BYTES {
        return Err(WireError::TooLong(expected));
    }
    let mut message = Vec::with_capacity(expected.min(FIRST_BUFFER_BYTES));
    let received = stream.take(expected as u64).read_to_end(&mut message)?;
    if received < expected {
        return Err(WireError::Truncated { received, expected });
    }
    // From `Bytes`, fields of bytes share this buffer: parameters are not copied.
    ToWorker::decode(bytes::Bytes::from(message)).map(Some).map_err(WireError::Decode)
}

/// Sends one message.
///
/// # Errors
/// [`WireError`]; the stream is then of no further use.
pub(crate) fn write(stream: &mut (impl Write + ?Sized), message: &FromWorker) -> Result<(), WireError> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_WORKER_MESSAGE_BYTES);
    let prefix = prefix.ok_or(WireError::TooLong(length))?;
    let mut frame = Vec::with_capacity(LENGTH_BYTES + length);
    frame.extend(prefix.to_be_bytes());
    frame.extend(message.encode_to_vec());
    stream.write_all(&frame)?;
    stream.flush()?;
    Ok(())
}

/// Reads until `buffer` is full or the stream ends; the bytes read.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattmill_protocol::v1::{ProbeReply, ProbeRequest, from_worker, to_worker};

    #[test]
    fn the_framing_is_a_big_endian_length_and_protobuf() {
        let probe = ToWorker { kind: Some(to_worker::Kind::Probe(ProbeRequest { threads: 3 })) };
        // Field 1, length-delimited, of 2 bytes: field 1, varint, 3.
        let bytes = [0, 0, 0, 4, 0x0a, 2, 0x08, 3];
        let mut stream = bytes.as_slice();
        assert_eq!(read(&mut stream).unwrap(), Some(probe));
        assert_eq!(read(&mut stream).unwrap(), None);

        let reply = ProbeReply { flops_per_second: 0.0, precision: "f32".to_owned() };
        let reply = FromWorker { kind: Some(from_worker::Kind::Probe(reply)) };
        let mut written = Vec::new();
        write(&mut written, &reply).unwrap();
        assert_eq!(written, [0, 0, 0, 7, 0x12, 5, 0x12, 3, b'f', b'3', b'2']);
    }

    #[test]
    fn broken_streams_are_told_apart() {
        let table: [(&[u8], &str); 4] = [
            (&[0, 0], "the stream ended after 2 of 4 bytes of a message"),
            (&[0, 0, 0, 9, 1], "the stream ended after 1 of 9 bytes of a message"),
            (&[0xff, 0xff, 0xff, 0xff, 1], "a message of 4294967295 bytes is above the limit"),
            (&[0, 0, 0, 2, 0xff, 0xff], "a message cannot be decoded"),
        ];
        for (bytes, expected) in table {
            let error = read(&mut { bytes }).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
