use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;

use super::*;
use crate::export::spool::SpoolStats;
use crate::snapshot::tests::sample;

/// A collector that writes down what it is sent.
struct Recorder {
    seen: mpsc::UnboundedSender<(String, u64, u64)>,
    failing: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl MetricsService for Recorder {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        if self.failing.swap(false, Ordering::SeqCst) {
            return Err(Status::unavailable("on purpose"));
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
        self.seen.send((node, position, time)).unwrap();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

struct Bench {
    seen: mpsc::UnboundedReceiver<(String, u64, u64)>,
    failing: Arc<AtomicBool>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    push: Push,
    stats: Arc<SpoolStats>,
    node: NodeId,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stats = Arc::<SpoolStats>::default();
        let spool = SharedSpool::new(Spool::open(folder.path(), 8 << 20, Arc::clone(&stats)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (sender, seen) = mpsc::unbounded_channel();
        let failing = Arc::<AtomicBool>::default();
        let service = MetricsServiceServer::new(Recorder { seen: sender, failing: Arc::clone(&failing) });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (snapshots, receiver) = watch::channel(Arc::new(sample()));
        tokio::spawn(record(receiver, spool.clone()));
        let (push, node) = (Push::new(), NodeId::random());
        tokio::spawn(send(endpoint, node.clone(), spool, push.clone()));
        Self { seen, failing, snapshots, push, stats, node, _folder: folder }
    }

    /// A window closes at that time.
    fn window(&self, unix_nanos: u64) {
        self.snapshots.send_replace(Arc::new(Snapshot { unix_nanos, ..sample() }));
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
    bench.failing.store(true, Ordering::SeqCst);
    bench.window(3);
    assert_eq!(bench.next().await.0, 2, "sent, but not known to be durable");
    assert_eq!(bench.next().await.0, 3);
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
            let pause = backoff(failures, random);
            let most = BACKOFF.saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
            assert!(pause >= most.mul_f64(0.49) && pause <= most, "{failures} {pause:?}");
        }
    }
    assert!(backoff(3, 0) < backoff(3, u64::MAX));
}
