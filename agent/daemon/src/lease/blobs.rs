//! Blobs to and from the collector, on a connection of their own, beside the session.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;
use wattmill_protocol::{BLOB_CHUNK_BYTES, Hash, MAX_BLOB_BYTES, Token, v1};

use super::session::Link;

/// Tries of a fetch before its leases fail.
const FETCH_TRIES: u32 = 5;
/// Pause after the first failed try; it doubles.
const FETCH_PAUSE: Duration = Duration::from_millis(100);

type Client = v1::parameters_client::ParametersClient<Channel>;

/// A transfer that ended.
pub(super) enum Ended {
    /// Parameters that were asked for.
    Fetched(Fetched),
    /// A result's blob.
    Stored(Stored),
}

/// Parameters that were asked for.
pub(super) struct Fetched {
    pub(super) hash: Hash,
    pub(super) outcome: Result<Bytes, Status>,
}

/// A result's blob that was stored, or not.
pub(super) struct Stored {
    pub(super) token: Token,
    pub(super) outcome: Result<(), Status>,
}

/// Transfers under way. At most one store for each lease in hand and one fetch for each of its
/// parameters, so their number is bounded by the slots.
pub(super) struct Transfers {
    client: Client,
    running: JoinSet<Ended>,
}

impl Transfers {
    pub(super) fn new(link: &Link) -> Self {
        Self { client: Client::new(link.channel()), running: JoinSet::new() }
    }

    pub(super) fn fetch(&mut self, hash: Hash) {
        let mut client = self.client.clone();
        self.running.spawn(async move {
            let mut pause = FETCH_PAUSE;
            let mut outcome = fetch(&mut client, hash).await;
            for _ in 1..FETCH_TRIES {
                if !matches!(&outcome, Err(s) if s.code() == tonic::Code::Unavailable) {
                    break;
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
                outcome = fetch(&mut client, hash).await;
            }
            Ended::Fetched(Fetched { hash, outcome })
        });
    }

    pub(super) fn store(&mut self, token: Token, hash: Hash, blob: Bytes) {
        let mut client = self.client.clone();
        self.running.spawn(async move {
            let outcome = store(&mut client, token, hash, blob).await;
            Ended::Stored(Stored { token, outcome })
        });
    }

    /// The next end of a transfer; safe to drop and call again.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok(ended)) => return ended,
                Some(Err(error)) => tracing::error!(%error, "a transfer panicked"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn fetch(client: &mut Client, hash: Hash) -> Result<Bytes, Status> {
    let mut chunks = client.fetch(v1::FetchRequest { hash: hash.to_bytes() }).await?.into_inner();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.message().await? {
        if bytes.len() as u64 + chunk.data.len() as u64 > MAX_BLOB_BYTES {
            return Err(Status::out_of_range(format!("blob {hash} has over {MAX_BLOB_BYTES} bytes")));
        }
        bytes.extend_from_slice(&chunk.data);
    }
    let bytes = bytes.freeze();
    if Hash::of(&bytes) == hash {
        Ok(bytes)
    } else {
        Err(Status::data_loss(format!("the bytes of blob {hash} do not hash to its name")))
    }
}

async fn store(client: &mut Client, token: Token, hash: Hash, blob: Bytes) -> Result<(), Status> {
    use v1::store_chunk::Kind;
    let header = v1::BlobHeader { hash: hash.to_bytes(), size: blob.len() as u64, token: token.0 };
    let mut rest = blob;
    let data = std::iter::from_fn(move || {
        let next = rest.split_to(rest.len().min(BLOB_CHUNK_BYTES));
        (!next.is_empty()).then_some(Kind::Data(next))
    });
    let chunks = std::iter::once(Kind::Header(header)).chain(data);
    let chunks = chunks.map(|kind| v1::StoreChunk { kind: Some(kind) });
    client.store(futures::stream::iter(chunks)).await.map(drop)
}
