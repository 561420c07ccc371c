//! One socket connection: reads, cuts, encodes, submits.
//!
//! Place: one task for each connection, started by the door. It waits for bytes holding no buffer, has them
//! admitted by the spool *before* it reads them, and reads into a buffer that all connections of a thread share.
//! All events of one read go into one batch (more only where the batch grows past its size), copied once, and
//! are submitted together. With `ack=on` a note with the receipt goes to the acknowledging task (`acks`);
//! otherwise the receipt is dropped and nothing is ever written back, so that a plain client cannot block us.
//!
//! Owner: the splitter with what it carries over, and the count of events, belong to this task alone. Shared by
//! all connections: the budget for unfinished events ([`Partials`]).
//!
//! Without room (`spool.on_full`): `block` does not read; `reject` reads, throws away, and has each event told as rejected
//! where acknowledgements were asked for, so that a plain client cannot block on a full spool.
//!
//! *BOUNDED*: an idle connection holds no buffer; a large unfinished event needs one of few slots (`partials`), and its client
//! is closed when it stays silent; while unfinished events take much memory together, reads are small.
//!
//! The end: at end of file the last event is submitted and all acknowledgements are flushed. At shutdown a
//! client with acknowledgements is told `bye` after its last `ack`, and what was not acknowledged it sends
//! again; of a plain client, what already lies in the socket is still taken, since nobody would send it again.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::UnixOptions;
use super::acks::{self, Ended, Note};
use super::partials::{Partial, Partials, READ_BYTES};
use crate::ingest::hello::{HELLO_BYTES_MAX, Hello, Sniff, sniff};
use crate::ingest::wire::{Item, Splitter};
use crate::ingest::{DRAIN_GRACE, LiveSources, NoSource, Reject, Sent, Shutdown, Source, Stopped, stopped};
use crate::limits::{BATCH_BYTES, KEY_BYTES_MAX};
use crate::spool::{Batch, Permit};

/// Read buffers that a thread keeps.
const BUFFERS_KEPT: usize = 8;

/// Batches of one connection whose receipts may be outstanding.
const NOTES_MAX: usize = 128;

/// Rejected events after which a batch is closed, so that a note stays small.
const REJECTS_IN_NOTE_MAX: usize = 256;

/// The longest a client may take to read the answer to its hello.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes taken from a plain client at shutdown: more than a socket holds by default (208 KiB).
const SWEEP_BYTES_MAX: usize = 1 << 20;

/// How long the socket must be silent for it to be empty.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// Beside the data, a frame in the batch takes its header and its key.
const FRAME_OVERHEAD_BYTES: usize = KEY_BYTES_MAX + 64;

/// What the connections of one door share.
#[derive(Debug)]
pub struct Shared {
    sources: LiveSources,
    options: UnixOptions,
    partials: Partials,
    /// Connections closed because no source could be chosen for them or their user may not connect.
    refused: AtomicU64,
}

impl Shared {
    pub fn new(sources: LiveSources, options: UnixOptions) -> Self {
        Self { sources, options, partials: Partials::default(), refused: AtomicU64::new(0) }
    }

    /// Counts a refused connection. True now and then, when it should be logged.
    fn count_refused(&self) -> Option<u64> {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        refused.is_power_of_two().then_some(refused)
    }
}

thread_local!(static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) });

/// A read buffer of [`READ_BYTES`]; the calling thread's pool gets it back with [`give_back`].
fn buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ_BYTES])
}

fn give_back(buffer: Vec<u8>) {
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < BUFFERS_KEPT {
            kept.push(buffer);
        }
    });
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client is through (or gone).
    Eof,
    /// The agent stops accepting.
    Stopped,
    /// A frame's length lies: nothing after it can be read.
    Lost,
    /// The spool could not make a batch durable.
    NotDurable,
    /// A large unfinished event, and silence.
    Stuck,
}

