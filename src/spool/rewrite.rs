//! Makes segments smaller of which little is pending, so that a stuck lane keeps only its own bytes.
//!
//! Without it, one dead shard would keep every segment that holds an event of it, whole: the disk would fill with what the
//! other shards took long ago. So the frames that are *alive* (at or past their lane's mark in a saved checkpoint) are
//! copied to `NNNNNNNNNN.new`, byte for byte and in order, with an index behind them; the file is synced, and renamed over
//! the segment. Position, time and checksum of a frame stay as they were, only its offset changes.
//!
//! Place: a thread beside the dispatcher (`dispatch/rewriter.rs`) runs [`Planner::choose`] and [`rewrite`]; the dispatcher,
//! which alone holds offsets, calls [`Rewritten::install`] and moves them at the same moment. Owner: the old file is only
//! read, and the new one has no reader before it is installed.
//!
//! What is chosen: (1) while the disk used is over [`PRESSED_EIGHTHS`] eighths of what is pending (and a quarter segment),
//! the segment of which the least is alive; so that, with the newest file, lanes whose mark lies inside a segment, and the
//! time until a checkpoint is saved, it stays within one and a half times what is pending plus two segments. (2) Otherwise a segment that has been under a quarter alive for a while: one
//! that is just being drained goes by itself. Never the newest, nor one that the sweep has not passed.
//!
//! The crash cases: *before the rename* the segment is as it was, and recovery removes the `.new`. *After it*, whether the
//! directory was synced or not, either the old file or the new one has the name; both are whole, both hold every frame
//! that is alive, and the marks that say so are durable already. Should those be lost, what was left out is not sent a
//! second time, as with a removed segment. *NOTHING-LOST* needs no more than that.
//!
//! Failure: any error leaves the old file; the caller tries again later. A segment with a damaged frame that would have to
//! be copied is left alone, since its place among the others is not known. Absent on purpose: joining small segments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::cursor::frames::Frames;
use super::cursor::read_padded;
use super::frame::Frame;
use super::index::{ActiveIndex, DIRECTORY_BYTES, Directory, Entry, FOOTER_BYTES, Footer};
use super::segment::{Extent, Index, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentId, SegmentTable};
use crate::event::{LANES, Lane, Position};
use crate::host::{File, Files, Host};

/// Bytes written between two syncs, so that a commit's own sync never waits behind much more.
const STEP_BYTES: u64 = 4 << 20;

/// Bytes written at once, at least.
const WRITE_BYTES: usize = 512 << 10;

/// Bytes read at once.
const READ_BYTES: u64 = 256 << 10;

/// Bytes between two frames that are rather read than skipped.
const GAP_BYTES: u64 = 8 << 10;

/// Disk used for each eight bytes that are pending, from which on segments are rewritten at once.
pub const PRESSED_EIGHTHS: u64 = 10;

/// A rewriting that would not free this part of the file is not worth its writes.
const WORTH_PARTS: u64 = 8;

/// Bytes of a segment that are not frames: header, lane directory, footer; 8 more for each frame.
const FIXED_BYTES: u64 = (SEGMENT_HEADER_BYTES + DIRECTORY_BYTES + FOOTER_BYTES) as u64;

/// What is known of one segment without its frames: bytes of each lane.
#[derive(Debug)]
struct Weights {
    frames_end: u64,
    lanes: Box<[u32; LANES]>,
}

/// How much of a segment is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Alive {
    /// Frame bytes of the lanes whose last frame here is alive; a lane whose mark lies inside counts whole.
    bytes: u64,
    /// Their frames.
    frames: u64,
    /// Some lane is settled here.
    some_settled: bool,
}

impl Alive {
    fn of(segment: &Segment, directory: &Directory, marks: &[Position; LANES], weights: Option<&Weights>) -> Self {
        let mut alive = Self::default();
        for lane in (0..LANES as u16).map(Lane) {
            let Some(last) = directory.last_relative(lane) else { continue };
            if segment.base.0 + u64::from(last) < marks[lane.index()].0 {
                alive.some_settled = true;
            } else {
                alive.frames += u64::from(directory.count(lane));
                alive.bytes += weights.map_or(0, |weights| u64::from(weights.lanes[lane.index()]));
            }
        }
        alive
    }
}

