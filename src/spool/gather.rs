//! Where batches wait for the commit thread, and what they wait with: permits and receipts.
//!
//! Place: ingest calls `admit`, `batch`, `submit` on a [`SpoolHandle`]; the commit thread runs [`commit_loop`]
//! over the [`Writer`]; the dispatcher takes committed batches from the [`HotTail`].
//!
//! Owner: the gathering group is shared under one lock, held for one append or swap; the writer belongs to the
//! thread. Memory: a permit stands for admitted bytes and is given back when they are durable, so that a slow
//! disk, a full disk or a full spool is felt at the doors and nowhere else (*NO-BLOCKING*).
//!
//! Failure: a commit that fails is tried again in a new file, after a wait, for ever; until then the spool is
//! not writable (readiness says so) and no receipt leaves. A closed spool answers waiting receipts with
//! [`NotDurable`].

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::commit::{Placed, Writer};
use super::frame;
use super::segment::{SegmentId, SegmentTable};
use crate::event::{KeyHash, Position};
use crate::host::{Clock, Host};
use crate::limits::{BATCH_BYTES, HOT_TAIL_BYTES_MAX, INGEST_BYTES_MAX};
use crate::metrics::{StreamMetrics, locked};

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

/// How long a failed commit waits before it tries a new file.
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

/// Frames being gathered by one connection or one request, in one reused buffer. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
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

    /// No events.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
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
pub struct Receipt(oneshot::Receiver<Position>);

/// The spool closed before the batch became durable: its events may or may not survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDurable;

impl Receipt {
    /// First position of the batch, once it is durable.
    ///
    /// # Errors
    /// [`NotDurable`] when the spool closed first.
    pub async fn durable(self) -> Result<Position, NotDurable> {
        self.0.await.map_err(|_| NotDurable)
    }

    /// The same for threads without a runtime.
    ///
    /// # Errors
    /// [`NotDurable`] when the spool closed first.
    pub fn wait(self) -> Result<Position, NotDurable> {
        self.0.blocking_recv().map_err(|_| NotDurable)
    }
}

/// The spool takes nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// A committed batch: frames that are durable and, while hot, still in memory.
#[derive(Debug)]
pub struct Chunk {
    /// Whole frames, one after the other.
    pub bytes: Vec<u8>,
    /// Position of the first.
    pub first: Position,
    /// Frames.
    pub count: u32,
    /// Their file.
    pub segment: SegmentId,
    /// Offset of the first frame there, when the frames lie in the file as they lie here.
    pub offset: u32,
    /// Creation time of the segment, to which the frames' times are relative, ms.
    pub created_ms: u64,
    pool: Option<Arc<Pool>>,
}

impl Chunk {
    /// A chunk read from disk.
    #[must_use]
    pub fn cold(bytes: Vec<u8>, first: Position, count: u32, segment: SegmentId, offset: u32, created_ms: u64) -> Self {
        Self { bytes, first, count, segment, offset, created_ms, pool: None }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.give(std::mem::take(&mut self.bytes));
        }
    }
}

/// Committed batches that the dispatcher has not taken yet, newest last, within a byte bound; what falls out
/// at the old end is read from disk instead.
#[derive(Debug, Default)]
pub struct HotTail {
    state: Mutex<Tail>,
}

#[derive(Debug, Default)]
struct Tail {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
    durable: Position,
}

