//! The Kinesis API as its clients see it: the AWS SDK, CBOR byte by byte, refusals, signatures, a full spool.
//!
//! Every test runs the real listener over a real spool; most requests come from aws-sdk-kinesis, so that what it makes of an
//! answer is what is judged. The SDKs of other languages are in `tests/interop`.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::operation::RequestId as _;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, ShardFilter, ShardFilterType};
use doors::{Door, World, config, soon};
use forebay::config::{OnFull, Secret, SourceConfig, SourceKind};
use forebay::deaggregate::MAGIC;
use forebay::event::{KeyHash, Position};
use forebay::host::Host;
use forebay::ingest::Sources;
use forebay::ingest::http::HttpOptions;
use forebay::ingest::kinesis::{cbor, value::Value};
use forebay::limits::EVENT_BYTES_MAX;
use forebay::shard_map::{ShardMap, even_shards};
use forebay::spool::Policy;
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::Frame;
use hyper::HeaderMap;
use md5::{Digest as _, Md5};
use prost::Message as _;

#[path = "common/kpl.rs"]
#[allow(dead_code, reason = "only its messages are used here")]
mod kpl;

/// A door whose requests wait but a moment.
async fn door_of(sources: Sources) -> Door {
    Door::with(sources, HttpOptions { admit_timeout: Duration::from_millis(300), ..HttpOptions::default() }).await
}

impl Door {
    /// An SDK client that does not repeat anything.
    fn client_with(&self, id: &str, secret: &str) -> Client {
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new(id, secret, Some("a token".into()), None, "test"))
            .endpoint_url(format!("http://{}", self.address))
            .retry_config(RetryConfig::disabled());
        Client::from_conf(config.build())
    }

    fn client(&self) -> Client {
        self.client_with("AKIDEXAMPLE", "secret")
    }

    async fn send(&self, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, HeaderMap, Vec<u8>) {
        let headers = [&[("host", "localhost")], headers].concat();
        let (status, headers, body) = self.exchange("POST", "/", &headers, body).await;
        let crc: u32 = headers["x-amz-crc32"].to_str().unwrap().parse().unwrap();
        assert_eq!(crc, crc32fast::hash(&body));
        assert_eq!(headers["x-amzn-requestid"].len(), 36);
        (status, headers, body.to_vec())
    }

    /// A request in JSON; status, code and text of its answer.
    async fn fails(&self, operation: &str, body: &str) -> (u16, String, String) {
        let target = format!("Kinesis_20131202.{operation}");
        let headers = [("x-amz-target", &target[..]), ("content-type", "application/x-amz-json-1.1")];
        let (status, headers, body) = self.send(&headers, body.as_bytes().to_vec()).await;
        assert_eq!(headers["content-type"], "application/x-amz-json-1.1");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        (status, text("__type"), text("message"))
    }
}

fn kinesis() -> SourceConfig {
    SourceConfig { kind: SourceKind::Kinesis, partition_key: Vec::new(), ..config("sdk") }
}

fn signed(keys: &[&str]) -> SourceConfig {
    SourceConfig { access_keys: keys.iter().map(|pair| Secret((*pair).to_owned())).collect(), ..kinesis() }
}

fn only(world: &World) -> Sources {
    Sources::new([world.source(&kinesis())])
}

/// Key, hash if it is not the key's own, and data of every durable event, by position.
fn events(world: &World) -> Vec<(String, Option<u128>, Vec<u8>)> {
    let mut cursor = Cursor::new(Arc::clone(world.handle.shared()), Host::real().files);
    let (mut found, mut at) = (Vec::new(), Position(0));
    while let Some(swept) = cursor.next(at).unwrap() {
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            let key = std::str::from_utf8(frame.key_bytes()).unwrap().to_owned();
            let hash = Some(frame.hash().0).filter(|hash| *hash != KeyHash::of_key(&key).0);
            found.push((key, hash, frame.data().to_vec()));
            at = Position(frame.position().0 + 1);
            bytes = &bytes[frame.len()..];
        }
    }
    found
}

fn entry(key: &str, hash: Option<&str>, data: &[u8]) -> PutRecordsRequestEntry {
    let entry = PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(data));
    entry.set_explicit_hash_key(hash.map(str::to_owned)).build().unwrap()
}

