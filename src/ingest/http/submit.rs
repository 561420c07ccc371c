//! From the events of a request to their receipts: what all doors have in common.
//!
//! Place: a door reads and judges its request, then has its events encoded and submitted here, batch by batch, and makes its
//! answer of what is durable. *RECEIPT-AFTER-SYNC*: [`Taken::durable`] is the only way to the numbers of a good answer.
//!
//! Backpressure: while there is no room, a request waits, up to `admit_timeout`, because many SDKs throw away what they are
//! refused, and none minds an answer that takes some seconds; where the policy is to refuse, it is refused at once. One
//! request has that time once ([`patient`]): for its body's memory, for room, for its first batch's admission, and for a
//! spool that turns out to be full or broken when the batch is to be written.
//!
//! Failure: should the spool give out in the middle of a large request, the answer is 503 though some of its events may be
//! durable; the client sends all again (at least once, as everywhere).

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Context;
use super::answer::Problem;
use crate::event::Position;
use crate::ingest::{Reject, Sent, Source, stopped};
use crate::limits::{BATCH_BYTES, KEY_BYTES_MAX};
use crate::metrics::Limit;
use crate::spool::{Batch, NotDurable, Permit, SpoolHandle};

/// Events in one request: bounds what a body of tiny events costs beside its bytes.
pub const EVENTS_MAX: usize = 100_000;

/// How much longer than for the first batch a request may wait for its later ones: giving up then costs duplicates.
const PATIENCE_FACTOR: u32 = 4;

/// Beside the data, a frame in a batch takes its header and its key.
const FRAME_OVERHEAD_BYTES: usize = KEY_BYTES_MAX + 64;

/// How often it is looked whether there is room again.
const LOOK_EVERY: Duration = Duration::from_millis(25);

tokio::task_local! {
    /// What is left of a request's patience.
    static LEFT: Cell<Duration>;
}

/// Gives a request its patience: all its waiting for the agent together takes no longer.
pub async fn patient<T>(patience: Duration, request: impl Future<Output = T>) -> T {
    LEFT.scope(Cell::new(patience), request).await
}

/// Waits for the agent, as long as the request has patience left; `usual` where nobody gave it any. `None`: in vain.
pub async fn wait_patiently<T>(usual: Duration, awaited: impl Future<Output = T>) -> Option<T> {
    let left = LEFT.try_with(Cell::get).unwrap_or(usual);
    let since = Instant::now();
    let outcome = timeout(left, awaited).await.ok();
    // Outside of a request nothing is kept.
    LEFT.try_with(|kept| kept.set(left.saturating_sub(since.elapsed()))).unwrap_or_default();
    outcome
}

/// An agent that is stopping.
pub fn draining() -> Problem {
    Problem::overload("the agent is stopping and accepts nothing more")
}

/// A spool that closed, or cannot write.
fn not_durable() -> Problem {
    Problem::overload("the spool cannot make events durable at present; send all of the request again")
}

/// Errors with the answer of an agent that is stopping, if it is.
pub fn unless_draining(context: &Context) -> Result<(), Problem> {
    if *context.shutdown.borrow() { Err(draining()) } else { Ok(()) }
}

