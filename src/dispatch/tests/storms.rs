//! Bad times: for a while every request, or every record of each, fails in one and the same way.
//!
//! Place: the histories of `tests.rs` without other faults; one storm for each class of errors and each level. Checked by
//! name: *NOTHING-LOST* (nothing is given up, all arrives when it is over), *KEY-ORDER*, *EXACT-ACCOUNT*,
//! *DUPLICATES-EXPLAINED* (only what may have been stored counts as sent again); that tries are gentle, that a person is told
//! why nothing moves, and no longer than that.

use super::*;

const CLASSES: [(ErrorClass, &str); 5] = [
    (ErrorClass::Throttle, "LimitExceededException"),
    (ErrorClass::Transient, "connect"),
    (ErrorClass::UnknownOutcome, "HTTP 503"),
    (ErrorClass::Configuration, "KMSDisabledException"),
    (ErrorClass::Poison, "InvalidArgumentException"),
];

fn storm(seed: u64, aggregate: Aggregate, class: ErrorClass, code: &str, by_record: bool) {
    let name = format!("seed {seed}, {code}, by record: {by_record}");
    let mut history = History::new(seed, aggregate);
    history.faults = false;
    let mut running = history.start(Position(0));
    for _ in 0..10 {
        history.write(&running);
        history.step(&mut running);
    }
    history.storm = Some((PutError { class, code: code.into(), message: "by the test".into() }, by_record));
    while !running.under_way.is_empty() {
        history.step(&mut running);
    }
    for _ in 0..5 {
        history.write(&running);
    }
    let before = history.answered;
    let begun = history.now();
    while history.now() - begun < Duration::from_secs(600) {
        history.step(&mut running);
    }
    let account = *running.metrics.account.lock().expect("not poisoned");
    assert_eq!((account.dead, account.dropped, account.expired), (0, 0, 0), "{name}: NOTHING-LOST");
    let duplicated = counted(&running.metrics);
    assert_eq!(duplicated > 0, class == ErrorClass::UnknownOutcome, "{name}: DUPLICATES-EXPLAINED");
    let told = running.metrics.paused_reason.lock().expect("not poisoned").clone();
    let is_told =
        by_record && matches!(class, ErrorClass::Transient | ErrorClass::UnknownOutcome) || class == ErrorClass::Throttle;
    assert!(is_told || told.contains(code), "{name}: {told:?}");
    // Waits are 5 s on average for each shard, or 15 s for the stream; before that a few quick tries.
    let tries = history.answered - before;
    assert!((10..1_800).contains(&tries), "{name}: {tries} requests in 10 minutes");
    history.storm = None;
    history.finish(running);
}

fn all(aggregate: Aggregate) {
    for (n, (class, code)) in CLASSES.into_iter().enumerate() {
        for by_record in [false, true] {
            storm(n as u64, aggregate, class, code, by_record);
        }
    }
}

#[test]
fn a_storm_of_any_class_at_either_level_loses_nothing_is_told_and_is_over_when_it_is_over_with_single_events() {
    all(Aggregate::Off);
}

#[test]
fn a_storm_of_any_class_at_either_level_loses_nothing_is_told_and_is_over_when_it_is_over_with_aggregates() {
    all(Aggregate::Kpl);
}

#[test]
fn while_the_shards_may_not_be_listed_events_arrive_in_order_one_a_record_and_aggregated_once_they_may() {
    for seed in 0..20 {
        for (aggregate, rounds) in [(Aggregate::Kpl, 120), (Aggregate::Kpl, 60), (Aggregate::Off, 120)] {
            let mut history = History::new(seed, aggregate);
            history.list_denied_rounds = rounds;
            history.run();
        }
    }
}

#[test]
fn without_a_listing_no_aggregate_leaves_and_all_is_delivered() {
    let mut history = History::new(2, Aggregate::Kpl);
    (history.faults, history.list_denied) = (false, true);
    let mut running = history.start(Position(0));
    for _ in 0..20 {
        history.write(&running);
    }
    for _ in 0..20_000 {
        if running.dispatcher.is_settled() {
            break;
        }
        history.step(&mut running);
    }
    let records: usize = history.model.stored.values().map(Vec::len).sum();
    assert_eq!(records as u64, history.accepted.values().sum::<u64>(), "one event a record");
    assert_eq!(*running.metrics.paused_reason.lock().expect("not poisoned"), "", "delivery is not paused");
    history.finish(running);
}
