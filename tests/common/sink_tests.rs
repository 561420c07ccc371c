//! What the sink of `sink.rs` answers over a real socket, and what it counts.

use super::*;

fn sink(shards: usize, mode: Mode) -> Sink {
    Sink::start(Options { shards, delay: Duration::ZERO, mode }).unwrap()
}

fn post(stream: &mut TcpStream, target: &str, body: &str) -> (u16, serde_json::Value) {
    let length = body.len();
    write!(stream, "POST / HTTP/1.1\r\nx-amz-target: Kinesis_20131202.{target}\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut reply = Vec::new();
    let mut byte = [0];
    while !reply.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        reply.push(byte[0]);
    }
    let head = parse_head(&reply[..reply.len() - 4], reply.len()).unwrap();
    let mut body = vec![0; head.len];
    stream.read_exact(&mut body).unwrap();
    (std::str::from_utf8(&reply[9..12]).unwrap().parse().unwrap(), serde_json::from_slice(&body).unwrap())
}

fn connect(sink: &Sink) -> TcpStream {
    TcpStream::connect(sink.address).unwrap()
}

fn put(events: &[(&str, &str)]) -> String {
    let records: Vec<_> =
        events.iter().map(|(key, data)| serde_json::json!({"Data": BASE64.encode(data), "PartitionKey": key})).collect();
    serde_json::json!({"StreamName": "s", "Records": records}).to_string()
}

#[test]
fn each_entry_is_answered_with_the_shard_of_its_hash_over_one_kept_connection() {
    let sink = sink(4, Mode::Keep);
    let mut stream = connect(&sink);
    let list = post(&mut stream, "ListShards", r#"{"StreamName":"s"}"#).1;
    assert_eq!(list["Shards"].as_array().unwrap().len(), 4);
    let (status, answer) = post(&mut stream, "PutRecords", &put(&[("abc", "1"), ("abc", "2")]));
    assert_eq!(status, 200);
    // MD5("abc") begins with 0x90: the third quarter.
    assert_eq!(answer["Records"][1]["ShardId"], "shardId-000000000002");
    assert_eq!(sink.kept(2).iter().map(|record| record.data.clone()).collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(sink.stats().records, 2);
}

#[test]
fn a_dead_shard_throttles_its_entries_and_stores_none() {
    let sink = sink(4, Mode::Keep);
    let mut stream = connect(&sink);
    sink.set_dead(2, true);
    let answer = post(&mut stream, "PutRecords", &put(&[("abc", "1")])).1;
    assert_eq!(answer["FailedRecordCount"], 1);
    assert_eq!(answer["Records"][0]["ErrorCode"], "ProvisionedThroughputExceededException");
    assert_eq!((sink.kept_count(2), sink.stats().throttled), (0, 1));
    sink.set_dead(2, false);
    post(&mut stream, "PutRecords", &put(&[("abc", "1")]));
    assert_eq!(sink.kept_count(2), 1);
}

#[test]
fn the_check_sees_duplicates_and_gaps_for_each_key() {
    let sink = sink(1, Mode::Check);
    let mut stream = connect(&sink);
    let events = [("a", r#"{"n":1}"#), ("b", r#"{"n":1}"#), ("a", r#"{"n":2}"#), ("a", r#"{"n":2}"#), ("b", r#"{"n":3}"#)];
    post(&mut stream, "PutRecords", &put(&events));
    let stats = sink.stats();
    assert_eq!((stats.events, stats.duplicates, stats.gaps), (5, 1, 1));
    let (status, body) = http_get(sink.address, "/stats").unwrap();
    assert_eq!(status, 200);
    assert_eq!(Stats::from_json(&serde_json::from_slice(&body).unwrap()), Some(stats));
}

#[test]
fn a_bad_body_is_refused_and_counted() {
    let sink = sink(1, Mode::Count);
    let mut stream = connect(&sink);
    assert_eq!(post(&mut stream, "PutRecords", r#"{"Records":[{"Data":"QQ=="}]}"#).0, 400);
    assert_eq!(post(&mut stream, "PutRecords", &put(&[("a", "x")])).0, 200);
    assert_eq!(post(&mut stream, "DeleteStream", "{}").0, 400);
    assert_eq!((sink.stats().bad_requests, sink.stats().records), (1, 1));
}

#[test]
fn a_limited_shard_has_room_for_a_second_of_bytes_and_records_and_it_comes_back_with_time() {
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    let mut records = Room::default();
    assert_eq!((0..1500).filter(|_| records.take(1, begin)).count(), 1000);
    assert_eq!((0..1500).filter(|_| records.take(1, at(100))).count(), 100);
    assert_eq!((0..1500).filter(|_| records.take(1, at(60_000))).count(), 1000);
    assert_eq!(records.stored, 2100);
    let mut bytes = Room::default();
    assert!(bytes.take(1 << 20, begin) && !bytes.take(1, begin));
    assert!(!bytes.take(1 << 19, at(499)) && bytes.take(1 << 19, at(501)));
}

#[test]
fn a_limited_shard_that_is_full_throttles_and_the_others_do_not() {
    let sink = sink(4, Mode::Keep);
    sink.set_limited(true);
    let mut stream = connect(&sink);
    let data = "x".repeat((1 << 20) - 3);
    // MD5("abc") begins with 0x90, MD5("a") with 0x0c.
    let answer = post(&mut stream, "PutRecords", &put(&[("abc", &data), ("abc", &data), ("a", "1")])).1;
    assert_eq!(answer["FailedRecordCount"], 1);
    assert_eq!(answer["Records"][1]["ErrorCode"], "ProvisionedThroughputExceededException");
    assert_eq!(sink.stored_bytes(), [2, 0, 1 << 20, 0]);
}
