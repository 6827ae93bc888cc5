//! OTLP over gRPC: `opentelemetry.proto.collector.metrics.v1.MetricsService`.
//!
//! The service takes messages as raw bytes instead of through the generated server: they are bounded
//! before anything is decoded, and a faster decoder can take them as they are.
//!
//! Invariant: `OK` means received. It says nothing of durability, which `Control` acknowledges.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::SERVICE_NAME;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
};
use prost::Message;
use tonic::codec::{
    Codec, CompressionEncoding, DecodeBuf, Decoder, EnabledCompressionEncodings, EncodeBuf, Encoder,
};
use tonic::codegen::{Body, BoxFuture, Context, Poll, Service, StdError, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};

use super::{Ingest, MAX_PUSH_BYTES, Origin, Receipt, ReceiveError, now_unix_nanos};

/// The one method's path.
const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// The service, for a tonic server.
#[derive(Clone, Debug)]
pub(crate) struct MetricsService {
    ingest: Arc<Ingest>,
}

impl MetricsService {
    /// The service that hands pushes to `ingest`.
    pub(crate) fn new(ingest: Arc<Ingest>) -> Self {
        Self { ingest }
    }
}

impl NamedService for MetricsService {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for MetricsService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ingest = Arc::clone(&self.ingest);
        Box::pin(async move {
            if request.uri().path() != EXPORT {
                return Ok(Status::new(Code::Unimplemented, "no such method").into_http());
            }
            let mut accepted = EnabledCompressionEncodings::default();
            accepted.enable(CompressionEncoding::Zstd);
            accepted.enable(CompressionEncoding::Gzip);
            let mut grpc = Grpc::new(RawCodec)
                .apply_compression_config(accepted, EnabledCompressionEncodings::default())
                .apply_max_message_size_config(Some(MAX_PUSH_BYTES), None);
            Ok(grpc.unary(Export(ingest), request).await)
        })
    }
}

/// The method `Export`.
struct Export(Arc<Ingest>);

impl UnaryService<Bytes> for Export {
    type Response = ExportMetricsServiceResponse;
    type Future = std::future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let header = |name: &'static str| {
            request.metadata().get(name).map(tonic::metadata::MetadataValue::as_encoded_bytes)
        };
        let receipt = Origin::read(header)
            .inspect_err(|error| self.0.refuse(error.reason()))
            .and_then(|origin| self.0.receive(request.get_ref(), &origin, now_unix_nanos()));
        std::future::ready(receipt.map(|receipt| Response::new(receipt.into())).map_err(Status::from))
    }
}

impl From<Receipt> for ExportMetricsServiceResponse {
    fn from(receipt: Receipt) -> Self {
        let Receipt { rejected_points, message: error_message } = receipt;
        let rejected_data_points = i64::try_from(rejected_points).unwrap_or(i64::MAX);
        let partial_success = ExportMetricsPartialSuccess { rejected_data_points, error_message };
        Self { partial_success: (rejected_points > 0).then_some(partial_success) }
    }
}

impl From<ReceiveError> for Status {
    /// Codes that OTLP does not let a sender retry on.
    fn from(error: ReceiveError) -> Self {
        let code = match error {
            ReceiveError::Identity { .. } => Code::PermissionDenied,
            ReceiveError::Decode(_) | ReceiveError::Header { .. } => Code::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}

/// Messages in as bytes, replies out by prost.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = ExportMetricsServiceResponse;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}
