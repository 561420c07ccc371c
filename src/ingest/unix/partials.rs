//! The budget of a socket's connections for events of which only a part has come.
//!
//! Place: `connection` tells what it carries over, and asks how much it may read next. *BOUNDED*: a large unfinished event
//! needs one of few slots; while all of them together take much, reads are small. Owner: the counts are shared by all
//! connections of the door; each has its own part, which ends with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// An unfinished event up to this size may wait for its rest as long as it likes.
pub const PARTIAL_BYTES_FREE: usize = 16 << 10;

/// Connections that may have an unfinished event above [`PARTIAL_BYTES_FREE`] at once.
const PARTIALS_LARGE_MAX: usize = 24;

/// Bytes of unfinished events, over all connections, from which on reads are small.
const PARTIALS_BYTES_LEAN: usize = 8 << 20;

/// Bytes of one read while unfinished events take [`PARTIALS_BYTES_LEAN`] or more.
const READ_BYTES_LEAN: usize = 4 << 10;

/// Bytes of one read.
pub const READ_BYTES: usize = 64 << 10;

/// Budget for events of which only a part has come.
#[derive(Debug)]
pub struct Partials {
    /// One permit for each large one.
    pub large: Semaphore,
    /// All of them together.
    bytes: AtomicUsize,
}

/// One connection's part in [`Partials`].
pub struct Partial<'s> {
    budget: &'s Partials,
    /// Bytes of its unfinished event.
    pub bytes: usize,
    /// Its slot, where that is a large one.
    pub large: Option<SemaphorePermit<'s>>,
}

impl Default for Partials {
    fn default() -> Self {
        Self { large: Semaphore::new(PARTIALS_LARGE_MAX), bytes: AtomicUsize::new(0) }
    }
}

impl<'s> Partial<'s> {
    /// Nothing unfinished.
    pub fn new(budget: &'s Partials) -> Self {
        Self { budget, bytes: 0, large: None }
    }

    /// Its unfinished event has this many bytes now.
    pub fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.budget.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = bytes;
        }
        if bytes <= PARTIAL_BYTES_FREE {
            self.large = None;
        }
    }

    /// Bytes that the next read may bring.
    pub fn read_bytes(&self) -> usize {
        let lean = self.large.is_none() && self.budget.bytes.load(Ordering::Relaxed) >= PARTIALS_BYTES_LEAN;
        if lean { READ_BYTES_LEAN } else { READ_BYTES }
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}
