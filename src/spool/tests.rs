//! The spool as its users see it: what is receipted is read back, in order, after reopening, damage, latching.

#[path = "../../tests/common/fault_files.rs"]
#[allow(dead_code, reason = "the simulator uses more of the disk than these tests do")]
pub(crate) mod fault_files;
mod properties;

use std::path::Path;
use std::sync::Arc;

use super::cursor::Cursor;
use super::frame::Frame;
use super::gather::commit_loop;
use super::*;
use crate::checkpoint::Checkpoint;
use crate::event::{KeyHash, LANES, Lane};

fn options(dir: &Path) -> SpoolOptions {
    SpoolOptions { stream: "clicks".into(), dir: dir.to_owned(), max_bytes: 1 << 30, segment_bytes: 4096 }
}

fn reopen(dir: &Path) -> Opened {
    let host = Host::real();
    prepare(&host, &options(dir)).expect("prepare");
    open(&host, &options(dir), Position(0), &Arc::default()).expect("open")
}

/// Commits events `from..to`, each in its own group, and closes.
fn write(dir: &Path, from: u64, to: u64) {
    let opened = reopen(dir);
    let shared = Arc::clone(opened.handle.shared());
    let writer = opened.writer;
    let thread = std::thread::spawn(move || commit_loop(&shared, writer));
    for n in from..to {
        let mut batch = opened.handle.batch();
        let key = format!("user-{}", n % 17);
        batch.push(&key, None, format!("event {n}").as_bytes());
        let receipt = opened.handle.submit(batch, opened.handle.try_admit(100).expect("room"));
        assert_eq!(receipt.wait(), Ok(Position(n)));
    }
    opened.handle.close();
    thread.join().expect("commit thread");
}

fn read_all(opened: &Opened, from: Position) -> Vec<(u64, String)> {
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Host::real().files);
    let mut found = Vec::new();
    let mut at = from;
    while let Some(swept) = cursor.next(at).expect("read") {
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            if frame.position() >= from {
                found.push((frame.position().0, String::from_utf8_lossy(frame.data()).into_owned()));
            }
            at = Position(frame.position().0 + 1);
            bytes = &bytes[frame.len()..];
        }
        if swept.chunk.count == 0 {
            at = swept.chunk.first;
        }
    }
    found
}

fn expected(from: u64, to: u64) -> Vec<(u64, String)> {
    (from..to).map(|n| (n, format!("event {n}"))).collect()
}

#[test]
fn what_was_receipted_is_read_back_in_order_over_many_segments_and_reopenings() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 150);
    write(dir.path(), 150, 200);
    let opened = reopen(dir.path());
    assert!(opened.handle.shared().table.all().len() > 2);
    assert_eq!(read_all(&opened, Position(0)), expected(0, 200));
    assert_eq!(read_all(&opened, Position(137)), expected(137, 200));
    assert_eq!(opened.writer.next(), Position(200));
}

#[test]
fn each_lane_is_found_on_its_own_sealed_or_not() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 200);
    let opened = reopen(dir.path());
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Host::real().files);
    let mut found = Vec::new();
    for lane in (0..LANES as u16).map(Lane) {
        let mut last = None;
        for segment in opened.handle.shared().table.all() {
            for (in_lane, entry) in cursor.lane_frames(&segment, lane, lane).expect("index") {
                assert_eq!(in_lane, lane);
                let mut bytes = Vec::new();
                assert!(cursor.read_frame(&segment, entry, &mut bytes).expect("read"));
                let frame = Frame::check(&bytes).expect("whole");
                assert_eq!(frame.hash().lane(), lane);
                assert!(last < Some(frame.position()), "a lane is read in position order");
                last = Some(frame.position());
                found.push(frame.position().0);
            }
        }
    }
    found.sort_unstable();
    assert_eq!(found, (0..200).collect::<Vec<_>>());
}

