//! Several streams in one agent: one that fails is alone with it, and memory is shared.
//!
//! Place: the real binary with a Kinesis over loopback HTTP for each stream, and a client of the socket for each source. One
//! stream is denied, one does not exist, one has a full spool, one has lost its directory; two are well. *NO-BLOCKING*: the
//! rate of the two is compared with the same run before the others had trouble. *EXACT-ACCOUNT* is looked at for each stream.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use real::agent::{Agent, Setup};
use real::client::{Client, Pace};
use real::sink::Sink;
use real::{BINARY, temporary};
use serde_json::Value;

/// A stream and a source of each name, with a sink of its own.
fn setup(dir: &tempfile::TempDir, names: &[&str], shards: usize) -> (Setup, BTreeMap<String, Sink>) {
    let sinks: BTreeMap<String, Sink> = names.iter().map(|name| ((*name).to_owned(), real::sink(shards, 1))).collect();
    // The stream and the source that every set-up has; nobody sends there.
    let idle = real::sink(1, 1);
    let mut setup = Setup::new(BINARY, dir.path(), idle.endpoint(), "kpl");
    setup.spool = "segment_bytes = \"8MiB\"\nmax_bytes = \"256MiB\"\nreserve = \"0B\"\ncheckpoint_interval = \"20ms\"".to_owned();
    for (name, sink) in &sinks {
        write!(
            setup.more,
            "\n[[stream]]\nname = {name:?}\nregion = \"us-east-1\"\nendpoint = {:?}\naggregate = \"kpl\"\nlinger = \"5ms\"\n\
             [[source]]\nname = {name:?}\nstream = {name:?}\npartition_key = [\"/userId\"]\n",
            sink.endpoint()
        )
        .expect("a String takes everything");
    }
    (setup, sinks)
}

fn client(setup: &Setup, source: &str, tag: &str, padding: usize) -> Client {
    let keys = (0..64).map(|n| format!("{source}-{tag}-{n}")).collect();
    Client::new(&setup.socket(), keys, padding, 500, 3).for_source(source)
}

fn stream(agent: &Agent, name: &str) -> Value {
    let status = agent.status().expect("an agent that answers");
    let found = status["streams"].as_array().expect("streams").iter().find(|stream| stream["name"] == name).cloned();
    let found = found.unwrap_or_else(|| panic!("no stream {name} in {status}"));
    let of = |part: &str| found["account"][part].as_u64().unwrap_or_else(|| panic!("{part} in {found}"));
    let settled: u64 = ["delivered", "pending", "dead", "expired", "dropped"].map(of).iter().sum();
    assert_eq!(of("accepted"), settled, "EXACT-ACCOUNT of {name}");
    found
}

fn pending(agent: &Agent, name: &str) -> u64 {
    stream(agent, name)["account"]["pending"].as_u64().expect("a number")
}

/// Both send so many events at once, and wait until all are delivered: how long the receipts took, and all of it.
fn both(agent: &mut Agent, clients: &mut [Client], names: &[&str], events: u64) -> (Duration, Duration) {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in clients.iter_mut() {
            scope.spawn(move || client.run(&Pace::of(client.keys.iter().map(|(_, made)| made).sum::<u64>() + events)));
        }
    });
    let receipts = begun.elapsed();
    agent.wait_for("the streams that are well", |agent| names.iter().all(|name| pending(agent, name) == 0));
    (receipts, begun.elapsed())
}

/// Everything that the clients of a stream sent has arrived, each key's in order.
fn check(sink: &Sink, clients: &[&Client]) {
    let sent: BTreeSet<(String, u64)> = clients.iter().flat_map(|client| real::sent(client)).collect();
    let arrived = real::arrived(sink);
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, number) in &arrived {
        let last = last.entry(key).or_default();
        assert!(*number <= *last + 1, "KEY-ORDER: {number} of {key} after {last}");
        *last = (*last).max(*number);
    }
    assert!(arrived.into_iter().collect::<BTreeSet<_>>() == sent, "NOTHING-LOST");
}

