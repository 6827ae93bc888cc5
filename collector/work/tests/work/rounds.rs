//! Jobs and rounds: what is committed, and how a job ends.

use wattmill_protocol::{Hash, Token};
use wattmill_work::{
    Effect, Event, Message, Phase, Prepared, Reduction, ReportOutcome, ShardResult, ShardState, Task,
    WasteReason,
};

use crate::cluster::{Cluster, counted, node};

#[test]
fn a_job_runs_from_its_first_round_to_its_last_joule() {
    let mut cluster = Cluster::prepared();
    assert_eq!(cluster.record().phase, Phase::Training);
    cluster.finish_round(1);
    let tokens = cluster.finish_round(2);
    let record = cluster.record();
    assert_eq!((record.phase, record.round, record.samples), (Phase::Settling, 3, 10));
    assert_eq!(record.last_tokens, tokens);
    assert_eq!(record.nodes[&node(1)].samples, 8);
    cluster.wait(cluster.settings.settle_ms - 1);
    assert_eq!(cluster.record().phase, Phase::Settling, "the last joules are awaited");
    let effects = cluster.wait(1);
    assert_eq!(cluster.record().phase, Phase::Finished);
    assert!(effects.contains(&Effect::Ended { job: cluster.job.clone() }));
}

#[test]
fn the_last_shard_of_an_epoch_is_what_is_left() {
    let mut cluster = Cluster::prepared();
    let counts = |cluster: &Cluster| -> Vec<u64> {
        cluster.work.round(&cluster.job).unwrap().shards.iter().map(|s| s.task.samples()).collect()
    };
    assert_eq!(counts(&cluster), [4, 4]);
    cluster.finish_round(1);
    assert_eq!(counts(&cluster), [2]);
    assert!(matches!(cluster.task(0), Task::Gradient { first: 8, count: 2, .. }));
}

#[test]
fn a_round_is_reduced_once_when_its_last_result_is_here() {
    let mut cluster = Cluster::prepared();
    let (first, second) = (cluster.grant(0, 1), cluster.grant(1, 2));
    let reductions = |effects: Vec<Effect>| -> Vec<Effect> {
        effects.into_iter().filter(|e| matches!(e, Effect::Reduce { .. })).collect()
    };
    let held = cluster.held(second, 1);
    let (_, effects) = cluster.report_result(2, held.clone(), cluster.result(1));
    assert_eq!(reductions(effects), []);
    let (_, effects) = cluster.report_result(1, cluster.held(first, 0), cluster.result(0));
    let [Effect::Reduce { blobs, samples, step, .. }] = &reductions(effects)[..] else { panic!("one") };
    assert_eq!(blobs[..], [Hash::of(&[0]), Hash::of(&[1])], "in shard order, not in order of arrival");
    assert_eq!((*samples, *step), (8, (1, 2)));
    let (outcome, effects) = cluster.report_result(2, held, cluster.result(1));
    assert_eq!(outcome, ReportOutcome::Received, "a repeated report is answered as the first");
    assert_eq!(reductions(effects), []);
    let round = cluster.work.round(&cluster.job).unwrap().number;
    cluster.reduce();
    let again = Ok(Reduction { parameters: Hash::of(b"other"), optimizer: None });
    cluster.apply(Event::Reduced { job: cluster.job.clone(), round, reduction: again });
    assert_ne!(cluster.record().parameters, Some(Hash::of(b"other")), "a round is committed once");
}

#[test]
fn a_failed_preparation_fails_the_job() {
    let mut cluster = Cluster::new();
    cluster.open(1, &[]);
    let token = cluster.grant(0, 1);
    assert_eq!(cluster.fail(1, token, 0, true), ReportOutcome::Failed);
    let record = cluster.record();
    assert_eq!((record.phase, record.reason.as_deref()), (Phase::Failed, Some("no memory")));
    assert!(record.bad_input, "its user must mend it");
    assert!(cluster.work.round(&cluster.job).is_none());
}

#[test]
fn a_shard_that_fails_three_times_is_quarantined_until_a_restart() {
    let mut cluster = Cluster::prepared();
    for _ in 0..3 {
        assert_eq!(cluster.state(0), &ShardState::Pending);
        let token = cluster.grant(0, 1);
        assert_eq!(cluster.fail(1, token, 0, false), ReportOutcome::Failed);
    }
    assert_eq!(cluster.state(0), &ShardState::Quarantined);
    assert_eq!(cluster.try_grant(0, 2), None);
    assert!(cluster.record().reason.unwrap().contains("shard 0 is quarantined after 3 failures: no memory"));
    assert_eq!(cluster.record().requeues[&WasteReason::Failed], 3);
    cluster.crash();
    cluster.open(1, &[]);
    cluster.wait(cluster.settings.grace_ms);
    cluster.finish_round(1);
    assert_eq!(cluster.record().reason, None, "what was blocked goes on");
}

