//! What do the HTTP doors cost: how many events a second do they take, and how much of an event's CPU is parsing?
//!
//! The sketch, guessed before anything was measured, for messages of 500 B in batches of 100: `serde_json::Value` reads JSON of
//! many short strings at 250 to 400 MB/s, 1.5 to 2 µs a message. Segment's door scans twice and copies once: 1.2 µs, 0.6 of
//! it. Amplitude's judges twice and writes 55 columns: about 1.0. mParticle's copies: 0.4, and 0.8 where each event is a record. Of
//! Kinesis's one long string the tree is quick as well, and the door decodes base64 on top: 1.0. A key by one pointer: 0.35. Over
//! HTTP 200,000 events/s; 3 µs of CPU an event at `/v1/batch` and 2.2 at `/ingest`, 35 and 25 percent of it parsing.
//!
//! Measured on 2026-11-20, release build, 2 cores that fuzzers used too, ns a message and its ratio to `serde_json::Value`: Segment's
//! 931 (0.43; verbatim 699, 0.32), Amplitude's 5,542 (2.61), mParticle's 2,619 and 3,262 (1.38, 1.69), Kinesis's 355 (1.19; its JSON
//! alone 0.40), `/ingest` 254 (0.16). Over HTTP, durable: `/v1/batch` 184,977 events/s at 5.24 µs of CPU an event, 18 % of it parsing;
//! `/ingest` 231,961 at 3.38 µs, 8 %. So what HTTP and the way to Kinesis cost was guessed too low, and Amplitude's five times: it
//! judged each event twice, and looked 55 columns up one by one.
//!
//! Since 2026-11-30 Amplitude's takes a body apart in one scan, judges once, and finds columns by the members' numbers: guessed 0.5 of
//! the yardstick, measured 0.38. mParticle's judges in one scan where there were five: 0.86, and 1.03 with a record an event. (The
//! ratios of this table alone, on a busy machine.)
//!
//! How to run: `cargo bench --bench doors`, or with options `-- --quick`, `--seconds 20`, `--connections 8`, `--only parsers`,
//! `--only /v1/batch`, `--only /ingest`, `--dir PATH` (where the spool lies; by default below `target/`, never a tmpfs).
//! `benches/doors/parsers.rs` has the first table: the pure parts, in this process. Then the real agent takes the same messages
//! over keep-alive connections, each with one request under way, and delivers them (`kpl`) to a sink that is a process of
//! its own; the generator is threads of this one.
//!
//! What is measured: events in requests that were answered 200, after the sync, for so many seconds; the agent's user and system
//! time from the first event to the last one delivered; and in it the share of the first table's time. The bench fails if
//! events sent, accepted and delivered differ.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "../tests/common/agent.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod agent;
#[path = "doors/parsers.rs"]
mod parsers;
#[path = "../tests/common/sink.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod sink;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, Setup};
use parsers::{Cost, MESSAGES};

/// Bodies that each connection sends in turn, so that keys differ.
const BODIES: usize = 32;

/// The command line.
#[derive(Clone, Debug)]
struct Options {
    seconds: f64,
    connections: usize,
    only: Option<String>,
    dir: PathBuf,
    /// This process is the sink.
    sink: bool,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_forebay"));
        let target = binary.parent().and_then(Path::parent).ok_or("the binary lies in no target directory")?;
        let mut options = Self { seconds: 10.0, connections: 8, only: None, dir: target.join("doors"), sink: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--quick" => options.seconds = 2.0,
                "--sink" => options.sink = true,
                "--seconds" => options.seconds = value()?.parse().map_err(|_| "--seconds takes a number")?,
                "--connections" => options.connections = value()?.parse().map_err(|_| "--connections takes a number")?,
                "--only" => options.only = Some(value()?),
                "--dir" => options.dir = value()?.into(),
                _ => return Err(format!("no option {name}; the head of benches/doors.rs tells them")),
            }
        }
        match options.only.as_deref() {
            None | Some("parsers" | "/v1/batch" | "/ingest") => Ok(options),
            Some(other) => Err(format!("--only takes parsers, /v1/batch or /ingest, not {other}")),
        }
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

/// The sink's process; ended when dropped.
struct Sink {
    child: Child,
    endpoint: String,
}

impl Sink {
    fn start() -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("--sink").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut endpoint = String::new();
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        BufReader::new(output).read_line(&mut endpoint)?;
        Ok(Self { child, endpoint: endpoint.trim_end().to_owned() })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() {
            self.child.wait().expect("a killed child ends");
        }
    }
}

/// Sends requests one after the other over one connection until `end`; the events of those answered with 200.
fn post(address: SocketAddr, mut requests: Vec<Vec<u8>>, end: Instant) -> io::Result<u64> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    let mut events = 0;
    let (mut line, mut body) = (String::new(), Vec::new());
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        let request = &mut requests[round % BODIES];
        number_ids(request, round);
        writer.write_all(request)?;
        let (mut status, mut len) = (String::new(), 0);
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::Error::other("the agent closed a connection"));
            }
            if status.is_empty() {
                line.trim_end().clone_into(&mut status);
            } else if let Some((name, value)) = line.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    len = value.trim().parse().map_err(io::Error::other)?;
                }
            } else {
                break;
            }
        }
        body.resize(len, 0);
        reader.read_exact(&mut body)?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(format!("the agent answered {status}: {}", String::from_utf8_lossy(&body))));
        }
        events += MESSAGES as u64;
    }
    Ok(events)
}

