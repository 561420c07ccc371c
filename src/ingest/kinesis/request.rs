//! PutRecord and PutRecords: what they hold, judged as the service judges it, and taken apart into events.
//!
//! Place: the route reads a body into a [`Value`], [`Put::read`] finds the records in it, [`decode`] undoes base64, and
//! [`take_apart`] makes events of them: an aggregate of the KPL becomes its user records, each under its own key, any other
//! record is one event. *ALL-READ-FIRST*: each step judges the whole request before the next begins.
//!
//! Failure: the service's own codes, with its words where it has some; the value at fault is never shown. An aggregate that is
//! empty, or has a key that no record can have, is none of the KPL's: it goes on as the record that it is.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Failure;
use super::value::Value;
use crate::deaggregate::{Content, deaggregate};
use crate::event::KeyHash;
use crate::ingest::source::check_key;
use crate::limits::{KEY_CHARS_MAX, MARGIN_BYTES, REQUEST_BYTES_CEILING, REQUEST_RECORDS_MAX};

/// Bytes of a request, data before base64 plus partition keys. The service's newer quota: the agent makes requests of its own.
const REQUEST_BYTES_MAX: usize = REQUEST_BYTES_CEILING + MARGIN_BYTES;

/// Violations that one answer names, as in the service's.
const VIOLATIONS_MAX: usize = 10;

/// What the service says of a sequence number.
const SEQUENCE_PATTERN: &str = "0|([1-9]\\d{0,128})";

/// What it says of an explicit hash key.
const HASH_PATTERN: &str = "0|([1-9]\\d{0,38})";

/// Members that are of the type they should be. `None`: there is none.
pub(super) fn text<'v>(of: &'v Value<'_>, name: &str) -> Result<Option<&'v str>, Failure> {
    match of.get(name) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(_) => Err(Failure::serialization(format!("{name} is not a text"))),
    }
}

/// The same for numbers.
pub(super) fn number(of: &Value<'_>, name: &str) -> Result<Option<i64>, Failure> {
    match of.get(name) {
        None => Ok(None),
        Some(Value::Int(number)) => Ok(Some(*number)),
        Some(_) => Err(Failure::serialization(format!("{name} is not a whole number"))),
    }
}

/// What is wrong with a request by the service's rules for its members.
#[derive(Debug, Default)]
pub(super) struct Violations(Vec<String>);

impl Violations {
    pub(super) fn add(&mut self, null: bool, at: impl std::fmt::Display, constraint: impl std::fmt::Display) {
        if self.0.len() < VIOLATIONS_MAX {
            let value = if null { "Value null" } else { "Value" };
            self.0.push(format!("{value} at '{at}' failed to satisfy constraint: Member must {constraint}"));
        }
    }

    pub(super) fn missing(&mut self, at: impl std::fmt::Display) {
        self.add(true, at, "not be null");
    }

    fn too_long(&mut self, at: impl std::fmt::Display, most: usize) {
        self.add(false, at, format_args!("have length less than or equal to {most}"));
    }

    fn too_short(&mut self, at: impl std::fmt::Display) {
        self.add(false, at, "have length greater than or equal to 1");
    }

    fn pattern(&mut self, at: impl std::fmt::Display, pattern: &str) {
        self.add(false, at, format_args!("satisfy regular expression pattern: {pattern}"));
    }

    pub(super) fn judge(self) -> Result<(), Failure> {
        if self.0.is_empty() {
            return Ok(());
        }
        let plural = if self.0.len() > 1 { "s" } else { "" };
        Err(Failure::new(
            "ValidationException",
            format!("{} validation error{plural} detected: {}", self.0.len(), self.0.join("; ")),
        ))
    }
}

/// The stream that a request names: by name, by ARN, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamRef<'v> {
    /// `StreamName`.
    pub name: Option<&'v str>,
    /// `StreamARN`.
    pub arn: Option<&'v str>,
}