/// Decides what is rewritten next.
#[derive(Debug)]
pub struct Planner {
    segment_bytes: u64,
    dwell: Duration,
    weights: BTreeMap<SegmentId, Weights>,
    thin_since: BTreeMap<SegmentId, Duration>,
    left_alone: BTreeSet<SegmentId>,
}

impl Planner {
    /// For segments of this size; one under a quarter alive is rewritten after `dwell`.
    #[must_use]
    pub fn new(segment_bytes: u64, dwell: Duration) -> Self {
        Self { segment_bytes, dwell, weights: BTreeMap::new(), thin_since: BTreeMap::new(), left_alone: BTreeSet::new() }
    }

    /// The segment to rewrite next, if any. `marks` are those of a saved checkpoint, `swept` is the position up to which
    /// all was handed out, `now` is monotonic.
    ///
    /// # Errors
    /// The device's, when an index cannot be read.
    pub fn choose(
        &mut self,
        files: &dyn Files,
        table: &SegmentTable,
        marks: &[Position; LANES],
        swept: Position,
        now: Duration,
    ) -> io::Result<Option<Arc<Segment>>> {
        let all = table.all();
        let Some((_newest, older)) = all.split_last() else { return Ok(None) };
        let held: BTreeSet<SegmentId> = older.iter().map(|segment| segment.id).collect();
        self.left_alone.retain(|id| held.contains(id));
        let (mut used, mut pending) = (0, 0);
        let (mut thin, mut weighed) = (BTreeMap::new(), BTreeSet::new());
        let mut least: Option<(u64, &Arc<Segment>)> = None;
        let mut least_thin = least;
        for segment in older {
            let (end, frames_end, file_bytes, content_bytes) = {
                let extent = segment.extent();
                (extent.end, extent.frames_end, extent.file_bytes, extent.content_bytes())
            };
            // A compressed file takes less than it holds; a part of it is taken to take that part.
            let on_disk = |bytes: u64| (u128::from(bytes) * u128::from(file_bytes) / u128::from(content_bytes)) as u64;
            let frame_bytes = frames_end - SEGMENT_HEADER_BYTES as u64;
            let directory = segment.directory();
            let rough = Alive::of(segment, &directory, marks, None);
            if rough.frames == 0 {
                // Covered: about to be removed.
                continue;
            }
            used += file_bytes;
            if !rough.some_settled || end > swept || self.left_alone.contains(&segment.id) {
                pending += on_disk(frame_bytes);
                continue;
            }
            weighed.insert(segment.id);
            let alive = Alive::of(segment, &directory, marks, Some(self.weigh(files, segment, frames_end)?));
            pending += on_disk(alive.bytes);
            let after = on_disk(FIXED_BYTES + alive.bytes + 8 * alive.frames);
            if after + file_bytes / WORTH_PARTS > file_bytes {
                continue;
            }
            let part = alive.bytes * 4096 / frame_bytes.max(1);
            if least.is_none_or(|(smallest, _)| part < smallest) {
                least = Some((part, segment));
            }
            if part < 1024 {
                let since = self.thin_since.get(&segment.id).copied().unwrap_or(now);
                thin.insert(segment.id, since);
                if now.saturating_sub(since) >= self.dwell && least_thin.is_none_or(|(smallest, _)| part < smallest) {
                    least_thin = Some((part, segment));
                }
            }
        }
        self.thin_since = thin;
        self.weights.retain(|id, _| weighed.contains(id));
        let pressed = used > pending / 8 * PRESSED_EIGHTHS + self.segment_bytes / 4;
        Ok(if pressed { least } else { least_thin }.map(|(_, segment)| Arc::clone(segment)))
    }

    /// This one cannot be rewritten as long as this process lives.
    pub fn leave_alone(&mut self, id: SegmentId) {
        self.left_alone.insert(id);
    }

    fn weigh(&mut self, files: &dyn Files, segment: &Segment, frames_end: u64) -> io::Result<&Weights> {
        // A rewriting changes where the frames end.
        if self.weights.get(&segment.id).is_none_or(|weights| weights.frames_end != frames_end) {
            let file = files.open(&segment.path)?;
            let mut lanes = Box::new([0u32; LANES]);
            // Lane by lane: all entries of a segment of small events would be megabytes.
            for lane in (0..LANES as u16).map(Lane) {
                let entries = Frames { segment, file: file.as_ref() }.of_lanes(lane, lane)?;
                lanes[lane.index()] = entries.iter().map(|(_, entry)| entry.len).sum();
            }
            self.weights.insert(segment.id, Weights { frames_end, lanes });
        }
        Ok(&self.weights[&segment.id])
    }
}

