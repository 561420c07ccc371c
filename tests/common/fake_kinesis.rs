//! A Kinesis stream in memory that throttles, splits, forgets to answer and counts every broken service limit.
//!
//! Place: implements `kinesis::KinesisApi` for tests of the dispatcher and for the simulator. Owner: one mutex around
//! one [`Stream`]; it is never held over an await. Every accepted record is kept in the order in which its shard took
//! it, for the checkers. *INSIDE-THE-LIMITS*: a request the real service would refuse for size, count or form is
//! refused as poison here and noted in [`FakeKinesis::violations`], which a test asserts to be empty.
//!
//! A request arrives after the first half of its drawn latency, takes effect there, and is answered after the second
//! half, so that two requests under way may take effect in either order. All draws come from one seed. Waits are
//! tokio's timers; rates are enforced only on request, on the `host::Clock` given with it.
//!
//! Failure: by plan only. Persistent ones ([`FakeKinesis::set_dead`], [`Odds`]) and one-shot ones for the next requests
//! ([`NextRequest`]). Absent on purpose: signatures, HTTP and sequence numbers beyond order; the embedded Kinesis of the
//! binary has those.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay::event::{KeyHash, ShardId};
use forebay::host::{Clock, mix64};
use forebay::kinesis::{BoxFuture, EntryOutcome, ErrorClass, KinesisApi, PutEntry, PutError, ShardRange, StreamSummary};
use tokio::sync::Notify;
use tokio::time::sleep;

/// A record as a shard took it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The request that brought it, from 0.
    pub request: u64,
    pub partition_key: String,
    pub explicit_hash_key: Option<u128>,
    pub data: Vec<u8>,
    pub shard: ShardId,
}

/// What happens to one of the next requests, in the order given.
#[derive(Clone, Debug)]
pub enum NextRequest {
    /// As usual.
    Normal,
    /// The whole request is refused with this class and has no effect.
    Refuse(ErrorClass),
    /// It takes effect, and the answer is lost: outcome unknown.
    LoseAnswer,
    /// It never arrives, and nobody can tell: outcome unknown.
    LoseRequest,
    /// It takes effect (or not) and then hangs until [`FakeKinesis::release_stuck`]; then it is answered as usual, or
    /// as outcome unknown when it had no effect.
    Stuck { takes_effect: bool },
}

/// Seeded misfortune, each in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    /// A record is answered as throttled.
    pub record_throttled: u32,
    /// A record is answered as an internal failure.
    pub record_failed: u32,
    /// A request is refused as a whole, passing.
    pub request_failed: u32,
    /// A request takes effect and its answer is lost.
    pub answer_lost: u32,
}

#[derive(Debug)]
struct Shard {
    range: ShardRange,
    dead: bool,
    accepted: Vec<Accepted>,
    /// Tokens of the last moment seen: bytes and records.
    bucket: (f64, f64, Duration),
    in_flight: u32,
    in_flight_most: u32,
}

#[derive(Debug)]
struct Stream {
    shards: Vec<Shard>,
    draws: u64,
    latency: (Duration, Duration),
    odds: Odds,
    next: VecDeque<NextRequest>,
    next_lists: VecDeque<ErrorClass>,
    rate_clock: Option<Arc<dyn Clock>>,
    auto: bool,
    requests: u64,
    lists: u64,
    in_flight: u32,
    in_flight_most: u32,
    throttled: u64,
    violations: Vec<String>,
}

/// The stream. Clones are the same stream.
#[derive(Clone, Debug)]
pub struct FakeKinesis {
    stream: Arc<Mutex<Stream>>,
    unstuck: Arc<Notify>,
}

const BUCKET_BYTES: f64 = forebay::limits::SHARD_BYTES_PER_SECOND as f64;
const BUCKET_RECORDS: f64 = forebay::limits::SHARD_RECORDS_PER_SECOND as f64;

// The service's own limits, written down again: the double must not follow a wrong constant of the program.
const RECORDS_MAX: usize = 500;
const REQUEST_BYTES_MAX: usize = 5 * 1024 * 1024;
const RECORD_BYTES_MAX: usize = 1024 * 1024;
const KEY_CHARS_MAX: usize = 256;

fn shard_id(number: usize) -> ShardId {
    ShardId::from(format!("shardId-{number:012}").as_str())
}

fn error(class: ErrorClass) -> PutError {
    let code = match class {
        ErrorClass::Throttle => "LimitExceededException",
        ErrorClass::Transient => "InternalFailure",
        ErrorClass::UnknownOutcome => "timeout",
        ErrorClass::Configuration => "AccessDeniedException",
        ErrorClass::Poison => "ValidationException",
    };
    PutError { class, code: code.to_owned(), message: "by the test's plan".to_owned() }
}

