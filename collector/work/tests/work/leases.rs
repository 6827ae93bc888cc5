//! Leases: who holds a shard, for how long, and whose result counts.

use wattmill_protocol::Energy;
use wattmill_work::{Effect, Event, Message, ReportOutcome, ShardState, WasteReason};

use crate::cluster::{Cluster, node};

#[test]
fn a_closed_session_keeps_its_leases_for_a_while() {
    let mut cluster = Cluster::prepared();
    let session = cluster.open(1, &[]);
    let token = cluster.grant(0, 1);
    cluster.apply(Event::Closed { node: node(1), session });
    cluster.wait(cluster.settings.grace_ms - 1);
    assert!(matches!(cluster.state(0), ShardState::Leased(lease) if lease.token == token));
    let effects = cluster.wait(1);
    assert_eq!(cluster.state(0), &ShardState::Pending);
    let message = Message::Revoke { token, reason: WasteReason::NodeLost };
    assert!(effects.contains(&Effect::Send { node: node(1), message }));
    let next = cluster.grant(0, 2);
    assert!(next > token);
    assert_eq!(cluster.report(1, token, 0), ReportOutcome::Stale, "the token is not the current one");
    assert_eq!(cluster.report(2, next, 0), ReportOutcome::Received);
}

#[test]
fn a_session_that_comes_back_in_time_goes_on() {
    let mut cluster = Cluster::prepared();
    let session = cluster.open(1, &[]);
    let token = cluster.grant(0, 1);
    cluster.apply(Event::Closed { node: node(1), session });
    let held = cluster.held(token, 0);
    cluster.open(1, &[held]);
    cluster.apply(Event::Closed { node: node(1), session });
    cluster.wait(cluster.settings.grace_ms);
    assert_eq!(cluster.report(1, token, 0), ReportOutcome::Received, "an older session's close is nothing");
}

#[test]
fn a_session_that_opens_late_does_not_replace_a_newer_one() {
    let mut cluster = Cluster::prepared();
    let session = cluster.open(1, &[]);
    let token = cluster.grant(0, 1);
    let capability = wattmill_work::Capability { numerics: "same".to_owned(), slots: 2 };
    let (node, held) = (node(1), Vec::new());
    let late = Event::Opened { node: node.clone(), session: session - 1, capability, held, settled: 0 };
    assert_eq!(cluster.apply(late), []);
    cluster.apply(Event::Closed { node, session: session - 1 });
    cluster.wait(cluster.settings.grace_ms);
    assert_eq!(cluster.report(1, token, 0), ReportOutcome::Received);
}

#[test]
fn a_node_that_comes_back_without_its_lease_loses_it() {
    let mut cluster = Cluster::prepared();
    cluster.grant(0, 1);
    let kept = cluster.grant(1, 1);
    let held = cluster.held(kept, 1);
    cluster.open(1, &[held]);
    assert_eq!(cluster.state(0), &ShardState::Pending);
    assert!(matches!(cluster.state(1), ShardState::Leased(_)));
    cluster.wait(cluster.settings.settle_ms);
    assert_eq!(cluster.work.job(&cluster.job).unwrap().requeues[&WasteReason::NodeRestarted], 1);
}

#[test]
fn a_lease_runs_out_unless_it_makes_progress() {
    let mut cluster = Cluster::prepared();
    let (stuck, moving) = (cluster.grant(0, 1), cluster.grant(1, 1));
    cluster.wait(20_000);
    cluster.renew(1, stuck, 0, Energy::ZERO, 0.0);
    cluster.renew(1, moving, 1, Energy::ZERO, 0.0);
    cluster.wait(9_999);
    assert!(matches!(cluster.state(0), ShardState::Leased(_)));
    cluster.wait(1);
    assert_eq!(cluster.state(0), &ShardState::Pending, "no progress, no extension");
    assert!(matches!(cluster.state(1), ShardState::Leased(_)));
    cluster.renew(1, moving, 1, Energy::ZERO, 0.0);
    cluster.wait(20_000);
    assert_eq!(cluster.state(1), &ShardState::Pending, "the same count twice is no progress");
}

