//! The lane index: which frames of a segment belong to which lane.
//!
//! Place: `commit` grows an [`ActiveIndex`] in memory and writes it behind the frames when it seals the
//! segment; `recover` rebuilds it by a scan where it is missing or damaged; `cursor` reads one lane without
//! reading the others.
//!
//! Bytes after the last frame of a sealed segment, little-endian:
//!
//! | part | content |
//! | --- | --- |
//! | directory | for each of the 1024 lanes: u32 end (entries of this lane and all before it), u32 position of the lane's last frame, relative to the segment's base (0 when the lane is empty) |
//! | entries | for each frame, sorted by lane, then position: u32 offset in the file, u32 length |
//! | footer (64) | magic `FBYINDEX`, u16 version 1, u16 lanes, u32 frames, u64 base position, u64 end position (exclusive), u64 offset of the directory, u64 wall clock ms of the last frame, u32 CRC-32 of the directory, u32 CRC-32 of the entries, u32 0, u32 CRC-32 of the footer before this field |
//!
//! Failure: an index that does not check is `None` and gets rebuilt: it holds nothing that the frames do not.

use std::io;

use crate::event::{LANES, Lane, Position};
use crate::host::File;

/// Bytes of the directory.
pub const DIRECTORY_BYTES: usize = LANES * 8;

/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"FBYINDEX";
const VERSION: u16 = 1;

/// Where a frame lies in its segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Byte offset in the file.
    pub offset: u32,
    /// Length of the whole frame.
    pub len: u32,
}

/// The frames of a segment in position order, as long as it is not sealed.
#[derive(Clone, Debug, Default)]
pub struct ActiveIndex {
    entries: Vec<(Lane, u32, Entry)>,
}

impl ActiveIndex {
    /// Adds the next frame; `relative` is its position less the segment's base.
    pub fn push(&mut self, lane: Lane, relative: u32, entry: Entry) {
        debug_assert!(self.entries.last().is_none_or(|last| last.1 < relative), "frames come in position order");
        self.entries.push((lane, relative, entry));
    }

    /// Frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No frames.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All frames: lane, relative position, place; in position order.
    #[must_use]
    pub fn entries(&self) -> &[(Lane, u32, Entry)] {
        &self.entries
    }

    /// Moves all of `other`, whose frames follow, to the end.
    pub fn append(&mut self, other: &mut Self) {
        self.entries.append(&mut other.entries);
    }

    /// Drops frames at or after a relative position.
    pub fn truncate_at(&mut self, relative: u32) {
        let keep = self.entries.partition_point(|entry| entry.1 < relative);
        self.entries.truncate(keep);
    }

    /// The directory of these frames.
    #[must_use]
    pub fn directory(&self) -> Directory {
        let mut lanes = vec![LaneSpan::default(); LANES];
        for (lane, relative, _) in &self.entries {
            let span = &mut lanes[lane.index()];
            span.end += 1;
            span.last_relative = *relative;
        }
        let mut total = 0;
        for span in &mut lanes {
            total += span.end;
            span.end = total;
        }
        Directory { lanes }
    }

    /// The bytes that seal a segment: directory, entries, footer.
    #[must_use]
    pub fn encode(&self, base: Position, end: Position, frames_end: u64, last_ms: u64) -> Vec<u8> {
        let directory = self.directory();
        let mut out = Vec::with_capacity(DIRECTORY_BYTES + self.entries.len() * 8 + FOOTER_BYTES);
        let mut next: Vec<u32> = Vec::with_capacity(LANES);
        for (lane, span) in directory.lanes.iter().enumerate() {
            out.extend_from_slice(&span.end.to_le_bytes());
            out.extend_from_slice(&span.last_relative.to_le_bytes());
            next.push(directory.start(Lane(lane as u16)));
        }
        let directory_crc = crc32fast::hash(&out);
        out.resize(DIRECTORY_BYTES + self.entries.len() * 8, 0);
        for (lane, _, entry) in &self.entries {
            let at = DIRECTORY_BYTES + next[lane.index()] as usize * 8;
            next[lane.index()] += 1;
            out[at..at + 4].copy_from_slice(&entry.offset.to_le_bytes());
            out[at + 4..at + 8].copy_from_slice(&entry.len.to_le_bytes());
        }
        let entries_crc = crc32fast::hash(&out[DIRECTORY_BYTES..]);
        let footer = Footer { frames: self.entries.len() as u32, base, end, frames_end, last_ms, directory_crc, entries_crc };
        out.extend_from_slice(&footer.encode());
        out
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LaneSpan {
    end: u32,
    last_relative: u32,
}

/// How many frames of each lane a segment holds, and the last of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    lanes: Vec<LaneSpan>,
}

impl Directory {
    /// Number of entries before this lane's first.
    #[must_use]
    pub fn start(&self, lane: Lane) -> u32 {
        if lane.0 == 0 { 0 } else { self.lanes[lane.index() - 1].end }
    }

    /// Number of entries up to and with this lane's last.
    #[must_use]
    pub fn end(&self, lane: Lane) -> u32 {
        self.lanes[lane.index()].end
    }

    /// Frames of this lane.
    #[must_use]
    pub fn count(&self, lane: Lane) -> u32 {
        self.end(lane) - self.start(lane)
    }

    /// Relative position of the lane's last frame, if it has any.
    #[must_use]
    pub fn last_relative(&self, lane: Lane) -> Option<u32> {
        (self.count(lane) > 0).then(|| self.lanes[lane.index()].last_relative)
    }

