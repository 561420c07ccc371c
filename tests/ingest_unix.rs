//! The socket as clients see it: lines, frames, acknowledgements, bad input, backpressure, the end.
//!
//! Every test runs the real listener over a real spool.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;
#[path = "ingest_unix/many.rs"]
mod many;
#[path = "ingest_unix/send.rs"]
mod send;

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use doors::{PATIENCE, Stop, World, config, keyed, soon, until};
use forebay::config::{KeyFallback, SourceConfig};
use forebay::ingest::Sources;
use forebay::ingest::unix::{BindError, UnixOptions, bind};
use forebay::ingest::wire::write_frame;
use forebay::limits::{EVENT_BYTES_MAX, INGEST_BYTES_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// A listening door.
struct Door {
    path: PathBuf,
    stop: Stop,
    serving: JoinHandle<()>,
}

impl Door {
    async fn open(world: &World, sources: Sources) -> Self {
        Self::with(world, sources, UnixOptions::default()).await
    }

    async fn with(world: &World, sources: Sources, options: UnixOptions) -> Self {
        let path = world.dir.path().join("forebay.sock");
        let door = bind(&path, options).await.unwrap();
        let (stop, shutdown) = Stop::new();
        Self { path, stop, serving: tokio::spawn(door.serve(sources, shutdown)) }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// Connects and says hello, which must be answered `ok`.
    async fn greet(&self, options: &str) -> UnixStream {
        let mut client = self.connect().await;
        client.write_all(format!("forebay/1 {options}\n").as_bytes()).await.unwrap();
        let answer = line(&mut client).await;
        assert!(answer.starts_with("ok version=1 source="), "{answer}");
        client
    }

    /// Sends `bytes` as a whole connection; all that comes back.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut client = self.connect().await;
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        rest(&mut client).await
    }

    async fn end(self) {
        self.stop.now();
        soon(self.serving).await.unwrap();
    }
}

/// The next line, read byte by byte so that nothing after it is lost.
async fn line(client: &mut UnixStream) -> String {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        text.push(soon(client.read_u8()).await.unwrap());
    }
    text.pop();
    String::from_utf8(text).unwrap()
}

/// Everything until the agent closes. It may close without having read all that was sent: that is a reset.
async fn rest(client: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    match soon(client.read_to_end(&mut bytes)).await {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(bytes).unwrap(),
    }
}

/// `reject` lines cut to number and label, other lines as they are.
fn told(text: &str) -> Vec<String> {
    let cut = |line: &str| match line.starts_with("reject ") {
        true => line.split(':').next().unwrap().to_owned(),
        false => line.to_owned(),
    };
    text.lines().filter(|line| !line.starts_with("ok ")).map(cut).collect()
}

/// What the agent said last must be this; earlier lines may be earlier acknowledgements.
fn last_told(text: &str) -> String {
    told(text).pop().unwrap_or_default()
}

fn frame(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, key, data);
    out
}

#[tokio::test]
async fn plain_lines_become_durable_and_nothing_is_sent_back() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let answer = door.exchange(b"{\"userId\":\"u1\"}\n\n{\"userId\":7}\r\nno json\n{\"userId\":\"last\"}").await;
    assert_eq!(answer, "");
    until("three durable events", || world.events().len() == 3).await;
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["u1", "7", "last"]);
    assert_eq!(world.texts()[1], "{\"userId\":7}");
    assert_eq!(world.rejected("not_json"), 1);
    door.end().await;
}

#[tokio::test]
async fn a_first_line_that_only_looks_like_the_beginning_of_a_hello_is_an_event() {
    let world = World::new();
    let anything = SourceConfig { partition_key: Vec::new(), partition_key_fallback: KeyFallback::Random, ..config("raw") };
    let door = Door::open(&world, Sources::new([world.source(&anything)])).await;
    for bytes in [&b"forebay"[..], b"fore\n", b"forebay/2\n"] {
        assert_eq!(door.exchange(bytes).await, "");
    }
    until("three events", || world.events().len() == 3).await;
    let mut texts = world.texts();
    texts.sort();
    assert_eq!(texts, ["fore", "forebay", "forebay/2"]);
    door.end().await;
}

