//! How an event passes the rules of a source that has some, and what its batch then waits for.
//!
//! Place: part of `source`, whose `encode` functions come here where there are [`Rules`]. The order of the steps is the
//! meaning of the rules: filter, key, added fields and encoding, size, and last the id, because from then on the event is under
//! way. Failure: as in `source`; a [`Reject`] leaves batch and ids as they are.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Reject, Source, check_key, short_key};
use crate::config::KeyFallback;
use crate::event::{KeyHash, Position};
use crate::ingest::pointer::Scratch;
use crate::ingest::rules::dedupe::{Fate, Verdict, id_of};
use crate::ingest::rules::key::Chosen;
use crate::ingest::rules::{self, Rules};
use crate::limits::BATCH_BYTES;
use crate::spool::{Batch, NotDurable, Receipt};

thread_local!(static RULES: RefCell<(Scratch, String, rules::Made)> = RefCell::default());

/// An event as its source's rules take it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'g> {
    pub data: &'g [u8],
    pub key: GivenKey<'g>,
    pub hash: Option<KeyHash>,
    pub event_type: Option<&'g str>,
    pub id: Option<&'g str>,
}

impl<'g> Given<'g> {
    pub(super) fn of(data: &'g [u8]) -> Self {
        Self { data, key: GivenKey::None, hash: None, event_type: None, id: None }
    }
}

/// What is known of an event's key beside the source's own rule.
#[derive(Clone, Copy, Debug)]
pub(super) enum GivenKey<'g> {
    None,
    /// The client named it: that holds.
    Named(&'g str),
    /// What the vendor's rule found; the source's own goes first, and a key that is too long is shortened.
    Vendor(Option<&'g str>),
}

impl Source {
    pub(super) fn encode_by_rules(&self, rules: &Rules, given: &Given<'_>, batch: &mut Batch) -> Result<(), Reject> {
        let outcome = RULES.with_borrow_mut(|(scratch, key, made)| {
            // An event that is not JSON meets no rule that needs it to be.
            let hits = if rules.pointers.is_empty() { None } else { rules.pointers.find_all(given.data, scratch).ok() };
            if !rules.filter.passes(given.event_type, hits) {
                self.tenant.usage().filtered.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            let chosen = match given.key {
                GivenKey::Named(key) => Some(Chosen::Key(key)),
                GivenKey::None => rules.keys.choose(hits, key),
                GivenKey::Vendor(by_vendor) => rules.keys.choose(hits, key).or(by_vendor.map(Chosen::Key)),
            };
            let (random, short);
            let key = match chosen {
                Some(Chosen::Key(key)) if check_key(key).is_ok() => key,
                Some(Chosen::Key(key)) if matches!(given.key, GivenKey::Vendor(_)) => {
                    short = short_key(key);
                    &short
                }
                Some(Chosen::Key(key)) => return check_key(key),
                None if self.rule.fallback == KeyFallback::Reject => {
                    let unread = hits.is_none() && !rules.keys.is_empty() && matches!(given.key, GivenKey::None);
                    return Err(if unread { Reject::NotJson } else { Reject::NoKey });
                }
                None | Some(Chosen::Random) => {
                    random = self.rule.random();
                    std::str::from_utf8(&random).expect("hex digits are ASCII")
                }
            };
            let data = rules.data(given.data, hits, || self.host.clock.wall_ms(), made);
            self.judge_size(data.len())?;
            // Last, because from here on the event is under way.
            if let Some(dedupe) = &self.dedupe
                && let Some(id) = given.id.or_else(|| hits?.key(rules.id?))
                && dedupe.meet(id_of(self.name(), id), batch) == Verdict::Copy
            {
                return Ok(());
            }
            batch.push(key, given.hash, data);
            Ok(())
        });
        if given.data.len() > BATCH_BYTES {
            // A rare giant.
            RULES.with_borrow_mut(|(_, _, made)| made.shrink(BATCH_BYTES));
        }
        outcome
    }
}

/// A batch on its way: its receipt, and what the copies of events wait for that it was found to hold.
#[derive(Debug)]
#[must_use]
pub struct Sent {
    pub(super) receipt: Receipt,
    pub(super) waits: Vec<Arc<Fate>>,
}

impl Sent {
    /// First position of the batch, once all its events are durable, and those of which it held copies.
    ///
    /// # Errors
    /// [`NotDurable`]; `Closed` also where a copy's first sending was refused, so that the copy must be sent again.
    pub async fn durable(self) -> Result<Position, NotDurable> {
        let first = self.receipt.durable().await?;
        for wait in self.waits {
            if !wait.is_durable().await {
                return Err(NotDurable::Closed);
            }
        }
        Ok(first)
    }
}
