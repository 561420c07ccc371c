//! Packs what is ready into requests.
//!
//! Place: part of the [`Dispatcher`]; `poll` is called by its thread whenever something happened or `wake_at`
//! came. *INSIDE-THE-LIMITS*: at most 500 records and `request_bytes_max` bytes a request, sizes counted exactly
//! (data and keys); asserted again before a request leaves.
//!
//! A queue is *due* when it has a full record, when its oldest event was received `linger` ago, or when it failed
//! before and its wait is over. When one is due, those that have waited half of `linger` go along: so the shards
//! fall into step and requests are full. While a record is under way the next one grows (self-clocking).

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::outgoing::{FrameRef, Outgoing};
use super::oversize::{Size, billed_alone};
use super::queue::Slot;
use super::{Dispatcher, MapState, Request, Sent};
use crate::config::{Aggregate, Order};
use crate::event::KeyHash;
use crate::limits::{KEY_BYTES_MAX, RECORD_BYTES_MAX, REQUEST_RECORDS_MAX};
use crate::lines::{self, Line};

/// Whether a queue sends now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It has waited long enough, or has enough.
    Due,
    /// It goes along when another one is due.
    GoesAlong,
    /// Not yet.
    NotYet,
}

/// What may be sent now as one event a record.
#[derive(Debug, Default)]
struct Ready {
    /// The queues that have something, in the order in which they are served.
    queues: VecDeque<usize>,
    /// Records that they may send.
    records: usize,
    /// One of them is due: all of it goes.
    due: bool,
}

impl Dispatcher {
    /// Feeds the queues and packs all requests that are to leave now.
    pub fn poll(&mut self, now: Duration) -> Vec<Outgoing> {
        self.wake_at = None;
        self.wall_ms = self.host.clock.wall_ms();
        self.install_map(now);
        self.give_up(now);
        let mut out = Vec::new();
        if self.map.is_none() || matches!(self.map_state, MapState::Changed(_)) {
            return out;
        }
        if self.feed(now) {
            self.wake(now);
        }
        self.expire(now);
        if !self.settle_form(now) {
            return out;
        }
        // An aggregate packed by a map that is known to be wrong may be dropped by its consumer.
        if self.aggregating() && !matches!(self.map_state, MapState::Fresh) {
            return out;
        }
        if now < self.paused_until {
            self.wake(self.paused_until);
            return out;
        }
        let mut ready = if self.aggregating() { Ready::default() } else { self.ready_singles(now) };
        while self.may_send() {
            let request = self.next_request(now, |this| {
                if this.aggregating() { this.pack_aggregates(now) } else { this.pack_singles(&mut ready, now) }
            });
            if request.is_empty() {
                break;
            }
            out.push(request);
        }
        self.trim_window();
        out
    }

    fn may_send(&self) -> bool {
        // After a failure of the whole stream, one request at a time tries whether it works again.
        let requests_max = if self.pause.failures() > 0 { 1 } else { self.options.requests_max };
        !self.closed
            && self.requests.len() < requests_max
            && (self.billed_under_way == 0 || self.billed_under_way + self.request_bytes() <= self.budgets.in_flight_bytes)
    }

    /// A request is filled so far. A larger record goes alone.
    fn request_bytes(&self) -> usize {
        self.options.request_bytes_max.min(self.budgets.request_bytes)
    }

    /// Whether the queue's turn has come as far as time goes; wakes later if not.
    fn turn(&mut self, at: usize, now: Duration, enough: bool) -> Turn {
        let linger = self.options.linger;
        let hurry = self.draining || self.pressed || linger.is_zero() || enough || self.queues[at].backoff.failures() > 0;
        let queue = &self.queues[at];
        if queue.ready_len() == 0 {
            return Turn::NotYet;
        }
        // Of a backlog everything has waited: what it still waited for here would be the way there and back of each record.
        let waited = Duration::from_millis(queue.ready_age_ms(now));
        let due_in = if hurry { Duration::ZERO } else { linger.saturating_sub(waited) };
        // An aggregate is one record, whatever is in it.
        let records = if self.aggregating() { 1 } else { queue.ready_len() };
        let allowed = queue.not_before.max(queue.limiter.ready_at(records));
        let at = allowed.max(now + due_in);
        if at <= now {
            return Turn::Due;
        }
        let soonest = allowed <= now;
        self.wake(at);
        if soonest && waited >= linger / 2 { Turn::GoesAlong } else { Turn::NotYet }
    }

