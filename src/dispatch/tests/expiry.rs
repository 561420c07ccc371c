//! Events that end without being delivered, in seeded histories: ttl, damage, room made, letters that cannot be written.
//!
//! Place: the histories of `tests.rs`, on a disk in memory that can fail. Checked by name: *EXACT-ACCOUNT* (at every start
//! expired is what letters are there; at the end what is neither read nor a letter is at most what was dropped),
//! *KEY-ORDER* of what is delivered, *NOTHING-LOST*.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::path::Path;

use super::*;
use crate::spool::dead::{DeadStore, Letter, Reason};
use crate::spool::tests::fault_files::{EIO, Fault, FaultFiles, Op, Pending};

/// What a history does beside sending.
#[derive(Clone, Copy)]
struct Plan {
    aggregate: Aggregate,
    ttl: bool,
    drops: bool,
    /// The disk of the letters fails now and then.
    bad_disk: bool,
}

fn letters(history: &History) -> Vec<Letter> {
    let mut found = Vec::new();
    let view = DeadStore::view(&history.host, &spool::dead_dir(history.dir.path())).expect("a view");
    let visited = view.visit(0, &mut |letter, removal| {
        assert!(removal.is_none());
        found.push(letter);
        ControlFlow::Continue(())
    });
    visited.expect("a good disk");
    found
}

/// A start, whose account must be exact.
fn start(history: &mut History, sent_high: Position) -> Running {
    let running = history.start(sent_high);
    let account = *running.metrics.account.lock().expect("not poisoned");
    let letters = letters(history);
    let positions: HashSet<u64> = letters.iter().map(|letter| letter.position.0).collect();
    let seed = history.seed;
    assert_eq!(positions.len(), letters.len(), "seed {seed}: an event has two letters");
    assert_eq!(account.expired, letters.len() as u64, "seed {seed}: EXACT-ACCOUNT after a crash");
    assert_eq!(account.dropped, history.saved.dropped, "seed {seed}");
    running
}

fn run(seed: u64, plan: Plan) {
    let files = FaultFiles::new();
    let mut history = History::new(seed, plan.aggregate);
    history.host.files = Arc::new(files.clone());
    if plan.ttl {
        history.options.ttl = Duration::from_millis(100 + history.random.below(1500));
    }
    let mut running = start(&mut history, Position(0));
    for _ in 0..120 {
        history.write(&running);
        for _ in 0..history.random.below(5) {
            if plan.drops && history.random.percent(5) {
                running.dispatcher.drop_oldest();
            }
            if plan.bad_disk && history.random.percent(10) {
                let op = [Op::Write, Op::SyncData][history.random.below(2) as usize];
                files.fail(Fault::new(op, 1, EIO).on(".dead").pending(Pending::Forget));
            }
            history.step(&mut running);
        }
        if history.random.percent(4) {
            files.heal();
            let high = history.crash(running);
            running = start(&mut history, high);
        }
    }
    history.faults = false;
    files.heal();
    for _ in 0..20_000 {
        if running.dispatcher.is_settled() {
            break;
        }
        history.step(&mut running);
    }
    assert!(running.dispatcher.is_settled(), "seed {seed}: does not drain: {:?}", running.dispatcher);
    while !running.under_way.is_empty() {
        history.step(&mut running);
    }
    check(&history, &running);
    // Shards that lag may still have to pass events that ended.
    let at_end = |running: &mut Running| {
        let last = running.dispatcher.checkpoint(true);
        last.marks.iter().all(|mark| *mark == last.durable)
    };
    for _ in 0..1_000 {
        if at_end(&mut running) {
            break;
        }
        history.step(&mut running);
    }
    let last = running.dispatcher.checkpoint(true);
    assert!(last.clean && last.marks.iter().all(|mark| *mark == last.durable), "seed {seed}: all marks at the end");
    let account = *running.metrics.account.lock().expect("not poisoned");
    assert_eq!((last.expired, last.dropped), (account.expired, account.dropped), "seed {seed}");
    running.dispatcher.on_saved(&last);
    assert_eq!(running.handle.shared().table.all().len().max(1), 1, "seed {seed}: settled segments go");
    running.handle.close();
    running.commit.join().expect("commit thread");
}

