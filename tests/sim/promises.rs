//! What was promised to whom in one simulated life, and the checks by name.
//!
//! Place: `life.rs` tells it each receipt, each delivery, each harm done to the disk, and asks it after each opening and
//! at the end. It knows the spool only from outside: events by their content, files by their bytes.
//!
//! *RECEIPT-AFTER-SYNC*: at the moment of a receipt the event lies in the durable image, under a durable entry.
//! *NOTHING-LOST*: a receipted event was delivered, or lies at or past its lane's saved mark, or was hit by a flipped
//! bit itself. *DENSE*: no position is given twice, none behind a receipt. *KEY-ORDER*: what is read is in the order of
//! submission, and so is each key's first delivery. *EXACT-ACCOUNT*: the pending count is what is there, each event that
//! a flipped bit took is told, and a mere crash is never told as damage.
//!
//! Where it must look away: after a sync that failed and dropped its pages without saying so to later syncs, bytes that
//! were never receipted may be seen and then vanish, so damage among such is allowed. An opening that was cut short
//! after it sealed a damaged segment may have told nobody; one that found no room for the index tells again the next
//! time. And the last frame of a file without an index, once it is flipped, looks like the torn group that made the
//! writer give the file up: it may go untold. Receipted events without a flipped bit are excused by none of these.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use forebay::event::{KeyHash, LANES, Position};
use forebay::host::mix64;
use forebay::spool::Opened;
use forebay::spool::frame::Frame;
use forebay::spool::held::Held;
use forebay::spool::segment::{SEGMENT_HEADER_BYTES, SegmentId};

use crate::content::live;
use crate::fault_files::FaultFiles;
use crate::life::classes::Risk;
use crate::life::held_events;

/// Submitted events are numbered in order, from 1 or from [`FEW_KEYS`].
pub type Id = u64;

pub type Marks = [Position; LANES];

/// Keys of the events; the last ones carry an explicit hash.
pub const KEYS: u64 = 11;

/// Keys of a life whose events are numbered from here, so that a lane has many events in one segment.
pub const FEW_KEYS: (Id, u64) = (1 << 40, 2);

/// A promise that was broken, by name and with the circumstances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the text as [`Broken`] unless the condition holds.
macro_rules! holds {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::promises::Broken(format!($($text)+)).into());
        }
    };
}
pub(crate) use holds;

pub fn key_of(id: Id) -> String {
    let keys = if id < FEW_KEYS.0 { KEYS } else { FEW_KEYS.1 };
    format!("user-{}", mix64(id) % keys)
}

/// The hash of a key, and whether it was given with the event.
pub fn hash_of(key: &str) -> (KeyHash, bool) {
    match key {
        "user-9" => (KeyHash(u128::MAX), true),
        "user-10" => (KeyHash(0), true),
        _ => (KeyHash::of_key(key), false),
    }
}

pub fn lane_of(id: Id) -> usize {
    hash_of(&key_of(id)).0.lane().index()
}

pub fn data_of(id: Id) -> Vec<u8> {
    let mut data = format!("event {id} ").into_bytes();
    data.resize(data.len() + (mix64(id ^ 0xda7a) % 700) as usize, b'.');
    data
}

pub fn id_of(data: &[u8]) -> Option<Id> {
    let text = std::str::from_utf8(data).ok()?;
    let id = text.strip_prefix("event ")?.split(' ').next()?.parse().ok()?;
    (data_of(id) == data).then_some(id)
}

/// A frame that a flipped bit lies in.
#[derive(Clone, Copy, Debug)]
struct Hit {
    position: Position,
    segment: SegmentId,
    offset: u64,
    /// The last frame of a file without an index: see [`Promises`].
    at_open_end: bool,
}

