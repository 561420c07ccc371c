//! What holds for any events in any commits, cut, flipped or replaced at any byte: generated cases on a disk in memory.
//!
//! Checked by name: *NOTHING-LOST* (what was written is read, forward and lane by lane), *DENSE* (positions grow by one and
//! go on), *BORING-RECOVERY* (opening and reading end, whatever the bytes). [`everything`] is the only reader here: it
//! asserts that reading moves forward, and that the lanes' way finds what the sweep finds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::frame;
use super::super::index::{ActiveIndex, DIRECTORY_BYTES, Entry, FOOTER_BYTES, Footer};
use super::super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId};
use super::fault_files::{FaultFiles, SimClock, sim_host};
use super::*;
use crate::host::Files as _;

/// One event: its key's number, whether its hash is explicit, its data.
type Made = (u8, bool, Vec<u8>);

fn key_of(made: &Made) -> String {
    format!("user-{}", made.0)
}

fn hash_of(made: &Made) -> KeyHash {
    // Explicit hashes crowd into a few lanes, the first and the last among them.
    if made.1 { KeyHash((u128::from(made.0) << 124).wrapping_sub(1)) } else { KeyHash::of_key(&key_of(made)) }
}

fn events() -> impl Strategy<Value = Made> {
    (0..24u8, any::<bool>(), prop::collection::vec(any::<u8>(), 0..120))
}

/// Commits of batches of events.
fn commits() -> impl Strategy<Value = Vec<Vec<Vec<Made>>>> {
    prop::collection::vec(prop::collection::vec(prop::collection::vec(events(), 1..5), 1..4), 1..10)
}

struct Disk {
    files: FaultFiles,
    host: Host,
    options: SpoolOptions,
}

impl Disk {
    fn new(segment_bytes: u64) -> Self {
        Self::over(FaultFiles::new(), segment_bytes)
    }

    fn over(files: FaultFiles, segment_bytes: u64) -> Self {
        let host = sim_host(&files, &Arc::new(SimClock::new()), 1);
        let options = SpoolOptions { stream: "clicks".into(), dir: "/spool".into(), max_bytes: 1 << 30, segment_bytes };
        Self { files, host, options }
    }

    /// The same files under a new process.
    fn again(&self) -> Self {
        Self::over(self.files.kill(), self.options.segment_bytes)
    }

    fn open(&self) -> Opened {
        prepare(&self.host, &self.options).expect("a good disk");
        open(&self.host, &self.options, Position(0), &Arc::default()).expect("whatever the bytes are")
    }

    fn write(&self, commits: &[Vec<Vec<Made>>], seal: bool) {
        let mut writer = self.open().writer;
        for batches in commits {
            let mut encoded: Vec<Vec<u8>> = Vec::new();
            for batch in batches {
                let mut bytes = Vec::new();
                for made in batch {
                    frame::encode(&mut bytes, &key_of(made), hash_of(made), made.1, &made.2);
                }
                encoded.push(bytes);
            }
            writer.commit(&mut encoded).expect("a good disk");
        }
        if seal {
            writer.seal();
        }
    }

    fn segment_paths(&self) -> Vec<PathBuf> {
        let in_segments = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
        self.files.paths().into_iter().filter(in_segments).collect()
    }

    fn bytes(&self, path: &Path) -> Vec<u8> {
        self.files.contents(path).expect("a file of the spool")
    }
}

type Read = BTreeMap<u64, (String, KeyHash, bool, Vec<u8>)>;

fn as_read(frame: &Frame<'_>) -> (String, KeyHash, bool, Vec<u8>) {
    let key = String::from_utf8(frame.key_bytes().to_vec()).expect("checked");
    (key, frame.hash(), frame.explicit_hash(), frame.data().to_vec())
}

/// What is to be read of these commits.
fn numbered(commits: &[Vec<Vec<Made>>]) -> Read {
    let all = commits.iter().flatten().flatten();
    (0..).zip(all.map(|made| (key_of(made), hash_of(made), made.1, made.2.clone()))).collect()
}

