//! What a record is: aggregates where keys decide, single events where they do not or nobody says, and lines.
//!
//! Place: the real binary between clients of the socket and a Kinesis over loopback HTTP that can be switched to record
//! distribution AUTO and can refuse to tell. Records are read by rules written down again here: KCL's for aggregates (the
//! whole one is dropped when any member hashes outside the shard), and splitting at newlines for lines.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;

use forebay::event::KeyHash;
use real::BINARY;
use real::agent::{Agent, Setup};
use real::client::{Client, Pace};
use real::sink::{Sink, kpl, number_of};

const SHARDS: usize = 4;
const EVENTS: u64 = 4_000;

/// An agent with a stream of four shards.
fn start(dir: &tempfile::TempDir, aggregate: &'static str, stream: &str, prepare: impl FnOnce(&Sink)) -> (Sink, Setup, Agent) {
    let sink = real::sink(SHARDS, 2);
    prepare(&sink);
    let mut setup = Setup::new(BINARY, dir.path(), sink.endpoint(), aggregate);
    setup.stream = format!("linger = \"10ms\"\n{stream}");
    let agent = Agent::start(&setup);
    (sink, setup, agent)
}

fn client(setup: &Setup, name: &str) -> Client {
    let keys = (0..40).map(|n| format!("{name}-{n}")).collect();
    Client::new(&setup.socket(), keys, 60, 2000, 7)
}

fn made(client: &Client) -> BTreeMap<String, u64> {
    client.keys.iter().filter(|(_, made)| *made > 0).cloned().collect()
}

/// What a KCL consumer of this shard hands on, and how many of its records are aggregates.
fn read_as_kcl(sink: &Sink, shard: usize) -> (Vec<(String, u64)>, usize) {
    let (first, last) = sink.shards().range(shard);
    let (mut events, mut aggregates) = (Vec::new(), 0);
    for record in sink.kept(shard) {
        let members = kpl::take_apart(&record.key, record.explicit_hash_key, &record.data).expect("a whole record");
        let aggregated = members.iter().any(|member| member.aggregated);
        aggregates += usize::from(aggregated);
        let inside = |member: &kpl::Delivered| {
            (first..=last).contains(&member.explicit_hash_key.unwrap_or(KeyHash::of_key(&member.key).0))
        };
        if !aggregated || members.iter().all(inside) {
            events.extend(members.into_iter().map(|event| (event.key, number_of(&event.data).expect("our event"))));
        }
    }
    (events, aggregates)
}

fn aggregates(sink: &Sink) -> usize {
    (0..SHARDS).map(|shard| read_as_kcl(sink, shard).1).sum()
}

fn mode(agent: &Agent) -> serde_json::Value {
    agent.status().expect("an agent that answers")["streams"][0]["mode"].clone()
}

#[test]
fn a_stream_that_is_switched_to_auto_under_load_loses_nothing_to_its_consumers_and_the_agent_says_what_it_cannot_keep() {
    let dir = tempfile::tempdir().expect("a directory");
    let (sink, setup, mut agent) = start(&dir, "kpl", "", |_| {});
    let mut first = client(&setup, "before");
    first.run(&Pace::of(EVENTS));
    agent.wait_drained();
    assert!(aggregates(&sink) > 0);
    assert_eq!(mode(&agent)["capacity"], "on_demand");
    assert_eq!((mode(&agent)["keys"].as_str(), mode(&agent)["record_bytes_max"].as_u64()), (Some("decide"), Some(1 << 20)));

    sink.set_auto(true);
    let mut second = client(&setup, "after");
    second.run(&Pace::of(EVENTS));
    agent.wait_drained();
    // Kinesis is asked at once, and says it too.
    agent.wait_for("the mode", |agent| mode(agent)["reason"].as_str().is_some_and(|text| text.contains("distribution is AUTO")));
    let (told, settled) = (mode(&agent), aggregates(&sink));
    assert_eq!(
        (told["keys"].as_str(), told["aggregate"].as_str(), told["is_fallback"].as_bool()),
        (Some("ignored"), Some("off"), Some(true))
    );
    assert!(told["reason"].as_str().is_some_and(|text| text.contains("order = \"key\" cannot be kept")), "{told}");
    second.run(&Pace::of(EVENTS / 4));
    agent.wait_drained();
    assert_eq!(aggregates(&sink), settled, "no aggregate more");

    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (key, number) in (0..SHARDS).flat_map(|shard| read_as_kcl(&sink, shard).0) {
        seen.entry(key).or_default().push(number);
    }
    for (key, made) in made(&first).into_iter().chain(made(&second)) {
        let numbers = seen.get_mut(&key).expect("a key that was sent");
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(*numbers, (1..=made).collect::<Vec<_>>(), "DELIVERED-MEANS-READABLE: {key}");
    }
    let metrics = agent.get("/metrics").expect("metrics").1;
    for gauge in ["forebay_keys_ignored", "forebay_aggregate_fallback"] {
        assert!(metrics.contains(&format!("{gauge}{{stream=\"events\"}} 1")), "{gauge}");
    }
    assert!(setup.log_text().contains("record distribution is AUTO"), "{}", setup.log_tail());
    assert_eq!(sink.stats().bad_requests, 0);
    assert!(agent.terminate().success());
}

