//! The rules of a source as clients and the spool see them: keys, filters, added fields, copies, encoding; and `?format=`.
//!
//! Every test runs the real listeners over a real spool; the last one the real binary, which is killed.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;
#[path = "common/raw_http.rs"]
mod raw_http;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use doors::{Door, PATIENCE, Stop, World, config, soon, until};
use forebay::config::{DataEncoding, KeyFallback, OnFull, RuleConfig, SourceConfig};
use forebay::host::Host;
use forebay::ingest::{Made, Reject, Source, Sources, unix};
use forebay::metrics::{Limit, SourceUsage};
use forebay::spool::Policy;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

const LINES: &str = "content-type: application/x-ndjson\r\n";

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// `web`, keyed by `/userId` or at random, with rules.
fn ruled(rules: RuleConfig) -> SourceConfig {
    SourceConfig { partition_key_fallback: KeyFallback::Random, rules, ..config("web") }
}

/// The same that keeps `/id` for ten minutes.
fn deduped() -> SourceConfig {
    ruled(RuleConfig { dedupe: Duration::from_secs(600), dedupe_id: Some("/id".to_owned()), ..RuleConfig::default() })
}

fn usage(world: &World) -> Arc<SourceUsage> {
    Arc::clone(&world.metrics.sources.lock().unwrap()[0])
}

fn filtered(world: &World) -> u64 {
    usage(world).filtered.load(Ordering::Relaxed)
}

fn deduplicated(world: &World) -> u64 {
    usage(world).deduplicated.load(Ordering::Relaxed)
}

fn accepted(world: &World) -> u64 {
    world.metrics.account.lock().unwrap().accepted
}

/// What the source makes of events one by one: key and data of each that is stored.
fn stored(world: &World, source: &Source, events: &[&str]) -> Vec<Result<(), Reject>> {
    let mut batch = source.batch();
    let outcomes = events.iter().map(|event| source.encode(event.as_bytes(), &mut batch)).collect();
    let permit = world.handle.try_admit(1 << 20).unwrap();
    let sent = source.submit(batch, permit);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sent.durable()).unwrap();
    outcomes
}

#[test]
fn keys_are_made_of_several_pointers_or_drawn() {
    let world = World::new();
    let keys = texts(&["{/site}-{/userId}", "/userId", "random"]);
    let source = world.source(&SourceConfig { partition_key: keys, ..config("web") });
    let events = [r#"{"site":"a","userId":7}"#, r#"{"userId":"u"}"#, "no json", "{}"];
    assert!(stored(&world, &source, &events).iter().all(Result::is_ok));
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys[..2], ["a-7", "u"]);
    assert!(keys[2..].iter().all(|key| key.len() == 8 && key != "a-7"), "{keys:?}");
}

#[test]
fn a_template_without_all_its_pointers_falls_back_as_pointers_do() {
    let world = World::new();
    let source = world.source(&SourceConfig { partition_key: texts(&["{/site}-{/userId}"]), ..config("web") });
    let long = format!(r#"{{"site":"{}","userId":"u"}}"#, "s".repeat(256));
    let outcomes = stored(&world, &source, &[r#"{"site":"a"}"#, "no json", &long, r#"{"site":"a","userId":"b"}"#]);
    assert_eq!(outcomes, [Err(Reject::NoKey), Err(Reject::NotJson), Err(Reject::KeyTooLong), Ok(())]);
}

#[test]
fn what_a_door_made_is_judged_by_its_type_its_id_and_its_key() {
    let world = World::new();
    let rules = RuleConfig { deny: texts(&["Test"]), dedupe: Duration::from_secs(60), ..RuleConfig::default() };
    let source = world.source(&SourceConfig { partition_key: Vec::new(), ..ruled(rules) });
    let long = "k".repeat(300);
    let mut batch = source.batch();
    let base = Made { key: "k", hash: None, data: b"{}", event_type: None, id: None };
    for made in [
        Made { event_type: Some("Test"), ..base },
        Made { event_type: Some("Other"), id: Some("1"), ..base },
        Made { id: Some("1"), data: b"again", ..base },
        Made { key: &long, id: Some("2"), ..base },
    ] {
        source.encode_made(&made, &mut batch).unwrap();
    }
    let sent = source.submit(batch, world.handle.try_admit(1 << 20).unwrap());
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sent.durable()).unwrap();
    let events = world.events();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].0.as_str(), events[1].0.len()), ("k", 64), "SHA-256 in hexadecimal digits");
    assert_eq!((filtered(&world), deduplicated(&world), accepted(&world)), (1, 1, 2));
}

