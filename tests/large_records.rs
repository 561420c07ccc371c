//! Records over 1 MiB with the real binary: taken where the stream takes them, refused where it does not, and set aside where it
//! took them once and takes them no more.
//!
//! Place: the agent between clients of its socket and the embedded Kinesis, which judges each record by its stream's
//! `MaxRecordSizeInKiB`; what arrived is read back with the consumer. Memory is looked at, because such events pass every
//! budget alone.

#![cfg(feature = "dev")]
#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use forebay::consumer::{Consumer, ConsumerOptions};
use forebay::dev::{DevKinesis, DevOptions};
use forebay::event::KeyHash;
use forebay::host::Host;
use forebay::kinesis::{KinesisApi as _, ReadFrom};
use forebay::limits::{EVENT_BYTES_CEILING, EVENT_BYTES_MAX};
use real::agent::{Agent, Setup};
use real::{BINARY, outcome, temporary};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// An agent that is configured to take all that Kinesis may, and an embedded Kinesis.
async fn world(dir: &tempfile::TempDir, shards: u32, kib: u32, aggregate: &'static str) -> (DevKinesis, Setup) {
    let options = DevOptions { port: 0, shards, stream: "events".into(), enforce_limits: false };
    let kinesis = DevKinesis::start(options).await.expect("an embedded Kinesis");
    kinesis.set_record_kib_max("events", kib).await.expect("a limit that Kinesis knows");
    let mut setup = Setup::new(BINARY, dir.path(), kinesis.endpoint().to_owned(), aggregate);
    setup.spool = "segment_bytes = \"8MiB\"".to_owned();
    setup.stream = "linger = \"5ms\"\nrequest_bytes_max = \"10239KiB\"".to_owned();
    setup.env.push(("FOREBAY_SOURCE__0__MAX_EVENT_BYTES", "10238KiB".to_owned()));
    (kinesis, setup)
}

/// One frame of the socket's binary format, and the letter that fills its data.
fn frame(key: &str, number: u64, bytes: usize) -> Vec<u8> {
    let mut data = format!("{number} ").into_bytes();
    data.resize(bytes, b'x');
    let mut frame = u32::try_from(2 + key.len() + bytes).expect("small").to_be_bytes().to_vec();
    frame.extend_from_slice(&u16::try_from(key.len()).expect("short").to_be_bytes());
    frame.extend_from_slice(key.as_bytes());
    frame.extend_from_slice(&data);
    frame
}

/// Sends frames with acknowledgements; what the agent said, the answer to the hello left out.
fn send(setup: &Setup, frames: &[Vec<u8>]) -> Vec<String> {
    let mut socket = UnixStream::connect(setup.socket()).expect("the socket");
    let mut reading = socket.try_clone().expect("another handle");
    let heard = std::thread::spawn(move || {
        let mut text = String::new();
        reading.read_to_string(&mut text).map(|_| text)
    });
    socket.write_all(b"forebay/1 format=frames ack=on\n").expect("said");
    for frame in frames {
        socket.write_all(frame).expect("sent");
    }
    socket.shutdown(std::net::Shutdown::Write).expect("the end");
    let text = heard.join().expect("no panic").expect("UTF-8 until the end");
    text.lines().skip(1).map(str::to_owned).collect()
}

/// Numbers and sizes that a consumer reads, by key.
async fn read(kinesis: &DevKinesis) -> BTreeMap<String, Vec<(u64, usize)>> {
    let mut consumer = Consumer::new(Arc::new(kinesis.client()), ConsumerOptions::loopback(ReadFrom::TrimHorizon), Host::real());
    let mut found: BTreeMap<String, Vec<(u64, usize)>> = BTreeMap::new();
    while let Some(arrival) = consumer.next_until_tip().await.expect("it can be read") {
        for event in &arrival.events {
            let end = event.data.iter().position(|byte| *byte == b' ').expect("our data");
            let number = std::str::from_utf8(&event.data[..end]).ok().and_then(|text| text.parse().ok()).expect("our number");
            assert!(event.data[end + 1..].iter().all(|byte| *byte == b'x'), "what was sent");
            let key = String::from_utf8(event.key.clone()).expect("our key");
            found.entry(key).or_default().push((number, event.data.len()));
        }
    }
    found
}

