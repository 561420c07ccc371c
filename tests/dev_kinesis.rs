//! The embedded Kinesis, the AWS form of the traits and the consumer together: what is written is read back, in
//! order, through splits and merges, by the same SDK, signature and HTTP that lead to AWS.
#![cfg(feature = "dev")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where something fails, and looks at real clocks")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use forebay::commands::tail::{TailError, TailOptions, print_events};
use forebay::consumer::{Arrival, Consumer, ConsumerOptions};
use forebay::deaggregate::MAGIC;
use forebay::dev::{ACCESS_KEY_ID, DevError, DevKinesis, DevOptions, REGION, SECRET_ACCESS_KEY};
use forebay::event::KeyHash;
use forebay::host::Host;
use forebay::kinesis::{EntryOutcome, ErrorClass, KinesisApi as _, PutEntry, PutError, ReadFrom, ShardRange};
use md5::{Digest as _, Md5};
use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
struct AggregatedRecord {
    #[prost(string, repeated, tag = "1")]
    partition_key_table: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<Record>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(uint64, required, tag = "1")]
    partition_key_index: u64,
    #[prost(bytes = "vec", required, tag = "3")]
    data: Vec<u8>,
}

fn options(shards: u32) -> DevOptions {
    DevOptions { port: 0, shards, stream: "clicks".into(), enforce_limits: false }
}

fn entry(key: &str, data: &str) -> PutEntry {
    PutEntry { partition_key: key.into(), explicit_hash_key: None, data: data.as_bytes().to_vec() }
}

/// One record that holds the events of several keys, pinned to the hash of the first.
fn aggregate(events: &[(&str, &str)]) -> PutEntry {
    let message = AggregatedRecord {
        partition_key_table: events.iter().map(|(key, _)| (*key).into()).collect(),
        records: (0u64..)
            .zip(events)
            .map(|(partition_key_index, (_, data))| Record { partition_key_index, data: data.as_bytes().to_vec() })
            .collect(),
    };
    let body = message.encode_to_vec();
    let data = [&MAGIC[..], &body, Md5::digest(&body).as_slice()].concat();
    PutEntry { partition_key: "a".into(), explicit_hash_key: Some(KeyHash::of_key(events[0].0).0), data }
}

fn consumer(dev: &DevKinesis, from: ReadFrom) -> Consumer {
    Consumer::new(Arc::new(dev.client()), ConsumerOptions::loopback(from), Host::real())
}

async fn read_to_tip(consumer: &mut Consumer) -> Result<Vec<Arrival>, PutError> {
    let mut arrivals = Vec::new();
    while let Some(arrival) = consumer.next_until_tip().await? {
        arrivals.push(arrival);
    }
    Ok(arrivals)
}

/// The events by key, each key's in the order in which they were read.
fn by_key(arrivals: &[Arrival]) -> BTreeMap<String, Vec<String>> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in arrivals.iter().flat_map(|arrival| &arrival.events) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        keys.entry(text(&event.key)).or_default().push(text(&event.data));
    }
    keys
}

/// Puts entries one after another and asserts that each is stored in the open shard that its hash belongs to.
async fn put_all(dev: &DevKinesis, entries: Vec<PutEntry>) {
    let client = dev.client();
    let shards = client.list_shards().await.unwrap();
    for entry in entries {
        let hash = entry.explicit_hash_key.unwrap_or_else(|| KeyHash::of_key(&entry.partition_key).0);
        let predicted = open_shard(&shards, hash).id.clone();
        let outcomes = client.put_records(vec![entry]).await.unwrap();
        assert_eq!(outcomes, [EntryOutcome::Stored { shard: predicted }]);
    }
}

fn open_shard(shards: &[ShardRange], hash: u128) -> &ShardRange {
    shards.iter().find(|shard| shard.open && (shard.first_hash..=shard.last_hash).contains(&hash)).unwrap()
}