impl FakeKinesis {
    /// `shards` open shards that share the hash space equally, no latency, no misfortune.
    pub fn new(shards: usize, seed: u64) -> Self {
        assert!(shards > 0);
        let width = u128::MAX / shards as u128;
        let ranges = (0..shards).map(|n| {
            let first_hash = n as u128 * width;
            let last_hash = if n + 1 == shards { u128::MAX } else { (n as u128 + 1) * width - 1 };
            ShardRange { id: shard_id(n), first_hash, last_hash, open: true, parents: Vec::new() }
        });
        let stream = Stream {
            shards: ranges.map(Shard::new).collect(),
            draws: mix64(seed),
            latency: (Duration::ZERO, Duration::ZERO),
            odds: Odds::default(),
            next: VecDeque::new(),
            next_lists: VecDeque::new(),
            rate_clock: None,
            auto: false,
            requests: 0,
            lists: 0,
            in_flight: 0,
            in_flight_most: 0,
            throttled: 0,
            violations: Vec::new(),
        };
        Self { stream: Arc::new(Mutex::new(stream)), unstuck: Arc::new(Notify::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A request's round trip is drawn between these.
    pub fn set_latency(&self, least: Duration, most: Duration) {
        self.lock().latency = (least, most.max(least));
    }

    /// While dead, every record for the shard is answered as throttled.
    pub fn set_dead(&self, shard: &ShardId, dead: bool) {
        self.lock().shard_mut(shard).dead = dead;
    }

    /// Misfortune from now on.
    pub fn set_odds(&self, odds: Odds) {
        self.lock().odds = odds;
    }

    /// Plans the next requests that are not planned yet.
    pub fn plan(&self, next: impl IntoIterator<Item = NextRequest>) {
        self.lock().next.extend(next);
    }

    /// The next calls of `list_shards` fail with these.
    pub fn plan_lists(&self, next: impl IntoIterator<Item = ErrorClass>) {
        self.lock().next_lists.extend(next);
    }

    /// Lets every stuck request go on.
    pub fn release_stuck(&self) {
        self.unstuck.notify_waiters();
    }

    /// 1 MiB/s and 1,000 records/s a shard, with a second's worth in hand.
    pub fn enforce_rates(&self, clock: Arc<dyn Clock>) {
        self.lock().rate_clock = Some(clock);
    }

    /// `RecordDistributionStrategy = AUTO`: keys and explicit hash keys are ignored.
    pub fn set_auto(&self, auto: bool) {
        self.lock().auto = auto;
    }

    /// Splits an open shard in halves and gives the children's names.
    pub fn split(&self, shard: &ShardId) -> [ShardId; 2] {
        let mut stream = self.lock();
        let parent = stream.shard_mut(shard);
        assert!(parent.range.open, "{shard} is closed");
        parent.range.open = false;
        let (first, last) = (parent.range.first_hash, parent.range.last_hash);
        let middle = first + (last - first) / 2;
        [(first, middle), (middle + 1, last)].map(|(first, last)| stream.add(first, last, vec![shard.clone()]))
    }

    /// Merges two open neighbours and gives the child's name.
    pub fn merge(&self, left: &ShardId, right: &ShardId) -> ShardId {
        let mut stream = self.lock();
        let [low, high] = [left, right].map(|id| {
            let shard = stream.shard_mut(id);
            assert!(shard.range.open, "{id} is closed");
            shard.range.open = false;
            (shard.range.first_hash, shard.range.last_hash)
        });
        assert_eq!(low.1 + 1, high.0, "only neighbours merge");
        stream.add(low.0, high.1, vec![left.clone(), right.clone()])
    }

    /// All shards as `list_shards` would give them.
    pub fn shards(&self) -> Vec<ShardRange> {
        self.lock().shards.iter().map(|shard| shard.range.clone()).collect()
    }

    /// The open shard that takes this hash.
    pub fn shard_of(&self, hash: KeyHash) -> ShardId {
        let stream = self.lock();
        let at = stream.open_at(hash);
        stream.shards[at].range.id.clone()
    }

    /// What a shard has taken, in its order.
    pub fn accepted(&self, shard: &ShardId) -> Vec<Accepted> {
        self.lock().shard_mut(shard).accepted.clone()
    }

    /// Everything, parents before their children and each shard in its order: what a careful consumer reads.
    pub fn all_accepted(&self) -> Vec<Accepted> {
        // Children always have larger numbers than their parents.
        self.lock().shards.iter().flat_map(|shard| shard.accepted.iter().cloned()).collect()
    }

    /// Records stored.
    pub fn accepted_count(&self) -> usize {
        self.lock().shards.iter().map(|shard| shard.accepted.len()).sum()
    }

    /// PutRecords that arrived here, refused ones included.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// ListShards calls.
    pub fn lists(&self) -> u64 {
        self.lock().lists
    }

    /// Records answered as throttled.
    pub fn throttled(&self) -> u64 {
        self.lock().throttled
    }

    /// The most requests that were under way at once.
    pub fn most_in_flight(&self) -> u32 {
        self.lock().in_flight_most
    }

    /// The most records for one shard that were under way at once.
    pub fn most_in_flight_for(&self, shard: &ShardId) -> u32 {
        self.lock().shard_mut(shard).in_flight_most
    }

    /// Every service limit that a request broke. Must be empty at the end of every test.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    async fn put(&self, entries: Vec<PutEntry>) -> Result<Vec<EntryOutcome>, PutError> {
        let (request, plan, way_there, way_back) = self.lock().depart();
        let _departed = self.count_in_flight(&entries);
        sleep(way_there).await;
        let outcome = match plan {
            NextRequest::LoseRequest => Err(error(ErrorClass::UnknownOutcome)),
            NextRequest::Refuse(class) => Err(error(class)),
            NextRequest::Normal => self.lock().arrive(request, entries),
            NextRequest::LoseAnswer => self.lock().arrive(request, entries).and(Err(error(ErrorClass::UnknownOutcome))),
            NextRequest::Stuck { takes_effect } => {
                // Registered before the effect shows, so that a release that follows it is not missed.
                let released = self.unstuck.notified();
                let outcome =
                    if takes_effect { self.lock().arrive(request, entries) } else { Err(error(ErrorClass::UnknownOutcome)) };
                released.await;
                outcome
            }
        };
        sleep(way_back).await;
        outcome
    }

    fn count_in_flight(&self, entries: &[PutEntry]) -> InFlight {
        let mut stream = self.lock();
        let mut by_shard = BTreeMap::new();
        for entry in entries {
            *by_shard.entry(stream.open_at(hash_of(entry))).or_insert(0) += 1;
        }
        for (at, count) in &by_shard {
            let shard = &mut stream.shards[*at];
            shard.in_flight += count;
            shard.in_flight_most = shard.in_flight_most.max(shard.in_flight);
        }
        stream.in_flight += 1;
        stream.in_flight_most = stream.in_flight_most.max(stream.in_flight);
        InFlight { stream: self.stream.clone(), by_shard }
    }
}

/// Counts back when the call ends, also when the caller gives up on it.
struct InFlight {
    stream: Arc<Mutex<Stream>>,
    by_shard: BTreeMap<usize, u32>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut stream = self.stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (at, count) in &self.by_shard {
            stream.shards[*at].in_flight -= count;
        }
        stream.in_flight -= 1;
    }
}

fn hash_of(entry: &PutEntry) -> KeyHash {
    entry.explicit_hash_key.map_or_else(|| KeyHash::of_key(&entry.partition_key), KeyHash)
}

impl Shard {
    fn new(range: ShardRange) -> Self {
        let bucket = (BUCKET_BYTES, BUCKET_RECORDS, Duration::ZERO);
        Self { range, dead: false, accepted: Vec::new(), bucket, in_flight: 0, in_flight_most: 0 }
    }

