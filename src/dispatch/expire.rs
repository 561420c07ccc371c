//! Events that end without being delivered: too old, damaged, refused for what they are, or given up to make room.
//!
//! Place: part of the [`Dispatcher`]; `poll` calls [`Dispatcher::expire`] after feeding and before packing, `pack` calls
//! [`Dispatcher::settle_unreadable`], and the commit thread asks for [`Dispatcher::drop_oldest`] through the inbox.
//!
//! *MARK-BEHIND-DELIVERY* holds for letters too: an event is settled as expired or dead only after its letter is durable.
//! An event under way never expires: its answer decides. While letters cannot be written, or their store is full, events
//! over their ttl stay pending, this is told, and a shard that takes them first gets them late: nothing is lost by it, and
//! fresh events do not wait behind stale ones.
//!
//! *EXACT-ACCOUNT* over a crash: what ended is counted at once, and a checkpoint counts of it only what its marks have
//! passed ([`Dispatcher::counted_at_marks`]); the rest is pending again after a crash, or, where its letter is found at
//! start, dead or expired ([`Dispatcher::keep_letters`]). An event so gets one letter and is counted once.
//!
//! Failure: what cannot be read or written is tried again after a wait. Absent on purpose: a retry of a letter (that is
//! `spool::dead::desk`); giving up events under way.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Dispatcher;
use super::outgoing::Outgoing;
use super::queue::{Slot, SlotState};
use crate::event::{Lane, Position};
use crate::kinesis::PutError;
use crate::metrics::{Account, locked};
use crate::spool::dead::desk::DeadLetters;
use crate::spool::dead::{Known, Letter, Reason};

/// Frame bytes that become letters in one batch.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A batch of so many bytes is worth its sync: the next one does not wait.
const BATCH_BYTES_GOOD: usize = 64 << 10;

/// The least time between two small batches.
const BATCH_GAP: Duration = Duration::from_millis(100);

/// How long letters that could not be written wait before the next try.
pub(super) const RETRY_WAIT: Duration = Duration::from_secs(1);

/// An episode of dropping is over when nothing was dropped for so long.
const EPISODE_GAP: Duration = Duration::from_secs(60);

/// How an event ended that was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// As dead; the number of its letter, if letters are kept.
    Dead(Option<u64>),
    /// As expired, with its letter's number.
    Expired(u64),
    /// Given up to make room.
    Dropped,
}

impl Ending {
    fn count(self, account: &mut Account) {
        match self {
            Self::Dead(_) => account.dead += 1,
            Self::Expired(_) => account.expired += 1,
            Self::Dropped => account.dropped += 1,
        }
    }

    fn letter(self) -> Option<u64> {
        match self {
            Self::Dead(number) => number,
            Self::Expired(number) => Some(number),
            Self::Dropped => None,
        }
    }

    pub(super) fn of(letter: &Letter) -> Self {
        match letter.reason {
            Reason::Expired => Self::Expired(letter.number),
            Reason::Damaged | Reason::Poison | Reason::TooLarge => Self::Dead(Some(letter.number)),
        }
    }
}

/// How far what was dropped is from being durably dropped. Until it is, its shards send nothing: after a crash dropped
/// events would come back, behind later ones of their keys (*KEY-ORDER*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Dropping {
    /// A saved checkpoint has passed it, or nothing was.
    #[default]
    Saved,
    /// No checkpoint was made since.
    Unsaved,
    /// A checkpoint was made and is being saved.
    Taken,
}

/// What is known of events that end.
#[derive(Debug, Default)]
pub(super) struct Endings {
    letters: Option<Arc<DeadLetters>>,
    /// Events that ended and that their lane's mark has not passed, by position and lane.
    ended: BTreeMap<(u64, Lane), Ending>,
    /// The first letter whose event the marks of the last checkpoint have not passed.
    unsettled_letter: u64,
    /// No letters are written before.
    not_before: Duration,
    /// The last try failed, or the store is full.
    stuck: bool,
    /// The next queue whose events are looked at.
    turn: usize,
    /// Room was asked for and not yet made.
    drop_asked: bool,
    /// Whether a crash would bring back what was dropped.
    dropping: Dropping,
    /// When something was dropped last, and how much since it began.
    episode: Option<(Duration, u64)>,
}

