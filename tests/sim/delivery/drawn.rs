//! What a simulated life is like before it begins: drawn from its seed, or quiet.
//!
//! Place: a part of `life.rs`. What comes in and what happens to stream and agent is put into the list of events here; spells of
//! bad weather are drawn in `spells.rs`. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use forebay::config::{Aggregate, Order};
use forebay::dispatch::DispatchOptions;
use forebay::host::mix64;

use super::{Event, Life};
use crate::fault_files::{FaultFiles, SimClock};
use crate::judge::Judge;
use crate::planted::Plant;
use crate::service::{Refusal, Service};
use crate::spells::{Kind, Random, Weather};

/// At once; within the life, mostly; after the life, mostly, so that landings alone tell whether keys decide.
const ASK_WITHIN: [Duration; 3] = [Duration::ZERO, Duration::from_secs(10), Duration::from_secs(300)];

impl Life {
    /// The life of a seed, before it begins.
    pub fn new(seed: u64, plant: Plant) -> Self {
        let mut random = Random::new(seed ^ 0xde11);
        let aggregate = [Aggregate::Kpl, Aggregate::Off, Aggregate::Lines][(seed % 3) as usize];
        let order = if random.percent(75) { Order::Key } else { Order::None };
        let auto = random.percent(20);
        let large = random.percent(10);
        let calm_at = random.millis(3_000, 40_000);
        let options = DispatchOptions {
            aggregate,
            order: if plant == Plant::SeveralUnderWay { Order::None } else { order },
            keys_vouched: random.percent(20),
            ask_mode_within: if aggregate == Aggregate::Kpl {
                ASK_WITHIN[(mix64(seed ^ 0xa5c) % 3) as usize]
            } else {
                Duration::ZERO
            },
            linger: Duration::from_millis(random.below(3) * 20),
            record_bytes_max: if large { 64 << 10 } else { 256 + random.below(2_000) as usize },
            request_bytes_max: if random.percent(10) { 2 << 20 } else { 5 << 20 },
            requests_max: 1 + random.below(6) as usize,
            // Small, so that queues fill and lag.
            slots_max: 64 << random.below(8),
            ttl: Duration::ZERO,
        };
        let shards = 1 + random.below(7) as u32;
        let mut life = Self::of(seed, options, Service::new(seed, shards, Weather::new(seed, calm_at, auto)), random);
        life.plant = plant;
        life.judge.ordered = order == Order::Key && !auto;
        life.judge.looks = plant != Plant::MarksAheadUnseen;
        life.segment_bytes = 4 << 10 << life.random.below(4);
        life.padding = if large { 9_000 } else { 120 };
        life.keys = 1 + life.random.below(40);
        life.service.poison = match mix64(seed ^ 0xbad) % 12 {
            0 => Some(Refusal::Record),
            1 => Some(Refusal::Request),
            _ => None,
        };
        // Some streams ignore keys from the first moment to the calm, in one way or another.
        life.service.auto = auto && mix64(seed ^ 0xa07).is_multiple_of(2);
        life.service.sticky = mix64(seed ^ 0xa08).is_multiple_of(2);
        life.arrange(calm_at);
        life
    }

    /// A life in which nothing goes wrong and nothing comes in by itself: for stories.
    pub fn quiet(seed: u64, aggregate: Aggregate, shards: u32) -> Self {
        let options = DispatchOptions {
            aggregate,
            order: Order::Key,
            keys_vouched: false,
            ask_mode_within: Duration::ZERO,
            linger: Duration::from_millis(50),
            record_bytes_max: 256 << 10,
            request_bytes_max: 5 << 20,
            requests_max: 16,
            slots_max: 384 << 10,
            ttl: Duration::ZERO,
        };
        Self::of(seed, options, Service::new(seed, shards, Weather::none()), Random::new(seed))
    }

    fn of(seed: u64, options: DispatchOptions, service: Service, random: Random) -> Self {
        let mut judge = Judge::default();
        judge.lines = options.aggregate == Aggregate::Lines;
        judge.ordered = options.order == Order::Key;
        judge.looks = true;
        Self {
            seed,
            plant: Plant::None,
            clock: Arc::new(SimClock::new()),
            files: FaultFiles::new(),
            options,
            segment_bytes: 1 << 20,
            padding: 120,
            keys: 100,
            hot_percent: 20,
            newline_percent: 4,
            service,
            judge,
            events: BTreeMap::new(),
            numbers: 0,
            calls: BTreeMap::new(),
            process: None,
            processes: 0,
            store: VecDeque::new(),
            side: VecDeque::new(),
            counted_before: 0,
            note_lost: false,
            misled: false,
            stopped: false,
            listed: false,
            worked: (Duration::ZERO, 0),
            run_of_one_shard: 0,
            trace: None,
            random,
        }
    }

    /// What happens by itself, and when.
    pub(super) fn arrange(&mut self, calm_at: Duration) {
        let span = calm_at.as_millis() as u64;
        let writes = 10 + self.random.below(50);
        for _ in 0..writes {
            let at = self.random.millis(0, span);
            self.at(at, Event::Write);
        }
        let kinds = [
            (Kind::Split, 4),
            (Kind::Merge, 4),
            (Kind::UpdateShardCount, 2),
            (Kind::Kill, 3),
            (Kind::PowerCut, 2),
            (Kind::CleanStop, 2),
        ];
        for (kind, most) in kinds {
            for _ in 0..self.random.below(most + 1) {
                let (at, detail) = (self.random.millis(0, span), self.random.next());
                if !self.service.weather.on(kind) {
                    continue;
                }
                if kind != Kind::UpdateShardCount {
                    self.at(at, Event::Happen(kind, detail));
                    continue;
                }
                // Every shard is split, or every second one merged with its neighbour, one after the other.
                let step = if detail.is_multiple_of(2) { Kind::Split } else { Kind::Merge };
                for n in 0..8 {
                    let at = (at + Duration::from_millis(n * (1 + detail % 900))).min(calm_at);
                    self.at(at, Event::Happen(step, n << 32));
                }
            }
        }
        if self.plant == Plant::RequeuedAtTheBack || self.plant == Plant::OnlyOutOfRangeSentAgain {
            self.at(Duration::ZERO, Event::SideLane);
        }
        self.at(calm_at, Event::Calm);
    }
}
