//! The thread around the dispatcher: its inbox, its timers, its requests, its checkpoints.
//!
//! Place: one for each stream, started by `agent`. Everything that happens to the [`Dispatcher`] comes through
//! one inbox as an [`Event`]; requests run as tasks on the runtime and answer into the same inbox. A second
//! thread owns the store of the marks, so that its fsync keeps nobody waiting.
//!
//! The inbox is a std channel without a bound of its own; what can be in it is bounded: one `Committed` at a time,
//! an answer for each request under way, a listing, a summary, a saved checkpoint, a handful of commands, a question for a sign
//! of life every few seconds.
//!
//! Failure: a panic in a put task answers as an unknown outcome before it takes the process down.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Dispatcher;
use super::outgoing::Outgoing;
use super::remembered;
use super::rewriter::{self, Rewriter};
use crate::checkpoint::{Checkpoint, MarkStore};
use crate::event::Position;
use crate::host::{Clock, File, Files, Host};
use crate::kinesis::{EntryOutcome, ErrorClass, KinesisApi, PutError, ShardRange, StreamSummary};
use crate::metrics::locked;
use crate::spool::Pulse;
use crate::spool::rewrite::Rewritten;

/// The most that `linger` makes of the dispatcher's pace.
const PACE_MAX: Duration = Duration::from_millis(2);

/// How often status is published.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// The same, and looks at what may be saved, while nothing is pending and nothing happens: an idle agent costs next to nothing.
const REST: Duration = Duration::from_secs(1);

/// Something that happened to a stream's delivery.
#[derive(Debug)]
pub enum Event {
    /// Events became durable.
    Committed,
    /// A request was answered.
    Answered {
        /// Which.
        id: u64,
        /// How.
        answer: Result<Vec<EntryOutcome>, PutError>,
    },
    /// The shards were listed.
    Listed(Result<Vec<ShardRange>, PutError>),
    /// What the service says of the stream.
    Described(Box<Result<StreamSummary, PutError>>),
    /// A checkpoint is durable, or could not be made so.
    Saved(Box<Checkpoint>, bool),
    /// The rewriter looked: a segment's copy, if one was made.
    Rewritten(Option<Box<Rewritten>>),
    /// The spool is full, and its oldest events are to make room.
    DropOldest,
    /// No more events come: deliver what is there until then (dispatcher time), then end.
    Drain(Duration),
    /// A question for a sign of life; taking it is the answer.
    Pulse(Pulse),
}

/// Sends events to the thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    sender: Sender<Event>,
    committed: Arc<AtomicBool>,
}

impl Inbox {
    /// Tells it; a dispatcher that ended does not want to know.
    pub fn tell(&self, event: Event) {
        self.sender.send(event).ok();
    }

    /// Events became durable; told once until the dispatcher looks.
    pub fn committed(&self) {
        if !self.committed.swap(true, Ordering::AcqRel) {
            self.tell(Event::Committed);
        }
    }
}

/// What is left when a dispatcher ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Events that stay in the spool.
    pub pending: u64,
    /// The last checkpoint is durable and nothing was under way: the next start sends nothing twice.
    pub clean: bool,
}

/// The file in which the dispatcher notes how far sending went since the last checkpoint, so that after a crash
/// the events that may be sent twice can be counted. Written without sync: it survives a kill, and if a power cut or
/// a person takes it, only the count is too low.
#[derive(Debug)]
pub struct SentLog {
    file: Option<Arc<dyn File>>,
    noted: Position,
    bytes: u64,
    /// Told once.
    failing: bool,
}

/// Beyond this the file is begun anew. It gets so long only while no checkpoint can be saved.
const SENT_LOG_BYTES_MAX: u64 = 1 << 20;