/// A shard that hangs wherever it is given must not go round for ever: it ends in quarantine, with a reason.
#[test]
fn leases_that_run_out_count_as_failures() {
    let mut cluster = Cluster::prepared();
    for n in [1, 2, 1] {
        cluster.grant(0, n);
        cluster.wait(cluster.settings.lease_ms);
        let shard = &cluster.work.round(&cluster.job).unwrap().shards[0];
        assert_eq!(shard.avoid, Some(node(n)), "another node is tried next");
    }
    assert_eq!(cluster.state(0), &ShardState::Quarantined);
    let job = cluster.work.job(&cluster.job).unwrap();
    assert_eq!(job.requeues[&WasteReason::LeaseExpired], 3);
    let reason = job.reason.as_deref().unwrap();
    assert!(reason.contains("shard 0 is quarantined after 3 failures: the lease ran out"), "{reason}");
    assert!(reason.contains(&format!("node {} made no progress for 30000 ms", node(1))), "{reason}");
}

/// A node that has no worker keeps its session and takes nothing.
#[test]
fn a_node_without_slots_is_given_nothing() {
    let mut cluster = Cluster::prepared();
    let capability = wattmill_work::Capability { numerics: String::new(), slots: 0 };
    let (node, held) = (node(3), Vec::new());
    cluster.apply(Event::Opened { node, session: 99, capability, held, settled: 0 });
    assert_eq!(cluster.try_grant(0, 3), None);
}

#[test]
fn a_lease_can_be_handed_back_by_its_holder_only() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.apply(Event::HandedBack { node: node(2), token });
    assert!(matches!(cluster.state(0), ShardState::Leased(_)));
    cluster.apply(Event::HandedBack { node: node(1), token });
    assert_eq!(cluster.state(0), &ShardState::Pending);
    assert_eq!(cluster.report(1, token, 0), ReportOutcome::Stale);
}

#[test]
fn a_node_that_hands_work_back_gets_no_more_in_that_session() {
    let mut cluster = Cluster::prepared();
    let (back, other) = (cluster.grant(0, 1), cluster.grant(1, 1));
    cluster.apply(Event::HandedBack { node: node(1), token: back });
    assert_eq!(cluster.try_grant(0, 1), None, "it stops or is drained");
    assert!(cluster.work.connected().all(|(id, _)| *id != node(1)), "nothing is planned for it");
    assert_eq!(cluster.report(1, other, 1), ReportOutcome::Received, "what it still does counts");
    cluster.open(1, &[]);
    assert!(cluster.try_grant(0, 1).is_some(), "it came back");
}

#[test]
fn a_shard_is_given_once_and_a_node_takes_no_more_than_its_slots() {
    let mut cluster = Cluster::prepared();
    cluster.grant(0, 1);
    assert_eq!(cluster.try_grant(0, 2), None);
    cluster.grant(1, 1);
    let session = cluster.open(3, &[]);
    cluster.apply(Event::Closed { node: node(3), session });
    assert_eq!(cluster.try_grant(0, 3), None, "its session is closed");
    assert_eq!(cluster.try_grant(7, 2), None, "there is no such shard");
}

#[test]
fn a_report_of_a_committed_round_is_answered_committed() {
    let mut cluster = Cluster::prepared();
    let tokens = cluster.finish_round(1);
    let held = wattmill_work::HeldLease { token: tokens[0], job: cluster.job.clone(), round: 1, shard: 0 };
    let again = cluster.result(0);
    assert_eq!(cluster.report_result(1, held.clone(), again.clone()).0, ReportOutcome::Committed);
    cluster.finish_round(2);
    assert_eq!(
        cluster.report_result(1, held.clone(), again).0,
        ReportOutcome::Committed,
        "while its joules are not settled, an older round's token is known"
    );
    let effects = cluster.open_with(1, &[held], "same");
    let message = Message::Committed { tokens: vec![tokens[0]] };
    assert!(effects.contains(&Effect::Send { node: node(1), message }));
}
