//! Takes a Kinesis record apart as KCL does, with prost, so that the program's writer is not judged by its own reader.
//!
//! Place: used by the sink and by the tests that read what was delivered. Pure. Format: KPL's `aggregation-format.md`:
//! `F3 89 9A C2`, protobuf, MD5 of the protobuf. Failure: a record with the magic whose checksum or protobuf is wrong is
//! an error here, where KCL would hand it on as a plain one: the program must never write such a record.

use md5::{Digest as _, Md5};
use prost::Message;

const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];

/// As in KPL's `messages.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    pub partition_key_table: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub explicit_hash_key_table: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub records: Vec<Member>,
}

/// `Record` in KPL's `messages.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct Member {
    #[prost(uint64, required, tag = "1")]
    pub partition_key_index: u64,
    #[prost(uint64, optional, tag = "2")]
    pub explicit_hash_key_index: Option<u64>,
    #[prost(bytes = "vec", required, tag = "3")]
    pub data: Vec<u8>,
}

/// An event as a consumer gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub key: String,
    pub explicit_hash_key: Option<u128>,
    pub data: Vec<u8>,
    /// Came in an aggregate.
    pub aggregated: bool,
}

/// The events of one record, in order.
pub fn take_apart(key: &str, explicit_hash_key: Option<u128>, data: &[u8]) -> Result<Vec<Delivered>, String> {
    if data.len() < MAGIC.len() + 16 || data[..4] != MAGIC {
        return Ok(vec![Delivered { key: key.to_owned(), explicit_hash_key, data: data.to_vec(), aggregated: false }]);
    }
    let (body, sum) = data[4..].split_at(data.len() - 4 - 16);
    if Md5::digest(body).as_slice() != sum {
        return Err("the MD5 of an aggregate is wrong".to_owned());
    }
    let aggregate = AggregatedRecord::decode(body).map_err(|e| format!("the protobuf of an aggregate is wrong: {e}"))?;
    let AggregatedRecord { partition_key_table: keys, explicit_hash_key_table: hashes, records } = aggregate;
    let one = |member: Member| {
        let key = keys.get(member.partition_key_index as usize).ok_or("a key index points outside its table")?;
        let hash = match member.explicit_hash_key_index {
            None => None,
            Some(at) => {
                let text = hashes.get(at as usize).ok_or("a hash key index points outside its table")?;
                Some(text.parse().map_err(|_| "a hash key is no 128-bit number")?)
            }
        };
        Ok(Delivered { key: key.clone(), explicit_hash_key: hash, data: member.data, aggregated: true })
    };
    records.into_iter().map(one).collect::<Result<_, &str>>().map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_the_magic_is_one_event() {
        let events = take_apart("k", Some(3), b"plain").unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].key.as_str(), events[0].explicit_hash_key, events[0].aggregated), ("k", Some(3), false));
    }

    #[test]
    fn an_aggregate_is_taken_apart_in_order_and_a_flipped_bit_is_an_error() {
        // By hand: keys "a", "b"; hash "7"; records (0, -, "x"), (1, 0, "y").
        let body = b"\x0a\x01a\x0a\x01b\x12\x017\x1a\x05\x08\x00\x1a\x01x\x1a\x07\x08\x01\x10\x00\x1a\x01y";
        let mut record = [&MAGIC[..], body, Md5::digest(body).as_slice()].concat();
        let events = take_apart("outer", None, &record).unwrap();
        let short: Vec<_> = events.iter().map(|e| (e.key.as_str(), e.explicit_hash_key, &e.data[..])).collect();
        assert_eq!(short, [("a", None, &b"x"[..]), ("b", Some(7), b"y")]);
        record[6] ^= 1;
        take_apart("outer", None, &record).unwrap_err();
    }
}
