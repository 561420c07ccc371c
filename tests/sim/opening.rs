//! How a process of a simulated life opens the spool, tried again where the disk refuses, and what is checked when it is open.
//!
//! Place: a part of `life.rs`. The opening is the real one, within a budget of operations (*BORING-RECOVERY*); what it found is
//! compared with the model by `promises.rs`, counted as the agent counts it, and at times swept as the dispatcher sweeps.

use std::io;
use std::sync::Arc;

use forebay::checkpoint::Checkpoint;
use forebay::config::SyncClass;
use forebay::event::Position;
use forebay::host::Host;
use forebay::spool::cursor::Cursor;
use forebay::spool::frame;
use forebay::spool::gather::SyncTimer;
use forebay::spool::{OpenError, Opened, open, prepare};

use super::{Life, OPEN_OPERATIONS_MAX, Process, Stop, lanes, options};
use crate::fault_files::{DIED, Met, is_death};
use crate::planted::Plant;
use crate::promises::{Broken, Id, holds, id_of};
use crate::reader::Reader;

impl Life {
    pub(super) fn open(&mut self) -> Result<Process, Stop> {
        let host = self.host();
        let saved = self.saved();
        let mut refused = 0;
        let full = |met: &Met| met.get("disk full").copied().unwrap_or_default();
        let (full_before, fired_before) = (full(&self.files.met()), self.files.faults_fired());
        let opened = loop {
            let fired = self.files.faults_fired();
            self.files.set_budget(Some(OPEN_OPERATIONS_MAX));
            let opened = prepare(&host, &options()).and_then(|()| open(&host, &options(), saved.durable, &Arc::default()));
            self.files.set_budget(None);
            self.note_lies();
            let error = match opened {
                Ok(opened) if !self.files.has_died() => break opened,
                // A sync that failed does not stop an opening, and the death of the machine looks like one.
                Ok(_) => OpenError::Io { doing: "opening".to_owned(), error: io::Error::other(DIED) },
                Err(error) => error,
            };
            self.promises.opening_cut = true;
            self.promises.opening_cut_now = true;
            // A sync of it may be what failed.
            self.promises.risk.told_in_doubt_by(&error);
            match &error {
                OpenError::Io { error, .. } if is_death(error) => {
                    self.files.meet("death while opening");
                    return Err(Stop::Died);
                }
                OpenError::Io { .. } if self.files.faults_fired() > fired => {
                    // The supervisor starts the agent again, and in the end somebody mends the disk.
                    self.files.meet("opening refused for a fault");
                    refused += 1;
                    if refused == 3 {
                        self.files.heal();
                    }
                }
                _ => holds!(false, "BORING-RECOVERY: the spool does not open: {error}"),
            }
        };
        let damaged = if self.plant == Plant::DamageUntold { 0 } else { opened.damaged_events };
        let next = opened.writer.next();
        self.tell(|| format!("open: next {next}, {damaged} damaged, torn {}", opened.torn_bytes));
        if opened.writer.is_suspect() {
            self.files.meet("opened without a sync");
            let held = opened.writer.held().map_or(0, |held| held.events());
            self.tell(|| format!("unsynced: {held} events held back"));
        }
        if full(&self.files.met()) > full_before || self.files.faults_fired() > fired_before {
            self.promises.told_again += damaged;
        }
        self.files.set_quiet(true);
        let checked = self.check(&opened, &host, damaged, &saved);
        self.files.set_quiet(false);
        checked?;
        // As the agent does before it serves.
        let dead = saved.dead + damaged;
        self.put(&Checkpoint { clean: false, durable: next, dead, ..saved.clone() });
        let mut opened = opened;
        opened.writer.sync_each_group(self.class == SyncClass::Always);
        let cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        let reader = Reader::new(cursor, saved.marks, &lanes(), self.plant);
        Ok(Process { host, opened, reader, waiting: None, dead, timer: SyncTimer::default(), writable: true })
    }

    fn check(&mut self, opened: &Opened, host: &Host, damaged: u64, saved: &Checkpoint) -> Result<(), Stop> {
        let (found, bad) = self.promises.after_open(&self.files, opened, damaged, &saved.marks)?;
        let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        let mut pending = 0;
        for segment in opened.handle.shared().table.all() {
            let counted = cursor.pending(&segment, &saved.marks);
            pending += counted.map_err(|error| Broken(format!("NOTHING-LOST: pending events cannot be counted: {error}")))?;
        }
        let at_or_past = |(position, id): &(&Position, &Id)| **position >= saved.marks[crate::promises::lane_of(**id)];
        let expected = found.iter().filter(at_or_past).count() as u64;
        // A damaged frame stays pending until a reader meets it.
        // What a lying sync let vanish may be a whole group in one stretch, in the weaker classes a whole segment.
        let bad_events = match self.class {
            // What a flip took of a coded file is a block.
            _ if !self.promises.sync_lied => bad.max(self.promises.hit_events()),
            SyncClass::Always => bad * 9,
            _ => bad * 40,
        };
        holds!(
            (expected..=expected + bad_events).contains(&pending),
            "EXACT-ACCOUNT: {pending} counted as pending, {expected} found, {bad} damaged stretches"
        );
        if self.draw(4) == 0 {
            let mut swept = Vec::new();
            let mut at = Position(0);
            while let Some(chunk) = cursor.next(at).map_err(|error| Broken(format!("NOTHING-LOST: the sweep fails: {error}")))? {
                let chunk = chunk.chunk;
                let mut bytes = &chunk.bytes[..];
                while let Some(frame) = frame::Frame::check(bytes) {
                    swept.push((frame.position(), id_of(frame.data()).unwrap_or_default()));
                    at = Position(frame.position().0 + 1);
                    bytes = &bytes[frame.len()..];
                }
                at = at.max(Position(chunk.first.0 + u64::from(chunk.count)));
            }
            let found: Vec<(Position, Id)> = found.into_iter().collect();
            holds!(swept == found, "NOTHING-LOST: the sweep and the files disagree: {swept:?} and {found:?}");
        }
        Ok(())
    }
}
