//! Takes a Kinesis record apart into its events: a KPL aggregate into many, any other record into one.
//!
//! Place: pure; `consumer` calls it for each record it reads. It is the reading twin of the packer, and shares no
//! code with it. Events borrow from the record.
//!
//! The format (amazon-kinesis-producer, `aggregation-format.md`): the bytes `F3 89 9A C2`, a protobuf message, and
//! the 16-byte MD5 of that message.
//!
//! | message | field | wire type | meaning |
//! | --- | --- | --- | --- |
//! | aggregate | 1, repeated | bytes | table of partition keys |
//! | aggregate | 2, repeated | bytes | table of explicit hash keys, decimal |
//! | aggregate | 3, repeated | bytes | an event |
//! | event | 1 | varint | index into the first table |
//! | event | 2, optional | varint | index into the second table |
//! | event | 3 | bytes | data |
//!
//! Fields may come in any order and unknown ones (an event's tags, 4, among them) are passed over, as protobuf
//! asks. Failure: there is none; what is not a whole and well-formed aggregate *is* a plain record, as KCL and the
//! libraries of the other languages take it. No input panics or allocates more than its own size's multiple.
//!
//! *DELIVERED-MEANS-READABLE*: [`Content::readable_in`] is KCL's rule for an aggregate that lies in the wrong shard.

use md5::{Digest, Md5};

use crate::event::KeyHash;

/// What an aggregate begins with.
pub const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];

/// Length of the MD5 at an aggregate's end.
const CHECKSUM_BYTES: usize = 16;

/// Groups within groups that are passed over before the message counts as malformed. Groups are an old protobuf
/// feature that no aggregate uses.
const GROUP_DEPTH_MAX: usize = 16;

/// One event of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Partition key. UTF-8 when it came from us; other writers have been seen to put bytes there.
    pub key: &'a [u8],
    /// Decides the shard instead of the key, where given.
    pub explicit_hash_key: Option<u128>,
    /// The event.
    pub data: &'a [u8],
}

impl<'a> Member<'a> {
    /// The key as text, if it is.
    #[must_use]
    pub fn key_str(&self) -> Option<&'a str> {
        std::str::from_utf8(self.key).ok()
    }

    /// Where the event belongs in the hash space.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        match self.explicit_hash_key {
            Some(hash) => KeyHash(hash),
            None => KeyHash(u128::from_be_bytes(Md5::digest(self.key).into())),
        }
    }
}

/// A record taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// The record is one event.
    Plain(Member<'a>),
    /// The record is an aggregate of these, in order. It may be empty.
    Aggregate(Vec<Member<'a>>),
}

impl<'a> Content<'a> {
    /// The events, in order.
    #[must_use]
    pub fn members(&self) -> &[Member<'a>] {
        match self {
            Self::Plain(member) => std::slice::from_ref(member),
            Self::Aggregate(members) => members,
        }
    }

    /// Whether a consumer that follows KCL hands these events to its application, when the record lies in a shard
    /// that takes the hashes from `first` to `last`: an aggregate is dropped whole, and silently, when any member
    /// hashes outside; a plain record is never looked at.
    #[must_use]
    pub fn readable_in(&self, first: u128, last: u128) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Aggregate(members) => members.iter().all(|member| (first..=last).contains(&member.hash().0)),
        }
    }
}

/// Takes `record` apart. `key` and `explicit_hash_key` are the record's own: those of the event if it is plain.
#[must_use]
pub fn deaggregate<'a>(record: &'a [u8], key: &'a str, explicit_hash_key: Option<u128>) -> Content<'a> {
    match aggregate_body(record).and_then(parse_aggregate) {
        Some(members) => Content::Aggregate(members),
        None => Content::Plain(Member { key: key.as_bytes(), explicit_hash_key, data: record }),
    }
}

