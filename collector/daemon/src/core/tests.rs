//! The core without its loop: commands go in by hand, and its picture comes out.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use wattmill_protocol::exposition::text;
use wattmill_protocol::{Hash, Source};
use wattmill_work::{Failure, Prepared, Reduction, Settlement, ShardResult};

use super::*;
use crate::state::{GpuRollup, NodeRollup};

const NODE: &str = "00000000-0000-4000-8000-000000000001";
const JOB: &str = r#"
name = "small"
[model]
layers = [{ units = 2, activation = "softmax" }]
[data]
uri = "file:///data.csv"
features = 1
classes = 2
[training]
epochs = 2
shard_size = 4
shards_per_round = 2
optimizer = { name = "sgd", learning_rate = 0.1 }
"#;

struct Bench {
    core: Core,
    handle: Handle,
    rollups: watch::Sender<Arc<Rollup>>,
    /// What the node is told.
    told: Option<mpsc::Receiver<Result<v1::ToNode, tonic::Status>>>,
    folder: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("collector.db")).await.unwrap();
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs"), 1 << 20).unwrap());
        let (rollups, receiver) = watch::channel(Arc::new(Rollup::default()));
        let settings = wattmill_work::Settings { grace_ms: 0, ..Default::default() };
        let telemetry = Arc::new(Telemetry::default());
        let recovered =
            Core::recover(store, blobs, telemetry, receiver, Vec::new(), settings, Traces::default()).await;
        let (core, handle) = recovered.unwrap();
        Self { core, handle, rollups, told: None, folder }
    }

    fn submit(&mut self) -> JobId {
        let spec = Arc::new(wattmill_protocol::job::Job::from_toml(JOB).unwrap());
        self.core.submit(spec, String::new())
    }

    /// The node comes, and takes so many leases at once.
    fn connect(&mut self, numerics: &str, slots: u32) {
        let (sender, told) = mpsc::channel(64);
        self.told = Some(told);
        self.open(numerics, slots, sender);
    }

    fn open(&mut self, numerics: &str, slots: u32, sender: command::ToNode) {
        self.say_hello(hello(numerics, slots), sender).unwrap();
    }

    fn say_hello(&mut self, hello: v1::Hello, sender: command::ToNode) -> Result<(NodeId, u64), OpenRefused> {
        let (reply, mut answer) = oneshot::channel();
        self.core.take(Command::Open { hello: Box::new(hello), sender, reply });
        answer.try_recv().unwrap()
    }

    /// What the node was told since the last time.
    fn heard(&mut self) -> Vec<v1::to_node::Kind> {
        let told = self.told.as_mut().unwrap();
        std::iter::from_fn(|| told.try_recv().ok()).filter_map(|message| message.unwrap().kind).collect()
    }

    /// Gives what can be given; returns the tokens.
    fn grant(&mut self) -> Vec<(u32, Token)> {
        self.core.replan();
        self.core.grant();
        self.core.perform();
        let told = self.told.as_mut().unwrap();
        let mut leases = Vec::new();
        while let Ok(Ok(message)) = told.try_recv() {
            if let Some(v1::to_node::Kind::Lease(lease)) = message.kind {
                leases.push((lease.shard, Token(lease.token)));
            }
        }
        leases
    }

    fn report(
        &mut self,
        job: &JobId,
        (shard, token): (u32, Token),
        result: Result<ShardResult, Failure>,
        seconds: f64,
    ) {
        let round = self.core.work.round(job).unwrap().number;
        let report = Report { token, job: job.clone(), round, shard, result, useful_flops: 1 };
        let blob = match &report.result {
            Ok(
                ShardResult::Prepared { parameters: blob, .. } | ShardResult::Gradient { gradient: blob, .. },
            ) => {
                // Results whose blob the test did not store are not looked at.
                Some(*blob).filter(|blob| self.core.blobs.has(*blob))
            }
            _ => None,
        };
        let shard = Shard { blob, samples: 1, seconds };
        self.core.take(Command::Report { node: NODE.parse().unwrap(), report: Box::new(report), shard });
    }

    /// The job's data are known: ten rows.
    fn prepare(&mut self, job: &JobId) {
        let leases = self.grant();
        let prepared = Prepared { training_rows: 10, held_out_rows: 0, data_hash: Hash::of(b"data") };
        let result = ShardResult::Prepared { prepared, parameters: Hash::of(b"first") };
        self.report(job, leases[0], Ok(result), 3.0);
        self.core.pending_effects.clear();
        let reduction = Reduction { parameters: Hash::of(b"first"), optimizer: None };
        self.core.apply(Event::Reduced { job: job.clone(), round: 0, reduction: Ok(reduction) });
    }

    /// Takes the next command, and carries out what follows from it.
    async fn step(&mut self) {
        let command = self.core.commands.recv().await.unwrap();
        self.core.take(command);
        self.core.pending_writes.clear();
        self.core.perform();
    }

    /// A lease's blob arrives.
    fn stage(&self, bytes: &[u8], (_, token): (u32, Token)) -> Hash {
        let hash = Hash::of(bytes);
        self.core.blobs.stage(hash, bytes.to_vec().into(), token).unwrap();
        hash
    }

    fn reason(&self) -> String {
        view::build(&self.core).cluster.jobs[0].reason.clone()
    }

    fn page(&self) -> String {
        text(&view::build(&self.core).points)
    }
}

