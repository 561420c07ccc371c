//! Receipts, permits and buffers of the gathering group, the hot tail, and how both end: on a disk that fails on demand.
//!
//! Batches are submitted before the commit thread runs wherever a test is about groups, so that it decides what a
//! group is, and not the scheduler.

mod policies;

use std::thread::JoinHandle;

use super::*;
use crate::event::{LANES, Lane};
use crate::limits::HOT_TAIL_BYTES_MAX;
use crate::spool::commit::Writer;
use crate::spool::cursor::Cursor;
use crate::spool::frame::Frame;
use crate::spool::segment::SegmentId;
use crate::spool::tests::fault_files::{EIO, ENOSPC, Fault, FaultFiles, Op, SimClock, sim_host};
use crate::spool::{Opened, SpoolOptions, open, prepare, remove_covered};

/// A generous end for what should take moments.
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    files: FaultFiles,
    host: Host,
    handle: SpoolHandle,
    writer: Option<Writer>,
}

impl World {
    fn new(max_bytes: u64, segment_bytes: u64) -> Self {
        let (files, clock) = (FaultFiles::new(), Arc::new(SimClock::new()));
        let host = sim_host(&files, &clock, 1);
        let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes, segment_bytes };
        prepare(&host, &options).expect("an empty disk");
        let Opened { handle, writer, .. } = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool");
        Self { files, host, handle, writer: Some(writer) }
    }

    fn large() -> Self {
        Self::new(1 << 30, 64 << 20)
    }

    fn submit(&self, datas: &[&[u8]]) -> Receipt {
        let mut batch = self.handle.batch();
        for data in datas {
            batch.push("user", None, data);
        }
        let permit = self.handle.try_admit(batch.len()).expect("room in the budget");
        self.handle.submit(batch, permit)
    }

    /// Commits what was submitted, on this thread, and ends.
    fn commit_all(&mut self) {
        self.handle.close();
        commit_loop(self.handle.shared(), self.writer.take().expect("runs once"));
    }

    fn start(&mut self) -> JoinHandle<()> {
        let (shared, writer) = (Arc::clone(self.handle.shared()), self.writer.take().expect("runs once"));
        std::thread::spawn(move || commit_loop(&shared, writer))
    }

    fn wait_until(&self, what: &str, holds: impl Fn(&StreamMetrics) -> bool) {
        let clock = Host::real().clock;
        while !holds(&self.handle.shared().metrics) {
            assert!(clock.monotonic() < DEADLINE, "in vain: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn free_permits(&self) -> usize {
        self.handle.shared().budget.available_permits()
    }

    fn cursor(&self) -> Cursor {
        Cursor::new(Arc::clone(self.handle.shared()), Arc::clone(&self.host.files))
    }

    /// Everything, and for each chunk whether it came from memory.
    fn read(&self) -> (Vec<Vec<u8>>, Vec<bool>, Vec<u64>) {
        let (mut datas, mut hot, mut commits) = (Vec::new(), Vec::new(), Vec::new());
        let mut cursor = self.cursor();
        while let Some(swept) = cursor.next(Position(datas.len() as u64)).expect("a good disk") {
            let mut bytes = &swept.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                assert_eq!(frame.position(), Position(datas.len() as u64));
                if frame.commit_start() {
                    commits.push(frame.position().0);
                }
                datas.push(frame.data().to_vec());
                bytes = &bytes[frame.len()..];
            }
            assert!(bytes.is_empty());
            hot.push(swept.chunk.pool.is_some());
        }
        (datas, hot, commits)
    }
}

/// The answer, which must come.
fn answer(receipt: Receipt) -> Result<Position, NotDurable> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(DEADLINE, receipt.durable()).await.expect("a receipt that never resolves") })
}

#[test]
fn a_receipt_tells_the_first_position_of_its_batch_also_when_batches_were_copied_together() {
    let mut world = World::large();
    let receipts: Vec<Receipt> = [&[&b"0"[..]][..], &[b"1", b"2", b"3"], &[], &[b"4", b"5"], &[b"6"]]
        .into_iter()
        .map(|datas| world.submit(datas))
        .collect();
    assert_eq!(world.handle.shared().gathering().parts.len(), 1, "small batches are copied together");
    world.commit_all();
    let firsts: Vec<_> = receipts.into_iter().map(answer).collect();
    assert_eq!(firsts, [0, 1, 4, 4, 6].map(|first| Ok(Position(first))));
    let (datas, _, commits) = world.read();
    assert_eq!(datas, [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]);
    assert_eq!((commits, world.handle.shared().metrics.commit_seconds.count()), (vec![0], 1), "one fdatasync for all");
}

