//! Sends the spool to the collector, oldest frame first.
//!
//! Invariant: a frame is deleted only when the collector said that it is durable there. Within one
//! connection each is sent once; after a new one, or a new session, sending resumes behind the last
//! durable one, so that a collector that crashed gets again what it had not kept. Frames are sent as
//! they were recorded, with their own times.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use tokio::sync::watch;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use wattmill_protocol::NodeId;

use super::spool::{Frame, MAX_POSITION, Spool};

/// The method that takes frames.
const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// Metadata that names the node.
pub const NODE_HEADER: &str = "wattmill-node";
/// Metadata that tells a frame's position.
pub const POSITION_HEADER: &str = "wattmill-spool-position";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between two connections.
const PAUSES: Pauses = Pauses { first: Duration::from_millis(250), longest: Duration::from_secs(5) };

/// What the collector said of the spool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Durable {
    position: u64,
    sessions: u64,
}

/// A handle for whoever hears the collector's words; clones are the same.
#[derive(Clone, Debug)]
pub struct Push {
    durable: Arc<watch::Sender<Durable>>,
}

/// The spool, shared by the thread that records and the task that sends.
#[derive(Clone)]
pub struct SharedSpool {
    spool: Arc<Mutex<Spool>>,
    /// The newest frame: whoever has sent those before it need not ask the disk.
    newest: Arc<watch::Sender<Option<Frame>>>,
    /// What is durable elsewhere: the spool hears of it with the next frame, on the thread that may wait for a disk.
    push: Push,
}

impl Push {
    /// A handle that nobody has told anything yet.
    pub fn new() -> Self {
        Self { durable: Arc::new(watch::Sender::new(Durable::default())) }
    }

    /// Frames up to `position` survive a crash of the collector: they may be deleted here.
    pub fn durable(&self, position: u64) {
        let position = believed(position);
        self.durable.send_if_modified(|durable| {
            let newer = position > durable.position;
            durable.position = durable.position.max(position);
            newer
        });
    }

    /// A session was opened by a collector that has kept frames up to `position`: what was sent after it
    /// may be lost, and is sent again.
    pub fn session_opened(&self, position: u64) {
        let position = believed(position);
        self.durable.send_modify(|durable| {
            durable.position = durable.position.max(position);
            durable.sessions += 1;
        });
    }
}

impl Default for Push {
    fn default() -> Self {
        Self::new()
    }
}

impl SharedSpool {
    /// Shares a spool, whose frames may go when `push` hears that they are durable.
    pub fn new(spool: Spool, push: Push) -> Self {
        Self { spool: Arc::new(Mutex::new(spool)), newest: Arc::new(watch::Sender::new(None)), push }
    }

    /// Records a frame. It touches the disk.
    pub fn record(&self, frame: Bytes) {
        let mut spool = self.lock();
        spool.acknowledge(self.push.durable.borrow().position);
        spool.append(frame);
        self.newest.send_replace(spool.newest().cloned());
    }

    fn lock(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the spool, off the async threads: it touches the disk.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> Option<T> {
        let shared = self.clone();
        let task = move || work(&mut shared.lock());
        // It fails only when the runtime shuts down.
        tokio::task::spawn_blocking(task).await.ok()
    }
}

/// A position that no spool can have given says nothing.
fn believed(position: u64) -> u64 {
    if position <= MAX_POSITION {
        return position;
    }
    tracing::error!(position, "the collector names an impossible spool position; ignored");
    0
}

/// Sends frames to `collector` as long as it is polled.
pub async fn send(collector: Endpoint, node: NodeId, spool: SharedSpool) {
    send_with(collector, node, spool, PAUSES).await;
}

async fn send_with(collector: Endpoint, node: NodeId, spool: SharedSpool, pauses: Pauses) {
    let endpoint = collector
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    let mut sender = Sender {
        node,
        durable: spool.push.durable.subscribe(),
        spool,
        failures: 0,
        last_message: None,
        refused: 0,
    };
    loop {
        let sessions = sender.durable.borrow().sessions;
        let error = sender.connection(&endpoint).await;
        sender.note(&error);
        let pause = pauses.after(sender.failures, RandomState::new().hash_one(0u8));
        sender.failures = sender.failures.saturating_add(1);
        // The control session tries by itself: once it is open the collector is back, and no pause is due.
        // One that was opened while this connection was on its way counts too.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = opened_since(&mut sender.durable, sessions) => sender.failures = 0,
        }
    }
}

/// Waits until more sessions were opened than so many.
async fn opened_since(durable: &mut watch::Receiver<Durable>, sessions: u64) {
    if durable.wait_for(|durable| durable.sessions > sessions).await.is_err() {
        // Nobody is left who could open one.
        std::future::pending::<()>().await;
    }
}

/// The first and the longest pause between two connections.
#[derive(Clone, Copy, Debug)]
struct Pauses {
    first: Duration,
    longest: Duration,
}

