//! Opens a spool after any kind of end: finds the segments, cuts the torn tail, skips damage, seals.
//!
//! Place: runs once before the commit thread and the dispatcher start. Reads 8 KiB of each sealed segment and
//! scans only those without an index, normally the last one.
//!
//! What it decides, in this order: (1) a file without an index is scanned frame by frame. (2) Frames at or past
//! the next segment's base are superseded: that file was latched and its last group was written again there.
//! (3) Bytes that do not check are *damage* if what follows was certainly durable: a later commit starts behind
//! them, a later segment exists, or a saved checkpoint knows of later positions. They are set aside, counted,
//! and reading goes on behind them. (4) Otherwise they are a *torn tail*: a group that was never receipted, cut
//! whole from the first bad frame on, so that no later event of it overtakes an earlier one.
//!
//! *BORING-RECOVERY*: each step moves forward; nothing loops, and a second crash during recovery finds the
//! same state. A file that a rewriting did not finish (`rewrite.rs`) is removed; gaps between the positions of a rewritten
//! segment are no damage. Failure: I/O errors are returned and stop the start; damage never does, and neither does a full
//! disk, which only delivery can empty: an index that finds no room stays in memory. What it will not do: guess at bytes,
//! or touch a file of another version.

use std::fmt;
use std::io;
use std::path::Path;

use super::commit::seal;
use super::frame::{FRAME_HEADER_BYTES, Frame};
use super::held::Held;
use super::index::{ActiveIndex, Entry, Footer};
use super::segment::{Extent, HeaderError, Index, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentId};
use crate::event::Position;
use crate::host::{File, Host};

/// Largest frame that recovery believes: the largest record Kinesis can be told to take, key and header.
const FRAME_BYTES_MAX: usize = (10 << 20) + 8192;

/// What opening found.
#[derive(Debug)]
pub struct Recovered {
    /// Segments, oldest first.
    pub segments: Vec<Segment>,
    /// Where positions go on.
    pub next: Position,
    /// The first unused segment id.
    pub next_id: SegmentId,
    /// Positions that were accepted, and whose bytes are damaged.
    pub damaged_events: u64,
    /// Bytes of torn tails that were cut.
    pub torn_bytes: u64,
    /// Something could not be synced.
    pub unsynced: bool,
    /// The group that is in doubt for that; its positions begin at `next`.
    pub held: Option<Held>,
}

/// Why a spool cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The file system said no.
    Io {
        /// Doing what.
        doing: String,
        /// Its words.
        error: io::Error,
    },
    /// Written by a newer program, or by something else.
    OtherVersion {
        /// What was found, for people.
        found: String,
    },
    /// Another process has it open.
    Locked {
        /// The lock file.
        path: String,
    },
    /// The directory belongs to another stream.
    OtherStream {
        /// Its name there.
        found: String,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, error } => write!(f, "{doing}: {error}"),
            Self::OtherVersion { found } => write!(
                f,
                "the spool was written by another version ({found}); this one reads versions 1 and 2. Run the version that wrote it, or drain it there first"
            ),
            Self::Locked { path } => {
                write!(f, "{path} is locked: another forebay runs on this spool. Stop it, or give this one its own spool.dir")
            }
            Self::OtherStream { found } => {
                write!(f, "this directory is the spool of stream {found:?}; move it away or name the stream so")
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// Names what was being done when an I/O error came.
pub fn doing<T>(what: impl fmt::Display, path: &Path, result: io::Result<T>) -> Result<T, OpenError> {
    result.map_err(|error| OpenError::Io { doing: format!("{what} {}", path.display()), error })
}

/// Reads a file forward through one buffer.
pub(super) struct Window<'a> {
    file: &'a dyn File,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    const STEP: usize = 1 << 20;

    pub(super) fn new(file: &'a dyn File) -> io::Result<Self> {
        Ok(Self { file, len: file.len()?, start: 0, bytes: Vec::new() })
    }

    /// Up to `want` bytes at `offset`; fewer only at the end of the file.
    pub(super) fn at(&mut self, offset: u64, want: usize) -> io::Result<&[u8]> {
        let want = want.min((self.len - offset.min(self.len)) as usize);
        let held = self.start..self.start + self.bytes.len() as u64;
        if offset < held.start || offset + want as u64 > held.end {
            let take = want.max(Self::STEP).min((self.len - offset) as usize);
            self.bytes.resize(take, 0);
            self.start = offset;
            self.file.read_exact_at(&mut self.bytes, offset)?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + want])
    }
}