fn aggregate(members: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut message = kpl::AggregatedRecord {
        partition_key_table: members.iter().map(|(key, ..)| (*key).to_owned()).collect(),
        explicit_hash_key_table: Vec::new(),
        records: Vec::new(),
    };
    for (at, (_, hash, data)) in (0..).zip(members) {
        let explicit_hash_key_index = hash.map(|hash| {
            message.explicit_hash_key_table.push(hash.to_owned());
            message.explicit_hash_key_table.len() as u64 - 1
        });
        message.records.push(kpl::Member { partition_key_index: at, explicit_hash_key_index, data: data.to_vec() });
    }
    let body = message.encode_to_vec();
    [&MAGIC[..], &body, Md5::digest(&body).as_slice()].concat()
}

fn know_shards(world: &World, shards: u32) {
    *world.metrics.shard_map.lock().unwrap() = Some(Arc::new(ShardMap::new(even_shards(shards)).unwrap()));
}

#[tokio::test]
async fn records_of_an_sdk_lie_in_the_spool_under_their_keys_and_explicit_hash_keys() {
    let world = World::new();
    know_shards(&world, 2);
    let door = door_of(only(&world)).await;
    let client = door.client();
    let max = u128::MAX.to_string();
    let one =
        soon(client.put_record().stream_name("clicks").partition_key("ключ").data(Blob::new(b"\0\xff")).send()).await.unwrap();
    assert_eq!(one.sequence_number(), "0");
    assert!(one.request_id().is_some());
    let inner = aggregate(&[("a", None, b"1"), ("b", Some("7"), b"2"), ("a", Some(&max), b"")]);
    let many = client
        .put_records()
        .stream_arn("arn:aws:kinesis:eu-west-1:123456789012:stream/clicks")
        .records(entry("low", Some("0"), b"x"))
        .records(entry("outer", Some(&max), &inner))
        .records(entry(&"é".repeat(256), None, b""));
    let many = soon(many.send()).await.unwrap();
    assert_eq!(many.failed_record_count(), Some(0));
    let told: Vec<_> =
        many.records().iter().map(|record| (record.sequence_number().unwrap(), record.shard_id().unwrap())).collect();
    let last = if KeyHash::of_key(&"é".repeat(256)).0 >> 127 == 0 { "shardId-000000000000" } else { "shardId-000000000001" };
    // The aggregate's number is that of the first of its three.
    assert_eq!(told, [("1", "shardId-000000000000"), ("2", "shardId-000000000001"), ("5", last)]);
    let expected = [
        ("ключ", None, &b"\0\xff"[..]),
        ("low", Some(0), b"x"),
        ("a", None, b"1"),
        ("b", Some(7), b"2"),
        ("a", Some(u128::MAX), b""),
        (&"é".repeat(256), None, b""),
    ];
    assert_eq!(events(&world), expected.map(|(key, hash, data)| (key.to_owned(), hash, data.to_vec())));
    door.end().await;
}

