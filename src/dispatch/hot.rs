//! Which keys make up a shard's bytes, by samples.
//!
//! Place: each queue has a [`HotKeys`] and shows it every event that it is given; status tells its top, and the log when one
//! key is what a shard's limit binds for. A key takes at most what one shard takes, and no agent can change that: whoever
//! chooses keys can.
//!
//! One event in some [`STRIDE`] is weighed by its bytes in a *space-saving* table (Metwally, Agrawal, El Abbadi, "Efficient
//! Computation of Frequent and Top-k Elements in Data Streams", 2005): a key that is not there takes the place of the lightest
//! one and its weight as a possible error. What is told is the weight without that error (*NOT-TOO-HOT*): a key told at 30 %
//! has at least that of what was sampled. The past counts half as much every [`SAMPLES_MAX`] / 2 samples. Pure.
//!
//! Absent on purpose: the key. It is event data; its MD5, which places it among the shards, is not.

use std::time::Duration;

use super::{Dispatcher, Queue};
use crate::config::{Aggregate, Order};
use crate::host::mix64;
use crate::metrics::HotKey;

/// One event in so many is looked at, on average; the steps vary, so that no rhythm of keys is followed.
const STRIDE: u64 = 64;

/// Keys that are watched. One with more than an eighth of the bytes is never missed.
const WATCHED: usize = 8;

/// Samples after which all weights are halved.
const SAMPLES_MAX: u32 = 1024;

/// Samples before anything is told: half a shard's second of small events.
const SAMPLES_MIN: u32 = 8;

/// Keys told, and the least share that is worth it, percent.
const TOLD_MAX: usize = 3;

/// See [`TOLD_MAX`].
const TOLD_PERCENT_MIN: u8 = 10;

/// A key with so much is what its shard's limit binds for, percent.
const BINDS_PERCENT: u8 = 50;

/// The limit must have bound for so long.
const BINDS_FOR: Duration = Duration::from_secs(10);

/// And is told again after so long.
const TOLD_EVERY: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    hash: u128,
    bytes: u64,
    /// Of these, possibly others'.
    error: u64,
}

/// The sampled keys of one shard.
#[derive(Clone, Debug, Default)]
pub struct HotKeys {
    /// Events to let go by.
    skip: u32,
    samples: u32,
    taken: u64,
    bytes: u64,
    keys: [Watched; WATCHED],
    bound_since: Option<Duration>,
    told_at: Option<Duration>,
}

impl HotKeys {
    /// An event of this key and size goes to the shard.
    pub fn see(&mut self, hash: u128, bytes: u32) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.taken += 1;
        self.skip = (mix64(self.taken) % (2 * STRIDE - 1)) as u32;
        self.weigh(hash, u64::from(bytes));
    }

    fn weigh(&mut self, hash: u128, bytes: u64) {
        if self.samples == SAMPLES_MAX {
            self.samples /= 2;
            self.bytes /= 2;
            for key in &mut self.keys {
                (key.bytes, key.error) = (key.bytes / 2, key.error / 2);
            }
        }
        self.samples += 1;
        self.bytes += bytes;
        if let Some(known) = self.keys.iter_mut().find(|key| key.bytes > 0 && key.hash == hash) {
            known.bytes += bytes;
        } else if let Some(lightest) = self.keys.iter_mut().min_by_key(|key| key.bytes) {
            *lightest = Watched { hash, bytes: lightest.bytes + bytes, error: lightest.bytes };
        }
    }

    /// The keys with the largest shares, if any has one that is worth telling.
    #[must_use]
    pub fn top(&self) -> Vec<HotKey> {
        if self.samples < SAMPLES_MIN {
            return Vec::new();
        }
        let percent = |key: &Watched| (100 * (key.bytes - key.error)).checked_div(self.bytes).unwrap_or(0) as u8;
        let mut top: Vec<HotKey> = self
            .keys
            .iter()
            .filter(|key| percent(key) >= TOLD_PERCENT_MIN)
            .map(|key| HotKey { hash: format!("{:032x}", key.hash), percent: percent(key) })
            .collect();
        top.sort_by_key(|key| std::cmp::Reverse(key.percent));
        top.truncate(TOLD_MAX);
        top
    }

    /// Whether it is to be told now that one key keeps the shard at its limit.
    fn is_due(&mut self, binds: bool, now: Duration) -> bool {
        if !binds {
            self.bound_since = None;
            return false;
        }
        let since = *self.bound_since.get_or_insert(now);
        let due = now.saturating_sub(since) >= BINDS_FOR && self.told_at.is_none_or(|at| now.saturating_sub(at) >= TOLD_EVERY);
        if due {
            self.told_at = Some(now);
        }
        due
    }
}

