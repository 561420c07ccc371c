//! HTTP as clients see it: bodies, codings, keys, refusals, overload, the end.
//!
//! Every test runs the real listener over a real spool. Requests go through hyper's client, or byte by byte
//! where the form on the wire is what is tested.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use doors::{Door, World, config, keyed, soon, until};
use forebay::config::SourceConfig;
use forebay::ingest::Sources;
use forebay::ingest::http::{HttpOptions, bind};
use forebay::limits::{EVENT_BYTES_CEILING, EVENT_BYTES_MAX, INGEST_BYTES_MAX};
use http_body_util::Full;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    json: Value,
}

impl Answer {
    fn error(&self) -> &str {
        self.json["error"].as_str().unwrap_or_default()
    }
}

impl Door {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let (status, headers, body) = self.exchange(method, path, headers, body).await;
        let json = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Answer { status, headers, json }
    }

    async fn post(&self, path: &str, kind: &str, body: impl Into<Bytes>) -> Answer {
        self.send("POST", path, &[("content-type", kind)], body).await
    }

    /// Sends bytes as they are; everything that comes back until the agent closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        // Closing a connection whose request was not read whole is a reset; what was answered comes before it.
        if let Err(error) = soon(stream.read_to_end(&mut text)).await {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        String::from_utf8(text).unwrap()
    }
}

const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";

#[tokio::test]
async fn a_good_answer_counts_what_is_durable_and_lists_what_was_rejected() {
    let world = World::new();
    let short = SourceConfig { max_event_bytes: 100, ..config("web") };
    let door = Door::open(Sources::new([world.source(&short)])).await;
    let body = format!("{{\"userId\":\"a\"}}\r\n\nno json\n{}\n{{\"userId\":\"b\"}}", "x".repeat(101));
    let answer = door.post("/ingest", NDJSON, body).await;
    assert_eq!((answer.status, &answer.json["accepted"]), (200, &json!(2)));
    let rejected: Vec<(u64, String)> = answer.json["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["index"].as_u64().unwrap(), entry["reason"].as_str().unwrap().split(':').next().unwrap().to_owned()))
        .collect();
    assert_eq!(rejected, [(1, "not_json".to_owned()), (2, "too_large".to_owned())]);
    // The answer is there, so the events are.
    let events = world.events();
    let keys: Vec<&str> = events.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!((world.submitted(), world.rejected("not_json"), world.rejected("too_large")), (2, 1, 1));
    door.end().await;
}

#[tokio::test]
async fn an_array_one_object_and_raw_bytes_are_taken_as_they_were_sent() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let array = door.post("/ingest/web", JSON, r#" [ {"userId" : 1.0} , {"userId":"\u00e4"} ] "#).await;
    assert_eq!((array.status, array.json), (200, json!({"accepted": 2, "rejected": []})));
    assert_eq!(door.post("/ingest/", JSON, "{\n\"userId\":3}\n").await.json, json!({"accepted": 1, "rejected": []}));
    let keyed = [("content-type", "application/octet-stream"), ("x-partition-key", "k")];
    assert_eq!(door.send("POST", "/ingest", &keyed, &b"\xff\0\n"[..]).await.status, 200);
    // Without a type, lines or an array.
    assert_eq!(door.send("POST", "/ingest", &[], "{\"userId\":5}\n{\"userId\":6}\n").await.json["accepted"], 2);
    assert_eq!(door.send("POST", "/ingest", &[], "[{\"userId\":7}]").await.json["accepted"], 1);
    assert_eq!(door.post("/ingest", JSON, "[]").await.json, json!({"accepted": 0, "rejected": []}));
    let events = world.events();
    let expected: [(&str, &[u8]); 7] = [
        ("1.0", b"{\"userId\" : 1.0}"),
        ("ä", b"{\"userId\":\"\\u00e4\"}"),
        ("3", b"{\n\"userId\":3}"),
        ("k", b"\xff\0\n"),
        ("5", b"{\"userId\":5}"),
        ("6", b"{\"userId\":6}"),
        ("7", b"{\"userId\":7}"),
    ];
    assert_eq!(events.iter().map(|(key, data)| (key.as_str(), &data[..])).collect::<Vec<_>>(), expected);
    door.end().await;
}

#[tokio::test]
async fn a_partition_key_header_is_the_key_of_every_event() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let headers = [("content-type", NDJSON), ("x-partition-key", "all")];
    assert_eq!(door.send("POST", "/ingest", &headers, "{\"userId\":1}\nno json\n").await.json["accepted"], 2);
    assert!(world.events().iter().all(|(key, _)| key == "all"));
    for (key, reason) in [("", "empty_key"), (&*"k".repeat(257), "key_too_long")] {
        let answer = door.send("POST", "/ingest", &[("x-partition-key", key)], "{}").await;
        assert_eq!(answer.status, 400);
        assert!(answer.error().contains(reason), "{answer:?}");
    }
    door.end().await;
}

