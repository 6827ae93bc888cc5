//! Sessions: streams that keep their order, and may break at any time. Then each direction loses a suffix of
//! what was on its way; the rest still arrives, perhaps much later and twice, when the node long has a new
//! session.

use std::collections::{BTreeMap, VecDeque};

use wattmill_protocol::Token;
use wattmill_work::{Capability, HeldLease, Message, Renewal, Report, Settlement};

use crate::context::{Context, What};

/// Longest that a message is on its way while all is well.
const MAX_DELAY_MS: u64 = 120;
/// Longest that a message of a broken session stays in some buffer.
const MAX_LATE_MS: u64 = 8_000;
/// Longest until an end notices that its peer is gone (keepalive).
const MAX_NOTICE_MS: u64 = 20_000;

/// What nodes say.
#[derive(Clone, Debug)]
pub enum FromNode {
    /// First of a session.
    Hello {
        /// What the node can do.
        capability: Capability,
        /// Leases that it holds.
        held: Vec<HeldLease>,
        /// Last settlement that it knows to be applied.
        settled: u64,
    },
    /// How leases fare.
    Renew(Vec<Renewal>),
    /// A result.
    Report(Report),
    /// A lease is given back.
    HandBack(Token),
    /// Joules.
    Settle(Vec<Settlement>),
}

/// What nodes are told.
#[derive(Clone, Debug)]
pub enum ToNode {
    /// What the state machine says.
    Work(Message),
    /// The blob that a report names is not here: store it again.
    BlobMissing(Token),
}

/// A message on its way.
#[derive(Clone, Debug)]
pub enum Envelope {
    /// To the collector.
    Up(FromNode),
    /// To the node.
    Down(ToNode),
}

#[derive(Debug)]
struct Flight {
    at_ms: u64,
    envelope: Envelope,
}

/// One session. Its number grows with the order in which sessions are accepted.
#[derive(Debug)]
struct Connection {
    node: usize,
    process: u64,
    up: bool,
    greeted: bool,
    closed: bool,
    flights: [VecDeque<Flight>; 2],
    last_ms: [u64; 2],
}

/// All sessions there ever were, and what is on its way.
#[derive(Debug, Default)]
pub struct Network {
    connections: BTreeMap<u64, Connection>,
}

impl Network {
    /// Node `node` reaches process `process` of the collector. Returns the session's number.
    pub fn connect(&mut self, node: usize, process: u64) -> u64 {
        let number = self.connections.len() as u64 + 1;
        let connection = Connection {
            node,
            process,
            up: true,
            greeted: false,
            closed: false,
            flights: [VecDeque::new(), VecDeque::new()],
            last_ms: [0, 0],
        };
        self.connections.insert(number, connection);
        number
    }

    /// Sends a message; on a broken session it is lost.
    pub fn send(&mut self, context: &mut Context, number: u64, envelope: Envelope) {
        let Some(connection) = self.connections.get_mut(&number).filter(|c| c.up) else { return };
        let direction = usize::from(matches!(envelope, Envelope::Down(_)));
        let sent_ms = context.now + context.random.range(1, MAX_DELAY_MS);
        let at_ms = sent_ms.max(connection.last_ms[direction]);
        connection.last_ms[direction] = at_ms;
        let down = direction == 1;
        connection.flights[direction].push_back(Flight { at_ms, envelope });
        context.queue.at(at_ms, What::Deliver { connection: number, down });
    }

    /// The next message of a direction arrives, in the order in which they were sent: what it is, of which
    /// node and for which process. `None` if it was lost.
    pub fn arrive(&mut self, number: u64, down: bool) -> Option<(usize, u64, Envelope)> {
        let connection = self.connections.get_mut(&number)?;
        let flight = connection.flights[usize::from(down)].pop_front()?;
        Some((connection.node, connection.process, flight.envelope))
    }

    /// The session ends in order: all that was sent arrives.
    pub fn close(&mut self, context: &mut Context, number: u64) {
        let Some(connection) = self.connections.get_mut(&number).filter(|c| c.up) else { return };
        connection.up = false;
        let at_ms = connection.last_ms[0].max(context.now) + 1;
        context.queue.at(at_ms, What::CollectorSees { connection: number });
    }

    /// The session breaks.
    pub fn sever(&mut self, context: &mut Context, number: u64) {
        let Some(connection) = self.connections.get_mut(&number).filter(|c| c.up) else { return };
        connection.up = false;
        for flights in &mut connection.flights {
            flights.truncate(context.random.below(flights.len() as u64 + 1) as usize);
        }
        let late_ms = if context.random.chance(400) { context.random.below(MAX_LATE_MS) } else { 0 };
        for flight in connection.flights[0].drain(..) {
            let Envelope::Up(message) = flight.envelope else { continue };
            let twice = context.random.chance(250) && !matches!(message, FromNode::Hello { .. });
            if twice {
                let at_ms = flight.at_ms + context.random.below(MAX_LATE_MS);
                context.queue.at(at_ms, What::Late { connection: number, message: message.clone() });
            }
            context.queue.at(flight.at_ms + late_ms, What::Late { connection: number, message });
        }
        for what in [What::NodeSees { connection: number }, What::CollectorSees { connection: number }] {
            let most_ms = if context.random.chance(200) && context.faults { MAX_NOTICE_MS } else { 300 };
            let at_ms = context.now + context.random.range(1, most_ms);
            context.queue.at(at_ms, what);
        }
    }

    /// All sessions of a process of the collector break, since it died.
    pub fn sever_process(&mut self, context: &mut Context, process: u64) {
        let open = self.connections.iter().filter(|(_, c)| c.up && c.process == process);
        let numbers: Vec<u64> = open.map(|(number, _)| *number).collect();
        for number in numbers {
            self.sever(context, number);
        }
    }

    /// A session that is open, by chance.
    pub fn any_open(&self, context: &mut Context) -> Option<u64> {
        let open: Vec<u64> = self.connections.iter().filter(|(_, c)| c.up).map(|(n, _)| *n).collect();
        (!open.is_empty()).then(|| *context.random.pick(&open))
    }

    /// Node and process of a session.
    pub fn ends(&self, number: u64) -> Option<(usize, u64)> {
        self.connections.get(&number).map(|c| (c.node, c.process))
    }

    /// The collector has seen the end of a session: its Hello is not read after that.
    pub fn mark_closed(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.closed = true;
        }
    }

    /// The collector reads a session's message: not before its Hello, and no Hello after its end.
    pub fn reads(&mut self, number: u64, message: &FromNode) -> bool {
        let Some(connection) = self.connections.get_mut(&number) else { return false };
        connection.greeted |= matches!(message, FromNode::Hello { .. }) && !connection.closed;
        connection.greeted
    }
}