/// A GPU that others use gets no lease, and one of two that is free gets its own.
#[tokio::test]
async fn gpus_in_use_by_others_are_left_alone() {
    let mut bench = Bench::new().await;
    bench.submit();
    bench.connect("n", 4);
    let gpu = |uuid: &str, foreign_processes, trains| GpuRollup {
        uuid: uuid.into(),
        up: true,
        power_watts: None,
        energy_joules: None,
        utilization_ratio: None,
        foreign_processes,
        trains,
    };
    let node = |gpus: Vec<GpuRollup>| NodeRollup {
        id: NODE.parse().unwrap(),
        name: "node".into(),
        machine_id: "host".into(),
        host_fraction: 1.0,
        retired: false,
        fresh: true,
        age_seconds: Some(0.0),
        power_watts: None,
        energy: BTreeMap::new(),
        useful_flops: 0.0,
        peak_flops: None,
        gpus,
        host_excluded: false,
        foreign_gpus: Vec::new(),
    };
    let tell = |bench: &Bench, gpus| {
        bench.rollups.send_replace(Arc::new(Rollup { nodes: vec![node(gpus)], ..Default::default() }))
    };
    tell(&bench, vec![gpu("a", Some(2), true), gpu("b", Some(0), false)]);
    assert_eq!(bench.grant(), [], "it does not train on the other one");
    let nodes = view::build(&bench.core).cluster.nodes;
    assert_eq!(nodes[0].excluded, "its GPU a is used by 2 other programs");
    let shown: Vec<_> = nodes[0].gpus.iter().map(|gpu| gpu.foreign_processes).collect();
    assert_eq!(shown, [Some(2), Some(0)]);
    tell(&bench, vec![gpu("a", Some(2), true), gpu("b", None, true)]);
    assert_eq!(bench.grant().len(), 1);
}