impl Endings {
    /// Where letters go, if they are kept.
    pub(super) fn letters(&self) -> Option<Arc<DeadLetters>> {
        self.letters.clone()
    }
}

impl Dispatcher {
    /// From now on events become letters there. `known` are those letters whose events the checkpoint may not have passed:
    /// their events are not sent, and are counted as what they are instead of as pending.
    ///
    /// # Errors
    /// The device's.
    pub fn keep_letters(&mut self, letters: Arc<DeadLetters>, known: &[Known]) -> io::Result<()> {
        let mut gained = Account::default();
        let mut were_pending = 0;
        let mut seen = HashSet::new();
        for known in known {
            let Known { number, position, lane, reason } = *known;
            if position < self.marks.of(lane) || !seen.insert((position, lane)) {
                continue;
            }
            let ending = if reason == Reason::Expired { Ending::Expired(number) } else { Ending::Dead(Some(number)) };
            ending.count(&mut gained);
            if self.cursor.holds(lane, position, reason == Reason::Damaged)? {
                self.endings.ended.insert((position.0, lane), ending);
                self.marks.note_settled(lane, position);
                were_pending += 1;
            }
        }
        let mut account = locked(&self.metrics.account);
        // Those whose frames are gone were settled before the marks were lost.
        let others = (gained.dead + gained.expired - were_pending).min(account.delivered);
        account.delivered -= others;
        let expired = gained.expired.min(were_pending + others);
        account.expired += expired;
        account.dead += were_pending + others - expired;
        drop(account);
        self.endings.letters = Some(letters);
        Ok(())
    }

    /// What a checkpoint with the marks of now may count as dead, expired and dropped.
    pub(super) fn counted_at_marks(&mut self) -> Account {
        let marks = self.marks_now();
        self.endings.ended.retain(|(position, lane), _| *position >= marks[lane.index()].0);
        let mut ahead = Account::default();
        self.endings.ended.values().for_each(|ending| ending.count(&mut ahead));
        let first = self.endings.ended.values().filter_map(|ending| ending.letter()).min();
        let next = self.endings.letters.as_ref().map_or(0, |letters| letters.store().next());
        self.endings.unsettled_letter = first.unwrap_or(next);
        if self.wants_checkpoint() {
            self.endings.dropping = Dropping::Taken;
        }
        let account = *locked(&self.metrics.account);
        Account {
            dead: account.dead.saturating_sub(ahead.dead),
            expired: account.expired.saturating_sub(ahead.expired),
            dropped: account.dropped.saturating_sub(ahead.dropped),
            ..account
        }
    }

    /// Positions of events that ended and that the marks of the last checkpoint have not passed.
    pub(super) fn ended_ahead(&self) -> Vec<Position> {
        self.endings.ended.keys().map(|(position, _)| Position(*position)).collect()
    }

    /// The last checkpoint was saved: letters that nothing needs any more may leave the disk.
    pub(super) fn endings_saved(&mut self) {
        if self.endings.dropping == Dropping::Taken {
            self.endings.dropping = Dropping::Saved;
            self.queues.iter_mut().for_each(|queue| queue.drop_unsaved = false);
        }
        if let Some(letters) = &self.endings.letters
            && let Err(error) = letters.tidy(self.endings.unsettled_letter)
        {
            tracing::warn!(%error, "a file of dead letters that are gone could not be removed; trying again later");
        }
    }

    /// The event is too old to be sent, and a letter can be made of it.
    pub(super) fn is_expired(&self, slot: &Slot, now: Duration) -> bool {
        let ttl = self.options.ttl;
        !ttl.is_zero() && !self.endings.stuck && self.endings.letters.is_some() && u128::from(slot.age_ms(now)) >= ttl.as_millis()
    }

