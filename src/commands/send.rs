//! `forebay send`: lines from files or standard input to the agent's socket, until all of it is durable.
//!
//! Place: called by the command line with plain options; a client of the socket like any other. A thread reads
//! the input in blocks, since standard input cannot be read without blocking one; this task cuts the blocks into
//! lines and sends each as a frame. Frames rather than lines, because a frame that is cut short (by a signal, by
//! a crash) is recognised, while half a line would be taken for an event. Acknowledgements are read meanwhile.
//!
//! Backpressure is the socket's: at most a few blocks of input are in memory. An interrupt stops the reading;
//! what was sent is still awaited. A second one gives up.
//!
//! Failure: it succeeds only if every event that was read is durable. Otherwise it tells how many events are
//! settled, so that the rest can be sent again: events are numbered from 1 over all inputs, empty lines apart.
//! Absent on purpose: retries and reconnecting, since the agent is on this machine and the user is looking on.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

use crate::ingest::hello::Hello;
use crate::ingest::wire::{Format, Item, Splitter, write_frame};
use crate::limits::EVENT_BYTES_MAX;

/// Bytes of one block of input.
const BLOCK_BYTES: usize = 256 << 10;

/// Blocks that may wait between the reading thread and the socket.
const BLOCKS_MAX: usize = 4;

/// Rejected events that are told one by one.
const REJECTS_TOLD_MAX: u64 = 10;

/// Longest line that is accepted from the agent.
const ANSWER_BYTES_MAX: u64 = 4096;

/// What to send, and where.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Source; `None`: the agent's only one, or the one the key names.
    pub source: Option<String>,
    /// Write key, where the source wants one.
    pub key: Option<String>,
    /// Files, `-` being standard input; none: standard input.
    pub files: Vec<PathBuf>,
    /// The total as JSON.
    pub json: bool,
    /// No progress bar and no total.
    pub quiet: bool,
}

/// What became of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Total {
    /// Events that are durable.
    pub accepted: u64,
    /// Events that the agent refused.
    pub rejected: u64,
    /// Events that were sent but not settled when the connection ended.
    pub unsettled: u64,
    /// Bytes of input that were read.
    pub bytes: u64,
}

/// Why not everything is durable. Rejected events are no error of this kind: they are in the [`Total`].
#[derive(Debug)]
pub enum SendError {
    /// No agent answers at the socket.
    Connect(PathBuf, io::Error),
    /// The agent's answer to the hello.
    Refused(String),
    /// An input cannot be read.
    Input(PathBuf, io::Error),
    /// A source name or key that the hello line cannot carry.
    Option(&'static str),
    /// The agent stopped, or said why it closes.
    Closed(String),
    /// The user did not want to wait.
    Interrupted,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(path, error) => {
                write!(
                    f,
                    "cannot connect to {}: {error}; is the agent running (`forebay run`), and is this its listen.socket?",
                    path.display()
                )
            }
            Self::Refused(answer) => write!(f, "the agent refuses the connection: {answer}"),
            Self::Input(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::Option(name) => write!(f, "--{name} must not hold spaces or control characters"),
            Self::Closed(reason) => write!(f, "the agent closed the connection: {reason}"),
            Self::Interrupted => f.write_str("interrupted; the rest of the input was not read"),
        }
    }
}

impl std::error::Error for SendError {}

