//! The control plane at a common start, after a reshard, and from day to day: who asks when, and what is refused.
//!
//! Place: beside `world.rs`, as this has nothing to do with shards' rates. Waits after a refusal are the program's own
//! [`Backoff`]. When the first call is made follows the dispatcher: at once at a start (`ask_for_map` of
//! `src/dispatch/mod.rs`), and after a reshard within half a second of the first record that lands elsewhere than predicted.
//!
//! Questions for the stream's summary are asked by the program's own [`Mode`].
//!
//! Absent on purpose: answers that are slow or old.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use forebay::dispatch::backoff::Backoff;
use forebay::dispatch::mode::Mode;
use forebay::dispatch::remembered::Remembered;
use forebay::host::Entropy as _;
use forebay::kinesis::{ErrorClass, PutError, StreamSummary};

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
    calls.most_per_second = most_per_second(&times);
    calls
}

/// In any span of a second, not only from one full second to the next.
fn most_per_second(times: &[Duration]) -> u64 {
    let (mut begin, mut most) = (0, 0);
    for (end, at) in times.iter().enumerate() {
        while *at - times[begin] >= Duration::from_secs(1) {
            begin += 1;
        }
        most = most.max(end + 1 - begin);
    }
    most as u64
}

/// What agents that start together know of their stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    First,
    /// What each was told within the last five minutes, before a restart.
    Again,
}

/// The default of `stream.ask_mode_within`.
pub const ASK_WITHIN: Duration = Duration::from_secs(100);

/// So many agents start at once and ask what the stream's summary is, each first within that time, until each was answered once.
#[must_use]
pub fn summaries(agents: usize, start: Start, within: Duration, mut service: Control, dice: &Dice) -> Calls {
    let mut modes: Vec<Option<Mode>> = (0..agents).map(|_| Some(Mode::new(false, within))).collect();
    let refusal = || PutError { class: ErrorClass::Throttle, code: "LimitExceededException".to_owned(), message: String::new() };
    let summary = || StreamSummary {
        arn: String::new(),
        status: "ACTIVE".to_owned(),
        on_demand: None,
        ignores_keys: None,
        record_bytes_max: None,
        key: None,
    };
    for mode in modes.iter_mut().flatten() {
        match start {
            Start::First => mode.take_time(Duration::ZERO, dice),
            Start::Again => {
                let age = dice.jitter(Duration::from_secs(300));
                mode.remember(Remembered { summary: summary(), age }, Duration::ZERO, dice);
            }
        }
    }
    let (mut times, mut now) = (Vec::new(), Duration::ZERO);
    let mut calls = Calls { made: 0, refused: 0, most_per_second: 0, done_seconds: 0.0 };
    while modes.iter().any(Option::is_some) {
        for held in &mut modes {
            let Some(mode) = held.as_mut() else { continue };
            if !mode.ask(now) {
                continue;
            }
            times.push(now);
            calls.made += 1;
            if service.takes(now) {
                mode.answered(Ok(summary()), now, dice);
                calls.done_seconds = now.as_secs_f64();
                *held = None;
            } else {
                mode.answered(Err(refusal()), now, dice);
                calls.refused += 1;
            }
        }
        now += Duration::from_millis(20);
    }
    calls.most_per_second = most_per_second(&times);
    calls
}
