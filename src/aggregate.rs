//! Events of one shard into one Kinesis record, in KPL's format.
//!
//! Place: `dispatch` plans (it must know the exact size to know what still fits), the put task writes (so that
//! the copy and the MD5 run beside the dispatcher). Pure.
//!
//! The bytes (KPL, `aggregation-format.md`): `F3 89 9A C2`, then the protobuf message
//! `AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2;
//! repeated Record records = 3 }` with `Record { required uint64 partition_key_index = 1; optional uint64
//! explicit_hash_key_index = 2; required bytes data = 3 }`, then the MD5 of the protobuf. A record of one event
//! is sent plain, as KPL does.
//!
//! *EXACT-SIZE*: the planned size is the written size, varints included, asserted when written.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use md5::{Digest, Md5};

use crate::event::KeyHash;

/// What an aggregate begins with.
pub const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];

/// Bytes of the MD5 at the end.
pub const DIGEST_BYTES: usize = 16;

/// The partition key of an aggregate's record, as KPL writes it; its explicit hash key decides the shard.
pub const OUTER_KEY: &str = "a";

/// For keys that are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashIsKey(u64);

impl Hasher for HashIsKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u128 keys are hashed");
    }

    fn write_u128(&mut self, hash: u128) {
        // Both halves: explicit hash keys may be small numbers.
        self.0 = (hash as u64) ^ (hash >> 64) as u64;
    }
}

/// A map keyed by 128-bit hashes.
pub type HashKeyed<T> = HashMap<u128, T, BuildHasherDefault<HashIsKey>>;

/// Bytes of a varint.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    // 7 bits a byte; 0 takes one.
    ((64 - (value | 1).leading_zeros()) as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// One event's place in the tables, and its length.
#[derive(Clone, Copy, Debug)]
struct Member {
    key_index: u32,
    /// Index into the explicit hash keys, plus one; 0 for none.
    hash_index: u32,
    data_len: u32,
}

impl Member {
    fn inner_len(self) -> usize {
        let hash = if self.hash_index == 0 { 0 } else { 1 + varint_len(u64::from(self.hash_index - 1)) };
        1 + varint_len(u64::from(self.key_index)) + hash + 1 + varint_len(u64::from(self.data_len)) + self.data_len as usize
    }

    fn len(self) -> usize {
        let inner = self.inner_len();
        1 + varint_len(inner as u64) + inner
    }
}

/// An aggregate being planned, later written. Reusable after [`Packer::take`].
#[derive(Debug)]
pub struct Packer {
    bytes_max: usize,
    size: usize,
    keys: Vec<u8>,
    key_ends: Vec<u32>,
    by_hash: HashKeyed<u32>,
    explicit: Vec<u128>,
    by_explicit: HashKeyed<u32>,
    members: Vec<Member>,
}

/// A finished plan.
#[derive(Debug)]
pub struct Plan {
    size: usize,
    keys: Vec<u8>,
    key_ends: Vec<u32>,
    explicit: Vec<u128>,
    members: Vec<Member>,
}

impl Packer {
    /// A packer for records of at most `bytes_max` bytes, outer key included.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            size: MAGIC.len() + DIGEST_BYTES,
            keys: Vec::new(),
            key_ends: Vec::new(),
            by_hash: HashKeyed::default(),
            explicit: Vec::new(),
            by_explicit: HashKeyed::default(),
            members: Vec::new(),
        }
    }

    /// Events so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// No events.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Bytes the record would have now, outer key not included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Adds an event if it fits; the first always does (it will be sent plain). `hash` is the key's MD5 or, with
    /// `explicit`, the explicit hash key. `key` is asked for only when the key is new to the record: events of one
    /// MD5 and one length have one key.
    pub fn try_add<'k>(
        &mut self,
        key_len: u16,
        key: impl Fn() -> &'k [u8],
        hash: KeyHash,
        explicit: bool,
        data_len: usize,
    ) -> bool {
        let fingerprint = if explicit { KeyHash(u128::from_be_bytes(Md5::digest(key()).into())) } else { hash };
        let known = self.by_hash.get(&fingerprint.0).copied().filter(|index| self.key(*index).len() == usize::from(key_len));
        let key_index = known.unwrap_or(self.key_ends.len() as u32);
        let key_len = usize::from(key_len);
        let key_cost = if known.is_some() { 0 } else { 1 + varint_len(key_len as u64) + key_len };
        let (hash_index, hash_cost, new_hash) = if explicit {
            match self.by_explicit.get(&hash.0) {
                Some(index) => (index + 1, 0, false),
                None => (self.explicit.len() as u32 + 1, 2 + decimal_len(hash.0), true),
            }
        } else {
            (0, 0, false)
        };
        let member = Member { key_index, hash_index, data_len: data_len as u32 };
        let size = self.size + key_cost + hash_cost + member.len();
        if !self.members.is_empty() && size + OUTER_KEY.len() > self.bytes_max {
            return false;
        }
        if known.is_none() {
            self.by_hash.entry(fingerprint.0).or_insert(key_index);
            self.keys.extend_from_slice(key());
            self.key_ends.push(self.keys.len() as u32);
        }
        if new_hash {
            self.by_explicit.insert(hash.0, hash_index - 1);
            self.explicit.push(hash.0);
        }
        self.members.push(member);
        self.size = size;
        true
    }

    fn key(&self, index: u32) -> &[u8] {
        key_of(&self.keys, &self.key_ends, index as usize)
    }

    /// The plan; the packer is empty again and keeps its tables' memory.
    pub fn take(&mut self) -> Plan {
        self.by_hash.clear();
        self.by_explicit.clear();
        let size = std::mem::replace(&mut self.size, MAGIC.len() + DIGEST_BYTES);
        Plan {
            size,
            keys: std::mem::take(&mut self.keys),
            key_ends: std::mem::take(&mut self.key_ends),
            explicit: std::mem::take(&mut self.explicit),
            members: std::mem::take(&mut self.members),
        }
    }
}

