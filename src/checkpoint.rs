//! Durable knowledge of deliveries: a mark for each lane, saved every little while.
//!
//! Place: `dispatch` makes a [`Checkpoint`] of its marks, the checkpoint thread saves it through a
//! [`MarkStore`], and only then may segments be deleted. At the next start the marks say where each lane goes on.
//!
//! Owner: the checkpoint thread owns the store, and a thread of the store's own owns sled, because sled can panic
//! or wait for ever where its files are not as it left them: whoever asks waits for a limited time.
//! *MARK-BEHIND-DELIVERY*: a mark never passes an event that is not settled. *LOSABLE*: a lost, torn or damaged
//! store costs duplicates, never an event: sled holds nothing that segments and their order do not imply.
//!
//! Failure: a store that cannot be opened is set aside under another name and begun anew, loudly. Where not even
//! that succeeds, there are no marks: delivery goes on, nothing is deleted, and each save tries to open it again,
//! less and less often. A save that fails is tried again with the next checkpoint; so is one whose files were
//! taken away. sled stays behind this file, so that it can be replaced.
//!
//! | offset | type | field of the one value, key `checkpoint` |
//! | --- | --- | --- |
//! | 0 | u32 | CRC-32 of all that follows |
//! | 4 | u16 | version, 1 |
//! | 6 | u8 | 1 when written at a clean stop |
//! | 7 | u8 | 0 |
//! | 8 | u64 | position after the last durable event |
//! | 16, 24, 32 | u64 | dead, expired, dropped |
//! | 40 | 1024 × u64 | for each lane the first position that is not settled |

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::event::{LANES, Position};
use crate::exit::contained;

const VERSION: u16 = 1;
const BYTES: usize = 40 + 8 * LANES;
const KEY: &[u8] = b"checkpoint";

/// What is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Written by a stop that left nothing in flight: what is past a mark was never sent.
    pub clean: bool,
    /// Position after the last durable event, as then known.
    pub durable: Position,
    /// Dead letters so far.
    pub dead: u64,
    /// Expired events so far.
    pub expired: u64,
    /// Dropped events so far.
    pub dropped: u64,
    /// For each lane the first position that is not settled.
    pub marks: Box<[Position; LANES]>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { clean: false, durable: Position(0), dead: 0, expired: 0, dropped: 0, marks: Box::new([Position(0); LANES]) }
    }
}

impl Checkpoint {
    /// The bytes.
    ///
    /// # Panics
    /// If a mark is past the durable end: that would be a lost event after the next crash.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.marks.iter().all(|mark| *mark <= self.durable), "MARK-BEHIND-DELIVERY: a mark past what is durable");
        let mut out = Vec::with_capacity(BYTES);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[u8::from(self.clean), 0]);
        for number in [self.durable.0, self.dead, self.expired, self.dropped] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for mark in self.marks.iter() {
            out.extend_from_slice(&mark.0.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The checkpoint in these bytes, if they are whole.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BYTES
            || bytes[..4] != crc32fast::hash(&bytes[4..]).to_le_bytes()
            || bytes[4..6] != VERSION.to_le_bytes()
        {
            return None;
        }
        let number = |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        let mut marks = Box::new([Position(0); LANES]);
        for (lane, mark) in marks.iter_mut().enumerate() {
            *mark = Position(number(40 + 8 * lane));
        }
        let checkpoint = Self {
            clean: bytes[6] == 1,
            durable: Position(number(8)),
            dead: number(16),
            expired: number(24),
            dropped: number(32),
            marks,
        };
        checkpoint.marks.iter().all(|mark| *mark <= checkpoint.durable).then_some(checkpoint)
    }
}

