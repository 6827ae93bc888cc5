//! What every part of the simulation shares: the time, the queue, the random numbers, the blobs, the trace
//! and the record of what must hold.

use std::collections::VecDeque;
use std::fmt;

use wattmill_protocol::{JobId, Token};
use wattmill_work::Reduction;

use crate::blobs::Blobs;
use crate::checks::Checks;
use crate::network::FromNode;
use crate::queue::Queue;
use crate::random::{Random, mix};
use crate::scenario::Scenario;

/// Lines that a failure shows.
const TRACE_LINES: usize = 40;

/// Something that is to happen.
#[derive(Clone, Debug)]
pub enum What {
    /// The next message of a session arrives, if there still is one.
    Deliver {
        /// The session.
        connection: u64,
        /// Whether it goes to the node.
        down: bool,
    },
    /// A message of a broken session arrives after all.
    Late {
        /// The session.
        connection: u64,
        /// The message.
        message: FromNode,
    },
    /// A session breaks.
    Sever {
        /// Which.
        connection: u64,
    },
    /// A node notices that its session is gone.
    NodeSees {
        /// Which.
        connection: u64,
    },
    /// The collector notices that a session is gone.
    CollectorSees {
        /// Which.
        connection: u64,
    },
    /// A node's process starts, unless one runs or the node is dead.
    NodeStart(usize),
    /// A node's timer.
    Node {
        /// Which node.
        node: usize,
        /// Of which process: an older one's timers are gone with it.
        epoch: u32,
        /// What for.
        timer: NodeTimer,
    },
    /// The collector's process starts.
    CollectorStart,
    /// A timer of a process of the collector.
    Collector {
        /// Which process.
        process: u64,
        /// What for.
        timer: CollectorTimer,
    },
    /// A user looks whether something is to be asked for.
    User(usize),
    /// A user's call reaches the collector.
    Call {
        /// Whose.
        user: usize,
        /// What is asked.
        call: Call,
    },
    /// An answer reaches a user.
    Answer {
        /// Whom.
        user: usize,
        /// What is answered.
        call: Call,
        /// The job.
        job: JobId,
    },
    /// Something goes wrong.
    Fault,
    /// The store works again.
    StoreBack,
    /// Faults end.
    Heal,
    /// After the faults' end: is everything done?
    Inspect,
}

/// A node's timers.
#[derive(Clone, Copy, Debug)]
pub enum NodeTimer {
    /// Dials the collector.
    Dial,
    /// Fetches a lease's parameters.
    Fetch(Token),
    /// One step of a lease's work.
    Step(Token),
    /// Stores a result's blob.
    Upload(Token),
    /// Renews all leases.
    Renew,
    /// A lease's last metering window closes.
    Window(Token),
}

/// The collector's timers.
#[derive(Clone, Debug)]
pub enum CollectorTimer {
    /// Time passes.
    Tick,
    /// Shards are given out.
    Grant,
    /// The store is tried again.
    Retry,
    /// A reduction is computed.
    Reduce(Box<wattmill_work::Effect>),
    /// A reduction is durable; now and then this is said twice.
    Reduced {
        /// Of which job.
        job: JobId,
        /// Of which round.
        round: u32,
        /// What it was.
        reduction: Reduction,
    },
}

/// What a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// Train this.
    Submit,
    /// Stop it.
    Cancel,
}

/// Something that must hold does not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// `Ok` where `holds`, else [`Broken`] with what `why` says.
pub fn hold(holds: bool, why: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(why())) }
}

/// The last lines of what happened, and a hash of all of them.
#[derive(Debug)]
pub struct Trace {
    lines: VecDeque<(u64, String)>,
    digest: u64,
    echo: bool,
}

impl Trace {
    /// Nothing happened yet; `echo` prints what does.
    pub fn new(echo: bool) -> Self {
        Self { lines: VecDeque::new(), digest: 0, echo }
    }

    fn push(&mut self, now: u64, line: String) {
        self.digest = line.bytes().fold(mix(self.digest ^ now), |sum, byte| mix(sum ^ u64::from(byte)));
        if self.echo {
            println!("{now:>8} ms  {line}");
        }
        if self.lines.len() == TRACE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((now, line));
    }

    /// Depends on every line of the run.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(at, line)| writeln!(f, "{at:>8} ms  {line}"))
    }
}

/// What every part shares.
#[derive(Debug)]
pub struct Context {
    /// Virtual time.
    pub now: u64,
    /// What is to happen.
    pub queue: Queue<What>,
    /// Decides everything that is left open.
    pub random: Random,
    /// Durable blobs.
    pub blobs: Blobs,
    /// What must hold.
    pub checks: Checks,
    /// What happened.
    pub trace: Trace,
    /// Whether things may go wrong yet.
    pub faults: bool,
    /// What the seed stands for.
    pub scenario: Scenario,
}

impl Context {
    /// Has `what` happen after `delay_ms`.
    pub fn after(&mut self, delay_ms: u64, what: What) {
        self.queue.at(self.now + delay_ms, what);
    }

    /// Has `what` happen after a time from `least_ms` to `most_ms`.
    pub fn between(&mut self, least_ms: u64, most_ms: u64, what: What) {
        let delay_ms = self.random.range(least_ms, most_ms);
        self.after(delay_ms, what);
    }

    /// Notes what happened.
    pub fn note(&mut self, line: String) {
        self.trace.push(self.now, line);
    }
}