/// The frames of a file's bytes, good ones only: offset, length, position, event.
pub fn frames(bytes: &[u8], end: usize) -> (Vec<(u64, usize, Position, Id)>, u64) {
    let (mut found, mut bad, mut at) = (Vec::new(), 0, SEGMENT_HEADER_BYTES);
    let end = end.min(bytes.len());
    let mut within_bad = false;
    while at < end {
        let frame = Frame::check(&bytes[at..end]).and_then(|frame| Some((frame, id_of(frame.data())?)));
        if let Some((frame, id)) = frame.filter(|(frame, id)| frame.key_bytes() == key_of(*id).as_bytes()) {
            found.push((at as u64, frame.len(), frame.position(), id));
            at += frame.len();
            within_bad = false;
        } else {
            bad += u64::from(!within_bad);
            within_bad = true;
            at += 1;
        }
    }
    (found, bad)
}

/// The model of one life. What it must excuse stands in the head of this file.
#[derive(Default)]
pub struct Promises {
    pub next_id: Id,
    pub receipted: BTreeMap<Position, Id>,
    delivered: BTreeSet<Id>,
    /// The last event delivered for the first time, of each key.
    last_first: BTreeMap<String, Id>,
    /// First position of the last receipted group: what lies there cannot be told from a torn tail.
    pub last_group: Position,
    hits: Vec<Hit>,
    /// Damaged frames that readers met.
    told: BTreeSet<(SegmentId, u64)>,
    /// Damaged events that openings told of.
    told_at_open: u64,
    /// Of them, told by an opening that could not write the index, so that the next one tells it again.
    pub told_again: u64,
    /// Deliveries of what was delivered before.
    pub repeated: u64,
    /// A sync failed and lied afterwards.
    pub sync_lied: bool,
    /// An opening was cut short since the first flip.
    pub opening_cut: bool,
    /// The last opening that did not succeed came after the last one that did.
    pub opening_cut_now: bool,
    /// What the life's sync class lets a power cut take.
    pub risk: Risk,
    /// Positions whose events a power cut took by leave of the class, and that are below what is there.
    pub taken: BTreeSet<Position>,
    /// The same, and nothing is there behind them.
    beyond: BTreeSet<Position>,
    /// Events that a power cut took by leave of the class.
    pub taken_events: u64,
    /// Events of groups without a receipt that were found all the same.
    pub found_unreceipted: u64,
}

impl Promises {
    /// Of a life whose first event has this number.
    pub fn new(first: Id, risk: Risk) -> Self {
        Self { next_id: first, risk, ..Self::default() }
    }

    /// A receipt left for `id`.
    pub fn receipt(&mut self, position: Position, id: Id) -> Result<(), Broken> {
        let after = self.receipted.last_key_value().map_or(0, |(position, _)| position.0 + 1);
        holds!(position.0 >= after, "DENSE: event {id} got {position}, which lies before the receipted {after}");
        self.receipted.insert(position, id);
        Ok(())
    }

    /// The group just receipted began here.
    pub fn receipted_group(&mut self, first: Position) {
        self.last_group = first;
    }

    /// Kinesis has the event.
    pub fn deliver(&mut self, position: Position, id: Id) -> Result<(), Broken> {
        holds!(id < self.next_id, "NOTHING-LOST: event {id} at {position} was never submitted");
        if !self.delivered.insert(id) {
            self.repeated += 1;
            return Ok(());
        }
        let last = self.last_first.insert(key_of(id), id);
        holds!(last.is_none_or(|last| last < id), "KEY-ORDER: event {id} was first delivered after {last:?} of its key");
        Ok(())
    }

    /// A reader met a frame that no longer checks.
    pub fn tell(&mut self, segment: SegmentId, offset: u64) -> Result<(), Broken> {
        let known = self.hits.iter().any(|hit| (hit.segment, hit.offset) == (segment, offset));
        holds!(known || self.sync_lied, "EXACT-ACCOUNT: {segment} at {offset} is told damaged, and nothing harmed it");
        self.told.insert((segment, offset));
        Ok(())
    }

    /// Events whose bytes a flip took, so far.
    pub fn hit_events(&self) -> u64 {
        self.hits.len() as u64
    }

