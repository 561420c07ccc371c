//! A spool full of numbered events, written in the real format by the real writer.
//!
//! Place: for the benches that drain a backlog. Each user's events count from [`NUMBER_BASE`] on, as the sink that
//! checks them expects. Failure: a panic, since without its backlog a bench has nothing to measure.

use std::path::Path;
use std::sync::Arc;

use forebay::event::{KeyHash, Position};
use forebay::host::Host;
use forebay::spool::frame::{self, FRAME_HEADER_BYTES};
use forebay::spool::{SpoolOptions, open, prepare};

use crate::sink::NUMBER_BASE;

/// Of each segment.
pub const SEGMENT_BYTES: u64 = forebay::limits::SEGMENT_BYTES_DEFAULT;

/// Partition keys, whose events take turns.
const USERS: u64 = 20_000;

/// What was written.
pub struct Backlog {
    pub events: u64,
    /// Of these, for keys that `stuck` told.
    pub stuck: u64,
    pub frame_bytes: u64,
}

/// The spool of the stream "events" in that directory.
pub fn spool_options(dir: &Path) -> SpoolOptions {
    SpoolOptions { stream: "events".into(), dir: dir.to_owned(), max_bytes: u64::MAX, segment_bytes: SEGMENT_BYTES }
}

/// Writes so many bytes of frames, of events of `event_bytes`, as the doors would have.
pub fn fill(host: &Host, dir: &Path, total_bytes: f64, event_bytes: usize, stuck: impl Fn(KeyHash) -> bool) -> Backlog {
    prepare(host, &spool_options(dir)).expect("an empty directory");
    let mut writer = open(host, &spool_options(dir), Position(0), &Arc::default()).expect("an empty spool").writer;
    let text = "x".repeat(event_bytes.saturating_sub(50));
    let mut backlog = Backlog { events: 0, stuck: 0, frame_bytes: 0 };
    let keys: Vec<(String, KeyHash, bool)> = (0..USERS)
        .map(|user| {
            let key = format!("u{user:06}");
            let hash = KeyHash::of_key(&key);
            let stuck = stuck(hash);
            (key, hash, stuck)
        })
        .collect();
    let mut bytes = 0.0;
    let mut number = NUMBER_BASE;
    let mut batches = [Vec::with_capacity(5 << 20)];
    while bytes < total_bytes {
        number += 1;
        for (key, hash, stuck) in &keys {
            let data = format!(r#"{{"userId":"{key}","n":{number},"text":"{text}"}}"#);
            let before = batches[0].len();
            frame::encode(&mut batches[0], key, *hash, false, data.as_bytes());
            backlog.frame_bytes = (batches[0].len() - before) as u64;
            assert_eq!(backlog.frame_bytes, (FRAME_HEADER_BYTES + key.len() + data.len()) as u64);
            backlog.events += 1;
            backlog.stuck += u64::from(*stuck);
            if batches[0].len() >= 4 << 20 {
                bytes += batches[0].len() as f64;
                writer.commit(&mut batches).expect("a good disk");
                batches[0].clear();
            }
        }
    }
    if !batches[0].is_empty() {
        writer.commit(&mut batches).expect("a good disk");
    }
    writer.seal();
    backlog
}