fn key_of<'a>(keys: &'a [u8], ends: &[u32], index: usize) -> &'a [u8] {
    let start = if index == 0 { 0 } else { ends[index - 1] as usize };
    &keys[start..ends[index] as usize]
}

/// Digits of an explicit hash key as the API writes it.
fn decimal_len(value: u128) -> usize {
    value.checked_ilog10().map_or(1, |digits| digits as usize + 1)
}

impl Plan {
    /// Events.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never in a finished plan.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Bytes of the record's data as it will be written.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Writes the record, all but the MD5 at its end: [`seal`] adds that to all records of a request at once.
    /// `data` yields the members' bytes in the order in which they were added.
    ///
    /// # Panics
    /// If what `data` yields is not what was planned (*EXACT-SIZE*).
    #[must_use]
    pub fn write_unsealed<'a>(&self, data: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size);
        out.extend_from_slice(&MAGIC);
        for index in 0..self.key_ends.len() {
            let key = key_of(&self.keys, &self.key_ends, index);
            out.push(1 << 3 | 2);
            put_varint(&mut out, key.len() as u64);
            out.extend_from_slice(key);
        }
        for hash in &self.explicit {
            let text = hash.to_string();
            out.push(2 << 3 | 2);
            put_varint(&mut out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        let mut data = data.into_iter();
        for member in &self.members {
            let bytes = data.next().unwrap_or_default();
            assert!(bytes.len() == member.data_len as usize, "EXACT-SIZE: an event is not as long as planned");
            out.push(3 << 3 | 2);
            put_varint(&mut out, member.inner_len() as u64);
            out.push(1 << 3);
            put_varint(&mut out, u64::from(member.key_index));
            if member.hash_index > 0 {
                out.push(2 << 3);
                put_varint(&mut out, u64::from(member.hash_index - 1));
            }
            out.push(3 << 3 | 2);
            put_varint(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
        assert!(
            out.len() + DIGEST_BYTES == self.size,
            "EXACT-SIZE: planned {} bytes, wrote {}",
            self.size,
            out.len() + DIGEST_BYTES
        );
        out
    }
}

/// Ends records that [`Plan::write_unsealed`] wrote with their MD5, several side by side.
pub fn seal(records: &mut [&mut Vec<u8>]) {
    let bodies: Vec<&[u8]> = records.iter().map(|record| &record[MAGIC.len()..]).collect();
    let digests = crate::md5_lanes::digests(&bodies);
    for (record, digest) in records.iter_mut().zip(digests) {
        record.extend_from_slice(&digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deaggregate::tests::AggregatedRecord;
    use proptest::prelude::*;
    use prost::Message as _;

    proptest! {
        #[test]
        fn an_independent_decoder_reads_what_was_packed_and_no_record_is_over_its_ceiling(
            events in prop::collection::vec(("[a-e]{1,3}", prop::option::of(0u128..3), prop::collection::vec(any::<u8>(), 0..300)), 1..80),
            bytes_max in 64usize..8192,
        ) {
            let mut packer = Packer::new(bytes_max);
            let mut at = 0;
            while at < events.len() {
                let first = at;
                while at < events.len() {
                    let (key, explicit, data) = &events[at];
                    let hash = explicit.map_or_else(|| KeyHash::of_key(key), KeyHash);
                    if !packer.try_add(key.len() as u16, || key.as_bytes(), hash, explicit.is_some(), data.len()) {
                        break;
                    }
                    at += 1;
                }
                let plan = packer.take();
                let mut bytes = plan.write_unsealed(events[first..at].iter().map(|(_, _, data)| &data[..]));
                seal(&mut [&mut bytes]);
                prop_assert_eq!(bytes.len(), plan.size());
                prop_assert!(bytes.len() + OUTER_KEY.len() <= bytes_max || plan.len() == 1);
                prop_assert_eq!(&bytes[..4], &MAGIC[..]);
                let body = &bytes[4..bytes.len() - 16];
                let digest = Md5::digest(body);
                prop_assert_eq!(&bytes[bytes.len() - 16..], &digest[..]);
                let decoded = AggregatedRecord::decode(body).expect("protobuf");
                prop_assert_eq!(decoded.records.len(), at - first);
                for (record, (key, explicit, data)) in decoded.records.iter().zip(&events[first..at]) {
                    prop_assert_eq!(&decoded.partition_key_table[record.partition_key_index as usize], key);
                    let hash = record.explicit_hash_key_index.map(|index| decoded.explicit_hash_key_table[index as usize].clone());
                    prop_assert_eq!(hash, explicit.map(|hash| hash.to_string()));
                    prop_assert_eq!(&record.data, data);
                }
                let mut distinct: Vec<&str> = events[first..at].iter().map(|(key, _, _)| &key[..]).collect();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(decoded.partition_key_table.len(), distinct.len(), "each key once");
            }
        }

        #[test]
        fn varint_len_is_the_written_length(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
        }
    }
}
