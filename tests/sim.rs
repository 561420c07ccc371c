//! Seeded crashes of the real spool: at every write and every sync of short histories, in recovery too, and with faults.
//!
//! Place: `common/spool_world.rs` holds the model and the checks by name, `common/fault_files.rs` the disk. Every
//! history is decided by its seed: a fixed few run here; `FOREBAY_SIM_SEEDS=from..to` runs others, and
//! `FOREBAY_SIM=seed:stop,stop` one history again, as a failure's text tells it. The short histories here are about every
//! place a crash can come; the long ones of `sim/lives.rs` mix everything that can happen.

#[path = "sim/content.rs"]
mod content;
#[path = "common/fault_files.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the double")]
mod fault_files;
#[path = "sim/life.rs"]
mod life;
#[path = "sim/lives.rs"]
mod lives;
#[path = "sim/mutations.rs"]
mod mutations;
#[path = "sim/planted.rs"]
mod planted;
#[path = "sim/promises.rs"]
mod promises;
#[path = "sim/reader.rs"]
mod reader;
#[path = "common/spool_world.rs"]
mod spool_world;

use std::collections::BTreeSet;
use std::ops::Range;

use fault_files::{EIO, ENOSPC, Fault, Op, Pending};
use forebay::host::mix64;
use spool_world::{Plan, World, read_damaged, segments, written};

const STEPS: u32 = 24;

fn plan(seed: u64, stops: Vec<u64>) -> Plan {
    Plan { seed, stops, steps: STEPS, faults: Vec::new(), plain: false }
}

fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("FOREBAY_SIM_SEEDS") else { return default };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("FOREBAY_SIM_SEEDS is {text:?}; a range such as 100..200 is meant"))
}

#[test]
fn no_crash_at_any_operation_loses_a_receipted_event() {
    if let Ok(text) = std::env::var("FOREBAY_SIM") {
        let (seed, stops) = text.split_once(':').expect("seed:stop,stop");
        let stops = stops.split(',').map(|stop| stop.parse().expect("a number")).collect();
        World::run(plan(seed.parse().expect("a number"), stops));
        return;
    }
    let (mut crashes, mut unreceipted, mut repeated) = (0, 0, 0);
    for seed in seeds(0..12) {
        let ops = World::run(plan(seed, Vec::new())).ops[0];
        for stop in 0..ops {
            // Once alone, once with a second crash within or soon after recovery.
            let again = mix64(seed << 32 | stop) % 16;
            for stops in [vec![stop], vec![stop, again], vec![stop, again, mix64(stop) % 8]] {
                let world = World::run(plan(seed, stops));
                crashes += world.ops.len() - 1;
                unreceipted += world.found_unreceipted;
                repeated += world.repeated;
            }
        }
    }
    // The histories must have met what they are about.
    assert!(crashes > 1000, "{crashes} crashes");
    assert!(unreceipted > 0, "no group survived without its receipt");
    assert!(repeated > 0, "no crash came before a checkpoint");
}

#[test]
fn a_power_cut_without_lost_marks_never_costs_more_than_what_was_not_checkpointed() {
    for seed in seeds(100..106) {
        let ops = World::run(Plan { plain: true, ..plan(seed, Vec::new()) }).ops[0];
        for stop in 0..ops {
            World::run(Plan { plain: true, ..plan(seed, vec![stop]) });
        }
    }
}

#[test]
fn no_failed_write_sync_or_creation_loses_a_receipted_event_with_a_crash_after_it() {
    let mut met = BTreeSet::new();
    for seed in seeds(200..204) {
        for (op, pending) in [
            (Op::SyncData, Pending::Keep),
            (Op::SyncData, Pending::Forget),
            (Op::SyncData, Pending::Drop),
            (Op::SyncDir, Pending::Keep),
            (Op::Write, Pending::Keep),
            (Op::Create, Pending::Keep),
            (Op::Remove, Pending::Keep),
            (Op::SetLen, Pending::Keep),
        ] {
            for nth in 1..20 {
                let errno = if op == Op::Write { ENOSPC } else { EIO };
                let partial = (mix64(seed ^ nth) % 3000) as usize;
                let fault = Fault::new(op, nth, errno).on("/segments").pending(pending).partial(partial);
                let calm = World::run(Plan { faults: vec![fault.clone()], ..plan(seed, Vec::new()) });
                if calm.files().log().iter().any(|record| !record.ok) {
                    met.insert(op);
                }
                for n in 0..4 {
                    let stop = mix64(seed ^ nth << 8 ^ n) % calm.ops[0];
                    World::run(Plan { faults: vec![fault.clone()], ..plan(seed, vec![stop, n * 3]) });
                }
            }
        }
    }
    assert!(met.contains(&Op::SyncData) && met.contains(&Op::SyncDir) && met.contains(&Op::Write), "met only {met:?}");
}

#[test]
fn one_seed_twice_gives_one_trace() {
    for seed in 0..6 {
        let [a, b] = [0, 1].map(|_| World::run(plan(seed, vec![9, 3])));
        assert_eq!(a.files().log(), b.files().log());
        assert_eq!((a.ops, a.receipted), (b.ops, b.receipted));
    }
}

#[test]
fn a_flipped_bit_costs_the_event_it_hits_and_no_other_and_is_counted() {
    let events = 24;
    let (clean, clock) = written(events);
    let all: BTreeSet<u64> = (1..=events).collect();
    assert_eq!(read_damaged(&clean.kill(), &clock), (all.clone(), 0));
    let (clean, clock) = written(events);
    let mut hit = 0;
    let mut disk = clean;
    for path in segments(&disk) {
        let len = disk.contents(&path).expect("a listed file").len() as u64;
        for offset in (0..len).step_by(7) {
            let bit = (mix64(offset) % 8) as u8;
            disk = disk.kill();
            let copy = disk.crash(1);
            let (damaged_disk, keep) = (copy.crash(1), copy);
            disk = keep;
            assert!(damaged_disk.flip_bit(&path, offset, bit));
            let (found, damaged) = read_damaged(&damaged_disk, &clock);
            let lost = all.difference(&found).count() as u64;
            let place = format!("{} at {offset}, bit {bit}", path.display());
            assert!(lost <= 1, "{place}: {lost} events lost");
            assert_eq!(damaged, lost, "{place}: lost {lost} events, and told of {damaged}");
            hit += lost;
        }
    }
    assert!(hit > 100, "only {hit} flips hit an event");
}
