//! Fresh events go ahead of a backlog, and no key's order, no count and no event suffers by it.
//!
//! Place: the histories of `tests.rs` with a dispatcher that calls a shard late after a moment, so that the rule of `fresh.rs`
//! begins, ends and begins again in the middle of faults, reshards and crashes; clean stops in between, after which nothing may
//! be sent twice; and a stream whose shards take what a shard takes, where the delay of fresh events is measured.

use std::collections::VecDeque;

use super::*;
use crate::kinesis::EntryOutcome::{Failed, Stored};
use crate::limits::{SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND};

pub(super) const LATE_DEFAULT: u64 = crate::dispatch::fresh::LATE;

fn with_backlogs(seed: u64, aggregate: Aggregate, order: Order) -> History {
    let mut history = History::new(seed, aggregate);
    history.late_ms = 20 << (seed % 5);
    // Keys come and go, so that there are new ones beside a backlog.
    history.keys = 2_000;
    (history.options.order, history.ordered) = (order, order == Order::Key);
    history
}

fn all(aggregate: Aggregate, order: Order) {
    let mut went_ahead = 0;
    for seed in seeds().take(15) {
        let mut history = with_backlogs(seed, aggregate, order);
        let mut running = history.start(Position(0));
        for _ in 0..120 {
            history.write(&running);
            for _ in 0..history.random.below(5) {
                history.step(&mut running);
            }
            if history.random.percent(2) {
                let high = history.crash(running);
                running = history.start(high);
            }
        }
        // The backlog is drained beside a little that comes, as far as it gets in that time. Single events meet so many throttles
        // in these histories that they would take hours.
        history.faults &= aggregate != Aggregate::Off;
        for _ in 0..history.random.below(100) {
            for _ in 0..20 {
                history.step(&mut running);
            }
            let few = history.random.below(3);
            write_some(&mut history, &running, few);
        }
        went_ahead += u64::from(history.went_ahead > 0);
        history.finish(running);
    }
    assert!(seeds().count() == 1 || went_ahead > 8, "in {went_ahead} histories only did events go ahead");
}

/// So many events of any keys.
fn write_some(history: &mut History, running: &Running, events: u64) {
    let mut batch = running.handle.batch();
    for _ in 0..events {
        let key = format!("key-{}", history.random.below(history.keys));
        let n = history.accepted.entry(key.clone()).or_default();
        batch.push(&key, None, format!("{n} {key} {}", "x".repeat(60)).as_bytes());
        *n += 1;
    }
    let permit = running.handle.try_admit(batch.len()).expect("room");
    running.handle.submit(batch, permit).wait().expect("durable");
}

#[test]
fn fresh_events_beside_backlogs_keep_every_promise_through_faults_reshards_and_crashes_with_aggregates() {
    all(Aggregate::Kpl, Order::Key);
}

#[test]
fn fresh_events_beside_backlogs_keep_every_promise_through_faults_reshards_and_crashes_with_single_events() {
    all(Aggregate::Off, Order::Key);
}

#[test]
fn fresh_events_beside_backlogs_keep_every_promise_through_faults_reshards_and_crashes_with_lines() {
    all(Aggregate::Lines, Order::Key);
}

#[test]
fn fresh_events_beside_backlogs_keep_every_promise_without_an_order_to_keep() {
    all(Aggregate::Kpl, Order::None);
    all(Aggregate::Off, Order::None);
}

/// Events on disk of which neither the marks nor the file say that they are settled.
fn left_on_disk(running: &Running, last: &Checkpoint, ahead: &Ahead) -> u64 {
    let shared = running.handle.shared();
    let mut cursor = Cursor::new(Arc::clone(shared), Host::real().files);
    let (mut left, mut position) = (0, Position(0));
    while let Some(swept) = cursor.next(position).expect("a good disk") {
        let (mut offset, mut next) = (0, swept.chunk.first);
        while let Some(frame) = crate::spool::frame::Frame::parse(&swept.chunk.bytes[offset..]) {
            let at = frame.position();
            left += u64::from(at >= position && at >= last.marks[frame.hash().lane().index()] && !ahead.contains(at));
            (next, offset) = (Position(at.0 + 1), offset + frame.len());
        }
        position = position.max(next);
    }
    left
}

