//! How long does opening a spool take, for each byte of its backlog?
//!
//! The sketch: a sealed segment costs an open, two reads of 8 KiB and a checksum, well under a millisecond for 64 MiB; the
//! last segment, without an index after a crash, is read and checked whole, 1 to 3 GB/s from the page cache, then synced
//! and sealed. So 10 GiB of backlog are 160 sealed segments and one scan: far below the promised second
//! (*BORING-RECOVERY*).
//!
//! How to run: `cargo bench --bench recover`. Writes 640 MiB below `target/` first. The page cache is warm: a cold disk adds
//! its own seeks, one or two for each segment.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay::event::{KeyHash, Position};
use forebay::host::Host;
use forebay::spool::index::Footer;
use forebay::spool::{SpoolOptions, frame, open, prepare, segments_dir};

const SEGMENT_BYTES: u64 = forebay::limits::SEGMENT_BYTES_DEFAULT;

fn options(dir: &Path) -> SpoolOptions {
    SpoolOptions { stream: "bench".into(), dir: dir.to_owned(), max_bytes: u64::MAX, segment_bytes: SEGMENT_BYTES }
}

/// A spool of `segments` full segments of 200 B events, all sealed.
fn fill(dir: &Path, segments: u64) {
    let host = Host::real();
    prepare(&host, &options(dir)).expect("an empty directory");
    let mut writer = open(&host, &options(dir), Position(0), &Arc::default()).expect("an empty spool").writer;
    let data = [b'x'; 200];
    let mut batch = Vec::new();
    while batch.len() < 4 << 20 {
        let key = format!("u{:06}", batch.len() % 3000);
        frame::encode(&mut batch, &key, KeyHash::of_key(&key), false, &data);
    }
    let mut batches = [batch];
    for _ in 0..segments * (SEGMENT_BYTES >> 22) {
        writer.commit(&mut batches).expect("a good disk");
    }
    writer.seal();
}

/// The newest segment, and where its frames end.
fn newest(dir: &Path) -> (PathBuf, u64) {
    let host = Host::real();
    let names = host.files.list(&segments_dir(dir)).expect("the segments");
    let path = segments_dir(dir).join(names.last().expect("a segment"));
    let file = host.files.open(&path).expect("a listed file");
    let (footer, _) = Footer::read(file.as_ref()).expect("a good disk").expect("a sealed segment");
    (path, footer.frames_end)
}

fn recover(c: &mut Criterion) {
    let host = Host::real();
    let mut bench = c.benchmark_group("recover");
    bench.sample_size(10).measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_secs(1));
    for (name, segments, torn) in [("one-unsealed", 1, true), ("ten-sealed", 10, false), ("ten-last-unsealed", 10, true)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory below target");
        fill(dir.path(), segments);
        let (path, frames_end) = newest(dir.path());
        bench.throughput(Throughput::Bytes(segments * SEGMENT_BYTES));
        bench.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    if torn {
                        // As a crash leaves it: no index, and a part of a frame at the end.
                        let file = fs::OpenOptions::new().write(true).open(&path).expect("the newest segment");
                        file.set_len(frames_end - 100).expect("a good disk");
                        file.sync_all().expect("a good disk");
                    }
                    let start = Instant::now();
                    let opened = open(&host, &options(dir.path()), Position(0), &Arc::default()).expect("a whole spool");
                    took += start.elapsed();
                    assert_eq!(opened.damaged_events, 0);
                    assert_eq!(opened.torn_bytes > 0, torn);
                }
                took
            });
        });
    }
    bench.finish();
}

criterion_group!(benches, recover);
criterion_main!(benches);