fn check(history: &History, running: &Running) {
    let seed = history.seed;
    let account = *running.metrics.account.lock().expect("not poisoned");
    let total: u64 = history.accepted.values().sum();
    assert_eq!((account.accepted, account.pending(), account.dead), (total, 0, 0), "seed {seed}");
    let mut read: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (key, n) in history.model.read() {
        let seen = read.entry(key.clone()).or_default();
        assert!(seen.contains(&n) || seen.last().is_none_or(|last| *last < n), "seed {seed}: KEY-ORDER: event {n} of {key}");
        seen.insert(n);
    }
    let delivered: u64 = read.values().map(|seen| seen.len() as u64).sum();
    assert!(account.delivered <= delivered, "seed {seed}: EXACT-ACCOUNT: {account:?}, {delivered} were read");
    let letters = letters(history);
    assert_eq!(letters.len() as u64, account.expired, "seed {seed}: EXACT-ACCOUNT");
    let ttl = history.options.ttl.as_millis() as u64;
    for letter in letters {
        assert_eq!(letter.reason, Reason::Expired);
        assert!(letter.died_ms - letter.received_ms >= ttl, "seed {seed}: {letter:?} died too young");
        read.entry(letter.key).or_default().insert(number(&letter.data));
    }
    let ended: u64 = read.values().map(|seen| seen.len() as u64).sum();
    assert!(ended <= total && total - ended <= account.dropped, "seed {seed}: NOTHING-LOST: {ended} of {total}, {account:?}");
}

fn run_all(plan: Plan) {
    let seeds = if std::env::var_os("FOREBAY_SEED").is_some() { seeds() } else { 0..40 };
    seeds.for_each(|seed| run(seed, plan));
}

const EXPIRING: Plan = Plan { aggregate: Aggregate::Kpl, ttl: true, drops: false, bad_disk: false };

#[test]
fn with_a_ttl_every_event_is_delivered_in_order_or_a_letter_and_counted_once_through_crashes_with_aggregates() {
    run_all(EXPIRING);
}

#[test]
fn with_a_ttl_every_event_is_delivered_in_order_or_a_letter_and_counted_once_through_crashes_with_single_events() {
    run_all(Plan { aggregate: Aggregate::Off, ..EXPIRING });
}

#[test]
fn what_is_dropped_to_make_room_is_counted_and_nothing_else_is_missing() {
    run_all(Plan { ttl: false, drops: true, ..EXPIRING });
    run_all(Plan { aggregate: Aggregate::Off, drops: true, ..EXPIRING });
}

#[test]
fn while_letters_cannot_be_written_their_events_stay_pending_and_none_is_lost() {
    run_all(Plan { bad_disk: true, ..EXPIRING });
    run_all(Plan { aggregate: Aggregate::Off, bad_disk: true, ..EXPIRING });
}

#[test]
fn with_a_full_store_of_letters_nothing_expires_and_late_events_are_delivered() {
    let mut history = History::new(3, Aggregate::Off);
    history.host.files = Arc::new(FaultFiles::new());
    history.options.ttl = Duration::from_millis(50);
    history.dead_max_bytes = 10;
    history.faults = false;
    let mut running = start(&mut history, Position(0));
    while history.accepted.values().sum::<u64>() < 100 {
        history.write(&running);
    }
    history.clock.0.fetch_add(10_000, Ordering::Relaxed);
    for _ in 0..5_000 {
        if running.dispatcher.is_settled() {
            break;
        }
        history.step(&mut running);
    }
    check(&history, &running);
    let account = *running.metrics.account.lock().expect("not poisoned");
    assert_eq!((account.expired, account.delivered), (0, account.accepted));
    assert!(running.metrics.dead_reason.lock().expect("not poisoned").contains("spool.dead_max_bytes"));
    running.handle.close();
    running.commit.join().expect("commit thread");
}