#[tokio::test]
async fn acks_count_every_event_and_rejects_come_before_the_ack_that_covers_them() {
    let world = World::new();
    let short = SourceConfig { max_event_bytes: 2000, ..config("web") };
    let door = Door::open(&world, Sources::new([world.source(&short)])).await;
    let long_key = format!("{{\"userId\":\"{}\"}}", "k".repeat(257));
    let input =
        ["forebay/1 ack=on", "{\"userId\":\"a\"}", "{", "", &"x".repeat(2001), &long_key, "{\"userId\":\"b\"}"].join("\n");
    let answer = door.exchange(input.as_bytes()).await;
    assert!(answer.starts_with("ok version=1 source=web sync=always format=lines ack=on "), "{answer}");
    let told = told(&answer);
    let rejects: Vec<&String> = told.iter().filter(|line| line.starts_with("reject")).collect();
    assert_eq!(rejects, ["reject 2 not_json", "reject 3 too_large", "reject 4 key_too_long"]);
    for reject in rejects {
        let number: u64 = reject.split(' ').nth(1).unwrap().parse().unwrap();
        let at = told.iter().position(|line| line == reject).unwrap();
        let earlier = told[..at].iter().filter_map(|line| line.strip_prefix("ack ")?.parse::<u64>().ok());
        assert!(earlier.max().unwrap_or(0) < number, "{told:?}");
    }
    assert_eq!(told.last().unwrap(), "ack 5");
    assert_eq!(world.events().len(), 2);
    for reason in ["not_json", "too_large", "key_too_long"] {
        assert_eq!(world.rejected(reason), 1);
    }
    door.end().await;
}

#[tokio::test]
async fn no_ack_leaves_before_the_spool_has_synced() {
    let mut world = World::stalled();
    let door = Door::open(&world, world.web()).await;
    let mut client = door.greet("ack=on").await;
    client.write_all(b"{\"userId\":\"a\"}\n{\"userId\":\"b\"}\n").await.unwrap();
    until("both are submitted", || world.submitted() == 2).await;
    let early = client.try_read(&mut [0; 16]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "RECEIPT-AFTER-SYNC");
    world.go();
    let mut last = String::new();
    while last != "ack 2" {
        last = line(&mut client).await;
        assert!(last.starts_with("ack "));
    }
    assert_eq!(world.events().len(), 2);
    door.end().await;
}

#[tokio::test]
async fn frames_bring_their_own_keys_and_any_bytes() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let mut input = b"forebay/1 format=frames ack=on\n".to_vec();
    input.extend(frame("schlüssel".as_bytes(), b"any\nbytes\xff"));
    input.extend(frame(b"", b"{\"userId\":\"u\"}"));
    input.extend(frame(b"", b"not json"));
    input.extend(frame(b"bad\xffkey", b"x"));
    input.extend(frame("ä".repeat(257).as_bytes(), b"x"));
    input.extend(frame("ä".repeat(256).as_bytes(), b"x"));
    input.extend(frame(b"k", &vec![b'x'; EVENT_BYTES_MAX + 1]));
    input.extend(frame(b"k", &vec![b'x'; EVENT_BYTES_MAX]));
    input.extend(&frame(b"cut", b"short")[..8]);
    // Written and read at once: the input is larger than a socket's buffer.
    let mut client = door.connect().await;
    let (mut read, mut write) = client.split();
    let mut answer = String::new();
    let (written, heard) = soon(async {
        tokio::join!(
            async {
                write.write_all(&input).await?;
                write.shutdown().await
            },
            read.read_to_string(&mut answer)
        )
    })
    .await;
    written.unwrap();
    heard.unwrap();
    let told = told(&answer);
    let rejects: Vec<&String> = told.iter().filter(|line| line.starts_with("reject")).collect();
    let expected =
        ["reject 3 not_json", "reject 4 key_not_utf8", "reject 5 key_too_long", "reject 7 too_large", "reject 9 bad_frame"];
    assert_eq!(rejects, expected);
    assert_eq!(told.last().unwrap(), "ack 9");
    let events = world.events();
    let keys: Vec<&str> = events.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["schlüssel", "u", &"ä".repeat(256), "k"]);
    assert_eq!(events[0].1, b"any\nbytes\xff");
    assert_eq!(events[3].1.len(), EVENT_BYTES_MAX);
    door.end().await;
}

