//! Durable knowledge of deliveries: a mark for each lane, saved every little while.
//!
//! Place: `dispatch` makes a [`Checkpoint`] of its marks, the checkpoint thread saves it through a
//! [`MarkStore`], and only then may segments be deleted. At the next start the marks say where each lane goes on.
//!
//! Owner: the checkpoint thread owns the store. *MARK-BEHIND-DELIVERY*: a mark never passes an event that is
//! not settled. *LOSABLE*: a lost, torn or damaged store costs duplicates, never an event: sled holds nothing
//! that segments and their order do not imply.
//!
//! Failure: a store that cannot be opened is set aside under another name and begun anew, loudly; a save that
//! fails is tried again with the next checkpoint. sled stays behind this file, so that it can be replaced.
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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::event::{LANES, Position};

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

/// Checkpoints in sled 0.34.
#[derive(Debug)]
pub struct SledMarks {
    dir: PathBuf,
    db: sled::Db,
}

impl SledMarks {
    /// Opens the store in `dir`, setting a damaged one aside.
    ///
    /// # Errors
    /// Where even a new one cannot be made.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        match open_sled(dir) {
            Ok(db) => Ok(Self { dir: dir.to_owned(), db }),
            Err(error) => {
                let aside = unused_name(dir);
                tracing::error!(%error, aside = %aside.display(), "the store of the marks is damaged: set aside; what it knew as delivered may be sent again");
                crate::host::rename_dir(dir, &aside)
                    .map_err(|error| StoreError(format!("setting {} aside: {error}", dir.display())))?;
                Ok(Self { dir: dir.to_owned(), db: open_sled(dir)? })
            }
        }
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
            let db = open_sled(&copy)
                .map_err(|error| StoreError(error.0.replace(&copy.display().to_string(), &dir.display().to_string())))?;
            Ok(SledMarks { dir: copy.clone(), db }.load())
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

fn open_sled(dir: &Path) -> Result<sled::Db, StoreError> {
    // sled panics on some kinds of damage; here that is one more way of being lost.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = sled::Config::new().path(dir).cache_capacity(1 << 20).flush_every_ms(None).mode(sled::Mode::LowSpace).open()?;
        db.get(KEY)?;
        Ok::<_, sled::Error>(db)
    }));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(StoreError(format!("{}: {error}", dir.display()))),
        Err(_) => Err(StoreError(format!("{}: sled gave up on its files", dir.display()))),
    }
}

impl MarkStore for SledMarks {
    fn load(&mut self) -> Option<Checkpoint> {
        match catch_unwind(AssertUnwindSafe(|| self.db.get(KEY))) {
            Ok(Ok(bytes)) => Checkpoint::decode(&bytes?),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let saved = catch_unwind(AssertUnwindSafe(|| {
            self.db.insert(KEY, checkpoint.encode())?;
            self.db.flush().map(|_| ())
        }));
        let error = match saved {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled gave up on its files".to_owned(),
        };
        // Its files may have been taken away under our feet: begin anew, so that marks are kept again.
        if let Ok(db) = open_sled(&self.dir) {
            self.db = db;
        }
        Err(StoreError(format!("{}: {error}", self.dir.display())))
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
        let mut store = SledMarks::open(&path).expect("open");
        assert_eq!(store.load(), None);
        store.save(&sample()).expect("save");
        drop(store);
        let mut store = SledMarks::open(&path).expect("open again");
        assert_eq!(store.load(), Some(sample()));
        drop(store);
        for name in ["db", "conf"] {
            let len = std::fs::metadata(path.join(name)).expect("sled's file").len();
            std::fs::write(path.join(name), vec![0xa5; len as usize]).expect("damage");
        }
        let mut store = SledMarks::open(&path).expect("open damaged");
        assert_eq!(store.load(), None);
        store.save(&sample()).expect("save into the new one");
        assert_eq!(store.load(), Some(sample()));
    }
}
