//! What consumers of the simulated stream get, and what is promised of it, each check by its promise's name.
//!
//! Place: `service.rs` tells what a shard stores, `life.rs` what was accepted, sent, answered and saved. The reader follows
//! KCL: a record that is an aggregate is dropped whole when any member hashes outside the shard it lies in
//! (`AggregatorUtil.deaggregate`), anything else is handed on; parents are read to their end before their children; shards
//! that are no ancestors of each other are read in any order. It decodes with `common/kpl.rs`, not with the program's reader.
//!
//! *DELIVERED-MEANS-READABLE*: never more events count as delivered than a consumer has got or will get.
//! *NOTHING-LOST*: no saved mark is past an event that no consumer gets; at the end consumers have all, unchanged.
//! *KEY-ORDER*: before an event, in its shard or an ancestor, lie all earlier ones of its key, whoever reads. *DUPLICATES-EXPLAINED*:
//! what was answered as stored where it is read is not sent again, unless a crash came before a checkpoint; and what
//! consumers get twice was counted. *EXACT-ACCOUNT*: the balance. *INSIDE-THE-LIMITS*: size, count and form of requests.

use std::collections::{BTreeSet, HashMap};

use forebay::checkpoint::Checkpoint;
use forebay::event::{KeyHash, Position};
use forebay::kinesis::{EntryOutcome, PutEntry};
use forebay::metrics::Account;
use md5::{Digest as _, Md5};

use crate::kpl::take_apart;
use crate::service::Shard;

/// A promise, and how it was broken.
#[derive(Debug)]
pub struct Broken(pub String);

/// What must hold, or the promise that its text begins with is broken.
macro_rules! holds {
    ($what:expr, $($text:tt)*) => {
        if !$what {
            return Err($crate::judge::Broken(format!($($text)*)));
        }
    };
}
pub(crate) use holds;

/// An event that was accepted. Its number in the list is its position.
#[derive(Debug)]
struct Event {
    key: u32,
    /// It is its key's n-th, from 0.
    n: u32,
    hash: u128,
    crc: u32,
    /// A consumer gets it.
    read: bool,
    /// The agent was told that it is stored, where it is read.
    settled: bool,
    /// Kinesis refuses it for what it is.
    poison: bool,
}

/// What the data of an event holds that Kinesis refuses.
const POISON: &[u8] = b"POISON";

/// Kinesis refuses a record with this data.
pub fn is_poison(data: &[u8]) -> bool {
    data.windows(POISON.len()).any(|bytes| bytes == POISON)
}

/// One record on its way.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Positions of its events.
    pub events: Vec<u64>,
    aggregated: bool,
    /// Smallest and largest hash of its events.
    pub span: (u128, u128),
}

impl Parcel {
    /// All of its events belong into these hashes.
    pub fn fits(&self, first: u128, last: u128) -> bool {
        first <= self.span.0 && self.span.1 <= last
    }
}

/// All that is known of the events of one life.
#[derive(Debug, Default)]
pub struct Judge {
    keys: Vec<Vec<u64>>,
    by_name: HashMap<String, u32>,
    events: Vec<Event>,
    unread: BTreeSet<u64>,
    /// By shard and key: so many events of the key, from the first one on, come before what the shard stores next.
    heard: HashMap<(usize, u32), u32>,
    /// Records are lines.
    pub lines: bool,
    /// KEY-ORDER is promised.
    pub ordered: bool,
    /// Events that a planted bug hid from the dispatcher, and sends itself.
    pub owed: BTreeSet<u64>,
    /// Saved marks are compared with what consumers got; without it only a crash shows what is missing.
    pub looks: bool,
    /// Events that consumers get, once each, and further times.
    pub readable: u64,
    pub repeats: u64,
    /// Events of aggregates that KCL drops.
    pub dropped: u64,
    /// Records of more than one event.
    pub packed: u64,
    /// Events that Kinesis refuses.
    pub poison: u64,
    /// Events that were stored where they do not belong, and were not sent again yet.
    held: BTreeSet<u64>,
    /// Events that this process was told of, as stored where they are read.
    told: u64,
    /// Events that a process died over, so that nobody counted what they may have been sent too often.
    died_over: u64,
}

/// MD5 as a number, as every client of Kinesis computes it.
pub fn md5_of(key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(key.as_bytes()).into())
}

impl Judge {
    pub fn accepted(&self) -> u64 {
        self.events.len() as u64
    }

