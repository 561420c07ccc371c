//! From the spool to Kinesis: which event goes out when, in what company, and what its answer means.
//!
//! Constraints first. One key's events arrive in the order in which they were receipted (*KEY-ORDER*). A shard
//! that is throttled or dead holds back only its own lanes (*NO-BLOCKING*), and memory does not grow with the
//! backlog. An event counts as delivered only when a consumer that follows KCL's rules will get it
//! (*DELIVERED-MEANS-READABLE*). No request breaks a service limit (*INSIDE-THE-LIMITS*). Nothing is ever given
//! up for having failed often.
//!
//! The way: the *sweep* reads the spool forward and hands each event to the [`queue`] of its shard (`feed.rs`). A
//! queue that is full lets the sweep go on without it and later reads its lanes on its own: it *lags*. Ready
//! queues are packed into one request (`pack.rs`); the answer, entry by entry, settles events or puts them back
//! to the front (`answer.rs`); settled events move the marks (`marks.rs`), which a checkpoint saves.
//!
//! Owner: one thread a stream (`run.rs`) owns the [`Dispatcher`], a state machine that takes `now` and answers
//! and returns requests; it never waits and never does network I/O, so a simulator can drive it as well. It reads
//! the spool through its cursor.
//!
//! A reshard: a record answered from another shard than the predicted one makes the map stale; no aggregates
//! leave until it is fresh. When the fresh map differs, sending stops until all answers are in, all queues are
//! made anew, and every shard reads its unsettled events again from the marks on. So parents' events are settled
//! or re-sent in order before their children's.
//!
//! Failure: classes decide (`kinesis::ErrorClass`): throttle and transient faults back the shard off; an unknown
//! outcome is sent again and counted; configuration errors pause the stream and are tried gently, for ever; of a request
//! that is refused for its contents the one event is looked for (`suspects.rs`).
//! Knows nothing of sockets, sources or SDK types.

mod advice;
mod answer;
pub mod backoff;
mod expire;
mod feed;
pub mod fresh;
mod hot;
pub mod limiter;
pub mod marks;
pub mod mode;
pub mod outgoing;
mod oversize;
mod pack;
mod proof;
pub mod queue;
pub mod remembered;
pub mod rewriter;
pub mod run;
mod suspects;
#[cfg(test)]
mod tests;
mod together;
pub mod window;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::advice::RecordRate;
use self::backoff::Backoff;
use self::expire::Endings;
use self::fresh::Fresh;
use self::fresh::ahead::Ahead;
use self::marks::Marks;
use self::mode::Mode;
use self::queue::{Lag, Queue, Slot, SlotState};
use self::suspects::{Part, Suspects};
use self::window::Window;
use crate::aggregate::Packer;
use crate::checkpoint::Checkpoint;
use crate::config::{Aggregate, Order, RecordDistribution, StreamConfig};
use crate::event::{LANES, Lane, Position, ShardId};
use crate::host::Host;
use crate::kinesis::{PutError, ShardRange};
use crate::limits::Budgets;
use crate::metrics::{ShardStatus, StreamMetrics, locked};
use crate::shard_map::{ShardMap, even_shards};
use crate::spool::cursor::Cursor;

/// Slots kept in memory for all shards together (64 bytes each); further events stay on disk.
const SLOTS_MAX: usize = 256 << 10;

/// How long every request fails before status says that delivery is paused: a lost connection alone is not worth it.
const FAILING_TOLD_AFTER: Duration = Duration::from_secs(3);

/// A contradicted map is listed again within this time: the agents of a fleet hear of a reshard together.
const STALE_SPREAD: Duration = Duration::from_millis(500);

/// Listings in vain are forgotten when there was none for so long.
const VAIN_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Ranges of hashes that stand for shards while those are not known.
const SHARDS_GUESSED: u32 = 16;

/// How their names begin.
const GUESSED: &str = "unknown-";

