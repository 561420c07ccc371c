//! Where batches wait for the commit thread, and what they wait with: permits and receipts.
//!
//! Place: ingest calls `admit`, `batch`, `submit` on a [`SpoolHandle`]; the commit thread runs [`commit_loop`]
//! (`keeper`) over the `Writer`; the dispatcher takes committed batches from the [`HotTail`].
//!
//! Full: whether there is room for a group is `room`'s to say; what then happens is [`Policy::on_full`]. `block`: the
//! commit thread holds the group until there is, and the doors feel it. `reject`: the group's receipts answer
//! [`NotDurable::Full`], and the doors, which look at one flag for each batch, refuse what comes until there is room again. `drop_oldest`: as `block`, and the dispatcher is asked
//! to give up the oldest segment's events, time and again.
//! A source at its quota is the doors' own affair: [`SpoolHandle::admit_source`] waits, [`SpoolHandle::refuses`] refuses.
//!
//! Sync classes: `always` syncs each group before its receipts. `interval` and `os` give receipts after the write; the
//! commit thread syncs when that is due, when a segment is sealed, and at the end.
//!
//! Owner: the gathering group is shared under one lock, held for one append or swap; the writer belongs to the
//! thread. Memory: a permit stands for admitted bytes and is given back when they are durable, so that a slow
//! disk, a full disk or a full spool is felt at the doors and nowhere else (*NO-BLOCKING*).
//!
//! Failure: a commit that fails is tried again in a new file, after a wait, for ever; until then the spool is
//! not writable (readiness says so) and no receipt leaves. A closed spool answers waiting receipts with
//! [`NotDurable`].

mod keeper;
mod pulse;
mod room;
mod tail;

use std::any::Any;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use self::keeper::commit_loop;
pub use self::pulse::Pulse;
use self::room::Book;
pub use self::room::{Policy, SyncTimer};
pub use self::tail::{Chunk, HotTail};
use super::frame;
use super::segment::SegmentTable;
use crate::config::OnFull;
use crate::event::{KeyHash, Position};
use crate::host::Host;
use crate::limits::{ADMIT_BYTES_MAX, BATCH_BYTES, Budgets, INGEST_BYTES_MAX};
use crate::metrics::{Limit, PolicyTold, SourceUsage, StreamMetrics, locked};

/// Bytes that one group takes at most: what is measured to saturate a disk; more only adds latency.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Once groups reach an eighth of this, events come as a stream: then a group waits until it is this large, or for
/// [`STREAM_WAIT`], because each sync costs its CPU whatever it covers. Single events never wait.
const STREAM_BYTES: usize = 512 << 10;

/// The longest such a group waits.
const STREAM_WAIT: Duration = Duration::from_micros(800);

/// Batches up to this size are copied together; larger ones keep their own buffer.
const COPY_BYTES_MAX: usize = BATCH_BYTES / 2;

/// Buffers kept for reuse.
const POOL_BUFFERS_MAX: usize = 128;

/// How long a failed commit waits before it tries a new file, and how often a spool without room looks again.
const RETRY_WAIT: Duration = Duration::from_millis(250);

/// Reused batch buffers.
#[derive(Debug, Default)]
pub struct Pool {
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    fn take(&self) -> Vec<u8> {
        let held = locked(&self.buffers).pop();
        held.unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES))
    }

    fn give(&self, mut buffer: Vec<u8>) {
        // Rare giants are freed; they would stay as large as the largest event ever seen.
        if buffer.capacity() > 2 * BATCH_BYTES || buffer.capacity() == 0 {
            return;
        }
        buffer.clear();
        let mut buffers = locked(&self.buffers);
        if buffers.len() < POOL_BUFFERS_MAX {
            buffers.push(buffer);
        }
    }
}

