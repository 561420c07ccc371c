//! A day without Kinesis, scaled: what arrives meanwhile is kept, and afterwards drains in order, as fast as the shards take it.
//!
//! Place: a quiet life of `life.rs` with one spell of `Away`. All of a day passes in simulated time, with its tries and its
//! waits; what is scaled is the load, a day's curve of events with its peak in the evening. Real are the spool (on a disk in
//! memory), its rolls and its reading back, and the dispatcher with its limiter; the stream takes 1 MiB and 1,000 records a
//! second for each shard and refuses the rest. Half a day in, the agent is killed and begins anew.

use std::time::Duration;

use forebay::config::Aggregate;

use crate::judge::Broken;
use crate::life::Life;
use crate::service::SHARD_BYTES;
use crate::spells::Kind;

const SHARDS: u32 = 2;
const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

/// Events of a minute of that hour: little at night, most in the evening.
fn events_in(hour: u64) -> u64 {
    [20, 15, 10, 10, 10, 15, 25, 40, 60, 70, 70, 75, 80, 80, 75, 75, 80, 90, 110, 130, 140, 120, 80, 40][hour as usize % 24]
}

/// One more minute, with its load.
fn minute(life: &mut Life) -> Result<(), Broken> {
    let count = events_in(life.now().as_secs() / 3600);
    life.write(count)?;
    life.pass(MINUTE)
}

fn stored(life: &Life) -> Vec<u64> {
    life.service.shards.iter().map(|shard| shard.bytes).collect()
}

/// What the drain took, by the fullest shard: the time its bytes need at a shard's rate, over the time they took.
fn a_day_away(aggregate: Aggregate, padding: u64) -> Result<(), Broken> {
    let mut life = Life::quiet(24, aggregate, SHARDS);
    (life.padding, life.keys, life.segment_bytes) = (padding, 300, 8 << 20);
    // With one event a record, a hot key goes at one event a round trip; and so do events that cannot be lines.
    (life.hot_percent, life.newline_percent) = (0, 0);
    let (gone, back) = (MINUTE, MINUTE + DAY);
    life.service.weather.add(Kind::Away, gone, back, 0);
    life.start()?;
    minute(&mut life)?;
    let pending = |life: &Life| life.process.as_ref().map_or(0, |process| process.account().pending());
    assert_eq!(pending(&life), 0, "a minute with Kinesis");
    let before = stored(&life);
    while life.now() < back {
        if life.now().as_secs() / 60 == 12 * 60 {
            life.end_process(Kind::Kill, 0)?;
        }
        minute(&mut life)?;
    }
    let kept = pending(&life);
    assert!(kept > 80_000, "{kept} of {} events are kept", life.judge.accepted());
    assert!(life.service.met["away"] > 1_000, "{} tries in a day", life.service.met["away"]);

    // Kinesis is back. How long until it is asked again, and then until all is there?
    let now = life.now();
    while stored(&life) == before {
        assert!(life.step(now + MINUTE)?, "LIVENESS: nobody asks Kinesis again");
    }
    let found_after = life.now() - now;
    let begun = life.now();
    while pending(&life) > 0 {
        assert!(life.step(now + Duration::from_secs(3600))?, "LIVENESS: it does not drain");
    }
    let took = (life.now() - begun).as_secs_f64();
    let bytes = stored(&life).into_iter().zip(before).map(|(after, before)| after - before);
    let fullest = bytes.max().expect("a shard") as f64;
    // A shard that was left alone takes a second's worth at once.
    let capacity = (fullest - SHARD_BYTES) / SHARD_BYTES / took;
    println!(
        "{}: {kept} events, {:.0} MiB in the fullest shard, asked again after {found_after:?}, drained in {took:.1} s: {:.1} % of capacity, {} refused",
        aggregate.name(),
        fullest / SHARD_BYTES,
        capacity * 100.0,
        life.service.met.get("over the shard's rate").copied().unwrap_or_default()
    );
    // The agent began anew meanwhile: it waits for a listing first, 30 s at most between two.
    assert!(found_after < Duration::from_secs(40), "asked again after {found_after:?}");
    assert!(capacity >= 0.95, "{:.1} % of the fullest shard's capacity", capacity * 100.0);
    life.judge.at_the_end()?;
    life.judge.repeats_are_counted(0)
}

#[test]
fn what_arrives_in_a_day_without_kinesis_is_kept_and_drains_in_order_at_the_shards_capacity_with_aggregates() {
    a_day_away(Aggregate::Kpl, 2_000).expect("every promise is kept");
}

#[test]
fn what_arrives_in_a_day_without_kinesis_is_kept_and_drains_in_order_at_the_shards_capacity_with_lines() {
    a_day_away(Aggregate::Lines, 2_000).expect("every promise is kept");
}

#[test]
fn what_arrives_in_a_day_without_kinesis_is_kept_and_drains_in_order_at_the_shards_capacity_with_single_events() {
    a_day_away(Aggregate::Off, 3_000).expect("every promise is kept");
}
