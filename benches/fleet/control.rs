//! The control plane at a common start, after a reshard, and from day to day: who asks when, and what is refused.
//!
//! Place: beside `world.rs`, as this has nothing to do with shards' rates. Waits after a refusal are the program's own
//! [`Backoff`]. When the first call is made follows the dispatcher: at once at a start (`ask_for_map` of
//! `src/dispatch/mod.rs`), and after a reshard with the first record that lands elsewhere than predicted.
//!
//! Absent on purpose: answers that are slow or old.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use forebay::dispatch::backoff::Backoff;

use crate::service::Control;
use crate::world::Dice;

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// In all.
    pub made: u64,
    /// Of these.
    pub refused: u64,
    /// In the busiest second.
    pub most_per_second: u64,
    /// When the last agent has its answer, seconds.
    pub done_seconds: f64,
}

/// Each agent calls first at its time, seconds, and after a refusal again, until it is answered once.
#[must_use]
pub fn until_answered(first: &[f64], backoff: Backoff, mut service: Control, dice: &Dice) -> Calls {
    let mut backoffs = vec![backoff; first.len()];
    let mut queue: BinaryHeap<_> =
        first.iter().enumerate().map(|(agent, at)| Reverse((Duration::from_secs_f64(*at), agent))).collect();
    let mut times = Vec::new();
    let mut calls = Calls { made: 0, refused: 0, most_per_second: 0, done_seconds: 0.0 };
    while let Some(Reverse((now, agent))) = queue.pop() {
        times.push(now);
        calls.made += 1;
        if service.takes(now) {
            calls.done_seconds = now.as_secs_f64();
        } else {
            calls.refused += 1;
            queue.push(Reverse((now + backoffs[agent].fail(dice), agent)));
        }
    }
    // In any span of a second, not only from one full second to the next.
    let mut begin = 0;
    for (end, at) in times.iter().enumerate() {
        while *at - times[begin] >= Duration::from_secs(1) {
            begin += 1;
        }
        calls.most_per_second = calls.most_per_second.max((end + 1 - begin) as u64);
    }
    calls
}
