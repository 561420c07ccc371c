//! One shard's queue: which of its events wait, which are under way, which are settled.
//!
//! Place: `feed` enqueues in position order, `pack` takes from the front, answers settle or requeue. Pure state,
//! owned by the dispatcher.
//!
//! A queue has two sides. The main one has the shard's events in the order of their receipts; while the shard has a backlog,
//! the fresh one has events that may go ahead of it (`fresh.rs` says which). No key has events on both sides, so each side
//! keeps the order of its keys by itself. Fresh events go first; where they alone would fill the shard, each fourth turn is
//! the main side's (*BOTH-MOVE*).
//!
//! *KEY-ORDER*: with aggregates at most one record of the shard is under way, and what failed goes first the
//! next time. With one event a record, an event whose key has an earlier event waiting or under way stands in
//! that key's chain until the earlier one is settled. *IN-ORDER-SETTLE*: slots leave at the front only, so that
//! a lane's mark never passes an unsettled event.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::backoff::Backoff;
use super::hot::HotKeys;
use super::limiter::Limiter;
use crate::aggregate::HashKeyed;
use crate::event::{KeyHash, Lane, Position};
use crate::kinesis::ShardRange;
use crate::spool::index::Entry;
use crate::spool::segment::SegmentId;

/// What is known of a slot's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// To be sent.
    Waiting,
    /// In a request, or held until the shard map is fresh.
    UnderWay,
    /// Delivered, dead, expired or dropped.
    Settled,
}

/// An event in memory: where its bytes are, not the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Its position.
    pub position: Position,
    /// Number of its chunk in the window (its low bits), and its offset there.
    pub chunk: u32,
    /// Offset of the frame in the chunk.
    pub chunk_offset: u32,
    /// Its file.
    pub segment: SegmentId,
    /// Its place in the file.
    pub entry: Entry,
    /// Dispatcher time at which it was enqueued, ms, wrapping.
    pub since_ms: u32,
    /// How old it was then, ms.
    pub age_ms: u32,
    /// Its key's hash; of one that no longer checks, some hash of its lane.
    pub hash: u128,
    /// Bytes of its key.
    pub key_len: u16,
    /// Its hash is an explicit hash key.
    pub explicit: bool,
    /// What is known of it.
    pub state: SlotState,
    /// How far behind it the next event of its key stands that waits for it; 0: none does. [`NO_CHAIN`]: none ever waits.
    pub behind: u32,
    /// How often it was in a request since it was enqueued.
    pub attempts: u32,
}

/// [`Slot::behind`] of an event whose key's events need not go one after the other.
pub const NO_CHAIN: u32 = u32::MAX;

// Queues hold hundreds of thousands; and one fills exactly a line of the processor's cache.
const _: () = assert!(size_of::<Slot>() == 64);

impl Slot {
    /// Its lane.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        KeyHash(self.hash).lane()
    }

    /// How old it is, ms.
    #[must_use]
    pub fn age_ms(&self, now: Duration) -> u64 {
        u64::from(self.age_ms) + u64::from(self.waited_ms(now))
    }

    /// How long it has been in its queue, ms.
    #[must_use]
    fn waited_ms(&self, now: Duration) -> u32 {
        (now.as_millis() as u32).wrapping_sub(self.since_ms)
    }
}

/// Where a position lies on disk, if that is known: its file, and the offset there.
pub type Place = Option<(SegmentId, u64)>;

/// A shard that fell behind the sweep and reads on its own, or together with others (`together.rs`).
#[derive(Clone, Debug)]
pub struct Lag {
    /// The first position that was not enqueued.
    pub from: Position,
    /// Where it lies.
    pub place: Place,
    /// Frames of the segment being read that are still to be looked at, last first.
    pub entries: Vec<(Lane, Entry)>,
    /// That segment, and the position at which it ended when it was listed.
    pub segment: Option<(SegmentId, Position)>,
}

impl Lag {
    /// A lag that begins at `from`.
    #[must_use]
    pub const fn new(from: Position) -> Self {
        Self { from, place: None, entries: Vec::new(), segment: None }
    }
}

/// Sequence numbers of fresh events have this bit.
const FRESH: u64 = 1 << 63;

