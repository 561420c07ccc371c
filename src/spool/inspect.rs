//! Looks into a spool's directory without changing it: segments, what is pending of them, events.
//!
//! Place: for `forebay spool`, and for the agent that is asked to replay; `verify.rs` checks everything. It decides
//! by the code that recovery uses (`recover::scan`, `index::Footer`), so what it shows is what a start would find.
//!
//! *READS-ONLY*: all goes through [`ReadOnly`], whose every way to change something is an error; no lock is taken. So
//! it works beside a running agent: the newest file grows while it is read (what was there at the first look counts),
//! a file that is gone when its turn comes was settled and removed, and is left out; one that is rewritten while it is
//! read is still read to its end as it was.
//!
//! Failure: the device's errors, another version, no spool. Damage is no failure: it is what one looks for.
//! Absent on purpose: printing, configuration, the admin listener; sled (marks are handed in).

pub mod verify;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cursor::frames::Frames;
use super::frame::Frame;
use super::index::{ActiveIndex, Entry, Footer};
use super::recover::{OpenError, Scan, Window, doing, header_from_content, scan, scan_rewritten};
use super::segment::{Extent, HeaderError, Index, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentId};
use super::{CODED_FORMAT_LINE, FORMAT_LINE, segments_dir};
use crate::checkpoint::Checkpoint;
use crate::event::{LANES, Lane, Position};
use crate::host::{CodingOf, File, Files, Host, Space};

/// Files that can be looked at only.
#[derive(Debug)]
pub struct ReadOnly(Arc<dyn Files>, Arc<AtomicU64>);

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the spool is only looked at"))
}

impl Files for ReadOnly {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Counted { file: self.0.open_read(path)?, read: Arc::clone(&self.1) }))
    }

    fn create(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.space(path)
    }
}

/// A file whose bytes are counted as they are read, for whoever shows progress.
#[derive(Debug)]
struct Counted {
    file: Arc<dyn File>,
    read: Arc<AtomicU64>,
}

impl File for Counted {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buf, offset)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }

    fn append(&self, _: &[&[u8]]) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn stored_len(&self) -> io::Result<u64> {
        self.file.stored_len()
    }

    fn coding(&self) -> Option<CodingOf> {
        self.file.coding()
    }

    fn flaws(&self) -> io::Result<Vec<String>> {
        self.file.flaws()
    }
}

/// Why a directory cannot be looked into.
#[derive(Debug)]
pub enum InspectError {
    /// There is no such directory.
    NoDirectory(PathBuf),
    /// There is one, and no spool in it.
    NotASpool(PathBuf),
    /// I/O, or another version.
    Open(OpenError),
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDirectory(dir) => write!(f, "there is no directory {}", dir.display()),
            Self::NotASpool(dir) => write!(
                f,
                "{} is no spool (it has no file `format`); a stream's spool is the directory with its name in spool.dir",
                dir.display()
            ),
            Self::Open(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InspectError {}

impl From<OpenError> for InspectError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// One spool's directory, opened for looking.
#[derive(Debug)]
pub struct SpoolDir {
    host: Host,
    dir: PathBuf,
    stream: String,
    read: Arc<AtomicU64>,
}

/// A segment file by its first bytes.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its id, from its name.
    pub id: SegmentId,
    /// The file.
    pub path: PathBuf,
    /// Its header, or what is wrong with it.
    pub header: Result<SegmentHeader, HeaderError>,
    /// The header to go by: its own, or what footer or first frame tell.
    pub assumed: Option<SegmentHeader>,
    /// Bytes of its content, which is what reading it takes.
    pub file_bytes: u64,
    /// Bytes that it takes on the disk.
    pub stored_bytes: u64,
    /// How it lies there.
    pub coding: Option<CodingOf>,
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// With an index that checks.
    Sealed,
    /// The newest, without an index: being written, or left by a kill.
    Active,
    /// An older one without an index that checks; the next start makes it.
    Unsealed,
}

/// A segment with what it holds.
#[derive(Debug)]
pub struct Seen {
    /// Position, extent and index, as a start would know them.
    pub segment: Segment,
    /// How it ends.
    pub state: State,
    /// What was settled of it was left out, and its positions have gaps.
    pub rewritten: bool,
    /// Good frames.
    pub events: u64,
    /// Wall clock of the last frame, ms; `None` without frames.
    pub last_ms: Option<u64>,
    /// Positions between base and end that no good frame has, and a damaged header.
    pub damage: u64,
    /// The header is damaged.
    pub header_damaged: bool,
    /// Bytes that the file takes on the disk.
    pub file_bytes: u64,
    /// How it lies there; `None`: as it is.
    pub coding: Option<CodingOf>,
}

/// What is pending of a segment. Bytes and the oldest are counted only where lanes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// Events at or past their lane's mark.
    pub events: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// The first of them: position and receipt time, wall clock ms.
    pub oldest: Option<(Position, u64)>,
}

