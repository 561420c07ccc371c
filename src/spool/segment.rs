//! Segment files: names, header, and the table of those that exist.
//!
//! Place: `commit` begins and seals segments, `recover` finds them, `cursor` reads them, `rewrite` makes them smaller,
//! `dispatch` asks for their removal when a saved checkpoint covers them. Owner: the table is shared under one lock; each
//! segment's end and index under its own, held for moments only.
//!
//! Bytes and offsets here are those of the file's content: a compressed or encrypted file holds it in blocks (`coding`).
//!
//! A file `segments/NNNNNNNNNN.seg` (the segment's id in decimal) is: a header of 64 bytes, frames, and, once
//! sealed, the lane index (`index.rs`).
//!
//! | offset | type | header field |
//! | --- | --- | --- |
//! | 0 | | magic `FBYSEGMT` |
//! | 8 | u16 | version, 1 |
//! | 10 | u16 | flags: 1 rewritten |
//! | 12 | u32 | segment id |
//! | 16 | u64 | base: position of the first frame |
//! | 24 | u64 | creation time, wall clock ms since 1970 UTC |
//! | 32 | | 28 bytes reserved, 0 |
//! | 60 | u32 | CRC-32 of the 60 bytes before |
//!
//! A *rewritten* segment holds a part of what it held: the frames that were settled are gone, and so positions have
//! gaps. All else stayed: id, base, creation time, each frame's bytes, the end in the footer. A program that does not know
//! the flag would take the gaps for damage; it refuses the file as one of another version instead, as it does for any
//! flag it does not know.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::index::{ActiveIndex, DIRECTORY_BYTES, Directory, FOOTER_BYTES, Footer};
use crate::event::{LANES, Lane, Position};
use crate::metrics::locked;

/// Bytes before the first frame.
pub const SEGMENT_HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"FBYSEGMT";
const VERSION: u16 = 1;

/// Header flag: settled frames were left out, positions have gaps.
const FLAG_REWRITTEN: u16 = 1;

/// A segment's number: grows by one with each file, never used twice in a spool's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u32);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}", self.0)
    }
}

impl SegmentId {
    /// File name in `segments/`.
    #[must_use]
    pub fn file_name(self) -> String {
        format!("{self}.seg")
    }

    /// Name of the file that a rewriting of it is written to first.
    #[must_use]
    pub fn new_file_name(self) -> String {
        format!("{self}.new")
    }

    /// The id that a file name tells.
    #[must_use]
    pub fn of_file_name(name: &str) -> Option<Self> {
        Self::of_digits(name.strip_suffix(".seg")?)
    }

    /// The id that the name of a rewriting tells.
    #[must_use]
    pub fn of_new_file_name(name: &str) -> Option<Self> {
        Self::of_digits(name.strip_suffix(".new")?)
    }

    fn of_digits(digits: &str) -> Option<Self> {
        if digits.len() == 10 { digits.parse().ok().map(Self) } else { None }
    }

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The first 64 bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The file's id.
    pub id: SegmentId,
    /// Position of its first frame.
    pub base: Position,
    /// Wall clock at creation, ms.
    pub created_ms: u64,
    /// Settled frames were left out: gaps between positions are no damage.
    pub rewritten: bool,
}

impl SegmentHeader {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&if self.rewritten { FLAG_REWRITTEN } else { 0 }.to_le_bytes());
        out[12..16].copy_from_slice(&self.id.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.base.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.created_ms.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in these bytes.
    ///
    /// # Errors
    /// [`HeaderError`]: damaged, or of a version that this program does not read.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else { return Err(HeaderError::Damaged) };
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if &bytes[..8] != MAGIC || u32_at(60) != crc32fast::hash(&bytes[..60]) {
            return Err(HeaderError::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        let flags = u16::from_le_bytes([bytes[10], bytes[11]]);
        if version != VERSION || flags & !FLAG_REWRITTEN != 0 {
            return Err(HeaderError::OtherVersion { version, flags });
        }
        let base = Position(u64_at(16));
        if base > Position::LIMIT {
            return Err(HeaderError::Damaged);
        }
        let rewritten = flags & FLAG_REWRITTEN != 0;
        Ok(Self { id: SegmentId(u32_at(12)), base, created_ms: u64_at(24), rewritten })
    }
}

/// Why 64 bytes are not a header to go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Torn or flipped: what follows may still be read, frame by frame.
    Damaged,
    /// Whole, but written by a newer program: hands off.
    OtherVersion {
        /// Its version field.
        version: u16,
        /// Its flags field.
        flags: u16,
    },
}

