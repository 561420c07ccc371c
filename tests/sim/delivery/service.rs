//! A Kinesis stream without a network: shards with hash ranges that split and merge, limits, misfortunes, listings in pages.
//!
//! Place: `life.rs` asks what becomes of a call ([`Service::depart`]), brings it here when it arrives ([`Service::take`]), and
//! carries the answer. No clock and no timers of its own: everything is told `now`. Each record that a shard stores goes to
//! the judge at that moment. Owner: one life.
//!
//! A request arrives after the first part of its latency, takes effect there, and is answered after the second, so that two
//! under way may take effect in either order, a write may come long after its sender gave it up, and a listing, read page by
//! page, may show no moment that ever was.

use std::time::Duration;

use forebay::event::ShardId;
use forebay::kinesis::{EntryOutcome, ErrorClass, PutEntry, PutError, ShardRange, StreamSummary};
use forebay::shard_map::even_shards;

use crate::judge::{Broken, Judge, Parcel, holds, is_poison, md5_of};
use crate::spells::{Kind, Random, Weather};

// The service's own limits, written down again: a wrong constant of the program must not be followed.
const RECORDS_MAX: usize = 500;
const REQUEST_BYTES_MAX: usize = 5 * 1024 * 1024;
const RECORD_BYTES_MAX: usize = 1024 * 1024;
const KEY_CHARS_MAX: usize = 256;
/// What a shard takes in a second.
pub const SHARD_BYTES: f64 = 1024.0 * 1024.0;
const SHARD_RECORDS: f64 = 1000.0;

/// When the client gives a call up.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a service that sticks to a shard does so.
const STICKS_SECONDS: u64 = 15;

/// Shards that splits leave at most.
const SHARDS_MAX: usize = 24;

/// A shard that ever was.
#[derive(Debug)]
pub struct Shard {
    pub range: ShardRange,
    /// Their numbers.
    pub parents: Vec<usize>,
    /// Bytes and records it may take, as of then.
    bucket: (f64, f64, Duration),
    /// Bytes stored.
    pub bytes: u64,
}

impl Shard {
    fn new(range: ShardRange, parents: Vec<usize>) -> Self {
        Self { range, parents, bucket: (SHARD_BYTES, SHARD_RECORDS, Duration::ZERO), bytes: 0 }
    }

    /// `part`: of its capacity, what other producers leave.
    fn takes(&mut self, bytes: usize, part: f64, now: Duration) -> bool {
        let since = now.saturating_sub(self.bucket.2).as_secs_f64();
        let (bytes_max, records_max) = (SHARD_BYTES * part, (SHARD_RECORDS * part).max(1.0));
        let tokens = (self.bucket.0 + since * SHARD_BYTES * part).min(bytes_max);
        let records = (self.bucket.1 + since * SHARD_RECORDS * part).min(records_max);
        // A record larger than a second's worth has its turn when all of a second is there.
        let taken = tokens >= (bytes as f64).min(bytes_max) && records >= 1.0;
        let cost = if taken { (bytes as f64, 1.0) } else { (0.0, 0.0) };
        self.bucket = (tokens - cost.0, records - cost.1, now);
        taken
    }
}

/// What a client hears of its request.
#[derive(Debug)]
pub enum Told {
    /// What became of each record.
    Truth,
    /// One outcome too few or too many.
    Miscount,
    Error(PutError),
}

/// What becomes of a request.
#[derive(Debug)]
pub struct Fate {
    /// When it takes effect, if ever.
    pub arrives: Option<Duration>,
    pub answered: Duration,
    pub told: Told,
}

/// A listing that is being read.
#[derive(Debug)]
pub struct Listing {
    page: usize,
    read: Vec<ShardRange>,
}

/// The stream.
#[derive(Debug)]
pub struct Service {
    /// In the order in which they were made.
    pub shards: Vec<Shard>,
    /// What a listing was after each reshard.
    versions: Vec<Vec<ShardRange>>,
    pub weather: Weather,
    /// Keys decide nothing, weather or not.
    pub auto: bool,
    /// Since when that is so.
    auto_since: Option<Duration>,
    /// Where keys decide nothing, all records of some seconds lie in one shard.
    pub sticky: bool,
    /// Some events are refused for what they are.
    pub poison: Option<Refusal>,
    random: Random,
    /// When each ListShards began.
    pub lists: Vec<Duration>,
    pub met: std::collections::BTreeMap<&'static str, u64>,
}

