//! Queues that lag close to one another read on together, in one pass through the spool.
//!
//! Place: part of the [`Dispatcher`]; `feed` calls it for each side before it lets single queues read their own lanes. A backlog
//! makes every queue lag, and then their frames lie side by side: to read each lane by itself would be a system call for each
//! event, which costs more than all else that is done for it. A pass reads whole files forward, as the sweep does, and gives
//! each queue its own. It is made where that is the cheaper way ([`is_worth_it`]); whoever stands far from the others, such as a
//! shard that took nothing for long, reads its own lanes as before.
//!
//! Queues come apart where their shards are limited: at the same bytes a second, one that has a small part of the events is soon
//! far ahead of one that has a large part. Each group would then read all that lies between for its own part of it, and they would
//! never meet. So most of what is read is read for the group farthest behind; the others have their turns too, in case that one
//! has far to go.
//!
//! *IN-ORDER-FEED*: a queue follows the pass from its own position on. One that is full stops at the event it did not get, and
//! follows no more; all others have got everything up to where the pass ends. *NO-BLOCKING*: a pass is bounded in bytes, and the
//! sweep, which feeds whoever does not lag, never waits for it.
//!
//! Failure: what the device refuses is told to the caller; what was handed out until then stands.

use std::io;
use std::time::Duration;

use super::Dispatcher;
use super::queue::{Lag, Place};
use super::window::Keeping;
use crate::event::{KeyHash, Position};
use crate::spool::cursor::Swept;
use crate::spool::frame::Frame;

/// Bytes read in one call by the pass that is farthest behind.
const PASS_BYTES: usize = 4 << 20;

/// Bytes read in one call by one of the other passes.
const OTHERS_BYTES: usize = 512 << 10;

/// Queues no farther apart than so many bytes read together: whoever is ahead waits for the pass, a few hundredths of a second.
pub(super) const MEETING_BYTES: usize = 32 << 20;

/// What one read by itself costs, in bytes read one after the other: about a microsecond.
const CALL_BYTES: f64 = 4096.0;

/// The least that a disk reads, bytes.
const PAGE_BYTES: f64 = 4096.0;

/// Reading everything costs less than reading one by one the frames that a part of all hashes has of it, 0 to 1.
fn is_worth_it(part: f64, frame_bytes: f64) -> bool {
    part * (frame_bytes.max(PAGE_BYTES) + CALL_BYTES) >= frame_bytes
}

/// What of all hashes a queue has, 0 to 1.
pub(super) fn part_of(shard: &crate::kinesis::ShardRange) -> f64 {
    (shard.last_hash - shard.first_hash) as f64 / u128::MAX as f64
}

/// A pass through the spool.
struct Pass {
    fresh: bool,
    /// What a frame has there on average, bytes.
    frame_bytes: f64,
    /// Those so many positions ahead of it wait for it.
    reach: u64,
    /// For each queue the first position that it did not get, if it follows.
    wants: Vec<Option<Position>>,
    /// Where it has come to, and where that lies in its file.
    at: Position,
    place: Place,
}

impl Dispatcher {
    /// Feeds lagging queues of one side by passes. Gives those that are better read by themselves, and whether there is more
    /// to read at once.
    pub(super) fn feed_together(&mut self, fresh: bool, now: Duration) -> io::Result<(Vec<usize>, bool)> {
        let (mut lagging, mut apart): (Vec<(Position, usize)>, Vec<usize>) = Default::default();
        for at in 0..self.queues.len() {
            let Some(from) = self.lag(at, fresh).map(|lag| lag.from) else { continue };
            if from < self.may_read_to(at, fresh) {
                if !self.is_full(at, fresh) {
                    lagging.push((from, at));
                }
            } else if self.hungry(at, fresh) {
                apart.push(at);
            }
        }
        lagging.sort_unstable();
        let Some((from, _)) = lagging.first() else { return Ok((apart, false)) };
        let frame_bytes = self.frame_bytes_at(*from);
        let reach = (self.meeting_bytes as f64 / frame_bytes) as u64;
        let mut groups = Vec::new();
        let mut rest = &lagging[..];
        while let [(from, first), others @ ..] = rest {
            let near = 1 + others.iter().take_while(|(other, _)| other.0 < from.0 + reach).count();
            let part: f64 = rest[..near].iter().map(|(_, at)| part_of(&self.queues[*at].shard)).sum();
            if near > 1 && is_worth_it(part, frame_bytes) {
                if rest[..near].iter().any(|(_, at)| self.hungry(*at, fresh)) {
                    groups.push(*from);
                }
                rest = &rest[near..];
            } else {
                if self.hungry(*first, fresh) {
                    apart.push(*first);
                }
                rest = others;
            }
        }
        let begin = |from: Position| Pass { fresh, frame_bytes, reach, wants: Vec::new(), at: from, place: None };
        let mut more = false;
        if let [oldest, others @ ..] = &groups[..] {
            more |= self.pass(begin(*oldest), PASS_BYTES, now)?;
            if !others.is_empty() {
                self.passes = self.passes.wrapping_add(1);
                more |= self.pass(begin(others[self.passes % others.len()]), OTHERS_BYTES, now)?;
            }
        }
        Ok((apart, more))
    }

    fn lag(&self, at: usize, fresh: bool) -> Option<&Lag> {
        let queue = &self.queues[at];
        if fresh { queue.fresh_lag.as_ref() } else { queue.lag.as_ref() }
    }

    /// What a frame has on average where a position lies.
    fn frame_bytes_at(&self, position: Position) -> f64 {
        let Some(segment) = self.cursor.shared().table.holding(position) else { return PAGE_BYTES };
        let extent = segment.extent();
        extent.frames_end as f64 / (extent.end.0.saturating_sub(segment.base.0)).max(1) as f64
    }

