//! `wattmill.v1.Parameters`: blobs in and out, apart from control.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};
use wattmill_protocol::{BLOB_CHUNK_BYTES, Hash, MAX_BLOB_BYTES, Token, exit, v1};

use crate::blobs::{BlobError, Blobs};
use crate::core::LiveTokens;

/// The service.
pub(crate) struct Parameters {
    blobs: Arc<Blobs>,
    live: LiveTokens,
}

impl Parameters {
    pub(crate) fn new(blobs: Arc<Blobs>, live: LiveTokens) -> Self {
        Self { blobs, live }
    }

    fn is_live(&self, token: Token) -> bool {
        self.live.read().unwrap_or_else(PoisonError::into_inner).contains(&token)
    }
}

#[tonic::async_trait]
impl v1::parameters_server::Parameters for Parameters {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let hash = Hash::try_from(&request.into_inner().hash[..])
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let blobs = Arc::clone(&self.blobs);
        let read = tokio::task::spawn_blocking(move || blobs.read(hash)).await;
        let mut rest = read.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| status(&e))?;
        let chunks = std::iter::from_fn(move || {
            let next = rest.split_to(rest.len().min(BLOB_CHUNK_BYTES));
            (!next.is_empty()).then_some(Ok(v1::Chunk { data: next }))
        });
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn store(
        &self,
        request: Request<Streaming<v1::StoreChunk>>,
    ) -> Result<Response<v1::StoreReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|c| c.kind);
        let Some(v1::store_chunk::Kind::Header(header)) = first else {
            return Err(Status::invalid_argument("a blob begins with its header"));
        };
        let hash = Hash::try_from(&header.hash[..]).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if header.size > MAX_BLOB_BYTES {
            return Err(Status::invalid_argument(format!("a blob has at most {MAX_BLOB_BYTES} bytes")));
        }
        let token = Token(header.token);
        if !self.is_live(token) {
            return Err(Status::failed_precondition(format!("lease {token} is not live")));
        }
        let bytes = gather(&mut chunks, header.size).await?;
        self.blobs.stage(hash, bytes, token).map_err(|e| status(&e))?;
        Ok(Response::new(v1::StoreReply {}))
    }
}

/// The blob's bytes; memory grows with what arrives, not with what was announced.
async fn gather(chunks: &mut Streaming<v1::StoreChunk>, size: u64) -> Result<Bytes, Status> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.message().await? {
        let Some(v1::store_chunk::Kind::Data(data)) = chunk.kind else {
            return Err(Status::invalid_argument("a second header"));
        };
        if bytes.len() as u64 + data.len() as u64 > size {
            return Err(Status::invalid_argument(format!("more than the {size} bytes of the header")));
        }
        bytes.extend_from_slice(&data);
    }
    if bytes.len() as u64 != size {
        return Err(Status::invalid_argument(format!("{} bytes; the header says {size}", bytes.len())));
    }
    Ok(bytes.freeze())
}

fn status(error: &BlobError) -> Status {
    let message = exit::describe(error);
    match error {
        BlobError::Mismatch { .. } => Status::invalid_argument(message),
        BlobError::Full { .. } => Status::resource_exhausted(message),
        BlobError::Missing(_) => Status::not_found(message),
        BlobError::Io { .. } => Status::internal(message),
    }
}