fn sdk(dev: &DevKinesis) -> aws_sdk_kinesis::Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(dev.endpoint())
        .credentials_provider(Credentials::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY, None, None, "test"));
    aws_sdk_kinesis::Client::from_conf(config.build())
}

async fn split(dev: &DevKinesis, shard: &ShardRange) {
    let middle = shard.first_hash + (shard.last_hash - shard.first_hash) / 2 + 1;
    let request = sdk(dev).split_shard().stream_name("clicks").shard_to_split(&*shard.id.0);
    request.new_starting_hash_key(middle.to_string()).send().await.unwrap();
}

#[tokio::test]
async fn the_shards_of_a_new_stream_cover_the_hash_space() {
    let dev = DevKinesis::start(options(3)).await.unwrap();
    let shards = dev.client().list_shards().await.unwrap();
    assert_eq!(shards.len(), 3);
    assert_eq!((shards[0].first_hash, shards[2].last_hash), (0, u128::MAX));
    assert!(shards.windows(2).all(|pair| pair[0].last_hash + 1 == pair[1].first_hash));
    assert!(shards.iter().all(|shard| shard.open && shard.parents.is_empty()));
    dev.stop().await;
}

#[tokio::test]
async fn plain_records_and_aggregates_come_back_as_their_events() {
    let dev = DevKinesis::start(options(2)).await.unwrap();
    put_all(&dev, vec![entry("u1", "1"), aggregate(&[("u1", "2"), ("u1", "3")]), entry("u1", "4")]).await;
    let mut consumer = consumer(&dev, ReadFrom::TrimHorizon);
    let arrivals = read_to_tip(&mut consumer).await.unwrap();
    assert_eq!(by_key(&arrivals), BTreeMap::from([("u1".into(), ["1", "2", "3", "4"].map(String::from).to_vec())]));
    let aggregated: Vec<bool> = arrivals.iter().map(|arrival| arrival.aggregated).collect();
    assert_eq!(aggregated, [false, true, false]);
    assert!(arrivals.iter().all(|arrival| arrival.readable && arrival.arrived_ms > 0));
    dev.stop().await;
}

#[tokio::test]
async fn an_aggregate_with_a_member_of_another_shard_is_told_unreadable() {
    let dev = DevKinesis::start(options(2)).await.unwrap();
    let shards = dev.client().list_shards().await.unwrap();
    let key_in = |shard: &ShardRange| {
        (0..).map(|n| format!("k{n}")).find(|key| open_shard(&shards, KeyHash::of_key(key).0).id == shard.id).unwrap()
    };
    let (low, high) = (key_in(&shards[0]), key_in(&shards[1]));
    put_all(&dev, vec![aggregate(&[(&low, "1"), (&high, "2")])]).await;
    let arrivals = read_to_tip(&mut consumer(&dev, ReadFrom::TrimHorizon)).await.unwrap();
    assert_eq!((arrivals[0].events.len(), arrivals[0].readable), (2, false));
    dev.stop().await;
}

