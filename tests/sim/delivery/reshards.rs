//! Reshards, one story for each thing that may be met: what leaves when, what is sent again, what is asked for.
//!
//! Place: quiet lives of `life.rs` in which nothing goes wrong but what the story adds. The judge checks the promises all the
//! while; a story checks what is particular to it. The seeded lives (`lives.rs`) mix all of it.

use std::time::Duration;

use forebay::config::Aggregate;
use forebay::host::mix64;

use crate::judge::Broken;
use crate::life::Life;
use crate::spells::Kind;

const FORMS: [Aggregate; 3] = [Aggregate::Kpl, Aggregate::Off, Aggregate::Lines];

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// An agent that has delivered something to so many shards.
fn running(seed: u64, aggregate: Aggregate, shards: u32) -> Result<Life, Broken> {
    let mut life = Life::quiet(seed, aggregate, shards);
    life.hot_percent = 0;
    life.start()?;
    life.pass(ms(500))?;
    load(&mut life, 20)?;
    Ok(life)
}

/// So many times 50 ms of load.
fn load(life: &mut Life, times: u64) -> Result<(), Broken> {
    for _ in 0..times {
        life.write(30)?;
        life.pass(ms(50))?;
    }
    Ok(())
}

fn pending(life: &Life) -> u64 {
    life.process.as_ref().map_or(0, |process| process.account().pending())
}

/// All is delivered within minutes, in order, and what consumers get again was counted.
fn drains(life: &mut Life) -> Result<(), Broken> {
    let until = life.now() + ms(300_000);
    while pending(life) > 0 {
        assert!(life.step(until)?, "LIVENESS: {} events wait", pending(life));
    }
    life.judge.at_the_end()?;
    life.judge.repeats_are_counted(life.process.as_ref().map_or(0, |process| process.counted()))
}

/// What is counted as sent again for a reshard.
fn for_reshards(life: &Life) -> u64 {
    let process = life.process.as_ref().expect("it runs");
    let counted = process.metrics.duplicated.lock().expect("not poisoned");
    counted.iter().filter(|(reason, _)| **reason != "reshard").for_each(|(reason, count)| assert_eq!(*count, 0, "{reason}"));
    counted.get("reshard").copied().unwrap_or_default()
}

#[test]
fn an_update_of_the_shard_count_up_and_down_under_load_keeps_order_and_sends_again_only_what_strayed() {
    for aggregate in FORMS {
        for seed in 0..10 {
            let story = || {
                let mut life = running(seed, aggregate, 4)?;
                for n in 0..4 {
                    life.service.split(2 * n, true);
                    load(&mut life, 1 + mix64(seed << 8 | n as u64) % 6)?;
                }
                load(&mut life, 10)?;
                for n in 0..4 {
                    life.service.merge(n);
                    load(&mut life, 1 + mix64(seed << 16 | n as u64) % 6)?;
                }
                let process = life.process.as_ref().expect("it runs");
                assert!(process.map_number >= 2, "{} other listings", process.map_number);
                drains(&mut life)?;
                if aggregate == Aggregate::Off {
                    assert_eq!(for_reshards(&life), 0, "one event is read wherever it lies");
                }
                // A merge takes what belongs into it: only splits make records stray, one of each shard's at most.
                let all = life.judge.accepted();
                assert!(for_reshards(&life) < all / 4, "{} of {all} events are sent again", for_reshards(&life));
                Ok(())
            };
            story().unwrap_or_else(|broken: Broken| panic!("{aggregate:?}, seed {seed}: {}", broken.0));
        }
    }
}

#[test]
fn of_an_aggregate_in_a_strange_shard_all_members_are_sent_again_and_of_one_that_belongs_there_none() {
    let story = || {
        // A split: whatever is under way strays.
        let mut life = running(1, Aggregate::Kpl, 1)?;
        life.service.split(0, true);
        load(&mut life, 4)?;
        drains(&mut life)?;
        let again = for_reshards(&life);
        assert!(again > 1 && again == life.judge.dropped, "{again} sent again, KCL drops {}", life.judge.dropped);
        assert_eq!(life.judge.repeats, 0, "and nobody gets one twice");
        // A merge: what is under way for a parent lies in the child, which takes all of its hashes.
        let mut life = running(2, Aggregate::Kpl, 2)?;
        life.service.merge(0);
        load(&mut life, 4)?;
        drains(&mut life)?;
        assert_eq!((for_reshards(&life), life.judge.dropped), (0, 0));
        assert_eq!(life.process.as_ref().expect("it runs").map_number, 1, "the merge was noticed");
        Ok(())
    };
    story().unwrap_or_else(|broken: Broken| panic!("{}", broken.0));
}

#[test]
fn a_shard_that_closed_before_it_was_listed_judges_what_lies_in_it() {
    for seed in 0..20 {
        let story = || {
            let mut life = running(seed, Aggregate::Kpl, 1)?;
            // No listing for a while: a record lies in a child that has children itself by then.
            let now = life.now();
            life.service.weather.add(Kind::ListThrottled, now, now + ms(2_000), 0);
            life.service.split(0, true);
            load(&mut life, 4)?;
            life.service.split(0, true);
            life.service.split(1, true);
            life.service.merge(1);
            load(&mut life, 4)?;
            drains(&mut life)?;
            assert_eq!(life.judge.repeats, 0);
            Ok(())
        };
        story().unwrap_or_else(|broken: Broken| panic!("seed {seed}: {}", broken.0));
    }
}