/// All that a spool holds, and how many events the sweep met that no longer check.
fn everything(disk: &Disk, opened: &Opened) -> (Read, u64) {
    let shared = opened.handle.shared();
    let mut cursor = Cursor::new(Arc::clone(shared), Arc::clone(&disk.host.files));
    let (mut swept, mut damaged, mut at) = (Read::new(), 0, Position(0));
    while let Some(step) = cursor.next(at).expect("a disk that reads") {
        damaged += step.damaged.len() as u64;
        let before = at;
        let mut bytes = &step.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            assert!(frame.position() >= at, "DENSE: forward only");
            swept.insert(frame.position().0, as_read(&frame));
            at = Position(frame.position().0 + 1);
            bytes = &bytes[frame.len()..];
        }
        at = at.max(step.chunk.first);
        assert!(at > before, "BORING-RECOVERY: reading moves on");
    }
    let mut by_lane = Read::new();
    let mut pending = 0;
    let mut unreadable = 0;
    for segment in shared.table.all() {
        pending += cursor.pending(&segment, &[Position(0); LANES]).expect("a disk that reads");
        // A few lanes at a time, as shards do.
        for first in (0..LANES as u16).step_by(128) {
            let entries = cursor.lane_frames(&segment, Lane(first), Lane(first + 127)).expect("a disk that reads");
            let mut last = None;
            for (lane, entry) in entries {
                let mut bytes = Vec::new();
                if !cursor.read_frame(&segment, entry, &mut bytes).expect("a disk that reads") {
                    unreadable += 1;
                    continue;
                }
                let frame = Frame::check(&bytes).expect("read_frame checks");
                assert!(lane.0 / 128 == first / 128 && frame.hash().lane() == lane, "a frame in another lane's index");
                assert!(last < Some(frame.position()), "KEY-ORDER: lanes are read in position order");
                last = Some(frame.position());
                assert!(by_lane.insert(frame.position().0, as_read(&frame)).is_none(), "one frame in two lanes");
            }
        }
    }
    assert_eq!(by_lane, swept, "NOTHING-LOST: the lanes and the sweep disagree");
    assert_eq!((unreadable, pending), (damaged, swept.len() as u64 + damaged), "EXACT-ACCOUNT");
    (swept, damaged)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_events_in_any_commits_read_back_forward_and_lane_by_lane(
        commits in commits(), segment_bytes in 100..6000u64, sealed: bool, further in commits(),
    ) {
        let disk = Disk::new(segment_bytes);
        disk.write(&commits, sealed);
        let disk = disk.again();
        let opened = disk.open();
        let expected = numbered(&commits);
        prop_assert_eq!((opened.damaged_events, opened.torn_bytes), (0, 0));
        prop_assert_eq!(opened.writer.next(), Position(expected.len() as u64));
        prop_assert_eq!(everything(&disk, &opened), (expected, 0));
        drop(opened);
        // And what a second life adds goes behind it.
        disk.write(&further, !sealed);
        let disk = disk.again();
        let both: Vec<_> = commits.into_iter().chain(further).collect();
        prop_assert_eq!(everything(&disk, &disk.open()), (numbered(&both), 0));
    }

    #[test]
    fn an_index_reads_back_as_it_was_in_memory(
        frames in prop::collection::vec((prop_oneof![0..LANES as u16, Just(0), Just(LANES as u16 - 1), 500..503u16], 1..4u32, 41..5000u32), 0..200),
        base in 0..u64::MAX / 2, last_ms: u64, head in 0..3000usize, flip: Index, bit in 0..8u8,
    ) {
        let mut index = ActiveIndex::default();
        let (mut relative, mut offset) = (0, SEGMENT_HEADER_BYTES as u32);
        for (lane, step, len) in &frames {
            index.push(Lane(*lane), relative, Entry { offset, len: *len });
            relative += step;
            offset += len;
        }
        let frames_end = head as u64;
        let bytes = index.encode(Position(base), Position(base + u64::from(relative)), frames_end, last_ms);
        prop_assert_eq!(bytes.len(), DIRECTORY_BYTES + 8 * frames.len() + FOOTER_BYTES);
        let files = FaultFiles::new();
        let path = Path::new("/d/index");
        files.plant(path, &[&vec![0xaa; head], &bytes[..]].concat());
        let file = files.open(path).expect("planted");
        let (footer, directory) = Footer::read(file.as_ref()).expect("it reads").expect("it checks");
        prop_assert_eq!(&directory, &index.directory());
        prop_assert_eq!((footer.frames as usize, footer.base, footer.end), (frames.len(), Position(base), Position(base + u64::from(relative))));
        prop_assert_eq!((footer.frames_end, footer.last_ms), (frames_end, last_ms));
        prop_assert!(footer.entries_check(file.as_ref()).expect("it reads"));
        for lane in (0..LANES as u16).map(Lane) {
            let in_memory: Vec<_> = index.entries().iter().filter(|(of, _, _)| *of == lane).collect();
            let entries = footer.read_entries(file.as_ref(), directory.start(lane), directory.end(lane)).expect("it reads");
            prop_assert_eq!(entries, in_memory.iter().map(|(_, _, entry)| *entry).collect::<Vec<_>>());
            prop_assert_eq!(directory.last_relative(lane), in_memory.last().map(|(_, relative, _)| *relative));
        }
        // No flipped bit goes unnoticed.
        let at = flip.index(bytes.len());
        prop_assert!(files.flip_bit(path, (head + at) as u64, bit));
        let noticed = match Footer::read(file.as_ref()).expect("it reads") {
            None => true,
            Some((footer, _)) => !footer.entries_check(file.as_ref()).expect("it reads"),
        };
        prop_assert!(noticed, "byte {} of the index", at);
    }

    #[test]
    fn a_flipped_bit_in_a_sealed_segment_costs_its_event_at_most_whichever_part_it_hits(
        commits in commits(), segment_bytes in 500..6000u64, which: Index, at: Index, bit in 0..8u8,
    ) {
        let disk = Disk::new(segment_bytes);
        disk.write(&commits, true);
        let expected = numbered(&commits);
        let paths = disk.segment_paths();
        let path = &paths[which.index(paths.len())];
        let file = disk.files.open(path).expect("listed");
        let (footer, _) = Footer::read(file.as_ref()).expect("it reads").expect("it is sealed");
        let (frames_end, len) = (footer.frames_end, file.len().expect("it reads"));
        let (entries, foot) = (frames_end + DIRECTORY_BYTES as u64, len - FOOTER_BYTES as u64);
        let parts = [
            ("header", 0, SEGMENT_HEADER_BYTES as u64, 0),
            ("frames", SEGMENT_HEADER_BYTES as u64, frames_end, 1),
            ("directory", frames_end, entries, 0),
            ("entries", entries, foot, 0),
            ("footer", foot, len, 0),
        ];
        for (part, from, to, cost) in parts {
            // The same spool once for each part; killing the process and planting the bytes gives a disk of its own.
            let damaged_disk = Disk::new(segment_bytes);
            for each in disk.files.paths() {
                damaged_disk.files.plant(&each, &disk.bytes(&each));
            }
            let offset = from + at.index((to - from) as usize) as u64;
            prop_assert!(damaged_disk.files.flip_bit(path, offset, bit));
            let opened = damaged_disk.open();
            prop_assert_eq!(opened.writer.next(), Position(expected.len() as u64), "{}: positions go on", part);
            let (found, damaged) = everything(&damaged_disk, &opened);
            let lost = expected.len() - found.len();
            prop_assert_eq!(lost, cost, "{} at {}", part, offset);
            prop_assert_eq!(damaged + opened.damaged_events, lost as u64, "{} at {}: counted", part, offset);
            prop_assert!(found.iter().all(|(position, event)| expected[position] == *event), "{}: another content", part);
        }
    }

    #[test]
    fn a_file_cut_at_any_byte_opens_with_every_event_before_the_cut(commits in commits(), at: Index, further in commits()) {
        let disk = Disk::new(64 << 20);
        disk.write(&commits, false);
        let path = disk.segment_paths().pop().expect("one segment");
        let bytes = disk.bytes(&path);
        let cut = at.index(bytes.len() + 1);
        let mut whole = 0;
        let mut end = SEGMENT_HEADER_BYTES;
        while let Some(frame) = Frame::check(&bytes[end..]).filter(|frame| end + frame.len() <= cut) {
            whole += 1;
            end += frame.len();
        }
        disk.files.open(&path).expect("listed").set_len(cut as u64).expect("a good disk");
        let disk = disk.again();
        let opened = disk.open();
        prop_assert_eq!(opened.writer.next(), Position(whole));
        prop_assert_eq!(opened.damaged_events, 0, "a cut is no damage");
        prop_assert_eq!(opened.torn_bytes, cut.saturating_sub(if cut < SEGMENT_HEADER_BYTES { 0 } else { end }) as u64);
        let kept: Read = numbered(&commits).into_iter().take(whole as usize).collect();
        prop_assert_eq!(everything(&disk, &opened), (kept.clone(), 0));
        drop(opened);
        disk.write(&further, true);
        let expected: Read = kept.into_values().chain(numbered(&further).into_values()).zip(0..).map(|(event, n)| (n, event)).collect();
        let disk = disk.again();
        prop_assert_eq!(everything(&disk, &disk.open()), (expected, 0));
    }

    #[test]
    fn a_cut_through_any_segment_of_many_leaves_the_others_whole(
        commits in commits(), which: Index, at: Index, fill in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let disk = Disk::new(400);
        disk.write(&commits, true);
        let expected = numbered(&commits);
        let paths = disk.segment_paths();
        let which = which.index(paths.len());
        let bases: Vec<u64> = paths.iter().map(|path| SegmentHeader::decode(&disk.bytes(path)).expect("whole").base.0).collect();
        let end = bases.get(which + 1).copied().unwrap_or(expected.len() as u64);
        let file = disk.files.open(&paths[which]).expect("listed");
        file.set_len(at.index(disk.bytes(&paths[which]).len()) as u64).expect("a good disk");
        file.append(&[&fill]).expect("a good disk");
        let disk = disk.again();
        let (found, _) = everything(&disk, &disk.open());
        for (position, event) in &expected {
            match found.get(position) {
                Some(read) => prop_assert_eq!(read, event),
                None => prop_assert!((bases[which]..end).contains(position), "position {} of another segment", position),
            }
        }
    }

    #[test]
    fn arbitrary_bytes_as_a_segment_are_opened_and_read_to_an_end(
        commits in commits(), header: bool, body in prop::collection::vec(any::<u8>(), 0..20_000),
        flips in prop::collection::vec((any::<Index>(), any::<u8>()), 0..40), mutate: bool,
    ) {
        let disk = Disk::new(3000);
        disk.write(&commits, true);
        let expected = numbered(&commits);
        let mut paths = disk.segment_paths();
        let planted = if mutate { paths.pop().expect("a segment") } else { PathBuf::from("/spool/segments/0000000900.seg") };
        let bytes = if mutate {
            let mut bytes = disk.bytes(&planted);
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            bytes
        } else {
            let header = if header {
                SegmentHeader { id: SegmentId(900), base: Position(expected.len() as u64), created_ms: 1, rewritten: false }.encode().to_vec()
            } else {
                Vec::new()
            };
            [header, body].concat()
        };
        disk.files.plant(&planted, &bytes);
        let disk = disk.again();
        let opened = disk.open();
        let next = opened.writer.next();
        let shared = Arc::clone(opened.handle.shared());
        let mut cursor = Cursor::new(Arc::clone(&shared), Arc::clone(&disk.host.files));
        let mut at = Position(0);
        while let Some(step) = cursor.next(at).expect("a disk that reads") {
            let before = at;
            let mut bytes = &step.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                prop_assert_eq!(expected.get(&frame.position().0), Some(&as_read(&frame)), "an event nobody wrote");
                at = Position(frame.position().0 + 1);
                bytes = &bytes[frame.len()..];
            }
            at = at.max(step.chunk.first);
            prop_assert!(at > before, "BORING-RECOVERY: reading moves on");
        }
        for segment in shared.table.all() {
            for (_, entry) in cursor.lane_frames(&segment, Lane(0), Lane(LANES as u16 - 1)).expect("a disk that reads") {
                let mut bytes = Vec::new();
                cursor.read_frame(&segment, entry, &mut bytes).expect("a disk that reads");
            }
            cursor.pending(&segment, &[Position(3); LANES]).expect("a disk that reads");
        }
        drop(opened);
        let disk = disk.again();
        prop_assert_eq!(disk.open().writer.next(), next, "opening twice is opening once");
    }
}

