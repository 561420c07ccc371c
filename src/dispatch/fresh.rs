//! Fresh events go ahead of a backlog, as far as the order of keys permits.
//!
//! Place: part of the [`Dispatcher`]; `feed` asks which side of its queue an event is for, and reads fresh events from the end
//! of the spool while the backlog is read from its beginning. Without a backlog nothing of this exists.
//!
//! What may go ahead. With `order = "none"`, whatever comes from now on. With `order = "key"`, an event whose key has no older
//! event pending. Keys are too many to be remembered, and on disk an event's key stands beside its data only: so when a shard
//! that takes records has been late for five seconds, the backlog is read once from its beginning to its end, and its keys are put
//! into a filter (`filter.rs`). Where that reading meets the end of what is durable is the *split*. From there on the rule is
//! fixed: an event at or past the split is fresh if the filter does not know its key; all else is in order.
//!
//! *KEY-ORDER*: the rule depends on position and key only. So a key is on one side of its queue from the split to the end, and
//! each side keeps its order: there is nothing that could overtake. When the backlog is gone, the rule gets an end too: what
//! comes at or past the end is in order again, and waits until the fresh side of its queue is empty. When all marks have
//! passed the end, the rule is forgotten, and another backlog may have another one.
//!
//! *MARK-BEHIND-DELIVERY*: fresh events have marks of their own. Saved is, for each lane, the lower of both. What is settled
//! past it is kept by position (`ahead.rs`) for a clean stop; after a crash it is sent again, and counted.
//!
//! What this cannot do: a key with an old event waits for it, and goes on waiting after that one is delivered, until the whole
//! backlog is. A key that only looks like one in the filter waits too, less than one in 500 up to two million keys. And until
//! the backlog was read once, nothing goes ahead; after a restart too.

pub mod ahead;
mod filter;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::ahead::Ahead;
use self::filter::KeyFilter;
use super::Dispatcher;
use super::marks::Marks;
use super::queue::{Queue, SlotState};
use super::window::Keeping;
use crate::config::Order;
use crate::event::{KeyHash, LANES, Lane, Position};
use crate::limits::SHARD_BYTES_PER_SECOND;
use crate::spool::cursor::{Cursor, Damaged};
use crate::spool::frame::Frame;
use crate::spool::segment::{Segment, SegmentId};

/// A shard is late when its oldest event is so old, ms. Below it, order costs no more than that.
pub(super) const LATE: u64 = 5_000;

/// The backlog is gone when no shard's oldest event is older, ms.
const GONE: u64 = 1_000;

/// How often it is looked whether there is a backlog.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A shard that took nothing for so long has other troubles.
const LIVES: Duration = Duration::from_secs(2);

/// Bytes of the backlog that are read for their keys in one call: some milliseconds.
const SCAN_BYTES: usize = 4 << 20;

/// Bytes of fresh events handed out in one call.
const FEED_BYTES: usize = 4 << 20;

/// What is settled ahead of the marks is known by position up to so many bytes: 64 million events in a row.
const AHEAD_BYTES_MAX: usize = 8 << 20;

/// Beside a backlog an aggregate has no more than the rate gives in `linger`, and this at most and at least: so a fresh event
/// waits for the one before it as long as it would have for company.
const RECORD_SECONDS: (f64, f64) = (0.02, 0.05);

/// A backlog and its rule.
#[derive(Debug)]
pub(super) struct Fresh {
    cursor: Cursor,
    /// The keys of the backlog; without an order to keep, none are needed.
    filter: Option<KeyFilter>,
    /// Up to here the backlog's keys were read, or fresh events handed out.
    sweep: Position,
    /// The split, once it is there.
    from: Position,
    /// The end, once the backlog is gone.
    until: Position,
    marks: Marks,
}

/// No position.
const NEVER: Position = Position(u64::MAX);

impl Fresh {
    pub(super) fn marks_mut(&mut self) -> &mut Marks {
        &mut self.marks
    }

    /// The rule.
    fn takes(&self, position: Position, hash: KeyHash) -> bool {
        self.from <= position && position < self.until && !self.filter.as_ref().is_some_and(|filter| filter.may_hold(hash))
    }

    fn is_open(&self) -> bool {
        self.from != NEVER && self.until == NEVER
    }
}

/// It takes records.
fn lives(queue: &Queue, now: Duration) -> bool {
    queue.records > 0 && now.saturating_sub(queue.last_good) < LIVES
}

impl Dispatcher {
    /// The event is for the fresh side of its queue.
    pub(super) fn is_fresh(&self, position: Position, hash: KeyHash) -> bool {
        self.fresh.as_ref().is_some_and(|fresh| fresh.takes(position, hash))
    }