    /// Frames of all lanes.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.lanes[LANES - 1].end
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let lanes: Vec<LaneSpan> =
            (0..LANES).map(|lane| LaneSpan { end: number(lane * 8), last_relative: number(lane * 8 + 4) }).collect();
        lanes.is_sorted_by_key(|span| span.end).then_some(Self { lanes })
    }
}

/// What stands at the end of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An index that checks; its entries have a checksum of their own ([`Footer::entries_check`]).
    Whole(Footer, Directory),
    /// A good footer before which no directory is that checks.
    DirectoryDamaged(Footer),
    /// Something that begins as a footer does and is none.
    FooterDamaged,
    /// No footer: not sealed, or cut off.
    NoIndex,
}

/// The last 64 bytes of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Frames in the segment.
    pub frames: u32,
    /// Position of the first frame.
    pub base: Position,
    /// Position after the last frame.
    pub end: Position,
    /// Offset where frames end and the directory begins.
    pub frames_end: u64,
    /// Wall clock of the last frame, ms.
    pub last_ms: u64,
    /// CRC-32 of the directory.
    pub directory_crc: u32,
    /// CRC-32 of the entries.
    pub entries_crc: u32,
}

impl Footer {
    fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(LANES as u16).to_le_bytes());
        out[12..16].copy_from_slice(&self.frames.to_le_bytes());
        out[16..24].copy_from_slice(&self.base.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.end.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.frames_end.to_le_bytes());
        out[40..48].copy_from_slice(&self.last_ms.to_le_bytes());
        out[48..52].copy_from_slice(&self.directory_crc.to_le_bytes());
        out[52..56].copy_from_slice(&self.entries_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; FOOTER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let good = &bytes[..8] == MAGIC
            && bytes[8..10] == VERSION.to_le_bytes()
            && bytes[10..12] == (LANES as u16).to_le_bytes()
            && u32_at(60) == crc32fast::hash(&bytes[..60])
            && u64_at(24) <= Position::LIMIT.0;
        good.then(|| Self {
            frames: u32_at(12),
            base: Position(u64_at(16)),
            end: Position(u64_at(24)),
            frames_end: u64_at(32),
            last_ms: u64_at(40),
            directory_crc: u32_at(48),
            entries_crc: u32_at(52),
        })
    }

    /// Fewer frames than positions: a rewritten segment, or one of which frames were damaged when it was sealed.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        u64::from(self.frames) < self.end.0.saturating_sub(self.base.0)
    }

    /// Reads and checks the footer and directory of a file; `None` when there is none that checks.
    ///
    /// # Errors
    /// What the device says; never because of damage.
    pub fn read(file: &dyn File) -> io::Result<Option<(Self, Directory)>> {
        Ok(match Self::look(file)? {
            Ending::Whole(footer, directory) => Some((footer, directory)),
            Ending::DirectoryDamaged(_) | Ending::FooterDamaged | Ending::NoIndex => None,
        })
    }

    /// As [`Footer::read`], telling what does not check.
    ///
    /// # Errors
    /// What the device says; never because of damage.
    pub fn look(file: &dyn File) -> io::Result<Ending> {
        let len = file.len()?;
        if len < (DIRECTORY_BYTES + FOOTER_BYTES) as u64 {
            return Ok(Ending::NoIndex);
        }
        let mut bytes = [0; FOOTER_BYTES];
        file.read_exact_at(&mut bytes, len - FOOTER_BYTES as u64)?;
        let Some(footer) = Self::decode(&bytes) else {
            return Ok(if &bytes[..8] == MAGIC { Ending::FooterDamaged } else { Ending::NoIndex });
        };
        let index_bytes = (DIRECTORY_BYTES + FOOTER_BYTES) as u64 + u64::from(footer.frames) * 8;
        if footer.frames_end.checked_add(index_bytes) != Some(len) || footer.end < footer.base {
            return Ok(Ending::FooterDamaged);
        }
        let mut bytes = vec![0; DIRECTORY_BYTES];
        file.read_exact_at(&mut bytes, footer.frames_end)?;
        if crc32fast::hash(&bytes) != footer.directory_crc {
            return Ok(Ending::DirectoryDamaged(footer));
        }
        Ok(match Directory::decode(&bytes).filter(|directory| directory.frames() == footer.frames) {
            Some(directory) => Ending::Whole(footer, directory),
            None => Ending::DirectoryDamaged(footer),
        })
    }

    /// Reads the entries numbered `start..end`.
    ///
    /// # Errors
    /// What the device says.
    pub fn read_entries(&self, file: &dyn File, start: u32, end: u32) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; (end - start) as usize * 8];
        file.read_exact_at(&mut bytes, self.frames_end + DIRECTORY_BYTES as u64 + u64::from(start) * 8)?;
        Ok(bytes
            .chunks_exact(8)
            .map(|b| Entry {
                offset: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                len: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            })
            .collect())
    }

    /// Checks the CRC over all entries.
    ///
    /// # Errors
    /// What the device says.
    pub fn entries_check(&self, file: &dyn File) -> io::Result<bool> {
        let mut bytes = vec![0; self.frames as usize * 8];
        file.read_exact_at(&mut bytes, self.frames_end + DIRECTORY_BYTES as u64)?;
        Ok(crc32fast::hash(&bytes) == self.entries_crc)
    }
}