#[tokio::test]
async fn a_filtered_event_is_answered_as_success_never_stored_and_counted_by_itself() {
    let world = World::new();
    let rules =
        RuleConfig { allow: texts(&["/type=track", "/type=page"]), deny: texts(&["/properties/test"]), ..RuleConfig::default() };
    let door = Door::open(Sources::new([world.source(&ruled(rules))])).await;
    let body = r#"{"type":"track","n":1}
{"type":"identify","n":2}
{"type":"page","n":3,"properties":{"test":false}}
no json
{"type":"page","n":4,"properties":{"test":null}}
"#;
    let answer = door.post("/ingest", LINES, body).await;
    assert_eq!((answer.accepted(), answer.left_out(), answer.json()["rejected"].to_string().as_str()), (2, 3, "[]"));
    assert_eq!((filtered(&world), accepted(&world)), (3, 2));
    let all_out = door.post("/ingest", "content-type: application/json\r\n", r#"{"type":"identify"}"#).await;
    assert_eq!((all_out.accepted(), all_out.left_out()), (0, 1));
    let texts = world.texts();
    assert!(texts.len() == 2 && texts[0].contains("\"n\":1") && texts[1].contains("\"n\":4"), "{texts:?}");
    assert_eq!(world.rejected("not_json"), 0);
    door.end().await;
}

struct Socket {
    path: std::path::PathBuf,
    stop: Stop,
    serving: tokio::task::JoinHandle<()>,
}

impl Socket {
    async fn open(world: &World, sources: Sources) -> Self {
        let path = world.dir.path().join("forebay.sock");
        let door = unix::bind(&path, unix::UnixOptions::default()).await.unwrap();
        let (stop, shutdown) = Stop::new();
        Self { path, stop, serving: tokio::spawn(door.serve(sources, shutdown)) }
    }

    async fn greet(&self) -> BufReader<UnixStream> {
        let mut client = BufReader::new(UnixStream::connect(&self.path).await.unwrap());
        client.write_all(b"forebay/1 ack=on\n").await.unwrap();
        assert!(line(&mut client).await.starts_with("ok "));
        client
    }

    async fn end(self) {
        self.stop.now();
        soon(self.serving).await.unwrap();
    }
}

async fn line(client: &mut BufReader<UnixStream>) -> String {
    let mut text = String::new();
    soon(client.read_line(&mut text)).await.unwrap();
    text
}

/// Reads until `count` events are acknowledged.
async fn acknowledged(client: &mut BufReader<UnixStream>, count: u64) {
    loop {
        let text = line(client).await;
        let acked: u64 = text.trim_end().strip_prefix("ack ").unwrap_or_else(|| panic!("{text:?}")).parse().unwrap();
        assert!(acked <= count, "{text}");
        if acked == count {
            return;
        }
    }
}

#[tokio::test]
async fn the_socket_acknowledges_what_rules_leave_out() {
    let world = World::new();
    let rules = RuleConfig { deny: texts(&["/test"]), ..deduped().rules };
    let socket = Socket::open(&world, Sources::new([world.source(&ruled(rules))])).await;
    let mut client = socket.greet().await;
    // All that one read brings is filtered; then all are copies; then some of all kinds.
    for (lines, count) in [
        ("{\"test\":1}\n{\"test\":2}\n", 2),
        ("{\"id\":\"a\"}\n", 3),
        ("{\"id\":\"a\"}\n{\"id\":\"a\"}\n", 5),
        ("{\"id\":\"b\"}\n{\"test\":1}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n{}\n", 10),
    ] {
        client.write_all(lines.as_bytes()).await.unwrap();
        acknowledged(&mut client, count).await;
    }
    assert_eq!(world.texts(), [r#"{"id":"a"}"#, r#"{"id":"b"}"#, r#"{"id":"c"}"#, "{}"]);
    assert_eq!((filtered(&world), deduplicated(&world), accepted(&world)), (3, 3, 4));
    drop(client);
    socket.end().await;
}

#[tokio::test]
async fn fields_are_added_to_objects_and_data_can_be_base64() {
    let world = World::new();
    let add = texts(&["env=prod", "from={source}", "at={received_at}"]);
    let added = SourceConfig { name: "added".to_owned(), ..ruled(RuleConfig { add: add.clone(), ..RuleConfig::default() }) };
    let encoding = DataEncoding::Base64;
    let both = SourceConfig {
        name: "both".to_owned(),
        ..ruled(RuleConfig { add: texts(&["env=prod"]), data_encoding: encoding, ..RuleConfig::default() })
    };
    let door = Door::open(Sources::new([world.source(&added), world.source(&both)])).await;
    let body = "{\"userId\":\"u\"}\n{\"env\":\"dev\",\"at\":1,\"from\":null}\n[1]\nno json\n";
    assert_eq!(door.post("/ingest/added", LINES, body).await.accepted(), 4);
    assert_eq!(door.post("/ingest/both", LINES, "{\"n\":1}\nno json\n").await.accepted(), 2);
    let events = world.events();
    let at = serde_json::from_slice::<serde_json::Value>(&events[0].1).unwrap()["at"].as_str().unwrap().to_owned();
    assert_eq!(events[0], ("u".to_owned(), format!(r#"{{"userId":"u","env":"prod","from":"added","at":"{at}"}}"#).into_bytes()));
    assert!(at.ends_with('Z') && at.len() == 24, "{at}");
    assert_eq!(world.texts()[1..4], [r#"{"env":"dev","at":1,"from":null}"#, "[1]", "no json"]);
    let decoded: Vec<Vec<u8>> =
        events[4..].iter().map(|(_, data)| base64::Engine::decode(&base64::prelude::BASE64_STANDARD, data).unwrap()).collect();
    assert_eq!(decoded, [br#"{"n":1,"env":"prod"}"#.to_vec(), b"no json".to_vec()]);
    door.end().await;
}

#[test]
fn an_event_that_rules_make_too_large_is_refused() {
    let world = World::new();
    let rules = RuleConfig { add: texts(&["field=value"]), ..RuleConfig::default() };
    let source = world.source(&SourceConfig { max_event_bytes: 30, ..ruled(rules) });
    let outcomes = stored(&world, &source, &[r#"{"x":"12345678"}"#, r#"{"x":""}"#, "[\"123456789012345\"]"]);
    assert_eq!(outcomes, [Err(Reject::TooLarge), Ok(()), Ok(())]);
}

#[tokio::test]
async fn a_copy_is_answered_as_success_and_stored_once() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&deduped())])).await;
    let body = "{\"id\":\"a\",\"n\":1}\n{\"id\":\"a\",\"n\":2}\n{\"id\":\"b\"}\n{\"n\":3}\n{\"n\":3}\n";
    let first = door.post("/ingest", LINES, body).await;
    assert_eq!((first.accepted(), first.left_out()), (4, 1));
    let again = door.post("/ingest", LINES, body).await;
    assert_eq!((again.accepted(), again.left_out()), (2, 3), "what has no id is never a copy");
    assert_eq!((deduplicated(&world), accepted(&world)), (4, 6));
    assert_eq!(world.texts()[0], r#"{"id":"a","n":1}"#);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_an_event_under_way_waits_for_it_and_is_not_stored() {
    let mut world = World::stalled();
    let door = Door::open(Sources::new([world.source(&deduped())])).await;
    let mut first = Box::pin(door.post("/ingest", LINES, "{\"id\":\"a\"}\n"));
    tokio::select! {
        answer = &mut first => panic!("too early: {answer:?}"),
        () = until("it is submitted", || world.submitted() == 1) => {}
    }
    let mut copy = Box::pin(door.post("/ingest", LINES, "{\"id\":\"a\"}\n"));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut copy).await.is_err(), "SEEN-WHEN-DURABLE");
    assert_eq!(deduplicated(&world), 0);
    world.go();
    let (first, copy) = tokio::join!(first, copy);
    assert_eq!((first.accepted(), copy.accepted(), copy.left_out()), (1, 0, 1));
    assert_eq!((world.events().len(), deduplicated(&world)), (1, 1));
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_first_sending_fails_is_not_answered_as_success() {
    let mut world = World::stalled();
    let door = Door::open(Sources::new([world.source(&deduped())])).await;
    let mut first = Box::pin(door.post("/ingest", LINES, "{\"id\":\"a\"}\n"));
    tokio::select! {
        answer = &mut first => panic!("too early: {answer:?}"),
        () = until("it is submitted", || world.submitted() == 1) => {}
    }
    let copies = Box::pin(door.post("/ingest", LINES, "{\"id\":\"a\"}\n"));
    let failing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.go_and_fail();
    };
    let (first, copy, ()) = tokio::join!(first, copies, failing);
    assert_eq!((first.status, copy.status), (503, 503), "{copy:?}");
    assert_eq!(deduplicated(&world), 0);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_for_want_of_room_is_new_when_it_comes_again() {
    let policy = Policy { on_full: OnFull::Reject, ..Policy::default() };
    let mut world = World::with_policy(1 << 30, 64 << 20, policy);
    let source = world.source(&deduped());
    // Two batches in one group, the second with a copy, which the commit thread finds no room for.
    let mut sent = Vec::new();
    for _ in 0..2 {
        let mut batch = source.batch();
        source.encode(br#"{"id":"a"}"#, &mut batch).unwrap();
        sent.push(source.submit(batch, world.handle.try_admit(1 << 10).unwrap()));
    }
    world.metrics.set_full(Some(Limit::MaxBytes));
    world.go();
    for sent in sent {
        assert!(soon(sent.durable()).await.is_err());
    }
    assert_eq!((accepted(&world), deduplicated(&world), world.rejected("full")), (0, 0, 2), "the copy is refused with the first");
    world.metrics.set_full(None);
    let door = Door::open(Sources::new([Arc::clone(&source)])).await;
    assert_eq!(door.post("/ingest", LINES, "{\"id\":\"a\"}\n").await.accepted(), 1);
    door.end().await;
}

#[test]
fn a_batch_that_is_forgotten_forgets_its_ids() {
    let world = World::new();
    let source = world.source(&deduped());
    let mut forgotten = source.batch();
    source.encode(br#"{"id":"a"}"#, &mut forgotten).unwrap();
    let mut waiting = source.batch();
    source.encode(br#"{"id":"a"}"#, &mut waiting).unwrap();
    assert_eq!((waiting.count(), waiting.is_empty()), (0, false), "it waits for the other one");
    drop(forgotten);
    let sent = source.submit(waiting, world.handle.try_admit(1 << 10).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(sent.durable()).is_err(), "nothing of it is stored");
    assert_eq!(stored(&world, &source, &[r#"{"id":"a"}"#]), [Ok(())]);
    assert_eq!(world.events().len(), 1);
}

#[test]
fn ids_are_of_one_source_and_survive_the_process_where_they_are_kept() {
    let world = World::new();
    let host = Host::real();
    let dir = world.dir.path().join("spool");
    let source = |name: &str| {
        let config = SourceConfig { name: name.to_owned(), ..deduped() };
        Source::new(&config, world.handle.clone(), &host).unwrap().with_ids_in(&host, &dir)
    };
    let (web, app) = (source("web"), source("app"));
    let event = [r#"{"id":"a"}"#];
    stored(&world, &web, &event);
    stored(&world, &app, &event);
    assert_eq!(world.events().len(), 2);
    drop((web, app));
    stored(&world, &source("web"), &event);
    assert_eq!(world.events().len(), 2, "known from before");
    std::fs::remove_dir_all(dir.join("ids")).unwrap();
    stored(&world, &source("web"), &event);
    assert_eq!(world.events().len(), 3, "LOSABLE: losing it costs a duplicate");
}

#[tokio::test]
async fn the_query_names_lines_or_frames_whatever_the_type_says() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let mut frames = Vec::new();
    forebay::ingest::wire::write_frame(&mut frames, b"own key", b"any bytes \n\xff");
    forebay::ingest::wire::write_frame(&mut frames, b"", br#"{"userId":"u"}"#);
    forebay::ingest::wire::write_frame(&mut frames, b"", b"no json");
    let answer = door.post("/ingest?format=frames", "content-type: text/plain\r\n", &frames).await;
    assert_eq!((answer.accepted(), answer.json()["rejected"][0]["index"].as_u64()), (2, Some(2)), "{answer:?}");
    let keyed = door.post("/ingest/web?a=b&format=frames", "x-partition-key: all\r\n", &frames).await;
    assert_eq!(keyed.accepted(), 3, "a frame's own key goes before the request's");
    let lines = door.post("/ingest?format=lines", "content-type: text/plain\r\n", "[1]\n{\"userId\":1}\n").await;
    assert_eq!(lines.accepted(), 1);
    for (name, body) in [("cut", &frames[..frames.len() - 1]), ("lying", &[&frames[..], &[0xff; 8]].concat())] {
        let broken = door.post("/ingest?format=frames", "", body).await;
        let text = broken.json()["error"].as_str().unwrap().to_owned();
        assert!(broken.status == 400 && text.contains("event "), "{name}: {text}");
    }
    assert_eq!(door.post("/ingest?format=csv", "", "a,b").await.status, 400);
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["own key", "u", "own key", "all", "all", "1"]);
    door.end().await;
}

/// The real binary with a source that keeps ids, delivering nowhere.
struct Killed {
    child: Child,
    http: String,
}

impl Killed {
    fn start(dir: &Path) -> Self {
        // Ports that were free a moment ago.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (http, admin, nowhere) = (free(), free(), free());
        let text = format!(
            "[listen]\nsocket = \"\"\nhttp = \"{http}\"\nadmin = \"{admin}\"\n[spool]\ndir = {:?}\n[[stream]]\nname = \"clicks\"\n\
             region = \"us-east-1\"\nendpoint = \"http://{nowhere}\"\n[[source]]\nname = \"web\"\ndedupe = \"10m\"\ndedupe_id = \"/id\"\n",
            dir.join("spool")
        );
        std::fs::write(dir.join("forebay.toml"), text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["run", "--config"])
            .arg(dir.join("forebay.toml"))
            .env_clear()
            .envs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_EC2_METADATA_DISABLED", "true")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, http: http.to_string() }
    }

    /// Status line and body of the answer to a request, which is tried until somebody listens.
    fn post(&self, body: &str) -> String {
        let begun = Instant::now();
        let mut stream = loop {
            match std::net::TcpStream::connect(&self.http) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => panic!("{error}"),
            }
        };
        let head =
            format!("POST /ingest HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn an_event_that_was_answered_is_known_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let agent = Killed::start(dir.path());
        for earlier in 0..round {
            assert_eq!(agent.post(&format!("{{\"id\":{earlier}}}")), r#"{"accepted":0,"left_out":1,"rejected":[]}"#);
        }
        // Killed right after the answer.
        assert_eq!(agent.post(&format!("{{\"id\":{round}}}")), r#"{"accepted":1,"rejected":[]}"#);
    }
}
