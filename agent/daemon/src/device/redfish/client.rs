//! Requests to a BMC: HTTPS, with bounds on time and size.
//!
//! Invariant: the password goes to the configured host alone, by no redirect and no proxy, and stands in no
//! error. Nothing is allocated before the first request.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use ureq::http::StatusCode;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::super::{ReadError, io_reason, sysfs};
use crate::config::{Account, Redfish as Config};

/// Largest answer: the power of a drawer with dozens of supplies has some 100 KiB.
const MAX_BODY_BYTES: u64 = 1 << 20;
/// Longest header of an answer.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Buffers of a connection: a TLS record.
const BUFFER_BYTES: usize = 16 << 10;
/// How long a connection is kept for the next reading: past the default interval.
const MAX_IDLE: Duration = Duration::from_secs(15);
/// Largest file of certificates: a distribution's has some 250 KiB.
const MAX_CA_BYTES: usize = 4 << 20;
/// Largest password file.
const MAX_PASSWORD_BYTES: usize = 4096;

/// A BMC.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    /// Makes ready to ask; the certificates are read now.
    pub(super) fn new(config: &Config) -> Result<Self, ReadError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        let tls = match &config.ca_file {
            Some(file) => tls.root_certs(certificates(file)?),
            None => tls.disable_verification(true),
        };
        let agent = ureq::Agent::config_builder()
            .https_only(true)
            .tls_config(tls.build())
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .max_response_header_size(MAX_HEADER_BYTES)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(1)
            .max_idle_age(MAX_IDLE)
            .user_agent(concat!("wattmill-agent/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .build()
            .new_agent();
        Ok(Self { agent, url: config.url.clone() })
    }

    /// What stands at `path`, asked with the header that [`authorization`] made.
    pub(super) fn get(
        &self,
        path: &str,
        authorization: Option<&str>,
        patience: Duration,
    ) -> Result<Value, ReadError> {
        let url = format!("{}{path}", self.url);
        let request = self.agent.get(&url).header("OData-Version", "4.0");
        let request = match authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        };
        let failed = |error: ureq::Error| failure(&url, &error);
        let mut response = request.config().timeout_global(Some(patience)).build().call().map_err(failed)?;
        refused(&url, response.status())?;
        let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec().map_err(failed)?;
        serde_json::from_slice(&body)
            .map_err(|error| ReadError::new("invalid", format!("{url}: the answer is not JSON: {error}")))
    }
}

fn certificates(file: &Path) -> Result<RootCerts, ReadError> {
    let bytes = sysfs::bytes(file, MAX_CA_BYTES).map_err(|error| ReadError::io(file, &error))?;
    let items = parse_pem(&bytes).filter_map(Result::ok);
    let certificates: Vec<_> = items
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        let message = format!("{}: no certificate in it; it must be PEM", file.display());
        return Err(ReadError::new("certificate", message));
    }
    Ok(RootCerts::from(certificates))
}

/// The value of the header that says who asks: the file is read each time, so that a password may be changed.
pub(super) fn authorization(account: &Account) -> Result<String, ReadError> {
    let file = &account.password_file;
    let bytes = sysfs::bytes(file, MAX_PASSWORD_BYTES).map_err(|error| ReadError::io(file, &error))?;
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let password = first.strip_suffix(b"\r").unwrap_or(first);
    if password.is_empty() {
        let message = format!("{}: no password on its first line", file.display());
        return Err(ReadError::new("credentials", message));
    }
    let words = [account.username.as_bytes(), b":", password].concat();
    Ok(format!("Basic {}", STANDARD.encode(words)))
}

/// Whether others than its owner and group may read the password.
pub(super) fn is_public(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

fn refused(url: &str, status: StatusCode) -> Result<(), ReadError> {
    let reason = match status.as_u16() {
        200 => return Ok(()),
        401 | 403 => "credentials",
        404 | 405 | 410 => "missing",
        429 | 503 => "busy",
        _ => "refused",
    };
    Err(ReadError::new(reason, format!("{url}: {status}")))
}

/// What came between. The URL holds no secret: it has no account.
fn failure(url: &str, error: &ureq::Error) -> ReadError {
    let reason = match error {
        ureq::Error::Timeout(_) => "timeout",
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => "unreachable",
        ureq::Error::BodyExceedsLimit(_) | ureq::Error::LargeResponseHeader(..) => "too_large",
        ureq::Error::Rustls(error) => tls_reason(error),
        ureq::Error::Tls(_) => "tls",
        ureq::Error::Io(error) => of_io(error),
        _ => "invalid",
    };
    ReadError::new(reason, format!("{url}: {error}"))
}

fn of_io(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (inner, error.kind()) {
        (Some(error), _) => tls_reason(error),
        (None, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => "timeout",
        (
            None,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::UnexpectedEof,
        ) => "unreachable",
        _ => io_reason(error),
    }
}

fn tls_reason(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(_) => "certificate",
        _ => "tls",
    }
}
