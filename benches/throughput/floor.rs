//! What the machine itself can do in this run: the disk's sync, and one core's sums and copies.
//!
//! Place: `throughput.rs` prints it beside its results, because the machine is shared and its speed is not the same twice.
//! No state. SHA-256, which request signing needs over every byte, is not measured: the dependency tree has it only
//! through the SDK, under no name of ours.

use std::fs;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use md5::{Digest as _, Md5};

/// p50, p99, p99.9 and the largest.
#[derive(Clone, Copy, Debug)]
pub struct Percentiles(pub [Duration; 4]);

impl Percentiles {
    /// Of nanoseconds, at least one.
    pub fn of(mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share).round() as usize];
        Self([0.5, 0.99, 0.999, 1.0].map(|share| Duration::from_nanos(at(share))))
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, p999, most] = self.0.map(|time| time.as_secs_f64() * 1e6);
        write!(f, "p50 {p50:>6.0} µs   p99 {p99:>6.0} µs   p99.9 {p999:>6.0} µs   most {most:>6.0} µs")
    }
}

/// One fdatasync after each append of 4 KiB, one each millisecond like the single events beside it.
pub fn disk(dir: &Path, count: usize) -> io::Result<Percentiles> {
    let path = dir.join("fdatasync.probe");
    // What others left to be written would be waited for by the first of our syncs.
    rustix::fs::sync();
    let mut file = fs::File::create(&path)?;
    let block = [0x5a; 4096];
    let mut nanos = Vec::with_capacity(count);
    let start = Instant::now();
    for n in 0..count {
        let due = start + Duration::from_millis(n as u64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let before = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        nanos.push(before.elapsed().as_nanos() as u64);
    }
    fs::remove_file(&path)?;
    Ok(Percentiles::of(nanos))
}

/// Names and MB/s on one core.
pub fn core() -> Vec<(&'static str, f64)> {
    // A record's size: larger than the first cache, smaller than the last.
    let input: Vec<u8> = (0..256 << 10).map(|at| (at * 31 % 251) as u8).collect();
    let mut copy = vec![0; input.len()];
    let mut text = vec![0; input.len() * 2];
    let rate = |work: &mut dyn FnMut()| {
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(200) {
            for _ in 0..8 {
                work();
                bytes += input.len();
            }
        }
        bytes as f64 / start.elapsed().as_secs_f64() / 1e6
    };
    vec![
        (
            "MD5",
            rate(&mut || {
                black_box(Md5::digest(black_box(&input)));
            }),
        ),
        (
            "CRC-32",
            rate(&mut || {
                black_box(crc32fast::hash(black_box(&input)));
            }),
        ),
        (
            "base64",
            rate(&mut || {
                let written = base64::engine::general_purpose::STANDARD.encode_slice(black_box(&input), &mut text);
                black_box(written.expect("twice the room is enough"));
            }),
        ),
        ("memcpy", rate(&mut || black_box(&mut copy).copy_from_slice(black_box(&input)))),
    ]
}