#[tokio::test]
async fn a_consumer_follows_splits_and_merges_and_keeps_each_keys_order() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    let keys: Vec<String> = (0..16).map(|n| format!("user-{n}")).collect();
    let round = |n: u32| keys.iter().map(|key| entry(key, &format!("{n:03}"))).collect::<Vec<_>>();
    let mut consumer = consumer(&dev, ReadFrom::TrimHorizon);

    put_all(&dev, round(0)).await;
    let mut arrivals = read_to_tip(&mut consumer).await.unwrap();
    // One split while the consumer stands at the parent's end, one of a shard that it has not read to its end.
    let shards = dev.client().list_shards().await.unwrap();
    split(&dev, &shards[0]).await;
    put_all(&dev, round(1)).await;
    let shards = dev.client().list_shards().await.unwrap();
    split(&dev, shards.iter().find(|shard| shard.open).unwrap()).await;
    put_all(&dev, round(2)).await;
    arrivals.extend(read_to_tip(&mut consumer).await.unwrap());
    // Two neighbours become one.
    let shards = dev.client().list_shards().await.unwrap();
    let mut open: Vec<&ShardRange> = shards.iter().filter(|shard| shard.open).collect();
    open.sort_by_key(|shard| shard.first_hash);
    assert_eq!(open.len(), 3);
    let merge = sdk(&dev).merge_shards().stream_name("clicks").shard_to_merge(&*open[1].id.0);
    merge.adjacent_shard_to_merge(&*open[2].id.0).send().await.unwrap();
    put_all(&dev, round(3)).await;
    arrivals.extend(read_to_tip(&mut consumer).await.unwrap());

    let expected: Vec<String> = (0..4).map(|n| format!("{n:03}")).collect();
    let read = by_key(&arrivals);
    assert_eq!(read.len(), keys.len());
    assert!(read.values().all(|data| *data == expected), "{read:?}");
    let merged = dev.client().list_shards().await.unwrap();
    assert_eq!(merged.iter().map(|shard| shard.parents.len()).max(), Some(2));

    // Another consumer, that begins when all is over, reads the same.
    let again = read_to_tip(&mut self::consumer(&dev, ReadFrom::TrimHorizon)).await.unwrap();
    assert_eq!(by_key(&again), read);
    dev.stop().await;
}

#[tokio::test]
async fn from_the_newest_records_only_what_arrives_afterwards_is_read() {
    let dev = DevKinesis::start(options(2)).await.unwrap();
    put_all(&dev, vec![entry("a", "old"), entry("b", "old")]).await;
    let mut consumer = consumer(&dev, ReadFrom::Latest);
    assert!(read_to_tip(&mut consumer).await.unwrap().is_empty());
    put_all(&dev, vec![entry("a", "new"), entry("b", "new")]).await;
    let mut keys = BTreeSet::new();
    for _ in 0..2 {
        let arrival = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await.unwrap().unwrap();
        assert_eq!(arrival.events[0].data, b"new");
        keys.insert(arrival.events[0].key.clone());
    }
    assert_eq!(keys, BTreeSet::from([b"a".to_vec(), b"b".to_vec()]));
    dev.stop().await;
}

#[tokio::test]
async fn the_largest_request_is_taken() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    // 5 records of 1 MiB less 1 KiB: 6.7 MB in base64, far over what a web framework takes by default.
    let data = vec![b'x'; (1 << 20) - (1 << 10)];
    let entries = (0..5).map(|n| PutEntry { partition_key: n.to_string(), explicit_hash_key: None, data: data.clone() });
    let outcomes = dev.client().put_records(entries.collect()).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, EntryOutcome::Stored { .. })), "{outcomes:?}");
    let arrivals = read_to_tip(&mut consumer(&dev, ReadFrom::TrimHorizon)).await.unwrap();
    assert_eq!(arrivals.len(), 5);
    assert!(arrivals.iter().all(|arrival| arrival.events[0].data == data));
    dev.stop().await;
}