/// The knobs of one stream's delivery.
#[derive(Clone, Debug)]
pub struct DispatchOptions {
    /// One event a record, or aggregates.
    pub aggregate: Aggregate,
    /// Keys in order, or not.
    pub order: Order,
    /// Keys are taken to decide a record's shard where nobody can be asked.
    pub keys_vouched: bool,
    /// Kinesis is first asked for the stream's mode at some moment of this time.
    pub ask_mode_within: Duration,
    /// The longest an event waits for company.
    pub linger: Duration,
    /// Ceiling of an aggregate, bytes.
    pub record_bytes_max: usize,
    /// Ceiling of a request, bytes.
    pub request_bytes_max: usize,
    /// Requests under way at once.
    pub requests_max: usize,
    /// Slots kept in memory; for tests smaller than the default.
    pub slots_max: usize,
    /// Events older than this become dead letters instead of being sent; zero: none does.
    pub ttl: Duration,
}

impl DispatchOptions {
    /// As the stream is configured.
    #[must_use]
    pub fn of(config: &StreamConfig) -> Self {
        Self {
            aggregate: config.aggregate,
            order: config.order,
            keys_vouched: config.record_distribution == RecordDistribution::Keys,
            ask_mode_within: config.ask_mode_within,
            linger: config.linger,
            record_bytes_max: config.record_bytes_max,
            request_bytes_max: config.request_bytes_max,
            requests_max: config.requests_max,
            slots_max: SLOTS_MAX,
            ttl: config.ttl,
        }
    }
}

/// One record of a request under way.
#[derive(Debug)]
struct Sent {
    queue: usize,
    /// Its events in `Request::seqs`.
    first: usize,
    count: usize,
    /// Smallest and largest hash of its events.
    span: (u128, u128),
    billed: usize,
}

/// A request under way.
#[derive(Debug)]
struct Request {
    records: Vec<Sent>,
    seqs: Vec<u64>,
    billed: usize,
    /// A probe: its records are those of this part, one each.
    suspects: Option<Box<Part>>,
}

/// A record that Kinesis stored in another shard than predicted: what it means is known with a fresh map.
#[derive(Debug)]
struct Held {
    queue: usize,
    seqs: Vec<u64>,
    span: (u128, u128),
    shard: ShardId,
}

/// What is known of the shards.
#[derive(Debug)]
enum MapState {
    /// Nothing yet, or a landing contradicted it: a listing is wanted.
    Wanted,
    /// A listing was asked for.
    Asked,
    /// A changed map waits until all answers are in.
    Changed(Box<ShardMap>),
    /// In use and not contradicted.
    Fresh,
}

/// A stream's delivery, as a state machine.
#[derive(Debug)]
pub struct Dispatcher {
    options: DispatchOptions,
    host: Host,
    cursor: Cursor,
    /// What part of all hashes the queues have that lag, 0 to 1, as of the last look.
    lagging_part: f64,
    /// Reads for queues that lag together.
    trail: Cursor,
    /// Passes made for others than those farthest behind.
    passes: usize,
    metrics: Arc<StreamMetrics>,
    map: Option<ShardMap>,
    /// It is made up, because ListShards is denied: one event a record, any shard is right.
    map_guessed: bool,
    map_state: MapState,
    map_backoff: Backoff,
    map_not_before: Duration,
    /// Whether keys decide a record's shard, and what else is known of the stream.
    mode: Mode,
    /// The form of records in force: the configured one, or what the mode allows.
    form: Aggregate,
    /// Records that lie in another shard than predicted, readable there all the same: smallest and largest hash.
    landings: Vec<((u128, u128), ShardId)>,
    /// For how long the rate of records has bound.
    record_rate: RecordRate,
    queues: Vec<Queue>,
    marks: Marks,
    /// The first position that the sweep has not handed out.
    sweep: Position,
    window: Window,
    /// Its part of the memory.
    budgets: Budgets,
    /// Slots of all queues, and frame bytes that wait in them, as of the last look: of the main side, of the fresh side.
    held_by: [(usize, usize); 2],
    /// While there is a backlog, or what is left of one: which events go ahead of it.
    fresh: Option<Box<Fresh>>,
    /// What is settled though its lane's mark is not past it, and was sent ahead or before the last clean stop.
    ahead: Ahead,
    /// It was written down for the next process.
    ahead_is_noted: bool,
    /// What was settled before the last clean stop lies below.
    known_below: Position,
    /// Age at which an event makes its shard late, ms; for tests less than the default.
    late_ms: u64,
    /// Bytes within which lagging queues read together; for tests less than the default.
    meeting_bytes: usize,
    /// When it is looked for a backlog next.
    look_at: Duration,
    /// There is enough for full requests: nothing waits for company.
    pressed: bool,
    packer: Packer,
    requests: HashMap<u64, Request>,
    next_request: u64,
    billed_under_way: usize,
    held: Vec<Held>,
    /// Which queue is looked at first the next time.
    turn: usize,
    pause: Backoff,
    paused_until: Duration,
    /// Since when every request failed as a whole, if the last one did.
    failing_since: Option<Duration>,
    draining: bool,
    /// No request is begun any more.
    closed: bool,
    /// Events below this position may have been delivered before a crash.
    resent_below: Position,
    /// The highest position in any request, plus one.
    sent_high: Position,
    wake_at: Option<Duration>,
    /// Wall clock at the last `poll`, ms.
    wall_ms: u64,
    /// Events that end without being delivered.
    endings: Endings,
    /// Events of requests that were refused for their contents.
    suspects: Suspects,
}

