use std::sync::atomic::{AtomicI32, Ordering};

use futures::StreamExt as _;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;

use super::*;
use crate::export::otlp::Encoder;
use crate::export::spool::SpoolStats;
use crate::snapshot::Snapshot;
use crate::snapshot::tests::sample;

/// A collector that writes down what it is sent.
struct Recorder {
    seen: mpsc::Sender<(String, u64, u64)>,
    failing: Arc<AtomicI32>,
}

/// Frames that a test leaves unread.
const UNREAD: usize = 64;

#[tonic::async_trait]
impl MetricsService for Recorder {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let code = Code::from(self.failing.swap(0, Ordering::SeqCst));
        if code != Code::Ok {
            return Err(Status::new(code, "on purpose"));
        }
        let metadata = request.metadata();
        let text = |key: &str| metadata.get(key).unwrap().to_str().unwrap().to_owned();
        let (node, position) = (text(NODE_HEADER), text(POSITION_HEADER).parse().unwrap());
        let metrics = &request.get_ref().resource_metrics[0].scope_metrics[0].metrics;
        let spooled = metrics.iter().find(|m| m.name == "wattmill.agent.spool.frames").unwrap();
        let time = match spooled.data.as_ref().unwrap() {
            opentelemetry_proto::tonic::metrics::v1::metric::Data::Gauge(g) => {
                g.data_points[0].time_unix_nano
            }
            other => panic!("{other:?}"),
        };
        self.seen.send((node, position, time)).await.unwrap();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

struct Bench {
    seen: mpsc::Receiver<(String, u64, u64)>,
    failing: Arc<AtomicI32>,
    spool: SharedSpool,
    push: Push,
    connected: Arc<Notify>,
    stats: Arc<SpoolStats>,
    node: NodeId,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        Self::with(PAUSES, false).await
    }

    /// A bench whose sender makes such pauses, and whose collector refuses the first frame or does not.
    async fn with(pauses: Pauses, refuses: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stats = Arc::<SpoolStats>::default();
        let push = Push::new();
        let spool = Spool::open(folder.path(), 8 << 20, Arc::clone(&stats));
        let spool = SharedSpool::new(spool, push.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (sender, seen) = mpsc::channel(UNREAD);
        let failing = Arc::new(AtomicI32::new(if refuses { Code::Unavailable as i32 } else { 0 }));
        let service = MetricsServiceServer::new(Recorder { seen: sender, failing: Arc::clone(&failing) });
        let server = tonic::transport::Server::builder().add_service(service);
        let connected = Arc::<Notify>::default();
        let told = Arc::clone(&connected);
        let incoming = TcpListenerStream::new(listener).inspect(move |_| told.notify_one());
        tokio::spawn(server.serve_with_incoming(incoming));
        let node = NodeId::random();
        tokio::spawn(send_with(endpoint, node.clone(), spool.clone(), pauses));
        Self { seen, failing, spool, push, connected, stats, node, _folder: folder }
    }

    /// A window closes at that time.
    fn window(&self, unix_nanos: u64) {
        self.spool.record(Encoder::default().frame(&Snapshot { unix_nanos, ..sample() }));
    }

    async fn next(&mut self) -> (u64, u64) {
        let (node, position, time) = self.seen.recv().await.unwrap();
        assert_eq!(node, self.node.as_str());
        (position, time)
    }
}

#[tokio::test]
async fn frames_are_sent_once_and_again_only_after_a_new_session() {
    let mut bench = Bench::start().await;
    for i in 1..=3 {
        bench.window(100 * i);
        assert_eq!(bench.next().await, (i, 100 * i));
    }
    assert_eq!(bench.stats.figures().frames, 3, "nothing is durable yet");
    bench.push.durable(2);
    bench.window(400);
    assert_eq!(bench.next().await, (4, 400), "durable frames bring nothing back");
    // Its session was lost after frame 2 had become durable; the times are the frames' own.
    bench.push.session_opened(2);
    assert_eq!(bench.next().await, (3, 300));
    assert_eq!(bench.next().await, (4, 400));
    assert_eq!(bench.stats.figures().frames, 2);
}

#[tokio::test]
async fn after_an_error_sending_resumes_behind_the_last_durable_frame() {
    let mut bench = Bench::start().await;
    for i in 1..=2 {
        bench.window(i);
        assert_eq!(bench.next().await.0, i);
    }
    bench.push.durable(1);
    bench.failing.store(Code::Unavailable as i32, Ordering::SeqCst);
    bench.window(3);
    assert_eq!(bench.next().await.0, 2, "sent, but not known to be durable");
    assert_eq!(bench.next().await.0, 3);
}

/// What follows it must not wait for a frame that is never taken: as one of another node's spool, or one too long.
#[tokio::test]
async fn a_frame_that_is_refused_for_good_is_skipped_and_counted() {
    let mut bench = Bench::start().await;
    let codes = [Code::InvalidArgument, Code::PermissionDenied, Code::OutOfRange, Code::Internal];
    for (code, skipped) in codes.into_iter().zip(1..) {
        bench.failing.store(code as i32, Ordering::SeqCst);
        let position = 2 * skipped - 1;
        bench.window(position);
        while bench.failing.load(Ordering::SeqCst) != 0 {
            tokio::task::yield_now().await;
        }
        bench.window(position + 1);
        assert_eq!(bench.next().await.0, position + 1, "{code:?}");
        assert_eq!(bench.stats.figures().dropped, skipped, "{code:?}");
    }
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Unauthenticated, Code::Unimplemented] {
        assert!(!is_of_the_frame(&Status::new(code, "")), "{code:?}");
    }
    let mut broken = Status::unknown("transport error");
    broken.set_source(Arc::new(std::io::Error::other("broken pipe")));
    assert!(!is_of_the_frame(&broken), "no collector said so");
}

