//! Checks everything of a spool: headers, frames, indexes, the density of positions, the marks, the balance.
//!
//! Place: `forebay spool verify`. Each frame's checksum is computed; what a segment's index says is compared with the
//! frames themselves, both ways; where a segment ends is compared with where the next begins; the marks and the
//! account with what is in the files. Each [`Finding`] says where, which positions, what it means for events, and
//! what to do.
//!
//! What is known is told apart from what is new: bytes that a start found damaged are missing in the index that it
//! then wrote, and were counted as dead. They stay a [`Level::Note`]. Only [`Level::Error`] makes a spool bad.
//!
//! Beside a running agent: marks are read before the files (what they call durable must be there) and again behind
//! them (what was removed meanwhile must be settled by then); the newest file's end is left alone.

mod finding;
mod whole;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use self::finding::events;
pub use self::finding::{Finding, Kind, Level};
use super::{Head, SpoolDir, alive, extent_of, index_of, scan_segment};
use crate::checkpoint::Checkpoint;
use crate::event::{Lane, Position};
use crate::host::File;
use crate::metrics::Account;
use crate::spool::index::{DIRECTORY_BYTES, Directory, Ending, Entry, FOOTER_BYTES, Footer};
use crate::spool::recover::{OpenError, Scan, doing};
use crate::spool::segment::{Extent, HeaderError, Index, SEGMENT_HEADER_BYTES, Segment, SegmentHeader};

/// The marks to compare with.
#[derive(Clone, Debug, Default)]
pub struct KnownMarks {
    /// The last saved checkpoint, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// The agent's account of the same moment, where one runs.
    pub account: Option<Account>,
    /// Why the marks that are there cannot be read.
    pub unreadable: Option<String>,
    /// An agent works on this spool.
    pub live: bool,
}

/// What was checked, and found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Nothing is wrong.
    pub good: bool,
    /// Segment files.
    pub segments: u64,
    /// Good frames.
    pub events: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Where positions go on: what was ever accepted.
    pub accepted: u64,
    /// Events at or past their lane's mark; `None` without marks.
    pub pending: Option<u64>,
    /// All that was found, in the order of files and offsets.
    pub findings: Vec<Finding>,
}

/// A segment as far as its neighbours and the account need it.
#[derive(Debug)]
struct Checked {
    at: usize,
    base: Position,
    end: Position,
    sealed: bool,
    directory: Arc<Directory>,
}

struct Verifier<'a> {
    spool: &'a SpoolDir,
    heads: Vec<Head>,
    before: KnownMarks,
    findings: Vec<Finding>,
    checked: Vec<Checked>,
    events: u64,
    pending: u64,
    removed: bool,
}

impl SpoolDir {
    /// Checks everything. `before` are the marks as they were before this call, `after` fetches them once more.
    ///
    /// # Errors
    /// The device's.
    pub fn verify(&self, before: KnownMarks, after: impl FnOnce() -> KnownMarks) -> Result<Verified, OpenError> {
        let started = self.read.load(Ordering::Relaxed);
        let heads = self.heads()?;
        let mut verifier = Verifier {
            spool: self,
            heads,
            before,
            findings: Vec::new(),
            checked: Vec::new(),
            events: 0,
            pending: 0,
            removed: false,
        };
        for at in 0..verifier.heads.len() {
            match verifier.segment(at) {
                // Settled and removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => verifier.removed = true,
                other => doing("reading", &verifier.heads[at].path, other)?,
            }
        }
        let next = verifier.next();
        let after = if verifier.before.live { after() } else { verifier.before.clone() };
        verifier.neighbours(&after);
        verifier.marks(next);
        verifier.balance(next, &after);
        let accepted = next.max(verifier.durable()).0;
        let pending = verifier.before.checkpoint.is_some().then_some(verifier.pending);
        let segments = verifier.heads.len() as u64;
        let Verifier { findings, events, .. } = verifier;
        Ok(Verified {
            good: findings.iter().all(|finding| finding.level < Level::Error),
            segments,
            events,
            bytes: self.read.load(Ordering::Relaxed) - started,
            accepted,
            pending,
            findings,
        })
    }
}

