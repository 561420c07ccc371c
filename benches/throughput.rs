//! The whole way: the real agent between a generator and a loopback Kinesis, each a process of its own.
//!
//! The question: how many events a second are made durable and delivered, at how much CPU of the agent, in how much
//! memory, and how long does a single event wait for its receipt. The sketch (docs/ARCHITECTURE.md, "Speed"): 3.3 ns a
//! byte and a few tens of ns an event for `kpl`, 0.7 to 0.9 µs for 200 B; some 0.8 µs a record more for `off`. On two
//! cores shared with generator and sink: over 1,000,000 events/s with `kpl`, 350,000 with `off`, limited by CPU.
//!
//! How to run: `cargo bench --bench throughput`, or with options `-- --quick`, `--seconds 30`, `--only kpl-200`,
//! `--delay-ms 20` (the sink's round trip), `--check` (the sink takes every record apart and checks each user's sequence;
//! slower), `--shards 1024`, `--users 1500` (of a connection; 4,000 with `off`, where each waits for its
//! round trip), `--connections 2`, `--dir PATH` (where the spool lies; by default below `target/`, never a
//! tmpfs), `--rate 500000` (events/s offered, to see the CPU of a steady state that delivery keeps up with),
//! `--agent PATH`, `--no-latency`. Each line of the result tells its unit.
//!
//! What is measured: between two moments of the steady state the generator's acknowledged events, the agent's delivered
//! ones (`/status`), and its user and system time (`/proc/PID/stat`). Because acceptance may run ahead of delivery, CPU is
//! also given over the whole way, from the first event to the last one delivered. The bench fails if acknowledged,
//! accepted and delivered differ in the end, or if an event costs more than its case's mark (`MARKS`), a multiple of what its MD5
//! costs in the same run. 1,024 shards, so that neither 1 MiB/s nor 1,000 records/s a shard binds, uneven as
//! the keys fall.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "../tests/common/agent.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod agent;
#[path = "throughput/floor.rs"]
mod floor;
#[path = "throughput/generator.rs"]
mod generator;
#[path = "../tests/common/sink.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod sink;

use std::io::{self, BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, Setup};
use floor::Percentiles;

/// The command line.
#[derive(Clone, Debug)]
struct Options {
    role: Option<String>,
    seconds: f64,
    warm_seconds: f64,
    only: Option<String>,
    delay_ms: u64,
    check: bool,
    shards: usize,
    connections: usize,
    dir: PathBuf,
    agent: PathBuf,
    latency: bool,
    /// Events/s offered; none: as many as the agent takes.
    rate: Option<f64>,
    /// Of the roles.
    socket: PathBuf,
    event_bytes: usize,
    /// Of one connection.
    users: Option<usize>,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_forebay"));
        let target = binary.parent().and_then(Path::parent).ok_or("the binary lies in no target directory")?;
        let mut options = Self {
            role: None,
            seconds: 10.0,
            warm_seconds: 3.0,
            only: None,
            delay_ms: 0,
            check: false,
            shards: 1024,
            connections: 2,
            dir: target.join("throughput"),
            agent: binary,
            latency: true,
            rate: None,
            socket: PathBuf::new(),
            event_bytes: 200,
            users: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
                text.parse().map_err(|_| format!("{name} {text}: a number is meant"))
            }
            match name.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--quick" => (options.seconds, options.warm_seconds) = (2.0, 0.5),
                "--check" => options.check = true,
                "--no-latency" => options.latency = false,
                "--seconds" => options.seconds = number(&name, &value()?)?,
                "--warm-seconds" => options.warm_seconds = number(&name, &value()?)?,
                "--delay-ms" => options.delay_ms = number(&name, &value()?)?,
                "--users" => options.users = Some(number(&name, &value()?)?),
                "--shards" => options.shards = number(&name, &value()?)?,
                "--connections" => options.connections = number(&name, &value()?)?,
                "--rate" => options.rate = Some(number(&name, &value()?)?),
                "--event-bytes" => options.event_bytes = number(&name, &value()?)?,
                "--only" => options.only = Some(value()?),
                "--dir" => options.dir = value()?.into(),
                "--agent" => options.agent = value()?.into(),
                "--socket" => options.socket = value()?.into(),
                "--role" => options.role = Some(value()?),
                _ => return Err(format!("no option {name}; the head of benches/throughput.rs tells them")),
            }
        }
        Ok(options)
    }
}

/// A process of this same program in another role; ended when dropped.
struct Role {
    child: Child,
    input: ChildStdin,
    output: io::BufReader<ChildStdout>,
}