#[test]
fn a_preparation_that_fails_by_itself_is_not_the_datas_fault() {
    let mut cluster = Cluster::new();
    cluster.open(1, &[]);
    for _ in 0..cluster.settings.max_failures {
        let token = cluster.grant(0, 1);
        cluster.fail(1, token, 0, false);
    }
    let record = cluster.record();
    assert_eq!((record.phase, record.bad_input), (Phase::Failed, false));
}

#[test]
fn a_quarantined_shard_is_tried_anew_once_waived() {
    let mut cluster = Cluster::prepared();
    for shard in [0, 1] {
        for _ in 0..3 {
            let token = cluster.grant(shard, 1);
            cluster.fail(1, token, shard, false);
        }
    }
    let (job, wrong) = (cluster.job.clone(), Some(7));
    cluster.apply(Event::Waived { job: job.clone(), shard: wrong });
    cluster.apply(Event::Waived { job: job.clone(), shard: Some(1) });
    assert_eq!((cluster.state(0), cluster.state(1)), (&ShardState::Quarantined, &ShardState::Pending));
    assert!(cluster.record().reason.is_some(), "the other one is still in the way");
    let token = cluster.grant(1, 1);
    cluster.fail(1, token, 1, false);
    assert_eq!(cluster.state(1), &ShardState::Pending, "failures count anew");
    cluster.apply(Event::Waived { job, shard: None });
    assert_eq!(cluster.record().reason, None);
    cluster.finish_round(1);
    assert_eq!(cluster.record().round, 2);
}

#[test]
fn a_job_that_is_trained_is_not_cancelled() {
    let mut cluster = Cluster::prepared();
    cluster.finish_round(1);
    cluster.finish_round(1);
    let job = cluster.job.clone();
    cluster.apply(Event::Cancelled { job });
    assert_eq!(cluster.record().phase, Phase::Settling);
    cluster.wait(cluster.settings.settle_ms);
    assert_eq!(cluster.record().phase, Phase::Finished);
}

#[test]
fn shards_of_a_job_that_ended_are_not_given_anew() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    let job = cluster.job.clone();
    cluster.apply(Event::Cancelled { job });
    cluster.settle(1, 1, token, counted(5));
    let record = cluster.record();
    assert_eq!((record.phase, record.requeues.len()), (Phase::Cancelled, 0));
    assert_eq!(record.wasted[&WasteReason::JobEnded], counted(5));
}

#[test]
fn time_without_peaks_does_not_take_eta_away() {
    let mut cluster = Cluster::prepared();
    let able = |cluster: &Cluster| cluster.work.job(&cluster.job).unwrap().able_flops();
    let tick = |cluster: &mut Cluster, ms, peak| {
        cluster.pass(ms);
        cluster.tick(peak, 0);
    };
    tick(&mut cluster, 1_000, None);
    assert_eq!(able(&cluster), None, "nothing is guessed");
    tick(&mut cluster, 1_000, Some(10.0));
    // The first tick of all only sets the clock.
    assert_eq!(able(&cluster), Some(10.0));
    tick(&mut cluster, 2_000, None);
    assert_eq!(able(&cluster), Some(30.0), "the last known");
    tick(&mut cluster, 60_000, None);
    assert_eq!(able(&cluster), None, "known no more");
    tick(&mut cluster, 1_000, Some(20.0));
    assert_eq!(able(&cluster), Some(10.0 + 63.0 * 20.0));
}

#[test]
fn a_result_that_does_not_fit_its_task_is_a_failure() {
    let mut cluster = Cluster::prepared();
    let token = cluster.grant(0, 1);
    let held = cluster.held(token, 0);
    let wrong = cluster.result(0).map(|result| match result {
        ShardResult::Gradient { gradient, loss_sum, correct, samples } => {
            ShardResult::Gradient { gradient, loss_sum, correct, samples: samples + 1 }
        }
        other => other,
    });
    assert_eq!(cluster.report_result(1, held, wrong).0, ReportOutcome::Failed);
    assert_eq!(cluster.state(0), &ShardState::Pending);
}

#[test]
fn a_cancelled_job_revokes_what_runs_and_what_waits() {
    let mut cluster = Cluster::prepared();
    let (running, received) = (cluster.grant(0, 1), cluster.grant(1, 2));
    cluster.report(2, received, 1);
    let held = cluster.held(running, 0);
    let effects = cluster.apply(Event::Cancelled { job: cluster.job.clone() });
    for (n, token) in [(1, running), (2, received)] {
        let message = Message::Revoke { token, reason: WasteReason::JobEnded };
        assert!(effects.contains(&Effect::Send { node: node(n), message }));
    }
    assert_eq!(cluster.record().phase, Phase::Cancelled);
    let late = Err(wattmill_work::Failure { bad_input: false, message: String::new() });
    assert_eq!(cluster.report_result(1, held, late).0, ReportOutcome::Stale);
    cluster.crash();
    assert_eq!(cluster.record().phase, Phase::Cancelled);
    assert_eq!(cluster.work.leases().count(), 0);
}

