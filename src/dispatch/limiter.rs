//! What one shard may be given now: two token buckets whose rate follows the shard's answers.
//!
//! Place: one in each shard's queue. Pure: takes `now`, holds no clock.
//!
//! A shard takes 1 MiB/s and 1,000 records/s (`limits`), shared by producers that know nothing of each other and learn of each
//! other only by throttles. So the rate adapts: more with good answers, less with a throttle. *NO-OVERDRAW*: over any time the
//! granted amount is at most rate × time + burst + one record: a bucket may go below zero by the last record, and nothing is
//! granted until it is above zero again, so that a record larger than the burst still gets its turn.
//!
//! The numbers. N producers of r = capacity/N records/s each share a full shard. Rates grow by `DECREASE` in about a period T,
//! and a throttle takes `DECREASE` away: so they balance at one throttle a period, and the throttled share is about 1/(T r). With
//! 1,000 producers r is 1/s: to stay below 2 % T must be minutes (classic constants, a twentieth of the shard a second, make
//! half of everything a throttle). With a handful T may be short, and must be, to take what others leave. T = 100 s/√r, but
//! not below 32 s, keeps both. Rates become equal because a larger one meets more throttles in its period: the throttled share
//! falls with r. Were T in proportion to 1/r, it would not, and nothing would ever even out; were it the same for all, a few
//! producers would be as slow as a thousand.
//!
//! Between throttles the rate follows a cube (as CUBIC, RFC 9438): soon back near what it was when it was throttled, slow
//! there, ever faster beyond, since a shard that stays silent for a period has room. Time counts by what was sent, not by
//! the clock: who does not use its rate learns nothing about it. A shard first met is tried with a fiftieth of the full rate
//! and e-fold more with each hundredth of a second's worth that it takes: alone, that is the full rate within a second; a
//! crowded shard is met gently. A throttle behind a throttle means a crowd, or a shard that takes nothing: each halves, down to
//! a sixteenth of where the run began, and when it is over the way back is the quick one. `docs/FLEET.md` has what comes of it.

use std::time::Duration;

use crate::limits::{SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND};

/// What a bucket holds when full, in seconds of its rate.
const BURST_SECONDS: f64 = 0.1;

/// The lowest share of the full rate: a fair one among 10,000.
const SHARE_MIN: f64 = 1e-4;

/// The share with which a shard is first met.
const SHARE_START: f64 = 0.02;

/// While the rate is found, each so many seconds' worth of the shard's capacity make it e-fold.
const START_SECONDS: f64 = 0.01;

/// The most that one answer makes of the rate then, as a power of e.
const START_POWER_MAX: f64 = 4.0;

/// What a throttle takes of the rate.
const DECREASE: f64 = 0.25;

/// What the first throttle leaves of a rate that was still being found: the last steps up were too many.
const START_KEEP: f64 = 0.25;

/// What a throttle leaves that follows another one, and what a run of them leaves at least.
const RUN_KEEP: f64 = 0.5;
const RUN_KEEP_MIN: f64 = 1.0 / 16.0;

/// Up to this part of the rate before a run of throttles the way back is quick.
const RUN_BACK: f64 = 0.75;

/// Seconds in which the rate is back where it was throttled, at one record a second; with more, by the square root less.
const PERIOD_SECONDS: f64 = 100.0;

/// Records a second beyond which the period gets no shorter.
const PERIOD_RATE_MAX: f64 = 10.0;

/// How much faster than before it the cube goes beyond the last throttled rate.
const BEYOND: f64 = 3.0;

/// An aggregate is smaller as the rate is, but no smaller than this: a record is billed and signed whatever is in it.
const RECORD_BYTES_MIN: usize = 1 << 10;

/// How much of a record's size goes into the mean.
const COST_WEIGHT: f64 = 0.1;

/// Throttles closer together than this count as one: they answer what was sent at the old rate.
const DECREASE_GAP: Duration = Duration::from_millis(100);

/// The buckets of one shard.
#[derive(Clone, Debug)]
pub struct Limiter {
    /// Share of the full rate granted at present, 0.0001 to 1.
    share: f64,
    bytes: f64,
    records: f64,
    filled_at: Duration,
    decreased_at: Option<Duration>,
    /// Up to this share the rate is being found: it grows quickly.
    goal: f64,
    /// The share before the last throttle that no other one went before.
    high: f64,
    /// The goal when the run of throttles that began with it is over.
    resume: f64,
    /// Throttles since the last good answer.
    run: u32,
    /// The share around which the cube is flat.
    top: f64,
    /// Seconds from the beginning of the cube to `top`, and how many of them have passed.
    period: f64,
    age: f64,
    /// What a record takes on average, seconds of the whole shard.
    cost: f64,
}

