//! What of Kinesis the fleet meets: a shard's intake, and the limits of the control plane. All that is modelled of the
//! service stands here; agents are in `world.rs`, and what decides in them is the program's own.
//!
//! Sources. *Shard*: the quota page of Kinesis Data Streams, 1 MiB/s and 1,000 records/s a shard, keys included; what is
//! refused counts nothing. AWS does not publish how it is metered. KPL's limiter (`limiter.h`) takes it for a token
//! bucket that holds what a second brings, and so does [`Metering::Bucket`]; field reports speak of whole seconds, hence
//! [`Metering::Seconds`], which forgets what was left over. A record is taken when both buckets cover it: one larger than what is
//! left is refused while smaller ones still get in. *Control plane*: the API reference, ListShards 1,000 calls/s for a
//! stream (KPL's README says 100), DescribeStreamSummary 20 calls/s for an account; refused is LimitExceededException.
//!
//! Absent on purpose: refusals for other reasons, slow answers, hash ranges: one lane stands for an agent's keys in a shard.

use std::time::Duration;

use forebay::limits::{SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND};

/// How a limit for each second is metered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metering {
    /// A token bucket that holds one second's worth.
    Bucket,
    /// Each whole second has its worth.
    Seconds,
}

/// Tokens that come back at a rate.
#[derive(Clone, Debug)]
struct Tokens {
    rate: f64,
    left: f64,
    metering: Metering,
    at: Duration,
}

impl Tokens {
    fn new(rate: f64, metering: Metering) -> Self {
        Self { rate, left: rate, metering, at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        match self.metering {
            Metering::Bucket => {
                let seconds = now.saturating_sub(self.at).as_secs_f64();
                self.left = (self.left + self.rate * seconds).min(self.rate);
            }
            Metering::Seconds if now.as_secs() > self.at.as_secs() => self.left = self.rate,
            Metering::Seconds => {}
        }
        self.at = now;
    }
}

/// One shard's intake.
#[derive(Clone, Debug)]
pub struct Shard {
    bytes: Tokens,
    records: Tokens,
}

impl Shard {
    /// A shard that took nothing for a while.
    #[must_use]
    pub fn new(metering: Metering) -> Self {
        Self {
            bytes: Tokens::new(SHARD_BYTES_PER_SECOND as f64, metering),
            records: Tokens::new(SHARD_RECORDS_PER_SECOND as f64, metering),
        }
    }

    /// Whether it stores a record of that many bytes.
    pub fn takes(&mut self, now: Duration, bytes: usize) -> bool {
        self.bytes.fill(now);
        self.records.fill(now);
        let good = self.bytes.left >= bytes as f64 && self.records.left >= 1.0;
        if good {
            self.bytes.left -= bytes as f64;
            self.records.left -= 1.0;
        }
        good
    }
}

/// ListShards, calls a second for a stream.
pub const LIST_SHARDS_PER_SECOND: f64 = 1_000.0;

/// DescribeStreamSummary, calls a second for an account.
pub const DESCRIBE_PER_SECOND: f64 = 20.0;

/// One call of the control plane.
#[derive(Clone, Debug)]
pub struct Control(Tokens);

impl Control {
    /// A call that nobody made for a while.
    #[must_use]
    pub fn new(calls_per_second: f64) -> Self {
        Self(Tokens::new(calls_per_second, Metering::Bucket))
    }

    /// Whether it answers.
    pub fn takes(&mut self, now: Duration) -> bool {
        self.0.fill(now);
        let good = self.0.left >= 1.0;
        if good {
            self.0.left -= 1.0;
        }
        good
    }
}
