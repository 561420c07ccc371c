//! Hands events to their shards' queues: the sweep, and the shards that lag behind it.
//!
//! Place: part of the [`Dispatcher`]; called by `poll`. Bounded in each call, so that answers are not kept
//! waiting by a long backlog.
//!
//! *IN-ORDER-FEED*: each side of a queue gets its events in position order. It takes part in its sweep, or lags and reads on
//! its own from the first position it did not get; it joins again when it has read up to the sweep. Which side an event is
//! for is decided by its position and key alone (`fresh.rs`), so that who meets it again decides alike.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::queue::{Lag, NO_CHAIN, Slot, SlotState};
use super::together::part_of;
use super::window::Keeping;
use super::{Dispatcher, Queue};
use crate::event::{KeyHash, Lane, Position};
use crate::spool::cursor::Damaged;
use crate::spool::frame::Frame;
use crate::spool::gather::Chunk;
use crate::spool::index::Entry;
use crate::spool::segment::Segment;

/// Bytes swept in one call.
const SWEEP_BYTES_MAX: usize = 4 << 20;

/// Bytes swept between two looks at what all queues hold, at most.
const SWEEP_STEP_BYTES: usize = 512 << 10;

/// Bytes read for one lagging queue in one call, at most: no more than its share, or it would take the others' room.
const LAG_BYTES: usize = 256 << 10;

impl Dispatcher {
    /// Fills the queues, as far as it keeps requests full. True when there is more to feed at once.
    pub(super) fn feed(&mut self, now: Duration) -> bool {
        let mut more = false;
        self.look_for_backlog(now);
        match self.feed_fresh(now) {
            Ok(again) => more |= again,
            Err(error) => self.cannot_read(&error, now),
        }
        for fresh in [true, false] {
            let apart = match self.feed_together(fresh, now) {
                Ok((apart, again)) => {
                    more |= again;
                    apart
                }
                Err(error) => {
                    self.cannot_read(&error, now);
                    continue;
                }
            };
            for at in apart {
                match self.feed_lagging(at, fresh, now) {
                    Ok(again) => more |= again,
                    Err(error) => self.cannot_read(&error, now),
                }
            }
        }
        let (mut swept, mut look_at) = (0, 0);
        while swept < SWEEP_BYTES_MAX {
            if swept >= look_at {
                look_at = swept + self.sweep_step_bytes();
                if !self.wants_more(now) {
                    return more;
                }
            }
            match self.sweep_once(now) {
                Ok(0) => return more,
                Ok(bytes) => swept += bytes,
                Err(error) => {
                    self.cannot_read(&error, now);
                    return more;
                }
            }
        }
        true
    }

    /// Whether the sweep goes on: a queue that may send has next to nothing, and what the others hold would not
    /// keep the requests full. So an empty shard does not drive the sweep past what memory holds while there is
    /// work for all; and neither a dead shard's full queue (it may not send) nor a hot key's long chain (a queue
    /// counts up to twice its share) keeps the sweep from going on for the others.
    fn wants_more(&mut self, now: Duration) -> bool {
        self.count_held();
        let (mut usable, mut ready) = (0, 0);
        let mut starving = false;
        let mut starves_at: Option<Duration> = None;
        self.lagging_part = 0.0;
        for at in 0..self.queues.len() {
            let queue = &self.queues[at];
            let may_send_at = queue.not_before.max(queue.limiter.ready_at(1));
            let starves = queue.lag.is_none() && self.hungry(at, false);
            if queue.lag.is_some() {
                self.lagging_part += part_of(&queue.shard);
            }
            if may_send_at <= now {
                usable += self.usable_bytes(at);
                ready += queue.ready_bytes();
                starving |= starves;
            } else if starves {
                starves_at = Some(starves_at.map_or(may_send_at, |soonest| soonest.min(may_send_at)));
            }
        }
        if let Some(at) = starves_at {
            // An empty queue has nothing that would wake us when its shard takes records again.
            self.wake(at);
        }
        self.pressed = ready >= self.sweep_target_bytes();
        starving && usable < self.sweep_target_bytes()
    }

