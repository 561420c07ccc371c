//! Streams that ignore keys, that are switched to and fro, and that do not say: by the histories of `tests.rs`.
//!
//! Checked besides what every history is checked for: no aggregate leaves before the mode is known or while keys are ignored,
//! and the questions stay few.

use super::*;

fn denied() -> PutError {
    PutError {
        class: ErrorClass::Configuration,
        code: "AccessDeniedException".into(),
        message: "not authorized to perform kinesis:DescribeStreamSummary".into(),
    }
}

fn throttled() -> PutError {
    PutError { class: ErrorClass::Throttle, code: "LimitExceededException".into(), message: String::new() }
}

/// Records that are aggregates, and all.
fn stored(history: &History) -> (usize, usize) {
    let all = || history.model.stored.values().flatten();
    (all().filter(|entry| entry.data.starts_with(&MAGIC)).count(), all().count())
}

fn mode(running: &Running) -> crate::metrics::ModeStatus {
    running.dispatcher.publish_mode(running.dispatcher.host.clock.monotonic());
    running.metrics.mode.lock().expect("not poisoned").clone()
}

/// Some events, and time for them to arrive.
fn some(history: &mut History, running: &mut Running) {
    for _ in 0..20 {
        history.write(running);
        for _ in 0..4 {
            history.step(running);
        }
    }
}

fn calm(seed: u64, aggregate: Aggregate) -> History {
    let mut history = History::new(seed, aggregate);
    history.faults = false;
    history.keys = 30;
    history.model = Model::new(4);
    history
}

fn later(history: &History, seconds: u64) {
    history.clock.0.fetch_add(seconds * 1000, Ordering::Relaxed);
}

#[test]
fn while_a_stream_is_switched_to_auto_and_back_through_faults_nothing_is_lost_and_no_consumer_drops_an_event() {
    for seed in seeds() {
        let aggregate = if seed % 3 == 0 { Aggregate::Off } else { Aggregate::Kpl };
        let mut history = History::new(seed, aggregate);
        history.ordered = false;
        let mut running = history.start(Position(0));
        for _ in 0..120 {
            history.write(&running);
            for _ in 0..history.random.below(5) {
                history.step(&mut running);
            }
            match history.random.below(100) {
                0..6 => history.model.auto = history.model.auto.is_none().then_some(seed << 32),
                6..9 => history.model.refuses = history.model.refuses.is_none().then(denied),
                9..12 => later(&history, 200),
                12..14 => {
                    let high = history.crash(running);
                    running = history.start(high);
                }
                _ => {}
            }
        }
        history.finish(running);
    }
}

#[test]
fn until_the_mode_can_be_read_single_events_go_out_in_order_and_aggregates_from_then_on() {
    for seed in seeds().take(20) {
        let mut history = calm(seed, Aggregate::Kpl);
        history.model.refuses = Some(denied());
        let mut running = history.start(Position(0));
        some(&mut history, &mut running);
        let (aggregates, records) = stored(&history);
        assert!(aggregates == 0 && records > 0, "seed {seed}: {aggregates} of {records}");
        let told = mode(&running);
        assert!(told.is_fallback && told.reason.contains("allow kinesis:DescribeStreamSummary"), "{}", told.reason);
        history.model.refuses = None;
        later(&history, 400);
        some(&mut history, &mut running);
        assert!(stored(&history).0 > 0, "seed {seed}");
        assert_eq!((mode(&running).aggregate, mode(&running).reason.as_str()), ("kpl", ""));
        history.finish(running);
    }
}

#[test]
fn a_mode_that_is_vouched_for_is_not_waited_for_but_auto_is_believed_all_the_same() {
    let mut history = calm(3, Aggregate::Kpl);
    (history.options.keys_vouched, history.model.refuses) = (true, Some(denied()));
    let mut running = history.start(Position(0));
    some(&mut history, &mut running);
    assert!(stored(&history).0 > 0);
    (history.model.refuses, history.model.auto) = (None, Some(0));
    history.ordered = false;
    later(&history, 400);
    some(&mut history, &mut running);
    assert_eq!(mode(&running).aggregate, "off");
    history.finish(running);
}

#[test]
fn a_stream_that_says_auto_gets_no_aggregate_and_the_user_hears_what_that_costs() {
    let mut history = calm(1, Aggregate::Kpl);
    (history.model.auto, history.ordered) = (Some(0), false);
    let mut running = history.start(Position(0));
    some(&mut history, &mut running);
    let (aggregates, records) = stored(&history);
    assert!(aggregates == 0 && records > 100, "{aggregates} of {records}");
    let told = mode(&running);
    assert_eq!((told.keys, told.aggregate, told.is_fallback), ("ignored", "off", true));
    for part in ["record distribution is AUTO", "consumers drop aggregates", "order = \"key\" cannot be kept"] {
        assert!(told.reason.contains(part), "{}", told.reason);
    }
    assert!(history.asked.0 <= 3, "{} listings", history.asked.0);
    history.finish(running);
}

