//! A disk that can lose power, tear writes, lie in a sync, fill up and rot, for tests of what the real spool promises.
//!
//! Place: implements `host::Files` and `host::File` in memory; `sim.rs` runs the real spool on it. Owner: one mutex
//! around one [`Disk`]; handles are clones. Each file has a *live* image (what a read sees, the page cache) and a
//! *durable* one (what a power cut leaves), and the operations between the two; so has each directory. `sync_data`
//! promotes a file's data and length and nothing else; `sync_dir` promotes a directory's entries and nothing else.
//!
//! Faults, zone by zone. *Active tail*: a pending append survives whole, in any subset of its 512-byte sectors, or not
//! at all; a later append may survive an earlier one (what lies between reads as zeroes); the length may grow without
//! the data; a cut of the file may be undone. *Any file*: open, read, write, sync fail with a chosen error; a failed
//! sync keeps, forgets or drops what was pending; the disk fills in the middle of a write; reads come up short; a bit
//! flips. *Directory*: an entry whose directory was not synced may be there or not after a crash, a removal may be
//! undone, a rename may not have happened, each independently of the others; a failed sync of it keeps its entries pending
//! or forgets them. Each misfortune is counted when it is met ([`FaultFiles::met`]), so that a test can prove what it saw.
//!
//! Assumed of the disk: a sector of 512 bytes is written wholly or not; bytes made durable are not harmed by a later
//! write beside them; a rename is atomic; bytes never written read as zeroes, never as another file's; what a sync
//! answered with success is durable (a disk that lies there cannot be served). `create_dir_all` is durable when it
//! returns, as its contract says. Killing a process ([`FaultFiles::kill`]) loses nothing that was written.
//!
//! Absent on purpose: permissions, links, sockets, and the text of what is stored (the log holds lengths only).

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay::host::{Clock, Entropy, File, Files, Host, Space, mix64};

#[path = "fault_disk.rs"]
mod disk;

pub use disk::Met;
use disk::{ANY_FAULT, DataOp, Disk, Draw, EntryOp, Inode, Node, Refused, died};

/// errno of a device error.
pub const EIO: i32 = 5;
/// errno of a full disk.
pub const ENOSPC: i32 = 28;
/// errno of too many open files.
pub const EMFILE: i32 = 24;

/// Text of the error that every operation gets once the machine has died.
pub const DIED: &str = "the simulated machine died";

/// What an operation is, for counting and for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    Open,
    Read,
    List,
    Create,
    Write,
    SetLen,
    SyncData,
    SyncDir,
    Remove,
    Rename,
    CreateDir,
}

impl Op {
    /// Changes the disk or its durability. Only these have a place in the [`FaultFiles::ops`] count, so that a test
    /// that reads more does not move the crash points.
    pub const fn changes(self) -> bool {
        !matches!(self, Self::Open | Self::Read | Self::List)
    }
}

/// What becomes of unsynced data when a sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Still dirty: a later sync may bring it to the disk.
    Keep,
    /// Reads still show it, and no later sync will ever write it (Linux ext4 and XFS: pages marked clean).
    Forget,
    /// Gone from the page cache as well: reads show what the disk has, zeroes where it has nothing.
    Drop,
}

/// One fault to come.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations it counts.
    pub op: Op,
    /// Only paths that contain this; empty: all.
    pub path: String,
    /// Fires at the n-th matching operation from now, 1 being the next.
    pub nth: u64,
    /// Fires at this many matching operations in a row; `u64::MAX`: for ever.
    pub times: u64,
    /// The errno given.
    pub errno: i32,
    /// For syncs; of a directory, `Drop` is `Forget`.
    pub pending: Pending,
    /// For writes: bytes that still get in before the error.
    pub partial: usize,
}

impl Fault {
    /// The n-th operation of this kind from now fails once with `errno`; nothing of a write gets in, a failed sync
    /// keeps its pending data.
    pub fn new(op: Op, nth: u64, errno: i32) -> Self {
        Self { op, path: String::new(), nth, times: 1, errno, pending: Pending::Keep, partial: 0 }
    }

    pub fn on(mut self, path_contains: &str) -> Self {
        self.path = path_contains.to_owned();
        self
    }

    pub fn for_ever(mut self) -> Self {
        self.times = u64::MAX;
        self
    }

    pub fn pending(mut self, pending: Pending) -> Self {
        self.pending = pending;
        self
    }