/// P counts what is pending or leased, T is of reported shards, and D is of the data.
#[tokio::test]
async fn the_literal_formulas_get_what_they_define() {
    let mut bench = Bench::new().await;
    let mut rollup = Rollup::default();
    (rollup.storage.hosts, rollup.storage.size_bytes) = (2, 1000.0);
    bench.rollups.send_replace(Arc::new(rollup));
    let job = bench.submit();
    bench.connect("n", 4);
    bench.prepare(&job);
    let leases = bench.grant();
    assert_eq!(leases.len(), 2, "rounds have two shards of four");
    let gradient = ShardResult::Gradient { gradient: Hash::of(b"g"), loss_sum: 1.0, correct: 1, samples: 4 };
    bench.report(&job, leases[0], Ok(gradient), 5.0);
    let inputs = literal::inputs(&bench.core);
    assert_eq!((inputs.open_shards, inputs.nodes), (1, 1), "one is reported, one is leased");
    assert_eq!(inputs.seconds_per_shard, Some(4.0), "of the preparing shard's 3 s and the other's 5 s");
    assert_eq!(inputs.data_shards, 3, "ten rows in fours");
    // Ten rows of a feature and a label, in three shards.
    assert_eq!(inputs.bytes_per_shard, Some(80.0 / 3.0));
    let page = bench.page();
    assert!(page.contains("wattmill_cluster_seed_eta_literal 4\n"), "{page}");
    // D·s / S = 80 / 500.
    assert!(page.contains("wattmill_cluster_seed_sigma_literal 0.16\n"), "{page}");
    bench.core.apply(Event::Cancelled { job });
    assert_eq!((literal::inputs(&bench.core).data_shards, literal::inputs(&bench.core).open_shards), (0, 0));
}

/// A node deletes what a Welcome says is settled, and a user believes a report: both only say what is durable.
#[tokio::test]
async fn nothing_is_said_before_it_is_durable() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    bench.connect("n", 1);
    let (_, token) = bench.grant()[0];
    let energy = Energy::of(Source::Counter, 5);
    let settlement = Settlement { sequence: 1, token, job: job.clone(), energy, unrecorded: false };
    let node: NodeId = NODE.parse().unwrap();
    bench.core.apply(Event::Settled { node, settlements: vec![settlement] });
    bench.connect("n", 1);
    let (reply, mut report) = oneshot::channel();
    bench.core.take(Command::EnergyReport { job, reply });
    assert_eq!(bench.heard(), []);
    assert!(report.try_recv().is_err(), "nor is the report out");
    bench.core.commit(&CancellationToken::new()).await.unwrap();
    bench.core.perform();
    bench.core.sessions.answer();
    let welcomed = |kind: &v1::to_node::Kind| matches!(kind, v1::to_node::Kind::Welcome(w) if w.settled == 1);
    assert!(bench.heard().iter().any(welcomed));
    assert!(report.try_recv().unwrap().is_some());
}

fn hello(numerics: &str, slots: u32) -> v1::Hello {
    v1::Hello {
        protocol: wattmill_protocol::PROTOCOL_VERSION,
        node: NODE.to_owned(),
        name: "one".to_owned(),
        machine_id: "host".to_owned(),
        host_fraction_ppm: 1_000_000,
        numerics: numerics.to_owned(),
        slots,
        ..Default::default()
    }
}

/// What a node says of itself is bounded before it is kept.
#[tokio::test]
async fn a_hello_that_cannot_be_is_refused() {
    let mut bench = Bench::new().await;
    let whole = hello("n", 1);
    let held = v1::HeldLease { token: 1, job: "j".to_owned(), round: 1, shard: 0 };
    let refused = [
        v1::Hello { cpus: (0..8193).collect(), ..whole.clone() },
        v1::Hello { host_fraction_ppm: 1_000_001, ..whole.clone() },
        v1::Hello { slots: 257, ..whole.clone() },
        v1::Hello { held: vec![held.clone(); 16_385], ..whole.clone() },
    ];
    for hello in refused {
        let (sender, _told) = mpsc::channel(8);
        let refused = bench.say_hello(hello, sender).unwrap_err();
        assert!(matches!(refused, OpenRefused::Malformed(_)), "{refused}");
    }
    let (sender, _told) = mpsc::channel(8);
    let whole_round = v1::Hello { held: vec![held; 4096], cpus: (0..8192).collect(), ..whole };
    assert!(bench.say_hello(whole_round, sender).is_ok(), "results of a whole round may be kept");
}

