//! Segments are rewritten under the dispatcher: in every history now and then, and here under a shard that is dead for
//! most of it, whose events must come out in order and complete when it lives again.

use std::time::Duration;

use super::{History, Model, Position, Running};
use crate::config::Aggregate;
use crate::dispatch::window::Window;
use crate::spool::rewrite::{Planner, rewrite};

impl History {
    /// As the rewriter's thread and `run.rs` do, but for the moments: a copy takes its place at a later checkpoint, or never.
    pub(super) fn rewrite(&mut self, running: &mut Running) {
        if let Some(copy) = running.copy.take() {
            if self.random.percent(90) {
                running.dispatcher.swap_in(&copy);
            } else {
                copy.discard(self.host.files.as_ref());
            }
        }
        let (table, files) = (&running.handle.shared().table, self.host.files.as_ref());
        let swept = running.dispatcher.swept();
        let mut planner = Planner::new(self.segment_bytes, Duration::ZERO);
        let chosen = planner.choose(files, table, &self.saved.marks, swept, Duration::ZERO).expect("it reads");
        if let Some(segment) = chosen {
            running.copy = Some(rewrite(&self.host, &segment, &self.saved.marks, || true).expect("a good disk"));
        }
    }
}

/// Next to nothing stays in memory: what a queue holds is read from its file again when its turn comes.
fn small_window(mut running: Running) -> Running {
    running.dispatcher.window = Window::new(2048);
    running
}

/// How many segments were rewritten, and whether a queue read its lanes on its own.
fn a_dead_shard(seed: u64, aggregate: Aggregate) -> (u64, bool) {
    let mut history = History::new(seed, aggregate);
    history.faults = false;
    history.model = Model::new(4);
    if seed.is_multiple_of(4) {
        // A lag reads a part of a segment at a time: what it has listed and not read yet moves too.
        history.segment_bytes = 2 << 20;
        history.padding = 12 << 10;
        history.options.record_bytes_max = 64 << 10;
    }
    history.keys = 20 + seed % 60;
    let dead = &history.model.shards[(seed % 4) as usize];
    history.dead = Some(dead.first_hash..=dead.last_hash);
    let mut running = small_window(history.start(Position(0)));
    let (mut rewritten, mut lagged) = (0, false);
    let count = |running: &Running| running.metrics.rewritten_segments.load(std::sync::atomic::Ordering::Relaxed);
    for round in 0..200 {
        history.write(&running);
        for _ in 0..1 + history.random.below(5) {
            history.step(&mut running);
            lagged |= running.dispatcher.queues.iter().any(|queue| queue.lag.is_some());
        }
        if round == 120 && seed.is_multiple_of(3) {
            // What was rewritten is opened and read by a new process.
            rewritten += count(&running);
            let high = history.crash(running);
            running = small_window(history.start(high));
        }
    }
    rewritten += count(&running);
    history.dead = None;
    history.finish(running);
    (rewritten, lagged)
}

fn dead_shards(aggregate: Aggregate) {
    let (mut rewritten, mut lagged) = (0, 0);
    let seeds = super::seeds();
    let some = seeds.clone().count() > 1;
    for seed in seeds.take(24) {
        let (segments, lag) = a_dead_shard(seed, aggregate);
        rewritten += segments;
        lagged += u64::from(lag && segments > 0);
    }
    println!("{rewritten} segments rewritten; {lagged} histories with a lagging shard");
    assert!(!some || (rewritten > 200 && lagged > 8), "{rewritten} rewritten, {lagged} lagged");
}

#[test]
fn a_dead_shards_aggregates_come_out_in_order_and_complete_from_segments_that_were_rewritten_under_it() {
    dead_shards(Aggregate::Kpl);
}

#[test]
fn a_dead_shards_single_events_come_out_in_order_and_complete_from_segments_that_were_rewritten_under_it() {
    dead_shards(Aggregate::Off);
}
