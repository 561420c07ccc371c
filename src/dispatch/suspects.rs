//! Finds the event for which a whole request is refused, and lets everything else go on.
//!
//! Place: part of the [`Dispatcher`]; `answer` hands over what was refused for its contents, `pack` asks for the next
//! *probe*, a request made of suspects alone. A refused request is halved until one event stands alone: first by records,
//! then an aggregate's events by their keys, at last the events of one key, the earlier ones first.
//!
//! *KEY-ORDER*: suspects stay under way. So their keys' later events wait, in their chains or, with aggregates, with their
//! shard; two parts never hold events of one key, and of one key's halves the later one is sent when all of the earlier is
//! delivered or dead. What a probe gets through, or fails for another reason, is a suspect no more.
//!
//! *NOTHING-LOST*: a refusal may have nothing to do with the events (the stream's name, a proxy that refuses everything).
//! So an event becomes a dead letter only when it was refused alone, then a request that left after that was accepted, and
//! then the event was refused alone once more; or, where nothing else can be sent (all that waits has its key), when it was
//! refused alone [`ALONE_TRIES`] times and the service named a record as the reason. Else, where nothing is accepted, nothing
//! is given up: after [`REFUSALS_MAX`] refusals in a row the stream pauses and tries gently, a little of everything, for ever.
//!
//! What this cannot see through: everything is refused, then accepted, then refused again. An event that is sent alone in both
//! bad times looks like poison; its letter keeps it whole.
//!
//! Failure: a letter that cannot be written leaves its event a suspect, to be tried later. A changed shard map, and whoever
//! must give up or expire events, lets all suspects go back to where they wait; a refusal makes them suspects again.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use super::backoff::Backoff;
use super::outgoing::{FrameRef, Outgoing};
use super::queue::Queue;
use super::{Dispatcher, Request, Sent};
use crate::aggregate::OUTER_KEY;
use crate::config::Aggregate;
use crate::event::KeyHash;
use crate::kinesis::{ErrorClass, PutError};
use crate::limits::REQUEST_RECORDS_MAX;

/// Refusals in a row, nothing accepted between them, after which the stream pauses. Halving 500 records takes 10, and the
/// events of the largest aggregate some 15 more.
pub(super) const REFUSALS_MAX: u32 = 32;

/// Refusals of one event alone, with growing waits, after which the service's word is enough that it is about the event.
const ALONE_TRIES: u32 = 5;

/// Suspects of one record.
#[derive(Debug)]
pub(super) struct Unit {
    queue: usize,
    /// In order.
    seqs: Vec<u64>,
    /// Later events of its key, the next ones last. Only where all events are of one key.
    rest: Vec<Vec<u64>>,
}

impl Unit {
    fn of(request: &Request, sent: &Sent) -> Self {
        Self { queue: sent.queue, seqs: request.seqs[sent.first..sent.first + sent.count].to_vec(), rest: Vec::new() }
    }
}

/// Suspects that are sent together.
#[derive(Debug)]
pub(super) struct Part {
    units: Vec<Unit>,
    /// One event, refused alone: a request of this number or a later one has to be accepted before it may be given up.
    alone_since: Option<u64>,
    /// One was, before it was sent this time.
    confirming: bool,
    /// One that was refused alone is tried again then, also when nothing was accepted.
    retry_at: Duration,
    /// How often it was refused alone.
    tries: u32,
}

impl Part {
    fn new(units: Vec<Unit>) -> Self {
        Self { units, alone_since: None, confirming: false, retry_at: Duration::ZERO, tries: 0 }
    }

    /// What a request was made of.
    pub(super) fn of(request: &Request) -> Self {
        Self::new(request.records.iter().map(|sent| Unit::of(request, sent)).collect())
    }

    /// What one record was made of, as the suspects that it may be of tell, which it leaves.
    pub(super) fn of_record(request: &Request, n: usize, part: &mut Option<Box<Self>>) -> Self {
        let Some(part) = part else { return Self::new(vec![Unit::of(request, &request.records[n])]) };
        // Taken from the last one on.
        let unit = part.units.pop().expect("a probe has a unit for each of its records");
        // Alone is one that was alone in its request.
        Self { units: vec![unit], ..Self::new(Vec::new()).with(part) }
    }

