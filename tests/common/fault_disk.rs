//! The state behind `fault_files.rs`: images, pending operations, and what a crash makes of them.
//!
//! Place: plain data under the mutex of `FaultFiles`, which knows paths, handles and the traits. *DURABLE-STAYS*: what
//! was promoted is never changed by a crash, whatever the seed. No I/O, no clock; every choice comes from [`Draw`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use forebay::host::mix64;

use super::{DIED, Fault, Op, OpRecord, Pending};

/// Bytes that reach the disk together or not at all.
pub const SECTOR: usize = 512;

pub type Inode = u64;

#[derive(Clone, Debug)]
pub enum DataOp {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen { len: usize },
}

impl DataOp {
    pub fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => put(image, *offset, bytes),
            Self::SetLen { len } => image.resize(*len, 0),
        }
    }
}

pub fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[derive(Clone, Debug, Default)]
pub struct Node {
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
    pub pending: Vec<DataOp>,
}

/// Counts every fault that fired, of whatever kind.
pub const ANY_FAULT: &str = "fault";

/// What every operation gets once the machine has died.
pub fn died() -> io::Error {
    io::Error::other(DIED)
}

/// A change of directory entries that survives as one or not at all: `(path, what the name then means)`.
#[derive(Clone, Debug)]
pub struct EntryOp(pub Vec<(PathBuf, Option<Inode>)>);

impl EntryOp {
    pub fn touches(&self, dir: &Path) -> bool {
        self.0.iter().any(|(path, _)| path.parent() == Some(dir))
    }