    /// A bit of this frame was flipped.
    pub fn hit(&mut self, segment: SegmentId, offset: u64, position: Position, at_open_end: bool) {
        self.hits.push(Hit { position, segment, offset, at_open_end });
    }

    fn is_hit(&self, position: Position) -> bool {
        self.hits.iter().any(|hit| hit.position == position)
    }

    /// A segment with these positions is gone; `saved` are the marks of the last saved checkpoint.
    pub fn removed(&mut self, id: SegmentId, base: Position, end: Position, saved: &Marks) -> Result<(), Broken> {
        if base == end {
            // It may have said where positions go on: a next file that loses its header tells the gap before it again.
            self.told_again += self.taken.len() as u64;
        }
        for (position, event) in self.receipted.range(base..end) {
            if self.risk.is_in_doubt(*position) {
                continue;
            }
            let settled = self.delivered.contains(event) || self.is_hit(*position);
            holds!(settled, "NOTHING-LOST: segment {id} was deleted with event {event} at {position}, which was not delivered");
            let saved = saved[lane_of(*event)];
            // What an opening told damaged is in no index any more, and no mark waits for it.
            holds!(
                *position < saved || self.is_hit(*position),
                "NOTHING-LOST: segment {id} was deleted with event {event} at {position}, past the saved mark {saved}"
            );
        }
        Ok(())
    }

    /// What must hold just after opening: what the files hold is what was promised. Returns what was found.
    pub fn after_open(
        &mut self,
        files: &FaultFiles,
        opened: &Opened,
        damaged: u64,
        marks: &Marks,
    ) -> Result<(BTreeMap<Position, Id>, u64), Broken> {
        let mut found = BTreeMap::new();
        let mut bad = 0;
        let mut bad_in = Vec::new();
        for segment in opened.handle.shared().table.all() {
            let (end, frames_end) = {
                let extent = segment.extent();
                (extent.end, extent.frames_end)
            };
            let bytes = live(files, &segment.path);
            let (good, bad_here) = frames(&bytes, frames_end as usize);
            bad += bad_here;
            let harmed = self.sync_lied || self.hits.iter().any(|hit| hit.segment == segment.id);
            if bad_here > 0 && !harmed {
                bad_in.push((bad_here, segment.id, segment.base..end));
            }
            for (_, _, position, id) in good {
                let inside = (segment.base..end).contains(&position);
                holds!(inside, "DENSE: {position} lies in {}, of {}..{end}", segment.id, segment.base);
                holds!(found.insert(position, id).is_none(), "DENSE: {position} is there twice");
            }
        }
        holds!(
            found.values().is_sorted_by(|a, b| a < b),
            "KEY-ORDER: events lie in another order than submitted: {:?}",
            found.values()
        );
        holds!(found.values().all(|id| *id < self.next_id), "NOTHING-LOST: an event that nobody sent");
        // The opening's own sync may have taken what a kill left unsynced. It told so.
        self.risk.opening(opened.writer.is_suspect());
        // What is held back is there too, and the positions behind it are the next ones.
        let readable = found.len();
        let held = opened.writer.held();
        let next = held.map_or(opened.writer.next(), Held::end);
        for (position, id) in held.map(held_events).unwrap_or_default() {
            holds!(position >= opened.writer.next(), "DENSE: {position} is held, before the next one");
            holds!(found.insert(position, id).is_none(), "DENSE: {position} is held, and there");
        }
        holds!(
            held.is_none_or(|held| found.len() - readable == held.events() as usize),
            "NOTHING-LOST: what is held is not whole"
        );
        let told_by_class = self.take_what_the_class_allows(&found, next);
        for (bad_here, id, positions) in bad_in {
            holds!(self.taken.range(positions).next().is_some(), "EXACT-ACCOUNT: {bad_here} bad stretches are kept in {id}");
        }
        for (position, id) in &self.receipted {
            let other = found.get(position).filter(|other| *other != id);
            holds!(other.is_none(), "DENSE: {position} of event {id} was given to {other:?}");
            let will_be_read = found.contains_key(position) && *position >= marks[lane_of(*id)];
            let settled = self.delivered.contains(id) || self.is_hit(*position);
            holds!(
                will_be_read || settled,
                "{}: event {id} at {position} was receipted; found: {}, mark {}",
                if found.contains_key(position) { "NOTHING-LOST" } else { self.risk.promise() },
                found.contains_key(position),
                marks[lane_of(*id)]
            );
        }
        let after = self.receipted.last_key_value().map_or(0, |(position, _)| position.0 + 1);
        holds!(next.0 >= after, "DENSE: positions go on at {next}, before the receipted {after}");
        let mark = marks.iter().max().copied().unwrap_or_default();
        holds!(next >= mark, "DENSE: positions go on at {next}, behind the mark {mark}");
        self.found_unreceipted += found.keys().filter(|position| !self.receipted.contains_key(position)).count() as u64;
        self.told_at_open += damaged;
        let excused = self.sync_lied || self.opening_cut_now || !self.hits.is_empty() || self.risk.has_doubts();
        holds!(
            excused || (told_by_class..=told_by_class + self.told_again).contains(&damaged),
            "EXACT-ACCOUNT: a power cut took {told_by_class} events from among others, and {damaged} are told"
        );
        // An opening that died may have left an index behind which nobody sees the gap; it is told when that is lost.
        self.told_again += told_by_class.saturating_sub(damaged);
        self.opening_cut_now = false;
        self.risk.opened();
        holds!(
            self.sync_lied || self.told_at_open <= self.hits.len() as u64 + self.told_again + self.taken.len() as u64,
            "EXACT-ACCOUNT: {} events told damaged by openings, {} hit by a flipped bit: a crash was taken for damage",
            self.told_at_open,
            self.hits.len()
        );
        if let Some(held) = held {
            found.split_off(&held.base());
        }
        Ok((found, bad))
    }

