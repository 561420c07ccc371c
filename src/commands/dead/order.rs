//! Whether events that are handed back come to stand where they stood: behind what came before them of their key, and before
//! what came after.
//!
//! Place: `forebay dead retry` asks before it begins. A retried event gets a new position, behind all that its key received
//! meanwhile. Whether there is such a later event the spool's files tell, as far as they are still there: they are read from
//! the first letter's position on, beside a running agent or without one.
//!
//! *HONEST*: an event counts as in its place only where all that came after it was looked at. A later event that is a dead
//! letter itself was not delivered, so it overtakes nothing; and what was retried before stands, for this question, where it
//! stood first.
//!
//! Failure: files that cannot be read, or more letters or bytes than are looked at, are told as not known; a retry does not
//! depend on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::{Place, dead_letters};
use crate::event::Position;
use crate::spool::OpenError;
use crate::spool::dead::desk::Selection;
use crate::spool::dead::{DeadStore, Reason, Removal};
use crate::spool::inspect::{Select, SpoolDir};

/// Letters of which it is found out.
const LETTERS_MAX: usize = 200_000;

/// Bytes of the spool's files that are read for it.
const BYTES_MAX: u64 = 4 << 30;

/// Letters named one by one.
const NAMED_MAX: usize = 20;

/// What is known of the letters that are meant.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// No later event of its key came.
    kept: u64,
    /// Numbers of those whose key has a later event that is delivered or waits before it.
    behind: BTreeSet<u64>,
    /// What came after it is no longer on disk, or was not looked at.
    unknown: u64,
}

/// A letter that is meant: number, where its event stood first, hash of its key.
type Meant = (u64, Position, u128);

impl Order {
    /// Finds it out for the first `limit` letters that are meant and can be retried.
    pub(super) fn look(place: &Place, selection: &Selection, limit: Option<u64>) -> Self {
        match Self::try_look(place, selection, limit) {
            Ok(order) => order,
            Err((meant, error)) => {
                tracing::debug!(%error, "whether the order of keys is kept could not be found out");
                Self { unknown: meant, ..Self::default() }
            }
        }
    }

    fn try_look(place: &Place, selection: &Selection, limit: Option<u64>) -> Result<Self, (u64, String)> {
        let (meant, ours) = letters(place, selection, limit).map_err(|error| (0, error))?;
        let count = meant.len() as u64;
        let Some(first) = meant.iter().map(|(_, position, _)| *position).min() else { return Ok(Self::default()) };
        if meant.len() > LETTERS_MAX {
            return Err((count, "too many letters".to_owned()));
        }
        // Of each key, where its last event stood that is no letter.
        let mut last: HashMap<u128, Option<Position>> = meant.iter().map(|(_, _, hash)| (*hash, None)).collect();
        let failed = |error: &dyn std::fmt::Display| (count, error.to_string());
        let spool = SpoolDir::open(&place.host, &place.dir).map_err(|error| failed(&error))?;
        let read = spool.bytes_read();
        let select = Select { from: first, ..Select::default() };
        // Everything between these was looked at without a gap.
        let (mut whole_from, mut next, mut ended) = (first, first, false);
        let walked = spool.walk::<OpenError>(&select, Position(0), |met| {
            let position = met.frame.position();
            if position > next {
                whole_from = position;
            }
            next = Position(position.0 + 1);
            if let Some(last) = last.get_mut(&met.frame.hash().0) {
                let stood = match ours.get(&position) {
                    Some(Ours::Dead) => None,
                    Some(Ours::Retried(stood)) => Some(*stood),
                    None => Some(position),
                };
                *last = (*last).max(stood);
            }
            ended = read.load(std::sync::atomic::Ordering::Relaxed) > BYTES_MAX;
            Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        walked.map_err(|error| failed(&error))?;
        let mut order = Self::default();
        for (number, position, hash) in meant {
            if last.get(&hash).copied().flatten().is_some_and(|later| later > position) {
                order.behind.insert(number);
            } else if !ended && (whole_from..next).contains(&position) {
                order.kept += 1;
            } else {
                order.unknown += 1;
            }
        }
        Ok(order)
    }

    /// Lines for a person, each indented.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if !self.behind.is_empty() {
            let named: Vec<String> = self.behind.iter().take(NAMED_MAX).map(u64::to_string).collect();
            let more = if self.behind.len() > NAMED_MAX { " and more" } else { "" };
            writeln!(
                text,
                "  the order of their keys cannot be kept for {}: later events of these keys are delivered, or wait before them: {}{more}",
                dead_letters(self.behind.len() as u64),
                named.join(", ")
            )
            .expect("writing to a String does not fail");
        }
        if self.unknown > 0 {
            writeln!(
                text,
                "  for {} it is not known whether later events of their keys were delivered: what came after them is not all on disk",
                dead_letters(self.unknown)
            )
            .expect("writing to a String does not fail");
        }
        if self.kept > 0 {
            writeln!(text, "  {} in the order of their keys: no later event had come", dead_letters(self.kept))
                .expect("writing to a String does not fail");
        }
        text
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        json!({"kept": self.kept, "behind": self.behind.len(), "unknown": self.unknown, "behind_numbers": self.behind})
    }
}

/// What a position is to the store of letters.
#[derive(Clone, Copy, Debug)]
enum Ours {
    /// Its event is a letter.
    Dead,
    /// A letter's event came back there; it stood here first.
    Retried(Position),
}

/// Those that are meant, and what is known of positions.
fn letters(place: &Place, selection: &Selection, limit: Option<u64>) -> Result<(Vec<Meant>, BTreeMap<Position, Ours>), String> {
    let view = DeadStore::view(&place.host, &place.letters()).map_err(|error| error.to_string())?;
    let most = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let mut meant: Vec<Meant> = Vec::new();
    let mut ours: BTreeMap<Position, Ours> = BTreeMap::new();
    let visited = view.visit(0, &mut |letter, removal| {
        // One that came back and died again still stands where it stood first.
        let stood = match ours.get(&letter.position) {
            Some(Ours::Retried(stood)) => *stood,
            _ => letter.position,
        };
        ours.insert(letter.position, Ours::Dead);
        if let Some(Removal::Retried(position)) = removal {
            ours.insert(position, Ours::Retried(stood));
        }
        let is_meant = removal.is_none()
            && letter.number >= selection.first()
            && letter.reason != Reason::Damaged
            && selection.fits(&letter)
            && meant.len() < most;
        if is_meant {
            meant.push((letter.number, stood, letter.hash.0));
        }
        if ours.len() > 2 * LETTERS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    visited.map_err(|error| error.to_string())?;
    if ours.len() > 2 * LETTERS_MAX {
        return Err("too many letters".to_owned());
    }
    Ok((meant, ours))
}
