//! The vocabulary that every module shares: positions, key hashes, lanes, shard ids.
//!
//! Place: below everything; no I/O, no clock, no state. The spool stores these values, the dispatcher
//! computes with them, nobody changes their meaning (on-disk format and metrics depend on it).

use std::fmt;
use std::sync::Arc;

use md5::{Digest, Md5};

/// Number of hash lanes a spool is cut into: the top ten bits of the key hash.
///
/// Part of the on-disk format (the index of a sealed segment has one directory entry a lane).
pub const LANES: usize = 1024;

/// An event's dense number in its stream's spool: 0, 1, 2, … without gaps, for the life of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl Position {
    /// Beyond what any spool gets to: what claims to lie further on was never written by this program.
    pub const LIMIT: Self = Self(1 << 63);
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The 128-bit hash that places an event in the key space: MD5 of the partition key as a big-endian
/// number, or the explicit hash key (AWS API reference, `PutRecordsRequestEntry`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyHash(pub u128);

impl KeyHash {
    /// The hash Kinesis computes for a partition key.
    #[must_use]
    pub fn of_key(key: &str) -> Self {
        Self(u128::from_be_bytes(Md5::digest(key.as_bytes()).into()))
    }

    /// The same for many keys at once (each UTF-8), in their order.
    #[must_use]
    pub fn of_keys(keys: &[&[u8]]) -> Vec<Self> {
        if let [only] = keys {
            return vec![Self(u128::from_be_bytes(Md5::digest(only).into()))];
        }
        crate::md5_lanes::digests(keys).into_iter().map(|digest| Self(u128::from_be_bytes(digest))).collect()
    }

    /// The lane that holds this hash.
    #[must_use]
    pub const fn lane(self) -> Lane {
        Lane((self.0 >> (128 - 10)) as u16)
    }
}

/// One of [`LANES`] equal cuts of the hash space. What is ordered, marked and read separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lane(pub u16);

impl Lane {
    /// Index into arrays of [`LANES`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The smallest hash in the lane.
    #[must_use]
    pub const fn first_hash(self) -> u128 {
        (self.0 as u128) << (128 - 10)
    }

    /// The largest hash in the lane.
    #[must_use]
    pub const fn last_hash(self) -> u128 {
        self.first_hash() | (u128::MAX >> 10)
    }
}

/// A Kinesis shard's name, such as `shardId-000000000003`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub Arc<str>);

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for ShardId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ShardId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_key_is_its_md5_read_big_endian() {
        // RFC 1321, A.5: MD5("abc") = 900150983cd24fb0d6963f7d28e17f72
        assert_eq!(KeyHash::of_key("abc").0, 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
    }

    #[test]
    fn lanes_cover_the_hash_space_without_gap_or_overlap() {
        assert_eq!(Lane(0).first_hash(), 0);
        assert_eq!(Lane(LANES as u16 - 1).last_hash(), u128::MAX);
        for lane in 1..LANES as u16 {
            assert_eq!(Lane(lane - 1).last_hash() + 1, Lane(lane).first_hash());
            assert_eq!(KeyHash(Lane(lane).first_hash()).lane(), Lane(lane));
            assert_eq!(KeyHash(Lane(lane).last_hash()).lane(), Lane(lane));
        }
    }
}
