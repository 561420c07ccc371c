//! A backlog of many GiB: how long does opening it take, how much memory does draining it take, and how much disk does it
//! use while some shards are stuck?
//!
//! What is promised (*BORING-RECOVERY*, *NO-BLOCKING*): opening takes under 1 s for each 10 GiB; RSS stays under 128 MiB
//! above that of an idle agent, because memory is bounded by the budgets in `docs/ARCHITECTURE.md`, whatever the backlog;
//! the disk used stays within one and a half times what is pending plus two segments, because `spool/rewrite.rs` leaves
//! only what is pending of a segment that stuck lanes hold. The sketch: 160 sealed segments are 10 GiB, at one open and
//! three reads each.
//!
//! How to run: `cargo bench --bench backlog`, or with options `-- --gib 8`, `--event-bytes 1024`, `--shards 512`, `--dead 64`
//! (so many of them take nothing until the others have all of theirs), `--aggregate off`,
//! `--fresh --gib 0.25 --shards 4` (how long events of new keys take beside it, `benches/backlog/fresh.rs`),
//! `--compress` (zstd, so that a backlog larger than the disk fits it), `--dir PATH` (by default below
//! `target/`), `--agent PATH`. Frames are written in the real format by the real writer, so that the size is the only thing
//! that is scaled; what was written is removed at the end. Fails when a promise is broken, or when an event arrives out of
//! order, twice, or not at all.
//!
//! Measured with `cargo bench --profile dev --bench backlog -- --gib 6` on two busy cores, 2026-11-20: 6,207 MiB in 97 segments,
//! 64 of 512 shards dead (an eighth of the events). Opening 0.10 s, 0.17 s for each 10 GiB (0.73 s with all else that a
//! start does). Idle 44 MiB of RSS, at most 157 MiB while it drained: 112 MiB above. With only the dead shards' 761 MiB
//! pending, 952 MiB of disk at first and 782 MiB when the last thin segment was rewritten (96 in all); never nearer than
//! 94 MiB to what is allowed. All 6,060,000 events arrived, none twice, each key in order. With 1 GiB and no dead shard: 113
//! MiB above idle, so neither the size of the backlog nor rewriting is what takes the memory.
//!
//! Larger than the disk, `--gib 50 --compress` (release build, the same cores beside much other work): 51,217 MiB of frames in
//! 801 segments and 1,757 MiB on disk; opening 1.1 s, 0.22 s for each 10 GiB of content. That found recovery holding every
//! segment open (190 MiB for 801 coded files), which it no longer does. Events of 16 KiB fill every budget of the memory table
//! at once: with 24 MiB of window and 20 under way it was 124 to 129 MiB above idle for 1.5 GiB, and 150 for 50 GiB. With 16 and
//! 16: 95 to 108 MiB for 1.5 GiB, and for `--gib 50 --compress --event-bytes 16384` (3,280,000 events, 801 segments) 118 MiB
//! above idle; opening 0.02 s for each 10 GiB; every event once and in order. With fresh events going ahead of a backlog the same
//! 50 GiB had 141 MiB above idle, and 12 GiB had 123. What lived at the peak, by a heap profile: a third of it the SDK's JSON of
//! requests under way, whose buffers double as they grow. With 12 MiB under way and 12 of window, half the filter for the backlog's
//! keys, and 262,144 slots instead of 393,216: 96 MiB for 12 GiB (guessed 107), and 115 for 50 GiB beside four builds. Other
//! allocators (jemalloc with few arenas, glibc with fixed thresholds) need as much: it is what lives, not what is kept back.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "../tests/common/agent.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod agent;
#[path = "common/fill.rs"]
mod fill;
#[path = "backlog/fresh.rs"]
mod fresh;
#[path = "../tests/common/sink.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod sink;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, Setup};
use fill::{Backlog, SEGMENT_BYTES, fill, spool_options};
use forebay::coding::{Coding, KeyRing};
use forebay::event::{KeyHash, Position};
use forebay::host::Host;
use forebay::spool::{open, segments_dir};
use sink::{Mode, Sink};

const RSS_ABOVE_IDLE_MAX: u64 = 128 << 20;