impl<'v> StreamRef<'v> {
    /// From a request's members. Names no stream where neither is given.
    ///
    /// # Errors
    /// Members that are no texts, or that the service's rules refuse.
    pub fn read(body: &'v Value<'_>) -> Result<Self, Failure> {
        let found = Self { name: text(body, "StreamName")?, arn: text(body, "StreamARN")? };
        let mut wrong = Violations::default();
        if let Some(name) = found.name {
            match name.len() {
                0 => wrong.too_short("streamName"),
                1..=128 => {}
                _ => wrong.too_long("streamName", 128),
            }
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
                wrong.pattern("streamName", "[a-zA-Z0-9_.-]+");
            }
        }
        if found.arn.is_some_and(|arn| arn.len() > 2048 || !arn.starts_with("arn:") || !arn.contains(":stream/")) {
            wrong.pattern("streamARN", "arn:aws.*:kinesis:.*:\\d{12}:stream/\\S+");
        }
        wrong.judge().map(|()| found)
    }

    /// One stream must be named.
    ///
    /// # Errors
    /// None is.
    pub fn required(self) -> Result<Self, Failure> {
        match self {
            Self { name: None, arn: None } => Err(Failure::argument("Either StreamName or StreamARN should be provided.")),
            named => Ok(named),
        }
    }

    /// The name in either of them.
    #[must_use]
    pub fn plain(self) -> &'v str {
        self.name.or_else(|| self.arn.and_then(|arn| arn.split_once(":stream/")).map(|(_, name)| name)).unwrap_or_default()
    }
}

/// A record's data as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blob<'v> {
    Base64(&'v str),
    Raw(&'v [u8]),
}

impl Blob<'_> {
    /// Bytes once decoded, if it can be.
    fn len(self) -> usize {
        match self {
            Self::Base64(text) => {
                let padding = text.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
                (text.len() / 4 * 3).saturating_sub(padding)
            }
            Self::Raw(bytes) => bytes.len(),
        }
    }
}

/// A record as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'v> {
    key: &'v str,
    hash: Option<u128>,
    blob: Blob<'v>,
}

impl Record<'_> {
    /// What decides its shard.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash.map_or_else(|| KeyHash::of_key(self.key), KeyHash)
    }
}

/// A request that puts records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put<'v> {
    /// Into this stream.
    pub stream: StreamRef<'v>,
    /// In their order.
    pub records: Vec<Record<'v>>,
}

impl<'v> Put<'v> {
    /// The records of a request; a `single` one is a PutRecord.
    ///
    /// # Errors
    /// `SerializationException`, `ValidationException` or `InvalidArgumentException`, as the service has them.
    pub fn read(body: &'v Value<'_>, single: bool) -> Result<Self, Failure> {
        let stream = StreamRef::read(body)?.required()?;
        let mut wrong = Violations::default();
        let mut records = Vec::new();
        if single {
            records.extend(record(body, "", &mut wrong)?);
            if text(body, "SequenceNumberForOrdering")?.is_some_and(|sequence| !is_decimal(sequence, 129)) {
                wrong.pattern("sequenceNumberForOrdering", SEQUENCE_PATTERN);
            }
        } else {
            let items = match body.get("Records") {
                None => {
                    wrong.missing("records");
                    &[][..]
                }
                Some(Value::List(items)) => {
                    match items.len() {
                        0 => wrong.too_short("records"),
                        1..=REQUEST_RECORDS_MAX => {}
                        _ => wrong.too_long("records", REQUEST_RECORDS_MAX),
                    }
                    &items[..]
                }
                Some(_) => return Err(Failure::serialization("Records is not a list")),
            };
            for (at, item) in items.iter().take(REQUEST_RECORDS_MAX).enumerate() {
                if !matches!(item, Value::Map(_)) {
                    return Err(Failure::serialization(format!("record {} is not a structure", at + 1)));
                }
                records.extend(record(item, &format!("records.{}.member.", at + 1), &mut wrong)?);
            }
        }
        wrong.judge()?;
        let bytes: usize = records.iter().map(|record| record.blob.len() + record.key.len()).sum();
        if bytes > REQUEST_BYTES_MAX {
            return Err(Failure::argument(format!("Records size exceeds {} MiB", REQUEST_BYTES_MAX >> 20)));
        }
        Ok(Self { stream, records })
    }