    /// What all queues hold, on each side.
    pub(super) fn count_held(&mut self) {
        self.held_by = Default::default();
        for queue in &self.queues {
            for (fresh, held) in [false, true].into_iter().zip(&mut self.held_by) {
                *held = (held.0 + queue.side_len(fresh), held.1 + queue.side_waiting_bytes(fresh));
            }
        }
    }

    /// Frame bytes of a queue that may send which keep requests full. Of chains only the heads may be sent.
    pub(super) fn usable_bytes(&self, at: usize) -> usize {
        let waiting = self.queues[at].waiting_bytes();
        if self.chaining() { waiting.min(2 * self.share(false).1) } else { waiting }
    }

    pub(super) fn cannot_read(&mut self, error: &io::Error, now: Duration) {
        tracing::error!(%error, "the spool cannot be read; trying again");
        self.wake(now + Duration::from_secs(1));
    }

    /// What may be sent at once, over all queues, beyond which the sweep waits: a good part of what may be under way, and what
    /// is swept after a look still within what may wait: else queues would lag for no other reason than that.
    pub(super) fn sweep_target_bytes(&self) -> usize {
        (self.budgets.in_flight_bytes / 5 * 3).min(self.waiting_bytes_max() - 2 * self.sweep_step_bytes())
    }

    /// Bytes swept between two looks at what all queues hold.
    fn sweep_step_bytes(&self) -> usize {
        SWEEP_STEP_BYTES.min(self.waiting_bytes_max() / 8)
    }

    /// Frame bytes that may wait in all queues: what the window can hold, so that it is still in memory when its turn comes.
    /// Only what a shard that takes nothing holds for long is read again.
    fn waiting_bytes_max(&self) -> usize {
        self.budgets.window_bytes / 8 * 5
    }

    /// What all queues together may hold on one side: slots, and bytes that wait. While there is a fresh side, a quarter is its.
    fn budget(&self, fresh: bool) -> (usize, usize) {
        let quarters = match (self.fresh.is_some(), fresh) {
            (false, _) => 4,
            (true, false) => 3,
            (true, true) => 1,
        };
        (self.options.slots_max / 4 * quarters, self.waiting_bytes_max() / 4 * quarters)
    }

    /// A queue's equal share of that.
    fn share(&self, fresh: bool) -> (usize, usize) {
        let queues = self.queues.len().max(1);
        let (slots, bytes) = self.budget(fresh);
        ((slots / queues).max(16), bytes / queues)
    }

    /// The queue's side holds what it may: its share, or more as long as there is enough for all.
    pub(super) fn is_full(&self, at: usize, fresh: bool) -> bool {
        let ((slots, bytes), (slots_all, bytes_all)) = (self.share(fresh), self.budget(fresh));
        let held = self.held_by[usize::from(fresh)];
        let slots = if held.0 < slots_all { slots.max(slots_all / 4) } else { slots };
        let bytes = if held.1 < bytes_all { bytes.max(bytes_all / 4) } else { bytes };
        let queue = &self.queues[at];
        // One event always has room.
        queue.side_len(fresh) >= slots || queue.side_waiting_bytes(fresh) > bytes
    }

    /// It has little left to send. Events in chains count: they come as their keys' turns do.
    pub(super) fn hungry(&self, at: usize, fresh: bool) -> bool {
        let (slots, bytes) = self.share(fresh);
        let queue = &self.queues[at];
        queue.side_waiting_bytes(fresh) < (bytes / 2).min(2 * self.options.record_bytes_max)
            && !self.is_full(at, fresh)
            && queue.side_len(fresh) < slots.max(32)
    }

