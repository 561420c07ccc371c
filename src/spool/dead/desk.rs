//! Where letters are handed back or purged: one at a time asks, whoever it is.
//!
//! Place: the dispatcher appends through [`DeadLetters::append`]; the admin listener of a running agent, and `forebay dead`
//! on a stopped one's directory, call [`DeadLetters::retry`] and [`DeadLetters::purge`]. Letters to be worked on are read
//! beside the store, so that the dispatcher does not wait for a long search.
//!
//! *NOTHING-LOST*: a letter is noted as retried only after its event is durable in the spool under its new position. A kill
//! between the two leaves both, and the letter can be retried once more: an event may come twice, never not at all.
//!
//! *EXACT-ACCOUNT*: a retried event is receipted anew, so `accepted` counts it again and it is pending; what died stays
//! counted as dead or expired. So the totals only ever grow, and they balance after any crash without a note of their own.
//!
//! The dispatcher needs the store for each checkpoint and each batch of letters. So a removal of many holds it for one file
//! at a time, and whoever waits is let in between (*NO-BLOCKING*).
//!
//! Failure: what was done before an error stays done and is told. Absent on purpose: waiting for room in a full spool.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{DeadStore, Letter, Reason, Removal};
use crate::event::Position;
use crate::host::Host;
use crate::metrics::{StreamMetrics, locked};
use crate::spool::OpenError;

/// Letters handed back at once.
const RETRY_LETTERS_MAX: usize = 1_000;

/// Bytes handed back at once: well within what ingest admits.
const RETRY_BYTES_MAX: usize = 2 << 20;

/// Letters purged at once.
const PURGE_LETTERS_MAX: usize = 50_000;

/// Refusals told one by one.
const REFUSALS_TOLD_MAX: usize = 20;

/// Which letters are meant: all that every given part fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// These numbers; none given: any.
    pub numbers: Vec<u64>,
    /// This reason.
    pub reason: Option<Reason>,
    /// This partition key, whole.
    pub key: Option<String>,
    /// Dead since before this moment, wall clock ms.
    pub died_before_ms: Option<u64>,
    /// Numbers from this one on.
    pub from: u64,
    /// At most so many, if given.
    pub limit: Option<u64>,
}

impl Selection {
    /// The letter is meant, its number and the limit apart.
    #[must_use]
    pub fn fits(&self, letter: &Letter) -> bool {
        (self.numbers.is_empty() || self.numbers.contains(&letter.number))
            && self.reason.is_none_or(|reason| letter.reason == reason)
            && self.key.as_ref().is_none_or(|key| letter.key == *key)
            && self.died_before_ms.is_none_or(|before| letter.died_ms < before)
    }

    /// The smallest number that can be meant.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.numbers.iter().min().copied().unwrap_or(0).max(self.from)
    }
}

/// What was done, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Letters handed back, or purged.
    pub done: u64,
    /// Letters that were meant and cannot be handed back.
    pub refused: u64,
    /// The first refusals, with why.
    pub refusals: Vec<Refusal>,
    /// Where to go on; none when all that were meant were looked at.
    pub next: Option<u64>,
}

/// A letter that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its number.
    pub number: u64,
    /// Why.
    pub reason: String,
}

/// Makes letters' events durable in the spool, in their order, one after the other; gives the first one's position.
pub type Write<'a> = &'a mut dyn FnMut(&[Letter]) -> Result<Position, String>;

/// The dead letters of one stream, shared by who writes them and who works on them.
#[derive(Debug)]
pub struct DeadLetters {
    host: Host,
    dir: PathBuf,
    store: Mutex<DeadStore>,
    /// Held while one waits for the store, so that who has just given it back does not get it again before them.
    turn: Mutex<()>,
    /// Held by whoever retries or purges: two at once would hand the same letter back twice.
    working: Mutex<()>,
    metrics: Arc<StreamMetrics>,
}

impl DeadLetters {
    /// Opens the store of a spool's `dead` directory.
    ///
    /// # Errors
    /// As [`DeadStore::open`].
    pub fn open(host: &Host, dir: &Path, max_bytes: u64, metrics: &Arc<StreamMetrics>) -> Result<Self, OpenError> {
        let store = DeadStore::open(host, dir, max_bytes)?;
        let letters = Self {
            host: host.clone(),
            dir: dir.to_owned(),
            store: Mutex::new(store),
            turn: Mutex::default(),
            working: Mutex::default(),
            metrics: Arc::clone(metrics),
        };
        letters.publish(&locked(&letters.store));
        Ok(letters)
    }

    fn publish(&self, store: &DeadStore) {
        self.metrics.dead_letters.store(store.held(), Ordering::Relaxed);
        self.metrics.dead_letter_bytes.store(store.bytes(), Ordering::Relaxed);
    }