#[test]
fn without_a_map_the_oldest_segments_are_dropped_as_well_and_a_segment_that_is_about_to_go_is_room_enough() {
    let mut history = History::new(5, Aggregate::Kpl);
    history.host.files = Arc::new(FaultFiles::new());
    history.faults = false;
    let mut running = start(&mut history, Position(0));
    let segments = |running: &Running| running.handle.shared().table.all().len();
    while segments(&running) < 4 {
        history.write(&running);
    }
    let account = |running: &Running| *running.metrics.account.lock().expect("not poisoned");
    let first = running.handle.shared().table.all()[0].clone();
    let in_first = first.extent().end.0 - first.base.0;
    for _ in 0..3 {
        running.dispatcher.drop_oldest();
        assert!(running.dispatcher.poll(history.now()).is_empty(), "no map, no request");
        // Asked again before a checkpoint was saved: nothing more is given up.
        assert_eq!(account(&running).dropped, in_first);
    }
    let saved = running.dispatcher.checkpoint(false);
    running.dispatcher.on_saved(&saved);
    assert_eq!((segments(&running), saved.dropped), (3, in_first));
    for _ in 0..20_000 {
        if running.dispatcher.is_settled() {
            break;
        }
        history.step(&mut running);
    }
    check(&history, &running);
    assert_eq!(account(&running).dropped, in_first);
    running.handle.close();
    running.commit.join().expect("commit thread");
}

#[test]
fn a_damaged_event_becomes_one_letter_with_its_bytes_however_often_it_is_met() {
    let files = FaultFiles::new();
    let mut history = History::new(7, Aggregate::Off);
    history.host.files = Arc::new(files.clone());
    history.faults = false;
    let running = start(&mut history, Position(0));
    while running.handle.shared().table.all().len() < 2 {
        history.write(&running);
    }
    let first = running.handle.shared().table.all()[0].clone();
    let entries: Vec<_> = (0..LANES as u16)
        .flat_map(|lane| {
            let mut cursor = Cursor::new(Arc::clone(running.handle.shared()), Arc::clone(&history.host.files));
            cursor.lane_frames(&first, Lane(lane), Lane(lane)).expect("a good disk")
        })
        .collect();
    let (lane, hit) = entries[entries.len() / 2];
    let high = history.crash(running);
    assert!(files.flip_bit(Path::new(&first.path), u64::from(hit.offset) + 50, 3));
    let mut high = Some(high);
    for round in 0..4 {
        // No checkpoint is ever saved: each start meets all of it again.
        let running = history.start(high.take().unwrap_or_default());
        let mut running = running;
        let dead = |running: &Running| running.metrics.account.lock().expect("not poisoned").dead;
        assert_eq!(dead(&running), u64::from(round > 0), "EXACT-ACCOUNT after a crash");
        for _ in 0..3_000 {
            if running.dispatcher.is_settled() {
                break;
            }
            history.clock.0.fetch_add(20, Ordering::Relaxed);
            let now = history.now();
            if running.dispatcher.ask_for_map(now) {
                running.dispatcher.on_map(Ok(history.model.shards.clone()), now);
            }
            for request in running.dispatcher.poll(now) {
                let answer = history.answer(&request);
                running.dispatcher.on_answer(request.id, answer, now);
            }
        }
        assert!(running.dispatcher.is_settled(), "round {round}");
        assert_eq!(dead(&running), 1);
        let found = letters(&history);
        assert_eq!(found.len(), 1, "one letter, round {round}");
        let letter = &found[0];
        assert_eq!((letter.reason, letter.hash.lane(), letter.data.len()), (Reason::Damaged, lane, hit.len as usize));
        history.crash(running);
    }
}
