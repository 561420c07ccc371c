//! Both doors without room, as clients see it: refusals by `spool.on_full`, quotas of sources, and the class of a receipt.
//!
//! Every test runs the real listeners over a real spool of a few segments, each commit a segment of its own.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use doors::{Stop, World, config, soon, until};
use forebay::config::{OnFull, SourceConfig, SyncClass};
use forebay::ingest::{Sources, http, unix};
use forebay::limits::INGEST_BYTES_MAX;
use forebay::metrics::Limit;
use forebay::spool::Policy;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// Room for three segments of one small event.
const THREE_SEGMENTS: u64 = 26_000;

/// Both doors, listening.
struct Doors {
    socket: PathBuf,
    http: SocketAddr,
    stop: Stop,
    serving: [JoinHandle<()>; 2],
}

impl Doors {
    async fn open(world: &World, sources: Sources) -> Self {
        let socket = world.dir.path().join("forebay.sock");
        let unix = unix::bind(&socket, unix::UnixOptions::default()).await.unwrap();
        let web = http::bind("127.0.0.1:0".parse().unwrap(), http::HttpOptions::default()).await.unwrap();
        let http = web.address().unwrap();
        let (stop, shutdown) = Stop::new();
        let serving = [tokio::spawn(unix.serve(sources.clone(), shutdown.clone())), tokio::spawn(web.serve(sources, shutdown))];
        Self { socket, http, stop, serving }
    }

    /// A greeted client of the socket, and the answer to its hello.
    async fn greet(&self, options: &str) -> (Client, String) {
        let mut client = Client(BufReader::new(UnixStream::connect(&self.socket).await.unwrap()));
        client.send(&format!("forebay/1 {options}\n")).await;
        let hello = client.line().await;
        assert!(hello.starts_with("ok "), "{hello}");
        (client, hello)
    }

    /// Status code, head in small letters, and body.
    async fn post(&self, path: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    async fn end(self) {
        self.stop.now();
        for serving in self.serving {
            soon(serving).await.unwrap();
        }
    }
}

/// A client of the socket.
struct Client(BufReader<UnixStream>);

impl Client {
    async fn send(&mut self, text: &str) {
        soon(self.0.get_mut().write_all(text.as_bytes())).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.0.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }

