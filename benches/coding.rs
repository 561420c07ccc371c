//! What do compression and encryption at rest cost, and what do they save?
//!
//! The question behind it: may they be left on where events are many, and is 32 KiB the right block? The sketch, guessed
//! before it was measured, for events of 300 B: plain writing is a CRC-32 and a copy, some 100 ns an event; AES-256-GCM with
//! the CPU's help does 2 to 3 GB/s, 120 ns more; zstd's first level 350 MB/s, 850 ns more, for a third of the bytes.
//!
//! How to run: `cargo bench --bench coding`. Nothing is synced, so that the disk's own time is not in the figures; files lie
//! below `target/` and are removed. All in one run on one thread: the ratios are what counts. The last table is zstd alone,
//! by size of block and level.
//!
//! Measured on 2 cores with busy neighbours, 2026-11-20; events of 324 B with their frame:
//!
//! | groups of 512 KiB | write ns/event | sweep ns/event | stored |
//! | --- | --- | --- | --- |
//! | plain | 266 | 116 | 100.0 % |
//! | encrypted | 244 | 154 | 100.2 % |
//! | compressed | 656 | 255 | 24.6 % |
//! | both | 636 | 379 | 24.7 % |
//!
//! So encryption is in the noise of a write where groups are large, and with groups of 2 KiB (six events) twice the write;
//! compression costs 400 ns an event for a quarter of the bytes (39 % with groups of 2 KiB). A shard that reads its eighth
//! of the key space again decodes all blocks: 0.3 us an event plain, 0.7 encrypted, 1.6 compressed. Blocks of 4 KiB would
//! store 28.5 % instead of 20.7, blocks of 128 KiB 19.7: 32 KiB is where it flattens. Level 3 saves nothing, level -1 a
//! quarter of the time for a fifth more bytes.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "common/no_sync.rs"]
mod no_sync;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::coding::{Coding, EncryptionKey, KeyRing};
use forebay::event::{KeyHash, Lane, Position};
use forebay::host::{Host, mix64};
use forebay::spool::cursor::Cursor;
use forebay::spool::{SpoolOptions, frame, open, prepare};
use no_sync::NoSync;

/// Content written for each row.
const CONTENT_BYTES: usize = 96 << 20;

/// A page view as an analytics SDK sends it: ids that do not compress, names that do. About 300 bytes.
fn event(number: u64) -> (String, Vec<u8>) {
    let pages = ["/", "/products", "/products/bicycles", "/cart", "/checkout", "/help/returns", "/blog/spring", "/account"];
    let agents = ["Mozilla/5.0 (X11; Linux x86_64) Firefox/142.0", "Mozilla/5.0 (Macintosh) Safari/619.1", "okhttp/4.12.0"];
    let (one, two) = (mix64(number), mix64(number ^ 0xabcd_ef01));
    let user = format!("user-{:05}", one % 20_000);
    let data = format!(
        "{{\"type\":\"page\",\"messageId\":\"{one:016x}{two:016x}\",\"userId\":\"{user}\",\"timestamp\":\"2026-11-20T12:{:02}:{:02}.{:03}Z\",\
         \"properties\":{{\"path\":\"{}\",\"referrer\":\"https://www.example.com{}\",\"width\":{}}},\"context\":{{\"userAgent\":\"{}\"}}}}",
        number / 60_000 % 60,
        number / 1000 % 60,
        number % 1000,
        pages[(one >> 20) as usize % pages.len()],
        pages[(two >> 20) as usize % pages.len()],
        360 + two % 1600,
        agents[(two >> 40) as usize % agents.len()],
    );
    (user, data.into_bytes())
}

/// Groups of about so many bytes each.
fn groups(bytes: usize) -> (Vec<Vec<u8>>, u64) {
    let (mut groups, mut number, mut total) = (vec![Vec::new()], 0, 0);
    while total < CONTENT_BYTES {
        if groups.last().is_some_and(|group| group.len() >= bytes) {
            groups.push(Vec::new());
        }
        let group = groups.last_mut().expect("there is one");
        let before = group.len();
        let (key, data) = event(number);
        frame::encode(group, &key, KeyHash::of_key(&key), false, &data);
        total += group.len() - before;
        number += 1;
    }
    (groups, number)
}

struct Row {
    write: Duration,
    sweep: Duration,
    lanes: Duration,
    lane_events: u64,
    stored: u64,
    content: u64,
}

