//! HTTP/1.0 by hand: one request a connection, no chunks.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::PATIENCE;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as a text.
    pub body: String,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }
}

/// Asks for `path` at `address`; `None` where nobody answers.
pub fn try_get(address: &str, path: &str) -> Option<Answer> {
    request(address, "GET", path, &[], &[]).ok()
}

/// Asks for `path` at `address`.
///
/// # Panics
/// Nobody answers.
pub fn get(address: &str, path: &str) -> Answer {
    request(address, "GET", path, &[], &[]).unwrap_or_else(|e| panic!("GET http://{address}{path}: {e}"))
}

/// Asks for `path` at `address`, with headers.
///
/// # Panics
/// Nobody answers.
pub fn get_with(address: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(address, "GET", path, headers, &[]).unwrap_or_else(|e| panic!("GET http://{address}{path}: {e}"))
}

/// Sends `body`.
///
/// # Panics
/// Nobody answers.
pub fn post(address: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    request(address, "POST", path, headers, body)
        .unwrap_or_else(|e| panic!("POST http://{address}{path}: {e}"))
}

fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let malformed = || {
        let text = String::from_utf8_lossy(&answer);
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no HTTP: {text:?}"))
    };
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(malformed)?;
    let (head, bytes) = (String::from_utf8_lossy(&answer[..end]), answer[end + 4..].to_vec());
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(malformed)?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    let body = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Answer { status, headers: headers.collect(), body, bytes })
}

/// Text as it stands in a query.
pub fn encoded(text: &str) -> String {
    let escape = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(escape).collect()
}