#[tokio::test]
async fn an_answer_waits_for_the_disk() {
    let mut world = World::stalled();
    let door = door_of(only(&world)).await;
    let client = door.client();
    let records = (0..500).map(|n| entry(&format!("k{n}"), None, &[b'x'; 2000])).collect();
    let sending = tokio::spawn(client.put_records().stream_name("clicks").set_records(Some(records)).send());
    doors::until("all are submitted", || world.submitted() == 500).await;
    assert!(!sending.is_finished(), "RECEIPT-AFTER-SYNC");
    world.go();
    let answer = soon(sending).await.unwrap().unwrap();
    let numbers: Vec<u64> = answer.records().iter().map(|record| record.sequence_number().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    assert_eq!(events(&world).len(), 500);
    door.end().await;
}

#[tokio::test]
async fn what_libraries_ask_before_they_write_is_answered_from_the_shard_map() {
    let world = World::new();
    let door = door_of(only(&world)).await;
    let client = door.client();
    // Before Kinesis told anything: one shard for all.
    let first = soon(client.list_shards().stream_name("clicks").send()).await.unwrap();
    assert_eq!(first.shards().len(), 1);
    assert_eq!(first.shards()[0].hash_key_range().unwrap().ending_hash_key(), u128::MAX.to_string());
    know_shards(&world, 5);
    let latest = ShardFilter::builder().r#type(ShardFilterType::AtLatest).build().unwrap();
    let page = soon(client.list_shards().stream_name("clicks").shard_filter(latest).max_results(3).send()).await.unwrap();
    let rest = soon(client.list_shards().next_token(page.next_token().unwrap()).send()).await.unwrap();
    let ids: Vec<_> = page.shards().iter().chain(rest.shards()).map(|shard| shard.shard_id().to_owned()).collect();
    assert_eq!(ids, (0..5).map(|n| format!("shardId-{n:012}")).collect::<Vec<_>>());
    assert!(rest.next_token().is_none());

    let summary = soon(client.describe_stream_summary().stream_name("clicks").send()).await.unwrap();
    let summary = summary.stream_description_summary().unwrap();
    assert_eq!((summary.stream_status().as_str(), summary.open_shard_count()), ("ACTIVE", 5));
    assert_eq!(summary.stream_arn(), "arn:aws:kinesis:eu-west-1:000000000000:stream/clicks");
    let described = soon(client.describe_stream().stream_name("clicks").limit(4).send()).await.unwrap();
    let described = described.stream_description().unwrap();
    assert_eq!((described.shards().len(), described.has_more_shards()), (4, true));
    let streams = soon(client.list_streams().send()).await.unwrap();
    assert_eq!((streams.stream_names(), streams.has_more_streams()), (&["clicks".to_owned()][..], false));
    assert_eq!(soon(client.describe_limits().send()).await.unwrap().open_shard_count(), 5);
    assert!(soon(client.list_tags_for_stream().stream_name("clicks").send()).await.unwrap().tags().is_empty());
    let unknown =
        soon(client.get_shard_iterator().stream_name("clicks").shard_id("s").shard_iterator_type("LATEST".into()).send()).await;
    assert_eq!(unknown.unwrap_err().code(), Some("AccessDeniedException"));
    door.end().await;
}

#[tokio::test]
async fn what_the_service_refuses_is_refused_as_a_whole_with_its_own_codes() {
    let world = World::new();
    let door = door_of(only(&world)).await;
    let (status, code, text) = door.fails("PutRecord", r#"{"StreamName":"other","PartitionKey":"k","Data":""}"#).await;
    assert_eq!((status, &code[..]), (400, "ResourceNotFoundException"));
    assert!(text.starts_with("Stream other under account 000000000000 not found.") && text.contains("clicks"), "{text}");
    let one = r#"{"PartitionKey":"k","Data":"YQ=="}"#;
    let large = format!("{{\"PartitionKey\":\"k\",\"Data\":\"{}\"}}", "AAAA".repeat(EVENT_BYTES_MAX / 3 + 1));
    for (records, code, part) in [
        (vec![one; 501].join(","), "ValidationException", "less than or equal to 500"),
        (format!("{one},{{\"PartitionKey\":\"\",\"Data\":\"\"}}"), "ValidationException", "'records.2.member.partitionKey'"),
        (format!("{one},{large}"), "ValidationException", "'records.2.member.data'"),
        (format!("{one},{{\"PartitionKey\":\"k\",\"Data\":\"*\"}}"), "SerializationException", "record 2"),
        (format!("{one},"), "SerializationException", "not well-formed"),
        (
            format!(
                "{one},{{\"PartitionKey\":\"k\",\"Data\":\"\",\"ExplicitHashKey\":\"340282366920938463463374607431768211456\"}}"
            ),
            "InvalidArgumentException",
            "[0, 2^128-1]",
        ),
    ] {
        let (status, found, text) =
            door.fails("PutRecords", &format!("{{\"StreamName\":\"clicks\",\"Records\":[{records}]}}")).await;
        assert_eq!((status, &found[..]), (400, code), "{text}");
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(door.fails("PutThings", "{}").await.1, "UnknownOperationException");
    assert_eq!(door.fails("CreateStream", "{}").await.1, "AccessDeniedException");
    assert_eq!(door.fails("ListShards", "{}").await.1, "InvalidArgumentException");
    assert_eq!(door.fails("PutRecord", &"[".repeat(100_000)).await.1, "SerializationException");
    let huge = format!("{{\"StreamName\":\"clicks\",\"PartitionKey\":\"k\",\"Data\":\"{}\"}}", "A".repeat(17 << 20));
    assert_eq!(door.fails("PutRecord", &huge).await.0, 413);
    assert!(events(&world).is_empty());
    assert_eq!((world.submitted(), world.rejected("too_large")), (0, 1));
    door.end().await;
}

#[tokio::test]
async fn cbor_is_spoken_as_the_java_sdk_speaks_it() {
    let world = World::new();
    let door = door_of(only(&world)).await;
    let headers = [("x-amz-target", "Kinesis_20131202.PutRecords"), ("content-type", "application/x-amz-cbor-1.1")];
    // {_ "StreamName": "clicks", "Records": [_ {_ "Data": h'00ff', "PartitionKey": "k", "ExplicitHashKey": "7"}]}
    let body = [
        &b"\xbf\x6aStreamName\x66clicks\x67Records\x9f\xbf\x64Data\x42\x00\xff\x6cPartitionKey\x61k"[..],
        b"\x6fExplicitHashKey\x617\xff\xff\xff",
    ]
    .concat();
    let (status, answered, bytes) = door.send(&headers, body.clone()).await;
    assert_eq!((status, &answered["content-type"]), (200, &"application/x-amz-cbor-1.1".parse().unwrap()));
    let answer = cbor::read(&bytes).unwrap();
    assert_eq!(answer.get("FailedRecordCount"), Some(&Value::Int(0)));
    let Some(Value::List(records)) = answer.get("Records") else { panic!("{answer:?}") };
    assert_eq!(records[0].get("SequenceNumber"), Some(&Value::text("0")));
    assert_eq!(events(&world), [("k".to_owned(), Some(7), vec![0, 255])]);
    // An error is in the same form.
    let (status, _, bytes) = door.send(&headers, body[..body.len() - 1].to_vec()).await;
    assert_eq!((status, cbor::read(&bytes).unwrap().get("__type")), (400, Some(&Value::text("SerializationException"))));
    door.end().await;
}

#[tokio::test]
async fn a_full_spool_that_refuses_is_throughput_exceeded_and_nothing_is_accepted() {
    for on_full in [OnFull::Reject, OnFull::Block] {
        let world = &mut World::with_policy(26_000, 1, Policy { on_full, reserve: Some(0), ..Policy::default() });
        world.go();
        let door = door_of(only(world)).await;
        let client = door.client();
        let full = || world.metrics.full_by().is_some();
        let mut accepted = 0;
        loop {
            assert!(accepted < 100, "it is never full");
            let sent = client.put_records().stream_name("clicks").records(entry("k", None, b"x")).records(entry("l", None, b"y"));
            let sending = tokio::spawn(sent.send());
            doors::until("it is durable or there is no room", || sending.is_finished() || full()).await;
            // With `block`, the one that met the limit waits until there is room.
            if on_full == OnFull::Block && !sending.is_finished() {
                break;
            }
            match soon(sending).await.unwrap() {
                Ok(answer) => accepted += answer.records().len() - answer.failed_record_count().unwrap() as usize,
                Err(error) => {
                    assert_eq!(error.code(), Some("ProvisionedThroughputExceededException"), "{on_full:?}");
                    break;
                }
            }
        }
        let put = |data: &str| client.put_record().stream_name("clicks").partition_key("k").data(Blob::new(data)).send();
        let error = soon(put("refused")).await.unwrap_err();
        assert_eq!(error.code(), Some("ProvisionedThroughputExceededException"), "{on_full:?}");
        if on_full == OnFull::Reject {
            assert_eq!(world.submitted(), accepted as u64);
        }
        world.deliver_all();
        doors::until("there is room", || !full()).await;
        soon(put("after")).await.unwrap();
        let data: Vec<Vec<u8>> = events(world).into_iter().map(|(.., data)| data).collect();
        assert!(!data.contains(&b"refused".to_vec()));
        door.end().await;
    }
}

#[tokio::test]
async fn a_source_with_access_keys_takes_what_they_have_signed() {
    let world = World::new();
    let door = door_of(Sources::new([world.source(&signed(&["AKIDEXAMPLE:se:cret", "OTHER:x"]))])).await;
    let put = |client: Client| async move {
        let sent = client.put_record().stream_name("clicks").partition_key("k").data(Blob::new("x")).send();
        soon(sent).await.map(|_| ()).map_err(|error| error.code().unwrap_or_default().to_owned())
    };
    assert_eq!(put(door.client_with("AKIDEXAMPLE", "se:cret")).await, Ok(()));
    assert_eq!(put(door.client_with("OTHER", "x")).await, Ok(()));
    assert_eq!(put(door.client_with("AKIDEXAMPLE", "se:creT")).await, Err("InvalidSignatureException".to_owned()));
    assert_eq!(put(door.client_with("OTHER", "se:cret")).await, Err("InvalidSignatureException".to_owned()));
    assert_eq!(put(door.client_with("STRANGER", "x")).await, Err("UnrecognizedClientException".to_owned()));
    let body = r#"{"StreamName":"clicks","PartitionKey":"k","Data":""}"#;
    assert_eq!(door.fails("PutRecord", body).await.1, "MissingAuthenticationTokenException");
    assert_eq!(door.fails("ListStreams", "{}").await.1, "MissingAuthenticationTokenException");
    assert_eq!(events(&world).len(), 2);
    door.end().await;
}

#[tokio::test]
async fn a_stream_is_found_by_name_and_arn_and_one_that_is_locked_is_not_opened_by_another_sources_key() {
    let [open, locked] = [World::new(), World::new()];
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/locked";
    let sources = Sources::new([
        open.source(&kinesis()),
        locked.source(&SourceConfig { name: "locked".into(), stream: arn.into(), ..signed(&["AKID:good"]) }),
        open.source(&SourceConfig { name: "third".into(), stream: "third".into(), ..signed(&["THIRD:key"]) }),
    ]);
    let door = door_of(sources).await;
    let put = |client: Client, name: Option<&str>, arn: Option<&str>| {
        let sent = client.put_record().set_stream_name(name.map(str::to_owned)).set_stream_arn(arn.map(str::to_owned));
        let sent = sent.partition_key("k").data(Blob::new("x")).send();
        async move { soon(sent).await.map(|_| ()).map_err(|error| error.code().unwrap_or_default().to_owned()) }
    };
    assert_eq!(put(door.client(), Some("clicks"), None).await, Ok(()));
    assert_eq!(put(door.client(), Some("locked"), None).await, Err("UnrecognizedClientException".to_owned()));
    assert_eq!(put(door.client_with("THIRD", "key"), Some("locked"), None).await, Err("UnrecognizedClientException".to_owned()));
    let good = || door.client_with("AKID", "good");
    assert_eq!(put(good(), Some("locked"), None).await, Ok(()));
    assert_eq!(put(good(), None, Some(arn)).await, Ok(()));
    assert_eq!(put(good(), Some("clicks"), None).await, Ok(()));
    let other = "arn:aws:kinesis:eu-west-1:999999999999:stream/locked";
    assert_eq!(put(good(), None, Some(other)).await, Err("ResourceNotFoundException".to_owned()));
    assert_eq!((events(&open).len(), events(&locked).len()), (2, 2));
    let streams = soon(good().list_streams().send()).await.unwrap();
    assert_eq!(streams.stream_names(), ["clicks", "locked"]);
    door.end().await;
}

#[tokio::test]
async fn without_a_source_of_its_kind_the_answer_names_the_remedy_and_a_stopping_agent_says_send_again() {
    let world = World::new();
    let door = door_of(world.web()).await;
    let (status, code, text) = door.fails("PutRecord", r#"{"StreamName":"clicks","PartitionKey":"k","Data":""}"#).await;
    assert_eq!((status, &code[..]), (400, "ResourceNotFoundException"));
    assert!(text.contains("[[source]] with kind = \"kinesis\""), "{text}");
    door.end().await;
}

#[tokio::test]
async fn hostile_bodies_cost_little_and_are_answered() {
    let world = World::new();
    let door = door_of(only(&world)).await;
    let code = |body: String| {
        let door = &door;
        async move { door.fails("PutRecords", &body).await.1 }
    };
    // Many values, deep values, duplicate keys, huge numbers, NULs, lone surrogates.
    assert_eq!(code(format!("[{}0]", "0,".repeat(4 << 20))).await, "SerializationException");
    assert_eq!(code("{\"a\":".repeat(1 << 20)).await, "SerializationException");
    assert_eq!(code(format!("{{\"StreamName\":\"clicks\",\"x\":{}}}", "9".repeat(1 << 20))).await, "ValidationException");
    let keys: String = (0..30_000).map(|n| format!("\"k{n}\":{n},")).collect();
    assert_eq!(code(format!("{{{keys}\"StreamName\":\"clicks\"}}")).await, "ValidationException");
    // An aggregate of more user records than a request may have, and one whose long key is shared by many.
    let many = aggregate(&vec![("k", None, &b""[..]); 60_000]);
    let record = format!("{{\"PartitionKey\":\"k\",\"Data\":\"{}\"}}", base64_of(&many));
    let body = format!("{{\"StreamName\":\"clicks\",\"Records\":[{record},{record}]}}");
    assert_eq!(code(body).await, "InvalidArgumentException");
    assert_eq!(world.submitted(), 0);
    let client = door.client();
    let odd = r#"{"StreamName":"other","StreamName":"clicks","PartitionKey":"a\u0000\ud800","Data":"","Data":"YQ=="}"#;
    let headers = [("x-amz-target", "Kinesis_20131202.PutRecord"), ("content-type", "application/x-amz-json-1.1")];
    assert_eq!(door.send(&headers, odd.as_bytes().to_vec()).await.0, 200);
    assert_eq!(events(&world), [("a\0\u{fffd}".to_owned(), None, b"a".to_vec())]);
    assert!(soon(client.put_record().stream_name("clicks").partition_key("k").data(Blob::new("x")).send()).await.is_ok());
    door.end().await;
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}