#[test]
fn while_listings_are_stale_an_unknown_shard_is_waited_for_with_few_questions_and_no_aggregate_leaves() {
    for aggregate in [Aggregate::Kpl, Aggregate::Lines] {
        let story = || {
            let mut life = running(3, aggregate, 2)?;
            let now = life.now();
            // The listing of before the split, for ten minutes.
            life.service.weather.add(Kind::ListStale, now, now + ms(600_000), 1);
            life.service.split(0, true);
            load(&mut life, 6)?;
            life.pass(ms(1_000))?;
            let (stored, asked) = (stored(&life), life.service.lists.len());
            life.write(40)?;
            life.pass(ms(590_000))?;
            assert_eq!(self::stored(&life), stored, "nothing leaves by a map that is known to be wrong");
            assert!(pending(&life) > 0);
            let questions = life.service.lists.len() - asked;
            assert!((20..200).contains(&questions), "{questions} listings in ten minutes");
            drains(&mut life)
        };
        story().unwrap_or_else(|broken: Broken| panic!("{aggregate:?}: {}", broken.0));
    }
}

fn stored(life: &Life) -> u64 {
    life.service.shards.iter().map(|shard| shard.bytes).sum()
}

#[test]
fn an_empty_or_refused_listing_at_the_start_keeps_events_until_there_is_one() {
    for (kind, detail) in
        [(Kind::ListEmpty, 0), (Kind::ListThrottled, 0), (Kind::ListStuck, 0), (Kind::Away, 0), (Kind::Expired, 0)]
    {
        for aggregate in FORMS {
            let story = || {
                let mut life = Life::quiet(4, aggregate, 3);
                life.service.weather.add(kind, Duration::ZERO, ms(120_000), detail);
                life.start()?;
                load(&mut life, 20)?;
                life.pass(ms(100_000))?;
                let (lost, bytes) = (life.judge.accepted() - pending(&life), stored(&life));
                // LimitExceeded is drawn page by page: now and then one gets through.
                assert!(kind == Kind::ListThrottled || (lost, bytes) == (0, 0), "{lost} settled, {bytes} bytes stored");
                drains(&mut life)?;
                assert_eq!(life.judge.repeats, 0);
                Ok(())
            };
            story().unwrap_or_else(|broken: Broken| panic!("{kind:?}, {aggregate:?}: {}", broken.0));
        }
    }
}

#[test]
fn a_refused_listing_in_the_middle_holds_aggregates_back_and_single_events_go_on_in_order() {
    for aggregate in FORMS {
        let story = || {
            let mut life = running(5, aggregate, 2)?;
            let now = life.now();
            life.service.weather.add(Kind::ListDenied, now, now + ms(60_000), 0);
            life.service.split(1, true);
            load(&mut life, 100)?;
            let waits = pending(&life);
            assert_eq!(waits < 200, aggregate == Aggregate::Off, "{waits} events wait");
            drains(&mut life)
        };
        story().unwrap_or_else(|broken: Broken| panic!("{aggregate:?}: {}", broken.0));
    }
}

#[test]
fn shards_are_listed_once_while_nothing_changes_and_ever_more_rarely_with_jitter_while_listing_is_limited() {
    let story = || {
        let mut life = running(6, Aggregate::Kpl, 3)?;
        for _ in 0..600 {
            life.write(5)?;
            life.pass(ms(1_000))?;
        }
        assert_eq!(life.service.lists.len(), 1, "in ten minutes of good answers");
        let mut agents = Vec::new();
        for seed in 0..20 {
            let mut life = Life::quiet(seed, Aggregate::Kpl, 3);
            life.service.weather.add(Kind::ListEmpty, Duration::ZERO, ms(600_000), 0);
            life.start()?;
            life.write(5)?;
            life.pass(ms(600_000))?;
            agents.push(life.service.lists.clone());
        }
        for lists in &agents {
            assert!((30..80).contains(&lists.len()), "{} listings in ten minutes", lists.len());
            assert!(lists.windows(2).all(|pair| pair[1] - pair[0] <= ms(31_000)), "and never longer than 30 s without one");
        }
        // What one agent does says nothing of when the next one asks: a thousand do not come together.
        let mut late: Vec<u64> = agents.iter().filter_map(|lists| lists.last()).map(|at| at.as_millis() as u64 / 100).collect();
        late.sort_unstable();
        late.dedup();
        assert!(late.len() > 15, "20 agents ask last in {} different tenths of a second", late.len());
        Ok(())
    };
    story().unwrap_or_else(|broken: Broken| panic!("{}", broken.0));
}

#[test]
fn a_shard_that_is_split_because_it_is_full_gives_its_children_twice_the_rate_and_keeps_the_order() {
    for aggregate in FORMS {
        let story = || {
            let mut life = Life::quiet(7, aggregate, 1);
            (life.padding, life.hot_percent, life.newline_percent) = (4_000, 0, 0);
            life.start()?;
            life.pass(ms(500))?;
            // Half as much again as a shard takes.
            let push = |life: &mut Life, times: u64| {
                for _ in 0..times {
                    life.write(39)?;
                    life.pass(ms(50))?;
                }
                Ok(())
            };
            push(&mut life, 200)?;
            let (behind, before) = (pending(&life), stored(&life));
            assert!(behind > 1_000, "{behind} events wait for a full shard");
            life.service.split(0, true);
            push(&mut life, 200)?;
            let rate = (stored(&life) - before) as f64 / 10.0 / f64::from(1 << 20);
            assert!(rate > 1.5, "{rate:.2} MiB/s after the split");
            drains(&mut life)
        };
        story().unwrap_or_else(|broken: Broken| panic!("{aggregate:?}: {}", broken.0));
    }
}
