//! The consumer against a reader that follows a script, for what a real stream does only in years: expired
//! iterators, throttles, denied access, late lists. Splits and merges are tested on the embedded Kinesis.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::kinesis::{BoxFuture, StoredRecord};

/// Shards with their records. An iterator is `SHARD@INDEX`.
#[derive(Debug, Default)]
struct Script {
    /// As each list in turn tells them; the last one for ever.
    lists: Mutex<VecDeque<Vec<ShardRange>>>,
    records: HashMap<&'static str, Vec<&'static str>>,
    closed: Vec<&'static str>,
    /// Faults that reads meet, in order, before they succeed.
    faults: Mutex<VecDeque<(&'static str, ErrorClass)>>,
    page: usize,
    /// What was asked of `iterator`.
    points: Mutex<Vec<(String, ReadPoint)>>,
}

fn range(id: &str, open: bool, parents: &[&str]) -> ShardRange {
    let parents = parents.iter().map(|parent| ShardId::from(*parent)).collect();
    ShardRange { id: id.into(), first_hash: 0, last_hash: u128::MAX, open, parents }
}

fn fault(code: &str, class: ErrorClass) -> PutError {
    PutError { class, code: code.into(), message: "scripted".into() }
}

impl KinesisReader for Script {
    fn shards(&self) -> BoxFuture<'_, Result<Vec<ShardRange>, PutError>> {
        let mut lists = self.lists.lock().unwrap();
        let list = if lists.len() > 1 { lists.pop_front() } else { lists.front().cloned() };
        Box::pin(async move { Ok(list.unwrap_or_default()) })
    }

    fn iterator(&self, shard: &ShardId, from: ReadPoint) -> BoxFuture<'_, Result<String, PutError>> {
        let held = self.records.get(&*shard.0).map_or(0, Vec::len);
        let at = match &from {
            ReadPoint::From(ReadFrom::TrimHorizon) | ReadPoint::SinceMs(_) => 0,
            ReadPoint::From(ReadFrom::Latest) => held,
            ReadPoint::After(sequence) => sequence.parse::<usize>().unwrap() + 1,
        };
        self.points.lock().unwrap().push((shard.to_string(), from));
        let iterator = format!("{shard}@{at}");
        Box::pin(async move { Ok(iterator) })
    }

    fn read(&self, iterator: String) -> BoxFuture<'_, Result<ReadPage, PutError>> {
        let scripted = self.faults.lock().unwrap().pop_front();
        let answer = match scripted {
            Some((code, class)) if !code.is_empty() => Err(fault(code, class)),
            _ => {
                let (shard, at) = iterator.split_once('@').unwrap();
                let at: usize = at.parse().unwrap();
                let all = self.records.get(shard).map(Vec::as_slice).unwrap_or_default();
                let end = all.len().min(at + self.page.max(1));
                let records = (at..end).map(|index| StoredRecord {
                    partition_key: "k".into(),
                    sequence: index.to_string(),
                    arrived_ms: 1,
                    data: all[index].as_bytes().to_vec(),
                });
                let ended = end == all.len() && self.closed.contains(&shard);
                Ok(ReadPage { records: records.collect(), next: (!ended).then(|| format!("{shard}@{end}")), behind_ms: 0 })
            }
        };
        Box::pin(async move { answer })
    }
}

fn consumer(script: Script, from: ReadFrom) -> (Consumer, Arc<Script>) {
    let script = Arc::new(script);
    (Consumer::new(Arc::clone(&script) as _, ConsumerOptions::loopback(from), Host::real()), script)
}

async fn read_to_tip(consumer: &mut Consumer) -> Vec<String> {
    let mut data = Vec::new();
    while let Some(arrival) = consumer.next_until_tip().await.unwrap() {
        data.extend(arrival.events.into_iter().map(|event| String::from_utf8(event.data).unwrap()));
    }
    data
}

#[tokio::test]
async fn an_expired_iterator_is_renewed_after_the_last_record_seen() {
    let expired = (EXPIRED_ITERATOR, ErrorClass::Transient);
    let (mut consumer, script) = consumer(
        Script {
            lists: Mutex::new([vec![range("s", true, &[])]].into()),
            records: HashMap::from([("s", vec!["a", "b", "c"])]),
            page: 2,
            faults: Mutex::new([("", ErrorClass::Transient), expired].into()),
            ..Script::default()
        },
        ReadFrom::TrimHorizon,
    );
    assert_eq!(read_to_tip(&mut consumer).await, ["a", "b", "c"]);
    let points = script.points.lock().unwrap();
    assert_eq!(*points, [("s".into(), ReadPoint::From(ReadFrom::TrimHorizon)), ("s".into(), ReadPoint::After("1".into()))]);
}