#[derive(Clone, Debug)]
struct Options {
    gib: f64,
    event_bytes: usize,
    shards: usize,
    dead: usize,
    aggregate: &'static str,
    /// The spool is compressed, so that a backlog larger than the disk fits it.
    compress: bool,
    /// How long do events of new keys take beside it?
    fresh: bool,
    dir: PathBuf,
    agent: PathBuf,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let agent = PathBuf::from(env!("CARGO_BIN_EXE_forebay"));
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("backlog");
        let mut options = Self {
            gib: 4.0,
            event_bytes: 1024,
            shards: 512,
            dead: 64,
            aggregate: "kpl",
            compress: false,
            fresh: false,
            dir,
            agent,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            let wrong = |value: String| format!("{name} {value}: a number is meant");
            match name.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--gib" => options.gib = value().and_then(|v| v.parse().map_err(|_| wrong(v)))?,
                "--event-bytes" => options.event_bytes = value().and_then(|v| v.parse().map_err(|_| wrong(v)))?,
                "--shards" => options.shards = value().and_then(|v| v.parse().map_err(|_| wrong(v)))?,
                "--dead" => options.dead = value().and_then(|v| v.parse().map_err(|_| wrong(v)))?,
                "--aggregate" => options.aggregate = if value()? == "off" { "off" } else { "kpl" },
                "--compress" => options.compress = true,
                "--fresh" => options.fresh = true,
                "--dir" => options.dir = value()?.into(),
                "--agent" => options.agent = value()?.into(),
                _ => return Err(format!("no option {name}; the head of benches/backlog.rs tells them")),
            }
        }
        Ok(options)
    }
}

fn host(options: &Options) -> Host {
    Coding { compress: options.compress, keys: KeyRing::default() }.host(&Host::real())
}

/// Bytes of all files of the segments directory, and how many there are.
fn disk_used(dir: &Path) -> (u64, usize) {
    let Ok(entries) = fs::read_dir(segments_dir(dir)) else { return (0, 0) };
    // A file may go between the listing and the look at it.
    let sizes: Vec<u64> = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).collect();
    (sizes.iter().sum(), sizes.len())
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// From the start of the process until it is ready.
fn start(setup: &Setup) -> (Agent, Duration) {
    let begin = Instant::now();
    let agent = Agent::start(setup);
    (agent, begin.elapsed())
}

/// The most that was seen while something was waited for.
#[derive(Debug, Default)]
struct Most {
    /// Disk used over what is allowed, bytes; negative: room was left.
    over: Option<i64>,
}

