//! How long do events of new keys take beside a backlog, against without one?
//!
//! Place: `benches/backlog.rs` runs it with `--fresh`: the real agent, started on a backlog of many keys in all shards; a client
//! of the socket that sends twenty events of new keys a second, before it and beside it; a Kinesis over loopback HTTP with a
//! round trip of 20 ms. What an event takes is told from the client's write to its record's arrival.
//!
//! Expected: without a backlog `linger`, 50 ms; beside it less for most, since an aggregate leaves every 50 ms anyway, and one
//! more such wait for those that come while one is under way. Measured with `cargo bench --profile dev --bench backlog -- --fresh
//! --gib 0.25 --shards 4` on two busy cores, 2026-11-20: p50 and p99 51.4 and 55.9 ms without, 26.4 and 67.4 ms beside it, while
//! it drained at 1.06 MiB/s a shard, all that a shard takes. Then the agent is stopped in the middle and started again: every
//! event must have arrived once (240,400 of 240,400, 138,980 of them pending at the stop).

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::agent::{Agent, Setup};
use super::sink::{self, Mode, Sink};
use super::{Options, fill, host, mib};

/// Events of new keys a second, and how long they are sent.
const RATE: u64 = 20;
const SECONDS: u64 = 20;

/// The middle, and the slowest of a hundred, milliseconds.
type Delays = (f64, f64);

fn measure(setup: &Setup, sink: &Sink, name: &str) -> Result<Delays, String> {
    let mut socket = UnixStream::connect(setup.socket()).map_err(|error| error.to_string())?;
    let mut sent = HashMap::new();
    for n in 0..RATE * SECONDS {
        let key = format!("{name}-{n}");
        let line = format!("{{\"userId\":\"{key}\",\"n\":1,\"text\":\"{}\"}}\n", "x".repeat(150));
        sent.insert(key, Instant::now());
        socket.write_all(line.as_bytes()).map_err(|error| error.to_string())?;
        thread::sleep(Duration::from_secs(1) / RATE as u32);
    }
    thread::sleep(Duration::from_secs(1));
    let mut took: Vec<f64> = sink
        .all_events()
        .filter_map(|arrived| Some(arrived.at.duration_since(*sent.get(&arrived.event.key)?).as_secs_f64() * 1e3))
        .collect();
    took.sort_unstable_by(f64::total_cmp);
    let all = sent.len();
    if took.len() < all * 99 / 100 {
        return Err(format!("{name}: only {} of {all} events arrived within a second", took.len()));
    }
    Ok((took[took.len() / 2], took[took.len() * 99 / 100]))
}

/// Tells both delays; an error when beside the backlog one is more than twice the other.
pub fn run(options: &Options) -> Result<(), String> {
    let sink_options = sink::Options { shards: options.shards, delay: Duration::from_millis(20), mode: Mode::Keep };
    let binary = options.agent.to_str().ok_or("the agent's path is no text")?;
    let start = |name: &str| {
        let sink = Sink::start(sink_options).map_err(|error| error.to_string())?;
        let setup = Setup::new(binary, options.dir.join(name), sink.endpoint(), options.aggregate);
        Ok::<_, String>((sink, setup))
    };

    let (sink, setup) = start("without")?;
    let agent = Agent::start(&setup);
    measure(&setup, &sink, "warm")?;
    let without = measure(&setup, &sink, "new")?;
    if !agent.terminate().success() {
        return Err("the agent did not end well".to_owned());
    }

    let (sink, setup) = start("beside")?;
    let bytes = options.gib * f64::from(1 << 30);
    let backlog = fill(&host(options), &setup.dir.join("spool/events"), bytes, options.event_bytes, |_| false);
    let content = backlog.events * backlog.frame_bytes;
    println!("backlog: {} events, {} MiB of frames, {} shards", backlog.events, mib(content), options.shards);
    let begin = Instant::now();
    let mut agent = Agent::start(&setup);
    agent.wait_for("events that go ahead", |_| setup.log_text().contains("go ahead of it"));
    println!("its keys are known {:.1} s after the start", begin.elapsed().as_secs_f64());
    let before = agent.account().pending;
    let beside = measure(&setup, &sink, "new")?;
    let left = agent.account().pending;
    println!(
        "new keys, {RATE} events/s, p50 and p99: {:.1} and {:.1} ms without a backlog, {:.1} and {:.1} ms beside it (x{:.2} and x{:.2})",
        without.0,
        without.1,
        beside.0,
        beside.1,
        beside.0 / without.0,
        beside.1 / without.1
    );
    let seconds = (SECONDS + 1) as f64;
    println!(
        "meanwhile {:.2} MiB/s of the backlog a shard; {} MiB of it left",
        mib((before - left) * backlog.frame_bytes) as f64 / seconds / options.shards as f64,
        mib(left * backlog.frame_bytes)
    );
    if left == 0 {
        return Err("the backlog was too small: it is gone".to_owned());
    }
    // A clean stop in the middle: what went ahead is known to the next start.
    agent.ask_to_end();
    thread::sleep(Duration::from_secs(1));
    // Once more: now.
    agent.ask_to_end();
    agent.wait_end();
    let mut agent = Agent::start(&setup);
    let then = agent.account();
    agent.wait_for("the rest of the backlog", |agent| agent.account().pending == 0);
    let arrived: u64 = sink.all_events().count() as u64;
    let wanted = backlog.events + RATE * SECONDS;
    println!("stopped with {} events pending and started again: {arrived} events arrived of {wanted}", then.pending);
    if !agent.terminate().success() || arrived != wanted {
        return Err(format!("NOTHING-LOST, DUPLICATES-EXPLAINED: {arrived} events arrived of {wanted}"));
    }
    if beside.0 > 2.0 * without.0 || beside.1 > 2.0 * without.1 {
        return Err("events of new keys take more than twice as long beside a backlog".to_owned());
    }
    Ok(())
}
