//! Ids that were met, in bounded memory: the oldest leave first. Pure.
//!
//! A ring of entries in the order in which they came, and a table of open addressing that finds an id in it. An entry
//! takes 20 bytes in the ring and 8 in the table, so [`Seen::new`] with a bound of N ids never holds more than 28 N bytes
//! (ring and table double as they grow, and N is a power of two). Ids are hashes, so their own bits place them.
//!
//! *OLDEST-FIRST*: whoever is thrown out to keep the bound is the one that came first; [`Seen::insert`] says so.

use std::collections::VecDeque;

/// A 128-bit id.
pub type Id = u128;

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its event is on its way to the disk, in the batch of this number.
    UnderWay(u32),
    /// Its event was durable at this second of a clock that the caller keeps.
    Since(u32),
}

/// Of a state: it is under way.
const UNDER_WAY: u32 = 1 << 31;
/// The largest number that a state can hold.
const NUMBER_MAX: u32 = UNDER_WAY - 2;
/// The entry was removed; the ring keeps its place until it is the oldest.
const GONE: u32 = UNDER_WAY - 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: [u32; 4],
    state: u32,
}

/// No entry, in the table.
const EMPTY: u32 = u32::MAX;
/// Sequence numbers are counted in this many bits.
const SEQUENCE_MASK: u32 = (1 << 31) - 1;
/// Places of the first table.
const PLACES_MIN: usize = 64;

fn words(id: Id) -> [u32; 4] {
    std::array::from_fn(|at| (id >> (32 * at)) as u32)
}

/// The ids.
#[derive(Debug)]
pub struct Seen {
    max: usize,
    ring: VecDeque<Entry>,
    /// Sequence number of the ring's first entry.
    first: u32,
    /// Sequence numbers; a power of two of them, at least twice the ring's entries.
    table: Vec<u32>,
}

impl Seen {
    /// Of at most `max` ids, a power of two.
    #[must_use]
    pub fn new(max: usize) -> Self {
        debug_assert!(max.is_power_of_two());
        Self { max, ring: VecDeque::new(), first: 0, table: Vec::new() }
    }

    /// Ids in it, removed ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ring.capacity() * size_of::<Entry>() + self.table.capacity() * size_of::<u32>()
    }

    /// What is known of an id.
    #[must_use]
    pub fn get(&self, id: Id) -> Option<State> {
        let at = self.place(words(id))?;
        let state = self.ring[self.index(self.table[at])].state;
        Some(if state >= UNDER_WAY { State::UnderWay(state - UNDER_WAY) } else { State::Since(state) })
    }

    /// Notes an id that is not in it. True: the oldest had to leave for it.
    pub fn insert(&mut self, id: Id, state: State) -> bool {
        let words = words(id);
        debug_assert!(self.place(words).is_none(), "an id stands once");
        let crowded = self.ring.len() == self.max && self.pop();
        if (self.ring.len() + 1) * 2 > self.table.len() {
            self.grow();
        }
        let sequence = (self.first.wrapping_add(self.ring.len() as u32)) & SEQUENCE_MASK;
        self.ring.push_back(Entry { id: words, state: stored(state) });
        self.put(words, sequence);
        crowded
    }

    /// Notes that an id is durable since then, if it is still under way in that batch.
    pub fn settle(&mut self, id: Id, batch: u32, since: u32) {
        if let Some(at) = self.place(words(id)) {
            let index = self.index(self.table[at]);
            let entry = &mut self.ring[index];
            if entry.state == stored(State::UnderWay(batch)) {
                entry.state = stored(State::Since(since));
            }
        }
    }

    /// Forgets an id.
    pub fn remove(&mut self, id: Id) {
        if let Some(at) = self.place(words(id)) {
            let index = self.index(self.table[at]);
            self.ring[index].state = GONE;
            self.clear(at);
        }
    }

    /// Forgets what is durable since `last` or before, as far as it is the oldest; and what was removed.
    pub fn expire(&mut self, last: u32) {
        while self.ring.front().is_some_and(|entry| entry.state == GONE || entry.state <= last) {
            self.pop();
        }
    }

    /// Throws out the oldest; true if anything was known of it.
    fn pop(&mut self) -> bool {
        let Some(&Entry { id, state }) = self.ring.front() else { return false };
        if state != GONE
            && let Some(at) = self.place(id)
        {
            self.clear(at);
        }
        self.ring.pop_front();
        self.first = (self.first + 1) & SEQUENCE_MASK;
        state != GONE
    }

    fn index(&self, sequence: u32) -> usize {
        (sequence.wrapping_sub(self.first) & SEQUENCE_MASK) as usize
    }

    fn home(&self, id: [u32; 4]) -> usize {
        id[0] as usize & (self.table.len() - 1)
    }

    /// Where in the table an id stands.
    fn place(&self, id: [u32; 4]) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        let mut at = self.home(id);
        loop {
            match self.table[at] {
                EMPTY => return None,
                sequence if self.ring[self.index(sequence)].id == id => return Some(at),
                _ => at = (at + 1) & (self.table.len() - 1),
            }
        }
    }

    fn put(&mut self, id: [u32; 4], sequence: u32) {
        let mut at = self.home(id);
        while self.table[at] != EMPTY {
            at = (at + 1) & (self.table.len() - 1);
        }
        self.table[at] = sequence;
    }

    /// Empties a place, and moves up what was pushed on for it.
    fn clear(&mut self, mut hole: usize) {
        let mask = self.table.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let sequence = self.table[at];
            if sequence == EMPTY {
                break;
            }
            let home = self.home(self.ring[self.index(sequence)].id);
            // It may stand anywhere from its home on, not before.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.table[hole] = sequence;
                hole = at;
            }
        }
        self.table[hole] = EMPTY;
    }

    fn grow(&mut self) {
        let places = (self.table.len() * 2).max(PLACES_MIN);
        self.table = vec![EMPTY; places];
        for at in 0..self.ring.len() {
            let Entry { id, state } = self.ring[at];
            if state != GONE {
                self.put(id, self.first.wrapping_add(at as u32) & SEQUENCE_MASK);
            }
        }
    }
}

