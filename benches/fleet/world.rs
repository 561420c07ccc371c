//! Agents, shards and time: one seed, one history.
//!
//! Place: run by `benches/fleet.rs` and `tests/fleet.rs` with what `scenarios.rs` describes. What decides when a record
//! leaves is the program's own [`Limiter`] and [`Backoff`], one of each for each agent and shard, fed with time and chance
//! through the seams of `host`. Around them stands as little of the dispatcher as they need: `turn` and `pack_singles` of
//! `src/dispatch/pack.rs` (a lane is due after `linger`, when the limiter grants half a burst, and not before its wait is
//! over), and `on_answer` of `src/dispatch/answer.rs` (entries are judged from the last to the first).
//!
//! Time goes in steps of 1 ms, which is the dispatcher's own pace; what happens in one step happens in the order in which
//! it was arranged. Producers are a Poisson process for each lane, going all the time or by turns with pauses; an agent
//! never loses a record, so what it cannot send is its backlog. A round trip takes 10 to 30 ms.
//!
//! Absent on purpose: bytes, files, keys, requests (each shard's records travel by themselves), and every failure but throttling.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay::dispatch::backoff::Backoff;
use forebay::dispatch::limiter::Limiter;
use forebay::host::{Entropy, mix64};
use forebay::limits::{SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND};

use crate::service::{Metering, Shard};

/// As `linger` is by default.
const LINGER: Duration = Duration::from_millis(50);

/// Steps that the wheel holds; what is later looks again then.
const WHEEL: usize = 1 << 14;

/// Chance, from one seed.
#[derive(Debug)]
pub struct Dice(AtomicU64);

impl Dice {
    /// The same seed, the same throws.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(mix64(seed)))
    }

    /// In `[0, 1)`.
    pub fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The time to the next of things that happen `rate` times a second, seconds.
    pub fn gap(&self, rate: f64) -> f64 {
        -(1.0 - self.unit()).ln() / rate
    }

    /// How often it happens where `mean` times are expected.
    fn poisson(&self, mean: f64) -> u32 {
        if mean > 30.0 {
            // Close enough by the normal distribution (Box and Muller).
            let normal = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
            return (mean + mean.sqrt() * normal).round().max(0.0) as u32;
        }
        let (limit, mut product, mut n) = ((-mean).exp(), self.unit(), 0);
        while product > limit {
            product *= self.unit();
            n += 1;
        }
        n
    }
}

impl Entropy for Dice {
    fn next_u64(&self) -> u64 {
        mix64(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    fn fill(&self, out: &mut [u8]) {
        for byte in out {
            *byte = self.next_u64() as u8;
        }
    }
}

/// When an agent's application writes.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// All the time.
    Poisson,
    /// By turns: on and off for so long on average, exponentially distributed, seconds; its rate while on is higher accordingly.
    Bursts {
        /// Writing.
        on: f64,
        /// Silent.
        off: f64,
    },
}

/// Agents that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// How many.
    pub agents: usize,
    /// What each writes to each shard on average, records/s.
    pub rate: f64,
    /// How.
    pub pattern: Pattern,
    /// When they join, seconds: evenly over the given time.
    pub joins: (f64, f64),
    /// When they leave, as above.
    pub leaves: (f64, f64),
}

/// A world to be run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Shards that all agents write to.
    pub shards: usize,
    /// Bytes of a record on average, key included; each between half and one and a half of it.
    pub record_bytes: usize,
    /// What is written are events, of which a record takes as many as fit its ceiling: at most so many bytes, and less at a low
    /// rate. One record of each agent at a shard is under way at a time.
    pub aggregate_bytes: Option<usize>,
    /// Of the service.
    pub metering: Metering,
    /// Who takes part.
    pub groups: Vec<Group>,
    /// How long, seconds.
    pub seconds: usize,
    /// Where chance comes from.
    pub seed: u64,
}

/// What happened in one second, all shards together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    /// Records stored.
    pub stored: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records refused.
    pub throttled: u64,
    /// Records that the producers wrote, as far as lanes have looked.
    pub written: u64,
}

/// The trace of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    /// By second.
    pub seconds: Vec<Second>,
    /// Records stored by second and agent.
    pub by_agent: Vec<Vec<u32>>,
    /// When each agent took part, seconds.
    pub present: Vec<(f64, f64)>,
    /// Records that wait in the agents that are there at the end.
    pub backlog: u64,
    /// Shards.
    pub shards: usize,
    /// Of many events each: of the shards' limits only bytes bind.
    pub aggregated: bool,
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Wake,
    /// So many records of so many events each.
    Lands {
        count: u32,
        events: u32,
    },
    Answered {
        stored: u32,
        throttled: u32,
        events: u32,
    },
}