/// How poison is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The record alone.
    Record,
    /// With all of its request.
    Request,
}

fn refusal(n: usize) -> PutError {
    let message = format!("Value at 'records.{n}.member.data' is refused");
    PutError { message, ..error(ErrorClass::Poison, "InvalidArgumentException") }
}

pub fn error(class: ErrorClass, code: &str) -> PutError {
    PutError { class, code: code.to_owned(), message: "by the weather".to_owned() }
}

impl Service {
    pub fn new(seed: u64, shards: u32, weather: Weather) -> Self {
        let shards: Vec<Shard> = even_shards(shards).into_iter().map(|range| Shard::new(range, Vec::new())).collect();
        let mut service = Self {
            shards,
            versions: Vec::new(),
            weather,
            auto: false,
            auto_since: None,
            sticky: false,
            poison: None,
            random: Random::new(seed ^ 0x5e41),
            lists: Vec::new(),
            met: std::collections::BTreeMap::new(),
        };
        service.note_version();
        service
    }

    pub fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn note_version(&mut self) {
        self.versions.push(self.shards.iter().map(|shard| shard.range.clone()).collect());
    }

    fn happens(&mut self, kind: Kind, thousandths: u64, now: Duration) -> bool {
        let odds = self.weather.odds(kind, thousandths, now);
        odds > 0 && self.random.below(1000) < odds
    }

    /// Keys decide nothing now.
    pub fn ignores_keys(&self, now: Duration) -> bool {
        self.auto || self.weather.spell(Kind::Auto, now).is_some()
    }

    /// For how long that has been so without a break, as far as it was looked at: at each request at least.
    pub fn ignored_keys_since(&mut self, now: Duration) -> Option<Duration> {
        let since = self.auto_since;
        self.auto_since = self.ignores_keys(now).then(|| since.unwrap_or(now));
        self.auto_since
    }

    fn latency(&mut self, now: Duration) -> (Duration, Duration) {
        let slow = self.weather.spell(Kind::Slow, now).map_or(1, |spell| 10 + spell.detail % 60);
        (self.random.millis(1, 20) * slow as u32, self.random.millis(1, 20) * slow as u32)
    }

    /// What refuses every call now, whatever it is.
    fn refuses_all(&mut self, now: Duration) -> Option<PutError> {
        let (kind, class, codes): (_, _, &[&str]) = [
            (Kind::Away, ErrorClass::Transient, &["connect", "dns", "tls"][..]),
            (Kind::Expired, ErrorClass::Configuration, &["ExpiredTokenException"]),
        ]
        .into_iter()
        .find(|(kind, ..)| self.weather.spell(*kind, now).is_some())?;
        self.meet(if kind == Kind::Away { "away" } else { "credentials expired" });
        let code = codes[self.random.below(codes.len() as u64) as usize];
        Some(error(class, code))
    }

