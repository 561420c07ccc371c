//! The bytes of the sink: one pass over a PutRecords body, and the answers.
//!
//! Place: used by `sink.rs` alone. Pure, apart from appending to the buffers it is given. A PutRecords body is walked
//! once with memchr, without a tree and without decoding the data, because the throughput bench shares two cores with
//! it. Failure: an error text for a body that is not what the service takes; the sink answers 400 with it.

use std::borrow::Cow;
use std::collections::HashMap;

use forebay::event::KeyHash;

/// One entry as it lies in the body.
pub struct WireEntry<'a> {
    /// base64.
    pub data: &'a [u8],
    pub key: Cow<'a, [u8]>,
    pub explicit_hash_key: Option<u128>,
}

impl WireEntry<'_> {
    /// Bytes of the data, decoded.
    pub fn data_len(&self) -> usize {
        let padding = self.data.iter().rev().take_while(|byte| **byte == b'=').count();
        (self.data.len() - padding) * 3 / 4
    }
}

struct Walker<'a> {
    body: &'a [u8],
    at: usize,
}

type Walked<T> = Result<T, &'static str>;

impl<'a> Walker<'a> {
    fn peek(&mut self) -> Walked<u8> {
        while let Some(byte) = self.body.get(self.at) {
            if !byte.is_ascii_whitespace() {
                return Ok(*byte);
            }
            self.at += 1;
        }
        Err("the body ends too early")
    }

    fn take(&mut self, byte: u8) -> Walked<bool> {
        let found = self.peek()? == byte;
        self.at += usize::from(found);
        Ok(found)
    }

    fn expect(&mut self, byte: u8) -> Walked<()> {
        if self.take(byte)? { Ok(()) } else { Err("a byte that does not belong there") }
    }

    /// The raw inside of a string, and whether it has escapes.
    fn string(&mut self) -> Walked<(&'a [u8], bool)> {
        self.expect(b'"')?;
        let from = self.at;
        let mut escapes = false;
        loop {
            let rest = &self.body[self.at..];
            let n = memchr::memchr2(b'"', b'\\', rest).ok_or("a string does not end")?;
            if rest[n] == b'"' {
                self.at += n + 1;
                return Ok((&self.body[from..self.at - 1], escapes));
            }
            escapes = true;
            self.at = (self.at + n + 2).min(self.body.len());
        }
    }

