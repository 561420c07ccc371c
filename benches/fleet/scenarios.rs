//! The fleets that are run, and the marks that each must reach.
//!
//! Place: `benches/fleet.rs` runs [`full`], `tests/fleet.rs` runs [`short`]: fewer agents, less time, the same marks.
//!
//! Producers write 1.3 times what the shards take, so that capacity is what is fought for; where they write less, goodput is
//! held against what they wrote. *Steady* spans begin when the last join or leave is some minutes old; how long the fleet takes
//! until then is measured apart, as the time until goodput is back.

use crate::service::Metering;
use crate::world::{Group, Pattern, Setup, Trace};

/// Least part of the capacity, or of what was written if that is less.
pub const GOODPUT_MIN: f64 = 0.95;
/// Most that may be refused of what was sent.
pub const THROTTLED_MAX: f64 = 0.02;
/// Least of Jain's index.
pub const FAIRNESS_MIN: f64 = 0.95;
/// Longest until goodput is back after agents left, seconds.
pub const BACK_SECONDS_MAX: usize = 60;

/// Bursts of 5 s and pauses of 15 s, on average.
const BURSTS: Pattern = Pattern::Bursts { on: 5.0, off: 15.0 };
const ALWAYS: (f64, f64) = (1e6, 1e6);
const AT_ONCE: (f64, f64) = (0.0, 1.0);

/// A fleet, and when it must be in order.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For the table and the plots' file names.
    pub name: &'static str,
    /// The world.
    pub setup: Setup,
    /// Spans in which the marks hold, seconds.
    pub steady: Vec<(usize, usize)>,
    /// When many leave at once, seconds.
    pub leave_at: Option<usize>,
    /// Written, as part of the capacity, if that is less than all of it.
    pub load: f64,
    /// Fairness is a mark: everybody wants more than there is.
    pub is_contended: bool,
}

/// How a steady span went.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Seconds.
    pub span: (usize, usize),
    /// Part of what could have been stored.
    pub goodput: f64,
    /// Part of what was sent.
    pub throttled: f64,
    /// Jain's index.
    pub fairness: f64,
    /// The marks that are missed.
    pub missed: bool,
}

impl Scenario {
    /// Its steady spans, measured.
    #[must_use]
    pub fn figures(&self, trace: &Trace) -> Vec<Figures> {
        let figures = |span: &(usize, usize)| {
            let goodput = trace.goodput(span.0, span.1) / self.load;
            let throttled = trace.throttled(span.0, span.1);
            let fairness = trace.fairness(span.0, span.1);
            let missed = goodput < GOODPUT_MIN || throttled > THROTTLED_MAX || (self.is_contended && fairness < FAIRNESS_MIN);
            Figures { span: *span, goodput, throttled, fairness, missed }
        };
        self.steady.iter().map(figures).collect()
    }

    /// Seconds from when many left until ten in a row have the goodput that is asked for.
    #[must_use]
    pub fn back_after(&self, trace: &Trace) -> Option<usize> {
        let from = self.leave_at?;
        let is_back = |second: &usize| trace.goodput(*second, second + 10) / self.load >= GOODPUT_MIN;
        Some((from..self.setup.seconds - 10).find(is_back).map_or(usize::MAX, |second| second - from))
    }
}

/// Agents that stay and write so many times their part of the capacity.
fn crowd(agents: usize, load: f64, per_shard: f64, pattern: Pattern) -> Group {
    Group { agents, rate: load * per_shard / agents as f64, pattern, joins: AT_ONCE, leaves: ALWAYS }
}

fn scenario(name: &'static str, shards: usize, groups: Vec<Group>, steady: Vec<(usize, usize)>) -> Scenario {
    let seconds = steady.last().map_or(0, |span| span.1);
    Scenario {
        name,
        setup: Setup { shards, record_bytes: 600, aggregate_bytes: None, metering: Metering::Bucket, groups, seconds, seed: 1 },
        steady,
        leave_at: None,
        load: 1.0,
        is_contended: true,
    }
}

