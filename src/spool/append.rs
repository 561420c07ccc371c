//! A stopped agent's spool, opened to append to it as that agent would.
//!
//! Place: `forebay spool replay` (`replay.rs`) and `forebay dead retry` take events in again where no agent runs. It does
//! what a start does, in the same order and under the same lock: format, marks, recovery, the account of what recovery
//! found; then commits through the [`Writer`], each group durable when [`Appender::commit`] returns; at the end it seals.
//!
//! Owner: whoever holds the directory's lock, which opening asks to see. *EXACT-ACCOUNT*: what recovery finds damaged it
//! finds once, so it is counted and saved before anything is appended. *LOSABLE*: without marks nothing is saved, because
//! marks that know nothing of what was delivered would pass for ones that do; the agent's next start then sends all again.
//!
//! Failure: [`AppendError`]; what was committed before it stays. Absent on purpose: dead letters, choosing, asking.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::commit::Writer;
use super::recover::{OpenError, doing};
use super::segment::SegmentTable;
use super::{SpoolOptions, open, prepare};
use crate::checkpoint::{Checkpoint, MarkStore as _, SledMarks, StoreError};
use crate::event::Position;
use crate::host::{self, DirLock, Host};
use crate::metrics::StreamMetrics;

/// Why nothing more was appended.
#[derive(Debug)]
pub enum AppendError {
    /// The spool cannot be opened.
    Open(OpenError),
    /// The store of the marks cannot be written.
    Marks(StoreError),
    /// There are no marks, and the caller wanted some.
    NoMarks,
    /// The spool would grow over its ceiling, bytes.
    Full(u64),
    /// A commit failed: the device's words.
    Commit(io::Error),
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Marks(error) => write!(f, "the store of the marks: {error}"),
            Self::NoMarks => f.write_str("the marks of what was delivered are lost"),
            Self::Full(max_bytes) => write!(f, "the spool would grow over spool.max_bytes ({max_bytes} bytes)"),
            Self::Commit(error) => write!(f, "writing to the spool: {error}"),
        }
    }
}

impl std::error::Error for AppendError {}

impl From<OpenError> for AppendError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<StoreError> for AppendError {
    fn from(error: StoreError) -> Self {
        Self::Marks(error)
    }
}

/// What to do where the marks are lost, or there never were any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutMarks {
    /// [`AppendError::NoMarks`], before recovery touches anything.
    Refuse,
    /// Append all the same. No marks are made up.
    GoOn,
}

/// Takes the lock of a stopped agent's spool. Whoever holds it is the only one who may write there.
///
/// # Errors
/// The file system's; [`OpenError::Locked`] while an agent runs, or another tool.
pub fn lock(options: &SpoolOptions) -> Result<DirLock, OpenError> {
    let path = options.dir.join("lock");
    doing("locking", &path, host::lock(&path))?.ok_or_else(|| OpenError::Locked { path: path.display().to_string() })
}

/// The spool, open. [`Appender::close`] ends it; one that is dropped instead leaves what a kill of an agent leaves.
#[derive(Debug)]
pub struct Appender {
    writer: Writer,
    table: Arc<SegmentTable>,
    max_bytes: u64,
    /// The marks as they were found, with the end as it is now.
    marks: Option<(SledMarks, Checkpoint)>,
}

impl Appender {
    /// Opens the spool, whose lock is held.
    ///
    /// # Errors
    /// [`AppendError`], but never `Full` or `Commit`.
    pub fn open(host: &Host, options: &SpoolOptions, _lock: &DirLock, without: WithoutMarks) -> Result<Self, AppendError> {
        prepare(host, options)?;
        let mut store = SledMarks::open(&options.dir.join("ledger"));
        let loaded = store.load();
        if loaded.is_none() && without == WithoutMarks::Refuse {
            return Err(AppendError::NoMarks);
        }
        let durable = loaded.as_ref().map_or(Position(0), |checkpoint| checkpoint.durable);
        let opened = open(host, options, durable, &Arc::<StreamMetrics>::default())?;
        let marks = match loaded {
            Some(loaded) => {
                // The next opening will not find again what this one found damaged.
                let dead = loaded.dead + opened.damaged_events;
                let checkpoint = Checkpoint { durable: opened.writer.next(), dead, ..loaded };
                store.save(&checkpoint)?;
                Some((store, checkpoint))
            }
            None => None,
        };
        let table = Arc::clone(&opened.handle.shared().table);
        Ok(Self { writer: opened.writer, table, max_bytes: options.max_bytes, marks })
    }

    /// The position that the next event gets.
    #[must_use]
    pub fn next(&self) -> Position {
        self.writer.next()
    }

