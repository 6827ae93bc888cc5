//! The node's agent, asked for its page.
//!
//! Invariant: it answers within [`ANSWER_WITHIN`] and [`MAX_PAGE_BYTES`], with a page of an agent's, or is an error
//! that says what to do.

use std::time::Duration;

use tonic::codegen::http::Uri;
use wattmill_protocol::catalogue as cat;

use super::page::{Page, PageError};

/// How long an answer may take: the agent has its page ready, and waits for no device.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Largest page. One with 200 units of four scopes and sources has some 400 kB.
const MAX_PAGE_BYTES: u64 = 8 << 20;
/// The port where none is given.
const PORT: u16 = 9766;

/// What can go wrong between this tool and the node's agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The address is none.
    #[error("{address:?} is not an address such as http://127.0.0.1:9766 (http alone); see --agent")]
    Address {
        /// What was given.
        address: String,
    },
    /// Nobody answers.
    #[error(
        "cannot reach an agent at {url}; does it run (systemctl status wattmill-agent, or wattmill-agent run)? \
         `listen` in its configuration says where it answers, --agent or WATTMILL_AGENT where to ask"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// It takes too long.
    #[error(
        "no answer from {url} within {} s; an agent answers at once: is it stopped, or something else there?",
        ANSWER_WITHIN.as_secs()
    )]
    Late {
        /// Where.
        url: String,
    },
    /// It refused.
    #[error(
        "{url} answers {status}: no agent of Wattmill; `listen` in its configuration says where it answers"
    )]
    Status {
        /// Where.
        url: String,
        /// The status of HTTP.
        status: u16,
    },
    /// The page has too many bytes.
    #[error("{url} answers with over {MAX_PAGE_BYTES} bytes, which no agent of Wattmill does")]
    TooLarge {
        /// Where.
        url: String,
    },
    /// The page cannot be read.
    #[error("{url} is not the page of an agent")]
    Page {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: PageError,
    },
    /// The page is another program's.
    #[error(
        "{url} is the page of another program: {BUILD_INFO} is not on it; `listen` in the agent's configuration says \
         where it answers, port {PORT} by default"
    )]
    Foreign {
        /// Where.
        url: String,
    },
    /// The page is that of an agent that names things otherwise.
    #[error("the agent at {url} is of version {version}, which this tool of version {VERSION} cannot read")]
    Version {
        /// Where.
        url: String,
        /// The agent's.
        version: String,
    },
}

const BUILD_INFO: &str = cat::AGENT_BUILD_INFO.name;
/// The version of this tool.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An agent's address, ready to be asked.
#[derive(Clone)]
pub(crate) struct Agent {
    url: String,
    http: ureq::Agent,
}

impl Agent {
    /// The agent at `address`: `http://host:port`, and what is left out of it by default.
    pub(crate) fn new(address: &str) -> Result<Self, AgentError> {
        let url = url(address).ok_or_else(|| AgentError::Address { address: address.to_owned() })?;
        let http = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_WITHIN))
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("wattmill/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { url, http })
    }

    /// Where it is asked.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its page of now; blocks.
    pub(crate) fn page(&self) -> Result<Page, AgentError> {
        let url = || self.url.clone();
        let mut response = self.http.get(&self.url).call().map_err(|error| self.failed(error))?;
        if response.status() != 200 {
            return Err(AgentError::Status { url: url(), status: response.status().as_u16() });
        }
        let body = response.body_mut().with_config().limit(MAX_PAGE_BYTES).lossy_utf8(true).read_to_string();
        let text = body.map_err(|error| self.failed(error))?;
        let page = Page::parse(&text).map_err(|source| AgentError::Page { url: url(), source })?;
        let Some(build) = page.all(BUILD_INFO).next() else { return Err(AgentError::Foreign { url: url() }) };
        if page.all(cat::NODE_INFO.name).next().is_none() {
            return Err(AgentError::Version {
                url: url(),
                version: crate::show::text(build.label("version")),
            });
        }
        Ok(page)
    }

    fn failed(&self, error: ureq::Error) -> AgentError {
        let url = self.url.clone();
        match error {
            ureq::Error::Timeout(_) => AgentError::Late { url },
            ureq::Error::BodyExceedsLimit(_) => AgentError::TooLarge { url },
            error => AgentError::Unreachable { url, source: Box::new(error) },
        }
    }
}

fn url(address: &str) -> Option<String> {
    let authority = match address.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => address,
    };
    let authority = authority.trim_end_matches('/').trim_end_matches("/metrics");
    let uri: Uri = format!("http://{authority}/metrics").parse().ok()?;
    let host = uri.host().filter(|host| !host.is_empty())?;
    let plain = uri.path() == "/metrics" && uri.query().is_none() && !authority.contains('@');
    let port = match authority.strip_prefix(host)? {
        "" => PORT,
        _ => uri.port_u16()?,
    };
    plain.then(|| format!("http://{host}:{port}/metrics"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use wattmill_protocol::exit;

    use super::*;

    /// What the tool says of an answer.
    fn said(answer: Vec<u8>) -> Result<Page, AgentError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            // The tool may have had enough before all of it is sent.
            let _ = stream.write_all(&answer);
        });
        let page = Agent::new(&address.to_string()).unwrap().page();
        server.join().unwrap();
        page
    }

    fn ok(body: &str) -> Vec<u8> {
        format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn addresses_are_completed_or_refused() {
        for (given, asked) in [
            ("127.0.0.1", "http://127.0.0.1:9766/metrics"),
            ("node1:1", "http://node1:1/metrics"),
            ("http://node1/", "http://node1:9766/metrics"),
            ("http://[::1]:9766/metrics", "http://[::1]:9766/metrics"),
            ("[::1]", "http://[::1]:9766/metrics"),
        ] {
            assert_eq!(url(given).as_deref(), Some(asked), "{given}");
        }
        for given in ["", "https://node1", "http://", "a b", "node1:x", "node1:", "a:1/b", "a@b:1", "a?b"] {
            assert_eq!(url(given), None, "{given}");
        }
        let error = crate::client::Error::from(Agent::new("https://a").err().unwrap());
        assert_eq!(error.exit_code(), exit::USAGE);
    }

    #[test]
    fn every_other_answer_says_what_it_is() {
        let page = "wattmill_agent_build_info{version=\"0.1.0\"} 1\n";
        assert!(said(ok(&format!("{page}wattmill_node_info{{name=\"a\"}} 1\n"))).is_ok());
        let cases: [(Vec<u8>, &str); 6] = [
            (ok("go_threads 3\n"), "another program"),
            (ok("<html>\n"), "not the page of an agent"),
            (ok(page), "of version 0.1.0, which this tool"),
            (b"HTTP/1.0 404 Not Found\r\n\r\n".to_vec(), "404: no agent"),
            (b"220 mail\r\n".to_vec(), "cannot reach an agent"),
            (ok(&"a".repeat(MAX_PAGE_BYTES as usize + 1)), "with over 8388608 bytes"),
        ];
        for (answer, words) in cases {
            let error = said(answer).unwrap_err();
            let said = exit::describe(&error);
            assert!(said.contains(words) && said.contains("http://127.0.0.1:"), "{words}: {said}");
        }
    }

    #[test]
    fn nobody_there_says_what_to_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let said = exit::describe(&Agent::new(&address).unwrap().page().unwrap_err());
        assert!(
            said.contains("wattmill-agent run") && said.contains("--agent") && said.contains("efused"),
            "{said}"
        );
    }
}
