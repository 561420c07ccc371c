//! The format on disk is an interface: what version 1 wrote is written today, byte for byte, and opened for ever.
//!
//! Place: `fixtures/v1/` holds a whole spool (its `format` file, a sealed segment, an unsealed one, the note of what was
//! sent) and the value of a checkpoint; `fixtures/v1-rewritten.seg` its first segment as that checkpoint lets it be rewritten;
//! `fixtures/v2-encrypted/` and `fixtures/v2-compressed/` the same events in coded files (format 2).
//! One test builds the same from fixed inputs with today's code and compares; others
//! open what is stored. Only a new version of the format may change the fixtures: `FOREBAY_BLESS=1 cargo test --test
//! format` writes them anew, and a release with version 1 behind it must never need that.
//!
//! The byte tables in the head comments of the sources are read by a test too, which looks for each field where its table
//! says that it is.

#![allow(clippy::disallowed_methods, reason = "they compare files from outside, on a real file system")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay::checkpoint::Checkpoint;
use forebay::coding::{Coding, EncryptionKey, KeyRing};
use forebay::dispatch::run::SentLog;
use forebay::event::{KeyHash, LANES, Lane, Position};
use forebay::host::{Clock, Entropy, Host, mix64};
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::{self, FRAME_HEADER_BYTES, Frame};
use forebay::spool::index::{ActiveIndex, DIRECTORY_BYTES, Entry, FOOTER_BYTES, Footer};
use forebay::spool::rewrite::rewrite;
use forebay::spool::segment::{Index, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId};
use forebay::spool::{Opened, SpoolOptions, open, prepare};

const CREATED_MS: u64 = 1_700_000_000_000;
const EVENTS: u64 = 40;
const SENT: [u64; 3] = [12, 31, 37];

/// Wall time as a test sets it.
#[derive(Debug)]
struct FixedClock(AtomicU64);

impl Clock for FixedClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
    fn wall_ms(&self) -> u64 {
        CREATED_MS + self.0.load(Ordering::Relaxed)
    }
}

fn host(clock: &Arc<FixedClock>) -> Host {
    Host { clock: Arc::clone(clock) as _, ..Host::real() }
}

fn still() -> Host {
    host(&Arc::new(FixedClock(AtomicU64::new(86_400_000))))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

fn options(dir: &Path) -> SpoolOptions {
    SpoolOptions { stream: "clicks".into(), dir: dir.to_owned(), max_bytes: 1 << 30, segment_bytes: 4096 }
}

/// What is in the fixture, event by event.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    key: String,
    hash: KeyHash,
    explicit: bool,
    data: Vec<u8>,
    received_ms: u64,
}