    fn pack_aggregates(&mut self, now: Duration) -> Outgoing {
        let mut request = self.begin();
        let mut along = Vec::new();
        let mut due = Vec::new();
        let under_way_max = self.aggregates_max();
        for n in 0..self.queues.len() {
            let at = (self.turn + n) % self.queues.len();
            let queue = &mut self.queues[at];
            if queue.under_way >= under_way_max || queue.ready_len() == 0 || queue.drop_unsaved {
                continue;
            }
            queue.limiter.records_now(now);
            let enough = self.queues[at].ready_bytes() >= self.record_ceiling(at);
            match self.turn(at, now, enough) {
                Turn::Due => due.push(at),
                Turn::GoesAlong => along.push(at),
                Turn::NotYet => {}
            }
        }
        if due.is_empty() {
            return request.0;
        }
        due.append(&mut along);
        if self.fresh.is_some() {
            due.sort_by_key(|at| !self.queues[*at].has_fresh());
        }
        for at in due {
            let room = self.request_bytes().saturating_sub(request.0.billed);
            let next = self.queues[at].front().map_or(0, |slot| slot.entry.len as usize);
            if request.0.len() == REQUEST_RECORDS_MAX || (room < self.options.record_bytes_max.max(next) && !request.0.is_empty())
            {
                self.turn = at;
                break;
            }
            if let Err(error) = self.pack_aggregate(at, &mut request.0, &mut request.1, now) {
                tracing::error!(%error, "the spool cannot be read; trying again");
                self.queues[at].not_before = now + Duration::from_secs(1);
            }
        }
        self.send(request)
    }

    /// Packs one record of a queue, as large as its ceiling allows.
    fn pack_aggregate(&mut self, at: usize, request: &mut Outgoing, sent: &mut Request, now: Duration) -> io::Result<()> {
        let mut frames: Vec<FrameRef> = Vec::new();
        let mut span = (u128::MAX, 0);
        let mut first_hash = None;
        let mut single_billed = 0;
        let ceiling = self.record_ceiling(at);
        // Of a record of lines: its bytes, and whether it is one event that must be alone.
        let (mut lines_bytes, mut first_key, mut alone) = (0, 0, false);
        // Readers do not drop strange lines: by a map older than the last process had, one key's event would land beside the
        // shard of its earlier ones. So a shard is known to be open before keys share a record there.
        let unproven = self.options.order == Order::Key && self.queues[at].records == 0;
        while let Some(seq) = self.queues[at].nth_ready(frames.len()) {
            let slot = *self.queues[at].slot(seq);
            if self.is_expired(&slot, now) {
                // The next batch of letters takes it.
                break;
            }
            if frames.is_empty() {
                match self.judge_size(at, &slot, now) {
                    Size::Ended => continue,
                    Size::Waits => break,
                    // One that stood behind an event that has ended: the next request is for it.
                    Size::Fits if !request.is_empty() && request.billed + billed_alone(&slot) > self.request_bytes() => {
                        break;
                    }
                    Size::Fits => {}
                }
            }
            let found = match self.frame(&slot, request) {
                // What was planned so far is a record; the next try begins with this event.
                Err(_) if !frames.is_empty() => break,
                other => other?,
            };
            let Some(frame_ref) = found else {
                if frames.is_empty() && self.settle_unreadable(at, now) {
                    continue;
                }
                break;
            };
            let hash = KeyHash(slot.hash);
            if self.form == Aggregate::Lines {
                alone = lines::line_of(request.data(frame_ref)) == Line::Alone;
                let key = if frames.is_empty() { usize::from(slot.key_len) } else { first_key };
                let bytes = lines_bytes + lines::line_len(frame_ref.data_len());
                let stray = unproven && first_hash.is_some_and(|first| first != slot.hash);
                if !frames.is_empty() && (alone || stray || key + bytes > ceiling) {
                    alone = false;
                    break;
                }
                (lines_bytes, first_key) = (bytes, key);
            } else {
                let enough = !frames.is_empty() && self.packer.size() + frame_ref.data_len() > ceiling;
                let (key_len, data_len) = (slot.key_len, frame_ref.data_len());
                if enough || !self.packer.try_add(key_len, || request.key(frame_ref), hash, slot.explicit, data_len) {
                    break;
                }
            }
            single_billed = usize::from(slot.key_len) + frame_ref.data_len();
            span = (span.0.min(slot.hash), span.1.max(slot.hash));
            first_hash.get_or_insert(slot.hash);
            frames.push(frame_ref);
            self.sent_high = self.sent_high.max(crate::event::Position(slot.position.0 + 1));
            if alone {
                break;
            }
        }
        let Some(first_hash) = first_hash else { return Ok(()) };
        if self.form == Aggregate::Lines {
            let billed = if alone { single_billed } else { first_key + lines_bytes };
            request.push_lines(&frames, (!alone).then_some(lines_bytes), billed);
            self.note_sent(at, frames.len(), span, billed, sent);
            return Ok(());
        }
        let plan = self.packer.take();
        let billed = if plan.len() > 1 { plan.size() + crate::aggregate::OUTER_KEY.len() } else { single_billed };
        request.push(&frames, first_hash, Some(plan), billed);
        self.note_sent(at, frames.len(), span, billed, sent);
        Ok(())
    }