    fn text(&mut self) -> Walked<Cow<'a, [u8]>> {
        let (raw, escapes) = self.string()?;
        if !escapes {
            return Ok(Cow::Borrowed(raw));
        }
        let quoted = [b"\"", raw, b"\""].concat();
        let text: String = serde_json::from_slice(&quoted).map_err(|_| "an escape that is none")?;
        Ok(Cow::Owned(text.into_bytes()))
    }

    /// Calls `each` for the name of every member; it walks the value.
    fn object(&mut self, mut each: impl FnMut(&mut Self, &'a [u8]) -> Walked<()>) -> Walked<()> {
        self.expect(b'{')?;
        if self.take(b'}')? {
            return Ok(());
        }
        loop {
            let (name, _) = self.string()?;
            self.expect(b':')?;
            each(self, name)?;
            if self.take(b'}')? {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn entry(&mut self) -> Walked<WireEntry<'a>> {
        let (mut data, mut key, mut explicit_hash_key) = (None, None, None);
        self.object(|walker, name| {
            match name {
                b"Data" => data = Some(walker.string()?.0),
                b"PartitionKey" => key = Some(walker.text()?),
                b"ExplicitHashKey" => {
                    let (digits, _) = walker.string()?;
                    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                    explicit_hash_key = Some(number.ok_or("an ExplicitHashKey is no 128-bit number")?);
                }
                _ => return Err("an unknown member of an entry"),
            }
            Ok(())
        })?;
        let (data, key) = data.zip(key).ok_or("an entry without Data or PartitionKey")?;
        Ok(WireEntry { data, key, explicit_hash_key })
    }
}

/// Walks a PutRecords body and hands over each entry in order.
pub fn each_entry<'a>(body: &'a [u8], mut each: impl FnMut(WireEntry<'a>) -> Walked<()>) -> Walked<()> {
    let mut records_seen = false;
    Walker { body, at: 0 }.object(|walker, name| {
        if name != b"Records" {
            return walker.string().map(|_| ());
        }
        records_seen = true;
        walker.expect(b'[')?;
        if walker.take(b']')? {
            return Ok(());
        }
        loop {
            each(walker.entry()?)?;
            if walker.take(b']')? {
                return Ok(());
            }
            walker.expect(b',')?;
        }
    })?;
    if records_seen { Ok(()) } else { Err("no Records") }
}

/// Shards of equal width.
#[derive(Clone, Copy, Debug)]
pub struct Shards {
    pub count: usize,
    width: u128,
}

impl Shards {
    pub fn new(count: usize) -> Self {
        assert!(count > 0);
        // Floor of 2^128 / count, which for one shard does not fit a u128 and is never used.
        let width = if count == 1 { u128::MAX } else { (u128::MAX - (count as u128 - 1)) / count as u128 + 1 };
        Self { count, width }
    }

    /// First and last hash of a shard.
    pub fn range(&self, shard: usize) -> (u128, u128) {
        let first = shard as u128 * self.width;
        (first, if shard + 1 == self.count { u128::MAX } else { first + self.width - 1 })
    }

    pub fn of_hash(&self, hash: u128) -> usize {
        ((hash / self.width) as usize).min(self.count - 1)
    }
}

/// Where keys go, remembered, because the same few thousand come again and again.
#[derive(Debug, Default)]
pub struct KeyCache(HashMap<Box<[u8]>, u32>);

impl KeyCache {
    const MAX: usize = 1 << 20;

    pub fn shard(&mut self, shards: &Shards, entry: &WireEntry<'_>) -> Walked<usize> {
        if let Some(hash) = entry.explicit_hash_key {
            return Ok(shards.of_hash(hash));
        }
        if let Some(shard) = self.0.get(&*entry.key) {
            return Ok(*shard as usize);
        }
        let key = std::str::from_utf8(&entry.key).map_err(|_| "a key is not UTF-8")?;
        let shard = shards.of_hash(KeyHash::of_key(key).0);
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0.insert(entry.key.to_vec().into_boxed_slice(), shard as u32);
        Ok(shard)
    }
}

pub fn shard_name(shard: usize) -> String {
    format!("shardId-{shard:012}")
}

/// Appends `number` in decimal, padded with zeroes to `WIDTH`.
fn digits<const WIDTH: usize>(out: &mut Vec<u8>, mut number: u64) {
    let mut text = [b'0'; WIDTH];
    for place in text.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text);
}

/// Builds a PutRecords answer entry by entry.
pub struct PutAnswer<'a> {
    out: &'a mut Vec<u8>,
    failed: u32,
}

