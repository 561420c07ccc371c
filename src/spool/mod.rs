//! SEAM (being written): what ingest sees of a spool.
use crate::event::{KeyHash, Position};
use std::sync::Arc;

/// Cheap to clone; one per stream.
#[derive(Clone, Debug)]
pub struct SpoolHandle(Arc<()>);

/// Frames being gathered by one connection or one HTTP request, in one reused buffer.
#[derive(Debug)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub count: u32,
}

impl Batch {
    /// Appends one event. `key` is 1..=256 chars, `hash` its MD5 unless `explicit` (then it is the explicit hash key).
    pub fn push(&mut self, key: &str, hash: KeyHash, explicit: bool, data: &[u8]) {
        let _ = (key, hash, explicit, data);
        todo!()
    }
    /// Bytes of frames so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Events so far.
    pub fn count(&self) -> u32 {
        self.count
    }
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Bytes admitted against the spool's memory budget; given back when the events are durable.
#[derive(Debug)]
#[must_use]
pub struct Permit(());

/// Resolves when the batch is durable. Dropping it is fine (nobody is told).
/// Err: the spool closed before the batch became durable; the events may or may not survive.
#[derive(Debug)]
#[must_use]
pub struct Receipt(());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDurable;

impl Receipt {
    /// First position of the batch, once durable.
    pub async fn durable(self) -> Result<Position, NotDurable> {
        todo!()
    }
}

/// The spool is closing: accept nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl SpoolHandle {
    /// Waits until `bytes` fit the memory budget (at most `limits::INGEST_BYTES_MAX / 4` is asked at once;
    /// larger requests are clamped). This is where backpressure is felt: full spool, full disk, slow disk.
    pub async fn admit(&self, bytes: usize) -> Result<Permit, Closed> {
        let _ = bytes;
        todo!()
    }
    /// An empty batch in a pooled buffer.
    pub fn batch(&self) -> Batch {
        todo!()
    }
    /// Hands the batch to the commit thread. Never blocks, no await. Order of submit calls from one task is order of positions.
    /// `source` is counted in accepted_by_source.
    pub fn submit(&self, batch: Batch, permit: Permit) -> Receipt {
        let _ = (batch, permit);
        todo!()
    }
    /// Counts a refused event.
    pub fn count_rejected(&self, source: &str, reason: &'static str) {
        let _ = (source, reason);
    }
    pub fn count_accepted(&self, source: &str, events: u64) {
        let _ = (source, events);
    }
    /// At `max_bytes` or disk full; `admit` would wait.
    pub fn is_full(&self) -> bool {
        false
    }
}