/// Sends everything and prints the total. The exit code is success only if every event is durable.
#[allow(clippy::disallowed_methods, reason = "how long it took, for the person who waits")]
pub async fn run(options: SendOptions) -> ExitCode {
    let started = Instant::now();
    let bar = progress_bar(&options);
    let outcome = send(&options, &bar).await;
    bar.finish_and_clear();
    let (total, error) = match outcome {
        Ok(total) => (total, None),
        Err((total, error)) => (total, Some(error)),
    };
    if total.rejected > REJECTS_TOLD_MAX {
        eprintln!("forebay send: {} more events were rejected", total.rejected - REJECTS_TOLD_MAX);
    }
    if let Some(error) = &error {
        eprintln!("forebay send: {error}");
        if total.unsettled > 0 {
            let settled = total.accepted + total.rejected;
            eprintln!("forebay send: events 1 to {settled} are settled; send again from event {}", settled + 1);
        }
    }
    let complete = error.is_none() && total.rejected == 0 && total.unsettled == 0;
    if let Err(error) = print_total(&options, &total, started.elapsed(), complete) {
        eprintln!("forebay send: cannot print the total: {error}");
        return ExitCode::FAILURE;
    }
    if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_total(options: &SendOptions, total: &Total, took: Duration, complete: bool) -> io::Result<()> {
    let Total { accepted, rejected, unsettled, bytes } = total;
    if options.json {
        let total = serde_json::json!({
            "accepted": accepted, "rejected": rejected, "unsettled": unsettled, "bytes": bytes,
            "seconds": took.as_secs_f64(), "complete": complete,
        });
        super::print(&format!("{total}\n"))
    } else if !options.quiet {
        let seconds = took.as_secs_f64();
        super::print(&format!("accepted {accepted} rejected {rejected} bytes {bytes} in {seconds:.3} s\n"))
    } else {
        Ok(())
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(options: &SendOptions) -> ProgressBar {
    if options.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let sizes =
        options.files.iter().map(|file| std::fs::metadata(file).ok().filter(|meta| meta.is_file()).map(|meta| meta.len()));
    let known: Option<u64> = if options.files.is_empty() { None } else { sizes.sum() };
    let (bar, template) = match known {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}  {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}  {msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// How far both directions are; each figure has one writer.
#[derive(Debug, Default)]
struct Progress {
    sent: AtomicU64,
    bytes: AtomicU64,
    settled: AtomicU64,
    rejected: AtomicU64,
}

impl Progress {
    fn total(&self) -> Total {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (settled, rejected) = (read(&self.settled), read(&self.rejected));
        Total {
            accepted: settled.saturating_sub(rejected),
            rejected,
            unsettled: read(&self.sent).saturating_sub(settled),
            bytes: read(&self.bytes),
        }
    }
}

/// Sends everything; `bar` is moved along.
///
/// # Errors
/// What was settled before the error, and the error.
pub async fn send(options: &SendOptions, bar: &ProgressBar) -> Result<Total, (Total, SendError)> {
    let (answers, write, event_bytes_max) = connect(options).await.map_err(|error| (Total::default(), error))?;
    let progress = Progress::default();
    let (stop, stopping) = watch::channel(false);
    let blocks = read_input(options.files.clone());
    let mut sending = pin!(send_blocks(write, blocks, event_bytes_max, stopping, &progress, bar));
    let mut hearing = pin!(hear(answers, &progress, bar));
    let mut sent = None;
    let mut interrupts = 0;
    let reason = loop {
        tokio::select! {
            done = &mut sending, if sent.is_none() => sent = Some(done),
            reason = &mut hearing => break reason,
            signal = tokio::signal::ctrl_c(), if interrupts < 2 => {
                interrupts += 1;
                stop.send_replace(true);
                if interrupts == 2 || signal.is_err() {
                    return Err((progress.total(), SendError::Interrupted));
                }
            }
        }
    };
    // The agent closes when it has our whole stream, or because it must; then writing to it fails.
    let sent = match sent {
        Some(sent) => sent,
        None => {
            stop.send_replace(true);
            sending.await
        }
    };
    let total = progress.total();
    let closed = || SendError::Closed(reason.unwrap_or_else(|| "it ended without a word".to_owned()));
    match sent {
        Sent::InputFailed(path, error) => Err((total, SendError::Input(path, error))),
        Sent::Whole | Sent::Stopped if total.unsettled > 0 => Err((total, closed())),
        Sent::Whole => Ok(total),
        Sent::Stopped if interrupts > 0 => Err((total, SendError::Interrupted)),
        Sent::Stopped | Sent::Broken => Err((total, closed())),
    }
}

/// Connects and says hello.
async fn connect(options: &SendOptions) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf, usize), SendError> {
    for (name, value) in [("source", &options.source), ("key", &options.key)] {
        if value.as_ref().is_some_and(|value| value.is_empty() || value.contains(|c: char| c == ' ' || c.is_control())) {
            return Err(SendError::Option(name));
        }
    }
    let failed = |error| SendError::Connect(options.socket.clone(), error);
    let stream = UnixStream::connect(&options.socket).await.map_err(failed)?;
    let (read, mut write) = stream.into_split();
    let hello = Hello { source: options.source.clone(), key: options.key.clone(), ack: true, format: Format::Frames };
    write.write_all(hello.line().as_bytes()).await.map_err(failed)?;
    let mut answers = BufReader::new(read);
    let answer = match answer_line(&mut answers).await {
        Ok(Some(answer)) => answer,
        Ok(None) => return Err(SendError::Refused("it closed without an answer; is it a forebay agent?".to_owned())),
        Err(error) => return Err(failed(error)),
    };
    let Some(facts) = answer.strip_prefix("ok ") else {
        return Err(SendError::Refused(answer.strip_prefix("error ").unwrap_or(&answer).to_owned()));
    };
    let max = facts.split(' ').find_map(|fact| fact.strip_prefix("max_event_bytes=")?.parse().ok());
    Ok((answers, write, max.unwrap_or(EVENT_BYTES_MAX).min(EVENT_BYTES_MAX)))
}

/// One line from the agent, without its newline; `None` at the end.
async fn answer_line(answers: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<String>> {
    use tokio::io::AsyncReadExt as _;
    let mut line = String::new();
    (&mut *answers).take(ANSWER_BYTES_MAX).read_line(&mut line).await?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

/// A block of input, the end of one input, or a failure.
enum Block {
    Bytes(Vec<u8>),
    EndOfFile,
    Failed(PathBuf, io::Error),
}

/// Reads all inputs in order on a thread of its own. The thread ends with the input or when nobody listens.
#[allow(clippy::disallowed_methods, reason = "the user's files are none of the spool's")]
fn read_input(mut files: Vec<PathBuf>) -> mpsc::Receiver<Block> {
    if files.is_empty() {
        files.push(PathBuf::from("-"));
    }
    let (send, blocks) = mpsc::channel(BLOCKS_MAX);
    std::thread::spawn(move || {
        for path in files {
            let opened: io::Result<Box<dyn Read>> = match path.as_os_str() == "-" {
                true => Ok(Box::new(io::stdin().lock())),
                false => File::open(&path).map(|file| Box::new(file) as Box<dyn Read>),
            };
            let outcome = opened.and_then(|mut input| {
                loop {
                    let mut bytes = vec![0; BLOCK_BYTES];
                    match input.read(&mut bytes) {
                        Ok(0) => return Ok(true),
                        Ok(n) => bytes.truncate(n),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error),
                    }
                    if send.blocking_send(Block::Bytes(bytes)).is_err() {
                        return Ok(false);
                    }
                }
            });
            let (last, block) = match outcome {
                Ok(false) => return,
                Ok(true) => (false, Block::EndOfFile),
                Err(error) => (true, Block::Failed(path, error)),
            };
            if send.blocking_send(block).is_err() || last {
                return;
            }
        }
    });
    blocks
}

/// Why sending ended.
#[derive(Debug)]
enum Sent {
    /// All input was sent.
    Whole,
    /// It was told to stop; all that was read was sent.
    Stopped,
    /// The agent takes no more.
    Broken,
    /// An input cannot be read.
    InputFailed(PathBuf, io::Error),
}

/// Cuts blocks into events and sends them, then ends our side of the stream.
async fn send_blocks(
    mut write: OwnedWriteHalf,
    mut blocks: mpsc::Receiver<Block>,
    event_bytes_max: usize,
    mut stopping: watch::Receiver<bool>,
    progress: &Progress,
    bar: &ProgressBar,
) -> Sent {
    let mut splitter = Splitter::new(Format::Lines, event_bytes_max);
    // Too long a line is sent as a frame one byte over the limit, so that the agent refuses and numbers it.
    let too_long = vec![b' '; event_bytes_max + 1];
    let mut frames = Vec::with_capacity(2 * BLOCK_BYTES);
    let end = loop {
        let block = tokio::select! {
            biased;
            // An error means that the other end of the signal is gone, which is as good as a stop.
            _ = stopping.wait_for(|stop| *stop) => break Sent::Stopped,
            block = blocks.recv() => block,
        };
        let mut append = |item: Item<'_>| {
            progress.sent.fetch_add(1, Ordering::Relaxed);
            match item {
                Item::Event { data, .. } => write_frame(&mut frames, &[], data),
                Item::Rejected(_) | Item::Lost => write_frame(&mut frames, &[], &too_long),
            }
        };
        match block {
            Some(Block::Bytes(bytes)) => {
                let mut input = &bytes[..];
                while let Some(item) = splitter.next(&mut input) {
                    append(item);
                }
                progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                bar.inc(bytes.len() as u64);
            }
            // A last line without newline ends with its file.
            Some(Block::EndOfFile) => {
                if let Some(item) = splitter.finish() {
                    append(item);
                }
                splitter = Splitter::new(Format::Lines, event_bytes_max);
            }
            Some(Block::Failed(path, error)) => break Sent::InputFailed(path, error),
            None => break Sent::Whole,
        }
        // Who closes tells why on the other half of the connection.
        if write.write_all(&frames).await.is_err() {
            return Sent::Broken;
        }
        frames.clear();
    };
    match (write.shutdown().await, end) {
        (Err(_), Sent::Whole | Sent::Stopped) => Sent::Broken,
        (_, end) => end,
    }
}

/// Reads `ack`, `reject`, `bye` and `error` lines until the agent closes. Why it did, where it said so.
async fn hear(mut answers: BufReader<OwnedReadHalf>, progress: &Progress, bar: &ProgressBar) -> Option<String> {
    let mut reason = None;
    // Rejects that no `ack` covers yet: the agent writes them first.
    let (mut uncovered, mut rejected) = (0, 0);
    loop {
        let line = match answer_line(&mut answers).await {
            Ok(Some(line)) => line,
            Ok(None) => return reason,
            Err(error) => return Some(error.to_string()),
        };
        match line.split_once(' ') {
            Some(("ack", count)) if count.parse::<u64>().is_ok() => {
                rejected += std::mem::take(&mut uncovered);
                progress.rejected.store(rejected, Ordering::Relaxed);
                progress.settled.store(count.parse().unwrap_or_default(), Ordering::Relaxed);
                bar.set_message(format!("{count} events settled"));
            }
            Some(("reject", rest)) => {
                uncovered += 1;
                if rejected + uncovered <= REJECTS_TOLD_MAX {
                    bar.suspend(|| eprintln!("forebay send: rejected event {rest}"));
                }
            }
            Some(("error", text)) => reason = Some(text.to_owned()),
            _ if line == "bye" => reason = Some("it is stopping".to_owned()),
            _ => reason = Some("it said something that is no acknowledgement".to_owned()),
        }
    }
}
