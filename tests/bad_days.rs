//! The real agent on bad days: somebody else's spool, a path that is taken, no credentials, no stream, no Kinesis, no
//! room, no ledger, no patience.
//!
//! Place: the real binary, its own log and status, and a Kinesis over loopback HTTP (`common/sink.rs`, or the embedded
//! one where a stream must be missing). Bad input at the doors is with their tests (`ingest_unix.rs`, `ingest_http.rs`).
//!
//! Each test has three claims. What is wrong is told: an error that names the place and the remedy, or a state in
//! `/readyz`, `/status` and `forebay status`. What was acknowledged is kept (*NOTHING-LOST*). And when the day gets better,
//! delivery goes on without anybody's help, each event once and each key's in order. Waits are for conditions; where an
//! agent must be unable to deliver, its endpoint's port is held by a socket that does not listen yet.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "bad_days/no_room.rs"]
mod no_room;
#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use real::agent::{Account, Agent, DEADLINE, Setup};
use real::client::{Client, Pace};
use real::sink::{Mode, Options, Sink, Stats, number_of};
use real::{BINARY, temporary};

fn options(shards: usize) -> Options {
    Options { shards, delay: Duration::from_millis(1), mode: Mode::Check }
}

/// A running sink, and an agent's setup for it. The directory is the caller's to keep.
fn good(dir: &Path) -> (Sink, Setup) {
    let sink = Sink::start(options(4)).expect("a loopback port");
    let setup = Setup::new(BINARY, dir, sink.endpoint(), "off");
    (sink, setup)
}

/// An endpoint that refuses connections: its port is taken, and nobody listens.
struct Refusing(TcpListener);

impl Refusing {
    fn new() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, socket};
        let held = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        Self(held.into())
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.0.local_addr().expect("a bound socket"))
    }

    /// From now on a sink serves this port.
    fn come_up(self, options: Options) -> Sink {
        rustix::net::listen(&self.0, 128).expect("the port is held");
        Sink::start_on(self.0, options).expect("a thread")
    }
}

/// A client with a few keys. What it is told to send more of goes on where it stopped.
fn client(setup: &Setup) -> Client {
    let keys = (0..20).map(|key| format!("user-{key}")).collect();
    Client::new(&setup.socket(), keys, 200, 500, 7)
}

/// Sends until the client has sent `total` events in its life, and all are acknowledged.
fn send(client: &mut Client, total: u64) {
    client.run(&Pace::of(total));
}

/// Everything arrived, each event once and each key's in order.
fn each_once(sink: &Sink, events: u64) {
    let Stats { events: arrived, duplicates, gaps, bad_requests, .. } = sink.stats();
    assert_eq!((arrived, duplicates, gaps, bad_requests), (events, 0, 0, 0), "events, duplicates, gaps, bad requests");
}

fn all_delivered(account: Account, events: u64) {
    assert_eq!(account, Account { accepted: events, delivered: events, ..Account::default() });
}

/// Waits until status says that delivery is paused for a reason with all of `words`; the agent is then ready all the same, and
/// says why it does not deliver. Each try may fail in words of its own, so two looks need not meet the same reason.
fn ready_though_paused(setup: &Setup, agent: &mut Agent, words: &[&str]) {
    let tells = |reason: &str| words.iter().all(|word| reason.contains(word));
    agent.wait_for("delivery to be paused with its reason", |agent| {
        let status = agent.status().unwrap_or_default();
        tells(status["streams"][0]["paused_reason"].as_str().unwrap_or_default())
    });
    let (code, body) = agent.get("/readyz").expect("the admin listener answers");
    let told: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code, &told["ready"], &told["streams"][0]["delivering"]), (200, &true.into(), &false.into()), "{body}");
    assert!(tells(told["streams"][0]["paused_reason"].as_str().unwrap_or_default()), "no {words:?} in {body}");
    let (code, text) = status_command(setup);
    assert_eq!(code, Some(0), "{text}");
    let told = text.lines().find(|line| line.contains("delivery is paused: ")).unwrap_or_default();
    assert!(tells(told), "no {words:?} in {text}");
}