#[test]
fn streams_that_are_denied_missing_full_or_without_a_disk_leave_the_others_their_rate_and_go_on_once_mended() {
    const GOOD: [&str; 2] = ["well-a", "well-b"];
    const EVENTS: u64 = 20_000;
    let dir = temporary();
    let (setup, sinks) = setup(&dir, &["well-a", "well-b", "denied", "missing", "full", "broken"], 32);
    sinks["denied"].deny("PutRecords", true);
    sinks["denied"].deny("PutRecord", true);
    sinks["missing"].set_missing(true);
    sinks["full"].set_all_dead(true);
    let mut agent = Agent::start(&setup);
    let mut good: Vec<Client> = GOOD.iter().map(|name| client(&setup, name, "x", 100)).collect();
    // Rates are found first.
    both(&mut agent, &mut good, &GOOD, EVENTS);
    let alone = both(&mut agent, &mut good, &GOOD, EVENTS);

    std::fs::remove_dir_all(setup.dir.join("spool/broken/segments")).expect("it is there");
    let pace = Arc::new(Pace::of(2_000));
    let fill = Arc::new(Pace::of(5_000));
    let bad: Vec<_> = [("denied", 100, &pace), ("missing", 100, &pace), ("broken", 100, &pace), ("full", 60_000, &fill)]
        .map(|(name, padding, pace)| {
            let (mut client, pace) = (client(&setup, name, "y", padding), Arc::clone(pace));
            let running = std::thread::spawn(move || {
                client.run(&pace);
                client
            });
            (name, running)
        })
        .into();
    let says = |agent: &Agent, name: &str, text: &str| {
        stream(agent, name)["paused_reason"].as_str().is_some_and(|why| why.contains(text))
    };
    agent.wait_for("all troubles", |agent| {
        says(agent, "denied", "AccessDenied")
            && says(agent, "missing", "ResourceNotFound")
            && stream(agent, "full")["spool"]["full"] == true
            && stream(agent, "broken")["spool"]["writable"] == false
    });
    let beside = both(&mut agent, &mut good, &GOOD, EVENTS);
    println!(
        "receipts and delivery of {EVENTS} events of each of two streams: {alone:?} alone, {beside:?} beside four in trouble"
    );
    // Other work on this machine is the only reason for a difference, and it can be a large one.
    assert!(beside.1 < 3 * alone.1 + Duration::from_secs(2), "{alone:?} alone, {beside:?} beside four in trouble");
    for name in GOOD {
        let found = stream(&agent, name);
        assert_eq!(
            (&found["paused_reason"], &found["spool"]["full"], &found["spool"]["writable"]),
            (&"".into(), &false.into(), &true.into())
        );
    }
    assert_eq!((pending(&agent, "denied"), pending(&agent, "missing")), (2_000, 2_000));
    assert_eq!(stream(&agent, "broken")["account"]["accepted"], 0, "RECEIPT-AFTER-SYNC");

    // All is mended.
    sinks["denied"].deny("PutRecords", false);
    sinks["missing"].set_missing(false);
    sinks["full"].set_all_dead(false);
    std::fs::create_dir_all(setup.dir.join("spool/broken/segments")).expect("a directory");
    for (name, running) in bad {
        let client = running.join().expect("its events have receipts");
        agent.wait_for(name, |agent| pending(agent, name) == 0);
        check(&sinks[name], &[&client]);
    }
    for (name, client) in GOOD.iter().zip(&good) {
        check(&sinks[*name], &[client]);
    }
    assert!(agent.terminate().success());
}

#[test]
fn eight_streams_that_are_all_behind_take_no_more_memory_than_one_may_and_all_are_drained() {
    const NAMES: [&str; 7] = ["s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    const EVENTS: u64 = 16_000;
    let dir = temporary();
    let (setup, sinks) = setup(&dir, &NAMES, 32);
    sinks.values().for_each(|sink| sink.set_all_dead(true));
    let mut agent = Agent::start(&setup);
    let before = agent.rss_peak() >> 20;
    let mut clients: Vec<Client> = NAMES.iter().map(|name| client(&setup, name, "x", 2_000)).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || client.run(&Pace::of(EVENTS)));
        }
    });
    assert!(NAMES.iter().all(|name| pending(&agent, name) == EVENTS), "they are behind");
    let behind = agent.rss_peak() >> 20;
    sinks.values().for_each(|sink| sink.set_all_dead(false));
    agent.wait_for("all to be drained", |agent| NAMES.iter().all(|name| pending(agent, name) == 0));
    let peak = agent.rss_peak() >> 20;
    println!(
        "eight streams, seven with {EVENTS} events of 2 KB each: {before} MiB at the start, {behind} with all behind, {peak} at most"
    );
    assert!(peak < 256, "{peak} MiB");
    for (name, client) in NAMES.iter().zip(&clients) {
        check(&sinks[*name], &[client]);
    }
    assert!(agent.terminate().success());
}