/// Keys of one and more bytes a character, explicit hashes at both ends, no data, all byte values.
fn event(n: u64) -> Event {
    let key = match n % 5 {
        0 => format!("user-{}", n % 7),
        1 => "schlüssel-𝄞".to_owned(),
        2 => "k".repeat(256),
        3 => "0".to_owned(),
        _ => format!("{n}"),
    };
    let (hash, explicit) = match n % 8 {
        5 => (KeyHash(0), true),
        6 => (KeyHash(u128::MAX), true),
        7 => (KeyHash(u128::from(n) << 100 | 7), true),
        _ => (KeyHash::of_key(&key), false),
    };
    let data = match n % 4 {
        0 => format!(r#"{{"event":{n}}}"#).into_bytes(),
        1 => Vec::new(),
        2 => (0..=255).collect(),
        _ => vec![b'\n'; n as usize],
    };
    Event { key, hash, explicit, data, received_ms: CREATED_MS + 1000 + n / 3 * 25 }
}

/// The marks of a dispatcher that is through with everything below 10, with every other lane below 20, and with the last.
fn checkpoint() -> Checkpoint {
    let mut checkpoint =
        Checkpoint { clean: true, durable: Position(EVENTS), dead: 3, expired: 2, dropped: 1, ..Checkpoint::default() };
    for (lane, mark) in checkpoint.marks.iter_mut().enumerate() {
        *mark = Position(if lane % 2 == 0 { 10 } else { 20 });
    }
    checkpoint.marks[LANES - 1] = Position(EVENTS);
    checkpoint
}

/// Salts and nonces that are the same in every run.
#[derive(Debug, Default)]
struct FixedEntropy(AtomicU64);

impl Entropy for FixedEntropy {
    fn next_u64(&self) -> u64 {
        mix64(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// How the spools of format 2 in the fixtures lie.
fn coding(compress: bool) -> Coding {
    Coding { compress, keys: KeyRing::new(vec![EncryptionKey::new([0x42; 32])]) }
}

/// Writes the fixture's content with today's code: three events a commit, in batches of two and one.
fn build(dir: &Path) {
    build_coded(dir, &Coding::default());
}

fn build_coded(dir: &Path, coding: &Coding) {
    let clock = Arc::new(FixedClock(AtomicU64::new(1000)));
    let host = Host { entropy: Arc::new(FixedEntropy::default()), ..host(&clock) };
    let (host, spool) = (coding.host(&host), dir.join("spool"));
    prepare(&host, &options(&spool)).expect("a new spool");
    let mut writer = open(&host, &options(&spool), Position(0), &Arc::default()).expect("a new spool").writer;
    for first in (0..EVENTS).step_by(3) {
        let mut batches = [Vec::new(), Vec::new()];
        for n in first..(first + 3).min(EVENTS) {
            let event = event(n);
            frame::encode(&mut batches[usize::from(n == first + 2)], &event.key, event.hash, event.explicit, &event.data);
        }
        writer.commit(&mut batches).expect("a good disk");
        clock.0.fetch_add(25, Ordering::Relaxed);
    }
    let (mut sent, high) = SentLog::open(&host, &spool.join("ledger.sent"));
    assert_eq!(high, Position(0));
    for position in SENT {
        sent.note(Position(position));
    }
    fs::write(dir.join("checkpoint.bin"), checkpoint().encode()).expect("a good disk");
}

/// All files below, by relative name.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below it").to_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in contents(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("a new directory");
        fs::write(path, bytes).expect("a new file");
    }
}

/// A copy of the stored spool, opened.
fn opened() -> (tempfile::TempDir, Opened) {
    opened_from(&fixtures().join("spool"), &still())
}

fn opened_from(spool: &Path, host: &Host) -> (tempfile::TempDir, Opened) {
    let dir = tempfile::tempdir().expect("a directory");
    copy(spool, dir.path());
    prepare(host, &options(dir.path())).expect("FORMAT: it is accepted");
    let opened = open(host, &options(dir.path()), Position(0), &Arc::default()).expect("FORMAT: it opens");
    (dir, opened)
}

fn stored(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).expect("a fixture")
}

#[test]
fn what_is_written_today_is_what_version_1_wrote_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    build(dir.path());
    if std::env::var_os("FOREBAY_BLESS").is_some() {
        copy(dir.path(), &fixtures());
    }
    let (today, then) = (contents(dir.path()), contents(&fixtures()));
    assert_eq!(today.keys().collect::<Vec<_>>(), then.keys().collect::<Vec<_>>(), "other files");
    for (name, bytes) in &today {
        let first = bytes.iter().zip(&then[name]).position(|(a, b)| a != b);
        let lens = (bytes.len(), then[name].len());
        assert!(first.is_none() && lens.0 == lens.1, "{}: other bytes from {first:?} on, lengths {lens:?}", name.display());
    }
    let names: Vec<String> = then.keys().map(|name| name.display().to_string()).collect();
    let segments = ["spool/segments/0000000001.seg", "spool/segments/0000000002.seg"];
    assert_eq!(names, ["checkpoint.bin", "spool/format", "spool/ledger.sent", segments[0], segments[1]]);
    // The first of them is sealed, the last is not, as after a kill.
    assert!(segments.map(|name| then[Path::new(name)].ends_with(&footer_crc(&then[Path::new(name)]))) == [true, false]);
}

fn footer_crc(bytes: &[u8]) -> [u8; 4] {
    crc32fast::hash(&bytes[bytes.len() - FOOTER_BYTES..bytes.len() - 4]).to_le_bytes()
}