    /// Makes letters of events that wait and are too old: one batch. Looks at the fronts only, since receipts are in order.
    pub(super) fn expire(&mut self, now: Duration) {
        let Some(letters) = self.endings.letters.clone().filter(|_| !self.options.ttl.is_zero()) else { return };
        if self.a_suspect_is_expired(now) {
            self.let_suspects_go();
        }
        if now < self.endings.not_before {
            self.wake(self.endings.not_before);
            return;
        }
        let ttl_ms = self.options.ttl.as_millis() as u64;
        let mut due: Vec<(usize, u64)> = Vec::new();
        let mut bytes = 0;
        let mut next_in: Option<u64> = None;
        let queues = self.queues.len();
        for n in 0..queues {
            let at = (self.endings.turn + n) % queues;
            if bytes >= BATCH_BYTES_MAX {
                self.endings.turn = at;
                break;
            }
            let queue = &self.queues[at];
            let begun = due.len();
            for fresh in [false, true] {
                for (seq, slot) in queue.numbered(fresh) {
                    let age = slot.age_ms(now);
                    if age < ttl_ms {
                        next_in = Some(next_in.map_or(ttl_ms - age, |soonest| soonest.min(ttl_ms - age)));
                        break;
                    }
                    if slot.state == SlotState::Waiting {
                        due.push((at, seq));
                        bytes += slot.entry.len as usize;
                        if bytes >= BATCH_BYTES_MAX {
                            break;
                        }
                    }
                }
            }
            // The wall clock jumped between receipts: the one whose turn it is may be older than one before it.
            if let Some(seq) = queue.nth_ready(0)
                && queue.slot(seq).age_ms(now) >= ttl_ms
                && !due[begun..].iter().any(|(_, other)| *other == seq)
            {
                due.push((at, seq));
                bytes += queue.slot(seq).entry.len as usize;
                due[begun..].sort_unstable();
            }
        }
        if let Some(next_in) = next_in {
            self.wake(now + Duration::from_millis(next_in.max(1)));
        }
        if due.is_empty() {
            return;
        }
        match Self::room_for(&letters, bytes as u64).and_then(|()| self.expire_these(&letters, &due, now)) {
            Ok(()) => {
                self.letters_work();
                self.endings.not_before = if bytes >= BATCH_BYTES_GOOD { now } else { now + BATCH_GAP };
            }
            Err(error) => self.letters_stuck(&error, now),
        }
        self.wake(self.endings.not_before);
    }

    fn expire_these(&mut self, letters: &DeadLetters, due: &[(usize, u64)], now: Duration) -> io::Result<()> {
        let mut made = Vec::with_capacity(due.len());
        for (at, seq) in due {
            let slot = *self.queues[*at].slot(*seq);
            made.push(self.letter_of(&slot)?);
        }
        letters.append(&mut made)?;
        let mut at = 0;
        while at < due.len() {
            let queue = due[at].0;
            let end = at + due[at..].partition_point(|(other, _)| *other == queue);
            let seqs: Vec<u64> = due[at..end].iter().map(|(_, seq)| *seq).collect();
            self.end(queue, &seqs, made[at..end].iter().map(Ending::of));
            at = end;
        }
        tracing::debug!(events = due.len(), ?now, "expired events became dead letters");
        Ok(())
    }

    /// These events that wait have ended so.
    pub(super) fn end(&mut self, at: usize, seqs: &[u64], endings: impl Iterator<Item = Ending>) {
        let mut counted = Account::default();
        for (seq, ending) in seqs.iter().zip(endings) {
            let slot = self.queues[at].slot(*seq);
            self.endings.ended.insert((slot.position.0, slot.lane()), ending);
            ending.count(&mut counted);
        }
        self.queues[at].withdraw(seqs);
        {
            let mut account = locked(&self.metrics.account);
            account.dead += counted.dead;
            account.expired += counted.expired;
            account.dropped += counted.dropped;
        }
        self.pop_settled(at);
    }