/// So many turns in a row are the fresh side's while it keeps the shard busy alone.
const FRESH_RUN_MAX: u8 = 3;

/// One side of a queue.
#[derive(Debug, Default)]
struct Side {
    slots: VecDeque<Slot>,
    /// Sequence number of `slots[0]`.
    first: u64,
    /// Sequence numbers of slots that may be sent, in order.
    ready: VecDeque<u64>,
    /// Frame bytes of what waits, ready or in a chain.
    waiting_bytes: usize,
}

/// A shard's queue.
#[derive(Debug)]
pub struct Queue {
    /// The shard.
    pub shard: ShardRange,
    main: Side,
    fresh: Side,
    /// Turns in a row that left the fresh side with more.
    fresh_run: u8,
    ready_bytes: usize,
    /// With one event a record: each key that has an event ready or under way, and the last one of those that wait
    /// behind it, linked through `Slot::behind`.
    chains: HashKeyed<u64>,
    /// Records under way or held.
    pub under_way: usize,
    /// What the shard may be given.
    pub limiter: Limiter,
    /// Failures in a row.
    pub backoff: Backoff,
    /// Nothing is sent before.
    pub not_before: Duration,
    /// The last good answer.
    pub last_good: Duration,
    /// Set while the main side reads its lanes on its own.
    pub lag: Option<Lag>,
    /// The same of the fresh side.
    pub fresh_lag: Option<Lag>,
    /// Something of it was dropped that would come back after a crash: it sends nothing until a checkpoint is saved.
    pub drop_unsaved: bool,
    /// Records stored, for status.
    pub records: u64,
    /// Records throttled, for status.
    pub throttled: u64,
    /// Its keys, by samples.
    pub(super) hot: HotKeys,
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(shard: ShardRange, now: Duration) -> Self {
        Self {
            shard,
            main: Side::default(),
            fresh: Side { first: FRESH, ..Side::default() },
            fresh_run: 0,
            ready_bytes: 0,
            chains: HashKeyed::default(),
            under_way: 0,
            limiter: Limiter::new(now),
            backoff: Backoff::of_shard(),
            not_before: Duration::ZERO,
            last_good: now,
            lag: None,
            fresh_lag: None,
            drop_unsaved: false,
            records: 0,
            throttled: 0,
            hot: HotKeys::default(),
        }
    }

    /// The lanes its hashes lie in, both ends included.
    #[must_use]
    pub fn lanes(&self) -> (Lane, Lane) {
        (KeyHash(self.shard.first_hash).lane(), KeyHash(self.shard.last_hash).lane())
    }

    fn side(&self, fresh: bool) -> &Side {
        if fresh { &self.fresh } else { &self.main }
    }

    fn side_mut(&mut self, fresh: bool) -> &mut Side {
        if fresh { &mut self.fresh } else { &mut self.main }
    }

    /// The side whose events go first now, and the other one.
    fn in_turn(&self) -> (&Side, &Side) {
        if self.fresh_run < FRESH_RUN_MAX { (&self.fresh, &self.main) } else { (&self.main, &self.fresh) }
    }

