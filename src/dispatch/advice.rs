//! Advice to the user: the rate of records binds, and aggregates would lift it.
//!
//! Place: the dispatcher's thread looks whenever it publishes its status. *STEADY*: a burst is no reason; the rate must have
//! bound for seconds, and the advice stays until it has not for a minute. Pure but for the log.
//!
//! Absent on purpose: doing it. Which form of records a consumer can read is known to the user alone.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Dispatcher, Queue};
use crate::config::Aggregate;
use crate::limits::{SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND};
use crate::metrics::locked;

/// The rate must have bound for so long.
const BINDS_FOR: Duration = Duration::from_secs(10);

/// A shorter pause of it does not count.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The advice is taken back after so long without it.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// What aggregates must promise at least, in hundredths of the present events.
const GAIN_MIN_PERCENT: u64 = 150;

/// Since when the rate of records has bound.
#[derive(Debug, Default)]
pub(super) struct RecordRate {
    since: Option<Duration>,
    last: Duration,
    /// Shards that were bound when it was last looked.
    shards: usize,
    told: bool,
}

impl RecordRate {
    /// So many shards are bound now. Whether it is worth an advice.
    fn look(&mut self, shards: usize, now: Duration) -> bool {
        let quiet = now.saturating_sub(self.last);
        if shards > 0 {
            if !self.told && quiet > PAUSE_MAX {
                self.since = None;
            }
            self.since.get_or_insert(now);
            (self.last, self.shards) = (now, shards);
        } else if quiet >= GONE_AFTER {
            self.since = None;
        }
        self.told = self.since.is_some_and(|since| self.told || self.last.saturating_sub(since) >= BINDS_FOR);
        self.told
    }
}

/// What aggregates would carry, in percent of the present events: bytes bind then.
fn gain_percent(bytes: u64, records: u64) -> u64 {
    let possible = SHARD_BYTES_PER_SECOND * records;
    (100 * possible).checked_div(SHARD_RECORDS_PER_SECOND * bytes).unwrap_or(0)
}

impl Dispatcher {
    /// Looks whether the rate of records binds, and tells.
    pub(super) fn advise(&mut self, now: Duration) {
        if self.options.aggregate != Aggregate::Off {
            return;
        }
        let burst = SHARD_RECORDS_PER_SECOND as usize / 10;
        // A shard that takes nothing has other troubles.
        let lives = |queue: &Queue| now.saturating_sub(queue.last_good) < PAUSE_MAX;
        let is_bound = |queue: &&Queue| queue.ready_len() > burst && queue.limiter.lacks_records() && lives(queue);
        let bound = self.queues.iter().filter(is_bound).count();
        let is_due = self.record_rate.look(bound, now);
        let (bytes, records) = (self.metrics.put_bytes.load(Ordering::Relaxed), self.metrics.put_records.load(Ordering::Relaxed));
        let gain = gain_percent(bytes, records);
        let advice = if is_due && gain >= GAIN_MIN_PERCENT {
            format!(
                "{} of {} shards get all the records that they take (1,000 a second, one event each): aggregate = \"kpl\" or \
                 \"lines\" would carry up to {}.{} times the events, for consumers that take such records apart",
                self.record_rate.shards,
                self.queues.len(),
                gain / 100,
                gain / 10 % 10,
            )
        } else {
            String::new()
        };
        let mut held = locked(&self.metrics.advice);
        if held.is_empty() && !advice.is_empty() {
            tracing::warn!("{advice}");
        }
        *held = advice;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rate_that_binds_for_seconds_is_worth_advice_and_it_stays_for_a_minute() {
        let mut rate = RecordRate::default();
        let at = Duration::from_secs;
        assert!(!rate.look(2, at(100)) && !rate.look(2, at(101)));
        assert!(!rate.look(0, at(104)) && !rate.look(1, at(105)), "a pause: it begins anew");
        for second in 106..115 {
            assert!(!rate.look(1, at(second)), "{second}");
        }
        assert!(rate.look(1, at(115)));
        assert!(rate.look(0, at(116)) && rate.look(0, at(174)));
        assert!(!rate.look(0, at(175)) && !rate.look(1, at(176)));
    }

    #[test]
    fn the_gain_is_what_bytes_leave_where_records_bind() {
        // 1 MiB/s by 1,000 records of 210 bytes.
        assert_eq!(gain_percent(210 * 500, 500), 499);
        assert_eq!(gain_percent(2 << 20, 1000), 50, "large events gain nothing");
        assert_eq!(gain_percent(0, 0), 0);
    }
}
