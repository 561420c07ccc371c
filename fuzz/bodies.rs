//! What each fuzz target does with its bytes, and what must then hold.
//!
//! Place: included by `fuzz_targets/*.rs`, where libFuzzer looks for bytes that break a claim, and by
//! `tests/fuzz_corpus.rs`, where `cargo test` replays the corpora on the stable compiler. Each body is a function of its
//! bytes alone: no clock, no randomness, no real files (the disk is the simulator's).
//!
//! A checksum is a wall to a fuzzer. So the targets of the format on disk read their bytes as *instructions* ([`Feed`])
//! for building files with good checksums, odd contents and damage, in any order; the aggregate's target adds the MD5.
//! Where there is a second opinion (serde_json, prost, a naive splitter) the body compares; elsewhere it asserts what the
//! head comments promise. A panic is a finding, an endless loop too (`-timeout`), and so is memory out of proportion.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use forebay::coding::{Coding, EncryptionKey, KeyRing};
use forebay::deaggregate::{Content, MAGIC, Member, deaggregate};
use forebay::event::{KeyHash, LANES, Lane, Position};
use forebay::host::{Files as _, Host};
use forebay::ingest::hello::{Hello, Sniff, sniff};
use forebay::ingest::pointer::{Pointers, Scratch};
use forebay::ingest::wire::{self, Format, Item, Splitter};
use forebay::limits::KEY_BYTES_MAX;
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::{self, Frame};
use forebay::spool::index::{ActiveIndex, Entry, Footer};
use forebay::spool::recover::{OpenError, scan};
use forebay::spool::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId};
use forebay::spool::{Opened, SpoolOptions, open, prepare};
use md5::{Digest as _, Md5};
use prost::Message as _;

#[path = "bodies/doors.rs"]
mod doors;
#[path = "../tests/common/fault_files.rs"]
mod fault_files;
#[path = "../tests/common/kpl.rs"]
mod prost_kpl;

pub use doors::{amplitude, kinesis, mparticle, segment_api};
use fault_files::{FaultFiles, SimClock, sim_host};

/// A target's entry.
pub type Body = fn(&[u8]);

/// Every target by its name, which is that of its corpus too.
pub const TARGETS: [(&str, Body); 13] = [
    ("segment", segment),
    ("index", index),
    ("recovery", recovery),
    ("coded", coded),
    ("lines", lines),
    ("frames", frames),
    ("hello", hello),
    ("pointers", pointers),
    ("kpl", kpl),
    ("amplitude", amplitude),
    ("mparticle", mparticle),
    ("kinesis", kinesis),
    ("segment_api", segment_api),
];

/// Bytes read as instructions; zeroes when they are used up.
struct Feed<'a>(&'a [u8]);

impl<'a> Feed<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.take(8);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// Mostly small.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => self.u64(),
            small => u64::from(small),
        }
    }

    fn one_of(&mut self, n: u8) -> u8 {
        self.byte() % n
    }
}

