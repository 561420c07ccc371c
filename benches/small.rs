//! What does an agent cost a machine on which little happens? Its binary, its start, its memory and its CPU, idle and at
//! 1,000 events a second.
//!
//! The marks: a stripped binary under 20 MiB; from `exec` to the first accepted connection 20 ms; idle, 12 MiB of RSS and 0.05 %
//! of a core; with 1,000 events/s of 300 B, in ten batches a second that are each on disk before they are receipted, 1.5 % of a
//! core. (Fluent Bit on such a machine, without fsync: 12.8 MiB, 16 ms, 0.13 %, 1.4 %.) The sketch: nothing in the agent polls,
//! so idle is what timers take, some 25 wakings a second of 5 µs; a batch is a read, a write, an fdatasync, a wake of three
//! threads and a request of 100 records, 0.5 to 1 ms.
//!
//! How to run, with the binary that packages have:
//!
//! ```text
//! cargo build --profile dist --no-default-features
//! cargo bench --bench small -- --agent target/dist/forebay
//! ```
//!
//! or with options `--seconds 20` (of each window), `--starts 20`. Without `--agent` it is the release build, with the embedded
//! Kinesis, which is larger than its mark. Exit code 1 when a mark is missed.
//!
//! How it is measured: the binary is copied and stripped first, since pages of debug information are never mapped but its size
//! is. A start is timed from before the process is made to a connection to its socket, on a spool that exists; the median counts. CPU
//! is the scheduler's own count of nanoseconds over all threads (`/proc/PID/task/*/schedstat`); that of the kernel's workers,
//! which write the disk, belongs to nobody and is not in it. RSS is `VmRSS` 3 s after everything became quiet, most of it pages of the
//! binary that all agents share, so what is the agent's alone (`RssAnon`) is printed beside it.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "../tests/common/agent.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod agent;
#[path = "../tests/common/sink.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod sink;

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, Setup};
use sink::{Mode, Sink};

/// Events of one batch; ten batches a second.
const BATCH: usize = 100;

/// Bytes of an event, its newline not counted.
const EVENT_BYTES: usize = 300;

#[derive(Clone, Debug)]
struct Options {
    agent: PathBuf,
    seconds: f64,
    starts: usize,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self { agent: env!("CARGO_BIN_EXE_forebay").into(), seconds: 20.0, starts: 20 };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--bench" => {}
                "--agent" => options.agent = value()?.into(),
                "--seconds" => options.seconds = value()?.parse().map_err(|error| format!("{name}: {error}"))?,
                "--starts" => options.starts = value()?.parse().map_err(|error| format!("{name}: {error}"))?,
                other => return Err(format!("no option {other}; the head of benches/small.rs tells them")),
            }
        }
        if options.starts == 0 { Err("--starts: at least 1".to_owned()) } else { Ok(options) }
    }
}

/// What was found, against its mark.
struct Marks {
    missed: Vec<&'static str>,
}