    pub fn partial(mut self, bytes: usize) -> Self {
        self.partial = bytes;
        self
    }

    /// Its kind, for counting.
    fn name(&self) -> &'static str {
        match (self.op, self.pending) {
            (Op::Open, _) => "open fails",
            (Op::Read, _) => "read fails",
            (Op::List, _) => "list fails",
            (Op::Create, _) => "create fails",
            (Op::Write, _) if self.errno == ENOSPC => "write finds no space",
            (Op::Write, _) if self.partial > 0 => "write fails in the middle",
            (Op::Write, _) => "write fails",
            (Op::SetLen, _) => "set_len fails",
            (Op::SyncData, Pending::Keep) => "sync fails, pages kept",
            (Op::SyncData, Pending::Forget) => "sync fails, pages forgotten",
            (Op::SyncData, Pending::Drop) => "sync fails, pages dropped",
            (Op::SyncDir, Pending::Keep) => "directory sync fails, entries kept",
            (Op::SyncDir, _) => "directory sync fails, entries forgotten",
            (Op::Remove, _) => "remove fails",
            (Op::Rename, _) => "rename fails",
            (Op::CreateDir, _) => "create_dir fails",
        }
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpRecord {
    /// Number among the changing operations; that of the next one for the others.
    pub number: u64,
    pub op: Op,
    pub path: PathBuf,
    /// Bytes written or read, or the new length.
    pub bytes: u64,
    pub ok: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct FaultFiles(Arc<Mutex<Disk>>);

impl fmt::Debug for FaultFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk();
        write!(f, "FaultFiles {{ files: {}, ops: {} }}", disk.live.len(), disk.ops)
    }
}

impl Default for FaultFiles {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether an error is the simulated death of the machine, rather than a fault the program should handle.
pub fn is_death(error: &io::Error) -> bool {
    error.to_string().contains(DIED)
}

impl FaultFiles {
    /// An empty disk with a root directory.
    pub fn new() -> Self {
        Self::of(Disk { dirs: BTreeSet::from([PathBuf::from("/")]), ..Disk::default() })
    }

    fn of(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        // A panicking test thread must not hide what the disk held from the others.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changing operations so far, failed ones included.
    pub fn ops(&self) -> u64 {
        self.disk().ops
    }

    /// Every operation so far: one seed twice must give the same.
    pub fn log(&self) -> Vec<OpRecord> {
        self.disk().log.clone()
    }

    /// The machine dies when the changing operation `n` (from 0) is asked for: it and everything after it fail with
    /// [`DIED`] and change nothing. Crashing after each operation is crashing before the next.
    pub fn stop_at(&self, n: u64) {
        self.disk().stop_at = Some(n);
    }

    /// The machine does not die by itself any more.
    pub fn never_stop(&self) {
        self.disk().stop_at = None;
    }

    /// Whether the machine has died.
    pub fn has_died(&self) -> bool {
        self.disk().died
    }

    /// Adds a fault.
    pub fn fail(&self, fault: Fault) {
        self.disk().faults.push(fault);
    }

    /// How often each kind of misfortune was met, since this disk was new and through all its crashes.
    pub fn met(&self) -> Met {
        self.disk().met.clone()
    }

    /// Faults that fired so far.
    pub fn faults_fired(&self) -> u64 {
        self.disk().met.get(ANY_FAULT).copied().unwrap_or_default()
    }

    /// Counts a misfortune that the test brought about itself.
    pub fn meet(&self, what: &'static str) {
        self.disk().meet(what);
    }

    /// While on, reading meets no fault and is not logged: a checker looks, and the history must not change by it.
    pub fn set_quiet(&self, on: bool) {
        self.disk().quiet = on;
    }

    /// Operations after which asking for one more panics: what is run ends, or is found out.
    pub fn set_budget(&self, operations: Option<u64>) {
        self.disk().budget = operations;
    }

    /// Whether a power cut that loses all that may be lost leaves these bytes at this place.
    pub fn holds_durably(&self, path: &Path, offset: u64, bytes: &[u8]) -> bool {
        let disk = self.disk();
        let Some(node) = disk.durable.get(path).map(|inode| &disk.nodes[inode]) else { return false };
        node.durable.get(offset as usize..).is_some_and(|rest| rest.starts_with(bytes))
    }

    /// What a power cut that loses all that may be lost leaves of a file.
    pub fn durable_contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        Some(disk.nodes[disk.durable.get(path)?].durable.clone())
    }

