//! The ids of events that are durable, on disk, so that re-sends are known after a restart.
//!
//! Place: `dedupe` notes a batch's ids here when the batch is durable, before anybody is told so; at start it reads what is
//! there. One source has one journal: files `SOURCE.NNNNNNNNNN.ids` in the directory `ids` of its stream's spool. The newest
//! is appended to; older ones go when all their ids have left the window, or more ids than are kept came after them. At
//! start all that is still of use is written to a new file and the old ones go.
//!
//! | bytes | field, little-endian |
//! | --- | --- |
//! | 8 | `FBYIDS1\n`, at the head of a file |
//! | 16 | the id, a hash |
//! | 8 | wall clock in milliseconds when its event was durable |
//!
//! The last two repeat. There is no checksum: a damaged id is the id of no event, so it suppresses none. Nothing is synced:
//! what was written survives the process (kill -9), and a power cut costs the ids of the last seconds. The files lie plain
//! also beside an encrypted spool: of a hash nobody learns more than that an id he can guess was sent.
//!
//! *LOSABLE*: whatever happens to these files costs duplicates, never an event. Failure: told once in the log; then ids are
//! known to this process only, and the next note tries a new file.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::seen::Id;
use crate::host::{File, Host};

const MAGIC: &[u8; 8] = b"FBYIDS1\n";
const ENTRY_BYTES: usize = 24;
const SUFFIX: &str = ".ids";
const GENERATION_DIGITS: usize = 10;

/// A file that is only kept for its ids.
#[derive(Debug)]
struct Old {
    generation: u64,
    /// Wall clock of its last id, milliseconds.
    last_ms: u64,
    ids: usize,
}

/// One source's journal.
#[derive(Debug)]
pub struct Journal {
    host: Host,
    dir: PathBuf,
    source: String,
    window_ms: u64,
    ids_max: usize,
    file: Option<Arc<dyn File>>,
    generation: u64,
    /// Ids in the file at hand, and the wall clock of the first one, milliseconds.
    ids: usize,
    since_ms: u64,
    old: VecDeque<Old>,
    /// Told once.
    failing: bool,
    scratch: Vec<u8>,
}

impl Journal {
    /// Opens the journal of `source` in a spool's directory; also tells the ids that are still of use, oldest first, each with
    /// the wall clock when its event was durable. At most `ids_max` of them. Whatever fails, there is a journal.
    #[must_use]
    pub fn open(host: &Host, spool_dir: &Path, source: &str, window: Duration, ids_max: usize) -> (Self, Vec<(Id, u64)>) {
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let mut journal = Self {
            host: host.clone(),
            dir: spool_dir.join("ids"),
            source: source.to_owned(),
            window_ms,
            ids_max,
            file: None,
            generation: 0,
            ids: 0,
            since_ms: 0,
            old: VecDeque::new(),
            failing: false,
            scratch: Vec::new(),
        };
        let known = match journal.read() {
            Ok(known) => known,
            Err(error) => {
                journal.failed(&error);
                Vec::new()
            }
        };
        if !known.is_empty() {
            journal.note(known.iter().copied());
        }
        if journal.file.is_some() || known.is_empty() {
            journal.drop_old(usize::MAX);
        }
        (journal, known)
    }