    /// Slots in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.main.slots.len() + self.fresh.slots.len()
    }

    /// Slots of one side in memory.
    #[must_use]
    pub fn side_len(&self, fresh: bool) -> usize {
        self.side(fresh).slots.len()
    }

    /// No slots in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events that may be sent.
    #[must_use]
    pub fn ready_len(&self) -> usize {
        self.main.ready.len() + self.fresh.ready.len()
    }

    /// Fresh events may be sent.
    #[must_use]
    pub fn has_fresh(&self) -> bool {
        !self.fresh.ready.is_empty()
    }

    /// Frame bytes of the events that may be sent.
    #[must_use]
    pub fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Frame bytes of the events that wait, those in chains included.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.main.waiting_bytes + self.fresh.waiting_bytes
    }

    /// The same of one side.
    #[must_use]
    pub fn side_waiting_bytes(&self, fresh: bool) -> usize {
        self.side(fresh).waiting_bytes
    }

    /// The oldest slot of each side.
    pub fn oldest(&self) -> impl Iterator<Item = &Slot> {
        self.main.slots.front().into_iter().chain(self.fresh.slots.front())
    }

    /// The oldest slot of the main side.
    #[must_use]
    pub fn oldest_main(&self) -> Option<&Slot> {
        self.main.slots.front()
    }

    /// The slots of one side.
    pub fn slots(&self, fresh: bool) -> impl Iterator<Item = &Slot> {
        self.side(fresh).slots.iter()
    }

    /// The slots of one side with their sequence numbers.
    pub fn numbered(&self, fresh: bool) -> impl Iterator<Item = (u64, &Slot)> {
        (self.side(fresh).first..).zip(&self.side(fresh).slots)
    }

    /// The slot with that sequence number.
    ///
    /// # Panics
    /// If it has left: sequence numbers are held only while their slot is unsettled.
    #[must_use]
    pub fn slot(&self, seq: u64) -> &Slot {
        let side = self.side(seq & FRESH != 0);
        &side.slots[(seq - side.first) as usize]
    }

    fn slot_mut(&mut self, seq: u64) -> &mut Slot {
        let side = self.side_mut(seq & FRESH != 0);
        &mut side.slots[(seq - side.first) as usize]
    }

    /// The first event that may be sent.
    #[must_use]
    pub fn front(&self) -> Option<&Slot> {
        self.nth_ready(0).map(|seq| self.slot(seq))
    }

    /// How old those are that may be sent: the first of either side, ms.
    #[must_use]
    pub fn ready_age_ms(&self, now: Duration) -> u64 {
        let fronts = self.main.ready.front().into_iter().chain(self.fresh.ready.front());
        fronts.map(|seq| self.slot(*seq).age_ms(now)).max().unwrap_or(0)
    }

    /// Sequence number of the `n`-th event that may be sent.
    #[must_use]
    pub fn nth_ready(&self, n: usize) -> Option<u64> {
        let (side, other) = self.in_turn();
        side.ready.get(n).or_else(|| other.ready.get(n - side.ready.len())).copied()
    }

    /// Appends an event to one side.
    pub fn push(&mut self, slot: Slot, fresh: bool) {
        let side = self.side_mut(fresh);
        debug_assert!(side.slots.back().is_none_or(|last| last.position < slot.position), "slots come in position order");
        let seq = side.first + side.slots.len() as u64;
        side.slots.push_back(slot);
        if slot.state == SlotState::Settled {
            return;
        }
        side.waiting_bytes += slot.entry.len as usize;
        self.hot.see(slot.hash, slot.entry.len);
        if slot.behind != NO_CHAIN
            && let Some(last) = self.chains.insert(slot.hash, seq)
        {
            debug_assert_eq!(last & FRESH, seq & FRESH, "KEY-ORDER: no key has events on both sides");
            self.slot_mut(last).behind = (seq - last) as u32;
            return;
        }
        self.side_mut(fresh).ready.push_back(seq);
        self.ready_bytes += slot.entry.len as usize;
    }

    /// Takes the first `n` events that may be sent: they are under way.
    pub fn take(&mut self, n: usize, into: &mut Vec<u64>) {
        let fresh_first = self.fresh_run < FRESH_RUN_MAX;
        let mut taken_of_main = false;
        for _ in 0..n {
            let (side, other) = if fresh_first { (&mut self.fresh, &mut self.main) } else { (&mut self.main, &mut self.fresh) };
            let Some(seq) = side.ready.pop_front().or_else(|| other.ready.pop_front()) else { break };
            let slot = self.slot_mut(seq);
            debug_assert_eq!(slot.state, SlotState::Waiting);
            slot.state = SlotState::UnderWay;
            slot.attempts = slot.attempts.saturating_add(1);
            let len = slot.entry.len as usize;
            self.ready_bytes -= len;
            self.side_mut(seq & FRESH != 0).waiting_bytes -= len;
            taken_of_main |= seq & FRESH == 0;
            into.push(seq);
        }
        self.fresh_run = if taken_of_main || self.fresh.ready.is_empty() { 0 } else { self.fresh_run.saturating_add(1) };
    }

    /// Events that are under way are in another request.
    pub fn sent_again(&mut self, seqs: &[u64]) {
        for seq in seqs {
            let slot = self.slot_mut(*seq);
            debug_assert_eq!(slot.state, SlotState::UnderWay);
            slot.attempts = slot.attempts.saturating_add(1);
        }
    }

    /// Puts events back to the front of their side, in their order.
    pub fn requeue(&mut self, seqs: &[u64]) {
        for seq in seqs.iter().rev() {
            let slot = self.slot_mut(*seq);
            debug_assert_eq!(slot.state, SlotState::UnderWay);
            slot.state = SlotState::Waiting;
            let len = slot.entry.len as usize;
            self.ready_bytes += len;
            let side = self.side_mut(*seq & FRESH != 0);
            side.waiting_bytes += len;
            side.ready.push_front(*seq);
        }
    }

    fn make_ready(&mut self, seq: u64) {
        self.ready_bytes += self.slot(seq).entry.len as usize;
        self.side_mut(seq & FRESH != 0).ready.push_back(seq);
    }

    /// The event under way is delivered. The next one of its key, if it has a chain, may be sent.
    pub fn settle(&mut self, seq: u64) {
        let slot = self.slot_mut(seq);
        debug_assert_eq!(slot.state, SlotState::UnderWay);
        slot.state = SlotState::Settled;
        if let Some(next) = self.follower(seq) {
            self.make_ready(next);
        }
    }

    /// Events that wait are settled without having been sent; `seqs` in order. What waits behind one of them moves up, so
    /// that the order of what is left stays.
    pub fn withdraw(&mut self, seqs: &[u64]) {
        let mut ready: HashSet<u64> = self.main.ready.iter().chain(&self.fresh.ready).copied().collect();
        for seq in seqs {
            let slot = self.slot_mut(*seq);
            debug_assert_eq!(slot.state, SlotState::Waiting);
            slot.state = SlotState::Settled;
            let len = slot.entry.len as usize;
            self.side_mut(*seq & FRESH != 0).waiting_bytes -= len;
            // One in the middle of a chain is passed over when the chain gets there.
            if ready.contains(seq) {
                self.ready_bytes -= len;
                if let Some(next) = self.follower(*seq) {
                    self.make_ready(next);
                    ready.insert(next);
                }
            }
        }
        for Side { slots, first, ready, .. } in [&mut self.main, &mut self.fresh] {
            ready.retain(|seq| slots[(*seq - *first) as usize].state == SlotState::Waiting);
        }
    }

    /// The next event of the key that waits behind this settled head of its chain; without one the chain ends.
    fn follower(&mut self, seq: u64) -> Option<u64> {
        let (hash, mut at) = (self.slot(seq).hash, seq);
        loop {
            match self.slot(at).behind {
                NO_CHAIN => return None,
                0 => {
                    self.chains.remove(&hash);
                    return None;
                }
                behind => at += u64::from(behind),
            }
            if self.slot(at).state != SlotState::Settled {
                return Some(at);
            }
        }
    }

    /// A segment was rewritten: whether `moved` knows the new offset of every event of it that is not settled.
    #[must_use]
    pub fn can_move(&self, segment: SegmentId, moved: impl Fn(u32) -> Option<u32>) -> bool {
        let held = |slot: &&Slot| slot.segment == segment && slot.state != SlotState::Settled;
        self.main.slots.iter().chain(&self.fresh.slots).filter(held).all(|slot| moved(slot.entry.offset).is_some())
    }

    /// The frames of a segment lie elsewhere now. What is settled may have been left out, and is not read again.
    pub fn move_frames(&mut self, segment: SegmentId, moved: impl Fn(u32) -> Option<u32>) {
        let slots = self.main.slots.iter_mut().chain(&mut self.fresh.slots);
        for slot in slots.filter(|slot| slot.segment == segment) {
            slot.entry.offset = moved(slot.entry.offset).unwrap_or(slot.entry.offset);
        }
    }

    /// Takes the oldest slot of one side away if it is settled.
    pub fn pop_settled(&mut self, fresh: bool) -> Option<Slot> {
        let side = self.side_mut(fresh);
        side.slots.front().filter(|slot| slot.state == SlotState::Settled)?;
        side.first += 1;
        side.slots.pop_front()
    }
}
