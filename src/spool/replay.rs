//! Appends events of a stopped agent's spool to it once more, as new events.
//!
//! Place: `forebay spool replay` without an agent; beside a running one its admin listener does it. It does what a
//! start does, in the same order and under the same lock: marks, recovery, the account of what recovery found; then
//! it commits the wanted events again through the [`Writer`](super::commit::Writer), with new positions, and seals.
//!
//! Failure: a lock that is held, marks that are lost (then a start sends all of it again anyway), a spool without room.
//! What was appended before a failure stays, and is told. Absent on purpose: choosing, asking, printing.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::frame;
use super::inspect::{InspectError, Select, SpoolDir};
use super::recover::{OpenError, doing};
use super::{SpoolOptions, open, prepare};
use crate::checkpoint::{Checkpoint, MarkStore as _, SledMarks, StoreError};
use crate::host::{self, Host};

/// Frame bytes of one commit.
const GROUP_BYTES: usize = 4 << 20;

/// Why not all was appended.
#[derive(Debug)]
pub enum ReplayError {
    /// The spool cannot be read or opened.
    Inspect(InspectError),
    /// The store of the marks cannot be opened or written.
    Marks(StoreError),
    /// There are no marks: everything in the files is sent again anyway.
    NoMarks,
    /// The spool would grow over its ceiling, bytes.
    Full(u64),
    /// A commit failed.
    Commit(io::Error),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inspect(error) => error.fmt(f),
            Self::Marks(error) => write!(f, "the store of the marks: {error}"),
            Self::NoMarks => f.write_str("the marks of what was delivered are lost, so the agent's next start sends everything again that is in the files; there is nothing to replay"),
            Self::Full(max_bytes) => write!(
                f,
                "the spool would grow over spool.max_bytes ({max_bytes} bytes); raise it, choose a smaller range, or let the agent deliver first"
            ),
            Self::Commit(error) => write!(f, "writing the events failed: {error}; those counted are durable"),
        }
    }
}

impl std::error::Error for ReplayError {}

impl From<OpenError> for ReplayError {
    fn from(error: OpenError) -> Self {
        Self::Inspect(InspectError::Open(error))
    }
}

impl From<InspectError> for ReplayError {
    fn from(error: InspectError) -> Self {
        Self::Inspect(error)
    }
}

impl From<StoreError> for ReplayError {
    fn from(error: StoreError) -> Self {
        Self::Marks(error)
    }
}

/// What was appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Appended {
    /// Events, durable.
    pub events: u64,
    /// Bytes of their data.
    pub bytes: u64,
}

/// Appends what `select` names, up to the end as it is now. `told` hears how far it is.
///
/// # Errors
/// [`ReplayError`], with what is durable nevertheless.
pub fn append(
    host: &Host,
    options: &SpoolOptions,
    select: &Select,
    mut told: impl FnMut(Appended),
) -> Result<Appended, (Appended, ReplayError)> {
    let mut done = Appended::default();
    match append_all(host, options, select, &mut done, &mut told) {
        Ok(()) => Ok(done),
        Err(error) => Err((done, error)),
    }
}

fn append_all(
    host: &Host,
    options: &SpoolOptions,
    select: &Select,
    done: &mut Appended,
    told: &mut dyn FnMut(Appended),
) -> Result<(), ReplayError> {
    let lock_path = options.dir.join("lock");
    let _lock = doing("locking", &lock_path, host::lock(&lock_path))?
        .ok_or_else(|| OpenError::Locked { path: lock_path.display().to_string() })?;
    prepare(host, options)?;
    let mut store = SledMarks::open(&options.dir.join("ledger"));
    let loaded = store.load().ok_or(ReplayError::NoMarks)?;
    let opened = open(host, options, loaded.durable, &Arc::default())?;
    let mut writer = opened.writer;
    let end = writer.next();
    // As a start does: what recovery found dead it finds once.
    let mut checkpoint = Checkpoint { durable: end, dead: loaded.dead + opened.damaged_events, ..loaded };
    store.save(&checkpoint)?;

    let table = Arc::clone(&opened.handle.shared().table);
    let select = Select { to: select.to.min(end), ..select.clone() };
    let spool = SpoolDir::open(host, Path::new(&options.dir))?;
    let mut group = Group::default();
    let mut commit = |group: &mut Group| -> Result<(), ReplayError> {
        if group.events == 0 {
            return Ok(());
        }
        if table.bytes() + writer.cost(group.events, group.frames.len() as u64) > options.max_bytes {
            return Err(ReplayError::Full(options.max_bytes));
        }
        writer.commit(&mut [std::mem::take(&mut group.frames)]).map_err(ReplayError::Commit)?;
        done.events += group.events;
        done.bytes += group.bytes;
        *group = Group::default();
        told(*done);
        Ok(())
    };
    let walked = spool.walk::<ReplayError>(&select, end, |met| {
        let key = std::str::from_utf8(met.frame.key_bytes()).expect("the frame was checked when it was read");
        frame::encode(&mut group.frames, key, met.frame.hash(), met.frame.explicit_hash(), met.frame.data());
        group.events += 1;
        group.bytes += met.frame.data().len() as u64;
        if group.frames.len() >= GROUP_BYTES {
            commit(&mut group)?;
        }
        Ok(ControlFlow::Continue(()))
    });
    let outcome = walked.and_then(|_| commit(&mut group));
    writer.seal();
    checkpoint.durable = writer.next();
    store.save(&checkpoint)?;
    outcome
}

/// Events that wait for the next commit.
#[derive(Default)]
struct Group {
    frames: Vec<u8>,
    events: u64,
    bytes: u64,
}