/// Some 18 MiB, with empty batches and small ones between the large: the receipts, and where each batch begins.
fn submit_three_groups(world: &World) -> (Vec<Receipt>, Vec<u64>) {
    let large = vec![b'x'; 3 << 19];
    let (mut receipts, mut firsts) = (Vec::new(), Vec::new());
    for n in 0..12u8 {
        receipts.push(world.submit(&[&large, &[n]]));
        receipts.push(world.submit(&[]));
        receipts.push(world.submit(&[&[n; 100]]));
        firsts.extend([0, 2, 2].map(|more| 3 * u64::from(n) + more));
    }
    (receipts, firsts)
}

#[test]
fn a_group_that_is_too_large_is_split_and_permits_and_receipts_follow_their_events() {
    let world = World::large();
    let (_receipts, firsts) = submit_three_groups(&world);
    let shared = world.handle.shared();
    let (mut events, mut found, mut groups) = (0, Vec::new(), 0);
    while events < 36 {
        let Next::Group(group) = shared.next_group(false, None) else { panic!("no group") };
        assert!(group.bytes <= GROUP_BYTES_MAX);
        assert_eq!(group.parts.iter().map(|(bytes, _)| bytes.len()).sum::<usize>(), group.bytes);
        assert_eq!(group.parts.iter().map(|(_, count)| u64::from(*count)).sum::<u64>(), group.events);
        let permits: usize = group.waiting.iter().map(|waiting| waiting.permit.held.num_permits()).sum();
        // An empty batch holds a permit of one byte.
        assert!((group.bytes..=group.bytes + group.waiting.len()).contains(&permits), "{permits} for {} bytes", group.bytes);
        found.extend(group.waiting.iter().map(|waiting| events + waiting.first));
        events += group.events;
        groups += 1;
    }
    assert_eq!((found, groups), (firsts, 3));
    assert!(shared.gathering().waiting.is_empty());
}

#[test]
fn receipts_of_a_split_group_tell_the_positions_at_which_the_events_are_read() {
    let mut world = World::large();
    let (receipts, firsts) = submit_three_groups(&world);
    world.commit_all();
    assert_eq!(
        receipts.into_iter().map(answer).collect::<Vec<_>>(),
        firsts.into_iter().map(|first| Ok(Position(first))).collect::<Vec<_>>()
    );
    let (datas, _, commits) = world.read();
    assert_eq!(datas.len(), 36);
    assert!((0..12u8).all(|n| datas[usize::from(n) * 3 + 1] == [n] && datas[usize::from(n) * 3 + 2] == [n; 100]));
    assert_eq!((commits.len(), commits[0]), (3, 0), "{commits:?}");
    assert_eq!(world.free_permits(), INGEST_BYTES_MAX);
}

#[test]
fn a_closed_spool_admits_nothing_and_wakes_who_waits_to_be_admitted() {
    let world = World::large();
    let permit = world.handle.try_admit(100).expect("room");
    let all: Vec<Permit> = std::iter::from_fn(|| world.handle.try_admit(INGEST_BYTES_MAX).ok()).collect();
    assert_eq!(all.len(), 2, "a giant gets three eighths");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let waited = runtime.block_on(async {
        let waiting = tokio::spawn({
            let handle = world.handle.clone();
            async move { handle.admit(INGEST_BYTES_MAX).await.map(drop) }
        });
        tokio::task::yield_now().await;
        world.handle.close();
        tokio::time::timeout(DEADLINE, waiting).await.expect("woken").expect("no panic")
    });
    assert_eq!(waited, Err(Closed));
    assert_eq!(world.handle.try_admit(1).map(drop), Err(Closed));
    let receipt = world.handle.submit(world.handle.batch(), permit);
    assert_eq!(answer(receipt), Err(NotDurable::Closed), "admitted before, submitted after");
}

#[test]
fn what_was_submitted_before_the_close_is_still_committed() {
    let mut world = World::large();
    let receipt = world.submit(&[b"last"]);
    world.commit_all();
    assert_eq!(answer(receipt), Ok(Position(0)));
    assert_eq!(world.handle.shared().table.all().len(), 1);
}