    /// Lines up to the `ack` of event `n`, without the acks.
    async fn until_ack(&mut self, n: u64) -> Vec<String> {
        let mut lines = Vec::new();
        let mut acked = 0;
        while acked < n {
            let line = self.line().await;
            match line.strip_prefix("ack ") {
                Some(number) => acked = number.parse().unwrap(),
                None => {
                    let number: u64 = line.strip_prefix("reject ").unwrap().split(' ').next().unwrap().parse().unwrap();
                    assert!(number > acked, "{line:?} after ack {acked}");
                    lines.push(line);
                }
            }
        }
        assert_eq!(acked, n);
        lines
    }
}

fn reject() -> Policy {
    Policy { on_full: OnFull::Reject, ..Policy::default() }
}

/// A spool of three segments that refuses, at work.
fn rejecting() -> World {
    let mut world = World::with_policy(THREE_SEGMENTS, 1, reject());
    world.go();
    world
}

/// Fills the spool over HTTP, event by event.
async fn fill(doors: &Doors, world: &World) -> u64 {
    for taken in 0.. {
        let (status, _, body) = doors.post("/ingest/web", "{\"userId\":1}").await;
        if status == 503 {
            assert!(world.metrics.full_by() == Some(Limit::MaxBytes), "{body}");
            return taken;
        }
        assert_eq!(status, 200, "{body}");
    }
    unreachable!("no spool takes everything")
}

fn lines(count: usize) -> String {
    "{\"userId\":1}\n".repeat(count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_spool_that_rejects_each_acknowledged_event_is_told_full_and_then_it_goes_on() {
    let world = rejecting();
    let doors = Doors::open(&world, world.web()).await;
    let (mut client, _) = doors.greet("ack=on").await;
    let taken = fill(&doors, &world).await;
    assert!(taken >= 2);
    let before = world.rejected("full");
    client.send(&lines(1_000)).await;
    let told = client.until_ack(1_000).await;
    assert_eq!(told.len(), 1_000);
    for (at, line) in told.iter().enumerate() {
        assert!(line.starts_with(&format!("reject {} full: the spool is full (spool.max_bytes)", at + 1)), "{line}");
    }
    assert_eq!(world.rejected("full"), before + 1_000);
    world.deliver_all();
    until("room", || world.metrics.full_by().is_none()).await;
    client.send(&lines(1)).await;
    assert_eq!(client.until_ack(1_001).await, Vec::<String>::new());
    assert_eq!(world.submitted(), taken + 1);
    doors.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_that_rejects_never_blocks_a_plain_client_and_counts_what_it_throws_away() {
    let world = rejecting();
    let doors = Doors::open(&world, world.web()).await;
    fill(&doors, &world).await;
    let (before, taken) = (world.rejected("full"), world.submitted());
    // More than the doors' memory and every buffer between can hold.
    let line = format!("{{\"userId\":1,\"pad\":\"{}\"}}\n", "x".repeat(4_000));
    let count = 2 * INGEST_BYTES_MAX / line.len();
    let mut plain = UnixStream::connect(&doors.socket).await.unwrap();
    for _ in 0..count {
        soon(plain.write_all(line.as_bytes())).await.unwrap();
    }
    plain.write_all(b"{\"userId\":\"without newline\"}").await.unwrap();
    plain.shutdown().await.unwrap();
    let mut back = Vec::new();
    soon(plain.read_to_end(&mut back)).await.unwrap();
    assert!(back.is_empty(), "a plain client is told nothing");
    assert_eq!(world.rejected("full"), before + count as u64 + 1);
    assert_eq!(world.submitted(), taken);
    doors.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_before_the_spool_was_found_full_is_told_event_by_event_beside_other_reasons() {
    // Nothing fits this one, which it finds out when it runs.
    let mut world = World::with_policy(1_000, 1, reject());
    let doors = Doors::open(&world, world.web()).await;
    let (mut client, _) = doors.greet("ack=on").await;
    let line = "{\"userId\":1}\n";
    client.send(&format!("{line}no json\n{line}{line}")).await;
    until("three are submitted", || world.submitted() == 3).await;
    let mut answering = Box::pin(doors.post("/ingest/web", line));
    tokio::select! {
        answer = &mut answering => panic!("too early: {answer:?}"),
        () = until("the request is submitted", || world.submitted() == 4) => {}
    }
    world.go();
    let told: Vec<String> = client.until_ack(4).await.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(told, ["reject 1 full", "reject 2 not_json", "reject 3 full", "reject 4 full"]);
    let (status, head, _) = answering.await;
    assert!(status == 503 && head.contains("retry-after: 1"), "{head}");
    assert_eq!((world.rejected("full"), world.rejected("not_json"), world.submitted()), (4, 1, 0));
    doors.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_is_answered_503_at_once_with_the_reason_and_the_events_are_counted() {
    let world = rejecting();
    let doors = Doors::open(&world, world.web()).await;
    fill(&doors, &world).await;
    let before = world.rejected("full");
    let (status, head, body) = doors.post("/ingest", &lines(7)).await;
    assert_eq!(status, 503, "{body}");
    assert!(head.contains("retry-after: 1") && !head.contains("forebay-sync"), "{head}");
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(told["error"].as_str().unwrap().starts_with("full: the spool is full (spool.max_bytes)"), "{body}");
    assert_eq!(world.rejected("full"), before + 7);
    world.deliver_all();
    until("room", || world.metrics.full_by().is_none()).await;
    assert_eq!(doors.post("/ingest", &lines(7)).await.0, 200);
    doors.end().await;
}

/// Two sources, of which `noisy` may have two segments' worth.
fn noisy_and_web(world: &World) -> Sources {
    let noisy = SourceConfig { spool_quota: Some(2_000), ..config("noisy") };
    Sources::new([world.source(&noisy), world.source(&config("web"))])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_at_its_quota_is_refused_and_the_others_are_not() {
    let mut world = World::with_policy(1 << 30, 1, reject());
    world.go();
    let doors = Doors::open(&world, noisy_and_web(&world)).await;
    let (mut noisy, _) = doors.greet("ack=on source=noisy").await;
    let (mut web, _) = doors.greet("ack=on source=web").await;
    let (mut sent, mut told) = (0, Vec::new());
    while told.is_empty() {
        sent += 1;
        noisy.send(&format!("{{\"userId\":1,\"pad\":\"{}\"}}\n", "x".repeat(500))).await;
        told = noisy.until_ack(sent).await;
        assert!(sent < 10, "no quota is kept");
    }
    assert!(told[0].starts_with(&format!("reject {sent} full: the source has filled its share of the spool")), "{told:?}");
    assert_eq!(doors.post("/ingest/noisy", &lines(1)).await.0, 503);
    web.send(&lines(50)).await;
    assert_eq!(web.until_ack(50).await, Vec::<String>::new());
    assert_eq!(doors.post("/ingest/web", &lines(1)).await.0, 200);
    assert_eq!(world.metrics.full_by(), None, "the spool itself is not full");
    world.deliver_all();
    noisy.send(&lines(1)).await;
    assert_eq!(noisy.until_ack(sent + 1).await, Vec::<String>::new(), "its room is back");
    doors.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_block_a_source_at_its_quota_waits_and_the_others_do_not() {
    let mut world = World::with_policy(1 << 30, 1, Policy::default());
    world.go();
    let doors = Doors::open(&world, noisy_and_web(&world)).await;
    let (mut noisy, _) = doors.greet("ack=on source=noisy").await;
    let (mut web, _) = doors.greet("ack=on source=web").await;
    let line = format!("{{\"userId\":1,\"pad\":\"{}\"}}\n", "x".repeat(500));
    let mut sent = 0;
    while doors.post("/ingest/noisy", &line).await.0 == 200 {
        sent += 1;
        assert!(sent < 10, "no quota is kept");
    }
    noisy.send(&line).await;
    web.send(&lines(50)).await;
    assert_eq!(web.until_ack(50).await, Vec::<String>::new());
    assert!(tokio::time::timeout(Duration::from_millis(50), noisy.line()).await.is_err(), "taken over its quota");
    world.deliver_all();
    assert_eq!(noisy.until_ack(1).await, Vec::<String>::new(), "it waited and nothing was lost");
    assert_eq!(world.rejected("full"), 0);
    doors.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_class_in_force_is_named_to_the_socket_and_in_every_good_http_answer() {
    for (sync, named) in
        [(SyncClass::Always, "always"), (SyncClass::Interval(Duration::from_millis(50)), "interval:50ms"), (SyncClass::Os, "os")]
    {
        let mut world = World::with_policy(1 << 30, 64 << 20, Policy { sync, ..Policy::default() });
        world.go();
        let doors = Doors::open(&world, world.web()).await;
        let (mut client, hello) = doors.greet("ack=on").await;
        assert!(hello.contains(&format!(" sync={named} ")), "{hello}");
        client.send(&lines(2)).await;
        assert_eq!(client.until_ack(2).await, Vec::<String>::new());
        let (status, head, _) = doors.post("/ingest", &lines(1)).await;
        assert_eq!(status, 200);
        assert!(head.contains(&format!("\r\nforebay-sync: {named}")), "{head}");
        let (status, head, _) = doors.post("/ingest", "{\"userId\":").await;
        assert!(status == 200 && head.contains("forebay-sync"), "rejected by the source, in a good answer: {head}");
        let (status, head, _) = doors.post("/elsewhere", "").await;
        assert!(status == 404 && !head.contains("forebay-sync"), "{head}");
        doors.end().await;
    }
}