#[test]
fn every_event_of_a_version_1_spool_is_read_back_forward() {
    let (_dir, opened) = opened();
    is_read_back_forward(&opened, &still());
}

/// Bytes of zstd differ from one version of it to the next; what was written with any of them is read.
#[test]
fn every_event_of_the_stored_coded_spools_is_read_back_forward() {
    for (name, compress) in [("v2-encrypted", false), ("v2-compressed", true)] {
        let golden = fixtures().with_file_name(name);
        if std::env::var_os("FOREBAY_BLESS").is_some() {
            build_coded(&golden, &coding(compress));
            fs::remove_file(golden.join("checkpoint.bin")).expect("the same as of version 1");
        }
        // Whatever new files are to be.
        for host in [coding(false).host(&still()), coding(true).host(&still())] {
            let (_dir, opened) = opened_from(&golden.join("spool"), &host);
            is_read_back_forward(&opened, &host);
        }
        let format = fs::read_to_string(golden.join("spool/format")).expect("a fixture");
        assert_eq!(format, "forebay spool 2\nstream clicks\n");
    }
}

#[test]
fn what_is_encrypted_today_is_what_version_2_encrypted_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    build_coded(dir.path(), &coding(false));
    let golden = fixtures().with_file_name("v2-encrypted");
    for (name, bytes) in contents(&golden) {
        let today = fs::read(dir.path().join(&name)).expect("the same files");
        assert!(
            today == bytes,
            "{}: other bytes from {:?} on",
            name.display(),
            today.iter().zip(&bytes).position(|(a, b)| a != b)
        );
    }
}

fn is_read_back_forward(opened: &Opened, host: &Host) {
    assert_eq!((opened.damaged_events, opened.torn_bytes), (0, 0));
    assert_eq!(opened.writer.next(), Position(EVENTS), "positions go on");
    let mut cursor = Cursor::new(Arc::clone(opened.handle.shared()), Arc::clone(&host.files));
    let mut at = Position(0);
    while let Some(swept) = cursor.next(at).expect("a good disk") {
        assert!(swept.damaged.is_empty());
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(found) = Frame::check(bytes) {
            assert_eq!(found.position(), at);
            assert_eq!(as_event(&found, swept.chunk.created_ms), event(at.0), "position {at}");
            assert_eq!(found.commit_start(), at.0.is_multiple_of(3), "position {at}");
            at = Position(at.0 + 1);
            bytes = &bytes[found.len()..];
        }
    }
    assert_eq!(at, Position(EVENTS));
}

fn as_event(found: &Frame<'_>, created_ms: u64) -> Event {
    Event {
        key: String::from_utf8(found.key_bytes().to_vec()).expect("checked"),
        hash: found.hash(),
        explicit: found.explicit_hash(),
        data: found.data().to_vec(),
        received_ms: created_ms + u64::from(found.time_ms()),
    }
}

#[test]
fn every_event_of_a_version_1_spool_is_found_in_its_lane_and_pending_as_the_marks_say() {
    let (_dir, opened) = opened();
    let shared = opened.handle.shared();
    let mut cursor = Cursor::new(Arc::clone(shared), still().files);
    let checkpoint = Checkpoint::decode(&stored("checkpoint.bin")).expect("FORMAT: version 1 of a checkpoint");
    let (mut found, mut pending) = (BTreeMap::new(), 0);
    for segment in shared.table.all() {
        assert!(matches!(segment.extent().index, Index::Sealed(..)), "opening seals what a kill left open");
        for lane in (0..LANES as u16).map(Lane) {
            for (_, entry) in cursor.lane_frames(&segment, lane, lane).expect("a good disk") {
                let mut bytes = Vec::new();
                assert!(cursor.read_frame(&segment, entry, &mut bytes).expect("a good disk"));
                let frame = Frame::check(&bytes).expect("read_frame checks");
                assert_eq!(frame.hash().lane(), lane);
                found.insert(frame.position().0, as_event(&frame, segment.created_ms));
            }
        }
        pending += cursor.pending(&segment, &checkpoint.marks).expect("a good disk");
    }
    assert_eq!(found, (0..EVENTS).map(|n| (n, event(n))).collect());
    let unsettled = (0..EVENTS).filter(|n| *n >= checkpoint.marks[event(*n).hash.lane().index()].0);
    assert_eq!(pending, unsettled.count() as u64);
    assert!(pending > 0 && pending < EVENTS, "marks that tell something");
}

