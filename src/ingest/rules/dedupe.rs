//! `dedupe`: an event that is sent again within a time is stored once.
//!
//! Place: [`Dedupe::meet`] judges an event by its id right before it would lie in a batch. A new id is under way with that
//! batch until the commit thread tells the batch's [`Companion`] what became of it. The [`Fate`] of a batch is what later
//! copies of its events wait for.
//!
//! *SEEN-WHEN-DURABLE*: an id counts as seen once its event is durable, not before. A copy that comes while the first one is
//! under way is answered with the first one's outcome: as success when that is durable, and otherwise not at all as success,
//! so that it is sent again. A batch that is refused, abandoned or forgotten forgets its ids.
//!
//! Owner: the ids of a source lie under one lock, held for one event or for one batch; the journal under another one, which
//! the commit thread holds while it writes, before the receipts leave. Memory: [`IDS_MAX`] ids, of which the oldest leave
//! early, which is counted; ids of a batch under way, which is bounded with the batch, take 16 bytes more.
//!
//! Failure: whatever is lost here costs duplicates, never an event. Absent on purpose: what an event's id is.

use std::any::Any;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::journal::Journal;
use super::seen::{Id, Seen, State};
use crate::host::{Clock, Host};
use crate::metrics::{SourceUsage, locked};
use crate::spool::{Batch, Companion};

/// Ids that a source keeps at most.
pub const IDS_MAX: usize = 1 << 20;

/// Memory that they take at most, bytes.
pub const IDS_BYTES_MAX: usize = 28 * IDS_MAX;

/// The id of an event: SHA-256 of the source's name and the text, cut to 128 bits.
#[must_use]
pub fn id_of(source: &str, text: &str) -> Id {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in [source.as_bytes(), b"\0", text.as_bytes()] {
        digest.update(part);
    }
    let digest = digest.finish();
    Id::from_le_bytes(digest.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes"))
}

const OPEN: u8 = 0;
const DURABLE: u8 = 1;
const FAILED: u8 = 2;

/// What becomes of a batch, for those who wait for it.
#[derive(Debug, Default)]
pub struct Fate {
    state: AtomicU8,
    told: Notify,
}

impl Fate {
    /// Waits for it: true when the batch is durable.
    pub async fn is_durable(&self) -> bool {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            match self.state.load(Ordering::Acquire) {
                OPEN => told.await,
                state => return state == DURABLE,
            }
        }
    }

    fn tell(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.told.notify_waiters();
    }
}

/// A batch under way that has ids.
#[derive(Debug)]
struct UnderWay {
    fate: Arc<Fate>,
    /// Copies that wait for it, its own batch's included.
    copies: u64,
}

#[derive(Debug)]
struct Ids {
    seen: Seen,
    /// By the number in [`State::UnderWay`].
    batches: Vec<Option<UnderWay>>,
    free: Vec<u32>,
}

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes into the batch.
    New,
    /// It was stored before, or is about to be: it is answered, and not stored.
    Copy,
}

/// One source's ids.
#[derive(Debug)]
pub struct Dedupe {
    ids: Mutex<Ids>,
    journal: Mutex<Option<Journal>>,
    clock: Arc<dyn Clock>,
    usage: Arc<SourceUsage>,
    window: Duration,
    window_seconds: u32,
}

impl Dedupe {
    /// Nothing known yet; ids are kept for `window`, in memory only until [`Dedupe::keep_in`].
    #[must_use]
    pub fn new(window: Duration, usage: Arc<SourceUsage>, clock: Arc<dyn Clock>, ids_max: usize) -> Arc<Self> {
        let ids = Ids { seen: Seen::new(ids_max), batches: Vec::new(), free: Vec::new() };
        let window_seconds = u32::try_from(window.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX >> 2);
        Arc::new(Self { ids: Mutex::new(ids), journal: Mutex::new(None), clock, usage, window, window_seconds })
    }

    /// From now on ids are noted below the spool's directory, and what is noted there is known.
    pub fn keep_in(&self, host: &Host, spool_dir: &Path, ids_max: usize) {
        let (journal, known) = Journal::open(host, spool_dir, &self.usage.name, self.window, ids_max);
        let (now, now_ms) = (self.now(), host.clock.wall_ms());
        let mut ids = locked(&self.ids);
        for (id, ms) in known {
            // A clock that was set back makes an id younger than it is, not older.
            let age = u32::try_from(now_ms.saturating_sub(ms) / 1000).unwrap_or(u32::MAX);
            if age < self.window_seconds && ids.seen.get(id).is_none() {
                ids.seen.insert(id, State::Since(now - age));
            }
        }
        drop(ids);
        *locked(&self.journal) = Some(journal);
    }

