//! Turns waiting batches into one durable group.
//!
//! Place: `SpoolHandle::submit` queues batches, the commit thread takes all that wait and gives them to the
//! [`Writer`]; while one group syncs, the next gathers, so that a fast disk gives low latency and a slow one
//! large groups. What is durable goes to the hot tail, where the dispatcher finds it.
//!
//! Owner: the writer belongs to the commit thread, which alone writes the active segment.
//!
//! *RECEIPT-AFTER-SYNC* (sync class `always`): a receipt leaves only after the fdatasync that covers the frames, and for a new file
//! the fsync of its directory, returned success. *DENSE*: positions grow by one; those of a group that failed
//! are given to the same events again, in the next file. *LATCH*: after a failed write or sync nothing more is
//! written to that file; the group goes to a new one.
//!
//! The crash cases: *none written*: the tail is as before. *Some*: the torn tail is cut at the first frame
//! that does not check (`recover`). *All, but not synced*: the events are delivered though nobody was told;
//! that is allowed. *Header only*: an empty segment, whose base still says where positions go on. *Directory
//! entry lost*: the file was never receipted from, since its first receipt waits for the directory.
//!
//! The weaker sync classes leave the fdatasync of a group out; [`Writer::sync`] makes up for it, and sealing does. The
//! directory of a new file is synced in every class. After a sync that failed, the next group is synced whatever the
//! class, so that "it can be written again" is known and not hoped.
//!
//! Failure: every error is returned with the group intact, so that the caller can try again; it never drops.
//! Knows nothing of shards, streams or Kinesis.

use std::io;
use std::sync::Arc;

use super::frame::{self, Frame};
use super::held::Held;
use super::index::{ActiveIndex, DIRECTORY_BYTES, Entry, FOOTER_BYTES};
use super::segment::{Extent, Index, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentId, SegmentTable};
use crate::coding;
use crate::event::Position;
use crate::host::{File, Host};

/// The active segment as its writer sees it.
#[derive(Debug)]
struct Active {
    file: Arc<dyn File>,
    segment: Arc<Segment>,
    /// Bytes written and durable.
    len: u64,
    /// Header and directory entry are still to be written with the first group.
    fresh: bool,
    /// From here on, events were written and not synced.
    unsynced: Option<Position>,
}

/// Where one batch of a group went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// File.
    pub segment: SegmentId,
    /// Offset of the batch's first frame.
    pub offset: u32,
    /// Position of the batch's first frame.
    pub first: Position,
    /// Wall clock at which the segment was created, ms.
    pub created_ms: u64,
}

/// The only writer of a spool.
#[derive(Debug)]
pub struct Writer {
    host: Host,
    table: Arc<SegmentTable>,
    segment_bytes: u64,
    next: Position,
    next_id: SegmentId,
    active: Option<Active>,
    pending: ActiveIndex,
    /// Each group is synced before it counts as committed.
    sync_each: bool,
    /// The last sync failed: the next group is synced whatever the class.
    suspect: bool,
    /// Events written without a sync whose later sync failed, since somebody asked.
    doubtful: Option<Doubtful>,
    /// What the opening could not sync, and what must be written before anything else.
    held: Option<Held>,
}

/// Events that were receipted as written, and whose sync then failed: a power cut may cost them.
#[derive(Debug)]
pub struct Doubtful {
    /// The first.
    pub first: Position,
    /// How many.
    pub events: u64,
    /// What the device said.
    pub error: io::Error,
}

impl Writer {
    /// A writer that goes on at `next`, in a new segment.
    #[must_use]
    pub fn new(host: Host, table: Arc<SegmentTable>, segment_bytes: u64, next: Position, next_id: SegmentId) -> Self {
        Self {
            host,
            table,
            segment_bytes,
            next,
            next_id,
            active: None,
            pending: ActiveIndex::default(),
            sync_each: true,
            suspect: false,
            doubtful: None,
            held: None,
        }
    }

    /// Goes on behind an opening that could not sync what it found: `held` has the positions from [`Writer::next`] on.
    pub(super) fn resume(&mut self, held: Option<Held>) {
        (self.suspect, self.held) = (true, held);
    }

