//! What no single file tells: whether files follow each other, and whether marks and account fit what is in them.
//!
//! Place: the second half of `verify.rs`, after each segment was checked on its own.

use super::finding::{Kind, Level};
use super::{Checked, KnownMarks, Verifier};
use crate::event::{LANES, Lane, Position};
use crate::metrics::Account;

/// Events that a lost file must be expected to have held of lanes that are not settled, before it is called lost: files
/// whose lanes were all settled are removed from the middle, too.
const EXPECTED_MIN: f64 = 20.0;

impl Verifier<'_> {
    /// Positions between the files.
    pub(super) fn neighbours(&mut self, after: &KnownMarks) {
        let mut gaps = Vec::new();
        let mut before: Option<&Checked> = None;
        for checked in &self.checked {
            let (end, adjacent, sealed) = match before {
                None => (Position(0), false, true),
                Some(before) => (before.end, self.heads[before.at].id.next() == self.heads[checked.at].id, before.sealed),
            };
            if end < checked.base {
                gaps.push((checked.at, end, checked.base, adjacent, sealed));
            }
            before = Some(checked);
        }
        for (at, from, to, adjacent, sealed) in gaps {
            if adjacent {
                // An unsealed one has been told as cut off.
                if sealed {
                    let what = "positions jump from one file to the next, known since an earlier start".to_owned();
                    let finding = self.find(Level::Note, Kind::Positions, at, what);
                    finding.positions = Some([from.0, to.0]);
                    finding.means("events that were lost at the end of a file were counted as dead then").remedy("none");
                }
                continue;
            }
            self.gap(at, from, to, after);
        }
    }

    /// A file is missing between two others, or before the first: fine if the marks are past it.
    fn gap(&mut self, at: usize, from: Position, to: Position, after: &KnownMarks) {
        let Some(checkpoint) = &after.checkpoint else {
            // Said once, with the marks.
            return;
        };
        // Marks that were lost and begun anew stand at 0, below files that were removed long before.
        let begun_anew =
            checkpoint.marks.iter().all(|mark| mark.0 == 0) && self.checked.first().is_some_and(|first| first.base.0 > 0);
        let marked = |lane: &Lane| from.0 > 0 || begun_anew || checkpoint.marks[lane.index()].0 > 0;
        let open: Vec<Lane> =
            (0..LANES as u16).map(Lane).filter(|lane| checkpoint.marks[lane.index()] < to && marked(lane)).collect();
        if open.is_empty() {
            return;
        }
        let (mut of_open, mut all) = (0u64, 0u64);
        for checked in &self.checked {
            of_open += open.iter().map(|lane| u64::from(checked.directory.count(*lane))).sum::<u64>();
            all += u64::from(checked.directory.frames());
        }
        let expected = (to.0 - from.0) as f64 * of_open as f64 / all.max(1) as f64;
        let sure = expected >= EXPECTED_MIN && !begun_anew;
        let lanes = open.len();
        let what = format!("no file holds these {} positions, and {lanes} lanes are not past them", to.0 - from.0);
        let finding = self.find(if sure { Level::Error } else { Level::Warning }, Kind::Positions, at, what);
        finding.positions = Some([from.0, to.0]);
        if sure {
            finding
                .means(&format!("a segment file before this one is missing; by the other files it held some {expected:.0} events that are not delivered"))
                .remedy("put the missing file back while the agent is stopped; without it these events are lost, and the account takes them for delivered");
        } else if begun_anew {
            finding
                .means("the marks know of no delivery: either they were lost and begun anew, and a settled file was removed before, or a file was lost")
                .remedy("none, unless somebody removed a file by hand: then put it back while the agent is stopped");
        } else {
            finding
                .means("files in which these lanes had nothing are removed in the regular way, and this is probably one")
                .remedy("none, unless somebody removed a file by hand: then put it back while the agent is stopped");
        }
    }

    pub(super) fn marks(&mut self, next: Position) {
        let ledger = self.spool.dir.join("ledger");
        if let Some(error) = self.before.unreadable.clone() {
            let level = if self.before.live { Level::Warning } else { Level::Error };
            self.find_in(level, Kind::Marks, ledger, format!("the marks cannot be read: {error}"))
                .means("no event is lost: the next start sends everything again that is still in the files")
                .remedy(
                    "none is needed; a copy of ledger/ from a moment ago, put back while the agent is stopped, avoids most of it",
                );
            return;
        }
        let Some(checkpoint) = &self.before.checkpoint else {
            if next > Position(0) {
                self.find_in(Level::Warning, Kind::Marks, ledger, "there are no marks".to_owned())
                    .means("no event is lost: the next start sends everything again that is in the files. Missing files cannot be noticed without marks")
                    .remedy("none, if no agent ran on this spool for longer than a moment");
            }
            return;
        };
        let (durable, past) = (checkpoint.durable, checkpoint.marks.iter().filter(|mark| **mark > next).count());
        let told = self.findings.iter().any(|finding| finding.positions.is_some_and(|[_, to]| to == durable.0));
        if durable > next && !told {
            let what =
                format!("the marks know events up to position {durable}, the files end at {next}; {past} lanes are past the end");
            let finding = self.find_in(Level::Error, Kind::Marks, ledger, what);
            finding.positions = Some([next.0, durable.0]);
            finding
                .means("the newest file, or its end, is missing: what of these events was not settled is lost; the next start counts them as dead")
                .remedy("put the newest segment file back while the agent is stopped");
        }
    }

    pub(super) fn balance(&mut self, next: Position, after: &KnownMarks) {
        let Some(checkpoint) = &self.before.checkpoint else { return };
        let dir = self.spool.dir.clone();
        let set_aside = checkpoint.dead + checkpoint.expired + checkpoint.dropped;
        let accepted = next.max(checkpoint.durable).0;
        if set_aside + self.pending > accepted && !self.removed {
            let what = format!(
                "accepted {accepted} is less than pending {} and dead, expired and dropped {set_aside} together",
                self.pending
            );
            self.find_in(Level::Error, Kind::Balance, dir.clone(), what)
                .means("the account does not add up: more is settled and pending than was ever accepted")
                .remedy("report it, with this output");
        }
        let Some(account) = self.before.account else { return };
        let sum = |account: &Account| account.delivered + account.dead + account.expired + account.dropped;
        let settled = sum(&account);
        // What was settled since may have been in files that went before they were listed.
        let since = after.account.map_or(u64::MAX, |later| sum(&later).saturating_sub(settled));
        let held = account.accepted.saturating_sub(settled).saturating_sub(since);
        if settled > account.accepted {
            let what = format!("the agent says accepted {} and settled {settled}", account.accepted);
            self.find_in(Level::Error, Kind::Balance, dir, what).means("the account does not add up").remedy("report it");
        } else if held > self.pending && !self.removed {
            let what = format!("the agent has {held} events pending, its files hold {}", self.pending);
            self.find_in(Level::Error, Kind::Balance, dir, what)
                .means("events that are not delivered are in no file: a file was removed or damaged under the running agent")
                .remedy("stop the agent, put the file back, start it");
        }
    }
}