/// Serves one connection to its end.
pub async fn serve(stream: UnixStream, shared: Arc<Shared>, shutdown: Shutdown) {
    if let Err(problem) = admit_user(&stream, &shared.options.allowed_uids) {
        if let Some(refused) = shared.count_refused() {
            tracing::warn!(refused, "{problem}");
        }
        return;
    }
    let (read, write) = stream.into_split();
    let mut stop = stopped(shutdown.clone());
    let mut head = Vec::new();
    let hello = match sniff_hello(&read, &mut head, &mut stop).await {
        Opening::Plain => None,
        Opening::Hello(line, rest) => {
            head = rest;
            Some(Hello::parse(&line))
        }
        Opening::Nothing => return,
    };
    let (source, hello, write) = match greet(&shared, hello, write).await {
        Some(greeted) => greeted,
        None => return,
    };
    let greeted = hello.is_some();
    let hello = hello.unwrap_or_default();
    let (acks, write) = if hello.ack {
        let (send, notes) = mpsc::channel(NOTES_MAX);
        let durable = |sent: Sent| async { sent.durable().await.map(|_| ()) };
        (Some(send), Write::Acks(tokio::spawn(acks::tell(write, notes, durable))))
    } else {
        (None, Write::Idle(write))
    };
    let mut connection = Connection {
        splitter: Splitter::new(hello.format, source.data_bytes_max()),
        source,
        acks,
        count: 0,
        noted: 0,
        rejects: Vec::new(),
        shutdown: shutdown.clone(),
    };
    let end = connection.run(&read, head, &shared, &mut stop).await;
    let count = connection.count;
    // Closing the channel lets the acknowledging task come to its end.
    drop(connection);
    finish(end, count, greeted, write, shutdown).await;
}

/// The user that connected may do so.
pub(crate) fn admit_user(stream: &UnixStream, allowed_uids: &[u32]) -> Result<(), String> {
    if allowed_uids.is_empty() {
        return Ok(());
    }
    match stream.peer_cred() {
        Ok(peer) if allowed_uids.contains(&peer.uid()) => Ok(()),
        Ok(peer) => Err(format!("a process of user id {} may not connect; listen.allowed_uids names those that may", peer.uid())),
        Err(error) => Err(format!("cannot tell the user of a connection, so it is refused: {error}")),
    }
}

/// What a connection begins with.
enum Opening {
    /// Events.
    Plain,
    /// A hello line, and what came after it.
    Hello(Vec<u8>, Vec<u8>),
    /// End of file or shutdown before anything was said.
    Nothing,
}

/// Reads until it is clear whether there is a hello. At most [`HELLO_BYTES_MAX`] bytes: they are not admitted yet.
async fn sniff_hello(read: &OwnedReadHalf, head: &mut Vec<u8>, stop: &mut Stopped) -> Opening {
    loop {
        match sniff(head) {
            Sniff::Hello(line, used) => return Opening::Hello(line.to_vec(), head[used..].to_vec()),
            Sniff::Plain => return Opening::Plain,
            Sniff::More => {}
        }
        let ready = tokio::select! {
            biased;
            ready = read.readable() => ready.is_ok(),
            // What lies in the socket already may still say what this is.
            () = &mut *stop => matches!(timeout(SWEEP_PAUSE, read.readable()).await, Ok(Ok(()))),
        };
        if !ready {
            return Opening::Nothing;
        }
        let known = head.len();
        head.resize(HELLO_BYTES_MAX, 0);
        let outcome = read.try_read(&mut head[known..]);
        head.truncate(known + outcome.as_ref().copied().unwrap_or(0));
        match outcome {
            Err(error) if is_no_end(&error) => {}
            Ok(0) | Err(_) => {
                // The end settles it: a hello without newline, or a plain event that looked like the beginning of one.
                return match head.is_empty() {
                    true => Opening::Nothing,
                    false if head.starts_with(b"forebay/1") => Opening::Hello(std::mem::take(head), Vec::new()),
                    false => Opening::Plain,
                };
            }
            Ok(_) => {}
        }
    }
}