    /// The last sync failed, and none succeeded since.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// What the opening could not sync and nobody may read yet. Until [`Writer::write_held`] has succeeded nothing else can
    /// be committed.
    #[must_use]
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Writes what is held to a file of its own, durably. Tells where it went, and gives its frames.
    ///
    /// # Errors
    /// The device's; it is still held then.
    pub fn write_held(&mut self) -> io::Result<Option<(Placed, Held)>> {
        let Some(held) = &self.held else { return Ok(None) };
        let id = self.next_id;
        self.next_id = id.next();
        let segment = held.write(&self.host, self.table.dir(), id)?;
        self.table.insert(Arc::new(segment));
        self.next = held.end();
        self.suspect = false;
        let placed =
            Placed { segment: id, offset: SEGMENT_HEADER_BYTES as u32, first: held.base(), created_ms: held.created_ms() };
        Ok(self.held.take().map(|held| (placed, held)))
    }

    /// False: groups count as committed once they are written, and the caller syncs later ([`Writer::sync`]).
    pub fn sync_each_group(&mut self, each: bool) {
        self.sync_each = each;
    }

    /// Something was written and not synced yet.
    #[must_use]
    pub fn has_unsynced(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.unsynced.is_some())
    }

    /// What was receipted and is now in doubt, since the last call.
    pub fn take_doubtful(&mut self) -> Option<Doubtful> {
        self.doubtful.take()
    }

    /// Syncs what groups left unsynced. On failure the file is latched, as after any failed sync, and what is in doubt is
    /// noted for [`Writer::take_doubtful`].
    pub fn sync(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        if self.settle_unsynced(&mut active) {
            self.active = Some(active);
        }
    }

    /// False when the sync failed: what is in doubt is noted, and the file must not be used again.
    fn settle_unsynced(&mut self, active: &mut Active) -> bool {
        let Some(first) = active.unsynced.take() else { return true };
        match active.file.sync_data() {
            Ok(()) => true,
            Err(error) => {
                self.doubtful = Some(Doubtful { first, events: self.next.0 - first.0, error });
                self.suspect = true;
                false
            }
        }
    }

    /// Finds out whether the disk takes anything, without events: begins a segment, if none is active, with its header
    /// only, synced.
    ///
    /// # Errors
    /// The device's. The file is latched then.
    pub fn probe(&mut self) -> io::Result<()> {
        self.write_held()?;
        if self.active.is_none() {
            let mut active = self.begin()?;
            self.pending = ActiveIndex::default();
            self.write(&mut active, &[]).inspect_err(|_| self.latch(&active))?;
            self.active = Some(active);
        }
        Ok(())
    }

    /// The position that the next event gets.
    #[must_use]
    pub fn next(&self) -> Position {
        self.next
    }

    /// File bytes that a group of `frames` frames and `bytes` bytes adds at most, index and a new header included.
    #[must_use]
    pub fn cost(&self, frames: u64, bytes: u64) -> u64 {
        let seal = if self.active.as_ref().is_none_or(|active| active.len >= self.segment_bytes) {
            (SEGMENT_HEADER_BYTES + DIRECTORY_BYTES + FOOTER_BYTES) as u64
        } else {
            0
        };
        let content = bytes + frames * 8 + seal;
        if self.host.files.codes() { coding::stored_at_most(content) } else { content }
    }

    /// Makes the batches durable, in order; each is a run of frames as [`frame::encode`] wrote them.
    /// Tells where each went.
    ///
    /// # Errors
    /// The device's. Nothing of the group counts as durable then; the file is latched. Calling again with the
    /// same batches writes them, with the same positions, to a new file.
    pub fn commit(&mut self, batches: &mut [Vec<u8>]) -> io::Result<Vec<Placed>> {
        assert!(batches.iter().any(|batch| !batch.is_empty()), "a group holds events");
        self.write_held()?;
        if self.active.as_ref().is_some_and(|active| active.len >= self.segment_bytes) {
            self.seal();
        }
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.begin()?,
        };
        let placed = self.stamp(&active, batches);
        match self.write(&mut active, batches) {
            Ok(()) => {
                self.active = Some(active);
                Ok(placed)
            }
            Err(error) => {
                self.latch(&active);
                // What earlier groups left unsynced there was receipted. It was not a sync that failed: one may be tried.
                if !active.fresh {
                    self.settle_unsynced(&mut active);
                }
                Err(error)
            }
        }
    }

    /// Gives every frame its position, time and checksum, and notes its place.
    fn stamp(&mut self, active: &Active, batches: &mut [Vec<u8>]) -> Vec<Placed> {
        let segment = &active.segment;
        let time_ms = u32::try_from(self.host.clock.wall_ms().saturating_sub(segment.created_ms)).unwrap_or(u32::MAX);
        let mut offset = active.len.max(SEGMENT_HEADER_BYTES as u64) as u32;
        let mut position = self.next;
        let mut start = true;
        let mut placed = Vec::with_capacity(batches.len());
        self.pending = ActiveIndex::default();
        for batch in batches {
            placed.push(Placed { segment: segment.id, offset, first: position, created_ms: segment.created_ms });
            let mut rest = &mut batch[..];
            while !rest.is_empty() {
                let len = frame::stamp(rest, position, time_ms, start);
                let written = Frame::parse(&rest[..len]).expect("the frame was encoded whole");
                let relative = (position.0 - segment.base.0) as u32;
                self.pending.push(written.hash().lane(), relative, Entry { offset, len: len as u32 });
                start = false;
                position.0 += 1;
                offset += len as u32;
                rest = &mut rest[len..];
            }
        }
        placed
    }

    fn begin(&mut self) -> io::Result<Active> {
        // A file that began at its positions would supersede it before it is durable elsewhere.
        assert!(self.held.is_none(), "what is held is written first");
        let id = self.next_id;
        // The id is spent even if the file cannot be made: a name is never used twice.
        self.next_id = id.next();
        let header = SegmentHeader { id, base: self.next, created_ms: self.host.clock.wall_ms(), rewritten: false };
        let path = self.table.dir().join(id.file_name());
        let file = self.host.files.create(&path)?;
        let extent = Extent {
            end: self.next,
            frames_end: SEGMENT_HEADER_BYTES as u64,
            file_bytes: SEGMENT_HEADER_BYTES as u64,
            index: Index::Memory(ActiveIndex::default()),
        };
        let segment = Arc::new(Segment::new(&header, path, extent));
        Ok(Active { file, segment, len: 0, fresh: true, unsynced: None })
    }

    fn write(&mut self, active: &mut Active, batches: &[Vec<u8>]) -> io::Result<()> {
        let segment = &active.segment;
        let header =
            SegmentHeader { id: segment.id, base: segment.base, created_ms: segment.created_ms, rewritten: false }.encode();
        let mut parts: Vec<&[u8]> = Vec::with_capacity(batches.len() + 1);
        if active.fresh {
            parts.push(&header);
        }
        parts.extend(batches.iter().map(|batch| &batch[..]));
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        active.file.append(&parts)?;
        if self.sync_each || self.suspect {
            active.file.sync_data()?;
            self.suspect = false;
            active.unsynced = None;
        } else {
            active.unsynced.get_or_insert(self.next);
        }
        if active.fresh {
            self.host.files.sync_dir(self.table.dir())?;
            self.table.insert(Arc::clone(segment));
            active.fresh = false;
        }
        active.len += bytes;
        let stored = if self.host.files.codes() { active.file.stored_len().ok() } else { None };
        self.next.0 += self.pending.len() as u64;
        let mut extent = segment.extent();
        extent.end = self.next;
        extent.frames_end = active.len;
        extent.file_bytes = stored.unwrap_or(active.len);
        if let Index::Memory(index) = &mut extent.index {
            index.append(&mut self.pending);
        }
        Ok(())
    }

    /// Gives a file up after an error: it is never written again. Best effort at tidying; recovery does not need it.
    fn latch(&mut self, active: &Active) {
        let tidied = if active.fresh { self.host.files.remove(&active.segment.path) } else { active.file.set_len(active.len) };
        if let Err(error) = tidied {
            tracing::warn!(segment = %active.segment.id, %error, "a latched segment could not be tidied; recovery will");
        }
    }

    /// Writes the index behind the frames of the active segment and closes it. A failure leaves the segment
    /// unsealed: its index stays in memory, and recovery will rebuild it.
    pub fn seal(&mut self) {
        // The frames first: an index must not outlive its frames.
        self.sync();
        let Some(active) = self.active.take() else { return };
        let last_ms = self.host.clock.wall_ms();
        match seal(&active.segment, active.file.as_ref(), last_ms) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(segment = %active.segment.id, %error, "a segment could not be sealed; its index stays in memory")
            }
        }
    }
}

/// Writes index and footer behind a segment's frames, durably.
///
/// # Errors
/// The device's; the segment then counts as unsealed.
pub fn seal(segment: &Segment, file: &dyn File, last_ms: u64) -> io::Result<()> {
    let mut extent = segment.extent();
    let Index::Memory(index) = &extent.index else { return Ok(()) };
    let bytes = index.encode(segment.base, extent.end, extent.frames_end, last_ms);
    file.append(&[&bytes])?;
    file.finish()?;
    file.sync_data()?;
    if let Some((footer, directory)) = super::index::Footer::read(file)? {
        extent.file_bytes = file.stored_len()?;
        extent.index = Index::Sealed(footer, Arc::new(directory));
        Ok(())
    } else {
        Err(io::Error::other("the index does not read back"))
    }
}