impl Role {
    fn start(name: &str, arguments: &[(&str, String)]) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--role", name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (option, value) in arguments {
            command.args([option, value.as_str()]);
        }
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let pipes = input.zip(output).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, input: pipes.0, output: io::BufReader::new(pipes.1) })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err(io::Error::other("a helper process ended early")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn ask(&mut self, command: &str) -> io::Result<u64> {
        writeln!(self.input, "{command}")?;
        self.line()?.parse().map_err(|_| io::Error::other("a helper process answered no number"))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() {
            self.child.wait().expect("a killed child ends");
        }
    }
}

/// What each case may cost at most: CPU of the agent an event over the whole way, as a multiple of what one core needs for the MD5
/// of the event's bytes in the same run. Half more than was measured on a quiet machine: neighbours make it dearer by a third.
const MARKS: [(&str, usize, f64); 4] = [("kpl", 200, 6.5), ("kpl", 1024, 4.5), ("off", 200, 15.0), ("off", 1024, 4.7)];

/// One moment of a run.
struct Moment {
    at: Instant,
    acked: u64,
    delivered: u64,
    cpu: Duration,
}

impl Moment {
    fn now(agent: &Agent, load: &mut Role) -> io::Result<Self> {
        let (acked, delivered) = (load.ask("snap")?, agent.account().delivered);
        Ok(Self { at: Instant::now(), acked, delivered, cpu: agent.cpu() })
    }
}