#[test]
fn pending_counts_exactly_the_frames_at_or_past_their_lanes_mark() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 200);
    let opened = reopen(dir.path());
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Host::real().files);
    let mut marks = Box::new([Position(0); LANES]);
    for at in [0, 1, 77, 120, 199, 200] {
        marks.fill(Position(at));
        let pending: u64 =
            opened.handle.shared().table.all().iter().map(|segment| cursor.pending(segment, &marks).expect("read")).sum();
        assert_eq!(pending, 200 - at);
    }
}

#[test]
fn a_torn_tail_is_cut_and_positions_go_on_where_it_began() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 10);
    let path = segments_dir(dir.path()).join("0000000001.seg");
    let bytes = std::fs::read(&path).expect("read");
    // Unsealed, and the last frame cut in its middle.
    let frames_end = 64 + 10 * (40 + 6 + 7);
    std::fs::write(&path, &bytes[..frames_end - 5]).expect("tear");
    let opened = reopen(dir.path());
    assert_eq!(opened.damaged_events, 0);
    assert!(opened.torn_bytes > 0);
    assert_eq!(read_all(&opened, Position(0)), expected(0, 9));
    assert_eq!(opened.writer.next(), Position(9));
    drop(opened);
    write(dir.path(), 9, 12);
    assert_eq!(read_all(&reopen(dir.path()), Position(0)), expected(0, 12));
}

#[test]
fn a_flipped_bit_costs_that_event_alone_and_is_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 10);
    let path = segments_dir(dir.path()).join("0000000001.seg");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[64 + 4 * 53 + 45] ^= 1;
    let rest: Vec<_> = expected(0, 10).into_iter().filter(|(n, _)| *n != 4).collect();

    // Unsealed, so that opening scans it.
    std::fs::write(&path, &bytes[..64 + 530]).expect("damage");
    let opened = reopen(dir.path());
    assert_eq!(opened.damaged_events, 1);
    assert_eq!(read_all(&opened, Position(0)), rest);
    assert!(dir.path().join("dead/damaged-0000000001-276.bin").exists());

    // Sealed: opening trusts the index, reading finds the damage.
    std::fs::write(&path, &bytes).expect("damage");
    let opened = reopen(dir.path());
    assert_eq!(opened.damaged_events, 0);
    assert_eq!(read_all(&opened, Position(0)), rest);
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Host::real().files);
    let mut damaged = Vec::new();
    let mut at = Position(0);
    while let Some(swept) = cursor.next(at).expect("read") {
        damaged.extend(swept.damaged);
        at = Position(swept.chunk.first.0 + u64::from(swept.chunk.count));
    }
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].lane, KeyHash::of_key("user-4").lane());
}

#[test]
fn a_spool_of_another_version_or_stream_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 1);
    std::fs::write(dir.path().join("format"), "forebay spool 3\nstream clicks\n").expect("write");
    let error = prepare(&Host::real(), &options(dir.path())).expect_err("other version").to_string();
    assert!(error.contains("another version") && error.contains("drain it there"), "{error}");
    std::fs::write(dir.path().join("format"), "forebay spool 1\nstream orders\n").expect("write");
    let error = prepare(&Host::real(), &options(dir.path())).expect_err("other stream").to_string();
    assert!(error.contains("orders"), "{error}");
}

#[test]
fn covered_segments_go_and_the_newest_stays() {
    let dir = tempfile::tempdir().expect("temp dir");
    write(dir.path(), 0, 200);
    let opened = reopen(dir.path());
    let table = &opened.handle.shared().table;
    let all = table.all();
    let mut marks = Box::new([Position(200); LANES]);
    // One lane still stands at the third segment's first event.
    let stuck = KeyHash::of_key(&format!("user-{}", all[2].base.0 % 17)).lane();
    marks[stuck.index()] = all[2].base;
    let removed = remove_covered(&Host::real(), table, &marks).expect("remove");
    assert!(removed.contains(&all[0].id) && removed.contains(&all[1].id) && !removed.contains(&all[2].id));
    marks.fill(Position(200));
    remove_covered(&Host::real(), table, &marks).expect("remove");
    assert_eq!(table.all().len(), 1);
    drop(opened);
    assert_eq!(reopen(dir.path()).writer.next(), Position(200), "the newest file says where positions go on");
}

