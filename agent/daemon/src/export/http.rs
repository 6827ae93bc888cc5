//! `/metrics` for Prometheus, and `/healthz`.
//!
//! Invariant: a scrape is rendered from the newest snapshot and waits for no device or disk. Each snapshot is
//! rendered once, however many scrapers there are: ahead where each window is asked for, else when it first is.

use std::future::IntoFuture as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wattmill_protocol::exposition::{self, Layout};

use crate::clock;
use crate::snapshot::Snapshot;
use crate::snapshot::series::{Flatten, Shape};

/// So many windows in a row that were asked for, and the next is written ahead.
const ASKED_IN_A_ROW: u32 = 2;
/// Windows that may be missed before the agent calls itself unhealthy.
const MISSED_WINDOWS: u32 = 5;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for /metrics: set `listen` to another address, or port 0 for a free one")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

#[derive(Clone)]
struct Exporter {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pages: Arc<Mutex<Pages>>,
    patience: Duration,
}

/// Writes pages.
#[derive(Default)]
struct Pages {
    flatten: Flatten,
    /// Of the newest page.
    layout: (Arc<Shape>, Layout),
    newest: Option<Page>,
    /// Windows before the newest one that were asked for, one after the other.
    asked_in_a_row: u32,
}

impl Pages {
    /// The page of a snapshot, for somebody who asks for it.
    fn of(&mut self, snapshot: Arc<Snapshot>) -> &mut Page {
        let page = self.written(snapshot);
        page.asked = true;
        page
    }

    /// There is a new snapshot: its page is written before it is asked for, if it most likely will be.
    fn ahead(&mut self, snapshot: Arc<Snapshot>) {
        let Some(last) = self.newest.take_if(|page| page.asked && !Arc::ptr_eq(&page.of, &snapshot)) else {
            self.asked_in_a_row = 0;
            return;
        };
        self.asked_in_a_row = self.asked_in_a_row.saturating_add(1);
        if self.asked_in_a_row >= ASKED_IN_A_ROW {
            let page = self.written(snapshot);
            if last.gzip.is_some() {
                page.gzip();
            }
        }
    }

    fn written(&mut self, snapshot: Arc<Snapshot>) -> &mut Page {
        let fresh = self.newest.take().filter(|page| Arc::ptr_eq(&page.of, &snapshot));
        let page = fresh.unwrap_or_else(|| {
            let (shape, values) = self.flatten.series(&snapshot);
            if !Arc::ptr_eq(&self.layout.0, &shape) {
                self.layout = (Arc::clone(&shape), Layout::of(shape.series()));
            }
            Page { of: snapshot, text: self.layout.1.page(&values).into(), gzip: None, asked: false }
        });
        self.newest.insert(page)
    }
}

/// A snapshot as it is sent.
struct Page {
    of: Arc<Snapshot>,
    text: Bytes,
    /// Compressed, once somebody took it so.
    gzip: Option<Bytes>,
    asked: bool,
}

impl Page {
    /// Compressed; `None` where that fails.
    fn gzip(&mut self) -> Option<Bytes> {
        if self.gzip.is_none() {
            let text = std::str::from_utf8(&self.text).ok()?;
            self.gzip = exposition::gzip(text).ok().map(Bytes::from);
        }
        self.gzip.clone()
    }
}

/// Takes the address; nothing is served yet.
///
/// # Errors
/// When the address is taken or not this host's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves until cancelled; `interval` is the length of a window.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    interval: Duration,
    cancel: CancellationToken,
) -> io::Result<()> {
    let exporter = Exporter { snapshots, pages: Arc::default(), patience: interval * MISSED_WINDOWS };
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz));
    let router = router.with_state(exporter.clone());
    let served = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned());
    tokio::select! {
        served = served.into_future() => served,
        never = write_ahead(exporter) => match never {},
    }
}

async fn write_ahead(mut exporter: Exporter) -> std::convert::Infallible {
    while exporter.snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&exporter.snapshots.borrow_and_update());
        exporter.pages().ahead(snapshot);
    }
    // The meter has ended; what it said last may still be asked for.
    std::future::pending().await
}