/// What a scan of one file found.
#[derive(Debug)]
pub struct Scan {
    /// Its good frames.
    pub index: ActiveIndex,
    /// Offset after the last one.
    pub frames_end: u64,
    /// Position after the last one.
    pub end: Position,
    /// Offsets and lengths of damaged stretches between good frames.
    pub damage: Vec<(u64, u64)>,
    /// Positions lost in them.
    pub damaged_events: u64,
    /// Receipt time of the last frame, ms after creation.
    pub last_time_ms: u32,
    /// From here to the end the frames lie in one piece and are of one group.
    pub last_group: Position,
}

/// Walks all frames of a file. `base` is the position expected first; frames at or past `stop` are superseded;
/// positions below `durable` are known to have been durable; `sealed_off` says that a later segment exists.
///
/// # Errors
/// The device's.
pub fn scan(file: &dyn File, base: Position, stop: Position, durable: Position, sealed_off: bool) -> io::Result<Scan> {
    walk(file, base, stop, durable, sealed_off, false)
}

/// The same for a rewritten segment: positions have gaps, and all of it was durable before it got its name.
///
/// # Errors
/// The device's.
pub fn scan_rewritten(file: &dyn File, base: Position, stop: Position) -> io::Result<Scan> {
    walk(file, base, stop, Position(u64::MAX), true, true)
}

fn walk(file: &dyn File, base: Position, stop: Position, durable: Position, sealed_off: bool, gaps: bool) -> io::Result<Scan> {
    let mut window = Window::new(file)?;
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut found = Scan {
        index: ActiveIndex::default(),
        frames_end: at,
        end: base,
        damage: Vec::new(),
        damaged_events: 0,
        last_time_ms: 0,
        last_group: base,
    };
    // The state at the first damage that nothing later has proven to be more than a torn tail.
    let mut unproven: Option<(u64, Position, usize, u64, Position)> = None;
    while at < window.len {
        let whole = match good_frame(&mut window, at)? {
            Some(len) => {
                let frame = Frame::parse(window.at(at, len)?).expect("checked just now");
                let (position, lane, time, start) =
                    (frame.position(), frame.hash().lane(), frame.time_ms(), frame.commit_start());
                // An index counts in 32 bits from the base: what lies further off was never written here.
                let far = position.0.saturating_sub(base.0) > u64::from(u32::MAX);
                (position >= found.end && !far).then_some((len, position, lane, time, start))
            }
            None => None,
        };
        let Some((len, position, lane, time, commit_start)) = whole else {
            if unproven.is_none() && !sealed_off && found.end >= durable {
                unproven = Some((at, found.end, found.damage.len(), found.damaged_events, found.last_group));
            }
            // Relative positions are u32. A dense file of this length holds at most so many frames, and a position
            // further on is a coincidence of bytes.
            let most = if gaps { u64::from(u32::MAX) } else { window.len / (FRAME_HEADER_BYTES as u64 + 1) };
            let next = resync(&mut window, at + 1, found.end, Position(found.end.0.saturating_add(most).min(stop.0)))?;
            if gaps {
                let until = next.unwrap_or(window.len);
                found.damaged_events += shaped_frames(&mut window, at, until, found.end, stop)?.max(u64::from(next.is_some()));
            }
            let Some(next) = next else { break };
            found.damage.push((at, next - at));
            at = next;
            continue;
        };
        if position >= stop {
            break;
        }
        if commit_start {
            unproven = None;
        }
        if commit_start || at > found.frames_end {
            found.last_group = position;
        }
        if !gaps {
            found.damaged_events += position.0 - found.end.0;
        }
        found.index.push(lane, (position.0 - base.0) as u32, Entry { offset: at as u32, len: len as u32 });
        found.end = Position(position.0 + 1);
        found.last_time_ms = time;
        at += len as u64;
        found.frames_end = at;
    }
    if let Some((frames_end, end, damage, damaged_events, last_group)) = unproven {
        found.frames_end = frames_end;
        found.last_group = last_group;
        found.end = end;
        found.damage.truncate(damage);
        found.damaged_events = damaged_events;
        found.index.truncate_at((end.0 - base.0) as u32);
    }
    Ok(found)
}

/// Length of the frame at `at`, if a good one is there.
fn good_frame(window: &mut Window<'_>, at: u64) -> io::Result<Option<usize>> {
    let Some(len) = Frame::peek_len(window.at(at, FRAME_HEADER_BYTES)?) else { return Ok(None) };
    if !(FRAME_HEADER_BYTES + 1..=FRAME_BYTES_MAX).contains(&len) {
        return Ok(None);
    }
    Ok(Frame::check(window.at(at, len)?).map(|frame| frame.len()))
}