/// A simulated disk with `events` events, each its own group, in one segment; sealed or not.
fn simulated(events: u64, sealed: bool) -> (fault_files::FaultFiles, Host) {
    let files = fault_files::FaultFiles::new();
    let host = fault_files::sim_host(&files, &Arc::new(fault_files::SimClock::new()), 1);
    let options = SpoolOptions { segment_bytes: 1 << 20, ..options(Path::new("/spool")) };
    prepare(&host, &options).expect("an empty disk");
    let mut writer = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool").writer;
    for n in 0..events {
        let mut batch = Vec::new();
        frame::encode(&mut batch, "user", KeyHash::of_key("user"), false, format!("event {n}").as_bytes());
        writer.commit(&mut [batch]).expect("a good disk");
    }
    if sealed {
        writer.seal();
    }
    (files, host)
}

fn reopen_simulated(files: &fault_files::FaultFiles) -> (Opened, Host) {
    let host = fault_files::sim_host(files, &Arc::new(fault_files::SimClock::new()), 1);
    let opened = open(&host, &options(Path::new("/spool")), Position(0), &Arc::default()).expect("open");
    (opened, host)
}

/// Bytes of one frame of [`simulated`], below ten events.
const SIMULATED_FRAME: u64 = frame::FRAME_HEADER_BYTES as u64 + 11;

#[test]
fn a_full_disk_does_not_stop_a_start() {
    let files = simulated(5, false).0.kill();
    files.set_capacity(Some(files.used() + 100));
    let (opened, host) = reopen_simulated(&files);
    assert_eq!((opened.damaged_events, opened.writer.next()), (0, Position(5)));
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
    assert_eq!(cursor.next(Position(0)).expect("read").expect("five events").chunk.count, 5);
    // Room again: nothing was harmed by the index that found none.
    let files = files.kill();
    files.set_capacity(None);
    let (opened, _) = reopen_simulated(&files);
    assert_eq!((opened.damaged_events, opened.writer.next()), (0, Position(5)));
}

#[test]
fn a_damaged_event_that_was_read_before_takes_no_position_of_a_good_one() {
    for (hit, from, told) in [(0, 1, None), (0, 0, Some(0)), (3, 2, Some(3)), (3, 4, None), (5, 4, Some(5))] {
        let files = simulated(6, true).0.kill();
        let path = Path::new("/spool/segments").join(segment::SegmentId(1).file_name());
        let offset = segment::SEGMENT_HEADER_BYTES as u64 + hit * SIMULATED_FRAME;
        assert!(files.flip_bit(&path, offset + 45, 2));
        let (opened, host) = reopen_simulated(&files);
        let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        let (mut at, mut good, mut damaged) = (Position(from), Vec::new(), Vec::new());
        while let Some(swept) = cursor.next(at).expect("read") {
            damaged.extend(swept.damaged.iter().map(|damaged| damaged.position.0));
            let mut bytes = &swept.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                good.push(frame.position().0);
                bytes = &bytes[frame.len()..];
            }
            at = Position(good.last().map_or(0, |last| last + 1)).max(swept.chunk.first);
        }
        assert_eq!(damaged, Vec::from_iter(told), "bit {hit}, read from {from}");
        assert_eq!(good, (from..6).filter(|position| *position != hit).collect::<Vec<_>>(), "bit {hit}, read from {from}");
        let segment = opened.handle.shared().table.all().remove(0);
        let entry = super::index::Entry { offset: offset as u32, len: SIMULATED_FRAME as u32 };
        assert_eq!(cursor.damaged_position(&segment, entry).expect("read"), Position(hit));
    }
}