    fn ready_singles(&mut self, now: Duration) -> Ready {
        let mut ready = Ready::default();
        for n in 0..self.queues.len() {
            let at = (self.turn + n) % self.queues.len();
            let queue = &mut self.queues[at];
            if queue.ready_len() == 0 || queue.drop_unsaved {
                continue;
            }
            let granted = queue.limiter.records_now(now).min(queue.ready_len());
            let may_send = queue.not_before <= now;
            ready.due |= self.turn(at, now, false) == Turn::Due;
            if granted > 0 && may_send {
                ready.records += granted;
                ready.queues.push_back(at);
            }
        }
        if self.fresh.is_some() {
            ready.queues.make_contiguous().sort_by_key(|at| !self.queues[*at].has_fresh());
        }
        ready
    }

    fn pack_singles(&mut self, ready: &mut Ready, now: Duration) -> Outgoing {
        let mut request = self.begin();
        if !ready.due && ready.records < REQUEST_RECORDS_MAX {
            return request.0;
        }
        'queues: while let Some(at) = ready.queues.front().copied() {
            let granted = self.queues[at].limiter.records_now(now);
            for _ in 0..granted {
                let Some(front) = self.queues[at].front() else { break };
                if self.is_expired(front, now) {
                    break;
                }
                if !self.queues[at].limiter.has_bytes() {
                    break;
                }
                let slot = *front;
                match self.judge_size(at, &slot, now) {
                    Size::Ended => continue,
                    Size::Waits => break,
                    Size::Fits => {}
                }
                let full = !request.0.is_empty() && request.0.billed + billed_alone(&slot) > self.request_bytes();
                if request.0.len() == REQUEST_RECORDS_MAX || full {
                    self.turn = at;
                    break 'queues;
                }
                match self.frame(&slot, &mut request.0) {
                    Ok(Some(frame_ref)) => self.pack_single(at, &slot, frame_ref, &mut request),
                    Ok(None) if self.settle_unreadable(at, now) => {}
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the spool cannot be read; trying again");
                        self.queues[at].not_before = now + Duration::from_secs(1);
                        break;
                    }
                }
            }
            ready.queues.pop_front();
        }
        ready.records = ready.records.saturating_sub(request.0.len());
        self.send(request)
    }

    fn pack_single(&mut self, at: usize, slot: &Slot, frame_ref: FrameRef, request: &mut (Outgoing, Request)) {
        let hash = slot.hash;
        let billed = usize::from(slot.key_len) + frame_ref.data_len();
        self.sent_high = self.sent_high.max(crate::event::Position(slot.position.0 + 1));
        request.0.push(&[frame_ref], hash, None, billed);
        self.note_sent(at, 1, (hash, hash), billed, &mut request.1);
    }

    pub(super) fn begin(&mut self) -> (Outgoing, Request) {
        let id = self.next_request;
        (Outgoing::new(id), Request { records: Vec::new(), seqs: Vec::new(), billed: 0, suspects: None })
    }

    fn note_sent(&mut self, at: usize, count: usize, span: (u128, u128), billed: usize, sent: &mut Request) {
        let queue = &mut self.queues[at];
        let first = sent.seqs.len();
        queue.take(count, &mut sent.seqs);
        queue.under_way += 1;
        queue.limiter.spend(billed, 1);
        sent.records.push(Sent { queue: at, first, count, span, billed });
        sent.billed += billed;
    }

    pub(super) fn send(&mut self, (outgoing, mut request): (Outgoing, Request)) -> Outgoing {
        if outgoing.is_empty() {
            return outgoing;
        }
        assert!(outgoing.len() == request.records.len() && outgoing.len() <= REQUEST_RECORDS_MAX, "INSIDE-THE-LIMITS: records");
        assert!(
            outgoing.billed <= self.options.request_bytes_max.max(RECORD_BYTES_MAX + KEY_BYTES_MAX),
            "INSIDE-THE-LIMITS: bytes"
        );
        request.billed = outgoing.billed;
        self.billed_under_way += outgoing.billed;
        self.next_request += 1;
        self.requests.insert(outgoing.id, request);
        outgoing
    }

    /// A reference to a slot's frame, from the window or read from disk; `None` when it no longer checks.
    pub(super) fn frame(&mut self, slot: &Slot, request: &mut Outgoing) -> io::Result<Option<FrameRef>> {
        if slot.key_len == 0 {
            // Met as damaged already; an event has a key.
            return Ok(None);
        }
        if let Some(chunk) = self.window.get(slot.chunk) {
            return Ok(Some(request.hot_frame(slot, chunk)));
        }
        let Some(segment) = self.cursor.shared().table.get(slot.segment) else {
            return Err(io::Error::other(format!("segment {} of an unsettled event is gone", slot.segment)));
        };
        let buffer = request.cold_buffer();
        let offset = buffer.len();
        let good = self.cursor.read_frame(&segment, slot.entry, buffer)?;
        Ok(good.then(|| Outgoing::cold_frame(slot, offset)))
    }
}