#[tokio::test]
async fn a_frame_whose_length_lies_is_an_error_and_what_came_before_is_kept() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    for lie in [&[0, 0, 0, 1, 0, 0][..], &[0, 0, 0, 6, 0, 9, 1, 2, 3, 4], &[0xff; 6]] {
        let before = world.events().len();
        let mut client = door.greet("format=frames ack=on").await;
        client.write_all(&[&frame(b"k", b"good")[..], lie, &frame(b"k", b"unreadable")].concat()).await.unwrap();
        let answer = rest(&mut client).await;
        let told = told(&answer);
        assert_eq!(told[told.len() - 3..told.len() - 1], ["reject 2 bad_frame", "ack 2"], "{told:?}");
        assert!(told.last().unwrap().starts_with("error event 2: "), "{told:?}");
        assert_eq!(world.events().len(), before + 1);
    }
    door.end().await;
}

#[tokio::test]
async fn a_hello_that_is_not_understood_is_answered_with_the_reason() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    for (hello, part) in [
        ("forebay/1 acks=on", "unknown option"),
        ("forebay/1 ack=maybe", "ack must be on or off"),
        ("forebay/1 format=json", "format must be lines or frames"),
        ("forebay/1 ack=on ack=off", "ack is given twice"),
        ("forebay/10", "unknown version"),
        ("forebay/1 source=nope", "known are: web"),
        (&format!("forebay/1 key={}", "x".repeat(5000)), "longer than"),
    ] {
        let mut client = door.connect().await;
        // The refused client may find the connection closed while it still writes.
        client.write_all(format!("{hello}\n").as_bytes()).await.unwrap();
        let answer = line(&mut client).await;
        assert!(answer.starts_with("error ") && answer.contains(part), "{hello}: {answer}");
    }
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn a_hello_may_end_with_the_stream_and_come_in_pieces() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    assert!(door.exchange(b"forebay/1 ack=on").await.starts_with("ok "));
    let mut client = door.connect().await;
    for piece in ["for", "ebay/1 ac", "k=on\n{\"userId\"", ":1}\n"] {
        client.write_all(piece.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(line(&mut client).await.starts_with("ok "));
    assert_eq!(line(&mut client).await, "ack 1");
    door.end().await;
}

#[tokio::test]
async fn a_source_with_keys_opens_to_its_key_only() {
    let world = World::new();
    let sources = Sources::new([world.source(&keyed("web", "k1")), world.source(&keyed("app", "k2"))]);
    let door = Door::open(&world, sources).await;
    for (hello, answer) in [
        ("forebay/1 source=web key=k1\n", "ok version=1 source=web"),
        ("forebay/1 key=k2\n", "ok version=1 source=app"),
        ("forebay/1 source=web\n", "error the source wants a write key"),
        ("forebay/1 source=web key=k2\n", "error unknown key"),
        ("forebay/1 key=k3\n", "error unknown key"),
        ("forebay/1\n", "error no source is named, and there are several; name one of: web, app"),
    ] {
        let told = door.exchange(hello.as_bytes()).await;
        assert!(told.starts_with(answer), "{hello}: {told}");
    }
    // A plain client cannot be told, so it is closed.
    let mut client = door.connect().await;
    client.write_all(b"{\"userId\":1}\n").await.unwrap();
    assert!(matches!(
        soon(client.read_u8()).await.unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
    ));
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn users_that_are_not_listed_may_not_connect() {
    let world = World::new();
    let own = rustix::process::geteuid().as_raw();
    for (allowed, answered) in [(vec![own], true), (vec![own + 1], false)] {
        let options = UnixOptions { allowed_uids: allowed, ..UnixOptions::default() };
        let door = Door::with(&world, world.web(), options).await;
        let mut client = door.connect().await;
        // A refused client may be closed before it has written.
        let written = client.write_all(b"forebay/1\n").await.is_ok();
        let answer = if written { soon(client.read_u8()).await.ok() } else { None };
        assert_eq!(answer.is_some(), answered);
        door.end().await;
    }
}

#[tokio::test]
async fn binding_follows_the_rules_of_the_path() {
    let world = World::new();
    let dir = world.dir.path();
    let at = |name: &str| dir.join(name);
    // A stale socket: bound once, and nobody listens any more.
    let stale = at("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(std::fs::symlink_metadata(&stale).unwrap().file_type().is_socket());
    let door = bind(&stale, UnixOptions::default()).await.unwrap();
    assert_eq!(std::fs::metadata(&stale).unwrap().permissions().mode() & 0o777, 0o660);
    // A living one: the second agent is told who has it.
    let error = bind(&stale, UnixOptions::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BindError::InUse { pid: Some(pid), .. } if pid == std::process::id() as i32), "{text}");
    assert!(text.contains("stale.sock") && text.contains("listen.socket"), "{text}");
    drop(door);
    // Something else is never removed.
    let precious = doors::file(&world, "precious", b"data");
    let error = bind(&precious, UnixOptions::default()).await.unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read(&precious).unwrap(), b"data");
    // No directory.
    let error = bind(&at("missing/forebay.sock"), UnixOptions::default()).await.unwrap_err();
    assert!(matches!(error, BindError::NoDirectory { .. }) && error.to_string().contains("missing does not exist"), "{error}");
    // Too long a name.
    let long = at(&"x".repeat(200));
    assert!(matches!(bind(&long, UnixOptions::default()).await.unwrap_err(), BindError::Io { .. }));
}

#[tokio::test]
async fn the_socket_file_goes_with_its_agent_but_a_successors_stays() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let path = door.path.clone();
    door.end().await;
    assert!(!path.exists());
    let door = Door::open(&world, world.web()).await;
    std::fs::remove_file(&path).unwrap();
    let successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
    door.end().await;
    assert!(path.exists());
    drop(successor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_shutdown_a_client_gets_its_last_ack_and_then_bye() {
    let mut world = World::stalled();
    let door = Door::open(&world, world.web()).await;
    let mut client = door.greet("ack=on").await;
    client.write_all(b"{\"userId\":1}\n{\"userId\":2}\n").await.unwrap();
    until("both are submitted", || world.submitted() == 2).await;
    door.stop.now();
    world.go();
    let answer = rest(&mut client).await;
    assert!(answer.ends_with("ack 2\nbye\n"), "{answer}");
    soon(door.serving).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_shutdown_what_a_plain_client_has_written_is_still_taken() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let hold = doors::exhaust(&world.handle);
    let mut client = door.connect().await;
    let lines: String = (0..1_000).map(|number| format!("{{\"userId\":{number}}}\n")).collect();
    soon(client.write_all(lines.as_bytes())).await.unwrap();
    assert_eq!(world.submitted(), 0);
    door.stop.now();
    drop(hold);
    soon(door.serving).await.unwrap();
    until("all events", || world.events().len() == 1_000).await;
}

#[tokio::test]
async fn a_closed_spool_ends_connections_with_bye() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let mut client = door.greet("ack=on").await;
    world.handle.close();
    client.write_all(b"{\"userId\":1}\n").await.unwrap();
    assert_eq!(rest(&mut client).await, "bye\n");
    door.end().await;
}