impl<'a> PutAnswer<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        out.clear();
        out.extend_from_slice(br#"{"EncryptionType":"NONE","Records":["#);
        Self { out, failed: 0 }
    }

    pub fn stored(&mut self, sequence: u64, shard: usize) {
        self.out.extend_from_slice(br#"{"SequenceNumber":"4966"#);
        digits::<52>(self.out, sequence);
        self.out.extend_from_slice(br#"","ShardId":"shardId-"#);
        digits::<12>(self.out, shard as u64);
        self.out.extend_from_slice(br#""},"#);
    }

    pub fn throttled(&mut self) {
        self.failed += 1;
        let entry = r#"{"ErrorCode":"ProvisionedThroughputExceededException","ErrorMessage":"Rate exceeded for shard"},"#;
        self.out.extend_from_slice(entry.as_bytes());
    }

    pub fn finish(self) {
        if self.out.last() == Some(&b',') {
            self.out.pop();
        }
        self.out.extend_from_slice(br#"],"FailedRecordCount":"#);
        digits::<3>(self.out, u64::from(self.failed));
        // JSON has no leading zeroes.
        let at = self.out.len() - 3;
        let zeroes = self.out[at..at + 2].iter().take_while(|byte| **byte == b'0').count();
        self.out.drain(at..at + zeroes);
        self.out.push(b'}');
    }
}

/// The answer to ListShards.
pub fn list_shards(shards: &Shards) -> Vec<u8> {
    let one = |shard: usize| {
        let (first, last) = shards.range(shard);
        let id = shard_name(shard);
        let hashes = format!(r#""HashKeyRange":{{"StartingHashKey":"{first}","EndingHashKey":"{last}"}}"#);
        format!(r#"{{"ShardId":"{id}",{hashes},"SequenceNumberRange":{{"StartingSequenceNumber":"4966"}}}}"#)
    };
    let all: Vec<String> = (0..shards.count).map(one).collect();
    format!(r#"{{"Shards":[{}]}}"#, all.join(",")).into_bytes()
}

/// The answer to DescribeStreamSummary.
pub fn describe(shards: &Shards, stream: &str, auto: bool) -> Vec<u8> {
    let summary = serde_json::json!({"StreamDescriptionSummary": {
        "StreamName": stream,
        "StreamARN": format!("arn:aws:kinesis:us-east-1:000000000000:stream/{stream}"),
        "StreamStatus": "ACTIVE",
        "StreamModeDetails": {"StreamMode": "ON_DEMAND"},
        "RecordDistributionStrategy": if auto { "AUTO" } else { "USER_PARTITION_KEY" },
        "MaxRecordSizeInKiB": 1024,
        "RetentionPeriodHours": 24,
        "StreamCreationTimestamp": 1_767_225_600,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
        "OpenShardCount": shards.count,
        "ConsumerCount": 0,
    }});
    summary.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, key, explicit hash key.
    type Found = (Vec<u8>, Vec<u8>, Option<u128>);

    fn walk(body: &[u8]) -> Walked<Vec<Found>> {
        let mut all = Vec::new();
        each_entry(body, |entry| {
            all.push((entry.data.to_vec(), entry.key.to_vec(), entry.explicit_hash_key));
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn entries_are_found_in_order_whatever_their_member_order_and_escapes() {
        let body = br#"{"StreamName":"s", "Records":[{"Data":"QQ==","ExplicitHashKey":"340282366920938463463374607431768211455",
            "PartitionKey":"a\"],\"Data\":\\"},{"PartitionKey":"b","Data":""}]}"#;
        let all = walk(body).unwrap();
        assert_eq!(all[0], (b"QQ==".to_vec(), b"a\"],\"Data\":\\".to_vec(), Some(u128::MAX)));
        assert_eq!(all[1], (b"".to_vec(), b"b".to_vec(), None));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_cut_body_is_an_error_at_every_length() {
        let body = br#"{"Records":[{"Data":"QQ==","PartitionKey":"a\n"}],"StreamName":"s"}"#;
        assert_eq!(walk(body).unwrap().len(), 1);
        for len in 0..body.len() {
            walk(&body[..len]).unwrap_err();
        }
    }

    #[test]
    fn ranges_cover_the_hash_space_and_agree_with_the_lookup() {
        for count in [1, 2, 3, 7, 8, 512] {
            let shards = Shards::new(count);
            assert_eq!((shards.range(0).0, shards.range(count - 1).1), (0, u128::MAX));
            for shard in 0..count {
                let (first, last) = shards.range(shard);
                assert_eq!((shards.of_hash(first), shards.of_hash(last)), (shard, shard));
                assert!(shard == 0 || shards.range(shard - 1).1 + 1 == first);
            }
        }
    }

    #[test]
    fn answers_are_json_with_an_entry_for_each_record() {
        let mut out = Vec::new();
        let mut answer = PutAnswer::new(&mut out);
        for shard in 0..12 {
            answer.stored(7, shard);
            answer.throttled();
        }
        answer.finish();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["Records"].as_array().unwrap().len(), 24);
        assert_eq!(json["FailedRecordCount"], 12);
        assert_eq!(json["Records"][22]["ShardId"], "shardId-000000000011");
        let mut none = Vec::new();
        PutAnswer::new(&mut none).finish();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&none).unwrap()["FailedRecordCount"], 0);
        let list: serde_json::Value = serde_json::from_slice(&list_shards(&Shards::new(3))).unwrap();
        assert_eq!(list["Shards"].as_array().unwrap().len(), 3);
    }
}