    /// What becomes of a PutRecords that leaves now.
    pub fn depart(&mut self, now: Duration) -> Fate {
        let (there, back) = self.latency(now);
        let arrives = now + there;
        let refused = |error| Fate { arrives: None, answered: arrives + back, told: Told::Error(error) };
        if let Some(error) = self.refuses_all(now) {
            return refused(error);
        }
        let denied = [
            (Kind::Denied, "denied", ["AccessDeniedException", "ResourceNotFoundException"]),
            (Kind::Kms, "kms", ["KMSDisabledException", "KMSAccessDeniedException"]),
        ];
        for (kind, name, codes) in denied {
            if let Some(spell) = self.weather.spell(kind, now) {
                self.meet(name);
                return refused(error(ErrorClass::Configuration, codes[(spell.detail % 2) as usize]));
            }
        }
        if self.weather.spell(Kind::Storm, now).is_some() && self.random.percent(70) {
            self.meet("500 or 503");
            let stored = self.random.percent(50);
            let told = Told::Error(error(ErrorClass::UnknownOutcome, "HTTP 503"));
            return Fate { arrives: stored.then_some(arrives), answered: arrives + back, told };
        }
        if self.happens(Kind::RequestRefused, 30, now) {
            self.meet("request refused");
            let (class, code) = [
                (ErrorClass::Throttle, "LimitExceededException"),
                (ErrorClass::Throttle, "KMSThrottlingException"),
                (ErrorClass::Throttle, "ProvisionedThroughputExceededException"),
                (ErrorClass::Transient, "connect"),
                (ErrorClass::Configuration, "KMSInvalidStateException"),
            ][self.random.below(5) as usize];
            return refused(error(class, code));
        }
        let timeout = || Told::Error(error(ErrorClass::UnknownOutcome, "timeout"));
        if self.happens(Kind::AnswerLost, 25, now) {
            self.meet("answer lost");
            let reset = self.random.percent(50);
            let answered = if reset { arrives + back } else { now + REQUEST_TIMEOUT };
            return Fate { arrives: Some(arrives), answered, told: timeout() };
        }
        if self.happens(Kind::RequestLost, 20, now) {
            self.meet("request lost");
            return Fate { arrives: None, answered: now + REQUEST_TIMEOUT, told: timeout() };
        }
        if self.happens(Kind::LateWrite, 15, now) {
            self.meet("write after its sender gave it up");
            let late = self.random.millis(1, 15_000);
            let answered = now + self.random.millis(20, 10_000);
            return Fate { arrives: Some(answered + late), answered, told: timeout() };
        }
        if self.happens(Kind::Stuck, 10, now) {
            self.meet("stuck call");
            let stored = self.random.percent(50);
            return Fate { arrives: stored.then_some(arrives), answered: now + REQUEST_TIMEOUT, told: timeout() };
        }
        if self.happens(Kind::Miscount, 15, now) {
            self.meet("answer that does not match");
            return Fate { arrives: Some(arrives), answered: arrives + back, told: Told::Miscount };
        }
        if arrives + back - now > REQUEST_TIMEOUT {
            return Fate { arrives: Some(arrives), answered: now + REQUEST_TIMEOUT, told: timeout() };
        }
        Fate { arrives: Some(arrives), answered: arrives + back, told: Told::Truth }
    }

    fn check_limits(entries: &[PutEntry]) -> Result<(), Broken> {
        let size = |entry: &PutEntry| entry.data.len() + entry.partition_key.len();
        let bytes: usize = entries.iter().map(size).sum();
        let count = entries.len();
        holds!((1..=RECORDS_MAX).contains(&count), "INSIDE-THE-LIMITS: {count} records in a request");
        holds!(bytes <= REQUEST_BYTES_MAX, "INSIDE-THE-LIMITS: {bytes} bytes in a request");
        for entry in entries {
            holds!(size(entry) <= RECORD_BYTES_MAX, "INSIDE-THE-LIMITS: a record of {} bytes", size(entry));
            let chars = entry.partition_key.chars().count();
            holds!((1..=KEY_CHARS_MAX).contains(&chars), "INSIDE-THE-LIMITS: a key of {chars} characters");
        }
        Ok(())
    }

    /// The moment at which a request takes effect: what becomes of each record.
    pub fn take(
        &mut self,
        entries: &[PutEntry],
        parcels: &[Parcel],
        judge: &mut Judge,
        now: Duration,
    ) -> Result<Result<Vec<EntryOutcome>, PutError>, Broken> {
        Self::check_limits(entries)?;
        if self.poison == Some(Refusal::Request)
            && let Some(n) = entries.iter().position(|entry| is_poison(&entry.data))
        {
            self.meet("request refused for a record");
            return Ok(Err(refusal(n)));
        }
        let outcomes: Result<_, _> =
            entries.iter().zip(parcels).map(|(entry, parcel)| self.take_one(entry, parcel, judge, now)).collect();
        outcomes.map(Ok)
    }