/// How many frames seem to lie in a damaged stretch of a rewritten segment, where positions do not tell: those whose header
/// is whole enough to go on by.
fn shaped_frames(window: &mut Window<'_>, from: u64, until: u64, after: Position, stop: Position) -> io::Result<u64> {
    let (mut at, mut frames) = (from, 0);
    while let Some(len) = Frame::peek_len(window.at(at, FRAME_HEADER_BYTES)?) {
        if !(FRAME_HEADER_BYTES + 1..=FRAME_BYTES_MAX).contains(&len) || at + len as u64 > until {
            break;
        }
        let shaped = Frame::parse(window.at(at, len)?).is_some_and(|frame| frame.position() >= after && frame.position() < stop);
        if !shaped {
            break;
        }
        frames += 1;
        at += len as u64;
    }
    Ok(frames)
}

/// The next offset at which a good frame with a position in `after..stop` lies.
fn resync(window: &mut Window<'_>, from: u64, after: Position, stop: Position) -> io::Result<Option<u64>> {
    let mut at = from;
    while at + FRAME_HEADER_BYTES as u64 <= window.len {
        let chunk = window.at(at, Window::STEP)?;
        let hit = (0..chunk.len().saturating_sub(FRAME_HEADER_BYTES - 1))
            .find(|offset| Frame::peek_position(&chunk[*offset..]).is_some_and(|position| position >= after && position < stop));
        let searched = chunk.len().saturating_sub(FRAME_HEADER_BYTES - 1).max(1) as u64;
        match hit {
            Some(offset) => {
                let candidate = at + offset as u64;
                if good_frame(window, candidate)?.is_some() {
                    return Ok(Some(candidate));
                }
                at = candidate + 1;
            }
            None => at += searched,
        }
    }
    Ok(None)
}

