//! A seeded life of the real spool on a disk that dies, with a model of what it promised to whom.
//!
//! Place: `sim.rs` runs histories through it. The spool is stepped synchronously, as its commit thread would: what is
//! driven is the real writer, recovery, cursor and removal, on [`FaultFiles`]. Owner: a [`World`] belongs to one history.
//! It remembers every receipt and every delivery; the store of the marks is a value that a crash may set back or lose,
//! as sled may (*LOSABLE*).
//!
//! Checked by name, after every crash and at the end: *NOTHING-LOST* (a receipted event was delivered, or is found at or
//! past its lane's mark), *DENSE* (nothing moves, positions grow, none given twice), *KEY-ORDER* (what is read is in the
//! order of submission, and so is what is delivered first), *EXACT-ACCOUNT* (index, sweep and pending count agree), and
//! that nothing is read that was never submitted. A power cut alone must never count as damage.
//!
//! Failure: an assertion that tells the seed and the stops, with which `FOREBAY_SIM=seed:stop,stop` repeats the history.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay::coding::{Coding, KeyRing};
use forebay::event::{KeyHash, LANES, Lane, Position};
use forebay::host::{Host, mix64};
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::{self, Frame};
use forebay::spool::{OpenError, Opened, SpoolOptions, open, prepare, remove_covered};

use super::content::keys;
use super::fault_files::{Fault, FaultFiles, SimClock, is_death, sim_host};

/// Submitted events are numbered from 1, in order.
type Id = u64;

type Marks = Box<[Position; LANES]>;

/// A saved checkpoint.
#[derive(Clone, Debug)]
struct Saved {
    durable: Position,
    marks: Marks,
}

/// What a history is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// In each life the machine dies at this changing operation; in the life after the last it does not.
    pub stops: Vec<u64>,
    /// Steps of the whole history.
    pub steps: u32,
    /// Set on the disk of the first life.
    pub faults: Vec<Fault>,
    /// Only power cuts: no lost marks, no process kills.
    pub plain: bool,
}

/// How a life ended.
enum End {
    Died,
    Finished,
}

pub struct World {
    plan: Plan,
    files: FaultFiles,
    clock: Arc<SimClock>,
    draws: u64,
    steps_left: u32,
    next_id: Id,
    pub receipted: BTreeMap<Position, Id>,
    delivered: BTreeSet<Id>,
    /// The last event delivered for the first time, of each key.
    last_first: BTreeMap<String, Id>,
    saved: Vec<Saved>,
    /// Changing operations of each life.
    pub ops: Vec<u64>,
    /// Events of unreceipted groups that recovery found; a history with stops should meet some.
    pub found_unreceipted: u64,
    pub repeated: u64,
}

fn key_of(id: Id) -> String {
    format!("user-{}", mix64(id) % 7)
}

fn data_of(id: Id) -> Vec<u8> {
    let mut data = format!("event {id} ").into_bytes();
    data.resize(data.len() + (mix64(id ^ 0xda7a) % 900) as usize, b'.');
    data
}

fn id_of(data: &[u8]) -> Option<Id> {
    let text = std::str::from_utf8(data).ok()?;
    let id = text.strip_prefix("event ")?.split(' ').next()?.parse().ok()?;
    (data_of(id) == data).then_some(id)
}

/// A death, or panic: in a simulated history nothing else may stop an operation that is not retried.
fn died_or_panic(error: &io::Error) {
    assert!(is_death(error), "an error that is not the machine's death: {error}");
}

impl World {
    /// Runs a whole history and all its checks.
    pub fn run(plan: Plan) -> Self {
        let clock = Arc::new(SimClock::new());
        let draws = mix64(plan.seed ^ 0x7041_d000);
        let steps_left = plan.steps;
        let mut world = Self {
            plan: plan.clone(),
            files: FaultFiles::new(),
            clock,
            draws,
            steps_left,
            next_id: 1,
            receipted: BTreeMap::new(),
            delivered: BTreeSet::new(),
            last_first: BTreeMap::new(),
            saved: Vec::new(),
            ops: Vec::new(),
            found_unreceipted: 0,
            repeated: 0,
        };
        for fault in plan.faults {
            world.files.fail(fault);
        }
        let mut stops = plan.stops.into_iter();
        loop {
            let stop = stops.next();
            if let Some(stop) = stop {
                world.files.stop_at(stop);
            }
            let end = world.life();
            world.ops.push(world.files.ops());
            match (end, stop) {
                // A stop beyond the end of the history.
                (End::Finished, _) => return world,
                (End::Died, Some(_)) => world.crash(),
                (End::Died, None) => panic!("{}: the machine died without being told to", world.name()),
            }
        }
    }