    fn open_at(&self, hash: u128) -> usize {
        let takes = |range: &ShardRange| range.open && (range.first_hash..=range.last_hash).contains(&hash);
        self.shards.iter().position(|shard| takes(&shard.range)).expect("open shards cover the hash space")
    }

    /// One record.
    pub fn take_one(
        &mut self,
        entry: &PutEntry,
        parcel: &Parcel,
        judge: &mut Judge,
        now: Duration,
    ) -> Result<EntryOutcome, Broken> {
        let hash = if self.ignores_keys(now) {
            self.meet("record placed by AUTO");
            // It begins in the upper half of the hashes.
            let place = if self.sticky { forebay::host::mix64(4 + now.as_secs() / STICKS_SECONDS) } else { self.random.next() };
            u128::from(place) << 64
        } else {
            entry.explicit_hash_key.unwrap_or_else(|| md5_of(&entry.partition_key))
        };
        let failed = |class, code| Ok(EntryOutcome::Failed(error(class, code)));
        if self.happens(Kind::RecordThrottled, 60, now) {
            self.meet("record throttled");
            return failed(ErrorClass::Throttle, "ProvisionedThroughputExceededException");
        }
        if self.happens(Kind::RecordFailed, 40, now) {
            self.meet("record failed");
            let (class, code) = [
                (ErrorClass::Transient, "InternalFailure"),
                (ErrorClass::Transient, "InternalFailure"),
                (ErrorClass::Throttle, "KMSThrottlingException"),
                (ErrorClass::UnknownOutcome, "SomethingNewException"),
            ][self.random.below(4) as usize];
            return failed(class, code);
        }
        if self.poison == Some(Refusal::Record) && is_poison(&entry.data) {
            self.meet("record refused");
            return Ok(EntryOutcome::Failed(refusal(0)));
        }
        // A part of the hashes, an eighth to a half of them.
        let within = |detail: u64| hash.wrapping_sub(u128::from(detail) << 64) < u128::MAX >> (1 + detail % 3);
        if self.weather.spell(Kind::Dead, now).is_some_and(|spell| within(spell.detail)) {
            self.meet("dead shard");
            return failed(ErrorClass::Throttle, "ProvisionedThroughputExceededException");
        }
        let crowd = self.weather.spell(Kind::Crowded, now).filter(|spell| within(spell.detail));
        let part = crowd.map_or(1.0, |spell| 1.0 / (2 + spell.detail % 200) as f64);
        let at = self.open_at(hash);
        if !self.shards[at].takes(entry.billed_bytes(), part, now) {
            self.meet("over the shard's rate");
            return failed(ErrorClass::Throttle, "ProvisionedThroughputExceededException");
        }
        self.shards[at].bytes += entry.billed_bytes() as u64;
        judge.stored(&self.shards, at, parcel)?;
        Ok(EntryOutcome::Stored { shard: self.shards[at].range.id.clone() })
    }

    /// A ListShards begins: when its first page, or its refusal, is answered.
    pub fn list(&mut self, now: Duration) -> (Duration, Result<Listing, PutError>) {
        self.lists.push(now);
        let (there, back) = self.latency(now);
        let at = now + there + back;
        if let Some(error) = self.refuses_all(now) {
            return (at, Err(error));
        }
        if self.weather.spell(Kind::ListStuck, now).is_some() {
            self.meet("listing stuck");
            return (now + REQUEST_TIMEOUT, Err(error(ErrorClass::UnknownOutcome, "timeout")));
        }
        if self.weather.spell(Kind::ListDenied, now).is_some() {
            self.meet("listing denied");
            return (at, Err(error(ErrorClass::Configuration, "AccessDeniedException")));
        }
        let page = if self.weather.on(Kind::Pages) && now < self.weather.calm_at { 1 + self.random.below(4) } else { 1000 };
        (at, Ok(Listing { page: page as usize, read: Vec::new() }))
    }

