//! What happens without room, by policy; what each sync class promises; quotas of sources. On a disk that fills and fails.

use super::room::Room;
use super::*;
use crate::config::SyncClass;
use crate::spool::tests::fault_files::Pending;

/// A spool with a policy.
fn world(max_bytes: u64, segment_bytes: u64, policy: Policy) -> (World, Arc<SimClock>) {
    let (files, clock) = (FaultFiles::new(), Arc::new(SimClock::new()));
    let host = sim_host(&files, &clock, 1);
    let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes, segment_bytes };
    prepare(&host, &options).expect("an empty disk");
    let Opened { handle, writer, .. } = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool");
    handle.set_policy(policy);
    (World { files, host, handle, writer: Some(writer) }, clock)
}

fn reject() -> Policy {
    Policy { on_full: OnFull::Reject, ..Policy::default() }
}

fn class(sync: SyncClass) -> Policy {
    Policy { sync, ..Policy::default() }
}

impl World {
    fn submit_of(&self, tenant: &Tenant, data: &[u8]) -> Receipt {
        let mut batch = self.handle.batch_of(tenant);
        batch.push("user", None, data);
        let permit = self.handle.try_admit(batch.len()).expect("room in the budget");
        self.handle.submit(batch, permit)
    }

    /// All sealed segments but the newest go, as if everything was delivered.
    fn deliver_all(&self) {
        let shared = self.handle.shared();
        remove_covered(&self.host, &shared.table, &[Position(u64::MAX); LANES]).expect("a good disk");
        shared.space_freed();
    }

    fn end(&self, thread: JoinHandle<()>) {
        self.handle.close();
        thread.join().expect("the commit thread ends");
    }

    fn rejected(&self, source: &str) -> u64 {
        locked(&self.handle.shared().metrics.rejected).get(&(source.to_owned(), FULL)).copied().unwrap_or_default()
    }

    fn accepted(&self, source: &str) -> u64 {
        locked(&self.handle.shared().metrics.accepted_by_source).get(source).copied().unwrap_or_default()
    }

    fn data_syncs(&self) -> usize {
        self.files.log().iter().filter(|record| record.op == Op::SyncData && record.path.starts_with("/spool/segments")).count()
    }

    /// Events that a power cut of the kindest and the cruellest kind leaves.
    fn after_power_cut(&self, seed: u64) -> u64 {
        let disk = self.files.crash(seed);
        let host = sim_host(&disk, &Arc::new(SimClock::new()), 1);
        let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes: 1 << 30, segment_bytes: 100 };
        open(&host, &options, Position(0), &Arc::default()).expect("a good disk").writer.next().0
    }
}

#[test]
fn with_reject_a_full_spool_answers_full_at_once_counts_by_source_and_takes_events_again_after_a_removal() {
    let (mut world, _) = world(16_000, 1, reject());
    let web = world.handle.register("web", None);
    let thread = world.start();
    assert_eq!(answer(world.submit_of(&web, b"0")), Ok(Position(0)));
    assert_eq!(answer(world.submit_of(&web, b"1")), Ok(Position(1)));
    assert_eq!(world.handle.refuses(&web), None);
    assert_eq!(answer(world.submit_of(&web, b"2")), Err(NotDurable::Full(Limit::MaxBytes)));
    assert_eq!(world.handle.refuses(&web), Some(Limit::MaxBytes));
    world.handle.count_full(&web, Limit::MaxBytes, 4);
    assert_eq!((world.rejected("web"), world.accepted("web")), (5, 2));
    assert!(world.handle.shared().metrics.writable.load(Ordering::Relaxed), "full is not broken");
    world.wait_until("the memory of what was refused to come back", |_| world.free_permits() == INGEST_BYTES_MAX);
    world.deliver_all();
    // Nobody submits anything: the spool finds out by itself.
    world.wait_until("room", |metrics| metrics.full_by().is_none());
    assert_eq!(answer(world.submit_of(&web, b"3")), Ok(Position(2)), "no position was spent on what was refused");
    assert_eq!(locked(&world.handle.shared().metrics.account).accepted, 3);
    world.end(thread);
    assert_eq!(world.read().0.last().map(Vec::as_slice), Some(&b"3"[..]));
}