    fn name(&self) -> String {
        let stops: Vec<String> = self.plan.stops.iter().map(u64::to_string).collect();
        format!("FOREBAY_SIM={}:{}", self.plan.seed, stops.join(","))
    }

    /// A failed sync may have left good bytes in the page cache that are not on the disk. A process that starts over them
    /// after a kill cannot know that, and a power cut then shows them as damage; they were never receipted.
    fn faulty(&self) -> bool {
        !self.plan.faults.is_empty()
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.draws) % below
    }

    fn crash(&mut self) {
        let choice = self.draw(8);
        let seed = self.draw(u64::MAX);
        self.files = match choice {
            _ if self.plan.plain => self.files.crash(seed),
            0 | 1 => self.files.kill(),
            2 => self.files.crash(0),
            3 => self.files.crash(1),
            _ => self.files.crash(seed),
        };
        if !self.plan.plain {
            match self.draw(6) {
                0 => self.saved.clear(),
                1 => drop(self.saved.pop()),
                _ => {}
            }
        }
        self.clock.advance(Duration::from_secs(5));
        let jump = self.draw(20_000) as i64 - 10_000;
        self.clock.jump_wall_ms(jump);
    }

    fn options() -> SpoolOptions {
        SpoolOptions { stream: "clicks".into(), dir: PathBuf::from("/spool"), max_bytes: 1 << 30, segment_bytes: 4096 }
    }

    fn saved(&self) -> Saved {
        let none = || Saved { durable: Position(0), marks: Box::new([Position(0); LANES]) };
        self.saved.last().cloned().unwrap_or_else(none)
    }

    fn open(&self, host: &Host, saved: &Saved) -> Result<Opened, OpenError> {
        let options = Self::options();
        prepare(host, &options)?;
        open(host, &options, saved.durable, &Arc::default())
    }

    /// From the opening of the spool to the machine's death or the end of the history.
    fn life(&mut self) -> End {
        let host = sim_host(&self.files, &self.clock, mix64(self.plan.seed ^ self.files.ops()));
        // Every other history lies in coded files.
        let host = match self.plan.seed % 4 {
            1 => Coding { compress: true, keys: KeyRing::new(keys()) }.host(&host),
            3 => Coding { compress: false, keys: KeyRing::new(keys()) }.host(&host),
            _ => host,
        };
        let saved = self.saved();
        let opened = match self.open(&host, &saved) {
            Ok(opened) if !self.files.has_died() => opened,
            // What cannot be synced does not stop an opening, and the death of the machine looks like that.
            Ok(_) => return End::Died,
            Err(OpenError::Io { error, .. }) if is_death(&error) => return End::Died,
            Err(OpenError::Io { error, .. }) if self.faulty() => {
                // The supervisor starts the agent again.
                tracing::debug!(%error, "the start failed, as the plan has it");
                return self.life();
            }
            Err(error) => panic!("{}: BORING-RECOVERY: the spool does not open: {error}", self.name()),
        };
        if !self.faulty() {
            assert_eq!(opened.damaged_events, 0, "{}: a crash was taken for damage", self.name());
        }
        let mut life = Life { marks: saved.marks.clone(), opened, host, found: BTreeMap::new() };
        match self.check(&mut life).and_then(|()| self.steps(&mut life)) {
            Ok(()) => End::Finished,
            Err(error) => {
                died_or_panic(&error);
                End::Died
            }
        }
    }

    /// Reads everything that is there.
    fn read(&self, life: &Life) -> io::Result<BTreeMap<Position, Id>> {
        let mut cursor = Cursor::new(Arc::clone(life.opened.handle.shared()), Arc::clone(&life.host.files));
        let mut found = BTreeMap::new();
        let mut at = Position(0);
        while let Some(swept) = cursor.next(at)? {
            assert!(swept.damaged.is_empty() || self.faulty(), "{}: good frames became bad: {:?}", self.name(), swept.damaged);
            let mut bytes = &swept.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                let id = id_of(frame.data()).unwrap_or_else(|| panic!("{}: an event nobody sent", self.name()));
                assert_eq!(frame.key_bytes(), key_of(id).as_bytes(), "{}: a key of another event", self.name());
                assert!(found.insert(frame.position(), id).is_none(), "{}: DENSE: one position twice", self.name());
                at = Position(frame.position().0 + 1);
                bytes = &bytes[frame.len()..];
            }
            at = at.max(Position(swept.chunk.first.0 + u64::from(swept.chunk.count)));
        }
        Ok(found)
    }

    /// What must hold just after opening.
    fn check(&mut self, life: &mut Life) -> io::Result<()> {
        let found = self.read(life)?;
        let name = self.name();
        let ids: Vec<Id> = found.values().copied().collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{name}: KEY-ORDER: read in another order than submitted: {ids:?}");
        assert!(ids.last().is_none_or(|id| *id < self.next_id), "{name}: an event nobody sent");
        for (position, id) in &self.receipted {
            let lane = KeyHash::of_key(&key_of(*id)).lane();
            let will_be_delivered = found.get(position) == Some(id) && *position >= life.marks[lane.index()];
            let was_delivered = self.delivered.contains(id);
            assert!(will_be_delivered || was_delivered, "{name}: NOTHING-LOST: event {id} at {position} was receipted");
            assert!(found.get(position).is_none_or(|other| other == id), "{name}: DENSE: {position} was given to another event");
        }
        let next = life.opened.writer.next();
        let after = self.receipted.keys().next_back().map_or(0, |position| position.0 + 1);
        assert!(next.0 >= after, "{name}: DENSE: positions go on at {next}, before the receipted {after}");
        assert!(next >= life.marks.iter().copied().max().unwrap_or_default(), "{name}: positions go on behind a mark");
        self.check_lanes(life, &found)?;
        self.found_unreceipted += found.keys().filter(|position| !self.receipted.contains_key(position)).count() as u64;
        life.found = found;
        Ok(())
    }

    /// The lane index and the count of pending events agree with the sweep.
    fn check_lanes(&self, life: &Life, found: &BTreeMap<Position, Id>) -> io::Result<()> {
        let mut cursor = Cursor::new(Arc::clone(life.opened.handle.shared()), Arc::clone(&life.host.files));
        let mut by_lane = BTreeMap::new();
        let (mut pending, mut damaged) = (0, 0);
        for segment in life.opened.handle.shared().table.all() {
            pending += cursor.pending(&segment, &life.marks)?;
            for (lane, entry) in cursor.lane_frames(&segment, Lane(0), Lane(LANES as u16 - 1))? {
                let mut bytes = Vec::new();
                if !cursor.read_frame(&segment, entry, &mut bytes)? {
                    assert!(self.faulty(), "{}: an index entry without a frame", self.name());
                    damaged += 1;
                    continue;
                }
                let frame = Frame::check(&bytes).expect("read_frame checks");
                assert_eq!(frame.hash().lane(), lane, "{}: a frame in another lane's index", self.name());
                by_lane.insert(frame.position(), id_of(frame.data()).expect("an event of ours"));
            }
        }
        assert_eq!(&by_lane, found, "{}: the lane index and the sweep disagree", self.name());
        let expected = found.iter().filter(|(position, id)| **position >= life.mark_of(**id)).count();
        // Damaged frames stay pending until the dispatcher meets them.
        let fits = (expected as u64..=expected as u64 + damaged).contains(&pending);
        assert!(fits, "{}: EXACT-ACCOUNT: {pending} pending, {expected} found, {damaged} damaged", self.name());
        Ok(())
    }

    fn steps(&mut self, life: &mut Life) -> io::Result<()> {
        while self.steps_left > 0 {
            self.steps_left -= 1;
            self.clock.advance(Duration::from_millis(7));
            match self.draw(10) {
                0..=5 => self.commit(life)?,
                6 | 7 => self.deliver(life, false),
                8 => self.save(life),
                _ => self.remove(life)?,
            }
        }
        self.commit(life)?;
        self.deliver(life, true);
        self.save(life);
        for (position, id) in &self.receipted {
            assert!(self.delivered.contains(id), "{}: NOTHING-LOST: event {id} at {position}", self.name());
        }
        self.remove(life)?;
        life.opened.writer.seal();
        Ok(())
    }

    fn commit(&mut self, life: &mut Life) -> io::Result<()> {
        let mut batches = Vec::new();
        let first = self.next_id;
        for _ in 0..1 + self.draw(3) {
            let mut batch = Vec::new();
            for _ in 0..1 + self.draw(3) {
                let key = key_of(self.next_id);
                frame::encode(&mut batch, &key, KeyHash::of_key(&key), false, &data_of(self.next_id));
                self.next_id += 1;
            }
            batches.push(batch);
        }
        loop {
            let base = life.opened.writer.next();
            match life.opened.writer.commit(&mut batches) {
                Ok(_) => {
                    for (position, id) in (base.0..).map(Position).zip(first..self.next_id) {
                        let before = self.receipted.insert(position, id);
                        assert_eq!(before, None, "{}: DENSE: {position} was given twice", self.name());
                        life.found.insert(position, id);
                    }
                    return Ok(());
                }
                // As the commit thread does: the same group again, to a new file.
                Err(error) if is_death(&error) => return Err(error),
                Err(_) => assert!(self.faulty(), "{}: a commit failed", self.name()),
            }
        }
    }

    /// Delivers, in order, a drawn part of the lanes up to a drawn place, or everything.
    fn deliver(&mut self, life: &mut Life, all: bool) {
        let upto = Position(if all { u64::MAX } else { self.draw(life.opened.writer.next().0 + 1) });
        let lanes = if all { u64::MAX } else { self.draw(u64::MAX) | 1 };
        let chosen = |lane: Lane| lanes >> (lane.0 % 64) & 1 == 1;
        let mut blocked = BTreeMap::new();
        for (position, id) in &life.found {
            let lane = KeyHash::of_key(&key_of(*id)).lane();
            if *position < life.marks[lane.index()] {
                continue;
            }
            if *position >= upto || !chosen(lane) {
                blocked.entry(lane).or_insert(*position);
                continue;
            }
            if !self.delivered.insert(*id) {
                self.repeated += 1;
            } else {
                let last = self.last_first.insert(key_of(*id), *id);
                assert!(last.is_none_or(|last| last < *id), "KEY-ORDER: event {id} was delivered after {last:?}");
            }
        }
        for lane in (0..LANES as u16).map(Lane) {
            let mark = blocked.get(&lane).copied().unwrap_or_else(|| life.opened.writer.next());
            let mark = life.marks[lane.index()].max(mark);
            life.marks[lane.index()] = mark;
        }
    }

    fn save(&mut self, life: &Life) {
        self.saved.push(Saved { durable: life.opened.writer.next(), marks: life.marks.clone() });
    }

    fn remove(&self, life: &Life) -> io::Result<()> {
        let marks = self.saved().marks;
        match remove_covered(&life.host, &life.opened.handle.shared().table, &marks) {
            Ok(_) => {}
            Err(error) if is_death(&error) => return Err(error),
            Err(error) => assert!(self.faulty(), "{}: {error}", self.name()),
        }
        Ok(())
    }

    /// The disk at the end.
    pub fn files(&self) -> &FaultFiles {
        &self.files
    }
}

