//! Hostile input, row by row: each gets a clear answer, takes bounded memory, and leaves other clients their turns.
//!
//! A row is a body or raw bytes, where they go, and the answers that are clear enough. Those for vendors' paths are in `vendors`.
//! While the rows of a family are sent again and again by
//! several connections, a bystander makes requests of its own over the same single thread: of its requests none may fail, and
//! none may be overtaken by more than a few of theirs. That is progress, not time, so a slow machine fails no row.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;
#[path = "common/raw_http.rs"]
mod raw_http;
#[path = "hostile/vendors.rs"]
mod vendors;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;

use doors::{Door, World, config, soon, until};
use forebay::config::{KeyFallback, RuleConfig, SourceConfig, SourceKind};
use forebay::ingest::Sources;
use forebay::ingest::http::HttpOptions;
use raw_http::{Answer, request};
use tokio::sync::Mutex;
use tokio::task::LocalSet;

/// Connections that send one row at once.
const ATTACKERS: u64 = 4;

/// Requests of the bystander for each row.
const TURNS: u64 = 8;

/// Times that each attacker may be answered while the bystander waits for one answer.
const OVERTAKEN_MAX: u64 = 12;

/// What the process may take beside what it had: the budget of bodies (64 MiB) and of ingest (32 MiB), and as much again for
/// the attackers' own side, which lives in the same process.
const GROWTH_MAX_BYTES: u64 = 192 << 20;

const JSON: &str = "content-type: application/json\r\n";
const LINES: &str = "content-type: application/x-ndjson\r\n";
const RAW: &str = "content-type: application/octet-stream\r\n";

/// What is sent.
enum Sent {
    /// A body, as it is.
    Body(Vec<u8>),
    /// A whole request, or less or more.
    Bytes(Vec<u8>),
}

struct Row {
    name: &'static str,
    path: &'static str,
    headers: &'static str,
    sent: Sent,
    /// One of these statuses; 0: closed without one is fine.
    answers: &'static [u16],
    /// What an error's text, or the answer of a good one, must hold.
    says: &'static str,
}

fn body(name: &'static str, headers: &'static str, body: impl Into<Vec<u8>>, answers: &'static [u16], says: &'static str) -> Row {
    Row { name, path: "/ingest/web", headers, sent: Sent::Body(body.into()), answers, says }
}

fn bytes(name: &'static str, bytes: impl Into<Vec<u8>>, answers: &'static [u16]) -> Row {
    Row { name, path: "", headers: "", sent: Sent::Bytes(bytes.into()), answers, says: "" }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn frame(length: u32, key_length: u16, rest: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], &key_length.to_be_bytes(), rest].concat()
}

fn head(lines: &str, rest: &str) -> Vec<u8> {
    format!("POST /ingest/web HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n{rest}").into_bytes()
}