/// Rates are learned from what counts alone.
#[tokio::test]
async fn a_report_that_is_not_taken_teaches_nothing() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    bench.connect("n", 2);
    bench.prepare(&job);
    let lease = bench.grant()[0];
    let gradient =
        |samples| ShardResult::Gradient { gradient: Hash::of(b"g"), loss_sum: 1.0, correct: 1, samples };
    let node: NodeId = NODE.parse().unwrap();
    let rate = |bench: &Bench| bench.core.profiles.rate(&job, &node);
    let before = rate(&bench);
    bench.report(&job, (lease.0, Token(lease.1.0 + 2)), Ok(gradient(4)), 1e-9);
    assert_eq!(rate(&bench), before, "nobody has that lease");
    bench.report(&job, lease, Ok(gradient(5)), 1e-9);
    assert_eq!(rate(&bench), before, "the shard has four samples");
    let lease = bench.grant()[0];
    bench.report(&job, lease, Ok(gradient(4)), 0.5);
    assert_ne!(rate(&bench), before);
}

/// A job's page survives joules that cannot be.
#[tokio::test]
async fn unconfirmed_joules_do_not_overflow() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    bench.connect("n", 2);
    bench.prepare(&job);
    let node: NodeId = NODE.parse().unwrap();
    for (_, token) in bench.grant() {
        let energy = Energy::of(Source::Counter, u64::MAX);
        let renewal = wattmill_work::Renewal { token, progress: 1, energy, power_watts: 1.0 };
        bench.core.apply(Event::Renewed { node: node.clone(), renewals: vec![renewal] });
        bench.core.apply(Event::HandedBack { node: node.clone(), token });
    }
    assert_eq!(view::build(&bench.core).cluster.jobs[0].unconfirmed_microjoules, u64::MAX);
}

/// The model's first parameters: two units with a weight and a bias each.
fn first_parameters() -> Vec<u8> {
    let header = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat()
}

/// One bad result must not end what a week has trained.
#[tokio::test]
async fn a_blob_of_the_wrong_size_costs_one_attempt() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    bench.connect("n", 2);
    let prepared = Prepared { training_rows: 10, held_out_rows: 0, data_hash: Hash::of(b"data") };
    let lease = bench.grant()[0];
    let parameters = bench.stage(b"no safetensors", lease);
    bench.report(&job, lease, Ok(ShardResult::Prepared { prepared, parameters }), 1.0);
    bench.prepare(&job);
    let lease = bench.grant()[0];
    let gradient = bench.stage(&[0; 15], lease);
    bench.report(
        &job,
        lease,
        Ok(ShardResult::Gradient { gradient, loss_sum: 1.0, correct: 1, samples: 4 }),
        1.0,
    );
    let shard = &bench.core.work.round(&job).unwrap().shards[lease.0 as usize];
    assert_eq!((shard.failures, &shard.state), (1, &ShardState::Pending));
    let words = "the gradient has 15 bytes, the job's model asks for 16";
    assert_eq!(shard.error.as_deref(), Some(words));
}

/// The disk was full for a while: training goes on, and says meanwhile why it does not.
#[tokio::test]
async fn a_round_that_the_disk_refuses_is_written_later() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    bench.connect("n", 1);
    let lease = bench.grant()[0];
    let parameters = bench.stage(&first_parameters(), lease);
    let prepared = Prepared { training_rows: 10, held_out_rows: 0, data_hash: Hash::of(b"data") };
    bench.report(&job, lease, Ok(ShardResult::Prepared { prepared, parameters }), 1.0);
    let blobs = bench.folder.path().join("blobs");
    std::fs::remove_dir(&blobs).unwrap();
    bench.core.reduce_retry = Duration::ZERO;
    bench.core.perform();
    // Reduced, then refused by the disk.
    bench.step().await;
    bench.step().await;
    assert!(bench.reason().starts_with("waits for the collector's disk: "), "{}", bench.reason());
    std::fs::create_dir(&blobs).unwrap();
    // Tried again, and written.
    bench.step().await;
    bench.step().await;
    assert_eq!((bench.core.work.round(&job).unwrap().number, bench.reason()), (1, String::new()));
    assert!(blobs.join(parameters.to_string()).exists());
}

