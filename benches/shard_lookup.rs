//! What does finding an event's shard cost?
//!
//! The sketch: a table look-up by lane, 1 to 2 ns, where the lane lies in one shard (every power of two up to 1,024); a
//! binary search over the open shards, 10 to 30 ns, where a boundary lies inside it. The key's MD5 is about 90 ns, which is
//! why ingest keeps the hashes of keys it has seen. Making a map is rare and may take a millisecond.
//!
//! How to run: `cargo bench --bench shard_lookup`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay::event::KeyHash;
use forebay::host::mix64;
use forebay::shard_map::{ShardMap, even_shards};

fn lookup(c: &mut Criterion) {
    let hashes: Vec<KeyHash> = (0..4096u64).map(|n| KeyHash(u128::from(mix64(n)) << 64 | u128::from(mix64(!n)))).collect();
    let mut bench = c.benchmark_group("shard_lookup");
    bench.throughput(Throughput::Elements(hashes.len() as u64));
    for shards in [8, 500, 512, 5000] {
        let map = ShardMap::new(even_shards(shards)).expect("even shards cover");
        bench.bench_function(BenchmarkId::from_parameter(shards), |bencher| {
            bencher.iter(|| black_box(&hashes).iter().map(|hash| map.shard_of(*hash)).sum::<usize>());
        });
    }
    bench.finish();
    c.bench_function("key_md5/16", |bencher| bencher.iter(|| KeyHash::of_key(black_box("user-00000123456"))));
    c.bench_function("map_of_512", |bencher| bencher.iter(|| ShardMap::new(even_shards(black_box(512)))));
}

criterion_group!(benches, lookup);
criterion_main!(benches);