impl Marks {
    fn tell(&mut self, name: &'static str, found: f64, most: f64, unit: &str, more: &str) {
        let verdict = if found <= most { "" } else { "   MISSED" };
        println!("  {name:<34}{found:>8.3} {unit:<4}  (at most {most}){more}{verdict}");
        if found > most {
            self.missed.push(name);
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// CPU of all threads so far. Threads that end take their count along; none does while we look.
fn cpu(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
        nanos += first.ok_or_else(|| io::Error::other("schedstat is not in its form"))?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Percent of a core during `work`.
fn busy(pid: u32, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let (before, start) = (cpu(pid)?, Instant::now());
    work()?;
    Ok((cpu(pid)? - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// The binary without its debug information, as packages have it.
fn stripped(agent: &Path, dir: &Path) -> io::Result<PathBuf> {
    let to = dir.join("forebay");
    let done = Command::new("strip").arg("-o").arg(&to).arg(agent).status();
    match done {
        Ok(code) if code.success() => Ok(to),
        Ok(code) => Err(io::Error::other(format!("strip {}: {code}", agent.display()))),
        Err(error) => Err(io::Error::other(format!("strip (of binutils) cannot be run: {error}"))),
    }
}

/// Time from before the process is made until it takes a connection.
fn start_once(setup: &Setup) -> io::Result<Duration> {
    // Left by the one before; a connection to it would be refused, and the time it takes to be replaced counts.
    if setup.socket().exists() {
        fs::remove_file(setup.socket())?;
    }
    let start = Instant::now();
    let agent = Agent::spawn(setup);
    while UnixStream::connect(setup.socket()).is_err() {
        if start.elapsed() > agent::DEADLINE {
            return Err(io::Error::other(format!("it does not start; the log:\n{}", setup.log_tail())));
        }
        thread::sleep(Duration::from_micros(200));
    }
    let took = start.elapsed();
    agent.terminate();
    Ok(took)
}

/// Sends ten batches a second, each receipted before the next is due; gives the number of events.
fn load(socket: &Path, seconds: f64) -> io::Result<u64> {
    let mut stream = UnixStream::connect(socket)?;
    let mut lines = BufReader::new(stream.try_clone()?);
    stream.write_all(b"forebay/1 ack=on\n")?;
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let start = Instant::now();
    let mut sent = 0;
    for batch in 0.. {
        let due = start + Duration::from_millis(100 * batch);
        if due.duration_since(start).as_secs_f64() >= seconds {
            break;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut text = String::with_capacity(BATCH * (EVENT_BYTES + 1));
        for _ in 0..BATCH {
            let head = format!(r#"{{"userId":"u{:06}","n":{sent},"text":""#, sent % 1000);
            text.push_str(&head);
            text.extend(std::iter::repeat_n('x', EVENT_BYTES - head.len() - 2));
            text.push_str("\"}\n");
            sent += 1;
        }
        stream.write_all(text.as_bytes())?;
        while !line.trim_end().ends_with(&format!("ack {sent}")) {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(sent)
}

fn measure(options: &Options) -> io::Result<bool> {
    let dir = tempfile::tempdir_in(options.agent.parent().unwrap_or(Path::new(".")))?;
    let binary = stripped(&options.agent, dir.path())?;
    let sink = Sink::start(sink::Options { shards: 4, delay: Duration::ZERO, mode: Mode::Count })?;
    let setup = Setup::new(&binary.to_string_lossy(), dir.path().join("agent"), sink.endpoint(), "off");
    let mut marks = Marks { missed: Vec::new() };
    println!("small: {}, windows of {} s", options.agent.display(), options.seconds);
    marks.tell("binary, stripped", mib(fs::metadata(&binary)?.len()), 20.0, "MiB", "");

    let first = start_once(&setup)?;
    let mut starts = (0..options.starts).map(|_| start_once(&setup)).collect::<io::Result<Vec<_>>>()?;
    starts.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let more = format!(
        "   the slowest of {} {:.1}, the first on a new spool {:.1}",
        starts.len(),
        ms(starts[starts.len() - 1]),
        ms(first)
    );
    marks.tell("start to accepting, median", ms(starts[starts.len() / 2]), 20.0, "ms", &more);

    let mut agent = Agent::start(&setup);
    agent.wait_for("the shards to be known", |agent| {
        agent.status().is_some_and(|status| status["streams"][0]["shards"].as_array().is_some_and(|shards| !shards.is_empty()))
    });
    thread::sleep(Duration::from_secs(3));
    let pid = agent.pid();
    let anon = format!("   {:.1} of it the agent's alone", mib(agent.memory("RssAnon")));
    marks.tell("idle: RSS", mib(agent.memory("VmRSS")), 12.0, "MiB", &anon);
    let window = || {
        thread::sleep(Duration::from_secs_f64(options.seconds));
        Ok(())
    };
    marks.tell("idle: CPU, of a core", busy(pid, window)?, 0.05, "%", "");

    let mut sent = 0;
    let percent = busy(pid, || {
        sent = load(&setup.socket(), options.seconds)?;
        Ok(())
    })?;
    let account = agent.wait_drained();
    if (account.accepted, account.delivered, sink.stats().bad_requests) != (sent, sent, 0) {
        return Err(io::Error::other(format!("of {sent} events: {account:?}, {:?}", sink.stats())));
    }
    let more = format!("   {sent} events, all delivered; RSS then {:.1} MiB", mib(agent.memory("VmRSS")));
    marks.tell("1,000 events/s: CPU, of a core", percent, 1.5, "%", &more);
    agent.kill();
    if !marks.missed.is_empty() {
        eprintln!("small: more than it may be: {}", marks.missed.join(", "));
    }
    Ok(marks.missed.is_empty())
}

fn main() -> ExitCode {
    match Options::parse().map_err(io::Error::other).and_then(|options| measure(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("small: {error}");
            ExitCode::FAILURE
        }
    }
}
