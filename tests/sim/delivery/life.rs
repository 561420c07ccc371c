//! One seeded life of delivery: an agent, its stream, what comes in, and everything that goes wrong on the way.
//!
//! Place: `lives.rs` runs thousands of these, `mutations.rs` runs them with a planted bug. A life is a chain of processes
//! (`process.rs`) on one disk, beside one stream (`service.rs`). Events come in, requests leave and are answered by the
//! stream's weather, shards split and merge, processes are killed, lose power or stop cleanly, and marks are lost. Then it is
//! calm, and all must be delivered within [`DRAINED_WITHIN`]. `judge.rs` checks the promises all the while.
//!
//! *Time* is simulated: a list of what happens next, in order, and a clock that jumps there. *Determinism*: every choice comes
//! from the seed, so that one seed is one [`Outcome::trace`]. A run-time with a paused clock would do the same for what waits
//! in tasks; here nothing does, since the dispatcher is a state machine.
//!
//! Failure: [`Outcome::verdict`] names the promise. Absent on purpose: misfortunes of the disk (`tests/sim.rs` has those),
//! HTTP and the SDK (`tests/kinesis_wire.rs`), expiry, and letters that cannot be written (`src/dispatch/tests`).

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use forebay::config::Aggregate;
use forebay::dispatch::DispatchOptions;
use forebay::dispatch::outgoing::Outgoing;
use forebay::dispatch::run::matched;
use forebay::event::{KeyHash, Position, ShardId};
use forebay::host::{Clock as _, Host};
use forebay::kinesis::{EntryOutcome, PutEntry, PutError, ShardRange, StreamSummary};
use forebay::shard_map::ShardMap;

#[path = "drawn.rs"]
mod drawn;
#[path = "ends.rs"]
mod ends;

use crate::fault_files::{FaultFiles, SeededEntropy, SimClock};
use crate::judge::{Broken, Judge, Parcel, holds};
use crate::planted::{Plant, Request};
use crate::process::Process;
use crate::service::{Listing, Service, Told};
use crate::spells::{Kind, Random};

/// Once it is calm, all that waits is delivered within this (simulated).
pub const DRAINED_WITHIN: Duration = Duration::from_secs(3_600);

/// So often a process may work at one moment: more is a loop.
const WORK_AT_ONCE_MAX: u32 = 20_000;

/// Requests in a row that a planted bug takes for a proof.
const PLANTED_PROOF: u32 = 64;

/// Checkpoints that the store remembers to be set back to.
const SAVED_MAX: usize = 4;

/// How a life went.
pub struct Outcome {
    /// The promise that was broken, if one was.
    pub verdict: Result<(), String>,
    pub met: BTreeMap<&'static str, u64>,
    pub trace: Vec<String>,
    /// Of the judge: events, those that consumers get again, those that KCL dropped, records of more than one event.
    pub accepted: u64,
    pub repeats: u64,
    pub dropped: u64,
    pub packed: u64,
    /// From the calm to the last delivery.
    pub drained_in: Duration,
}

/// A request on its way.
struct Call {
    process: u64,
    /// Its number there.
    id: u64,
    records: usize,
    told: Told,
    entries: Vec<PutEntry>,
    parcels: Vec<Parcel>,
    predicted: Vec<ShardId>,
    outcomes: Option<Result<Vec<EntryOutcome>, PutError>>,
    /// The listing by which it was made.
    map_number: u64,
    /// A planted bug told the dispatcher already.
    adopted: bool,
    answered: bool,
    /// What of it is still to come: it arrives, it is answered.
    left: u32,
}

/// What happens.
enum Event {
    Write,
    Arrive(u64),
    Answer(u64),
    Page(u64, Listing),
    Refused(u64, PutError),
    Described(u64, Option<PutError>),
    Saved(u64, Vec<u8>),
    Happen(Kind, u64),
    Start,
    SideLane,
    Calm,
}