/// A store that could not do what it was asked.
#[derive(Debug)]
pub struct StoreError(pub String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

/// Where checkpoints are kept.
pub trait MarkStore: Send + fmt::Debug {
    /// The last saved checkpoint; `None` when there is none that is whole.
    fn load(&mut self) -> Option<Checkpoint>;

    /// Makes a checkpoint durable before it returns.
    ///
    /// # Errors
    /// The store's; the last saved checkpoint then still stands, or is lost.
    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError>;
}

/// How long opening may take. Milliseconds are usual; beyond this, sled waits for itself.
const OPEN_WAIT: Duration = Duration::from_secs(10);

/// How long a load or a save may take: an fsync on a busy disk has been seen to take seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// Saves between two tries to open a store that does not open, at most.
const SKIPPED_SAVES_MAX: u32 = 256;

/// Stores that one process sets aside at most.
const ASIDE_MAX: u32 = 4;

/// Checkpoints in sled 0.34.
#[derive(Debug)]
pub struct SledMarks {
    dir: PathBuf,
    worker: Option<Worker>,
    /// Why there is no worker.
    trouble: String,
    /// Saves to let go by before the next try to open it, and how many that were the last time.
    skip: u32,
    skipped: u32,
    /// Stores set aside so far: a device that fails would make one after the other.
    aside: u32,
}

impl SledMarks {
    /// Opens the store in `dir`, setting a damaged one aside. It may be without a store afterwards: [`MarkStore::save`]
    /// then says why, and tries again.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let mut marks = Self { dir: dir.to_owned(), worker: None, trouble: String::new(), skip: 0, skipped: 0, aside: 0 };
        if let Err(error) = marks.begin() {
            tracing::error!(%error, "there is no store of the marks: what is delivered from now on is not noted, and no disk space is freed, until there is");
        }
        marks
    }

    /// Makes sure that there is a store.
    fn begin(&mut self) -> Result<&Worker, StoreError> {
        if self.worker.is_none() {
            self.worker = Some(self.opened().inspect_err(|error| self.trouble.clone_from(&error.0))?);
        }
        self.worker.as_ref().ok_or_else(|| StoreError(self.trouble.clone()))
    }

    fn opened(&mut self) -> Result<Worker, StoreError> {
        let dir = &self.dir;
        let said = |error: &str| StoreError(format!("{}: {error}", dir.display()));
        let error = match Worker::open(dir) {
            Ok(worker) => return Ok(worker),
            // Its files may be as good as ever.
            Err(Unopened { error, machine: true }) => return Err(said(&error)),
            Err(Unopened { error, .. }) if self.aside == ASIDE_MAX => {
                return Err(said(&format!("{error}; {ASIDE_MAX} were set aside already")));
            }
            Err(Unopened { error, .. }) => error,
        };
        self.aside += 1;
        let aside = unused_name(dir);
        tracing::error!(%error, ledger = %dir.display(), aside = %aside.display(), "the store of the marks is damaged: set aside; what it knew as delivered may be sent again");
        match crate::host::rename_dir(dir, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(said(&format!("setting it aside: {error}"))),
            _ => {}
        }
        Worker::open(dir).map_err(|unopened| said(&unopened.error))
    }

    fn ask(&mut self, what: Ask) -> Result<Option<Vec<u8>>, StoreError> {
        let answer = self.begin()?.ask(what);
        answer.map_err(|error| {
            // Whatever state it is in, another one is opened instead.
            drop(self.worker.take());
            StoreError(format!("{}: {error}", self.dir.display()))
        })
    }
}

/// The last saved checkpoint of the store in `dir`, read from a copy of its files: the store itself is not opened, so that
/// looking changes nothing and waits for nobody. The copy of a store in use may be torn, or a little old. `Ok(None)` when
/// there is no store, or none that holds a checkpoint.
///
/// # Errors
/// When the copy cannot be made, or sled cannot read it.
#[allow(clippy::disallowed_methods, reason = "sled's own files, and a copy that only this function sees")]
pub fn peek(dir: &Path) -> Result<Option<Checkpoint>, StoreError> {
    use std::os::unix::fs::DirBuilderExt as _;
    static COPIES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    if !dir.join("db").exists() {
        return Ok(None);
    }
    let number = COPIES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let copy = std::env::temp_dir().join(format!("forebay-marks-{}-{number}", std::process::id()));
    let named = |doing: &str, path: &Path, error: std::io::Error| StoreError(format!("{doing} {}: {error}", path.display()));
    std::fs::DirBuilder::new().mode(0o700).create(&copy).map_err(|error| named("creating", &copy, error))?;
    let read = copy_tree(dir, &copy).map_err(|error| named("copying", dir, error)).and_then(|()| {
        // What sled logs of a copy would name files that are gone when it is read.
        tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
            let said = |error: String| StoreError(error.replace(&copy.display().to_string(), &dir.display().to_string()));
            let worker = Worker::open(&copy).map_err(|unopened| said(unopened.error))?;
            let bytes = worker.ask(Ask::Load).map_err(said)?;
            Ok(bytes.as_deref().and_then(Checkpoint::decode))
        })
    });
    if let Err(error) = std::fs::remove_dir_all(&copy) {
        tracing::warn!(copy = %copy.display(), %error, "a copy of the marks could not be removed");
    }
    read
}