/// The shard takes no more, or its keys' events wait for each other.
fn is_bound(queue: &Queue) -> bool {
    let waits = queue.waiting_bytes();
    let in_chains = waits.saturating_sub(queue.ready_bytes());
    queue.ready_len() > 0 && (!queue.limiter.has_bytes() || queue.limiter.lacks_records()) || 2 * in_chains > waits
}

impl Dispatcher {
    /// Says in the log where one key is what binds a shard.
    pub(super) fn tell_hot_keys(&mut self, now: Duration) {
        let single = self.options.order == Order::Key && self.form == Aggregate::Off;
        for queue in &mut self.queues {
            let is_bound = is_bound(queue);
            let hottest = queue.hot.top().into_iter().next().filter(|key| is_bound && key.percent >= BINDS_PERCENT);
            if queue.hot.is_due(hottest.is_some(), now)
                && let Some(HotKey { hash, percent }) = hottest
            {
                let most =
                    if single { ", and one event of a key at a time is sent (order = \"key\", aggregate = \"off\")" } else { "" };
                tracing::warn!(
                    shard = %queue.shard.id,
                    key_md5 = hash,
                    percent,
                    "one partition key has at least so much of what goes to a shard, which gets more than it takes: a key has at most one shard{most}; what comes faster needs more keys"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of 100 bytes: of a hundred, `hot` are of one key, the others each of its own.
    fn seen(hot: u64, events: u64) -> HotKeys {
        let mut keys = HotKeys::default();
        for n in 0..events {
            let is_hot = mix64(n) % 100 < hot;
            keys.see(if is_hot { 7 } else { u128::from(1_000 + n) }, 100);
        }
        keys
    }

    #[test]
    fn a_hot_key_is_told_by_its_hash_with_about_its_share_and_never_more() {
        for share in [20, 50, 90] {
            let top = seen(share, 400_000).top();
            assert_eq!(top.len(), 1, "{share}: {top:?}");
            assert_eq!(top[0].hash, format!("{:032x}", 7));
            let percent = u64::from(top[0].percent);
            assert!(percent + 16 >= share && percent <= share + 4, "NOT-TOO-HOT: {percent} for {share}");
        }
        assert!(seen(100, 400_000).top()[0].percent > 98);
    }

    #[test]
    fn among_many_even_keys_none_is_hot_nor_is_one_after_a_handful_of_events() {
        assert!(seen(0, 400_000).top().is_empty());
        assert!(seen(100, 20).top().is_empty());
        // As events of a round robin come, whatever the stride.
        for keys in [8u128, 64, 127, 1000] {
            let mut table = HotKeys::default();
            (0..400_000u128).for_each(|n| table.see(n % keys, 100));
            assert!(table.top().iter().all(|key| key.percent <= 14), "{keys}: {:?}", table.top());
        }
    }

    #[test]
    fn what_was_hot_cools_down() {
        let mut keys = seen(90, 200_000);
        (0..200_000u64).for_each(|n| keys.see(u128::from(n) << 20, 100));
        assert!(keys.top().is_empty(), "{:?}", keys.top());
    }

    #[test]
    fn a_key_that_binds_a_shard_is_told_after_a_while_and_then_seldom() {
        let mut keys = HotKeys::default();
        let at = Duration::from_secs;
        assert!(!keys.is_due(true, at(1)) && !keys.is_due(false, at(5)) && !keys.is_due(true, at(11)));
        assert!(!keys.is_due(true, at(20)) && keys.is_due(true, at(21)) && !keys.is_due(true, at(22)));
        assert!(keys.is_due(true, at(621)));
    }
}