    fn with(mut self, other: &Self) -> Self {
        self.alone_since = other.alone_since;
        self.confirming = other.confirming;
        self.tries = other.tries;
        self
    }
}

/// All that is known of suspects.
#[derive(Debug)]
pub(super) struct Suspects {
    /// Those of probes under way are with their requests.
    parts: Vec<Part>,
    /// Refusals in a row.
    refused: u32,
    /// The latest request that was accepted.
    accepted: u64,
    /// Probes under way.
    pub(super) under_way: usize,
    backoff: Backoff,
    not_before: Duration,
    /// How long events that are refused alone wait while nothing is accepted.
    alone: Backoff,
    /// While nothing is accepted: whose turn it is.
    turn: u32,
}

impl Default for Suspects {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            refused: 0,
            accepted: 0,
            under_way: 0,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
            not_before: Duration::ZERO,
            alone: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            turn: 0,
        }
    }
}

impl Suspects {
    /// Nothing is accepted, whoever is sent.
    fn everywhere(&self) -> bool {
        self.refused >= REFUSALS_MAX
    }

    /// Nothing is accepted, and what is suspected has parts that were not tried: no others are needed to find out.
    fn will_do(&self) -> bool {
        self.everywhere() && self.parts.iter().any(|part| part.alone_since.is_none())
    }

    /// Kinesis took this request as such.
    pub(super) fn on_accepted(&mut self, id: u64) {
        self.accepted = self.accepted.max(id);
        self.refused = 0;
        self.alone.succeed();
        self.backoff.succeed();
    }

    /// Which part is sent next. While nothing is accepted the largest one has its turn too: if any of it is good, that
    /// is found with the fewest tries.
    fn choose(&self, now: Duration) -> Option<usize> {
        let telling = |part: &Part| part.alone_since.is_none_or(|since| self.accepted >= since);
        let mut telling = self.parts.iter().enumerate().filter(|(_, part)| telling(part));
        let chosen = if self.everywhere() && self.turn % 3 == 1 {
            let size = |part: &Part| part.units.iter().map(|unit| unit.seqs.len()).sum::<usize>();
            telling.max_by_key(|(_, part)| size(part)).map(|(at, _)| at)
        } else {
            telling.next_back().map(|(at, _)| at)
        };
        chosen.or_else(|| self.parts.iter().rposition(|part| part.retry_at <= now))
    }
}

/// Back to where they wait, in their order.
fn requeue(queue: &mut Queue, unit: &Unit) {
    queue.under_way -= 1;
    for later in &unit.rest {
        queue.requeue(later);
    }
    queue.requeue(&unit.seqs);
}

impl Dispatcher {
    /// The next request: of suspects, or of what waits.
    pub(super) fn next_request(&mut self, now: Duration, waiting: impl FnOnce(&mut Self) -> Outgoing) -> Outgoing {
        if self.suspects.parts.is_empty() {
            return waiting(self);
        }
        let paused = self.suspects.everywhere();
        self.suspects.turn = self.suspects.turn.wrapping_add(u32::from(paused));
        if paused && self.suspects.turn.is_multiple_of(3) {
            let request = waiting(self);
            return if request.is_empty() { self.probe(now).unwrap_or(request) } else { request };
        }
        self.probe(now).unwrap_or_else(|| waiting(self))
    }

    /// A request of suspects, if one is to leave. Half of all requests are for what waits.
    fn probe(&mut self, now: Duration) -> Option<Outgoing> {
        if now < self.suspects.not_before {
            self.wake(self.suspects.not_before);
            return None;
        }
        while self.suspects.under_way < (self.options.requests_max / 2).max(1) {
            let Some(at) = self.suspects.choose(now) else {
                if let Some(at) = self.suspects.parts.iter().map(|part| part.retry_at).min() {
                    self.wake(at);
                }
                return None;
            };
            let mut part = self.suspects.parts.swap_remove(at);
            part.confirming = part.alone_since.is_some_and(|since| self.suspects.accepted >= since);
            if let Some(request) = self.pack_probe(part, now) {
                return Some(request);
            }
            if now < self.suspects.not_before {
                return None;
            }
        }
        None
    }

