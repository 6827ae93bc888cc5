//! What happens, in words, for the trace.

use wattmill_protocol::NodeId;
use wattmill_work::{Event, Message, Report};

/// An event in a few words.
pub fn event(event: &Event) -> String {
    match event {
        Event::Submitted { job, .. } => format!("{job} is submitted"),
        Event::Cancelled { job } => format!("{job} is cancelled"),
        Event::Opened { node, session, held, .. } => {
            let held: Vec<String> = held.iter().map(|h| h.token.to_string()).collect();
            format!("node {} opens session {session} with {held:?}", name(node))
        }
        Event::Closed { node, session } => format!("session {session} of node {} is closed", name(node)),
        Event::Renewed { node, renewals } => format!("node {} renews {}", name(node), renewals.len()),
        Event::Reported { node, report } => {
            let taken = if report.result.is_ok() { "result" } else { "failure" };
            let Report { token, job, round, shard, .. } = report;
            format!("node {} reports a {taken} of {token}, {job} round {round} shard {shard}", name(node))
        }
        Event::HandedBack { node, token } => format!("node {} hands {token} back", name(node)),
        Event::Settled { node, settlements } => {
            let tokens: Vec<String> =
                settlements.iter().map(|s| format!("{}:{}", s.sequence, s.token)).collect();
            format!("node {} settles {tokens:?}", name(node))
        }
        Event::Granted { job, shard, node, .. } => format!("{job} shard {shard} for node {}", name(node)),
        Event::Computed { job, round, .. } => format!("round {round} of {job} is computed"),
        Event::Reduced { job, round, reduction } => {
            format!("round {round} of {job} is reduced{}", if reduction.is_ok() { "" } else { " in vain" })
        }
        Event::Waived { job, .. } => format!("quarantined shards of {job} are tried anew"),
        Event::Tick { .. } => "time passes".to_owned(),
    }
}

/// A message to a node in a few words.
pub fn message(message: &Message) -> String {
    match message {
        Message::Lease { token, job, round, shard, attempt, .. } => {
            format!("lease {token}, {job} round {round} shard {shard}, attempt {attempt}")
        }
        Message::Revoke { token, reason } => format!("revoke {token}, {}", reason.as_str()),
        Message::Reply { token, outcome } => format!("{token} is {outcome:?}"),
        Message::Settled { sequence } => format!("settled through {sequence}"),
        Message::Unsettled { leases } => {
            let tokens: Vec<String> = leases.iter().map(|l| l.token.to_string()).collect();
            format!("unsettled {tokens:?}")
        }
        Message::Committed { tokens } => {
            let tokens: Vec<String> = tokens.iter().map(ToString::to_string).collect();
            format!("committed {tokens:?}")
        }
    }
}

/// The last digit of a node's identity: its index in the scenario.
pub fn name(node: &NodeId) -> &str {
    &node.as_str()[35..]
}