fn stored(state: State) -> u32 {
    match state {
        State::UnderWay(batch) => UNDER_WAY | batch,
        State::Since(since) => since.min(NUMBER_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Spreads small numbers, so that some collide in the table.
    fn id(number: u8) -> Id {
        u128::from(number) << 96 | u128::from(number % 7)
    }

    #[test]
    fn the_oldest_leaves_for_the_one_over_the_bound() {
        let mut seen = Seen::new(4);
        for number in 0..4 {
            assert!(!seen.insert(id(number), State::Since(1)));
        }
        assert!(seen.insert(id(4), State::UnderWay(9)));
        assert_eq!((seen.get(id(0)), seen.get(id(1)), seen.get(id(4))), (None, Some(State::Since(1)), Some(State::UnderWay(9))));
        seen.remove(id(1));
        assert!(!seen.insert(id(5), State::Since(2)), "what was removed left room");
    }

    #[test]
    fn a_full_one_holds_28_bytes_an_id() {
        let mut seen = Seen::new(1 << 12);
        for number in 0..20_000u128 {
            seen.insert(number << 40 | u128::from(crate::host::mix64(number as u64) as u32), State::Since(1));
        }
        assert_eq!(seen.len(), 1 << 12);
        assert!(seen.bytes() <= 28 << 12, "{}", seen.bytes());
    }

    #[test]
    fn only_the_batch_that_an_id_is_under_way_in_settles_it() {
        let mut seen = Seen::new(4);
        seen.insert(id(1), State::UnderWay(3));
        seen.settle(id(1), 2, 7);
        assert_eq!(seen.get(id(1)), Some(State::UnderWay(3)));
        seen.settle(id(1), 3, 7);
        assert_eq!(seen.get(id(1)), Some(State::Since(7)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, bool),
        Settle(u8),
        Remove(u8),
        Expire(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..40, any::<bool>()).prop_map(|(id, durable)| Step::Insert(id, durable)),
            1 => (0u8..40).prop_map(Step::Settle),
            1 => (0u8..40).prop_map(Step::Remove),
            1 => (0u32..40).prop_map(Step::Expire),
        ]
    }

    proptest! {
        #[test]
        fn it_knows_what_a_plain_list_knows(steps in prop::collection::vec(step(), 0..300)) {
            let mut seen = Seen::new(16);
            let mut list: Vec<(u8, Option<State>)> = Vec::new();
            for (now, step) in (0u32..).zip(steps) {
                match step {
                    Step::Insert(number, durable) => {
                        if list.iter().any(|(known, state)| *known == number && state.is_some()) {
                            continue;
                        }
                        let state = if durable { State::Since(now) } else { State::UnderWay(5) };
                        let crowded = list.len() == 16 && list.remove(0).1.is_some();
                        list.push((number, Some(state)));
                        prop_assert_eq!(seen.insert(id(number), state), crowded);
                    }
                    Step::Settle(number) => {
                        seen.settle(id(number), 5, now);
                        if let Some((_, state)) = list.iter_mut().find(|(known, state)| *known == number && state.is_some())
                            && *state == Some(State::UnderWay(5))
                        {
                            *state = Some(State::Since(now));
                        }
                    }
                    Step::Remove(number) => {
                        seen.remove(id(number));
                        if let Some((_, state)) = list.iter_mut().find(|(known, state)| *known == number && state.is_some()) {
                            *state = None;
                        }
                    }
                    Step::Expire(age) => {
                        let last = now.saturating_sub(age);
                        seen.expire(last);
                        let old = |state: &Option<State>| match state {
                            None => true,
                            Some(State::Since(since)) => *since <= last,
                            Some(State::UnderWay(_)) => false,
                        };
                        while list.first().is_some_and(|(_, state)| old(state)) {
                            list.remove(0);
                        }
                    }
                }
                prop_assert_eq!(seen.len(), list.len());
                for number in 0..40 {
                    let known = list.iter().find(|(known, state)| *known == number && state.is_some());
                    prop_assert_eq!(seen.get(id(number)), known.and_then(|(_, state)| *state));
                }
            }
        }
    }
}
