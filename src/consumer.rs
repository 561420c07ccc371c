//! Reads a stream as a consumer does: all shards, each in its order, parents to their end before children.
//!
//! Place: `tail` and `demo` pull [`Arrival`]s out of it; it reads through [`KinesisReader`] and takes aggregates apart
//! with `deaggregate`. It follows splits and merges by listing the shards again whenever one has ended.
//!
//! Owner: whoever holds the [`Consumer`]; its reads run in tasks that end with it. No new read begins while arrivals
//! wait to be pulled, so memory holds at most one page for each read under way and the one being pulled. [`Consumer::next`] may be dropped at any
//! moment (in a `select!`, say) without losing an arrival.
//!
//! *PARENTS-FIRST*: a child is not read before all its parents that the stream still lists are read to their end.
//! *NO-GAP*: an iterator that expired is renewed after the last record seen, never at a guess.
//!
//! Failure: throttles and passing faults are waited out with jitter; what a person must mend, and what does not
//! pass, is returned, and the next call goes on from where it was. Absent on purpose: checkpoints and sharing the
//! work with other consumers. This is for looking, not for processing: that is KCL's trade.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::deaggregate::{Content, deaggregate};
use crate::event::ShardId;
use crate::host::Host;
use crate::kinesis::{ErrorClass, KinesisReader, PutError, ReadFrom, ReadPage, ReadPoint, ShardRange};

/// The service's code for an iterator that was not used for five minutes.
const EXPIRED_ITERATOR: &str = "ExpiredIteratorException";

/// How a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Where reading starts.
    pub from: ReadFrom,
    /// Least time between two reads of a shard that has more.
    pub poll: Duration,
    /// Time between two reads of a shard that has no more for now.
    pub idle_poll: Duration,
    /// First wait after a fault; doubles up to 50 times itself, half of it jitter.
    pub backoff: Duration,
    /// Reads under way at once, 1 or more.
    pub reads_max: usize,
    /// Faults in a row on one shard after which the last one is returned.
    pub faults_max: u32,
}

impl ConsumerOptions {
    /// For a shared service: a shard takes five reads a second from all its consumers together, so this takes four
    /// while it catches up and one afterwards.
    #[must_use]
    pub const fn polite(from: ReadFrom) -> Self {
        Self {
            from,
            poll: Duration::from_millis(250),
            idle_poll: Duration::from_secs(1),
            backoff: Duration::from_millis(200),
            reads_max: 8,
            faults_max: 10,
        }
    }

    /// For an emulator on this machine, which has no rates to respect.
    #[must_use]
    pub const fn loopback(from: ReadFrom) -> Self {
        Self {
            from,
            poll: Duration::ZERO,
            idle_poll: Duration::from_millis(25),
            backoff: Duration::from_millis(20),
            reads_max: 8,
            faults_max: 10,
        }
    }
}

/// One event of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Partition key; UTF-8 unless another writer put bytes there.
    pub key: Vec<u8>,
    /// Hash that decides the shard instead of the key, where the writer gave one.
    pub explicit_hash_key: Option<u128>,
    /// The event.
    pub data: Vec<u8>,
}

/// One record, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Shard it lies in.
    pub shard: ShardId,
    /// Its place there.
    pub sequence: String,
    /// When Kinesis took it, milliseconds since 1970 UTC.
    pub arrived_ms: u64,
    /// From then until it was read, milliseconds; 0 where the clocks disagree.
    pub lag_ms: u64,
    /// How far the shard's newest record is ahead of this read, as the service says, milliseconds.
    pub behind_ms: u64,
    /// Bytes of the record: data and key.
    pub bytes: usize,
    /// A KPL aggregate.
    pub aggregated: bool,
    /// A consumer that follows KCL's rules gets it too (see [`Content::readable_in`]).
    pub readable: bool,
    /// Its events, in order.
    pub events: Vec<Event>,
}

