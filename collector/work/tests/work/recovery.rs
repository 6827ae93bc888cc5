//! The collector dies: what was committed stays, what nodes hold is taken up, and no token comes back.

use wattmill_work::{Effect, Event, Message, ReportOutcome, ShardState, WasteReason};

use crate::cluster::{Cluster, counted, node};

#[test]
fn held_leases_are_taken_up() {
    let mut cluster = Cluster::prepared();
    let (running, done) = (cluster.grant(0, 1), cluster.grant(1, 2));
    assert_eq!(cluster.report(2, done, 1), ReportOutcome::Received);
    cluster.crash();
    assert_eq!(cluster.state(1), &ShardState::Pending, "a result that was not committed is forgotten");
    assert_eq!(cluster.try_grant(0, 1), None, "nodes first say what they hold");
    let held = [cluster.held(running, 0), cluster.held(done, 1)];
    cluster.open(1, &held[..1]);
    cluster.open(2, &held[1..]);
    assert!(matches!(cluster.state(0), ShardState::Leased(lease) if lease.token == running));
    assert_eq!(cluster.report(2, done, 1), ReportOutcome::Received);
    assert_eq!(cluster.report(1, running, 0), ReportOutcome::Received);
    cluster.reduce();
    assert_eq!(cluster.record().last_tokens, [running, done]);
}

#[test]
fn shards_that_nobody_holds_are_given_after_the_grace() {
    let mut cluster = Cluster::prepared();
    let before = cluster.grant(0, 1);
    cluster.crash();
    cluster.open(1, &[]);
    cluster.wait(cluster.settings.grace_ms - 1);
    assert_eq!(cluster.try_grant(0, 1), None);
    cluster.wait(1);
    let after = cluster.grant(0, 1);
    assert!(after > before && after.generation() == before.generation() + 1);
}

#[test]
fn a_lease_that_comes_back_too_late_is_revoked() {
    let mut cluster = Cluster::prepared();
    let late = cluster.grant(0, 1);
    let held = cluster.held(late, 0);
    cluster.crash();
    cluster.open(2, &[]);
    cluster.wait(cluster.settings.grace_ms);
    let taken = cluster.grant(0, 2);
    let effects = cluster.open_with(1, std::slice::from_ref(&held), "same");
    let message = Message::Revoke { token: late, reason: WasteReason::CollectorRestarted };
    assert!(effects.contains(&Effect::Send { node: node(1), message }));
    assert_eq!(cluster.report(1, late, 0), ReportOutcome::Stale);
    cluster.apply(Event::HandedBack { node: node(2), token: taken });
    cluster.open(1, &[held]);
    assert_eq!(cluster.state(0), &ShardState::Pending, "a greater token was given");
}

#[test]
fn a_lease_of_an_older_collector_is_void_once_another_gave_leases() {
    let mut cluster = Cluster::prepared();
    let oldest = cluster.grant(0, 1);
    let held = cluster.held(oldest, 0);
    cluster.crash();
    cluster.open(2, &[]);
    cluster.wait(cluster.settings.grace_ms);
    let newer = cluster.grant(0, 2);
    cluster.crash();
    cluster.open(1, &[held]);
    assert_eq!(cluster.state(0), &ShardState::Pending);
    let held = cluster.held(newer, 0);
    cluster.open(2, &[held]);
    assert!(matches!(cluster.state(0), ShardState::Leased(lease) if lease.token == newer));
}

#[test]
fn settled_waste_is_not_taken_up_again() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    let held = cluster.held(token, 0);
    cluster.wait(cluster.settings.lease_ms);
    cluster.settle(1, 1, token, counted(5));
    cluster.crash();
    cluster.open(1, &[held]);
    assert_eq!(cluster.state(0), &ShardState::Pending);
    assert_eq!(cluster.report(1, token, 0), ReportOutcome::Stale);
    assert_eq!(cluster.record().wasted[&WasteReason::LeaseExpired], counted(5));
}

#[test]
fn a_received_result_outlives_its_node() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    let held = cluster.held(token, 0);
    cluster.crash();
    cluster.open(1, &[held]);
    cluster.open(2, &[]);
    assert_eq!(cluster.report(1, token, 0), ReportOutcome::Received);
    cluster.settle(1, 1, token, counted(5));
    cluster.open(1, &[]);
    cluster.wait(cluster.settings.grace_ms);
    let other = cluster.grant(1, 2);
    cluster.report(2, other, 1);
    cluster.reduce();
    assert_eq!(cluster.record().nodes[&node(1)].committed, counted(5), "its work counts");
    assert!(cluster.record().wasted.is_empty());
}

#[test]
fn an_orphan_is_waste_when_its_node_comes_back_without_it() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.report(1, token, 0);
    cluster.settle(1, 1, token, counted(5));
    cluster.crash();
    cluster.open(1, &[]);
    assert_eq!(cluster.record().wasted[&WasteReason::CollectorRestarted], counted(5), "in the store too");
}

#[test]
fn a_preparation_that_was_not_committed_pins_nothing() {
    let mut cluster = Cluster::new();
    cluster.open_with(1, &[], "rare");
    let failed = cluster.grant(0, 1);
    cluster.fail(1, failed, 0, false);
    let token = cluster.grant(0, 1);
    cluster.report(1, token, 0);
    cluster.settle(1, 1, failed, counted(5));
    assert_eq!(cluster.record().numerics.as_deref(), Some("rare"), "written with the waste");
    cluster.crash();
    cluster.open(2, &[]);
    cluster.wait(cluster.settings.grace_ms);
    let token = cluster.grant(0, 2);
    cluster.report(2, token, 0);
    cluster.reduce();
    assert_eq!(cluster.record().numerics.as_deref(), Some("same"));
}

#[test]
fn a_settling_job_is_settled_after_a_restart() {
    let mut cluster = Cluster::prepared();
    cluster.finish_round(1);
    cluster.finish_round(1);
    cluster.crash();
    assert!(cluster.work.round(&cluster.job).is_none());
    cluster.wait(cluster.settings.settle_ms);
    assert_eq!(cluster.record().phase, wattmill_work::Phase::Finished);
}

#[test]
fn a_submission_is_known_by_its_key() {
    let mut cluster = Cluster::new();
    cluster.crash();
    assert_eq!(cluster.work.job_of_key("key").map(|job| job.id.clone()), Some(cluster.job.clone()));
    assert!(cluster.work.job_of_key("").is_none());
}