    /// Bytes that [`decode`] needs.
    #[must_use]
    pub fn decoded_bytes(&self) -> usize {
        let base64 = self.records.iter().filter(|record| matches!(record.blob, Blob::Base64(_)));
        base64.map(|record| record.blob.len()).sum()
    }
}

/// One record's members, below `at`. `None` where the service's rules refuse it, which is then in `wrong`.
fn record<'v>(of: &'v Value<'_>, at: &str, wrong: &mut Violations) -> Result<Option<Record<'v>>, Failure> {
    let blob = match of.get("Data") {
        None => None,
        Some(Value::Text(text)) => Some(Blob::Base64(text)),
        Some(Value::Bytes(bytes)) => Some(Blob::Raw(bytes)),
        Some(_) => return Err(Failure::serialization(format!("{at}data can not be converted to a Blob"))),
    };
    if blob.is_none() {
        wrong.missing(format_args!("{at}data"));
    }
    let key = text(of, "PartitionKey")?;
    match key {
        None => wrong.missing(format_args!("{at}partitionKey")),
        Some("") => wrong.too_short(format_args!("{at}partitionKey")),
        Some(key) if key.len() > KEY_CHARS_MAX && key.chars().count() > KEY_CHARS_MAX => {
            wrong.too_long(format_args!("{at}partitionKey"), KEY_CHARS_MAX);
        }
        Some(_) => {}
    }
    let hash =
        match text(of, "ExplicitHashKey")? {
            Some(digits) if !is_decimal(digits, 39) => {
                wrong.pattern(format_args!("{at}explicitHashKey"), HASH_PATTERN);
                None
            }
            Some(digits) => Some(digits.parse().map_err(|_| {
                Failure::argument("Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1].")
            })?),
            None => None,
        };
    Ok(blob.zip(key).map(|(blob, key)| Record { key, hash, blob }))
}

/// Decimal digits, at most so many, without a leading zero.
fn is_decimal(text: &str, digits_max: usize) -> bool {
    (1..=digits_max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// The data of each record. What must be decoded lies in `arena` then.
///
/// # Errors
/// `SerializationException`: not base64.
pub fn decode<'v>(records: &[Record<'v>], arena: &'v mut Vec<u8>) -> Result<Vec<&'v [u8]>, Failure> {
    let mut ends = Vec::with_capacity(records.len());
    for (at, record) in records.iter().enumerate() {
        if let Blob::Base64(text) = record.blob {
            BASE64_STANDARD.decode_vec(text, arena).map_err(|_| {
                Failure::serialization(format!("record {}: Data can not be converted to a Blob: not base64", at + 1))
            })?;
        }
        ends.push(arena.len());
    }
    let arena = &arena[..];
    let mut begun = 0;
    let data = records.iter().zip(ends).map(|(record, end)| match record.blob {
        Blob::Raw(bytes) => bytes,
        Blob::Base64(_) => &arena[std::mem::replace(&mut begun, end)..end],
    });
    Ok(data.collect())
}

/// An event of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'v> {
    /// Which record, from 0.
    pub record: u32,
    /// It was one of several in its record.
    pub aggregated: bool,
    /// Its partition key.
    pub key: &'v str,
    /// Its explicit hash key.
    pub hash: Option<KeyHash>,
    /// Its bytes.
    pub data: &'v [u8],
}

