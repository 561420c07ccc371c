//! Back pressure that SDKs survive: requests wait before they are refused, and every request is answered, also at the end.
//!
//! Many SDKs throw away what is refused at once, and more of them what gets no answer at all. Every test runs the real listener
//! over a real spool.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;
#[path = "common/raw_http.rs"]
mod raw_http;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use doors::{Door, PATIENCE, World, config, keyed, soon, until};
use forebay::ingest::Sources;
use forebay::ingest::http::HttpOptions;
use forebay::metrics::Limit;
use raw_http::{Answer, request};
use tokio::task::JoinSet;

const EVENT: &str = "{\"userId\":\"u\"}\n";

fn impatient() -> HttpOptions {
    HttpOptions { admit_timeout: Duration::from_millis(100), ..HttpOptions::default() }
}

/// For who is to get room in the end: however busy the machine, no request gives up before the test does.
fn patient() -> HttpOptions {
    HttpOptions { admit_timeout: 10 * PATIENCE, ..HttpOptions::default() }
}

fn plain() -> Vec<u8> {
    request("/ingest", "", EVENT.as_bytes())
}

fn refused(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
}

#[test]
fn a_request_waits_eight_seconds_and_a_connection_longer_than_sdks_keep_theirs() {
    let options = HttpOptions::default();
    assert_eq!(options.admit_timeout, Duration::from_secs(8));
    assert!(options.idle_timeout >= Duration::from_secs(75));
}

#[tokio::test]
async fn a_request_waits_for_room_and_is_good_if_there_is_some_in_time() {
    let world = World::new();
    let door = Door::with(world.web(), patient()).await;
    world.metrics.set_full(Some(Limit::MaxBytes));
    let mut waiting = Box::pin(door.post("/ingest", "", EVENT));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err(), "it waits");
    assert_eq!(world.submitted(), 0);
    world.metrics.set_full(None);
    assert_eq!(waiting.await.accepted(), 1);
    door.end().await;
}

#[tokio::test]
async fn a_request_that_finds_no_room_in_time_is_refused_on_a_connection_that_stays() {
    let world = World::new();
    let door = Door::with(world.web(), impatient()).await;
    let mut client = door.connect().await;
    world.metrics.set_full(Some(Limit::MaxBytes));
    client.send(&plain()).await;
    let answer = client.answer().await.unwrap();
    refused(&answer);
    assert!(!answer.closes());
    world.metrics.set_full(None);
    client.send(&plain()).await;
    assert_eq!(client.answer().await.unwrap().accepted(), 1);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_batch_meets_a_spool_that_is_full_or_broken_is_answered_in_time() {
    for (limit, part) in [(Some(Limit::Disk), "full"), (None, "cannot make events durable")] {
        let mut world = World::stalled();
        let door = Door::with(world.web(), impatient()).await;
        // The commit thread is not there: it cannot be written, and nobody said so before.
        let answering = door.post("/ingest", "", EVENT);
        let meanwhile = async {
            until("it is submitted", || world.submitted() == 1).await;
            world.metrics.set_full(limit);
        };
        let (answer, ()) = tokio::join!(answering, meanwhile);
        refused(&answer);
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{answer:?}");
        world.metrics.set_full(None);
        world.go();
        until("it is durable all the same", || world.events().len() == 1).await;
        door.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_room_hold_no_memory_that_others_need() {
    let (full, other) = (World::new(), World::new());
    let sources = Sources::new([full.source(&config("full")), other.source(&config("other"))]);
    let door = Arc::new(Door::with(sources, patient()).await);
    full.metrics.set_full(Some(Limit::MaxBytes));
    let body: Arc<Vec<u8>> = Arc::new([&b"{\"userId\":\"u\",\"x\":\""[..], &vec![b'x'; 1 << 20][..], b"\"}\n"].concat());
    let mut waiting = JoinSet::new();
    // More than the 64 MiB that all bodies may take.
    for _ in 0..80 {
        let (door, body) = (Arc::clone(&door), Arc::clone(&body));
        waiting.spawn(async move { door.post("/ingest/full", "", &**body).await.status });
    }
    // One after the other, so that they are sure to come while the others wait.
    for _ in 0..10 {
        let answer = door.post("/ingest/other", "", EVENT.repeat(1000)).await;
        assert_eq!(answer.accepted(), 1000);
    }
    assert_eq!(full.submitted(), 0);
    full.metrics.set_full(None);
    while let Some(status) = soon(waiting.join_next()).await {
        // A byte too long each: refused as events, and all of them answered.
        assert_eq!(status.unwrap(), 200);
    }
    Arc::into_inner(door).unwrap().end().await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_its_answer() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&keyed("web", "k"))])).await;
    let body = vec![b'x'; 12 << 20];
    for (headers, status) in
        [("", 401), ("x-api-key: k\r\ncontent-type: text/csv\r\n", 415), ("x-api-key: k\r\ncontent-encoding: br\r\n", 415)]
    {
        let mut client = door.connect().await;
        assert!(client.send(&request("/ingest", headers, &body)).await, "{headers}: all was taken");
        assert_eq!(client.answer().await.unwrap().status, status, "{headers}");
    }
    door.end().await;
}