#[tokio::test]
async fn encoded_bodies_are_decoded_within_the_limit() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let zlib = |data: &[u8]| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let text = b"{\"userId\":1}\n{\"userId\":2}\n";
    let bodies = [
        ("identity", text.to_vec()),
        ("gzip", gzip(text)),
        ("deflate", zlib(text)),
        ("zstd", zstd::encode_all(&text[..], 1).unwrap()),
        ("gzip, zstd", zstd::encode_all(&gzip(text)[..], 1).unwrap()),
    ];
    for (coding, body) in bodies {
        let answer = door.send("POST", "/ingest", &[("content-encoding", coding)], body).await;
        assert_eq!((answer.status, &answer.json["accepted"]), (200, &json!(2)), "{coding}: {answer:?}");
    }
    let durable = world.events().len();
    let bomb = door.send("POST", "/ingest", &[("content-encoding", "gzip")], gzip(&vec![b'\n'; (16 << 20) + 1])).await;
    assert_eq!(bomb.status, 413, "{bomb:?}");
    let damaged = door.send("POST", "/ingest", &[("content-encoding", "gzip")], &b"not gzip"[..]).await;
    assert_eq!(damaged.status, 400, "{damaged:?}");
    let unknown = door.send("POST", "/ingest", &[("content-encoding", "br")], &b"x"[..]).await;
    assert_eq!((unknown.status, unknown.headers["accept-encoding"].to_str().unwrap()), (415, "gzip, deflate, zstd"));
    assert_eq!(world.events().len(), durable);
    door.end().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_its_size_is_told_or_not() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let told = door.raw(b"POST /ingest HTTP/1.1\r\nhost: localhost\r\ncontent-length: 16777217\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(b"POST /ingest HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [&b"100000\r\n"[..], &vec![b'\n'; 1 << 20], b"\r\n"].concat();
    for _ in 0..17 {
        // The agent may answer and close while we still send.
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut start = [0; 12];
    soon(stream.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    door.end().await;
}

#[tokio::test]
async fn a_large_chunked_body_within_the_limits_is_taken_whole() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let line = format!("{{\"userId\":\"u\",\"text\":\"{}\"}}\n", "t".repeat(1000));
    let chunk = line.repeat(256);
    let mut body =
        b"POST /ingest HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        body.extend(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes());
    }
    body.extend(b"0\r\n\r\n");
    let answer = door.raw(&body).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("{\"accepted\":10240,\"rejected\":[]}"), "{answer}");
    assert_eq!(world.events().len(), 10_240);
    door.end().await;
}

#[tokio::test]
async fn a_bad_body_is_refused_with_the_index_and_nothing_of_it_is_accepted() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let answer = door.post("/ingest", JSON, "[{\"userId\":1},{\"userId\":2},{\"userId\":]").await;
    assert_eq!(answer.status, 400);
    assert!(answer.error().starts_with("event 2: "), "{answer:?}");
    assert!(!answer.error().contains("userId"));
    assert_eq!(door.post("/ingest", JSON, "{\"userId\":1").await.status, 400);
    assert_eq!(door.post("/ingest", JSON, "\"text\"").await.status, 400);
    assert_eq!(door.post("/ingest", "text/plain", "{}").await.status, 415);
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn an_only_event_that_is_rejected_is_an_error() {
    let world = World::new();
    let strict = SourceConfig { partition_key_fallback: forebay::config::KeyFallback::Reject, ..config("web") };
    let door = Door::open(Sources::new([world.source(&strict)])).await;
    let answer = door.post("/ingest", JSON, "{\"other\":1}").await;
    assert_eq!(answer.status, 400);
    assert!(answer.error().starts_with("no_key: "), "{answer:?}");
    let large = vec![b'x'; EVENT_BYTES_MAX + 1];
    assert_eq!(door.post("/ingest", "application/octet-stream", large).await.status, 413);
    let listed = door.post("/ingest", JSON, "[{\"other\":1}]").await;
    assert_eq!((listed.status, &listed.json["accepted"]), (200, &json!(0)));
    assert_eq!((world.rejected("no_key"), world.rejected("too_large")), (2, 1));
    door.end().await;
}

