//! Counters, gauges and histograms of one stream: written on the way of an event, read by `admin`.
//!
//! Owner: nobody; every field is an atomic or a short-lived lock. The counters of *EXACT-ACCOUNT* are written
//! together under one lock (`Account`), so that a reader never sees a sum that does not balance.
//!
//! Failure: none. A lock that a panicking thread left behind is taken over ([`locked`]): numbers are for
//! reading, and a reader must not fall because a writer did. Absent on purpose: names and formats, which are
//! `admin`'s.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::checkpoint::Checkpoint;
use crate::kinesis::StreamSummary;
use crate::limits::{RECORD_BYTES_MAX, event_bytes_of};
use crate::shard_map::ShardMap;

/// Bucket bounds, in seconds, of all latency histograms; +Inf is implied.
pub const LATENCY_BOUNDS_SECONDS: [f64; 18] = [
    0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003_2, 0.006_4, 0.012_8, 0.025_6, 0.051_2, 0.102_4, 0.204_8, 0.5, 1.0, 5.0,
    30.0, 300.0, 3_600.0,
];

/// Takes a lock, also when a thread panicked while it held it: for state that is whole between any two statements.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A histogram that takes many equal observations in one call. Lock-free.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; LATENCY_BOUNDS_SECONDS.len() + 1],
    /// The bits of an f64. Whole nanoseconds would overflow: 10^9 events that waited a minute make 6 * 10^19.
    sum_seconds_bits: AtomicU64,
}

impl Histogram {
    /// Counts `n` observations of `seconds`. What is negative or no number counts as 0.
    pub fn observe_n(&self, seconds: f64, n: u64) {
        let seconds = seconds.max(0.0);
        let at = LATENCY_BOUNDS_SECONDS.partition_point(|bound| *bound < seconds);
        self.buckets[at].fetch_add(n, Ordering::Relaxed);
        let add = seconds * n as f64;
        let mut old = self.sum_seconds_bits.load(Ordering::Relaxed);
        loop {
            let new = (f64::from_bits(old) + add).to_bits();
            match self.sum_seconds_bits.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(current) => old = current,
            }
        }
    }

    /// Sum in seconds, and the count of each bucket (not cumulated), the last one being +Inf.
    #[must_use]
    pub fn snapshot(&self) -> (f64, Vec<u64>) {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        (f64::from_bits(self.sum_seconds_bits.load(Ordering::Relaxed)), counts)
    }

    /// Observations so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Estimates several quantiles (each in 0..=1) from one reading: seconds, linear inside a bucket, as
    /// Prometheus' `histogram_quantile` does. `None` without observations. What lies above the last bound is
    /// told as the last bound, so an answer of 3,600 means "an hour or more".
    #[must_use]
    pub fn quantiles<const N: usize>(&self, wanted: [f64; N]) -> Option<[f64; N]> {
        let (_, counts) = self.snapshot();
        let total: u64 = counts.iter().sum();
        (total > 0).then(|| wanted.map(|q| quantile(&counts, total, q)))
    }
}

fn quantile(counts: &[u64], total: u64, q: f64) -> f64 {
    let rank = q.clamp(0.0, 1.0) * total as f64;
    let mut below = 0.0;
    let mut lower = 0.0;
    for (bound, count) in LATENCY_BOUNDS_SECONDS.iter().zip(counts) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return lower + (bound - lower) * ((rank - below) / count).max(0.0);
        }
        below += count;
        lower = *bound;
    }
    lower
}

/// The balance of a stream: `accepted = delivered + pending + dead + expired + dropped`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Events ever receipted into this spool.
    pub accepted: u64,
    /// Of these: Kinesis has them, readable.
    pub delivered: u64,
    /// Set aside with a reason.
    pub dead: u64,
    /// Too old by the user's rule.
    pub expired: u64,
    /// Given up by a policy the user chose.
    pub dropped: u64,
}

impl Account {
    /// What is neither delivered nor otherwise settled.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.accepted - self.delivered - self.dead - self.expired - self.dropped
    }
}

/// A partition key that has much of a shard, as samples tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HotKey {
    /// MD5 of the key (or its explicit hash key), as 32 hexadecimal digits: the key itself is event data.
    pub hash: String,
    /// At least so much of the shard's bytes, percent.
    pub percent: u8,
}

/// What `status` and `metrics` tell of one shard.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    /// Shard name.
    pub id: String,
    /// Bytes/s the limiter grants at present.
    pub rate_bytes: u64,
    /// Events waiting in memory.
    pub queued_events: u64,
    /// Records ever stored there by this process.
    pub records: u64,
    /// Throttled answers.
    pub throttled: u64,
    /// Reads its backlog from disk at present.
    pub lagging: bool,
    /// Keys that have a tenth or more of what goes there, the hottest first.
    pub hot_keys: Vec<HotKey>,
}

