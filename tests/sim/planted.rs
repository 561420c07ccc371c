//! Bugs planted on purpose, at the seams: what the spool believes of its files, and what its driver does.
//!
//! Place: `life.rs` runs a life with one of them or none; `mutations.rs` proves that each is found. A simulator that
//! cannot find these proves nothing by finding nothing. The product has no switches for them: the file bugs are a
//! wrapper round [`FaultFiles`], which stands for a spool that makes the same mistake; the others are in the driver.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use forebay::config::SyncClass;
use forebay::host::{File, Files};
use forebay::spool::index::FOOTER_BYTES;

use crate::fault_files::{FaultFiles, is_death};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// No bug.
    None,
    /// The receipt leaves before the data is synced.
    NoDataSync,
    /// The same, and the checker does not look at the disk when a receipt leaves: only a crash shows it.
    NoDataSyncUnseen,
    /// The directory is never synced.
    NoDirSync,
    /// As above, unseen until a crash.
    NoDirSyncUnseen,
    /// A failed sync is tried again on the same file, and its success believed.
    SyncRetried,
    /// A failed write is taken for a good one.
    WriteErrorIgnored,
    /// What was handed to a lane counts as delivered in the marks.
    MarkAheadOfDelivery,
    /// Segments go when all in them was handed out.
    DeletionAheadOfDelivery,
    /// Segments go by marks that are not saved yet.
    DeletionAheadOfSavedMark,
    /// The newest segment goes too.
    NewestDeleted,
    /// The checkpoint calls durable what still waits for its sync, so that a torn tail is kept.
    TornTailKept,
    /// What failed to be sent goes last.
    FailedGoesLast,
    /// Damage is stepped over without a word.
    DamageUntold,
    /// Class `interval`: the time is over, and nothing is synced.
    DueSyncSkipped,
    /// Class `os`: nothing is ever synced, also not when a segment is sealed.
    SealUnsynced,
    /// Class `os`: the index is written before the frames are synced.
    IndexBeforeFrames,
    /// The weaker classes: receipts leave while events are in the process's own memory.
    ReceiptBeforeWrite,
}

impl Plant {
    /// The bug in a life of this class.
    pub fn in_class(self, class: SyncClass) -> Self {
        match self {
            Self::SealUnsynced | Self::IndexBeforeFrames if class != SyncClass::Os => Self::None,
            Self::ReceiptBeforeWrite if class == SyncClass::Always => Self::None,
            plant => plant,
        }
    }

    /// Whether the checker compares each receipt with the disk.
    pub fn looks(self) -> bool {
        !matches!(self, Self::NoDataSyncUnseen | Self::NoDirSyncUnseen)
    }
}

/// The disk as a spool with that bug uses it.
#[derive(Debug)]
pub struct PlantedFiles {
    pub disk: FaultFiles,
    pub plant: Plant,
}

#[derive(Debug)]
struct PlantedFile {
    file: Arc<dyn File>,
    plant: Plant,
    /// The end of what was appended last, and what was not written.
    last: Mutex<(Vec<u8>, Vec<u8>)>,
}

impl PlantedFile {
    /// The file ends with an index.
    fn ends_with_index(&self) -> bool {
        let last = &self.last.lock().expect("one thread").0;
        last.len().checked_sub(FOOTER_BYTES).is_some_and(|at| last[at..].starts_with(b"FBYINDEX"))
    }

    /// Writes what was only remembered.
    fn flush(&self) -> io::Result<()> {
        let held = std::mem::take(&mut self.last.lock().expect("one thread").1);
        if held.is_empty() { Ok(()) } else { self.file.append(&[&held]) }
    }
}

impl PlantedFiles {
    fn planted(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(PlantedFile { file, plant: self.plant, last: Mutex::default() })
    }
}

impl File for PlantedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        if self.plant == Plant::IndexBeforeFrames {
            self.last.lock().expect("one thread").0 = parts.concat();
        }
        if self.plant == Plant::ReceiptBeforeWrite {
            self.last.lock().expect("one thread").1.extend(parts.concat());
            return Ok(());
        }
        match self.file.append(parts) {
            Err(error) if self.plant == Plant::WriteErrorIgnored && !is_death(&error) => Ok(()),
            answer => answer,
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.plant {
            Plant::NoDataSync | Plant::NoDataSyncUnseen | Plant::SealUnsynced => Ok(()),
            Plant::IndexBeforeFrames if !self.ends_with_index() => Ok(()),
            Plant::ReceiptBeforeWrite => self.flush().and_then(|()| self.file.sync_data()),
            Plant::SyncRetried => self.file.sync_data().or_else(|_| self.file.sync_data()),
            _ => self.file.sync_data(),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.flush()?;
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

impl Files for PlantedFiles {
    fn space(&self, path: &Path) -> io::Result<forebay::host::Space> {
        self.disk.space(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.planted(self.disk.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.planted(self.disk.create(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self.plant {
            Plant::NoDirSync | Plant::NoDirSyncUnseen => Ok(()),
            _ => self.disk.sync_dir(dir),
        }
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
}