#[tokio::test]
async fn an_event_of_10_mib_is_taken_once_its_stream_is_known_to_take_it_and_its_memory_is_admitted() {
    let mut world = World::stalled();
    let open = SourceConfig { max_event_bytes: EVENT_BYTES_CEILING, ..config("web") };
    let door = Door::open(Sources::new([world.source(&open)])).await;
    let mut large = b"{\"userId\":\"u\",\"x\":\"".to_vec();
    large.resize(EVENT_BYTES_CEILING - 2, b'x');
    large.extend_from_slice(b"\"}");
    let refused = door.post("/ingest", JSON, large.clone()).await;
    assert_eq!(refused.status, 413, "{refused:?}");
    assert!(refused.error().contains("MaxRecordSizeInKiB"), "{refused:?}");
    world.metrics.set_record_bytes_max(10 << 20);
    let lines = [&b"{\"userId\":\"first\"}\n"[..], &large, b"\n{\"userId\":\"last\"}\n"].concat();
    let taken = async {
        until("three events wait for the disk", || world.handle.gathered() == 3).await;
        // What is held for them is what they take: so little is left that this cannot be had.
        let left = INGEST_BYTES_MAX - EVENT_BYTES_CEILING;
        let held: Vec<_> = (0..left >> 20).map(|_| world.handle.try_admit(1 << 20)).collect::<Result<_, _>>().unwrap();
        assert!(world.handle.try_admit(1 << 20).is_err(), "the event's memory was admitted");
        drop(held);
        world.go();
    };
    let (answer, ()) = tokio::join!(door.post("/ingest", "application/x-ndjson", lines), taken);
    assert_eq!((answer.status, &answer.json["accepted"]), (200, &json!(3)), "{answer:?}");
    let lengths: Vec<usize> = world.events().iter().map(|(_, data)| data.len()).collect();
    assert_eq!(lengths, [18, EVENT_BYTES_CEILING, 17]);
    assert_eq!(world.rejected("too_large"), 1);
    door.end().await;
}

#[tokio::test]
async fn sources_are_chosen_by_path_or_by_key() {
    let world = World::new();
    let sources = [keyed("web", "k1"), keyed("app", "k2"), config("open")].map(|config| world.source(&config));
    let door = Door::open(Sources::new(sources)).await;
    let basic = format!("Basic {}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "k1:"));
    for (path, header, status, part) in [
        ("/ingest/web", ("authorization", "Bearer k1"), 200, ""),
        ("/ingest/web", ("authorization", basic.as_str()), 200, ""),
        ("/ingest/app", ("x-api-key", "k2"), 200, ""),
        ("/ingest", ("x-api-key", "k2"), 200, ""),
        ("/ingest/open", ("x-other", ""), 200, ""),
        ("/ingest/open", ("x-api-key", "anything"), 200, ""),
        ("/ingest/web", ("x-api-key", "k2"), 401, "unknown key"),
        ("/ingest/web", ("x-other", ""), 401, "write key"),
        ("/ingest", ("x-api-key", "k3"), 401, "unknown key"),
        ("/ingest", ("x-other", ""), 404, "web, app, open"),
        ("/ingest/nope", ("x-other", ""), 404, "web, app, open"),
    ] {
        let answer = door.send("POST", path, &[header], "{\"userId\":1}").await;
        assert_eq!(answer.status, status, "{path} {header:?}: {answer:?}");
        assert!(answer.error().contains(part), "{path} {header:?}: {answer:?}");
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
    }
    assert_eq!(world.events().len(), 6);
    door.end().await;
}

#[tokio::test]
async fn other_methods_and_paths_are_told_what_there_is() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let get = door.send("GET", "/ingest", &[], "").await;
    assert_eq!((get.status, get.headers["allow"].to_str().unwrap()), (405, "POST"));
    for path in ["/", "/ingestion", "/metrics"] {
        let answer = door.send("POST", path, &[], "{}").await;
        assert_eq!(answer.status, 404);
        assert!(answer.error().contains("/ingest"), "{answer:?}");
    }
    door.end().await;
}