/// A segment file as the writer makes it, but for what the instructions spoil.
fn build_segment(feed: &mut Feed<'_>, id: SegmentId, base: u64) -> (Vec<u8>, u64) {
    let header = SegmentHeader { id, base: Position(base), created_ms: 1_700_000_000_000, rewritten: false };
    let mut bytes = header.encode().to_vec();
    match feed.one_of(16) {
        0 => bytes.clear(),
        1 => bytes[feed.byte() as usize % SEGMENT_HEADER_BYTES] ^= 1 << (feed.byte() % 8),
        2 => bytes[..SEGMENT_HEADER_BYTES].fill(0),
        3 => {
            // Whole, and of a later version or with unknown flags.
            bytes[8 + feed.byte() as usize % 4] ^= 2;
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        }
        _ => {}
    }
    let mut index = ActiveIndex::default();
    let mut position = base;
    for _ in 0..64 {
        if feed.is_over() {
            break;
        }
        let kind = feed.one_of(16);
        match kind {
            0..=9 => {
                let shape = feed.byte();
                let explicit = shape & 1 != 0;
                let key = ["a", "user-1", "schlüssel", "k"][usize::from(shape >> 1 & 3)];
                let hash = if explicit { KeyHash((feed.u64() as u128) << 64) } else { KeyHash::of_key(key) };
                if kind == 9 {
                    position = if feed.byte() == 7 { feed.u64() } else { position.wrapping_add(feed.number()) };
                }
                let len = usize::from(feed.byte()) % 80;
                let start = bytes.len();
                frame::encode(&mut bytes, key, hash, explicit, feed.take(len));
                let len = frame::stamp(&mut bytes[start..], Position(position), u32::from(shape), shape & 8 != 0);
                if let Some(relative) = position.checked_sub(base).and_then(|n| u32::try_from(n).ok())
                    && index.entries().last().is_none_or(|last| last.1 < relative)
                {
                    index.push(hash.lane(), relative, Entry { offset: start as u32, len: len as u32 });
                }
                position = position.wrapping_add(1);
                if kind == 8 {
                    let at = start + feed.byte() as usize % len;
                    bytes[at] ^= 1 << (feed.byte() % 8);
                }
            }
            10 => {
                let n = usize::from(feed.byte());
                bytes.extend_from_slice(feed.take(n));
            }
            11 => bytes.resize(bytes.len() + usize::from(feed.byte()), 0),
            12 => bytes.truncate(bytes.len().saturating_sub(usize::from(feed.byte()))),
            13 => {
                // The same bytes once more: a frame whose position has been.
                let from = bytes.len().saturating_sub(usize::from(feed.byte()));
                bytes.extend_from_within(from..);
            }
            _ => break,
        }
    }
    match feed.one_of(4) {
        0 => {
            let frames_end = bytes.len() as u64;
            bytes.extend(index.encode(Position(base), Position(position.max(base)), frames_end, 1_700_000_000_500));
            spoil_index(feed, &mut bytes);
        }
        1 => {
            let end = bytes.len() as u64;
            bytes.extend(index.encode(Position(base), Position(position.max(base)), end, 1_700_000_000_500));
        }
        _ => {}
    }
    (bytes, position)
}

