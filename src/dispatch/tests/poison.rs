//! Requests that are refused for their contents, in seeded histories: some events are such that Kinesis refuses every request
//! (or record) they are in; and times when it refuses every request, whatever is in it.
//!
//! Place: the histories of `tests.rs`, with their throttles, lost answers, reshards and crashes. Checked by name:
//! *NOTHING-LOST* (each event that is not poison is delivered, none has a letter), *EXACT-ACCOUNT* (each poisonous event has
//! one letter with its reason, and is counted as dead), *KEY-ORDER* of the others, *NO-BLOCKING*.

use std::ops::ControlFlow;

use super::*;
use crate::spool::dead::{DeadStore, Letter, Reason};

/// An event of this record is poison.
pub(super) fn holds_poison(entry: &PutEntry) -> bool {
    let content = deaggregate(&entry.data, &entry.partition_key, entry.explicit_hash_key);
    content.members().iter().any(|event| event.data.ends_with(b"POISON"))
}

/// The dead letters on disk.
pub(super) fn letters(history: &History) -> Vec<Letter> {
    let mut found = Vec::new();
    let view = DeadStore::view(&history.host, &spool::dead_dir(history.dir.path())).expect("a view");
    let visited = view.visit(0, &mut |letter, _| {
        found.push(letter);
        ControlFlow::Continue(())
    });
    visited.expect("a good disk");
    found
}

fn account(running: &Running) -> crate::metrics::Account {
    *running.metrics.account.lock().expect("not poisoned")
}

fn paused(running: &Running) -> String {
    running.metrics.paused_reason.lock().expect("not poisoned").clone()
}

/// Until all is settled, in bounded time.
fn drain(history: &mut History, running: &mut Running) {
    history.faults = false;
    for _ in 0..60_000 {
        if running.dispatcher.is_settled() && running.under_way.is_empty() {
            return;
        }
        history.step(running);
    }
    panic!("seed {}: does not drain: {:?} {}", history.seed, account(running), paused(running));
}

/// All that was accepted is delivered in order, or is poison and has its one letter.
fn check(history: &History, running: &Running) {
    let seed = history.seed;
    let letters = letters(history);
    let buried: BTreeSet<(String, u64)> = letters.iter().map(|letter| (letter.key.clone(), number(&letter.data))).collect();
    assert_eq!(buried.len(), letters.len(), "seed {seed}: an event has two letters");
    assert!(buried.is_subset(&history.poison), "seed {seed}: NOTHING-LOST: a good event was given up");
    assert_eq!(buried, history.poison, "seed {seed}: EXACT-ACCOUNT: each has a letter");
    for letter in &letters {
        assert_eq!(letter.reason, Reason::Poison, "seed {seed}");
        assert!(letter.detail.contains("ValidationException") && letter.attempts > 0, "seed {seed}: {letter:?}");
    }
    let total: u64 = history.accepted.values().sum();
    let account = account(running);
    let dead = letters.len() as u64;
    assert_eq!((account.accepted, account.dead, account.delivered), (total, dead, total - dead), "seed {seed}: EXACT-ACCOUNT");
    let mut read: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (key, n) in history.model.read() {
        let seen = read.entry(key.clone()).or_default();
        assert!(seen.contains(&n) || seen.last().is_none_or(|last| *last < n), "seed {seed}: KEY-ORDER: event {n} of {key}");
        seen.insert(n);
    }
    for (key, n) in &history.poison {
        assert!(read.entry(key.clone()).or_default().insert(*n), "seed {seed}: event {n} of {key} is dead and delivered");
    }
    let ended: u64 = read.values().map(|seen| seen.len() as u64).sum();
    assert_eq!(ended, total, "seed {seed}: DELIVERED-MEANS-READABLE");
}

fn end(mut history: History, mut running: Running) {
    // Events whose refusal needs another's success: this is it.
    history.poison_percent = 0;
    let mut batch = running.handle.batch();
    for n in 0..40 {
        let key = format!("last-{n}");
        batch.push(&key, None, b"0 good");
        history.accepted.insert(key, 1);
    }
    let permit = running.handle.try_admit(batch.len()).expect("room");
    running.handle.submit(batch, permit).wait().expect("durable");
    drain(&mut history, &mut running);
    check(&history, &running);
    running.handle.close();
    running.commit.join().expect("commit thread");
}

fn run(seed: u64, aggregate: Aggregate, order: Order) {
    let mut history = History::new(seed, aggregate);
    history.options.order = order;
    history.poison_percent = 1 + history.random.below(4);
    history.poison_by_record = history.random.percent(30);
    let mut running = history.start(Position(0));
    let mut episodes = 0;
    for _ in 0..60 {
        history.write(&running);
        for _ in 0..history.random.below(8) {
            history.step(&mut running);
        }
        // One bad time, which begins and ends with the others at work.
        if history.random.percent(4) && (episodes < 2) {
            history.refuse_all = !history.refuse_all;
            episodes += 1;
        }
        if history.random.percent(2) {
            let high = history.crash(running);
            running = history.start(high);
        }
    }
    history.refuse_all = false;
    end(history, running);
}