impl Dispatcher {
    /// A dispatcher that goes on where a checkpoint stood. `resent_below` tells how far sending went after that
    /// checkpoint, when the last stop was not clean.
    #[must_use]
    pub fn new(
        options: DispatchOptions,
        host: Host,
        cursor: Cursor,
        metrics: Arc<StreamMetrics>,
        checkpoint: &Checkpoint,
        resent_below: Position,
    ) -> Self {
        let packer = Packer::new(options.record_bytes_max);
        let (mode, form) = (Mode::new(options.keys_vouched, options.ask_mode_within), options.aggregate);
        let trail = Cursor::new(Arc::clone(cursor.shared()), Arc::clone(&host.files));
        Self {
            options,
            host,
            cursor,
            trail,
            passes: 0,
            lagging_part: 0.0,
            metrics,
            map: None,
            map_guessed: false,
            map_state: MapState::Wanted,
            map_backoff: Backoff::of_listing(),
            map_not_before: Duration::ZERO,
            mode,
            form,
            landings: Vec::new(),
            record_rate: RecordRate::default(),
            queues: Vec::new(),
            sweep: checkpoint.marks.iter().max().copied().unwrap_or_default(),
            marks: Marks::new(checkpoint.marks.clone()),
            window: Window::new(Budgets::default().window_bytes),
            budgets: Budgets::default(),
            held_by: Default::default(),
            fresh: None,
            ahead: Ahead::default(),
            ahead_is_noted: false,
            known_below: Position(0),
            late_ms: fresh::LATE,
            meeting_bytes: together::MEETING_BYTES,
            look_at: Duration::ZERO,
            pressed: false,
            packer,
            requests: HashMap::new(),
            next_request: 1,
            billed_under_way: 0,
            held: Vec::new(),
            turn: 0,
            pause: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            paused_until: Duration::ZERO,
            failing_since: None,
            draining: false,
            closed: false,
            resent_below,
            sent_high: resent_below,
            wake_at: None,
            wall_ms: 0,
            endings: Endings::default(),
            suspects: Suspects::default(),
        }
    }

    /// Gives back what other streams need of the memory. Once, before the first `poll`.
    pub fn share_memory(&mut self, budgets: &Budgets) {
        self.budgets = *budgets;
        self.window = Window::new(budgets.window_bytes);
        self.options.slots_max /= budgets.parts;
    }

    /// The longest an event waits for company.
    #[must_use]
    pub fn linger(&self) -> Duration {
        self.options.linger
    }

    /// Nothing waits for company any more.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// No request is begun any more: what is under way gets its answers.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// A listing of the shards is wanted now. Asking counts as asked.
    pub fn ask_for_map(&mut self, now: Duration) -> bool {
        if matches!(self.map_state, MapState::Wanted) && now >= self.map_not_before {
            self.map_state = MapState::Asked;
            return true;
        }
        false
    }

