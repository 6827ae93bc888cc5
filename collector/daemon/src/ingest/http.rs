//! OTLP over HTTP: `POST /v1/metrics` with a protobuf body, plain or gzip.
//!
//! Invariant: an answer says whether sending again would help: it never does for what is answered here
//! with 4xx, and OTLP senders do not.

use std::io::Read;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use flate2::read::MultiGzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;

use super::decode::DecodeError;
use super::{Ingest, MAX_PUSH_BYTES, Origin, ReceiveError, now_unix_nanos};
use crate::state::Reason;

/// The content type of requests and answers.
const PROTOBUF: &str = "application/x-protobuf";

/// The route, to be merged into the collector's.
pub(crate) fn router(ingest: Arc<Ingest>) -> Router {
    Router::new()
        .route("/v1/metrics", post(metrics))
        .layer(DefaultBodyLimit::max(MAX_PUSH_BYTES))
        .with_state(ingest)
}

async fn metrics(
    State(ingest): State<Arc<Ingest>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match receive(&ingest, &headers, body, now_unix_nanos()) {
        Ok(response) => answer(StatusCode::OK, &response),
        Err(refusal) => refusal.into_response(),
    }
}

fn receive(
    ingest: &Ingest,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    now_unix_nanos: u64,
) -> Result<ExportMetricsServiceResponse, Refusal> {
    let refuse = |reason, status, message: String| {
        ingest.refuse(reason);
        Refusal { status, message }
    };
    let too_large =
        || refuse(Reason::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, DecodeError::TooLarge.to_string());
    let unsupported =
        |message: &str| refuse(Reason::Malformed, StatusCode::UNSUPPORTED_MEDIA_TYPE, message.to_owned());
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case(PROTOBUF)) {
        return Err(unsupported("push protobuf (application/x-protobuf); JSON is not taken"));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        status => refuse(Reason::Malformed, status, rejection.body_text()),
    })?;
    let push = match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => body,
        Some(b"gzip") => {
            let mut push = Vec::new();
            let mut decoder = MultiGzDecoder::new(&body[..]).take(MAX_PUSH_BYTES as u64 + 1);
            decoder.read_to_end(&mut push).map_err(|error| {
                refuse(Reason::Malformed, StatusCode::BAD_REQUEST, format!("not gzip: {error}"))
            })?;
            if push.len() > MAX_PUSH_BYTES {
                return Err(too_large());
            }
            push.into()
        }
        Some(_) => return Err(unsupported("compress with gzip or not at all")),
    };
    let header = |name: &'static str| headers.get(name).map(HeaderValue::as_bytes);
    let origin = Origin::read(header).inspect_err(|error| ingest.refuse(error.reason()))?;
    Ok(ingest.receive(&push, &origin, now_unix_nanos)?.into())
}

/// Why a request was refused.
struct Refusal {
    status: StatusCode,
    message: String,
}

impl From<ReceiveError> for Refusal {
    fn from(error: ReceiveError) -> Self {
        let status = match error {
            ReceiveError::Identity { .. } => StatusCode::FORBIDDEN,
            ReceiveError::Decode(DecodeError::TooLarge | DecodeError::TooMany) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            ReceiveError::Decode(_) | ReceiveError::Header { .. } => StatusCode::BAD_REQUEST,
        };
        Self { status, message: error.to_string() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // gRPC's INVALID_ARGUMENT: OTLP/HTTP reads the status line and gives this to people.
        answer(self.status, &RpcStatus { code: 3, message: self.message })
    }
}

fn answer(status: StatusCode, message: &impl Message) -> Response {
    (status, [(CONTENT_TYPE, PROTOBUF)], message.encode_to_vec()).into_response()
}

/// `google.rpc.Status`, the body of OTLP/HTTP's refusals.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}
