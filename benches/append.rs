//! How fast does the commit thread make groups durable?
//!
//! The sketch: stamping a frame costs its CRC-32 (about 70 GB/s) and a lane entry, some 30 ns an event of 200 B; the write
//! costs a copy into the page cache; then the disk's own sync. So `memory` (everything but the sync) should be 2 to 4
//! GB/s, and `disk` what the disk gives: 4 KiB groups its fdatasync, 1 MiB and 8 MiB groups its bandwidth.
//!
//! How to run: `cargo bench --bench append`. The files lie below `target/`, on the repository's disk, and are removed as
//! they are covered, as by a dispatcher that keeps pace.

#![allow(clippy::disallowed_methods, reason = "a bench looks at real clocks and files")]

#[path = "common/no_sync.rs"]
mod no_sync;

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay::event::{KeyHash, LANES, Position};
use forebay::host::Host;
use forebay::spool::{SpoolOptions, frame, open, prepare, remove_covered};
use no_sync::NoSync;

fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// A group as ingest hands it over: batches of 128 KiB, or one smaller.
fn group(bytes: usize, event_bytes: usize) -> (Vec<Vec<u8>>, u64) {
    let data = vec![b'x'; event_bytes];
    let (mut batches, mut events, mut total) = (vec![Vec::new()], 0u64, 0);
    while total < bytes {
        if batches.last().is_some_and(|batch| batch.len() >= 128 << 10) {
            batches.push(Vec::new());
        }
        let key = format!("u{:06}", events % 3000);
        let batch = batches.last_mut().expect("there is one");
        let before = batch.len();
        frame::encode(batch, &key, KeyHash::of_key(&key), false, &data);
        total += batch.len() - before;
        events += 1;
    }
    (batches, events)
}

fn append(c: &mut Criterion) {
    for (kind, synced) in [("memory", false), ("disk", true)] {
        let mut bench = c.benchmark_group(format!("append/{kind}"));
        bench.measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_secs(1)).sample_size(20);
        for (bytes, event_bytes) in [(4 << 10, 200), (1 << 20, 200), (8 << 20, 200), (8 << 20, 1024)] {
            let dir = tempfile::tempdir_in(target()).expect("a directory below target");
            let mut host = Host::real();
            if !synced {
                host.files = Arc::new(NoSync(host.files));
            }
            let options = SpoolOptions {
                stream: "bench".into(),
                dir: dir.path().to_owned(),
                max_bytes: u64::MAX,
                segment_bytes: forebay::limits::SEGMENT_BYTES_DEFAULT,
            };
            prepare(&host, &options).expect("an empty directory");
            let mut opened = open(&host, &options, Position(0), &Arc::default()).expect("an empty spool");
            let table = Arc::clone(&opened.handle.shared().table);
            let (mut batches, events) = group(bytes, event_bytes);
            bench.throughput(Throughput::ElementsAndBytes { elements: events, bytes: bytes as u64 });
            let name = BenchmarkId::new(format!("{event_bytes}B"), format!("{}KiB", bytes >> 10));
            bench.bench_function(name, |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut took = Duration::ZERO;
                    for _ in 0..iterations {
                        let start = Instant::now();
                        black_box(opened.writer.commit(&mut batches).expect("a good disk"));
                        took += start.elapsed();
                        if table.bytes() > 512 << 20 {
                            let marks = [opened.writer.next(); LANES];
                            remove_covered(&host, &table, &marks).expect("removal");
                        }
                    }
                    took
                });
            });
        }
        bench.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