impl Pauses {
    /// The pause before the next connection: doubles, and is drawn from its upper half, so that nodes that
    /// lost one collector do not come back all at once.
    fn after(self, failures: u32, random: u64) -> Duration {
        let most = self.first.saturating_mul(1 << failures.min(16)).min(self.longest);
        let share = (random >> 11) as f64 / (1u64 << 53) as f64;
        most.mul_f64(0.5 + share / 2.0)
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("cannot connect to the collector")]
    Connect(#[source] tonic::transport::Error),
    #[error("the collector refused telemetry: {}", .0.message())]
    Refused(Status),
    #[error("the agent is stopping")]
    Stopping,
}

struct Sender {
    node: NodeId,
    spool: SharedSpool,
    durable: watch::Receiver<Durable>,
    failures: u32,
    last_message: Option<String>,
    /// The newest frame that was refused.
    refused: u64,
}

impl Sender {
    /// One connection, from its first frame to its end.
    async fn connection(&mut self, endpoint: &Endpoint) -> PushError {
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return PushError::Connect(error),
        };
        let mut client = Grpc::new(channel);
        let mut appended = self.spool.newest.subscribe();
        let mut known = *self.durable.borrow_and_update();
        let mut next = known.position + 1;
        loop {
            let durable = *self.durable.borrow_and_update();
            if durable.sessions != known.sessions {
                next = durable.position + 1;
            }
            known = durable;
            let newest = appended.borrow_and_update().clone();
            match self.frame(next, newest).await {
                Some(Some(frame)) => {
                    if let Err(status) = self.send_frame(&mut client, &frame).await {
                        return PushError::Refused(status);
                    }
                    next = frame.position + 1;
                }
                Some(None) => {
                    tokio::select! {
                        _ = appended.changed() => {}
                        _ = self.durable.changed() => {}
                    }
                }
                None => return PushError::Stopping,
            }
        }
    }

    /// The oldest frame at `next` or after it, if there is one; `None` when the runtime shuts down.
    async fn frame(&self, next: u64, newest: Option<Frame>) -> Option<Option<Frame>> {
        match newest {
            Some(newest) if newest.position <= next => Some(Some(newest).filter(|n| n.position == next)),
            _ => self.spool.with(move |spool| spool.read_from(next)).await,
        }
    }

    async fn send_frame(&mut self, client: &mut Grpc<Channel>, frame: &Frame) -> Result<(), Status> {
        let mut request = Request::new(frame.payload.clone());
        request.set_timeout(SEND_TIMEOUT);
        let metadata = request.metadata_mut();
        let node = self.node.as_str().parse().map_err(|_| Status::internal("a node identity is ASCII"))?;
        metadata.insert(NODE_HEADER, node);
        metadata.insert(POSITION_HEADER, frame.position.into());
        let sent = async {
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            client.unary(request, PathAndQuery::from_static(EXPORT), RawCodec).await
        };
        let answer = tokio::time::timeout(SEND_TIMEOUT, sent).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        match answer {
            Ok(answer) => {
                self.accepted(frame, &answer.into_inner());
                Ok(())
            }
            Err(status) if is_of_the_frame(&status) => {
                self.skip(frame, &status).await;
                Ok(())
            }
            Err(status) => Err(status),
        }
    }

    /// Goes on behind a frame that is refused; it counts as dropped, once.
    async fn skip(&mut self, frame: &Frame, status: &Status) {
        tracing::error!(
            position = frame.position,
            code = ?status.code(),
            error = status.message(),
            "the collector refused a telemetry frame; skipped"
        );
        if frame.position > self.refused {
            self.refused = frame.position;
            // It fails only when the runtime shuts down.
            let _ = self.spool.with(Spool::refused).await;
        }
    }

    fn accepted(&mut self, frame: &Frame, answer: &ExportMetricsServiceResponse) {
        if std::mem::take(&mut self.failures) > 0 || self.last_message.take().is_some() {
            tracing::info!(position = frame.position, "telemetry flows");
        }
        if let Some(partial) = answer.partial_success.as_ref().filter(|p| p.rejected_data_points > 0) {
            tracing::warn!(
                position = frame.position,
                rejected = partial.rejected_data_points,
                error = partial.error_message,
                "the collector refused some data points"
            );
        }
    }

    /// Says why a connection ended, once per change.
    fn note(&mut self, error: &PushError) {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            // Some of tonic's and hyper's layers repeat the one below.
            let cause_text = cause.to_string();
            if !message.ends_with(&cause_text) {
                message.push_str(": ");
                message.push_str(&cause_text);
            }
            source = cause.source();
        }
        if self.last_message.as_ref() != Some(&message) {
            tracing::warn!(error = message, "telemetry waits in the spool");
            self.last_message = Some(message);
        }
    }
}

/// Whether the collector refuses the frame itself, so that it would again, for ever, and those behind it would wait:
/// with the codes that OTLP does not let a sender retry on, and with the one that says that it is too long. Who is
/// not known there, or finds no such service, is refused whatever the frame is: that may be mended.
fn is_of_the_frame(status: &Status) -> bool {
    // A status that was made here, of a connection that broke, has a cause.
    std::error::Error::source(status).is_none()
        && matches!(
            status.code(),
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::OutOfRange
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::Internal
                | Code::Unknown
        )
}

/// Sends frames as the bytes that they are.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = ExportMetricsServiceResponse;
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
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(frame);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ExportMetricsServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let decoded = ExportMetricsServiceResponse::decode(bytes);
        decoded.map(Some).map_err(|error| Status::internal(format!("the answer is not OTLP: {error}")))
    }
}

#[cfg(test)]
mod tests;