#[test]
fn only_nodes_that_compute_alike_train_a_pinned_job() {
    let mut cluster = Cluster::prepared();
    cluster.open_with(3, &[], "other");
    assert_eq!(cluster.try_grant(0, 3), None);
    assert!(cluster.try_grant(0, 2).is_some());
}

#[test]
fn what_a_reduction_writes_is_in_use_before_it_is_written() {
    let mut cluster = Cluster::prepared();
    let (job, reduction) =
        (cluster.job.clone(), Reduction { parameters: Hash::of(b"next"), optimizer: None });
    let computed = |round| Event::Computed { job: job.clone(), round, reduction };
    let (first, second) = (cluster.grant(0, 1), cluster.grant(1, 2));
    cluster.report(1, first, 0);
    cluster.apply(computed(1));
    assert_eq!(cluster.work.round(&job).unwrap().outcome, None, "nothing is reduced yet");
    cluster.report(2, second, 1);
    cluster.apply(computed(0));
    assert!(!cluster.work.blobs_in_use().contains(&reduction.parameters), "another round's");
    cluster.apply(computed(1));
    assert!(cluster.work.blobs_in_use().contains(&reduction.parameters));

    let retires = |effects: &[Effect]| {
        let retired = effects.iter().filter_map(|effect| match effect {
            Effect::Retire { blobs } => Some(blobs),
            _ => None,
        });
        retired.flatten().any(|blob| *blob == reduction.parameters)
    };
    assert!(retires(&cluster.apply(Event::Cancelled { job: job.clone() })));
    let late = cluster.apply(Event::Reduced { job: job.clone(), round: 1, reduction: Ok(reduction) });
    assert!(retires(&late), "it was written after the job's end");
    assert!(!cluster.work.blobs_in_use().contains(&reduction.parameters));
}

/// Before its shards are laid out: there would be as many as a node says.
#[test]
fn data_that_cannot_be_ends_the_job() {
    let most = u64::MAX;
    for (training_rows, held_out_rows) in [(0, 1), (10, most), (most, 0), (most, most)] {
        let mut cluster = Cluster::new();
        cluster.open(1, &[]);
        let token = cluster.grant(0, 1);
        let prepared = Prepared { training_rows, held_out_rows, data_hash: Hash::of(b"data") };
        let result = ShardResult::Prepared { prepared, parameters: Hash::of(b"first") };
        cluster.report_result(1, cluster.held(token, 0), Ok(result));
        cluster.reduce();
        let record = cluster.record();
        assert_eq!((record.phase, record.bad_input), (Phase::Failed, true), "{prepared:?}");
        assert!(cluster.work.total_rounds(&record) >= 1);
    }
}

#[test]
fn a_node_is_told_of_all_its_committed_shards_at_once() {
    let mut cluster = Cluster::prepared();
    let tokens: Vec<Token> = (0..2).map(|shard| cluster.grant(shard, 1)).collect();
    for (shard, token) in (0..).zip(&tokens) {
        assert_eq!(cluster.report(1, *token, shard), ReportOutcome::Received);
    }
    let told = |effect: Effect| match effect {
        Effect::Send { message: Message::Committed { tokens }, .. } => Some(tokens),
        _ => None,
    };
    assert_eq!(cluster.reduce().into_iter().filter_map(told).collect::<Vec<_>>(), [tokens]);
}

/// The optimizer's state is larger than the model, and of no use without a next round.
#[test]
fn an_ended_job_keeps_its_model_alone() {
    let mut cluster = Cluster::prepared();
    let (parameters, optimizer) = (Hash::of(b"parameters"), Hash::of(b"optimizer"));
    for (shard, n) in [(0, 1), (1, 2)] {
        let token = cluster.grant(shard, n);
        cluster.report(n, token, shard);
    }
    let reduction = Ok(Reduction { parameters, optimizer: Some(optimizer) });
    cluster.apply(Event::Reduced { job: cluster.job.clone(), round: 1, reduction });
    assert!(cluster.work.blobs_in_training().contains(&parameters));
    let effects = cluster.apply(Event::Cancelled { job: cluster.job.clone() });
    assert!(effects.contains(&Effect::Retire { blobs: vec![optimizer] }), "{effects:?}");
    assert_eq!(cluster.work.blobs_in_use(), [parameters].into());
    assert!(cluster.work.blobs_in_training().is_empty());
    let record = cluster.record();
    assert_eq!((record.parameters, record.optimizer), (Some(parameters), None));
}