    fn pack_probe(&mut self, mut part: Part, now: Duration) -> Option<Outgoing> {
        let mut request = self.begin();
        if self.form_of_probes() != Aggregate::Kpl {
            for unit in std::mem::take(&mut part.units) {
                let (queue, units) = (unit.queue, self.one_by_one(unit));
                // Each is a record of its own from now on.
                self.queues[queue].under_way += units.len() - 1;
                part.units.extend(units);
            }
        }
        let mut packed = Vec::new();
        let mut units = std::mem::take(&mut part.units).into_iter();
        for unit in units.by_ref() {
            match self.pack_unit(&unit, &mut request) {
                Ok(true) => packed.push(unit),
                // Damaged on disk meanwhile: whoever packs what waits sees to it.
                Ok(false) => requeue(&mut self.queues[unit.queue], &unit),
                Err(error) => {
                    self.cannot_read(&error, now);
                    self.suspects.not_before = now + Duration::from_secs(1);
                    packed.push(unit);
                    packed.extend(units);
                    self.suspects.parts.push(Part { units: packed, ..part });
                    return None;
                }
            }
            if request.0.len() == REQUEST_RECORDS_MAX {
                break;
            }
        }
        let left: Vec<Unit> = units.collect();
        if !left.is_empty() {
            self.suspects.parts.push(Part::new(left));
        }
        if packed.is_empty() {
            return None;
        }
        part.units = packed;
        request.1.suspects = Some(Box::new(part));
        self.suspects.under_way += 1;
        Some(self.send(request))
    }

    /// What records of several suspects are packed as. In any form a record of one event is one that every consumer reads.
    fn form_of_probes(&self) -> Aggregate {
        self.form
    }

    /// One event a record: of each key the first one, the others behind it.
    fn one_by_one(&self, unit: Unit) -> Vec<Unit> {
        if unit.seqs.len() == 1 {
            return vec![unit];
        }
        let Unit { queue, seqs, mut rest } = unit;
        let mut keys: Vec<(u128, Vec<u64>)> = Vec::new();
        let mut at = std::collections::HashMap::new();
        for seq in seqs {
            let hash = self.queues[queue].slot(seq).hash;
            let n = *at.entry(hash).or_insert_with(|| {
                keys.push((hash, Vec::new()));
                keys.len() - 1
            });
            keys[n].1.push(seq);
        }
        let single = keys.len() == 1;
        let split = keys.into_iter().map(|(_, seqs)| {
            let mut behind = if single { std::mem::take(&mut rest) } else { Vec::new() };
            behind.extend(seqs[1..].iter().rev().map(|seq| vec![*seq]));
            Unit { queue, seqs: vec![seqs[0]], rest: behind }
        });
        split.collect()
    }

