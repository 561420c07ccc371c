//! Seeded histories of the real dispatcher over a real spool: a model of Kinesis that throttles, loses answers,
//! fails, reshards and answers out of turn, crashes in between; and a reader by KCL's rules that checks the
//! promises by name. One seed is one history: `FOREBAY_SEED=7 cargo test dispatch::tests` runs that one alone.

mod expiry;
mod fresh;
mod linger;
mod poison;
mod storms;
mod together;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::outgoing::Outgoing;
use super::*;
use crate::aggregate::MAGIC;
use crate::checkpoint::Checkpoint;
use crate::deaggregate::deaggregate;
use crate::event::KeyHash;
use crate::host::{Clock, Entropy, mix64};
use crate::kinesis::{EntryOutcome, ErrorClass, PutEntry, StreamSummary};
use crate::limits::Budgets;
use crate::spool::dead::desk::DeadLetters;
use crate::spool::gather::commit_loop;
use crate::spool::rewrite::Rewritten;
use crate::spool::{self, SpoolHandle, SpoolOptions};

mod mode;
mod oversize;
mod rewrites;

#[derive(Debug, Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Seeded(AtomicU64);

impl Entropy for Seeded {
    fn next_u64(&self) -> u64 {
        mix64(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }
}

impl Seeded {
    fn below(&self, n: u64) -> u64 {
        self.next_u64() % n
    }
    fn percent(&self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// Kinesis, as far as a producer and a KCL consumer can tell.
#[derive(Debug)]
struct Model {
    shards: Vec<ShardRange>,
    stored: HashMap<ShardId, Vec<PutEntry>>,
    made: u32,
    /// Record distribution AUTO: keys decide nothing. The number makes them land evenly.
    auto: Option<u64>,
    /// Then: all of a request lies in one shard.
    sticky: bool,
    /// What a question for the stream's summary is answered with, if not the truth.
    refuses: Option<PutError>,
    /// The largest record it takes. `None`: 1 MiB, and it does not say.
    record_bytes_max: Option<usize>,
    /// Requests that it refused for a larger one.
    too_large: u32,
}

impl Model {
    fn new(shards: u32) -> Self {
        Self {
            shards: even_shards(shards),
            stored: HashMap::new(),
            made: shards,
            auto: None,
            sticky: false,
            refuses: None,
            record_bytes_max: None,
            too_large: 0,
        }
    }

    fn hash_of(entry: &PutEntry) -> u128 {
        entry.explicit_hash_key.unwrap_or(KeyHash::of_key(&entry.partition_key).0)
    }

    fn store(&mut self, entry: PutEntry) -> ShardId {
        assert!(entry.partition_key.chars().count() <= 256 && self.takes(&entry), "INSIDE-THE-LIMITS");
        let hash = match &mut self.auto {
            Some(landed) => {
                *landed += u64::from(!self.sticky);
                u128::from(mix64(*landed)) << 64
            }
            None => Self::hash_of(&entry),
        };
        let shard = self.shards.iter().find(|shard| shard.open && (shard.first_hash..=shard.last_hash).contains(&hash));
        let id = shard.expect("open shards cover").id.clone();
        self.stored.entry(id.clone()).or_default().push(entry);
        id
    }

    fn takes(&self, entry: &PutEntry) -> bool {
        entry.billed_bytes() <= self.record_bytes_max.unwrap_or(1 << 20)
    }

    fn child(&mut self, first_hash: u128, last_hash: u128, parents: Vec<ShardId>) {
        let id = ShardId::from(format!("shardId-{:012}", self.made).as_str());
        self.made += 1;
        self.shards.push(ShardRange { id, first_hash, last_hash, open: true, parents });
    }

    fn split(&mut self, n: u64) {
        let open: Vec<usize> = (0..self.shards.len()).filter(|at| self.shards[*at].open).collect();
        let at = open[n as usize % open.len()];
        self.shards[at].open = false;
        let (first, last, id) = (self.shards[at].first_hash, self.shards[at].last_hash, self.shards[at].id.clone());
        let middle = first + (last - first) / 3;
        self.child(first, middle, vec![id.clone()]);
        self.child(middle + 1, last, vec![id]);
    }

    fn merge(&mut self, n: u64) {
        let mut open: Vec<usize> = (0..self.shards.len()).filter(|at| self.shards[*at].open).collect();
        open.sort_by_key(|at| self.shards[*at].first_hash);
        if open.len() < 2 {
            return;
        }
        let n = n as usize % (open.len() - 1);
        let (a, b) = (open[n], open[n + 1]);
        self.shards[a].open = false;
        self.shards[b].open = false;
        let (first, last) = (self.shards[a].first_hash, self.shards[b].last_hash);
        let parents = vec![self.shards[a].id.clone(), self.shards[b].id.clone()];
        self.child(first, last, parents);
    }

    fn summary(&self) -> Result<StreamSummary, PutError> {
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        Ok(StreamSummary {
            arn: "arn:aws:kinesis:us-east-1:000000000000:stream/s".into(),
            status: "ACTIVE".into(),
            on_demand: Some(true),
            ignores_keys: Some(self.auto.is_some()),
            record_bytes_max: self.record_bytes_max,
            key: None,
        })
    }

    /// What a KCL consumer hands to its application, parents before children: key and number of each event.
    fn read(&self) -> Vec<(String, u64)> {
        let mut out = Vec::new();
        // Children are made after their parents, so creation order is an order of reading.
        for shard in &self.shards {
            for entry in self.stored.get(&shard.id).into_iter().flatten() {
                if entry.data.ends_with(b"\n") && !entry.data.starts_with(&MAGIC) {
                    let lines = entry.data.strip_suffix(b"\n").expect("it ends so").split(|byte| *byte == b'\n');
                    out.extend(lines.map(|line| (key_of_line(line), number(line))));
                    continue;
                }
                let content = deaggregate(&entry.data, &entry.partition_key, entry.explicit_hash_key);
                if content.readable_in(shard.first_hash, shard.last_hash) {
                    let events = content.members().iter();
                    out.extend(events.map(|event| (event.key_str().expect("our key").to_owned(), number(event.data))));
                }
            }
        }
        out
    }
}

fn key_of_line(line: &[u8]) -> String {
    std::str::from_utf8(line).ok().and_then(|text| text.split(' ').nth(1)).expect("our data").to_owned()
}

fn number(data: &[u8]) -> u64 {
    std::str::from_utf8(data).ok().and_then(|text| text.split(' ').next()).and_then(|n| n.parse().ok()).expect("our data")
}

/// The one history of a seed.
struct History {
    seed: u64,
    random: Seeded,
    clock: Arc<TestClock>,
    host: Host,
    dir: tempfile::TempDir,
    options: DispatchOptions,
    model: Model,
    keys: u64,
    accepted: BTreeMap<String, u64>,
    saved: Checkpoint,
    counted_before: u64,
    faults: bool,
    /// Hashes of a shard that takes nothing.
    dead: Option<std::ops::RangeInclusive<u128>>,
    dead_max_bytes: u64,
    segment_bytes: u64,
    /// Data of an event is shorter than this.
    padding: u64,
    /// KEY-ORDER holds. It cannot where the stream ignores keys.
    ordered: bool,
    /// Questions for the shards and for the stream's summary.
    asked: (u64, u64),
    /// Records of one shard under way at once.
    under_way_most: usize,
    /// So many events of a hundred are such that Kinesis refuses a request for them.
    poison_percent: u64,
    /// Those.
    poison: BTreeSet<(String, u64)>,
    /// It refuses the record instead.
    poison_by_record: bool,
    /// It does not say that it is for a record.
    poison_unnamed: bool,
    /// Every request is refused, whatever is in it.
    refuse_all: bool,
    /// Every request, or every record of each, fails like this.
    storm: Option<(PutError, bool)>,
    /// The shards may not be listed.
    list_denied: bool,
    /// They may be after so many rounds.
    list_denied_rounds: u32,
    /// Requests answered so far.
    answered: u64,
    /// Age at which an event makes its shard late, ms: then a backlog is dealt with.
    late_ms: u64,
    /// Rounds in which fresh events went ahead.
    went_ahead: u64,
}

struct Running {
    handle: SpoolHandle,
    commit: JoinHandle<()>,
    dispatcher: Dispatcher,
    metrics: Arc<StreamMetrics>,
    under_way: Vec<(Outgoing, Duration)>,
    listing: Option<Vec<ShardRange>>,
    /// A segment's copy that has not taken its place yet.
    copy: Option<Rewritten>,
}

impl History {
    fn new(seed: u64, aggregate: Aggregate) -> Self {
        let random = Seeded(AtomicU64::new(mix64(seed)));
        let clock = Arc::<TestClock>::default();
        let host =
            Host { files: Host::real().files, clock: Arc::clone(&clock) as _, entropy: Arc::new(Seeded(AtomicU64::new(seed))) };
        let options = DispatchOptions {
            aggregate,
            order: Order::Key,
            keys_vouched: false,
            ask_mode_within: Duration::ZERO,
            linger: Duration::from_millis(random.below(3) * 20),
            record_bytes_max: 256 + random.below(2000) as usize,
            request_bytes_max: 5 << 20,
            requests_max: 1 + random.below(6) as usize,
            // Small, so that queues fill and lag.
            slots_max: 64 << random.below(8),
            ttl: Duration::ZERO,
        };
        let model = Model::new(1 + random.below(7) as u32);
        let keys = 1 + random.below(40);
        Self {
            seed,
            random,
            clock,
            host,
            dir: tempfile::tempdir().expect("temp dir"),
            options,
            model,
            keys,
            accepted: BTreeMap::new(),
            saved: Checkpoint::default(),
            counted_before: 0,
            faults: true,
            dead: None,
            dead_max_bytes: 1 << 30,
            segment_bytes: 16 << 10,
            padding: 120,
            ordered: true,
            asked: (0, 0),
            under_way_most: 0,
            poison_percent: 0,
            poison: BTreeSet::new(),
            poison_by_record: false,
            poison_unnamed: false,
            refuse_all: false,
            storm: None,
            list_denied: false,
            list_denied_rounds: 0,
            answered: 0,
            // A quarter of all histories have fresh events that go ahead.
            late_ms: if seed % 4 == 3 { 50 } else { fresh::LATE_DEFAULT },
            went_ahead: 0,
        }
    }

    fn start(&mut self, sent_high: Position) -> Running {
        let options = SpoolOptions {
            stream: "s".into(),
            dir: self.dir.path().to_owned(),
            max_bytes: 1 << 30,
            segment_bytes: self.segment_bytes,
        };
        spool::prepare(&self.host, &options).expect("prepare");
        let metrics = Arc::<StreamMetrics>::default();
        let opened = spool::open(&self.host, &options, self.saved.durable, &metrics).expect("open");
        let shared = Arc::clone(opened.handle.shared());
        let mut cursor = Cursor::new(Arc::clone(&shared), Arc::clone(&self.host.files));
        let next = opened.writer.next();
        let pending: u64 =
            shared.table.all().iter().map(|segment| cursor.pending(segment, &self.saved.marks).expect("read")).sum();
        {
            let mut account = metrics.account.lock().expect("not poisoned");
            account.accepted = next.0;
            account.expired = self.saved.expired;
            account.dead = self.saved.dead;
            account.dropped = self.saved.dropped;
            account.delivered = next.0 - pending - account.expired - account.dead - account.dropped;
        }
        let dispatcher =
            Dispatcher::new(self.options.clone(), self.host.clone(), cursor, Arc::clone(&metrics), &self.saved, sent_high);
        let dead = spool::dead_dir(self.dir.path());
        let letters = DeadLetters::open(&self.host, &dead, self.dead_max_bytes, &metrics).expect("open letters");
        let letters = Arc::new(letters);
        let known = letters.store().unsettled(false).expect("read letters");
        let mut dispatcher = dispatcher;
        dispatcher.late_ms = self.late_ms;
        if self.seed.is_multiple_of(3) {
            // Queues that lag are soon too far apart to read together: several groups, and some alone.
            dispatcher.meeting_bytes = 1 << 10;
        }
        dispatcher.keep_letters(letters, &known).expect("read");
        // Alone, or one of up to eight that share the memory.
        dispatcher.share_memory(&Budgets::of_one_in(1 + self.seed as usize % 8));
        let writer = opened.writer;
        let commit = std::thread::spawn(move || commit_loop(&shared, writer));
        Running { handle: opened.handle, commit, dispatcher, metrics, under_way: Vec::new(), listing: None, copy: None }
    }

    /// Writes some events and waits for their receipts.
    fn write(&mut self, running: &Running) {
        let mut batch = running.handle.batch();
        for _ in 0..self.random.below(60) {
            // A hot key now and then.
            let key = format!("key-{}", if self.random.percent(20) { 0 } else { self.random.below(self.keys) });
            let mut padding = "x".repeat(self.random.below(self.padding) as usize);
            let n = self.accepted.entry(key.clone()).or_default();
            let data = if self.options.aggregate == Aggregate::Lines {
                if self.random.percent(5) {
                    padding.insert(0, '\n');
                    padding.push('x');
                }
                // What reads lines finds the key in the event.
                format!("{n} {key} {padding}")
            } else {
                if self.poison_percent > 0 && self.random.percent(self.poison_percent) {
                    self.poison.insert((key.clone(), *n));
                    padding = "POISON".into();
                }
                format!("{n} {padding}")
            };
            batch.push(&key, None, data.as_bytes());
            *n += 1;
        }
        let permit = running.handle.try_admit(batch.len()).expect("room");
        running.handle.submit(batch, permit).wait().expect("durable");
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn answer(&mut self, request: &Outgoing) -> Result<Vec<EntryOutcome>, PutError> {
        let error = |class, code: &str| PutError { class, code: code.into(), message: String::new() };
        let entries = request.entries();
        assert!(
            entries.len() <= 500 && entries.iter().map(PutEntry::billed_bytes).sum::<usize>() <= self.options.request_bytes_max,
            "INSIDE-THE-LIMITS"
        );
        self.answered += 1;
        if let Some(landed) = &mut self.model.auto {
            *landed += 1;
        }
        if let Some((error, by_record)) = self.storm.clone() {
            let outcomes = entries.iter().map(|_| EntryOutcome::Failed(error.clone())).collect();
            return if by_record { Ok(outcomes) } else { Err(error) };
        }
        let named = if self.refuse_all || self.poison_unnamed { "Value" } else { "Value '…' at 'records.1.member.data'" };
        let refusal = || PutError { message: named.into(), ..error(ErrorClass::Poison, "ValidationException") };
        let poisoned: Vec<bool> = entries.iter().map(poison::holds_poison).collect();
        if self.refuse_all || (!self.poison_by_record && poisoned.contains(&true)) {
            // Even so a request may not arrive, and be refused for it.
            return Err(if self.faults && self.random.percent(15) {
                error(ErrorClass::UnknownOutcome, "timeout")
            } else {
                refusal()
            });
        }
        if !entries.iter().all(|entry| self.model.takes(entry)) {
            self.model.too_large += 1;
            return Err(refusal());
        }
        if poisoned.contains(&true) {
            let outcomes = entries.into_iter().zip(poisoned).map(|(entry, poisoned)| {
                if poisoned { EntryOutcome::Failed(refusal()) } else { EntryOutcome::Stored { shard: self.model.store(entry) } }
            });
            return Ok(outcomes.collect());
        }
        if !self.faults {
            let answered = entries.into_iter().map(|entry| {
                if self.dead.as_ref().is_some_and(|dead| dead.contains(&Model::hash_of(&entry))) {
                    return EntryOutcome::Failed(error(ErrorClass::Throttle, "ProvisionedThroughputExceededException"));
                }
                EntryOutcome::Stored { shard: self.model.store(entry) }
            });
            return Ok(answered.collect());
        }
        match self.random.below(100) {
            0..5 => return Err(error(ErrorClass::Transient, "connect")),
            5..7 => return Err(error(ErrorClass::Configuration, "ExpiredTokenException")),
            7..10 => return Err(error(ErrorClass::UnknownOutcome, "timeout")),
            10..13 => {
                for entry in entries {
                    self.model.store(entry);
                }
                return Err(error(ErrorClass::UnknownOutcome, "reset"));
            }
            _ => {}
        }
        let mut outcomes = Vec::new();
        for entry in entries {
            outcomes.push(match self.random.below(100) {
                0..12 => EntryOutcome::Failed(error(ErrorClass::Throttle, "ProvisionedThroughputExceededException")),
                12..16 => EntryOutcome::Failed(error(ErrorClass::Transient, "InternalFailure")),
                _ => EntryOutcome::Stored { shard: self.model.store(entry) },
            });
        }
        Ok(outcomes)
    }

    /// One moment: time passes, answers come in any order, requests leave.
    fn step(&mut self, running: &mut Running) {
        self.clock.0.fetch_add(1 + self.random.below(40), Ordering::Relaxed);
        let now = self.now();
        if let Some(shards) = running.listing.take() {
            running.dispatcher.on_map(Ok(shards), now);
        }
        if running.dispatcher.ask_for_map(now) {
            // As it is now; it may change before it arrives.
            self.asked.0 += 1;
            if self.list_denied {
                let (class, code) = (ErrorClass::Configuration, "AccessDeniedException".to_owned());
                running.dispatcher.on_map(Err(PutError { class, code, message: String::new() }), now);
            } else {
                running.listing = Some(self.model.shards.clone());
            }
        }
        if running.dispatcher.ask_for_summary(now) {
            self.asked.1 += 1;
            running.dispatcher.on_summary(self.model.summary(), now);
        }
        while !running.under_way.is_empty() && self.random.percent(60) {
            let at = self.random.below(running.under_way.len() as u64) as usize;
            let (request, _) = running.under_way.swap_remove(at);
            let answer = self.answer(&request);
            running.dispatcher.on_answer(request.id, answer, now);
        }
        for request in running.dispatcher.poll(now) {
            running.under_way.push((request, now));
        }
        assert!(running.under_way.len() <= self.options.requests_max, "requests under way");
        self.went_ahead += u64::from(running.dispatcher.queues.iter().any(|queue| queue.side_len(true) > 0));
        let under_way = running.dispatcher.queues.iter().map(|queue| queue.under_way).max().unwrap_or(0);
        self.under_way_most = self.under_way_most.max(under_way);
        let account = *running.metrics.account.lock().expect("not poisoned");
        assert!(account.accepted >= account.delivered + account.dead, "EXACT-ACCOUNT");
        if self.random.percent(10) {
            let checkpoint = running.dispatcher.checkpoint(false);
            // Through its bytes, which assert that no mark is past what is durable.
            self.saved = Checkpoint::decode(&checkpoint.encode()).expect("whole");
            running.dispatcher.on_saved(&self.saved);
            self.rewrite(running);
        }
        if self.faults && self.random.percent(2) {
            let n = self.random.next_u64();
            if self.random.percent(60) { self.model.split(n) } else { self.model.merge(n) }
        }
    }

    /// Requests that were under way when the process died may or may not have been stored.
    fn crash(&mut self, running: Running) -> Position {
        for (request, _) in &running.under_way {
            let entries = request.entries();
            let taken = self.poison_by_record || !entries.iter().any(poison::holds_poison);
            if self.random.percent(50) && taken && !self.refuse_all {
                for entry in entries.into_iter().filter(|entry| !poison::holds_poison(entry)) {
                    self.model.store(entry);
                }
            }
        }
        self.counted_before += counted(&running.metrics);
        let high = running.dispatcher.sent_high();
        running.handle.close();
        running.commit.join().expect("commit thread");
        high
    }

    fn run(mut self) {
        let mut running = self.start(Position(0));
        for round in 0..120 {
            self.list_denied = round < self.list_denied_rounds;
            self.write(&running);
            for _ in 0..self.random.below(5) {
                self.step(&mut running);
            }
            if self.random.percent(2) {
                let high = self.crash(running);
                running = self.start(high);
            }
        }
        self.finish(running);
    }

    fn finish(mut self, mut running: Running) {
        // Liveness: faults stop, all is delivered in bounded time.
        self.faults = false;
        for _ in 0..20_000 {
            if running.dispatcher.is_settled() {
                break;
            }
            self.step(&mut running);
        }
        let seed = self.seed;
        assert!(running.dispatcher.is_settled(), "seed {seed}: does not drain: {:?}", running.dispatcher);
        let total: u64 = self.accepted.values().sum();
        let account = *running.metrics.account.lock().expect("not poisoned");
        assert_eq!((account.accepted, account.delivered), (total, total), "seed {seed}: EXACT-ACCOUNT");
        while !running.under_way.is_empty() {
            self.step(&mut running);
        }

        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        let mut repeats = 0;
        let mut read = self.model.read();
        if !self.ordered {
            read.sort();
        }
        for (key, n) in read {
            let next = seen.entry(key.clone()).or_default();
            assert!(n <= *next, "seed {seed}: KEY-ORDER: event {n} of {key} before {next}");
            if n == *next {
                *next += 1;
            } else {
                repeats += 1;
            }
        }
        assert_eq!(seen, self.accepted.into_iter().filter(|(_, n)| *n > 0).collect(), "seed {seed}: DELIVERED-MEANS-READABLE");
        let counted = self.counted_before + counted(&running.metrics);
        assert!(repeats <= counted, "seed {seed}: DUPLICATES-EXPLAINED: {repeats} repeated, {counted} counted");

        let last = running.dispatcher.checkpoint(true);
        assert!(last.clean && last.marks.iter().all(|mark| *mark == last.durable), "seed {seed}: all marks at the end");
        running.dispatcher.on_saved(&last);
        assert_eq!(running.handle.shared().table.all().len().max(1), 1, "seed {seed}: settled segments go");
        running.handle.close();
        running.commit.join().expect("commit thread");
    }
}

fn counted(metrics: &StreamMetrics) -> u64 {
    metrics.duplicated.lock().expect("not poisoned").values().sum()
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("FOREBAY_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..60,
    }
}

#[test]
fn through_faults_reshards_and_crashes_aggregates_keep_every_promise() {
    for seed in seeds() {
        History::new(seed, Aggregate::Kpl).run();
    }
}

#[test]
fn through_faults_reshards_and_crashes_single_events_keep_every_promise() {
    for seed in seeds() {
        History::new(seed, Aggregate::Off).run();
    }
}

#[test]
fn through_faults_reshards_and_crashes_lines_keep_every_promise() {
    for seed in seeds() {
        History::new(seed, Aggregate::Lines).run();
    }
}