#[derive(Debug)]
struct Agent {
    rate: f64,
    from: Duration,
    until: Duration,
    /// When it turns silent or writes again, beginning with writing at 0, seconds; empty: it always writes.
    turns: Vec<f64>,
}

impl Agent {
    /// For how many of the first `t` seconds it wrote.
    fn written_for(&self, t: f64) -> f64 {
        if self.turns.is_empty() {
            return t;
        }
        let past = self.turns.partition_point(|turn| *turn <= t);
        // Pairs of (silent from, writes from); sums would be quicker, but few turns are ever in the way.
        let mut silent = 0.0;
        for pair in self.turns[..past].chunks(2) {
            silent += pair.get(1).copied().unwrap_or(t) - pair[0];
        }
        t - silent
    }

    /// The time at which it will have written for so long.
    fn when_written_for(&self, wanted: f64) -> f64 {
        let mut silent = 0.0;
        for pair in self.turns.chunks(2) {
            if pair[0] - silent >= wanted {
                break;
            }
            silent += pair.get(1).copied().unwrap_or(f64::MAX) - pair[0];
        }
        wanted + silent
    }
}

/// One agent's share in one shard.
#[derive(Debug)]
struct Lane {
    limiter: Limiter,
    backoff: Backoff,
    not_before: Duration,
    /// Records that wait.
    backlog: u32,
    /// Since when the first of them does.
    since: Duration,
    /// Up to when arrivals are in `backlog`, in its agent's time of writing.
    counted: f64,
    /// While none waits, when the next arrives.
    arrives: Duration,
    wakes: Duration,
    /// An aggregate is under way.
    under_way: bool,
}

/// The machine of it.
struct World<'a> {
    setup: &'a Setup,
    dice: Dice,
    now: Duration,
    wheel: Vec<Vec<(u32, Happens)>>,
    agents: Vec<Agent>,
    lanes: Vec<Lane>,
    shards: Vec<Shard>,
    trace: Trace,
}

/// Runs it.
#[must_use]
pub fn run(setup: &Setup) -> Trace {
    let mut world = World::new(setup);
    let steps = setup.seconds * 1000;
    for step in 0..steps {
        world.now = Duration::from_millis(step as u64);
        let mut at = 0;
        // What is arranged for now while now is being done is done now.
        while at < world.wheel[step % WHEEL].len() {
            let (lane, happens) = world.wheel[step % WHEEL][at];
            world.happens(lane as usize, happens);
            at += 1;
        }
        world.wheel[step % WHEEL].clear();
    }
    let end = Duration::from_secs(setup.seconds as u64);
    for at in 0..world.lanes.len() {
        if world.agents[at / setup.shards].until >= end {
            world.now = end - Duration::from_millis(1);
            world.count_arrivals(at);
            world.trace.backlog += u64::from(world.lanes[at].backlog);
        }
    }
    world.trace
}

fn spread(times: (f64, f64), n: usize, of: usize) -> f64 {
    times.0 + (times.1 - times.0) * n as f64 / of as f64
}

impl<'a> World<'a> {
    fn new(setup: &'a Setup) -> Self {
        let dice = Dice::new(setup.seed);
        let mut agents = Vec::new();
        for group in &setup.groups {
            for n in 0..group.agents {
                let from = spread(group.joins, n, group.agents);
                let until = spread(group.leaves, n, group.agents);
                let mut turns = Vec::new();
                let mut rate = group.rate;
                if let Pattern::Bursts { on, off } = group.pattern {
                    rate *= (on + off) / on;
                    // Some begin silent.
                    let mut t = if dice.unit() < off / (on + off) { 0.0 } else { dice.gap(1.0 / on) };
                    while t < setup.seconds as f64 * 2.0 {
                        turns.push(t);
                        t += dice.gap(1.0 / if turns.len() % 2 == 1 { off } else { on });
                    }
                }
                agents.push(Agent { rate, from: Duration::from_secs_f64(from), until: Duration::from_secs_f64(until), turns });
            }
        }
        let trace = Trace {
            seconds: vec![Second::default(); setup.seconds],
            by_agent: vec![vec![0; agents.len()]; setup.seconds],
            present: agents.iter().map(|agent| (agent.from.as_secs_f64(), agent.until.as_secs_f64())).collect(),
            backlog: 0,
            shards: setup.shards,
            aggregated: setup.aggregate_bytes.is_some(),
        };
        let mut world = Self {
            setup,
            dice,
            now: Duration::ZERO,
            wheel: vec![Vec::new(); WHEEL],
            agents,
            lanes: Vec::new(),
            shards: vec![Shard::new(setup.metering); setup.shards],
            trace,
        };
        for at in 0..world.agents.len() * setup.shards {
            let agent = &world.agents[at / setup.shards];
            let from = agent.from;
            world.lanes.push(Lane {
                limiter: Limiter::new(from),
                backoff: Backoff::of_shard(),
                not_before: Duration::ZERO,
                backlog: 0,
                since: from,
                counted: agent.written_for(from.as_secs_f64()),
                arrives: from,
                wakes: Duration::MAX,
                under_way: false,
            });
            world.await_arrival(at);
            let first = world.lanes[at].arrives;
            world.wake(at, first + LINGER);
        }
        world
    }

