//! What the stream in memory of `fake_kinesis.rs` takes, refuses, keeps and notes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Milliseconds, set by hand.
#[derive(Debug, Default)]
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.wall_ms())
    }

    fn wall_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn entry(key: &str, data: &[u8]) -> PutEntry {
    PutEntry { partition_key: key.to_owned(), explicit_hash_key: None, data: data.to_vec() }
}

fn at(hash: u128, data: &[u8]) -> PutEntry {
    PutEntry { partition_key: "k".to_owned(), explicit_hash_key: Some(hash), data: data.to_vec() }
}

fn class(outcome: &EntryOutcome) -> Option<ErrorClass> {
    match outcome {
        EntryOutcome::Stored { .. } => None,
        EntryOutcome::Failed(error) => Some(error.class),
    }
}

#[tokio::test]
async fn shards_share_the_hash_space_and_keep_their_order() {
    let kinesis = FakeKinesis::new(3, 1);
    let shards = kinesis.list_shards().await.unwrap();
    assert_eq!(shards[0].first_hash, 0);
    assert_eq!(shards[2].last_hash, u128::MAX);
    assert!(shards.windows(2).all(|pair| pair[0].last_hash + 1 == pair[1].first_hash));
    let entries = vec![at(0, b"1"), at(u128::MAX, b"2"), at(0, b"3"), entry("abc", b"4")];
    let outcomes = kinesis.put_records(entries).await.unwrap();
    assert!(outcomes.iter().all(|outcome| class(outcome).is_none()));
    let first: Vec<_> = kinesis.accepted(&shards[0].id).into_iter().map(|record| record.data).collect();
    assert_eq!(first, [b"1", b"3"]);
    // MD5("abc") begins with 0x90: the middle third.
    assert_eq!(outcomes[3], EntryOutcome::Stored { shard: shards[1].id.clone() });
    assert_eq!(kinesis.accepted_count(), 4);
}

#[tokio::test]
async fn a_broken_limit_is_refused_and_noted() {
    let kinesis = FakeKinesis::new(1, 1);
    let bad = [
        vec![],
        vec![entry("k", b""); 501],
        vec![entry("k", &vec![0; 1 << 20])],
        vec![entry("k", &vec![0; (1 << 20) - 1]); 6],
        vec![entry("", b"")],
        vec![entry(&"é".repeat(257), b"")],
    ];
    let count = bad.len();
    for entries in bad {
        assert_eq!(kinesis.put_records(entries).await.unwrap_err().class, ErrorClass::Poison);
    }
    assert_eq!(kinesis.violations().len(), count);
    let good = vec![entry(&"é".repeat(256), &vec![0; (1 << 20) - 512]); 5];
    kinesis.put_records(good).await.unwrap();
    assert_eq!(kinesis.violations().len(), count);
    assert_eq!(kinesis.accepted_count(), 5);
}

#[tokio::test]
async fn a_dead_shard_throttles_its_records_and_no_other() {
    let kinesis = FakeKinesis::new(2, 1);
    let dead = kinesis.shard_of(KeyHash(0));
    kinesis.set_dead(&dead, true);
    let outcomes = kinesis.put_records(vec![at(0, b"1"), at(u128::MAX, b"2")]).await.unwrap();
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [Some(ErrorClass::Throttle), None]);
    kinesis.set_dead(&dead, false);
    kinesis.put_records(vec![at(0, b"1")]).await.unwrap();
    assert_eq!((kinesis.accepted_count(), kinesis.throttled()), (2, 1));
}

#[tokio::test]
async fn a_lost_answer_took_effect_and_a_lost_request_did_not() {
    let kinesis = FakeKinesis::new(1, 1);
    kinesis.plan([NextRequest::LoseAnswer, NextRequest::LoseRequest, NextRequest::Refuse(ErrorClass::Configuration)]);
    let mut classes = Vec::new();
    for data in [b"1", b"2", b"3"] {
        classes.push(kinesis.put_records(vec![entry("k", data)]).await.unwrap_err().class);
    }
    assert_eq!(classes, [ErrorClass::UnknownOutcome, ErrorClass::UnknownOutcome, ErrorClass::Configuration]);
    assert_eq!(kinesis.all_accepted().into_iter().map(|record| record.data).collect::<Vec<_>>(), [b"1"]);
    kinesis.plan_lists([ErrorClass::Transient]);
    kinesis.list_shards().await.unwrap_err();
    kinesis.list_shards().await.unwrap();
}

