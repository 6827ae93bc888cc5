//! A BMC with a Redfish service: an HTTPS server on this host that answers as a test says.
//!
//! Invariant: only what carries the account's password is answered, and what did not is counted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Name of the account that may read.
pub const USERNAME: &str = "monitor";
/// Its password.
pub const PASSWORD: &str = "open-sesame-1234";
/// What says so in a request.
pub const AUTHORIZATION: &str = "Basic bW9uaXRvcjpvcGVuLXNlc2FtZS0xMjM0";
/// Longest request.
const MAX_LINES: usize = 64;

/// A file of `tests/fixtures/tls`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tls")).join(name)
}

/// What stands at a path.
#[derive(Clone)]
pub enum Page {
    /// JSON.
    Json(String),
    /// Another status, with the header lines that belong to it.
    Status(u16, String),
}

#[derive(Default)]
struct State {
    pages: BTreeMap<String, Page>,
    /// Paths that were asked for with the password.
    asked: Vec<String>,
    /// Requests without.
    refused: u32,
}

/// The running server; it ends with the test.
pub struct Bmc {
    /// Its address as a URL.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Bmc {
    /// Starts one that knows nothing but its chassis `1`, without power.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    /// Starts one at an address, for which its certificate need not be good.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("it is bound"));
        let state = Arc::new(Mutex::new(State::default()));
        let (config, shared) = (Arc::new(config()), Arc::clone(&state));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, shared) = (Arc::clone(&config), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, config, &shared));
            }
        });
        let bmc = Self { url, state };
        bmc.json("/redfish/v1/Chassis", r#"{"Members":[{"@odata.id":"/redfish/v1/Chassis/1"}]}"#);
        bmc.json(
            "/redfish/v1/Chassis/1",
            r#"{"Id":"1","EnvironmentMetrics":{"@odata.id":"/redfish/v1/Chassis/1/EnvironmentMetrics"},
                "Power":{"@odata.id":"/redfish/v1/Chassis/1/Power"}}"#,
        );
        bmc
    }

    fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts something at a path.
    pub fn put(&self, path: &str, page: Page) {
        self.state(|state| state.pages.insert(path.to_owned(), page));
    }

    /// Puts JSON at a path.
    pub fn json(&self, path: &str, json: &str) {
        self.put(path, Page::Json(json.to_owned()));
    }

    /// An older service's power of chassis `1`.
    pub fn power(&self, watts: f64) {
        let control = format!(r#"{{"PowerControl":[{{"MemberId":"0","PowerConsumedWatts":{watts}}}]}}"#);
        self.json("/redfish/v1/Chassis/1/Power", &control);
    }

    /// A newer service's power and energy of chassis `1`.
    pub fn environment(&self, watts: f64, kwh: f64) {
        let metrics = format!(r#"{{"PowerWatts":{{"Reading":{watts}}},"EnergykWh":{{"Reading":{kwh}}}}}"#);
        self.json("/redfish/v1/Chassis/1/EnvironmentMetrics", &metrics);
    }

    /// How often a path was asked for with the password.
    pub fn asked(&self, path: &str) -> usize {
        self.state(|state| state.asked.iter().filter(|asked| *asked == path).count())
    }

    /// Requests without the password.
    pub fn refused(&self) -> u32 {
        self.state(|state| state.refused)
    }
}

fn config() -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(fixture("bmc.pem")).expect("a certificate");
    let chain: Vec<_> = chain.map(|certificate| certificate.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(fixture("bmc.key")).expect("a key");
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a key that fits")
}

/// Answers the requests of one connection, until it ends.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &Mutex<State>) {
    let connection = ServerConnection::new(config).expect("a server's configuration");
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    while let Some((path, authorized)) = request(&mut reader) {
        let page = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if authorized {
                state.asked.push(path.clone());
                state.pages.get(&path).cloned().unwrap_or(Page::Status(404, String::new()))
            } else {
                state.refused += 1;
                Page::Status(401, String::new())
            }
        };
        let answer = match page {
            Page::Json(json) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()),
            Page::Status(status, headers) => {
                format!("HTTP/1.1 {status} -\r\n{headers}Content-Length: 0\r\n\r\n")
            }
        };
        // Whoever asked may be gone.
        if reader.get_mut().write_all(answer.as_bytes()).and_then(|()| reader.get_mut().flush()).is_err() {
            return;
        }
    }
}

/// The next request's path, and whether it carries the password.
fn request(reader: &mut impl BufRead) -> Option<(String, bool)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut authorized = false;
    for _ in 0..MAX_LINES {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            return Some((path, authorized));
        }
        let (name, value) = line.split_once(':')?;
        authorized |= name.eq_ignore_ascii_case("authorization") && value.trim() == AUTHORIZATION;
    }
    None
}