/// What rides with a batch and is told what becomes of it, by the commit thread and before any receipt of the batch leaves.
/// One that is dropped untold rode with a batch that was forgotten, or of which nobody knows.
pub trait Companion: Any + Send + std::fmt::Debug {
    /// Every event of the batch is durable. Must not wait.
    fn durable(self: Box<Self>);

    /// None of its events was taken, for want of room. Tells how many more events are refused with them.
    fn refused(self: Box<Self>) -> u64;
}

/// Frames being gathered by one connection or one request, in one reused buffer. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    companion: Option<Box<dyn Companion>>,
    count: u32,
    /// Number of the source, from 1; 0: nobody's.
    source: u16,
    pool: Arc<Pool>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Nothing is left of one that was submitted, and a buffer without capacity is not kept.
        self.pool.give(std::mem::take(&mut self.bytes));
    }
}

impl Batch {
    /// Appends one event, with an explicit hash key if it has one; otherwise its key is hashed when the batch is
    /// submitted, together with the others.
    ///
    /// # Panics
    /// If `key` is empty or over 1,024 bytes: the sources refuse those.
    pub fn push(&mut self, key: &str, explicit: Option<KeyHash>, data: &[u8]) {
        frame::encode(&mut self.bytes, key, explicit.unwrap_or_default(), explicit.is_some(), data);
        self.count += 1;
    }

    /// Bytes of frames so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Events so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// No events, and nobody who waits for what becomes of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.companion.is_none()
    }

    /// What rides with it, or from now on does.
    pub fn companion(&mut self, begin: impl FnOnce() -> Box<dyn Companion>) -> &mut dyn Companion {
        &mut **self.companion.get_or_insert_with(begin)
    }

    /// What rides with it.
    pub fn companion_mut(&mut self) -> Option<&mut dyn Companion> {
        self.companion.as_deref_mut()
    }
}

/// Bytes admitted against the spool's memory budget; given back when the events are durable.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    held: OwnedSemaphorePermit,
    since: Duration,
}

/// The promise of an answer: resolves when the batch is durable. Dropping it is fine; nobody is told then.
#[derive(Debug)]
#[must_use]
pub struct Receipt(oneshot::Receiver<Result<Position, Limit>>);

/// Why a batch did not become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDurable {
    /// The spool closed first: its events may or may not survive.
    Closed,
    /// There was no room, and the policy is to refuse: none of its events was taken. They are counted as rejected.
    Full(Limit),
}

impl Receipt {
    /// First position of the batch, once it is durable (in the weaker sync classes: written).
    ///
    /// # Errors
    /// [`NotDurable`].
    pub async fn durable(self) -> Result<Position, NotDurable> {
        self.0.await.map_err(|_| NotDurable::Closed)?.map_err(NotDurable::Full)
    }

    /// The same for threads without a runtime.
    ///
    /// # Errors
    /// [`NotDurable`].
    pub fn wait(self) -> Result<Position, NotDurable> {
        self.0.blocking_recv().map_err(|_| NotDurable::Closed)?.map_err(NotDurable::Full)
    }
}

/// The spool takes nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

#[derive(Debug, Default)]
struct Gathering {
    parts: Vec<(Vec<u8>, u32)>,
    bytes: usize,
    events: u64,
    /// Each batch of it, in order.
    waiting: Vec<Waiting>,
    closing: bool,
    /// The commit thread wants no wake-up before this many bytes are here.
    quiet_below: usize,
    /// The dispatcher freed disk space since the commit thread last looked.
    space_freed: bool,
    /// Somebody wants to know whether the commit thread lives.
    pulse: Option<Pulse>,
    /// The commit thread has ended.
    ended: bool,
}

/// One batch of a group: what is needed of it once its bytes lie among others.
#[derive(Debug)]
struct Waiting {
    /// Its first event within the group.
    first: u64,
    events: u32,
    bytes: u32,
    source: u16,
    companion: Option<Box<dyn Companion>>,
    /// Who wants to know.
    sender: oneshot::Sender<Result<Position, Limit>>,
    permit: Permit,
}

