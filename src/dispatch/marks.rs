//! For each lane, the first position that is not settled.
//!
//! Place: owned by the dispatcher; `feed` tells what is outstanding, settling tells what left, a checkpoint
//! takes the marks. Pure.
//!
//! *MARK-BEHIND-DELIVERY*: a mark never passes an unsettled event. A lane that one shard owns is simple: its
//! slots leave in order. A lane with a shard boundary inside has several queues that settle independently, so
//! its outstanding positions are kept as a set, and its mark is computed from that.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::event::{LANES, Lane, Position};

#[derive(Debug, Default)]
struct Shared {
    outstanding: BTreeSet<u64>,
    /// Settled while something before them is not.
    settled_ahead: BTreeSet<u64>,
}

/// All lanes' marks.
#[derive(Debug)]
pub struct Marks {
    marks: Box<[Position; LANES]>,
    outstanding: Vec<u32>,
    shared: BTreeMap<Lane, Shared>,
    /// Settled events past their lane's mark, from before the last reshard or start: not to be enqueued again.
    settled_before: HashSet<(u64, Lane)>,
}

impl Marks {
    /// Marks as a checkpoint saved them.
    #[must_use]
    pub fn new(marks: Box<[Position; LANES]>) -> Self {
        Self { marks, outstanding: vec![0; LANES], shared: BTreeMap::new(), settled_before: HashSet::new() }
    }

    /// The marks as of the last [`Marks::advance`] and since.
    #[must_use]
    pub fn all(&self) -> &[Position; LANES] {
        &self.marks
    }

    /// One lane's mark.
    #[must_use]
    pub fn of(&self, lane: Lane) -> Position {
        self.marks[lane.index()]
    }

    /// An event met by the sweep or a lag is to be enqueued; false when it is settled already.
    pub fn enqueue(&mut self, lane: Lane, position: Position) -> bool {
        if position < self.marks[lane.index()]
            || (!self.settled_before.is_empty() && self.settled_before.contains(&(position.0, lane)))
        {
            return false;
        }
        let outstanding = &mut self.outstanding[lane.index()];
        *outstanding += 1;
        if let Some(shared) = self.shared.get_mut(&lane) {
            shared.outstanding.insert(position.0);
        } else if *outstanding == 1 {
            // Nothing of the lane before it is unsettled.
            self.marks[lane.index()] = position;
        }
        true
    }

    /// A settled slot left its queue.
    pub fn settled(&mut self, lane: Lane, position: Position) {
        self.outstanding[lane.index()] -= 1;
        if let Some(shared) = self.shared.get_mut(&lane) {
            shared.outstanding.remove(&position.0);
            shared.settled_ahead.insert(position.0);
        } else {
            let mark = &mut self.marks[lane.index()];
            *mark = (*mark).max(Position(position.0 + 1));
        }
    }

    /// Moves the marks of lanes up to what is known: `floors` has for each lane the first position that was not
    /// yet enqueued by every queue of the lane.
    pub fn advance(&mut self, floors: &[Position; LANES]) {
        for lane in (0..LANES as u16).map(Lane) {
            let floor = floors[lane.index()];
            let mark = match self.shared.get_mut(&lane) {
                Some(shared) => {
                    let mark = shared.outstanding.first().map_or(floor, |first| Position(*first).min(floor));
                    shared.settled_ahead = shared.settled_ahead.split_off(&mark.0);
                    mark
                }
                None if self.outstanding[lane.index()] == 0 => floor,
                None => continue,
            };
            let held = &mut self.marks[lane.index()];
            *held = (*held).max(mark);
        }
        self.forget_passed();
    }

    fn forget_passed(&mut self) {
        if !self.settled_before.is_empty() {
            let marks = &self.marks;
            self.settled_before.retain(|(position, lane)| *position >= marks[lane.index()].0);
        }
    }

    /// Moves the marks up to `firsts`, each lane's first position that is not known to be settled, though settled slots
    /// before them still stand in their queues behind other lanes' events.
    pub fn pass(&mut self, firsts: &[Position; LANES]) {
        for (mark, first) in self.marks.iter_mut().zip(firsts) {
            *mark = (*mark).max(*first);
        }
        for (lane, shared) in &mut self.shared {
            shared.settled_ahead = shared.settled_ahead.split_off(&self.marks[lane.index()].0);
        }
        self.forget_passed();
    }

    /// Begins anew with other queues: nothing is outstanding, `settled` are positions that were settled in
    /// slots that had not left yet, `shared` the lanes that several shards have now.
    pub fn restart(&mut self, settled: impl IntoIterator<Item = (u64, Lane)>, shared: impl IntoIterator<Item = Lane>) {
        for (lane, held) in std::mem::take(&mut self.shared) {
            self.settled_before.extend(held.settled_ahead.into_iter().map(|position| (position, lane)));
        }
        self.settled_before.extend(settled);
        self.outstanding.fill(0);
        self.shared = shared.into_iter().map(|lane| (lane, Shared::default())).collect();
    }

