//! What can still be told of an event whose frame no longer checks, and whether a frame is there at all.
//!
//! Place: part of the [`Cursor`]; the dispatcher asks when it makes a dead letter, and at start, when letters are compared
//! with the segments. Rare, so it reads as much as it needs.

use std::io;

use super::Cursor;
use super::frames::Frames;
use crate::event::{Lane, Position};
use crate::spool::frame::Frame;
use crate::spool::index::Entry;
use crate::spool::segment::Segment;

impl Cursor {
    /// The bytes where a frame lies, whatever they are; fewer where the file ends or cannot be read.
    pub fn read_raw(&mut self, segment: &Segment, entry: Entry) -> Vec<u8> {
        let mut bytes = vec![0; entry.len as usize];
        let read = self.file(segment).and_then(|file| file.read_exact_at(&mut bytes, u64::from(entry.offset)));
        if let Err(error) = read {
            tracing::warn!(segment = %segment.id, offset = entry.offset, %error, "the bytes of a damaged event cannot be read either");
            bytes.clear();
        }
        bytes
    }

    /// A frame of this lane and position is in a segment. Where headers may not be trusted (`damaged`), any frame of the
    /// lane in the right segment stands for it.
    ///
    /// # Errors
    /// The device's.
    pub fn holds(&mut self, lane: Lane, position: Position, damaged: bool) -> io::Result<bool> {
        let Some(segment) = self.shared.table.holding(position).filter(|segment| segment.base <= position) else {
            return Ok(false);
        };
        let entries = self.lane_frames(&segment, lane, lane)?;
        if damaged || entries.is_empty() {
            return Ok(!entries.is_empty());
        }
        let file = self.file(&segment)?;
        let frames = Frames { segment: &segment, file: file.as_ref() };
        let Some((_, entry)) = entries.get(frames.before(position, &entries)?) else { return Ok(false) };
        // One that was damaged since may be placed too late where a rewriting left gaps: what it says itself counts as well.
        Ok(frames.position(*entry)? == position || Frame::peek_position(&self.read_raw(&segment, *entry)) == Some(position))
    }
}