#[tokio::test]
async fn a_reduction_that_panics_ends_its_job_with_what_it_said() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    bench.core.work_aside((job.clone(), 0), |_| panic!("no wonder"));
    bench.step().await;
    let record = bench.core.work.job(&job).unwrap();
    let words = "the reduction panicked, which is a bug: no wonder";
    assert_eq!((record.phase, record.reason.as_deref()), (wattmill_work::Phase::Failed, Some(words)));
}

/// While the store takes nothing that is said and counted, and nothing is shown that is not durable.
#[tokio::test]
async fn a_store_that_refuses_is_shown() {
    let mut bench = Bench::new().await;
    bench.core.publish();
    let store = bench.core.store.share();
    store.refuse(true).await;
    bench.submit();
    let (cancelled, mut views) = (CancellationToken::new(), bench.handle.views.clone());
    views.borrow_and_update();
    let watch = async {
        views.changed().await.unwrap();
        let view = Arc::clone(&views.borrow_and_update());
        let reason = view.store_refusal.as_deref().unwrap();
        assert!(reason.contains("readonly"), "{reason}");
        assert!(text(&view.points).contains("wattmill_collector_store_errors_total 1\n"));
        assert!(view.cluster.jobs.is_empty(), "the job is not durable");
        store.refuse(false).await;
        views.changed().await.unwrap();
        let view = Arc::clone(&views.borrow());
        assert_eq!((&view.store_refusal, view.cluster.jobs.len()), (&None, 1));
    };
    let (committed, ()) = tokio::join!(bench.core.commit(&cancelled), watch);
    committed.unwrap();
}

/// What can never be stored is not tried for ever: the next start recovers from what is.
#[tokio::test]
async fn what_the_store_can_never_take_ends_the_core() {
    let mut bench = Bench::new().await;
    let round = wattmill_work::RoundRecord {
        job: "small-1".parse().unwrap(),
        round: 0,
        parameters: Hash::of(b"p"),
        optimizer: None,
        loss: None,
        accuracy: None,
        shards: Vec::new(),
        unix_ms: 0,
    };
    bench.core.pending_writes = vec![Write::Round(Box::new(round)); 2];
    let error = bench.core.commit(&CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    assert!(exit::describe(&error).contains("UNIQUE"), "{}", exit::describe(&error));
}

/// A job that waits says why, and what to do.
#[tokio::test]
async fn a_job_that_waits_says_why() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    assert!(bench.reason().starts_with("waits for a node: none is connected"), "{}", bench.reason());
    bench.connect("rare", 1);
    bench.prepare(&job);
    assert_eq!(bench.reason(), "", "it only has to be given out");
    let lease = bench.grant()[0];
    assert_eq!(bench.reason(), "", "it runs");
    let failure = || Err(Failure { bad_input: false, message: "no memory".to_owned() });
    bench.report(&job, lease, failure(), 1.0);
    for _ in 1..3 {
        let lease = bench.grant()[0];
        bench.report(&job, lease, failure(), 1.0);
    }
    let words = "shard 0 of round 1 is quarantined after 3 failures: no memory; the round waits for it: mend the \
                 cause, then `wattmill waive small-1`";
    assert_eq!(bench.reason(), words);
    let (reply, _answer) = oneshot::channel();
    bench.core.take(Command::Waive { job: job.clone(), shard: None, reply });
    assert_eq!(bench.reason(), "");
    bench.connect("common", 1);
    let reason = bench.reason();
    assert!(reason.contains("computes as rare") && reason.ends_with("compute as common"), "{reason}");
}

/// A counter that begins with its first joules hides them from `increase`.
#[tokio::test]
async fn energy_counters_of_a_job_begin_with_zero() {
    let mut bench = Bench::new().await;
    let metered = [("cpu".into(), Source::Estimate)].into_iter().collect();
    bench.rollups.send_replace(Arc::new(Rollup { metered, ..Default::default() }));
    let job = bench.submit();
    let page = bench.page();
    for outcome in ["committed", "wasted"] {
        let line = format!(
            "wattmill_job_energy_joules_total{{job=\"{job}\",outcome=\"{outcome}\",source=\"estimate\"}} 0\n"
        );
        assert!(page.contains(&line), "{page}");
    }
    assert!(!page.contains("source=\"counter\""), "nothing meters so");
    assert!(!page.contains("wattmill_reschedules_total{reason=\"job_ended\"}"), "nothing is given anew then");
}