    /// Where the sweep of one side stands.
    pub(super) fn sweep_of(&self, fresh: bool) -> Position {
        if fresh { self.fresh_sweep() } else { self.sweep }
    }

    /// Up to where one side of a queue may be read now.
    pub(super) fn may_read_to(&self, at: usize, fresh: bool) -> Position {
        if fresh { self.fresh_sweep() } else { self.main_may_read_to(at, self.sweep) }
    }

    /// One pass. True when it ended for its length, with more to read.
    fn pass(&mut self, mut pass: Pass, bytes_max: usize, now: Duration) -> io::Result<bool> {
        let Pass { fresh, at: from, .. } = pass;
        // Who stands behind it would miss what lies between.
        let from_here_on = |lag: &&Lag| lag.from >= from;
        let follows = |at: usize| {
            let lag = self.lag(at, fresh).filter(from_here_on)?;
            (!self.is_full(at, fresh)).then_some(lag.from)
        };
        pass.wants = (0..self.queues.len()).map(follows).collect();
        let first = pass.wants.iter().position(|wanted| *wanted == Some(from));
        pass.place = first.and_then(|at| self.lag(at, fresh)).and_then(|lag| lag.place);
        if let Some((segment, offset)) = pass.place {
            self.trail.resume(from, segment, offset);
        }
        let end = self.sweep_of(fresh);
        let mut read = 0;
        let outcome = loop {
            if pass.at >= end || read >= bytes_max || !self.still_wanted(&pass, now) {
                break Ok(read >= bytes_max);
            }
            match self.trail.next(pass.at) {
                Ok(Some(swept)) => read += self.hand_round(&swept, &mut pass, end, now),
                Ok(None) => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.leave(&pass);
        outcome
    }

    /// Those that follow are worth the next read, one of them is hungry, and what they hold does not keep their part of the requests
    /// full: so they go on side by side, and those that do not lag have their part too.
    fn still_wanted(&mut self, pass: &Pass, now: Duration) -> bool {
        self.count_held();
        let (mut part, mut usable, mut following, mut hungry) = (0.0, 0, 0, false);
        for (at, wanted) in pass.wants.iter().enumerate() {
            let Some(wanted) = wanted else { continue };
            let queue = &self.queues[at];
            following += 1;
            if queue.not_before.max(queue.limiter.ready_at(1)) <= now {
                usable += self.usable_bytes(at);
            }
            if wanted.0 < pass.at.0 + pass.reach {
                part += part_of(&queue.shard);
                hungry |= self.hungry(at, pass.fresh);
            }
        }
        let target = self.sweep_target_bytes() as f64 * f64::from(following) / self.queues.len() as f64;
        hungry && is_worth_it(part, pass.frame_bytes) && (usable as f64) < target
    }

    /// Gives the frames of a chunk to the queues that follow. Their bytes are copied: most of the chunk may be others'.
    fn hand_round(&mut self, swept: &Swept, pass: &mut Pass, end: Position, now: Duration) -> usize {
        let fresh = pass.fresh;
        for damaged in &swept.damaged {
            // Of a lane's several queues the first one accounts for it, as in the sweep.
            let at = self.queue_of(KeyHash(damaged.lane.first_hash()));
            let position = damaged.position;
            if pass.wants[at].is_some_and(|wanted| wanted <= position)
                && position < self.may_read_to(at, fresh)
                && self.is_fresh_damaged(damaged) == fresh
            {
                self.enqueue_dead(at, fresh, *damaged, position, now);
                pass.wants[at] = Some(Position(position.0 + 1));
            }
        }
        let chunk = &swept.chunk;
        let mut keeping = Keeping::of(chunk, false);
        let mut offset = 0;
        let mut reached = pass.at.max(chunk.first);
        while let Some(frame) = Frame::parse(&chunk.bytes[offset..]) {
            let position = frame.position();
            if position >= end {
                reached = end;
                break;
            }
            reached = Position(position.0 + 1);
            let at = self.queue_of(frame.hash());
            if pass.wants[at].is_some_and(|wanted| wanted <= position) && self.is_fresh(position, frame.hash()) == fresh {
                if self.is_full(at, fresh) || position >= self.may_read_to(at, fresh) {
                    let place = Some((chunk.segment, u64::from(chunk.offset) + offset as u64));
                    *self.lag_of(at, fresh) = Some(Lag { place, ..Lag::new(position) });
                    pass.wants[at] = None;
                } else {
                    self.offer(at, fresh, &frame, chunk, offset, &mut keeping, now);
                }
            }
            offset += frame.len();
        }
        pass.at = reached;
        // An empty chunk stands for positions that are gone, and lies nowhere.
        pass.place = (offset > 0).then(|| (chunk.segment, u64::from(chunk.offset) + offset as u64));
        self.window.keep(keeping);
        chunk.bytes.len().max(1)
    }

    /// Those that followed to the end of the pass go on from there; with the sweep, if it has come to it.
    fn leave(&mut self, pass: &Pass) {
        for (at, wanted) in pass.wants.iter().enumerate() {
            let Some(wanted) = wanted else { continue };
            let end = self.may_read_to(at, pass.fresh);
            let sweep = self.sweep_of(pass.fresh);
            let reached = pass.at.min(end).max(*wanted);
            let place = if reached == pass.at { pass.place } else { None };
            let lag = self.lag_of(at, pass.fresh);
            if reached >= sweep {
                *lag = None;
            } else if lag.as_ref().is_some_and(|lag| lag.from < reached) {
                *lag = Some(Lag { place, ..Lag::new(reached) });
            }
        }
    }
}
