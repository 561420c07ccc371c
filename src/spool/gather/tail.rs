//! The hot tail: committed batches that are still in memory, for the dispatcher to take without reading them back.
//!
//! Place: `gather` pushes what it committed, the cursor takes. Owner: one lock, held for moments. *BOUNDED*: within
//! `HOT_TAIL_BYTES_MAX`, or its part of it; what falls out at the old end is on disk. A chunk's buffer goes back to the pool with its last user.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Pool;
use crate::event::Position;
use crate::limits::HOT_TAIL_BYTES_MAX;
use crate::metrics::locked;
use crate::spool::segment::SegmentId;

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
    pub(super) pool: Option<Arc<Pool>>,
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
#[derive(Debug)]
pub struct HotTail {
    state: Mutex<Tail>,
}

#[derive(Debug, Default)]
pub(super) struct Tail {
    chunks: VecDeque<Arc<Chunk>>,
    pub(super) bytes: usize,
    durable: Position,
    bytes_max: usize,
}

impl HotTail {
    /// A tail that begins at `durable`.
    #[must_use]
    pub fn new(durable: Position) -> Self {
        Self { state: Mutex::new(Tail { durable, bytes_max: HOT_TAIL_BYTES_MAX, ..Tail::default() }) }
    }

    /// Sets the bound.
    pub(super) fn set_bytes_max(&self, bytes: usize) {
        self.state().bytes_max = bytes;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Tail> {
        locked(&self.state)
    }

    /// The position after the last durable event.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.state().durable
    }

    pub(super) fn push(&self, chunks: Vec<Arc<Chunk>>, durable: Position) {
        let mut dropped = Vec::new();
        let mut tail = self.state();
        for chunk in chunks {
            tail.bytes += chunk.bytes.capacity();
            tail.chunks.push_back(chunk);
        }
        tail.durable = durable;
        while tail.bytes > tail.bytes_max {
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