/// Which events are wanted.
#[derive(Clone, Debug)]
pub struct Select {
    /// From this position on.
    pub from: Position,
    /// Up to, not including, this one.
    pub to: Position,
    /// Received at or after this wall clock, ms.
    pub from_ms: Option<u64>,
    /// Received before this wall clock, ms.
    pub to_ms: Option<u64>,
    /// With this key.
    pub key: Option<String>,
    /// At or past their lane's mark.
    pub pending: Option<Box<[Position; LANES]>>,
}

impl Default for Select {
    fn default() -> Self {
        Self { from: Position(0), to: Position(u64::MAX), from_ms: None, to_ms: None, key: None, pending: None }
    }
}

/// An event that was met.
#[derive(Clone, Copy, Debug)]
pub struct Met<'a> {
    /// Its frame.
    pub frame: Frame<'a>,
    /// When it was received, wall clock ms.
    pub time_ms: u64,
    /// Its file.
    pub segment: SegmentId,
}

/// What a walk came through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Events that were handed out.
    pub events: u64,
    /// Positions in the files that were read whose events are damaged or gone.
    pub damaged: u64,
    /// Position after the last frame that was looked at.
    pub next: Position,
}

impl SpoolDir {
    /// Opens the spool in `dir`.
    ///
    /// # Errors
    /// [`InspectError`].
    pub fn open(host: &Host, dir: &Path) -> Result<Self, InspectError> {
        let read = Arc::<AtomicU64>::default();
        let host = Host { files: Arc::new(ReadOnly(Arc::clone(&host.files), Arc::clone(&read))), ..host.clone() };
        let names = match host.files.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(InspectError::NoDirectory(dir.into())),
            other => doing("listing", dir, other)?,
        };
        if !names.iter().any(|name| name == "format") {
            return Err(InspectError::NotASpool(dir.into()));
        }
        let path = dir.join("format");
        let file = doing("opening", &path, host.files.open(&path))?;
        let mut bytes = vec![0; doing("reading", &path, file.len())?.min(4096) as usize];
        doing("reading", &path, file.read_exact_at(&mut bytes, 0))?;
        let text = String::from_utf8_lossy(&bytes);
        let stream = match text.split_once('\n') {
            Some((FORMAT_LINE | CODED_FORMAT_LINE, rest)) => rest.trim().trim_start_matches("stream ").to_owned(),
            Some((first, _)) if first.starts_with("forebay spool") => {
                return Err(OpenError::OtherVersion { found: format!("{}: {first:?}", path.display()) }.into());
            }
            _ => return Err(InspectError::NotASpool(dir.into())),
        };
        Ok(Self { host, dir: dir.to_owned(), stream, read })
    }

    /// The same spool, its files as `host` has them: with the keys to read them, which who opens it first may not know.
    #[must_use]
    pub fn through(self, host: &Host) -> Self {
        let files = Arc::new(ReadOnly(Arc::clone(&host.files), Arc::clone(&self.read)));
        Self { host: Host { files, ..host.clone() }, ..self }
    }

    /// The stream whose events it holds.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Counts the bytes that were read so far; shared, so that another thread can show it.
    #[must_use]
    pub fn bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read)
    }

    /// All segment files, oldest first.
    ///
    /// # Errors
    /// The device's.
    pub fn heads(&self) -> Result<Vec<Head>, OpenError> {
        let dir = segments_dir(&self.dir);
        let names = match self.host.files.list(&dir) {
            // A first start that came no further.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => doing("listing", &dir, other)?,
        };
        let mut heads = Vec::new();
        for id in names.iter().filter_map(|name| SegmentId::of_file_name(name)) {
            let path = dir.join(id.file_name());
            match self.head(id, &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => heads.push(doing("reading", &path, other)?),
            }
        }
        Ok(heads)
    }

    fn head(&self, id: SegmentId, path: &Path) -> io::Result<Head> {
        Ok(self.open_segment(id, path)?.1)
    }

    /// Opens a segment. What is read of it through this one handle belongs together, whatever takes its name meanwhile.
    fn open_segment(&self, id: SegmentId, path: &Path) -> io::Result<(Arc<dyn File>, Head)> {
        let file = self.host.files.open(path)?;
        let file_bytes = file.len()?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let held = file_bytes.min(SEGMENT_HEADER_BYTES as u64) as usize;
        file.read_exact_at(&mut bytes[..held], 0)?;
        let header = match SegmentHeader::decode(&bytes[..held]) {
            Ok(header) if header.id != id => Err(HeaderError::Damaged),
            other => other,
        };
        let assumed = match header {
            Ok(header) => Some(header),
            Err(HeaderError::Damaged) => header_from_content(&self.host, file.as_ref(), id)?,
            Err(HeaderError::OtherVersion { .. }) => None,
        };
        let (stored_bytes, coding) = (file.stored_len()?, file.coding());
        Ok((file, Head { id, path: path.to_owned(), header, assumed, file_bytes, stored_bytes, coding }))
    }

    /// The position at which the file after the one numbered `at` begins.
    fn stop(heads: &[Head], at: usize) -> Position {
        heads[at + 1..].iter().find_map(|head| head.assumed).map_or(Position(u64::MAX), |header| header.base)
    }

    fn refuse_other_versions(heads: &[Head]) -> Result<(), OpenError> {
        for head in heads {
            if let Err(HeaderError::OtherVersion { version, flags }) = head.header {
                let found = format!("{}: segment version {version}, flags {flags}", head.path.display());
                return Err(OpenError::OtherVersion { found });
            }
        }
        Ok(())
    }

    /// What each segment holds, and what is alive of it by `known`: its marks, and what they know to be durable. Sealed
    /// segments cost 8 KiB of reading, others are scanned; with `lanes`, to which each lane's pending events are added,
    /// the bytes that are alive are counted as well, which costs their indexes.
    ///
    /// # Errors
    /// The device's, and segments of another version.
    pub fn segments(
        &self,
        heads: &[Head],
        known: &Checkpoint,
        mut lanes: Option<&mut [u64; LANES]>,
    ) -> Result<Vec<(Seen, Alive)>, OpenError> {
        Self::refuse_other_versions(heads)?;
        let mut seen = Vec::new();
        for (at, head) in heads.iter().enumerate() {
            let (stop, last) = (Self::stop(heads, at), at + 1 == heads.len());
            match self.segment(head, stop, last, known, lanes.as_deref_mut()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => seen.extend(doing("reading", &head.path, other)?),
            }
        }
        Ok(seen)
    }

    fn segment(
        &self,
        head: &Head,
        stop: Position,
        last: bool,
        known: &Checkpoint,
        lanes: Option<&mut [u64; LANES]>,
    ) -> io::Result<Option<(Seen, Alive)>> {
        let (file, head) = self.open_segment(head.id, &head.path)?;
        let Some(header) = head.assumed else { return Ok(None) };
        let file_bytes = head.stored_bytes;
        let sealed = Footer::read(file.as_ref())?.filter(|(footer, _)| footer.base == header.base && footer.end <= stop);
        let (state, events, last_ms, extent) = match sealed {
            Some((footer, directory)) => {
                let (end, frames_end) = (footer.end, footer.frames_end);
                let index = Index::Sealed(footer, Arc::new(directory));
                let last_ms = (footer.frames > 0).then_some(footer.last_ms);
                (State::Sealed, u64::from(footer.frames), last_ms, Extent { end, frames_end, file_bytes, index })
            }
            None => {
                let found = scan_segment(file.as_ref(), &header, stop, known.durable, !last)?;
                let events = found.index.len() as u64;
                let last_ms = (events > 0).then(|| header.created_ms + u64::from(found.last_time_ms));
                let state = if last { State::Active } else { State::Unsealed };
                (state, events, last_ms, extent_of(found, file_bytes))
            }
        };
        let missing = (extent.end.0 - header.base.0).saturating_sub(events);
        let damage = if header.rewritten { 0 } else { missing };
        let rewritten = header.rewritten;
        let segment = Segment::new(&header, head.path.clone(), extent);
        let alive = alive(file.as_ref(), &segment, &known.marks, lanes)?;
        let header_damaged = head.header.is_err();
        let coding = head.coding;
        Ok(Some((Seen { segment, state, rewritten, events, last_ms, damage, header_damaged, file_bytes, coding }, alive)))
    }

    /// Hands out the wanted events in the order of their positions, until `on` breaks off. What a start would take for
    /// damage or a torn tail is passed over; files that are removed meanwhile are left out.
    ///
    /// # Errors
    /// The device's, segments of another version, and what `on` answers.
    pub fn walk<E: From<OpenError>>(
        &self,
        select: &Select,
        durable: Position,
        mut on: impl FnMut(&Met<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Walked, E> {
        let heads = self.heads()?;
        Self::refuse_other_versions(&heads)?;
        let mut walked = Walked { next: select.from, ..Walked::default() };
        for (at, head) in heads.iter().enumerate() {
            let stop = Self::stop(&heads, at);
            let Some(header) = head.assumed.filter(|header| header.base < select.to && stop > select.from) else { continue };
            let last = at + 1 == heads.len();
            // No frame is older than its file; that none is younger than its end cannot be said, since clocks jump.
            if select.to_ms.is_some_and(|to_ms| header.created_ms >= to_ms) {
                continue;
            }
            let (file, found) = match self.entries(head, stop, last, durable) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => doing("reading", &head.path, other)?,
            };
            walked.damaged += found.damaged_events;
            let mut window = doing("reading", &head.path, Window::new(file.as_ref()))?;
            for (lane, relative, entry) in found.index.entries() {
                let position = Position(header.base.0 + u64::from(*relative));
                if position >= select.to {
                    break;
                }
                if position < select.from || select.pending.as_ref().is_some_and(|marks| position < marks[lane.index()]) {
                    continue;
                }
                let bytes = doing("reading", &head.path, window.at(u64::from(entry.offset), entry.len as usize))?;
                let Some(frame) = Frame::check(bytes) else { continue };
                walked.next = Position(position.0 + 1);
                let met = Met { frame, time_ms: header.created_ms + u64::from(frame.time_ms()), segment: head.id };
                let wanted = select.from_ms.is_none_or(|from_ms| met.time_ms >= from_ms)
                    && select.to_ms.is_none_or(|to_ms| met.time_ms < to_ms)
                    && select.key.as_ref().is_none_or(|key| frame.key_bytes() == key.as_bytes());
                if !wanted {
                    continue;
                }
                walked.events += 1;
                if on(&met)?.is_break() {
                    return Ok(walked);
                }
            }
        }
        Ok(walked)
    }

    fn entries(&self, head: &Head, stop: Position, last: bool, durable: Position) -> io::Result<(Arc<dyn File>, Scan)> {
        let (file, now) = self.open_segment(head.id, &head.path)?;
        let header = now.assumed.or(head.assumed).ok_or(io::ErrorKind::NotFound)?;
        let sealed = Footer::read(file.as_ref())?.filter(|(footer, _)| footer.base == header.base && footer.end <= stop);
        let stop = sealed.as_ref().map_or(stop, |(footer, _)| footer.end);
        let found = scan_segment(file.as_ref(), &header, stop, durable, !last || sealed.is_some())?;
        Ok((file, found))
    }
}

