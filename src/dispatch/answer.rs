//! What an answer means for the events in it.
//!
//! Place: part of the [`Dispatcher`]; its thread calls `on_answer` once for each request.
//!
//! *DELIVERED-MEANS-READABLE* ("the reshard trap"): KCL drops a whole aggregate when any of its events hashes
//! outside the shard in which it lies. So a record that landed elsewhere than predicted is held until the map is
//! fresh: if all its events hash into the shard that took it, they are delivered, otherwise all are sent again.
//! A record of one event is readable wherever it lies.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Dispatcher, FAILING_TOLD_AFTER, Held, Request, Sent};
use crate::kinesis::{EntryOutcome, ErrorClass, PutError};
use crate::metrics::locked;

/// What a provisioned stream bills as one PUT payload unit (Kinesis pricing page).
const PAYLOAD_UNIT_BYTES: usize = 25 << 10;

/// What one answer delivered, counted together.
#[derive(Debug, Default)]
struct Tally {
    now: Duration,
    /// Records stored, their bytes, and what they are billed as.
    records: u64,
    bytes: u64,
    payload_units: u64,
    delivered: u64,
    /// Of these, sent before the last restart as well.
    resent: u64,
    /// The last events took so long, and so many of them did.
    took_ms: u64,
    took_events: u64,
}

impl Dispatcher {
    /// Takes the answer to a request: one outcome for each of its records, or an error for all.
    ///
    /// # Panics
    /// If the request is unknown, or the outcomes are not as many as its records (the adapter turns such answers
    /// into errors).
    pub fn on_answer(&mut self, id: u64, answer: Result<Vec<EntryOutcome>, PutError>, now: Duration) {
        let mut request = self.requests.remove(&id).expect("each request is answered once");
        self.suspects.under_way -= usize::from(request.suspects.is_some());
        self.billed_under_way -= request.billed;
        let label = match &answer {
            Ok(outcomes) if outcomes.iter().all(|outcome| matches!(outcome, EntryOutcome::Stored { .. })) => "ok",
            Ok(_) => "partial",
            Err(error) => error.class.name(),
        };
        *locked(&self.metrics.put_requests).entry(label).or_default() += 1;
        match answer {
            Ok(outcomes) => {
                assert!(outcomes.len() == request.records.len(), "one outcome for each record");
                self.witness(&request, &outcomes, now);
                let accepted = outcomes.iter().any(|outcome| match outcome {
                    EntryOutcome::Stored { .. } => true,
                    EntryOutcome::Failed(error) => matches!(error.class, ErrorClass::Throttle | ErrorClass::Transient),
                });
                if accepted {
                    self.suspects.on_accepted(id);
                }
                let mut worst: Option<PutError> = None;
                let mut refused: Option<PutError> = None;
                let mut part = request.suspects.take();
                let mut tally = Tally { now, ..Tally::default() };
                // Back to front, so that events of one shard that failed together keep their order in front.
                for (n, (sent, outcome)) in request.records.iter().zip(outcomes).enumerate().rev() {
                    if let EntryOutcome::Failed(error) = &outcome
                        && error.class == ErrorClass::Poison
                    {
                        self.accuse_record(&request, n, &mut part, error, now);
                        refused = Some(error.clone());
                        continue;
                    }
                    let behind = self.cleared(&request, n, &mut part, self.is_delivered(sent, &outcome, now));
                    if let Some(error) = self.on_outcome(&request, sent, outcome, now, &mut tally) {
                        worst = Some(error);
                    }
                    self.release(sent.queue, behind);
                }
                self.count(tally);
                match (worst, refused) {
                    (Some(error), _) => self.pause_for(&error, now),
                    (None, Some(error)) if !accepted => self.note_refusal(&error, now),
                    _ => self.resume(),
                }
            }
            Err(error) if error.class == ErrorClass::Poison => self.refused(&mut request, &error, now),
            Err(error) => {
                match request.suspects.take() {
                    Some(part) => self.probe_failed(*part, &error, now),
                    None => {
                        for sent in request.records.iter().rev() {
                            self.failed(&request, sent, &error, now);
                        }
                    }
                }
                match error.class {
                    ErrorClass::Configuration | ErrorClass::Poison => self.pause_for(&error, now),
                    ErrorClass::Transient | ErrorClass::UnknownOutcome => self.tell_failing(&error, now),
                    ErrorClass::Throttle => {}
                }
            }
        }
        self.install_map(now);
    }

    /// A consumer will get it, as far as can be told without a fresh map.
    fn is_delivered(&self, sent: &Sent, outcome: &EntryOutcome, now: Duration) -> bool {
        let EntryOutcome::Stored { shard } = outcome else { return false };
        sent.count == 1 || self.queues[sent.queue].shard.id == *shard || self.readable_anywhere(now)
    }

    /// Returns an error that concerns the whole stream.
    fn on_outcome(
        &mut self,
        request: &Request,
        sent: &Sent,
        outcome: EntryOutcome,
        now: Duration,
        tally: &mut Tally,
    ) -> Option<PutError> {
        let seqs = &request.seqs[sent.first..sent.first + sent.count];
        match outcome {
            EntryOutcome::Stored { shard } => {
                let queue = &mut self.queues[sent.queue];
                queue.limiter.accepted(now);
                queue.backoff.succeed();
                queue.last_good = now;
                queue.records += 1;
                tally.records += 1;
                tally.bytes += sent.billed as u64;
                tally.payload_units += sent.billed.div_ceil(PAYLOAD_UNIT_BYTES) as u64;
                let predicted = queue.shard.id == shard;
                let readable = predicted || sent.count == 1 || self.readable_anywhere(now);
                if !predicted && readable {
                    self.landed_elsewhere(&shard, sent.span, now);
                }
                if readable {
                    self.queues[sent.queue].under_way -= 1;
                    self.delivered(sent.queue, seqs, tally);
                } else {
                    self.map_stale(now);
                    self.held.push(Held { queue: sent.queue, seqs: seqs.to_vec(), span: sent.span, shard });
                }
                None
            }
            EntryOutcome::Failed(error) => {
                self.failed(request, sent, &error, now);
                (error.class == ErrorClass::Configuration).then_some(error)
            }
        }
    }

