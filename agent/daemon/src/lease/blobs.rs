//! Blobs to and from the collector, on a connection of their own, beside the session.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::task::{AbortHandle, JoinSet};
use tonic::Status;
use tonic::transport::Channel;
use wattmill_protocol::{BLOB_CHUNK_BYTES, Hash, MAX_BLOB_BYTES, Token, v1};

use super::session::Link;

/// First and longest pause before a transfer is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Bytes that are hashed where they are: that takes half a millisecond.
const HASHED_AT_ONCE_BYTES: usize = 256 << 10;

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

/// A store under way.
struct Store {
    task: AbortHandle,
    moved: Arc<AtomicU64>,
}

/// Transfers under way: one store for a lease and one fetch for a name at most, so that their number is bounded
/// by the slots. Each is tried until it succeeds or never can; whoever needs it no more gives it up.
pub(super) struct Transfers {
    client: Client,
    running: JoinSet<Ended>,
    fetches: BTreeMap<Hash, AbortHandle>,
    fetched: Arc<AtomicU64>,
    stores: BTreeMap<Token, Store>,
}

impl Transfers {
    pub(super) fn new(link: &Link) -> Self {
        Self {
            client: Client::new(link.channel()),
            running: JoinSet::new(),
            fetches: BTreeMap::new(),
            fetched: Arc::default(),
            stores: BTreeMap::new(),
        }
    }

    /// What was moved since this was last asked.
    pub(super) fn moved(&mut self) -> Moved {
        let take = |bytes: &Arc<AtomicU64>| bytes.swap(0, Ordering::Relaxed);
        let stored = self.stores.iter().map(|(token, store)| (*token, take(&store.moved))).collect();
        Moved { fetched: take(&self.fetched), stored }
    }

    /// Fetches parameters, unless they are on their way.
    pub(super) fn fetch(&mut self, hash: Hash) {
        if self.fetches.contains_key(&hash) {
            return;
        }
        let (client, moved) = (self.client.clone(), Arc::clone(&self.fetched));
        let task = self.running.spawn(async move {
            let outcome = persist(|| fetch(client.clone(), hash, Arc::clone(&moved))).await;
            Ended::Fetched(Fetched { hash, outcome })
        });
        self.fetches.insert(hash, task);
    }

    /// Stores a lease's blob, unless that is under way.
    pub(super) fn store(&mut self, token: Token, hash: Hash, blob: Bytes) {
        if self.stores.contains_key(&token) {
            return;
        }
        let (client, moved) = (self.client.clone(), Arc::<AtomicU64>::default());
        let count = Arc::clone(&moved);
        let task = self.running.spawn(async move {
            let outcome =
                persist(|| store(client.clone(), token, hash, blob.clone(), Arc::clone(&count))).await;
            Ended::Stored(Stored { token, outcome })
        });
        self.stores.insert(token, Store { task, moved });
    }

    /// Nobody waits for these parameters any more.
    pub(super) fn give_up_fetch(&mut self, hash: Hash) {
        if let Some(task) = self.fetches.remove(&hash) {
            task.abort();
        }
    }

    /// This lease's result is not wanted any more.
    pub(super) fn give_up_store(&mut self, token: Token) {
        if let Some(store) = self.stores.remove(&token) {
            store.task.abort();
        }
    }

    /// The next end of a transfer that was not given up; safe to drop and call again.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok(ended)) => {
                    let known = match &ended {
                        Ended::Fetched(fetched) => self.fetches.remove(&fetched.hash).is_some(),
                        Ended::Stored(stored) => self.stores.remove(&stored.token).is_some(),
                    };
                    if known {
                        return ended;
                    }
                }
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => tracing::error!(%error, "a transfer panicked"),
                None => std::future::pending().await,
            }
        }
    }
}

