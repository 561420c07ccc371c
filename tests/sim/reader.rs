//! The reading half of a simulated process: what a dispatcher does with a cursor, without Kinesis.
//!
//! Place: `life.rs` steps it. It sweeps forward through everything, lets lanes fall behind and read on their own, sends
//! from the front of each lane, hears of it later, and moves the lane's mark only then. The rules are those of
//! `src/dispatch/feed.rs` and `src/dispatch/marks.rs`, on the real `Cursor`. Owner: one process; a crash forgets it.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use forebay::event::{LANES, Lane, Position};
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::Frame;
use forebay::spool::index::Entry;
use forebay::spool::segment::SegmentId;

use crate::planted::Plant;
use crate::promises::{Broken, Id, Marks, id_of};

/// What takes a lane's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Event(Id),
    /// A frame that no longer checks.
    Dead,
}

/// A lane that reads on its own.
#[derive(Debug)]
struct Lag {
    from: Position,
    /// The segment under way, its end, and what is left of it, last first.
    segment: Option<(SegmentId, Position)>,
    entries: Vec<(Lane, Entry)>,
}

#[derive(Debug, Default)]
struct Queue {
    turns: VecDeque<(Position, Turn)>,
    /// So many at the front are sent and not answered.
    sent: usize,
    lag: Option<Lag>,
}

/// A damaged frame that was met.
pub type Met = (SegmentId, u64);

pub struct Reader {
    pub cursor: Cursor,
    queues: BTreeMap<Lane, Queue>,
    pub sweep: Position,
    marks: Box<Marks>,
    /// Committed by this process and not swept.
    hot: VecDeque<(Position, Id)>,
    plant: Plant,
}

/// What went wrong while reading.
#[derive(Debug)]
pub enum ReadError {
    Io(io::Error),
    Broken(Broken),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn event(frame: &Frame<'_>) -> Result<Turn, ReadError> {
    let id = id_of(frame.data());
    id.map(Turn::Event)
        .ok_or_else(|| ReadError::Broken(Broken(format!("NOTHING-LOST: nobody sent what lies at {}", frame.position()))))
}

impl Reader {
    /// A reader that goes on where the marks stood.
    pub fn new(cursor: Cursor, marks: Box<Marks>, lanes: &[Lane], plant: Plant) -> Self {
        let sweep = marks.iter().max().copied().unwrap_or_default();
        let mut queues = BTreeMap::new();
        for lane in lanes {
            let from = marks[lane.index()];
            let lag = (from < sweep).then(|| Lag { from, segment: None, entries: Vec::new() });
            queues.insert(*lane, Queue { lag, ..Queue::default() });
        }
        Self { cursor, queues, sweep, marks, hot: VecDeque::new(), plant }
    }

    pub fn committed(&mut self, position: Position, id: Id) {
        self.hot.push_back((position, id));
    }

    fn enqueue(&mut self, lane: Lane, position: Position, turn: Turn) {
        if position < self.marks[lane.index()] {
            return;
        }
        self.queues.entry(lane).or_default().turns.push_back((position, turn));
    }

    /// From now on this lane reads on its own.
    pub fn fall_behind(&mut self, lane: Lane) {
        let from = self.sweep;
        let queue = self.queues.entry(lane).or_default();
        queue.lag.get_or_insert(Lag { from, segment: None, entries: Vec::new() });
    }

    fn lags(&self, lane: Lane) -> bool {
        self.queues.get(&lane).is_some_and(|queue| queue.lag.is_some())
    }

    /// Reads one chunk forward. False when all that is there was swept.
    pub fn sweep_once(&mut self, met: &mut Vec<Met>) -> Result<bool, ReadError> {
        let Some(swept) = self.cursor.next(self.sweep)? else {
            let Some((position, id)) = self.hot.pop_front() else { return Ok(false) };
            let lane = crate::promises::lane_of(id);
            let lane = Lane(lane as u16);
            if position >= self.sweep {
                if !self.lags(lane) {
                    self.enqueue(lane, position, Turn::Event(id));
                }
                self.sweep = Position(position.0 + 1);
            }
            return Ok(true);
        };
        for damaged in &swept.damaged {
            met.push((damaged.segment, u64::from(damaged.entry.offset)));
            let position = damaged.position;
            if position < self.sweep {
                continue;
            }
            self.sweep = Position(position.0 + 1);
            if !self.lags(damaged.lane) {
                self.enqueue(damaged.lane, position, Turn::Dead);
            }
        }
        let mut end = swept.chunk.first;
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(frame) = Frame::parse(bytes) {
            end = Position(frame.position().0 + 1);
            let lane = frame.hash().lane();
            if frame.position() >= self.sweep && !self.lags(lane) {
                self.enqueue(lane, frame.position(), event(&frame)?);
            }
            bytes = &bytes[frame.len()..];
        }
        self.sweep = self.sweep.max(end);
        Ok(true)
    }

    /// Lanes that read on their own.
    pub fn lagging(&self) -> Vec<Lane> {
        self.queues.iter().filter(|(_, queue)| queue.lag.is_some()).map(|(lane, _)| *lane).collect()
    }