    pub(super) fn failed(&mut self, request: &Request, sent: &Sent, error: &PutError, now: Duration) {
        let queue = &mut self.queues[sent.queue];
        queue.under_way -= 1;
        queue.requeue(&request.seqs[sent.first..sent.first + sent.count]);
        let wait = match error.class {
            // The stream as a whole is paused instead.
            ErrorClass::Configuration | ErrorClass::Poison => Duration::ZERO,
            // Records that failed together are one failure: counted each, a few throttles of one request would be a long wait.
            _ if queue.not_before > now => Duration::ZERO,
            ErrorClass::Throttle | ErrorClass::Transient | ErrorClass::UnknownOutcome => {
                queue.backoff.fail(self.host.entropy.as_ref())
            }
        };
        queue.not_before = queue.not_before.max(now + wait);
        match error.class {
            ErrorClass::Throttle => {
                queue.limiter.throttled(now);
                queue.throttled += 1;
                self.metrics.throttled.fetch_add(1, Ordering::Relaxed);
            }
            ErrorClass::UnknownOutcome => self.count_duplicated("unknown_outcome", sent.count as u64),
            ErrorClass::Transient | ErrorClass::Configuration | ErrorClass::Poison => {}
        }
    }

    pub(super) fn pause_for(&mut self, error: &PutError, now: Duration) {
        let wait = self.pause.fail(self.host.entropy.as_ref());
        self.paused_until = now + wait;
        self.set_paused(Some(error.to_string()));
    }

    /// Kinesis is away: each shard backs off by itself, and status says why nothing moves.
    pub(super) fn tell_failing(&mut self, error: &PutError, now: Duration) {
        let since = *self.failing_since.get_or_insert(now);
        if now.saturating_sub(since) >= FAILING_TOLD_AFTER {
            self.set_paused(Some(error.to_string()));
        }
    }

    fn resume(&mut self) {
        let failing = self.failing_since.take().is_some();
        if failing || self.pause.failures() > 0 {
            self.pause.succeed();
            self.paused_until = Duration::ZERO;
            self.set_paused(None);
        }
    }

    /// Judges records that landed elsewhere, with a map that was listed after they did. `changed`: it explains them.
    pub(super) fn judge_held(&mut self, changed: bool, now: Duration) {
        let held = std::mem::take(&mut self.held);
        let mut tally = Tally { now, ..Tally::default() };
        for record in held {
            let landed =
                self.map.as_ref().and_then(|map| map.find(&record.shard)).map(|shard| (shard.first_hash, shard.last_hash));
            match landed {
                Some((first, last)) if first <= record.span.0 && record.span.1 <= last => {
                    self.queues[record.queue].under_way -= 1;
                    self.delivered(record.queue, &record.seqs, &mut tally);
                }
                Some(_) => {
                    let count = record.seqs.len() as u64;
                    let queue = &mut self.queues[record.queue];
                    queue.under_way -= 1;
                    queue.requeue(&record.seqs);
                    self.count_duplicated("reshard", count);
                    if !changed {
                        self.strange_landing(now);
                    }
                }
                None => {
                    // A shard younger than the listing: ask again.
                    self.held.push(record);
                    self.map_failed(now);
                }
            }
        }
        self.count(tally);
    }

    /// These events are delivered.
    fn delivered(&mut self, at: usize, seqs: &[u64], tally: &mut Tally) {
        for seq in seqs {
            let slot = self.queues[at].slot(*seq);
            if slot.position < self.resent_below {
                tally.resent += 1;
            }
            let took_ms = slot.age_ms(tally.now);
            if took_ms != tally.took_ms {
                self.observe_delivery(tally);
                tally.took_ms = took_ms;
            }
            tally.took_events += 1;
            self.queues[at].settle(*seq);
        }
        tally.delivered += seqs.len() as u64;
        self.pop_settled(at);
    }

    fn observe_delivery(&self, tally: &mut Tally) {
        if tally.took_events > 0 {
            self.metrics.delivery_seconds.observe_n(tally.took_ms as f64 / 1e3, tally.took_events);
            tally.took_events = 0;
        }
    }

    fn count(&self, mut tally: Tally) {
        self.observe_delivery(&mut tally);
        self.metrics.put_records.fetch_add(tally.records, Ordering::Relaxed);
        self.metrics.put_bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        self.metrics.put_payload_units.fetch_add(tally.payload_units, Ordering::Relaxed);
        if tally.resent > 0 {
            self.count_duplicated("restart", tally.resent);
        }
        if tally.delivered > 0 {
            locked(&self.metrics.account).delivered += tally.delivered;
        }
    }

    pub(super) fn count_duplicated(&self, reason: &'static str, events: u64) {
        *locked(&self.metrics.duplicated).entry(reason).or_default() += events;
    }

    /// Lets settled slots at the front go, and tells the marks.
    pub(super) fn pop_settled(&mut self, at: usize) {
        while let Some(slot) = self.queues[at].pop_settled(false) {
            self.marks.settled(slot.lane(), slot.position);
            self.main_settled(slot.position);
        }
        while let Some(slot) = self.queues[at].pop_settled(true) {
            self.fresh_settled(slot.lane(), slot.position);
        }
    }
}
