//! Nodes with an open session, and how they are spoken to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use wattmill_protocol::{NodeId, PROTOCOL_VERSION, Token, v1};
use wattmill_work::{Capability, Event, HeldLease, Message, ReportOutcome, Task, UnsettledLease};

use super::command::{OpenRefused, ToNode};
use super::{Core, Then};

/// Most leases that a node takes at once.
const MAX_SLOTS: u32 = 256;
/// Most leases that a node may say it holds: it keeps the results of a whole round until that is committed, and
/// rounds of 4096 shards of a few jobs may be under way.
const MAX_HELD: usize = 1 << 14;
/// Most CPUs of a node: Linux has at most 8192.
const MAX_CPUS: usize = 1 << 13;
/// The whole host, in parts per million.
const WHOLE_HOST_PPM: u32 = 1_000_000;
/// Longest name or address in bytes.
const MAX_TEXT: usize = 255;
/// How far fractions may exceed the host, in parts per million: they are rounded.
const FRACTION_SLACK_PPM: u64 = 10;

/// A node as it presented itself.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) session: u64,
    pub(crate) hello: v1::Hello,
    sender: ToNode,
}

/// All open sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    open: BTreeMap<NodeId, Connected>,
    last: u64,
    /// Sessions that were closed here, of which the state machine is not told yet.
    pub(crate) broken: Vec<(NodeId, u64)>,
    /// Answers that wait for the commit of their batch.
    pub(crate) waiting: Vec<Box<dyn FnOnce() + Send>>,
}

impl Sessions {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Connected)> {
        self.open.iter()
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<&Connected> {
        self.open.get(node)
    }

    pub(crate) fn close(&mut self, node: &NodeId, session: u64) {
        if self.open.get(node).is_some_and(|c| c.session == session) {
            self.open.remove(node);
            tracing::info!(%node, session, "session closed");
        }
    }

    pub(crate) fn send(&mut self, node: &NodeId, kind: v1::to_node::Kind) {
        let Some(connected) = self.open.get(node) else { return };
        if connected.sender.try_send(Ok(v1::ToNode { kind: Some(kind) })).is_err() {
            // The stream ends with its sender: the node opens a new session and says what it holds.
            let session = connected.session;
            tracing::warn!(%node, session, "the node does not read: its session is closed");
            self.open.remove(node);
            self.broken.push((node.clone(), session));
        }
    }

    pub(crate) fn answer(&mut self) {
        self.waiting.drain(..).for_each(|answer| answer());
    }
}

impl Core {
    pub(crate) fn open(
        &mut self,
        hello: v1::Hello,
        sender: ToNode,
        reply: oneshot::Sender<Result<(NodeId, u64), OpenRefused>>,
    ) {
        let answer = self.check(&hello).map(|(node, held)| {
            self.sessions.last += 1;
            let session = self.sessions.last;
            tracing::info!(%node, name = hello.name, session, held = held.len(), numerics = hello.numerics, "session opened");
            self.telemetry.introduce(
                &node,
                &hello.name,
                &hello.machine_id,
                f64::from(hello.host_fraction_ppm) / 1e6,
            );
            let capability = Capability { numerics: hello.numerics.clone(), slots: hello.slots };
            let settled = hello.settled;
            self.sessions.open.insert(node.clone(), Connected { session, hello, sender });
            let before = self.pending_effects.len();
            self.apply(Event::Opened { node: node.clone(), session, capability, held, settled });
            let welcome = v1::Welcome {
                cluster: self.cluster.clone(),
                protocol: PROTOCOL_VERSION,
                spool_durable: self.durable.get(&node).copied().unwrap_or(0),
                settled: self.work.settled_through(&node),
            };
            // No earlier than what it says is durable, and before all that this session is told.
            self.pending_effects.insert(before, Then::Welcome { node: node.clone(), session, welcome });
            self.plan_due = true;
            (node, session)
        });
        drop(reply.send(answer));
    }

    fn check(&self, hello: &v1::Hello) -> Result<(NodeId, Vec<HeldLease>), OpenRefused> {
        let malformed = |message: String| OpenRefused::Malformed(message);
        if hello.protocol != PROTOCOL_VERSION {
            return Err(OpenRefused::Protocol { node: hello.protocol, collector: PROTOCOL_VERSION });
        }
        let node: NodeId = hello.node.parse().map_err(|e| malformed(format!("{e}")))?;
        let texts =
            [&hello.name, &hello.machine_id, &hello.numerics, &hello.version, &hello.advertised_metrics];
        if texts.iter().any(|t| t.len() > MAX_TEXT || t.chars().any(char::is_control)) {
            return Err(malformed(format!(
                "a text of the hello has over {MAX_TEXT} bytes or control characters"
            )));
        }
        if hello.machine_id.is_empty() || hello.name.is_empty() {
            return Err(malformed("name and machine_id must not be empty".to_owned()));
        }
        // A node without a worker meters and takes no work; how it computes is then not known.
        if hello.slots > 0 && hello.numerics.is_empty() {
            return Err(malformed("numerics must not be empty where there are slots".to_owned()));
        }
        if hello.slots > MAX_SLOTS {
            return Err(malformed(format!("slots must be {MAX_SLOTS} at most")));
        }
        if hello.held.len() > MAX_HELD {
            return Err(malformed(format!(
                "{} leases are held; at most {MAX_HELD} can be",
                hello.held.len()
            )));
        }
        if hello.cpus.len() > MAX_CPUS {
            return Err(malformed(format!("{} CPUs; at most {MAX_CPUS} can be", hello.cpus.len())));
        }
        if hello.host_fraction_ppm > WHOLE_HOST_PPM {
            return Err(malformed("host_fraction_ppm is more than the whole host".to_owned()));
        }
        self.check_host(&node, hello)?;
        let held = hello.held.iter().map(held_lease).collect::<Result<_, _>>()?;
        Ok((node, held))
    }