#[test]
fn a_switch_to_auto_is_noticed_by_where_records_land_before_kinesis_is_asked_again() {
    for aggregate in [Aggregate::Kpl, Aggregate::Off] {
        let mut history = calm(2, aggregate);
        let mut running = history.start(Position(0));
        some(&mut history, &mut running);
        assert_eq!(mode(&running).keys, "decide");
        // Kinesis goes on saying what it said.
        history.model.refuses = Some(denied());
        (history.model.auto, history.ordered) = (Some(0), false);
        let listings = history.asked.0;
        some(&mut history, &mut running);
        let told = mode(&running);
        assert_eq!((told.keys, told.aggregate), ("ignored", "off"), "{}", told.reason);
        assert!(told.reason.contains("records land in shards"), "{}", told.reason);
        // Each misprediction by a fresh map asks once; none does when enough is known.
        assert!(history.asked.0 - listings <= 6, "{} listings", history.asked.0 - listings);
        let before = stored(&history).0;
        some(&mut history, &mut running);
        assert_eq!(stored(&history).0, before, "no aggregate more");
        // And back: nothing lands strangely any more, and after a while that is believed.
        (history.model.auto, history.model.refuses) = (None, None);
        later(&history, 400);
        some(&mut history, &mut running);
        later(&history, 400);
        some(&mut history, &mut running);
        assert_eq!((mode(&running).keys, mode(&running).aggregate), ("decide", aggregate.name()));
        history.finish(running);
    }
}

/// A history in which nobody is asked before all is over.
fn unasked(seed: u64, shards: u32) -> (History, Running) {
    let mut history = calm(seed, Aggregate::Kpl);
    history.model = Model::new(shards);
    history.options.ask_mode_within = Duration::from_secs(100_000_000);
    let mut running = history.start(Position(0));
    // The first number of seed 0 is 0, which would be at once.
    history.host.entropy.next_u64();
    running.dispatcher.take_time(Duration::from_secs(1));
    (history, running)
}

#[test]
fn before_kinesis_is_asked_landings_prove_that_keys_decide_and_aggregates_leave_from_then_on() {
    for seed in seeds().take(5) {
        let (mut history, mut running) = unasked(seed, 2 + seed as u32 % 5);
        assert_eq!((mode(&running).keys, mode(&running).is_fallback, mode(&running).reason.as_str()), ("unknown", false, ""));
        some(&mut history, &mut running);
        let singles = history.model.stored.values().flatten().take_while(|entry| !entry.data.starts_with(&MAGIC)).count();
        assert!(singles > 0, "seed {seed}: single events come first");
        for _ in 0..20 {
            some(&mut history, &mut running);
        }
        assert!(stored(&history).0 > 0, "seed {seed}: {:?}", mode(&running));
        assert_eq!((mode(&running).keys, mode(&running).aggregate, history.asked.1), ("decide", "kpl", 0));
        history.finish(running);
    }
}

#[test]
fn no_landing_proves_anything_on_a_stream_that_ignores_keys_be_its_placing_even_or_a_shard_for_each_request() {
    for seed in seeds().take(5) {
        for sticky in [false, true] {
            let (mut history, mut running) = unasked(seed, 2 + seed as u32 % 3);
            // A request for one shard may well lie in it.
            history.keys = 1 + seed % 3;
            (history.model.auto, history.model.sticky, history.ordered) = (Some(seed << 32), sticky, false);
            // Strange landings bring the question early; it stays open.
            history.model.refuses = Some(throttled());
            for _ in 0..20 {
                some(&mut history, &mut running);
                assert!(!running.dispatcher.mode.proof.holds(history.now()), "seed {seed}");
            }
            let (aggregates, records) = stored(&history);
            assert!(aggregates == 0 && records > 300, "seed {seed}: {aggregates} of {records}");
            history.finish(running);
        }
    }
}

#[test]
fn with_one_shard_open_aggregates_leave_at_once_and_after_its_split_only_once_something_is_known() {
    let (mut history, mut running) = unasked(3, 1);
    some(&mut history, &mut running);
    let whole = stored(&history);
    assert!(whole.0 > 0);
    let singles = history.model.stored.values().flatten().filter(|entry| !entry.data.starts_with(&MAGIC));
    let keys: BTreeSet<&str> = singles.map(|entry| entry.partition_key.as_str()).collect();
    assert!(keys.len() < 15, "a record of one event is sent plain: {}", keys.len());
    history.model.split(0);
    (history.model.auto, history.ordered) = (Some(0), false);
    some(&mut history, &mut running);
    let before = stored(&history).0;
    some(&mut history, &mut running);
    assert_eq!(stored(&history).0, before, "no aggregate more");
    assert_ne!(mode(&running).keys, "decide");
    history.finish(running);

    // Whoever is not told because it is refused goes by neither.
    let (mut history, mut running) = unasked(3, 1);
    history.model.refuses = Some(denied());
    running.dispatcher.on_summary(Err(denied()), history.now());
    some(&mut history, &mut running);
    assert_eq!(stored(&history).0, 0);
    history.finish(running);
}