/// Ends cleanly, whatever is left, and starts again, as `run.rs` and `agent.rs` do.
fn stop_and_start(history: &mut History, mut running: Running) -> Running {
    let now = history.now();
    for (request, _) in std::mem::take(&mut running.under_way) {
        let answer = history.answer(&request);
        running.dispatcher.on_answer(request.id, answer, now);
    }
    let last = running.dispatcher.checkpoint(true);
    let (ahead, pending) = running.dispatcher.settled_ahead();
    let path = history.dir.path().join("ledger.ahead");
    ahead.save(history.host.files.as_ref(), &path, &last, pending).expect("a good disk");
    running.dispatcher.ahead_is_noted(true);
    let last = running.dispatcher.checkpoint(true);
    let mut saved = history.saved.marks.iter().zip(last.marks.iter());
    assert!(last.clean && saved.all(|(before, now)| before <= now), "marks never go back");
    let account = *running.metrics.account.lock().expect("not poisoned");
    assert_eq!(account.pending(), pending, "EXACT-ACCOUNT: nothing ended otherwise");
    let unknown = left_on_disk(&running, &last, &ahead);
    assert_eq!(unknown, pending, "seed {}: what marks and file leave over is pending", history.seed);
    history.saved = Checkpoint::decode(&last.encode()).expect("whole");
    history.counted_before += counted(&running.metrics);
    running.handle.close();
    running.commit.join().expect("commit thread");
    let mut running = history.start(Position(0));
    if let Some((ahead, pending)) = Ahead::take(&history.host, &path, &history.saved, history.saved.durable) {
        let mut account = running.metrics.account.lock().expect("not poisoned");
        account.delivered = account.accepted - pending;
        drop(account);
        running.dispatcher.know_settled(ahead);
    }
    assert_eq!(*running.metrics.account.lock().expect("not poisoned"), account, "EXACT-ACCOUNT over a clean stop");
    running
}

#[test]
fn a_clean_stop_with_a_backlog_sends_nothing_twice() {
    for aggregate in [Aggregate::Kpl, Aggregate::Off] {
        let mut stops_ahead = 0;
        for seed in seeds().take(12) {
            let mut history = with_backlogs(seed, aggregate, Order::Key);
            history.faults = false;
            let mut running = history.start(Position(0));
            for _ in 0..60 {
                history.write(&running);
                for _ in 0..history.random.below(4) {
                    history.step(&mut running);
                }
                if history.random.percent(10) {
                    stops_ahead += u64::from(!running.dispatcher.settled_ahead().0.is_empty());
                    running = stop_and_start(&mut history, running);
                }
            }
            let stored = |history: &History| history.model.read().len() as u64;
            for _ in 0..20_000 {
                if running.dispatcher.is_settled() {
                    break;
                }
                history.step(&mut running);
            }
            assert!(running.dispatcher.is_settled(), "seed {seed}: does not drain");
            assert_eq!(stored(&history), history.accepted.values().sum::<u64>(), "seed {seed}: DUPLICATES-EXPLAINED");
            assert_eq!(history.counted_before + counted(&running.metrics), 0, "seed {seed}: none is counted either");
            history.finish(running);
        }
        assert!(seeds().count() == 1 || stops_ahead > 5, "{stops_ahead} stops with something ahead");
    }
}

/// A stream whose shards take what shards take, behind a network of 20 ms there and back.
struct Lab {
    history: History,
    running: Running,
    /// What each shard can take now: bytes and records.
    tokens: Vec<(f64, f64)>,
    answers: VecDeque<(Duration, u64, Vec<EntryOutcome>)>,
    /// When each key's first event was receipted, and how long the fresh ones took, ms.
    receipted: HashMap<String, Duration>,
    took_ms: Vec<u64>,
    throttled: u64,
}

const ROUND_TRIP: Duration = Duration::from_millis(20);
const SHARDS: u32 = 4;