    /// What it is called when a crash undoes it.
    fn undone(&self) -> &'static str {
        match &self.0[..] {
            [(_, Some(_))] => "new entry lost",
            [(_, None)] => "removal undone",
            _ => "rename undone",
        }
    }

    pub fn apply(&self, entries: &mut BTreeMap<PathBuf, Inode>) {
        for (path, inode) in &self.0 {
            match inode {
                Some(inode) => entries.insert(path.clone(), *inode),
                None => entries.remove(path),
            };
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub nodes: BTreeMap<Inode, Node>,
    pub next_inode: Inode,
    pub live: BTreeMap<PathBuf, Inode>,
    pub durable: BTreeMap<PathBuf, Inode>,
    pub pending: Vec<EntryOp>,
    pub dirs: BTreeSet<PathBuf>,
    pub capacity: Option<u64>,
    pub short_reads: Option<u64>,
    pub faults: Vec<Fault>,
    pub ops: u64,
    pub stop_at: Option<u64>,
    pub died: bool,
    pub log: Vec<OpRecord>,
    /// While set, reads meet no faults and leave no trace: a checker looks.
    pub quiet: bool,
    /// Operations that may still be asked for before the disk says that whoever asks does not end.
    pub budget: Option<u64>,
    /// How often each kind of misfortune was met, over all crashes of this disk.
    pub met: Met,
}

/// Misfortunes by name, counted.
pub type Met = BTreeMap<&'static str, u64>;

/// The crash's choices. How eager it is to keep differs from seed to seed, so that histories in which nearly all or
/// nearly nothing survives come up as well as mixtures.
pub struct Draw {
    state: u64,
    keep_of_8: u64,
    whole: Option<bool>,
}

impl Draw {
    pub fn new(seed: u64) -> Self {
        let whole = match seed {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        Self { state: mix64(seed), keep_of_8: 1 + mix64(seed ^ 0x5eed) % 7, whole }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.state)
    }

    pub fn keep(&mut self) -> bool {
        self.whole.unwrap_or_else(|| self.next() % 8 < self.keep_of_8)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.whole.is_none() && self.next().is_multiple_of(n)
    }
}

impl Disk {
    pub fn new_node(&mut self) -> Inode {
        self.next_inode += 1;
        self.next_inode
    }

    pub fn used(&self) -> u64 {
        self.live.values().map(|inode| self.nodes[inode].live.len() as u64).sum()
    }

    pub fn survivors(&self, draw: &mut Draw) -> Self {
        let mut met = self.met.clone();
        *met.entry("power cut").or_default() += 1;
        let mut entries = self.durable.clone();
        for op in &self.pending {
            if draw.keep() {
                op.apply(&mut entries);
            } else {
                *met.entry(op.undone()).or_default() += 1;
            }
        }
        let mut nodes = BTreeMap::new();
        for inode in entries.values() {
            let node = &self.nodes[inode];
            let mut image = node.durable.clone();
            for op in &node.pending {
                *met.entry(survive(op, &mut image, draw)).or_default() += 1;
            }
            nodes.insert(*inode, Node { live: image.clone(), durable: image, pending: Vec::new() });
        }
        Self {
            nodes,
            next_inode: self.next_inode,
            live: entries.clone(),
            durable: entries,
            dirs: self.dirs.clone(),
            capacity: self.capacity,
            met,
            ..Self::default()
        }
    }

    pub fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    /// Counts the operation, logs it, and decides whether it fails.
    pub fn begin(&mut self, op: Op, path: &Path, bytes: u64) -> Result<(), Refused> {
        if self.quiet && !self.died && !op.changes() {
            return Ok(());
        }
        if let Some(budget) = &mut self.budget {
            *budget = budget.checked_sub(1).expect("BORING-RECOVERY: operations without end");
        }
        let number = self.ops;
        if op.changes() {
            self.ops += 1;
        }
        if self.died || (op.changes() && self.stop_at.is_some_and(|stop| number >= stop)) {
            self.died = true;
            return Err(Refused::Death);
        }
        let mut fired = None;
        let mut kind = None;
        for fault in self.faults.iter_mut().filter(|fault| fault.op == op) {
            if !path.to_string_lossy().contains(&fault.path) {
                continue;
            }
            if fault.nth > 1 {
                fault.nth -= 1;
            } else if fault.times > 0 {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                kind = kind.or(Some(fault.name()));
                fired.get_or_insert(Refused::Fault(fault.errno, fault.pending, fault.partial));
            }
        }
        if let Some(kind) = kind {
            self.meet(kind);
            self.meet(ANY_FAULT);
        }
        self.faults.retain(|fault| fault.times > 0);
        self.log.push(OpRecord { number, op, path: path.to_path_buf(), bytes, ok: fired.is_none() });
        fired.map_or(Ok(()), Err)
    }

    pub fn sync(&mut self, inode: Inode) {
        let node = self.nodes.get_mut(&inode).expect("a handle keeps its node");
        for op in node.pending.drain(..) {
            op.apply(&mut node.durable);
        }
    }

    pub fn fail_sync(&mut self, inode: Inode, pending: Pending) {
        let node = self.nodes.get_mut(&inode).expect("a handle keeps its node");
        if pending == Pending::Keep {
            return;
        }
        // The length is metadata and gets there by the journal even when the pages do not.
        let len = node.live.len();
        node.pending.clear();
        node.pending.push(DataOp::SetLen { len });
        if pending == Pending::Drop {
            node.live.clone_from(&node.durable);
            node.live.resize(len, 0);
        }
    }

    /// The entries stay visible, and no later sync of the directory will ever write them.
    pub fn fail_sync_dir(&mut self, dir: &Path, pending: Pending) {
        if pending != Pending::Keep {
            self.pending.retain(|op| !op.touches(dir));
        }
    }

    pub fn write(&mut self, inode: Inode, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let node = self.nodes.get_mut(&inode).expect("a handle keeps its node");
        let op = DataOp::Write { offset: node.live.len(), bytes: bytes.to_vec() };
        op.apply(&mut node.live);
        node.pending.push(op);
    }

    pub fn change_entries(&mut self, op: EntryOp) {
        op.apply(&mut self.live);
        self.pending.push(op);
    }

    pub fn parent_exists(&self, path: &Path) -> io::Result<()> {
        if path.parent().is_some_and(|dir| self.dirs.contains(dir)) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// Applies what the crash leaves of one pending operation, and says what that is.
pub fn survive(op: &DataOp, image: &mut Vec<u8>, draw: &mut Draw) -> &'static str {
    let DataOp::Write { offset, bytes } = op else {
        if !draw.keep() {
            return "length lost";
        }
        op.apply(image);
        return "length kept";
    };
    if draw.one_in(4) {
        // Torn: every sector on its own, and the length perhaps beyond what got there.
        let end = offset + bytes.len();
        let mut at = *offset;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            if draw.keep() {
                put(image, at, &bytes[at - offset..next - offset]);
            }
            at = next;
        }
        if draw.one_in(2) && image.len() < end {
            image.resize(end, 0);
        }
        "append torn"
    } else if draw.keep() {
        op.apply(image);
        "append kept"
    } else {
        "append lost"
    }
}

pub enum Refused {
    Death,
    Fault(i32, Pending, usize),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Death => died(),
            Refused::Fault(errno, ..) => Self::from_raw_os_error(errno),
        }
    }
}