impl Exporter {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        // What a panic leaves is a page less.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn metrics(State(exporter): State<Exporter>, headers: HeaderMap) -> Response {
    let takes = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let takes_gzip = takes.into_iter().any(exposition::accepts_gzip);
    let snapshot = Arc::clone(&exporter.snapshots.borrow());
    let (text, gzip) = {
        let mut pages = exporter.pages();
        let page = pages.of(snapshot);
        (page.text.clone(), if takes_gzip { page.gzip() } else { None })
    };
    let described =
        [(header::CONTENT_TYPE, exposition::CONTENT_TYPE), (header::VARY, header::ACCEPT_ENCODING.as_str())];
    match gzip {
        Some(gzip) => (described, [(header::CONTENT_ENCODING, "gzip")], gzip).into_response(),
        None => (described, text).into_response(),
    }
}

async fn healthz(State(exporter): State<Exporter>) -> Response {
    let ended = exporter.snapshots.borrow().unix_nanos;
    let age = Duration::from_nanos(clock::unix_nanos().saturating_sub(ended));
    if age <= exporter.patience {
        return "ok\n".into_response();
    }
    let message = format!("no metering window has closed for {:.0} s\n", age.as_secs_f64());
    (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::snapshot::tests::sample;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scrape_is_the_snapshot() {
        let (sender, snapshots) = watch::channel(Arc::new(sample()));
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let server = tokio::spawn(serve(listener, snapshots, Duration::from_secs(1), cancel.clone()));
        let answer = fetch(address, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{answer}");
        assert!(answer.contains("wattmill_gpu_up{uuid=\"GPU-lost\"} 0"), "{answer}");
        assert!(
            fetch(address, "/healthz").await.starts_with("HTTP/1.1 503"),
            "the sample's window is of 1970"
        );
        sender.send_modify(|s| Arc::make_mut(s).unix_nanos = clock::unix_nanos());
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/other").await.starts_with("HTTP/1.1 404"));
        cancel.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_is_rendered_once_for_all_scrapers_plain_and_compressed() {
        let (sender, snapshots) = watch::channel(Arc::new(sample()));
        let exporter = Exporter { snapshots, pages: Arc::default(), patience: Duration::from_secs(1) };
        let scrape = async |takes: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, takes.parse().unwrap())]);
            let answer = metrics(State(exporter.clone()), headers).await;
            let coding = answer.headers().get(header::CONTENT_ENCODING).cloned();
            (coding, axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap())
        };
        let (coding, plain) = scrape("identity").await;
        assert_eq!(coding, None);
        let (coding, packed) = scrape("gzip, br").await;
        assert_eq!(coding.unwrap(), "gzip");
        assert!(packed.len() < plain.len() / 3 && packed.starts_with(&[0x1f, 0x8b]), "{}", packed.len());
        let (again, packed_again) = (scrape("deflate").await.1, scrape("gzip").await.1);
        assert_eq!((again.as_ptr(), packed_again.as_ptr()), (plain.as_ptr(), packed.as_ptr()), "no copies");
        sender.send_replace(Arc::new(Snapshot { useful_flops: 7, ..sample() }));
        let text = scrape("").await.1;
        assert!(String::from_utf8(text.to_vec()).unwrap().contains("flops_total{precision=\"f32\"} 7\n"));
    }

    #[test]
    fn a_page_is_written_ahead_while_each_window_is_asked_for() {
        let mut pages = Pages::default();
        let mut asked = Vec::new();
        let window = |flops| Arc::new(Snapshot { useful_flops: flops, ..sample() });
        // Scraped at each window up to the 6th, then at every other.
        for flops in 1..=12 {
            let snapshot = window(flops);
            pages.ahead(Arc::clone(&snapshot));
            let ahead = pages.newest.as_ref().filter(|page| Arc::ptr_eq(&page.of, &snapshot));
            asked.push(ahead.map(|page| page.gzip.is_some()));
            if flops <= 6 || flops % 2 == 0 {
                let page = pages.of(snapshot);
                let text = String::from_utf8(page.text.to_vec()).unwrap();
                assert!(text.contains(&format!("flops_total{{precision=\"f32\"}} {flops}\n")), "{text}");
                if flops >= 4 {
                    page.gzip();
                }
            }
        }
        let plain = Some(false);
        let packed = Some(true);
        let (none, rest) = ([None, None], [None; 5]);
        assert_eq!(asked, [&none[..], &[plain, plain, packed, packed, packed], &rest].concat());
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("`listen`"), "{error}");
    }
}
