//! Joules: each one is counted once, as committed or as waste.

use std::sync::Arc;

use wattmill_protocol::{Energy, JobId, Source, Token};
use wattmill_work::{
    AccountOutcome, Effect, Event, MAX_UNSETTLED, Message, Phase, Settlement, UnsettledLease, WasteReason,
};

use crate::cluster::{Cluster, counted, node};

#[test]
fn settlements_are_applied_once_and_in_order() {
    let mut cluster = Cluster::prepared();
    let tokens = cluster.finish_round(1);
    assert_eq!(cluster.settle(1, 2, tokens[1], counted(7)), 0, "the first is missing");
    assert_eq!(cluster.settle(1, 1, tokens[0], counted(5)), 1);
    assert_eq!(cluster.settle(1, 2, tokens[1], counted(7)), 2);
    assert_eq!(cluster.settle(1, 1, tokens[0], counted(5)), 2);
    assert_eq!(cluster.settle(1, 2, tokens[1], counted(7)), 2);
    let record = cluster.record();
    assert_eq!(record.nodes[&node(1)].committed, counted(12));
    assert!(record.wasted.is_empty());
}

/// A collector whose store was lost or restored, or that the node had nothing to do with before.
#[test]
fn a_node_that_settled_with_another_collector_goes_on_from_there() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    let held = cluster.held(token, 0);
    assert_eq!(cluster.settle(1, 58, token, counted(5)), 0, "as far as is known here, 57 are missing");
    let told = cluster.open_settled(1, 57);
    let settled = Message::Settled { sequence: 57 };
    assert!(told.contains(&Effect::Send { node: node(1), message: settled }), "{told:?}");
    assert!(cluster.stored().settled.contains(&(node(1), 57)), "durable");
    assert_eq!(cluster.settle(1, 58, held.token, counted(5)), 58);
    assert_eq!(cluster.record().wasted[&WasteReason::NodeRestarted], counted(5));
    cluster.open_settled(1, 3);
    assert_eq!(cluster.work.settled_through(&node(1)), 58, "never back");
}

/// Of another collector, or of nobody: the store could not hold it, and it may be given here yet.
#[test]
fn a_lease_that_was_never_given_settles_nothing() {
    let mut cluster = Cluster::prepared();
    assert_eq!(cluster.settle(1, 1, Token(u64::MAX), counted(5)), 1, "its number is used up");
    let given = cluster.grant(0, 1);
    assert_eq!(cluster.settle(1, 2, given.next().unwrap(), counted(7)), 2);
    assert!(cluster.stored().accounts.iter().all(|(token, _)| *token <= given));
    let next = cluster.grant(1, 1);
    cluster.apply(Event::HandedBack { node: node(1), token: next });
    cluster.settle(1, 3, next, counted(9));
    assert_eq!(cluster.record().wasted[&WasteReason::HandedBack], counted(9), "of the lease itself alone");
    let settlements = vec![Settlement {
        sequence: 4,
        token: given,
        job: "other-1".parse().unwrap(),
        energy: counted(1),
        unrecorded: false,
    }];
    cluster.apply(Event::Settled { node: node(1), settlements });
    assert_eq!(
        cluster.work.unsettled_energy(&cluster.job).0,
        Energy::ZERO,
        "it is another collector's lease"
    );
}

#[test]
fn amounts_that_cannot_be_are_no_overflow() {
    let mut cluster = Cluster::prepared();
    let tokens = [cluster.grant(0, 1), cluster.grant(1, 2)];
    for (n, token) in [1, 2].into_iter().zip(tokens) {
        cluster.renew(n, token, 1, counted(u64::MAX), f64::MAX);
        cluster.tick(None, u64::MAX);
    }
    cluster.open_settled(1, u64::MAX);
    assert_eq!(cluster.work.settled_through(&node(1)), 0, "no node ever settled so often");
}