/// Why a segment was not rewritten; the old file is as it was.
#[derive(Debug)]
pub enum NotRewritten {
    /// The device said no, or is full: later perhaps.
    Io(io::Error),
    /// A frame that is to be copied does not check: never.
    Damaged {
        /// Its place.
        entry: Entry,
    },
    /// The caller did not want it any more.
    Stopped,
}

impl fmt::Display for NotRewritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Damaged { entry } => write!(f, "the frame at offset {} is damaged", entry.offset),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for NotRewritten {}

impl From<io::Error> for NotRewritten {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A durable copy of what is alive of a segment, not yet in its place.
#[derive(Debug)]
pub struct Rewritten {
    segment: Arc<Segment>,
    new: PathBuf,
    extent: Extent,
    /// Old and new offset of each frame, in order.
    moved: Vec<(u32, u32)>,
}

impl Rewritten {
    /// Whose copy it is.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        self.segment.id
    }

    /// Bytes of the new file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.extent.file_bytes
    }

    /// Where the frame that lies at this offset of the old file lies in the new one; `None` when it was left out.
    #[must_use]
    pub fn moved(&self, offset: u32) -> Option<u32> {
        self.moved.binary_search_by_key(&offset, |(old, _)| *old).ok().map(|at| self.moved[at].1)
    }

    /// Puts the copy in the segment's place; false when the segment was removed meanwhile. Whoever holds offsets of the
    /// old file or has it open must take the new ones before the next read.
    ///
    /// # Errors
    /// The file system's; the old file is in its place then.
    pub fn install(&self, files: &dyn Files, table: &SegmentTable) -> io::Result<bool> {
        if !table.get(self.segment.id).is_some_and(|held| Arc::ptr_eq(&held, &self.segment)) {
            self.discard(files);
            return Ok(false);
        }
        if let Err(error) = files.rename(&self.new, &self.segment.path) {
            self.discard(files);
            return Err(error);
        }
        *self.segment.extent() = self.extent.clone();
        Ok(true)
    }

    /// Removes the copy. What cannot be removed now is removed by the next try, or by recovery.
    pub fn discard(&self, files: &dyn Files) {
        discard(files, self.segment.id, &self.new);
    }
}

fn discard(files: &dyn Files, id: SegmentId, path: &Path) {
    match files.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(segment = %id, %error, "an unfinished rewriting could not be removed");
        }
        _ => {}
    }
}

/// Copies what is alive of a segment by these marks (of a saved checkpoint), durably, beside it. `go_on` is asked between
/// steps of some 4 MiB; false stops.
///
/// # Errors
/// [`NotRewritten`]; what was written is removed as far as that works.
pub fn rewrite(
    host: &Host,
    segment: &Arc<Segment>,
    marks: &[Position; LANES],
    go_on: impl FnMut() -> bool,
) -> Result<Rewritten, NotRewritten> {
    let new = segment.path.with_file_name(segment.id.new_file_name());
    let files = host.files.as_ref();
    match files.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let source = files.open(&segment.path)?;
    let target = files.create(&new)?;
    match copy(segment, source.as_ref(), target.as_ref(), marks, go_on) {
        Ok((extent, moved)) => Ok(Rewritten { segment: Arc::clone(segment), new, extent, moved }),
        Err(error) => {
            discard(files, segment.id, &new);
            Err(error)
        }
    }
}

/// What has been copied so far.
struct Copy<'a> {
    segment: &'a Segment,
    target: &'a dyn File,
    /// To be written.
    out: Vec<u8>,
    /// Bytes written.
    written: u64,
    index: ActiveIndex,
    moved: Vec<(u32, u32)>,
    last_ms: u64,
    next: Position,
    end: Position,
}

