//! Reads what is durable: forward through everything, or one lane at a time.
//!
//! Place: owned by a stream's dispatcher. [`Cursor::next`] is the sweep: hot chunks from memory, older ones
//! from disk, in position order. [`Cursor::lane_frames`] finds the frames of some lanes in one segment through
//! its index, for a shard that fell behind while the sweep went on.
//!
//! Failure: a frame that no longer checks (a bit flipped since it was written) is reported as
//! [`Damaged`], with its lane, and reading goes on behind it; only the device's own errors are errors.

mod damage;
pub(super) mod frames;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use self::frames::Frames;
use super::frame::Frame;
use super::gather::{Chunk, Shared};
use super::index::Entry;
use super::segment::{Segment, SegmentId};
use crate::event::{LANES, Lane, Position};
use crate::host::{File, Files};

/// Bytes read from disk at once by the sweep.
const READ_BYTES: usize = 512 << 10;

/// Bytes between two frames of a lane that are rather read than skipped.
const SPAN_GAP_BYTES: u64 = 8 << 10;

/// Bytes read at once for one who reads a lane.
const SPAN_BYTES_MAX: u64 = 256 << 10;

/// Files kept open for reading.
const OPEN_FILES_MAX: usize = 8;

/// An event whose bytes were good once and are not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its file.
    pub segment: SegmentId,
    /// Its place.
    pub entry: Entry,
    /// Its lane.
    pub lane: Lane,
    /// Its position, counted back from the next good frame: past all good events before it, and before those behind it.
    pub position: Position,
}

/// What the sweep met.
#[derive(Debug)]
pub struct Swept {
    /// Frames, from the asked position on (the first may begin before it).
    pub chunk: Arc<Chunk>,
    /// Frames that no longer check, just before those of the chunk.
    pub damaged: Vec<Damaged>,
}

/// Gives the last `unplaced` of the damaged ones the positions just before `next`.
fn place_back_from(damaged: &mut [Damaged], unplaced: usize, next: Position) {
    for (back, gone) in (1..).zip(damaged.iter_mut().rev().take(unplaced)) {
        gone.position = Position(next.0.saturating_sub(back));
    }
}

