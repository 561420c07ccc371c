//! A request on its way out: what it is made of before it becomes a PutRecords.
//!
//! Place: the dispatcher packs it, holding frames by reference; the put task turns it into entries, so that
//! copying, base64 and MD5 run beside the dispatcher. Pure.

use std::ops::Range;
use std::sync::Arc;

use super::queue::Slot;
use crate::aggregate::{self, OUTER_KEY, Plan};
use crate::kinesis::PutEntry;
use crate::lines;
use crate::spool::frame::{FRAME_HEADER_BYTES, Frame};
use crate::spool::gather::Chunk;

/// Where a frame's bytes are: in a chunk of the request, or in its own buffer of frames read from disk. The lengths
/// are the slot's, so that planning an aggregate need not touch the frame, which has left the caches by then.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef {
    chunk: u32,
    offset: u32,
    len: u32,
    key_len: u16,
}

impl FrameRef {
    /// Bytes of the event's data.
    #[must_use]
    pub fn data_len(self) -> usize {
        self.len as usize - FRAME_HEADER_BYTES - usize::from(self.key_len)
    }
}

const COLD: u32 = u32::MAX;

/// One record: its frames, and its plan when it is an aggregate.
#[derive(Debug)]
pub struct OutRecord {
    frames: Range<usize>,
    /// Of an aggregate: a hash in its shard's range.
    hash: u128,
    plan: Option<Plan>,
    /// Of lines: their bytes.
    lines: Option<usize>,
}

/// A request being built.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Number by which its answer is told.
    pub id: u64,
    chunks: Vec<Arc<Chunk>>,
    last_chunk: Option<u32>,
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

    /// Refers to a slot's frame in a chunk of the window.
    pub fn hot_frame(&mut self, slot: &Slot, chunk: &Arc<Chunk>) -> FrameRef {
        if self.last_chunk != Some(slot.chunk) {
            self.chunks.push(Arc::clone(chunk));
            self.last_chunk = Some(slot.chunk);
        }
        FrameRef { chunk: self.chunks.len() as u32 - 1, offset: slot.chunk_offset, len: slot.entry.len, key_len: slot.key_len }
    }

    /// Where a frame read from disk is to be appended.
    pub fn cold_buffer(&mut self) -> &mut Vec<u8> {
        &mut self.cold
    }

    /// Refers to a slot's frame, which begins at `offset` of the cold buffer.
    #[must_use]
    pub fn cold_frame(slot: &Slot, offset: usize) -> FrameRef {
        FrameRef { chunk: COLD, offset: offset as u32, len: slot.entry.len, key_len: slot.key_len }
    }

    fn bytes(&self, at: FrameRef) -> &[u8] {
        let bytes = if at.chunk == COLD { &self.cold } else { &self.chunks[at.chunk as usize].bytes };
        &bytes[at.offset as usize..(at.offset + at.len) as usize]
    }

    /// The key of a frame.
    #[must_use]
    pub fn key(&self, at: FrameRef) -> &[u8] {
        &self.bytes(at)[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + usize::from(at.key_len)]
    }

    /// The event's data.
    #[must_use]
    pub fn data(&self, at: FrameRef) -> &[u8] {
        &self.bytes(at)[FRAME_HEADER_BYTES + usize::from(at.key_len)..]
    }

    /// The frame.
    ///
    /// # Panics
    /// If no frame lies there: references are made from frames that were checked.
    #[must_use]
    pub fn frame(&self, at: FrameRef) -> Frame<'_> {
        Frame::parse(self.bytes(at)).expect("a reference to a frame that was checked")
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

    /// Adds a record of these frames, `hash` being the first one's. An aggregate of one is sent plain.
    pub fn push(&mut self, frames: &[FrameRef], hash: u128, plan: Option<Plan>, billed: usize) {
        let start = self.frames.len();
        self.frames.extend_from_slice(frames);
        self.records.push(OutRecord {
            frames: start..self.frames.len(),
            hash,
            plan: plan.filter(|plan| plan.len() > 1),
            lines: None,
        });
        self.billed += billed;
    }

    /// Adds a record of these frames as lines of so many bytes; `None`: of one event as it is.
    pub fn push_lines(&mut self, frames: &[FrameRef], bytes: Option<usize>, billed: usize) {
        let start = self.frames.len();
        self.frames.extend_from_slice(frames);
        self.records.push(OutRecord { frames: start..self.frames.len(), hash: 0, plan: None, lines: bytes });
        self.billed += billed;
    }

    /// The entries of the PutRecords. Copies every event's data once.
    #[must_use]
    pub fn entries(&self) -> Vec<PutEntry> {
        let mut entries: Vec<PutEntry> = self
            .records
            .iter()
            .map(|record| {
                let frames = &self.frames[record.frames.clone()];
                if let Some(plan) = &record.plan {
                    return PutEntry {
                        partition_key: OUTER_KEY.to_owned(),
                        explicit_hash_key: Some(record.hash),
                        data: plan.write_unsealed(frames.iter().map(|at| self.data(*at))),
                    };
                }
                let event = self.frame(frames[0]);
                PutEntry {
                    partition_key: String::from_utf8_lossy(event.key_bytes()).into_owned(),
                    explicit_hash_key: event.explicit_hash().then_some(event.hash().0),
                    data: match record.lines {
                        Some(bytes) => lines::write(frames.iter().map(|at| self.data(*at)), bytes),
                        None => event.data().to_vec(),
                    },
                }
            })
            .collect();
        let aggregates = entries.iter_mut().zip(&self.records).filter(|(_, record)| record.plan.is_some());
        aggregate::seal(&mut aggregates.map(|(entry, _)| &mut entry.data).collect::<Vec<_>>());
        entries
    }
}