#[tokio::test]
async fn a_record_is_judged_by_its_streams_limit_with_its_key_and_ten_mib_make_a_request() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    let client = dev.client();
    let of = |bytes: usize| PutEntry { partition_key: "key".into(), explicit_hash_key: None, data: vec![b'x'; bytes - 3] };
    assert_eq!(client.summary().await.unwrap().record_bytes_max, Some(1 << 20));
    client.put_records(vec![of(1 << 20)]).await.unwrap();
    let error = client.put_records(vec![entry("a", "1"), of((1 << 20) + 1)]).await.unwrap_err();
    assert!(error.class == ErrorClass::Poison && error.names_a_record(), "{error}");

    dev.set_record_kib_max("clicks", 10_240).await.unwrap();
    assert_eq!(client.summary().await.unwrap().record_bytes_max, Some(10 << 20));
    assert!(client.put_records(vec![of((10 << 20) + 1)]).await.is_err());
    let sizes = [(10 << 20) - 4, 3 << 20, 100, (6 << 20) + 7, 5 << 20, 5 << 20];
    for entries in [
        vec![entry("a", "1"), of(sizes[0] - 2)],
        vec![of(sizes[1]), of(sizes[2]), of(sizes[3])],
        vec![of(sizes[4]), of(sizes[5])],
    ] {
        let count = entries.len();
        let outcomes = client.put_records(entries).await.unwrap();
        assert!(outcomes.len() == count && outcomes.iter().all(|one| matches!(one, EntryOutcome::Stored { .. })), "{outcomes:?}");
    }
    let error = client.put_records(vec![of(5 << 20), of((5 << 20) + 1)]).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Poison, "{error}");
    let arrivals = read_to_tip(&mut consumer(&dev, ReadFrom::TrimHorizon)).await.unwrap();
    let lengths: Vec<usize> = arrivals.iter().map(|arrival| arrival.events[0].data.len()).collect();
    let wanted = [1 << 20, 4, sizes[0] - 2, sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]].map(|bytes: usize| bytes - 3);
    assert_eq!(lengths, wanted);
    dev.stop().await;
}

#[tokio::test]
async fn a_shard_pays_for_a_large_record_before_it_takes_another_where_rates_are_enforced() {
    let dev = DevKinesis::start(DevOptions { enforce_limits: true, ..options(1) }).await.unwrap();
    dev.set_record_kib_max("clicks", 10_240).await.unwrap();
    let large = || PutEntry { partition_key: "key".into(), explicit_hash_key: None, data: vec![b'x'; 9 << 20] };
    let client = dev.client();
    let first = client.put_records(vec![large()]).await.unwrap();
    assert!(matches!(first[0], EntryOutcome::Stored { .. }), "{first:?}");
    let second = client.put_records(vec![large()]).await.unwrap();
    assert!(matches!(&second[0], EntryOutcome::Failed(error) if error.class == ErrorClass::Throttle), "{second:?}");
    dev.stop().await;
}

#[tokio::test]
async fn limits_are_enforced_record_by_record_when_asked() {
    let dev = DevKinesis::start(DevOptions { enforce_limits: true, ..options(1) }).await.unwrap();
    let client = dev.client();
    let mut throttled = 0;
    // A second takes 1,000 records; these 5,000 take far less than five.
    for _ in 0..10 {
        let entries = (0..500).map(|n| entry(&n.to_string(), "x")).collect();
        for outcome in client.put_records(entries).await.unwrap() {
            if let EntryOutcome::Failed(error) = outcome {
                assert_eq!(error.class, ErrorClass::Throttle, "{error}");
                throttled += 1;
            }
        }
    }
    assert!(throttled > 0, "5,000 records in a moment all passed");
    dev.stop().await;
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_a_configuration_error() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    let target = forebay::kinesis::aws::Target { stream: "other".into(), ..dev.target() };
    let client = forebay::kinesis::aws::AwsKinesis::open_with_credentials(target, ACCESS_KEY_ID, SECRET_ACCESS_KEY);
    let error = client.put_records(vec![entry("a", "1")]).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Configuration, "ResourceNotFoundException"), "{error}");
    dev.create_stream("other", 1).await.unwrap();
    client.put_records(vec![entry("a", "1")]).await.unwrap();
    dev.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    let taken = DevKinesis::start(DevOptions { port: dev.address().port(), ..options(1) }).await.unwrap_err();
    assert!(matches!(taken, DevError::Listen(address, _) if address == dev.address()), "{taken}");
    let name = DevKinesis::start(DevOptions { stream: "no spaces".into(), ..options(1) }).await.unwrap_err();
    assert!(matches!(name, DevError::StreamName(_)), "{name}");
    let none = DevKinesis::start(options(0)).await.unwrap_err();
    assert!(matches!(none, DevError::Shards(0)), "{none}");
    let twice = dev.create_stream("clicks", 1).await.unwrap_err();
    assert!(matches!(twice, DevError::Refused(_)), "{twice}");
    assert!(dev.address().ip().is_loopback());
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_a_reader_at_once_lose_nothing() {
    // What stopped the bare emulator in half of the runs: four writers and a reader that keeps reading.
    let dev = Arc::new(DevKinesis::start(options(4)).await.unwrap());
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let client = dev.client();
            tokio::spawn(async move {
                for batch in 0..10 {
                    let entries = (0..50).map(|n| entry(&format!("{writer}-{n}"), &format!("{batch:03}"))).collect();
                    for outcome in client.put_records(entries).await.unwrap() {
                        assert!(matches!(outcome, EntryOutcome::Stored { .. }), "{outcome:?}");
                    }
                }
            })
        })
        .collect();
    let mut consumer = consumer(&dev, ReadFrom::TrimHorizon);
    let mut arrivals = Vec::new();
    while arrivals.len() < 4 * 10 * 50 {
        arrivals.push(tokio::time::timeout(Duration::from_secs(60), consumer.next()).await.unwrap().unwrap());
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let expected: Vec<String> = (0..10).map(|n| format!("{n:03}")).collect();
    let read = by_key(&arrivals);
    assert_eq!(read.len(), 4 * 50);
    assert!(read.values().all(|data| *data == expected));
}