/// Who wants to know that something became durable.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// What the handle, the commit thread and the dispatcher share of one spool.
pub struct Shared {
    host: Host,
    gathering: Mutex<Gathering>,
    arrived: Condvar,
    budget: Arc<Semaphore>,
    /// Bytes that are admitted at once at most.
    admit_bytes_max: AtomicUsize,
    pool: Arc<Pool>,
    /// Segments.
    pub table: Arc<SegmentTable>,
    /// Committed and not yet taken.
    pub tail: HotTail,
    /// The stream's counters.
    pub metrics: Arc<StreamMetrics>,
    max_bytes: u64,
    wake: Mutex<Option<Wake>>,
    ask_for_room: Mutex<Option<Wake>>,
    policy: OnceLock<Policy>,
    /// Events refused for want of room, by the doors and here.
    refused: AtomicU64,
    book: Book,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("table", &self.table).finish_non_exhaustive()
    }
}

/// The spool as the doors see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SpoolHandle {
    shared: Arc<Shared>,
}

impl SpoolHandle {
    pub(super) fn new(
        host: Host,
        table: Arc<SegmentTable>,
        durable: Position,
        metrics: Arc<StreamMetrics>,
        max_bytes: u64,
    ) -> Self {
        let shared = Shared {
            host,
            gathering: Mutex::default(),
            arrived: Condvar::new(),
            budget: Arc::new(Semaphore::new(INGEST_BYTES_MAX)),
            admit_bytes_max: AtomicUsize::new(ADMIT_BYTES_MAX),
            pool: Arc::default(),
            table,
            tail: HotTail::new(durable),
            metrics,
            max_bytes,
            wake: Mutex::new(None),
            ask_for_room: Mutex::new(None),
            policy: OnceLock::new(),
            refused: AtomicU64::new(0),
            book: Book::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What the dispatcher shares.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Sets what the spool promises and does. Once, before the commit thread and the doors begin; a spool that is never told
    /// has the default policy.
    pub fn set_policy(&self, policy: Policy) {
        let told = PolicyTold { sync: policy.sync.to_string(), on_full: policy.on_full.name() };
        let first = self.shared.policy.set(policy).is_ok();
        // Told already by an opening that then failed.
        self.shared.metrics.policy.get_or_init(|| told);
        debug_assert!(first, "a policy is set once, before it is needed");
    }

    /// Gives back what other streams need of the memory. Once, before the doors begin.
    pub fn share_memory(&self, budgets: &Budgets) {
        self.shared.budget.forget_permits(INGEST_BYTES_MAX - budgets.ingest_bytes);
        // The largest event takes its part as a whole, if it must.
        self.shared.admit_bytes_max.store(ADMIT_BYTES_MAX.min(budgets.ingest_bytes), Ordering::Relaxed);
        self.shared.tail.set_bytes_max(budgets.hot_tail_bytes);
    }

    /// What the spool promises and does.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.shared.policy()
    }

    /// Makes a source known, so that what it has in the spool is counted and its quota (bytes) kept.
    pub fn register(&self, name: &str, quota: Option<u64>) -> Tenant {
        let usage = Arc::new(SourceUsage::new(name, quota));
        let mut sources = locked(&self.shared.metrics.sources);
        sources.push(Arc::clone(&usage));
        Tenant { number: u16::try_from(sources.len()).expect("a configuration has at most some hundred sources"), usage }
    }

    /// [`SpoolHandle::admit`] for a source: unless the policy is to refuse, a source at its quota waits here, holding
    /// nothing, until segments with events of it were removed.
    ///
    /// # Errors
    /// [`Closed`] when the spool takes nothing more.
    pub async fn admit_source(&self, tenant: &Tenant, bytes: usize) -> Result<Permit, Closed> {
        if tenant.usage.is_full() && self.policy().on_full != OnFull::Reject {
            self.wait_below_quota(tenant).await?;
        }
        self.admit(bytes).await
    }

    async fn wait_below_quota(&self, tenant: &Tenant) -> Result<(), Closed> {
        loop {
            let mut freed = std::pin::pin!(tenant.usage.freed.notified());
            freed.as_mut().enable();
            if self.shared.budget.is_closed() {
                return Err(Closed);
            }
            if !tenant.usage.is_full() {
                return Ok(());
            }
            tenant.note_at_quota();
            freed.await;
        }
    }

    /// Why there is no room for events of this source at present, whatever the policy. A load or two.
    #[must_use]
    pub fn full_for(&self, tenant: &Tenant) -> Option<Limit> {
        self.shared.metrics.full_by().or_else(|| tenant.usage.is_full().then_some(Limit::Quota))
    }

    /// Why events of this source must be refused at present: there is no room, and that is the policy. Asked once a batch.
    #[must_use]
    pub fn refuses(&self, tenant: &Tenant) -> Option<Limit> {
        self.full_for(tenant).filter(|_| self.policy().on_full == OnFull::Reject)
    }

    /// Counts `events` of a source that were refused for want of room.
    pub fn count_full(&self, tenant: &Tenant, limit: Limit, events: u64) {
        if limit == Limit::Quota {
            tenant.note_at_quota();
            tenant.usage.refused.fetch_add(events, Ordering::Relaxed);
        } else {
            self.shared.refused.fetch_add(events, Ordering::Relaxed);
        }
        self.count_rejected(&tenant.usage.name, FULL, events);
    }

    /// Events that were submitted and that no commit has taken yet.
    #[must_use]
    pub fn gathered(&self) -> u64 {
        self.shared.gathering().events
    }

    /// Waits until `bytes` fit the memory budget. This is where backpressure is felt: full spool, full or slow
    /// disk. At most [`ADMIT_BYTES_MAX`] is taken at once, so that one giant does not wait for all others.
    ///
    /// # Errors
    /// [`Closed`] when the spool takes nothing more.
    pub async fn admit(&self, bytes: usize) -> Result<Permit, Closed> {
        let bytes = self.shared.admitted_at_once(bytes);
        let held = Arc::clone(&self.shared.budget).acquire_many_owned(bytes).await.map_err(|_| Closed)?;
        Ok(Permit { held, since: self.shared.host.clock.monotonic() })
    }

    /// The same at once or not at all, for threads without a runtime.
    ///
    /// # Errors
    /// [`Closed`] when the budget is exhausted or the spool takes nothing more.
    pub fn try_admit(&self, bytes: usize) -> Result<Permit, Closed> {
        let bytes = self.shared.admitted_at_once(bytes);
        let held = Arc::clone(&self.shared.budget).try_acquire_many_owned(bytes).map_err(|_| Closed)?;
        Ok(Permit { held, since: self.shared.host.clock.monotonic() })
    }

    /// An empty batch in a reused buffer, whose events are counted for no source.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch { bytes: self.shared.pool.take(), companion: None, count: 0, source: 0, pool: Arc::clone(&self.shared.pool) }
    }

