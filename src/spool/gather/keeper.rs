//! The commit thread: commits the groups, answers their receipts or refuses them, and sees to what is due between groups.
//!
//! Place: the thread runs [`commit_loop`] over the spool's [`Writer`]; groups come from `gather`, whether there is room is
//! `room`'s to say, what is committed goes to the hot tail. Owner: everything here belongs to the thread; others read the
//! flags in the metrics.
//!
//! *RECEIPT-AFTER-SYNC* in class `always`: receipts are answered after [`Writer::commit`] and by nothing else. Between
//! groups, and only while there is cause: the sync that class `interval` owes, a look whether a full spool has room again,
//! a probe of a disk that failed a sync.
//!
//! Failure: see `gather`. A group that was refused spent no position and leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::pulse::LastPulse;
use super::room::{Episode, Room, SyncTimer, told_doubtful, usage};
use super::{Chunk, FULL, Gathering, Next, Permit, RETRY_WAIT, STREAM_BYTES, Shared};
use crate::config::{OnFull, SyncClass};
use crate::event::Position;
use crate::metrics::{Limit, locked};
use crate::spool::commit::{Placed, Writer};
use crate::spool::segment::SegmentId;

/// What became of a group.
enum Outcome {
    Committed,
    /// There was no room, and the policy is to refuse.
    Refused(Limit),
    /// The spool closed while it could not be committed.
    Abandoned,
}

/// The commit thread: takes groups, makes them durable, answers, and hands them on. Ends when the spool is
/// closed and all that was submitted is committed, or when closed while commits fail.
pub fn commit_loop(shared: &Arc<Shared>, mut writer: Writer) {
    let _last_pulse = LastPulse(shared);
    let clock = Arc::clone(&shared.host.clock);
    let class = shared.policy().sync;
    writer.sync_each_group(class == SyncClass::Always);
    shared.metrics.writable.store(true, Ordering::Relaxed);
    shared.metrics.spool_bytes.store(shared.table.bytes(), Ordering::Relaxed);
    let mut keeper = Keeper { shared, writer, room: Room::default(), episode: None, timer: SyncTimer::default() };
    keeper.look_before_the_first();
    if !keeper.resume() {
        shared.abandon();
        return;
    }
    let mut stream = false;
    loop {
        let mut group = match shared.next_group(stream, keeper.patience(clock.monotonic())) {
            Next::Group(group) => group,
            Next::Nothing => {
                keeper.look_after(clock.monotonic());
                continue;
            }
            Next::Closed => break,
        };
        stream = group.bytes >= STREAM_BYTES / 8;
        let outcome = if group.events > 0 { keeper.commit_group(&mut group) } else { Outcome::Committed };
        match outcome {
            Outcome::Committed => keeper.receipts(group, clock.monotonic()),
            Outcome::Refused(limit) => keeper.refuse(group, limit),
            Outcome::Abandoned => {
                // Batches that came while it was tried would otherwise wait for as long as anybody holds a handle.
                shared.abandon();
                keeper.writer.sync();
                told_doubtful(&mut keeper.writer);
                return;
            }
        }
        if keeper.needs_care() {
            keeper.look_after(clock.monotonic());
        }
    }
    keeper.writer.seal();
    told_doubtful(&mut keeper.writer);
}

/// What the commit thread keeps between two groups.
struct Keeper<'s> {
    shared: &'s Arc<Shared>,
    writer: Writer,
    room: Room,
    /// While there is no room, and until the first group after that is committed.
    episode: Option<Episode>,
    timer: SyncTimer,
}