    /// How many events of the key were accepted.
    pub fn count_of(&self, key: &str) -> u32 {
        self.by_name.get(key).map_or(0, |at| self.keys[*at as usize].len() as u32)
    }

    /// An event got its receipt.
    pub fn accept(&mut self, position: Position, key: &str, explicit: Option<u128>, data: &[u8]) -> Result<(), Broken> {
        holds!(position.0 == self.accepted(), "DENSE: {position} after {} events", self.accepted());
        let known = self.by_name.len() as u32;
        let at = *self.by_name.entry(key.to_owned()).or_insert(known);
        if at == known {
            self.keys.push(Vec::new());
        }
        let n = self.keys[at as usize].len() as u32;
        self.keys[at as usize].push(position.0);
        let poison = is_poison(data);
        if poison {
            self.poison += 1;
        } else {
            self.unread.insert(position.0);
        }
        let hash = explicit.unwrap_or_else(|| md5_of(key));
        self.events.push(Event { key: at, n, hash, crc: crc32fast::hash(data), read: false, settled: false, poison });
        Ok(())
    }

    /// The event with this data, which begins with its number and its key.
    fn find(&self, data: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(data).ok()?;
        let mut words = text.split(' ');
        let (n, key): (usize, _) = (words.next()?.parse().ok()?, words.next()?);
        let position = *self.keys[*self.by_name.get(key)? as usize].get(n)?;
        (self.events[position as usize].crc == crc32fast::hash(data)).then_some(position)
    }

    /// What is in a record, as its consumers will see it.
    pub fn open(&mut self, entry: &PutEntry) -> Result<Parcel, Broken> {
        let taken = take_apart(&entry.partition_key, entry.explicit_hash_key, &entry.data);
        let taken = taken.map_err(|error| Broken(format!("INSIDE-THE-LIMITS: {error}")))?;
        let aggregated = taken.first().is_some_and(|event| event.aggregated);
        let mut parcel = Parcel { events: Vec::new(), aggregated, span: (u128::MAX, 0) };
        let mut add = |data: &[u8], given: Option<(&str, Option<u128>)>| {
            let Some(position) = self.find(data) else {
                return Err(Broken("NOTHING-LOST: a record holds what nobody sent, or not as it was sent".to_owned()));
            };
            let event = &self.events[position as usize];
            if let Some((key, explicit)) = given {
                let hash = explicit.unwrap_or_else(|| md5_of(key));
                holds!(hash == event.hash, "KEY-ORDER: the event at {position} is sent with another key");
            }
            parcel.span = (parcel.span.0.min(event.hash), parcel.span.1.max(event.hash));
            parcel.events.push(position);
            Ok(())
        };
        match entry.data.strip_suffix(b"\n").filter(|_| self.lines && !aggregated) {
            Some(lines) => lines.split(|byte| *byte == b'\n').try_for_each(|line| add(line, None))?,
            None => taken.iter().try_for_each(|event| add(&event.data, Some((&event.key, event.explicit_hash_key))))?,
        }
        Ok(parcel)
    }

    /// A record leaves.
    pub fn sent(&mut self, parcel: &Parcel) -> Result<(), Broken> {
        self.packed += u64::from(parcel.events.len() > 1);
        for position in &parcel.events {
            let again = self.events[*position as usize].settled && !self.owed.contains(position);
            holds!(!again, "DUPLICATES-EXPLAINED: the event at {position} is sent again after it was answered as stored");
            self.held.remove(position);
        }
        Ok(())
    }

    fn heard(&self, shards: &[Shard], at: usize, key: u32) -> u32 {
        let here = self.heard.get(&(at, key)).copied();
        here.unwrap_or_else(|| shards[at].parents.iter().map(|parent| self.heard(shards, *parent, key)).max().unwrap_or(0))
    }

    /// A shard stored a record.
    pub fn stored(&mut self, shards: &[Shard], at: usize, parcel: &Parcel) -> Result<(), Broken> {
        let range = &shards[at].range;
        if parcel.aggregated && !parcel.fits(range.first_hash, range.last_hash) {
            self.dropped += parcel.events.len() as u64;
            return Ok(());
        }
        for position in &parcel.events {
            let (key, n) = (self.events[*position as usize].key, self.events[*position as usize].n);
            if self.ordered {
                let mut heard = self.heard(shards, at, key);
                // Nobody gets what is refused.
                while heard < n && self.events[self.keys[key as usize][heard as usize] as usize].poison {
                    heard += 1;
                }
                holds!(n <= heard, "KEY-ORDER: in {} a consumer gets event {n} of key {key} after {heard} of them", range.id);
                self.heard.insert((at, key), heard.max(n + 1));
            }
            let event = &mut self.events[*position as usize];
            if std::mem::replace(&mut event.read, true) {
                self.repeats += 1;
            } else {
                self.readable += 1;
                self.unread.remove(position);
            }
        }
        Ok(())
    }