    /// The answer to a listing.
    pub fn on_map(&mut self, answer: Result<Vec<ShardRange>, PutError>, now: Duration) {
        let map = match answer.map(ShardMap::new) {
            Ok(Ok(map)) => map,
            Ok(Err(error)) => {
                tracing::info!(%error, "the shard map is not usable yet; asking again");
                return self.map_failed(now);
            }
            Err(error) => {
                if error.code.starts_with("AccessDenied") && (self.map.is_none() || self.map_guessed) {
                    self.guess_map(now);
                } else {
                    self.set_paused(Some(format!("ListShards: {error}")));
                }
                return self.map_failed(now);
            }
        };
        self.set_paused(None);
        let same = self.map.as_ref().is_some_and(|held| held.same_open(&map));
        if same {
            // Contradicted, and yet unchanged: the landings are judged by it.
            self.map = Some(map);
            self.publish_map();
            self.map_state = MapState::Fresh;
            self.judge_held(false, now);
            if !self.judge_landings(now) {
                self.map_failed(now);
            }
            if matches!(self.map_state, MapState::Fresh) {
                // It explained nothing: the next one comes later, and ever later.
                self.map_not_before = now + self.map_backoff.fail(self.host.entropy.as_ref());
            }
        } else {
            self.map_state = MapState::Changed(Box::new(map));
            self.install_map(now);
        }
    }

    /// For the doors. One that is made up is not shown.
    fn publish_map(&self) {
        if !self.map_guessed {
            *locked(&self.metrics.shard_map) = self.map.clone().map(Arc::new);
        }
    }

    /// Nobody may tell the shards. An event that is a record of its own is readable wherever it lies, and goes one at a time
    /// for its key: so ranges of hashes will do instead, each with its own rate.
    fn guess_map(&mut self, now: Duration) {
        if self.map.is_some() {
            return;
        }
        let mut guess = even_shards(SHARDS_GUESSED);
        for (n, shard) in guess.iter_mut().enumerate() {
            shard.id = ShardId::from(format!("{GUESSED}{n}").as_str());
        }
        match ShardMap::new(guess) {
            Ok(map) => self.map_state = MapState::Changed(Box::new(map)),
            Err(error) => unreachable!("even ranges cover all hashes: {error}"),
        }
        tracing::warn!(
            "ListShards is denied, so the shards are not known: one event a record, rates are found by trying. Allow \
             kinesis:ListShards on the stream; it is tried again now and then"
        );
        self.install_map(now);
    }

    /// Once for each listing, however many records it does not explain.
    fn map_failed(&mut self, now: Duration) {
        if matches!(self.map_state, MapState::Wanted) && now < self.map_not_before {
            return;
        }
        let wait = self.map_backoff.fail(self.host.entropy.as_ref());
        self.map_not_before = now + wait;
        self.map_state = MapState::Wanted;
    }

    /// A landing contradicts the map: the shards are listed again, soon, or later where that was in vain before.
    fn map_stale(&mut self, now: Duration) {
        if matches!(self.map_state, MapState::Fresh) {
            if now > self.map_not_before + VAIN_FORGOTTEN_AFTER {
                self.map_backoff.succeed();
            }
            self.map_not_before = self.map_not_before.max(now + self.host.entropy.jitter(STALE_SPREAD));
            self.map_state = MapState::Wanted;
        }
    }

    /// Takes a changed map into use once no answer is outstanding.
    fn install_map(&mut self, now: Duration) {
        if !self.requests.is_empty() || !matches!(self.map_state, MapState::Changed(_)) {
            return;
        }
        let MapState::Changed(map) = std::mem::replace(&mut self.map_state, MapState::Fresh) else { return };
        if self.held.iter().any(|held| map.find(&held.shard).is_none()) {
            // A record lies in a shard younger than the listing: only a newer one can judge it.
            return self.map_failed(now);
        }
        let was_guessed =
            std::mem::replace(&mut self.map_guessed, map.open().iter().any(|shard| shard.id.0.starts_with(GUESSED)));
        if was_guessed {
            tracing::info!(shards = map.open().len(), "the shards can be listed now");
        } else if let Some(old) = &self.map {
            tracing::info!(from = old.open().len(), to = map.open().len(), "the stream was resharded");
        }
        let first = self.map.is_none();
        self.map = Some(*map);
        self.publish_map();
        self.landings_explained();
        self.judge_held(true, now);
        if !self.judge_landings(now) {
            self.map_failed(now);
        }
        self.map_listed();
        if !first {
            self.advance_marks();
        }
        self.restart_queues(now);
    }