    pub(super) fn lag_of(&mut self, at: usize, fresh: bool) -> &mut Option<Lag> {
        let queue = &mut self.queues[at];
        if fresh { &mut queue.fresh_lag } else { &mut queue.lag }
    }

    /// Hands out one chunk, of so many bytes (1 at least); 0 when all that is durable was handed out.
    fn sweep_once(&mut self, now: Duration) -> io::Result<usize> {
        let Some(swept) = self.cursor.next(self.sweep)? else { return Ok(0) };
        for damaged in &swept.damaged {
            self.enqueue_damaged(*damaged, now);
        }
        let chunk = swept.chunk;
        let mut keeping = Keeping::of(&chunk, self.lagging_part < 0.5);
        let mut offset = 0;
        let mut end = chunk.first;
        while let Some(frame) = Frame::parse(&chunk.bytes[offset..]) {
            // Positions that recovery found damaged are missing: the last frame tells where the chunk ends.
            end = Position(frame.position().0 + 1);
            if frame.position() >= self.sweep {
                let at = self.queue_of(frame.hash());
                if self.queues[at].lag.is_none() && !self.is_fresh(frame.position(), frame.hash()) {
                    if self.waits_for_fresh(at, frame.position()) {
                        self.queues[at].lag = Some(Lag::new(frame.position()));
                    } else {
                        self.offer(at, false, &frame, &chunk, offset, &mut keeping, now);
                    }
                }
            }
            offset += frame.len();
        }
        self.sweep = self.sweep.max(end);
        self.window.keep(keeping);
        Ok(offset.max(1))
    }

    pub(super) fn queue_of(&self, hash: KeyHash) -> usize {
        self.map.as_ref().map_or(0, |map| map.shard_of(hash))
    }

    /// Offers a queue the frame at `offset` of a chunk that is being handed out; if it takes it, the window will keep it.
    #[expect(clippy::too_many_arguments, reason = "which queue, which frame, where it lies, and when")]
    pub(super) fn offer(
        &mut self,
        at: usize,
        fresh: bool,
        frame: &Frame<'_>,
        chunk: &Chunk,
        offset: usize,
        keeping: &mut Keeping,
        now: Duration,
    ) {
        let entry = Entry { offset: chunk.offset + offset as u32, len: frame.len() as u32 };
        let (number, start) = (self.window.next(), keeping.offset(offset));
        if self.enqueue(at, fresh, frame, keeping.chunk(), number, start, entry, now) {
            keeping.take(&chunk.bytes[offset..offset + frame.len()]);
        }
    }

    /// Appends an event to its queue; false when the queue lags from it on, or it is settled.
    #[expect(clippy::too_many_arguments, reason = "a slot's origin has that many parts, and two callers")]
    pub(super) fn enqueue(
        &mut self,
        at: usize,
        fresh: bool,
        frame: &Frame<'_>,
        chunk: &Chunk,
        number: u32,
        chunk_offset: usize,
        entry: Entry,
        now: Duration,
    ) -> bool {
        let position = frame.position();
        let full = self.is_full(at, fresh);
        let chaining = self.chaining();
        let lag = self.lag_of(at, fresh);
        if full && lag.is_none() {
            *lag = Some(Lag { place: Some((chunk.segment, u64::from(entry.offset))), ..Lag::new(position) });
            return false;
        }
        if !self.is_outstanding(frame.hash().lane(), position, fresh) {
            return false;
        }
        let received_ms = chunk.created_ms + u64::from(frame.time_ms());
        let slot = Slot {
            position,
            chunk: number,
            chunk_offset: chunk_offset as u32,
            segment: chunk.segment,
            entry,
            since_ms: now.as_millis() as u32,
            age_ms: u32::try_from(self.wall_ms.saturating_sub(received_ms)).unwrap_or(u32::MAX),
            hash: frame.hash().0,
            key_len: frame.key_bytes().len() as u16,
            explicit: frame.explicit_hash(),
            state: SlotState::Waiting,
            behind: if chaining { 0 } else { NO_CHAIN },
            attempts: 0,
        };
        let held = &mut self.held_by[usize::from(fresh)];
        *held = (held.0 + 1, held.1 + entry.len as usize);
        self.queues[at].push(slot, fresh);
        true
    }