impl SentLog {
    /// Opens or creates it; tells how far sending went. One that cannot be read is set aside; without any, nothing is noted.
    #[must_use]
    pub fn open(host: &Host, path: &Path) -> (Self, Position) {
        let files = host.files.as_ref();
        let found = match Self::read(files, path) {
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the note of what was sent is damaged: set aside; the count of repeated events may be low");
                files.rename(path, &path.with_extension("sent.damaged")).and_then(|()| Self::read(files, path))
            }
            found => found,
        };
        let (file, high) = match found {
            Ok((file, high)) => (Some(file), high),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what is sent is not noted; after a crash the count of repeated events will be low");
                (None, Position(0))
            }
        };
        (Self { file, noted: Position(0), bytes: 0, failing: false }, high)
    }

    fn read(files: &dyn Files, path: &Path) -> std::io::Result<(Arc<dyn File>, Position)> {
        let file = match files.open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => files.create(path)?,
            other => other?,
        };
        let len = file.len()?;
        let mut bytes = vec![0; len.min(2 * SENT_LOG_BYTES_MAX) as usize];
        let from = len - bytes.len() as u64;
        file.read_exact_at(&mut bytes, from)?;
        // At any offset: an append that was torn leaves what follows it out of step.
        let entries = bytes.windows(12).filter_map(|entry| {
            let (position, crc) = entry.split_first_chunk::<8>()?;
            (crc32fast::hash(position).to_le_bytes() == crc).then(|| Position(u64::from_le_bytes(*position)))
        });
        let high = entries.max().unwrap_or_default();
        Ok((file, high))
    }

    /// Sending went as far as `high`. A failure is a warning: only the count of repeated events suffers.
    pub fn note(&mut self, high: Position) {
        if high <= self.noted {
            return;
        }
        if self.bytes > SENT_LOG_BYTES_MAX {
            self.cut();
        }
        self.noted = high;
        let Some(file) = &self.file else { return };
        let position = high.0.to_le_bytes();
        self.bytes += 12;
        if let Err(error) = file.append(&[&position, &crc32fast::hash(&position).to_le_bytes()]) {
            if !self.failing {
                tracing::warn!(%error, "noting what is sent failed; after a crash the count of repeated events may be low");
            }
            self.failing = true;
        }
    }

    fn cut(&mut self) {
        self.bytes = 0;
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.set_len(0)) {
            tracing::warn!(%error, "the note of what was sent could not be cut");
        }
    }

    /// A checkpoint was saved: sending is noted anew from `high` on.
    pub fn restart(&mut self, high: Position) {
        self.cut();
        self.noted = Position(0);
        if high > Position(0) {
            self.note(high);
        }
    }
}

/// What is under way at the end of a drain has so long for its answers: a stop with a backlog sends nothing twice.
const DRAIN_ANSWERS_MAX: Duration = Duration::from_secs(1);

/// Everything a stream's delivery runs on.
#[derive(Debug)]
pub struct Parts {
    /// The state machine.
    pub dispatcher: Dispatcher,
    /// Clock and files.
    pub host: Host,
    /// Where requests go.
    pub api: Arc<dyn KinesisApi>,
    /// Where they run.
    pub runtime: tokio::runtime::Handle,
    /// Where marks are kept.
    pub store: Box<dyn MarkStore>,
    /// How often.
    pub checkpoint_interval: Duration,
    /// Size at which segments are sealed, bytes.
    pub segment_bytes: u64,
    /// What was sent since.
    pub sent_log: SentLog,
    /// Where a clean stop notes what was sent ahead of a backlog.
    pub ahead: PathBuf,
    /// Where what Kinesis says of the stream is kept.
    pub mode: PathBuf,
    /// For the threads' names.
    pub stream: String,
}

/// Starts its thread, and the one that saves its marks.
///
/// # Errors
/// When the system gives no thread.
pub fn start(parts: Parts) -> std::io::Result<(Inbox, JoinHandle<Ended>)> {
    let (sender, events) = channel();
    let inbox = Inbox { sender, committed: Arc::default() };
    let name = format!("dispatch-{}", parts.stream);
    let shell = Shell::new(parts, inbox.clone(), events)?;
    let thread = std::thread::Builder::new().name(name).spawn(move || shell.run())?;
    Ok((inbox, thread))
}

/// An answer that does not have an outcome for each of the request's records tells nothing.
///
/// # Errors
/// The answer's, or an unknown outcome.
pub fn matched(answer: Result<Vec<EntryOutcome>, PutError>, records: usize) -> Result<Vec<EntryOutcome>, PutError> {
    match answer {
        Ok(outcomes) if outcomes.len() != records => Err(PutError {
            class: ErrorClass::UnknownOutcome,
            code: "answer".into(),
            message: format!("{} outcomes for {records} records", outcomes.len()),
        }),
        other => other,
    }
}