/// The protobuf between magic and checksum, if both are right.
fn aggregate_body(record: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = record.strip_prefix(&MAGIC)?.split_last_chunk::<CHECKSUM_BYTES>()?;
    (Md5::digest(body).as_slice() == checksum).then_some(body)
}

/// An event as it stands on the wire; the tables may come after it.
struct Entry<'a> {
    key: u64,
    hash: Option<u64>,
    data: &'a [u8],
}

fn parse_aggregate(body: &[u8]) -> Option<Vec<Member<'_>>> {
    let mut keys = Vec::new();
    let mut hashes = Vec::new();
    let mut entries = Vec::new();
    let mut reader = Reader(body);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Bytes(key)) => keys.push(key),
            (2, Value::Bytes(hash)) => hashes.push(hash),
            (3, Value::Bytes(entry)) => entries.push(parse_entry(entry)?),
            (1..=3, _) => return None,
            _ => {}
        }
    }
    let member = |entry: &Entry<'_>| {
        let key = *keys.get(usize::try_from(entry.key).ok()?)?;
        let explicit_hash_key = match entry.hash {
            // Read where an event asks for it, as KCL does.
            Some(index) => Some(parse_decimal(hashes.get(usize::try_from(index).ok()?)?)?),
            None => None,
        };
        Some((key, explicit_hash_key))
    };
    entries
        .iter()
        .map(|entry| member(entry).map(|(key, explicit_hash_key)| Member { key, explicit_hash_key, data: entry.data }))
        .collect()
}

fn parse_entry(bytes: &[u8]) -> Option<Entry<'_>> {
    let (mut key, mut hash, mut data) = (None, None, None);
    let mut reader = Reader(bytes);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Varint(index)) => key = Some(index),
            (2, Value::Varint(index)) => hash = Some(index),
            (3, Value::Bytes(bytes)) => data = Some(bytes),
            (1..=3, _) => return None,
            _ => {}
        }
    }
    // Both are `required`: an event without one is no event.
    Some(Entry { key: key?, hash, data: data? })
}

/// An explicit hash key: decimal digits and nothing else, below 2^128.
fn parse_decimal(text: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// A protobuf message being read from its front.
struct Reader<'a>(&'a [u8]);

/// The value of a field, as far as this format needs it.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Passed,
}

impl<'a> Reader<'a> {
    /// The next field, `Some(None)` at the message's end, `None` where it is malformed.
    fn field(&mut self) -> Option<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let (field, wire) = self.tag()?;
        let value = match wire {
            0 => Value::Varint(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            3 => self.pass_group(field)?,
            1 => self.pass(8)?,
            5 => self.pass(4)?,
            _ => return None,
        };
        Some(Some((field, value)))
    }

    fn tag(&mut self) -> Option<(u32, u8)> {
        let tag = u32::try_from(self.varint()?).ok()?;
        let field = tag >> 3;
        (field != 0).then_some((field, (tag & 7) as u8))
    }

    /// At most ten bytes, and no bit above the 64th.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for at in 0..10 {
            let byte = *self.0.get(at)?;
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                return None;
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn pass(&mut self, length: usize) -> Option<Value<'a>> {
        self.take(length).map(|_| Value::Passed)
    }

    /// Passes over a group up to its end tag, and over groups within it.
    fn pass_group(&mut self, field: u32) -> Option<Value<'a>> {
        let mut open = vec![field];
        while let Some(innermost) = open.last() {
            match self.tag()? {
                (field, 4) if field == *innermost => drop(open.pop()),
                (field, 3) if open.len() < GROUP_DEPTH_MAX => open.push(field),
                (_, 0) => drop(self.varint()?),
                (_, 1) => drop(self.take(8)?),
                (_, 2) => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    self.take(length)?;
                }
                (_, 5) => drop(self.take(4)?),
                _ => return None,
            }
        }
        Some(Value::Passed)
    }
}

#[cfg(test)]
pub(crate) mod tests;