fn measure(coding: &Coding, groups: &[Vec<u8>], events: u64) -> Row {
    let dir = tempfile::tempdir_in(PathBuf::from(env!("CARGO_TARGET_TMPDIR"))).expect("a directory below target");
    let real = Host::real();
    let host = coding.host(&Host { files: Arc::new(NoSync(Arc::clone(&real.files))), ..real });
    let options = SpoolOptions {
        stream: "bench".into(),
        dir: dir.path().to_owned(),
        max_bytes: u64::MAX,
        segment_bytes: forebay::limits::SEGMENT_BYTES_DEFAULT,
    };
    prepare(&host, &options).expect("an empty directory");
    let mut opened = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool");
    let mut write = Duration::ZERO;
    for group in groups {
        let mut batches = [group.clone()];
        let begun = Instant::now();
        opened.writer.commit(&mut batches).expect("a group");
        write += begun.elapsed();
    }
    opened.writer.seal();
    let table = Arc::clone(&opened.handle.shared().table);
    let (mut stored, mut content) = (0, 0);
    for segment in table.all() {
        stored += segment.extent().file_bytes;
        content += segment.extent().content_bytes();
    }
    // As after a start: nothing in memory.
    let opened = open(&host, &options, Position(0), &Arc::default()).expect("the spool again");
    let shared = Arc::clone(opened.handle.shared());
    let mut cursor = Cursor::new(Arc::clone(&shared), Arc::clone(&host.files));
    let begun = Instant::now();
    let (mut position, mut swept) = (Position(0), 0);
    while let Some(found) = cursor.next(position).expect("a sweep") {
        assert!(found.damaged.is_empty());
        swept += u64::from(found.chunk.count);
        position = Position(found.chunk.first.0 + u64::from(found.chunk.count));
    }
    let sweep = begun.elapsed();
    assert_eq!(swept, events);
    // An eighth of the key space, as a shard reads that fell behind.
    let begun = Instant::now();
    let (mut lane_events, mut bytes) = (0, Vec::new());
    for segment in shared.table.all() {
        let entries = cursor.lane_frames(&segment, Lane(0), Lane(127)).expect("lanes");
        for (at, (_, entry)) in entries.iter().enumerate() {
            bytes.clear();
            let ahead = entries[at + 1..].iter().map(|(_, entry)| *entry);
            assert!(cursor.read_frame_and(&segment, *entry, ahead, &mut bytes).expect("a frame"));
            lane_events += 1;
        }
    }
    Row { write, sweep, lanes: begun.elapsed(), lane_events, stored, content }
}

fn main() {
    let key = KeyRing::new(vec![EncryptionKey::new([7; 32])]);
    let codings = [
        ("plain", Coding::default()),
        ("encrypted", Coding { compress: false, keys: key.clone() }),
        ("compressed", Coding { compress: true, keys: KeyRing::default() }),
        ("both", Coding { compress: true, keys: key }),
    ];
    for group_bytes in [2 << 10, 512 << 10] {
        let (groups, events) = groups(group_bytes);
        println!("\ngroups of {} KiB, {events} events of {} B", group_bytes >> 10, CONTENT_BYTES as u64 / events);
        println!("{:<12}{:>16}{:>16}{:>22}{:>14}", "", "write ns/event", "sweep ns/event", "eighth, ns/event", "bytes stored");
        for (name, coding) in &codings {
            let row = measure(coding, &groups, events);
            let per = |time: Duration, events: u64| time.as_nanos() as f64 / events as f64;
            println!(
                "{name:<12}{:>16.0}{:>16.0}{:>22.0}{:>12.1} %",
                per(row.write, events),
                per(row.sweep, events),
                per(row.lanes, row.lane_events),
                100.0 * row.stored as f64 / row.content as f64
            );
        }
    }
    let (groups, events) = groups(8 << 20);
    println!("\nzstd alone{:>20}{:>12}{:>22}{:>22}", "block", "bytes", "compress ns/event", "decompress ns/event");
    for level in [-1, 1, 3] {
        for kib in [4, 16, 32, 64, 128] {
            let mut zstd = zstd::bulk::Compressor::new(level).expect("zstd");
            let mut back = zstd::bulk::Decompressor::new().expect("zstd");
            let (mut there, mut again, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
            for block in groups.iter().flat_map(|group| group.chunks(kib << 10)) {
                let begun = Instant::now();
                let small = zstd.compress(block).expect("compressed");
                there += begun.elapsed();
                bytes += small.len();
                let begun = Instant::now();
                assert_eq!(back.decompress(&small, kib << 10).expect("decompressed").len(), block.len());
                again += begun.elapsed();
            }
            let per = |time: Duration| time.as_nanos() as f64 / events as f64;
            println!(
                "level {level:>2}{:>18} KiB{:>10.1} %{:>22.0}{:>22.0}",
                kib,
                100.0 * bytes as f64 / CONTENT_BYTES as f64,
                per(there),
                per(again)
            );
        }
    }
}
