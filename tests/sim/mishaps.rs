//! What goes wrong in a simulated life: faults of the disk, a full disk, flipped bits, clocks, and what a crash takes.
//!
//! Place: a part of `life.rs`, which decides when. Every choice comes from the life's seed; whatever a seed turned off does
//! not happen. *ONE-FLIP-A-FILE*: so that what may be lost is known to the model; a bit that may lie in a torn tail is
//! left alone, since nobody could tell the two apart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay::event::Position;
use forebay::spool::index::FOOTER_BYTES;
use forebay::spool::segment::{SegmentHeader, SegmentId};

use super::{Kind, Life, Process};
use crate::content::{content, durable, live};
use crate::fault_files::{EIO, EMFILE, ENOSPC, Fault, Op, Pending};
use crate::promises::frames;

/// Where a frame has the lowest byte of its position.
const POSITION_AT: u64 = 8;

impl Life {
    /// One fault to come, once or for a while.
    pub(super) fn add_fault(&mut self) {
        if !self.on(Kind::Faults) {
            return;
        }
        let lying = self.on(Kind::LyingSyncs);
        let choice = self.draw(16);
        let pending = match self.draw(3) {
            1 if lying => Pending::Forget,
            2 if lying => Pending::Drop,
            _ => Pending::Keep,
        };
        let (op, errno) = match choice {
            0 => (Op::Open, EMFILE),
            1 | 2 => (Op::Read, EIO),
            3 => (Op::List, EIO),
            4 => (Op::Create, ENOSPC),
            5 => (Op::Write, EIO),
            6 | 7 => (Op::Write, ENOSPC),
            8 => (Op::SetLen, EIO),
            9..=11 => (Op::SyncData, EIO),
            12 | 13 => (Op::SyncDir, EIO),
            14 => (Op::Remove, EIO),
            _ => (Op::Rename, EIO),
        };
        let nth = 1 + self.draw(6);
        let partial = if self.draw(2) == 0 { 0 } else { self.draw(3000) as usize };
        let mut fault = Fault::new(op, nth, errno).on("/spool").pending(pending).partial(partial);
        fault.times = [1, 1, 2, 5][self.draw(4) as usize];
        self.tell(|| format!("fault: {fault:?}"));
        self.files.fail(fault);
    }

    /// The next syncs of segments or of their directory fail: a few, or until somebody mends the disk.
    pub(super) fn sicken(&mut self) {
        let op = if self.draw(4) == 0 { Op::SyncDir } else { Op::SyncData };
        let pending = match self.draw(3) {
            1 if self.on(Kind::LyingSyncs) => Pending::Forget,
            2 if self.on(Kind::LyingSyncs) => Pending::Drop,
            _ => Pending::Keep,
        };
        let mut fault = Fault::new(op, 1 + self.draw(2), EIO).on("/spool/segments").pending(pending);
        fault.times = [1, 2, 4, u64::MAX][self.draw(4) as usize];
        self.tell(|| format!("fault: {fault:?}"));
        self.files.fail(fault);
    }

    /// What happens beside faults while a process runs.
    pub(super) fn mishap(&mut self, process: &mut Process) {
        match self.draw(4) {
            0 if self.on(Kind::FullDisk) && !self.promises.receipted.is_empty() => {
                let room = self.draw(6000);
                self.files.set_capacity(Some(self.files.used() + room));
            }
            1 => self.files.set_capacity(None),
            2 if self.on(Kind::ShortReads) => {
                let seed = self.draw(u64::MAX);
                self.files.set_short_reads(Some(seed));
            }
            3 if self.on(Kind::Flips) => {
                let newest = process.opened.handle.shared().table.all().last().map(|segment| segment.path.clone());
                self.flip(true, newest);
            }
            _ => self.jump(),
        }
    }

    fn jump(&mut self) {
        if !self.on(Kind::Clock) {
            return;
        }
        let by = self.draw(40) as i64 - 20;
        // Seconds, days, decades.
        let by = by * [1_000, 86_400_000, 400_000_000_000][self.draw(3) as usize];
        self.files.meet(if by < 0 { "clock set back" } else { "clock set forward" });
        self.clock.jump_wall_ms(by);
    }