impl Verifier<'_> {
    fn next(&self) -> Position {
        self.checked.last().map_or(Position(0), |last| last.end)
    }

    fn durable(&self) -> Position {
        self.before.checkpoint.as_ref().map_or(Position(0), |checkpoint| checkpoint.durable)
    }

    fn find(&mut self, level: Level, kind: Kind, at: usize, what: String) -> &mut Finding {
        let file = self.heads[at].path.clone();
        self.find_in(level, kind, file, what)
    }

    fn find_in(&mut self, level: Level, kind: Kind, file: PathBuf, what: String) -> &mut Finding {
        let (means, remedy) = (String::new(), String::new());
        self.findings.push(Finding { level, kind, file, offset: None, bytes: None, positions: None, what, means, remedy });
        self.findings.last_mut().expect("pushed just now")
    }

    fn segment(&mut self, at: usize) -> io::Result<()> {
        let last = at + 1 == self.heads.len();
        let stop = SpoolDir::stop(&self.heads, at);
        // It may have been rewritten since it was listed.
        let (file, head) = self.spool.open_segment(self.heads[at].id, &self.heads[at].path)?;
        for flaw in file.flaws()? {
            self.find(Level::Error, Kind::Coding, at, flaw)
                .means("the events in content that is lost are told below, one by one; a header that stands twice costs nothing")
                .remedy("none brings them back; the agent makes dead letters of them and goes on. Look at the disk's health");
        }
        let ending = Footer::look(file.as_ref())?;
        if let Err(HeaderError::OtherVersion { version, flags }) = head.header {
            let what = format!("the segment has version {version} and flags {flags}, which this program does not read");
            self.find(Level::Error, Kind::OtherVersion, at, what)
                .means("its events cannot be judged; nothing is known to be wrong with them")
                .remedy("use the version of forebay that wrote it")
                .offset = Some(8);
            return Ok(());
        }
        let Some(header) = head.assumed else {
            let lost = "the header is damaged, and neither a footer nor a first frame tells what the file holds".to_owned();
            let level = if last && head.file_bytes <= SEGMENT_HEADER_BYTES as u64 { Level::Note } else { Level::Error };
            self.find(level, Kind::Header, at, lost)
                .means("the next start sets the file aside; if it was the newest, its first group was torn and had no receipt")
                .remedy("keep the file (dead/unreadable-… after a start) if it is larger than a torn group can be")
                .at(0, head.file_bytes);
            return Ok(());
        };
        if head.header.is_err() {
            self.find(Level::Error, Kind::Header, at, "the header does not check, or is another file's".to_owned())
                .means("no event is lost: position and end are told by the footer or the first frame; times of its events are shown too late")
                .remedy("none is needed; the file goes when its events are settled. Look at the disk's health")
                .at(0, SEGMENT_HEADER_BYTES as u64);
        }
        // An index to go by is one that agrees with its neighbours.
        let footer = match &ending {
            Ending::Whole(footer, _) | Ending::DirectoryDamaged(footer) if footer.base == header.base && footer.end <= stop => {
                Some(*footer)
            }
            _ => None,
        };
        let limit = footer.map_or(stop, |footer| footer.end);
        let found = scan_segment(file.as_ref(), &header, limit, self.durable(), !last || footer.is_some())?;
        self.events += found.index.len() as u64;
        match (&ending, footer) {
            (Ending::Whole(_, directory), Some(footer)) => {
                self.index(at, file.as_ref(), &header, &footer, directory, &found)?;
            }
            (Ending::DirectoryDamaged(_), Some(footer)) => {
                self.find(Level::Error, Kind::Directory, at, "the directory of the index does not check".to_owned())
                    .means("no event is lost: the next start makes the index anew from the frames")
                    .remedy("restart the agent when convenient; look at the disk's health")
                    .at(footer.frames_end, DIRECTORY_BYTES as u64);
                self.damage(at, &header, &found, Some(&footer), &BTreeMap::new());
            }
            _ => {
                self.damage(at, &header, &found, None, &BTreeMap::new());
                self.unsealed(at, &header, &ending, &found, file.as_ref(), stop)?;
            }
        }
        let end = footer.map_or(found.end, |footer| footer.end);
        let file_bytes = head.stored_bytes;
        let (directory, extent) = match (ending, footer) {
            (Ending::Whole(_, directory), Some(footer)) => {
                let directory = Arc::new(directory);
                let index = Index::Sealed(footer, Arc::clone(&directory));
                (directory, Extent { end, frames_end: footer.frames_end, file_bytes, index })
            }
            _ => (Arc::new(found.index.directory()), extent_of(found, file_bytes)),
        };
        if let Some(checkpoint) = &self.before.checkpoint {
            let segment = Segment::new(&header, head.path.clone(), extent);
            self.pending += alive(file.as_ref(), &segment, &checkpoint.marks, None)?.events;
        }
        self.checked.push(Checked { at, base: header.base, end, sealed: footer.is_some(), directory });
        Ok(())
    }

    /// Compares an index whose footer and directory check with the frames.
    fn index(
        &mut self,
        at: usize,
        file: &dyn File,
        header: &SegmentHeader,
        footer: &Footer,
        directory: &Directory,
        found: &Scan,
    ) -> io::Result<()> {
        let entries_at = footer.frames_end + DIRECTORY_BYTES as u64;
        if !footer.entries_check(file)? {
            self.find(Level::Error, Kind::Entries, at, "the entries of the index do not check".to_owned())
                .means("no event is lost: a reader makes the index anew from the frames when it needs it")
                .remedy("restart the agent when convenient; look at the disk's health")
                .at(entries_at, u64::from(footer.frames) * 8);
            self.damage(at, header, found, Some(footer), &BTreeMap::new());
            return Ok(());
        }
        let mut listed: BTreeMap<u64, (Lane, Entry)> = BTreeMap::new();
        let mut lane = Lane(0);
        for (number, entry) in (0..).zip(footer.read_entries(file, 0, footer.frames)?) {
            while directory.end(lane) <= number {
                lane = Lane(lane.0 + 1);
            }
            listed.insert(u64::from(entry.offset), (lane, entry));
        }
        let (mut wrong, mut unlisted, mut first_at) = (0u64, 0u64, None);
        for (lane, _, entry) in found.index.entries() {
            match listed.remove(&u64::from(entry.offset)) {
                Some(named) if named == (*lane, *entry) => continue,
                Some(_) => wrong += 1,
                None => unlisted += 1,
            }
            first_at.get_or_insert(u64::from(entry.offset));
        }
        if wrong + unlisted > 0 {
            let what = format!(
                "the index disagrees with the frames: {wrong} stand under another lane or length, {unlisted} are not listed"
            );
            self.find(Level::Error, Kind::Entries, at, what)
                .means("these events are not found by a shard that reads its own lanes: they may stay unsent though they are good")
                .remedy("stop the agent, move the index away by cutting the file at the given offset, start it: the index is made anew. Report it: the disk did not do this")
                .at(footer.frames_end, 0)
                .what
                .push_str(&format!("; the first at byte {}", first_at.unwrap_or_default()));
        }
        // What is left was listed and is no good frame now: damage that came after the file was sealed.
        let damaged_now = !listed.is_empty();
        self.damage(at, header, found, Some(footer), &listed);
        if !damaged_now && wrong + unlisted == 0 && index_of(found.index.entries()).directory() != *directory {
            self.find(Level::Error, Kind::Directory, at, "the directory's last positions are not those of the frames".to_owned())
                .means("the file may be removed too early, or kept for ever")
                .remedy("stop the agent and cut the index off at the given offset; report it: the disk did not do this")
                .at(footer.frames_end, DIRECTORY_BYTES as u64);
        }
        Ok(())
    }

    /// Tells the stretches between good frames that are none, and positions that are skipped without any. `listed` are
    /// the frames that the index knows and the scan does not.
    fn damage(
        &mut self,
        at: usize,
        header: &SegmentHeader,
        found: &Scan,
        footer: Option<&Footer>,
        listed: &BTreeMap<u64, (Lane, Entry)>,
    ) {
        let gaps_are_good = header.rewritten;
        let mut next = (header.base, SEGMENT_HEADER_BYTES as u64);
        let frames = found.index.entries().iter().map(|(_, relative, entry)| {
            (Position(header.base.0 + u64::from(*relative)), u64::from(entry.offset), u64::from(entry.len))
        });
        let mut stretches = Vec::new();
        for (position, offset, len) in frames {
            if offset > next.1 || (position > next.0 && !gaps_are_good) {
                stretches.push((next, (position, offset)));
            }
            next = (Position(position.0 + 1), offset + len);
        }
        if let Some(footer) = footer
            && (footer.frames_end > next.1 || (footer.end > next.0 && !gaps_are_good))
        {
            stretches.push((next, (footer.end, footer.frames_end)));
        }
        for ((from, start), (to, end)) in stretches {
            let positions = (to > from).then_some([from.0, to.0]);
            // Of a rewritten file positions do not tell how many were there.
            let between = to.0 - from.0;
            let new: Vec<String> = listed.range(start..end.max(start + 1)).map(|(_, (lane, _))| lane.0.to_string()).collect();
            if end == start {
                let known = footer.is_some() && listed.is_empty();
                let what = format!("positions jump by {between} between two whole frames");
                let finding = self.find(if known { Level::Note } else { Level::Error }, Kind::Positions, at, what);
                finding.at(start, 0).positions = positions;
                finding
                    .means("events of these positions are not in this file; a start counts them as dead")
                    .remedy("none; if no start has reported damage here, report it");
            } else if footer.is_some() && new.is_empty() && listed.is_empty() && self.entries_were_good(at) {
                let finding = self.find(
                    Level::Note,
                    Kind::Frame,
                    at,
                    "bytes between frames that are no frame, known since an earlier start".to_owned(),
                );
                finding.at(start, end - start).positions = positions;
                finding.means("the events were counted as dead then, and their bytes set aside in dead/").remedy("none");
            } else {
                let mut what = "a frame does not check".to_owned();
                if !new.is_empty() {
                    what = format!(
                        "{} of lane {} not check",
                        if new.len() == 1 { "a frame" } else { "frames" },
                        new.join(", ") + if new.len() == 1 { " does" } else { " do" }
                    );
                }
                let lost = if new.is_empty() && !gaps_are_good { between } else { (new.len() as u64).max(1) };
                let finding = self.find(Level::Error, Kind::Frame, at, what);
                finding.at(start, end - start).positions = positions;
                finding
                    .means(&format!("{}, if not settled yet, counted as dead when met; what follows is read", events(lost)))
                    .remedy("a copy of the file from before, put in its place while the agent is stopped, brings them back; look at the disk's health");
            }
        }
    }

    /// No finding yet says that the entries of this segment's index are bad.
    fn entries_were_good(&self, at: usize) -> bool {
        let path = &self.heads[at].path;
        !self.findings.iter().any(|finding| {
            finding.file == *path && matches!(finding.kind, Kind::Entries | Kind::Directory) && finding.level == Level::Error
        })
    }

    /// A file without an index to go by: the newest, one that a kill left, or a damaged one.
    fn unsealed(
        &mut self,
        at: usize,
        header: &SegmentHeader,
        ending: &Ending,
        found: &Scan,
        file: &dyn File,
        stop: Position,
    ) -> io::Result<()> {
        let last = at + 1 == self.heads.len();
        let live = self.before.live;
        if last && live {
            // Being written, or sealed just now.
            return Ok(());
        }
        let tail = file.len()?.saturating_sub(found.frames_end);
        let index_bytes = (DIRECTORY_BYTES + FOOTER_BYTES + found.index.len() * 8) as u64;
        let footer_damaged = *ending == Ending::FooterDamaged || tail == index_bytes;
        if footer_damaged {
            let len = self.heads[at].file_bytes;
            self.find(Level::Error, Kind::Footer, at, "the footer of the index does not check".to_owned())
                .means("no event is lost by it: the next start makes the index anew from the frames")
                .remedy("restart the agent when convenient; look at the disk's health")
                .at(len.saturating_sub(FOOTER_BYTES as u64), FOOTER_BYTES as u64);
        }
        let neighbour = self.heads.get(at + 1).is_some_and(|next| next.id == self.heads[at].id.next());
        let expected = match (last, neighbour) {
            (true, _) => self.durable(),
            (false, true) if !header.rewritten => stop,
            _ => found.end,
        };
        if found.end < expected && expected.0 < u64::MAX {
            let lost = expected.0 - found.end.0;
            let than = if last { "what the marks know" } else { "the next file begins" };
            let what = format!("the file ends {} before {than}", events(lost));
            let finding = self.find(Level::Error, Kind::Truncated, at, what);
            finding.at(found.frames_end, tail).positions = Some([found.end.0, expected.0]);
            finding
                .means("these events were receipted; those of them that are not settled yet are lost, and the next start counts them as dead")
                .remedy("a copy of the file from before, put in its place while the agent is stopped, brings them back");
        } else if tail > 0 && !footer_damaged {
            let (what, means) = if last {
                (
                    "bytes behind the last good frame",
                    "a group that a kill or a power cut tore before anybody had a receipt for it; a bit that the disk flipped in \
                     the newest group looks the same, and then there were receipts",
                )
            } else {
                (
                    "bytes behind the last frame that counts",
                    "a group whose write failed, and which was written again to the next file",
                )
            };
            let finding = self.find(Level::Note, Kind::TornTail, at, what.to_owned());
            finding.at(found.frames_end, tail).means(means).remedy("none; the next start cuts them off");
        }
        if !last && !footer_damaged && tail == 0 {
            self.find(Level::Note, Kind::NoIndex, at, "the segment has no index, though newer ones exist".to_owned())
                .means("nothing is lost: after an error of the disk a file is left as it is, and its index is kept in memory")
                .remedy("none; the next start writes it")
                .at(found.frames_end, 0);
        }
        Ok(())
    }
}
