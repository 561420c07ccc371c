//! How simulated processes end by themselves: the clean stop, and the last process of a life, which settles everything.
//!
//! Place: a part of `life.rs`. The clean stop runs the doors' and the commit thread's own code to the end. The last process
//! has a disk without faults: *liveness* is checked here, in bounded steps, and that what was said to be done stays done.

use std::sync::Arc;
use std::time::Duration;

use forebay::config::SyncClass;
use forebay::event::{LANES, Position};
use forebay::spool::Policy;
use forebay::spool::gather::commit_loop;
use forebay::spool::held::Held;

use super::{Kind, Life, Process, Stop};
use crate::content::durable;
use crate::planted::Plant;
use crate::promises::{Broken, data_of, frames, hash_of, holds, key_of};

impl Life {
    /// The doors' and the commit thread's own code, up to the end of the process: submit, close, commit, answer.
    pub(super) fn clean_stop(&mut self, process: Process) -> Result<(), Stop> {
        let Process { opened, mut reader, waiting, .. } = process;
        if waiting.is_some() {
            // A commit thread that is closed while it fails gives up, without receipts.
            return Ok(());
        }
        // The commit thread writes what is held before anything else.
        let base = opened.writer.held().map_or(opened.writer.next(), Held::end);
        let mut receipts = Vec::new();
        for _ in 0..self.draw(4) {
            let mut batch = opened.handle.batch();
            let first = self.promises.next_id;
            for _ in 0..self.draw(4) {
                let id = self.promises.next_id;
                self.promises.next_id += 1;
                let key = key_of(id);
                let (hash, explicit) = hash_of(&key);
                batch.push(&key, explicit.then_some(hash), &data_of(id));
            }
            let count = u64::from(batch.count());
            let permit =
                opened.handle.try_admit(batch.len()).map_err(|_| Broken("NO-BLOCKING: an idle spool admits nothing".into()))?;
            receipts.push((first, count, opened.handle.submit(batch, permit)));
        }
        opened.handle.set_policy(Policy { sync: self.class, ..Policy::default() });
        opened.handle.close();
        let shared = Arc::clone(opened.handle.shared());
        let fired = self.files.faults_fired();
        commit_loop(&shared, opened.writer);
        self.note_lies();
        let mut next = base;
        // At the end all is synced, in every class; unless a sync failed.
        let looks = self.plant.looks() && (self.class == SyncClass::Always || self.files.faults_fired() == fired);
        let looks = looks && (self.class == SyncClass::Always || !self.files.has_died());
        for (first, count, receipt) in receipts {
            let Ok(at) = receipt.wait() else { break };
            holds!(at == next, "DENSE: a batch expected at {next} was receipted at {at}");
            next.0 += count;
            if count == 0 {
                continue;
            }
            for (position, id) in (at.0..).map(Position).zip(first..first + count).filter(|_| looks) {
                let segment = shared.table.holding(position);
                let durable = segment.map(|segment| durable(&self.files, &segment.path)).unwrap_or_default();
                let there = frames(&durable, durable.len()).0.iter().any(|found| (found.2, found.3) == (position, id));
                holds!(there, "RECEIPT-AFTER-SYNC: event {id} at {position} is receipted and not on the disk");
            }
            self.receipt(&mut reader, at, first, count)?;
            self.promises.receipted_group(base);
        }
        self.files.meet("clean stop");
        if self.files.faults_fired() > fired {
            // The log has told it.
            self.promises.risk.told_in_doubt();
        } else if !self.files.has_died() {
            self.promises.risk.passed(Duration::MAX);
        }
        if self.files.has_died() { Err(Stop::Died) } else { Ok(()) }
    }

    /// Faults have stopped: everything is committed, read, delivered, saved and deleted in bounded time.
    pub(super) fn last_process(&mut self) -> Result<(), Broken> {
        let ended = self.drain().map_err(|stop| match stop {
            Stop::Broken(broken) => broken,
            Stop::Died => Broken("NOTHING-LOST: the machine died without being told to".into()),
        });
        ended?;
        self.promises.at_the_end()?;
        // What was said to be done stays done, and positions go on behind it, with marks or without.
        let seed = self.draw(6);
        self.files = self.files.crash(seed);
        self.promises.risk.power_cut = true;
        self.logged = 0;
        if self.on(Kind::Marks) && self.draw(2) == 0 {
            self.store.clear();
        }
        let mut process = match self.open() {
            Ok(process) => process,
            Err(Stop::Broken(broken)) => return Err(broken),
            Err(Stop::Died) => return Err(Broken("BORING-RECOVERY: the machine died without being told to".into())),
        };
        let marks = process.reader.marks();
        let next = process.opened.writer.next();
        holds!(marks.iter().all(|mark| *mark <= next), "DENSE: a mark lies behind the end");
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Stop> {
        self.files.heal();
        self.files.never_stop();
        let mut process = self.open()?;
        self.commit(&mut process)?;
        for round in 0.. {
            holds!(round < 10_000, "NOTHING-LOST: the spool does not drain");
            let more = self.sweep(&mut process)?;
            for lane in process.reader.lagging() {
                let mut met = Vec::new();
                let outcome = process.reader.read_lane(lane, &mut met);
                self.met(&met)?;
                self.read(outcome, u64::MAX, ())?;
            }
            for lane in process.reader.ready() {
                for (position, id) in process.reader.send(lane, usize::MAX >> 1) {
                    self.promises.deliver(position, id)?;
                }
                process.reader.answered(lane, usize::MAX);
            }
            for lane in process.reader.under_way() {
                process.reader.answered(lane, usize::MAX);
            }
            if !more && process.reader.is_idle() {
                break;
            }
        }
        let marks = process.reader.marks();
        let next = process.opened.writer.next();
        holds!(
            marks.iter().all(|mark| *mark == next),
            "EXACT-ACCOUNT: all is delivered, and a mark stays before {next}: {:?}",
            (0..LANES).find(|lane| marks[*lane] != next)
        );
        self.save(&mut process)?;
        self.remove(&mut process)?;
        process.opened.writer.seal();
        self.after_last_write(&mut process);
        let left = process.opened.handle.shared().table.all().len();
        holds!(left <= 1 || self.plant != Plant::None, "EXACT-ACCOUNT: {left} segments are left of what is settled");
        Ok(())
    }
}
