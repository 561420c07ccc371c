//! Several streams in one agent: one that fails is alone with it, and memory is shared.
//!
//! Place: the real binary with a Kinesis over loopback HTTP for each stream, and a client of the socket for each source. One
//! stream is denied, one does not exist, one has a full spool, one has lost its directory; two are well. *NO-BLOCKING*: the
//! rate of the two is compared with the same run before the others had trouble; and spools that cannot be opened at the start
//! cost nobody else a thing. *EXACT-ACCOUNT* is looked at for each stream.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
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
            "\n[[stream]]\nname = {name:?}\nregion = \"us-east-1\"\nendpoint = {:?}\naggregate = \"kpl\"\nlinger = \"5ms\"\nask_mode_within = \"0s\"\n\
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

/// What the agent answers to a hello line.
fn hello(setup: &Setup, source: &str) -> String {
    let mut socket = UnixStream::connect(setup.socket()).expect("the socket");
    socket.write_all(format!("forebay/1 source={source} ack=on\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).expect("an answer");
    answer
}

/// Status and text of the answer to an event that is posted for a source.
fn post(address: SocketAddr, source: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the HTTP listener");
    let event = r#"{"userId": "posted", "n": 1}"#;
    let head = "Host: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close";
    write!(stream, "POST /ingest/{source} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{event}", event.len()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn streams_whose_spools_cannot_be_opened_leave_the_others_alone_take_nothing_say_why_and_open_without_a_restart() {
    const NAMES: [&str; 3] = ["well", "held", "blocked"];
    let dir = temporary();
    let (mut setup, sinks) = setup(&dir, &NAMES, 4);
    let http = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a loopback port");
    setup.env.push(("FOREBAY_LISTEN__HTTP", http.to_string()));
    // Each has something from before: what was taken then is delivered after the opening.
    let mut clients: Vec<Client> = NAMES.iter().map(|name| client(&setup, name, "x", 100)).collect();
    sinks.values().for_each(|sink| sink.set_all_dead(true));
    let agent = Agent::start(&setup);
    clients.iter_mut().for_each(|client| client.run(&Pace::of(200)));
    agent.kill();
    sinks.values().for_each(|sink| sink.set_all_dead(false));

    let spool = |name: &str| setup.dir.join("spool").join(name);
    let lock = forebay::host::lock(&spool("held").join("lock")).expect("a file").expect("nobody holds it");
    std::fs::rename(spool("blocked"), spool("elsewhere")).expect("a directory");
    std::fs::write(spool("blocked"), "in the way").expect("a file");
    let mut agent = Agent::spawn(&setup);
    let ready = |agent: &Agent| agent.get("/readyz").unwrap_or_default();
    agent.wait_for("the agent to run", |agent| ready(agent).0 != 0 && UnixStream::connect(setup.socket()).is_ok());
    let (code, body) = ready(&agent);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code, &body["ready"]), (503, &false.into()), "{body}");
    for (name, why) in [("held", "is locked: another forebay"), ("blocked", "spool/blocked")] {
        let told = body["streams"].as_array().expect("streams").iter().find(|stream| stream["name"] == name).expect("its entry");
        assert!(told["ready"] == false && told["reasons"][0].as_str().is_some_and(|reason| reason.contains(why)), "{told}");
        let reason = stream(&agent, name)["spool"]["closed_reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(why), "{reason}");
        assert!(setup.log_text().contains("the spool cannot be opened"), "{}", setup.log_tail());
        // It is refused, not taken and dropped.
        let (said, answer) = (hello(&setup, name), post(http, name));
        assert!(
            said.starts_with("error ") && said.contains(&format!("stream {name} is not open")) && said.contains(why),
            "{said}"
        );
        assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after:"), "{answer}");
        assert!(answer.contains(&format!("stream {name} is not open")), "{answer}");
        assert_eq!(stream(&agent, name)["account"]["accepted"], 0);
    }
    let (code, text, _) = real::forebay(&["status", "--config", setup.file().to_str().expect("UTF-8")]);
    assert!(code == 0 && text.contains("the spool is not open, nothing is taken, it is tried again"), "{text}");
    // The other goes on.
    clients[0].run(&Pace::of(400));
    agent.wait_for("the stream that is well", |agent| pending(agent, "well") == 0);
    assert!(hello(&setup, "well").starts_with("ok "));

    // One after the other is mended.
    drop(lock);
    agent.wait_for("the lock", |agent| stream(agent, "held")["spool"]["closed_reason"] == "");
    assert_eq!(ready(&agent).0, 503, "one is still closed");
    std::fs::remove_file(spool("blocked")).expect("the file");
    std::fs::rename(spool("elsewhere"), spool("blocked")).expect("the directory");
    agent.wait_for("all streams", |agent| ready(agent).0 == 200);
    for (name, client) in NAMES.iter().zip(&mut clients).skip(1) {
        client.run(&Pace::of(400));
        agent.wait_for(name, |agent| pending(agent, name) == 0);
    }
    let answer = post(http, "blocked");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    agent.wait_for("what was posted", |agent| pending(agent, "blocked") == 0);
    assert_eq!(stream(&agent, "held")["account"]["accepted"], 400, "those of before and those of now");
    for (name, client) in NAMES.iter().zip(&clients).take(2) {
        check(&sinks[*name], &[client]);
    }
    let spools = agent.get("/spool").expect("the spools").1;
    assert!(NAMES.iter().all(|name| spools.contains(&format!("{name:?}"))), "{spools}");
    // All of them end in order.
    assert!(agent.terminate().success());
    let mut agent = Agent::start(&setup);
    agent.wait_for("the restart", |agent| NAMES.iter().all(|name| pending(agent, name) == 0));
    assert!(NAMES.iter().all(|name| stream(&agent, name)["put"]["records"] == 0), "after a clean stop nothing is sent again");
    assert!(agent.terminate().success());
}

#[test]
fn an_agent_that_can_open_none_of_its_spools_or_needs_another_program_for_one_does_not_start() {
    let dir = temporary();
    let (setup, _sinks) = setup(&dir, &["a", "b"], 1);
    std::fs::create_dir_all(setup.dir.join("spool")).expect("a directory");
    for name in ["events", "a", "b"] {
        std::fs::write(setup.dir.join("spool").join(name), "in the way").expect("a file");
    }
    assert_eq!(Agent::spawn(&setup).wait_end().code(), Some(1));
    assert!(setup.log_text().contains("spool of stream events"), "{}", setup.log_tail());

    for name in ["events", "a", "b"] {
        std::fs::remove_file(setup.dir.join("spool").join(name)).expect("the file");
    }
    std::fs::create_dir_all(setup.dir.join("spool/b")).expect("a directory");
    std::fs::write(setup.dir.join("spool/b/format"), "forebay spool 99\nstream b\n").expect("a file");
    assert_eq!(Agent::spawn(&setup).wait_end().code(), Some(1));
    assert!(setup.log_text().contains("spool of stream b: the spool was written by another version"), "{}", setup.log_tail());
}