struct Shell {
    dispatcher: Dispatcher,
    clock: Arc<dyn Clock>,
    api: Arc<dyn KinesisApi>,
    runtime: tokio::runtime::Handle,
    inbox: Inbox,
    events: Receiver<Event>,
    saver: Option<Sender<Box<Checkpoint>>>,
    saver_thread: Option<JoinHandle<()>>,
    saving: bool,
    saved: Option<Checkpoint>,
    interval: Duration,
    /// The least time between two looks at all queues.
    pace: Duration,
    next_checkpoint: Duration,
    next_publish: Duration,
    /// Something happened since the last time.
    stirred: bool,
    /// From when on no request is begun, and until when answers are waited for.
    drain: Option<(Duration, Duration)>,
    sent_log: SentLog,
    ahead: PathBuf,
    mode: PathBuf,
    files: Arc<dyn Files>,
    rewriter: Rewriter,
}

impl Shell {
    fn new(parts: Parts, inbox: Inbox, events: Receiver<Event>) -> std::io::Result<Self> {
        let (saver, checkpoints) = channel::<Box<Checkpoint>>();
        let mut store = parts.store;
        let answers = inbox.clone();
        let (metrics, stream) = (Arc::clone(&parts.dispatcher.metrics), parts.stream.clone());
        let saver_thread = std::thread::Builder::new().name(format!("marks-{}", parts.stream)).spawn(move || {
            let mut failing = false;
            while let Ok(checkpoint) = checkpoints.recv() {
                let saved = store.save(&checkpoint);
                match &saved {
                    Err(error) if !failing => {
                        tracing::error!(stream, %error, "the marks cannot be saved: delivery goes on, no disk space is freed, a restart would send again; trying again and again");
                    }
                    Ok(()) if failing => tracing::info!(stream, "the marks can be saved again"),
                    _ => {}
                }
                failing = saved.is_err();
                *locked(&metrics.checkpoint_reason) = saved.as_ref().err().map(ToString::to_string).unwrap_or_default();
                answers.tell(Event::Saved(checkpoint, saved.is_ok()));
            }
        })?;
        let table = Arc::clone(&parts.dispatcher.shared().table);
        let rewriter = rewriter::start(&parts.host, table, parts.segment_bytes, &parts.stream, inbox.clone())?;
        let now = parts.host.clock.monotonic();
        let pace = parts.dispatcher.linger() / 50;
        Ok(Self {
            dispatcher: parts.dispatcher,
            clock: parts.host.clock,
            api: parts.api,
            runtime: parts.runtime,
            inbox,
            events,
            saver: Some(saver),
            saver_thread: Some(saver_thread),
            saving: false,
            saved: None,
            interval: parts.checkpoint_interval,
            pace: pace.min(PACE_MAX),
            next_checkpoint: now + parts.checkpoint_interval,
            next_publish: now,
            stirred: true,
            drain: None,
            sent_log: parts.sent_log,
            ahead: parts.ahead,
            mode: parts.mode,
            files: parts.host.files,
            rewriter,
        })
    }

    fn run(mut self) -> Ended {
        self.dispatcher.take_time(self.clock.monotonic());
        let mut woken = true;
        loop {
            let now = self.clock.monotonic();
            self.work(now);
            if let Some((close, until)) = self.drain {
                if now >= close {
                    self.dispatcher.close();
                }
                let done = self.dispatcher.is_settled() || now >= close;
                if done && self.dispatcher.under_way() == 0 || now >= until {
                    return self.end();
                }
            }
            if woken && self.drain.is_none() && !self.pace.is_zero() {
                // Under load something happens every few microseconds, and looking at all queues each time would be most
                // of the work, and waking up for it most of the rest. Beside `linger` the pace is nothing.
                std::thread::sleep(self.pace);
                if self.take_all() {
                    continue;
                }
            }
            let drain = self.drain.map(|(close, until)| if now < close { close } else { until });
            let wake = [self.dispatcher.wake_at(), Some(self.next_publish), Some(self.next_checkpoint), drain];
            let wake = wake.into_iter().flatten().min().unwrap_or(now);
            match self.events.recv_timeout(wake.saturating_sub(self.clock.monotonic())) {
                Ok(event) => {
                    self.take(event);
                    woken = true;
                }
                Err(RecvTimeoutError::Timeout) => woken = false,
                // The shell holds a sender itself.
                Err(RecvTimeoutError::Disconnected) => unreachable!("the inbox lives as long as its thread"),
            }
            self.take_all();
        }
    }