#[test]
fn a_settlement_before_the_commit_waits_for_it() {
    let mut cluster = Cluster::prepared();
    let (early, late) = (cluster.grant(0, 1), cluster.grant(1, 1));
    cluster.report(1, early, 0);
    cluster.settle(1, 1, early, counted(5));
    assert_eq!(cluster.work.unsettled_energy(&cluster.job), (counted(5), Energy::ZERO));
    assert_eq!(cluster.record().nodes[&node(1)].committed, Energy::ZERO);
    cluster.report(1, late, 1);
    cluster.reduce();
    assert_eq!(cluster.record().nodes[&node(1)].committed, counted(5));
    assert_eq!(cluster.work.unsettled_energy(&cluster.job), (Energy::ZERO, Energy::ZERO));
}

#[test]
fn a_job_ends_as_soon_as_its_last_joule_is_known() {
    let mut cluster = Cluster::prepared();
    let prepared = cluster.record().last_tokens[0];
    let mut tokens = vec![prepared];
    tokens.extend(cluster.finish_round(1));
    tokens.extend(cluster.finish_round(1));
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(cluster.record().phase, Phase::Settling);
        cluster.settle(1, index as u64 + 1, *token, counted(1));
    }
    assert_eq!(cluster.record().phase, Phase::Finished);
    assert!(cluster.stored().accounts.is_empty());
}

#[test]
fn waste_is_estimated_and_corrected_by_the_ledger() {
    let mut cluster = Cluster::prepared();
    let session = cluster.open(1, &[]);
    let token = cluster.grant(0, 1);
    cluster.wait(1_000);
    cluster.renew(1, token, 1, counted(2_000_000), 50.0);
    cluster.apply(Event::Closed { node: node(1), session });
    cluster.wait(cluster.settings.grace_ms);
    let estimate = Energy::of(Source::Estimate, 50 * 3 * 1_000_000);
    let expected = counted(2_000_000) + estimate;
    assert_eq!(cluster.work.unsettled_energy(&cluster.job).1, expected, "50 W for the 3 s of grace");
    cluster.crash();
    assert_eq!(cluster.work.unsettled_energy(&cluster.job).1, expected, "an estimate survives");
    cluster.settle(1, 1, token, counted(2_500_000));
    assert_eq!(cluster.work.unsettled_energy(&cluster.job).1, Energy::ZERO);
    assert_eq!(cluster.record().wasted[&WasteReason::NodeLost], counted(2_500_000));
}

#[test]
fn waste_that_was_settled_before_its_outcome_survives_a_crash() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.settle(1, 1, token, counted(5));
    cluster.apply(Event::HandedBack { node: node(1), token });
    assert_eq!(cluster.record().wasted[&WasteReason::HandedBack], counted(5), "in the store too");
}

#[test]
fn joules_of_an_ended_job_are_still_counted() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.apply(Event::Cancelled { job: cluster.job.clone() });
    cluster.settle(1, 1, token, counted(5));
    assert_eq!(cluster.record().wasted[&WasteReason::JobEnded], counted(5));
    assert!(cluster.stored().accounts.iter().all(|(open, _)| *open != token));
}

#[test]
fn a_token_lost_with_its_collector_is_waste() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.crash();
    cluster.open(1, &[]);
    cluster.settle(1, 1, token, counted(5));
    assert_eq!(cluster.record().wasted[&WasteReason::CollectorRestarted], counted(5));
}

#[test]
fn another_nodes_lease_cannot_be_settled() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    assert_eq!(cluster.settle(2, 1, token, counted(9)), 1, "its number is used up");
    cluster.settle(1, 1, token, counted(5));
    cluster.apply(Event::HandedBack { node: node(1), token });
    assert_eq!(cluster.record().wasted[&WasteReason::HandedBack], counted(5));
}

#[test]
fn waste_is_known_until_its_round_is_over() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.apply(Event::HandedBack { node: node(1), token });
    cluster.settle(1, 1, token, counted(5));
    let kept = |cluster: &mut Cluster| {
        cluster.stored().accounts.into_iter().any(|(open, account)| {
            open == token && account.outcome == AccountOutcome::Wasted(WasteReason::HandedBack)
        })
    };
    assert!(kept(&mut cluster));
    assert_eq!(cluster.work.unsettled_energy(&cluster.job).1, Energy::ZERO, "it is counted already");
    cluster.finish_round(2);
    assert!(!kept(&mut cluster));
    assert_eq!(cluster.record().wasted[&WasteReason::HandedBack], counted(5), "once");
}

