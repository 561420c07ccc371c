//! Appends events of a stopped agent's spool to it once more, as new events.
//!
//! Place: `forebay spool replay` without an agent; beside a running one its admin listener does it. Reads as people do
//! (`inspect`) and appends as that agent would (`append`), with new positions.
//!
//! Failure: a lock that is held, marks that are lost (then a start sends all of it again anyway), a spool without room.
//! What was appended before a failure stays, and is told. Absent on purpose: choosing, asking, printing.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use super::append::{AppendError, Appender, WithoutMarks, lock};
use super::inspect::{InspectError, Select, SpoolDir};
use super::{OpenError, SpoolOptions, frame};
use crate::host::Host;

/// Frame bytes of one commit.
const GROUP_BYTES: usize = 4 << 20;

/// Why not all was appended.
#[derive(Debug)]
pub enum ReplayError {
    /// The spool cannot be read.
    Inspect(InspectError),
    /// It cannot be opened, or takes nothing more.
    Append(AppendError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inspect(error) => error.fmt(f),
            Self::Append(error) => {
                error.fmt(f)?;
                f.write_str(match error {
                    AppendError::NoMarks => {
                        ", so the agent's next start sends everything again that is in the files; there is nothing to replay"
                    }
                    AppendError::Full(_) => "; raise it, choose a smaller range, or let the agent deliver first",
                    AppendError::Commit(_) => "; the events counted are durable",
                    AppendError::Open(_) | AppendError::Marks(_) => "",
                })
            }
        }
    }
}

impl std::error::Error for ReplayError {}

impl From<InspectError> for ReplayError {
    fn from(error: InspectError) -> Self {
        Self::Inspect(error)
    }
}

impl From<AppendError> for ReplayError {
    fn from(error: AppendError) -> Self {
        Self::Append(error)
    }
}

impl From<OpenError> for ReplayError {
    fn from(error: OpenError) -> Self {
        Self::Append(AppendError::Open(error))
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
    let lock = lock(options)?;
    let mut appender = Appender::open(host, options, &lock, WithoutMarks::Refuse)?;
    let end = appender.next();
    let select = Select { to: select.to.min(end), ..select.clone() };
    let spool = SpoolDir::open(host, Path::new(&options.dir))?;
    let mut group = Group::default();
    let mut commit = |group: &mut Group| -> Result<(), ReplayError> {
        if group.events == 0 {
            return Ok(());
        }
        appender.commit(std::mem::take(&mut group.frames), group.events)?;
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
    let closed = appender.close();
    outcome?;
    Ok(closed?)
}

/// Events that wait for the next commit.
#[derive(Default)]
struct Group {
    frames: Vec<u8>,
    events: u64,
    bytes: u64,
}