impl Limiter {
    /// Full buckets of the rate with which a shard is first met.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        let mut limiter = Self {
            share: SHARE_START,
            bytes: f64::MAX,
            records: f64::MAX,
            filled_at: now,
            decreased_at: None,
            goal: 1.0,
            high: 1.0,
            resume: 1.0,
            run: 0,
            top: 1.0,
            period: 1.0,
            age: 0.0,
            cost: 1.0 / SHARD_RECORDS_PER_SECOND as f64,
        };
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
        let each = bytes as f64 / records.max(1) as f64;
        let cost = (each / SHARD_BYTES_PER_SECOND as f64).max(1.0 / SHARD_RECORDS_PER_SECOND as f64);
        self.cost += (cost - self.cost) * COST_WEIGHT;
    }

    /// What was spent was refused for what it is, and cost the shard nothing: its search would otherwise be a debt of minutes.
    pub fn give_back(&mut self, bytes: usize, records: usize) {
        self.bytes += bytes as f64;
        self.records += records as f64;
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

    /// The most that one aggregate should have, of the `most` bytes that it may have at the full rate: so one of 256 KiB is a
    /// quarter of a second of any rate. A larger one is refused whole, and one that comes seldom learns too little.
    #[must_use]
    pub fn record_bytes(&self, most: usize) -> usize {
        ((most as f64 * self.share) as usize).max(RECORD_BYTES_MIN).min(most)
    }

    /// The shard said it takes no more.
    pub fn throttled(&mut self, now: Duration) {
        // What it refused it did not take: at a low rate the debt of one large record would be minutes. `backoff` makes the wait.
        self.bytes = self.bytes.max(0.0);
        if self.decreased_at.is_some_and(|at| now.saturating_sub(at) < DECREASE_GAP) {
            return;
        }
        self.fill(now);
        self.decreased_at = Some(now);
        self.run = self.run.saturating_add(1);
        if self.run > 1 {
            self.share = (self.share * RUN_KEEP).max(self.high * RUN_KEEP_MIN).max(SHARE_MIN);
        } else {
            self.high = self.share;
            if self.share < self.goal {
                // A run says nothing of what the shard takes when it takes something: then it is still to be found.
                self.resume = self.goal;
                self.share = (self.share * START_KEEP).max(SHARE_MIN);
                self.top = self.share;
            } else {
                self.resume = self.high * RUN_BACK;
                // Throttled below where it was last time: others have come, and what they need is let go.
                self.top = if self.share < self.top { self.share * (1.0 - DECREASE / 2.0) } else { self.share };
                self.share = (self.share * (1.0 - DECREASE)).max(SHARE_MIN);
            }
        }
        self.goal = 0.0;
        self.begin_cube();
    }

    /// The shard took a record.
    pub fn accepted(&mut self, now: Duration) {
        if self.run > 1 {
            self.goal = self.resume;
        }
        self.run = 0;
        if self.share >= 1.0 {
            return;
        }
        self.fill(now);
        if self.share < self.goal {
            self.share = (self.share * (self.cost / START_SECONDS).min(START_POWER_MAX).exp()).min(self.goal);
            if self.share >= self.goal {
                self.top = self.high.max(self.share);
                self.begin_cube();
            }
            return;
        }
        self.age += self.cost / self.share;
        let past = self.age / self.period - 1.0;
        let past = if past > 0.0 { past * BEYOND } else { past };
        self.share = (self.top * (1.0 + DECREASE * past.powi(3))).clamp(self.share, 1.0);
    }

    /// Begins the cube at the present share; its middle is `top`.
    fn begin_cube(&mut self) {
        let rate = self.top / self.cost;
        self.period = PERIOD_SECONDS / rate.min(PERIOD_RATE_MAX).sqrt();
        let missing = (1.0 - self.share / self.top).max(0.0);
        self.age = self.period * (1.0 - (missing / DECREASE).cbrt());
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

    /// Sends all that is granted to a shard that takes it at once, until then.
    fn send_until(limiter: &mut Limiter, from: Duration, until: Duration, record_bytes: usize) {
        let mut now = from;
        while now < until {
            while limiter.records_now(now) > 0 {
                limiter.spend(record_bytes, 1);
                limiter.accepted(now);
            }
            now += Duration::from_millis(5);
        }
    }

    #[test]
    fn records_are_lacking_only_where_bytes_are_not() {
        let lacks = |bytes: usize, records: usize| {
            let mut limiter = Limiter::new(Duration::ZERO);
            (limiter.share, limiter.bytes, limiter.records) = (1.0, f64::MAX, f64::MAX);
            limiter.fill(Duration::ZERO);
            limiter.spend(bytes, records);
            limiter.lacks_records()
        };
        assert!(lacks(100, 60) && lacks(10_000, 100));
        assert!(!lacks(100, 1) && !lacks(200_000, 60) && !lacks(200_000, 1));
    }

    #[test]
    fn a_shard_first_met_that_takes_everything_gets_the_full_rate_soon() {
        for (record_bytes, seconds) in [(200, 1), (4 << 10, 1), (256 << 10, 1), (1 << 20, 3), (10 << 20, 1)] {
            let mut limiter = Limiter::new(Duration::ZERO);
            assert!(limiter.rate_bytes() < SHARD_BYTES_PER_SECOND / 40, "a crowded shard is met gently");
            send_until(&mut limiter, Duration::ZERO, Duration::from_secs(seconds), record_bytes);
            assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND, "records of {record_bytes} bytes");
        }
    }

    #[test]
    fn a_record_larger_than_the_rate_of_a_second_goes_and_is_paid_for_afterwards() {
        let mut limiter = Limiter::new(Duration::ZERO);
        send_until(&mut limiter, Duration::ZERO, Duration::from_secs(2), 200);
        let now = Duration::from_secs(3);
        assert!(limiter.records_now(now) > 0);
        limiter.spend(10 << 20, 1);
        assert_eq!((limiter.records_now(now), limiter.ready_at(1).as_millis()), (0, 12_900));
        assert!(limiter.records_now(limiter.ready_at(1)) > 0);
        limiter.give_back(10 << 20, 1);
        assert!(limiter.records_now(now) > 0, "it was not taken");
    }

    #[test]
    fn an_aggregate_is_smaller_as_the_rate_is() {
        let mut limiter = Limiter::new(Duration::ZERO);
        let first = limiter.record_bytes(256 << 10);
        assert!((5_000..5_500).contains(&first), "of a shard first met: {first}");
        send_until(&mut limiter, Duration::ZERO, Duration::from_secs(2), 200);
        assert_eq!((limiter.record_bytes(256 << 10), limiter.record_bytes(1 << 20)), (256 << 10, 1 << 20));
        for second in 1..600 {
            limiter.throttled(Duration::from_secs(second));
        }
        assert_eq!(limiter.record_bytes(256 << 10), 16 << 10, "a sixteenth of the rate");
        limiter.share = SHARE_MIN;
        assert_eq!((limiter.record_bytes(256 << 10), limiter.record_bytes(1000)), (RECORD_BYTES_MIN, 1000));
    }

    #[test]
    fn a_throttle_takes_a_quarter_and_most_of_it_is_back_in_half_a_period() {
        let mut limiter = Limiter::new(Duration::ZERO);
        let mut now = Duration::from_secs(2);
        send_until(&mut limiter, Duration::ZERO, now, 200);
        limiter.throttled(now);
        assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND / 4 * 3);
        limiter.throttled(now + Duration::from_millis(50));
        assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND / 4 * 3, "it answers what was sent before");
        send_until(&mut limiter, now, now + Duration::from_secs(16), 200);
        assert!(limiter.rate_bytes() > SHARD_BYTES_PER_SECOND / 100 * 95, "{}", limiter.rate_bytes());
        now += Duration::from_secs(16);
        send_until(&mut limiter, now, now + Duration::from_secs(20), 200);
        assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND);
    }

    #[test]
    fn a_shard_that_refuses_everything_for_an_hour_has_its_rate_back_in_half_a_minute() {
        let mut limiter = Limiter::new(Duration::ZERO);
        send_until(&mut limiter, Duration::ZERO, Duration::from_secs(2), 200);
        for second in 2..3600 {
            limiter.throttled(Duration::from_secs(second));
        }
        assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND / 16);
        let back = Duration::from_secs(3600);
        send_until(&mut limiter, back, back + Duration::from_secs(1), 200);
        assert!(limiter.rate_bytes() >= SHARD_BYTES_PER_SECOND / 4 * 3, "{}", limiter.rate_bytes());
        send_until(&mut limiter, back + Duration::from_secs(1), back + Duration::from_secs(40), 200);
        assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND);
    }

    #[test]
    fn a_shard_that_refused_everything_from_the_first_on_gets_the_full_rate_soon_after_it_takes_something() {
        for record_bytes in [200, 256 << 10] {
            let mut limiter = Limiter::new(Duration::ZERO);
            for second in 0..60 {
                limiter.spend(record_bytes, 1);
                limiter.throttled(Duration::from_secs(second));
            }
            send_until(&mut limiter, Duration::from_secs(60), Duration::from_secs(80), record_bytes);
            assert_eq!(limiter.rate_bytes(), SHARD_BYTES_PER_SECOND, "records of {record_bytes} bytes");
        }
    }

    #[test]
    fn where_most_is_refused_the_rate_goes_down_to_the_least_share() {
        let mut limiter = Limiter::new(Duration::ZERO);
        for second in 1..600 {
            limiter.throttled(Duration::from_secs(second));
            if second % 10 == 0 {
                limiter.spend(200, 1);
                limiter.accepted(Duration::from_secs(second));
            }
        }
        assert!(limiter.share < SHARE_MIN * 2.0, "{}", limiter.share);
    }

    #[test]
    fn a_rate_that_is_not_used_does_not_grow() {
        let mut limiter = Limiter::new(Duration::ZERO);
        limiter.throttled(Duration::ZERO);
        let before = limiter.share;
        for hour in 1..20 {
            limiter.spend(200, 1);
            limiter.accepted(Duration::from_secs(3600 * hour));
        }
        assert!(limiter.share < before * 1.05, "{} then {}", before, limiter.share);
    }
}