fn some_seeds() -> std::ops::Range<u64> {
    if std::env::var_os("FOREBAY_SEED").is_some() { seeds() } else { 0..24 }
}

#[test]
fn each_event_that_kinesis_refuses_becomes_a_letter_and_all_others_arrive_in_order_with_single_events() {
    for seed in some_seeds() {
        run(seed, Aggregate::Off, Order::Key);
    }
}

#[test]
fn each_event_that_kinesis_refuses_becomes_a_letter_and_all_others_arrive_in_order_with_aggregates() {
    for seed in some_seeds() {
        run(seed, Aggregate::Kpl, Order::Key);
    }
}

/// A history without other faults, whose events are written first.
fn quiet(seed: u64, aggregate: Aggregate, events: u64) -> (History, Running) {
    let mut history = History::new(seed, aggregate);
    history.faults = false;
    let mut running = history.start(Position(0));
    while history.accepted.values().sum::<u64>() < events {
        history.write(&running);
    }
    // A map, before anything is refused.
    history.step(&mut running);
    (history, running)
}

#[test]
fn while_every_request_is_refused_no_event_is_given_up_tries_are_gentle_and_all_arrive_afterwards() {
    for (aggregate, by_records) in [(Aggregate::Off, false), (Aggregate::Kpl, false), (Aggregate::Off, true)] {
        for seed in 0..6 {
            let mut history = History::new(seed, aggregate);
            history.faults = false;
            history.refuse_all = true;
            history.poison_by_record = by_records;
            let mut running = history.start(Position(0));
            while history.accepted.values().sum::<u64>() < 300 {
                history.write(&running);
            }
            let begun = history.now();
            while history.now() - begun < Duration::from_secs(3600) {
                history.clock.0.fetch_add(200, Ordering::Relaxed);
                history.step(&mut running);
            }
            assert!(letters(&history).is_empty(), "seed {seed}: NOTHING-LOST");
            let account = account(&running);
            assert_eq!((account.dead, account.delivered), (0, 0), "seed {seed}");
            assert!(paused(&running).contains("no event is given up"), "seed {seed}: {}", paused(&running));
            // 32 at first; then one each 15 s on average.
            assert!((100..400).contains(&history.answered), "seed {seed}: {} requests in an hour", history.answered);
            history.refuse_all = false;
            end(history, running);
        }
    }
}

#[test]
fn one_event_alone_that_is_refused_for_an_unknown_reason_is_not_given_up_before_another_one_is_accepted() {
    let (mut history, mut running) = lonely();
    history.poison_unnamed = true;
    let begun = history.now();
    while history.now() - begun < Duration::from_secs(120) {
        history.step(&mut running);
    }
    assert!(letters(&history).is_empty() && history.answered > 2, "tried, and not given up");
    assert!(paused(&running).contains("ValidationException"), "and told: {}", paused(&running));
    end(history, running);
}

/// One event, which is poison.
fn lonely() -> (History, Running) {
    let mut history = History::new(4, Aggregate::Off);
    history.faults = false;
    let running = history.start(Position(0));
    let mut batch = running.handle.batch();
    batch.push("lonely", None, b"0 POISON");
    history.accepted.insert("lonely".into(), 1);
    history.poison.insert(("lonely".into(), 0));
    let permit = running.handle.try_admit(batch.len()).expect("room");
    running.handle.submit(batch, permit).wait().expect("durable");
    (history, running)
}

#[test]
fn one_event_alone_is_given_up_after_some_tries_where_the_service_says_that_it_is_for_the_record() {
    let (mut history, mut running) = lonely();
    drain(&mut history, &mut running);
    assert_eq!((letters(&history).len(), history.answered), (1, 5));
    end(history, running);
}