    /// Flips one bit of a file of segments: anywhere, or only in frames while a process runs, which has read the rest.
    fn flip(&mut self, frames_only: bool, not: Option<PathBuf>) {
        let mut paths = self.files.paths();
        paths.retain(|path| path.starts_with("/spool/segments") && !self.flipped.contains(path) && Some(path) != not.as_ref());
        let n = self.draw(paths.len() as u64) as usize;
        let (offset, bit) = (self.draw(u64::MAX), self.draw(8) as u8);
        if paths.is_empty() {
            return;
        }
        let path = paths.swap_remove(n);
        let bytes = self.files.contents(&path).unwrap_or_default();
        let plain = content(bytes.clone()) == bytes;
        // What a given-up file holds from there on was written again in the next one.
        let stop = self.base_behind(&path);
        let (held, _) = frames(&content(bytes.clone()), usize::MAX);
        let offset = match held.get(offset as usize % held.len().max(1)) {
            Some((at, ..)) if self.aimed_flips && plain => at + POSITION_AT,
            _ => offset % (bytes.len() as u64).max(1),
        };
        // A frame, or all of a coded block.
        let mut flipped = bytes;
        if let Some(byte) = flipped.get_mut(offset as usize) {
            *byte ^= 1 << bit;
        }
        let (left, _) = frames(&content(flipped), usize::MAX);
        let gone: Vec<_> = held.iter().filter(|frame| !left.contains(frame)).copied().collect();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let id = SegmentId::of_file_name(name);
        match (&gone[..], id) {
            // What is neither receipted nor behind something receipted may be a torn tail: no bit can harm it.
            (gone, _) if gone.iter().any(|(_, _, position, _)| *position >= self.promises.last_group) => return,
            (gone, _) if gone.iter().any(|(_, _, position, _)| !self.promises.risk.allows_flip(*position)) => return,
            (gone @ [(first, ..), ..], Some(id)) => {
                self.files.meet(if plain { "bit of a frame flipped" } else { "bit of a coded block flipped" });
                if self.aimed_flips && plain {
                    self.files.meet("position of a frame flipped");
                }
                let last = held.iter().rfind(|held| held.2 < stop && !gone.contains(held)).is_none_or(|held| held.0 < *first);
                let open_end = last && !self.is_sealed(&path);
                for (at, _, position, _) in gone {
                    self.promises.hit(id, *at, *position, open_end);
                }
            }
            _ if frames_only => return,
            _ => {
                self.files.meet("bit beside frames flipped");
                // An index that no longer checks is made anew by a scan, which meets what a power cut took once more.
                self.promises.told_again += self.promises.taken.len() as u64;
            }
        }
        self.tell(|| format!("flip: {} at {offset}, bit {bit}", path.display()));
        self.files.flip_bit(&path, offset, bit);
        self.flipped.push(path);
    }

    /// Whether a power cut leaves the file with an index.
    fn is_sealed(&self, path: &Path) -> bool {
        let bytes = durable(&self.files, path);
        bytes.len().checked_sub(FOOTER_BYTES).is_some_and(|at| bytes[at..].starts_with(b"FBYINDEX"))
    }

    /// Where the segment behind this file begins.
    fn base_behind(&self, path: &Path) -> Position {
        let mut behind = self.files.paths();
        behind.retain(|other| other > path && other.extension().is_some_and(|end| end == "seg"));
        let headers = behind.iter().filter_map(|path| SegmentHeader::decode(&live(&self.files, path)).ok());
        headers.map(|header| header.base).min().unwrap_or(Position(u64::MAX))
    }

    /// What happens to the machine between two processes. `kill`: whether only the process ended; `None`: drawn.
    pub(super) fn between(&mut self, kill: Option<bool>) {
        self.log();
        let seed = self.draw(u64::MAX);
        let choice = self.draw(6);
        let kill = kill.unwrap_or(self.on(Kind::Kill) && choice < 2);
        self.files = match choice {
            _ if kill => self.files.kill(),
            2 => self.files.crash(0),
            3 => self.files.crash(1),
            _ => self.files.crash(seed),
        };
        self.promises.risk.power_cut |= !kill;
        self.logged = 0;
        self.tell(|| if kill { "the process was killed".to_owned() } else { "the power was cut".to_owned() });
        if self.on(Kind::Marks) {
            match self.draw(8) {
                0 => {
                    self.files.meet("marks lost");
                    self.store.clear();
                }
                1 => {
                    self.files.meet("marks set back");
                    for _ in 0..1 + self.draw(3) {
                        self.store.pop_back();
                    }
                }
                2 if !self.store.is_empty() => {
                    self.files.meet("marks damaged");
                    let at = self.draw(u64::MAX) as usize;
                    if let Some(bytes) = self.store.back_mut() {
                        let at = at % bytes.len();
                        bytes[at] ^= 1;
                    }
                }
                _ => {}
            }
        }
        if self.on(Kind::Flips) && self.draw(4) == 0 {
            self.flip(false, None);
        }
        if self.draw(3) == 0 {
            self.jump();
        }
        self.clock.advance(Duration::from_secs(5));
    }
}
