//! How fast do events become a KPL record?
//!
//! The sketch: planning costs a look-up of the key's hash (10 to 20 ns an event); writing costs a copy; sealing the MD5
//! of all bytes, 600 to 740 MB/s on a core one record at a time, which would be most of it (1.4 ns a byte, 0.3 µs an
//! event of 200 B). MD5 waits for itself; sixteen records side by side take 0.15 of that with AVX-512 (guessed: 0.2), 0.19
//! with AVX2, eight 0.35 with SSE2.
//!
//! How to run: `cargo bench --bench aggregate`. `plan` is the dispatcher's share, `write` and `seal` the put task's;
//! `seal/one_by_one` is the `md-5` crate over the same 64 records of 25 KiB.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay::aggregate::Packer;
use forebay::event::KeyHash;
use forebay::limits::AGGREGATE_BYTES_DEFAULT;
use forebay::md5_lanes;
use md5::{Digest as _, Md5};

fn aggregate(c: &mut Criterion) {
    let mut bench = c.benchmark_group("aggregate");
    for event_bytes in [200, 1024] {
        let data = vec![b'x'; event_bytes];
        let keys: Vec<(String, KeyHash)> =
            (0..3000).map(|user| format!("u{user:06}")).map(|key| (key.clone(), KeyHash::of_key(&key))).collect();
        let fill = |packer: &mut Packer| {
            let mut events = 0u64;
            while keys
                .get(events as usize % 30)
                .is_some_and(|(key, hash)| packer.try_add(key.len() as u16, || key.as_bytes(), *hash, false, event_bytes))
            {
                events += 1;
            }
            events
        };
        let mut packer = Packer::new(AGGREGATE_BYTES_DEFAULT);
        let events = fill(&mut packer);
        let plan = packer.take();
        bench.throughput(Throughput::ElementsAndBytes { elements: events, bytes: plan.size() as u64 });
        bench.bench_function(BenchmarkId::new("plan", event_bytes), |bencher| {
            bencher.iter(|| {
                black_box(fill(&mut packer));
                packer.take()
            });
        });
        bench.bench_function(BenchmarkId::new("write", event_bytes), |bencher| {
            let pieces = vec![&data[..]; plan.len()];
            bencher.iter_batched(|| pieces.clone(), |pieces| plan.write_unsealed(black_box(pieces)), BatchSize::SmallInput);
        });
    }
    bench.finish();
}

fn seal(c: &mut Criterion) {
    let records: Vec<Vec<u8>> = (0..64).map(|n| vec![n as u8; 24_000 + 37 * n]).collect();
    let records: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
    let mut bench = c.benchmark_group("seal");
    bench.throughput(Throughput::Bytes(records.iter().map(|record| record.len() as u64).sum()));
    bench.bench_function("side_by_side", |bencher| bencher.iter(|| md5_lanes::digests(black_box(&records))));
    bench.bench_function("one_by_one", |bencher| {
        bencher.iter(|| black_box(&records).iter().map(Md5::digest).collect::<Vec<_>>());
    });
    bench.finish();
}

criterion_group!(benches, aggregate, seal);
criterion_main!(benches);