struct Life {
    opened: Opened,
    host: Host,
    marks: Marks,
    found: BTreeMap<Position, Id>,
}

impl Life {
    fn mark_of(&self, id: Id) -> Position {
        self.marks[KeyHash::of_key(&key_of(id)).lane().index()]
    }
}

/// A spool with `events` events in small segments, closed; for tests that damage it.
pub fn written(events: u64) -> (FaultFiles, Arc<SimClock>) {
    let (files, clock) = (FaultFiles::new(), Arc::new(SimClock::new()));
    let host = sim_host(&files, &clock, 1);
    let options = World::options();
    prepare(&host, &options).expect("an empty disk");
    let mut writer = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool").writer;
    for id in 1..=events {
        let (mut batch, key) = (Vec::new(), key_of(id));
        frame::encode(&mut batch, &key, KeyHash::of_key(&key), false, &data_of(id));
        writer.commit(&mut [batch]).expect("a good disk");
    }
    writer.seal();
    (files, clock)
}

/// Opens a spool and reads everything: the events found, and how many the spool says are damaged, by opening and sweep.
pub fn read_damaged(files: &FaultFiles, clock: &Arc<SimClock>) -> (BTreeSet<Id>, u64) {
    let host = sim_host(files, clock, 1);
    let opened = open(&host, &World::options(), Position(0), &Arc::default()).expect("damage is no reason not to open");
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
    let (mut found, mut damaged, mut at) = (BTreeSet::new(), opened.damaged_events, Position(0));
    while let Some(swept) = cursor.next(at).expect("a disk that reads") {
        damaged += swept.damaged.len() as u64;
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            found.insert(id_of(frame.data()).expect("an event of ours"));
            at = Position(frame.position().0 + 1);
            bytes = &bytes[frame.len()..];
        }
        at = at.max(Position(swept.chunk.first.0 + u64::from(swept.chunk.count)));
    }
    (found, damaged)
}

/// The segment files.
pub fn segments(files: &FaultFiles) -> Vec<PathBuf> {
    let in_segments = |path: &PathBuf| path.parent() == Some(Path::new("/spool/segments"));
    files.paths().into_iter().filter(in_segments).collect()
}
