//! Seeded crashes and faults while segments are rewritten under stuck lanes; and what rewriting does to the disk used.
//!
//! Place: beside `sim.rs`, with a smaller world of its own: the real writer, recovery, cursor, removal, planner and copy on
//! [`FaultFiles`]. A few keys are stuck until the end; the others are delivered; after each saved checkpoint what it covers
//! is removed and what is thin is rewritten. The world holds offsets of all events it has seen, as the dispatcher's queues
//! do, moves them when a copy takes its place, and reads every pending event through them.
//!
//! Checked by name, after every crash and at the end: *NOTHING-LOST* (a receipted event was delivered, or is found at or
//! past its lane's mark), *EXACT-ACCOUNT* (sweep, lane index and pending count agree; gaps are not taken for damage), and
//! that order and positions stay. Failure: an assertion that tells seed and stops.

#[path = "sim/content.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod content;
#[path = "common/fault_files.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the double")]
mod fault_files;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fault_files::{DIED, EIO, ENOSPC, Fault, FaultFiles, Op, Pending, SimClock, is_death, sim_host};
use forebay::coding::{Coding, KeyRing};
use forebay::event::{KeyHash, LANES, Lane, Position};
use forebay::host::{Host, mix64};
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::{self, Frame};
use forebay::spool::index::Entry;
use forebay::spool::rewrite::{NotRewritten, Planner, rewrite};
use forebay::spool::segment::{Segment, SegmentHeader, SegmentId};
use forebay::spool::{OpenError, Opened, SpoolOptions, open, prepare, remove_covered};

type Marks = Box<[Position; LANES]>;

const SEGMENT_BYTES: u64 = 12 << 10;
const KEYS: u64 = 16;

#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    /// In each life the machine dies at this changing operation.
    stops: Vec<u64>,
    fault: Option<Fault>,
}

struct World {
    plan: Plan,
    files: FaultFiles,
    clock: Arc<SimClock>,
    draws: u64,
    steps_left: u32,
    next_id: u64,
    receipted: BTreeMap<Position, u64>,
    delivered: BTreeSet<u64>,
    saved: Vec<(Position, Marks)>,
    /// Changing operations of each life.
    ops: Vec<u64>,
    rewritten: u64,
    refused: u64,
    /// Lives that began with a file that a rewriting had not finished, or with a rewritten segment.
    leftovers: u64,
    reopened: u64,
}

struct Life {
    opened: Opened,
    host: Host,
    cursor: Cursor,
    planner: Planner,
    marks: Marks,
    /// Where each event lies, as of when it was seen, and moved since.
    places: BTreeMap<Position, (SegmentId, Entry, u64)>,
}

fn key_of(id: u64) -> String {
    format!("user-{}", mix64(id) % KEYS)
}

fn lane_of(id: u64) -> Lane {
    KeyHash::of_key(&key_of(id)).lane()
}

fn data_of(id: u64) -> Vec<u8> {
    let mut data = format!("event {id} ").into_bytes();
    data.resize(data.len() + (mix64(id ^ 0xda7a) % 700) as usize, b'.');
    data
}

fn id_of(data: &[u8]) -> Option<u64> {
    let id = std::str::from_utf8(data).ok()?.strip_prefix("event ")?.split(' ').next()?.parse().ok()?;
    (data_of(id) == data).then_some(id)
}

fn options() -> SpoolOptions {
    SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes: 1 << 30, segment_bytes: SEGMENT_BYTES }
}

impl World {
    fn new(plan: Plan) -> Self {
        let draws = mix64(plan.seed ^ 0x5e91_e57a);
        let files = FaultFiles::new();
        files_fail(&files, plan.fault.clone());
        Self {
            plan,
            files,
            clock: Arc::new(SimClock::new()),
            draws,
            steps_left: 34,
            next_id: 1,
            receipted: BTreeMap::new(),
            delivered: BTreeSet::new(),
            saved: Vec::new(),
            ops: Vec::new(),
            rewritten: 0,
            refused: 0,
            leftovers: 0,
            reopened: 0,
        }
    }