/// Finds, repairs and seals the segments of a spool. `durable` is what the last saved checkpoint knew to be
/// durable (`Position(0)` when it is lost).
///
/// # Errors
/// I/O, or a segment of another version.
pub fn recover(host: &Host, segments_dir: &Path, aside_dir: &Path, durable: Position) -> Result<Recovered, OpenError> {
    let files = host.files.as_ref();
    let names = doing("listing", segments_dir, files.list(segments_dir))?;
    let ids: Vec<SegmentId> = names.iter().filter_map(|name| SegmentId::of_file_name(name)).collect();
    for id in names.iter().filter_map(|name| SegmentId::of_new_file_name(name)) {
        // The segment itself is still there, whole. What cannot be removed costs its space only.
        let path = segments_dir.join(id.new_file_name());
        if let Err(error) = files.remove(&path) {
            tracing::warn!(segment = %id, %error, "what an unfinished rewriting left could not be removed");
        }
    }
    // Headers first: a segment ends where the next one begins.
    let mut found = Vec::new();
    for id in &ids {
        let path = segments_dir.join(id.file_name());
        let file = doing("opening", &path, files.open(&path))?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let held = doing("reading", &path, file.len())?.min(SEGMENT_HEADER_BYTES as u64) as usize;
        doing("reading", &path, file.read_exact_at(&mut bytes[..held], 0))?;
        let header = match SegmentHeader::decode(&bytes[..held]) {
            Ok(header) if header.id == *id => Some(header),
            Ok(_) | Err(HeaderError::Damaged) => doing("reading", &path, header_from_content(host, file.as_ref(), *id))?,
            Err(HeaderError::OtherVersion { version, flags }) => {
                return Err(OpenError::OtherVersion {
                    found: format!("{}: segment version {version}, flags {flags}", path.display()),
                });
            }
        };
        // Not kept open: there may be thousands, and one that is coded holds what it has read.
        found.push((*id, path, header));
    }
    let bases: Vec<Option<Position>> = found.iter().map(|(_, _, header)| header.map(|header| header.base)).collect();
    let mut recovered = Recovered {
        segments: Vec::new(),
        next: Position(0),
        next_id: ids.last().map_or(SegmentId(1), |id| id.next()),
        damaged_events: 0,
        torn_bytes: 0,
        unsynced: false,
        held: None,
    };
    // After a kill the entry of the newest file may be in memory only, and what it holds is about to be delivered.
    let entries = files.sync_dir(segments_dir);
    if let Err(error) = &entries {
        recovered.told_unsynced(segments_dir, error);
    }
    let mut entries_changed = false;
    for (at, (id, path, header)) in found.into_iter().enumerate() {
        let file = doing("opening", &path, files.open(&path))?;
        let stop = bases[at + 1..].iter().flatten().min().copied().unwrap_or(Position(u64::MAX));
        // What is missing before the next file is missing here, if that one is the neighbour and tells where it begins; others
        // between them were covered and removed, and one that does not tell is counted itself.
        let next_tells = ids.get(at + 1) == Some(&id.next()) && bases.get(at + 1).is_some_and(Option::is_some);
        // Without a header and a first frame to tell, positions go on where the last segment ended.
        let intact = header.is_some();
        let made = SegmentHeader { id, base: recovered.next, created_ms: host.clock.wall_ms(), rewritten: false };
        let header = header.unwrap_or(made);
        let file_bytes = doing("reading", &path, file.len())?;
        let sealed = if intact { doing("reading", &path, Footer::read(file.as_ref()))? } else { None };
        if let Some((footer, directory)) = sealed.filter(|(footer, _)| footer.base == header.base && footer.end <= stop) {
            let extent = Extent {
                end: footer.end,
                frames_end: footer.frames_end,
                file_bytes: doing("reading", &path, file.stored_len())?,
                index: Index::Sealed(footer, std::sync::Arc::new(directory)),
            };
            recovered.next = footer.end;
            recovered.segments.push(Segment::new(&header, path, extent));
            continue;
        }
        // Only a later segment that tells where it begins proves what was durable before it: of several tries at one group
        // whose files were given up, a power cut may bring back any, each torn.
        let sealed_off = stop.0 < u64::MAX;
        let scanned = if header.rewritten {
            scan_rewritten(file.as_ref(), header.base, stop)
        } else {
            scan(file.as_ref(), header.base, stop, durable, sealed_off)
        };
        let scan = doing("scanning", &path, scanned)?;
        // Normally a file without either: its first group was torn before it was synced, and it never held a receipt. Or one
        // that claims to begin behind its successor, which no writer of ours leaves. Set aside rather than removed: nothing
        // in it proves what it is.
        if scan.index.is_empty() && !intact || header.base > stop {
            tracing::warn!(segment = %id, bytes = file_bytes, "a segment without header and frames, or out of order, is set aside");
            let aside = aside_dir.join(format!("unreadable-{id}.seg"));
            // Where it cannot be moved the next opening sees it as this one did, and tries again.
            match files.rename(&path, &aside) {
                Ok(()) => entries_changed = true,
                Err(error) => tracing::warn!(segment = %id, %error, "a segment could not be set aside"),
            }
            recovered.torn_bytes += file_bytes;
            if !intact && next_tells && at > 0 && ids[at - 1].next() == id {
                recovered.damaged_events += stop.0.saturating_sub(recovered.next.0);
            }
            continue;
        }
        for (offset, len) in &scan.damage {
            tracing::error!(segment = %id, offset, len, "damaged bytes in a segment; set aside, reading on behind them");
            set_aside(host, file.as_ref(), aside_dir, id, *offset, *len);
        }
        // Counted here, once: the index that is written now makes the next opening skip this.
        recovered.damaged_events += scan.damaged_events;
        if next_tells && !header.rewritten {
            recovered.damaged_events += stop.0.saturating_sub(scan.end.0);
        }
        // Two files of which each may be the last: no group can be told to be the last one.
        if recovered.held.is_some() {
            let error = io::Error::other("another file that could not be synced lies before it, and headers are damaged");
            return doing("going on behind", &path, Err(error));
        }
        let last_ms = header.created_ms + u64::from(scan.last_time_ms);
        // Read before the sync: one that fails may take the pages along.
        let held = if sealed_off { None } else { doing("reading", &path, Held::read(file.as_ref(), &header, &scan, durable))? };
        let torn = file_bytes > scan.frames_end;
        if torn {
            recovered.torn_bytes += file_bytes - scan.frames_end;
        }
        // The frames before the index: after a kill they may be in the page cache only, and it must not outlive them.
        let cut = if torn { file.set_len(scan.frames_end) } else { Ok(()) };
        let synced = cut.and_then(|()| file.sync_data());
        let mut scan = scan;
        if let Err(error) = &synced {
            recovered.told_unsynced(&path, error);
        }
        if let Some(held) = held.filter(|_| synced.is_err() || entries.is_err()) {
            scan.frames_end -= held.frames().len() as u64;
            scan.end = held.base();
            scan.index.truncate_at((scan.end.0 - header.base.0) as u32);
            recovered.held = Some(held);
        }
        recovered.next = scan.end;
        let sealable = synced.is_ok() && recovered.held.is_none();
        let file_bytes = doing("reading", &path, file.stored_len())?;
        let extent = Extent { end: scan.end, frames_end: scan.frames_end, file_bytes, index: Index::Memory(scan.index) };
        let segment = Segment::new(&header, path.clone(), extent);
        if sealable && let Err(error) = seal(&segment, file.as_ref(), last_ms) {
            // On a full disk there is no room for an index, and only delivery makes room: a start must not need any. The
            // index stays in memory, and the next opening scans again.
            tracing::warn!(segment = %id, %error, "a segment could not be sealed while opening; its index stays in memory");
            if let Err(error) = file.set_len(scan.frames_end) {
                tracing::warn!(segment = %id, %error, "what was written of its index could not be cut off; the next opening will");
            }
        }
        recovered.segments.push(segment);
    }
    if durable > recovered.next {
        // Receipted once, says the checkpoint, and no longer there: never give these positions to other events.
        recovered.damaged_events += durable.0 - recovered.next.0;
        recovered.next = durable;
        // A file that begins there says so to the next opening, which then does not count them again.
        let id = recovered.next_id;
        recovered.next_id = id.next();
        match begin_empty(host, segments_dir, id, durable) {
            Ok(segment) => {
                entries_changed = true;
                recovered.segments.push(segment);
            }
            // On a full disk: the next opening counts them again.
            Err(error) => tracing::warn!(%error, "where positions go on could not be written"),
        }
    }
    // A crash that undoes these entries costs that the next opening does the same again.
    if entries_changed && let Err(error) = files.sync_dir(segments_dir) {
        recovered.told_unsynced(segments_dir, &error);
    }
    Ok(recovered)
}

