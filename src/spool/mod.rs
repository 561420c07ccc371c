//! The spool: every event of one stream on disk, in order, until it is settled.
//!
//! Constraints first. A receipt leaves only after an fdatasync (*RECEIPT-AFTER-SYNC*). What was receipted is
//! found again after any crash (*NOTHING-LOST*), and opening never loops or guesses (*BORING-RECOVERY*). Memory
//! does not grow with the backlog. A part of the key space that cannot be delivered must not keep the rest from
//! being read or deleted: hence 1024 *lanes*, cut by key hash, each found on its own through an index.
//!
//! Files in `segments/` and `dead/` may be compressed or encrypted; that is below this module (`coding`).
//!
//! Layout of a stream's directory:
//!
//! | path | holds | written by |
//! | --- | --- | --- |
//! | `format` | `forebay spool 1`, or 2 once files were coded, and the stream's name | once each |
//! | `lock` | an advisory lock, held while the agent runs | the agent |
//! | `segments/NNNNNNNNNN.seg` | header, frames, index once sealed (`segment.rs`, `frame.rs`, `index.rs`) | the commit thread |
//! | `segments/NNNNNNNNNN.new` | what is alive of a segment, before it takes its place (`rewrite.rs`), or a group in doubt (`held.rs`) | the rewriting thread, the commit thread |
//! | `ledger/` | sled: the marks (`checkpoint.rs`); may be lost | the checkpoint thread |
//! | `ledger.ahead` | after a clean stop beside a backlog: what was delivered ahead of it; may be lost | the dispatcher |
//! | `ledger.mode` | what Kinesis last said of the stream; may be lost | the dispatcher |
//! | `ledger.sent` | how far sending went since the last checkpoint; may be lost | the dispatcher |
//! | `dead/` | dead letters (`dead.rs`), and bytes that recovery set aside | the dispatcher, recovery |
//!
//! Write: `admit` (bytes against a budget), `submit` (into the gathering group), one fdatasync for all who wait,
//! receipts, hot tail (`gather.rs`, `commit.rs`). Read: forward through everything, from memory while it is hot,
//! or lane by lane (`cursor.rs`); for people, read-only (`inspect.rs`). Delete: a sealed segment goes when a *saved*
//! checkpoint's marks are past every frame in it; the newest file always stays, since it says where positions go on. Of
//! one that a few stuck lanes hold, a smaller copy with their frames alone takes the place (`rewrite.rs`).
//!
//! What we assume of the disk, and what the simulator's double does too: a crash keeps any subset of what was
//! not synced, torn at 512 bytes, holes read as zeroes; a successful fdatasync keeps the file's data and length,
//! and an fsync of the directory its entries; after a failed sync nothing about unsynced data is known; bits may
//! flip in what was good; a read returns what is there or an error.
//!
//! Absent on purpose: shards, streams' limits, records. The spool knows events, lanes and positions.

pub mod append;
pub mod commit;
pub mod cursor;
pub mod dead;
pub mod frame;
pub mod gather;
pub mod held;
pub mod index;
pub mod inspect;
pub mod recover;
pub mod replay;
pub mod rewrite;
pub mod segment;
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests damage files behind the spool's back")]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use gather::{Batch, Closed, Companion, NotDurable, Permit, Policy, Pulse, Receipt, SpoolHandle, Tenant};
pub use recover::OpenError;

use self::commit::Writer;
use self::recover::{doing, recover};
use self::segment::SegmentTable;
use crate::event::{LANES, Position};
use crate::host::Host;
use crate::metrics::StreamMetrics;

/// What the first line of a spool's `format` file says.
const FORMAT_LINE: &str = "forebay spool 1";

/// The same where files may be coded (`coding`): a program that reads plain files only must keep its hands off.
const CODED_FORMAT_LINE: &str = "forebay spool 2";

/// Sizes of a spool.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// The stream whose events it holds; checked against the directory.
    pub stream: String,
    /// The directory of this one spool.
    pub dir: PathBuf,
    /// Ceiling for all its files, bytes.
    pub max_bytes: u64,
    /// Bytes after which a segment is sealed.
    pub segment_bytes: u64,
}