    /// An empty batch for a source's events.
    #[must_use]
    pub fn batch_of(&self, tenant: &Tenant) -> Batch {
        let mut batch = self.batch();
        batch.source = tenant.number;
        batch
    }

    /// Hands a batch to the commit thread. Never blocks. Batches that one task submits one after the other get
    /// positions in that order. An empty batch is durable as soon as what came before it is.
    pub fn submit(&self, mut batch: Batch, mut permit: Permit) -> Receipt {
        frame::hash_keys(&mut batch.bytes);
        let (sender, receipt) = oneshot::channel();
        // What was admitted and not needed goes back at once.
        let spare = permit.held.num_permits().saturating_sub(batch.len().max(1));
        drop(permit.held.split(spare));
        let (events, bytes, source) = (batch.count, batch.len() as u32, batch.source);
        let mut gathering = self.shared.gathering();
        if gathering.closing {
            // `sender` is dropped here: the receipt answers NotDurable.
            return Receipt(receipt);
        }
        let first = gathering.events;
        let companion = batch.companion.take();
        gathering.waiting.push(Waiting { first, events, bytes, source, companion, sender, permit });
        gathering.events += u64::from(batch.count);
        gathering.bytes += batch.len();
        match gathering.parts.last_mut() {
            Some((part, count)) if batch.len() <= COPY_BYTES_MAX && part.len() + batch.len() <= part.capacity() => {
                part.extend_from_slice(&batch.bytes);
                *count += batch.count;
            }
            _ => gathering.parts.push((std::mem::take(&mut batch.bytes), batch.count)),
        }
        let enough = gathering.bytes >= gathering.quiet_below;
        drop(gathering);
        if enough {
            self.shared.arrived.notify_one();
        }
        Receipt(receipt)
    }