impl Lab {
    fn new(aggregate: Aggregate, order: Order) -> Self {
        let mut history = History::new(11, aggregate);
        (history.faults, history.late_ms) = (false, LATE_DEFAULT);
        history.options = DispatchOptions {
            order,
            linger: Duration::from_millis(50),
            record_bytes_max: 256 << 10,
            requests_max: 16,
            slots_max: 384 << 10,
            ..history.options
        };
        history.model = Model::new(SHARDS);
        history.segment_bytes = 4 << 20;
        let running = history.start(Position(0));
        Self {
            history,
            running,
            tokens: vec![(SHARD_BYTES_PER_SECOND as f64, SHARD_RECORDS_PER_SECOND as f64); SHARDS as usize],
            answers: VecDeque::new(),
            receipted: HashMap::new(),
            took_ms: Vec::new(),
            throttled: 0,
        }
    }

    fn write(&mut self, keys: impl Iterator<Item = String>, bytes: usize) {
        let mut batch = self.running.handle.batch();
        for key in keys {
            self.receipted.insert(key.clone(), self.history.now());
            batch.push(&key, None, format!("0 {key} {}", "x".repeat(bytes)).as_bytes());
        }
        let permit = self.running.handle.try_admit(batch.len()).expect("room");
        self.running.handle.submit(batch, permit).wait().expect("durable");
    }

    /// A millisecond; `away`: nobody answers.
    fn tick(&mut self, away: bool) {
        self.history.clock.0.fetch_add(1, Ordering::Relaxed);
        let now = self.history.now();
        for (bytes, records) in &mut self.tokens {
            *bytes = (*bytes + SHARD_BYTES_PER_SECOND as f64 / 1e3).min(SHARD_BYTES_PER_SECOND as f64);
            *records = (*records + SHARD_RECORDS_PER_SECOND as f64 / 1e3).min(SHARD_RECORDS_PER_SECOND as f64);
        }
        let dispatcher = &mut self.running.dispatcher;
        if dispatcher.ask_for_map(now) {
            dispatcher.on_map(Ok(self.history.model.shards.clone()), now);
        }
        if dispatcher.ask_for_summary(now) {
            dispatcher.on_summary(self.history.model.summary(), now);
        }
        while self.answers.front().is_some_and(|(at, _, _)| *at <= now) {
            let (_, id, outcomes) = self.answers.pop_front().expect("looked");
            dispatcher.on_answer(id, Ok(outcomes), now);
        }
        for request in dispatcher.poll(now) {
            if away {
                let error = PutError { class: ErrorClass::Transient, code: "connect".into(), message: String::new() };
                self.running.dispatcher.on_answer(request.id, Err(error), now);
                continue;
            }
            let mut outcomes = Vec::new();
            for entry in request.entries() {
                let hash = Model::hash_of(&entry);
                let shard =
                    self.history.model.shards.iter().position(|shard| (shard.first_hash..=shard.last_hash).contains(&hash));
                let shard = shard.expect("open shards cover");
                let (bytes, records) = &mut self.tokens[shard];
                if *bytes < entry.billed_bytes() as f64 || *records < 1.0 {
                    let code = "ProvisionedThroughputExceededException".into();
                    outcomes.push(Failed(PutError { class: ErrorClass::Throttle, code, message: String::new() }));
                    self.throttled += 1;
                    continue;
                }
                (*bytes, *records) = (*bytes - entry.billed_bytes() as f64, *records - 1.0);
                let content = deaggregate(&entry.data, &entry.partition_key, entry.explicit_hash_key);
                for event in content.members() {
                    // A record of lines is one event here.
                    for line in event.data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                        let key = key_of_line(line);
                        if key.starts_with("fresh") {
                            self.took_ms.push((now + ROUND_TRIP - self.receipted[&key]).as_millis() as u64);
                        }
                    }
                }
                outcomes.push(Stored { shard: self.history.model.shards[shard].id.clone() });
            }
            self.answers.push_back((now + ROUND_TRIP, request.id, outcomes));
        }
    }

    /// Twenty new keys a second for so long; the middle and the slowest hundredth of their delays, ms.
    fn fresh(&mut self, seconds: u64, name: &str) -> (u64, u64) {
        self.took_ms.clear();
        for ms in 0..seconds * 1000 {
            if ms % 50 == 7 {
                self.write(std::iter::once(format!("fresh-{name}-{ms}")), 200);
            }
            self.tick(false);
        }
        for _ in 0..200 {
            self.tick(false);
        }
        let mut took = std::mem::take(&mut self.took_ms);
        took.sort_unstable();
        assert!(took.len() as u64 >= seconds * 20 * 99 / 100, "{name}: only {} of {} arrived", took.len(), seconds * 20);
        (took[took.len() / 2], took[took.len() * 99 / 100])
    }
}