    /// The same of one whose bytes no longer check: if its key's hash can be read and lies in the lane that the index tells, it
    /// is taken to be right.
    pub(super) fn is_fresh_damaged(&mut self, damaged: &Damaged) -> bool {
        let at_or_past = self.fresh.as_ref().is_some_and(|fresh| fresh.from <= damaged.position);
        let segment = at_or_past.then(|| self.cursor.shared().table.get(damaged.segment)).flatten();
        let Some(segment) = segment else { return false };
        let raw = self.cursor.read_raw(&segment, damaged.entry);
        let hash = Frame::parse(&raw).map(|frame| frame.hash());
        hash.is_some_and(|hash| hash.lane() == damaged.lane && self.is_fresh(damaged.position, hash))
    }

    /// Where the fresh side's sweep stands.
    pub(super) fn fresh_sweep(&self) -> Position {
        self.fresh.as_ref().filter(|fresh| fresh.from != NEVER).map_or(Position(0), |fresh| fresh.sweep)
    }

    fn fresh_is_done(&self, at: usize) -> bool {
        self.queues[at].side_len(true) == 0 && self.queues[at].fresh_lag.is_none()
    }

    /// An event in order comes after the rule's end, while the queue still has fresh ones from before it.
    pub(super) fn waits_for_fresh(&self, at: usize, position: Position) -> bool {
        self.fresh.as_ref().is_some_and(|fresh| fresh.until <= position) && !self.fresh_is_done(at)
    }

    /// Up to where the main side of a queue may be read, of `sweep`.
    pub(super) fn main_may_read_to(&self, at: usize, sweep: Position) -> Position {
        match &self.fresh {
            Some(fresh) if !self.fresh_is_done(at) => sweep.min(fresh.until),
            _ => sweep,
        }
    }

    /// The most that one aggregate of a queue should have.
    pub(super) fn record_ceiling(&self, at: usize) -> usize {
        let limiter = &self.queues[at].limiter;
        let most = self.options.record_bytes_max;
        match &self.fresh {
            Some(fresh) if fresh.is_open() => {
                let seconds = self.options.linger.as_secs_f64().clamp(RECORD_SECONDS.0, RECORD_SECONDS.1);
                limiter.record_bytes(most.min((SHARD_BYTES_PER_SECOND as f64 * seconds) as usize))
            }
            _ => limiter.record_bytes(most),
        }
    }

    /// For each lane the first position that is not settled.
    pub(super) fn marks_now(&self) -> Box<[Position; LANES]> {
        let mut marks = Box::new(*self.marks.all());
        if let Some(fresh) = self.fresh.as_ref().filter(|fresh| fresh.from != NEVER) {
            for (lane, mark) in marks.iter_mut().enumerate() {
                let of_fresh = fresh.marks.of(Lane(lane as u16));
                if of_fresh < fresh.until {
                    *mark = (*mark).min(of_fresh);
                }
            }
        }
        marks
    }