pub struct Life {
    seed: u64,
    pub plant: Plant,
    pub random: Random,
    pub clock: Arc<SimClock>,
    files: FaultFiles,
    pub options: DispatchOptions,
    pub segment_bytes: u64,
    /// Data of an event is at most about this long.
    pub padding: u64,
    pub keys: u64,
    /// So many events of a hundred have one key.
    pub hot_percent: u64,
    /// And so many of what is to be lines cannot be one.
    pub newline_percent: u64,
    pub service: Service,
    pub judge: Judge,
    events: BTreeMap<(Duration, u64), Event>,
    numbers: u64,
    calls: BTreeMap<u64, Call>,
    pub process: Option<Process>,
    processes: u64,
    store: VecDeque<Vec<u8>>,
    side: VecDeque<PutEntry>,
    counted_before: u64,
    /// A power cut may have taken the note of what was sent, and with it the count of what is sent again.
    note_lost: bool,
    /// The marks that were found last are older ones of a clean stop.
    misled: bool,
    stopped: bool,
    listed: bool,
    worked: (Duration, u32),
    /// What a planted bug counts.
    run_of_one_shard: u32,
    pub trace: Option<Vec<String>>,
}

impl Life {
    fn at(&mut self, at: Duration, event: Event) {
        self.numbers += 1;
        self.events.insert((at, self.numbers), event);
    }

    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        let now = self.now();
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3} {}", now.as_secs_f64(), what()));
        }
    }

    fn host(&self) -> Host {
        let entropy = SeededEntropy::new(self.seed ^ self.processes << 32);
        Host { files: Arc::new(self.files.clone()), clock: self.clock.clone(), entropy: Arc::new(entropy) }
    }

    /// Goes on to the next thing that happens, unless that is after `until`. False when nothing is left until then.
    pub fn step(&mut self, until: Duration) -> Result<bool, Broken> {
        let wake = self.process.as_ref().map(Process::wake_at);
        let next = self.events.keys().next().copied();
        // A process that wants to go on at once is given the moment in which others have their turn.
        let wake = wake.map(|at| at.max(self.now() + Duration::from_micros(200)));
        let (at, event) = match (next, wake) {
            (Some((at, _)), wake) if wake.is_none_or(|wake| at <= wake) => (at, self.events.first_entry()),
            (_, Some(wake)) => (wake, None),
            _ => return Ok(false),
        };
        if at > until {
            return Ok(false);
        }
        let event = event.map(std::collections::btree_map::OccupiedEntry::remove);
        self.clock.advance(at.saturating_sub(self.now()));
        match event {
            Some(event) => self.happen(event)?,
            None => self.work()?,
        }
        Ok(true)
    }

    /// Lets so much time pass, with all that happens in it.
    pub fn pass(&mut self, time: Duration) -> Result<(), Broken> {
        let until = self.now() + time;
        while self.step(until)? {}
        self.clock.advance(until.saturating_sub(self.now()));
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Write => {
                let count = self.random.below(40);
                self.write(count)?;
            }
            Event::Arrive(call) => return self.arrive(call),
            Event::Answer(call) => self.answer(call)?,
            Event::Page(process, listing) => self.page(process, listing)?,
            Event::Refused(process, error) => self.on_map(process, Err(error))?,
            Event::Described(process, refused) => self.described(process, refused),
            Event::Saved(process, bytes) => self.saved(process, bytes),
            Event::Happen(Kind::Split, n) => {
                let from = self.service.shards.len();
                self.service.split((n >> 32) as usize, n.is_multiple_of(2));
                self.tell(|| format!("split, {from} shards before"));
                return Ok(());
            }
            Event::Happen(Kind::Merge, n) => {
                self.service.merge((n >> 32) as usize);
                self.tell(|| "merge".to_owned());
                return Ok(());
            }
            Event::Happen(kind, n) => return self.end_process(kind, n),
            Event::Start => self.start()?,
            Event::SideLane => self.side_lane()?,
            Event::Calm => self.tell(|| "calm".to_owned()),
        }
        self.work()
    }

    /// Events come in, if somebody is there to take them.
    pub fn write(&mut self, count: u64) -> Result<(), Broken> {
        let Some(process) = &self.process else { return Ok(()) };
        let mut events: Vec<(String, Option<u128>, Vec<u8>)> = Vec::new();
        let mut fresh: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..count {
            // A hot key now and then; some have a hash of their own.
            let at = if self.random.percent(self.hot_percent) { 0 } else { self.random.below(self.keys) };
            let key = format!("key-{at}");
            let explicit = (at % 7 == 3).then(|| u128::from(forebay::host::mix64(at ^ self.seed)) << 64);
            let before = self.judge.count_of(&key);
            let n = fresh.entry(key.clone()).or_insert(before);
            let mut padding = "x".repeat(self.random.below(self.padding) as usize);
            if self.judge.lines && self.random.percent(self.newline_percent) {
                padding.push_str("\nx");
            }
            if self.service.poison.is_some() && self.random.percent(1) {
                padding = "POISON".into();
            }
            let data = format!("{n} {key} {padding}").into_bytes();
            *n += 1;
            events.push((key, explicit, data));
        }
        let base = process.write(&events);
        for (n, (key, explicit, data)) in (base.0..).zip(&events) {
            self.judge.accept(Position(n), key, *explicit, data)?;
        }
        self.tell(|| format!("write {count} from {base} on"));
        Ok(())
    }

    /// What a process does whenever something happened or its time has come.
    fn work(&mut self) -> Result<(), Broken> {
        let now = self.now();
        self.worked = if self.worked.0 == now { (now, self.worked.1 + 1) } else { (now, 0) };
        holds!(self.worked.1 < WORK_AT_ONCE_MAX, "LIVENESS: it goes round in circles");
        if self.stopped {
            return Ok(());
        }
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let number = process.number;
        if process.dispatcher.ask_for_map(now) && !(self.plant == Plant::MapAskedOnce && self.listed) {
            let (at, listing) = self.service.list(now);
            self.tell(|| "list".to_owned());
            let event = match listing {
                Ok(listing) => Event::Page(number, listing),
                Err(error) => Event::Refused(number, error),
            };
            self.at(at, event);
        }
        if process.dispatcher.ask_for_summary(now) {
            let (at, refused) = self.service.describe(now);
            self.at(at, Event::Described(number, refused));
        }
        let requests = process.dispatcher.poll(now);
        if !requests.is_empty() {
            process.sent_log.note(process.dispatcher.sent_high());
        }
        let under_way = process.dispatcher.under_way();
        holds!(under_way <= self.options.requests_max, "INSIDE-THE-LIMITS: {under_way} requests under way");
        for request in requests {
            self.put(&process, &request)?;
        }
        if self.plant == Plant::DuplicatesUncounted {
            process.metrics.duplicated.lock().expect("not poisoned").clear();
        }
        if self.plant == Plant::RestartUncounted {
            process.metrics.duplicated.lock().expect("not poisoned").remove("restart");
        }
        if let Some(mut checkpoint) = process.checkpoint(now) {
            if matches!(self.plant, Plant::MarksAheadOfDelivery | Plant::MarksAheadUnseen) {
                checkpoint.marks.fill(process.dispatcher.swept());
            }
            self.judge.marks(&checkpoint)?;
            process.saving = true;
            let at = now + self.random.millis(1, 40);
            self.at(at, Event::Saved(number, checkpoint.encode()));
        }
        let account = process.account();
        self.process = Some(process);
        self.judge.account(&account)
    }

    fn put(&mut self, process: &Process, request: &Outgoing) -> Result<(), Broken> {
        let now = self.now();
        let of_old_shards = |call: &Call| {
            call.process == process.number && !call.adopted && !call.answered && call.map_number != process.map_number
        };
        holds!(
            !self.judge.ordered || !self.calls.values().any(of_old_shards),
            "KEY-ORDER: new shards are sent to while records of their parents are under way"
        );
        let fate = self.service.depart(now);
        let mut call = Call {
            process: process.number,
            id: request.id,
            records: request.len(),
            told: fate.told,
            entries: Vec::new(),
            parcels: Vec::new(),
            predicted: Vec::new(),
            outcomes: None,
            map_number: process.map_number,
            adopted: false,
            answered: false,
            left: 1 + u32::from(fate.arrives.is_some()),
        };
        // What never arrives need not be written.
        if fate.arrives.is_some() || self.plant.keeps_entries() {
            call.entries = request.entries();
            call.parcels = call.entries.iter().map(|entry| self.judge.open(entry)).collect::<Result<_, _>>()?;
            for parcel in &call.parcels {
                self.judge.sent(parcel)?;
            }
            let ignored = self.service.ignored_keys_since(now).is_some_and(|since| since <= process.started);
            let known = self.options.keys_vouched || process.was_told || process.had_one_shard;
            if ignored && !known && self.options.aggregate == Aggregate::Kpl {
                self.service.meet("request that nothing is known for");
                let aggregate = call.parcels.iter().find(|parcel| parcel.events.len() > 1);
                holds!(
                    aggregate.is_none(),
                    "SAFE-UNLESS-KNOWN: an aggregate leaves by what landings tell, and keys decided nothing all the while"
                );
            }
            if let Some(map) = process.map.as_ref().filter(|_| self.plant.keeps_entries()) {
                let shard = |parcel: &Parcel| map.open()[map.shard_of(KeyHash(parcel.span.0))].id.clone();
                call.predicted = call.parcels.iter().map(shard).collect();
            }
        }
        self.numbers += 1;
        let number = self.numbers;
        let events: Vec<&[u64]> = call.parcels.iter().map(|parcel| parcel.events.as_slice()).collect();
        self.tell(|| format!("request {number} of {events:?}: {:?}, {:?}", fate.arrives, call.told));
        self.calls.insert(number, call);
        if let Some(arrives) = fate.arrives {
            self.at(arrives, Event::Arrive(number));
        }
        self.at(fate.answered, Event::Answer(number));
        Ok(())
    }

    fn done(&mut self, number: u64, mut call: Call) {
        call.left -= 1;
        if call.left > 0 {
            self.calls.insert(number, call);
        }
    }

    fn arrive(&mut self, number: u64) -> Result<(), Broken> {
        let mut call = self.calls.remove(&number).expect("it arrives once");
        let outcomes = self.service.take(&call.entries, &call.parcels, &mut self.judge, self.clock.monotonic())?;
        self.tell(|| {
            let word = |outcome: &EntryOutcome| match outcome {
                EntryOutcome::Stored { shard } => shard.to_string(),
                EntryOutcome::Failed(error) => error.code.clone(),
            };
            let words = |outcomes: &Vec<EntryOutcome>| outcomes.iter().map(word).collect::<Vec<_>>().join(" ");
            format!("request {number} arrives: {}", outcomes.as_ref().map_or_else(ToString::to_string, words))
        });
        call.outcomes = Some(outcomes);
        self.done(number, call);
        Ok(())
    }

    fn answer(&mut self, number: u64) -> Result<(), Broken> {
        let mut call = self.calls.remove(&number).expect("it is answered once");
        call.answered = true;
        let truth = match std::mem::replace(&mut call.told, Told::Truth) {
            Told::Error(error) => Err(error),
            told => {
                let mut outcomes = call.outcomes.clone().expect("answered after it arrived");
                if let (Told::Miscount, Ok(outcomes)) = (told, &mut outcomes) {
                    // One too few, or one too many.
                    let last = outcomes.pop().expect("a record at least");
                    if number.is_multiple_of(2) {
                        outcomes.extend([last.clone(), last]);
                    }
                }
                outcomes
            }
        };
        let now = self.now();
        let here = self.process.as_ref().is_some_and(|process| process.number == call.process);
        let truth = matched(truth, call.records);
        self.tell(|| {
            format!("request {number} answered: {}", truth.as_ref().map_or_else(|error| error.code.clone(), |_| "ok".into()))
        });
        if here {
            if let Ok(outcomes) = &truth {
                self.judge.answered(&self.service.shards, &call.parcels, outcomes);
            }
            if let Err(error) = &truth
                && self.plant == Plant::StopsAtExpiredToken
            {
                self.stopped |= error.code.starts_with("ExpiredToken");
            }
            if call.adopted {
                let failed = |n: usize| !matches!(&truth, Ok(outcomes) if matches!(outcomes[n], EntryOutcome::Stored { .. }));
                let again = (0..call.records).filter(|n| failed(*n)).map(|n| call.entries[n].clone());
                self.side.extend(again);
                self.at(now, Event::SideLane);
            } else {
                let request = Request { entries: &call.entries, parcels: &call.parcels, predicted: &call.predicted };
                self.run_of_one_shard = self.plant.run_of_one_shard(&request, &truth, self.run_of_one_shard);
                let believes = self.run_of_one_shard >= PLANTED_PROOF;
                let (heard, own) = self.plant.distort(&request, &self.service.shards, truth);
                for entry in own {
                    let parcel = self.judge.open(&entry)?;
                    self.judge.owed.extend(parcel.events);
                    self.side.push_back(entry);
                }
                let process = self.process.as_mut().expect("it is here");
                process.dispatcher.on_answer(call.id, heard, now);
                if believes {
                    let belief = StreamSummary { ignores_keys: Some(false), ..self.service.summary(now) };
                    process.dispatcher.on_summary(Ok(belief), now);
                }
            }
        }
        self.done(number, call);
        Ok(())
    }

    fn page(&mut self, process: u64, mut listing: Listing) -> Result<(), Broken> {
        match self.service.page(&mut listing, self.clock.monotonic()) {
            Ok(answer) => self.on_map(process, answer),
            Err(at) => {
                self.at(at, Event::Page(process, listing));
                Ok(())
            }
        }
    }

    fn on_map(&mut self, number: u64, answer: Result<Vec<ShardRange>, PutError>) -> Result<(), Broken> {
        let now = self.now();
        let Some(process) = self.process.as_mut().filter(|process| process.number == number) else { return Ok(()) };
        if let Ok(map) = answer.clone().map(ShardMap::new) {
            self.listed |= map.is_ok();
            if let Ok(map) = map {
                let changed = process.map.as_ref().is_some_and(|known| !known.same_open(&map));
                if changed && self.plant == Plant::ChildrenBeforeParents {
                    let under_way = |call: &&mut Call| call.process == number && !call.adopted && !call.answered;
                    for call in self.calls.values_mut().filter(under_way).filter(|call| !call.predicted.is_empty()) {
                        let good = call.predicted.iter().map(|shard| EntryOutcome::Stored { shard: shard.clone() }).collect();
                        process.dispatcher.on_answer(call.id, Ok(good), now);
                        self.judge.owed.extend(call.parcels.iter().flat_map(|parcel| &parcel.events));
                        call.adopted = true;
                    }
                }
                process.map_number += u64::from(changed);
                process.had_one_shard |= map.open().len() == 1;
                process.map = Some(map);
            }
        }
        let told = answer.as_ref().map_or_else(|error| error.code.clone(), |shards| format!("{} shards", shards.len()));
        process.dispatcher.on_map(answer, now);
        self.tell(|| format!("listed: {told}"));
        Ok(())
    }

    fn described(&mut self, number: u64, refused: Option<PutError>) {
        let now = self.now();
        let answer = refused.map_or_else(|| Ok(self.service.summary(now)), Err);
        if let Some(process) = self.process.as_mut().filter(|process| process.number == number) {
            process.was_told |= answer.as_ref().is_ok_and(|summary| summary.ignores_keys == Some(false));
            process.dispatcher.on_summary(answer, now);
        }
    }

    /// What a planted bug keeps from the dispatcher is sent by it, one record at a time, until it is stored.
    fn side_lane(&mut self) -> Result<(), Broken> {
        let now = self.now();
        if let Some(entry) = self.side.pop_front() {
            let parcel = self.judge.open(&entry)?;
            self.judge.owed.extend(parcel.events.iter().copied());
            let outcome = self.service.take_one(&entry, &parcel, &mut self.judge, now)?;
            if matches!(outcome, EntryOutcome::Failed(_)) {
                self.side.push_front(entry);
            }
        }
        if !self.side.is_empty() || now < self.service.weather.calm_at {
            self.at(now + Duration::from_millis(100), Event::SideLane);
        }
        Ok(())
    }
}

/// Runs the life of this seed. `telling`: with its whole story.
pub fn live(seed: u64, plant: Plant, telling: bool) -> Outcome {
    let mut life = Life::new(seed, plant);
    life.trace = telling.then(Vec::new);
    let (verdict, drained_in) = match catch_unwind(AssertUnwindSafe(|| life.run())) {
        Ok(Ok(drained_in)) => (Ok(()), drained_in),
        Ok(Err(broken)) => (Err(broken.0), Duration::ZERO),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            (Err(format!("panicked: {}", text.unwrap_or("with something that is no text"))), Duration::ZERO)
        }
    };
    if let Some(process) = life.process.take() {
        process.end();
    }
    let Judge { repeats, dropped, packed, .. } = life.judge;
    Outcome {
        verdict,
        met: life.service.met,
        trace: life.trace.unwrap_or_default(),
        accepted: life.judge.accepted(),
        repeats,
        dropped,
        packed,
        drained_in,
    }
}