    /// The store, locked, for those who ask in turn. Hold it for moments.
    pub fn store(&self) -> MutexGuard<'_, DeadStore> {
        let _turn = locked(&self.turn);
        locked(&self.store)
    }

    /// As [`DeadStore::append`].
    ///
    /// # Errors
    /// The device's.
    pub fn append(&self, letters: &mut [Letter]) -> std::io::Result<()> {
        let mut store = self.store();
        store.append(letters)?;
        self.publish(&store);
        Ok(())
    }

    /// As [`DeadStore::tidy`].
    ///
    /// # Errors
    /// The device's.
    pub fn tidy(&self, settled: u64) -> std::io::Result<()> {
        let mut store = self.store();
        store.tidy(settled)?;
        self.publish(&store);
        Ok(())
    }

    /// Hands letters back: their events are pending again, behind all that came meanwhile. A bounded number at once;
    /// [`Done::next`] tells where to go on.
    ///
    /// # Errors
    /// What went wrong, for people; letters whose events are in the spool already may be there still.
    pub fn retry(&self, selection: &Selection, write: Write<'_>) -> Result<Done, String> {
        let _working = locked(&self.working);
        let mut done = Done::default();
        let mut letters: Vec<Letter> = Vec::new();
        let mut bytes = 0;
        let limit = most(selection, RETRY_LETTERS_MAX);
        self.each(selection, &mut done, &mut |letter, done| {
            if letter.reason == Reason::Damaged {
                done.refused += 1;
                if done.refusals.len() < REFUSALS_TOLD_MAX {
                    let reason = "damaged: neither its key nor its data can be trusted; `dead show` prints the bytes".to_owned();
                    done.refusals.push(Refusal { number: letter.number, reason });
                }
                return true;
            }
            if letters.len() == limit || (bytes + letter.len() > RETRY_BYTES_MAX && !letters.is_empty()) {
                return false;
            }
            bytes += letter.len();
            letters.push(letter);
            true
        })?;
        if letters.is_empty() {
            return Ok(done);
        }
        // Letters are numbered as events died; their keys want them as they came.
        letters.sort_by_key(|letter| letter.position);
        let first = write(&letters)?;
        let mut removals: Vec<(u64, Removal)> =
            (first.0..).zip(&letters).map(|(position, letter)| (letter.number, Removal::Retried(Position(position)))).collect();
        // Notes of removals are of one file after the other.
        removals.sort_unstable_by_key(|(number, _)| *number);
        self.note(&removals)?;
        done.done = letters.len() as u64;
        finish(selection, &mut done);
        Ok(done)
    }

    /// Removes letters for good. A bounded number at once.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn purge(&self, selection: &Selection) -> Result<Done, String> {
        let _working = locked(&self.working);
        let mut done = Done::default();
        let mut removals: Vec<(u64, Removal)> = Vec::new();
        let limit = most(selection, PURGE_LETTERS_MAX);
        self.each(selection, &mut done, &mut |letter, _| {
            if removals.len() == limit {
                return false;
            }
            removals.push((letter.number, Removal::Purged));
            true
        })?;
        self.note(&removals)?;
        done.done = removals.len() as u64;
        finish(selection, &mut done);
        Ok(done)
    }

    /// Letters that are meant, until `f` wants no more; then `next` is the one it did not want.
    fn each(&self, selection: &Selection, done: &mut Done, f: &mut dyn FnMut(Letter, &mut Done) -> bool) -> Result<(), String> {
        let view = DeadStore::view(&self.host, &self.dir).map_err(|error| error.to_string())?;
        let last = selection.numbers.iter().max().copied().unwrap_or(u64::MAX);
        let visited = view.visit(selection.first(), &mut |letter, removal| {
            let number = letter.number;
            if number > last {
                return ControlFlow::Break(());
            }
            if removal.is_none() && selection.fits(&letter) && !f(letter, done) {
                done.next = Some(number);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|error| format!("reading the dead letters: {error}"))
    }

    /// Notes removals, and removes files in which nothing is left, a file at a time.
    fn note(&self, removals: &[(u64, Removal)]) -> Result<(), String> {
        let mut rest = removals;
        while !rest.is_empty() {
            let mut store = self.store();
            let noted = store.remove_some(rest);
            self.publish(&store);
            drop(store);
            let noted = noted.map_err(|error| {
                format!("noting in {} which letters are gone: {error}; they may be there still", self.dir.display())
            })?;
            rest = &rest[noted..];
        }
        loop {
            let mut store = self.store();
            let looked = store.tidy_one();
            self.publish(&store);
            match looked {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "a file of dead letters that are gone could not be removed; trying again later");
                    return Ok(());
                }
            }
        }
    }
}

fn most(selection: &Selection, at_once: usize) -> usize {
    selection.limit.map_or(at_once, |limit| at_once.min(usize::try_from(limit).unwrap_or(at_once)))
}

