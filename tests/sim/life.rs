//! One seeded life of the real spool: everything that can happen to it, in an order that the seed decides.
//!
//! Place: `lives.rs` runs thousands of these, `mutations.rs` runs them with a planted bug. A life is a chain of processes
//! on one disk. Each opens the spool (real recovery), writes groups with the real `Writer`, reads with the real `Cursor`
//! (`reader.rs`), saves real checkpoints into a store that a crash may lose or set back, deletes with the real
//! `remove_covered`, and ends by a clean stop through the real `commit_loop`, by a kill, or by a power cut before any
//! operation. `promises.rs` is the model and judges.
//!
//! Determinism: one thread, every choice from the seed, both clocks simulated; [`Outcome::trace`] tells it all.
//! *Swarm*: each seed turns whole kinds of misfortune off, so that the others meet in more combinations.
//!
//! Failure: [`Outcome::verdict`] names the promise. Absent on purpose: threads, sockets, Kinesis, sled's own files.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay::checkpoint::Checkpoint;
use forebay::coding::{Coding, KeyRing};
use forebay::config::SyncClass;
use forebay::event::{Lane, Position};
use forebay::host::{Clock, Host, mix64};
use forebay::spool::frame;
use forebay::spool::gather::SyncTimer;
use forebay::spool::held::Held;
use forebay::spool::{Opened, SpoolOptions, remove_covered};

#[path = "classes.rs"]
pub mod classes;
#[path = "ends.rs"]
mod ends;
#[path = "mishaps.rs"]
mod mishaps;
#[path = "opening.rs"]
mod opening;

use self::classes::{Risk, class_of};
use crate::content::{durable, keys};
use crate::fault_files::{ENOSPC, FaultFiles, Met, OpRecord, SeededEntropy, SimClock, is_death};
use crate::planted::{Plant, PlantedFiles};
use crate::promises::{Broken, FEW_KEYS, Id, KEYS, Marks, Promises, data_of, hash_of, holds, id_of, key_of};
use crate::reader::{ReadError, Reader};

/// Operations within which an opening must end.
const OPEN_OPERATIONS_MAX: u64 = 5_000;

/// Checkpoints that the store remembers to be set back to.
const SAVED_MAX: usize = 4;

/// One line of a life's story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What the disk was asked.
    Disk(OpRecord),
    /// What the model did or heard.
    Model(String),
}

/// How a life went.
pub struct Outcome {
    /// The promise that was broken, if one was.
    pub verdict: Result<(), String>,
    /// What it met, by name.
    pub met: Met,
    /// All of it.
    pub trace: Vec<Line>,
    /// Groups that recovery found though they had no receipt: events of them.
    pub found_unreceipted: u64,
    pub receipted: usize,
    /// Receipted events that power cuts took by leave of a weaker sync class.
    pub taken: u64,
}