/// Reads what was durable here. Where the file now ends too early, zeroes stand for it, which are no frames: an end that is
/// gone is damage like any other, and no reason to read it for ever.
pub(super) fn read_padded(file: &dyn File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => {
                bytes.fill(0);
                break;
            }
            Ok(read) => {
                bytes = &mut bytes[read..];
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A reader of one spool.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    files: Arc<dyn Files>,
    open: VecDeque<(SegmentId, Arc<dyn File>)>,
    /// Where the next frame lies, when the last sweep was from disk.
    place: Option<(Position, SegmentId, u64)>,
    /// Bytes read ahead for one who reads a lane: where they begin in which file.
    span: (SegmentId, u64, Vec<u8>),
}

impl Cursor {
    /// A cursor over a spool.
    #[must_use]
    pub fn new(shared: Arc<Shared>, files: Arc<dyn Files>) -> Self {
        Self { shared, files, open: VecDeque::new(), place: None, span: (SegmentId(0), 0, Vec::new()) }
    }

    /// What the spool shares with its readers.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn file(&mut self, segment: &Segment) -> io::Result<Arc<dyn File>> {
        if let Some((_, file)) = self.open.iter().find(|(id, _)| *id == segment.id) {
            return Ok(Arc::clone(file));
        }
        let file = self.files.open(&segment.path)?;
        if self.open.len() == OPEN_FILES_MAX {
            self.open.pop_front();
        }
        self.open.push_back((segment.id, Arc::clone(&file)));
        Ok(file)
    }

    /// Forgets a file that is removed, or was replaced by its rewriting.
    pub fn forget(&mut self, segment: SegmentId) {
        self.open.retain(|(id, _)| *id != segment);
        if self.place.is_some_and(|(_, id, _)| id == segment) {
            self.place = None;
        }
        if self.span.0 == segment {
            self.span.2.clear();
        }
    }

    /// Where `position` lies, for the next sweep from there: the caller has read up to it before.
    pub fn resume(&mut self, position: Position, segment: SegmentId, offset: u64) {
        self.place = Some((position, segment, offset));
    }

    /// The next chunk that holds `position` or what follows it; `None` when all that is durable was read. Where nothing is
    /// left between `position` and the end of what is durable, or the hot tail, the chunk is empty and begins there.
    ///
    /// # Errors
    /// The device's.
    pub fn next(&mut self, position: Position) -> io::Result<Option<Swept>> {
        let until = match self.shared.tail.take(position) {
            Ok(chunk) => {
                self.place = None;
                return Ok(Some(Swept { chunk, damaged: Vec::new() }));
            }
            Err(until) => until,
        };
        if position >= until {
            return Ok(None);
        }
        let asked = position;
        let mut position = position;
        loop {
            let Some(segment) = self.shared.table.holding(position) else { return Ok(None) };
            if let Some(swept) = self.read_forward(&segment, &mut position, until)? {
                return Ok(Some(swept));
            }
            if position >= until {
                // Positions that a rewriting left out, or that were damaged.
                let first = position.min(until);
                let chunk = Chunk::cold(Vec::new(), first, 0, segment.id, 0, segment.created_ms);
                return Ok((first > asked).then(|| Swept { chunk: Arc::new(chunk), damaged: Vec::new() }));
            }
        }
    }

    /// Reads on in one segment. `None` with `position` moved to its end when nothing is left in it.
    fn read_forward(&mut self, segment: &Segment, position: &mut Position, until: Position) -> io::Result<Option<Swept>> {
        let (end, frames_end) = {
            let extent = segment.extent();
            (extent.end, extent.frames_end)
        };
        *position = (*position).max(segment.base);
        let begin = super::segment::SEGMENT_HEADER_BYTES as u64;
        let mut at = match self.place {
            Some((next, id, offset)) if next == *position && id == segment.id => offset,
            _ => begin,
        };
        let mut resumed = at > begin;
        let file = self.file(segment)?;
        let mut damaged: Vec<Damaged> = Vec::new();
        // Of the damaged ones, so many at the end wait for the next good frame to tell their positions.
        let mut unplaced = 0;
        let mut end = end;
        while at < frames_end {
            let want = READ_BYTES.min((frames_end - at) as usize);
            let mut bytes = vec![0; want];
            read_padded(file.as_ref(), &mut bytes, at)?;
            if let Some(len) = Frame::peek_len(&bytes).filter(|len| *len > bytes.len() && at + *len as u64 <= frames_end) {
                // One frame larger than a read.
                bytes.resize(len, 0);
                read_padded(file.as_ref(), &mut bytes, at)?;
            }
            let (mut used, mut count, mut first, mut next) = (0, 0, None, *position);
            let mut skipped = 0;
            if let Some(frame) = Frame::check(&bytes) {
                place_back_from(&mut damaged, std::mem::take(&mut unplaced), frame.position());
            }
            while let Some(frame) = Frame::check(&bytes[used..]) {
                // Behind a frame that was taken none goes back, and none goes beyond the segment: what does is not the index's.
                if frame.position() >= until.min(end) || first.is_some() && frame.position() < next {
                    break;
                }
                if frame.position() < *position {
                    skipped += frame.len();
                } else {
                    first.get_or_insert(frame.position());
                    count += 1;
                    next = Position(frame.position().0 + 1);
                }
                used += frame.len();
            }
            if let Some(first) = first {
                self.place = Some((next, segment.id, at + used as u64));
                let offset = (at + skipped as u64) as u32;
                bytes.truncate(used);
                bytes.drain(..skipped);
                let chunk = Chunk::cold(bytes, first, count, segment.id, offset, segment.created_ms);
                damaged.retain(|gone| gone.position >= *position);
                return Ok(Some(Swept { chunk: Arc::new(chunk), damaged }));
            }
            at += used as u64;
            if used == 0 {
                if Frame::check(&bytes).is_some_and(|frame| (until..end).contains(&frame.position())) {
                    // The next frame is the hot tail's.
                    end = until;
                    break;
                }
                if std::mem::take(&mut resumed) {
                    // Damage, or not where that position lies: from the beginning on they are told apart.
                    at = begin;
                    continue;
                }
                let Some((gone, next)) = Self::around(segment, file.as_ref(), at)? else { break };
                unplaced += usize::from(gone.is_some());
                damaged.extend(gone);
                at = next;
            }
        }
        self.place = None;
        place_back_from(&mut damaged, unplaced, end);
        // Behind what was already read nothing is told again, and no position is taken from a good event.
        damaged.retain(|gone| gone.position >= *position);
        *position = end;
        if damaged.is_empty() {
            return Ok(None);
        }
        let chunk = Chunk::cold(Vec::new(), end, 0, segment.id, at as u32, segment.created_ms);
        Ok(Some(Swept { chunk: Arc::new(chunk), damaged }))
    }

    /// At bytes that do not check: the indexed frame that lies there, if one does, and where the next one begins.
    fn around(segment: &Segment, file: &dyn File, at: u64) -> io::Result<Option<(Option<Damaged>, u64)>> {
        let entries = Frames { segment, file }.of_lanes(Lane(0), Lane(LANES as u16 - 1))?;
        let gone = entries.iter().find(|(_, entry)| u64::from(entry.offset) == at).map(|(lane, entry)| Damaged {
            segment: segment.id,
            entry: *entry,
            lane: *lane,
            position: segment.base,
        });
        let next = entries.iter().map(|(_, entry)| u64::from(entry.offset)).filter(|offset| *offset > at).min();
        let end = segment.extent().frames_end;
        Ok((gone.is_some() || next.is_some()).then(|| (gone, next.unwrap_or(end))))
    }

    /// The frames of the lanes `first..=last` in one segment, in position order.
    ///
    /// # Errors
    /// The device's.
    pub fn lane_frames(&mut self, segment: &Segment, first: Lane, last: Lane) -> io::Result<Vec<(Lane, Entry)>> {
        let file = self.file(segment)?;
        let mut entries = Frames { segment, file: file.as_ref() }.of_lanes(first, last)?;
        entries.sort_unstable_by_key(|(_, entry)| entry.offset);
        Ok(entries)
    }

    /// The position of a frame that no longer checks, as [`Damaged::position`] has it.
    ///
    /// # Errors
    /// The device's.
    pub fn damaged_position(&mut self, segment: &Segment, entry: Entry) -> io::Result<Position> {
        let file = self.file(segment)?;
        Frames { segment, file: file.as_ref() }.damaged_position(entry)
    }

    /// Appends one frame's bytes to `out`; false, with `out` as it was, when it no longer checks.
    ///
    /// # Errors
    /// The device's.
    pub fn read_frame(&mut self, segment: &Segment, entry: Entry, out: &mut Vec<u8>) -> io::Result<bool> {
        let file = self.file(segment)?;
        Frames { segment, file: file.as_ref() }.read(entry, out)
    }

    /// As [`Cursor::read_frame`], for one who will read the frames `ahead` next: neighbours in the file are read
    /// together, and what lies between them is thrown away, which costs less than a system call each.
    ///
    /// # Errors
    /// The device's.
    pub fn read_frame_and(
        &mut self,
        segment: &Segment,
        entry: Entry,
        ahead: impl Iterator<Item = Entry>,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let frame_end = |entry: Entry| u64::from(entry.offset) + u64::from(entry.len);
        let start = u64::from(entry.offset);
        let (of, from, bytes) = &self.span;
        let held = *of == segment.id && *from <= start && frame_end(entry) <= *from + bytes.len() as u64;
        if !held {
            let mut end = frame_end(entry);
            for next in ahead {
                if u64::from(next.offset) > end + SPAN_GAP_BYTES || frame_end(next) > start + SPAN_BYTES_MAX {
                    break;
                }
                end = end.max(frame_end(next));
            }
            if end == frame_end(entry) || end > segment.extent().frames_end {
                return self.read_frame(segment, entry, out);
            }
            let file = self.file(segment)?;
            let (of, from, bytes) = &mut self.span;
            (*of, *from) = (segment.id, start);
            bytes.resize((end - start) as usize, 0);
            if let Err(error) = file.read_exact_at(bytes, start) {
                bytes.clear();
                // Whatever ails the neighbours, this frame may be well.
                tracing::debug!(%error, segment = %segment.id, "reading ahead failed");
                return self.read_frame(segment, entry, out);
            }
        }
        let (_, from, bytes) = &self.span;
        let at = (start - from) as usize;
        let bytes = &bytes[at..at + entry.len as usize];
        let good = Frame::check(bytes).is_some_and(|frame| frame.len() == bytes.len());
        if good {
            out.extend_from_slice(bytes);
        }
        Ok(good)
    }

    /// Frames of `segment` at or past their lane's mark: what is pending of it.
    ///
    /// # Errors
    /// The device's.
    pub fn pending(&mut self, segment: &Segment, marks: &[Position; LANES]) -> io::Result<u64> {
        let directory = segment.directory();
        let mut pending = 0;
        for lane in (0..LANES as u16).map(Lane) {
            let mark = marks[lane.index()];
            match directory.last_relative(lane) {
                None => {}
                Some(last) if segment.base.0 + u64::from(last) < mark.0 => {}
                Some(_) if mark <= segment.base => pending += u64::from(directory.count(lane)),
                Some(_) => {
                    // The mark lies inside: the frames themselves tell their positions.
                    let entries = self.lane_frames(segment, lane, lane)?;
                    let file = self.file(segment)?;
                    let settled = Frames { segment, file: file.as_ref() }.before(mark, &entries)?;
                    pending += (entries.len() - settled) as u64;
                }
            }
        }
        Ok(pending)
    }
}