#[test]
fn while_one_event_is_searched_for_the_other_shards_and_keys_go_on() {
    for aggregate in [Aggregate::Off, Aggregate::Kpl] {
        let mut history = History::new(9, aggregate);
        history.faults = false;
        history.model = Model::new(8);
        history.options.requests_max = 4;
        history.options.slots_max = 4096;
        let mut running = history.start(Position(0));
        let put = |history: &mut History, running: &Running, events: &[(String, &str)]| {
            let mut batch = running.handle.batch();
            for (key, data) in events {
                batch.push(key, None, data.as_bytes());
                history.accepted.insert(key.clone(), 1);
            }
            let permit = running.handle.try_admit(batch.len()).expect("room");
            running.handle.submit(batch, permit).wait().expect("durable");
        };
        history.poison.insert(("bad".into(), 0));
        put(&mut history, &running, &[("bad".into(), "0 POISON")]);
        for _ in 0..5 {
            history.write(&running);
        }
        while !running.dispatcher.has_suspects() {
            history.step(&mut running);
        }
        // The bad event is found, and then no request of it alone is answered: the search stands still.
        let fresh: Vec<(String, &str)> = (0..200).map(|n| (format!("fresh-{n}"), "0 good")).collect();
        put(&mut history, &running, &fresh);
        let mut held = Vec::new();
        for _ in 0..2_000 {
            let bad = |request: &Outgoing| request.len() == 1 && request.entries().iter().any(holds_poison);
            held.extend(running.under_way.extract_if(.., |(request, _)| bad(request)));
            history.step(&mut running);
        }
        assert_eq!(held.len(), 1, "a search is under way");
        let shard_of = |key: &str| (0..8).find(|n| history.model.shards[*n].last_hash >= KeyHash::of_key(key).0);
        let read: BTreeSet<String> = history.model.read().into_iter().map(|(key, _)| key).collect();
        for (key, _) in &fresh {
            // With aggregates the bad event's shard waits for it, and only that.
            let waits = aggregate == Aggregate::Kpl && shard_of(key) == shard_of("bad");
            assert!(waits || read.contains(key), "NO-BLOCKING: {key} waits for another key's event");
        }
        assert_eq!(paused(&running), "", "the stream is not paused for one event");
        running.under_way.append(&mut held);
        end(history, running);
    }
}

#[test]
fn while_one_event_is_refused_alone_another_one_that_comes_does_not_wait_for_it() {
    let (mut history, mut running) = lonely();
    history.poison_unnamed = true;
    while history.answered < 6 {
        history.step(&mut running);
    }
    let mut batch = running.handle.batch();
    batch.push("other", None, b"0 good");
    history.accepted.insert("other".into(), 1);
    let permit = running.handle.try_admit(batch.len()).expect("room");
    running.handle.submit(batch, permit).wait().expect("durable");
    let begun = history.now();
    while account(&running).delivered == 0 {
        history.step(&mut running);
    }
    let took = history.now() - begun;
    assert!(took < Duration::from_millis(600), "NO-BLOCKING: it took {took:?}");
    end(history, running);
}

#[test]
fn a_letter_that_cannot_be_written_leaves_its_event_pending_and_the_others_go_on() {
    let (mut history, running) = quiet(11, Aggregate::Off, 200);
    history.dead_max_bytes = 10;
    let high = history.crash(running);
    let mut running = history.start(high);
    history.poison_percent = 5;
    while history.poison.len() < 3 {
        history.write(&running);
    }
    for _ in 0..3_000 {
        history.step(&mut running);
    }
    let now = account(&running);
    assert!(now.dead == 0 && now.pending() > 0, "{now:?}");
    assert!(running.metrics.dead_reason.lock().expect("not poisoned").contains("spool.dead_max_bytes"));
    history.dead_max_bytes = 1 << 20;
    let high = history.crash(running);
    let running = history.start(high);
    end(history, running);
}

#[test]
fn while_every_request_is_refused_events_grow_old_and_make_room_all_the_same() {
    for aggregate in [Aggregate::Off, Aggregate::Kpl] {
        let mut history = History::new(13, aggregate);
        (history.faults, history.refuse_all) = (false, true);
        history.options.ttl = Duration::from_secs(60);
        let mut running = history.start(Position(0));
        while history.accepted.values().sum::<u64>() < 300 {
            history.write(&running);
        }
        let begun = history.now();
        while history.now() - begun < Duration::from_secs(200) {
            history.step(&mut running);
        }
        let now = account(&running);
        assert_eq!((now.expired, now.pending()), (now.accepted, 0), "what is suspected expires too: {now:?}");
        history.options.ttl = Duration::ZERO;
        let high = history.crash(running);
        let mut running = history.start(high);
        let segments = |running: &Running| running.handle.shared().table.all().len();
        while segments(&running) < 4 {
            history.write(&running);
            history.step(&mut running);
        }
        // Long enough for the oldest events to be suspects.
        for _ in 0..200 {
            history.step(&mut running);
        }
        let pending = account(&running).pending();
        running.dispatcher.drop_oldest();
        for _ in 0..50 {
            history.step(&mut running);
        }
        let now = account(&running);
        assert!(now.dropped > 0 && now.pending() < pending, "room is made: {now:?}");
        history.refuse_all = false;
        drain(&mut history, &mut running);
        assert_eq!(account(&running).dead, 0, "NOTHING-LOST");
        running.handle.close();
        running.commit.join().expect("commit thread");
    }
}
