//! What goes wrong in a simulated life, and when: kinds of misfortune, spells of them, and odds that hold all the time.
//!
//! Place: `life.rs` draws them from its seed, `service.rs` asks what holds now. Pure. *Swarm*: each seed turns kinds off, so that
//! the others meet in more combinations.

use std::time::Duration;

use forebay::host::mix64;

/// Numbers of a seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix64(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    /// Below `n`, or 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }

    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }
}

/// Kinds of misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Odds, all the time: of a record, of a request, and of its answer.
    RecordThrottled,
    RecordFailed,
    RequestRefused,
    AnswerLost,
    RequestLost,
    LateWrite,
    Miscount,
    Stuck,
    /// Spells: the shards of a part of the hashes take nothing.
    Dead,
    /// They take little, because of other producers.
    Crowded,
    /// No connection.
    Away,
    Denied,
    Expired,
    Kms,
    /// 500 and 503, whether stored or not.
    Storm,
    Slow,
    ListStale,
    ListEmpty,
    ListDenied,
    ListThrottled,
    ListStuck,
    SummaryDenied,
    /// Keys decide nothing.
    Auto,
    /// Moments: of the stream.
    Split,
    Merge,
    UpdateShardCount,
    /// And of the agent.
    Kill,
    PowerCut,
    CleanStop,
    LedgerLost,
    LedgerSetBack,
    Pages,
}

/// The kinds that come in spells.
const SPELLS: [Kind; 15] = [
    Kind::Dead,
    Kind::Crowded,
    Kind::Away,
    Kind::Denied,
    Kind::Expired,
    Kind::Kms,
    Kind::Storm,
    Kind::Slow,
    Kind::ListStale,
    Kind::ListEmpty,
    Kind::ListDenied,
    Kind::ListThrottled,
    Kind::ListStuck,
    Kind::SummaryDenied,
    Kind::Auto,
];

/// A kind of misfortune for a while.
#[derive(Clone, Copy, Debug)]
pub struct Spell {
    pub kind: Kind,
    pub from: Duration,
    pub to: Duration,
    /// Which, how much: as the kind needs it.
    pub detail: u64,
}

/// The misfortunes of one life.
#[derive(Debug, Default)]
pub struct Weather {
    off: u64,
    pub spells: Vec<Spell>,
    /// When all of it is over.
    pub calm_at: Duration,
}

impl Weather {
    /// That of a seed, until `calm_at`. `auto`: keys may come to decide nothing.
    pub fn new(seed: u64, calm_at: Duration, auto: bool) -> Self {
        let mut random = Random::new(seed ^ 0x3ea7);
        // About a third of the kinds is off.
        let off = mix64(seed ^ 0x0ff) & (mix64(seed ^ 0x0fe) | mix64(seed ^ 0x0fd));
        let mut weather = Self { off, spells: Vec::new(), calm_at };
        for kind in SPELLS {
            if !weather.on(kind) || (kind == Kind::Auto && !auto) {
                continue;
            }
            for _ in 0..random.below(3) {
                let from = random.millis(0, calm_at.as_millis() as u64);
                // Most are short; a few outlast every backoff.
                let most = if random.percent(80) { 4_000 } else { 60_000 };
                let to = (from + random.millis(50, most)).min(calm_at);
                weather.spells.push(Spell { kind, from, to, detail: random.next() });
            }
        }
        weather
    }

    /// Nothing goes wrong, but for spells that a story adds.
    pub fn none() -> Self {
        Self { off: u64::MAX, ..Self::default() }
    }

    /// Adds a spell.
    pub fn add(&mut self, kind: Kind, from: Duration, to: Duration, detail: u64) {
        self.spells.push(Spell { kind, from, to, detail });
    }

    /// The seed has this kind.
    pub fn on(&self, kind: Kind) -> bool {
        self.off >> (kind as u64) & 1 == 0
    }

    /// A spell of this kind, if one holds now.
    pub fn spell(&self, kind: Kind, now: Duration) -> Option<Spell> {
        self.spells.iter().copied().find(|spell| spell.kind == kind && spell.from <= now && now < spell.to)
    }

    /// The odds of this kind now, in thousandths.
    pub fn odds(&self, kind: Kind, thousandths: u64, now: Duration) -> u64 {
        if now < self.calm_at && self.on(kind) { thousandths } else { 0 }
    }
}
