//! What does key order cost? Two agents drain the same backlog side by side, one with `order = "key"` and one with
//! `"none"`, each into a stream of its own whose shards take 1 MiB and 1,000 records a second, as Kinesis' do.
//!
//! What is promised (*KEY-ORDER*, *INSIDE-THE-LIMITS*): with `aggregate = "kpl"`, full key order at 98 % of what `"none"`
//! reaches at least, and both at 97 % of the shards' capacity. The sketch: order lets one aggregate of a shard be under way
//! at a time, so with 20 ms of round trip and 256 KiB a shard could take 12 MiB/s; the limit of 1 MiB/s binds first, for both.
//!
//! How to run: `cargo bench --bench order`, or with options `-- --shards 8`, `--seconds 20` (measured, after
//! `--warm-seconds 5`), `--delay-ms 20` (the sinks' round trip), `--event-bytes 300`, `--agent PATH`. Both are measured in
//! one run over the same seconds, so that a noisy machine is noisy for both. Every record is taken apart and each
//! key's sequence followed. Fails when a promise is broken, or when a key's events arrive out of order with `"key"`.
//!
//! Measured on two busy cores (load 9), release build, 2026-11-20, twice: both at 99.9 % of the shards' bytes (8 shards, the
//! least 99.8 %), 26,780 events/s each, nothing throttled, key order at 100.0 % of none. With `--delay-ms 400` it fails, as it
//! must: 256 KiB a round trip are 62 % of a shard.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "../tests/common/agent.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod agent;
#[path = "common/fill.rs"]
mod fill;
#[path = "../tests/common/sink.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod sink;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, Setup};
use forebay::host::Host;
use sink::{Mode, Sink, Stats};

const SHARD_BYTES_PER_SECOND: f64 = forebay::limits::SHARD_BYTES_PER_SECOND as f64;

#[derive(Clone, Debug)]
struct Options {
    shards: usize,
    seconds: f64,
    warm_seconds: f64,
    delay_ms: u64,
    event_bytes: usize,
    agent: PathBuf,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let agent = PathBuf::from(env!("CARGO_BIN_EXE_forebay"));
        let mut options = Self { shards: 8, seconds: 20.0, warm_seconds: 5.0, delay_ms: 20, event_bytes: 300, agent };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            let bad = |error| format!("{name}: {error}");
            match name.as_str() {
                "--bench" => {}
                "--shards" => options.shards = value()?.parse().map_err(|error| bad(format!("{error}")))?,
                "--seconds" => options.seconds = value()?.parse().map_err(|error| bad(format!("{error}")))?,
                "--warm-seconds" => options.warm_seconds = value()?.parse().map_err(|error| bad(format!("{error}")))?,
                "--delay-ms" => options.delay_ms = value()?.parse().map_err(|error| bad(format!("{error}")))?,
                "--event-bytes" => options.event_bytes = value()?.parse().map_err(|error| bad(format!("{error}")))?,
                "--agent" => options.agent = value()?.into(),
                other => return Err(format!("unknown option {other}; see the head of benches/order.rs")),
            }
        }
        Ok(options)
    }
}

/// One of the two.
struct Side {
    order: &'static str,
    sink: Sink,
    agent: Agent,
}

/// What a sink held at a moment.
struct Mark {
    at: Instant,
    stats: Stats,
    bytes: Vec<u64>,
}

impl Side {
    fn start(options: &Options, order: &'static str, dir: PathBuf) -> Result<Self, String> {
        let delay = Duration::from_millis(options.delay_ms);
        let sink = Sink::start(sink::Options { shards: options.shards, delay, mode: Mode::Check });
        let sink = sink.map_err(|error| error.to_string())?;
        sink.set_limited(true);
        let binary = options.agent.to_str().ok_or("the agent's path is no text")?;
        let mut setup = Setup::new(binary, dir, sink.endpoint(), "kpl");
        setup.stream = format!("order = \"{order}\"");
        // A fourth more than the shards can take in that time, since keys do not fall evenly.
        let seconds = options.seconds + options.warm_seconds + 2.0;
        let bytes = seconds * 1.25 * SHARD_BYTES_PER_SECOND * options.shards as f64;
        fill::fill(&Host::real(), &setup.dir.join("spool/events"), bytes, options.event_bytes, |_| false);
        Ok(Self { order, sink, agent: Agent::start(&setup) })
    }

    fn mark(&self) -> Mark {
        Mark { at: Instant::now(), stats: self.sink.stats(), bytes: self.sink.stored_bytes() }
    }
}

/// Between two marks.
struct Rate {
    /// Of what the shards take, over all and of the shard that got least.
    share: f64,
    share_min: f64,
    events_per_second: f64,
}

fn rate(from: &Mark, to: &Mark) -> Rate {
    let seconds = (to.at - from.at).as_secs_f64();
    let shares: Vec<f64> =
        from.bytes.iter().zip(&to.bytes).map(|(from, to)| (to - from) as f64 / seconds / SHARD_BYTES_PER_SECOND).collect();
    Rate {
        share: shares.iter().sum::<f64>() / shares.len() as f64,
        share_min: shares.iter().copied().fold(f64::MAX, f64::min),
        events_per_second: (to.stats.events - from.stats.events) as f64 / seconds,
    }
}

fn run(options: &Options) -> Result<(), String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    fs::create_dir_all(dir.path()).map_err(|error| error.to_string())?;
    let sides = [("key", dir.path().join("key")), ("none", dir.path().join("none"))];
    let sides = sides.into_iter().map(|(order, dir)| Side::start(options, order, dir)).collect::<Result<Vec<_>, _>>()?;
    // The second one was filled while the first one ran.
    thread::sleep(Duration::from_secs_f64(options.warm_seconds));
    let begin: Vec<Mark> = sides.iter().map(Side::mark).collect();
    thread::sleep(Duration::from_secs_f64(options.seconds));
    let end: Vec<Mark> = sides.iter().map(Side::mark).collect();
    let mut broken = Vec::new();
    let mut rates = Vec::new();
    for (n, side) in sides.iter().enumerate() {
        let pending = side.agent.account().pending;
        let (before, after) = (&begin[n].stats, &end[n].stats);
        let rate = rate(&begin[n], &end[n]);
        println!(
            "order = {:6} {:5.1} % of the shards' bytes, {:5.1} % of the least; {:7.0} events/s, {} throttled, {} again, {} gaps, {pending} still pending",
            format!("{:?}", side.order),
            rate.share * 100.0,
            rate.share_min * 100.0,
            rate.events_per_second,
            after.throttled - before.throttled,
            after.duplicates,
            after.gaps,
        );
        if pending == 0 {
            broken.push("the backlog was too small".to_owned());
        }
        if rate.share < 0.97 {
            broken.push(format!("order = {:?} took under 97 % of the capacity", side.order));
        }
        if after.bad_requests > 0 || (side.order == "key" && (after.duplicates, after.gaps) != (0, 0)) {
            broken.push(format!("KEY-ORDER: {after:?}"));
        }
        rates.push(rate);
    }
    let ratio = rates[0].events_per_second / rates[1].events_per_second;
    println!("key order reaches {:.1} % of none", ratio * 100.0);
    if ratio < 0.98 {
        broken.push("key order took under 98 % of what none took".to_owned());
    }
    for side in sides {
        if !side.agent.terminate().success() {
            broken.push(format!("the agent with order = {:?} did not end well", side.order));
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) }
}

fn main() -> ExitCode {
    match Options::parse().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