#[test]
fn a_flipped_position_does_not_mislead_the_count_of_pending_events() {
    for hit in 0..9 {
        for byte in 8..16 {
            let files = simulated(9, true).0.kill();
            let path = Path::new("/spool/segments").join(segment::SegmentId(1).file_name());
            assert!(files.flip_bit(&path, segment::SEGMENT_HEADER_BYTES as u64 + hit * SIMULATED_FRAME + byte, 3));
            let (opened, host) = reopen_simulated(&files);
            let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
            let segment = opened.handle.shared().table.all().remove(0);
            for mark in 0..=9 {
                let marks = Box::new([Position(mark); LANES]);
                assert_eq!(cursor.pending(&segment, &marks).expect("read"), 9 - mark, "event {hit}, byte {byte}");
            }
        }
    }
}

#[test]
fn a_flipped_position_misleads_neither_the_tools_nor_the_search_for_a_letters_event() {
    let lane = KeyHash::of_key("user").lane();
    for hit in 0..9 {
        for byte in 8..16 {
            let files = simulated(9, true).0.kill();
            let path = Path::new("/spool/segments").join(segment::SegmentId(1).file_name());
            assert!(files.flip_bit(&path, segment::SEGMENT_HEADER_BYTES as u64 + hit * SIMULATED_FRAME + byte, 3));
            let (opened, host) = reopen_simulated(&files);
            let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
            for position in 0..9 {
                let held = cursor.holds(lane, Position(position), false).expect("read");
                assert!(held, "event {position}, with a flipped bit in event {hit}, byte {byte}");
            }
            assert!(!cursor.holds(Lane(lane.0 ^ 1), Position(4), false).expect("read"));
            let tools = inspect::SpoolDir::open(&host, Path::new("/spool")).expect("a spool");
            let heads = tools.heads().expect("read");
            for mark in 0..=9 {
                let known =
                    Checkpoint { durable: Position(9), marks: Box::new([Position(mark); LANES]), ..Checkpoint::default() };
                let (_, alive) = tools.segments(&heads, &known, None).expect("read")[0];
                assert_eq!(alive.events, 9 - mark, "event {hit}, byte {byte}");
            }
        }
    }
}

#[test]
fn several_tries_at_one_group_prove_nothing_durable() {
    let (files, _) = simulated(2, true);
    let dir = Path::new("/spool/segments");
    let mut group = Vec::new();
    for n in 0..3u64 {
        let start = group.len();
        frame::encode(&mut group, "user", KeyHash::of_key("user"), false, format!("event {n}").as_bytes());
        frame::stamp(&mut group[start..], Position(2 + n), 0, n == 0);
    }
    // Two files that were given up on a failing disk, and that a power cut brought back: the first with its group torn, the
    // second with nothing that was ever written to it.
    group[..50].fill(0);
    let header =
        segment::SegmentHeader { id: segment::SegmentId(2), base: Position(2), created_ms: 0, rewritten: false }.encode();
    files.plant(&dir.join(segment::SegmentId(2).file_name()), &[&header[..], &group].concat());
    files.plant(&dir.join(segment::SegmentId(4).file_name()), &[0; 300]);
    let (opened, _) = reopen_simulated(&files.kill());
    assert_eq!((opened.damaged_events, opened.writer.next()), (0, Position(2)));
}

