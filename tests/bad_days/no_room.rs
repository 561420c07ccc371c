//! No room: the spool at its ceiling, by either policy, and the disk at its reserve.
//!
//! Place: part of `bad_days.rs`, whose helpers and claims it shares. How the doors answer is with `ingest_full.rs`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::real::agent::{Agent, DEADLINE, Setup};
use super::real::sink::Stats;
use super::real::{BINARY, temporary};
use super::{Refusing, all_delivered, client, each_once, files_below, options, send, status_command};

/// A free port for HTTP, told to the agent.
fn http_port(setup: &mut Setup) -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a loopback port");
    setup.env.push(("FOREBAY_LISTEN__HTTP", free.to_string()));
    free
}

/// One event over HTTP: the answer's head, and its body.
fn post(address: SocketAddr, event: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("the agent listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time over 0");
    let length = event.len();
    let kind = "Content-Type: application/json\r\nConnection: close";
    let sent = write!(stream, "POST /ingest HTTP/1.1\r\nHost: {address}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{event}");
    sent.expect("the agent reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {answer}"));
    (head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn a_full_spool_holds_its_senders_back_loses_nothing_and_goes_on() {
    // The smallest ceiling there is, and more than it, the doors' memory and all buffers between can hold.
    const MAX_BYTES: u64 = 256 << 20;
    const EVENTS: u64 = 84_000;
    const PAD: usize = 4000;
    let dir = temporary();
    let refusing = Refusing::new();
    let mut setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "kpl");
    setup.spool = format!("max_bytes = \"{MAX_BYTES}\"\nsegment_bytes = \"8MiB\"");
    let free = http_port(&mut setup);
    let mut agent = Agent::start(&setup);

    let socket = setup.socket();
    // Plain lines: nothing holds this sender back but the socket itself.
    let sender = thread::spawn(move || {
        let mut stream = UnixStream::connect(socket).expect("the agent listens");
        let pad = "x".repeat(PAD);
        for n in 0..EVENTS {
            let (key, number) = (n % 500, 1 + n / 500);
            writeln!(stream, r#"{{"userId":"user-{key}","n":{number},"pad":"{pad}"}}"#).expect("the agent reads on");
        }
    });
    agent.wait_for("the spool to be full", |agent| {
        agent.status().is_some_and(|status| status["streams"][0]["spool"]["full"] == true)
    });
    let (code, body) = agent.get("/readyz").expect("an answer");
    assert!(code == 503 && body.contains("the spool is full"), "{code} {body}");
    let (head, body) = post(free, r#"{"userId":"http","n":1}"#);
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: "), "{head}");
    assert!(body.contains("full"), "{body}");
    let account = agent.account();
    assert_eq!(account.pending, account.accepted);
    assert!(account.accepted > 0 && account.accepted * PAD as u64 <= MAX_BYTES, "{account:?} is more than the spool holds");
    let on_disk: u64 = files_below(&setup.dir.join("spool/events/segments")).iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(on_disk <= MAX_BYTES, "{on_disk} bytes on disk");
    assert!(!sender.is_finished(), "the socket took more than there is room for");

    let sink = refusing.come_up(options(64));
    sender.join().expect("the sender");
    // Refused is refused: it is sent again, as the answer asks for, until it is taken.
    let mut taken = String::new();
    agent.wait_for("HTTP to take events again", |_| {
        taken = post(free, r#"{"userId":"http","n":1}"#).0;
        assert!(taken.starts_with("http/1.1 200 ") || taken.starts_with("http/1.1 503 "), "{taken}");
        taken.starts_with("http/1.1 200 ")
    });
    agent.wait_for("the last line", |agent| agent.account().accepted == EVENTS + 1);
    all_delivered(agent.wait_drained(), EVENTS + 1);
    let (code, body) = agent.get("/readyz").expect("an answer");
    assert_eq!(code, 200, "{body}");
    let peak = agent.rss_peak() >> 20;
    assert!(peak < 256, "{peak} MiB of memory");
    assert!(agent.terminate().success());
    each_once(&sink, EVENTS + 1);
}

/// Refused events of the source, for want of room.
fn refused(agent: &Agent) -> u64 {
    agent.status().expect("an answer")["streams"][0]["rejected"]["app/full"].as_u64().unwrap_or_default()
}

#[test]
fn a_full_spool_that_rejects_blocks_no_sender_counts_what_it_refuses_and_goes_on() {
    const MAX_BYTES: u64 = 256 << 20;
    const EVENTS: u64 = 84_000;
    const PAD: usize = 4000;
    let dir = temporary();
    let refusing = Refusing::new();
    let mut setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "kpl");
    setup.spool = format!("max_bytes = \"{MAX_BYTES}\"\nsegment_bytes = \"8MiB\"\non_full = \"reject\"");
    let http = http_port(&mut setup);
    let mut agent = Agent::start(&setup);
    // Plain lines, more than there is room for, and nobody takes anything away: all of it is read.
    let mut stream = UnixStream::connect(setup.socket()).expect("the agent listens");
    stream.set_write_timeout(Some(DEADLINE)).expect("a time over 0");
    let pad = "x".repeat(PAD);
    for n in 0..EVENTS {
        writeln!(stream, r#"{{"userId":"user-{}","n":{},"pad":"{pad}"}}"#, n % 500, 1 + n / 500).expect("the agent reads on");
    }
    drop(stream);
    agent.wait_for("every event to be accepted or refused", |agent| agent.account().accepted + refused(agent) == EVENTS);
    let accepted = agent.account().accepted;
    assert!(refused(&agent) > 0 && accepted * PAD as u64 <= MAX_BYTES);
    let (code, body) = agent.get("/readyz").expect("an answer");
    assert!(code == 503 && body.contains("spool.max_bytes"), "{code} {body}");
    let status = agent.status().expect("an answer");
    let spool = &status["streams"][0]["spool"];
    assert_eq!((&spool["full_by"], &spool["on_full"], &spool["sync"]), (&"max_bytes".into(), &"reject".into(), &"always".into()));
    let (code, text) = status_command(&setup);
    assert!(code == Some(0) && text.contains("the spool is full (max_bytes) and refuses new events"), "{text}");
    let begun = Instant::now();
    let (head, body) = post(http, r#"{"userId":"http","n":1}"#);
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: "), "{head}");
    assert!(body.contains("full: the spool is full (spool.max_bytes)"), "{body}");
    assert!(begun.elapsed() < Duration::from_secs(5), "that is not at once");
    let refused_at_last = refused(&agent);

    let sink = refusing.come_up(options(64));
    assert_eq!(agent.wait_drained().delivered, accepted);
    let (head, _) = post(http, r#"{"userId":"http","n":1}"#);
    assert!(head.starts_with("http/1.1 200 ") && head.contains("\r\nforebay-sync: always"), "{head}");
    all_delivered(agent.wait_drained(), accepted + 1);
    assert!(agent.terminate().success());
    let Stats { events, duplicates, bad_requests, .. } = sink.stats();
    assert_eq!((events, duplicates, bad_requests), (accepted + 1, 0, 0));
    let log = setup.log_text();
    assert_eq!(log.matches("the spool is full").count(), 1, "said once:\n{}", setup.log_tail());
    let end = log.lines().find(|line| line.contains("the spool has room again")).expect("the end of it is told");
    assert!(end.contains(&refused_at_last.to_string()), "{refused_at_last} were refused: {end}");
}

#[test]
fn with_the_disk_at_its_reserve_new_events_are_refused_and_what_is_there_is_delivered() {
    let dir = temporary();
    let refusing = Refusing::new();
    let mut setup = Setup::new(BINARY, dir.path(), refusing.endpoint(), "kpl");
    setup.env.push(("FOREBAY_DRAIN_TIMEOUT", "10ms".to_owned()));
    let http = http_port(&mut setup);
    let agent = Agent::start(&setup);
    send(&mut client(&setup), 300);
    assert!(agent.terminate().success());

    // No disk has this much free.
    setup.spool = "on_full = \"reject\"\nreserve = \"1PiB\"".to_owned();
    let mut agent = Agent::spawn(&setup);
    agent.wait_for("the reserve to be told", |agent| {
        agent.get("/readyz").is_some_and(|(code, body)| code == 503 && body.contains("spool.reserve"))
    });
    assert_eq!(agent.status().expect("an answer")["streams"][0]["spool"]["full_by"], "reserve");
    let (head, body) = post(http, r#"{"userId":"http","n":1}"#);
    assert!(head.starts_with("http/1.1 503 ") && body.contains("spool.reserve"), "{head} {body}");
    let sink = refusing.come_up(options(4));
    all_delivered(agent.wait_drained(), 300);
    assert!(agent.terminate().success());
    each_once(&sink, 300);

    // And what was delivered was noted.
    setup.spool = "reserve = 0".to_owned();
    let mut agent = Agent::start(&setup);
    assert!(post(http, r#"{"userId":"http","n":1}"#).0.starts_with("http/1.1 200 "));
    all_delivered(agent.wait_drained(), 301);
    assert!(agent.terminate().success());
    each_once(&sink, 301);
}
