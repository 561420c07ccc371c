//! Events over 1 MiB, in seeded histories: the stream takes such records, and then it takes no longer all that was taken in
//! for it, or nobody may ask what it takes.
//!
//! Place: the histories of `tests.rs`. *INSIDE-THE-LIMITS* is asserted by the model, which refuses a request for a record over
//! its limit and counts that; *NOTHING-LOST* and *EXACT-ACCOUNT* here: each event arrives, or has its letter with the reason.

use super::poison::letters;
use super::*;
use crate::spool::dead::{Letter, Reason};

const MIB: usize = 1 << 20;

/// A spool with events of 40 keys, of which some are as large as told, in between small ones. The agent that took them died
/// before it sent anything.
fn taken(seed: u64, aggregate: Aggregate, sizes: &[usize]) -> (History, u64) {
    let mut history = History::new(seed, aggregate);
    history.options.request_bytes_max = crate::limits::REQUEST_BYTES_CEILING;
    history.segment_bytes = 4 << 20;
    history.faults = false;
    let running = history.start(Position(0));
    for bytes in sizes.iter().copied().flat_map(|bytes| [bytes, 50]).chain([50; 40]) {
        let key = format!("key-{}", history.random.below(40));
        let n = history.accepted.entry(key.clone()).or_default();
        let mut data = format!("{n} {key} ").into_bytes();
        data.resize(bytes, b'x');
        *n += 1;
        let mut batch = running.handle.batch();
        batch.push(&key, None, &data);
        let permit = running.handle.try_admit(batch.len()).expect("room");
        running.handle.submit(batch, permit).wait().expect("durable");
    }
    history.crash(running);
    let total = history.accepted.values().sum();
    (history, total)
}

/// Runs until all is settled.
fn drain(history: &mut History, running: &mut Running) {
    for _ in 0..20_000 {
        if running.dispatcher.is_settled() && running.under_way.is_empty() {
            return;
        }
        history.step(running);
    }
    panic!("seed {}: does not drain: {:?}", history.seed, running.metrics.account);
}

/// All arrived once and in order, but for those with letters; these.
fn checked(history: &History, running: &Running, total: u64) -> Vec<Letter> {
    let seed = history.seed;
    let letters = letters(history);
    let buried: BTreeSet<(String, u64)> = letters.iter().map(|letter| (letter.key.clone(), number(&letter.data))).collect();
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for (key, n) in history.model.read() {
        let next = next.entry(key.clone()).or_default();
        while buried.contains(&(key.clone(), *next)) {
            *next += 1;
        }
        assert_eq!(n, *next, "seed {seed}: KEY-ORDER and once: {key}");
        *next += 1;
    }
    let account = *running.metrics.account.lock().expect("not poisoned");
    let dead = letters.len() as u64;
    assert_eq!((account.accepted, account.dead, account.delivered), (total, dead, total - dead), "seed {seed}: EXACT-ACCOUNT");
    letters
}

fn end(running: Running) {
    running.handle.close();
    running.commit.join().expect("commit thread");
}

const FORMS: [Aggregate; 3] = [Aggregate::Off, Aggregate::Kpl, Aggregate::Lines];

#[test]
fn where_the_stream_takes_them_large_events_arrive_with_all_others() {
    for (seed, form) in (0..6).zip(FORMS.into_iter().cycle()) {
        let (mut history, total) = taken(seed, form, &[3 * MIB, crate::limits::EVENT_BYTES_CEILING, MIB + 1, 2 * MIB]);
        history.model.record_bytes_max = Some(10 * MIB);
        let mut running = history.start(Position(0));
        drain(&mut history, &mut running);
        assert!(checked(&history, &running, total).is_empty());
        assert_eq!(history.model.too_large, 0);
        assert_eq!(running.metrics.event_bytes_max(), crate::limits::EVENT_BYTES_CEILING, "the doors know");
        end(running);
    }
}

#[test]
fn what_is_known_to_be_too_large_is_never_sent_and_its_letter_says_what_to_raise() {
    for (seed, form) in (0..6).zip(FORMS.into_iter().cycle()) {
        let (mut history, total) = taken(seed, form, &[3 * MIB, 5 * MIB, MIB + 1, 2 * MIB - 100]);
        history.model.record_bytes_max = Some(2 * MIB);
        let mut running = history.start(Position(0));
        drain(&mut history, &mut running);
        let letters = checked(&history, &running, total);
        let sizes: BTreeSet<usize> = letters.iter().map(|letter| letter.data.len()).collect();
        assert_eq!((letters.len(), sizes), (2, BTreeSet::from([3 * MIB, 5 * MIB])));
        for letter in &letters {
            assert_eq!(letter.reason, Reason::TooLarge);
            assert!(letter.detail.contains("MaxRecordSizeInKiB is 2048; raise that"), "{}", letter.detail);
        }
        assert_eq!(history.model.too_large, 0, "INSIDE-THE-LIMITS");
        end(running);
    }
}

#[test]
fn where_nobody_may_ask_a_large_event_is_sent_and_the_service_decides() {
    let denied = PutError { class: ErrorClass::Configuration, code: "AccessDeniedException".into(), message: String::new() };
    for (seed, form) in (0..6).zip(FORMS.into_iter().cycle()) {
        for (limit, refused) in [(10 * MIB, 0), (2 * MIB, 1)] {
            let (mut history, total) = taken(seed, form, &[3 * MIB, 2 * MIB - 100]);
            history.model.record_bytes_max = Some(limit);
            history.model.refuses = Some(denied.clone());
            let mut running = history.start(Position(0));
            drain(&mut history, &mut running);
            let letters = checked(&history, &running, total);
            let sizes: Vec<_> = letters.iter().map(|letter| (letter.reason, letter.data.len())).collect();
            assert_eq!(sizes, vec![(Reason::Poison, 3 * MIB); refused], "seed {seed}");
            end(running);
        }
    }
}

#[test]
fn with_a_smaller_request_what_no_longer_fits_one_becomes_a_letter() {
    for (seed, form) in (0..3).zip(FORMS) {
        let (mut history, total) = taken(seed, form, &[3 * MIB, MIB + 1]);
        history.model.record_bytes_max = Some(10 * MIB);
        history.options.request_bytes_max = 2 * MIB;
        let mut running = history.start(Position(0));
        drain(&mut history, &mut running);
        let letters = checked(&history, &running, total);
        assert_eq!(letters.len(), 1);
        assert!(letters[0].detail.contains("more than request_bytes_max (2097152)"), "{}", letters[0].detail);
        end(running);
    }
}

#[test]
fn while_no_letter_can_be_written_a_too_large_event_stays_pending_and_other_shards_go_on() {
    let (mut history, total) = taken(1, Aggregate::Off, &[3 * MIB]);
    history.model = Model::new(8);
    history.dead_max_bytes = 1 << 20;
    let mut running = history.start(Position(0));
    for _ in 0..2_000 {
        history.step(&mut running);
    }
    let account = *running.metrics.account.lock().expect("not poisoned");
    assert!(account.dead == 0 && account.pending() > 0 && account.pending() < total / 3, "{account:?}");
    assert!(running.metrics.dead_reason.lock().expect("not poisoned").contains("spool.dead_max_bytes"));
    // Whatever pays for room: a restart with more of it will do here.
    history.crash(running);
    history.dead_max_bytes = 1 << 30;
    let mut running = history.start(Position(u64::MAX >> 20));
    drain(&mut history, &mut running);
    assert_eq!(letters(&history).len(), 1);
    end(running);
}