/// A reader of one stream.
#[derive(Debug)]
pub struct Consumer {
    reader: Arc<dyn KinesisReader>,
    host: Host,
    options: ConsumerOptions,
    started_ms: u64,
    shards: BTreeMap<ShardId, Shard>,
    listing: Listing,
    tasks: JoinSet<Done>,
    arrivals: VecDeque<Arrival>,
}

#[derive(Debug)]
struct Listing {
    /// When to list next; `None` while a list is under way or none is wanted.
    due: Option<Instant>,
    done_once: bool,
    faults: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// For its parents to end.
    Waiting,
    /// For its turn.
    Due(Instant),
    /// For an answer.
    Reading,
    /// Read to its end.
    Ended,
    /// Was closed before reading began, and reading began at the newest records.
    Skipped,
}

#[derive(Debug)]
struct Shard {
    range: ShardRange,
    phase: Phase,
    from: ReadFrom,
    /// An iterator was made before, so a new one must go on instead of begin.
    opened: bool,
    iterator: Option<String>,
    last: Option<String>,
    faults: u32,
    /// The last answer had no more.
    at_tip: bool,
    /// The read under way began before the present round, so its answer says nothing of this round's tip.
    asked_before: bool,
}

/// What a task brings back.
#[derive(Debug)]
enum Done {
    Listed(Result<Vec<ShardRange>, PutError>),
    Read(ShardId, Result<ReadPage, ReadFault>),
}

#[derive(Debug)]
struct ReadFault {
    error: PutError,
    /// The iterator, where there is one that may be used again.
    iterator: Option<String>,
}

impl Consumer {
    /// Nothing is read before the first call of [`Consumer::next`].
    #[must_use]
    pub fn new(reader: Arc<dyn KinesisReader>, options: ConsumerOptions, host: Host) -> Self {
        Self {
            reader,
            started_ms: host.clock.wall_ms(),
            host,
            options,
            shards: BTreeMap::new(),
            listing: Listing { due: Some(Instant::now()), done_once: false, faults: 0 },
            tasks: JoinSet::new(),
            arrivals: VecDeque::new(),
        }
    }

    /// The next record of any shard. Waits as long as it takes.
    ///
    /// # Errors
    /// What a person must mend (class `Configuration` or `Poison`), and other faults once they came
    /// [`ConsumerOptions::faults_max`] times in a row. Calling again goes on.
    pub async fn next(&mut self) -> Result<Arrival, PutError> {
        loop {
            if let Some(arrival) = self.arrivals.pop_front() {
                return Ok(arrival);
            }
            self.step().await?;
        }
    }