    /// Makes `events` events durable, given as frames by [`frame::encode`](super::frame::encode); tells the first one's
    /// position.
    ///
    /// # Errors
    /// `Full` before anything is written, `Commit`; none of these events counts then.
    pub fn commit(&mut self, frames: Vec<u8>, events: u64) -> Result<Position, AppendError> {
        if self.table.bytes() + self.writer.cost(events, frames.len() as u64) > self.max_bytes {
            return Err(AppendError::Full(self.max_bytes));
        }
        let first = self.writer.next();
        self.writer.commit(&mut [frames]).map_err(AppendError::Commit)?;
        Ok(first)
    }

    /// Seals the last segment and notes the new end beside the marks.
    ///
    /// # Errors
    /// The end could not be noted; what was committed is durable nevertheless.
    pub fn close(mut self) -> Result<(), AppendError> {
        self.writer.seal();
        if let Some((store, checkpoint)) = &mut self.marks {
            checkpoint.durable = self.writer.next();
            store.save(checkpoint)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::frame;
    use super::*;
    use crate::event::KeyHash;

    fn options(dir: &Path, max_bytes: u64) -> SpoolOptions {
        SpoolOptions { stream: "clicks".into(), dir: dir.to_owned(), max_bytes, segment_bytes: 4096 }
    }

    fn opened(options: &SpoolOptions, without: WithoutMarks) -> Result<Appender, AppendError> {
        let lock = lock(options).expect("nobody else holds it");
        Appender::open(&Host::real(), options, &lock, without)
    }

    fn frames(events: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for n in 0..events {
            frame::encode(&mut out, "user", KeyHash::of_key("user"), false, format!("event {n}").as_bytes());
        }
        out
    }

    fn marks_of(dir: &Path) -> Option<Checkpoint> {
        SledMarks::open(&dir.join("ledger")).load()
    }

    #[test]
    fn lost_marks_stop_whoever_needs_them_and_none_are_made_up_for_whoever_does_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let options = options(dir.path(), 1 << 20);
        assert!(matches!(opened(&options, WithoutMarks::Refuse), Err(AppendError::NoMarks)));

        let mut spool = opened(&options, WithoutMarks::GoOn).expect("opens");
        assert_eq!(spool.commit(frames(3), 3).expect("commits"), Position(0));
        spool.close().expect("closes");
        assert_eq!(marks_of(dir.path()), None);
        assert_eq!(opened(&options, WithoutMarks::GoOn).expect("opens").next(), Position(3));
    }

    #[test]
    fn the_end_is_noted_beside_the_marks_and_what_they_knew_stays() {
        let dir = tempfile::tempdir().expect("temp dir");
        let options = options(dir.path(), 1 << 20);
        let known = Checkpoint { clean: true, dead: 7, expired: 2, ..Checkpoint::default() };
        SledMarks::open(&dir.path().join("ledger")).save(&known).expect("saves");

        let mut spool = opened(&options, WithoutMarks::Refuse).expect("opens");
        spool.commit(frames(3), 3).expect("commits");
        assert_eq!(spool.commit(frames(2), 2).expect("commits"), Position(3));
        spool.close().expect("closes");
        assert_eq!(marks_of(dir.path()), Some(Checkpoint { durable: Position(5), ..known }));
    }

    #[test]
    fn what_recovery_finds_damaged_is_counted_once_however_often_it_is_opened() {
        let dir = tempfile::tempdir().expect("temp dir");
        let options = options(dir.path(), 1 << 20);
        // The marks know of four events, and the files hold none of them.
        let known = Checkpoint { durable: Position(4), dead: 1, ..Checkpoint::default() };
        SledMarks::open(&dir.path().join("ledger")).save(&known).expect("saves");

        for _ in 0..2 {
            let mut spool = opened(&options, WithoutMarks::Refuse).expect("opens");
            spool.commit(frames(1), 1).expect("commits");
            spool.close().expect("closes");
        }
        let found = marks_of(dir.path()).expect("marks");
        assert_eq!((found.dead, found.durable), (5, Position(6)));
    }

    #[test]
    fn a_group_without_room_is_refused_whole_and_a_smaller_one_still_fits() {
        let dir = tempfile::tempdir().expect("temp dir");
        let options = options(dir.path(), 16 << 10);
        let mut spool = opened(&options, WithoutMarks::GoOn).expect("opens");
        assert!(matches!(spool.commit(frames(1000), 1000), Err(AppendError::Full(bytes)) if bytes == 16 << 10));
        assert_eq!(spool.commit(frames(2), 2).expect("commits"), Position(0));
    }

    #[test]
    fn a_spool_that_somebody_holds_is_not_opened() {
        let dir = tempfile::tempdir().expect("temp dir");
        let options = options(dir.path(), 1 << 20);
        let _held = lock(&options).expect("free");
        assert!(matches!(lock(&options), Err(OpenError::Locked { .. })));
    }
}
