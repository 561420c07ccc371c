//! The sync classes in simulated lives: what the commit thread does between groups, and what a power cut may take.
//!
//! Place: a part of `life.rs`; `promises.rs` asks its [`Risk`]. A life has one class, drawn from its seed and from nothing
//! else, so that the lives of class `always` are what they were before there were others. The timer is the real one.
//!
//! The promise of each class. `always`: no receipted event is lost. In the weaker ones the end of a process alone takes
//! nothing either (*NOTHING-LOST*). A power cut may take, with `interval`, what was written since the last sync, and a sync
//! comes at most that time after the first such write (*INTERVAL-BOUND*); with `os`, what was written since the segment
//! was begun, or since it was last synced for another reason (*SEALED-STAYS*). Both may lose what a failed sync left in
//! doubt, of which somebody was told. Whatever goes: nothing before it is missing, no position is held twice or out of
//! order, and what is missing below the next position is counted as damaged at the opening (*EXACT-ACCOUNT*).
//!
//! It is no promise that what is left of the unsynced part is a prefix of it: the disk may keep a later group and lose an
//! earlier one. Recovery keeps the later one and counts the other, which loses less than a cut would.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay::config::SyncClass;
use forebay::event::Position;
use forebay::host::{Clock, mix64};
use forebay::spool::OpenError;
use forebay::spool::segment::SegmentId;

use super::{Life, Process, Stop};
use crate::fault_files::is_death;
use crate::planted::Plant;

/// The class of this seed's life: five in eight are `always`.
pub fn class_of(seed: u64) -> SyncClass {
    match mix64(seed ^ 0x5c1a) % 8 {
        0 | 1 => SyncClass::Interval(Duration::from_millis(10 + mix64(seed ^ 0x171e) % 190)),
        2 => SyncClass::Os,
        _ => SyncClass::Always,
    }
}

/// What the class lets a power cut take, as far as its promise goes and not as the disk has it.
#[derive(Debug)]
pub struct Risk {
    class: SyncClass,
    /// Receipted and not synced: until when class `interval` owes the sync, and where the group began.
    unsynced: BTreeMap<Position, (Duration, Position)>,
    /// Their sync failed, and somebody was told.
    in_doubt: BTreeSet<Position>,
    /// The file of the last group.
    file: Option<SegmentId>,
    /// The power was cut since the last opening.
    pub power_cut: bool,
    /// What lies before this may be flipped: the group that begins here is durable and proves all before it.
    solid: Position,
}

impl Default for Risk {
    fn default() -> Self {
        Self {
            class: SyncClass::Always,
            unsynced: BTreeMap::new(),
            in_doubt: BTreeSet::new(),
            file: None,
            power_cut: false,
            solid: Position(0),
        }
    }
}

impl Risk {
    pub fn new(class: SyncClass) -> Self {
        Self { class, ..Self::default() }
    }

    pub fn is_always(&self) -> bool {
        self.class == SyncClass::Always
    }

    /// A receipt left after the write alone, for an event of the group that began at `first`.
    pub fn receipted(&mut self, position: Position, first: Position, now: Duration) {
        let due = match self.class {
            SyncClass::Always => return,
            SyncClass::Interval(after) => now + after,
            SyncClass::Os => Duration::MAX,
        };
        self.unsynced.insert(position, (due, first));
    }

    /// The commit thread looked at its timer, and no sync failed. With `Duration::MAX` all that was receipted is synced.
    pub fn passed(&mut self, now: Duration) {
        self.unsynced.retain(|_, (due, first)| {
            let synced = *due <= now;
            if synced {
                self.solid = self.solid.max(*first);
            }
            !synced
        });
    }

    /// A sync of what was unsynced failed, and that was told.
    pub fn told_in_doubt(&mut self) {
        self.in_doubt.extend(std::mem::take(&mut self.unsynced).into_keys());
    }

    /// An opening ended with an error, perhaps that of a sync of what a kill left unsynced.
    pub fn told_in_doubt_by(&mut self, error: &OpenError) {
        if !matches!(error, OpenError::Io { error, .. } if is_death(error)) {
            self.told_in_doubt();
        }
    }

    /// It may be gone whatever happened since.
    pub fn is_in_doubt(&self, position: Position) -> bool {
        self.in_doubt.contains(&position)
    }

    /// The class allows what happened since the last opening to have taken this.
    pub fn may_take(&self, position: Position) -> bool {
        self.is_in_doubt(position) || self.power_cut && self.unsynced.contains_key(&position)
    }

    /// A bit there harms that frame alone: a durable group behind it proves that it is no torn tail.
    pub fn allows_flip(&self, position: Position) -> bool {
        self.is_always() || position < self.solid && self.in_doubt.is_empty()
    }

    pub fn has_doubts(&self) -> bool {
        !self.in_doubt.is_empty()
    }

    /// The name of the promise that the loss of an event breaks which may not be taken.
    pub fn promise(&self) -> &'static str {
        match self.class {
            SyncClass::Interval(_) if self.power_cut => "INTERVAL-BOUND",
            SyncClass::Os if self.power_cut => "SEALED-STAYS",
            _ => "NOTHING-LOST",
        }
    }

    /// An opening tells whether it could sync what it found.
    pub fn opening(&mut self, unsynced: bool) {
        if unsynced && !self.power_cut {
            self.told_in_doubt();
        }
    }

    /// What an opening found is checked, and is durable where it is not in doubt.
    pub fn opened(&mut self) {
        if self.power_cut {
            // What is there now was read from the disk itself.
            self.in_doubt.clear();
        }
        self.unsynced.clear();
        (self.file, self.power_cut) = (None, false);
    }
}

impl Life {
    /// What the commit thread sees to between two groups: the sync that is due, and a disk that failed one.
    pub(super) fn care(&mut self, process: &mut Process) -> Result<(), Stop> {
        if self.promises.risk.is_always() {
            return Ok(());
        }
        let now = self.clock.monotonic();
        let synced = self.plant == Plant::DueSyncSkipped || process.timer.run(&mut process.opened.writer, now);
        self.look()?;
        if synced {
            self.promises.risk.passed(now);
        } else {
            self.tell(|| "a sync that was due failed".to_owned());
            self.promises.risk.told_in_doubt();
            process.writable = false;
        }
        if !process.writable {
            process.writable = process.opened.writer.probe().is_ok();
            self.look()?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), Stop> {
        self.note_lies();
        if self.files.has_died() { Err(Stop::Died) } else { Ok(()) }
    }

    /// Before the events of a group that was committed to `file` are receipted: a new file means that the last one was
    /// synced and sealed, or given up.
    pub(super) fn before_receipts(&mut self, process: &mut Process, file: SegmentId) {
        let doubtful = process.opened.writer.take_doubtful();
        let risk = &mut self.promises.risk;
        if doubtful.is_some() {
            risk.told_in_doubt();
        } else if risk.file != Some(file) {
            risk.passed(Duration::MAX);
        }
        risk.file = Some(file);
        process.writable = true;
        process.timer.wrote(self.class, self.clock.monotonic());
    }

    /// After the file was sealed or given up: all in it is synced, or told to be in doubt.
    pub(super) fn after_last_write(&mut self, process: &mut Process) {
        self.note_lies();
        match process.opened.writer.take_doubtful() {
            Some(doubtful) if !is_death(&doubtful.error) => self.promises.risk.told_in_doubt(),
            _ if self.files.has_died() => {}
            _ => self.promises.risk.passed(Duration::MAX),
        }
    }
}