    /// Notes ids, each with the wall clock.
    pub fn note(&mut self, ids: impl Iterator<Item = (Id, u64)>) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let mut last_ms = 0;
        for (id, ms) in ids {
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.extend_from_slice(&ms.to_le_bytes());
            last_ms = ms;
        }
        if let Err(error) = self.append(&bytes, last_ms) {
            self.failed(&error);
        } else if std::mem::replace(&mut self.failing, false) {
            tracing::info!(source = self.source, "ids of events are noted on disk again");
        }
        // Once at start it is large.
        bytes.clear();
        bytes.shrink_to(64 << 10);
        self.scratch = bytes;
    }

    fn append(&mut self, bytes: &[u8], now_ms: u64) -> io::Result<()> {
        let over = self.ids >= self.ids_max / 2 || now_ms.saturating_sub(self.since_ms) >= self.window_ms.div_ceil(2);
        if over || self.file.is_none() {
            self.begin(now_ms)?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        if let Err(error) = file.append(&[bytes]) {
            // Part of an entry may stand there now, and nothing after it would be read.
            self.file = None;
            return Err(error);
        }
        self.ids += bytes.len() / ENTRY_BYTES;
        Ok(())
    }

    /// Begins a new file.
    fn begin(&mut self, now_ms: u64) -> io::Result<()> {
        if self.ids > 0 {
            self.old.push_back(Old { generation: self.generation, last_ms: now_ms, ids: self.ids });
            self.ids = 0;
        }
        self.file = None;
        self.host.files.create_dir_all(&self.dir)?;
        self.generation += 1;
        let file = self.host.files.create(&self.path(self.generation))?;
        file.append(&[MAGIC])?;
        self.file = Some(file);
        self.since_ms = now_ms;
        // While it is filled, what came before it stays of use; of that only so much.
        let mut newer = 0;
        let keep = self.old.iter().rev().take_while(|old| {
            let of_use = newer < self.ids_max && old.last_ms.saturating_add(self.window_ms) > now_ms;
            newer += old.ids;
            of_use
        });
        let gone = self.old.len() - keep.count();
        self.drop_old(gone);
        Ok(())
    }

    /// Removes this many of the older files.
    fn drop_old(&mut self, files: usize) {
        for old in self.old.drain(..files.min(self.old.len())).collect::<Vec<_>>() {
            let path = self.path(old.generation);
            if let Err(error) = self.host.files.remove(&path) {
                tracing::warn!(%error, path = %path.display(), "a file of old event ids cannot be removed; it does no harm but takes room");
            }
        }
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("{}.{generation:0digits$}{SUFFIX}", self.source, digits = GENERATION_DIGITS))
    }

    /// Reads all files there are; they count as old ones from now on.
    fn read(&mut self) -> io::Result<Vec<(Id, u64)>> {
        let names = match self.host.files.list(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?,
        };
        let generation = |name: &str| {
            let digits = name.strip_prefix(&self.source)?.strip_prefix('.')?.strip_suffix(SUFFIX)?;
            (digits.len() == GENERATION_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| digits.parse().ok())?
        };
        let mut generations: Vec<u64> = names.iter().filter_map(|name| generation(name)).collect();
        generations.sort_unstable();
        let now_ms = self.host.clock.wall_ms();
        let mut known = Vec::new();
        for generation in generations {
            let path = self.path(generation);
            match self.read_file(&path, now_ms, &mut known) {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "ids of events cannot be read: re-sends of these are taken as new events");
                }
            }
            self.old.push_back(Old { generation, last_ms: now_ms, ids: 0 });
            self.generation = generation;
        }
        let spare = known.len().saturating_sub(self.ids_max);
        known.drain(..spare);
        Ok(known)
    }

    fn read_file(&self, path: &Path, now_ms: u64, known: &mut Vec<(Id, u64)>) -> io::Result<()> {
        let file = self.host.files.open_read(path)?;
        let mut head = [0; MAGIC.len()];
        if file.len()? < MAGIC.len() as u64 {
            // The process ended between making and beginning it.
            return Ok(());
        }
        file.read_exact_at(&mut head, 0)?;
        if &head != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of event ids, or of a later version"));
        }
        let entries = (file.len()? - MAGIC.len() as u64) / ENTRY_BYTES as u64;
        // A file holds what was read at start, `ids_max` at most, and half of that again; more was not written here.
        let entries = entries.min(2 * self.ids_max as u64) as usize;
        let mut bytes = vec![0; entries * ENTRY_BYTES];
        file.read_exact_at(&mut bytes, MAGIC.len() as u64)?;
        for entry in bytes.as_chunks::<ENTRY_BYTES>().0 {
            let (id, ms) = entry.split_at(16);
            let id = Id::from_le_bytes(id.try_into().expect("16 of 24 bytes"));
            let ms = u64::from_le_bytes(ms.try_into().expect("8 of 24 bytes"));
            if ms.saturating_add(self.window_ms) > now_ms {
                known.push((id, ms));
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                %error,
                source = self.source,
                dir = %self.dir.display(),
                "ids of events cannot be noted on disk: after a restart, re-sends of these are taken as new events"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests look at files from outside")]
mod tests {
    use super::*;
    use crate::coding::Coding;
    use crate::coding::keys::{EncryptionKey, KeyRing};

    const WINDOW: Duration = Duration::from_secs(600);

    fn now() -> u64 {
        Host::real().clock.wall_ms()
    }

    fn open(dir: &Path, ids_max: usize) -> (Journal, Vec<(Id, u64)>) {
        Journal::open(&Host::real(), dir, "web", WINDOW, ids_max)
    }

    fn files(dir: &Path) -> Vec<String> {
        Host::real().files.list(&dir.join("ids")).unwrap_or_default()
    }

    #[test]
    fn what_was_noted_is_known_after_any_number_of_starts_in_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, known) = open(dir.path(), 64);
        assert!(known.is_empty() && files(dir.path()).is_empty(), "nothing is made for nothing");
        let noted: Vec<(Id, u64)> = (0..5).map(|id| (id, now())).collect();
        journal.note(noted.iter().copied());
        drop(journal);
        for _ in 0..3 {
            assert_eq!(open(dir.path(), 64).1, noted);
            assert_eq!(files(dir.path()).len(), 1);
        }
    }

    #[test]
    fn the_format_is_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), 64);
        journal.note([(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100, 0x1716_1514_1312_1110)].into_iter());
        let mut golden = b"FBYIDS1\n".to_vec();
        golden.extend(0u8..24);
        assert_eq!(std::fs::read(dir.path().join("ids/web.0000000001.ids")).unwrap(), golden);
    }

    #[test]
    fn ids_beside_a_compressed_and_encrypted_spool_are_kept_as_beside_any() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeyRing::new(vec![EncryptionKey::new([7; 32])]);
        let host = Coding { compress: true, keys }.host(&Host::real());
        let open = || Journal::open(&host, dir.path(), "web", WINDOW, 64);
        let (mut journal, _) = open();
        for id in 0..20 {
            journal.note([(id, now())].into_iter());
        }
        // Dropped as by a kill: no file was finished.
        drop(journal);
        for _ in 0..2 {
            assert_eq!(open().1.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_torn_end_foreign_files_and_old_ids_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), 64);
        let window_ms = WINDOW.as_millis() as u64;
        journal.note([(1, now() - window_ms - 1), (2, now() - window_ms / 2)].into_iter());
        drop(journal);
        let path = dir.path().join("ids/web.0000000001.ids");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[7; 23]);
        std::fs::write(&path, bytes).unwrap();
        for foreign in ["web.x.ids", "web2.0000000001.ids", "web.0000000002.ids", "web.0000000003.ids"] {
            std::fs::write(dir.path().join("ids").join(foreign), if foreign.contains("03") { "" } else { "something else" })
                .unwrap();
        }
        let (mut journal, known) = open(dir.path(), 64);
        assert_eq!(known.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2]);
        journal.note([(3, now())].into_iter());
        assert_eq!(open(dir.path(), 64).1.len(), 2);
    }

    #[test]
    fn files_stay_bounded_and_the_newest_ids_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), 64);
        for id in 0..1000 {
            journal.note([(id, now())].into_iter());
            assert!(files(dir.path()).len() <= 4, "{:?}", files(dir.path()));
        }
        drop(journal);
        let (_, known) = open(dir.path(), 64);
        assert_eq!(known.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (936..1000).collect::<Vec<_>>());
        assert_eq!(files(dir.path()).len(), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_the_notes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ids"), "in the way").unwrap();
        let (mut journal, known) = open(dir.path(), 64);
        assert!(known.is_empty());
        journal.note([(1, now())].into_iter());
        std::fs::remove_file(dir.path().join("ids")).unwrap();
        journal.note([(2, now())].into_iter());
        drop(journal);
        assert_eq!(open(dir.path(), 64).1.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2]);
    }
}