#[test]
fn a_version_1_checkpoint_and_note_of_what_was_sent_are_understood() {
    assert_eq!(Checkpoint::decode(&stored("checkpoint.bin")), Some(checkpoint()));
    let dir = tempfile::tempdir().expect("a directory");
    copy(&fixtures().join("spool"), dir.path());
    let (_, high) = SentLog::open(&still(), &dir.path().join("ledger.sent"));
    assert_eq!(high, Position(37));
}

#[test]
fn a_version_1_spool_takes_new_events_behind_the_old() {
    let (dir, opened) = opened();
    let mut writer = opened.writer;
    let mut batch = Vec::new();
    frame::encode(&mut batch, "new", KeyHash::of_key("new"), false, b"new");
    let placed = writer.commit(&mut [batch]).expect("a good disk");
    assert_eq!((placed[0].first, placed[0].segment), (Position(EVENTS), SegmentId(3)));
    drop(opened.handle);
    let again = open(&still(), &options(dir.path()), Position(0), &Arc::default()).expect("opens again");
    assert_eq!((again.writer.next(), again.damaged_events), (Position(EVENTS + 1), 0));
}

#[test]
fn a_rewritten_segment_is_byte_for_byte_what_it_was_and_opens_without_what_was_settled() {
    let (dir, opened) = opened();
    let shared = opened.handle.shared();
    let (segment, marks) = (shared.table.all()[0].clone(), checkpoint().marks);
    let copy = rewrite(&still(), &segment, &marks, || true).expect("a good disk");
    assert!(copy.install(still().files.as_ref(), &shared.table).expect("a good disk"));
    let (today, golden) = (fs::read(&segment.path).expect("a segment"), fixtures().with_file_name("v1-rewritten.seg"));
    if std::env::var_os("FOREBAY_BLESS").is_some() {
        fs::write(&golden, &today).expect("a good disk");
    }
    let then = fs::read(&golden).expect("a fixture");
    assert_eq!(today.iter().zip(&then).position(|(a, b)| a != b), None, "FORMAT: other bytes from there on");
    assert_eq!(today.len(), then.len());
    let was = fixtures().join("spool/segments/0000000001.seg");
    assert!(then.len() < fs::read(was).expect("a fixture").len(), "it is smaller");

    // As a new process finds it: what is pending is there, in its place among the gaps.
    fs::write(&segment.path, &then).expect("a good disk");
    drop(opened);
    let again = open(&still(), &options(dir.path()), Position(0), &Arc::default()).expect("FORMAT: a rewritten segment opens");
    assert_eq!((again.damaged_events, again.torn_bytes, again.writer.next()), (0, 0, Position(EVENTS)));
    let mut cursor = Cursor::new(Arc::clone(again.handle.shared()), still().files);
    let (mut at, mut found) = (Position(0), Vec::new());
    while let Some(swept) = cursor.next(at).expect("a good disk") {
        let mut bytes = &swept.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            assert_eq!(as_event(&frame, swept.chunk.created_ms), event(frame.position().0), "position {}", frame.position());
            found.push(frame.position().0);
            at = Position(frame.position().0 + 1);
            bytes = &bytes[frame.len()..];
        }
        at = at.max(swept.chunk.first);
    }
    let end = segment.extent().end.0;
    let expected = (0..EVENTS).filter(|n| *n >= end || *n >= marks[event(*n).hash.lane().index()].0);
    assert_eq!(found, expected.collect::<Vec<_>>());
}

/// A row of a head comment's byte table.
#[derive(Debug)]
struct Field {
    offset: usize,
    bytes: usize,
    text: String,
}

impl Field {
    /// The little-endian number in this place.
    fn of(&self, bytes: &[u8]) -> u128 {
        bytes[self.offset..self.offset + self.bytes].iter().rev().fold(0, |number, byte| number << 8 | u128::from(*byte))
    }
}

