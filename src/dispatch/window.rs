//! The chunks that records are packed from: the youngest in memory, older ones found on disk again.
//!
//! Place: `feed` pushes what it sweeps, `pack` looks up by number. Owner: the dispatcher. Its bytes are bounded
//! whatever the backlog; a slot whose chunk has left the window is read from its file.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::spool::gather::Chunk;

/// Chunks by a dense number, oldest first.
#[derive(Debug)]
pub struct Window {
    chunks: VecDeque<Arc<Chunk>>,
    first: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Window {
    /// An empty window of at most `bytes_max` bytes (and one chunk more).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), first: 0, bytes: 0, bytes_max }
    }

    /// The number that the next pushed chunk gets.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.first + self.chunks.len() as u64
    }

    /// Adds a chunk; the oldest ones leave.
    pub fn push(&mut self, chunk: Arc<Chunk>) {
        self.bytes += chunk.bytes.capacity();
        self.chunks.push_back(chunk);
        while self.bytes > self.bytes_max && self.chunks.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Forgets chunks before number `needed`: nothing refers to them any more.
    pub fn forget_before(&mut self, needed: u64) {
        while self.first < needed && !self.chunks.is_empty() {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.chunks.pop_front() {
            self.bytes -= oldest.bytes.capacity();
            self.first += 1;
        }
    }

    /// The chunk of that number, if it is still here.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Arc<Chunk>> {
        self.chunks.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}