    /// Takes all faults away: the repaired disk.
    pub fn heal(&self) {
        let mut disk = self.disk();
        disk.faults.clear();
        disk.capacity = None;
        disk.short_reads = None;
    }

    /// Live bytes of all files beyond which a write gets in partly and fails with ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Reads return a seeded part of what was asked for (at least a byte).
    pub fn set_short_reads(&self, seed: Option<u64>) {
        self.disk().short_reads = seed;
    }

    /// Live bytes of all files.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// Rot: one bit of a file changes, on the disk and in the page cache. False when there is no such byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut disk = self.disk();
        let Some(inode) = disk.live.get(path).copied() else { return false };
        let node = disk.nodes.get_mut(&inode).expect("an entry points to a node");
        let at = offset as usize;
        let Some(byte) = node.live.get_mut(at) else { return false };
        *byte ^= 1 << (bit % 8);
        if let Some(byte) = node.durable.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
        true
    }

    /// What a read of the whole file would give now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        Some(disk.nodes[disk.live.get(path)?].live.clone())
    }

    /// Writes a whole file durably, bypassing faults and counts: a fixture.
    pub fn plant(&self, path: &Path, bytes: &[u8]) {
        let mut disk = self.disk();
        let mut at = path.parent();
        while let Some(dir) = at {
            disk.dirs.insert(dir.to_path_buf());
            at = dir.parent();
        }
        let inode = disk.new_node();
        disk.nodes.insert(inode, Node { live: bytes.to_vec(), durable: bytes.to_vec(), pending: Vec::new() });
        disk.live.insert(path.to_path_buf(), inode);
        disk.durable.insert(path.to_path_buf(), inode);
    }

    /// Files present now.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.disk().live.keys().cloned().collect()
    }

    /// The process is killed, the machine lives on: everything written is there, what was not durable still is not.
    /// Handles of the old process are dead, faults and counts are gone.
    pub fn kill(&self) -> Self {
        let mut old = self.disk();
        old.meet("process killed");
        let new = Disk { faults: Vec::new(), log: Vec::new(), ops: 0, stop_at: None, budget: None, died: false, ..old.clone() };
        old.died = true;
        Self::of(new)
    }

    /// The power fails. The new disk holds what was durable and a seeded choice of what was pending; old handles are
    /// dead. Seed 0 keeps nothing that was pending, seed 1 all of it.
    pub fn crash(&self, seed: u64) -> Self {
        let mut old = self.disk();
        let survivors = old.survivors(&mut Draw::new(seed));
        old.died = true;
        Self::of(survivors)
    }
}

#[derive(Debug)]
struct FaultFile {
    files: FaultFiles,
    inode: Inode,
    /// As opened; for faults and the log only.
    path: PathBuf,
}