fn size_of_type(name: &str) -> Option<usize> {
    Some(match name {
        "u8" => 1,
        "u16" => 2,
        "u32" => 4,
        "u64" => 8,
        "u128" => 16,
        _ => return None,
    })
}

/// The table of `| offset | type | field |` rows in a source's head comment. A row without a type ends where the next one
/// begins; a row of several offsets is several fields; what an 1024-fold field takes is left to the test.
fn table(source: &str, end: usize) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    let rows = source.lines().take_while(|line| line.starts_with("//!")).filter_map(|line| line.strip_prefix("//! |"));
    for row in rows {
        let cells: Vec<&str> = row.trim_end_matches('|').splitn(3, '|').map(str::trim).collect();
        let [offsets, kind, text] = cells[..] else { panic!("not three cells: {row}") };
        let offsets: Vec<usize> = offsets.split(", ").filter_map(|offset| offset.parse().ok()).collect();
        let texts: Vec<&str> = if offsets.len() > 1 { text.split(", ").collect() } else { vec![text] };
        let bytes = size_of_type(kind.rsplit(' ').next().unwrap_or_default()).unwrap_or_default();
        for (offset, text) in offsets.iter().zip(texts) {
            if let Some(last) = fields.last_mut() {
                if last.bytes == 0 {
                    last.bytes = offset - last.offset;
                }
                assert_eq!(last.offset + last.bytes, *offset, "a hole or an overlap before: {row}");
            }
            fields.push(Field { offset: *offset, bytes, text: text.to_owned() });
        }
    }
    let last = fields.last().expect("a table");
    assert!(last.bytes == 0 || last.offset + last.bytes <= end, "the table goes past {end}: {last:?}");
    fields
}

fn field<'t>(table: &'t [Field], text: &str) -> &'t Field {
    let mut found = table.iter().filter(|field| field.text.contains(text));
    let field = found.next().unwrap_or_else(|| panic!("no row tells of {text:?}"));
    assert!(found.next().is_none(), "two rows tell of {text:?}");
    field
}

#[test]
fn the_table_in_frame_rs_agrees_with_the_bytes() {
    let table = table(include_str!("../src/spool/frame.rs"), FRAME_HEADER_BYTES);
    let mut bytes = Vec::new();
    let hash = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;
    frame::encode(&mut bytes, "key-of-11-b", KeyHash(hash), true, b"the data");
    frame::stamp(&mut bytes, Position(0x1122_3344_5566_7788), 0x99aa_bbcc, true);
    let crc = field(&table, "CRC-32");
    assert_eq!(crc.of(&bytes), u128::from(crc32fast::hash(&bytes[crc.offset + crc.bytes..])));
    assert_eq!(field(&table, "length of the whole frame").of(&bytes), bytes.len() as u128);
    assert_eq!(field(&table, "position").of(&bytes), 0x1122_3344_5566_7788);
    assert_eq!(field(&table, "key hash").of(&bytes), hash);
    assert_eq!(field(&table, "receipt time").of(&bytes), 0x99aa_bbcc);
    assert_eq!(field(&table, "length of the key").of(&bytes), 11);
    assert_eq!(field(&table, "flags: 1 explicit hash key, 2 first frame of a commit").of(&bytes), 1 | 2);
    assert_eq!(field(&table, "reserved, 0").of(&bytes), 0);
    let rest = field(&table, "key (UTF-8), then data");
    assert_eq!((rest.offset, &bytes[rest.offset..]), (FRAME_HEADER_BYTES, &b"key-of-11-bthe data"[..]));
}