/// What `status` and `metrics` tell of a stream as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModeStatus {
    /// What Kinesis said last; `None` before it did.
    pub summary: Option<StreamSummary>,
    /// Whether keys decide a record's shard: `decide`, `ignored`, `unknown`; empty before delivery runs.
    pub keys: &'static str,
    /// The form of records in force: `off`, `kpl`, `lines`; empty before delivery runs.
    pub aggregate: &'static str,
    /// That is not the configured one.
    pub is_fallback: bool,
    /// What the mode costs the user, and why; empty when nothing.
    pub reason: String,
}

/// All that is measured of one stream.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    /// The balance, changed under one lock.
    pub account: Mutex<Account>,
    /// Events refused at the door, by source and reason.
    pub rejected: Mutex<BTreeMap<(String, &'static str), u64>>,
    /// Events accepted, by source.
    pub accepted_by_source: Mutex<BTreeMap<String, u64>>,
    /// Events sent again though an earlier sending may have been stored, by reason.
    pub duplicated: Mutex<BTreeMap<&'static str, u64>>,
    /// Bytes of all segment files.
    pub spool_bytes: AtomicU64,
    /// Segments that were made smaller because little of them was pending.
    pub rewritten_segments: AtomicU64,
    /// Wall clock (ms) of the oldest pending event; 0 when none.
    pub oldest_pending_ms: AtomicU64,
    /// One fdatasync with its write.
    pub commit_seconds: Histogram,
    /// From admission to receipt.
    pub receipt_seconds: Histogram,
    /// From receipt to Kinesis' answer, an observation an event.
    pub delivery_seconds: Histogram,
    /// PutRecords by outcome: `ok`, `partial`, or an error class' name.
    pub put_requests: Mutex<BTreeMap<&'static str, u64>>,
    /// Records go one by one, because PutRecords is denied and PutRecord is not.
    pub put_singly: AtomicBool,
    /// Records stored.
    pub put_records: AtomicU64,
    /// Bytes stored: data and keys.
    pub put_bytes: AtomicU64,
    /// 25 KiB units stored, as provisioned streams bill them.
    pub put_payload_units: AtomicU64,
    /// Records that a shard refused for its rate.
    pub throttled: AtomicU64,
    /// Shards as last seen.
    pub shards: Mutex<Vec<ShardStatus>>,
    /// The shards as Kinesis listed them last; `None` before it did, or while it may not tell. For doors that are asked for them.
    pub shard_map: Mutex<Option<Arc<ShardMap>>>,
    /// What is known of the stream as a whole.
    pub mode: Mutex<ModeStatus>,
    /// The largest record that the stream is known to take, bytes; 0 while that is not known. Set by
    /// [`StreamMetrics::set_record_bytes_max`].
    record_bytes_max: AtomicUsize,
    /// What the user could do for more events a second; empty when there is nothing to say.
    pub advice: Mutex<String>,
    /// Why the stream is paused, empty when it is not. Shown by status and readiness' body.
    pub paused_reason: Mutex<String>,
    /// The last saved marks, and the wall clock (ms) then: what another process cannot read while sled is open.
    pub saved_marks: Mutex<Option<(u64, Arc<Checkpoint>)>>,
    /// Why its spool could not be opened, empty when it is open: nothing is taken for it meanwhile.
    pub closed_reason: Mutex<String>,
    /// Why the last checkpoint could not be saved, empty when it could: no disk space is freed meanwhile, and a restart would
    /// send again.
    pub checkpoint_reason: Mutex<String>,
    /// Dead letters that are kept.
    pub dead_letters: AtomicU64,
    /// Bytes of all files of dead letters.
    pub dead_letter_bytes: AtomicU64,
    /// Why no dead letters can be written, empty when they can. Their events stay pending.
    pub dead_reason: Mutex<String>,
    /// The spool can make events durable.
    pub writable: AtomicBool,
    /// There is no room for new events: `max_bytes`, the reserve or the disk. Set by [`StreamMetrics::set_full`].
    pub full: AtomicBool,
    /// Which limit that is, as [`Limit`] counts them; 0 for none.
    full_by: AtomicU8,
    /// What the spool promises and does, as configured; empty until it runs.
    pub policy: OnceLock<PolicyTold>,
    /// What each source has in the spool, in the order in which sources registered.
    pub sources: Mutex<Vec<Arc<SourceUsage>>>,
}