#[allow(clippy::disallowed_methods, reason = "as in `peek`")]
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let copied = if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target).and_then(|()| copy_tree(&entry.path(), &target))
        } else {
            std::fs::copy(entry.path(), &target).map(drop)
        };
        match copied {
            // sled removes what it has replaced.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn unused_name(dir: &Path) -> PathBuf {
    let name = |n: u32| dir.with_extension(format!("damaged-{n}"));
    (1..u32::MAX).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
}

/// Why sled did not open.
#[derive(Debug)]
struct Unopened {
    error: String,
    /// It is not the files: no room, no descriptors.
    machine: bool,
}

impl From<sled::Error> for Unopened {
    fn from(error: sled::Error) -> Self {
        let machine = match &error {
            sled::Error::Io(error) => {
                use io::ErrorKind::{OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
                // EMFILE and ENFILE have no kind of their own.
                matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | OutOfMemory)
                    || matches!(error.raw_os_error(), Some(23 | 24))
            }
            _ => false,
        };
        Self { error: error.to_string(), machine }
    }
}

#[derive(Debug)]
enum Ask {
    Load,
    Save(Vec<u8>),
}

type Answer = Result<Option<Vec<u8>>, String>;

/// The thread that owns sled. Dropped, it is waited for; one that does not answer is left behind.
#[derive(Debug)]
struct Worker {
    asks: Option<Sender<Ask>>,
    answers: Receiver<Answer>,
}

impl Worker {
    fn open(dir: &Path) -> Result<Self, Unopened> {
        let (asks, asked) = channel();
        let (answer, answers) = channel();
        let (opened, opening) = channel();
        let dir = dir.to_owned();
        let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || serve(&dir, &opened, &asked, &answer));
        if let Err(error) = thread {
            return Err(Unopened { error: error.to_string(), machine: true });
        }
        match opening.recv_timeout(OPEN_WAIT) {
            Ok(Ok(())) => Ok(Self { asks: Some(asks), answers }),
            Ok(Err(unopened)) => Err(unopened),
            Err(RecvTimeoutError::Disconnected) => Err(Unopened { error: GAVE_UP.to_owned(), machine: false }),
            Err(RecvTimeoutError::Timeout) => {
                Err(Unopened { error: format!("sled did not open within {OPEN_WAIT:?}"), machine: false })
            }
        }
    }

    fn ask(&self, what: Ask) -> Answer {
        let asked = self.asks.as_ref().is_some_and(|asks| asks.send(what).is_ok());
        if !asked {
            return Err(GAVE_UP.to_owned());
        }
        match self.answers.recv_timeout(ANSWER_WAIT) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(GAVE_UP.to_owned()),
            Err(RecvTimeoutError::Timeout) => Err(format!("sled did not answer within {ANSWER_WAIT:?}")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when nobody can ask any more, and its files are unlocked then.
        drop(self.asks.take());
        while self.answers.recv_timeout(OPEN_WAIT).is_ok() {}
    }
}

const GAVE_UP: &str = "sled gave up on its files";

/// The worker's life.
fn serve(dir: &Path, opened: &Sender<Result<(), Unopened>>, asked: &Receiver<Ask>, answers: &Sender<Answer>) {
    let ended = contained(|| {
        let (db, file) = match open_sled(dir) {
            Ok(opened) => opened,
            // Whoever gave up waiting does not want to know; so below.
            Err(error) => return opened.send(Err(error)).ok(),
        };
        opened.send(Ok(())).ok()?;
        while let Ok(ask) = asked.recv() {
            let answer = match ask {
                Ask::Load => db.get(KEY).map(|bytes| bytes.map(|bytes| bytes.to_vec())).map_err(|error| error.to_string()),
                Ask::Save(bytes) => save(&db, bytes, dir, file).map(|()| None),
            };
            answers.send(answer).ok()?;
        }
        Some(())
    });
    if ended.is_none() {
        tracing::debug!("the thread of the marks' store panicked");
    }
}

