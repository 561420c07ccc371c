//! Do agents that know nothing of each other share shards well: all of the capacity used, little refused, equal parts?
//!
//! A simulation without network: the program's own limiter and backoff for each of 1,000 agents at each of 100 shards, and of
//! 50 at one; what is modelled around them stands in `fleet/service.rs` and `fleet/world.rs`, and `docs/FLEET.md` tells what
//! that leaves out. Every run of a seed is the same.
//!
//! Expected before the first run. With the limiter as it was (a throttle takes 30 %, a twentieth of the shard comes back each
//! second, never below 2 %): at the thousand half of everything is refused, since fifty agents at the least share fill a shard;
//! at the fifty, a fifth; goodput 0.95 and 0.97, Jain's index 0.98 and 0.99. With one that balances near one throttle in a
//! hundred records: 1.5 % refused at the thousand, goodput 0.98, Jain's index 0.99. `docs/FLEET.md` has what was measured.
//!
//! How to run: `cargo bench --bench fleet`; `-- --plots` writes `docs/fleet/*.svg`; `-- NAME` runs the scenarios whose names
//! contain it, `-- control-plane` that alone. Exit code 1 when a mark is missed. Ten minutes on two cores that others use too.

#![allow(clippy::disallowed_methods, reason = "it tells how long it took; the simulated time is its own")]

#[path = "fleet/control.rs"]
mod control;
#[path = "fleet/plots.rs"]
mod plots;
#[path = "fleet/scenarios.rs"]
#[allow(dead_code, reason = "the short ones are the test's")]
mod scenarios;
#[path = "fleet/service.rs"]
mod service;
#[path = "fleet/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use control::{ASK_WITHIN, Start};
use forebay::dispatch::backoff::Backoff;
use scenarios::Scenario;
use service::{Control, DESCRIBE_PER_SECOND, LIST_SHARDS_PER_SECOND};
use world::{Dice, Trace};

/// Agents whose control-plane calls are looked at.
const AGENTS: usize = 1_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let plots = arguments.iter().any(|argument| argument == "--plots");
    let names: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |scenario: &Scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name.as_str()));
    let scenarios: Vec<Scenario> = scenarios::full().into_iter().filter(chosen).collect();
    let mut missed = 0;
    println!(
        "{:<30} {:>6} {:>6} {:>13} {:>8} {:>10} {:>7} {:>6}",
        "scenario", "agents", "shards", "seconds", "goodput", "throttled", "Jain", "marks"
    );
    for (scenario, trace) in scenarios.iter().zip(run_all(&scenarios)) {
        missed += tell(scenario, &trace);
        if plots && scenario.leave_at.is_some() {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet");
            if let Err(error) = plots::write(&dir, scenario, &trace) {
                eprintln!("{}: {error}", dir.display());
                return ExitCode::FAILURE;
            }
        }
    }
    if names.is_empty() || names.iter().any(|name| *name == "control-plane") {
        missed += control_plane();
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs them, as many at once as there are cores; which one a core takes changes nothing in it.
fn run_all(scenarios: &[Scenario]) -> Vec<Trace> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let traces: Vec<OnceLock<Trace>> = scenarios.iter().map(|_| OnceLock::new()).collect();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < scenarios.len()) {
                    let began = Instant::now();
                    let trace = world::run(&scenarios[at].setup);
                    eprintln!("{}: simulated in {:.1} s", scenarios[at].name, began.elapsed().as_secs_f64());
                    traces[at].get_or_init(|| trace);
                }
            });
        }
    });
    traces.into_iter().map(|trace| trace.into_inner().expect("each was run by one of the threads")).collect()
}

