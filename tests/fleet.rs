//! The fleet of `benches/fleet.rs` in short: a hundred agents, minutes of simulated time, the same marks.
//!
//! Place: the program's own limiter and backoff in a simulated world (`benches/fleet/world.rs`). A run is the same each time.

#[path = "../benches/fleet/control.rs"]
mod control;
#[path = "../benches/fleet/scenarios.rs"]
#[allow(dead_code, reason = "the full scenarios are the bench's")]
mod scenarios;
#[path = "../benches/fleet/service.rs"]
#[allow(dead_code, reason = "some limits are looked at by the bench only")]
mod service;
#[path = "../benches/fleet/world.rs"]
#[allow(dead_code, reason = "what is plotted is the bench's")]
mod world;

use std::time::Duration;

use control::{ASK_WITHIN, Start};
use forebay::dispatch::backoff::Backoff;
use service::{Control, DESCRIBE_PER_SECOND, LIST_SHARDS_PER_SECOND};
use world::Dice;

#[test]
fn agents_that_share_shards_use_them_fully_are_seldom_throttled_and_get_equal_parts() {
    for scenario in scenarios::short() {
        let trace = world::run(&scenario.setup);
        for figures in scenario.figures(&trace) {
            assert!(!figures.missed, "{}: {figures:?}", scenario.name);
        }
        if let Some(seconds) = scenario.back_after(&trace) {
            assert!(seconds <= scenarios::BACK_SECONDS_MAX, "{}: goodput is back after {seconds} s", scenario.name);
        }
    }
}

#[test]
fn one_seed_gives_one_history_and_another_seed_another() {
    let mut setup = scenarios::short().remove(1).setup;
    setup.seconds = 30;
    let history = |setup: &world::Setup| world::run(setup).by_agent;
    let first = history(&setup);
    assert_eq!(first, history(&setup));
    setup.seed += 1;
    assert_ne!(first, history(&setup));
}

#[test]
fn a_thousand_agents_that_start_at_once_list_the_shards_within_the_limit() {
    let calls =
        control::until_answered(&[0.0; 1_000], Backoff::of_listing(), Control::new(LIST_SHARDS_PER_SECOND), &Dice::new(1));
    assert_eq!((calls.made, calls.refused), (1_000, 0));
}

#[test]
fn a_thousand_agents_at_a_tenth_of_that_limit_all_have_their_listing_within_a_minute() {
    let calls = control::until_answered(&[0.0; 1_000], Backoff::of_listing(), Control::new(100.0), &Dice::new(1));
    assert!(calls.refused > 0 && calls.done_seconds < 60.0, "{calls:?}");
}

#[test]
fn a_thousand_agents_that_start_at_once_ask_for_the_summary_within_the_accounts_limit_whatever_hangs_on_it() {
    // Ten a second on average, half of the limit.
    for (start, seed) in [Start::First, Start::Again].into_iter().flat_map(|start| (1..6).map(move |seed| (start, seed))) {
        let calls = control::summaries(1_000, start, ASK_WITHIN, Control::new(DESCRIBE_PER_SECOND), &Dice::new(seed));
        assert!(calls.refused <= 10 && calls.most_per_second <= 40 && calls.done_seconds < 170.0, "{start:?}: {calls:?}");
    }
}

#[test]
fn larger_fleets_stay_within_it_with_a_longer_time_to_ask() {
    let calls = control::summaries(5_000, Start::First, 5 * ASK_WITHIN, Control::new(DESCRIBE_PER_SECOND), &Dice::new(1));
    assert!(calls.refused <= 50, "{calls:?}");
}

#[test]
fn agents_that_ask_at_once_come_to_an_end_too() {
    let calls = control::summaries(1_000, Start::First, Duration::ZERO, Control::new(DESCRIBE_PER_SECOND), &Dice::new(1));
    assert!(calls.refused > 900 && calls.refused < 1_200 && calls.done_seconds < 180.0, "{calls:?}");
}
