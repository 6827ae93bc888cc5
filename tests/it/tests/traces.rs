//! Traces of leases, as an OTLP receiver gets them from the real programs.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use wattmill_it::{Cluster, Signal, cpus, digits, turn};

/// Attributes that a span has of its lease.
const OF_THE_LEASE: [&str; 3] = ["wattmill.token", "wattmill.job", "wattmill.node.id"];

/// A span, and the attributes of the program that sent it.
struct Received {
    resource: Vec<KeyValue>,
    span: Span,
}

/// A receiver that writes down what it is sent.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Received>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap();
        for of_program in request.into_inner().resource_spans {
            let resource = of_program.resource.unwrap_or_default().attributes;
            let spans = of_program.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.extend(spans.map(|span| Received { resource: resource.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    async fn serve() -> (Self, SocketAddr) {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(TraceServiceServer::new(receiver.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (receiver, address)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|a| a.key == key).and_then(|a| a.value.as_ref()?.value.clone());
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key} is {other:?} in {attributes:?}"),
    }
}

fn traces_to(address: SocketAddr) -> String {
    format!("[traces]\nendpoint = \"http://{address}\"\n")
}

/// A whole small job: each lease is one trace, from the collector through its agent and back, and its parts
/// follow each other in time.
#[tokio::test(flavor = "multi_thread")]
async fn each_lease_is_one_trace_through_both_programs() {
    let _turn = turn();
    let (receiver, address) = Receiver::serve().await;
    let mut cluster = Cluster::start(&traces_to(address)).await;
    for (name, cpu) in ["one", "two"].into_iter().zip(cpus()) {
        cluster.agent(name, &cpu.to_string(), &traces_to(address)).await;
    }
    cluster.ready(2).await;
    let job = digits(cluster.folder()).replace("epochs = 20", "epochs = 1");
    let view = cluster.train(&job).await;
    let nodes: BTreeSet<String> =
        cluster.wait_for("nodes", |v| Some(v.nodes.iter().map(|n| n.id.clone()).collect())).await;
    // The last batches leave when the programs do.
    for name in ["one", "two"] {
        cluster.program(name).signal(Signal::TERM);
        assert_eq!(cluster.program(name).ended().await.code(), Some(0));
    }
    cluster.end_collector(Signal::TERM).await;

    let received = std::mem::take(&mut *receiver.0.lock().unwrap());
    let mut traces: BTreeMap<Vec<u8>, BTreeMap<String, Received>> = BTreeMap::new();
    for one in received {
        let (trace, name) = (one.span.trace_id.clone(), one.span.name.clone());
        let twice = traces.entry(trace).or_default().insert(name.clone(), one);
        assert!(twice.is_none(), "two spans {name} of one trace");
    }
    let mut tokens = BTreeSet::new();
    let mut rounds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for spans in traces.values() {
        let names: Vec<&str> = spans.keys().map(String::as_str).collect();
        assert_eq!(names, ["commit", "fetch", "lease", "report", "train"]);
        let lease = &spans["lease"].span;
        assert!(lease.parent_span_id.is_empty(), "{lease:?}");
        assert_eq!(text(&lease.attributes, "wattmill.outcome"), "committed");
        for (name, Received { resource, span }) in spans {
            let from_agent = ["fetch", "train", "report"].contains(&name.as_str());
            let service = if from_agent { "wattmill-agent" } else { "wattmill-collector" };
            assert_eq!(text(resource, "service.name"), service, "{name}");
            if from_agent {
                let instance = text(resource, "service.instance.id");
                assert_eq!(instance, text(&span.attributes, "wattmill.node.id"), "{name}");
            }
            assert!(name == "lease" || span.parent_span_id == lease.span_id, "{span:?}");
            for key in OF_THE_LEASE {
                assert_eq!(text(&span.attributes, key), text(&lease.attributes, key), "{key} of {name}");
            }
            let status = span.status.clone().unwrap_or_default();
            assert_ne!(status.code(), StatusCode::Error, "{span:?}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        }
        // All clocks are this host's.
        let times = ["fetch", "train", "report"].map(|name| &spans[name].span);
        assert!(lease.start_time_unix_nano <= times[0].start_time_unix_nano, "{lease:?}");
        assert!(times[0].end_time_unix_nano <= times[1].start_time_unix_nano, "{times:?}");
        assert!(times[1].end_time_unix_nano <= times[2].start_time_unix_nano, "{times:?}");
        assert!(spans["commit"].span.end_time_unix_nano <= lease.end_time_unix_nano, "{lease:?}");
        assert_eq!(text(&lease.attributes, "wattmill.job"), view.id);
        assert!(nodes.contains(&text(&lease.attributes, "wattmill.node.id")), "{lease:?}");
        assert!(tokens.insert(text(&lease.attributes, "wattmill.token")), "one trace for each token");
        let shard = text(&lease.attributes, "wattmill.shard");
        let round = text(&lease.attributes, "wattmill.round");
        assert!(rounds.entry(round).or_default().insert(shard), "a shard is committed once: {lease:?}");
    }
    let expected: BTreeSet<String> = (0..view.round).map(|round| round.to_string()).collect();
    assert_eq!(rounds.keys().cloned().collect::<BTreeSet<_>>(), expected, "every round's leases");
    let committed: u64 = view.nodes.iter().map(|node| node.shards).sum();
    assert_eq!(traces.len() as u64, committed, "a trace for each shard that counts");
}

/// A receiver that nobody listens for, and one that takes connections and never answers: the job is trained,
/// the programs end in time, and the log names the key.
#[tokio::test]
async fn a_receiver_that_is_away_holds_nothing_up() {
    let _turn = turn();
    // The kernel accepts its connections; nobody reads them.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mute = (mute.local_addr().unwrap(), mute);
    let mut cluster = Cluster::start(&traces_to(mute.0)).await;
    let cpus = cpus();
    cluster.agent("one", &cpus[0].to_string(), &traces_to(closed)).await;
    cluster.agent("two", &cpus[1].to_string(), &traces_to(mute.0)).await;
    cluster.ready(2).await;
    cluster.train(&digits(cluster.folder())).await;
    cluster.program("one").says("traces cannot be sent and are dropped; see traces.endpoint").await;
    for name in ["one", "two"] {
        let asked = Instant::now();
        cluster.program(name).signal(Signal::TERM);
        assert_eq!(cluster.program(name).ended().await.code(), Some(0));
        let stopped = asked.elapsed();
        assert!(stopped < Duration::from_secs(5), "{name} stopped after {stopped:?}");
        let log = cluster.program(name).log();
        assert!(log.contains("leases handed back") && !log.contains("could not be handed back"), "{log}");
    }
    cluster.program("two").says("the last traces could not be sent").await;
    let asked = Instant::now();
    cluster.end_collector(Signal::TERM).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "the collector stopped after {:?}", asked.elapsed());
}