#[tokio::test]
async fn an_idle_connection_lives_by_its_own_time_and_not_by_that_of_a_head() {
    let world = World::new();
    for (head_timeout, idle_timeout, lives) in [(50, 60_000, true), (60_000, 50, false)] {
        let [head_timeout, idle_timeout] = [head_timeout, idle_timeout].map(Duration::from_millis);
        let door = Door::with(world.web(), HttpOptions { head_timeout, idle_timeout, ..HttpOptions::default() }).await;
        let mut client = door.connect().await;
        client.send(&plain()).await;
        assert_eq!(client.answer().await.unwrap().accepted(), 1);
        if lives {
            // Several times as long as a first head may take.
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.send(&plain()).await;
            assert_eq!(client.answer().await.expect("the connection is still there").accepted(), 1);
        } else {
            client.is_over().await;
        }
        door.end().await;
    }
}

#[tokio::test]
async fn at_the_end_a_request_that_does_not_become_durable_is_answered_and_its_connection_closed() {
    let world = World::stalled();
    let door = Door::open(world.web()).await;
    let mut client = door.connect().await;
    client.send(&plain()).await;
    until("it is submitted", || world.submitted() == 1).await;
    door.stop.now();
    let answer = client.answer().await.expect("an answer");
    refused(&answer);
    assert!(answer.closes() && client.is_over().await);
    soon(door.serving).await.unwrap();
}

#[tokio::test]
async fn at_the_end_a_request_that_waits_for_room_and_one_whose_body_is_still_coming_are_answered() {
    let world = World::stalled();
    let other = World::stalled();
    let sources = Sources::new([world.source(&config("full")), other.source(&config("other"))]);
    let door = Door::with(sources, patient()).await;
    world.metrics.set_full(Some(Limit::MaxBytes));
    let mut waiting = door.connect().await;
    waiting.send(&request("/ingest/full", "", EVENT.as_bytes())).await;
    let mut sending = door.connect().await;
    let whole = request("/ingest/other", "", EVENT.as_bytes());
    sending.send(&whole[..whole.len() - 3]).await;
    // Wherever the door finds them.
    door.stop.now();
    for client in [&mut waiting, &mut sending] {
        let answer = client.answer().await.expect("an answer");
        refused(&answer);
        assert!(answer.closes(), "{answer:?}");
    }
    soon(door.serving).await.unwrap();
}

#[tokio::test]
async fn at_the_end_requests_that_lie_unread_in_a_socket_are_answered() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let mut idle = door.connect().await;
    idle.send(&plain()).await;
    assert_eq!(idle.answer().await.unwrap().accepted(), 1);
    // Nothing of the door runs between these lines: one connection is not accepted yet, the other is idle.
    let mut unaccepted = std::net::TcpStream::connect(door.address).unwrap();
    unaccepted.write_all(&plain()).unwrap();
    assert_eq!(idle.stream.try_write(&plain()).unwrap(), plain().len());
    door.stop.now();
    let answer = idle.answer().await.expect("an answer");
    refused(&answer);
    assert!(answer.closes());
    soon(door.serving).await.unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut unaccepted, &mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("connection: close"), "{text}");
    assert_eq!(world.events().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_older_requests_are_finished_new_connections_are_answered_503() {
    let mut world = World::stalled();
    let door = Door::open(world.web()).await;
    let mut older = door.connect().await;
    older.send(&plain()).await;
    until("it is submitted", || world.submitted() == 1).await;
    door.stop.now();
    for _ in 0..3 {
        let answer = door.post("/ingest", "", EVENT).await;
        refused(&answer);
        assert!(answer.closes());
    }
    world.go();
    let answer = older.answer().await.unwrap();
    assert!(answer.accepted() == 1 && answer.closes());
    soon(door.serving).await.unwrap();
    assert!(tokio::net::TcpStream::connect(door.address).await.is_err());
}