#[test]
fn what_was_admitted_and_not_needed_goes_back_at_once_and_the_rest_when_it_is_durable() {
    let mut world = World::large();
    let mut batch = world.handle.batch();
    batch.push("user", None, b"data");
    let bytes = batch.len();
    let receipt = world.handle.submit(batch, world.handle.try_admit(100_000).expect("room"));
    assert_eq!(world.free_permits(), INGEST_BYTES_MAX - bytes);
    drop(world.handle.try_admit(100_000).expect("room"));
    assert_eq!(world.free_permits(), INGEST_BYTES_MAX - bytes, "a permit that is dropped is given back");
    world.commit_all();
    assert_eq!(answer(receipt), Ok(Position(0)));
    assert_eq!(world.free_permits(), INGEST_BYTES_MAX);
}

#[test]
fn buffers_come_back_from_batches_submitted_copied_or_dropped_and_giants_are_freed() {
    let mut world = World::large();
    let shared = Arc::clone(world.handle.shared());
    let pooled = || locked(&shared.pool.buffers).len();
    drop(world.handle.batch());
    assert_eq!(pooled(), 1, "dropped, not submitted");
    let mut dropped = world.handle.batch();
    assert_eq!(pooled(), 0);
    dropped.push("user", None, b"forgotten");
    drop(dropped);
    assert!(world.handle.batch().is_empty(), "a reused buffer is empty");
    drop((world.submit(&[b"first"]), world.submit(&[b"copied to the first"])));
    assert_eq!(pooled(), 1, "the copied one's");
    drop(world.submit(&[&vec![0; 3 * BATCH_BYTES]]));
    assert_eq!(pooled(), 0);
    world.commit_all();
    let mut cursor = world.cursor();
    drop(cursor.next(Position(0)).expect("a good disk"));
    assert_eq!(pooled(), 1, "the chunk's, once the dispatcher is through with it");
    drop(cursor.next(Position(2)).expect("a good disk"));
    assert_eq!(pooled(), 1, "a giant's buffer is not kept");
}

#[test]
fn what_fell_out_of_the_hot_tail_is_read_from_disk_and_then_memory_goes_on() {
    let mut world = World::large();
    let datas: Vec<Vec<u8>> = (0..5u8).map(|n| vec![n; 6 << 20]).collect();
    for data in &datas {
        drop(world.submit(&[data]));
    }
    world.commit_all();
    let tail = &world.handle.shared().tail;
    assert_eq!(tail.durable(), Position(5));
    assert!(tail.state().bytes <= HOT_TAIL_BYTES_MAX);
    let begins = tail.take(Position(0)).map(drop).expect_err("the first chunk is gone");
    assert!(begins > Position(0) && begins < Position(5), "{begins}");
    let (found, hot, _) = world.read();
    assert!(found == datas, "another content, or order");
    assert_eq!(hot, (0..5).map(|n| n >= begins.0).collect::<Vec<_>>(), "from memory as soon as memory has it");
}

#[test]
fn the_hot_tail_forgets_what_lies_before_the_position_that_is_asked_for() {
    let tail = HotTail::new(Position(10));
    assert_eq!(tail.take(Position(3)).map(drop), Err(Position(10)), "the disk has what was there before");
    let chunk = |first, count| Arc::new(Chunk::cold(vec![0; 8], Position(first), count, SegmentId(1), 64, 0));
    tail.push(vec![chunk(10, 4), chunk(14, 1), chunk(15, 5)], Position(20));
    assert_eq!(tail.take(Position(9)).map(drop), Err(Position(10)), "the disk has what lies before");
    assert_eq!(tail.take(Position(14)).map(|chunk| chunk.first), Ok(Position(14)));
    assert_eq!(tail.take(Position(10)).map(drop), Err(Position(15)), "what was passed is the disk's");
    assert_eq!(tail.take(Position(17)).map(|chunk| chunk.first), Ok(Position(15)), "a chunk that holds it in its middle");
    assert_eq!(tail.take(Position(20)).map(drop), Err(Position(20)));
    assert_eq!(tail.state().bytes, 0);
}

