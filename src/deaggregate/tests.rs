//! De-aggregation judged by prost's encoder and decoder, and by bytes that nobody meant.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// KPL's messages.proto as prost sees it; `aggregate` is judged by it too.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    pub(crate) partition_key_table: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) explicit_hash_key_table: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) records: Vec<Record>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(uint64, required, tag = "1")]
    pub(crate) partition_key_index: u64,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) explicit_hash_key_index: Option<u64>,
    #[prost(bytes = "vec", required, tag = "3")]
    pub(crate) data: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) tags: Vec<Tag>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Tag {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

fn seal(body: &[u8]) -> Vec<u8> {
    [&MAGIC[..], body, Md5::digest(body).as_slice()].concat()
}

fn aggregate(message: &AggregatedRecord) -> Vec<u8> {
    seal(&message.encode_to_vec())
}

fn sample() -> AggregatedRecord {
    AggregatedRecord {
        partition_key_table: vec!["a".into(), "ключ".into()],
        explicit_hash_key_table: vec!["0".into(), u128::MAX.to_string()],
        records: vec![
            Record { partition_key_index: 0, explicit_hash_key_index: None, data: b"one".to_vec(), tags: vec![] },
            Record { partition_key_index: 1, explicit_hash_key_index: Some(1), data: vec![], tags: vec![] },
        ],
    }
}

fn is_plain(record: &[u8]) -> bool {
    let plain = Member { key: b"outer", explicit_hash_key: Some(7), data: record };
    deaggregate(record, "outer", Some(7)) == Content::Plain(plain)
}

#[test]
fn an_aggregate_gives_its_events_with_their_own_keys() {
    let record = aggregate(&sample());
    let Content::Aggregate(members) = deaggregate(&record, "outer", None) else { panic!("taken for plain") };
    assert_eq!(members.len(), 2);
    assert_eq!((members[0].key_str(), members[0].explicit_hash_key, members[0].data), (Some("a"), None, &b"one"[..]));
    assert_eq!((members[1].key_str(), members[1].explicit_hash_key), (Some("ключ"), Some(u128::MAX)));
    assert_eq!(members[1].hash(), KeyHash(u128::MAX));
    assert_eq!(members[0].hash(), KeyHash::of_key("a"));
}

#[test]
fn golden_bytes_of_the_format_are_read() {
    // Written out by hand: key table "k", one event with index 0 and data "hi".
    let body = [0x0a, 1, b'k', 0x1a, 6, 0x08, 0, 0x1a, 2, b'h', b'i'];
    let record = seal(&body);
    let members = [Member { key: b"k", explicit_hash_key: None, data: b"hi" }];
    assert_eq!(deaggregate(&record, "a", None).members(), members);
}

#[test]
fn any_flipped_bit_makes_it_a_plain_record() {
    let good = aggregate(&sample());
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(is_plain(&bad), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn every_shorter_record_is_plain() {
    let good = aggregate(&sample());
    for length in 0..good.len() {
        assert!(is_plain(&good[..length]), "{length} bytes");
    }
    assert!(is_plain(&[]));
    assert!(is_plain(b"{\"userId\":1}"));
}

#[test]
fn an_index_beyond_its_table_makes_it_plain() {
    let mut message = sample();
    message.records[0].partition_key_index = 2;
    assert!(is_plain(&aggregate(&message)));
    let mut message = sample();
    message.records[0].explicit_hash_key_index = Some(u64::MAX);
    assert!(is_plain(&aggregate(&message)));
}

#[test]
fn an_explicit_hash_key_that_is_no_number_makes_it_plain() {
    for text in ["", "-1", "+1", "1e3", "0x10", " 1", "340282366920938463463374607431768211456"] {
        let mut message = sample();
        message.explicit_hash_key_table[0] = text.into();
        message.records[0].explicit_hash_key_index = Some(0);
        assert!(is_plain(&aggregate(&message)), "{text:?}");
    }
}

#[test]
fn missing_required_fields_make_it_plain() {
    // An event of data only, and one of an index only.
    assert!(is_plain(&seal(&[0x0a, 1, b'k', 0x1a, 3, 0x1a, 1, b'x'])));
    assert!(is_plain(&seal(&[0x0a, 1, b'k', 0x1a, 2, 0x08, 0])));
}

#[test]
fn known_fields_of_another_wire_type_make_it_plain() {
    assert!(is_plain(&seal(&[0x08, 1])));
    assert!(is_plain(&seal(&[0x0a, 1, b'k', 0x1a, 4, 0x0a, 0, 0x1a, 0])));
}

#[test]
fn tables_may_follow_the_events_and_unknown_fields_are_passed_over() {
    // Events first; then fields of every wire type with number 9, a group in a group among them; then the table.
    let unknown: &[u8] = &[
        0x48, 0xff, 0x01, // varint
        0x49, 1, 2, 3, 4, 5, 6, 7, 8, // 64 bits
        0x4a, 2, 0xff, 0xff, // bytes
        0x4b, 0x53, 0x08, 1, 0x54, 0x12, 1, 0, 0x4c, // group 9 { group 10 { varint } bytes }
        0x4d, 1, 2, 3, 4, // 32 bits
    ];
    let body = [&[0x1a, 5, 0x08, 0, 0x1a, 1, b'x'][..], unknown, &[0x0a, 1, b'k']].concat();
    let record = seal(&body);
    assert_eq!(deaggregate(&record, "o", None).members(), [Member { key: b"k", explicit_hash_key: None, data: b"x" }]);
}

#[test]
fn unended_or_crossed_groups_and_field_zero_are_malformed() {
    assert!(is_plain(&seal(&[0x4b, 0x08, 1])));
    assert!(is_plain(&seal(&[0x4b, 0x54])));
    assert!(is_plain(&seal(&[0x4c])));
    assert!(is_plain(&seal(&[0x00, 1])));
    assert!(is_plain(&seal(&vec![0x4b; 100_000])));
    assert!(is_plain(&seal(&[0x4e, 1])));
}

#[test]
fn a_varint_of_more_than_64_bits_is_malformed() {
    let mut body = vec![0x48];
    body.extend([0xff; 9]);
    body.push(0x01);
    assert_eq!(deaggregate(&seal(&body), "o", None), Content::Aggregate(vec![]));
    *body.last_mut().unwrap() = 0x02;
    assert!(is_plain(&seal(&body)));
    *body.last_mut().unwrap() = 0x81;
    body.push(0);
    assert!(is_plain(&seal(&body)));
}

#[test]
fn keys_that_are_not_utf8_keep_their_bytes() {
    let record = seal(&[0x0a, 1, 0xff, 0x1a, 4, 0x08, 0, 0x1a, 0]);
    let content = deaggregate(&record, "o", None);
    assert_eq!((content.members()[0].key, content.members()[0].key_str()), (&[0xff][..], None));
}

#[test]
fn one_member_outside_the_shard_drops_the_whole_aggregate() {
    let record = aggregate(&sample());
    let content = deaggregate(&record, "outer", None);
    let inside = KeyHash::of_key("a").0;
    assert!(content.readable_in(0, u128::MAX));
    assert!(!content.readable_in(0, u128::MAX - 1), "the second member's hash is the largest");
    assert!(!content.readable_in(inside + 1, u128::MAX), "the first one's lies below");
    assert!(content.readable_in(inside, u128::MAX), "both ends belong to the shard");
    assert!(deaggregate(b"plain", "a", None).readable_in(0, 0), "plain records are not looked at");
}

fn arb_message() -> impl Strategy<Value = AggregatedRecord> {
    let keys = prop::collection::vec(".{0,12}", 1..6);
    let hashes = prop::collection::vec(any::<u128>(), 0..4);
    (keys, hashes).prop_flat_map(|(keys, hashes)| {
        let (key_count, hash_count) = (keys.len() as u64, hashes.len() as u64);
        let hash = if hash_count == 0 { Just(None).boxed() } else { prop::option::of(0..hash_count).boxed() };
        let tag = (".{0,4}", prop::option::of(".{0,4}")).prop_map(|(key, value)| Tag { key, value });
        let record = (0..key_count, hash, prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(tag, 0..3)).prop_map(
            |(partition_key_index, explicit_hash_key_index, data, tags)| Record {
                partition_key_index,
                explicit_hash_key_index,
                data,
                tags,
            },
        );
        prop::collection::vec(record, 0..20).prop_map(move |records| AggregatedRecord {
            partition_key_table: keys.clone(),
            explicit_hash_key_table: hashes.iter().map(u128::to_string).collect(),
            records,
        })
    })
}

proptest! {
    #[test]
    fn whatever_prost_writes_is_read(message in arb_message()) {
        let record = aggregate(&message);
        let Content::Aggregate(members) = deaggregate(&record, "o", None) else { panic!("taken for plain") };
        prop_assert_eq!(members.len(), message.records.len());
        for (member, record) in members.iter().zip(&message.records) {
            prop_assert_eq!(member.key_str(), Some(message.partition_key_table[record.partition_key_index as usize].as_str()));
            let hash = record.explicit_hash_key_index.map(|index| message.explicit_hash_key_table[index as usize].clone());
            prop_assert_eq!(member.explicit_hash_key.map(|hash| hash.to_string()), hash);
            prop_assert_eq!(member.data, &record.data[..]);
        }
    }

    #[test]
    fn arbitrary_bytes_are_a_plain_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(is_plain(&bytes));
    }

    #[test]
    fn arbitrary_bytes_in_a_good_envelope_never_panic(body in prop::collection::vec(any::<u8>(), 0..60)) {
        agrees_with_prost(&body)?;
    }

    #[test]
    fn a_damaged_body_in_a_good_envelope_never_panics_and_is_read_as_prost_reads_it(
        message in arb_message(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut body = message.encode_to_vec();
        prop_assume!(!body.is_empty());
        let at = at.index(body.len());
        body[at] = byte;
        agrees_with_prost(&body)?;
        body.truncate(cut.index(body.len() + 1));
        agrees_with_prost(&body)?;
    }
}

/// Where both take the body for a message, they read the same events. (We are stricter on missing fields and
/// indexes, prost is on UTF-8 and on the inside of tags.)
fn agrees_with_prost(body: &[u8]) -> Result<(), TestCaseError> {
    let record = seal(body);
    if let (Content::Aggregate(members), Ok(message)) = (deaggregate(&record, "o", None), AggregatedRecord::decode(body)) {
        prop_assert_eq!(members.len(), message.records.len());
        for (member, record) in members.iter().zip(&message.records) {
            prop_assert_eq!(member.key, message.partition_key_table[record.partition_key_index as usize].as_bytes());
            prop_assert_eq!(member.data, &record.data[..]);
        }
    }
    Ok(())
}