    /// Forgets the receipts of what is gone by leave of the sync class. Tells how many of them lie before others.
    fn take_what_the_class_allows(&mut self, found: &BTreeMap<Position, Id>, next: Position) -> u64 {
        let gone = |position: &Position| !found.contains_key(position) && self.risk.may_take(*position);
        let gone: Vec<Position> = self.receipted.keys().copied().filter(gone).collect();
        for position in &gone {
            self.receipted.remove(position);
        }
        self.taken_events += gone.len() as u64;
        // What lies behind all that is left is told when a checkpoint turns up that knew of it, or never.
        self.beyond.extend(gone);
        let later = self.beyond.split_off(&next);
        let before = self.taken.len();
        let given_again = |position: &Position| found.contains_key(position) || self.receipted.contains_key(position);
        self.taken.extend(std::mem::replace(&mut self.beyond, later).into_iter().filter(|position| !given_again(position)));
        (self.taken.len() - before) as u64
    }

    /// What must hold when faults have stopped and all was read and delivered.
    pub fn at_the_end(&self) -> Result<(), Broken> {
        let mut lost = Vec::new();
        for (position, id) in &self.receipted {
            if self.delivered.contains(id) {
                continue;
            }
            if self.risk.is_in_doubt(*position) {
                continue;
            }
            holds!(self.is_hit(*position), "NOTHING-LOST: event {id} at {position} was receipted and never delivered");
            lost.push(*position);
        }
        let untold = self
            .hits
            .iter()
            .filter(|hit| lost.contains(&hit.position) && !hit.at_open_end && !self.told.contains(&(hit.segment, hit.offset)));
        let untold = untold.count() as u64;
        holds!(
            untold <= self.told_at_open || self.opening_cut,
            "EXACT-ACCOUNT: flipped bits took {untold} events without a word; openings told of {}",
            self.told_at_open
        );
        Ok(())
    }
}
