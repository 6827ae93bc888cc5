//! A state machine with its store, driven by hand: every step's writes are committed at once.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wattmill_protocol::job::Job;
use wattmill_protocol::{Energy, Hash, JobId, NodeId, Source, Token};
use wattmill_work::memory::Memory;
use wattmill_work::store::Store;
use wattmill_work::{
    Capability, Effect, Event, Failure, HeldLease, JobRecord, Message, Now, Prepared, Reduction, Renewal,
    Report, ReportOutcome, Settings, Settlement, ShardResult, ShardState, Stored, Task, Work,
};

/// 10 rows in shards of 4, two shards a round: 4 and 4, then 2.
const JOB: &str = r#"
name = "small"
[model]
layers = [{ units = 2, activation = "softmax" }]
[data]
uri = "sim://10/1"
features = 1
classes = 2
[training]
epochs = 1
shard_size = 4
shards_per_round = 2
optimizer = { name = "sgd", learning_rate = 0.1 }
"#;

pub(crate) struct Cluster {
    pub(crate) work: Work,
    pub(crate) job: JobId,
    pub(crate) settings: Settings,
    store: Memory,
    now_ms: u64,
    sessions: u64,
}

/// Node number `n`.
pub(crate) fn node(n: u8) -> NodeId {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

/// Measured microjoules.
pub(crate) fn counted(microjoules: u64) -> Energy {
    Energy::of(Source::Counter, microjoules)
}

fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("the memory store never waits"),
    }
}

impl Cluster {
    /// One job is submitted; nobody is there yet.
    pub(crate) fn new() -> Self {
        let job: JobId = "small-1".parse().unwrap();
        let settings = Settings::default();
        let now = Now { monotonic_ms: 0, unix_ms: 0 };
        let (work, writes) = Work::recover(Stored::default(), settings, now);
        let mut store = Memory::default();
        at_once(store.commit(&writes)).unwrap();
        let mut cluster = Self { work, job: job.clone(), settings, store, now_ms: 0, sessions: 0 };
        let spec = Arc::new(Job::from_toml(JOB).unwrap());
        cluster.apply(Event::Submitted { job, spec, key: "key".to_owned() });
        cluster
    }

    /// Nodes 1 and 2 are there, and the job is prepared by node 1.
    pub(crate) fn prepared() -> Self {
        let mut cluster = Self::new();
        cluster.open(1, &[]);
        cluster.open(2, &[]);
        let token = cluster.grant(0, 1);
        assert_eq!(cluster.report(1, token, 0), ReportOutcome::Received);
        cluster.reduce();
        cluster
    }

    pub(crate) fn apply(&mut self, event: Event) -> Vec<Effect> {
        let (writes, effects) = self.work.apply(event, self.now());
        at_once(self.store.commit(&writes)).unwrap();
        effects
    }

    fn now(&self) -> Now {
        Now { monotonic_ms: self.now_ms, unix_ms: self.now_ms as i64 }
    }

    /// The collector dies and recovers.
    pub(crate) fn crash(&mut self) {
        let (work, writes) = Work::recover(self.stored(), self.settings, self.now());
        at_once(self.store.commit(&writes)).unwrap();
        self.work = work;
    }

    pub(crate) fn stored(&mut self) -> Stored {
        at_once(self.store.load()).unwrap()
    }

    /// The job as it lies in the store.
    pub(crate) fn record(&mut self) -> JobRecord {
        let job = self.job.clone();
        self.stored().jobs.into_iter().find(|record| record.id == job).unwrap()
    }

    /// What a tick says.
    pub(crate) fn tick(&mut self, peak_flops: Option<f64>, cluster_microjoules: u64) -> Vec<Effect> {
        self.apply(Event::Tick { peak_flops, cluster_microjoules })
    }

    /// Time passes without a tick.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// Time passes, with a tick at its end.
    pub(crate) fn wait(&mut self, ms: u64) -> Vec<Effect> {
        self.now_ms += ms;
        self.tick(None, 0)
    }

    /// Node `n` opens a session with the leases that it holds; returns the session's number.
    pub(crate) fn open(&mut self, n: u8, held: &[HeldLease]) -> u64 {
        self.open_with(n, held, "same");
        self.sessions
    }

    pub(crate) fn open_with(&mut self, n: u8, held: &[HeldLease], numerics: &str) -> Vec<Effect> {
        self.sessions += 1;
        let capability = Capability { numerics: numerics.to_owned(), slots: 2 };
        let (session, held) = (self.sessions, held.to_vec());
        self.apply(Event::Opened { node: node(n), session, capability, held, settled: 0 })
    }

    /// Node `n` comes from another collector, which applied its settlements up to `settled`.
    pub(crate) fn open_settled(&mut self, n: u8, settled: u64) -> Vec<Effect> {
        self.sessions += 1;
        let capability = Capability { numerics: "same".to_owned(), slots: 2 };
        let (session, held) = (self.sessions, Vec::new());
        self.apply(Event::Opened { node: node(n), session, capability, held, settled })
    }