/// Changes fields of an index that ends `bytes`, and makes its checksums good again or not.
fn spoil_index(feed: &mut Feed<'_>, bytes: &mut [u8]) {
    let Some(footer) = bytes.len().checked_sub(64) else { return };
    for _ in 0..feed.one_of(4) {
        let back = feed.number() as usize % bytes.len().min(12_000);
        let at = bytes.len() - 1 - back;
        bytes[at] = feed.byte();
    }
    for _ in 0..feed.one_of(3) {
        let field = footer + 8 + usize::from(feed.byte()) % 40;
        bytes[field] = feed.byte();
    }
    let mend = feed.byte();
    if mend & 1 != 0 {
        let directory = footer.saturating_sub(0).checked_sub(frames_field(bytes, footer) as usize * 8 + LANES * 8);
        if let Some(directory) = directory {
            let crc = crc32fast::hash(&bytes[directory..directory + LANES * 8]);
            bytes[footer + 48..footer + 52].copy_from_slice(&crc.to_le_bytes());
            let crc = crc32fast::hash(&bytes[directory + LANES * 8..footer]);
            bytes[footer + 52..footer + 56].copy_from_slice(&crc.to_le_bytes());
        }
    }
    if mend & 2 != 0 {
        let crc = crc32fast::hash(&bytes[footer..footer + 60]);
        bytes[footer + 60..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn frames_field(bytes: &[u8], footer: usize) -> u64 {
    u64::from(u32::from_le_bytes([bytes[footer + 12], bytes[footer + 13], bytes[footer + 14], bytes[footer + 15]]))
}

fn disk() -> (FaultFiles, Host) {
    let files = FaultFiles::new();
    let host = sim_host(&files, &Arc::new(SimClock::new()), 1);
    (files, host)
}

/// Scanning one file: what it reports is there, in order, and adds up.
pub fn segment(data: &[u8]) {
    let mut feed = Feed(data);
    let raw = feed.byte() & 1 != 0;
    let base = feed.number();
    let stop = if feed.byte() & 1 == 0 { u64::MAX } else { base.saturating_add(feed.number()) };
    let durable = feed.number();
    let sealed_off = feed.byte() & 1 != 0;
    let bytes = if raw { feed.0.to_vec() } else { build_segment(&mut feed, SegmentId(1), base).0 };
    if let Ok(header) = SegmentHeader::decode(&bytes) {
        assert_eq!(header.encode(), bytes[..SEGMENT_HEADER_BYTES], "a header reads back as it was written");
    }
    let (files, _) = disk();
    files.plant(Path::new("/s"), &bytes);
    let file = files.open(Path::new("/s")).expect("planted");
    let found = scan(file.as_ref(), Position(base), Position(stop), Position(durable), sealed_off).expect("a disk that reads");
    let (mut at, mut next) = (SEGMENT_HEADER_BYTES as u64, base);
    for (lane, relative, entry) in found.index.entries() {
        let range = entry.offset as usize..(entry.offset + entry.len) as usize;
        assert!(u64::from(entry.offset) >= at, "frames overlap");
        at = range.end as u64;
        let frame = Frame::check(&bytes[range]).expect("a frame that was found checks");
        assert_eq!((frame.len(), frame.hash().lane()), (entry.len as usize, *lane));
        assert_eq!(frame.position().0, base + u64::from(*relative));
        assert!(frame.position().0 >= next && frame.position().0 < stop, "positions go forward");
        next = frame.position().0 + 1;
    }
    assert!(found.frames_end >= at && found.frames_end <= bytes.len().max(SEGMENT_HEADER_BYTES) as u64);
    assert_eq!(found.end.0, next);
    assert_eq!(found.index.len() as u64 + found.damaged_events, next - base, "EXACT-ACCOUNT: found and lost are all there was");
    let mut behind = 0;
    for (offset, len) in &found.damage {
        assert!(*len > 0 && *offset >= behind, "damage goes forward");
        behind = offset + len;
        assert!(behind <= bytes.len() as u64);
    }
}

/// A coded file, spoiled: reading it ends, says the same in whatever order it is read, and never makes up content. Where it
/// is encrypted, every byte is as it was written, or zero, whatever somebody without the key did to it.
pub fn coded(data: &[u8]) {
    let mut feed = Feed(data);
    let options = feed.byte();
    let (compress, encrypt, finish) = (options & 1 != 0, options & 2 != 0, options & 4 != 0);
    let keys = KeyRing::new(if encrypt { vec![EncryptionKey::new([7; 32])] } else { Vec::new() });
    let (files, plain) = disk();
    files.create_dir_all(Path::new("/segments")).expect("a disk that works");
    let host = Coding { compress: compress || !encrypt, keys }.host(&plain);
    let path = Path::new("/segments/1");
    let file = host.files.create(path).expect("a disk that works");
    let mut written = Vec::new();
    for _ in 0..1 + feed.one_of(12) {
        let (len, seed) = (feed.number().wrapping_mul(9) as usize % 70_000, feed.byte());
        let part: Vec<u8> = (0..len).map(|at| seed ^ (at / 7 * at) as u8).collect();
        file.append(&[&part]).expect("a disk that works");
        written.extend(part);
    }
    if finish {
        file.finish().expect("a disk that works");
    }
    let mut bytes = files.contents(path).expect("it was created");
    while !feed.is_over() {
        let at = feed.number().wrapping_mul(41) as usize % bytes.len().max(1);
        match feed.one_of(8) {
            0 => bytes.truncate(at),
            1 => {
                // The block that begins here, with a checksum that is good.
                let stored = bytes.get(at + 4..at + 8).map(|len| u32::from_le_bytes(len.try_into().expect("four")) as usize);
                if let Some(block) = stored.and_then(|stored| bytes.get_mut(at..at.checked_add(stored)?)).filter(|b| b.len() > 4)
                {
                    let crc = crc32fast::hash(&block[4..]);
                    block[..4].copy_from_slice(&crc.to_le_bytes());
                }
            }
            2 => {
                // Bytes from elsewhere in the file.
                let from = feed.number() as usize % bytes.len().max(1);
                let copy: Vec<u8> = bytes[from.min(bytes.len())..].iter().take(64).copied().collect();
                for (held, new) in bytes.iter_mut().skip(at).zip(copy) {
                    *held = new;
                }
            }
            3 => bytes.extend_from_slice(feed.take(40)),
            4 => {
                // A block of any kind that the checksum speaks for.
                let text = feed.take(30);
                let mut block = vec![0; 36];
                block[4..8].copy_from_slice(&(36 + text.len() as u32).to_le_bytes());
                block[8..16].copy_from_slice(&feed.number().to_le_bytes());
                block[16..20].copy_from_slice(&(feed.number() as u32).to_le_bytes());
                block[20] = feed.byte() % 4;
                block[21] = feed.byte() % 3;
                block[22..24].copy_from_slice(b"BK");
                block.extend_from_slice(text);
                let crc = crc32fast::hash(&block[4..]);
                block[..4].copy_from_slice(&crc.to_le_bytes());
                let at = at.min(bytes.len());
                bytes.splice(at..at, block);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= feed.byte();
                }
            }
        }
    }
    files.plant(path, &bytes);
    let Ok(file) = host.files.open(path) else { return };
    if file.coding().is_none() {
        return;
    }
    let len = file.len().expect("a disk that reads");
    assert!(len <= (bytes.len() as u64 / 36 + 2) << 15, "{len} of content in {} bytes", bytes.len());
    let len = len.min(1 << 20) as usize;
    let mut forward = vec![0xaa; len];
    file.read_exact_at(&mut forward, 0).expect("as long as it says");
    let again = host.files.open(path).expect("as before");
    let mut backward = vec![0x55; len];
    for (number, piece) in backward.chunks_mut(5000).enumerate().rev() {
        again.read_exact_at(piece, number as u64 * 5000).expect("as long as it says");
    }
    assert!(forward == backward, "what is read depends on what was read before");
    if encrypt {
        let made_up = forward.iter().enumerate().find(|(at, byte)| **byte != 0 && written.get(*at) != Some(byte));
        assert_eq!(made_up, None, "content that nobody with the key wrote");
    }
    again.flaws().expect("a disk that reads");
}

/// Reading an index: what is taken for good is usable, and what was written whole reads back.
pub fn index(data: &[u8]) {
    let mut feed = Feed(data);
    let mut bytes = Vec::new();
    let mut written = None;
    if feed.byte() & 1 == 0 {
        let mut index = ActiveIndex::default();
        let (mut relative, mut offset) = (0u32, SEGMENT_HEADER_BYTES as u32);
        let base = feed.number() >> 2;
        bytes.resize(usize::from(feed.byte()), 0xaa);
        for _ in 0..feed.byte() {
            let lane = Lane(u16::from_le_bytes([feed.byte(), feed.byte()]) % LANES as u16);
            let len = 41 + u32::from(feed.byte());
            index.push(lane, relative, Entry { offset, len });
            relative += 1 + u32::from(feed.byte() / 64);
            offset += len;
        }
        let frames_end = bytes.len() as u64;
        let end = base + u64::from(relative);
        bytes.extend(index.encode(Position(base), Position(end), frames_end, feed.u64()));
        let whole = bytes.clone();
        spoil_index(&mut feed, &mut bytes);
        if bytes == whole {
            written = Some((index, base, end));
        }
    } else {
        bytes.extend_from_slice(feed.0);
    }
    let (files, _) = disk();
    files.plant(Path::new("/s"), &bytes);
    let file = files.open(Path::new("/s")).expect("planted");
    let read = Footer::read(file.as_ref()).expect("a disk that reads");
    if let Some((index, base, end)) = written {
        let (footer, directory) = read.as_ref().expect("an index that was written whole reads back");
        assert_eq!((footer.base, footer.end, footer.frames as usize), (Position(base), Position(end), index.len()));
        assert_eq!(*directory, index.directory());
        assert!(footer.entries_check(file.as_ref()).expect("a disk that reads"));
    }
    let Some((footer, directory)) = read else { return };
    assert!(footer.end >= footer.base && footer.frames_end <= bytes.len() as u64);
    let mut entries = 0;
    for lane in (0..LANES as u16).map(Lane) {
        assert_eq!(directory.start(lane), entries, "lanes follow each other");
        entries += directory.count(lane);
        let found = footer.read_entries(file.as_ref(), directory.start(lane), directory.end(lane));
        assert_eq!(found.expect("inside the file").len(), directory.count(lane) as usize);
        if let Some(last) = directory.last_relative(lane) {
            // What deletion asks for: it must not wrap around.
            assert!(footer.base.0.checked_add(u64::from(last)).is_some());
        }
    }
    assert_eq!(entries, footer.frames);
    footer.entries_check(file.as_ref()).expect("inside the file");
}

const SPOOL: &str = "/spool";

fn open_spool(files: &FaultFiles, durable: u64) -> Result<(Host, Opened), OpenError> {
    let host = sim_host(files, &Arc::new(SimClock::new()), 1);
    let options = SpoolOptions { stream: "clicks".into(), dir: SPOOL.into(), max_bytes: 1 << 30, segment_bytes: 2048 };
    prepare(&host, &options)?;
    let opened = open(&host, &options, Position(durable), &Arc::default())?;
    Ok((host, opened))
}

/// What a spool holds by position, and how many events its indexes tell of; reading it goes forward and ends.
/// An index whose checksums are good may lie here, so what it says is not compared with the frames.
fn everything(host: &Host, opened: &Opened) -> (BTreeMap<u64, Vec<u8>>, u64) {
    let shared = opened.handle.shared();
    let mut cursor = Cursor::new(Arc::clone(shared), Arc::clone(&host.files));
    let (mut swept, mut at) = (BTreeMap::new(), Position(0));
    while let Some(step) = cursor.next(at).expect("a disk that reads") {
        let before = at;
        let mut bytes = &step.chunk.bytes[..];
        while let Some(frame) = Frame::check(bytes) {
            assert!(frame.position() >= at, "KEY-ORDER: forward only");
            swept.insert(frame.position().0, frame.data().to_vec());
            at = Position(frame.position().0 + 1);
            bytes = &bytes[frame.len()..];
        }
        at = at.max(step.chunk.first);
        assert!(at > before, "BORING-RECOVERY: reading moves on");
    }
    let mut pending = 0;
    for segment in shared.table.all() {
        pending += cursor.pending(&segment, &[Position(0); LANES]).expect("a disk that reads");
        for (_, entry) in cursor.lane_frames(&segment, Lane(0), Lane(LANES as u16 - 1)).expect("a disk that reads") {
            let mut bytes = Vec::new();
            if cursor.read_frame(&segment, entry, &mut bytes).expect("a disk that reads") {
                Frame::check(&bytes).expect("read_frame checks");
            }
        }
    }
    (swept, pending)
}

/// Opening a directory of arbitrary files: it ends, a second opening finds the same and repairs nothing, and what is
/// written then is found behind it.
pub fn recovery(data: &[u8]) {
    let mut feed = Feed(data);
    let durable = feed.number() >> 2;
    let (files, _) = disk();
    let (mut id, mut base) = (1, feed.number() >> 2);
    for _ in 0..1 + feed.one_of(4) {
        let (bytes, end) = build_segment(&mut feed, SegmentId(id), base);
        files.plant(&Path::new(SPOOL).join("segments").join(SegmentId(id).file_name()), &bytes);
        id = id.saturating_add(1 + u32::from(feed.byte() / 128));
        base = match feed.one_of(8) {
            0 => feed.number() >> 1,
            1 => end.saturating_sub(feed.number()),
            2 => end.saturating_add(feed.number()),
            _ => end,
        };
    }
    let (host, opened) = match open_spool(&files, durable) {
        Ok(opened) => opened,
        Err(OpenError::OtherVersion { .. }) => return,
        Err(error) => panic!("BORING-RECOVERY: {error}"),
    };
    let next = opened.writer.next();
    assert!(next.0 >= durable, "positions that were durable are given again");
    let first = everything(&host, &opened);
    assert!(first.0.last_key_value().is_none_or(|(last, _)| *last < next.0), "positions that are there are given again");
    drop(opened);
    if next.0 > 1 << 62 {
        // No spool gets there, and there is no room for what is written below.
        return;
    }

    let files = files.kill();
    let (host, mut opened) = open_spool(&files, next.0).expect("what opened once opens again");
    assert_eq!(opened.writer.next(), next, "BORING-RECOVERY: a second opening finds the same");
    assert_eq!((opened.damaged_events, opened.torn_bytes), (0, 0), "BORING-RECOVERY: a second opening has nothing to repair");
    let second = everything(&host, &opened);
    assert_eq!(second, first, "BORING-RECOVERY: a second opening finds the same");
    let mut batch = Vec::new();
    for data in [&b"one"[..], b"two"] {
        frame::encode(&mut batch, "k", KeyHash::of_key("k"), false, data);
    }
    opened.writer.commit(&mut [batch]).expect("a good disk");
    drop(opened);

    let files = files.kill();
    let (host, opened) = open_spool(&files, next.0).expect("what opened once opens again");
    assert_eq!((opened.writer.next().0, opened.damaged_events), (next.0 + 2, 0));
    let third = everything(&host, &opened).0;
    assert_eq!((&third[&next.0][..], &third[&(next.0 + 1)][..]), (&b"one"[..], &b"two"[..]), "NOTHING-LOST");
    assert_eq!(third.len(), first.0.len() + 2);
}

/// An item that owns its bytes.
#[derive(Debug, PartialEq)]
enum Owned {
    Event(Option<Vec<u8>>, Vec<u8>),
    Rejected(String),
    Lost,
}

fn own(item: Item<'_>) -> Owned {
    match item {
        Item::Event { key, data } => Owned::Event(key.map(<[u8]>::to_vec), data.to_vec()),
        Item::Rejected(reject) => Owned::Rejected(format!("{reject:?}")),
        Item::Lost => Owned::Lost,
    }
}

/// All items of a stream that comes in pieces of `step` bytes; checks the bound of the carry on the way.
fn split(format: Format, max: usize, stream: &[u8], step: usize) -> Vec<Owned> {
    let mut splitter = Splitter::new(format, max);
    let mut items = Vec::new();
    for mut piece in stream.chunks(step.max(1)) {
        while let Some(item) = splitter.next(&mut piece) {
            items.push(own(item));
        }
        assert!(piece.is_empty(), "all of a buffer is used");
        assert!(splitter.carried() <= max + KEY_BYTES_MAX + wire::FRAME_HEADER_BYTES, "CARRY-BOUNDED");
    }
    items.extend(splitter.finish().map(own));
    items
}

/// Lines: however the stream is cut, the events are what a naive splitter makes of it.
pub fn lines(data: &[u8]) {
    let mut feed = Feed(data);
    let (max, step) = (1 + usize::from(feed.byte()) % 40, 1 + usize::from(feed.byte()) % 60);
    let stream = feed.0;
    let naive: Vec<Owned> = stream
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter_map(|(at, line)| {
            // The last piece has no newline, and so no CR of a CRLF.
            let last = at == stream.iter().filter(|byte| **byte == b'\n').count();
            let line = if last { line } else { line.strip_suffix(b"\r").unwrap_or(line) };
            match line.len() {
                0 => None,
                long if long > max => Some(Owned::Rejected("TooLarge".into())),
                _ => Some(Owned::Event(None, line.to_vec())),
            }
        })
        .collect();
    assert_eq!(split(Format::Lines, max, stream, stream.len()), naive);
    assert_eq!(split(Format::Lines, max, stream, step), naive, "CHUNK-BLIND");
    assert_eq!(split(Format::Lines, max, stream, 1), naive, "CHUNK-BLIND");
    assert_eq!(wire::lines(stream, max).map(own).collect::<Vec<_>>(), naive);
}

/// Frames: however the stream is cut, the events are the same; what was written as frames comes back.
pub fn frames(data: &[u8]) {
    let mut feed = Feed(data);
    let (max, step) = (1 + usize::from(feed.byte()), 1 + usize::from(feed.byte()) % 60);
    let mut stream = Vec::new();
    let mut made = Vec::new();
    for _ in 0..feed.one_of(8) {
        let (key, len) = (usize::from(feed.byte()) % 20, usize::from(feed.byte()));
        let (key, data) = (feed.take(key), feed.take(len));
        wire::write_frame(&mut stream, key, data);
        made.push(if data.len() > max {
            Owned::Rejected("TooLarge".into())
        } else {
            Owned::Event((!key.is_empty()).then(|| key.to_vec()), data.to_vec())
        });
    }
    stream.extend_from_slice(feed.0);
    let whole = split(Format::Frames, max, &stream, stream.len());
    assert_eq!(whole[..made.len()], made[..], "what was written comes back");
    assert_eq!(split(Format::Frames, max, &stream, step), whole, "CHUNK-BLIND");
    assert_eq!(split(Format::Frames, max, &stream, 1), whole, "CHUNK-BLIND");
    let lost = whole.iter().position(|item| *item == Owned::Lost);
    assert!(lost.is_none_or(|at| at + 1 == whole.len()), "nothing is read behind a lost boundary");
}

/// The first line: what looks like a hello does so however little has come, and what is understood can be said again.
pub fn hello(data: &[u8]) {
    let whole = sniff(data);
    for cut in 0..data.len().min(64) {
        match sniff(&data[..cut]) {
            Sniff::More => {}
            Sniff::Plain => assert_eq!(whole, Sniff::Plain),
            Sniff::Hello(line, used) => assert_eq!(whole, Sniff::Hello(line, used)),
        }
    }
    if let Sniff::Hello(line, used) = whole {
        assert!(line.len() <= used && used <= data.len());
    }
    let line = match whole {
        Sniff::Hello(line, _) => line,
        _ => data,
    };
    match Hello::parse(line) {
        Ok(hello) => {
            let again = hello.line();
            // A lone CR at the end of a value is a value's, once options stand behind it.
            if again.bytes().filter(|byte| *byte == b'\n').count() == 1 {
                assert_eq!(Hello::parse(again.trim_end_matches('\n').as_bytes()), Ok(hello));
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line"),
    }
}

/// What serde_json makes of the pointers: the first that leads to a non-empty string or a number.
fn by_tree(event: &serde_json::Value, pointers: &[&str]) -> Option<String> {
    pointers.iter().find_map(|pointer| match event.pointer(pointer)? {
        serde_json::Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// Keys: the one-pass walk takes what serde_json takes, and finds what its tree holds.
pub fn pointers(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (list, event) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(list) = std::str::from_utf8(list) else { return };
    let list: Vec<&str> = list.split(' ').take(8).collect();
    let Ok(compiled) = Pointers::compile(&list) else { return };
    let mut scratch = Scratch::default();
    let found = compiled.find(event, &mut scratch).map(|key| key.map(str::to_owned));
    let is_json = std::str::from_utf8(event).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(event).is_ok();
    assert!(is_json || found.is_err(), "what is not JSON was taken for it");
    // The tree refuses more: half a surrogate pair, a number beyond f64, deep nesting.
    if let Ok(tree) = serde_json::from_slice::<serde_json::Value>(event) {
        assert_eq!(found, Ok(by_tree(&tree, &list)));
    }
}

/// Aggregates: ours and prost's reading agree wherever prost takes the message.
pub fn kpl(data: &[u8]) {
    let mut feed = Feed(data);
    let record = match feed.one_of(4) {
        0 => feed.0.to_vec(),
        1 => [&MAGIC[..], feed.0].concat(),
        _ => [&MAGIC[..], feed.0, Md5::digest(feed.0).as_slice()].concat(),
    };
    let ours = deaggregate(&record, "outer", Some(7));
    for member in ours.members() {
        assert!(member.data.len() <= record.len());
        assert!(member.explicit_hash_key.is_none_or(|hash| member.hash() == KeyHash(hash)));
    }
    assert!(ours.readable_in(0, u128::MAX));
    if let Content::Plain(member) = &ours {
        assert_eq!((member.key, member.explicit_hash_key, member.data), (&b"outer"[..], Some(7), &record[..]));
    }
    let Ok(theirs) = prost_kpl::take_apart("outer", Some(7), &record) else { return };
    match &ours {
        Content::Aggregate(members) => {
            let same = |(member, event): (&Member<'_>, &prost_kpl::Delivered)| {
                (member.key, member.explicit_hash_key, member.data)
                    == (event.key.as_bytes(), event.explicit_hash_key, &event.data[..])
            };
            assert!(members.len() == theirs.len() && members.iter().zip(&theirs).all(same), "we and prost read different events");
        }
        Content::Plain(_) if theirs.iter().any(|event| event.aggregated) => {
            // prost makes up required fields that are missing, and lets a sign stand before a number.
            let message = prost_kpl::AggregatedRecord::decode(&record[4..record.len() - 16]).expect("taken apart just now");
            let signed = message.explicit_hash_key_table.iter().any(|hash| hash.starts_with('+'));
            assert!(signed || message.encode_to_vec() != record[4..record.len() - 16], "what prost would write is read as plain");
        }
        Content::Plain(_) => {}
    }
}