#[test]
fn with_reject_what_follows_a_group_without_room_is_refused_too_however_small() {
    let (mut world, _) = world(20_000, 64 << 20, reject());
    let thread = world.start();
    assert_eq!(answer(world.submit(&[&[b'x'; 15_000]])), Err(NotDurable::Full(Limit::MaxBytes)));
    assert_eq!(answer(world.submit(&[b"small"])), Err(NotDurable::Full(Limit::MaxBytes)), "fullness flickers");
    world.end(thread);
}

#[test]
fn with_reject_a_disk_without_room_is_answered_full_is_not_broken_and_serves_again_when_it_has_room() {
    let (mut world, _) = world(1 << 30, 64 << 20, reject());
    let web = world.handle.register("web", None);
    let thread = world.start();
    assert_eq!(answer(world.submit_of(&web, b"kept")), Ok(Position(0)));
    world.files.set_capacity(Some(world.files.used() + 10));
    assert_eq!(answer(world.submit_of(&web, b"refused")), Err(NotDurable::Full(Limit::Disk)));
    assert_eq!(world.handle.refuses(&web), Some(Limit::Disk));
    assert!(world.handle.shared().metrics.writable.load(Ordering::Relaxed));
    world.files.set_capacity(None);
    world.wait_until("room", |metrics| metrics.full_by().is_none());
    assert_eq!(answer(world.submit_of(&web, b"after")), Ok(Position(1)));
    assert_eq!(world.after_power_cut(0), 2, "RECEIPT-AFTER-SYNC");
    world.end(thread);
    assert_eq!(world.rejected("web"), 1);
}

#[test]
fn the_reserve_binds_before_the_disk_is_full_and_leaves_its_bytes_to_others() {
    for on_full in [OnFull::Block, OnFull::Reject] {
        let (mut world, _) = world(1 << 30, 64 << 20, Policy { on_full, reserve: Some(50_000), ..Policy::default() });
        let web = world.handle.register("web", None);
        world.files.set_capacity(Some(60_000));
        let thread = world.start();
        let mut held_back = None;
        for _ in 0..60 {
            let receipt = world.submit_of(&web, &[b'x'; 400]);
            world.wait_until("an end", |metrics| metrics.full_by().is_some() || world.free_permits() == INGEST_BYTES_MAX);
            if world.handle.shared().metrics.full_by().is_some() {
                held_back = Some(receipt);
                break;
            }
        }
        let held_back = held_back.expect("the reserve binds");
        assert_eq!(world.handle.full_for(&web), Some(Limit::Reserve), "{on_full:?}");
        assert!(world.files.used() <= 10_000, "{} bytes: the reserve is touched", world.files.used());
        assert!(world.files.used() > 8_000, "{} bytes: far from the reserve", world.files.used());
        assert_eq!(world.handle.refuses(&web).is_some(), on_full == OnFull::Reject);
        if on_full == OnFull::Reject {
            assert_eq!(answer(held_back), Err(NotDurable::Full(Limit::Reserve)));
            world.files.set_capacity(Some(100_000));
        } else {
            world.files.set_capacity(Some(100_000));
            answer(held_back).expect("somebody made room");
        }
        world.wait_until("room", |metrics| metrics.full_by().is_none());
        answer(world.submit_of(&web, b"after")).expect("there is room");
        world.end(thread);
    }
}

#[test]
fn a_reserve_that_nobody_set_is_a_twentieth_of_a_small_disk() {
    let (mut world, _) = world(1 << 30, 64 << 20, Policy { reserve: None, ..reject() });
    // A twentieth is 50,000; 256 MiB would leave nothing.
    world.files.set_capacity(Some(1_000_000));
    let web = world.handle.register("web", None);
    let thread = world.start();
    assert_eq!(answer(world.submit_of(&web, &vec![b'x'; 900_000])), Ok(Position(0)));
    assert_eq!(answer(world.submit_of(&web, &vec![b'x'; 49_000])), Ok(Position(1)));
    assert_eq!(answer(world.submit_of(&web, &vec![b'x'; 10_000])), Err(NotDurable::Full(Limit::Reserve)));
    world.end(thread);
}

#[test]
fn free_space_is_not_asked_for_at_every_commit() {
    // SimClock stands still, so only nearness to the reserve makes it ask.
    let (world, _) = world(1 << 30, 64 << 20, Policy { reserve: Some(50_000), ..Policy::default() });
    world.files.set_capacity(Some(10_000_000));
    let mut room = Room::default();
    let shared = world.handle.shared();
    assert_eq!(room.limit(shared, 1_000), None);
    room.wrote(1_000);
    // What was learnt at first is still believed.
    world.files.set_capacity(Some(1));
    assert_eq!(room.limit(shared, 1_000), None);
    room.wrote(9_940_000);
    assert_eq!(room.limit(shared, 10_000), Some(Limit::Reserve), "near the reserve it asks again");
}