/// Events of a segment at or past their lane's mark: what `status` counts as pending, as of these marks.
fn alive(
    file: &dyn File,
    segment: &Segment,
    marks: &[Position; LANES],
    mut lanes: Option<&mut [u64; LANES]>,
) -> io::Result<Alive> {
    let mut alive = Alive::default();
    if segment.covered_by(marks) {
        return Ok(alive);
    }
    let directory = segment.directory();
    let inside = |lane: Lane| {
        // Whole lanes are in the directory; where the mark lies inside, the frames themselves tell their positions.
        directory.last_relative(lane).is_some_and(|last| segment.base.0 + u64::from(last) >= marks[lane.index()].0)
            && (lanes.is_some() || marks[lane.index()] > segment.base)
    };
    let wanted: Vec<bool> = (0..LANES as u16).map(|lane| inside(Lane(lane))).collect();
    let frames = Frames { segment, file };
    let mut of_lane: Vec<Vec<(Lane, Entry)>> = vec![Vec::new(); LANES];
    if wanted.contains(&true) {
        for (lane, entry) in frames.of_lanes(Lane(0), Lane(LANES as u16 - 1))? {
            if wanted[lane.index()] {
                of_lane[lane.index()].push((lane, entry));
            }
        }
    }
    let mut first: Option<Entry> = None;
    for lane in (0..LANES as u16).map(Lane) {
        let (mark, entries) = (marks[lane.index()], &of_lane[lane.index()]);
        if !wanted[lane.index()] {
            if mark <= segment.base {
                alive.events += u64::from(directory.count(lane));
            }
            continue;
        }
        let settled = if mark > segment.base { frames.before(mark, entries)? } else { 0 };
        let alive_here = &entries[settled..];
        let events = alive_here.len() as u64;
        alive.events += events;
        alive.bytes += alive_here.iter().map(|(_, entry)| u64::from(entry.len)).sum::<u64>();
        if let Some(lanes) = &mut lanes {
            lanes[lane.index()] += events;
        }
        if let Some((_, entry)) = alive_here.first()
            && first.is_none_or(|held| entry.offset < held.offset)
        {
            first = Some(*entry);
        }
    }
    if let (Some(entry), true) = (first, lanes.is_some()) {
        let mut bytes = vec![0; entry.len as usize];
        file.read_exact_at(&mut bytes, u64::from(entry.offset))?;
        alive.oldest = Frame::check(&bytes).map(|frame| (frame.position(), segment.created_ms + u64::from(frame.time_ms())));
    }
    Ok(alive)
}

/// Walks the frames of one segment as recovery would.
fn scan_segment(
    file: &dyn File,
    header: &SegmentHeader,
    stop: Position,
    durable: Position,
    sealed_off: bool,
) -> io::Result<Scan> {
    if header.rewritten {
        return scan_rewritten(file, header.base, stop);
    }
    scan(file, header.base, stop, durable, sealed_off)
}

/// What is known of a segment that was scanned.
fn extent_of(found: Scan, file_bytes: u64) -> Extent {
    Extent { end: found.end, frames_end: found.frames_end, file_bytes, index: Index::Memory(found.index) }
}

/// The directory that these frames should have: what is on disk is compared with it.
fn index_of(entries: &[(Lane, u32, Entry)]) -> ActiveIndex {
    let mut index = ActiveIndex::default();
    for (lane, relative, entry) in entries {
        index.push(*lane, *relative, *entry);
    }
    index
}