#[tokio::test]
async fn a_stuck_request_waits_until_it_is_released() {
    let kinesis = FakeKinesis::new(1, 1);
    kinesis.plan([NextRequest::Stuck { takes_effect: true }]);
    let stuck = tokio::spawn({
        let kinesis = kinesis.clone();
        async move { kinesis.put_records(vec![entry("k", b"1")]).await }
    });
    while kinesis.accepted_count() == 0 {
        tokio::task::yield_now().await;
    }
    kinesis.put_records(vec![entry("k", b"2")]).await.unwrap();
    assert!(!stuck.is_finished());
    assert_eq!(kinesis.most_in_flight(), 2);
    kinesis.release_stuck();
    stuck.await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_under_way_together_may_overtake_each_other() {
    let kinesis = FakeKinesis::new(1, 7);
    kinesis.set_latency(Duration::from_millis(1), Duration::from_millis(40));
    let puts = (0..20u8).map(|n| {
        let kinesis = kinesis.clone();
        tokio::spawn(async move { kinesis.put_records(vec![entry("k", &[n])]).await })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap().unwrap();
    }
    let order: Vec<u8> = kinesis.all_accepted().into_iter().map(|record| record.data[0]).collect();
    assert!(!order.is_sorted(), "twenty drawn latencies in order");
    assert_eq!(kinesis.most_in_flight_for(&shard_id(0)), 20);
}

#[tokio::test]
async fn a_split_and_a_merge_move_the_hashes_and_keep_the_past() {
    let kinesis = FakeKinesis::new(2, 1);
    let [left, right] = [shard_id(0), shard_id(1)];
    kinesis.put_records(vec![at(0, b"1")]).await.unwrap();
    let [a, b] = kinesis.split(&left);
    kinesis.put_records(vec![at(0, b"2")]).await.unwrap();
    let merged = kinesis.merge(&b, &right);
    kinesis.put_records(vec![at(u128::MAX, b"3")]).await.unwrap();
    let counts = [&left, &a, &merged, &right].map(|id| kinesis.accepted(id).len());
    assert_eq!(counts, [1, 1, 1, 0]);
    let shards = kinesis.shards();
    assert_eq!(shards.iter().filter(|shard| shard.open).count(), 2);
    assert_eq!(shards.last().unwrap().parents, [b, right]);
    assert_eq!(kinesis.all_accepted().into_iter().map(|record| record.data[0]).collect::<Vec<_>>(), b"123");
}

#[tokio::test]
async fn a_shard_takes_a_thousand_records_and_a_mebibyte_a_second_when_asked_to() {
    let kinesis = FakeKinesis::new(1, 1);
    let clock = Arc::new(HandClock::default());
    kinesis.enforce_rates(clock.clone());
    let stored = |outcomes: Vec<EntryOutcome>| outcomes.iter().filter(|outcome| class(outcome).is_none()).count();
    let mut total = 0;
    for _ in 0..3 {
        total += stored(kinesis.put_records(vec![entry("k", b"x"); 500]).await.unwrap());
    }
    assert_eq!(total, 1000);
    clock.0.store(1000, Ordering::SeqCst);
    assert_eq!(stored(kinesis.put_records(vec![entry("k", &vec![0; 600 << 10]); 2]).await.unwrap()), 1);
}

#[tokio::test]
async fn odds_come_up_about_as_often_as_they_say_and_repeat_with_the_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let kinesis = FakeKinesis::new(4, 42);
        kinesis.set_odds(Odds { record_throttled: 100, record_failed: 50, request_failed: 0, answer_lost: 200 });
        let mut lost = 0;
        for n in 0..100 {
            let entries = (0..10).map(|m| entry(&format!("k{n}-{m}"), b"x")).collect();
            lost += u32::from(kinesis.put_records(entries).await.is_err());
        }
        assert!((5..50).contains(&lost), "{lost} of 100 answers lost");
        assert!((50..200).contains(&kinesis.throttled()), "{} of 1000 throttled", kinesis.throttled());
        runs.push(kinesis.all_accepted());
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn an_auto_stream_ignores_explicit_hash_keys() {
    let kinesis = FakeKinesis::new(4, 3);
    kinesis.set_auto(true);
    kinesis.put_records((0..100).map(|_| at(0, b"x")).collect()).await.unwrap();
    assert!(kinesis.shards().iter().all(|shard| !kinesis.accepted(&shard.id).is_empty()));
}