    /// A page of it: the answer, or when the next page is.
    pub fn page(&mut self, listing: &mut Listing, now: Duration) -> Result<Result<Vec<ShardRange>, PutError>, Duration> {
        if self.weather.spell(Kind::ListThrottled, now).is_some() && self.random.percent(80) {
            self.meet("listing throttled");
            return Ok(Err(error(ErrorClass::Throttle, "LimitExceededException")));
        }
        if self.weather.spell(Kind::ListEmpty, now).is_some() {
            self.meet("listing empty");
            return Ok(Ok(Vec::new()));
        }
        if let Some(spell) = self.weather.spell(Kind::ListStale, now) {
            let age = spell.detail as usize % self.versions.len();
            if age > 0 {
                self.meet("listing stale");
            }
            return Ok(Ok(self.versions[self.versions.len() - 1 - age].clone()));
        }
        let from = listing.read.len();
        let all = self.versions.last().expect("one at least");
        let to = all.len().min(from + listing.page);
        listing.read.extend_from_slice(&all[from..to]);
        if to == all.len() {
            let listed = std::mem::take(&mut listing.read);
            if listed != *all {
                self.meet("listing of no moment");
            }
            return Ok(Ok(listed));
        }
        self.meet("listing in pages");
        let (there, back) = self.latency(now);
        Err(now + there + back)
    }

    /// DescribeStreamSummary: when it is answered, and how, if not with the truth of then.
    pub fn describe(&mut self, now: Duration) -> (Duration, Option<PutError>) {
        let (there, back) = self.latency(now);
        let refused = self.refuses_all(now).or_else(|| {
            let spell = self.weather.spell(Kind::SummaryDenied, now)?;
            self.meet("summary refused");
            let denied = spell.detail.is_multiple_of(2);
            Some(if denied {
                error(ErrorClass::Configuration, "AccessDeniedException")
            } else {
                error(ErrorClass::Throttle, "LimitExceededException")
            })
        });
        (now + there + back, refused)
    }

    pub fn summary(&self, now: Duration) -> StreamSummary {
        StreamSummary {
            arn: "arn:aws:kinesis:us-east-1:000000000000:stream/s".into(),
            status: "ACTIVE".into(),
            on_demand: Some(true),
            ignores_keys: Some(self.ignores_keys(now)),
            record_bytes_max: None,
            key: None,
        }
    }

    fn child(&mut self, first_hash: u128, last_hash: u128, parents: Vec<usize>) {
        let id = ShardId::from(format!("shardId-{:012}", self.shards.len()).as_str());
        let names = parents.iter().map(|at| self.shards[*at].range.id.clone()).collect();
        self.shards.push(Shard::new(ShardRange { id, first_hash, last_hash, open: true, parents: names }, parents));
    }

    fn open(&self) -> Vec<usize> {
        let mut open: Vec<usize> = (0..self.shards.len()).filter(|at| self.shards[*at].range.open).collect();
        open.sort_by_key(|at| self.shards[*at].range.first_hash);
        open
    }

    /// Splits the `n`-th open shard, anywhere or in the middle.
    pub fn split(&mut self, n: usize, middle: bool) {
        let open = self.open();
        if open.len() >= SHARDS_MAX {
            return;
        }
        let at = open[n % open.len()];
        let (first, last) = (self.shards[at].range.first_hash, self.shards[at].range.last_hash);
        let part = if middle { 2 } else { 2 + u128::from(self.random.below(20)) };
        if (last - first) / part == 0 {
            return;
        }
        let cut = first + (last - first) / part;
        self.shards[at].range.open = false;
        self.child(first, cut, vec![at]);
        self.child(cut + 1, last, vec![at]);
        self.note_version();
        self.meet("split");
    }

    /// Merges the `n`-th open shard with the next one.
    pub fn merge(&mut self, n: usize) {
        let open = self.open();
        if open.len() < 2 {
            return;
        }
        let n = n % (open.len() - 1);
        let (low, high) = (open[n], open[n + 1]);
        self.shards[low].range.open = false;
        self.shards[high].range.open = false;
        let (first, last) = (self.shards[low].range.first_hash, self.shards[high].range.last_hash);
        self.child(first, last, vec![low, high]);
        self.note_version();
        self.meet("merge");
    }
}