    /// The next record, or `None` once every shard was asked and had no more. What was stored before a call that
    /// begins after a `None` (or is the first) is read before the next `None`.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    pub async fn next_until_tip(&mut self) -> Result<Option<Arrival>, PutError> {
        loop {
            if let Some(arrival) = self.arrivals.pop_front() {
                return Ok(Some(arrival));
            }
            if self.at_tip() {
                for shard in self.shards.values_mut() {
                    shard.at_tip = false;
                    shard.asked_before = shard.phase == Phase::Reading;
                }
                return Ok(None);
            }
            self.step().await?;
        }
    }

    /// The shards seen so far.
    pub fn shards(&self) -> impl Iterator<Item = &ShardRange> {
        self.shards.values().map(|shard| &shard.range)
    }

    fn at_tip(&self) -> bool {
        self.listing.done_once
            && self.shards.iter().all(|(id, shard)| match shard.phase {
                Phase::Due(_) | Phase::Reading => shard.at_tip,
                Phase::Waiting => false,
                Phase::Ended => self.has_child(id),
                Phase::Skipped => true,
            })
    }

    fn has_child(&self, id: &ShardId) -> bool {
        self.shards.values().any(|shard| shard.range.parents.contains(id))
    }

    /// Starts what is due, then waits for one thing to happen.
    async fn step(&mut self) -> Result<(), PutError> {
        let wake = self.start_what_is_due();
        let sleep = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next() => match done {
                Ok(Done::Listed(answer)) => self.listed(answer),
                Ok(Done::Read(shard, answer)) => self.was_read(&shard, answer),
                Err(failure) => match failure.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // Tasks are cancelled only with the runtime.
                    Err(_) => std::future::pending().await,
                },
            },
            () = sleep => Ok(()),
        }
    }

    /// The moment at which the next thing falls due, if nothing else happens before.
    fn start_what_is_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut wake: Option<Instant> = None;
        let mut later = |due: Instant| wake = Some(wake.map_or(due, |wake| wake.min(due)));
        match self.listing.due {
            Some(due) if due <= now => {
                self.listing.due = None;
                let reader = Arc::clone(&self.reader);
                self.tasks.spawn(async move { Done::Listed(reader.shards().await) });
            }
            Some(due) => later(due),
            None => {}
        }
        let mut turns: Vec<(Instant, ShardId)> = Vec::new();
        for (id, shard) in &self.shards {
            match shard.phase {
                Phase::Due(due) if due <= now => turns.push((due, id.clone())),
                Phase::Due(due) => later(due),
                _ => {}
            }
        }
        // Who waits longest goes first, so that a busy shard starves nobody.
        turns.sort();
        for (_, id) in turns {
            if self.tasks.len() >= self.options.reads_max.max(1) {
                break;
            }
            if let Some(shard) = self.shards.get_mut(&id) {
                shard.phase = Phase::Reading;
                let point = shard.read_point(self.started_ms);
                self.tasks.spawn(read(Arc::clone(&self.reader), id, shard.iterator.take(), point));
            }
        }
        wake
    }

    fn listed(&mut self, answer: Result<Vec<ShardRange>, PutError>) -> Result<(), PutError> {
        let now = Instant::now();
        let ranges = match answer {
            Ok(ranges) => ranges,
            Err(error) => {
                self.listing.faults += 1;
                self.listing.due = Some(now + self.wait_after(self.listing.faults));
                return self.judge(error, self.listing.faults);
            }
        };
        let first = !self.listing.done_once;
        self.listing.done_once = true;
        self.listing.faults = 0;
        for range in ranges {
            let from_latest = first && self.options.from == ReadFrom::Latest;
            match self.shards.get_mut(&range.id) {
                Some(known) => known.range = range,
                None => {
                    let phase = if from_latest && !range.open { Phase::Skipped } else { Phase::Waiting };
                    // What appears later was born from what is read already: all of it is new.
                    let from = if from_latest { ReadFrom::Latest } else { ReadFrom::TrimHorizon };
                    self.shards.insert(range.id.clone(), Shard::new(range, phase, from));
                }
            }
        }
        self.wake_children(now);
        // A shard that ended has children, or will have them in a moment.
        let orphaned = self.shards.iter().any(|(id, shard)| shard.phase == Phase::Ended && !self.has_child(id));
        if orphaned || self.shards.is_empty() {
            self.listing.due = Some(now + self.options.idle_poll);
        }
        Ok(())
    }

    /// *PARENTS-FIRST*.
    fn wake_children(&mut self, now: Instant) {
        let read_out =
            |id: &ShardId| self.shards.get(id).is_none_or(|shard| matches!(shard.phase, Phase::Ended | Phase::Skipped));
        let ready: Vec<ShardId> = self
            .shards
            .iter()
            .filter(|(_, shard)| shard.phase == Phase::Waiting && shard.range.parents.iter().all(read_out))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ready {
            if let Some(shard) = self.shards.get_mut(&id) {
                shard.phase = Phase::Due(now);
            }
        }
    }

    fn was_read(&mut self, id: &ShardId, answer: Result<ReadPage, ReadFault>) -> Result<(), PutError> {
        let now = Instant::now();
        let wall_ms = self.host.clock.wall_ms();
        let Some(shard) = self.shards.get_mut(id) else { return Ok(()) };
        match answer {
            Ok(page) => {
                shard.opened = true;
                shard.faults = 0;
                let asked_before = std::mem::take(&mut shard.asked_before);
                shard.at_tip = page.records.is_empty() && page.behind_ms == 0 && !asked_before;
                if let Some(record) = page.records.last() {
                    shard.last = Some(record.sequence.clone());
                }
                let more = !page.records.is_empty() || page.behind_ms > 0;
                self.arrivals.extend(page.records.into_iter().map(|record| {
                    let content = deaggregate(&record.data, &record.partition_key, None);
                    let to_event = |member: &crate::deaggregate::Member<'_>| Event {
                        key: member.key.to_vec(),
                        explicit_hash_key: member.explicit_hash_key,
                        data: member.data.to_vec(),
                    };
                    Arrival {
                        shard: id.clone(),
                        arrived_ms: record.arrived_ms,
                        lag_ms: wall_ms.saturating_sub(record.arrived_ms),
                        behind_ms: page.behind_ms,
                        bytes: record.data.len() + record.partition_key.len(),
                        aggregated: matches!(content, Content::Aggregate(_)),
                        readable: content.readable_in(shard.range.first_hash, shard.range.last_hash),
                        events: content.members().iter().map(to_event).collect(),
                        sequence: record.sequence,
                    }
                }));
                shard.iterator = page.next;
                if shard.iterator.is_some() {
                    shard.phase = Phase::Due(now + if more { self.options.poll } else { self.options.idle_poll });
                } else {
                    shard.phase = Phase::Ended;
                    self.wake_children(now);
                    if !self.has_child(id) {
                        self.listing.due.get_or_insert(now);
                    }
                }
                Ok(())
            }
            Err(fault) => {
                let expired = fault.error.code == EXPIRED_ITERATOR;
                shard.asked_before = false;
                shard.opened |= fault.iterator.is_some();
                shard.iterator = fault.iterator.filter(|_| !expired);
                shard.faults += 1;
                let faults = shard.faults;
                let wait = if expired && faults == 1 { self.options.poll } else { self.wait_after(faults) };
                if let Some(shard) = self.shards.get_mut(id) {
                    shard.phase = Phase::Due(now + wait);
                }
                self.judge(fault.error, faults)
            }
        }
    }

    /// Whether a fault is worth a word yet.
    fn judge(&self, error: PutError, faults: u32) -> Result<(), PutError> {
        let for_a_person = matches!(error.class, ErrorClass::Configuration | ErrorClass::Poison);
        if for_a_person || faults.is_multiple_of(self.options.faults_max.max(1)) {
            return Err(error);
        }
        tracing::debug!(%error, faults, "reading goes on after a wait");
        Ok(())
    }

    fn wait_after(&self, faults: u32) -> Duration {
        let longest = self.options.backoff.saturating_mul(50);
        let most = self.options.backoff.saturating_mul(1 << faults.saturating_sub(1).min(16)).min(longest);
        most / 2 + self.host.entropy.jitter(most / 2)
    }
}