impl HotTail {
    /// A tail that begins at `durable`.
    #[must_use]
    pub fn new(durable: Position) -> Self {
        Self { state: Mutex::new(Tail { durable, ..Tail::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, Tail> {
        locked(&self.state)
    }

    /// The position after the last durable event.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.state().durable
    }

    fn push(&self, chunks: Vec<Arc<Chunk>>, durable: Position) {
        let mut dropped = Vec::new();
        let mut tail = self.state();
        for chunk in chunks {
            tail.bytes += chunk.bytes.capacity();
            tail.chunks.push_back(chunk);
        }
        tail.durable = durable;
        while tail.bytes > HOT_TAIL_BYTES_MAX {
            let Some(oldest) = tail.chunks.pop_front() else { break };
            tail.bytes -= oldest.bytes.capacity();
            dropped.push(oldest);
        }
    }

    /// Takes the chunk that holds `position`, forgetting older ones. `Err` tells where the tail begins, or the
    /// durable end when it is empty.
    ///
    /// # Errors
    /// The position up to which the disk must be read instead.
    pub fn take(&self, position: Position) -> Result<Arc<Chunk>, Position> {
        let mut tail = self.state();
        while let Some(front) = tail.chunks.front() {
            if front.first > position {
                return Err(front.first);
            }
            let Some(chunk) = tail.chunks.pop_front() else { break };
            tail.bytes -= chunk.bytes.capacity();
            if chunk.first.0 + u64::from(chunk.count) > position.0 {
                return Ok(chunk);
            }
        }
        Err(tail.durable)
    }
}

#[derive(Debug, Default)]
struct Gathering {
    parts: Vec<(Vec<u8>, u32)>,
    bytes: usize,
    events: u64,
    /// Each batch's first event within the group, and who wants to know.
    receipts: Vec<(u64, oneshot::Sender<Position>)>,
    permits: Vec<Permit>,
    closing: bool,
    /// The commit thread wants no wake-up before this many bytes are here.
    quiet_below: usize,
    /// The dispatcher freed disk space since the commit thread last looked.
    space_freed: bool,
}

/// Who wants to know that something became durable.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// What the handle, the commit thread and the dispatcher share of one spool.
pub struct Shared {
    host: Host,
    gathering: Mutex<Gathering>,
    arrived: Condvar,
    budget: Arc<Semaphore>,
    pool: Arc<Pool>,
    /// Segments.
    pub table: Arc<SegmentTable>,
    /// Committed and not yet taken.
    pub tail: HotTail,
    /// The stream's counters.
    pub metrics: Arc<StreamMetrics>,
    max_bytes: u64,
    wake: Mutex<Option<Wake>>,
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
            pool: Arc::default(),
            table,
            tail: HotTail::new(durable),
            metrics,
            max_bytes,
            wake: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What the dispatcher shares.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until `bytes` fit the memory budget. This is where backpressure is felt: full spool, full or slow
    /// disk. At most a quarter of the budget is taken at once, so that one giant does not wait for all others.
    ///
    /// # Errors
    /// [`Closed`] when the spool takes nothing more.
    pub async fn admit(&self, bytes: usize) -> Result<Permit, Closed> {
        let bytes = bytes.clamp(1, INGEST_BYTES_MAX / 4) as u32;
        let held = Arc::clone(&self.shared.budget).acquire_many_owned(bytes).await.map_err(|_| Closed)?;
        Ok(Permit { held, since: self.shared.host.clock.monotonic() })
    }

    /// The same at once or not at all, for threads without a runtime.
    ///
    /// # Errors
    /// [`Closed`] when the budget is exhausted or the spool takes nothing more.
    pub fn try_admit(&self, bytes: usize) -> Result<Permit, Closed> {
        let bytes = bytes.clamp(1, INGEST_BYTES_MAX / 4) as u32;
        let held = Arc::clone(&self.shared.budget).try_acquire_many_owned(bytes).map_err(|_| Closed)?;
        Ok(Permit { held, since: self.shared.host.clock.monotonic() })
    }

    /// An empty batch in a reused buffer.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch { bytes: self.shared.pool.take(), count: 0, pool: Arc::clone(&self.shared.pool) }
    }

    /// Hands a batch to the commit thread. Never blocks. Batches that one task submits one after the other get
    /// positions in that order. An empty batch is durable as soon as what came before it is.
    pub fn submit(&self, mut batch: Batch, mut permit: Permit) -> Receipt {
        frame::hash_keys(&mut batch.bytes);
        let (sender, receipt) = oneshot::channel();
        // What was admitted and not needed goes back at once.
        let spare = permit.held.num_permits().saturating_sub(batch.len().max(1));
        drop(permit.held.split(spare));
        let mut gathering = self.shared.gathering();
        if gathering.closing {
            // `sender` is dropped here: the receipt answers NotDurable.
            return Receipt(receipt);
        }
        let first = gathering.events;
        gathering.receipts.push((first, sender));
        gathering.permits.push(permit);
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
        let mut rejected = locked(&self.shared.metrics.rejected);
        // A scan over a handful of sources and reasons, where a lookup would need an owned key for each refused event.
        match rejected.iter_mut().find(|(key, _)| key.0 == source && key.1 == reason) {
            Some((_, count)) => *count += events,
            None => drop(rejected.insert((source.to_owned(), reason), events)),
        }
    }

    /// Counts events taken in by a source.
    pub fn count_accepted(&self, source: &str, events: u64) {
        let mut accepted = locked(&self.shared.metrics.accepted_by_source);
        match accepted.get_mut(source) {
            Some(count) => *count += events,
            None => {
                accepted.insert(source.to_owned(), events);
            }
        }
    }

    /// The spool is at `max_bytes`, or the disk is full: `admit` may wait long.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.metrics.full.load(Ordering::Relaxed)
    }

    /// Takes nothing more. What was submitted is still committed.
    pub fn close(&self) {
        self.shared.budget.close();
        self.shared.gathering().closing = true;
        self.shared.arrived.notify_all();
    }
}

impl Shared {
    fn gathering(&self) -> MutexGuard<'_, Gathering> {
        locked(&self.gathering)
    }

