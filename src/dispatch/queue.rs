//! One shard's queue: which of its events wait, which are under way, which are settled.
//!
//! Place: `feed` enqueues in position order, `pack` takes from the front, answers settle or requeue. Pure state,
//! owned by the dispatcher.
//!
//! *KEY-ORDER*: with aggregates at most one record of the shard is under way, and what failed goes first the
//! next time. With one event a record, an event whose key has an earlier event waiting or under way stands in
//! that key's chain until the earlier one is settled. *IN-ORDER-SETTLE*: slots leave at the front only, so that
//! a lane's mark never passes an unsettled event.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::backoff::Backoff;
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
    pub fn waited_ms(&self, now: Duration) -> u32 {
        (now.as_millis() as u32).wrapping_sub(self.since_ms)
    }
}

/// A shard that fell behind the sweep and reads its lanes on its own.
#[derive(Clone, Debug)]
pub struct Lag {
    /// The first position that was not enqueued.
    pub from: Position,
    /// Frames of the segment being read that are still to be looked at, last first.
    pub entries: Vec<(Lane, Entry)>,
    /// That segment, and the position at which it ended when it was listed.
    pub segment: Option<(SegmentId, Position)>,
}

impl Lag {
    /// A lag that begins at `from`.
    #[must_use]
    pub const fn new(from: Position) -> Self {
        Self { from, entries: Vec::new(), segment: None }
    }
}

/// A shard's queue.
#[derive(Debug)]
pub struct Queue {
    /// The shard.
    pub shard: ShardRange,
    slots: VecDeque<Slot>,
    /// Sequence number of `slots[0]`.
    first: u64,
    /// Sequence numbers of slots that may be sent, in order.
    ready: VecDeque<u64>,
    ready_bytes: usize,
    /// Frame bytes of what waits, ready or in a chain.
    waiting_bytes: usize,
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
    /// Set while it reads its lanes on its own.
    pub lag: Option<Lag>,
    /// Something of it was dropped that would come back after a crash: it sends nothing until a checkpoint is saved.
    pub drop_unsaved: bool,
    /// Records stored, for status.
    pub records: u64,
    /// Records throttled, for status.
    pub throttled: u64,
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(shard: ShardRange, now: Duration) -> Self {
        Self {
            shard,
            slots: VecDeque::new(),
            first: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            waiting_bytes: 0,
            chains: HashKeyed::default(),
            under_way: 0,
            limiter: Limiter::new(now),
            backoff: Backoff::of_shard(),
            not_before: Duration::ZERO,
            last_good: now,
            lag: None,
            drop_unsaved: false,
            records: 0,
            throttled: 0,
        }
    }

    /// The lanes its hashes lie in, both ends included.
    #[must_use]
    pub fn lanes(&self) -> (Lane, Lane) {
        (KeyHash(self.shard.first_hash).lane(), KeyHash(self.shard.last_hash).lane())
    }

    /// Slots in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// No slots in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Events that may be sent.
    #[must_use]
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Frame bytes of the events that may be sent.
    #[must_use]
    pub fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Frame bytes of the events that wait, those in chains included.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The oldest slot.
    #[must_use]
    pub fn oldest(&self) -> Option<&Slot> {
        self.slots.front()
    }