/// What a person sees.
fn status_command(setup: &Setup) -> (Option<i32>, String) {
    let output = Command::new(BINARY)
        .args(["status", "--config"])
        .arg(setup.file())
        .env_clear()
        .output()
        .unwrap_or_else(|error| panic!("cannot run {BINARY}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// An agent with this setup ends at once with 1, and its words hold all of `words`.
fn refuses_to_start(setup: &Setup, words: &[&str]) {
    let before = setup.log_text().len();
    let status = Agent::spawn(setup).wait_end();
    let said = setup.log_text().split_off(before);
    assert_eq!(status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

/// Another agent's setup: its own directory, log and socket.
fn second(first: &Setup, dir: &Path) -> Setup {
    Setup { dir: dir.to_owned(), ..first.clone() }
}

/// All files below a directory with their contents.
fn files_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push((path.clone(), fs::read(&path).expect("a file")));
        }
    }
    found.sort();
    found
}

/// The newest segment of the stream's spool.
fn newest_segment(setup: &Setup) -> PathBuf {
    let files = files_below(&setup.dir.join("spool/events/segments"));
    files.last().expect("a spool that held events has a segment").0.clone()
}

#[test]
fn a_spool_of_another_version_is_refused_and_left_as_it_is() {
    let dir = temporary();
    let refusing = Refusing::new();
    let setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "off");
    let agent = Agent::start(&setup);
    send(&mut client(&setup), 100);
    agent.kill();

    let format = setup.dir.join("spool/events/format");
    let segment = newest_segment(&setup);
    let (ours, bytes) = (fs::read(&format).expect("the format file"), fs::read(&segment).expect("a segment"));
    let refused_untouched = |words: &[&str]| {
        let before = files_below(&setup.dir.join("spool/events/segments"));
        refuses_to_start(&setup, words);
        assert_eq!(files_below(&setup.dir.join("spool/events/segments")), before, "an unknown version was written to");
    };
    // The spool as a whole.
    fs::write(&format, "forebay spool 3\nstream events\n").expect("write");
    refused_untouched(&["stream events", "forebay spool 3", "another version", "reads versions 1 and 2"]);
    fs::write(&format, &ours).expect("write");
    // One segment, whole, of a later version.
    let mut later = bytes.clone();
    later[8] = 2;
    let crc = crc32fast::hash(&later[..60]);
    later[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, &later).expect("write");
    refused_untouched(&["segment version 2", "another version", ".seg"]);
    fs::write(&segment, &bytes).expect("write");

    // The right version finds everything.
    let sink = refusing.come_up(options(4));
    all_delivered(Agent::start(&setup).wait_drained(), 100);
    each_once(&sink, 100);
}

#[test]
fn a_spool_that_another_agent_holds_is_refused_and_the_other_goes_on() {
    let (dir, other) = (temporary(), temporary());
    let (sink, setup) = good(dir.path());
    let mut agent = Agent::start(&setup);
    let mut client = client(&setup);
    send(&mut client, 100);
    let mut rival = second(&setup, other.path());
    rival.env.push(("FOREBAY_SPOOL__DIR", setup.dir.join("spool").display().to_string()));
    refuses_to_start(&rival, &["spool/events/lock", "is locked", "another forebay", "spool.dir"]);
    assert!(!rival.socket().exists(), "the agent that could not start left its socket");
    send(&mut client, 200);
    all_delivered(agent.wait_drained(), 200);
    assert!(agent.terminate().success());
    each_once(&sink, 200);
    // Once it has ended, the spool is free.
    assert!(Agent::start(&rival).terminate().success());
}

#[test]
fn a_socket_left_by_a_killed_agent_is_taken_over() {
    let dir = temporary();
    let (sink, setup) = good(dir.path());
    let agent = Agent::start(&setup);
    let mut client = client(&setup);
    send(&mut client, 50);
    agent.kill();
    assert!(setup.socket().exists(), "a killed agent cannot remove its socket");
    let mut agent = Agent::start(&setup);
    send(&mut client, 100);
    let account = agent.wait_drained();
    assert_eq!((account.accepted, account.delivered), (100, 100));
    assert!(agent.terminate().success());
    assert!(!setup.socket().exists(), "a clean end removes the socket");
    // What arrived before the kill may come again.
    let Stats { events, duplicates, gaps, .. } = sink.stats();
    assert_eq!((events - duplicates, gaps), (100, 0));
}

#[test]
fn a_socket_of_a_living_agent_is_refused_by_its_pid_and_the_living_one_goes_on() {
    let (dir, other) = (temporary(), temporary());
    let (sink, setup) = good(dir.path());
    let mut agent = Agent::start(&setup);
    let mut rival = second(&setup, other.path());
    rival.env.push(("FOREBAY_LISTEN__SOCKET", setup.socket().display().to_string()));
    refuses_to_start(&rival, &[&setup.socket().display().to_string(), &agent.pid().to_string(), "listen.socket"]);
    assert!(!rival.dir.join("spool").exists(), "the agent that could not start made a spool");
    send(&mut client(&setup), 100);
    all_delivered(agent.wait_drained(), 100);
    assert!(agent.terminate().success());
    each_once(&sink, 100);
}

#[test]
fn without_credentials_the_agent_accepts_says_what_is_missing_and_delivers_once_it_has_them() {
    let dir = temporary();
    let (sink, mut setup) = good(dir.path());
    let with = std::mem::replace(
        &mut setup.env,
        vec![("AWS_EC2_METADATA_DISABLED", "true".to_owned()), ("FOREBAY_DRAIN_TIMEOUT", "100ms".to_owned())],
    );
    let mut agent = Agent::start(&setup);
    let mut client = client(&setup);
    send(&mut client, 100);
    ready_though_paused(&setup, &mut agent, &["NoCredentials", "AWS_ACCESS_KEY_ID"]);
    assert!(setup.log_text().contains("AWS_ACCESS_KEY_ID"), "the log does not say what is missing");
    assert_eq!(agent.account(), Account { accepted: 100, pending: 100, ..Account::default() });
    assert!(agent.terminate().success());
    setup.env = with;
    let mut agent = Agent::start(&setup);
    send(&mut client, 200);
    all_delivered(agent.wait_drained(), 200);
    each_once(&sink, 200);
}

#[test]
fn an_endpoint_that_refuses_at_the_start_delays_delivery_and_nothing_else() {
    let dir = temporary();
    let refusing = Refusing::new();
    let setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "kpl");
    let mut agent = Agent::start(&setup);
    let mut client = client(&setup);
    send(&mut client, 1000);
    ready_though_paused(&setup, &mut agent, &["connect"]);
    assert_eq!(agent.account(), Account { accepted: 1000, pending: 1000, ..Account::default() });
    let sink = refusing.come_up(options(4));
    send(&mut client, 2000);
    all_delivered(agent.wait_drained(), 2000);
    agent.wait_for("status to say that delivery goes on", |agent| {
        agent.status().is_some_and(|status| status["streams"][0]["paused_reason"] == "")
    });
    assert!(agent.terminate().success());
    each_once(&sink, 2000);
}