/// What idles while a job runs is in its efficiency, in the view as in the report.
#[tokio::test]
async fn idle_joules_are_in_a_jobs_efficiency() {
    let mut bench = Bench::new().await;
    let job = bench.submit();
    let energy = [("cpu".into(), Energy::of(Source::Estimate, 7_000_000))].into_iter().collect();
    bench.rollups.send_replace(Arc::new(Rollup { energy, ..Default::default() }));
    bench.core.pass_time();
    bench.core.pass_time();
    let view = view::build(&bench.core).cluster.jobs[0].clone();
    assert_eq!(view.idle_microjoules, 7_000_000, "once");
    let report: serde_json::Value = serde_json::from_str(&bench.core.energy_report(&job).unwrap()).unwrap();
    assert_eq!(report["energy_joules"]["idle_and_other"].as_f64(), Some(7.0));
    assert_eq!(report["samples_per_joule"].as_f64(), Some(0.0), "no samples, but joules");
    assert_eq!(view.samples_per_joule, Some(0.0));
}

/// Else what is granted to it would be lost, one lease after the other.
#[tokio::test]
async fn a_node_that_does_not_read_gets_no_work() {
    let mut bench = Bench::new().await;
    bench.submit();
    let (sender, told) = mpsc::channel(1);
    bench.told = Some(told);
    bench.open("n", 1, sender);
    assert_eq!(bench.core.work.connected().count(), 1);
    // Two messages, room for one.
    bench.core.perform();
    assert_eq!(bench.core.sessions.iter().count(), 0);
    assert_eq!(bench.core.work.connected().count(), 0);
}

/// A cluster of thousands comes back at once, is planned and shown; `--nocapture` says how long each takes.
#[tokio::test]
async fn three_thousand_nodes_are_planned_and_shown() {
    const NODES: u32 = 3_000;
    let mut bench = Bench::new().await;
    let spec = JOB.replace("shards_per_round = 2", "shards_per_round = 4096");
    let spec = wattmill_protocol::job::Job::from_toml(&spec).unwrap();
    let job = bench.core.submit(Arc::new(spec), String::new());
    bench.connect("n", 2);
    let lease = bench.grant()[0];
    let prepared = Prepared { training_rows: 4 * 4096, held_out_rows: 0, data_hash: Hash::of(b"data") };
    let parameters = Hash::of(b"first");
    bench.report(&job, lease, Ok(ShardResult::Prepared { prepared, parameters }), 1.0);
    bench.core.pending_effects.clear();
    let reduction = Ok(Reduction { parameters, optimizer: None });
    bench.core.apply(Event::Reduced { job, round: 0, reduction });
    let mut told = Vec::new();
    let time = |what: &str, begun: Instant| eprintln!("{what}: {:?}", begun.elapsed());
    let begun = Instant::now();
    for index in 2..=NODES {
        let (sender, receiver) = mpsc::channel(8);
        told.push(receiver);
        let (node, host) = (format!("00000000-0000-4000-8000-{index:012}"), format!("host-{index}"));
        bench.say_hello(v1::Hello { node, machine_id: host, ..hello("n", 2) }, sender).unwrap();
    }
    time("3,000 Hellos", begun);
    let begun = Instant::now();
    bench.core.replan();
    time("plan", begun);
    let begun = Instant::now();
    bench.core.grant();
    time("grant of a round of 4,096 shards", begun);
    assert_eq!(bench.core.work.leases().count(), 4_096);
    let begun = Instant::now();
    let view = view::build(&bench.core);
    time("picture", begun);
    assert_eq!(view.cluster.nodes.len(), NODES as usize);
    assert_eq!(view.cluster.nodes.iter().map(|node| node.running).sum::<u32>(), 4_096);
    assert!(view.cluster.nodes.iter().all(|node| !node.decision.is_empty()));
}