    /// A frame that no longer checks takes its place in the order of its lane: it is found out again when it is packed.
    fn enqueue_damaged(&mut self, damaged: Damaged, now: Duration) {
        // Its hash is unknown: of a lane's several queues the first one accounts for it.
        let at = self.queue_of(KeyHash(damaged.lane.first_hash()));
        let position = damaged.position;
        if position < self.sweep {
            return;
        }
        self.sweep = Position(position.0 + 1);
        if self.queues[at].lag.is_none() && !self.is_fresh_damaged(&damaged) {
            if self.waits_for_fresh(at, position) {
                self.queues[at].lag = Some(Lag::new(position));
            } else {
                self.enqueue_dead(at, false, damaged, position, now);
            }
        }
    }

    /// It is to be enqueued now; false when it is settled already.
    fn is_outstanding(&mut self, lane: Lane, position: Position, fresh: bool) -> bool {
        if position < self.known_below && self.ahead.contains(position) {
            return false;
        }
        let marks = match &mut self.fresh {
            Some(held) if fresh => held.marks_mut(),
            _ => &mut self.marks,
        };
        marks.enqueue(lane, position)
    }

    pub(super) fn enqueue_dead(&mut self, at: usize, fresh: bool, damaged: Damaged, position: Position, now: Duration) {
        if !self.is_outstanding(damaged.lane, position, fresh) {
            return;
        }
        let slot = Slot {
            position,
            chunk: self.window.next().wrapping_sub(1),
            chunk_offset: 0,
            segment: damaged.segment,
            entry: damaged.entry,
            since_ms: now.as_millis() as u32,
            age_ms: 0,
            hash: damaged.lane.first_hash(),
            key_len: 0,
            explicit: false,
            state: SlotState::Waiting,
            behind: NO_CHAIN,
            attempts: 0,
        };
        self.queues[at].push(slot, fresh);
    }

    /// Reads on in the lanes of a shard that lags. True when there is more to read at once.
    fn feed_lagging(&mut self, at: usize, fresh: bool, now: Duration) -> io::Result<bool> {
        let Some(mut lag) = self.lag_of(at, fresh).take() else { return Ok(false) };
        let outcome = self.read_lag(at, fresh, &mut lag, now);
        let joined = matches!(outcome, Ok(Some(true)));
        if !joined {
            *self.lag_of(at, fresh) = Some(lag);
        }
        outcome.map(|end| end.is_none() && self.hungry(at, fresh))
    }