#[test]
fn what_a_file_lost_with_its_header_is_counted_once() {
    // Written without syncs (a weaker sync class), each file by a writer of its own; the events of the middle one are 3..6.
    let files = fault_files::FaultFiles::new();
    for n in 0..3u64 {
        let mut writer = reopen_simulated_unsealed(&files, Position(3 * n));
        for event in 0..3 {
            let mut batch = Vec::new();
            frame::encode(&mut batch, "user", KeyHash::of_key("user"), false, format!("event {event}").as_bytes());
            writer.commit(&mut [batch]).expect("a good disk");
        }
    }
    let path = |n| Path::new("/spool/segments").join(segment::SegmentId(n).file_name());
    let middle = files.contents(&path(2)).expect("three files");
    // Header and first frame are gone, or the header and all frames.
    for (lost, damaged) in [(segment::SEGMENT_HEADER_BYTES as u64 + SIMULATED_FRAME, 1), (middle.len() as u64, 3)] {
        let files = files.crash(1);
        files.plant(&path(2), &[&vec![0; lost as usize][..], &middle[lost as usize..]].concat());
        let (opened, _) = reopen_simulated(&files);
        assert_eq!((opened.damaged_events, opened.writer.next()), (damaged, Position(9)), "{lost} bytes lost");
    }
}

/// A writer that begins a file at `next`, beside those that are there.
fn reopen_simulated_unsealed(files: &fault_files::FaultFiles, next: Position) -> commit::Writer {
    let host = fault_files::sim_host(files, &Arc::new(fault_files::SimClock::new()), 1);
    prepare(&host, &options(Path::new("/spool"))).expect("a good disk");
    let dir = segments_dir(Path::new("/spool"));
    let table = Arc::new(SegmentTable::new(dir, Vec::new()));
    let id = segment::SegmentId(1 + (next.0 / 3) as u32);
    commit::Writer::new(host, table, 1 << 20, next, id)
}

#[test]
fn a_disk_that_fails_syncs_does_not_stop_a_start_and_holds_back_the_last_group_alone() {
    use fault_files::{EIO, Fault, Op, Pending};
    let faults = [(Op::SyncData, Pending::Keep), (Op::SyncData, Pending::Drop), (Op::SyncDir, Pending::Keep)];
    for (op, pending) in faults {
        let files = simulated(5, false).0.kill();
        files.fail(Fault::new(op, 1, EIO).on("/spool/segments").pending(pending).for_ever());
        let (mut opened, host) = reopen_simulated(&files);
        let held = opened.writer.held().expect("the last group is in doubt");
        assert_eq!((held.base(), held.events(), opened.writer.next()), (Position(4), 1, Position(4)), "{op:?}, {pending:?}");
        let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
        assert_eq!(cursor.next(Position(0)).expect("read").expect("the others").chunk.count, 4);
        assert!(opened.writer.probe().is_err(), "nothing can be written");
        // Whatever happens now, no receipted event is gone.
        for seed in 0..20 {
            let (again, _) = reopen_simulated(&files.crash(seed));
            assert_eq!((again.damaged_events, again.writer.next()), (0, Position(5)), "{op:?}, {pending:?}, crash {seed}");
        }
    }
}

#[test]
fn what_was_held_back_is_written_again_with_its_position_before_anything_else() {
    use fault_files::{EIO, Fault, Op};
    let files = simulated(5, false).0.kill();
    files.fail(Fault::new(Op::SyncData, 1, EIO).on("/spool/segments"));
    let (mut opened, host) = reopen_simulated(&files);
    let mut batch = Vec::new();
    frame::encode(&mut batch, "user", KeyHash::of_key("user"), false, b"event 5");
    let placed = opened.writer.commit(&mut [batch]).expect("the disk is well again");
    assert_eq!(placed[0].first, Position(5), "DENSE");
    drop((opened, host));
    let (opened, host) = reopen_simulated(&files.crash(0));
    assert_eq!((opened.damaged_events, opened.writer.next()), (0, Position(6)));
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
    let (mut at, mut found) = (Position(0), Vec::new());
    while let Some(swept) = cursor.next(at).expect("read") {
        assert!(swept.damaged.is_empty());
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            found.push((frame.position().0, String::from_utf8_lossy(frame.data()).into_owned()));
            bytes = &bytes[frame.len()..];
        }
        at = Position(swept.chunk.first.0 + u64::from(swept.chunk.count));
    }
    assert_eq!(found, (0..6).map(|n| (n, format!("event {n}"))).collect::<Vec<_>>());
}