    fn takes(&mut self, bytes: usize, now: Duration) -> bool {
        let since = now.saturating_sub(self.bucket.2).as_secs_f64();
        let tokens = (self.bucket.0 + since * BUCKET_BYTES).min(BUCKET_BYTES);
        let records = (self.bucket.1 + since * BUCKET_RECORDS).min(BUCKET_RECORDS);
        let taken = tokens >= bytes as f64 && records >= 1.0;
        let cost = if taken { (bytes as f64, 1.0) } else { (0.0, 0.0) };
        self.bucket = (tokens - cost.0, records - cost.1, now);
        taken
    }
}

impl Stream {
    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.draws)
    }

    fn happens(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.draw() % 1000 < u64::from(thousandths)
    }

    fn shard_mut(&mut self, id: &ShardId) -> &mut Shard {
        self.shards.iter_mut().find(|shard| shard.range.id == *id).unwrap_or_else(|| panic!("no shard {id}"))
    }

    fn open_at(&self, hash: KeyHash) -> usize {
        let takes = |range: &ShardRange| range.open && (range.first_hash..=range.last_hash).contains(&hash.0);
        self.shards.iter().position(|shard| takes(&shard.range)).expect("open shards cover the hash space")
    }

    fn add(&mut self, first_hash: u128, last_hash: u128, parents: Vec<ShardId>) -> ShardId {
        let id = shard_id(self.shards.len());
        self.shards.push(Shard::new(ShardRange { id: id.clone(), first_hash, last_hash, open: true, parents }));
        id
    }

    fn depart(&mut self) -> (u64, NextRequest, Duration, Duration) {
        let request = self.requests;
        self.requests += 1;
        let odds = self.odds;
        let plan = match self.next.pop_front() {
            Some(plan) => plan,
            None if self.happens(odds.request_failed) => NextRequest::Refuse(ErrorClass::Transient),
            None if self.happens(odds.answer_lost) => NextRequest::LoseAnswer,
            None => NextRequest::Normal,
        };
        let (least, most) = self.latency;
        let [way_there, way_back] = [0, 1].map(|_| {
            let share = (self.draw() >> 11) as f64 / (1u64 << 53) as f64;
            (least + (most - least).mul_f64(share)) / 2
        });
        (request, plan, way_there, way_back)
    }

    /// What the service's front door says about the form of a request.
    fn broken_limits(entries: &[PutEntry]) -> Vec<String> {
        let mut broken = Vec::new();
        if entries.is_empty() || entries.len() > RECORDS_MAX {
            broken.push(format!("{} records in a request", entries.len()));
        }
        let size = |entry: &PutEntry| entry.data.len() + entry.partition_key.len();
        let bytes: usize = entries.iter().map(size).sum();
        if bytes > REQUEST_BYTES_MAX {
            broken.push(format!("{bytes} bytes in a request"));
        }
        for entry in entries {
            if size(entry) > RECORD_BYTES_MAX {
                broken.push(format!("{} bytes in a record", size(entry)));
            }
            let chars = entry.partition_key.chars().count();
            if chars == 0 || chars > KEY_CHARS_MAX {
                broken.push(format!("{chars} characters in a key"));
            }
        }
        broken
    }

    /// The moment at which a request takes effect.
    fn arrive(&mut self, request: u64, entries: Vec<PutEntry>) -> Result<Vec<EntryOutcome>, PutError> {
        let broken = Self::broken_limits(&entries);
        if !broken.is_empty() {
            self.violations.extend(broken.into_iter().map(|what| format!("request {request}: {what}")));
            return Err(error(ErrorClass::Poison));
        }
        Ok(entries.into_iter().map(|entry| self.take(request, entry)).collect())
    }

    fn take(&mut self, request: u64, entry: PutEntry) -> EntryOutcome {
        let hash = if self.auto { KeyHash(u128::from(self.draw()) << 64) } else { hash_of(&entry) };
        let odds = self.odds;
        let unlucky = (self.happens(odds.record_throttled), self.happens(odds.record_failed));
        let at = self.open_at(hash);
        let now = self.rate_clock.as_ref().map(|clock| clock.monotonic());
        let shard = &mut self.shards[at];
        if shard.dead || unlucky.0 || now.is_some_and(|now| !shard.takes(entry.billed_bytes(), now)) {
            self.throttled += 1;
            let code = "ProvisionedThroughputExceededException".to_owned();
            let message = format!("Rate exceeded for shard {}", shard.range.id);
            return EntryOutcome::Failed(PutError { class: ErrorClass::Throttle, code, message });
        }
        if unlucky.1 {
            return EntryOutcome::Failed(error(ErrorClass::Transient));
        }
        let id = shard.range.id.clone();
        let PutEntry { partition_key, explicit_hash_key, data } = entry;
        shard.accepted.push(Accepted { request, partition_key, explicit_hash_key, data, shard: id.clone() });
        EntryOutcome::Stored { shard: id }
    }
}