#[test]
fn a_job_answers_for_its_own_joules_and_its_share_of_the_idle_ones() {
    let mut cluster = Cluster::prepared();
    let alone = |cluster: &Cluster| cluster.work.job(&cluster.job).unwrap().cluster_microjoules;
    cluster.tick(None, 100);
    assert_eq!(alone(&cluster), 100, "all of them, while it is alone");
    let (token, other) = (cluster.grant(0, 1), "other-1".parse::<JobId>().unwrap());
    let spec = Arc::clone(&cluster.work.job(&cluster.job).unwrap().spec);
    cluster.apply(Event::Submitted { job: other.clone(), spec, key: String::new() });
    cluster.renew(1, token, 1, counted(30), 0.0);
    cluster.tick(None, 101);
    // 30 are its own; of the 71 that idled one job has 36, the other 35.
    assert_eq!(alone(&cluster), 100 + 30 + 35);
    assert_eq!(cluster.work.job(&other).unwrap().cluster_microjoules, 36);
    let record = cluster.work.job(&cluster.job).unwrap();
    assert_eq!(record.idle_microjoules(counted(30)), 135);
    cluster.crash();
    cluster.tick(None, 0);
    assert_eq!(cluster.work.job(&other).unwrap().cluster_microjoules, 0, "as of its last write");
}

/// The leases that a node is asked for.
fn asked(effects: &[Effect]) -> Vec<Token> {
    let leases = effects.iter().filter_map(|effect| match effect {
        Effect::Send { message: Message::Unsettled { leases }, .. } => Some(leases),
        _ => None,
    });
    leases.flatten().map(|UnsettledLease { token, .. }| *token).collect()
}

#[test]
fn a_node_is_asked_for_leases_that_it_does_not_name() {
    let mut cluster = Cluster::prepared();
    let prepared = cluster.record().last_tokens[0];
    let (lost, kept) = (cluster.grant(0, 1), cluster.grant(1, 1));
    cluster.renew(1, lost, 1, Energy::ZERO, 50.0);
    cluster.wait(1_000);
    let held = cluster.held(kept, 1);
    assert_eq!(asked(&cluster.open_with(1, std::slice::from_ref(&held), "same")), [prepared, lost]);
    let waste = |cluster: &Cluster| cluster.work.unsettled_energy(&cluster.job).1;
    assert_eq!(waste(&cluster), Energy::of(Source::Estimate, 50_000_000));
    assert_eq!(asked(&cluster.open_with(2, &[], "same")), [], "another node has nothing to do with it");

    cluster.settle_unrecorded(1, 1, lost);
    assert_eq!(waste(&cluster), Energy::ZERO, "the estimate is gone");
    let record = cluster.record();
    assert_eq!((record.wasted[&WasteReason::NodeRestarted], record.unrecorded), (Energy::ZERO, 1));
    cluster.settle_unrecorded(1, 1, lost);
    assert_eq!(cluster.record().unrecorded, 1, "counted once");
    assert_eq!(asked(&cluster.open_with(1, &[held], "same")), [prepared]);
}

#[test]
fn an_estimate_is_asked_for_after_a_restart_too() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    cluster.wait(cluster.settings.lease_ms);
    cluster.crash();
    assert!(asked(&cluster.open_with(1, &[], "same")).contains(&token));
}

#[test]
fn many_unsettled_leases_are_asked_for_in_messages_of_a_bounded_size() {
    let mut cluster = Cluster::prepared();
    for _ in 0..MAX_UNSETTLED {
        let token = cluster.grant(0, 1);
        cluster.apply(Event::HandedBack { node: node(1), token });
        cluster.open(1, &[]);
    }
    let effects = cluster.open_with(1, &[], "same");
    let messages =
        effects.iter().filter(|e| matches!(e, Effect::Send { message: Message::Unsettled { .. }, .. }));
    assert_eq!(messages.count(), 2);
    assert_eq!(asked(&effects).len(), MAX_UNSETTLED + 1, "the preparation's too");
}
