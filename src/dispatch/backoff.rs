//! How long to wait after a failure: exponential with full jitter (AWS Architecture Blog, "Exponential Backoff
//! And Jitter"), for ever: an event is never given up for having failed often.
//!
//! Place: one for each shard's queue and one for the stream. Pure.

use std::time::Duration;

use crate::host::Entropy;

/// Failures in a row, and what they ask for.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits are uniformly random in `[0, min(cap, base × 2^failures)]`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// That of one shard's queue.
    #[must_use]
    pub const fn of_shard() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// That of asking for the shards. An account's calls are counted by the second: sooner there is nothing to be had.
    #[must_use]
    pub const fn of_listing() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(30))
    }

    /// One more failure: the wait before the next try.
    pub fn fail(&mut self, entropy: &dyn Entropy) -> Duration {
        let most = self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        entropy.jitter(most)
    }

    /// It worked.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::RealEntropy;

    #[test]
    fn waits_grow_to_the_cap_stay_random_and_begin_anew_after_success() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(base, cap);
        let waits: Vec<_> = (0..200).map(|_| backoff.fail(&RealEntropy)).collect();
        assert!(waits[0] <= base);
        assert!(waits.iter().all(|wait| *wait <= cap));
        assert!(waits[20..].iter().any(|wait| *wait > cap / 2) && waits[20..].iter().any(|wait| *wait < cap / 2));
        backoff.succeed();
        assert!(backoff.fail(&RealEntropy) <= base);
    }
}