impl Shard {
    const fn new(range: ShardRange, phase: Phase, from: ReadFrom) -> Self {
        Self { range, phase, from, opened: false, iterator: None, last: None, faults: 0, at_tip: false, asked_before: false }
    }

    /// *NO-GAP*: where a new iterator is put, should one be needed.
    fn read_point(&self, started_ms: u64) -> ReadPoint {
        match (&self.last, self.from) {
            (Some(last), _) => ReadPoint::After(last.clone()),
            // Nothing was seen since the start; the newest record now may not be the newest then. Whole seconds,
            // because emulators stamp arrivals so.
            (None, ReadFrom::Latest) if self.opened => ReadPoint::SinceMs(started_ms / 1000 * 1000),
            (None, from) => ReadPoint::From(from),
        }
    }
}

/// One read, with a new iterator first where there is none.
async fn read(reader: Arc<dyn KinesisReader>, shard: ShardId, iterator: Option<String>, point: ReadPoint) -> Done {
    let iterator = match iterator {
        Some(iterator) => iterator,
        None => match reader.iterator(&shard, point).await {
            Ok(iterator) => iterator,
            Err(error) => return Done::Read(shard, Err(ReadFault { error, iterator: None })),
        },
    };
    let answer = reader.read(iterator.clone()).await;
    Done::Read(shard, answer.map_err(|error| ReadFault { error, iterator: Some(iterator) }))
}

#[cfg(test)]
mod tests;