/// Whoever asked for so many and got them is not to go on.
fn finish(selection: &Selection, done: &mut Done) {
    if selection.limit == Some(done.done) {
        done.next = None;
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a real thread is waited for, by the real clock")]
mod tests {
    use std::io;
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::event::KeyHash;
    use crate::host::{File, Files, Space};
    use crate::spool::dead::DEAD_FILE_BYTES;
    use crate::spool::tests::fault_files::{FaultFiles, SimClock, sim_host};

    const DIR: &str = "/spool/dead";

    /// What is done at the first note of removals that takes its place.
    type Knock = Box<dyn FnOnce() + Send>;

    /// Files that count notes of removals.
    struct Counted {
        files: FaultFiles,
        notes: AtomicU64,
        at_first: Mutex<Option<Knock>>,
    }

    impl std::fmt::Debug for Counted {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.files.fmt(f)
        }
    }

    impl Files for Counted {
        fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            self.files.open(path)
        }
        fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
            self.files.create(path)
        }
        fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
            self.files.list(dir)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.files.remove(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            if to.extension().is_some_and(|end| end == "gone") {
                self.notes.fetch_add(1, Ordering::SeqCst);
                if let Some(knock) = locked(&self.at_first).take() {
                    knock();
                }
            }
            self.files.rename(from, to)
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.files.sync_dir(dir)
        }
        fn create_dir_all(&self, path: &Path) -> io::Result<()> {
            self.files.create_dir_all(path)
        }
        fn space(&self, path: &Path) -> io::Result<Space> {
            self.files.space(path)
        }
    }

    /// Letters in so many files, one in each; all their events are settled.
    fn letters(count: u64) -> (Arc<DeadLetters>, Arc<Counted>) {
        let files = FaultFiles::new();
        let host = sim_host(&files, &Arc::new(SimClock::new()), 1);
        let counted = Arc::new(Counted { files, notes: AtomicU64::new(0), at_first: Mutex::default() });
        let host = Host { files: Arc::clone(&counted) as Arc<dyn Files>, ..host };
        host.files.create_dir_all(Path::new(DIR)).expect("a directory");
        let desk = DeadLetters::open(&host, Path::new(DIR), 1 << 30, &Arc::default()).expect("opens");
        for n in 0..count {
            let letter = Letter {
                number: 0,
                position: Position(n),
                key: "user".into(),
                hash: KeyHash::of_key("user"),
                explicit: false,
                data: vec![b'x'; DEAD_FILE_BYTES as usize],
                received_ms: 1,
                died_ms: 2,
                reason: Reason::Expired,
                attempts: 0,
                detail: String::new(),
            };
            desk.append(&mut [letter]).expect("a good disk");
        }
        desk.tidy(count + 1).expect("a good disk");
        (Arc::new(desk), counted)
    }

    #[test]
    fn whoever_needs_the_store_during_a_long_purge_waits_for_one_file_and_not_for_all() {
        let (desk, counted) = letters(4);
        let (told, order) = std::sync::mpsc::channel();
        let (waiting, files) = (Arc::clone(&desk), Arc::clone(&counted));
        // While the first file's removals are noted, another thread comes for the store.
        let knock = move || {
            let other = Arc::clone(&waiting);
            std::thread::spawn(move || {
                let store = other.store();
                told.send((files.notes.load(Ordering::SeqCst), store.held())).expect("the test listens");
            });
            let begun = Instant::now();
            while waiting.turn.try_lock().is_ok() {
                assert!(begun.elapsed() < Duration::from_secs(60), "the other thread never came");
                std::thread::yield_now();
            }
        };
        *locked(&counted.at_first) = Some(Box::new(knock));
        assert_eq!(desk.purge(&Selection::default()).expect("a good disk").done, 4);
        assert_eq!(order.recv().expect("the other thread had its turn"), (1, 3), "notes written, and letters left, by then");
        assert_eq!(counted.notes.load(Ordering::SeqCst), 4, "a note a file");
    }

    #[test]
    fn what_a_purge_leaves_empty_leaves_the_disk_with_it() {
        let (desk, counted) = letters(3);
        let one = Selection { numbers: vec![2], ..Selection::default() };
        assert_eq!(desk.purge(&one).expect("a good disk").done, 1);
        let names = || counted.list(Path::new(DIR)).expect("a directory");
        assert_eq!(names(), ["0000000001.dead", "0000000003.dead", "settled"]);
        assert_eq!(desk.purge(&Selection::default()).expect("a good disk").done, 2);
        // The newest says where numbers go on.
        assert_eq!(names(), ["0000000004.dead", "settled"]);
        let store = desk.store();
        assert_eq!((store.held(), store.next()), (0, 4));
    }
}