#[test]
fn a_refusal_ends_what_landings_prove_and_so_does_a_switch_to_auto_within_a_few_records() {
    let (mut history, mut running) = unasked(4, 4);
    let proven = |history: &mut History, running: &mut Running| {
        for _ in 0..10 {
            some(history, running);
        }
        assert_eq!(mode(running).aggregate, "kpl");
    };
    proven(&mut history, &mut running);
    running.dispatcher.on_summary(Err(throttled()), history.now());
    assert_eq!(mode(&running).aggregate, "kpl", "the question is still open");
    history.model.refuses = Some(denied());
    running.dispatcher.on_summary(Err(denied()), history.now());
    assert_eq!((mode(&running).keys, mode(&running).aggregate), ("unknown", "off"));
    let before = stored(&history).0;
    for _ in 0..10 {
        some(&mut history, &mut running);
    }
    assert_eq!(stored(&history).0, before, "and landings prove nothing any more");
    history.finish(running);

    let (mut history, mut running) = unasked(5, 4);
    proven(&mut history, &mut running);
    (history.model.auto, history.ordered) = (Some(0), false);
    let before = stored(&history).0;
    some(&mut history, &mut running);
    assert_ne!(mode(&running).keys, "decide");
    let strayed = stored(&history).0 - before;
    assert!(strayed <= 4 * history.options.requests_max, "{strayed} aggregates by what no longer holds");
    some(&mut history, &mut running);
    assert_eq!(stored(&history).0 - before, strayed, "no aggregate more");
    history.finish(running);
}

#[test]
fn a_reshard_is_not_taken_for_auto() {
    for seed in seeds().take(6) {
        for aggregate in [Aggregate::Kpl, Aggregate::Off] {
            let mut history = calm(seed, aggregate);
            let mut running = history.start(Position(0));
            for n in 0..30 {
                some(&mut history, &mut running);
                if n % 3 == 2 {
                    history.model.merge(n)
                } else {
                    history.model.split(n)
                }
                assert_eq!(mode(&running).keys, "decide", "seed {seed}");
            }
            history.finish(running);
        }
    }
}

#[test]
fn lines_go_on_as_lines_where_keys_are_ignored_and_ask_for_shards_no_more() {
    for order in [Order::Key, Order::None] {
        let mut history = calm(5, Aggregate::Lines);
        (history.model.auto, history.ordered, history.options.order) = (Some(0), false, order);
        let mut running = history.start(Position(0));
        some(&mut history, &mut running);
        let told = mode(&running);
        assert_eq!((told.aggregate, told.is_fallback, told.keys), ("lines", false, "ignored"));
        assert_eq!(told.reason.contains("order"), order == Order::Key, "{}", told.reason);
        let many = history.model.stored.values().flatten().filter(|entry| entry.data.iter().filter(|b| **b == b'\n').count() > 1);
        assert!(many.count() > 10);
        assert!(history.asked.0 <= 3, "{} listings", history.asked.0);
        assert_eq!(counted(&running.metrics), 0, "nothing is sent again for where it lies");
        history.finish(running);
    }
}

#[test]
fn without_an_order_to_keep_several_records_of_a_shard_are_under_way_at_once() {
    for seed in seeds().take(20) {
        for aggregate in [Aggregate::Kpl, Aggregate::Lines] {
            let mut history = History::new(seed, aggregate);
            (history.options.order, history.ordered, history.options.requests_max) = (Order::None, false, 5);
            history.model = Model::new(2);
            let mut running = history.start(Position(0));
            for _ in 0..80 {
                history.write(&running);
                for _ in 0..history.random.below(5) {
                    history.step(&mut running);
                }
            }
            assert!(history.under_way_most > 1, "seed {seed}: {} under way", history.under_way_most);
            history.finish(running);
        }
    }
}

#[test]
fn a_rate_of_records_that_binds_for_seconds_brings_the_advice_and_neither_bytes_nor_a_dead_shard_do() {
    for (padding, dead, advised) in [(40, false, true), (3_000, false, false), (40, true, false)] {
        let mut history = calm(4, Aggregate::Off);
        (history.options.order, history.ordered, history.options.slots_max) = (Order::None, false, 1 << 14);
        (history.model, history.padding) = (Model::new(1), padding);
        history.dead = dead.then_some(0..=u128::MAX);
        let mut running = history.start(Position(0));
        let mut told = String::new();
        for _ in 0..1_000 {
            history.write(&running);
            history.step(&mut running);
            running.dispatcher.advise(history.now());
            told.clone_from(&running.metrics.advice.lock().expect("not poisoned"));
        }
        history.dead = None;
        assert_eq!(told.contains("1 of 1 shards") && told.contains("\"kpl\""), advised, "{told:?}");
        history.finish(running);
    }
}