#[test]
fn the_table_in_segment_rs_agrees_with_the_bytes() {
    let table = table(include_str!("../src/spool/segment.rs"), SEGMENT_HEADER_BYTES);
    let (id, base, created_ms) = (SegmentId(0x1122_3344), Position(0x5566_7788_99aa_bbcc), 0x0102_0304_0506);
    let bytes = SegmentHeader { id, base, created_ms, rewritten: false }.encode();
    let rewritten = SegmentHeader { id, base, created_ms, rewritten: true };
    let magic = field(&table, "magic `FBYSEGMT`");
    assert_eq!(&bytes[magic.offset..magic.offset + magic.bytes], b"FBYSEGMT");
    assert_eq!(field(&table, "version, 1").of(&bytes), 1);
    let flags = field(&table, "flags: 1 rewritten");
    assert_eq!((flags.of(&bytes), flags.of(&rewritten.encode())), (0, 1));
    assert_eq!(SegmentHeader::decode(&rewritten.encode()), Ok(rewritten));
    assert_eq!(field(&table, "segment id").of(&bytes), 0x1122_3344);
    assert_eq!(field(&table, "base: position").of(&bytes), 0x5566_7788_99aa_bbcc);
    assert_eq!(field(&table, "creation time").of(&bytes), 0x0102_0304_0506);
    let reserved = field(&table, "28 bytes reserved, 0");
    assert!(reserved.bytes == 28 && bytes[reserved.offset..reserved.offset + 28] == [0; 28]);
    let crc = field(&table, "CRC-32 of the 60 bytes before");
    assert_eq!((crc.offset, crc.of(&bytes)), (60, u128::from(crc32fast::hash(&bytes[..60]))));
    assert_eq!(crc.offset + crc.bytes, SEGMENT_HEADER_BYTES);
}

#[test]
fn the_table_in_index_rs_agrees_with_the_bytes() {
    let mut index = ActiveIndex::default();
    index.push(Lane(1), 5, Entry { offset: 64, len: 100 });
    index.push(Lane(0), 6, Entry { offset: 164, len: 50 });
    index.push(Lane(1), 9, Entry { offset: 214, len: 70 });
    let (base, end, frames_end, last_ms) = (Position(0x1122_3344_5566), Position(0x1122_3344_6677), 284, 0x0102_0304_0506);
    let bytes = index.encode(base, end, frames_end, last_ms);
    let source = include_str!("../src/spool/index.rs");
    let row = |part: &str| {
        let start = format!("//! | {part} | ");
        let line = source.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("no row {part}"));
        line.trim_end_matches(" |").to_owned()
    };
    let (directory, rest) = bytes.split_at(DIRECTORY_BYTES);
    let (entries, footer) = rest.split_at(rest.len() - FOOTER_BYTES);
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
    };

    assert_eq!(
        row("directory"),
        "for each of the 1024 lanes: u32 end (entries of this lane and all before it), u32 position of the lane's last frame, \
         relative to the segment's base (0 when the lane is empty)"
    );
    assert_eq!(words(directory)[..6], [1, 6, 3, 9, 3, 0]);
    assert_eq!(words(directory).len(), 2 * 1024);
    assert_eq!(row("entries"), "for each frame, sorted by lane, then position: u32 offset in the file, u32 length");
    assert_eq!(words(entries), [164, 50, 64, 100, 214, 70]);

    // The footer's fields stand one after the other.
    let mut fields: Vec<Field> = Vec::new();
    for text in row(&format!("footer ({FOOTER_BYTES})")).split(", ") {
        let offset = fields.last().map_or(0, |last| last.offset + last.bytes);
        let bytes =
            if text.starts_with("magic") { 8 } else { size_of_type(text.split(' ').next().unwrap_or_default()).expect("a type") };
        fields.push(Field { offset, bytes, text: text.to_owned() });
    }
    let last = fields.last().expect("fields");
    assert_eq!(last.offset + last.bytes, FOOTER_BYTES, "the fields make {FOOTER_BYTES} bytes");
    assert!(field(&fields, "magic `FBYINDEX`").offset == 0 && footer.starts_with(b"FBYINDEX"));
    assert_eq!(field(&fields, "version 1").of(footer), 1);
    assert_eq!(field(&fields, "u16 lanes").of(footer), LANES as u128);
    assert_eq!(field(&fields, "u32 frames").of(footer), 3);
    assert_eq!(field(&fields, "base position").of(footer), u128::from(base.0));
    assert_eq!(field(&fields, "end position").of(footer), u128::from(end.0));
    assert_eq!(field(&fields, "offset of the directory").of(footer), u128::from(frames_end));
    assert_eq!(field(&fields, "wall clock ms of the last frame").of(footer), u128::from(last_ms));
    assert_eq!(field(&fields, "CRC-32 of the directory").of(footer), u128::from(crc32fast::hash(directory)));
    assert_eq!(field(&fields, "CRC-32 of the entries").of(footer), u128::from(crc32fast::hash(entries)));
    assert_eq!(field(&fields, "u32 0").of(footer), 0);
    assert_eq!(field(&fields, "CRC-32 of the footer before").of(footer), u128::from(crc32fast::hash(&footer[..60])));

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index");
    fs::write(&path, [&[0; 284][..], &bytes].concat()).expect("a new file");
    let file = Host::real().files.open(&path).expect("just written");
    let (read, _) = Footer::read(file.as_ref()).expect("it reads").expect("it checks");
    assert_eq!((read.base, read.end, read.frames, read.frames_end, read.last_ms), (base, end, 3, frames_end, last_ms));
}

