//! The dead letters of one stream: events that ended without being delivered, each whole and with its reason.
//!
//! Place: in the spool's `dead/` directory, beside what recovery sets aside there. The dispatcher appends letters *before*
//! it settles their events, so that no mark passes an event whose letter is not durable (*MARK-BEHIND-DELIVERY*); `desk`
//! hands letters back or purges them; `forebay dead` reads. The bytes are told in `record`.
//!
//! Owner: one [`DeadStore`] a stream writes; a [`DeadStore::view`] reads beside it and sees what is there at the moment.
//! Memory: a few numbers a file; letters are found by reading their file, at most 8 MiB and one letter.
//!
//! A letter's number is given for good, dense within its file. Appending is one write and one fdatasync a batch; after a
//! failure the file is latched and the same letters go to a new one, whose header says from which number on older files are
//! superseded. A removal is a note in the file's `.gone` neighbour, which is written beside and renamed; a file without
//! letters goes when the saved marks have passed all its events, before that it still tells which events not to send. The
//! newest file stays: it says where numbers go on. `settled` notes the number below which that is so; it may be lost, and
//! then more is read at the next start.
//!
//! Failure: a torn tail of the newest file is cut at open; damage costs the letters it hits, and reading goes on behind it;
//! a version from elsewhere is refused. Absent on purpose: what a reason means, and giving letters up for their number:
//! a full store refuses letters that are not urgent.

pub mod desk;
pub mod record;
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests damage files behind the store's back")]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::record::{
    FILE_HEADER_BYTES, FileHeader, GONE_BYTES, GONE_HEADER_BYTES, HeaderFound, Letters, decode_gone, encode_gone,
};
pub use self::record::{Letter, Reason, Removal};
use super::recover::{OpenError, doing};
use crate::event::{Lane, Position};
use crate::host::{File, Host};

/// Bytes after which a file is closed and the next begun.
pub const DEAD_FILE_BYTES: u64 = 8 << 20;

/// Bytes of the note of what the saved marks have passed.
const SETTLED_BYTES: usize = 12;

/// What is known of one file.
#[derive(Clone, Copy, Debug)]
struct Info {
    first: u64,
    bytes: u64,
    /// Removals noted.
    gone: u64,
    /// As many were noted when it was last looked whether any letter is left.
    looked_at: u64,
}

/// A letter as far as the account needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub number: u64,
    /// Its event.
    pub position: Position,
    /// The event's lane.
    pub lane: Lane,
    /// Why.
    pub reason: Reason,
}

/// The letters of one stream.
#[derive(Debug)]
pub struct DeadStore {
    host: Host,
    dir: PathBuf,
    max_bytes: u64,
    files: BTreeMap<u32, Info>,
    active: Option<(u32, Arc<dyn File>)>,
    next: u64,
    next_id: u32,
    settled: u64,
    /// Files whose removals may be in memory only, because noting them failed.
    unsure: BTreeSet<u32>,
}

fn letters_name(id: u32) -> String {
    format!("{id:010}.dead")
}

fn gone_name(id: u32) -> String {
    format!("{id:010}.gone")
}

fn id_of(name: &str, extension: &str) -> Option<u32> {
    name.strip_suffix(extension).filter(|digits| digits.len() == 10)?.parse().ok()
}

impl DeadStore {
    /// Opens the store for writing, after any kind of end. Files of letters take up to `max_bytes` before
    /// [`DeadStore::has_room`] says no.
    ///
    /// # Errors
    /// I/O, or a file of another version; damage is none.
    pub fn open(host: &Host, dir: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        let mut store = Self::list(host, dir, max_bytes, true)?;
        let files = host.files.as_ref();
        let newest = store.files.last_key_value().map(|(id, info)| (*id, info.first));
        if let Some((id, first)) = newest {
            let path = store.dir.join(letters_name(id));
            let file = doing("opening", &path, files.open(&path))?;
            let bytes = doing("reading", &path, read_all(file.as_ref()))?;
            let mut letters = Letters::of(&bytes);
            store.next = letters.by_ref().map(|letter| letter.number + 1).fold(first, u64::max);
            let good_end = letters.good_end as u64;
            if letters.damaged > 0 {
                tracing::error!(file = %path.display(), "damaged bytes between dead letters: what stood there cannot be read");
            }
            if good_end < bytes.len() as u64 {
                doing("cutting the torn tail of", &path, file.set_len(good_end))?;
            }
            // After a kill what was read may be in memory only, and is about to be relied on.
            doing("syncing", &path, file.sync_data())?;
            doing("syncing", dir, files.sync_dir(dir))?;
            if let Some(info) = store.files.get_mut(&id) {
                info.bytes = good_end;
            }
            store.active = Some((id, file));
        }
        store.settled = store.read_settled();
        Ok(store)
    }