/// How a segment's frames are found by lane.
#[derive(Clone, Debug)]
pub enum Index {
    /// In memory: the active segment, or one that could not be sealed.
    Memory(ActiveIndex),
    /// On disk behind the frames; the directory is kept in memory (8 KiB).
    Sealed(Footer, Arc<Directory>),
}

/// What changes of a segment while it is written.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Position after the last durable frame.
    pub end: Position,
    /// Offset after the last durable frame.
    pub frames_end: u64,
    /// Bytes that the file takes on the disk, index included.
    pub file_bytes: u64,
    /// Where the frames of a lane are.
    pub index: Index,
}

impl Extent {
    /// Length of the file's content, index included; of a plain file, its length.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        match &self.index {
            Index::Memory(_) => self.frames_end,
            Index::Sealed(footer, _) => self.frames_end + 8 * u64::from(footer.frames) + (DIRECTORY_BYTES + FOOTER_BYTES) as u64,
        }
    }
}

/// One segment file.
#[derive(Debug)]
pub struct Segment {
    /// Its id.
    pub id: SegmentId,
    /// Its first position.
    pub base: Position,
    /// Wall clock at creation, ms.
    pub created_ms: u64,
    /// The file.
    pub path: PathBuf,
    extent: Mutex<Extent>,
    entries_checked: AtomicBool,
}

impl Segment {
    /// A segment with what is known of it.
    #[must_use]
    pub fn new(header: &SegmentHeader, path: PathBuf, extent: Extent) -> Self {
        Self {
            id: header.id,
            base: header.base,
            created_ms: header.created_ms,
            path,
            extent: Mutex::new(extent),
            entries_checked: AtomicBool::new(false),
        }
    }

    /// The entries of its index are good since this process looked: opening reads the directory only.
    #[must_use]
    pub fn entries_checked(&self) -> bool {
        self.entries_checked.load(Ordering::Relaxed)
    }

    /// Notes that they are.
    pub fn set_entries_checked(&self) {
        self.entries_checked.store(true, Ordering::Relaxed);
    }

    /// The changing part, locked. Hold it for moments.
    pub fn extent(&self) -> MutexGuard<'_, Extent> {
        // Nothing panics while it is held in a half-changed state; a poisoned lock is still whole.
        locked(&self.extent)
    }

    /// For each lane, the position of its last frame here, if any.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        match &self.extent().index {
            Index::Memory(index) => Arc::new(index.directory()),
            Index::Sealed(_, directory) => Arc::clone(directory),
        }
    }

    /// Every frame's position is below its lane's mark.
    #[must_use]
    pub fn covered_by(&self, marks: &[Position; LANES]) -> bool {
        let directory = self.directory();
        (0..LANES as u16).all(|lane| {
            directory.last_relative(Lane(lane)).is_none_or(|last| self.base.0 + u64::from(last) < marks[usize::from(lane)].0)
        })
    }
}

/// The segments that exist, by id and thereby by position.
#[derive(Debug)]
pub struct SegmentTable {
    dir: PathBuf,
    segments: Mutex<BTreeMap<SegmentId, Arc<Segment>>>,
}

impl SegmentTable {
    /// A table of what recovery found.
    #[must_use]
    pub fn new(dir: PathBuf, segments: impl IntoIterator<Item = Segment>) -> Self {
        let segments = segments.into_iter().map(|segment| (segment.id, Arc::new(segment))).collect();
        Self { dir, segments: Mutex::new(segments) }
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<SegmentId, Arc<Segment>>> {
        locked(&self.segments)
    }

    /// The directory of the files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All segments, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.map().values().cloned().collect()
    }

    /// One segment.
    #[must_use]
    pub fn get(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.map().get(&id).cloned()
    }

    /// The first segment whose end is past `position`.
    #[must_use]
    pub fn holding(&self, position: Position) -> Option<Arc<Segment>> {
        let all = self.all();
        let at = all.partition_point(|segment| segment.extent().end <= position);
        all.get(at).cloned()
    }

    /// Adds a segment.
    pub fn insert(&self, segment: Arc<Segment>) {
        self.map().insert(segment.id, segment);
    }

    /// Forgets a segment.
    pub fn remove(&self, id: SegmentId) {
        self.map().remove(&id);
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.map().values().map(|segment| segment.extent().file_bytes).sum()
    }
}