/// Documents of JSON that a parser may stumble over.
fn documents() -> Vec<Row> {
    let deep = |open: &str, close: &str, depth: usize| [open.repeat(depth), close.repeat(depth)].concat();
    let keyed = |value: &str| format!(r#"{{"userId":"u","x":{value}}}"#);
    let many_keys = (0..100_000).map(|at| format!(r#""{at:05x}":1,"#)).collect::<String>();
    let same_keys = r#""a":1,"#.repeat(100_000) + &r#""userId":"v","#.repeat(30_000);
    let digits = "9".repeat(1_000_000);
    vec![
        body("depth bomb of arrays", JSON, keyed(&deep("[", "]", 500_000)), &[200], "\"accepted\":1"),
        body(
            "depth bomb of objects",
            JSON,
            keyed(&deep(r#"{"a":"#, "}", 100_000).replace(":}", ":1}")),
            &[200],
            "\"accepted\":1",
        ),
        body(
            "depth bomb without an end",
            JSON,
            format!(r#"{{"userId":"u","x":{}"#, "[".repeat(1 << 20)),
            &[400],
            "not one JSON object",
        ),
        body("depth bomb as an array of events", JSON, deep("[", "]", 500_000), &[200], "\"accepted\":0"),
        body(
            "depth bomb where the key should be",
            JSON,
            format!(r#"{{"userId":{}}}"#, deep("[", "]", 100_000)),
            &[400],
            "no_key",
        ),
        body("depth bomb of lines", LINES, format!("{}\n", deep("[", "]", 100_000)).repeat(20), &[200], "no_key"),
        body("100,000 keys", JSON, format!(r#"{{{many_keys}"userId":"u"}}"#), &[200], "\"accepted\":1"),
        body(
            "100,000 equal keys, of which the last counts",
            JSON,
            format!(r#"{{{same_keys}"userId":"u"}}"#),
            &[200],
            "\"accepted\":1",
        ),
        body("equal keys, the last without a key", JSON, r#"{"userId":"u","userId":null}"#, &[400], "no_key"),
        body("a number of a million digits", JSON, keyed(&digits), &[200], "\"accepted\":1"),
        body("a number of a million digits as key", JSON, format!(r#"{{"userId":{digits}}}"#), &[400], "key_too_long"),
        body("a number beyond f64 as key", JSON, r#"{"userId":-1e999999}"#, &[200], "\"accepted\":1"),
        body("half a surrogate pair", JSON, r#"{"userId":"\ud800","\udc00":"\ud83d"}"#, &[200], "\"accepted\":1"),
        body("an escape cut short", JSON, r#"{"userId":"\ud8"}"#, &[400], ""),
        body("NUL as an escape", JSON, r#"{"userId":"a\u0000b"}"#, &[200], "\"accepted\":1"),
        body("NUL in a string", JSON, "{\"userId\":\"a\0b\"}", &[400], "not one JSON object"),
        body("NULs", LINES, vec![0; 1_000_000], &[200], "not_json"),
        body("NULs as one raw event", RAW, vec![0; 1_000_000], &[400], "not_json"),
        body("no UTF-8", JSON, b"{\"userId\":\"\xff\xfe\"}", &[400], ""),
        body("a byte order mark", JSON, "\u{feff}{\"userId\":\"u\"}", &[400], "must be a JSON array"),
        body("nothing", JSON, "", &[400], "must be a JSON array"),
        body("white space", JSON, " ".repeat(1 << 20), &[400], "must be a JSON array"),
        body("more events than a request may hold", JSON, format!("[{}1]", "1,".repeat(100_000)), &[413], "100000"),
        body("more lines than a request may hold", LINES, "1\n".repeat(100_001), &[413], "100000"),
        body("newlines", LINES, "\n".repeat(1 << 20), &[200], "\"accepted\":0"),
    ]
}

/// Bodies that are not what they say.
fn bodies() -> Vec<Row> {
    const GZIP: &str = "content-encoding: gzip\r\n";
    const ZSTD: &str = "content-encoding: zstd\r\n";
    let bomb = gzip(&vec![b' '; 64 << 20]);
    let whole = gzip(br#"{"userId":"u"}"#);
    let zstd_bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 3).unwrap();
    // A frame header that asks for a window of 2 GiB: magic, descriptor without single segment, exponent 21.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let frames = |name, sent: Vec<u8>| Row { path: "/ingest/web?format=frames", ..body(name, "", sent, &[400], "frame") };
    vec![
        body("a gzip cut short", GZIP, &whole[..whole.len() - 4], &[400], "cut short"),
        body("a gzip of nothing", GZIP, "", &[400], "cut short"),
        body("no gzip", GZIP, "{}", &[400], "gzip"),
        body("a gzip with a wrong checksum", GZIP, [&whole[..whole.len() - 8], &[0; 8]].concat(), &[400], "gzip"),
        body("a gzip bomb", GZIP, bomb.clone(), &[413], "16 MiB"),
        body("a gzip bomb in a gzip", "content-encoding: gzip, gzip\r\n", gzip(&bomb), &[413], "16 MiB"),
        body("three codings", "content-encoding: gzip, gzip, gzip\r\n", gzip(&bomb), &[415], "at most two"),
        body("a zstd bomb", ZSTD, zstd_bomb, &[413], "16 MiB"),
        body("a zstd with a giant window", ZSTD, window, &[400], "zstd"),
        body("no deflate", "content-encoding: deflate\r\n", vec![0xff; 1000], &[400], "deflate"),
        frames("a frame that lies upward", frame(u32::MAX, 0, b"x")),
        frames("a frame shorter than its key", frame(2, 100, b"x")),
        frames("a frame cut short", frame(100, 0, b"x")),
        frames("less than a frame's head", vec![0, 0, 0]),
        body("a partition key of bytes", "x-partition-key: \u{fffd}\r\n", r#"{"userId":"u"}"#, &[200], ""),
    ]
}

/// Requests that are not what they say.
fn requests() -> Vec<Row> {
    let event = r#"{"userId":"u"}"#;
    let good = String::from_utf8(head("content-length: 14\r\n", event)).unwrap();
    let long = |bytes: usize| format!("x-long: {}\r\n", "a".repeat(bytes));
    vec![
        bytes("a length below the body's", head("content-length: 5\r\n", event), &[200]),
        bytes("a length above the body's", head("content-length: 500\r\n", event), &[408]),
        bytes("a length above all bodies", head("content-length: 99999999999999\r\n", event), &[413]),
        bytes("a length beyond all numbers", head("content-length: 99999999999999999999999999\r\n", event), &[400]),
        bytes("a negative length", head("content-length: -1\r\n", event), &[400]),
        bytes("two lengths", head("content-length: 14\r\ncontent-length: 15\r\n", event), &[400]),
        bytes("a length and chunks", head("content-length: 14\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), &[200, 400]),
        bytes("a chunk without a size", head("transfer-encoding: chunked\r\n", "zz\r\nabc\r\n"), &[400]),
        bytes(
            "a chunk larger than all bodies",
            head("transfer-encoding: chunked\r\n", "7fffffffffffffff\r\n{}"),
            &[408, 413, 400],
        ),
        bytes("chunks without an end", head("transfer-encoding: chunked\r\n", "2\r\n{}\r\n"), &[408]),
        bytes("an unknown transfer coding", head("transfer-encoding: gzip\r\n", event), &[400, 501]),
        bytes("a head of a megabyte", head(&long(1 << 20), ""), &[431, 400, 0]),
        bytes("1,000 headers", head(&long(1).repeat(1000), ""), &[431, 400, 0]),
        bytes(
            "a target of a megabyte",
            format!("POST /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(1 << 20)),
            &[414, 431, 400, 0],
        ),
        bytes("a head without an end", "POST /ingest/web HTTP/1.1\r\nhost: loc", &[408, 0]),
        bytes("no HTTP", "\0\x01\x02\x03 hello\r\n\r\n", &[400, 0]),
        bytes("a TLS hello", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03".repeat(20), &[400, 0]),
        bytes("HTTP/2 that stops after its preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff", &[0]),
        bytes("a good request and garbage after it", good + "\0\0\0\0\r\n\r\n", &[200]),
    ]
}

/// A source that needs a key, one whose events are all left out, so that no disk decides how fast the bystander is.
fn sources(world: &World) -> Sources {
    let quiet = SourceConfig {
        partition_key_fallback: KeyFallback::Random,
        rules: RuleConfig { deny: vec!["/quiet".to_owned()], ..RuleConfig::default() },
        ..config("quiet")
    };
    let vendor = |kind: SourceKind| SourceConfig { kind, partition_key: Vec::new(), ..config(&format!("{kind:?}")) };
    let vendors = [SourceKind::Segment, SourceKind::Amplitude, SourceKind::MParticle, SourceKind::Kinesis];
    let vendors = vendors.into_iter().map(|kind| world.source(&vendor(kind)));
    Sources::new([world.source(&config("web")), world.source(&quiet)].into_iter().chain(vendors))
}

fn options() -> HttpOptions {
    HttpOptions {
        head_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        ..HttpOptions::default()
    }
}

/// What is wrong with an answer.
fn judge(row: &Row, answer: Option<&Answer>) -> Option<String> {
    let status = answer.map_or(0, |answer| answer.status);
    let fault = if !row.answers.contains(&status) {
        format!("{status} instead of {:?}", row.answers)
    } else if !text(answer).contains(row.says) {
        format!("{status} should say {:?}", row.says)
    } else {
        return None;
    };
    Some(format!("{}: {fault}: {}", row.name, text(answer)))
}

fn text(answer: Option<&Answer>) -> String {
    answer.map_or(String::new(), |answer| String::from_utf8_lossy(&answer.body[..answer.body.len().min(2000)]).into_owned())
}

/// Sends a row once; what was answered first.
async fn attack(door: &Door, row: &Row) -> Option<Answer> {
    let bytes = match &row.sent {
        Sent::Body(body) => request(row.path, row.headers, body),
        Sent::Bytes(bytes) => bytes.clone(),
    };
    let mut client = door.connect().await;
    // The door may have enough of it before it has all of it.
    client.send(&bytes).await;
    client.answer().await
}

/// One family at a time: what the process takes is measured.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Runs the rows one after the other, each beside a bystander.
async fn run(rows: Vec<Row>) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::new();
    let door = Rc::new(Door::with(sources(&world), options()).await);
    let before = peak_bytes();
    let faults = Rc::new(RefCell::new(BTreeSet::new()));
    for row in rows {
        let row = Rc::new(row);
        let (answered, over) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(false)));
        let local = LocalSet::new();
        for _ in 0..ATTACKERS {
            let (door, row, answered, over) = (Rc::clone(&door), Rc::clone(&row), Rc::clone(&answered), Rc::clone(&over));
            let faults = Rc::clone(&faults);
            local.spawn_local(async move {
                loop {
                    let answer = attack(&door, &row).await;
                    faults.borrow_mut().extend(judge(&row, answer.as_ref()));
                    answered.set(answered.get() + 1);
                    if over.get() {
                        break;
                    }
                }
            });
        }
        let (watched, watching_over) = (Rc::clone(&answered), Rc::clone(&over));
        let (bystander, name) = (Rc::clone(&door), row.name);
        local.spawn_local(async move {
            for turn in 0..TURNS {
                let begun = watched.get();
                let answer = bystander.post("/ingest/quiet", "", "{\"quiet\":1}\n").await;
                assert_eq!(answer.left_out(), 1, "{name}: {answer:?}");
                let overtaken = watched.get() - begun;
                assert!(
                    overtaken <= ATTACKERS * OVERTAKEN_MAX,
                    "{name}: the bystander's request {turn} was overtaken by {overtaken} others"
                );
            }
            watching_over.set(true);
        });
        soon(local).await;
        assert!(answered.get() >= ATTACKERS, "{}: all were answered", row.name);
    }
    let faults = faults.take();
    assert!(faults.is_empty(), "{faults:#?}");
    let grown = peak_bytes() - before;
    assert!(grown <= GROWTH_MAX_BYTES, "the process grew by {} MiB", grown >> 20);
    Rc::into_inner(door).unwrap().end().await;
}

/// The most memory that this process had (VmHWM), bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn hostile_documents_get_a_clear_answer_and_take_nobodys_turn() {
    run(documents()).await;
}

#[tokio::test]
async fn hostile_bodies_get_a_clear_answer_and_take_nobodys_turn() {
    run(bodies()).await;
}

#[tokio::test]
async fn hostile_requests_get_a_clear_answer_and_take_nobodys_turn() {
    run(requests()).await;
}

#[tokio::test]
async fn hostile_requests_to_segments_paths_get_its_errors_and_take_nobodys_turn() {
    run(vendors::segment()).await;
}

#[tokio::test]
async fn hostile_requests_to_amplitudes_paths_get_its_errors_and_take_nobodys_turn() {
    run(vendors::amplitude()).await;
}

#[tokio::test]
async fn hostile_requests_to_mparticles_paths_get_its_errors_and_take_nobodys_turn() {
    run(vendors::mparticle()).await;
}

#[tokio::test]
async fn hostile_requests_to_the_kinesis_api_get_its_errors_and_take_nobodys_turn() {
    run(vendors::kinesis()).await;
}

#[tokio::test]
async fn hostile_cbor_to_the_kinesis_api_gets_its_errors_and_takes_nobodys_turn() {
    run(vendors::kinesis_cbor()).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one_in_their_order() {
    let world = World::new();
    let door = Door::open(sources(&world)).await;
    let mut client = door.connect().await;
    let mut all = Vec::new();
    for number in 0..200 {
        // Every other one is bad.
        let event = if number % 2 == 0 { format!("{{\"userId\":{number}}}") } else { "no json".to_owned() };
        all.extend(request("/ingest/web", RAW, event.as_bytes()));
    }
    let sending = async {
        let (mut rest, stream) = (&all[..], &client.stream);
        while !rest.is_empty() {
            stream.writable().await.unwrap();
            if let Ok(n) = stream.try_write(rest) {
                rest = &rest[n..];
            }
        }
    };
    soon(sending).await;
    for number in 0..200 {
        let answer = client.answer().await.expect("an answer for each");
        assert_eq!(answer.status, if number % 2 == 0 { 200 } else { 400 }, "{number}");
    }
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, (0..200).step_by(2).map(|number| number.to_string()).collect::<Vec<_>>());
    door.end().await;
}

#[tokio::test]
async fn connections_that_hardly_send_are_closed_and_meanwhile_others_are_served() {
    let world = World::new();
    let patient =
        HttpOptions { head_timeout: Duration::from_secs(1), body_timeout: Duration::from_secs(1), ..HttpOptions::default() };
    let door = Door::with(sources(&world), patient).await;
    let whole = request("/ingest/web", "", &[b' '; 100_000]);
    let mut slow = Vec::new();
    for at in 0..300 {
        let mut client = door.connect().await;
        // In the head, or in the body.
        let sent = if at % 2 == 0 { 20 } else { 200 };
        assert!(client.send(&whole[..sent]).await);
        slow.push((client, sent));
    }
    for turn in 0..50 {
        assert_eq!(door.post("/ingest/web", "", "{\"userId\":1}\n").await.accepted(), 1);
        // They go on, a byte at a time, until they are closed.
        for (client, sent) in &mut slow {
            if client.stream.try_write(&whole[*sent..*sent + 1]).is_ok() {
                *sent += 1;
            }
        }
        assert!(world.submitted() == turn + 1);
    }
    for (client, sent) in &mut slow {
        let answer = client.answer().await;
        // A head that is not whole gets no answer; a body that is not gets one.
        assert!(answer.is_none_or(|answer| answer.status == 408), "{sent}");
    }
    until("all are done", || world.submitted() == 50).await;
    door.end().await;
}