fn is_no_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Chooses the source and answers the hello. `None`: the connection is refused, and was told so if it said hello.
async fn greet(
    shared: &Shared,
    hello: Option<Result<Hello, crate::ingest::hello::HelloError>>,
    mut write: OwnedWriteHalf,
) -> Option<(Arc<Source>, Option<Hello>, OwnedWriteHalf)> {
    let sources = shared.sources.now();
    let answer = match hello {
        None => match sources.choose(None, None) {
            Ok(source) => return Some((Arc::clone(source), None, write)),
            Err(problem) => {
                if let Some(refused) = shared.count_refused() {
                    tracing::warn!(
                        refused,
                        "a socket client that sent no hello line was closed: {problem}{}",
                        match problem {
                            NoSource::Closed { .. } => "",
                            NoSource::KeyMissing => "; let it begin with `forebay/1 source=NAME` and key=WRITEKEY",
                            _ => "; let it begin with `forebay/1 source=NAME`",
                        },
                    );
                }
                return None;
            }
        },
        Some(Err(problem)) => Err(problem.to_string()),
        Some(Ok(hello)) => match sources.choose(hello.source.as_deref(), hello.key.as_deref()) {
            Ok(source) => Ok((Arc::clone(source), hello)),
            Err(problem) => Err(problem.to_string()),
        },
    };
    match answer {
        Ok((source, hello)) => {
            let text = format!(
                "ok version=1 source={} sync={} format={} ack={} max_event_bytes={}\n",
                source.name(),
                source.spool().policy().sync,
                hello.format.name(),
                if hello.ack { "on" } else { "off" },
                source.data_bytes_max(),
            );
            say(&mut write, &text, ANSWER_TIMEOUT).await.then_some((source, Some(hello), write))
        }
        Err(problem) => {
            if shared.count_refused().is_some() {
                tracing::info!("a socket client was refused: {problem}");
            }
            say(&mut write, &format!("error {problem}\n"), ANSWER_TIMEOUT).await;
            None
        }
    }
}

/// Writes a line; false when the client does not take it.
async fn say(write: &mut OwnedWriteHalf, text: &str, patience: Duration) -> bool {
    match timeout(patience, write.write_all(text.as_bytes())).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a socket client went away before it was answered");
            false
        }
        Err(_) => {
            tracing::debug!("a socket client does not read what it is told");
            false
        }
    }
}

/// Who holds the sending side.
enum Write {
    Acks(JoinHandle<Ended<OwnedWriteHalf>>),
    /// Open, so that the client sees no early end, and silent.
    Idle(OwnedWriteHalf),
}

/// Flushes the acknowledgements and says the last words.
async fn finish(end: End, count: u64, greeted: bool, write: Write, shutdown: Shutdown) {
    let (mut write, not_durable) = match write {
        Write::Idle(write) => (write, false),
        Write::Acks(mut telling) => {
            let late = async {
                stopped(shutdown).await;
                sleep(DRAIN_GRACE).await;
            };
            tokio::select! {
                ended = &mut telling => match ended {
                    Ok(Ended { write, not_durable }) => (write, not_durable),
                    Err(error) => {
                        tracing::error!(%error, "an acknowledging task ended abnormally");
                        return;
                    }
                },
                () = late => {
                    telling.abort();
                    tracing::info!("a socket client did not read its last acknowledgements in time and was closed");
                    return;
                }
            }
        }
    };
    if !greeted {
        return;
    }
    let words = match end {
        _ if not_durable => "error the spool cannot make events durable; send again what was not acknowledged\n".to_owned(),
        End::Eof => return,
        End::NotDurable | End::Stopped => "bye\n".to_owned(),
        End::Lost => format!("error event {count}: the frame's length is wrong, so that nothing after it can be read\n"),
        End::Stuck => format!("error event {} is unfinished and nothing more of it comes\n", count + 1),
    };
    say(&mut write, &words, DRAIN_GRACE).await;
}

/// How far a batch was filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// All input is used.
    All,
    /// The batch is full; there may be more input.
    Full,
    /// Nothing after this can be read.
    Lost,
}

struct Connection {
    source: Arc<Source>,
    splitter: Splitter,
    acks: Option<mpsc::Sender<Note<Sent>>>,
    /// Events so far, rejected ones included.
    count: u64,
    /// Of these, those that a note has told.
    noted: u64,
    /// Those rejected that no note has told yet. Stays empty without acknowledgements.
    rejects: Vec<(u64, Reject)>,
    shutdown: Shutdown,
}