#[test]
fn in_class_interval_a_receipt_comes_before_the_sync_and_the_sync_comes_when_it_is_due() {
    let (mut world, clock) = world(1 << 30, 64 << 20, class(SyncClass::Interval(Duration::from_millis(50))));
    let thread = world.start();
    assert_eq!(answer(world.submit(&[b"0"])), Ok(Position(0)));
    assert_eq!(world.data_syncs(), 0, "the receipt does not wait for a sync");
    assert!(world.files.log().iter().any(|record| record.op == Op::SyncDir && record.path.ends_with("segments")), "the entry is");
    clock.advance(Duration::from_millis(60));
    world.wait_until("the sync", |_| world.data_syncs() == 1);
    // The power goes: what was synced is there, what was written since may not be.
    assert_eq!(answer(world.submit(&[b"1"])), Ok(Position(1)));
    assert_eq!(world.after_power_cut(0), 1);
    world.handle.close();
    thread.join().expect("the commit thread ends");
}

#[test]
fn in_class_os_only_sealing_and_the_end_sync_and_a_clean_end_keeps_everything() {
    let (mut world, clock) = world(1 << 30, 1_000, class(SyncClass::Os));
    let thread = world.start();
    assert_eq!(answer(world.submit(&[&[b'x'; 400]])), Ok(Position(0)));
    clock.advance(Duration::from_secs(3600));
    assert_eq!(answer(world.submit(&[&[b'x'; 700]])), Ok(Position(1)));
    assert_eq!(world.data_syncs(), 0);
    assert_eq!(answer(world.submit(&[b"2"])), Ok(Position(2)));
    assert_eq!(world.data_syncs(), 2, "sealing syncs the frames, then the index");
    assert_eq!(answer(world.submit(&[b"3"])), Ok(Position(3)));
    world.end(thread);
    assert_eq!(world.after_power_cut(0), 4);
}

#[test]
fn a_process_that_is_killed_loses_nothing_in_any_class() {
    for sync in [SyncClass::Always, SyncClass::Interval(Duration::from_secs(1)), SyncClass::Os] {
        let (mut world, _) = world(1 << 30, 64 << 20, class(sync));
        let thread = world.start();
        for n in 0..5 {
            assert_eq!(answer(world.submit(&[b"x"])), Ok(Position(n)));
        }
        let disk = world.files.kill();
        let host = sim_host(&disk, &Arc::new(SimClock::new()), 1);
        let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes: 1 << 30, segment_bytes: 100 };
        assert_eq!(
            open(&host, &options, Position(0), &Arc::default()).expect("a good disk").writer.next(),
            Position(5),
            "{sync}"
        );
        world.end(thread);
    }
}

#[test]
fn after_a_power_cut_in_a_weaker_class_positions_do_not_go_back_and_what_a_checkpoint_knew_of_is_counted_as_lost() {
    let mut lost_some = 0;
    for seed in 0..60 {
        let (mut world, _) = world(1 << 30, 1_500, class(SyncClass::Os));
        let thread = world.start();
        for n in 0..12 {
            assert_eq!(answer(world.submit(&[&[b'x'; 200]])), Ok(Position(n)));
        }
        // Eight of them were delivered, and a checkpoint says so.
        let known = Position(8);
        let disk = world.files.crash(seed);
        let host = sim_host(&disk, &Arc::new(SimClock::new()), 1);
        let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes: 1 << 30, segment_bytes: 1_500 };
        let opened = open(&host, &options, known, &Arc::default()).expect("damage never stops an opening");
        assert!(opened.writer.next() >= known, "seed {seed}: a position would be given twice");
        let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        let (mut found, mut at) = (0, Position(0));
        while let Some(swept) = cursor.next(at).expect("a good disk") {
            found += u64::from(swept.chunk.count);
            at = Position(swept.chunk.first.0 + u64::from(swept.chunk.count));
        }
        // EXACT-ACCOUNT: every position below the next one is there or counted.
        assert_eq!(found + opened.damaged_events, opened.writer.next().0, "seed {seed}");
        lost_some += u64::from(opened.damaged_events > 0);
        world.end(thread);
    }
    assert!(lost_some > 5, "only {lost_some} power cuts took something: nothing was tried");
}