    /// Adds one record; false when one of its events cannot be read any more.
    fn pack_unit(&mut self, unit: &Unit, (outgoing, request): &mut (Outgoing, Request)) -> io::Result<bool> {
        let mut frames: Vec<FrameRef> = Vec::with_capacity(unit.seqs.len());
        let mut span = (u128::MAX, 0);
        let mut billed = 0;
        let first_hash = self.queues[unit.queue].slot(unit.seqs[0]).hash;
        for seq in &unit.seqs {
            let slot = *self.queues[unit.queue].slot(*seq);
            let Some(frame) = self.frame(&slot, outgoing)? else { return Ok(false) };
            span = (span.0.min(slot.hash), span.1.max(slot.hash));
            billed = usize::from(slot.key_len) + frame.data_len();
            frames.push(frame);
        }
        let mut plan = None;
        if unit.seqs.len() > 1 {
            for (seq, frame) in unit.seqs.iter().zip(&frames) {
                let slot = *self.queues[unit.queue].slot(*seq);
                let (hash, size) = (KeyHash(slot.hash), frame.data_len());
                let fits = self.packer.try_add(slot.key_len, || outgoing.key(*frame), hash, slot.explicit, size);
                assert!(fits, "INSIDE-THE-LIMITS: a part of a record is larger than the record was");
            }
            let packed = self.packer.take();
            billed = packed.size() + OUTER_KEY.len();
            plan = Some(packed);
        }
        outgoing.push(&frames, first_hash, plan, billed);
        let queue = &mut self.queues[unit.queue];
        queue.sent_again(&unit.seqs);
        queue.limiter.spend(billed, 1);
        let first = request.seqs.len();
        request.seqs.extend_from_slice(&unit.seqs);
        request.records.push(Sent { queue: unit.queue, first, count: unit.seqs.len(), span, billed });
        request.billed += billed;
        Ok(true)
    }

    /// A request was refused for its contents.
    pub(super) fn refused(&mut self, request: &mut Request, error: &PutError, now: Duration) {
        for sent in &request.records {
            self.queues[sent.queue].limiter.give_back(sent.billed, 1);
        }
        match request.suspects.take() {
            Some(part) => self.accuse(*part, error, now),
            // What is suspected already will do to find out what is accepted.
            None if self.suspects.will_do() => {
                for sent in request.records.iter().rev() {
                    self.failed(request, sent, error, now);
                }
            }
            None => self.accuse(Part::of(request), error, now),
        }
        self.note_refusal(error, now);
    }

    /// Nothing of a request was accepted.
    pub(super) fn note_refusal(&mut self, error: &PutError, now: Duration) {
        self.suspects.refused = self.suspects.refused.saturating_add(1);
        if self.suspects.everywhere() {
            let message = format!(
                "{} (every request is refused for its contents: no event is given up for it before another one is accepted)",
                error.message
            );
            self.pause_for(&PutError { message, ..error.clone() }, now);
        } else {
            self.tell_failing(error, now);
        }
    }

    /// A record of an accepted request was refused for its contents.
    pub(super) fn accuse_record(
        &mut self,
        request: &Request,
        n: usize,
        part: &mut Option<Box<Part>>,
        error: &PutError,
        now: Duration,
    ) {
        let sent = &request.records[n];
        self.queues[sent.queue].limiter.give_back(sent.billed, 1);
        if part.is_none() && self.suspects.will_do() {
            self.failed(request, &request.records[n], error, now);
        } else {
            self.accuse(Part::of_record(request, n, part), error, now);
        }
    }

    /// These are refused: halves them, or judges the one that is left.
    fn accuse(&mut self, mut part: Part, error: &PutError, now: Duration) {
        if part.units.len() > 1 {
            let later = part.units.split_off(part.units.len() / 2);
            // The last one is sent first.
            self.suspects.parts.push(Part::new(later));
            self.suspects.parts.push(Part::new(part.units));
            return;
        }
        let Some(unit) = part.units.pop() else { return };
        if unit.seqs.len() > 1 {
            return self.halve(unit);
        }
        let tries = part.tries + 1;
        if part.confirming || (tries >= ALONE_TRIES && error.names_a_record()) {
            return self.bury(unit, part.alone_since, error, now);
        }
        let since = part.alone_since.unwrap_or(self.next_request);
        let retry_at = now + self.suspects.alone.fail(self.host.entropy.as_ref());
        self.suspects.parts.push(Part { units: vec![unit], alone_since: Some(since), confirming: false, retry_at, tries });
    }

