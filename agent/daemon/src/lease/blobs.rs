//! Blobs to and from the collector, on a connection of their own, beside the session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Bytes that were moved.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Of parameters.
    pub(super) fetched: u64,
    /// Of results, by lease.
    pub(super) stored: BTreeMap<Token, u64>,
}

/// Transfers under way. At most one store for each lease in hand and one fetch for each of its
/// parameters, so their number is bounded by the slots.
pub(super) struct Transfers {
    client: Client,
    running: JoinSet<Ended>,
    fetched: Arc<AtomicU64>,
    stored: BTreeMap<Token, Arc<AtomicU64>>,
}

impl Transfers {
    pub(super) fn new(link: &Link) -> Self {
        let (running, fetched) = (JoinSet::new(), Arc::default());
        Self { client: Client::new(link.channel()), running, fetched, stored: BTreeMap::new() }
    }

    /// What was moved since this was last asked.
    pub(super) fn moved(&mut self) -> Moved {
        let take = |bytes: &Arc<AtomicU64>| bytes.swap(0, Ordering::Relaxed);
        let stored = self.stored.iter().map(|(token, bytes)| (*token, take(bytes))).collect();
        Moved { fetched: take(&self.fetched), stored }
    }

    pub(super) fn fetch(&mut self, hash: Hash) {
        let (mut client, moved) = (self.client.clone(), Arc::clone(&self.fetched));
        self.running.spawn(async move {
            let mut pause = FETCH_PAUSE;
            let mut outcome = fetch(&mut client, hash, &moved).await;
            for _ in 1..FETCH_TRIES {
                if !matches!(&outcome, Err(s) if s.code() == tonic::Code::Unavailable) {
                    break;
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
                outcome = fetch(&mut client, hash, &moved).await;
            }
            Ended::Fetched(Fetched { hash, outcome })
        });
    }

    pub(super) fn store(&mut self, token: Token, hash: Hash, blob: Bytes) {
        let mut client = self.client.clone();
        let moved = Arc::clone(self.stored.entry(token).or_default());
        self.running.spawn(async move {
            let outcome = store(&mut client, token, hash, blob, moved).await;
            Ended::Stored(Stored { token, outcome })
        });
    }

    /// The next end of a transfer; safe to drop and call again.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok(ended)) => {
                    if let Ended::Stored(stored) = &ended {
                        self.stored.remove(&stored.token);
                    }
                    return ended;
                }
                Some(Err(error)) => tracing::error!(%error, "a transfer panicked"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn fetch(client: &mut Client, hash: Hash, moved: &AtomicU64) -> Result<Bytes, Status> {
    let mut chunks = client.fetch(v1::FetchRequest { hash: hash.to_bytes() }).await?.into_inner();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.message().await? {
        if bytes.len() as u64 + chunk.data.len() as u64 > MAX_BLOB_BYTES {
            return Err(Status::out_of_range(format!("blob {hash} has over {MAX_BLOB_BYTES} bytes")));
        }
        moved.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
        bytes.extend_from_slice(&chunk.data);
    }
    let bytes = bytes.freeze();
    if Hash::of(&bytes) == hash {
        Ok(bytes)
    } else {
        Err(Status::data_loss(format!("the bytes of blob {hash} do not hash to its name")))
    }
}

async fn store(
    client: &mut Client,
    token: Token,
    hash: Hash,
    blob: Bytes,
    moved: Arc<AtomicU64>,
) -> Result<(), Status> {
    use v1::store_chunk::Kind;
    let header = v1::BlobHeader { hash: hash.to_bytes(), size: blob.len() as u64, token: token.0 };
    let mut rest = blob;
    let data = std::iter::from_fn(move || {
        // Asked for as the connection takes them.
        let next = rest.split_to(rest.len().min(BLOB_CHUNK_BYTES));
        moved.fetch_add(next.len() as u64, Ordering::Relaxed);
        (!next.is_empty()).then_some(Kind::Data(next))
    });
    let chunks = std::iter::once(Kind::Header(header)).chain(data);
    let chunks = chunks.map(|kind| v1::StoreChunk { kind: Some(kind) });
    client.store(futures::stream::iter(chunks)).await.map(drop)
}