    /// All slots.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// All slots with their sequence numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &Slot)> {
        (self.first..).zip(&self.slots)
    }

    /// The slot with that sequence number.
    ///
    /// # Panics
    /// If it has left: sequence numbers are held only while their slot is unsettled.
    #[must_use]
    pub fn slot(&self, seq: u64) -> &Slot {
        &self.slots[(seq - self.first) as usize]
    }

    fn slot_mut(&mut self, seq: u64) -> &mut Slot {
        &mut self.slots[(seq - self.first) as usize]
    }

    /// The first event that may be sent.
    #[must_use]
    pub fn front(&self) -> Option<&Slot> {
        self.ready.front().map(|seq| self.slot(*seq))
    }

    /// Sequence number of the `n`-th event that may be sent.
    #[must_use]
    pub fn nth_ready(&self, n: usize) -> Option<u64> {
        self.ready.get(n).copied()
    }

    /// Appends an event.
    pub fn push(&mut self, slot: Slot) {
        debug_assert!(self.slots.back().is_none_or(|last| last.position < slot.position), "slots come in position order");
        let seq = self.first + self.slots.len() as u64;
        self.slots.push_back(slot);
        if slot.state == SlotState::Settled {
            return;
        }
        self.waiting_bytes += slot.entry.len as usize;
        if slot.behind != NO_CHAIN
            && let Some(last) = self.chains.insert(slot.hash, seq)
        {
            self.slot_mut(last).behind = (seq - last) as u32;
            return;
        }
        self.ready.push_back(seq);
        self.ready_bytes += slot.entry.len as usize;
    }

    /// Takes the first `n` events that may be sent: they are under way.
    pub fn take(&mut self, n: usize, into: &mut Vec<u64>) {
        for _ in 0..n {
            let Some(seq) = self.ready.pop_front() else { return };
            let slot = self.slot_mut(seq);
            debug_assert_eq!(slot.state, SlotState::Waiting);
            slot.state = SlotState::UnderWay;
            slot.attempts = slot.attempts.saturating_add(1);
            let len = slot.entry.len as usize;
            self.ready_bytes -= len;
            self.waiting_bytes -= len;
            into.push(seq);
        }
    }

    /// Events that are under way are in another request.
    pub fn sent_again(&mut self, seqs: &[u64]) {
        for seq in seqs {
            let slot = self.slot_mut(*seq);
            debug_assert_eq!(slot.state, SlotState::UnderWay);
            slot.attempts = slot.attempts.saturating_add(1);
        }
    }

    /// Puts events back to the front, in their order.
    pub fn requeue(&mut self, seqs: &[u64]) {
        for seq in seqs.iter().rev() {
            let slot = self.slot_mut(*seq);
            debug_assert_eq!(slot.state, SlotState::UnderWay);
            slot.state = SlotState::Waiting;
            let len = slot.entry.len as usize;
            self.ready_bytes += len;
            self.waiting_bytes += len;
            self.ready.push_front(*seq);
        }
    }

    /// The event under way is delivered. The next one of its key, if it has a chain, may be sent.
    pub fn settle(&mut self, seq: u64) {
        let slot = self.slot_mut(seq);
        debug_assert_eq!(slot.state, SlotState::UnderWay);
        slot.state = SlotState::Settled;
        if let Some(next) = self.follower(seq) {
            self.ready_bytes += self.slot(next).entry.len as usize;
            self.ready.push_back(next);
        }
    }

    /// Events that wait are settled without having been sent; `seqs` in order. What waits behind one of them moves up, so
    /// that the order of what is left stays.
    pub fn withdraw(&mut self, seqs: &[u64]) {
        let mut ready: HashSet<u64> = self.ready.iter().copied().collect();
        for seq in seqs {
            let slot = self.slot_mut(*seq);
            debug_assert_eq!(slot.state, SlotState::Waiting);
            slot.state = SlotState::Settled;
            let len = slot.entry.len as usize;
            self.waiting_bytes -= len;
            // One in the middle of a chain is passed over when the chain gets there.
            if ready.contains(seq) {
                self.ready_bytes -= len;
                if let Some(next) = self.follower(*seq) {
                    self.ready_bytes += self.slot(next).entry.len as usize;
                    self.ready.push_back(next);
                    ready.insert(next);
                }
            }
        }
        let (slots, first) = (&self.slots, self.first);
        self.ready.retain(|seq| slots[(seq - first) as usize].state == SlotState::Waiting);
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
        self.slots.iter().filter(held).all(|slot| moved(slot.entry.offset).is_some())
    }

    /// The frames of a segment lie elsewhere now. What is settled may have been left out, and is not read again.
    pub fn move_frames(&mut self, segment: SegmentId, moved: impl Fn(u32) -> Option<u32>) {
        for slot in self.slots.iter_mut().filter(|slot| slot.segment == segment) {
            slot.entry.offset = moved(slot.entry.offset).unwrap_or(slot.entry.offset);
        }
    }

    /// Takes the oldest slot away if it is settled.
    pub fn pop_settled(&mut self) -> Option<Slot> {
        self.slots.front().filter(|slot| slot.state == SlotState::Settled)?;
        self.first += 1;
        self.slots.pop_front()
    }
}