#[test]
fn an_agent_that_starts_for_the_first_time_aggregates_by_what_landings_tell_before_it_asks() {
    let dir = tempfile::tempdir().expect("a directory");
    // An hour: it is not asked within this test, but for one chance in some hundred.
    let (sink, setup, mut agent) = start(&dir, "kpl", "ask_mode_within = \"1h\"", |_| {});
    assert_eq!((mode(&agent)["keys"].as_str(), mode(&agent)["is_fallback"].as_bool()), (Some("unknown"), Some(false)));
    let mut client = client(&setup, "user");
    let mut sent = 0;
    while aggregates(&sink) == 0 && sent < 20 * EVENTS {
        sent += EVENTS;
        client.run(&Pace::of(sent));
        agent.wait_drained();
    }
    println!("aggregates leave within {sent} events: {}", mode(&agent));
    assert_eq!((mode(&agent)["keys"].as_str(), mode(&agent)["aggregate"].as_str()), (Some("decide"), Some("kpl")));
    assert_eq!(mode(&agent)["capacity"], "", "nobody was asked");
    assert!(setup.log_text().contains("records land where their partition keys lead"), "{}", setup.log_tail());
    assert!(!setup.log_text().contains("could not be read"), "no alarm at a usual start: {}", setup.log_tail());
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for (key, number) in (0..SHARDS).flat_map(|shard| read_as_kcl(&sink, shard).0) {
        assert_eq!(number, seen.insert(key, number).unwrap_or(0) + 1, "KEY-ORDER");
    }
    assert_eq!(seen, made(&client));
    assert!(agent.terminate().success());
}

#[test]
fn without_the_right_to_read_the_mode_kpl_sends_single_events_and_says_which_right_or_setting_brings_it_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (sink, setup, mut agent) = start(&dir, "kpl", "", |sink| sink.deny_summary(true));
    let mut client = client(&setup, "user");
    client.run(&Pace::of(EVENTS));
    agent.wait_drained();
    assert_eq!(aggregates(&sink), 0);
    let told = mode(&agent);
    assert_eq!((told["keys"].as_str(), told["aggregate"].as_str()), (Some("unknown"), Some("off")), "{told}");
    for part in ["AccessDenied", "allow kinesis:DescribeStreamSummary", "record_distribution = \"keys\""] {
        assert!(told["reason"].as_str().is_some_and(|text| text.contains(part)), "{told}");
        assert!(setup.log_text().contains(part.split('"').next().expect("a part")), "{}", setup.log_tail());
    }
    assert!(agent.terminate().success());

    let dir = tempfile::tempdir().expect("a directory");
    let (sink, setup, mut agent) = start(&dir, "kpl", "record_distribution = \"keys\"", |sink| sink.deny_summary(true));
    let mut client = self::client(&setup, "user");
    client.run(&Pace::of(EVENTS));
    agent.wait_drained();
    assert!(aggregates(&sink) > 0);
    assert_eq!(mode(&agent)["reason"], "");
    assert!(agent.terminate().success());
}

#[test]
fn with_a_policy_that_allows_put_record_alone_everything_arrives_in_order_and_status_says_what_to_allow() {
    let dir = tempfile::tempdir().expect("a directory");
    let (sink, setup, mut agent) = start(&dir, "off", "", |sink| sink.deny("PutRecords", true));
    let mut client = client(&setup, "user");
    client.run(&Pace::of(EVENTS / 4));
    agent.wait_drained();
    let singly = |agent: &Agent| agent.status().expect("a status")["streams"][0]["put"]["singly"].as_bool();
    agent.wait_for("status to tell", |agent| singly(agent) == Some(true));
    let (code, text, err) = real::forebay(&["status", "--config", setup.file().to_str().expect("UTF-8")]);
    assert!(code == 0 && text.contains("sent by PutRecord, which is slower; allow kinesis:PutRecords"), "{text}{err}");
    assert!(agent.get("/metrics").expect("metrics").1.contains("forebay_put_singly{stream=\"events\"} 1"));
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for (key, number) in (0..SHARDS).flat_map(|shard| read_as_kcl(&sink, shard).0) {
        assert_eq!(number, seen.insert(key, number).unwrap_or(0) + 1, "KEY-ORDER");
    }
    assert_eq!(seen, made(&client));
    // What the agent knows, check tells.
    let mut check = real::command(&["check", "--config", setup.file().to_str().expect("UTF-8")]);
    let (_, text, err) = real::outcome(check.envs(setup.env.iter().cloned()).output().expect("the binary runs"));
    assert!(text.contains("! agent         running, and PutRecords is denied"), "{text}{err}");
    assert!(agent.terminate().success());
}

