//! Each planted bug is found by a seed of the standard set, under the name of the promise that it breaks.
//!
//! What is planted where stands in `planted.rs`. The honest spool passes the same seeds (`lives.rs`), so that what is
//! found here is the bug.

use crate::life::live;
use crate::lives::STANDARD;
use crate::planted::Plant;

/// Seeds of the standard set within which each bug must be found: few, so that a weaker simulator shows.
const SEEDS: std::ops::Range<u64> = 0..200;

/// One of the seeds fails by this bug, by the name of one of these promises.
fn dies_by(plant: Plant, promises: &[&str]) {
    assert!(STANDARD.contains(&SEEDS.start) && SEEDS.end <= STANDARD.end);
    let mut others = Vec::new();
    for seed in SEEDS {
        let Err(broken) = live(seed, plant).verdict else { continue };
        if promises.iter().any(|promise| broken.contains(promise)) {
            println!("{plant:?} is found by seed {seed}: {broken}");
            return;
        }
        others.push((seed, broken));
    }
    panic!("{plant:?} lives through the seeds {SEEDS:?}, or dies by something else than {promises:?}: {others:?}");
}

#[test]
fn a_receipt_before_its_sync_is_found_when_it_leaves() {
    dies_by(Plant::NoDataSync, &["RECEIPT-AFTER-SYNC"]);
}

#[test]
fn a_receipt_before_its_sync_is_found_by_a_crash_alone() {
    dies_by(Plant::NoDataSyncUnseen, &["NOTHING-LOST", "DENSE"]);
}

#[test]
fn a_directory_that_is_not_synced_is_found_when_a_receipt_leaves() {
    dies_by(Plant::NoDirSync, &["RECEIPT-AFTER-SYNC"]);
}

#[test]
fn a_directory_that_is_not_synced_is_found_by_a_crash_alone() {
    dies_by(Plant::NoDirSyncUnseen, &["NOTHING-LOST", "DENSE"]);
}

#[test]
fn a_failed_sync_that_is_tried_again_on_the_same_file_is_found() {
    dies_by(Plant::SyncRetried, &["RECEIPT-AFTER-SYNC", "NOTHING-LOST"]);
}

#[test]
fn a_write_error_that_is_ignored_is_found() {
    dies_by(Plant::WriteErrorIgnored, &["RECEIPT-AFTER-SYNC", "NOTHING-LOST"]);
}

#[test]
fn a_mark_ahead_of_delivery_is_found() {
    dies_by(Plant::MarkAheadOfDelivery, &["NOTHING-LOST"]);
}

#[test]
fn a_deletion_ahead_of_delivery_is_found() {
    dies_by(Plant::DeletionAheadOfDelivery, &["NOTHING-LOST"]);
}

#[test]
fn a_deletion_ahead_of_the_saved_mark_is_found() {
    dies_by(Plant::DeletionAheadOfSavedMark, &["past the saved mark"]);
}

#[test]
fn a_deletion_of_the_newest_segment_is_found() {
    dies_by(Plant::NewestDeleted, &["DENSE"]);
}

#[test]
fn a_torn_tail_that_is_kept_because_a_checkpoint_calls_it_durable_is_found() {
    dies_by(Plant::TornTailKept, &["EXACT-ACCOUNT", "KEY-ORDER", "DENSE"]);
}

#[test]
fn a_lane_that_sends_out_of_order_is_found() {
    dies_by(Plant::FailedGoesLast, &["KEY-ORDER"]);
}

#[test]
fn damage_that_is_passed_over_in_silence_is_found() {
    dies_by(Plant::DamageUntold, &["EXACT-ACCOUNT"]);
}

#[test]
fn an_interval_that_passes_without_its_sync_is_found() {
    dies_by(Plant::DueSyncSkipped, &["INTERVAL-BOUND"]);
}

#[test]
fn a_seal_that_syncs_nothing_is_found() {
    dies_by(Plant::SealUnsynced, &["SEALED-STAYS"]);
}

#[test]
fn an_index_that_outlives_its_frames_is_found() {
    dies_by(Plant::IndexBeforeFrames, &["EXACT-ACCOUNT"]);
}

#[test]
fn a_receipt_before_the_write_is_found_by_a_kill() {
    dies_by(Plant::ReceiptBeforeWrite, &["NOTHING-LOST"]);
}