/// Prints a scenario's lines; how many marks are missed.
fn tell(scenario: &Scenario, trace: &Trace) -> usize {
    let mut missed = 0;
    for figures in scenario.figures(trace) {
        let there = |present: &&(f64, f64)| present.0 <= figures.span.0 as f64 && figures.span.1 as f64 <= present.1;
        println!(
            "{:<30} {:>6} {:>6} {:>13} {:>8.3} {:>9.2}% {:>7.3} {:>6}",
            scenario.name,
            trace.present.iter().filter(there).count(),
            trace.shards,
            format!("{} to {}", figures.span.0, figures.span.1),
            figures.goodput,
            figures.throttled * 100.0,
            figures.fairness,
            if figures.missed { "MISSED" } else { "good" }
        );
        missed += usize::from(figures.missed);
    }
    if let Some(seconds) = scenario.back_after(trace) {
        let is_missed = seconds > scenarios::BACK_SECONDS_MAX;
        println!("{:<30} goodput is back {seconds} s after agents left: {}", "", if is_missed { "MISSED" } else { "good" });
        missed += usize::from(is_missed);
    }
    missed
}

/// Prints the control plane's table; how many marks are missed.
fn control_plane() -> usize {
    let dice = Dice::new(1);
    let at_once = vec![0.0; AGENTS];
    // With every record of a shard that was split, one a second of each agent; and with one of any of a hundred.
    let landings = |rate| -> Vec<f64> { (0..AGENTS).map(|_| dice.gap(rate) + dice.unit() * 0.5).collect() };
    let rows = [
        ("ListShards, a common start", at_once.clone(), Backoff::of_listing(), LIST_SHARDS_PER_SECOND, Some(0)),
        ("ListShards, a shard was split", landings(1.0), Backoff::of_listing(), LIST_SHARDS_PER_SECOND, Some(0)),
        ("ListShards, all shards were split", landings(100.0), Backoff::of_listing(), LIST_SHARDS_PER_SECOND, Some(0)),
        ("ListShards at 100/s, a common start", at_once, Backoff::of_listing(), 100.0, None),
    ];
    println!(
        "\n{:<40} {:>6} {:>8} {:>8} {:>8} {:>10} {:>6}",
        "1,000 agents", "limit", "calls", "refused", "most/s", "done", "marks"
    );
    let rows = rows.into_iter().map(|(name, first, backoff, limit, refused_max)| {
        (name, control::until_answered(&first, backoff, Control::new(limit), &dice), limit, refused_max)
    });
    let summaries = |agents, start, within| control::summaries(agents, start, within, Control::new(DESCRIBE_PER_SECOND), &dice);
    // Chance makes some seconds fuller than others: one in a hundred may be refused.
    let described = [
        ("DescribeStreamSummary, a first start", summaries(AGENTS, Start::First, ASK_WITHIN), DESCRIBE_PER_SECOND, Some(10)),
        ("the same, a restart", summaries(AGENTS, Start::Again, ASK_WITHIN), DESCRIBE_PER_SECOND, Some(10)),
        ("5,000 agents that ask within 500 s", summaries(5_000, Start::First, 5 * ASK_WITHIN), DESCRIBE_PER_SECOND, Some(50)),
        ("5,000 agents that ask within 100 s", summaries(5_000, Start::First, ASK_WITHIN), DESCRIBE_PER_SECOND, None),
        ("1,000 agents that ask at once", summaries(AGENTS, Start::First, Duration::ZERO), DESCRIBE_PER_SECOND, None),
    ];
    let mut missed = 0;
    for (name, calls, limit, refused_max) in rows.chain(described) {
        let is_missed = refused_max.is_some_and(|most| calls.refused > most);
        missed += usize::from(is_missed);
        let verdict = match refused_max {
            _ if is_missed => "MISSED",
            Some(_) => "good",
            None => "",
        };
        println!(
            "{name:<40} {:>6} {:>8} {:>8} {:>8} {:>8.1} s {verdict:>6}",
            format!("{limit}/s"),
            calls.made,
            calls.refused,
            calls.most_per_second,
            calls.done_seconds
        );
    }
    missed
}
