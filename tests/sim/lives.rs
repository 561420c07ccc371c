//! Thousands of seeded lives, and the proof that they met what they are about.
//!
//! `many_lives_keep_every_promise` runs the standard set; with `FOREBAY_SIM_SEEDS=from..to` any other, on all cores, with
//! progress and every failing seed printed. `FOREBAY_SIM_SEEDS=17..18` repeats one life and prints its whole story.
//! A seed that ever broke a promise becomes a test here, under the claim that it broke, and stays ([`keep`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::life::{Outcome, live};
use crate::planted::Plant;

/// The standard set: what `cargo test` runs.
pub const STANDARD: Range<u64> = 0..6_000;

/// These lives keep every promise, and still meet what the bug needs. Each found a bug of the spool: the test is named by the
/// claim that broke. Each was seen to fail with the mend taken back and to pass with it. What lives do decides what a seed is:
/// whoever changes that searches anew (take the mend back, run `FOREBAY_SIM_SEEDS=0..100000`); the small test of the same
/// bug stands beside the code.
fn keep(seeds: &[u64], met: &[&str]) {
    seeds.iter().for_each(|seed| keeps(*seed, met));
}

fn keeps(seed: u64, met: &[&str]) {
    let outcome = live(seed, Plant::None);
    assert_eq!(outcome.verdict, Ok(()), "seed {seed}, which once broke a promise");
    for what in met {
        assert!(outcome.met.contains_key(what), "seed {seed} no longer meets {what:?}: search for another that finds the bug");
    }
}

/// The sweep placed each damaged frame at the first position that was not read yet, also one that lay behind it: the
/// good event there was passed over. Told as: NOTHING-LOST, a segment was deleted with an event that was not delivered.
#[test]
fn a_damaged_frame_takes_no_good_events_position() {
    keep(&[99, 2132, 4217], &["bit of a frame flipped"]);
}

/// Recovery took an index for which there was no room for an error, and only delivery makes room. Told as:
/// BORING-RECOVERY, the spool does not open: sealing ...: No space left on device.
#[test]
fn a_full_disk_does_not_refuse_the_start() {
    keep(&[2, 6, 13], &["disk full"]);
}

/// That a later file exists was taken as proof that the group before it had been durable, though both were tries at one
/// group, given up one after the other. Told as: EXACT-ACCOUNT, bad stretches are kept in a file.
#[test]
fn several_tries_at_one_group_prove_nothing_durable() {
    keep(&[2162, 3329, 6157], &["power cut"]);
}

/// A binary search by position went by the position in a damaged frame. 106,000 lives did not find it before lives had
/// few keys and flips aimed at positions. Told as: EXACT-ACCOUNT, 46 counted as pending, 47 found.
#[test]
fn a_flipped_position_does_not_mislead_the_pending_count() {
    keep(&[4457, 7642, 12120], &["position of a frame flipped"]);
}

/// In a weaker sync class a power cut may take a file's header with its first events. What was missing before the next
/// file that tells where it begins was counted for the file before, and for this one. Told as: EXACT-ACCOUNT, 14 events
/// told damaged by openings, none hit by a flipped bit.
#[test]
fn what_a_file_lost_with_its_header_is_counted_once() {
    keep(&[78, 483, 2358], &["power cut"]);
}

/// While `held.rs` was built: a group that an opening could not sync was written again under its name at once. A crash
/// then left a file that began at the group's position and did not hold it, and the old copy counted as superseded. Told
/// as: NOTHING-LOST, event 46 at 41 was receipted; found: false.
#[test]
fn what_is_held_back_supersedes_nothing_before_it_is_durable() {
    keep(&[957, 2493, 5013], &["opened without a sync", "power cut"]);
}