#[tokio::test]
async fn foreign_hosts_and_web_pages_are_refused_unless_listed() {
    let world = World::new();
    let options = HttpOptions {
        allowed_hosts: vec!["agent.internal".to_owned()],
        allowed_origins: vec!["https://app.example.com".to_owned()],
        ..HttpOptions::default()
    };
    let door = Door::with(world.web(), options).await;
    for (host, status) in [("localhost", 200), ("agent.internal:4710", 200), ("evil.example", 421)] {
        assert_eq!(door.send("POST", "/ingest", &[("host", host)], "{\"userId\":1}").await.status, status, "{host}");
    }
    let no_host = door.raw(b"POST /ingest HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}").await;
    assert!(no_host.contains(" 421 "), "{no_host}");
    let listed = [("origin", "https://app.example.com")];
    let answer = door.send("POST", "/ingest", &listed, "{\"userId\":1}").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example.com");
    let preflight = door.send("OPTIONS", "/ingest", &listed, "").await;
    assert_eq!(
        (preflight.status, &preflight.headers["access-control-allow-methods"]),
        (204, &"GET, HEAD, POST".parse().unwrap())
    );
    for origin in ["https://evil.example", "null"] {
        for method in ["POST", "OPTIONS"] {
            let answer = door.send(method, "/ingest", &[("origin", origin)], "{\"userId\":1}").await;
            assert_eq!(answer.status, 403, "{answer:?}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
    }
    assert_eq!(world.submitted(), 3);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_leaves_before_the_spool_has_synced() {
    let mut world = World::stalled();
    let door = Door::open(world.web()).await;
    let mut answering = Box::pin(door.post("/ingest", NDJSON, "{\"userId\":1}\n"));
    tokio::select! {
        answer = &mut answering => panic!("too early: {answer:?}"),
        () = until("it is submitted", || world.submitted() == 1) => {}
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut answering).await.is_err(), "RECEIPT-AFTER-SYNC");
    world.go();
    assert_eq!(answering.await.status, 200);
    assert_eq!(world.events().len(), 1);
    door.end().await;
}

#[tokio::test]
async fn overload_is_answered_503_with_a_time_to_come_back() {
    let world = World::new();
    let options = HttpOptions { admit_timeout: Duration::from_millis(50), ..HttpOptions::default() };
    let door = Door::with(world.web(), options).await;
    let hold = doors::exhaust(&world.handle);
    let answer = door.post("/ingest", NDJSON, "{\"userId\":1}\n").await;
    assert_eq!((answer.status, answer.headers["retry-after"].to_str().unwrap()), (503, "1"), "{answer:?}");
    assert_eq!(world.submitted(), 0);
    drop(hold);
    assert_eq!(door.post("/ingest", NDJSON, "{\"userId\":1}\n").await.status, 200);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_cannot_sync_is_answered_503() {
    let mut world = World::stalled();
    let door = Door::open(world.web()).await;
    let mut answering = Box::pin(door.post("/ingest", NDJSON, "{\"userId\":1}\n"));
    tokio::select! {
        answer = &mut answering => panic!("too early: {answer:?}"),
        () = until("it is submitted", || world.submitted() == 1) => {}
    }
    world.go_and_fail();
    let answer = answering.await;
    assert_eq!(answer.status, 503, "{answer:?}");
    // It is closed now.
    assert_eq!(door.post("/ingest", NDJSON, "{\"userId\":1}\n").await.status, 503);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_shutdown_a_request_under_way_is_finished_and_its_connection_closed() {
    let mut world = World::stalled();
    let door = Door::open(world.web()).await;
    let request = b"POST /ingest HTTP/1.1\r\nhost: localhost\r\ncontent-length: 13\r\n\r\n{\"userId\":1}\n";
    let mut answering = Box::pin(door.raw(request));
    tokio::select! {
        answer = &mut answering => panic!("too early: {answer:?}"),
        () = until("it is submitted", || world.submitted() == 1) => {}
    }
    door.stop.now();
    world.go();
    let answer = answering.await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    soon(door.serving).await.unwrap();
    assert!(TcpStream::connect(door.address).await.is_err());
}

#[tokio::test]
async fn http_2_without_tls_carries_many_requests_on_one_connection() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let stream = TcpStream::connect(door.address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driving = tokio::spawn(connection);
    let requests: Vec<JoinHandle<u16>> = (0..50)
        .map(|number| {
            let mut sender = sender.clone();
            let request = Request::post(format!("http://{}/ingest", door.address))
                .body(Full::new(Bytes::from(format!("{{\"userId\":{number}}}\n"))))
                .unwrap();
            tokio::spawn(async move { sender.send_request(request).await.unwrap().status().as_u16() })
        })
        .collect();
    for request in requests {
        assert_eq!(soon(request).await.unwrap(), 200);
    }
    assert_eq!(world.events().len(), 50);
    drop(sender);
    driving.abort();
    door.end().await;
}

#[tokio::test]
async fn silent_and_slow_clients_are_closed() {
    let world = World::new();
    let options = HttpOptions {
        head_timeout: Duration::from_millis(50),
        body_timeout: Duration::from_millis(50),
        ..HttpOptions::default()
    };
    let door = Door::with(world.web(), options).await;
    assert_eq!(door.raw(b"").await, "");
    let head = door.raw(b"POST /ingest HTTP/1.1\r\nhost: loc").await;
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408 "), "{head}");
    let body = door.raw(b"POST /ingest HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{").await;
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_its_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = bind(address, HttpOptions::default()).await.unwrap_err().to_string();
    assert!(text.contains(&address.to_string()) && text.contains("listen.http"), "{text}");
}