/// Tries until it succeeds, or fails in a way that trying again cannot mend.
async fn persist<T, F: Future<Output = Result<T, Status>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, Status> {
    let mut pause = PAUSES.0;
    loop {
        match attempt().await {
            Err(status) if passes(&status) => {
                if pause == PAUSES.0 {
                    tracing::warn!(reason = status.message(), "a transfer failed; it is tried again");
                }
            }
            outcome => return outcome,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Whether it may pass: a collector that is away or full is one day back or has room.
fn passes(status: &Status) -> bool {
    use tonic::Code;
    !matches!(
        status.code(),
        Code::NotFound
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::DataLoss
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

async fn fetch(mut client: Client, hash: Hash, moved: Arc<AtomicU64>) -> Result<Bytes, Status> {
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
    if hash_of(bytes.clone()).await? == hash {
        Ok(bytes)
    } else {
        Err(Status::data_loss(format!("the bytes of blob {hash} do not hash to its name")))
    }
}

/// The hash of bytes; of many, on a thread of its own: everything else would wait for a gigabyte's second.
async fn hash_of(bytes: Bytes) -> Result<Hash, Status> {
    if bytes.len() <= HASHED_AT_ONCE_BYTES {
        return Ok(Hash::of(&bytes));
    }
    let hash = tokio::task::spawn_blocking(move || Hash::of(&bytes)).await;
    hash.map_err(|_| Status::cancelled("the agent stops"))
}

async fn store(
    mut client: Client,
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;

    use futures::stream::Pending;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Streaming};

    use super::*;

    /// A collector that has room for no blob and no parameters, until it has been asked so often.
    #[derive(Default)]
    struct Reluctant {
        refusals: u32,
        asked: AtomicU32,
        storing: AtomicU32,
        most_storing: Arc<AtomicU32>,
        missing: Mutex<Option<Hash>>,
    }

    impl Reluctant {
        fn refuses(&self, code: tonic::Code) -> Result<(), Status> {
            if self.asked.fetch_add(1, Ordering::Relaxed) < self.refusals {
                return Err(Status::new(code, "not now"));
            }
            Ok(())
        }
    }

    #[tonic::async_trait]
    impl v1::parameters_server::Parameters for Reluctant {
        type FetchStream = Pending<Result<v1::Chunk, Status>>;

        async fn fetch(
            &self,
            request: Request<v1::FetchRequest>,
        ) -> Result<Response<Self::FetchStream>, Status> {
            let hash = Hash::try_from(&request.into_inner().hash[..]).ok();
            if hash == *self.missing.lock().unwrap() {
                return Err(Status::not_found("gone"));
            }
            Err(Status::unavailable("starting"))
        }

        async fn store(
            &self,
            request: Request<Streaming<v1::StoreChunk>>,
        ) -> Result<Response<v1::StoreReply>, Status> {
            let storing = self.storing.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_storing.fetch_max(storing, Ordering::Relaxed);
            let mut chunks = request.into_inner();
            while chunks.message().await?.is_some() {}
            self.storing.fetch_sub(1, Ordering::Relaxed);
            self.refuses(tonic::Code::ResourceExhausted)?;
            Ok(Response::new(v1::StoreReply {}))
        }
    }

    async fn transfers(collector: Reluctant) -> Transfers {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = v1::parameters_server::ParametersServer::new(collector);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Transfers::new(&Link::new(&format!("http://{address}")).unwrap())
    }

    #[tokio::test]
    async fn a_full_collector_is_asked_again_and_never_twice_at_once() {
        let most_storing = Arc::<AtomicU32>::default();
        let collector =
            Reluctant { refusals: 2, most_storing: Arc::clone(&most_storing), ..Reluctant::default() };
        let mut transfers = transfers(collector).await;
        let blob = Bytes::from(vec![7; 3 * BLOB_CHUNK_BYTES]);
        for _ in 0..3 {
            transfers.store(Token(1), Hash::of(&blob), blob.clone());
        }
        let Ended::Stored(stored) = transfers.next().await else { panic!("nothing is fetched") };
        assert!(stored.token == Token(1) && stored.outcome.is_ok(), "{:?}", stored.outcome);
        assert_eq!(most_storing.load(Ordering::Relaxed), 1);
        assert!(transfers.running.is_empty(), "one store for a lease");
    }

    #[tokio::test]
    async fn what_is_gone_fails_and_a_collector_that_is_away_is_waited_for() {
        let [gone, awaited] = [b"gone", b"wait"].map(|bytes| Hash::of(bytes));
        let collector = Reluctant { missing: Mutex::new(Some(gone)), ..Reluctant::default() };
        let mut transfers = transfers(collector).await;
        transfers.fetch(awaited);
        transfers.fetch(gone);
        let Ended::Fetched(fetched) = transfers.next().await else { panic!("nothing is stored") };
        assert_eq!((fetched.hash, fetched.outcome.unwrap_err().code()), (gone, tonic::Code::NotFound));
        assert_eq!(transfers.running.len(), 1, "it goes on");
        transfers.give_up_fetch(awaited);
        transfers.fetch(gone);
        let Ended::Fetched(fetched) = transfers.next().await else { panic!("nothing is stored") };
        assert_eq!(fetched.hash, gone, "what was given up does not end");
    }
}