    /// Takes what has come; whether anything has.
    fn take_all(&mut self) -> bool {
        let mut any = false;
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
            any = true;
        }
        any
    }

    fn take(&mut self, event: Event) {
        let now = self.clock.monotonic();
        if !matches!(event, Event::Pulse(_) | Event::Rewritten(None)) {
            self.stir(now);
        }
        match event {
            Event::Committed => self.inbox.committed.store(false, Ordering::Release),
            Event::Answered { id, answer } => self.dispatcher.on_answer(id, answer, now),
            Event::Listed(answer) => self.dispatcher.on_map(answer, now),
            Event::Described(answer) => {
                if let Ok(summary) = answer.as_ref()
                    && let Err(error) = remembered::keep(self.files.as_ref(), &self.mode, summary, self.clock.wall_ms())
                {
                    tracing::debug!(%error, "what Kinesis said of the stream could not be kept for the next start");
                }
                self.dispatcher.on_summary(*answer, now);
            }
            Event::Saved(checkpoint, durable) => self.on_saved(checkpoint, durable),
            Event::Rewritten(copy) => self.on_rewritten(copy),
            Event::DropOldest => self.dispatcher.drop_oldest(),
            Event::Drain(until) => {
                // The end of the wait may be asked for before the wait itself has been told.
                let close = self.drain.map_or(until, |(earlier, _)| earlier.min(until));
                self.drain = Some((close, close + DRAIN_ANSWERS_MAX));
                self.dispatcher.drain();
            }
            Event::Pulse(asked) => drop(asked),
        }
    }

    /// Something happened: what is done at intervals comes no later than one interval from now.
    fn stir(&mut self, now: Duration) {
        self.stirred = true;
        self.next_checkpoint = self.next_checkpoint.min(now + self.interval);
        self.next_publish = self.next_publish.min(now + PUBLISH_EVERY);
    }

    fn work(&mut self, now: Duration) {
        if self.dispatcher.ask_for_map(now) {
            let (api, inbox) = (Arc::clone(&self.api), self.inbox.clone());
            self.runtime.spawn(async move { inbox.tell(Event::Listed(api.list_shards().await)) });
        }
        if self.dispatcher.ask_for_summary(now) {
            let (api, inbox) = (Arc::clone(&self.api), self.inbox.clone());
            self.runtime.spawn(async move { inbox.tell(Event::Described(Box::new(api.summary().await))) });
        }
        let requests = self.dispatcher.poll(now);
        if !requests.is_empty() {
            self.sent_log.note(self.dispatcher.sent_high());
        }
        for request in requests {
            self.put(request);
        }
        if now >= self.next_checkpoint || (!self.saving && self.dispatcher.wants_checkpoint()) {
            let as_saved = self.save(false);
            let resting = as_saved && self.dispatcher.is_settled();
            self.next_checkpoint = now + if resting { self.interval.max(REST) } else { self.interval };
        }
        if now >= self.next_publish {
            let resting = !std::mem::take(&mut self.stirred) && self.dispatcher.is_settled();
            self.next_publish = now + if resting { REST } else { PUBLISH_EVERY };
            self.dispatcher.publish_shards(now);
            self.dispatcher.publish_mode(now);
            self.dispatcher.advise(now);
            self.dispatcher.metrics.put_singly.store(self.api.is_singly(), Ordering::Relaxed);
            self.dispatcher.tell_hot_keys(now);
        }
    }

    fn put(&self, request: Outgoing) {
        let (api, inbox) = (Arc::clone(&self.api), self.inbox.clone());
        self.runtime.spawn(async move {
            let mut unanswered = Unanswered { inbox, id: request.id, answer: None };
            let records = request.len();
            let entries = request.entries();
            drop(request);
            let answer = api.put_records(entries).await;
            unanswered.answer = Some(matched(answer, records));
        });
    }

    /// Hands a checkpoint to the saver, unless one is being saved or nothing changed; whether the latter.
    fn save(&mut self, stopping: bool) -> bool {
        if self.saving {
            return false;
        }
        let checkpoint = self.dispatcher.checkpoint(stopping);
        if self.saved.as_ref() == Some(&checkpoint) {
            self.look_for_rewriting();
            return true;
        }
        if let Some(saver) = &self.saver {
            self.saving = saver.send(Box::new(checkpoint)).is_ok();
        }
        false
    }

    fn on_saved(&mut self, checkpoint: Box<Checkpoint>, durable: bool) {
        self.saving = false;
        if durable {
            // Told before files go by them: who looks behind a removal finds the marks that allowed it.
            let saved = Some((self.clock.wall_ms(), Arc::new((*checkpoint).clone())));
            *locked(&self.dispatcher.metrics.saved_marks) = saved;
            self.dispatcher.on_saved(&checkpoint);
            // Also where all of it is settled: should this checkpoint be lost and an older one be found, it still tells.
            self.sent_log.restart(self.dispatcher.sent_high());
            self.saved = Some(*checkpoint);
            self.look_for_rewriting();
        }
    }

    /// Lets the rewriter see whether something is to be done, by the marks that are durable.
    fn look_for_rewriting(&mut self) {
        if let Some(saved) = &self.saved {
            self.rewriter.look(&saved.marks, self.dispatcher.swept());
        }
    }

    fn on_rewritten(&mut self, copy: Option<Box<Rewritten>>) {
        self.rewriter.done();
        if let Some(copy) = copy
            && self.dispatcher.swap_in(&copy)
        {
            self.rewriter.renamed();
            // There may be more of its kind.
            self.look_for_rewriting();
        }
    }

    /// Notes what the last checkpoint cannot tell: what is settled past its marks.
    fn note_ahead(&mut self) {
        let checkpoint = self.dispatcher.checkpoint(true);
        let (ahead, pending) = self.dispatcher.settled_ahead();
        let noted = ahead.save(self.files.as_ref(), &self.ahead, &checkpoint, pending);
        self.dispatcher.ahead_is_noted(noted.is_ok());
        if let Err(error) = noted {
            tracing::warn!(%error, "what was delivered ahead of a backlog could not be noted: the next start sends it again");
        }
    }

    /// The last checkpoint, and the end.
    fn end(mut self) -> Ended {
        self.rewriter.stop();
        let wait = Duration::from_secs(10);
        let mut clean = false;
        // One may be under way already; the last one must come after it.
        for _ in 0..2 {
            self.note_ahead();
            self.save(true);
            while self.saving {
                match self.events.recv_timeout(wait) {
                    Ok(Event::Saved(checkpoint, durable)) => {
                        clean = durable && checkpoint.clean;
                        self.on_saved(checkpoint, durable);
                    }
                    Ok(event) => self.take(event),
                    Err(_) => {
                        tracing::warn!("the last checkpoint is not durable in time; some events may be sent again");
                        self.saving = false;
                    }
                }
            }
        }
        self.dispatcher.publish_shards(self.clock.monotonic());
        drop(self.saver.take());
        if let Some(thread) = self.saver_thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that saves the marks panicked");
        }
        Ended { pending: self.dispatcher.pending(), clean }
    }
}

/// Answers for a put task that cannot: whatever happens to it, its events are not forgotten.
struct Unanswered {
    inbox: Inbox,
    id: u64,
    answer: Option<Result<Vec<EntryOutcome>, PutError>>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let answer = self.answer.take().unwrap_or_else(|| {
            Err(PutError {
                class: ErrorClass::UnknownOutcome,
                code: "task".into(),
                message: "the request was given up by its task".into(),
            })
        });
        self.inbox.tell(Event::Answered { id: self.id, answer });
    }
}

impl Dispatcher {
    /// Events that are neither delivered nor otherwise settled.
    #[must_use]
    pub fn pending(&self) -> u64 {
        locked(&self.metrics.account).pending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_sending_went_is_found_behind_a_torn_note() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("ledger.sent");
        let (mut log, high) = SentLog::open(&Host::real(), &path);
        assert_eq!(high, Position(0));
        log.note(Position(7));
        log.file.as_ref().expect("a file").append(&[b"torn!"]).expect("append");
        log.note(Position(9));
        let (mut log, high) = SentLog::open(&Host::real(), &path);
        assert_eq!(high, Position(9));
        log.restart(Position(0));
        assert_eq!(SentLog::open(&Host::real(), &path).1, Position(0));
    }
}