    /// Begins, ends and forgets the rule, as the backlog comes and goes.
    pub(super) fn look_for_backlog(&mut self, now: Duration) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        let age = |queue: &Queue| queue.oldest_main().map_or(0, |slot| slot.age_ms(now));
        let Some(fresh) = &mut self.fresh else {
            let is_late = |queue: &Queue| age(queue) >= self.late_ms;
            let worth_it = self.queues.iter().any(|queue| is_late(queue) && lives(queue, now))
                || (self.queues.iter().any(is_late) && !self.queues.iter().any(|queue| lives(queue, now)));
            if worth_it {
                self.begin_fresh();
            }
            return;
        };
        let late = self.queues.iter().any(|queue| age(queue) >= self.late_ms);
        if fresh.from == NEVER {
            if !late {
                self.fresh = None;
            }
            return;
        }
        if fresh.is_open() {
            let caught_up =
                |queue: &Queue| queue.lag.is_none() && queue.fresh_lag.is_none() && age(queue) < GONE.min(self.late_ms);
            let gone = self.sweep >= fresh.sweep && self.queues.iter().all(caught_up);
            if gone || self.ahead.bytes() > AHEAD_BYTES_MAX {
                fresh.until = fresh.sweep;
                tracing::info!(gone, "events go in order again");
            }
            return;
        }
        let until = fresh.until;
        if self.map.is_none() || self.sweep < until || (0..self.queues.len()).any(|at| !self.fresh_is_done(at)) {
            return;
        }
        self.advance_marks();
        if self.marks.all().iter().all(|mark| *mark >= until) {
            self.fresh = None;
            let lowest = self.marks.all().iter().min().copied().unwrap_or_default();
            self.ahead.forget_below(lowest);
        }
    }

    fn begin_fresh(&mut self) {
        let shared = Arc::clone(self.cursor.shared());
        let cursor = Cursor::new(shared, Arc::clone(&self.host.files));
        let sweep = self.marks.all().iter().min().copied().unwrap_or_default();
        let filter = (self.options.order == Order::Key).then(|| KeyFilter::new(self.pending()));
        let marks = Marks::new(Box::new([Position(0); LANES]));
        self.fresh = Some(Box::new(Fresh { cursor, filter, sweep, from: NEVER, until: NEVER, marks }));
    }

    /// Reads on in the backlog for its keys, or hands out fresh events. True when there is more to do at once.
    pub(super) fn feed_fresh(&mut self, now: Duration) -> io::Result<bool> {
        let Some(fresh) = &mut self.fresh else { return Ok(false) };
        if fresh.is_open() {
            return self.hand_out_fresh(now);
        }
        if fresh.until != NEVER {
            return Ok(false);
        }
        let mut read = 0;
        if let Some(filter) = &mut fresh.filter {
            while read < SCAN_BYTES {
                let Some(swept) = fresh.cursor.next(fresh.sweep)? else { break };
                let chunk = swept.chunk;
                let (mut offset, mut end) = (0, chunk.first);
                while let Some(frame) = Frame::parse(&chunk.bytes[offset..]) {
                    end = Position(frame.position().0 + 1);
                    if frame.position() >= self.marks.of(frame.hash().lane()) {
                        filter.add(frame.hash());
                    }
                    offset += frame.len();
                }
                fresh.sweep = fresh.sweep.max(end);
                read += offset.max(1);
            }
            if read >= SCAN_BYTES {
                return Ok(true);
            }
        }
        if fresh.filter.is_none() {
            fresh.sweep = self.cursor.shared().tail.durable();
        }
        // What was handed out in order is in order.
        if fresh.sweep >= self.sweep && self.queues.iter().any(|queue| lives(queue, now)) {
            let split = fresh.sweep;
            fresh.from = split;
            fresh.marks = Marks::new(Box::new([split; LANES]));
            if let Some(map) = &self.map {
                fresh.marks.restart([], map.shared_lanes());
            }
            tracing::info!(events = self.pending(), "there is a backlog: events of keys that have none in it go ahead of it");
        }
        Ok(false)
    }

    fn hand_out_fresh(&mut self, now: Duration) -> io::Result<bool> {
        let mut handed = 0;
        while handed < FEED_BYTES {
            let Some(fresh) = &mut self.fresh else { return Ok(false) };
            let from = fresh.sweep;
            let Some(swept) = fresh.cursor.next(from)? else { return Ok(false) };
            for damaged in swept.damaged {
                let at = self.queue_of(KeyHash(damaged.lane.first_hash()));
                if damaged.position >= from && self.queues[at].fresh_lag.is_none() && self.is_fresh_damaged(&damaged) {
                    self.enqueue_dead(at, true, damaged, damaged.position, now);
                }
            }
            let chunk = swept.chunk;
            let mut keeping = Keeping::of(&chunk, false);
            let (mut offset, mut end) = (0, chunk.first);
            while let Some(frame) = Frame::parse(&chunk.bytes[offset..]) {
                end = Position(frame.position().0 + 1);
                if frame.position() >= from && self.is_fresh(frame.position(), frame.hash()) {
                    let at = self.queue_of(frame.hash());
                    if self.queues[at].fresh_lag.is_none() {
                        self.offer(at, true, &frame, &chunk, offset, &mut keeping, now);
                    }
                }
                offset += frame.len();
            }
            if let Some(fresh) = &mut self.fresh {
                fresh.sweep = fresh.sweep.max(end);
            }
            self.window.keep(keeping);
            handed += offset.max(1);
        }
        Ok(true)
    }

    /// Moves the marks of the fresh side up to what is known.
    pub(super) fn advance_fresh_marks(&mut self) {
        let Some(fresh) = &mut self.fresh else { return };
        if fresh.from == NEVER {
            return;
        }
        let mut floors = Box::new([fresh.sweep; LANES]);
        for queue in &self.queues {
            if let Some(lag) = &queue.fresh_lag {
                let (lo, hi) = queue.lanes();
                for floor in &mut floors[lo.index()..=hi.index()] {
                    *floor = (*floor).min(lag.from);
                }
            }
        }
        fresh.marks.advance(&floors);
    }

    /// A settled slot left the main side of its queue. Its lane's saved mark may be held back by a fresh event before it.
    pub(super) fn main_settled(&mut self, position: Position) {
        if self.fresh.as_ref().is_some_and(|fresh| fresh.from <= position) {
            self.ahead.insert(position);
        }
    }

    /// A settled slot left the fresh side of its queue.
    pub(super) fn fresh_settled(&mut self, lane: Lane, position: Position) {
        if let Some(fresh) = &mut self.fresh {
            fresh.marks.settled(lane, position);
        }
        self.ahead.insert(position);
    }

    /// All queues begin anew: `settled` slots of the fresh side had not left yet.
    pub(super) fn restart_fresh(&mut self, settled: Vec<(u64, Lane)>) {
        if let (Some(fresh), Some(map)) = (&mut self.fresh, &self.map)
            && fresh.from != NEVER
        {
            fresh.marks.restart(settled, map.shared_lanes());
        }
    }

    /// Where the fresh side of a queue made anew begins to read, if there is something to read.
    pub(super) fn fresh_begins_at(&self, lo: Lane, hi: Lane) -> Option<Position> {
        let fresh = self.fresh.as_ref().filter(|fresh| fresh.from != NEVER)?;
        let from = (lo.0..=hi.0).map(|lane| fresh.marks.of(Lane(lane))).min().unwrap_or_default();
        (from < fresh.sweep).then_some(from)
    }

    /// Events of a segment that are not settled and have no slot; what is settled ahead of its mark one by one counts as well.
    pub(super) fn pending_of(&mut self, segment: &Segment) -> io::Result<u64> {
        let marks = self.marks_now();
        let pending = self.cursor.pending(segment, &marks)?;
        let end = segment.extent().end;
        if self.fresh.as_ref().is_none_or(|fresh| end <= fresh.from) && self.ahead.is_empty() {
            return Ok(pending.saturating_sub(self.marks.settled_ahead(segment.base, end)));
        }
        // Each side's own marks tell: frame by frame, which is rare enough.
        let mut cursor = Cursor::new(Arc::clone(self.cursor.shared()), Arc::clone(&self.host.files));
        let (mut settled, mut position) = (0, segment.base);
        while position < end {
            let Some(swept) = cursor.next(position)? else { break };
            let (mut offset, mut next) = (0, swept.chunk.first);
            while let Some(frame) = Frame::parse(&swept.chunk.bytes[offset..]) {
                let (at, lane) = (frame.position(), frame.hash().lane());
                if at < end && at >= marks[lane.index()] {
                    let mark = match &self.fresh {
                        Some(fresh) if fresh.takes(at, frame.hash()) => fresh.marks.of(lane),
                        _ => self.marks.of(lane),
                    };
                    settled += u64::from(at < mark || self.ahead.contains(at) || self.is_settled_past_mark(lane, at));
                }
                next = Position(at.0 + 1);
                offset += frame.len();
            }
            position = position.max(next);
        }
        Ok(pending.saturating_sub(settled))
    }

    /// A segment's file was replaced or removed: what was noted of the old one is forgotten, and its room on disk is free.
    pub(super) fn forget_file(&mut self, segment: SegmentId) {
        self.cursor.forget(segment);
        self.trail.forget(segment);
        if let Some(fresh) = &mut self.fresh {
            fresh.cursor.forget(segment);
        }
    }

    fn is_settled_past_mark(&self, lane: Lane, position: Position) -> bool {
        self.marks.is_settled_ahead(lane, position)
            || self.fresh.as_ref().is_some_and(|fresh| fresh.marks.is_settled_ahead(lane, position))
    }

    /// What went ahead may be settled past these marks: its lanes are not known.
    pub(super) fn went_past(&self, marks: &[Position; LANES]) -> bool {
        let lowest = marks.iter().min().copied().unwrap_or_default();
        self.ahead.last().is_some_and(|last| last >= lowest)
            || self.fresh.as_ref().is_some_and(|fresh| fresh.marks.settled_ahead(lowest, Position(u64::MAX)) > 0)
    }

    /// All that is settled though the saved marks are not past it, for the next start, and the events that are pending. What ended
    /// as a letter is not among it: its letter tells.
    pub fn settled_ahead(&self) -> (Ahead, u64) {
        let mut ahead = self.ahead.clone();
        for queue in &self.queues {
            let slots = queue.slots(false).chain(queue.slots(true));
            slots.filter(|slot| slot.state == SlotState::Settled).for_each(|slot| ahead.insert(slot.position));
        }
        let of_fresh = self.fresh.as_ref().map(|fresh| &fresh.marks);
        for marks in [Some(&self.marks), of_fresh].into_iter().flatten() {
            marks.each_settled_ahead(|position| ahead.insert(position));
        }
        let ended = self.ended_ahead();
        ended.iter().for_each(|position| ahead.remove(*position));
        (ahead, self.pending() + ended.len() as u64)
    }

    /// What was settled ahead of the marks at the clean stop before this start: it is not sent again.
    pub fn know_settled(&mut self, ahead: Ahead) {
        self.known_below = ahead.end();
        self.ahead = ahead;
    }

    /// Everything below `end` was given up.
    pub(super) fn raise_fresh(&mut self, end: Position) {
        if let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.from != NEVER) {
            fresh.sweep = fresh.sweep.max(end);
            fresh.marks.raise(end);
        }
    }
}