    /// Who is told, from now on, that something became durable.
    pub fn on_commit(&self, wake: Wake) {
        *locked(&self.wake) = Some(wake);
    }

    /// Tells the commit thread that segments were removed.
    pub fn space_freed(&self) {
        self.metrics.spool_bytes.store(self.table.bytes(), Ordering::Relaxed);
        self.gathering().space_freed = true;
        self.arrived.notify_all();
    }

    /// Waits for batches; `None` when closed and empty. Takes up to [`GROUP_BYTES_MAX`]. In a `stream` of events it
    /// waits a moment longer for a group worth a sync.
    fn next_group(&self, stream: bool) -> Option<Gathering> {
        let mut gathering = self.gathering();
        loop {
            if gathering.bytes > 0 || !gathering.receipts.is_empty() {
                break;
            }
            if gathering.closing {
                return None;
            }
            gathering = self.arrived.wait(gathering).unwrap_or_else(PoisonError::into_inner);
        }
        if stream && gathering.bytes < STREAM_BYTES && !gathering.closing {
            let few = |held: &mut Gathering| held.bytes < STREAM_BYTES && !held.closing;
            gathering.quiet_below = STREAM_BYTES;
            gathering = self.arrived.wait_timeout_while(gathering, STREAM_WAIT, few).unwrap_or_else(PoisonError::into_inner).0;
        }
        let closing = gathering.closing;
        let mut group = std::mem::replace(&mut *gathering, Gathering { closing, ..Gathering::default() });
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
            let split = group.receipts.partition_point(|(first, _)| *first < events);
            gathering.parts = group.parts.split_off(keep);
            gathering.receipts = group.receipts.split_off(split);
            gathering.permits = group.permits.split_off(split);
            for (first, _) in &mut gathering.receipts {
                *first -= events;
            }
            gathering.events = group.events - events;
            gathering.bytes = group.bytes - bytes;
            group.events = events;
            group.bytes = bytes;
        }
        Some(group)
    }

    /// Waits until segments were removed, the spool closes, or a moment passed. False when closing.
    fn wait_for_space(&self) -> bool {
        let gathering = self.gathering();
        let wait = |held: &mut Gathering| !held.closing && !held.space_freed;
        let (mut gathering, _) =
            self.arrived.wait_timeout_while(gathering, RETRY_WAIT, wait).unwrap_or_else(PoisonError::into_inner);
        gathering.space_freed = false;
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

/// The commit thread: takes groups, makes them durable, answers, and hands them on. Ends when the spool is
/// closed and all that was submitted is committed, or when closed while commits fail.
pub fn commit_loop(shared: &Arc<Shared>, mut writer: Writer) {
    let clock: &Arc<dyn Clock> = &shared.host.clock;
    shared.metrics.writable.store(true, Ordering::Relaxed);
    shared.metrics.spool_bytes.store(shared.table.bytes(), Ordering::Relaxed);
    let mut stream = false;
    while let Some(mut group) = shared.next_group(stream) {
        stream = group.bytes >= STREAM_BYTES / 8;
        if group.events > 0 && !commit_group(shared, &mut writer, &mut group) {
            // Batches that came while it was tried would otherwise wait for as long as anybody holds a handle.
            shared.abandon();
            return;
        }
        let durable = writer.next();
        let base = Position(durable.0 - group.events);
        let now = clock.monotonic();
        for permit in &group.permits {
            shared.metrics.receipt_seconds.observe_n((now.saturating_sub(permit.since)).as_secs_f64(), 1);
        }
        for (first, sender) in group.receipts {
            // Whoever dropped the receipt does not want to know.
            sender.send(Position(base.0 + first)).ok();
        }
        drop(group.permits);
    }
    writer.seal();
}

/// Commits one group, however long it takes. False when the spool closed while it could not.
fn commit_group(shared: &Arc<Shared>, writer: &mut Writer, group: &mut Gathering) -> bool {
    let metrics = &shared.metrics;
    // A receipt is exact only if its parts keep their order; sizes are needed after the bytes are moved out.
    let counts: Vec<u32> = group.parts.iter().map(|(_, count)| *count).collect();
    let mut buffers: Vec<Vec<u8>> = group.parts.drain(..).map(|(bytes, _)| bytes).collect();
    let mut failing = false;
    let placed = loop {
        let cost = writer.cost(group.events, group.bytes as u64);
        if shared.table.bytes() + cost > shared.max_bytes {
            if !metrics.full.swap(true, Ordering::Relaxed) {
                tracing::warn!(max_bytes = shared.max_bytes, "the spool is full: accepting waits until Kinesis takes events");
            }
            if !shared.wait_for_space() {
                return false;
            }
            continue;
        }
        let before = shared.host.clock.monotonic();
        match writer.commit(&mut buffers) {
            Ok(placed) => {
                let took = shared.host.clock.monotonic().saturating_sub(before);
                metrics.commit_seconds.observe_n(took.as_secs_f64(), 1);
                break placed;
            }
            Err(error) => {
                let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
                metrics.full.store(full, Ordering::Relaxed);
                metrics.writable.store(false, Ordering::Relaxed);
                if !failing {
                    tracing::error!(%error, "the spool cannot be written: receipts wait; trying a new file again and again");
                }
                failing = true;
                if !shared.wait_for_space() {
                    return false;
                }
            }
        }
    };
    if failing {
        tracing::info!("the spool can be written again");
    }
    metrics.writable.store(true, Ordering::Relaxed);
    metrics.full.store(false, Ordering::Relaxed);
    metrics.spool_bytes.store(shared.table.bytes(), Ordering::Relaxed);
    locked(&metrics.account).accepted += group.events;
    let chunks = buffers.into_iter().zip(counts).zip(placed).map(|((bytes, count), placed)| {
        let Placed { segment, offset, first, created_ms } = placed;
        Arc::new(Chunk { bytes, first, count, segment, offset, created_ms, pool: Some(Arc::clone(&shared.pool)) })
    });
    shared.tail.push(chunks.collect(), writer.next());
    if let Some(wake) = &*locked(&shared.wake) {
        wake();
    }
    true
}

#[cfg(test)]
mod tests;