#[test]
fn sigterm_without_kinesis_ends_in_time_with_0_and_the_next_start_delivers() {
    let dir = temporary();
    let refusing = Refusing::new();
    let mut setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "off");
    setup.env.push(("FOREBAY_DRAIN_TIMEOUT", "1s".to_owned()));
    let mut client = client(&setup);
    let agent = Agent::start(&setup);
    send(&mut client, 300);
    let begun = Instant::now();
    assert!(agent.terminate().success(), "{}", setup.log_tail());
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1), "it gave up after {took:?} of 1 s");
    // Beyond the timeout, only the last checkpoint; the rest of the allowance is for a busy machine.
    assert!(took < Duration::from_secs(15), "it took {took:?} to give up after 1 s");
    assert!(setup.log_text().contains("stays in the spool"), "{}", setup.log_tail());
    let sink = refusing.come_up(options(4));
    let mut agent = Agent::start(&setup);
    send(&mut client, 400);
    all_delivered(agent.wait_drained(), 400);
    // Nothing had been sent: nothing is sent twice.
    assert_eq!(agent.status().expect("an answer")["streams"][0]["duplicated"], serde_json::json!({}));
    each_once(&sink, 400);
}

#[test]
fn a_second_sigterm_ends_the_wait_for_delivery() {
    let dir = temporary();
    let refusing = Refusing::new();
    let mut setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "off");
    // Ten times what this test would wait.
    setup.env.push(("FOREBAY_DRAIN_TIMEOUT", format!("{}s", 10 * DEADLINE.as_secs())));
    let mut agent = Agent::start(&setup);
    send(&mut client(&setup), 100);
    agent.ask_to_end();
    agent.wait_for("the agent to drain", |agent| {
        agent.status().is_some_and(|status| status["state"] == "draining") && !setup.socket().exists()
    });
    assert_eq!(agent.get("/readyz").map(|(code, _)| code), Some(503), "an agent that drains is not ready");
    assert!(agent.terminate().success());
    let sink = refusing.come_up(options(4));
    all_delivered(Agent::start(&setup).wait_drained(), 100);
    each_once(&sink, 100);
}

