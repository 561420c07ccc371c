//! The chunks that records are packed from: the youngest in memory, older ones found on disk again.
//!
//! Place: `feed` pushes what it sweeps, `pack` looks up by number. Owner: the dispatcher. Its bytes are bounded
//! whatever the backlog; a slot whose chunk has left the window is read from its file.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::spool::gather::Chunk;

/// What the window is to keep of a chunk that is being handed out: all of it, or a copy of what queues take, where most of it
/// is nobody's at present and would drive out what others wait with.
#[derive(Debug)]
pub enum Keeping {
    /// All of it.
    Whole(Arc<Chunk>),
    /// What was taken so far.
    Taken(Chunk),
}

impl Keeping {
    /// Of that chunk.
    #[must_use]
    pub fn of(chunk: &Arc<Chunk>, whole: bool) -> Self {
        if whole {
            return Self::Whole(Arc::clone(chunk));
        }
        Self::Taken(Chunk::cold(Vec::new(), chunk.first, 0, chunk.segment, 0, chunk.created_ms))
    }

    /// The chunk that slots refer to.
    #[must_use]
    pub fn chunk(&self) -> &Chunk {
        match self {
            Self::Whole(chunk) => chunk,
            Self::Taken(chunk) => chunk,
        }
    }

    /// Where a frame that lies at `offset` of the chunk will lie in what is kept.
    #[must_use]
    pub fn offset(&self, offset: usize) -> usize {
        match self {
            Self::Whole(_) => offset,
            Self::Taken(chunk) => chunk.bytes.len(),
        }
    }

    /// A queue took this frame.
    pub fn take(&mut self, frame: &[u8]) {
        if let Self::Taken(chunk) = self {
            chunk.bytes.extend_from_slice(frame);
        }
    }
}

/// Chunks by a dense number, oldest first.
#[derive(Debug)]
pub struct Window {
    chunks: VecDeque<Arc<Chunk>>,
    first: u32,
    bytes: usize,
    bytes_max: usize,
}

impl Window {
    /// An empty window of at most `bytes_max` bytes (and one chunk more).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), first: 0, bytes: 0, bytes_max }
    }

    /// The number that the next pushed chunk gets. Numbers wrap; those in the window are close together.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.first.wrapping_add(self.chunks.len() as u32)
    }

    /// Adds a chunk; the oldest ones leave.
    pub fn push(&mut self, chunk: Arc<Chunk>) {
        self.bytes += chunk.bytes.capacity();
        self.chunks.push_back(chunk);
        while self.bytes > self.bytes_max && self.chunks.len() > 1 {
            self.drop_oldest();
        }
    }

    /// Adds what is kept of a chunk, unless it is nothing.
    pub fn keep(&mut self, keeping: Keeping) {
        match keeping {
            Keeping::Whole(chunk) => self.push(chunk),
            Keeping::Taken(chunk) if chunk.bytes.is_empty() => {}
            Keeping::Taken(mut chunk) => {
                chunk.bytes.shrink_to_fit();
                self.push(Arc::new(chunk));
            }
        }
    }

    /// Forgets the oldest chunks up to the first one in use; all of them when none is.
    pub fn forget_unused(&mut self, in_use: impl Iterator<Item = u32>) {
        let held = self.chunks.len() as u32;
        // A queue whose oldest chunk has left already may go on anywhere.
        let ages = in_use.map(|number| number.wrapping_sub(self.first)).map(|age| if age < held { age } else { 0 });
        let unused = ages.min().unwrap_or(held);
        for _ in 0..unused {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.chunks.pop_front() {
            self.bytes -= oldest.bytes.capacity();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// The chunk of that number, if it is still here.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Arc<Chunk>> {
        self.chunks.get(number.wrapping_sub(self.first) as usize)
    }
}