/// Why a process does not go on.
enum Stop {
    Died,
    Broken(Broken),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Kinds of misfortune that a seed may turn off.
#[derive(Clone, Copy)]
enum Kind {
    Kill,
    Death,
    Faults,
    LyingSyncs,
    FullDisk,
    ShortReads,
    Flips,
    Clock,
    Marks,
    Lag,
}

/// A group on its way to the disk.
struct Group {
    batches: Vec<Vec<u8>>,
    counts: Vec<u64>,
    first: Id,
}

/// One process's share of the life.
struct Process {
    host: Host,
    opened: Opened,
    reader: Reader,
    waiting: Option<Group>,
    dead: u64,
    /// When class `interval` owes a sync.
    timer: SyncTimer,
    /// No sync failed since something was written.
    writable: bool,
}

struct Life {
    seed: u64,
    plant: Plant,
    class: SyncClass,
    draws: u64,
    off: u64,
    files: FaultFiles,
    clock: Arc<SimClock>,
    store: VecDeque<Vec<u8>>,
    promises: Promises,
    /// Files with a flipped bit: one each, so that what may be lost is known.
    flipped: Vec<PathBuf>,
    /// Bits are flipped in the positions of frames only, where they mislead most.
    aimed_flips: bool,
    /// The disk often fails syncs when a process starts.
    sick_openings: bool,
    steps_left: u64,
    trace: Vec<Line>,
    logged: usize,
}

/// Runs the life of this seed.
pub fn live(seed: u64, plant: Plant) -> Outcome {
    let class = class_of(seed);
    let mut life = Life {
        seed,
        plant,
        class,
        draws: mix64(seed ^ 0x11fe),
        // About a third of the kinds is off.
        off: mix64(seed ^ 0x50ff) & mix64(seed ^ 0x50fe),
        files: FaultFiles::new(),
        clock: Arc::new(SimClock::new()),
        store: VecDeque::new(),
        promises: Promises::new(if mix64(seed ^ 0xfe3).is_multiple_of(8) { FEW_KEYS.0 } else { 1 }, Risk::new(class)),
        flipped: Vec::new(),
        aimed_flips: mix64(seed ^ 0xa13d).is_multiple_of(4),
        sick_openings: mix64(seed ^ 0x51c4).is_multiple_of(8),
        steps_left: 40 + mix64(seed ^ 0x57e9) % 100,
        trace: Vec::new(),
        logged: 0,
    };
    life.files.meet(match class {
        SyncClass::Always => "class always",
        SyncClass::Interval(_) => "class interval",
        SyncClass::Os => "class os",
    });
    let verdict = match catch_unwind(AssertUnwindSafe(|| life.all())) {
        Ok(verdict) => verdict.map_err(|broken| broken.0),
        Err(panic) => Err(panic_text(panic.as_ref())),
    };
    life.log();
    let found_unreceipted = life.promises.found_unreceipted;
    let receipted = life.promises.receipted.len();
    let taken = life.promises.taken_events;
    Outcome { verdict, met: life.files.met(), trace: life.trace, found_unreceipted, receipted, taken }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("with something that is no text"))
}

fn options() -> SpoolOptions {
    SpoolOptions { stream: "clicks".into(), dir: PathBuf::from("/spool"), max_bytes: 1 << 30, segment_bytes: 3000 }
}

/// The events of a group that an opening held back.
pub fn held_events(held: &Held) -> Vec<(Position, Id)> {
    let (mut events, mut bytes) = (Vec::new(), held.frames());
    while let Some(frame) = frame::Frame::check(bytes) {
        events.push((frame.position(), id_of(frame.data()).unwrap_or_default()));
        bytes = &bytes[frame.len()..];
    }
    events
}

fn lanes() -> Vec<Lane> {
    let mut lanes: Vec<Lane> = (0..KEYS).map(|n| hash_of(&format!("user-{n}")).0.lane()).collect();
    lanes.sort_unstable();
    lanes.dedup();
    lanes
}