/// What the standard set must have met, each this often.
const MUST_MEET: [(&str, u64); 42] = [
    ("power cut", 2000),
    ("process killed", 500),
    ("clean stop", 200),
    ("death while opening", 200),
    ("opening refused for a fault", 50),
    ("append lost", 200),
    ("append kept", 200),
    ("append torn", 200),
    ("length lost", 50),
    ("new entry lost", 100),
    ("removal undone", 50),
    ("rename undone", 10),
    ("open fails", 50),
    ("read fails", 50),
    ("list fails", 20),
    ("create fails", 50),
    ("write fails", 50),
    ("write fails in the middle", 50),
    ("write finds no space", 50),
    ("disk full", 50),
    ("set_len fails", 10),
    ("sync fails, pages kept", 50),
    ("sync fails, pages forgotten", 50),
    ("sync fails, pages dropped", 50),
    ("directory sync fails, entries kept", 50),
    ("directory sync fails, entries forgotten", 20),
    ("remove fails", 20),
    ("rename fails", 5),
    ("short read", 200),
    ("bit of a coded block flipped", 100),
    ("bit of a frame flipped", 200),
    ("position of a frame flipped", 200),
    ("bit beside frames flipped", 200),
    ("clock set back", 200),
    ("clock set forward", 200),
    ("marks lost", 200),
    ("marks set back", 200),
    ("marks damaged", 100),
    ("opened without a sync", 50),
    ("group in doubt written again", 20),
    ("class interval", 1000),
    ("class os", 500),
];

/// What all lives of a run met together.
#[derive(Default)]
struct Totals {
    met: BTreeMap<&'static str, u64>,
    broken: Vec<(u64, String)>,
    receipted: u64,
    found_unreceipted: u64,
    taken: u64,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        for (what, times) in outcome.met {
            *self.met.entry(what).or_default() += times;
        }
        self.receipted += outcome.receipted as u64;
        self.found_unreceipted += outcome.found_unreceipted;
        self.taken += outcome.taken;
        if let Err(broken) = outcome.verdict {
            println!("seed {seed}: {broken}");
            self.broken.push((seed, broken));
        }
    }
}

/// Runs the seeds on all cores.
fn run(seeds: Range<u64>, progress: bool) -> Totals {
    let next = AtomicU64::new(seeds.start);
    let totals = Mutex::new(Totals::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = live(seed, Plant::None);
                    let mut totals = totals.lock().expect("a life's panic is caught in it");
                    totals.add(seed, outcome);
                    let done = seed - seeds.start + 1;
                    if progress && done.is_multiple_of(5_000) {
                        println!("{done} of {} lives, {} broken", seeds.end - seeds.start, totals.broken.len());
                    }
                }
            });
        }
    });
    totals.into_inner().expect("all threads are joined")
}

#[test]
fn many_lives_keep_every_promise_and_meet_every_misfortune() {
    let seeds = crate::seeds(STANDARD);
    let count = seeds.end - seeds.start;
    if count == 1 {
        let outcome = live(seeds.start, Plant::None);
        for line in &outcome.trace {
            println!("{line:?}");
        }
        println!("{:?}", outcome.met);
    }
    let standard = seeds == STANDARD;
    let totals = run(seeds, !standard);
    println!("{count} lives, {} events receipted, {} taken, met: {:#?}", totals.receipted, totals.taken, totals.met);
    let told: Vec<String> = totals.broken.iter().take(20).map(|(seed, broken)| format!("seed {seed}: {broken}")).collect();
    assert!(
        told.is_empty(),
        "{} of {count} lives broke a promise; FOREBAY_SIM_SEEDS=N..N+1 cargo test --test sim many_lives -- --nocapture repeats one:\n{}",
        totals.broken.len(),
        told.join("\n")
    );
    if standard {
        for (what, times) in MUST_MEET {
            let met = totals.met.get(what).copied().unwrap_or_default();
            assert!(met >= times, "{what}: met {met} times, {times} were wanted");
        }
        assert!(totals.found_unreceipted > 1000, "groups without a receipt must survive now and then");
        assert!(totals.taken > 1000, "power cuts took {} events in the weaker sync classes", totals.taken);
        assert!(totals.receipted > 50_000, "{} events were receipted", totals.receipted);
    }
}

#[test]
fn one_seed_twice_gives_one_trace_of_a_whole_life() {
    for seed in 0..300 {
        let [a, b] = [0, 1].map(|_| live(seed, Plant::None));
        assert!(a.trace.len() > 20, "seed {seed}: hardly anything happened");
        assert_eq!(a.trace, b.trace, "seed {seed}");
        assert_eq!((a.verdict, a.met, a.receipted), (b.verdict, b.met, b.receipted), "seed {seed}");
    }
    assert_ne!(live(1, Plant::None).trace, live(2, Plant::None).trace, "the seed decides");
}