/// Polls until nothing but `left` is pending, telling how it goes.
fn drain(agent: &mut Agent, dir: &Path, backlog: &Backlog, left: u64, most: &mut Most) -> Result<(), String> {
    let begin = Instant::now();
    let (mut told, mut last, mut moved) = (begin, u64::MAX, begin);
    loop {
        let pending = agent.account().pending;
        let (used, files) = disk_used(dir);
        let allowed = pending * backlog.frame_bytes * 3 / 2 + 2 * SEGMENT_BYTES;
        let over = used as i64 - allowed as i64;
        most.over = Some(most.over.map_or(over, |held| held.max(over)));
        if told.elapsed() >= Duration::from_secs(5) || pending <= left {
            told = Instant::now();
            println!(
                "{:6.1} s: {pending:9} events pending, {:6} MiB of them; disk {:6} MiB in {files:3} files, {:6} MiB allowed; peak RSS {} MiB",
                begin.elapsed().as_secs_f64(),
                mib(pending * backlog.frame_bytes),
                mib(used),
                mib(allowed),
                mib(agent.rss_peak()),
            );
        }
        if pending <= left {
            return Ok(());
        }
        if pending != last {
            (last, moved) = (pending, Instant::now());
        }
        if moved.elapsed() > Duration::from_secs(60) {
            return Err(format!("{pending} events are pending, and nothing has moved for a minute"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn run(options: &Options) -> Result<(), String> {
    fs::remove_dir_all(&options.dir).ok();
    fs::create_dir_all(&options.dir).map_err(|error| format!("{}: {error}", options.dir.display()))?;
    if options.fresh {
        return fresh::run(options);
    }
    let sink_options = sink::Options { shards: options.shards, delay: Duration::from_millis(5), mode: Mode::Check };
    let sink = Sink::start(sink_options).map_err(|error| error.to_string())?;
    (0..options.dead).for_each(|shard| sink.set_dead(shard, true));
    let binary = options.agent.to_str().ok_or("the agent's path is no text")?;
    let setup_in = |name: &str| {
        let mut setup = Setup::new(binary, options.dir.join(name), sink.endpoint(), options.aggregate);
        setup.spool = "max_bytes = \"100GiB\"".to_owned();
        setup.stream = format!("spool_compression = \"{}\"", if options.compress { "zstd" } else { "off" });
        setup
    };

    let (idle_agent, _) = start(&setup_in("idle"));
    thread::sleep(Duration::from_secs(2));
    let idle = idle_agent.rss_peak();
    if !idle_agent.terminate().success() {
        return Err("the idle agent did not end well".to_owned());
    }
    println!("idle: {} MiB of RSS", mib(idle));

    let setup = setup_in("full");
    let dir = setup.dir.join("spool/events");
    let begin = Instant::now();
    let stuck = |hash: KeyHash| sink.shards().of_hash(hash.0) < options.dead;
    let backlog = fill(&host(options), &dir, options.gib * f64::from(1 << 30), options.event_bytes, stuck);
    let (bytes, files) = disk_used(&dir);
    println!(
        "backlog: {} events, {} MiB of frames, {} MiB in {files} segments, {} events for the {} of {} shards that are dead; written in {:.1?}",
        backlog.events,
        mib(backlog.events * backlog.frame_bytes),
        mib(bytes),
        backlog.stuck,
        options.dead,
        options.shards,
        begin.elapsed()
    );

    let content = backlog.events * backlog.frame_bytes;
    let per_10_gib = |took: Duration| took.as_secs_f64() * f64::from(10 << 10) / mib(content) as f64;
    let begin = Instant::now();
    drop(open(&host(options), &spool_options(&dir), Position(0), &Arc::default()).map_err(|error| error.to_string())?);
    let opened = begin.elapsed();
    let (mut agent, ready) = start(&setup);
    println!(
        "opening: {opened:.1?} alone, {ready:.1?} from the start of the process until it is ready; {:.3} s and {:.3} s for 10 GiB",
        per_10_gib(opened),
        per_10_gib(ready)
    );

    let mut most = Most::default();
    drain(&mut agent, &dir, &backlog, backlog.stuck, &mut most)?;
    let rewritten = |agent: &Agent| {
        let metrics = agent.get("/metrics").map(|(_, text)| text).unwrap_or_default();
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("forebay_spool_rewritten_segments_total")?.rsplit(' ').next());
        line.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
    };
    let first_peak = agent.rss_peak();
    // Until the last segment under a quarter has waited its time and is rewritten too.
    let mut last = (u64::MAX, Instant::now());
    while last.1.elapsed() < Duration::from_secs(15) {
        let (used, _) = disk_used(&dir);
        if used != last.0 {
            last = (used, Instant::now());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let (used, files) = disk_used(&dir);
    println!(
        "the others have all of theirs: {} MiB pending for the dead, disk {} MiB in {files} files, {} segments rewritten, peak RSS {} MiB",
        mib(backlog.stuck * backlog.frame_bytes),
        mib(used),
        rewritten(&agent),
        mib(first_peak)
    );
    if !agent.terminate().success() {
        return Err("the agent did not end well".to_owned());
    }

    let (mut agent, ready_again) = start(&setup);
    println!("restarted on what is left: ready after {ready_again:.1?}");
    (0..options.dead).for_each(|shard| sink.set_dead(shard, false));
    drain(&mut agent, &dir, &backlog, 0, &mut most)?;
    let peak = first_peak.max(agent.rss_peak());
    if !agent.terminate().success() {
        return Err("the agent did not end well".to_owned());
    }
    let stats = sink.stats();
    println!(
        "in the end: {} events arrived, {} duplicates, {} gaps, {} bad requests; peak RSS {} MiB, {} MiB above idle; disk at most {} MiB over what is allowed",
        stats.events,
        stats.duplicates,
        stats.gaps,
        stats.bad_requests,
        mib(peak),
        mib(peak.saturating_sub(idle)),
        most.over.unwrap_or_default() / (1 << 20)
    );
    let mut broken = Vec::new();
    if (stats.events, stats.duplicates, stats.gaps, stats.bad_requests) != (backlog.events, 0, 0, 0) {
        broken.push("NOTHING-LOST, KEY-ORDER: not every event arrived once and in order");
    }
    if per_10_gib(opened) > 1.0 {
        broken.push("BORING-RECOVERY: opening took over 1 s for 10 GiB");
    }
    if peak > idle + RSS_ABOVE_IDLE_MAX {
        broken.push("NO-BLOCKING: RSS grew more than 128 MiB above idle");
    }
    if most.over.is_some_and(|over| over > 0) {
        broken.push("the disk used went over one and a half times what is pending plus two segments");
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) }
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(64);
        }
    };
    let outcome = run(&options);
    if let Err(error) = fs::remove_dir_all(&options.dir) {
        eprintln!("{} is left: {error}", options.dir.display());
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