#[test]
fn no_receipt_leaves_while_commits_fail_and_at_the_close_nobody_waits_in_vain() {
    for (op, errno) in [(Op::Create, EIO), (Op::Write, ENOSPC), (Op::SyncData, EIO), (Op::SyncDir, EIO)] {
        let mut world = World::large();
        world.files.fail(Fault::new(op, 1, errno).on("/segments").for_ever());
        let tried = world.submit(&[b"tried"]);
        let thread = world.start();
        // The group was taken and has failed: what comes now gathers behind it.
        world.wait_until("the first failure", |metrics| {
            world.files.log().iter().any(|record| !record.ok) && !metrics.writable.load(Ordering::Relaxed)
        });
        let meanwhile = [world.submit(&[b"while it is tried"]), world.submit(&[])];
        let early = world.handle.try_admit(10).expect("room");
        world.wait_until("the reason", |metrics| metrics.full.load(Ordering::Relaxed) == (errno == ENOSPC));
        world.handle.close();
        thread.join().expect("the commit thread ends");
        // The handle still lives.
        assert_eq!(answer(tried), Err(NotDurable::Closed), "RECEIPT-AFTER-SYNC: {op:?}");
        for receipt in meanwhile {
            assert_eq!(answer(receipt), Err(NotDurable::Closed), "{op:?}");
        }
        assert_eq!(answer(world.handle.submit(world.handle.batch(), early)), Err(NotDurable::Closed), "{op:?}: after the end");
        assert_eq!(world.free_permits(), INGEST_BYTES_MAX, "{op:?}");
        assert_eq!(locked(&world.handle.shared().metrics.account).accepted, 0);
    }
}

#[test]
fn a_commit_that_failed_is_made_in_a_new_file_with_the_same_receipts() {
    for op in [Op::Write, Op::SyncData, Op::SyncDir] {
        let mut world = World::large();
        world.files.fail(Fault::new(op, 1, EIO).on("/segments").partial(100));
        let receipts = [world.submit(&[b"0", b"1"]), world.submit(&[b"2"])];
        let thread = world.start();
        assert_eq!(receipts.map(answer), [Ok(Position(0)), Ok(Position(2))], "{op:?}");
        assert_eq!(world.handle.shared().table.all()[0].id, SegmentId(2), "{op:?}: LATCH");
        assert!(world.handle.shared().metrics.writable.load(Ordering::Relaxed));
        assert_eq!(world.read().0, [b"0", b"1", b"2"]);
        world.handle.close();
        thread.join().expect("the commit thread ends");
    }
}

#[test]
fn a_receipt_means_that_a_power_cut_keeps_the_event() {
    let mut world = World::new(1 << 30, 100);
    let thread = world.start();
    let mut receipts = 0;
    for n in 0..8u8 {
        let receipt = world.submit(&[&[n; 90]]);
        assert_eq!(answer(receipt), Ok(Position(u64::from(n))));
        receipts += 1;
        if n == 7 {
            // Nothing that was only pending survives this one.
            let disk = world.files.crash(0);
            let host = sim_host(&disk, &Arc::new(SimClock::new()), 1);
            let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes: 1 << 30, segment_bytes: 100 };
            let opened = open(&host, &options, Position(0), &Arc::default()).expect("a good disk");
            assert_eq!(opened.writer.next(), Position(receipts), "RECEIPT-AFTER-SYNC");
        }
    }
    world.handle.close();
    thread.join().expect("the commit thread ends");
}

#[test]
fn a_full_spool_holds_events_back_until_segments_were_removed() {
    // Room for two segments of one event, one of them sealed.
    let mut world = World::new(16_000, 1);
    let thread = world.start();
    assert_eq!(answer(world.submit(&[b"0"])), Ok(Position(0)));
    assert_eq!(answer(world.submit(&[b"1"])), Ok(Position(1)));
    let held_back = world.submit(&[b"2"]);
    world.wait_until("full", |metrics| metrics.full.load(Ordering::Relaxed));
    assert!(world.handle.shared().metrics.writable.load(Ordering::Relaxed), "full is not broken");
    let shared = world.handle.shared();
    let removed = remove_covered(&world.host, &shared.table, &[Position(2); LANES]).expect("a good disk");
    assert_eq!(removed, [SegmentId(1)]);
    shared.space_freed();
    assert_eq!(answer(held_back), Ok(Position(2)));
    assert_eq!(world.handle.shared().metrics.full_by(), None);
    let in_lane = KeyHash::of_key("user").lane();
    assert!((0..LANES as u16).map(Lane).all(|lane| lane == in_lane || shared.table.all()[0].directory().count(lane) == 0));
    world.handle.close();
    thread.join().expect("the commit thread ends");
}

#[test]
fn refused_events_are_counted_by_source_and_reason() {
    let world = World::large();
    for (source, reason, events) in [("web", "too_large", 1), ("web", "no_key", 2), ("app", "no_key", 4), ("web", "no_key", 8)] {
        world.handle.count_rejected(source, reason, events);
    }
    let rejected = locked(&world.handle.shared().metrics.rejected).clone();
    let counted: Vec<_> = rejected.iter().map(|((source, reason), count)| (source.as_str(), *reason, *count)).collect();
    assert_eq!(counted, [("app", "no_key", 4), ("web", "no_key", 10), ("web", "too_large", 1)]);
}