    /// Seconds, of which the window lies behind from the start on.
    fn now(&self) -> u32 {
        let seconds = u32::try_from(self.clock.monotonic().as_secs()).unwrap_or(u32::MAX >> 1);
        seconds.saturating_add(self.window_seconds)
    }

    /// Judges an event that would go into `batch` next. The batch will tell what became of it.
    pub fn meet(self: &Arc<Self>, id: Id, batch: &mut Batch) -> Verdict {
        let now = self.now();
        let mut ids = locked(&self.ids);
        ids.seen.expire(now - self.window_seconds);
        match ids.seen.get(id) {
            Some(State::Since(since)) if since + self.window_seconds > now => {
                self.usage.deduplicated.fetch_add(1, Ordering::Relaxed);
                return Verdict::Copy;
            }
            // Too old, and not the oldest.
            Some(State::Since(_)) => ids.seen.remove(id),
            Some(State::UnderWay(number)) => {
                let own = self.riding(batch, &mut ids);
                if let Some(Some(first)) = ids.batches.get_mut(number as usize) {
                    first.copies += 1;
                    if own.number != number && !own.waits.iter().any(|wait| Arc::ptr_eq(wait, &first.fate)) {
                        own.waits.push(Arc::clone(&first.fate));
                    }
                }
                return Verdict::Copy;
            }
            None => {}
        }
        let own = self.riding(batch, &mut ids);
        own.ids.push(id);
        if ids.seen.insert(id, State::UnderWay(own.number)) {
            self.usage.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::New
    }

    /// What rides with the batch; begun with the first id.
    fn riding<'b>(self: &Arc<Self>, batch: &'b mut Batch, ids: &mut Ids) -> &'b mut Riding {
        let companion = batch.companion(|| {
            let number = ids.free.pop().unwrap_or_else(|| {
                ids.batches.push(None);
                (ids.batches.len() - 1) as u32
            });
            let fate = Arc::<Fate>::default();
            ids.batches[number as usize] = Some(UnderWay { fate: Arc::clone(&fate), copies: 0 });
            Box::new(Riding { dedupe: Arc::clone(self), number, fate, ids: Vec::new(), waits: Vec::new(), settled: false })
        });
        (companion as &mut dyn Any).downcast_mut().expect("a batch is of one source, whose companion this is")
    }

    /// The batch's ids are seen, or forgotten.
    fn settle(&self, riding: &mut Riding, durable: bool) -> u64 {
        if std::mem::replace(&mut riding.settled, true) {
            return 0;
        }
        if durable
            && !riding.ids.is_empty()
            && let Some(journal) = &mut *locked(&self.journal)
        {
            let now_ms = self.clock.wall_ms();
            journal.note(riding.ids.iter().map(|id| (*id, now_ms)));
        }
        let now = self.now();
        let mut ids = locked(&self.ids);
        for &id in &riding.ids {
            if durable {
                ids.seen.settle(id, riding.number, now);
            } else if ids.seen.get(id) == Some(State::UnderWay(riding.number)) {
                ids.seen.remove(id);
            }
        }
        let batch = ids.batches[riding.number as usize].take();
        ids.free.push(riding.number);
        drop(ids);
        riding.fate.tell(if durable { DURABLE } else { FAILED });
        batch.map_or(0, |batch| batch.copies)
    }
}

/// Rides with a batch.
#[derive(Debug)]
struct Riding {
    dedupe: Arc<Dedupe>,
    number: u32,
    fate: Arc<Fate>,
    /// Of the batch's events.
    ids: Vec<Id>,
    /// What copies of events in other batches wait for.
    waits: Vec<Arc<Fate>>,
    settled: bool,
}

impl Companion for Riding {
    fn durable(mut self: Box<Self>) {
        let dedupe = Arc::clone(&self.dedupe);
        let copies = dedupe.settle(&mut self, true);
        dedupe.usage.deduplicated.fetch_add(copies, Ordering::Relaxed);
    }

    fn refused(mut self: Box<Self>) -> u64 {
        let dedupe = Arc::clone(&self.dedupe);
        dedupe.settle(&mut self, false)
    }
}

impl Drop for Riding {
    fn drop(&mut self) {
        let dedupe = Arc::clone(&self.dedupe);
        dedupe.settle(self, false);
    }
}

/// Takes what the answer to a batch's events waits for beside the batch itself.
pub fn take_waits(batch: &mut Batch) -> Vec<Arc<Fate>> {
    let riding = batch.companion_mut().and_then(|companion| (companion as &mut dyn Any).downcast_mut::<Riding>());
    riding.map(|riding| std::mem::take(&mut riding.waits)).unwrap_or_default()
}
