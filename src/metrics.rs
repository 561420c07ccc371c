//! Counters, gauges and histograms of one stream: written on the way of an event, read by `admin`.
//!
//! Owner: nobody; every field is an atomic. The counters of *EXACT-ACCOUNT* are written together by
//! `dispatch` under one lock (`Account`), so that a reader never sees a sum that does not balance.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bucket bounds, in seconds, of all latency histograms; +Inf is implied.
pub const LATENCY_BOUNDS_SECONDS: [f64; 18] = [
    0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003_2, 0.006_4, 0.012_8, 0.025_6, 0.051_2, 0.102_4, 0.204_8, 0.5, 1.0, 5.0,
    30.0, 300.0, 3_600.0,
];

/// A histogram that takes many equal observations in one call. Lock-free.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; LATENCY_BOUNDS_SECONDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Counts `n` observations of `seconds`.
    pub fn observe_n(&self, seconds: f64, n: u64) {
        let at = LATENCY_BOUNDS_SECONDS.partition_point(|bound| *bound < seconds);
        self.buckets[at].fetch_add(n, Ordering::Relaxed);
        self.sum_nanos.fetch_add((seconds * 1e9) as u64 * n, Ordering::Relaxed);
    }

    /// Sum in seconds, and the count of each bucket (not cumulated), the last one being +Inf.
    #[must_use]
    pub fn snapshot(&self) -> (f64, Vec<u64>) {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        (self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9, counts)
    }
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
    /// Why the stream is paused, empty when it is not. Shown by status and readiness' body.
    pub paused_reason: Mutex<String>,
    /// The spool can make events durable.
    pub writable: AtomicBool,
    /// The spool is at `max_bytes` (or the disk is full) and holds events back.
    pub full: AtomicBool,
}