/// Waits until there is room for events of `source`; `events` counts those that would be refused.
///
/// # Errors
/// There is none in time, or the policy is to refuse.
pub async fn wait_for_room(source: &Source, events: impl Fn() -> u64, context: &Context) -> Result<(), Problem> {
    let Some(limit) = source.full() else { return Ok(()) };
    if source.refuses().is_some() {
        source.count_rejected(Reject::Full(limit), events());
        return Err(Problem::full(limit));
    }
    // What is taken now would wait for room as long as that takes, and its client for an answer.
    let room = async {
        while source.full().is_some() {
            sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        waited = wait_patiently(context.options.admit_timeout, room) => match (waited, source.full()) {
            (None, Some(limit)) => Err(Problem::full(limit)),
            _ => Ok(()),
        },
        () = stopped(context.shutdown.clone()) => Err(draining()),
    }
}

/// What became of a request's events so far.
#[derive(Debug)]
pub struct Taken {
    /// Of each batch its receipt, and how many events it has.
    receipts: Vec<(Sent, u32)>,
    left_out: Vec<u32>,
    rejected: Vec<(u32, Reject)>,
    spool: SpoolHandle,
    patience: Duration,
}

/// What became of them in the end: all that were accepted are durable.
#[derive(Debug)]
pub struct Done {
    accepted: u64,
    /// Those that a rule of the source left out (filtered, or stored before), by their index from 0. They are answered as
    /// success.
    pub left_out: Vec<u32>,
    /// Those that were refused, by their index from 0.
    pub rejected: Vec<(u32, Reject)>,
}

impl Done {
    /// Events of the request that are durable. What was left out is not among them.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }
}

impl Taken {
    /// Events that were refused one by one, by their index from 0.
    pub fn rejected(&self) -> &[(u32, Reject)] {
        &self.rejected
    }

    /// Waits until all that were accepted are durable.
    ///
    /// # Errors
    /// They are not, or not known to be.
    pub async fn durable(mut self) -> Result<Done, Problem> {
        let (left_out, rejected) = (std::mem::take(&mut self.left_out), std::mem::take(&mut self.rejected));
        let mut accepted = 0;
        for (outcome, events) in self.outcomes().await? {
            outcome.map_err(Problem::full)?;
            accepted += u64::from(events);
        }
        Ok(Done { accepted, left_out, rejected })
    }

    /// Waits until each batch is durable or refused for want of room. Of each, in order, its first position and how many events
    /// it has; for doors whose answers tell event from event.
    ///
    /// # Errors
    /// It is not known whether all others are durable.
    pub async fn outcomes(self) -> Result<Vec<(Result<Position, Limit>, u32)>, Problem> {
        let mut outcomes = Vec::with_capacity(self.receipts.len());
        for (sent, events) in self.receipts {
            let outcome = tokio::select! {
                biased;
                outcome = sent.durable() => outcome,
                problem = give_up(&self.spool, self.patience) => return Err(problem),
            };
            outcomes.push(match outcome {
                Ok(first) => (Ok(first), events),
                Err(NotDurable::Full(limit)) => (Err(limit), events),
                Err(NotDurable::Closed) => return Err(not_durable()),
            });
        }
        Ok(outcomes)
    }
}

/// Resolves when a request's patience is at its end and its events lie before a spool that is full or broken. That a disk is
/// slow is no reason. They may become durable all the same, once the spool can.
async fn give_up(spool: &SpoolHandle, patience: Duration) -> Problem {
    let metrics = &spool.shared().metrics;
    sleep(LEFT.try_with(Cell::get).unwrap_or(patience)).await;
    loop {
        if let Some(limit) = metrics.full_by() {
            return Problem::full(limit);
        }
        if !metrics.writable.load(Ordering::Relaxed) {
            return not_durable();
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Encodes and submits all `items`, batch by batch. `bytes_of` tells at least as many bytes as the item's data will have in the
/// batch, all items together about `bytes`; `encode` appends one item to the batch, or leaves the batch as it is and tells why.
///
/// # Errors
/// No memory in time, or the agent stops.
pub async fn all<I>(
    source: &Source,
    items: impl Iterator<Item = I>,
    bytes_of: impl Fn(&I) -> usize,
    mut encode: impl FnMut(I, &mut Batch) -> Result<(), Reject>,
    bytes: usize,
    context: &Context,
) -> Result<Taken, Problem> {
    let mut taken = Taken {
        receipts: Vec::new(),
        left_out: Vec::new(),
        rejected: Vec::new(),
        spool: source.spool().clone(),
        patience: context.options.admit_timeout,
    };
    let mut items = items.enumerate().peekable();
    // What rules add, or base64, takes memory too.
    let bytes_of = |item: &I| source.grown(bytes_of(item));
    let bytes = if source.grows() { usize::MAX - FRAME_OVERHEAD_BYTES } else { bytes };
    let mut patience = None;
    loop {
        // An event larger than a batch is one alone: so a permit covers what lies in its batch.
        let room = items.peek().map_or(0, |(_, item)| bytes_of(item)).max(BATCH_BYTES);
        let permit = admit(source, bytes.min(room) + FRAME_OVERHEAD_BYTES, patience, context).await?;
        let mut batch = source.batch();
        let counted = taken.rejected.len();
        while let Some((index, item)) = items.next_if(|(_, item)| bytes_of(item) <= room) {
            let before = batch.count();
            match encode(item, &mut batch) {
                Ok(()) if batch.count() == before => taken.left_out.push(index as u32),
                Ok(()) => {}
                Err(reject) => taken.rejected.push((index as u32, reject)),
            }
            if batch.len() >= BATCH_BYTES {
                break;
            }
        }
        let more = items.peek().is_some();
        // Bad events come in runs of one reason, most often.
        for run in taken.rejected[counted..].chunk_by(|a, b| a.1 == b.1) {
            source.count_rejected(run[0].1, run.len() as u64);
        }
        if !batch.is_empty() {
            let events = batch.count();
            taken.receipts.push((source.submit(batch, permit), events));
        }
        if !more {
            return Ok(taken);
        }
        patience = Some(context.options.admit_timeout * PATIENCE_FACTOR);
    }
}

/// Admits a request's first batch, or, with a `patience` of its own, a later one.
async fn admit(source: &Source, bytes: usize, patience: Option<Duration>, context: &Context) -> Result<Permit, Problem> {
    let admitted = async {
        match patience {
            None => wait_patiently(context.options.admit_timeout, source.admit(bytes)).await,
            Some(patience) => timeout(patience, source.admit(bytes)).await.ok(),
        }
    };
    tokio::select! {
        biased;
        admitted = admitted => match admitted {
            Some(Ok(permit)) => Ok(permit),
            Some(Err(_)) => Err(draining()),
            None => Err(match source.full() {
                Some(limit) => Problem::full(limit),
                None => Problem::overload("the disk is slower than events come; try again"),
            }),
        },
        () = stopped(context.shutdown.clone()) => Err(draining()),
    }
}