    /// Counts `events` refused events of a source.
    pub fn count_rejected(&self, source: &str, reason: &'static str, events: u64) {
        self.shared.count_rejected(source, reason, events);
    }

    /// Takes nothing more. What was submitted is still committed.
    pub fn close(&self) {
        self.shared.budget.close();
        self.shared.gathering().closing = true;
        self.shared.arrived.notify_all();
        for usage in locked(&self.shared.metrics.sources).iter() {
            usage.freed.notify_waiters();
        }
    }
}

/// A source as its spool knows it. Shared by all connections of the source.
#[derive(Clone, Debug)]
pub struct Tenant {
    number: u16,
    usage: Arc<SourceUsage>,
}

impl Tenant {
    /// The source's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.usage.name
    }

    /// What is counted of the source.
    #[must_use]
    pub fn usage(&self) -> &Arc<SourceUsage> {
        &self.usage
    }

    /// Says once, until it is below again, that the source has met its quota.
    fn note_at_quota(&self) {
        if !self.usage.at_quota.swap(true, Ordering::Relaxed) {
            let SourceUsage { name, quota, .. } = &*self.usage;
            tracing::warn!(
                source = name,
                spool_quota = quota,
                "the source has filled its share of the spool: on_full holds for it"
            );
        }
    }
}