/// The events of all records, in order.
///
/// # Errors
/// More than `events_max`.
pub fn take_apart<'v>(records: &[Record<'v>], data: &[&'v [u8]], events_max: usize) -> Result<Vec<Event<'v>>, Failure> {
    let mut events = Vec::with_capacity(records.len());
    for (at, (record, &data)) in (0..).zip(records.iter().zip(data)) {
        let plain = Event { record: at, aggregated: false, key: record.key, hash: record.hash.map(KeyHash), data };
        let Content::Aggregate(members) = deaggregate(data, record.key, record.hash) else {
            events.push(plain);
            continue;
        };
        if events.len() + members.len() > events_max {
            break;
        }
        let before = events.len();
        events.extend(members.iter().map_while(|member| {
            let key = std::str::from_utf8(member.key).ok().filter(|key| check_key(key).is_ok())?;
            Some(Event { record: at, aggregated: true, key, hash: member.explicit_hash_key.map(KeyHash), data: member.data })
        }));
        if members.is_empty() || events.len() - before < members.len() {
            events.truncate(before);
            events.push(plain);
        }
    }
    match events.last().is_some_and(|last| last.record as usize + 1 == records.len()) {
        true => Ok(events),
        false => Err(Failure::argument(format!("the aggregates of a request may hold {events_max} user records at most"))),
    }
}

/// Every event must be of a size that `takes` allows; `most` is told in the answer.
///
/// # Errors
/// `ValidationException`.
pub fn judge_sizes(events: &[Event<'_>], single: bool, takes: impl Fn(usize) -> bool, most: usize) -> Result<(), Failure> {
    let mut wrong = Violations::default();
    for event in events.iter().filter(|event| !takes(event.data.len())) {
        let place = if single { "data".to_owned() } else { format!("records.{}.member.data", event.record + 1) };
        let place = if event.aggregated { format!("{place} (a user record of the aggregate)") } else { place };
        wrong.too_long(place, most);
    }
    wrong.judge()
}

#[cfg(test)]
mod tests {
    use md5::{Digest as _, Md5};
    use prost::Message as _;

    use super::*;
    use crate::deaggregate::{MAGIC, tests as kpl};
    use crate::ingest::kinesis::json;

    fn put(json: &str, single: bool) -> Result<usize, Failure> {
        Put::read(&json::read(json.as_bytes()).unwrap(), single).map(|put| put.records.len())
    }

    fn of_records(records: &str) -> Result<usize, Failure> {
        put(&format!(r#"{{"StreamName":"clicks","Records":[{records}]}}"#), false)
    }

    fn text_of(result: Result<usize, Failure>, code: &str) -> String {
        let failure = result.unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        failure.text
    }

    #[test]
    fn the_services_rules_are_told_in_its_words_and_without_the_value() {
        let invalid = |records: &str| text_of(of_records(records), "ValidationException");
        assert_eq!(
            invalid(""),
            "1 validation error detected: Value at 'records' failed to satisfy constraint: Member must have length greater than or equal to 1"
        );
        let one = r#"{"Data":"","PartitionKey":"k"}"#;
        assert_eq!(of_records(&[one; 500].join(",")), Ok(500));
        assert!(
            invalid(&[one; 501].join(","))
                .ends_with("at 'records' failed to satisfy constraint: Member must have length less than or equal to 500")
        );
        assert_eq!(
            invalid(&format!(r#"{one},{{"PartitionKey":"","Data":"AA=="}},{{}}"#)),
            "3 validation errors detected: \
             Value at 'records.2.member.partitionKey' failed to satisfy constraint: Member must have length greater than or equal to 1; \
             Value null at 'records.3.member.data' failed to satisfy constraint: Member must not be null; \
             Value null at 'records.3.member.partitionKey' failed to satisfy constraint: Member must not be null"
        );
        let long = "ä".repeat(257);
        let told = invalid(&format!(r#"{{"PartitionKey":"{long}","Data":""}}"#));
        assert!(told.ends_with(
            "'records.1.member.partitionKey' failed to satisfy constraint: Member must have length less than or equal to 256"
        ));
        assert!(!told.contains('ä'));
        assert_eq!(of_records(&format!(r#"{{"PartitionKey":"{}","Data":""}}"#, "ä".repeat(256))), Ok(1));
        let told = text_of(put(r#"{"StreamName":"a b","Data":"","PartitionKey":"k"}"#, true), "ValidationException");
        assert!(told.contains("'streamName'"), "{told}");
        let told = text_of(
            put(r#"{"StreamName":"clicks","SequenceNumberForOrdering":"x","Data":"","PartitionKey":"k"}"#, true),
            "ValidationException",
        );
        assert!(told.contains("'sequenceNumberForOrdering'"), "{told}");
        text_of(put(r#"{"Data":"","PartitionKey":"k"}"#, true), "InvalidArgumentException");
    }

    #[test]
    fn an_explicit_hash_key_is_decimal_and_below_2_to_the_128() {
        let with = |digits: &str| of_records(&format!(r#"{{"Data":"","PartitionKey":"k","ExplicitHashKey":"{digits}"}}"#));
        for digits in ["0", "340282366920938463463374607431768211455"] {
            assert_eq!(with(digits), Ok(1));
        }
        assert!(text_of(with("340282366920938463463374607431768211456"), "InvalidArgumentException").contains("[0, 2^128-1]"));
        for digits in ["", "00", "01", "+1", "-1", "0x1", "1234567890123456789012345678901234567890"] {
            assert!(text_of(with(digits), "ValidationException").ends_with("pattern: 0|([1-9]\\d{0,38})"), "{digits}");
        }
    }

    #[test]
    fn members_of_another_type_are_no_requests() {
        for records in [
            "7",
            r#"{"Data":1,"PartitionKey":"k"}"#,
            r#"{"Data":"","PartitionKey":1}"#,
            r#"{"Data":"","PartitionKey":"k","ExplicitHashKey":1}"#,
        ] {
            text_of(of_records(records), "SerializationException");
        }
        text_of(put(r#"{"StreamName":"clicks","Records":{}}"#, false), "SerializationException");
        text_of(put(r#"{"StreamName":7,"Records":[]}"#, false), "SerializationException");
    }

    #[test]
    fn base64_is_decoded_in_place_of_its_record() {
        let body = json::read(br#"{"StreamName":"s","Records":[{"Data":"YQ==","PartitionKey":"k"},{"Data":"","PartitionKey":"k"},{"Data":"YmM=","PartitionKey":"k"}]}"#).unwrap();
        let read = Put::read(&body, false).unwrap();
        assert_eq!(read.decoded_bytes(), 3);
        let mut arena = Vec::new();
        assert_eq!(decode(&read.records, &mut arena).unwrap(), [&b"a"[..], b"", b"bc"]);
        for text in ["YQ", "Y===", "YQ=\\n", "*"] {
            let body = format!(r#"{{"StreamName":"s","Data":"{text}","PartitionKey":"k"}}"#);
            let body = json::read(body.as_bytes()).unwrap();
            let read = Put::read(&body, true).unwrap();
            assert_eq!(decode(&read.records, &mut Vec::new()).unwrap_err().code, "SerializationException", "{text}");
        }
    }

    #[test]
    fn sizes_are_judged_by_what_is_decoded() {
        let body = format!(r#"{{"StreamName":"s","Data":"{}","PartitionKey":"k"}}"#, BASE64_STANDARD.encode([0; 100]));
        let body = json::read(body.as_bytes()).unwrap();
        let read = Put::read(&body, true).unwrap();
        let mut arena = Vec::new();
        let data = decode(&read.records, &mut arena).unwrap();
        let events = take_apart(&read.records, &data, 1).unwrap();
        assert_eq!(judge_sizes(&events, true, |bytes| bytes <= 100, 100), Ok(()));
        let told = judge_sizes(&events, true, |bytes| bytes <= 99, 99).unwrap_err();
        assert!(
            told.text.ends_with("Value at 'data' failed to satisfy constraint: Member must have length less than or equal to 99")
        );
        let large = BASE64_STANDARD.encode(vec![0; 6 << 20]);
        let two = format!(r#"{{"Data":"{large}","PartitionKey":"k"}},{{"Data":"{large}","PartitionKey":"k"}}"#);
        assert!(text_of(of_records(&two), "InvalidArgumentException").contains("10 MiB"));
    }

    #[test]
    fn an_aggregate_is_its_user_records_and_all_else_is_itself() {
        let member = |key: u64, hash: Option<u64>, data: &[u8]| kpl::Record {
            partition_key_index: key,
            explicit_hash_key_index: hash,
            data: data.to_vec(),
            tags: vec![],
        };
        let body = kpl::AggregatedRecord {
            partition_key_table: vec!["a".into(), "b".into()],
            explicit_hash_key_table: vec!["7".into()],
            records: vec![member(0, None, b"1"), member(1, Some(0), b"2"), member(0, None, b"")],
        }
        .encode_to_vec();
        let aggregate = [&MAGIC[..], &body, Md5::digest(&body).as_slice()].concat();
        let records = [
            Record { key: "plain", hash: Some(5), blob: Blob::Raw(b"data") },
            Record { key: "outer", hash: None, blob: Blob::Raw(&aggregate) },
        ];
        assert_eq!(decode(&records, &mut Vec::new()).unwrap(), [&b"data"[..], &aggregate]);
        let events = take_apart(&records, &[b"data", &aggregate], 4).unwrap();
        let shown: Vec<(u32, &str, Option<u128>, &[u8])> =
            events.iter().map(|event| (event.record, event.key, event.hash.map(|hash| hash.0), event.data)).collect();
        assert_eq!(
            shown,
            [(0, "plain", Some(5), &b"data"[..]), (1, "a", None, b"1"), (1, "b", Some(7), b"2"), (1, "a", None, b"")]
        );
        assert_eq!(take_apart(&records, &[b"data", &aggregate], 3).unwrap_err().code, "InvalidArgumentException");
        assert!(
            judge_sizes(&events, false, |bytes| bytes != 1, 9)
                .unwrap_err()
                .text
                .contains("'records.2.member.data (a user record")
        );
        // A checksum that is wrong makes it a plain record.
        let mut damaged = aggregate.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(take_apart(&records[1..], &[&damaged], 9).unwrap().len(), 1);
    }

    #[test]
    fn an_aggregate_that_the_kpl_would_not_write_goes_on_as_it_is() {
        for key in ["", &"k".repeat(257)] {
            let member = kpl::Record { partition_key_index: 0, explicit_hash_key_index: None, data: vec![1], tags: vec![] };
            let keys = vec!["good".into(), key.to_owned()];
            let bad = kpl::Record { partition_key_index: 1, ..member.clone() };
            let body =
                kpl::AggregatedRecord { partition_key_table: keys, explicit_hash_key_table: vec![], records: vec![member, bad] };
            let body = body.encode_to_vec();
            let aggregate = [&MAGIC[..], &body, Md5::digest(&body).as_slice()].concat();
            let records = [Record { key: "outer", hash: Some(9), blob: Blob::Raw(&aggregate) }];
            let events = take_apart(&records, &[&aggregate], 9).unwrap();
            assert_eq!(events, [Event { record: 0, aggregated: false, key: "outer", hash: Some(KeyHash(9)), data: &aggregate }]);
        }
        let empty = [&MAGIC[..], Md5::digest([]).as_slice()].concat();
        let records = [Record { key: "outer", hash: None, blob: Blob::Raw(&empty) }];
        assert_eq!(take_apart(&records, &[&empty], 9).unwrap()[0].data, empty);
    }
}