impl Life {
    fn draw(&mut self, below: u64) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.draws) % below.max(1)
    }

    fn on(&self, kind: Kind) -> bool {
        self.off >> (kind as u64) & 1 == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let n = self.draw(of.len() as u64) as usize;
        of.get(n).copied()
    }

    fn log(&mut self) {
        let log = self.files.log();
        self.trace.extend(log[self.logged..].iter().cloned().map(Line::Disk));
        self.logged = log.len();
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        self.log();
        self.trace.push(Line::Model(what()));
    }

    fn all(&mut self) -> Result<(), Broken> {
        loop {
            match self.process() {
                Ok(()) if self.steps_left == 0 => break,
                Ok(()) => {}
                Err(Stop::Died) => self.between(None),
                Err(Stop::Broken(broken)) => return Err(broken),
            }
        }
        self.last_process()
    }

    /// From an opening to an end that is not a death within an operation.
    fn process(&mut self) -> Result<(), Stop> {
        if self.on(Kind::Death) && self.draw(3) > 0 {
            let until = if self.draw(3) == 0 { 12 } else { 70 };
            let stop = self.draw(until);
            self.files.stop_at(stop);
        }
        if self.on(Kind::Faults) && self.draw(4) == 0 {
            self.add_fault();
        }
        if self.sick_openings && self.draw(2) == 0 {
            self.sicken();
        }
        let mut process = self.open()?;
        while self.steps_left > 0 {
            self.steps_left -= 1;
            let passed = self.draw(50);
            self.clock.advance(Duration::from_millis(passed));
            self.care(&mut process)?;
            match self.draw(40) {
                0..=11 => self.commit(&mut process)?,
                13..=16 => drop(self.sweep(&mut process)?),
                17..=19 => self.read_lane(&mut process)?,
                20..=24 => self.send(&mut process)?,
                25..=28 => self.answer(&mut process),
                29 | 30 => self.save(&mut process)?,
                31 | 32 => self.remove(&mut process)?,
                33 => {
                    process.opened.writer.seal();
                    self.after_last_write(&mut process);
                }
                34 => self.fall_behind(&mut process),
                35 => self.add_fault(),
                36 if self.on(Kind::Death) => {
                    // The power goes within one of the next operations.
                    let stop = self.files.ops() + self.draw(8);
                    self.files.stop_at(stop);
                }
                36 | 12 => self.mishap(&mut process),
                37 => self.files.heal(),
                38 if self.draw(2) == 0 => {
                    self.clean_stop(process)?;
                    self.between(Some(true));
                    return Ok(());
                }
                39 if self.draw(2) == 0 => {
                    let kill = self.on(Kind::Kill) && self.draw(2) == 0;
                    self.between(Some(kill));
                    return Ok(());
                }
                _ => {}
            }
            if self.files.has_died() {
                return Err(Stop::Died);
            }
        }
        self.between(None);
        Ok(())
    }

    fn host(&self) -> Host {
        let files = PlantedFiles { disk: self.files.clone(), plant: self.plant.in_class(self.class) };
        // Each process has random bytes of its own, or two of them would make the same file.
        let entropy = SeededEntropy::new(mix64(self.seed ^ self.files.ops().wrapping_mul(31)));
        let host = Host { files: Arc::new(files), clock: self.clock.clone(), entropy: Arc::new(entropy) };
        // A third of the lives is coded, each process in its own way. Of no seed in `lives.rs` that found a bug: those are
        // stories of plain files.
        let draw = mix64(self.seed ^ 0xd284);
        if !draw.is_multiple_of(3) {
            return host;
        }
        let process = mix64(draw ^ self.files.ops());
        let mut keys = keys();
        if process & 1 == 0 {
            keys.reverse();
        }
        let coding = Coding { compress: process & 2 == 0, keys: KeyRing::new(keys) };
        coding.host(&host)
    }

    fn saved(&self) -> Checkpoint {
        self.store.back().and_then(|bytes| Checkpoint::decode(bytes)).unwrap_or_default()
    }

    /// Notices a sync that failed and will not write those bytes again.
    fn note_lies(&mut self) {
        let met = self.files.met();
        let lied = ["sync fails, pages forgotten", "sync fails, pages dropped", "directory sync fails, entries forgotten"];
        self.promises.sync_lied |= lied.iter().any(|kind| met.contains_key(kind));
    }

    fn put(&mut self, checkpoint: &Checkpoint) {
        self.store.push_back(checkpoint.encode());
        if self.store.len() > SAVED_MAX {
            self.store.pop_front();
        }
    }

    /// An operation failed: by the machine's death, by a fault, or for no reason, which breaks the promise `or`.
    fn failed(&mut self, error: &io::Error, fired: u64, or: &str) -> Result<(), Stop> {
        self.note_lies();
        if is_death(error) {
            return Err(Stop::Died);
        }
        let full = error.raw_os_error() == Some(ENOSPC);
        holds!(full || self.files.faults_fired() > fired, "{or}: {error}, though nothing is wrong with the disk");
        Ok(())
    }

    fn group(&mut self) -> Group {
        let first = self.promises.next_id;
        let (mut batches, mut counts) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.draw(3) {
            let mut batch = Vec::new();
            let count = 1 + self.draw(3);
            for _ in 0..count {
                let id = self.promises.next_id;
                self.promises.next_id += 1;
                let key = key_of(id);
                let (hash, explicit) = hash_of(&key);
                frame::encode(&mut batch, &key, hash, explicit, &data_of(id));
            }
            batches.push(batch);
            counts.push(count);
        }
        Group { batches, counts, first }
    }

    /// One try at a group; what failed waits, as in the commit thread, and its events keep their positions.
    fn commit(&mut self, process: &mut Process) -> Result<(), Stop> {
        if !self.resume(process)? {
            return Ok(());
        }
        let mut group = match process.waiting.take() {
            Some(group) => group,
            None => self.group(),
        };
        let base = process.opened.writer.next();
        let fired = self.files.faults_fired();
        let placed = match process.opened.writer.commit(&mut group.batches) {
            Ok(placed) => placed,
            Err(error) => {
                process.waiting = Some(group);
                self.tell(|| format!("commit at {base} failed: {error}"));
                self.after_last_write(process);
                return self.failed(&error, fired, "NOTHING-LOST");
            }
        };
        self.note_lies();
        let table = &process.opened.handle.shared().table;
        let looks = self.plant.looks() && self.class == SyncClass::Always;
        for (placed, batch) in placed.iter().zip(&group.batches).filter(|_| looks) {
            let path = table.dir().join(placed.segment.file_name());
            let held = durable(&self.files, &path);
            let durable = held.get(placed.offset as usize..).is_some_and(|rest| rest.starts_with(batch));
            holds!(durable, "RECEIPT-AFTER-SYNC: a group at {} is receipted and not on the disk", placed.first);
        }
        if let Some(placed) = placed.first() {
            self.before_receipts(process, placed.segment);
        }
        self.receipt(&mut process.reader, base, group.first, group.counts.iter().sum())
    }

    /// What the opening could not sync is written before anything else. False while that fails.
    fn resume(&mut self, process: &mut Process) -> Result<bool, Stop> {
        let fired = self.files.faults_fired();
        match process.opened.writer.write_held() {
            Ok(None) => Ok(true),
            Ok(Some((placed, held))) => {
                self.files.meet("group in doubt written again");
                self.tell(|| format!("held: {} events from {} on", held.events(), held.base()));
                let path = process.opened.handle.shared().table.dir().join(placed.segment.file_name());
                let there = durable(&self.files, &path);
                let there = there.get(placed.offset as usize..).is_some_and(|rest| rest.starts_with(held.frames()));
                holds!(there || !self.plant.looks(), "RECEIPT-AFTER-SYNC: what was held at {} is not on the disk", held.base());
                for (position, id) in held_events(&held) {
                    process.reader.committed(position, id);
                }
                Ok(true)
            }
            Err(error) => {
                self.tell(|| format!("what is held cannot be written: {error}"));
                self.failed(&error, fired, "NOTHING-LOST").map(|()| false)
            }
        }
    }

    fn receipt(&mut self, reader: &mut Reader, base: Position, first: Id, count: u64) -> Result<(), Stop> {
        self.tell(|| format!("receipt: {count} events from {first} at {base}"));
        let now = self.clock.monotonic();
        for n in 0..count {
            self.promises.receipt(Position(base.0 + n), first + n)?;
            self.promises.risk.receipted(Position(base.0 + n), base, now);
            reader.committed(Position(base.0 + n), first + n);
        }
        self.promises.receipted_group(base);
        Ok(())
    }

    fn met(&mut self, met: &[(forebay::spool::segment::SegmentId, u64)]) -> Result<(), Stop> {
        for (segment, offset) in met {
            self.tell(|| format!("damaged: {segment} at {offset}"));
            if self.plant != Plant::DamageUntold {
                self.promises.tell(*segment, *offset)?;
            }
        }
        Ok(())
    }

    fn read<T>(&mut self, outcome: Result<T, ReadError>, fired: u64, or: T) -> Result<T, Stop> {
        match outcome {
            Ok(value) => Ok(value),
            Err(ReadError::Broken(broken)) => Err(broken.into()),
            Err(ReadError::Io(error)) => self.failed(&error, fired, "NOTHING-LOST").map(|()| or),
        }
    }

    fn sweep(&mut self, process: &mut Process) -> Result<bool, Stop> {
        let (fired, mut met) = (self.files.faults_fired(), Vec::new());
        let outcome = process.reader.sweep_once(&mut met);
        self.met(&met)?;
        self.read(outcome, fired, true)
    }

    fn read_lane(&mut self, process: &mut Process) -> Result<(), Stop> {
        let Some(lane) = self.pick(&process.reader.lagging()) else { return Ok(()) };
        let (fired, mut met) = (self.files.faults_fired(), Vec::new());
        let outcome = process.reader.read_lane(lane, &mut met);
        self.files.meet("lane read");
        self.met(&met)?;
        self.read(outcome, fired, ())
    }

    fn fall_behind(&mut self, process: &mut Process) {
        if !self.on(Kind::Lag) {
            return;
        }
        if let Some(lane) = self.pick(&lanes()) {
            process.reader.fall_behind(lane);
        }
    }

    fn send(&mut self, process: &mut Process) -> Result<(), Stop> {
        for _ in 0..1 + self.draw(4) {
            let Some(lane) = self.pick(&process.reader.ready()) else { return Ok(()) };
            let count = 1 + self.draw(6) as usize;
            for (position, id) in process.reader.send(lane, count) {
                self.promises.deliver(position, id)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, process: &mut Process) {
        for _ in 0..1 + self.draw(6) {
            let Some(lane) = self.pick(&process.reader.under_way()) else { return };
            if self.draw(6) == 0 {
                process.reader.refused(lane);
            } else {
                let count = 1 + self.draw(8) as usize;
                process.reader.answered(lane, count);
            }
        }
    }

    fn save(&mut self, process: &mut Process) -> Result<(), Stop> {
        let marks = process.reader.marks();
        let mut durable = process.opened.writer.next();
        if self.plant == Plant::TornTailKept {
            let group = process.waiting.get_or_insert_with(|| self.group());
            durable.0 += group.counts.iter().sum::<u64>();
        }
        self.tell(|| format!("save: durable {durable}, lowest mark {}", marks.iter().min().copied().unwrap_or_default()));
        self.put(&Checkpoint { durable, dead: process.dead, marks, ..Checkpoint::default() });
        Ok(())
    }

    fn remove(&mut self, process: &mut Process) -> Result<(), Stop> {
        let saved = self.saved().marks;
        let marks: Box<Marks> = match self.plant {
            Plant::DeletionAheadOfDelivery => process.reader.marks_handed_out(),
            Plant::DeletionAheadOfSavedMark => process.reader.marks(),
            _ => saved.clone(),
        };
        let table = Arc::clone(&process.opened.handle.shared().table);
        let before = table.all();
        let fired = self.files.faults_fired();
        let outcome = remove_covered(&process.host, &table, &marks);
        let newest = before.last().filter(|newest| self.plant == Plant::NewestDeleted && newest.covered_by(&marks));
        if let Some(newest) = newest {
            process.opened.writer.seal();
            process.host.files.remove(&newest.path).ok();
            table.remove(newest.id);
        }
        let left: Vec<_> = table.all().iter().map(|segment| segment.id).collect();
        for gone in before.iter().filter(|segment| !left.contains(&segment.id)) {
            let end = gone.extent().end;
            self.tell(|| format!("remove: {} with {}..{end}", gone.id, gone.base));
            self.files.meet("segment removed");
            self.promises.removed(gone.id, gone.base, end, &saved)?;
            process.reader.cursor.forget(gone.id);
        }
        match outcome {
            Ok(_) => Ok(()),
            Err(error) => self.failed(&error, fired, "EXACT-ACCOUNT"),
        }
    }
}
