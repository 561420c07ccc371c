//! A request on its way out: what it is made of before it becomes a PutRecords.
//!
//! Place: the dispatcher packs it, holding frames by reference; the put task turns it into entries, so that
//! copying, base64 and MD5 run beside the dispatcher. Pure.

use std::ops::Range;
use std::sync::Arc;

use crate::aggregate::{OUTER_KEY, Plan};
use crate::kinesis::PutEntry;
use crate::spool::frame::Frame;
use crate::spool::gather::Chunk;

/// Where a frame's bytes are: a chunk of the request, or its own buffer of frames read from disk.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef {
    chunk: u32,
    offset: u32,
}

const COLD: u32 = u32::MAX;

/// One record: its frames, and its plan when it is an aggregate.
#[derive(Debug)]
pub struct OutRecord {
    frames: Range<usize>,
    plan: Option<Plan>,
}

/// A request being built.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Number by which its answer is told.
    pub id: u64,
    chunks: Vec<Arc<Chunk>>,
    last_chunk: Option<u64>,
    cold: Vec<u8>,
    frames: Vec<FrameRef>,
    records: Vec<OutRecord>,
    /// Bytes that count against the service's limits.
    pub billed: usize,
}

impl Outgoing {
    /// An empty request of that number.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    /// Refers to a frame in a chunk of the window, `number` being the chunk's.
    pub fn hot_frame(&mut self, number: u64, chunk: &Arc<Chunk>, offset: u32) -> FrameRef {
        if self.last_chunk != Some(number) {
            self.chunks.push(Arc::clone(chunk));
            self.last_chunk = Some(number);
        }
        FrameRef { chunk: self.chunks.len() as u32 - 1, offset }
    }

    /// Where a frame read from disk is to be appended.
    pub fn cold_buffer(&mut self) -> &mut Vec<u8> {
        &mut self.cold
    }

    /// Refers to the frame that begins at `offset` of the cold buffer.
    #[must_use]
    pub fn cold_frame(offset: usize) -> FrameRef {
        FrameRef { chunk: COLD, offset: offset as u32 }
    }

    /// The frame.
    ///
    /// # Panics
    /// If no frame lies there: references are made from frames that were checked.
    #[must_use]
    pub fn frame(&self, at: FrameRef) -> Frame<'_> {
        let bytes = if at.chunk == COLD { &self.cold } else { &self.chunks[at.chunk as usize].bytes };
        Frame::parse(&bytes[at.offset as usize..]).expect("a reference to a frame that was checked")
    }

    /// Records so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// No records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds a record of these frames. An aggregate of one is sent plain.
    pub fn push(&mut self, frames: &[FrameRef], plan: Option<Plan>, billed: usize) {
        let start = self.frames.len();
        self.frames.extend_from_slice(frames);
        self.records.push(OutRecord { frames: start..self.frames.len(), plan: plan.filter(|plan| plan.len() > 1) });
        self.billed += billed;
    }

    /// The entries of the PutRecords. Copies every event's data once.
    #[must_use]
    pub fn entries(&self) -> Vec<PutEntry> {
        self.records
            .iter()
            .map(|record| {
                let frames = &self.frames[record.frames.clone()];
                let first = self.frame(frames[0]);
                match &record.plan {
                    Some(plan) => PutEntry {
                        partition_key: OUTER_KEY.to_owned(),
                        explicit_hash_key: Some(first.hash().0),
                        data: plan.write(frames.iter().map(|at| self.frame(*at).data())),
                    },
                    None => PutEntry {
                        partition_key: String::from_utf8_lossy(first.key_bytes()).into_owned(),
                        explicit_hash_key: first.explicit_hash().then_some(first.hash().0),
                        data: first.data().to_vec(),
                    },
                }
            })
            .collect()
    }
}