impl Keeper<'_> {
    /// Something is due sooner or later though no group comes.
    fn needs_care(&self) -> bool {
        let metrics = &self.shared.metrics;
        self.timer.is_set() || metrics.full.load(Ordering::Relaxed) || !metrics.writable.load(Ordering::Relaxed)
    }

    /// How long a group may be waited for before [`Keeper::look_after`] is due.
    fn patience(&self, now: Duration) -> Option<Duration> {
        let metrics = &self.shared.metrics;
        let retry = metrics.full.load(Ordering::Relaxed) || !metrics.writable.load(Ordering::Relaxed);
        self.timer.remaining(now).into_iter().chain(retry.then_some(RETRY_WAIT)).min()
    }

    /// Syncs what is due, and finds out whether a spool that refuses may take events again, and a disk that failed.
    fn look_after(&mut self, now: Duration) {
        let metrics = &self.shared.metrics;
        if !self.timer.run(&mut self.writer, now) {
            metrics.writable.store(false, Ordering::Relaxed);
        }
        if !metrics.writable.load(Ordering::Relaxed) && self.writer.probe().is_ok() {
            tracing::info!("the spool can be written again");
            metrics.writable.store(true, Ordering::Relaxed);
            metrics.spool_bytes.store(self.shared.table.bytes(), Ordering::Relaxed);
        }
        if let Some(Episode { limit, cost, .. }) = self.episode
            && metrics.full.load(Ordering::Relaxed)
        {
            let now_by = match limit {
                Limit::Disk => self.room.limit_after_refusal(self.shared, cost),
                _ => self.room.limit(self.shared, cost),
            };
            metrics.set_full(now_by);
        }
    }

    /// A spool that has no room from the start says so before somebody's event finds out.
    fn look_before_the_first(&mut self) {
        let cost = self.writer.cost(1, 0);
        if let Some(limit) = self.room.limit(self.shared, cost) {
            self.begin_episode(limit, cost);
        }
    }

    /// After an opening that could not sync what it found: writes again what is held back for that, before anything else and
    /// however long it takes, and finds out whether the disk takes syncs. False when the spool closed first.
    fn resume(&mut self) -> bool {
        let (shared, metrics) = (self.shared, &self.shared.metrics);
        if !self.writer.is_suspect() {
            return true;
        }
        metrics.writable.store(false, Ordering::Relaxed);
        let written = loop {
            match self.writer.write_held() {
                Ok(written) => break written,
                Err(error) => tracing::debug!(%error, "the group in doubt cannot be written yet"),
            }
            // Whoever waits for an end waits for this too.
            if !shared.wait_for_space() {
                return false;
            }
        };
        let Some((placed, held)) = written else {
            metrics.writable.store(self.writer.probe().is_ok(), Ordering::Relaxed);
            return true;
        };
        tracing::info!(events = held.events(), "the spool can be written again, and the group in doubt is durable");
        metrics.writable.store(true, Ordering::Relaxed);
        metrics.spool_bytes.store(shared.table.bytes(), Ordering::Relaxed);
        let Placed { segment, offset, first, created_ms } = placed;
        let count = held.events();
        locked(&metrics.account).accepted += u64::from(count);
        let bytes = held.into_frames();
        let chunk = Chunk { bytes, first, count, segment, offset, created_ms, pool: Some(Arc::clone(&shared.pool)) };
        shared.tail.push(vec![Arc::new(chunk)], self.writer.next());
        if let Some(wake) = &*locked(&shared.wake) {
            wake();
        }
        true
    }

    /// Notes that there is no room for `cost` bytes; says so if that is new.
    fn begin_episode(&mut self, limit: Limit, cost: u64) {
        let refused_before = self.shared.refused.load(Ordering::Relaxed);
        match &mut self.episode {
            Some(episode) => (episode.limit, episode.cost) = (limit, cost),
            None => {
                let on_full = self.shared.policy().on_full.name();
                tracing::warn!(limit = limit.name(), on_full, max_bytes = self.shared.max_bytes, "{}", limit.sentence());
                self.episode = Some(Episode { limit, cost, refused_before });
            }
        }
        self.shared.metrics.set_full(Some(limit));
    }

    /// A group found room.
    fn end_episode(&mut self) {
        if let Some(episode) = self.episode.take() {
            let refused = self.shared.refused.load(Ordering::Relaxed) - episode.refused_before;
            tracing::info!(refused, "the spool has room again");
        }
        self.shared.metrics.set_full(None);
    }

    /// Commits one group, however long it takes, if the policy is not to refuse.
    fn commit_group(&mut self, group: &mut Gathering) -> Outcome {
        let shared = self.shared;
        let metrics = &shared.metrics;
        let refuse = shared.policy().on_full == OnFull::Reject;
        if let Some(limit) = metrics.full_by().filter(|_| refuse) {
            // It was on its way when the doors were told. Were it taken for being small, fullness would flicker.
            group.parts.drain(..).for_each(|(bytes, _)| shared.pool.give(bytes));
            return Outcome::Refused(limit);
        }
        // A receipt is exact only if its parts keep their order; sizes are needed after the bytes are moved out.
        let counts: Vec<u32> = group.parts.iter().map(|(_, count)| *count).collect();
        let mut buffers: Vec<Vec<u8>> = group.parts.drain(..).map(|(bytes, _)| bytes).collect();
        let mut failing = false;
        let (placed, cost) = loop {
            let cost = self.writer.cost(group.events, group.bytes as u64);
            let mut limit = self.room.limit(shared, cost);
            if limit.is_none() {
                let before = shared.host.clock.monotonic();
                match self.writer.commit(&mut buffers) {
                    Ok(placed) => {
                        let took = shared.host.clock.monotonic().saturating_sub(before);
                        metrics.commit_seconds.observe_n(took.as_secs_f64(), 1);
                        break (placed, cost);
                    }
                    Err(error) => {
                        let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
                        limit = full.then_some(Limit::Disk);
                        // A disk without room is not broken: refusing is all that is left to do about it.
                        if !(full && refuse) {
                            metrics.writable.store(false, Ordering::Relaxed);
                            if !failing {
                                tracing::error!(%error, "the spool cannot be written: receipts wait; trying a new file again and again");
                            }
                            failing = true;
                            metrics.set_full(limit);
                        }
                    }
                }
            }
            if let Some(limit) = limit {
                self.begin_episode(limit, cost);
                if refuse {
                    buffers.into_iter().for_each(|bytes| shared.pool.give(bytes));
                    return Outcome::Refused(limit);
                }
                // Asked again with every look, for as long as there is none.
                if let Some(ask) = &*locked(&shared.ask_for_room) {
                    ask();
                }
            }
            // It may be long until the next look at the timer.
            self.timer.run(&mut self.writer, Duration::MAX);
            if !shared.wait_for_space() {
                return Outcome::Abandoned;
            }
        };
        if failing {
            tracing::info!("the spool can be written again");
        }
        told_doubtful(&mut self.writer);
        metrics.writable.store(true, Ordering::Relaxed);
        self.end_episode();
        self.room.wrote(cost);
        self.timer.wrote(shared.policy().sync, shared.host.clock.monotonic());
        if let Some(placed) = placed.first() {
            self.book(placed.segment, group);
        }
        metrics.spool_bytes.store(shared.table.bytes(), Ordering::Relaxed);
        locked(&metrics.account).accepted += group.events;
        let chunks = buffers.into_iter().zip(counts).zip(placed).map(|((bytes, count), placed)| {
            let Placed { segment, offset, first, created_ms } = placed;
            Arc::new(Chunk { bytes, first, count, segment, offset, created_ms, pool: Some(Arc::clone(&shared.pool)) })
        });
        shared.tail.push(chunks.collect(), self.writer.next());
        if let Some(wake) = &*locked(&shared.wake) {
            wake();
        }
        Outcome::Committed
    }

    /// Books a committed group for its sources.
    fn book(&self, segment: SegmentId, group: &Gathering) {
        let usages = self.shared.sources();
        self.shared.book.add(segment, group, &usages);
        let mut accepted = locked(&self.shared.metrics.accepted_by_source);
        // Batches of one source come in runs, most often.
        for run in group.waiting.chunk_by(|a, b| a.source == b.source) {
            let Some(usage) = usage(&usages, run[0].source) else { continue };
            let events: u64 = run.iter().map(|waiting| u64::from(waiting.events)).sum();
            match accepted.get_mut(&usage.name) {
                Some(count) => *count += events,
                None => drop(accepted.insert(usage.name.clone(), events)),
            }
        }
    }

    /// Answers the receipts of a committed group.
    fn receipts(&self, group: Gathering, now: Duration) {
        let base = self.writer.next().0 - group.events;
        // Given back as one, after the last receipt.
        let mut permits: Option<OwnedSemaphorePermit> = None;
        for waiting in group.waiting {
            if let Some(companion) = waiting.companion {
                companion.durable();
            }
            let Permit { held, since } = waiting.permit;
            self.shared.metrics.receipt_seconds.observe_n(now.saturating_sub(since).as_secs_f64(), 1);
            // Whoever dropped the receipt does not want to know.
            waiting.sender.send(Ok(Position(base + waiting.first))).ok();
            match &mut permits {
                Some(permits) => permits.merge(held),
                None => permits = Some(held),
            }
        }
    }

    /// Answers and counts a group that was refused. Empty batches have nothing to refuse.
    fn refuse(&self, group: Gathering, limit: Limit) {
        let usages = self.shared.sources();
        for waiting in group.waiting {
            let events = u64::from(waiting.events) + waiting.companion.map_or(0, |companion| companion.refused());
            if events > 0 {
                self.shared.refused.fetch_add(events, Ordering::Relaxed);
                let source = usage(&usages, waiting.source).map_or("", |usage| &usage.name);
                self.shared.count_rejected(source, FULL, events);
            }
            let answer = if waiting.events > 0 { Err(limit) } else { Ok(self.writer.next()) };
            // Whoever dropped the receipt does not want to know.
            waiting.sender.send(answer).ok();
        }
    }
}