    /// The letter that a slot's event becomes: expired, or damaged if it cannot be read back.
    pub(super) fn letter_of(&mut self, slot: &Slot) -> io::Result<Letter> {
        let mut read = Outgoing::new(0);
        let found = self.frame(slot, &mut read)?;
        let died_ms = self.wall_ms;
        let segment = self.cursor.shared().table.get(slot.segment);
        let Some(segment) = segment else {
            return Err(io::Error::other(format!("segment {} of an unsettled event is gone", slot.segment)));
        };
        let attempts = slot.attempts;
        let Some(found) = found else {
            let data = self.cursor.read_raw(&segment, slot.entry);
            let place = format!("segment {}, offset {}, {} bytes", slot.segment, slot.entry.offset, slot.entry.len);
            return Ok(Letter {
                number: 0,
                position: slot.position,
                key: String::new(),
                hash: crate::event::KeyHash(slot.lane().first_hash()),
                explicit: false,
                data,
                received_ms: segment.created_ms,
                died_ms,
                reason: Reason::Damaged,
                attempts,
                detail: format!("its bytes no longer check; {place}"),
            });
        };
        let frame = read.frame(found);
        let received_ms = segment.created_ms + u64::from(frame.time_ms());
        Ok(Letter {
            number: 0,
            position: frame.position(),
            key: String::from_utf8_lossy(frame.key_bytes()).into_owned(),
            hash: frame.hash(),
            explicit: frame.explicit_hash(),
            data: frame.data().to_vec(),
            received_ms,
            died_ms,
            reason: Reason::Expired,
            attempts,
            detail: format!("older than ttl ({} ms)", self.options.ttl.as_millis()),
        })
    }

    /// The first ready event of a queue no longer checks: it is dead. False when its letter could not be written: it stays.
    pub(super) fn settle_unreadable(&mut self, at: usize, now: Duration) -> bool {
        let Some(seq) = self.queues[at].nth_ready(0) else { return false };
        let slot = *self.queues[at].slot(seq);
        let ending = match self.endings.letters.clone() {
            None => Ok(Ending::Dead(None)),
            Some(letters) => self.letter_of(&slot).and_then(|letter| {
                // It may be read this time; it is no less suspicious.
                let mut made = [Letter { reason: Reason::Damaged, ..letter }];
                letters.append(&mut made).map(|()| Ending::of(&made[0]))
            }),
        };
        match ending {
            Ok(ending) => {
                tracing::error!(segment = %slot.segment, offset = slot.entry.offset, "an event is damaged on disk: set aside as dead");
                self.end(at, &[seq], std::iter::once(ending));
                true
            }
            Err(error) => {
                self.letters_stuck(&error, now);
                self.queues[at].not_before = now + RETRY_WAIT;
                false
            }
        }
    }

    /// The event under way is refused for what it is: it is dead.
    ///
    /// # Errors
    /// Its letter cannot be written, or there is no room for it: nothing has changed.
    pub(super) fn end_as_poison(&mut self, at: usize, seq: u64, error: &PutError) -> io::Result<()> {
        let slot = *self.queues[at].slot(seq);
        let ending = match self.endings.letters.clone() {
            None => Ending::Dead(None),
            Some(letters) => {
                Self::room_for(&letters, u64::from(slot.entry.len))?;
                let letter = self.letter_of(&slot)?;
                let mut made = [match letter.reason {
                    Reason::Damaged => letter,
                    _ => Letter { reason: Reason::Poison, detail: format!("Kinesis refuses it: {error}"), ..letter },
                }];
                letters.append(&mut made)?;
                Ending::of(&made[0])
            }
        };
        tracing::error!(position = slot.position.0, letter = ending.letter(), %error, "an event is refused for what it is, whatever the company: set aside as dead");
        let queue = &mut self.queues[at];
        queue.under_way -= 1;
        queue.requeue(&[seq]);
        self.end(at, &[seq], std::iter::once(ending));
        Ok(())
    }