/// Delays of fresh events without a backlog and beside one, ms.
fn delays(aggregate: Aggregate, order: Order) -> ((u64, u64), (u64, u64)) {
    let mut lab = Lab::new(aggregate, order);
    for _ in 0..1_000 {
        lab.tick(false);
    }
    let without = lab.fresh(20, "alone");
    // Kinesis is away for a while, and more than half a minute's worth of all shards gathers, of many keys.
    for n in 0..160 {
        lab.write((0..1_000).map(|key| format!("old-{}", n * 1_000 + key)), 1_000);
        for _ in 0..45 {
            lab.tick(true);
        }
    }
    // Back. Until the backlog was read for its keys, nothing goes ahead.
    for _ in 0..3_000 {
        lab.tick(false);
    }
    let beside = lab.fresh(20, "beside");
    let left = lab.running.dispatcher.pending();
    assert!(left > 30_000, "{aggregate:?}: the backlog was there all the time: {left}");
    let moved = 160_000 - left;
    assert!(moved > 40_000, "{aggregate:?}: BOTH-MOVE: {moved} of the backlog were delivered meanwhile");
    assert!(lab.throttled < 50, "{aggregate:?}: {} throttles", lab.throttled);
    lab.running.handle.close();
    lab.running.commit.join().expect("commit thread");
    (without, beside)
}

#[test]
fn beside_a_large_backlog_events_of_new_keys_take_at_most_twice_as_long_as_without() {
    for (aggregate, order) in [(Aggregate::Kpl, Order::Key), (Aggregate::Off, Order::Key), (Aggregate::Kpl, Order::None)] {
        let (without, beside) = delays(aggregate, order);
        println!("{aggregate:?} {order:?}: {without:?} ms without, {beside:?} ms beside a backlog");
        assert!(beside.0 <= 2 * without.0 && beside.1 <= 2 * without.1, "{aggregate:?} {order:?}: {without:?}, {beside:?}");
    }
}

#[test]
fn one_agent_alone_has_the_full_rate_of_its_shards_within_two_seconds() {
    for (aggregate, bytes) in [(Aggregate::Kpl, 1_000), (Aggregate::Off, 1_000), (Aggregate::Off, 200)] {
        let mut lab = Lab::new(aggregate, Order::Key);
        for n in 0..40 {
            lab.write((0..1_000).map(|key| format!("old-{}", n * 1_000 + key)), bytes);
        }
        let full = |lab: &Lab| {
            let queues = &lab.running.dispatcher.queues;
            !queues.is_empty() && queues.iter().all(|queue| queue.limiter.rate_bytes() == SHARD_BYTES_PER_SECOND)
        };
        let took = (0..10_000).find(|_| {
            lab.tick(false);
            full(&lab)
        });
        println!("{aggregate:?}, {bytes} bytes: full rate after {took:?} ms");
        assert!(took.is_some_and(|ms| ms <= 2_000), "{aggregate:?}, {bytes} bytes: {took:?} ms");
        lab.running.handle.close();
        lab.running.commit.join().expect("commit thread");
    }
}

#[test]
fn a_key_that_makes_up_much_of_a_shard_is_told_by_its_hash() {
    let mut lab = Lab::new(Aggregate::Kpl, Order::Key);
    for n in 0..30 {
        lab.write((0..1_000).map(|key| if key % 4 == 0 { "hot".to_owned() } else { format!("old-{}", n * 1_000 + key) }), 100);
        for _ in 0..50 {
            lab.tick(false);
        }
    }
    lab.running.dispatcher.publish_shards(lab.history.now());
    let told: Vec<_> = locked(&lab.running.metrics.shards).iter().flat_map(|shard| shard.hot_keys.clone()).collect();
    // A quarter of all, and more than half of its shard of four.
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].hash, format!("{:032x}", KeyHash::of_key("hot").0));
    assert!((35..=70).contains(&told[0].percent), "{told:?}");
    lab.running.handle.close();
    lab.running.commit.join().expect("commit thread");
}