    /// The letters as they lie there now, for reading beside a running agent or without one.
    ///
    /// # Errors
    /// I/O, or a file of another version.
    pub fn view(host: &Host, dir: &Path) -> Result<Self, OpenError> {
        let mut store = Self::list(host, dir, 0, false)?;
        store.next = u64::MAX;
        Ok(store)
    }

    fn list(host: &Host, dir: &Path, max_bytes: u64, repair: bool) -> Result<Self, OpenError> {
        let files = host.files.as_ref();
        let names = match files.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !repair => Vec::new(),
            other => doing("listing", dir, other)?,
        };
        let mut store = Self {
            host: host.clone(),
            dir: dir.to_owned(),
            max_bytes,
            files: BTreeMap::new(),
            active: None,
            next: 1,
            next_id: 1,
            settled: 0,
            unsure: BTreeSet::new(),
        };
        for id in names.iter().filter_map(|name| id_of(name, ".dead")) {
            store.next_id = id + 1;
            let path = dir.join(letters_name(id));
            let file = match files.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !repair => continue,
                other => doing("opening", &path, other)?,
            };
            let len = doing("reading", &path, file.len())?;
            let mut head = vec![0; len.min(FILE_HEADER_BYTES as u64) as usize];
            doing("reading", &path, file.read_exact_at(&mut head, 0))?;
            let first = match FileHeader::decode(&head) {
                HeaderFound::Good(header) => Some(header.first),
                HeaderFound::OtherVersion(version) => {
                    return Err(OpenError::OtherVersion { found: format!("{}: version {version}", path.display()) });
                }
                HeaderFound::Damaged => {
                    let bytes = doing("reading", &path, read_all(file.as_ref()))?;
                    Letters::of(&bytes).next().map(|letter| letter.number)
                }
            };
            let Some(first) = first else {
                // Its first letters were never durable, or nothing of it can be read.
                if repair {
                    let aside = dir.join(format!("unreadable-{}", letters_name(id)));
                    tracing::warn!(file = %path.display(), aside = %aside.display(), "a file of dead letters without header and letters is set aside");
                    doing("setting aside", &path, files.rename(&path, &aside))?;
                }
                continue;
            };
            let gone = store.gone_bytes(id).map_or(0, |bytes| decode_gone(&bytes).len() as u64);
            store.files.insert(id, Info { first, bytes: len, gone, looked_at: 0 });
        }
        if repair {
            let orphans = names.iter().filter_map(|name| id_of(name, ".gone")).filter(|id| !store.files.contains_key(id));
            let orphans: Vec<u32> = orphans.collect();
            if !orphans.is_empty() {
                // A kill between the two removals of a file and its neighbour: the first may be in memory only.
                doing("syncing", dir, files.sync_dir(dir))?;
            }
            for id in orphans {
                let path = dir.join(gone_name(id));
                doing("removing", &path, files.remove(&path))?;
            }
        }
        Ok(store)
    }

    /// Number of the next letter.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Number after the last letter of that file.
    fn end_of(&self, id: u32) -> u64 {
        let following = id.checked_add(1).and_then(|after| self.files.range(after..).next());
        following.map_or(self.next, |(_, info)| info.first)
    }

    /// Letters that are not removed.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.files.iter().map(|(id, info)| self.end_of(*id).saturating_sub(info.first).saturating_sub(info.gone)).sum()
    }

    /// Bytes of all files of letters.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|info| info.bytes).sum()
    }

    /// So many bytes of letters fit under the ceiling.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        self.bytes().saturating_add(bytes) <= self.max_bytes
    }

    /// Appends letters and gives them their numbers. All of them are durable when it returns.
    ///
    /// # Errors
    /// The device's; none of them counts then, and the next try goes to a new file.
    pub fn append(&mut self, letters: &mut [Letter]) -> io::Result<()> {
        let full = |id: &u32| self.files.get(id).is_none_or(|info| info.bytes >= DEAD_FILE_BYTES);
        if self.active.as_ref().is_some_and(|(id, _)| full(id)) {
            self.active = None;
        }
        let mut bytes = Vec::new();
        for (number, letter) in (self.next..).zip(letters.iter_mut()) {
            letter.number = number;
            letter.encode(&mut bytes);
        }
        match &self.active {
            Some((id, file)) => {
                let (id, file) = (*id, Arc::clone(file));
                if let Err(error) = file.append(&[&bytes]).and_then(|()| file.sync_data()) {
                    self.latch(id, file.as_ref());
                    return Err(error);
                }
                if let Some(info) = self.files.get_mut(&id) {
                    info.bytes += bytes.len() as u64;
                }
            }
            None => self.begin(&bytes)?,
        }
        self.next += letters.len() as u64;
        Ok(())
    }

    /// A new file with these letters in it, durable.
    fn begin(&mut self, letters: &[u8]) -> io::Result<()> {
        let id = self.next_id;
        // Spent even if the file cannot be made: a name is never used twice.
        self.next_id += 1;
        let header = FileHeader { id, first: self.next, created_ms: self.host.clock.wall_ms() }.encode();
        let path = self.dir.join(letters_name(id));
        let file = self.host.files.create(&path)?;
        let written = file.append(&[&header, letters]).and_then(|()| file.sync_data());
        if let Err(error) = written.and_then(|()| self.host.files.sync_dir(&self.dir)) {
            if let Err(untidy) = self.host.files.remove(&path) {
                // Superseded by the next file's header, if it is still there at the next start.
                tracing::warn!(file = %path.display(), error = %untidy, "a file of dead letters that failed could not be removed");
            }
            return Err(error);
        }
        self.files
            .insert(id, Info { first: self.next, bytes: (FILE_HEADER_BYTES + letters.len()) as u64, gone: 0, looked_at: 0 });
        self.active = Some((id, file));
        Ok(())
    }

    fn latch(&mut self, id: u32, file: &dyn File) {
        self.active = None;
        let len = self.files.get(&id).map_or(FILE_HEADER_BYTES as u64, |info| info.bytes);
        if let Err(error) = file.set_len(len) {
            tracing::warn!(%error, "a latched file of dead letters could not be tidied; the next one's header supersedes its end");
        }
    }

    /// Letters from number `from` on, in order, with those that are removed and why; until `f` breaks off.
    ///
    /// # Errors
    /// The device's. A file that was removed meanwhile is none.
    pub fn visit(&self, from: u64, f: &mut dyn FnMut(Letter, Option<Removal>) -> ControlFlow<()>) -> io::Result<()> {
        for (id, info) in &self.files {
            let end = self.end_of(*id);
            if end <= from {
                continue;
            }
            let path = self.dir.join(letters_name(*id));
            let bytes = match self.host.files.open(&path).and_then(|file| read_all(file.as_ref())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let gone: HashMap<u64, Removal> = decode_gone(&self.gone_bytes(*id)?).into_iter().collect();
            let ours = Letters::of(&bytes).filter(|letter| letter.number >= from.max(info.first) && letter.number < end);
            for letter in ours {
                let removal = gone.get(&letter.number).copied();
                if f(letter, removal).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Every letter whose event the saved marks may not have passed, removed ones too; all there are when `all`.
    ///
    /// # Errors
    /// The device's.
    pub fn unsettled(&self, all: bool) -> io::Result<Vec<Known>> {
        let mut known = Vec::new();
        self.visit(if all { 0 } else { self.settled }, &mut |letter, _| {
            let Letter { number, position, reason, .. } = letter;
            known.push(Known { number, position, lane: letter.hash.lane(), reason });
            ControlFlow::Continue(())
        })?;
        Ok(known)
    }

    fn gone_bytes(&self, id: u32) -> io::Result<Vec<u8>> {
        match self.host.files.open(&self.dir.join(gone_name(id))) {
            Ok(file) => read_all(file.as_ref()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Notes removals, durably, those of one file: of `removals`, which stand in the order of their numbers, the first ones.
    /// Tells how many; the rest is for further calls, so that nobody who needs the store waits for all of them.
    ///
    /// # Errors
    /// The device's: what was not noted is still there at the next start.
    pub fn remove_some(&mut self, removals: &[(u64, Removal)]) -> io::Result<usize> {
        assert!(removals.is_sorted_by_key(|(number, _)| number), "removals stand in the order of their numbers");
        let Some((number, _)) = removals.first() else { return Ok(0) };
        let Some(id) = self.files.keys().copied().find(|id| self.end_of(*id) > *number) else { return Ok(removals.len()) };
        let (first, end) = (self.files[&id].first, self.end_of(id));
        let ours = &removals[..removals.partition_point(|(number, _)| *number < end)];
        let there = ours.iter().filter(|(number, _)| *number >= first).copied();
        let mut gone: BTreeMap<u64, Removal> = decode_gone(&self.gone_bytes(id)?).into_iter().collect();
        let before = gone.len();
        gone.extend(there);
        // What is read back after a failure may not be on the disk.
        if gone.len() > before || self.unsure.contains(&id) {
            let count = gone.len() as u64;
            self.unsure.insert(id);
            self.replace(&gone_name(id), &encode_gone(gone, self.host.clock.wall_ms()), true)?;
            self.unsure.remove(&id);
            if let Some(info) = self.files.get_mut(&id) {
                info.gone = count;
            }
        }
        Ok(ours.len())
    }

    /// Writes a file beside and renames it into place.
    fn replace(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let files = self.host.files.as_ref();
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        match files.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = files.create(&new)?;
        file.append(&[bytes])?;
        if durable {
            file.sync_data()?;
        }
        files.rename(&new, &path)?;
        if durable { files.sync_dir(&self.dir) } else { Ok(()) }
    }

    /// A checkpoint was saved whose marks have passed the events of all letters below `settled`. Files without letters go.
    ///
    /// # Errors
    /// The device's; the next call tries again.
    pub fn tidy(&mut self, settled: u64) -> io::Result<()> {
        let whole = self.files.keys().map(|id| self.end_of(*id)).filter(|end| *end <= settled).max();
        if let Some(end) = whole.filter(|end| *end > self.settled) {
            let mut note = end.to_le_bytes().to_vec();
            note.extend_from_slice(&crc32fast::hash(&end.to_le_bytes()).to_le_bytes());
            // Not synced: losing it only makes the next start read more.
            self.replace("settled", &note, false)?;
            self.settled = end;
        }
        while self.tidy_one()? {}
        Ok(())
    }

    /// Looks at one file of which letters were removed since it was last looked at, and which the noted marks have passed:
    /// without letters it goes. False when there is none to look at.
    ///
    /// # Errors
    /// As [`DeadStore::tidy`].
    pub fn tidy_one(&mut self) -> io::Result<bool> {
        let due = |(id, info): &(&u32, &Info)| info.gone != info.looked_at && self.end_of(**id) <= self.settled;
        let Some(id) = self.files.iter().find(due).map(|(id, _)| *id) else { return Ok(false) };
        if !self.is_empty_of_letters(id, self.end_of(id))? {
            self.files.entry(id).and_modify(|info| info.looked_at = info.gone);
            return Ok(true);
        }
        if self.files.last_key_value().is_some_and(|(newest, _)| *newest == id) {
            self.begin(&[])?;
        }
        let files = self.host.files.as_ref();
        remove_if_there(files.remove(&self.dir.join(letters_name(id))))?;
        self.files.remove(&id);
        // The removals must outlive the letters, or those would come back.
        files.sync_dir(&self.dir)?;
        remove_if_there(files.remove(&self.dir.join(gone_name(id))))?;
        Ok(true)
    }

    fn is_empty_of_letters(&self, id: u32, end: u64) -> io::Result<bool> {
        let info = self.files[&id];
        if info.gone >= end - info.first {
            return Ok(true);
        }
        // Where damage took some letters, the removed ones are fewer than the numbers.
        let mut empty = true;
        self.visit(info.first, &mut |letter, removal| {
            empty &= letter.number >= end || removal.is_some();
            if empty && letter.number < end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(empty)
    }

    /// As noted by an earlier [`DeadStore::tidy`]; 0 when the note is lost.
    fn read_settled(&self) -> u64 {
        let read = self.host.files.open(&self.dir.join("settled")).and_then(|file| read_all(file.as_ref()));
        let bytes = read.unwrap_or_default();
        match bytes.split_first_chunk::<8>() {
            Some((number, crc)) if bytes.len() == SETTLED_BYTES && crc == crc32fast::hash(number).to_le_bytes() => {
                u64::from_le_bytes(*number)
            }
            _ => 0,
        }
    }
}

fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

const _: () = assert!(GONE_HEADER_BYTES < GONE_BYTES);