impl Shared {
    fn gathering(&self) -> MutexGuard<'_, Gathering> {
        locked(&self.gathering)
    }

    fn admitted_at_once(&self, bytes: usize) -> u32 {
        bytes.clamp(1, self.admit_bytes_max.load(Ordering::Relaxed)) as u32
    }

    fn count_rejected(&self, source: &str, reason: &'static str, events: u64) {
        let mut rejected = locked(&self.metrics.rejected);
        // A scan over a handful of sources and reasons, where a lookup would need an owned key for each refused event.
        match rejected.iter_mut().find(|(key, _)| key.0 == source && key.1 == reason) {
            Some((_, count)) => *count += events,
            None => drop(rejected.insert((source.to_owned(), reason), events)),
        }
    }

    /// Who is told, from now on, that something became durable.
    pub fn on_commit(&self, wake: Wake) {
        *locked(&self.wake) = Some(wake);
    }

    /// Who is asked, from now on, to give up the oldest events for a group that finds no room (`on_full = "drop_oldest"`).
    pub fn on_no_room(&self, ask: Wake) {
        *locked(&self.ask_for_room) = Some(ask);
    }

    /// As set, or the default.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy.get().copied().unwrap_or_default()
    }

    /// Tells the commit thread, and who waits for a quota, that segments were removed.
    pub fn space_freed(&self) {
        self.metrics.spool_bytes.store(self.table.bytes(), Ordering::Relaxed);
        self.book.release(&self.table, &self.sources());
        self.gathering().space_freed = true;
        self.arrived.notify_all();
    }

    fn sources(&self) -> Vec<Arc<SourceUsage>> {
        locked(&self.metrics.sources).clone()
    }

    /// Waits for batches, no longer than `patience`. Takes up to [`GROUP_BYTES_MAX`]. In a `stream` of events it waits a
    /// moment longer for a group worth a sync.
    fn next_group(&self, stream: bool, patience: Option<Duration>) -> Next {
        let mut gathering = self.gathering();
        let idle = |held: &mut Gathering| held.waiting.is_empty() && !held.closing && held.pulse.is_none();
        let waited = match patience {
            None => self.arrived.wait_while(gathering, idle),
            // Whoever has patience waits for room as well.
            Some(patience) => {
                let idle = |held: &mut Gathering| idle(held) && !held.space_freed;
                match self.arrived.wait_timeout_while(gathering, patience, idle) {
                    Ok((held, _)) => Ok(held),
                    Err(poisoned) => Err(PoisonError::new(poisoned.into_inner().0)),
                }
            }
        };
        gathering = waited.unwrap_or_else(PoisonError::into_inner);
        gathering.pulse = None;
        if gathering.waiting.is_empty() {
            gathering.space_freed = false;
            return if gathering.closing { Next::Closed } else { Next::Nothing };
        }
        if stream && gathering.bytes < STREAM_BYTES && !gathering.closing {
            let few = |held: &mut Gathering| held.bytes < STREAM_BYTES && !held.closing;
            gathering.quiet_below = STREAM_BYTES;
            gathering = self.arrived.wait_timeout_while(gathering, STREAM_WAIT, few).unwrap_or_else(PoisonError::into_inner).0;
        }
        let closing = gathering.closing;
        let mut group = std::mem::replace(&mut *gathering, Gathering { closing, ..Gathering::default() });
        gathering.pulse = group.pulse.take();
        // A group that is too large gives its end back; receipts and permits follow their events.
        let mut keep = 0;
        let mut bytes = 0;
        let mut events = 0u64;
        while keep < group.parts.len() && (keep == 0 || bytes + group.parts[keep].0.len() <= GROUP_BYTES_MAX) {
            bytes += group.parts[keep].0.len();
            events += u64::from(group.parts[keep].1);
            keep += 1;
        }
        if keep < group.parts.len() {
            let split = group.waiting.partition_point(|waiting| waiting.first < events);
            gathering.parts = group.parts.split_off(keep);
            gathering.waiting = group.waiting.split_off(split);
            for waiting in &mut gathering.waiting {
                waiting.first -= events;
            }
            gathering.events = group.events - events;
            gathering.bytes = group.bytes - bytes;
            group.events = events;
            group.bytes = bytes;
        }
        Next::Group(group)
    }

    /// Waits until segments were removed, the spool closes, or a moment passed. False when closing.
    fn wait_for_space(&self) -> bool {
        let gathering = self.gathering();
        let wait = |held: &mut Gathering| !held.closing && !held.space_freed;
        let (mut gathering, _) =
            self.arrived.wait_timeout_while(gathering, RETRY_WAIT, wait).unwrap_or_else(PoisonError::into_inner);
        gathering.space_freed = false;
        gathering.pulse = None;
        !gathering.closing
    }

    /// Nothing will be committed any more: whoever waits is told [`NotDurable`], and so is whoever submits later.
    fn abandon(&self) {
        let mut gathering = self.gathering();
        let abandoned = std::mem::replace(&mut *gathering, Gathering { closing: true, ..Gathering::default() });
        // Waiting tasks wake when the senders drop: not under the lock.
        drop(gathering);
        drop(abandoned);
    }
}

/// What the commit thread finds to do.
#[derive(Debug)]
enum Next {
    Group(Gathering),
    /// Time passed, or segments were removed.
    Nothing,
    /// Closed, and everything is taken.
    Closed,
}

/// The reason under which refusals for want of room are counted.
const FULL: &str = "full";

#[cfg(test)]
mod tests;