    /// A listing that is older than a landing is as good as none: the waits go on growing.
    fn map_listed(&mut self) {
        if matches!(self.map_state, MapState::Fresh) {
            self.map_backoff.succeed();
        }
    }

    /// Makes all queues anew: each begins at its lanes' marks. Only while no answer is outstanding.
    fn restart_queues(&mut self, now: Duration) {
        self.forget_suspects();
        let Some(map) = &self.map else { return };
        let old = std::mem::take(&mut self.queues);
        let settled = |fresh: bool| -> Vec<(u64, Lane)> {
            let slots = old.iter().flat_map(|queue| queue.slots(fresh)).filter(|slot| slot.state == SlotState::Settled);
            slots.map(|slot| (slot.position.0, slot.lane())).collect()
        };
        self.marks.restart(settled(false), map.shared_lanes());
        let of_fresh = settled(true);
        self.restart_fresh(of_fresh);
        let Some(map) = &self.map else { return };
        self.queues = map
            .open()
            .iter()
            .map(|shard| {
                let mut queue = Queue::new(shard.clone(), now);
                if let Some(before) = old.iter().find(|before| before.shard.id == shard.id) {
                    queue.limiter = before.limiter.clone();
                    queue.records = before.records;
                    queue.throttled = before.throttled;
                    queue.hot = before.hot.clone();
                }
                let (lo, hi) = queue.lanes();
                let from = (lo.0..=hi.0).map(|lane| self.marks.of(Lane(lane))).min().unwrap_or_default();
                if from < self.sweep {
                    queue.lag = Some(Lag::new(from));
                }
                queue.fresh_lag = self.fresh_begins_at(lo, hi).map(Lag::new);
                queue
            })
            .collect();
        self.hold_new_queues();
        self.publish_shards(now);
    }

    /// Marks of all lanes, moved up to what is known now.
    fn advance_marks(&mut self) {
        let floors = self.floors();
        self.marks.advance(&floors);
        self.advance_fresh_marks();
    }

    /// For each lane the first position that was not enqueued yet, on the main side, by every queue of it.
    fn floors(&self) -> Box<[Position; LANES]> {
        let mut floors = Box::new([self.sweep; LANES]);
        for queue in &self.queues {
            if let Some(lag) = &queue.lag {
                let (lo, hi) = queue.lanes();
                for floor in &mut floors[lo.index()..=hi.index()] {
                    *floor = (*floor).min(lag.from);
                }
            }
        }
        floors
    }

    /// Marks of all lanes as far as they can go: also past what is settled behind other lanes' events, as none is after a stop.
    fn advance_marks_fully(&mut self) {
        self.advance_marks();
        let mut firsts = self.floors();
        let slots = self.queues.iter().flat_map(|queue| queue.slots(false));
        for slot in slots.filter(|slot| slot.state != SlotState::Settled) {
            let first = &mut firsts[slot.lane().index()];
            *first = (*first).min(slot.position);
        }
        self.marks.pass(&firsts);
    }

    /// Events past these marks are settled: behind one that is not, or ahead of a backlog.
    fn settled_past(&self, marks: &[Position; LANES]) -> bool {
        let settled = |slot: &Slot| slot.state == SlotState::Settled && slot.position >= marks[slot.lane().index()];
        self.queues.iter().flat_map(|queue| queue.slots(false).chain(queue.slots(true))).any(settled)
            || self.marks.settled_ahead(Position(0), Position(u64::MAX)) > 0
            || self.went_past(marks)
    }

