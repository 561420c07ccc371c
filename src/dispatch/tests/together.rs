//! Queues that lag close to one another read the spool together: no event is read by itself, and none is missed or met twice.
//!
//! Place: the histories of `tests.rs`, without faults, on a simulated disk that tells how often it was read.

use super::*;
use crate::spool::tests::fault_files::{FaultFiles, Op};

const SHARDS: u32 = 128;
const EVENTS: u64 = 20_000;

fn history(seed: u64, aggregate: Aggregate) -> (History, FaultFiles) {
    let mut history = History::new(seed, aggregate);
    let files = FaultFiles::new();
    history.host.files = Arc::new(files.clone());
    history.faults = false;
    history.model = Model::new(SHARDS);
    history.segment_bytes = 64 << 20;
    history.late_ms = fresh::LATE_DEFAULT;
    history.options = DispatchOptions {
        linger: Duration::from_millis(20),
        record_bytes_max: 64 << 10,
        requests_max: 4,
        slots_max: 4096,
        ..history.options
    };
    (history, files)
}

/// Reads so far.
fn reads(files: &FaultFiles) -> u64 {
    files.log().iter().filter(|record| record.op == Op::Read).count() as u64
}

/// Events of many keys, none of which lies in the first lane.
fn write(history: &mut History, running: &Running) {
    let keys: Vec<String> = (0..3000).map(|n| format!("key-{n}")).filter(|key| KeyHash::of_key(key).lane() != Lane(0)).collect();
    for _ in 0..EVENTS / 500 {
        let mut batch = running.handle.batch();
        for _ in 0..500 {
            let key = &keys[history.random.below(keys.len() as u64) as usize];
            let n = history.accepted.entry(key.clone()).or_default();
            batch.push(key, None, format!("{n} {key} {}", "x".repeat(60)).as_bytes());
            *n += 1;
        }
        let permit = running.handle.try_admit(batch.len()).expect("room");
        running.handle.submit(batch, permit).wait().expect("durable");
    }
}

#[test]
fn where_all_queues_lag_a_backlog_is_read_in_large_pieces_and_not_event_by_event() {
    for (seed, aggregate) in [(1, Aggregate::Kpl), (2, Aggregate::Kpl), (4, Aggregate::Lines), (5, Aggregate::Off)] {
        let (mut history, files) = history(seed, aggregate);
        let running = history.start(Position(0));
        write(&mut history, &running);
        let end = running.handle.shared().tail.durable();
        history.crash(running);
        // The marks of another lane are past it all, and so the sweep begins at the end, with everybody behind it.
        (history.saved.durable, history.saved.marks[0]) = (end, end);
        let running = history.start(Position(0));
        let before = reads(&files);
        history.finish(running);
        let reads = reads(&files) - before;
        assert!(reads <= EVENTS / 20, "seed {seed}: {reads} reads for {EVENTS} events");
    }
}

#[test]
fn queues_far_behind_and_queues_close_to_the_end_lag_in_groups_and_none_misses_or_repeats_an_event() {
    for (seed, aggregate) in [(1, Aggregate::Kpl), (2, Aggregate::Lines), (3, Aggregate::Off)] {
        let (mut history, _) = history(seed, aggregate);
        // Two of three shards take nothing for a while.
        history.dead = Some(0..=u128::MAX / 3 * 2);
        let mut running = history.start(Position(0));
        running.dispatcher.meeting_bytes = 64 << 10;
        for _ in 0..3 {
            write(&mut history, &running);
            for _ in 0..300 {
                history.step(&mut running);
            }
        }
        let lagging = running.dispatcher.queues.iter().filter(|queue| queue.lag.is_some()).count();
        assert!(lagging > SHARDS as usize / 3, "seed {seed}: {lagging} lag");
        history.dead = None;
        history.finish(running);
    }
}