#[tokio::test]
async fn an_iterator_at_the_newest_record_that_expires_unused_goes_back_to_the_start() {
    let (mut consumer, script) = consumer(
        Script {
            lists: Mutex::new([vec![range("s", true, &[])]].into()),
            faults: Mutex::new([(EXPIRED_ITERATOR, ErrorClass::Transient)].into()),
            ..Script::default()
        },
        ReadFrom::Latest,
    );
    assert!(read_to_tip(&mut consumer).await.is_empty());
    let points = script.points.lock().unwrap();
    assert_eq!(points[0].1, ReadPoint::From(ReadFrom::Latest));
    assert!(matches!(points[1].1, ReadPoint::SinceMs(at) if at > 0), "{:?}", points[1]);
}

#[tokio::test]
async fn throttles_and_lost_answers_are_waited_out_without_loss_or_repeat() {
    let (mut consumer, _) = consumer(
        Script {
            lists: Mutex::new([vec![range("s", true, &[])]].into()),
            records: HashMap::from([("s", vec!["a", "b", "c"])]),
            faults: Mutex::new(
                [
                    ("ProvisionedThroughputExceededException", ErrorClass::Throttle),
                    ("", ErrorClass::Transient),
                    ("timeout", ErrorClass::UnknownOutcome),
                    ("connect", ErrorClass::Transient),
                ]
                .into(),
            ),
            ..Script::default()
        },
        ReadFrom::TrimHorizon,
    );
    assert_eq!(read_to_tip(&mut consumer).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn denied_access_is_returned_and_reading_goes_on_when_it_is_granted() {
    let (mut consumer, _) = consumer(
        Script {
            lists: Mutex::new([vec![range("s", true, &[])]].into()),
            records: HashMap::from([("s", vec!["a"])]),
            faults: Mutex::new([("AccessDeniedException", ErrorClass::Configuration)].into()),
            ..Script::default()
        },
        ReadFrom::TrimHorizon,
    );
    assert_eq!(consumer.next().await.unwrap_err().code, "AccessDeniedException");
    assert_eq!(read_to_tip(&mut consumer).await, ["a"]);
}

#[tokio::test]
async fn a_fault_that_does_not_pass_is_returned() {
    let (mut consumer, _) = consumer(
        Script {
            lists: Mutex::new([vec![range("s", true, &[])]].into()),
            faults: Mutex::new([("connect", ErrorClass::Transient); 50].into()),
            ..Script::default()
        },
        ReadFrom::TrimHorizon,
    );
    consumer.options.faults_max = 3;
    assert_eq!(consumer.next().await.unwrap_err().code, "connect");
    assert_eq!(consumer.shards.values().next().unwrap().faults, 3);
}

#[tokio::test]
async fn children_wait_for_both_parents_even_when_the_list_shows_them_first() {
    // "a" sorts before its parents, and the merge is in the first list already.
    let (mut consumer, _) = consumer(
        Script {
            lists: Mutex::new([vec![range("a", true, &["p", "q"]), range("p", false, &[]), range("q", false, &["gone"])]].into()),
            records: HashMap::from([("a", vec!["child"]), ("p", vec!["p1", "p2"]), ("q", vec!["q1", "q2", "q3"])]),
            closed: vec!["p", "q"],
            ..Script::default()
        },
        ReadFrom::TrimHorizon,
    );
    let data = read_to_tip(&mut consumer).await;
    assert_eq!(data.len(), 6);
    assert_eq!(data.last().unwrap(), "child");
}

#[tokio::test]
async fn a_shard_that_ended_makes_the_list_be_asked_until_its_children_are_in_it() {
    let before = vec![range("p", true, &[])];
    let after = vec![range("p", false, &[]), range("x", true, &["p"]), range("y", true, &["p"])];
    let (mut consumer, script) = consumer(
        Script {
            // The list lags twice.
            lists: Mutex::new([before.clone(), before.clone(), before, after].into()),
            records: HashMap::from([("p", vec!["1"]), ("x", vec!["2"]), ("y", vec!["3"])]),
            closed: vec!["p"],
            ..Script::default()
        },
        ReadFrom::Latest,
    );
    let mut data = read_to_tip(&mut consumer).await;
    data.sort();
    assert_eq!(data, ["2", "3"], "the parent from its newest record, the children from their first");
    assert_eq!(script.lists.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn from_the_newest_records_closed_shards_are_left_out() {
    let (mut consumer, script) = consumer(
        Script {
            lists: Mutex::new([vec![range("p", false, &[]), range("x", true, &["p"])]].into()),
            records: HashMap::from([("p", vec!["old"]), ("x", vec!["old"])]),
            closed: vec!["p"],
            ..Script::default()
        },
        ReadFrom::Latest,
    );
    assert!(read_to_tip(&mut consumer).await.is_empty());
    assert!(script.points.lock().unwrap().iter().all(|(shard, _)| shard == "x"));
}