    /// An aggregate's events: by their keys, or those of one key one half after the other.
    fn halve(&mut self, unit: Unit) {
        let Unit { queue: at, seqs, mut rest } = unit;
        let queue = &mut self.queues[at];
        let mut met = HashSet::new();
        let order: Vec<u128> = seqs.iter().map(|seq| queue.slot(*seq).hash).filter(|hash| met.insert(*hash)).collect();
        if order.len() == 1 {
            let (earlier, later) = seqs.split_at(seqs.len() / 2);
            rest.push(later.to_vec());
            self.suspects.parts.push(Part::new(vec![Unit { queue: at, seqs: earlier.to_vec(), rest }]));
            return;
        }
        // The half of the keys that was met first.
        let chosen: HashSet<u128> = order[..order.len() / 2].iter().copied().collect();
        let (earlier, later): (Vec<u64>, Vec<u64>) = seqs.iter().partition(|seq| chosen.contains(&queue.slot(**seq).hash));
        queue.under_way += 1;
        for seqs in [later, earlier] {
            self.suspects.parts.push(Part::new(vec![Unit { queue: at, seqs, rest: Vec::new() }]));
        }
    }

    /// The event that was found: a dead letter, and what waits behind it goes on.
    fn bury(&mut self, unit: Unit, alone_since: Option<u64>, error: &PutError, now: Duration) {
        let seq = unit.seqs[0];
        if let Err(failed) = self.end_as_poison(unit.queue, seq, error) {
            self.letters_stuck(&failed, now);
            let retry_at = now + Duration::from_secs(1);
            self.suspects.not_before = retry_at;
            let part = Part { units: vec![unit], alone_since, confirming: false, retry_at, tries: ALONE_TRIES };
            self.suspects.parts.push(part);
            return;
        }
        self.letters_work();
        self.release(unit.queue, unit.rest);
    }

    /// A record of suspects is settled: those behind it follow.
    pub(super) fn release(&mut self, queue: usize, mut rest: Vec<Vec<u64>>) {
        if let Some(seqs) = rest.pop() {
            self.queues[queue].under_way += 1;
            self.suspects.parts.push(Part::new(vec![Unit { queue, seqs, rest }]));
        }
    }

    /// The `n`-th record of a probe has an outcome that is no refusal. What waits behind it, if it is `delivered`, is given to
    /// be [released](Dispatcher::release); else it goes back to its queue, or waits for a map, and the others go there before.
    pub(super) fn cleared(
        &mut self,
        request: &Request,
        n: usize,
        part: &mut Option<Box<Part>>,
        delivered: bool,
    ) -> Vec<Vec<u64>> {
        if part.is_none() {
            return Vec::new();
        }
        let unit = Part::of_record(request, n, part).units.pop();
        let Some(Unit { queue, rest, .. }) = unit else { return Vec::new() };
        if delivered {
            return rest;
        }
        for later in &rest {
            self.queues[queue].requeue(later);
        }
        Vec::new()
    }

    /// A probe failed for another reason: again, later.
    pub(super) fn probe_failed(&mut self, part: Part, error: &PutError, now: Duration) {
        if error.class == ErrorClass::UnknownOutcome {
            let events = part.units.iter().map(|unit| unit.seqs.len() as u64).sum();
            self.count_duplicated("unknown_outcome", events);
        }
        self.suspects.not_before = now + self.suspects.backoff.fail(self.host.entropy.as_ref());
        self.suspects.parts.push(part);
    }

    /// Events are to be given up or expire: none of them is a suspect any more.
    pub(super) fn let_suspects_go(&mut self) {
        for part in std::mem::take(&mut self.suspects.parts) {
            for unit in &part.units {
                requeue(&mut self.queues[unit.queue], unit);
            }
        }
    }

    /// The queues are made anew, and what was not settled is fed again.
    pub(super) fn forget_suspects(&mut self) {
        assert!(self.suspects.under_way == 0, "queues are made anew only when all answers are in");
        self.suspects.parts.clear();
    }

    /// One of them is too old.
    pub(super) fn a_suspect_is_expired(&self, now: Duration) -> bool {
        let units = self.suspects.parts.iter().flat_map(|part| &part.units);
        units.into_iter().any(|unit| self.is_expired(self.queues[unit.queue].slot(unit.seqs[0]), now))
    }

    /// None is left.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.parts.is_empty()
    }
}