    pub(super) fn room_for(letters: &DeadLetters, bytes: u64) -> io::Result<()> {
        if letters.store().has_room(bytes) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the store of dead letters is full (spool.dead_max_bytes, {} bytes are there); retry or purge some with `forebay dead`",
            letters.store().bytes()
        )))
    }

    pub(super) fn letters_stuck(&mut self, error: &io::Error, now: Duration) {
        self.endings.not_before = now + RETRY_WAIT;
        let reason = error.to_string();
        let mut told = locked(&self.metrics.dead_reason);
        if *told != reason {
            tracing::error!(%reason, "no dead letters can be written: their events stay pending, trying again");
            *told = reason;
        }
        drop(told);
        self.endings.stuck = true;
    }

    pub(super) fn letters_work(&mut self) {
        if std::mem::take(&mut self.endings.stuck) {
            tracing::info!("dead letters can be written again");
            locked(&self.metrics.dead_reason).clear();
        }
    }

    // === room by giving events up ===

    /// The spool is full and the user chose to lose the oldest events: gives up what is undelivered of the oldest sealed
    /// segment, at the next `poll`s. Events under way are waited for; if they fail, they are given up too. Nothing is
    /// given up while a segment waits only for the next saved checkpoint.
    pub fn drop_oldest(&mut self) {
        self.endings.drop_asked = true;
    }

    /// Shards wait for a saved checkpoint.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.endings.dropping == Dropping::Unsaved && !self.endings.drop_asked
    }

    /// Queues made anew send nothing while what was dropped may come back.
    pub(super) fn hold_new_queues(&mut self) {
        let unsaved = self.endings.dropping != Dropping::Saved;
        self.queues.iter_mut().for_each(|queue| queue.drop_unsaved = unsaved);
    }

    /// Does what [`Dispatcher::drop_oldest`] asked for, as far as it can be done now.
    pub(super) fn give_up(&mut self, now: Duration) {
        if let Some((last, events)) = self.endings.episode
            && now.saturating_sub(last) >= EPISODE_GAP
        {
            tracing::warn!(events, "dropping events to make room has ended for now; so many were given up");
            self.endings.episode = None;
        }
        if self.endings.drop_asked {
            match self.give_up_oldest(now) {
                Ok(done) => self.endings.drop_asked = !done,
                Err(error) => self.cannot_read(&error, now),
            }
        }
    }

    /// True when there is nothing more to do for now.
    fn give_up_oldest(&mut self, now: Duration) -> io::Result<bool> {
        if self.has_suspects() {
            self.let_suspects_go();
        }
        if self.map.is_some() {
            self.advance_marks();
        }
        let all = self.cursor.shared().table.all();
        let Some((_newest, older)) = all.split_last() else { return Ok(true) };
        let marks = self.marks_now();
        if older.iter().any(|segment| segment.covered_by(&marks)) {
            return Ok(true);
        }
        let Some(segment) = older.first() else { return Ok(true) };
        let mut dropped = 0;
        for at in 0..self.queues.len() {
            let queue = &self.queues[at];
            let of_it = |fresh| queue.numbered(fresh).take_while(|(_, slot)| slot.segment == segment.id);
            let waiting = of_it(false).chain(of_it(true)).filter(|(_, slot)| slot.state == SlotState::Waiting);
            let waiting: Vec<u64> = waiting.map(|(seq, _)| seq).collect();
            if waiting.is_empty() {
                continue;
            }
            dropped += waiting.len() as u64;
            self.queues[at].drop_unsaved = true;
            self.end(at, &waiting, waiting.iter().map(|_| Ending::Dropped));
        }
        self.note_dropped(segment.id, dropped, now);
        let under_way = |queue: &super::Queue| queue.oldest().any(|slot| slot.segment == segment.id);
        if self.queues.iter().any(under_way) {
            return Ok(false);
        }
        // What is left of it was never enqueued. All of it goes at once, so that no mark stands within it.
        let end = segment.extent().end;
        if self.map.is_some() {
            self.advance_marks();
        }
        let rest = self.pending_of(segment)?;
        locked(&self.metrics.account).dropped += rest;
        let unswept = self.sweep < end;
        self.sweep = self.sweep.max(end);
        for queue in &mut self.queues {
            queue.drop_unsaved |= unswept;
            for lag in [&mut queue.lag, &mut queue.fresh_lag].into_iter().flatten().filter(|lag| lag.from < end) {
                queue.drop_unsaved = true;
                *lag = super::Lag::new(end);
            }
        }
        self.raise_fresh(end);
        if self.map.is_some() {
            self.advance_marks();
        }
        self.marks.raise(end);
        debug_assert!(segment.covered_by(&self.marks_now()), "nothing of it is left");
        self.note_dropped(segment.id, rest, now);
        Ok(true)
    }

    fn note_dropped(&mut self, segment: crate::spool::segment::SegmentId, events: u64, now: Duration) {
        if events == 0 {
            return;
        }
        let before = self.endings.episode.map_or(0, |(_, before)| before);
        if before == 0 {
            tracing::error!(
                %segment,
                events,
                "the spool is full and spool.on_full is \"drop_oldest\": its oldest undelivered events are given up, counted as dropped"
            );
        }
        self.endings.episode = Some((now, before + events));
        self.endings.dropping = Dropping::Unsaved;
    }
}