fn open_sled(dir: &Path) -> Result<(sled::Db, (u64, u64)), Unopened> {
    let db = sled::Config::new().path(dir).cache_capacity(1 << 20).flush_every_ms(None).mode(sled::Mode::LowSpace).open()?;
    db.get(KEY)?;
    let file = crate::host::file_id(&dir.join("db")).map_err(sled::Error::from)?;
    Ok((db, file))
}

fn save(db: &sled::Db, bytes: Vec<u8>, dir: &Path, file: (u64, u64)) -> Result<(), String> {
    db.insert(KEY, bytes).and_then(|_| db.flush()).map_err(|error| error.to_string())?;
    // Without a name, a file takes writes and syncs for ever, and keeps nothing.
    match crate::host::file_id(&dir.join("db")) {
        Ok(now) if now == file => Ok(()),
        _ => Err("its files were taken away".to_owned()),
    }
}

impl MarkStore for SledMarks {
    fn load(&mut self) -> Option<Checkpoint> {
        let bytes = match self.ask(Ask::Load) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::error!(%error, "the marks cannot be read");
                return None;
            }
        };
        let checkpoint = Checkpoint::decode(&bytes);
        if checkpoint.is_none() {
            let whole = bytes.first_chunk().is_some_and(|crc| u32::from_le_bytes(*crc) == crc32fast::hash(&bytes[4..]));
            let version = bytes.get(4..6).map_or(0, |version| u16::from_le_bytes([version[0], version[1]]));
            let why = if whole && version != VERSION { "of another version" } else { "damaged" };
            tracing::error!(ledger = %self.dir.display(), version, reads = VERSION, "the marks are {why}: what they knew as delivered may be sent again");
        }
        checkpoint
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        if self.worker.is_none() && self.skip > 0 {
            self.skip -= 1;
            return Err(StoreError(self.trouble.clone()));
        }
        let bytes = checkpoint.encode();
        // Its files may have been taken away under our feet: begin anew, so that marks are kept again.
        let had = self.worker.is_some();
        let saved = self.ask(Ask::Save(bytes.clone())).or_else(|error| {
            if !had {
                return Err(error);
            }
            tracing::warn!(%error, "the marks could not be saved: their store is opened anew");
            self.ask(Ask::Save(bytes))
        });
        match &saved {
            Ok(_) => self.skipped = 0,
            Err(error) => {
                self.trouble.clone_from(&error.0);
                self.skipped = (self.skipped * 2).clamp(1, SKIPPED_SAVES_MAX);
                self.skip = self.skipped;
            }
        }
        saved.map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests damage files behind the store's back")]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        let mut checkpoint = Checkpoint { durable: Position(5_000), dead: 3, clean: true, ..Checkpoint::default() };
        for (lane, mark) in checkpoint.marks.iter_mut().enumerate() {
            *mark = Position(lane as u64 * 2);
        }
        checkpoint
    }

    #[test]
    fn a_checkpoint_reads_back_and_a_damaged_one_is_none() {
        let bytes = sample().encode();
        assert_eq!(Checkpoint::decode(&bytes), Some(sample()));
        for at in [0, 5, 6, 9, 41, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(Checkpoint::decode(&damaged), None, "byte {at}");
        }
        assert_eq!(Checkpoint::decode(&bytes[..100]), None);
    }

    #[test]
    #[should_panic(expected = "MARK-BEHIND-DELIVERY")]
    fn a_mark_past_what_is_durable_is_never_saved() {
        let mut checkpoint = sample();
        checkpoint.marks[9] = Position(5_001);
        drop(checkpoint.encode());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "it damages a real store behind its back")]
    fn marks_survive_reopening_and_a_damaged_store_is_begun_anew() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("ledger");
        let mut store = SledMarks::open(&path);
        assert_eq!(store.load(), None);
        store.save(&sample()).expect("save");
        drop(store);
        let mut store = SledMarks::open(&path);
        assert_eq!(store.load(), Some(sample()));
        drop(store);
        for name in ["db", "conf"] {
            let len = std::fs::metadata(path.join(name)).expect("sled's file").len();
            std::fs::write(path.join(name), vec![0xa5; len as usize]).expect("damage");
        }
        let mut store = SledMarks::open(&path);
        assert_eq!(store.load(), None);
        store.save(&sample()).expect("save into the new one");
        assert_eq!(store.load(), Some(sample()));
    }
}