#[test]
fn in_the_weaker_sync_classes_a_killed_agent_loses_nothing_and_the_class_is_told() {
    for sync in ["interval:500ms", "os"] {
        let dir = temporary();
        let (sink, mut setup) = good(dir.path());
        setup.spool = format!("sync = \"{sync}\"");
        let agent = Agent::start(&setup);
        let mut client = client(&setup);
        send(&mut client, 2_000);
        assert_eq!(agent.status().expect("an answer")["streams"][0]["spool"]["sync"], sync);
        assert!(setup.log_text().contains("spool.sync is weaker"), "{}", setup.log_tail());
        agent.kill();
        let mut agent = Agent::start(&setup);
        send(&mut client, 2_500);
        let account = agent.wait_drained();
        assert_eq!((account.accepted, account.delivered), (2_500, 2_500), "{sync}");
        assert!(agent.terminate().success());
        let Stats { events, duplicates, gaps, .. } = sink.stats();
        assert_eq!((events - duplicates, gaps), (2_500, 0), "{sync}");
    }
}

#[test]
fn a_deleted_ledger_costs_repeats_and_no_event_and_is_told() {
    let dir = temporary();
    let (sink, mut setup) = good(dir.path());
    setup.env.push(("FOREBAY_DRAIN_TIMEOUT", "100ms".to_owned()));
    let mut client = client(&setup);
    let mut agent = Agent::start(&setup);
    send(&mut client, 500);
    all_delivered(agent.wait_drained(), 500);
    assert!(agent.terminate().success());
    // Some that are not delivered.
    let refusing = Refusing::new();
    let up = std::mem::replace(&mut setup.endpoint, refusing.endpoint());
    let agent = Agent::start(&setup);
    send(&mut client, 800);
    assert_eq!(agent.account(), Account { accepted: 800, delivered: 500, pending: 300, ..Account::default() });
    assert!(agent.terminate().success());

    let ledger = setup.dir.join("spool/events/ledger");
    fs::remove_dir_all(&ledger).expect("the ledger");
    setup.endpoint = up;
    let before = setup.log_text().len();
    let mut agent = Agent::start(&setup);
    let said = setup.log_text().split_off(before);
    assert!(said.contains("marks") && said.contains("lost") && said.contains(&ledger.display().to_string()), "{said}");
    send(&mut client, 1000);
    all_delivered(agent.wait_drained(), 1000);
    let counted = agent.duplicated();
    assert!(agent.terminate().success());
    let Stats { events, duplicates, gaps, bad_requests, .. } = sink.stats();
    assert_eq!((events - duplicates, gaps, bad_requests), (1000, 0, 0), "{duplicates} arrived again");
    assert!(duplicates <= counted, "DUPLICATES-EXPLAINED: {duplicates} arrived again, {counted} are counted");
    // And with its new ledger the next start sends nothing again.
    assert!(Agent::start(&setup).terminate().success());
    assert_eq!(sink.stats().events, events);
}