impl File for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.files.disk();
        disk.begin(Op::Read, &self.path, buf.len() as u64)?;
        let live = &disk.nodes[&self.inode].live;
        let at = (offset.min(live.len() as u64)) as usize;
        let mut n = buf.len().min(live.len() - at);
        if let (Some(seed), true) = (disk.short_reads, n > 1 && !disk.quiet) {
            let part = 1 + (mix64(seed ^ disk.log.len() as u64) % n as u64) as usize;
            if part < n {
                disk.meet("short read");
            }
            n = part;
        }
        buf[..n].copy_from_slice(&disk.nodes[&self.inode].live[at..at + n]);
        Ok(n)
    }

    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.concat();
        let mut disk = self.files.disk();
        match disk.begin(Op::Write, &self.path, bytes.len() as u64) {
            Ok(()) => {}
            Err(Refused::Fault(errno, _, partial)) => {
                disk.write(self.inode, &bytes[..partial.min(bytes.len())]);
                return Err(io::Error::from_raw_os_error(errno));
            }
            Err(refused) => return Err(refused.into()),
        }
        let room = disk.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(disk.used()));
        if room < bytes.len() as u64 {
            disk.meet("disk full");
            disk.write(self.inode, &bytes[..room as usize]);
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        disk.write(self.inode, &bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.files.disk();
        match disk.begin(Op::SyncData, &self.path, 0) {
            Ok(()) => {
                disk.sync(self.inode);
                Ok(())
            }
            Err(Refused::Fault(errno, pending, _)) => {
                disk.fail_sync(self.inode, pending);
                Err(io::Error::from_raw_os_error(errno))
            }
            Err(refused) => Err(refused.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.files.disk();
        disk.begin(Op::SetLen, &self.path, len)?;
        let node = disk.nodes.get_mut(&self.inode).expect("a handle keeps its node");
        let op = DataOp::SetLen { len: len as usize };
        op.apply(&mut node.live);
        node.pending.push(op);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let disk = self.files.disk();
        if disk.died { Err(died()) } else { Ok(disk.nodes[&self.inode].live.len() as u64) }
    }
}

impl Files for FaultFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk();
        disk.begin(Op::Open, path, 0)?;
        let inode = *disk.live.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(FaultFile { files: self.clone(), inode, path: path.to_path_buf() }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk();
        disk.begin(Op::Create, path, 0)?;
        disk.parent_exists(path)?;
        if disk.live.contains_key(path) || disk.dirs.contains(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.new_node();
        disk.nodes.insert(inode, Node::default());
        disk.change_entries(EntryOp(vec![(path.to_path_buf(), Some(inode))]));
        Ok(Arc::new(FaultFile { files: self.clone(), inode, path: path.to_path_buf() }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.begin(Op::List, dir, 0)?;
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = disk.live.keys().chain(&disk.dirs).filter(|path| path.parent() == Some(dir));
        let names: BTreeSet<String> =
            all.filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned()).collect();
        Ok(names.into_iter().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(Op::Remove, path, 0)?;
        if !disk.live.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change_entries(EntryOp(vec![(path.to_path_buf(), None)]));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.begin(Op::Rename, from, 0)?;
        disk.parent_exists(to)?;
        let inode = *disk.live.get(from).ok_or(io::ErrorKind::NotFound)?;
        disk.change_entries(EntryOp(vec![(from.to_path_buf(), None), (to.to_path_buf(), Some(inode))]));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        match disk.begin(Op::SyncDir, dir, 0) {
            Ok(()) => {}
            Err(Refused::Fault(errno, pending, _)) => {
                disk.fail_sync_dir(dir, pending);
                return Err(io::Error::from_raw_os_error(errno));
            }
            Err(refused) => return Err(refused.into()),
        }
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut disk.pending).into_iter().partition(|op| op.touches(dir));
        disk.pending = later;
        for op in now {
            op.apply(&mut disk.durable);
        }
        Ok(())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.dirs.contains(dir) && !disk.died {
            return Ok(());
        }
        disk.begin(Op::CreateDir, dir, 0)?;
        let mut at = Some(dir);
        while let Some(path) = at {
            if disk.live.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            disk.dirs.insert(path.to_path_buf());
            at = path.parent();
        }
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let disk = self.disk();
        if disk.died {
            return Err(died());
        }
        let total = disk.capacity.unwrap_or(u64::MAX);
        Ok(Space { free: total.saturating_sub(disk.used()), total })
    }
}

/// Both clocks, moved by the test alone.
#[derive(Debug, Default)]
pub struct SimClock {
    monotonic_nanos: AtomicU64,
    wall_ms: AtomicU64,
}

impl SimClock {
    /// Monotonic time 0, wall time 2026-01-01.
    pub fn new() -> Self {
        Self { monotonic_nanos: AtomicU64::new(0), wall_ms: AtomicU64::new(1_767_225_600_000) }
    }

    /// Time passes on both.
    pub fn advance(&self, by: Duration) {
        self.monotonic_nanos.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
        self.wall_ms.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock, forwards or back, to 1970 at the earliest.
    pub fn jump_wall_ms(&self, by: i64) {
        let now = self.wall_ms.load(Ordering::SeqCst);
        self.wall_ms.store(now.saturating_add_signed(by), Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_nanos.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
}

/// SplitMix64 from a seed.
#[derive(Debug)]
pub struct SeededEntropy(AtomicU64);

impl SeededEntropy {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(mix64(seed)))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        mix64(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }
}

/// A host of these three.
pub fn sim_host(files: &FaultFiles, clock: &Arc<SimClock>, seed: u64) -> Host {
    Host { files: Arc::new(files.clone()), clock: clock.clone(), entropy: Arc::new(SeededEntropy::new(seed)) }
}

#[cfg(test)]
#[path = "fault_files_tests.rs"]
mod tests;
