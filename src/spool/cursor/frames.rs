//! The frames of one segment, found through its index: which are a lane's, and where a position lies among them.
//!
//! Place: whoever has the segment's file open asks: the [`Cursor`](super::Cursor), which counts what is pending and looks
//! for dead letters' events, the tools that look (`inspect.rs`), and rewriting. Nothing is kept but what the segment keeps.
//!
//! *A damaged frame misleads nobody*: its own header is not believed, since the flipped bit may lie in its position. It has
//! the position that the next good frame behind it leaves for it.
//!
//! Failure: index entries that no longer check are made anew from the frames, since a wrong one would hide a good event;
//! only the device's own errors are errors.

use std::io;
use std::sync::Arc;

use crate::event::{LANES, Lane, Position};
use crate::host::File;
use crate::spool::frame::Frame;
use crate::spool::index::Entry;
use crate::spool::recover::{scan, scan_rewritten};
use crate::spool::segment::{Index, Segment};

/// A segment and its open file.
#[derive(Clone, Copy, Debug)]
pub(in crate::spool) struct Frames<'a> {
    pub segment: &'a Segment,
    pub file: &'a dyn File,
}

impl Frames<'_> {
    /// The frames of the lanes `first..=last`: each lane's in position order, and lane by lane where the index is on disk.
    pub fn of_lanes(self, first: Lane, last: Lane) -> io::Result<Vec<(Lane, Entry)>> {
        self.check_entries()?;
        let (footer, directory) = {
            let extent = self.segment.extent();
            match &extent.index {
                Index::Memory(index) => {
                    let lanes = first..=last;
                    return Ok(index
                        .entries()
                        .iter()
                        .filter(|(lane, _, _)| lanes.contains(lane))
                        .map(|(lane, _, entry)| (*lane, *entry))
                        .collect());
                }
                Index::Sealed(footer, directory) => (*footer, Arc::clone(directory)),
            }
        };
        let (start, end) = (directory.start(first), directory.end(last));
        if start == end {
            return Ok(Vec::new());
        }
        let entries = footer.read_entries(self.file, start, end)?;
        let mut lane = first;
        Ok(entries
            .into_iter()
            .zip(start..)
            .map(|(entry, number)| {
                while directory.end(lane) <= number {
                    lane = Lane(lane.0 + 1);
                }
                (lane, entry)
            })
            .collect())
    }

    /// All frames, in position order.
    fn all(self) -> io::Result<Vec<(Lane, Entry)>> {
        let mut entries = self.of_lanes(Lane(0), Lane(LANES as u16 - 1))?;
        entries.sort_unstable_by_key(|(_, entry)| entry.offset);
        Ok(entries)
    }

    /// Checks the entries of a sealed segment, once, before they are gone by.
    fn check_entries(self) -> io::Result<()> {
        let Self { segment, file } = self;
        if segment.entries_checked() {
            return Ok(());
        }
        let footer = match &segment.extent().index {
            Index::Memory(_) => return Ok(()),
            Index::Sealed(footer, _) => *footer,
        };
        if !footer.entries_check(file)? {
            tracing::error!(segment = %segment.id, "the index of a segment is damaged; it is made anew from the frames");
            let found = if footer.has_gaps() {
                scan_rewritten(file, segment.base, footer.end)?
            } else {
                scan(file, segment.base, footer.end, footer.end, true)?
            };
            segment.extent().index = Index::Memory(found.index);
        }
        segment.set_entries_checked();
        Ok(())
    }

    /// Appends one frame's bytes to `out`; false, with `out` as it was, when it no longer checks.
    pub fn read(self, entry: Entry, out: &mut Vec<u8>) -> io::Result<bool> {
        if u64::from(entry.offset) + u64::from(entry.len) > self.segment.extent().frames_end {
            return Ok(false);
        }
        let start = out.len();
        out.resize(start + entry.len as usize, 0);
        let good = match self.file.read_exact_at(&mut out[start..], u64::from(entry.offset)) {
            Ok(()) => Frame::check(&out[start..]).is_some_and(|frame| frame.len() == entry.len as usize),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => {
                out.truncate(start);
                return Err(error);
            }
        };
        if !good {
            out.truncate(start);
        }
        Ok(good)
    }

    /// The position of a frame, good or damaged.
    pub fn position(self, entry: Entry) -> io::Result<Position> {
        match self.good_position(entry)? {
            Some(position) => Ok(position),
            None => self.damaged_position(entry),
        }
    }

    fn good_position(self, entry: Entry) -> io::Result<Option<Position>> {
        let mut bytes = Vec::new();
        self.read(entry, &mut bytes)?;
        Ok(Frame::check(&bytes).map(|frame| frame.position()))
    }

    /// The position of a frame that no longer checks, counted back from the next good one.
    pub fn damaged_position(self, entry: Entry) -> io::Result<Position> {
        let mut back = 0;
        for (_, next) in self.all()?.into_iter().filter(|(_, next)| next.offset >= entry.offset) {
            if let Some(good) = self.good_position(next)? {
                return Ok(Position(good.0.saturating_sub(back)));
            }
            back += 1;
        }
        Ok(Position(self.segment.extent().end.0.saturating_sub(back)))
    }

    /// So many of these frames, which are one lane's in position order, lie before `position`.
    pub fn before(self, position: Position, entries: &[(Lane, Entry)]) -> io::Result<usize> {
        let (mut low, mut high) = (0, entries.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.position(entries[middle].1)? < position {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