#[test]
fn a_kinesis_that_goes_away_later_is_told_and_what_waited_is_delivered_when_it_is_back() {
    let dir = temporary();
    let (sink, mut setup) = good(dir.path());
    let gate = Gate::before(&sink);
    setup.endpoint = gate.endpoint();
    let mut client = client(&setup);
    let mut agent = Agent::start(&setup);
    send(&mut client, 500);
    all_delivered(agent.wait_drained(), 500);
    gate.set_open(false);
    send(&mut client, 1000);
    ready_though_paused(&setup, &mut agent, &["conn"]);
    gate.set_open(true);
    let account = agent.wait_drained();
    assert_eq!((account.accepted, account.delivered), (1000, 1000));
    agent.wait_for("status to say that delivery goes on", |agent| {
        agent.status().is_some_and(|status| status["streams"][0]["paused_reason"] == "")
    });
    assert!(agent.terminate().success());
    each_once(&sink, 1000);
}

/// A way to a sink that can be shut: connections are then reset, and new ones closed before a byte is read.
struct Gate {
    address: SocketAddr,
    state: std::sync::Arc<std::sync::Mutex<GateState>>,
}

struct GateState {
    open: bool,
    passing: Vec<TcpStream>,
}

impl Gate {
    fn before(sink: &Sink) -> Self {
        let target = sink.endpoint().trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket");
        let state = std::sync::Arc::new(std::sync::Mutex::new(GateState { open: true, passing: Vec::new() }));
        let shared = state.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let mut state = shared.lock().expect("no panic holds it");
                if !state.open {
                    continue;
                }
                let far = TcpStream::connect(&target).expect("the sink listens");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    thread::spawn(move || {
                        // However it ends, both sides shall know.
                        std::io::copy(&mut from, &mut to).ok();
                        to.shutdown(std::net::Shutdown::Both).ok();
                    });
                }
                state.passing.extend([near, far]);
            }
        });
        Self { address, state }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn set_open(&self, open: bool) {
        let mut state = self.state.lock().expect("no panic holds it");
        state.open = open;
        for stream in state.passing.drain(..) {
            // It may have ended already.
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

#[cfg(feature = "dev")]
#[test]
fn a_stream_that_does_not_exist_is_told_and_delivered_to_as_soon_as_it_is_made() {
    use std::sync::Arc;

    use forebay::consumer::{Consumer, ConsumerOptions};
    use forebay::dev::{ACCESS_KEY_ID, DevKinesis, DevOptions, SECRET_ACCESS_KEY};
    use forebay::host::Host;
    use forebay::kinesis::ReadFrom;
    use forebay::kinesis::aws::{AwsKinesis, Target};

    let dir = temporary();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let options = DevOptions { port: 0, shards: 1, stream: "another".to_owned(), enforce_limits: false };
    let kinesis = runtime.block_on(DevKinesis::start(options)).expect("the embedded Kinesis");
    let setup = Setup::new(BINARY, dir.path(), kinesis.endpoint().to_owned(), "kpl");
    let mut agent = Agent::start(&setup);
    let mut client = client(&setup);
    send(&mut client, 300);
    // The stream is named, too.
    ready_though_paused(&setup, &mut agent, &["ResourceNotFoundException", "events"]);
    assert_eq!(agent.account(), Account { accepted: 300, pending: 300, ..Account::default() });

    runtime.block_on(kinesis.create_stream("events", 2)).expect("a new stream");
    send(&mut client, 500);
    all_delivered(agent.wait_drained(), 500);
    assert!(agent.terminate().success());

    let target = Target { stream: "events".to_owned(), ..kinesis.target() };
    let reader = AwsKinesis::open_with_credentials(target, ACCESS_KEY_ID, SECRET_ACCESS_KEY);
    let mut consumer = Consumer::new(Arc::new(reader), ConsumerOptions::loopback(ReadFrom::TrimHorizon), Host::real());
    let mut next = std::collections::BTreeMap::<Vec<u8>, u64>::new();
    let arrived = runtime.block_on(async {
        let mut arrived = 0;
        while let Some(arrival) = consumer.next_until_tip().await.expect("the stream is readable") {
            for event in &arrival.events {
                let last = next.entry(event.key.to_vec()).or_default();
                *last += 1;
                assert_eq!(number_of(&event.data), Some(*last), "each event once, each key's in order");
                arrived += 1;
            }
        }
        arrived
    });
    assert_eq!(arrived, 500);
    runtime.block_on(kinesis.stop());
}
