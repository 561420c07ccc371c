//! Each planted bug is found by a seed of the standard set, under the name of the promise that it breaks.
//!
//! What is planted where stands in `planted.rs`. The honest dispatcher passes the same seeds (`lives.rs`), so that what is
//! found here is the bug.

use std::time::Duration;

use forebay::config::Aggregate;

use crate::judge::Broken;
use crate::life::{Life, live};
use crate::lives::STANDARD;
use crate::planted::Plant;

/// Seeds of the standard set within which each bug must be found: few, so that a weaker simulator shows.
const SEEDS: std::ops::Range<u64> = 0..150;

/// One of the seeds fails by this bug, by the name of one of these promises.
fn dies_by(plant: Plant, promises: &[&str]) {
    assert!(STANDARD.contains(&SEEDS.start) && SEEDS.end <= STANDARD.end);
    let mut others = Vec::new();
    for seed in SEEDS {
        let Err(broken) = live(seed, plant, false).verdict else { continue };
        if promises.iter().any(|promise| broken.contains(promise)) {
            println!("{plant:?} is found by seed {seed}: {broken}");
            return;
        }
        others.push((seed, broken));
    }
    panic!("{plant:?} lives through the seeds {SEEDS:?}, or dies by something else than {promises:?}: {others:?}");
}

#[test]
fn landings_that_are_never_judged_are_found() {
    dies_by(Plant::LandingsUnjudged, &["DELIVERED-MEANS-READABLE"]);
}

#[test]
fn an_aggregate_of_which_only_the_strange_members_are_sent_again_is_found() {
    dies_by(Plant::OnlyOutOfRangeSentAgain, &["DELIVERED-MEANS-READABLE"]);
}

#[test]
fn an_unknown_outcome_that_is_taken_for_a_delivery_is_found() {
    dies_by(Plant::UnknownTakenAsDelivered, &["DELIVERED-MEANS-READABLE"]);
}

#[test]
fn a_failed_record_that_is_taken_for_a_delivery_is_found() {
    dies_by(Plant::PartialTakenAsDelivered, &["DELIVERED-MEANS-READABLE"]);
}

#[test]
fn what_failed_and_goes_to_the_back_is_found() {
    dies_by(Plant::RequeuedAtTheBack, &["KEY-ORDER"]);
}

#[test]
fn several_records_of_a_shard_under_way_are_found() {
    dies_by(Plant::SeveralUnderWay, &["KEY-ORDER"]);
}

#[test]
fn children_before_their_parents_are_found() {
    dies_by(Plant::ChildrenBeforeParents, &["KEY-ORDER"]);
}

#[test]
fn a_request_that_is_sent_again_whole_is_found() {
    dies_by(Plant::WholeRequestAgain, &["DUPLICATES-EXPLAINED"]);
}

#[test]
fn a_map_that_is_never_asked_for_again_is_found() {
    dies_by(Plant::MapAskedOnce, &["LIVENESS"]);
}

#[test]
fn credentials_whose_expiry_ends_delivery_are_found() {
    dies_by(Plant::StopsAtExpiredToken, &["LIVENESS"]);
}

#[test]
fn a_mark_ahead_of_delivery_is_found() {
    dies_by(Plant::MarksAheadOfDelivery, &["NOTHING-LOST"]);
}

#[test]
fn a_mark_ahead_of_delivery_is_found_by_a_crash_alone() {
    dies_by(Plant::MarksAheadUnseen, &["DELIVERED-MEANS-READABLE", "NOTHING-LOST"]);
}

#[test]
fn duplicates_that_are_not_counted_are_found() {
    dies_by(Plant::DuplicatesUncounted, &["DUPLICATES-EXPLAINED"]);
}

#[test]
fn what_a_restart_sends_again_without_a_count_is_found() {
    dies_by(Plant::RestartUncounted, &["DUPLICATES-EXPLAINED"]);
}

/// Twenty seconds of one key's events, on a stream that ignores keys and puts all records of some seconds into one shard.
fn one_key_where_all_sticks_to_a_shard(plant: Plant) -> Result<(), Broken> {
    let mut life = Life::quiet(7, Aggregate::Kpl, 2);
    (life.plant, life.keys, life.judge.ordered) = (plant, 1, false);
    life.options.ask_mode_within = Duration::from_secs(3_600);
    (life.service.auto, life.service.sticky) = (true, true);
    life.start()?;
    for _ in 0..400 {
        life.write(30)?;
        life.pass(Duration::from_millis(50))?;
    }
    let met = life.service.met.get("request that nothing is known for").copied().unwrap_or_default();
    assert!(met > 200, "{met} requests left before anything was known");
    life.process.take().expect("nothing ends it").end();
    Ok(())
}

#[test]
fn evidence_that_is_taken_from_requests_for_one_shard_is_found() {
    if let Err(Broken(broken)) = one_key_where_all_sticks_to_a_shard(Plant::None) {
        panic!("the honest dispatcher: {broken}");
    }
    let broken = one_key_where_all_sticks_to_a_shard(Plant::ProofByOneShard).expect_err("it lives through this").0;
    assert!(broken.contains("SAFE-UNLESS-KNOWN"), "{broken}");
}