    fn run(plan: Plan) -> Self {
        let mut world = Self::new(plan.clone());
        let mut stops = plan.stops.into_iter();
        loop {
            let stop = stops.next();
            if let Some(stop) = stop {
                world.files.stop_at(stop);
            }
            let end = world.life();
            world.ops.push(world.files.ops());
            match end {
                Ok(()) => return world,
                Err(error) => {
                    assert!(is_death(&error) && stop.is_some(), "{}: {error}", world.name());
                    world.crash();
                }
            }
        }
    }

    fn name(&self) -> String {
        format!("seed {}, stops {:?}, fault {:?}", self.plan.seed, self.plan.stops, self.plan.fault)
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.draws) % below
    }

    /// Two of the keys, whose lanes nobody delivers before the end.
    fn is_stuck(&self, id: u64) -> bool {
        let stuck = [mix64(self.plan.seed) % KEYS, mix64(self.plan.seed ^ 1) % KEYS];
        stuck.contains(&(mix64(id) % KEYS))
    }

    fn crash(&mut self) {
        let (choice, seed) = (self.draw(6), self.draw(u64::MAX));
        self.files = match choice {
            0 => self.files.kill(),
            1 => self.files.crash(0),
            2 => self.files.crash(1),
            _ => self.files.crash(seed),
        };
        match self.draw(6) {
            0 => self.saved.clear(),
            1 => drop(self.saved.pop()),
            _ => {}
        }
        self.clock.advance(Duration::from_secs(5));
    }

    fn saved(&self) -> (Position, Marks) {
        self.saved.last().cloned().unwrap_or_else(|| (Position(0), Box::new([Position(0); LANES])))
    }

    fn life(&mut self) -> io::Result<()> {
        let host = sim_host(&self.files, &self.clock, mix64(self.plan.seed ^ self.files.ops()));
        // Every other history lies in coded files.
        let host = if self.plan.seed.is_multiple_of(2) {
            host
        } else {
            Coding { compress: self.plan.seed % 4 == 1, keys: KeyRing::new(content::keys()) }.host(&host)
        };
        let (durable, marks) = self.saved();
        let is_new = |path: &PathBuf| path.extension().is_some_and(|end| end == "new");
        self.leftovers += u64::from(self.files.paths().iter().any(|path| is_new(path) && path.starts_with("/spool/segments")));
        let opened = match prepare(&host, &options()).and_then(|()| open(&host, &options(), durable, &Arc::default())) {
            Ok(opened) if !self.files.has_died() => opened,
            // What cannot be synced does not stop an opening, and the death of the machine looks like that.
            Ok(_) => return Err(io::Error::other(DIED)),
            Err(OpenError::Io { error, .. }) if is_death(&error) => return Err(error),
            Err(error) => panic!("{}: BORING-RECOVERY: {error}", self.name()),
        };
        assert_eq!(opened.damaged_events, 0, "{}: gaps or a crash were taken for damage", self.name());
        if self.plan.fault.is_none() && !self.files.has_died() {
            let left: Vec<PathBuf> = self.files.paths().into_iter().filter(is_new).collect();
            assert!(left.is_empty(), "{}: {left:?} is left", self.name());
        }
        let cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        let planner = Planner::new(SEGMENT_BYTES, Duration::ZERO);
        let mut life = Life { opened, host, cursor, planner, marks, places: BTreeMap::new() };
        self.look_around(&mut life)?;
        for (position, id) in &self.receipted {
            let found = life.places.get(position).is_some_and(|(_, _, held)| held == id);
            let pending = found && *position >= life.marks[lane_of(*id).index()];
            assert!(pending || self.delivered.contains(id), "{}: NOTHING-LOST: event {id} at {position}", self.name());
        }
        let after = self.receipted.keys().next_back().map_or(0, |last| last.0 + 1);
        assert!(life.opened.writer.next().0 >= after, "{}: DENSE", self.name());
        let gaps = life.opened.handle.shared().table.all().iter().any(|segment| self.is_rewritten(segment));
        self.reopened += u64::from(gaps);
        while self.steps_left > 0 {
            self.steps_left -= 1;
            self.clock.advance(Duration::from_millis(50));
            match self.draw(10) {
                0..=4 => self.commit(&mut life)?,
                5 | 6 => self.deliver(&mut life, false),
                7 => self.saved.push((life.opened.writer.next(), life.marks.clone())),
                _ => self.tidy(&mut life)?,
            }
        }
        self.read_pending(&mut life)?;
        self.deliver(&mut life, true);
        self.saved.push((life.opened.writer.next(), life.marks.clone()));
        for (position, id) in &self.receipted {
            assert!(self.delivered.contains(id), "{}: NOTHING-LOST: event {id} at {position} in the end", self.name());
        }
        self.tidy(&mut life)?;
        assert!(life.opened.handle.shared().table.all().len() <= 1 || self.plan.fault.is_some(), "settled segments go");
        life.opened.writer.seal();
        Ok(())
    }

    fn is_rewritten(&self, segment: &Segment) -> bool {
        SegmentHeader::decode(&content::live(&self.files, &segment.path)).is_ok_and(|header| header.rewritten)
    }

    /// Reads everything forward and by lanes; both and the pending count must agree. Notes where all lies.
    fn look_around(&self, life: &mut Life) -> io::Result<()> {
        let name = self.name();
        let mut swept = BTreeMap::new();
        let mut at = Position(0);
        while let Some(found) = life.cursor.next(at)? {
            assert!(found.damaged.is_empty(), "{name}: damage: {:?}", found.damaged);
            let before = at;
            let mut bytes = &found.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                let id = id_of(frame.data()).unwrap_or_else(|| panic!("{name}: an event nobody sent"));
                assert!(frame.position() >= before, "{name}: read backwards");
                swept.insert(frame.position(), id);
                at = Position(frame.position().0 + 1);
                bytes = &bytes[frame.len()..];
            }
            at = at.max(Position(found.chunk.first.0 + u64::from(found.chunk.count)));
            assert!(at > before, "{name}: BORING-RECOVERY: reading does not move on at {at}");
        }
        assert!(swept.values().is_sorted_by(|a, b| a < b), "{name}: KEY-ORDER: {swept:?}");
        let (mut places, mut pending) = (BTreeMap::new(), 0);
        for segment in life.opened.handle.shared().table.all() {
            pending += life.cursor.pending(&segment, &life.marks)?;
            for (lane, entry) in life.cursor.lane_frames(&segment, Lane(0), Lane(LANES as u16 - 1))? {
                let mut bytes = Vec::new();
                assert!(life.cursor.read_frame(&segment, entry, &mut bytes)?, "{name}: an entry without a frame");
                let frame = Frame::check(&bytes).expect("read_frame checks");
                assert_eq!(frame.hash().lane(), lane, "{name}: another lane's");
                places.insert(frame.position(), (segment.id, entry, id_of(frame.data()).expect("ours")));
            }
        }
        let by_lane: BTreeMap<Position, u64> = places.iter().map(|(position, (_, _, id))| (*position, *id)).collect();
        assert_eq!(by_lane, swept, "{name}: lanes and sweep disagree");
        let expected = swept.iter().filter(|(position, id)| **position >= life.marks[lane_of(**id).index()]).count();
        assert_eq!(pending, expected as u64, "{name}: EXACT-ACCOUNT");
        life.places = places;
        Ok(())
    }

    fn commit(&mut self, life: &mut Life) -> io::Result<()> {
        let (mut batch, first) = (Vec::new(), self.next_id);
        for _ in 0..3 + self.draw(10) {
            let key = key_of(self.next_id);
            frame::encode(&mut batch, &key, KeyHash::of_key(&key), false, &data_of(self.next_id));
            self.next_id += 1;
        }
        let mut batches = [batch];
        let placed = loop {
            match life.opened.writer.commit(&mut batches) {
                Ok(placed) => break placed[0],
                Err(error) if is_death(&error) => return Err(error),
                Err(error) => assert!(self.plan.fault.is_some(), "{}: {error}", self.name()),
            }
        };
        let mut offset = placed.offset;
        for (position, id) in (placed.first.0..).map(Position).zip(first..self.next_id) {
            assert_eq!(self.receipted.insert(position, id), None, "{}: DENSE: {position} twice", self.name());
            let len = Frame::parse(&batches[0][(offset - placed.offset) as usize..]).expect("just written").len() as u32;
            life.places.insert(position, (placed.segment, Entry { offset, len }, id));
            offset += len;
        }
        Ok(())
    }

    /// Delivers what is not stuck, up to a drawn place, or everything.
    fn deliver(&mut self, life: &mut Life, all: bool) {
        let next = life.opened.writer.next();
        let upto = if all { next } else { Position(next.0 - self.draw(next.0 / 3 + 1)) };
        let mut first_left: BTreeMap<Lane, Position> = BTreeMap::new();
        for (position, (_, _, id)) in &life.places {
            let lane = lane_of(*id);
            if *position < life.marks[lane.index()] {
                continue;
            }
            if *position >= upto || (!all && self.is_stuck(*id)) {
                first_left.entry(lane).or_insert(*position);
            } else {
                self.delivered.insert(*id);
            }
        }
        for lane in (0..LANES as u16).map(Lane) {
            let mark = first_left.get(&lane).copied().unwrap_or(upto);
            life.marks[lane.index()] = life.marks[lane.index()].max(mark);
        }
    }

    /// Removes what the last checkpoint covers, and rewrites what is thin, until nothing is.
    fn tidy(&mut self, life: &mut Life) -> io::Result<()> {
        let Some((durable, saved)) = self.saved.last().cloned() else { return Ok(()) };
        let shared = Arc::clone(life.opened.handle.shared());
        match remove_covered(&life.host, &shared.table, &saved) {
            Ok(removed) => {
                removed.iter().for_each(|id| life.cursor.forget(*id));
                life.places.retain(|_, (segment, _, _)| !removed.contains(segment));
            }
            Err(error) if is_death(&error) => return Err(error),
            Err(error) => assert!(self.plan.fault.is_some(), "{}: {error}", self.name()),
        }
        let swept = durable.min(life.opened.writer.next());
        for _ in 0..3 {
            let files = Arc::clone(&life.host.files);
            let now = Duration::ZERO;
            let Some(segment) = life.planner.choose(files.as_ref(), &shared.table, &saved, swept, now)? else { break };
            let copy = match rewrite(&life.host, &segment, &saved, || true) {
                Ok(copy) => copy,
                Err(NotRewritten::Io(error)) if is_death(&error) => return Err(error),
                Err(error) => {
                    assert!(self.plan.fault.is_some(), "{}: not rewritten: {error}", self.name());
                    self.refused += 1;
                    break;
                }
            };
            // Between copy and rename the old file is read as ever.
            self.read_pending(life)?;
            match copy.install(files.as_ref(), &shared.table) {
                Ok(installed) => assert!(installed, "{}: nobody removed it", self.name()),
                Err(error) if is_death(&error) => return Err(error),
                Err(error) => {
                    assert!(self.plan.fault.is_some(), "{}: {error}", self.name());
                    self.refused += 1;
                    break;
                }
            }
            life.cursor.forget(copy.id());
            let marks = &life.marks;
            life.places.retain(|position, (of, entry, id)| {
                if *of != copy.id() {
                    return true;
                }
                match copy.moved(entry.offset) {
                    Some(offset) => entry.offset = offset,
                    None => assert!(*position < marks[lane_of(*id).index()], "NOTHING-LOST: a pending event was left out"),
                }
                copy.moved(entry.offset).is_some() || *position >= marks[lane_of(*id).index()]
            });
            self.rewritten += 1;
            self.read_pending(life)?;
            match files.sync_dir(Path::new("/spool/segments")) {
                Err(error) if is_death(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Every event that is pending is read where it is believed to lie.
    fn read_pending(&self, life: &mut Life) -> io::Result<()> {
        let shared = Arc::clone(life.opened.handle.shared());
        for (position, (segment, entry, id)) in &life.places {
            if *position < life.marks[lane_of(*id).index()] {
                continue;
            }
            let segment = shared.table.get(*segment).unwrap_or_else(|| panic!("{}: its segment is gone", self.name()));
            let mut bytes = Vec::new();
            assert!(life.cursor.read_frame(&segment, *entry, &mut bytes)?, "{}: NOTHING-LOST: {position}", self.name());
            let frame = Frame::check(&bytes).expect("read_frame checks");
            assert_eq!((frame.position(), id_of(frame.data())), (*position, Some(*id)), "{}: another event", self.name());
        }
        Ok(())
    }
}

fn files_fail(files: &FaultFiles, fault: Option<Fault>) {
    fault.into_iter().for_each(|fault| files.fail(fault));
}

fn plan(seed: u64, stops: Vec<u64>) -> Plan {
    Plan { seed, stops, fault: None }
}

#[test]
fn no_crash_at_any_operation_of_a_rewriting_loses_an_event_or_counts_one_twice() {
    let (mut crashes, mut rewritten, mut leftovers, mut reopened) = (0, 0, 0, 0);
    for seed in 0..10 {
        let ops = World::run(plan(seed, Vec::new())).ops[0];
        for stop in 0..ops {
            let again = mix64(seed << 32 | stop) % 24;
            for stops in [vec![stop], vec![stop, again], vec![stop, again, mix64(stop) % 9]] {
                let world = World::run(plan(seed, stops));
                crashes += world.ops.len() - 1;
                rewritten += world.rewritten;
                leftovers += world.leftovers;
                reopened += world.reopened;
            }
        }
    }
    println!("{crashes} crashes, {rewritten} rewritings, {leftovers} unfinished ones found, {reopened} rewritten spools opened");
    // The histories must have met what they are about.
    assert!(crashes > 1000 && rewritten > 1000, "{crashes} crashes, {rewritten} rewritings");
    assert!(leftovers > 50 && reopened > 100, "{leftovers} leftovers, {reopened} reopened");
}

#[test]
fn no_fault_during_a_rewriting_costs_more_than_the_rewriting() {
    let mut refused = BTreeMap::new();
    for seed in 100..106 {
        for (op, errno, pending) in [
            (Op::Create, ENOSPC, Pending::Keep),
            (Op::Write, ENOSPC, Pending::Keep),
            (Op::SyncData, EIO, Pending::Keep),
            (Op::SyncData, EIO, Pending::Drop),
            (Op::Rename, EIO, Pending::Keep),
            (Op::Remove, EIO, Pending::Keep),
        ] {
            // The first one of each is of the spool's `format.new`.
            for nth in 2..7 {
                let fault = Fault::new(op, nth, errno).on(".new").pending(pending).partial(500);
                let calm = World::run(Plan { fault: Some(fault.clone()), ..plan(seed, Vec::new()) });
                *refused.entry(format!("{op:?}")).or_insert(0) += calm.refused;
                for n in 0..3 {
                    let stop = mix64(seed ^ nth << 8 ^ n) % calm.ops[0];
                    World::run(Plan { fault: Some(fault.clone()), ..plan(seed, vec![stop, n * 3]) });
                }
            }
        }
    }
    for op in ["Create", "Write", "SyncData", "Rename"] {
        assert!(refused[op] > 0, "no rewriting was refused by {op}: {refused:?}");
    }
}

#[test]
fn one_seed_twice_gives_one_trace() {
    for seed in 0..4 {
        let [a, b] = [0, 1].map(|_| World::run(plan(seed, vec![40, 9])));
        assert_eq!(a.files.log(), b.files.log());
        assert_eq!((a.ops, a.rewritten), (b.ops, b.rewritten));
    }
}

/// A spool whose events are all settled but those of some keys, with what can be rewritten rewritten.
struct Steady {
    files: FaultFiles,
    opened: Opened,
    host: Host,
    planner: Planner,
    stuck: BTreeSet<Lane>,
    pending_bytes: u64,
    pending: BTreeSet<u64>,
    next_id: u64,
    rewritten: u64,
}

impl Steady {
    fn new(segment_bytes: u64, stuck: impl IntoIterator<Item = Lane>) -> Self {
        let (files, clock) = (FaultFiles::new(), Arc::new(SimClock::new()));
        let host = sim_host(&files, &clock, 1);
        let options = SpoolOptions { segment_bytes, ..options() };
        prepare(&host, &options).expect("an empty disk");
        let opened = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool");
        let planner = Planner::new(segment_bytes, Duration::ZERO);
        let stuck = stuck.into_iter().collect();
        Self { files, opened, host, planner, stuck, pending_bytes: 0, pending: BTreeSet::new(), next_id: 1, rewritten: 0 }
    }

    fn commit(&mut self, events: u64) {
        let mut batch = Vec::new();
        for _ in 0..events {
            let (id, before) = (self.next_id, batch.len());
            frame::encode(&mut batch, &key_of(id), KeyHash::of_key(&key_of(id)), false, &data_of(id));
            if self.stuck.contains(&lane_of(id)) {
                self.pending_bytes += (batch.len() - before) as u64;
                self.pending.insert(id);
            }
            self.next_id += 1;
        }
        self.opened.writer.commit(&mut [batch]).expect("a good disk");
    }

    /// A checkpoint in which all but the stuck lanes are settled, and what it allows.
    fn settle(&mut self) {
        let next = self.opened.writer.next();
        let mut marks = Box::new([next; LANES]);
        self.stuck.iter().for_each(|lane| marks[lane.index()] = Position(0));
        let table = &self.opened.handle.shared().table;
        remove_covered(&self.host, table, &marks).expect("a good disk");
        let files = self.host.files.as_ref();
        while let Some(segment) = self.planner.choose(files, table, &marks, next, Duration::ZERO).expect("a good disk") {
            let copy = rewrite(&self.host, &segment, &marks, || true).expect("a good disk");
            assert!(copy.install(files, table).expect("a good disk"));
            self.rewritten += 1;
        }
    }
}

fn lanes_of_keys(keys: std::ops::Range<u64>) -> Vec<Lane> {
    keys.map(|n| KeyHash::of_key(&format!("user-{n}")).lane()).collect()
}

#[test]
fn the_disk_used_stays_within_one_and_a_half_times_what_is_pending_and_two_segments() {
    let segment_bytes = 256 << 10;
    // A sixteenth of the events is stuck, a quarter, a half, nearly all.
    for stuck in [1, 4, 8, 14] {
        let mut spool = Steady::new(segment_bytes, lanes_of_keys(0..stuck));
        let mut most = 0.0f64;
        for _ in 0..120 {
            spool.commit(100);
            spool.settle();
            let used = spool.files.used();
            let allowed = spool.pending_bytes * 3 / 2 + 2 * segment_bytes;
            most = most.max(used as f64 / allowed as f64);
            assert!(used <= allowed, "{stuck} of {KEYS} keys are stuck: {used} bytes used, {allowed} allowed");
        }
        assert_eq!(spool.files.used(), spool.opened.handle.shared().table.bytes() + format_bytes(&spool.files));
        let (rewritten, pending) = (spool.rewritten, spool.pending_bytes >> 10);
        println!("{stuck} of {KEYS} keys stuck: {rewritten} rewritten, {pending} KiB pending, at most {most:.2} of the allowed");
        assert!(rewritten > 0 || stuck == 14, "nothing was rewritten");
    }
}

fn format_bytes(files: &FaultFiles) -> u64 {
    files.contents(Path::new("/spool/format")).map_or(0, |bytes| bytes.len() as u64)
}

#[test]
fn a_segment_that_is_being_drained_is_let_alone_and_one_that_stays_thin_is_rewritten() {
    let mut spool = Steady::new(64 << 10, lanes_of_keys(0..1));
    // Two segments and a little: the disk used is within its bounds.
    while spool.opened.handle.shared().table.all().len() < 2 {
        spool.commit(20);
    }
    let mut marks = Box::new([spool.opened.writer.next(); LANES]);
    spool.stuck.iter().for_each(|lane| marks[lane.index()] = Position(0));
    let (table, files) = (&spool.opened.handle.shared().table, spool.host.files.as_ref());
    let mut planner = Planner::new(1 << 20, Duration::from_secs(10));
    let swept = spool.opened.writer.next();
    let mut look = |seconds, swept| {
        let now = Duration::from_secs(seconds);
        planner.choose(files, table, &marks, swept, now).expect("a good disk").map(|segment| segment.id)
    };
    assert_eq!(look(100, swept), None);
    assert_eq!(look(109, swept), None);
    assert_eq!(look(110, Position(1)), None, "the sweep is not past it");
    assert_eq!(look(111, swept), None, "its time began anew");
    assert_eq!(look(121, swept), Some(SegmentId(1)));
}

#[test]
fn a_flipped_bit_in_a_rewritten_segment_costs_one_event_at_most_and_gaps_are_not_counted() {
    let mut spool = Steady::new(16 << 10, lanes_of_keys(0..3));
    for _ in 0..12 {
        spool.commit(20);
        spool.settle();
    }
    // What is not in a rewritten segment is settled, but still there.
    let rewritten: Vec<PathBuf> = spool.opened.handle.shared().table.all().iter().map(|segment| segment.path.clone()).collect();
    let is_rewritten = |path: &&PathBuf| {
        SegmentHeader::decode(&spool.files.contents(path).expect("a segment")).is_ok_and(|header| header.rewritten)
    };
    let path = rewritten.iter().find(is_rewritten).expect("one was rewritten").clone();
    let len = spool.files.contents(&path).expect("a segment").len() as u64;
    let mut disk = spool.files;
    let mut hit = 0;
    let zones = (0..len).filter(|at| at % 11 == 0 || *at < 64 || *at + 64 >= len);
    for offset in zones {
        disk = disk.kill();
        let copy = disk.crash(1);
        let damaged = copy.crash(1);
        disk = copy;
        assert!(damaged.flip_bit(&path, offset, (mix64(offset) % 8) as u8));
        let host = sim_host(&damaged, &Arc::new(SimClock::new()), 1);
        let opened = open(&host, &options(), Position(0), &Arc::default()).expect("damage is no reason not to open");
        let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        let (mut found, mut told, mut at) = (BTreeSet::new(), opened.damaged_events, Position(0));
        while let Some(swept) = cursor.next(at).expect("a disk that reads") {
            told += swept.damaged.len() as u64;
            let mut bytes = &swept.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                found.insert(id_of(frame.data()).expect("ours"));
                at = Position(frame.position().0 + 1);
                bytes = &bytes[frame.len()..];
            }
            at = at.max(Position(swept.chunk.first.0 + u64::from(swept.chunk.count)));
        }
        let lost = spool.pending.difference(&found).count() as u64;
        assert!(lost <= 1, "offset {offset}: {lost} events lost");
        assert_eq!(told, lost, "offset {offset}: lost {lost} events, and told of {told}");
        hit += lost;
    }
    assert!(hit > 20, "only {hit} flips hit an event");
}

#[test]
fn a_segment_with_a_damaged_event_that_is_pending_is_not_rewritten() {
    let mut spool = Steady::new(16 << 10, lanes_of_keys(0..3));
    while spool.opened.handle.shared().table.all().len() < 3 {
        spool.commit(20);
    }
    let segment = spool.opened.handle.shared().table.all()[0].clone();
    let bytes = spool.files.contents(&segment.path).expect("a segment");
    let (mut at, mut damaged) = (64, false);
    while let Some(frame) = Frame::check(&bytes[at..]) {
        if spool.stuck.contains(&frame.hash().lane()) && !damaged {
            damaged = spool.files.flip_bit(&segment.path, at as u64 + 45, 3);
        }
        at += frame.len();
    }
    let mut marks = Box::new([spool.opened.writer.next(); LANES]);
    spool.stuck.iter().for_each(|lane| marks[lane.index()] = Position(0));
    let refused = rewrite(&spool.host, &segment, &marks, || true).expect_err("a damaged frame");
    assert!(damaged && matches!(refused, NotRewritten::Damaged { .. }), "{refused}");
    assert_eq!(spool.files.contents(&segment.path).map(|now| now.len()), Some(bytes.len()));
    assert!(spool.files.paths().iter().all(|path| !path.ends_with(segment.id.new_file_name())), "the copy is left");
}
