//! One process of the simulated agent: the real spool, the real dispatcher, and what `agent` and `dispatch::run` do around them.
//!
//! Place: `life.rs` starts it, gives it events, lets it work at each moment, and ends it by a kill, a power cut or a clean stop.
//! The spool lies on `common/fault_files.rs`. The only real thread is the spool's commit thread, which does nothing but
//! commit the batch that the simulation waits for; so one seed gives one trace.
//!
//! The inbox, the pace and the two threads of `dispatch::run` wait on real time and are not here: their rules (what is
//! asked for when, the note of what was sent before a request leaves, one checkpoint being saved at a time) are. Failure: text.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use forebay::checkpoint::Checkpoint;
use forebay::dispatch::run::SentLog;
use forebay::dispatch::{DispatchOptions, Dispatcher};
use forebay::event::{KeyHash, Position};
use forebay::host::Host;
use forebay::metrics::{Account, StreamMetrics};
use forebay::shard_map::ShardMap;
use forebay::spool::cursor::Cursor;
use forebay::spool::dead::desk::DeadLetters;
use forebay::spool::gather::commit_loop;
use forebay::spool::{self, SpoolHandle, SpoolOptions};

/// How often marks are saved.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(500);

pub struct Process {
    pub number: u64,
    pub handle: SpoolHandle,
    commit: JoinHandle<()>,
    pub dispatcher: Dispatcher,
    pub metrics: Arc<StreamMetrics>,
    pub sent_log: SentLog,
    pub saving: bool,
    saved: Option<Checkpoint>,
    pub next_checkpoint: Duration,
    pub started: Duration,
    /// It had a map of one shard.
    pub had_one_shard: bool,
    /// Somebody told it that keys decide, truly or not.
    pub was_told: bool,
    /// The shards as this process was told them last.
    pub map: Option<ShardMap>,
    /// How often that was another map than before.
    pub map_number: u64,
    /// What it began with: marks, and events that they call delivered.
    pub marks: Checkpoint,
    pub delivered_before: u64,
    /// After an end that was called clean.
    pub after_clean: bool,
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new("/spool").join(name)
}

impl Process {
    /// Starts on what lies on the disk, with the marks that were found.
    pub fn start(number: u64, host: &Host, segment_bytes: u64, options: DispatchOptions, loaded: Option<Checkpoint>) -> Self {
        let spool_options = SpoolOptions { stream: "s".into(), dir: path(""), max_bytes: 1 << 30, segment_bytes };
        spool::prepare(host, &spool_options).expect("a good disk");
        let metrics = Arc::<StreamMetrics>::default();
        let durable = loaded.as_ref().map_or(Position(0), |checkpoint| checkpoint.durable);
        let opened = spool::open(host, &spool_options, durable, &metrics).expect("a good disk");
        assert_eq!(opened.damaged_events, 0, "NOTHING-LOST: a good disk has no damage");
        let next = opened.writer.next();
        let (mut sent_log, sent_high) = SentLog::open(host, &path("ledger.sent"));
        let marks_lost = loaded.is_none() && next > Position(0);
        let clean = loaded.as_ref().is_some_and(|checkpoint| checkpoint.clean);
        let resent_below = match (marks_lost, clean) {
            (true, _) => next,
            (false, true) => Position(0),
            (false, false) => sent_high.min(next),
        };
        let marks = Checkpoint { clean: false, durable: next, ..loaded.unwrap_or_default() };
        if clean {
            sent_log.restart(Position(0));
        }
        let shared = Arc::clone(opened.handle.shared());
        let mut cursor = Cursor::new(Arc::clone(&shared), Arc::clone(&host.files));
        let pending: u64 = shared.table.all().iter().map(|segment| cursor.pending(segment, &marks.marks).expect("read")).sum();
        let dead = marks.dead.min(next.0 - pending);
        *metrics.account.lock().expect("not poisoned") =
            Account { accepted: next.0, delivered: next.0 - pending - dead, dead, ..Account::default() };
        let mut dispatcher = Dispatcher::new(options, host.clone(), cursor, Arc::clone(&metrics), &marks, resent_below);
        let letters = DeadLetters::open(host, &spool::dead_dir(&path("")), 1 << 20, &metrics).expect("a good disk");
        let known = letters.store().unsettled(marks_lost).expect("a good disk");
        dispatcher.keep_letters(Arc::new(letters), &known).expect("a good disk");
        dispatcher.take_time(host.clock.monotonic());
        let delivered_before = metrics.account.lock().expect("not poisoned").delivered;
        let writer = opened.writer;
        let commit = std::thread::spawn(move || commit_loop(&shared, writer));
        Self {
            number,
            handle: opened.handle,
            commit,
            dispatcher,
            metrics,
            sent_log,
            saving: false,
            saved: None,
            next_checkpoint: host.clock.monotonic() + CHECKPOINT_EVERY,
            started: host.clock.monotonic(),
            had_one_shard: false,
            was_told: false,
            map: None,
            map_number: 0,
            marks,
            delivered_before,
            after_clean: clean,
        }
    }

    /// Takes events in; where the first of them lies, once all are durable.
    pub fn write(&self, events: &[(String, Option<u128>, Vec<u8>)]) -> Position {
        let mut batch = self.handle.batch();
        for (key, explicit, data) in events {
            batch.push(key, explicit.map(KeyHash), data);
        }
        let permit = self.handle.try_admit(batch.len()).expect("room");
        self.handle.submit(batch, permit).wait().expect("a good disk")
    }

    pub fn account(&self) -> Account {
        *self.metrics.account.lock().expect("not poisoned")
    }

    /// Events that it says may be duplicates.
    pub fn counted(&self) -> u64 {
        self.metrics.duplicated.lock().expect("not poisoned").values().sum()
    }

    /// A checkpoint, if one is due.
    pub fn checkpoint(&mut self, now: Duration) -> Option<Checkpoint> {
        if now < self.next_checkpoint {
            return None;
        }
        self.next_checkpoint = now + CHECKPOINT_EVERY;
        if self.saving {
            return None;
        }
        let checkpoint = self.dispatcher.checkpoint(false);
        (self.saved.as_ref() != Some(&checkpoint)).then_some(checkpoint)
    }

    /// It is durable.
    pub fn on_saved(&mut self, checkpoint: Checkpoint) {
        self.saving = false;
        self.dispatcher.on_saved(&checkpoint);
        self.sent_log.restart(self.dispatcher.sent_high());
        self.saved = Some(checkpoint);
    }

    /// When it has something to do though nothing happens.
    pub fn wake_at(&self) -> Duration {
        self.dispatcher.wake_at().map_or(self.next_checkpoint, |at| at.min(self.next_checkpoint))
    }

    /// The last checkpoint of an end in order.
    pub fn last_checkpoint(&mut self) -> Checkpoint {
        self.dispatcher.checkpoint(true)
    }

    /// The process is gone.
    pub fn end(self) {
        drop(self.dispatcher);
        self.handle.close();
        self.commit.join().expect("the commit thread does not panic");
    }
}