impl KinesisApi for FakeKinesis {
    fn put_records(&self, entries: Vec<PutEntry>) -> BoxFuture<'_, Result<Vec<EntryOutcome>, PutError>> {
        Box::pin(self.put(entries))
    }

    fn list_shards(&self) -> BoxFuture<'_, Result<Vec<ShardRange>, PutError>> {
        Box::pin(async move {
            let latency = self.lock().latency.0;
            sleep(latency).await;
            let mut stream = self.lock();
            stream.lists += 1;
            match stream.next_lists.pop_front() {
                Some(class) => Err(error(class)),
                None => Ok(stream.shards.iter().map(|shard| shard.range.clone()).collect()),
            }
        })
    }

    fn summary(&self) -> BoxFuture<'_, Result<StreamSummary, PutError>> {
        Box::pin(async move {
            let latency = self.lock().latency.0;
            sleep(latency).await;
            let auto = self.lock().auto;
            Ok(StreamSummary {
                arn: "arn:aws:kinesis:us-east-1:000000000000:stream/fake".into(),
                status: "ACTIVE".into(),
                on_demand: Some(true),
                ignores_keys: Some(auto),
                record_bytes_max: Some(RECORD_BYTES_MAX),
                key: None,
            })
        })
    }
}

#[cfg(test)]
#[path = "fake_kinesis_tests.rs"]
mod tests;