impl Connection {
    /// Reads until the end; `head` was read before the source was known.
    async fn run(&mut self, read: &OwnedReadHalf, head: Vec<u8>, shared: &Shared, stop: &mut Stopped) -> End {
        let mut partial = Partial::new(&shared.partials);
        let outcome = async {
            if !head.is_empty() {
                let permit = self.admit_within_grace(head.len()).await?;
                self.take(&head, permit).await?;
                drop(head);
            }
            loop {
                self.await_bytes(read, &mut partial, shared, stop).await?;
                let length = partial.read_bytes();
                let permit = self.admit(length + partial.bytes, stop).await?;
                self.read_once(read, length, permit).await?;
                partial.set(self.splitter.carried());
            }
        };
        let outcome: Result<std::convert::Infallible, End> = outcome.await;
        let Err(end) = outcome;
        match end {
            End::Eof => self.take_the_last().await.err().unwrap_or(End::Eof),
            End::Stopped if self.acks.is_none() => {
                self.sweep(read).await;
                End::Stopped
            }
            other => other,
        }
    }

    /// Waits, holding no buffer, until there is something to read, room to tell of it, and leave to keep it.
    async fn await_bytes<'s>(
        &self,
        read: &OwnedReadHalf,
        partial: &mut Partial<'s>,
        shared: &'s Shared,
        stop: &mut Stopped,
    ) -> Result<(), End> {
        let large = partial.is_large();
        tokio::select! {
            biased;
            () = partial.slots() => {}
            () = &mut *stop => return Err(End::Stopped),
        }
        if let Some(acks) = &self.acks {
            // This task alone sends, so the room stays until it does.
            tokio::select! {
                biased;
                room = acks.reserve() => drop(room.map_err(|_| End::NotDurable)?),
                () = &mut *stop => return Err(End::Stopped),
            }
        }
        let silence = async {
            match large {
                true => sleep(shared.options.stuck_after).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = &mut *stop => Err(End::Stopped),
            ready = read.readable() => ready.map_err(|_| End::Eof),
            () = silence => Err(End::Stuck),
        }
    }

    async fn admit(&self, bytes: usize, stop: &mut Stopped) -> Result<Permit, End> {
        tokio::select! {
            biased;
            permit = self.source.admit(bytes) => permit.map_err(|_| End::Stopped),
            () = stop => Err(End::Stopped),
        }
    }

    /// One read and all that follows from it.
    async fn read_once(&mut self, read: &OwnedReadHalf, length: usize, permit: Permit) -> Result<usize, End> {
        let mut bytes = buffer();
        let outcome = match read.try_read(&mut bytes[..length]) {
            Ok(0) => Err(End::Eof),
            Ok(n) => self.take(&bytes[..n], permit).await.map(|()| n),
            Err(error) if is_no_end(&error) => Ok(0),
            Err(error) => {
                tracing::debug!(%error, "a socket connection broke; what came before is taken");
                Err(End::Eof)
            }
        };
        give_back(bytes);
        outcome
    }

    /// Encodes and submits every event that `input` completes.
    async fn take(&mut self, mut input: &[u8], mut permit: Permit) -> Result<(), End> {
        loop {
            let mut batch = None;
            let filled = self.fill(&mut input, &mut batch);
            self.hand_over(batch, permit).await?;
            match filled {
                Filled::All => return Ok(()),
                Filled::Lost => return Err(End::Lost),
                Filled::Full => permit = self.admit_within_grace(input.len()).await?,
            }
        }
    }

    /// Moves whole events from `input` into `batch`, which is begun with the first, until either ends. While there is no
    /// room and the policy is to refuse, events are read and thrown away instead.
    fn fill(&mut self, input: &mut &[u8], batch: &mut Option<Batch>) -> Filled {
        let refuses = self.source.refuses();
        let mut refused = 0;
        let filled = loop {
            if batch.as_ref().is_some_and(|batch| batch.len() >= BATCH_BYTES) || self.rejects.len() >= REJECTS_IN_NOTE_MAX {
                break Filled::Full;
            }
            let Some(item) = self.splitter.next(input) else { break Filled::All };
            let outcome = match (item, refuses) {
                (Item::Rejected(reject), _) => Err(reject),
                (Item::Lost, _) => {
                    self.settle(Err(Reject::BadFrame));
                    break Filled::Lost;
                }
                (Item::Event { .. }, Some(limit)) => {
                    refused += 1;
                    Err(Reject::Full(limit))
                }
                (Item::Event { key, data }, None) => {
                    let batch = batch.get_or_insert_with(|| self.source.batch());
                    match key {
                        None => self.source.encode(data, batch),
                        Some(key) => self.source.encode_keyed(key, data, batch),
                    }
                }
            };
            self.settle(outcome);
        };
        if let Some(limit) = refuses.filter(|_| refused > 0) {
            self.source.count_rejected(Reject::Full(limit), refused);
        }
        filled
    }

    /// Counts an event, and its rejection. Those for want of room come in such numbers that the caller counts them.
    fn settle(&mut self, outcome: Result<(), Reject>) {
        self.count += 1;
        if let Err(reject) = outcome {
            if !matches!(reject, Reject::Full(_)) {
                self.source.count_rejected(reject, 1);
            }
            if self.acks.is_some() {
                self.rejects.push((self.count, reject));
            }
        }
    }

    /// Submits the batch and has its receipt told, where that was asked for.
    async fn hand_over(&mut self, batch: Option<Batch>, permit: Permit) -> Result<(), End> {
        let receipt = match batch.filter(|batch| !batch.is_empty()) {
            None => {
                drop(permit);
                None
            }
            Some(batch) => Some(self.source.submit(batch, permit)),
        };
        // A batch may be empty, and its events settled all the same: rejected, or left out by a rule.
        if let Some(acks) = &self.acks
            && self.count > self.noted
        {
            self.noted = self.count;
            let note = Note { receipt, count: self.count, rejects: std::mem::take(&mut self.rejects) };
            tokio::select! {
                biased;
                sent = acks.send(note) => sent.map_err(|_| End::NotDurable)?,
                () = stopped(self.shutdown.clone()) => return Err(End::Stopped),
            }
        }
        Ok(())
    }

    /// Admission for bytes that are in hand already: at shutdown they get a little time.
    async fn admit_within_grace(&self, bytes: usize) -> Result<Permit, End> {
        let late = async {
            stopped(self.shutdown.clone()).await;
            sleep(DRAIN_GRACE).await;
        };
        tokio::select! {
            biased;
            permit = self.source.admit(bytes + FRAME_OVERHEAD_BYTES) => permit.map_err(|_| End::Stopped),
            () = late => Err(End::Stopped),
        }
    }

    /// The end of the stream may complete one more event.
    async fn take_the_last(&mut self) -> Result<(), End> {
        if self.splitter.carried() == 0 {
            return Ok(());
        }
        let permit = self.admit_within_grace(self.splitter.carried()).await?;
        let mut batch = self.source.batch();
        let outcome = match self.splitter.finish() {
            None => return Ok(()),
            Some(Item::Event { data, .. }) => match self.source.refuses() {
                Some(limit) => {
                    self.source.count_rejected(Reject::Full(limit), 1);
                    Err(Reject::Full(limit))
                }
                None => self.source.encode(data, &mut batch),
            },
            Some(Item::Rejected(reject)) => Err(reject),
            Some(Item::Lost) => Err(Reject::BadFrame),
        };
        self.settle(outcome);
        self.hand_over(Some(batch), permit).await
    }

    /// Takes what a plain client has already written, at shutdown. An unfinished event is not taken.
    async fn sweep(&mut self, read: &OwnedReadHalf) {
        let mut swept = 0;
        while swept < SWEEP_BYTES_MAX {
            // A moment for the reactor to tell of bytes that came just before the signal.
            if !matches!(timeout(SWEEP_PAUSE, read.readable()).await, Ok(Ok(()))) {
                return;
            }
            let Ok(permit) = self.admit_within_grace(READ_BYTES).await else { return };
            match self.read_once(read, READ_BYTES, permit).await {
                Ok(n) if n > 0 => swept += n,
                _ => return,
            }
        }
    }
}