#[test]
fn a_sync_that_fails_after_the_receipts_latches_the_file_and_the_next_group_is_synced_in_a_new_one() {
    let (mut world, clock) = world(1 << 30, 64 << 20, class(SyncClass::Interval(Duration::from_millis(50))));
    let thread = world.start();
    assert_eq!(answer(world.submit(&[b"0"])), Ok(Position(0)));
    // The sync fails, and so does every new file for a while.
    world.files.fail(Fault::new(Op::SyncData, 1, EIO).on("/segments").pending(Pending::Forget));
    world.files.fail(Fault::new(Op::Create, 1, EIO).on("/segments").for_ever());
    clock.advance(Duration::from_millis(60));
    world.wait_until("not writable", |metrics| !metrics.writable.load(Ordering::Relaxed));
    world.files.heal();
    // Found out without any event.
    world.wait_until("writable", |metrics| metrics.writable.load(Ordering::Relaxed));
    let table = &world.handle.shared().table;
    let ids: Vec<u32> = table.all().iter().map(|segment| segment.id.0).collect();
    assert!(ids.len() == 2 && ids[0] == 1, "LATCH: {ids:?}");
    assert_eq!(answer(world.submit(&[b"1"])), Ok(Position(1)));
    assert_eq!(table.all()[0].extent().end, Position(1), "LATCH: nothing more was written to the failed file");
    assert_eq!(world.read().0, [b"0", b"1"], "delivery goes on with what is there");
    world.end(thread);
}

#[test]
fn a_file_given_up_for_a_failed_write_is_synced_for_what_was_receipted_there() {
    let (mut world, _) = world(1 << 30, 64 << 20, class(SyncClass::Os));
    let thread = world.start();
    assert_eq!(answer(world.submit(&[b"0"])), Ok(Position(0)));
    world.files.fail(Fault::new(Op::Write, 1, EIO).on("/segments").partial(10));
    assert_eq!(answer(world.submit(&[b"1"])), Ok(Position(1)));
    assert_eq!(world.data_syncs(), 1);
    assert!(world.after_power_cut(0) >= 1, "the first file is nobody's to sync later");
    world.end(thread);
}

#[test]
fn a_source_at_its_quota_waits_alone_until_its_segments_are_gone() {
    let (mut world, _) = world(1 << 30, 1_000, Policy::default());
    let (noisy, other) = (world.handle.register("noisy", Some(3_000)), world.handle.register("other", Some(3_000)));
    let thread = world.start();
    while world.handle.full_for(&noisy).is_none() {
        answer(world.submit_of(&noisy, &[b'x'; 500])).expect("below its quota");
    }
    assert_eq!(world.handle.full_for(&noisy), Some(Limit::Quota));
    assert_eq!((world.handle.full_for(&other), world.handle.shared().metrics.full_by()), (None, None));
    answer(world.submit_of(&other, b"o")).expect("the other's share is its own");
    let handle = world.handle.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        drop(handle.admit_source(&other, 10).await.expect("at once"));
        let mut waiting = Box::pin(handle.admit_source(&noisy, 10));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err(), "admitted over its quota");
        assert_eq!(world.free_permits(), INGEST_BYTES_MAX, "who waits holds nothing");
        world.deliver_all();
        drop(tokio::time::timeout(DEADLINE, waiting).await.expect("woken").expect("open"));
    });
    assert!(noisy.usage.bytes.load(Ordering::Relaxed) < 1_500, "what is left is in the newest segment");
    world.end(thread);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    assert_eq!(runtime.block_on(handle.admit_source(&noisy, 10)).map(drop), Err(Closed));
}

#[test]
fn with_reject_a_source_at_its_quota_is_refused_alone_and_counted() {
    let (mut world, _) = world(1 << 30, 1_000, reject());
    let (noisy, other) = (world.handle.register("noisy", Some(2_000)), world.handle.register("other", None));
    let thread = world.start();
    while world.handle.refuses(&noisy).is_none() {
        answer(world.submit_of(&noisy, &[b'x'; 500])).expect("below its quota");
    }
    world.handle.count_full(&noisy, Limit::Quota, 7);
    assert_eq!((world.handle.refuses(&noisy), world.handle.refuses(&other)), (Some(Limit::Quota), None));
    assert_eq!((world.rejected("noisy"), world.rejected("other")), (7, 0));
    answer(world.submit_of(&other, b"o")).expect("the other's share is its own");
    world.deliver_all();
    assert_eq!(world.handle.refuses(&noisy), None);
    world.end(thread);
}