/// With pauses of an hour, a frame that was refused comes again within a test's patience only because a
/// session opened: once the pause has begun, or before that, while the connection failed.
#[tokio::test]
async fn a_session_that_opens_ends_the_pause() {
    let hour = Duration::from_secs(3_600);
    for opened_first in [false, true] {
        let mut bench = Bench::with(Pauses { first: hour, longest: hour }, true).await;
        if opened_first {
            // Heard before the frame is there to be refused, by a sender that waits for one.
            bench.connected.notified().await;
            bench.push.session_opened(0);
        }
        bench.window(1);
        if !opened_first {
            while bench.failing.load(Ordering::SeqCst) != 0 {
                tokio::task::yield_now().await;
            }
            bench.push.session_opened(0);
        }
        assert_eq!(bench.next().await, (1, 1), "opened first: {opened_first}");
    }
}

#[test]
fn a_position_that_cannot_be_is_not_believed() {
    let push = Push::new();
    push.durable(u64::MAX);
    push.session_opened(MAX_POSITION + 1);
    assert_eq!(*push.durable.borrow(), Durable { position: 0, sessions: 1 });
    push.durable(MAX_POSITION);
    assert_eq!(push.durable.borrow().position, MAX_POSITION);
}

#[test]
fn durable_positions_never_go_back() {
    let push = Push::new();
    push.durable(5);
    push.durable(3);
    push.session_opened(4);
    assert_eq!(*push.durable.borrow(), Durable { position: 5, sessions: 1 });
}

#[test]
fn pauses_double_up_to_a_bound_and_differ() {
    for random in [0, u64::MAX / 2, u64::MAX] {
        for failures in 0..40 {
            let pause = PAUSES.after(failures, random);
            let most = PAUSES.first.saturating_mul(1 << failures.min(16)).min(PAUSES.longest);
            assert!(pause >= most.mul_f64(0.49) && pause <= most, "{failures} {pause:?}");
        }
    }
    assert!(PAUSES.after(3, 0) < PAUSES.after(3, u64::MAX));
}