    /// A lease of the current round, as a node lists it.
    pub(crate) fn held(&self, token: Token, shard: u32) -> HeldLease {
        let round = self.work.round(&self.job).unwrap().number;
        HeldLease { token, job: self.job.clone(), round, shard }
    }

    /// Gives a shard to node `n`, who must get it.
    pub(crate) fn grant(&mut self, shard: u32, n: u8) -> Token {
        self.try_grant(shard, n).expect("the shard is given")
    }

    pub(crate) fn try_grant(&mut self, shard: u32, n: u8) -> Option<Token> {
        let effects =
            self.apply(Event::Granted { job: self.job.clone(), shard, node: node(n), power_watts: 0.0 });
        effects.iter().find_map(|effect| match effect {
            Effect::Send { message: Message::Lease { token, .. }, .. } => Some(*token),
            _ => None,
        })
    }

    /// Node `n` reports what the shard's task asks for; returns how that was answered.
    pub(crate) fn report(&mut self, n: u8, token: Token, shard: u32) -> ReportOutcome {
        let result = self.result(shard);
        self.report_result(n, self.held(token, shard), result).0
    }

    pub(crate) fn fail(&mut self, n: u8, token: Token, shard: u32, bad_input: bool) -> ReportOutcome {
        let failure = Failure { bad_input, message: "no memory".to_owned() };
        self.report_result(n, self.held(token, shard), Err(failure)).0
    }

    pub(crate) fn report_result(
        &mut self,
        n: u8,
        held: HeldLease,
        result: Result<ShardResult, Failure>,
    ) -> (ReportOutcome, Vec<Effect>) {
        let HeldLease { token, job, round, shard } = held;
        let report = Report { token, job, round, shard, result, useful_flops: 10 };
        let effects = self.apply(Event::Reported { node: node(n), report });
        let outcome = effects.iter().find_map(|effect| match effect {
            Effect::Send { message: Message::Reply { outcome, .. }, .. } => Some(*outcome),
            _ => None,
        });
        (outcome.expect("every report is answered"), effects)
    }

    /// A result that fits a shard of the current round.
    pub(crate) fn result(&self, shard: u32) -> Result<ShardResult, Failure> {
        let blob = Hash::of(&[shard as u8]);
        Ok(match self.task(shard) {
            Task::Prepare => {
                let prepared = Prepared { training_rows: 10, held_out_rows: 0, data_hash: Hash::of(b"data") };
                ShardResult::Prepared { prepared, parameters: blob }
            }
            Task::Gradient { count, .. } => {
                ShardResult::Gradient { gradient: blob, loss_sum: count as f64, correct: 1, samples: count }
            }
            Task::Evaluate { count, .. } => {
                ShardResult::Evaluated { loss_sum: 1.0, correct: 1, samples: count }
            }
        })
    }

    pub(crate) fn task(&self, shard: u32) -> Task {
        self.work.round(&self.job).unwrap().shards[shard as usize].task
    }

    pub(crate) fn state(&self, shard: u32) -> &ShardState {
        &self.work.round(&self.job).unwrap().shards[shard as usize].state
    }

    /// The current round is reduced.
    pub(crate) fn reduce(&mut self) -> Vec<Effect> {
        let round = self.work.round(&self.job).unwrap().number;
        let reduction = Ok(Reduction { parameters: Hash::of(&[100, round as u8]), optimizer: None });
        self.apply(Event::Reduced { job: self.job.clone(), round, reduction })
    }

    pub(crate) fn renew(&mut self, n: u8, token: Token, progress: u64, energy: Energy, power_watts: f64) {
        let renewals = vec![Renewal { token, progress, energy, power_watts }];
        self.apply(Event::Renewed { node: node(n), renewals });
    }

    /// Node `n` settles; returns through which settlement the collector then stands.
    pub(crate) fn settle(&mut self, n: u8, sequence: u64, token: Token, energy: Energy) -> u64 {
        let job = self.job.clone();
        self.settle_as(n, Settlement { sequence, token, job, energy, unrecorded: false })
    }

    /// Node `n` settles a lease that its ledger does not know.
    pub(crate) fn settle_unrecorded(&mut self, n: u8, sequence: u64, token: Token) -> u64 {
        let job = self.job.clone();
        self.settle_as(n, Settlement { sequence, token, job, energy: Energy::ZERO, unrecorded: true })
    }

    fn settle_as(&mut self, n: u8, settlement: Settlement) -> u64 {
        self.apply(Event::Settled { node: node(n), settlements: vec![settlement] });
        self.work.settled_through(&node(n))
    }

    /// Commits the current round with all shards done by node `n`; returns the tokens.
    pub(crate) fn finish_round(&mut self, n: u8) -> Vec<Token> {
        let shards = self.work.round(&self.job).unwrap().shards.len() as u32;
        let tokens = (0..shards)
            .map(|shard| {
                let token = self.grant(shard, n);
                assert_eq!(self.report(n, token, shard), ReportOutcome::Received);
                token
            })
            .collect();
        self.reduce();
        tokens
    }
}