    /// Agents of one host must not account for the same joules.
    fn check_host(&self, node: &NodeId, hello: &v1::Hello) -> Result<(), OpenRefused> {
        let mut fraction = u64::from(hello.host_fraction_ppm);
        let cpus: BTreeSet<u32> = hello.cpus.iter().copied().collect();
        for (other, connected) in self.sessions.iter().filter(|(other, _)| *other != node) {
            if connected.hello.machine_id != hello.machine_id {
                continue;
            }
            let refused = |conflict: String| OpenRefused::Overlap {
                machine_id: hello.machine_id.clone(),
                other: format!("{} ({other})", connected.hello.name),
                conflict,
            };
            if let Some(cpu) = connected.hello.cpus.iter().find(|cpu| cpus.contains(cpu)) {
                return Err(refused(format!("both use CPU {cpu}")));
            }
            fraction += u64::from(connected.hello.host_fraction_ppm);
            if fraction > u64::from(WHOLE_HOST_PPM) + FRACTION_SLACK_PPM {
                let percent = fraction as f64 / 1e4;
                return Err(refused(format!("the host's fractions come to {percent:.1} %")));
            }
        }
        Ok(())
    }
}

fn held_lease(held: &v1::HeldLease) -> Result<HeldLease, OpenRefused> {
    let job = held.job.parse().map_err(|e| OpenRefused::Malformed(format!("{e}")))?;
    Ok(HeldLease { token: Token(held.token), job, round: held.round, shard: held.shard })
}

/// An answer to a report.
pub(crate) fn reply(token: Token, outcome: v1::ReportOutcome) -> v1::to_node::Kind {
    v1::to_node::Kind::ReportReply(v1::ReportReply { token: token.0, outcome: outcome.into() })
}

/// What a report came to, in the words of the wire.
fn outcome(outcome: ReportOutcome) -> v1::ReportOutcome {
    match outcome {
        ReportOutcome::Received => v1::ReportOutcome::Received,
        ReportOutcome::Committed => v1::ReportOutcome::Committed,
        ReportOutcome::Stale => v1::ReportOutcome::Stale,
        ReportOutcome::Failed => v1::ReportOutcome::Failed,
    }
}

/// A message of the state machine in the words of the wire.
pub(crate) fn message(message: Message, traceparent: String) -> v1::to_node::Kind {
    use v1::to_node::Kind;
    match message {
        Message::Lease { token, job, spec, round, shard, attempt, duration_ms, task, data_hash } => {
            Kind::Lease(v1::Lease {
                token: token.0,
                job: job.to_string(),
                round,
                shard,
                attempt,
                duration_ms,
                job_json: Arc::as_ref(&spec).to_json(),
                task: Some(wire_task(task)),
                data_hash: data_hash.map(wattmill_protocol::Hash::to_bytes).unwrap_or_default(),
                traceparent,
            })
        }
        Message::Revoke { token, reason } => {
            Kind::Revoke(v1::Revoke { token: token.0, reason: reason.as_str().to_owned() })
        }
        Message::Reply { token, outcome: result } => reply(token, outcome(result)),
        Message::Settled { sequence } => Kind::Settled(v1::Settled { sequence }),
        Message::Unsettled { leases } => {
            let lease = |l: UnsettledLease| v1::UnsettledLease { token: l.token.0, job: l.job.to_string() };
            Kind::Unsettled(v1::Unsettled { leases: leases.into_iter().map(lease).collect() })
        }
        Message::Committed { tokens } => {
            Kind::Committed(v1::Committed { tokens: tokens.into_iter().map(|t| t.0).collect() })
        }
    }
}

fn wire_task(task: Task) -> v1::Task {
    use v1::task::Kind;
    let kind = match task {
        Task::Prepare => Kind::Prepare(v1::PrepareTask {}),
        Task::Gradient { parameters, epoch, first, count } => {
            Kind::Gradient(v1::GradientTask { parameters_hash: parameters.to_bytes(), epoch, first, count })
        }
        Task::Evaluate { parameters, first, count } => {
            Kind::Evaluate(v1::EvaluateTask { parameters_hash: parameters.to_bytes(), first, count })
        }
    };
    v1::Task { kind: Some(kind) }
}
