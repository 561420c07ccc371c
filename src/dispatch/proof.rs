//! Landings as evidence that partition keys decide a record's shard, for the time until Kinesis has said so.
//!
//! Place: [`Mode`](super::mode::Mode) owns one [`Proof`] and asks it only while there is no answer; the [`Dispatcher`] shows it
//! every answered request. Pure. A thousand agents that start together spread their question over a hundred seconds, and what
//! `aggregate = "kpl"` hangs on is known sooner by this.
//!
//! What counts: a request whose stored records all lie in the shards that a fresh map leads to, in *k* different ones, counts
//! *k* - 1. One miss, and all is counted anew. [`PROOF`] in a row are a proof.
//! Why it is one: a service that spreads records evenly and ignores keys does so by chance only. Whatever parts of the
//! records its shards get, *k* different ones are all met with a probability of (1/k)^k at most, which is a quarter or less for
//! each that is counted: 2^-128 for all of them. Why not each record: a service that ignores keys may put a whole request, or
//! all requests of a while, into one shard. Then records of one shard prove nothing, however many, and a request for several
//! shards has a miss for sure.
//!
//! What it is not: a word about the future. So it is good for a shorter time than an answer ([`GOOD_FOR`]), ends at the first
//! landing that no fresh map explains, and never stands against what Kinesis says or refuses to say. What a wrong proof would
//! cost is what a switch to AUTO costs that nobody was told of: an aggregate is sent again. No event hangs on it (`answer.rs`).
//! Absent on purpose: streams of one shard, which have no such evidence and need none (`mode.rs`).

use std::time::Duration;

use super::{Dispatcher, MapState, Request};
use crate::config::Aggregate;
use crate::kinesis::EntryOutcome;

/// So much is proof; see the head.
const PROOF: usize = 64;

/// How long one counts: no longer than it takes to ask again.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// What landings tell so far.
#[derive(Debug, Default)]
pub(super) struct Proof {
    run: usize,
    good_until: Option<Duration>,
}

impl Proof {
    /// All stored records of a request lie where the map leads to: in so many shards.
    fn landed(&mut self, shards: usize, now: Duration) {
        self.run += shards.saturating_sub(1);
        if self.run >= PROOF {
            (self.run, self.good_until) = (0, Some(now + GOOD_FOR));
        }
    }

    /// One lies elsewhere, or the shards have changed. What was proven is not disproved by that: a reshard is no AUTO.
    pub(super) fn missed(&mut self) {
        self.run = 0;
    }

    /// Nothing is proven any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Keys are proven to decide.
    pub(super) fn holds(&self, now: Duration) -> bool {
        self.good_until.is_some_and(|until| now < until)
    }
}

impl Dispatcher {
    /// Takes an answered request for evidence, if any is wanted.
    pub(super) fn witness(&mut self, request: &Request, outcomes: &[EntryOutcome], now: Duration) {
        if self.options.aggregate != Aggregate::Kpl || !self.mode.wants_proof(now) {
            return;
        }
        let by_a_fresh_map = matches!(self.map_state, MapState::Fresh) && !self.map_guessed;
        let mut queues = Vec::new();
        for (sent, outcome) in request.records.iter().zip(outcomes) {
            let EntryOutcome::Stored { shard } = outcome else { continue };
            if !by_a_fresh_map || self.queues[sent.queue].shard.id != *shard {
                return self.mode.proof.missed();
            }
            queues.push(sent.queue);
        }
        queues.sort_unstable();
        queues.dedup();
        let before = self.mode.proof.holds(now);
        self.mode.proof.landed(queues.len(), now);
        if !before && self.mode.proof.holds(now) {
            tracing::info!(
                "records land where their partition keys lead: aggregates are packed, and Kinesis is asked in its time"
            );
            self.publish_mode(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);

    fn after(landings: impl IntoIterator<Item = usize>) -> Proof {
        let mut proof = Proof::default();
        landings.into_iter().for_each(|shards| proof.landed(shards, NOW));
        proof
    }

    #[test]
    fn only_what_lies_in_further_shards_than_one_counts() {
        assert!(!after([1; 10_000]).holds(NOW) && !after([0; 10_000]).holds(NOW));
        assert!(!after([2; 63]).holds(NOW) && after([2; 64]).holds(NOW));
        assert!(!after([9; 7]).holds(NOW) && after([9; 8]).holds(NOW));
        assert!(after([65]).holds(NOW));
    }

    #[test]
    fn a_miss_begins_the_count_anew_and_leaves_what_was_proven_which_has_an_end() {
        let mut proof = after([2; 63]);
        proof.missed();
        proof.landed(2, NOW);
        assert!(!proof.holds(NOW));
        let mut proof = after([2; 64]);
        proof.missed();
        assert!(proof.holds(NOW + GOOD_FOR - Duration::from_millis(1)) && !proof.holds(NOW + GOOD_FOR));
        proof.end();
        assert!(!proof.holds(NOW));
    }

    #[test]
    fn the_bound_that_the_head_states_holds_for_every_number_of_shards() {
        for k in 2..=500_u32 {
            let (chance, bound) = (-f64::from(k) * f64::from(k).log2(), -2.0 * f64::from(k - 1));
            assert!(chance <= bound + 1e-9, "{k} shards: 2^{chance} is more than 2^{bound}");
        }
    }
}