fn record_bytes_max(agent: &Agent) -> Option<u64> {
    agent.status()?["streams"][0]["mode"]["record_bytes_max"].as_u64()
}

async fn events_up_to_10_mib_arrive(aggregate: &'static str, compression: &str) {
    let dir = temporary();
    let (kinesis, mut setup) = world(&dir, 16, 10_240, aggregate).await;
    setup.env.push(("FOREBAY_STREAM__0__SPOOL_COMPRESSION", compression.to_owned()));
    let mut agent = Agent::start(&setup);
    agent.wait_for("the stream's limit", |agent| record_bytes_max(agent) == Some(10 << 20));
    // Keys in different shards: a shard pays for such a record for seconds before it takes another one.
    let shards = kinesis.client().list_shards().await.expect("shards");
    let shard_of = |key: &str| {
        let hash = KeyHash::of_key(key).0;
        shards.iter().position(|shard| (shard.first_hash..=shard.last_hash).contains(&hash)).expect("shards cover all")
    };
    let mut keys: Vec<Option<String>> = vec![None; shards.len()];
    for key in (0..500).map(|n| format!("key-{n}")) {
        keys[shard_of(&key)].get_or_insert(key);
    }
    let keys: Vec<String> = keys.into_iter().flatten().collect();
    assert_eq!(keys.len(), 16);
    let small = |n: u64| keys.iter().map(move |key| (key.clone(), n, 100));
    let sizes = [EVENT_BYTES_MAX + 1, 3 * MIB, 5 * MIB + 1, EVENT_BYTES_CEILING];
    let large = keys.iter().zip(sizes.iter().cycle()).map(|(key, bytes)| (key.clone(), 3, *bytes));
    let events: Vec<(String, u64, usize)> = small(1).chain(small(2)).chain(large).collect();
    let frames: Vec<Vec<u8>> = events.iter().map(|(key, number, bytes)| frame(key, *number, *bytes)).collect();
    // Several connections, each with unfinished giants at once.
    let told: Vec<Vec<String>> = std::thread::scope(|scope| {
        let parts = (0..4).map(|part| {
            let mine: Vec<Vec<u8>> = frames
                .iter()
                .zip(&events)
                .filter(|(_, event)| shard_of(&event.0) % 4 == part)
                .map(|(frame, _)| frame.clone())
                .collect();
            let setup = &setup;
            scope.spawn(move || send(setup, &mine))
        });
        let parts: Vec<_> = parts.collect();
        parts.into_iter().map(|part| part.join().expect("no panic")).collect()
    });
    for told in told {
        assert_eq!(told.last().map(String::as_str), Some("ack 12"), "{told:?}");
        assert!(told.iter().all(|line| line.starts_with("ack ")), "{told:?}");
    }
    let account = agent.wait_drained();
    assert_eq!((account.accepted, account.delivered), (48, 48));
    let read = read(&kinesis).await;
    for (at, key) in keys.iter().enumerate() {
        let wanted = [(1, 100), (2, 100), (3, sizes[at % sizes.len()])];
        assert_eq!(read[key], wanted, "{key}, each once and in order");
    }
    let peak = agent.rss_peak() / MIB as u64;
    assert!(peak < 256, "{peak} MiB");
    println!("aggregate = {aggregate}: peak RSS {peak} MiB");
    assert!(agent.terminate().success());
    kinesis.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_up_to_10_mib_arrive_whole_and_in_order_where_the_stream_takes_them_with_single_events_and_compression() {
    events_up_to_10_mib_arrive("off", "zstd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_up_to_10_mib_arrive_whole_and_in_order_where_the_stream_takes_them_with_aggregates() {
    events_up_to_10_mib_arrive("kpl", "off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_over_what_the_stream_takes_is_refused_at_the_door_and_told_why() {
    let dir = temporary();
    let (kinesis, setup) = world(&dir, 1, 2048, "off").await;
    let mut agent = Agent::start(&setup);
    agent.wait_for("the stream's limit", |agent| record_bytes_max(agent) == Some(2 << 20));
    let told = send(&setup, &[frame("a", 1, 2 * MIB - 2048), frame("a", 2, 2 * MIB - 2047), frame("a", 3, 100)]);
    let refused: Vec<&String> = told.iter().filter(|line| line.starts_with("reject")).collect();
    assert_eq!(refused.len(), 1, "{told:?}");
    assert!(refused[0].starts_with("reject 2 too_large: ") && refused[0].contains("MaxRecordSizeInKiB"), "{told:?}");
    assert_eq!(told.last().map(String::as_str), Some("ack 3"), "{told:?}");
    agent.wait_drained();
    assert_eq!(read(&kinesis).await["a"], [(1, 2 * MIB - 2048), (3, 100)]);
    assert!(agent.terminate().success());
    kinesis.stop().await;
}

/// `forebay dead …`: what it printed. It must succeed.
fn dead(setup: &Setup, args: &[&str]) -> String {
    let output = real::command(&["dead"]).args(args).arg("--config").arg(setup.file()).output();
    let (code, out, err) = outcome(output.expect("the binary runs"));
    assert_eq!(code, 0, "forebay dead {args:?}: {out}{err}");
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_before_the_streams_limit_was_lowered_becomes_a_dead_letter_and_holds_nobody_up() {
    let dir = temporary();
    let (kinesis, mut setup) = world(&dir, 2, 10_240, "off").await;
    let stream = std::mem::replace(&mut setup.stream, "linger = \"10s\"\nrequest_bytes_max = \"10239KiB\"".to_owned());
    let mut agent = Agent::start(&setup);
    agent.wait_for("the stream's limit", |agent| record_bytes_max(agent) == Some(10 << 20));
    let frames: Vec<Vec<u8>> = [("a", 1, 100), ("a", 2, 3 * MIB), ("a", 3, 100), ("b", 1, 100), ("b", 2, 2 * MIB), ("b", 3, 100)]
        .map(|(key, number, bytes)| frame(key, number, bytes))
        .into();
    assert_eq!(send(&setup, &frames).last().map(String::as_str), Some("ack 6"));
    assert_eq!(agent.account().pending, 6, "they wait for company");
    agent.kill();

    kinesis.set_record_kib_max("events", 2100).await.expect("a limit");
    setup.stream = stream;
    let mut agent = Agent::start(&setup);
    let account = agent.wait_drained();
    assert_eq!((account.delivered, account.dead), (5, 1));
    assert_eq!(read(&kinesis).await["a"], [(1, 100), (3, 100)]);
    assert_eq!(read(&kinesis).await["b"], [(1, 100), (2, 2 * MIB), (3, 100)]);
    let letter: Value = serde_json::from_str(&dead(&setup, &["ls", "--json"])).expect("one letter");
    assert_eq!((letter["reason"].as_str(), letter["key"].as_str()), (Some("too_large"), Some("a")));
    let detail = letter["detail"].as_str().expect("a detail");
    assert!(detail.contains("3145729 bytes") && detail.contains("MaxRecordSizeInKiB is 2100"), "{detail}");
    assert!(setup.log_text().contains("too large to be sent"), "{}", setup.log_tail());
    assert!(agent.terminate().success());

    kinesis.set_record_kib_max("events", 10_240).await.expect("a limit");
    let mut agent = Agent::start(&setup);
    dead(&setup, &["retry", "--reason", "too_large"]);
    agent.wait_drained();
    assert_eq!(read(&kinesis).await["a"], [(1, 100), (3, 100), (2, 3 * MIB)]);
    assert!(agent.terminate().success());
    kinesis.stop().await;
}