    /// This event is settled, though its lane's mark is not past it: it is not to be enqueued.
    pub fn note_settled(&mut self, lane: Lane, position: Position) {
        self.settled_before.insert((position.0, lane));
    }

    /// Events in `from..to`, at or past their lanes' marks, that are settled and have left their queues.
    #[must_use]
    pub fn settled_ahead(&self, from: Position, to: Position) -> u64 {
        let mut ahead: HashSet<(u64, Lane)> = self.settled_before.iter().copied().collect();
        ahead.extend(self.shared.iter().flat_map(|(lane, held)| held.settled_ahead.iter().map(|position| (*position, *lane))));
        let counts = |(position, lane): &&(u64, Lane)| (from.0.max(self.of(*lane).0)..to.0).contains(position);
        ahead.iter().filter(counts).count() as u64
    }

    /// This position is at or past its lane's mark, settled, and has left its queue.
    #[must_use]
    pub fn is_settled_ahead(&self, lane: Lane, position: Position) -> bool {
        self.settled_before.contains(&(position.0, lane))
            || self.shared.get(&lane).is_some_and(|held| held.settled_ahead.contains(&position.0))
    }

    /// Tells all positions of that kind; some may be below their lane's mark by now.
    pub fn each_settled_ahead(&self, mut tell: impl FnMut(Position)) {
        self.settled_before.iter().for_each(|(position, _)| tell(Position(*position)));
        self.shared.values().flat_map(|held| &held.settled_ahead).for_each(|position| tell(Position(*position)));
    }

    /// Everything below `to` is settled, in all lanes.
    pub fn raise(&mut self, to: Position) {
        for mark in self.marks.iter_mut() {
            *mark = (*mark).max(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: Lane = Lane(5);

    fn floors(position: u64) -> [Position; LANES] {
        [Position(position); LANES]
    }

    #[test]
    fn a_lane_of_one_shard_moves_with_its_settled_slots_and_an_idle_one_with_the_sweep() {
        let mut marks = Marks::new(Box::new([Position(0); LANES]));
        assert!(marks.enqueue(LANE, Position(3)) && marks.enqueue(LANE, Position(7)));
        marks.advance(&floors(10));
        assert_eq!((marks.of(LANE), marks.of(Lane(6))), (Position(3), Position(10)));
        marks.settled(LANE, Position(3));
        marks.advance(&floors(10));
        assert_eq!(marks.of(LANE), Position(4));
        marks.settled(LANE, Position(7));
        marks.advance(&floors(10));
        assert_eq!(marks.of(LANE), Position(10));
        assert!(!marks.enqueue(LANE, Position(9)), "settled long ago");
    }

    #[test]
    fn in_a_shared_lane_the_mark_waits_for_the_slower_queue_and_for_what_a_lag_has_not_enqueued() {
        let mut marks = Marks::new(Box::new([Position(0); LANES]));
        marks.restart([], [LANE]);
        for position in [1, 2, 3] {
            assert!(marks.enqueue(LANE, Position(position)));
        }
        marks.settled(LANE, Position(1));
        marks.settled(LANE, Position(3));
        marks.advance(&floors(10));
        assert_eq!(marks.of(LANE), Position(2));
        marks.settled(LANE, Position(2));
        marks.advance(&floors(4));
        assert_eq!(marks.of(LANE), Position(4), "a queue of the lane lags from 4");
    }

    #[test]
    fn a_mark_that_passed_settled_slots_does_not_go_back_when_they_leave_their_queue() {
        let mut marks = Marks::new(Box::new([Position(0); LANES]));
        assert!(marks.enqueue(LANE, Position(3)) && marks.enqueue(LANE, Position(7)));
        marks.advance(&floors(10));
        let mut firsts = floors(10);
        firsts[LANE.index()] = Position(7);
        marks.pass(&firsts);
        assert_eq!(marks.of(LANE), Position(7));
        marks.settled(LANE, Position(3));
        assert_eq!(marks.of(LANE), Position(7));
        marks.settled(LANE, Position(7));
        marks.advance(&floors(10));
        assert_eq!(marks.of(LANE), Position(10));
    }

    #[test]
    fn after_a_reshard_what_was_settled_ahead_is_not_enqueued_again() {
        let mut marks = Marks::new(Box::new([Position(0); LANES]));
        marks.restart([], [LANE]);
        assert!(marks.enqueue(LANE, Position(1)) && marks.enqueue(LANE, Position(2)));
        marks.settled(LANE, Position(2));
        marks.advance(&floors(10));
        marks.restart([(8, LANE)], []);
        assert!(marks.enqueue(LANE, Position(1)));
        assert!(!marks.enqueue(LANE, Position(2)) && !marks.enqueue(LANE, Position(8)));
    }
}
