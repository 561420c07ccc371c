//! What one shard may be given now: two token buckets whose rate follows the shard's answers.
//!
//! Place: one in each shard's queue. Pure: takes `now`, holds no clock.
//!
//! A shard takes 1 MiB/s and 1,000 records/s (`limits`), shared by producers that know nothing of each other.
//! So the rate adapts: a throttle takes it down by a third, good answers bring it back by a twentieth of the
//! full rate a second (AIMD). *NO-OVERDRAW*: over any time the granted amount is at most rate × time + burst + one
//! record: a bucket may go below zero by the last record, and nothing is granted until it is above zero again,
//! so that a record larger than the burst still gets its turn.

use std::time::Duration;

use crate::limits::{SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND};

/// What a bucket holds when full, in seconds of its rate.
const BURST_SECONDS: f64 = 0.1;

/// The lowest share of the full rate.
const SHARE_MIN: f64 = 0.02;

/// What a throttle leaves of the rate.
const DECREASE: f64 = 0.7;

/// What a second of good answers adds, as a share of the full rate.
const INCREASE_PER_SECOND: f64 = 0.05;

/// Throttles closer together than this count as one: they answer what was sent at the old rate.
const DECREASE_GAP: Duration = Duration::from_millis(200);

/// The buckets of one shard.
#[derive(Clone, Debug)]
pub struct Limiter {
    /// Share of the full rate granted at present, 0.02 to 1.
    share: f64,
    bytes: f64,
    records: f64,
    filled_at: Duration,
    decreased_at: Option<Duration>,
}

impl Limiter {
    /// Full buckets at the full rate.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        let mut limiter = Self { share: 1.0, bytes: f64::MAX, records: f64::MAX, filled_at: now, decreased_at: None };
        limiter.fill(now);
        limiter
    }

    fn rates(&self) -> (f64, f64) {
        (SHARD_BYTES_PER_SECOND as f64 * self.share, SHARD_RECORDS_PER_SECOND as f64 * self.share)
    }

    fn fill(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        let (bytes, records) = self.rates();
        self.bytes = (self.bytes + bytes * seconds).min(bytes * BURST_SECONDS);
        self.records = (self.records + records * seconds).min((records * BURST_SECONDS).max(1.0));
    }

    /// Records that may be sent now, as far as their number goes; 0 also when bytes are overdrawn.
    pub fn records_now(&mut self, now: Duration) -> usize {
        self.fill(now);
        if self.bytes <= 0.0 { 0 } else { self.records.max(0.0) as usize }
    }

    /// Spends. `bytes` are data and key.
    pub fn spend(&mut self, bytes: usize, records: usize) {
        self.bytes -= bytes as f64;
        self.records -= records as f64;
    }

    /// Records are what it lacks: bytes may be sent, and of records less than half a burst.
    #[must_use]
    pub fn lacks_records(&self) -> bool {
        self.has_bytes() && self.records < self.rates().1 * BURST_SECONDS / 2.0
    }

    /// Bytes may be sent now, as far as this bucket goes.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        self.bytes > 0.0
    }

    /// When `records` records may be sent, as many of them as half the burst: a shard at its limit sends a few
    /// together instead of each the moment it may.
    #[must_use]
    pub fn ready_at(&self, records: usize) -> Duration {
        let (bytes, rate) = self.rates();
        let wanted = (records as f64).min(rate * BURST_SECONDS / 2.0).max(1.0);
        // A hair more than exact, so that the bucket is above zero then.
        let wait_bytes = if self.bytes > 0.0 { 0.0 } else { (1.0 - self.bytes) / bytes };
        let wait_records = if self.records >= wanted { 0.0 } else { (wanted - self.records) / rate };
        let wait = wait_bytes.max(wait_records);
        if wait > 0.0 { self.filled_at + Duration::from_secs_f64(wait + 1e-6) } else { self.filled_at }
    }

    /// The shard said it takes no more.
    pub fn throttled(&mut self, now: Duration) {
        if self.decreased_at.is_none_or(|at| now.saturating_sub(at) >= DECREASE_GAP) {
            self.fill(now);
            self.share = (self.share * DECREASE).max(SHARE_MIN);
            self.decreased_at = Some(now);
        }
    }

    /// The shard took a record; `since_last` is the time since the last good answer, a second at most counts.
    pub fn accepted(&mut self, now: Duration, since_last: Duration) {
        if self.share < 1.0 {
            self.fill(now);
            self.share = (self.share + INCREASE_PER_SECOND * since_last.as_secs_f64().min(1.0)).min(1.0);
        }
    }

    /// Bytes/s granted at present.
    #[must_use]
    pub fn rate_bytes(&self) -> u64 {
        self.rates().0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_overdraw_over_any_time(steps in prop::collection::vec((0u64..300, 1usize..1_000_000, 1usize..50), 1..200)) {
            let mut now = Duration::ZERO;
            let mut limiter = Limiter::new(now);
            let (mut bytes, mut records, mut largest, mut most) = (0usize, 0usize, 0, 0);
            for (wait_ms, size, many) in steps {
                now += Duration::from_millis(wait_ms);
                let granted = limiter.records_now(now).min(many);
                if granted > 0 {
                    limiter.spend(size, granted);
                    bytes += size;
                    records += granted;
                    largest = largest.max(size);
                    most = most.max(granted);
                }
                let seconds = now.as_secs_f64() + BURST_SECONDS;
                prop_assert!(bytes as f64 <= SHARD_BYTES_PER_SECOND as f64 * seconds + largest as f64 + 1.0);
                prop_assert!(records as f64 <= SHARD_RECORDS_PER_SECOND as f64 * seconds + 1.0);
            }
        }

        #[test]
        fn at_ready_at_as_many_records_may_be_sent(spent in 1usize..5_000_000, throttles in 0u64..20, wanted in 1usize..50) {
            let mut limiter = Limiter::new(Duration::ZERO);
            for n in 0..throttles {
                limiter.throttled(Duration::from_secs(n));
            }
            limiter.spend(spent, 1000);
            let most = (SHARD_RECORDS_PER_SECOND as f64 * limiter.share * BURST_SECONDS / 2.0).max(1.0) as usize;
            let at = limiter.ready_at(wanted);
            prop_assert!(limiter.records_now(at) >= wanted.min(most));
        }
    }

    #[test]
    fn records_are_lacking_only_where_bytes_are_not() {
        let lacks = |bytes: usize, records: usize| {
            let mut limiter = Limiter::new(Duration::ZERO);
            limiter.spend(bytes, records);
            limiter.lacks_records()
        };
        assert!(lacks(100, 60) && lacks(10_000, 100));
        assert!(!lacks(100, 1) && !lacks(200_000, 60) && !lacks(200_000, 1));
    }

    #[test]
    fn throttles_bring_the_rate_down_and_good_answers_bring_it_back() {
        let mut limiter = Limiter::new(Duration::ZERO);
        for second in 1..60 {
            limiter.throttled(Duration::from_secs(second));
        }
        assert_eq!(limiter.rate_bytes(), (SHARD_BYTES_PER_SECOND as f64 * SHARE_MIN) as u64);
        for second in 60..120 {
            limiter.accepted(Duration::from_secs(second), Duration::from_secs(1));
        }
        assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND);
    }
}