    fn arrange(&mut self, at: usize, when: Duration, happens: Happens) {
        let slot = when.as_millis() as usize % WHEEL;
        self.wheel[slot].push((at as u32, happens));
    }

    /// Wakes a lane, not before the next step.
    fn wake(&mut self, at: usize, when: Duration) {
        // Rounded up: at a moment before it, the limiter would not grant.
        let step = when.as_nanos().div_ceil(1_000_000) as u64;
        let now = self.now.as_millis() as u64;
        let when = Duration::from_millis(step.clamp(now + 1, now + WHEEL as u64 - 1));
        if self.lanes[at].wakes != when {
            self.lanes[at].wakes = when;
            self.arrange(at, when, Happens::Wake);
        }
    }

    /// None waits: when will one arrive?
    fn await_arrival(&mut self, at: usize) {
        let agent = &self.agents[at / self.setup.shards];
        let lane = &mut self.lanes[at];
        lane.counted += self.dice.gap(agent.rate);
        lane.arrives = Duration::from_secs_f64(agent.when_written_for(lane.counted).min(1e9));
    }

    /// Puts what arrived since the last look into the backlog.
    fn count_arrivals(&mut self, at: usize) {
        let agent = &self.agents[at / self.setup.shards];
        let lane = &mut self.lanes[at];
        let mut came = 0;
        if lane.backlog == 0 {
            if lane.arrives > self.now {
                return;
            }
            lane.since = lane.arrives;
            came = 1;
        }
        let written_for = agent.written_for(self.now.as_secs_f64()).max(lane.counted);
        came += self.dice.poisson((written_for - lane.counted) * agent.rate);
        lane.counted = written_for;
        lane.backlog += came;
        self.trace.seconds[self.now.as_secs() as usize].written += u64::from(came);
    }

    fn happens(&mut self, at: usize, happens: Happens) {
        let now = self.now;
        match happens {
            Happens::Wake if self.lanes[at].wakes == now => {
                self.lanes[at].wakes = Duration::MAX;
                self.turn(at);
            }
            Happens::Wake => {}
            Happens::Lands { count, events } => {
                let shard = at % self.setup.shards;
                let second = &mut self.trace.seconds[now.as_secs() as usize];
                let mut stored = 0;
                for _ in 0..count {
                    let each = if events > 1 { 1.0 } else { 0.5 + self.dice.unit() };
                    let bytes = (self.setup.record_bytes as f64 * each) as usize * events as usize;
                    if self.shards[shard].takes(now, bytes) {
                        stored += 1;
                        second.bytes += bytes as u64;
                    }
                }
                second.stored += u64::from(stored * events);
                second.throttled += u64::from((count - stored) * events);
                self.trace.by_agent[now.as_secs() as usize][at / self.setup.shards] += stored * events;
                let back = now + Duration::from_millis(5 + self.dice.next_u64() % 11);
                self.arrange(at, back, Happens::Answered { stored, throttled: count - stored, events });
            }
            Happens::Answered { stored, throttled, events } => {
                let lane = &mut self.lanes[at];
                lane.under_way = false;
                for _ in 0..throttled {
                    if lane.not_before <= now {
                        lane.not_before = now + lane.backoff.fail(&self.dice);
                    }
                    lane.limiter.throttled(now);
                }
                for _ in 0..stored {
                    lane.limiter.accepted(now);
                    lane.backoff.succeed();
                }
                if throttled > 0 {
                    // They go first, and have waited.
                    self.count_arrivals(at);
                    let lane = &mut self.lanes[at];
                    if lane.backlog == 0 {
                        // What the next arrival would have told is put off; by a Poisson process nothing is lost by it.
                        lane.counted = self.agents[at / self.setup.shards].written_for(now.as_secs_f64());
                        lane.since = now.saturating_sub(LINGER);
                    }
                    lane.backlog += throttled * events;
                }
                self.turn(at);
            }
        }
    }

