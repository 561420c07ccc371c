//! Which keys may have an older event that is not delivered: a Bloom filter in blocks of one cache line.
//!
//! Place: `fresh` fills it once from the backlog and then only asks. A key that was added is always found (*NO-MISS*, on which
//! *KEY-ORDER* rests); one that was not is found now and then, and its events then wait for no reason but order. Pure.

use crate::event::KeyHash;
use crate::host::mix64;

/// Bits for each key that is expected: one stranger in some 700 is found.
const BITS_A_KEY: u64 = 16;

/// The largest filter, bytes: two million keys at full strictness; with ten million a quarter of the strangers is found.
const BYTES_MAX: usize = 4 << 20;

/// Bits set for each key, all in one block.
const PROBES: u32 = 6;

/// A set of keys that may say yes too often.
#[derive(Debug)]
pub(super) struct KeyFilter {
    blocks: Vec<[u64; 8]>,
}

impl KeyFilter {
    /// An empty filter for about so many keys.
    pub(super) fn new(keys: u64) -> Self {
        let bytes = (keys.saturating_mul(BITS_A_KEY) / 8).clamp(1 << 10, BYTES_MAX as u64) as usize;
        Self { blocks: vec![[0; 8]; (bytes / 64).next_power_of_two()] }
    }

    /// Its block, and its bits there. Explicit hash keys need not be random: they are mixed.
    fn place(&self, hash: KeyHash) -> (usize, [u64; 8]) {
        let mixed = mix64((hash.0 >> 64) as u64 ^ mix64(hash.0 as u64));
        let mut choice = mix64(mixed);
        let mut bits = [0; 8];
        for _ in 0..PROBES {
            bits[(choice >> 6) as usize & 7] |= 1 << (choice & 63);
            choice >>= 9;
        }
        (mixed as usize & (self.blocks.len() - 1), bits)
    }

    /// From now on found.
    pub(super) fn add(&mut self, hash: KeyHash) {
        let (block, bits) = self.place(hash);
        self.blocks[block].iter_mut().zip(bits).for_each(|(word, bits)| *word |= bits);
    }

    /// It was added, or looks like one that was.
    pub(super) fn may_hold(&self, hash: KeyHash) -> bool {
        let (block, bits) = self.place(hash);
        self.blocks[block].iter().zip(bits).all(|(word, bits)| word & bits == bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_always_found_and_of_strangers_less_than_one_in_two_hundred() {
        for keys in [10u64, 1_000, 100_000] {
            let mut filter = KeyFilter::new(keys);
            let hash = |n: u64| KeyHash::of_key(&format!("key-{n}"));
            (0..keys).for_each(|n| filter.add(hash(n)));
            assert!((0..keys).all(|n| filter.may_hold(hash(n))), "NO-MISS");
            let found = (keys..keys + 20_000).filter(|n| filter.may_hold(hash(*n))).count();
            assert!(found < 100, "{found} of 20,000 strangers beside {keys} keys");
        }
    }

    #[test]
    fn explicit_hash_keys_that_stand_in_a_row_are_told_apart() {
        let mut filter = KeyFilter::new(1_000);
        (0..1_000).for_each(|n| filter.add(KeyHash(n << 100)));
        let found = (1_000..21_000).filter(|n| filter.may_hold(KeyHash(n << 100))).count();
        assert!(found < 100, "{found}");
    }
}