#[test]
fn an_oldest_segment_with_a_damaged_header_keeps_its_place_far_from_zero() {
    for (sealed, far) in [(true, 5 << 32), (false, 5 << 32), (true, 700)] {
        let disk = Disk::new(64 << 20);
        disk.open();
        let path = PathBuf::from("/spool/segments/0000000007.seg");
        let mut bytes =
            SegmentHeader { id: SegmentId(7), base: Position(far), created_ms: 50, rewritten: false }.encode().to_vec();
        for n in 0..3u64 {
            let start = bytes.len();
            frame::encode(&mut bytes, "user", KeyHash::of_key("user"), false, b"data");
            frame::stamp(&mut bytes[start..], Position(far + n), 5, true);
        }
        disk.files.plant(&path, &bytes);
        if sealed {
            drop(disk.open());
        }
        assert!(disk.files.flip_bit(&path, 20, 1));
        let disk = disk.again();
        let opened = disk.open();
        assert_eq!((opened.damaged_events, opened.writer.next()), (0, Position(far + 3)), "sealed: {sealed}");
        let segment = &opened.handle.shared().table.all()[0];
        assert_eq!(segment.base, Position(far));
        assert!(segment.created_ms >= 50, "events never seem older than they are");
        assert!(!segment.covered_by(&[Position(far + 2); LANES]), "NOTHING-LOST: its last event is not settled");
        assert_eq!(everything(&disk, &opened).0.into_keys().collect::<Vec<_>>(), [far, far + 1, far + 2]);
    }
}
