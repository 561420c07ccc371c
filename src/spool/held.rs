//! What an opening found and could not sync: the last group of the newest file, held back and written again elsewhere.
//!
//! After a kill the newest file may be in the page cache only. Normally recovery syncs it before anything of it is
//! delivered. Where that sync fails the start goes on all the same, because delivery must: all but the last group is read
//! and delivered from the file as it is, and the last group waits here until a new file takes it.
//!
//! Why that is safe. In class `always` a group is written only after the one before it was synced, and for a new file its
//! directory, so the groups before the last are durable: the last one itself proves it. The last group is in doubt. It may
//! hold a receipt, and then it is durable and will be found again; or none, and then nobody may see it before it is durable,
//! since a power cut could take its first event and leave its second. A sync that failed is not tried again on the same file
//! (*LATCH*), so the group is written again, with its positions, times and checksums. In the weaker classes earlier groups
//! may be undurable too; they were delivered before their sync anyway, and a power cut may take them, as after any sync that
//! failed.
//!
//! Nothing else may be written at its positions meanwhile: a file that begins there would supersede the group in the old
//! file before it lies durable in the new one. So it goes to `NNNNNNNNNN.new` with its index, is synced, and only then gets
//! its name. A crash before that finds the old file as it was; after it, either.
//!
//! What is left: the sync of the directory after the rename fails (one just before it did not), the process is killed before
//! it has removed the file, the next sync of the directory succeeds without writing the entry, recovery cuts the old copy off
//! as superseded, and then the power fails. To leave the old copy would be worse: copies of tries that nobody was told of
//! would come back when the files behind them are gone.
//!
//! Place: `recover` takes it, the `Writer` keeps and writes it before anything else, at the commit thread's asking. Memory:
//! one group. Failure: every try is a new file; the caller waits between tries.

use std::io;
use std::path::Path;

use super::commit::seal;
use super::index::{ActiveIndex, Entry};
use super::recover::Scan;
use super::segment::{Extent, Index, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentId};
use crate::event::Position;
use crate::host::{File, Host};

/// A group in doubt.
#[derive(Debug)]
pub struct Held {
    /// Its first position.
    base: Position,
    /// The position after its last.
    end: Position,
    /// What its frames' times count from, ms.
    created_ms: u64,
    /// Wall clock of its last frame, ms.
    last_ms: u64,
    frames: Vec<u8>,
    /// As in a file that holds nothing else.
    index: ActiveIndex,
}

impl Held {
    /// Reads the last group of a scanned file, from `durable` on; `None` when all of it is known to be durable. The scan is
    /// left as it is.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn read(file: &dyn File, header: &SegmentHeader, scan: &Scan, durable: Position) -> io::Result<Option<Self>> {
        let base = scan.last_group.max(durable);
        if header.rewritten || base >= scan.end {
            return Ok(None);
        }
        let before = (base.0 - header.base.0) as u32;
        let of_group = scan.index.entries().iter().filter(|(_, relative, _)| *relative >= before);
        let Some(from) = of_group.clone().map(|(_, _, entry)| entry.offset).next() else { return Ok(None) };
        let mut frames = vec![0; (scan.frames_end - u64::from(from)) as usize];
        file.read_exact_at(&mut frames, u64::from(from))?;
        let mut index = ActiveIndex::default();
        for (lane, relative, entry) in of_group {
            let offset = entry.offset - from + SEGMENT_HEADER_BYTES as u32;
            index.push(*lane, relative - before, Entry { offset, len: entry.len });
        }
        let last_ms = header.created_ms + u64::from(scan.last_time_ms);
        Ok(Some(Self { base, end: scan.end, created_ms: header.created_ms, last_ms, frames, index }))
    }

    /// Its first position.
    #[must_use]
    pub fn base(&self) -> Position {
        self.base
    }

    /// The position after its last.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Its events.
    #[must_use]
    pub fn events(&self) -> u32 {
        self.index.len() as u32
    }

    /// Its frames, one after the other.
    #[must_use]
    pub fn frames(&self) -> &[u8] {
        &self.frames
    }

    /// What its frames' times count from, wall clock ms.
    #[must_use]
    pub fn created_ms(&self) -> u64 {
        self.created_ms
    }

    /// Takes the frames out.
    #[must_use]
    pub fn into_frames(self) -> Vec<u8> {
        self.frames
    }

    /// Writes it as a segment of its own, durably and under its name.
    ///
    /// # Errors
    /// The device's. The file is given up then.
    pub(super) fn write(&self, host: &Host, dir: &Path, id: SegmentId) -> io::Result<Segment> {
        let (new, path) = (dir.join(id.new_file_name()), dir.join(id.file_name()));
        let header = SegmentHeader { id, base: self.base, created_ms: self.created_ms, rewritten: false };
        let frames_end = (SEGMENT_HEADER_BYTES + self.frames.len()) as u64;
        let extent = Extent { end: self.end, frames_end, file_bytes: frames_end, index: Index::Memory(self.index.clone()) };
        let segment = Segment::new(&header, path, extent);
        let file = host.files.create(&new)?;
        let mut named = &new;
        let written = (|| {
            file.append(&[&header.encode(), &self.frames])?;
            file.sync_data()?;
            seal(&segment, file.as_ref(), self.last_ms)?;
            // A directory that fails its syncs is not given the name, which a kill before its removal would leave.
            host.files.sync_dir(dir)?;
            host.files.rename(&new, &segment.path)?;
            named = &segment.path;
            host.files.sync_dir(dir)
        })();
        if let Err(error) = written {
            if let Err(error) = host.files.remove(named) {
                tracing::warn!(segment = %id, %error, "a file that was given up could not be removed; the next opening will");
            }
            return Err(error);
        }
        Ok(segment)
    }
}
