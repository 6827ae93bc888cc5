//! HTTP: `/metrics`, `/healthz`, `/readyz`, `/sd`, `/v1/metrics`, and a status page at `/`.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;
use wattmill_protocol::exposition;

use crate::core::Handle;
use crate::ingest::{self, Ingest};
use crate::state::{Rollup, SD_CONTENT_TYPE, Telemetry, points, service_discovery};

/// What the handlers read.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) core: Handle,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) rollups: watch::Receiver<Arc<Rollup>>,
}

/// All routes.
pub(crate) fn router(pages: Pages, ingest: Arc<Ingest>) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/sd", get(discovery))
        .with_state(pages)
        .merge(ingest::router(ingest))
}

async fn metrics(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let mut all = points(&pages.rollups.borrow());
    all.extend(pages.core.views.borrow().points.iter().cloned());
    all.extend(pages.telemetry.counts().points());
    let text = exposition::text(&all);
    let takes = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let gzip = takes.into_iter().any(exposition::accepts_gzip).then(|| exposition::gzip(&text));
    let described =
        [(header::CONTENT_TYPE, exposition::CONTENT_TYPE), (header::VARY, header::ACCEPT_ENCODING.as_str())];
    match gzip {
        Some(Ok(gzip)) => (described, [(header::CONTENT_ENCODING, "gzip")], gzip).into_response(),
        _ => (described, text).into_response(),
    }
}

/// Ready once the core published its first view, while it takes commands and its store takes transactions.
async fn ready(State(pages): State<Pages>) -> Response {
    let view = Arc::clone(&pages.core.views.borrow());
    let why = match &view.store_refusal {
        Some(reason) => format!("not ready: the store takes nothing: {reason}\n"),
        None if view.cluster.unix_ms > 0 && !pages.core.commands.is_closed() => {
            return "ready\n".into_response();
        }
        None => "not ready: the state is being recovered\n".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn discovery(State(pages): State<Pages>) -> Response {
    match service_discovery(&pages.core.views.borrow().targets) {
        Ok(text) => ([(header::CONTENT_TYPE, SD_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The cluster in one plain page: works without scripts.
async fn status_page(State(pages): State<Pages>) -> Html<String> {
    let view = Arc::clone(&pages.core.views.borrow());
    let cluster = &view.cluster;
    let figure = |value: Option<f64>, unit: &str| value.map_or("–".to_owned(), |v| format!("{v:.3}{unit}"));
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <meta http-equiv=refresh content=2><title>Wattmill</title><style>:root{color-scheme:light dark}\
         body{font:1rem/1.5 system-ui;margin:2rem;max-width:70rem}table{border-collapse:collapse}\
         td,th{padding:.2rem 1rem .2rem 0;text-align:left}</style><h1>Wattmill</h1>",
    );
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<p>Power {} · η {} · σ {} · η·σ {} · telemetry coverage {}</p><h2>Nodes</h2><table>\
         <tr><th>Name<th>State<th>Power<th>Rate<th>Why</tr>",
        figure(cluster.power_watts, " W"),
        figure(cluster.mfu_ratio, ""),
        figure(cluster.storage_capacity_ratio, ""),
        figure(cluster.objective_ratio, ""),
        figure(cluster.telemetry_coverage_ratio, ""),
    );
    for node in &cluster.nodes {
        let why = if node.excluded.is_empty() { &node.decision } else { &node.excluded };
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            escape(&node.name),
            if node.connected { "connected" } else { "disconnected" },
            figure(node.power_watts, " W"),
            figure(node.samples_per_second, " samples/s"),
            escape(why),
        );
    }
    page.push_str("</table><h2>Jobs</h2><table><tr><th>Job<th>State<th>Rounds<th>Loss<th>Accuracy</tr>");
    for job in &cluster.jobs {
        let _ = write!(
            page,
            "<tr><td>{}<td>{} {}<td>{}/{}<td>{}<td>{}</tr>",
            escape(&job.id),
            format!("{:?}", job.state()).to_lowercase(),
            escape(&job.reason),
            job.round,
            job.rounds,
            figure(job.loss, ""),
            figure(job.accuracy, ""),
        );
    }
    page.push_str("</table>");
    Html(page)
}

/// Text as HTML shows it: names come from nodes and users.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_text() {
        assert_eq!(escape("<b a=\"&\">"), "&lt;b a=&quot;&amp;&quot;&gt;");
    }
}