#[test]
fn where_the_shards_may_not_be_listed_events_arrive_and_check_warns_in_the_voice_of_the_agent() {
    let dir = tempfile::tempdir().expect("a directory");
    let (sink, setup, mut agent) = start(&dir, "kpl", "", |sink| sink.deny("ListShards", true));
    let mut client = client(&setup, "user");
    client.run(&Pace::of(EVENTS / 4));
    agent.wait_drained();
    assert_eq!(aggregates(&sink), 0, "one event a record");
    assert!(mode(&agent)["reason"].as_str().is_some_and(|text| text.contains("allow kinesis:ListShards")), "{}", mode(&agent));
    let mut check = real::command(&["check", "--config", setup.file().to_str().expect("UTF-8")]);
    let (code, text, err) = real::outcome(check.envs(setup.env.iter().cloned()).output().expect("the binary runs"));
    assert_eq!(code, 0, "it works: {text}{err}");
    assert!(text.contains("! shards        kinesis:ListShards is not allowed: one event a record is sent"), "{text}");
    assert!(text.contains("\"Action\":[\"kinesis:ListShards\"]"), "{text}");
    assert!(agent.terminate().success());
}

#[test]
fn lines_are_read_back_by_whoever_splits_them_each_key_in_order_and_in_its_shard() {
    let dir = tempfile::tempdir().expect("a directory");
    let (sink, setup, mut agent) = start(&dir, "lines", "", |_| {});
    let mut client = client(&setup, "user");
    client.run(&Pace::of(EVENTS));
    // By frames an event may hold anything: JSON over several lines, and what is no JSON.
    let (pretty, raw) = (&b"{\n \"userId\": \"pretty\",\n \"n\": 1\n}"[..], &b"raw\nbytes\n"[..]);
    let mut socket = UnixStream::connect(setup.socket()).expect("the socket");
    let mut sent = b"forebay/1 format=frames\n".to_vec();
    for data in [pretty, raw] {
        let length = u32::try_from(2 + 3 + data.len()).expect("short");
        sent.extend_from_slice(&length.to_be_bytes());
        sent.extend_from_slice(&3u16.to_be_bytes());
        sent.extend_from_slice(b"key");
        sent.extend_from_slice(data);
    }
    socket.write_all(&sent).expect("sent");
    socket.shutdown(std::net::Shutdown::Write).expect("the end");
    agent.wait_for("all of it to be accepted", |agent| agent.account().accepted == EVENTS + 2);
    let account = agent.wait_drained();
    assert_eq!(account.delivered, EVENTS + 2);

    let (mut last, mut records, mut found): (BTreeMap<String, u64>, usize, Vec<Vec<u8>>) = Default::default();
    for shard in 0..SHARDS {
        let (first_hash, last_hash) = sink.shards().range(shard);
        for record in sink.kept(shard) {
            records += 1;
            assert!(
                (first_hash..=last_hash).contains(&KeyHash::of_key(&record.key).0),
                "the record's own key leads to its shard"
            );
            if record.key == "key" && record.data == raw {
                found.push(record.data);
                continue;
            }
            let text = String::from_utf8(record.data).expect("ours");
            assert!(text.ends_with('\n'));
            for (n, line) in text.lines().enumerate() {
                let event: serde_json::Value = serde_json::from_str(line).expect("a line is an event");
                let key = event["userId"].as_str().expect("our key").to_owned();
                if key == "pretty" {
                    found.push(line.as_bytes().to_vec());
                    continue;
                }
                assert!(n > 0 || record.key == key, "the first event's key is the record's");
                assert!((first_hash..=last_hash).contains(&KeyHash::of_key(&key).0), "{key} in shard {shard}");
                let number = number_of(line.as_bytes()).expect("our number");
                assert_eq!(number, last.insert(key, number).unwrap_or(0) + 1, "KEY-ORDER");
            }
        }
    }
    assert_eq!(last, made(&client));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&raw.to_vec()));
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).expect("JSON");
    assert!(found.iter().any(|line| line != raw && read(line) == read(pretty)));
    assert!(records < EVENTS as usize / 4, "{records} records of {EVENTS} events");
    assert!(agent.terminate().success());
}
