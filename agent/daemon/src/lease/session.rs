//! The session with the collector: opened, kept, and opened anew with a growing, jittered pause.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use wattmill_protocol::{MAX_CONTROL_MESSAGE_BYTES, v1};

/// Messages that wait for the connection: more means that it is dead.
const OUTGOING: usize = 1024;
/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Settlements of one message: some 60 bytes each, far below the limit of a control message.
const SETTLEMENTS: usize = 4096;

/// How the collector is reached.
#[derive(Clone)]
pub(super) struct Link {
    endpoint: Endpoint,
}

impl Link {
    pub(super) fn new(url: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        Ok(Self { endpoint })
    }

    /// A connection of its own, made when it is first used and again when it broke.
    pub(super) fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }
}

/// What happened to a session.
pub(super) enum Event {
    /// A stream is there: say Hello.
    Connected,
    /// The collector said something.
    Message(v1::to_node::Kind),
}

enum State {
    /// Not connected; tried again at the time.
    Waiting(Instant),
    /// A stream was opened; its first answer comes after the Hello.
    Opening { outgoing: mpsc::Sender<v1::FromNode>, opening: Opening },
    /// Messages flow.
    Open { outgoing: mpsc::Sender<v1::FromNode>, incoming: Box<Streaming<v1::ToNode>> },
}

type Opening = tokio::task::JoinHandle<Result<Streaming<v1::ToNode>, Status>>;

/// A session, open or on its way.
pub(super) struct Session {
    link: Link,
    state: State,
    pause: Duration,
    /// The last failure that was logged: a collector that is away is said once, not every few seconds.
    said: Option<String>,
}

impl Session {
    pub(super) fn new(link: Link) -> Self {
        Self { link, state: State::Waiting(Instant::now()), pause: PAUSES.0, said: None }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Sends what there is a stream for; what is lost with it the next Hello makes good.
    pub(super) fn send(&mut self, kind: v1::from_node::Kind) {
        let (State::Open { outgoing, .. } | State::Opening { outgoing, .. }) = &self.state else { return };
        if outgoing.try_send(v1::FromNode { kind: Some(kind) }).is_err() {
            tracing::warn!("the collector does not read: the session is opened anew");
            self.close();
        }
    }

    /// Breaks the session off; it is opened anew.
    pub(super) fn close(&mut self) {
        self.state = State::Waiting(Instant::now() + self.jittered_pause());
    }

    /// Opens the session anew at once.
    pub(super) fn reopen(&mut self) {
        self.state = State::Waiting(Instant::now());
    }

    /// The next thing that happens; safe to drop and call again.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let failed = match &mut self.state {
                State::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.open();
                    return Event::Connected;
                }
                State::Opening { outgoing, opening } => match opening.await {
                    Ok(Ok(incoming)) => {
                        let outgoing = outgoing.clone();
                        self.state = State::Open { outgoing, incoming: Box::new(incoming) };
                        (self.pause, self.said) = (PAUSES.0, None);
                        continue;
                    }
                    Ok(Err(status)) => status.message().to_owned(),
                    Err(error) => error.to_string(),
                },
                State::Open { incoming, .. } => match incoming.message().await {
                    Ok(Some(v1::ToNode { kind: Some(kind) })) => return Event::Message(kind),
                    Ok(Some(v1::ToNode { kind: None })) => continue,
                    Ok(None) => "the collector ended the session".to_owned(),
                    Err(status) => status.message().to_owned(),
                },
            };
            if self.said.as_ref() != Some(&failed) {
                tracing::warn!(reason = failed, "no session with the collector; trying again");
            }
            self.said = Some(failed);
            self.close();
        }
    }

    fn open(&mut self) {
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let mut client = v1::control_client::ControlClient::new(self.link.channel())
            .max_decoding_message_size(MAX_CONTROL_MESSAGE_BYTES);
        let opening = tokio::spawn(async move {
            client.session(ReceiverStream::new(receiver)).await.map(tonic::Response::into_inner)
        });
        self.state = State::Opening { outgoing, opening };
    }

    /// Half to the whole of the pause, which doubles: agents of a cluster do not come back in step.
    fn jittered_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSES.1);
        let random = RandomState::new().hash_one(std::process::id()) as f64 / u64::MAX as f64;
        pause.mul_f64(0.5 + random / 2.0)
    }
}

/// Settlements in messages of a bounded size.
pub(super) fn chunks(settlements: impl Iterator<Item = v1::Settlement>) -> Vec<Vec<v1::Settlement>> {
    let all: Vec<v1::Settlement> = settlements.collect();
    all.chunks(SETTLEMENTS).map(<[v1::Settlement]>::to_vec).collect()
}
