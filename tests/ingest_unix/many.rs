//! Clients that are many, slow, silent or too large: each costs itself only (*NO-BLOCKING*), and memory stays bounded.
//!
//! Place: part of `ingest_unix.rs`, whose door it opens.

use super::*;

/// Lets this process open enough files for both ends of `connections`.
fn allow_files(connections: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = 2 * connections + 200;
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_connections_at_once_are_all_served() {
    const CONNECTIONS: usize = 2_000;
    allow_files(CONNECTIONS as u64);
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(door.greet("ack=on").await);
    }
    // All are open now; each sends three events in two pieces, so that unfinished lines of all of them are held.
    for (number, client) in clients.iter_mut().enumerate() {
        client
            .write_all(format!("{{\"userId\":\"c{number}\"}}\n{{\"userId\":\"c{number}\"}}\n{{\"userId\"").as_bytes())
            .await
            .unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(format!(":\"c{number}\"}}\n").as_bytes()).await.unwrap();
    }
    for client in &mut clients {
        while line(client).await != "ack 3" {}
    }
    assert_eq!(world.events().len(), 3 * CONNECTIONS);
    drop(clients);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_its_acks_blocks_only_itself() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    // Every event is rejected, so that there is much to tell, and nothing of it is read.
    let mut deaf = door.connect().await;
    deaf.write_all(b"forebay/1 ack=on\n").await.unwrap();
    let (mut deaf_read, mut deaf_write) = deaf.into_split();
    let shouting = tokio::spawn(async move {
        let block = b"x\n".repeat(32 << 10);
        for _ in 0..40 {
            deaf_write.write_all(&block).await.unwrap();
        }
        deaf_write.shutdown().await.unwrap();
    });
    until("the deaf client's events come in", || world.rejected("not_json") > 0).await;
    // Meanwhile another one sends much more than all buffers together, and is acknowledged.
    let events = 100_000;
    let mut client = door.connect().await;
    let (mut read, mut write) = client.split();
    let mut input = b"forebay/1 ack=on\n".to_vec();
    for number in 0..events {
        input.extend(format!("{{\"userId\":\"u{}\",\"text\":\"{}\"}}\n", number % 100, "t".repeat(150)).as_bytes());
    }
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
    assert_eq!(last_told(&answer), format!("ack {events}"));
    // The deaf one was held back: far from all of its events are read. Once it listens, it gets everything.
    let all = 40 * (32 << 10);
    assert!(world.rejected("not_json") < all, "its reader should have been blocked");
    let mut answer = String::new();
    soon(deaf_read.read_to_string(&mut answer)).await.unwrap();
    soon(shouting).await.unwrap();
    assert_eq!(last_told(&answer), format!("ack {all}"));
    assert_eq!(answer.lines().filter(|line| line.starts_with("reject")).count() as u64, all);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_line_that_stays_costs_nobody_and_is_no_event_at_the_end() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let mut plain = door.connect().await;
    plain.write_all(b"{\"userId\":\"whole\"}\n{\"userId\":\"hal").await.unwrap();
    let mut greeted = door.greet("ack=on").await;
    greeted.write_all(b"{\"userId\":\"whole\"}\n{\"userId\":\"hal").await.unwrap();
    assert_eq!(line(&mut greeted).await, "ack 1");
    let other = door.exchange(b"forebay/1 ack=on\n{\"userId\":\"other\"}\n").await;
    assert_eq!(last_told(&other), "ack 1");
    until("three events", || world.events().len() == 3).await;
    door.end().await;
    assert_eq!(rest(&mut greeted).await, "bye\n");
    assert_eq!(world.events().len(), 3);
}

#[tokio::test]
async fn a_large_unfinished_event_and_silence_end_the_connection() {
    let world = World::new();
    let options = UnixOptions { stuck_after: Duration::from_millis(50), ..UnixOptions::default() };
    let door = Door::with(&world, world.web(), options).await;
    let mut client = door.greet("ack=on").await;
    client.write_all(&[&b"{\"userId\":1}\n"[..], &vec![b'x'; 17 << 10]].concat()).await.unwrap();
    let answer = rest(&mut client).await;
    assert!(answer.ends_with("ack 1\nerror event 2 is unfinished and nothing more of it comes\n"), "{answer}");
    // A small one may stay, and one that goes on is waited for.
    let mut patient = door.greet("ack=on").await;
    patient.write_all(b"{\"userId\"").await.unwrap();
    let mut slow = door.greet("ack=on").await;
    slow.write_all(b"{\"userId\":1,\"y\":\"").await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        slow.write_all(&vec![b'y'; 4 << 10]).await.unwrap();
    }
    slow.write_all(b"\"}\n").await.unwrap();
    assert_eq!(line(&mut slow).await, "ack 1");
    patient.write_all(b":1}\n").await.unwrap();
    assert_eq!(line(&mut patient).await, "ack 1");
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_large_unfinished_events_than_slots_are_all_finished_in_turn() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let event = format!("{{\"userId\":\"u\",\"text\":\"{}\"}}\n", "t".repeat(300 << 10));
    let clients: Vec<JoinHandle<()>> = (0..60)
        .map(|_| {
            let (path, event) = (door.path.clone(), event.clone());
            tokio::spawn(async move {
                let mut client = UnixStream::connect(path).await.unwrap();
                client.write_all(b"forebay/1 ack=on\n").await.unwrap();
                let half = event.len() / 2;
                client.write_all(&event.as_bytes()[..half]).await.unwrap();
                client.write_all(&event.as_bytes()[half..]).await.unwrap();
                assert!(line(&mut client).await.starts_with("ok "));
                assert_eq!(line(&mut client).await, "ack 1");
            })
        })
        .collect();
    for client in clients {
        soon(client).await.unwrap();
    }
    assert_eq!(world.events().len(), 60);
    door.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_does_not_keep_up_stops_the_reading_and_loses_nothing() {
    let mut world = World::stalled();
    let door = Door::open(&world, world.web()).await;
    let event = format!("{{\"userId\":\"u\",\"text\":\"{}\"}}\n", "t".repeat(10_000));
    let events = 2 * INGEST_BYTES_MAX / event.len();
    let mut client = door.greet("ack=on").await;
    let (mut read, mut write) = client.split();
    let mut answer = String::new();
    let writing = async {
        for _ in 0..events {
            write.write_all(event.as_bytes()).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let watching = async {
        // Reading stops when the budget is used up: nothing new is submitted although the client has more.
        let most = (INGEST_BYTES_MAX / event.len()) as u64;
        let mut seen = (0, std::time::Instant::now());
        while seen.1.elapsed() < Duration::from_millis(300) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = world.submitted();
            assert!(now <= most);
            if now != seen.0 {
                seen = (now, std::time::Instant::now());
            }
        }
        assert!(seen.0 > 0);
        world.go();
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(writing, watching, read.read_to_string(&mut answer)) })
        .await
        .unwrap()
        .2
        .unwrap();
    assert_eq!(last_told(&answer), format!("ack {events}"));
    assert_eq!(world.events().len(), events);
    door.end().await;
}