fn copy(
    segment: &Segment,
    source: &dyn File,
    target: &dyn File,
    marks: &[Position; LANES],
    mut go_on: impl FnMut() -> bool,
) -> Result<(Extent, Vec<(u32, u32)>), NotRewritten> {
    let directory = segment.directory();
    let (end, frames_end, old_last_ms) = {
        let extent = segment.extent();
        let last_ms = if let Index::Sealed(footer, _) = &extent.index { Some(footer.last_ms) } else { None };
        (extent.end, extent.frames_end, last_ms)
    };
    let alive =
        |lane: Lane| directory.last_relative(lane).is_some_and(|last| segment.base.0 + u64::from(last) >= marks[lane.index()].0);
    let mut entries = Vec::new();
    for lane in (0..LANES as u16).map(Lane).filter(|lane| alive(*lane)) {
        entries.append(&mut Frames { segment, file: source }.of_lanes(lane, lane)?);
    }
    entries.sort_unstable_by_key(|(_, entry)| entry.offset);
    let header = SegmentHeader { id: segment.id, base: segment.base, created_ms: segment.created_ms, rewritten: true }.encode();
    // One buffer for all of it: a write goes out before it grows.
    let (out, next) = (Vec::with_capacity(WRITE_BYTES + READ_BYTES as usize), segment.base);
    target.append(&[&header])?;
    let (index, moved, last_ms) = (ActiveIndex::default(), Vec::new(), segment.created_ms);
    let mut copy = Copy { segment, target, out, written: header.len() as u64, index, moved, last_ms, next, end };
    let frame_end = |entry: &Entry| u64::from(entry.offset) + u64::from(entry.len);
    let (mut bytes, mut synced) = (Vec::new(), 0);
    let mut at = 0;
    while at < entries.len() {
        let start = u64::from(entries[at].1.offset);
        let mut until = frame_end(&entries[at].1);
        let mut count = 1;
        while let Some((_, next)) = entries.get(at + count) {
            if u64::from(next.offset) > until + GAP_BYTES || frame_end(next) > start + READ_BYTES {
                break;
            }
            until = until.max(frame_end(next));
            count += 1;
        }
        if until > frames_end {
            return Err(NotRewritten::Damaged { entry: entries[at].1 });
        }
        bytes.resize((until - start) as usize, 0);
        read_padded(source, &mut bytes, start)?;
        for (lane, entry) in &entries[at..at + count] {
            let from = (u64::from(entry.offset) - start) as usize;
            copy.frame(*lane, *entry, &bytes[from..from + entry.len as usize], marks)?;
        }
        at += count;
        if copy.out.len() >= WRITE_BYTES {
            copy.write()?;
        }
        if copy.written >= synced + STEP_BYTES {
            synced = copy.written;
            target.sync_data()?;
            if !go_on() {
                return Err(NotRewritten::Stopped);
            }
        }
    }
    copy.finish(old_last_ms)
}

impl Copy<'_> {
    /// Takes one frame over, if it is alive.
    fn frame(&mut self, lane: Lane, entry: Entry, bytes: &[u8], marks: &[Position; LANES]) -> Result<(), NotRewritten> {
        let whole = Frame::check(bytes).filter(|frame| frame.len() == bytes.len() && frame.hash().lane() == lane);
        let Some(frame) = whole.filter(|frame| (self.next..self.end).contains(&frame.position())) else {
            return Err(NotRewritten::Damaged { entry });
        };
        let position = frame.position();
        self.next = Position(position.0 + 1);
        if position < marks[lane.index()] {
            return Ok(());
        }
        let offset = (self.written + self.out.len() as u64) as u32;
        self.index.push(lane, (position.0 - self.segment.base.0) as u32, Entry { offset, len: entry.len });
        self.moved.push((entry.offset, offset));
        self.last_ms = self.segment.created_ms + u64::from(frame.time_ms());
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.target.append(&[&self.out])?;
        self.written += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    fn finish(mut self, old_last_ms: Option<u64>) -> Result<(Extent, Vec<(u32, u32)>), NotRewritten> {
        let frames_end = self.written + self.out.len() as u64;
        let index = self.index.encode(self.segment.base, self.end, frames_end, old_last_ms.unwrap_or(self.last_ms));
        self.out.extend_from_slice(&index);
        self.write()?;
        self.target.finish()?;
        self.target.sync_data()?;
        let Some((footer, directory)) = Footer::read(self.target)? else {
            return Err(io::Error::other("the index of a rewritten segment does not read back").into());
        };
        let index = Index::Sealed(footer, Arc::new(directory));
        let file_bytes = self.target.stored_len()?;
        Ok((Extent { end: self.end, frames_end, file_bytes, index }, self.moved))
    }
}
