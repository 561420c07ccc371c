//! What arrived, against what was sent: every event once, unharmed, in its user's order.
//!
//! Pure. Knows the sent events by `events`, which can make each of them again. *KEY-ORDER*: the first arrivals of a
//! user's events must come with growing numbers; a repetition is counted as a duplicate and not held against the
//! order. *DELIVERED-MEANS-READABLE*: an event in an aggregate that KCL would drop counts as lost to consumers.

use std::collections::BTreeMap;

use super::events;
use crate::consumer::{Arrival, Event};

/// What was seen of one user.
#[derive(Clone, Debug, Default)]
struct User {
    expected: u32,
    seen: Vec<u64>,
    arrived: u32,
    highest: Option<u32>,
}

/// What lies in one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardTotals {
    pub records: u64,
    pub events: u64,
    pub bytes: u64,
}

/// The account of the demo's end.
#[derive(Debug)]
pub(super) struct Ledger {
    users: Vec<User>,
    /// By shard name.
    pub shards: BTreeMap<String, ShardTotals>,
    /// A first arrival of each type of call, as it was read: shard, key, event.
    pub samples: BTreeMap<String, (String, String, String)>,
    /// Distinct events that arrived.
    pub arrived: u64,
    /// Arrivals of an event that had arrived before.
    pub duplicates: u64,
    /// First arrivals that came after a later event of the same user.
    pub disordered: u64,
    /// Events that are none of ours.
    pub foreign: u64,
    /// Events of ours with other bytes than were sent.
    pub altered: u64,
    /// Events that KCL would not hand on.
    pub unreadable: u64,
    scratch: String,
}

impl Ledger {
    /// For `events` events of `users` users.
    pub(super) fn new(users: u32, events: u64) -> Self {
        let user = |user| {
            let expected = events::events_of(user, users, events);
            User { expected, seen: vec![0; (expected as usize).div_ceil(64)], arrived: 0, highest: None }
        };
        Self {
            users: (0..users).map(user).collect(),
            shards: BTreeMap::new(),
            samples: BTreeMap::new(),
            arrived: 0,
            duplicates: 0,
            disordered: 0,
            foreign: 0,
            altered: 0,
            unreadable: 0,
            scratch: String::new(),
        }
    }

    /// Enters one record.
    pub(super) fn enter(&mut self, arrival: &Arrival) {
        let shard = self.shards.entry(arrival.shard.to_string()).or_default();
        shard.records += 1;
        shard.events += arrival.events.len() as u64;
        shard.bytes += arrival.bytes as u64;
        if !arrival.readable {
            self.unreadable += arrival.events.len() as u64;
        }
        for event in &arrival.events {
            self.enter_event(arrival, event);
        }
    }

    fn enter_event(&mut self, arrival: &Arrival, event: &Event) {
        let user = events::user_of_key(&event.key).and_then(|user| Some((user, self.users.get_mut(user as usize)?)));
        let number = events::number_of(&event.data);
        let (Some((user, state)), Some(number)) = (user, number) else {
            self.foreign += 1;
            return;
        };
        if number >= state.expected {
            self.foreign += 1;
            return;
        }
        self.scratch.clear();
        events::write(&mut self.scratch, user, number);
        if self.scratch.as_bytes() != event.data {
            self.altered += 1;
            return;
        }
        let (word, bit) = (&mut state.seen[number as usize / 64], 1 << (number % 64));
        if *word & bit != 0 {
            self.duplicates += 1;
            return;
        }
        *word |= bit;
        state.arrived += 1;
        self.arrived += 1;
        if state.highest.is_some_and(|highest| number < highest) {
            self.disordered += 1;
        }
        state.highest = state.highest.max(Some(number));
        let kind = self.scratch.split_once(r#""type":""#).and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default();
        if !self.samples.contains_key(kind) {
            let sample = (arrival.shard.to_string(), events::key(user), self.scratch.clone());
            self.samples.insert(kind.to_owned(), sample);
        }
    }

    /// Events that have not arrived.
    pub(super) fn missing(&self) -> u64 {
        self.users.iter().map(|user| u64::from(user.expected - user.arrived)).sum()
    }

    /// What is wrong, a sentence each; nothing when all is well.
    pub(super) fn problems(&self) -> Vec<String> {
        let facts = [
            (self.missing(), "never arrived"),
            (self.duplicates, "arrived more than once"),
            (self.disordered, "arrived after a later event of the same user"),
            (self.altered, "arrived with other bytes than were sent"),
            (self.foreign, "arrived that were never sent, or with another key"),
            (self.unreadable, "lie in aggregates of the wrong shard, which KCL would drop"),
        ];
        facts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} events {what}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(events: &[(u32, u32)]) -> Arrival {
        let event = |&(user, number): &(u32, u32)| {
            let mut data = String::new();
            events::write(&mut data, user, number);
            Event { key: events::key(user).into_bytes(), explicit_hash_key: None, data: data.into_bytes() }
        };
        Arrival {
            shard: "s".into(),
            sequence: "1".into(),
            arrived_ms: 0,
            lag_ms: 0,
            behind_ms: 0,
            bytes: 100,
            aggregated: true,
            readable: true,
            events: events.iter().map(event).collect(),
        }
    }

    fn problems_after(arrivals: &[Arrival]) -> Vec<String> {
        let mut ledger = Ledger::new(2, 4);
        for arrival in arrivals {
            ledger.enter(arrival);
        }
        ledger.problems()
    }

    #[test]
    fn every_event_once_and_in_order_is_no_problem() {
        assert!(problems_after(&[arrival(&[(0, 0), (1, 0)]), arrival(&[(1, 1), (0, 1)])]).is_empty());
    }

    #[test]
    fn each_kind_of_trouble_is_told() {
        let all = [(0, 0), (0, 1), (1, 0), (1, 1)];
        assert_eq!(problems_after(&[arrival(&all[1..])]), ["1 events never arrived"]);
        assert_eq!(problems_after(&[arrival(&all), arrival(&[(1, 0)])]), ["1 events arrived more than once"]);
        assert_eq!(
            problems_after(&[arrival(&[(0, 1), (0, 0), (1, 0), (1, 1)])]),
            ["1 events arrived after a later event of the same user"]
        );
        assert_eq!(
            problems_after(&[arrival(&all), arrival(&[(2, 0), (0, 2)])]),
            ["2 events arrived that were never sent, or with another key"]
        );
        let mut unreadable = arrival(&all);
        unreadable.readable = false;
        assert_eq!(problems_after(&[unreadable]).len(), 1);
        let mut altered = arrival(&all);
        altered.events[0].data[1] ^= 1;
        assert_eq!(problems_after(&[altered]).len(), 2, "altered, and so missing");
        let mut rekeyed = arrival(&all);
        rekeyed.events[0].key = b"user-00099".to_vec();
        assert_eq!(problems_after(&[rekeyed]).len(), 2, "foreign, and so missing");
    }
}