/// Gives all messages of a request ids that none had before: those of copies are left out by the agent.
fn number_ids(request: &mut [u8], round: usize) {
    let places: Vec<usize> = memchr::memmem::find_iter(request, parsers::ID).map(|at| at + parsers::ID.len()).collect();
    for at in places {
        request[at..at + 10].copy_from_slice(format!("{round:010}").as_bytes());
    }
}

fn requests(path: &str, address: SocketAddr, connection: usize) -> Vec<Vec<u8>> {
    (0..BODIES)
        .map(|body| {
            let first = (connection * BODIES + body) * MESSAGES;
            let (kind, body) = match path {
                "/v1/batch" => ("application/json", parsers::segment_body(first)),
                _ => ("application/x-ndjson", parsers::lines_body(first)),
            };
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {kind}\r\nContent-Length: {}", body.len());
            [head.as_bytes(), b"\r\n\r\n", body.as_bytes()].concat()
        })
        .collect()
}

/// The whole way through one door. `cost`: of its parsing, if it was measured.
fn run(options: &Options, path: &str, cost: Option<Cost>) -> io::Result<()> {
    let dir = options.dir.join(path.trim_start_matches('/').replace('/', "-"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    let sink = Sink::start()?;
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_forebay"), &dir, sink.endpoint.clone(), "kpl");
    setup.spool = "max_bytes = \"8GiB\"".to_owned();
    setup.more = "\n[[source]]\nname = \"segment\"\nkind = \"segment\"\nstream = \"events\"\n".to_owned();
    // Free at this moment, and nothing else on the machine is likely to take the next one given out.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    setup.env.push(("FOREBAY_LISTEN__HTTP", address.to_string()));
    let mut agent = Agent::start(&setup);

    let all: Vec<Vec<Vec<u8>>> = (0..options.connections).map(|connection| requests(path, address, connection)).collect();
    let (begun, cpu_before) = (Instant::now(), agent.cpu());
    let end = begun + Duration::from_secs_f64(options.seconds);
    let threads: Vec<_> = all.into_iter().map(|requests| thread::spawn(move || post(address, requests, end))).collect();
    let mut events = 0;
    for thread in threads {
        events += thread.join().map_err(|_| io::Error::other("a connection's thread panicked"))??;
    }
    let (seconds, accepting) = (begun.elapsed().as_secs_f64(), agent.cpu() - cpu_before);
    let meanwhile = agent.account().delivered;
    let account = agent.wait_drained();
    let (whole, cpu) = (begun.elapsed().as_secs_f64(), agent.cpu() - cpu_before);
    if (account.accepted, account.delivered) != (events, events) {
        return Err(io::Error::other(format!("{path}: {events} events were answered with 200, the agent tells {account:?}")));
    }

    let micros = cpu.as_secs_f64() * 1e6 / events as f64;
    let bytes = parsers::message(0).len() as f64;
    println!("\n{path}: {MESSAGES} messages of {bytes:.0} B a request, {} connections", options.connections);
    let rate = events as f64 / seconds;
    println!("  accepted (durable)        {rate:>9.0} events/s   {:>6.0} MB/s", rate * bytes / 1e6);
    println!("  delivered meanwhile       {:>9.0} events/s", meanwhile as f64 / seconds);
    println!("  whole way                 {:>9.0} events/s   in {whole:.1} s", events as f64 / whole);
    println!(
        "  CPU of the agent          {micros:>9.2} µs an event over the whole way   ({:.2} cores while accepting)",
        accepting.as_secs_f64() / seconds
    );
    println!("  memory, most              {:>9.0} MiB", agent.rss_peak() as f64 / f64::from(1 << 20));
    if let Some(cost) = cost {
        let parsing = cost.nanos / 1000.0;
        println!("  of it parsing             {parsing:>9.2} µs an event   {:>6.0} %", 100.0 * parsing / micros);
    }
    agent.kill();
    std::fs::remove_dir_all(&dir)
}

fn measure(options: &Options) -> io::Result<()> {
    std::fs::create_dir_all(&options.dir)?;
    println!("doors: {} s for each path; spool in {}", options.seconds, options.dir.display());
    println!("{} cores, shared by the agent, the generator and the sink", thread::available_parallelism()?);
    let costs = options.wants("parsers").then(parsers::measure);
    if options.wants("/v1/batch") {
        run(options, "/v1/batch", costs.map(|(segment, _)| segment))?;
    }
    if options.wants("/ingest") {
        run(options, "/ingest", costs.map(|(_, ingest)| ingest))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let done = Options::parse().map_err(io::Error::other).and_then(|options| match options.sink {
        true => sink::serve_until_stdin_closes(sink::Options { shards: 1024, delay: Duration::ZERO, mode: sink::Mode::Count }),
        false => measure(&options),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("doors: {error}");
            ExitCode::FAILURE
        }
    }
}