impl StreamMetrics {
    /// Notes the largest record that the stream takes, bytes, as Kinesis said last.
    pub fn set_record_bytes_max(&self, bytes: usize) {
        self.record_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// The largest event that the stream is known to take with any key, bytes. Every stream takes one of
    /// [`EVENT_BYTES_MAX`](crate::limits::EVENT_BYTES_MAX).
    #[must_use]
    pub fn event_bytes_max(&self) -> usize {
        event_bytes_of(self.record_bytes_max.load(Ordering::Relaxed).max(RECORD_BYTES_MAX))
    }

    /// Notes that there is no room, and why; or that there is again.
    pub fn set_full(&self, limit: Option<Limit>) {
        self.full_by.store(limit.map_or(0, |limit| limit as u8), Ordering::Relaxed);
        self.full.store(limit.is_some(), Ordering::Release);
    }

    /// Why there is no room; `None` while there is some. One load while there is.
    #[must_use]
    pub fn full_by(&self) -> Option<Limit> {
        if !self.full.load(Ordering::Acquire) {
            return None;
        }
        Some(match self.full_by.load(Ordering::Relaxed) {
            by if by == Limit::Reserve as u8 => Limit::Reserve,
            by if by == Limit::Disk as u8 => Limit::Disk,
            _ => Limit::MaxBytes,
        })
    }
}

/// Why there is no room for an event. Closed: its names stand in status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The stream's files have reached `spool.max_bytes`.
    MaxBytes = 1,
    /// The file system has less free than `spool.reserve`.
    Reserve = 2,
    /// The device refused for want of room (ENOSPC, EDQUOT).
    Disk = 3,
    /// The source has used up its `spool_quota`; others have not.
    Quota = 4,
}

impl Limit {
    /// One word for machines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxBytes => "max_bytes",
            Self::Reserve => "reserve",
            Self::Disk => "disk",
            Self::Quota => "quota",
        }
    }

    /// What is the case, for people.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::MaxBytes => "the spool is full (spool.max_bytes): events are delivered more slowly than they come",
            Self::Reserve => "the spool is full: its disk has less free than spool.reserve",
            Self::Disk => "the spool is full: its disk has no room left (or the user's disk quota is used up)",
            Self::Quota => "the source has filled its share of the spool (spool_quota)",
        }
    }
}

/// What status tells of a spool's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTold {
    /// `spool.sync` in force.
    pub sync: String,
    /// `spool.on_full` in force.
    pub on_full: &'static str,
}

/// What one source has in a spool. The commit thread adds, removal of segments takes away.
#[derive(Debug)]
pub struct SourceUsage {
    /// The source.
    pub name: String,
    /// The most it may have, bytes; `u64::MAX` without a quota.
    pub quota: u64,
    /// Bytes of its frames in segments of this process.
    pub bytes: AtomicU64,
    /// It has met its quota since it was last below it.
    pub at_quota: AtomicBool,
    /// Of its events, refused since then.
    pub refused: AtomicU64,
    /// Told when bytes were taken away.
    pub freed: tokio::sync::Notify,
    /// Of its events, not stored because of its `allow` and `deny`, and answered as success.
    pub filtered: AtomicU64,
    /// Of its events, not stored because they were stored before (`dedupe`), and answered as success.
    pub deduplicated: AtomicU64,
    /// Ids for `dedupe` that were forgotten early, because there were too many.
    pub forgotten: AtomicU64,
}

impl SourceUsage {
    /// Nothing in the spool yet.
    #[must_use]
    pub fn new(name: &str, quota: Option<u64>) -> Self {
        Self {
            name: name.to_owned(),
            quota: quota.unwrap_or(u64::MAX),
            bytes: AtomicU64::new(0),
            at_quota: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            freed: tokio::sync::Notify::new(),
            filtered: AtomicU64::new(0),
            deduplicated: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        }
    }

    /// It may have no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.quota
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_on_a_bound_counts_below_it() {
        let histogram = Histogram::default();
        histogram.observe_n(0.000_1, 1);
        histogram.observe_n(0.000_100_1, 2);
        histogram.observe_n(f64::INFINITY, 4);
        let (_, counts) = histogram.snapshot();
        assert_eq!((counts[0], counts[1], counts[LATENCY_BOUNDS_SECONDS.len()]), (1, 2, 4));
    }

    #[test]
    fn the_sum_outlives_more_nanoseconds_than_an_integer_holds() {
        let histogram = Histogram::default();
        histogram.observe_n(3_000.0, 1 << 40);
        histogram.observe_n(3_000.0, 1 << 40);
        assert_eq!(histogram.snapshot().0, 3_000.0 * (1u64 << 41) as f64);
    }

    #[test]
    fn a_negative_or_missing_duration_counts_as_zero() {
        let histogram = Histogram::default();
        histogram.observe_n(-1.0, 1);
        histogram.observe_n(f64::NAN, 1);
        let (sum, counts) = histogram.snapshot();
        assert_eq!((sum, counts[0]), (0.0, 2));
    }

    #[test]
    fn quantiles_lie_in_the_bucket_that_holds_them() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles([0.5]), None);
        histogram.observe_n(0.001, 98);
        histogram.observe_n(20.0, 2);
        let [p50, p99] = histogram.quantiles([0.5, 0.99]).expect("100 observations");
        assert!((0.000_8..=0.001_6).contains(&p50), "{p50}");
        assert!((5.0..=30.0).contains(&p99), "{p99}");
        histogram.observe_n(1e9, 1_000_000);
        assert_eq!(histogram.quantiles([0.99]), Some([3_600.0]));
    }

    #[test]
    fn no_observation_is_lost_between_threads() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| histogram.observe_n(0.5, 2)));
            }
        });
        assert_eq!((histogram.count(), histogram.snapshot().0), (80_000, 40_000.0));
    }
}