    /// What is known of deliveries now. `clean` only when nothing is under way, and nothing past the marks may be stored that
    /// the next process does not know of: so it sends nothing again, or counts it.
    pub fn checkpoint(&mut self, stopping: bool) -> Checkpoint {
        match (self.map.is_some(), stopping) {
            (true, true) => self.advance_marks_fully(),
            (true, false) => self.advance_marks(),
            (false, _) => {}
        }
        let account = self.counted_at_marks();
        let durable = self.cursor.shared().tail.durable();
        let marks = self.marks_now();
        let known = self.ahead_is_noted || !self.settled_past(&marks);
        // An earlier process may have sent what lies past the marks, and this one has not.
        let sent_before = marks.iter().any(|mark| *mark < self.resent_below);
        Checkpoint {
            clean: stopping && self.requests.is_empty() && self.held.is_empty() && known && !sent_before,
            durable,
            dead: account.dead,
            expired: account.expired,
            dropped: account.dropped,
            marks,
        }
    }

    /// What is settled past the marks of the last checkpoint is written down, so that the next start knows it.
    pub fn ahead_is_noted(&mut self, noted: bool) {
        self.ahead_is_noted = noted;
    }

    /// A checkpoint was saved: segments that it covers may go.
    pub fn on_saved(&mut self, saved: &Checkpoint) {
        let shared = Arc::clone(self.cursor.shared());
        match crate::spool::remove_covered(&self.host, &shared.table, &saved.marks) {
            Ok(removed) => {
                for segment in &removed {
                    self.forget_file(*segment);
                }
                if !removed.is_empty() {
                    shared.space_freed();
                }
            }
            Err(error) => tracing::warn!(%error, "a settled segment could not be removed; trying again later"),
        }
        self.endings_saved();
    }

    /// All that was receipted is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        locked(&self.metrics.account).pending() == 0
    }

    /// Requests under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.requests.len()
    }

    /// The highest position that is or was in a request, plus one.
    #[must_use]
    pub fn sent_high(&self) -> Position {
        self.sent_high
    }

    /// When `poll` has something to do though nothing happens, if ever.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let map = matches!(self.map_state, MapState::Wanted).then_some(self.map_not_before);
        match (self.wake_at, map) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |held| held.min(at)));
    }

    fn set_paused(&self, reason: Option<String>) {
        let mut held = locked(&self.metrics.paused_reason);
        match reason {
            Some(reason) => {
                if *held != reason {
                    tracing::error!(%reason, "delivery is paused; events stay in the spool, trying again");
                    *held = reason;
                }
            }
            None if held.is_empty() => {}
            None => {
                tracing::info!("delivery goes on");
                held.clear();
            }
        }
    }

    /// Writes what status and metrics tell of shards and the oldest event.
    pub fn publish_shards(&self, now: Duration) {
        let shards = self
            .queues
            .iter()
            .map(|queue| ShardStatus {
                id: queue.shard.id.to_string(),
                rate_bytes: queue.limiter.rate_bytes(),
                queued_events: queue.len() as u64,
                records: queue.records,
                throttled: queue.throttled,
                lagging: queue.lag.is_some(),
                hot_keys: queue.hot.top(),
            })
            .collect();
        *locked(&self.metrics.shards) = shards;
        let wall_ms = self.host.clock.wall_ms();
        let age_ms = self.queues.iter().flat_map(Queue::oldest).map(|slot| slot.age_ms(now)).max();
        let in_memory = age_ms.map(|age_ms| wall_ms.saturating_sub(age_ms));
        // What was not yet read is at most as old as its segment.
        let on_disk = || {
            let from = self.queues.iter().filter_map(|queue| queue.lag.as_ref().map(|lag| lag.from)).min().unwrap_or(self.sweep);
            self.cursor.shared().table.holding(from).map(|segment| segment.created_ms)
        };
        let oldest = if self.is_settled() { None } else { in_memory.or_else(on_disk) };
        self.metrics.oldest_pending_ms.store(oldest.unwrap_or(0), Ordering::Relaxed);
    }

    fn aggregating(&self) -> bool {
        self.form != Aggregate::Off
    }

    /// Aggregates of one shard under way at once: with an order to keep, one.
    fn aggregates_max(&self) -> usize {
        match self.options.order {
            Order::Key => 1,
            Order::None => self.options.requests_max,
        }
    }

    /// Events of one key go one after the other by chains, because each is a record of its own.
    fn chaining(&self) -> bool {
        self.options.order == Order::Key && !self.aggregating()
    }
}