/// What is to be known of a spool that was just opened.
#[derive(Debug)]
pub struct Opened {
    /// For the doors, and, through `shared`, for the dispatcher.
    pub handle: SpoolHandle,
    /// For the commit thread.
    pub writer: Writer,
    /// Events that were accepted and are damaged.
    pub damaged_events: u64,
    /// Bytes of torn tails that were cut.
    pub torn_bytes: u64,
}

/// Directory names inside a spool.
#[must_use]
pub fn segments_dir(dir: &Path) -> PathBuf {
    dir.join("segments")
}

/// Where a spool's dead letters are.
#[must_use]
pub fn dead_dir(dir: &Path) -> PathBuf {
    dir.join("dead")
}

/// Creates or checks the spool's directory: format, version, name of the stream.
///
/// # Errors
/// I/O, another version, another stream.
pub fn prepare(host: &Host, options: &SpoolOptions) -> Result<(), OpenError> {
    let dir = &options.dir;
    let files = host.files.as_ref();
    doing("creating", dir, files.create_dir_all(dir))?;
    for sub in [segments_dir(dir), dir.join("dead")] {
        doing("creating", &sub, files.create_dir_all(&sub))?;
    }
    let path = dir.join("format");
    let line = if files.codes() { CODED_FORMAT_LINE } else { FORMAT_LINE };
    let [expected, coded] = [line, CODED_FORMAT_LINE].map(|line| format!("{line}\nstream {}\n", options.stream));
    let found = match files.open(&path) {
        Ok(file) => {
            let mut bytes = vec![0; doing("reading", &path, file.len())?.min(4096) as usize];
            doing("reading", &path, file.read_exact_at(&mut bytes, 0))?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return doing("opening", &path, Err(error)),
    };
    // Once coded, always: who takes the coding away may have coded files still.
    if found == expected || found == coded {
        return Ok(());
    }
    match found.split_once('\n') {
        Some((FORMAT_LINE, rest)) if coded.split_once('\n').is_some_and(|(_, ours)| ours == rest) => {}
        Some((FORMAT_LINE | CODED_FORMAT_LINE, rest)) if rest.ends_with('\n') => {
            return Err(OpenError::OtherStream { found: rest.trim().trim_start_matches("stream ").to_owned() });
        }
        Some((first, _)) if first.starts_with("forebay spool") => {
            return Err(OpenError::OtherVersion { found: format!("{}: {first:?}", path.display()) });
        }
        _ => {}
    }
    // New, or a crash came before it was whole: written beside, then moved into place.
    let new = dir.join("format.new");
    match files.remove(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return doing("removing", &new, Err(error)),
        _ => {}
    }
    let written = files.create(&new).and_then(|file| {
        file.append(&[expected.as_bytes()])?;
        file.sync_data()
    });
    doing("writing", &new, written)?;
    doing("renaming", &new, files.rename(&new, &path))?;
    doing("syncing", dir, files.sync_dir(dir))
}

/// Opens a spool after any kind of end. `durable` is what the last saved checkpoint knew to be durable.
///
/// # Errors
/// [`OpenError`]; damage is none.
pub fn open(host: &Host, options: &SpoolOptions, durable: Position, metrics: &Arc<StreamMetrics>) -> Result<Opened, OpenError> {
    let segments = segments_dir(&options.dir);
    let found = recover(host, &segments, &options.dir.join("dead"), durable)?;
    let table = Arc::new(SegmentTable::new(segments, found.segments));
    let mut writer = Writer::new(host.clone(), Arc::clone(&table), options.segment_bytes, found.next, found.next_id);
    if found.unsynced {
        writer.resume(found.held);
    }
    let handle = SpoolHandle::new(host.clone(), table, found.next, Arc::clone(metrics), options.max_bytes);
    Ok(Opened { handle, writer, damaged_events: found.damaged_events, torn_bytes: found.torn_bytes })
}

/// Removes the sealed segments that a saved checkpoint covers, the newest file excepted. Tells which went.
///
/// # Errors
/// The first file that could not be removed; the next call tries again.
pub fn remove_covered(host: &Host, table: &SegmentTable, marks: &[Position; LANES]) -> std::io::Result<Vec<segment::SegmentId>> {
    let mut removed = Vec::new();
    let all = table.all();
    let Some((_newest, older)) = all.split_last() else { return Ok(removed) };
    for segment in older {
        if segment.covered_by(marks) {
            match host.files.remove(&segment.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            table.remove(segment.id);
            removed.push(segment.id);
        }
    }
    Ok(removed)
}