impl Recovered {
    /// Notes that something could not be synced, and says so.
    fn told_unsynced(&mut self, path: &Path, error: &io::Error) {
        self.unsynced = true;
        tracing::error!(
            path = %path.display(),
            %error,
            "what was found could not be synced: it is delivered as far as it is known to be durable, and nothing is accepted until the disk takes syncs again"
        );
    }
}

/// A sealed segment without frames, which says where positions go on.
fn begin_empty(host: &Host, dir: &Path, id: SegmentId, base: Position) -> Result<Segment, OpenError> {
    let header = SegmentHeader { id, base, created_ms: host.clock.wall_ms(), rewritten: false };
    let path = dir.join(id.file_name());
    let file = doing("creating", &path, host.files.create(&path))?;
    doing("writing", &path, file.append(&[&header.encode()]))?;
    let (index, frames_end) = (Index::Memory(ActiveIndex::default()), SEGMENT_HEADER_BYTES as u64);
    let segment = Segment::new(&header, path, Extent { end: base, frames_end, file_bytes: frames_end, index });
    doing("sealing", &segment.path, seal(&segment, file.as_ref(), header.created_ms))?;
    Ok(segment)
}

/// What a damaged header said, as far as the footer or the first frame tells it. The creation time is lost: a later one
/// stands in, so that events seem younger than they are, never older.
pub(super) fn header_from_content(host: &Host, file: &dyn File, id: SegmentId) -> io::Result<Option<SegmentHeader>> {
    if let Some((footer, _)) = Footer::read(file)? {
        let rewritten = footer.has_gaps();
        return Ok(Some(SegmentHeader { id, base: footer.base, created_ms: footer.last_ms, rewritten }));
    }
    let mut window = Window::new(file)?;
    let at = SEGMENT_HEADER_BYTES as u64;
    if window.len < at {
        return Ok(None);
    }
    let Some(len) = good_frame(&mut window, at)? else { return Ok(None) };
    let first = Frame::parse(window.at(at, len)?).expect("checked just now");
    Ok(Some(SegmentHeader { id, base: first.position(), created_ms: host.clock.wall_ms(), rewritten: false }))
}

/// Keeps damaged bytes for inspection. Best effort: recovery goes on without.
fn set_aside(host: &Host, file: &dyn File, aside_dir: &Path, id: SegmentId, offset: u64, len: u64) {
    let path = aside_dir.join(format!("damaged-{id}-{offset}.bin"));
    let kept = (|| {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset)?;
        host.files.create(&path)?.append(&[&bytes])
    })();
    match kept {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "damaged bytes could not be set aside"),
    }
}