    /// The agent hears of its records.
    pub fn answered(&mut self, shards: &[Shard], parcels: &[Parcel], outcomes: &[EntryOutcome]) {
        for (parcel, outcome) in parcels.iter().zip(outcomes) {
            let EntryOutcome::Stored { shard } = outcome else { continue };
            let landed = shards.iter().find(|known| known.range.id == *shard).expect("the service tells its own shards");
            if parcel.events.len() == 1 || parcel.fits(landed.range.first_hash, landed.range.last_hash) {
                for position in &parcel.events {
                    self.told += u64::from(!std::mem::replace(&mut self.events[*position as usize].settled, true));
                }
            } else {
                self.held.extend(&parcel.events);
            }
        }
    }

    /// A process died while so many events were under way. It had counted `delivered`; what else it was told of waited for
    /// a listing to judge it.
    pub fn died(&mut self, under_way: u64, delivered: u64) {
        let unjudged = std::mem::take(&mut self.held).len() as u64 + self.told.saturating_sub(delivered);
        self.died_over += under_way + unjudged;
    }

    /// A new process goes on where the marks stood: what it was told before counts no more. `clean`: after an end after which
    /// nothing is sent again.
    pub fn restarted(&mut self, marks: &Checkpoint, clean: bool) -> Result<(), Broken> {
        self.told = 0;
        for (position, event) in (0..).zip(&mut self.events) {
            let passed = Position(position) < marks.marks[KeyHash(event.hash).lane().index()];
            let again = clean && event.settled && !passed;
            holds!(!again, "DUPLICATES-EXPLAINED: the event at {position} was delivered, and is pending after a clean stop");
            event.settled = passed;
        }
        Ok(())
    }

    /// The account at any moment.
    pub fn account(&self, account: &Account) -> Result<(), Broken> {
        let Account { accepted, delivered, dead, expired, dropped } = *account;
        holds!(accepted == self.accepted(), "EXACT-ACCOUNT: {accepted} accepted, {} receipts", self.accepted());
        let ended = delivered + dead + expired + dropped;
        holds!(ended <= accepted, "EXACT-ACCOUNT: {account:?} does not add up");
        let given_up = dead > self.poison || expired + dropped > 0;
        holds!(!given_up, "NOTHING-LOST: {account:?}, though only {} events are refused", self.poison);
        let owed = self.owed.iter().filter(|position| !self.events[**position as usize].read).count() as u64;
        let readable = self.readable + owed;
        holds!(delivered <= readable, "DELIVERED-MEANS-READABLE: {delivered} count as delivered, consumers get {readable}");
        Ok(())
    }

    /// Marks that are about to be saved.
    pub fn marks(&self, checkpoint: &Checkpoint) -> Result<(), Broken> {
        for position in self.unread.iter().filter(|position| self.looks && !self.owed.contains(position)) {
            let mark = checkpoint.marks[KeyHash(self.events[*position as usize].hash).lane().index()];
            holds!(
                mark <= Position(*position),
                "NOTHING-LOST: a mark stands at {mark}, and no consumer gets the event at {position}"
            );
        }
        Ok(())
    }

    /// When all is said to be delivered.
    pub fn at_the_end(&self) -> Result<(), Broken> {
        let missing: Vec<u64> = self.unread.iter().copied().collect();
        holds!(
            missing.is_empty(),
            "NOTHING-LOST: no consumer gets {} events: {:?}",
            missing.len(),
            &missing[..missing.len().min(9)]
        );
        Ok(())
    }

    /// What consumers get again, and the agents' own count of it.
    pub fn repeats_are_counted(&self, counted: u64) -> Result<(), Broken> {
        let (repeats, died_over) = (self.repeats, self.died_over);
        holds!(
            repeats <= counted + died_over,
            "DUPLICATES-EXPLAINED: consumers get {repeats} events again, {counted} are counted, processes died over {died_over}"
        );
        Ok(())
    }
}