/// Runs one case. Gives the CPU of the agent an event over the whole way, µs.
fn run(options: &Options, aggregate: &'static str, event_bytes: usize) -> io::Result<f64> {
    let name = format!("{aggregate}-{event_bytes}");
    let dir = options.dir.join(&name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    let mode = if options.check { "check-sink" } else { "sink" };
    let (shards, delay) = (options.shards.to_string(), options.delay_ms.to_string());
    let mut sink = Role::start(mode, &[("--shards", shards), ("--delay-ms", delay)])?;
    let endpoint = sink.line()?;
    let mut setup = Setup::new(&options.agent.to_string_lossy(), &dir, endpoint.clone(), aggregate);
    setup.spool = "max_bytes = \"8GiB\"".to_owned();
    let mut agent = Agent::start(&setup);
    println!("\n{name}: events of {event_bytes} B, aggregate = \"{aggregate}\"");

    let socket = ("--socket", setup.socket().to_string_lossy().into_owned());
    let bytes = ("--event-bytes", event_bytes.to_string());
    let mut single = 0;
    if options.latency {
        // Just before, because the machine is shared and its disk is not the same twice.
        println!("  fdatasync of a 4 KiB append      {}", floor::disk(&dir, 1000)?);
        let seconds = options.seconds.clamp(1.0, 5.0) as u64;
        let mut role = Role::start("latency", &[socket.clone(), bytes.clone(), ("--seconds", seconds.to_string())])?;
        let mut nanos = Vec::new();
        while nanos.len() < (seconds * 1000) as usize {
            nanos.push(role.line()?.parse().map_err(io::Error::other)?);
        }
        single = nanos.len() as u64;
        println!("  receipt, 1,000 single events/s   {}", Percentiles::of(nanos));
        agent.wait_drained();
    }

    let connections = ("--connections", options.connections.to_string());
    let (begun, cpu_before) = (Instant::now(), agent.cpu());
    let mut arguments = vec![socket, bytes, connections];
    arguments.extend(options.rate.map(|rate| ("--rate", rate.to_string())));
    let users = options.users.unwrap_or(if aggregate == "off" { 4000 } else { generator::USERS });
    arguments.push(("--users", users.to_string()));
    let mut load = Role::start("generator", &arguments)?;
    thread::sleep(Duration::from_secs_f64(options.warm_seconds));
    let from = Moment::now(&agent, &mut load)?;
    thread::sleep(Duration::from_secs_f64(options.seconds));
    let to = Moment::now(&agent, &mut load)?;
    let acked = load.ask("stop")?;
    let account = agent.wait_drained();
    let (whole, cpu) = (begun.elapsed().as_secs_f64(), agent.cpu() - cpu_before);

    let seconds = (to.at - from.at).as_secs_f64();
    let (accepted, delivered) = (to.acked - from.acked, to.delivered - from.delivered);
    let micros = |cpu: Duration, events: u64| cpu.as_secs_f64() * 1e6 / events.max(1) as f64;
    let rate = |events: u64| events as f64 / seconds;
    let megabytes = |events: u64| rate(events) * event_bytes as f64 / 1e6;
    let window_cpu = to.cpu - from.cpu;
    println!("  accepted (durable)               {:>9.0} events/s   {:>6.0} MB/s", rate(accepted), megabytes(accepted));
    println!("  delivered meanwhile              {:>9.0} events/s   {:>6.0} MB/s", rate(delivered), megabytes(delivered));
    println!("  whole way, last event delivered  {:>9.0} events/s   in {whole:.1} s", acked as f64 / whole);
    println!(
        "  CPU of the agent                 {:>9.2} µs an event over the whole way   ({:.2} µs an accepted one in the window, {:.2} cores)",
        micros(cpu, acked),
        micros(window_cpu, accepted),
        window_cpu.as_secs_f64() / seconds
    );
    println!("  memory, most                     {:>9.0} MiB", agent.rss_peak() as f64 / f64::from(1 << 20));

    let address = endpoint.trim_start_matches("http://").parse().map_err(io::Error::other)?;
    let stats = serde_json::from_slice(&sink::http_get(address, "/stats")?.1).map_err(io::Error::other)?;
    let stats = sink::Stats::from_json(&stats).ok_or_else(|| io::Error::other("the sink told no totals"))?;
    println!(
        "  {} events in {} records in {} requests; {} throttled",
        account.delivered, stats.records, stats.requests, stats.throttled
    );
    let events = acked + single;
    let wrong = |what: &str, found: u64| io::Error::other(format!("{name}: {events} events acknowledged, {found} {what}"));
    if account.accepted != events {
        return Err(wrong("accepted", account.accepted));
    }
    if account.delivered != events {
        return Err(wrong("delivered", account.delivered));
    }
    if stats.bad_requests > 0 {
        return Err(wrong("requests refused by the sink", stats.bad_requests));
    }
    if options.check {
        println!("  checked: {} events, {} duplicates, {} gaps", stats.events, stats.duplicates, stats.gaps);
        if stats.events - stats.duplicates != events || stats.gaps > 0 {
            return Err(wrong("arrived once and in order", stats.events - stats.duplicates - stats.gaps));
        }
    }
    agent.kill();
    std::fs::remove_dir_all(&dir)?;
    Ok(micros(cpu, acked))
}

fn measure(options: &Options) -> io::Result<()> {
    std::fs::create_dir_all(&options.dir)?;
    println!(
        "throughput: {} s after {} s of warming up; spool in {}",
        options.seconds,
        options.warm_seconds,
        options.dir.display()
    );
    let cores = thread::available_parallelism()?;
    println!(
        "{cores} cores, shared by the agent, the generator ({} connections) and the sink ({} shards, answers after {} ms)",
        options.connections, options.shards, options.delay_ms
    );
    println!("\nthe floor of this run");
    let core = floor::core();
    let shown: Vec<String> = core.iter().map(|(name, rate)| format!("{name} {rate:.0}")).collect();
    println!("  one core, MB/s                   {}", shown.join("   "));
    let md5 = core.iter().find(|(name, _)| *name == "MD5").map_or(f64::NAN, |(_, rate)| *rate);
    let (mut any, mut over) = (false, Vec::new());
    for (aggregate, event_bytes, mark) in MARKS {
        let name = format!("{aggregate}-{event_bytes}");
        if options.only.as_ref().is_none_or(|only| *only == name) {
            let times = run(options, aggregate, event_bytes)? / (event_bytes as f64 / md5);
            println!("  that is                          {times:>9.1} times the MD5 of its bytes   (at most {mark:.1})");
            if times > mark {
                over.push(name);
            }
            any = true;
        }
    }
    if !any {
        return Err(io::Error::other("--only takes kpl-200, kpl-1024, off-200 or off-1024"));
    }
    if over.is_empty() { Ok(()) } else { Err(io::Error::other(format!("dearer than it may be: {}", over.join(", ")))) }
}

fn main() -> ExitCode {
    let done = Options::parse().map_err(io::Error::other).and_then(|options| {
        let delay = Duration::from_millis(options.delay_ms);
        let sink = |mode| sink::Options { shards: options.shards, delay, mode };
        match options.role.as_deref() {
            None => measure(&options),
            Some("sink") => sink::serve_until_stdin_closes(sink(sink::Mode::Count)),
            Some("check-sink") => sink::serve_until_stdin_closes(sink(sink::Mode::Check)),
            Some("generator") => generator::load(
                &options.socket,
                options.connections,
                options.users.unwrap_or(generator::USERS),
                options.event_bytes,
                options.rate,
            ),
            Some("latency") => generator::latency(&options.socket, options.event_bytes, options.seconds as u64),
            Some(other) => Err(io::Error::other(format!("no role {other}"))),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}
