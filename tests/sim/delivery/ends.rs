//! How the processes of a simulated life begin and end, what becomes of their marks, and how the life itself ends.
//!
//! Place: a part of `life.rs`. A kill leaves the disk as it is, a power cut what was synced and some of the rest; either may
//! come while a checkpoint is being saved. The store of the marks may be lost or set back on top. At the end it is calm, and
//! what was promised is checked once more.

use std::time::Duration;

use forebay::checkpoint::Checkpoint;
use forebay::event::Position;

use super::{DRAINED_WITHIN, Event, Life, SAVED_MAX};
use crate::judge::{Broken, holds};
use crate::process::Process;
use crate::spells::Kind;

impl Life {
    pub(super) fn keep(&mut self, bytes: Vec<u8>) {
        self.store.push_back(bytes);
        if self.store.len() > SAVED_MAX {
            self.store.pop_front();
        }
    }

    pub(super) fn saved(&mut self, number: u64, bytes: Vec<u8>) {
        let Some(process) = self.process.as_mut().filter(|process| process.number == number) else {
            // It was on its way to the disk when the process died.
            return;
        };
        process.on_saved(Checkpoint::decode(&bytes).expect("whole"));
        self.keep(bytes);
    }

    /// The process ends, in one way or another, and another one begins some time later.
    pub fn end_process(&mut self, kind: Kind, n: u64) -> Result<(), Broken> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let now = self.now();
        if kind == Kind::CleanStop {
            process.dispatcher.drain();
            let until = now + Duration::from_millis(n % 3_000);
            self.process = Some(process);
            let settled = |life: &Self| {
                let dispatcher = &life.process.as_ref().expect("nothing else ends it").dispatcher;
                dispatcher.is_settled() && dispatcher.under_way() == 0
            };
            // Nothing else is stopped, split or started meanwhile.
            let later: Vec<_> = self.events.extract_if(.., |_, event| matches!(event, Event::Happen(..))).collect();
            while !settled(self) && self.step(until)? {}
            self.events.extend(later);
            process = self.process.take().expect("nothing else ends it");
            let last = process.last_checkpoint();
            self.judge.marks(&last)?;
            self.service.meet(if last.clean { "clean stop" } else { "stop that is not clean" });
            process.on_saved(last.clone());
            self.keep(last.encode());
        }
        self.tell(|| format!("{kind:?}"));
        // A checkpoint that was being saved is on the disk or not.
        if process.saving && n.is_multiple_of(3) {
            let saving = self.events.iter().find_map(|(_, event)| match event {
                Event::Saved(number, bytes) if *number == process.number => Some(bytes.clone()),
                _ => None,
            });
            saving.into_iter().for_each(|bytes| self.keep(bytes));
        }
        self.files = match kind {
            Kind::PowerCut => {
                self.service.meet("power cut");
                self.note_lost = true;
                self.files.crash(n)
            }
            _ => {
                if kind == Kind::Kill {
                    self.service.meet("kill");
                }
                self.files.kill()
            }
        };
        if n >> 8 & 7 == 0 && self.may_lose_marks(Kind::LedgerLost) {
            self.service.meet("ledger lost");
            self.store.clear();
        } else if n >> 8 & 7 == 1 && self.may_lose_marks(Kind::LedgerSetBack) && self.store.len() > 1 {
            self.service.meet("ledger set back");
            self.store.pop_back();
            // Those of an earlier clean stop say that nothing was sent since, and nobody can know better.
            let found = self.store.back().and_then(|bytes| Checkpoint::decode(bytes));
            self.misled = found.is_some_and(|found| found.clean);
            self.note_lost |= self.misled;
        }
        self.counted_before += process.counted();
        let unanswered = self.calls.values().filter(|call| call.process == process.number && !call.answered);
        let under_way = unanswered.flat_map(|call| &call.parcels).map(|parcel| parcel.events.len() as u64).sum();
        self.judge.died(under_way, process.account().delivered - process.delivered_before);
        process.end();
        let at = self.now() + Duration::from_millis(n >> 16 & 1023);
        self.at(at, Event::Start);
        Ok(())
    }

    /// With lost or older marks, what is dead may count as delivered, or be counted twice (`docs/RELIABILITY.md` says so): lives
    /// with poison keep their marks, so that their account can be held to the event.
    fn may_lose_marks(&self, kind: Kind) -> bool {
        self.service.weather.on(kind) && self.service.poison.is_none()
    }

    pub fn start(&mut self) -> Result<(), Broken> {
        self.processes += 1;
        let now = self.now();
        self.service.ignored_keys_since(now);
        let loaded = self.store.back().and_then(|bytes| Checkpoint::decode(bytes));
        let process = Process::start(self.processes, &self.host(), self.segment_bytes, self.options.clone(), loaded);
        self.keep(process.marks.encode());
        self.judge.restarted(&process.marks, process.after_clean && !std::mem::take(&mut self.misled))?;
        let account = process.account();
        self.tell(|| format!("start: {account:?}"));
        self.process = Some(process);
        self.judge.account(&account)
    }

    /// From the first process to the last delivery and a clean end.
    pub(super) fn run(&mut self) -> Result<Duration, Broken> {
        self.start()?;
        self.work()?;
        let calm_at = self.service.weather.calm_at;
        while self.step(calm_at)? {}
        while self.process.is_none() {
            holds!(self.step(calm_at + DRAINED_WITHIN)?, "LIVENESS: nothing starts");
        }
        // AUTO is no fault: it may go on.
        self.service.auto =
            self.service.weather.spells.iter().any(|spell| spell.kind == Kind::Auto) && self.seed.is_multiple_of(4);
        let settled = |life: &Self| {
            let process = life.process.as_ref().expect("nothing ends it any more");
            process.dispatcher.is_settled() && process.dispatcher.under_way() == 0
        };
        let deadline = calm_at + DRAINED_WITHIN;
        while !settled(self) && self.step(deadline)? {}
        let account = self.process.as_ref().expect("it runs").account();
        holds!(settled(self), "LIVENESS: {:?} after the calm {account:?}", DRAINED_WITHIN);
        let drained_in = self.now().saturating_sub(calm_at);
        self.judge.at_the_end()?;
        let accepted = self.judge.accepted();
        let poison = self.judge.poison;
        holds!(
            (account.delivered, account.dead) == (accepted - poison, poison),
            "EXACT-ACCOUNT: {account:?} at the end of {accepted} events, {poison} of which are refused"
        );
        // Shards that lag may still have to pass what is settled.
        let at_end = |last: &Checkpoint| last.clean && last.marks.iter().all(|mark| *mark == last.durable);
        let deadline = self.now() + Duration::from_secs(60);
        let mut last = self.process.as_mut().expect("it runs").last_checkpoint();
        while !at_end(&last) && self.step(deadline)? {
            last = self.process.as_mut().expect("it runs").last_checkpoint();
        }
        holds!(at_end(&last), "LIVENESS: marks stay behind at the end");
        let process = self.process.as_mut().expect("it runs");
        process.on_saved(last.clone());
        let segments = process.handle.shared().table.all().len();
        holds!(segments <= 1, "EXACT-ACCOUNT: {segments} segments are left of what is settled");
        let counted = self.counted_before + process.counted();
        if !self.note_lost {
            self.judge.repeats_are_counted(counted)?;
        }
        self.restart_after_the_end(last)?;
        Ok(drained_in)
    }

    /// After a clean stop nothing is sent again.
    fn restart_after_the_end(&mut self, last: Checkpoint) -> Result<(), Broken> {
        self.process.take().expect("it runs").end();
        self.files = self.files.kill();
        self.events.clear();
        self.calls.clear();
        self.keep(last.encode());
        self.start()?;
        let until = self.now() + Duration::from_secs(5);
        while self.step(until)? {}
        let process = self.process.take().expect("it runs");
        let (sent, pending) = (process.dispatcher.sent_high(), process.dispatcher.is_settled());
        process.end();
        holds!(pending && sent == Position(0), "DUPLICATES-EXPLAINED: after a clean stop something is sent, up to {sent}");
        Ok(())
    }
}