fn tail_options(dev: &DevKinesis) -> TailOptions {
    TailOptions {
        stream: "clicks".into(),
        region: Some(REGION.into()),
        endpoint: Some(dev.endpoint().into()),
        profile: None,
        role_arn: None,
        external_id: None,
        from: ReadFrom::TrimHorizon,
        json: false,
        max: None,
        idle_exit: None,
    }
}

#[tokio::test]
async fn tail_prints_each_event_of_plain_and_aggregated_records() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    put_all(&dev, vec![entry("u1", "{\"n\":1}"), aggregate(&[("u2", "{\"n\":2}"), ("u3", "{\"n\":3}")])]).await;
    let mut out = Vec::new();
    let options = TailOptions { idle_exit: Some(Duration::from_millis(500)), ..tail_options(&dev) };
    let printed = print_events(consumer(&dev, ReadFrom::TrimHorizon), &options, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!((printed, text.lines().count()), (3, 3), "{text}");
    assert!(text.lines().nth(1).unwrap().ends_with("u2  {\"n\":2}"), "{text}");

    let mut out = Vec::new();
    let options = TailOptions { json: true, max: Some(2), ..tail_options(&dev) };
    let printed = print_events(consumer(&dev, ReadFrom::TrimHorizon), &options, &mut out).await.unwrap();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((printed, lines.len()), (2, 2), "max counts events, not records");
    assert_eq!((&lines[1]["key"], &lines[1]["data"], &lines[1]["aggregated"]), (&"u2".into(), &"{\"n\":2}".into(), &true.into()));
    assert_eq!(lines[1]["shard"], "shardId-000000000000");
    dev.stop().await;
}

#[tokio::test]
async fn tail_of_a_stream_that_does_not_exist_ends_with_the_reason() {
    let dev = DevKinesis::start(options(1)).await.unwrap();
    let target = forebay::kinesis::aws::Target { stream: "other".into(), ..dev.target() };
    let client = forebay::kinesis::aws::AwsKinesis::open_with_credentials(target, ACCESS_KEY_ID, SECRET_ACCESS_KEY);
    let consumer = Consumer::new(Arc::new(client), ConsumerOptions::loopback(ReadFrom::Latest), Host::real());
    let error = print_events(consumer, &tail_options(&dev), &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, TailError::Read(error) if error.code == "ResourceNotFoundException"));
    dev.stop().await;
}