#[test]
fn the_table_in_checkpoint_rs_agrees_with_the_bytes() {
    let checkpoint = checkpoint();
    let bytes = checkpoint.encode();
    let table = table(include_str!("../src/checkpoint.rs"), bytes.len());
    let crc = field(&table, "CRC-32 of all that follows");
    assert_eq!(crc.of(&bytes), u128::from(crc32fast::hash(&bytes[crc.offset + crc.bytes..])));
    assert_eq!(field(&table, "version, 1").of(&bytes), 1);
    assert_eq!(field(&table, "1 when written at a clean stop").of(&bytes), 1);
    assert_eq!(table[3].text, "0");
    assert_eq!(table[3].of(&bytes), 0);
    assert_eq!(field(&table, "position after the last durable event").of(&bytes), u128::from(EVENTS));
    assert_eq!(["dead", "expired", "dropped"].map(|name| field(&table, name).of(&bytes)), [3, 2, 1]);
    let marks = field(&table, "for each lane the first position that is not settled");
    for (lane, mark) in checkpoint.marks.iter().enumerate() {
        let one = Field { offset: marks.offset + lane * marks.bytes, bytes: marks.bytes, text: String::new() };
        assert_eq!(one.of(&bytes), u128::from(mark.0), "lane {lane}");
    }
    assert_eq!(bytes.len(), marks.offset + LANES * marks.bytes);
}

#[test]
fn the_tables_of_coded_files_agree_with_the_bytes() {
    let golden = fixtures().with_file_name("v2-encrypted").join("spool/segments/0000000001.seg");
    let bytes = fs::read(golden).expect("a fixture");
    let head = table(include_str!("../src/coding/head.rs"), 128);
    let of = |text: &str| field(&head, text).of(&bytes);
    assert_eq!(&bytes[..8], b"FBYCODED");
    assert_eq!((of("version, 1"), of("flags: 1 compressed")), (1, 2));
    assert_eq!(of("id of the encryption key"), u128::from(EncryptionKey::new([0x42; 32]).id().0));
    assert_eq!(of("CRC-32 of the 60 bytes"), u128::from(crc32fast::hash(&bytes[..60])));
    assert_eq!(bytes[..64], bytes[64..128]);
    // The first block holds the segment's header, the next one begins behind it.
    let rows = table(include_str!("../src/coding/block.rs"), 36);
    let (first, len) = (&bytes[128..], SEGMENT_HEADER_BYTES + 36 + 16);
    let of = |text: &str| field(&rows, text).of(first);
    assert_eq!(of("CRC-32"), u128::from(crc32fast::hash(&first[4..len])));
    assert_eq!((of("length of the whole block"), of("begins in the file")), (len as u128, 0));
    assert_eq!((of("length of its content"), of("kind: 1"), of("codec: 0")), (SEGMENT_HEADER_BYTES as u128, 1, 0));
    assert_eq!(&first[22..24], b"BK");
    assert_eq!(field(&rows, "begins in the file").of(&first[len..]), SEGMENT_HEADER_BYTES as u128);
}