    /// Reads on in one lane, up to the end of a segment.
    pub fn read_lane(&mut self, lane: Lane, met: &mut Vec<Met>) -> Result<(), ReadError> {
        let Some(mut lag) = self.queues.get_mut(&lane).and_then(|queue| queue.lag.take()) else { return Ok(()) };
        let mut turns = Vec::new();
        let outcome = self.read_lag(lane, &mut lag, &mut turns, met);
        for (position, turn) in turns {
            self.enqueue(lane, position, turn);
        }
        if !matches!(outcome, Ok(true)) {
            self.queues.entry(lane).or_default().lag = Some(lag);
        }
        outcome.map(drop)
    }

    /// True when it has caught up with the sweep.
    fn read_lag(
        &mut self,
        lane: Lane,
        lag: &mut Lag,
        turns: &mut Vec<(Position, Turn)>,
        met: &mut Vec<Met>,
    ) -> Result<bool, ReadError> {
        let table = std::sync::Arc::clone(&self.cursor.shared().table);
        if lag.segment.is_none() {
            let found = table.holding(lag.from).filter(|segment| segment.base < self.sweep && lag.from < self.sweep);
            let Some(segment) = found else { return Ok(true) };
            let end = segment.extent().end;
            lag.entries = self.cursor.lane_frames(&segment, lane, lane)?;
            lag.entries.reverse();
            lag.segment = Some((segment.id, end));
        }
        let Some((id, end)) = lag.segment else { return Ok(true) };
        if let Some(segment) = table.get(id) {
            let mut bytes = Vec::new();
            while let Some((_, entry)) = lag.entries.last().copied() {
                let ahead = lag.entries.iter().rev().skip(1).map(|(_, entry)| *entry);
                bytes.clear();
                if self.cursor.read_frame_and(&segment, entry, ahead, &mut bytes)? {
                    let frame = Frame::parse(&bytes).expect("read_frame checks");
                    let position = frame.position();
                    if position >= self.sweep {
                        return Ok(true);
                    }
                    if position >= lag.from {
                        turns.push((position, event(&frame)?));
                        lag.from = Position(position.0 + 1);
                    }
                } else {
                    let position = self.cursor.damaged_position(&segment, entry)?;
                    if position >= self.sweep {
                        return Ok(true);
                    }
                    if position >= lag.from {
                        met.push((id, u64::from(entry.offset)));
                        turns.push((position, Turn::Dead));
                        lag.from = Position(position.0 + 1);
                    }
                }
                lag.entries.pop();
            }
        }
        lag.segment = None;
        lag.from = lag.from.max(end);
        Ok(false)
    }

    /// Lanes with something to send.
    pub fn ready(&self) -> Vec<Lane> {
        self.queues.iter().filter(|(_, queue)| queue.sent < queue.turns.len()).map(|(lane, _)| *lane).collect()
    }

    /// Lanes that wait for an answer.
    pub fn under_way(&self) -> Vec<Lane> {
        self.queues.iter().filter(|(_, queue)| queue.sent > 0).map(|(lane, _)| *lane).collect()
    }

    /// Sends up to `count` more of a lane: what Kinesis has from now on.
    pub fn send(&mut self, lane: Lane, count: usize) -> Vec<(Position, Id)> {
        let Some(queue) = self.queues.get_mut(&lane) else { return Vec::new() };
        if self.plant == Plant::FailedGoesLast && queue.sent == 0 && queue.turns.len() > 2 {
            // The record failed, and what came behind it went first.
            queue.turns.rotate_left(1);
        }
        let from = queue.sent;
        queue.sent = (from + count).min(queue.turns.len());
        let sent = queue.turns.range(from..queue.sent);
        sent.filter_map(|(position, turn)| match turn {
            Turn::Event(id) => Some((*position, *id)),
            Turn::Dead => None,
        })
        .collect()
    }

    /// The answer for the first `count` of a lane that are under way.
    pub fn answered(&mut self, lane: Lane, count: usize) {
        let Some(queue) = self.queues.get_mut(&lane) else { return };
        for _ in 0..count.min(queue.sent) {
            let Some((position, _)) = queue.turns.pop_front() else { break };
            queue.sent -= 1;
            let mark = &mut self.marks[lane.index()];
            *mark = (*mark).max(Position(position.0 + 1));
        }
    }

    /// Kinesis refused them: they go first the next time.
    pub fn refused(&mut self, lane: Lane) {
        if let Some(queue) = self.queues.get_mut(&lane) {
            queue.sent = 0;
        }
    }

    /// The marks now: each lane's first position that is not settled.
    pub fn marks(&mut self) -> Box<Marks> {
        for at in 0..LANES {
            let queue = self.queues.get(&Lane(at as u16));
            let floor = queue.and_then(|queue| queue.lag.as_ref()).map_or(self.sweep, |lag| lag.from);
            let mark = match queue.and_then(|queue| queue.turns.front()) {
                Some((position, _)) if self.plant != Plant::MarkAheadOfDelivery => (*position).min(floor),
                _ => floor,
            };
            self.marks[at] = self.marks[at].max(mark);
        }
        self.marks.clone()
    }

    /// The marks as if all that was handed out were settled.
    pub fn marks_handed_out(&self) -> Box<Marks> {
        let mut marks = Box::new([self.sweep; LANES]);
        for (lane, queue) in &self.queues {
            if let Some(lag) = &queue.lag {
                marks[lane.index()] = lag.from;
            }
        }
        marks
    }

    /// Nothing waits and nothing lags.
    pub fn is_idle(&self) -> bool {
        self.queues.values().all(|queue| queue.turns.is_empty() && queue.lag.is_none())
    }
}
