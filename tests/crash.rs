//! kill -9 of the real agent at random moments under load, and nothing that it acknowledged is missed.
//!
//! Place: the real binary between clients of the socket that remember what was acknowledged (`common/client.rs`) and a
//! Kinesis over loopback HTTP that keeps every record in its shard's order (`common/sink.rs`). The moment of each kill is
//! chosen by progress, not by time: after so many acknowledgements, or so many records at the sink, or at some point of a
//! start. The seed is printed and can be given again as `FOREBAY_CRASH_SEED`; the machine's own timing cannot.
//! `FOREBAY_CRASH_ROUNDS=200` kills more often than the 32 times that suffice for each change.
//!
//! Checked at the end: *NOTHING-LOST* (each acknowledged event arrived), *KEY-ORDER* (each key's events arrive first in
//! the order of their numbers), *DUPLICATES-EXPLAINED* (no more than what arrived shortly before a kill, or was sent again
//! by a client that was owed its acknowledgement), and that nothing arrived that was never sent.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use forebay::host::mix64;
use real::BINARY;
use real::agent::{Account, Agent, Setup};
use real::client::{Client, Pace};
use real::sink::{Sink, number_of};

const ROUNDS: u64 = 32;
const CLIENTS: usize = 4;
const KEYS_EACH: usize = 25;
const WINDOW: usize = 400;
/// Many, so that a shard's 1 MiB/s and 1,000 records/s do not decide how long the test takes.
const SHARDS: usize = 64;
const CHECKPOINT: Duration = Duration::from_millis(20);

fn rounds() -> u64 {
    let given = std::env::var("FOREBAY_CRASH_ROUNDS").ok();
    given.map_or(ROUNDS, |text| text.parse().expect("FOREBAY_CRASH_ROUNDS is a number"))
}

/// The agent's life until it is killed, and the moment of the kill.
fn round(setup: &Setup, sink: &Sink, pace: &Pace, number: u64, draw: u64) -> Instant {
    // Now and then a long life, so that checkpoints and removals come about.
    let most = if number.is_multiple_of(8) { 20_000 } else { 3000 };
    let after = 1 + draw / 16 % most;
    let target = pace.acked() + after;
    // A window for each client beyond the target, so that the kill meets all of them at work.
    pace.allowed.store(target / CLIENTS as u64 + WINDOW as u64, Ordering::SeqCst);
    let mut agent = Agent::spawn(setup);
    match draw % 16 {
        // In the middle of the start, wherever the machine has got to.
        0 => {}
        // Just when it says that it is ready.
        1 | 2 => agent.wait_ready(),
        // After so many records have arrived.
        3..=6 => {
            let records = sink.stats().records + after.min(if setup.aggregate == "kpl" { 40 } else { 1000 });
            let all = |agent: &Agent| agent.status().is_some() && pace.acked() >= target && agent.account().pending == 0;
            agent.wait_for("records at the sink", |agent| sink.stats().records >= records || all(agent));
        }
        // After so many acknowledgements.
        _ => agent.wait_for("acknowledgements", |_| pace.acked() >= target),
    }
    let at = Instant::now();
    agent.kill();
    at
}