/// Agents that pack events of 600 bytes into aggregates, at one shard.
fn aggregated(name: &'static str, agents: usize, seconds: usize) -> Scenario {
    // 1 MiB/s.
    let mut scenario = scenario(name, 1, vec![crowd(agents, 1.3, 1747.0, Pattern::Poisson)], vec![(300, seconds)]);
    scenario.setup.aggregate_bytes = Some(256 << 10);
    scenario
}

/// All of them.
#[must_use]
pub fn full() -> Vec<Scenario> {
    let one = |name, pattern| scenario(name, 1, vec![crowd(50, 1.3, 1000.0, pattern)], vec![(300, 1800)]);
    let thousand = |name, pattern, steady| scenario(name, 100, vec![crowd(1000, 1.3, 1000.0, pattern)], vec![steady]);
    let mut by_bytes = one("one-shard-by-bytes", Pattern::Poisson);
    by_bytes.setup.record_bytes = 2 << 10;
    by_bytes.setup.groups = vec![crowd(50, 1.3, 512.0, Pattern::Poisson)];
    let mut by_seconds = one("one-shard-metered-by-seconds", Pattern::Poisson);
    by_seconds.setup.metering = Metering::Seconds;
    let mut idle = one("one-shard-at-80-percent", BURSTS);
    idle.setup.groups = vec![crowd(50, 0.8, 1000.0, BURSTS)];
    idle.load = 0.8;
    idle.is_contended = false;
    let few = scenario("one-shard-of-2", 1, vec![crowd(2, 1.3, 1000.0, Pattern::Poisson)], vec![(60, 1260)]);
    vec![
        thousand("fleet-poisson", Pattern::Poisson, (200, 400)),
        // Until then some have had too few bursts to want their part.
        thousand("fleet-bursty", BURSTS, (400, 600)),
        fleet_churn(500, 100),
        one("one-shard-poisson", Pattern::Poisson),
        one("one-shard-bursty", BURSTS),
        one_shard_churn(),
        by_bytes,
        aggregated("one-shard-aggregates", 50, 1800),
        aggregated("one-shard-aggregates-of-10", 10, 1800),
        by_seconds,
        idle,
        few,
    ]
}

/// Half of the agents join within ten seconds when the others are in order, and leave again.
fn fleet_churn(half: usize, shards: usize) -> Scenario {
    // Each wants more than it gets even when half of them are gone.
    let stay = crowd(half, 1.5, 1000.0, Pattern::Poisson);
    let come = Group { joins: (200.0, 210.0), leaves: (700.0, 710.0), ..stay };
    let mut churn = scenario("fleet-joins-and-leaves", shards, vec![stay, come], vec![(100, 200), (500, 700), (820, 1000)]);
    churn.leave_at = Some(700);
    churn
}

/// Ten, then fifty, then ten agents at one shard.
fn one_shard_churn() -> Scenario {
    let stay = crowd(10, 1.5, 1000.0, Pattern::Poisson);
    let come = Group { agents: 40, joins: (900.0, 901.0), leaves: (2100.0, 2101.0), ..stay };
    let mut churn = scenario("one-shard-joins-and-leaves", 1, vec![stay, come], vec![(120, 900), (1020, 2100), (2200, 3000)]);
    churn.leave_at = Some(2100);
    churn
}

/// Seconds of a processor.
#[must_use]
pub fn short() -> Vec<Scenario> {
    let hundred = |name, pattern| scenario(name, 4, vec![crowd(100, 1.3, 1000.0, pattern)], vec![(200, 500)]);
    let stay = crowd(10, 1.5, 1000.0, Pattern::Poisson);
    let come = Group { agents: 20, joins: (200.0, 201.0), leaves: (500.0, 501.0), ..stay };
    let mut churn = scenario("short-joins-and-leaves", 4, vec![stay, come], vec![(60, 200), (300, 500), (570, 700)]);
    churn.leave_at = Some(500);
    vec![
        hundred("short-poisson", Pattern::Poisson),
        hundred("short-bursty", BURSTS),
        churn,
        aggregated("short-aggregates", 20, 1500),
    ]
}
