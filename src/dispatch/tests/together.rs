//! Queues that lag close to one another read the spool together: no event is read by itself, and none is missed or met twice.
//!
//! Place: the histories of `tests.rs`, without faults, on files that count how often they are read.

use std::io;
use std::path::Path;

use super::*;
use crate::host::{File, Files, Space};

/// Real files; counts the reads.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Files>,
    reads: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CountingFile {
    inner: Arc<dyn File>,
    reads: Arc<AtomicU64>,
}

impl Counting {
    fn file(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(CountingFile { inner, reads: Arc::clone(&self.reads) })
    }
}

impl Files for Counting {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.inner.open(path)?))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.inner.create(path)?))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.inner.space(path)
    }
}

impl File for CountingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(buf, offset)
    }
    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.append(parts)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}

const SHARDS: u32 = 128;
const EVENTS: u64 = 20_000;

fn history(seed: u64, aggregate: Aggregate) -> (History, Arc<AtomicU64>) {
    let mut history = History::new(seed, aggregate);
    let reads = Arc::<AtomicU64>::default();
    history.host.files = Arc::new(Counting { inner: Arc::clone(&history.host.files), reads: Arc::clone(&reads) });
    history.faults = false;
    history.model = Model::new(SHARDS);
    history.segment_bytes = 64 << 20;
    history.late_ms = fresh::LATE_DEFAULT;
    history.options = DispatchOptions {
        linger: Duration::from_millis(20),
        record_bytes_max: 64 << 10,
        requests_max: 4,
        slots_max: 4096,
        ..history.options
    };
    (history, reads)
}

/// Events of many keys, none of which lies in the first lane.
fn write(history: &mut History, running: &Running) {
    let keys: Vec<String> = (0..3000).map(|n| format!("key-{n}")).filter(|key| KeyHash::of_key(key).lane() != Lane(0)).collect();
    for _ in 0..EVENTS / 500 {
        let mut batch = running.handle.batch();
        for _ in 0..500 {
            let key = &keys[history.random.below(keys.len() as u64) as usize];
            let n = history.accepted.entry(key.clone()).or_default();
            batch.push(key, None, format!("{n} {key} {}", "x".repeat(60)).as_bytes());
            *n += 1;
        }
        let permit = running.handle.try_admit(batch.len()).expect("room");
        running.handle.submit(batch, permit).wait().expect("durable");
    }
}

#[test]
fn where_all_queues_lag_a_backlog_is_read_in_large_pieces_and_not_event_by_event() {
    for (seed, aggregate) in [(1, Aggregate::Kpl), (2, Aggregate::Kpl), (3, Aggregate::Lines), (4, Aggregate::Off)] {
        let (mut history, reads) = history(seed, aggregate);
        let running = history.start(Position(0));
        write(&mut history, &running);
        let end = running.handle.shared().tail.durable();
        history.crash(running);
        // The marks of another lane are past it all, and so the sweep begins at the end, with everybody behind it.
        (history.saved.durable, history.saved.marks[0]) = (end, end);
        let running = history.start(Position(0));
        let before = reads.load(Ordering::Relaxed);
        history.finish(running);
        let reads = reads.load(Ordering::Relaxed) - before;
        assert!(reads <= EVENTS / 20, "seed {seed}: {reads} reads for {EVENTS} events");
    }
}

#[test]
fn queues_far_behind_and_queues_close_to_the_end_lag_in_two_groups_and_none_misses_or_repeats_an_event() {
    for (seed, aggregate) in [(1, Aggregate::Kpl), (2, Aggregate::Lines), (3, Aggregate::Off)] {
        let (mut history, _) = history(seed, aggregate);
        // Two of three shards take nothing for a while.
        history.dead = Some(0..=u128::MAX / 3 * 2);
        let mut running = history.start(Position(0));
        for _ in 0..3 {
            write(&mut history, &running);
            for _ in 0..300 {
                history.step(&mut running);
            }
        }
        let lagging = running.dispatcher.queues.iter().filter(|queue| queue.lag.is_some()).count();
        assert!(lagging > SHARDS as usize / 3, "seed {seed}: {lagging} lag");
        history.dead = None;
        history.finish(running);
    }
}