    /// Sends what may be sent, and arranges the next look.
    fn turn(&mut self, at: usize) {
        let now = self.now;
        if now >= self.agents[at / self.setup.shards].until {
            return;
        }
        self.count_arrivals(at);
        let lane = &mut self.lanes[at];
        if lane.under_way {
            // Its answer is the next turn.
            return;
        }
        if lane.backlog == 0 {
            let arrives = lane.arrives;
            return self.wake(at, arrives + LINGER);
        }
        let granted = lane.limiter.records_now(now).min(lane.backlog as usize);
        let due = if lane.backoff.failures() > 0 { now } else { lane.since + LINGER };
        let allowed = lane.not_before.max(lane.limiter.ready_at(lane.backlog as usize));
        if due.max(allowed) > now || granted == 0 {
            let when = due.max(allowed);
            return self.wake(at, when);
        }
        let (mut count, mut events) = (0, 1);
        if let Some(most) = self.setup.aggregate_bytes {
            let fits = lane.limiter.record_bytes(most) / self.setup.record_bytes;
            (count, events) = (1, (fits as u32).clamp(1, lane.backlog));
            lane.limiter.spend(self.setup.record_bytes * events as usize, 1);
            lane.under_way = true;
        }
        while !lane.under_way && (count as usize) < granted && lane.limiter.has_bytes() {
            // The lane spends the mean where the shard weighs each record: sizes differ, and the sums do not.
            lane.limiter.spend(self.setup.record_bytes, 1);
            count += 1;
        }
        lane.backlog -= count * events;
        // What is left has waited as long, nearly.
        let when = lane.limiter.ready_at(lane.backlog.max(1) as usize).max(lane.not_before);
        let out = now + Duration::from_millis(5 + self.dice.next_u64() % 11);
        self.arrange(at, out, Happens::Lands { count, events });
        if self.lanes[at].backlog == 0 {
            self.await_arrival(at);
            let arrives = self.lanes[at].arrives;
            self.wake(at, arrives + LINGER);
        } else {
            self.wake(at, when);
        }
    }
}

impl Trace {
    /// What part of the shards' capacity was used in these seconds, by the limit that binds.
    #[must_use]
    pub fn goodput(&self, from: usize, until: usize) -> f64 {
        let seconds = &self.seconds[from..until];
        let capacity = (self.shards * seconds.len()) as f64;
        let stored: u64 = seconds.iter().map(|second| second.stored).sum();
        let bytes: u64 = seconds.iter().map(|second| second.bytes).sum();
        let by_records = stored as f64 / (SHARD_RECORDS_PER_SECOND as f64 * capacity);
        let by_records = if self.aggregated { 0.0 } else { by_records };
        by_records.max(bytes as f64 / (SHARD_BYTES_PER_SECOND as f64 * capacity))
    }

    /// What part of what was sent in these seconds was refused.
    #[must_use]
    pub fn throttled(&self, from: usize, until: usize) -> f64 {
        let seconds = &self.seconds[from..until];
        let stored: u64 = seconds.iter().map(|second| second.stored).sum();
        let throttled: u64 = seconds.iter().map(|second| second.throttled).sum();
        throttled as f64 / ((stored + throttled) as f64).max(1.0)
    }

    /// Jain's index of what the agents that were there for all of these seconds stored: 1 is equal, 1/n one has all.
    #[must_use]
    pub fn fairness(&self, from: usize, until: usize) -> f64 {
        let (mut sum, mut squares, mut n) = (0.0, 0.0, 0.0);
        for (agent, present) in self.present.iter().enumerate() {
            if present.0 <= from as f64 && until as f64 <= present.1 {
                let stored: f64 = self.by_agent[from..until].iter().map(|second| f64::from(second[agent])).sum();
                sum += stored;
                squares += stored * stored;
                n += 1.0;
            }
        }
        if squares == 0.0 { 0.0 } else { sum * sum / (n * squares) }
    }
}