fn crash(aggregate: &'static str, coded: bool) {
    let seed = real::seed("FOREBAY_CRASH_SEED");
    let dir = real::temporary();
    let sink = real::sink(SHARDS, 2);
    let mut setup = Setup::new(BINARY, dir.path(), sink.endpoint(), aggregate);
    setup.spool = format!("segment_bytes = \"8MiB\"\ncheckpoint_interval = \"{}ms\"", CHECKPOINT.as_millis());
    setup.stream = "linger = \"5ms\"".to_owned();
    if coded {
        setup.spool.push_str("\nencryption_keys = [\"env:KEY\"]");
        setup.stream.push_str("\nspool_compression = \"zstd\"");
        setup.env.push(("KEY", "c0de".repeat(16)));
    }

    let pace = Pace::default();
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|client| {
            let keys = (0..KEYS_EACH).map(|key| format!("client{client}-key{key}")).collect();
            Client::new(&setup.socket(), keys, 150, WINDOW, seed ^ client as u64)
        })
        .collect();
    let mut kills = Vec::new();
    let mut agent = thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| client.run(&pace));
        }
        for number in 0..rounds() {
            kills.push(round(&setup, &sink, &pace, number, mix64(seed.wrapping_add(number))));
        }
        let mut agent = Agent::start(&setup);
        pace.allowed.fetch_add(1000, Ordering::SeqCst);
        let target = pace.acked() + 2000;
        agent.wait_for("acknowledgements after the last kill", |_| pace.acked() >= target);
        pace.finish();
        agent
    });
    // The clients have ended: all they sent is acknowledged.
    let account = agent.wait_drained();
    assert_eq!((account.dead, account.expired, account.dropped), (0, 0, 0));
    assert!(agent.terminate().success(), "SIGTERM with nothing pending is a clean end");
    check(&clients, &sink, &kills, account, aggregate);
}

fn check(clients: &[Client], sink: &Sink, kills: &[Instant], account: Account, aggregate: &str) {
    let mut next: BTreeMap<&str, u64> =
        clients.iter().flat_map(|client| &client.keys).map(|(key, _)| (key.as_str(), 1)).collect();
    let (mut arrived, mut repeated, mut near_a_kill, mut aggregated) = (0u64, 0u64, 0u64, 0u64);
    for shard in 0..SHARDS {
        for arrival in sink.events(shard) {
            arrived += 1;
            aggregated += u64::from(arrival.event.aggregated);
            // What arrived before a kill and after the last checkpoint that it can have missed. A busy machine may be late.
            let (late, in_flight) = (CHECKPOINT + Duration::from_millis(480), Duration::from_millis(250));
            near_a_kill += u64::from(kills.iter().any(|kill| (*kill - late..*kill + in_flight).contains(&arrival.at)));
            let expected = next.get_mut(arrival.event.key.as_str()).expect("a key that was never sent arrived");
            let number = number_of(&arrival.event.data).expect("an event that was never sent arrived");
            assert!(number <= *expected, "KEY-ORDER: {} has {number} before {expected}", arrival.event.key);
            if number < *expected {
                repeated += 1;
            } else {
                *expected += 1;
            }
        }
    }
    let (mut sent, mut connections) = (0, 0);
    for client in clients {
        connections += client.connections;
        for (key, made) in &client.keys {
            sent += made;
            assert_eq!(next[key.as_str()], made + 1, "NOTHING-LOST: {key}: {made} events were acknowledged");
        }
    }
    let by_agent = arrived - account.delivered;
    let by_clients = account.accepted - sent;
    println!(
        "{aggregate}: {sent} events, {} kills, {connections} connections, {arrived} arrived ({aggregated} in aggregates), \
         {repeated} repeated: {by_agent} by the agent, {by_clients} by clients",
        kills.len()
    );
    assert!(sent > 1000 && connections > kills.len() as u64, "the kills met no load");
    assert_eq!(repeated, by_agent + by_clients, "EXACT-ACCOUNT: repeated events");
    assert!(by_clients <= (kills.len() * CLIENTS * WINDOW) as u64, "clients sent {by_clients} events again");
    assert!(by_agent <= near_a_kill, "DUPLICATES-EXPLAINED: {by_agent} repeated, {near_a_kill} arrived shortly before a kill");
    assert_eq!(aggregate == "kpl", aggregated > 0);
    assert_eq!(sink.stats().bad_requests, 0);
}

#[test]
fn nothing_acknowledged_is_lost_over_many_kills_with_aggregates() {
    crash("kpl", false);
}

#[test]
fn nothing_acknowledged_is_lost_over_many_kills_with_one_event_a_record() {
    crash("off", false);
}

#[test]
fn nothing_acknowledged_is_lost_over_many_kills_of_a_compressed_and_encrypted_spool() {
    crash("kpl", true);
}