    /// `Some(true)` when it has read up to the sweep, `Some(false)` when what comes next must wait for the fresh side.
    fn read_lag(&mut self, at: usize, fresh: bool, lag: &mut Lag, now: Duration) -> io::Result<Option<bool>> {
        let (sweep, end) = (self.sweep_of(fresh), self.may_read_to(at, fresh));
        let (first_lane, last_lane) = self.queues[at].lanes();
        let number = self.window.next();
        lag.place = None;
        let bytes_max = LAG_BYTES.min(self.share(fresh).1).max(1);
        let mut bytes = Vec::new();
        let mut slots: Vec<(usize, Entry)> = Vec::new();
        let mut held: Option<Arc<Segment>> = None;
        let mut joined = None;
        let mut failed = None;
        let mut dead = Vec::new();
        while bytes.len() < bytes_max {
            let Some((id, segment_end)) = lag.segment else {
                // The next segment that may hold something of ours.
                let found = self.cursor.shared().table.holding(lag.from).filter(|segment| segment.base < end);
                let Some(segment) = found.filter(|_| lag.from < end) else {
                    joined = Some(end == sweep);
                    break;
                };
                if held.is_some() {
                    // One chunk is of one segment.
                    break;
                }
                let segment_end = segment.extent().end;
                // Nothing was read yet: a chunk is of one segment, and its segment is listed first.
                lag.entries = self.cursor.lane_frames(&segment, first_lane, last_lane)?;
                lag.entries.reverse();
                lag.segment = Some((segment.id, segment_end));
                continue;
            };
            let segment = match &held {
                Some(segment) if segment.id == id => Arc::clone(segment),
                Some(_) => break,
                None => match self.cursor.shared().table.get(id) {
                    Some(segment) => Arc::clone(held.insert(segment)),
                    None => {
                        // Removed meanwhile: all in it was settled.
                        lag.segment = None;
                        lag.from = lag.from.max(segment_end);
                        continue;
                    }
                },
            };
            let Some((lane, entry)) = lag.entries.last().copied() else {
                lag.segment = None;
                lag.from = lag.from.max(segment_end);
                if bytes.is_empty() {
                    held = None;
                }
                continue;
            };
            let start = bytes.len();
            let ahead = lag.entries.iter().rev().skip(1).map(|(_, entry)| *entry);
            let whole = match self.cursor.read_frame_and(&segment, entry, ahead, &mut bytes) {
                Ok(whole) => whole,
                Err(error) => {
                    // What was read so far is enqueued all the same: `lag.from` is past it.
                    failed = Some(error);
                    break;
                }
            };
            if whole {
                let frame = Frame::parse(&bytes[start..]).expect("read_frame checked it");
                let position = frame.position();
                if position >= end {
                    bytes.truncate(start);
                    joined = Some(end == sweep);
                    break;
                }
                let ours =
                    position >= lag.from && self.queue_of(frame.hash()) == at && self.is_fresh(position, frame.hash()) == fresh;
                if ours {
                    slots.push((start, entry));
                } else {
                    bytes.truncate(start);
                }
                lag.from = lag.from.max(Position(position.0 + 1));
            } else if self.queue_of(KeyHash(lane.first_hash())) == at {
                let position = match self.cursor.damaged_position(&segment, entry) {
                    Ok(position) => position,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                };
                if position >= end {
                    joined = Some(end == sweep);
                    break;
                }
                // One that lies behind what was read before is settled already.
                if position >= lag.from {
                    lag.from = Position(position.0 + 1);
                    let damaged = Damaged { segment: id, entry, lane, position };
                    if self.is_fresh_damaged(&damaged) == fresh {
                        dead.push((slots.len(), damaged, position));
                    }
                }
            }
            lag.entries.pop();
        }
        let Some(segment) = held else { return Ok(joined) };
        let chunk = Chunk::cold(bytes, lag.from, slots.len() as u32, segment.id, 0, segment.created_ms);
        let mut dead = dead.into_iter().peekable();
        for (n, (start, entry)) in slots.iter().enumerate() {
            while let Some((_, damaged, position)) = dead.next_if(|(before, _, _)| *before <= n) {
                self.enqueue_dead(at, fresh, damaged, position, now);
            }
            if let Some(frame) = Frame::parse(&chunk.bytes[*start..]) {
                // The queue's lag is taken out while it is fed, which would let `enqueue` begin another.
                *self.lag_of(at, fresh) = Some(Lag::new(lag.from));
                self.enqueue(at, fresh, &frame, &chunk, number, *start, *entry, now);
                *self.lag_of(at, fresh) = None;
            }
        }
        for (_, damaged, position) in dead {
            self.enqueue_dead(at, fresh, damaged, position, now);
        }
        self.window.push(Arc::new(chunk));
        failed.map_or(Ok(joined), Err)
    }

    /// Forgets chunks that no slot refers to.
    pub(super) fn trim_window(&mut self) {
        let oldest = self.queues.iter().flat_map(Queue::oldest).map(|slot| slot.chunk);
        self.window.forget_unused(oldest);
    }
}
